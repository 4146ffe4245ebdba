"""`s3block export|check`: what a volume holds, and whether it is whole.

One rule: both only read the store; both may run while a host is writing to the volume.
"""

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from blockdev.arguments import VolumeArgument, counted, find, opened, steps, usage
from blockdev.image import ImageFile, ImageStream
from blockdev.inspection import Inspection, inspect_volume
from blockdev.offline import OfflineVolume, open_offline
from blockdev.place import volume_store
from s3core.console import Column, JsonOption, write_json, write_line, write_note, write_records
from s3core.endpoint_commands import ConfigOption
from s3core.exit_codes import ExitCode
from s3core.quantities import shown_duration, shown_size
from s3core.settings import load_config


def export(
    volume: VolumeArgument,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The raw image to write; - is standard output.", show_default=False)
    ],
    commit: Annotated[
        int | None,
        typer.Option("--commit", metavar="N", min=1, help="The volume as it was after commit N, not the newest."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a volume's content to a raw image, with nothing but the store. An export that was stopped goes on."""
    config = load_config(config_path)
    place = find(config, volume)
    piped = str(file) == "-"
    if piped and as_json:
        usage("standard output cannot carry the image and JSON")
    with (
        opened(config, place.store_url) as store,
        open_offline(volume_store(store, place.name), place.name, commit=commit) as found,
    ):
        began = time.monotonic()
        extent_bytes = found.volume.geometry.extent_bytes
        target: ImageStream | ImageFile
        if piped:
            target = ImageStream(sys.stdout.buffer, size_bytes=found.size_bytes)
        else:
            target = ImageFile(file, size_bytes=found.size_bytes, stamp=_stamp(found), force=force)
        with closing(target):
            if target.start and not as_json:
                write_note(f"going on at {shown_size(target.start * extent_bytes)}")
            left = sum(1 for _ in found.map.extents(target.start)) if found.state is not None else 0
            with steps(f"exporting {place.name}", left * extent_bytes, unit="bytes", quiet=as_json) as advance:

                def done(extent: int) -> None:
                    target.reached(extent)
                    advance(extent_bytes)

                found.copy(target, start=target.start, done=done)
            target.finish()
        seconds = time.monotonic() - began
        answer = {
            "volume": place.url,
            "commit": found.state.seq if found.state is not None else 0,
            "file": str(file),
            "size_bytes": found.size_bytes,
            "copied_bytes": left * extent_bytes,
            "seconds": round(seconds, 3),
        }
    if as_json:
        write_json(answer)
        return
    rate = shown_size(int(left * extent_bytes / max(seconds, 0.001)))
    said = (
        f"volume {place.name} as of commit {answer['commit']}: {shown_size(found.size_bytes)}, of which "
        f"{shown_size(left * extent_bytes)} mapped, in {shown_duration(round(seconds, 1))} ({rate}/s)"
    )
    if piped:
        write_note(said)
    else:
        write_line(f"{file}: {said}")


def _stamp(found: OfflineVolume) -> str:
    """Names the content: one digest names a whole volume state."""
    digest = found.state.digest.hex() if found.state is not None else "empty"
    return f"{found.volume.identity} {digest}"


def check(
    volume: VolumeArgument,
    deep: Annotated[bool, typer.Option("--deep", help="Read and decode all data, not just what describes it.")] = False,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Look whether a volume is whole: its log, roots and map against each other and the objects in the store.

    Exit code 1 when something is found. Nothing is changed."""
    config = load_config(config_path)
    place = find(config, volume)

    def stage(label: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        return steps(label, total, quiet=as_json)

    with opened(config, place.store_url) as store:
        found = inspect_volume(volume_store(store, place.name), place.name, deep=deep, stage=stage)
    if as_json:
        write_json({"volume": place.url} | asdict(found))
    else:
        _write_inspection(place.url, found)
    raise typer.Exit(ExitCode.FINDING if found.defects else ExitCode.OK)


def _write_inspection(url: str, found: Inspection) -> None:
    if found.defects:
        columns = [
            Column("key", "KEY"),
            Column("offset", "OFFSET", justify="right"),
            Column("extent", "EXTENT", justify="right"),
            Column("said", "WHAT IS WRONG"),
        ]
        write_records([asdict(defect) for defect in found.defects], columns, as_json=False)
    told = [
        f"commit {found.commit}",
        counted(found.records, "record"),
        counted(found.roots, "root"),
        counted(found.extents, "extent"),
        f"{counted(found.objects, 'object')} of {shown_size(found.object_bytes)}",
    ]
    if found.deep:
        told.append(f"{counted(found.frames_read, 'frame')} read")
    write_line(f"{url}: {', '.join(told)}")
    for count, size, what in (
        (found.waiting, found.waiting_bytes, "to be deleted by the next host that serves the volume"),
        (found.orphans, found.orphan_bytes, "of no commit (left by a crash, or being written just now)"),
    ):
        if count:
            write_line(f"{counted(count, 'object')} of {shown_size(size)} {what}")
    if not found.defects:
        write_line("nothing is wrong" if found.deep else "nothing is wrong; --deep reads the data too")
        return
    write_note(
        f"{counted(len(found.defects), 'finding')}; keep every object as it is: what is not named can still be read"
    )

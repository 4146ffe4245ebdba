"""`s3block import|export`: volumes from disk images, and disk images from volumes.

One rule: what stands under its final name is whole, a volume as well as an image.
"""

import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Annotated
from uuid import uuid4

import typer

from blockdev import keys
from blockdev.arguments import (
    CompressionOption,
    EncryptOption,
    KeyOption,
    VolumeArgument,
    find,
    opened,
    secret_for_new,
    secret_of,
    size_option,
    steps,
    usage,
)
from blockdev.errors import Fenced, Refused
from blockdev.events import recorded
from blockdev.image import ImageFile, ImageStream, Qcow2Image
from blockdev.image_source import FORMATS, ImageSource, StreamSource, open_image
from blockdev.importing import Imported, import_image
from blockdev.new_volume import (
    ExtentSizeOption,
    FrameSizeOption,
    SectorSizeOption,
    UnfencedOption,
    drafted,
    note_unfenced,
    require_fence,
)
from blockdev.offline import OfflineVolume, commit_of, open_offline
from blockdev.place import VolumePlace, volume_store
from blockdev.qcow2.format import Compression
from blockdev.segments.volume_file import VolumeFile, cipher_of
from blockdev.units import BLOCK_BYTES
from s3core.console import JsonOption, write_json, write_line, write_note
from s3core.endpoint_commands import ConfigOption
from s3core.quantities import shown_duration, shown_size
from s3core.settings import load_config
from s3core.store import ObjectStore

FormatOption = Annotated[
    str | None,
    typer.Option("--format", metavar="raw|qcow2", help="What kind of image FILE is.", show_default=False),
]
_COMPRESSIONS = {kind.name.lower(): kind for kind in Compression}


# --- import ----------------------------------------------------------------------------------------------------------


def import_volume(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A raw or qcow2 image, or a block device; - is a raw image on standard input.",
            show_default=False,
        ),
    ],
    volume: VolumeArgument,
    form: FormatOption = None,
    size: Annotated[int | None, size_option("size_bytes", "--size")] = None,
    sector_size: SectorSizeOption = None,
    extent_size: ExtentSizeOption = None,
    frame_size: FrameSizeOption = None,
    compression: CompressionOption = "zstd",
    encrypt: EncryptOption = False,
    key: KeyOption = None,
    unfenced: UnfencedOption = False,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a volume from a disk image. Holes and zeros cost nothing. The volume exists when all of it is there.

    An image is known by its first bytes unless --format says otherwise. With --size the volume is larger than the image,
    and zeros behind it; for a stream that is its size. One that was stopped leaves remains: remove them with
    `s3block delete`, then import again."""
    config = load_config(config_path)
    place = find(config, volume, key=key)
    _check_form(form)
    with _source(file, form, size) as source:
        whole = -(-source.size_bytes // BLOCK_BYTES) * BLOCK_BYTES
        wanted = whole if size == source.size_bytes else size or place.settings.size_bytes or whole
        if wanted < source.size_bytes:
            usage(f"the image has {source.size_bytes} bytes, a volume of {wanted} cannot hold it")
        made = drafted(
            place,
            wanted,
            sector_bytes=sector_size,
            frame_bytes=frame_size,
            extent_bytes=extent_size,
            compression=compression,
        )
        secret = secret_for_new(place, encrypt)
        made, slot, data_key = keys.sealed(made, secret, random=os.urandom)
        with opened(config, place.store_url) as store:
            tested = require_fence(store, place, unfenced=unfenced)
            began = time.monotonic()
            with (
                recorded(config, place.store_url, place.name, "import", identity=str(made.identity), size_bytes=wanted),
                keys.slot_in_place(volume_store(store, place.name), slot),
            ):
                done = _import(store, place, made, source, data_key, quiet=as_json)
            seconds = max(time.monotonic() - began, 0.001)
    mapped = done.extents * made.geometry.extent_bytes
    if as_json:
        write_json(
            {
                "url": place.url,
                "uuid": str(made.identity),
                "file": str(file),
                "image_bytes": source.size_bytes,
                "size_bytes": wanted,
                "commit": done.commit,
                "mapped_extents": done.extents,
                "mapped_bytes": mapped,
                "stored_bytes": done.stored_bytes,
                "puts": done.puts,
                "seconds": round(seconds, 3),
                "fenced": tested.ok,
            }
        )
    else:
        write_line(
            f"volume {place.name} of {shown_size(wanted)} imported to {place.store_url}: {shown_size(mapped)} mapped, "
            f"{shown_size(done.stored_bytes)} stored in {done.puts} PUTs, in {shown_duration(round(seconds, 1))} "
            f"({shown_size(int(mapped / seconds))}/s)"
        )
    if wanted != source.size_bytes:
        write_note(f"the image has {source.size_bytes} bytes; the volume has {wanted}, with zeros behind the image")
    note_unfenced(tested)


def _import(
    store: ObjectStore, place: VolumePlace, made: VolumeFile, source: ImageSource, data_key: bytes, *, quiet: bool
) -> Imported:
    extent_bytes = made.geometry.extent_bytes
    # Before anything is sent: an image whose tables are damaged is refused here.
    total = source.count(extent_bytes) * extent_bytes
    began = False
    try:
        with steps(f"importing {place.name}", total, unit="bytes", quiet=quiet) as advance:
            began = True
            return import_image(
                store,
                made,
                source,
                journal=uuid4(),
                nonce=lambda: uuid4().bytes,
                cipher=cipher_of(made, data_key, os.urandom),
                note={"host": socket.gethostname(), "pid": os.getpid(), "program": made.creator},
                done=lambda extents: advance(extents * extent_bytes),
            )
    except BaseException as error:
        # Where somebody else makes or deletes the same volume, what is there may be theirs.
        if began and not quiet and not isinstance(error, Refused | Fenced):
            write_note(f"{place.name} is no volume yet; `s3block delete` removes what was sent")
        raise


@contextmanager
def _source(file: Path, form: str | None, size: int | None) -> Iterator[ImageSource]:
    if str(file) != "-":
        source: ImageSource = open_image(file, form)
    elif size is None:
        usage("say how large the image on standard input is, with --size")
    elif form not in (None, "raw"):
        usage("standard input can carry a raw image alone; a qcow2 image has to be a file")
    else:
        source = StreamSource(sys.stdin.buffer, size)
    with closing(source):
        yield source


def _check_form(form: str | None) -> None:
    if form is not None and form not in FORMATS:
        usage(f"--format must be one of {', '.join(FORMATS)}, not {form!r}; qemu-img convert makes others")


# --- export ----------------------------------------------------------------------------------------------------------


def export(
    volume: VolumeArgument,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="The image to write; - is a raw one on standard output.", show_default=False
        ),
    ],
    form: FormatOption = None,
    compress: Annotated[
        str | None,
        typer.Option("--compress", metavar="zlib|zstd", help="Pack the clusters of a qcow2 image.", show_default=False),
    ] = None,
    commit: Annotated[
        int | None,
        typer.Option("--commit", metavar="N", min=1, help="The volume as it was after commit N, not the newest."),
    ] = None,
    snapshot: Annotated[
        str | None,
        typer.Option("--snapshot", metavar="NAME", help="The volume as it was at a snapshot.", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
    key: KeyOption = None,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a volume's content to an image, with nothing but the store: qcow2 if FILE ends in .qcow2, otherwise raw.
    A raw export that was stopped goes on; a qcow2 one begins anew."""
    config = load_config(config_path)
    place = find(config, volume, key=key)
    piped = str(file) == "-"
    if piped and as_json:
        usage("standard output cannot carry the image and JSON")
    _check_form(form)
    if form is None:
        form = "qcow2" if file.suffix == ".qcow2" else "raw"
    if piped and form == "qcow2":
        usage("a qcow2 image is not written from front to back; name a file")
    if compress is not None and compress not in _COMPRESSIONS:
        usage(f"--compress must be one of {', '.join(_COMPRESSIONS)}, not {compress!r}")
    if compress is not None and form != "qcow2":
        usage("--compress is for qcow2 images; pack a raw one with a tool of your choice")
    if commit is not None and snapshot is not None:
        usage("--commit and --snapshot both say which state; give one")
    secret = secret_of(place)
    with ExitStack() as held:
        own = volume_store(held.enter_context(opened(config, place.store_url)), place.name)
        if snapshot is not None:
            commit = commit_of(own, place.name, snapshot)
        found = held.enter_context(
            open_offline(own, place.name, commit=commit, unlock=lambda made: keys.unlock(own, made, secret))
        )
        began = time.monotonic()
        extent_bytes = found.volume.geometry.extent_bytes
        target: ImageStream | ImageFile | Qcow2Image
        if piped:
            target = ImageStream(sys.stdout.buffer, size_bytes=found.size_bytes)
        elif form == "qcow2":
            packing = _COMPRESSIONS[compress] if compress is not None else None
            target = Qcow2Image(file, size_bytes=found.size_bytes, compression=packing, force=force)
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
            "format": form,
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

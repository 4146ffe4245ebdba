"""`s3block check`: whether a volume is whole, and what of its damage can be mended.

One rule: without --repair --yes it only reads the store, and may run while a host is writing to the volume.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Annotated, Any

import typer

from blockdev import keys
from blockdev.arguments import (
    KeyOption,
    StateDirOption,
    VolumeArgument,
    counted,
    find,
    opened,
    secret_of,
    size,
    state_of,
    steps,
)
from blockdev.inspection.findings import Defect, Inspection
from blockdev.inspection.inspector import inspect_volume
from blockdev.inspection.repair import Plan, Step, advice, carry_out, make_plan
from blockdev.place import volume_store
from s3core.console import Column, JsonOption, write_json, write_line, write_note, write_records
from s3core.endpoint_commands import ConfigOption
from s3core.exit_codes import ExitCode
from s3core.quantities import shown_size
from s3core.settings import load_config


def check(
    volume: VolumeArgument,
    deep: Annotated[bool, typer.Option("--deep", help="Read and decode all data, not just what describes it.")] = False,
    rate: Annotated[
        int,
        typer.Option("--rate", parser=size, metavar="SIZE", help="Read at most so many bytes a second (--deep)."),
    ] = 0,
    repair: Annotated[
        bool, typer.Option("--repair", help="Tell what can be mended without guessing; with --yes, do it.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --repair: do it.")] = False,
    state_dir: StateDirOption = None,
    key: KeyOption = None,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Look whether a volume is whole: its log, roots, map and snapshots against each other and the objects in the store.

    Exit code 1 when something is found. Nothing is changed; a host may be writing meanwhile. --repair --yes writes roots,
    map pages and the head anew from the log, and deletes orphans; content that is damaged is named. An encrypted volume is
    decrypted with --deep if there is a key (--key '' leaves out a configured one); without one, checksums are compared."""
    config = load_config(config_path)
    place = find(config, volume, key=key)
    secret = secret_of(place) if deep or key else None

    def stage(label: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        return steps(label, total, quiet=as_json)

    with opened(config, place.store_url) as store:
        own = volume_store(store, place.name)
        unlock = (lambda made: keys.unlock(own, made, secret)) if secret is not None else None

        def look() -> Inspection:
            return inspect_volume(own, place.name, deep=deep, stage=stage, unlock=unlock, rate=float(rate))

        found = look()
        plan: Plan | None = None
        done: list[str] = []
        if repair:
            directory = state_of(place, state_dir)
            plan = make_plan(store, place, directory, found)
            tried: set[Step] = set()
            while yes and set(plan.steps) - tried:
                tried |= set(plan.steps)
                carry_out(store, place, config, directory, plan, told=done.append)
                found = look()
                plan = make_plan(store, place, directory, found)
    if as_json:
        told = {} if plan is None else {"repaired": done, "steps": _said(plan), "advice": advice(found, plan)}
        write_json({"volume": place.url} | asdict(found) | told)
    else:
        for line in done:
            write_line(f"repaired: {line}")
        _write_inspection(place.url, found)
        if plan is not None:
            _write_plan(found, plan)
    raise typer.Exit(ExitCode.FINDING if found.defects else ExitCode.OK)


def _said(plan: Plan) -> list[str]:
    return [step.value for step in plan.steps]


def _write_plan(found: Inspection, plan: Plan) -> None:
    for line in advice(found, plan):
        write_line(line)
    if plan.refused:
        write_note(plan.refused)
    for step in _said(plan):
        write_line(f"would {step}")
    if plan.steps:
        write_note("--repair --yes does that")
    elif not found.defects:
        write_line("there is nothing to repair")


def _row(defect: Defect, sector_bytes: int) -> dict[str, Any]:
    row = asdict(defect)
    if defect.start is not None:
        first = defect.start // sector_bytes
        row["range"] = f"{first}-{first + defect.length // sector_bytes - 1}"
    row["where"] = ", ".join(defect.hits) or None
    return row


def _write_inspection(url: str, found: Inspection) -> None:
    if found.defects:
        columns = [
            Column("key", "KEY"),
            Column("offset", "OFFSET", justify="right"),
            Column("extent", "EXTENT", justify="right"),
            Column("range", "SECTORS", justify="right"),
            Column("where", "OF"),
            Column("said", "WHAT IS WRONG"),
        ]
        write_records([_row(defect, found.sector_bytes) for defect in found.defects], columns, as_json=False)
    for remark in found.remarks:
        write_line(f"{remark.key} {remark.said}")
    told = [
        f"commit {found.commit}",
        counted(found.records, "record"),
        counted(found.roots, "root"),
        counted(found.extents, "extent"),
        *([counted(len(found.snapshots), "snapshot")] if found.snapshots else []),
        f"{counted(found.objects, 'object')} of {shown_size(found.object_bytes)}",
    ]
    if found.deep:
        told.append(f"{counted(found.frames_read, 'frame')} read")
    write_line(f"{url}: {', '.join(told)}")
    for count, total, what in (
        (found.waiting, found.waiting_bytes, "to be deleted by the next host that serves the volume"),
        (found.orphans, found.orphan_bytes, "of no commit (left by a crash, or being written just now)"),
    ):
        if count:
            write_line(f"{counted(count, 'object')} of {shown_size(total)} {what}")
    if found.deep and found.encrypted and not found.decrypted:
        write_line("the volume is encrypted: checksums were compared, contents were not decrypted; --key does that")
    if not found.defects:
        write_line("nothing is wrong" if found.deep else "nothing is wrong; --deep reads the data too")
        return
    write_note(
        f"{counted(len(found.defects), 'finding')}; keep every object as it is: what is not named can still be read"
    )

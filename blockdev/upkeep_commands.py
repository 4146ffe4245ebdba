"""`s3block gc|resize|promote`: looking after a volume, served or not.

One rule: what cannot be taken back is told before it is done, and done only when it was asked for by name.
"""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from blockdev import references
from blockdev.arguments import (
    KeyOption,
    StateDirOption,
    VolumeArgument,
    consent,
    find,
    moment,
    opened,
    size,
    state_of,
)
from blockdev.engine.state_directory import DirectoryJournal, StateDirectory
from blockdev.errors import CorruptJournal, Refused
from blockdev.offline import OfflineVolume, open_offline
from blockdev.place import VolumePlace, volume_store
from blockdev.segments.record import RecordKind
from blockdev.session import Operator, Session, operate, reach
from blockdev.snapshot_commands import YesOption
from blockdev.units import BLOCK_BYTES
from blockdev.volumes import SIZE_BYTES_MIN
from s3core.console import Column, JsonOption, write_json, write_line, write_note, write_record
from s3core.endpoint_commands import ConfigOption
from s3core.exit_codes import ExitCode
from s3core.quantities import shown_duration, shown_size
from s3core.settings import load_config


def gc(
    volume: VolumeArgument,
    orphans: Annotated[
        bool,
        typer.Option(
            "--orphans", help="Also look for objects that no commit names (left by a crash), and remove them."
        ),
    ] = False,
    key: KeyOption = None,
    state_dir: StateDirOption = None,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove what a volume needs no more: expired snapshots, dead objects, references of clones that were never finished.

    A served volume does most of this by itself, as it goes."""
    config = load_config(config_path)
    place = find(config, volume, key=key)
    with opened(config, place.store_url) as store:
        forgotten = references.remove_dead(store, place.name, time.time())
    answer = operate(place, config, "gc", {"orphans": orphans}, state_dir=state_of(place, state_dir))
    answer |= {"references_removed": len(forgotten)}
    if as_json:
        write_json({"volume": place.url} | answer)
        return
    for key, value in answer.items():
        shown = shown_size(value) if key.endswith("bytes") else ", ".join(value) or "none" if key == "held" else value
        write_line(f"{key.replace('_', ' ')}: {shown}")


# --- resize ----------------------------------------------------------------------------------------------------------


def resize(
    volume: VolumeArgument,
    size_bytes: Annotated[
        int, typer.Argument(metavar="SIZE", parser=size, help="The new size, such as 200G.", show_default=False)
    ],
    force: Annotated[
        bool, typer.Option("--force", help="Also make it smaller; what lies behind the new end is lost.")
    ] = False,
    yes: YesOption = False,
    key: KeyOption = None,
    state_dir: StateDirOption = None,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give a volume another size. Growing costs one commit and is seen by initiators at once; then grow what is on it."""
    config = load_config(config_path)
    place = find(config, volume, key=key)
    if size_bytes % BLOCK_BYTES or size_bytes < SIZE_BYTES_MIN:
        raise typer.BadParameter(f"a volume has a multiple of 4096 bytes, 1 MiB or more, not {size_bytes}")
    with opened(config, place.store_url) as store, open_offline(volume_store(store, place.name), place.name) as found:
        before = found.size_bytes
    directory = state_of(place, state_dir)
    if size_bytes < before:
        if not force:
            raise Refused(
                f"the last {shown_size(before - size_bytes)} of volume {place.name} would be lost",
                hint="shrink what is on it first; then --force, while it is not served",
            )
        with reach(place, config, state_dir=directory) as attached:
            _shrink(place, attached, before, size_bytes, yes=yes)
    elif size_bytes > before:
        operate(place, config, "resize", {"size_bytes": size_bytes}, state_dir=directory)
    if as_json:
        write_json({"volume": place.url, "size_bytes": size_bytes, "size_before_bytes": before})
    elif size_bytes == before:
        write_line(f"volume {place.name} has {shown_size(size_bytes)} already")
    else:
        write_line(f"volume {place.name} has {shown_size(size_bytes)} now, {shown_size(before)} before")


def _shrink(place: VolumePlace, attached: Operator, before: int, size_bytes: int, *, yes: bool) -> None:
    if attached.served:
        raise Refused(
            f"volume {place.name} is being served: it cannot get smaller under its initiators",
            hint="stop its `s3block serve` first",
        )
    consent(
        f"give up the last {shown_size(before - size_bytes)} of volume {place.name}, with all data in it?",
        yes=yes,
        otherwise="nothing was changed",
    )
    attached.operate("resize", size_bytes=size_bytes, shrink=True)


# --- promote ---------------------------------------------------------------------------------------------------------


def promote(
    volume: VolumeArgument,
    accept_loss: Annotated[
        bool, typer.Option("--accept-loss", help="Do it: what is printed as missing is given up for good.")
    ] = False,
    host_is_off: Annotated[
        bool,
        typer.Option(
            "--host-is-off",
            help="The host that had the volume is switched off: do not wait for its lease. If it is not, writes get lost.",
        ),
    ] = False,
    key: KeyOption = None,
    state_dir: StateDirOption = None,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take a volume over whose host, with its journal, is gone for good.

    Prints exactly what is given up; without --accept-loss it does nothing else. With it, the volume is attached here under
    a new lineage and detached in order: any host may serve it then. The old host, should it live, is fenced off."""
    config = load_config(config_path)
    place = find(config, volume, key=key)
    directory = state_of(place, state_dir)
    with opened(config, place.store_url) as store, open_offline(volume_store(store, place.name), place.name) as found:
        given_up = _given_up(found, time.time())
        journal = found.state.journal if found.state is not None else ""
        if given_up is not None and _journal_here(directory, found) == journal:
            raise Refused(
                f"the journal of volume {place.name}'s last writer is on this host, in {directory}: nothing need be lost",
                hint="serve it here; or run `s3block gc` here, which carries it to the bucket, and then serve it anywhere",
            )
    if given_up is None:
        if as_json:
            write_json({"volume": place.url, "done": False, "given_up": None})
        else:
            write_line(f"volume {place.name} was left in order: nothing is missing, any host may serve it")
        return
    after = None
    if accept_loss:
        if not as_json:
            _write_given_up(given_up)
        with Session(place, config, state_dir=directory, accept_loss=True, outwait=not host_is_off):
            pass
        with opened(config, place.store_url) as store, open_offline(volume_store(store, place.name), place.name) as now:
            after = now.state.lineage if now.state is not None else None
    if as_json:
        write_json({"volume": place.url, "done": accept_loss, "given_up": given_up, "lineage_after": after})
    elif accept_loss:
        write_line(f"lineage after   {after}")
        write_line(f"volume {place.name} was taken over and detached; any host may serve it")
    else:
        _write_given_up(given_up)
        write_line(f"lineage after   {'the same' if given_up['flush'] == 's3' else 'a new one'}")
    if not accept_loss:
        write_note("nothing was done; --accept-loss takes the volume over and gives this up")
        raise typer.Exit(ExitCode.REFUSED)


def _journal_here(directory: Path, found: OfflineVolume) -> str:
    """Identity of the journal in the state directory, empty for none that is this volume's."""
    sector_bytes = found.volume.geometry.sector_bytes
    try:
        journal = DirectoryJournal(StateDirectory(directory), found.volume.identity, 0, sector_bytes).identity()
    except CorruptJournal as error:
        write_note(f"{error}; it counts as gone")
        return ""
    return str(journal) if journal is not None else ""


def _given_up(found: OfflineVolume, now: float) -> dict[str, Any] | None:
    """What taking the volume over without its journal may lose; None when it was left in order."""
    state = found.state
    if state is None or state.kind == RecordKind.DETACH:
        return None
    fence = found.fence
    return {
        "last_commit": state.seq,
        "last_commit_time": state.time_us / 1e6,
        "epoch": state.epoch,
        "host": fence.get("host"),
        "lease_s": fence.get("lease_s"),
        "flush": state.flush,
        "lineage_before": state.lineage,
        "missing_from": state.time_us / 1e6,
        "missing_until": now,
        "missing_bytes_max": fence.get("journal_bytes"),
    }


def _write_given_up(given_up: dict[str, Any]) -> None:
    lines = [
        Column("last_commit", "last commit"),
        Column("last_commit_time", "  of", moment),
        Column("epoch", "epoch"),
        Column("host", "last writer", lambda host: str(host or "not known")),
        Column("lease_s", "its lease", lambda seconds: shown_duration(seconds) if seconds else "none"),
        Column("missing_from", "writes missing", lambda seconds: f"from {moment(seconds)}"),
        Column("missing_until", "", lambda seconds: f"until it stopped, at most until {moment(seconds)}"),
        Column(
            "missing_bytes_max", "", lambda size: f"at most {shown_size(size)}, its journal" if size else "of any size"
        ),
        Column("flush", "", _of_flushed),
        Column("lineage_before", "lineage before"),
    ]
    write_record(given_up, lines, as_json=False)


def _of_flushed(flush: object) -> str:
    return 'none that was flushed: with flush = "s3" these are in the store' if flush == "s3" else "flushed ones too"

"""`s3block snapshot|clone|rollback|diff`: states of a volume that have a name.

One rule: what only reads, reads the store, and needs no host; what changes the volume goes to whoever has it attached, or
attaches it for a moment (`session`).
"""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from itertools import chain, count
from typing import Annotated
from uuid import uuid4

import typer

from blockdev import keys, references, volumes
from blockdev.arguments import (
    KeyOption,
    StateDirOption,
    VolumeArgument,
    consent,
    counted,
    duration,
    find,
    moment,
    opened,
    secret_of,
    state_of,
    steps,
    usage,
)
from blockdev.difference import Range, candidates, differences
from blockdev.engine.operations import check_snapshot_name
from blockdev.errors import Refused
from blockdev.events import recorded
from blockdev.extents.history import Snapshot
from blockdev.offline import OfflineVolume, commit_of, open_offline
from blockdev.place import VolumePlace, check_name, is_url, volume_store
from blockdev.segments.key_slot import Secret
from blockdev.segments.volume_file import CLONE, VolumeFile
from blockdev.session import operate, reach
from s3core.console import (
    Column,
    JsonOption,
    new_app,
    program_version,
    size_column,
    write_json,
    write_line,
    write_note,
    write_records,
)
from s3core.endpoint_commands import ConfigOption
from s3core.quantities import shown_size
from s3core.settings import Config, load_config
from s3core.store import ObjectStore

app = new_app("snapshot", "States of a volume that are kept under a name.")

NOW = "now"
"""Stands for the newest state where a snapshot is asked for."""

SnapshotArgument = Annotated[
    str, typer.Argument(metavar="SNAPSHOT", help="Name of a snapshot of VOLUME.", show_default=False)
]
YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


def checked_name(name: str) -> str:
    """Returns `name`. Raises Refused, or ends with a usage error, when no snapshot may be called that."""
    if name == NOW:
        usage(f"a snapshot cannot be called {NOW}: that stands for the newest state")
    return check_snapshot_name(name)


def told(snapshot: Snapshot) -> dict[str, object]:
    """A snapshot as an answer: times in Unix seconds."""
    return {
        "name": snapshot.name,
        "commit": snapshot.seq,
        "epoch": snapshot.epoch,
        "digest": snapshot.digest,
        "created": snapshot.time_us / 1e6,
        "size_bytes": snapshot.size_bytes,
        "expires": snapshot.expires_us / 1e6 if snapshot.expires_us else None,
    }


# --- snapshot --------------------------------------------------------------------------------------------------------


@app.command("create")
def create(
    volume: VolumeArgument,
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Without it, the date and time (UTC).", show_default=False)
    ] = None,
    expires: Annotated[
        float | None,
        typer.Option("--expires", parser=duration, metavar="TIME", help="Let it go after this long, such as 7d."),
    ] = None,
    note: Annotated[str, typer.Option("--note", help="Words to keep with it.")] = "",
    key: KeyOption = None,
    state_dir: StateDirOption = None,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Keep the state of now under a name. Everything acknowledged before it is in it, and in the store.

    It costs one commit, whatever the volume's size; later it keeps the objects it needs from being deleted."""
    config = load_config(config_path)
    place = find(config, volume, key=key)
    now = time.time()
    name = checked_name(name or datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d-%H%M%S"))
    expires_us = int((now + expires) * 1e6) if expires is not None else 0
    arguments = {"name": name, "expires_us": expires_us, "note": note}
    made = operate(place, config, "snapshot", arguments, state_dir=state_of(place, state_dir))
    if as_json:
        write_json({"volume": place.url} | made)
        return
    until = f", until {moment(expires_us / 1e6)}" if expires_us else ""
    write_line(f"snapshot {made['name']} of volume {place.name}: commit {made['seq']}{until}")


@app.command("list")
def list_snapshots(volume: VolumeArgument, config_path: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show a volume's snapshots, the oldest first. Reads the store alone."""
    config = load_config(config_path)
    place = find(config, volume)
    with opened(config, place.store_url) as store, open_offline(volume_store(store, place.name), place.name) as found:
        clones: dict[int, list[str]] = {}
        for reference in references.references(store, place.name, time.time()):
            clones.setdefault(reference.seq, []).append(reference.child)
        rows = [
            told(snapshot) | {"clones": sorted(clones.get(snapshot.seq, []))}
            for snapshot in sorted(found.snapshots, key=lambda snapshot: snapshot.seq)
        ]
    if not rows and not as_json:
        write_note(f"volume {place.name} has no snapshots; s3block snapshot create makes one")
        return
    columns = [
        Column("name", "NAME"),
        Column("created", "CREATED", moment),
        size_column("size_bytes", "SIZE"),
        Column("commit", "COMMIT", justify="right"),
        Column("expires", "EXPIRES", moment),
        Column("clones", "CLONES", ", ".join),
    ]
    write_records(rows, columns, as_json=as_json)


@app.command("delete")
def delete(
    volume: VolumeArgument,
    name: SnapshotArgument,
    key: KeyOption = None,
    state_dir: StateDirOption = None,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a snapshot go. What only it needed is removed by later commits. Refused while a clone needs it."""
    config = load_config(config_path)
    place = find(config, volume, key=key)
    with opened(config, place.store_url) as store:
        references.remove_dead(store, place.name, time.time())
    answer = operate(
        place,
        config,
        "snapshot-delete",
        {"name": name},
        state_dir=state_of(place, state_dir),
    )
    if as_json:
        write_json({"volume": place.url, "deleted": name} | answer)
    else:
        write_line(f"snapshot {name} of volume {place.name} deleted")


# --- clone -----------------------------------------------------------------------------------------------------------


def clone(
    volume: VolumeArgument,
    snapshot: SnapshotArgument,
    new: Annotated[
        str,
        typer.Argument(metavar="NEW", help="The clone: a name, or a URL in the same store.", show_default=False),
    ],
    key: KeyOption = None,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a volume that begins as a snapshot of another. Nothing is copied: both share what they share.

    The clone is written to like any volume, wherever it is served. Its origin's snapshot stays until the clone is deleted."""
    config = load_config(config_path)
    place = find(config, volume, key=key)
    name = _name_of_clone(config, place, new)
    secret = secret_of(place)
    with opened(config, place.store_url) as store:
        volumes.require_free(store, name)
        references.remove_dead(store, place.name, time.time())
        own = volume_store(store, place.name)
        with open_offline(own, place.name) as found:
            kept = found.snapshot(snapshot)
            parent = found.volume
        identity = uuid4()
        made = VolumeFile(
            name=name,
            identity=identity,
            lineage=uuid4(),
            geometry=replace(parent.geometry, size_bytes=kept.size_bytes),
            compression=parent.compression,
            created=time.time(),
            creator=f"bucketworks {program_version()}",
            features=frozenset({CLONE}),
            origin=volumes.origin_of(store, place.name, parent, kept),
        )
        # It reads its ancestors' frames: the same data key, in a slot of its own.
        data_key = keys.unlock(own, parent, secret)
        made, slot, _ = keys.sealed(made, secret, random=os.urandom, data_key=data_key)

        def look_again() -> Snapshot | None:
            with open_offline(own, place.name) as now:
                return next((item for item in now.snapshots if item.name == snapshot), None)

        origin = {"volume": place.name, "snapshot": snapshot, "commit": kept.seq}
        with recorded(config, place.store_url, name, "clone", identity=str(identity), origin=origin):
            volumes.clone_volume(
                store,
                place.name,
                parent,
                kept,
                made,
                look_again=look_again,
                around=lambda child: keys.slot_in_place(child, slot),
            )
    if as_json:
        write_json(
            {
                "url": f"{place.store_url}/{name}",
                "name": name,
                "uuid": str(identity),
                "size_bytes": kept.size_bytes,
                "origin": origin,
            }
        )
        return
    write_line(f"volume {name} of {shown_size(kept.size_bytes)} is a clone of {place.name}, snapshot {snapshot}")
    write_note(f"next: s3block serve {name if name in config.volumes else f'{place.store_url}/{name}'}")


def _name_of_clone(config: Config, place: VolumePlace, new: str) -> str:
    """The clone's name. BadParameter: not a name, or a place in another store."""
    if is_url(new):
        there = find(config, new)
        store_url, name = there.store_url, there.name
    else:
        try:
            name = check_name(new)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
        store_url = find(config, name).store_url if name in config.volumes else place.store_url
    if store_url != place.store_url:
        usage(f"a clone lies beside its origin, in {place.store_url}, not in {store_url}; copy with export and import")
    return name


# --- rollback --------------------------------------------------------------------------------------------------------


def rollback(
    volume: VolumeArgument,
    snapshot: SnapshotArgument,
    yes: YesOption = False,
    keep: Annotated[
        bool, typer.Option("--keep/--no-keep", help="Keep the state before as a snapshot before-rollback-TIME.")
    ] = True,
    key: KeyOption = None,
    state_dir: StateDirOption = None,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a volume what it was at a snapshot. It must not be served meanwhile. Costs one commit."""
    config = load_config(config_path)
    place = find(config, volume, key=key)
    with opened(config, place.store_url) as store, open_offline(volume_store(store, place.name), place.name) as found:
        to = found.snapshot(snapshot)
        taken = {item.name for item in found.snapshots}
    moment_of_it = datetime.now(UTC).strftime("before-rollback-%Y-%m-%d-%H%M%S")
    names = chain([moment_of_it], (f"{moment_of_it}-{number}" for number in count(2)))
    keep_as = next(name for name in names if name not in taken)
    lost = f"the state of now is kept as snapshot {keep_as}" if keep else "all that was written since is given up"
    consent(
        f"make volume {place.name} what it was at {moment(to.time_us / 1e6)} (commit {to.seq})? {lost}",
        yes=yes,
        otherwise="nothing was changed",
    )
    with reach(place, config, state_dir=state_of(place, state_dir)) as attached:
        if attached.served:
            raise Refused(
                f"volume {place.name} is being served on this host: its initiators would see their disk change",
                hint="stop its `s3block serve` first",
            )
        answer = attached.operate("rollback", to=snapshot, keep_as=keep_as)
        if not keep:
            attached.operate("snapshot-delete", name=answer["kept"]["name"])
    if as_json:
        write_json({"volume": place.url} | answer | {"kept_as": keep_as if keep else None})
        return
    write_line(f"volume {place.name} is what it was at snapshot {snapshot}, commit {to.seq}")
    if keep:
        write_line(f"what it was before is snapshot {keep_as}")


# --- diff ------------------------------------------------------------------------------------------------------------


def diff(
    volume: VolumeArgument,
    old: Annotated[str, typer.Argument(metavar="FROM", help="A snapshot, or now.", show_default=False)],
    new: Annotated[str, typer.Argument(metavar="[TO]", help="A snapshot, or now.")] = NOW,
    fast: Annotated[
        bool, typer.Option("--fast", help="Read no data: whole frames that may have changed, none that did left out.")
    ] = False,
    key: KeyOption = None,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the byte ranges in which two states of a volume differ, exact to 4 KiB. Reads the store alone."""
    config = load_config(config_path)
    place = find(config, volume, key=key)
    secret = None if fast else secret_of(place)
    with (
        opened(config, place.store_url) as store,
        at_state(store, place.name, old, secret, locked=fast) as before,
        at_state(store, place.name, new, secret, locked=fast) as after,
    ):
        found = _diff(before, after, fast=fast, quiet=as_json)
        answer = {
            "volume": place.url,
            "from": _standing(old, before),
            "to": _standing(new, after),
            "exact": not fast,
            "changed_bytes": sum(length for _, length in found),
            "ranges": [{"offset": offset, "length": length} for offset, length in found],
        }
    if as_json:
        write_json(answer)
        return
    if found:
        columns = [Column("offset", "OFFSET", justify="right"), Column("length", "BYTES", justify="right")]
        write_records([{"offset": offset, "length": length} for offset, length in found], columns, as_json=False)
    may = "may differ" if fast else "differ"
    write_note(f"{counted(len(found), 'range')}, {shown_size(sum(length for _, length in found))}, {may}")


def _diff(before: OfflineVolume, after: OfflineVolume, *, fast: bool, quiet: bool) -> list[Range]:
    if fast:
        return list(differences(before, after, fast=True))
    frame_bytes = before.volume.geometry.frame_bytes
    total = sum(1 for _ in candidates(before, after)) * frame_bytes
    with steps("comparing", total, unit="bytes", quiet=quiet) as advance:
        return list(differences(before, after, done=lambda frames: advance(frames * frame_bytes)))


def _standing(name: str, found: OfflineVolume) -> Mapping[str, object]:
    commit = found.state.seq if found.state is not None else 0
    return {"name": name, "commit": commit, "size_bytes": found.size_bytes}


@contextmanager
def at_state(
    store: ObjectStore, name: str, state: str, secret: Secret | None, *, locked: bool = False
) -> Iterator[OfflineVolume]:
    """The volume as it was at a snapshot, or now; `locked`: without its key, to be described only. Raises NotFound and what
    `open_offline` raises."""
    own = volume_store(store, name)

    def unlock(volume: VolumeFile) -> bytes:
        return keys.unlock(own, volume, secret)

    commit = None if state == NOW else commit_of(own, name, state)
    with open_offline(own, name, commit=commit, unlock=None if locked else unlock) as found:
        yield found

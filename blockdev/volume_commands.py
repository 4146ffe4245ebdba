"""`s3block create|list|info|delete`: volumes as wholes.

One rule: arguments in, answers out. What is done to a store is in `volumes`; what a volume holds is told by `offline`.
"""

import contextlib
import os
import shlex
import time
from collections.abc import Mapping
from typing import Annotated
from uuid import uuid4

import typer

from blockdev import keys, volumes
from blockdev.arguments import (
    CompressionOption,
    EncryptOption,
    KeyOption,
    StateDirOption,
    VolumeArgument,
    consent,
    counted,
    find,
    moment,
    opened,
    secret_for_new,
    secret_from,
    size_option,
    state_of,
    steps,
    usage,
)
from blockdev.events import recorded
from blockdev.new_volume import (
    ExtentSizeOption,
    FrameSizeOption,
    SectorSizeOption,
    UnfencedOption,
    drafted,
    note_unfenced,
    require_fence,
)
from blockdev.offline import open_offline
from blockdev.place import volume_store
from blockdev.segments.record import RecordKind
from blockdev.segments.volume_file import VolumeFile
from blockdev.volumes import Listed, LocalState
from s3core.build import parse_store_url
from s3core.console import (
    Column,
    JsonOption,
    size_column,
    write_json,
    write_line,
    write_note,
    write_record,
    write_records,
)
from s3core.endpoint_commands import ConfigOption
from s3core.exit_codes import exit_code_of
from s3core.quantities import shown_duration, shown_size
from s3core.settings import Config, load_config


def create(
    volume: VolumeArgument,
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
    """Make a volume: one small object in the store, after a test whether the store can keep two hosts apart."""
    config = load_config(config_path)
    place = find(config, volume, key=key)
    size = size if size is not None else place.settings.size_bytes
    if size is None:
        usage("say how large the volume is to be, such as --size 10G")
    made = drafted(
        place,
        size,
        sector_bytes=sector_size,
        frame_bytes=frame_size,
        extent_bytes=extent_size,
        compression=compression,
    )
    secret = secret_for_new(place, encrypt)
    with opened(config, place.store_url) as store:
        tested = require_fence(store, place, unfenced=unfenced)
        made, slot, _ = keys.sealed(made, secret, random=os.urandom)
        with (
            recorded(config, place.store_url, place.name, "create", identity=str(made.identity), size_bytes=size),
            keys.slot_in_place(volume_store(store, place.name), slot),
        ):
            volumes.create_volume(store, made)
    if as_json:
        write_json({"url": place.url, "fenced": tested.ok} | _described(made))
    else:
        encrypted = "encrypted " if made.encryption is not None else ""
        write_line(f"{encrypted}volume {place.name} of {shown_size(size)} created at {place.store_url}")
    note_unfenced(tested)
    given = "" if not key else f" --key {shlex.quote(key)}"
    write_note(f"next: s3block serve {volume}{given}{'' if tested.ok else ' --unfenced'}")
    if made.encryption is not None:
        write_note("keep a copy of its key, or add a second one with `s3block key add`: without a key its data is lost")


def _described(volume: VolumeFile) -> dict[str, object]:
    geometry = volume.geometry
    return {
        "name": volume.name,
        "uuid": str(volume.identity),
        "size_bytes": geometry.size_bytes,
        "sector_bytes": geometry.sector_bytes,
        "frame_bytes": geometry.frame_bytes,
        "extent_bytes": geometry.extent_bytes,
        "compression": volume.compression,
        "encryption": volume.encryption.cipher if volume.encryption is not None else None,
        "created": volume.created,
        "creator": volume.creator,
        "features": sorted(volume.features),
    }


# --- list, info ------------------------------------------------------------------------------------------------------


def list_volumes(
    store_url: Annotated[
        str | None,
        typer.Argument(
            metavar="[STORE-URL]",
            help="A place in a store, such as file:///srv/store; without it, the volumes of the configuration file.",
            show_default=False,
        ),
    ] = None,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the volumes in a store, or all that are configured."""
    config = load_config(config_path)
    found = _configured(config) if store_url is None else _in_store(config, store_url)
    if not found and not as_json:
        where = store_url or str(config.path)
        advice = "s3block list STORE-URL looks into a store" if store_url is None else "s3block create makes one"
        write_note(f"no volumes in {where}; {advice}")
        return
    columns = [
        Column("name", "NAME"),
        size_column("size_bytes", "SIZE"),
        Column("sector_bytes", "SECTOR", justify="right"),
        Column("created", "CREATED", moment),
        Column("uuid", "UUID"),
        Column("state", "STATE"),
        Column("store_url", "STORE"),
    ]
    write_records([_row(item) for item in found], columns, as_json=as_json)
    for item in found:
        if item.error is not None:
            write_note(f"{item.name}: {item.error}")
    raise typer.Exit(next((int(exit_code_of(item.error)) for item in found if item.error is not None), 0))


def _row(item: Listed) -> Mapping[str, object]:
    described = _described(item.volume) if item.volume is not None else {}
    return described | {"name": item.name, "store_url": item.store_url, "state": item.state}


def _in_store(config: Config, store_url: str) -> list[Listed]:
    try:
        parse_store_url(store_url)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    with opened(config, store_url) as store:
        return volumes.list_volumes(store)


def _configured(config: Config) -> list[Listed]:
    found = []
    for name in sorted(config.volumes):
        place = find(config, name)
        try:
            with opened(config, place.store_url) as store:
                found.append(volumes.look(store, place.name))
        except Exception as error:  # noqa: BLE001 - one endpoint that is misconfigured must not hide the other volumes
            found.append(Listed(name, place.store_url, "unreachable", error=error))
    return found


def info(
    volume: VolumeArgument,
    key: Annotated[
        str | None, typer.Option("--key", metavar="SOURCE", help="Try this key: say which slot it opens.")
    ] = None,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell what a volume is and where it stands. Reads its log and map, none of its data, and needs no key."""

    config = load_config(config_path)
    place = find(config, volume)
    secret = secret_from(key or "", place.name)
    with opened(config, place.store_url) as store, contextlib.ExitStack() as held:
        own = volume_store(store, place.name)
        opens = ""

        def unlock(made: VolumeFile) -> bytes:
            nonlocal opens
            if secret is None or made.encryption is None:
                return keys.unlock(own, made, secret)
            data_key, slot = keys.open_slot(own, made, secret)
            opens = slot.id
            return data_key

        found = held.enter_context(open_offline(own, place.name, unlock=unlock if secret is not None else None))
        state = found.state
        answer: dict[str, object] = {"url": place.url} | _described(found.volume)
        answer |= {
            "size_bytes": found.size_bytes,
            "size_at_creation_bytes": found.volume.geometry.size_bytes,
            "state": _standing(state.kind if state is not None else None),
            "commit": state.seq if state is not None else 0,
            "commit_time": state.time_us / 1e6 if state is not None else None,
            "commit_digest": state.digest.hex() if state is not None else None,
            "epoch": state.epoch if state is not None else 0,
            "lineage": state.lineage if state is not None else str(found.volume.lineage),
            "first_lineage": str(found.volume.lineage),
            "mapped_extents": found.mapped_extents,
            "mapped_bytes": found.mapped_extents * found.volume.geometry.extent_bytes,
            "log_records": state.seq if state is not None else 0,
            "host": found.fence.get("host"),
            "lease_s": found.fence.get("lease_s"),
            "snapshots": [snapshot._asdict() for snapshot in found.snapshots],
            "origin": [{"volume": origin.name, "commit": origin.seq} for origin in found.volume.origin],
            "root": found.root_key,
            "key_slots": [item.id for item in keys.slots(own, found.volume) if item.slot is not None],
            "key_opens": opens or None,
        }
    sizes = "sector_bytes", "frame_bytes", "extent_bytes"
    lines = [
        Column("name", "name"),
        Column("url", "url"),
        size_column("size_bytes", "size"),
        Column("uuid", "uuid"),
        Column("created", "created", moment),
        Column("creator", "by"),
        *(size_column(key, key.removesuffix("_bytes")) for key in sizes),
        Column("compression", "compression"),
        Column("encryption", "encryption", lambda cipher: str(cipher or "none")),
        Column("state", "state"),
        Column("commit", "newest commit"),
        Column("commit_time", "  of", lambda seconds: moment(seconds) or "none yet"),
        Column("epoch", "epoch"),
        Column("host", "last writer", lambda host: str(host or "none yet")),
        Column("lease_s", "  its lease", lambda seconds: shown_duration(seconds) if seconds else "none"),
        Column("lineage", "lineage"),
        Column("snapshots", "snapshots", lambda items: ", ".join(item["name"] for item in items) or "none"),
        Column("mapped_extents", "mapped extents"),
        size_column("mapped_bytes", "  at most"),
        Column("log_records", "log records"),
        Column("root", "newest root", lambda key: str(key or "none yet")),
    ]
    if found.volume.origin:
        lines.append(Column("origin", "clone of", lambda chain: f"{chain[-1]['volume']}, commit {chain[-1]['commit']}"))
    if found.volume.encryption is not None:
        lines.append(Column("key_slots", "key slots", lambda slots: ", ".join(slots) or "none: nobody can open it"))
    if opens:
        lines.append(Column("key_opens", "this key opens"))
    write_record(answer, lines, as_json=as_json)
    if not as_json and answer["lineage"] != answer["first_lineage"]:
        write_note("the lineage has changed: an attachment accepted the loss of acknowledged writes")


def _standing(kind: int | None) -> str:
    if kind is None:
        return "new, never attached"
    if kind == RecordKind.DETACH:
        return "detached: the bucket holds everything"
    return "attached, or its host stopped without detaching"


# --- delete ----------------------------------------------------------------------------------------------------------


def delete(
    volume: VolumeArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also when it is attached, was not detached in order, or is damaged.")
    ] = False,
    local: Annotated[
        bool, typer.Option("--local", help="Remove its journal, map and cache on this host as well.")
    ] = False,
    state_dir: StateDirOption = None,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove a volume and all of its data from the store. A deletion that was stopped is finished by the same command."""
    config = load_config(config_path)
    place = find(config, volume)
    kept = state_of(place, state_dir)
    with opened(config, place.store_url) as store, contextlib.ExitStack() as held:
        doomed = volumes.prepare_deletion(store, place.name, force=force, now=time.time())
        state = held.enter_context(LocalState(kept, doomed.volume)) if local else None
        what = f"the remains of volume {place.name}"
        if doomed.volume is not None:
            what = f"volume {place.name} of {shown_size(doomed.volume.geometry.size_bytes)}"
        consent(
            f"delete {what} at {place.store_url} and all of its data?",
            yes=yes,
            otherwise="nothing was deleted",
        )
        removed = 0

        def count(number: int) -> None:
            nonlocal removed
            removed += number
            advance(number)

        identity = str(doomed.volume.identity) if doomed.volume is not None else ""
        with recorded(config, place.store_url, place.name, "remove", identity=identity, force=force):
            with steps(f"deleting {place.name}", None, quiet=as_json) as advance:
                failed = volumes.delete_volume(
                    store, doomed, nonce=uuid4().bytes, time_us=time.time_ns() // 1000, removed=count
                )
            if failed:
                key, error = next(iter(failed.items()))
                write_note(
                    f"{counted(len(failed), 'object')} could not be removed, the first is {key}; the same command goes on"
                )
                raise error
        cleared = state.remove() if state is not None else False
    if as_json:
        write_json({"deleted": place.name, "store_url": place.store_url, "objects": removed, "local": cleared})
        return
    write_line(f"{what} deleted from {place.store_url}: {counted(removed, 'object')}")
    if cleared:
        write_line(f"{kept} removed")
    elif kept.exists():
        write_note(f"its journal, map and cache on this host are still in {kept}")

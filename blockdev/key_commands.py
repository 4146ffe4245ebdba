"""`s3block key list|add|remove|rotate`: who may open an encrypted volume.

One rule: only what locks the data key changes, never the data key; a host that serves the volume meanwhile does not notice.
"""

import os
import time
from typing import Annotated

import typer

from blockdev import keys
from blockdev.arguments import KeyOption, VolumeArgument, find, moment, opened, secret_from, secret_of, usage
from blockdev.errors import Refused
from blockdev.events import recorded
from blockdev.offline import read_volume_file
from blockdev.place import VolumePlace, volume_store
from blockdev.segments import key_slot
from blockdev.segments.key_slot import KeySlot, Secret
from blockdev.segments.volume_file import VolumeFile
from s3core.console import (
    Column,
    JsonOption,
    new_app,
    program_version,
    write_json,
    write_line,
    write_note,
    write_records,
)
from s3core.credentials import KEY_SOURCES
from s3core.endpoint_commands import ConfigOption
from s3core.settings import load_config
from s3core.store import ObjectStore

app = new_app("key", "The keys of encrypted volumes.")

NewKeyOption = Annotated[
    str, typer.Option("--new-key", metavar="SOURCE", help=f"The key to add: {KEY_SOURCES}.", show_default=False)
]


@app.command("list")
def list_slots(volume: VolumeArgument, config_path: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show the key slots of a volume, the oldest first: each is opened by one passphrase or key file."""
    config = load_config(config_path)
    place = find(config, volume)
    with opened(config, place.store_url) as store:
        own = volume_store(store, place.name)
        found = keys.slots(own, _encrypted(own, place))
    found.sort(key=lambda item: item.slot.created if item.slot is not None else 0.0)
    rows = [_row(item.slot) if item.slot is not None else {"id": item.id, "error": item.error} for item in found]
    columns = [
        Column("id", "ID"),
        Column("opened_by", "OPENED BY"),
        Column("created", "CREATED", moment),
        Column("creator", "BY"),
    ]
    write_records(rows, columns, as_json=as_json)
    if not as_json:
        for item in found:
            if item.error:
                write_note(item.error)
        if not any(item.slot is not None for item in found):
            write_note("there is no slot that can be read: nobody can open the volume")


@app.command()
def add(
    volume: VolumeArgument,
    new_key: NewKeyOption,
    key: KeyOption = None,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add a slot, so that another passphrase or key file opens the volume as well. Needs one that does already."""
    config = load_config(config_path)
    place = find(config, volume, key=key)
    secret, new = _secrets(place, new_key)
    with opened(config, place.store_url) as store:
        own = volume_store(store, place.name)
        with recorded(config, place.store_url, place.name, "key-add"):
            made, _ = _add(own, _encrypted(own, place), secret, new)
    if as_json:
        write_json(_row(made))
    else:
        write_line(f"slot {made.id} added to volume {place.name}: opened by the new {keys.KINDS[made.kind]}")


@app.command()
def remove(
    volume: VolumeArgument,
    slot: Annotated[str, typer.Argument(metavar="ID", help="The slot, as `key list` shows it.", show_default=False)],
    force: Annotated[
        bool, typer.Option("--force", help="Also the last one: nobody can ever read the volume again.")
    ] = False,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove a slot: its passphrase or key file opens the volume no more. Who kept a copy of the slot can still use it."""
    config = load_config(config_path)
    place = find(config, volume)
    with opened(config, place.store_url) as store:
        own = volume_store(store, place.name)
        described = _encrypted(own, place)
        with recorded(config, place.store_url, place.name, "key-remove", slot=slot, force=force):
            keys.remove_slot(own, described, slot, force=force)
    if as_json:
        write_json({"removed": slot})
    else:
        write_line(f"slot {slot} of volume {place.name} removed")


@app.command()
def rotate(
    volume: VolumeArgument,
    new_key: NewKeyOption,
    key: KeyOption = None,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Replace the slot that --key opens by one for --new-key. The new one is tried before the old one goes; when it is
    stopped in between, both are there and both work."""
    config = load_config(config_path)
    place = find(config, volume, key=key)
    secret, new = _secrets(place, new_key)
    with opened(config, place.store_url) as store:
        own = volume_store(store, place.name)
        described = _encrypted(own, place)
        with recorded(config, place.store_url, place.name, "key-rotate"):
            made, old = _add(own, described, secret, new)
            keys.remove_slot(own, described, old.id, force=False)
    if as_json:
        write_json(_row(made) | {"removed": old.id})
        return
    write_line(f"slot {old.id} of volume {place.name} replaced by {made.id}: opened by the new {keys.KINDS[made.kind]}")
    write_note(f"from now on: --key {new_key}, or key in [volume.{place.name}]")


def _secrets(place: VolumePlace, new_key: str) -> tuple[Secret, Secret]:
    if not place.settings.key:
        usage(f"--key SOURCE says what opens the volume now; SOURCE is {KEY_SOURCES}")
    if not new_key:
        usage(f"--new-key SOURCE says what is to open it; SOURCE is {KEY_SOURCES}")
    secret = secret_of(place)
    if new_key == place.settings.key == "passphrase":
        write_note("now the new one")
    new = secret_from(new_key, place.name, new=True, flag="--new-key")
    assert secret is not None
    assert new is not None  # only an empty source is none
    return secret, new


def _encrypted(own: ObjectStore, place: VolumePlace) -> VolumeFile:
    volume = read_volume_file(own, place.name)
    if volume.encryption is None:
        raise Refused(
            f"volume {place.name} is not encrypted: it has no keys",
            hint="encryption is chosen when a volume is made; export it, and import it anew with --encrypt",
        )
    return volume


def _add(own: ObjectStore, volume: VolumeFile, secret: Secret, new: Secret) -> tuple[KeySlot, KeySlot]:
    """The new slot, and the one that `secret` opened."""
    data_key, old = keys.open_slot(own, volume, secret)
    if secret == new:
        usage("--new-key is the key that opens the volume now")
    made = key_slot.wrap(
        data_key,
        new,
        volume=volume.identity,
        random=os.urandom,
        created=time.time(),
        creator=f"bucketworks {program_version()}",
    )
    keys.add_slot(own, made, new, data_key)
    return made, old


def _row(slot: KeySlot) -> dict[str, object]:
    return {
        "id": slot.id,
        "opened_by": keys.KINDS[slot.kind],
        "kdf": slot.derivation.name,
        "created": slot.created,
        "creator": slot.creator,
    }

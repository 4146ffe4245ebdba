"""The keys of encrypted volumes: the slots in the bucket, and opening a volume with them.

One rule: a data key is never stored but wrapped, and a wrong secret is refused before anything else is read. Who holds a
secret, holds the volume; nobody can bring back a volume whose last slot is gone, or whose secrets are all forgotten.

A slot is one object, put with If-None-Match and never changed; replacing a secret is a new slot, read back and opened, and
then the end of the old one. A crash in between leaves both, and both work.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

from blockdev.errors import AttachRefused, CorruptFormat, Fenced, KeyRefused, Refused
from blockdev.segments import key_slot, paths
from blockdev.segments.cipher import KEY_BYTES, Random
from blockdev.segments.key_slot import KeySlot, Secret
from blockdev.segments.volume_file import ENCRYPTION, VolumeFile, encryption_of, is_data_key
from s3core.errors import NotFound, OutcomeUnknown, PreconditionFailed
from s3core.store import ObjectStore

KINDS = {"passphrase": "passphrase", "key": "key file"}


# --- making a volume -------------------------------------------------------------------------------------------------


def sealed(
    volume: VolumeFile, secret: Secret | None, *, random: Random, data_key: bytes = b""
) -> tuple[VolumeFile, KeySlot | None, bytes]:
    """A volume that is about to be made, as an encrypted one, with its first slot and its data key: a new one, or for a
    clone its ancestor's `data_key`. Without a secret it stays as it is. Nothing is stored: see `slot_in_place`."""
    if secret is None:
        return volume, None, b""
    data_key = data_key or random(KEY_BYTES)
    made = replace(
        volume,
        features=volume.features | {ENCRYPTION},
        encryption=encryption_of(data_key, volume.identity),
    )
    slot = key_slot.wrap(
        data_key, secret, volume=made.identity, random=random, created=made.created, creator=made.creator
    )
    return made, slot, data_key


@contextmanager
def slot_in_place(own: ObjectStore, slot: KeySlot | None) -> Iterator[None]:
    """The volume is made inside: its slot goes first, so that there is never a volume without one. It is taken away again
    when somebody else was faster. A crash leaves remains of no volume, which `s3block delete` removes."""
    if slot is None:
        yield
        return
    _put(own, slot)
    try:
        yield
    except (Refused, AttachRefused, Fenced):
        own.delete(paths.key_slot(slot.id))
        raise
    # Somebody who deleted remains just before may have taken it for one.
    _put(own, slot)


# --- slots of a volume -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Found:
    """An object among the slots. `slot` is None for what is none of this volume's; `error` says why."""

    id: str
    slot: KeySlot | None
    error: str = ""


def slots(own: ObjectStore, volume: VolumeFile) -> list[Found]:
    """What lies among the volume's slots, by name. Raises store errors."""
    found = []
    for info in own.list(paths.key_prefix()):
        name = info.key.removeprefix(paths.key_prefix())
        try:
            slot = key_slot.decode(own.get(info.key).data, what=info.key)
        except NotFound:
            continue  # removed since the listing
        except CorruptFormat as error:
            found.append(Found(name, None, str(error)))
            continue
        if slot.volume != volume.identity or slot.id != name:
            found.append(Found(name, None, f"{info.key}: is slot {slot.id} of volume {slot.volume}"))
        else:
            found.append(Found(name, slot))
    return found


def unlock(own: ObjectStore, volume: VolumeFile, secret: Secret | None) -> bytes:
    """The volume's data key; empty for a volume that is not encrypted. Raises KeyRefused: no secret, a wrong one, or one for
    a volume that is not encrypted (its owner believes it is, and what says otherwise is the bucket)."""
    if volume.encryption is None:
        if secret is not None:
            raise KeyRefused(
                f"volume {volume.name} is not encrypted, and a key was given for it",
                hint="leave the key out if that is as it should be; if it was made encrypted, its vol.json was replaced",
            )
        return b""
    if secret is None:
        raise KeyRefused(
            f"volume {volume.name} is encrypted, and no key was given",
            hint=f"say where it is with --key, or with `key` in [volume.{volume.name}] of the configuration",
        )
    return open_slot(own, volume, secret)[0]


def open_slot(own: ObjectStore, volume: VolumeFile, secret: Secret) -> tuple[bytes, KeySlot]:
    """The data key of an encrypted volume, and the slot that gave it. Raises KeyRefused."""
    there = slots(own, volume)
    for item in there:
        data_key = key_slot.unwrap(item.slot, secret) if item.slot is not None else None
        if data_key is None:
            continue
        if not is_data_key(volume, data_key):
            raise KeyRefused(
                f"slot {item.id} of volume {volume.name} opens, and holds a key that is not the volume's",
                hint="the slot or vol.json was replaced; restore both from a copy",
            )
        assert item.slot is not None
        return data_key, item.slot
    usable = [item.slot for item in there if item.slot is not None]
    broken = "; ".join(item.error for item in there if item.error)
    if not usable:
        raise KeyRefused(
            f"volume {volume.name} has no key slot{f' that can be read ({broken})' if broken else ''}",
            hint="restore an object under key/ from a copy: without one nobody can read the volume",
        )
    kind = KINDS[secret.kind]
    if not any(slot.kind == secret.kind for slot in usable):
        others = ", ".join(sorted({KINDS[slot.kind] for slot in usable}))
        raise KeyRefused(f"no slot of volume {volume.name} is opened by a {kind}", hint=f"its slots are for: {others}")
    raise KeyRefused(
        f"this {kind} opens no slot of volume {volume.name}{f' ({broken})' if broken else ''}",
        hint="it is another volume's, or its slot was removed; `s3block key list` shows the slots",
    )


def add_slot(own: ObjectStore, slot: KeySlot, secret: Secret, data_key: bytes) -> None:
    """Store the slot, read it back and open it. On return it is durable and known to work; on CorruptFormat and store errors
    nothing that was there has changed."""
    there = _put(own, slot)
    if key_slot.unwrap(there, secret) != data_key:
        raise CorruptFormat("what was put does not open", what=paths.key_slot(slot.id))


def _put(own: ObjectStore, slot: KeySlot) -> KeySlot:
    """Store the slot; what the store gives back, which is the same. CorruptFormat, store errors."""
    key = paths.key_slot(slot.id)
    blob = key_slot.encode(slot)
    with suppress(PreconditionFailed, OutcomeUnknown):  # what is there now tells
        own.put_if_absent(key, blob)
    there = own.get(key).data
    if there != blob:
        raise CorruptFormat("the store gives back something else than was put", what=key)
    return key_slot.decode(there, what=key)


def remove_slot(own: ObjectStore, volume: VolumeFile, slot: str, *, force: bool) -> None:
    """Remove a slot, or what is none. Raises NotFound, and Refused for the last one that may open the volume, unless
    `force`. Of two that remove two slots at once, the later one to look puts its own back."""
    there = {item.id: item for item in slots(own, volume)}
    if slot not in there:
        raise NotFound(
            f"volume {volume.name} has no key slot {slot}",
            key=paths.key_slot(slot),
            hint="`s3block key list` shows them",
        )
    usable = {name for name, item in there.items() if item.slot is not None}
    last = f"slot {slot} is the last one of volume {volume.name}: without it nobody can ever read the volume"
    if usable == {slot} and not force:
        raise Refused(last, hint="add another one before; or destroy the volume's content for good with --force")
    blob = own.get(paths.key_slot(slot)).data
    own.delete(paths.key_slot(slot))
    if slot in usable and not force and not any(item.slot is not None for item in slots(own, volume)):
        own.put_if_absent(paths.key_slot(slot), blob)
        raise Refused(f"{last} (somebody removed the others at the same moment)", hint="look with `s3block key list`")

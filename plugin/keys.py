"""The data key of a storage that seals its objects on the node (bw-encryption): wrapped, in the bucket itself.

    PREFIX/.bucketworks/keys/SLOT.json      a data key, wrapped with the passphrase (docs/formats/key.md)

One rule: bucket and passphrase are enough to open everything, and a data key lies in the bucket, read back, before anything is
sealed with it. Slots are never removed here: a storage may have several, since two nodes that begin at once make two; each
node seals with the least and opens with all.

A crash after a slot was put leaves a data key that seals nothing yet; the next node takes it for its own.
"""

from collections.abc import Callable
from contextlib import suppress
from uuid import UUID

from cowsync.sealing.format import KEY_BYTES, DataKey
from cowsync.sealing.keys import Keyring
from plugin.configuration import Storage
from plugin.errors import Refused
from plugin.layout import KEYS_DIRECTORY
from s3core import key_slot
from s3core.bucket import Bucket
from s3core.clock import Clock
from s3core.errors import Corrupt, NotFound, OutcomeUnknown
from s3core.key_slot import DamagedSlot, KeySlot, Secret

CREATOR = "pve-s3"


def open_keyring(
    bucket: Bucket, storage: Storage, *, clock: Clock, random: Callable[[int], bytes], begin: bool = True
) -> Keyring | None:
    """What seals and opens the storage's objects; None where it does not encrypt. Where no data key is there yet one is made
    (`begin`), and lies in the bucket on return. Takes some tenths of a second (Argon2id). Refused: the passphrase opens
    none of the slots, or the prefix holds objects and no slot; StoreErrors."""
    if not storage.encryption:
        return None
    secret = Secret("passphrase", storage.encryption_key.encode())
    slots = read_slots(bucket, storage.prefix)
    known = _opened(slots, secret)
    if not known:
        if slots:
            raise Refused(
                f"storage {storage.id}: bw-encryption-key opens none of the {len(slots)} key slots in {bucket.url}",
                hint="set the passphrase that the storage was begun with",
            )
        if not begin:
            raise Refused(f"storage {storage.id}: {bucket.url} has no key slot, so nothing is sealed there yet")
        _check_empty(bucket, storage)
        _begin(bucket, storage, secret, clock, random)
        known = _opened(read_slots(bucket, storage.prefix), secret)
    return Keyring(known[min(known)], known, random)


def read_slots(bucket: Bucket, prefix: str) -> list[KeySlot]:
    """Those that can be read. StoreErrors."""
    stem, slots = f"{prefix}{KEYS_DIRECTORY}/", []
    for key in bucket.list_page(prefix=stem).keys:
        with suppress(NotFound, DamagedSlot):  # a damaged one opens nothing; others may
            slots.append(key_slot.decode(bucket.get(key.decode())))
    return slots


def _opened(slots: list[KeySlot], secret: Secret) -> dict[UUID, DataKey]:
    known: dict[UUID, DataKey] = {}
    for slot in slots:
        material = key_slot.unwrap(slot, secret)
        if material is not None:
            known[slot.volume] = DataKey(slot.volume, material)
    return known


def _check_empty(bucket: Bucket, storage: Storage) -> None:
    page = bucket.list_page(prefix=storage.prefix, max_keys=100)
    held = [key.decode() for key in page.keys if not key.startswith(f"{storage.prefix}.bucketworks/".encode())]
    if held:
        raise Refused(
            f"storage {storage.id}: {bucket.url} holds objects that are not sealed, such as {held[0]}",
            hint="a storage with bw-encryption begins empty: choose another bw-prefix",
        )


def _begin(bucket: Bucket, storage: Storage, secret: Secret, clock: Clock, random: Callable[[int], bytes]) -> None:
    key = DataKey(UUID(bytes=random(16), version=4), random(KEY_BYTES))
    slot = key_slot.wrap(key.material, secret, volume=key.id, random=random, created=clock.time(), creator=CREATOR)
    blob, place = key_slot.encode(slot), f"{storage.prefix}{KEYS_DIRECTORY}/{slot.id}.json"
    with suppress(OutcomeUnknown):  # what is there now tells
        bucket.put(place, blob)
    if bucket.get(place) != blob:
        raise Corrupt("the store gives back another key slot than was put", key=place)

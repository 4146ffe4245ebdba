"""The data key of an encrypted mirror: where it lies wrapped, how it is opened, and how it begins.

    state     KEY                   names the data key that objects are sealed with
              keys/SLOT.json        the data key, wrapped (docs/formats/key.md)
    mirror    .cowsync/keys/SLOT.json   the same slots: the mirror and a secret are enough to open everything

One rule: a data key is durable, wrapped, in both places before anything is sealed with it, and a mirror is encrypted from
its first object to its last or not at all. Nobody can open a mirror whose slots or secrets are all gone.

| a crash after | leaves | repaired by |
| --- | --- | --- |
| a slot in the state | a slot nobody names | nothing; it opens nothing |
| the slot on the mirror | a data key that seals nothing yet | the next apply takes it for its own |
| KEY | an encrypted mirror | |
"""

import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal
from uuid import UUID

from cowsync.errors import Refused, StateDamaged
from cowsync.sealing.format import (
    FRAME_SHIFT,
    KEY_BYTES,
    DataKey,
    Facts,
    Header,
    NotOpened,
    Opener,
    Random,
    Sealer,
    StreamSealer,
)
from s3core import key_slot
from s3core.bucket import Bucket
from s3core.errors import NotFound, OutcomeUnknown, PreconditionFailed
from s3core.key_slot import DamagedSlot, KeySlot, Secret
from s3core.store import ObjectStore

KEY = "KEY"
STATE_SLOTS = "keys/"
OWN = ".cowsync/"
MIRROR_SLOTS = f"{OWN}keys/"
FORMAT = 1
KINDS = {"passphrase": "passphrase", "key": "key file"}


@dataclass(frozen=True, slots=True)
class Slot:
    """A slot that can be read, and where it lies: "state", "mirror"."""

    id: str
    kind: Literal["passphrase", "key"]
    created: float
    places: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Keyring:
    """`current` seals; any of `known` opens. Safe to use from several threads."""

    current: DataKey
    known: dict[UUID, DataKey] = field(repr=False)
    random: Random = field(repr=False)
    frame_shift: int = FRAME_SHIFT

    def sealer(self, size: int, facts: Facts) -> Sealer:
        """For one object, once; what is sealed again has another salt."""
        return Sealer(self.current, size, facts, self.random, self.frame_shift)

    def stream_sealer(self, facts: Facts) -> StreamSealer:
        """As `sealer`, for what has no size yet."""
        return StreamSealer(self.current, facts, self.random, self.frame_shift)

    def opener(self, header: Header) -> Opener:
        """NotOpened where the key is not here."""
        key = self.known.get(header.key_id)
        if key is None:
            raise NotOpened(f"it was sealed with data key {header.key_id}, which no slot here gives")
        return Opener(key, header)


class Vault:
    """The keys of one mirror. `secret` gives what the configuration names, None where it names none: then the mirror is
    not to be encrypted. It is asked when it is needed (`True`: it is about to be given to a new slot). `prefix` is the
    mirror's. For one thread at a time."""

    def __init__(
        self,
        name: str,
        store: ObjectStore,
        bucket: Bucket,
        prefix: str,
        secret: Callable[[bool], Secret] | None,
        *,
        random: Random,
        now: Callable[[], float],
        creator: str,
    ) -> None:
        self._name = name
        self._store = store
        self._bucket = bucket
        self._prefix = prefix
        self._secret = secret
        self._random = random
        self._now = now
        self._creator = creator
        self._keyring: Keyring | None = None

    @property
    def encrypting(self) -> bool:
        """The configuration wants the mirror encrypted."""
        return self._secret is not None

    def check(self, *, begun: bool) -> None:
        """Refused where configuration and state do not agree. `begun`: something is known to be on the mirror. Asks the
        state alone."""
        named = self._named()
        # Slots in the state without a KEY are those of a mirror whose KEY was lost.
        if self.encrypting and begun and named is None and not self._in_state():
            raise Refused(
                f"mirror {self._name} was begun without encryption, and a key is configured for it; nothing was moved",
                hint="an encrypted mirror begins empty: make a new one, with a target and a state_dir of its own",
            )
        if not self.encrypting and named is not None:
            raise Refused(
                f"mirror {self._name} is encrypted, and no key is configured for it; nothing was moved",
                hint=f"say where it is with `key` in [mirror.{self._name}]; for an unencrypted mirror make a new one",
            )

    def keyring(self, *, begun: bool) -> Keyring | None:
        """What seals and opens the mirror's objects; None where it is not encrypted. The first time, and only where nothing
        was put on the mirror yet (`begun`), a data key is made. On return both places have the slots. Raises Refused
        (wrong key; configuration and mirror do not agree), CredentialsError, StoreErrors; then nothing was sealed."""
        self.check(begun=begun)
        if self._secret is None:
            if not begun and self._on_mirror():
                raise Refused(
                    f"{self._bucket.url}/{self._prefix} is an encrypted mirror, and mirror {self._name} has no key",
                    hint=f"say where it is with `key` in [mirror.{self._name}], or choose another target",
                )
            return None
        if self._keyring is None:
            named = self._named()
            self._keyring = (
                self._begin(self._secret, begun) if named is None else self._unlocked(named, self._secret(False))
            )
        return self._keyring

    def opening(self, *, begun: bool) -> Keyring | None:
        """As `keyring`, for reading: nothing is made and nothing is written. None where nothing was sealed yet, too."""
        self.check(begun=begun)
        named = self._named()
        if self._secret is None or (named is None and not begun):
            return None
        if self._keyring is None:
            self._keyring = self._opened(
                named, [*self._in_state().values(), *self._on_mirror().values()], self._secret(False)
            )
        return self._keyring

    def slots(self) -> list[Slot]:
        """Those that can be read, in both places, by id."""
        places = {"state": self._in_state(), "mirror": self._on_mirror()}
        found: dict[str, Slot] = {}
        for blobs in places.values():
            for slot in _slots(blobs.values()):
                lies = tuple(where for where, there in places.items() if slot.id in there)
                found[slot.id] = Slot(slot.id, slot.kind, slot.created, lies)
        return [found[name] for name in sorted(found)]

    def add(self, secret: Secret) -> Slot:
        """Another slot, for `secret`, durable in both places on return. A crash leaves it in the state alone; the next apply
        puts it on the mirror. Refused where the configured key opens nothing, or nothing is sealed yet."""
        ring = self.opening(begun=False)
        if ring is None:
            raise Refused(
                f"mirror {self._name} has no data key yet", hint=f"its first run makes it: cowsync run {self._name}"
            )
        slot = self._made(ring.current, secret)
        return Slot(slot.id, slot.kind, slot.created, ("state", "mirror"))

    def remove(self, name: str) -> None:
        """Remove a slot from both places. NotFound where there is none; Refused for the last one that can be read. A crash
        leaves it in one place, from where an apply gives it back: remove it again."""
        blobs = [self._in_state(), self._on_mirror()]
        if not any(name in there for there in blobs):
            raise NotFound(
                f"mirror {self._name} has no key slot {name}",
                key=name,
                hint=f"cowsync key list {self._name} shows them",
            )
        slots = _slots(blob for there in blobs for blob in there.values())
        # Of each data key one stays: something may be sealed with it.
        left = {slot.volume for slot in slots if slot.id != name}
        if not left or any(slot.volume not in left for slot in slots):
            raise Refused(
                f"slot {name} is the last one of mirror {self._name}: without it nobody can ever read the mirror",
                hint=f"add another one before: cowsync key add {self._name} --new-key …",
            )
        self._take_away(name)

    def _made(self, key: DataKey, secret: Secret) -> KeySlot:
        slot = key_slot.wrap(
            key.material, secret, volume=key.id, random=self._random, created=self._now(), creator=self._creator
        )
        blob = key_slot.encode(slot)
        if key_slot.unwrap(key_slot.decode(blob), secret) != key.material:
            raise RuntimeError("a slot that was just made does not open")
        self._put_in_state(slot.id, blob)
        self._put_on_mirror(slot.id, blob)
        return slot

    def _take_away(self, name: str) -> None:
        self._bucket.delete(f"{self._prefix}{MIRROR_SLOTS}{name}.json")
        self._store.delete(f"{STATE_SLOTS}{name}.json")

    def _begin(self, secret_of: Callable[[bool], Secret], begun: bool) -> Keyring:
        left = self._on_mirror() or (self._in_state() if begun else {})
        if left:
            # The state, or its KEY, is lost or new, or a beginning was broken off.
            secret = secret_of(False)
            keys = opened_keys(_slots(left.values()), secret)
            if not keys:
                raise self._wrong(_slots(left.values()))
            return self._unlocked(self._name_key(min(keys)), secret)
        page = self._bucket.list_page(prefix=self._prefix, max_keys=1)
        if page.keys and page.keys[0].decode().startswith(self._prefix + OWN):
            # What is our own may lie there: a doctor's probe. "0" follows "/".
            page = self._bucket.list_page(prefix=self._prefix, start_after=f"{self._prefix}{OWN[:-1]}0", max_keys=1)
        if page.keys:
            raise Refused(
                f"{self._bucket.url}/{self._prefix} holds objects already, such as {page.keys[0].decode()!r}, and is not"
                " an encrypted mirror; nothing was moved",
                hint="an encrypted mirror begins empty: choose another bucket or prefix",
            )
        secret = secret_of(True)
        key = DataKey(UUID(bytes=self._random(16), version=4), self._random(KEY_BYTES))
        slot = self._made(key, secret)
        named = self._name_key(key.id)
        if named != key.id:
            # Another host was faster. Nothing was sealed with this one.
            self._take_away(slot.id)
        return self._unlocked(named, secret)

    def _unlocked(self, named: UUID, secret: Secret) -> Keyring:
        state, mirror = self._in_state(), self._on_mirror()
        ring = self._opened(named, [*state.values(), *mirror.values()], secret)
        # What one of the places has lost, the other gives back.
        for name, blob in state.items():
            if mirror.get(name) != blob:
                self._put_on_mirror(name, blob)
        for name, blob in mirror.items():
            if name not in state and _slots([blob]):
                self._put_in_state(name, blob)
        return ring

    def _opened(self, named: UUID | None, blobs: Iterable[bytes], secret: Secret) -> Keyring:
        slots = _slots(blobs)
        keys = opened_keys(slots, secret)
        named = min(keys, default=None) if named is None else named
        if named is None or named not in keys:
            raise self._wrong([slot for slot in slots if named in (None, slot.volume)])
        return Keyring(keys[named], keys, self._random)

    def _wrong(self, slots: list[KeySlot]) -> Refused:
        if not slots:
            return Refused(
                f"mirror {self._name} has no key slot that can be read, neither in its state nor on the mirror",
                hint=f"restore {MIRROR_SLOTS} of the mirror from a copy: without a slot nobody can open it",
            )
        kinds = ", ".join(sorted({KINDS[slot.kind] for slot in slots}))
        return Refused(
            f"the key that is configured for mirror {self._name} opens none of its slots (made for: {kinds});"
            " nothing was moved",
            hint=f"name the key that the mirror was begun with in [mirror.{self._name}]",
        )

    # --- the two places ---------------------------------------------------------------------------------------------------

    def _named(self) -> UUID | None:
        try:
            blob = self._store.get(KEY).data
        except NotFound:
            return None
        try:
            document = json.loads(blob)
            if document["format"] != FORMAT:
                raise StateDamaged(f"{KEY}: format {document['format']!r} is not one that this program knows")
            return UUID(document["key"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StateDamaged(
                f"{KEY} in {self._store.url} is damaged", hint="delete it: the mirror has the key's slots too"
            ) from error

    def _name_key(self, key: UUID) -> UUID:
        """Say that objects are sealed with `key`, unless another one is named already; the one that is named."""
        document = json.dumps({"format": FORMAT, "key": str(key)}, sort_keys=True).encode() + b"\n"
        with suppress(PreconditionFailed, OutcomeUnknown):  # what is there now tells
            self._store.put_if_absent(KEY, document)
        named = self._named()
        if named is None:
            raise OutcomeUnknown("the name of the data key was put, and is not there", key=KEY)
        return named

    def _in_state(self) -> dict[str, bytes]:
        found = {}
        for info in self._store.list(STATE_SLOTS):
            with suppress(NotFound):
                found[_slot_name(info.key)] = self._store.get(info.key).data
        return found

    def _on_mirror(self) -> dict[str, bytes]:
        return slots_on(self._bucket, self._prefix)

    def _put_in_state(self, name: str, blob: bytes) -> None:
        with suppress(PreconditionFailed):
            self._store.put_if_absent(f"{STATE_SLOTS}{name}.json", blob)

    def _put_on_mirror(self, name: str, blob: bytes) -> None:
        key = f"{self._prefix}{MIRROR_SLOTS}{name}.json"
        try:
            self._bucket.put(key, blob)
        except OutcomeUnknown:
            with suppress(NotFound):
                if self._bucket.get(key) == blob:
                    return
            raise
        if self._bucket.get(key) != blob:
            raise StateDamaged(f"{self._bucket.url}: {key}: the store gives back something else than was put")


def slots_on(bucket: Bucket, prefix: str) -> dict[str, bytes]:
    """What lies among the slots of the mirror that has `prefix` in `bucket`, by name."""
    found = {}
    for key in (raw.decode() for raw in bucket.list_page(prefix=prefix + MIRROR_SLOTS).keys):
        with suppress(NotFound):
            found[_slot_name(key)] = bucket.get(key)
    return found


def keyring_of(blobs: Iterable[bytes], secret: Secret, where: str) -> Keyring:
    """To open with, from slots alone; `where` they were found. Refused where `secret` opens none of them."""
    slots = _slots(blobs)
    keys = opened_keys(slots, secret)
    if keys:
        return Keyring(keys[min(keys)], keys, _no_random)
    if not slots:
        raise Refused(
            f"{where}: there is no key slot that can be read", hint=f"they lie below {MIRROR_SLOTS} of a mirror"
        )
    kinds = ", ".join(sorted({KINDS[slot.kind] for slot in slots}))
    raise Refused(f"{where}: this key opens none of the slots (made for: {kinds})", hint="name the mirror's own key")


def _no_random(count: int) -> bytes:
    raise RuntimeError("this keyring opens and does not seal")


def opened_keys(slots: Iterable[KeySlot], secret: Secret) -> dict[UUID, DataKey]:
    """The data keys that `secret` gives. CredentialsError where a passphrase cannot be tried on this host."""
    found: dict[UUID, DataKey] = {}
    for slot in slots:
        if slot.volume in found:
            continue
        material = key_slot.unwrap(slot, secret)
        if material is not None:
            found[slot.volume] = DataKey(slot.volume, material)
    return found


def _slots(blobs: Iterable[bytes]) -> list[KeySlot]:
    """Those that can be read; each once."""
    found = []
    for blob in dict.fromkeys(blobs):
        with suppress(DamagedSlot):
            found.append(key_slot.decode(blob))
    return found


def _slot_name(key: str) -> str:
    return key.rpartition("/")[2].removesuffix(".json")

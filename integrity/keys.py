"""The keys that sign a writer's checkpoints: one for each epoch, and how one introduces the next.

    key.json        the seed of this epoch and, while it changes, of the next one; mode 0600
    key.json.old    a seed that is to be erased: overwritten and removed as soon as it is found

A change of keys, and what a crash after each step leaves (whoever opens the slot next goes on from there):

    1. the next seed is in key.json              it is used when the key changes next
    2. `op=key` and a checkpoint in the log      the change goes on; until its end the old key signs up to that checkpoint
    3. that checkpoint is in the store           "
    4. `epochs/<e>` is in the store              "
    5. key.json has the new seed alone           the old one may lie in key.json.old, and is erased

One rule: a seed that is not needed any more is erased before anything is signed with the next one. Who steals a key can forge
what comes after, never what came before and was sealed. A disk that copies on write, or an SSD, may keep old blocks: there
only encryption of the disk erases.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import orjson

from integrity.errors import LedgerError, Malformed, NotEnrolled, Rejected
from integrity.tlog.checkpoint import parse_number
from integrity.tlog.note import Signer, Verifier, decode64, encode64, open_note, parse_vkey, sign_note
from integrity.wal import make_private, sync_folder, write_private
from s3core.credentials import require_private

SEED_BYTES = 32
_EPOCH_HEAD = "bucketworks/ledger-epoch/v1"
_PROOF_HEAD = "bucketworks/ledger-enrol/v1"

Randomness = Callable[[int], bytes]


class Keys(Protocol):
    """What a writer signs with."""

    @property
    def epoch(self) -> int: ...

    @property
    def since_size(self) -> int:
        """The size of the checkpoint that ended the epoch before; what is not larger cannot be signed any more."""
        ...

    @property
    def since(self) -> float:
        """When the epoch began, Unix seconds."""
        ...

    @property
    def signer(self) -> Signer: ...

    @property
    def next_signer(self) -> Signer | None: ...

    @property
    def rotates(self) -> bool: ...

    def prepare(self) -> Signer:
        """The key of the next epoch, durable on return."""
        ...

    def promote(self, size: int, now: float) -> None:
        """The next epoch begins behind the checkpoint of that size; the old seed is erased on return."""
        ...


@dataclass(frozen=True, slots=True)
class _State:
    name: str
    epoch: int
    seed: bytes
    since_size: int
    since: float
    next_seed: bytes = b""


class SlotKeys:
    """`Keys` in a file, for a slot. One process has it: the slot's lock is held."""

    rotates = True

    def __init__(self, path: Path, state: _State, random: Randomness) -> None:
        self._path = path
        self._state = state
        self._random = random
        self.signer = Signer(state.name, state.seed)

    @classmethod
    def create(cls, path: Path, name: str, *, now: float, random: Randomness = os.urandom) -> "SlotKeys":
        """A new key of epoch 0; `name` is the origin of the writer's log. Durable on return. FileExistsError where there is
        a key already."""
        if path.exists():
            raise FileExistsError(f"{path} is there already")
        make_private(path.parent)
        keys = cls(path, _State(name, 0, random(SEED_BYTES), 0, now), random)
        keys._write(keys._state)
        return keys

    @classmethod
    def load(cls, path: Path, *, random: Randomness = os.urandom) -> "SlotKeys":
        """NotEnrolled where there is none; CredentialsError where others may read it; LedgerError for another file."""
        for leftover in (_old(path), path.with_name(path.name + ".new")):
            _erase(leftover)
        return cls(path, _read(path), random)

    @property
    def epoch(self) -> int:
        return self._state.epoch

    @property
    def since_size(self) -> int:
        return self._state.since_size

    @property
    def since(self) -> float:
        return self._state.since

    @property
    def next_signer(self) -> Signer | None:
        return Signer(self._state.name, self._state.next_seed) if self._state.next_seed else None

    def prepare(self) -> Signer:
        if not self._state.next_seed:
            self._replace(replace(self._state, next_seed=self._random(SEED_BYTES)))
        return Signer(self._state.name, self._state.next_seed)

    def promote(self, size: int, now: float) -> None:
        state = self._state
        if not state.next_seed:
            raise LedgerError(f"{self._path}: there is no next key")
        self._replace(_State(state.name, state.epoch + 1, state.next_seed, size, now))
        self.signer = Signer(state.name, state.next_seed)

    def _replace(self, state: _State) -> None:
        old = _old(self._path)
        _erase(old)
        # Crash from here on: key.json.old is a second name of the file with the old seed, or its only one. `load` erases
        # it in both cases, and in the first only the name: see `_erase`.
        os.link(self._path, old)
        self._write(state)
        _erase(old)
        self._state = state

    def _write(self, state: _State) -> None:
        document = {
            "v": 1,
            "name": state.name,
            "epoch": state.epoch,
            "seed": state.seed.hex(),
            "since_size": state.since_size,
            "since": state.since,
            "next_seed": state.next_seed.hex(),
        }
        write_private(self._path, orjson.dumps(document) + b"\n")


class LedgerKey:
    """`Keys` of the ledger's own log: one for good, since all trust goes back to it."""

    rotates = False
    epoch = 0
    since_size = 0
    since = 0.0
    next_signer = None

    def __init__(self, signer: Signer) -> None:
        self.signer = signer

    @classmethod
    def create(cls, path: Path, origin: str, *, random: Randomness = os.urandom) -> "LedgerKey":
        """Durable on return. FileExistsError where there is one already."""
        if path.exists():
            raise FileExistsError(f"{path} is there already")
        make_private(path.parent)
        seed = random(SEED_BYTES)
        write_private(path, orjson.dumps({"v": 1, "name": origin, "seed": seed.hex()}) + b"\n")
        return cls(Signer(origin, seed))

    @classmethod
    def load(cls, path: Path) -> "LedgerKey":
        """NotEnrolled where it is not on this host; CredentialsError, LedgerError as for slots."""
        try:
            require_private(path)
            document = orjson.loads(path.read_bytes())
            return cls(Signer(document["name"], bytes.fromhex(document["seed"])))
        except FileNotFoundError as error:
            raise NotEnrolled(
                f"the ledger key is not on this host: {path}", hint="run this where `s3integrity init` was run"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise LedgerError(f"{path} is not a ledger key: {error}", hint="restore it from a copy") from error

    def prepare(self) -> Signer:
        raise LedgerError("the ledger key does not change")

    def promote(self, size: int, now: float) -> None:
        raise LedgerError("the ledger key does not change")


def verifier_of(path: Path) -> Verifier:
    """The public key of a slot's present epoch, without the slot's lock. As `SlotKeys.load`."""
    state = _read(path)
    return Signer(state.name, state.seed).verifier


def epoch_of(path: Path) -> int:
    """The number of a slot's present epoch. As `SlotKeys.load`."""
    return _read(path).epoch


# --- notes -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Introduction:
    """Epoch `epoch` of the log `origin` begins behind its checkpoint (`size`, `root`), with the key `vkey`."""

    origin: str
    epoch: int
    size: int
    root: bytes
    vkey: str

    def text(self) -> str:
        lines = (_EPOCH_HEAD, self.origin, str(self.epoch), str(self.size), encode64(self.root), self.vkey)
        return "".join(f"{line}\n" for line in lines)


def sign_introduction(introduction: Introduction, old: Signer, new: Signer) -> bytes:
    """The object `epochs/<e>`: signed by the key that introduces, and by the one introduced to show that somebody has it."""
    return sign_note(introduction.text(), old, new)


def open_introduction(data: bytes, origin: str, epoch: int, verifier: Verifier) -> Introduction:
    """What the key of the epoch before says of epoch `epoch`. Rejected where it did not sign it or it is of another log or
    epoch, or the new key did not sign it too; Malformed for another text."""
    opened = open_note(data, [verifier])
    try:
        head, named, number, size, root, vkey, rest = opened.text.split("\n")
        if head != _EPOCH_HEAD or rest:
            raise ValueError(f"it begins with {head[:80]!r}")
        found = Introduction(named, parse_number(number), parse_number(size), decode64(root), vkey)
        if len(found.root) != 32:
            raise ValueError("its root has not 32 bytes")
    except ValueError as error:
        raise Malformed(f"not an epoch's note: {error}") from error
    if (found.origin, found.epoch) != (origin, epoch):
        raise Rejected(f"the note is of epoch {found.epoch} of {found.origin}, not of epoch {epoch} of {origin}")
    new = parse_vkey(vkey)
    if new.name != origin:
        raise Rejected(f"the key of epoch {epoch} is called {new.name}, and the log is {origin}")
    open_note(data, [new])
    return found


def sign_possession(ledger_origin: str, writer: str, signer: Signer) -> str:
    """Text that shows to who enrols that somebody has the writer's key, for this ledger."""
    return sign_note(_possession(ledger_origin, writer, signer.vkey), signer).decode()


def check_possession(proof: str, ledger_origin: str, writer: str, vkey: str) -> None:
    """Returns where `proof` is what `sign_possession` gives. Rejected, Malformed."""
    opened = open_note(proof.encode(), [parse_vkey(vkey)])
    if opened.text != _possession(ledger_origin, writer, vkey):
        raise Rejected(f"the proof of possession is not for writer {writer} of {ledger_origin}")


def _possession(ledger_origin: str, writer: str, vkey: str) -> str:
    return f"{_PROOF_HEAD}\n{ledger_origin}\n{writer}\n{vkey}\n"


# --- files -----------------------------------------------------------------------------------------------------------


def _read(path: Path) -> _State:
    try:
        require_private(path)
        document = orjson.loads(path.read_bytes())
        if document["v"] != 1:
            raise ValueError(f"it is of version {document['v']}")
        return _State(
            str(document["name"]),
            int(document["epoch"]),
            bytes.fromhex(document["seed"]),
            int(document["since_size"]),
            float(document["since"]),
            bytes.fromhex(document["next_seed"]),
        )
    except FileNotFoundError as error:
        raise NotEnrolled(
            f"there is no key: {path}", hint="make this host a writer: s3integrity join LEDGER"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise LedgerError(
            f"{path} is not a writer's key: {error}", hint="retire this writer and join with a new slot"
        ) from error


def _old(path: Path) -> Path:
    return path.with_name(path.name + ".old")


def _erase(old: Path) -> None:
    """Overwrite and remove a seed that is not needed any more; what is a second name of the key in use is only removed."""
    current = old.with_suffix("")
    try:
        if current.exists() and current.samefile(old):
            old.unlink()
            return
        handle = os.open(old, os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        os.pwrite(handle, bytes(os.fstat(handle).st_size), 0)
        os.fsync(handle)
    finally:
        os.close(handle)
    old.unlink()
    sync_folder(old.parent)

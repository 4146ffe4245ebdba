"""What a witness keeps in its folder: its keys, the logs it knows, and the last checkpoint it cosigned of each.

    lock             whoever holds it is the witness; a second process is refused
    key.json         name and seeds, mode 0600
    logs             a line for each log: its verifier key, after its origin where that is not the key's name
    state/<hash>     the checkpoint last cosigned of the log whose origin has that SHA-256, a note as monitors get it

One rule: a cosignature leaves only after the checkpoint it is on is in `state`, synced. What a crash leaves:

    before the new note is synced beside the old, or renamed   the old state, perhaps a `.new`, removed at the next start
    after that, before the folder is synced                    after a loss of power, the old state or the new one
    after that, before the answer has arrived                  the new state

In all cases the log asks again. Where the new state is there it is told so (409), proves from there, and is answered.

A folder brought back from an older copy makes the witness forget, and a log may then show it another history than the one it
saw: never do that; let a witness that lost its folder begin again under a new name.
"""

import fcntl
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Lock

import orjson

from integrity.errors import LedgerError, Malformed, Rejected
from integrity.tlog.checkpoint import open_checkpoint, peek_checkpoint
from integrity.tlog.cosignature import KINDS, CosignerKey
from integrity.tlog.note import NoteVerifier, Verifier, check_key_name, parse_vkey
from integrity.tlog.witness import TEXT_TYPE, Answer, State, Witness, origin_hash, parse_request
from integrity.wal import make_private, write_private
from s3core.credentials import require_private

SEED_BYTES = 32


class WitnessFolder:
    """A witness with its folder. Safe to use from several threads; `close` lets the lock go.

    `add` is the whole of the service."""

    def __init__(self, path: Path, witness: Witness, states: Mapping[str, State], lock: int) -> None:
        self.path = path
        self.witness = witness
        self._states = dict(states)
        self._lock_file = lock
        self._turn = Lock()

    @classmethod
    def open(cls, path: Path) -> "WitnessFolder":
        """The witness in a folder that `create` made. LedgerError where another process has it, or what is in it cannot be
        read; CredentialsError where others may read the key; Malformed for a wrong line in `logs`."""
        keys = _read_keys(path / "key.json")
        try:
            witness = Witness(read_logs(path / "logs"), keys)
        except ValueError as error:
            raise LedgerError(f"{path / 'logs'}: {error}") from error
        lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            make_private(path / "state")
            return cls(path, witness, _read_states(path / "state", witness), lock)
        except BlockingIOError as error:
            os.close(lock)
            raise LedgerError(f"{path} is in use by another process", hint="is `witness serve` running?") from error
        except BaseException:
            os.close(lock)
            raise

    def close(self) -> None:
        os.close(self._lock_file)

    def add(self, body: bytes, unix_s: int) -> Answer:
        """The answer to an add-checkpoint request. With a status of 200, what it says is on the disk when this returns.
        OSError where the disk failed: nothing was cosigned then."""
        try:
            request = parse_request(body)
        except Malformed as error:
            return Answer(400, f"{error}\n".encode(), TEXT_TYPE, str(error))
        origin = request.checkpoint.origin
        # Check and write are one: between them nobody else may cosign.
        with self._turn:
            answer = self.witness.add(request, self._states.get(origin), unix_s)
            if answer.state is not None:
                write_private(self.path / "state" / origin_hash(origin), answer.state.note)
                self._states[origin] = answer.state
        return answer

    def latest(self, hash_: str) -> bytes | None:
        """The last cosigned checkpoint of the log whose origin has that hash, None where there is none."""
        with self._turn:
            return next((state.note for origin, state in self._states.items() if origin_hash(origin) == hash_), None)


def create(
    path: Path, name: str, kinds: Sequence[int], random: Callable[[int], bytes] = os.urandom
) -> list[CosignerKey]:
    """Makes a witness's folder with a new key of each kind. Durable on return. FileExistsError where there is a key already."""
    try:
        check_key_name(name)
    except ValueError as error:
        raise LedgerError(str(error), hint="use an address without scheme, such as witness.example.com/w1") from error
    place = path / "key.json"
    if place.exists():
        raise FileExistsError(f"{place} is there already: a witness keeps its key")
    keys = [(kind, random(SEED_BYTES)) for kind in kinds]
    found = [CosignerKey(name, kind, seed) for kind, seed in keys]
    make_private(path)
    document = {"v": 1, "name": name, "keys": [{"kind": KINDS[kind], "seed": seed.hex()} for kind, seed in keys]}
    write_private(place, orjson.dumps(document) + b"\n")
    return found


def add_log(path: Path, vkey: str, origin: str = "") -> str:
    """Let the witness in that folder know a log, from its next start on; its origin. Malformed for a wrong key."""
    verifier = parse_vkey(vkey)
    there = (path / "logs").read_text(encoding="utf-8") if (path / "logs").exists() else ""
    write_private(path / "logs", f"{there}{origin + ' ' if origin else ''}{verifier.vkey}\n".encode())
    return origin or verifier.name


def read_logs(path: Path) -> dict[str, list[NoteVerifier]]:
    """The logs in such a file, by origin. None in one that is not there; Malformed for a wrong line."""
    found: dict[str, list[NoteVerifier]] = {}
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            verifier: Verifier = parse_vkey(words[-1])
        except Malformed as error:
            raise Malformed(f"{path}, line {number}: {error}") from error
        if len(words) > 2:
            raise Malformed(f"{path}, line {number}: is not `[ORIGIN] VKEY`")
        found.setdefault(words[0] if len(words) == 2 else verifier.name, []).append(verifier)
    return found


def _read_keys(path: Path) -> list[CosignerKey]:
    kinds = {name: kind for kind, name in KINDS.items()}
    try:
        require_private(path)
        document = orjson.loads(path.read_bytes())
        return [
            CosignerKey(document["name"], kinds[one["kind"]], bytes.fromhex(one["seed"])) for one in document["keys"]
        ]
    except FileNotFoundError as error:
        raise LedgerError(
            f"{path.parent} is no witness's folder", hint="make one: s3integrity witness keygen"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise LedgerError(f"{path} is not a witness's key: {error}") from error


def _read_states(folder: Path, witness: Witness) -> dict[str, State]:
    """Every state, each with this witness's own signature: one that was changed or cut must not be forgotten quietly."""
    own = [key.cosigner for key in witness.keys]
    found = {}
    for path in sorted(folder.iterdir()):
        if path.name.endswith(".new"):
            path.unlink()
            continue
        note = path.read_bytes()
        try:
            origin = peek_checkpoint(note).origin
            checkpoint = open_checkpoint(note, origin, own)
            if origin_hash(origin) != path.name:
                raise Malformed(f"it is of the log {origin}, which is kept elsewhere")
        except (Malformed, Rejected) as error:
            raise LedgerError(
                f"{path}: what was cosigned last cannot be read: {error}",
                hint="without it the witness could cosign another history; make a new one, under a new name",
            ) from error
        found[origin] = State(checkpoint.size, checkpoint.root, note)
    return found

"""A witness (C2SP tlog-witness), as a function: what it answers to a request, given the last checkpoint it cosigned.

One rule: an `Answer` with a `state` may leave the house only after that state is on the disk, in the place of the very state
that was asked about. Else two requests at once make a witness say two things that contradict each other.

| status | when |
| --- | --- |
| 400 | the request is not of its form, or its old size is beyond the checkpoint's |
| 404 | the checkpoint's origin is of no log that it knows |
| 403 | none of the log's keys signed the checkpoint, or a signature of one does not hold |
| 409 | the old size is not the one last cosigned, which is the body |
| 422 | the checkpoint does not continue the one last cosigned, or the proof does not show it |
| 200 | the body is its cosignatures, a line each |
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

from integrity.errors import Malformed
from integrity.tlog.checkpoint import Checkpoint, parse_number, peek_checkpoint
from integrity.tlog.cosignature import CosignerKey
from integrity.tlog.note import NoteRejected, NoteVerifier, encode64, open_note, signature_line
from integrity.tlog.proof import HASHES_MAX, parse_hashes
from integrity.tlog.tree import EMPTY_ROOT, ProofRejected, verify_consistency

ORIGIN_BYTES_MAX = 255
REQUEST_BYTES_MAX = 256 << 10
SIZE_TYPE = "text/x.tlog.size"
TEXT_TYPE = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class AddCheckpoint:
    """An add-checkpoint request: `proof` shows that the checkpoint in `note` continues the tree of `old_size`."""

    old_size: int
    proof: tuple[bytes, ...]
    note: bytes
    checkpoint: Checkpoint
    """What the note claims; nothing of it is verified."""


@dataclass(frozen=True, slots=True)
class State:
    """The last checkpoint a witness cosigned of one log."""

    size: int
    root: bytes
    note: bytes
    """With the log's signatures that were verified and the witness's own: what monitors are served."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A status, a body and its type; `state` where the witness's state has to change first. `said` is for the journal."""

    status: int
    body: bytes
    content_type: str
    said: str
    state: State | None = None


def parse_request(body: bytes) -> AddCheckpoint:
    """The request in a body. Malformed for another form (status 400)."""
    try:
        if len(body) > REQUEST_BYTES_MAX:
            raise ValueError(f"it has {len(body):,} bytes, and {REQUEST_BYTES_MAX:,} is the most")
        head, blank, note = body.partition(b"\n\n")
        if not blank:
            raise ValueError("it holds no checkpoint")
        first, *lines = head.decode("ascii").split("\n")
        if not first.startswith("old "):
            raise ValueError("its first line is not `old SIZE`")
        old_size = parse_number(first.removeprefix("old "))
        return AddCheckpoint(old_size, parse_hashes(lines), note, peek_checkpoint(note))
    except ValueError as error:
        raise Malformed(f"not an add-checkpoint request: {error}") from error


def origin_hash(origin: str) -> str:
    """What a log is called in a witness's addresses (monitor retrieval)."""
    return sha256(origin.encode()).hexdigest()


def write_request(old_size: int, proof: Sequence[bytes], note: bytes) -> bytes:
    """The body of an add-checkpoint request."""
    if len(proof) > HASHES_MAX:
        raise ValueError(f"a consistency proof has at most {HASHES_MAX} hashes")
    return "".join(f"{line}\n" for line in (f"old {old_size}", *map(encode64, proof), "")).encode() + note


class Witness:
    """Which logs it knows, each with its keys, and the keys it cosigns with."""

    def __init__(self, logs: Mapping[str, Sequence[NoteVerifier]], keys: Sequence[CosignerKey]) -> None:
        if not keys:
            raise ValueError("a witness needs a key")
        long = [origin for origin in logs if len(origin.encode()) > ORIGIN_BYTES_MAX]
        if long:
            raise ValueError(f"{long[0]}: an origin that is cosigned has at most {ORIGIN_BYTES_MAX} bytes")
        self.logs = dict(logs)
        self.keys = tuple(keys)

    def add(self, request: AddCheckpoint, state: State | None, unix_s: int) -> Answer:
        """The answer, where `state` is what was last cosigned of the log `request.checkpoint.origin` (None: nothing)."""
        origin = request.checkpoint.origin
        if origin not in self.logs:
            return _refused(404, f"the log {origin} is not known here")
        try:
            opened = open_note(request.note, self.logs[origin])
        except NoteRejected as error:
            return _refused(403, str(error))
        checkpoint = request.checkpoint
        if request.old_size > checkpoint.size:
            return _refused(400, f"the old size {request.old_size} is beyond the checkpoint's {checkpoint.size}")
        last = 0 if state is None else state.size
        if request.old_size != last:
            said = f"{origin}: asked about {request.old_size} records, cosigned are {last}"
            return Answer(409, f"{last}\n".encode(), SIZE_TYPE, said)
        try:
            if checkpoint.size == 0 and checkpoint.root != EMPTY_ROOT:
                raise ProofRejected("an empty tree has another root than this")
            root = EMPTY_ROOT if state is None else state.root
            verify_consistency(last, root, checkpoint.size, checkpoint.root, request.proof)
        except ProofRejected as error:
            return _refused(422, f"{origin}: {error}")
        lines = [signature_line(opened.text, key.at(unix_s)) for key in self.keys]
        kept = [one.line for one in opened.signatures]
        note = (opened.text + "\n" + "".join([*kept, *lines])).encode()
        said = f"{origin}: cosigned {checkpoint.size} records after {last}"
        return Answer(200, "".join(lines).encode(), TEXT_TYPE, said, State(checkpoint.size, checkpoint.root, note))


def _refused(status: int, why: str) -> Answer:
    return Answer(status, f"{why}\n".encode(), TEXT_TYPE, why)

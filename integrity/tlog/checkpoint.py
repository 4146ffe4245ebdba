"""Checkpoints (C2SP tlog-checkpoint): the head of a log's tree as a note.

One rule: what a checkpoint says is believed by whoever opened it with the log's key and the origin that was expected, both
known before.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from integrity.errors import Malformed
from integrity.tlog.note import (
    NoteRejected,
    NoteSigner,
    NoteVerifier,
    decode64,
    encode64,
    open_note,
    sign_note,
    split_note,
)

SIZE_MAX = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The first `size` records of the log `origin` have the root `root` (RFC 6962)."""

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()
    """Further lines. We write none, and no witness says anything about them."""

    def text(self) -> str:
        """The note's text."""
        lines = (self.origin, str(self.size), encode64(self.root), *self.extensions)
        return "".join(f"{line}\n" for line in lines)


def parse_checkpoint(text: str) -> Checkpoint:
    """The checkpoint in a note's text. Malformed for another text; who signed it is not asked here."""
    try:
        if not text.endswith("\n"):
            raise ValueError("its last line does not end")
        lines = text[:-1].split("\n")
        if len(lines) < 3 or not all(lines):
            raise ValueError("it has not three lines or more, none of them empty")
        root = decode64(lines[2])
        if len(root) != 32:
            raise ValueError(f"its root has {len(root)} bytes, not 32")
        return Checkpoint(lines[0], parse_number(lines[1]), root, tuple(lines[3:]))
    except ValueError as error:
        raise Malformed(f"not a checkpoint: {error}") from error


def parse_number(text: str) -> int:
    """A decimal without leading zeros, below 2^63. ValueError for another."""
    if not text.isascii() or not text.isdigit() or (text[0] == "0" and text != "0") or len(text) > 19:
        raise ValueError(f"{text[:40]!r} is no number as it should be written")
    number = int(text)
    if number > SIZE_MAX:
        raise ValueError(f"{number} is beyond 2^63 - 1")
    return number


def sign_checkpoint(checkpoint: Checkpoint, *signers: NoteSigner) -> bytes:
    """The checkpoint as a note. ValueError for what cannot be written, such as an origin of two lines."""
    text = checkpoint.text()
    try:
        same = parse_checkpoint(text) == checkpoint
    except Malformed as error:
        raise ValueError(str(error)) from error
    if not same:
        raise ValueError(f"{checkpoint} cannot be written as a checkpoint")
    return sign_note(text, *signers)


def open_checkpoint(data: bytes, origin: str, verifiers: Sequence[NoteVerifier]) -> Checkpoint:
    """The checkpoint of the log `origin` that at least one of these keys signed.

    NoteRejected where none did, a signature does not hold, or it is of another log; Malformed for what is no checkpoint."""
    checkpoint = parse_checkpoint(open_note(data, verifiers).text)
    if checkpoint.origin != origin:
        raise NoteRejected(f"a checkpoint of the log {checkpoint.origin!r}, not of {origin!r}")
    return checkpoint


def peek_checkpoint(data: bytes) -> Checkpoint:
    """What a note claims to be the checkpoint of, nothing verified: to find out which keys to ask for."""
    return parse_checkpoint(split_note(data)[0])

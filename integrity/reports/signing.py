"""The note over a report: SHA-256 and size of its files, signed (C2SP signed-note). docs/integrity/audit.md has an example.

    bucketworks/ledger-report/v1
    example.com/ledger
    01KATA7VQM9Q3T0ZB3Y8W5N2C4
    json 3f7a… 20481
    html 9be1… 60123

One rule: the first line is no origin of any log, and the second no size, so that no such note is ever taken for a checkpoint
nor a checkpoint for it, though one key signs both.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from integrity.errors import Malformed, Tampered
from integrity.tlog.note import NoteSigner, NoteVerifier, open_note, sign_note

TITLE: Final = "bucketworks/ledger-report/v1"
_FILE = re.compile(r"(json|html) ([0-9a-f]{64}) (0|[1-9][0-9]{0,15})\Z")
_NUMBER = re.compile(r"[0-9A-HJKMNP-TV-Z]{26}\Z")


@dataclass(frozen=True, slots=True)
class Signed:
    """What a note says: of which ledger, which report, and each file's SHA-256 (hex) and size in bytes by suffix. `signers` are
    the names of the known keys that signed it."""

    origin: str
    number: str
    files: Mapping[str, tuple[str, int]]
    signers: tuple[str, ...] = ()


def sign(origin: str, number: str, files: Mapping[str, bytes], *signers: NoteSigner) -> bytes:
    """The note over these files (by suffix: `json`, `html`)."""
    lines = [TITLE, origin, number]
    lines += [
        f"{suffix} {sha256(data).hexdigest()} {len(data)}" for suffix, data in sorted(files.items(), reverse=True)
    ]
    text = "".join(f"{line}\n" for line in lines)
    _parse(text)
    return sign_note(text, *signers)


def open_signed(note: bytes, verifiers: Sequence[NoteVerifier]) -> Signed:
    """What a note says that one of these keys signed. Rejected where none did; Malformed for another note."""
    opened = open_note(note, verifiers)
    found = _parse(opened.text)
    return Signed(found.origin, found.number, found.files, tuple(one.name for one in opened.signatures))


def check_file(signed: Signed, suffix: str, data: bytes) -> None:
    """Return where these are the bytes that were signed. Tampered otherwise."""
    digest, size = signed.files[suffix]
    found = sha256(data).hexdigest()
    if found != digest:
        raise Tampered(
            f"{signed.number}.{suffix} is not the file that was signed: its SHA-256 is {found} ({len(data):,} bytes),"
            f" {digest} ({size:,} bytes) was signed",
            where=f"{signed.number}.{suffix}",
            hint="get it again from where the report was published",
        )


def _parse(text: str) -> Signed:
    title, *lines = text[:-1].split("\n")
    if title != TITLE or len(lines) < 3:
        raise Malformed(f"not the note of a report: it begins with {title[:80]!r}, not with {TITLE!r}")
    origin, number, *rest = lines
    files = {}
    for line in rest:
        found = _FILE.match(line)
        if found is None or found[1] in files:
            raise Malformed(f"not the note of a report: {line[:120]!r}")
        files[found[1]] = (found[2], int(found[3]))
    if not _NUMBER.match(number) or not origin or "json" not in files:
        raise Malformed("not the note of a report: ledger, number or the JSON document is missing")
    return Signed(origin, number, files)

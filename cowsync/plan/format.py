"""Bytes of a plan: its head, its lines, and the index that leads to a line (docs/formats/plan.md).

One rule: one value has one encoding. JSON in UTF-8 without blanks, names ascending, fields that hold their default left
out; so the digest of a plan is that of its meaning, whoever wrote it and however it was packed. What cannot be decoded
is `StateDamaged` with the number of the line; nothing is believed half.
"""

import json
from collections.abc import Iterator
from dataclasses import MISSING, asdict, dataclass, fields
from json.encoder import encode_basestring
from typing import Any

from cowsync.changes import Op, PlanLine
from cowsync.errors import StateDamaged
from cowsync.versions import ALL, ORDINAL_MAX

HEAD_FORMAT = "cowsync-plan"
INDEX_FORMAT = "cowsync-plan-index"
VERSION = 2
"""Of heads: 2 for a plan of all versions, whose lines have ordinals; else 1."""
INDEX_VERSION = 1
FRAME_LINES_MAX = 10_000
FRAME_BYTES_MAX = 16 << 20
"""A frame ends at the first line with which it holds this much, so a reader needs at most this and one line."""
LINE_BYTES_MAX = 64 << 10
"""Room for a key of 1,024 bytes that are all escaped, twice over; a longer line is damage."""
NUMBER_MAX = (1 << 63) - 1
DIGEST_HEX = 64

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
_quoted = encode_basestring
_TYPES: dict[str, type] = {one.name: type(one.default) for one in fields(PlanLine) if one.default is not MISSING} | {
    "op": str,
    "key": str,
    "size": int,
    "etag": str,
    "modified": str,
}
_OPS = {op.value: op for op in Op}


@dataclass(frozen=True, slots=True)
class PlanHead:
    """The facts that define a plan beside its lines. `source` and `target` are URLs without secrets, `base` the digest
    of the snapshot that the scan was compared with ("" on a first run), `run` the number of the run that planned,
    `versions` "all" where lines are about versions, else ""."""

    mirror: str
    source: str
    target: str
    base: str
    run: int
    versions: str = ""


@dataclass(frozen=True, slots=True)
class Frame:
    """Where lines lie: `stored` bytes from `at` hold one zstd frame of `raw` bytes, which are `lines` lines from
    number `first_line` on, the first at `first_key` (its `place`). `sha256` is over the raw bytes, in hex. The head has
    the first frame to itself, with `lines` 0."""

    at: int
    stored: int
    raw: int
    first_line: int
    lines: int
    sha256: str
    first_key: str


@dataclass(frozen=True, slots=True)
class Index:
    digest: str
    lines: int
    frames: tuple[Frame, ...]


def encode_head(head: PlanHead) -> bytes:
    """The first line of a plan, with its newline."""
    document = {"format": HEAD_FORMAT, "version": 2 if head.versions else 1, **asdict(head)}
    if not head.versions:
        del document["versions"]
    return _encode(dict(sorted(document.items()))).encode() + b"\n"


def decode_head(data: bytes) -> PlanHead:
    """StateDamaged for anything but what `encode_head` makes; a newer version is named."""
    document = _object(data.removesuffix(b"\n"), "the head")
    if document.get("format") != HEAD_FORMAT:
        raise StateDamaged("the head is not that of a plan")
    if document.get("version") not in (1, VERSION):
        raise StateDamaged(
            f"the plan is of version {document.get('version')!r}; this program reads versions 1 to {VERSION}",
            hint="use the release that wrote it, or plan anew",
        )
    values = {name: document.get(name) for name in ("mirror", "source", "target", "base")}
    values["versions"] = document.get("versions", "")
    run = document.get("run")
    good = all(isinstance(value, str) for value in values.values()) and values["versions"] in ("", ALL)
    if not good or type(run) is not int or run < 0:
        raise StateDamaged("the head lacks a field, or one is of the wrong type")
    head = PlanHead(**{name: str(value) for name, value in values.items()}, run=run)
    try:
        same = encode_head(head) == data
    except UnicodeEncodeError:
        same = False
    if not same:
        raise StateDamaged("the head is not in its one form")
    return head


def encode_line(line: PlanLine) -> bytes:
    """One line with its newline. ValueError where a text is not Unicode (lone surrogates).

    Written out, since a plan may have a billion lines and this is a third of the time of a generic encoder."""
    text = f'{{"etag":{_quoted(line.etag)}'
    if line.gone:
        text += f',"gone":{line.gone}'
    if line.hot:
        text += ',"hot":true'
    text += f',"key":{_quoted(line.key)}'
    if line.mirror_etag:
        text += f',"mirror_etag":{_quoted(line.mirror_etag)}'
    if line.mirror_version:
        text += f',"mirror_version":{_quoted(line.mirror_version)}'
    text += f',"modified":{_quoted(line.modified)},"op":"{line.op.value}"'
    if line.ordinal:
        text += f',"ordinal":{line.ordinal}'
    if line.reason:
        text += f',"reason":{_quoted(line.reason)}'
    text += f',"size":{line.size}'
    if line.storage_class:
        text += f',"storage_class":{_quoted(line.storage_class)}'
    if line.version_id:
        text += f',"version_id":{_quoted(line.version_id)}'
    if line.was_etag:
        text += f',"was_etag":{_quoted(line.was_etag)}'
    if line.was_size:
        text += f',"was_size":{line.was_size}'
    if line.was_version:
        text += f',"was_version":{_quoted(line.was_version)}'
    return (text + "}\n").encode()


def decode_line(data: bytes, number: int) -> PlanLine:
    """The line in `data` (without newline); StateDamaged names it by `number`."""
    document = _object(data, f"line {number}")
    word = document.get("op")
    op = _OPS.get(word) if isinstance(word, str) else None
    if op is None:
        raise StateDamaged(f"line {number} has no op that is known")
    for name, value in document.items():
        kind = _TYPES.get(name)
        if kind is None or type(value) is not kind or (kind is int and not 0 <= value <= NUMBER_MAX):  # type: ignore[operator]
            raise StateDamaged(f"line {number}: field {name!r} is not one of a plan, or of the wrong type")
    document["op"] = op
    try:
        line = PlanLine(**document)  # type: ignore[arg-type]  # each value's type was looked at
    except TypeError:
        raise StateDamaged(f"line {number} lacks a field") from None
    if not line.key:
        raise StateDamaged(f"line {number} has an empty key")
    if line.ordinal > ORDINAL_MAX:
        raise StateDamaged(f"line {number} has an ordinal of more than {ORDINAL_MAX:,}")
    return line


def decode_lines(raw: bytes, frame: Frame) -> Iterator[PlanLine]:
    """The lines of a frame in order. StateDamaged names the first line that cannot be read, is not in its one form, or
    whose key is not greater than the one before."""
    number, before = frame.first_line, ""
    if raw and not raw.endswith(b"\n"):
        raise StateDamaged(f"line {frame.first_line + max(frame.lines - 1, 0)} has no end")
    for data in raw.split(b"\n")[:-1]:
        line = decode_line(data, number)
        place = line.place
        if number == frame.first_line and place != frame.first_key:
            raise StateDamaged(f"line {number} is of another key than the index says")
        if place <= before and number > frame.first_line:
            raise StateDamaged(f"line {number}: its key is not greater than the one before")
        yield line
        number, before = number + 1, place
    if number != frame.first_line + frame.lines:
        raise StateDamaged(
            f"lines {frame.first_line} to {frame.first_line + frame.lines - 1}: there are {number - frame.first_line}"
        )


def encode_index(index: Index) -> bytes:
    rows = [[f.at, f.stored, f.raw, f.lines, f.sha256, f.first_key] for f in index.frames]
    return (
        _encode(
            {
                "digest": index.digest,
                "format": INDEX_FORMAT,
                "frames": rows,
                "lines": index.lines,
                "version": INDEX_VERSION,
            }
        ).encode()
        + b"\n"
    )


def decode_index(data: bytes) -> Index:
    """StateDamaged unless the frames lie end to end, number the lines without a gap and are of sizes that a writer
    makes: what is allocated for a frame is bounded whatever the index says."""
    document = _object(data, "the index") if data.endswith(b"\n") else {}
    if document.get("format") != INDEX_FORMAT or document.get("version") != INDEX_VERSION:
        raise StateDamaged(f"the index is not one of version {INDEX_VERSION}")
    rows, digest, lines = document.get("frames"), document.get("digest"), document.get("lines")
    if not isinstance(rows, list) or not rows or type(lines) is not int or not _is_digest(digest):
        raise StateDamaged("the index lacks a field, or one is of the wrong type")
    frames: list[Frame] = []
    at = first_line = 0
    before = ""
    for place, row in enumerate(rows):
        if not isinstance(row, list) or [type(one) for one in row] != [int, int, int, int, str, str]:
            raise StateDamaged(f"frame {place} of the index is of the wrong form")
        frame = Frame(row[0], row[1], row[2], first_line, row[3], row[4], row[5])
        good = (
            frame.at == at
            and 0 < frame.stored <= 2 * (FRAME_BYTES_MAX + LINE_BYTES_MAX)
            and 0 < frame.raw <= FRAME_BYTES_MAX + LINE_BYTES_MAX
            and _is_digest(frame.sha256)
            and (frame.lines == 0 if place == 0 else 0 < frame.lines <= FRAME_LINES_MAX and frame.first_key > before)
        )
        if not good:
            raise StateDamaged(f"frame {place} of the index cannot be right")
        frames.append(frame)
        at, first_line, before = at + frame.stored, first_line + frame.lines, frame.first_key
    if first_line != lines:
        raise StateDamaged(f"the index counts {first_line} lines and says {lines}")
    return Index(str(digest), lines, tuple(frames))


def line_document(line: PlanLine) -> dict[str, Any]:
    """A line as people's JSON shows it: every field, defaults too."""
    return {one.name: getattr(line, one.name) for one in fields(PlanLine)}


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and len(value) == DIGEST_HEX and not set(value) - set("0123456789abcdef")


def _object(data: bytes, what: str) -> dict[str, object]:
    try:
        document = json.loads(data.decode())
        if b"\\ud" in data or b"\\uD" in data:
            # An escape may stand for half a character, which is no text. Nothing that we write is escaped so.
            _encode(document).encode()
    except (ValueError, RecursionError) as error:
        raise StateDamaged(f"{what} is not JSON") from error
    if not isinstance(document, dict):
        raise StateDamaged(f"{what} is not a JSON object")
    return document

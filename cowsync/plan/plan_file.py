"""A plan on disk: a folder named by the plan's digest, written once, read from any line on (docs/formats/plan.md).

    plans/<digest>/plan.jsonl.zst   head and lines; `zstdcat plan.jsonl.zst | sha256sum` is the digest
    plans/<digest>/index.json       where each ten thousand lines begin
    plans/<digest>/summary.json     counts and costs, for people; not part of the digest

One rule: a folder has a digest for a name only when it is whole and synced; everything else is named `.new-*`, belongs to
nobody and is removed by the next run. Only the run that holds the mirror's lock writes plans.
"""

import hashlib
import json
import os
import shutil
import tempfile
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import zstandard

from cowsync.changes import PlanLine
from cowsync.errors import Refused, StateDamaged
from cowsync.plan.format import (
    DIGEST_HEX,
    FRAME_BYTES_MAX,
    FRAME_LINES_MAX,
    LINE_BYTES_MAX,
    Frame,
    Index,
    PlanHead,
    decode_head,
    decode_index,
    decode_line,
    decode_lines,
    encode_head,
    encode_index,
    encode_line,
)
from cowsync.versions import behind

LINES_NAME = "plan.jsonl.zst"
INDEX_NAME = "index.json"
SUMMARY_NAME = "summary.json"
TEMPORARY = ".new-"
SHOWN_DIGEST = 12
"""Digits of a digest that tools print and take for short."""
_LEVEL = 3


class Plan:
    """A plan that lies whole on disk. Cheap to open: head and index are read, lines when they are asked for. Every
    frame is compared with its SHA-256 in the index before a line of it is given out; `verify` compares all with the
    digest. Safe to use from several threads: each reading opens the file anew."""

    def __init__(self, folder: Path, index: Index, head: PlanHead) -> None:
        self.folder = folder
        self.head = head
        self._index = index
        self._first_lines = [frame.first_line for frame in index.frames[1:]]
        self._first_keys = [frame.first_key for frame in index.frames[1:]]

    @property
    def digest(self) -> str:
        return self._index.digest

    def __len__(self) -> int:
        """How many lines there are."""
        return self._index.lines

    def __iter__(self) -> Iterator[PlanLine]:
        return (line for _, line in self.read())

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, PlanLine]]:
        """Lines `start` to before `stop` with their numbers, in order; only the frames that hold them are read.
        StateDamaged names the first line that is not what was written."""
        end = len(self) if stop is None else min(stop, len(self))
        if start >= end:
            return
        place, before = bisect_right(self._first_lines, start), ""
        with (self.folder / LINES_NAME).open("rb") as file:
            for frame in self._index.frames[place:]:
                if frame.first_line >= end:
                    return
                if frame.first_key <= before:
                    raise self._damaged(f"line {frame.first_line}: its key is not greater than the one before")
                for number, line in enumerate(self._lines(file, frame), frame.first_line):
                    before = line.place
                    if start <= number < end:
                        yield number, line

    def find(self, key: str) -> tuple[int, PlanLine] | None:
        """The (first) line of `key` with its number; one frame is read."""
        return next(self.find_every(key), None)

    def find_every(self, key: str) -> Iterator[tuple[int, PlanLine]]:
        """All lines of `key`: one, or those of its versions; only the frames that may hold them are read."""
        last = behind(key.encode()).decode()
        with (self.folder / LINES_NAME).open("rb") as file:
            for frame in self._index.frames[max(1, bisect_right(self._first_keys, key)) :]:
                if frame.first_key > last:
                    return
                for number, line in enumerate(self._lines(file, frame), frame.first_line):
                    if line.key == key:
                        yield number, line

    def find_all(self, keys: Sequence[str]) -> Iterator[tuple[int, PlanLine]]:
        """Those of `keys` (in ascending order) that the plan has; each frame is read once at most."""
        at = 0
        with (self.folder / LINES_NAME).open("rb") as file:
            while at < len(keys):
                place = bisect_right(self._first_keys, keys[at])
                if not place:
                    at += 1
                    continue
                above = self._first_keys[place] if place < len(self._first_keys) else None
                end = len(keys) if above is None else bisect_left(keys, above, at)
                wanted, frame = set(keys[at:end]), self._index.frames[place]
                for number, line in enumerate(self._lines(file, frame), frame.first_line):
                    if line.key in wanted:
                        yield number, line
                at = end

    def pieces(self, lines: int = FRAME_LINES_MAX) -> Iterator[tuple[int, int]]:
        """Ranges for `read` that cover the plan, each of whole frames and of at least `lines` lines but for the last:
        whoever reads one piece unpacks nothing of another."""
        start = 0
        for first in [*self._first_lines[1:], len(self)]:
            if first - start >= lines or (first == len(self) and first > start):
                yield start, first
                start = first

    def summary(self) -> dict[str, object]:
        """What was written beside the lines. StateDamaged."""
        try:
            document = json.loads((self.folder / SUMMARY_NAME).read_bytes())
        except (OSError, ValueError) as error:
            raise StateDamaged(f"{self.folder / SUMMARY_NAME} cannot be read: {error}") from error
        if not isinstance(document, dict):
            raise StateDamaged(f"{self.folder / SUMMARY_NAME} is not a JSON object")
        return document

    def verify(self) -> None:
        """Read all and compare it with the digest, and the digest with the folder's name. StateDamaged."""
        sha = hashlib.sha256()
        with (self.folder / LINES_NAME).open("rb") as file:
            for frame in self._index.frames:
                raw = self._raw(file, frame)
                sha.update(raw)
                if frame.lines:
                    self._check_place(raw, frame)
            if file.read(1):
                raise self._damaged(f"there is more behind line {len(self) - 1}")
        if sha.hexdigest() != self.digest or self.folder.name != self.digest:
            raise self._damaged("its lines are whole, but are another plan's: the digest differs")

    def _check_place(self, raw: bytes, frame: Frame) -> None:
        try:
            first = decode_line(raw[: raw.find(b"\n")], frame.first_line)
        except StateDamaged as error:
            raise self._damaged(str(error)) from error
        if first.place != frame.first_key or raw.count(b"\n") != frame.lines:
            raise self._damaged(f"line {frame.first_line} and those after it are not those that the index says")

    def _lines(self, file: BinaryIO, frame: Frame) -> Iterator[PlanLine]:
        try:
            yield from decode_lines(self._raw(file, frame), frame)
        except StateDamaged as error:
            raise self._damaged(str(error)) from error

    def _raw(self, file: BinaryIO, frame: Frame) -> bytes:
        file.seek(frame.at)
        raw = _unpacked(file.read(frame.stored), frame.raw)
        if raw is not None and hashlib.sha256(raw).hexdigest() == frame.sha256:
            return raw
        last = frame.first_line + frame.lines - 1
        where = f"lines {frame.first_line} to {last}" if frame.lines else "the head"
        if raw is not None and frame.lines:
            try:
                for _ in decode_lines(raw, frame):
                    pass
            except StateDamaged as error:
                where = str(error)
        raise self._damaged(f"{where}: not what was written")

    def _damaged(self, what: str) -> StateDamaged:
        return StateDamaged(f"plan {self.folder.name[:SHOWN_DIGEST]}: {what}", hint="nothing is lost: plan anew")


def write_plan(
    plans: Path,
    head: PlanHead,
    lines: Iterable[PlanLine],
    *,
    summary: Callable[[], Mapping[str, object]] = dict,
) -> Plan:
    """Write a plan below `plans` and return it. Lines come in ascending order of place, each once (else ValueError);
    at most one frame of them is held in memory. `summary` is called once, after the last line.

    On return the plan is durable under its name. A crash before that leaves a folder `.new-*`, which `sweep` removes. A
    plan that is there already is kept with a new summary, and written anew file by file if it is damaged."""
    plans.mkdir(parents=True, exist_ok=True)
    sweep(plans)
    folder = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=plans))
    try:
        index = _write_lines(folder / LINES_NAME, head, lines)
        _write_file(folder / INDEX_NAME, encode_index(index))
        document = json.dumps(summary(), ensure_ascii=False, indent=1, sort_keys=True)
        _write_file(folder / SUMMARY_NAME, document.encode() + b"\n")
        sync_folder(folder)
        place = plans / index.digest
        if place.exists():
            _renew(folder, place)
        else:
            # Crash before: `.new-*`, swept. After: the plan, perhaps without its name after a power cut; planned anew.
            folder.rename(place)
        sync_folder(plans)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return Plan(place, index, head)


def open_plan(folder: Path) -> Plan:
    """The plan in `folder`, with head and index read; `verify` reads the rest. Refused where there is none."""
    try:
        data = (folder / INDEX_NAME).read_bytes()
        with (folder / LINES_NAME).open("rb") as file:
            index = decode_index(data)
            first = index.frames[0]
            raw = _unpacked(file.read(first.stored), first.raw)
    except FileNotFoundError as error:
        if folder.is_dir():
            raise StateDamaged(f"plan {folder.name[:SHOWN_DIGEST]}: {error.filename} is missing") from error
        raise Refused(f"there is no plan {folder.name}", hint="`cowsync plan` makes one") from error
    except StateDamaged as error:
        raise StateDamaged(f"plan {folder.name[:SHOWN_DIGEST]}: {error}", hint="nothing is lost: plan anew") from error
    if raw is None or hashlib.sha256(raw).hexdigest() != first.sha256:
        raise StateDamaged(f"plan {folder.name[:SHOWN_DIGEST]}: the head is not what was written")
    if index.digest != folder.name:
        raise StateDamaged(f"plan {folder.name[:SHOWN_DIGEST]} holds the index of plan {index.digest[:SHOWN_DIGEST]}")
    return Plan(folder, index, decode_head(raw))


def find_plan(plans: Path, digest: str) -> Plan:
    """The plan with that digest, or the only one whose digest begins so (at least 4 digits). Refused where there is
    none or more than one."""
    found = [one for one in digests(plans) if one.startswith(digest.lower())] if len(digest) >= 4 else []
    if len(found) != 1:
        many = f"{len(found)} plans begin with {digest}" if found else f"there is no plan {digest}"
        raise Refused(many, hint="`cowsync plans` lists them" if not found else "give more digits")
    return open_plan(plans / found[0])


def digests(plans: Path) -> list[str]:
    """Digests of the plans below `plans`, in ascending order; [] where the folder is not there."""
    names = os.listdir(plans) if plans.is_dir() else []
    return sorted(name for name in names if len(name) == DIGEST_HEX and not set(name) - set("0123456789abcdef"))


def remove_plan(folder: Path) -> None:
    """Remove a plan. Only for the holder of the mirror's lock. A crash leaves it whole, or a folder `.new-*`."""
    # A folder has a digest for a name only when it is whole.
    left = folder.with_name(f"{TEMPORARY}{folder.name}")
    folder.rename(left)
    shutil.rmtree(left)


def sweep(plans: Path) -> None:
    """Remove what a crash left of plans that were being written. Only for the holder of the mirror's lock."""
    for left in plans.glob(f"{TEMPORARY}*"):
        shutil.rmtree(left)


def sync_folder(folder: Path) -> None:
    """Make names in `folder` durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_lines(path: Path, head: PlanHead, lines: Iterable[PlanLine]) -> Index:
    sha, frames = hashlib.sha256(), list[Frame]()
    packer = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True, write_content_size=True)
    at = first_line = 0
    with path.open("xb") as file:

        def put(raw: bytes, count: int, first_key: str) -> None:
            nonlocal at, first_line
            packed = packer.compress(raw)
            file.write(packed)
            sha.update(raw)
            frames.append(
                Frame(at, len(packed), len(raw), first_line, count, hashlib.sha256(raw).hexdigest(), first_key)
            )
            at, first_line = at + len(packed), first_line + count

        put(encode_head(head), 0, "")
        held, held_bytes, first_key, before = list[bytes](), 0, "", ""
        for line in lines:
            place = line.place
            if place <= before:
                raise ValueError(
                    f"line {first_line + len(held)}: key {line.key!r} is not greater than {before!r}, the one before"
                )
            data = encode_line(line)
            if len(data) > LINE_BYTES_MAX:
                raise ValueError(f"line {first_line + len(held)}: {len(data)} bytes, the most is {LINE_BYTES_MAX}")
            first_key = first_key if held else place
            held.append(data)
            held_bytes, before = held_bytes + len(data), place
            if len(held) == FRAME_LINES_MAX or held_bytes >= FRAME_BYTES_MAX:
                put(b"".join(held), len(held), first_key)
                held, held_bytes = [], 0
        if held:
            put(b"".join(held), len(held), first_key)
        file.flush()
        os.fsync(file.fileno())
    return Index(sha.hexdigest(), first_line, tuple(frames))


def _write_file(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _renew(folder: Path, place: Path) -> None:
    try:
        open_plan(place).verify()
        names = [SUMMARY_NAME]  # costs and rates may have changed since
    except StateDamaged:
        # Crash between two of them: lines and index may not fit each other; that is damage again, cured the same way.
        names = [LINES_NAME, INDEX_NAME, SUMMARY_NAME]
    for name in names:
        (folder / name).replace(place / name)
    sync_folder(place)
    shutil.rmtree(folder)


def _unpacked(stored: bytes, raw_bytes: int) -> bytes | None:
    try:
        if zstandard.frame_content_size(stored) != raw_bytes:
            return None
        return zstandard.ZstdDecompressor().decompress(stored, max_output_size=raw_bytes, allow_extra_data=False)
    except zstandard.ZstdError:
        return None

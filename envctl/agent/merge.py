"""A tree and what differs → the next tree. Rows that stay are copied as bytes; segments that stay keep their names.

One rule: both sides are sorted by the same key and each is read once, forwards. What must wait (the names of packs that are
not yet full) waits in a file, so that memory does not grow with the home.
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

from envctl.agent.segments import Segments
from envctl.agent.tree import (
    SEGMENT_ROWS_MIN,
    Row,
    TreeReader,
    TreeWriter,
    encode_body,
    is_file,
    sort_key,
    subtree_end,
    with_packs,
)

_SPOOLED: Final = struct.Struct("<BHI")
_PUT: Final = 1
_DROP: Final = 2
_FRESH: Final = 3
_KEEP: Final = 4
_FAR_ROWS: Final = 1024
_END: Final = b"\xff" * 4100


class Step(NamedTuple):
    """One difference: put `body` at `path` (none: nothing is there any more); drop a subtree; forget all below (fresh); keep a
    subtree of the old tree, though what is around it is fresh."""

    kind: int
    path: bytes
    body: bytes


class Spool:
    """Steps on the disk, in order. The file has no name."""

    def __init__(self, folder: str) -> None:
        self._file: Any = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by `close`
        self.steps = 0

    def put(self, path: bytes, row: Row | None) -> None:
        self._add(_PUT, path, encode_body(row) if row is not None else b"")

    def drop(self, path: bytes) -> None:
        self._add(_DROP, path, b"")

    def fresh(self, path: bytes) -> None:
        self._add(_FRESH, path, b"")

    def keep(self, path: bytes) -> None:
        self._add(_KEEP, path, b"")

    def _add(self, kind: int, path: bytes, body: bytes) -> None:
        self._file.write(_SPOOLED.pack(kind, len(path), len(body)) + path + body)
        self.steps += 1

    def read(self) -> Iterator[Step]:
        self._file.seek(0)
        while True:
            head = self._file.read(_SPOOLED.size)
            if not head:
                return
            kind, paths, bodies = _SPOOLED.unpack(head)
            yield Step(kind, self._file.read(paths), self._file.read(bodies))

    def close(self) -> None:
        self._file.close()


class Lookup:
    """Rows of a tree by path, asked for in ascending order. Unpacks each frame once at most."""

    def __init__(self, names: list[str], segments: Segments) -> None:
        self._names = names
        self._segments = segments
        self._index = 0
        self._rows: Iterator[tuple[bytes, bytes]] | None = None
        self._row: tuple[bytes, bytes] | None = None

    def find(self, path: bytes) -> bytes | None:
        key = sort_key(path)
        while self._index < len(self._names):
            reader = self._segments.open(self._names[self._index])
            if sort_key(reader.last) < key:
                self._index += 1
                self._rows = self._row = None
                continue
            return self._find_in(reader, path, key)
        return None

    def _find_in(self, reader: TreeReader, path: bytes, key: bytes) -> bytes | None:
        passed = 0
        while True:
            if self._rows is None or passed > _FAR_ROWS:
                self._rows = reader.encoded(key)
                self._row = next(self._rows, None)
                passed = 0
            if self._row is None or sort_key(self._row[0]) > key:
                return None
            if self._row[0] == path:
                return self._row[1]
            self._row = next(self._rows, None)
            passed += 1


class Merged(NamedTuple):
    """The next tree, and what became of the files."""

    trees: list[str]
    files: int
    bytes: int
    files_before: int
    added: int
    changed: int
    removed: int


class Merge:
    """Use `run` once."""

    def __init__(self, old: list[str], segments: Segments, codec: int, name_of: Callable[[bytes], bytes]) -> None:
        self._old = old
        self._segments = segments
        self._codec = codec
        self._name_of = name_of
        self._index = 0
        self._rows: Iterator[tuple[bytes, bytes]] | None = None
        self._row: tuple[bytes, bytes] | None = None
        self._writer = TreeWriter(codec)
        self._trees: list[str] = []
        self._files = self._bytes = self._files_before = 0
        self._added = self._changed = self._removed = 0

    def run(self, steps: Iterator[Step]) -> Merged:
        """Make the next tree. New segments are put into `segments`, none is uploaded."""
        fresh_until = b""
        for step in steps:
            key = sort_key(step.path)
            if fresh_until:
                self._pass(min(key, fresh_until), copy=False)
            self._pass(key, copy=True)
            if step.kind == _PUT:
                self._put(step, self._take(step.path))
            elif step.kind == _DROP:
                self._pass(subtree_end(step.path), copy=False)
            elif step.kind == _KEEP:
                self._pass(subtree_end(step.path), copy=True)
            else:
                fresh_until = max(fresh_until, subtree_end(step.path))
        if fresh_until:
            self._pass(fresh_until, copy=False)
        self._pass(_END, copy=True)
        self._close_segment()
        return Merged(
            self._trees, self._files, self._bytes, self._files_before, self._added, self._changed, self._removed
        )

    def _put(self, step: Step, before: bytes | None) -> None:
        if not step.body:
            self._removed += before is not None and is_file(before)
            return
        body = with_packs(step.body, self._name_of)
        self._add(step.path, body)
        if is_file(body):
            if before is None or not is_file(before):
                self._added += 1
            else:
                self._changed += before != body

    def _add(self, path: bytes, body: bytes) -> None:
        if self._writer.ends_before(path):
            self._close_segment()
        self._writer.add_encoded(path, body)

    def _close_segment(self) -> None:
        if self._writer.rows:
            self._trees.append(self._segments.put(self._writer.finish()))
            self._files += self._writer.files
            self._bytes += self._writer.bytes
            self._writer = TreeWriter(self._codec)

    def _peek(self) -> tuple[bytes, bytes] | None:
        """The next row of the old tree, its segment opened."""
        while self._row is None and self._index < len(self._old):
            if self._rows is None:
                reader = self._segments.open(self._old[self._index])
                self._files_before += reader.files
                self._rows = reader.encoded()
            self._row = next(self._rows, None)
            if self._row is None:
                self._rows = None
                self._index += 1
        return self._row

    def _take(self, path: bytes) -> bytes | None:
        row = self._peek()
        if row is None or row[0] != path:
            return None
        self._row = None
        return row[1]

    def _pass(self, key: bytes, *, copy: bool) -> None:
        """Copy, or leave out, the old rows before `key`."""
        while True:
            if copy and self._row is None and self._rows is None and self._index < len(self._old):
                name = self._old[self._index]
                reader = self._segments.open(name)
                if sort_key(reader.last) < key and (not self._writer.rows or self._writer.rows >= SEGMENT_ROWS_MIN):
                    self._close_segment()
                    self._trees.append(name)
                    self._files += reader.files
                    self._files_before += reader.files
                    self._bytes += reader.bytes
                    self._index += 1
                    continue
            row = self._peek()
            if row is None or sort_key(row[0]) >= key:
                return
            self._row = None
            if copy:
                self._add(*row)
            else:
                self._removed += is_file(row[1])

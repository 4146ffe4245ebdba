"""Records out of a log in a store, each shown to be under a signed root before it is handed on.

    reader = LogReader(store, "pve1.1", "example.com/ledger/pve1.1", [verifier])
    for n, record in reader.records(0, reader.checkpoint().size): ...

One rule: a size and a root come from a checkpoint whose signature holds, every object's name from that size, and every byte
handed on from under that root. An object that the size demands and the store has not, or that hashes otherwise, is `Altered`;
a store that does not answer stays `Unavailable`.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from integrity.errors import LedgerError, Malformed, Rejected, Tampered
from integrity.layout import checkpoint_key, edge_key, kept_checkpoint_key, log_prefix, tile_key
from integrity.record import INTEGER_MAX, after_of
from integrity.tlog.checkpoint import Checkpoint, open_checkpoint
from integrity.tlog.note import NoteVerifier
from integrity.tlog.tiles import (
    ENTRIES,
    WIDTH,
    ChainBroken,
    TileNodes,
    chained_bundle,
    entries_path,
    split_bundle,
    tile_at,
)
from integrity.tlog.tree import complete_root, leaf_hash, root_at
from s3core.errors import Corrupt, NotFound
from s3core.store import ObjectStore

LANES = 8
"""Requests at once, and bundles read ahead."""
BUNDLES_HELD = 4

_In = TypeVar("_In")
_Out = TypeVar("_Out")


class Altered(Tampered):
    """Tampered, and where in the log: records `first` to `last`, both included; None where it is about the log's head."""

    def __init__(
        self,
        message: str,
        *,
        log: str,
        where: str,
        first: int | None = None,
        last: int | None = None,
        known_good: str = "",
    ) -> None:
        super().__init__(message, where=where, known_good=known_good)
        self.log = log
        self.first = first
        self.last = last


class LogReader:
    """One log. `verifiers` are the keys that may have signed its checkpoint: any one of them will do, so whoever knows which
    epoch it must be passes that one alone. Not for several threads; `close` it, or use it as a context manager."""

    def __init__(
        self,
        store: ObjectStore,
        writer: str,
        origin: str,
        verifiers: Sequence[NoteVerifier],
        *,
        lanes: int = LANES,
        trusted: Checkpoint | None = None,
    ) -> None:
        self.writer = writer
        self.origin = origin
        self.note = b""
        """The newest checkpoint's bytes, once `checkpoint` was called."""
        self._store = store
        self._verifiers = verifiers
        self._lanes = lanes
        self._threads: ThreadPoolExecutor | None = None
        self._checkpoint = trusted
        self._nodes: TileNodes | None = None
        self._bundles: dict[int, list[bytes]] = {}

    def __enter__(self) -> "LogReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give back its threads."""
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)
            self._threads = None

    def checkpoint(self) -> Checkpoint:
        """The newest, read once and believed from then on. NotFound where the log has none (nothing was ever published, as far
        as the store tells); Altered where it is none, or no key of the log signed it."""
        if self._checkpoint is None:
            return self.take(read_object(self._store, checkpoint_key(self.writer), self.writer))
        return self._checkpoint

    def take(self, note: bytes) -> Checkpoint:
        """Go on from this note, as if it had been read as the newest checkpoint. Altered as there."""
        self._checkpoint = self.opened(note, checkpoint_key(self.writer), self._verifiers)
        self.note = note
        self._nodes = None
        self._bundles.clear()
        return self._checkpoint

    def kept_checkpoint(self, size: int, verifiers: Sequence[NoteVerifier] | None = None) -> Checkpoint:
        """The one that was published at that size, by one of `verifiers`. Altered where it is gone or not theirs."""
        key = kept_checkpoint_key(self.writer, size)
        try:
            note = read_object(self._store, key, self.writer)
        except NotFound as error:
            raise Altered(
                f"the checkpoint of size {size:,} is missing; a later record names it", log=self.writer, where=key
            ) from error
        found = self.opened(note, key, self._verifiers if verifiers is None else verifiers)
        if found.size != size:
            raise Altered(
                f"the checkpoint kept for size {size:,} is one of size {found.size:,}", log=self.writer, where=key
            )
        return found

    def opened(self, note: bytes, key: str, verifiers: Sequence[NoteVerifier]) -> Checkpoint:
        """`note`, which lay at `key`, as a checkpoint of this log. Altered where it is none, or not signed by `verifiers`."""
        try:
            found = open_checkpoint(note, self.origin, verifiers)
        except (Malformed, Rejected) as error:
            raise Altered(f"not a checkpoint of {self.origin}: {error}", log=self.writer, where=key) from error
        if found.size > INTEGER_MAX:
            raise Altered(
                f"a log has no {found.size:,} records: a record's number is below 2^53", log=self.writer, where=key
            )
        return found

    @property
    def state(self) -> str:
        """The checkpoint in words, as what is known to be good."""
        return in_words(self.checkpoint())

    def root_at(self, size: int) -> bytes:
        """The root that the log had at an earlier size, out of its tiles. ValueError for one that it has not reached."""
        if size > self.checkpoint().size:
            raise ValueError(f"{self.writer} has {self.checkpoint().size:,} records, not {size:,}")
        return self.proved(lambda: root_at(size, self.nodes))

    @property
    def nodes(self) -> TileNodes:
        """The tree's hashes, each shown to be under the root."""
        if self._nodes is None:
            checkpoint = self.checkpoint()
            edge = None
            if checkpoint.size > WIDTH:
                # It saves requests, and nothing depends on it.
                with suppress(NotFound, Corrupt):
                    edge = self._store.get(edge_key(self.writer, checkpoint.size)).data
            self._nodes = TileNodes(checkpoint.size, checkpoint.root, self.object, edge=edge, each=self._each)
        return self._nodes

    def object(self, path: str) -> bytes:
        """The object of this log with that path. NotFound as the store says it; Altered where it is damaged."""
        return read_object(self._store, tile_key(self.writer, path), self.writer)

    def record(self, number: int) -> bytes:
        """One record. ValueError where the log is shorter."""
        return next(self.records(number, number + 1))[1]

    def alone(self, number: int) -> bytes:
        """One record by its own hash, though others in its bundle may be altered. Altered where it is itself."""
        index = number // WIDTH
        try:
            entries = split_bundle(self.bundle(index))
            entry = entries[number % WIDTH]
        except (Malformed, IndexError) as error:
            raise self.altered("the bundle is none", index, number, number) from error
        # The tile over them need not be read where it can be made.
        self.nodes.offer(0, index, [leaf_hash(one) for one in entries])
        if leaf_hash(entry) != self.proved(lambda: self.nodes([(0, number)]))[0]:
            raise self.altered("the record is not what was signed", index, number, number)
        return entry

    def records(self, first: int = 0, last: int | None = None) -> Iterator[tuple[int, bytes]]:
        """Records `first` up to and without `last` (None: all there are), in order, with their numbers. Bundles are read ahead.

        Altered where the evidence does not hold, told of exactly the records that it is about where tiles allow; all that was
        handed on before stays believed. ValueError for records beyond the checkpoint."""
        size = self.checkpoint().size
        last = size if last is None else last
        if not 0 <= first <= last <= size:
            raise ValueError(f"{self.writer} has {size:,} records; {first:,} to {last:,} are not among them")
        return self._records(first, last)

    def _records(self, first: int, last: int) -> Iterator[tuple[int, bytes]]:
        bundles = range(first // WIDTH, -(-last // WIDTH))
        before: bytes | None = None
        for index, data in zip(bundles, self._ahead(self._read_bundle, bundles), strict=True):
            entries = data if isinstance(data, list) else self._believed(index, data)
            begin = index * WIDTH
            if before is not None and entries and after_of(entries[0]) != before:
                raise self.altered("its `after` is not the hash of the record before it", index, begin, begin)
            before = leaf_hash(entries[-1])
            for number in range(max(first, begin), min(last, begin + len(entries))):
                yield number, entries[number - begin]

    def _read_bundle(self, index: int) -> bytes | list[bytes]:
        held = self._bundles.get(index)
        return self.bundle(index) if held is None else held

    def bundle(self, index: int) -> bytes:
        """The bytes of a bundle that the size demands, not yet believed. Altered where it is missing. Safe in any thread."""
        tile = tile_at(self.checkpoint().size, ENTRIES, index)
        try:
            return self.object(tile.path)
        except NotFound as missing:
            if tile.width < WIDTH:
                try:
                    # A log may remove a partial bundle when the full one is there.
                    return _shortened(self.object(entries_path(index)), tile.width)
                except (NotFound, Malformed):
                    pass
            begin = index * WIDTH
            raise self.altered(
                f"the bundle with {tile.width:,} records is missing", index, begin, begin + tile.width - 1
            ) from missing

    def _believed(self, index: int, data: bytes) -> list[bytes]:
        """A bundle's records, shown to be under the root and chained."""
        tile = tile_at(self.checkpoint().size, ENTRIES, index)
        begin = index * WIDTH
        try:
            entries = split_bundle(data)
            if len(entries) != tile.width:
                raise Malformed(f"the bundle holds {len(entries)} records, not {tile.width}")
            hashes, _ = chained_bundle(data, after_of(entries[0]))
        except Malformed as error:
            raise self.altered(str(error), index, begin, begin + tile.width - 1) from error
        except ChainBroken as error:
            hashes = [leaf_hash(entry) for entry in entries]
            self._compare(index, hashes)
            number = begin + error.position
            raise self.altered(
                "its `after` is not the hash of the record before it, though the root was signed over it",
                index,
                number,
                number,
            ) from error
        self._compare(index, hashes)
        if len(self._bundles) >= BUNDLES_HELD:
            del self._bundles[next(iter(self._bundles))]
        self._bundles[index] = entries
        return entries

    def _compare(self, index: int, hashes: list[bytes]) -> None:
        if len(hashes) == WIDTH:
            if complete_root(hashes) == self.proved(lambda: self.nodes([(8, index)]))[0]:
                return
        elif hashes == list(self.proved(lambda: self.nodes.leaf_hashes(index))):
            return
        begin = index * WIDTH
        try:
            right = self.proved(lambda: self.nodes.leaf_hashes(index))
        except Altered as error:
            raise self.altered(
                "neither the bundle nor the tile over it is what was signed", index, begin, begin + len(hashes) - 1
            ) from error
        wrong = [begin + at for at, (one, other) in enumerate(zip(hashes, right, strict=True)) if one != other]
        many = f"{len(wrong)} records are" if len(wrong) > 1 else "the record is"
        raise self.altered(f"{many} not what was signed", index, wrong[0], wrong[-1])

    def altered(self, message: str, index: int, first: int, last: int) -> Altered:
        """An error about records `first` to `last` in that bundle."""
        tile = tile_at(self.checkpoint().size, ENTRIES, index)
        return Altered(
            f"{self.writer}: {_numbers(first, last)}: {message}",
            log=self.writer,
            where=tile_key(self.writer, tile.path),
            first=first,
            last=last,
        )

    def proved(self, act: Callable[[], _Out]) -> _Out:
        """`act`, which asks the tree; what it finds amiss is Altered, with the object it is about."""
        try:
            return act()
        except Altered:
            raise
        except (LedgerError, NotFound) as error:
            where = error.where if isinstance(error, Tampered) else error.key if isinstance(error, NotFound) else ""
            where = tile_key(self.writer, where) if where.startswith(("tile/", "checkpoint")) else where
            raise Altered(
                f"{self.writer}: {error}", log=self.writer, where=where or checkpoint_key(self.writer)
            ) from error

    def _each(self, fetch: Callable[[_In], _Out], wanted: Sequence[_In]) -> Iterable[_Out]:
        return [fetch(one) for one in wanted] if len(wanted) < 2 else list(self._pool().map(fetch, wanted))

    def _ahead(self, act: Callable[[_In], _Out], wanted: Sequence[_In]) -> Iterator[_Out]:
        """`act` of each, in order, with `LANES` of them begun before they are asked for."""
        if len(wanted) < 2:
            yield from map(act, wanted)
            return
        waiting: deque[Future[_Out]] = deque()
        rest = iter(wanted)
        try:
            for one in rest:
                waiting.append(self._pool().submit(act, one))
                if len(waiting) > self._lanes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def _pool(self) -> ThreadPoolExecutor:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._lanes, thread_name_prefix=f"read {self.writer}")
        return self._threads


def read_object(store: ObjectStore, key: str, log: str) -> bytes:
    """An object's bytes. Altered where the store itself says that they are not those that were written: whoever did it, the
    evidence is not what it was."""
    try:
        return store.get(key).data
    except Corrupt as error:
        raise Altered(f"{log}: the object is damaged: {error}", log=log, where=key) from error


def in_words(checkpoint: Checkpoint) -> str:
    """A checkpoint as a known good state."""
    return f"{checkpoint.origin} at {checkpoint.size:,} records, root {checkpoint.root.hex()[:16]}"


def whole_log(writer: str) -> str:
    """Where a finding about a whole log points."""
    return log_prefix(writer)


def _shortened(data: bytes, width: int) -> bytes:
    """The first `width` entries of a bundle, as a bundle."""
    entries = split_bundle(data)
    if len(entries) < width:
        raise Malformed(f"the bundle holds {len(entries)} records, not {width}")
    return data[: sum(2 + len(entry) for entry in entries[:width])]


def _numbers(first: int, last: int) -> str:
    return f"record {first:,}" if first == last else f"records {first:,} to {last:,}"

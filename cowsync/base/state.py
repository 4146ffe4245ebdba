"""The state of a mirror, behind the store port, with a cache of segments on this host.

    segments/<sha256>.seg      immutable, put before it is named
    snapshots/<sha256>.json    manifests, put before they are named
    HEAD                       names the manifests that are kept

One rule: what is named is there. Segments go before the manifest, the manifest before HEAD; what goes away leaves HEAD
first. Whatever a crash leaves is not named by anything, and `prune` takes it once it is old enough that no publish that
is still going on can count on it.

The cache may be lost at any time. Methods may be called from several threads; `publish` and `prune` by one of each at a
time on a host, by any number of hosts.
"""

import contextlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from cowsync.base import head as head_format
from cowsync.base import snapshot as snapshot_format
from cowsync.base.folding import CUTS, Cuts, due, folded, segments
from cowsync.base.head import Entry, Head
from cowsync.base.layers import Layer, Layers, SegmentRef, overlaid, read_layer, ref_of
from cowsync.base.segment import TRAILER, Footer, Segment, name_of, read_footer, salted, tail_length
from cowsync.base.snapshot import Facts, Snapshot, Totals, totals_of
from cowsync.errors import Refused, StateDamaged
from cowsync.rows import Rows
from s3core.clock import Clock, SystemClock
from s3core.errors import NotFound, OutcomeUnknown, PreconditionFailed, StoreError
from s3core.store import ObjectStore

HEAD = "HEAD"
SEGMENTS = "segments/"
SNAPSHOTS = "snapshots/"
AGE_SECONDS = 24 * 3600
"""What is not named stays this long. A publish takes half of it at most, and counts on a segment that is there already
only when it is younger than a quarter: so what prune finds unnamed and old enough, nobody is about to name, even when a
host stood still for a quarter before it moved HEAD."""
_TRIES = 5
OPEN_BYTES = 48 << 20
"""Segments kept in memory, some MB each; the one used last stays whatever its size."""
_TAIL_BYTES = 16 << 10


@dataclass(frozen=True, slots=True)
class Pruned:
    """What prune took away. `left` says what it could not remove, by key; the next prune finds it again."""

    snapshots: int
    segments: int
    bytes: int
    left: dict[str, StoreError]


NO_CHANGE = Totals()


class State:
    """`store` holds the state, `cache` is a folder of this host. Is a `Library`; whoever reads in order needs few
    `open_bytes`."""

    def __init__(
        self,
        store: ObjectStore,
        cache: Path,
        *,
        clock: Clock | None = None,
        cuts: Cuts = CUTS,
        workers: int = 8,
        open_bytes: int = OPEN_BYTES,
    ) -> None:
        self._store = store
        self._cache = cache
        self._clock = clock or SystemClock()
        self._cuts = cuts
        self._workers = workers
        self._open_bytes = open_bytes
        # Guards the segments in memory, the last used at the end.
        self._lock = threading.Lock()
        self._open: OrderedDict[str, Segment] = OrderedDict()
        cache.mkdir(parents=True, exist_ok=True)

    # Reading

    def head(self) -> Head:
        """HEAD as it is now. StateDamaged, StoreError."""
        try:
            body = self._store.get(HEAD)
        except NotFound as error:
            if not error.key:
                # The bucket: nothing is known of what it held, and a run that begins anew could not publish either.
                raise
            return Head()
        return Head(body.etag, head_format.decode(body.data))

    def snapshot(self, name: str) -> Snapshot:
        return snapshot_format.decode(self._named(SNAPSHOTS + name + ".json"), name)

    def segment(self, ref: SegmentRef) -> Segment:
        """From memory, the cache or the store; the digest is compared each time that it comes into memory."""
        with self._lock:
            known = self._open.get(ref.name)
            if known is not None:
                self._open.move_to_end(ref.name)
                return known
        made = Segment(self._cached(ref.name) or self._fetched(ref.name), _key(ref.name))
        with self._lock:
            self._open[ref.name] = made
            held = sum(len(segment.data) for segment in self._open.values())
            while held > self._open_bytes and len(self._open) > 1:
                held -= len(self._open.popitem(last=False)[1].data)
        return made

    def footer(self, ref: SegmentRef) -> Footer:
        try:
            return self._footer(ref)
        except StateDamaged:
            # Perhaps in the cache alone, which the whole file's digest tells.
            return self.segment(ref).footer

    def _footer(self, ref: SegmentRef) -> Footer:
        length = min(_TAIL_BYTES, ref.stored)
        tail = self._tail(ref, length)
        needed = tail_length(tail[-TRAILER.size :], _key(ref.name))
        if length < needed <= ref.stored:
            tail = self._tail(ref, needed)
        return read_footer(tail, ref.stored, _key(ref.name))

    def _tail(self, ref: SegmentRef, length: int) -> bytes:
        try:
            with self._path(ref.name).open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - length))
                return file.read()
        except FileNotFoundError:
            return self._named(_key(ref.name), (ref.stored - length, length))

    def _named(self, key: str, span: tuple[int, int] | None = None) -> bytes:
        try:
            return (self._store.get_range(key, *span) if span else self._store.get(key)).data
        except NotFound as error:
            raise StateDamaged(f"{key} is missing in {self._store.url}, and a snapshot names it") from error

    def _path(self, name: str) -> Path:
        return self._cache / f"{name}.seg"

    def _cached(self, name: str) -> bytes | None:
        """From the cache, where it is whole."""
        try:
            data = self._path(name).read_bytes()
        except FileNotFoundError:
            return None
        return data if name_of(data) == name else None

    def _fetched(self, name: str) -> bytes:
        data = self._named(_key(name))
        if name_of(data) != name:
            raise StateDamaged(f"{_key(name)} in {self._store.url} is damaged: its digest is {name_of(data)}")
        self._keep(name, data)
        return data

    def _keep(self, name: str, data: bytes) -> None:
        # Not synced: what a crash tears off has another digest, and is fetched or made again.
        staged = self._path(f"{name}.{os.getpid()}.{threading.get_ident()}")
        staged.write_bytes(data)
        staged.replace(self._path(name))

    # Publishing

    def publish(
        self,
        parent: Head,
        rows: Iterable[Rows],
        facts: Facts,
        change: Totals = NO_CHANGE,
        *,
        instead: bool = False,
        joined: bool = False,
        folding: bool = True,
    ) -> Head:
        """The snapshot after `parent` (which `head` gave): its rows with `rows` over them, REMOVED ones taking keys away.
        `change` is what that adds to the totals; where layers are folded, totals are counted. When it returns HEAD names
        the snapshot, durably. Refused: another host published first, or it took too long; then, and after any other
        error, the state is as it was, but for an OutcomeUnknown of HEAD: `head` tells, by `current`, whether it moved.

        `instead`: the parent is no longer kept, this one stands in its place. `joined`: `rows` go into the parent's last
        layer, so that many small snapshots after each other do not make as many. Without `folding` layers stay apart."""
        started = self._clock.monotonic()
        base = self.snapshot(parent.current) if parent.entries else None
        below = base.layers if base else ()
        # A crash here leaves files in the cache; the next publish of the same rows writes the same ones.
        if joined and below:
            rows, below = overlaid(read_layer(below[-1], self), iter(rows), removed=True), below[:-1]
        layers = self._layers(below, rows, folding=folding)
        if base is None or len(layers) < 2:
            totals = totals_of(layers[0]) if layers else Totals()
        else:
            totals = base.totals + change
        # A crash here or after leaves segments that nothing names; prune takes them when they are old.
        layers = self._put_segments(layers, {ref.name for layer in below for ref in layer})
        name = ""

        def manifest(salt: int) -> tuple[str, bytes]:
            nonlocal name
            made = snapshot_format.encode(Snapshot(facts, parent.current, totals, layers, salt))
            name = snapshot_format.name_of(made)
            return f"{SNAPSHOTS}{name}.json", made

        # A crash after this leaves a manifest that HEAD does not name, too; prune likewise.
        self._put_new(manifest)
        if self._clock.monotonic() - started > AGE_SECONDS / 2:
            raise Refused(
                f"publishing run {facts.run} took more than {AGE_SECONDS / 2 / 3600:g} hours, so that a prune may have "
                "taken what it put first",
                hint="nothing was changed; run again",
            )

        def entries(seen: Head) -> tuple[Entry, ...]:
            if seen.current != parent.current:
                raise Refused(
                    f"another host published snapshot {seen.current or '(none)'} while run {facts.run} was going on",
                    hint="nothing was lost; run again, from the state as it is now",
                )
            return (Entry(name, facts.run, facts.time), *seen.entries[1 if instead else 0 :])

        # This is the step that publishes. A crash before it is a run that never was, after it one that is done.
        return self._move(parent, entries)

    def _layers(self, below: Layers, rows: Iterable[Rows], *, folding: bool) -> Layers:
        if not below:
            rows = (piece.without_removed() for piece in rows)
        layer = tuple(self._made(data, footer) for data, footer in segments(rows, self._cuts))
        layers = (*below, layer) if layer else below
        if len(layers) < 2 or not folding or not due(layers):
            return layers
        bottom: Layer = tuple(
            item if isinstance(item, SegmentRef) else self._made(*item) for item in folded(layers, self, self._cuts)
        )
        return (bottom,) if bottom else ()

    def _made(self, data: bytes, footer: Footer) -> SegmentRef:
        ref = ref_of(data, footer)
        self._keep(ref.name, data)
        return ref

    def _put_segments(self, layers: Layers, there: Collection[str]) -> Layers:
        """Put what `there` does not have; returns the layers as they are named now."""
        new = [ref for layer in layers for ref in layer if ref.name not in there]
        with ThreadPoolExecutor(self._workers) as pool:
            final = dict(zip((ref.name for ref in new), pool.map(self._put_segment, new), strict=True))
        return tuple(tuple(final.get(ref.name, ref) for ref in layer) for layer in layers)

    def _put_segment(self, ref: SegmentRef) -> SegmentRef:
        data = self._cached(ref.name)
        if data is None:
            raise StateDamaged(f"{self._path(ref.name)}: what was written a moment ago is gone or damaged")

        def file(salt: int) -> tuple[str, bytes]:
            made = salted(data, salt)
            return _key(name_of(made)), made

        _, made = self._put_new(file)
        if made == data:
            return ref
        ref = replace(ref, name=name_of(made))
        self._keep(ref.name, made)
        return ref

    def _put_new(self, make: Callable[[int], tuple[str, bytes]]) -> tuple[str, bytes]:
        """Put what `make` makes of a salt, under the key that it gives it: the digest of what it made."""
        salt = 0
        for _ in range(_TRIES):
            key, data = make(salt)
            try:
                self._store.put_if_absent(key, data)
                return key, data
            except OutcomeUnknown:
                # The name says what the content is, so whoever put it, it is the same. Ask again.
                continue
            except PreconditionFailed:
                if self._is_young(key):
                    return key, data
            # Left over, and prune may be about to take it: the same under another name.
            salt += 1
        raise OutcomeUnknown(f"could not be put, {_TRIES} times", key=key)

    def _is_young(self, key: str) -> bool:
        try:
            return self._store.head(key).modified > self._clock.time() - AGE_SECONDS / 4
        except NotFound:
            return False

    def _move(self, seen: Head, change: Callable[[Head], tuple[Entry, ...]]) -> Head:
        """HEAD from what was `seen` to what `change` makes of it; again from what is there, when somebody was quicker."""
        for attempt in range(1, _TRIES + 1):
            entries = change(seen)
            body = head_format.encode(entries)
            try:
                if seen.etag:
                    return Head(self._store.put_if_match(HEAD, body, seen.etag), entries)
                return Head(self._store.put_if_absent(HEAD, body), entries)
            except (PreconditionFailed, NotFound, OutcomeUnknown) as error:
                try:
                    seen = self.head()
                except StoreError:
                    # Whether it moved is the question that stays open; why it cannot be answered now is not.
                    raise error from None
                if seen.entries == entries:
                    return seen
                if attempt == _TRIES:
                    raise
        raise AssertionError("every attempt returns, raises or goes on")

    # Pruning

    def prune(self, keep: Collection[str], *, age_seconds: float = AGE_SECONDS) -> Pruned:
        """Forget the snapshots that `keep` does not name, the newest excepted, and remove what no kept one needs and is
        older than `age_seconds` (less than AGE_SECONDS only when nobody can be publishing). StateDamaged, before anything
        is removed, where a kept manifest cannot be read."""
        head = self.head()
        drop = {entry.name for entry in head.entries[1:]} - set(keep)
        if drop:
            # From here on they are forgotten. A crash here or after leaves manifests and segments that nothing names;
            # the next prune finds them by listing, as it finds what a publish that died left.
            head = self._move(head, lambda seen: tuple(e for e in seen.entries if e.name not in drop))
        before = self._clock.time() - age_seconds
        old = {
            prefix: {info.key: info.size for info in self._store.list(prefix) if info.modified < before}
            for prefix in (SNAPSHOTS, SEGMENTS)
        }
        # Read after `before` was taken: what was old then and somebody was going to name has been named by now.
        named: set[str] = set()
        for entry in self.head().entries:
            named.add(SNAPSHOTS + entry.name + ".json")
            named.update(_key(ref.name) for layer in self.snapshot(entry.name).layers for ref in layer)
        left: dict[str, StoreError] = {}
        for prefix in (SNAPSHOTS, SEGMENTS):
            for key in named & old[prefix].keys():
                del old[prefix][key]
            left |= self._store.delete_many(sorted(old[prefix]))
        self._forget(named, before)
        gone = {prefix: [size for key, size in keys.items() if key not in left] for prefix, keys in old.items()}
        return Pruned(len(gone[SNAPSHOTS]), len(gone[SEGMENTS]), sum(map(sum, gone.values())), left)

    def _forget(self, named: Collection[str], before: float) -> None:
        """Files of the cache that nothing needs. A publish of this host may be about to need young ones."""
        for path in self._cache.iterdir():
            if SEGMENTS + path.name not in named:
                with contextlib.suppress(FileNotFoundError):
                    if path.stat().st_mtime < before:
                        path.unlink()


def _key(name: str) -> str:
    return f"{SEGMENTS}{name}.seg"

"""Asking a store what it really honours, with objects of our own that are removed again.

One rule: only what was seen counts. A check that could not be carried out is not passed, and says so by
`conclusive`; a promise in a manual or in `properties` passes nothing.
"""

import logging
import random as random_module
import statistics
import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from s3core.clock import Clock, SystemClock, system_random
from s3core.errors import Corrupt, NotFound, OutcomeUnknown, PreconditionFailed, StoreError, Unsupported
from s3core.observe import provoked
from s3core.store import ObjectStore

log = logging.getLogger(__name__)

_BARRIER_S = 60.0
_CLOCK_TOLERANCE_S = 60.0
"""S3 refuses signatures that are 15 minutes off; a minute is worth a word long before."""
_ONE_WRITER = "volumes: that only one host writes"
_EVERYTHING = "everything"
_FENCE_HINT = (
    "use an unversioned bucket on a server that honours If-None-Match on PUT; without it two hosts can destroy a volume"
)


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """One finding. `needed_for`: what may not run here when it is not `ok`. `hint`: what to do then.
    `conclusive` is False where the store could not be asked properly (out of reach, no permission)."""

    name: str
    ok: bool
    detail: str
    needed_for: str = ""
    hint: str = ""
    conclusive: bool = True


@dataclass(frozen=True, slots=True)
class Report:
    """All findings, and `figures`: measured values whose names end in their unit."""

    url: str
    findings: tuple[ProbeResult, ...]
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return all(finding.ok for finding in self.findings)


def race_conditional_put(
    store: ObjectStore, key_prefix: str, random: random_module.Random, racers: int = 8
) -> ProbeResult:
    """Let `racers` threads create one object below `key_prefix` at the same moment. Passed only if exactly one
    was told that it did, its bytes are what is read, and a further attempt is refused. The object is removed.
    With one racer no thread is started, for simulations: then only the further attempt is put to the test."""
    key = f"{key_prefix}race-{random.getrandbits(64):016x}"
    bodies = [b"racer %d %s" % (racer, random.randbytes(16).hex().encode()) for racer in range(racers)]
    try:
        return _judge_race(store, key, bodies, _race(store, key, bodies))
    except StoreError as error:
        return _failed("create once", error, _ONE_WRITER)
    finally:
        _remove(store, [key])


def probe_store(
    store: ObjectStore,
    *,
    key_prefix: str = "bucketworks-probe/",
    clock: Clock | None = None,
    random: random_module.Random | None = None,
    samples: int = 10,
    bulk_bytes: int = 8 * 1024 * 1024,
    on_result: Callable[[ProbeResult], None] | None = None,
    only: Collection[str] = (),
) -> Report:
    """Every check in turn, or `only` those of that name, telling `on_result` of each. Writes some twenty objects and twice
    `bulk_bytes` below `key_prefix`, and removes them. Stops early where not even one object can be written and read."""
    random = random or system_random()
    place = f"{key_prefix}{random.getrandbits(64):016x}/"
    probe = _Probe(store, place, clock or SystemClock(), random, samples, bulk_bytes)
    findings: list[ProbeResult] = []
    try:
        for name, needed_for, check in probe.checks():
            if only and name not in only:
                continue
            try:
                finding = check(name, needed_for)
            except StoreError as error:
                finding = _failed(name, error, needed_for)
            findings.append(finding)
            if on_result is not None:
                on_result(finding)
            if len(findings) == 1 and not finding.ok:
                break
    finally:
        # The uploads in parts were completed or aborted by their check; objects are all that is left.
        left = probe.remove_all()
    if left:
        finding = ProbeResult("clean up", False, left, "", f"remove {place} by hand")
        findings.append(finding)
        if on_result is not None:
            on_result(finding)
    return Report(store.url, tuple(findings), probe.figures)


Check = Callable[[str, str], ProbeResult]


class _Probe:
    """The checks, and what they share. Each takes its name and what it is needed for."""

    def __init__(
        self,
        store: ObjectStore,
        place: str,
        clock: Clock,
        random: random_module.Random,
        samples: int,
        bulk_bytes: int,
    ) -> None:
        self.store = store
        self.place = place
        self.clock = clock
        self.random = random
        self.samples = samples
        self.bulk_bytes = bulk_bytes
        self.figures: dict[str, float] = {}

    def checks(self) -> Iterator[tuple[str, str, Check]]:
        yield "read after write", _EVERYTHING, self.read_after_write
        yield "create once", _ONE_WRITER, self.create_once
        yield "replace if unchanged", "volumes and ledgers: taking over from another host", self.replace_if_unchanged
        yield "ranges", "volumes: reads", self.ranges
        yield "order of listings", "volumes: recovery; mirrors", self.order
        yield "delete", "volumes: giving space back", self.delete
        yield "metadata", "mirrors", self.metadata
        yield "copy", "mirrors, clones across volumes", self.copy
        yield "upload in parts", "images and backups larger than 5 GiB", self.parts
        yield "clock", "signed requests", self.clocks
        yield "speed", "", self.speed

    def read_after_write(self, name: str, needed_for: str) -> ProbeResult:
        key = self.place + "read"
        for attempt in range(3):
            body = self.random.randbytes(1000 + attempt)
            etag = self.store.put(key, body)
            read, head = self.store.get(key), self.store.head(key)
            if (read.data, read.etag, head.size, head.etag) != (body, etag, len(body), etag):
                detail = (
                    f"wrote {len(body)} bytes as version {etag}, read {len(read.data)} bytes of version {read.etag}"
                )
                hint = "the store answers from the past or changes objects: no tool here can work on it"
                return ProbeResult(name, False, detail, needed_for, hint)
        return ProbeResult(name, True, "each write was read back at once, as it was written", needed_for)

    def create_once(self, name: str, needed_for: str) -> ProbeResult:
        return race_conditional_put(self.store, self.place, self.random)

    def replace_if_unchanged(self, name: str, needed_for: str) -> ProbeResult:
        key = self.place + "replace"
        hint = "nothing here needs it: writers are fenced by `create once` alone"
        first = self.store.put(key, b"first")
        try:
            second = self.store.put_if_match(key, b"second", first)
        except PreconditionFailed:
            return ProbeResult(name, False, "the right ETag was refused (a versioned bucket?)", needed_for, hint)
        try:
            self.store.put_if_match(key, b"third", first)
        except PreconditionFailed:
            pass
        else:
            return ProbeResult(name, False, "a write on top of an outdated version was let through", needed_for, hint)
        read = self.store.get(key)
        if (read.data, read.etag) != (b"second", second):
            return ProbeResult(name, False, "a refused write left its traces", needed_for, hint)
        try:
            self.store.put_if_match(self.place + "absent", b"x", first)
        except (PreconditionFailed, NotFound):
            return ProbeResult(name, True, "outdated and missing versions were refused", needed_for)
        return ProbeResult(name, False, "a write on top of a missing object was let through", needed_for, hint)

    def ranges(self, name: str, needed_for: str) -> ProbeResult:
        key, body = self.place + "ranges", self.random.randbytes(100_000)
        self.store.put(key, body)
        for offset, length in ((0, 1), (4096, 4096), (99_999, 1), (1, 99_999)):
            if self.store.get_range(key, offset, length).data != body[offset : offset + length]:
                hint = "something between here and the store (proxy, cache) mishandles Range requests"
                return ProbeResult(name, False, f"wrong bytes for {length} at {offset}", needed_for, hint)
        try:
            with provoked(Corrupt):
                self.store.get_range(key, 99_999, 2)
        except Corrupt:
            return ProbeResult(name, True, "exact, and refused beyond the end", needed_for)
        return ProbeResult(name, False, "a range beyond the end was served", needed_for)

    def order(self, name: str, needed_for: str) -> ProbeResult:
        base = self.place + "list/"
        names = ["\U0001f4be", "a", "a b", "a+b", "a-b", "a/b", "a0", "b%2F", "\u00e4", "\ue000"]
        for key in names:
            self.store.put(base + key, b"")
        expected = sorted((base + key for key in names), key=str.encode)
        listed = [info.key for info in self.store.list(base)]
        after = [info.key for info in self.store.list(base, start_after=expected[3])]
        if listed == expected and after == expected[4:]:
            return ProbeResult(name, True, "complete, in the order of UTF-8, right after the writes", needed_for)
        if sorted(listed, key=str.encode) == expected and after == expected[4:]:
            detail, hint = "complete, but not in the order of UTF-8", "use a bucket type that lists in order"
        else:
            missing = sorted(set(expected) - set(listed))
            detail, hint = f"{len(missing)} of {len(expected)} new objects are not listed as they should", ""
        return ProbeResult(name, False, detail, needed_for, hint or "the store's listings lag behind or mangle names")

    def delete(self, name: str, needed_for: str) -> ProbeResult:
        keys = [f"{self.place}delete/{number}" for number in range(3)]
        for key in keys:
            self.store.put(key, b"x")
        self.store.delete(keys[0])
        failed = self.store.delete_many(keys[1:])
        if failed:
            return _failed(name, next(iter(failed.values())), needed_for)
        left = [info.key for info in self.store.list(self.place + "delete/")]
        try:
            self.store.get(keys[0])
        except NotFound:
            if not left:
                return ProbeResult(name, True, "gone at once, from reads and from listings", needed_for)
        return ProbeResult(name, False, "deleted objects are still there", needed_for, "deletes take effect late here")

    def metadata(self, name: str, needed_for: str) -> ProbeResult:
        key, metadata = self.place + "metadata", {"probe": "a b=c; d", "n": "1"}
        self.store.put(key, b"x", metadata=metadata)
        found = self.store.head(key).metadata
        if found == metadata:
            return ProbeResult(name, True, "came back as it was written", needed_for)
        return ProbeResult(name, False, f"wrote {metadata}, read {found}", needed_for, "a proxy may drop headers")

    def copy(self, name: str, needed_for: str) -> ProbeResult:
        source, target, body = self.place + "copy/from", self.place + "copy/to", self.random.randbytes(10_000)
        self.store.put(source, body, metadata={"probe": "1"})
        self.store.copy(source, target)
        if self.store.get(target).data != body:
            return ProbeResult(name, False, "the copy differs from its source", needed_for)
        if self.store.head(target).metadata != {"probe": "1"}:
            return ProbeResult(name, False, "the copy has lost its metadata", needed_for)
        where = "inside the store" if self.store.properties.server_copy else "by reading and writing"
        return ProbeResult(name, True, f"exact, {where}", needed_for)

    def parts(self, name: str, needed_for: str) -> ProbeResult:
        if not self.store.properties.multipart:
            return ProbeResult(name, False, "not offered by this store", needed_for)
        key, size = self.place + "parts", max(self.store.properties.part_bytes_min, 1000)
        first, last = self.random.randbytes(size), b"the end"
        upload = self.store.multipart(key)
        try:
            upload.part(2, last)
            upload.part(1, first)
            early = [info.key for info in self.store.list(key)]
            etag = upload.complete()
        except BaseException:
            upload.abort()
            raise
        read = self.store.get(key)
        if early:
            return ProbeResult(name, False, "the object was visible before it was complete", needed_for)
        if (read.data, read.etag) != (first + last, etag):
            return ProbeResult(name, False, "the object is not its parts in order", needed_for)
        return ProbeResult(name, True, "in order, and invisible before completion", needed_for)

    def clocks(self, name: str, needed_for: str) -> ProbeResult:
        key = self.place + "clock"
        before = self.clock.time()
        self.store.put(key, b"x")
        # Whole seconds in HTTP: half a second is added to what may have been cut off.
        off = self.store.head(key).modified + 0.5 - (before + self.clock.time()) / 2
        self.figures["clock_offset_s"] = round(off, 1)
        detail = f"the store's clock is {abs(off):.0f} s {'ahead of' if off > 0 else 'behind'} ours"
        if abs(off) <= _CLOCK_TOLERANCE_S:
            return ProbeResult(name, True, detail, needed_for)
        return ProbeResult(name, False, detail, needed_for, "set this machine's clock (chrony, systemd-timesyncd)")

    def speed(self, name: str, needed_for: str) -> ProbeResult:
        small, bulk = self.random.randbytes(4096), self.random.randbytes(self.bulk_bytes)
        puts, gets = [], []
        for number in range(self.samples):
            key = f"{self.place}speed/{number}"
            puts.append(self._seconds(partial(self.store.put, key, small)))
            gets.append(self._seconds(partial(self.store.get, key)))
        up_s = self._seconds(lambda: self.store.put(self.place + "bulk", bulk))
        down_s = self._seconds(lambda: self.store.get(self.place + "bulk"))
        mib = self.bulk_bytes / 1024**2
        self.figures |= {
            "put_4k_median_ms": round(statistics.median(puts) * 1000, 3),
            "put_4k_max_ms": round(max(puts) * 1000, 3),
            "get_4k_median_ms": round(statistics.median(gets) * 1000, 3),
            "get_4k_max_ms": round(max(gets) * 1000, 3),
            "put_mib_per_s": round(mib / max(up_s, 1e-9), 1),
            "get_mib_per_s": round(mib / max(down_s, 1e-9), 1),
        }
        detail = (
            f"4 KiB: PUT {self.figures['put_4k_median_ms']:g} ms, GET {self.figures['get_4k_median_ms']:g} ms (median);"
            f" one stream: up {self.figures['put_mib_per_s']:g} MiB/s, down {self.figures['get_mib_per_s']:g} MiB/s"
        )
        return ProbeResult(name, True, detail, needed_for)

    def remove_all(self) -> str:
        """Empty when everything is gone, otherwise what stands in the way."""
        try:
            failed = self.store.delete_many([info.key for info in self.store.list(self.place)])
        except StoreError as error:
            return str(error)
        return "; ".join(str(error) for error in failed.values())

    def _seconds(self, action: Callable[[], object]) -> float:
        began = self.clock.monotonic()
        action()
        return self.clock.monotonic() - began


def _race(store: ObjectStore, key: str, bodies: list[bytes]) -> list[str | StoreError]:
    """What each racer was told: its ETag or an error."""
    barrier = threading.Barrier(len(bodies))

    def run(body: bytes) -> str | StoreError:
        barrier.wait(_BARRIER_S)
        try:
            return store.put_if_absent(key, body)
        except StoreError as error:
            return error

    if len(bodies) == 1:
        return [run(bodies[0])]
    with ThreadPoolExecutor(len(bodies), "probe") as pool:
        return list(pool.map(run, bodies))


def _judge_race(store: ObjectStore, key: str, bodies: list[bytes], told: list[str | StoreError]) -> ProbeResult:
    def verdict(ok: bool, detail: str, *, conclusive: bool = True) -> ProbeResult:
        return ProbeResult("create once", ok, detail, _ONE_WRITER, "" if ok else _FENCE_HINT, conclusive)

    winners = [racer for racer, outcome in enumerate(told) if isinstance(outcome, str)]
    unknown = [racer for racer, outcome in enumerate(told) if isinstance(outcome, OutcomeUnknown)]
    if len(winners) > 1:
        return verdict(False, f"{len(winners)} of {len(bodies)} racing writers were told that they created the object")
    if not winners and not unknown:
        for outcome in told:
            if not isinstance(outcome, str | PreconditionFailed):
                return _failed("create once", outcome, _ONE_WRITER)
        return verdict(False, "every racing writer was refused, though there was no object")
    try:
        held = store.get(key).data
    except NotFound:
        if winners:
            return verdict(False, "a writer was told that it created the object, and there is none")
        return verdict(False, "no writer learned how the race ended: try again", conclusive=False)
    if held not in [bodies[racer] for racer in winners or unknown]:
        return verdict(False, "the object holds the bytes of a writer that was refused")
    try:
        store.put_if_absent(key, b"one more")
    except PreconditionFailed:
        pass
    except StoreError as error:
        return _failed("create once", error, _ONE_WRITER)
    else:
        return verdict(False, "an object that existed was created again")
    if store.get(key).data != held:
        return verdict(False, "a refused writer replaced the object")
    refused = sum(isinstance(outcome, PreconditionFailed) for outcome in told)
    if len(bodies) > 1 and refused + len(unknown) == 0:
        return verdict(False, "all racing writers but one failed before they could race: try again", conclusive=False)
    return verdict(True, f"one of {len(bodies)} racing writers won, the others were refused")


def _failed(name: str, error: StoreError, needed_for: str) -> ProbeResult:
    plain = str(error).removesuffix(f" ({error.hint})")
    return ProbeResult(name, False, plain, needed_for, error.hint, conclusive=isinstance(error, Unsupported))


def _remove(store: ObjectStore, keys: list[str]) -> None:
    for key, error in store.delete_many(keys).items():
        log.warning("probe object was left behind: key=%s error=%s", key, error)

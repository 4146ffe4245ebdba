"""What a plan would do and cost, in figures: counted while its lines stream by, shown to whoever decides.

One rule: memory does not grow with the plan. Keys come in ascending order, so all of one top prefix come together and
only the largest are kept. Requests and money are estimates from what lines say; what is not known is said as not known.
"""

import heapq
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from cowsync.changes import Op, PlanLine
from cowsync.errors import StateDamaged
from cowsync.sealing.format import sealed_bytes
from s3core.bucket import COPY_BYTES_MAX
from s3core.endpoint import Prices
from s3core.quantities import shown_duration, shown_size

PREFIXES_SHOWN = 100
OBJECTS_SHOWN = 20
HOT_SHOWN = 20
PARTS_MAX = 10_000
"""Of one multipart upload (S3 API reference); larger objects get larger parts."""
COPY_PART_BYTES = 512 << 20
"""Of an object that the server copies in parts."""
GIB = 1024**3
COPYING = (Op.ADD, Op.MODIFY)


@dataclass(frozen=True, slots=True)
class Terms:
    """How lines would be carried out, which decides what they cost. `server_copy`: both ends are one endpoint, whose
    CopyObject takes `copy_bytes_max`. Else bytes are streamed, in parts of `part_bytes` where an object is larger than
    one, or as the source's parts are. `tagged`: objects have tags, which a streamed copy reads with a request of their
    own. `sealed`: what is put on the target is encrypted before. `checks`: the target is looked at (HEAD) before it is
    written. `quarantine`: removing is a copy and a delete, else a delete alone. `scan_lists` and `scan_heads` are
    the requests the scan has cost, all at the source. Prices are of the source's and the target's endpoint."""

    source: Prices
    target: Prices
    server_copy: bool = False
    copy_bytes_max: int = COPY_BYTES_MAX
    part_bytes: int = 64 << 20
    tagged: bool = False
    checks: bool = True
    quarantine: bool = True
    scan_lists: int = 0
    scan_heads: int = 0
    sealed: bool = False

    def stored(self, size: int) -> int:
        """About what an object of `size` bytes takes on the target."""
        return sealed_bytes(size) if self.sealed else size


@dataclass(frozen=True, slots=True)
class Rates:
    """What earlier runs achieved: objects carried out per second, and bytes per second of the large ones. 0: unknown."""

    objects_per_s: float = 0.0
    bytes_per_s: float = 0.0


@dataclass(slots=True)
class Count:
    objects: int = 0
    bytes: int = 0

    def add(self, size: int) -> None:
        self.objects += 1
        self.bytes += size


@dataclass(slots=True)
class Requests:
    """`reads` are HEAD, GET and tag reads at the source, `checks` HEADs at the target; `writes` PUT, COPY and multipart
    requests, at the target; `parts` those of them that carry a part; `deletes` cost nothing anywhere we know of."""

    reads: int = 0
    checks: int = 0
    writes: int = 0
    parts: int = 0
    deletes: int = 0
    scan_lists: int = 0
    scan_heads: int = 0


@dataclass(frozen=True, slots=True)
class Money:
    """At one end, in `currency`. `month` is what the bytes this plan adds cost to keep for a month."""

    currency: str
    scan: float
    requests: float
    egress: float
    month: float

    @property
    def once(self) -> float:
        return self.scan + self.requests + self.egress


@dataclass(frozen=True, slots=True)
class Summary:
    """A plain value. `ops`, `prefixes` and `classes` are by op, by first component of the key ("" for keys without
    `/`) and op, and by storage class ("" where the source tells none; copies only). `growth_bytes` is what the mirror
    gains, `streamed_bytes` what goes through us. `seconds` is None where no earlier run told a rate."""

    lines: int
    ops: Mapping[str, Count]
    prefixes: tuple[tuple[str, Mapping[str, Count]], ...]
    prefixes_all: int
    classes: Mapping[str, Count]
    hot: Count
    hot_keys: tuple[str, ...]
    largest: tuple[tuple[int, str], ...]
    streamed_bytes: int
    copied_bytes: int
    growth_bytes: int
    requests: Requests
    source_cost: Money
    target_cost: Money
    seconds: float | None

    def to_json(self) -> dict[str, object]:
        return {
            "lines": self.lines,
            "ops": {name: asdict(count) for name, count in self.ops.items()},
            "prefixes": [
                {"prefix": prefix, "ops": {name: asdict(count) for name, count in ops.items()}}
                for prefix, ops in self.prefixes
            ],
            "prefixes_all": self.prefixes_all,
            "classes": {name: asdict(count) for name, count in self.classes.items()},
            "hot": {**asdict(self.hot), "keys": list(self.hot_keys)},
            "largest": [{"key": key, "bytes": size} for size, key in self.largest],
            "bytes": {"streamed": self.streamed_bytes, "copied": self.copied_bytes, "growth": self.growth_bytes},
            "requests": asdict(self.requests),
            "cost": {
                "source": {**asdict(self.source_cost), "once": self.source_cost.once},
                "target": {**asdict(self.target_cost), "once": self.target_cost.once},
            },
            "seconds": self.seconds,
        }

    def text(self) -> str:
        """A page for people, without colours."""
        return "\n".join(_page(self)) + "\n"


def summary_from_json(document: Mapping[str, Any]) -> Summary:
    """What `to_json` gave, such as `Plan.summary` reads it. StateDamaged for anything else."""
    try:
        moved, cost, hot = document["bytes"], document["cost"], document["hot"]
        return Summary(
            int(document["lines"]),
            _counts(document["ops"]),
            tuple((str(one["prefix"]), _counts(one["ops"])) for one in document["prefixes"]),
            int(document["prefixes_all"]),
            _counts(document["classes"]),
            Count(int(hot["objects"]), int(hot["bytes"])),
            tuple(map(str, hot["keys"])),
            tuple((int(one["bytes"]), str(one["key"])) for one in document["largest"]),
            int(moved["streamed"]),
            int(moved["copied"]),
            int(moved["growth"]),
            Requests(**{name: int(count) for name, count in document["requests"].items()}),
            _money(cost["source"]),
            _money(cost["target"]),
            None if document["seconds"] is None else float(document["seconds"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StateDamaged("the summary of the plan lacks a field, or one is of the wrong type") from error


def _counts(document: Mapping[str, Any]) -> dict[str, Count]:
    return {str(name): Count(int(one["objects"]), int(one["bytes"])) for name, one in document.items()}


def _money(document: Mapping[str, Any]) -> Money:
    return Money(
        str(document["currency"]),
        *(float(document[name]) for name in ("scan", "requests", "egress", "month")),
    )


@dataclass(slots=True)
class Tally:
    """Counts lines as they stream by. One owner; not shared between threads."""

    terms: Terms
    lines: int = 0
    _ops: dict[str, Count] = field(default_factory=dict)
    _classes: dict[str, Count] = field(default_factory=dict)
    _hot: Count = field(default_factory=Count)
    _hot_keys: list[str] = field(default_factory=list)
    _largest: list[tuple[int, str]] = field(default_factory=list)
    _prefix: str | None = None
    _prefix_ops: dict[str, Count] = field(default_factory=dict)
    _rootless: dict[str, Count] = field(default_factory=dict)
    _prefixes: list[tuple[int, int, str, dict[str, Count]]] = field(default_factory=list)
    _prefixes_all: int = 0
    _requests: Requests = field(default_factory=Requests)
    _streamed: int = 0
    _copied: int = 0
    _growth: int = 0

    def watch(self, lines: Iterable[PlanLine]) -> Iterator[PlanLine]:
        """The same lines, counted on their way."""
        for line in lines:
            self.add(line)
            yield line

    def add(self, line: PlanLine) -> None:
        """Count one line. Lines come in ascending order of key."""
        op, size = line.op.value, line.size
        self.lines += 1
        self._ops.setdefault(op, Count()).add(size)
        self._count_prefix(line.key, op, size)
        if line.hot:
            self._hot.add(size)
            if len(self._hot_keys) < HOT_SHOWN:
                self._hot_keys.append(line.key)
        if line.op in COPYING:
            self._classes.setdefault(line.storage_class, Count()).add(size)
            if len(self._largest) < OBJECTS_SHOWN:
                heapq.heappush(self._largest, (size, line.key))
            elif size > self._largest[0][0]:
                heapq.heapreplace(self._largest, (size, line.key))
            self._copy(line)
        elif line.op is Op.REMOVE:
            self._requests.deletes += 1
            self._requests.checks += self.terms.checks
            if self.terms.quarantine:
                self._server_copy(line)

    def summary(self, rates: Rates = Rates()) -> Summary:
        """What has been counted so far."""
        terms, requests = self.terms, self._requests
        requests.scan_lists, requests.scan_heads = terms.scan_lists, terms.scan_heads
        read_money = requests.reads * terms.source.per_1000_get / 1000
        write_money = requests.writes * terms.target.per_1000_put + requests.checks * terms.target.per_1000_get
        source = Money(
            terms.source.currency,
            (terms.scan_lists * terms.source.per_1000_put + terms.scan_heads * terms.source.per_1000_get) / 1000,
            read_money,
            self._streamed / GIB * terms.source.per_gib_egress,
            0.0,
        )
        month = max(self._growth, 0) / GIB * terms.target.per_gib_month
        target = Money(terms.target.currency, 0.0, write_money / 1000, 0.0, month)
        prefixes = [*self._prefixes]
        for name, ops in ((self._prefix, self._prefix_ops), ("", self._rootless)):
            if ops:
                prefixes.append(_ranked(name or "", ops))
        prefixes.sort(key=lambda one: (-one[0], -one[1], one[2]))
        return Summary(
            self.lines,
            {op.value: self._ops[op.value] for op in Op if op.value in self._ops},
            tuple((name, ops) for _, _, name, ops in prefixes[:PREFIXES_SHOWN]),
            self._prefixes_all + bool(self._rootless),
            dict(sorted(self._classes.items())),
            self._hot,
            tuple(self._hot_keys),
            tuple(sorted(self._largest, key=lambda one: (-one[0], one[1]))),
            self._streamed,
            self._copied,
            self._growth,
            requests,
            source,
            target,
            self._seconds(rates),
        )

    def _count_prefix(self, key: str, op: str, size: int) -> None:
        slash = key.find("/")
        if slash < 0:
            self._rootless.setdefault(op, Count()).add(size)
            return
        prefix = key[: slash + 1]
        if prefix != self._prefix:
            self._close_prefix()
            self._prefix, self._prefix_ops = prefix, {}
            self._prefixes_all += 1
        self._prefix_ops.setdefault(op, Count()).add(size)

    def _close_prefix(self) -> None:
        if self._prefix is None or not self._prefix_ops:
            return
        ranked = _ranked(self._prefix, self._prefix_ops)
        if len(self._prefixes) < PREFIXES_SHOWN:
            heapq.heappush(self._prefixes, ranked)
        elif ranked[:2] > self._prefixes[0][:2]:
            heapq.heapreplace(self._prefixes, ranked)

    def _copy(self, line: PlanLine) -> None:
        terms, requests, size = self.terms, self._requests, line.size
        replaced = line.op is Op.MODIFY and not line.ordinal
        self._growth += terms.stored(size) - (terms.stored(line.was_size) if replaced else 0)
        requests.checks += terms.checks
        if terms.server_copy:
            self._copied += size
            self._server_copy(line)
            return
        self._streamed += size
        source_parts = _source_parts(line)
        requests.reads += 1 + terms.tagged
        if size <= terms.part_bytes and not source_parts:
            requests.reads += 1 if size else 0
            requests.writes += 1
        else:
            parts = source_parts or _parts(size, terms.part_bytes)
            requests.reads += parts
            requests.checks += terms.checks
            self._upload(parts)

    def _server_copy(self, line: PlanLine) -> None:
        if line.size <= self.terms.copy_bytes_max:
            self._requests.writes += 1
            return
        self._requests.reads += 1
        self._upload(_source_parts(line) or _parts(line.size, max(self.terms.part_bytes, COPY_PART_BYTES)))

    def _upload(self, parts: int) -> None:
        """A multipart upload: its beginning, its parts, its end."""
        self._requests.parts += parts
        self._requests.writes += parts + 2

    def _seconds(self, rates: Rates) -> float | None:
        moved = self._streamed + self._copied
        acting = sum(self._ops[op.value].objects for op in (*COPYING, Op.REMOVE) if op.value in self._ops)
        if not acting:
            return 0.0
        if not rates.objects_per_s:
            return None
        return acting / rates.objects_per_s + (moved / rates.bytes_per_s if rates.bytes_per_s else 0.0)


def _source_parts(line: PlanLine) -> int:
    """Parts the source was uploaded in, as the end of its ETag tells; 0 where it does not."""
    count = line.etag.rpartition("-")[2] if "-" in line.etag and line.size else ""
    return min(int(count), PARTS_MAX) if count.isdecimal() and len(count) <= 5 else 0


def _parts(size: int, part_bytes: int) -> int:
    return min(-(-size // part_bytes), PARTS_MAX)


def _ranked(prefix: str, ops: dict[str, Count]) -> tuple[int, int, str, dict[str, Count]]:
    return sum(one.bytes for one in ops.values()), sum(one.objects for one in ops.values()), prefix, ops


def _page(summary: Summary) -> Iterator[str]:
    if not summary.lines:
        yield "nothing to do: the mirror has what the source has"
    for op, count in summary.ops.items():
        yield f"{op:8} {count.objects:>14,} objects {shown_size(count.bytes):>12}"
    requests = summary.requests
    yield f"moves    {shown_size(summary.streamed_bytes)} through here, {shown_size(summary.copied_bytes)} in the server"
    yield (
        f"requests {requests.writes:,} writes ({requests.parts:,} of them parts), {requests.reads + requests.checks:,}"
        f" reads, {requests.deletes:,} deletes; the scan took {requests.scan_lists:,} lists"
        + (f" and {requests.scan_heads:,} heads" if requests.scan_heads else "")
    )
    for end, money in (("source", summary.source_cost), ("target", summary.target_cost)):
        month = f", then {money.month:,.2f} a month" if money.month else ""
        yield f"{end:8} {money.once:,.4f} {money.currency}{month}"
    unknown = "not known: no run was long enough to tell"
    yield f"time     {unknown if summary.seconds is None else shown_duration(summary.seconds)}"
    if summary.hot.objects:
        yield f"hot      {summary.hot.objects:,} objects changed while they were listed, such as {summary.hot_keys[0]!r}"
    if summary.prefixes:
        yield f"largest prefixes, of {summary.prefixes_all:,}:"
        for prefix, ops in summary.prefixes[:10]:
            told = ", ".join(f"{op} {count.objects:,} ({shown_size(count.bytes)})" for op, count in ops.items())
            yield f"  {prefix or '(no prefix)'}  {told}"
    if summary.largest:
        yield "largest objects:"
        for size, key in summary.largest[:5]:
            yield f"  {shown_size(size):>12}  {key!r}"

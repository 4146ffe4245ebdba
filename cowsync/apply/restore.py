"""A snapshot's state brought back to a place: the source, or any other bucket and prefix.

One rule: a restore is a plan like any other, from the mirror to that place, and what cannot be had is known before
anything moves. It is carried out by `apply_plan`, with its journal, limits and checks: what somebody changed at the
place after the plan was made is left alone.

Where the bytes of a row are looked for, by the ETag and version id that the mirror answered:

    a mirror that has or had versions   any version, also one that a later run covered with another or a delete marker
    any mirror                          the current object; the trash of any run

Nothing is deleted at the place unless asked; then as on a mirror, by a delete marker or into `.cowsync/trash/` there.
In a restore's plan `gone` of a line that copies is the run in whose trash the bytes lie, 0 for their own key.
"""

import heapq
import operator
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Generic, NamedTuple, Protocol, TypeVar

from cowsync.apply.copy_line import KEY_BYTES_MAX, Place, trash_key, trash_prefix
from cowsync.apply.run import ApplyResult, ApplySettings, Plan, Progress, apply_plan
from cowsync.changes import Op, PlanLine
from cowsync.errors import Refused
from cowsync.plan.format import PlanHead
from cowsync.plan.plan_file import Plan as PlanFile
from cowsync.plan.plan_file import write_plan
from cowsync.rows import Row, Rows
from cowsync.scan.listing import Listed, check_rising, pages
from cowsync.scan.ranges import WHOLE
from cowsync.sealing.format import may_be
from s3core.clock import Clock
from s3core.errors import NotFound, Unsupported

_NULL_VERSION = "null"


@dataclass(slots=True)
class RestoreReport:
    """What a restore would do. `keys` the snapshot has, of which `present` are at the place already, `copies` are to be
    copied (`overwrites` of them over something else, `from_trash` of them from the trash), `kept` are something else at
    the place and stay, and `unavailable` cannot be had from the mirror any more. `extra` is at the place and not in the
    snapshot. `examples` are the first keys that are unavailable."""

    keys: int = 0
    present: int = 0
    copies: int = 0
    copy_bytes: int = 0
    overwrites: int = 0
    from_trash: int = 0
    kept: int = 0
    unavailable: int = 0
    unavailable_bytes: int = 0
    extra: int = 0
    deletes: int = 0
    examples: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class RestoreOptions:
    """`overwrite`: objects at the place that are not the snapshot's are replaced. `delete`: those that it does not have
    are removed. `vanished`: keys that the source had lost by then, and the mirror kept, come back too."""

    overwrite: bool = False
    delete: bool = False
    vanished: bool = False
    examples_kept: int = 100


class Copy(NamedTuple):
    """Bytes on the mirror: under their own key (`run` 0), where `version_id` "" is the current object, or in the trash
    of a run."""

    key: bytes
    etag: str
    size: int
    version_id: str
    run: int


def plan_restore(
    plans: Path,
    rows: Iterable[Rows],
    mirror: Place,
    place: Place,
    *,
    name: str,
    snapshot: str,
    run: int,
    options: RestoreOptions | None = None,
    sealed: bool = False,
    on_unavailable: Callable[[Row], None] | None = None,
) -> tuple[PlanFile, RestoreReport]:
    """The dry run: the plan, durable below `plans`, and what it comes to. `rows` are the snapshot's, `name` the
    mirror's, `run` a new number. Lists mirror and place, moves nothing. `sealed`: the
    mirror is encrypted. `on_unavailable` hears of every row that cannot
    be had. Raises Refused, StoreError, Unordered."""
    if (mirror.bucket.url, mirror.prefix) == (place.bucket.url, place.prefix):
        raise Refused("a mirror is not restored onto itself", hint="name the source, or another bucket or prefix")
    report = RestoreReport()
    lines = restore_lines(rows, mirror, place, report, options or RestoreOptions(), on_unavailable, sealed=sealed)
    head = PlanHead(name, f"{mirror.bucket.url}/{mirror.prefix}", f"{place.bucket.url}/{place.prefix}", snapshot, run)
    return write_plan(plans, head, lines, summary=report.to_json), report


def apply_restore(
    plan: Plan,
    mirror: Place,
    place: Place,
    directory: Path,
    *,
    run: int,
    settings: ApplySettings | None = None,
    stop: threading.Event | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    clock: Clock | None = None,
) -> ApplyResult:
    """Carry out what is left of a restore's plan; as `apply_plan`. Parts are kept, so that an object comes back with
    the ETag that it had on the mirror. What the plan removes was asked for: `removals`, which is about the mirror, is not."""
    settings = settings or ApplySettings()
    return apply_plan(
        plan,
        mirror,
        place,
        directory,
        run=run,
        settings=replace(settings, removals=True, transfer=replace(settings.transfer, keep_parts=True)),
        stop=stop,
        on_progress=on_progress,
        clock=clock,
        locate=lambda line: mirror.key(trash_key(line.gone, line.key, mirror.prefix) if line.gone else line.key),
    )


def restore_lines(
    rows: Iterable[Rows],
    mirror: Place,
    place: Place,
    report: RestoreReport,
    options: RestoreOptions,
    on_unavailable: Callable[[Row], None] | None = None,
    *,
    sealed: bool = False,
) -> Iterator[PlanLine]:
    """The lines, ascending by key; `report` is complete after the last. Memory is bounded by pages and trash runs."""
    runs = trash_runs(mirror)
    copies = _Ahead(_all_copies(mirror, runs))
    there = _Ahead(row for page in pages(place.bucket, place.prefix, WHOLE, Listed(b"")) for row in page)
    for row in (row for piece in rows for row in piece if options.vanished or not row.gone):
        yield from _extra(there.before(row.key), report, options)
        report.keys += 1
        held = next(iter(there.at(row.key)), None)
        if held is not None and held.size == row.size and held.etag in (row.etag, row.mirror_etag):
            report.present += 1
            continue
        found = best_copy(row, copies.at(row.key), sealed=sealed) or _long_named(row, mirror, runs, sealed=sealed)
        if found is None:
            report.unavailable += 1
            report.unavailable_bytes += row.size
            if len(report.examples) < options.examples_kept:
                report.examples.append(row.key.decode())
            if on_unavailable is not None:
                on_unavailable(row)
        elif held is not None and not options.overwrite:
            report.kept += 1
        else:
            report.copies += 1
            report.copy_bytes += row.size
            report.overwrites += held is not None
            report.from_trash += bool(found.run)
            yield _line(row, found, held)
    yield from _extra(there.before(None), report, options)


def best_copy(row: Row, copies: Iterable[Copy], *, sealed: bool = False) -> Copy | None:
    """The copy that the row speaks of: the version it names, else bytes of that ETag and size, rather where they belong
    than in the trash."""
    etag, version_id = row.mirror_etag.decode(), row.mirror_version.decode()
    fits = may_be if sealed else operator.eq
    fitting = [copy for copy in copies if copy.etag == etag and fits(copy.size, row.size)]
    return min(fitting, key=lambda copy: (copy.version_id != version_id, copy.run), default=None)


def trash_runs(mirror: Place) -> list[int]:
    """Runs whose trash holds something, ascending."""
    found: set[int] = set()
    trash, after = mirror.key(trash_prefix()), ""
    while True:
        page = mirror.bucket.list_page(prefix=trash, start_after=after, delimiter="/")
        names = [prefix.decode()[len(trash) : -1] for prefix in page.prefixes]
        found.update(int(name) for name in names if name.isascii() and name.isdigit())
        if not page.truncated:
            return sorted(found)
        # "0" follows "/": behind everything in the last folder.
        last = page.last.decode()
        after = last[:-1] + "0" if last.endswith("/") else last


def _line(row: Row, copy: Copy, held: Row | None) -> PlanLine:
    where = f"from the trash of run {copy.run}" if copy.run else "from the mirror"
    return PlanLine(
        Op.ADD if held is None else Op.MODIFY,
        row.key.decode(),
        row.size,
        copy.etag,
        row.modified.decode(),
        copy.version_id,
        row.storage_class.decode(),
        held.size if held else 0,
        held.etag.decode() if held else "",
        mirror_etag=held.etag.decode() if held else "",
        gone=copy.run,
        reason=where,
    )


def _extra(rows: Iterable[Row], report: RestoreReport, options: RestoreOptions) -> Iterator[PlanLine]:
    for row in rows:
        report.extra += 1
        if options.delete:
            report.deletes += 1
            etag = row.etag.decode()
            yield PlanLine(
                Op.REMOVE,
                row.key.decode(),
                row.size,
                etag,
                row.modified.decode(),
                mirror_etag=etag,
                reason="not in the snapshot",
            )


def _all_copies(mirror: Place, runs: list[int]) -> Iterator[Copy]:
    streams = [_copies_in_trash(mirror, run) for run in runs]
    return heapq.merge(_own_copies(mirror), *streams, key=lambda copy: copy.key)


def _own_copies(mirror: Place) -> Iterator[Copy]:
    """Versions, where the store knows such a thing; else current objects."""
    try:
        yield from _versions(mirror)
    except Unsupported:
        for page in pages(mirror.bucket, mirror.prefix, WHOLE, Listed(b"")):
            for row in page:
                yield Copy(row.key, row.etag.decode(), row.size, "", 0)


def _versions(mirror: Place) -> Iterator[Copy]:
    key_marker = version_marker = ""
    before = b""
    while True:
        page = mirror.bucket.list_versions(prefix=mirror.prefix, key_marker=key_marker, version_marker=version_marker)
        for version in page.versions:
            key = version.key[len(mirror.prefix) :].encode()
            if key != before:
                check_rising(before, [key])
                before = key
            if version.delete_marker:
                continue
            # The current object is pinned by its ETag; its version id too where it has one of its own.
            unnamed = version.version_id == _NULL_VERSION and version.latest
            yield Copy(key, version.etag, version.size, "" if unnamed else version.version_id, 0)
        key_marker, version_marker = page.next_key_marker, page.next_version_marker
        if not key_marker:
            return


def _copies_in_trash(mirror: Place, run: int) -> Iterator[Copy]:
    for page in pages(mirror.bucket, mirror.key(trash_prefix(run)), WHOLE, Listed(b"")):
        for row in page:
            yield Copy(row.key, row.etag.decode(), row.size, "", run)


def _long_named(row: Row, mirror: Place, runs: list[int], *, sealed: bool = False) -> Copy | None:
    """Keys too long to be in the trash under their own name are asked for one by one."""
    key = row.key.decode()
    for run in runs:
        if len((mirror.prefix + trash_prefix(run)).encode() + row.key) <= KEY_BYTES_MAX:
            continue
        try:
            facts = mirror.bucket.head(mirror.key(trash_key(run, key, mirror.prefix)))
        except NotFound:
            continue
        found = best_copy(row, [Copy(row.key, facts.etag, facts.size, "", run)], sealed=sealed)
        if found is not None:
            return found
    return None


class _Keyed(Protocol):
    @property
    def key(self) -> bytes: ...


_Item = TypeVar("_Item", bound=_Keyed)


class _Ahead(Generic[_Item]):
    """A stream in ascending order of key, taken up to a key at a time."""

    def __init__(self, items: Iterable[_Item]) -> None:
        self._items = iter(items)
        self._next = next(self._items, None)

    def before(self, key: bytes | None) -> Iterator[_Item]:
        """All that comes before `key`, everything with None; to be used up before anything else is asked."""
        while self._next is not None and (key is None or self._next.key < key):
            item, self._next = self._next, next(self._items, None)
            yield item

    def at(self, key: bytes) -> list[_Item]:
        """What has that key; whatever comes before it is passed over."""
        found: list[_Item] = []
        while self._next is not None and self._next.key <= key:
            if self._next.key == key:
                found.append(self._next)
            self._next = next(self._items, None)
        return found

"""Whether the mirror holds what the base says: by its listing for a request per thousand objects, by its bytes where
asked.

One rule: an object counts as intact only when it was compared. What could not be compared has a count of its own.

The listing is compared with the ETags that the mirror answered when the objects were put there, so it is exact though
source and mirror may have other ETags for equal bytes. Reading again compares SHA-256 of both ends. Which objects a
sample takes depends on their keys and `seed` alone: another seed, other objects.
"""

import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from hashlib import md5, sha256
from itertools import islice
from pathlib import Path

from cowsync.apply.copy_line import Place, trash_prefix
from cowsync.apply.transfer import MIB, NoPace, Pace
from cowsync.base.difference import Kind, differences
from cowsync.rows import Row, Rows
from cowsync.scan.listing import Listed, pages
from cowsync.scan.ranges import WHOLE, KeyRange
from cowsync.sealing.format import NotOpened
from cowsync.sealing.reading import OpenedBucket
from cowsync.versions import key_of
from s3core.bucket import Bucket
from s3core.errors import Denied, Misconfigured, NotFound, PreconditionFailed, StoreError, Unavailable

_READ_BYTES = 8 * MIB
_CHUNK_ROWS = 256
"""Objects between two saved places of a re-read."""
_STATE_VERSION = 1


class Drift(StrEnum):
    MISSING = "missing"
    """The mirror has lost it."""
    CHANGED = "changed"
    """Somebody wrote another object there."""
    EXTRA = "extra"
    """We did not put it there."""
    DAMAGED = "damaged"
    """Its bytes are not the source's, though ETag and size say so."""
    UNREADABLE = "unreadable"
    """The mirror or the source did not give the bytes."""


@dataclass(frozen=True, slots=True)
class Finding:
    """`expected` and `held` are ETags and sizes, or checksums where the kind is DAMAGED."""

    kind: Drift
    key: str
    expected: str = ""
    held: str = ""


@dataclass(slots=True)
class ListingResult:
    """`keys` the base has, `counts` by kind of drift. `quarantined` objects with `quarantined_bytes` lie in the trash.
    `findings` holds the first ones."""

    keys: int = 0
    listed: int = 0
    listed_bytes: int = 0
    requests: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    quarantined: int = 0
    quarantined_bytes: int = 0
    findings: list[Finding] = field(default_factory=list)

    @property
    def intact(self) -> int:
        return self.keys - self.counts.get(Drift.MISSING, 0) - self.counts.get(Drift.CHANGED, 0)

    @property
    def clean(self) -> bool:
        return not self.counts

    def to_json(self) -> dict[str, object]:
        return asdict(self) | {"intact": self.intact, "clean": self.clean}


def verify_listing(
    base: Iterable[Rows],
    mirror: Place,
    *,
    within: KeyRange = WHOLE,
    listing: Iterable[Rows] | None = None,
    sealed: bool = False,
    on_finding: Callable[[Finding], None] | None = None,
    findings_kept: int = 100,
) -> ListingResult:
    """List the mirror's `within` once and compare it with the rows of `base` in that range (vanished ones too: the
    mirror keeps them). On an encrypted mirror (`sealed`) sizes are not compared, since the base knows those of the source:
    an ETag that is equal says enough. `listing` replaces the listing where the store gives it out of order. The trash is
    counted with the range that begins at the first key. Raises StoreError, Unordered, Refused."""
    result, listed = ListingResult(), Listed(within.after)

    def known() -> Iterator[Rows]:
        for rows in base:
            result.keys += len(rows)
            yield _as_mirrored(_without_sizes(rows) if sealed else rows)

    def there() -> Iterator[Rows]:
        for rows in listing if listing is not None else pages(mirror.bucket, mirror.prefix, within, listed):
            result.listed += len(rows)
            result.listed_bytes += sum(rows.sizes)
            yield _without_sizes(rows) if sealed else rows

    for change in differences(known(), there()):
        kind = _KINDS[change.kind]
        rows = change.now if kind is Drift.EXTRA else change.was
        result.counts[kind] = result.counts.get(kind, 0) + len(rows)
        if on_finding is None and len(result.findings) >= findings_kept:
            continue
        for place, row in enumerate(rows):
            found = Finding(
                kind,
                row.key.decode(),
                "" if kind is Drift.EXTRA else _identity(row),
                _identity(change.now[place]) if kind is not Drift.MISSING else "",
            )
            if len(result.findings) < findings_kept:
                result.findings.append(found)
            if on_finding is not None:
                on_finding(found)
    if not within.after:
        trash = Listed(b"")
        for rows in pages(mirror.bucket, mirror.key(trash_prefix()), WHOLE, trash):
            result.quarantined += len(rows)
            result.quarantined_bytes += sum(rows.sizes)
        result.requests += trash.requests
    result.requests += listed.requests
    return result


_KINDS = {Kind.ADDED: Drift.EXTRA, Kind.MODIFIED: Drift.CHANGED, Kind.VANISHED: Drift.MISSING}


def _as_mirrored(rows: Rows) -> Rows:
    """What a listing of the mirror should say of the rows."""
    empty = [b""] * len(rows)
    return replace(
        rows,
        etags=rows.mirror_etags,
        version_ids=empty,
        mirror_etags=empty,
        mirror_versions=empty,
        gone=[0] * len(rows),
    )


def _without_sizes(rows: Rows) -> Rows:
    return replace(rows, sizes=[0] * len(rows))


def _identity(row: Row) -> str:
    if not row.size:
        return row.etag.decode("utf-8", "replace")
    return f"{row.etag.decode('utf-8', 'replace')}, {row.size} bytes"


# --- reading again ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RereadSettings:
    """`share` of the objects is read (1.0: all), chosen by `seed`. Both ends are read, so bytes count twice."""

    share: float = 1.0
    seed: str = ""
    workers: int = 8
    failures_in_a_row: int = 20
    findings_kept: int = 100


@dataclass(slots=True)
class RereadResult:
    """`intact` were compared with the source and equal. `by_seal`: the source has moved on, and what is on the encrypted
    mirror opens and was sealed from the very object that the base names. `by_etag`: the source has moved on, and the
    mirror's bytes hold the MD5 that its ETag says. `uncompared`: the source has moved on, and the ETag is no MD5. `after`
    is the last key done: where the next call goes on. `stopped` says why it ended early."""

    objects: int = 0
    bytes: int = 0
    intact: int = 0
    by_etag: int = 0
    by_seal: int = 0
    uncompared: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    after: str = ""
    complete: bool = False
    stopped: str = ""
    findings: list[Finding] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not self.counts

    def to_json(self) -> dict[str, object]:
        return asdict(self) | {"clean": self.clean}


@dataclass(frozen=True, slots=True)
class _Compared:
    bytes: int
    verdict: str
    finding: Finding | None = None
    error: StoreError | None = None


def reread(
    base: Callable[[bytes], Iterable[Rows]],
    source: Place,
    mirror: Place,
    *,
    of: str,
    opened: OpenedBucket | None = None,
    state: Path | None = None,
    settings: RereadSettings | None = None,
    stop: threading.Event | None = None,
    on_progress: Callable[[RereadResult], None] | None = None,
    pace: Pace | None = None,
    versions: bool = False,
) -> RereadResult:
    """Read objects of the base on both ends and compare their SHA-256. `base` gives the rows after a key; `of` names
    the snapshot. `opened` is an encrypted mirror's bucket with its objects as they were at the source. With `state` the
    place reached is kept in that file, and a call with the same snapshot, share and seed goes on there; a finished one
    begins anew. A crash leaves the file of at most 256 objects ago. StoreErrors of single objects are findings; many in a
    row end it. `versions`: the rows are of versions; delete markers have no bytes."""
    settings, stop = settings or RereadSettings(), stop or threading.Event()
    identity = f"{of} {settings.share!r} {settings.seed}"
    result = (_load(state, identity) if state is not None else None) or RereadResult()
    result.stopped = ""
    reader = _Reader(source, mirror, opened, pace or NoPace(), versions)
    chosen = (
        row
        for rows in base(result.after.encode())
        for row in rows
        if is_chosen(row.key, settings.share, settings.seed) and (row.etag or not versions)
    )
    in_a_row = 0
    with ThreadPoolExecutor(settings.workers, thread_name_prefix="verify") as pool:
        while not result.stopped:
            if stop.is_set():
                result.stopped = "asked to stop"
                break
            chunk = list(islice(chosen, _CHUNK_ROWS))
            if not chunk:
                result.complete = True
                break
            for row, compared in zip(chunk, pool.map(reader.compare, chunk), strict=True):
                _count(result, row, compared, settings)
                lasting = isinstance(compared.error, Denied | Misconfigured | Unavailable)
                in_a_row = in_a_row + 1 if lasting else 0
                if in_a_row == settings.failures_in_a_row:
                    result.stopped = f"{in_a_row} objects in a row could not be read, the last one: {compared.error}"
            if not result.stopped:
                # A chunk that ended the run is read again: its failures may be the store's, not the objects'.
                result.after = chunk[-1].key.decode()
                if state is not None:
                    _save(state, identity, result)
            if on_progress is not None:
                on_progress(result)
    if state is not None and result.complete:
        _save(state, identity, result)
    return result


def is_chosen(key: bytes, share: float, seed: str) -> bool:
    if share >= 1:
        return True
    drawn = int.from_bytes(sha256(seed.encode() + b"\0" + key).digest()[:8], "big")
    return drawn < share * (1 << 64)


def _count(result: RereadResult, row: Row, compared: _Compared, settings: RereadSettings) -> None:
    result.objects += 1
    result.bytes += compared.bytes
    match compared.verdict:
        case "intact":
            result.intact += 1
        case "by_etag":
            result.by_etag += 1
        case "by_seal":
            result.by_seal += 1
        case "uncompared":
            result.uncompared += 1
    if compared.finding is not None:
        kind = compared.finding.kind
        result.counts[kind] = result.counts.get(kind, 0) + 1
        if len(result.findings) < settings.findings_kept:
            result.findings.append(compared.finding)


class _Moved(Exception):
    """The object there is not, or no longer, the one that the base knows."""


class _Reader:
    def __init__(self, source: Place, mirror: Place, opened: OpenedBucket | None, pace: Pace, versions: bool) -> None:
        self._source = source
        self._mirror = mirror
        self._opened = opened
        self._pace = pace
        self._versions = versions

    def compare(self, row: Row) -> _Compared:
        tally: Counter[str] = Counter()
        pinned = ""
        if self._versions:
            row, pinned = row._replace(key=key_of(row.key)), row.mirror_version.decode()
        try:
            return self._compare(row, pinned, tally)
        except StoreError as error:
            finding = Finding(Drift.UNREADABLE, row.key.decode(), held=str(error))
            return _Compared(tally["bytes"], "", finding, error)

    def _compare(self, row: Row, pinned: str, tally: Counter[str]) -> _Compared:
        key, etag = row.key.decode(), row.mirror_etag.decode()
        try:
            if self._opened is not None:
                inside = self._opened.facts(self._mirror.key(key), if_match=etag, version_id=pinned).etag
                if inside != row.etag.decode():
                    # Opens, and is not what was put there last: an older one under a newer one's ETag.
                    return _Compared(tally["bytes"], "", Finding(Drift.DAMAGED, key, row.etag.decode(), inside))
            bucket = self._opened or self._mirror.bucket
            held = self._digests(bucket, self._mirror.key(key), row.size, etag, pinned, tally)
        except NotFound:
            return _Compared(tally["bytes"], "", Finding(Drift.MISSING, key, etag))
        except NotOpened as error:
            return _Compared(tally["bytes"], "", Finding(Drift.DAMAGED, key, etag, str(error)))
        except (PreconditionFailed, _Moved) as error:
            return _Compared(tally["bytes"], "", Finding(Drift.CHANGED, key, etag, str(error)))
        try:
            if row.gone:
                raise _Moved("the source has lost it")
            wanted = self._digests(
                self._source.bucket,
                self._source.key(key),
                row.size,
                row.etag.decode(),
                row.version_id.decode(),
                tally,
            )
        except (NotFound, PreconditionFailed, _Moved):
            if self._opened is not None:
                return _Compared(tally["bytes"], "by_seal")
            # Equal is proof. Unequal is none: an encrypted object's ETag is no MD5.
            return _Compared(tally["bytes"], "by_etag" if held[1] == etag else "uncompared")
        if held[0] != wanted[0]:
            return _Compared(tally["bytes"], "", Finding(Drift.DAMAGED, key, wanted[0], held[0]))
        return _Compared(tally["bytes"], "intact")

    def _digests(
        self, bucket: Bucket, key: str, size: int, etag: str, version_id: str, tally: Counter[str]
    ) -> tuple[str, str]:
        """SHA-256 and MD5 of the object with that ETag and size. NotFound, PreconditionFailed and _Moved: not there."""
        whole, plain = sha256(), md5(usedforsecurity=False)
        for offset in range(0, size, _READ_BYTES):
            length = min(_READ_BYTES, size - offset)
            self._pace.request()
            self._pace.transfer(length)
            data = bucket.get(key, offset=offset, length=length, if_match=etag, version_id=version_id)
            tally["bytes"] += len(data)
            whole.update(data)
            plain.update(data)
        if not size or not etag:
            # Nothing was read under a condition: ask what is there.
            self._pace.request()
            facts = bucket.head(key, version_id=version_id)
            if facts.size != size or (etag and facts.etag != etag):
                raise _Moved(f"{facts.etag}, {facts.size} bytes")
        return whole.hexdigest(), plain.hexdigest()


def _load(path: Path, identity: str) -> RereadResult | None:
    """What an earlier call had reached; None where there is nothing to go on from. A file that cannot be read is no
    loss but of time."""
    try:
        document = json.loads(path.read_bytes())
        if document["version"] != _STATE_VERSION or document["of"] != identity or document["result"]["complete"]:
            return None
        fields = document["result"]
        findings = [Finding(Drift(found.pop("kind")), **found) for found in fields.pop("findings")]
        return RereadResult(**fields, findings=findings)
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _save(path: Path, identity: str, result: RereadResult) -> None:
    document = {"version": _STATE_VERSION, "of": identity, "result": asdict(result)}
    temporary = path.with_name(path.name + ".new")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(document, file)
        file.flush()
        os.fsync(file.fileno())
    # Crash before: the older place counts.
    temporary.replace(path)

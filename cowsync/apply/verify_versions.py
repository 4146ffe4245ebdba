"""Whether a mirror of all versions holds what the base says, by one listing of its versions.

One rule: as `verify`: an object counts as intact only when it was compared. A version is known by the id that the mirror
gave it; what has another id was put there by somebody else, also where the bytes are the same.
"""

from collections.abc import Callable, Iterable, Iterator

from cowsync.apply.copy_line import Place
from cowsync.apply.verify import Drift, Finding, ListingResult
from cowsync.rows import Row, Rows
from cowsync.scan.listing import Listed
from cowsync.scan.ranges import WHOLE
from cowsync.scan.versions import Seen, version_pages
from cowsync.versions import History, histories


def verify_versions(
    base: Iterable[Rows],
    mirror: Place,
    *,
    sealed: bool = False,
    on_finding: Callable[[Finding], None] | None = None,
    findings_kept: int = 100,
) -> ListingResult:
    """List all versions of the mirror once and compare them with the rows of `base`, gone ones too. `keys` of the result
    are versions. `sealed`: as `verify_listing`. Raises StoreError, Unordered, Refused."""
    result, listed = ListingResult(), Listed(b"")
    for found in _findings(base, mirror, listed, result, sealed):
        result.counts[found.kind] = result.counts.get(found.kind, 0) + 1
        if len(result.findings) < findings_kept:
            result.findings.append(found)
        if on_finding is not None:
            on_finding(found)
    result.requests = listed.requests
    return result


def _findings(
    base: Iterable[Rows], mirror: Place, listed: Listed, result: ListingResult, sealed: bool
) -> Iterator[Finding]:
    known = histories(base)
    was = next(known, None)
    for page in version_pages(mirror.bucket, mirror.prefix, WHOLE, listed):
        for seen in page:
            result.listed += len(seen.versions)
            result.listed_bytes += sum(row.size for row in seen.versions)
            while was is not None and was.key < seen.key:
                yield from _compared(was, Seen(was.key, []), result, sealed)
                was = next(known, None)
            if was is not None and was.key == seen.key:
                yield from _compared(was, seen, result, sealed)
                was = next(known, None)
            else:
                yield from _compared(History(seen.key, []), seen, result, sealed)
    while was is not None:
        yield from _compared(was, Seen(was.key, []), result, sealed)
        was = next(known, None)


def _compared(history: History, seen: Seen, result: ListingResult, sealed: bool) -> Iterator[Finding]:
    key = seen.key.decode()
    there = {row.version_id: row for row in seen.versions}
    result.keys += len(history.rows)
    for row in history.rows:
        held = there.pop(row.mirror_version, None)
        wanted = _told(row.mirror_version, row.mirror_etag, row)
        if held is None:
            yield Finding(Drift.MISSING, key, wanted)
        elif held.etag != row.mirror_etag or (held.size != row.size and not sealed):
            yield Finding(Drift.CHANGED, key, wanted, _told(held.version_id, held.etag, held))
    for row in there.values():
        yield Finding(Drift.EXTRA, key, "", _told(row.version_id, row.etag, row))


def _told(version_id: bytes, etag: bytes, row: Row) -> str:
    what = f"{etag.decode('utf-8', 'replace')}, {row.size} bytes" if etag else "delete marker"
    return f"version {version_id.decode('utf-8', 'replace')}, {what}"

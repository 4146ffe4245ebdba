"""What it costs to hold a bucket against its ledger: folding records, reading pages of a listing, joining. No server.

One rule: the join is of everything a clean bucket takes: its lines out of the database, the pages' XML read, lines made of
them, compared with their times. A difference that was not put there, or one that was and is not found, fails the run.
"""

import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.processes import BenchFailed
from integrity import record
from integrity.reconcile.folded import Folded
from integrity.reconcile.join import differing, listed_lines, whole_keys
from integrity.reconcile.mentions import Place
from integrity.tlog.tree import leaf_hash
from s3core.bucket import ListedVersions
from s3core.listing import parse_versions

AIM = 300_000
PLACE = Place("ceph", "images")
PAGE = 1000
AT = "2026-11-22T06:00:00.000000Z"
_HEAD = (
    '<?xml version="1.0" encoding="UTF-8"?><ListVersionsResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
    "<Name>images</Name><EncodingType>url</EncodingType><IsTruncated>{more}</IsTruncated>"
)
_ROW = (
    "<Version><Key>{key}</Key><VersionId>{version}</VersionId><IsLatest>{latest}</IsLatest>"
    "<LastModified>2026-11-22T06:00:00.000Z</LastModified><ETag>&quot;{etag}&quot;</ETag><Size>{size}</Size>"
    "<StorageClass>STANDARD</StorageClass><Owner><ID>o</ID><DisplayName>n</DisplayName></Owner><Type>Normal</Type></Version>"
)


@dataclass(frozen=True, slots=True)
class Taken:
    """Records folded, versions joined and versions read from XML alone, with the seconds of one processor they took."""

    records: int
    fold_s: float
    versions: int
    join_s: float
    parse_s: float


def reconcile(versions: int, folder: Path) -> Taken:
    """`versions` versions, two to a key, folded from an intent and an outcome each, and joined with their listing."""
    directory = Path(tempfile.mkdtemp(prefix="bench-reconcile-", dir=folder))
    try:
        folded = Folded(directory / "folded.sqlite", PLACE, observed_counts=False, skew_s=60)
        begin = time.process_time()
        count = folded.fold([("pve1.1", 2 * versions, lambda first, last: _records(last))])
        fold_s = time.process_time() - begin
        bodies = list(_bodies(versions))
        begin = time.process_time()
        for body in bodies:
            parse_versions(body)
        parse_s = time.process_time() - begin
        begin = time.process_time()
        different = list(_joined(folded, bodies))
        join_s = time.process_time() - begin
        if different:
            raise BenchFailed(f"a bucket that is as its ledger says differs in {different[:3]}")
        bodies[-1] = bodies[-1].replace(b"<Size>7</Size>", b"<Size>8</Size>", 1)
        if len(list(_joined(folded, bodies[-1:]))) < 1:
            raise BenchFailed("a difference was not found")
        folded.close()
    finally:
        shutil.rmtree(directory)
    return Taken(count, fold_s, versions, join_s, parse_s)


def _joined(folded: Folded, bodies: Iterable[bytes]) -> Iterator[bytes]:
    pages = (ListedVersions.of(parse_versions(body).versions) for body in bodies)
    for key, _ in differing(folded.lines(), map(listed_lines, whole_keys(pages))):
        yield key


def _version(number: int) -> tuple[str, str, str]:
    return f"machines/vm-{number // 2:08d}/disk-0.qcow2", f"{number:032x}", f"{number:032x}"


def _records(count: int) -> Iterator[tuple[int, bytes]]:
    after = record.START
    who = {"kind": "tool", "name": "cowsync", "host": "pve1", "user": "root"}
    event: dict[str, object] = {"op": "put", "source": "client", "endpoint": "ceph", "bucket": "images", "who": who}
    for n in range(count):
        key, version, etag = _version(n // 2)
        told: dict[str, object] = {"phase": "intent", "key": key, "size": 7}
        if n % 2:
            told = {"phase": "done", "intent": n - 1, "key": key, "version": version, "etag": etag, "size": 7}
        data = record.encode(event | told, writer="pve1.1", n=n, at=AT, after=after)
        after = leaf_hash(data)
        yield n, data


def _bodies(versions: int) -> Iterator[bytes]:
    """Pages of a listing as Ceph writes them; of a key the newest version comes first."""
    for first in range(0, versions, PAGE):
        rows = []
        for place in range(first, min(first + PAGE, versions)):
            number = place ^ 1 if place ^ 1 < versions else place
            key, version, etag = _version(number)
            latest = "true" if number % 2 else "false"
            rows.append(_ROW.format(key=key, version=version, latest=latest, etag=etag, size=7))
        more = "true" if first + PAGE < versions else "false"
        yield f"{_HEAD.format(more=more)}{''.join(rows)}</ListVersionsResult>".encode()

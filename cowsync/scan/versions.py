"""A range of a source listed with all its versions, and compared with the base key by key.

One rule: what is yielded is every version of every key of the range, the oldest of a key first, or an error is raised; and
what the lines say is put on the mirror in that order ends with the version that is current at the source.

A listing gives the newest version first and says nothing of the place of a version among all that ever were. So a version
is known by its id, ETag and size; the id "null" stands for different versions over time, which the time tells apart.
What is new is put on top. Where the source's newest version is not the newest on the mirror (a newer one was deleted for
good, or versions came in between), it is put there again: nothing on the mirror is ever taken away.
"""

import operator
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import groupby
from typing import NamedTuple

from cowsync.changes import Op, PlanLine
from cowsync.errors import Refused
from cowsync.rows import Row, Rows
from cowsync.scan.filters import Belongs
from cowsync.scan.listing import RESERVED, Listed, Unordered
from cowsync.scan.ranges import KeyRange
from cowsync.scan.shard import HOT_S, ReadBase, ShardResult, ShardTask, count_prefixes, shard_result
from cowsync.versions import NULL_VERSION, History, behind, histories, ordinal_of, row_key
from s3core.bucket import Bucket, ListedVersion


class Seen(NamedTuple):
    """What the source has of one key: versions as rows of a scan, the oldest first; a delete marker has no ETag."""

    key: bytes
    versions: list[Row]


def scan_versions(
    task: ShardTask,
    bucket: Bucket,
    prefix: str,
    read_base: ReadBase,
    belongs: Belongs | None,
    *,
    now: Callable[[], float] = time.time,
) -> ShardResult:
    """As `shard.scan_shard`, with all versions. `read_base` is asked for rows of versions."""
    listed = Listed(task.within.after)
    prefixes: dict[str, tuple[int, int]] = {}
    began = now()
    seen = version_pages(
        bucket, prefix, task.within, listed, belongs=belongs, keys_max=task.keys_max, page_keys=task.page_keys
    )
    return shard_result(task, listed, list(compared_versions(task, seen, listed, prefixes, read_base, began)), prefixes)


def version_pages(
    bucket: Bucket,
    prefix: str,
    within: KeyRange,
    listed: Listed,
    *,
    belongs: Belongs | None = None,
    keys_max: int = 0,
    page_keys: int = 1000,
) -> Iterator[list[Seen]]:
    """The keys of `within` with their versions, relative to `prefix`, some at a time; `listed` is kept up to date:
    `keys` and `bytes_listed` are those of current objects. It ends before the range does once `keys_max` versions were
    looked at (0: never), behind a whole key. Memory: a page and the versions of one key. Unordered, Refused for a
    listing that cannot be right, and StoreErrors end it."""
    looked = 0
    held: list[ListedVersion] = []
    key_marker = (prefix.encode() + listed.reached).decode() if listed.reached else ""
    version_marker = ""
    while not listed.complete:
        page = bucket.list_versions(
            prefix=prefix, key_marker=key_marker, version_marker=version_marker, max_keys=page_keys
        )
        listed.requests += 1
        marks = page.next_key_marker, page.next_version_marker
        if marks == (key_marker, version_marker) and marks[0]:
            raise Refused(
                f"{bucket.url}: the listing of versions stands still after {key_marker!r}",
                hint="run `bucketworks doctor` on the bucket; nothing was changed",
            )
        last = not marks[0]
        groups: list[list[ListedVersion]] = []
        for key, more in groupby(page.versions, key=lambda version: version.key):
            if held and held[0].key != key:
                groups.append(held)
                held = []
            held.extend(more)
        if last and held:
            groups.append(held)
            held = []
        # What is held may have more versions on the next page.
        found: list[Seen] = []
        for group in groups:
            seen = _seen(group, prefix, bucket.url)
            if seen.key <= listed.reached and listed.reached:
                raise Unordered(listed.reached, seen.key)
            if within.upto is not None and seen.key > within.upto:
                listed.complete = True
                break
            listed.reached = seen.key or listed.reached
            looked += len(seen.versions)
            if _belongs(seen.key, belongs, listed):
                found.append(seen)
        _count(found, listed)
        listed.complete = listed.complete or last
        if found:
            yield found
        if keys_max and looked >= keys_max:
            break
        if held and within.upto is not None and held[0].key.encode()[len(prefix.encode()) :] > within.upto:
            listed.complete = True
        key_marker, version_marker = marks
    if listed.complete and within.upto is not None:
        listed.reached = within.upto


def _seen(group: list[ListedVersion], prefix: str, url: str) -> Seen:
    key = group[0].key
    if not key.startswith(prefix):
        raise Refused(f"{url}: the listing holds the key {key!r}, and was asked for {prefix!r}")
    ids = [version.version_id for version in group]
    if len(set(ids)) != len(ids) or any(version.latest for version in group[1:]):
        raise Refused(
            f"{url} lists the versions of {key!r} in another order than the newest first, or one twice",
            hint="it was written to while it was listed, or its listing cannot be trusted; run again. Nothing was changed",
        )
    if any(not version.delete_marker and not version.etag for version in group):
        raise Refused(f"{url} lists a version of {key!r} without an ETag")
    name = key[len(prefix) :].encode()
    return Seen(
        name,
        [
            Row(name, one.size, one.etag.encode(), one.modified.encode(), one.version_id.encode())
            for one in reversed(group)
        ],
    )


def _belongs(key: bytes, belongs: Belongs | None, listed: Listed) -> bool:
    if key.startswith(RESERVED):
        listed.reserved += 1
    elif key and (belongs is None or belongs(key)):
        return True
    listed.left_out += 1
    return False


def _count(found: list[Seen], listed: Listed) -> None:
    for _, versions in found:
        listed.versions += len(versions)
        if versions[-1].etag:
            listed.keys += 1
            listed.bytes_listed += versions[-1].size


def compared_versions(
    task: ShardTask,
    pages: Iterator[list[Seen]],
    listed: Listed,
    prefixes: dict[str, tuple[int, int]],
    read_base: ReadBase,
    began: float,
) -> Iterator[PlanLine]:
    """The lines of a listing of `task.within` that began at `began`, ascending by place; as `shard.compared`."""
    hot_from = datetime.fromtimestamp(began - HOT_S, UTC).strftime("%Y-%m-%dT%H:%M:%S").encode()
    upto = task.within.upto
    rows = read_base(KeyRange(behind(task.within.after), None if upto is None else behind(upto)))
    known = histories(rows)
    was = next(known, None)
    for page in pages:
        live = [seen for seen in page if seen.versions[-1].etag]
        count_prefixes(Rows([seen.key for seen in live], [seen.versions[-1].size for seen in live]), prefixes)
        for key, versions in page:
            while was is not None and was.key < key:
                yield from lines_of(was, [], task.run, hot_from)
                was = next(known, None)
            if was is not None and was.key == key:
                yield from lines_of(was, versions, task.run, hot_from)
                was = next(known, None)
            else:
                yield from lines_of(History(key, []), versions, task.run, hot_from)
    # What lies behind the last listed key belongs to the rest.
    while was is not None and (listed.complete or was.key <= listed.reached):
        yield from lines_of(was, [], task.run, hot_from)
        was = next(known, None)


def lines_of(history: History, versions: list[Row], run: int, hot_from: bytes) -> Iterator[PlanLine]:
    """What the plan says of one key, of which the base has `history` and the source `versions`, the oldest first."""
    rows = history.rows
    if (
        len(rows) == len(versions)
        and not any(row.gone for row in rows)
        and all(map(operator.eq, map(_identity, rows), map(_identity, versions)))
    ):
        return
    known = {_identity(row): row for row in rows}  # of one that was put again the newest counts
    there = set(map(_identity, versions))
    vanished = [row for row in rows if not row.gone and _identity(row) not in there]
    returned = [row for row in rows if row.gone and _identity(row) in there]
    current = after = history.current
    if vanished or returned:
        gone = {row.key for row in vanished}
        back = {row.key for row in returned}
        after = History(
            history.key,
            [row._replace(gone=run if row.key in gone else 0 if row.key in back else row.gone) for row in rows],
        ).current
        facts = sorted([*vanished, *returned], key=lambda row: row.key)
        for row in facts:
            turned = rows[-1] if row is facts[-1] and (current is None) is not (after is None) else None
            yield _fact(history.key, row, turned, run)
    top = rows[-1] if rows else None
    ordinal = ordinal_of(top.key) if top is not None else 0
    for row in versions[_first_to_put(versions, known, ordinal) :]:
        again = _identity(row) in known
        ordinal += 1
        yield _put(history.key, row, ordinal, after, top, hot_from, again=again)
        after = row if row.etag else None


def _identity(row: Row) -> tuple[bytes, ...]:
    """Versions never change, but for the one that S3 calls null."""
    if row.version_id == NULL_VERSION:
        return row.version_id, row.etag, b"%d" % row.size, row.modified
    return row.version_id, row.etag, b"%d" % row.size


def _first_to_put(versions: list[Row], known: dict[tuple[bytes, ...], Row], top: int) -> int:
    """The place from which on `versions` are to be put on top of what the mirror has."""
    before = 0
    for place, version in enumerate(versions):
        row = known.get(_identity(version))
        if row is None or ordinal_of(row.key) <= before:
            return place
        before = ordinal_of(row.key)
    return len(versions) - (1 if versions and before != top else 0)


def _fact(key: bytes, row: Row, turned: Row | None, run: int) -> PlanLine:
    return PlanLine(
        Op.RETURN if row.gone else Op.VANISH,
        key.decode(),
        row.size,
        row.etag.decode(),
        row.modified.decode(),
        row.version_id.decode(),
        row.storage_class.decode(),
        turned.size if turned else 0,
        turned.etag.decode() if turned else "",
        turned.version_id.decode() if turned else "",
        row.mirror_etag.decode(),
        row.mirror_version.decode(),
        row.gone or run,
        False,
        "version is back" if row.gone else "version is gone",
        ordinal_of(row.key),
    )


def _put(
    key: bytes, row: Row, ordinal: int, was: Row | None, top: Row | None, hot_from: bytes, *, again: bool
) -> PlanLine:
    if row.etag:
        op = Op.ADD if was is None else Op.MODIFY
        reason = "put again: newer ones are gone" if again else "new version"
    else:
        op, reason = Op.REMOVE, "delete marker"
    # Checked here, where the plan is made, and not when the base is written.
    row_key(key, ordinal)
    return PlanLine(
        op,
        key.decode(),
        row.size,
        row.etag.decode(),
        row.modified.decode(),
        row.version_id.decode(),
        row.storage_class.decode(),
        was.size if was else 0,
        was.etag.decode() if was else "",
        was.version_id.decode() if was else "",
        top.mirror_etag.decode() if top else "",
        top.mirror_version.decode() if top else "",
        0,
        bool(hot_from) and row.modified >= hot_from,
        reason,
        ordinal,
    )

"""What gathers in a storage over the years, and whether what is there is whole: `pve-s3-maintenance`.

    rubbish     uploads that nobody goes on with, sidecars and indexes without their volume, files that the cache has not needed
    findings    what HEAD tells against what the object says of itself; what was uploaded against what is there now

One rule: nothing is removed that is younger than was asked for, and no volume ever. A crash leaves the rest of it to the next
run.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from plugin.archive.errors import IndexDamaged, NoIndex
from plugin.archive_source import ObjectRanges, look
from plugin.cache import Cache, open_files
from plugin.catalogue import Entry
from plugin.layout import DELETING_DIRECTORY, LOG, Volume, log_key, owner_of, volume_of_key
from plugin.sending import STEP_BYTES, expected_of
from plugin.session import Session
from plugin.upload.context import PARTS
from plugin.upload.plan import PartPlan
from s3core.bucket import Bucket, ListedUpload, ObjectFacts
from s3core.content import LazyBody
from s3core.digests import verdict
from s3core.errors import Corrupt, NotFound, PreconditionFailed
from s3core.store import Buffer

UPLOAD, SIDECAR, CACHED, JOURNAL = "upload", "sidecar", "cached", "journal"


@dataclass(frozen=True, slots=True)
class Rubbish:
    """`since`: when it was begun, written or last used, in Unix seconds. `upload` is there for an incomplete upload."""

    kind: str
    key: str
    size: int
    since: float
    upload_id: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """`problem` in words; `damaged`: the bytes are not those that were written. Else it is something that is missing."""

    volume: str
    problem: str
    damaged: bool


def incomplete_uploads(session: Session) -> Iterator[ListedUpload]:
    """Below the storage's prefix, of all nodes. StoreErrors."""
    key_marker = upload_marker = ""
    while True:
        page = session.bucket.list_uploads(
            prefix=session.storage.prefix, key_marker=key_marker, upload_marker=upload_marker
        )
        yield from page.uploads
        key_marker, upload_marker = page.next_key_marker, page.next_upload_marker
        if not key_marker:
            return


def orphans(entries: Iterable[Entry], prefix: str) -> list[Entry]:
    """Sidecars, indexes and logs whose volume is not among the entries."""
    named = {one.key.removeprefix(prefix): one for one in entries}
    volumes = {key for key in named if volume_of_key(key) is not None}
    logs = {log_key(key) for key in volumes}
    found = []
    for key, entry in named.items():
        owner = owner_of(key)
        # A log without an archive is of a backup that failed: kept as long as any sidecar, then gone.
        stray = key.startswith("dump/") and key.endswith(LOG) and key not in logs and key not in volumes
        # Deletions last seconds, and this is asked for what is older than an hour or more.
        mark = key.startswith(f"{DELETING_DIRECTORY}/")
        if (owner is not None and owner not in volumes) or stray or mark:
            found.append(entry)
    return found


def rubbish(session: Session, older_s: float, now: float | None = None) -> list[Rubbish]:
    """What `clean` would remove. StoreErrors, OSError."""
    before = (time.time() if now is None else now) - older_s
    found = [
        Rubbish(UPLOAD, one.key, 0, one.initiated, one.upload_id)
        for one in incomplete_uploads(session)
        if one.initiated < before
    ]
    found += [
        Rubbish(SIDECAR, one.key, one.stored, one.modified)
        for one in orphans(session.listed(), session.storage.prefix)
        if one.modified < before
    ]
    cache = session_cache(session)
    held = [one for one in cache.files() if one.used < before]
    in_use = open_files([one.path for one in held])
    found += [Rubbish(CACHED, one.name, one.size, one.used) for one in held if one.path not in in_use]
    return found


def clean(session: Session, found: Iterable[Rubbish]) -> list[Rubbish]:
    """Remove it; what was removed. A sidecar whose volume has come meanwhile stays. StoreErrors."""
    done = []
    cache, prefix = session_cache(session), session.storage.prefix
    for one in found:
        if one.kind == UPLOAD:
            session.bucket.abort_upload(one.key, one.upload_id)
        elif one.kind == CACHED:
            cache.drop(one.key)
        else:
            owner = owner_of(one.key.removeprefix(prefix))
            if owner is not None and session.there(prefix + owner):
                continue
            session.bucket.delete(one.key)
            session.catalogue.deleted(one.key)
        done.append(one)
    return done


def abandoned(session: Session) -> list[Rubbish]:
    """Abort what dead processes of this node left and nobody will go on with, whatever its age."""
    with session.uploader() as uploader:
        return [Rubbish(JOURNAL, key, 0, 0.0) for key in uploader.clean_up()]


def check(session: Session, volume: Volume, entry: Entry, share: float, told: Callable[[int], None]) -> list[Finding]:
    """Of one volume; `share` of its bytes is read (0: none, one HEAD or two). `told` gets the bytes that were read.
    StoreErrors but Corrupt, NotFound and PreconditionFailed, which are findings."""
    try:
        return list(_checked(session, volume, entry, share, told))
    except (Corrupt, IndexDamaged) as error:
        return [Finding(volume.volname, str(error), True)]
    except (NotFound, PreconditionFailed):
        return []  # deleted or replaced while we looked: what is there now is for the next run


def _checked(
    session: Session, volume: Volume, entry: Entry, share: float, told: Callable[[int], None]
) -> Iterator[Finding]:
    key = session.key(volume)
    stored = session.bucket.head(key)
    if stored.etag == entry.etag and stored.size != entry.stored:
        yield Finding(volume.volname, f"has {stored.size:,} bytes, and {entry.stored:,} in the listing", True)
        return
    plan = PartPlan.parse(stored.attributes.metadata.get(PARTS, ""))
    parts = sum(1 for _ in plan.cut(stored.size)) if plan is not None else 0
    if plan is not None and "-" in stored.etag and not stored.etag.endswith(f"-{parts}"):
        yield Finding(
            volume.volname,
            f"was sent in parts of another length: ETag {stored.etag}, and {parts} parts by its size",
            True,
        )
        return
    if volume.content == "backup":
        yield from _archive(session, volume, stored, share, told)
    elif share and not stored.archived:
        yield from _content(session, volume, stored, told)


def _archive(
    session: Session, volume: Volume, stored: ObjectFacts, share: float, told: Callable[[int], None]
) -> Iterator[Finding]:
    if stored.archived:
        return
    source = look(session.bucket, session.plain, session.keyring, session.storage, volume)
    if source.problem:
        yield Finding(volume.volname, source.problem, False)
    if source.view.index is None:
        if not source.problem:
            yield Finding(volume.volname, "has no index, so its content can be compared with nothing", False)
        if share:
            yield from _content(session, volume, stored, told)
        return
    facts = source.view.facts
    if facts.kind and not facts.complete:
        yield Finding(volume.volname, f"was not complete when it was uploaded: {facts.note}", True)
    if not share:
        return
    try:
        piece, last = facts.piece_bytes, 0

        def progress(done: int, total: int) -> None:
            nonlocal last
            told((done - last) * piece)
            last = done

        found = source.view.check(share, progress=progress)
    except NoIndex as error:
        yield Finding(volume.volname, str(error), False)
        return
    for at, length in found.bad:
        yield Finding(volume.volname, f"{length:,} bytes from byte {at:,} are not those that were uploaded", True)


def _content(session: Session, volume: Volume, stored: ObjectFacts, told: Callable[[int], None]) -> Iterator[Finding]:
    """All of an object without an index: against its digests, or, sealed, against its own seals."""
    facts = session.plain.head(stored.key)
    if session.keyring is not None:
        ranges = ObjectRanges(session.plain, facts)
        for at in range(0, ranges.size, STEP_BYTES):
            told(len(ranges.read(at, STEP_BYTES)))  # Corrupt where a seal does not hold
        return

    def span(at: int, length: int) -> LazyBody:
        return _ObjectSpan(session.bucket, stored, at, length, told)

    plan = PartPlan.parse(stored.attributes.metadata.get(PARTS, ""))
    if plan is None and "-" in stored.etag:
        yield Finding(volume.volname, "was sent by another program, in parts that nobody knows", False)
        return
    expected = expected_of(stored.size, stored, span)
    options = session.bucket.options_for(stored.key)
    if expected is not None and verdict(stored, expected, etag_is_md5=options.etag_is_md5) == "other":
        yield Finding(volume.volname, "its bytes are not those that its ETag and checksums tell of", True)


class _ObjectSpan(LazyBody):
    """Bytes of one version of an object, a few at a time."""

    def __init__(
        self, bucket: Bucket, facts: ObjectFacts, offset: int, length: int, told: Callable[[int], None]
    ) -> None:
        self._bucket, self._facts, self._offset, self._length, self._told = bucket, facts, offset, length, told

    @property
    def byte_count(self) -> int:
        return self._length

    def __len__(self) -> int:
        return -(-self._length // STEP_BYTES)

    def piece(self, at: int) -> Buffer:
        begin = at * STEP_BYTES
        length = min(STEP_BYTES, self._length - begin)
        self._told(length)
        return self._bucket.get(self._facts.key, offset=self._offset + begin, length=length, if_match=self._facts.etag)


def session_cache(session: Session) -> Cache:
    return Cache(session.directory / "cache")

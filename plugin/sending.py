"""A local file becomes a volume, or is found to be one already; and the other way round.

One rule: doing it twice does it once. What is there under the name is compared with the file by digests, which costs no
transfer where the store tells any; other bytes under the name are never replaced.

    archive, verified -> index -> notes

A crash before the archive leaves an upload that the next call goes on with (plugin.upload.files); one after it an archive
without index or notes, which the next call adds.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from plugin.archive.errors import BadArchive
from plugin.archive.indexer import Indexer
from plugin.archive.streams import FileRanges, steps
from plugin.archive_source import ObjectRanges, put_index
from plugin.errors import Archived, Exists
from plugin.layout import Volume, index_key, notes_key
from plugin.session import Session
from plugin.upload.context import PARTS
from plugin.upload.plan import PartPlan
from plugin.upload.spool import FileSpan, read_exactly
from s3core.bucket import ObjectFacts
from s3core.content import LazyBody
from s3core.digests import Expected, digests_of, verdict
from s3core.errors import NotFound
from s3core.write_options import Checksum

STEP_BYTES = 8 << 20
Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Sent:
    """`proof`: how it is known that the store has these bytes: `etag`, `checksum`, `size` (plugin.upload.multipart), or
    `compared`. `index`: whether there is one. `sent` is False where the object was there already."""

    volume: Volume
    size: int
    etag: str
    proof: str
    sent: bool
    index: bool


def send(
    session: Session,
    path: Path,
    volume: Volume,
    *,
    notes: str = "",
    progress: Callable[[int, int], None] | None = None,
    comparing: Callable[[], Advance] = lambda: lambda count: None,
) -> Sent:
    """The file is in the bucket under that name, verified, when this returns. `comparing` is called when bytes that are there
    are about to be compared, and gives what is told how many. Exists: the name has other bytes. StoreErrors, OSError,
    Refused where the file changes meanwhile."""
    key = session.key(volume)
    try:
        facts = session.plain.head(key)
    except NotFound:
        with session.uploader() as uploader:
            done = uploader.file(path, key, progress=progress)
        session.written(key)
        etag, proof, sent = done.etag, done.proof, True
    else:
        if not holds(session, path, facts, comparing()):
            raise Exists(
                f"{session.storage.id}:{volume.volname} is there, with other bytes than {path}",
                hint="nothing was changed; give the file another name, or delete the volume first",
            )
        etag, proof, sent = facts.etag, "compared", False
    indexed = volume.content == "backup" and _indexed(session, path, volume, etag)
    if notes:
        _noted(session, notes_key(key), notes)
    return Sent(volume, path.stat().st_size, etag, proof, sent, indexed)


def holds(session: Session, path: Path, facts: ObjectFacts, advance: Advance = lambda count: None) -> bool:
    """Whether the object has exactly the file's bytes. By its digests where it has any that could be made of the file; else it
    is read. `facts` are of `session.plain`. Archived where it would have to be read and cannot."""
    with path.open("rb") as opened:
        file, size = opened.fileno(), os.fstat(opened.fileno()).st_size
        if size != facts.size:
            return False
        if session.keyring is None:
            told = _judged(file, size, facts, session.bucket.options_for(facts.key).etag_is_md5, advance)
            if told != "size":
                return told == "same"
        if facts.archived:
            raise Archived(
                f"{facts.key} lies in class {facts.storage_class} and cannot be compared", hint="thaw it first"
            )
        ranges = ObjectRanges(session.plain, facts)
        for at in range(0, size, STEP_BYTES):
            length = min(STEP_BYTES, size - at)
            if ranges.read(at, length) != read_exactly(file, at, length):
                return False
            advance(length)
        return True


def expected_of(size: int, facts: ObjectFacts, span: Callable[[int, int], LazyBody]) -> Expected | None:
    """What HEAD must tell of an object that `span` gives the bytes of; None where it was put in parts that nobody knows."""
    checksum: Checksum = "sha256" if "sha256" in facts.checksums else "crc32" if "crc32" in facts.checksums else ""
    plan = PartPlan.parse(facts.attributes.metadata.get(PARTS, ""))
    if plan is not None:
        return Expected.of_parts(size, [digests_of(span(at, length), checksum) for _, at, length in plan.cut(size)])
    if "-" in facts.etag:
        return None
    return Expected.of_body(size, digests_of(span(0, size), checksum))


def _judged(file: int, size: int, facts: ObjectFacts, etag_is_md5: bool, advance: Advance) -> str:
    def span(at: int, length: int) -> FileSpan:
        advance(length)
        return FileSpan(file, at, length)

    expected = expected_of(size, facts, span)
    return "size" if expected is None else verdict(facts, expected, etag_is_md5=etag_is_md5)


def _indexed(session: Session, path: Path, volume: Volume, etag: str) -> bool:
    """Whether the archive has an index, made here where it had none. What is no archive has none."""
    key = session.storage.prefix + index_key(volume.key)
    try:
        session.bucket.head(key)
        return True
    except NotFound:
        pass
    indexer, ranges = Indexer(), FileRanges(path)
    try:
        for data in steps(ranges, 0, ranges.size, STEP_BYTES):
            indexer.feed(data)
        made = indexer.finish(etag)
    except BadArchive:
        return False
    finally:
        ranges.close()
    put_index(session.bucket, session.keyring, session.storage, volume, made)
    session.written(key)
    return True


def _noted(session: Session, key: str, notes: str) -> None:
    text = notes.encode()
    try:
        if session.plain.get(key) == text:
            return
    except NotFound:
        pass
    with session.uploader() as uploader:
        done = uploader.put(key, text)
    session.written(key)
    session.catalogue.keep_text(key, done.etag, notes)

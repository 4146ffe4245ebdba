"""Asking a bucket what it honours: `s3core.probe` for the bucket port.

One rule: nothing is written but below the `place` that the caller gives, and what was written is taken away by
`remove_keys`, also by whoever comes after a crash; only what was seen counts.

In a bucket with versions what is taken away leaves versions and delete markers: this port never deletes a version.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from hashlib import md5

from s3core.bucket import Attributes, Bucket, CopySource, ListedPage
from s3core.errors import NotFound, PreconditionFailed, StoreError, Unsupported
from s3core.findings import Finding
from s3core.observe import provoked

ODD_NAMES = ("\U0001f4be", "a", "a b", "a+b", "a-b", "a.conda", "a/b", "a0", "b%2F", "\u00e4", "\ue000")
"""Names that servers are known to list out of order, or to mangle."""
ATTRIBUTES = Attributes(
    {"content-type": "text/plain; charset=utf-8", "cache-control": "max-age=60"},
    {"probe": "a b=c; d", "mtime": "1.5"},
    {"probe": "1"},
)


def conditional_puts(bucket: Bucket, place: str) -> str:
    """ "" where `put` keeps to `if_absent` and `if_match`, else what it did instead. A server that ignores the headers is
    found out by what it wrote. StoreError: it could not be asked.

    The requests come one after another. Whether two that race are told apart is not asked: whoever would otherwise look
    before each write is no worse off without that."""
    try:
        with provoked(Unsupported):
            return _conditions_broken(bucket, place + "conditions", place + "absent")
    except Unsupported as error:
        return f"the server does not know them: {error}"


def _conditions_broken(bucket: Bucket, key: str, absent: str) -> str:
    try:
        first = bucket.put(key, b"first", if_absent=True).etag
    except PreconditionFailed:
        return "If-None-Match: * was refused, though there was no object"
    if not _refused(lambda: bucket.put(key, b"other", if_absent=True)):
        return "If-None-Match: * replaced an object that was there"
    try:
        second = bucket.put(key, b"second", if_match=first).etag
    except (PreconditionFailed, NotFound):
        return "If-Match with the right ETag was refused"
    if not _refused(lambda: bucket.put(key, b"other", if_match=first)):
        return "If-Match with an outdated ETag was let through"
    if bucket.get(key, if_match=second) != b"second":
        return "a refused write left its traces"
    if not _refused(lambda: bucket.put(absent, b"other", if_match=first)):
        return "If-Match wrote an object where there was none"
    bucket.delete(key)
    try:
        bucket.put(key, b"again", if_absent=True)
    except PreconditionFailed:
        return "If-None-Match: * was refused after the object was deleted"
    return ""


def _refused(write: Callable[[], object]) -> bool:
    try:
        write()
    except (PreconditionFailed, NotFound):
        return True
    return False


def read_back(bucket: Bucket, place: str, check: str) -> Finding:
    """Whether what is written is there at once, as it was written. StoreError."""
    for attempt in range(2):
        body = b"%d" % attempt * (1000 + attempt)
        written = bucket.put(place + "read", body)
        read, facts, page = bucket.get(place + "read"), bucket.head(place + "read"), bucket.list_page(prefix=place)
        if (read, facts.size, facts.etag) != (body, len(body), written.etag):
            return Finding(
                check, "fault", f"wrote {len(body)} bytes with ETag {written.etag}, read {len(read)} of {facts.etag}"
            )
        if page.etags != [written.etag.encode()]:
            return Finding(check, "fault", "what was just written is not listed, or not as it is")
    return Finding(check, "ok", "each write was read and listed at once, as it was written")


def checksums(bucket: Bucket, place: str, check: str) -> Finding:
    """Whether ETags are the MD5 of the bytes. StoreError."""
    body = b"checksum"
    etag = bucket.put(place + "checksum", body).etag
    named = ", ".join(sorted(bucket.head(place + "checksum").checksums))
    kept = f"; also keeps {named}" if named else ""
    if etag == md5(body, usedforsecurity=False).hexdigest():
        return Finding(check, "ok", f"the ETag of an object is the MD5 of its bytes{kept}")
    return Finding(
        check,
        "note",
        f"ETags are not the MD5 of the bytes, as with server-side encryption by KMS{kept}",
        "objects that are there already are not known by their ETag, and are copied once more when the state is lost",
    )


def kept_attributes(bucket: Bucket, place: str, check: str, check_copied: str) -> Iterator[Finding]:
    """Whether headers, metadata and tags come back, as they were put and from a copy of the server's. StoreError."""
    source = place + "attributes"
    try:
        with provoked(Unsupported):
            bucket.put(source, b"x", attributes=ATTRIBUTES)
        wanted = ATTRIBUTES
    except Unsupported:
        wanted = replace(ATTRIBUTES, tags={})
        bucket.put(source, b"x", attributes=wanted)
    lost = "" if wanted.tags else "tags are refused"
    lost = lost or lost_attributes(bucket, source, wanted)
    if lost:
        yield Finding(check, "warning", lost, "a proxy may drop headers; what the server does not keep is not mirrored")
    else:
        yield Finding(check, "ok", "headers, metadata and tags come back as they were put")
    if not bucket.properties.endpoint:
        return
    try:
        with provoked(Unsupported):
            bucket.copy(CopySource(bucket.properties.name, source), place + "copied")
    except Unsupported as error:
        yield Finding(check_copied, "warning", f"the server copies nothing by itself: {error}", error.hint)
        return
    lost = lost_attributes(bucket, place + "copied", wanted)
    if lost:
        yield Finding(check_copied, "warning", f"a copy by the server: {lost}")
    else:
        yield Finding(check_copied, "ok", "a copy by the server has them all")


def lost_attributes(bucket: Bucket, key: str, wanted: Attributes) -> str:
    """What the object lacks of `wanted`, "" for nothing. StoreError."""
    facts = bucket.head(key)
    headers = {name: facts.attributes.headers.get(name, "") for name in wanted.headers}
    lost = [name for name, value in wanted.headers.items() if headers[name] != value]
    if facts.attributes.metadata != wanted.metadata:
        lost.append("metadata")
    if wanted.tags:
        try:
            with provoked(Unsupported):
                tags = bucket.tags(key)
        except Unsupported:
            tags = {}
        if tags != wanted.tags:
            lost.append("tags")
    return f"lost or changed: {', '.join(lost)}" if lost else ""


def order(bucket: Bucket, place: str, check: str) -> Finding:
    """Whether new keys are listed at once and in the order of UTF-8. StoreError."""
    below = place + "list/"
    for name in ODD_NAMES:
        bucket.put(below + name, b"")
    expected = sorted((below + name).encode() for name in ODD_NAMES)
    listed = bucket.list_page(prefix=below).keys
    after = bucket.list_page(prefix=below, start_after=expected[3].decode()).keys
    if listed == expected and after == expected[4:]:
        return Finding(check, "ok", "complete, in the order of UTF-8, right after the writes")
    if sorted(listed) == expected:
        return Finding(
            check, "warning", "complete, but not in the order of UTF-8", "a listing is sorted on this host's disk first"
        )
    missing = len(set(expected) - set(listed))
    return Finding(check, "fault", f"{missing} of {len(expected)} new objects are not listed as they should")


def falling(pages: Sequence[ListedPage]) -> tuple[bytes, bytes] | None:
    """The first two keys of a listing of which the second does not come after the first in the order of UTF-8."""
    last = b""
    for page in pages:
        for key in page.keys:
            if last and key <= last:
                return last, key
            last = key
    return None


def keys_below(bucket: Bucket, prefix: str) -> dict[str, float]:
    """Keys below `prefix`, and when they were written, in Unix seconds of the server. StoreError."""
    found: dict[str, float] = {}
    token, more = "", True
    while more:
        page = bucket.list_page(prefix=prefix, token=token)
        for key, modified in zip(page.keys, page.modified, strict=True):
            found[key.decode()] = datetime.fromisoformat(modified.decode()).timestamp()
        token, more = page.token, page.truncated
    return found


def remove_keys(bucket: Bucket, keys: Iterable[str]) -> None:
    """All are tried. StoreError, the first one: some are left."""
    first: StoreError | None = None
    for key in keys:
        try:
            bucket.delete(key)
        except StoreError as error:
            first = first or error
    if first is not None:
        raise first

"""A real listing of a storage's prefix, brought into its catalogue in one transaction.

One rule: a listing that does not come to its end changes nothing. Where the listing and what this host wrote or deleted
lately differ (the listing began before, or the store lists late), HEAD decides, key by key, after the listing.

Costs: a LIST for each 1,000 objects; a HEAD for each sealed object that came or changed, and for each doubt; a GET for each
sidecar that came or changed. A storage on which nothing happens costs the LISTs.

A crash at any point leaves the catalogue as it was; what was asked is asked again by the next refresh.
"""

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from plugin.catalogue import Catalogue, Changes, Entry
from s3core.bucket import Bucket, ListedPage
from s3core.errors import NotFound, StoreError, Unavailable
from s3core.s3_xml import parse_time

TEXT_BYTES_MAX = 64 * 1024
"""Of a sidecar; PVE refuses notes above 64 KiB."""
AT_ONCE = 8
"""HEADs and GETs at a time."""


@dataclass(frozen=True, slots=True)
class Refreshed:
    """What a refresh found. `changes` is None where a newer listing was in the catalogue already. `unread`: sidecars whose
    contents could not be had within the time; a later refresh asks again."""

    objects: int
    requests: int
    changes: Changes | None
    unread: dict[str, str] = field(default_factory=dict)


def refresh(
    catalogue: Catalogue,
    bucket: Bucket,
    prefix: str,
    *,
    deadline: float,
    opened: Callable[[Entry], Entry] | None = None,
    is_text: Callable[[str], bool] = lambda key: False,
    read: Callable[[Entry], bytes] | None = None,
    monotonic: Callable[[], float] = time.monotonic,
) -> Refreshed:
    """List everything below `prefix` ("" or with a slash at its end). `opened` gives an entry that came or changed its plain
    size; it may ask the store, and NotFound from it is an object that has gone meanwhile. `is_text` says which keys are
    small texts to keep, `read` gives what one holds (its stored bytes, where there is no `read`). No request begins after
    `deadline` (on `monotonic`); one that is under way ends by the bucket's own limits. Raises StoreError (Unavailable where
    the time was not enough) and OSError of the catalogue: nothing has changed then."""
    work = _Work(catalogue, bucket, deadline, monotonic, opened, read)
    listing = catalogue.begin_listing()
    listed = work.listed(prefix)
    if opened is not None:
        held = {one.key: one for one in catalogue.entries(prefix)}
        fresh = {one.key: one for one in listed.values() if not _is_same(held.get(one.key), one)}
        for key, found in work.each(fresh, lambda key: work.opened(fresh[key])).items():
            if found is None:
                del listed[key]
            else:
                listed[key] = found
    doubt = catalogue.doubtful(listing, listed)
    settled = work.each(doubt.keys, work.looked)
    changes = catalogue.finish_listing(listing, listed, doubt, settled)
    unread = work.read_texts([one for one in catalogue.entries(prefix) if is_text(one.key)])
    return Refreshed(len(listed), work.requests, changes, unread)


def entry_of(bucket: Bucket, key: str) -> Entry:
    """What HEAD tells, with the stored size as plain size. NotFound."""
    facts = bucket.head(key)
    storage_class = _class(facts.storage_class)
    return Entry(key, facts.size, facts.size, facts.etag, facts.modified, facts.version_id, storage_class)


def entries_of(page: ListedPage) -> Iterable[Entry]:
    """The rows of a page. Keys that are not UTF-8 are none of ours and are left out."""
    for key, size, etag, modified, storage_class in zip(
        page.keys, page.sizes, page.etags, page.modified, page.classes, strict=True
    ):
        try:
            name = key.decode()
        except UnicodeDecodeError:
            continue
        yield Entry(name, size, size, etag.decode(), parse_time(modified.decode()), "", _class(storage_class.decode()))


def _class(told: str) -> str:
    return "" if told == "STANDARD" else told


def _is_same(held: Entry | None, listed: Entry) -> bool:
    return held is not None and (held.etag, held.stored) == (listed.etag, listed.stored)


class _Work:
    def __init__(
        self,
        catalogue: Catalogue,
        bucket: Bucket,
        deadline: float,
        monotonic: Callable[[], float],
        opened: Callable[[Entry], Entry] | None,
        read: Callable[[Entry], bytes] | None,
    ) -> None:
        self._catalogue = catalogue
        self._bucket = bucket
        self._deadline = deadline
        self._monotonic = monotonic
        self._opened = opened
        self._read = read or (lambda entry: stored_bytes(bucket, entry))
        self.requests = 0

    def listed(self, prefix: str) -> dict[str, Entry]:
        found: dict[str, Entry] = {}
        token, after, more = "", "", True
        while more:
            self._in_time()
            page = self._bucket.list_page(prefix=prefix, start_after=after, token=token)
            found.update((one.key, one) for one in entries_of(page))
            token, more = page.token, page.truncated
            after = "" if token else page.last.decode(errors="replace")
        return found

    def opened(self, entry: Entry) -> Entry | None:
        try:
            return self._opened(entry) if self._opened else entry
        except NotFound:
            return None

    def looked(self, key: str) -> Entry | None:
        try:
            return self.opened(entry_of(self._bucket, key))
        except NotFound:
            return None

    def each(self, keys: Iterable[str], ask: Callable[[str], Entry | None]) -> dict[str, Entry | None]:
        """The answers by key, several asked at a time. The first error ends it."""
        wanted = list(keys)

        def one(key: str) -> Entry | None:
            self._in_time()
            return ask(key)

        if len(wanted) < 2:
            return {key: one(key) for key in wanted}
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="refresh") as pool:
            futures = {key: pool.submit(one, key) for key in wanted}
            try:
                return {key: future.result() for key, future in futures.items()}
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def read_texts(self, entries: list[Entry]) -> dict[str, str]:
        """Read the sidecars whose contents are not known; those that could not be read, and why."""
        known = self._catalogue.texts()
        wanted = {one.key: one for one in entries if one.key not in known}
        unread: dict[str, str] = {}

        def read(key: str) -> None:
            try:
                self._in_time()
                text = self._read(wanted[key])[:TEXT_BYTES_MAX].decode(errors="replace")
            except NotFound:
                return
            except StoreError as error:
                unread[key] = str(error)
                return
            self._catalogue.keep_text(key, wanted[key].etag, text)

        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="refresh") as pool:
            list(pool.map(read, wanted))
        return unread

    def _in_time(self) -> None:
        if self._monotonic() >= self._deadline:
            raise Unavailable("the listing took longer than it may", hint="the store is slow, or the prefix is large")
        self.requests += 1


def stored_bytes(bucket: Bucket, entry: Entry) -> bytes:
    """What a sidecar holds, as `entry` knows it; TEXT_BYTES_MAX at most. NotFound, PreconditionFailed where it is another one
    by now."""
    if entry.stored == 0:
        return b""
    return bucket.get(entry.key, offset=0, length=min(entry.stored, TEXT_BYTES_MAX), if_match=entry.etag)

"""A bucket that fails on purpose, for simulations, tests and drills; the fault model is `s3core.faulty`'s.

On top of it, listings that lie as real ones do: `ends_after` makes every listing stop after that key and say that it is
whole; `hierarchical` gives the order of stores that keep folders, where `foo/` comes before `foo.conda`.

One rule: everything comes from the plan, the given randomness and the given clock, so a run of one thread repeats
exactly. Calls have the names of `s3core.wrapper`: ("list", 3) is the third page asked for, ("part", 1) the first part.
"""

import random as random_module
from collections.abc import Sequence
from dataclasses import replace

from s3core.bucket import NO_ATTRIBUTES, Attributes, Bucket, ListedPage, Written
from s3core.bucket_wrapper import BucketWrapper
from s3core.clock import Clock
from s3core.digests import NO_DIGESTS, Digests
from s3core.faulty import FaultInjection, FaultPlan, kept_body
from s3core.store import Buffer
from s3core.wrapper import Call
from s3core.write_options import NO_OPTIONS, WriteOptions


class FaultyBucket(FaultInjection, BucketWrapper):
    """`ends_after` ("" for none) and `hierarchical` may be changed at any time."""

    def __init__(
        self,
        inner: Bucket,
        plan: FaultPlan,
        random: random_module.Random,
        clock: Clock,
        *,
        ends_after: str = "",
        hierarchical: bool = False,
    ) -> None:
        BucketWrapper.__init__(self, inner)
        FaultInjection.__init__(self, plan, random, clock)
        self.ends_after = ends_after
        self.hierarchical = hierarchical

    def list_page(
        self, *, prefix: str = "", start_after: str = "", delimiter: str = "", max_keys: int = 1000, token: str = ""
    ) -> ListedPage:
        def ask() -> ListedPage:
            if self.hierarchical and not delimiter:
                page = self._hierarchical_page(prefix, token or start_after, max_keys)
            else:
                page = self.inner.list_page(
                    prefix=prefix, start_after=start_after, delimiter=delimiter, max_keys=max_keys, token=token
                )
            return _cut(page, self.ends_after.encode()) if self.ends_after else page

        return self._perform(Call("list", prefix), ask)

    def _hierarchical_page(self, prefix: str, after: str, max_keys: int) -> ListedPage:
        """Reads the whole listing for every page: for small buckets. The token is the last key."""
        rows: list[tuple[bytes, int, bytes, bytes, bytes]] = []
        token, more = "", True
        while more:
            page = self.inner.list_page(prefix=prefix, token=token)
            rows += zip(page.keys, page.sizes, page.etags, page.modified, page.classes, strict=True)
            token, more = page.token, page.truncated
        rows.sort(key=lambda row: _folders_first(row[0]))
        begin = _folders_first(after.encode())
        rest = [row for row in rows if not after or _folders_first(row[0]) > begin]
        chosen, truncated = rest[:max_keys], len(rest) > max_keys
        return ListedPage(
            keys=[row[0] for row in chosen],
            sizes=[row[1] for row in chosen],
            etags=[row[2] for row in chosen],
            modified=[row[3] for row in chosen],
            classes=[row[4] for row in chosen],
            prefixes=[],
            truncated=truncated,
            token=chosen[-1][0].decode() if truncated else "",
        )

    def put(
        self,
        key: str,
        data: Buffer | Sequence[Buffer],
        *,
        attributes: Attributes = NO_ATTRIBUTES,
        if_match: str = "",
        if_absent: bool = False,
        options: WriteOptions = NO_OPTIONS,
        digests: Digests = NO_DIGESTS,
    ) -> Written:
        return super().put(
            key,
            kept_body(data),
            attributes=attributes,
            if_match=if_match,
            if_absent=if_absent,
            options=options,
            digests=digests,
        )

    def upload_part(
        self,
        key: str,
        upload_id: str,
        number: int,
        data: Buffer | Sequence[Buffer],
        *,
        options: WriteOptions = NO_OPTIONS,
        digests: Digests = NO_DIGESTS,
    ) -> str:
        return super().upload_part(key, upload_id, number, kept_body(data), options=options, digests=digests)


def _folders_first(key: bytes) -> bytes:
    return key.replace(b"/", b"\0")


def _cut(page: ListedPage, last: bytes) -> ListedPage:
    """The rows up to `last`; whole, if anything was left out."""
    if page.prefixes and page.prefixes[-1] > last:
        page = replace(page, prefixes=[prefix for prefix in page.prefixes if prefix <= last], truncated=False, token="")
    count = sum(key <= last for key in page.keys)
    if count == len(page.keys):
        return page
    return ListedPage(
        keys=page.keys[:count],
        sizes=page.sizes[:count],
        etags=page.etags[:count],
        modified=page.modified[:count],
        classes=page.classes[:count],
        prefixes=page.prefixes,
        truncated=False,
    )

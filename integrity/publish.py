"""From a writer's local log to its objects in the store.

    step                                   what a crash after it leaves, and who repairs it
    1. full bundles and tiles, in any order  objects that no checkpoint names yet; putting them again finds the same bytes
    2. partial bundle, tiles, the edge       "
    3. checkpoints/<size>                    a checkpoint nobody was told of; "
    4. checkpoint (compare and swap)         the log is published
    5. epochs/<e>, if the key changes        the change goes on: see `keys`
    6. the local base, then old files        local files that nobody needs; the next trimming removes them

All bytes follow from the local log and the key alone, so whoever opens the slot next repeats what was not finished and finds
the same. Nothing is removed from the local log before full, published tiles hold it.

One rule: a checkpoint in the store that the local log does not contain, signed by the log's key, is somebody else's, or this
host's state is old: then nothing is written (`Behind`). One that is older than what was published was put back by somebody, one
that no key of the log signed was put there by somebody: that is told, and recorded.
"""

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from integrity.errors import Behind, Malformed, Rejected, Tampered
from integrity.keys import Introduction, Keys, open_introduction, sign_introduction
from integrity.layout import LEDGER_WRITER, checkpoint_key, edge_key, epoch_key, kept_checkpoint_key, tile_key
from integrity.tlog.checkpoint import Checkpoint, open_checkpoint, peek_checkpoint, sign_checkpoint
from integrity.tlog.note import parse_vkey
from integrity.tlog.tiles import WIDTH, Edge, encode_bundle, entries_path
from integrity.tlog.tree import EMPTY_ROOT, leaf_hash
from s3core.errors import NotFound, OutcomeUnknown, PreconditionFailed
from s3core.store import ObjectStore

CONNECTIONS = 8
"""Objects of one log under way at once."""
UNDER_WAY_MAX = 32

log = logging.getLogger(__name__)

Records = Callable[[int, int], Iterator[bytes]]
"""The local log's records from one number up to another."""


@dataclass(slots=True)
class Incident:
    """The store did not hold what was published. `found` is the size of the checkpoint that lay there, -1: none that can be
    read; `published` the largest that was."""

    found: int
    published: int
    message: str


@dataclass(slots=True)
class Progress:
    """What of a log is published. `aligned` is the tree's edge at the last full bundle of what is."""

    aligned: Edge = field(default_factory=Edge)
    published: int = 0
    checkpoints: dict[int, bytes] = field(default_factory=lambda: {0: EMPTY_ROOT})
    """The roots of the local log's checkpoints, by size, as far back as the local log goes and one further."""
    recorded: int = 0
    """The size with the newest checkpoint record; it may not be published, and its root not be known."""

    @property
    def due(self) -> list[int]:
        """Sizes whose checkpoints are to be published, ascending: at most one, but after a roll back of the store."""
        sizes = set(self.checkpoints) | {self.recorded}
        return sorted(size for size in sizes if size > self.published)


class Publisher:
    """Not for several threads. `records` reads the local log; `incident` is told of what should not be."""

    def __init__(
        self,
        store: ObjectStore,
        writer: str,
        origin: str,
        keys: Keys,
        records: Records,
        progress: Progress,
        incident: Callable[[Incident], None],
    ) -> None:
        self.progress = progress
        self._store = store
        self._writer = writer
        self._origin = origin
        self._keys = keys
        self._records = records
        self._incident = incident
        self._etag: str | None = None
        """Of the checkpoint that lies there; "": there is none; None: nobody has looked."""
        self._conditions = True
        """False once the store failed an If-Match that held, as older releases of Ceph do in buckets with versions (where they
        ignore If-None-Match): then we compare, and our lock keeps this host's other processes away."""
        self._there: set[str] = set()
        self._pool: ThreadPoolExecutor | None = None

    @property
    def attached(self) -> bool:
        """Whether the store's checkpoint has been looked at."""
        return self._etag is not None

    def attach(self) -> None:
        """Look what is published. Behind; StoreError where the store does not answer."""
        if self.attached:
            return
        before = self.progress.published
        found, etag = self._look()
        if found is None or found < before:
            self._rolled_back(-1 if found is None else found, before)
        sizes = sorted(self.progress.checkpoints)
        # What a checkpoint that was put back does not cover is put again as far as the local log goes.
        self.progress.published = found if found in self.progress.checkpoints else sizes[0]
        self._etag = etag

    def publish(self, size: int) -> Checkpoint:
        """The local log's first `size` records, the last of which is a checkpoint record, are published on return. Behind,
        Tampered (an object that must be ours is not); StoreError: published or not, ask again."""
        self.attach()
        progress = self.progress
        aligned = progress.aligned.copy() if progress.aligned.size <= size else None
        if aligned is None:
            raise ValueError(f"{size:,} records are published already")
        rest = self._put_full(aligned, size)
        edge = aligned.copy()
        edge.extend(map(leaf_hash, rest))
        checkpoint = Checkpoint(self._origin, size, edge.root())
        known = progress.checkpoints.setdefault(size, checkpoint.root)
        assert known == checkpoint.root
        work = [(tile_key(self._writer, tile.path), data) for tile, data in edge.partial()]
        if rest:
            work.append((tile_key(self._writer, entries_path(size // WIDTH, len(rest))), encode_bundle(rest)))
        work.append((edge_key(self._writer, size), edge.encode()))
        self._put_all(iter(work))
        if size > self._keys.since_size or not self._keys.rotates:
            self._put_checkpoint(size, sign_checkpoint(checkpoint, self._keys.signer))
        else:
            # Only after a roll back of the store: the key that could sign it again is gone, as it should be.
            log.warning("ledger %s: the checkpoint of %d cannot be signed again: its key is erased", self._origin, size)
        progress.aligned, progress.published = aligned, size
        self._there.clear()
        return checkpoint

    def introduce(self, size: int) -> None:
        """Put the note of the next epoch, which begins behind the published checkpoint of that size. As `publish`."""
        new = self._keys.next_signer
        assert new is not None
        epoch = self._keys.epoch + 1
        introduction = Introduction(self._origin, epoch, size, self.progress.checkpoints[size], new.vkey)
        self._put_once(epoch_key(self._writer, epoch), sign_introduction(introduction, self._keys.signer, new))

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def _put_full(self, edge: Edge, size: int) -> list[bytes]:
        """Put the full bundles and tiles up to `size`, and grow `edge` by them; the records after them."""
        rest: list[bytes] = []

        def work() -> Iterator[tuple[str, bytes]]:
            nonlocal rest
            for record in self._records(edge.size, size):
                rest.append(record)
                if len(rest) == WIDTH:
                    yield tile_key(self._writer, entries_path(edge.size // WIDTH)), encode_bundle(rest)
                    for tile, data in edge.extend(map(leaf_hash, rest)):
                        yield tile_key(self._writer, tile.path), data
                    rest = []

        self._put_all(work())
        return rest

    def _put_all(self, work: Iterator[tuple[str, bytes]]) -> None:
        """Several at once; all of them are there on return."""
        under_way: list[Future[None]] = []
        try:
            for key, data in work:
                if key in self._there:
                    continue
                if self._pool is None:
                    self._pool = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="ledger-put")
                if len(under_way) >= UNDER_WAY_MAX:
                    under_way.pop(0).result()
                under_way.append(self._pool.submit(self._put_once, key, data))
            while under_way:
                under_way.pop(0).result()
        finally:
            # What is under way ends before anybody tries again: no two puts of one name at once.
            for future in under_way:
                if not future.cancel():
                    future.exception()

    def _put_once(self, key: str, data: bytes) -> None:
        """Have `data` under a name that never changes. Tampered where other bytes are."""
        if self._store.properties.if_none_match and self._conditions:
            try:
                self._store.put_if_absent(key, data)
            except (PreconditionFailed, OutcomeUnknown) as error:
                try:
                    self._compare(key, data, self._store.get(key).data)
                except NotFound:
                    raise error from None
        else:
            try:
                self._compare(key, data, self._store.get(key).data)
            except NotFound:
                self._store.put(key, data)
        self._there.add(key)

    def _compare(self, key: str, data: bytes, found: bytes) -> None:
        if bytes(found) != data:
            raise Tampered(
                f"{self._store.url}/{key} holds other bytes than this host's log says",
                where=key,
                hint="another host writes with this key, or somebody changed it; keep both and see `s3integrity verify`",
            )

    def _put_checkpoint(self, size: int, note: bytes) -> None:
        self._put_once(kept_checkpoint_key(self._writer, size), note)
        key = checkpoint_key(self._writer)
        properties = self._store.properties
        for _ in range(3):
            before = self._etag
            try:
                if before:
                    if properties.if_match and self._conditions:
                        self._etag = self._store.put_if_match(key, note, before)
                        return
                elif properties.if_none_match:
                    self._etag = self._store.put_if_absent(key, note)
                    return
                # The store compares nothing: we do.
                found, _ = self._look()
                if (found or 0) < self.progress.published:
                    self._rolled_back(-1 if found is None else found, self.progress.published)
                self._etag = self._store.put(key, note)
                return
            except (PreconditionFailed, NotFound, OutcomeUnknown) as error:
                found, etag = self._look()
                self._etag = etag
                if found == size:
                    return
                if isinstance(error, OutcomeUnknown):
                    raise
                if before and etag == before and isinstance(error, PreconditionFailed):
                    log.debug(
                        "ledger %s: the store fails If-Match though the ETag is the same; compared here", self._origin
                    )
                    self._conditions = False
                if (found or 0) < self.progress.published:
                    self._rolled_back(-1 if found is None else found, self.progress.published)
        raise OutcomeUnknown("the checkpoint is replaced all the time by somebody else", key=key)

    def _look(self) -> tuple[int | None, str]:
        """Size and ETag of the store's checkpoint: None, "" where there is none, None for one that cannot be read or is
        nobody's. Behind where it is not of the local log, and a key of the log signed it."""
        try:
            body = self._store.get(checkpoint_key(self._writer))
        except NotFound:
            return None, ""
        try:
            found = peek_checkpoint(bytes(body.data))
        except Malformed:
            return None, body.etag
        known = self.progress.checkpoints
        ours = known.get(found.size)
        if found.origin == self._origin and (ours == found.root or (ours is None and found.size < min(known))):
            return found.size, body.etag
        if not self._is_signed(bytes(body.data)):
            # Whoever may write to the bucket can put one like it; it says nothing about this host's state.
            log.error(
                "ledger %s: a checkpoint of %d records that no key of this log signed lies in the store, and is replaced",
                self._origin,
                found.size,
            )
            return None, body.etag
        raise Behind(
            f"{self._store.url}: the log of {self._writer} is published with {found.size:,} records, and this host's copy"
            f" has another history (its newest checkpoint: {max(known):,})",
            hint="its local state was lost, or another host goes on with it: see `s3integrity adopt`"
            if self._writer == LEDGER_WRITER
            else "its local state was lost or rolled back, or another host has its key; retire this writer and join anew",
        )

    def _is_signed(self, note: bytes) -> bool:
        """Whether the key of this log that this host has, or one that follows on it, signed the checkpoint."""
        verifier, epoch = self._keys.signer.verifier, self._keys.epoch
        while True:
            try:
                open_checkpoint(note, self._origin, [verifier])
            except (Malformed, Rejected):
                epoch += 1
            else:
                return True
            try:
                introduction = self._store.get(epoch_key(self._writer, epoch)).data
                verifier = parse_vkey(open_introduction(bytes(introduction), self._origin, epoch, verifier).vkey)
            except (NotFound, Malformed, Rejected):
                return False

    def _rolled_back(self, found: int, before: int) -> None:
        if not before:
            return
        what = f"a checkpoint of {found:,}" if found >= 0 else "no checkpoint that can be read"
        message = f"the store holds {what} of {self._writer}, though {before:,} records were published"
        log.error("ledger %s: %s", self._origin, message)
        self._incident(Incident(found, before, message))

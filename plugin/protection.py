"""Backups that must not go: Proxmox VE's `protected` flag and S3's Object Lock, and deleting that understands both.

    protected by Proxmox VE     NAME.protected beside the backup, as in a directory of Proxmox VE (empty)
    and in the bucket           a legal hold on the backup (bw-object-lock hold, governance, compliance)
    for bw-lock-days            a retention, given at the upload (governance, compliance)

One rule: the sidecar is there only while the hold is. Protecting holds first, unprotecting lets go last; what a crash between
the two leaves is a backup that is kept although it says that it is not, and says why when it is to be deleted.

In a bucket with Object Lock nothing is overwritten or lost, so deleting takes two steps: a delete marker, which hides, and then
the versions themselves. Where bw-object-lock is `none` a delete is one DELETE and nothing more: versions that the bucket
keeps are then its owner's wish.

| a crash after | leaves | repaired by |
| --- | --- | --- |
| the hold | a held backup, not shown as protected | protecting or unprotecting it again |
| the sidecar's removal | the same | the same |
| the delete marker | a hidden backup and its versions | `collect` |
| some versions | the rest of them | `collect` |
| the object | its sidecars, and the mark of the deletion | deleting it again; `cleanup` |
"""

import logging
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

from plugin.bucket import DAY_S, StorageBucket
from plugin.configuration import Storage
from plugin.errors import Busy, NoSuchVolume, Refused
from plugin.layout import DELETING_DIRECTORY, protected_key, sidecars
from s3core.bucket import Bucket, ListedVersion, ObjectFacts
from s3core.errors import Denied, NotFound, StoreError
from s3core.s3_xml import parse_time
from s3core.write_options import Retention

COLLECT_AFTER_S = 7 * DAY_S
"""How long what was deleted can be brought back by hand in a bucket with Object Lock, where deleting it was not finished."""
DELETION_S = 600.0
"""Longer than any deletion lasts, with all its retries: an older mark is a crash's."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Protection:
    """What keeps a backup. `locked_until`: Unix seconds, 0.0 for no retention; `mode` is then its mode."""

    protected: bool
    held: bool = False
    locked_until: float = 0.0
    mode: str = ""

    def reason(self, now: float) -> str:
        """Why it cannot be deleted now, "" where it can."""
        if self.protected:
            return "it is protected"
        if self.held:
            return "a legal hold keeps it"
        if self.locked_until > now:
            return f"it is locked until {shown_moment(self.locked_until)} ({self.mode.lower()})"
        return ""


@dataclass(frozen=True, slots=True)
class Collected:
    """What `collect` did: versions deleted, and versions that Object Lock still keeps."""

    deleted: int = 0
    kept: int = 0
    keys: tuple[str, ...] = field(default=())


def locks(storage: Storage) -> bool:
    """Whether the storage uses its bucket's Object Lock."""
    return storage.object_lock not in ("", "none")


def locked_until(storage: Storage, modified: float) -> float:
    """Until when a backup that was written then is locked, by what the storage says now; 0.0 for not at all. Asks nobody;
    `look` knows what is so."""
    if storage.object_lock not in ("governance", "compliance") or not storage.lock_days:
        return 0.0
    return modified + storage.lock_days * DAY_S


def shown_moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def look(bucket: StorageBucket, key: str) -> Protection:
    """Of the backup under that key of the bucket; two HEADs. NoSuchVolume, StoreErrors."""
    return protection_of(_head(bucket, key), protected=_there(bucket, protected_key(key)))


def protection_of(facts: ObjectFacts, *, protected: bool) -> Protection:
    """Of what HEAD told, and whether the sidecar is there."""
    retention = facts.kept.retention
    if retention is None:
        return Protection(protected, facts.kept.legal_hold)
    return Protection(protected, facts.kept.legal_hold, retention.until, retention.mode)


def protect(bucket: StorageBucket, key: str) -> None:
    """On return the sidecar is there, and the hold where the storage uses Object Lock; no deletion that was under way on any
    node will have it. NoSuchVolume; Busy: one is under way, which may or may not have seen the sidecar; StoreErrors: then it
    may be held already."""
    facts = _head(bucket, key)
    if locks(bucket.storage) and not facts.kept.legal_hold:
        bucket.set_legal_hold(key, True, version_id=facts.version_id)
    bucket.put(protected_key(key), b"")
    mark = _mark(bucket, key)
    try:
        begun = bucket.head(mark).modified
    except NotFound:
        begun = 0.0
    # Both moments are the bucket's own, of two objects that were written one after the other.
    if begun > 0.0 and bucket.head(protected_key(key)).modified - begun < DELETION_S:
        raise Busy(
            f"{key.removeprefix(bucket.prefix)} is being deleted by somebody right now",
            hint="look whether it is still there, and protect it again in a moment",
        )
    _head(bucket, key)  # one that ended meanwhile left no mark


def unprotect(bucket: StorageBucket, key: str) -> None:
    """On return neither sidecar nor hold is there; a retention stays. NoSuchVolume, StoreErrors: then it may still be held."""
    facts = _head(bucket, key)
    bucket.delete(protected_key(key))
    if locks(bucket.storage) and facts.kept.legal_hold:
        bucket.set_legal_hold(key, False, version_id=facts.version_id)


def ensure_locked(bucket: StorageBucket, key: str, facts: ObjectFacts | None = None) -> bool:
    """Give a backup the retention that its upload should have had; whether it lacked it. Of an upload that ended in a crash, or
    on a server that forgets locks of uploads in parts. Counts from when it was written. NotFound, StoreErrors."""
    facts = facts or bucket.head(key)
    wanted = bucket.options_for(key).retention
    until = locked_until(bucket.storage, facts.modified)
    held = facts.kept.retention
    if wanted is None or until <= 0.0 or (held is not None and held.until >= until - DAY_S):
        return False
    bucket.set_retention(key, Retention(wanted.mode, until), version_id=facts.version_id)
    return True


def delete_volume(bucket: StorageBucket, key: str, *, now: float) -> None:
    """Delete the volume under that key of the bucket, then its sidecars. On return nobody lists or reads it, and what the store
    can delete of it is deleted. Refused: it is protected, held or locked; nothing was done. NoSuchVolume: it was not there;
    its sidecars are gone now. StoreErrors: it may be hidden already, and deleting it again goes on."""
    relative = key.removeprefix(bucket.prefix)
    beside = [bucket.prefix + one for one in sidecars(relative)]
    with ExitStack() as stack:
        if relative.startswith("dump/") and not bucket.properties.versioned:
            stack.enter_context(_marked(bucket, key))
        _delete_unprotected(bucket, key, relative, beside, now)
    _delete(bucket, beside)


@contextmanager
def _marked(bucket: StorageBucket, key: str) -> Iterator[None]:
    """A deletion says that it begins, and looks for a protection then; who protects says so, and looks for a deletion then.
    Whatever the order of the four, one of the two sees the other (Dekker). A crash leaves the mark, which says nothing after
    DELETION_S and goes with the next deletion or `cleanup`. Where the bucket keeps versions nothing is lost by a deletion."""
    mark = _mark(bucket, key)
    bucket.put(mark, b"")
    try:
        yield
    finally:
        try:
            bucket.delete(mark)
        except StoreError as error:
            log.warning("%s: the mark of a deletion is left, which means nothing in %d s: %s", mark, DELETION_S, error)


def _mark(bucket: StorageBucket, key: str) -> str:
    return f"{bucket.prefix}{DELETING_DIRECTORY}/{key.removeprefix(bucket.prefix)}"


def _delete_unprotected(bucket: StorageBucket, key: str, relative: str, beside: list[str], now: float) -> None:
    try:
        found = look(bucket, key) if relative.startswith("dump/") else Protection(False)
    except NoSuchVolume:
        _delete(bucket, beside)
        raise
    reason = found.reason(now)
    if reason:
        raise Refused(f"{relative} is not deleted: {reason}", hint=_cure(found, relative))
    _delete(bucket, [key])


def collect(bucket: StorageBucket, *, now: float, after_s: float = COLLECT_AFTER_S, dry_run: bool = False) -> Collected:
    """Of a storage that uses Object Lock: delete versions below its prefix that a delete marker has hidden for `after_s`,
    and the marker when nothing is under it any more. What is locked stays, and is counted. One listing of all versions;
    with `dry_run` that alone: `keys` are those that would be tried."""
    if not locks(bucket.storage):
        return Collected()
    deleted = kept = 0
    keys = []
    for key, versions in _by_key(_versions(bucket.inner, bucket.prefix)):
        newest = versions[0]
        if not newest.delete_marker or parse_time(newest.modified) > now - after_s:
            continue
        if dry_run:
            keys.append(key)
            continue
        gone, left = _delete_versions(bucket, versions)
        deleted += gone
        kept += len(left)
        if gone:
            keys.append(key)
    return Collected(deleted, kept, tuple(keys))


def _delete(bucket: StorageBucket, keys: Iterable[str]) -> None:
    for key in keys:
        if not locks(bucket.storage) or not bucket.properties.versioned:
            bucket.delete(key)
            continue
        versions = [one for one in _versions(bucket.inner, key) if one.key == key]
        if not versions:
            continue
        if not versions[0].delete_marker:
            marker = bucket.delete(key)
            versions.insert(0, ListedVersion(key, marker, True, True, 0, "", ""))
        _, left = _delete_versions(bucket, versions)
        current = next((one.version_id for one in versions if not one.delete_marker), "")
        if current in left:
            # Nothing kept it a moment ago: a permission is missing, and its bytes would be paid for unseen.
            raise left[current]


def _delete_versions(bucket: StorageBucket, versions: list[ListedVersion]) -> tuple[int, dict[str, Denied]]:
    """All of a key whose newest one is a delete marker: objects first, the markers when none is left. How many were
    deleted, and those that were refused."""
    gone, left = 0, dict[str, Denied]()
    markers = [one for one in versions if one.delete_marker]
    for one in versions:
        if one.delete_marker:
            continue
        try:
            bucket.delete_version(one.key, one.version_id)
            gone += 1
        except Denied as refusal:
            left[one.version_id] = refusal
    if not left:
        # The oldest first: the newest one is what hides.
        for one in reversed(markers):
            bucket.delete_version(one.key, one.version_id)
    return gone, left


def _versions(bucket: Bucket, prefix: str) -> Iterator[ListedVersion]:
    key_marker = version_marker = ""
    while True:
        page = bucket.list_versions(prefix=prefix, key_marker=key_marker, version_marker=version_marker)
        yield from page.versions
        key_marker, version_marker = page.next_key_marker, page.next_version_marker
        if not key_marker:
            return


def _by_key(versions: Iterator[ListedVersion]) -> Iterator[tuple[str, list[ListedVersion]]]:
    """Of each key the newest first, as they are listed."""
    held: list[ListedVersion] = []
    for one in versions:
        if held and one.key != held[0].key:
            yield held[0].key, held
            held = []
        held.append(one)
    if held:
        yield held[0].key, held


def _head(bucket: Bucket, key: str) -> ObjectFacts:
    try:
        return bucket.head(key)
    except NotFound as missing:
        if not missing.key:  # the bucket itself
            raise
        raise NoSuchVolume(f"{key} is not in {bucket.url}") from missing


def _there(bucket: Bucket, key: str) -> bool:
    try:
        bucket.head(key)
    except NotFound as missing:
        if not missing.key:
            raise
        return False
    return True


def _cure(found: Protection, relative: str) -> str:
    if found.protected:
        return "take the protection away first: Change Protection in the list of backups"
    if found.held:
        return "change its protection on and off again, which lets go of the hold"
    return "prune tries again after that day"

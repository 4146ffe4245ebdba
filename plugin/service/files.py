"""Methods of files storages: what Proxmox VE asks about volumes, answered from the bucket, or from what is here.

One rule: what changes the bucket returns when the bucket shows it, and the catalogue knows it then. What only reads says
what the bucket said within LIST_AGE_S (`plugin.service.keeper`), or fails; a local copy alone is used as it is while the
store does not answer.

What a crash leaves. `free`: the volume is gone first, then what lies beside it; sidecars whose volume is gone belong to
nobody, are shown nowhere, and `pve-s3-maintenance --action cleanup` collects them. `attribute_set` is one request, for
`protected` two where the storage uses Object Lock (`protect`). `fetch`: see `plugin.cache`.
"""

import logging
import os
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from plugin.archive.errors import NoIndex, NotInArchive
from plugin.archive_source import guest_config
from plugin.catalogue import Entry
from plugin.configuration import Section, Storage, neighbours, storage_of
from plugin.counters import costs, total, used_shares
from plugin.disks.methods import require_idle
from plugin.download import download
from plugin.errors import Archived, BadVolume, DeadlineOver, NoSuchVolume, Refused
from plugin.layout import (
    DIRECTORIES,
    IDENTITY_KEY,
    Volume,
    notes_key,
    parse_volname,
    protected_key,
    sidecars,
    volume_of_key,
)
from plugin.lifecycle import thaw
from plugin.place import HASTY_S, Place
from plugin.properties import DISKS, FILES
from plugin.protection import delete_volume, protect, unprotect
from plugin.service.keeper import Status
from plugin.service.mounts import Mounts
from plugin.service.server import Call, Result, Served
from plugin.service.storages import Attached, Storages
from s3core.bucket import Bucket, ObjectFacts
from s3core.errors import Denied, NotFound, OutcomeUnknown, PreconditionFailed, StoreError, Unavailable, Unsupported
from s3core.quantities import shown_size
from s3core.settings import ConfigError

log = logging.getLogger(__name__)

NOTES_BYTES_MAX: Final = 64 * 1024
SNIPPET_BYTES_MAX: Final = 16 << 20
LOOK_S: Final = 5.0
"""For the question whether a local copy is still what the store has."""
DAYS_MAX: Final = 365
"""For a thawed copy."""


class Files:
    """The handlers. `mounts` has the mount processes, `disk_numbers` puts the sizes of disks into a status. What is asked of
    a storage of another type is `unsupported`, but for what all have: status, identity, usage, check."""

    def __init__(
        self,
        storages: Storages,
        mounts: Mounts,
        *,
        version: str,
        pid: int,
        disk_numbers: Callable[[Storage, Status], Status] = lambda storage, told: told,
    ) -> None:
        self._disk_numbers = disk_numbers
        self._storages = storages
        self._mounts = mounts
        self._version = version
        self._pid = pid

    def table(self) -> dict[str, Served]:
        """For `Server`. What disks are asked is put beside it by their own package."""
        return {
            "ping": Served(lambda call: {"version": self._version, "pid": self._pid}, quick=True),
            "status": Served(self.status, quick=True),
            "path": Served(self.path, quick=True),
            "check": Served(self.check),
            "activate": Served(self.activate),
            "deactivate": Served(self.deactivate),
            "list": Served(self.list),
            "fetch": Served(self.fetch),
            "size": Served(self.size),
            "attribute_get": Served(self.attribute_get),
            "attribute_set": Served(self.attribute_set),
            "free": Served(self.free),
            "thaw": Served(self.thaw),
            "config": Served(self.config),
            "identity": Served(self.identity),
            "usage": Served(self.usage),
            "warm": Served(self.warm),
        }

    # --- state

    def status(self, call: Call) -> Result:
        keeper = self._storages.named(call.storage).keeper
        told = keeper.status()
        if keeper.storage.type == DISKS:
            told = self._disk_numbers(keeper.storage, told)
        return {
            "total": told.total,
            "avail": told.avail,
            "used": told.used,
            "active": told.active,
            "reason": told.reason,
            "checked_at": round(told.checked_at, 3),
        }

    def check(self, call: Call) -> Result:
        """A configuration that is not kept yet, against the store: list, and the storage's identity, which is written where
        it is not there."""
        told, secrets = _texts(call.args.get("config")), _texts(call.args.get("secrets"))
        storage = storage_of(Section(told.pop("type", FILES), call.storage, told), secrets)
        self._place_is_free(storage)
        bucket = self._storages.opener(storage, self._storages.config, deadline_s=HASTY_S, around=lambda bucket: bucket)
        try:
            bucket.list_page(prefix=storage.prefix, max_keys=1)
            try:
                identity_of(bucket, storage.prefix)
            except Denied as error:
                raise Denied(
                    f"the keys may list but not write: {error}",
                    hint="allow s3:PutObject and s3:GetObject below the prefix",
                ) from error
        finally:
            bucket.close()
        return {}

    def _place_is_free(self, storage: Storage) -> None:
        """Refused for a new storage that lies in another one, or the other way round. What is in storage.cfg already stays
        changeable; the doctor tells of it."""
        for attempt in (1, 2):
            known = {one.storage.id: one.storage for one in self._storages.all()}
            near = [] if storage.id in known else neighbours(storage, known)
            if not near:
                return
            if attempt == 1:
                # One that was removed a moment ago: asking for what nobody knows reads storage.cfg again.
                with suppress(NoSuchVolume, ConfigError):
                    self._storages.named(storage.id)
        raise Refused(
            f"storage {near[0].id} lies in {near[0].bucket}/{near[0].prefix} already, and each would list and prune what the"
            " other has",
            hint="give each storage a bw-prefix of its own",
        )

    def activate(self, call: Call) -> Result:
        attached = self._files(call)
        mounted, reason = self._mounts.activate(attached.storage, call.deadline)
        return {"mounted": mounted, "reason": reason}

    def deactivate(self, call: Call) -> Result:
        """Of a storage of disks: nothing, if none is active here."""
        storage = self._storages.named(call.storage).storage
        if storage.type == DISKS:
            require_idle(storage, self._storages.config)
            return {}
        self._mounts.deactivate(self._files(call).storage, call.deadline)
        return {}

    def identity(self, call: Call) -> Result:
        """A UUID in the bucket, made by the first who asks."""
        place = self._storages.named(call.storage).place
        known = place.catalogue.fact("identity")
        if not isinstance(known, str):
            known = identity_of(place.hasty, place.prefix)
            place.catalogue.keep_fact("identity", known)
        return {"identity": known}

    def usage(self, call: Call) -> Result:
        """See docs/plugin/service.md."""
        attached = self._storages.named(call.storage)
        place, counters = attached.place, attached.place.counters
        found, counts = place.catalogue.usage(), counters.month()
        below = place.catalogue.usage_below([place.key(f"{one}/") for one in DIRECTORIES.values()])
        cached = place.cache.files()
        prices = place.prices
        return {
            "objects": found.objects,
            "bytes": found.stored,
            "listed_at": found.listed_at,
            "contents": {
                content: dict(zip(("objects", "bytes"), below[place.key(f"{one}/")], strict=True))
                for content, one in DIRECTORIES.items()
            },
            "requests": {
                method: {"requests": one.requests, "up": one.up, "down": one.down}
                for method, one in sorted(counts.items())
            },
            "month": {"requests": total(counts).requests, "up": total(counts).up, "down": total(counts).down},
            "budget": used_shares(counts, counters.budget),
            "cost": costs(counts, prices) | {"storage": found.stored / (1 << 30) * prices.per_gib_month},
            "currency": prices.currency,
            "cache": {"files": len(cached), "bytes": sum(one.size for one in cached), "bound": place.cache.bytes_max},
        }

    # --- volumes

    def list(self, call: Call) -> Result:
        attached = self._files(call)
        wanted = call.args.get("content") or list(DIRECTORIES)
        vmid = call.number("vmid") if call.args.get("vmid") is not None else None
        if not isinstance(wanted, list) or not set(wanted) <= DIRECTORIES.keys():
            raise BadVolume(f"list: content is a list out of {', '.join(DIRECTORIES)}")
        attached.keeper.fresh(call.deadline)
        return {"volumes": volumes_of(attached.place, wanted, vmid)}

    def path(self, call: Call) -> Result:
        place, volume = self._volume(call)
        if volume.content == "backup":
            return {"path": f"{place.storage.path}/{volume.key}"}
        return {"path": str(place.cache.path(volume.key))}

    def size(self, call: Call) -> Result:
        place, volume = self._volume(call)
        entry = self._looked(place, volume)
        return {"size": entry.size, "format": volume.format, "ctime": ctime_of(volume, entry)}

    def fetch(self, call: Call) -> Result:
        _, volume = self._volume(call)
        if volume.content == "backup":
            raise BadVolume(f"{volume.volname} is read through the mount", hint="only other contents have local copies")
        return {"path": str(self._fetch(call, self._storages.named(call.storage), volume))}

    def warm(self, call: Call) -> Result:
        """Fetch some volumes, or all ISO images and templates where none is named."""
        attached = self._files(call)
        names = call.args.get("volnames")
        if names is None:
            attached.keeper.fresh(call.deadline)
            names = [one["volname"] for one in volumes_of(attached.place, ["iso", "vztmpl"], None)]
        if not isinstance(names, list) or not all(isinstance(one, str) for one in names):
            raise BadVolume("warm: volnames is a list of names")
        fetched = []
        for volume in [_parsed(name) for name in names]:
            if volume.content != "backup":
                self._fetch(call, attached, volume)
                fetched.append(volume.volname)
        return {"fetched": fetched}

    def attribute_get(self, call: Call) -> Result:
        place, volume = self._backup(call)
        name = call.text("name")
        if name == "protected":
            return {"value": int(is_protected(place, volume))}
        if name != "notes":
            raise Unsupported(f"{volume.volname} has no attribute {name}")
        try:
            return {"value": place.read_small(place.key(notes_key(volume.key))).decode(errors="replace")}
        except NotFound:
            return {"value": ""}

    def attribute_set(self, call: Call) -> Result:
        place, volume = self._backup(call)
        name, value = call.text("name"), call.args.get("value")
        self._looked(place, volume)
        if name == "protected":
            key, flag = place.key(volume.key), place.key(protected_key(volume.key))
            if value in (True, 1, "1"):
                protect(place.hasty, key)
                place.looked(flag)
            else:
                unprotect(place.hasty, key)
                place.catalogue.deleted(flag)
        elif name == "notes":
            text = "" if value is None else str(value)
            if len(text.encode()) > NOTES_BYTES_MAX:
                raise BadVolume(f"notes have at most {NOTES_BYTES_MAX // 1024} KiB")
            key = place.key(notes_key(volume.key))
            if text:
                entry = place.put_small(key, text.encode())
                place.catalogue.keep_text(key, entry.etag, text)
            else:
                drop(place, key)
        else:
            raise Unsupported(f"{volume.volname} has no attribute {name}")
        return {}

    def free(self, call: Call) -> Result:
        attached, volume = self._files(call), _parsed(call.text("volname"))
        try:
            free(attached.place, volume)
        except StoreError:
            attached.keeper.forget()  # some of it may be done
            raise
        return {}

    def thaw(self, call: Call) -> Result:
        place, volume = self._volume(call)
        days = call.number("days", 7)
        if not 1 <= days <= DAYS_MAX:
            raise BadVolume(f"thaw: days is 1 to {DAYS_MAX}")
        try:
            return {"state": thaw(place.hasty, place.key(volume.key), days=days)}
        except NotFound as error:
            forget(place, volume)
            raise _no_such(place, volume) from error

    def config(self, call: Call) -> Result:
        place, volume = self._backup(call)
        try:
            return {"text": guest_config(place.hasty, place.plain(place.hasty), place.keyring(), place.storage, volume)}
        except (NotInArchive, NoIndex) as error:
            raise NoSuchVolume(f"{volume.volname}: {error}") from error

    # --- inside

    def _files(self, call: Call) -> Attached:
        attached = self._storages.named(call.storage)
        if attached.storage.type != FILES:
            raise Unsupported(f"storage {call.storage} is of type {attached.storage.type}, which holds no files")
        return attached

    def _volume(self, call: Call) -> tuple[Place, Volume]:
        return self._files(call).place, _parsed(call.text("volname"))

    def _backup(self, call: Call) -> tuple[Place, Volume]:
        place, volume = self._volume(call)
        if volume.content != "backup":
            raise Unsupported(f"{volume.volname}: only backups have that")
        return place, volume

    def _looked(self, place: Place, volume: Volume) -> Entry:
        key = place.key(volume.key)
        try:
            return place.looked(key)
        except NotFound as error:
            forget(place, volume)
            raise _no_such(place, volume) from error

    def _fetch(self, call: Call, attached: Attached, volume: Volume) -> Path:
        """The local copy, leased. Where the store does not answer, the one that is here as it is."""
        place, name = attached.place, volume.key
        try:
            # What is here is of use only before the caller's time is over.
            patience = min(LOOK_S, 0.7 * call.seconds_left)
            facts = attached.short.run(lambda: _head(place, volume), time.monotonic() + patience)
            entry = self._noted(place, volume, facts)
        except NoSuchVolume:
            place.cache.drop(name)
            raise
        except (Unavailable, OutcomeUnknown, DeadlineOver) as error:
            held = place.cache.use(name)
            if held is None:
                raise
            call.say(f"{volume.volname}: the store does not answer ({error}); the local copy is used as it is")
            log.warning("storage %s: %s: the local copy is used as it is: %s", call.storage, volume.volname, error)
            return held
        cached = place.cache.held(name)
        if cached is None or cached.etag != entry.etag:
            if facts.archived:
                raise Archived(
                    f"{volume.volname} lies in {facts.storage_class}",
                    hint=f"thaw it first: pve-s3 thaw {call.storage} {volume.volname}",
                )
            place.counters.admit(f"fetching {volume.volname}", requests=2 + entry.size // (16 << 20), down=entry.stored)
        return attached.fetches.run(lambda: bring(place, volume, entry, facts, call), call.deadline)

    def _noted(self, place: Place, volume: Volume, facts: ObjectFacts) -> Entry:
        key = place.key(volume.key)
        held = place.catalogue.entry(key)
        if held is not None and (held.etag, held.stored) == (facts.etag, facts.size):
            return held
        return self._looked(place, volume)


# --- what a storage's place is asked ----------------------------------------------------------------------------------


def volumes_of(place: Place, contents: Iterable[str], vmid: int | None) -> list[dict[str, Any]]:
    """Out of the catalogue, as `list` tells them."""
    found: list[dict[str, Any]] = []
    flags = {one.key for one in place.catalogue.entries(place.key(f"{DIRECTORIES['backup']}/"))}
    notes = place.catalogue.texts(place.key(f"{DIRECTORIES['backup']}/"))
    for content in contents:
        if vmid is not None and content != "backup":
            continue
        for entry in place.catalogue.entries(place.key(f"{DIRECTORIES[content]}/")):
            volume = volume_of_key(place.below(entry.key))
            if volume is None or (vmid is not None and volume.vmid != vmid):
                continue
            told: dict[str, Any] = {
                "volname": volume.volname,
                "content": content,
                "format": volume.format,
                "size": entry.size,
                "ctime": ctime_of(volume, entry),
            }
            if content == "backup":
                first = notes.get(notes_key(entry.key), "").strip().partition("\n")[0]
                told |= {"vmid": volume.vmid} if volume.vmid else {}
                told |= {"subtype": volume.subtype} if volume.subtype else {}
                told |= {"notes": first} if first else {}
                told |= {"protected": 1} if protected_key(entry.key) in flags else {}
            found.append(told)
    return found


def ctime_of(volume: Volume, entry: Entry) -> int:
    """When the volume was made: a backup's name tells, in the node's local time; else when the object was written."""
    if len(volume.made) == 6:
        try:
            return int(time.mktime((*volume.made, 0, 0, -1)))
        except (ValueError, OverflowError):
            return int(entry.modified)
    return int(entry.modified)


def free(place: Place, volume: Volume) -> None:
    """Delete the volume, then what lies beside it (`plugin.protection`). Done when the store has confirmed it; where an
    answer was lost, when it shows that the volume is gone. Refused for what is protected or locked. NoSuchVolume.

    A crash after the volume is gone leaves sidecars, which nothing shows; deleting it again and `cleanup` collect them."""
    key = place.key(volume.key)
    try:
        delete_volume(place.hasty, key, now=place.clock.time())
    except OutcomeUnknown:
        with suppress(NoSuchVolume):  # the lost answer was a good one
            delete_volume(place.hasty, key, now=place.clock.time())
    except NoSuchVolume as error:
        forget(place, volume)
        raise _no_such(place, volume) from error
    forget(place, volume)


def drop(place: Place, key: str) -> None:
    """The object is gone from the bucket, or was not there. Raises where that is not sure."""
    try:
        place.hasty.delete(key)
    except OutcomeUnknown:
        if _is_there(place, key):
            raise
    place.catalogue.deleted(key)


def forget(place: Place, volume: Volume) -> None:
    """The bucket does not have it: neither does anything here."""
    for below in (volume.key, *sidecars(volume.key)):
        if place.catalogue.entry(place.key(below)) is not None:
            place.catalogue.deleted(place.key(below))
    place.cache.drop(volume.key)


def is_protected(place: Place, volume: Volume) -> bool:
    """As the bucket says now."""
    return _is_there(place, place.key(protected_key(volume.key)))


def bring(place: Place, volume: Volume, entry: Entry, facts: ObjectFacts, call: Call) -> Path:
    """The local copy of that version, fetched where it is not here."""

    def load(path: Path) -> None:
        plain = place.plain(place.steady)
        known = replace(facts, size=entry.size)

        def tell(done: int, size: int) -> None:
            call.say(f"fetching {volume.name}: {shown_size(done)} of {shown_size(size)}")

        download(plain, entry.key, path, facts=known, progress=tell, stop=lambda: call.gone)

    return place.cache.fetch(volume.key, entry.etag, entry.size, load)


def bring_snippets(attached: Attached) -> None:
    """Local copies are what the bucket has: snippets are all here, and what the bucket lost is not."""
    place = attached.place
    entries = {place.below(one.key): one for one in place.catalogue.entries(place.prefix)}
    if not place.catalogue.usage().listed_at:
        return
    place.cache.keep_only(entries.keys())
    failure: StoreError | OSError | None = None
    for name, entry in entries.items():
        volume = volume_of_key(name)
        if volume is None or volume.content != "snippets":
            continue
        try:
            _bring_snippet(place, name, entry)
        except NotFound:
            continue  # deleted since it was listed
        except (StoreError, OSError) as error:
            if isinstance(error, StoreError) and error.temporary:
                raise  # the others would wait as long
            log.warning("snippet %s has no local copy: %s", name, error)
            failure = error
    if failure is not None:
        raise failure


def _bring_snippet(place: Place, name: str, entry: Entry) -> None:
    held = place.cache.held(name)
    if held is not None and held.etag == entry.etag:
        return
    if entry.size > SNIPPET_BYTES_MAX:
        log.warning("%s is no snippet: it has %s; it is fetched when it is asked for", name, shown_size(entry.size))
        return
    data = place.read_small(entry.key)
    if len(data) == entry.size:
        place.cache.fetch(name, entry.etag, entry.size, _writer(data), lease_s=0.0)


def identity_of(bucket: Bucket, prefix: str) -> str:
    """The UUID in the bucket; made where there is none. Of two who make it at once both tell the one that stayed."""
    key = prefix + IDENTITY_KEY
    for _ in range(2):
        try:
            return str(uuid.UUID(bucket.get(key).decode()))
        except NotFound:
            try:
                bucket.put(key, str(uuid.uuid4()).encode(), if_absent=True)
            except (PreconditionFailed, OutcomeUnknown):
                continue
            except Unsupported:
                bucket.put(key, str(uuid.uuid4()).encode())
        except ValueError as error:
            raise BadVolume(f"{key} is not a UUID: something else lies in its place") from error
    return str(uuid.UUID(bucket.get(key).decode()))


def _is_there(place: Place, key: str) -> bool:
    try:
        place.hasty.head(key)
    except NotFound:
        return False
    return True


def _head(place: Place, volume: Volume) -> ObjectFacts:
    """The object as it lies in the bucket. NoSuchVolume, and then nothing here has it either."""
    try:
        return place.hasty.head(place.key(volume.key))
    except NotFound as error:
        forget(place, volume)
        raise _no_such(place, volume) from error


def _no_such(place: Place, volume: Volume) -> NoSuchVolume:
    return NoSuchVolume(f"{place.storage.id}:{volume.volname} is not in the bucket")


def _parsed(volname: str) -> Volume:
    try:
        return parse_volname(volname)
    except ValueError as error:
        raise BadVolume(str(error)) from error


def _writer(data: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    return write


def _texts(told: object) -> dict[str, str]:
    """An object of text by name, as Perl sends it: numbers may be numbers."""
    if told is None:
        return {}
    if not isinstance(told, dict):
        raise BadVolume("check: config and secrets are objects")
    return {str(name): str(value) for name, value in told.items() if value is not None}

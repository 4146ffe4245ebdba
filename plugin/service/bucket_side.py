"""What the bucket is to do by itself for a storage: lifecycle rules as the storage says, and a lock on every backup.

One rule: what was seen to be so is remembered and not asked again: rules for a day, a backup's lock for as long as it is there.
Every node does this; doing it twice changes nothing. What fails is told in the log and tried again with the next change.
"""

import logging
from collections.abc import Callable

from plugin.configuration import Storage
from plugin.layout import DIRECTORIES, volume_of_key
from plugin.lifecycle import keep_rules, rules_for
from plugin.place import Place
from plugin.protection import ensure_locked, locked_until
from s3core.credentials import CredentialsError
from s3core.errors import NotFound, StoreError
from s3core.settings import Config, ConfigError

log = logging.getLogger(__name__)

RULES_S = 86_400.0
"""Rules that somebody else changed are set right after a day."""
_RULES = "bucket side: rules"
_LOCKED = "bucket side: locked"


def look_after_bucket(place: Place, keep: Callable[[Storage, Config], bool] = keep_rules) -> None:
    """Of one storage of files. StoreErrors of a lock that could not be given; OSError of the catalogue."""
    _rules(place, keep)
    _locks(place)


def _rules(place: Place, keep: Callable[[Storage, Config], bool]) -> None:
    storage, now = place.storage, place.clock.time()
    wanted = repr(rules_for(storage))
    known = place.catalogue.fact(_RULES) or {}
    if known.get("rules", repr([])) == wanted and (not storage.lifecycle or now - known.get("at", 0.0) < RULES_S):
        return
    try:
        changed = keep(storage, place.config)
    except (StoreError, ConfigError, CredentialsError) as error:
        log.warning("storage %s: its lifecycle rules are not what they should: %s", storage.id, error)
        return
    if changed:
        log.info("storage %s: its lifecycle rules were brought to what it says", storage.id)
    place.catalogue.keep_fact(_RULES, {"rules": wanted, "at": now})


def _locks(place: Place) -> None:
    """Of backups whose upload ended before their lock was there (a crash; a server that forgets it)."""
    storage, now = place.storage, place.clock.time()
    if not locked_until(storage, now):
        return
    backups = {
        entry.key: entry
        for entry in place.catalogue.entries(f"{place.prefix}{DIRECTORIES['backup']}/")
        if volume_of_key(entry.key.removeprefix(place.prefix)) is not None
        and locked_until(storage, entry.modified) > now
    }
    known: dict[str, str] = place.catalogue.fact(_LOCKED) or {}
    seen = {key: etag for key, etag in known.items() if key in backups}
    try:
        for key, entry in backups.items():
            if seen.get(key) == entry.etag:
                continue
            try:
                if ensure_locked(place.hasty, key):
                    log.warning("storage %s: %s had no lock, and was given one", storage.id, key)
            except NotFound:
                continue  # it has gone meanwhile
            seen[key] = entry.etag
    finally:
        if seen != known:
            place.catalogue.keep_fact(_LOCKED, seen)

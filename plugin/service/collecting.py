"""Once a day: versions that deletes left in buckets with Object Lock (`plugin.protection.collect`).

One rule: when it was done last stands in the catalogue, so that restarts do not do it again; a catalogue that is lost costs one
listing of all versions. Nodes do it each for themselves: what one has deleted the next does not find.
"""

import logging
import threading

from plugin.errors import PluginError
from plugin.properties import FILES
from plugin.protection import collect, locks
from plugin.service.storages import Attached, Storages
from s3core.credentials import CredentialsError
from s3core.errors import StoreError
from s3core.settings import ConfigError

log = logging.getLogger(__name__)

DAY_S = 86_400.0
LOOK_S = 3_600.0
_FACT = "collected_at"


class Collecting:
    def __init__(self, storages: Storages) -> None:
        self._storages = storages
        self._stop = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._for_ever, name="collecting", daemon=True).start()

    def stop(self) -> None:
        """Nothing new is begun. Does not wait."""
        self._stop.set()

    def _for_ever(self) -> None:
        while not self._stop.wait(LOOK_S):
            for attached in self._storages.all():
                try:
                    collect_where_due(attached, attached.place.clock.time())
                except (StoreError, PluginError, ConfigError, CredentialsError, OSError) as error:
                    log.warning("storage %s: old versions wait: %s", attached.storage.id, error)
                except Exception:
                    log.exception("storage %s: old versions wait for an error of ours", attached.storage.id)


def collect_where_due(attached: Attached, now: float) -> int:
    """How many versions were deleted; 0 where it is not due, or the storage uses no Object Lock. StoreErrors, OSError."""
    storage, place = attached.storage, attached.place
    if storage.type != FILES or storage.disabled or not locks(storage):
        return 0
    last = place.catalogue.fact(_FACT)
    if isinstance(last, int | float) and now - last < DAY_S:
        return 0
    told = collect(place.steady, now=now)
    place.catalogue.keep_fact(_FACT, now)
    if told.deleted or told.kept:
        log.info("storage %s: %d old versions deleted, %d are locked", storage.id, told.deleted, told.kept)
    return told.deleted

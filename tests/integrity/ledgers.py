"""A ledger in a folder, with slots of this host, and its records as the store has them; for tests of who records in it."""

import time
from pathlib import Path
from typing import Any

from integrity import slots
from integrity.keys import SlotKeys
from integrity.layout import checkpoint_key, origin_of, tile_key
from integrity.place import Ledger, open_ledger
from integrity.record import decode
from integrity.tlog.tiles import WIDTH, entries_path, split_bundle
from s3core.errors import NotFound
from s3core.settings import load_config


def ledger_settings(folder: Path, *covers: str, more: str = "") -> str:
    """`[ledger.audit]` for a configuration file."""
    listed = ", ".join(f'"{url}"' for url in covers)
    return (
        f'[ledger.audit]\nurl = "file://{folder}/ledger"\nstate_dir = "{folder}/ledger-state"\nwriter = "here"\n'
        f"covers = [{listed}]\n{more}\n"
    )


def join(config: Path, *, writers: int = 2) -> None:
    """Slots `here.1`, `here.2` and so on, as after an enrolment."""
    ledger = open_ledger("audit", load_config(config))
    for number in range(1, writers + 1):
        name = f"here.{number}"
        SlotKeys.create(slots.slot_folder(ledger, name) / "key.json", origin_of(ledger.origin, name), now=time.time())
    ledger.close()


def adopted(config: Path) -> list[str]:
    """The writers that have published something, after what dead processes left was published for them."""
    ledger = open_ledger("audit", load_config(config))
    for name in slots.writers_here(ledger):
        if (slots.slot_folder(ledger, name) / "open").exists():
            slots.open_writer(ledger, name).close()
    found = [name for name in slots.writers_here(ledger) if _is_there(ledger, checkpoint_key(name))]
    ledger.close()
    return found


def _is_there(ledger: Ledger, key: str) -> bool:
    try:
        ledger.store.head(key)
    except NotFound:
        return False
    return True


def records(config: Path, writer: str = "here.1") -> list[dict[str, Any]]:
    """All that is published, but what the log tells of itself (`source` ledger); that an intent was cut off belongs to it."""
    ledger = open_ledger("audit", load_config(config))
    size = int(ledger.store.get(checkpoint_key(writer)).data.split(b"\n")[1])
    found: list[bytes] = []
    for index in range(-(-size // WIDTH)):
        width = min(WIDTH, size - index * WIDTH)
        found += split_bundle(ledger.store.get(tile_key(writer, entries_path(index, width))).data)
    ledger.close()
    return [record for record in map(decode, found) if record["source"] != "ledger" or "intent" in record]

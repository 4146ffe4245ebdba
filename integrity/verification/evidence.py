"""What a verification is given: the store, whom to believe, what was seen before, and the time.

One rule: the key is the settings', never the store's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from integrity.cosigning import parse_witnesses
from integrity.place import Ledger
from integrity.tlog.cosignature import Cosigner
from integrity.verification.pins import Pins, load_pins, pins_path
from s3core.store import ObjectStore


@dataclass(frozen=True, slots=True)
class Evidence:
    """`now` is Unix seconds. `url` and `config_path` are how another process opens the same store ("" where it cannot).
    `cosigners` are the witnesses' keys, of which `cosignatures_needed` must have signed the ledger's checkpoint."""

    store: ObjectStore
    origin: str
    vkey: str
    pins: Pins
    now: float
    silence_s: float = 300.0
    cosigners: Sequence[Cosigner] = field(default=())
    cosignatures_needed: int = 0
    url: str = ""
    config_path: str = ""


def evidence_of(ledger: Ledger, config_path: Path | None = None, pins: Pins | None = None) -> Evidence:
    """What a ledger's records are believed by on this host: its settings and this host's pins. ConfigError without a key;
    PinsDamaged."""
    settings = ledger.settings
    return Evidence(
        ledger.store,
        ledger.origin,
        ledger.vkey,
        load_pins(pins_path(ledger), ledger.origin, ledger.vkey) if pins is None else pins,
        ledger.clock.time(),
        settings.silence_s,
        [key for one in parse_witnesses(settings.witnesses) for key in one.cosigners],
        settings.witnesses_needed,
        settings.url,
        str(config_path) if config_path is not None else "",
    )

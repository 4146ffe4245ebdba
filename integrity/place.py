"""A ledger as the configuration has it: where it lies, what it is called, whom to believe, where its local state is.

One rule: this is the rim. Every command and every recorder comes by its ledger here; nothing is contacted until the store is
asked for something.
"""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

from prometheus_client import CollectorRegistry

from integrity.layout import check_writer
from s3core.build import build_store
from s3core.clock import Clock, SystemClock
from s3core.retry import RetryPolicy
from s3core.settings import Config, ConfigError, LedgerSettings
from s3core.store import ObjectStore


@dataclass(frozen=True, slots=True)
class Ledger:
    """`origin` is that of the ledger's own log; `state_dir` need not be there yet."""

    name: str
    settings: LedgerSettings
    store: ObjectStore
    origin: str
    state_dir: Path
    clock: Clock

    @property
    def host(self) -> str:
        """This host's name as a writer; its slots are called `HOST.1` and so on. ConfigError where it has none that fits."""
        return host_name(self.name, self.settings)

    @property
    def slots(self) -> Path:
        return self.state_dir / "slots"

    @property
    def key_file(self) -> Path:
        """The ledger key, on the one host that seals."""
        return self.state_dir / "ledger.key"

    @property
    def vkey(self) -> str:
        """The public key all trust goes back to. ConfigError where the configuration has none."""
        if not self.settings.vkey:
            raise ConfigError(
                f"[ledger.{self.name}]: vkey is not set, so there is nothing to verify against",
                hint="copy it from where `s3integrity init` printed it; it is never read from the bucket",
            )
        return self.settings.vkey

    def close(self) -> None:
        self.store.close()


def open_ledger(
    name: str,
    config: Config,
    *,
    clock: Clock | None = None,
    random: Random | None = None,
    registry: CollectorRegistry | None = None,
    policy: RetryPolicy | None = None,
) -> Ledger:
    """The ledger `[ledger.NAME]`; the caller closes it. ConfigError, CredentialsError. Contacts nobody, makes nothing. `policy`
    stands in place of the endpoint's retries."""
    settings = config.ledger(name)
    clock = clock or SystemClock()
    store = build_store(
        settings.url,
        config=config,
        clock=clock,
        random=random,
        registry=registry,
        policy=policy,
        retain_s=settings.retain_s,
    )
    return Ledger(name, settings, store, settings.origin, Path(settings.state_dir), clock)


@contextmanager
def opened_ledger(name: str, config: Config, *, clock: Clock | None = None) -> Iterator[Ledger]:
    """As `open_ledger`, closed at the end of the block."""
    ledger = open_ledger(name, config, clock=clock)
    try:
        yield ledger
    finally:
        ledger.close()


def host_name(ledger: str, settings: LedgerSettings) -> str:
    """See `Ledger.host`."""
    name = settings.writer or socket.gethostname().partition(".")[0].lower()
    try:
        return check_writer(name)
    except ValueError as error:
        raise ConfigError(
            f"[ledger.{ledger}]: writer: {error}", hint="set `writer` to a short name of this host, such as pve1"
        ) from error

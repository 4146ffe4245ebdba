"""`s3integrity serve`: seals the ledger, has it cosigned, looks after slots that a crash left, and tells monitors how it is.

One rule: a round never ends the service. What went wrong is told in `/healthz`, as a metric and in the log, and the next round
tries again; evidence that does not hold stays told until it holds.
"""

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn
from fastapi import APIRouter, FastAPI, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from integrity.cosigning import Cosigned, Head, Network, cosign, keep_cosigned, ledger_nodes, parse_witnesses
from integrity.errors import LedgerError
from integrity.place import Ledger
from integrity.record import unix_of
from integrity.seal import Sealed, seal
from integrity.slots import is_taken, open_slot, slot_folder, try_lock, writers_here
from integrity.tlog.note import parse_vkey
from integrity.verification.pins import Pin
from s3core.errors import StoreError
from s3core.gauges import GaugeCollector, gauge_rows, gauges, new_registry
from s3core.settings import ConfigError

LATE_PERIODS = 3
"""A ledger is healthy while it was sealed within so many times `seal_s`."""
REQUESTS_AT_ONCE = 64
END_S = 5

log = logging.getLogger(__name__)


@dataclass(slots=True)
class State:
    """What the service knows; written by its rounds, read by monitors."""

    started: float
    sealed_at: float = 0.0
    size: int = 0
    writers: dict[str, float] = field(default_factory=dict)
    """When the newest head of each writer was recorded."""
    error: str = ""
    altered: dict[str, str] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)
    cosigned: int = 0
    witness_trouble: dict[str, str] = field(default_factory=dict)
    swept: int = 0
    """Slots left by a crash that were brought in order since the start."""


class Service:
    """The rounds. `seals`: the ledger key is here; otherwise only this host's slots are looked after."""

    def __init__(self, ledger: Ledger, *, key: Path | None = None) -> None:
        self.ledger = ledger
        self.key = key or ledger.key_file
        self.seals = self.key.exists()
        self.state = State(ledger.clock.time())
        self._known: dict[str, Pin] = {}
        self._witnessed: dict[str, int] = {}
        self._witnesses = parse_witnesses(ledger.settings.witnesses)
        self._network = Network()

    def round(self) -> None:
        """Sweep, seal, have it cosigned. Raises nothing that trying again may cure."""
        state = self.state
        try:
            state.swept += len(sweep(self.ledger))
            if self.seals:
                self._sealed(seal(self.ledger, key=self.key, known=self._known))
                if self._witnesses:
                    self._cosigned(keep_cosigned(self.ledger, self._ask))
            state.error = ""
        except (StoreError, LedgerError, OSError) as error:
            state.error = str(error)
            log.warning("ledger %s: %s", self.ledger.name, error)

    def why_not(self) -> list[str]:
        """What is wrong; nothing: healthy."""
        state, now = self.state, self.ledger.clock.time()
        found = [f"the log of {writer} does not hold: {error}" for writer, error in state.altered.items()]
        found += [f"witness {name}: {trouble}" for name, trouble in state.witness_trouble.items()]
        late = LATE_PERIODS * self.ledger.settings.seal_s
        if self.seals and now - max(state.sealed_at, state.started) > late:
            found.append(f"not sealed for {now - max(state.sealed_at, state.started):.0f} s")
        if found or not self.seals:
            found += [state.error] if state.error else []
        return found

    def health(self) -> tuple[int, dict[str, object]]:
        """Status and JSON object of `/healthz`."""
        state, why = self.state, self.why_not()
        return 503 if why else 200, {
            "ledger": self.ledger.name,
            "healthy": not why,
            "why": "; ".join(why),
            "sealed": state.sealed_at or None,
            "size": state.size,
            "unread": state.unread,
            "error": state.error,
        }

    def figures(self) -> dict[str, float]:
        """Numbers by the names that METRICS has."""
        state, ledger = self.state, self.ledger
        slots = writers_here(ledger)
        found = {
            "healthy": float(not self.why_not()),
            "slots": len(slots),
            "slots_in_use": sum(is_taken(ledger, writer) for writer in slots),
            "slots_left": sum((slot_folder(ledger, writer) / "open").exists() for writer in slots),
            "local_bytes": sum(
                path.stat().st_size for writer in slots for path in slot_folder(ledger, writer).glob("wal/*.wal")
            ),
            "swept_slots": state.swept,
        }
        if self.seals:
            found |= {
                "writers": len(state.writers),
                "altered_writers": len(state.altered),
                "unread_writers": len(state.unread),
                "size": state.size,
            }
            if state.sealed_at:
                found["sealed_timestamp_seconds"] = state.sealed_at
            if state.writers:
                found["oldest_head_timestamp_seconds"] = min(state.writers.values())
            if self._witnesses:
                found["cosignatures"] = state.cosigned
        return found

    def _sealed(self, sealed: Sealed) -> None:
        state = self.state
        state.sealed_at, state.size = self.ledger.clock.time(), sealed.checkpoint.size
        members = sealed.members.by_name.values()
        state.writers = {one.writer: unix_of(one.head.at) for one in members if one.head and not one.retired}
        state.altered = {writer: str(error) for writer, error in sealed.altered.items()}
        state.unread = {writer: str(error) for writer, error in sealed.unread.items()}

    def _ask(self, head: Head) -> Cosigned:
        verifiers = [parse_vkey(self.ledger.vkey)]
        with ledger_nodes(self.ledger, head) as nodes:
            return cosign(head.note, nodes, self._witnesses, self._network, verifiers=verifiers, known=self._witnessed)

    def _cosigned(self, found: Cosigned) -> None:
        state = self.state
        state.cosigned = sum(one.verdict == "cosigned" for one in found.told)
        # One that does not answer is not ill health of the ledger: `witnesses_needed` is judged by verification.
        state.witness_trouble = {
            one.witness.name: one.verdict for one in found.told if one.verdict in ("ahead", "contradicts")
        }


def sweep(ledger: Ledger) -> list[str]:
    """Bring slots in order that a crash left, or a store that did not answer: what was cut off is named, what is recorded is
    published. Slots that processes have are theirs; one that cannot be opened is told in the log, and left. The names of those
    that are in order now."""
    done = []
    for writer in writers_here(ledger):
        if not (slot_folder(ledger, writer) / "open").exists():
            continue
        slot = try_lock(ledger, writer)
        if slot is None:
            continue
        try:
            opened = open_slot(ledger, slot)
            opened.close()
        except (LedgerError, OSError) as error:
            log.error("ledger %s: slot %s cannot be brought in order: %s", ledger.name, writer, error)
            continue
        if opened.clean:
            log.info("ledger %s: slot %s was left open and is in order now", ledger.name, writer)
            done.append(writer)
    return done


def new_service(service: Service, routers: Sequence[APIRouter] = ()) -> FastAPI:
    """What `listen` answers: `/healthz`, `/metrics`, and the routes of `routers`."""
    app = FastAPI(title="s3integrity", docs_url=None, redoc_url=None, openapi_url=None)
    registry = new_registry("s3integrity", GaugeCollector(METRICS, service.ledger.name, service.figures))

    @app.get("/healthz")
    def healthz() -> Response:
        status, document = service.health()
        return JSONResponse(document, status)

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(generate_latest(registry), 200, headers={"Content-Type": CONTENT_TYPE_LATEST})

    for router in routers:
        app.include_router(router)
    return app


@contextmanager
def listening(app: FastAPI, listen: str) -> Iterator[str]:
    """Serve `app` at HOST:PORT from a thread of its own while the block runs; its URL (port 0 takes any). ConfigError where
    the address cannot be had."""
    host, _, port = listen.rpartition(":")
    bare = host.strip("[]")
    try:
        opened = socket.create_server((bare, int(port)), family=socket.AF_INET6 if ":" in bare else socket.AF_INET)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {listen}: {error.strerror or error}", hint="change `listen` of the ledger"
        ) from error
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            limit_concurrency=REQUESTS_AT_ONCE,
            timeout_graceful_shutdown=END_S,
        )
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]}, name="listen", daemon=True)
    thread.start()
    try:
        yield f"http://{host}:{opened.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        opened.close()


def run(service: Service, stop: threading.Event, alive: Callable[[str], None], *, slice_s: float = 0.5) -> None:
    """Rounds until `stop` is set; `alive` is called all the time, with a line of what is."""
    period = service.ledger.settings.seal_s
    while not stop.is_set():
        began = time.monotonic()
        service.round()
        text = service.state.error or f"{service.state.size:,} records in the ledger's own log"
        while not stop.is_set() and time.monotonic() - began < period:
            alive(text)
            time.sleep(min(slice_s, period))


# --- metrics ---------------------------------------------------------------------------------------------------------


METRICS = gauges(
    "ledger",
    ("healthy", "0 or 1", "What `/healthz` says"),
    ("sealed_timestamp_seconds", "seconds", "When the heads of the writers were last sealed, in Unix time"),
    ("size", "records", "Of the ledger's own log"),
    ("writers", "writers", "That have a head and are not retired"),
    ("oldest_head_timestamp_seconds", "seconds", "When the head that is oldest was recorded, in Unix time"),
    ("altered_writers", "writers", "Whose logs do not hold: somebody changed, cut or replaced them"),
    ("unread_writers", "writers", "Whose logs could not be read at the last sealing"),
    ("cosignatures", "witnesses", "That cosigned the last checkpoint"),
    ("slots", "slots", "Of this host"),
    ("slots_in_use", "slots", "That processes have now"),
    ("slots_left", "slots", "In use, or left with records that are not published"),
    ("swept_slots", "times", "That a slot was left by a crash and brought in order, since the start"),
    ("local_bytes", "bytes", "Of the local logs of this host's slots"),
)
"""All have the label `ledger`; one without a figure is left out."""


_HEAD = """
## Ledgers

`listen` in `[ledger.NAME]` has `s3integrity serve` answer at `/metrics`, and at `/healthz`
([operations](integrity/operations.md)). It is off by default, and there is no TLS: listen on loopback, or where only your
monitors and senders of events reach.

Every metric has the label `ledger`. Those about sealing are there only where the ledger key is; one that nothing is known of
yet is absent.

| metric | type | unit | meaning |
| --- | --- | --- | --- |
"""


def ledger_metrics_markdown() -> str:
    """The part of docs/metrics.md on ledgers."""
    return _HEAD + gauge_rows(METRICS)

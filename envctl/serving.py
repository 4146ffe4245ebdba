"""A console that runs: its parts from the configuration, and the process that serves them until it is told to stop.

    role      serves pages, API, guests, consoles     does jobs, reconciles, keeps the schedule
    web       yes                                     no
    worker    `/healthz`, `/readyz`, `/metrics`       yes
    all       yes                                     yes

One rule: the process keeps nothing that is not in the database, the bucket or at the hypervisor, so it may be killed and
started at any time; several may run beside each other on one PostgreSQL.
"""

import asyncio
import contextlib
import errno
import gc
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

import uvicorn
from fastapi import FastAPI

from envctl.accounts import oidc
from envctl.audit import Audit
from envctl.calling import Context
from envctl.database.access import Database, sqlite_url
from envctl.drivers.build import build_drivers
from envctl.fleet import Fleet
from envctl.homes.opening import open_homes
from envctl.live_settings import live
from envctl.provision.worker import Worker
from envctl.sealing import SecretBox
from envctl.web import health, metrics
from envctl.web.app import add_errors, create_app, new_app
from envctl.web.assets import missing_files
from envctl.web.bridge import Bridge
from envctl.web.events import Watchers
from envctl.web.health import Monitor
from envctl.web.security import Security, is_loopback
from envctl.web.signing_in import callback_url
from integrity.recording import open_writer
from s3core.clock import Clock, SystemClock
from s3core.credentials import secret_path
from s3core.exit_codes import ExitCode, register
from s3core.service_manager import ServiceManager, take_sockets
from s3core.settings import Config, ConfigError
from s3core.status_collector import installed_providers

log = logging.getLogger(__name__)

Role = Literal["web", "worker", "all"]
Ready = Callable[[str, Callable[[], None]], None]
"""Told when connections are taken: the address that is listened on, and what stops the process, callable from any thread."""
END_S: Final = 5.0
"""For requests under way when the process stops; a stream or a console is ended at once."""
THREADS: Final = 32
"""For what jobs ask of the database and the bucket."""
CONNECTIONS_MAX: Final = 2000
STATUS_S: Final = 10.0
COLLECT_AFTER: Final = (20_000, 10, 10)
"""Python's own: (700, 10, 10)."""
KEY_FILE: Final = "key"


class AddressUnavailable(Exception):
    """Another process has the port, or the host has no such address (yet). Trying again may cure it."""


register(AddressUnavailable, ExitCode.UNAVAILABLE)


@contextmanager
def open_context(
    config: Config,
    *,
    clock: Clock | None = None,
    wake: Callable[[], None] = lambda: None,
    told: Callable[[str], None] = lambda environment_id: None,
    ledger: bool = True,
) -> Iterator[Context]:
    """The parts, as `[envctl]` says; closed at the end. Nothing is asked of a bucket or a hypervisor. The database is opened as
    it is (`Database.migrate` makes it). ConfigError, CredentialsError; errors of a ledger that cannot be opened."""
    settings = config.envctl
    clock = clock or SystemClock()
    if not settings.homes:
        raise ConfigError(
            f"{config.path}: [envctl]: homes is not set",
            hint='say where homes are kept: homes = "s3://ENDPOINT/BUCKET/PREFIX"',
        )
    state_dir = Path(settings.state_dir)
    secrets = SecretBox.open_file(state_dir / KEY_FILE)
    with ExitStack() as stack:
        database = Database(settings.database or sqlite_url(state_dir))
        stack.callback(database.close)
        records = None
        if settings.ledger and ledger:
            records = open_writer(settings.ledger, config)
            stack.callback(records.close)
        try:
            homes = open_homes(
                settings.homes,
                secret=secrets.sub_key("homes"),
                config=config,
                clock=clock,
                guard_fraction=settings.guard_fraction,
            )
        except ValueError as error:
            raise ConfigError(f"{config.path}: [envctl]: homes: {error}") from error
        yield Context(
            settings=live(settings, database, clock),
            database=database,
            audit=Audit(database, records, clock),
            homes=homes,
            drivers=build_drivers(settings),
            secrets=secrets,
            clock=clock,
            wake=wake,
            told=told,
            fleet=Fleet(config, installed_providers()),
        )


def serve(
    config: Config,
    role: Role = "all",
    *,
    environ: MutableMapping[str, str] | None = None,
    ready: Ready = lambda url, stop: None,
) -> None:
    """Until SIGTERM or SIGINT (in the main thread), or `stop`. Errors of `open_context` and `listen`, DatabaseUnavailable."""
    environ = os.environ if environ is None else environ
    # It tells at each look that it has looked.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # A line for each question to a hypervisor would bury all others; with log_level = "debug" they are there.
    if not log.isEnabledFor(logging.DEBUG):
        logging.getLogger("httpx").setLevel(logging.WARNING)
    if role != "worker" and (gone := missing_files()):
        log.error(
            "browser code is missing (%s): pages do not refresh, screens and terminals stay empty; run `make assets` in the"
            " source tree, then install from it again",
            ", ".join(gone),
        )
    watchers = Watchers()
    workers: list[Worker] = []

    def wake() -> None:
        for one in workers:
            one.wake()

    with ExitStack() as stack:
        context = stack.enter_context(open_context(config, wake=wake, told=watchers.told))
        context.database.migrate()
        listening = stack.enter_context(listen(config, take_sockets(environ)))
        asyncio.run(
            _serve(context, config, role, listening, watchers, workers, ServiceManager(environ), environ, ready)
        )
    log.info("stopped")


@contextmanager
def listen(config: Config, given: Sequence[socket.socket] = ()) -> Iterator[socket.socket]:
    """Where the console answers: the socket that the service manager has `given`, else the address in the settings.
    AddressUnavailable, ConfigError. Over plain http beyond this host a warning says what does not work."""
    if len(given) > 1:
        raise ConfigError(
            f"systemd gave {len(given)} sockets, and the console serves one",
            hint="leave one ListenStream= in s3-envctl.socket (an empty one first clears those of the unit)",
        )
    host, _, port = config.envctl.listen.rpartition(":")
    bare = host.strip("[]")
    try:
        if given:
            opened = given[0]
            bare = str(opened.getsockname()[0])
        else:
            family = socket.AF_INET6 if ":" in bare else socket.AF_INET
            opened = socket.create_server((bare, int(port)), family=family, backlog=512)
        # asyncio does so by itself only where it made the socket; without, a small answer waits 40 ms for the other side's ACK.
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EADDRNOTAVAIL):
            raise AddressUnavailable(
                f"cannot listen on {config.envctl.listen}: {os.strerror(error.errno)}; what has it may end, an address may"
                " yet come: try again, or change `listen` in [envctl]"
            ) from error
        raise ConfigError(
            f"cannot listen on {config.envctl.listen}: {error.strerror or error}", hint="change `listen` in [envctl]"
        ) from error
    with opened:
        behind_tls = urlsplit(config.envctl.url).scheme == "https"
        if not config.envctl.certificate and not behind_tls and not is_loopback(bare):
            log.warning(
                "%s is plain http: nobody can sign in from another host; set certificate, or url to the https of a proxy",
                config.envctl.listen,
            )
        yield opened


async def _serve(
    context: Context,
    config: Config,
    role: Role,
    listening: socket.socket,
    watchers: Watchers,
    workers: list[Worker],
    manager: ServiceManager,
    environ: Mapping[str, str],
    ready: Ready,
) -> None:
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(THREADS, thread_name_prefix="jobs"))
    stop = asyncio.Event()
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
    monitor, bridge = Monitor(context), Bridge()
    if role == "worker":
        app = machines_app(context, monitor)
    else:
        provider = await asyncio.to_thread(oidc.open_provider, context, environ, callback_url(context))
        app = create_app(context, watchers=watchers, bridge_open=bridge, monitor=monitor, provider=provider)
    server = _Server(server_config(app, config, environ))
    work: dict[str, asyncio.Task[None]] = {"monitor": asyncio.create_task(monitor.run())}
    if role != "web":
        worker = Worker(context)
        workers.append(worker)
        work["worker"] = asyncio.create_task(worker.run())
    work["server"] = asyncio.create_task(server.serve(sockets=[listening]))
    stopping = asyncio.create_task(stop.wait())
    address = _address(config, listening)

    def stop_now() -> None:
        loop.call_soon_threadsafe(stop.set)

    ready_now = partial(ready, address, stop_now)
    settle_memory()
    told = asyncio.create_task(_tell(server, manager, role, address, ready_now))
    try:
        await asyncio.wait({stopping, *work.values()}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        manager.stopping()
        watchers.close()
        bridge.close()
        for worker in workers:
            worker.stop()
        server.should_exit = True
        for name, task in work.items():
            if name not in ("server", "worker"):
                task.cancel()
        told.cancel()
        stopping.cancel()
        ended = await asyncio.gather(*work.values(), return_exceptions=True)
        await asyncio.gather(told, stopping, return_exceptions=True)
        for driver in context.drivers.values():
            await driver.close()
    for name, how in zip(work, ended, strict=True):
        if isinstance(how, BaseException) and not isinstance(how, asyncio.CancelledError):
            # systemd starts the process again; what was under way goes on then.
            log.critical("%s ended by itself", name, exc_info=how)
            raise how


async def _tell(
    server: uvicorn.Server, manager: ServiceManager, role: Role, address: str, ready: Callable[[], None]
) -> None:
    """READY when connections are taken, then signs of life: from the loop that serves, so that one that hangs is seen."""
    while not server.started:
        await asyncio.sleep(0.02)
    manager.ready()
    manager.status(f"serving ({role})")
    log.info("serving at %s (%s)", address, role)
    ready()
    pause = manager.watchdog_s / 3 if manager.watchdog_s else STATUS_S
    while True:
        await asyncio.sleep(pause)
        manager.alive()


def settle_memory() -> None:
    """Modules, routes and models stay until the process ends: the collector need not walk through them again and again, which
    takes some 150 ms each time, in the middle of somebody's request. What is made from here on is collected as ever; young
    objects less often, because a long list has tens of thousands that all live until it is sent."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)


def machines_app(context: Context, monitor: Monitor) -> FastAPI:
    """What a worker answers: monitors alone."""
    app = new_app(described=False)
    add_errors(app)
    app.include_router(health.router(lambda: context, monitor))
    app.include_router(metrics.router(lambda: context, monitor))
    app.add_middleware(Security, get_context=lambda: context)
    return app


def server_config(app: FastAPI, config: Config, environ: Mapping[str, str]) -> uvicorn.Config:
    """Raises CredentialsError where the key is a credential that systemd did not give."""
    settings = config.envctl
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        # Whom to believe about addresses is decided in `web.security`, by `[envctl] proxies`.
        proxy_headers=False,
        lifespan="off",
        limit_concurrency=CONNECTIONS_MAX,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=int(END_S),
        ws_max_size=1 << 20,
        ws_max_queue=8,
        ws_per_message_deflate=False,
        ssl_certfile=settings.certificate or None,
        ssl_keyfile=secret_path(settings.private_key, environ) if settings.private_key else None,
    )


def _address(config: Config, listening: socket.socket) -> str:
    scheme = "https" if config.envctl.certificate else "http"
    host, _, _ = config.envctl.listen.rpartition(":")
    return f"{scheme}://{host}:{listening.getsockname()[1]}"


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are `_serve`'s: workers end with the server."""
        yield

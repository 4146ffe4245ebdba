"""Run the fake: in a thread of a test or of the demo, or as a process of its own.

One rule: it listens on loopback alone, on a free port unless one is asked for.

    with serve(small_cluster()) as served:
        settings = EnvctlDriverSettings(url=served.url, ...)
"""

import argparse
import contextlib
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import uvicorn

from envctl.fake_pve.app import application
from envctl.fake_pve.cluster import SECRET, TOKEN, Durations, FakePve, small_cluster

TICK_S: Final = 0.05
"""How often a server brings tasks up to the present when nobody asks."""
START_S: Final = 30.0


@dataclass
class Served:
    """A running server of one node. `close` ends it and waits for it."""

    fake: FakePve
    url: str
    _server: uvicorn.Server = field(repr=False)
    _thread: threading.Thread = field(repr=False)
    _ticking: threading.Event = field(repr=False)

    def close(self) -> None:
        self._ticking.set()
        self._server.should_exit = True
        self._server.force_exit = True
        self._thread.join(START_S)


def start(
    fake: FakePve,
    *,
    via: str = "",
    port: int = 0,
    certificate: Path | None = None,
    private_key: Path | None = None,
    clock_ahead_s: float = 0.0,
) -> Served:
    """Serve `fake` as node `via` (empty: the first) from a thread. RuntimeError: it did not come up."""
    listening = socket.create_server(("127.0.0.1", port))
    config = uvicorn.Config(
        application(fake, via, clock_ahead_s=clock_ahead_s),
        log_level="critical",  # a connection that a fault breaks off would be an error of ours
        access_log=False,
        date_header=False,
        ws_ping_interval=None,
        ssl_certfile=str(certificate) if certificate else None,
        ssl_keyfile=str(private_key) if private_key else None,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    ticking = threading.Event()

    def tick() -> None:
        while not ticking.wait(TICK_S):
            fake.advance()

    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name="fake-pve", daemon=True)
    thread.start()
    threading.Thread(target=tick, name="fake-pve-clock", daemon=True).start()
    end = time.monotonic() + START_S
    while not server.started:
        if time.monotonic() > end or not thread.is_alive():
            ticking.set()
            raise RuntimeError("the fake Proxmox VE did not start")
        time.sleep(0.005)
    scheme = "https" if certificate else "http"
    return Served(fake, f"{scheme}://127.0.0.1:{listening.getsockname()[1]}", server, thread, ticking)


@contextlib.contextmanager
def serve(fake: FakePve, *, via: str = "", port: int = 0) -> Iterator[Served]:
    served = start(fake, via=via, port=port)
    try:
        yield served
    finally:
        served.close()


def write_token(path: Path) -> str:
    """Write the fake's token to a private file; gives back the setting `token` that names it."""
    path.touch(mode=0o600)
    path.write_text(f"{TOKEN}={SECRET}\n", encoding="ascii")
    return f"file:{path}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m envctl.fake_pve.server", description="A Proxmox VE cluster that is not there."
    )
    parser.add_argument("--port", type=int, default=0, help="port on loopback; 0: a free one")
    parser.add_argument("--token-file", type=Path, help="write the API token there, mode 0600")
    parser.add_argument("--clone-s", type=float, default=0.0, help="how long a linked clone takes")
    parser.add_argument("--start-s", type=float, default=0.0, help="how long a start takes")
    options = parser.parse_args(arguments)
    fake = small_cluster(
        durations=Durations(clone=options.clone_s, full_clone=4 * options.clone_s, start=options.start_s)
    )
    if options.token_file:
        write_token(options.token_file)
    with serve(fake, port=options.port) as served:
        sys.stdout.write(f"{served.url}\n")
        sys.stdout.flush()
        with contextlib.suppress(KeyboardInterrupt):  # the ordinary way to end it
            while sys.stdin.read(1 << 16):
                pass
            threading.Event().wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What a service tells the service manager, and what it is given by it: sd_notify(3) and sd_listen_fds(3) of systemd.

One rule: telling is never a reason to fail. Without NOTIFY_SOCKET nothing is sent.
"""

import logging
import os
import socket
import time
from collections.abc import Mapping, MutableMapping

log = logging.getLogger(__name__)


class ServiceManager:
    """Safe to use from several threads."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        ours = environ.get("WATCHDOG_PID", "") in ("", str(os.getpid()))
        usec = environ.get("WATCHDOG_USEC", "")
        self.watchdog_s = int(usec) / 1e6 if ours and usec.isdigit() and self._address else 0.0
        """The service is killed when it is silent for so long; 0.0: never."""

    def ready(self) -> None:
        self._send("READY=1")

    def reloading(self) -> None:
        """The configuration is being read again; `ready` says that this is over."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def more_time(self, seconds: float) -> None:
        """The start or the stop under way goes on, and may take so long from now on (EXTEND_TIMEOUT_USEC)."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send("STATUS=" + " ".join(text.split()))

    def alive(self) -> None:
        self._send("WATCHDOG=1")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        # "@": a name in the abstract namespace (unix(7)).
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.settimeout(1.0)
                sock.sendto(message.encode(), address)
        except OSError as error:
            log.debug("the service manager was not told %s: %s", message.partition("=")[0], error)


LISTEN_FD_FIRST = 3


def take_sockets(environ: MutableMapping[str, str]) -> list[socket.socket]:
    """The listening sockets that the service manager opened for this process (a .socket unit), in its order; empty without.

    `environ` loses what told of them, so that no child takes them for its own. ValueError for what is not a number."""
    owner, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    environ.pop("LISTEN_FDNAMES", None)
    if not count or owner != str(os.getpid()):
        return []
    given = []
    for descriptor in range(LISTEN_FD_FIRST, LISTEN_FD_FIRST + int(count)):
        os.set_inheritable(descriptor, False)
        given.append(socket.socket(fileno=descriptor))
    return given

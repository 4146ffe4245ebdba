"""A TCP way to a port on this host, which a test can cut and mend: one path of several to a target.

One rule: bytes pass unchanged; `cut` ends what is open and refuses what comes, as a dead switch port does.
"""

import contextlib
import socket
import threading

_PIECE = 1 << 18


class TcpRelay:
    """Listens on `port`, a free one of the loopback."""

    def __init__(self, upstream: int) -> None:
        self._upstream = upstream
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._spawn(self._accept, self._listener)

    def cut(self) -> None:
        """Connections end now, new ones are refused."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            held, self._open = self._open, set()
        for one in held:
            with contextlib.suppress(OSError):  # it may have ended by itself
                one.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        """The way is open again, on the same port."""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self._spawn(self._accept, self._listener)

    def _spawn(self, work: object, *arguments: object) -> None:
        threading.Thread(target=work, args=arguments, daemon=True).start()  # type: ignore[arg-type]  # a callable

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return  # closed by cut
            try:
                server = socket.create_connection(("127.0.0.1", self._upstream))
            except OSError:
                client.close()
                continue
            for one in (client, server):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._open |= {client, server}
            self._spawn(self._pass, client, server)
            self._spawn(self._pass, server, client)

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while piece := source.recv(_PIECE):
                sink.sendall(piece)
        except OSError:
            pass  # cut, or either side has gone: both are ended below
        finally:
            with self._lock:
                self._open -= {source, sink}
            for one in (source, sink):
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

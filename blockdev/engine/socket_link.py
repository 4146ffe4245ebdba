"""Messages of `link` over a socket pair: four bytes of length, then a pickle.

One rule: both ends are this program at this version (the parent starts the worker), and the pair is private to them; that
is what makes pickle fit. Nothing that came over a network is ever unpickled.
"""

import asyncio
import pickle
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import Any

_LENGTH = struct.Struct("<I")
READ_BYTES = 1 << 20


def _ignore(message: Any) -> None:
    """Default of `on_message`."""


class SocketLink:
    """One end. `send` never blocks; `on_message` and `on_closed` are called on the loop's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket, on_closed: Callable[[], None]) -> None:
        sock.setblocking(False)
        self.on_message: Callable[[Any], None] = _ignore
        self._loop = loop
        self._socket = sock
        self._on_closed = on_closed
        self._in = bytearray()
        self._out: deque[memoryview] = deque()
        self._writing = False
        self._closed = False
        loop.add_reader(sock.fileno(), self._readable)

    def send(self, message: Any) -> None:
        """Queue a message; dropped once the other end is gone (`on_closed` says so)."""
        if self._closed:
            return
        body = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
        self._out.append(memoryview(_LENGTH.pack(len(body)) + body))
        if not self._writing:
            self._flush()

    @property
    def unsent(self) -> bool:
        """True while messages wait for the other end to read."""
        return bool(self._out) and not self._closed

    def _flush(self) -> None:
        while self._out:
            try:
                sent = self._socket.send(self._out[0])
            except BlockingIOError:
                if not self._writing:
                    self._writing = True
                    self._loop.add_writer(self._socket.fileno(), self._flush)
                return
            except OSError:
                self.close()
                return
            if sent == len(self._out[0]):
                self._out.popleft()
            else:
                self._out[0] = self._out[0][sent:]
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._socket.fileno())

    def _readable(self) -> None:
        try:
            data = self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        self._in += data
        at = 0
        while len(self._in) - at >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._in, at)
            end = at + _LENGTH.size + size
            if len(self._in) < end:
                break
            message = pickle.loads(memoryview(self._in)[at + _LENGTH.size : end])
            at = end
            self.on_message(message)
        del self._in[:at]

    def close(self) -> None:
        """Idempotent; `on_closed` is called once."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._socket.fileno())
        if self._writing:
            self._loop.remove_writer(self._socket.fileno())
        self._socket.close()
        self._on_closed()

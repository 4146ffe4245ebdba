"""An HTTP proxy that knows CONNECT and nothing else, and remembers whom it connected."""

import socket
import threading

PIPE_BYTES = 65536


class TunnelProxy:
    """With `refuse` every CONNECT is answered 403."""

    def __init__(self, *, refuse: bool = False) -> None:
        self._refuse = refuse
        self.asked: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def stop(self) -> None:
        """Ends listening; tunnels end when either of their sides does."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(timeout=5)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed by stop
            self._spawn(self._connect, client)

    def _connect(self, client: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            received = client.recv(PIPE_BYTES)
            if not received:
                client.close()
                return
            head += received
        target = head.split()[1].decode()
        self.asked.append(f"{head.split()[0].decode()} {target}")
        if self._refuse:
            client.sendall(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n")
            client.close()
            return
        host, _, port = target.rpartition(":")
        server = socket.create_connection((host, int(port)))
        client.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
        self._spawn(self._pump, server, client)
        self._pump(client, server)

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while received := source.recv(PIPE_BYTES):
                sink.sendall(received)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            # One side was reset: the other must not wait for it.
            sink.close()

    def _spawn(self, work: object, *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)  # type: ignore[arg-type]  # a callable
        self._threads.append(thread)
        thread.start()

"""A TCP relay that a test can cut, and an HTTP CONNECT proxy: what stands between a site and its hub."""

import contextlib
import socket
import threading
from collections.abc import Iterator


class Relay:
    """Passes bytes between who connects here and one address; `cut` hangs up on all, `restore` lets them come back."""

    def __init__(self, port: int):
        self.target = ("127.0.0.1", port)
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        self.is_open = True
        self.num_connections = 0
        self.num_bytes = 0
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self.is_open = False
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def restore(self) -> None:
        self.is_open = True

    def close(self) -> None:
        self.cut()
        self.server.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.server.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            if not self.is_open:
                return
            target = self._target(client)
            if target is None:
                return
            with contextlib.suppress(OSError), socket.create_connection(target) as upstream:
                self.num_connections += 1
                self._sockets += [client, upstream]
                back = threading.Thread(target=self._pass, args=(upstream, client), daemon=True)
                back.start()
                self._pass(client, upstream)
                back.join()

    def _target(self, client: socket.socket) -> tuple[str, int] | None:  # noqa: ARG002
        return self.target

    def _pass(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while part := one.recv(1 << 16):
                self.num_bytes += len(part)
                other.sendall(part)
            other.shutdown(socket.SHUT_WR)


class ConnectProxy(Relay):
    """Lets a client through to the address that it names."""

    asked: list[str]

    def _target(self, client: socket.socket) -> tuple[str, int] | None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += client.recv(1)
        verb, address, _ = head.split(b"\r\n")[0].decode().split()
        self.asked = [*getattr(self, "asked", []), f"{verb} {address}"]
        client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        host, port = address.rsplit(":", 1)
        return host, int(port)


@contextlib.contextmanager
def relay(port: int, kind: type[Relay] = Relay) -> Iterator[Relay]:
    made = kind(port)
    try:
        yield made
    finally:
        made.close()

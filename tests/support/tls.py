"""TLS in front of a plain server, with a certificate that only tests trust."""

from __future__ import annotations

import socket
import ssl
import threading
from pathlib import Path
from typing import Self

from support.waiting import DEADLINE_S

DATA = Path(__file__).parents[1] / "data" / "tls"
AUTHORITY = str(DATA / "ca.pem")  # signed what stands in SERVER, for localhost and 127.0.0.1
SERVER = str(DATA / "server.pem")

_PIECE_BYTES = 64 * 1024


def trusting() -> ssl.SSLContext:
    """Return a context that trusts the tests' authority."""
    return ssl.create_default_context(cafile=AUTHORITY)


class TlsFront:
    """Takes TLS connections and passes their bytes on to `address`, both ways; a context manager."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._behind = address
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.load_cert_chain(SERVER)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._begin(self._accept_all)
        return self

    def __exit__(self, *_: object) -> None:
        for sock in [self._listener, *self._sockets]:
            _shut(sock)
        self._listener.close()
        for thread in self._threads:
            thread.join(DEADLINE_S)

    def _begin(self, run: object, *args: object) -> None:
        thread = threading.Thread(target=run, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept_all(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            self._begin(self._serve, plain)

    def _serve(self, plain: socket.socket) -> None:
        try:
            front = self._context.wrap_socket(plain, server_side=True)
        except (OSError, ssl.SSLError):
            plain.close()
            return
        back = socket.create_connection(self._behind)
        self._sockets += [front, back]
        self._begin(_pass, back, front)
        _pass(front, back)


def _pass(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(_PIECE_BYTES):
            target.sendall(data)
    except (OSError, ValueError):
        pass
    _shut(source)
    _shut(target)


def _shut(sock: socket.socket) -> None:
    try:
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
    except OSError:
        pass

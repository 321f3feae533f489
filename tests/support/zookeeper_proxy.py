"""A TCP proxy before one ZooKeeper server: it can be cut, stand silent, or lose one request or one reply.

It reads just enough of ZooKeeper's framing to tell requests apart: after the connect exchange each packet is a big-endian
length, then an xid, then in requests the operation; replies begin with the xid of what they answer.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Literal

CREATE, DELETE, GET_DATA, SET_DATA, SYNC, PING, MULTI, CREATE_2 = 1, 2, 4, 5, 9, 11, 14, 15
WRITES = frozenset((CREATE, DELETE, SET_DATA, MULTI, CREATE_2))
PACKET_BYTES_MAX = 16 << 20
POLL_S = 0.5

_HEAD = struct.Struct(">i")


class Proxy:
    """Forwards connections to `address` ("host:port"); a context manager, with a thread of its own."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.RLock()
        self._links: set[_Link] = set()
        self._is_cut = self._is_silent = self._ending = False
        self._losing: tuple[str, frozenset[int], int] | None = None
        self.lost = threading.Event()  # what `lose` asked for has happened
        self.lost_count = 0
        self._wake_in, self._wake_out = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._wake_out, selectors.EVENT_READ, self._drain_wakes)
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def connection_count(self) -> int:
        return len(self._links)

    def cut(self) -> None:
        """End all connections, and each new one at once, until `mend`."""
        with self._lock:
            self._is_cut = True
            self.drop()

    def drop(self) -> None:
        """End all connections; new ones are served."""
        with self._lock:
            for link in list(self._links):
                link.close()

    def silence(self) -> None:
        """Forward nothing, keep everything open, take new connections: a network that swallows packets. Until `mend`."""
        with self._lock:
            self._is_silent = True
            for link in self._links:
                link.listen(False)

    def mend(self) -> None:
        """Be a good network again; what came in during a silence arrives now."""
        with self._lock:
            self._is_cut = self._is_silent = False
            for link in self._links:
                link.listen(True)
        self._wake()

    def lose(
        self, what: Literal["request", "reply"], operations: frozenset[int] = WRITES, *, skip: int = 0
    ) -> None:
        """Lose the next request of these operations, or the reply to it, and end its connection; once.

        `skip` so many of them first. Lost requests never reached the server; those whose reply is lost were done.
        """
        with self._lock:
            self.lost.clear()
            self._losing = (what, operations, skip)

    def close(self) -> None:
        with self._lock:
            self._ending = True
        self._wake()
        self._thread.join(10)
        self.drop()
        for each in (self._listener, self._wake_in, self._wake_out):
            each.close()
        self._selector.close()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- the thread

    def _run(self) -> None:
        while not self._ending:
            for key, _ in self._selector.select(POLL_S):
                with self._lock:
                    if not self._ending:
                        key.data()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            self._wake_in.send(b"x")

    def _drain_wakes(self) -> None:
        self._wake_out.recv(4096)

    def _accept(self) -> None:
        near, _ = self._listener.accept()
        if self._is_cut:
            near.close()
            return
        try:
            far = socket.create_connection(self._target, timeout=5)
        except OSError:
            near.close()
            return
        self._links.add(_Link(self, near, far))

    def _verdict(self, operation: int) -> str:
        """Return what to lose of a request that came just now: "request", "reply" or ""."""
        if self._losing is None:
            return ""
        what, operations, skip = self._losing
        if operation not in operations:
            return ""
        self._losing = None if skip == 0 else (what, operations, skip - 1)
        return what if skip == 0 else ""

    def _lost(self) -> None:
        self.lost_count += 1
        self.lost.set()


class _Link:
    """One connection through the proxy."""

    def __init__(self, proxy: Proxy, near: socket.socket, far: socket.socket) -> None:
        self._proxy = proxy
        self._near, self._far = near, far
        self._to_far, self._to_near = _Packets(), _Packets()
        self._doomed_xid: int | None = None
        self._is_listening = False
        self._is_closed = False
        for each in (near, far):
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            each.settimeout(5)
        self.listen(not proxy._is_silent)

    def listen(self, yes: bool) -> None:
        if self._is_closed or yes == self._is_listening:
            return
        self._is_listening = yes
        selector = self._proxy._selector
        if yes:
            selector.register(self._near, selectors.EVENT_READ, lambda: self._pump(self._near, self._forward))
            selector.register(self._far, selectors.EVENT_READ, lambda: self._pump(self._far, self._answer))
        else:
            selector.unregister(self._near)
            selector.unregister(self._far)
        self._proxy._wake()

    def close(self) -> None:
        if self._is_closed:
            return
        self.listen(False)
        self._is_closed = True
        self._near.close()
        self._far.close()
        self._proxy._links.discard(self)

    def _pump(self, source: socket.socket, take: Callable[[bytes], None]) -> None:
        if not self._is_listening:
            return
        try:
            data = source.recv(1 << 18, socket.MSG_DONTWAIT)
            if data:
                take(data)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()

    def _forward(self, data: bytes) -> None:
        for packet in self._to_far.split(data):
            if self._to_far.count > 1 and len(packet) >= 12:
                xid, operation = struct.unpack_from(">ii", packet, 4)
                verdict = self._proxy._verdict(operation)
                if verdict == "request":
                    self._proxy._lost()
                    self.close()
                    return
                if verdict == "reply":
                    self._doomed_xid = xid
            self._far.sendall(packet)

    def _answer(self, data: bytes) -> None:
        for packet in self._to_near.split(data):
            if self._to_near.count > 1 and self._doomed_xid is not None:
                (xid,) = _HEAD.unpack_from(packet, 4)
                if xid == self._doomed_xid:
                    self._proxy._lost()
                    self.close()
                    return
            self._near.sendall(packet)


class _Packets:
    """A byte stream cut into whole packets, length included; `count` of them so far."""

    def __init__(self) -> None:
        self._rest = b""
        self.count = 0

    def split(self, data: bytes) -> Iterator[bytes]:
        data, self._rest = self._rest + data, b""
        start = 0
        while len(data) - start >= _HEAD.size:
            (length,) = _HEAD.unpack_from(data, start)
            stop = start + _HEAD.size + length
            if not 0 <= length <= PACKET_BYTES_MAX:
                stop = len(data)  # a four-letter word: no packet at all
            if stop > len(data):
                break
            self.count += 1
            yield data[start:stop]
            start = stop
        self._rest = data[start:]

"""A TCP proxy before a Mesos master that notes which calls a scheduler makes, and when. It changes no byte."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import time
from typing import Any, NamedTuple

_STREAM_ID = re.compile(rb"\r\nmesos-stream-id: *(\S+)", re.IGNORECASE)
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Call(NamedTuple):
    at_s: float  # time.monotonic()
    kind: str  # RECONCILE ..., or "GET /path" of a request that is no call
    body: Any = None
    stream_id: str = ""  # of the subscription that it belongs to


class ListeningProxy:
    """Forwards connections to `address` ("host:port"); a context manager. `calls` has all requests so far."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.calls: list[Call] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> ListeningProxy:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def kinds(self, since: int = 0) -> list[str]:
        return [call.kind for call in self.calls[since:]]

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
                threading.Thread(target=self._relay, args=(near, far, True), daemon=True).start()
                threading.Thread(target=self._relay, args=(far, near, False), daemon=True).start()

    def _relay(self, source: socket.socket, target: socket.socket, is_request: bool) -> None:
        seen = b""
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                if is_request:
                    seen = self._note(seen + data)
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _note(self, seen: bytes) -> bytes:
        """Note the requests that are whole; return what is left."""
        while (end := seen.find(b"\r\n\r\n")) >= 0:
            head, start = seen[:end], end + 4
            length = _LENGTH.search(head)
            stop = start + (int(length[1]) if length else 0)
            if len(seen) < stop:
                break
            method, path = head.split(b" ", 2)[:2]
            body = json.loads(seen[start:stop]) if method == b"POST" else None
            kind = f"{method.decode()} {path.decode()}" if body is None else str(body["type"])
            stream_id = _STREAM_ID.search(head)
            name = stream_id[1].decode() if stream_id else ""
            self.calls.append(Call(time.monotonic(), kind, body, name))
            seen = seen[stop:]
        return seen

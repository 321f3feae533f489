"""One HTTP request on a connection of its own, and its answer, read by hand: whole, or a stream of records as they come.

No HTTP library stands between, because how a stream ends (final chunk, FIN, reset) and what the header holds is what is compared.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import time
from typing import Any, NamedTuple

FINAL_CHUNK = "final chunk"
FIN = "FIN without final chunk"
RESET = "reset"

_PIECE_BYTES = 1 << 16


class Arrived(NamedTuple):
    """An event, when it came (time.monotonic) and which line was being played then."""

    event: dict[str, Any]
    at: float
    line: int


class Clock:
    """What all exchanges of a run share: a condition that is notified of every change, and the line that is being played."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.line = 0


class Exchange:
    """A request that was sent, and what is known of its answer so far. Fields are read under `clock.changed`."""

    def __init__(self, opened: socket.socket, clock: Clock, request: bytes, *, has_body: bool = True) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.text = ""
        self.events: list[Arrived] = []
        self.ended = ""  # how, once it has
        self.ended_at = 0.0
        self._clock = clock
        self._socket = opened
        self._buffer = b""
        self._has_body = has_body  # the answer to HEAD tells a length and has none
        with contextlib.suppress(OSError):  # the answer may come, and the connection end, before all was sent
            opened.sendall(request)
        threading.Thread(target=self._read, daemon=True).start()

    @property
    def is_answered(self) -> bool:
        """Whether the answer is whole, or the header of a stream is there, or there will be none."""
        return bool(self.ended) or (
            self.status != 0 and "chunked" in self.headers.get("Transfer-Encoding", "")
        )

    def close(self, *, reset: bool = False) -> None:
        """Drop the connection, by FIN or by RST."""
        if reset:
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with contextlib.suppress(OSError):
            if not reset:
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()

    def _read(self) -> None:
        try:
            how = self._read_answer()
        except (ConnectionError, OSError):
            how = RESET
        except EOFError:
            how = FIN
        with self._clock.changed:
            self.ended, self.ended_at = how, time.monotonic()
            self._clock.changed.notify_all()
        with contextlib.suppress(OSError):
            self._socket.close()

    def _read_answer(self) -> str:
        head = self._until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        headers = dict(line.split(": ", 1) for line in head[1:])
        chunked = headers.get("Transfer-Encoding") == "chunked"
        with self._clock.changed:
            self.headers = headers
            self.status = int(head[0].split()[1])
            self._clock.changed.notify_all()
        if not chunked:
            text = self._exactly(int(headers.get("Content-Length", 0)) if self._has_body else 0).decode()
            with self._clock.changed:
                self.text = text
            return "whole"
        records = b""
        while size := int(self._until(b"\r\n"), 16):
            records = self._take(records + self._exactly(size))
            assert self._exactly(2) == b"\r\n", "a chunk does not end with CRLF"
        return FINAL_CHUNK

    def _take(self, data: bytes) -> bytes:
        """Take the whole records out of `data` and return the rest."""
        while (mark := data.find(b"\n")) >= 0 and len(data) > mark + int(data[:mark]):
            stop = mark + 1 + int(data[:mark])
            arrived = Arrived(json.loads(data[mark + 1 : stop]), time.monotonic(), self._clock.line)
            data = data[stop:]
            with self._clock.changed:
                self.events.append(arrived)
                self._clock.changed.notify_all()
        return data

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._buffer:
            self._more()
        found, _, self._buffer = self._buffer.partition(mark)
        return found

    def _exactly(self, count: int) -> bytes:
        while len(self._buffer) < count:
            self._more()
        found, self._buffer = self._buffer[:count], self._buffer[count:]
        return found

    def _more(self) -> None:
        piece = self._socket.recv(_PIECE_BYTES)
        if not piece:
            raise EOFError
        self._buffer += piece


def request_bytes(method: str, path: str, host: str, headers: dict[str, str], body: bytes) -> bytes:
    """Return a request with exactly these headers, and Host and the body's length."""
    lines = [
        f"{method} {path} HTTP/1.1",
        f"Host: {host}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    if headers.get("Transfer-Encoding") == "chunked":
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    else:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def connect(address: str, seconds: float) -> socket.socket | None:
    """Connect to HOST:PORT; try for some time while nobody listens there, then return None."""
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + seconds
    while True:
        try:
            opened = socket.create_connection((host, int(port)), timeout=seconds)
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                return None
            time.sleep(0.02)
            continue
        opened.settimeout(None)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return opened


def is_listening(address: str) -> bool:
    """Whether HOST:PORT takes connections."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1.0).close()
    except ConnectionRefusedError:
        return False
    return True

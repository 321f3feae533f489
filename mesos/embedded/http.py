"""A small HTTP/1.1 server on gevent: calls that are answered, and streams of records that stay open.

Owns bytes on sockets: request parsing with bounds, keep-alive, chunked streams (one record a chunk), noticing that the other side
is gone. Knows nothing of Mesos but the shape of a record. A request that is no HTTP, or whose head is too long, is not answered:
the connection is closed, as libprocess does.
"""

from __future__ import annotations

import errno
import json
import logging
import random
import socket as stdlib_socket
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from typing import TypeAlias

import gevent
from gevent import queue, socket
from gevent.event import Event
from gevent.pool import Pool
from gevent.server import StreamServer

from stoker.mesos.embedded.core.calls import Answer

logger = logging.getLogger(__name__)

HEAD_BYTES_MAX = 64 * 1024
BODY_BYTES_MAX = 64 * 1024 * 1024
RECORDS_MAX = 10_000  # that wait for a slow reader of one stream, before it is cut off
RECORDS_BYTES_MAX = (
    64 * 1024 * 1024
)  # of those; one record may be larger where no other waits (14 MB are 10,000 offers)
CONNECTIONS_MAX = 1000
REQUEST_SECONDS_MAX = 60  # from its first byte to its last

# Where a port is taken that must be had again after a restart: below Linux' ephemeral ports, so that no outgoing connection
# takes it meanwhile.
_STEADY_PORTS = range(10_000, 21_000)
_READ_BYTES = 64 * 1024
_ABORT = b""  # among the records of a stream: break it off


@dataclass(frozen=True, slots=True)
class Request:
    """A request; header names are lower-case, `path` has no query and no slash at its end."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(slots=True)
class Stream:
    """An open answer of records. `send`, `finish` and `abort` never block; what ended it shows in `broken`."""

    number: int
    headers: tuple[tuple[str, str], ...]
    on_broken: Callable[[int], None]
    records: queue.Queue[bytes | None] = field(default_factory=lambda: queue.Queue(RECORDS_MAX))
    broken: Event = field(default_factory=Event)
    waiting_bytes: int = 0

    def send(self, record: bytes) -> None:
        """Queue one record; a reader that is too slow is cut off."""
        if self.waiting_bytes and self.waiting_bytes + len(record) > RECORDS_BYTES_MAX:
            logger.warning("stream=%d reader is %d bytes behind: cut off", self.number, self.waiting_bytes)
            self.broken.set()
            return
        try:
            self.records.put_nowait(record)
            self.waiting_bytes += len(record)
        except queue.Full:
            logger.warning("stream=%d reader is %d records behind: cut off", self.number, RECORDS_MAX)
            self.broken.set()

    def take(self) -> bytes | None:
        """Wait for the next record and return it; None: the stream ends here."""
        record: bytes | None = self.records.get()
        self.waiting_bytes -= len(record or b"")
        return record

    def finish(self) -> None:
        """End the stream properly after what is queued."""
        self._end(None)

    def abort(self) -> None:
        """Break the stream off after what is queued, as the end of the process behind it would."""
        self._end(_ABORT)

    def _end(self, mark: bytes | None) -> None:
        try:
            self.records.put_nowait(mark)
        except queue.Full:
            self.broken.set()


Handler: TypeAlias = Callable[[Request], Answer | Stream]


class Malformed(Exception):
    """What came is no request that can be answered; the connection is closed."""


def json_answer(body: object) -> Answer:
    """Return a 200 with `body` as JSON."""
    return Answer(200, json.dumps(body, separators=(",", ":")), (("Content-Type", "application/json"),))


def listen_steadily(host: str, *, avoid: Callable[[int], bool]) -> socket.socket:
    """Return a listening socket on a free port for which `avoid` is false, and that can be had again later.

    :raises OSError: the address is not ours, or no port is free.
    """
    for port in random.sample(_STEADY_PORTS, 200):
        if avoid(port):
            continue
        try:
            return listen(host, port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    raise OSError(f"no free port on {host} between {_STEADY_PORTS[0]} and {_STEADY_PORTS[-1]}")


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; `port` 0 is any free one.

    :raises OSError: the address is not ours, or the port is taken.
    """
    sock = socket.socket(stdlib_socket.AF_INET, stdlib_socket.SOCK_STREAM)
    try:
        sock.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(256)
    except OSError:
        sock.close()
        raise
    return sock


class Server:
    """Answers requests on one listening socket. While it is frozen, connections stay and nothing is read or written."""

    def __init__(self, listener: socket.socket, handler: Handler) -> None:
        self._handler = handler
        self._running = Event()
        self._running.set()
        self._connections = Pool(CONNECTIONS_MAX)
        self._server = StreamServer(listener, self._serve, spawn=self._connections)

    def start(self) -> None:
        self._server.start()

    def stop(self, *, block: bool = True) -> None:
        """Accept nothing more and cut every connection; with `block` wait until they are."""
        self._server.stop(timeout=0)
        self._connections.kill(block=block, timeout=5)

    def freeze(self) -> None:
        self._running.clear()

    def thaw(self) -> None:
        self._running.set()

    def _serve(self, sock: socket.socket, address: object) -> None:
        sock.setsockopt(stdlib_socket.IPPROTO_TCP, stdlib_socket.TCP_NODELAY, 1)
        connection = _Connection(sock)
        try:
            while self._serve_one(connection):
                pass
        except (Malformed, OSError, gevent.Timeout) as error:
            logger.debug("connection from %s closed: %s", address, error)
        finally:
            sock.close()

    def _serve_one(self, connection: _Connection) -> bool:
        request = connection.read_request()
        if request is None:
            return False
        self._running.wait()
        reply = request if isinstance(request, Answer) else self._handler(request)
        if isinstance(reply, Stream):
            connection.run_stream(reply, self._running)
            return False
        connection.write_answer(reply)
        return connection.keep_alive


class _Connection:
    """One connection: what was read and not yet used, and how the last request wants it to go on."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = bytearray()
        self._method = ""
        self.keep_alive = True

    def read_request(self) -> Request | Answer | None:
        """Return the next request, the refusal of one that cannot be taken, or None at the end.

        :raises Malformed: no HTTP. :raises OSError: the connection broke.
        """
        if not self._buffer and not self._fill():
            return None
        with gevent.Timeout(REQUEST_SECONDS_MAX):
            head = self._read_until(b"\r\n\r\n", HEAD_BYTES_MAX)
            method, target, headers = _parse_head(head)
            self._method = method
            self.keep_alive = headers.get("connection", "").lower() != "close"
            if headers.get("expect", "").lower() == "100-continue":
                self._sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            body = self._read_body(headers)
        if body is None:
            self.keep_alive = False
            return Answer(413, f"The body is larger than {BODY_BYTES_MAX} bytes")
        if headers.get("content-encoding") == "gzip":
            body = _gunzip(body)
            if body is None:
                return Answer(500, "failed to decode body")
        path = target.split("?", 1)[0]
        return Request(method, path.rstrip("/") or "/", headers, body)

    def write_answer(self, answer: Answer) -> None:
        names = {name.lower() for name, _ in answer.headers}
        body = answer.text.encode("utf-8", "replace")
        headers = [*answer.headers]
        if body and "content-type" not in names:
            headers.append(("Content-Type", "text/plain; charset=utf-8"))
        headers.append(("Content-Length", str(len(body))))
        head = _head(answer.status, headers)
        self._sock.sendall(head if self._method == "HEAD" else head + body)

    def run_stream(self, stream: Stream, running: Event) -> None:
        """Write the stream's records while `running`, until it is finished or the other side is gone."""
        watcher = gevent.spawn(self._watch, stream)
        writer = gevent.spawn(self._write_records, stream, running)
        writer.link(lambda _: stream.broken.set())
        try:
            stream.broken.wait()
        finally:
            writer.kill()
            watcher.kill()
            stream.on_broken(stream.number)

    def _write_records(self, stream: Stream, running: Event) -> None:
        try:
            self._sock.sendall(_head(200, [("Transfer-Encoding", "chunked"), *stream.headers]))
            while (record := stream.take()) is not None:
                running.wait()
                if record == _ABORT:
                    return
                self._sock.sendall(b"%x\r\n%b\r\n" % (len(record), record))
            self._sock.sendall(b"0\r\n\r\n")
        except OSError as error:
            logger.debug("stream=%d broke: %s", stream.number, error)

    def _watch(self, stream: Stream) -> None:
        try:
            while self._sock.recv(_READ_BYTES):
                pass
        except OSError as error:
            logger.debug("stream=%d broke: %s", stream.number, error)
        stream.broken.set()

    def _read_body(self, headers: Mapping[str, str]) -> bytes | None:
        if headers.get("transfer-encoding", "").lower() == "chunked":
            return self._read_chunks()
        text = headers.get("content-length", "0")
        if not (text.isascii() and text.isdigit()) or len(text) > 18:
            raise Malformed(f"Content-Length {text[:40]!r}")
        return None if int(text) > BODY_BYTES_MAX else self._read_exactly(int(text))

    def _read_chunks(self) -> bytes | None:
        body = bytearray()
        while True:
            line = self._read_until(b"\r\n", 1024)
            try:
                length = int(line.split(b";", 1)[0], 16)
            except ValueError as error:
                raise Malformed(f"chunk length {line[:40]!r}") from error
            if length < 0 or length + len(body) > BODY_BYTES_MAX:
                return None
            if length == 0:
                while self._read_until(b"\r\n", HEAD_BYTES_MAX):
                    pass
                return bytes(body)
            body += self._read_exactly(length)
            if self._read_exactly(2) != b"\r\n":
                raise Malformed("chunk without end")

    def _read_until(self, mark: bytes, bytes_max: int) -> bytes:
        start = 0
        while (position := self._buffer.find(mark, start)) < 0:
            if len(self._buffer) > bytes_max:
                raise Malformed(f"more than {bytes_max} bytes of head")
            start = max(0, len(self._buffer) - len(mark) + 1)
            if not self._fill():
                raise Malformed("ended inside a request")
        if position > bytes_max:
            raise Malformed(f"more than {bytes_max} bytes of head")
        taken = bytes(self._buffer[:position])
        del self._buffer[: position + len(mark)]
        return taken

    def _read_exactly(self, count: int) -> bytes:
        while len(self._buffer) < count:
            if not self._fill():
                raise Malformed("ended inside a request")
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def _fill(self) -> bool:
        data = self._sock.recv(_READ_BYTES)
        self._buffer += data
        return bool(data)


def _parse_head(head: bytes) -> tuple[str, str, dict[str, str]]:
    lines = head.decode("latin-1").split("\r\n")
    parts = lines[0].split(" ")
    if len(parts) != 3 or not parts[2].startswith("HTTP/1.") or not parts[1].startswith(("/", "http://")):
        raise Malformed(f"request line {lines[0][:80]!r}")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise Malformed(f"header {line[:80]!r}")
        key = name.lower()
        headers[key] = f"{headers[key]}, {value.strip()}" if key in headers else value.strip()
    return parts[0], parts[1], headers


def _gunzip(body: bytes) -> bytes | None:
    decompressor = zlib.decompressobj(wbits=31)
    try:
        result = decompressor.decompress(body, BODY_BYTES_MAX)
    except zlib.error:
        return None
    return result if decompressor.eof else None


def _head(status: int, headers: list[tuple[str, str]]) -> bytes:
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", f"Date: {formatdate(usegmt=True)}"]
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")

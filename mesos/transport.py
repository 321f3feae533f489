"""HTTP/1.1 to a master or an agent: one long event stream, and short calls beside it.

Rules: every socket operation has a timeout; what comes in is bounded; `close` may be called from any thread or
greenlet and wakes the reader at once; all failures of the network come out as this package's errors. Works the same
with threads and in a process that gevent has monkey-patched, and imports neither gevent nor pymesos.

A closing thread only ever shuts the socket down; the reading one closes the descriptor. So a number that was freed
and given out again is never shut by mistake. Under TLS it shuts a duplicate of the connection's descriptor, since the
reader's object is in use.
"""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection, IncompleteRead
from typing import Any, NamedTuple

from stoker.mesos.detector import Address
from stoker.mesos.errors import BadCall, CallFailed, StreamBroken
from stoker.mesos.recordio import RecordReader

CONNECT_TIMEOUT_MS = 5_000
CALL_TIMEOUT_MS = 10_000
ANSWER_BYTES_MAX = 1024 * 1024
CALL_BYTES_MAX = 16 * 1024 * 1024  # a master takes 20 MB
CONNECTIONS_MAX = 16  # calls at a time; more wait

_READ_BYTES = 256 * 1024
_ADDRESSES_MAX = 8
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 15), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))


class Answer(NamedTuple):
    """Status, headers (names in lower case) and body of an answer; the body is at most ANSWER_BYTES_MAX."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace")


def encode_call(call: Mapping[str, Any]) -> bytes:
    """Return a call as the JSON that Mesos takes.

    :raises BadCall: it holds what JSON cannot say.
    """
    try:
        return json.dumps(call, separators=(",", ":"), allow_nan=False).encode("utf-8")
    except (TypeError, ValueError) as error:
        raise BadCall(f"{call.get('type')} cannot be written as JSON: {error}") from error


class Backoff:
    """Delays that double from `first_ms` to `max_ms`, each with up to half of it taken off by chance."""

    def __init__(self, *, first_ms: int, max_ms: int, uniform: Callable[[float, float], float]) -> None:
        assert 0 < first_ms <= max_ms
        self._first_ms = first_ms
        self._max_ms = max_ms
        self._uniform = uniform
        self._next_ms = first_ms

    def next_ms(self) -> int:
        """Return how long to wait now; the next time it is longer."""
        delay_ms = self._next_ms
        self._next_ms = min(self._max_ms, self._next_ms * 2)
        return round(self._uniform(delay_ms / 2, delay_ms))

    def reset(self) -> None:
        """Begin again at the shortest delay."""
        self._next_ms = self._first_ms


class EventStream:
    """One SUBSCRIBE and the records that answer it. Used once: `open`, then `records`; `close` from anywhere.

    `tls`: how the other side is checked; None speaks plain HTTP.
    """

    def __init__(self, address: Address, tls: ssl.SSLContext | None = None) -> None:
        self._address = address
        self._tls = tls
        self._lock = threading.Lock()
        self._closed = False
        self._socket: socket.socket | None = None
        self._closer: socket.socket | None = None
        self._response: HTTPResponse | None = None

    def open(
        self,
        path: str,
        body: bytes,
        headers: Mapping[str, str],
        *,
        connect_timeout_ms: int = CONNECT_TIMEOUT_MS,
        timeout_ms: int = CALL_TIMEOUT_MS,
    ) -> Answer:
        """Send the request; return its answer, without a body if the status is 200: the body is the stream.

        :raises StreamBroken: no connection, no answer in time, or an answer that is not HTTP.
        """
        try:
            self._socket = _connect(self._address, connect_timeout_ms, self._adopt)
            self._socket.settimeout(timeout_ms / 1000)
            if self._tls is not None:
                self._encrypt(self._tls)
            connection = HTTPConnection(self._address.host, self._address.port)
            connection.sock = self._socket
            connection.request("POST", path, body=body, headers=dict(headers))
            self._response = connection.getresponse()
            if self._response.status == 200:
                return Answer(200, _headers(self._response), b"")
            return _answer(self._response)
        except (OSError, HTTPException) as error:
            raise StreamBroken(f"{self._address}: {_reason(error)}") from error

    def records(self, *, record_bytes_max: int) -> Iterator[list[bytes]]:
        """Yield the records as they come, those of one read together; return at the proper end of the body.

        :raises StreamBroken: silence for longer than allowed, a lost connection, bytes that are no RecordIO.
        """
        assert self._response is not None, "records before open"
        reader = RecordReader(record_bytes_max=record_bytes_max)
        while True:
            try:
                data = self._response.read1(_READ_BYTES)
            except (OSError, HTTPException, ValueError) as error:
                raise StreamBroken(f"{self._address}: {_reason(error)}") from error
            if not data:
                if not reader.is_between_records:
                    raise StreamBroken(f"{self._address}: the stream ended within a record")
                return
            records = reader.feed(data)
            if records:
                yield records

    def allow_silence(self, silence_ms: int) -> None:
        """Let each later read wait for as long as that; called by the reading thread."""
        if self._socket is not None:
            self._socket.settimeout(silence_ms / 1000)

    @property
    def is_closed(self) -> bool:
        """Say whether somebody has closed it, so that what was read before is stale."""
        return self._closed

    def close(self) -> None:
        """End it: `open` and `records` fail at once. Any thread, any time, any number of times."""
        with self._lock:
            self._closed = True
            _shutdown(self._closer or self._socket)

    def release(self) -> None:
        """Give the descriptor back; called by the reading thread when it is done."""
        with self._lock:
            self._closed = True
            sock, self._socket = self._socket, None
            closer, self._closer = self._closer, None
            response, self._response = self._response, None
            if response is not None:
                response.close()
            for held in (sock, closer):
                if held is not None:
                    held.close()

    def _adopt(self, sock: socket.socket) -> None:
        # Before the wait for the connection: `close` can then end that wait too.
        with self._lock:
            if self._closed:
                raise ConnectionAbortedError(errno.ECONNABORTED, "closed by ourselves")
            self._socket = sock

    def _encrypt(self, tls: ssl.SSLContext) -> None:
        plain = self._socket
        assert plain is not None
        with self._lock:
            self._closer = plain.dup()
        try:  # `plain` is empty from here on
            encrypted = tls.wrap_socket(plain, server_hostname=self._address.host)
        except TimeoutError as error:
            raise StreamBroken(f"{self._address}: {NO_TLS}") from error
        with self._lock:
            self._socket = encrypted


NO_TLS = "no answer came to a TLS greeting in time: does the other side speak TLS there?"


class Caller:
    """Short calls over kept connections: each has one to itself, so a slow call holds up no other."""

    def __init__(
        self,
        *,
        timeout_ms: int = CALL_TIMEOUT_MS,
        connections_max: int = CONNECTIONS_MAX,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._tls = tls
        self._timeout_s = timeout_ms / 1000
        self._slots = threading.BoundedSemaphore(connections_max)
        self._lock = threading.Lock()
        self._idle: list[tuple[Address, HTTPConnection]] = []

    def call(
        self,
        address: Address,
        path: str,
        body: bytes,
        headers: Mapping[str, str],
        *,
        method: str = "POST",
        may_repeat: bool = False,
    ) -> Answer:
        """Send one request; return the answer, whatever its status.

        `may_repeat` lets it be sent once more when a *kept* connection turns out to be dead.

        :raises CallFailed: no connection or no answer in time; it may have been received.
        :raises BadCall: the body is above CALL_BYTES_MAX; nothing was sent.
        """
        if len(body) > CALL_BYTES_MAX:
            raise BadCall(f"a call of {len(body)} bytes is above the limit of {CALL_BYTES_MAX}")
        if not self._slots.acquire(timeout=self._timeout_s):
            raise CallFailed(f"{address}: all connections are busy; nothing was sent")
        try:
            kept = self._take(address)
            if kept is not None:
                try:
                    return self._exchange(address, kept, path, body, headers, method)
                except CallFailed as error:
                    if not may_repeat or isinstance(error.__cause__, TimeoutError):
                        raise
            fresh = connection_to(address, timeout_s=self._timeout_s, tls=self._tls)
            return self._exchange(address, fresh, path, body, headers, method)
        finally:
            self._slots.release()

    def close_idle(self) -> None:
        """Close the connections that nobody uses now."""
        with self._lock:
            idle, self._idle = self._idle, []
        for _, connection in idle:
            connection.close()

    def _take(self, address: Address) -> HTTPConnection | None:
        while True:
            with self._lock:
                if not self._idle:
                    return None
                kept_address, connection = self._idle.pop()
            if kept_address == address and not _is_readable(connection.sock):
                return connection
            connection.close()  # of an old master, or closed by the other side (its end is readable)

    def _exchange(
        self,
        address: Address,
        connection: HTTPConnection,
        path: str,
        body: bytes,
        headers: Mapping[str, str],
        method: str,
    ) -> Answer:
        try:
            connection.request(method, path, body=body or None, headers=dict(headers))
            response = connection.getresponse()
            answer = _answer(response)
            is_kept = response.isclosed() and connection.sock is not None
        except (OSError, HTTPException) as error:
            connection.close()
            raise CallFailed(f"{address}: {_reason(error)}; it may have been received") from error
        except BaseException:
            connection.close()  # a greenlet that is killed here leaves half an answer behind
            raise
        if not is_kept:
            connection.close()
            return answer
        with self._lock:
            self._idle.append((address, connection))
        return answer


def is_greeting(connection: HTTPConnection) -> bool:
    """Say whether a TLS connection came no further than to its greeting."""
    is_plain = connection.sock is not None and not isinstance(connection.sock, ssl.SSLSocket)
    return isinstance(connection, HTTPSConnection) and is_plain


def connection_to(address: Address, *, timeout_s: float, tls: ssl.SSLContext | None) -> HTTPConnection:
    """Return a connection that is not open yet; with `tls` an encrypted one."""
    if tls is None:
        return HTTPConnection(address.host, address.port, timeout=timeout_s)
    return HTTPSConnection(address.host, address.port, timeout=timeout_s, context=tls)


def _connect(address: Address, timeout_ms: int, adopt: Callable[[socket.socket], None]) -> socket.socket:
    """Connect to the first of the host's addresses that takes it; `adopt` sees each socket while it connects."""
    failure: OSError = ConnectionError(f"{address.host} has no address")
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    for family, kind, protocol, _, target in found[:_ADDRESSES_MAX]:
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in _KEEPALIVE:
                sock.setsockopt(socket.IPPROTO_TCP, option, value)
            code = sock.connect_ex(target)
            adopt(sock)
            if code in (errno.EINPROGRESS, errno.EAGAIN):
                code = _wait_connected(sock, timeout_ms)
            if code:
                raise OSError(code, os.strerror(code))
            return sock
        except ConnectionAbortedError:
            sock.close()
            raise
        except OSError as error:
            sock.close()
            failure = error
    raise failure


def _wait_connected(sock: socket.socket, timeout_ms: int) -> int:
    poller = select.poll()
    poller.register(sock, select.POLLOUT)
    if not poller.poll(timeout_ms):
        return errno.ETIMEDOUT
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def _is_readable(sock: socket.socket | None) -> bool:
    if sock is None:
        return True
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    return bool(poller.poll(0))


def _shutdown(sock: socket.socket | None) -> None:
    if sock is None:
        return
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError as error:
        # Not connected, or gone already: there is nobody to wake.
        if error.errno not in (errno.ENOTCONN, errno.EBADF):
            raise


def _answer(response: HTTPResponse) -> Answer:
    body = response.read(ANSWER_BYTES_MAX)
    return Answer(response.status, _headers(response), body)


def _headers(response: HTTPResponse) -> dict[str, str]:
    return {name.lower(): value for name, value in response.getheaders()}


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"no TLS connection: {error.reason or error}"
    if isinstance(error, TimeoutError):
        return "no bytes came in time"
    if isinstance(error, IncompleteRead):
        return "the connection ended within an answer"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__

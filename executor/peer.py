"""A filler's small blocking client of another executor's data port.

Used to copy a block, or ranges of it, from a replica instead of the under store. Anything that goes wrong is a PeerError:
the caller then asks the next peer or the under store, so there is one attempt, every wait has a time-out, and
nothing is tried again here.

A peer may take an under store's time to answer, but it greets at once. So one that is silent for a while (our patience) is
greeted on another connection, and given up if that is not answered: it hangs. `Hung` remembers it for a while.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Hashable, Sequence
from typing import Any

import msgpack

from stoker.executor import wire
from stoker.executor.errors import ExecutorError

PATIENCE_MS = 2_000  # to connect, to be greeted, and with a silent peer before it is greeted again
URGENT_PATIENCE_MS = 500  # where a reader waits: the under store is soon as good
SILENCE_TIMEOUT_MS = 30_000
HUNG_MS = 5_000  # not asked again for so long
HUNG_MAX = 1_024  # remembered
FAILED_BYTES_MAX = 4 * 1024 * 1024  # the list of failed ranges that leads an answer

_COUNT = struct.Struct("<I")


class PeerError(ExecutorError):
    """This peer did not give what was asked of it. Ask another, or the under store."""


class PeerRefused(PeerError):
    """The peer answered, and the answer is no; the connection is as good as before."""


class PeerUnaware(PeerError):
    """The peer has not heard of the dataset yet: its next heartbeat's answer will tell it."""


class PeerSilent(PeerError):
    """The peer hangs, or its host is gone."""


class Hung:
    """Peers that were silent a while ago, so that not every fill waits for them in turn. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._until: dict[Hashable, float] = {}

    def add(self, peer: Hashable) -> None:
        with self._lock:
            self._until.pop(peer, None)
            self._until[peer] = time.monotonic() + HUNG_MS / 1000
            while len(self._until) > HUNG_MAX:
                del self._until[next(iter(self._until))]

    def __contains__(self, peer: Hashable) -> bool:
        return self._until.get(peer, 0.0) > time.monotonic()


class Peer:
    """One connection, after its hello. Not for two threads at once."""

    def __init__(
        self,
        host: str,
        port: int,
        hello: wire.Hello,
        *,
        patience_ms: int = PATIENCE_MS,
        timeout_ms: int = SILENCE_TIMEOUT_MS,
    ) -> None:
        """Connect to `host`:`port` and say `hello`; `timeout_ms` is how long it may be silent, if it greets, ever.

        :raises PeerSilent: it does not answer. :raises PeerError: refused, or another executor's port.
        """
        self._host, self._port, self._hello = host, port, hello
        self._address = f"{host}:{port}"
        self._patience_ms = min(patience_ms, timeout_ms)
        self._timeout_ms = timeout_ms
        self._request_id = 0
        try:
            self._socket = socket.create_connection((host, port), timeout=self._patience_ms / 1000)
        except TimeoutError as error:
            raise PeerSilent(f"{self._address}: {error}") from error
        except OSError as error:
            raise PeerError(f"{self._address}: {error}") from error
        try:
            self._is_greeted = False
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._greet(hello)
            self._is_greeted = True
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection. Idempotent; by whoever reads, since the descriptor's number may be used again at once."""
        self._socket.close()

    def cut(self) -> None:
        """End the connection from another thread, before it is closed: a `read` ends with PeerError."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it has ended already

    def read(
        self, index: int, ranges: Sequence[tuple[int, int]], buffer: memoryview, *, local_only: bool
    ) -> list[int]:
        """Read [start, stop) ranges of block `index` one after the other into `buffer`; return the numbers of the failed.

        Failed ranges leave no gap: the others follow each other. `local_only`: only what the peer holds now.

        :raises PeerError: the whole request failed.
        """
        flags = wire.ReadFlag.CHECK | (wire.ReadFlag.LOCAL_ONLY if local_only else wire.ReadFlag.NONE)
        asked = [(index, start, stop - start) for start, stop in ranges]
        failed_count, payload_bytes = self._ask(wire.Op.READ, asked, flags)
        failed: list[int] = []
        if failed_count:
            failed, lead_bytes = self._take_failed(payload_bytes)
            payload_bytes -= lead_bytes
        missing = set(failed)
        wanted = sum(length for number, (_, _, length) in enumerate(asked) if number not in missing)
        if payload_bytes != wanted or wanted > len(buffer):
            raise PeerError(
                f"{self._address}: an answer of {payload_bytes} bytes where {wanted} were asked for"
            )
        self._receive_into(buffer[:wanted])
        return failed

    def page_checksums(self, index: int, page_count: int) -> list[int]:
        """Return the CRC-32C of each page of a full block. :raises PeerError: PeerRefused if it is not full there."""
        _, payload_bytes = self._ask(wire.Op.CRCS, [(index, 0, 0)], wire.ReadFlag.NONE)
        if payload_bytes != 4 * page_count:
            raise PeerError(f"{self._address}: {payload_bytes} bytes of checksums for {page_count} pages")
        data = bytearray(payload_bytes)
        self._receive_into(memoryview(data))
        return list(struct.unpack(f"<{page_count}I", data))

    def _greet(self, hello: wire.Hello) -> None:
        try:
            self._send(wire.encode_hello(hello))
            answer, detail_bytes = wire.decode_hello_answer(self._receive(wire.HELLO_ANSWER_BYTES))
            detail = self._receive(detail_bytes).decode(errors="replace")
        except wire.WireError as error:
            raise PeerError(f"{self._address}: {error}") from error
        if answer.status != wire.HelloStatus.OK:
            is_unaware = answer.status == wire.HelloStatus.DATASET
            error_type = PeerUnaware if is_unaware else PeerError
            raise error_type(f"{self._address} refused: {answer.status.name} {detail}")

    def _ask(self, op: wire.Op, ranges: list[tuple[int, int, int]], flags: int) -> tuple[int, int]:
        """Send a request; return (failed count, payload bytes) of its answer, whose payload is still to be received."""
        self._request_id += 1
        self._send(wire.encode_request(op, ranges, request_id=self._request_id, flags=flags))
        answer = wire.ANSWER.unpack(self._receive(wire.ANSWER.size))
        answered_op, status, failed_count, request_id, payload_bytes = answer[:5]
        if answered_op != op or request_id != self._request_id:
            raise PeerError(f"{self._address}: an answer to something else")
        if status != wire.Status.OK:
            text = self._receive(min(payload_bytes, wire.DETAIL_BYTES_MAX)).decode(errors="replace")
            if payload_bytes > wire.DETAIL_BYTES_MAX:
                raise PeerError(f"{self._address}: status {status}: {text}")
            raise PeerRefused(f"{self._address}: status {status}: {text}")
        return failed_count, payload_bytes

    def _take_failed(self, payload_bytes: int) -> tuple[list[int], int]:
        """Return the numbers of the failed ranges, and the bytes that their list took."""
        (count,) = _COUNT.unpack(self._receive(_COUNT.size))
        if count > min(FAILED_BYTES_MAX, payload_bytes):
            raise PeerError(f"{self._address}: a list of failures of {count} bytes")
        try:
            entries: list[Any] = msgpack.unpackb(self._receive(count), raw=False)
            return [int(entry[0]) for entry in entries], _COUNT.size + count
        except (ValueError, TypeError, IndexError, msgpack.UnpackException) as error:
            raise PeerError(f"{self._address}: a list of failures that is none: {error}") from error

    def _send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise PeerError(f"{self._address}: {error}") from error

    def _receive(self, count: int) -> bytes:
        data = bytearray(count)
        self._receive_into(memoryview(data))
        return bytes(data)

    def _receive_into(self, view: memoryview) -> None:
        begun = time.monotonic()
        while view:
            try:
                count = self._socket.recv_into(view)
            except TimeoutError as error:
                silent_ms = (time.monotonic() - begun) * 1000
                if not self._is_greeted or silent_ms >= self._timeout_ms:
                    raise PeerSilent(f"{self._address}: timed out: no byte for {silent_ms:.0f} ms") from error
                self._check_alive()
                continue
            except OSError as error:
                raise PeerError(f"{self._address}: {error}") from error
            if not count:
                raise PeerError(f"{self._address} ended the connection")
            view = view[count:]
            begun = time.monotonic()

    def _check_alive(self) -> None:
        """:raises PeerError: it does not greet any more."""
        Peer(self._host, self._port, self._hello, patience_ms=self._patience_ms).close()

"""Connections to one executor about one dataset version: a hello, then requests and answers (wire.py).

A `Connection` belongs to one thread at a time; a `Pool` hands them out, bounded, and takes back only those whose
conversation ended cleanly. Sockets block with the kernel's own timeouts (SO_RCVTIMEO), so that one system call fills a
buffer (MSG_WAITALL); whatever goes wrong in a conversation ends the connection, never returns less than was asked.

An answer may take an under store's time, but an executor greets at once. So when one is silent for ATTENTION_MS it is
greeted on another connection, and taken for hanging if that is not answered: a read leaves it after seconds, not
after SILENCE_MS.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import msgpack

from stoker.executor import wire
from stoker.executor.messages import SlotAddress

CONNECT_TIMEOUT_MS = 3_000
SILENCE_MS = 30_000  # a miss may take an under store's time; an executor silent for longer is given up
ATTENTION_MS = 2_000  # silent for so long: see whether it greets,
GREETING_TIMEOUT_MS = 1_500  # within so long
IDLE_MAX = 8  # connections kept for the next request
BUSY_MAX = 32  # connections in use at once; the next thread waits
SOCKET_PATH_BYTES_MAX = 107  # sun_path's 108 with its NUL
REFUSAL_BYTES_MAX = 64 * 1024
SCATTER_MAX = 64  # buffers of one recvmsg_into
SCATTER_BYTES_MAX = 1024 * 1024  # beyond that a range is received by itself

_TIMEVAL = struct.Struct("@ll")

# All of this process, also while they are being connected: a forked child closes them.
_sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()


class HelloRefused(OSError):
    """The executor's hello answer was not OK; `status` says why."""

    def __init__(self, status: wire.HelloStatus, detail: str) -> None:
        super().__init__(f"{status.name}: {detail}" if detail else status.name)
        self.status = status


class Broken(OSError):
    """The conversation ended early or made no sense; the connection must be closed."""


class Silent(Broken):
    """No byte came for the whole of the connection's silence: the executor hangs, or its host is gone."""

    def __init__(self, silence_ms: int) -> None:
        super().__init__(f"no byte came for {silence_ms / 1000:g} s")


class Answer(NamedTuple):
    op: int
    status: int
    failed_count: int
    request_id: int
    payload_bytes: int
    placement_version: int
    dataset_version: int


class Wanted(Protocol):
    """A range as a connection sees it: bytes [start, start + length) of a block, received into `view`, or into `data`."""

    index: int
    start: int
    length: int
    view: memoryview | None
    data: bytes | None


class Connection:
    """One socket after its hello. Not for two threads at once."""

    def __init__(
        self, opened: socket.socket, *, greet: Callable[[], None], timeout_ms: int, is_unix: bool
    ) -> None:
        """`greet` raises OSError if the executor does not greet on another connection."""
        self.socket = opened
        self.is_unix = is_unix
        self.is_fresh = True  # has carried no request yet
        self._greet = greet
        self._next_id = 1
        self._quiet_ms = 0
        self._attention_ms = self._silence_ms = 0
        self.set_silence(timeout_ms, timeout_ms)

    def set_silence(self, silence_ms: int, attention_ms: int) -> None:
        """From here on the executor may say nothing for `silence_ms`, and is greeted each `attention_ms` of them."""
        self._silence_ms, self._attention_ms = silence_ms, min(silence_ms, attention_ms)
        value = _TIMEVAL.pack(self._attention_ms // 1000, self._attention_ms % 1000 * 1000)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)

    def attend(self) -> None:
        """Nothing came for `attention_ms`: return if it is worth while to wait on.

        :raises Silent: not a byte for `silence_ms`, or no greeting. :raises HelloRefused: another one greets.
        """
        self._quiet_ms += self._attention_ms
        if self._quiet_ms >= self._silence_ms:
            raise Silent(self._quiet_ms)
        try:
            self._greet()
        except HelloRefused as refused:
            if refused.status != wire.HelloStatus.BUSY:  # it lives, with room for no other connection
                raise
        except OSError as error:
            raise Silent(self._quiet_ms) from error

    def send(self, op: wire.Op, ranges: list[tuple[int, int, int]], *, flags: int = 0) -> int:
        """Send one request and return its id."""
        request_id = self._next_id
        self._next_id += 1
        self._quiet_ms = 0
        self.socket.sendall(wire.encode_request(op, ranges, request_id=request_id, flags=flags))
        return request_id

    def receive_answer(self, request_id: int, op: wire.Op) -> Answer:
        """Return the answer's header; its status may be a refusal of the whole request.

        :raises Broken: it is not the answer to that request, or there was none.
        """
        answer = Answer._make(wire.ANSWER.unpack(self.receive_bytes(wire.ANSWER.size)))
        if answer.op != op or answer.request_id != request_id:
            raise Broken(
                f"answer {answer.request_id} of op {answer.op} to request {request_id} of op {int(op)}"
            )
        return answer

    def receive_refusal(self, answer: Answer) -> str:
        if answer.payload_bytes > REFUSAL_BYTES_MAX:
            raise Broken(f"a refusal of {answer.payload_bytes} bytes")
        return self.receive_bytes(answer.payload_bytes).decode(errors="replace")

    def receive_failures(self, answer: Answer) -> tuple[dict[int, tuple[int, str]], int]:
        """Return {range number: (failure code, message)} and the payload bytes that follow."""
        if not answer.failed_count:
            return {}, answer.payload_bytes
        (length,) = struct.unpack("<I", self.receive_bytes(4))
        if length + 4 > answer.payload_bytes or length > 2 * wire.RANGES_MAX * wire.FAILURE_MESSAGE_BYTES_MAX:
            raise Broken(f"a list of failures of {length} bytes in a payload of {answer.payload_bytes}")
        try:
            listed = msgpack.unpackb(self.receive_bytes(length), raw=False)
            failures = {int(number): (int(code), str(message)) for number, code, message in listed}
        except Exception as error:  # msgpack raises a handful of unrelated types for bad bytes
            raise Broken(f"the list of failures is not msgpack: {error}") from error
        if len(failures) != answer.failed_count:
            raise Broken(f"{len(failures)} failures listed, {answer.failed_count} announced")
        return failures, answer.payload_bytes - 4 - length

    def receive_ranges(self, wanted: Sequence[Wanted]) -> None:
        """Receive all of `wanted`, in order, each into its view, or as bytes into `data` where it has none."""
        scatter: list[memoryview] = []
        scatter_bytes = 0
        for piece in wanted:
            view = piece.view
            if view is None:
                self._flush(scatter)
                scatter_bytes = 0
                piece.data = self.receive_bytes(piece.length)
                continue
            if piece.length > SCATTER_BYTES_MAX:
                self._flush(scatter)
                scatter_bytes = 0
                self.receive_into(view)
                continue
            scatter.append(view)
            scatter_bytes += piece.length
            if len(scatter) == SCATTER_MAX or scatter_bytes > SCATTER_BYTES_MAX:
                self._flush(scatter)
                scatter_bytes = 0
        self._flush(scatter)

    def _flush(self, scatter: list[memoryview]) -> None:
        if len(scatter) == 1:
            self.receive_into(scatter[0])
        elif scatter:
            try:
                count = self.socket.recvmsg_into(scatter, 0, socket.MSG_WAITALL)[0]
            except BlockingIOError:
                self.attend()
                count = 0
            for view in scatter:  # after a signal or a timeout the kernel gives less: the rest one by one
                size = len(view)
                if count < size:
                    self.receive_into(view[count:] if count else view)
                count = max(0, count - size)
        scatter.clear()

    def receive_bytes(self, size: int) -> bytes:
        if not size:
            return b""
        try:
            data = self.socket.recv(size, socket.MSG_WAITALL)
            if len(data) == size:
                return data
            if not data:
                raise Broken("the executor ended the connection")
        except BlockingIOError:
            self.attend()
            data = b""
        rest = bytearray(size - len(data))
        self.receive_into(memoryview(rest))
        return data + rest

    def receive_into(self, view: memoryview) -> None:
        done, size = 0, len(view)
        while done < size:
            try:
                count = self.socket.recv_into(view[done:] if done else view, 0, socket.MSG_WAITALL)
            except BlockingIOError:
                self.attend()
                continue
            if not count:
                raise Broken("the executor ended the connection")
            done += count
            self._quiet_ms = 0

    def is_open(self) -> bool:
        """Return whether the executor has not ended it, as far as can be seen without waiting; between two requests."""
        try:
            self.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False  # its end, or a byte that nobody asked for

    def close(self) -> None:
        """Close the descriptor only: a shutdown would end the parent's conversation from a forked child."""
        self.socket.close()


def connect(
    address: SlotAddress,
    hello: wire.Hello,
    *,
    unix: bool,
    silence_ms: int = SILENCE_MS,
    timeout_ms: int | None = None,
) -> Connection:
    """Return a connection whose hello was accepted within `timeout_ms` (None: CONNECT_TIMEOUT_MS).

    :raises HelloRefused: another launch, cluster or dataset answers there.
    :raises OSError: nobody does, or not in this protocol.
    """
    timeout_ms = CONNECT_TIMEOUT_MS if timeout_ms is None else timeout_ms
    opened = _connect_unix(address, timeout_ms) if unix else _connect_tcp(address, timeout_ms)

    def greet() -> None:
        connect(address, hello, unix=unix, timeout_ms=GREETING_TIMEOUT_MS).close()

    try:
        connection = Connection(opened, greet=greet, timeout_ms=timeout_ms, is_unix=unix)
        opened.sendall(wire.encode_hello(hello))
        answer, detail_bytes = wire.decode_hello_answer(connection.receive_bytes(wire.HELLO_ANSWER_BYTES))
        detail = connection.receive_bytes(detail_bytes).decode(errors="replace")
        if answer.status != wire.HelloStatus.OK:
            raise HelloRefused(answer.status, detail)
        connection.set_silence(silence_ms, ATTENTION_MS)
        return connection
    except wire.WireError as error:
        opened.close()
        raise Broken(str(error)) from error
    except BaseException:
        opened.close()
        raise


def _connect_tcp(address: SlotAddress, timeout_ms: int) -> socket.socket:
    refused: OSError | None = None
    for family, _, _, _, target in socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM):
        opened = _new_socket(family, timeout_ms)
        try:
            opened.connect(target)
            opened.settimeout(None)  # blocking; from here on the kernel's timeouts hold
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return opened
        except OSError as error:
            opened.close()
            refused = error
    if isinstance(refused, TimeoutError):
        raise Silent(timeout_ms) from refused
    raise refused or ConnectionRefusedError(f"{address.host} has no address")


def _connect_unix(address: SlotAddress, timeout_ms: int) -> socket.socket:
    """Try the path socket, then the abstract one: either may be out of sight in a container."""
    refused: OSError | None = None
    for target in socket_targets(address):
        opened = _new_socket(socket.AF_UNIX, timeout_ms)
        try:
            _connect_path(opened, target)
            opened.settimeout(None)
            return opened
        except OSError as error:
            opened.close()
            refused = error
    raise refused or ConnectionRefusedError("the executor names no Unix socket")


def _new_socket(family: int, timeout_ms: int) -> socket.socket:
    opened = socket.socket(family, socket.SOCK_STREAM)
    _sockets.add(opened)
    opened.settimeout(timeout_ms / 1000)
    return opened


def _close_in_child() -> None:
    """Close the parent's sockets in a forked child (without shutdown), whoever held them, or was just connecting one."""
    for opened in list(_sockets):
        opened.close()


os.register_at_fork(after_in_child=_close_in_child)


def socket_targets(address: SlotAddress) -> list[str | bytes]:
    """Return where the executor's Unix socket may answer. STOKER_SOCKET is a directory that holds it, or its path."""
    targets: list[str | bytes] = []
    override = os.environ.get("STOKER_SOCKET", "")
    if override and os.path.isdir(override):
        if address.socket_path:
            targets.append(os.path.join(override, os.path.basename(address.socket_path)))
    elif override:
        targets.append(override)
    elif address.socket_path:
        targets.append(address.socket_path)
    if address.abstract_socket:
        targets.append(b"\0" + address.abstract_socket.encode())
    return targets


def _connect_path(opened: socket.socket, target: str | bytes) -> None:
    if isinstance(target, bytes) or len(os.fsencode(target)) <= SOCKET_PATH_BYTES_MAX:
        opened.connect(target)
        return
    directory = os.open(os.path.dirname(target), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        opened.connect(f"/proc/self/fd/{directory}/{os.path.basename(target)}")
    finally:
        os.close(directory)


class Pool:
    """The connections to one executor about one dataset version; `take` and `give` from any thread."""

    def __init__(self, address: SlotAddress, hello: wire.Hello, *, unix: bool) -> None:
        self.address = address
        self.unix = unix
        self._hello = hello
        self._idle: list[Connection] = []
        self._busy: set[Connection] = set()
        self._opening = 0
        self._changed = threading.Condition(threading.Lock())

    def take(self) -> Connection:
        """Return a connection that is this thread's until it calls `give` or `discard`.

        :raises OSError: as `connect`; or BUSY_MAX are in use for SILENCE_MS.
        """
        deadline = time.monotonic() + SILENCE_MS / 1000
        with self._changed:
            while not self._idle and len(self._busy) + self._opening >= BUSY_MAX:
                if not self._changed.wait(deadline - time.monotonic()):
                    raise Broken(
                        f"{BUSY_MAX} connections to one executor were busy for {SILENCE_MS // 1000} s"
                    )
            if self._idle:
                connection = self._idle.pop()
                self._busy.add(connection)
                return connection
            self._opening += 1
        opened = None
        try:
            opened = connect(self.address, self._hello, unix=self.unix)
            return opened
        finally:
            with self._changed:
                self._opening -= 1
                if opened is None:
                    self._changed.notify()
                else:
                    self._busy.add(opened)

    def give(self, connection: Connection) -> None:
        """Take back a connection whose answers were all received."""
        with self._changed:
            connection.is_fresh = False
            self._busy.discard(connection)
            keep = len(self._idle) < IDLE_MAX
            if keep:
                self._idle.append(connection)
            self._changed.notify()
        if not keep:
            connection.close()

    def discard(self, connection: Connection) -> None:
        """Close a connection of which something is unread, or that broke."""
        connection.close()
        with self._changed:
            self._busy.discard(connection)
            self._changed.notify()

    def look(self) -> tuple[bool, bool]:
        """Return (an idle connection stands, the executor has ended one); then the idle ones are closed."""
        with self._changed:
            if not self._idle:
                return False, False
            if self._idle[-1].is_open():
                return True, False
        self.clear()
        return False, True

    def clear(self) -> None:
        """Close the idle connections: the executor they led to has gone, or the dataset has."""
        with self._changed:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def after_fork_in_child(self) -> None:
        """Begin anew: the parent's sockets are closed here, whichever of its threads held them."""
        self._idle, self._busy, self._opening = [], set(), 0
        self._changed = threading.Condition(threading.Lock())


def refresh(connection: Connection) -> dict[str, Any]:
    """Ask the executor for the newest placement it knows (REFRESH).

    :raises OSError: it did not answer in its protocol, or refused.
    """
    answer = connection.receive_answer(connection.send(wire.Op.REFRESH, []), wire.Op.REFRESH)
    if answer.status != wire.Status.OK:
        raise Broken(f"REFRESH: {connection.receive_refusal(answer)}")
    if answer.payload_bytes > 64 * 1024 * 1024:
        raise Broken(f"a placement of {answer.payload_bytes} bytes")
    payload = connection.receive_bytes(answer.payload_bytes)
    try:
        raw = msgpack.unpackb(payload, raw=False)
    except Exception as error:  # msgpack raises a handful of unrelated types for bad bytes
        raise Broken(f"a placement that is not msgpack: {error}") from error
    if not isinstance(raw, dict):
        raise Broken("a placement that is not a map")
    return raw

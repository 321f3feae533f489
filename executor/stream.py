"""A connected stream socket on gevent, without a layer between it and the system calls.

Reads are buffered, so that a request and its ranges cost one `recv`. Payload goes by sendfile straight from a block's
file. A peer that takes nothing for STALL_TIMEOUT_MS, or less than PACE_BYTES_PER_S on the average after that, or that stops
in the middle of a frame, is cut off: it would pin blocks, and the memory that others' misses are read through. One greenlet reads, one at a time writes; any may `cut`.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable

import gevent
from gevent.hub import get_hub

STALL_TIMEOUT_MS = 30_000
PACE_BYTES_PER_S = 64 * 1024
FINISH_TIMEOUT_S = 1.0  # for the peer to read our last words
# A caller may be quiet between two requests for as long as it likes, but its host must be there.
KEEPALIVE_IDLE_S = 60
KEEPALIVE_INTERVAL_S = 15
KEEPALIVE_PROBES = 4
RECEIVE_BYTES = 16 * 1024
SENDFILE_BYTES_MAX = 4 * 1024 * 1024  # one system call
# A caller as fast as we are never makes us wait: after so many reads, or bytes, it gives way to the others.
READS_MAX = 64  # two a request
SENT_BYTES_MAX = 8 * 1024 * 1024


_READ, _WRITE = 1, 2


class Stalled(OSError):
    """The peer stopped in the middle of a frame, or takes no bytes."""


class Stream:
    """Owns `sock`, a plain connected socket."""

    def __init__(self, sock: socket.socket, *, stall_timeout_ms: int = STALL_TIMEOUT_MS) -> None:
        sock.setblocking(False)
        self._stall_timeout_ms = stall_timeout_ms
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
        self.sock = sock
        self.fd = sock.fileno()
        self._hub = get_hub()
        self._readable = self._hub.loop.io(self.fd, _READ)
        self._writable = self._hub.loop.io(self.fd, _WRITE)
        self._buffer = b""
        self._position = 0
        self._reads = 0
        self._sent_bytes = 0
        self._taken_bytes = 0  # by a peer that made us wait, since it last had nothing to take
        self._waited_s = 0.0  # for that

    @property
    def is_unix(self) -> bool:
        return bool(self.sock.family == socket.AF_UNIX)

    def read(self, count: int, *, timeout_ms: int | None = 0) -> bytes:
        """Return exactly `count` bytes; fewer only at the end of the stream.

        :raises Stalled: they did not come within `timeout_ms` (None: wait for ever; 0: as for other stalls).
        :raises OSError: the connection failed.
        """
        end = self._position + count
        self._reads += 1
        if self._reads >= READS_MAX:
            self._give_way()
        if len(self._buffer) >= end:
            data = self._buffer[self._position : end]
            self._position = end
            return data
        return self._read_more(count, timeout_ms)

    def _read_more(self, count: int, timeout_ms: int | None) -> bytes:
        parts = [self._buffer[self._position :]]
        missing = count - len(parts[0])
        self._buffer, self._position = b"", 0
        if timeout_ms == 0:
            timeout_ms = self._stall_timeout_ms
        timer = None if timeout_ms is None else gevent.Timeout.start_new(timeout_ms / 1000)
        try:
            while missing > 0:
                try:
                    data = self.sock.recv(max(RECEIVE_BYTES, min(missing, 1 << 20)))
                except BlockingIOError:
                    self._hub.wait(self._readable)
                    self._reads = self._taken_bytes = 0
                    self._waited_s = 0.0
                    continue
                if not data:
                    break
                if len(data) > missing:
                    self._buffer, self._position = data, missing
                    data = data[:missing]
                parts.append(data)
                missing -= len(data)
        except gevent.Timeout as expired:
            if expired is not timer:
                raise
            raise Stalled(f"{missing} of {count} bytes did not come within {timeout_ms} ms") from None
        finally:
            if timer is not None:
                timer.close()
        return parts[1] if len(parts) == 2 and not parts[0] else b"".join(parts)

    def send(self, data: bytes | memoryview, *, more: bool = False) -> None:
        """Send all of `data`; `more`: the kernel may hold it back until what follows.

        :raises Stalled, OSError: the connection is of no more use.
        """
        flags = socket.MSG_NOSIGNAL | (socket.MSG_MORE if more else 0)
        try:
            sent = self.sock.send(data, flags)
        except BlockingIOError:
            sent = 0
        while sent < len(data):
            data = memoryview(data)[sent:]
            self._taken_bytes += sent
            self._wait_writable()
            try:
                sent = self.sock.send(data, flags)
            except BlockingIOError:
                sent = 0

    def send_both(self, head: bytes, data: bytes | memoryview, *, more: bool = False) -> None:
        """Send `head` and all of `data`, which is copied before anything waits. See `send`."""
        flags = socket.MSG_NOSIGNAL | (socket.MSG_MORE if more else 0)
        try:
            sent = self.sock.sendmsg((head, data), (), flags)
        except BlockingIOError:
            sent = 0
        if sent < len(head) + len(data):
            self.send(memoryview(head + data)[sent:], more=more)

    def send_with_descriptors(self, data: bytes, fds: list[int]) -> None:
        """Send `data` with `fds` riding on its first byte.

        :raises Stalled, OSError: the connection is of no more use.
        """
        while True:
            try:
                sent = socket.send_fds(self.sock, [data], fds, socket.MSG_NOSIGNAL) if fds else 0
                break
            except BlockingIOError:
                self._wait_writable()
        if sent < len(data):
            self.send(memoryview(data)[sent:])

    def send_file(self, fd: int, start: int, count: int) -> None:
        """Send bytes [start, start + count) of file `fd`.

        :raises Stalled, OSError: the connection is of no more use. The file ending early is one of these.
        """
        stop = start + count
        while start < stop:
            try:
                sent = os.sendfile(self.fd, fd, start, min(stop - start, SENDFILE_BYTES_MAX))
            except BlockingIOError:
                self._wait_writable()
                continue
            if sent == 0:
                raise OSError(errno.EIO, f"the file ends at {start}, but {stop} bytes were promised")
            start += sent
            self._taken_bytes += sent
            self.note_work(sent)

    def send_pieces(
        self, read: Callable[[int, int], bytes | memoryview], start: int, count: int, piece_bytes: int
    ) -> None:
        """Send bytes [start, start + count) that `read(start, count)` gives; they need not be good once something waits.

        :raises Stalled, OSError: the connection is of no more use. What `read` raises is one of these.
        """
        stop = start + count
        while start < stop:
            data = read(start, min(stop - start, piece_bytes))
            try:
                sent = self.sock.send(data, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                self._wait_writable()
                continue
            start += sent
            self._taken_bytes += sent
            self.note_work(sent)

    def note_work(self, count: int) -> None:
        """So many bytes were sent, or looked at, for this peer: give way to the others where it has had its share."""
        self._sent_bytes += count
        if self._sent_bytes >= SENT_BYTES_MAX:
            self._give_way()

    def end_sending(self) -> None:
        """Say that nothing more comes, from any greenlet; what the peer sends is still read."""
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            return  # the peer is gone

    def finish(self, timeout_s: float = FINISH_TIMEOUT_S) -> None:
        """Say that nothing more comes, and let the peer read what was sent, and end, before the socket is closed."""
        try:
            self.sock.shutdown(socket.SHUT_WR)
            with gevent.Timeout(timeout_s, False):
                while True:
                    try:
                        if not self.sock.recv(RECEIVE_BYTES):
                            return
                        self._reads += 1
                        if self._reads >= READS_MAX:
                            self._give_way()  # a peer that never stops talking must not keep us from hearing the time
                    except BlockingIOError:
                        self._hub.wait(self._readable)
        except OSError:
            return

    def cut(self) -> None:
        """End both directions at once, from any greenlet: whoever reads or writes here sees the end."""
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            return

    def close(self) -> None:
        """Close; by the greenlet that reads, with no other one waiting here."""
        self._readable.close()
        self._writable.close()
        self.sock.close()

    def _give_way(self) -> None:
        """Let every other connection that can go on do so: one turn of the event loop, sockets polled."""
        self._reads = self._sent_bytes = 0
        timer = self._hub.loop.timer(0)
        try:
            self._hub.wait(timer)
        finally:
            timer.close()

    def _wait_writable(self) -> None:
        self._sent_bytes = 0
        begun = time.monotonic()
        timer = gevent.Timeout.start_new(self._stall_timeout_ms / 1000)
        try:
            self._hub.wait(self._writable)
        except gevent.Timeout as expired:
            if expired is not timer:
                raise
            raise Stalled(f"the peer took nothing for {self._stall_timeout_ms} ms") from None
        finally:
            timer.close()
        self._waited_s += time.monotonic() - begun
        if self._waited_s > self._stall_timeout_ms / 1000 + self._taken_bytes / PACE_BYTES_PER_S:
            raise Stalled(f"the peer took {self._taken_bytes} bytes in {self._waited_s:.0f} s")

"""Messages and descriptors between the keeper and its children, over one end of a SOCK_SEQPACKET socket pair.

A message is a msgpack map; file descriptors may ride on it (SCM_RIGHTS). The kernel keeps message boundaries and sends
each message whole or not at all, so any number of threads or greenlets may send at once without a lock; one at a time
receives. A body too long for one packet travels in a memfd of its own: callers never see the difference.

End of file means that the other process is gone: a child then ends at once, the keeper ends the executor.

A full socket makes `send` wait. So that two processes never wait for each other, whoever receives must not send from
the same thread or greenlet unless the other side always receives.

This module knows no message's meaning, and works with plain and with gevent sockets alike.
"""

from __future__ import annotations

import os
import socket
from array import array
from collections.abc import Sequence
from typing import Any

import msgpack

from stoker.executor.errors import ChannelError

INLINE_BYTES_MAX = 32 * 1024  # in the packet itself; well below any kernel's default socket buffer
MESSAGE_BYTES_MAX = 64 * 1024 * 1024
DESCRIPTORS_MAX = 64  # a message, the memfd of a long body not counted; the kernel takes 253

_INLINE, _MEMFD = b"\x00", b"\x01"
_FD_BYTES = array("i").itemsize
_ANCILLARY_BYTES = socket.CMSG_SPACE((DESCRIPTORS_MAX + 1) * _FD_BYTES)


def channel_pair() -> tuple[socket.socket, socket.socket]:
    """Return the two connected ends; one is for a child (`pass_fds`), where `Channel.from_fd` takes it."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


class Channel:
    """One end. Owns `sock`, any blocking or gevent SEQPACKET socket."""

    def __init__(self, sock: Any) -> None:
        self._sock = sock

    @classmethod
    def from_fd(cls, fd: int) -> Channel:
        """Return the channel of an inherited descriptor number, which it owns from here on.

        :raises OSError: `fd` is not an open socket.
        """
        os.set_inheritable(fd, False)
        sock = socket.socket(fileno=fd)
        sock.setblocking(
            True
        )  # a gevent process made the pair; the flag is the open file's, not the process's
        return cls(sock)

    def fileno(self) -> int:
        return int(self._sock.fileno())

    def send(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Send `message` whole, with copies of `fds`; the caller keeps its own. Waits while the socket is full.

        :raises OSError: the other process is gone (BrokenPipeError, ConnectionResetError), or this end is closed.
        """
        assert len(fds) <= DESCRIPTORS_MAX, len(fds)
        body = msgpack.packb(message, use_bin_type=True)
        assert len(body) <= MESSAGE_BYTES_MAX, (message.get("t"), len(body))
        if len(body) <= INLINE_BYTES_MAX:
            self._send_packet(_INLINE + body, fds)
            return
        carrier = os.memfd_create("stoker-message", os.MFD_CLOEXEC)
        try:
            _write_all(carrier, body)
            self._send_packet(_MEMFD, [carrier, *fds])
        finally:
            os.close(carrier)

    def receive(self) -> tuple[dict[str, Any], list[int]] | None:
        """Return the next message and its descriptors (the caller's to close), or None: the other process is gone.

        :raises ChannelError: not a message, or descriptors were lost (this process has too many open).
        """
        try:
            data, ancillary, flags, _ = self._sock.recvmsg(
                INLINE_BYTES_MAX + 1, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionResetError:
            return None
        fds = _descriptors(ancillary)
        if not data:
            _close_all(fds)
            return None
        try:
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise ChannelError("a packet was cut short; are too many descriptors open?")
            body = data[1:] if data[:1] == _INLINE else _take_body(fds)
            message = _unpack(body)
        except BaseException:
            _close_all(fds)
            raise
        return message, fds

    def close(self) -> None:
        """Close this end; the other side sees end of file. Idempotent."""
        self._sock.close()

    def _send_packet(self, packet: bytes, fds: Sequence[int]) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
        self._sock.sendmsg([packet], rights)


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds: list[int] = []
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers = array("i")
            numbers.frombytes(data[: len(data) - len(data) % _FD_BYTES])
            fds.extend(numbers)
    return fds


def _take_body(fds: list[int]) -> bytes:
    """Read and close the memfd that leads `fds`."""
    if not fds:
        raise ChannelError("a long message came without its body")
    carrier = fds.pop(0)
    try:
        length = os.fstat(carrier).st_size
        if length > MESSAGE_BYTES_MAX:
            raise ChannelError(f"a message of {length} bytes; at most {MESSAGE_BYTES_MAX} are allowed")
        return os.pread(carrier, length, 0)
    finally:
        os.close(carrier)


def _unpack(body: bytes) -> dict[str, Any]:
    try:
        message = msgpack.unpackb(body, raw=False, strict_map_key=False)
    except Exception as error:  # msgpack raises a handful of unrelated types for bad bytes
        raise ChannelError(f"not msgpack: {error}") from error
    if not isinstance(message, dict):
        raise ChannelError(f"expected a map, got {type(message).__name__}")
    return message


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)

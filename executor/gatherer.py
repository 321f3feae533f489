"""Sends the pieces of an answer to READ: what failed, small pieces gathered into one send, large ones straight from their file."""

from __future__ import annotations

import msgpack

from stoker.executor.entries import Entry
from stoker.executor.stream import Stream
from stoker.executor.wire import Failure

GATHER_BYTES = 256 * 1024  # small ranges of a batch are gathered into sends of about this size


class Gatherer:
    """Sends an answer's pieces in order: small ones copied together, large ones straight from their file."""

    def __init__(self, stream: Stream, head: bytes) -> None:
        self._stream = stream
        self._parts = [head]
        self._bytes = len(head)
        self.has_sent = False  # or tried to

    def add(self, entry: Entry, start: int, length: int) -> None:
        """:raises OSError: the file does not give the piece, or the caller is gone."""
        if self._bytes >= GATHER_BYTES:
            self.flush(more=True)
        first = entry.first(start, length)
        if first:
            self._parts.append(bytes(first))
            self._bytes += len(first)
        if len(first) < length:
            self.flush(more=True)
            entry.send_rest(self._stream, start + len(first), length - len(first))

    def flush(self, *, more: bool = False) -> None:
        if self._parts:
            data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
            self._parts, self._bytes = [], 0
            self.has_sent = True
            self._stream.send(data, more=more)
            self._stream.note_work(len(data))


def unreadable(error: OSError) -> tuple[int, str]:
    """Return the failure of a range that its block's file does not give."""
    return Failure.OVERLOADED, f"the block cannot be read: {error}"


def encode_failures(failures: dict[int, tuple[int, str]]) -> bytes:
    """Return the failed ranges, by their number, as an answer begins with them."""
    packed = msgpack.packb([[n, int(code), message] for n, (code, message) in sorted(failures.items())])
    return len(packed).to_bytes(4, "little") + bytes(packed)

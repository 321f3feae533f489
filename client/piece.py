"""A piece of a read: a range inside one block, where its bytes go, and what became of it."""

from __future__ import annotations

import os

from stoker.executor.messages import SlotAddress


class Piece:
    """Bytes [start, start + length) of block `index`; received into `view`, or as `data` where there is none.

    A piece ends with `done`, or with `error`. The rest is the fetcher's notebook.
    """

    __slots__ = (
        "asked",
        "breaks",
        "data",
        "done",
        "error",
        "failure",
        "index",
        "length",
        "reason",
        "row",
        "start",
        "store_tries",
        "tried",
        "view",
    )

    def __init__(self, index: int, start: int, length: int, view: memoryview | None, row: int) -> None:
        assert view is None or len(view) == length
        self.index = index
        self.start = start
        self.length = length
        self.view = view
        self.row = row
        self.data: bytes | None = None
        self.done = not length
        self.error: OSError | None = None
        self.asked: SlotAddress | None = None  # who was asked last
        self.tried: set[SlotAddress] = set()
        self.failure: tuple[int, str] | None = None  # a wire.Failure and its text
        self.reason = ""
        self.breaks = 0
        self.store_tries = 0

    def pread(self, descriptor: int) -> bool:
        """Read from a full block's descriptor; False: the file is shorter than it must be, nothing is taken from it.

        :raises OSError: the disk under it does not give the bytes; nothing is taken from it.
        """
        if self.view is None:
            data = os.pread(descriptor, self.length, self.start)
            if len(data) != self.length:
                data += self._rest(descriptor, len(data))
            self.data = data
            self.done = len(data) == self.length
            return self.done
        done = os.preadv(descriptor, [self.view], self.start)
        while 0 < done < self.length:  # beyond 2 GiB the kernel takes several calls
            count = os.preadv(descriptor, [self.view[done:]], self.start + done)
            if not count:
                return False
            done += count
        self.done = done == self.length
        return self.done

    def _rest(self, descriptor: int, done: int) -> bytes:
        parts = []
        while done < self.length:
            part = os.pread(descriptor, self.length - done, self.start + done)
            if not part:
                break
            parts.append(part)
            done += len(part)
        return b"".join(parts)

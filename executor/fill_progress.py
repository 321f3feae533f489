"""What of a fill is there: extents and pages told to the keeper, checksums written to the block's index."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any

from crc32c import crc32c

from stoker.executor import index
from stoker.executor.block import GRANULE_BYTES, PAGE_BYTES, BlockLayout
from stoker.executor.errors import FileBroken

PROGRESS_BYTES = 4 * 1024 * 1024  # the keeper hears of a fill after so many bytes,
PROGRESS_EXTENTS = 1_024  # so many files,
PROGRESS_MS = 100  # or so long, whichever comes first
CHECKSUM_STEP_PAGES = 16  # read back at once

Send = Callable[[dict[str, Any]], None]


class Progress:
    """Collects what was written and tells it in "filled" messages. For one thread."""

    def __init__(
        self, job: Any, fd: int, layout: BlockLayout, ranges: Sequence[tuple[int, int]], send: Send
    ) -> None:
        self._job = job
        self._fd = fd
        self._layout = layout
        self._send = send
        self._left = _whole_pages(layout, ranges)  # page -> bytes still to come; only pages wholly in a range
        self._extents: list[tuple[int, int]] = []
        self._pages: list[int] = []
        self._filled_bytes = 0
        self._copied_bytes = 0
        self._told_at = time.monotonic()

    def add(self, start: int, stop: int, *, filled_bytes: int = 0, copied_bytes: int = 0) -> None:
        """[start, stop) of the block is written (or padding); `filled_bytes` of it came from the under store."""
        assert start % GRANULE_BYTES == 0 and start < stop <= self._layout.data_bytes, (start, stop)
        self._extents.append((start, stop))
        self._filled_bytes += filled_bytes
        self._copied_bytes += copied_bytes
        left = self._left
        page = start // PAGE_BYTES
        while (page_start := page * PAGE_BYTES) < stop:
            if page in left:
                left[page] -= min(stop, page_start + PAGE_BYTES) - max(start, page_start)
                if not left[page]:
                    del left[page]
                    self._pages.append(page)
            page += 1
        if (
            self._filled_bytes + self._copied_bytes >= PROGRESS_BYTES
            or len(self._extents) >= PROGRESS_EXTENTS
            or time.monotonic() - self._told_at >= PROGRESS_MS / 1000
        ):
            self.flush()

    def flush(self) -> None:
        """Tell what was not told yet."""
        if not self._extents:
            return
        pages = runs_of(self._pages)
        write_checksums(self._fd, self._layout, pages)
        self._send(
            {
                "t": "filled",
                "job": self._job,
                "extents": _joined_extents(self._extents),
                "filled_bytes": self._filled_bytes,
                "copied_bytes": self._copied_bytes,
                "crc_pages": pages,
            }
        )
        self._extents, self._pages = [], []
        self._filled_bytes = self._copied_bytes = 0
        self._told_at = time.monotonic()


def check_block_file(fd: int, layout: BlockLayout) -> None:
    """Assert that `fd` is a block's file of this layout: the keeper and we must have the same manifest.

    :raises FileBroken: it cannot be read.
    """
    try:
        assert os.fstat(fd).st_size >= layout.file_bytes, (os.fstat(fd).st_size, layout)
        _, _, data_bytes = index.read_header(fd, layout)
    except (OSError, ValueError) as error:
        raise FileBroken(f"its header cannot be read: {error}") from error
    assert data_bytes == layout.data_bytes, (data_bytes, layout)


def write_at(fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    """Write all of `data`. :raises FileBroken: no room, the file is sealed, or its disk fails."""
    try:
        count = os.pwrite(fd, data, offset)
        while count < len(data):
            count += os.pwrite(fd, memoryview(data)[count:], offset + count)
    except OSError as error:
        raise FileBroken(f"{len(data)} bytes at {offset} cannot be written: {error}") from error


def write_checksums(fd: int, layout: BlockLayout, runs: Sequence[Sequence[int]]) -> None:
    """Compute the CRC-32C of the pages [first, stop) of each run from the file, and write them to the block's index."""
    buffer = memoryview(bytearray(CHECKSUM_STEP_PAGES * PAGE_BYTES if runs else 0))
    for first, stop in runs:
        for page in range(first, stop, CHECKSUM_STEP_PAGES):
            count = min(CHECKSUM_STEP_PAGES, stop - page)
            offset = page * PAGE_BYTES
            view = buffer[: min(count * PAGE_BYTES, layout.data_bytes - offset)]
            _read_back(fd, view, offset)
            sums = [crc32c(view[at : at + PAGE_BYTES]) for at in range(0, len(view), PAGE_BYTES)]
            write_at(fd, struct.pack(f"<{count}I", *sums), layout.crc_offset + 4 * page)


def _read_back(fd: int, view: memoryview, offset: int) -> None:
    """:raises FileBroken: it cannot be read, or is not there any more."""
    try:
        got = os.preadv(fd, [view], offset)
    except OSError as error:
        raise FileBroken(f"{len(view)} bytes at {offset} cannot be read back: {error}") from error
    if got != len(view):
        raise FileBroken(f"of {len(view)} bytes at {offset} only {got} are there")


def checksum_unknown_pages(fd: int, layout: BlockLayout) -> list[list[int]]:
    """Write the checksums of the pages whose known bit is not set; return those pages as runs [first, stop)."""
    check_block_file(fd, layout)
    known = index.known_pages(fd, layout, 0, layout.page_count)
    runs = runs_of([page for page in range(layout.page_count) if not known[page]])
    write_checksums(fd, layout, runs)
    return runs


def runs_of(numbers: Sequence[int]) -> list[list[int]]:
    """Return `numbers` as runs.

    >>> runs_of([5, 2, 3])
    [[2, 4], [5, 6]]
    """
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][1] == number:
            runs[-1][1] = number + 1
        else:
            runs.append([number, number + 1])
    return runs


def _whole_pages(layout: BlockLayout, ranges: Sequence[tuple[int, int]]) -> dict[int, int]:
    left: dict[int, int] = {}
    for start, stop in ranges:
        page = -(-start // PAGE_BYTES)
        while (page_stop := min((page + 1) * PAGE_BYTES, layout.data_bytes)) <= stop:
            if page_stop <= page * PAGE_BYTES:
                break
            left[page] = page_stop - page * PAGE_BYTES
            page += 1
    return left


def _joined_extents(extents: list[tuple[int, int]]) -> list[list[int]]:
    joined: list[list[int]] = []
    for start, stop in sorted(extents):
        if joined and joined[-1][1] == start:
            joined[-1][1] = stop
        else:
            joined.append([start, stop])
    return joined

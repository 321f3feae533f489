"""Checking pages of a block's file against their stored CRC-32C."""

from __future__ import annotations

import os

import crc32c

from stoker.executor import index
from stoker.executor.block import PAGE_BYTES, BlockLayout


def find_bad_pages(fd: int, layout: BlockLayout, start: int, stop: int) -> list[int]:
    """Return the pages of [start, stop) whose bytes do not match their checksum; pages without one are passed over.

    Reads a page at a time; blocks the thread, without the interpreter's lock for the most part.
    """
    first, last = start // PAGE_BYTES, -(-stop // PAGE_BYTES)
    known = index.known_pages(fd, layout, first, last)
    crcs = index.read_crcs(fd, layout, first, last)
    buffer = bytearray(PAGE_BYTES)
    bad = []
    for page in range(first, last):
        if not known[page - first]:
            continue
        length = min(PAGE_BYTES, layout.data_bytes - page * PAGE_BYTES)
        view = memoryview(buffer)[:length]
        if os.preadv(fd, [view], page * PAGE_BYTES) != length or crc32c.crc32c(view) != crcs[page - first]:
            # A fill may have begun to write to this page meanwhile: it unsets the known bit first.
            if index.are_known(fd, layout, page, page + 1):
                bad.append(page)
    return bad

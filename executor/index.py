"""The block index at the end of a block's file: which granules are valid, which checksums are known.

The layout is `stoker.executor.block`'s. One process writes a block's bitmaps (the keeper), any may read them: a set bit
is a promise that the bytes were there before it. Everything goes by pread and pwrite: the file is never mapped, so that
it can be sealed. This module knows no dataset and no socket.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable

import numpy as np

from stoker.executor.block import (
    FORMAT_VERSION,
    GRANULE_BYTES,
    HEADER,
    HEADER_BYTES,
    MAGIC,
    BlockLayout,
    BlockName,
)


def read_header(fd: int, layout: BlockLayout) -> tuple[bytes, BlockName, int]:
    """Return (cluster, name, data_bytes) of a block's file.

    :raises ValueError: there is no header, or one of a format that this program does not know.
    """
    data = os.pread(fd, HEADER_BYTES, layout.trailer_offset)
    if len(data) != HEADER_BYTES or data[:8] != MAGIC:
        raise ValueError("not a block's file: its header is missing")
    _, version, _, _, cluster, dataset_id, generation, index, data_bytes = HEADER.unpack(data)
    if version > FORMAT_VERSION:
        raise ValueError(f"a block of format {version}; this program knows up to {FORMAT_VERSION}")
    return cluster, BlockName(dataset_id, generation, index), data_bytes


def is_valid(fd: int, layout: BlockLayout, start: int, stop: int, *, flags: int = 0) -> bool:
    """Return whether every byte of [start, stop) is valid; 0 <= start < stop <= data_bytes. `flags` are of preadv."""
    return _all_set(fd, layout.valid_offset, start // GRANULE_BYTES, -(-stop // GRANULE_BYTES), flags)


def valid_extents(fd: int, layout: BlockLayout) -> list[tuple[int, int]]:
    """Return the valid parts of a block, in bytes, joined. O(block): 128 KiB are read for one of 64 MiB."""
    data = np.frombuffer(os.pread(fd, -(-layout.granule_count // 8), layout.valid_offset), dtype=np.uint8)
    bits = np.unpackbits(data, bitorder="little")[: layout.granule_count]
    edges = np.flatnonzero(np.diff(np.concatenate(([0], bits, [0])).astype(np.int8))) * GRANULE_BYTES
    stops = np.minimum(edges[1::2], layout.data_bytes)
    return list(zip(edges[::2].tolist(), stops.tolist(), strict=True))


def are_known(fd: int, layout: BlockLayout, first: int, stop: int) -> bool:
    """Return whether the checksums of pages [first, stop) are all there."""
    return _all_set(fd, layout.known_offset, first, stop)


def known_pages(fd: int, layout: BlockLayout, first: int, stop: int) -> list[bool]:
    """Return, for each of pages [first, stop), whether its checksum is there."""
    begin, end = first // 8, -(-stop // 8)
    data = os.pread(fd, end - begin, layout.known_offset + begin)
    return [bool(data[page // 8 - begin] >> (page % 8) & 1) for page in range(first, stop)]


def read_crcs(fd: int, layout: BlockLayout, first: int, stop: int) -> tuple[int, ...]:
    """Return the stored CRC-32C of pages [first, stop); only known ones mean something.

    :raises OSError: they cannot be read, or the file is too short.
    """
    data = os.pread(fd, 4 * (stop - first), layout.crc_offset + 4 * first)
    if len(data) != 4 * (stop - first):
        raise OSError(errno.EIO, f"{len(data)} bytes of {4 * (stop - first)} of its checksums are there")
    return struct.unpack(f"<{stop - first}I", data)


def mark_valid(fd: int, layout: BlockLayout, extents: Iterable[tuple[int, int]]) -> None:
    """Set the valid bits of the extents, each [start, stop) in bytes with granules wholly meant. The keeper only."""
    for start, stop in extents:
        _write_bits(fd, layout.valid_offset, start // GRANULE_BYTES, -(-stop // GRANULE_BYTES), value=True)


def mark_known(fd: int, layout: BlockLayout, pages: Iterable[tuple[int, int]], *, known: bool = True) -> None:
    """Set (or clear) the known bits of the page runs [first, stop). The keeper only."""
    for first, stop in pages:
        _write_bits(fd, layout.known_offset, first, stop, value=known)


def _all_set(fd: int, offset: int, first: int, stop: int, flags: int = 0) -> bool:
    begin, end = first // 8, -(-stop // 8)
    data = bytearray(end - begin)
    if os.preadv(fd, (data,), offset + begin, flags) != end - begin:
        return False
    count = stop - first
    bits = int.from_bytes(data, "little") >> (first - begin * 8)
    mask = (1 << count) - 1
    return bits & mask == mask


def _write_bits(fd: int, offset: int, first: int, stop: int, *, value: bool) -> None:
    if first >= stop:
        return
    begin, end = first // 8, -(-stop // 8)
    data = os.pread(fd, end - begin, offset + begin)
    assert len(data) == end - begin, "the block's file is too short"
    mask = ((1 << (stop - first)) - 1) << (first - begin * 8)
    bits = int.from_bytes(data, "little")
    bits = bits | mask if value else bits & ~mask
    view = memoryview(bits.to_bytes(end - begin, "little"))
    while view:
        written = os.pwrite(fd, view, offset + begin)
        view, begin = view[written:], begin + written

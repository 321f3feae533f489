"""Blocks: how they are named, and how one lies in its file.

A block is a fixed-size slice of a dataset's address space. In life it is one file (a memfd in the MEM tier, one in a directory in the SSD tier): the data,
then its *block index*, which says which extents are valid and holds the checksums:

    [0, data_bytes)            the data
    [trailer, +128)            header: magic, version, name, data_bytes
    [crc_offset, ...)          CRC-32C per 64 KiB page, u32 little endian; the last page may be shorter
    [known_offset, ...)        one bit a page: its checksum is there
    [valid_offset, ...)        one bit a granule of 64 B: its bytes are valid (bit i of byte i // 8, lowest bit first)

Files start at multiples of 64 B, so a granule never holds bytes of two files. One process writes the valid map (the
keeper), so it needs no lock; a reader that misses a bit just set asks the keeper, who knows. The file is never mapped
writable, so a full block can be sealed on any kernel.

This module knows numbers only: no socket, no file, no dataset.
"""

from __future__ import annotations

import functools
import struct
from typing import NamedTuple

PAGE_BYTES = 64 * 1024
GRANULE_BYTES = 64
BLOCK_BYTES_DEFAULT = 64 * 1024 * 1024
BLOCK_BYTES_MIN = 1024 * 1024
BLOCK_BYTES_MAX = 2**31  # starts and lengths inside a block are u32 on the wire

DISK_BLOCKS_MAX = 20_480  # of an executor's SSD tier: 1 TiB has 16,384
DISK_BLOCKS_MIN = 1_024  # of a small one
DISK_BLOCK_MEMORY_BYTES = 4 * 1024  # what an executor remembers of a partly filled one, measured

MAGIC = b"STKRBLK\x01"
FORMAT_VERSION = 1
HEADER = struct.Struct(
    "<8sHHI16sQIIQ72x"
)  # magic version flags header_bytes cluster dataset gen index data_bytes
HEADER_BYTES = 128
assert HEADER.size == HEADER_BYTES
assert PAGE_BYTES % GRANULE_BYTES == 0


class BlockName(NamedTuple):
    """A block's name inside one cluster; never used again for other bytes ("an address is written once")."""

    dataset_id: int
    generation: int
    block_index: int


class BlockLayout(NamedTuple):
    """Where the parts of a block's file lie; all offsets and sizes in bytes."""

    data_bytes: int
    page_count: int
    granule_count: int
    trailer_offset: int
    crc_offset: int
    known_offset: int
    valid_offset: int
    file_bytes: int


@functools.lru_cache(maxsize=1024)
def block_layout(data_bytes: int) -> BlockLayout:
    """Return the layout of a block of `data_bytes`, 1 <= data_bytes <= BLOCK_BYTES_MAX.

    >>> block_layout(65537)[:4]
    (65537, 2, 1025, 69632)
    """
    assert 1 <= data_bytes <= BLOCK_BYTES_MAX, data_bytes
    pages = -(-data_bytes // PAGE_BYTES)
    granules = -(-data_bytes // GRANULE_BYTES)
    trailer = -(-data_bytes // 4096) * 4096
    crc = trailer + HEADER_BYTES
    known = crc + 4 * pages
    valid = known + -(-pages // 8)
    return BlockLayout(data_bytes, pages, granules, trailer, crc, known, valid, valid + -(-granules // 8))


def encode_header(cluster: bytes, name: BlockName, data_bytes: int) -> bytes:
    """Return the 128 bytes that stand at `trailer_offset`; `cluster` is the cluster's 16-byte uuid."""
    return HEADER.pack(
        MAGIC,
        FORMAT_VERSION,
        0,
        HEADER_BYTES,
        cluster,
        name.dataset_id,
        name.generation,
        name.block_index,
        data_bytes,
    )


def block_bytes_for(address_bytes: int, *, slot_bytes: int) -> int:
    """Return the block size of a new generation: a power of two, fixed for the generation's life.

    64 MiB; smaller for a small dataset, so that it has some 64 blocks to spread; larger where an executor of
    `slot_bytes` would otherwise hold more than 16,384 blocks (design: "some 16,000 at most").

    >>> block_bytes_for(10 * 2**30, slot_bytes=2**30) // 2**20, block_bytes_for(2**20, slot_bytes=2**30) // 2**20
    (64, 1)
    """
    size = BLOCK_BYTES_DEFAULT
    while size > BLOCK_BYTES_MIN and address_bytes < 64 * size:
        size //= 2
    while size < BLOCK_BYTES_MAX // 2 and slot_bytes > 16_384 * size:
        size *= 2
    return size


def pg_count_for(block_count: int) -> int:
    """Return the dataset's number of placement groups: a power of two, <= 2**18 and <= the blocks (at least 1).

    >>> pg_count_for(0), pg_count_for(65), pg_count_for(10**9) == 2**18
    (1, 64, True)
    """
    return min(2**18, 1 << max(0, block_count.bit_length() - 1))


def disk_blocks_max(disk_bytes: int) -> int:
    """Return how many blocks an SSD tier of so many bytes may hold.

    >>> disk_blocks_max(0), disk_blocks_max(2**34), disk_blocks_max(2**40)
    (0, 16384, 20480)
    """
    # The last block of a dataset may be smaller than any other, and many datasets may be so small.
    least = DISK_BLOCKS_MIN if disk_bytes else 0
    return min(DISK_BLOCKS_MAX, max(least, disk_bytes // BLOCK_BYTES_MIN))


def disk_memory_bytes(disk_bytes: int) -> int:
    """Return the memory that an executor needs for an SSD tier of so many bytes, beside its MEM tier and overhead."""
    return disk_blocks_max(disk_bytes) * DISK_BLOCK_MEMORY_BYTES

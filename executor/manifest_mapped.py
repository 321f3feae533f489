"""The mapped form of a manifest: one file of aligned sections, made from root and parts, that processes share by mmap.

A machine's own copy: it never travels, and is made again from the blobs when its format version changes.

    [0, 8)      magic "STKRMFM" and the byte 1
    [8, 10)     u16  format version, 1
    [10, 12)    u16  bytes of a path start: 4, or 8 where there are 4 GiB of paths
    [12, 14)    u16  bytes of a token start: 4 or 8
    [14, 16)    u16  bits of a bucket number, 0 to 32
    [16, 48)    SHA-256 of the root
    [48, 56)    u64  bytes of this file
    [56, 64)    u64  rows
    [64, 256)   for each Section in order: u64 offset, u64 bytes
    [256, 260)  u32  CRC-32 of what comes before

Sections start at multiples of 64 and hold little-endian columns; see `Section`. The index by path: a path's bucket is
the highest bits of its CRC-32; BUCKET_STARTS tells which of BUCKET_ROWS are in it.

`write_mapped` believes nothing: whatever the blobs hold, either every promise of the format stands (paths in order and
allowed, extents apart, aligned, inside their blocks) or it raises and leaves no file.
"""

from __future__ import annotations

import contextlib
import enum
import operator
import os
import struct
import uuid
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stoker.executor.block import GRANULE_BYTES
from stoker.executor.manifest_format import (
    LARGE_FILE_ALIGNMENT,
    LARGE_FILE_BYTES,
    UNCROSSED_SHARE,
    Columns,
    Int64s,
    ManifestError,
    Root,
    Uint32s,
    digest_of,
    find_bad_path,
    hash_paths,
    padded,
    read_part,
    read_root,
    round_up,
    split_paths,
)

MAGIC = b"STKRMFM\x01"
FORMAT_VERSION = 1
_HEADER = struct.Struct("<8sHHHH32sQQ")
_ENTRY = struct.Struct("<QQ")
_CRC = struct.Struct("<I")
_CRC_OFFSET = 256
HEADER_BYTES = _CRC_OFFSET + _CRC.size
_SECTION_ALIGNMENT = 64
_WRITE_BYTES_MAX = 2**30  # one write call takes less than 2 GiB


class Section(enum.IntEnum):
    """What the sections hold; the numbers are their places in the header's table."""

    ROOT = 0  # the root blob itself
    PATHS = 1  # each path and a NUL
    PATH_STARTS = 2  # u32 or u64, rows + 1
    SIZES = 3  # i64
    OFFSETS = 4  # i64
    MTIMES = 5  # i64
    TOKENS = 6
    TOKEN_STARTS = 7  # u32 or u64, rows + 1
    BUCKET_STARTS = 8  # u32, buckets + 1
    BUCKET_ROWS = 9  # u32, by bucket, rows ascending in each
    BY_OFFSET = 10  # u32, the rows that have bytes, by offset


assert _HEADER.size + len(Section) * _ENTRY.size <= _CRC_OFFSET


class MappedHeader(NamedTuple):
    """A mapped file's header: `sections` is (offset, bytes) by Section."""

    path_start_bytes: int
    token_start_bytes: int
    bucket_bits: int
    digest: bytes
    file_bytes: int
    rows: int
    sections: tuple[tuple[int, int], ...]


def encode_header(header: MappedHeader) -> bytes:
    head = _HEADER.pack(MAGIC, FORMAT_VERSION, *header[:-1]) + b"".join(
        _ENTRY.pack(*s) for s in header.sections
    )
    head = head.ljust(_CRC_OFFSET, b"\0")
    return head + _CRC.pack(zlib.crc32(head))


def read_header(data: bytes, *, file_bytes: int) -> MappedHeader:
    """Return the header that the first HEADER_BYTES of a file of `file_bytes` hold.

    :raises ManifestError: not a mapped manifest, another version, or damaged.
    """
    if len(data) < HEADER_BYTES or data[: len(MAGIC)] != MAGIC:
        raise ManifestError("not a mapped manifest")
    _, version, path_start, token_start, bits, digest, size, rows = _HEADER.unpack_from(data)
    if version != FORMAT_VERSION:
        raise ManifestError(
            f"the mapped manifest has format version {version}, this program reads {FORMAT_VERSION}"
        )
    sections = tuple(_ENTRY.unpack_from(data, _HEADER.size + _ENTRY.size * s) for s in Section)
    header = MappedHeader(path_start, token_start, bits, digest, size, rows, sections)
    if (
        zlib.crc32(data[:_CRC_OFFSET]) != _CRC.unpack_from(data, _CRC_OFFSET)[0]
        or header.file_bytes != file_bytes
    ):
        raise ManifestError("the mapped manifest is damaged")
    expected = section_bytes(header)
    for section, (offset, size) in enumerate(sections):
        if (
            offset % _SECTION_ALIGNMENT
            or offset + size > file_bytes
            or expected.get(Section(section), size) != size
        ):
            raise ManifestError(f"the mapped manifest is damaged: section {Section(section).name}")
    return header


def section_bytes(header: MappedHeader) -> dict[Section, int]:
    """Return the bytes of each section whose length follows from the rows alone."""
    rows = header.rows
    return {
        Section.PATH_STARTS: header.path_start_bytes * (rows + 1),
        Section.SIZES: 8 * rows,
        Section.OFFSETS: 8 * rows,
        Section.MTIMES: 8 * rows,
        Section.TOKEN_STARTS: header.token_start_bytes * (rows + 1),
        Section.BUCKET_STARTS: 4 * ((1 << header.bucket_bits) + 1),
        Section.BUCKET_ROWS: 4 * rows,
    }


def write_mapped(root: bytes, get_part: Callable[[str], bytes], path: str) -> None:
    """Write the mapped form of a manifest to `path`, wholly or not at all (an existing file is replaced).

    `get_part(digest)` is called once a part, in the root's order; what it raises is passed on.

    :raises ManifestError: a blob is damaged, or breaks a promise of the format.
    :raises OSError: the file cannot be written (a full disk).
    """
    partial = f"{path}.{uuid.uuid4().hex}.tmp"
    descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        try:
            _Writer(descriptor, root, read_root(root)).write(get_part)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(partial, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)
        raise


class _Writer:
    """Puts one manifest into an empty file: the parts as they come, then what needs all of them, the header last."""

    def __init__(self, descriptor: int, blob: bytes, root: Root) -> None:
        self._descriptor = descriptor
        self._root = root
        self._checker = _Checker(root)
        self._header = _place_sections(blob, root)
        self._hashes: Uint32s = np.empty(root.file_count, dtype=np.uint32)
        self._put(Section.ROOT, 0, np.frombuffer(blob, dtype=np.uint8))

    def write(self, get_part: Callable[[str], bytes]) -> None:
        row = path_byte = token_byte = 0
        for entry in self._root.parts:
            columns = read_part(get_part(entry.digest), entry)
            names = split_paths(columns.paths)
            self._checker.check(columns, names, row)
            self._hashes[row : row + entry.rows] = hash_paths(names)
            self._put_rows(columns, row, path_byte, token_byte)
            row += entry.rows
            path_byte += entry.path_bytes
            token_byte += entry.token_bytes
        by_offset = self._checker.finish()
        self._put_starts(Section.PATH_STARTS, np.array([path_byte]), row)
        self._put_starts(Section.TOKEN_STARTS, np.array([token_byte]), row)
        self._put_buckets()
        self._put_last(by_offset)

    def _put_rows(self, columns: Columns, row: int, path_byte: int, token_byte: int) -> None:
        self._put(Section.PATHS, path_byte, columns.paths)
        self._put(Section.TOKENS, token_byte, columns.tokens)
        self._put(Section.SIZES, 8 * row, columns.sizes)
        self._put(Section.OFFSETS, 8 * row, columns.offsets)
        self._put(Section.MTIMES, 8 * row, columns.mtimes)
        self._put_starts(Section.PATH_STARTS, columns.path_starts[:-1] + path_byte, row)
        self._put_starts(Section.TOKEN_STARTS, columns.token_starts[:-1] + token_byte, row)

    def _put_starts(self, section: Section, starts: Int64s, row: int) -> None:
        is_path = section is Section.PATH_STARTS
        width = self._header.path_start_bytes if is_path else self._header.token_start_bytes
        self._put(section, width * row, starts.astype(f"<u{width}"))

    def _put_buckets(self) -> None:
        bits = self._header.bucket_bits
        buckets = self._hashes.astype(np.int64) >> (32 - bits)
        starts = np.zeros((1 << bits) + 1, dtype=np.int64)
        np.cumsum(np.bincount(buckets, minlength=1 << bits), out=starts[1:])
        self._put(Section.BUCKET_STARTS, 0, starts.astype("<u4"))
        self._put(Section.BUCKET_ROWS, 0, np.argsort(buckets, kind="stable").astype("<u4"))

    def _put_last(self, by_offset: Uint32s) -> None:
        start = self._header.sections[Section.BY_OFFSET][0]
        self._put(Section.BY_OFFSET, 0, by_offset)
        file_bytes = start + by_offset.nbytes
        sections = (*self._header.sections[: Section.BY_OFFSET], (start, by_offset.nbytes))
        os.ftruncate(self._descriptor, file_bytes)
        header = self._header._replace(file_bytes=file_bytes, sections=sections)
        os.pwrite(self._descriptor, encode_header(header), 0)

    def _put(self, section: Section, offset: int, column: NDArray[Any]) -> None:
        data = np.ascontiguousarray(column).data.cast("B") if column.nbytes else memoryview(b"")
        at = self._header.sections[section][0] + offset
        while data:
            count = os.pwrite(self._descriptor, data[:_WRITE_BYTES_MAX], at)
            data, at = data[count:], at + count


def _place_sections(blob: bytes, root: Root) -> MappedHeader:
    wide = 2**32
    header = MappedHeader(
        path_start_bytes=4 if root.path_bytes < wide else 8,
        token_start_bytes=4 if root.token_bytes < wide else 8,
        bucket_bits=min(32, root.file_count.bit_length()),  # one to two buckets a row
        digest=bytes.fromhex(digest_of(blob)),
        file_bytes=0,
        rows=root.file_count,
        sections=(),
    )
    known = section_bytes(header) | {
        Section.ROOT: len(blob),
        Section.PATHS: root.path_bytes,
        Section.TOKENS: root.token_bytes,
        Section.BY_OFFSET: 0,  # known when all rows are
    }
    at, sections = HEADER_BYTES, []
    for section in Section:
        at = round_up(at, _SECTION_ALIGNMENT)
        sections.append((at, known[section]))
        at += known[section]
    return header._replace(sections=tuple(sections))


class _Checker:
    """Holds the rows of a manifest against the promises of the format, part by part, then all together."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self._last = b""
        self._sizes: Int64s = np.empty(root.file_count, dtype=np.int64)
        self._offsets: Int64s = np.empty(root.file_count, dtype=np.int64)
        self._ends: Int64s = np.array(root.ends, dtype=np.int64)
        self._begins: Int64s = np.array(
            [0, *(round_up(e, root.block_bytes) for e in root.ends)][: len(root.ends)], dtype=np.int64
        )

    def check(self, columns: Columns, names: list[bytes], row: int) -> None:
        """:raises ManifestError: a path or an address of this part, which begins at `row`, is not allowed."""
        bad = find_bad_path(columns.paths, columns.path_starts)
        if bad >= 0:
            raise ManifestError(f"the manifest is damaged: row {row + bad} has the path {names[bad][:200]!r}")
        if not (self._last < names[0] and all(map(operator.lt, names, names[1:]))):
            raise ManifestError(f"the manifest is damaged: paths are out of order in the rows from {row}")
        self._last = names[-1]
        self._check_addresses(columns.offsets, columns.sizes, row)
        self._sizes[row : row + len(names)] = columns.sizes
        self._offsets[row : row + len(names)] = columns.offsets

    def _check_addresses(self, offsets: Int64s, sizes: Int64s, row: int) -> None:
        block_bytes = self._root.block_bytes
        bad = (offsets < 0) | (offsets > self._root.address_bytes) | (offsets % GRANULE_BYTES != 0)
        bad |= (sizes >= LARGE_FILE_BYTES) & (offsets % LARGE_FILE_ALIGNMENT != 0)
        has_bytes = sizes > 0
        ends = np.where(bad, 0, offsets) + sizes  # so that nothing overflows
        is_small = has_bytes & (sizes <= block_bytes // UNCROSSED_SHARE)
        bad |= is_small & (offsets // block_bytes != (ends - 1) // block_bytes)
        span = np.searchsorted(self._ends, offsets, side="right")
        if len(self._ends):
            at = np.minimum(span, len(self._ends) - 1)
            outside = (span == len(self._ends)) | (offsets < self._begins[at]) | (ends > self._ends[at])
        else:
            outside = np.ones(len(offsets), dtype=bool)
        bad |= has_bytes & outside
        if bad.any():
            raise ManifestError(
                f"the manifest is damaged: row {row + int(bad.argmax())} has a forbidden address"
            )

    def finish(self) -> Uint32s:
        """Return the rows that have bytes, by offset.

        :raises ManifestError: two files share an address, or the sizes do not add up.
        """
        rows = np.flatnonzero(self._sizes)
        rows = rows[np.argsort(self._offsets[rows], kind="stable")]
        ends = self._offsets[rows] + padded(self._sizes[rows])
        if (ends[:-1] > self._offsets[rows][1:]).any():
            raise ManifestError("the manifest is damaged: two files share an address")
        if int(self._sizes.sum()) != self._root.total_bytes:
            raise ManifestError("the manifest is damaged: the sizes do not add up to its bytes")
        return rows.astype(np.uint32)

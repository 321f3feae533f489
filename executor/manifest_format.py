"""The manifest at rest and on the wire: a root, its parts, and the bundle. For ever: every byte is told here.

A manifest is the immutable file table of one dataset version. It is kept as one small *root* blob and many *part*
blobs, each named by the SHA-256 of its bytes. All numbers are little endian and unsigned unless said otherwise; rows
stand in the order of their paths' UTF-8 bytes; no two rows have one path.

Root:

    [0, 8)      magic "STKRMFR" and the byte 1
    [8, 10)     u16  format version, 1. A reader refuses a higher one
    [10, 12)    u16  flags, 0. A reader refuses a flag that it does not know
    [12, 16)    u32  header bytes, >= 128; what lies beyond 128 is for later writers and skipped
    [16, 32)    cluster uuid
    [32, 40)    u64  dataset id
    [40, 48)    u64  generation
    [48, 56)    u64  version
    [56, 64)    u64  block bytes, a power of two; fixed for the generation
    [64, 72)    u64  rows
    [72, 80)    u64  bytes of all files
    [80, 88)    u64  address bytes: the end of the address space of this generation as far as this version knows it, a
                     multiple of 64. It never shrinks: an address is written once, also when its file is gone
    [88, 96)    u64  path bytes of all rows, the NULs included
    [96, 104)   u64  token bytes of all rows
    [104, 108)  u32  placement groups, a power of two; fixed for the generation
    [108, 112)  u32  number of ends
    [112, 116)  u32  number of parts
    [116, 128)  zero
    then        u64 an end: where each version that appended anything ended, ascending, the last is the address bytes. The
                next one begins at the next block boundary, so the block that holds an end that is no boundary is a short
                block, with the same length in every version
    then        48 bytes a part: its SHA-256, u32 stored bytes, u32 rows, u32 path bytes, u32 token bytes

Part: a run of rows. Parts are cut after rows that the CRC-32 of their path picks, so a refresh shares those in which nothing changed.

    [0, 8)      magic "STKRMFP" and the byte 1
    [8, 10)     u16  format version, 1
    [10, 12)    u16  codec, 1: what follows the header is one zlib stream
    [12, 16)    u32  rows
    [16, 20)    u32  path bytes
    [20, 24)    u32  token bytes
    [24, 32)    zero
    then, deflated: the columns
                paths    each path's UTF-8 and a NUL
                sizes    i64 a row, as byte planes: the lowest byte of every row, then the next one of every row, ...
                offsets  i64 a row, as byte planes: the offset less where the row before ends (rounded up to 64; 0 before
                         the first), mod 2**64
                mtimes   i64 nanoseconds a row, as byte planes: the difference to the row before, mod 2**64
                lengths  u16 a row, as byte planes: bytes of the row's token
                tokens   one after the other

Addresses: a file starts at a multiple of 64, from 1 MiB up at a multiple of 4096; a file of at most 1/8 block crosses no
block boundary; no two files share a byte; a file lies between two ends. An empty file has an address but no bytes.

Bundle, the body of one HTTP answer: u32 number of blobs, then for each u32 length and its bytes; the root first, then its
parts in the root's order.

This module knows bytes and numpy columns: no file, no dataset, no under store.
"""

from __future__ import annotations

import hashlib
import struct
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stoker.executor.block import BLOCK_BYTES_MAX, BLOCK_BYTES_MIN, GRANULE_BYTES

assert sys.byteorder == "little", "the mapped sections are little endian and are read in place"

FORMAT_VERSION = 1
ROOT_MAGIC = b"STKRMFR\x01"
PART_MAGIC = b"STKRMFP\x01"
CODEC_ZLIB = 1
_ZLIB_LEVEL = 1  # twice as fast as 6, and a tenth larger

_ROOT = struct.Struct("<8sHHI16sQQQQQQQQQIII12x")
_PART = struct.Struct("<8sHHIII8x")
_PART_ENTRY = struct.Struct("<32sIIII")
_U32 = struct.Struct("<I")
assert (_ROOT.size, _PART.size, _PART_ENTRY.size) == (128, 32, 48)

PATH_BYTES_MAX = 4096
TOKEN_BYTES_MAX = 256
ROWS_MAX = 2**32 - 2  # rows are u32 in the mapped form
FILE_BYTES_MAX = 2**46  # so that sums over a chunk of 2**16 rows fit 63 bits
ADDRESS_BYTES_MAX = 2**60
BLOCK_COUNT_MAX = 2**32 - 1  # block indexes are u32 on the wire
PG_COUNT_MAX = 2**18
ENDS_MAX = 2**16  # versions of one generation that appended; beyond it a new generation is due
PART_ROWS_MIN = 1024
PART_ROWS_MASK = 4095  # a path whose CRC-32 has none of these bits ends a part: 5,120 rows a part in the mean
PART_ROWS_MAX = 16_384
PART_RAW_BYTES_MAX = 2 * 1024 * 1024  # paths and tokens of one part; one row alone may not be above it
PARTS_MAX = 2**22
ROOT_BYTES_MAX = _ROOT.size + 4096 + 8 * ENDS_MAX + _PART_ENTRY.size * PARTS_MAX
PART_STORED_BYTES_MAX = 4 * 1024 * 1024
LARGE_FILE_BYTES = 1024 * 1024  # from here up files start at multiples of LARGE_FILE_ALIGNMENT
LARGE_FILE_ALIGNMENT = 4096
UNCROSSED_SHARE = 8  # a file of at most 1/8 block crosses no block boundary
_FIXED_ROW_BYTES = 8 + 8 + 8 + 2
assert PATH_BYTES_MAX + 1 + TOKEN_BYTES_MAX < PART_RAW_BYTES_MAX
assert PART_RAW_BYTES_MAX + PART_ROWS_MAX * _FIXED_ROW_BYTES < PART_STORED_BYTES_MAX

Int64s = NDArray[np.int64]
Uint8s = NDArray[np.uint8]
Uint32s = NDArray[np.uint32]


class ManifestError(Exception):
    """A manifest, or the rows that one should be made of, cannot be used; the text says what is wrong and where."""


class FileRow(NamedTuple):
    """One file as an under store lists it.

    `path` is relative to the dataset, see `PATH_RULE`; `size` in bytes; `mtime_ns` 0: unknown; `token` is the store's own
    version mark as given (an ETag), at most TOKEN_BYTES_MAX, empty: none.
    """

    path: str
    size: int
    mtime_ns: int
    token: bytes


class PartEntry(NamedTuple):
    """What a root says of one part."""

    digest: str
    stored_bytes: int
    rows: int
    path_bytes: int
    token_bytes: int


class Root(NamedTuple):
    """A root, read and checked as far as it can be without its parts."""

    cluster: bytes
    dataset_id: int
    generation: int
    version: int
    block_bytes: int
    file_count: int
    total_bytes: int
    address_bytes: int
    path_bytes: int
    token_bytes: int
    pg_count: int
    ends: tuple[int, ...]
    parts: tuple[PartEntry, ...]

    @property
    def block_count(self) -> int:
        return -(-self.address_bytes // self.block_bytes)


class Columns(NamedTuple):
    """Rows as columns. `paths` holds each path and a NUL; row i's is paths[path_starts[i] : path_starts[i + 1] - 1]."""

    paths: Uint8s
    path_starts: Int64s  # rows + 1
    sizes: Int64s
    offsets: Int64s
    mtimes: Int64s
    tokens: Uint8s
    token_starts: Int64s  # rows + 1


PATH_RULE = (
    f"relative, '/' between components, UTF-8 of 1 to {PATH_BYTES_MAX} bytes, "
    "no NUL, no empty component, no '.' and no '..'"
)


def digest_of(blob: bytes | memoryview) -> str:
    """Return the hex SHA-256 by which a root or part is named."""
    return hashlib.sha256(blob).hexdigest()


def round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def padded(sizes: Int64s) -> Int64s:
    """Return the sizes rounded up to a granule."""
    return (sizes + (GRANULE_BYTES - 1)) & -GRANULE_BYTES


def encode_root(root: Root) -> bytes:
    """Return the root's bytes; `read_root` gives it back."""
    head = _ROOT.pack(
        ROOT_MAGIC,
        FORMAT_VERSION,
        0,
        _ROOT.size,
        root.cluster,
        root.dataset_id,
        root.generation,
        root.version,
        root.block_bytes,
        root.file_count,
        root.total_bytes,
        root.address_bytes,
        root.path_bytes,
        root.token_bytes,
        root.pg_count,
        len(root.ends),
        len(root.parts),
    )
    ends = struct.pack(f"<{len(root.ends)}Q", *root.ends)
    entries = (_PART_ENTRY.pack(bytes.fromhex(p.digest), *p[1:]) for p in root.parts)
    return b"".join((head, ends, *entries))


def read_root(blob: bytes) -> Root:
    """Return the root that `blob` holds.

    :raises ManifestError: damaged, too new, or not a root at all.
    """
    if len(blob) < _ROOT.size:
        raise ManifestError(f"a manifest's root has at least {_ROOT.size} bytes; here are {len(blob)}")
    magic, version, flags, header_bytes, *numbers = _ROOT.unpack_from(blob)
    _check_format("root", magic, ROOT_MAGIC, version)
    if flags:
        raise ManifestError(
            f"the manifest's root has unknown flags {flags:#x}: a newer Stoker wrote it; upgrade this one"
        )
    end_count, part_count = numbers[-2:]
    size = header_bytes + 8 * end_count + _PART_ENTRY.size * part_count
    if header_bytes < _ROOT.size or end_count > ENDS_MAX or part_count > PARTS_MAX or size != len(blob):
        raise ManifestError(
            f"the manifest's root is damaged: its {len(blob)} bytes are not the {size} that its header tells"
        )
    ends = struct.unpack_from(f"<{end_count}Q", blob, header_bytes)
    entries = _PART_ENTRY.iter_unpack(memoryview(blob)[header_bytes + 8 * end_count :])
    parts = tuple(PartEntry(e[0].hex(), *e[1:]) for e in entries)
    root = Root._make((*numbers[:-2], ends, parts))
    _check_root(root)
    return root


def part_digests(root: bytes) -> list[str]:
    """Return the digests of the root's parts, in row order.

    :raises ManifestError: see `read_root`.
    """
    return [part.digest for part in read_root(root).parts]


def _check_format(what: str, magic: bytes, expected: bytes, version: int) -> None:
    if magic != expected:
        raise ManifestError(f"not a manifest's {what}: it begins with {magic!r}, not with {expected!r}")
    if version != FORMAT_VERSION:
        raise ManifestError(
            f"the manifest's {what} has format version {version}, this program reads {FORMAT_VERSION}: upgrade it"
        )


def _check_root(root: Root) -> None:
    block = root.block_bytes
    rules = (
        (BLOCK_BYTES_MIN <= block <= BLOCK_BYTES_MAX and block & (block - 1) == 0, f"block bytes {block}"),
        (
            0 < root.pg_count <= PG_COUNT_MAX and root.pg_count & (root.pg_count - 1) == 0,
            f"{root.pg_count} PGs",
        ),
        (root.file_count <= ROWS_MAX, f"{root.file_count} rows"),
        (
            root.address_bytes <= ADDRESS_BYTES_MAX and root.address_bytes % GRANULE_BYTES == 0,
            "address bytes",
        ),
        (root.total_bytes <= root.address_bytes, "more bytes than addresses"),
        (sum(p.rows for p in root.parts) == root.file_count, "the parts' rows do not add up"),
        (sum(p.path_bytes for p in root.parts) == root.path_bytes, "the parts' path bytes do not add up"),
        (sum(p.token_bytes for p in root.parts) == root.token_bytes, "the parts' token bytes do not add up"),
        ((root.ends[-1] if root.ends else 0) == root.address_bytes, "the last end is not the address bytes"),
        (root.ends == tuple(sorted(root.ends)) and all(e % GRANULE_BYTES == 0 for e in root.ends), "ends"),
    )
    for holds, what in rules:
        if not holds:
            raise ManifestError(f"the manifest's root is damaged: {what}")
    if root.block_count > BLOCK_COUNT_MAX:
        raise ManifestError(
            f"the manifest's root is damaged: {root.block_count} blocks; at most {BLOCK_COUNT_MAX}"
        )
    starts = (0, *(round_up(e, block) for e in root.ends))
    if any(end <= start for start, end in zip(starts, root.ends, strict=False)):
        raise ManifestError("the manifest's root is damaged: two ends lie in one block")
    for part in root.parts:
        raw = part.path_bytes + part.token_bytes
        if not (
            0 < part.rows <= PART_ROWS_MAX
            and raw <= PART_RAW_BYTES_MAX
            and part.stored_bytes <= PART_STORED_BYTES_MAX
        ):
            raise ManifestError(
                f"the manifest's root is damaged: part {part.digest} is above the limits of a part"
            )


def encode_part(columns: Columns, start: int, stop: int) -> bytes:
    """Return the part of rows [start, stop), 0 < stop - start <= PART_ROWS_MAX."""
    assert 0 < stop - start <= PART_ROWS_MAX
    path_bytes = columns.paths[columns.path_starts[start] : columns.path_starts[stop]]
    token_bytes = columns.tokens[columns.token_starts[start] : columns.token_starts[stop]]
    sizes, offsets, mtimes = (
        columns.sizes[start:stop],
        columns.offsets[start:stop],
        columns.mtimes[start:stop],
    )
    expected = np.zeros_like(offsets)
    expected[1:] = offsets[:-1] + padded(sizes[:-1])
    lengths = np.diff(columns.token_starts[start : stop + 1]).astype("<u2")
    raw = b"".join(
        (
            path_bytes.tobytes(),
            _planes(sizes),
            _planes(offsets - expected),
            _planes(np.diff(mtimes, prepend=np.int64(0))),
            _planes(lengths),
            token_bytes.tobytes(),
        )
    )
    head = _PART.pack(PART_MAGIC, FORMAT_VERSION, CODEC_ZLIB, stop - start, len(path_bytes), len(token_bytes))
    return head + zlib.compress(raw, _ZLIB_LEVEL)


def read_part(blob: bytes, entry: PartEntry) -> Columns:
    """Return the rows of a part that the root tells of as `entry`; checks digest and lengths, not what the rows mean.

    :raises ManifestError: these are not the bytes that the root points to, or they are no part.
    """
    if len(blob) != entry.stored_bytes or digest_of(blob) != entry.digest:
        raise ManifestError(f"part {entry.digest} of the manifest is damaged: its bytes have another digest")
    if len(blob) < _PART.size:
        raise ManifestError(f"part {entry.digest} of the manifest is too short")
    magic, version, codec, *counts = _PART.unpack_from(blob)
    _check_format("part", magic, PART_MAGIC, version)
    if codec != CODEC_ZLIB:
        raise ManifestError(
            f"part {entry.digest} has the unknown codec {codec}: a newer Stoker wrote it; upgrade this one"
        )
    if tuple(counts) != entry[2:]:
        raise ManifestError(f"part {entry.digest} of the manifest is not what its root tells: {counts}")
    return _split_columns(_inflate(blob, entry), entry)


def _inflate(blob: bytes, entry: PartEntry) -> bytes:
    expected = entry.path_bytes + entry.token_bytes + entry.rows * _FIXED_ROW_BYTES
    inflater = zlib.decompressobj()
    try:
        raw = inflater.decompress(memoryview(blob)[_PART.size :], expected + 1)
    except zlib.error as error:
        raise ManifestError(f"part {entry.digest} of the manifest does not inflate: {error}") from error
    if len(raw) != expected or not inflater.eof or inflater.unused_data:
        raise ManifestError(f"part {entry.digest} of the manifest does not inflate to its {expected} bytes")
    return raw


def _split_columns(raw: bytes, entry: PartEntry) -> Columns:
    rows = entry.rows
    data = np.frombuffer(raw, dtype=np.uint8)
    paths, rest = data[: entry.path_bytes], data[entry.path_bytes :]
    sizes = _from_planes(rest[: 8 * rows], "<i8")
    differences = _from_planes(rest[8 * rows : 16 * rows], "<i8")
    mtimes = np.cumsum(_from_planes(rest[16 * rows : 24 * rows], "<i8"))
    lengths = _from_planes(rest[24 * rows : 26 * rows], "<u2")
    ends = np.flatnonzero(paths == 0) + 1
    token_starts = np.zeros(rows + 1, dtype=np.int64)
    np.cumsum(lengths, out=token_starts[1:])
    if len(ends) != rows or ends[-1] != len(paths) or token_starts[-1] != entry.token_bytes:
        raise ManifestError(
            f"part {entry.digest} of the manifest is damaged: its columns do not fit its rows"
        )
    if sizes.min() < 0 or sizes.max() > FILE_BYTES_MAX or lengths.max() > TOKEN_BYTES_MAX:
        raise ManifestError(
            f"part {entry.digest} of the manifest is damaged: a size or a token is above its limit"
        )
    # offset[i] = offset[i-1] + padded size[i-1] + difference[i], so all of them are one running sum (mod 2**64).
    differences[1:] += padded(sizes[:-1])
    offsets = np.cumsum(differences)
    path_starts = np.concatenate((np.zeros(1, dtype=np.int64), ends))
    return Columns(paths, path_starts, sizes, offsets, mtimes, rest[26 * rows :], token_starts)


def _planes(column: NDArray[np.int64] | NDArray[np.uint16]) -> bytes:
    wide = np.ascontiguousarray(column).view(np.uint8).reshape(len(column), column.dtype.itemsize)
    return wide.T.tobytes()


def _from_planes(planes: Uint8s, dtype: str) -> NDArray[np.int64]:
    width = np.dtype(dtype).itemsize
    wide = np.array(planes.reshape(width, -1).T, order="C")  # always a copy: the caller adds into it
    return wide.view(dtype).reshape(-1)


def find_bad_path(paths: Uint8s, path_starts: Int64s) -> int:
    """Return the first row whose path breaks PATH_RULE, or -1. `paths` holds each path and its one NUL."""
    if not len(paths):
        return -1
    text = np.empty(len(paths) + 1, dtype=np.uint8)
    text[0] = 0
    text[1:] = paths
    separator = (text == 0) | (text == ord("/"))
    dot = text == ord(".")
    bad = separator[:-1] & separator[1:]
    one_dot = dot[1:-1] & separator[:-2] & separator[2:]
    bad[1:] |= one_dot
    bad[2:] |= separator[:-3] & dot[1:-2] & dot[2:-1] & separator[3:]
    rows = [int(np.searchsorted(path_starts, p, side="right")) - 1 for p in np.flatnonzero(bad)[:1]]
    rows += np.flatnonzero(np.diff(path_starts) > PATH_BYTES_MAX + 1)[:1].tolist()
    if not rows and not is_utf8(paths):
        rows = [
            r for r in range(len(path_starts) - 1) if not is_utf8(paths[path_starts[r] : path_starts[r + 1]])
        ]
    return min(rows, default=-1)


def is_utf8(text: Uint8s) -> bool:
    try:
        text.tobytes().decode()
    except UnicodeDecodeError:
        return False
    return True


def split_paths(paths: Uint8s | memoryview | bytes) -> list[bytes]:
    """Return the paths of a buffer that holds each path and a NUL."""
    out = bytes(paths).split(b"\0")
    assert not out[-1]
    out.pop()
    return out


def hash_paths(paths: list[bytes]) -> Uint32s:
    """Return the CRC-32 of each path: it picks the cuts between parts (for ever) and the bucket of the mapped index."""
    return np.fromiter(map(zlib.crc32, paths), dtype=np.uint32, count=len(paths))


def bundle(root: bytes, parts: Mapping[str, bytes] | Callable[[str], bytes]) -> Iterator[bytes]:
    """Yield the bundle of a manifest piece by piece; `parts` are looked up or asked for one at a time.

    :raises ManifestError: `root` is none.
    """
    get_part = parts if callable(parts) else parts.__getitem__
    digests = part_digests(root)
    yield _U32.pack(1 + len(digests)) + _U32.pack(len(root)) + root
    for digest in digests:
        part = get_part(digest)
        yield _U32.pack(len(part)) + part


def open_bundle(read: Callable[[int], bytes]) -> tuple[bytes, Callable[[str], bytes]]:
    """Return the root, and a `get_part` for `write_mapped` that reads part after part: nothing is held.

    :param read: returns at most n bytes, b"" at the end.
    :raises ManifestError: not a bundle; also from `get_part`, which must be asked in the root's order.
    """
    (count,) = _U32.unpack(_read_exactly(read, 4))
    root = _read_blob(read, ROOT_BYTES_MAX)
    digests = part_digests(root)
    if count != 1 + len(digests):
        raise ManifestError(f"the bundle holds {count} blobs, its root asks for {1 + len(digests)}")
    remaining = iter(digests)

    def get_part(digest: str) -> bytes:
        if next(remaining, None) != digest:
            raise ManifestError(f"part {digest} was asked for out of the bundle's order")
        return _read_blob(read, PART_STORED_BYTES_MAX)

    return root, get_part


def unbundle(read: Callable[[int], bytes]) -> tuple[bytes, dict[str, bytes]]:
    """Return the root and its parts, each checked against its digest, all in memory; see `open_bundle`.

    :raises ManifestError: not a bundle, or damaged.
    """
    root, get_part = open_bundle(read)
    parts: dict[str, bytes] = {}
    for digest in part_digests(root):
        part = get_part(digest)
        if digest_of(part) != digest:
            raise ManifestError(f"part {digest} of the manifest is damaged: its bytes have another digest")
        parts[digest] = part
    return root, parts


def _read_blob(read: Callable[[int], bytes], bytes_max: int) -> bytes:
    (length,) = _U32.unpack(_read_exactly(read, 4))
    if length > bytes_max:
        raise ManifestError(f"the bundle holds a blob of {length} bytes; at most {bytes_max} are allowed")
    return _read_exactly(read, length)


def _read_exactly(read: Callable[[int], bytes], count: int) -> bytes:
    out = bytearray()
    while len(out) < count:
        piece = read(count - len(out))
        if not piece:
            raise ManifestError(f"the bundle ends after {len(out)} of {count} bytes")
        out += piece
    return bytes(out)

"""A mapped manifest, read: look-ups by path, by row, by prefix, by address. No file of it is ever a Python object.

A `Manifest` is a read-only mapping and views into it: cheap to make, shared by all processes that map the file (fork
keeps it), safe to use from many threads. It owns no descriptor. It is not pickled: pass the file's path.

Paths are literal: no character is special, and a path that could not be in a dataset is just not found.
"""

from __future__ import annotations

import bisect
import hashlib
import mmap
import os
import re
import zlib
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, partial
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stoker.executor.manifest_format import (
    Int64s,
    ManifestError,
    Uint8s,
    read_root,
    split_paths,
)
from stoker.executor.manifest_mapped import HEADER_BYTES, Section, read_header

_BUCKET_SCAN_MAX = 16  # fuller buckets (only made on purpose) are left for a binary search
_CHUNK_ROWS = 2**20
_ETAG = re.compile(rb'"[!#-~]+"')

Rules = Sequence[tuple[bool, str]]


class Selected(NamedTuple):
    """What rules select: a bitmap of blocks (bit i of byte i // 8, lowest first), and the selected files' bytes and count."""

    blocks: bytes
    bytes: int
    files: int


class DirectoryEntry(NamedTuple):
    """A child of a directory; `row` is -1 for a directory."""

    name: str
    is_directory: bool
    row: int


def map_manifest(path_or_descriptor: str | os.PathLike[str] | int) -> Manifest:
    """Return the manifest in a file that `write_mapped` wrote; a descriptor stays the caller's.

    :raises ManifestError: damaged, of another format version, or not a mapped manifest.
    :raises OSError: the file cannot be opened.
    """
    if isinstance(path_or_descriptor, int):
        return _map(path_or_descriptor)
    descriptor = os.open(path_or_descriptor, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _map(descriptor)
    finally:
        os.close(descriptor)


def _map(descriptor: int) -> Manifest:
    if os.fstat(descriptor).st_size < HEADER_BYTES:
        raise ManifestError("not a mapped manifest: too short")
    return Manifest(mmap.mmap(descriptor, 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ))


class Manifest:
    """See the module; made by `map_manifest`. Rows are ints, 0 to file_count - 1, in the order of the paths' bytes.

    A row outside of that raises IndexError. `find(path)` returns the row of a path, or -1.
    """

    def __init__(self, mapped: mmap.mmap) -> None:
        header = read_header(mapped[:HEADER_BYTES], file_bytes=len(mapped))
        self._mapped = mapped
        self._sections = header.sections
        blob_start, blob_bytes = header.sections[Section.ROOT]
        self.root: bytes = mapped[blob_start : blob_start + blob_bytes]
        root = read_root(self.root)
        if hashlib.sha256(self.root).digest() != header.digest or root.file_count != header.rows:
            raise ManifestError("the mapped manifest is damaged: its root has another digest")
        self.digest = header.digest.hex()
        self.cluster = root.cluster
        self.dataset_id = root.dataset_id
        self.generation = root.generation
        self.version = root.version
        self.block_bytes = root.block_bytes
        self.pg_count = root.pg_count
        self.file_count = root.file_count
        self.total_bytes = root.total_bytes
        self.address_bytes = root.address_bytes
        self.block_count = root.block_count
        self.ends = root.ends
        self.sizes: Int64s = self._array(Section.SIZES, "<i8")
        self.offsets: Int64s = self._array(Section.OFFSETS, "<i8")
        self.mtimes: Int64s = self._array(Section.MTIMES, "<i8")
        self.tokens: Uint8s = self._array(Section.TOKENS, "u1")
        self.token_starts: NDArray[Any] = self._array(Section.TOKEN_STARTS, f"<u{header.token_start_bytes}")
        # Views by memoryview give ints at once, numpy's scalars cost three times as much.
        path_code: Literal["I", "Q"] = "I" if header.path_start_bytes == 4 else "Q"
        token_code: Literal["I", "Q"] = "I" if header.token_start_bytes == 4 else "Q"
        self._path_starts = self._view(Section.PATH_STARTS, path_code)
        self._token_starts = self._view(Section.TOKEN_STARTS, token_code)
        self._sizes = self._view(Section.SIZES, "q")
        self._offsets = self._view(Section.OFFSETS, "q")
        self._mtimes = self._view(Section.MTIMES, "q")
        self._by_offset = self._view(Section.BY_OFFSET, "I")
        self._paths_offset = header.sections[Section.PATHS][0]
        self._tokens_offset = header.sections[Section.TOKENS][0]
        self.find: Callable[[str], int] = self._make_find(32 - header.bucket_bits)

    def __len__(self) -> int:
        return self.file_count

    def __repr__(self) -> str:
        return (
            f"<Manifest dataset {self.dataset_id} generation {self.generation} version {self.version}: "
            f"{self.file_count} files, {self.total_bytes} bytes>"
        )

    def __reduce__(self) -> str:
        raise TypeError("a Manifest is not pickled: pass the path of its mapped file")

    def _array(self, section: Section, dtype: str) -> NDArray[Any]:
        start, size = self._sections[section]
        return np.frombuffer(self._mapped, dtype=dtype, offset=start, count=size // np.dtype(dtype).itemsize)

    def _view(self, section: Section, code: Literal["I", "Q", "q"]) -> memoryview:
        start, size = self._sections[section]
        return memoryview(self._mapped)[start : start + size].cast(code)

    # One row

    def path(self, row: int) -> str:
        return self.path_bytes(row).decode()

    def path_bytes(self, row: int) -> bytes:
        self._check(row)
        start = self._paths_offset
        return self._mapped[start + self._path_starts[row] : start + self._path_starts[row + 1] - 1]

    def size(self, row: int) -> int:
        self._check(row)
        return self._sizes[row]

    def offset(self, row: int) -> int:
        self._check(row)
        return self._offsets[row]

    def extent(self, row: int) -> tuple[int, int]:
        """Return (offset, size) of a file in the address space."""
        self._check(row)
        return self._offsets[row], self._sizes[row]

    def mtime_ns(self, row: int) -> int:
        """Return the modification time, 0: unknown."""
        self._check(row)
        return self._mtimes[row]

    def token(self, row: int) -> bytes:
        """Return the under store's own version mark as it was given; empty: none."""
        self._check(row)
        start = self._tokens_offset
        return self._mapped[start + self._token_starts[row] : start + self._token_starts[row + 1]]

    def etag(self, row: int) -> str:
        """Return a quoted mark that changes when the file does, in any version: the store's own ETag if that is one."""
        token = self.token(row)
        if _ETAG.fullmatch(token):
            return token.decode()
        offset, size = self.extent(row)
        mtime_ns = self._mtimes[row]
        place = "" if token or mtime_ns else f"{self.dataset_id}/{self.generation}/{offset}"
        mark = hashlib.sha256(f"{size}/{mtime_ns}/{place}/".encode() + token)
        return f'"{mark.hexdigest()[:32]}"'

    def _check(self, row: int) -> None:
        if not 0 <= row < self.file_count:
            raise IndexError(f"row {row} of a dataset with {self.file_count} files")

    # By path

    def _make_find(self, shift: int) -> Callable[[str], int]:
        """Return the look-up by path as a closure: it is the hottest call, and attributes cost it a third."""
        bucket_starts = self._view(Section.BUCKET_STARTS, "I")
        bucket_rows = self._view(Section.BUCKET_ROWS, "I")
        starts, base, mapped, crc32 = self._path_starts, self._paths_offset, self._mapped, zlib.crc32
        find_sorted = partial(_find_sorted, mapped, base, starts)

        def find(path: str) -> int:
            """Return the row of `path`, or -1."""
            try:
                key = path.encode()
            except UnicodeEncodeError:
                return -1
            bucket = crc32(key) >> shift
            low, high = bucket_starts[bucket], bucket_starts[bucket + 1]
            if high - low > _BUCKET_SCAN_MAX:
                return find_sorted(key)
            for row in bucket_rows[low:high]:
                start = base + starts[row]
                stop = start + len(key)
                # The NUL after the path must follow, and none may be inside, or two rows would pass for one path.
                if mapped[start:stop] == key and not mapped[stop] and b"\0" not in key:
                    return row
            return -1

        return find

    def lower_bound(self, key: bytes) -> int:
        """Return the first row whose path bytes are >= `key`, file_count if there is none."""
        return bisect.bisect_left(range(self.file_count), key, key=self.path_bytes)

    def path_bytes_between(self, start: int, stop: int) -> list[bytes]:
        """Return the path bytes of rows [start, stop): for bulk work, a bounded number of rows at a time."""
        if start >= stop:
            return []
        low, high = self._path_starts[start], self._path_starts[stop]
        return split_paths(self._mapped[self._paths_offset + low : self._paths_offset + high])

    def directory_range(self, path: str) -> tuple[int, int]:
        """Return [start, stop): the rows under the directory `path`, "" is the root; start == stop: no such directory."""
        if not path:
            return 0, self.file_count
        try:
            key = path.encode()
        except UnicodeEncodeError:
            return 0, 0
        return self.lower_bound(key + b"/"), self.lower_bound(key + b"0")  # '0' follows '/'

    def prefix_ranges(self, prefix: str) -> list[tuple[int, int]]:
        """Return the rows that are the file `prefix` or lie under the directory `prefix`, as [start, stop) ranges.

        None, one or two: 'a-b' stands between the file 'a' and 'a/b'. "" is everything; a prefix that ends in '/' means
        only the directory.
        """
        if prefix.endswith("/"):
            ranges = [self.directory_range(prefix[:-1])] if len(prefix) > 1 else []
        else:
            row = self.find(prefix)
            ranges = [(row, row + 1)] if row >= 0 else []
            ranges.append(self.directory_range(prefix))
        return [(start, stop) for start, stop in ranges if start < stop]

    def is_directory(self, path: str) -> bool:
        """Say whether files lie under `path`; the root always is a directory."""
        start, stop = self.directory_range(path)
        return not path or start < stop

    def list_directory(self, path: str) -> list[DirectoryEntry]:
        """Return the children of a directory by name; a name that is file and directory is there twice, the file first.

        Costs a step a child, not a file beneath; [] where there is no such directory.
        """
        row, stop = self.directory_range(path)
        skip = len(path.encode()) + 1 if path and row < stop else 0
        out = []
        while row < stop:
            name, slash, _ = self.path_bytes(row)[skip:].partition(b"/")
            out.append(DirectoryEntry(name.decode(), bool(slash), -1 if slash else row))
            row = self._after_directory(row, skip + len(name), stop) if slash else row + 1
        return sorted(out)

    def _after_directory(self, row: int, name_stop: int, stop: int) -> int:
        key = self.path_bytes(row)[:name_stop] + b"0"
        step = 1  # most directories are small: gallop before the binary search
        while row + step < stop and self.path_bytes(row + step) < key:
            row += step
            step *= 2
        return bisect.bisect_left(
            range(self.file_count), key, row, min(row + step, stop), key=self.path_bytes
        )

    # By address

    def rows_between(self, start: int, stop: int) -> Int64s:
        """Return the rows whose bytes intersect [start, stop) of the address space, by offset; empty files never do."""
        if start >= stop:
            return np.empty(0, dtype=np.int64)
        count = len(self._by_offset)
        low = bisect.bisect_right(range(count), start, key=self._end_at)
        high = bisect.bisect_left(range(count), stop, lo=min(low, count), key=self._start_at)
        return np.array(self._by_offset[low:high], dtype=np.int64)

    def _start_at(self, place: int) -> int:
        return self._offsets[self._by_offset[place]]

    def _end_at(self, place: int) -> int:
        row = self._by_offset[place]
        return self._offsets[row] + self._sizes[row]

    def block_length(self, index: int) -> int:
        """Return the data bytes of a block, a multiple of 64, the same in every version of the generation.

        Blocks are whole but the last of each version that appended anything.
        """
        if not 0 <= index < self.block_count:
            raise IndexError(f"block {index} of a dataset with {self.block_count} blocks")
        start = index * self.block_bytes
        end = self.ends[bisect.bisect_right(self.ends, start)]
        return min(self.block_bytes, end - start)

    def blocks_of_rows(self, rows: Iterable[int] | Int64s) -> Int64s:
        """Return the blocks that hold bytes of `rows`, ascending, each once."""
        marks = np.zeros(self.block_count + 1, dtype=np.int64)
        for chunk in _chunks(
            np.asarray(rows if isinstance(rows, np.ndarray) else list(rows), dtype=np.int64)
        ):
            self._mark_blocks(self.offsets[chunk], self.sizes[chunk], marks)
        return np.flatnonzero(np.cumsum(marks[:-1]))

    def select(self, rules: Rules) -> Selected:
        """Return what `rules`, (included, prefix) each, select: the last rule that matches a file decides, none: not.

        `prefix` is as in `prefix_ranges`. `bytes` and `files` count the selected files, not the rest of their blocks.
        """
        marks = np.zeros(self.block_count + 1, dtype=np.int64)
        byte_count = file_count = 0
        for start, stop in self.select_ranges(rules):
            file_count += stop - start
            for low in range(start, stop, _CHUNK_ROWS):
                part = slice(low, min(low + _CHUNK_ROWS, stop))
                byte_count += int(self.sizes[part].sum())
                self._mark_blocks(self.offsets[part], self.sizes[part], marks)
        bitmap = np.packbits(np.cumsum(marks[:-1]) > 0, bitorder="little").tobytes()
        return Selected(bitmap, byte_count, file_count)

    def select_ranges(self, rules: Rules) -> list[tuple[int, int]]:
        """Return the rows that `rules` select as disjoint [start, stop) ranges, ascending."""
        painted = [
            (included, low, high) for included, prefix in rules for low, high in self.prefix_ranges(prefix)
        ]
        borders = sorted({border for _, low, high in painted for border in (low, high)})
        place = {border: index for index, border in enumerate(borders)}
        is_in = np.zeros(max(0, len(borders) - 1), dtype=bool)
        for included, low, high in painted:
            is_in[place[low] : place[high]] = included
        return [(borders[i], borders[i + 1]) for i in np.flatnonzero(is_in).tolist()]

    def _mark_blocks(self, offsets: Int64s, sizes: Int64s, marks: Int64s) -> None:
        has_bytes = sizes > 0
        offsets, sizes = offsets[has_bytes], sizes[has_bytes]
        size = len(marks)
        marks += np.bincount(offsets // self.block_bytes, minlength=size)
        marks -= np.bincount((offsets + sizes - 1) // self.block_bytes + 1, minlength=size)

    @cached_property
    def block_file_bytes(self) -> Int64s:
        """Bytes of files, no padding, in each block; computed at the first call, O(files)."""
        count, block_bytes = self.block_count, self.block_bytes
        inside = np.zeros(count + 1, dtype=np.int64)  # bytes of files that begin or end in the block
        whole = np.zeros(
            count + 1, dtype=np.int64
        )  # +1 where a run of wholly covered blocks begins, -1 after it
        for low in range(0, self.file_count, _CHUNK_ROWS):
            sizes = self.sizes[low : low + _CHUNK_ROWS]
            offsets, sizes = self.offsets[low : low + _CHUNK_ROWS][sizes > 0], sizes[sizes > 0]
            ends = offsets + sizes
            first, last = offsets // block_bytes, (ends - 1) // block_bytes
            head = np.minimum(ends, (first + 1) * block_bytes) - offsets
            # Weights are floats, but no block holds more than 2**31 bytes, so the sums are exact.
            inside += np.bincount(first, weights=head, minlength=count + 1).astype(np.int64)
            crosses = last > first
            first, last, ends = first[crosses], last[crosses], ends[crosses]
            inside += np.bincount(last, weights=ends - last * block_bytes, minlength=count + 1).astype(
                np.int64
            )
            whole += np.bincount(first + 1, minlength=count + 1)
            whole -= np.bincount(last, minlength=count + 1)
        out = inside[:-1] + np.cumsum(whole[:-1]) * block_bytes
        out.flags.writeable = False
        return out

    @cached_property
    def block_file_count(self) -> Int64s:
        """Files that begin in each block (an empty one beyond the last: in the last); computed at the first call."""
        count = self.block_count
        out = np.zeros(count, dtype=np.int64)
        for low in range(0, self.file_count if count else 0, _CHUNK_ROWS):
            begins = np.minimum(self.offsets[low : low + _CHUNK_ROWS] // self.block_bytes, count - 1)
            out += np.bincount(begins, minlength=count)
        out.flags.writeable = False
        return out

    def file_bytes_in_block(self, index: int) -> int:
        """Return the bytes of files in one block, padding and gaps not counted."""
        return int(self.block_file_bytes[index])


def _find_sorted(mapped: mmap.mmap, base: int, starts: memoryview, key: bytes) -> int:
    def path_at(row: int) -> bytes:
        return mapped[base + starts[row] : base + starts[row + 1] - 1]

    rows = range(len(starts) - 1)
    row = bisect.bisect_left(rows, key, key=path_at)
    return row if row < len(rows) and path_at(row) == key else -1


def _chunks(rows: Int64s) -> Iterable[Int64s]:
    return (rows[low : low + _CHUNK_ROWS] for low in range(0, len(rows), _CHUNK_ROWS))

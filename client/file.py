"""A file of a dataset, opened: `RawFile` (positional reads, no buffer) and `BufferedFile` (the usual one, over it).

The methods of `RawFile` are the hottest code of the client: each does the one look-up and the one copy itself (small reads
from a block's mapping, large ones by pread), and goes to the reader only when a range crosses a block, the block is not
held, or the end lies beyond the file.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stoker.client.reader import Reader

BUFFER_BYTES = 64 * 1024
SMALL_BYTES = 64 * 1024  # up to here a copy from a mapping, which holds the GIL; pread lets other threads run
_NONE: Mapping[int, Any] = {}

preadv = os.preadv


class RawFile(io.RawIOBase):
    """A read-only file without a buffer: for random reads, and for reads into large buffers of the program's own.

    `size` in bytes, `path` with the dataset's name, `fs` the file system it was opened with (or None).
    A file may be shared by threads only through `read_at`, which does not move the position.
    """

    __slots__ = (
        "_block_bytes",
        "_descriptors",
        "_is_open",
        "_maps",
        "_mask",
        "_offset",
        "_position",
        "_reader",
        "_row",
        "_shift",
        "fs",
        "mode",
        "name",
        "path",
        "size",
    )

    def __init__(self, reader: Reader, row: int, *, fs: Any = None) -> None:
        self._reader = reader
        self._row = row
        self._offset, self.size = reader.manifest.extent(row)
        self._descriptors: Mapping[int, int] = reader.descriptors
        self._maps: Mapping[int, Any] = reader.maps
        self._shift = reader.shift
        self._mask = reader.mask
        self._block_bytes = reader.block_bytes
        self._position = 0
        self._is_open = True
        self.path = self.name = reader.full_path(row)
        self.fs = fs
        self.mode = "rb"

    def read(self, size: int | None = -1, /) -> bytes:
        position = self._position
        if size is None or size < 0 or size > self.size - position:
            size = self.size - position
        if 0 < size <= SMALL_BYTES:
            address = self._offset + position
            begin = address & self._mask
            if begin + size <= self._block_bytes:
                try:
                    data: bytes = self._maps[address >> self._shift][begin : begin + size]
                except KeyError:
                    return self._read_slowly(position, size)
                self._position = position + size
                return data
        return self._read_slowly(position, size)

    def readinto(self, buffer: Any, /) -> int:
        position = self._position
        view = memoryview(buffer)
        size = view.nbytes
        address = self._offset + position
        descriptor = self._descriptors.get(address >> self._shift)
        if descriptor is not None and size <= self.size - position:
            begin = address & self._mask
            if begin + size <= self._block_bytes:
                try:
                    if preadv(descriptor, (view,), begin) == size:
                        self._position = position + size
                        return size
                except OSError:
                    self._reader.descriptor_failed(address, descriptor)
        return self._readinto_slowly(position, view.cast("B"))

    def read_at(self, offset: int, size: int) -> bytes:
        """Return bytes [offset, offset + size), cut at the file's end, without moving the position.

        :raises ValueError: a negative offset or size, or the file is closed.
        """
        if offset >= 0 <= size <= SMALL_BYTES and offset + size <= self.size:
            address = self._offset + offset
            begin = address & self._mask
            if begin + size <= self._block_bytes:
                try:
                    data: bytes = self._maps[address >> self._shift][begin : begin + size]
                except KeyError:
                    return self._read_at_slowly(offset, size)
                return data
        return self._read_at_slowly(offset, size)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        if whence == 0 and offset >= 0 and self._is_open:
            self._position = offset
            return offset
        return self._seek_slowly(offset, whence)

    def tell(self) -> int:
        self._check_open()
        return self._position

    def readall(self) -> bytes:
        return self.read(-1)

    def readable(self) -> bool:
        self._check_open()
        return True

    def seekable(self) -> bool:
        self._check_open()
        return True

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            self._descriptors = self._maps = _NONE
        super().close()

    def __reduce__(self) -> Any:
        """Pickle as "open it again here": a worker gets its own file at the same position."""
        self._check_open()
        return _reopen, (self._origin(), self._reader.pin, self.path, 0, self._position)

    def _origin(self) -> Any:
        """Return what opens it again: the file system, else the URL."""
        return self._reader.home.url if self.fs is None else self.fs

    def __repr__(self) -> str:
        return f"<{type(self).__name__} stoker://{self.path} of {self.size} bytes>"

    def _read_slowly(self, position: int, size: int) -> bytes:
        self._check_open()
        if size <= 0:
            return b""
        data = self._read_range(position, size)
        self._position = position + size
        return data

    def _readinto_slowly(self, position: int, view: memoryview) -> int:
        self._check_open()
        size = min(len(view), self.size - position)
        if size <= 0:
            return 0
        part = view[:size]
        if not self._pread_blocks(position, part):
            self._reader.readinto(self._row, position, part)
        self._position = position + size
        return size

    def _pread_blocks(self, position: int, view: memoryview) -> bool:
        """Fill `view` from the descriptors held, block by block; False: one is missing."""
        address, done, size = self._offset + position, 0, len(view)
        while done < size:
            descriptor = self._descriptors.get(address >> self._shift)
            if descriptor is None:
                return False
            begin = address & self._mask
            length = min(size - done, self._block_bytes - begin)
            try:
                if preadv(descriptor, (view[done : done + length],), begin) != length:
                    return False
            except OSError:
                self._reader.descriptor_failed(address, descriptor)
                return False
            done += length
            address += length
        return True

    def _read_at_slowly(self, offset: int, size: int) -> bytes:
        self._check_open()
        if offset < 0 or size < 0:
            raise ValueError(f"read_at({offset}, {size}): neither may be negative")
        size = min(size, self.size - offset)
        return self._read_range(offset, size) if size > 0 else b""

    def _read_range(self, start: int, size: int) -> bytes:
        data = self._reader.read(self._row, start, size)
        if size <= SMALL_BYTES:
            self._reader.count_small_read(self._offset + start)
        return data

    def _seek_slowly(self, offset: int, whence: int) -> int:
        self._check_open()
        if whence not in (0, 1, 2):
            raise ValueError(f"seek with whence {whence}; allowed are 0, 1 and 2")
        target = (0, self._position, self.size)[whence] + offset
        if target < 0:
            raise ValueError(f"seek to {target}: before the file's begin")
        self._position = target
        return target

    def _check_open(self) -> None:
        if not self._is_open:
            raise ValueError(f"I/O operation on closed file stoker://{self.path}")


class BufferedFile(io.BufferedReader):
    """A read-only file with a buffer, as `open` returns it."""

    raw: RawFile

    def __init__(self, raw: RawFile, buffer_size: int = BUFFER_BYTES) -> None:
        super().__init__(raw, buffer_size)
        self._buffer_size = buffer_size
        self.read_at = raw.read_at
        self.size = raw.size
        self.path = raw.path
        self.fs = raw.fs

    def __reduce__(self) -> Any:
        raw = self.raw
        raw._check_open()
        return _reopen, (raw._origin(), raw._reader.pin, raw.path, self._buffer_size, self.tell())


def open_row(
    reader: Reader, row: int, *, buffer_bytes: int | None = None, fs: Any = None
) -> RawFile | BufferedFile:
    """Return the opened file; `buffer_bytes` None: 64 KiB, 0: no buffer.

    :raises ValueError: negative.
    """
    raw = RawFile(reader, row, fs=fs)
    if buffer_bytes == 0:
        return raw
    if buffer_bytes is not None and buffer_bytes < 0:
        raise ValueError(f"block_size={buffer_bytes}: 0 is no buffer, a positive number its bytes")
    return BufferedFile(raw, buffer_bytes or BUFFER_BYTES)


def _reopen(origin: Any, pin: Any, path: str, buffer_bytes: int, position: int) -> RawFile | BufferedFile:
    from stoker.client.reader import Pin
    from stoker.client.session import session_for

    is_url = isinstance(origin, str)
    reader = session_for(origin).pinned(Pin(*pin)) if is_url else origin.reader_of(Pin(*pin))
    row = reader.row(path.partition("/")[2])
    file = open_row(reader, row, buffer_bytes=buffer_bytes, fs=None if is_url else origin)
    file.seek(position)
    return file

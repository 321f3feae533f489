"""Reads one dataset version: from rows and ranges of files to blocks, and back to bytes.

The hot path is here and in `file.py`: a range inside one block whose descriptor is held costs one look-up in `descriptors`
(a dict that is never replaced) and one pread, or for a small read one in `maps` and a copy. Everything else is cut into pieces for the fetcher.
"""

from __future__ import annotations

import errno
import io
import mmap
import os
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from stoker.client.errors import FileChanged, NoExecutor, missing
from stoker.client.fetcher import Fetcher
from stoker.client.piece import Piece
from stoker.executor.manifest import Manifest

VALUE_BYTES_MAX = 2**40  # a guard against a length that is no length

pread, preadv = os.pread, os.preadv


class Pin(NamedTuple):
    """Names one version of one dataset for ever; what pickles carry."""

    name: str
    dataset_id: int
    generation: int
    version: int
    digest: str


class Direct(Protocol):
    """The under store itself, for a program that asked for it."""

    def read(self, manifest: Manifest, row: int, start: int, stop: int) -> bytes:
        """:raises OSError: it cannot, or the file is not this version's."""
        ...


class Home(Protocol):
    """The session, as a reader knows it."""

    url: str

    def doubt(self, name: str) -> None:
        """This version of the dataset no longer matches its under store: the next open asks for the newest."""
        ...


class Range(NamedTuple):
    """Bytes [start, start + length) of the file in `row`, into `view` or as new bytes."""

    row: int
    start: int
    length: int
    view: memoryview | None = None


class Reader:
    """One dataset version, for any thread. Rows are the manifest's; ranges must lie inside their file."""

    def __init__(
        self, home: Home, pin: Pin, manifest: Manifest, fetcher: Fetcher, direct: Direct | None = None
    ) -> None:
        self.home = home
        self.pin = pin
        self.manifest = manifest
        self.fetcher = fetcher
        self.direct = direct
        self.is_doubted = False  # a file of it changed in the under store
        self.parent: Reader | None = None  # the reader this one shares its fetcher with, kept alive
        self.descriptors = fetcher.table.young
        self.maps = fetcher.table.maps
        self.block_bytes = manifest.block_bytes
        self.shift = manifest.block_bytes.bit_length() - 1
        self.mask = manifest.block_bytes - 1
        assert 1 << self.shift == self.block_bytes

    def with_direct(self, direct: Direct) -> Reader:
        """Return a reader of the same version that may fall back to the under store."""
        other = Reader(self.home, self.pin, self.manifest, self.fetcher, direct)
        other.parent = self
        return other

    def row(self, path: str) -> int:
        """:raises FileNotFoundError, IsADirectoryError: no file has this path."""
        row = self.manifest.find(path)
        if row < 0:
            full = f"{self.pin.name}/{path}"
            if self.manifest.is_directory(path):
                raise IsADirectoryError(errno.EISDIR, "is a directory of the dataset, not a file", full)
            raise missing(full)
        return row

    def full_path(self, row: int) -> str:
        return f"{self.pin.name}/{self.manifest.path(row)}"

    def read(self, row: int, start: int, length: int) -> bytes:
        """Return exactly these bytes.

        :raises OSError: they cannot be had; see errors.py.
        """
        address = self.manifest.offset(row) + start
        descriptor = self.descriptors.get(address >> self.shift)
        if descriptor is not None:
            begin = address & self.mask
            if begin + length <= self.block_bytes:
                try:
                    data = pread(descriptor, length, begin)
                    if len(data) == length:
                        return data
                except OSError:
                    self.descriptor_failed(address, descriptor)
        return self.read_slowly(row, start, length)

    def descriptor_failed(self, address: int, descriptor: int) -> None:
        """Reading from the descriptor of this address' block failed: it is used no more, the executors are asked."""
        self.fetcher.table.failed(address >> self.shift, descriptor)

    def count_small_read(self, address: int) -> None:
        """A small read of this address went by pread, or over a socket."""
        index = address >> self.shift
        if index in self.descriptors:
            self.fetcher.table.count_small_read(index, self.manifest.block_length(index))

    def read_slowly(self, row: int, start: int, length: int) -> bytes:
        (result,) = self.fetch([Range(row, start, length)])
        if isinstance(result, OSError):
            raise result
        assert isinstance(result, bytes)
        return result

    def readinto(self, row: int, start: int, view: memoryview) -> None:
        """Fill all of `view` (bytes, writable) from `start` on."""
        (result,) = self.fetch([Range(row, start, len(view), view)])
        if isinstance(result, OSError):
            raise result

    def read_files(self, rows: Sequence[int], out: memoryview | None = None) -> list[Any]:
        """Return each whole file as bytes, or as its part of `out`, or the OSError that kept it.

        With `out`, files are laid end to end; it must hold them all (`total_bytes`).
        """
        manifest = self.manifest
        results: list[Any] = [None] * len(rows)
        late: list[Range] = []
        late_at: list[int] = []
        get, shift, mask, block_bytes = self.descriptors.get, self.shift, self.mask, self.block_bytes
        offsets, sizes = manifest.offsets[rows].tolist(), manifest.sizes[rows].tolist()
        place = 0
        for at, (offset, size) in enumerate(zip(offsets, sizes, strict=True)):
            descriptor = get(offset >> shift)
            begin = offset & mask
            if out is None:
                if descriptor is not None and begin + size <= block_bytes:
                    try:
                        data = pread(descriptor, size, begin)
                        if len(data) == size:
                            results[at] = data
                            continue
                    except OSError:
                        self.descriptor_failed(offset, descriptor)
                view = None
            else:
                view = results[at] = out[place : place + size]
                place += size
                if descriptor is not None and begin + size <= block_bytes:
                    try:
                        if preadv(descriptor, [view], begin) == size:
                            continue
                    except OSError:
                        self.descriptor_failed(offset, descriptor)
            late.append(Range(rows[at], 0, size, view))
            late_at.append(at)
        descriptor = None
        if late:
            for at, result in zip(late_at, self.fetch(late), strict=True):
                if out is None or isinstance(result, OSError):
                    results[at] = result
        return results

    def total_bytes(self, rows: Sequence[int]) -> int:
        return int(self.manifest.sizes[rows].sum()) if len(rows) else 0

    def fetch(self, ranges: Sequence[Range]) -> list[bytes | memoryview | OSError]:
        """Return for each range its bytes (its view, where it has one) or the error: all in one batch."""
        plans = [self._plan(wanted) for wanted in ranges]
        pieces = [piece for plan in plans for piece in plan.pieces]
        self.fetcher.fetch(pieces, self.full_path, give_up_at_once=self.direct is not None)
        return [self._finish(wanted, plan) for wanted, plan in zip(ranges, plans, strict=True)]

    def _plan(self, wanted: Range) -> _Plan:
        row, start, length, view = wanted
        assert 0 <= length <= VALUE_BYTES_MAX and 0 <= start, wanted
        address = self.manifest.offset(row) + start
        index, begin = address >> self.shift, address & self.mask
        if begin + length <= self.block_bytes:
            return _Plan([Piece(index, begin, length, view, row)], None)
        value = None
        if view is None:
            value = io.BytesIO()  # its buffer becomes the bytes object that is returned: no copy
            value.seek(length - 1)
            value.write(b"\0")
            view = memoryview(value.getbuffer())
        pieces, done = [], 0
        while done < length:
            size = min(length - done, self.block_bytes - begin)
            pieces.append(Piece(index, begin, size, view[done : done + size], row))
            done += size
            index, begin = index + 1, 0
        return _Plan(pieces, value)

    def _finish(self, wanted: Range, plan: _Plan) -> bytes | memoryview | OSError:
        error = next((piece.error for piece in plan.pieces if piece.error is not None), None)
        data = plan.pieces[0].data
        for piece in plan.pieces:
            piece.view = None
        if isinstance(error, NoExecutor) and self.direct is not None:
            try:
                return self._read_direct(self.direct, wanted)
            except OSError as direct_error:
                error = direct_error
        if error is not None:
            if isinstance(error, FileChanged):
                self.is_doubted = True
                self.home.doubt(self.pin.name)
            return error
        if wanted.view is not None:
            return wanted.view
        if plan.value is not None:
            return plan.value.getvalue()
        assert data is not None and len(data) == wanted.length
        return data

    def _read_direct(self, direct: Direct, wanted: Range) -> bytes | memoryview:
        data = direct.read(self.manifest, wanted.row, wanted.start, wanted.start + wanted.length)
        assert len(data) == wanted.length
        if wanted.view is None:
            return data
        wanted.view[:] = data
        return wanted.view

    def view(self, row: int) -> memoryview:
        """Return the file's bytes, read-only: the executor's own memory where that is possible (this host, a full block of
        the MEM tier, the file inside it), else a copy, of the SSD tier always: a disk's error while a page is looked at would
        end the program. The memory stays as long as the view or what was made of it.
        """
        offset, size = self.manifest.extent(row)
        index, begin = offset >> self.shift, offset & self.mask
        if not size:
            return memoryview(b"")
        mapped: mmap.mmap | None = None
        if begin + size <= self.block_bytes:
            self.fetcher.ask_descriptor(index)
            mapped = self.fetcher.table.map(index, self.manifest.block_length(index))
        if mapped is None or begin + size > len(mapped):
            return memoryview(self.read_slowly(row, 0, size))
        return memoryview(mapped)[begin : begin + size]


class _Plan(NamedTuple):
    pieces: list[Piece]
    value: io.BytesIO | None

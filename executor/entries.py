"""The data server's view of one block's file: in memory, read at once; of the SSD tier, without ever waiting on the loop.

Theory of operation. What a disk gives may take long, or for ever. So the loop only asks for what is in the page cache
(RWF_NOWAIT: the kernel says so instead of waiting), which costs as much as a read; all else is done by a few threads
(stoker.executor.disk_calls): opening a file, bytes that come from the device, checksums. While a call hangs the loop does not
touch the disk at all: even to ask may wait once the device's queue is full. sendfile has no such flag: a file of the SSD tier
is sent by way of one buffer, a piece at a time, and a piece is never held while its reader is waited for.
"""

from __future__ import annotations

import errno
import logging
import os
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from stoker.executor import index
from stoker.executor.block import BlockLayout, BlockName, block_layout
from stoker.executor.disk import check_block_file
from stoker.executor.disk_calls import Calls
from stoker.executor.stream import Stream

if TYPE_CHECKING:
    from stoker.executor.loans import Borrower, DatasetShelf

log = logging.getLogger(__name__)

FILE_ERRORS = frozenset(
    (errno.EIO, errno.ENXIO, errno.ENODATA, errno.EUCLEAN, errno.EBADMSG, errno.ESTALE)
)  # of a file, never of a socket
_FILE_GONE = frozenset((errno.ENOENT, errno.ELOOP))  # it is not there, or is no file of ours
_NO_DESCRIPTORS = frozenset((errno.EMFILE, errno.ENFILE))
# Up to here one pread and one send are cheaper than a header and a sendfile (measured).
COPY_BYTES_MAX = 16 * 1024
PIECE_BYTES = 256 * 1024  # of a file of the SSD tier, read and sent at once
FILES_OPEN_MAX = 1_024  # descriptors of the SSD tier's files, beside those that answers are being sent from
FILES_OPEN_SHARE = 8  # but no more than one part in so many of what the process may have
DISK_READS_MAX = 16  # at once, of what is not in the page cache; each may hold a piece
DISK_PATIENCE_MS = 4_000  # of a reader with the disk: then another executor serves it better


def files_open_max(descriptors: int) -> int:
    """Return how many files of the SSD tier are open at once, for a process that may have so many descriptors.

    >>> files_open_max(1024), files_open_max(1 << 20)
    (128, 1024)
    """
    return min(FILES_OPEN_MAX, descriptors // FILES_OPEN_SHARE)


def is_memory(directory: str) -> bool:
    """Return whether the directory's file system is in memory (tmpfs): it knows no RWF_NOWAIT, and never waits for a device."""
    try:
        number = os.stat(directory).st_dev
        with open("/proc/self/mountinfo") as lines:
            fields = [line.split() for line in lines]
    except OSError:
        return False
    device = f"{os.major(number)}:{os.minor(number)}"
    return any(words[2] == device and words[words.index("-") + 1] == "tmpfs" for words in fields)


def read_exactly(fd: int, length: int, start: int) -> bytes:
    """Return so many bytes of a block's file. :raises OSError: they cannot be read, or the file is too short."""
    data = os.pread(fd, length, start)
    if len(data) != length:
        raise OSError(errno.EIO, f"{len(data)} bytes of {length} are there")
    return data


class Entry:
    """One holding. `full_from`: the lowest dataset version all of whose bytes are known to be here; 0: none."""

    __slots__ = (
        "block_index",
        "data_bytes",
        "dataset",
        "fd",
        "full_from",
        "holding",
        "layout",
        "leaving",
        "loans",
        "pins",
        "sealed",
        "uses",
    )

    def __init__(
        self, dataset: DatasetShelf | None, holding: int, block_index: int, fd: int, data_bytes: int
    ) -> None:
        self.dataset = dataset
        self.holding = holding
        self.block_index = block_index
        self.fd = fd
        self.data_bytes = data_bytes
        self.layout = block_layout(data_bytes)
        self.full_from = 0
        self.sealed = False
        self.pins = 0
        self.uses = 0
        self.leaving = False
        self.loans: set[Borrower] = set()

    def has(self, version: int, start: int, stop: int) -> bool:
        """Return whether [start, stop) is valid for readers of `version`, as far as can be seen from here.

        A file of the SSD tier is opened for that; after this nothing waits until the caller does.
        """
        if stop > self.data_bytes:
            return False
        if self.full_from and version >= self.full_from:
            return True
        return self._is_marked(start, stop)

    def _is_marked(self, start: int, stop: int) -> bool:
        return index.is_valid(self.fd, self.layout, start, stop)

    def open(self) -> bool:
        """Return whether `fd` is open now: until something waits, or for as long as the entry is pinned."""
        return True

    # The others are for a pinned entry; those of the SSD tier may wait.

    def first(self, start: int, length: int) -> bytes | memoryview:
        """Return the first bytes of a range that is to be sent; `send_rest` sends those that follow them.

        They are good until something waits.

        :raises OSError: they cannot be read.
        """
        return read_exactly(self.fd, length, start) if length <= COPY_BYTES_MAX else b""

    def send_rest(self, stream: Stream, start: int, length: int) -> None:
        """:raises OSError: the file does not give them, or the caller is gone: the connection is of no more use."""
        stream.send_file(self.fd, start, length)

    def examine(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Return `work(descriptor, layout, *arguments)`. :raises OSError: `work` did, or the file cannot be opened."""
        return work(self.fd, self.layout, *arguments)


class DiskEntry(Entry):
    """A holding of the SSD tier: its file is opened when it is read, and closed when others are read instead."""

    __slots__ = ("file", "files", "is_restored")

    def __init__(
        self,
        dataset: DatasetShelf,
        holding: int,
        name: BlockName,
        file: str,
        data_bytes: int,
        files: DiskFiles,
        *,
        is_restored: bool,
    ) -> None:
        super().__init__(dataset, holding, name.block_index, -1, data_bytes)
        self.file = file
        self.files = files
        self.is_restored = is_restored  # and was full: what its index says beyond that was not synced

    def has(self, version: int, start: int, stop: int) -> bool:
        return (self.fd >= 0 or self.open()) and super().has(version, start, stop)

    def _is_marked(self, start: int, stop: int) -> bool:
        # Else the keeper is asked, who knows.
        return not self.is_restored and self.files.is_marked(self, start, stop)

    def open(self) -> bool:
        try:
            self.files.open(self)
        except OSError as error:
            self.files.note_error(self, error)
            return False
        return True

    def first(self, start: int, length: int) -> bytes | memoryview:
        return self.files.read(self, start, min(length, PIECE_BYTES))

    def send_rest(self, stream: Stream, start: int, length: int) -> None:
        stream.send_pieces(
            lambda place, count: self.files.read(self, place, count), start, length, PIECE_BYTES
        )

    def examine(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return self.files.examine(self, work, *arguments)


class DiskFiles:
    """The open files of the SSD tier. `on_broken(holding, text)`: a file is not the block's, or cannot be read."""

    def __init__(
        self,
        directory: str,
        cluster: bytes,
        on_broken: Callable[[int, str], None],
        calls: Calls,
        *,
        open_max: int = FILES_OPEN_MAX,
        patience_ms: int = DISK_PATIENCE_MS,
    ) -> None:
        self._on_broken = on_broken
        self._directory = directory
        self._cluster = cluster
        self._calls = calls
        self._open_max = open_max
        self._patience_ms = patience_ms
        self._open: OrderedDict[int, DiskEntry] = OrderedDict()  # by holding; the longest unread first
        self._is_short = False  # the last file was not opened, for want of something that is no fault of it
        self._piece = memoryview(bytearray(PIECE_BYTES))
        self._no_wait = 0 if is_memory(directory) else os.RWF_NOWAIT

    def open(self, entry: DiskEntry) -> None:
        """See Entry. A file that is not the block's is not read from. :raises OSError: it cannot be opened."""
        self.examine(entry, _nothing)

    def is_marked(self, entry: DiskEntry, start: int, stop: int) -> bool:
        """Return whether the file's index says, without waiting, that the range is valid."""
        if entry.fd < 0 or self._calls.is_stuck:
            return False
        self._open.move_to_end(entry.holding)
        try:
            return index.is_valid(entry.fd, entry.layout, start, stop, flags=self._no_wait)
        except OSError as error:
            self.note_error(entry, error)
            return False

    def read(self, entry: DiskEntry, start: int, count: int) -> bytes | memoryview:
        """Return at most PIECE_BYTES of a pinned entry's file: good until something waits.

        :raises OSError: they cannot be read, the file is too short, or the disk is stuck.
        """
        if entry.fd >= 0 and not self._calls.is_stuck:
            self._open.move_to_end(entry.holding)
            view = self._piece[:count]
            try:
                if os.preadv(entry.fd, (view,), start, self._no_wait) == count:
                    return view
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EOPNOTSUPP):
                    raise
        data: bytes = self.examine(entry, _read, start, count)
        return data

    def examine(self, entry: DiskEntry, work: Callable[..., Any], *arguments: Any) -> Any:
        """See Entry."""
        try:
            try:
                fd, result, error = self._call(entry, work, arguments)
            except OSError as refusal:
                if refusal.errno not in _NO_DESCRIPTORS or not self._close_one():
                    raise
                fd, result, error = self._call(entry, work, arguments)
        except OSError as refusal:
            self._not_opened(entry, refusal)
            raise
        self._keep_open(entry, fd)
        if error is not None:
            raise error
        return result

    def _call(
        self, entry: DiskEntry, work: Callable[..., Any], arguments: tuple[Any, ...]
    ) -> tuple[int, Any, OSError | None]:
        dataset = entry.dataset
        assert dataset is not None
        name = BlockName(dataset.dataset_id, dataset.generation, entry.block_index)
        path = os.path.join(self._directory, entry.file)
        own = -1 if entry.fd < 0 else os.dup(entry.fd)
        found: tuple[int, Any, OSError | None] = self._calls.run(
            _examine,
            (path, self._cluster, name, entry.layout),
            own,
            work,
            arguments,
            patience_ms=self._patience_ms,
            own=own,
            undo=lambda late: _close(late[0]),
        )
        return found

    def _keep_open(self, entry: DiskEntry, fd: int) -> None:
        if fd < 0:
            return
        if entry.fd >= 0:
            os.close(fd)  # another reader opened it meanwhile
            return
        if entry.leaving and not entry.pins and not entry.loans:
            os.close(fd)
            raise OSError(errno.ENOENT, "the block left the cache")
        self._is_short = False
        entry.fd = fd
        self._open[entry.holding] = entry
        while len(self._open) > self._open_max and self._close_one(entry):
            continue

    def _not_opened(self, entry: DiskEntry, error: OSError) -> None:
        if error.errno in _FILE_GONE:
            log.error("file %s: %s", entry.file, error)
            self._on_broken(entry.holding, str(error))
        elif error.errno not in FILE_ERRORS and not self._is_short:
            self._is_short = True  # told once, until one is opened again
            log.warning("blocks of the SSD tier cannot be opened now: %s", error)

    def note_error(self, entry: DiskEntry, error: OSError) -> None:
        """Tell of a file that could not be read, if that is what the error says."""
        if error.errno in FILE_ERRORS:
            log.error("file %s: %s", entry.file, error)
            self._on_broken(entry.holding, str(error))

    def _close_one(self, but: DiskEntry | None = None) -> bool:
        """Close the longest unread file that nothing is sent from; False: there is none."""
        entry = next((entry for entry in self._open.values() if not entry.pins and entry is not but), None)
        if entry is None:
            return False
        self.close(entry)
        return True

    def close(self, entry: DiskEntry) -> None:
        if entry.fd >= 0:
            os.close(entry.fd)
            entry.fd = -1
            del self._open[entry.holding]


def _examine(
    source: tuple[str, bytes, BlockName, BlockLayout],
    own: int,
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> tuple[int, Any, OSError | None]:
    """Return what `work` does with a file, or why not; and the file's descriptor, if it was opened for that. In a thread.

    `own` (-1: none) is an open descriptor of it, which is closed.
    """
    path, cluster, name, layout = source
    fd = own
    try:
        if fd < 0:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                check_block_file(fd, cluster, name, layout)
            except ValueError as error:
                raise OSError(errno.EIO, str(error)) from None
    except BaseException:
        _close(fd)
        raise
    opened = fd if own < 0 else -1
    try:
        return opened, work(fd, layout, *arguments), None
    except OSError as error:
        return opened, None, error
    finally:
        _close(own)


def _read(fd: int, layout: BlockLayout, start: int, count: int) -> bytes:
    return read_exactly(fd, count, start)


def _nothing(fd: int, layout: BlockLayout) -> None:
    return None


def _close(fd: int) -> None:
    if fd >= 0:
        os.close(fd)

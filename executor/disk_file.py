"""The SSD tier's files in the keeper: made, opened and written to off the event loop, in order for each of them.

Theory of operation. The keeper's decisions never wait for a disk. What is to be done to a file (to make it, to open it, to note
in its index what is valid) stands in the file's line; one greenlet a file works on that, and each call is made in one of a few
threads (stoker.executor.disk_calls). A file is *ready* once nothing stands in its line and its descriptor is at hand; who needs
it so is called then. What is noted is known to the keeper before it stands in the file: nobody waits for that but the commit.

A call uses a descriptor of its own: the file may be forgotten, and its descriptor closed, while it hangs. Where only descriptors
or memory are short a call is tried again at the next tick. Any other error breaks the file for good.
"""

from __future__ import annotations

import errno
import os
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from stoker.executor import index
from stoker.executor.block import MAGIC, BlockLayout, block_layout, encode_header
from stoker.executor.core.disk_index import BlockFileName, Record
from stoker.executor.core.extents import Range
from stoker.executor.disk import Disk, block_path, check_block_file, is_short_of_means
from stoker.executor.disk_calls import Calls

if TYPE_CHECKING:
    from stoker.executor.disk_tier import DiskTier

OPEN_MAX = 256  # descriptors of block files in the keeper, beside those of calls under way

Spawn = Callable[..., Any]  # gevent.spawn, but a greenlet that fails ends the executor
Step = Callable[[Disk, int], Any]  # what is done to a file, by a descriptor of it; in a thread


class DiskFile:
    """One block's file in the directory. See BlockFile."""

    __slots__ = (
        "_broken",
        "_done",
        "_is_sealing",
        "_on_broken",
        "_on_made",
        "_tier",
        "_waiting",
        "data_bytes",
        "file",
        "is_at_work",
        "is_forgotten",
        "is_made",
        "line",
        "record",
    )

    def __init__(
        self,
        tier: DiskTier,
        file: BlockFileName,
        data_bytes: int,
        record: Record | None,
        *,
        is_made: bool = True,
    ) -> None:
        self.file = file
        self.data_bytes = data_bytes
        self.record = record  # durable
        self.is_forgotten = False
        self.is_made = is_made
        self.is_at_work = False
        self.line: deque[Step] = deque()
        self._tier = tier
        self._waiting: list[Callable[[], None]] = []
        self._on_made: Callable[[], None] | None = None
        self._on_broken: Callable[[str], None] | None = None
        self._is_sealing: Record | None = None
        self._done: Callable[[str], None] | None = None
        self._broken = ""  # why it can never be durable

    @property
    def name(self) -> str:
        return str(self.file)

    @property
    def layout(self) -> BlockLayout:
        return block_layout(self.data_bytes)

    def watch(self, on_made: Callable[[], None], on_broken: Callable[[str], None]) -> None:
        self._on_broken = on_broken
        if self.is_made:
            on_made()
        else:
            self._on_made = on_made

    def is_ready(self, then: Callable[[], None]) -> bool:
        if self.is_settled and self._tier.files.is_open(self) and not self._tier.is_stuck:
            return True
        if not self._broken and not self.is_forgotten:
            self._waiting.append(then)
            self._tier.await_ready(self)
        return False

    def open(self) -> int:
        return self._tier.files.descriptor(self)

    def mark_valid(self, ranges: Sequence[Range]) -> None:
        self._add(lambda _, fd: index.mark_valid(fd, self.layout, ranges))
        self._tier.note_written(self)

    def mark_known(self, pages: Sequence[Range], *, known: bool = True) -> None:
        self._add(lambda _, fd: index.mark_known(fd, self.layout, pages, known=known))

    def examine(self, work: Callable[[int, BlockLayout], Any]) -> Any:
        """Return what `work` finds in the file, which is synced before; waits for as long as that takes.

        :raises OSError: it cannot be opened or read, or what was written to it may be lost.
        """
        return self._tier.files.call(self, lambda disk, fd: _examine(disk, fd, self.layout, work))

    def seal(self, version: int, cached_bytes: int, done: Callable[[str], None]) -> bool:
        assert not self.is_forgotten
        if self.record is not None:
            return True
        if self._broken:
            raise OSError(errno.EIO, self._broken)
        if self._is_sealing is None:
            self._is_sealing = Record(self.file, self.data_bytes, version, cached_bytes)
            self._done = done
            self._tier.commit(self)
        return False

    def unseal(self) -> None:
        # What was recorded of it stays true: the bytes that are written now are others.
        self._is_sealing = self._done = self.record = None
        self._tier.recall(self)

    def forget(self, *, is_damaged: bool = False) -> None:
        if not self.is_forgotten:
            self.is_forgotten = True
            self._is_sealing = self._done = None
            self.line.clear()
            self._tier.withdraw(self, is_damaged=is_damaged)

    def discard(self, on_gone: Callable[[], None]) -> None:
        self.forget()
        self._tier.remove(self, on_gone)

    def _add(self, step: Step) -> None:
        if not self.is_forgotten and not self._broken:
            self.line.append(step)
            self._tier.files.begin(self)

    # --- for the tier

    @property
    def is_settled(self) -> bool:
        """Whether nothing is to be done to it, nor being done."""
        return self.is_made and not self.line and not self.is_at_work

    @property
    def is_broken(self) -> bool:
        return bool(self._broken)

    @property
    def sealing(self) -> Record | None:
        return self._is_sealing

    def made(self) -> None:
        self.is_made = True
        self._tier.note_made()
        on_made, self._on_made = self._on_made, None
        if on_made is not None and not self.is_forgotten:
            on_made()

    def take_waiting(self) -> list[Callable[[], None]]:
        waiting, self._waiting = self._waiting, []
        return waiting

    def committed(self, record: Record) -> bool:
        """The record is durable; return whether it is still what the file is sealed as."""
        if self.is_forgotten or self._is_sealing is not record:
            return False
        self.record, self._is_sealing = record, None
        return True

    def tell(self, reason: str) -> None:
        """Tell who waits for the seal, if anybody does; with a reason (it is of no more use) whoever watches the file."""
        done, self._done = self._done, None
        if reason:
            self._is_sealing = None
            self._broken = reason
            self.line.clear()
            done = done or self._on_broken
        if done is not None:
            done(reason)


class Files:
    """The open files of the tier's directory, and what is done to them. `on_settled(file)`: nothing stands in its line."""

    def __init__(
        self,
        directory: str,
        cluster: bytes,
        *,
        disk: Disk,
        calls: Calls,
        spawn: Spawn,
        on_settled: Callable[[DiskFile], None],
        on_failed: Callable[[DiskFile, str], None],
    ) -> None:
        self.calls = calls
        self._directory = directory
        self._cluster = cluster
        self._disk = disk
        self._spawn = spawn
        self._on_settled = on_settled
        self._on_failed = on_failed
        self._open: OrderedDict[DiskFile, int] = OrderedDict()
        self._short: dict[DiskFile, None] = {}  # waits for descriptors or memory

    def is_open(self, file: DiskFile) -> bool:
        return file in self._open

    def descriptor(self, file: DiskFile) -> int:
        """Return the descriptor of a file that is ready; it stays ours."""
        self._open.move_to_end(file)
        return self._open[file]

    def begin(self, file: DiskFile) -> None:
        """See that what stands in the file's line is done, or at least that it is opened."""
        if not file.is_at_work and file not in self._short:
            file.is_at_work = True
            self._spawn(self._work, file)

    def retry(self) -> None:
        """Try again what was short of something."""
        short, self._short = self._short, {}
        for file in short:
            self.begin(file)  # a forgotten one only for what its line says

    def _work(self, file: DiskFile) -> None:
        broken = ""
        while not file.is_forgotten or (file.line and file.is_made):
            step = file.line.popleft() if file.line and file.is_made else _nothing
            try:
                self.call(file, step)
            except OSError as error:
                if is_short_of_means(error):
                    if step is not _nothing:
                        file.line.appendleft(step)
                    self._short[file] = None
                else:
                    broken = str(error)
                break
            if not file.line:
                break
        file.is_at_work = False
        if broken:
            self._on_failed(file, broken)
        self._on_settled(file)

    def call(self, file: DiskFile, step: Step) -> Any:
        """Return what `step` does. :raises OSError: it failed, or the file cannot be made or opened."""
        layout = file.layout
        header = b"" if file.is_made else encode_header(self._cluster, file.file.name, file.data_bytes)
        own = self.own(file)
        fd, value = self.calls.run(
            _do,
            self._disk,
            self._directory,
            self._cluster,
            file.file,
            layout,
            header,
            own,
            step,
            own=own,
            undo=lambda late: close(late[0]),
        )
        self._keep_open(file, fd)
        if not file.is_made:
            file.made()
        return value

    def own(self, file: DiskFile) -> int:
        """Return a descriptor for a thread, which is to close it; -1: it is to open the file itself."""
        fd = self._open.get(file)
        try:
            return -1 if fd is None else os.dup(fd)
        except OSError:
            return -1

    def _keep_open(self, file: DiskFile, fd: int) -> None:
        if fd < 0:
            return
        if file.is_forgotten or file in self._open:
            os.close(fd)
            return
        self._open[file] = fd
        while len(self._open) > OPEN_MAX:
            os.close(self._open.popitem(last=False)[1])

    def close(self, file: DiskFile) -> None:
        close(self._open.pop(file, -1))

    def close_all(self) -> None:
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()


def spoil(file: DiskFile) -> Step:
    """Return what makes the file one that nobody takes for its block's."""
    return lambda disk, fd: disk.write(fd, bytes(len(MAGIC)), file.layout.trailer_offset)


def open_checked(disk: Disk, directory: str, cluster: bytes, file: BlockFileName, layout: BlockLayout) -> int:
    """Return a descriptor of a block's file. :raises OSError: it cannot be opened, or is another block's."""
    fd = disk.open(block_path(directory, file))
    try:
        check_block_file(fd, cluster, file.name, layout)
    except ValueError as error:
        os.close(fd)
        raise OSError(errno.EIO, f"{file}: {error}") from None
    except BaseException:
        os.close(fd)
        raise
    return fd


def close(fd: int) -> None:
    if fd >= 0:
        os.close(fd)


def _do(
    disk: Disk,
    directory: str,
    cluster: bytes,
    file: BlockFileName,
    layout: BlockLayout,
    header: bytes,
    own: int,
    step: Step,
) -> tuple[int, Any]:
    """Return the file's descriptor if it was opened for this (else -1), and what `step` returns. In a thread.

    `own` (-1: none) is closed; with a `header` the file is made.
    """
    if own >= 0:
        fd = own
    elif header:
        fd = _make(disk, block_path(directory, file), layout, header)
    else:
        fd = open_checked(disk, directory, cluster, file, layout)
    try:
        value = step(disk, fd)
    except BaseException:
        os.close(fd)
        raise
    if own < 0:
        return fd, value
    os.close(own)
    return -1, value


def _make(disk: Disk, path: str, layout: BlockLayout, header: bytes) -> int:
    fd = disk.create(path, layout.file_bytes)
    try:
        disk.write(fd, header, layout.trailer_offset)
    except BaseException as error:
        os.close(fd)
        if isinstance(error, OSError):
            _unlink(disk, path)
        raise
    return fd


def _unlink(disk: Disk, path: str) -> None:
    try:
        disk.unlink(path)
    except OSError:
        return  # whoever reads the directory next finds that no record names it


def _examine(disk: Disk, fd: int, layout: BlockLayout, work: Callable[[int, BlockLayout], Any]) -> Any:
    disk.sync(fd)
    return work(fd, layout)


def _nothing(disk: Disk, fd: int) -> None:
    return None

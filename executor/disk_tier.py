"""The SSD tier: block files in a directory, found again after a restart.

Theory of operation. A block's file is made with all its room. It is filled as a memfd is, and once it is full and has all its
checksums it is *committed*: its bytes are synced, its name is, and then the record that says so (disk_index). Only after that
does anybody hear that the block is here, so whatever happens at whatever time, what was announced is whole. Commits, and
the removal of files, are done by one greenlet in steps, each in a thread of its own off the hub and with one sync of the index
for all blocks of the step.

    filling  -- seal -->  sealing  -- step -->  durable (recorded)
       any of them  -- forget -->  forgotten (never found again)  -- discard, step -->  unlinked, its room is free

A file that is forgotten stays as it is, and where it is, until nobody uses it: readers may have its descriptor.

An error of one file costs its block; an error of the index is tried again with a new index. Both are counted and told, and no
file is made for DISK_PAUSE_MS after one. Descriptors: OPEN_MAX at most, of files that are being filled for the most part.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import gevent
from gevent.event import Event

from stoker.executor.block import BlockName, block_layout, encode_header
from stoker.executor.core.disk_index import (
    RECORD_BYTES,
    BlockFileName,
    Record,
    encode_drop,
    encode_hold,
)
from stoker.executor.disk import BLOCKS, Disk, Opened, block_path, check_block_file, write_index

log = logging.getLogger(__name__)

OPEN_MAX = 256  # descriptors of block files in the keeper
STEP_FILES_MAX = 64  # committed together
STEP_UNLINKS_MAX = 256
DISK_PAUSE_MS = 5_000  # after an error, until a file is made or an index written again
INDEX_SLACK_BYTES = 1024 * 1024  # of records that say nothing any more, before the index is written anew
ERROR_BYTES_MAX = 300

InThread = Callable[..., Any]  # runs (function, *arguments) off the hub and returns what it returns


class DiskFile:
    """One block's file in the directory. See BlockFile."""

    __slots__ = ("_done", "_is_sealing", "_tier", "data_bytes", "file", "is_forgotten", "record")

    def __init__(self, tier: DiskTier, file: BlockFileName, data_bytes: int, record: Record | None) -> None:
        self.file = file
        self.data_bytes = data_bytes
        self.record = record  # durable
        self.is_forgotten = False
        self._tier = tier
        self._is_sealing: Record | None = None
        self._done: Callable[[str], None] | None = None

    @property
    def name(self) -> str:
        return str(self.file)

    def open(self) -> int:
        return self._tier.descriptor(self)

    def seal(self, version: int, cached_bytes: int, done: Callable[[str], None]) -> bool:
        assert not self.is_forgotten
        if self.record is not None:
            return True
        if self._is_sealing is None:
            self._is_sealing = Record(self.file, self.data_bytes, version, cached_bytes)
            self._done = done
            self._tier.commit(self)
        return False

    def unseal(self) -> None:
        # What was recorded of it stays true: the bytes that are written now are others.
        self._is_sealing = self._done = self.record = None
        self._tier.recall(self)

    def forget(self) -> None:
        if not self.is_forgotten:
            self.is_forgotten = True
            self._is_sealing = self._done = None
            self._tier.withdraw(self)

    def discard(self, on_gone: Callable[[], None]) -> None:
        self.forget()
        self._tier.remove(self, on_gone)

    # --- for the tier

    @property
    def sealing(self) -> Record | None:
        return self._is_sealing

    def committed(self, record: Record) -> bool:
        """The record is durable; return whether it is still what the file is sealed as."""
        if self.is_forgotten or self._is_sealing is not record:
            return False
        self.record, self._is_sealing = record, None
        return True

    def tell(self, reason: str) -> None:
        done, self._done = self._done, None
        if reason:
            self._is_sealing = None
        if done is not None:
            done(reason)


@dataclass(slots=True)
class _Step:
    """What one step does, and what came of it. Made on the hub, worked on in a thread, read on the hub."""

    commits: list[tuple[DiskFile, Record, int]]  # with descriptors of its own
    drops: list[BlockFileName]
    unlinks: list[DiskFile]
    syncs_directory: bool
    rewrite: tuple[list[Record], list[BlockFileName]] | None
    index_fd: int
    index_bytes: int
    failed: dict[DiskFile, str] = field(default_factory=dict)
    not_unlinked: dict[DiskFile, str] = field(default_factory=dict)
    index_error: str = ""
    is_directory_synced: bool = False


class DiskTier:
    """See the module. `in_thread` works off the hub; `run` is to be spawned."""

    def __init__(
        self,
        directory: str,
        cluster: bytes,
        opened: Opened,
        *,
        disk: Disk,
        in_thread: InThread,
        now_ms: Callable[[], int],
    ) -> None:
        self.directory = directory
        self.blocks_directory = os.path.join(directory, BLOCKS)
        self.error_count = 0
        self.last_error = ""
        self.restored = [DiskFile(self, r.file, r.data_bytes, r) for r in opened.held]
        self.restored += [DiskFile(self, file, data_bytes, None) for file, data_bytes in opened.unrecorded]
        self._cluster = cluster
        self._disk = disk
        self._in_thread = in_thread
        self._now_ms = now_ms
        self._lock_fd = opened.lock_fd
        self._index_fd = opened.index_fd
        self._index_bytes = opened.index_bytes
        self._is_index_broken = False
        self._serial_next = opened.serial_next
        self._live = {record.file.serial: record for record in opened.held}
        self._open: OrderedDict[DiskFile, int] = OrderedDict()
        self._commits: dict[DiskFile, None] = {}  # in order
        self._drops: list[BlockFileName] = []
        self._forgotten: dict[int, BlockFileName] = {}  # by serial: not unlinked yet
        self._unlinks: dict[DiskFile, Callable[[], None]] = {}
        self._is_directory_dirty = False
        self._paused_until_ms = 0
        self._wake = Event()
        if opened.lost_count or opened.damaged_count:
            self._count(
                f"at the start: {opened.damaged_count} damaged records, {opened.lost_count} records without their file"
            )

    # --- files

    def create_file(self, name: BlockName, data_bytes: int) -> DiskFile | None:
        if self._now_ms() < self._paused_until_ms:
            return None
        file = DiskFile(self, BlockFileName(name, self._serial_next), data_bytes, None)
        layout = block_layout(data_bytes)
        path = block_path(self.directory, file.file)
        try:
            fd = self._disk.create(path, layout.file_bytes)
            try:
                self._disk.write(fd, encode_header(self._cluster, name, data_bytes), layout.trailer_offset)
            except BaseException:
                os.close(fd)
                with contextlib.suppress(OSError):
                    self._disk.unlink(path)
                raise
        except OSError as error:
            self.note_error(f"a file for block {name} cannot be made: {error}")
            return None
        self._serial_next += 1
        self._is_directory_dirty = True
        self._keep_open(file, fd)
        return file

    def note_error(self, text: str) -> None:
        self._count(text)
        self._paused_until_ms = self._now_ms() + DISK_PAUSE_MS

    def _count(self, text: str) -> None:
        self.error_count += 1
        self.last_error = text[:ERROR_BYTES_MAX]
        log.error("the SSD tier in %s: %s", self.directory, text)

    def descriptor(self, file: DiskFile) -> int:
        """Return an open descriptor of the file. :raises OSError: it cannot be opened, or is another block's."""
        fd = self._open.get(file)
        if fd is not None:
            self._open.move_to_end(file)
            return fd
        fd = self._disk.open(block_path(self.directory, file.file))
        try:
            check_block_file(fd, self._cluster, file.file.name, block_layout(file.data_bytes))
        except ValueError as error:
            os.close(fd)
            raise OSError(f"{file.name}: {error}") from error
        except BaseException:
            os.close(fd)
            raise
        self._keep_open(file, fd)
        return fd

    def _keep_open(self, file: DiskFile, fd: int) -> None:
        self._open[file] = fd
        while len(self._open) > OPEN_MAX:
            os.close(self._open.popitem(last=False)[1])

    # --- what files ask for

    def commit(self, file: DiskFile) -> None:
        self._commits[file] = None
        self._wake.set()

    def recall(self, file: DiskFile) -> None:
        self._commits.pop(file, None)

    def withdraw(self, file: DiskFile) -> None:
        self._commits.pop(file, None)
        self._live.pop(file.file.serial, None)
        self._drops.append(file.file)
        self._forgotten[file.file.serial] = file.file
        self._wake.set()

    def remove(self, file: DiskFile, on_gone: Callable[[], None]) -> None:
        fd = self._open.pop(file, None)
        if fd is not None:
            os.close(fd)
        self._unlinks[file] = on_gone
        self._wake.set()

    # --- steps

    def run(self) -> None:
        """Do what is to be done, for ever."""
        while True:
            self._wake.wait()
            self._wake.clear()
            while self._commits or self._drops or self._unlinks:
                if not self.step():
                    gevent.sleep(DISK_PAUSE_MS / 1000)

    def step(self) -> bool:
        """Do a bounded part of what is to be done; False: some of it could not be, and is to be tried again later."""
        step = self._next_step()
        try:
            self._in_thread(_work, step, self._disk, self.directory, self._cluster)
        finally:
            for _, _, fd in step.commits:
                os.close(fd)
        return self._take(step)

    def _next_step(self) -> _Step:
        commits = []
        for file in list(self._commits)[:STEP_FILES_MAX]:
            record = file.sealing
            assert record is not None, file.name
            try:
                commits.append((file, record, os.dup(self.descriptor(file))))
            except OSError as error:
                self._commits.pop(file)
                self._fail(file, f"block {file.file.name} cannot be synced: {error}")
        drops, self._drops = self._drops, []
        rewrite = None
        if self._is_index_broken or self._index_bytes > INDEX_SLACK_BYTES + 2 * RECORD_BYTES * len(
            self._live
        ):
            rewrite = (list(self._live.values()), list(self._forgotten.values()))
        return _Step(
            commits,
            drops,
            list(self._unlinks)[:STEP_UNLINKS_MAX],
            self._is_directory_dirty and bool(commits),
            rewrite,
            self._index_fd,
            self._index_bytes,
        )

    def _take(self, step: _Step) -> bool:
        if step.index_fd != self._index_fd:
            os.close(self._index_fd)
            self._index_fd = step.index_fd
        self._index_bytes = step.index_bytes
        self._is_index_broken = bool(step.index_error)
        if step.is_directory_synced:
            self._is_directory_dirty = False
        if step.index_error:
            self.note_error(f"the index cannot be written: {step.index_error}")
        for file, record, _ in step.commits:
            if file in step.failed:
                self._commits.pop(file, None)
                self._fail(file, step.failed[file])
            elif step.index_error:
                continue  # again, with a new index
            elif file.committed(record):
                self._commits.pop(file, None)
                self._live[file.file.serial] = record
                file.tell("")
        for file in step.unlinks:
            if file in step.not_unlinked:
                self.note_error(f"{file.name} cannot be removed: {step.not_unlinked[file]}")
                continue
            self._forgotten.pop(file.file.serial, None)
            self._unlinks.pop(file)()
        return not step.index_error and not step.not_unlinked

    def _fail(self, file: DiskFile, reason: str) -> None:
        if not file.is_forgotten:
            self.note_error(reason)
            file.tell(reason)

    def close(self) -> None:
        """Let go of the directory; what was not committed is not waited for."""
        for fd in (*self._open.values(), self._index_fd, self._lock_fd):
            os.close(fd)
        self._open.clear()


def _work(step: _Step, disk: Disk, directory: str, cluster: bytes) -> None:
    """Do a step; what fails is noted in it. In a thread."""
    synced = []
    for file, record, fd in step.commits:
        try:
            disk.sync(fd)
            synced.append((file, record))
        except OSError as error:
            step.failed[file] = f"block {file.file.name} cannot be synced: {error}"
    if step.syncs_directory and synced:
        try:
            disk.sync_directory(os.path.join(directory, BLOCKS))
            step.is_directory_synced = True
        except OSError as error:
            step.failed |= {file: f"the directory cannot be synced: {error}" for file, _ in synced}
            synced = []
    try:
        _write_records(step, [record for _, record in synced], disk, directory, cluster)
    except OSError as error:
        step.index_error = str(error)
    for file in step.unlinks:
        try:
            disk.unlink(block_path(directory, file.file))
        except OSError as error:
            step.not_unlinked[file] = str(error)


def _write_records(step: _Step, holds: Iterable[Record], disk: Disk, directory: str, cluster: bytes) -> None:
    holds = list(holds)
    if step.rewrite is not None:
        live, forgotten = step.rewrite
        step.index_fd, step.index_bytes = write_index(
            directory, cluster, disk, [*live, *holds], [*forgotten, *step.drops]
        )
        return
    data = b"".join((*map(encode_hold, holds), *map(encode_drop, step.drops)))
    if data:
        disk.write(step.index_fd, data, step.index_bytes)
        step.index_bytes += len(data)
    if holds:
        disk.sync(step.index_fd)  # a drop that is lost only brings back what is right

"""The SSD tier: block files in a directory, found again after a restart.

Theory of operation. A block's file is made with all its room. It is filled as a memfd is, and once it is full and has all its
checksums it is *committed*: its bytes are synced, its name is, and then the record that says so (disk_index). Only after that
does anybody hear that the block is here, so whatever happens at whatever time, what was announced is whole. Commits, and
the removal of files, are done by one greenlet in steps, each in a thread of its own off the hub and with one sync of the index
for all blocks of the step.

    filling  -- seal -->  sealing  -- step -->  durable (recorded)
       any of them  -- forget -->  forgotten (never found again)  -- discard, step -->  unlinked, its room is free

A file that is forgotten stays as it is, and where it is, until nobody uses it: readers may have its descriptor.

A file whose bytes could not be synced is broken for good: the next sync may say yes to pages that are lost already. Of a
damaged one the header goes at once, and the step that records that it is gone syncs the index: it is found by nobody, also
after a kill or a power cut.

An error of one file costs its block; an error of the index is tried again with a new index. Both are counted and told, and no
file is made for DISK_PAUSE_MS after one. Where only descriptors or memory are short that is said of no file: it is tried again
later. Descriptors: OPEN_MAX at most, of files that are being filled for the most part.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import gevent
from gevent.event import Event

from stoker.executor.block import MAGIC, BlockName, block_layout, encode_header
from stoker.executor.core.disk_index import (
    RECORD_BYTES,
    BlockFileName,
    Record,
    encode_drop,
    encode_hold,
)
from stoker.executor.disk import (
    BLOCKS,
    Disk,
    Opened,
    block_path,
    check_block_file,
    is_short_of_means,
    write_index,
)

log = logging.getLogger(__name__)

OPEN_MAX = 256  # descriptors of block files in the keeper
STEP_FILES_MAX = 64  # committed together
STEP_BYTES_MAX = 256 * 1024 * 1024  # of those, unless the first alone has more: removals wait for a step
STEP_UNLINKS_MAX = 256
DISK_PAUSE_MS = 5_000  # after an error, until a file is made or an index written again
INDEX_SLACK_BYTES = 1024 * 1024  # of records that say nothing any more, before the index is written anew
ERROR_BYTES_MAX = 300

InThread = Callable[..., Any]  # runs (function, *arguments) off the hub and returns what it returns


class DiskFile:
    """One block's file in the directory. See BlockFile."""

    __slots__ = ("_broken", "_done", "_is_sealing", "_tier", "data_bytes", "file", "is_forgotten", "record")

    def __init__(self, tier: DiskTier, file: BlockFileName, data_bytes: int, record: Record | None) -> None:
        self.file = file
        self.data_bytes = data_bytes
        self.record = record  # durable
        self.is_forgotten = False
        self._tier = tier
        self._is_sealing: Record | None = None
        self._done: Callable[[str], None] | None = None
        self._broken = ""  # why it can never be durable

    @property
    def name(self) -> str:
        return str(self.file)

    def open(self) -> int:
        return self._tier.descriptor(self)

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
            self._tier.withdraw(self, is_damaged=is_damaged)

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
        """Tell who waits, if anybody does; `reason`: it will never be durable."""
        done, self._done = self._done, None
        if reason:
            self._is_sealing = None
            self._broken = reason
        if done is not None:
            done(reason)


@dataclass(slots=True)
class _Step:
    """What one step does, and what came of it. Made on the hub, worked on in a thread, read on the hub."""

    commits: list[tuple[DiskFile, Record, int]]  # with descriptors of its own
    drops: list[BlockFileName]
    unlinks: list[DiskFile]
    syncs_directory: bool
    syncs_drops: bool
    rewrite: tuple[list[Record], list[BlockFileName]] | None
    index_fd: int
    index_bytes: int
    failed: dict[DiskFile, str] = field(default_factory=dict)
    not_unlinked: dict[DiskFile, str] = field(default_factory=dict)
    index_error: str = ""
    is_directory_synced: bool = False
    has_lost_names: bool = False
    not_now: str = ""  # why nothing was committed, which is the fault of none of the files


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
        self._forgotten = {file.serial: file for file in opened.stuck}  # not unlinked yet
        self._unlinks: dict[DiskFile, Callable[[], None]] = {}
        self._is_directory_dirty = False
        self._must_sync_drops = False
        self._unsure_until = 0  # a sync of the directory failed: lower serials may have lost their names
        self._paused_until_ms = 0
        self._wake = Event()
        if opened.lost_count or opened.damaged_count:
            self._count(
                f"at the start: {opened.damaged_count} damaged records, {opened.lost_count} records without their file"
            )
        if opened.stuck:
            self._count(f"at the start: {len(opened.stuck)} files of no use could not be removed")
        if opened.given_up_count:
            self._count(f"at the start: the disk was full, {opened.given_up_count} blocks were given up")

    # --- files

    def create_file(self, name: BlockName, data_bytes: int) -> DiskFile | None:
        if self._now_ms() < self._paused_until_ms:
            return None
        file = DiskFile(self, BlockFileName(name, self._serial_next), data_bytes, None)
        self._serial_next += 1  # whatever comes of it: what cannot be removed either keeps its name
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

    def withdraw(self, file: DiskFile, *, is_damaged: bool) -> None:
        self._commits.pop(file, None)
        self._live.pop(file.file.serial, None)
        self._drops.append(file.file)
        self._forgotten[file.file.serial] = file.file
        if is_damaged:
            self._must_sync_drops = True
            self._spoil(file)
        self._wake.set()

    def _spoil(self, file: DiskFile) -> None:
        """Make the file one that nobody takes for its block's, should this process end before it is recorded as gone."""
        try:
            offset = block_layout(file.data_bytes).trailer_offset
            self._disk.write(self.descriptor(file), bytes(len(MAGIC)), offset)
        except OSError as error:
            log.warning("%s: its header stays: %s", file.name, error)

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
            while self._commits or self._drops or self._unlinks or self._is_index_broken:
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
        commits, not_now = self._next_commits()
        drops, self._drops = self._drops, []
        syncs_drops, self._must_sync_drops = self._must_sync_drops, False
        # What is made from now on may come after the sync: the flag is set by it again.
        syncs_directory = self._is_directory_dirty and bool(commits)
        self._is_directory_dirty &= not syncs_directory
        rewrite = None
        if self._is_index_broken or self._index_bytes > INDEX_SLACK_BYTES + 2 * RECORD_BYTES * len(
            self._live
        ):
            rewrite = (list(self._live.values()), list(self._forgotten.values()))
        return _Step(
            commits,
            drops,
            list(self._unlinks)[:STEP_UNLINKS_MAX],
            syncs_directory,
            syncs_drops,
            rewrite,
            self._index_fd,
            self._index_bytes,
            not_now=not_now,
        )

    def _next_commits(self) -> tuple[list[tuple[DiskFile, Record, int]], str]:
        """Return what to commit now; and why nothing, if there are no descriptors or no memory for it."""
        commits: list[tuple[DiskFile, Record, int]] = []
        sync_bytes = 0
        for file in list(self._commits)[:STEP_FILES_MAX]:
            record = file.sealing
            if record is None:
                continue  # news of one before it made this one go
            sync_bytes += file.data_bytes
            if commits and sync_bytes > STEP_BYTES_MAX:
                break
            try:
                if file.file.serial < self._unsure_until:
                    raise OSError(errno.EIO, "a sync of the directory failed since it was made")
                commits.append((file, record, os.dup(self.descriptor(file))))
            except OSError as error:
                if is_short_of_means(error):
                    return commits, "" if commits else str(error)
                self._commits.pop(file, None)
                self._fail(file, f"block {file.file.name} cannot be synced: {error}")
        return commits, ""

    def _take(self, step: _Step) -> bool:
        if step.index_fd != self._index_fd:
            os.close(self._index_fd)
            self._index_fd = step.index_fd
        self._index_bytes = step.index_bytes
        self._is_index_broken = bool(step.index_error)
        if step.syncs_directory and not step.is_directory_synced:
            self._is_directory_dirty = True
        if step.has_lost_names:
            self._unsure_until = self._serial_next
        if step.not_now:
            self.note_error(f"blocks are to be synced, which has to wait: {step.not_now}")
        if step.index_error:
            self.note_error(f"the index cannot be written: {step.index_error}")
        for file, record, _ in step.commits:
            if file in step.failed:
                self._commits.pop(file, None)
                self._fail(file, step.failed[file])
            elif step.index_error or step.not_now:
                continue  # again: with a new index, or more descriptors
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
        return not step.index_error and not step.not_unlinked and not step.not_now

    def _fail(self, file: DiskFile, reason: str) -> None:
        """The file can never be durable, whether anybody waits for that or not."""
        if not file.is_forgotten:
            self.note_error(reason)
            file.tell(reason)

    def close(self) -> None:
        """Let go of the directory; what was not committed is not waited for."""
        for fd in (*self._open.values(), self._index_fd, self._lock_fd):
            os.close(fd)
        self._open.clear()


def _work(step: _Step, disk: Disk, directory: str, cluster: bytes) -> None:
    """Do a step; what fails is noted in it. In a thread. Room comes free first: syncs may take long."""
    try:
        if step.rewrite is None:
            _append(step, disk, map(encode_drop, step.drops))
    except OSError as error:
        step.index_error = str(error)
    for file in step.unlinks:
        try:
            disk.unlink(block_path(directory, file.file))
        except OSError as error:
            step.not_unlinked[file] = str(error)
    if step.index_error:
        return
    synced = _sync(step, disk, directory)
    try:
        if step.rewrite is not None:
            live, forgotten = step.rewrite
            step.index_fd, step.index_bytes = write_index(
                directory, cluster, disk, [*live, *synced], [*forgotten, *step.drops]
            )
            return
        _append(step, disk, map(encode_hold, synced))
        if synced or step.syncs_drops:
            disk.sync(step.index_fd)  # a drop that is lost only brings back what is right, else
    except OSError as error:
        step.index_error = str(error)


def _sync(step: _Step, disk: Disk, directory: str) -> list[Record]:
    """Return the records of what is durable now: bytes and names."""
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
            if is_short_of_means(error):
                step.not_now = str(error)
            else:
                step.has_lost_names = True
                step.failed |= {file: f"the directory cannot be synced: {error}" for file, _ in synced}
            synced = []
    return [record for _, record in synced]


def _append(step: _Step, disk: Disk, records: Iterable[bytes]) -> None:
    data = b"".join(records)
    if data:
        disk.write(step.index_fd, data, step.index_bytes)
        step.index_bytes += len(data)

"""The SSD tier: block files in a directory, found again after a restart.

Theory of operation. A block's file is made with all its room. It is filled as a memfd is, and once it is full and has all its
checksums it is *committed*: its bytes are synced, its name is, and then the record that says so (disk_index). Only after that
does anybody hear that the block is here, so whatever happens at whatever time, what was announced is whole. Commits, and
the removal of files, are done by one greenlet in steps, each in a thread of its own off the hub and with one sync of the index
for all blocks of the step.

    filling  -- seal -->  sealing  -- step -->  durable (recorded)
       any of them  -- forget -->  forgotten (never found again)  -- discard, step -->  unlinked, its room is free

A file that is forgotten stays as it is, and where it is, until nobody uses it: readers may have its descriptor.

What is partly filled is read before it is committed, so it is synced too, soon after it was written: the kernel tells of bytes
that it could not write only who syncs, and once; after that the page may be dropped, and come back as it was before.

A file whose bytes could not be synced is broken for good: the next sync may say yes to pages that are lost already. Of a
damaged one the header goes at once, and the step that records that it is gone syncs the index: it is found by nobody, also
after a kill or a power cut.

An error of one file costs its block; an error of the index is tried again with a new index. Both are counted and told, and no
file is made for DISK_PAUSE_MS after one. A file that cannot be removed holds up nothing but its own room: that is tried again
UNLINK_AGAIN_MS later. Where only descriptors or memory are short that is said of no file: it is tried again
later. Making, opening and marking files is stoker.executor.disk_file's.

A disk that hangs is found out by a *probe*, a small read of the device itself, now and then. While it is stuck no file is made and
nothing is begun with one.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice

import gevent
from gevent.event import Event

from stoker.executor.block import BlockName
from stoker.executor.core.disk_index import (
    RECORD_BYTES,
    BlockFileName,
    Record,
    encode_drop,
    encode_hold,
)
from stoker.executor.disk import (
    BLOCKS,
    FORMAT,
    Disk,
    Opened,
    block_path,
    is_short_of_means,
    write_index,
)
from stoker.executor.disk_calls import Calls
from stoker.executor.disk_file import DiskFile, Files, Spawn, close, open_checked, spoil

log = logging.getLogger(__name__)

STEP_FILES_MAX = 64  # committed together
STEP_BYTES_MAX = 256 * 1024 * 1024  # of those, unless the first alone has more: removals wait for a step
STEP_UNLINKS_MAX = 256
DISK_PAUSE_MS = 5_000  # after an error, until a file is made or an index written again
UNLINK_AGAIN_MS = 30_000  # after a file could not be removed
INDEX_SLACK_BYTES = 1024 * 1024  # of records that say nothing any more, before the index is written anew
ERROR_BYTES_MAX = 300
PROBE_INTERVAL_MS = 1_000
PARTLY_SYNC_MS = 2_000  # after a file was written to; the kernel begins by itself after five seconds or more
FILE_CALLS_MAX = 4  # at once: files made, opened and marked
STEP_STUCK_MS = 60_000  # of a step: it may have much to sync


@dataclass(slots=True)
class _Step:
    """What one step does, and what came of it. Made on the hub, worked on in a thread, read on the hub."""

    commits: list[
        tuple[DiskFile, Record | None, int]
    ]  # no record: only to be synced; with descriptors of its own, or -1
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
    later: set[DiskFile] = field(
        default_factory=set
    )  # not committed, which is the fault of none of the files:
    not_now: str = ""  # why


class DiskTier:
    """See the module. `file_calls` are for what is short, `step_calls` for steps, one at a time; `run` is to be spawned."""

    def __init__(
        self,
        directory: str,
        cluster: bytes,
        opened: Opened,
        *,
        disk: Disk,
        file_calls: Calls,
        step_calls: Calls,
        spawn: Spawn,
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
        self._step_calls = step_calls
        self._spawn = spawn
        self._now_ms = now_ms
        self.files = Files(
            directory,
            cluster,
            disk=disk,
            calls=file_calls,
            spawn=spawn,
            on_settled=self._settled,
            on_failed=self._fail,
        )
        self._lock_fd = opened.lock_fd
        self._index_fd = opened.index_fd
        self._index_bytes = opened.index_bytes
        self._is_index_broken = False
        self._serial_next = opened.serial_next
        self._live = {record.file.serial: record for record in opened.held}
        self._commits: dict[DiskFile, None] = {}  # in order
        self._blocked: dict[DiskFile, None] = {}  # to be committed once nothing stands in their lines
        self._unsynced: dict[DiskFile, int] = {}  # written to, and since when
        self._syncs: dict[DiskFile, None] = {}  # of these, what is due
        self._removals: dict[DiskFile, Callable[[], None]] = {}  # to be unlinked then
        self._awaited: dict[DiskFile, None] = {}  # somebody waits for them to be ready
        self._drops: list[BlockFileName] = []
        self._forgotten = {file.serial: file for file in opened.stuck}  # not unlinked yet
        self._unlinks: dict[DiskFile, Callable[[], None]] = {}
        self._unlinks_later: dict[DiskFile, int] = {}  # could not be: when they are tried again
        self._is_directory_dirty = False
        self._must_sync_drops = False
        self._unsure_until = 0  # a sync of the directory failed: lower serials may have lost their names
        self._paused_until_ms = 0
        self._probed_ms = 0
        self._is_probing = False
        self._was_stuck = False
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

    @property
    def is_stuck(self) -> bool:
        return self.files.calls.is_stuck or self._step_calls.is_stuck

    def tick(self) -> None:
        now_ms, is_stuck = self._now_ms(), self.is_stuck
        if is_stuck != self._was_stuck:
            self._was_stuck = is_stuck
            if is_stuck:
                self._count("the disk does not answer")
            else:
                log.info("the SSD tier in %s: the disk answers again", self.directory)
        if now_ms - self._probed_ms >= PROBE_INTERVAL_MS and not self._is_probing:
            self._probed_ms, self._is_probing = now_ms, True
            self._spawn(self._probe)
        if not is_stuck:
            self.files.retry()
            for file in list(self._awaited):
                self._settled(file)
            due = [file for file, since_ms in self._unsynced.items() if now_ms - since_ms >= PARTLY_SYNC_MS]
            for file in due:
                del self._unsynced[file]
                if not file.is_forgotten and file.sealing is None and file.record is None:
                    self._syncs[file] = None
            again = [file for file, at_ms in self._unlinks_later.items() if now_ms >= at_ms]
            for file in again:
                del self._unlinks_later[file]
            if due or again:
                self._wake.set()

    def _probe(self) -> None:
        try:
            self.files.calls.run(self._disk.probe, os.path.join(self.directory, FORMAT))
        except OSError as error:
            log.debug("the probe: %s", error)  # it is an answer; whoever needs the disk is told the same
        self._is_probing = False

    def create_file(self, name: BlockName, data_bytes: int) -> DiskFile | None:
        if self.is_stuck or self._now_ms() < self._paused_until_ms:
            return None
        file = DiskFile(self, BlockFileName(name, self._serial_next), data_bytes, None, is_made=False)
        self._serial_next += 1  # whatever comes of it: what cannot be removed either keeps its name
        self.files.begin(file)
        if file.is_broken:
            return None
        return file

    def note_made(self) -> None:
        self._is_directory_dirty = True  # from when the file is there: a sync before that says nothing of it

    def note_written(self, file: DiskFile) -> None:
        self._unsynced.setdefault(file, self._now_ms())

    def note_error(self, text: str) -> None:
        self._count(text)
        self._paused_until_ms = self._now_ms() + DISK_PAUSE_MS

    def _count(self, text: str) -> None:
        self.error_count += 1
        self.last_error = text[:ERROR_BYTES_MAX]
        log.error("the SSD tier in %s: %s", self.directory, text)

    # --- what files ask for

    def await_ready(self, file: DiskFile) -> None:
        self._awaited[file] = None
        if not self.is_stuck:
            self.files.begin(file)

    def commit(self, file: DiskFile) -> None:
        if file.is_settled:
            self._commits[file] = None
            self._wake.set()
        else:
            self._blocked[file] = None

    def recall(self, file: DiskFile) -> None:
        self._commits.pop(file, None)
        self._blocked.pop(file, None)

    def withdraw(self, file: DiskFile, *, is_damaged: bool) -> None:
        self.recall(file)
        self._unsynced.pop(file, None)
        self._syncs.pop(file, None)
        self._live.pop(file.file.serial, None)
        self._drops.append(file.file)
        self._forgotten[file.file.serial] = file.file
        if is_damaged:
            # Should this process end before it is recorded as gone, nobody is to take it for its block's.
            self._must_sync_drops = True
            file.line.append(spoil(file))
            self.files.begin(file)
        self._wake.set()

    def remove(self, file: DiskFile, on_gone: Callable[[], None]) -> None:
        self.files.close(file)
        self._removals[file] = on_gone
        self._settled(file)

    def _settled(self, file: DiskFile) -> None:
        """Nothing stands in the file's line any more, or that is to be looked at."""
        if file in self._removals and not file.is_at_work:
            self._unlinks[file] = self._removals.pop(file)
            self._wake.set()
        if file in self._blocked and file.is_settled:
            del self._blocked[file]
            self.commit(file)
        if file not in self._awaited:
            return
        is_over = file.is_forgotten or file.is_broken
        if is_over or (file.is_settled and self.files.is_open(file) and not self.is_stuck):
            del self._awaited[file]
            for then in file.take_waiting():
                then()
        elif not self.is_stuck:
            self.files.begin(file)

    # --- steps

    def run(self) -> None:
        """Do what is to be done, for ever."""
        while True:
            self._wake.wait()
            self._wake.clear()
            while (
                self._commits or self._syncs or self._drops or self._next_unlinks() or self._is_index_broken
            ):
                if not self.step():
                    gevent.sleep(DISK_PAUSE_MS / 1000)

    def step(self) -> bool:
        """Do a bounded part of what is to be done; False: some of it could not be, and is to be tried again later."""
        step = self._next_step()
        self._step_calls.run(_work, step, self._disk, self.directory, self._cluster)
        return self._take(step)

    def _next_step(self) -> _Step:
        commits = self._next_commits()
        drops, self._drops = self._drops, []
        syncs_drops, self._must_sync_drops = self._must_sync_drops, False
        # What is made from now on may come after the sync: the flag is set by it again.
        syncs_directory = self._is_directory_dirty and any(record is not None for _, record, _ in commits)
        self._is_directory_dirty &= not syncs_directory
        rewrite = None
        if self._is_index_broken or self._index_bytes > INDEX_SLACK_BYTES + 2 * RECORD_BYTES * len(
            self._live
        ):
            rewrite = (list(self._live.values()), list(self._forgotten.values()))
        return _Step(
            commits,
            drops,
            self._next_unlinks(),
            syncs_directory,
            syncs_drops,
            rewrite,
            self._index_fd,
            self._index_bytes,
        )

    def _next_unlinks(self) -> list[DiskFile]:
        return list(
            islice((file for file in self._unlinks if file not in self._unlinks_later), STEP_UNLINKS_MAX)
        )

    def _next_commits(self) -> list[tuple[DiskFile, Record | None, int]]:
        commits: list[tuple[DiskFile, Record | None, int]] = []
        sync_bytes = 0
        for file in list(self._commits)[:STEP_FILES_MAX]:
            record = file.sealing
            if record is None:
                continue  # news of one before it made this one go
            sync_bytes += file.data_bytes
            if commits and sync_bytes > STEP_BYTES_MAX:
                break
            if file.file.serial < self._unsure_until:
                self._commits.pop(file, None)
                what = "a sync of the directory failed since it was made"
                self._fail(file, f"block {file.file.name} cannot be synced: {what}")
                continue
            commits.append((file, record, self.files.own(file)))
        for file in list(self._syncs)[: STEP_FILES_MAX - len(commits)]:
            del self._syncs[file]
            commits.append((file, None, self.files.own(file)))
        return commits

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
        self._take_commits(step)
        for file in step.unlinks:
            if file in step.not_unlinked:
                self._count(f"{file.name} cannot be removed: {step.not_unlinked[file]}")
                self._unlinks_later[file] = self._now_ms() + UNLINK_AGAIN_MS
                continue
            self._forgotten.pop(file.file.serial, None)
            self._unlinks.pop(file)()
        return not step.index_error and not step.not_now

    def _take_commits(self, step: _Step) -> None:
        for file, record, _ in step.commits:
            if file in step.failed:
                self._commits.pop(file, None)
                self._fail(file, step.failed[file])
            elif record is None:
                if step.index_error or file in step.later:
                    self._syncs[file] = None
            elif step.index_error or file in step.later:
                continue  # again: with a new index, or more descriptors
            elif file.committed(record):
                self._commits.pop(file, None)
                self._live[file.file.serial] = record
                file.tell("")

    def _fail(self, file: DiskFile, reason: str) -> None:
        """The file is of no more use, whether anybody waits for it or not."""
        if file.is_forgotten:
            log.warning("%s, which is to go: %s", file.name, reason)
            return
        self.note_error(reason)
        file.tell(reason)

    def close(self) -> None:
        """Let go of the directory; what was not committed is not waited for."""
        self.files.close_all()
        for fd in (self._index_fd, self._lock_fd):
            os.close(fd)


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
        for _, _, fd in step.commits:
            close(fd)
        return
    synced = _sync(step, disk, directory, cluster)
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


def _sync(step: _Step, disk: Disk, directory: str, cluster: bytes) -> list[Record]:
    """Return the records of what is durable now: bytes and names."""
    synced = []
    for file, record, own in step.commits:
        fd = own
        try:
            if fd < 0:
                fd = open_checked(disk, directory, cluster, file.file, file.layout)
            disk.sync(fd)
            if record is not None:
                synced.append((file, record))
        except OSError as error:
            if fd < 0 and is_short_of_means(error):
                _put_off(step, [file], error, is_all=not synced)
            else:
                step.failed[file] = f"block {file.file.name} cannot be synced: {error}"
        finally:
            close(fd)
    if step.syncs_directory and synced:
        try:
            disk.sync_directory(os.path.join(directory, BLOCKS))
            step.is_directory_synced = True
        except OSError as error:
            if is_short_of_means(error):
                _put_off(step, [file for file, _ in synced], error, is_all=True)
            else:
                step.has_lost_names = True
                step.failed |= {file: f"the directory cannot be synced: {error}" for file, _ in synced}
            synced = []
    return [record for _, record in synced]


def _put_off(step: _Step, files: list[DiskFile], error: OSError, *, is_all: bool) -> None:
    step.later |= set(files)
    if is_all:
        step.not_now = str(error)


def _append(step: _Step, disk: Disk, records: Iterable[bytes]) -> None:
    data = b"".join(records)
    if data:
        disk.write(step.index_fd, data, step.index_bytes)
        step.index_bytes += len(data)

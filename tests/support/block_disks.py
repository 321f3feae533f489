"""Disks for the SSD tier that stop, lose power, fill up or fail at a chosen call; and a stage for a tier without processes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from stoker.executor import index
from stoker.executor.block import BlockName, block_layout
from stoker.executor.disk import BLOCKS, Disk, Opened, open_directory
from stoker.executor.disk_file import OPEN_MAX, DiskFile
from stoker.executor.disk_tier import DiskTier
from stoker.executor.store import BlockFile
from support.data_servers import CLUSTER

BOOT = "one boot"


class Killed(BaseException):
    """The process is gone: nothing but a new one may follow."""


class StoppingDisk(Disk):
    """Dies at the `stop_at`-th call (from 0); a write that dies has written `partial` of its bytes."""

    def __init__(self, stop_at: int = 10**9, partial: float = 0.0) -> None:
        self.calls = 0
        self._stop_at = stop_at
        self._partial = partial

    def _step(self) -> None:
        if self.calls == self._stop_at:
            raise Killed
        self.calls += 1

    def create(self, path: str, size: int) -> int:
        self._step()
        return super().create(path, size)

    def write(self, fd: int, data: bytes, offset: int) -> None:
        if self.calls == self._stop_at:
            super().write(fd, data[: int(len(data) * self._partial)], offset)
        self._step()
        super().write(fd, data, offset)

    def sync(self, fd: int) -> None:
        self._step()
        super().sync(fd)

    def sync_directory(self, path: str) -> None:
        self._step()
        super().sync_directory(path)

    def rename(self, old: str, new: str) -> None:
        self._step()
        super().rename(old, new)

    def unlink(self, path: str) -> None:
        self._step()
        super().unlink(path)


class PowerDisk(StoppingDisk):
    """Remembers what was synced; `lose_power` takes away what was not, each piece as `keeps` says.

    A file that lost its name stays in `grave`, since without a sync of its directory it may have it again.
    """

    def __init__(self, root: Path, grave: Path, stop_at: int = 10**9, partial: float = 0.0) -> None:
        """`root`: what is below it has been on the disk for long."""
        super().__init__(stop_at, partial)
        grave.mkdir(exist_ok=True)
        self._grave = grave
        self._contents: dict[
            int, bytes
        ] = {}  # inode -> bytes at its last sync; no inode is freed, so none is used again
        self._entries: dict[str, dict[str, int]] = {}  # directory -> name -> inode, at its last sync
        self._buried: dict[int, str] = {}  # inode -> where
        for folder, _, names in os.walk(root):
            self._entries[folder] = _names(folder)
            for name in names:
                path = os.path.join(folder, name)
                self._contents[os.stat(path).st_ino] = _content(path)

    def sync(self, fd: int) -> None:
        super().sync(fd)
        self._contents[os.fstat(fd).st_ino] = _content(f"/proc/self/fd/{fd}")

    def sync_directory(self, path: str) -> None:
        super().sync_directory(path)
        self._entries[path] = _names(path)

    def rename(self, old: str, new: str) -> None:
        self._step()
        self._bury(new)
        os.rename(old, new)

    def unlink(self, path: str) -> None:
        self._step()
        self._bury(path)

    def _bury(self, path: str) -> None:
        if os.path.exists(path):
            inode = os.stat(path).st_ino
            self._buried[inode] = str(self._grave / f"{len(self._buried)}")
            os.rename(path, self._buried[inode])

    def lose_power(self, root: str, keeps: Callable[[], bool]) -> None:
        for folder, _, _ in list(os.walk(root)):
            synced, now = self._entries.get(folder, {}), _names(folder)
            for name in sorted({*synced, *now}):
                path = os.path.join(folder, name)
                if now.get(name) == synced.get(name) or keeps():
                    inode = now.get(name)
                else:
                    inode = synced.get(name)
                content = None if inode is None else self._after(inode, path, inode == now.get(name), keeps)
                if name in now:
                    os.rename(path, self._grave / f"old-{now[name]}-{name}")
                if content is not None:
                    with open(path, "wb") as file:
                        file.write(content)

    def _after(self, inode: int, path: str, is_here: bool, keeps: Callable[[], bool]) -> bytes:
        now = _content(path if is_here else self._buried.get(inode, path))
        synced = self._contents.get(inode, b"")
        if now == synced:
            return now
        # A page came through or it did not, and the length is the newer one, or not.
        size = len(now) if keeps() else len(synced)
        pages = []
        for start in range(0, size, 4096):
            page = (now if keeps() else synced)[start : min(start + 4096, size)]
            pages.append(page.ljust(min(4096, size - start), b"\0"))
        return b"".join(pages)


class FailingDisk(Disk):
    """Calls named in `errors` fail with that error number; with a file, its JSON says so, for a tier in another process."""

    def __init__(self, path: str = "") -> None:
        self.errors: dict[str, int] = {}
        self._path = path

    def _check(self, name: str) -> None:
        if self._path:
            with open(self._path) as file:
                self.errors = json.load(file)
        if name in self.errors:
            raise OSError(self.errors[name], os.strerror(self.errors[name]))

    def create(self, path: str, size: int) -> int:
        self._check("create" if BLOCKS in path else "create index")
        return super().create(path, size)

    def open(self, path: str) -> int:
        self._check("open")
        return super().open(path)

    def write(self, fd: int, data: bytes, offset: int) -> None:
        name = os.readlink(f"/proc/self/fd/{fd}")
        is_block = f"/{BLOCKS}/" in name
        try:
            self._check("write" if is_block else "write index")
        except OSError as error:
            if error.errno == errno.ENOSPC:
                super().write(fd, data[: len(data) // 2], offset)
            raise
        super().write(fd, data, offset)

    def sync(self, fd: int) -> None:
        name = os.readlink(f"/proc/self/fd/{fd}")
        self._check("sync" if f"/{BLOCKS}/" in name else "sync index")
        super().sync(fd)

    def sync_directory(self, path: str) -> None:
        self._check("sync directory")
        super().sync_directory(path)

    def unlink(self, path: str) -> None:
        self._check("unlink")
        super().unlink(path)


class HangingDisk(Disk):
    """Hangs for as long as somebody else has the lock of the file `path`, as `hung` takes it."""

    def __init__(self, path: str) -> None:
        self._path = path
        open(path, "a").close()

    def _wait(self) -> None:
        with open(self._path) as file:
            fcntl.flock(file, fcntl.LOCK_SH)

    def create(self, path: str, size: int) -> int:
        self._wait()
        return super().create(path, size)

    def open(self, path: str) -> int:
        self._wait()
        return super().open(path)

    def write(self, fd: int, data: bytes, offset: int) -> None:
        self._wait()
        super().write(fd, data, offset)

    def sync(self, fd: int) -> None:
        self._wait()
        super().sync(fd)

    def unlink(self, path: str) -> None:
        self._wait()
        super().unlink(path)

    def probe(self, path: str) -> None:
        self._wait()
        super().probe(path)


@contextlib.contextmanager
def hung(path: str) -> Iterator[None]:
    """See HangingDisk."""
    with open(path) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class AtOnce:
    """Calls of a disk that are made when they are asked for: their order is the test's."""

    is_stuck = False

    def run(
        self,
        work: Callable[..., Any],
        *arguments: Any,
        patience_ms: int | None = None,
        own: int = -1,
        undo: Callable[[Any], None] | None = None,
    ) -> Any:
        return work(*arguments)


class TierStage:
    """A tier on a directory whose steps the test makes; fills blocks with bytes that follow from their names."""

    def __init__(self, directory: Path, disk: Disk, *, boot_id: str = BOOT, asked_bytes: int = 2**30) -> None:
        self.now_ms = 1_000
        self.directory = str(directory)
        self.opened: Opened = open_directory(
            self.directory, CLUSTER, disk=disk, boot_id=boot_id, asked_bytes=asked_bytes
        )
        self.tier = DiskTier(
            self.directory,
            CLUSTER,
            self.opened,
            disk=disk,
            file_calls=AtOnce(),
            step_calls=AtOnce(),
            spawn=lambda work, *arguments: work(*arguments),
            now_ms=lambda: self.now_ms,
        )
        self.said: dict[DiskFile, list[str]] = {}

    def make(self, number: int, data_bytes: int = 20_000) -> DiskFile | None:
        """Make a file for block `number` and fill it wholly, as the fillers and the keeper do."""
        name = BlockName(1, 1, number)
        file = self.tier.create_file(name, data_bytes)
        if file is not None:
            fd, layout = file.open(), block_layout(data_bytes)
            os.pwrite(fd, content_of(name, data_bytes), 0)
            index.mark_valid(fd, layout, [(0, data_bytes)])
        return file

    def crowd_out(self, file: BlockFile) -> None:
        """Open others until the tier has closed this file."""
        others = [self.tier.create_file(BlockName(9, 1, number), 1) for number in range(OPEN_MAX)]
        assert all(other is not None and other is not file for other in others)

    def seal(self, file: DiskFile, version: int = 1) -> bool:
        return file.seal(version, file.data_bytes, self.said.setdefault(file, []).append)

    def step(self) -> bool:
        return self.tier.step()


def opened(file: DiskFile) -> int:
    """Return a descriptor of a file, which stays the tier's."""
    file.examine(lambda fd, layout: None)
    return file.open()


def content_of(name: BlockName, data_bytes: int) -> bytes:
    return random.Random(repr(name)).randbytes(data_bytes)


def _content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _names(path: str) -> dict[str, int]:
    return {entry.name: entry.inode() for entry in os.scandir(path) if entry.is_file()}

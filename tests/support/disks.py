"""Disks that stop a local journal at a chosen call, with or without the loss of what was not synced."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from stoker.zk.disk import Disk


class Killed(BaseException):
    """The process is gone: nothing but a new one may follow."""


class StoppingDisk(Disk):
    """Dies at the `stop_at`-th call (from 0); a write that dies has written `partial` of its bytes (0.0 to 1.0)."""

    def __init__(self, stop_at: int, partial: float = 0.0) -> None:
        self.calls = 0
        self._stop_at = stop_at
        self._partial = partial

    def _step(self) -> None:
        if self.calls == self._stop_at:
            raise Killed
        self.calls += 1

    def create(self, path: str) -> int:
        self._step()
        return super().create(path)

    def write(self, descriptor: int, data: bytes | memoryview, offset: int) -> None:
        if self.calls == self._stop_at:
            super().write(descriptor, memoryview(data)[: int(len(data) * self._partial)], offset)
        self._step()
        super().write(descriptor, data, offset)

    def truncate(self, descriptor: int, size: int) -> None:
        self._step()
        super().truncate(descriptor, size)

    def sync(self, descriptor: int) -> None:
        self._step()
        super().sync(descriptor)

    def rename(self, old: str, new: str) -> None:
        self._step()
        super().rename(old, new)

    def unlink(self, path: str) -> None:
        self._step()
        super().unlink(path)

    def sync_directory(self, path: str) -> None:
        self._step()
        super().sync_directory(path)


class PowerDisk(StoppingDisk):
    """Also remembers what was synced; `lose_power` takes away what was not, each piece as `keeps` says."""

    def __init__(self, stop_at: int, partial: float = 0.0) -> None:
        super().__init__(stop_at, partial)
        self._files: dict[int, int] = {}  # inode -> our own number for the file, since inodes are used again
        self._contents: dict[int, bytes] = {}  # file -> bytes at its last sync
        self._entries: dict[str, dict[str, int]] = {}  # directory -> name -> file, at its last sync

    def create(self, path: str) -> int:
        is_new = not os.path.exists(path)
        descriptor = super().create(path)
        if is_new:
            self._files[os.fstat(descriptor).st_ino] = len(self._files) + 1_000_000 * self.calls
        return descriptor

    def sync(self, descriptor: int) -> None:
        super().sync(descriptor)
        with open(f"/proc/self/fd/{descriptor}", "rb") as file:
            self._contents[self._file(os.fstat(descriptor).st_ino)] = file.read()

    def sync_directory(self, path: str) -> None:
        super().sync_directory(path)
        self._entries[path] = {e.name: self._file(e.inode()) for e in os.scandir(path) if e.is_file()}

    def _file(self, inode: int) -> int:
        return self._files.get(inode, -inode)

    def lose_power(self, root: str, keeps: Callable[[], bool]) -> None:
        for folder, _, names in os.walk(root):
            synced = self._entries.get(folder, {})
            now = {name: self._file(os.stat(os.path.join(folder, name)).st_ino) for name in names}
            for name in sorted({*synced, *now}):
                path = os.path.join(folder, name)
                file = now.get(name) if now.get(name) == synced.get(name) or keeps() else synced.get(name)
                if file is None:
                    if name in now:
                        os.unlink(path)
                elif file == now.get(name):
                    self._lose_content(path, file, keeps)
                else:
                    _put_back(path, self._contents.get(file, b""))

    def _lose_content(self, path: str, file: int, keeps: Callable[[], bool]) -> None:
        with open(path, "rb") as stream:
            now = stream.read()
        synced = self._contents.get(file, b"")
        if synced != now and not keeps():
            # The length came through, the bytes did not: or neither did.
            _put_back(path, synced + bytes(max(0, len(now) - len(synced))) if keeps() else synced)


def _put_back(path: str, content: bytes) -> None:
    with open(path + ".old", "wb") as stream:
        stream.write(content)
    os.rename(path + ".old", path)


class FullDisk(Disk):
    """Takes `free_bytes` more; then ENOSPC, after having written what fits."""

    def __init__(self, free_bytes: int) -> None:
        self.free_bytes = free_bytes

    def write(self, descriptor: int, data: bytes | memoryview, offset: int) -> None:
        fits = min(len(data), self.free_bytes)
        super().write(descriptor, memoryview(data)[:fits], offset)
        self.free_bytes -= fits
        if fits < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class FailingSyncDisk(Disk):
    """Every sync of a file fails once `is_failing` is set."""

    is_failing = False

    def sync(self, descriptor: int) -> None:
        if self.is_failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().sync(descriptor)

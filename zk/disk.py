"""Every call by which the local journal changes the disk, in one place: so that tests can stop or starve each of them.

Also what makes a change durable: a file is synced before it gets its name, a directory after it got or lost one.
"""

from __future__ import annotations

import os


class Disk:
    """The real disk. All calls raise OSError."""

    def create(self, path: str) -> int:
        """Return a descriptor of a new, empty file, for writing; an existing one is emptied."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)

    def write(self, descriptor: int, data: bytes | memoryview, offset: int) -> None:
        """Write all of `data` at `offset`."""
        view = memoryview(data)
        while view:
            count = os.pwrite(descriptor, view, offset)
            view, offset = view[count:], offset + count

    def truncate(self, descriptor: int, size: int) -> None:
        os.ftruncate(descriptor, size)

    def sync(self, descriptor: int) -> None:
        """Make a file's bytes and length durable."""
        os.fdatasync(descriptor)

    def rename(self, old: str, new: str) -> None:
        os.rename(old, new)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def make_directory(self, path: str) -> None:
        """Make a directory with its parents, durably, readable by its owner only; nothing if it is there."""
        if os.path.isdir(path):
            return
        parent = os.path.dirname(os.path.abspath(path))
        self.make_directory(parent)
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            if not os.path.isdir(path):
                raise
        self.sync_directory(parent)

    def sync_directory(self, path: str) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def replace_file(self, path: str, *pieces: bytes) -> None:
        """Make `pieces` the durable content of `path`, wholly or not at all; the directory must be there."""
        partial = path + PARTIAL_SUFFIX
        descriptor = self.create(partial)
        try:
            try:
                offset = 0
                for piece in pieces:
                    self.write(descriptor, piece, offset)
                    offset += len(piece)
                self.sync(descriptor)
            finally:
                os.close(descriptor)
            self.rename(partial, path)
        except OSError:
            self._discard(partial)
            raise
        self.sync_directory(os.path.dirname(path))

    def _discard(self, path: str) -> None:
        try:
            self.unlink(path)
        except OSError:
            return  # a file that is not finished never counts; the next `lead` takes it away


PARTIAL_SUFFIX = ".partial"

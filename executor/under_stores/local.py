"""Local and mounted directories: a walk, and plain positional reads.

Fingerprint: size, mtime_ns, ctime_ns and inode, looked at after the bytes were read: what changed a file before that
also changed its ctime. The device number is left out, since one mounted file system has another on each host.

Symlinks are followed; one that leads back to a directory above itself is skipped with a warning, and so is
whatever is neither file nor directory.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from stoker.executor.manifest_format import FileRow
from stoker.executor.under_stores.base import (
    READING_BYTES_MAX,
    Outcome,
    Piece,
    UnderStoreError,
    Warn,
    changed,
    check_pieces,
    one_line,
    unreadable,
)

_TOKEN = struct.Struct("<qqqQ")  # size, mtime_ns, ctime_ns, inode
# A path may have become a pipe since it was listed; opening that must not wait for a writer.
_NO_FILE_ERRORS = frozenset({errno.ESPIPE, errno.ENXIO, errno.EISDIR})
_OPEN_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK


class _Directory(NamedTuple):
    path: str  # absolute
    prefix: str  # of the files in it: "" or "a/b/"
    ancestors: tuple[tuple[int, int], ...]  # (device, inode) of itself and of all above it


class LocalStore:
    """The files under one directory, or one file."""

    def __init__(self, path: str) -> None:
        """`path` is absolute; nothing is looked at yet."""
        assert path.startswith("/"), path
        self._root = os.path.normpath(path)

    def list(self, warn: Warn) -> Iterator[FileRow]:
        found = self._stat_root()
        if stat.S_ISREG(found.st_mode):
            yield _row(os.path.basename(self._root), found)
            return
        if not stat.S_ISDIR(found.st_mode):
            raise UnderStoreError(f"{self._root} is neither a directory nor a regular file")
        todo = [_Directory(self._root, "", ((found.st_dev, found.st_ino),))]
        while todo:
            directory = todo.pop()
            for name, entry_stat in _scan(directory, warn):
                if not stat.S_ISDIR(entry_stat.st_mode):
                    yield _row(directory.prefix + name, entry_stat)
                    continue
                identity = (entry_stat.st_dev, entry_stat.st_ino)
                if identity in directory.ancestors:
                    warn(f"skipped {directory.path}/{name}: a symlink to a directory above itself")
                    continue
                todo.append(
                    _Directory(
                        f"{directory.path}/{name}",
                        f"{directory.prefix}{name}/",
                        (*directory.ancestors, identity),
                    )
                )

    def read(
        self, pieces: Sequence[Piece], *, urgent: bool = False, held_bytes_max: int = READING_BYTES_MAX
    ) -> LocalReading:
        check_pieces(pieces)
        return LocalReading(os.path.dirname(self._root) if os.path.isfile(self._root) else self._root, pieces)

    def _stat_root(self) -> os.stat_result:
        try:
            return os.stat(self._root)
        except FileNotFoundError as error:
            raise UnderStoreError(
                f"{self._root} is not there on this host; a file:// source must be mounted under the same path on "
                "every scheduler and agent"
            ) from error
        except OSError as error:
            raise UnderStoreError(f"cannot look at {self._root}: {error.strerror}") from error


class LocalReading:
    """Reads in the order asked for, in the caller's thread, into one buffer that each step uses again."""

    is_immediate = True

    def __init__(self, root: str, pieces: Sequence[Piece]) -> None:
        self._root = root
        self._pieces = iter(enumerate(pieces))
        self._buffer = memoryview(bytearray(max((p.stop - p.start for p in pieces), default=0)))
        self._cancelled = threading.Event()

    def __iter__(self) -> LocalReading:
        return self

    def __next__(self) -> tuple[int, Outcome]:
        if self._cancelled.is_set():
            raise StopIteration
        index, piece = next(self._pieces)
        return index, self._read(piece)

    def wait(self, timeout_ms: float) -> bool:
        return True

    def cancel(self) -> None:
        self._cancelled.set()

    def hurry(self, numbers: Sequence[int]) -> None:
        return  # one after the other, each soon

    def _read(self, piece: Piece) -> Outcome:
        view = self._buffer[: piece.stop - piece.start]
        try:
            fd = os.open(f"{self._root}/{piece.path}", _OPEN_FLAGS)
            try:
                count = os.preadv(fd, [view], piece.start)
                while 0 < count < len(view):
                    more = os.preadv(fd, [view[count:]], piece.start + count)
                    if more == 0:
                        break
                    count += more
                found = os.fstat(fd)
            finally:
                os.close(fd)
        except (FileNotFoundError, NotADirectoryError):
            return changed(piece, "was deleted")
        except OSError as error:
            if error.errno in _NO_FILE_ERRORS:
                return changed(piece, "became something that is no file")
            return unreadable(piece, error.strerror or str(error))
        if _token(found) != piece.token or count != len(view):
            return changed(piece, _difference(piece, found))
        return view


def _scan(directory: _Directory, warn: Warn) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the files and directories of one directory, symlinks followed."""
    try:
        with os.scandir(directory.path) as entries:
            for entry in entries:
                _check_name(directory, entry.name)
                try:
                    found = entry.stat()
                except FileNotFoundError:
                    if entry.is_symlink():
                        warn(f"skipped {entry.path}: a symlink to nothing")
                    continue  # else deleted while we looked
                if stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode):
                    yield entry.name, found
                else:
                    warn(f"skipped {entry.path}: {_kind(found.st_mode)}, not a file")
    except FileNotFoundError:
        return  # deleted while we looked
    except OSError as error:
        raise UnderStoreError(
            one_line(f"cannot list {error.filename or directory.path}: {error.strerror}")
        ) from error


def _check_name(directory: _Directory, name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise UnderStoreError(
            one_line(
                f"the name {os.fsencode(name)!r} in {directory.path} is not UTF-8: rename it or leave it out"
            )
        ) from error


def _kind(mode: int) -> str:
    kinds = (
        (stat.S_ISFIFO, "a named pipe"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a character device"),
    )
    return next((text for is_kind, text in kinds if is_kind(mode)), "a block device")


def _token(found: os.stat_result) -> bytes:
    return _TOKEN.pack(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


def _row(path: str, found: os.stat_result) -> FileRow:
    return FileRow(path, found.st_size, found.st_mtime_ns, _token(found))


def _difference(piece: Piece, found: os.stat_result) -> str:
    if found.st_size != piece.size:
        return f"changed its size from {piece.size} to {found.st_size} bytes"
    return "was changed"

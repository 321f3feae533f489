"""A leader's scratch directory: what can be made again, this process' own while it leads, gone with it.

At a place that nobody named (a path by user, host and port below the temporary directory) two things are looked after that
an operator's own directory needs no help with: somebody else's directory is never used, and what a killed scheduler left
behind at another port is removed by the next one that leads. A lock on the directory itself says who lives.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile

PREFIX = f"stoker-scheduler-{os.getuid()}-"


def public_path(host: str, port: int) -> str:
    """Return the place for the scheduler that listens on `host` and `port`, which nobody else can have meanwhile."""
    return os.path.join(tempfile.gettempdir(), f"{PREFIX}{host or '0.0.0.0'}-{port}".replace(":", "_"))


class Scratch:
    """Make the directory and hold it until `close`.

    :raises OSError: it cannot be made, or is another user's or process'.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock = -1
        if os.path.exists(path) and not os.path.isdir(path):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        os.makedirs(path, mode=0o700, exist_ok=True)
        if os.path.basename(path).startswith(PREFIX):
            self._lock = _locked(path)
            if self._lock < 0:
                raise PermissionError(errno.EPERM, "it is in use, or belongs to another user")
            _sweep(os.path.dirname(path))

    def within(self, name: str) -> str:
        return os.path.join(self.path, name)

    def close(self) -> None:
        """Remove the directory, if nothing is in it that is not ours; idempotent."""
        with contextlib.suppress(OSError):
            os.rmdir(self.path)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _locked(path: str) -> int:
    """Return a descriptor that holds the lock of our directory `path`; -1: it is not ours, or held already."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return -1
    try:
        if os.fstat(descriptor).st_uid == os.getuid():
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return -1


def _sweep(directory: str) -> None:
    """Remove what dead schedulers of this user left."""
    with contextlib.suppress(OSError):
        for name in os.listdir(directory):
            path = os.path.join(directory, name)
            lock = _locked(path) if name.startswith(PREFIX) else -1
            if lock >= 0:
                shutil.rmtree(path, ignore_errors=True)
                os.close(lock)

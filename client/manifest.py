"""The manifests of this host's clients: downloaded once, mapped by all of a user's processes.

They lie in a private directory as files named by digest: made whole under another name, then renamed, so a file that is
there is complete. A lock file a digest keeps many workers from downloading the same one at once. What nobody used for
long, or what makes the directory too large, goes; a mapping outlives its file.

This module knows nothing of datasets: a digest, and how to get the blob behind it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator

from stoker.executor.manifest import Manifest, ManifestError, map_manifest, open_bundle, write_mapped

CACHE_BYTES_MAX = 8 * 1024**3
CACHE_AGE_MS_MAX = 7 * 86_400_000
LOCK_PATIENCE_MS = (
    60_000  # a download by another process; then this one downloads too: twice the work, no harm
)
LOCK_POLL_MS = 20
LEFTOVER_AGE_MS = 3_600_000  # a temporary or lock file of a process that died

Read = Callable[[int], bytes]
Download = Callable[[Callable[[Read], None]], None]  # calls what it is given with the body's `read`


def default_directory() -> str:
    """Return /tmp/stoker-<uid>; the executors' sockets lie there too."""
    return f"/tmp/stoker-{os.geteuid()}"


class ManifestCache:
    """Digest -> mapped manifest. Used by any thread of any process of one user."""

    def __init__(
        self,
        directory: str | None = None,
        *,
        bytes_max: int = CACHE_BYTES_MAX,
        lock_patience_ms: int = LOCK_PATIENCE_MS,
    ) -> None:
        self._wanted_directory = directory or default_directory()
        self._directory = ""
        self._bytes_max = bytes_max
        self._lock_patience_ms = lock_patience_ms

    def get(self, digest: str, download: Download) -> Manifest:
        """Return the manifest whose root has this SHA-256, downloading it if no process of this host has.

        :raises ManifestError: what was downloaded is damaged, or is another manifest.
        """
        path = os.path.join(self._prepare(), digest)
        found = _map(path, digest)
        if found is not None:
            return found
        with _locked(path + ".lock", self._lock_patience_ms):
            found = _map(path, digest)
            if found is None:
                self._collect(path)
                download(lambda read: _write(path, digest, read))
                found = _map(path, digest)
        if found is None:
            raise ManifestError(f"manifest {digest} vanished from {self._directory} while it was mapped")
        return found

    def find(self, digest: str) -> Manifest | None:
        """Return the manifest if it is in the cache."""
        return _map(os.path.join(self._prepare(), digest), digest)

    def _prepare(self) -> str:
        """Return the directory, made and found private; another user's is never trusted."""
        if self._directory and os.path.isdir(self._directory):
            return self._directory
        base = self._wanted_directory
        wanted = os.path.join(base, "manifests")
        try:
            for each, mode in (
                (base, 0o755),
                (wanted, 0o700),
            ):  # other users' clients look for sockets in `base`
                with contextlib.suppress(FileExistsError):
                    os.mkdir(each, mode)
            if not (_is_ours(base, 0o022) and _is_ours(wanted, 0o077)):
                raise PermissionError(f"{wanted} is not this user's alone")
            self._directory = wanted
        except OSError:
            # This process' own, and gone with it: others cannot find it, so it would only pile up.
            self._directory = tempfile.mkdtemp(prefix="stoker-manifests-")
            weakref.finalize(self, _remove, self._directory, os.getpid())
        return self._directory

    def _collect(self, kept: str) -> None:
        """Remove what is old, and the least recently used beyond the limit of bytes."""
        now = time.time()
        files = []
        for entry in os.scandir(self._directory):
            with contextlib.suppress(FileNotFoundError):
                status = entry.stat(follow_symlinks=False)
                age_ms = (now - status.st_mtime) * 1000
                is_manifest = "." not in entry.name
                if age_ms > (CACHE_AGE_MS_MAX if is_manifest else LEFTOVER_AGE_MS):
                    os.unlink(entry.path)
                elif is_manifest:
                    files.append((status.st_mtime, status.st_size, entry.path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self._bytes_max:
                return
            if path != kept:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
                total -= size


def _write(path: str, digest: str, read: Read) -> None:
    root, get_part = open_bundle(read)
    temporary = f"{path}.new-{os.getpid()}-{threading.get_ident()}"
    try:
        write_mapped(root, get_part, temporary)
        written = map_manifest(temporary)
        if written.digest != digest:
            raise ManifestError(f"the scheduler sent manifest {written.digest} for {digest}")
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _map(path: str, digest: str) -> Manifest | None:
    """Return the mapped manifest, None if the file is not there; a damaged one is removed, to be downloaded again."""
    try:
        found = map_manifest(path)
        os.utime(path)  # for the collection
    except FileNotFoundError:
        return None
    except ManifestError:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        return None
    if found.digest != digest:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        return None
    return found


def _remove(directory: str, pid: int) -> None:
    if os.getpid() == pid:  # a forked child uses it too
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def _locked(path: str, patience_ms: int) -> Iterator[None]:
    """Hold the lock, or go on without it after `patience_ms`: whoever holds it may be stopped for ever."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + patience_ms / 1000
    try:
        while not _try_lock(fd) and time.monotonic() < deadline:
            time.sleep(LOCK_POLL_MS / 1000)
        yield
    finally:
        fcntl.flock(
            fd, fcntl.LOCK_UN
        )  # a child forked meanwhile has the descriptor too: closing would not unlock
        os.close(fd)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_ours(path: str, forbidden_mode: int) -> bool:
    status = os.lstat(path)
    is_private = not status.st_mode & forbidden_mode
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and is_private

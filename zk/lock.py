"""The lock of a local journal's directory: one process at a time leads it, or restores into it. It ends with its process."""

from __future__ import annotations

import fcntl
import os
import time

from stoker.zk.errors import Locked

_RETRY_S = 0.05
_WORDS_BYTES_MAX = 4096


def take_lock(directory: str, owner: str, *, wait_ms: int = 0) -> int:
    """Return a descriptor that holds the lock until it is closed, and say in the file who `owner` is.

    :raises Locked: another process has it, also after `wait_ms`.
    """
    lock = os.open(os.path.join(directory, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _wait(lock, directory, time.monotonic() + wait_ms / 1000)
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()} {owner}\n".encode(), 0)
    except BaseException:
        os.close(lock)
        raise
    return lock


def _wait(lock: int, directory: str, deadline_s: float) -> None:
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() >= deadline_s:
                words = os.pread(lock, _WORDS_BYTES_MAX, 0).decode(errors="replace").strip()
                pid, _, owner = words.partition(" ")
                raise Locked(
                    f"the journal in {directory} is open in process {pid or 'unknown'} ({owner or 'unknown'}): "
                    "stop that one first, or choose another directory"
                ) from error
        time.sleep(_RETRY_S)


def lock_holder(directory: str) -> str:
    """Return who has the directory locked, in its own words; "" if nobody does, as far as this machine tells.

    Looks on only: to try the lock would keep out, for that moment, a scheduler that starts.
    """
    try:
        with open(os.path.join(directory, "lock"), encoding="utf-8", errors="replace") as file:
            words = file.read(_WORDS_BYTES_MAX).strip()
            inode = str(os.fstat(file.fileno()).st_ino)
        with open("/proc/locks", encoding="ascii") as lines:
            # Each is "number: FLOCK ADVISORY WRITE pid major:minor:inode start end".
            locks = [line.split() for line in lines]
    except OSError:
        return ""
    held = {(lock[4], lock[5].rpartition(":")[2]) for lock in locks if lock[1] == "FLOCK" and len(lock) > 5}
    return f"process {words}" if (words.partition(" ")[0], inode) in held else ""

"""What the kernel says an executor's memory is: the pages of its block files, and its processes' own pages."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import NamedTuple

import psutil

BLOCK_FILE = "/memfd:stoker-"
MESSAGE_FILE = "/memfd:stoker-message"
SAMPLE_INTERVAL_S = 0.1


class Taken(NamedTuple):
    """Bytes."""

    blocks: int  # of all block files, kept, leaving and scratch, each counted once
    private: int  # anonymous pages of keeper, data server and fillers

    @property
    def total(self) -> int:
        return self.blocks + self.private


def executor_memory(keeper_pid: int) -> Taken:
    """Look now; processes that end meanwhile count as nothing."""
    pids = [keeper_pid]
    with contextlib.suppress(psutil.NoSuchProcess):
        pids += [child.pid for child in psutil.Process(keeper_pid).children(recursive=True)]
    files: dict[tuple[int, int], int] = {}
    for pid in pids:
        files |= _block_files(pid)
    return Taken(sum(files.values()), sum(map(_anonymous, pids)))


def _block_files(pid: int) -> dict[tuple[int, int], int]:
    """Return the bytes that each block file takes, by what tells files apart."""
    found = {}
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            path = f"/proc/{pid}/fd/{name}"
            with contextlib.suppress(OSError):
                if os.readlink(path).startswith(BLOCK_FILE):
                    seen = os.stat(path)
                    found[seen.st_dev, seen.st_ino] = seen.st_blocks * 512
    return found


def _anonymous(pid: int) -> int:
    with contextlib.suppress(OSError):
        with open(f"/proc/{pid}/smaps_rollup") as file:
            for line in file:
                if line.startswith("Pss_Anon:"):
                    return int(line.split()[1]) * 1024
    return 0


class Watch:
    """Looks at executors all the time, on a thread; `highest` is the most that each took at once. A context manager."""

    def __init__(self, keeper_pids: list[int]) -> None:
        self.samples = 0
        self.highest: dict[int, Taken] = dict.fromkeys(keeper_pids, Taken(0, 0))
        self.highest_blocks: dict[int, int] = dict.fromkeys(keeper_pids, 0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(SAMPLE_INTERVAL_S):
            self.samples += 1
            for pid, highest in self.highest.items():
                taken = executor_memory(pid)
                self.highest[pid] = max(highest, taken, key=lambda each: each.total)
                self.highest_blocks[pid] = max(self.highest_blocks[pid], taken.blocks)

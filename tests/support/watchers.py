"""A reader in a process of its own that goes on until it is told to stop, compares every byte, and times every read."""

from __future__ import annotations

import ctypes
import multiprocessing
import multiprocessing.connection
import os
import random
import time
from pathlib import Path
from types import TracebackType

from support.waiting import DEADLINE_S, wait_until

CONTEXT = multiprocessing.get_context("spawn")
PAUSE_S = 0.002  # between reads: others need the machine too


class Figures(ctypes.Structure):
    """What the process tells while it runs."""

    _fields_ = (("reads", ctypes.c_uint64), ("slowest_s", ctypes.c_double), ("begun_s", ctypes.c_double))


class Watcher:
    """Reads random ranges of `stoker://name` whose bytes are those of the files below `root`.

    A context manager: leaving it stops the process and asserts that no read failed or was wrong.
    """

    def __init__(self, url: str, name: str, root: Path, *, transport: str, seed: int = 0) -> None:
        self._figures = CONTEXT.Value(Figures)
        self._ending = CONTEXT.Event()
        self._result, its = CONTEXT.Pipe(duplex=False)
        arguments = (url, name, str(root), transport, seed, self._figures, self._ending, its)
        self._process = CONTEXT.Process(target=_watch, args=arguments, daemon=True)
        self._process.start()
        its.close()

    @property
    def reads(self) -> int:
        return int(self._figures.reads)

    @property
    def slowest_s(self) -> float:
        """Return how long the slowest read took since `forget`, the one under way included."""
        begun_s = self._figures.begun_s
        under_way_s = time.monotonic() - begun_s if begun_s else 0.0
        return max(float(self._figures.slowest_s), under_way_s)

    def forget(self) -> None:
        self._figures.slowest_s = 0.0

    def wait_reads(self, count: int, timeout_s: float = DEADLINE_S) -> None:
        """Wait until it has done `count` more reads."""
        goal = self.reads + count

        def is_done() -> bool:
            assert self._process.is_alive(), self._said()
            return self.reads >= goal

        wait_until(is_done, f"{count} more reads", timeout_s)

    def _said(self) -> str:
        return self._result.recv() if self._result.poll(DEADLINE_S) else "it did not end"

    def __enter__(self) -> Watcher:
        try:
            self.wait_reads(1)
        except BaseException:
            self._process.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        said = self._said()
        self._process.join(DEADLINE_S)
        self._process.kill()
        self._result.close()
        assert not said, said


def _watch(
    url: str,
    name: str,
    root: str,
    transport: str,
    seed: int,
    figures: Figures,
    ending: object,
    result: multiprocessing.connection.Connection,
) -> None:
    os.environ.update(STOKER_URL=url, STOKER_TRANSPORT=transport)
    try:
        result.send(_read_until(name, root, seed, figures, ending))
    except BaseException as error:
        result.send(f"{type(error).__name__}: {error}")


def _read_until(name: str, root: str, seed: int, figures: Figures, ending: object) -> str:
    from stoker.client.api import Client

    expected = {str(p.relative_to(root)): p.read_bytes() for p in Path(root).rglob("*") if p.is_file()}
    paths = sorted(path for path, data in expected.items() if data)
    dataset = Client().dataset(name)
    chance = random.Random(seed)
    while not ending.wait(PAUSE_S):  # type: ignore[attr-defined]
        path = chance.choice(paths)
        data = expected[path]
        start = chance.randrange(len(data))
        length = min(len(data) - start, chance.randrange(1, 200_000))
        figures.begun_s = begun_s = time.monotonic()
        got = dataset.read(path, start, length)
        figures.begun_s = 0.0
        figures.slowest_s = max(figures.slowest_s, time.monotonic() - begun_s)
        figures.reads += 1
        if got != data[start : start + length]:
            return f"{path}[{start}:{start + length}] differs"
    return ""

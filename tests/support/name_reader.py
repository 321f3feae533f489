"""A program that reads one path of a dataset over and over, while the dataset of that name becomes another one.

Each dataset in turn has its number in every byte of its files, so each read tells whose bytes it brought.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from typing import Any, NamedTuple

FILE = "a/file.bin"
OTHER = "b/other.bin"
FILE_BYTES = 300_000
ERRORS_MAX = 1_000
REPORT_TIMEOUT_S = 120


class Report(NamedTuple):
    """What the reader saw; times are CLOCK_MONOTONIC ns, which all processes of a host share."""

    last_began: dict[int, int]  # dataset number -> when the last read that brought its bytes began
    first_began: dict[int, int]
    errors: list[tuple[int, str]]  # when the read began, what it raised
    mixtures: int  # reads that brought bytes of two datasets


class NameReader:
    """The program, as a process. `transport` is its STOKER_TRANSPORT."""

    def __init__(self, url: str, name: str, transport: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._seen = context.Value("i", 0)
        self._held = context.Value("i", 0)
        self._stop = context.Event()
        self._answers: Any = context.Queue()
        arguments = (url, name, transport, self._seen, self._held, self._stop, self._answers)
        self._process = context.Process(target=_run, args=arguments, daemon=True)
        self._process.start()

    @property
    def seen(self) -> int:
        """The number of the dataset whose bytes the last good read brought."""
        return int(self._seen.value)

    @property
    def held(self) -> int:
        """How many blocks' descriptors it had after that read."""
        return int(self._held.value)

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def finish(self) -> Report:
        self._stop.set()
        report: Report = self._answers.get(timeout=REPORT_TIMEOUT_S)
        self._process.join(REPORT_TIMEOUT_S)
        return report

    def close(self) -> None:
        if self._process.is_alive():
            self._process.kill()
        self._process.join()


def _run(url: str, name: str, transport: str, seen: Any, held: Any, stop: Any, answers: Any) -> None:
    from stoker.client.filesystem import StokerFileSystem
    from stoker.client.session import Session

    session = Session((url,), transport=transport)
    filesystem = StokerFileSystem(url)
    filesystem._session = session
    ways = _ways(filesystem, f"{name}/{FILE}", f"{name}/{OTHER}")
    report = Report({}, {}, [], 0)
    turn = 0
    while not stop.is_set():
        turn += 1
        began = time.monotonic_ns()
        try:
            data = ways[turn % len(ways)]()
        except OSError as error:
            if len(report.errors) < ERRORS_MAX:
                report.errors.append((began, f"{type(error).__name__}: {error}"))
            continue
        number = data[0]
        if data != bytes([number]) * len(data) or not data:
            report = report._replace(mixtures=report.mixtures + 1)
        report.last_began[number] = max(began, report.last_began.get(number, 0))
        report.first_began.setdefault(number, began)
        seen.value, held.value = number, session.budget.count()
    answers.put(report)


def _ways(filesystem: Any, path: str, other: str) -> list[Callable[[], bytes]]:
    """Return the ways to read: all of them through one file system object."""

    def read_buffered() -> bytes:
        with filesystem.open(path) as file:
            return bytes(file.read())

    def read_raw() -> bytes:
        with filesystem.open(path, block_size=0) as file:
            buffer = bytearray(file.size)
            file.readinto(buffer)
            return bytes(buffer)

    def read_small() -> bytes:
        with filesystem.open(path, block_size=0) as file:
            return b"".join(file.read_at(1_000 * n, 500) for n in range(20))

    def cat() -> bytes:
        return b"".join(filesystem.cat([path, other]).values())

    return [read_buffered, read_raw, lambda: filesystem.cat_file(path), read_small, cat]

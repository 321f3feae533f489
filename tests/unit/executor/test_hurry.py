"""A reader comes to wait for what a load fetches anyway: it is fetched first, from the keeper down to the store's requests."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from stoker.executor.fill_job import FillJob, FillOrder, Turns
from stoker.executor.peer import Hung
from stoker.executor.under_store import Outcome, Piece
from stoker.executor.under_stores.remote import REQUESTS_MAX, Health, RemoteReading
from support.fillers import Block, Listed

DEADLINE_S = 60
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    thread = threading.Thread(target=made.run_forever, daemon=True)
    thread.start()
    yield made
    made.call_soon_threadsafe(made.stop)
    thread.join(DEADLINE_S)
    made.close()


def settle(loop: asyncio.AbstractEventLoop) -> None:
    """Let the loop do all that it can do by now."""

    async def turns() -> None:
        for _ in range(200):
            await asyncio.sleep(0)

    asyncio.run_coroutine_threadsafe(turns(), loop).result(DEADLINE_S)


def pieces(count: int, length: int = 1) -> list[Piece]:
    return [Piece(f"f{i}", 0, length, length, 0, b"t") for i in range(count)]


class Gate:
    """A store that notes what it is asked for, and answers once it is opened."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.asked: list[str] = []
        self._loop = loop
        self._opened = asyncio.Event()

    async def fetch(self, piece: Piece) -> bytes:
        self.asked.append(piece.path)
        await self._opened.wait()
        return bytes(piece.stop - piece.start)

    def open(self) -> None:
        self._loop.call_soon_threadsafe(self._opened.set)


def test_a_request_that_waits_for_its_turn_goes_before_the_others(loop: asyncio.AbstractEventLoop) -> None:
    gate = Gate(loop)
    reading = RemoteReading(loop, Health(), gate.fetch, pieces(3 * REQUESTS_MAX))
    settle(loop)
    assert len(gate.asked) == REQUESTS_MAX
    reading.hurry([3 * REQUESTS_MAX - 1, 0])  # one of them was asked for already
    settle(loop)
    gate.open()
    assert len(list(reading)) == 3 * REQUESTS_MAX
    assert gate.asked[REQUESTS_MAX] == f"f{3 * REQUESTS_MAX - 1}"
    assert len(set(gate.asked)) == 3 * REQUESTS_MAX, "none twice"


def test_a_piece_that_finds_no_room_yet_goes_before_the_others(loop: asyncio.AbstractEventLoop) -> None:
    gate = Gate(loop)
    reading = RemoteReading(loop, Health(), gate.fetch, pieces(12, MIB), held_bytes_max=4 * MIB)
    settle(loop)
    assert gate.asked == ["f0", "f1", "f2", "f3"]
    reading.hurry([9, 11])
    settle(loop)
    assert len(gate.asked) == 4, "no more is held than may be"
    gate.open()
    assert len(list(reading)) == 12
    assert gate.asked[4:6] == ["f9", "f11"] and gate.asked[6] == "f4"


def test_a_hurry_that_comes_too_late_is_nothing(loop: asyncio.AbstractEventLoop) -> None:
    gate = Gate(loop)
    gate.open()
    reading = RemoteReading(loop, Health(), gate.fetch, pieces(5))
    assert len(list(reading)) == 5
    reading.hurry([0, 4])
    settle(loop)
    assert len(gate.asked) == 5


class NotedReading:
    """Brings zeros, in order; notes what was hurried. `at(n)` is called before the nth step."""

    is_immediate = True

    def __init__(self, pieces: Sequence[Piece], at: Any) -> None:
        self.hurried: list[int] = []
        self._at = at
        self._steps = iter(enumerate(pieces))

    def __iter__(self) -> NotedReading:
        return self

    def __next__(self) -> tuple[int, Outcome]:
        number, piece = next(self._steps)
        self._at(number)
        return number, bytes(piece.stop - piece.start)

    def wait(self, timeout_ms: float) -> bool:
        return True

    def cancel(self) -> None: ...

    def hurry(self, numbers: Sequence[int]) -> None:
        self.hurried += numbers


@pytest.mark.parametrize("moment", ["before it begins", "while it reads"])
def test_a_job_passes_it_on_to_the_files_that_are_meant(tmp_path: pathlib.Path, moment: str) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for number in range(20):
        (data / f"{number:02}").write_bytes(bytes(3_000))
    listed = Listed(str(data), tmp_path / "mapped")
    offset, size = listed.manifest.extent(listed.row("07"))
    readings: list[NotedReading] = []
    told: list[Any] = []

    class Store:
        def read(self, pieces: Sequence[Piece], **_: Any) -> NotedReading:
            readings.append(NotedReading(pieces, at))
            return readings[-1]

    def at(number: int) -> None:
        if number == 2 and moment == "while it reads":
            job.hurry([(offset, offset + size)])

    with contextlib.closing(Block(listed, 0)) as block:

        def send(message: dict[str, Any]) -> None:
            told.append(message["extents"])
            block.take(message)

        length = listed.manifest.block_length(0)
        job = FillJob(
            FillOrder(1, 0, ((0, length),), ()),
            listed.manifest,
            store=lambda: Store(),  # type: ignore[arg-type,return-value]
            connect=lambda address: pytest.fail("there is no peer"),
            hung=Hung(),
            turns=Turns(),
            fd=block.fd,
            send=send,
        )
        if moment == "before it begins":
            job.hurry([(offset, offset + size)])
        job.run()
        job.hurry([(offset, offset + size)])  # it is over: nothing
    assert [reading.hurried for reading in readings] == [[7]]
    assert any(start <= offset < stop for start, stop in told[0]) and len(told) > 1, (
        "told at once, not at the end"
    )

"""What readings hold of an under store's bytes: no more than they may, whatever the store sends."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Sequence

from stoker.executor.under_store import PIECE_BYTES_MAX, Outcome, Piece
from stoker.executor.under_stores import s3
from stoker.executor.under_stores.generic import COPIES, GenericReading

DEADLINE_S = 60
MIB = 1024 * 1024


def pieces(count: int, length: int) -> list[Piece]:
    return [Piece(f"f{i}", 0, length, length, 0, b"t") for i in range(count)]


class Batches:
    """Reads zeros, and counts the bytes that were asked for and not yet taken."""

    def __init__(self) -> None:
        self.held = self.highest = 0
        self._lock = threading.Lock()

    def read(self, asked: Sequence[Piece]) -> list[Outcome]:
        with self._lock:
            self.held += sum(piece.stop - piece.start for piece in asked)
            self.highest = max(self.highest, self.held)
        return [bytes(piece.stop - piece.start) for piece in asked]

    def take(self, outcome: Outcome) -> None:
        assert isinstance(outcome, bytes)
        with self._lock:
            self.held -= len(outcome)


def highest_of(asked: Sequence[Piece], held_bytes_max: int) -> int:
    batches = Batches()
    with concurrent.futures.ThreadPoolExecutor(4) as workers:
        reading = GenericReading(workers, batches.read, asked, held_bytes_max=held_bytes_max)
        seen = set()
        for number, outcome in reading:
            seen.add(number)
            batches.take(outcome)
    assert seen == set(range(len(asked)))
    return batches.highest


def test_a_library_that_may_copy_is_given_half_the_room() -> None:
    for room in (8 * MIB, 16 * MIB, 64 * MIB):
        assert highest_of(pieces(30, PIECE_BYTES_MAX), room) <= room // COPIES + PIECE_BYTES_MAX
        assert highest_of(pieces(3_000, 20_000), room) <= room // COPIES + PIECE_BYTES_MAX


def test_one_piece_is_always_read() -> None:
    assert highest_of(pieces(3, PIECE_BYTES_MAX), PIECE_BYTES_MAX) == PIECE_BYTES_MAX


class Body:
    """An answer that comes in chunks; `given` counts what was taken of it."""

    def __init__(self, data: bytes, chunk_bytes: int) -> None:
        self.given = 0
        self._data = data
        self._chunk_bytes = chunk_bytes

    async def read(self, amount: int) -> bytes:
        chunk = self._data[self.given : self.given + min(amount, self._chunk_bytes)]
        self.given += len(chunk)
        return chunk


def test_of_a_whole_object_sent_in_spite_of_the_range_only_the_piece_is_held() -> None:
    data = bytes(range(256)) * 40
    piece = Piece("f", 1_000, 3_000, len(data), 0, b"t")
    for chunk_bytes in (1, 7, 999, 1_000, 1_001, 5_000, 100_000):
        body = Body(data, chunk_bytes)
        assert asyncio.run(s3._take(piece, body, skip=1_000)) == data[1_000:3_000]
        assert body.given <= 3_000 + chunk_bytes, "what lies beyond is not waited for"
        assert asyncio.run(s3._take(piece, Body(data[1_000:3_000], chunk_bytes), skip=0)) == data[1_000:3_000]


def test_an_answer_that_ends_early_is_told_by_its_length() -> None:
    piece = Piece("f", 0, 100, 100, 0, b"t")
    assert asyncio.run(s3._take(piece, Body(b"x" * 60, 7), skip=0)) == b"x" * 60

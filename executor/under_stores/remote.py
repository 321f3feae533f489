"""Concurrent reads over a network, on fsspec's event loop thread: how many at once, how often again, when to give up.

A store gives one coroutine that fetches one piece; all else is here, the same for every store:

 - at most REQUESTS_MAX requests of a store are under way, those that readers wait for (*urgent*) go first, and a reading
   holds no more than it may of what was asked for and not yet taken, so a slow caller slows the store down and not the
   memory up;
 - a *transient* error (a time-out, a cut connection, 429, 5xx) is tried again, ATTEMPTS_MAX times in all, with a growing
   random pause; anything else fails the piece at once;
 - a store that lets GIVE_UP_AFTER pieces in a row fail that way is taken for down: until it answers again, each
   further piece is tried once, so a dead store costs seconds and not hours.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import queue
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from typing import Any, Generic, TypeVar

from stoker.executor.under_stores.base import (
    READING_BYTES_MAX,
    Outcome,
    Piece,
    ReadFailure,
    check_pieces,
    unreadable,
)

REQUESTS_MAX = 64  # of one store, all readings together
REQUEST_BYTES = 16 * 1024  # what a request takes beside its bytes, or instead: it counts for so many at least
ATTEMPTS_MAX = 5
BACKOFF_MS_MIN = 100
BACKOFF_MS_MAX = 5_000
GIVE_UP_AFTER = 8
CONNECT_TIMEOUT_MS = 10_000
SILENCE_TIMEOUT_MS = 30_000  # without a byte

_T = TypeVar("_T")
Fetch = Callable[[Piece], Awaitable[bytes | bytearray | ReadFailure]]


class Transient(Exception):
    """This attempt failed, another may not. `retry_after_ms`: the store asked for that pause."""

    def __init__(self, reason: str, retry_after_ms: int = 0) -> None:
        super().__init__(reason)
        self.retry_after_ms = retry_after_ms


class Turns:
    """Lets so many in at a time, and of those who wait the urgent first. Lives on the loop."""

    def __init__(self, turns_max: int) -> None:
        self._free = turns_max
        self._urgent: dict[object, asyncio.Future[None]] = {}  # by key, in order
        self._others: dict[object, asyncio.Future[None]] = {}

    @contextlib.asynccontextmanager
    async def turn(self, key: object, *, urgent: bool) -> AsyncIterator[None]:
        """Wait for a turn and have it; `key` is the waiter's own."""
        if self._free:
            self._free -= 1
        else:
            line = self._urgent if urgent else self._others
            mine = line[key] = asyncio.get_running_loop().create_future()
            try:
                await mine
            except asyncio.CancelledError:
                if not mine.cancelled():
                    self._pass_on()  # it had come, just then
                raise
        try:
            yield
        finally:
            self._pass_on()

    def hurry(self, key: object) -> None:
        """Who waits as `key` is urgent from here on; nothing, if nobody does."""
        waiting = self._others.pop(key, None)
        if waiting is not None:
            self._urgent[key] = waiting

    def _pass_on(self) -> None:
        for waiting in (self._urgent, self._others):
            while waiting:
                following = waiting.pop(next(iter(waiting)))
                if not following.done():
                    following.set_result(None)
                    return
        self._free += 1


class Health:
    """Whether the store answers at all; and the turns of its requests. Lives on the loop."""

    def __init__(self) -> None:
        self.turns = Turns(REQUESTS_MAX)
        self._lost_in_a_row = 0

    async def attempt(
        self,
        request: Callable[[], Awaitable[_T]],
        *,
        key: object = None,
        is_urgent: Callable[[], bool] = lambda: False,
    ) -> _T:
        """Return what `request` returns, tried again after each Transient; `key` names it to `turns`.

        :raises Transient: the last one.
        """
        key = object() if key is None else key
        attempt = 0
        while True:
            attempt += 1
            try:
                async with self.turns.turn(key, urgent=is_urgent()):
                    result = await request()
            except Transient as error:
                if attempt >= self._attempts():
                    self._lost_in_a_row += 1
                    raise
                await asyncio.sleep(pause_ms(attempt, error.retry_after_ms) / 1000)
                continue
            self._lost_in_a_row = 0
            return result

    def _attempts(self) -> int:
        return 1 if self._lost_in_a_row >= GIVE_UP_AFTER else ATTEMPTS_MAX


class Once(Generic[_T]):
    """A fact about a source that is asked for once and then known. Lives on the loop.

    All who wait share one request, and its failure: the next one asks again.
    """

    def __init__(self, ask: Callable[[], Coroutine[Any, Any, _T]]) -> None:
        self._ask = ask
        self._asking: asyncio.Task[_T] | None = None

    async def get(self) -> _T:
        asking = self._asking
        if asking is None or (asking.done() and (asking.cancelled() or asking.exception() is not None)):
            asking = self._asking = asyncio.ensure_future(self._ask())
        return await asyncio.shield(asking)


def pause_ms(attempt: int, asked_ms: int = 0) -> float:
    """Return the pause after failed attempt number `attempt`, from 1: doubling, random, at most BACKOFF_MS_MAX."""
    longest = min(BACKOFF_MS_MAX, BACKOFF_MS_MIN * 2 ** (attempt - 1))
    return max(random.uniform(longest / 2, longest), min(asked_ms, BACKOFF_MS_MAX))


def run(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, _T]) -> _T:
    """Run `work` on the loop's thread and wait for it; the caller is not on that thread."""
    return asyncio.run_coroutine_threadsafe(work, loop).result()


class RemoteReading:
    """See base.Reading: pieces come in the order in which they arrive."""

    is_immediate = False

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        health: Health,
        fetch: Fetch,
        pieces: Sequence[Piece],
        *,
        urgent: bool = False,
        held_bytes_max: int = READING_BYTES_MAX,
    ) -> None:
        check_pieces(pieces)
        self._loop = loop
        self._health = health
        self._fetch = fetch
        self._urgent = urgent
        self._hurried: set[int] = set()
        self._unfed = dict.fromkeys(range(len(pieces)))  # not asked for yet, in order
        self._pieces = pieces
        self._left = len(pieces)
        self._taken_bytes = 0
        self._arrived: queue.SimpleQueue[tuple[int, Outcome] | None] = queue.SimpleQueue()  # None: cancelled
        self._waited_for: tuple[int, Outcome] | None = None
        self._broken_by: BaseException | None = None
        self._room = held_bytes_max
        self._room_grew = asyncio.Event()
        self._feeding: concurrent.futures.Future[None] = asyncio.run_coroutine_threadsafe(self._feed(), loop)
        self._feeding.add_done_callback(self._end_if_broken)

    def __iter__(self) -> RemoteReading:
        return self

    def __next__(self) -> tuple[int, Outcome]:
        self._let_go()
        # Without a time-out: each piece arrives, since attempts are counted and every wait in them has one.
        if not self._left or not (self._waited_for or self._take(None)):
            if self._broken_by is not None:
                raise self._broken_by
            raise StopIteration
        arrived, self._waited_for = self._waited_for, None
        assert arrived is not None
        self._left -= 1
        piece = self._pieces[arrived[0]]
        self._taken_bytes = _weight(piece)
        return arrived

    def wait(self, timeout_ms: float) -> bool:
        self._let_go()
        if not self._left or self._waited_for:
            return True
        try:
            self._take(timeout_ms / 1000)
        except queue.Empty:
            return False
        return True

    def _take(self, timeout_s: float | None) -> bool:
        """Wait for the next arrival; return whether there was one, and not the end. :raises queue.Empty: not in time."""
        self._waited_for = self._arrived.get(timeout=timeout_s)
        if self._waited_for is None:
            self._left = 0
        return self._waited_for is not None

    def _let_go(self) -> None:
        """What was taken last is not needed any more."""
        if self._taken_bytes:
            self._loop.call_soon_threadsafe(self._give_room, self._taken_bytes)
            self._taken_bytes = 0

    def cancel(self) -> None:
        self._feeding.cancel()
        self._arrived.put(None)

    def hurry(self, numbers: Sequence[int]) -> None:
        self._loop.call_soon_threadsafe(self._hurry, numbers)

    def _hurry(self, numbers: Sequence[int]) -> None:
        self._hurried.update(numbers)
        first = {number: None for number in numbers if number in self._unfed}
        if first:
            self._unfed = first | {number: None for number in self._unfed if number not in first}
        for number in numbers:
            self._health.turns.hurry((self, number))

    def _end_if_broken(self, feeding: concurrent.futures.Future[None]) -> None:
        """A fetch raised what no store should: a mistake of ours, which ends the reading and not the wait for it."""
        if not feeding.cancelled() and feeding.exception() is not None:
            self._broken_by = feeding.exception()
            self._arrived.put(None)

    def _give_room(self, count: int) -> None:
        self._room += count
        self._room_grew.set()

    async def _feed(self) -> None:
        async with asyncio.TaskGroup() as group:
            while self._unfed:
                index = next(iter(self._unfed))
                weight = _weight(self._pieces[index])
                if self._room < weight:
                    self._room_grew.clear()
                    await self._room_grew.wait()
                    continue
                del self._unfed[index]
                self._room -= weight
                group.create_task(self._one(index, self._pieces[index]))

    async def _one(self, index: int, piece: Piece) -> None:
        outcome: Outcome
        try:
            outcome = await self._health.attempt(
                lambda: self._fetch(piece),
                key=(self, index),
                is_urgent=lambda: self._urgent or index in self._hurried,
            )
        except Transient as error:
            outcome = unreadable(piece, str(error))
        self._arrived.put((index, outcome))


def _weight(piece: Piece) -> int:
    return max(piece.stop - piece.start, REQUEST_BYTES)

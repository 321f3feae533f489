"""Calls of a disk off the event loop: a few at once, in native threads, so that a disk that hangs holds up nobody else.

What has begun cannot be taken back: a call that hangs keeps its thread until the disk answers, however long that takes. Others
wait for a thread. Who has patience for so long and no longer is told that the disk is stuck; once a call has been under way for
STUCK_MS all who have not waited yet are told so at once, until that call is answered.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from typing import Any, Protocol

from gevent.event import AsyncResult
from gevent.lock import Semaphore
from gevent.threadpool import ThreadPool

STUCK_MS = 5_000  # a disk that is only busy answers sooner


class DiskStuck(OSError):
    """The disk did not answer in time. Nothing is said of the file: it may be as good as it was."""

    def __init__(self, text: str) -> None:
        super().__init__(errno.ETIMEDOUT, text)


class Calls(Protocol):
    """Makes calls of one disk."""

    @property
    def is_stuck(self) -> bool:
        """Whether a call has been under way for too long."""
        ...

    def run(
        self,
        work: Callable[..., Any],
        *arguments: Any,
        patience_ms: int | None = None,
        own: int = -1,
        undo: Callable[[Any], None] | None = None,
    ) -> Any:
        """Return `work(*arguments)`, done off the event loop.

        Who stops waiting does not stop the work: the descriptor that it uses must be its own (`own`, which it closes, as is
        done here if it is not begun), and what it returned then is given to `undo`.

        :raises DiskStuck: it was not done within `patience_ms`; or is not begun, since the disk is stuck. None: wait on.
        """
        ...


class DiskCalls:
    """See Calls. At most `calls_max` are made at once."""

    def __init__(self, calls_max: int, *, stuck_ms: int = STUCK_MS) -> None:
        self._pool = ThreadPool(calls_max)
        self._pool.size = calls_max  # now: later there may be no thread to be had
        self._free = Semaphore(calls_max)
        self._stuck_s = stuck_ms / 1000
        self._begun: dict[int, float] = {}  # when, by number: the oldest first
        self._count = 0

    @property
    def is_stuck(self) -> bool:
        oldest = next(iter(self._begun.values()), None)
        return oldest is not None and time.monotonic() - oldest > self._stuck_s

    def run(
        self,
        work: Callable[..., Any],
        *arguments: Any,
        patience_ms: int | None = None,
        own: int = -1,
        undo: Callable[[Any], None] | None = None,
    ) -> Any:
        patience_s = None if patience_ms is None else patience_ms / 1000
        asked = time.monotonic()
        try:
            self._take_place(patience_s)
        except BaseException:
            if own >= 0:
                os.close(own)
            raise
        self._count += 1
        number = self._count
        self._begun[number] = time.monotonic()
        result = self._pool.spawn(_outcome, work, arguments)
        result.rawlink(lambda _: self._ended(number))
        try:
            result.wait(None if patience_s is None else max(0.0, asked + patience_s - time.monotonic()))
            if not result.ready():
                raise DiskStuck(f"the disk did not answer within {patience_ms} ms")
        except BaseException:
            if undo is not None:
                result.rawlink(lambda ended: _undo(ended, undo))  # at once, if it has ended just now
            raise
        value, error = result.get()
        if error is not None:
            raise error
        return value

    def _take_place(self, patience_s: float | None) -> None:
        if patience_s is not None and self.is_stuck:
            raise DiskStuck("the disk does not answer")
        if not self._free.acquire(timeout=patience_s):
            raise DiskStuck(f"the disk did not answer others within {patience_s} s")

    def _ended(self, number: int) -> None:
        del self._begun[number]
        self._free.release()


def _undo(ended: AsyncResult, undo: Callable[[Any], None]) -> None:
    value, error = ended.get()
    if error is None:
        undo(value)


def _outcome(work: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, BaseException | None]:
    # An error comes back as a value: the thread pool would print it.
    try:
        return work(*arguments), None
    except BaseException as error:
        return None, error

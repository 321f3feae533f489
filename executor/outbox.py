"""An ordered queue before a channel, so that whoever has something to say never waits.

Messages leave in the order of `put`, by one greenlet; without it two greenlets that wait for room in the socket could
overtake each other, and two processes that both send could wait for each other for ever. Descriptors are duplicated
when they are put: the caller may close its own at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import gevent
from gevent.queue import Queue

from stoker.executor.channel import Channel
from stoker.executor.errors import ChannelError

OUTBOX_MAX = 65_536  # messages; the other side always receives, so only a hung process comes here


class Outbox:
    """Sends on `channel`; `on_failure(error)` is called once if that fails: the other process is gone."""

    def __init__(self, channel: Channel, on_failure: Callable[[Exception], None]) -> None:
        self._channel = channel
        self._on_failure = on_failure
        self._queue: Queue = Queue()
        self._greenlet = gevent.spawn(self._run)

    def put(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Queue a message and copies of `fds`.

        :raises ChannelError: OUTBOX_MAX messages wait already: the other process hangs.
        """
        if self._queue.qsize() >= OUTBOX_MAX:
            raise ChannelError(f"{OUTBOX_MAX} messages wait for another process of this executor: it hangs")
        self._queue.put((message, [os.dup(fd) for fd in fds]))

    def close(self) -> None:
        """Drop what waits. Idempotent."""
        self._greenlet.kill()
        while not self._queue.empty():
            _close(self._queue.get_nowait()[1])

    def _run(self) -> None:
        for message, fds in self._queue:
            try:
                self._channel.send(message, fds)
            except OSError as error:
                self._on_failure(error)
                return
            finally:
                _close(fds)


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)

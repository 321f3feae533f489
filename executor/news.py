"""Waking all greenlets that wait for a change, each of which looks by itself whether it is the one."""

from __future__ import annotations

from gevent.event import Event


class News:
    """`tell` wakes whoever waits then. An Event that is set and cleared at once loses those who, woken by it, wait again."""

    def __init__(self) -> None:
        self._next = Event()

    def wait(self, timeout_s: float) -> None:
        """Wait until there is news, `timeout_s` at most."""
        self._next.wait(timeout_s)

    def tell(self) -> None:
        told, self._next = self._next, Event()
        told.set()

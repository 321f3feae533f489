"""Waiting in greenlets, by this machine's clock: gevent's own timeouts are by the time at which its loop last looked."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import gevent

from support.waiting import Value
from support.waiting import wait_until as poll


def wait_until(condition: Callable[[], Value], what: str = "the condition") -> Value:
    """Let the other greenlets run until `condition` holds; return its value."""
    return poll(condition, what, sleep=lambda _: gevent.sleep(0.002))


def join(greenlets: Iterable[gevent.Greenlet]) -> list[Any]:
    """Wait until all have ended; return their values, or raise what one of them raised."""
    waiting = list(greenlets)
    settle(waiting)
    return [greenlet.get() for greenlet in waiting]


def settle(greenlets: Iterable[gevent.Greenlet]) -> None:
    """Wait until all have ended, however that may be."""
    waiting = list(greenlets)
    wait_until(lambda: all(greenlet.ready() for greenlet in waiting), "greenlets to end")


def call_with_patience(function: Callable[..., Value], *arguments: Any) -> Value:
    """Return `function(*arguments)`, called in a greenlet of its own, so that the test ends if it does not."""
    (value,) = join([gevent.spawn(function, *arguments)])
    return value

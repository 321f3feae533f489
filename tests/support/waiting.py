"""Waiting for what happens elsewhere, with a deadline that a busy machine keeps: it is there so that a test ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

DEADLINE_S = 90.0
# From the one to the other: what takes long is asked less often, since each question costs those who are waited for, too.
POLL_INTERVAL_S, POLL_INTERVAL_S_MAX = 0.02, 0.1
POLL_INTERVAL_GROWTH = 1.2

Value = TypeVar("Value")


def wait_until(
    condition: Callable[[], Value],
    what: str = "the condition",
    timeout_s: float = DEADLINE_S,
    *,
    sleep: Callable[[float], object] = time.sleep,
) -> Value:
    """Poll `condition` until it is true and return its value; fail the test with `what` after `timeout_s`.

    Greenlets give `sleep=gevent.sleep`.
    """
    deadline = time.monotonic() + timeout_s
    interval_s = POLL_INTERVAL_S
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s in vain for {what}"
        sleep(interval_s)
        interval_s = min(interval_s * POLL_INTERVAL_GROWTH, POLL_INTERVAL_S_MAX)
    return value

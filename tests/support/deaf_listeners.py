"""Listeners whose queue of callers is full: the kernel answers no more, as a machine that is cut off does not."""

from __future__ import annotations

import socket

TAKEN_S = 0.5  # on loopback a connection is taken at once, or not at all
CALLERS_MAX = 5_000


def fill_queue(address: tuple[str, int]) -> int:
    """Call a listener that takes nobody until it is deaf; return the number of callers. They hang up, and stay queued."""
    for count in range(CALLERS_MAX):
        try:
            socket.create_connection(address, TAKEN_S).close()
        except TimeoutError:
            return count
    raise AssertionError(f"{address} takes more than {CALLERS_MAX} callers")

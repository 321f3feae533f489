"""A turn for everybody else, between two slices of a long work."""

from __future__ import annotations

import gevent


def rest() -> None:
    """Let all others that can run do so, and the hub look at its sockets; at once again if nobody else has anything to do.

    `gevent.sleep(0)` does less: the hub looks at nothing but its own queue until 50 of them are over, and whoever waits for
    a socket waits for 50 slices.
    """
    hub = gevent.get_hub()
    hub.wait(hub.loop.timer(0))

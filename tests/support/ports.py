"""Ports for tests that cannot let the kernel choose one at the last moment.

A port that is found free, let go and used later may be somebody else's by then: another worker's server, or the near end of any
connection. So ports that are given out here lie outside the range that the kernel takes its own from, and those that must
refuse are held while they do.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
from collections.abc import Iterator

# Below the kernel's own (/proc/sys/net/ipv4/ip_local_port_range) and beside those that the embedded Mesos offers.
_FIRST, _COUNT = 20_000, 10_000
_numbers = itertools.count(os.getpid() * 61)


def fixed_port() -> int:
    """Return a port of 127.0.0.1 that is free and stays so: for a server that is started again, or is told its port."""
    for number in itertools.islice(_numbers, _COUNT):
        port = _FIRST + number % _COUNT
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("no port is free")


@contextlib.contextmanager
def refusing_port() -> Iterator[int]:
    """Yield a port of 127.0.0.1 that refuses every connection for the block's length."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]

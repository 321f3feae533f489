"""Long works give the hub turns: whoever waits for a socket is heard after every slice."""

from __future__ import annotations

import subprocess
import sys

import gevent
import gevent.socket

from stoker.framework.turns import rest

DRIVERS = """
from gevent import monkey; monkey.patch_all()
import socket, gevent
from stoker.mesos.scheduler_driver import _rest
ours, theirs = socket.socketpair()
reader = gevent.spawn(theirs.recv, 1)
gevent.idle()
ours.send(b"x")
_rest()
_rest()
print(reader.ready())
"""


def test_who_waits_for_a_socket_is_heard_between_two_slices() -> None:
    ours, theirs = gevent.socket.socketpair()
    with ours, theirs:
        reader = gevent.spawn(theirs.recv, 1)
        gevent.idle()
        ours.send(b"x")
        rest()
        rest()  # one that expires with the socket's news may come before it
        assert reader.ready() and reader.value == b"x"


def test_a_rest_is_over_at_once() -> None:
    looked: list[int] = []
    check = gevent.get_hub().loop.check()
    check.start(lambda: looked.append(1))
    for _ in range(100):
        rest()
    check.stop()
    assert 100 <= len(looked) <= 102  # each has looked once, and never waited for a second look


def test_the_drivers_rest_within_a_large_event_is_one() -> None:
    ended = subprocess.run([sys.executable, "-c", DRIVERS], capture_output=True, text=True, timeout=60)
    assert ended.stdout == "True\n", ended.stderr

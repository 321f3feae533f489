"""Whether a machine answers, and how many are asked at once; real sockets on loopback."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import gevent
import pytest
from gevent.threadpool import ThreadPool

from stoker.framework.core.actions import ProbeExecutor
from stoker.framework.core.events import ExecutorProbed
from stoker.framework.probes import PROBES_MAX, Probes, answers
from support.deaf_listeners import fill_queue
from support.ports import fixed_port
from support.waiting import wait_until

LOOPBACK = "127.0.0.1"
SOON_MS = 300
LONG_MS = 60_000
LOOKUPS = ThreadPool(1)


@pytest.fixture
def deaf() -> Iterator[int]:
    """The port of a listener that answers nobody."""
    with socket.create_server((LOOPBACK, 0), backlog=0) as listener:
        fill_queue(listener.getsockname())
        yield listener.getsockname()[1]


def test_a_machine_that_takes_or_refuses_a_connection_is_there() -> None:
    with socket.create_server((LOOPBACK, 0)) as listener:
        assert answers(LOOPBACK, listener.getsockname()[1], LONG_MS, LOOKUPS)
    assert answers(LOOPBACK, fixed_port(), LONG_MS, LOOKUPS), "nobody listens: refused"


def test_one_that_answers_nothing_is_away(deaf: int) -> None:
    assert not answers(LOOPBACK, deaf, SOON_MS, LOOKUPS)


@pytest.mark.parametrize("host", ["255.255.255.255", "a" * 64, "no\0name"])
def test_one_that_cannot_be_called_at_all_is_away(host: str) -> None:
    assert not answers(host, 9, LONG_MS, LOOKUPS)


class Probing:
    """Probes whose events are kept."""

    def __init__(self) -> None:
        self.told: list[ExecutorProbed] = []
        self._probes = Probes(self._put, gevent.spawn, timeout_ms=SOON_MS)

    def _put(self, event: ExecutorProbed) -> bool:
        self.told.append(event)
        return True

    def run(self, *actions: ProbeExecutor, count: int) -> None:
        """Perform the actions and wait for `count` events in all."""
        for action in actions:
            self._probes.perform(action)
        wait_until(lambda: len(self.told) >= count, "the answers", sleep=gevent.sleep)


def test_each_answer_comes_back_as_an_event(deaf: int) -> None:
    probing = Probing()
    probing.run(ProbeExecutor(1, LOOPBACK, deaf), ProbeExecutor(2, LOOPBACK, fixed_port()), count=2)
    assert set(probing.told) == {ExecutorProbed(1, False), ExecutorProbed(2, True)}


def test_no_more_than_some_are_asked_at_once_and_nobody_twice(deaf: int) -> None:
    probing = Probing()
    asked = [ProbeExecutor(launch_id, LOOPBACK, deaf) for launch_id in range(1, PROBES_MAX + 10)]
    probing.run(asked[0], *asked, count=PROBES_MAX)
    told = [event.launch_id for event in probing.told]
    assert sorted(told) == list(range(1, PROBES_MAX + 1)), "the others are left out"
    probing.run(asked[-1], count=PROBES_MAX + 1)
    assert probing.told[-1] == ExecutorProbed(PROBES_MAX + 9, False), "asked again, there is room"

"""A scheduler that may not speak for its framework any more: its driver sends nothing, whatever its state."""

from __future__ import annotations

import threading

import pytest

from stoker.mesos.errors import Disconnected
from support.drivers import FRAMEWORK, driving, subscribe
from support.fake_mesos import FakeMesos, Recorder, Stream, subscribed
from support.waiting import DEADLINE_S, wait_until


class Permission:
    def __init__(self, *, is_given: bool = True) -> None:
        self.is_given = is_given
        self.asked = threading.Event()

    def __call__(self) -> bool:
        self.asked.set()
        return self.is_given


def test_a_call_is_not_sent_without_permission(master: FakeMesos, recorder: Recorder) -> None:
    permission = Permission()
    with driving(master, recorder, may_send=permission) as driver:
        subscribe(master, recorder)
        driver.killTask({"value": "one"})
        permission.is_given = False
        for call in (
            lambda: driver.killTask({"value": "two"}),
            lambda: driver.declineOffer([{"value": "o"}]),
        ):
            with pytest.raises(Disconnected):
                call()
        assert [call.type for call in master.calls] == ["SUBSCRIBE", "KILL"]


def test_it_does_not_subscribe_again_without_permission(master: FakeMesos, recorder: Recorder) -> None:
    """That would throw out the new leader, which has subscribed as the same framework."""
    permission = Permission()
    framework = {**FRAMEWORK, "id": {"value": "F1"}}
    with driving(master, recorder, framework=framework, may_send=permission):
        stream = subscribe_again(master, recorder, 1)
        permission.is_given = False
        permission.asked.clear()
        stream.end()
        assert permission.asked.wait(DEADLINE_S)
        permission.asked.clear()
        assert permission.asked.wait(DEADLINE_S), "it asks again, with the pauses of a back-off"
        assert len(master.of_type("SUBSCRIBE")) == 1
        permission.is_given = True
        subscribe_again(master, recorder, 2)


def subscribe_again(master: FakeMesos, recorder: Recorder, count: int) -> Stream:
    stream = master.wait_stream(count)
    stream.send(subscribed("F1"))
    wait_until(lambda: recorder.names().count("reregistered") == count, "reregistered")
    return stream

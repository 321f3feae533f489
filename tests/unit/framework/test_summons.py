"""Telling executors where the leader is: whom, how often, and until when."""

from __future__ import annotations

from typing import Any

import pytest

from stoker.executor.messages import decode_summons
from stoker.framework.errors import NotLeading
from stoker.framework.summons import MISSED_MS, REPEAT_MS_MAX, REPEAT_MS_MIN, Summons, who_is_missed
from support.core_stage import Stage

SCHEDULERS = ("http://leader:1", "http://other:2")


class Rig:
    """Two running executors, whose leader has just changed; `sent` are the tasks that were told."""

    def __init__(self) -> None:
        # So that the leader does not end whom it misses: how long it waits is another test's.
        self.stage = Stage(heartbeat_timeout_ms=10**9, register_timeout_ms=10**9).start()
        self.stage.lead()
        self.stage.subscribe()
        self.sent: list[str] = []
        self.messages: list[bytes] = []
        self.is_connected = True
        self.summons = Summons(self.read, self.send, lambda: SCHEDULERS)

    def read(self, function: Any) -> Any:
        return function(self.stage.catalog, self.stage.fleet)

    def send(self, executor_id: str, agent_id: str, data: bytes) -> bool:
        assert agent_id == self.stage.catalog.launch_of_task(executor_id).agent_id  # type: ignore[union-attr]
        self.sent.append(executor_id)
        self.messages.append(data)
        return self.is_connected

    def pass_time(self, duration_ms: int) -> list[str]:
        """Look every 500 ms; return whom was told meanwhile."""
        self.sent = []
        for _ in range(0, duration_ms, 500):
            self.stage.tick()
            self.summons.look(self.stage.now_ms)
        return self.sent


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_executors_that_report_by_themselves_are_not_told(rig: Rig) -> None:
    for launch in rig.stage.catalog.launches.values():
        rig.stage.beat(launch, whole=True)
    assert rig.pass_time(MISSED_MS - 500) == []


def test_who_does_not_report_is_told_again_and_again_with_growing_pauses(rig: Rig) -> None:
    one, other = rig.stage.launch(1), rig.stage.launch(2)
    rig.stage.beat(one, whole=True)
    assert rig.pass_time(MISSED_MS - 500) == []
    rig.stage.beat(one)
    assert rig.pass_time(500) == [other.task_id]
    summons = decode_summons(rig.messages[0])
    assert (summons.epoch, summons.schedulers) == (2, SCHEDULERS)
    counts = []
    for duration_ms in (REPEAT_MS_MIN, 2 * REPEAT_MS_MIN, 4 * REPEAT_MS_MIN):
        rig.stage.beat(one)
        counts.append(len([task for task in rig.pass_time(duration_ms) if task == other.task_id]))
    assert counts == [1, 1, 1]


def test_the_pauses_grow_no_further_than_a_minute(rig: Rig) -> None:
    rig.pass_time(20 * 60_000)
    assert 2 <= len(rig.pass_time(2 * REPEAT_MS_MAX)) <= 6, "two executors"


def test_who_reports_is_told_no_more_and_from_the_start_when_it_is_lost_again(rig: Rig) -> None:
    rig.pass_time(60_000)
    for launch in rig.stage.catalog.launches.values():
        rig.stage.beat(launch, whole=True)
    assert rig.pass_time(MISSED_MS - 500) == []
    assert len(rig.pass_time(1_000)) == 2, "each once"


def test_what_could_not_be_sent_is_sent_with_the_next_turn(rig: Rig) -> None:
    rig.is_connected = False
    rig.pass_time(MISSED_MS)
    rig.is_connected = True
    assert len(rig.pass_time(REPEAT_MS_MIN)) == 2


def test_nobody_is_told_without_mesos_or_after_the_leaderships_end(rig: Rig) -> None:
    stage = Stage().start()
    stage.lead()
    stage.pass_time(20_000)
    assert who_is_missed(stage.catalog, stage.fleet, stage.now_ms) == []

    def ended(function: Any) -> Any:
        raise NotLeading("it is over")

    with pytest.raises(NotLeading):
        Summons(ended, rig.send, lambda: SCHEDULERS).look(0)


def test_an_executor_that_was_just_launched_has_the_list_and_is_not_told(rig: Rig) -> None:
    stage = Stage(register_timeout_ms=600_000)
    stage.lead()
    stage.subscribe()
    stage.tick()
    stage.offer("agent-1", "agent-2")
    assert len(stage.catalog.launches) == 2
    stage.pass_time(30_000)
    assert who_is_missed(stage.catalog, stage.fleet, stage.now_ms) == []

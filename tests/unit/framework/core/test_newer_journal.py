"""A journal that went back in time: what it lacks is alive, and nothing may be ended, or launched, on its word."""

from __future__ import annotations

from typing import Any

import pytest

from stoker.framework.core import actions as a
from stoker.framework.core import entries as e
from stoker.framework.core import events as ev
from stoker.framework.core.actions import Frame
from stoker.framework.core.catalog import Launch
from stoker.framework.core.explanations import attention
from support.core_stage import Stage, actions_of, entries_of

STRAY = "stoker-00010203-e1-s9-l1"  # a number that the journal knows, in a task that it does not


def gone_back(*, instances: int = 1, agents: int | None = None) -> tuple[Stage, Launch]:
    """Return a leader on a journal whose executors have seen a later epoch, and its first launch."""
    stage = Stage(instances=instances).start(agents=agents)
    launch = stage.launch(1)
    stage.lead()
    stage.subscribe()
    return stage, launch


def is_harmless(*frames: Frame) -> bool:
    return not any(
        entries_of(frame, e.LaunchEnded)
        or entries_of(frame, e.LaunchPlanned)
        or actions_of(frame, a.Kill)
        or actions_of(frame, a.ShutdownExecutor)
        for frame in frames
    )


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, ""),
        ({"epoch_seen": 9}, "an executor has seen epoch 9, this journal is at 2"),
        ({"epoch_seen": 9, "secret": "guessed"}, ""),
        ({"epoch_seen": 9, "slot_id": 5}, ""),
        ({"epoch_seen": 9, "cluster": bytes(16)}, ""),
        ({"launch_id": 77}, "an executor is of launch 77, this journal knows none after 1"),
        ({"launch_id": 77, "epoch_seen": 9}, "an executor is of launch 77, this journal knows none after 1"),
        ({"launch_id": 77, "cluster": bytes(16)}, ""),
        ({"launch_id": 0, "epoch_seen": 9}, "an executor has seen epoch 9, this journal is at 2"),
    ],
)
def test_a_heartbeat_proves_it(fields: dict[str, Any], says: str) -> None:
    stage, launch = gone_back()
    answer = stage.beat(launch, **fields)
    assert stage.fleet.newer_journal == says
    assert attention(stage.fleet).startswith(says) and bool(attention(stage.fleet)) == bool(says)
    assert not says or answer.status == "unknown", "who is told that it is stale ends itself"


def test_an_executor_that_is_ahead_is_never_ended_for_silence() -> None:
    stage, launch = gone_back()
    frames = []
    for _ in range(100):
        stage.beat(launch, epoch_seen=9)
        frames.append(stage.tick(1_000))
    assert is_harmless(*frames) and launch.launch_id in stage.catalog.launches


def test_nor_is_one_that_fell_silent_on_such_a_journals_word() -> None:
    stage, launch = gone_back(instances=2)
    stage.beat(launch, epoch_seen=9)
    assert is_harmless(*stage.pass_time(100_000, beating=False))


def test_it_holds_in_every_leadership_also_beyond_the_epoch_that_was_seen() -> None:
    """Each leader takes the next epoch: in the end the executors take its answers, and it must not tell them to go."""
    stage, launch = gone_back()
    for _ in range(4):
        assert stage.beat(launch, launch_id=2, epoch_seen=4).status == "unknown"
        frames = [stage.status("stoker-00010203-e4-s1-l2", "TASK_RUNNING"), *stage.pass_time(60_000)]
        assert is_harmless(*frames)
        stage.lead()
        stage.subscribe()
    assert stage.catalog.epoch > 4


def test_a_task_that_the_journal_never_knew_is_left_alone_before_any_heartbeat() -> None:
    stage, _ = gone_back()
    assert is_harmless(stage.status("stoker-00010203-e1-s9-l2", "TASK_RUNNING"))


def test_a_stray_task_is_left_alone() -> None:
    stage, launch = gone_back()
    stage.beat(launch, epoch_seen=9)
    frame = stage.status(STRAY, "TASK_RUNNING", uuid=b"u")
    assert is_harmless(frame) and actions_of(frame, a.Acknowledge)


def test_a_task_that_the_master_knows_nothing_of_is_left_alone() -> None:
    stage, launch = gone_back()
    stage.beat(launch, epoch_seen=9)
    frame = stage.status(launch.task_id, "TASK_UNKNOWN", uuid=b"u")
    assert is_harmless(frame) and actions_of(frame, a.Acknowledge)


def test_a_removed_agent_ends_nothing() -> None:
    stage, launch = gone_back()
    stage.beat(launch, epoch_seen=9)
    assert is_harmless(stage.do(ev.AgentRemoved("agent-1")))


def test_what_mesos_says_has_ended_has_ended() -> None:
    stage, launch = gone_back()
    stage.beat(launch, epoch_seen=9)
    frame = stage.status(launch.task_id, "TASK_FAILED")
    assert entries_of(frame, e.LaunchEnded) and not actions_of(frame, a.Kill)


def test_nothing_is_launched_and_offers_are_declined_with_the_reason() -> None:
    """A launch's number would be one that the lost part of the journal has used."""
    stage, launch = gone_back(instances=2, agents=1)
    stage.beat(launch, epoch_seen=9)
    frame = stage.offer("agent-2")
    assert is_harmless(frame)
    (declined,) = actions_of(frame, a.Decline)
    assert declined.reason == stage.fleet.newer_journal and not stage.fleet.offers

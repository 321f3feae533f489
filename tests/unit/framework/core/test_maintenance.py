"""Inverse offers: an agent is given back once nothing is lost by that, and used again once it is not wanted back any more."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stoker.framework.core import actions as a
from stoker.framework.core import entries as e
from stoker.framework.core import events as ev
from stoker.framework.core.maintenance import TOLD_MS
from stoker.framework.core.views import agent_views
from stoker.framework.model import InverseOffer
from support.core_stage import CLUSTER, Stage, actions_of, entries_of

HOUR_MS = 3_600_000


def wall_ms(stage: Stage) -> int:
    return 1_700_000_000_000 + stage.now_ms


def inverse(
    stage: Stage, number: int = 1, agent_id: str = "agent-1", *, in_ms: int = 30_000, for_ms: int = 60_000
) -> a.Frame:
    offer = InverseOffer(f"inverse-{number}", agent_id, wall_ms(stage) + in_ms, for_ms)
    return stage.do(ev.InverseOffersReceived((offer,)))


def holding(stage: Stage) -> Stage:
    """Let slot 1 hold what nobody else does."""
    dataset = stage.ready()
    stage.hold(1, dataset, {1, 2})
    stage.tick()
    return stage


def answers(frames: list[a.Frame]) -> list[str]:
    kinds = {a.AcceptInverse: "accepted", a.DeclineInverse: "declined"}
    return [
        kinds[type(x)]
        for frame in frames
        for x in frame.actions
        if isinstance(x, a.AcceptInverse | a.DeclineInverse)
    ]


def test_an_inverse_offer_drains_the_agent_and_is_accepted_once_nothing_is_only_there() -> None:
    stage = holding(Stage(instances=2).start())
    frame = inverse(stage)
    (drain,) = entries_of(frame, e.AgentDrainSet)
    assert drain.cause == "maintenance" and drain.until_wall_ms == wall_ms(stage) + 90_000
    assert actions_of(frame, a.DeclineInverse) == [
        a.DeclineInverse(("inverse-1",), stage.settings.inverse_decline_ms)
    ]
    assert stage.catalog.is_out(1)
    assert answers([inverse(stage, 2)]) == ["declined"]
    stage.hold(2, stage.dataset(), {1, 2})
    assert not stage.pass_time(2_000)[-1].entries, (
        "it ends with the next question: Mesos asks only who has something there"
    )
    frame = inverse(stage, 3)
    assert not answers([frame])
    task_id = stage.launch(1).task_id
    assert entries_of(stage.tick(), e.LaunchEnded)
    assert not answers([stage.tick(), stage.tick()]), "the executor is still there"
    stage.status(task_id, "TASK_KILLED")
    frame = stage.tick()
    assert actions_of(frame, a.AcceptInverse) == [
        a.AcceptInverse(("inverse-3",), stage.settings.inverse_accept_ms)
    ]
    assert answers([inverse(stage, 4), inverse(stage, 5)]) == ["accepted"] * 2, "as often as Mesos asks"
    assert not entries_of(
        stage.offer("agent-1", unavailable_from_ms=wall_ms(stage), unavailable_for_ms=60_000), e.LaunchPlanned
    )
    assert "agent-1" in stage.catalog.drains
    frames = stage.pass_time(40_000)
    assert not any(entries_of(f, e.AgentDrainCleared) for f in frames), (
        "that nobody asks any more means nothing"
    )
    frames = stage.pass_time(stage.settings.maintenance_forget_ms + 60_000)
    assert any(entries_of(f, e.AgentDrainCleared) for f in frames), "the window is over"


def test_after_a_take_over_an_agent_is_given_back_once_mesos_has_told_that_nothing_of_ours_is_there() -> None:
    stage = Stage(instances=2).start()
    inverse(stage, in_ms=0, for_ms=HOUR_MS)
    stage.tick()
    inverse(stage, 2, in_ms=0, for_ms=HOUR_MS)
    (ended,) = entries_of(stage.tick(), e.LaunchEnded)
    stage.lead()
    stage.subscribe()
    asked = [inverse(stage, 3, in_ms=0, for_ms=HOUR_MS), *stage.pass_time(2 * TOLD_MS)]
    assert not answers(asked), "a task that is asked for was not answered: all are not asked for yet"
    for launch in stage.catalog.launches.values():
        stage.status(launch.task_id, "TASK_RUNNING")
    assert not answers(stage.pass_time(TOLD_MS - 1_000))
    task_id = f"stoker-{CLUSTER.hex()[:8]}-e1-s1-l{ended.launch_id}"
    assert actions_of(stage.status(task_id, "TASK_RUNNING"), a.Kill), "it lives yet"
    assert not answers(stage.pass_time(2 * TOLD_MS))
    stage.status(task_id, "TASK_KILLED")
    assert answers([stage.tick()]) == ["accepted"]


def test_an_executor_that_does_not_confirm_its_end_does_not_keep_the_agent_for_ever() -> None:
    stage = Stage(instances=2).start()
    inverse(stage, in_ms=0, for_ms=HOUR_MS)
    stage.tick()
    inverse(stage, 2, in_ms=0, for_ms=HOUR_MS)
    assert entries_of(stage.tick(), e.LaunchEnded)
    delay_ms = stage.settings.kill_retry_ms
    told_ms = sum(delay_ms * 2**tries for tries in range(stage.settings.kill_tries_max - 1))
    assert not answers(stage.pass_time(told_ms - 1_000))
    assert answers(stage.pass_time(delay_ms)) == ["accepted"]


def test_an_agent_without_an_executor_is_given_back_at_once_and_gets_no_launch() -> None:
    stage = Stage(instances=1)
    stage.lead()
    stage.subscribe()
    frame = inverse(stage)
    assert answers([frame]) == ["accepted"] and entries_of(frame, e.AgentDrainSet)
    window = {"unavailable_from_ms": wall_ms(stage) + 20_000, "unavailable_for_ms": 60_000}
    assert not entries_of(stage.offer("agent-1", **window), e.LaunchPlanned)
    assert "maintenance" in str(stage.fleet.decisions[-1])


def test_a_window_far_ahead_is_left_open_until_it_is_near() -> None:
    stage = Stage(instances=1).start()
    frame = inverse(stage, in_ms=HOUR_MS + 60_000)
    assert not frame.entries and not frame.actions
    frames = stage.pass_time(50_000)
    assert not answers(frames) and not any(f.entries for f in frames)
    assert answers(stage.pass_time(20_000)) == ["declined"] and stage.catalog.drains


def test_an_offer_of_an_agent_with_maintenance_soon_is_declined_with_the_reason() -> None:
    stage = Stage(instances=1)
    stage.lead()
    stage.subscribe()
    soon, late = wall_ms(stage) + 60_000, wall_ms(stage) + 2 * HOUR_MS
    assert not entries_of(
        stage.offer("agent-1", unavailable_from_ms=soon, unavailable_for_ms=60_000), e.LaunchPlanned
    )
    assert "maintenance" in str(stage.fleet.decisions[-1])
    assert entries_of(
        stage.offer("agent-2", unavailable_from_ms=late, unavailable_for_ms=60_000), e.LaunchPlanned
    )


@pytest.mark.parametrize("how", ["rescinded", "not repeated", "offered without it"])
def test_the_end_of_the_maintenance_undoes_the_drain_that_it_caused(how: str) -> None:
    stage = holding(Stage(instances=2).start())
    inverse(stage)
    assert "agent-1" in stage.catalog.drains
    if how == "rescinded":
        inverse(stage, 2, for_ms=61_000)  # declined at once; a third is open when the schedule is withdrawn
        stage.fleet.windows.asked((InverseOffer("inverse-3", "agent-1", wall_ms(stage), 60_000),))
        stage.do(ev.InverseOfferRescinded("inverse-3"))
        limit_ms = 3_000
    elif how == "offered without it":
        stage.offer("agent-1", mem_bytes=1)
        limit_ms = 1_000
    else:
        limit_ms = stage.settings.inverse_decline_ms + stage.settings.maintenance_forget_ms + 1_000
        assert not any(entries_of(f, e.AgentDrainCleared) for f in stage.pass_time(limit_ms - 3_000))
    frames = stage.pass_time(limit_ms)
    assert any(entries_of(f, e.AgentDrainCleared) for f in frames)
    stage.tick()
    assert not stage.catalog.is_out(1) and stage.launch(1)


def test_questions_that_nothing_follows_from_are_forgotten() -> None:
    stage = Stage(instances=1).start()
    for number in range(200):
        inverse(stage, number, f"gone-{number}", in_ms=1_000, for_ms=1_000)
    assert len(stage.fleet.windows.questions) == 200
    inverse(stage, 500, "late", in_ms=2 * HOUR_MS)
    stage.pass_time(stage.settings.maintenance_forget_ms + 10_000)
    assert not stage.catalog.drains and list(stage.fleet.windows.questions) == ["late"]


def test_a_withdrawal_that_nobody_told_is_noticed_once_an_executor_is_wanted() -> None:
    stage = Stage(instances=1).start()
    inverse(stage, 1, "agent-2", in_ms=0, for_ms=0)
    assert stage.pass_time(60_000) and "agent-2" in stage.catalog.drains and stage.fleet.suppressed
    stage.do(ev.FleetRequested(7, replace(stage.spec, instances=2)))
    frames = [stage.tick(), stage.tick()]
    assert any(actions_of(frame, a.Revive) for frame in frames)
    stage.offer("agent-2")
    assert entries_of(stage.tick(), e.AgentDrainCleared)
    frames = stage.pass_time(stage.settings.revive_interval_ms_min)
    assert any(actions_of(frame, a.Revive) for frame in frames), (
        "what was declined meanwhile is asked for again"
    )
    assert entries_of(stage.offer("agent-2"), e.LaunchPlanned)


def test_a_changed_schedule_does_not_undo_the_drain() -> None:
    stage = holding(Stage(instances=2).start())
    inverse(stage)
    stage.fleet.windows.asked((InverseOffer("inverse-2", "agent-1", wall_ms(stage), 60_000),))
    stage.do(ev.InverseOfferRescinded("inverse-2"))
    frame = inverse(stage, 3, for_ms=120_000)
    assert not entries_of(frame, e.AgentDrainCleared)
    assert not any(entries_of(f, e.AgentDrainCleared) for f in stage.pass_time(5_000))


def test_an_operators_drain_outlives_the_maintenance() -> None:
    stage = holding(Stage(instances=2).start())
    inverse(stage)
    stage.ask(ev.DrainRequested(7, "agent-1", ""))
    stage.hold(2, stage.dataset(), {1, 2})
    frames = stage.pass_time(90_000)
    assert any(entries_of(f, e.JobFinished) for f in frames)
    assert stage.catalog.drains["agent-1"].cause == "operator"


def test_an_operator_cannot_undo_what_a_maintenance_asks_for() -> None:
    stage = holding(Stage(instances=2).start())
    inverse(stage)
    refused = stage.ask(ev.DrainUndoRequested(7, "agent-1")).refusal
    assert refused is not None and refused.status == 409 and "maintenance" in refused.message


def test_the_drain_survives_a_fail_over_and_is_undone_if_nobody_asks_again() -> None:
    stage = holding(Stage(instances=2).start())
    inverse(stage, for_ms=HOUR_MS)
    launches = list(stage.catalog.launches.values())
    stage.lead()
    stage.subscribe()
    for launch in launches:
        stage.beat(launch, whole=True)
    patience_ms = stage.settings.unknown_patience_ms + stage.settings.maintenance_forget_ms
    assert not any(entries_of(f, e.AgentDrainCleared) for f in stage.pass_time(patience_ms - 5_000))
    assert any(entries_of(f, e.AgentDrainCleared) for f in stage.pass_time(10_000))


def test_the_drain_stands_while_there_is_no_master() -> None:
    stage = holding(Stage(instances=2).start())
    inverse(stage)
    stage.do(ev.Disconnected())
    assert not any(f.entries for f in stage.pass_time(200_000))


def test_the_view_tells_the_window() -> None:
    stage = holding(Stage(instances=2).start())
    inverse(stage)
    stage.tick()
    (row,) = [row for row in agent_views(stage.catalog, stage.fleet) if row["id"] == "agent-1"]
    assert row["drain"]["cause"] == "maintenance" and row["drain"]["blocks_left"] == 2
    assert "for 60 s" in row["drain"]["reason"] and row["drain"]["state"] == "DRAINING"

"""The end of a cluster: executors, then volumes, then the framework; each step found again by another leader."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stoker.framework.core import actions as a
from stoker.framework.core import entries as e
from stoker.framework.core import events as ev
from stoker.framework.core.departures import UninstallState
from stoker.framework.core.uninstalling import uninstall_view
from stoker.framework.core.volumes import VolumeState
from stoker.framework.model import OfferedReservation, OfferedVolume
from support.core_stage import CLUSTER, MIB, Stage, actions_of, entries_of


def ask(stage: Stage, *, keep_volumes: bool = False) -> a.Answer:
    return stage.ask(ev.UninstallRequested(7, keep_volumes))


def with_volumes(stage: Stage) -> Stage:
    """Give each slot a volume, as its launch would have."""
    for launch in list(stage.catalog.launches.values()):
        volume_id = stage.catalog.volume_id_next
        planned = e.VolumePlanned(
            volume_id, launch.slot_id, launch.agent_id, launch.hostname, "*", 64 * MIB, stage.catalog.wall_ms
        )
        for entry in (planned, e.VolumeReady(volume_id)):
            stage.catalog.apply(entry)
    return stage


def end_executors(stage: Stage) -> None:
    for launch in list(stage.catalog.launches.values()):
        stage.status(launch.task_id, "TASK_KILLED", uuid=b"u", agent_id=launch.agent_id)


def state(stage: Stage) -> UninstallState:
    assert stage.catalog.uninstall is not None
    return stage.catalog.uninstall.state


def test_executors_end_then_the_framework() -> None:
    stage = Stage(instances=2).start()
    answer = ask(stage)
    assert answer.status == 201 and answer.body["state"] == "CLEARING" and answer.body["executors_left"] == 2
    frame = stage.tick()
    assert {x.task_id for x in actions_of(frame, a.Kill)} == {
        x.task_id for x in stage.catalog.launches.values()
    }
    frames = stage.pass_time(20_000)
    assert any(actions_of(f, a.Kill) for f in frames), "KILL is unreliable"
    assert not any(actions_of(f, a.Teardown) for f in frames), "not before they ended"
    end_executors(stage)
    frame = stage.tick()
    assert entries_of(frame, e.TeardownPlanned) and not actions_of(frame, a.Teardown), "journaled first"
    assert [type(action) for action in stage.tick().actions] == [a.Teardown], "nothing can be said after it"
    assert any(actions_of(f, a.Teardown) for f in stage.pass_time(10_000)), "repeated until Mesos has it"
    frame = stage.do(ev.TornDown())
    assert entries_of(frame, e.UninstallFinished) and frame.actions == (a.EndCluster(()),)
    assert state(stage) is UninstallState.FINISHED
    assert not any(f.actions or f.entries for f in stage.pass_time(20_000))
    view = uninstall_view(stage.catalog, stage.catalog.uninstall)
    assert view["left"] == [] and view["finished_ms"]


def test_nothing_is_launched_any_more() -> None:
    stage = Stage(instances=2).start(agents=1)
    ask(stage)
    frame = stage.offer("agent-5")
    assert not entries_of(frame, e.LaunchPlanned) and actions_of(frame, a.Decline)
    end_executors(stage)
    assert not any(entries_of(f, e.LaunchPlanned) for f in stage.pass_time(2_000))


def test_volumes_are_doomed_where_no_executor_is_and_destroyed_as_they_are_offered() -> None:
    stage = with_volumes(Stage(instances=2).start())
    ask(stage)
    stage.tick()
    first = stage.launch(1)
    stage.status(first.task_id, "TASK_KILLED", agent_id=first.agent_id)
    stage.tick()
    states = [volume.state for _, volume in sorted(stage.catalog.volumes.items())]
    assert states == [VolumeState.DOOMED, VolumeState.READY], "the other's executor lives"
    end_executors(stage)
    stage.tick()
    frames = stage.pass_time(10_000)
    assert not any(entries_of(f, e.TeardownPlanned) for f in frames), "volumes first"
    assert any(actions_of(f, a.Revive) for f in frames), "offers are wanted for it"
    offered = OfferedVolume(CLUSTER.hex(), 1, "*", 64 * MIB)
    frame = stage.offer("agent-1", volumes=(offered,))
    (destroy,) = actions_of(frame, a.DestroyVolume)
    assert (destroy.volume_id, destroy.agent_id) == (1, "agent-1")
    for volume_id in (1, 2):
        stage.catalog.apply(e.VolumeRemoved(volume_id))
    frames = stage.pass_time(10_000)
    (planned,) = [x for f in frames for x in entries_of(f, e.TeardownPlanned)]
    assert planned.left == ()
    assert any(actions_of(f, a.Revive) for f in frames), "all agents are looked at once more"
    torn = [f for f in frames if actions_of(f, a.Teardown)]
    assert torn and not stage.fleet.suppressed and all(len(f.actions) == 1 for f in torn), "the last word"


def with_strays(**settings: int) -> Stage:
    """A fleet that had a volume once, and knows of none now; its executor is ended, it is to be uninstalled."""
    stage = with_volumes(Stage(instances=1, **settings).start())
    end_executors(stage)
    stage.catalog.apply(e.VolumeFailed(1, "it is gone"))
    ask(stage)
    return stage


def planned_of(frames: list[a.Frame]) -> list[e.TeardownPlanned]:
    return [entry for frame in frames for entry in entries_of(frame, e.TeardownPlanned)]


def test_a_volume_that_the_journal_does_not_know_is_destroyed_too() -> None:
    stage = with_strays()
    frames = stage.pass_time(6_000)
    assert any(actions_of(f, a.Revive) for f in frames) and not planned_of(frames)
    frame = stage.offer("agent-1", volumes=(OfferedVolume(CLUSTER.hex(), 1, "*", 64 * MIB),))
    (destroy,) = actions_of(frame, a.DestroyVolume)
    assert (destroy.volume_id, destroy.agent_id) == (1, "agent-1")
    stage.offer("agent-1")
    (planned,) = planned_of(stage.pass_time(15_000))
    assert planned.left == ()


@pytest.mark.parametrize("what", ["volume", "reservation"])
def test_what_the_journal_does_not_know_and_cannot_be_destroyed_is_named(what: str) -> None:
    stage = with_strays(uninstall_patience_ms=30_000)
    stage.tick()
    if what == "volume":
        stage.offer("agent-1", volumes=(OfferedVolume(CLUSTER.hex(), 1, "*", 64 * MIB),))
    else:
        stage.offer("agent-1", reserved_disk=(OfferedReservation(CLUSTER.hex(), 1, "*", 64 * MIB),))
    assert not planned_of(stage.pass_time(28_000))
    (planned,) = planned_of(stage.pass_time(5_000))
    (left,) = planned.left
    assert "volume 1" in left and "agent-1" in left


def test_an_unknown_volume_is_kept_where_volumes_are_kept() -> None:
    stage = with_volumes(Stage(instances=1).start())
    ask(stage, keep_volumes=True)
    stage.tick()
    stage.catalog.apply(e.VolumeFailed(1, "it is gone"))
    frame = stage.offer("agent-1", volumes=(OfferedVolume(CLUSTER.hex(), 1, "*", 64 * MIB),))
    assert not actions_of(frame, a.DestroyVolume)


def test_disk_that_a_failed_operation_left_reserved_is_given_back_before_the_teardown() -> None:
    stage = with_strays()
    frame = stage.offer("agent-1", reserved_disk=(OfferedReservation(CLUSTER.hex(), 1, "*", 64 * MIB),))
    assert actions_of(frame, a.DestroyVolume) and not planned_of([stage.tick()])
    stage.offer("agent-1")
    (planned,) = planned_of(stage.pass_time(15_000))
    assert planned.left == ()


def test_the_patience_begins_anew_with_each_subscription() -> None:
    stage = with_volumes(Stage(instances=1, uninstall_patience_ms=30_000).start())
    ask(stage)
    stage.tick()
    stage.do(ev.Disconnected())
    stage.pass_time(60_000, beating=False)
    stage.do(ev.Subscribed("framework-1", "master-2"))
    assert not planned_of(stage.pass_time(28_000, beating=False))
    assert planned_of(stage.pass_time(5_000, beating=False))


def test_the_patience_begins_anew_with_each_end_and_each_volume_that_went() -> None:
    stage = with_volumes(Stage(instances=2, uninstall_patience_ms=30_000).start())
    ask(stage)
    for end in (lambda: end_executors(stage), lambda: stage.catalog.apply(e.VolumeRemoved(1))):
        assert not planned_of(stage.pass_time(28_000, beating=False))
        end()
    assert not planned_of(stage.pass_time(28_000, beating=False))
    (planned,) = planned_of(stage.pass_time(5_000, beating=False))
    assert len(planned.left) == 1 and "volume 2" in planned.left[0]


def test_a_volume_of_somebody_else_is_not_touched() -> None:
    stage = with_volumes(Stage(instances=1).start())
    ask(stage)
    end_executors(stage)
    stage.tick()
    frame = stage.offer("agent-1", volumes=(OfferedVolume("ff" * 16, 1, "*", 64 * MIB),))
    assert not actions_of(frame, a.DestroyVolume)


def test_volumes_may_be_kept() -> None:
    stage = with_volumes(Stage(instances=2).start())
    ask(stage, keep_volumes=True)
    end_executors(stage)
    frame = stage.tick()
    (planned,) = entries_of(frame, e.TeardownPlanned)
    assert planned.left == () and not entries_of(frame, e.VolumeDoomed)
    assert all(volume.state is VolumeState.READY for volume in stage.catalog.volumes.values())


def test_what_cannot_be_reached_is_waited_for_but_not_for_ever_and_named() -> None:
    stage = with_volumes(Stage(instances=2, uninstall_patience_ms=30_000).start())
    lost = stage.launch(2)
    ask(stage)
    stage.tick()
    first = stage.launch(1)
    stage.status(first.task_id, "TASK_KILLED", agent_id=first.agent_id)
    frames = stage.pass_time(28_000, beating=False)
    assert not any(entries_of(f, e.TeardownPlanned) for f in frames)
    frames = stage.pass_time(5_000, beating=False)
    (planned,) = [entry for f in frames for entry in entries_of(f, e.TeardownPlanned)]
    executor, *volumes = planned.left
    assert lost.task_id in executor and "agent-2" in executor
    assert ["agent-1" in volumes[0], "agent-2" in volumes[1]] == [True, True]


@pytest.mark.parametrize("step", ["asked", "killed", "planned", "torn down"])
def test_another_leader_goes_on_from_each_step(step: str) -> None:
    stage = Stage(instances=2).start()
    ask(stage)
    if step != "asked":
        stage.tick()
        end_executors(stage)
    if step in ("planned", "torn down"):
        stage.tick()
    if step == "torn down":
        assert actions_of(stage.tick(), a.Teardown)  # the leader ended before it heard of it
    stage.lead()
    assert not any(f.actions for f in stage.pass_time(2_000)), "nothing without Mesos"
    stage.subscribe()
    frames = [stage.tick()]
    end_executors(stage)
    frames += stage.pass_time(2_000)
    assert any(actions_of(f, a.Teardown) for f in frames)
    stage.do(ev.TornDown())
    assert state(stage) is UninstallState.FINISHED


def test_asking_again_is_answered_and_changes_nothing() -> None:
    stage = Stage(instances=1).start()
    ask(stage)
    assert ask(stage).status == 200
    refused = ask(stage, keep_volumes=True).refusal
    assert refused is not None and refused.status == 409


def test_an_older_journal_is_not_uninstalled() -> None:
    stage = Stage(instances=1).start()
    launch = stage.launch(1)
    stage.fleet.newer_journal = f"an executor is of a launch after {launch.launch_id}"
    refused = ask(stage).refusal
    assert refused is not None and refused.code == "older_journal"


def test_a_removed_framework_without_executors_gives_way_at_once() -> None:
    stage = Stage(instances=0)
    stage.lead()
    stage.subscribe()
    frame = stage.do(ev.FrameworkRemoved())
    assert frame.entries == (e.FrameworkRegistered(""),) and frame.actions == (a.BeginAnew(),)


def test_a_torn_down_that_nobody_planned_changes_nothing() -> None:
    stage = Stage(instances=1).start()
    assert not stage.do(ev.TornDown()).entries


def test_active_jobs_end() -> None:
    stage = Stage(instances=1).start()
    stage.ready()
    stage.job()
    ask(stage)
    assert stage.only_job().state == "FAILED" and "uninstalled" in stage.only_job().message
    refused = stage.ask(ev.DrainRequested(7, "agent-1", "")).refusal
    assert refused is not None and refused.code == "uninstalling"


def test_a_removed_framework_gives_way_to_a_new_one_only_when_told() -> None:
    stage = Stage(instances=25, launches_frame_max=10).start()
    assert stage.catalog.framework_id == "framework-1"
    stage.do(ev.Disconnected())
    assert not stage.do(ev.FrameworkRemoved()).actions
    frames = stage.pass_time(2_000, beating=False)
    assert stage.catalog.framework_id == "" and not stage.catalog.launches
    (last,) = [f for f in frames if actions_of(f, a.BeginAnew)]
    assert len(entries_of(last, e.LaunchEnded)) == 10, "with the entries that leave nothing of it"
    stage.lead()
    assert e.FrameworkRegistered("framework-2") in stage.subscribe("framework-2").entries
    stage.tick()
    assert entries_of(stage.offer("agent-1"), e.LaunchPlanned)


@pytest.mark.parametrize("kind", ["load", "free"])
def test_no_job_is_taken_any_more_since_it_would_never_end(kind: str) -> None:
    stage = Stage(instances=2).start()
    stage.ready()
    known = stage.job(key="k").body["id"]
    ask(stage)
    refused = stage.job(kind).refusal
    assert refused is not None and (refused.status, refused.code) == (409, "uninstalling")
    assert stage.only_job().job_id == known
    again = stage.job(key="k")
    assert (again.status, again.body["id"], again.body["state"]) == (200, known, "FAILED")


def test_the_fleet_is_not_changed_any_more_and_volumes_that_are_kept_stay() -> None:
    stage = with_volumes(Stage(instances=2).start())
    ask(stage, keep_volumes=True)
    refused = stage.ask(ev.FleetRequested(7, replace(stage.spec, instances=0))).refusal
    assert refused is not None and (refused.status, refused.code) == (409, "uninstalling")
    assert [volume.state for volume in stage.catalog.volumes.values()] == [VolumeState.READY] * 2
    assert stage.catalog.fleet == stage.spec

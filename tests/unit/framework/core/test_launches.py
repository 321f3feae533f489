from __future__ import annotations

import pytest

from stoker.framework.core import actions as a
from stoker.framework.core import entries as e
from stoker.framework.core import events as ev
from stoker.framework.core.fleet import TERMINAL_STATES
from stoker.framework.core.launches import NOT_FOUND_HINT
from stoker.framework.core.views import executor_views
from stoker.framework.model import FleetSpec
from support.core_stage import MIB, Stage, actions_of, entries_of


def test_founds_the_cluster_once() -> None:
    stage = Stage(instances=3)
    frame = stage.lead()
    assert [type(x).__name__ for x in frame.entries] == [
        "ClusterCreated",
        "EpochBegan",
        "FleetSet",
        "SlotAdded",
        "SlotAdded",
        "SlotAdded",
    ]
    again = stage.lead()
    assert again.entries == (e.EpochBegan(2, stage.catalog.wall_ms),)


def test_slots_of_a_huge_fleet_are_added_in_slices() -> None:
    stage = Stage(instances=25, slots_frame_max=10)
    assert len(entries_of(stage.lead(), e.SlotAdded)) == 10
    assert len(entries_of(stage.tick(), e.SlotAdded)) == 10
    assert len(entries_of(stage.tick(), e.SlotAdded)) == 5


def test_journaled_times_never_go_back() -> None:
    stage = Stage().start()
    stage.now_ms -= 40_000  # the wall clock was set
    stage.add()
    assert stage.dataset().created_ms == stage.catalog.wall_ms


def test_registers_the_first_framework_id_only() -> None:
    stage = Stage()
    stage.lead()
    assert e.FrameworkRegistered("f-1") in stage.subscribe("f-1").entries
    assert not stage.subscribe("f-2").entries
    assert stage.catalog.framework_id == "f-1"


@pytest.mark.parametrize("state", sorted(TERMINAL_STATES - {"TASK_UNKNOWN"}))
def test_a_task_that_is_over_ends_its_launch(state: str) -> None:
    stage = Stage(instances=1).start()
    launch = stage.launch(1)
    frame = stage.status(launch.task_id, state, uuid=b"u", message="why")
    (ended,) = entries_of(frame, e.LaunchEnded)
    assert ended.launch_id == launch.launch_id and state in ended.reason and "why" in ended.reason
    assert actions_of(frame, a.Acknowledge) == [a.Acknowledge(launch.task_id, "agent-1", b"u")]
    assert not actions_of(frame, a.Kill)


def test_an_update_without_uuid_is_not_acknowledged() -> None:
    stage = Stage(instances=1).start()
    assert not stage.status(stage.launch(1).task_id, "TASK_RUNNING").actions


def test_an_update_that_comes_again_is_acknowledged_and_ends_nothing_more() -> None:
    stage = Stage(instances=1).start()
    task_id = stage.launch(1).task_id
    stage.status(task_id, "TASK_FAILED", uuid=b"u")
    stage.tick()
    stage.offer("agent-1")
    frame = stage.status(task_id, "TASK_FAILED", uuid=b"u")
    assert not frame.entries and actions_of(frame, a.Acknowledge)


def test_an_unreachable_task_keeps_its_launch_while_its_executor_answers() -> None:
    stage = Stage(instances=1).start()
    launch = stage.launch(1)
    assert not stage.status(launch.task_id, "TASK_UNREACHABLE").entries
    stage.do(ev.AgentRemoved("agent-1"))
    frames = stage.pass_time(stage.settings.unreachable_delay_ms + 30_000)
    assert not any(frame.entries for frame in frames)
    (row,) = executor_views(stage.catalog, stage.fleet, stage.now_ms)
    assert row["state"] == "RUNNING" and "cannot reach" in row["reason"]


def end_by_silence(stage: Stage) -> a.Frame:
    """Let the executors be silent until the first launch is given up; return that frame."""
    for _ in range(0, 2 * stage.settings.unreachable_delay_ms, 500):
        frame = stage.tick()
        if entries_of(frame, e.LaunchEnded):
            return frame
    raise AssertionError("no launch was given up")


def test_an_unreachable_and_silent_executor_is_replaced_after_the_delay_and_not_before() -> None:
    stage = Stage(instances=1, unreachable_delay_ms=60_000).start()
    launch = stage.launch(1)
    stage.status(launch.task_id, "TASK_UNREACHABLE")
    heard_ms = stage.fleet.executors[launch.launch_id].heard_ms
    frame = end_by_silence(stage)
    assert stage.now_ms - heard_ms in range(60_001, 61_000)
    (ended,) = entries_of(frame, e.LaunchEnded)
    assert "silent" in ended.reason and "TASK_UNREACHABLE" in ended.reason
    assert actions_of(frame, a.Kill) == [a.Kill(launch.task_id, "agent-1", 5_000)]
    stage.tick()
    assert entries_of(stage.offer("agent-2"), e.LaunchPlanned)
    assert stage.beat(launch).status == "stale"
    stage.fleet.endings.clear()  # the agent was away for longer than kills were repeated
    frame = stage.status(launch.task_id, "TASK_RUNNING", reason="REASON_AGENT_REREGISTERED")
    assert actions_of(frame, a.Kill) and not frame.entries, "what returns too late is killed"


@pytest.mark.parametrize("returns_by", ["task", "heartbeat"])
def test_a_lost_executor_that_returns_in_time_is_as_it_was(returns_by: str) -> None:
    stage = Stage(instances=1, unreachable_delay_ms=60_000).start()
    launch = stage.launch(1)
    stage.status(launch.task_id, "TASK_UNREACHABLE")
    stage.pass_time(50_000, beating=False)
    if returns_by == "task":
        stage.status(launch.task_id, "TASK_RUNNING", reason="REASON_AGENT_REREGISTERED")
        frames = stage.pass_time(5_000, beating=False)
        assert not any(actions_of(f, a.ShutdownExecutor) for f in frames), "its heartbeat is on its way"
    assert stage.beat(launch).status == "ok"
    frames = stage.pass_time(120_000)
    assert not any(f.entries or actions_of(f, a.Kill) or actions_of(f, a.ShutdownExecutor) for f in frames)
    assert stage.launch(1) is launch


def test_nobody_is_told_to_end_where_mesos_reaches_no_agent() -> None:
    stage = Stage(instances=1).start()
    stage.status(stage.launch(1).task_id, "TASK_UNREACHABLE")
    frames = stage.pass_time(60_000, beating=False)
    assert not any(actions_of(f, a.ShutdownExecutor) or actions_of(f, a.Kill) for f in frames)
    (row,) = executor_views(stage.catalog, stage.fleet, stage.now_ms)
    assert row["state"] == "LOST" and "cannot reach" in row["reason"] and "300000 ms" in row["reason"]


def test_a_silent_executor_is_shut_down_and_its_slot_launched_anew_once_it_is_dead() -> None:
    stage = Stage(instances=1).start()
    launch = stage.launch(1)
    frames = stage.pass_time(stage.settings.heartbeat_timeout_ms - 500, beating=False)
    assert not any(frame.entries or actions_of(frame, a.ShutdownExecutor) for frame in frames)
    frame = stage.tick()
    assert frame.actions == (a.ShutdownExecutor(launch.task_id, "agent-1", launch.launch_id),)
    frames = stage.pass_time(11_000, beating=False)
    assert sum(bool(actions_of(f, a.ShutdownExecutor)) for f in frames) == 1, "repeated, ever more rarely"
    assert entries_of(stage.do(ev.ExecutorEnded("agent-1", launch.task_id, 9)), e.LaunchEnded)
    stage.tick()
    assert entries_of(stage.offer("agent-2"), e.LaunchPlanned)
    assert stage.beat(launch).status == "stale"


def test_a_silent_executor_that_is_heard_again_lives() -> None:
    stage = Stage(instances=1).start()
    launch = stage.launch(1)
    frames = stage.pass_time(20_000, beating=False)
    assert any(actions_of(f, a.ShutdownExecutor) for f in frames)
    stage.beat(launch)
    assert not any(f.entries or actions_of(f, a.ShutdownExecutor) for f in stage.pass_time(60_000))


def shutdowns(frames: list[a.Frame]) -> set[int]:
    return {call.launch_id for frame in frames for call in actions_of(frame, a.ShutdownExecutor)}


def test_a_leader_that_hears_nobody_any_more_ends_nobody_for_it() -> None:
    """Its own API cannot be reached: Mesos would end an executor after the other, and all serve."""
    stage = Stage(instances=5).start()
    for launch in list(stage.catalog.launches.values()):
        stage.beat(launch, after_ms=190)  # they do not beat in one moment
    assert not shutdowns(stage.pass_time(60_000, beating=False))
    assert stage.fleet.mass_silence.reason == "5 of 5 executors are silent at once"
    for slot_id in (1, 2, 3):
        stage.beat(stage.launch(slot_id))
    assert not shutdowns(stage.pass_time(5_000)), "the others are about to be heard again, too"
    for slot_id in (4, 5):
        stage.beat(stage.launch(slot_id))
    assert not shutdowns(stage.pass_time(60_000)) and not stage.fleet.mass_silence.reason
    assert stage.catalog.launch_id_next == 6


def test_a_take_over_that_no_executor_reaches_ends_nobody() -> None:
    stage = Stage(instances=20).start()
    stage.lead()
    stage.subscribe()
    for number, launch in enumerate(list(stage.catalog.launches.values())):
        if number % 4:  # of the others Mesos has not said anything yet
            stage.status(launch.task_id, "TASK_RUNNING", agent_id=launch.agent_id)
    delay_ms = stage.settings.unreachable_delay_ms
    assert not shutdowns(stage.pass_time(delay_ms - 1_000, beating=False))
    assert "20 of 20" in stage.fleet.mass_silence.reason
    assert actions_of(end_by_silence(stage), a.Kill), "then they are replaced, as those of lost agents are"


def test_one_that_hangs_among_several_is_ended_and_so_are_half() -> None:
    stage = Stage(instances=4).start()
    hanging = {stage.launch(3).launch_id, stage.launch(4).launch_id}
    frames = []
    for _ in range(12):
        for slot_id in (1, 2):
            stage.beat(stage.launch(slot_id))
        frames += [stage.tick(), stage.tick()]
    assert shutdowns(frames) == hanging and not stage.fleet.mass_silence.reason


def test_executors_whose_silence_mesos_explains_do_not_save_one_that_hangs() -> None:
    stage = Stage(instances=5).start(agents=4)
    for slot_id in (3, 4):
        stage.status(stage.launch(slot_id).task_id, "TASK_UNREACHABLE", agent_id=f"agent-{slot_id}")
    stage.offer("agent-5")  # on its way up: not heard yet
    frames = []
    for _ in range(12):
        stage.beat(stage.launch(1))
        frames += [stage.tick(), stage.tick()]
    assert shutdowns(frames) == {stage.launch(2).launch_id}


def test_an_agent_that_mesos_drains_gets_its_slot_launched_elsewhere_without_back_off() -> None:
    stage = Stage(instances=1).start()
    launch = stage.launch(1)
    for _ in range(3):
        frame = stage.status(
            stage.launch(1).task_id, "TASK_KILLED", reason="REASON_AGENT_DRAINING", uuid=b"u"
        )
        assert entries_of(frame, e.LaunchEnded)
        stage.tick(1)
        assert not stage.fleet.backoffs
        assert entries_of(stage.offer("agent-2"), e.LaunchPlanned)
    assert stage.launch(1).launch_id == launch.launch_id + 3


def test_an_unknown_task_is_not_believed_soon_after_a_new_master() -> None:
    stage = Stage(instances=1, register_timeout_ms=600_000)
    stage.lead()
    stage.subscribe()
    stage.offer("agent-1")
    task_id = stage.launch(1).task_id
    stage.do(ev.Disconnected())
    stage.do(ev.Subscribed("framework-1", "master-2"))
    asked = 0
    for _ in range(0, stage.settings.unknown_patience_ms - 1_000, 1_000):
        frame = stage.tick(1_000)
        if any(call.tasks for call in actions_of(frame, a.Reconcile)):
            asked += 1
            assert not stage.status(task_id, "TASK_UNKNOWN", reason="REASON_RECONCILIATION").entries
    assert 4 <= asked <= 9, "asked again, with back-off"
    stage.pass_time(40_000, beating=False)
    frame = stage.status(task_id, "TASK_UNKNOWN", reason="REASON_RECONCILIATION")
    assert entries_of(frame, e.LaunchEnded) and actions_of(frame, a.Kill)


def test_an_unknown_task_whose_executor_answers_is_never_believed() -> None:
    stage = Stage(instances=1).start()
    launch = stage.launch(1)
    stage.pass_time(stage.settings.unknown_patience_ms + 10_000)
    assert not stage.status(launch.task_id, "TASK_UNKNOWN").entries


@pytest.mark.parametrize("is_heard", [True, False])
def test_an_unknown_task_of_an_executor_that_came_up_waits_as_long_as_an_unreachable_one(
    is_heard: bool,
) -> None:
    """A new master that does not know the agent is no better proof than one that cannot reach it."""
    stage = Stage(instances=1, unknown_patience_ms=1_000).start()
    task_id, delay_ms = stage.launch(1).task_id, stage.settings.unreachable_delay_ms
    if not is_heard:
        stage.lead()
        stage.subscribe()
    for _ in range(0, delay_ms - 15_000, 5_000):
        frames = stage.pass_time(5_000, beating=False)
        frames.append(stage.status(task_id, "TASK_UNKNOWN", reason="REASON_RECONCILIATION"))
        assert not any(entries_of(frame, e.LaunchEnded) for frame in frames)
    assert actions_of(end_by_silence(stage), a.Kill)


def test_an_executor_is_ended_by_kill_with_a_grace_and_by_shutdown_ever_more_rarely() -> None:
    stage = Stage(instances=1, kill_grace_ms=7_000, unreachable_delay_ms=20_000).start()
    launch = stage.launch(1)
    first = end_by_silence(stage)
    at_ms = [stage.now_ms]
    pair = [a.ShutdownExecutor(launch.task_id, "agent-1"), a.Kill(launch.task_id, "agent-1", 7_000)]
    assert actions_of(first, a.ShutdownExecutor) + actions_of(first, a.Kill) == pair
    for _ in range(160):
        frame = stage.tick(500)
        if kills := actions_of(frame, a.Kill):
            assert actions_of(frame, a.ShutdownExecutor) + kills == pair
            at_ms.append(stage.now_ms)
    gaps = [later - sooner for sooner, later in zip(at_ms, at_ms[1:], strict=False)]
    assert len(gaps) >= 3 and all(b >= 2 * a_ - 1_000 for a_, b in zip(gaps, gaps[1:], strict=False)), gaps


def test_kills_are_repeated_until_mesos_says_that_it_is_dead() -> None:
    stage = Stage(instances=1, unreachable_delay_ms=20_000).start()
    launch = stage.launch(1)
    end_by_silence(stage)
    frames = stage.pass_time(60_000, beating=False)
    assert sum(bool(actions_of(f, a.Kill)) for f in frames) >= 3
    stage.status(launch.task_id, "TASK_KILLED", uuid=b"u")
    assert not any(actions_of(f, a.Kill) for f in stage.pass_time(60_000, beating=False))


def test_a_kill_that_never_works_is_given_up_and_taken_up_again_by_reconciliation() -> None:
    stage = Stage(instances=1, kill_tries_max=2, unreachable_delay_ms=20_000).start()
    launch = stage.launch(1)
    end_by_silence(stage)
    stage.pass_time(60_000, beating=False)
    assert not stage.fleet.endings
    frame = stage.status(launch.task_id, "TASK_RUNNING")
    assert actions_of(frame, a.Kill) and actions_of(frame, a.ShutdownExecutor)


def test_an_executor_is_not_blamed_for_our_own_pause() -> None:
    """The machine was suspended: CLOCK_BOOTTIME went on, nobody could be heard."""
    stage = Stage(instances=1).start()
    assert not stage.tick(after_ms=3_600_000).entries
    frames = stage.pass_time(stage.settings.heartbeat_timeout_ms - 1_000, beating=False)
    assert not any(frame.entries or actions_of(frame, a.ShutdownExecutor) for frame in frames)
    assert any(actions_of(f, a.ShutdownExecutor) for f in stage.pass_time(2_000, beating=False))


def test_nothing_is_ended_for_silence_without_mesos() -> None:
    stage = Stage(instances=1).start()
    stage.do(ev.Disconnected())
    frames = stage.pass_time(stage.settings.unreachable_delay_ms + 60_000, beating=False)
    assert not any(frame.entries or frame.actions for frame in frames)


def test_an_executor_that_never_comes_is_given_up() -> None:
    stage = Stage(instances=1)
    stage.lead()
    stage.subscribe()
    stage.offer("agent-1")
    frames = stage.pass_time(stage.settings.register_timeout_ms)
    assert not any(entries_of(f, e.LaunchEnded) for f in frames)
    (ended,) = entries_of(stage.tick(1_000), e.LaunchEnded)
    assert "was not heard within 60000 ms" in ended.reason


@pytest.mark.parametrize(
    ("wait_status", "says"),
    [
        (9, "killed by signal 9"),
        (1 << 8, "exit status 1"),
        (127 << 8, f"exit status 127{NOT_FOUND_HINT}"),
    ],
)
def test_an_executor_end_tells_how(wait_status: int, says: str) -> None:
    stage = Stage(instances=1).start()
    frame = stage.do(ev.ExecutorEnded("agent-1", stage.launch(1).task_id, wait_status))
    (ended,) = entries_of(frame, e.LaunchEnded)
    assert ended.reason == f"its process ended on agent-1: {says}"
    assert not stage.do(ev.ExecutorEnded("agent-1", "somebody else's", 9)).entries


def test_the_back_off_doubles_to_its_maximum_and_forgets_after_health() -> None:
    stage = Stage(instances=1, relaunch_delay_ms_max=1_600).start()
    delays = []
    for _ in range(6):
        stage.do(ev.ExecutorEnded("agent-1", stage.launch(1).task_id, 9))
        stage.tick(1)
        delays.append(stage.fleet.backoffs[1].delay_ms)
        stage.tick(2_000)
        stage.offer("agent-1")
    assert delays == [200, 400, 800, 1600, 1600, 1600]
    stage.beat(stage.launch(1), whole=True)
    stage.pass_time(stage.settings.flap_reset_ms)
    stage.do(ev.ExecutorEnded("agent-1", stage.launch(1).task_id, 9))
    stage.tick(1)
    assert stage.fleet.backoffs[1].delay_ms == 200


def test_a_removed_agent_ends_a_launch_that_was_never_heard_and_no_other() -> None:
    stage = Stage(instances=2)
    stage.lead()
    stage.subscribe()
    stage.offer("agent-1", "agent-2")
    stage.beat(stage.launch(1), whole=True)
    assert not stage.do(ev.AgentRemoved("agent-1")).entries
    assert entries_of(stage.do(ev.AgentRemoved("agent-2")), e.LaunchEnded)


def test_an_agent_that_was_marked_gone_while_mesos_drained_it_ends_the_launch() -> None:
    stage = Stage(instances=1).start()
    frame = stage.status(
        stage.launch(1).task_id, "TASK_GONE_BY_OPERATOR", reason="REASON_AGENT_DRAINING", uuid=b"u"
    )
    assert [type(x) for x in frame.entries] == [e.LaunchEnded]


def test_a_removed_agent_does_not_end_what_an_earlier_leadership_launched() -> None:
    """Its executor is perhaps only not heard yet: the fail-over was just now."""
    stage = Stage(instances=2).start()
    launch = stage.launch(1)
    stage.lead()
    stage.subscribe()
    frame = stage.do(ev.AgentRemoved("agent-1"))
    assert not frame.entries and not frame.actions
    assert stage.beat(launch, whole=True).status == "ok"


# --- take-over and reconciliation


def test_asks_for_each_task_until_it_is_answered_then_for_all() -> None:
    stage = Stage(instances=2).start()
    first, second = stage.launch(1), stage.launch(2)
    stage.lead()
    (asked,) = actions_of(stage.subscribe(), a.Reconcile)
    assert asked.tasks == ((first.task_id, "agent-1"), (second.task_id, "agent-2"))
    stage.status(first.task_id, "TASK_RUNNING")
    frames = stage.pass_time(20_000, beating=False)
    calls = [call for frame in frames for call in actions_of(frame, a.Reconcile)]
    assert all(call.tasks == ((second.task_id, "agent-2"),) for call in calls) and 3 <= len(calls) <= 5
    stage.status(second.task_id, "TASK_RUNNING")
    assert actions_of(stage.tick(), a.Reconcile) == [a.Reconcile(())]
    assert not any(actions_of(f, a.Reconcile) for f in stage.pass_time(60_000))


def test_a_launch_that_was_journaled_but_never_made_is_found_and_made_again() -> None:
    stage = Stage(instances=1)
    stage.lead()
    stage.subscribe()
    stage.offer("agent-1")
    task_id = stage.launch(1).task_id
    stage.lead()
    stage.subscribe()
    stage.status(task_id, "TASK_GONE")
    stage.tick()
    (launch,) = entries_of(stage.offer("agent-1"), e.LaunchPlanned)
    assert launch.task_id == "stoker-00010203-e2-s1-l2"


def test_executors_that_outlived_the_leader_are_adopted() -> None:
    stage = Stage(instances=2).start()
    launches = [stage.launch(1), stage.launch(2)]
    stage.lead()
    stage.subscribe()
    for launch in launches:
        stage.status(launch.task_id, "TASK_RUNNING", agent_id=launch.agent_id)
        assert stage.beat(launch, whole=False).want_whole
        assert not stage.beat(launch, whole=True).want_whole
    assert not any(f.entries for f in stage.pass_time(30_000))
    assert not stage.catalog.slots[1].ended_count


def test_executors_that_did_not_outlive_the_leader_are_told_to_end_after_the_grace() -> None:
    stage = Stage(instances=1, unreachable_delay_ms=60_000).start()
    task_id = stage.launch(1).task_id
    stage.lead()
    stage.subscribe()
    stage.status(task_id, "TASK_RUNNING")
    grace_ms = max(stage.settings.heartbeat_timeout_ms, stage.settings.residency_grace_ms)
    assert not any(f.entries or actions_of(f, a.ShutdownExecutor) for f in stage.pass_time(grace_ms))
    assert actions_of(stage.tick(1_000), a.ShutdownExecutor)
    frame = end_by_silence(stage)
    assert actions_of(frame, a.Kill)


def test_a_stray_task_of_this_cluster_is_killed_and_no_other() -> None:
    stage = Stage(instances=1).start()
    frame = stage.status("stoker-00010203-e0-s9-l1", "TASK_RUNNING", uuid=b"u")
    assert actions_of(frame, a.Kill) and actions_of(frame, a.Acknowledge)
    for task_id in ("stoker-ffffffff-e0-s9-l1", "somebody-else", "stoker-00010203-e1-s9-l99"):
        assert not actions_of(stage.status(task_id, "TASK_RUNNING", uuid=b"u"), a.Kill)
    assert not actions_of(stage.status("stoker-00010203-e0-s8-l1", "TASK_LOST"), a.Kill)


# --- the wanted fleet


def ask_fleet(stage: Stage, instances: int, mem_bytes: int = 64 * MIB, role: str = "*") -> a.Answer:
    return stage.ask(ev.FleetRequested(7, FleetSpec(instances, mem_bytes, role=role)))


def test_a_smaller_fleet_gives_up_slots_without_executors_first() -> None:
    stage = Stage(instances=3).start(agents=2)
    answer = ask_fleet(stage, 2)
    wanted = {"instances": 2, "mem_bytes": 64 * MIB, "role": "*", "running": 2}
    assert answer.body | wanted == answer.body
    assert set(stage.catalog.slots) == {1, 2} and len(stage.catalog.launches) == 2
    launch = stage.launch(2)
    ask_fleet(stage, 1)
    assert set(stage.catalog.slots) == {1}
    assert stage.beat(launch).status == "stale"
    ask_fleet(stage, 2)
    assert set(stage.catalog.slots) == {1, 4}, "ids are not used again"


def test_an_empty_fleet_wants_no_offers() -> None:
    stage = Stage(instances=1).start()
    ask_fleet(stage, 0)
    stage.tick()
    assert not stage.catalog.slots and stage.fleet.suppressed


def test_resizes_executors_one_at_a_time() -> None:
    stage = Stage(instances=2).start()
    ask_fleet(stage, 2, 96 * MIB)
    stage.tick()
    stage.offer("agent-1", "agent-2")
    stage.pass_time(2_000)
    assert len(stage.catalog.launches) == 1, "the other waits until this one runs"
    stage.offer("agent-1", "agent-2")
    (planned,) = [x for x in stage.catalog.launches.values() if x.mem_bytes == 96 * MIB]
    stage.pass_time(2_000)
    assert len(stage.catalog.launches) == 2
    stage.offer("agent-2")
    stage.beat(planned, whole=True)
    stage.tick()
    assert list(stage.catalog.launches.values()) == [planned]


@pytest.mark.parametrize(
    ("instances", "mem_bytes", "role", "says"),
    [
        (-1, 64 * MIB, "*", "instances is -1"),
        (10**9, 64 * MIB, "*", "instances is"),
        (1, 1, "*", "mem_bytes is 1"),
        (1, 2**70, "*", "mem_bytes is"),
        (1, 64 * MIB, ".other", "the role is '.other'"),
    ],
)
def test_refuses_a_fleet_that_cannot_be(instances: int, mem_bytes: int, role: str, says: str) -> None:
    stage = Stage(instances=1).start()
    before = stage.catalog.snapshot()
    answer = ask_fleet(stage, instances, mem_bytes, role)
    assert answer.refusal is not None and answer.status == 400 and says in answer.refusal.message
    assert stage.catalog.snapshot() == before


def test_a_slot_without_an_executor_leaves_the_placement_after_a_while_and_returns() -> None:
    stage = Stage(instances=3, slot_out_ms=20_000).start(agents=2)
    dataset = stage.ready(blocks=64)
    homes = stage.catalog.homes(dataset).copy()
    stage.pass_time(21_000)
    assert stage.catalog.is_out(3)
    assert [s.slot_id for s in stage.catalog.slot_order()] == [1, 2, 3]
    out = stage.catalog.homes(dataset)
    assert (out < 2).all() and (out[homes < 2] == homes[homes < 2]).all(), "only its own share moved"
    stage.offer("agent-3")
    stage.beat(stage.launch(3), whole=True)
    stage.tick()
    assert not stage.catalog.is_out(3) and (stage.catalog.homes(dataset) == homes).all()

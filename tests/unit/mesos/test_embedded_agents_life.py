"""Agents that come and go: stopped, frozen, unreachable, back, wiped. Orders, states and texts are those of transcripts 12 to 12g."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from stoker.mesos.embedded.core.cluster import Refusal
from stoker.mesos.embedded.core.codec import Message
from stoker.mesos.embedded.core.recovery import AgentCheckpoint
from stoker.mesos.embedded.core.resources import plain
from support.embedded_bench import PINGS, WALL_MS, Bench, cpus, executor, make_uuid, running, since, task


def resubscribe(
    bench: Bench, updates: list[Message] | None = None, tasks: list[Message] | None = None
) -> int:
    body = {"unacknowledged_updates": updates or [], "unacknowledged_tasks": tasks or []}
    result = bench.executor_call("SUBSCRIBE", body)
    assert isinstance(result, int), result
    return result


def update_message(state: str, number: int, task_id: str = "t1") -> Message:
    uuid = make_uuid(number)
    return {
        "status": {"task_id": {"value": task_id}, "state": state, "uuid": uuid, "source": "SOURCE_EXECUTOR"}
    }


def reconcile(bench: Bench, stream: int, task_id: str = "t1", agent_id: str | None = "S0") -> Message | None:
    """Return the answer to an explicit RECONCILE, or None."""
    before = len(bench.statuses(stream))
    item: Message = {"task_id": {"value": task_id}}
    if agent_id is not None:
        item["agent_id"] = {"value": agent_id}
    framework_id = bench.events[stream][0]["subscribed"]["framework_id"]["value"]
    bench.call(stream, "RECONCILE", {"tasks": [item]}, framework_id=framework_id)
    found = bench.statuses(stream)[before:]
    return found[0] if found else None


# The connection breaks.


def test_offers_of_a_killed_agent_are_rescinded_at_once_and_its_tasks_stay() -> None:
    bench, stream, agent_stream = running()
    mark = len(bench.events[stream])
    bench.stop()
    assert since(bench, stream, mark) == ["RESCIND"]
    assert bench.aborted == [agent_stream] and bench.ended == [1]
    answer = reconcile(bench, stream)
    assert answer is not None and answer["state"] == "TASK_RUNNING"


@pytest.mark.parametrize(("step_ms", "first_ms", "last_ms"), [(1000, 5000, 6000), (15_000, 75_000, 90_000)])
def test_missed_pings_make_an_agent_unreachable(step_ms: int, first_ms: int, last_ms: int) -> None:
    bench = Bench(agent_ping_timeout_ms=step_ms)
    stream = bench.subscribe()
    bench.run(stream)
    bench.advance(20_500)
    bench.stop()
    mark = len(bench.events[stream])
    bench.advance(20_500 + first_ms - 1)
    assert since(bench, stream, mark) == []
    bench.advance(20_500 + last_ms)
    assert since(bench, stream, mark) == ["TASK_UNREACHABLE", "FAILURE"]


def test_an_unreachable_task_is_told_with_the_time_and_without_uuid() -> None:
    bench, stream, _ = running()
    bench.stop()
    bench.advance(10_000)
    status = bench.statuses(stream)[-1]
    at_ns = (WALL_MS + 6000) * 1_000_000
    assert status == {
        "task_id": {"value": "t1"},
        "state": "TASK_UNREACHABLE",
        "message": "health check timed out",
        "source": "SOURCE_MASTER",
        "reason": "REASON_AGENT_REMOVED",
        "agent_id": {"value": "S0"},
        "executor_id": {"value": "e1"},
        "timestamp": (WALL_MS + 6000) / 1000,
        "unreachable_time": {"nanoseconds": at_ns},
    }
    (failure,) = (event["failure"] for event in bench.events[stream] if event["type"] == "FAILURE")
    assert failure == {"agent_id": {"value": "S0"}}


def test_what_is_asked_about_an_unreachable_agent() -> None:
    bench, stream, _ = running()
    bench.stop()
    bench.advance(10_000)
    known = reconcile(bench, stream)
    assert known is not None and known["state"] == "TASK_UNREACHABLE"
    assert known["message"] == "Reconciliation: Task is unreachable" and "executor_id" not in known
    assert known["unreachable_time"] == {"nanoseconds": (WALL_MS + 6000) * 1_000_000}
    never = reconcile(bench, stream, "never")
    assert never is not None and never["state"] == "TASK_UNREACHABLE"
    without = reconcile(bench, stream, agent_id=None)
    assert without is not None and without["state"] == "TASK_UNKNOWN"
    before = len(bench.statuses(stream))
    bench.call(stream, "RECONCILE", {"tasks": []})
    assert len(bench.statuses(stream)) == before
    bench.call(stream, "KILL", {"task_id": {"value": "t1"}, "agent_id": {"value": "S0"}})
    assert bench.statuses(stream)[-1]["state"] == "TASK_UNREACHABLE"


def test_a_framework_of_the_old_kind_hears_of_lost_tasks() -> None:
    bench = Bench(**PINGS)
    stream = bench.subscribe(capabilities=[{"type": "MULTI_ROLE"}, {"type": "RESERVATION_REFINEMENT"}])
    bench.run(stream)
    bench.stop()
    bench.advance(10_000)
    status = bench.statuses(stream)[-1]
    assert status["state"] == "TASK_LOST" and "unreachable_time" in status
    answer = reconcile(bench, stream)
    assert answer is not None and answer["state"] == "TASK_LOST"


# Back.


def test_back_in_time_nothing_is_told_but_offers() -> None:
    bench, stream, _ = running()
    mark = len(bench.events[stream])
    bench.stop()
    bench.advance(2000)
    bench.start()
    bench.advance(2300)
    resubscribe(bench)
    bench.advance(4050)
    assert since(bench, stream, mark) == ["RESCIND"]
    bench.advance(6000)
    assert since(bench, stream, mark) == ["RESCIND", "OFFERS"]
    assert bench.offers(stream)[-1]["agent_id"] == {"value": "S0"}
    assert bench.offers(stream)[-1]["executor_ids"] == [{"value": "e1"}]


@pytest.mark.parametrize(("has_executor", "wait_ms"), [(True, 2110), (False, 110)])
def test_an_agent_with_executors_waits_for_them_before_it_registers(has_executor: bool, wait_ms: int) -> None:
    bench = Bench(**PINGS)
    stream = bench.subscribe()
    if has_executor:
        bench.run(stream)
    bench.stop()
    bench.start()
    (record,) = bench.cluster.master.agents.values()
    bench.advance(wait_ms - 1)
    assert not record.is_connected
    bench.advance(wait_ms)
    assert record.is_connected and record.reregistered_ms == wait_ms


def test_an_agent_that_recovers_answers_its_executors_503() -> None:
    bench, _, _ = running()
    bench.stop()
    bench.start()
    answer = bench.executor_call("SUBSCRIBE", {})
    assert not isinstance(answer, int) and (answer.status, answer.text) == (
        503,
        "Agent has not finished recovery",
    )
    bench.advance(1100)
    agent_stream = resubscribe(bench)
    assert bench.kinds(agent_stream) == ["SUBSCRIBED"]
    container = bench.events[agent_stream][0]["subscribed"]["container_id"]["value"]
    assert container == bench.started[0].container_id


def test_a_task_of_an_unreachable_agent_comes_back_by_itself() -> None:
    bench, stream, _ = running()
    bench.stop()
    bench.advance(8000)
    mark = len(bench.events[stream])
    bench.start()
    bench.advance(8200)
    resubscribe(bench)
    bench.advance(10_200)
    assert since(bench, stream, mark) == ["TASK_RUNNING", "OFFERS"]
    status = bench.statuses(stream)[-1]
    assert status["message"] == "Unreachable agent re-reregistered"
    assert status["reason"] == "REASON_AGENT_REREGISTERED" and status["source"] == "SOURCE_MASTER"
    assert "uuid" not in status and status["executor_id"] == {"value": "e1"}
    assert status["container_status"]["container_id"]["value"] == bench.started[0].container_id
    bench.update("t1", "TASK_FINISHED", 2)
    assert bench.states(stream)[-1] == "TASK_FINISHED"


def test_updates_that_wait_come_twice_after_the_return() -> None:
    bench, stream, _ = running()
    bench.update("t1", "TASK_RUNNING", 2, message="taken by the agent, not acknowledged")
    bench.stop()
    mark = len(bench.events[stream])
    bench.start()
    bench.advance(1200)
    agent_stream = resubscribe(bench, [update_message("TASK_FINISHED", 3)])
    assert bench.kinds(agent_stream) == ["SUBSCRIBED", "ACKNOWLEDGED"]
    assert since(bench, stream, mark) == []
    bench.advance(3999)
    assert since(bench, stream, mark) == ["TASK_RUNNING", "TASK_RUNNING"]
    assert {status["uuid"] for status in bench.statuses(stream)[-2:]} == {make_uuid(2)}
    bench.acknowledge(stream, "t1", make_uuid(2))
    assert bench.states(stream)[-1] == "TASK_FINISHED"


def test_a_checkpoint_is_found_again_as_it_was_written() -> None:
    """The shell writes it as JSON; what an agent recovers from it is what it recovers from itself."""
    bench, stream, _ = running()
    bench.update("t1", "TASK_RUNNING", 2)
    bench.launch(stream, task("t2"))
    agent = bench.cluster.agents[0]
    kept = agent.checkpoint()
    assert kept.container_ids() == {bench.started[0].container_id}
    bench.stop()
    assert agent.checkpoint() == kept
    bench.start(kept=AgentCheckpoint.from_message(json.loads(json.dumps(kept.as_message()))))
    bench.advance(1100)
    assert agent.checkpoint() == kept


def test_an_executor_that_comes_too_late_is_killed() -> None:
    bench, stream, _ = running()
    bench.stop()
    bench.start()
    bench.advance(3099)
    assert not bench.killed
    mark = len(bench.events[stream])
    bench.advance(3200)
    assert bench.killed == [bench.started[0].container_id]
    assert bench.executor_call("SUBSCRIBE", {}) == bench.open_stream() - 1
    assert bench.kinds(max(bench.events) - 1) == ["SHUTDOWN"]
    bench.exit(9)
    bench.advance(4700)
    assert [kind for kind in since(bench, stream, mark) if kind != "OFFERS"] == ["FAILURE", "TASK_GONE"]
    status = bench.statuses(stream)[-1]
    assert status["reason"] == "REASON_EXECUTOR_REREGISTRATION_TIMEOUT" and "uuid" in status
    assert status["message"] == "Executor did not reregister within 2secs"
    assert status["source"] == "SOURCE_AGENT" and status["executor_id"] == {"value": "e1"}


@pytest.mark.parametrize("is_listed", [True, False])
def test_a_silent_task_is_dropped_if_its_executor_does_not_list_it(is_listed: bool) -> None:
    bench, stream, _ = running()
    bench.launch(stream, silent := task("t2"))
    bench.stop()
    mark = len(bench.events[stream])
    bench.start()
    bench.advance(1200)
    resubscribe(bench, tasks=[silent] if is_listed else [])
    bench.advance(3200)
    states = [] if is_listed else ["TASK_DROPPED", "TASK_DROPPED"]
    assert [kind for kind in since(bench, stream, mark) if kind != "OFFERS"] == states
    if not is_listed:
        status = bench.statuses(stream)[-1]
        assert status["reason"] == "REASON_AGENT_RESTARTED" and status["source"] == "SOURCE_AGENT"
        assert status["message"] == "Task launched during agent restart" and "uuid" in status
        assert status["executor_id"] == {"value": "e1"} and "container_status" not in status


def test_executors_are_dead_after_the_machine_started_again() -> None:
    bench, stream, _ = running()
    bench.stop()
    mark = len(bench.events[stream])
    bench.start(is_rebooted=True)
    bench.advance(2000)
    assert [kind for kind in since(bench, stream, mark) if kind != "OFFERS"] == ["TASK_FAILED", "TASK_FAILED"]
    assert cpus(bench.offers(stream)[-1]) == 4


def test_an_executor_that_died_while_its_agent_was_away_is_found_dead() -> None:
    bench, stream, _ = running()
    bench.stop()
    bench.exit(768)
    mark = len(bench.events[stream])
    bench.start()
    bench.advance(3200)
    assert since(bench, stream, mark)[:2] == ["TASK_FAILED", "TASK_FAILED"]
    assert not bench.cluster.agents[0].executors and not bench.killed


def test_the_end_of_an_executor_that_outlived_its_agent_is_noticed_late_and_for_certain() -> None:
    bench, stream, _ = running()
    bench.stop()
    bench.start()
    bench.advance(1200)
    resubscribe(bench)
    bench.advance(4000)
    bench.exit(9)
    mark = len(bench.events[stream])
    bench.advance(5499)
    assert since(bench, stream, mark) == []
    bench.stop()  # before it has noticed
    bench.start()
    bench.advance(8000)
    assert since(bench, stream, mark)[:3] == ["RESCIND", "TASK_FAILED", "TASK_FAILED"]


# Without checkpoint.


def test_without_checkpoint_tasks_are_lost_when_the_agent_is() -> None:
    bench = Bench(**PINGS)
    stream = bench.subscribe(checkpoint=False)
    bench.run(stream)
    mark = len(bench.events[stream])
    bench.stop()
    assert since(bench, stream, mark) == ["TASK_LOST"]
    status = bench.statuses(stream)[-1]
    assert status["message"] == "Agent 127.0.0.10 disconnected" and "uuid" not in status
    assert status["reason"] == "REASON_AGENT_DISCONNECTED" and status["executor_id"] == {"value": "e1"}
    bench.exit(0)
    bench.start()
    bench.advance(2000)
    assert since(bench, stream, mark) == ["TASK_LOST", "OFFERS"]
    assert cpus(bench.offers(stream)[-1]) == 4
    answer = reconcile(bench, stream)
    assert answer is not None and answer["state"] == "TASK_GONE"


# The window in which an agent is away.


def test_a_launch_that_never_arrived_is_dropped_after_the_return() -> None:
    bench, stream, _ = running()
    bench.stop(how="freeze")
    bench.launch(stream, task("t2", "e2"))
    answer = reconcile(bench, stream, "t2")
    assert (
        answer is not None and answer["state"] == "TASK_STAGING" and answer["executor_id"] == {"value": "e2"}
    )
    bench.stop()
    mark = len(bench.events[stream])
    bench.call(stream, "KILL", {"task_id": {"value": "t1"}, "agent_id": {"value": "S0"}})
    body = {"agent_id": {"value": "S0"}, "executor_id": {"value": "e1"}, "data": "aGk="}
    bench.call(stream, "MESSAGE", body)
    bench.start()
    bench.advance(1200)
    agent_stream = resubscribe(bench)
    assert bench.kinds(agent_stream) == ["SUBSCRIBED"]
    bench.advance(3200)
    assert bench.kinds(agent_stream) == ["SUBSCRIBED", "KILL"]
    assert [kind for kind in since(bench, stream, mark) if kind != "OFFERS"] == ["TASK_DROPPED"] * 2
    status = bench.statuses(stream)[-1]
    assert status["message"] == "Reconciliation: task unknown to the agent"
    assert (status["source"], status["reason"]) == ("SOURCE_AGENT", "REASON_RECONCILIATION")
    assert "uuid" in status and "executor_id" not in status
    bench.acknowledge(stream, "t2", status["uuid"])
    bench.advance(4200)
    assert bench.offers(stream)[-1]["executor_ids"] == [{"value": "e1"}]
    assert len(bench.started) == 1


def test_a_frozen_agent_does_late_what_it_was_told() -> None:
    bench, stream, agent_stream = running()
    bench.stop(how="freeze")
    bench.launch(stream, task("t2"))
    mark = len(bench.events[stream])
    bench.advance(4000)
    assert bench.kinds(agent_stream)[-1] != "LAUNCH"
    bench.start()
    assert bench.kinds(agent_stream)[-1] == "LAUNCH"
    bench.advance(20_000)
    assert "TASK_UNREACHABLE" not in since(bench, stream, mark)


def test_a_frozen_agent_is_noticed_by_its_pings_only_and_is_back_at_once() -> None:
    bench, stream, _ = running()
    mark = len(bench.events[stream])
    bench.stop(how="freeze")
    bench.advance(8000)
    assert since(bench, stream, mark) == ["TASK_UNREACHABLE", "RESCIND", "FAILURE"]
    bench.start()
    bench.advance(8010)
    assert since(bench, stream, mark)[3:] == ["TASK_RUNNING", "OFFERS"]
    bench.update("t1", "TASK_FINISHED", 2)
    assert bench.states(stream)[-1] == "TASK_FINISHED"


@pytest.mark.parametrize(
    ("cpus_now", "policy", "refusal"),
    [
        (6.0, "additive", None),
        (6.0, "equal", "Incompatible agent info detected: resources or attributes differ"),
        (2.0, "equal", "Incompatible agent info detected: resources or attributes differ"),
        (2.0, "additive", "is less than ports"),
    ],
)
def test_an_agent_that_is_not_what_it_was(cpus_now: float, policy: str, refusal: str | None) -> None:
    bench, stream, _ = running()
    bench.stop()
    given = plain(cpus=cpus_now, mem_mib=4096, disk_mib=8192, ports=(31_000, 31_099))
    if refusal is not None:
        with pytest.raises(Refusal, match=refusal):
            bench.start(resources=given, policy=policy)
        return
    bench.start(resources=given, policy=policy)
    bench.advance(1200)
    resubscribe(bench)
    bench.advance(5000)
    assert bench.offers(stream)[-1]["agent_id"] == {"value": "S0"}
    assert cpus(bench.offers(stream)[-1]) == pytest.approx(cpus_now - 1.1)


# Gone for good.


def test_a_wiped_agent_comes_as_another() -> None:
    bench, stream, _ = running(agents=2)
    mark = len(bench.events[stream])
    bench.stop()
    bench.start(is_wiped=True)
    bench.advance(1110)
    assert since(bench, stream, mark) == ["RESCIND", "TASK_LOST", "FAILURE", "OFFERS"]
    status = bench.statuses(stream)[-1]
    assert status["message"] == "Agent 127.0.0.10 removed: a new agent registered at the same address"
    assert status["reason"] == "REASON_AGENT_REMOVED" and "unreachable_time" not in status
    assert bench.offers(stream)[-1]["agent_id"]["value"] not in ("S0", "S1")
    answer = bench.executor_call("SUBSCRIBE", {})
    assert not isinstance(answer, int) and (answer.status, answer.text) == (400, "Framework cannot be found")


def test_an_agent_that_leaves_in_order() -> None:
    bench, stream, agent_stream = running()
    mark = len(bench.events[stream])
    bench.stop(how="usr1")
    assert bench.kinds(agent_stream)[-1] == "SHUTDOWN"
    assert since(bench, stream, mark) == ["TASK_LOST", "RESCIND", "FAILURE"]
    assert bench.statuses(stream)[-1]["message"] == "Agent 127.0.0.10 removed: the agent unregistered"
    assert not bench.ended
    bench.exit(0)
    assert bench.ended == [1]
    answer = reconcile(bench, stream)
    assert answer is not None and answer["state"] == "TASK_UNKNOWN"
    bench.start()
    bench.advance(1110)
    assert since(bench, stream, mark)[4:] == ["OFFERS"]
    assert bench.offers(stream)[-1]["agent_id"] == {"value": "S0"} and cpus(bench.offers(stream)[-1]) == 4


def test_an_agent_that_leaves_before_it_has_recovered_does_not_wait_for_the_dead() -> None:
    bench, _, _ = running()
    bench.stop()
    bench.exit(9)
    bench.start()
    bench.stop(how="usr1")
    assert bench.ended == [1, 1]


def test_a_task_id_of_an_unreachable_task_is_not_given_again() -> None:
    bench, stream, _ = running(agents=2)
    bench.stop()
    bench.advance(10_000)
    offer = next(offer for offer in bench.offers(stream) if offer["agent_id"]["value"] == "S1")
    bench.launch(stream, task("t1", agent_id="S1"), offer_ids=[offer["id"]])
    assert bench.statuses(stream)[-1]["message"] == "Task reuses the ID of an unreachable task: t1"


def test_a_framework_that_was_removed_meanwhile_is_shut_down_at_the_return() -> None:
    bench, stream, _ = running()
    bench.stop()
    bench.call(stream, "TEARDOWN")
    bench.start()
    bench.advance(1200)
    agent_stream = resubscribe(bench)
    bench.advance(3200)
    assert bench.kinds(agent_stream) == ["SUBSCRIBED", "SHUTDOWN"]
    bench.exit(0)
    bench.advance(4700)
    assert not bench.cluster.agents[0].frameworks


def test_what_is_remembered_of_unreachable_tasks_is_bounded() -> None:
    bench = Bench(**PINGS, unreachable_tasks_max=2)
    stream = bench.subscribe()
    bench.launch(stream, *(task(f"t{index}", cpus=0.1, executor=executor()) for index in range(4)))
    bench.stop()
    bench.advance(10_000)
    (framework,) = bench.cluster.master.frameworks.values()
    assert list(framework.unreachable_tasks) == ["t2", "t3"]


@pytest.mark.parametrize(
    ("before", "how"), [(["kill"], "kill"), (["kill"], "usr1"), (["freeze"], "freeze"), (["freeze"], "usr1")]
)
def test_what_cannot_be_done_with_an_agent_is_refused(before: list[Any], how: Any) -> None:
    bench, _, _ = running()
    for step in before:
        bench.stop(how=step)
    with pytest.raises(Refusal):
        bench.stop(how=how)


def test_an_agent_that_runs_is_not_started() -> None:
    bench, _, _ = running()
    with pytest.raises(Refusal, match="it cannot be started"):
        bench.start()
    with pytest.raises(Refusal, match="there is no agent 9"):
        bench.start(9)


def calls_of_a_life(agents: int) -> int:
    """Return how many calls of functions it takes to lose one of many agents, and to have it and its task back."""
    bench, stream, _ = running(agents)
    bench.check = lambda: None  # type: ignore[method-assign]
    count = 0

    def profile(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event == "call"

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        bench.stop()
        bench.advance(8000)
        bench.start()
        bench.advance(8200)
        resubscribe(bench)
        bench.advance(11_000)
        bench.call(stream, "RECONCILE", {"tasks": []})
    finally:
        sys.setprofile(before)
    assert bench.states(stream)[-1] == "TASK_RUNNING"
    return count


def test_what_happens_to_one_agent_does_not_cost_more_with_many() -> None:
    """Ten thousand of them are simulated: nothing may walk through all."""
    assert calls_of_a_life(160) < 1.3 * calls_of_a_life(10)

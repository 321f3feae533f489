"""What an operator orders: agents gone, drained, deactivated; maintenance of machines. Rules and texts are those of transcripts 12c and 14."""

from __future__ import annotations

from typing import Any

import pytest

from stoker.mesos.embedded.core import draining
from stoker.mesos.embedded.core.codec import Message
from stoker.mesos.embedded.core.ports import DrainConfig
from support.embedded_bench import WALL_MS, Bench, make_uuid, running, since

WINDOW = {
    "start": {"nanoseconds": (WALL_MS + 30_000) * 1_000_000},
    "duration": {"nanoseconds": 60_000_000_000},
}


def asked(bench: Bench, stream: int, agent_id: str = "S0") -> Message:
    """Return the answer to an explicit RECONCILE of t1."""
    item = {"task_id": {"value": "t1"}, "agent_id": {"value": agent_id}}
    bench.call(stream, "RECONCILE", {"tasks": [item]})
    return bench.statuses(stream)[-1]


def drain(bench: Bench, grace_ms: int | None = None, *, mark_gone: bool = False) -> int:
    config = DrainConfig(grace_ms, mark_gone)
    answer = draining.drain(bench.cluster.master, "S0", config, bench.now_ms)
    bench.take()
    return answer.status


def order(bench: Bench, what: Any, agent_id: str = "S0") -> tuple[int, str]:
    answer = what(bench.cluster.master, agent_id, bench.now_ms)
    bench.take()
    return answer.status, answer.text


# Gone.


def test_an_agent_marked_gone() -> None:
    bench, stream, agent_stream = running()
    mark = len(bench.events[stream])
    assert order(bench, draining.mark_gone) == (200, "")
    assert since(bench, stream, mark) == ["TASK_GONE_BY_OPERATOR", "RESCIND", "FAILURE"]
    status = bench.statuses(stream)[-1]
    assert status["message"] == "Agent has been marked gone" and "uuid" not in status
    assert status["reason"] == "REASON_AGENT_REMOVED_BY_OPERATOR" and status["executor_id"] == {"value": "e1"}
    assert bench.kinds(agent_stream)[-1] == "SHUTDOWN"
    bench.exit(0)
    assert bench.ended == [1]
    answer = asked(bench, stream)
    assert answer["state"] == "TASK_GONE_BY_OPERATOR" and answer["message"] == "Reconciliation: Task is gone"
    bench.start()
    bench.advance(1110)
    assert bench.ended == [1, 1] and not bench.cluster.master.agents


def test_a_frozen_agent_that_is_marked_gone_ends_when_it_goes_on() -> None:
    bench, _, agent_stream = running()
    bench.stop(how="freeze")
    order(bench, draining.mark_gone)
    assert bench.kinds(agent_stream)[-1] == "ACKNOWLEDGED"
    bench.start()
    assert bench.kinds(agent_stream)[-1] == "SHUTDOWN"
    bench.exit(0)
    bench.advance(10_000)
    assert bench.ended == [1] and not bench.cluster.master.agents


@pytest.mark.parametrize("is_unreachable", [False, True])
def test_an_agent_that_is_away_may_be_marked_gone(is_unreachable: bool) -> None:
    bench, stream, _ = running()
    bench.stop()
    bench.advance(10_000 if is_unreachable else 2000)
    assert order(bench, draining.mark_gone) == (200, "")
    assert asked(bench, stream)["state"] == "TASK_GONE_BY_OPERATOR"
    assert ("TASK_GONE_BY_OPERATOR" in bench.states(stream)[:-1]) is not is_unreachable


@pytest.mark.parametrize(
    ("what", "status"),
    [(draining.mark_gone, 404), (draining.deactivate, 400), (draining.reactivate, 400)],
)
def test_an_unknown_agent_is_told(what: Any, status: int) -> None:
    assert order(Bench(), what, "nope")[0] == status


# Drain.


@pytest.mark.parametrize(
    ("own_ms", "given_ms", "grace_ms"),
    [(3000, 2000, 2000), (1000, 2000, 1000), (None, 2000, 2000), (3000, None, 3000), (None, None, None)],
)
def test_a_drain_kills_with_its_grace_at_most(
    own_ms: int | None, given_ms: int | None, grace_ms: int | None
) -> None:
    policy = {"kill_policy": {"grace_period": {"nanoseconds": own_ms * 1_000_000}}} if own_ms else {}
    bench, stream, agent_stream = running(fields=policy)
    mark = len(bench.events[stream])
    assert drain(bench, given_ms) == 200
    assert since(bench, stream, mark) == ["RESCIND"]
    kill = bench.events[agent_stream][-1]["kill"]
    wanted = None if grace_ms is None else {"grace_period": {"nanoseconds": grace_ms * 1_000_000}}
    assert kill.get("kill_policy") == wanted


def test_a_drained_agent_is_offered_again_when_it_is_reactivated() -> None:
    bench, stream, _ = running()
    drain(bench, 2000)
    (record,) = bench.cluster.master.agents.values()
    assert draining.drain_info(record) == {
        "state": "DRAINING",
        "config": {"mark_gone": False, "max_grace_period": {"nanoseconds": 2_000_000_000}},
    }
    assert order(bench, draining.reactivate) == (400, "Agent is still in the DRAINING state")
    bench.update("t1", "TASK_KILLED", 2)
    status = bench.statuses(stream)[-1]
    assert (status["state"], status["reason"]) == ("TASK_KILLED", "REASON_AGENT_DRAINING")
    assert not record.is_drained
    bench.acknowledge(stream, "t1", make_uuid(2))
    assert record.is_drained and asked(bench, stream)["state"] == "TASK_GONE"
    mark = len(bench.events[stream])
    bench.advance(5000)
    assert since(bench, stream, mark) == []
    assert order(bench, draining.reactivate) == (200, "")
    bench.advance(6000)
    assert since(bench, stream, mark) == ["OFFERS"]
    assert bench.offers(stream)[-1]["executor_ids"] == [{"value": "e1"}]


def test_a_drain_that_marks_gone() -> None:
    bench, stream, agent_stream = running()
    drain(bench, mark_gone=True)
    bench.update("t1", "TASK_KILLED", 2)
    assert bench.states(stream)[-1] == "TASK_GONE_BY_OPERATOR"
    bench.acknowledge(stream, "t1", make_uuid(2))
    assert bench.kinds(agent_stream)[-1] == "SHUTDOWN" and not bench.cluster.master.agents
    assert asked(bench, stream)["state"] == "TASK_GONE_BY_OPERATOR"


def test_an_agent_that_is_away_is_drained_when_it_is_back() -> None:
    bench, stream, _ = running()
    bench.stop()
    assert drain(bench) == 200
    bench.start()
    bench.advance(1200)
    agent_stream = bench.executor_call("SUBSCRIBE", {})
    assert isinstance(agent_stream, int)
    bench.advance(3200)
    assert bench.kinds(agent_stream) == ["SUBSCRIBED", "KILL"]
    bench.update("t1", "TASK_KILLED", 2)
    assert bench.statuses(stream)[-1]["reason"] == "REASON_AGENT_DRAINING"


@pytest.mark.parametrize("mark_gone", [False, True])
def test_a_drain_goes_on_under_the_next_master(mark_gone: bool) -> None:
    bench, _, _ = running()
    drain(bench, mark_gone=mark_gone)
    bench.update("t1", "TASK_KILLED", 2)
    bench.fail_over(keeps_registry=True, return_ms=0)
    stream = bench.subscribe("m-0000")
    bench.advance(bench.now_ms + 10)
    (record,) = bench.cluster.master.agents.values()
    assert not record.is_drained
    bench.acknowledge(stream, "t1", make_uuid(2))
    assert record.is_drained
    bench.fail_over(keeps_registry=True, return_ms=0)
    bench.advance(bench.now_ms + 10)
    if mark_gone:
        assert not bench.cluster.master.agents
        return
    (record,) = bench.cluster.master.agents.values()
    assert record.is_drained and not record.is_active


def test_a_deactivated_agent_goes_on_without_offers() -> None:
    bench, stream, agent_stream = running()
    mark = len(bench.events[stream])
    order(bench, draining.deactivate)
    bench.advance(5000)
    assert since(bench, stream, mark) == ["RESCIND"] and bench.kinds(agent_stream)[-1] == "ACKNOWLEDGED"
    order(bench, draining.reactivate)
    bench.advance(6000)
    assert since(bench, stream, mark) == ["RESCIND", "OFFERS"]


def test_orders_outlive_the_absence_of_their_agent() -> None:
    bench, stream, _ = running()
    bench.stop()
    bench.advance(10_000)
    order(bench, draining.deactivate)
    mark = len(bench.events[stream])
    bench.start()
    bench.advance(15_000)
    assert "OFFERS" not in since(bench, stream, mark)


# Maintenance.


def machines(*numbers: int) -> list[Message]:
    return [{"hostname": f"127.0.0.{10 + n}", "ip": f"127.0.0.{10 + n}"} for n in numbers]


def schedule(bench: Bench, *numbers: int) -> tuple[int, str]:
    windows = [{"machine_ids": machines(*numbers), "unavailability": WINDOW}] if numbers else []
    given = {"windows": windows} if windows else {}
    answer = bench.cluster.master.maintenance.update_schedule(given, bench.now_ms)
    bench.take()
    return answer.status, answer.text


def inverse_offers(bench: Bench, stream: int) -> list[Message]:
    events = [event for event in bench.events[stream] if event["type"] == "INVERSE_OFFERS"]
    return [offer for event in events for offer in event["inverse_offers"]["inverse_offers"]]


def test_a_schedule_makes_offers_again_and_then_inverse_offers() -> None:
    bench, stream, _ = running(agents=2)
    mark = len(bench.events[stream])
    assert schedule(bench, 0, 1) == (200, "")
    assert since(bench, stream, mark) == ["RESCIND", "RESCIND", "OFFERS", "INVERSE_OFFERS"]
    assert all(offer["unavailability"] == WINDOW for offer in bench.offers(stream)[-2:])
    first, second = inverse_offers(bench, stream)
    assert first["agent_id"] == {"value": "S0"} and second["agent_id"] == {"value": "S1"}
    assert first["unavailability"] == WINDOW and first["url"]["path"] == "/slave(1)"
    maintenance = bench.cluster.master.maintenance
    assert maintenance.schedule()["schedule"]["windows"][0]["machine_ids"] == machines(0, 1)
    assert maintenance.status() == {
        "status": {"draining_machines": [{"id": machine} for machine in machines(0, 1)]}
    }


@pytest.mark.parametrize("kind", ["ACCEPT", "DECLINE"])
@pytest.mark.parametrize(("seconds", "again_ms"), [(2, 3000), (5, 6000), (0, 2000)])
def test_an_inverse_offer_comes_again_whatever_the_answer_was(
    kind: str, seconds: float, again_ms: int
) -> None:
    bench, stream, _ = running()
    bench.advance(1010)
    schedule(bench, 0)
    (offer,) = inverse_offers(bench, stream)
    body = {"inverse_offer_ids": [offer["id"], {"value": "no"}], "filters": {"refuse_seconds": seconds}}
    assert bench.call(stream, f"{kind}_INVERSE_OFFERS", body).status == 202
    bench.advance(999 + again_ms)
    assert len(inverse_offers(bench, stream)) == 1
    bench.advance(1000 + again_ms)
    assert len(inverse_offers(bench, stream)) == 2
    (machine,) = bench.cluster.master.maintenance.status()["status"]["draining_machines"]
    (status,) = machine["statuses"]
    assert (status["status"], status["framework_id"]) == (kind, {"value": "m-0000"})


def test_a_framework_without_anything_there_is_not_asked() -> None:
    bench, _, _ = running(agents=2)
    other = bench.subscribe(roles=["other"], suppressed=("other",))
    schedule(bench, 0)
    assert inverse_offers(bench, other) == []


def test_a_withdrawn_schedule_rescinds_inverse_offers() -> None:
    bench, stream, _ = running()
    schedule(bench, 0)
    mark = len(bench.events[stream])
    schedule(bench)
    assert since(bench, stream, mark) == ["RESCIND", "RESCIND_INVERSE_OFFER", "OFFERS"]
    assert "unavailability" not in bench.offers(stream)[-1]
    assert bench.cluster.master.maintenance.status() == {"status": {}}


def test_a_machine_that_goes_down_and_comes_up() -> None:
    bench, stream, agent_stream = running(agents=2)
    schedule(bench, 0)
    mark = len(bench.events[stream])
    maintenance = bench.cluster.master.maintenance
    assert maintenance.start(machines(0), bench.now_ms).status == 200
    bench.take()
    assert since(bench, stream, mark) == ["TASK_LOST", "RESCIND", "RESCIND_INVERSE_OFFER", "FAILURE"]
    text = "Agent 127.0.0.10 removed: Operator initiated 'Machine DOWN'"
    assert bench.statuses(stream)[-1]["message"] == text
    assert bench.kinds(agent_stream)[-1] == "SHUTDOWN"
    bench.exit(0)
    assert asked(bench, stream)["state"] == "TASK_UNKNOWN"
    assert maintenance.status() == {"status": {"down_machines": machines(0)}}
    bench.start()
    bench.advance(2000)
    assert bench.ended == [1, 1] and list(bench.cluster.master.agents) == ["S1"]
    assert maintenance.stop(machines(0), bench.now_ms).status == 200
    bench.start()
    mark = len(bench.events[stream])
    bench.advance(3000)
    assert since(bench, stream, mark) == ["OFFERS"] and "unavailability" not in bench.offers(stream)[-1]


@pytest.mark.parametrize(
    ("windows", "text"),
    [
        (
            [{"machine_ids": [], "unavailability": WINDOW}],
            "List of machines in the maintenance window is empty",
        ),
        (
            [{"machine_ids": [{}], "unavailability": WINDOW}],
            "Both 'hostname' and 'ip' for a machine are empty",
        ),
        (
            [{"machine_ids": [{"ip": "1.2.3.4"}, {"ip": "1.2.3.4"}], "unavailability": WINDOW}],
            "Machine '1.2.3.4' appears more than once in the schedule",
        ),
        (
            [{"machine_ids": [{"ip": "1"}], "unavailability": {**WINDOW, "duration": {"nanoseconds": -1}}}],
            "Unavailability 'duration' is negative",
        ),
    ],
)
def test_a_wrong_schedule_is_refused(windows: list[Message], text: str) -> None:
    maintenance = Bench().cluster.master.maintenance
    answer = maintenance.update_schedule({"windows": windows}, 0)
    assert (answer.status, answer.text) == (400, text)
    assert maintenance.schedule() == {"schedule": {}}


def test_machines_change_their_mode_in_order_only() -> None:
    bench, _, _ = running()
    maintenance = bench.cluster.master.maintenance
    assert maintenance.start(machines(0), 0).text.endswith("is not part of a maintenance schedule")
    assert maintenance.stop(machines(0), 0).text.endswith("is not in DOWN mode and cannot be brought up")
    schedule(bench, 0)
    maintenance.start(machines(0), bench.now_ms)
    assert maintenance.start(machines(0), bench.now_ms).status == 400
    assert "is deactivated and cannot be removed" in schedule(bench)[1]


# What a registry keeps over a fail-over.


def test_a_registry_remembers_orders_and_machines() -> None:
    bench, stream, _ = running(agents=3)
    schedule(bench, 0)
    order(bench, draining.deactivate, "S1")
    order(bench, draining.mark_gone, "S2")
    bench.fail_over(keeps_registry=True, return_ms=0)
    bench.advance(1100)
    stream = bench.subscribe("m-0000")
    assert [offer["agent_id"]["value"] for offer in bench.offers(stream)] == ["S0"]
    assert bench.offers(stream)[0]["unavailability"] == WINDOW
    assert asked(bench, stream, "S2")["state"] == "TASK_RUNNING"  # the task's own agent is another
    item = {"task_id": {"value": "never"}, "agent_id": {"value": "S2"}}
    bench.call(stream, "RECONCILE", {"tasks": [item]})
    assert bench.statuses(stream)[-1]["state"] == "TASK_GONE_BY_OPERATOR"

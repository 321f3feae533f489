"""The embedded master's operator API on a bench: which frameworks it names, for how long, and what it refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest

from stoker.mesos.embedded.core import operator
from stoker.mesos.embedded.core.calls import Answer, Refused
from support.embedded_bench import Bench

JSON = {"content-type": "application/json"}


def order(bench: Bench, kind: str, **body: Any) -> Answer:
    call = {"type": kind, **({kind.lower(): body} if body else {})}
    decoded = operator.decode_operator_call(JSON, json.dumps(call).encode())
    return operator.answer(bench.cluster.master, decoded, bench.now_ms)


def ask(bench: Bench, kind: str) -> Any:
    reply = order(bench, kind)
    assert reply.status == 200
    answer = json.loads(reply.text)
    assert answer["type"] == kind
    return answer[kind.lower()]


def frameworks(bench: Bench) -> dict[str, dict[str, Any]]:
    """Return those that are not removed, by id."""
    listed = ask(bench, "GET_FRAMEWORKS")["frameworks"]
    return {item["framework_info"]["id"]["value"]: item for item in listed}


def test_a_connected_framework_is_named_with_its_info_and_its_times() -> None:
    bench = Bench()
    bench.subscribe(name="stoker", roles=["cache"], failover_timeout=60.0)
    (item,) = frameworks(bench).values()
    assert item["framework_info"]["name"] == "stoker" and item["framework_info"]["roles"] == ["cache"]
    assert item["framework_info"]["failover_timeout"] == 60.0
    assert (item["connected"], item["active"], item["recovered"]) == (True, True, False)
    assert item["registered_time"] == item["reregistered_time"]
    assert "unregistered_time" not in item and "allocated_resources" not in item
    offered = {r["name"]: r for r in item["offered_resources"]}
    assert offered["cpus"]["role"] == "*" and offered["cpus"]["allocation_info"] == {"role": "cache"}


def test_a_framework_that_is_away_stays_until_its_failover_timeout_and_is_completed_then() -> None:
    bench = Bench()
    stream = bench.subscribe(failover_timeout=60.0)
    bench.drop(stream)
    bench.advance(59_000)
    (item,) = frameworks(bench).values()
    assert (item["connected"], item["active"]) == (False, False)
    assert "offered_resources" not in item
    bench.advance(61_000)
    assert frameworks(bench) == {}
    (gone,) = ask(bench, "GET_FRAMEWORKS")["completed_frameworks"]
    assert gone["framework_info"]["id"] == {"value": "m-0000"} and not gone["connected"]
    assert gone["unregistered_time"]["nanoseconds"] > gone["registered_time"]["nanoseconds"]


def test_a_framework_that_came_back_is_connected_again() -> None:
    bench = Bench()
    stream = bench.subscribe(failover_timeout=60.0)
    bench.drop(stream)
    bench.advance(1_000)
    bench.subscribe(framework_id="m-0000", failover_timeout=60.0)
    (item,) = frameworks(bench).values()
    assert item["connected"]
    assert item["reregistered_time"]["nanoseconds"] > item["registered_time"]["nanoseconds"]


def test_what_a_framework_uses_is_told_by_role_and_by_agent() -> None:
    bench = Bench()
    stream = bench.subscribe()
    bench.run(stream)
    (item,) = frameworks(bench).values()
    (agent,) = ask(bench, "GET_AGENTS")["agents"]
    assert item["allocated_resources"] == agent["allocated_resources"]
    assert {r["name"] for r in item["allocated_resources"]} >= {"cpus", "mem"}
    assert {r["allocation_info"]["role"] for r in item["allocated_resources"]} == {"cache"}


@pytest.mark.parametrize(
    ("headers", "body", "status", "text"),
    [
        ({}, b"{}", 400, "Expecting 'Content-Type' to be present"),
        (JSON, b"{", 400, "Failed to parse body into JSON"),
        (JSON, b"{}", 400, "Failed to validate master::Call: Expecting 'type' to be present"),
        (JSON, b'{"type":"REVIVE"}', 400, "Failed to validate master::Call: Expecting 'type' to be present"),
        (JSON, b'{"type":"GET_METRICS"}', 501, "The embedded Mesos does not have GET_METRICS"),
        (
            JSON,
            b'{"type":"TEARDOWN"}',
            400,
            "Failed to validate master::Call: Expecting 'teardown' to be present",
        ),
        (
            JSON,
            b'{"type":"DRAIN_AGENT","drain_agent":{}}',
            400,
            "Failed to convert JSON into Call protobuf: Missing required",
        ),
        ({"content-type": "text/plain"}, b"{}", 415, "Expecting 'Content-Type' of"),
    ],
)
def test_a_wrong_call_is_refused_with_mesos_words(
    headers: dict[str, str], body: bytes, status: int, text: str
) -> None:
    with pytest.raises(Refused) as refused:
        operator.decode_operator_call(headers, body)
    assert refused.value.answer.status == status and refused.value.answer.text.startswith(text)


def test_a_torn_down_framework_is_completed_and_a_second_time_not_found() -> None:
    bench = Bench()
    bench.subscribe()
    assert order(bench, "TEARDOWN", framework_id={"value": "m-0000"}).status == 200
    assert frameworks(bench) == {}
    again = order(bench, "TEARDOWN", framework_id={"value": "m-0000"})
    assert (again.status, again.text) == (400, "No framework found with specified ID")


def test_an_order_reaches_the_part_that_does_it() -> None:
    bench = Bench()
    stream = bench.subscribe()
    bench.run(stream)
    agent_id = {"value": bench.cluster.agents[0].spec.agent_id}
    assert order(bench, "UPDATE_WEIGHTS", weight_infos=[{"role": "cache", "weight": 3.0}]).status == 200
    assert ask(bench, "GET_WEIGHTS") == {"weight_infos": [{"weight": 3.0, "role": "cache"}]}
    quota = {"role": "jobs", "limits": {"cpus": {"value": 2.0}}}
    assert order(bench, "UPDATE_QUOTA", force=True, quota_configs=[quota]).status == 200
    assert ask(bench, "GET_QUOTA") == {"status": {"infos": [{"role": "jobs"}], "configs": [quota]}}
    reservation = {"type": "DYNAMIC", "role": "cache"}
    disk = {"name": "disk", "type": "SCALAR", "scalar": {"value": 16}, "reservations": [reservation]}
    assert order(bench, "RESERVE_RESOURCES", agent_id=agent_id, resources=[disk]).status == 202
    (agent,) = ask(bench, "GET_AGENTS")["agents"]
    assert [r["scalar"]["value"] for r in agent["total_resources"] if r.get("role") == "cache"] == [16.0]
    assert order(bench, "UNRESERVE_RESOURCES", agent_id=agent_id, resources=[disk]).status == 202
    assert order(bench, "DEACTIVATE_AGENT", agent_id=agent_id).status == 200
    assert ask(bench, "GET_AGENTS")["agents"][0]["deactivated"]
    assert order(bench, "REACTIVATE_AGENT", agent_id=agent_id).status == 200
    assert not ask(bench, "GET_AGENTS")["agents"][0]["deactivated"]
    assert order(bench, "DRAIN_AGENT", agent_id=agent_id, max_grace_period={"seconds": 2}).status == 200
    info = ask(bench, "GET_AGENTS")["agents"][0]["drain_info"]
    assert info["state"] == "DRAINING" and info["config"]["max_grace_period"] == {
        "nanoseconds": 2_000_000_000
    }
    assert order(bench, "MARK_AGENT_GONE", agent_id=agent_id).status == 200
    assert ask(bench, "GET_AGENTS")["agents"] == []


def test_maintenance_is_scheduled_started_and_stopped() -> None:
    bench = Bench()
    spec = bench.cluster.agents[0].spec
    machine = {"hostname": spec.hostname, "ip": spec.ip}
    window = {"machine_ids": [machine], "unavailability": {"start": {"nanoseconds": 1}}}
    assert order(bench, "UPDATE_MAINTENANCE_SCHEDULE", schedule={"windows": [window]}).status == 200
    assert ask(bench, "GET_MAINTENANCE_SCHEDULE") == {"schedule": {"windows": [window]}}
    assert ask(bench, "GET_MAINTENANCE_STATUS") == {"status": {"draining_machines": [{"id": machine}]}}
    assert order(bench, "START_MAINTENANCE", machines=[machine]).status == 200
    assert ask(bench, "GET_MAINTENANCE_STATUS") == {"status": {"down_machines": [machine]}}
    assert order(bench, "STOP_MAINTENANCE", machines=[machine]).status == 200
    assert ask(bench, "GET_MAINTENANCE_SCHEDULE") == {"schedule": {}}


def test_tasks_executors_and_roles_are_told() -> None:
    bench = Bench()
    stream = bench.subscribe()
    bench.run(stream)
    state = ask(bench, "GET_STATE")
    (task,) = state["get_tasks"]["tasks"]
    assert task["state"] == "TASK_STAGING" and task["statuses"] == []
    assert task["executor_id"] == state["get_executors"]["executors"][0]["executor_info"]["executor_id"]
    (role,) = ask(bench, "GET_ROLES")["roles"]
    assert role["name"] == "cache" and role["frameworks"] == [{"value": "m-0000"}]

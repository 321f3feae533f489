"""The embedded master's operator API on a bench: which frameworks it names, for how long, and what it refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest

from stoker.mesos.embedded.core import operator
from stoker.mesos.embedded.core.calls import Refused
from support.embedded_bench import Bench

JSON = {"content-type": "application/json"}


def ask(bench: Bench, kind: str) -> Any:
    answer = operator.answer(bench.cluster.master, JSON, json.dumps({"type": kind}).encode())
    assert answer["type"] == kind
    return json.loads(json.dumps(answer[kind.lower()]))


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
        (JSON, b'{"type":"GET_QUOTA"}', 501, "The embedded Mesos does not have GET_QUOTA"),
        ({"content-type": "text/plain"}, b"{}", 415, "Expecting 'Content-Type' of"),
    ],
)
def test_a_wrong_call_is_refused_with_mesos_words(
    headers: dict[str, str], body: bytes, status: int, text: str
) -> None:
    with pytest.raises(Refused) as refused:
        operator.answer(Bench().cluster.master, headers, body)
    assert refused.value.answer.status == status and refused.value.answer.text.startswith(text)

"""The embedded Mesos answers an operator's questions in the shape of a real master: transcript 20, over real HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stoker.mesos.detector import parse_address
from stoker.mesos.embedded.core.values import VERSION
from stoker.mesos.operator import KnownFramework, Operator
from support.embedded import EmbeddedProcess, Scheduler, request
from support.waiting import wait_until

TRANSCRIPT = Path(__file__).parents[2] / "data" / "mesos-transcripts" / "20-operator-http.jsonl"
AGENT = ("--agents", "1", "--cpus", "4", "--mem", "4GiB", "--disk", "8GiB", "--ports", "31000-31099")
KINDS = ("GET_HEALTH", "GET_VERSION", "GET_MASTER", "GET_FRAMEWORKS", "GET_AGENTS")

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def mesos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedProcess]:
    options = ("--allocation-interval", "0.05", "--attributes", "rack:a;zone:z0;slot:1", *AGENT)
    with EmbeddedProcess(tmp_path_factory.mktemp("mesos") / "work", *options) as process:
        yield process


@pytest.fixture(scope="module")
def scheduler(mesos: EmbeddedProcess) -> Scheduler:
    """A framework with a task that runs and no offer in its hands, as in the recording."""
    subscribed = Scheduler(mesos.address, info={"name": "f1"})
    subscribed.run("t1")
    subscribed.call("SUPPRESS", {"roles": ["cache"]})
    offers = [o["id"] for e in subscribed.events if e["type"] == "OFFERS" for o in e["offers"]["offers"]]
    subscribed.call("DECLINE", {"offer_ids": offers})
    return subscribed


def recorded(kind: str) -> Any:
    with TRANSCRIPT.open() as lines:
        entries = [json.loads(line) for line in lines]
    calls = [i for i, entry in enumerate(entries) if (entry.get("body") or {}).get("type") == kind]
    return entries[calls[0] + 1]


def shape(value: Any) -> Any:
    """Return the value with its scalars replaced by the names of their types, lists of maps by their first item's."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return type(value).__name__


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/quota", 501),
        ("/weights", 501),
        ("/master/reserve", 501),
        ("/maintenance/schedule", 501),
        ("/machine/down", 501),
        ("/files/browse", 501),
        ("/nope", 404),
        ("/quota/more", 404),
    ],
)
def test_what_a_real_master_has_and_this_one_has_not_is_said(
    mesos: EmbeddedProcess, path: str, status: int
) -> None:
    reply = mesos.request("GET", path)
    assert reply.status == status
    assert status == 404 or reply.text == f"The embedded Mesos does not have {path.removeprefix('/master')}"


def test_what_a_real_agent_has_and_this_one_has_not_is_said(mesos: EmbeddedProcess) -> None:
    (agent,) = json.loads(mesos.request("GET", "/slaves").text)["slaves"]
    address = agent["pid"].rpartition("@")[2]
    for path in ("/flags", "/containers", "/monitor/statistics", "/slave(1)/containers", "/files/browse"):
        assert request(address, "GET", path, b"", {}).status == 501, path
    for path in ("/nope", "/quota"):
        assert request(address, "GET", path, b"", {}).status == 404, path


@pytest.mark.parametrize("kind", KINDS)
def test_an_operator_gets_an_answer_of_the_recorded_shape(
    kind: str, mesos: EmbeddedProcess, scheduler: Scheduler
) -> None:
    answer = recorded(kind)

    def reply() -> Any:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        got = request(mesos.address, "POST", "/api/v1", json.dumps({"type": kind}), headers)
        assert got.status == answer["http"]["status"]
        assert got.headers["Content-Type"] == answer["http"]["headers"]["Content-Type"]
        return json.loads(got.text)

    wait_until(lambda: shape(reply()) == shape(answer["body"]), f"the recorded shape: {reply()}")


def test_what_does_not_depend_on_the_machine_is_equal(mesos: EmbeddedProcess, scheduler: Scheduler) -> None:
    def of(kind: str) -> Any:
        headers = {"Content-Type": "application/json"}
        body = json.loads(request(mesos.address, "POST", "/api/v1", json.dumps({"type": kind}), headers).text)
        return body[kind.lower()], recorded(kind)["body"][kind.lower()]

    mine, theirs = of("GET_AGENTS")
    assert mine["recovered_agents"] == theirs["recovered_agents"] == []
    agent, their_agent = mine["agents"][0], theirs["agents"][0]
    for name in ("active", "deactivated", "version"):
        assert agent[name] == their_agent[name]
    assert agent["agent_info"]["attributes"] == their_agent["agent_info"]["attributes"]
    assert agent["capabilities"] == their_agent["capabilities"]
    mine, theirs = of("GET_FRAMEWORKS")
    framework, their_framework = mine["frameworks"][0], theirs["frameworks"][0]
    for name in ("active", "connected", "recovered", "offer_constraints"):
        assert framework[name] == their_framework[name]
    varying = {"id", "capabilities"}
    assert {k: v for k, v in framework["framework_info"].items() if k not in varying} == {
        k: v for k, v in their_framework["framework_info"].items() if k not in varying
    }
    assert mine["completed_frameworks"] == theirs["completed_frameworks"] == []


def test_a_framework_is_told_until_its_failover_timeout_is_over(mesos: EmbeddedProcess) -> None:
    """As `09`: a scheduler that is away is still the framework's; when its time is over, it is nobody's."""
    asked = Operator(parse_address(mesos.address))

    def ours() -> list[KnownFramework]:
        return [f for f in asked.frameworks() if f.name == "leaver"]

    subscribed = Scheduler(mesos.address, info={"name": "leaver", "failover_timeout": 600.0})
    framework_id = subscribed.framework_id
    assert ours() == [KnownFramework(framework_id, "leaver", ("cache",), True)]
    subscribed.close()
    wait_until(lambda: ours() == [KnownFramework(framework_id, "leaver", ("cache",), False)], "its absence")
    again = Scheduler(
        mesos.address, framework_id=framework_id, info={"name": "leaver", "failover_timeout": 0.2}
    )
    assert ours()[0].is_connected
    again.close()
    wait_until(lambda: not ours(), "its removal")
    assert asked.missing_agents() == [] and asked.version() == VERSION

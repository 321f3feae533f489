"""A master that dies and another one that leads, with the registry of the old or without: transcripts 16, 16b and 16c."""

from __future__ import annotations

import pytest

from stoker.mesos.embedded.core import view
from stoker.mesos.embedded.core.codec import Message
from support.embedded_bench import PINGS, Bench, cpus, make_uuid, since, task
from support.embedded_bench import running as running_agents


def running(**info: object) -> tuple[Bench, int, int]:
    """Return two agents, t1 on the first, 1,500 ms after its update was acknowledged."""
    return running_agents(2, info=info, settle_ms=1500)


def ask(bench: Bench, stream: int, kind: str = "RECONCILE", agent_id: str | None = "S0") -> list[str]:
    """Return the states in the answers about t1, or for None about what is not known anywhere."""
    before = len(bench.statuses(stream))
    item: Message = {"task_id": {"value": "t1"}}
    if agent_id is not None:
        item["agent_id"] = {"value": agent_id}
    bench.call(stream, kind, {"tasks": [item]} if kind == "RECONCILE" else item)
    return [status["state"] for status in bench.statuses(stream)[before:]]


@pytest.mark.parametrize("keeps_registry", [False, True])
def test_the_streams_of_a_dead_master_break_off(keeps_registry: bool) -> None:
    bench, stream, agent_stream = running()
    bench.fail_over(keeps_registry=keeps_registry)
    assert bench.aborted == [stream] and agent_stream not in bench.closed
    answer = bench.call(stream, "REVIVE")
    assert (answer.status, answer.text) == (400, "Framework cannot be found")


@pytest.mark.parametrize(("keeps_registry", "states"), [(False, ["TASK_UNKNOWN"]), (True, [])])
@pytest.mark.parametrize("kind", ["RECONCILE", "KILL"])
@pytest.mark.parametrize("agent_id", ["S0", None])
def test_what_a_new_master_says_of_tasks_before_their_agent_is_back(
    keeps_registry: bool, states: list[str], kind: str, agent_id: str | None
) -> None:
    """Without a registry it knows of nothing; with it, it is silent."""
    bench, _, _ = running()
    bench.fail_over(keeps_registry=keeps_registry)
    stream = bench.subscribe("m-0000")
    assert since(bench, stream) == ["SUBSCRIBED"]
    assert ask(bench, stream, kind, agent_id) == states
    bench.call(stream, "RECONCILE", {"tasks": []})
    assert len(bench.statuses(stream)) == len(states)


def test_of_an_agent_that_the_registry_does_not_name_it_answers() -> None:
    bench, _, _ = running()
    bench.fail_over(keeps_registry=True)
    stream = bench.subscribe("m-0000")
    assert ask(bench, stream, agent_id="S7") == ["TASK_UNKNOWN"]


@pytest.mark.parametrize(
    ("keeps_registry", "kinds"),
    [(False, ["SUBSCRIBED", "TASK_RUNNING", "OFFERS", "OFFERS"]), (True, ["SUBSCRIBED", "OFFERS", "OFFERS"])],
)
def test_agents_come_to_the_new_master_by_themselves(keeps_registry: bool, kinds: list[str]) -> None:
    bench, _, agent_stream = running()
    bench.fail_over(keeps_registry=keeps_registry)
    stream = bench.subscribe("m-0000")
    bench.advance(6009)
    assert since(bench, stream) == ["SUBSCRIBED"]
    bench.advance(6010)
    assert since(bench, stream) == kinds
    if not keeps_registry:
        status = bench.statuses(stream)[0]
        assert status["message"] == "Unknown agent reregistered" and "uuid" not in status
        assert status["reason"] == "REASON_AGENT_REREGISTERED" and status["executor_id"] == {"value": "e1"}
        assert "container_status" in status
    assert ask(bench, stream) == ["TASK_RUNNING"]
    first, second = bench.offers(stream)
    assert first["id"]["value"] == "n-O0" and first["executor_ids"] == [{"value": "e1"}]
    assert (cpus(first), cpus(second)) == (pytest.approx(2.9), 4)
    body = {"agent_id": {"value": "S0"}, "executor_id": {"value": "e1"}, "data": "aGk="}
    bench.call(stream, "MESSAGE", body)
    assert bench.kinds(agent_stream)[-1] == "MESSAGE"
    bench.update("t1", "TASK_FINISHED", 2)
    assert bench.states(stream)[-1] == "TASK_FINISHED"


@pytest.mark.parametrize(("return_ms", "at_ms"), [(0, 1510), (2000, 3510)])
def test_agents_may_be_told_of_the_new_master(return_ms: int, at_ms: int) -> None:
    bench, _, _ = running()
    bench.fail_over(keeps_registry=False, return_ms=return_ms)
    bench.advance(at_ms - 1)
    assert not bench.cluster.master.agents
    bench.advance(at_ms)
    assert sorted(bench.cluster.master.agents) == ["S0", "S1"]


def test_an_offer_of_the_old_master_is_no_longer_valid() -> None:
    bench, stream, _ = running()
    old = bench.offers(stream)[-1]["id"]
    bench.fail_over(keeps_registry=True)
    stream = bench.subscribe("m-0000")
    bench.launch(stream, task("x1"), offer_ids=[old])
    status = bench.statuses(stream)[-1]
    assert (status["state"], status["reason"]) == ("TASK_DROPPED", "REASON_INVALID_OFFERS")
    assert status["message"].endswith(f"Offer {old['value']} is no longer valid")


def test_what_an_executor_says_without_a_master_is_kept() -> None:
    bench, _, agent_stream = running()
    bench.cluster.stop_master(bench.now_ms)
    bench.take()
    bench.update("t1", "TASK_FINISHED", 2)
    assert bench.kinds(agent_stream)[-1] == "ACKNOWLEDGED"
    bench.advance(30_000)
    spec = bench.cluster.master.spec
    bench.cluster.start_master(spec, keeps_registry=False, now_ms=bench.now_ms, return_ms=0)
    stream = bench.subscribe("m-0000")
    bench.advance(30_010)
    assert bench.states(stream) == ["TASK_FINISHED", "TASK_FINISHED"]
    bench.acknowledge(stream, "t1", make_uuid(2))
    assert ask(bench, stream) == ["TASK_GONE"]


@pytest.mark.parametrize("keeps_registry", [False, True])
def test_a_framework_that_stays_away_is_recovered_from_its_agents_and_not_removed(
    keeps_registry: bool,
) -> None:
    bench, _, agent_stream = running(failover_timeout=5.0)
    bench.fail_over(keeps_registry=keeps_registry)
    bench.advance(60_000)
    (framework,) = view.state(bench.cluster.master)["frameworks"]
    assert (framework["recovered"], framework["connected"], framework["active"]) == (True, False, False)
    assert framework["registered_time"] == 0.0 and framework["failover_timeout"] == 5.0
    answer = bench.call(1, "REVIVE")
    assert (answer.status, answer.text) == (403, "Framework is not subscribed")
    stream = bench.subscribe("m-0000", failover_timeout=5.0)
    assert since(bench, stream) == ["SUBSCRIBED", "OFFERS"]
    (framework,) = view.state(bench.cluster.master)["frameworks"]
    assert framework["recovered"] is False
    bench.drop(stream)
    bench.advance(66_000)
    assert bench.kinds(agent_stream)[-1] == "SHUTDOWN" and not bench.cluster.master.frameworks


def test_agents_that_never_come_to_a_master_that_knows_them_are_unreachable() -> None:
    bench, _, _ = running()
    bench.stop(1)
    bench.fail_over(keeps_registry=True, return_ms=0)
    stream = bench.subscribe("m-0000")
    bench.advance(601_499)
    assert "FAILURE" not in since(bench, stream)
    bench.advance(601_500)
    assert since(bench, stream)[-1] == "FAILURE"
    assert ask(bench, stream) == ["TASK_UNREACHABLE"]


def test_an_agent_started_while_there_is_no_master_registers_with_the_next() -> None:
    bench, _, _ = running()
    bench.stop(1)
    bench.cluster.stop_master(bench.now_ms)
    bench.start(1)
    bench.advance(20_000)
    bench.cluster.start_master(bench.cluster.master.spec, keeps_registry=False, now_ms=20_000, return_ms=0)
    bench.advance(20_100)
    assert sorted(bench.cluster.master.agents) == ["S0", "S1"]


def test_ids_of_agents_are_never_given_twice() -> None:
    bench = Bench(1, **PINGS)
    given = ["S0"]
    for _ in range(3):
        bench.stop()
        bench.start(is_wiped=True)
        bench.advance(bench.now_ms + 200)
        given += bench.cluster.master.agents
        bench.fail_over(keeps_registry=True, return_ms=0)
        bench.advance(bench.now_ms + 200)
    assert len(set(given)) == 4

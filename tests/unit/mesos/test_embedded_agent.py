"""An agent on a bench: executors from launch to the end of their process, and their API. Rules are those of the transcripts."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from stoker.mesos.embedded.core.calls import Answer
from stoker.mesos.embedded.core.updates import PENDING_MAX
from support.embedded_bench import Bench, executor, make_uuid, task


def running(**options: int) -> tuple[Bench, int, int]:
    """Return a bench with task t1 delivered to executor e1, the scheduler's stream, and the executor's."""
    bench = Bench(**options)
    stream = bench.subscribe()
    return bench, stream, bench.run(stream)


def text_of(answer: Answer | int) -> tuple[int, str]:
    assert isinstance(answer, Answer)
    return answer.status, answer.text


def test_an_executor_starts_with_exactly_the_environment_of_an_agent() -> None:
    bench = Bench()
    stream = bench.subscribe()
    command = {
        "value": "run",
        "environment": {
            "variables": [{"name": "MINE", "value": "x"}, {"name": "MESOS_CHECKPOINT", "value": "0"}]
        },
    }
    info = executor(command=command, shutdown_grace_period={"nanoseconds": 1_500_000_000})
    bench.launch(stream, task(executor=info))
    (order,) = bench.started
    assert order.sandbox == f"/w/slaves/S0/frameworks/m-0000/executors/e1/runs/{order.container_id}"
    assert order.environment == {
        "LIBPROCESS_IP": "127.0.0.10",
        "LIBPROCESS_PORT": "0",
        "MESOS_AGENT_ENDPOINT": "127.0.0.10:5051",
        "MESOS_CHECKPOINT": "1",
        "MESOS_DIRECTORY": order.sandbox,
        "MESOS_EXECUTOR_ID": "e1",
        "MESOS_EXECUTOR_SHUTDOWN_GRACE_PERIOD": "1.5secs",
        "MESOS_FRAMEWORK_ID": "m-0000",
        "MESOS_HTTP_COMMAND_EXECUTOR": "0",
        "MESOS_RECOVERY_TIMEOUT": "15mins",
        "MESOS_SANDBOX": order.sandbox,
        "MESOS_SLAVE_ID": "S0",
        "MESOS_SLAVE_PID": "slave(1)@127.0.0.10:5051",
        "MESOS_SUBSCRIPTION_BACKOFF_MAX": "2secs",
        "MINE": "x",
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "PWD": order.sandbox,
    }


def test_without_checkpoint_an_executor_is_told_so() -> None:
    bench = Bench()
    bench.launch(bench.subscribe(checkpoint=False), task())
    environment = bench.started[0].environment
    assert environment["MESOS_CHECKPOINT"] == "0"
    assert not {"MESOS_RECOVERY_TIMEOUT", "MESOS_SUBSCRIPTION_BACKOFF_MAX"} & environment.keys()


def test_a_subscribing_executor_learns_who_it_is_and_gets_what_waited() -> None:
    bench = Bench()
    stream = bench.subscribe()
    bench.launch(stream, task("t1"), task("t2"))
    agent_stream = bench.executor_call("SUBSCRIBE", {})
    assert isinstance(agent_stream, int)
    assert bench.kinds(agent_stream) == ["SUBSCRIBED", "LAUNCH", "LAUNCH"]
    subscribed = bench.events[agent_stream][0]["subscribed"]
    assert subscribed["container_id"]["value"] == bench.started[0].container_id
    assert subscribed["agent_info"]["id"] == {"value": "S0"}
    assert subscribed["framework_info"]["id"] == {"value": "m-0000"}
    assert subscribed["executor_info"]["framework_id"] == {"value": "m-0000"}


def test_an_update_is_taken_first_and_told_to_both() -> None:
    bench, stream, agent_stream = running()
    assert text_of(bench.update("t1", "TASK_RUNNING", 1, message="well", data="aGk=")) == (202, "")
    status = bench.statuses(stream)[0]
    assert status["uuid"] == make_uuid(1) and status["message"] == "well" and status["data"] == "aGk="
    assert status["agent_id"] == {"value": "S0"} and "executor_id" not in status
    assert status["container_status"] == {
        "container_id": {"value": bench.started[0].container_id},
        "network_infos": [{"ip_addresses": [{"protocol": "IPv4", "ip_address": "127.0.0.10"}]}],
        "executor_pid": 4001,
    }
    acknowledged = {"task_id": {"value": "t1"}, "uuid": make_uuid(1)}
    assert bench.events[agent_stream][-1] == {"type": "ACKNOWLEDGED", "acknowledged": acknowledged}


def test_one_update_of_a_task_is_in_flight_and_the_next_waits_for_its_acknowledgement() -> None:
    bench, stream, _ = running()
    bench.update("t1", "TASK_STARTING", 1)
    bench.update("t1", "TASK_RUNNING", 2)
    assert bench.states(stream) == ["TASK_STARTING"]
    bench.acknowledge(stream, "t1", make_uuid(1))
    assert bench.states(stream) == ["TASK_STARTING", "TASK_RUNNING"]


def test_an_update_comes_again_until_it_is_acknowledged() -> None:
    """After 10 s, then 20 s, 40 s ... up to 10 minutes."""
    bench, stream, _ = running()
    bench.update("t1", "TASK_RUNNING", 1)
    due = [10, 30, 70, 150, 310, 630, 1230, 1830, 2430]
    for count, seconds in enumerate(due, start=1):
        bench.advance(seconds * 1000 - 1)
        assert len(bench.statuses(stream)) == count
        bench.advance(seconds * 1000)
        assert len(bench.statuses(stream)) == count + 1
    assert len({status["uuid"] for status in bench.statuses(stream)}) == 1
    bench.acknowledge(stream, "t1", make_uuid(1))
    bench.advance(10_000_000)
    assert len(bench.statuses(stream)) == len(due) + 1


@pytest.mark.parametrize(
    ("task_id", "number", "agent_id"), [("t1", 2, "S0"), ("nope", 1, "S0"), ("t1", 1, "no-such-agent")]
)
def test_a_wrong_acknowledgement_is_ignored(task_id: str, number: int, agent_id: str) -> None:
    bench, stream, _ = running()
    bench.update("t1", "TASK_STARTING", 1)
    bench.update("t1", "TASK_RUNNING", 2)
    assert bench.acknowledge(stream, task_id, make_uuid(number), agent_id).status == 202
    assert bench.states(stream) == ["TASK_STARTING"]


def test_a_framework_that_subscribes_again_gets_unacknowledged_updates_at_once() -> None:
    bench, stream, _ = running()
    bench.update("t1", "TASK_RUNNING", 1)
    bench.drop(stream)
    bench.advance(500)
    again = bench.subscribe("m-0000")
    assert bench.states(again) == ["TASK_RUNNING"]


def test_the_same_update_twice_is_forwarded_once_and_acknowledged_twice() -> None:
    bench, stream, agent_stream = running()
    for _ in range(2):
        bench.update("t1", "TASK_RUNNING", 1)
    assert bench.states(stream) == ["TASK_RUNNING"]
    assert bench.kinds(agent_stream).count("ACKNOWLEDGED") == 2


def test_an_update_of_an_unknown_task_is_forwarded_and_never_acknowledged() -> None:
    bench, stream, agent_stream = running()
    bench.update("unknown", "TASK_RUNNING", 1)
    assert bench.states(stream, "unknown") == ["TASK_RUNNING"]
    assert "ACKNOWLEDGED" not in bench.kinds(agent_stream)


def test_an_executor_that_floods_is_told_to_come_again() -> None:
    bench, _, _ = running()
    answers = [bench.update("t1", "TASK_RUNNING", number) for number in range(PENDING_MAX + 1)]
    assert text_of(answers[-2])[0] == 202
    assert text_of(answers[-1]) == (
        503,
        "Too many updates of this task wait for the scheduler's acknowledgement",
    )


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"uuid": None}, "Expecting 'uuid' to be present"),
        ({"uuid": "AAAA"}, "Not a valid UUID"),
        ({"source": "SOURCE_AGENT"}, "with invalid source, expecting 'SOURCE_EXECUTOR'"),
        (
            {"state": "TASK_STAGING"},
            "Received TASK_STAGING from executor e1 of framework m-0000 which is not allowed",
        ),
        (
            {"executor_id": {"value": "other"}},
            "ExecutorID in Call: e1 does not match ExecutorID in TaskStatus: other",
        ),
    ],
)
def test_a_wrong_update_is_refused(body: dict[str, object], text: str) -> None:
    bench, stream, _ = running()
    right = {
        "task_id": {"value": "t1"},
        "state": "TASK_RUNNING",
        "source": "SOURCE_EXECUTOR",
        "uuid": make_uuid(1),
    }
    status, said = text_of(bench.executor_call("UPDATE", {"status": right | body}))
    assert status == 400 and text in said and not bench.statuses(stream)


@pytest.mark.parametrize(
    ("executor_id", "framework_id", "status", "text"),
    [("nope", "m-0000", 400, "Executor cannot be found"), ("e1", "nope", 400, "Framework cannot be found")],
)
def test_who_is_unknown_is_refused(executor_id: str, framework_id: str, status: int, text: str) -> None:
    bench = Bench()
    bench.launch(bench.subscribe(), task())
    agent = bench.cluster.agents[0]
    call = {
        "type": "SUBSCRIBE",
        "framework_id": {"value": framework_id},
        "executor_id": {"value": executor_id},
    }
    assert agent.check(call) == Answer(status, text)


def test_an_executor_must_subscribe_before_it_speaks() -> None:
    bench = Bench()
    bench.launch(bench.subscribe(), task())
    assert text_of(bench.executor_call("MESSAGE", {"data": "aGk="})) == (403, "Executor is not subscribed")


def test_messages_go_both_ways_and_are_lost_when_nobody_is_there() -> None:
    bench, stream, agent_stream = running()
    body = {"agent_id": {"value": "S0"}, "executor_id": {"value": "e1"}, "data": "aGk="}
    bench.call(stream, "MESSAGE", body)
    assert bench.events[agent_stream][-1] == {"type": "MESSAGE", "message": {"data": "aGk="}}
    bench.executor_call("MESSAGE", {"data": "eW8="})
    assert bench.events[stream][-1]["message"] == body | {"data": "eW8="}
    bench.drop(agent_stream)
    bench.call(stream, "MESSAGE", body)
    bench.drop(stream)
    bench.executor_call("MESSAGE", {"data": "eW8="})
    again = bench.subscribe("m-0000")
    fresh = bench.executor_call("SUBSCRIBE", {"unacknowledged_tasks": [task()]})
    assert isinstance(fresh, int)
    assert "MESSAGE" not in bench.kinds(again) + bench.kinds(fresh)


def test_an_executor_that_is_away_is_not_noticed() -> None:
    bench, stream, agent_stream = running()
    bench.update("t1", "TASK_RUNNING", 1)
    bench.drop(agent_stream)
    bench.call(stream, "KILL", {"task_id": {"value": "t1"}})
    bench.advance(9000)
    assert bench.states(stream) == ["TASK_RUNNING"]
    fresh = bench.executor_call("SUBSCRIBE", {})
    assert isinstance(fresh, int)
    assert bench.kinds(fresh) == ["SUBSCRIBED"], "neither the LAUNCH nor the KILL is repeated"


def test_a_second_subscription_ends_the_first() -> None:
    bench, _, agent_stream = running()
    bench.update("t1", "TASK_RUNNING", 1)
    fresh = bench.executor_call("SUBSCRIBE", {})
    assert agent_stream in bench.closed and isinstance(fresh, int)
    assert bench.kinds(agent_stream)[-1] != "ERROR"


def test_what_an_executor_could_not_report_is_taken_when_it_subscribes_again() -> None:
    bench, stream, _ = running()
    status = {
        "task_id": {"value": "t1"},
        "state": "TASK_RUNNING",
        "source": "SOURCE_EXECUTOR",
        "uuid": make_uuid(3),
    }
    fresh = bench.executor_call("SUBSCRIBE", {"unacknowledged_updates": [{"status": status}]})
    assert isinstance(fresh, int)
    assert bench.states(stream) == ["TASK_RUNNING"]
    assert sorted(bench.kinds(fresh)) == ["ACKNOWLEDGED", "SUBSCRIBED"]


def test_a_task_that_got_lost_on_its_way_to_the_executor_is_dropped() -> None:
    bench, stream, _ = running()
    bench.executor_call("SUBSCRIBE", {})
    status = bench.statuses(stream)[0]
    assert (status["state"], status["reason"]) == ("TASK_DROPPED", "REASON_AGENT_RESTARTED")
    assert status["source"] == "SOURCE_AGENT" and status["executor_id"] == {"value": "e1"}


def test_kill_goes_to_the_executor_as_it_came() -> None:
    bench, stream, agent_stream = running()
    policy = {"grace_period": {"nanoseconds": 3_000_000_000}}
    bench.call(stream, "KILL", {"task_id": {"value": "t1"}, "kill_policy": policy})
    assert bench.events[agent_stream][-1]["kill"] == {"task_id": {"value": "t1"}, "kill_policy": policy}
    bench.call(stream, "KILL", {"task_id": {"value": "t1"}, "agent_id": {"value": "S7"}})
    assert bench.kinds(agent_stream).count("KILL") == 1
    bench.advance(100_000)
    assert not bench.killed, "nobody enforces the grace of a custom executor"


def test_a_task_is_killed_before_it_is_delivered_and_its_executor_sent_home() -> None:
    bench = Bench()
    stream = bench.subscribe()
    bench.launch(stream, task())
    bench.call(stream, "KILL", {"task_id": {"value": "t1"}})
    (status,) = bench.statuses(stream)
    assert (status["state"], status["reason"]) == ("TASK_KILLED", "REASON_TASK_KILLED_DURING_LAUNCH")
    assert status["message"] == "Killed before delivery to the executor" and "container_status" not in status
    agent_stream = bench.executor_call("SUBSCRIBE", {})
    assert isinstance(agent_stream, int) and bench.kinds(agent_stream) == ["SHUTDOWN"]


@pytest.mark.parametrize("status", [0, 768, 9, 139])
def test_the_end_of_the_process_fails_what_was_alive(status: int) -> None:
    bench = Bench()
    stream = bench.subscribe()
    bench.launch(stream, task("t1"), task("t2"), task("t3"))
    bench.executor_call("SUBSCRIBE", {})
    bench.update("t1", "TASK_FINISHED", 1)
    bench.update("t2", "TASK_RUNNING", 2)
    bench.acknowledge(stream, "t2", make_uuid(2))
    start = len(bench.events[stream])
    bench.exit(status)
    failure, *updates = bench.events[stream][start:]
    assert failure["failure"]["status"] == status
    ended = [event["update"]["status"] for event in updates]
    assert [(item["task_id"]["value"], item["state"]) for item in ended] == [
        ("t2", "TASK_FAILED"),
        ("t3", "TASK_FAILED"),
    ]
    assert {item["reason"] for item in ended} == {"REASON_EXECUTOR_TERMINATED"}
    assert all("uuid" in item and item["message"] == "Executor terminated" for item in ended)


def test_updates_outlive_their_executor_in_order() -> None:
    bench, stream, _ = running()
    bench.update("t1", "TASK_STARTING", 1)
    bench.update("t1", "TASK_RUNNING", 2)
    bench.exit(9)
    for number in (1, 2):
        bench.acknowledge(stream, "t1", make_uuid(number))
    assert bench.states(stream) == ["TASK_STARTING", "TASK_RUNNING", "TASK_FAILED"]
    bench.acknowledge(stream, "t1", bench.statuses(stream)[-1]["uuid"])
    assert not bench.cluster.agents[0].frameworks


def test_an_executor_id_is_free_again_when_all_of_it_is_acknowledged() -> None:
    bench, stream, _ = running()
    bench.exit(0)
    bench.advance(1000)
    bench.launch(stream, task("t2"))
    assert bench.states(stream, "t2") == ["TASK_DROPPED"]
    bench.acknowledge(stream, "t2", bench.statuses(stream)[-1]["uuid"])
    bench.acknowledge(stream, "t1", bench.statuses(stream)[0]["uuid"])
    bench.advance(2000)
    bench.launch(stream, task("t3"))
    assert len(bench.started) == 2 and not bench.states(stream, "t3")


def test_an_executor_that_does_not_register_is_killed() -> None:
    bench = Bench(executor_registration_timeout_ms=4000)
    stream = bench.subscribe()
    bench.launch(stream, task())
    bench.advance(3999)
    assert not bench.killed
    bench.advance(4000)
    assert bench.killed == [bench.started[0].container_id]
    bench.exit(9)
    (status,) = bench.statuses(stream)
    assert status["message"] == "Executor did not register within 4secs"
    assert (status["state"], status["reason"]) == ("TASK_FAILED", "REASON_EXECUTOR_REGISTRATION_TIMEOUT")


@pytest.mark.parametrize(
    ("period", "grace_ms"), [({}, 5000), ({"shutdown_grace_period": {"nanoseconds": 10**9}}, 1000)]
)
def test_an_executor_that_ignores_shutdown_is_killed_after_its_grace(
    period: dict[str, object], grace_ms: int
) -> None:
    bench = Bench()
    stream = bench.subscribe()
    bench.launch(stream, task(executor=executor(**period)))
    agent_stream = bench.executor_call("SUBSCRIBE", {})
    assert isinstance(agent_stream, int)
    bench.call(stream, "SHUTDOWN", {"agent_id": {"value": "S0"}, "executor_id": {"value": "e1"}})
    assert bench.events[agent_stream][-1] == {"type": "SHUTDOWN"}
    bench.advance(grace_ms - 1)
    assert not bench.killed
    bench.advance(grace_ms)
    assert len(bench.killed) == 1


def test_what_an_executor_says_while_it_shuts_down_counts() -> None:
    bench, stream, _ = running()
    bench.call(stream, "SHUTDOWN", {"agent_id": {"value": "S0"}, "executor_id": {"value": "e1"}})
    bench.update("t1", "TASK_KILLED", 1)
    bench.exit(0)
    assert bench.states(stream) == ["TASK_KILLED"]
    assert bench.kinds(stream)[-1] == "FAILURE"


def test_a_process_that_cannot_start_fails_its_task() -> None:
    bench = Bench()
    stream = bench.subscribe()
    bench.launch(stream, task())
    container_id = bench.started[0].container_id
    bench.cluster.agents[0].process_failed(container_id, "no such file", 0)
    bench.take()
    assert bench.kinds(stream)[-2:] == ["FAILURE", "UPDATE"]
    status = bench.statuses(stream)[0]
    assert status["message"] == "Failed to launch container: no such file"
    assert status["reason"] == "REASON_CONTAINER_LAUNCH_FAILED"


def test_executors_get_a_heartbeat_now_and_then() -> None:
    bench, _, agent_stream = running(executor_heartbeat_interval_ms=30_000)
    bench.advance(61_000)
    assert [event["type"] for event in bench.events[agent_stream]].count("HEARTBEAT") == 2


def test_at_the_end_every_executor_is_shut_down() -> None:
    bench, _, agent_stream = running()
    bench.cluster.shutdown(bench.now_ms)
    bench.take()
    assert bench.events[agent_stream][-1] == {"type": "SHUTDOWN"}
    bench.advance(5000)
    assert len(bench.killed) == 1


class AnyOrder(RuleBasedStateMachine):
    """Whatever a framework, its executors and their processes do: nothing breaks, and every resource is somewhere once."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(agents=2)
        self.stream: int | None = self.bench.subscribe()
        self.tasks: list[tuple[str, str]] = []
        self.count = 0

    @rule(executors=st.integers(0, 3), number=st.integers(1, 3), refuse=st.sampled_from([0.0, 2.0, 600.0]))
    def launch(self, executors: int, number: int, refuse: float) -> None:
        offers = list(self.bench.cluster.master.offers.values())
        if self.stream is None or not offers:
            return
        offer = offers[self.count % len(offers)]
        tasks = []
        for _ in range(number):
            self.count += 1
            name = (f"t{self.count}", f"e{executors}")
            tasks.append(task(*name, agent_id=offer.grant.agent_id))
            self.tasks.append(name)
        self.bench.launch(self.stream, *tasks, refuse_seconds=refuse, offer_ids=[{"value": offer.offer_id}])

    @rule(state=st.sampled_from(["TASK_RUNNING", "TASK_FINISHED", "TASK_FAILED"]), pick=st.integers(0, 50))
    def update(self, state: str, pick: int) -> None:
        if self.tasks:
            name = self.tasks[pick % len(self.tasks)]
            self.count += 1
            self.bench.update(name[0], state, self.count, name[1])

    @rule(pick=st.integers(0, 50))
    def subscribe_executor(self, pick: int) -> None:
        if self.tasks:
            self.bench.executor_call("SUBSCRIBE", {}, self.tasks[pick % len(self.tasks)][1])

    @rule(pick=st.integers(0, 50))
    def kill(self, pick: int) -> None:
        if self.tasks and self.stream is not None:
            self.bench.call(
                self.stream, "KILL", {"task_id": {"value": self.tasks[pick % len(self.tasks)][0]}}
            )

    @rule(pick=st.integers(0, 9), status=st.sampled_from([0, 9, 256]))
    def exit(self, pick: int, status: int) -> None:
        alive = [item.container_id for agent in self.bench.cluster.agents for item in agent.executors]
        if alive:
            container_id = alive[pick % len(alive)]
            agent = self.bench.agent_of(container_id)
            agent.process_exited(container_id, status, self.bench.now_ms)
            self.bench.take()

    @rule(pick=st.integers(0, 3))
    def acknowledge(self, pick: int) -> None:
        if self.stream is None:
            return
        for status in self.bench.statuses(self.stream)[pick:]:
            if "uuid" in status:
                self.bench.acknowledge(
                    self.stream, status["task_id"]["value"], status["uuid"], status["agent_id"]["value"]
                )

    @rule(delay_ms=st.sampled_from([1, 700, 5000, 70_000]))
    def wait(self, delay_ms: int) -> None:
        self.bench.advance(self.bench.now_ms + delay_ms)
        if self.stream is None and "m-0000" not in self.bench.cluster.master.frameworks:
            self.tasks.clear()

    @precondition(lambda self: self.stream is not None)
    @rule()
    def leave(self) -> None:
        assert self.stream is not None
        self.bench.drop(self.stream)
        self.stream = None

    @precondition(lambda self: "m-0000" in self.bench.cluster.master.frameworks)
    @rule()
    def come_back(self) -> None:
        self.stream = self.bench.subscribe("m-0000")

    @invariant()
    def counts_every_resource_once(self) -> None:
        self.bench.check()


AnyOrder.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestAnyOrder = AnyOrder.TestCase

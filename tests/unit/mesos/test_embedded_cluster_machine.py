"""Everything that may happen to a cluster, in any order: what the master counts is what there is, and in the end all agree."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from stoker.mesos.embedded.core import draining
from stoker.mesos.embedded.core.cluster import Refusal
from stoker.mesos.embedded.core.codec import Message
from stoker.mesos.embedded.core.containers import Life
from stoker.mesos.embedded.core.messages import TERMINAL_STATES
from stoker.mesos.embedded.core.ports import DrainConfig
from stoker.mesos.embedded.core.values import MasterSpec
from support.embedded_bench import Bench, make_uuid, task

AGENTS = 3
TIMES = {
    "agent_ping_timeout_ms": 1000,
    "registration_backoff_ms": 10,
    "agent_reregister_timeout_ms": 20_000,
    "unreachable_tasks_max": 3,
    "removed_agents_max": 2,
}

numbers = st.integers(1, AGENTS)


class ClusterMachine(RuleBasedStateMachine):
    """One framework that never acknowledges but when told to, and the executors of its tasks."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(AGENTS, **TIMES)
        self.stream = self.bench.subscribe()
        self.framework_id = "m-0000"
        self.tasks = self.uuids = self.masters = 0
        self.dead: set[str] = set()  # containers
        self.ended: set[str] = set()  # frameworks; a new master without a registry would take their ids again
        for _ in range(AGENTS):
            self.launch(1, 0, True)
        self.all_subscribe()
        for index in range(AGENTS):
            self.executor_updates(index, "TASK_RUNNING")
        self.acknowledge()
        self.bench.advance(1000)

    # What often happens, in one piece.

    @rule(number=numbers, delta_ms=st.sampled_from([0, 500, 3000, 7000]), is_lost=st.booleans())
    def restart_agent(self, number: int, delta_ms: int, is_lost: bool) -> None:
        """Kill an agent, with a LAUNCH on its way to it if that `is_lost`, and let it and its executors come back."""
        if is_lost:
            self.stop_agent(number, "freeze")
            self.launch(1, number - 1, True)
        self.stop_agent(number, "kill")
        self.wait(delta_ms)
        self.start_agent(number, False, False)
        self.wait(150)
        self.all_subscribe()
        self.wait(2200)

    @rule(number=numbers, delta_ms=st.sampled_from([100, 3000, 7000]), launches=st.booleans())
    def pause_agent(self, number: int, delta_ms: int, launches: bool) -> None:
        self.stop_agent(number, "freeze")
        if launches:
            self.launch(1, number - 1, False)
        self.wait(delta_ms)
        self.start_agent(number, False, False)
        self.wait(20)

    @rule(keeps_registry=st.booleans(), return_ms=st.sampled_from([None, 0]))
    def change_master(self, keeps_registry: bool, return_ms: int | None) -> None:
        self.stop_master()
        self.start_master(keeps_registry, return_ms)
        self.subscribe(True)
        self.wait(7000)

    def all_subscribe(self) -> None:
        for index in range(len(self.executors())):
            self.executor_subscribes(index, True)

    # The scheduler.

    def call(self, kind: str, body: Message | None = None) -> None:
        if self.stream not in self.bench.closed:
            self.bench.call(self.stream, kind, body, framework_id=self.framework_id)

    @rule(checkpoint=st.booleans())
    def subscribe(self, checkpoint: bool) -> None:
        if self.bench.cluster.has_master:
            known = None if self.framework_id in self.ended else self.framework_id
            self.stream = self.bench.subscribe(known, checkpoint=checkpoint, failover_timeout=30.0)
            self.learn_id()

    def learn_id(self) -> None:
        first = self.bench.events[self.stream][0]
        if first["type"] == "SUBSCRIBED":
            self.framework_id = first["subscribed"]["framework_id"]["value"]

    @rule()
    def drop(self) -> None:
        if self.stream not in self.bench.closed:
            self.bench.drop(self.stream)
            self.bench.closed.append(self.stream)

    @rule()
    def tear_down(self) -> None:
        self.call("TEARDOWN")

    @rule(count=st.integers(1, 2), pick=st.integers(0, 5), own=st.booleans())
    def launch(self, count: int, pick: int, own: bool) -> None:
        held = list(self.bench.cluster.master.offers.values())
        if held and self.stream not in self.bench.closed:
            offer = held[pick % len(held)]
            tasks = []
            for _ in range(count):
                self.tasks += 1
                name = f"e{self.tasks}" if own else "e"
                agent_id = offer.grant.agent_id
                tasks.append(task(f"t{self.tasks}", name, cpus=0.2, agent_id=agent_id))
            operations = [{"type": "LAUNCH", "launch": {"task_infos": tasks}}]
            self.call("ACCEPT", {"offer_ids": [{"value": offer.offer_id}], "operations": operations})

    @rule(
        kind=st.sampled_from(["KILL", "RECONCILE", "REVIVE", "SUPPRESS", "IMPLICIT"]), pick=st.integers(1, 9)
    )
    def ask(self, kind: str, pick: int) -> None:
        item = {"task_id": {"value": f"t{pick}"}}
        bodies: dict[str, Any] = {"KILL": item, "RECONCILE": {"tasks": [item]}, "IMPLICIT": {"tasks": []}}
        self.call("RECONCILE" if kind == "IMPLICIT" else kind, bodies.get(kind, {}))

    @rule()
    def acknowledge(self) -> None:
        statuses = self.bench.statuses(self.stream)[-8:]
        for status in [status for status in statuses if "uuid" in status]:
            self.call("ACKNOWLEDGE", {key: status[key] for key in ("agent_id", "task_id", "uuid")})

    # Executors.

    def executors(self) -> list[tuple[Any, Any]]:
        return [
            (agent, executor)
            for agent in self.bench.cluster.agents
            if agent.life in (Life.UP, Life.ENDING)
            for executor in agent.executors
            if executor.container_id not in self.dead
        ]

    @rule(pick=st.integers(0, 9), lists=st.booleans())
    def executor_subscribes(self, pick: int, lists: bool) -> None:
        found = self.executors()
        if found:
            agent, executor = found[pick % len(found)]
            tasks = list(executor.launched.values()) if lists else []
            call = self.executor_call(executor, "SUBSCRIBE", {"unacknowledged_tasks": tasks})
            if agent.check(call) is None:
                stream = self.bench.open_stream()
                agent.subscribe(call, stream, self.bench.now_ms)
                self.bench.take()

    @rule(pick=st.integers(0, 9), state=st.sampled_from(["TASK_RUNNING", "TASK_FINISHED", "TASK_KILLED"]))
    def executor_updates(self, pick: int, state: str) -> None:
        found = [(a, e, name) for a, e in self.executors() for name in e.launched]
        if found:
            agent, executor, name = found[pick % len(found)]
            self.uuids += 1
            status = {"task_id": {"value": name}, "state": state, "uuid": make_uuid(self.uuids)}
            call = self.executor_call(executor, "UPDATE", {"status": {**status, "source": "SOURCE_EXECUTOR"}})
            if agent.check(call) is None:
                agent.call(call, self.bench.now_ms)
                self.bench.take()

    @rule(pick=st.integers(0, 9))
    def executor_exits(self, pick: int) -> None:
        alive = [order for order in self.bench.started if order.container_id not in self.dead]
        if alive:
            self.exit(alive[pick % len(alive)].container_id)

    def exit(self, container_id: str) -> None:
        self.dead.add(container_id)
        agent = self.bench.cluster.agent_of_container(container_id)
        if agent is not None:
            agent.process_exited(container_id, 9, self.bench.now_ms)
            self.bench.take()

    def executor_call(self, executor: Any, kind: str, body: Message) -> Message:
        return {
            "type": kind,
            "framework_id": {"value": executor.framework_id},
            "executor_id": {"value": executor.executor_id},
            kind.lower(): body,
        }

    # Agents, masters, operators, time.

    @rule(number=numbers, how=st.sampled_from(["kill", "freeze", "usr1"]))
    def stop_agent(self, number: int, how: Any) -> None:
        try:
            self.bench.stop(number, how)
        except Refusal:
            self.bench.take()

    @rule(number=numbers, is_wiped=st.booleans(), is_rebooted=st.booleans())
    def start_agent(self, number: int, is_wiped: bool, is_rebooted: bool) -> None:
        try:
            self.bench.start(number, is_wiped=is_wiped, is_rebooted=is_rebooted)
        except Refusal:
            self.bench.take()

    @rule()
    def stop_master(self) -> None:
        if self.bench.cluster.has_master:
            self.the_books_agree()
            self.bench.cluster.stop_master(self.bench.now_ms)
            self.bench.take()

    @rule(keeps_registry=st.booleans(), return_ms=st.sampled_from([None, 0, 1000]))
    def start_master(self, keeps_registry: bool, return_ms: int | None) -> None:
        if not self.bench.cluster.has_master:
            self.masters += 1
            spec = MasterSpec(f"m{self.masters}", "127.0.0.1", "127.0.0.1", 5050)
            now_ms = self.bench.now_ms
            self.bench.cluster.start_master(
                spec, keeps_registry=keeps_registry, now_ms=now_ms, return_ms=return_ms
            )
            self.bench.take()

    @rule(
        number=numbers,
        what=st.sampled_from(["drain", "drain and gone", "deactivate", "reactivate", "gone"]),
    )
    def order(self, number: int, what: str) -> None:
        if self.bench.cluster.has_master:
            master, now_ms = self.bench.cluster.master, self.bench.now_ms
            agent_id = self.bench.cluster.agent(number).spec.agent_id
            match what:
                case "drain" | "drain and gone":
                    draining.drain(master, agent_id, DrainConfig(2000, what != "drain"), now_ms)
                case "deactivate":
                    draining.deactivate(master, agent_id, now_ms)
                case "reactivate":
                    draining.reactivate(master, agent_id, now_ms)
                case _:
                    draining.mark_gone(master, agent_id, now_ms)
            self.bench.take()

    @rule(number=numbers, what=st.sampled_from(["plan", "withdraw", "down", "up"]))
    def maintain(self, number: int, what: str) -> None:
        if self.bench.cluster.has_master:
            maintenance, now_ms = self.bench.cluster.master.maintenance, self.bench.now_ms
            spec = self.bench.cluster.agent(number).spec
            machines = [{"hostname": spec.hostname, "ip": spec.ip}]
            match what:
                case "plan":
                    window = {"start": {"nanoseconds": 1}}
                    windows = [{"machine_ids": machines, "unavailability": window}]
                    maintenance.update_schedule({"windows": windows}, now_ms)
                case "withdraw":
                    maintenance.update_schedule({}, now_ms)
                case "down":
                    maintenance.start(machines, now_ms)
                case _:
                    maintenance.stop(machines, now_ms)
            self.bench.take()

    @rule(delta_ms=st.sampled_from([1, 100, 1000, 2500, 7000, 40_000]))
    def wait(self, delta_ms: int) -> None:
        self.bench.advance(self.bench.now_ms + delta_ms)

    # What is always so.

    @invariant()
    def the_books_agree(self) -> None:
        if not self.bench.cluster.has_master:
            return
        master = self.bench.cluster.master
        self.ended.update(framework.framework_id for framework in master.completed)
        for agent_id, record in master.agents.items():
            mine = {
                (name, task_id)
                for name, framework in master.frameworks.items()
                for task_id, item in framework.tasks.items()
                if item.agent_id == agent_id
            }
            assert mine == record.tasks.keys()
            offered = {name for name, item in master.offers.items() if item.grant.agent_id == agent_id}
            assert offered == record.offers.keys()
            assert not record.offers or record.is_active
            assert agent_id not in master.registry.unreachable and agent_id not in master.registry.gone
        for framework in master.frameworks.values():
            assert all(item.agent_id in master.agents for item in framework.tasks.values())
            assert not framework.tasks.keys() & framework.unreachable_tasks.keys()
            assert len(framework.unreachable_tasks) <= TIMES["unreachable_tasks_max"]
        assert len(master.registry.gone) <= TIMES["removed_agents_max"]

    @invariant()
    def who_is_registered_is_known(self) -> None:
        agents = self.bench.cluster.agents
        connected = {agent.spec.agent_id for agent in agents if agent.is_registered}
        if not self.bench.cluster.has_master:
            assert not connected
            return
        known = {name for name, record in self.bench.cluster.master.agents.items() if record.is_connected}
        frozen = {agent.spec.agent_id for agent in agents if agent.life is Life.FROZEN}
        assert connected - frozen <= known <= connected

    def teardown(self) -> None:
        """Everything is let come back: in the end the master and the agents know the same tasks."""
        self.start_master(True, 0)
        for number in range(1, AGENTS + 1):
            self.start_agent(number, False, False)
        self.wait(1000)
        self.all_subscribe()
        for container_id in [name for name in self.bench.killed if name not in self.dead]:
            self.exit(container_id)
        self.wait(40_000)
        for container_id in [name for name in self.bench.killed if name not in self.dead]:
            self.exit(container_id)
        self.wait(3000)
        self.the_books_agree()
        for agent in self.bench.cluster.agents:
            assert agent.life in (Life.UP, Life.DOWN), "an agent that waits for a process that has ended"
            record = self.bench.cluster.master.agents.get(agent.spec.agent_id)
            if record is not None and record.is_connected and agent.life is Life.UP:
                there = {
                    (name, task_id)
                    for name, framework in agent.frameworks.items()
                    if not framework.terminating
                    for executor in framework.executors.values()
                    for task_id in executor.launched | executor.queued
                    if executor.states.get(task_id, "") not in TERMINAL_STATES
                }
                known = {key for key, item in record.tasks.items() if not item.released}
                assert there == known
                alive = {(executor.framework_id, executor.executor_id) for executor in agent.executors}
                assert record.executors.keys() <= alive


ClusterMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestClusterMachine = ClusterMachine.TestCase

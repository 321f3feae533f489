"""Mesos in virtual time: the core of the embedded Mesos with a network, processes and disks that are simulated.

A master and its agents are the very machine that `stoker mesos` runs, which the conformance suite holds against recordings of real
ones. Calls come as the bytes that the product's driver wrote, late, and some never; events leave in order on a stream, or not at
all when it breaks first. Each call is held against what the journal promises when it arrives.
"""

from __future__ import annotations

import itertools
import json
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from sim.directories import Directories, volume_of
from sim.executor import SimExecutor
from sim.faults import Faults
from sim.mesos_client import Connection, MesosClient, encoded
from sim.mesos_executor import HEADERS, KILLED, ExecutorProcess
from sim.timeline import Timeline
from stoker.framework.core import actions as a
from stoker.framework.core import entries as e
from stoker.framework.core.volumes import Volumes
from stoker.mesos.embedded.core import operator
from stoker.mesos.embedded.core.calls import Answer, decode_scheduler_call
from stoker.mesos.embedded.core.cluster import Cluster
from stoker.mesos.embedded.core.containers import Life
from stoker.mesos.embedded.core.messages import TERMINAL_STATES
from stoker.mesos.embedded.core.resources import plain
from stoker.mesos.embedded.core.values import (
    Abort,
    AgentEnded,
    AgentNamed,
    AgentSpec,
    Close,
    KillProcess,
    MakeVolume,
    MasterSpec,
    Output,
    RemoveVolume,
    Send,
    Settings,
    StartProcess,
)

MIB = 1024 * 1024
MEM_MIB = 512
DISK_MIB = 1024
UNIX_MS = 1_700_000_000_000  # at the timeline's 0
WINDOW_MS = 60_000
SETTINGS = Settings(agent_ping_timeout_ms=1_000, agent_reregister_timeout_ms=60_000, update_retry_ms=2_000)

Json = dict[str, Any]


@dataclass
class SimAgent:
    mesos: Mesos
    number: int
    is_silent: bool = False  # its executors do not reach the schedulers
    is_off: bool = False  # its machine
    window_ms: int = 0  # Unix time of a maintenance; 0: none

    @property
    def agent_id(self) -> str:
        return self.mesos.cluster.agent(self.number).spec.agent_id

    @property
    def hostname(self) -> str:
        return f"agent-{self.number}"

    @property
    def ip(self) -> str:
        return f"10.0.{self.number >> 8}.{self.number & 255}"

    @property
    def is_there(self) -> bool:
        """Whether the master has it and reaches it."""
        return self.life is Life.UP and self.agent_id in self.mesos.registered()

    @property
    def life(self) -> Life:
        return self.mesos.cluster.agent(self.number).life


class Mesos:
    """See the module. `promised(task_id)` says what the journal promises now, `planned(launch_id)` what it ever did."""

    def __init__(
        self,
        timeline: Timeline,
        agents: int,
        *,
        promised: Callable[[str], e.LaunchPlanned | None],
        planned: Callable[[int], e.LaunchPlanned | None],
        volumes: Callable[[], Volumes],
        was_planned: Callable[[int], bool],
        is_robbed: Callable[[int], bool],
        settings: Settings = SETTINGS,
    ) -> None:
        self.timeline = timeline
        self.faults = Faults.none()
        self.executor_class = SimExecutor
        self.subscribe_ms_max = 300  # until a scheduler is taken in
        self.deaths_ms = -(2**63)  # when an executor was lost last, or cut off, or taken for lost
        self.executors: dict[str, SimExecutor] = {}  # by task id: those that work
        self.processes: dict[str, ExecutorProcess] = {}  # by container id
        self.framework_id = ""
        self.framework_ids: list[str] = []
        self.epoch = 0  # of the newest leader that has subscribed
        self.reads: Counter[tuple[int, int, int]] = Counter()  # blocks of SSD datasets, from the under store
        self.on_call: Callable[[str, Json], None] = lambda kind, call: None  # one is accepted
        self.disks = Directories(promised=volumes, was_planned=was_planned, in_use=self.volumes_in_use)
        self._promised, self._planned, self._is_robbed = promised, planned, is_robbed
        self._launched: set[str] = set()
        self._agents_of_tasks: dict[str, SimAgent] = {}
        self._inverse: dict[str, str] = {}  # agent ids, by inverse offer
        self._streams: dict[int, Connection | ExecutorProcess] = {}
        self._stream_numbers = itertools.count(1)
        self._masters = itertools.count(1)
        self._pids = itertools.count(4_000)
        self._incarnations = itertools.count(1)
        self._armed_ms = 2**63
        self.sim_agents = [SimAgent(self, number) for number in range(1, agents + 1)]
        now_ms = timeline.now_ms
        self.cluster = Cluster(
            self._master_spec(),
            [_agent_spec(agent) for agent in self.sim_agents],
            settings,
            seed=uuid.UUID(int=timeline.random.getrandbits(128)),
            now_ms=now_ms,
            wall_ms=UNIX_MS + now_ms,
        )
        self.step(lambda: None)

    def _master_spec(self) -> MasterSpec:
        return MasterSpec(f"master-{next(self._masters)}", "mesos", "10.1.0.1", 5050)

    @property
    def agents(self) -> dict[str, SimAgent]:
        """Return the agents by the ids that they have now."""
        return {agent.agent_id: agent for agent in self.sim_agents}

    def registered(self) -> set[str]:
        return set(self.cluster.master.agents) if self.cluster.has_master else set()

    # --- the machine

    def step(self, change: Callable[[], object]) -> None:
        """Let the machine take something in, and perform what follows."""
        change()
        while outputs := self.cluster.take_outputs():
            for output in outputs:
                self._perform(output)
        self._arm()

    def _arm(self) -> None:
        due_ms = self.cluster.next_deadline_ms()
        if due_ms is not None and due_ms < self._armed_ms:
            self._armed_ms = due_ms
            self.timeline.at(max(0, due_ms - self.timeline.now_ms), self._tick)

    def _tick(self) -> None:
        if self.timeline.now_ms >= self._armed_ms:
            self._armed_ms = 2**63
            self.step(lambda: self.cluster.tick(self.timeline.now_ms))

    def _perform(self, output: Output) -> None:
        match output:
            case Send(number, event):
                self._send(number, event)
            case Close(number) | Abort(number):
                self._break(number)
            case StartProcess():
                self._start(output)
            case KillProcess(container_id):
                process = self.processes.get(container_id)
                if process is not None:
                    self.timeline.at(1, lambda: process.exit(KILLED))
            case MakeVolume(path):
                self.disks.make(path)
            case RemoveVolume(path):
                self.disks.remove(path)
            case AgentNamed() | AgentEnded():
                pass

    def _send(self, number: int, event: Json) -> None:
        target = self._streams.get(number)
        if target is None:
            return
        event = encoded(event)
        if isinstance(target, ExecutorProcess):
            process = target

            def arrive() -> None:
                if process.stream == number:
                    process.deliver(event)

            self.timeline.at(2, arrive)
            return
        if event["type"] == "SUBSCRIBED":
            self.framework_id = event["subscribed"]["framework_id"]["value"]
            if self.framework_id not in self.framework_ids:
                self.framework_ids.append(self.framework_id)
        elif event["type"] == "INVERSE_OFFERS":
            for offer in event["inverse_offers"]["inverse_offers"]:
                self._inverse[offer["id"]["value"]] = offer["agent_id"]["value"]
        connection = target
        self.timeline.at(5, lambda: connection.client.process.run(lambda: connection.deliver(event)))

    def _break(self, number: int) -> None:
        target = self._streams.pop(number, None)
        if isinstance(target, ExecutorProcess):
            process = target
            self.timeline.at(2, lambda: process.lost() if process.stream == number else None)
        elif target is not None:
            connection = target
            self.timeline.at(
                5, lambda: connection.client.process.run(lambda: connection.client.lose(connection))
            )

    # --- schedulers

    def connect(self, client: MesosClient) -> Connection:
        """Take a connection in, whose SUBSCRIBE arrives some time later."""
        connection = Connection(client, next(self._stream_numbers))

        def arrive() -> None:
            if connection.is_closed or not client.process.is_alive:
                return
            if not self.cluster.has_master:
                client.process.run(lambda: client.lose(connection))
                return
            call = decode_scheduler_call(HEADERS, connection.body)
            connection.stream_id = self.cluster.new_stream_id()
            self._streams[connection.number] = connection
            client.process.run(lambda: client.taken(connection))
            self.epoch = max(self.epoch, client.epoch)
            number, stream_id, now_ms = connection.number, connection.stream_id, self.timeline.now_ms
            self.step(lambda: self.cluster.master.subscribe(call, number, stream_id, now_ms))

        self.timeline.at(self.timeline.between(1, self.subscribe_ms_max), arrive)
        return connection

    def hang_up(self, connection: Connection) -> None:
        """The scheduler's side closes it."""
        number = connection.number

        def arrive() -> None:
            if self._streams.pop(number, None) is not None:
                self.step(lambda: self.cluster.stream_closed(number, self.timeline.now_ms))

        self.timeline.at(5, arrive)

    def drop_connections(self) -> None:
        """Break the schedulers' connections off."""
        for number, target in list(self._streams.items()):
            if isinstance(target, Connection):
                self._break(number)
                self.step(lambda number=number: self.cluster.stream_closed(number, self.timeline.now_ms))  # type: ignore[misc]

    def call(self, connection: Connection, action: a.Action, body: bytes, stream_id: str) -> tuple[int, str]:
        """A call arrives; return the status and text of the answer. 0: nobody is there."""
        if not self.cluster.has_master:
            return 0, "connection refused"
        call = decode_scheduler_call(HEADERS, body)
        framework = self.cluster.master.frameworks.get(call["framework_id"]["value"])
        if framework is not None and framework.connected and framework.stream_id == stream_id:
            self._check(action)
            self._spoil(call)
        answers: list[Answer] = []
        now_ms = self.timeline.now_ms
        self.step(lambda: answers.append(self.cluster.master.call(call, stream_id, now_ms)))
        if answers[0].status == 202:
            epoch = connection.client.epoch
            assert epoch >= self.epoch or self._is_robbed(epoch), (
                f"a {call['type']} of epoch {epoch} is accepted"
            )
            self.on_call(call["type"], call)
        return answers[0].status, answers[0].text

    def _spoil(self, call: Json) -> None:
        """Let an operation on volumes fail, as agents do."""
        for operation in call.get("accept", {}).get("operations", ()):
            kind = operation["type"]
            if kind in ("CREATE", "UNRESERVE") and self.timeline.chance(self.faults.operation_fails):
                resources = operation[kind.lower()]["volumes" if kind == "CREATE" else "resources"]
                resources[0]["scalar"] = {"value": 2.0**30}

    def _check(self, action: a.Action) -> None:
        """Hold what is asked against what is promised."""
        match action:
            case a.Accept(launch=launch):
                assert self._planned(launch.launch_id) == launch, "launched before it was journaled"
                held = self.cluster.master.offers
                if all(offer_id in held for offer_id in action.offer_ids):
                    self._check_launch(launch)
            case a.Kill(task_id=task_id) | a.ShutdownExecutor(executor_id=task_id):
                is_asked = isinstance(action, a.ShutdownExecutor) and action.launch_id > 0  # it seems to hang
                self.deaths_ms = self.timeline.now_ms if is_asked else self.deaths_ms
                assert is_asked or self._promised(task_id) is None, f"{task_id} is killed but promised"
            case a.AcceptInverse(offer_ids):
                for agent_id in (self._inverse.get(offer_id, "") for offer_id in offer_ids):
                    used = [x.task_id for x in self.executors.values() if x.launch.agent_id == agent_id]
                    assert not any(map(self._promised, used)), f"{agent_id} is given and in use"

    def _check_launch(self, launch: e.LaunchPlanned) -> None:
        assert launch.task_id not in self._launched, "a task id is used again"
        self._launched.add(launch.task_id)
        for other in self.executors.values():
            is_of_slot = other.slot_id == launch.slot_id and self._promised(other.task_id) is not None
            assert not is_of_slot, f"two launches of slot {launch.slot_id}"
        assert launch.volume_id not in self.volumes_in_use(), f"volume {launch.volume_id} has two tasks"

    # --- executors

    def open_stream(self, process: ExecutorProcess) -> int:
        number = next(self._stream_numbers)
        self._streams[number] = process
        return number

    def _start(self, order: StartProcess) -> None:
        agent = self.cluster.agent_of_container(order.container_id)
        assert agent is not None
        process = ExecutorProcess(self, self.sim_agents[agent.spec.number - 1], order)
        self.processes[order.container_id] = process
        agent.process_started(order.container_id, next(self._pids))
        self.timeline.at(self.timeline.between(200, 3_000), process.start)

    def make_keeper(self, process: ExecutorProcess) -> SimExecutor:
        """Return the executor of a task that is launched."""
        given = process.environment
        launch = self._planned(int(given["STOKER_LAUNCH"]))
        assert launch is not None and (launch.task_id, launch.secret) == (
            given["STOKER_TASK"],
            given["STOKER_SECRET"],
        )
        schedulers = tuple(given["STOKER_SCHEDULERS"].split(","))
        cluster, incarnation = bytes.fromhex(given["STOKER_CLUSTER"]), next(self._incarnations)
        keeper = self.executor_class(launch, cluster, incarnation, schedulers)
        if "STOKER_DISK_DIR" in given:
            keeper.use_disk(self.disks.directories[process.links[given["STOKER_DISK_DIR"]]].held, self._read)
        self.executors[launch.task_id] = keeper
        self._agents_of_tasks[launch.task_id] = process.agent
        return keeper

    def _read(self, key: tuple[int, int], index: int) -> None:
        """An executor fills a block of an SSD dataset: from another executor that has it, or from the under store."""
        others = [p.keeper for p in self.processes.values() if p.keeper is not None and not p.agent.is_silent]
        if not any(index in other.held.get(key, ()) for other in others):
            self.reads[*key, index] += 1

    def leave(self, process: ExecutorProcess) -> None:
        """An executor serves no more."""
        if process.keeper is not None and self.executors.get(process.executor_id) is process.keeper:
            del self.executors[process.executor_id]
            del self._agents_of_tasks[process.executor_id]

    def process_ended(self, process: ExecutorProcess, status: int, *, is_noticed: bool = True) -> None:
        self.leave(process)
        del self.processes[process.container_id]
        if process.stream:
            number = process.stream
            self._streams.pop(number, None)
            self.step(lambda: self.cluster.stream_closed(number, self.timeline.now_ms))
        agent = self.cluster.agent_of_container(process.container_id)
        if agent is not None and is_noticed:
            self.step(lambda: agent.process_exited(process.container_id, status, self.timeline.now_ms))

    def end_executor(self, task_id: str, state: str) -> None:
        """An executor ends, by itself or because it breaks."""
        for process in [p for p in self.processes.values() if p.executor_id == task_id]:
            if state == "TASK_FAILED":
                process.exit(KILLED)
            else:
                process.end(state)

    def agent_of(self, executor: SimExecutor) -> SimAgent:
        return self._agents_of_tasks[executor.task_id]

    def machine_answers(self, hostname: str) -> bool:
        """Return whether a scheduler's connection to a machine gets an answer, be it a refusal."""
        return any(x.hostname == hostname and not x.is_off and not x.is_silent for x in self.sim_agents)

    def volumes_in_use(self) -> dict[int, str]:
        """Return the volumes that living executors have, and where they are."""
        return {
            volume_of(path): process.agent.agent_id
            for process in self.processes.values()
            for path in process.links.values()
        }

    def living_tasks(self) -> set[str]:
        """Return all tasks that have a process, or that the master believes to live."""
        known = self.cluster.master.frameworks[self.framework_id].tasks.values()
        return {p.executor_id for p in self.processes.values()} | {
            t.task_id for t in known if t.state not in TERMINAL_STATES
        }

    def estates(self) -> Iterator[tuple[str, list[Any]]]:
        """Yield the agents that are registered, and their resources with all that is reserved."""
        for agent_id, record in self.cluster.master.agents.items():
            yield agent_id, record.port.resources.to_messages()

    # --- agents come and go

    def restart_agent(self, agent: SimAgent, down_ms: int) -> None:
        """Its process is killed and started again; its executors live on."""
        now_ms = self.timeline.now_ms
        self.step(lambda: self.cluster.stop_agent(agent.number, "kill", now_ms))
        self.timeline.at(down_ms, lambda: self.start_agent(agent))

    def start_agent(self, agent: SimAgent, **options: Any) -> None:
        """Start it, or let it go on."""
        agent.is_off = False
        if agent.life in (Life.DOWN, Life.FROZEN):
            self.step(lambda: self.cluster.start_agent(agent.number, self.timeline.now_ms, **options))

    def lose_agent(self, agent: SimAgent, down_ms: int | None) -> None:
        """Its machine goes down with all that runs on it, for a while or (None) until it is started; its disks stay."""
        self.deaths_ms = self.timeline.now_ms
        agent.is_off = True
        for process in [p for p in self.processes.values() if p.agent is agent]:
            process.is_alive = False
            self.process_ended(process, KILLED, is_noticed=False)
        if agent.life is not Life.DOWN:
            self.step(lambda: self.cluster.stop_agent(agent.number, "kill", self.timeline.now_ms))
        if down_ms is not None:
            self.timeline.at(down_ms, lambda: self.start_agent(agent, is_rebooted=True))

    def cut_agent(self, agent: SimAgent, *, is_silent: bool) -> None:
        """Cut it off the master, which notices after a while, and perhaps off the schedulers; its executors live on."""
        self.deaths_ms = self.timeline.now_ms
        agent.is_silent = is_silent
        self.step(lambda: self.cluster.stop_agent(agent.number, "freeze", self.timeline.now_ms))

    def heal_agent(self, agent: SimAgent) -> None:
        agent.is_silent = False
        if agent.life is Life.FROZEN:
            self.start_agent(agent)

    # --- operators, and masters

    def order(self, kind: str, **body: Any) -> Answer:
        """Make a call of the operator's API."""
        raw = json.dumps({"type": kind, kind.lower(): body}).encode()
        call = operator.decode_operator_call(HEADERS, raw)
        answers: list[Answer] = []
        now_ms = self.timeline.now_ms
        self.step(lambda: answers.append(operator.answer(self.cluster.master, call, now_ms)))
        return answers[0]

    def machine(self, agent: SimAgent) -> Json:
        return {"hostname": agent.hostname, "ip": agent.ip}

    def schedule(self) -> None:
        """Tell the master which machines are wanted, and when."""
        windows = [
            {
                "machine_ids": [self.machine(agent)],
                "unavailability": {
                    "start": {"nanoseconds": agent.window_ms * 1_000_000},
                    "duration": {"nanoseconds": WINDOW_MS * 1_000_000},
                },
            }
            for agent in self.sim_agents
            if agent.window_ms
        ]
        answer = self.order("UPDATE_MAINTENANCE_SCHEDULE", schedule={"windows": windows})
        assert answer.status == 200, answer

    def want_back(self, agent: SimAgent, unix_ms: int) -> None:
        """Schedule a maintenance of it, and withdraw it some time later; or let it go down and come back."""
        if not self.cluster.has_master:
            return
        agent.window_ms = unix_ms + self.timeline.between(0, 30_000)
        self.schedule()
        goes_down = self.timeline.chance(0.5)

        def over() -> None:
            if not self.cluster.has_master:
                self.timeline.at(1_000, over)
                return
            agent.window_ms = 0
            self.schedule()
            used = [p.executor_id for p in self.processes.values() if p.agent is agent]
            if goes_down and agent.is_there and not any(map(self._promised, used)):
                self.lose_agent(agent, self.timeline.between(5_000, 40_000))

        self.timeline.at(self.timeline.between(10_000, 60_000), over)

    def fail_over(self, *, keeps_registry: bool, away_ms: int, return_ms: int | None) -> None:
        """The master dies, and another one leads after a while; agents register `return_ms` later."""
        if not self.cluster.has_master:
            return
        self.step(lambda: self.cluster.stop_master(self.timeline.now_ms))
        spec = self._master_spec()

        def lead() -> None:
            now_ms = self.timeline.now_ms
            self.step(
                lambda: self.cluster.start_master(
                    spec, keeps_registry=keeps_registry, now_ms=now_ms, return_ms=return_ms
                )
            )

        self.timeline.at(away_ms, lead)

    # --- what happens each second

    def second(self) -> None:
        chance, between = self.timeline.chance, self.timeline.between
        for task_id, executor in list(self.executors.items()):
            if chance(self.faults.executor_dies):
                self.deaths_ms = self.timeline.now_ms
                self.end_executor(task_id, "TASK_FAILED")
            elif chance(self.faults.executor_hangs):
                executor.is_hung = True
        for agent in self.sim_agents:
            if agent.is_there and chance(self.faults.agent_dies):
                self.lose_agent(agent, between(5_000, 40_000))
            if self.faults.agent_cut and agent.is_there and chance(self.faults.agent_cut):
                self.cut_agent(agent, is_silent=chance(0.5))
                self.timeline.at(between(2_000, 80_000), lambda agent=agent: self.heal_agent(agent))  # type: ignore[misc]
            if self.faults.agent_restarts and agent.is_there and chance(self.faults.agent_restarts):
                self.restart_agent(agent, between(10, 4_000))
        if chance(self.faults.master_goes):
            self.drop_connections()
        if self.faults.master_fails and chance(self.faults.master_fails):
            keeps, away_ms = chance(0.5), between(100, 5_000)
            self.fail_over(keeps_registry=keeps, away_ms=away_ms, return_ms=between(0, 8_000))


def _agent_spec(agent: SimAgent) -> AgentSpec:
    resources = plain(cpus=4, mem_mib=MEM_MIB, disk_mib=DISK_MIB, ports=(31_000, 31_010))
    return AgentSpec("", agent.number, agent.hostname, agent.ip, 5051, resources, f"/agents/{agent.number}")

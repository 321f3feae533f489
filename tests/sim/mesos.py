"""Mesos in virtual time: a master, its agents, and the tasks on them.

It knows one framework. Who subscribes last with its id has the stream: the one before is told that it was failed over,
and what it still calls is refused. Events come in order on a stream, or not at all when it breaks first; calls come
late, and some never. Updates are sent again until they are acknowledged.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from sim.disks import Disks
from sim.executor import SimExecutor
from sim.faults import Faults
from sim.process import Process
from sim.timeline import Timeline
from stoker.framework.core import actions as a
from stoker.framework.core import entries as e
from stoker.framework.core import events as ev
from stoker.framework.core.fleet import TERMINAL_STATES
from stoker.framework.core.volumes import Volumes
from stoker.framework.model import InverseOffer, Offer, Resources, TaskStatus

MIB = 1024 * 1024
OVERHEAD_BYTES = 256 * MIB


@dataclass
class SimTask:
    task_id: str
    agent_id: str
    mem_bytes: int
    volume_id: int = 0
    state: str = "TASK_STAGING"
    unacknowledged: list[TaskStatus] = field(default_factory=list)


@dataclass
class SimAgent:
    agent_id: str
    mem_bytes: int
    is_up: bool = True
    is_cut: bool = False  # the master does not reach it
    is_silent: bool = False  # nor do its executors reach the schedulers
    is_unreachable: bool = False  # and the master has said so
    refused_until_ms: int = 0
    offer_id: str = ""
    wanted_from_ms: int = 0  # Unix time of a maintenance; 0: none
    inverse_id: str = ""
    asked_again_ms: int = 0

    @property
    def is_there(self) -> bool:
        return self.is_up and not self.is_cut


class Stream:
    """One subscription. `deliver` gets its events; `ended` is called when the master closes it."""

    def __init__(
        self,
        master: Master,
        process: Process,
        deliver: Callable[[ev.Event], None],
        ended: Callable[[str], None],
    ) -> None:
        self.is_open = True
        self._master, self._process, self._deliver, self._ended = master, process, deliver, ended
        self._calls_ms = 0

    def send(self, event: ev.Event) -> None:
        def arrive() -> None:
            if self.is_open:
                self._deliver(event)

        self._master.timeline.at(5, lambda: self._process.run(arrive))

    def end(self, why: str) -> None:
        """The master closes it."""
        if self.is_open and self._master.stream is self:
            self._master.disconnect()

        def arrive() -> None:
            if self.is_open:
                self.is_open = False
                self._ended(why)

        self._master.timeline.at(5, lambda: self._process.run(arrive))

    def close(self) -> None:
        """The scheduler closes it; idempotent."""
        if self.is_open:
            self.is_open = False
            if self._master.stream is self:
                self._master.timeline.at(5, self._gone)

    def call(self, what: Callable[[], None]) -> None:
        """Make a call of the scheduler's API, after those before it; the master refuses it if it is not the stream."""
        timeline = self._master.timeline
        delay_ms = timeline.between(1, 20)
        if timeline.chance(self._master.faults.message_late):
            delay_ms = timeline.between(1, self._master.faults.late_ms_max)
        self._calls_ms = max(self._calls_ms, timeline.now_ms + delay_ms)

        def arrive() -> None:
            if self._master.stream is self:
                what()

        timeline.at(self._calls_ms - timeline.now_ms, arrive)

    def _gone(self) -> None:
        if self._master.stream is self:
            self._master.disconnect()


class Master:
    """See the module. `promised(task_id)` says what the journal promises now, `planned(launch_id)` what it ever did."""

    def __init__(
        self,
        timeline: Timeline,
        agents: int,
        *,
        promised: Callable[[str], e.LaunchPlanned | None],
        planned: Callable[[int], e.LaunchPlanned | None],
        cluster: Callable[[], bytes],
        volumes: Callable[[], Volumes],
        was_planned: Callable[[int], bool],
    ) -> None:
        self.timeline = timeline
        self.faults = Faults.none()
        self.executor_class = SimExecutor
        self.subscribe_ms_max = 300  # until a scheduler is taken in
        self.deaths_ms = -(2**63)  # when an executor was lost last, or cut off, or taken for lost
        self.agents = {f"agent-{i}": SimAgent(f"agent-{i}", 512 * MIB) for i in range(agents)}
        self.tasks: dict[str, SimTask] = {}
        self.executors: dict[str, SimExecutor] = {}
        self.offers: dict[str, SimAgent] = {}
        self.framework_id = ""
        self.framework_ids: list[str] = []
        self.stream: Stream | None = None
        self.is_suppressed = False
        self.schedulers: tuple[str, ...] = ()
        self._promised, self._planned, self._cluster = promised, planned, cluster
        self._offer_ids = itertools.count(1)
        self._uuids = itertools.count(1)
        self._incarnations = itertools.count(1)
        self.disks = Disks(
            cluster=cluster,
            promised=volumes,
            was_planned=was_planned,
            fails=lambda: timeline.chance(self.faults.operation_fails),
            uuid=lambda: next(self._uuids).to_bytes(16, "big"),
            send=lambda status: self.send(ev.OperationUpdated(status)),
        )

    # --- schedulers

    def subscribe(
        self,
        process: Process,
        framework_id: str,
        deliver: Callable[[ev.Event], None],
        ended: Callable[[str], None],
    ) -> Stream:
        """Ask to be taken in; Subscribed comes as the stream's first event."""
        stream = Stream(self, process, deliver, ended)

        def arrive() -> None:
            if not stream.is_open or not process.is_alive:
                return
            old = self.stream
            if old is not None:
                old.end("Framework failed over" if framework_id == self.framework_id else "gone")
            self.disconnect()
            self.stream, self.is_suppressed = stream, False
            if not framework_id:
                self.framework_ids.append(f"framework-{len(self.framework_ids) + 1}")
            self.framework_id = framework_id or self.framework_ids[-1]
            assert self.framework_id in self.framework_ids, "an id that this master never gave"
            stream.send(ev.Subscribed(self.framework_id, "master-1"))

        self.timeline.at(self.timeline.between(1, self.subscribe_ms_max), arrive)
        return stream

    def disconnect(self) -> None:
        """The stream is gone: offers are rescinded, filters forgotten."""
        self.stream = None
        self.offers.clear()
        for agent in self.agents.values():
            agent.refused_until_ms, agent.offer_id = 0, ""
            agent.inverse_id, agent.asked_again_ms = "", 0

    def send(self, event: ev.Event) -> None:
        if self.stream is not None:
            self.stream.send(event)

    # --- calls

    def perform(self, stream: Stream, action: a.Action) -> None:
        """Do what a scheduler's action asks of Mesos, if the call arrives."""
        unreliable = isinstance(
            action,
            a.Kill | a.Reconcile | a.Suppress | a.Revive | a.ShutdownExecutor | a.ReconcileOperations,
        )
        if unreliable and self.timeline.chance(self.faults.message_loss):
            return
        stream.call(lambda: self._call(action))

    def _call(self, action: a.Action) -> None:
        match action:
            case a.Accept():
                self._accept(action)
            case a.Decline():
                for offer_id in action.offer_ids:
                    self._give_back(offer_id, action.refuse_ms)
            case a.Acknowledge():
                task = self.tasks.get(action.task_id)
                if task and task.unacknowledged and task.unacknowledged[0].uuid == action.uuid:
                    del task.unacknowledged[0]
            case a.Suppress():
                self.is_suppressed = True
            case a.Revive():
                self.is_suppressed = False
                for agent in self.agents.values():
                    agent.refused_until_ms = 0
            case a.Kill(task_id=task_id) | a.ShutdownExecutor(executor_id=task_id):
                is_asked = isinstance(action, a.ShutdownExecutor) and action.launch_id > 0  # it seems to hang
                self.deaths_ms = self.timeline.now_ms if is_asked else self.deaths_ms
                assert is_asked or self._promised(task_id) is None, f"{task_id} is killed but promised"
                executor = self.executors.get(task_id)
                if executor is not None and self.agents[executor.launch.agent_id].is_cut:
                    return
                if executor is not None and not executor.is_hung or isinstance(action, a.ShutdownExecutor):
                    self.end_executor(task_id, "TASK_KILLED")
            case a.Reconcile():
                self._reconcile(action)
            case a.DestroyVolume():
                self._destroy(action)
            case a.AcknowledgeOperation():
                self.disks.acknowledge(action)
            case a.ReconcileOperations():
                self.disks.reconcile(action)
            case a.AcceptInverse(offer_ids, refuse_ms) | a.DeclineInverse(offer_ids, refuse_ms):
                self._answer_inverse(offer_ids, refuse_ms, is_given=isinstance(action, a.AcceptInverse))

    def _accept(self, action: a.Accept) -> None:
        launch = action.launch
        assert self._planned(launch.launch_id) == launch, "launched before it was journaled"
        agents = {self.offers[i].agent_id for i in action.offer_ids if i in self.offers}
        is_valid = all(i in self.offers for i in action.offer_ids) and agents == {launch.agent_id}
        for offer_id in action.offer_ids:
            self._give_back(offer_id, action.refuse_ms)
        agent = self.agents[launch.agent_id]
        if not is_valid or not agent.is_there:
            self.disks.refuse(action, "the offers are not valid any more")
            self.send(ev.TaskUpdated(TaskStatus(launch.task_id, "TASK_DROPPED", launch.agent_id)))
            return
        assert launch.task_id not in self.tasks, "a task id is used again"
        for other in self.executors.values():
            is_of_slot = other.slot_id == launch.slot_id and self._promised(other.task_id) is not None
            assert not is_of_slot, f"two launches of slot {launch.slot_id}"
        in_use = self.volumes_in_use()
        if not self.disks.launch(action):
            self.send(ev.TaskUpdated(TaskStatus(launch.task_id, "TASK_ERROR", launch.agent_id)))
            return
        assert launch.volume_id not in in_use, f"volume {launch.volume_id} has two tasks"
        task = self.tasks[launch.task_id] = SimTask(
            launch.task_id, launch.agent_id, launch.mem_bytes + OVERHEAD_BYTES, launch.volume_id
        )
        schedulers = self.schedulers

        def start() -> None:
            if self.tasks.get(launch.task_id) is not task or task.state in TERMINAL_STATES:
                return
            if self.timeline.chance(self.faults.executor_dies * 5):
                self.update(task, "TASK_FAILED", "it died at birth")
                return
            executor = self.executor_class(launch, self._cluster(), next(self._incarnations), schedulers)
            self.executors[launch.task_id] = executor
            self.update(task, "TASK_RUNNING")

        self.timeline.at(self.timeline.between(200, 3_000), start)

    def _destroy(self, action: a.DestroyVolume) -> None:
        agents = {self.offers[i].agent_id for i in action.offer_ids if i in self.offers}
        is_valid = all(i in self.offers for i in action.offer_ids) and agents == {action.agent_id}
        for offer_id in action.offer_ids:
            self._give_back(offer_id, action.refuse_ms)
        if is_valid and self.agents[action.agent_id].is_there:
            self.disks.destroy(action, set(self.volumes_in_use()))

    def volumes_in_use(self) -> dict[int, str]:
        """Return the volumes that living tasks have, and where they are."""
        living = [t for t in self.tasks.values() if t.state not in TERMINAL_STATES and t.volume_id]
        return {task.volume_id: task.agent_id for task in living}

    def _give_back(self, offer_id: str, refuse_ms: int) -> None:
        agent = self.offers.pop(offer_id, None)
        if agent is not None:
            agent.offer_id = ""
            agent.refused_until_ms = self.timeline.now_ms + refuse_ms

    def _reconcile(self, action: a.Reconcile) -> None:
        if not action.tasks:
            known = [
                (t.task_id, t.agent_id)
                for t in self.tasks.values()
                if t.state not in TERMINAL_STATES and not self.agents[t.agent_id].is_unreachable
            ]
        else:
            known = list(action.tasks)
        for task_id, agent_id in known:
            task = self.tasks.get(task_id)
            state = task.state if task else "TASK_GONE"
            if task is not None and self.agents[task.agent_id].is_unreachable:
                state = "TASK_UNREACHABLE"
            self.send(ev.TaskUpdated(TaskStatus(task_id, state, agent_id, reason="REASON_RECONCILIATION")))

    # --- tasks and agents

    def update(self, task: SimTask, state: str, reason: str = "") -> None:
        task.state = state
        uuid = next(self._uuids).to_bytes(16, "big")
        task.unacknowledged.append(
            TaskStatus(task.task_id, state, task.agent_id, task.task_id, reason, uuid=uuid)
        )
        if state in TERMINAL_STATES:
            task.mem_bytes = 0
            self.agents[task.agent_id].refused_until_ms = 0  # no filter hides an offer of more than was refused

    def end_executor(self, task_id: str, state: str) -> None:
        executor = self.executors.pop(task_id, None)
        task = self.tasks.get(task_id)
        if task is not None and task.state not in TERMINAL_STATES:
            self.update(task, state)
        if executor is not None and self.timeline.chance(0.5):
            self.send(ev.ExecutorEnded(executor.launch.agent_id, task_id, 9))

    def lose_agent(self, agent: SimAgent) -> None:
        self.deaths_ms = self.timeline.now_ms
        agent.is_up = False
        self._give_back(agent.offer_id, 0)
        self.send(ev.AgentRemoved(agent.agent_id))
        for task in [t for t in self.tasks.values() if t.agent_id == agent.agent_id]:
            self.executors.pop(task.task_id, None)
            del self.tasks[task.task_id]
            self.send(ev.TaskUpdated(TaskStatus(task.task_id, "TASK_GONE", agent.agent_id)))

        def back() -> None:
            agent.is_up = True

        self.timeline.at(self.timeline.between(5_000, 40_000), back)

    def cut_agent(self, agent: SimAgent) -> None:
        """Cut it off the master, which notices after a while, for longer than that; its executors live on."""
        self.deaths_ms = self.timeline.now_ms
        agent.is_cut, agent.is_silent = True, self.timeline.chance(0.5)
        self._give_back(agent.offer_id, 0)

        def notice() -> None:
            if agent.is_cut:
                agent.is_unreachable = True
                for task in self._tasks_of(agent):
                    self.send(ev.TaskUpdated(TaskStatus(task.task_id, "TASK_UNREACHABLE", agent.agent_id)))
                self.send(ev.AgentRemoved(agent.agent_id))

        def back() -> None:
            was_unreachable = agent.is_unreachable
            agent.is_cut = agent.is_silent = agent.is_unreachable = False
            for task in self._tasks_of(agent) if was_unreachable else ():
                reason = "REASON_AGENT_REREGISTERED"
                self.send(ev.TaskUpdated(TaskStatus(task.task_id, task.state, agent.agent_id, reason=reason)))

        self.timeline.at(5_000, notice)
        self.timeline.at(self.timeline.between(2_000, 80_000), back)

    def _tasks_of(self, agent: SimAgent) -> list[SimTask]:
        mine = [t for t in self.tasks.values() if t.agent_id == agent.agent_id]
        return [task for task in mine if task.state not in TERMINAL_STATES]

    def want_back(self, agent: SimAgent, unix_ms: int) -> None:
        """Schedule a maintenance of it, and withdraw it some time later; or let it go down and come back."""
        agent.wanted_from_ms = unix_ms + self.timeline.between(0, 30_000)
        goes_down = self.timeline.chance(0.5)

        def over() -> None:
            agent.wanted_from_ms = 0
            if agent.inverse_id:
                self.send(ev.InverseOfferRescinded(agent.inverse_id))
            agent.inverse_id = ""
            self._give_back(agent.offer_id, 0)
            if goes_down and agent.is_there and self._promised_on(agent) is None:
                self.lose_agent(agent)

        self.timeline.at(self.timeline.between(10_000, 60_000), over)

    def _promised_on(self, agent: SimAgent) -> e.LaunchPlanned | None:
        found = (self._promised(task.task_id) for task in self._tasks_of(agent))
        return next((launch for launch in found if launch is not None), None)

    def _answer_inverse(self, offer_ids: tuple[str, ...], refuse_ms: int, *, is_given: bool) -> None:
        for agent in self.agents.values():
            if agent.inverse_id in offer_ids:
                assert not is_given or self._promised_on(agent) is None, f"{agent.agent_id} is given and in use"
                agent.inverse_id, agent.asked_again_ms = "", self.timeline.now_ms + refuse_ms

    def _send_inverse_offers(self) -> None:
        for agent in self.agents.values():
            is_used = bool(agent.offer_id or self._tasks_of(agent))  # Mesos asks nobody else
            is_due = agent.is_there and agent.wanted_from_ms and not agent.inverse_id and is_used
            if self.stream is not None and is_due and agent.asked_again_ms <= self.timeline.now_ms:
                agent.inverse_id = f"inverse-{next(self._offer_ids)}"
                offer = InverseOffer(agent.inverse_id, agent.agent_id, agent.wanted_from_ms, 60_000)
                self.send(ev.InverseOffersReceived((offer,)))

    # --- what happens each second

    def second(self) -> None:
        self._send_offers()
        self._send_inverse_offers()
        self._send_updates()
        for task_id, executor in list(self.executors.items()):
            if self.timeline.chance(self.faults.executor_dies):
                self.deaths_ms = self.timeline.now_ms
                self.end_executor(task_id, "TASK_FAILED")
            elif self.timeline.chance(self.faults.executor_hangs):
                executor.is_hung = True
        for agent in self.agents.values():
            if agent.is_there and self.timeline.chance(self.faults.agent_dies):
                self.lose_agent(agent)
            if self.faults.agent_cut and agent.is_there and self.timeline.chance(self.faults.agent_cut):
                self.cut_agent(agent)
        if self.stream is not None and self.timeline.chance(self.faults.master_goes):
            self.stream.end("gone")

    def _send_offers(self) -> None:
        if self.is_suppressed or self.stream is None:
            return
        offered = []
        in_use = set(self.volumes_in_use())
        for agent in self.agents.values():
            used = sum(t.mem_bytes for t in self.tasks.values() if t.agent_id == agent.agent_id)
            if not agent.is_there or agent.offer_id or agent.refused_until_ms > self.timeline.now_ms:
                continue
            agent.offer_id = f"offer-{next(self._offer_ids)}"
            self.offers[agent.offer_id] = agent
            free_bytes, volumes, reserved = self.disks.offered(agent.agent_id, in_use)
            resources = Resources(4_000, agent.mem_bytes - used, free_bytes, ((31_000, 31_010),))
            window = (agent.wanted_from_ms, 60_000 if agent.wanted_from_ms else 0)
            offer = Offer(agent.offer_id, agent.agent_id, agent.agent_id, resources, role="stoker")
            offered.append(
                replace(
                    offer,
                    unavailable_from_ms=window[0],
                    unavailable_for_ms=window[1],
                    volumes=volumes,
                    reserved_disk=reserved,
                    executor_ids=tuple(task.task_id for task in self._tasks_of(agent)),
                )
            )
        if offered:
            self.send(ev.OffersReceived(tuple(offered)))

    def _send_updates(self) -> None:
        self.disks.check()
        for status in list(self.disks.unacknowledged.values()):
            if self.agents[status.agent_id].is_there and not self.timeline.chance(self.faults.message_loss):
                self.send(ev.OperationUpdated(status))
        for task in self.tasks.values():
            if task.unacknowledged and self.agents[task.agent_id].is_there:
                if not self.timeline.chance(self.faults.message_loss):
                    self.send(ev.TaskUpdated(task.unacknowledged[0]))
        for task_id in [
            t.task_id for t in self.tasks.values() if t.state in TERMINAL_STATES and not t.unacknowledged
        ]:
            del self.tasks[task_id]

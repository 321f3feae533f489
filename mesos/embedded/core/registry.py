"""Agents as the master sees them: they register, lose their connection, miss pings, come back, and are removed for good.

Theory of operation. An agent in `Master.agents` is connected or not. When its connection breaks, its offers are rescinded at
once, and the tasks of frameworks that do not checkpoint are lost; when it has missed its pings it is `unreachable` and all its
tasks are. Nobody pings here: when an agent stops answering, the moment at which the last ping would have gone unanswered is
computed, and forgotten if it answers again before that. What a registry of a real master keeps over a fail-over is `Registered`;
until an agent that it names has come back to the new master, that agent is `recovered`, and nothing is known about its tasks.

What is told, and in which order: updates of the tasks, rescinded offers, FAILURE.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from stoker.mesos.embedded.core import draining, operating, validation
from stoker.mesos.embedded.core.allocator import Grant
from stoker.mesos.embedded.core.codec import Message
from stoker.mesos.embedded.core.constraints import Facts
from stoker.mesos.embedded.core.messages import TERMINAL_STATES
from stoker.mesos.embedded.core.ports import AgentPort, AgentReport, DrainConfig, Forgotten, ReportedTask
from stoker.mesos.embedded.core.records import AgentRecord, ExecutorRecord, Framework, Task
from stoker.mesos.embedded.core.values import AgentSpec, fault_domain

if TYPE_CHECKING:
    from stoker.mesos.embedded.core.master import Master


@dataclass(frozen=True, slots=True)
class Absent:
    """An agent that is not registered: since when it is away, and what an operator has ordered for it."""

    spec: AgentSpec
    wall_ms: int = 0
    is_deactivated: bool = False
    draining: DrainConfig | None = None

    def time_message(self) -> Message:
        return {"nanoseconds": self.wall_ms * 1_000_000}


@dataclass(frozen=True, slots=True)
class Registered:
    """What a master's registry holds, in order of arrival: agents that may come back, unreachable ones, those gone for good."""

    admitted: dict[str, Absent] = field(default_factory=dict)
    unreachable: dict[str, Absent] = field(default_factory=dict)
    gone: dict[str, Absent] = field(default_factory=dict)


class _End(NamedTuple):
    """How the tasks of a removed agent end: `state` for frameworks that are PARTITION_AWARE, TASK_LOST for the others."""

    state: str
    reason: str
    text: str
    wall_ms: int | None = None


class Registry:
    """The agents' side of one master."""

    def __init__(self, master: Master, kept: Registered, now_ms: int) -> None:
        self._master = master
        self.recovered = dict(kept.admitted)
        self.unreachable = dict(kept.unreachable)
        self.gone = dict(kept.gone)
        self._by_pid: dict[str, str] = {}
        self._deadlines: list[tuple[int, str]] = []
        self._recovery_ms = now_ms + master.settings.agent_reregister_timeout_ms if self.recovered else None
        names = (*kept.admitted, *kept.unreachable, *kept.gone)
        self._count = 1 + max((_number(name, master.spec.master_id) for name in names), default=-1)

    def kept(self) -> Registered:
        """Return what the registry holds now."""
        admitted = dict(self.recovered)
        for record in self._master.agents.values():
            admitted[record.agent_id] = Absent(record.spec, 0, record.is_deactivated, record.draining)
        return Registered(admitted, dict(self.unreachable), dict(self.gone))

    # What agents do.

    def register(self, report: AgentReport, port: AgentPort, now_ms: int) -> None:
        """Take an agent that registers, for the first time or again."""
        master, spec = self._master, report.spec
        if spec.agent_id in self.gone:
            port.shut_down("Agent has been marked gone", now_ms)
            return
        if master.maintenance.is_down(spec):
            port.shut_down("Machine is `DOWN`", now_ms)
            return
        other = self._by_pid.get(spec.pid)
        if other is not None and other != spec.agent_id:
            self.remove(other, "a new agent registered at the same address", now_ms)
        known = master.agents.get(spec.agent_id)
        if known is None:
            self._admit(report, port, now_ms)
        else:
            self._return(known, report, port, now_ms)

    def disconnected(self, agent_id: str, now_ms: int) -> None:
        """The connection to an agent broke."""
        master = self._master
        record = master.agents.get(agent_id)
        if record is None or not record.is_connected:
            return
        record.is_connected = False
        self.set_active(record)
        master.rescind_offers(record, now_ms)
        self.silent(agent_id, now_ms)
        for framework_id in dict.fromkeys(owner for owner, _ in (*record.tasks, *record.executors)):
            framework = master.frameworks[framework_id]
            if not framework.info["checkpoint"]:
                text = f"Agent {record.spec.hostname} disconnected"
                end = _End("TASK_LOST", "REASON_AGENT_DISCONNECTED", text)
                self._end_tasks(record, framework, end, now_ms)
                self._forget_executors(record, framework, now_ms)

    def silent(self, agent_id: str, now_ms: int) -> None:
        """An agent stopped answering pings."""
        record = self._master.agents.get(agent_id)
        if record is None or record.unreachable_ms is not None:
            return
        settings = self._master.settings
        step_ms = settings.agent_ping_timeout_ms
        next_ms = record.since_ms - (record.since_ms - now_ms) // step_ms * step_ms
        record.unreachable_ms = next_ms + step_ms * settings.agent_ping_timeouts_max
        heapq.heappush(self._deadlines, (record.unreachable_ms, agent_id))

    def answering(self, agent_id: str) -> bool:
        """An agent answers pings again; False if it is not registered (any more)."""
        record = self._master.agents.get(agent_id)
        if record is None or not record.is_connected:
            return False
        record.unreachable_ms = None
        return True

    def unregister(self, agent_id: str, now_ms: int) -> None:
        """An agent says that it leaves."""
        self.remove(agent_id, "the agent unregistered", now_ms)

    # What the master decides.

    def remove(self, agent_id: str, why: str, now_ms: int) -> None:
        """Remove an agent; its tasks are lost, and it may register again."""
        record = self._master.agents[agent_id]
        text = f"Agent {record.spec.hostname} removed: {why}"
        self._remove(record, _End("TASK_LOST", "REASON_AGENT_REMOVED", text), now_ms)

    def mark_gone(self, agent_id: str, now_ms: int) -> bool:
        """Remove an agent for good, whatever its state; False if it is not known."""
        record = self._master.agents.get(agent_id)
        wall_ms = self._master.wall_ms(now_ms)
        if record is not None:
            self._keep(self.gone, agent_id, Absent(record.spec, wall_ms))
            if record.is_connected:
                record.port.shut_down("Agent has been marked gone", now_ms)
            text = "Agent has been marked gone"
            end = _End("TASK_GONE_BY_OPERATOR", "REASON_AGENT_REMOVED_BY_OPERATOR", text)
            self._remove(record, end, now_ms)
            return True
        absent = self.recovered.pop(agent_id, None) or self.unreachable.pop(agent_id, None)
        if absent is None:
            return agent_id in self.gone
        self._keep(self.gone, agent_id, Absent(absent.spec, wall_ms))
        self._forget_unreachable(agent_id)
        return True

    def order(self, agent_id: str, config: DrainConfig | None, *, is_deactivated: bool) -> bool:
        """Keep what an operator wants of an agent that is not registered; False if it is not known."""
        for where in (self.recovered, self.unreachable):
            if agent_id in where:
                absent = where[agent_id]
                where[agent_id] = Absent(absent.spec, absent.wall_ms, is_deactivated, config)
                return True
        return False

    def set_active(self, record: AgentRecord) -> None:
        """Offer an agent's resources, or do not, as its state says."""
        self._master.allocator.set_agent_active(record.agent_id, record.is_active)

    def tick(self, now_ms: int) -> None:
        """Give up agents that missed their pings, and those that never came to this master."""
        while self._deadlines and self._deadlines[0][0] <= now_ms:
            at_ms, agent_id = heapq.heappop(self._deadlines)
            record = self._master.agents.get(agent_id)
            if record is not None and record.unreachable_ms == at_ms:
                self._mark_unreachable(record, now_ms)
        if self._recovery_ms is not None and self._recovery_ms <= now_ms:
            self._recovery_ms = None
            lost, self.recovered = self.recovered, {}
            for agent_id, absent in lost.items():
                wall_ms = self._master.wall_ms(now_ms)
                away = Absent(absent.spec, wall_ms, absent.is_deactivated, absent.draining)
                self._keep(self.unreachable, agent_id, away)
                self._master.agent_failed(agent_id)

    def deadlines(self) -> list[int]:
        """Return when `tick` may have something to do."""
        due = [self._deadlines[0][0]] if self._deadlines else []
        return due if self._recovery_ms is None else [*due, self._recovery_ms]

    # Arrivals.

    def _admit(self, report: AgentReport, port: AgentPort, now_ms: int) -> None:
        """Take an agent that is not registered: new, unreachable until now, or unknown to this master."""
        master = self._master
        agent_id = report.spec.agent_id or self._next_id()
        text = "Unknown agent reregistered"
        was = self.recovered.pop(agent_id, None)
        if was is not None:
            text = ""
        elif agent_id in self.unreachable:
            was, text = self.unreachable.pop(agent_id), "Unreachable agent re-reregistered"
        if not report.spec.agent_id:
            port.named(agent_id)
        again_ms = now_ms if report.spec.agent_id else None
        record = AgentRecord(port.spec, port, now_ms, now_ms, again_ms)
        if was is not None:
            record.is_deactivated, record.draining = was.is_deactivated, was.draining
        self._count = max(self._count, 1 + _number(agent_id, master.spec.master_id))
        master.agents[agent_id] = record
        self._by_pid[record.spec.pid] = agent_id
        master.allocator.add_agent(agent_id, report.resources, _facts(record.spec))
        self.set_active(record)
        self._forget_unreachable(agent_id)
        for framework in self._frameworks_of(report):
            master.recover_framework(framework, now_ms)
        for framework_id, info in report.executors:
            if framework_id in master.frameworks:
                self._charge_executor(record, framework_id, info, now_ms)
        for task in report.tasks:
            if task.framework_id in master.frameworks:
                self._charge_task(record, task, text, now_ms)
        self._welcome(record, report, (), now_ms)
        if agent_id in master.agents:  # no drain has marked it gone
            master.allocate(now_ms, agent_id)

    def _return(self, record: AgentRecord, report: AgentReport, port: AgentPort, now_ms: int) -> None:
        """Take an agent that was away for less than its pings allow."""
        master = self._master
        master.allocator.update_agent(record.agent_id, report.resources, _facts(report.spec))
        record.spec, record.port = report.spec, port
        record.is_connected, record.unreachable_ms = True, None
        record.reregistered_ms = record.since_ms = now_ms
        self.set_active(record)
        there = {(task.framework_id, task.info["task_id"]["value"]) for task in report.tasks}
        forgotten = tuple(
            Forgotten(*key, master.frameworks[key[0]].lost_state) for key in record.tasks if key not in there
        )
        alive = {(owner, info["executor_id"]["value"]) for owner, info in report.executors}
        for key in [key for key in record.executors if key not in alive]:
            master.forget_executor(master.frameworks[key[0]], record.agent_id, key[1], now_ms)
        self._welcome(record, report, forgotten, now_ms)

    def _welcome(
        self, record: AgentRecord, report: AgentReport, forgotten: tuple[Forgotten, ...], now_ms: int
    ) -> None:
        """Tell an agent all that it has missed."""
        master, port = self._master, record.port
        operating.agent_registered(master, record.agent_id, report)
        port.registered(record.agent_id, forgotten, now_ms)
        kills, record.kills = record.kills, {}
        for (framework_id, task_id), policy in kills.items():
            port.kill_task(framework_id, task_id, policy, now_ms)
        there = (info["id"]["value"] for info in report.frameworks)
        for framework_id in dict.fromkeys((*there, *(task.framework_id for task in forgotten))):
            framework = master.frameworks.get(framework_id)
            if framework is None:
                port.shutdown_framework(framework_id, now_ms)
            else:
                port.update_framework(framework.info, now_ms)
        if record.draining is not None:
            port.drain(record.draining, now_ms)
            draining.settle(master, record, now_ms)

    def _frameworks_of(self, report: AgentReport) -> list[Message]:
        dead = {framework.framework_id for framework in self._master.completed}
        return [info for info in report.frameworks if info["id"]["value"] not in dead]

    def _charge_executor(self, record: AgentRecord, framework_id: str, info: Message, now_ms: int) -> None:
        framework = self._master.frameworks[framework_id]
        role = _role(info, framework)
        takes = validation.executor_needs(info, role)
        grant = Grant(framework_id, role, record.agent_id, takes)
        self._master.allocator.charge(grant)
        self._master.add_executor(framework, ExecutorRecord(info, record.agent_id, grant))

    def _charge_task(self, record: AgentRecord, reported: ReportedTask, text: str, now_ms: int) -> None:
        master = self._master
        framework = master.frameworks[reported.framework_id]
        role = _role(reported.info, framework)
        takes, _ = validation.task_needs(reported.info, role)
        grant = Grant(reported.framework_id, role, record.agent_id, takes)
        task = Task(reported.info, record.agent_id, reported.executor_id, grant, reported.forwarded)
        task.status_uuid, task.container_status = reported.uuid, reported.container_status
        master.add_task(framework, task)
        if reported.state in TERMINAL_STATES:
            task.released = True
            return
        master.allocator.charge(grant)
        if text:
            status = master.task_status(task, reported.state, "REASON_AGENT_REREGISTERED", text, now_ms)
            if task.container_status is not None:
                status["container_status"] = task.container_status
            master.send_update(framework, status)

    def _next_id(self) -> str:
        number, self._count = self._count, self._count + 1
        return f"{self._master.spec.master_id}-S{number}"

    # Departures.

    def _mark_unreachable(self, record: AgentRecord, now_ms: int) -> None:
        wall_ms = self._master.wall_ms(now_ms)
        absent = Absent(record.spec, wall_ms, record.is_deactivated, record.draining)
        self._keep(self.unreachable, record.agent_id, absent)
        text = "health check timed out"
        self._remove(record, _End("TASK_UNREACHABLE", "REASON_AGENT_REMOVED", text, wall_ms), now_ms)

    def _remove(self, record: AgentRecord, end: _End, now_ms: int) -> None:
        master = self._master
        for framework_id in dict.fromkeys(owner for owner, _ in (*record.tasks, *record.executors)):
            framework = master.frameworks[framework_id]
            self._end_tasks(record, framework, end, now_ms)
            self._forget_executors(record, framework, now_ms)
        master.rescind_offers(record, now_ms)
        master.maintenance.agent_removed(record)
        self._strike(record)
        master.agent_failed(record.agent_id)

    def _strike(self, record: AgentRecord) -> None:
        """Take an agent off the books, of which nothing is in use or offered."""
        assert not record.tasks and not record.executors and not record.offers
        del self._master.agents[record.agent_id]
        if self._by_pid.get(record.spec.pid) == record.agent_id:
            del self._by_pid[record.spec.pid]
        self._master.allocator.remove_agent(record.agent_id)
        operating.agent_removed(self._master, record.agent_id)

    def _end_tasks(self, record: AgentRecord, framework: Framework, end: _End, now_ms: int) -> None:
        """End the tasks of a framework on an agent; those that have ended already are forgotten in silence."""
        master, framework_id = self._master, framework.framework_id
        for task in [task for (owner, _), task in record.tasks.items() if owner == framework_id]:
            was_alive = not task.released
            master.forget_task(framework, task, now_ms)
            if was_alive:
                is_aware = "PARTITION_AWARE" in framework.capabilities
                state = end.state if is_aware else "TASK_LOST"
                status = master.task_status(task, state, end.reason, end.text, now_ms)
                if end.wall_ms is not None:
                    status["unreachable_time"] = {"nanoseconds": end.wall_ms * 1_000_000}
                task.state, task.status_uuid = state, None
                task.statuses.append(status)
                master.send_update(framework, status)
            if was_alive and end.wall_ms is not None:
                self._keep_unreachable(framework, task)
            else:
                framework.completed_tasks.append(task)

    def _forget_executors(self, record: AgentRecord, framework: Framework, now_ms: int) -> None:
        for name in record.executors_of(framework.framework_id):
            self._master.forget_executor(framework, record.agent_id, name, now_ms)

    def _keep(self, where: dict[str, Absent], agent_id: str, absent: Absent) -> None:
        where[agent_id] = absent
        if len(where) > self._master.settings.removed_agents_max:
            del where[next(iter(where))]

    def _keep_unreachable(self, framework: Framework, task: Task) -> None:
        framework.unreachable_tasks[task.task_id] = task
        if len(framework.unreachable_tasks) > self._master.settings.unreachable_tasks_max:
            del framework.unreachable_tasks[next(iter(framework.unreachable_tasks))]

    def _forget_unreachable(self, agent_id: str) -> None:
        for framework in self._master.frameworks.values():
            tasks = framework.unreachable_tasks
            if tasks:
                for name in [name for name, task in tasks.items() if task.agent_id == agent_id]:
                    del tasks[name]


def _role(info: Message, framework: Framework) -> str:
    """Return the role that a task's or executor's resources were granted to."""
    for resource in (*info.get("resources", ()), *info.get("executor", {}).get("resources", ())):
        role = resource.get("allocation_info", {}).get("role")
        if role:
            return str(role)
    return framework.roles[0] if framework.roles else "*"


def _facts(spec: AgentSpec) -> Facts:
    return Facts(spec.hostname, spec.attributes, *fault_domain(spec.domain))


def _number(agent_id: str, master_id: str) -> int:
    """Return N of an id <master>-S<N> that this master made, else -1."""
    head, _, tail = agent_id.rpartition("-S")
    return int(tail) if head == master_id and tail.isdigit() else -1

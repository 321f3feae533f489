"""What an agent does with executors: their processes, what they are told, what is reported of their tasks.

An executor is REGISTERING (its process starts; tasks wait in `queued`), RUNNING (it subscribed), TERMINATING (told to shut down or
being killed) or TERMINATED (its process is gone, updates of its tasks are not yet acknowledged). It is the end of the *process*
that ends it, never the end of its stream: an executor that is away is not noticed, what is said to it meanwhile is lost. What it
reports is taken into `updates` first, then it is told ACKNOWLEDGED, whatever the scheduler does.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from enum import Enum

from stoker.mesos.embedded.core.codec import Message
from stoker.mesos.embedded.core.estate import Estate, Links
from stoker.mesos.embedded.core.executors import (
    Executor,
    FrameworkOnAgent,
    Phase,
    container_status,
    environment_of,
    sandbox_of,
    subscribed_message,
)
from stoker.mesos.embedded.core.messages import TERMINAL_STATES
from stoker.mesos.embedded.core.ports import DrainConfig, MasterPort, ReportedOperation
from stoker.mesos.embedded.core.resources import Resources
from stoker.mesos.embedded.core.timers import Timers
from stoker.mesos.embedded.core.updates import Taken, Updates
from stoker.mesos.embedded.core.values import (
    AgentSpec,
    Ids,
    KillProcess,
    Outbox,
    Settings,
    StartProcess,
)

NO_STATUS = -1  # in FAILURE: there was no process to wait for


@dataclass(slots=True)
class Site:
    """What the agents of one cluster share: who owns a container or a stream, when somebody has something to do."""

    settings: Settings
    ids: Ids
    out: Outbox
    wall_offset_ms: int
    timers: Timers = field(default_factory=Timers)
    containers: dict[str, int] = field(default_factory=dict)
    streams: dict[int, int] = field(default_factory=dict)
    changed: set[int] = field(default_factory=set)  # agents whose checkpoint may be another one now


class Life(Enum):
    RECOVERING = "recovering"
    UP = "up"
    FROZEN = "frozen"
    ENDING = "ending"
    DOWN = "down"


class Containers:
    """The executors of one agent, and the updates of their tasks; what an agent is besides is `Agent`'s affair."""

    def __init__(self, spec: AgentSpec, master: MasterPort | None, site: Site) -> None:
        self.spec = spec
        self.life = Life.DOWN
        self.is_registered = False
        self.frameworks: dict[str, FrameworkOnAgent] = {}
        self._master = master
        self._site = site
        self._settings = site.settings
        self._out = site.out
        self._now_ms = 0
        self._containers: dict[str, Executor] = {}
        self._draining: DrainConfig | None = None
        self._updates = self._new_updates()
        self._estate = self._new_estate()

    def has_container(self, container_id: str) -> bool:
        return container_id in self._containers

    @property
    def resources(self) -> Resources:
        """What it has, with all that was reserved and created on it."""
        return self._estate.resources

    @property
    def executors(self) -> list[Executor]:
        """Executors that have a process."""
        return list(self._containers.values())

    def _new_updates(self) -> Updates:
        retry_ms, retry_ms_max = self._settings.update_retry_ms, self._settings.update_retry_ms_max
        return Updates(self._forward, self._arm, retry_ms=retry_ms, retry_ms_max=retry_ms_max)

    def _new_estate(self) -> Estate:
        return Estate(self.spec, self._site, self._forward_operation, self._arm)

    def _arm(self, at_ms: int) -> None:
        self._site.timers.arm(self.spec.number, at_ms)

    # Executors.

    def _find(self, call: Message) -> tuple[FrameworkOnAgent | None, Executor | None]:
        framework = self.frameworks.get(call["framework_id"]["value"])
        executor = framework.executors.get(call["executor_id"]["value"]) if framework else None
        return framework, executor

    def _executors_of(self, framework_id: str) -> list[Executor]:
        framework = self.frameworks.get(framework_id)
        return list(framework.executors.values()) if framework else []

    def _start_executor(
        self,
        framework: FrameworkOnAgent,
        info: Message,
        links: Links,
        now_ms: int,
        *,
        is_command: bool = False,
    ) -> Executor:
        framework_id, executor_id = framework.info["id"]["value"], info["executor_id"]["value"]
        container_id = str(self._site.ids.next())
        sandbox = sandbox_of(self.spec, framework_id, executor_id, container_id)
        executor = Executor(framework_id, info, container_id, sandbox, is_command=is_command)
        if is_command:
            executor.end = ("TASK_FAILED", "REASON_COMMAND_EXECUTOR_FAILED", "Executor terminated")
        executor.registration_ms = now_ms + self._settings.executor_registration_timeout_ms
        self._arm(executor.registration_ms)
        framework.executors[executor_id] = self._containers[container_id] = executor
        self._site.containers[container_id] = self.spec.number
        environment = environment_of(framework, executor, self.spec, self._settings)
        self._out.items.append(StartProcess(container_id, sandbox, info["command"], environment, links))
        return executor

    def _subscribed(self, framework: FrameworkOnAgent, executor: Executor) -> Message:
        return subscribed_message(framework, executor, self.spec)

    def _take_tasks(
        self, framework: FrameworkOnAgent, executor: Executor, tasks: list[Message], now_ms: int
    ) -> None:
        """Queue tasks, or deliver them, or drop them with their executor that ends."""
        if executor.phase in (Phase.REGISTERING, Phase.RUNNING):
            executor.queued |= {task["task_id"]["value"]: task for task in tasks}
            if executor.phase is Phase.RUNNING:
                self._deliver_queued(executor)
            return
        text = "Executor is terminating" if executor.phase is Phase.TERMINATING else "Executor terminated"
        for task in tasks:
            name, state = task["task_id"]["value"], framework.lost("TASK_DROPPED")
            self._report(executor, name, state, "REASON_EXECUTOR_TERMINATED", text)
        if executor.phase is Phase.TERMINATED:  # the master has counted it anew
            self._tell_exited(executor, NO_STATUS, now_ms)

    def _deliver_queued(self, executor: Executor) -> None:
        """Send what waits: each task by itself, and what came as a group as a group."""
        while executor.queued:
            first = next(iter(executor.queued))
            names = executor.groups.get(first)
            tasks = [executor.queued.pop(name) for name in names or (first,)]
            executor.ever_sent = True
            for task in tasks:
                task_id = task["task_id"]["value"]
                executor.launched[task_id], executor.states[task_id] = task, "TASK_STAGING"
                executor.groups.pop(task_id, None)
            if names is None:
                self._out.send(executor.stream, {"type": "LAUNCH", "launch": {"task": tasks[0]}})
            else:
                group = {"task_group": {"tasks": tasks}}
                self._out.send(executor.stream, {"type": "LAUNCH_GROUP", "launch_group": group})

    def _drop_undelivered(self, executor: Executor, known: list[Message]) -> None:
        """Give up tasks that were sent to the executor and that it, subscribing again, does not know of."""
        names = {task["task_id"]["value"] for task in known}
        state = self.frameworks[executor.framework_id].lost("TASK_DROPPED")
        for task_id in list(executor.launched):
            if executor.states[task_id] == "TASK_STAGING" and task_id not in names:
                text = "Task launched during agent restart"
                self._report(executor, task_id, state, "REASON_AGENT_RESTARTED", text)

    def _shut_down(self, executor: Executor, now_ms: int) -> None:
        if executor.phase in (Phase.TERMINATING, Phase.TERMINATED):
            return
        executor.phase, executor.registration_ms = Phase.TERMINATING, None
        executor.kill_ms = now_ms + executor.grace_ms(self._settings)
        self._arm(executor.kill_ms)
        self._out.send(executor.stream, {"type": "SHUTDOWN"})

    def _kill(self, executor: Executor) -> None:
        executor.phase, executor.registration_ms, executor.kill_ms = Phase.TERMINATING, None, None
        self._out.items.append(KillProcess(executor.container_id))

    def _drop_stream(self, executor: Executor, *, abort: bool = False) -> None:
        if executor.stream is not None:
            self._site.streams.pop(executor.stream, None)
            if abort:
                self._out.abort(executor.stream)
            else:
                self._out.close(executor.stream)
        executor.stream = None

    def _tell_exited(self, executor: Executor, status: int, now_ms: int) -> None:
        if self.is_registered and self._master is not None and not executor.is_command:
            name = executor.executor_id
            self._master.executor_exited(self.spec.agent_id, executor.framework_id, name, status, now_ms)

    def _forget_ended(self, framework_id: str) -> None:
        """Forget executors that ended and have nothing left to say, and then their framework."""
        framework = self.frameworks.get(framework_id)
        if framework is None:
            return
        for executor_id, executor in list(framework.executors.items()):
            if executor.phase is Phase.TERMINATED and (framework.terminating or not executor.launched):
                del framework.executors[executor_id]
        if not framework.executors:
            del self.frameworks[framework_id]

    # Updates.

    def _take_update(self, executor: Executor, status: Message) -> Taken:
        task_id = status["task_id"]["value"]
        status["agent_id"] = {"value": self.spec.agent_id}
        status.setdefault("timestamp", self._wall_seconds())
        if task_id in executor.launched and not (executor.is_default and "container_status" in status):
            status["container_status"] = container_status(executor, self.spec)
        if self._draining is not None:
            _mark_drained(status, self._draining, self.frameworks[executor.framework_id])
        taken = self._updates.add(executor.framework_id, status, self._now_ms)
        if task_id in executor.launched and taken is not Taken.FULL:
            if executor.states[task_id] not in TERMINAL_STATES:
                executor.states[task_id] = status["state"]
            body = {"task_id": status["task_id"], "uuid": status["uuid"]}
            self._out.send(executor.stream, {"type": "ACKNOWLEDGED", "acknowledged": body})
        return taken

    def _report(self, executor: Executor, task_id: str, state: str, reason: str, text: str) -> None:
        """Report the end of a task in the executor's place."""
        if task_id in executor.launched:
            executor.states[task_id] = state
        status = self._status(task_id, state, reason, text)
        status["executor_id"] = {"value": executor.executor_id}
        self._updates.add(executor.framework_id, status, self._now_ms)

    def _status(self, task_id: str, state: str, reason: str, text: str) -> Message:
        return {
            "task_id": {"value": task_id},
            "state": state,
            "message": text,
            "source": "SOURCE_AGENT",
            "reason": reason,
            "agent_id": {"value": self.spec.agent_id},
            "timestamp": self._wall_seconds(),
            "uuid": base64.b64encode(self._site.ids.next().bytes).decode("ascii"),
        }

    def _forward(self, framework_id: str, status: Message, latest: str) -> None:
        if self.is_registered and self._master is not None:
            self._master.status_update(self.spec.agent_id, framework_id, status, latest, self._now_ms)

    def _forward_operation(self, operation: ReportedOperation) -> None:
        if self.is_registered and self._master is not None and self.life is not Life.FROZEN:
            self._master.operation_status(self.spec.agent_id, operation)

    def _wall_seconds(self) -> float:
        return (self._now_ms + self._site.wall_offset_ms) / 1000


def _mark_drained(status: Message, config: DrainConfig, framework: FrameworkOnAgent) -> None:
    """Say in an update that its task was killed by the drain."""
    if status["state"] not in ("TASK_KILLING", "TASK_KILLED"):
        return
    status["reason"] = "REASON_AGENT_DRAINING"
    if status["state"] == "TASK_KILLED" and config.mark_gone:
        gone = framework.lost("TASK_GONE_BY_OPERATOR")
        status["state"] = gone if gone != "TASK_LOST" else "TASK_KILLED"

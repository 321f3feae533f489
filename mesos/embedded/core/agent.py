"""An agent: its executors from launch to the end of their process, and the executor API behind them.

Theory of operation. An executor is REGISTERING (its process starts; tasks wait in `queued`), RUNNING (it subscribed), TERMINATING
(told to shut down or being killed) or TERMINATED (its process is gone, updates of its tasks are not yet acknowledged). It is the
end of the *process* that ends it, never the end of its stream: an executor that is away is not noticed, what is said to it
meanwhile is lost. What it reports is taken into `updates` first, then it is told ACKNOWLEDGED, whatever the scheduler does.

Methods take the time and put what is to be done into the outbox; processes are started and killed by the shell.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from stoker.mesos.embedded.core.calls import Answer
from stoker.mesos.embedded.core.codec import Message
from stoker.mesos.embedded.core.messages import TERMINAL_STATES
from stoker.mesos.embedded.core.updates import Taken, Updates
from stoker.mesos.embedded.core.validation import capabilities
from stoker.mesos.embedded.core.values import (
    AgentSpec,
    Ids,
    KillProcess,
    Outbox,
    Settings,
    StartProcess,
    format_duration,
)

ACCEPTED = Answer(202)
NO_STATUS = -1  # in FAILURE: there was no process to wait for


class MasterPort(Protocol):
    """What an agent says to the master."""

    def status_update(
        self, agent_id: str, framework_id: str, status: Message, latest: str, now_ms: int
    ) -> None: ...
    def executor_exited(
        self, agent_id: str, framework_id: str, executor_id: str, status: int, now_ms: int
    ) -> None: ...
    def executor_message(self, agent_id: str, framework_id: str, executor_id: str, data: str) -> None: ...


class Phase(Enum):
    REGISTERING = "registering"
    RUNNING = "running"
    TERMINATING = "terminating"
    TERMINATED = "terminated"


@dataclass(slots=True)
class Executor:
    """One executor; `queued` and `launched` hold TaskInfos, `states` the newest state of each launched task."""

    framework_id: str
    info: Message
    container_id: str
    sandbox: str
    phase: Phase = Phase.REGISTERING
    pid: int | None = None
    stream: int | None = None
    queued: dict[str, Message] = field(default_factory=dict)
    launched: dict[str, Message] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)
    registration_ms: int | None = None
    kill_ms: int | None = None
    heartbeat_ms: int | None = None
    ever_sent: bool = False
    end: tuple[str, str] = ("REASON_EXECUTOR_TERMINATED", "Executor terminated")

    @property
    def executor_id(self) -> str:
        return str(self.info["executor_id"]["value"])


@dataclass(slots=True)
class _Framework:
    info: Message
    executors: dict[str, Executor] = field(default_factory=dict)
    terminating: bool = False


class Agent:
    """The state of one agent; see the module's text."""

    def __init__(
        self,
        spec: AgentSpec,
        master: MasterPort,
        settings: Settings,
        ids: Ids,
        outbox: Outbox,
        wall_offset_ms: int,
    ) -> None:
        self.spec = spec
        self.frameworks: dict[str, _Framework] = {}
        self._master = master
        self._settings = settings
        self._ids = ids
        self._out = outbox
        self._wall_offset_ms = wall_offset_ms
        self._now_ms = 0
        self._containers: dict[str, Executor] = {}
        self._updates = Updates(
            self._forward, retry_ms=settings.update_retry_ms, retry_ms_max=settings.update_retry_ms_max
        )

    # What the master says.

    def run_task(self, framework: Message, task: Message, now_ms: int) -> None:
        """Deliver a task to its executor, which is started if it is not there."""
        self._now_ms = now_ms
        known = self.frameworks.setdefault(framework["id"]["value"], _Framework(framework))
        executor = known.executors.get(task["executor"]["executor_id"]["value"])
        if executor is None:
            executor = self._start_executor(known, task["executor"], now_ms)
        task_id = task["task_id"]["value"]
        if executor.phase is Phase.REGISTERING:
            executor.queued[task_id] = task
        elif executor.phase is Phase.RUNNING:
            self._deliver(executor, task)
        else:
            state = "TASK_DROPPED" if "PARTITION_AWARE" in capabilities(known.info) else "TASK_LOST"
            text = "Executor is terminating" if executor.phase is Phase.TERMINATING else "Executor terminated"
            self._report(executor, task_id, state, "REASON_EXECUTOR_TERMINATED", text)
            if executor.phase is Phase.TERMINATED:  # the master has counted it anew
                self._master.executor_exited(
                    self.spec.agent_id, executor.framework_id, executor.executor_id, NO_STATUS, now_ms
                )

    def kill_task(self, framework_id: str, task_id: str, policy: Message | None, now_ms: int) -> None:
        """Pass a KILL on; a task that its executor has not got yet is killed here."""
        self._now_ms = now_ms
        for executor in self._executors_of(framework_id):
            if task_id in executor.queued:
                del executor.queued[task_id]
                text = "Killed before delivery to the executor"
                self._report(executor, task_id, "TASK_KILLED", "REASON_TASK_KILLED_DURING_LAUNCH", text)
                return
            if task_id in executor.launched and executor.phase is Phase.RUNNING:
                kill: Message = {"task_id": {"value": task_id}}
                if policy is not None:
                    kill["kill_policy"] = policy
                self._out.send(executor.stream, {"type": "KILL", "kill": kill})
                return

    def acknowledge(self, framework_id: str, task_id: str, uuid: str, now_ms: int) -> None:
        """The scheduler acknowledged an update."""
        self._now_ms = now_ms
        if self._updates.acknowledge(framework_id, task_id, uuid, now_ms):
            for executor in self._executors_of(framework_id):
                executor.launched.pop(task_id, None)
                executor.states.pop(task_id, None)
            self._forget_ended(framework_id)

    def shutdown_executor(self, framework_id: str, executor_id: str, now_ms: int) -> None:
        """Tell an executor to end, and kill it when its grace is over."""
        framework = self.frameworks.get(framework_id)
        executor = framework.executors.get(executor_id) if framework else None
        if executor is not None:
            self._shut_down(executor, now_ms)

    def shutdown_framework(self, framework_id: str, now_ms: int) -> None:
        """Shut down all executors of a framework that is removed; nothing of it is reported any more."""
        framework = self.frameworks.get(framework_id)
        if framework is None:
            return
        framework.terminating = True
        self._updates.forget(framework_id)
        for executor in list(framework.executors.values()):
            self._shut_down(executor, now_ms)
        self._forget_ended(framework_id)

    def shutdown_all(self, now_ms: int) -> None:
        """Shut down every executor: the agent is going away."""
        for executor in list(self._containers.values()):
            self._shut_down(executor, now_ms)

    def update_framework(self, framework: Message, now_ms: int) -> None:
        """The framework subscribed again: what it has not acknowledged is sent at once."""
        self._now_ms = now_ms
        known = self.frameworks.get(framework["id"]["value"])
        if known is not None:
            known.info = framework
        self._updates.resend(framework["id"]["value"], now_ms)

    def send_message(self, framework_id: str, executor_id: str, data: str) -> None:
        """Pass a MESSAGE on; lost if the executor is not there."""
        framework = self.frameworks.get(framework_id)
        executor = framework.executors.get(executor_id) if framework else None
        if executor is not None and executor.phase is Phase.RUNNING:
            self._out.send(executor.stream, {"type": "MESSAGE", "message": {"data": data}})

    # What executors say.

    def is_known(self, call: Message) -> bool:
        """Whether the call names an executor of this agent."""
        return self._find(call)[1] is not None

    def check(self, call: Message) -> Answer | None:
        """Return the refusal of a call that is not this agent's, or comes before SUBSCRIBE."""
        framework, executor = self._find(call)
        if framework is None:
            return Answer(400, "Framework cannot be found")
        if executor is None:
            return Answer(400, "Executor cannot be found")
        if call["type"] != "SUBSCRIBE" and executor.phase is Phase.REGISTERING:
            return Answer(403, "Executor is not subscribed")
        return None

    def subscribe(self, call: Message, stream: int, now_ms: int) -> None:
        """Take an executor's SUBSCRIBE that passed `check`; its stream is open."""
        self._now_ms = now_ms
        framework, executor = self._find(call)
        assert framework is not None and executor is not None
        if framework.terminating or executor.phase in (Phase.TERMINATING, Phase.TERMINATED):
            self._out.send(stream, {"type": "SHUTDOWN"})
            self._out.close(stream)
            return
        self._out.close(executor.stream)
        executor.stream, executor.phase, executor.registration_ms = stream, Phase.RUNNING, None
        executor.heartbeat_ms = now_ms + self._settings.executor_heartbeat_interval_ms
        body = call["subscribe"]
        for update in body.get("unacknowledged_updates", ()):
            self._take_update(executor, dict(update["status"]))
        self._drop_undelivered(executor, body.get("unacknowledged_tasks", ()))
        if not executor.queued and not executor.ever_sent:
            self._shut_down(executor, now_ms)  # all its tasks were killed before it came
            return
        self._out.send(stream, {"type": "SUBSCRIBED", "subscribed": self._subscribed(framework, executor)})
        queued, executor.queued = executor.queued, {}
        for task in queued.values():
            self._deliver(executor, task)

    def call(self, call: Message, now_ms: int) -> Answer:
        """Take any other call that passed `check`."""
        self._now_ms = now_ms
        framework, executor = self._find(call)
        assert framework is not None and executor is not None
        if framework.terminating:
            return ACCEPTED
        if call["type"] == "MESSAGE":
            self._master.executor_message(
                self.spec.agent_id, executor.framework_id, executor.executor_id, call["message"]["data"]
            )
        elif call["type"] == "UPDATE" and self._take_update(executor, call["update"]["status"]) is Taken.FULL:
            return Answer(503, "Too many updates of this task wait for the scheduler's acknowledgement")
        return ACCEPTED

    def stream_closed(self, stream: int) -> None:
        """An executor's connection broke; nothing else follows from it."""
        for executor in self._containers.values():
            if executor.stream == stream:
                executor.stream = executor.heartbeat_ms = None

    # What the process runner says.

    def process_started(self, container_id: str, pid: int) -> None:
        self._containers[container_id].pid = pid

    def process_failed(self, container_id: str, text: str, now_ms: int) -> None:
        """The process could not be started."""
        executor = self._containers[container_id]
        executor.end = ("REASON_CONTAINER_LAUNCH_FAILED", f"Failed to launch container: {text}")
        self.process_exited(container_id, NO_STATUS, now_ms)

    def process_exited(self, container_id: str, status: int, now_ms: int) -> None:
        """The process is gone; `status` is the raw wait status."""
        self._now_ms = now_ms
        executor = self._containers.pop(container_id)
        framework = self.frameworks[executor.framework_id]
        self._out.close(executor.stream)
        executor.stream = executor.registration_ms = executor.kill_ms = executor.heartbeat_ms = None
        executor.phase = Phase.TERMINATED
        if not framework.terminating:
            self._master.executor_exited(
                self.spec.agent_id, executor.framework_id, executor.executor_id, status, now_ms
            )
            alive = [name for name in executor.launched if executor.states[name] not in TERMINAL_STATES]
            executor.launched |= executor.queued
            for task_id in (*alive, *executor.queued):
                self._report(executor, task_id, "TASK_FAILED", *executor.end)
            executor.queued.clear()
        self._forget_ended(executor.framework_id)

    # Time.

    def tick(self, now_ms: int) -> None:
        """Do what is due: updates again, executors that did not register, graces that are over, heartbeats."""
        self._now_ms = now_ms
        self._updates.tick(now_ms)
        for executor in list(self._containers.values()):
            if executor.registration_ms is not None and executor.registration_ms <= now_ms:
                timeout = format_duration(self._settings.executor_registration_timeout_ms)
                executor.end = (
                    "REASON_EXECUTOR_REGISTRATION_TIMEOUT",
                    f"Executor did not register within {timeout}",
                )
                self._kill(executor)
            elif executor.kill_ms is not None and executor.kill_ms <= now_ms:
                self._kill(executor)
            elif executor.heartbeat_ms is not None and executor.heartbeat_ms <= now_ms:
                executor.heartbeat_ms = now_ms + self._settings.executor_heartbeat_interval_ms
                self._out.send(executor.stream, {"type": "HEARTBEAT"})

    def next_deadline_ms(self) -> int | None:
        """Return when `tick` has something to do."""
        due = [self._updates.next_deadline_ms()]
        for executor in self._containers.values():
            due += [executor.registration_ms, executor.kill_ms, executor.heartbeat_ms]
        return min((at for at in due if at is not None), default=None)

    def has_container(self, container_id: str) -> bool:
        return container_id in self._containers

    @property
    def executors(self) -> list[Executor]:
        """Executors that have a process."""
        return list(self._containers.values())

    # Executors.

    def _find(self, call: Message) -> tuple[_Framework | None, Executor | None]:
        framework = self.frameworks.get(call["framework_id"]["value"])
        executor = framework.executors.get(call["executor_id"]["value"]) if framework else None
        return framework, executor

    def _executors_of(self, framework_id: str) -> list[Executor]:
        framework = self.frameworks.get(framework_id)
        return list(framework.executors.values()) if framework else []

    def _start_executor(self, framework: _Framework, info: Message, now_ms: int) -> Executor:
        framework_id, executor_id = framework.info["id"]["value"], info["executor_id"]["value"]
        container_id = str(self._ids.next())
        sandbox = "/".join(
            (
                self.spec.work_dir,
                f"slaves/{self.spec.agent_id}/frameworks/{framework_id}",
                f"executors/{executor_id}/runs/{container_id}",
            )
        )
        executor = Executor(framework_id, info, container_id, sandbox)
        executor.registration_ms = now_ms + self._settings.executor_registration_timeout_ms
        framework.executors[executor_id] = self._containers[container_id] = executor
        environment = self._environment(framework, executor)
        self._out.items.append(StartProcess(container_id, sandbox, info["command"], environment))
        return executor

    def _environment(self, framework: _Framework, executor: Executor) -> dict[str, str]:
        given = executor.info["command"].get("environment", {}).get("variables", ())
        own = {
            "LIBPROCESS_IP": self.spec.ip,
            "LIBPROCESS_PORT": "0",
            "MESOS_AGENT_ENDPOINT": self.spec.endpoint,
            "MESOS_CHECKPOINT": "1" if framework.info["checkpoint"] else "0",
            "MESOS_DIRECTORY": executor.sandbox,
            "MESOS_EXECUTOR_ID": executor.executor_id,
            "MESOS_EXECUTOR_SHUTDOWN_GRACE_PERIOD": format_duration(self._grace_ms(executor)),
            "MESOS_FRAMEWORK_ID": executor.framework_id,
            "MESOS_HTTP_COMMAND_EXECUTOR": "0",
            "MESOS_SANDBOX": executor.sandbox,
            "MESOS_SLAVE_ID": self.spec.agent_id,
            "MESOS_SLAVE_PID": self.spec.pid,
        }
        if framework.info["checkpoint"]:
            own["MESOS_RECOVERY_TIMEOUT"] = format_duration(self._settings.recovery_timeout_ms)
            own["MESOS_SUBSCRIPTION_BACKOFF_MAX"] = format_duration(
                self._settings.subscription_backoff_ms_max
            )
        variables = {item["name"]: item.get("value", "") for item in given}
        return {"PATH": self._settings.path, "PWD": executor.sandbox, **variables, **own}

    def _subscribed(self, framework: _Framework, executor: Executor) -> Message:
        spec = self.spec
        agent: Message = {
            "hostname": spec.hostname,
            "port": spec.port,
            "resources": spec.resources.to_messages(),
        }
        agent["attributes"] = list(spec.attributes)
        agent["id"] = {"value": spec.agent_id}
        return {
            "executor_info": executor.info,
            "framework_info": framework.info,
            "agent_info": agent,
            "container_id": {"value": executor.container_id},
        }

    def _deliver(self, executor: Executor, task: Message) -> None:
        executor.ever_sent = True
        executor.launched[task["task_id"]["value"]] = task
        executor.states[task["task_id"]["value"]] = "TASK_STAGING"
        self._out.send(executor.stream, {"type": "LAUNCH", "launch": {"task": task}})

    def _drop_undelivered(self, executor: Executor, known: list[Message]) -> None:
        """Give up tasks that were sent to the executor and that it, subscribing again, does not know of."""
        names = {task["task_id"]["value"] for task in known}
        framework = self.frameworks[executor.framework_id]
        state = "TASK_DROPPED" if "PARTITION_AWARE" in capabilities(framework.info) else "TASK_LOST"
        for task_id in list(executor.launched):
            if executor.states[task_id] == "TASK_STAGING" and task_id not in names:
                text = "Task dropped by the agent: the executor subscribed again without it"
                self._report(executor, task_id, state, "REASON_AGENT_RESTARTED", text)

    def _shut_down(self, executor: Executor, now_ms: int) -> None:
        if executor.phase in (Phase.TERMINATING, Phase.TERMINATED):
            return
        executor.phase, executor.registration_ms = Phase.TERMINATING, None
        executor.kill_ms = now_ms + self._grace_ms(executor)
        self._out.send(executor.stream, {"type": "SHUTDOWN"})

    def _kill(self, executor: Executor) -> None:
        executor.phase, executor.registration_ms, executor.kill_ms = Phase.TERMINATING, None, None
        self._out.items.append(KillProcess(executor.container_id))

    def _grace_ms(self, executor: Executor) -> int:
        period = executor.info.get("shutdown_grace_period")
        return (
            self._settings.executor_shutdown_grace_period_ms
            if period is None
            else period["nanoseconds"] // 1_000_000
        )

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
        status["container_status"] = {
            "container_id": {"value": executor.container_id},
            "network_infos": [{"ip_addresses": [{"protocol": "IPv4", "ip_address": self.spec.ip}]}],
            "executor_pid": executor.pid,
        }
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
        status: Message = {
            "task_id": {"value": task_id},
            "state": state,
            "message": text,
            "source": "SOURCE_AGENT",
            "reason": reason,
            "agent_id": {"value": self.spec.agent_id},
            "executor_id": {"value": executor.executor_id},
            "timestamp": self._wall_seconds(),
            "uuid": base64.b64encode(self._ids.next().bytes).decode("ascii"),
        }
        self._updates.add(executor.framework_id, status, self._now_ms)

    def _forward(self, framework_id: str, status: Message, latest: str) -> None:
        self._master.status_update(self.spec.agent_id, framework_id, status, latest, self._now_ms)

    def _wall_seconds(self) -> float:
        return (self._now_ms + self._wall_offset_ms) / 1000

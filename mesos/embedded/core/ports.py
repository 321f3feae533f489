"""What a master and an agent say to each other, as each sees the other, and what an agent tells of itself when it comes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from stoker.mesos.embedded.core.codec import Message
from stoker.mesos.embedded.core.operations import Conversion
from stoker.mesos.embedded.core.resources import Resources
from stoker.mesos.embedded.core.values import AgentSpec


class Forgotten(NamedTuple):
    """A task that the master knows and an agent that comes back does not; `state` is what it has come to."""

    framework_id: str
    task_id: str
    state: str


class DrainConfig(NamedTuple):
    """How an agent is drained: `grace_ms_max` bounds the grace of its tasks (None: each has its own)."""

    grace_ms_max: int | None
    mark_gone: bool


class ReportedTask(NamedTuple):
    """A task as its agent knows it: the newest state, and the one last forwarded, with the uuid of its update."""

    framework_id: str
    executor_id: str
    info: Message
    state: str
    forwarded: str
    uuid: str | None
    container_status: Message | None


class ReportedExecutor(NamedTuple):
    """An executor whose process an agent has."""

    framework_id: str
    info: Message


class ReportedOperation(NamedTuple):
    """An operation that its agent has done and its framework has not acknowledged; `uuid` is that of the status."""

    framework_id: str
    operation_id: str
    state: str
    uuid: str


@dataclass(frozen=True, slots=True)
class AgentReport:
    """What an agent says when it registers; `spec.agent_id` is empty if it never had an id.

    `resources` are those of `spec` with what was reserved and created on them.
    """

    spec: AgentSpec
    resources: Resources
    frameworks: tuple[Message, ...] = ()
    executors: tuple[ReportedExecutor, ...] = ()
    tasks: tuple[ReportedTask, ...] = field(default=())
    operations: tuple[ReportedOperation, ...] = ()


class AgentPort(Protocol):
    """What the master says to an agent."""

    spec: AgentSpec

    @property
    def resources(self) -> Resources: ...
    def run_task(self, framework: Message, task: Message, now_ms: int) -> None: ...
    def run_group(self, framework: Message, executor: Message, tasks: list[Message], now_ms: int) -> None: ...
    def kill_task(self, framework_id: str, task_id: str, policy: Message | None, now_ms: int) -> None: ...
    def acknowledge(self, framework_id: str, task_id: str, uuid: str, now_ms: int) -> None: ...
    def shutdown_executor(self, framework_id: str, executor_id: str, now_ms: int) -> None: ...
    def shutdown_framework(self, framework_id: str, now_ms: int) -> None: ...
    def update_framework(self, framework: Message, now_ms: int) -> None: ...
    def send_message(self, framework_id: str, executor_id: str, data: str, now_ms: int) -> None: ...
    def named(self, agent_id: str) -> None: ...
    def apply_operation(
        self, framework_id: str, operation_id: str | None, conversion: Conversion, now_ms: int
    ) -> None: ...
    def acknowledge_operation(self, framework_id: str, operation_id: str, uuid: str, now_ms: int) -> None: ...
    def registered(self, agent_id: str, forgotten: tuple[Forgotten, ...], now_ms: int) -> None: ...
    def drain(self, config: DrainConfig | None, now_ms: int) -> None: ...
    def shut_down(self, text: str, now_ms: int) -> None: ...


class MasterPort(Protocol):
    """What an agent says to the master."""

    def register_agent(self, report: AgentReport, agent: AgentPort, now_ms: int) -> None: ...
    def unregister_agent(self, agent_id: str, now_ms: int) -> None: ...
    def status_update(
        self, agent_id: str, framework_id: str, status: Message, latest: str, now_ms: int
    ) -> None: ...
    def executor_exited(
        self, agent_id: str, framework_id: str, executor_id: str, status: int, now_ms: int
    ) -> None: ...
    def operation_status(self, agent_id: str, operation: ReportedOperation) -> None: ...
    def executor_message(self, agent_id: str, framework_id: str, executor_id: str, data: str) -> None: ...

"""What the master remembers: agents, frameworks, tasks, executors, offers."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from stoker.mesos.embedded.core.allocator import Grant
from stoker.mesos.embedded.core.codec import Message
from stoker.mesos.embedded.core.constraints import Constraints
from stoker.mesos.embedded.core.messages import TERMINAL_STATES
from stoker.mesos.embedded.core.ports import AgentPort, DrainConfig, ReportedOperation
from stoker.mesos.embedded.core.resources import Resources
from stoker.mesos.embedded.core.validation import capabilities, framework_roles
from stoker.mesos.embedded.core.values import AgentSpec

STATUSES_MAX = 20  # of one task, kept for /state; the oldest goes first


@dataclass(slots=True)
class Offer:
    """An offer that a framework holds."""

    offer_id: str
    grant: Grant


@dataclass(slots=True)
class Task:
    """A task in the master's memory, until its terminal update is acknowledged.

    `state` is the state last forwarded; the resources are `released` when a terminal update arrives, not when it is acknowledged.
    """

    info: Message
    agent_id: str
    executor_id: str
    grant: Grant
    state: str = "TASK_STAGING"
    status_uuid: str | None = None
    container_status: Message | None = None
    statuses: deque[Message] = field(default_factory=lambda: deque(maxlen=STATUSES_MAX))
    released: bool = False

    @property
    def task_id(self) -> str:
        return str(self.info["task_id"]["value"])

    @property
    def is_terminal(self) -> bool:
        return self.state in TERMINAL_STATES

    @property
    def is_custom(self) -> bool:
        """Whether it has an executor that the master knows; a command task's is the agent's own affair."""
        return bool(self.executor_id)


@dataclass(slots=True)
class ExecutorRecord:
    """An executor whose resources the master counts, once, until the agent says that it ended."""

    info: Message
    agent_id: str
    grant: Grant


@dataclass(slots=True)
class AgentRecord:
    """An agent that is registered, connected or not, and what is there, by framework and name.

    `kills` are the KILLs that came while it was away; `unreachable_ms` is when it has missed too many pings, `since_ms` when the
    first ping was sent. Offers are made while it `is_active`.
    """

    spec: AgentSpec
    port: AgentPort
    registered_ms: int
    since_ms: int
    reregistered_ms: int | None = None
    is_connected: bool = True
    is_deactivated: bool = False
    draining: DrainConfig | None = None
    is_drained: bool = False
    unreachable_ms: int | None = None
    tasks: dict[tuple[str, str], Task] = field(default_factory=dict)
    executors: dict[tuple[str, str], ExecutorRecord] = field(default_factory=dict)
    offers: dict[str, Offer] = field(default_factory=dict)
    kills: dict[tuple[str, str], Message | None] = field(default_factory=dict)

    @property
    def agent_id(self) -> str:
        return self.spec.agent_id

    @property
    def is_active(self) -> bool:
        return self.is_connected and not self.is_deactivated and self.draining is None

    def executors_of(self, framework_id: str) -> list[str]:
        return [name for owner, name in self.executors if owner == framework_id]


@dataclass(slots=True)
class Framework:
    """A framework that is registered, connected or not; `info` has the id.

    One that `is_recovered` is known from agents only: it has not subscribed to this master yet. `operations` are those that it has
    not acknowledged, by id, with their agents.
    """

    info: Message
    stream: int | None
    stream_id: str
    registered_ms: int
    completed_tasks: deque[Task]
    reregistered_ms: int | None = None
    unregistered_ms: int | None = None
    heartbeat_ms: int | None = None
    removal_ms: int | None = None
    is_recovered: bool = False
    tasks: dict[str, Task] = field(default_factory=dict)
    unreachable_tasks: dict[str, Task] = field(default_factory=dict)
    executors: dict[tuple[str, str], ExecutorRecord] = field(default_factory=dict)
    operations: dict[str, tuple[str, ReportedOperation]] = field(default_factory=dict)
    constraints: Constraints | None = None

    @property
    def framework_id(self) -> str:
        return str(self.info["id"]["value"])

    @property
    def connected(self) -> bool:
        return self.stream is not None

    @property
    def capabilities(self) -> frozenset[str]:
        return capabilities(self.info)

    @property
    def roles(self) -> tuple[str, ...]:
        return framework_roles(self.info)

    @property
    def lost_state(self) -> str:
        """The state of a task that never started: TASK_DROPPED, or TASK_LOST for a framework of the old kind."""
        return "TASK_DROPPED" if "PARTITION_AWARE" in self.capabilities else "TASK_LOST"


def grants_on(agent: AgentRecord) -> list[Grant]:
    """Return what the live tasks and executors on an agent take."""
    tasks = [task.grant for task in agent.tasks.values() if not task.released]
    return tasks + [record.grant for record in agent.executors.values()]


def executor_used(framework: Framework) -> Resources | None:
    """Return the sum of what the framework's live tasks and executors take, or None."""
    total: Resources | None = None
    grants = [task.grant for task in framework.tasks.values() if not task.released]
    for grant in (*grants, *(record.grant for record in framework.executors.values())):
        total = grant.resources if total is None else total + grant.resources
    return total

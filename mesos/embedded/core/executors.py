"""What an agent remembers of frameworks and executors, and what an executor is told about where it runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from stoker.mesos.embedded.core.codec import Message
from stoker.mesos.embedded.core.validation import capabilities
from stoker.mesos.embedded.core.values import AgentSpec, Settings, format_duration


class Phase(Enum):
    REGISTERING = "registering"
    RUNNING = "running"
    TERMINATING = "terminating"
    TERMINATED = "terminated"


@dataclass(slots=True)
class Executor:
    """One executor; `queued` and `launched` hold TaskInfos, `states` the newest state of each launched task.

    `groups` tells of a queued task that came in a group which ones they are.

    `end` is how its tasks end with it: state, reason, text. One that `is_recovered` was there before its agent was; its end, with
    `status`, is noticed at `reap_ms` only, because it is not the agent's child.
    """

    framework_id: str
    info: Message
    container_id: str
    sandbox: str
    phase: Phase = Phase.REGISTERING
    pid: int | None = None
    stream: int | None = None
    queued: dict[str, Message] = field(default_factory=dict)
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)
    launched: dict[str, Message] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)
    registration_ms: int | None = None
    kill_ms: int | None = None
    heartbeat_ms: int | None = None
    reap_ms: int | None = None
    status: int = 0
    ever_sent: bool = False
    is_command: bool = False
    is_recovered: bool = False
    end: tuple[str, str, str] = ("TASK_FAILED", "REASON_EXECUTOR_TERMINATED", "Executor terminated")

    @property
    def executor_id(self) -> str:
        return str(self.info["executor_id"]["value"])

    @property
    def is_default(self) -> bool:
        """Whether it is Mesos' own executor of task groups, which knows the containers of its tasks better than the agent."""
        return self.info.get("type") == "DEFAULT"

    def grace_ms(self, settings: Settings) -> int:
        """Return how long it has from SHUTDOWN to its end."""
        period = self.info.get("shutdown_grace_period")
        if period is None:
            return settings.executor_shutdown_grace_period_ms
        return int(period["nanoseconds"]) // 1_000_000


@dataclass(slots=True)
class FrameworkOnAgent:
    """A framework that has something on an agent."""

    info: Message
    executors: dict[str, Executor] = field(default_factory=dict)
    terminating: bool = False

    @property
    def is_checkpointed(self) -> bool:
        return bool(self.info["checkpoint"])

    def lost(self, state: str) -> str:
        """Return `state`, or TASK_LOST for a framework of the old kind."""
        return state if "PARTITION_AWARE" in capabilities(self.info) else "TASK_LOST"


def sandbox_of(spec: AgentSpec, framework_id: str, executor_id: str, container_id: str) -> str:
    """Return the directory of one run of an executor."""
    owner = f"slaves/{spec.agent_id}/frameworks/{framework_id}"
    return f"{spec.work_dir}/{owner}/executors/{executor_id}/runs/{container_id}"


def environment_of(
    framework: FrameworkOnAgent, executor: Executor, spec: AgentSpec, settings: Settings
) -> dict[str, str]:
    """Return the whole environment of an executor's process."""
    given = executor.info["command"].get("environment", {}).get("variables", ())
    own = {
        "LIBPROCESS_IP": spec.ip,
        "LIBPROCESS_PORT": "0",
        "MESOS_AGENT_ENDPOINT": spec.endpoint,
        "MESOS_CHECKPOINT": "1" if framework.is_checkpointed else "0",
        "MESOS_DIRECTORY": executor.sandbox,
        "MESOS_EXECUTOR_ID": executor.executor_id,
        "MESOS_EXECUTOR_SHUTDOWN_GRACE_PERIOD": format_duration(executor.grace_ms(settings)),
        "MESOS_FRAMEWORK_ID": executor.framework_id,
        "MESOS_HTTP_COMMAND_EXECUTOR": "0",
        "MESOS_SANDBOX": executor.sandbox,
        "MESOS_SLAVE_ID": spec.agent_id,
        "MESOS_SLAVE_PID": spec.pid,
    }
    if framework.is_checkpointed:
        own["MESOS_RECOVERY_TIMEOUT"] = format_duration(settings.recovery_timeout_ms)
        own["MESOS_SUBSCRIPTION_BACKOFF_MAX"] = format_duration(settings.subscription_backoff_ms_max)
    variables = {item["name"]: item.get("value", "") for item in given}
    return {"PATH": settings.path, "PWD": executor.sandbox, **variables, **own}


def subscribed_message(framework: FrameworkOnAgent, executor: Executor, spec: AgentSpec) -> Message:
    """Return the body of SUBSCRIBED."""
    agent: Message = {"hostname": spec.hostname, "port": spec.port}
    agent["resources"] = spec.resources.to_messages()
    agent["attributes"] = list(spec.attributes)
    agent["id"] = {"value": spec.agent_id}
    return {
        "executor_info": executor.info,
        "framework_info": framework.info,
        "agent_info": agent,
        "container_id": {"value": executor.container_id},
    }


def container_status(executor: Executor, spec: AgentSpec) -> Message:
    """Return what an agent adds to an executor's updates."""
    return {
        "container_id": {"value": executor.container_id},
        "network_infos": [{"ip_addresses": [{"protocol": "IPv4", "ip_address": spec.ip}]}],
        "executor_pid": executor.pid,
    }

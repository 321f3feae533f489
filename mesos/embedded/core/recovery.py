"""What an agent keeps on its disk, so that it finds its executors again after it died, and what it says of itself to a master.

Of frameworks only those that checkpoint are in it; what is reserved and created on the agent is always. The value is made of plain messages: a shell writes it as JSON and hands it back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from stoker.mesos.embedded.core.codec import Message
from stoker.mesos.embedded.core.estate import Estate
from stoker.mesos.embedded.core.executors import Executor, FrameworkOnAgent, Phase, container_status
from stoker.mesos.embedded.core.ports import AgentReport, ReportedExecutor, ReportedTask
from stoker.mesos.embedded.core.updates import Updates
from stoker.mesos.embedded.core.values import AgentSpec


@dataclass(frozen=True, slots=True)
class AgentCheckpoint:
    """An agent's id and all that it knew of frameworks; `as_message` and `from_message` are its form in JSON."""

    agent_id: str
    frameworks: tuple[Message, ...] = ()
    estate: Message = field(default_factory=dict)

    def as_message(self) -> Message:
        return {
            "agent_id": self.agent_id,
            "frameworks": list(self.frameworks),
            "estate": self.estate,
        }

    @classmethod
    def from_message(cls, message: Message) -> AgentCheckpoint:
        return cls(message["agent_id"], tuple(message["frameworks"]), message["estate"])

    def container_ids(self) -> frozenset[str]:
        """Return the executors whose processes were there."""
        executors = (executor for framework in self.frameworks for executor in framework["executors"])
        return frozenset(executor["container_id"] for executor in executors if executor["alive"])


def checkpoint(
    agent_id: str, frameworks: Mapping[str, FrameworkOnAgent], updates: Updates, estate: Estate
) -> AgentCheckpoint:
    """Return what is on the disk of an agent that knows this."""
    kept = [
        {
            "info": framework.info,
            "executors": [_executor_message(executor) for executor in framework.executors.values()],
            "updates": updates.export(framework_id),
        }
        for framework_id, framework in frameworks.items()
        if framework.is_checkpointed and not framework.terminating
    ]
    return AgentCheckpoint(agent_id, tuple(kept), estate.as_message())


def restore(kept: AgentCheckpoint, updates: Updates) -> dict[str, FrameworkOnAgent]:
    """Return the frameworks of a checkpoint, and give `updates` what nobody has acknowledged."""
    frameworks = {}
    for message in kept.frameworks:
        framework_id = message["info"]["id"]["value"]
        framework = frameworks[framework_id] = FrameworkOnAgent(message["info"])
        for item in message["executors"]:
            executor = _executor(framework_id, item)
            framework.executors[executor.executor_id] = executor
        updates.restore(framework_id, message["updates"])
    return frameworks


def report(
    spec: AgentSpec,
    frameworks: Mapping[str, FrameworkOnAgent],
    heads: Mapping[tuple[str, str], Message],
    estate: Estate,
) -> AgentReport:
    """Return what an agent tells of itself; `heads` are the updates that wait for an acknowledgement."""
    living = {name: framework for name, framework in frameworks.items() if not framework.terminating}
    executors = [
        (framework_id, executor)
        for framework_id, framework in living.items()
        for executor in framework.executors.values()
    ]
    return AgentReport(
        spec,
        estate.resources,
        tuple(framework.info for framework in living.values()),
        tuple(
            ReportedExecutor(framework_id, executor.info)
            for framework_id, executor in executors
            if executor.phase is not Phase.TERMINATED and not executor.is_command
        ),
        tuple(task for _, executor in executors for task in _reported(executor, spec, heads)),
        estate.pending(),
    )


def _reported(
    executor: Executor, spec: AgentSpec, heads: Mapping[tuple[str, str], Message]
) -> Iterable[ReportedTask]:
    for task_id, info in (executor.launched | executor.queued).items():
        state = executor.states.get(task_id, "TASK_STAGING")
        head = heads.get((executor.framework_id, task_id))
        started = state != "TASK_STAGING" and "container_status" in (head or {"container_status": None})
        yield ReportedTask(
            executor.framework_id,
            "" if executor.is_command else executor.executor_id,
            info,
            state,
            head["state"] if head else state,
            head["uuid"] if head else None,
            container_status(executor, spec) if started else None,
        )


def _executor_message(executor: Executor) -> Message:
    return {
        "info": executor.info,
        "container_id": executor.container_id,
        "sandbox": executor.sandbox,
        "pid": executor.pid,
        "is_command": executor.is_command,
        "alive": executor.phase is not Phase.TERMINATED,
        "tasks": [
            {"info": info, "state": executor.states.get(task_id, "TASK_STAGING")}
            for task_id, info in (executor.launched | executor.queued).items()
        ],
    }


def _executor(framework_id: str, message: Message) -> Executor:
    result = Executor(framework_id, message["info"], message["container_id"], message["sandbox"])
    result.pid, result.is_command = message["pid"], message["is_command"]
    result.phase = Phase.REGISTERING if message["alive"] else Phase.TERMINATED
    result.is_recovered = result.ever_sent = True
    for task in message["tasks"]:
        task_id = task["info"]["task_id"]["value"]
        result.launched[task_id], result.states[task_id] = task["info"], task["state"]
    return result

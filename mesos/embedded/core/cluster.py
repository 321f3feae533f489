"""A master and its agents as one machine: requests, broken streams, process ends and time in; answers and outputs out.

The shell calls one method at a time, then performs `take_outputs()` in order. Agents and the master come and go here: an agent is
stopped and started by its number, and the master is stopped, and another one started, without the other side being asked. What
follows from it (who notices when, who registers again) is the machine's affair.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal, TypeAlias

from stoker.mesos.embedded.core.agent import Agent
from stoker.mesos.embedded.core.calls import Answer
from stoker.mesos.embedded.core.codec import Message
from stoker.mesos.embedded.core.containers import Life, Site
from stoker.mesos.embedded.core.master import Kept, Master
from stoker.mesos.embedded.core.recovery import AgentCheckpoint
from stoker.mesos.embedded.core.resources import Resources
from stoker.mesos.embedded.core.values import AgentSpec, Ids, MasterSpec, Outbox, Output, Settings

Stop: TypeAlias = Literal["kill", "freeze", "usr1"]


class Refusal(Exception):
    """An agent does not start, or is not in the state for what was asked; the text says why."""


class Cluster:
    """See the module's text; `seed` makes all ids."""

    def __init__(
        self,
        master: MasterSpec,
        agents: Iterable[AgentSpec],
        settings: Settings,
        *,
        seed: uuid.UUID,
        now_ms: int,
        wall_ms: int,
        kept: Mapping[int, AgentCheckpoint] | None = None,
    ) -> None:
        """`kept` are agents, by their numbers, that start again with what they found on their disks."""
        self._out = Outbox()
        self._ids = Ids(seed)
        self._settings = settings
        self._wall_offset_ms = wall_ms - now_ms
        self._site = Site(settings, self._ids, self._out, self._wall_offset_ms)
        self.master = Master(master, settings, self._out, now_ms, wall_ms)
        self.has_master = True
        self._kept = Kept()
        self._lost_ms = 0
        self.agents: list[Agent] = [Agent(spec, self.master, self._site) for spec in agents]
        self._by_number = {agent.spec.number: agent for agent in self.agents}
        assert len(self._by_number) == len(self.agents)
        for agent in self.agents:
            if kept and agent.spec.number in kept:
                agent.start(agent.spec, kept[agent.spec.number], now_ms)
            else:
                agent.boot(now_ms)

    def take_outputs(self) -> list[Output]:
        """Return what is to be done, in order."""
        return self._out.take()

    def take_changed(self) -> list[Agent]:
        """Return the agents whose checkpoint may have changed since this was asked."""
        numbers = sorted(self._site.changed)
        self._site.changed.clear()
        return [self._by_number[number] for number in numbers]

    def new_stream_id(self) -> str:
        return str(self._ids.next())

    def agent(self, number: int) -> Agent:
        """Return the agent slave(`number`).

        :raises Refusal: there is none.
        """
        agent = self._by_number.get(number)
        if agent is None:
            raise Refusal(f"there is no agent {number}: they are 1 to {len(self.agents)}")
        return agent

    def agent_of_container(self, container_id: str) -> Agent | None:
        """Return the agent that started `container_id`; None: it has forgotten it."""
        number = self._site.containers.get(container_id)
        return None if number is None else self._by_number[number]

    def find_agent(self, call: Message) -> Agent | None:
        """Return the agent whose executor makes this call."""
        return next((agent for agent in self.agents if agent.is_known(call)), None)

    def check_executor(self, call: Message, agent: Agent | None) -> Answer | None:
        """Return the refusal of an executor's call; `agent` is None where the address does not say which one."""
        return agent.check(call) if agent is not None else Answer(400, "Framework cannot be found")

    def stream_closed(self, stream: int, now_ms: int) -> None:
        """The other side closed a stream."""
        number = self._site.streams.pop(stream, None)
        if number is not None:
            self._by_number[number].stream_closed(stream)
        elif self.has_master:
            self.master.stream_closed(stream, now_ms)

    def tick(self, now_ms: int) -> None:
        """Do what is due."""
        if self.has_master:
            self.master.tick(now_ms)
        for number in self._site.timers.take_due(now_ms):
            self._by_number[number].tick(now_ms)

    def next_deadline_ms(self) -> int | None:
        """Return when `tick` has something to do."""
        due = [self._site.timers.next_ms(), self.master.next_deadline_ms() if self.has_master else None]
        return min((at for at in due if at is not None), default=None)

    def shutdown(self, now_ms: int) -> None:
        """Shut down every executor: the process is going to end."""
        for agent in self.agents:
            agent.shutdown_all(now_ms)

    # Agents come and go.

    def stop_agent(self, number: int, how: Stop, now_ms: int) -> None:
        """Stop an agent's process: `kill` as SIGKILL, `freeze` as SIGSTOP, `usr1` in order.

        :raises Refusal: it is not running.
        """
        agent = self.agent(number)
        if agent.life is Life.DOWN or agent.life is Life.FROZEN and how != "kill":
            raise Refusal(f"agent {number} is {agent.life.value}: it cannot be stopped by {how}")
        agent_id, was_registered = agent.spec.agent_id, agent.is_registered
        match how:
            case "kill":
                agent.die(now_ms)
                if self.has_master and was_registered:
                    self.master.registry.disconnected(agent_id, now_ms)
            case "freeze":
                agent.freeze()
                if self.has_master and was_registered:
                    self.master.registry.silent(agent_id, now_ms)
            case "usr1":
                agent.leave(now_ms)

    def start_agent(
        self,
        number: int,
        now_ms: int,
        *,
        kept: AgentCheckpoint | None = None,
        is_wiped: bool = False,
        is_rebooted: bool = False,
        resources: Resources | None = None,
        attributes: Sequence[Message] | None = None,
        policy: str | None = None,
    ) -> None:
        """Start an agent's process again, or let a frozen one go on.

        It finds what it kept in its work_dir (`kept`: as a shell has read it from there), unless that `is_wiped`. `is_rebooted`:
        its executors are gone with the machine. `resources` and `attributes` are its new ones, `policy` its
        --reconfiguration_policy.

        :raises Refusal: it is running, or does not start with these resources and attributes.
        """
        agent = self.agent(number)
        if agent.life is Life.FROZEN:
            agent.thaw(now_ms)
            if self.has_master and agent.is_registered:
                if not self.master.registry.answering(agent.spec.agent_id):
                    agent.register_again(now_ms)
            return
        if agent.life is not Life.DOWN:
            raise Refusal(f"agent {number} is {agent.life.value}: it cannot be started")
        old = agent.spec
        spec = replace(old, resources=old.resources if resources is None else resources)
        spec = spec if attributes is None else replace(spec, attributes=tuple(attributes))
        if is_wiped:
            agent.start(replace(spec, agent_id=""), AgentCheckpoint(""), now_ms)
            return
        error = _reconfiguration_error(old, spec, policy or self._settings.reconfiguration_policy)
        if error:
            raise Refusal(error)
        agent.start(spec, kept or agent.checkpoint(), now_ms, rebooted=is_rebooted)

    # Masters come and go.

    def stop_master(self, now_ms: int) -> None:
        """The master's process is gone, and all that it knew but its registry."""
        assert self.has_master
        self.has_master, self._lost_ms = False, now_ms
        self._kept = self.master.kept()
        for framework in self.master.frameworks.values():
            self._out.abort(framework.stream)
        for agent in self.agents:
            agent.lose_master()

    def start_master(
        self, spec: MasterSpec, *, keeps_registry: bool, now_ms: int, return_ms: int | None = None
    ) -> None:
        """Start another master; `keeps_registry`: it has the registry of the one before (replicated_log), else it knows nothing.

        Agents register `return_ms` from now (0: they are told at once, as by ZooKeeper); None: when they miss the old one's pings.
        """
        assert not self.has_master
        kept = self._kept if keeps_registry else None
        self.has_master = True
        wall_ms = now_ms + self._wall_offset_ms
        self.master = Master(spec, self._settings, self._out, now_ms, wall_ms, kept)
        for agent in self.agents:
            at_ms = self._notice_ms(agent) if return_ms is None else now_ms + return_ms
            agent.find_master(self.master, max(at_ms, now_ms))

    def fail_over_master(
        self, spec: MasterSpec, *, keeps_registry: bool, now_ms: int, return_ms: int | None = None
    ) -> None:
        """Let the master die and another one lead at once."""
        self.stop_master(now_ms)
        self.start_master(spec, keeps_registry=keeps_registry, now_ms=now_ms, return_ms=return_ms)

    def _notice_ms(self, agent: Agent) -> int:
        """Return when an agent finds that the pings of the master that was lost have stopped."""
        step_ms = self._settings.agent_ping_timeout_ms
        last_ms = self._lost_ms - (self._lost_ms - agent.registered_ms) % step_ms
        return last_ms + step_ms * self._settings.agent_ping_timeouts_max


def _reconfiguration_error(old: AgentSpec, new: AgentSpec, policy: str) -> str | None:
    """Return why an agent does not start with what it kept."""
    if (old.resources, old.attributes) == (new.resources, new.attributes):
        return None
    if policy == "equal":
        return "Incompatible agent info detected: resources or attributes differ, and the policy is 'equal'"
    if not new.resources.contains(old.resources):
        text = f"{new.resources.describe()} is less than {old.resources.describe()}"
        return f"Incompatible agent info detected: {text}, which the policy 'additive' does not allow"
    if any(item not in new.attributes for item in old.attributes):
        return "Incompatible agent info detected: an attribute changed, which the policy 'additive' does not allow"
    return None

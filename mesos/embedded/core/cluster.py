"""A master and its agents as one machine: requests, broken streams, process ends and time in; answers and outputs out.

The shell calls one method at a time, then performs `take_outputs()` in order.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable

from stoker.mesos.embedded.core.agent import Agent
from stoker.mesos.embedded.core.calls import Answer
from stoker.mesos.embedded.core.codec import Message
from stoker.mesos.embedded.core.master import Master
from stoker.mesos.embedded.core.values import AgentSpec, Ids, MasterSpec, Outbox, Output, Settings


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
    ) -> None:
        self._out = Outbox()
        self._ids = Ids(seed)
        self.master = Master(master, settings, self._out, now_ms, wall_ms)
        self.agents: list[Agent] = []
        for spec in agents:
            agent = Agent(spec, self.master, settings, self._ids, self._out, wall_ms - now_ms)
            self.agents.append(agent)
            self.master.add_agent(agent, now_ms)

    def take_outputs(self) -> list[Output]:
        """Return what is to be done, in order."""
        return self._out.take()

    def new_stream_id(self) -> str:
        return str(self._ids.next())

    def agent_of_container(self, container_id: str) -> Agent:
        """Return the agent that started `container_id`, which has a process."""
        return next(agent for agent in self.agents if agent.has_container(container_id))

    def find_agent(self, call: Message) -> Agent | None:
        """Return the agent whose executor makes this call."""
        return next((agent for agent in self.agents if agent.is_known(call)), None)

    def check_executor(self, call: Message, agent: Agent | None) -> Answer | None:
        """Return the refusal of an executor's call; `agent` is None where the address does not say which one."""
        return agent.check(call) if agent is not None else Answer(400, "Framework cannot be found")

    def stream_closed(self, stream: int, now_ms: int) -> None:
        """The other side closed a stream."""
        self.master.stream_closed(stream, now_ms)
        for agent in self.agents:
            agent.stream_closed(stream)

    def tick(self, now_ms: int) -> None:
        """Do what is due."""
        self.master.tick(now_ms)
        for agent in self.agents:
            agent.tick(now_ms)

    def next_deadline_ms(self) -> int:
        """Return when `tick` has something to do."""
        due = [agent.next_deadline_ms() for agent in self.agents]
        return min([self.master.next_deadline_ms(), *(at for at in due if at is not None)])

    def shutdown(self, now_ms: int) -> None:
        """Shut down every executor: the process is going to end."""
        for agent in self.agents:
            agent.shutdown_all(now_ms)

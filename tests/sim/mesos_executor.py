"""An executor's process as its agent sees it: what the product's executor driver says and hears, around a `SimExecutor`.

It subscribes, is told to LAUNCH, reports its task, and ends when it is told to. It outlives its agent: it subscribes again, with what
nobody has acknowledged, until the agent is back. One that hangs hears nothing; then only its agent's patience ends it.
"""

from __future__ import annotations

import base64
import json
import uuid
from typing import TYPE_CHECKING, Any

from sim.executor import SimExecutor
from stoker.mesos.embedded.core.calls import Answer, decode_executor_call
from stoker.mesos.embedded.core.containers import Life
from stoker.mesos.embedded.core.values import StartProcess

if TYPE_CHECKING:
    from sim.embedded_mesos import Mesos, SimAgent

Json = dict[str, Any]

SUBSCRIBE_AGAIN_MS_MAX = 1_000
LAUNCH_TIMEOUT_MS = 15_000  # as the keeper has one: its task may be dropped before it comes
HEADERS = {"content-type": "application/json"}
FAILED, KILLED = 1 << 8, 9  # raw wait statuses


class ExecutorProcess:
    def __init__(self, mesos: Mesos, agent: SimAgent, order: StartProcess) -> None:
        self.container_id = order.container_id
        self.environment = order.environment
        self.links = dict(order.links)
        self.agent = agent
        self.executor_id = order.environment["MESOS_EXECUTOR_ID"]
        self.is_alive = True
        self.stream = 0  # 0: not subscribed now
        self.keeper: SimExecutor | None = None
        self.task: Json | None = None
        self._mesos, self._timeline = mesos, mesos.timeline
        self._updates: dict[str, Json] = {}  # that the agent has not acknowledged, by uuid
        self._is_ending = False
        self._is_launched = False  # and the agent knows that we know

    # --- its life

    def start(self) -> None:
        """The process has started: find the agent, or die at birth."""
        if not self.is_alive:
            return
        if self._timeline.chance(self._mesos.faults.executor_dies * 5):
            self.exit(FAILED)
            return
        self._subscribe()
        self._timeline.at(LAUNCH_TIMEOUT_MS, lambda: self.exit(FAILED) if self.task is None else None)

    def exit(self, status: int) -> None:
        """The process ends; idempotent."""
        if self.is_alive:
            self.is_alive = False
            self._mesos.process_ended(self, status)

    def end(self, state: str) -> None:
        """End in order: say how the task ended, then exit."""
        if not self.is_alive or self._is_ending:
            return
        self._is_ending = True
        if self.keeper is not None:
            self._mesos.leave(self)
        if self.task is not None:
            self._update(state)
        self._timeline.at(20, lambda: self.exit(0))

    @property
    def _is_deaf(self) -> bool:
        return not self.is_alive or self.keeper is not None and self.keeper.is_hung

    # --- to the agent

    def _subscribe(self) -> None:
        if not self.is_alive or self.stream:
            return
        body = {
            "unacknowledged_tasks": [self.task] if self.task is not None and not self._is_launched else [],
            "unacknowledged_updates": [{"status": status} for status in self._updates.values()],
        }
        if self._is_deaf or self._call("SUBSCRIBE", body).status != 200:
            self._timeline.at(self._timeline.between(10, SUBSCRIBE_AGAIN_MS_MAX), self._subscribe)

    def _call(self, kind: str, body: Json) -> Answer:
        """Make a call; 503 where there is no agent to answer."""
        call = {
            "type": kind,
            "framework_id": {"value": self.environment["MESOS_FRAMEWORK_ID"]},
            "executor_id": {"value": self.executor_id},
            kind.lower(): body,
        }
        cluster, now_ms = self._mesos.cluster, self._timeline.now_ms
        agent = cluster.agent(self.agent.number)
        if agent.life in (Life.DOWN, Life.FROZEN):
            return Answer(503)
        decoded = decode_executor_call(HEADERS, json.dumps(call).encode())
        refused = cluster.check_executor(decoded, agent)
        if refused is not None:
            return refused
        if kind == "SUBSCRIBE":
            self.stream = self._mesos.open_stream(self)
            self._mesos.step(lambda: agent.subscribe(decoded, self.stream, now_ms))
            return Answer(200)
        answers: list[Answer] = []
        self._mesos.step(lambda: answers.append(agent.call(decoded, now_ms)))
        return answers[0]

    def _update(self, state: str) -> None:
        assert self.task is not None
        made = uuid.UUID(int=self._timeline.random.getrandbits(128), version=4)
        status = {
            "task_id": self.task["task_id"],
            "state": state,
            "source": "SOURCE_EXECUTOR",
            "executor_id": {"value": self.executor_id},
            "uuid": base64.b64encode(made.bytes).decode(),
        }
        self._updates[status["uuid"]] = status
        if self.stream:
            self._call("UPDATE", {"status": status})

    # --- from the agent

    def deliver(self, event: Json) -> None:
        if self._is_deaf:
            return
        match event["type"]:
            case "LAUNCH":
                self._launch(event["launch"]["task"])
            case "ACKNOWLEDGED":
                self._updates.pop(event["acknowledged"]["uuid"], None)
                self._is_launched = True
            case "KILL":
                self.end("TASK_KILLED")
            case "SHUTDOWN":
                self.end("TASK_KILLED")
                self.exit(0)

    def lost(self) -> None:
        """The stream is gone."""
        self.stream = 0
        self._timeline.at(self._timeline.between(10, SUBSCRIBE_AGAIN_MS_MAX), self._subscribe)

    def _launch(self, task: Json) -> None:
        assert self.task is None, "a second task"
        self.task = task
        self.keeper = self._mesos.make_keeper(self)
        self._update("TASK_STARTING")
        self._update("TASK_RUNNING")

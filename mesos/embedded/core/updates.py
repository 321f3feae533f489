"""Status updates of an agent on their way to the scheduler: one in flight a task, again and again until acknowledged.

Theory of operation. Each (framework, task) has a queue. Its head is forwarded when it gets there, again after the retry interval
(doubling up to a maximum), and at once when the framework subscribes again. An acknowledgement of the head's uuid removes it and
forwards the next; any other is ignored. An update whose uuid was seen before is not queued again. A queue whose terminal update
was acknowledged is gone. While they are paused (the agent is not registered) nothing is forwarded; all heads are when it ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from stoker.mesos.embedded.core.codec import Message
from stoker.mesos.embedded.core.messages import TERMINAL_STATES

PENDING_MAX = 1000  # updates of one task that wait; an executor that sends more is told to come again
SEEN_MAX = 2000  # uuids remembered per task to recognise repetitions

# (framework id, status, newest state known of the task)
Forward = Callable[[str, Message, str], None]
Arm = Callable[[int], None]  # `tick` is to be called at this moment


class Taken(Enum):
    """What became of an update."""

    NEW = "new"
    REPEATED = "repeated"
    FULL = "full"


@dataclass(slots=True)
class _Queue:
    pending: deque[Message] = field(default_factory=deque)
    seen: dict[str, None] = field(default_factory=dict)
    latest: str = ""
    retry_ms: int = 0
    interval_ms: int = 0


class Updates:
    """All queues of one agent."""

    def __init__(self, forward: Forward, arm: Arm, *, retry_ms: int, retry_ms_max: int) -> None:
        self._forward = forward
        self._arm = arm
        self._is_paused = False
        self._retry_ms = retry_ms
        self._retry_ms_max = retry_ms_max
        self._queues: dict[tuple[str, str], _Queue] = {}

    def add(self, framework_id: str, status: Message, now_ms: int) -> Taken:
        """Queue an update; it is forwarded at once if nothing is before it."""
        queue = self._queues.setdefault((framework_id, status["task_id"]["value"]), _Queue())
        if status["uuid"] in queue.seen:
            return Taken.REPEATED
        if len(queue.pending) >= PENDING_MAX:
            return Taken.FULL
        queue.seen[status["uuid"]] = None
        if len(queue.seen) > SEEN_MAX:
            del queue.seen[next(iter(queue.seen))]
        if queue.latest not in TERMINAL_STATES:
            queue.latest = status["state"]
        queue.pending.append(status)
        if len(queue.pending) == 1:
            self._send(framework_id, queue, now_ms)
        return Taken.NEW

    def acknowledge(self, framework_id: str, task_id: str, uuid: str, now_ms: int) -> bool:
        """Take the scheduler's acknowledgement; True if it ended the task (its terminal update was acknowledged)."""
        queue = self._queues.get((framework_id, task_id))
        if queue is None or not queue.pending or queue.pending[0]["uuid"] != uuid:
            return False
        acknowledged = queue.pending.popleft()
        if queue.pending:
            self._send(framework_id, queue, now_ms)
            return False
        if acknowledged["state"] not in TERMINAL_STATES:
            return False
        del self._queues[(framework_id, task_id)]
        return True

    def resend(self, framework_id: str, now_ms: int) -> None:
        """Forward every head of a framework again: it has subscribed again."""
        for (owner, _), queue in list(self._queues.items()):
            if owner == framework_id and queue.pending:
                self._send(framework_id, queue, now_ms)

    def forget(self, framework_id: str) -> None:
        """Drop all that a removed framework would have been told."""
        self._queues = {key: queue for key, queue in self._queues.items() if key[0] != framework_id}

    def tick(self, now_ms: int) -> None:
        """Forward again what is due."""
        if self._is_paused:
            return
        for (framework_id, _), queue in list(self._queues.items()):
            if queue.pending and queue.retry_ms <= now_ms:
                interval_ms = min(queue.interval_ms * 2, self._retry_ms_max)
                self._send(framework_id, queue, now_ms, interval_ms)

    def pause(self) -> None:
        """Forward nothing until `resume`."""
        self._is_paused = True

    def resume(self, now_ms: int) -> None:
        """Forward every head, and go on."""
        self._is_paused = False
        for (framework_id, _), queue in list(self._queues.items()):
            if queue.pending:
                self._send(framework_id, queue, now_ms)

    def heads(self) -> dict[tuple[str, str], Message]:
        """Return the update of each task that waits for its acknowledgement."""
        return {key: queue.pending[0] for key, queue in self._queues.items() if queue.pending}

    def export(self, framework_id: str) -> list[Message]:
        """Return a framework's queues as plain messages."""
        return [
            {
                "task_id": task_id,
                "pending": list(queue.pending),
                "seen": list(queue.seen),
                "latest": queue.latest,
            }
            for (owner, task_id), queue in self._queues.items()
            if owner == framework_id
        ]

    def restore(self, framework_id: str, exported: list[Message]) -> None:
        """Take back what `export` gave; nothing is forwarded before `resume`."""
        for item in exported:
            queue = _Queue(deque(item["pending"]), dict.fromkeys(item["seen"]), item["latest"])
            self._queues[(framework_id, item["task_id"])] = queue

    def _send(self, framework_id: str, queue: _Queue, now_ms: int, interval_ms: int | None = None) -> None:
        if self._is_paused:
            return
        queue.interval_ms = interval_ms or self._retry_ms
        queue.retry_ms = now_ms + queue.interval_ms
        self._arm(queue.retry_ms)
        self._forward(framework_id, queue.pending[0], queue.latest)

"""What an agent tells of operations that have an id: once at least, again and again until the scheduler acknowledges it.

An operation is done the moment it is applied, so each has one status, which is final.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from stoker.mesos.embedded.core.codec import Message
from stoker.mesos.embedded.core.ports import ReportedOperation
from stoker.mesos.embedded.core.values import Ids

PENDING_MAX = (
    100_000  # of all frameworks; beyond it the oldest is given up, as one that nobody will ever acknowledge
)


@dataclass(slots=True)
class _Pending:
    operation: ReportedOperation
    due_ms: int
    interval_ms: int


class OperationFeedback:
    """The unacknowledged statuses of one agent."""

    def __init__(
        self,
        forward: Callable[[ReportedOperation], None],
        arm: Callable[[int], None],
        ids: Ids,
        *,
        retry_ms: int,
        retry_ms_max: int,
    ) -> None:
        self._forward = forward
        self._arm = arm
        self._ids = ids
        self._retry_ms = retry_ms
        self._retry_ms_max = retry_ms_max
        self._pending: dict[tuple[str, str], _Pending] = {}

    def finished(self, framework_id: str, operation_id: str, now_ms: int) -> None:
        """Tell that an operation was done."""
        uuid = base64.b64encode(self._ids.next().bytes).decode("ascii")
        self._add(ReportedOperation(framework_id, operation_id, "OPERATION_FINISHED", uuid), now_ms)

    def acknowledge(self, framework_id: str, operation_id: str, uuid: str) -> bool:
        """Forget a status; False if it is not this one that is waited for."""
        pending = self._pending.get((framework_id, operation_id))
        if pending is None or pending.operation.uuid != uuid:
            return False
        del self._pending[framework_id, operation_id]
        return True

    def resend(self, now_ms: int, framework_id: str | None = None) -> None:
        """Tell all at once, of one framework or of all: whom it concerns is there again."""
        for pending in list(self._pending.values()):
            if framework_id in (None, pending.operation.framework_id):
                pending.interval_ms = self._retry_ms
                pending.due_ms = now_ms + self._retry_ms
                self._arm(pending.due_ms)
                self._forward(pending.operation)

    def forget(self, framework_id: str) -> None:
        """A framework is removed: nobody will acknowledge what concerns it."""
        for key in [key for key in self._pending if key[0] == framework_id]:
            del self._pending[key]

    def tick(self, now_ms: int) -> None:
        """Tell again what is due."""
        for pending in list(self._pending.values()):
            if pending.due_ms <= now_ms:
                pending.interval_ms = min(2 * pending.interval_ms, self._retry_ms_max)
                pending.due_ms = now_ms + pending.interval_ms
                self._arm(pending.due_ms)
                self._forward(pending.operation)

    def report(self) -> tuple[ReportedOperation, ...]:
        """Return what waits for its acknowledgement: the agent's checkpoint, and what it tells a new master."""
        return tuple(pending.operation for pending in self._pending.values())

    def restore(self, operations: Iterable[ReportedOperation], now_ms: int) -> None:
        """Take what another life of this agent has left; `resend` tells it."""
        for operation in operations:
            self._pending[operation.framework_id, operation.operation_id] = _Pending(
                operation, now_ms + self._retry_ms, self._retry_ms
            )

    def _add(self, operation: ReportedOperation, now_ms: int) -> None:
        key = (operation.framework_id, operation.operation_id)
        self._pending[key] = _Pending(operation, now_ms + self._retry_ms, self._retry_ms)
        while len(self._pending) > PENDING_MAX:
            del self._pending[next(iter(self._pending))]
        self._arm(now_ms + self._retry_ms)
        self._forward(operation)


def operation_status(operation: ReportedOperation, agent_id: str, *, with_uuid: bool) -> Message:
    """Return the status on the wire; an answer to RECONCILE_OPERATIONS has no uuid."""
    status: Message = {"operation_id": {"value": operation.operation_id}, "state": operation.state}
    if with_uuid:
        status["uuid"] = {"value": operation.uuid}
    status["agent_id"] = {"value": agent_id}
    return status

"""What an agent has: its resources with all that was reserved and created on them, its volumes, and what it has to tell of that.

The directories of volumes are made and removed by the shell; a volume's data live as long as the volume, whoever uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol, TypeAlias

from stoker.mesos.embedded.core import operations
from stoker.mesos.embedded.core.codec import Message
from stoker.mesos.embedded.core.feedback import OperationFeedback
from stoker.mesos.embedded.core.operations import Conversion
from stoker.mesos.embedded.core.ports import ReportedOperation
from stoker.mesos.embedded.core.reservations import Key
from stoker.mesos.embedded.core.resources import from_messages
from stoker.mesos.embedded.core.values import AgentSpec, Ids, MakeVolume, Outbox, RemoveVolume, Settings


class Site(Protocol):
    """What the agents of a cluster share, as far as it matters here."""

    @property
    def settings(self) -> Settings: ...
    @property
    def ids(self) -> Ids: ...
    @property
    def out(self) -> Outbox: ...


Links: TypeAlias = tuple[tuple[str, str], ...]


class Estate:
    """One agent's; `forward` tells the master of an operation if it can be told, `arm` asks for a `tick` at that moment."""

    def __init__(
        self,
        spec: AgentSpec,
        site: Site,
        forward: Callable[[ReportedOperation], None],
        arm: Callable[[int], None],
    ) -> None:
        self.resources = spec.resources
        self._given = spec.resources
        self._work_dir = spec.work_dir
        self._out = site.out
        retry_ms, retry_ms_max = site.settings.update_retry_ms, site.settings.update_retry_ms_max
        self._feedback = OperationFeedback(
            forward, arm, site.ids, retry_ms=retry_ms, retry_ms_max=retry_ms_max
        )

    def apply(self, framework_id: str, operation_id: str | None, conversion: Conversion, now_ms: int) -> None:
        """Do an operation; it is told of if it has an id."""
        self.resources = self.resources - conversion.consumed + conversion.converted
        for key in conversion.removed.items:
            self._out.items.append(RemoveVolume(self._path(key)))
        for key in conversion.made.items:
            self._out.items.append(MakeVolume(self._path(key)))
        if operation_id is not None:
            self._feedback.finished(framework_id, operation_id, now_ms)

    def acknowledge(self, framework_id: str, operation_id: str, uuid: str) -> bool:
        """The framework has heard of an operation; False if nothing of this uuid was told."""
        return self._feedback.acknowledge(framework_id, operation_id, uuid)

    def resend(self, now_ms: int, framework_id: str | None = None) -> None:
        """Tell again what is not acknowledged, of one framework or of all."""
        self._feedback.resend(now_ms, framework_id)

    def forget(self, framework_id: str) -> None:
        self._feedback.forget(framework_id)

    def tick(self, now_ms: int) -> None:
        """Tell again what is due."""
        self._feedback.tick(now_ms)

    def pending(self) -> tuple[ReportedOperation, ...]:
        """Return the operations that are not acknowledged."""
        return self._feedback.report()

    def links(self, resources: Iterable[Message]) -> Links:
        """Return where the volumes among an executor's or task's resources belong in its sandbox, and what they lead to."""
        result = []
        for key in from_messages(resources, None).items:
            if key.disk is not None and key.is_volume:
                result.append((str(key.disk.wire["volume"]["container_path"]), self._path(key)))
        return tuple(result)

    def as_message(self) -> Message:
        """Return what must not be forgotten: the part of the agent's checkpoint that `restore` takes."""
        return {
            "resources": operations.checkpoint(self.resources),
            "operations": [operation._asdict() for operation in self.pending()],
        }

    def restore(self, message: Message, now_ms: int) -> None:
        """Take up what another life of this agent has left.

        :raises ResourceError: the agent has less than was reserved on it.
        """
        self.resources = operations.restore(self._given, message.get("resources", ()))
        given = (ReportedOperation(**item) for item in message.get("operations", ()))
        self._feedback.restore(given, now_ms)
        for key in self.resources.volumes().items:
            self._out.items.append(MakeVolume(self._path(key)))

    def _path(self, key: Key) -> str:
        assert key.disk is not None
        role = key.role.replace("/", " ")
        return f"{self._work_dir}/volumes/roles/{role}/{key.disk.persistence_id}"

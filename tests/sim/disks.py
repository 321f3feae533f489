"""The disks of simulated agents: what is reserved, the volumes on them, and what Mesos says of operations.

It holds what is asked of it against the journal: nothing is made that was not planned, nothing destroyed that was not doomed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from stoker.framework.core import actions as a
from stoker.framework.core.operations import CREATE, DESTROY, RESERVE, UNRESERVE, operation_id
from stoker.framework.core.volumes import Volumes, VolumeState
from stoker.framework.model import OfferedReservation, OfferedVolume, OperationStatus

MIB = 1024 * 1024
DISK_BYTES = 1024 * MIB
ROLE = "stoker"


@dataclass
class Disk:
    """One agent's: bytes by the number of the volume that they were reserved for, and the volumes made of them."""

    free_bytes: int = DISK_BYTES
    reserved: dict[int, int] = field(default_factory=dict)
    volumes: dict[int, tuple[int, int]] = field(default_factory=dict)  # (bytes, reserved for which)


class Disks:
    def __init__(
        self,
        *,
        cluster: Callable[[], bytes],
        promised: Callable[[], Volumes],
        was_planned: Callable[[int], bool],
        fails: Callable[[], bool],
        uuid: Callable[[], bytes],
        send: Callable[[OperationStatus], None],
    ) -> None:
        self.of_agents: dict[str, Disk] = {}
        self.unacknowledged: dict[str, OperationStatus] = {}
        self.destroyed: list[int] = []
        self._cluster, self._promised, self._was_planned = cluster, promised, was_planned
        self._fails, self._uuid, self._send = fails, uuid, send

    def on(self, agent_id: str) -> Disk:
        return self.of_agents.setdefault(agent_id, Disk())

    def offered(
        self, agent_id: str, in_use: set[int]
    ) -> tuple[int, tuple[OfferedVolume, ...], tuple[OfferedReservation, ...]]:
        """Return what an offer of the agent holds: unreserved bytes, volumes that no task has, reservations."""
        disk, cluster = self.on(agent_id), self._cluster().hex()
        volumes = [(i, size) for i, (size, _) in disk.volumes.items() if i not in in_use]
        return (
            disk.free_bytes,
            tuple(OfferedVolume(cluster, i, ROLE, size) for i, size in volumes),
            tuple(OfferedReservation(cluster, i, ROLE, size) for i, size in disk.reserved.items() if size),
        )

    def launch(self, action: a.Accept) -> bool:
        """Do the operations before the launch; return whether its volume is there then."""
        launch, volume = action.launch, action.volume
        disk = self.on(launch.agent_id)
        if volume is not None:
            assert self._was_planned(volume.volume_id), "a volume was made before it was journaled"
            assert volume.volume_id not in disk.volumes, "a volume's id is used again"
            source = action.reserved_volume_id or volume.volume_id
            if not action.reserved_volume_id:
                assert disk.free_bytes >= volume.disk_bytes, "more disk than was offered"
                disk.free_bytes -= volume.disk_bytes
                disk.reserved[source] = volume.disk_bytes
                self._done(launch.agent_id, volume.volume_id, RESERVE)
            if self._fails():
                self.refuse(action, "the agent could not make it")
                return False
            assert disk.reserved[source] >= volume.disk_bytes, "less was reserved"
            disk.reserved[source] -= volume.disk_bytes
            disk.volumes[volume.volume_id] = (volume.disk_bytes, source)
            self._done(launch.agent_id, volume.volume_id, CREATE)
        return not launch.volume_id or launch.volume_id in disk.volumes

    def refuse(self, action: a.Accept, why: str) -> None:
        """Say that the volume was not made: no uuid, nothing to acknowledge."""
        if action.volume is not None:
            name = operation_id(self._cluster(), action.volume.volume_id, CREATE)
            self._send(OperationStatus(name, "OPERATION_ERROR", action.launch.agent_id, why))

    def destroy(self, action: a.DestroyVolume, in_use: set[int]) -> None:
        disk, volume_id = self.on(action.agent_id), action.volume_id
        promised = self._promised().get(volume_id)
        if volume_id in disk.volumes:
            assert promised is None or promised.state is VolumeState.DOOMED, f"volume {volume_id} is wanted"
            assert promised is not None or volume_id in self.destroyed, f"nobody doomed volume {volume_id}"
            assert volume_id not in in_use, f"volume {volume_id} is in use"
            size, source = disk.volumes.pop(volume_id)
            disk.reserved[source] = disk.reserved.get(source, 0) + size
            self.destroyed.append(volume_id)
            self._done(action.agent_id, volume_id, DESTROY, action.attempt)
            self._unreserve(action, disk, source, size)
        elif disk.reserved.get(volume_id):
            self._unreserve(action, disk, volume_id, disk.reserved[volume_id])

    def _unreserve(self, action: a.DestroyVolume, disk: Disk, source: int, size: int) -> None:
        if self._fails():
            return
        disk.reserved[source] -= size
        disk.free_bytes += size
        self._done(action.agent_id, action.volume_id, UNRESERVE, action.attempt)

    def acknowledge(self, action: a.AcknowledgeOperation) -> None:
        known = self.unacknowledged.get(action.operation_id)
        if known is not None and known.uuid == action.uuid:
            del self.unacknowledged[action.operation_id]

    def reconcile(self, action: a.ReconcileOperations) -> None:
        for name, agent_id in action.operations:
            known = self.unacknowledged.get(name)
            state = known.state if known is not None else "OPERATION_UNKNOWN"
            self._send(OperationStatus(name, state, agent_id))

    def _done(self, agent_id: str, volume_id: int, kind: str, attempt: str = "") -> None:
        name = operation_id(self._cluster(), volume_id, kind, attempt)
        self.unacknowledged[name] = OperationStatus(name, "OPERATION_FINISHED", agent_id, "", self._uuid())

    def check(self) -> None:
        """No byte of any agent is lost."""
        for agent_id, disk in self.of_agents.items():
            total = disk.free_bytes + sum(disk.reserved.values()) + sum(s for s, _ in disk.volumes.values())
            assert total == DISK_BYTES and disk.free_bytes >= 0, (agent_id, disk)

    def check_settled(self, in_use: dict[int, str]) -> None:
        """What is there is what is promised; what is reserved has a volume on it, or is left for the next one."""
        self.check()
        promised = self._promised()
        there = {i: agent_id for agent_id, disk in self.of_agents.items() for i in disk.volumes}
        assert there == {v.volume_id: v.agent_id for v in promised.values()}, (there, dict(promised))
        assert all(v.state is VolumeState.READY for v in promised.values()), dict(promised)
        for volume_id, agent_id in in_use.items():
            assert there[volume_id] == agent_id, f"a task runs on volume {volume_id}, which is elsewhere"

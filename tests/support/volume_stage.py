"""A stage whose executors have persistent volumes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from stoker.framework.core import actions as a
from stoker.framework.core import events as ev
from stoker.framework.core.operations import CREATE, operation_id
from stoker.framework.model import FleetSpec, Offer, OfferedReservation, OfferedVolume, OperationStatus
from support.core_stage import CLUSTER, MIB, Stage

DISK = 1024 * MIB
ROLE = "stoker"


class Disks(Stage):
    """A stage whose fleet has an SSD tier; agents offer what their volumes leave."""

    def __init__(self, *, instances: int = 1, disk_bytes: int = DISK, **settings: int) -> None:
        super().__init__(instances=instances, **settings)
        self.spec = FleetSpec(instances, 64 * MIB, role=ROLE, disk_bytes=disk_bytes)

    def led(self) -> Disks:
        self.lead()
        self.subscribe()
        return self

    def disk_offer(self, agent_id: str, *, disk_bytes: int = 4 * DISK, **fields: Any) -> Offer:
        made = self.make_offer(agent_id, role=ROLE, **fields)
        return replace(made, resources=replace(made.resources, disk_bytes=disk_bytes))

    def bring(self, agent_id: str, **fields: Any) -> a.Frame:
        return self.do(ev.OffersReceived((self.disk_offer(agent_id, **fields),)))

    def operated(
        self, volume_id: int, kind: str, state: str, *, uuid: bytes = b"", attempt: str = ""
    ) -> a.Frame:
        name = operation_id(CLUSTER, volume_id, kind, attempt)
        return self.do(ev.OperationUpdated(OperationStatus(name, state, "agent-1", "because", uuid)))

    def end(self, slot_id: int = 1) -> None:
        """The slot's executor ends, and its back-off passes."""
        launch = self.launch(slot_id)
        self.status(launch.task_id, "TASK_FAILED", agent_id=launch.agent_id)
        self.tick(self.settings.relaunch_delay_ms_min)

    def with_volume(self) -> Disks:
        """Slot 1 runs on agent-1 with volume 1."""
        self.led()
        self.bring("agent-1")
        self.operated(1, CREATE, "OPERATION_FINISHED")
        self.beat(self.launch(1), whole=True)
        self.tick()
        return self

    def miss(self, agent_id: str = "agent-1", times: int = 4) -> list[a.Frame]:
        """The agent offers what it has, without volumes, every few seconds."""
        frames = []
        for _ in range(times):
            frames += [self.bring(agent_id), self.tick(2_500)]
        return frames

    def fleet_set(self, **changes: Any) -> a.Answer:
        assert self.catalog.fleet is not None
        answer = self.ask(ev.FleetRequested(7, replace(self.catalog.fleet, **changes)))
        return answer


def offered(volume_id: int, *, disk_bytes: int = DISK, cluster: bytes = CLUSTER) -> OfferedVolume:
    return OfferedVolume(cluster.hex(), volume_id, ROLE, disk_bytes)


def reserved(volume_id: int, *, disk_bytes: int = DISK) -> OfferedReservation:
    return OfferedReservation(CLUSTER.hex(), volume_id, ROLE, disk_bytes)

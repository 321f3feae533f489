"""Persistent volumes as the catalog knows them, and the names that tell ours from others' on Mesos.

A volume is PLANNED before the ACCEPT that makes it, READY once it was seen or its operation finished, and DOOMED once
somebody asked for less than there is: nothing else destroys one. A slot has one at most; one without a slot is kept
for the slot that comes to its agent next, and forgotten if that agent is away for very long.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from stoker.framework.core import entries as e

LABEL_CLUSTER = "stoker_cluster"
LABEL_VOLUME = "stoker_volume"
CONTAINER_PATH = "ssd"  # of a volume in its executor's sandbox

VolumeEntry = (
    e.VolumePlanned
    | e.VolumeReady
    | e.VolumeFailed
    | e.VolumeReleased
    | e.VolumeAdopted
    | e.VolumeMoved
    | e.VolumeDoomed
    | e.VolumeRemoved
    | e.VolumesForgotten
)


class VolumeState(enum.StrEnum):
    PLANNED = "PLANNED"
    READY = "READY"
    DOOMED = "DOOMED"


class Volume(NamedTuple):
    """`slot_id` 0: nobody's, since `left_ms`. `reason`: why it was given up, or is doomed."""

    volume_id: int
    slot_id: int
    agent_id: str
    hostname: str
    role: str
    disk_bytes: int
    state: VolumeState
    reason: str = ""
    left_ms: int = 0


class Volumes(dict[int, Volume]):
    """The table by volume id, with what is looked up by slot and by agent."""

    def __init__(self, known: Mapping[int, Volume] = MappingProxyType({})) -> None:
        super().__init__()
        self._of_slots: dict[int, int] = {}
        self._on_agents: dict[str, tuple[int, ...]] = {}
        for volume in known.values():
            self._put(volume)

    def copy(self) -> Volumes:
        return Volumes(self)

    def of_slot(self, slot_id: int) -> Volume | None:
        """Return the volume that is this slot's, planned or ready."""
        volume_id = self._of_slots.get(slot_id)
        return None if volume_id is None else self[volume_id]

    def on_agent(self, agent_id: str) -> list[Volume]:
        volume_ids = self._on_agents.get(agent_id)
        return [self[volume_id] for volume_id in volume_ids] if volume_ids else []

    def apply(self, entry: VolumeEntry) -> None:
        """Change the table as `entry` says."""
        if isinstance(entry, e.VolumePlanned):
            assert entry.volume_id not in self, entry
            return self._put(Volume(*entry[:6], VolumeState.PLANNED))
        if isinstance(entry, e.VolumesForgotten):
            for volume_id in entry.volume_ids:
                self._take(volume_id)
            return None
        volume = self._take(entry.volume_id)
        match entry:
            case e.VolumeReady():
                self._put(volume._replace(state=VolumeState.READY))
            case e.VolumeReleased():
                self._put(volume._replace(slot_id=0, reason=entry.reason, left_ms=entry.wall_ms))
            case e.VolumeAdopted():
                assert volume.state is not VolumeState.DOOMED, entry
                self._put(volume._replace(slot_id=entry.slot_id, reason="", left_ms=0))
            case e.VolumeMoved():
                self._put(volume._replace(agent_id=entry.agent_id, hostname=entry.hostname))
            case e.VolumeDoomed():
                self._put(
                    volume._replace(
                        slot_id=0, state=VolumeState.DOOMED, reason=entry.reason, left_ms=entry.wall_ms
                    )
                )

    def _put(self, volume: Volume) -> None:
        self[volume.volume_id] = volume
        self._on_agents[volume.agent_id] = (*self._on_agents.get(volume.agent_id, ()), volume.volume_id)
        if volume.slot_id:
            assert volume.slot_id not in self._of_slots, f"slot {volume.slot_id} has a volume"
            self._of_slots[volume.slot_id] = volume.volume_id

    def _take(self, volume_id: int) -> Volume:
        volume = self.pop(volume_id)
        if self._of_slots.get(volume.slot_id) == volume_id:
            del self._of_slots[volume.slot_id]
        others = tuple(i for i in self._on_agents.pop(volume.agent_id) if i != volume_id)
        if others:
            self._on_agents[volume.agent_id] = others
        return volume


def persistence_id(cluster: bytes, volume_id: int) -> str:
    """Return what Mesos knows the volume by.

    >>> persistence_id(bytes(16), 7)
    'stoker-00000000-v7'
    """
    return f"stoker-{cluster.hex()[:8]}-v{volume_id}"

"""What becomes of volumes: answers to operations, volumes that vanished, those that were waited for long enough.

Operations have ids that name the volume, so an answer means something to any leader. FINISHED makes a planned volume ready, a
refusal makes it failed. UNKNOWN says nothing (an older leader may have acknowledged it): then the agent's next
offers tell, which hold the volume, or do not, again and again. Nothing here destroys a volume.
"""

from __future__ import annotations

import re

from stoker.framework.core import entries as e
from stoker.framework.core import events as ev
from stoker.framework.core.actions import AcknowledgeOperation, Action, Frame, ReconcileOperations
from stoker.framework.core.catalog import Catalog
from stoker.framework.core.fleet import Fleet
from stoker.framework.core.launches import clip, task_prefix
from stoker.framework.core.volumes import Volume, VolumeState
from stoker.framework.model import Settings

RESERVE, CREATE, DESTROY, UNRESERVE = "reserve", "create", "destroy", "unreserve"
REFUSED_STATES = frozenset({"OPERATION_ERROR", "OPERATION_FAILED", "OPERATION_DROPPED"})
GONE_STATE = "OPERATION_GONE_BY_OPERATOR"
OPERATIONS_MAX = 1_000  # of one call
_ID = re.compile(r"v(?P<volume>\d{1,19})-(?P<kind>[a-z]+)(-.*)?")


def operation_id(cluster: bytes, volume_id: int, kind: str, attempt: str = "") -> str:
    """Return what an operation on a volume is called.

    >>> operation_id(bytes(16), 7, CREATE), operation_id(bytes(16), 7, DESTROY, "e2-31")
    ('stoker-00000000-v7-create', 'stoker-00000000-v7-destroy-e2-31')
    """
    return "-".join(filter(None, (f"{task_prefix(cluster)}v{volume_id}", kind, attempt)))


def operation_of(cluster: bytes, name: str) -> tuple[int, str]:
    """Return the volume's id and the kind of an operation of ours; 0 and "" for others."""
    prefix = task_prefix(cluster)
    match = _ID.fullmatch(name.removeprefix(prefix)) if name.startswith(prefix) else None
    return (int(match["volume"]), match["kind"]) if match else (0, "")


def operation_updated(
    catalog: Catalog, fleet: Fleet, event: ev.OperationUpdated, settings: Settings
) -> Frame:
    """Note what became of a volume; acknowledge."""
    status = event.status
    volume_id, kind = operation_of(catalog.cluster, status.operation_id)
    volume = catalog.volumes.get(volume_id)
    entries: list[e.Entry] = []
    if volume is not None and not fleet.newer_journal:
        entries += _operated(volume, kind, status.state, clip(status.message, settings.error_bytes_max))
    actions: list[Action] = []
    if status.uuid:
        actions.append(AcknowledgeOperation(status.operation_id, status.agent_id, status.uuid))
    return Frame(tuple(entries), tuple(actions))


def _operated(volume: Volume, kind: str, state: str, message: str) -> list[e.Entry]:
    if state == GONE_STATE:
        return _forget(volume, f"agent {volume.hostname} is gone for good")
    is_finished = state == "OPERATION_FINISHED"
    if volume.state is VolumeState.PLANNED:
        if kind == CREATE and is_finished:
            return [e.VolumeReady(volume.volume_id)]
        if kind in (RESERVE, CREATE) and state in REFUSED_STATES:
            return [e.VolumeFailed(volume.volume_id, f"{kind} on {volume.hostname}: {message or state}")]
    if volume.state is VolumeState.DOOMED and kind == UNRESERVE and is_finished:
        return [e.VolumeRemoved(volume.volume_id)]
    return []


def _forget(volume: Volume, reason: str) -> list[e.Entry]:
    if volume.state is VolumeState.DOOMED:
        return [e.VolumeRemoved(volume.volume_id)]
    return [e.VolumeFailed(volume.volume_id, reason)]


def task_updated(catalog: Catalog, fleet: Fleet, event: ev.TaskUpdated) -> Frame:
    """A task that runs has its volume; an agent that was marked gone never brings one back."""
    launch = catalog.launch_of_task(event.status.task_id)
    volume = catalog.volumes.get(launch.volume_id) if launch is not None else None
    if volume is None or fleet.newer_journal:
        return Frame()
    if event.status.state == "TASK_GONE_BY_OPERATOR":
        return Frame(tuple(_forget(volume, f"agent {volume.hostname} is gone for good")))
    if volume.state is VolumeState.PLANNED and event.status.state in ("TASK_STARTING", "TASK_RUNNING"):
        return Frame((e.VolumeReady(volume.volume_id),))
    return Frame()


def converge(catalog: Catalog, fleet: Fleet, stamp: ev.Stamp, settings: Settings) -> Frame:
    """On a tick: forget what vanished, give up what was waited for long enough, ask what became of operations."""
    if not fleet.subscribed or fleet.newer_journal or not catalog.volumes:
        return Frame()
    entries: list[e.Entry] = []
    for volume in catalog.volumes.values():
        if len(entries) >= settings.launches_frame_max:
            break
        entries += _vanished(catalog, fleet, volume, stamp, settings)
    return Frame(tuple(entries), tuple(_questions(catalog, fleet, stamp)))


def _vanished(
    catalog: Catalog, fleet: Fleet, volume: Volume, stamp: ev.Stamp, settings: Settings
) -> list[e.Entry]:
    if fleet.sightings.is_gone(volume.volume_id, stamp.now_ms):
        return _forget(volume, f"agent {volume.hostname} offers what it has without the volume: it is gone")
    slot = catalog.slots.get(volume.slot_id)
    if slot is None or slot.launch_id:
        return []
    if volume.agent_id in catalog.drains:
        return [e.VolumeReleased(volume.volume_id, f"agent {volume.hostname} is drained")]
    empty_ms = fleet.empty_ms(slot.slot_id, stamp.now_ms)
    if empty_ms <= settings.volume_patience_ms:
        return []
    why = f"slot {slot.slot_id} could not be launched on {volume.hostname} for {empty_ms // 1000} s"
    return [e.VolumeReleased(volume.volume_id, why)]


def _questions(catalog: Catalog, fleet: Fleet, stamp: ev.Stamp) -> list[Action]:
    if stamp.now_ms < fleet.sightings.operations_next_ms:
        return []
    asked = [
        (operation_id(catalog.cluster, volume.volume_id, CREATE), volume.agent_id)
        for volume in catalog.volumes.values()
        if volume.state is VolumeState.PLANNED
    ]
    return [ReconcileOperations(tuple(asked[:OPERATIONS_MAX]))] if asked else []

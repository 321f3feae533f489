"""What becomes of volumes: answers to operations, volumes that vanished, those that were waited for long enough.

Operations have ids that name the volume, so an answer means something to any leader. FINISHED makes a planned volume ready, a
refusal makes it failed. UNKNOWN says nothing while the master is new, or the launch lives (an older leader may have acknowledged
it): then the agent's next offers tell, which hold the volume, or do not, again and again. Nothing here destroys a volume, also
not those that are forgotten: one that comes back all the same is one that the catalog does not know.
"""

from __future__ import annotations

import re

from stoker.framework.core import entries as e
from stoker.framework.core import events as ev
from stoker.framework.core.actions import AcknowledgeOperation, Action, Frame, ReconcileOperations
from stoker.framework.core.catalog import Catalog
from stoker.framework.core.fleet import Fleet
from stoker.framework.core.launches import clip, now_wall_ms, task_prefix
from stoker.framework.core.leftovers import LOST_MS, is_away
from stoker.framework.core.volumes import Volume, VolumeState
from stoker.framework.model import Offer, Settings

RESERVE, CREATE, DESTROY, UNRESERVE = "reserve", "create", "destroy", "unreserve"
REFUSED_STATES = frozenset({"OPERATION_ERROR", "OPERATION_FAILED", "OPERATION_DROPPED"})
GONE_STATE = "OPERATION_GONE_BY_OPERATOR"
OPERATIONS_MAX = 1_000  # of one call
FORGOTTEN_FRAME_MAX = 1_000
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
    catalog: Catalog, fleet: Fleet, stamp: ev.Stamp, event: ev.OperationUpdated, settings: Settings
) -> Frame:
    """Note what became of a volume; acknowledge."""
    status = event.status
    volume_id, kind = operation_of(catalog.cluster, status.operation_id)
    volume = catalog.volumes.get(volume_id)
    entries: list[e.Entry] = []
    if volume is not None and not fleet.newer_journal:
        entries += _operated(volume, kind, status.state, clip(status.message, settings.error_bytes_max))
        if kind == CREATE and status.state == "OPERATION_UNKNOWN":
            entries += _unknown(catalog, fleet, volume, stamp, settings)
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


def _unknown(
    catalog: Catalog, fleet: Fleet, volume: Volume, stamp: ev.Stamp, settings: Settings
) -> list[e.Entry]:
    """A master that has been there for long knows every operation that was begun: this one never was."""
    is_live = any(launch.volume_id == volume.volume_id for launch in catalog.launches.values())
    is_believed = stamp.now_ms - fleet.master_since_ms >= settings.unknown_patience_ms
    if volume.state is not VolumeState.PLANNED or is_live or not is_believed:
        return []
    return [e.VolumeFailed(volume.volume_id, f"Mesos knows nothing of its making on {volume.hostname}")]


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


def moved(catalog: Catalog, fleet: Fleet, stamp: ev.Stamp, settings: Settings) -> Frame:
    """Follow volumes whose agents came back under other ids: a volume is its label, wherever it is."""
    if fleet.newer_journal:
        return Frame()
    cluster = catalog.cluster.hex()
    seen: dict[int, Offer] = {}
    for offer in fleet.offers.values():
        for volume in offer.volumes:
            known = catalog.volumes.get(volume.volume_id) if volume.cluster == cluster else None
            if known is not None and known.role == offer.role and offer.agent_id != known.agent_id:
                seen[volume.volume_id] = offer
    entries: list[e.Entry] = []
    in_use = {launch.volume_id for launch in catalog.launches.values()} if seen else set()
    for volume_id, offer in seen.items():
        if volume_id in in_use or len(entries) >= settings.launches_frame_max:
            continue
        entries.append(e.VolumeMoved(volume_id, offer.agent_id, offer.hostname))
        others = [v for v in catalog.volumes.on_agent(offer.agent_id) if v.slot_id]
        if catalog.volumes[volume_id].slot_id and (others or catalog.launch_on_agent(offer.agent_id)):
            why = f"agent {offer.agent_id}, with which it came back, has an executor of another slot"
            entries.append(e.VolumeReleased(volume_id, why, now_wall_ms(catalog, stamp)))
    return Frame(tuple(entries))


def converge(catalog: Catalog, fleet: Fleet, stamp: ev.Stamp, settings: Settings) -> Frame:
    """On a tick: forget what vanished, give up what was waited for long enough, ask what became of operations."""
    if not fleet.subscribed or fleet.newer_journal or not catalog.volumes:
        return Frame()
    frame = moved(catalog, fleet, stamp, settings)
    if frame.entries:
        return frame
    entries: list[e.Entry] = []
    for volume in catalog.volumes.values():
        if len(entries) >= settings.launches_frame_max:
            break
        entries += _vanished(catalog, fleet, volume, stamp, settings)
    if not entries:
        entries += _forgotten(catalog, fleet, stamp, settings)
    return Frame(tuple(entries), tuple(_questions(catalog, fleet, stamp)))


def _vanished(
    catalog: Catalog, fleet: Fleet, volume: Volume, stamp: ev.Stamp, settings: Settings
) -> list[e.Entry]:
    if fleet.sightings.is_gone(volume.volume_id, stamp.now_ms):
        return _forget(volume, f"agent {volume.hostname} offers what it has without the volume: it is gone")
    slot = catalog.slots.get(volume.slot_id)
    if slot is None or slot.launch_id:
        return []
    wall_ms = now_wall_ms(catalog, stamp)
    if volume.agent_id in catalog.drains:
        return [e.VolumeReleased(volume.volume_id, f"agent {volume.hostname} is drained", wall_ms)]
    empty_ms = fleet.empty_ms(slot.slot_id, stamp.now_ms)
    if empty_ms <= settings.volume_patience_ms:
        return []
    why = f"slot {slot.slot_id} could not be launched on {volume.hostname} for {empty_ms // 1000} s"
    return [e.VolumeReleased(volume.volume_id, why, wall_ms)]


def _forgotten(catalog: Catalog, fleet: Fleet, stamp: ev.Stamp, settings: Settings) -> list[e.Entry]:
    """Forget volumes that no slot has for very long and whose agents made no offer since this leader listens."""
    if stamp.now_ms - fleet.sightings.subscribed_ms < LOST_MS:
        return []
    before_ms = now_wall_ms(catalog, stamp) - settings.volumes_kept_ms
    old = [
        volume.volume_id
        for volume in catalog.volumes.values()
        if not volume.slot_id
        and 0 < volume.left_ms < before_ms
        and is_away(fleet, volume)
        and catalog.launch_on_agent(volume.agent_id) is None
    ]
    return [e.VolumesForgotten(tuple(old[:FORGOTTEN_FRAME_MAX]))] if old else []


def _is_idle(catalog: Catalog, volume: Volume) -> bool:
    slot = catalog.slots.get(volume.slot_id)
    return slot is None or not slot.launch_id


def _questions(catalog: Catalog, fleet: Fleet, stamp: ev.Stamp) -> list[Action]:
    if stamp.now_ms < fleet.sightings.operations_next_ms:
        return []
    asked = [
        (operation_id(catalog.cluster, volume.volume_id, CREATE), volume.agent_id)
        for volume in catalog.volumes.values()
        if volume.state is VolumeState.PLANNED or (is_away(fleet, volume) and _is_idle(catalog, volume))
    ]
    return [ReconcileOperations(tuple(asked[:OPERATIONS_MAX]))] if asked else []

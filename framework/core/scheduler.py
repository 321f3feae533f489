"""decide(): the one place where an event becomes decisions. One `match`; each concern is a module of its own.

`decide` reads catalog and fleet, and changes nothing: entries and actions of its frame do. It has no clock (the stamp
carries it) and no chance. It takes bounded slices of its work, so that a frame fits a batch of the journal: what is
left is found again at the next tick, from the difference of catalog and fleet.
"""

from __future__ import annotations

from stoker.framework.core import (
    datasets,
    draining,
    executors,
    jobs,
    launches,
    maintenance,
    matching,
    operations,
    publishing,
    requests,
    uninstalling,
)
from stoker.framework.core import events as ev
from stoker.framework.core.actions import Frame
from stoker.framework.core.catalog import Catalog
from stoker.framework.core.codec import encode_entry
from stoker.framework.core.fleet import ADDRESSES_AT_ONCE_MAX, Fleet
from stoker.framework.model import Settings
from stoker.zk.journal import BATCH_BYTES_MAX


def decide(  # noqa: C901 (one flat match, a line an event)
    catalog: Catalog, fleet: Fleet, stamp: ev.Stamp, event: ev.Event, settings: Settings
) -> Frame:
    """Return what follows from `event`, which `fleet` has observed already."""
    match event:
        case ev.HeartbeatReceived():
            answer = executors.answer_heartbeat(catalog, fleet, stamp, event)
            is_small = len(catalog.slots) <= ADDRESSES_AT_ONCE_MAX  # else the next tick looks, once for all
            published = fleet.listed and is_small
            return join(answer, publishing.publish(catalog, fleet, stamp)) if published else answer
        case ev.OffersReceived():
            followed = operations.moved(catalog, fleet, stamp, settings)
            if followed.entries:  # the next tick matches these offers with volumes as they are then
                return followed
            return matching.match_offers(catalog, fleet, stamp, settings)
        case ev.TaskUpdated():
            told = operations.task_updated(catalog, fleet, event)
            return join(told, launches.task_updated(catalog, fleet, stamp, event, settings))
        case ev.OperationUpdated():
            return operations.operation_updated(catalog, fleet, stamp, event, settings)
        case ev.ExecutorEnded():
            return launches.executor_ended(catalog, stamp, event)
        case ev.AgentRemoved():
            return launches.agent_removed(catalog, fleet, stamp, event, settings)
        case ev.Ticked():
            return _ticked(catalog, fleet, stamp, settings)
        case ev.LeadershipBegan():
            return launches.leadership_began(catalog, stamp, event, settings)
        case ev.Subscribed():
            return launches.subscribed(catalog, fleet, stamp, event, settings)
        case ev.ListingFinished():
            return datasets.listing_finished(catalog, fleet, stamp, event, settings)
        case ev.FleetRequested() if catalog.uninstall is not None:
            refusal = requests.uninstalling(
                "no executor is launched any more; see how far it is: GET /v1/uninstall"
            )
            return datasets.refuse(event.reply_id, refusal)
        case ev.FleetRequested():
            return launches.fleet_requested(catalog, fleet, stamp, event, settings)
        case ev.DatasetRequested():
            return datasets.dataset_requested(catalog, fleet, stamp, event, settings)
        case ev.DatasetChangeRequested():
            return datasets.change_requested(catalog, fleet, stamp, event, settings)
        case ev.RefreshRequested():
            return datasets.refresh_requested(catalog, fleet, stamp, event, settings)
        case ev.DatasetRemovalRequested():
            return datasets.removal_requested(catalog, fleet, stamp, event)
        case ev.JobRequested():
            return jobs.job_requested(catalog, fleet, stamp, event, settings)
        case ev.JobCancelRequested():
            return jobs.cancel_requested(catalog, fleet, stamp, event)
        case ev.InverseOffersReceived():
            return maintenance.converge(catalog, fleet, stamp, settings)
        case ev.DrainRequested():
            return draining.drain_requested(catalog, fleet, stamp, event, settings)
        case ev.DrainUndoRequested():
            return draining.undo_requested(catalog, fleet, stamp, event)
        case ev.UninstallRequested():
            return uninstalling.uninstall_requested(catalog, fleet, stamp, event)
        case ev.FrameworkRemoved():
            return uninstalling.framework_removed(catalog, stamp, settings)
        case ev.TornDown():
            return uninstalling.torn_down(catalog, stamp)
        case (
            ev.Disconnected()
            | ev.OfferRescinded()
            | ev.InverseOfferRescinded()
            | ev.ListingProgressed()
            | ev.ExecutorProbed()
        ):
            return Frame()  # what was observed counts at the next tick


def _ticked(catalog: Catalog, fleet: Fleet, stamp: ev.Stamp, settings: Settings) -> Frame:
    frame = _converged(catalog, fleet, stamp, settings)
    if not frame.entries:  # matching sees the slots and launches as they will be
        frame = join(frame, matching.match_offers(catalog, fleet, stamp, settings))
    frame = join(
        frame,
        launches.repeat_kills(fleet, stamp, settings),
        matching.introduce(catalog, fleet),
        launches.reconcile(fleet, stamp, settings),
        datasets.converge(catalog, fleet, settings),
    )
    for part in (publishing.publish(catalog, fleet, stamp), jobs.converge(catalog, fleet, stamp, settings)):
        # Each fits a batch of the journal, and all of them may not: what has no room comes with the next tick.
        if not part.entries or _entries_bytes(frame) + _entries_bytes(part) <= BATCH_BYTES_MAX:
            frame = join(frame, part)
    return frame


def _entries_bytes(frame: Frame) -> int:
    return sum(len(encode_entry(entry)) for entry in frame.entries)


def _converged(catalog: Catalog, fleet: Fleet, stamp: ev.Stamp, settings: Settings) -> Frame:
    """Bring slots, launches and volumes towards what is wanted: one concern's entries a tick, since they share those."""
    wishes = (launches.converge, operations.converge, maintenance.converge, draining.converge)
    frame = Frame()
    for converge in (
        uninstalling.converge,
        *(wishes if catalog.uninstall is None else (operations.converge,)),
    ):
        if not frame.entries:
            frame = join(frame, converge(catalog, fleet, stamp, settings))
    return frame


def join(*frames: Frame) -> Frame:
    """Return the frames as one; none may touch what another changes."""
    return Frame(
        tuple(entry for frame in frames for entry in frame.entries),
        tuple(action for frame in frames for action in frame.actions),
    )

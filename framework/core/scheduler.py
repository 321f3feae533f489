"""decide(): the one place where an event becomes decisions. One `match`; each concern is a module of its own.

`decide` reads catalog and fleet, and changes nothing: entries and actions of its frame do. It has no clock (the stamp
carries it) and no chance. It takes bounded slices of its work, so that a frame fits a batch of the journal: what is
left is found again at the next tick, from the difference of catalog and fleet.
"""

from __future__ import annotations

from stoker.framework.core import datasets, executors, jobs, launches, matching, publishing
from stoker.framework.core import events as ev
from stoker.framework.core.actions import Frame
from stoker.framework.core.catalog import Catalog
from stoker.framework.core.fleet import ADDRESSES_AT_ONCE_MAX, Fleet
from stoker.framework.model import Settings


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
            return matching.match_offers(catalog, fleet, stamp, settings)
        case ev.TaskUpdated():
            return launches.task_updated(catalog, fleet, stamp, event, settings)
        case ev.ExecutorEnded():
            return launches.executor_ended(catalog, stamp, event)
        case ev.AgentRemoved():
            return launches.agent_removed(catalog, fleet, stamp, event)
        case ev.Ticked():
            return _ticked(catalog, fleet, stamp, settings)
        case ev.LeadershipBegan():
            return launches.leadership_began(catalog, stamp, event, settings)
        case ev.Subscribed():
            return launches.subscribed(catalog, fleet, stamp, event, settings)
        case ev.ListingFinished():
            return datasets.listing_finished(catalog, fleet, stamp, event, settings)
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
        case ev.Disconnected() | ev.OfferRescinded() | ev.ListingProgressed():
            return Frame()


def _ticked(catalog: Catalog, fleet: Fleet, stamp: ev.Stamp, settings: Settings) -> Frame:
    frame = launches.converge(catalog, fleet, stamp, settings)
    if not frame.entries:  # matching sees the slots and launches as they will be
        frame = join(frame, matching.match_offers(catalog, fleet, stamp, settings))
    return join(
        frame,
        launches.reconcile(fleet, stamp, settings),
        datasets.converge(catalog, fleet, settings),
        publishing.publish(catalog, fleet, stamp),
        jobs.converge(catalog, fleet, stamp, settings),
    )


def join(*frames: Frame) -> Frame:
    """Return the frames as one; none may touch what another changes."""
    return Frame(
        tuple(entry for frame in frames for entry in frame.entries),
        tuple(action for frame in frames for action in frame.actions),
    )

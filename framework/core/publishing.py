"""When a new dataset may be read: once nobody can be served an earlier dataset of its name.

Theory of operation. Names are used again, ids are not. Between the removal of a dataset and the next heartbeat of an
executor, that executor serves the removed id, and readers on its host hold descriptors of it. So the listing of a new
dataset whose name was used before is held back (it is LISTING, with the reason as its message) until every executor that
may know an earlier one has said, in a heartbeat of this epoch, that it has *cleared* an assignment at least as new as the
one that was current when the listing began: by then the catalog had forgotten the earlier dataset.

    an executor that was heard in this leadership            waits for its heartbeat's `cleared_version`
    a launch of before the take-over, not heard yet          waits: it may have any earlier dataset
    a launch of this leadership, not heard yet               knows nothing: its first assignment is still to come
    a launch that was ended and may live yet                 waits until Mesos says that it is over, or for a while
    launches that were ended before the take-over            waits for that while after it: their ends are not known here

Nothing of this is journaled but the names that were used: a new leader asks all executors anew, by its epoch.
"""

from __future__ import annotations

import itertools

from stoker.framework.core import entries as e
from stoker.framework.core import events as ev
from stoker.framework.core.actions import Frame
from stoker.framework.core.assignments import assignment_version
from stoker.framework.core.catalog import Catalog, Dataset
from stoker.framework.core.fleet import Fleet
from stoker.framework.core.seen import Listed

PUBLISHED_FRAME_MAX = 200  # many may have waited for the same executor; a frame fits a batch of the journal


def clear_version(catalog: Catalog, fleet: Fleet, dataset: Dataset) -> int:
    """Return the version of an assignment that names no earlier dataset of the name; 0: there is none to wait for."""
    if dataset.current is not None or not catalog.was_used(dataset.name):
        return 0
    return assignment_version(catalog, fleet)


def publish(catalog: Catalog, fleet: Fleet, stamp: ev.Stamp) -> Frame:
    """Journal the first listings of datasets that may be read from now on; what is too much waits for the next tick."""
    wall_ms = max(stamp.wall_ms, catalog.wall_ms)
    free = (
        e.DatasetListed(dataset_id, listed.manifested, wall_ms)
        for dataset_id, listed in sorted(fleet.listed.items(), key=lambda item: item[0])
        if not _holder(catalog, fleet, listed, stamp.now_ms)
    )
    return Frame(tuple(itertools.islice(free, PUBLISHED_FRAME_MAX)))


def waits_for(catalog: Catalog, fleet: Fleet, dataset: Dataset, now_ms: int) -> str:
    """Return why a dataset whose listing is over is not READY; empty: it is, or its listing goes on."""
    listed = fleet.listed.get(dataset.dataset_id)
    holder = "" if listed is None else _holder(catalog, fleet, listed, now_ms)
    return (
        holder
        and f"listed; waits until nobody can read a dataset that may have had this name before: {holder}"
    )


def _holder(catalog: Catalog, fleet: Fleet, listed: Listed, now_ms: int) -> str:
    """Return who may still serve an earlier dataset of the name. O(launches)."""
    if not listed.clear_version:
        return ""
    needed = (catalog.epoch, listed.clear_version)
    for launch_id, launch in fleet.launches.items():
        seen = fleet.executors.get(launch_id)
        if seen is None and launch.is_inherited:
            return f"slot {launch.launch.slot_id} was not heard since the take-over"
        if seen is not None and (seen.heartbeat.epoch_seen, seen.heartbeat.cleared_version) < needed:
            silent_ms = fleet.silent_ms(seen, now_ms)
            return f"slot {launch.launch.slot_id} has not let go of it yet, heard {silent_ms} ms ago"
    grace_ms = fleet.settings.ending_grace_ms
    for task_id, ending in sorted(fleet.endings.items()):
        if now_ms - ending.since_ms < grace_ms:
            return f"task {task_id} is being ended"
    left_ms = grace_ms - (now_ms - fleet.began_ms)
    if fleet.may_have_strays and left_ms > 0:
        return f"an executor that was given up before the take-over may live for {left_ms} ms yet"
    return ""

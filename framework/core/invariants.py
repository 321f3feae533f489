"""What must always hold of promised and observed state. For tests, the simulation, and the story of a crash."""

from __future__ import annotations

import numpy as np

from stoker.executor.messages import NO_HOME
from stoker.framework.core.catalog import Catalog
from stoker.framework.core.fleet import Fleet
from stoker.framework.core.progress import job_progress
from stoker.framework.core.rules import merge_rules, normalise_rules
from stoker.framework.model import DatasetState, JobKind, JobState


def check(catalog: Catalog, fleet: Fleet) -> None:
    """:raises AssertionError: an invariant does not hold; the message says which and where."""
    _check_slots(catalog)
    _check_volumes(catalog)
    _check_datasets(catalog)
    _check_jobs(catalog)
    check_fleet(catalog, fleet)


def check_fleet(catalog: Catalog, fleet: Fleet) -> None:
    """As `check`, of what is observed alone: for an event that changed nothing that is promised."""
    assert fleet.subscribed or not fleet.offers, "offers without a subscription"
    for launch_id, seen in fleet.executors.items():
        assert seen.heartbeat.launch_id == launch_id, f"launch {launch_id} is filed under another"
    assert len(fleet.decisions) <= fleet.settings.offers_kept_max
    assert len(fleet.listings) <= fleet.settings.listings_running_max
    _check_progress(catalog, fleet)


def _check_slots(catalog: Catalog) -> None:
    seen: dict[str, int] = {}
    for launch in catalog.launches.values():
        slot = catalog.slots.get(launch.slot_id)
        assert slot is not None, f"launch {launch.launch_id} is of slot {launch.slot_id}, which is gone"
        assert slot.launch_id == launch.launch_id, f"slot {slot.slot_id} has two launches"
        assert launch.launch_id < catalog.launch_id_next, f"launch {launch.launch_id} may be used again"
        assert launch.agent_id not in seen, f"two executors on agent {launch.agent_id}"
        seen[launch.agent_id] = launch.launch_id
        assert catalog.launch_of_task(launch.task_id) is launch, launch.task_id
    for slot in catalog.slots.values():
        assert slot.launch_id == 0 or slot.launch_id in catalog.launches, f"slot {slot.slot_id}"
        assert slot.slot_id < catalog.slot_id_next, f"slot {slot.slot_id} may be used again"


def _check_volumes(catalog: Catalog) -> None:
    for volume in catalog.volumes.values():
        where = f"volume {volume.volume_id}"
        assert volume.volume_id < catalog.volume_id_next, f"{where} may be used again"
        assert volume in catalog.volumes.on_agent(volume.agent_id), where
        if volume.slot_id:
            assert volume.slot_id in catalog.slots, f"{where} is of slot {volume.slot_id}, which is gone"
            assert catalog.volumes.of_slot(volume.slot_id) == volume, f"slot {volume.slot_id} has two volumes"
    for launch in catalog.launches.values():
        of_launch = catalog.volumes.get(launch.volume_id)
        assert of_launch is None or of_launch.agent_id == launch.agent_id, f"launch {launch.launch_id}"
        own = catalog.volumes.of_slot(launch.slot_id)
        is_own = own is None or own.volume_id == launch.volume_id
        assert is_own or not launch.volume_id, f"slot {launch.slot_id} is not on its volume"


def _check_datasets(catalog: Catalog) -> None:
    names = [dataset.name for dataset in catalog.datasets.values()]
    assert len(set(names)) == len(names), "two datasets of one name"
    for dataset in catalog.datasets.values():
        where = f"dataset {dataset.dataset_id} ({dataset.name})"
        assert catalog.dataset_named(dataset.name) is dataset, where
        assert dataset.dataset_id < catalog.dataset_id_next, f"{where} may be used again"
        assert (dataset.state == DatasetState.READY) == bool(dataset.versions), where
        assert dataset.is_listing or dataset.state != DatasetState.LISTING, f"{where}: nobody lists it"
        assert dataset.rules == normalise_rules(dataset.rules), f"{where}: rules are not normalised"
        rules = catalog.base_rules.of(dataset.dataset_id)
        for job in catalog.jobs_of(dataset.dataset_id):
            if job.state != JobState.CANCELLED:
                rules = merge_rules(rules, job.kind == JobKind.LOAD, job.paths)
        assert dataset.rules == rules, f"{where}: wanted is not what its jobs wish"
        _check_homes(catalog, dataset.dataset_id)


def _check_homes(catalog: Catalog, dataset_id: int) -> None:
    dataset = catalog.datasets[dataset_id]
    if dataset.current is None:
        return
    slots = [slot for slot in catalog.slot_order() if not catalog.is_out(slot.slot_id)]
    in_count = len(slots)
    homes = catalog.homes(dataset)
    assert homes.shape == (dataset.replicas, dataset.current.pg_count), homes.shape
    copies = min(dataset.replicas, sum(slot.tier_bytes(dataset.tier) > 0 for slot in slots))
    unable = [place for place, slot in enumerate(slots) if not slot.tier_bytes(dataset.tier)]
    assert not np.isin(homes, unable).any(), f"dataset {dataset_id} has a home without its tier"
    assert (homes[:copies] < max(1, in_count)).all(), f"dataset {dataset_id} has a PG without a home"
    assert (homes[copies:] == NO_HOME).all(), f"dataset {dataset_id} has homes beyond its slots"
    ordered = np.sort(homes[:copies], axis=0)
    assert (ordered[1:] != ordered[:-1]).all(), f"dataset {dataset_id} has two replicas on one slot"


def _check_jobs(catalog: Catalog) -> None:
    active = {job.job_id for job in catalog.active_jobs()}
    for job in catalog.jobs.values():
        where = f"job {job.job_id}"
        assert (job.job_id in active) == (not job.state.is_final), where
        is_of_dataset = job.kind != JobKind.DRAIN
        has_dataset = job.dataset_id in catalog.datasets or not is_of_dataset
        assert job.state.is_final or has_dataset, f"{where} has no dataset"
        assert not job.key or catalog.job_of_key(job.key) == job, f"{where}: its key leads elsewhere"
        dataset = catalog.datasets.get(job.dataset_id)
        assert dataset is None or job.wanted_version <= dataset.wanted_version, where


def _check_progress(catalog: Catalog, fleet: Fleet) -> None:
    """What is remembered of the jobs' progress is what it comes to when it is counted from the beginning."""
    remembered = {job.job_id: job_progress(catalog, fleet, job) for job in catalog.active_jobs()}
    kept, fleet.reports = fleet.reports, {}
    try:
        for job in catalog.active_jobs():
            counted = job_progress(catalog, fleet, job)
            assert remembered[job.job_id] == counted, (
                f"job {job.job_id}: {remembered[job.job_id]}, not {counted}"
            )
    finally:
        fleet.reports = kept

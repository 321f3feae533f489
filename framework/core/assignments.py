"""What executors are told: the assignment, and whether they still have a place.

One assignment serves all executors: placement, slot table, datasets and what is wanted of them. Its version is the sum
of two counters that only grow within an epoch, the catalog's and the fleet's, so (epoch, version) decides which of two
is newer. Each executor finds its own part by its slot's position.
"""

from __future__ import annotations

from stoker.executor.messages import Assignment, DatasetAssignment
from stoker.framework.core.catalog import Catalog, Dataset
from stoker.framework.core.fleet import Fleet
from stoker.framework.core.spares import Hints


def assignment_version(catalog: Catalog, fleet: Fleet) -> int:
    """Return the version that `build_assignment` would give now; at least 1."""
    return 1 + catalog.revision + fleet.revision


def current_assignment(catalog: Catalog, fleet: Fleet) -> Assignment:
    """Return the assignment as state is now: the same object until its version grows."""
    found = fleet.assignment_memo  # remembered work, no state: it could be built anew each time
    if found is None or (found.epoch, found.version) != (catalog.epoch, assignment_version(catalog, fleet)):
        found = fleet.assignment_memo = build_assignment(catalog, fleet)
    return found


def build_assignment(catalog: Catalog, fleet: Fleet) -> Assignment:
    """Return the assignment as state is now. Equal versions within an epoch are equal values."""
    catalog.place_all()
    return Assignment(
        epoch=catalog.epoch,
        version=assignment_version(catalog, fleet),
        placement_version=catalog.placement_version,
        residency_complete=fleet.residency_complete,
        slots=tuple(fleet.address(catalog, slot.slot_id) for slot in catalog.slot_order()),
        datasets=tuple(
            _dataset_assignment(catalog, dataset, fleet.spares.of(dataset.dataset_id))
            for dataset in catalog.datasets.values()
            if dataset.current is not None
        ),
    )


def _dataset_assignment(catalog: Catalog, dataset: Dataset, hints: Hints) -> DatasetAssignment:
    current = dataset.current
    assert current is not None
    return DatasetAssignment(
        dataset_id=dataset.dataset_id,
        name=dataset.name,
        generation=current.generation,
        version=current.version,
        digest=current.digest,
        source=dataset.source,
        options=dict(dataset.options),
        policy=dataset.policy,
        priority=dataset.priority,
        block_bytes=current.block_bytes,
        pg_count=current.pg_count,
        replicas=dataset.replicas,
        homes=catalog.homes(dataset).astype("<u2").tobytes(),
        wanted=dataset.rules,
        wanted_version=dataset.wanted_version,
        allotment_bytes=0,
        tier=dataset.tier,
        spares=hints.spares,
        kept=hints.kept,
    )

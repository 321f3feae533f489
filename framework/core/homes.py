"""Where the datasets' PGs belong: computed when somebody asks, and remembered while what it follows from stands.

A pure function of the catalog's slots and of a dataset's shape; that it is remembered changes nothing but the time it
takes. Only slots that come, go or change size, and a dataset's own change, make it compute anew: not another dataset.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from stoker.executor.messages import NO_HOME
from stoker.framework.core.placement import PlacementSlot, place_many
from stoker.framework.model import Tier

if TYPE_CHECKING:
    from stoker.framework.core.catalog import Catalog, Dataset


class Placed(NamedTuple):
    """A dataset's `homes`, [replicas][pg_count] positions in `Catalog.slot_order`, and of how many PGs each slot is one."""

    key: tuple[int, ...]  # of what it follows from
    homes: npt.NDArray[np.uint16]
    counts: list[int]  # a slot that placement uses


class Homes:
    """What is remembered, a dataset."""

    def __init__(self, placed: dict[int, Placed] | None = None) -> None:
        self._placed = placed or {}

    def copy(self) -> Homes:
        return Homes(self._placed.copy())

    def forget(self, dataset_id: int) -> None:
        self._placed.pop(dataset_id, None)

    def of(self, catalog: Catalog, dataset: Dataset) -> Placed:
        """Return the homes of a dataset that has a version."""
        found = self._find(catalog, dataset)
        if found is None:
            self._place(catalog, [dataset])
            found = self._placed[dataset.dataset_id]
        return found

    def place_all(self, catalog: Catalog) -> None:
        """Compute what is missing: datasets of one shape together, at a fraction of the cost of one by one."""
        shapes: dict[tuple[int, int, str], list[Dataset]] = {}
        for dataset in catalog.datasets.values():
            if dataset.current is not None and self._find(catalog, dataset) is None:
                shapes.setdefault((dataset.current.pg_count, dataset.replicas, dataset.tier), []).append(
                    dataset
                )
        for datasets in shapes.values():
            self._place(catalog, datasets)

    def _find(self, catalog: Catalog, dataset: Dataset) -> Placed | None:
        found = self._placed.get(dataset.dataset_id)
        return found if found is not None and found.key == _key(catalog, dataset) else None

    def _place(self, catalog: Catalog, datasets: list[Dataset]) -> None:
        """Place datasets that have the same number of PGs and replicas, and the same tier.

        A slot without the tier is no home of theirs.
        """
        current, tier = datasets[0].current, datasets[0].tier
        assert current is not None, datasets[0].name
        slots = [catalog.slots[slot_id] for slot_id in catalog.slots_in]
        able = [place for place, slot in enumerate(slots) if slot.tier_bytes(tier)]
        placed = place_many(
            current.pg_count,
            [_placement_slot(slots[place].slot_id, slots[place].tier_bytes(tier)) for place in able],
            datasets[0].replicas,
            [_seed(dataset) for dataset in datasets],
            out=_lost(catalog, tier),
        )
        places = np.full(NO_HOME + 1, NO_HOME, dtype=np.uint16)
        places[: len(able)] = able
        for dataset, found in zip(datasets, placed, strict=True):
            homes = found if len(able) == len(slots) else places[found]
            homes.flags.writeable = False
            counts = np.bincount(homes.ravel(), minlength=len(slots))[: len(slots)].tolist()
            self._placed[dataset.dataset_id] = Placed(_key(catalog, dataset), homes, counts)


def _lost(catalog: Catalog, tier: str) -> list[PlacementSlot]:
    """Return the slots that placement lost, with their capacity of a tier as far as it is known."""
    if tier == Tier.MEM:
        return [_placement_slot(slot_id, size) for slot_id, size in catalog.slots_out.items()]
    # The disk of a slot that is gone was as those that are there have, as a rule; if not, more moves than must.
    usual = max((slot.disk_bytes for slot in catalog.slots.values()), default=0)
    slots = {slot_id: catalog.slots.get(slot_id) for slot_id in catalog.slots_out}
    sizes = {i: usual if slot is None else slot.disk_bytes for i, slot in slots.items()}
    return [_placement_slot(slot_id, size) for slot_id, size in sizes.items() if size]


def _key(catalog: Catalog, dataset: Dataset) -> tuple[int, ...]:
    current = dataset.current
    assert current is not None, dataset.name
    return catalog.slots_revision, current.generation, current.pg_count, dataset.replicas


def _seed(dataset: Dataset) -> int:
    assert dataset.current is not None
    return (dataset.dataset_id << 20) + dataset.current.generation


def _placement_slot(slot_id: int, size: int) -> PlacementSlot:
    # One executor an agent: a slot is a fault domain of its own until domains are journaled.
    return PlacementSlot(slot_id, size, str(slot_id))

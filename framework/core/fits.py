"""Will it fit? What a load would put on each slot, before the first byte.

Counted in whole blocks, as executors hold them, against the slots' capacities less what is wanted there of everything
else. What is cached but not wanted makes room and does not count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stoker.executor.block import block_layout
from stoker.executor.messages import NO_HOME
from stoker.executor.units import format_bytes
from stoker.framework.core.catalog import Catalog, Dataset, Slot
from stoker.framework.core.fleet import Fleet
from stoker.framework.model import JobKind, Manifested, Selection, Tier

MEMORY_PAGE_BYTES = 4096

_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SlotPlan:
    """What the request needs on a slot in all, and what the slot has for it; both in bytes of its tier."""

    slot_id: int
    bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Plan:
    """`wanted_block_count`: blocks of the dataset that are wanted afterwards; `reason`: why it does not fit."""

    fits: bool
    bytes: int
    files: int
    blocks: int
    free_bytes: int
    capacity_bytes: int
    slots: tuple[SlotPlan, ...]
    reason: str
    wanted_block_count: int

    def as_json(self) -> dict[str, Any]:
        return {
            "fits": self.fits,
            "bytes": self.bytes,
            "files": self.files,
            "blocks": self.blocks,
            "free_bytes": self.free_bytes,
            "capacity_bytes": self.capacity_bytes,
            "slots": [{"slot": s.slot_id, "bytes": s.bytes, "free_bytes": s.free_bytes} for s in self.slots],
            "reason": self.reason or None,
        }


def make_plan(catalog: Catalog, fleet: Fleet, dataset: Dataset, kind: str, selection: Selection) -> Plan:
    """Return what the selection would come to; a free always fits."""
    current = dataset.current
    assert current is not None
    slots = [slot for slot in catalog.slot_order() if not catalog.is_out(slot.slot_id)]
    requested = _bits(selection.requested_blocks, current.block_count)
    wanted = _bits(selection.wanted_blocks, current.block_count)
    homes = catalog.homes(dataset)
    needs = _slot_bytes(homes, requested & wanted, current, len(slots))
    rest = _slot_bytes(homes, wanted & ~requested, current, len(slots))
    others = _others_bytes(catalog, dataset, len(slots))
    capacity = np.array([_capacity_bytes(fleet, slot, dataset.tier) for slot in slots], dtype=np.int64)
    free = np.maximum(0, capacity - rest - others)
    plans = tuple(
        SlotPlan(slot.slot_id, need, room)
        for slot, need, room in zip(slots, needs.tolist(), free.tolist(), strict=True)
    )
    reason = _reason(plans, dataset.tier) if kind == JobKind.LOAD else ""
    return Plan(
        fits=not reason,
        bytes=selection.requested_bytes,
        files=selection.requested_files,
        blocks=int(requested.sum()),
        free_bytes=int(free.sum()),
        capacity_bytes=int(capacity.sum()),
        slots=plans,
        reason=reason,
        wanted_block_count=int(wanted.sum()),
    )


def wanted_blocks(dataset: Dataset) -> int:
    """Return how many blocks of the newest version are wanted, as far as it is known."""
    if dataset.current is None or not any(included for included, _ in dataset.rules):
        return 0
    if dataset.rules == ((True, ""),):
        return dataset.current.block_count
    return min(dataset.wanted_block_count, dataset.current.block_count)


def held_bytes(data_bytes: int) -> int:
    """Return the memory that a block of `data_bytes` takes, its index included."""
    return -(-block_layout(data_bytes).file_bytes // MEMORY_PAGE_BYTES) * MEMORY_PAGE_BYTES


def _capacity_bytes(fleet: Fleet, slot: Slot, tier: str) -> int:
    """Return what the slot's executor said it can hold (less than its tier: it reads through a part); else the tier."""
    seen = fleet.executors.get(slot.launch_id)
    if seen is None:
        return slot.tier_bytes(tier)
    if tier == Tier.SSD:
        return 0 if seen.heartbeat.disk is None else seen.heartbeat.disk.capacity_bytes
    return seen.heartbeat.capacity_bytes


def _bits(bitmap: bytes, count: int) -> npt.NDArray[np.bool_]:
    bits = np.unpackbits(np.frombuffer(bitmap, dtype=np.uint8), bitorder="little")[:count].astype(np.bool_)
    return np.pad(bits, (0, count - len(bits)))


def _slot_bytes(
    homes: npt.NDArray[np.uint16], blocks: npt.NDArray[np.bool_], current: Manifested, slot_count: int
) -> _Ints:
    """Return the bytes of these blocks on each slot, all replicas together."""
    indexes = np.nonzero(blocks)[0]
    sizes = np.full(len(indexes), held_bytes(current.block_bytes), dtype=np.int64)
    if len(indexes) and indexes[-1] == current.block_count - 1:
        last = current.address_bytes - (current.block_count - 1) * current.block_bytes
        sizes[-1] = held_bytes(max(1, last))
    groups = np.bincount(indexes % current.pg_count, weights=sizes, minlength=current.pg_count)
    total = np.zeros(slot_count)
    for row in homes:
        has_home = row != NO_HOME
        total += np.bincount(row[has_home], weights=groups[has_home], minlength=slot_count)
    return total.astype(np.int64)


def _others_bytes(catalog: Catalog, dataset: Dataset, slot_count: int) -> _Ints:
    total = np.zeros(slot_count)
    for other in catalog.datasets.values():
        count = wanted_blocks(other)
        if other.dataset_id == dataset.dataset_id or not count or other.current is None:
            continue
        if other.tier != dataset.tier:
            continue
        size = count * min(
            held_bytes(other.current.block_bytes), held_bytes(max(1, other.current.address_bytes))
        )
        total += np.array(catalog.home_counts(other)) * (size / other.current.pg_count)
    return total.astype(np.int64)


def _reason(plans: tuple[SlotPlan, ...], tier: str) -> str:
    if not plans:
        return "there is no executor to hold anything: the fleet has no slots in placement"
    if tier == Tier.SSD and not any(plan.bytes or plan.free_bytes for plan in plans):
        return "there is no executor with room on an SSD tier: give the fleet one (stoker fleet set --disk 100GiB)"
    short = [plan for plan in plans if plan.bytes > plan.free_bytes]
    if not short:
        return ""
    worst = max(short, key=lambda plan: plan.bytes - plan.free_bytes)
    need, free = sum(plan.bytes for plan in plans), sum(plan.free_bytes for plan in plans)
    return (
        f"{len(short)} of {len(plans)} slots have too little room: slot {worst.slot_id} needs "
        f"{format_bytes(worst.bytes)} and has {format_bytes(worst.free_bytes)} for it; "
        f"in all {format_bytes(need)} are needed, replicas included, and {format_bytes(free)} free"
    )

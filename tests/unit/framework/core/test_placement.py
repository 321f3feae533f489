from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st

from stoker.executor.messages import NO_HOME
from stoker.framework.core import placement
from stoker.framework.core.placement import PlacementSlot, place, place_many

GIB = 2**30


def slots_of(weights: list[int], domains: list[str] | None = None) -> list[PlacementSlot]:
    return [
        PlacementSlot(i + 1, weight * GIB, domains[i] if domains else str(i))
        for i, weight in enumerate(weights)
    ]


def loads(homes: npt.NDArray[np.uint16], count: int) -> npt.NDArray[np.int64]:
    return np.bincount(homes[homes != NO_HOME].astype(np.int64), minlength=count)


def by_id(homes: npt.NDArray[np.uint16], slots: list[PlacementSlot]) -> npt.NDArray[np.int64]:
    ids = np.array([s.slot_id for s in slots] + [0])
    return ids[np.where(homes == NO_HOME, len(slots), homes.astype(np.int64))]


def moved(before: npt.NDArray[np.int64], after: npt.NDArray[np.int64]) -> int:
    """Return how many copies are on a slot that had none of the PG before."""
    return int(sum((~(row[None] == before).any(axis=0)).sum() for row in after))


def check(homes: npt.NDArray[np.uint16], slots: list[PlacementSlot]) -> None:
    """Each PG has as many different homes as there can be, and no slot more than the bar allows."""
    replicas, pg_count = homes.shape
    copies = min(replicas, len(slots))
    assert (homes[:copies] < max(1, len(slots))).all() and (homes[copies:] == NO_HOME).all()
    ordered = np.sort(homes[:copies], axis=0)
    assert (ordered[1:] != ordered[:-1]).all()
    if not slots:
        return
    weights = np.array([s.weight_bytes for s in slots], dtype=float)
    shares = pg_count * copies * weights / weights.sum()
    if shares.max() < pg_count:  # else the heavy ones should hold every PG, and the rest bears what they lack
        assert (loads(homes, len(slots)) <= np.maximum(1.05 * shares, np.ceil(shares) + 1)).all()


@settings(max_examples=150, deadline=None)
@given(
    pg_bits=st.integers(0, 11),
    weights=st.lists(st.integers(1, 4), min_size=1, max_size=24),
    replicas=st.integers(1, 4),
    seed=st.integers(0, 2**60),
)
def test_properties(pg_bits: int, weights: list[int], replicas: int, seed: int) -> None:
    slots = slots_of(weights)
    homes = place(2**pg_bits, slots, replicas, seed)
    check(homes, slots)
    assert (homes == place(2**pg_bits, slots, replicas, seed)).all()


@settings(max_examples=150, deadline=None)
@given(
    pg_bits=st.integers(0, 10),
    count=st.integers(2, 20),
    replicas=st.integers(1, 3),
    lost=st.lists(st.integers(0, 19), min_size=1, max_size=3, unique=True),
    seed=st.integers(0, 2**60),
)
def test_a_loss_moves_only_the_lost_slots_own(
    pg_bits: int, count: int, replicas: int, lost: list[int], seed: int
) -> None:
    slots = slots_of([1] * count)
    out: list[PlacementSlot] = []
    left = list(slots)
    before = by_id(place(2**pg_bits, slots, replicas, seed), slots)
    for index in lost:
        if index >= count or len(left) == 1:
            continue
        own = int((before == slots[index].slot_id).sum())
        left = [s for s in left if s.slot_id != slots[index].slot_id]
        out.append(slots[index])
        homes = place(2**pg_bits, left, replicas, seed, out=out)
        check(homes, left)
        after = by_id(homes, left)
        assert moved(before, after) <= 1.05 * own + 1
        before = after


def test_a_slot_that_returns_gets_back_what_it_had() -> None:
    slots = slots_of([1] * 7)
    before = place(256, slots, 2, 5)
    lost = slots[3]
    place(256, [s for s in slots if s is not lost], 2, 5, out=[lost])
    assert (place(256, slots, 2, 5) == before).all()


def test_the_order_of_slots_only_numbers_the_result() -> None:
    slots = slots_of([1, 2, 3, 1, 1])
    turned = slots[::-1]
    assert (by_id(place(512, slots, 2, 9), slots) == by_id(place(512, turned, 2, 9), turned)).all()


def test_replicas_are_in_different_domains_while_there_are_enough() -> None:
    slots = slots_of([1] * 9, ["a", "b", "c"] * 3)
    domains = np.array([ord(s.domain) for s in slots])
    homes = place(1024, slots, 3, 1)
    in_domains = np.sort(domains[homes.astype(np.int64)], axis=0)
    assert (in_domains[1:] != in_domains[:-1]).mean() > 0.97
    check(homes, slots)


def test_datasets_do_not_pile_up_on_the_same_slots() -> None:
    slots = slots_of([1] * 50)
    total = sum(loads(place(1, slots, 1, seed), 50) for seed in range(1000))
    assert total.max() < 60  # share: 20


def test_without_slots_nothing_has_a_home() -> None:
    assert (place(4, [], 2, 1) == NO_HOME).all()
    assert (place(4, [], 2, 1, out=slots_of([1, 1])) == NO_HOME).all()


def test_the_largest_placement_moves_no_more_than_its_bar() -> None:
    slots = slots_of([1] * 10_000)
    homes = place(2**18, slots, 1, 1)
    check(homes, slots)
    left = [s for s in slots if s.slot_id != 77]
    after = place(2**18, left, 1, 1, out=[slots[76]])
    own = int((homes == 76).sum())
    assert moved(by_id(homes, slots), by_id(after, left)) <= 1.05 * own


@settings(max_examples=60, deadline=None)
@given(
    pg_bits=st.integers(0, 8),
    weights=st.lists(st.integers(1, 4), min_size=2, max_size=16),
    out_count=st.integers(0, 2),
    replicas=st.integers(1, 4),
    seeds=st.lists(st.integers(0, 2**60), max_size=7),
    batch=st.integers(1, 4),
)
def test_many_placed_at_once_stand_as_if_each_were_alone(
    pg_bits: int, weights: list[int], out_count: int, replicas: int, seeds: list[int], batch: int
) -> None:
    everyone = slots_of(weights)
    slots, out = everyone[out_count:], everyone[:out_count]
    together = place_many(1 << pg_bits, slots, replicas, seeds, out)
    alone = [place(1 << pg_bits, slots, replicas, seed, out) for seed in seeds]
    in_parts = [
        homes
        for start in range(0, len(seeds), batch)
        for homes in place_many(1 << pg_bits, slots, replicas, seeds[start : start + batch], out)
    ]
    for one, other, third in zip(together, alone, in_parts, strict=True):
        assert (one == other).all() and (one == third).all() and one.shape == (replicas, 1 << pg_bits)


def test_more_than_a_batch_holds_are_placed_in_several() -> None:
    pg_count = placement.BATCH_GROUPS_MAX // 4
    seeds = list(range(9))
    placed = place_many(pg_count, slots_of([1] * 8), 1, seeds)
    assert len(placed) == 9
    assert (placed[8] == place(pg_count, slots_of([1] * 8), 1, 8)).all()

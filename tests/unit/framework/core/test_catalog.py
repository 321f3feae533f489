"""The catalog is what its entries say: in any grouping, after any snapshot, on any replay."""

from __future__ import annotations

import functools
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.world import World
from stoker.framework.core import entries as e
from stoker.framework.core import events as ev
from stoker.framework.core.catalog import SLOTS_GONE_MAX, Catalog
from stoker.framework.core.codec import CodecError
from stoker.framework.model import FleetSpec
from support.core_stage import Stage, manifested, replayed


@functools.cache
def journal(seed: int) -> list[bytes]:
    """A journal as life writes it, of a bad day."""
    world = World(seed, agents=4, instances=3)
    world.run(60_000)
    return world.journal


def through_bytes(value: Any) -> Any:
    return msgpack.unpackb(msgpack.packb(value))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(1, 4), cut=st.floats(0, 1))
def test_apply_of_two_parts_is_apply_of_the_whole(seed: int, cut: float) -> None:
    """Through a snapshot between the parts, as a new leader and a follower do it."""
    records = journal(seed)
    at = int(cut * len(records))
    restored = Catalog.restore(through_bytes(replayed(records[:at]).snapshot()))
    assert restored.snapshot() == replayed(records[:at]).snapshot()
    for data in records[at:]:
        restored.apply(e_of(data))
    assert restored.snapshot() == replayed(records).snapshot()
    assert {d.name for d in restored.datasets.values()} == set(restored._names)


@pytest.mark.parametrize("at", [0.3, 0.9])
def test_a_copy_is_the_state_as_it_was(at: float) -> None:
    records = journal(1)
    live = replayed(records[: int(at * len(records))])
    copy, before = live.copy(), live.snapshot()
    for data in records[int(at * len(records)) :]:
        live.apply(e_of(data))
    assert copy.snapshot() == before != live.snapshot()
    assert {name: copy.dataset_named(name) for name in copy._names} == {
        d.name: d for d in copy.datasets.values()
    }


def e_of(data: bytes) -> e.Entry:
    from stoker.framework.core.codec import decode_entry

    return decode_entry(data)


def test_refuses_a_snapshot_of_a_newer_format() -> None:
    state = Catalog().snapshot() | {"format": 99}
    with pytest.raises(CodecError, match="format 99.*newer"):
        Catalog.restore(state)
    with pytest.raises(CodecError, match="not a catalog"):
        Catalog.restore([1, 2])


def test_ids_are_not_used_again_after_a_removal() -> None:
    stage = Stage().start()
    first = stage.ready("alpha").dataset_id
    stage.ask(ev.DatasetRemovalRequested(7, "alpha"))
    assert stage.ready("alpha", source="mem://other").dataset_id == first + 1


def test_removed_slots_are_remembered_in_bounds() -> None:
    catalog = Catalog()
    for slot_id in range(1, SLOTS_GONE_MAX + 10):
        catalog.apply(e.SlotAdded(slot_id, 1))
    for slot_id in range(1, SLOTS_GONE_MAX + 9):
        catalog.apply(e.SlotRemoved(slot_id))
    assert len(catalog.slots_out) == SLOTS_GONE_MAX and min(catalog.slots_out) == 9


def test_homes_change_with_what_they_depend_on_and_else_are_the_same_object() -> None:
    stage = Stage(instances=3).start()
    dataset = stage.ready(blocks=64)
    homes = stage.catalog.homes(dataset)
    stage.job("load")
    assert stage.catalog.homes(stage.dataset()) is homes
    version = stage.catalog.placement_version
    stage.do(ev.FleetRequested(7, FleetSpec(2, stage.spec.mem_bytes)))
    assert stage.catalog.placement_version > version
    assert (stage.catalog.homes(stage.dataset()) < 2).all()


def test_a_new_version_keeps_the_placement() -> None:
    stage = Stage(instances=3).start()
    homes = stage.catalog.homes(stage.ready(blocks=64)).copy()
    stage.do(ev.RefreshRequested(7, "alpha"))
    dataset = stage.dataset()
    again = manifested(dataset, 64, version=2)
    stage.do(ev.ListingFinished(dataset.dataset_id, dataset.attempt, again))
    assert (stage.catalog.homes(stage.dataset()) == homes).all()

"""Datasets on the SSD tier: where they may be, what fits, and what of an older one is of no use any more."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stoker.executor.block import disk_memory_bytes
from stoker.executor.machine import CONNECTIONS_MAX, share_memory
from stoker.executor.messages import NO_HOME, UNKNOWN_MAX, DiskReport, decode_answer, decode_heartbeat, encode
from stoker.framework.checks import check_heartbeat
from stoker.framework.core import actions as a
from stoker.framework.core import entries as e
from stoker.framework.core import events as ev
from stoker.framework.core.assignments import build_assignment
from stoker.framework.core.catalog import Catalog
from stoker.framework.core.datasets import start_listing
from stoker.framework.core.executors import was_removed
from stoker.framework.core.views import executor_views
from stoker.framework.errors import Refused
from stoker.framework.model import EXECUTOR_OVERHEAD_BYTES, FleetSpec, overhead_bytes
from support.core_stage import BLOCK_BYTES, MIB, Stage, actions_of, heartbeat_of, manifested

DISK = 512 * MIB


def with_disks(stage: Stage, *disks: int) -> Stage:
    """Give the slots these SSD tiers, without the relaunches that would follow."""
    stage.catalog.apply(e.FleetSet(replace(stage.spec, disk_bytes=max(disks))))
    for slot_id, disk_bytes in enumerate(disks, 1):
        stage.catalog.apply(e.SlotResized(slot_id, stage.spec.mem_bytes, disk_bytes))
    return stage


def test_a_dataset_on_ssd_is_refused_where_the_fleet_has_none() -> None:
    stage = Stage(instances=1).start()
    answer = stage.add(tier="ssd")
    assert answer.refusal is not None and answer.status == 409
    assert answer.refusal.code == "does_not_fit" and "--disk" in answer.refusal.hint
    assert not stage.catalog.datasets
    with_disks(stage, DISK)
    assert stage.add(tier="ssd").status == 201 and stage.add(tier="ssd").status == 200
    assert stage.add(tier="mem").status == 409, "a tier is not changed by adding again"
    stage.catalog.apply(e.FleetSet(stage.spec))
    assert stage.add(tier="ssd").status == 200, "one that is there stays"


def test_its_block_size_follows_from_the_disk() -> None:
    stage = with_disks(Stage(instances=1).start(), 4 * 2**40)
    stage.add("one", tier="ssd")
    frame = stage.tick()
    stage.add("two")
    started = actions_of(frame, a.StartListing)
    sizes = {d.name: stage.fleet.listings[d.dataset_id] for d in stage.catalog.datasets.values()}
    assert set(sizes) == {"one", "two"} and not started
    asked = [
        start_listing(stage.catalog, stage.fleet, stage.dataset(name)).slot_bytes for name in ("one", "two")
    ]
    assert asked == [4 * 2**40, stage.spec.mem_bytes]


def test_only_slots_with_the_tier_are_homes() -> None:
    stage = with_disks(Stage(instances=4).start(), DISK, 0, DISK, 0)
    dataset = stage.ready(blocks=64, tier="ssd", replicas=2)
    homes = stage.catalog.homes(dataset)
    places = {slot.slot_id: place for place, slot in enumerate(stage.catalog.slot_order())}
    assert set(np.unique(homes)) == {places[1], places[3]}
    counts = stage.catalog.home_counts(dataset)
    assert (counts[places[2]], counts[places[4]]) == (0, 0) and sum(counts) == 2 * 64
    in_memory = stage.ready("beta", blocks=64)
    assert set(np.unique(stage.catalog.homes(in_memory))) == set(places.values())
    tiers = {d.name: d.tier for d in build_assignment(stage.catalog, stage.fleet).datasets}
    assert tiers == {"alpha": "ssd", "beta": "mem"}


def test_without_any_slot_of_the_tier_nothing_has_a_home() -> None:
    stage = with_disks(Stage(instances=2).start(), DISK, DISK)
    dataset = stage.ready(tier="ssd")
    with_disks(stage, 0, 0)
    assert (stage.catalog.homes(dataset) == NO_HOME).all()
    answer = stage.job("load")
    assert answer.refusal is not None and "SSD" in answer.refusal.message


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([0, DISK, 2 * DISK]), min_size=1, max_size=9), st.integers(1, 3), st.data())
def test_a_slot_that_is_lost_and_returns_is_as_it_was(
    disks: list[int], replicas: int, data: st.DataObject
) -> None:
    catalog = Catalog()
    for slot_id, disk_bytes in enumerate(disks, 1):
        catalog.apply(e.SlotAdded(slot_id, 64 * MIB, disk_bytes))
    stage = Stage()
    stage.catalog = catalog
    catalog.apply(e.FleetSet(FleetSpec(len(disks), 64 * MIB, disk_bytes=DISK)))
    catalog.apply(e.DatasetAdded(1, "d", "mem://x", (), replicas, "keep", "ssd", 0, 1))
    catalog.apply(e.ListingBegan(1, 1))
    catalog.apply(e.DatasetListed(1, manifested(catalog.datasets[1], 256), 1))
    dataset = catalog.datasets[1]
    before = _by_slot(catalog)
    assert all(slot_id is None or disks[slot_id - 1] for row in before for slot_id in row)
    lost = data.draw(st.integers(1, len(disks)))
    catalog.apply(e.SlotMarked(lost, False, "test", 1))
    after = _by_slot(catalog)
    assert all(
        slot_id is None or (disks[slot_id - 1] and slot_id != lost) for row in after for slot_id in row
    )
    if not disks[lost - 1]:
        assert after == before, "it held nothing"
    catalog.apply(e.SlotMarked(lost, True, "test", 1))
    assert _by_slot(catalog) == before
    assert dataset is catalog.datasets[1]


def _by_slot(catalog: Catalog) -> list[list[int | None]]:
    order = [slot.slot_id for slot in catalog.slot_order()]
    homes = catalog.homes(catalog.datasets[1])
    return [[None if place == NO_HOME else order[place] for place in row] for row in homes.tolist()]


def test_what_fits_is_counted_on_the_datasets_tier() -> None:
    stage = with_disks(Stage(instances=2, mem_bytes=16 * MIB).start(), DISK, DISK)
    for launch in list(stage.catalog.launches.values()):
        stage.beat(launch, whole=True, disk=DiskReport(DISK))
    stage.ready("large", blocks=256, tier="ssd")
    stage.ready("small", blocks=8)
    plan = stage.job("load", name="large", plan_only=True).body["plan"]
    assert plan["fits"] and plan["capacity_bytes"] == 2 * DISK
    assert stage.job("load", name="large").status == 201
    plan = stage.job("load", name="small", plan_only=True).body["plan"]
    assert plan["fits"] and plan["capacity_bytes"] == 2 * 16 * MIB, "what is on disk takes no memory"
    stage.ready("memory", blocks=256)
    answer = stage.job("load", name="memory")
    assert answer.refusal is not None and answer.refusal.code == "does_not_fit"


# --- heartbeats


def test_a_heartbeat_tells_of_the_disk_and_the_view_shows_it() -> None:
    stage = with_disks(Stage(instances=2).start(), DISK, 0)
    said = DiskReport(DISK, 100, 5, 7, 2, "the disk is full", is_stuck=True)
    beat = heartbeat_of(stage.launch(1), 9, disk=said, unknown=((4, 1),))
    assert decode_heartbeat(encode(beat)) == beat
    check_heartbeat(beat)
    stage.beat(stage.launch(1), disk=said)
    first, second = executor_views(stage.catalog, stage.fleet, stage.now_ms)
    assert first["disk"] == {
        "capacity_bytes": DISK,
        "used_bytes": 100,
        "lent_bytes": 5,
        "unknown_bytes": 7,
        "error_count": 2,
        "last_error": "the disk is full",
        "is_stuck": True,
    }
    assert second["disk"] is None


@pytest.mark.parametrize(
    "fields",
    [
        {"unknown": ((-1, 1),)},
        {"unknown": ((1, 2**63),)},
        {"unknown": ((1, 1),) * (UNKNOWN_MAX + 1)},
        {"disk": DiskReport(-1)},
        {"disk": DiskReport(1, last_error=None)},  # type: ignore[arg-type]
    ],
)
def test_a_heartbeat_with_a_bad_field_is_refused(fields: dict[str, Any]) -> None:
    stage = Stage(instances=1).start()
    with pytest.raises(Refused):
        check_heartbeat(heartbeat_of(stage.launch(1), 9, **fields))


@pytest.mark.parametrize(
    "fields", [{"unknown": 5}, {"unknown": [5]}, {"unknown": [["a", 1]]}, {"disk": 5}, {"disk": {}}]
)
def test_a_heartbeat_of_another_shape_is_refused(fields: dict[str, Any]) -> None:
    stage = Stage(instances=1).start()
    raw = msgpack.unpackb(encode(heartbeat_of(stage.launch(1), 9)))
    with pytest.raises(ValueError):
        decode_heartbeat(msgpack.packb(raw | fields))


def test_an_executor_hears_what_was_removed_and_nothing_of_what_is_not_known() -> None:
    stage = Stage(instances=1).start()
    dataset = stage.ready()
    asked = ((dataset.dataset_id, 1), (dataset.dataset_id, 0), (99, 1))
    answer = stage.beat(stage.launch(1), unknown=asked)
    assert answer.removed == ((dataset.dataset_id, 0),), "an older generation is of no use"
    assert decode_answer(encode(answer)) == answer
    stage.do(ev.DatasetRemovalRequested(7, "alpha"))
    assert stage.beat(stage.launch(1), unknown=asked).removed == asked[:2]


@pytest.mark.parametrize("was_listed", [True, False])
def test_after_a_restored_backup_only_what_is_named_as_removed_was(was_listed: bool) -> None:
    stage = Stage(instances=1).start()
    if was_listed:
        stage.ready()
    else:
        stage.add()
    number = stage.dataset().dataset_id
    stage.catalog.apply(e.DatasetRemoved(number))
    assert was_removed(stage.catalog, number, 1)
    stage.catalog.apply(e.JournalRestored(5, 100, 2, 1))
    assert was_removed(stage.catalog, number, 1) is was_listed
    assert not was_removed(stage.catalog, number + 50, 1), "it may have been added after the backup"


def test_a_large_executor_has_memory_for_as_many_callers_as_any_takes() -> None:
    found = share_memory(
        64 * 2**30,
        filler_count=2,
        mesos_bytes=64 * 2**30 + overhead_bytes(64 * 2**30, 0),
        available_bytes=2**40,
        cgroup_bytes=None,
    )
    assert (found.tier_bytes, found.connections_max) == (64 * 2**30, CONNECTIONS_MAX)


def test_memory_for_what_is_remembered_of_blocks_is_asked_for() -> None:
    assert overhead_bytes(0, 0) == EXECUTOR_OVERHEAD_BYTES
    assert (
        overhead_bytes(0, 2**40)
        == EXECUTOR_OVERHEAD_BYTES + disk_memory_bytes(2**40)
        > EXECUTOR_OVERHEAD_BYTES
    )
    spec = FleetSpec(1, 2**30, disk_bytes=2**40)
    assert spec.resources().mem_bytes == 2**30 + overhead_bytes(2**30, 2**40)
    assert BLOCK_BYTES == MIB

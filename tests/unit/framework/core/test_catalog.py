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
from stoker.framework.core.invariants import check
from stoker.framework.core.job_table import job_id_of
from stoker.framework.core.rules import merge_rules
from stoker.framework.model import FleetSpec
from support.core_stage import Stage, manifested, replayed


@functools.cache
def journal(seed: int) -> list[bytes]:
    """A journal as life writes it, of a bad day."""
    world = World(seed, agents=4, instances=3)
    world.run(60_000)
    return world.truth.records


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


def test_another_dataset_does_not_make_homes_anew_and_another_slot_does() -> None:
    stage = Stage(instances=3).start()
    homes = stage.catalog.homes(stage.ready("alpha", blocks=64))
    stage.ready("beta", blocks=64)
    stage.ask(ev.DatasetRemovalRequested(7, "beta"))
    assert stage.catalog.homes(stage.dataset()) is homes
    stage.ask(ev.FleetRequested(7, FleetSpec(4, stage.spec.mem_bytes)))
    assert stage.catalog.homes(stage.dataset()) is not homes
    assert stage.catalog.slots_in == (1, 2, 3, 4)


def test_homes_computed_together_are_those_computed_one_by_one() -> None:
    stage = Stage(instances=3).start()
    for number, blocks in enumerate((1, 16, 64, 64, 64)):
        stage.ready(f"d{number}", blocks=blocks, replicas=1 + number % 2)
    stage.add("unlisted")
    one_by_one, together = replayed(stage.journal), replayed(stage.journal)
    together.place_all()
    for dataset in [d for d in together.datasets.values() if d.current is not None]:
        found = together.homes(dataset)
        assert (found == one_by_one.homes(dataset)).all()
        assert together.home_counts(dataset) == one_by_one.home_counts(dataset)
        together.place_all()
        assert together.homes(dataset) is found


def test_what_forgotten_jobs_wished_is_kept_in_few_rules() -> None:
    stage = Stage(instances=1).start()
    dataset_id = stage.ready(blocks=16).dataset_id
    catalog, path_count = stage.catalog, 3
    for number in range(1, 200):
        paths = (f"d{number % path_count}",)
        rules = merge_rules(catalog.datasets[dataset_id].rules, number % 2 == 1, paths)
        catalog.apply(e.WantedSet(dataset_id, number, rules, 1))
        job_id, kind = job_id_of(number), "load" if number % 2 == 1 else "free"
        catalog.apply(
            e.JobCreated(job_id, kind, dataset_id, "alpha", paths, "", "", False, number, 1, 1, 1, number)
        )
        catalog.apply(e.JobFinished(job_id, "SUCCEEDED", 1, 1, 0, (), "", number))
        catalog.apply(e.JobsForgotten((job_id,)))
        assert len(catalog.base_rules.of(dataset_id)) <= path_count
        check(catalog, stage.fleet)


def test_a_snapshot_of_the_first_format_keeps_what_forgotten_jobs_wished() -> None:
    """There each dataset had it at the end of its row."""
    catalog = Catalog()
    for dataset_id in (1, 2):
        catalog.apply(e.DatasetAdded(dataset_id, f"d{dataset_id}", "file:/x", (), 1, "keep", "mem", 0, 1))
    catalog.apply(e.JobCreated(job_id_of(1), "load", 1, "d1", ("a",), "", "", False, 1, 0, 0, 0, 1))
    catalog.apply(e.JobFinished(job_id_of(1), "SUCCEEDED", 0, 0, 0, (), "", 1))
    catalog.apply(e.JobsForgotten((job_id_of(1),)))
    new = catalog.snapshot()
    first, second = new["datasets"]  # the second as one wrote it that did not know the field yet
    old = new | {"format": 1, "datasets": [(*first, catalog.base_rules.of(1)), second]}
    del old["base_rules"]
    restored = Catalog.restore(msgpack.unpackb(msgpack.packb(old), strict_map_key=False))
    assert restored.base_rules.all() == [(1, ((True, "a"),))]
    assert restored.snapshot() == new

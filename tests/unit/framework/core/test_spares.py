"""Who holds what it is no home of: the hints that make moves copies, whatever came before."""

from __future__ import annotations

import random

import numpy as np
import pytest

from stoker.executor.core.homes import sources, spares_table
from stoker.executor.messages import NO_HOME, SlotAddress
from stoker.framework.core import entries as e
from stoker.framework.core.assignments import current_assignment
from stoker.framework.core.moves import leaving_bits, left_on
from support.core_stage import Stage, bitmap_of, residency_of


def bits_of(blocks: set[int]) -> int:
    return int.from_bytes(bitmap_of(blocks), "little")


@pytest.mark.parametrize("seed", range(12))
def test_hints_name_holders_that_are_no_homes_and_only_those(seed: int) -> None:
    chance = random.Random(seed)
    stage = Stage(instances=4).start()
    dataset = stage.ready(blocks=chance.choice((5, 16, 40)))
    assert dataset.current is not None
    count, groups = dataset.current.block_count, dataset.current.pg_count
    held = {slot: {b for b in range(count) if chance.random() < 0.4} for slot in stage.catalog.slots}
    for slot_id, blocks in held.items():
        residency = residency_of(dataset, blocks, set())
        stage.beat(stage.launch(slot_id), whole=True, datasets=(residency,))
    leaving = chance.choice(sorted(held))
    stage.catalog.apply(e.AgentDrainSet(stage.launch(leaving).agent_id, "host", "test"))
    stage.catalog.apply(e.SlotMarked(leaving, False, "test", stage.catalog.wall_ms))
    stage.beat(stage.launch(leaving), whole=False)
    assignment = current_assignment(stage.catalog, stage.fleet)
    (named,) = assignment.datasets
    ids = [slot.slot_id for slot in assignment.slots]
    homes = np.frombuffer(named.homes, dtype="<u2").reshape(-1, groups)
    spares = spares_table(named.spares, groups)
    for group in range(groups):
        others = {slot for slot, blocks in held.items() if any(b % groups == group for b in blocks)} - {
            ids[p] for p in homes[:, group] if p != NO_HOME
        }
        if spares[group] == NO_HOME:
            assert not others
        else:
            assert ids[spares[group]] in others
            assert ids[spares[group]] == leaving or leaving not in others, "who leaves is asked first"
    only = held[leaving] - set().union(*(held[slot] for slot in held if slot != leaving))
    assert named.kept == (bitmap_of(only) if only else b"")
    seen = stage.fleet.executors[stage.launch(leaving).launch_id]
    left = left_on(stage.catalog, seen, leaving_bits(stage.catalog, stage.fleet, stage.now_ms))
    assert sum(part.bits for part in left) == bits_of(only)


def test_what_is_only_there_is_worked_out_with_many_that_stay_one_after_the_other() -> None:
    stage = Stage(instances=60).start()
    dataset = stage.ready(blocks=200)
    held = {
        slot: {b for b in range(200) if random.Random(slot * 1000 + b).random() < 0.05}
        for slot in range(2, 61)
    }
    held[1] = set(range(150))
    for slot_id, blocks in held.items():
        stage.beat(stage.launch(slot_id), whole=True, datasets=(residency_of(dataset, blocks, set()),))
    stage.catalog.apply(e.AgentDrainSet("agent-1", "host", "test"))
    (bits,) = leaving_bits(stage.catalog, stage.fleet, stage.now_ms).values()
    assert bits == bits_of(held[1] - set().union(*(held[slot] for slot in range(2, 61))))
    assert 0 < bits.bit_count() < 30


class Uncopied(bytearray):
    def __bytes__(self) -> bytes:
        raise AssertionError("copied")


def test_a_fleet_that_is_too_large_to_look_at_is_not_copied_first(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(instances=3).start()
    dataset = stage.ready()
    stage.hold(1, dataset, {1, 2})
    for held in stage.fleet.executors[stage.launch(1).launch_id].datasets.values():
        held.bitmap = Uncopied(held.bitmap)
    monkeypatch.setattr("stoker.framework.core.spares.CELLS_MAX", 1)
    stage.catalog.apply(e.SlotMarked(2, False, "test", stage.catalog.wall_ms))
    stage.tick()
    assert stage.fleet.spares.of(dataset.dataset_id) == (b"", b"")


def test_without_anything_held_there_are_no_hints() -> None:
    stage = Stage(instances=3).start()
    dataset = stage.ready()
    stage.catalog.apply(e.SlotMarked(2, False, "test", stage.catalog.wall_ms))
    stage.tick()
    assert stage.fleet.spares.of(dataset.dataset_id) == (b"", b"")


@pytest.mark.parametrize("position", [0, 1, 2, 3])
@pytest.mark.parametrize("spare", [NO_HOME, 0, 2, 3, 9])
def test_a_spare_is_asked_once_and_only_for_what_it_has(position: int, spare: int) -> None:
    table = np.array([[0], [1]], dtype=np.uint16)
    slots = tuple(SlotAddress(i + 1, 1, 1, "h", 0 if i == 3 else 7000 + i, "", "", "") for i in range(4))
    found = sources(table, slots, position=position, block_index=0, spare=spare)
    asked = [source.address.slot_id - 1 for source in found]
    assert len(set(asked)) == len(asked) and position not in asked and 3 not in asked
    if spare == 2 and position != 2:
        assert next(s for s in found if s.address.slot_id == 3).local_only
        assert asked[0] == (2 if position == 0 else 0), (
            "the first home asks it first, others ask the first home"
        )

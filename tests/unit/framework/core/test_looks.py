"""A look at all executors for what only the leaving ones hold, some of them at a time."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest

from stoker.framework.core import events as ev
from stoker.framework.core import moves
from stoker.framework.core.catalog import Dataset
from stoker.framework.core.looks import Look, Rest
from stoker.framework.core.moves import SMALL_FLEET
from support.core_stage import Stage, bitmap_of, residency_of


def bits_of(*blocks: int) -> int:
    return sum(1 << block for block in blocks)


def fleet_of(*held: set[int], instances: int = 0) -> tuple[Stage, Dataset]:
    """A fleet whose slots hold these blocks of one dataset, whatever is wanted there."""
    stage = Stage(instances=instances or len(held)).start()
    dataset = stage.ready(blocks=16)
    for slot_id, blocks in enumerate(held, start=1):
        stage.hold(slot_id, dataset, blocks)
    return stage, dataset


def looking(stage: Stage, *slot_ids: int) -> Look:
    return Look(stage.fleet, {stage.launch(slot_id).launch_id for slot_id in slot_ids})


def test_a_look_takes_as_many_steps_as_it_needs_and_finds_the_same() -> None:
    stage, _ = fleet_of({0, 1, 2, 3}, {1}, {2}, {9})
    look, steps = looking(stage, 1), 0
    while not look.is_over:
        look.step(stage.fleet, stage.now_ms, 1)
        steps += 1
    assert steps == 3, "one executor at a time"
    (bits,) = look.left().values()
    assert bits == bits_of(0, 3)


def test_what_is_given_up_after_it_was_looked_at_is_only_there_again() -> None:
    stage, dataset = fleet_of({0, 1}, {0, 1}, {5})
    look = stage.fleet.moves._looking = looking(stage, 1)
    look.step(stage.fleet, stage.now_ms, 1)
    assert list(look.left().values()) == [0]
    stage.hold(2, dataset, {1})
    look.step(stage.fleet, stage.now_ms, inf)
    assert list(look.left().values()) == [bits_of(0)]


def test_what_a_heartbeat_tells_as_removed_is_only_there_again() -> None:
    stage, dataset = fleet_of({0, 1}, {0, 1}, {5})
    look = stage.fleet.moves._looking = looking(stage, 1)
    look.step(stage.fleet, stage.now_ms, 1)
    stage.beat(stage.launch(2))
    assert list(look.left().values()) == [0], "no news"
    change = replace(residency_of(dataset, {1}, set()), bitmap=None, removed=(0,))
    stage.beat(stage.launch(2), datasets=(change,))
    assert list(look.left().values()) == [bits_of(0)]


def test_what_the_incarnation_before_held_is_only_there_again() -> None:
    stage, _ = fleet_of({0, 1}, {0, 1}, {5})
    look = stage.fleet.moves._looking = looking(stage, 1)
    look.step(stage.fleet, stage.now_ms, 1)
    for _ in range(stage.settings.heartbeat_timeout_ms // 1_000 + 1):
        stage.beat(stage.launch(1), after_ms=500)
        stage.beat(stage.launch(3), after_ms=500)
    stage.beat(stage.launch(2), incarnation=7)
    assert list(look.left().values()) == [bits_of(0, 1)]


def test_what_an_executor_held_that_ended_during_a_look_is_only_there_again() -> None:
    stage, _ = fleet_of({0, 1}, {0, 1}, {1})
    look = stage.fleet.moves._looking = looking(stage, 1)
    look.step(stage.fleet, stage.now_ms, 1)
    launch = stage.launch(2)
    stage.status(launch.task_id, "TASK_FAILED", agent_id=launch.agent_id)
    stage.do(ev.Disconnected())
    assert list(look.left().values()) == [bits_of(0, 1)]
    look.step(stage.fleet, stage.now_ms, inf)
    assert list(look.left().values()) == [bits_of(0)]


def test_what_a_leaving_executor_got_during_a_look_is_not_known_to_be_elsewhere() -> None:
    stage, dataset = fleet_of({0}, {0, 7})
    look = looking(stage, 1)
    look.step(stage.fleet, stage.now_ms, inf)
    stage.hold(1, dataset, {0, 7})
    seen = stage.fleet.executors[stage.launch(1).launch_id]
    (left,) = moves.left_on(stage.catalog, seen, look.not_elsewhere(), unknown=-1)
    assert left.bits == bits_of(7)


def test_an_executor_that_may_be_behind_is_not_counted_on() -> None:
    stage, _ = fleet_of({0}, {0})
    stage.fleet.executors[stage.launch(2).launch_id].needs_whole = True
    look = looking(stage, 1)
    look.step(stage.fleet, stage.now_ms, inf)
    assert list(look.left().values()) == [bits_of(0)]


def test_a_large_fleet_is_looked_at_over_several_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    stage, dataset = fleet_of({0, 1}, {1}, instances=SMALL_FLEET + 1)
    monkeypatch.setattr(moves, "STEP_WORK", 1_000_000)  # some 30 executors of this kind
    stage.ask(ev.DrainRequested(7, "agent-1", ""))
    move_of = stage.fleet.moves.by_agent
    stage.tick()
    assert not move_of["agent-1"].is_counted, "the first step of several"
    for _ in range(10):
        stage.tick()
    assert move_of["agent-1"].is_counted and move_of["agent-1"].blocks == 1


def test_a_drain_that_begins_during_a_look_is_counted_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    stage, dataset = fleet_of({0}, {0}, instances=SMALL_FLEET + 1)
    monkeypatch.setattr(moves, "STEP_WORK", 1_000_000)
    stage.ask(ev.DrainRequested(7, "agent-1", ""))
    stage.tick()
    other = stage.launch(2).agent_id
    stage.ask(ev.DrainRequested(7, other, ""))
    move_of = stage.fleet.moves.by_agent
    while "agent-1" not in move_of or not move_of["agent-1"].is_counted:
        stage.tick()
    assert move_of["agent-1"].blocks == 0 and not move_of[other].is_counted
    while not move_of[other].is_counted:
        stage.tick()
    assert move_of[other].blocks == 1, "the last of two that leave keeps what only they hold"


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 40])
def test_striking_many_bitmaps_leaves_what_none_has(count: int) -> None:
    rest = Rest(bits_of(*range(4_000)))
    for index in range(count):
        rest.strike(bytearray(bitmap_of(range(index * 100, index * 100 + 100))))
    assert rest.bits == bits_of(*range(min(4_000, count * 100), 4_000))
    rest.restore(bits_of(3, 9_000))
    assert rest.bits & bits_of(3, 9_000) == bits_of(3)
    rest.strike(bytearray(bitmap_of({3, 9_000})))
    assert not rest.bits & bits_of(3, 9_000)

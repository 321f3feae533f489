from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

from stoker.executor.messages import HEARTBEAT_INTERVAL_MS, NO_HOME
from stoker.framework.core.assignments import build_assignment, current_assignment
from stoker.framework.core.catalog import Dataset
from stoker.framework.core.executors import LINGER_MS, QUICK_INTERVAL_MS
from support.core_stage import Stage, bitmap_of, residency_of


def held(stage: Stage, slot_id: int, dataset: Dataset) -> set[int]:
    bitmap = stage.fleet.executors[stage.launch(slot_id).launch_id].datasets[dataset.dataset_id, 1].bitmap
    return {i for i in range(8 * len(bitmap)) if bitmap[i >> 3] >> (i & 7) & 1}


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({}, "ok"),
        ({"cluster": bytes(16)}, "unknown"),
        ({"epoch_seen": 9}, "unknown"),
        ({"launch_id": 77}, "unknown"),
        ({"secret": "guessed"}, "stale"),
        ({"slot_id": 2}, "stale"),
        ({"incarnation": 5}, "stale"),
    ],
)
def test_judges_who_heartbeats(fields: dict[str, Any], status: str) -> None:
    stage = Stage(instances=2).start()
    before = stage.fleet.executors[stage.launch(1).launch_id].heartbeat
    answer = stage.beat(stage.launch(1), **fields)
    assert answer.status == status
    if status != "ok":
        assert answer.assignment is None
        assert stage.fleet.executors[stage.launch(1).launch_id].heartbeat is before, "it changed nothing"


def test_a_launch_that_ended_is_stale() -> None:
    stage = Stage(instances=1).start()
    launch = stage.launch(1)
    stage.status(launch.task_id, "TASK_LOST")
    assert stage.beat(launch).status == "stale"
    stage.tick(500)
    stage.offer("agent-1")
    assert stage.beat(launch).status == "stale"


def test_asks_for_heartbeats_more_often_while_somebody_waits_for_what_they_bring() -> None:
    stage = Stage(instances=1).start()
    beat = functools.partial(stage.beat, stage.launch(1))
    assert beat().interval_ms == HEARTBEAT_INTERVAL_MS
    stage.ready(blocks=4)
    assert beat().interval_ms == QUICK_INTERVAL_MS, "it was listed just now"
    assert beat(after_ms=LINGER_MS).interval_ms == HEARTBEAT_INTERVAL_MS, "and nothing is wanted of it"
    stage.job("load")
    assert beat().interval_ms == QUICK_INTERVAL_MS
    stage.tick()
    stage.hold(1, stage.dataset())
    stage.tick()
    assert stage.only_job().state.is_final
    assert beat(after_ms=LINGER_MS).interval_ms == HEARTBEAT_INTERVAL_MS


def test_asks_a_large_fleet_for_no_more_heartbeats_than_a_leader_bears() -> None:
    stage = Stage(instances=3_000).start(agents=1)
    stage.ready(blocks=4)
    stage.job("load")
    assert stage.beat(stage.launch(1)).interval_ms == 1_500


def test_sends_an_assignment_only_to_who_is_behind() -> None:
    stage = Stage(instances=1).start()
    launch = stage.launch(1)
    assignment = stage.beat(launch).assignment
    assert assignment is not None
    assert stage.beat(launch, assignment_version=assignment.version).assignment is None
    assert stage.beat(launch, assignment_version=assignment.version - 1).assignment is not None
    assert stage.beat(launch, assignment_version=assignment.version + 99, epoch_seen=0).assignment is not None


def test_a_version_is_one_value_and_grows_with_each_change() -> None:
    stage = Stage(instances=2).start()
    seen = {}
    stage.ready(blocks=8)
    for step in (
        lambda: stage.job("load"),
        lambda: stage.beat(stage.launch(1), port=777),
        lambda: stage.status(stage.launch(2).task_id, "TASK_FAILED"),
        lambda: stage.add("beta", source="mem://y"),
        lambda: stage.tick(),
    ):
        step()
        built = build_assignment(stage.catalog, stage.fleet)
        assert seen.setdefault(built.version, built) == built
        assert current_assignment(stage.catalog, stage.fleet) == built
    assert list(seen) == sorted(seen) and len(seen) >= 4


def test_an_assignment_says_where_executors_are_and_what_is_wanted() -> None:
    stage = Stage(instances=3).start(agents=2)
    dataset = stage.ready(blocks=16, replicas=2, options={"key": "env:KEY"})
    stage.job("load", "d1")
    assignment = build_assignment(stage.catalog, stage.fleet)
    assert [(s.slot_id, s.port > 0) for s in assignment.slots] == [(1, True), (2, True), (3, False)]
    (told,) = assignment.datasets
    assert (told.name, told.wanted, told.wanted_version) == ("alpha", ((True, "d1"),), 1)
    assert told.options == {"key": "env:KEY"}
    homes = np.frombuffer(told.homes, dtype="<u2").reshape(2, told.pg_count)
    assert (homes == stage.catalog.homes(stage.dataset())).all()
    assert dataset.current is not None and told.pg_count == dataset.current.pg_count


def test_more_replicas_than_slots_are_no_home() -> None:
    stage = Stage(instances=1).start()
    homes = stage.catalog.homes(stage.ready(replicas=3))
    assert (homes[0] == 0).all() and (homes[1:] == NO_HOME).all()


def test_changes_are_taken_in_and_a_gap_asks_for_the_whole() -> None:
    stage = Stage(instances=1).start()
    dataset = stage.ready(blocks=32)
    launch = stage.launch(1)

    def beat(**fields: Any) -> Any:
        blocks = fields.pop("full")
        residency = residency_of(
            dataset, set(range(blocks)), set(), bitmap=None, full_blocks=blocks, **fields.pop("r")
        )
        return stage.beat(launch, datasets=(residency,), **fields)

    assert not beat(full=3, r={"added": (0, 1, 20)}).want_whole
    assert held(stage, 1, dataset) == {0, 1, 20}
    assert not beat(full=2, r={"removed": (1,)}).want_whole
    assert held(stage, 1, dataset) == {0, 20}
    stage.sequences[launch.launch_id] += 1  # one was lost
    assert beat(full=3, r={"added": (5,)}).want_whole
    assert held(stage, 1, dataset) == {0, 20}, "unknown changes are not guessed at"
    assert beat(full=3, r={"added": (5,)}).want_whole
    whole = residency_of(dataset, {5, 6}, set())
    assert not stage.beat(launch, whole=True, datasets=(whole,)).want_whole
    assert held(stage, 1, dataset) == {5, 6}


def test_a_count_that_does_not_match_asks_for_the_whole() -> None:
    """The acknowledgement of a heartbeat was lost, and the executor reckons from the one before."""
    stage = Stage(instances=1).start()
    dataset = stage.ready(blocks=32)
    residency = residency_of(dataset, set(), set(), bitmap=None, added=(1, 2), full_blocks=1)
    assert stage.beat(stage.launch(1), datasets=(residency,)).want_whole


def test_a_heartbeat_that_comes_again_or_late_changes_nothing() -> None:
    stage = Stage(instances=1).start()
    dataset = stage.ready(blocks=32)
    launch = stage.launch(1)
    residency = residency_of(dataset, {4}, set(), bitmap=None, added=(4,))
    stage.beat(launch, datasets=(residency,))
    sequence = stage.sequences[launch.launch_id]
    late = residency_of(dataset, set(), set(), bitmap=None, removed=(4,))
    for old in (sequence, sequence - 1):
        answer = stage.beat(launch, sequence=old, datasets=(late,))
        assert answer.status == "ok" and not answer.want_whole
    assert held(stage, 1, dataset) == {4}


def test_residency_is_partial_until_all_have_reported_in_whole() -> None:
    stage = Stage(instances=2).start()
    first, second = stage.launch(1), stage.launch(2)
    assert stage.fleet.residency_complete
    stage.lead()
    stage.subscribe()
    answer = stage.beat(first, whole=True)
    assert answer.assignment is not None and not answer.assignment.residency_complete
    stage.beat(second, whole=False)
    assert not stage.fleet.residency_complete
    stage.beat(second, whole=True)
    assert stage.fleet.residency_complete
    answer = stage.beat(first, assignment_version=answer.assignment.version, epoch_seen=2)
    assert answer.assignment is not None and answer.assignment.residency_complete


def test_residency_is_complete_when_the_silent_are_given_up() -> None:
    stage = Stage(instances=2).start()
    task_id = stage.launch(2).task_id
    first = stage.launch(1)
    stage.lead()
    stage.subscribe()
    stage.beat(first, whole=True)
    stage.status(task_id, "TASK_GONE")
    stage.tick()
    assert stage.fleet.residency_complete
    stage.lead()
    stage.tick(stage.settings.residency_grace_ms)
    assert stage.fleet.residency_complete, "the grace is over"


def test_addresses_in_a_large_fleet_reach_assignments_with_the_tick() -> None:
    """Else each of 10,000 executors that come up would give each a new assignment."""
    stage = Stage(instances=101)
    stage.lead()
    stage.subscribe()
    stage.offer(*(f"agent-{i}" for i in range(101)))
    revision = stage.fleet.revision
    for launch in list(stage.catalog.launches.values()):
        stage.beat(launch, whole=True)
    assert stage.fleet.revision == revision
    stage.tick()
    assert stage.fleet.revision == revision + 1


def test_what_is_held_of_a_removed_dataset_is_forgotten() -> None:
    from stoker.framework.core import events as ev

    stage = Stage(instances=1).start()
    dataset = stage.ready(blocks=8)
    stage.hold(1, dataset, {1, 2})
    stage.ask(ev.DatasetRemovalRequested(7, "alpha"))
    stage.tick()
    assert not stage.fleet.executors[stage.launch(1).launch_id].datasets


def test_a_bitmap_may_be_longer_or_shorter_than_the_dataset() -> None:
    stage = Stage(instances=1).start()
    dataset = stage.ready(blocks=8)
    stage.beat(
        stage.launch(1),
        whole=True,
        datasets=(residency_of(dataset, {1}, set(), bitmap=bitmap_of({1}) + bytes(9)),),
    )
    assert held(stage, 1, dataset) == {1}

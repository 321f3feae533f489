"""The fleet follows what the catalog's launches and slots become: by what changed, and by a look at all of them."""

from __future__ import annotations

from typing import Any

import pytest

from stoker.framework.core import events as ev
from stoker.framework.core.catalog import LAUNCH_CHANGES_MAX
from stoker.framework.core.fleet import Fleet
from stoker.framework.model import FleetSpec
from support.core_stage import CLUSTER, MIB, Stage


class LookingAtAll(Stage):
    """Its catalog remembers no changes, so its fleet looks at all each time."""

    def do(self, event: ev.Event, *, after_ms: int = 0) -> Any:
        self.catalog.launch_changes.clear()
        return super().do(event, after_ms=after_ms)


def lived(stage: Stage) -> list[Any]:
    """Live through ends, resizes and a fail-over; return what the fleet knew after each."""
    known = []

    def note() -> None:
        stage.tick()
        stage.do(ev.OfferRescinded("none"))  # what the tick ended is followed with the next event
        fleet = stage.fleet
        launches = sorted((i, x.since_ms, x.is_inherited) for i, x in fleet.launches.items())
        backoffs = {slot_id: (x.until_ms, x.delay_ms) for slot_id, x in fleet.backoffs.items()}
        known.append((launches, dict(fleet.empty_since_ms), backoffs, sorted(fleet.executors)))
        assert fleet.launches.keys() == stage.catalog.launches.keys()

    stage.start(agents=5)
    note()
    for instances, mem_bytes in ((6, 64), (8, 64), (3, 64), (3, 96)):
        launch = next(iter(stage.catalog.launches.values()))
        stage.status(launch.task_id, "TASK_FAILED", agent_id=launch.agent_id)
        note()
        stage.ask(ev.FleetRequested(7, FleetSpec(instances, mem_bytes * MIB)))
        note()
        stage.offer(*(f"agent-{n}" for n in range(1, 10)))
        note()
        for launch in list(stage.catalog.launches.values()):
            stage.beat(launch, whole=True)
        note()
    stage.lead()
    stage.subscribe()
    note()
    return known


def test_what_changed_tells_the_same_as_a_look_at_all() -> None:
    assert lived(Stage(instances=6)) == lived(LookingAtAll(instances=6))


def test_one_end_among_many_is_followed_without_a_look_at_all() -> None:
    """10,000 slots, and a rack that fails: each of its tasks' ends is an event of its own."""

    class Unseen(dict[int, Any]):
        def __iter__(self) -> Any:
            raise AssertionError("looked at all")

        keys = values = items = __iter__

    stage = Stage(instances=3).start()
    stage.status(stage.launch(2).task_id, "TASK_FAILED", agent_id="agent-2")
    catalog = stage.catalog
    catalog.slots, catalog.launches = Unseen(catalog.slots), Unseen(catalog.launches)
    stage.fleet.observe(ev.Stamp(999, stage.now_ms, 0), ev.OfferRescinded("offer"), catalog)
    assert sorted(stage.fleet.launches) == [1, 3] and set(stage.fleet.backoffs) == {2}


@pytest.mark.parametrize("more", [0, 1])
def test_who_is_far_behind_looks_at_all(more: int) -> None:
    count = LAUNCH_CHANGES_MAX + more
    stage = Stage(instances=count, slots_frame_max=2 * count)
    stage.lead()
    stage.subscribe()
    assert (
        len(stage.fleet.empty_since_ms) == count and len(stage.catalog.launch_changes) == LAUNCH_CHANGES_MAX
    )
    late = Fleet(stage.settings)
    began = ev.LeadershipBegan(2, stage.spec, CLUSTER, "test", bytes(16))
    late.observe(ev.Stamp(1, stage.now_ms, 0), began, stage.catalog)
    assert len(late.empty_since_ms) == count


def test_a_copy_of_the_catalog_goes_its_own_way() -> None:
    stage = Stage(instances=2).start()
    twin = stage.catalog.copy()
    before = list(twin.launch_changes)
    stage.status(stage.launch(1).task_id, "TASK_FAILED")
    assert list(twin.launch_changes) == before != list(stage.catalog.launch_changes)

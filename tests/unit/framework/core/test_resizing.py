"""Executors of another size than their slots: ended only once the new size is known to fit, and explained until then."""

from __future__ import annotations

from typing import Any

import pytest

from stoker.framework.core import actions as a
from stoker.framework.core import entries as e
from stoker.framework.core import events as ev
from stoker.framework.core import views
from stoker.framework.core.resizing import ROOM_MS
from stoker.framework.model import Constraint, FleetSpec, Offer, Resources, overhead_bytes
from support.core_stage import MIB, Stage, actions_of, entries_of
from support.volume_stage import DISK, Disks

MEM = 64 * MIB
LARGE = 512 * MIB
WHOLE = LARGE + overhead_bytes(LARGE, 0)
NEEDED = WHOLE - MEM - overhead_bytes(MEM, 0)  # beside what the executor has


def resized(mem_bytes: int = LARGE, *, instances: int = 2, **settings: int) -> Stage:
    """A fleet that runs, and is to have another size."""
    stage = Stage(instances=instances, **settings).start()
    assert stage.ask(ev.FleetRequested(7, FleetSpec(instances, mem_bytes))).refusal is None
    stage.tick()
    return stage


def reason(stage: Stage, slot_id: int = 1) -> str:
    rows = views.executor_views(stage.catalog, stage.fleet, stage.now_ms)
    (row,) = [row for row in rows if row["slot"] == slot_id]
    assert row["state"] == "RUNNING"
    return str(row["reason"] or "")


def ended(stage: Stage, frames: int = 4) -> list[int]:
    """Return the slots whose executors are ended within some ticks."""
    before = dict(stage.catalog.launches)
    ends = [x for _ in range(frames) for x in entries_of(stage.tick(), e.LaunchEnded)]
    return [before[x.launch_id].slot_id for x in ends]


@pytest.mark.parametrize(
    ("offers", "who"),
    [
        ({}, []),
        ({"agent-1": {"mem_bytes": NEEDED - 1}}, []),
        ({"agent-1": {"mem_bytes": NEEDED, "cpus_milli": 0, "ports": ()}}, [1]),
        ({"agent-2": {"mem_bytes": NEEDED, "cpus_milli": 0, "ports": ()}}, [2]),
        ({"agent-9": {"mem_bytes": WHOLE - 1}}, []),
        ({"agent-9": {"mem_bytes": WHOLE}}, [1]),
        ({"agent-9": {"mem_bytes": WHOLE, "cpus_milli": 499}}, []),
    ],
    ids=str,
)
def test_an_executor_is_ended_for_its_size_where_the_new_one_fits(
    offers: dict[str, dict[str, Any]], who: list[int]
) -> None:
    stage = resized()
    assert not ended(stage), "nothing was offered yet"
    stage.do(ev.OffersReceived(tuple(stage.make_offer(name, **what) for name, what in offers.items())))
    assert ended(stage) == who, "one at a time"


def test_a_smaller_one_fits_where_it_is_without_an_offer() -> None:
    stage = Stage(instances=2).start()
    stage.ask(ev.FleetRequested(7, FleetSpec(2, 32 * MIB)))
    assert ended(stage) == [1]


@pytest.mark.parametrize(("role", "who"), [("cache", [1]), ("*", [])])
def test_its_own_memory_is_there_for_another_role_that_the_fleet_is_to_have(
    role: str, who: list[int]
) -> None:
    """What is offered besides, the disk, is offered to that role."""
    stage = Stage(instances=2).start()
    stage.ask(ev.FleetRequested(7, FleetSpec(2, MEM, role="cache", disk_bytes=DISK)))
    stage.tick()
    stage.do(
        ev.OffersReceived((Offer("o", "agent-1", "agent-1", Resources(0, MEM, 2 * DISK, ()), role=role),))
    )
    assert ended(stage) == who


def test_what_no_agent_can_give_ends_nobody_and_is_told_with_the_nearest_fit() -> None:
    stage = resized(64 * 1024 * MIB)
    assert "64.0 MiB memory, its slot 64.0 GiB memory now" in reason(stage)
    for _ in range(10):
        stage.offer("agent-1", "agent-9", mem_bytes=256 * MIB)
        assert not ended(stage)
        for launch in stage.catalog.launches.values():
            stage.beat(launch)
    assert len(stage.catalog.launches) == 2
    assert "there is no room: it runs on; nearest is agent-" in reason(stage)
    assert "of 64.3 GiB memory" in reason(stage)
    stage.ask(ev.FleetRequested(7, FleetSpec(2, MEM)))
    stage.tick()
    assert not reason(stage) and not ended(stage) and not stage.fleet.resizing.nearest


def test_offers_are_asked_for_and_declined_for_a_short_time_until_it_fits() -> None:
    stage = Stage(instances=1).start()
    stage.pass_time(10_000)
    assert stage.fleet.suppressed
    stage.ask(ev.FleetRequested(7, FleetSpec(1, LARGE)))
    assert any(actions_of(f, a.Revive) for f in stage.pass_time(6_000))
    frame = stage.offer("agent-1", mem_bytes=MEM)
    assert [x.refuse_ms for x in actions_of(frame, a.Decline)] == [stage.settings.decline_busy_ms]
    stage.ask(ev.FleetRequested(7, FleetSpec(1, MEM)))
    stage.pass_time(2_000)
    assert stage.fleet.suppressed, "quiet again"


def test_room_that_was_seen_too_long_ago_does_not_count() -> None:
    stage = resized()
    stage.beat(stage.launch(1), whole=True)
    other = stage.launch(2)
    stage.status(other.task_id, "TASK_FAILED", agent_id="agent-2")  # until it runs again nobody is ended
    stage.offer("agent-1", mem_bytes=NEEDED)
    assert [slot.slot_id for slot, _ in stage.fleet.resizing.with_room(stage.catalog, stage.now_ms)] == [1]
    assert not list(stage.fleet.resizing.with_room(stage.catalog, stage.now_ms + ROOM_MS + 1))
    assert not ended(stage)
    stage.pass_time(ROOM_MS + 1_000)
    stage.offer("agent-2", mem_bytes=1024 * MIB)
    stage.beat(stage.launch(2), whole=True)
    assert not ended(stage)
    stage.offer("agent-1", mem_bytes=NEEDED)
    assert ended(stage) == [1]


def test_its_own_place_counts_as_free_for_constraints() -> None:
    stage = Stage(instances=1)
    stage.spec = FleetSpec(1, MEM, constraints=(Constraint("hostname", "UNIQUE", ""),))
    stage.start()
    stage.ask(ev.FleetRequested(7, FleetSpec(1, 32 * MIB, constraints=stage.spec.constraints)))
    assert ended(stage) == [1]


@pytest.mark.parametrize(
    ("agent_id", "changes", "who"),
    [
        ("agent-1", {"mem_bytes": LARGE}, [1]),
        ("agent-9", {"mem_bytes": LARGE}, []),
        ("agent-1", {"disk_bytes": 5 * DISK}, [1]),
        ("agent-9", {"disk_bytes": 4 * DISK}, [1]),
        ("agent-9", {"disk_bytes": 5 * DISK}, []),
    ],
    ids=str,
)
def test_one_with_a_volume_is_replaced_where_that_is_unless_it_is_to_have_another(
    agent_id: str, changes: dict[str, int], who: list[int]
) -> None:
    """The agents have four times the disk besides."""
    stage = Disks().with_volume()
    assert stage.fleet_set(**changes).refusal is None
    stage.tick()
    assert not ended(stage)
    stage.bring(agent_id)
    assert ended(stage) == who

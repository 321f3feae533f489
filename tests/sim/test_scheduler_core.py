"""The whole scheduler core against a world in which everything goes wrong. A failure prints its seed.

Run one seed: `STOKER_SIM_SEED=7 pytest tests/sim`; more of them: `STOKER_SIM_RUNS=1000 pytest tests/sim`.
"""

from __future__ import annotations

import os

import pytest

from sim.executor import BLOCK_BYTES
from sim.world import Faults, World
from stoker.framework.core.fleet import TERMINAL_STATES
from stoker.framework.core.progress import job_progress
from stoker.framework.model import JobState

FIRST = int(os.environ.get("STOKER_SIM_SEED", "1"))
RUNS = int(os.environ.get("STOKER_SIM_RUNS", "1" if "STOKER_SIM_SEED" in os.environ else "6"))


def run(world: World, duration_ms: int, settle_ms: int = 150_000) -> None:
    try:
        world.run(duration_ms)
        world.settle(settle_ms)
        check_settled(world)
    except Exception as error:
        error.add_note(world.describe())
        raise


def check_settled(world: World) -> None:
    """After a quiet while, what is promised is so."""
    catalog, fleet = world.catalog, world.fleet
    assert catalog.fleet is not None
    assert len(catalog.slots) == catalog.fleet.instances
    running = [slot for slot in catalog.slots.values() if slot.launch_id in fleet.executors]
    assert len(running) == min(catalog.fleet.instances, len(world.agents)), "an executor is missing"
    alive = {t.task_id for t in world.tasks.values() if t.state not in TERMINAL_STATES}
    promised = {launch.task_id for launch in catalog.launches.values()}
    assert alive == promised, f"tasks nobody wants: {alive - promised}; missing: {promised - alive}"
    assert all(x.launch.mem_bytes == catalog.fleet.mem_bytes for x in world.executors.values())
    if len(running) == catalog.fleet.instances:
        assert fleet.suppressed, "offers are still wanted"
    assert fleet.residency_complete and not fleet.unanswered and not fleet.endings
    assert not any(dataset.is_listing for dataset in catalog.datasets.values())
    for executor in world.executors.values():
        assert executor.assignment is not None
        names = {d.name for d in executor.assignment.datasets}
        assert names == {d.name for d in catalog.datasets.values() if d.current}
        assert (executor.assignment.epoch, executor.assignment.placement_version) == (
            catalog.epoch,
            catalog.placement_version,
        )
        for key, held in executor.held.items():
            seen = fleet.executors[executor.launch.launch_id]
            bits = {
                i
                for i in range(8 * len(seen.datasets[key].bitmap))
                if seen.datasets[key].bitmap[i >> 3] >> (i & 7) & 1
            }
            assert bits == held, "the leader believes other blocks are there"
    if len(running) == catalog.fleet.instances:
        for job in catalog.active_jobs():
            raise AssertionError(f"{job} is not over: {job_progress(catalog, fleet, job)}")


@pytest.mark.parametrize("seed", range(FIRST, FIRST + RUNS))
def test_keeps_every_promise_when_everything_fails(seed: int) -> None:
    world = World(seed, agents=5, instances=3)
    run(world, 90_000)
    assert world.commits > 50


def test_takes_over_at_every_append() -> None:
    """The leader dies when a batch is durable and nothing of it performed: each third of the first ones."""
    for commit in range(1, 70, 3):
        world = World(commit, agents=3, instances=2, faults=Faults.none())
        world.crash_at_commit = commit
        world.at(200, lambda world=world: world.ask_add("alpha"))
        world.at(9_000, lambda world=world: world.ask_job("alpha", "load", ()))
        world.at(12_000, lambda world=world: world.ask_job("alpha", "free", ("d1",)))
        run(world, 20_000, 40_000)


def test_loads_everything_on_a_quiet_day() -> None:
    world = World(1, agents=3, instances=3, faults=Faults.none())
    world.at(100, lambda: world.ask_add("alpha"))
    world.at(8_000, lambda: world.ask_job("alpha", "load", ()))
    run(world, 12_000, 40_000)
    (job,) = world.catalog.jobs.values()
    assert job.state == JobState.SUCCEEDED, job
    dataset = world.catalog.dataset_named("alpha")
    assert dataset is not None and dataset.current is not None
    held = sum(len(blocks) for x in world.executors.values() for blocks in x.held.values())
    assert held == dataset.current.block_count * dataset.replicas
    assert job.bytes == dataset.current.block_count * BLOCK_BYTES


def test_waits_with_a_reason_when_there_are_fewer_agents_than_instances() -> None:
    from stoker.framework.core.views import executor_views

    world = World(1, agents=2, instances=3, faults=Faults.none())
    run(world, 20_000, 30_000)
    rows = executor_views(world.catalog, world.fleet, world.now_ms)
    assert [row["state"] for row in rows] == ["RUNNING", "RUNNING", "WAITING"]
    assert "one executor an agent" in rows[2]["reason"]

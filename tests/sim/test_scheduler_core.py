"""One scheduler in a world in which everything goes wrong. A failure prints its seed, and how to run it again.

Run one seed: `make sim SEED=7 RUNS=1`; more of them: `make sim RUNS=1000`.
"""

from __future__ import annotations

import pytest

from sim.executor import BLOCK_BYTES
from sim.faults import Faults
from sim.seeds import seeds
from sim.settled import run
from sim.world import World
from stoker.framework.core.views import executor_views
from stoker.framework.model import JobState


@pytest.mark.parametrize("seed", seeds(6))
def test_keeps_every_promise_when_everything_fails(seed: int) -> None:
    world = run(World(seed, agents=5), 90_000)
    assert world.truth.commits > 10


def test_loads_everything_on_a_quiet_day() -> None:
    world = World(2, agents=3, faults=Faults.none())
    world.at(5_000, lambda: world.users.ask_add("alpha"))
    world.at(15_000, lambda: world.users.ask_job("alpha", "load", ()))
    run(world, 20_000, 40_000)
    catalog = world.leader.catalog
    (job,) = catalog.jobs.values()
    assert job.state == JobState.SUCCEEDED, job
    dataset = catalog.dataset_named("alpha")
    assert dataset is not None and dataset.current is not None
    held = sum(len(blocks) for x in world.mesos.executors.values() for blocks in x.held.values())
    assert held == dataset.current.block_count * dataset.replicas
    assert job.bytes == dataset.current.block_count * BLOCK_BYTES


def test_waits_with_a_reason_when_there_are_fewer_agents_than_instances() -> None:
    world = World(1, agents=2, instances=3, faults=Faults.none())
    run(world, 20_000, 30_000)
    leader = world.leader
    rows = executor_views(leader.catalog, leader.fleet, leader.process.now_ms())
    assert [row["state"] for row in rows] == ["RUNNING", "RUNNING", "WAITING"]
    assert "one executor an agent" in rows[2]["reason"]


def test_one_seed_is_one_history() -> None:
    def history(seed: int) -> list[bytes]:
        world = World(seed, schedulers=3, faults=Faults.of_leaders())
        world.run(40_000)
        return world.truth.records

    assert history(3) == history(3)

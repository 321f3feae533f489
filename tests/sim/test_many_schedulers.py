"""Three schedulers: leaders die, stop and go on, are cut off and expire, ZooKeeper's servers fail; nothing promised is lost.

Run one seed: `make sim SEED=7 RUNS=1`; more of them: `make sim RUNS=1000`.
"""

from __future__ import annotations

import pytest

from sim.faults import Faults
from sim.seeds import seeds
from sim.settled import run
from sim.world import World


@pytest.mark.parametrize("seed", seeds(8))
def test_keeps_every_promise_when_leaders_fail(seed: int) -> None:
    world = run(World(seed, schedulers=3, faults=Faults.of_leaders(), timeout_ms=3_000), 90_000, 60_000)
    assert world.truth.epoch > 2


@pytest.mark.parametrize("seed", seeds(8))
def test_keeps_every_promise_when_everything_fails(seed: int) -> None:
    run(World(seed, schedulers=3, agents=5), 90_000, 100_000)

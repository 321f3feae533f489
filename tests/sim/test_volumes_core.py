"""Persistent volumes in a world in which everything goes wrong: none is lost, leaked, or destroyed unasked."""

from __future__ import annotations

import pytest

from sim.directories import leaked
from sim.embedded_mesos import MIB
from sim.faults import Faults
from sim.seeds import seeds
from sim.settled import run
from sim.world import World

DISK_BYTES = 256 * MIB


@pytest.mark.parametrize("seed", seeds(4))
def test_keeps_volumes_and_leaks_none_when_everything_fails(seed: int) -> None:
    run(World(seed, agents=5, disk_bytes=DISK_BYTES), 90_000, 240_000)


def test_executors_that_die_are_back_on_their_volumes() -> None:
    faults = Faults.none()
    faults.executor_dies = 0.05
    world = World(1, agents=5, faults=faults, disk_bytes=DISK_BYTES)
    run(world, 90_000)
    volumes = world.truth.catalog.volumes
    launches = len(world.truth.planned)
    assert launches > 10 and len(world.truth.volumes_planned) == 3, "each launch again on its slot's volume"
    assert {v.slot_id for v in volumes.values()} == set(world.truth.catalog.slots)


def test_volumes_of_a_shrunk_fleet_are_destroyed_and_their_disk_is_free_again() -> None:
    world = World(2, agents=5, faults=Faults.none(), disk_bytes=DISK_BYTES)
    world.at(30_000, lambda: world.users.ask_instances(0))
    run(world, 40_000)
    disks = world.mesos.disks
    assert sorted(disks.destroyed) == [1, 2, 3] and not world.truth.catalog.volumes
    assert not disks.directories and not leaked(world.mesos.estates())

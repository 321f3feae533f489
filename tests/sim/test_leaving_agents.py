"""Agents come and go as their operators wish: nothing that only one executor holds is dropped, nothing is launched in vain."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sim.embedded_mesos import SETTINGS as MESOS_SETTINGS
from sim.faults import Faults
from sim.seeds import seeds
from sim.settled import run
from sim.world import World
from stoker.framework.core import entries as e
from stoker.framework.core.codec import decode_entry
from stoker.framework.core.events import DatasetRequested, DrainRequested


def entries(world: World) -> list[e.Entry]:
    return [decode_entry(record) for record in world.truth.records]


def add(world: World) -> None:
    world.users.ask(
        "add",
        lambda _, r: DatasetRequested(r, "alpha", "mem://20", {}, 1, "keep", "mem", 0),
        repeatable=True,
    )


def drain_fullest(world: World) -> None:
    executors = world.mesos.executors.values()
    fullest = max(executors, key=lambda x: sum(map(len, x.held.values())))
    agent_id = fullest.launch.agent_id
    world.users.ask("drain", lambda _, r: DrainRequested(r, agent_id, "fullest"), repeatable=True)


@pytest.mark.parametrize("seed", seeds(4))
def test_drains_and_maintenances_drop_nothing_that_nobody_else_holds(seed: int) -> None:
    """A leader fails while one drain goes on."""
    faults = replace(Faults.none(), drains=0.06, maintenance=0.006)
    world = World(seed, schedulers=2, agents=7, instances=4, faults=faults)
    world.checks_drains = True
    world.at(5_000, lambda: add(world))
    world.at(12_000, lambda: world.users.ask_job("alpha", "load", ()))
    world.at(40_000, lambda: drain_fullest(world))
    world.at(41_000, lambda: next(s for s in world.schedulers if s.is_leading).kill())
    world.at(50_000, lambda: [s.start() for s in world.schedulers if not s.process.is_alive])
    run(world, 120_000)
    assert world.drained_blocks > 0
    assert any(isinstance(entry, e.AgentDrainSet) for entry in entries(world))


@pytest.mark.parametrize("seed", seeds(4))
def test_agents_that_cannot_be_reached_come_back_and_leaders_fail_meanwhile(seed: int) -> None:
    faults = replace(Faults.none(), agent_cut=0.01, scheduler_killed=0.02, master_goes=0.01, drains=0.02)
    world = run(World(seed, schedulers=3, agents=5, faults=faults), 120_000)
    assert len(world.mesos.framework_ids) == 1


def test_an_agent_that_returns_in_time_keeps_its_executor() -> None:
    world = World(3, agents=3, faults=Faults.none())
    world.run(20_000)
    agent = world.mesos.sim_agents[0]
    before = {launch.launch_id for launch in world.leader.catalog.launches.values()}
    world.mesos.cut_agent(agent, is_silent=True)
    world.run(30_000)
    world.mesos.heal_agent(agent)
    run(world, 10_000)
    assert {launch.launch_id for launch in world.leader.catalog.launches.values()} == before


@pytest.mark.parametrize("instances", [1, 3])
@pytest.mark.parametrize("away_ms", [11_000, 30_000, 70_000])
def test_an_agent_that_is_cut_off_for_less_than_mesos_waits_keeps_its_executor(
    instances: int, away_ms: int
) -> None:
    """An order to end its executor would wait for it, and throw away what it holds. Another leads meanwhile."""
    mesos_settings = replace(MESOS_SETTINGS, agent_ping_timeout_ms=15_000)  # of which five may be missed
    world = World(
        4,
        schedulers=2,
        agents=3,
        instances=instances,
        faults=Faults.none(),
        mesos_settings=mesos_settings,
    )
    calls: list[str] = []
    world.mesos.on_call = lambda kind, call: calls.append(kind)
    world.run(20_000)
    before = {x.task_id: x.incarnation for x in world.mesos.executors.values()}
    agent = world.mesos.agents[next(iter(world.leader.catalog.launches.values())).agent_id]
    world.mesos.cut_agent(agent, is_silent=True)
    world.run(away_ms // 2)
    next(s for s in world.schedulers if s.is_leading).kill()
    world.run(away_ms - away_ms // 2)
    assert agent.agent_id in world.mesos.registered(), "Mesos has not noticed"
    world.mesos.heal_agent(agent)
    world.at(10_000, lambda: [s.start() for s in world.schedulers if not s.process.is_alive])
    run(world, 20_000, 60_000)
    assert {x.task_id: x.incarnation for x in world.mesos.executors.values()} == before
    assert not {"SHUTDOWN", "KILL"} & set(calls)


def test_an_agent_that_stays_away_is_replaced_and_what_returns_too_late_is_killed() -> None:
    world = World(3, agents=4, faults=Faults.none())
    world.run(20_000)
    launch = next(iter(world.leader.catalog.launches.values()))
    agent = world.mesos.agents[launch.agent_id]
    world.mesos.cut_agent(agent, is_silent=True)
    world.run(80_000)
    catalog = world.leader.catalog
    assert launch.launch_id not in catalog.launches and len(catalog.launches) == 3
    world.mesos.heal_agent(agent)
    run(world, 10_000)

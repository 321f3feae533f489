"""A cluster that has what it wants says nothing to Mesos but to reconcile, as often as it is set to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from sim.embedded_mesos import MIB
from sim.faults import Faults
from sim.leading import SETTINGS
from sim.settled import check_settled
from sim.world import World
from stoker.mesos.embedded.core.values import Settings as MesosSettings

MINUTE = 60_000
INTERVAL_MS = 2 * MINUTE


@pytest.fixture(params=[0, 256 * MIB], ids=["memory", "disk"])
def world(request: Any) -> Iterator[World]:
    world = World(
        1,
        schedulers=2,
        agents=5,
        faults=Faults.none(),
        disk_bytes=request.param,
        settings=replace(SETTINGS, reconcile_interval_ms=INTERVAL_MS),
        mesos_settings=MesosSettings(),
    )
    yield world
    check_settled(world)


def test_reconciles_and_is_silent_otherwise(world: World) -> None:
    world.at(5_000, lambda: world.users.ask_add("alpha"))
    world.at(15_000, lambda: world.users.ask_job("alpha", "load", ()))
    world.run(5 * MINUTE)
    calls: list[tuple[int, str]] = []
    world.mesos.on_call = lambda kind, call: calls.append((world.timeline.now_ms, kind))
    world.run(5 * MINUTE)
    assert [kind for _, kind in calls] == ["RECONCILE"] * len(calls)
    assert len(calls) in (2, 3)
    for (before_ms, _), (then_ms, _) in zip(calls, calls[1:], strict=False):
        assert abs(then_ms - before_ms - INTERVAL_MS) < 0.03 * INTERVAL_MS  # the scheduler's clock may drift


def test_says_more_once_something_is_wanted(world: World) -> None:
    world.run(2 * MINUTE)
    calls: list[str] = []
    world.mesos.on_call = lambda kind, call: calls.append(kind)
    world.users.ask_instances(4)
    world.run(MINUTE)
    assert {"REVIVE", "ACCEPT", "SUPPRESS"} <= set(calls)

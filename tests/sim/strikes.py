"""What can befall a leader at a certain append, and a short history in which it does."""

from __future__ import annotations

from collections.abc import Callable

import greenlet

from sim.faults import Faults
from sim.process import Process
from sim.scheduler import SimScheduler
from sim.truth import is_append
from sim.world import World
from sim.zookeeper import Request

DOWN_MS = 9_000  # longer than the session
SHORT_MS = 2_600  # shorter than the session, longer than the deadline that a leader sets itself
HISTORY_MS = 17_000

Strike = Callable[[World, SimScheduler], None]


def kill(world: World, scheduler: SimScheduler) -> None:
    scheduler.kill()
    world.at(DOWN_MS, scheduler.start)


def stop(world: World, scheduler: SimScheduler) -> None:
    scheduler.process.stop()
    world.at(DOWN_MS, scheduler.process.go_on)


def stop_shortly(world: World, scheduler: SimScheduler) -> None:
    scheduler.process.stop()
    world.at(SHORT_MS, scheduler.process.go_on)


def cut(world: World, scheduler: SimScheduler) -> None:
    world.cut(scheduler, DOWN_MS)


def expire(world: World, scheduler: SimScheduler) -> None:
    world.expire(scheduler)


def disconnect(world: World, scheduler: SimScheduler) -> None:
    world.break_connection(scheduler)


STRIKES: tuple[Strike, ...] = (kill, stop, stop_shortly, cut, expire, disconnect)
POINTS = ("before", "when durable", "appended", "acted")


def history(seed: int, scheduler_class: type[SimScheduler] = SimScheduler) -> World:
    world = World(
        seed,
        schedulers=3,
        agents=3,
        instances=2,
        faults=Faults.none(),
        timeout_ms=3_000,
        scheduler_class=scheduler_class,
    )
    users = world.users
    for at_ms, ask in (
        (5_000, lambda: users.ask_add("alpha")),
        (6_000, lambda: users.ask_add("beta")),
        (9_000, lambda: users.ask_job("alpha", "load", ())),
        (10_000, lambda: users.ask_change("alpha")),
        (11_000, lambda: users.ask_job("beta", "load", ("d1",))),
        (12_000, lambda: users.ask_job("alpha", "free", ("d1",))),
        (13_000, lambda: users.ask_refresh("alpha")),
        (14_000, lambda: users.ask_remove("beta")),
        (15_000, lambda: users.ask_instances(3)),
        (16_000, lambda: users.ask_add("beta")),
    ):
        world.at(at_ms, ask)
    return world


def strike_at(world: World, number: int, point: str, strike: Strike) -> list[str]:
    """Have the leader struck once, at the `number`th append; return a list that gets who was."""
    struck: list[str] = []

    def now(process: Process | None) -> None:
        scheduler = next(s for s in world.schedulers if s.leading and process in (None, s.process))
        world.timeline.tell(f"--- {scheduler.name}: {strike.__name__} {point} append {number}")
        struck.append(scheduler.name)
        strike(world, scheduler)

    def on_request(process: Process, request: Request) -> bool:
        if struck or point != "before" or not is_append(request) or world.truth.commits != number - 1:
            return True
        world.at(0, lambda: now(process))
        struck.append("")
        return False

    def on_batch(count: int) -> None:
        if not struck and point == "when durable" and count == number:
            now(None)

    def on_passed(scheduler: SimScheduler, passed: str) -> None:
        if not struck and passed == point and world.truth.commits >= number:
            now(scheduler.process)
            if not scheduler.process.is_alive:
                raise greenlet.GreenletExit

    world.ensemble.on_request = on_request
    world.on_batch = on_batch
    world.on_passed = on_passed
    return struck


def overtake(world: World, number: int) -> list[str]:
    """Hold the leader's `number`th append up on its way until another leader has just taken the epoch, as an operator may
    bring about who deletes an election node. Return a list that gets the name of who was overtaken.
    """
    overtaken: list[str] = []

    def on_request(process: Process, request: Request) -> bool:
        if not overtaken and is_append(request) and world.truth.commits == number - 1:
            overtaken.append(process.name)
            (scheduler,) = (s for s in world.schedulers if s.process is process)
            for line in world.ensemble.lines(process.name):
                line.is_cut = True
            world.at(0, lambda: world.unseat(scheduler))
        return True

    def on_epoch(epoch: int) -> None:
        for name in overtaken:
            for line in world.ensemble.lines(name):
                world.at(0, line.heal)

    world.ensemble.on_request = on_request
    world.on_epoch = on_epoch
    return overtaken

"""A week in the life of a cluster: what operators, machines and networks do to it, and what must be so after each of it.

In a week each of EVENTS happens twice, in any order: once alone, and once with the leading scheduler killed in its middle. Between
them all is quiet. Everybody is some twenty times as slow as in life: executors report twice a minute, the scheduler looks at
all it has six times a minute, ZooKeeper's sessions last three minutes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from random import Random
from typing import Any

from sim.directories import leaked
from sim.embedded_mesos import MIB, UNIX_MS, SimAgent
from sim.faults import Faults
from sim.kazoo_model import SimKazoo
from sim.leading import SETTINGS
from sim.scheduler import SimScheduler
from sim.settled import check_settled
from sim.world import World
from stoker.framework.core.events import DatasetRequested, DrainRequested, DrainUndoRequested
from stoker.framework.core.volumes import VolumeState
from stoker.mesos.embedded.core.values import Settings as MesosSettings
from stoker.zk.session import Session
from stoker.zk.zookeeper import ZooKeeperHome

SECOND, MINUTE, HOUR, DAY = 1_000, 60_000, 3_600_000, 86_400_000
DAYS = 7
PERIOD_MS = 30 * SECOND
DISK_BYTES = 256 * MIB
INSTANCES = 3
BLOCKS = 20  # of each dataset: files, of one block each
UNREACHABLE_DELAY_MS = 10 * MINUTE
PATIENCE_MS = 20 * MINUTE  # with an agent that has a slot's volume
NOTICE_MS = 30 * MINUTE  # of a maintenance
SETTLE_MS = 40 * MINUTE
EVENT_MS_MAX = 3 * HOUR  # with what it takes to settle
FAILOVER_MS_MAX = 3 * MINUTE  # from the step of an event
SESSION_TIMEOUT_MS = 3 * MINUTE
MASTER_AWAY_MS_MAX = 20 * SECOND

SLOW = replace(
    SETTINGS,
    tick_ms=10 * SECOND,
    heartbeat_timeout_ms=4 * MINUTE,
    register_timeout_ms=4 * MINUTE,
    residency_grace_ms=2 * MINUTE,
    ending_grace_ms=2 * MINUTE,
    slot_out_ms=30 * MINUTE,
    reconcile_interval_ms=10 * MINUTE,
    unknown_patience_ms=4 * MINUTE,
    unreachable_delay_ms=UNREACHABLE_DELAY_MS,
    volume_patience_ms=PATIENCE_MS,
    maintenance_soon_ms=HOUR,
    maintenance_forget_ms=3 * MINUTE,
    inverse_decline_ms=MINUTE,
    inverse_accept_ms=MINUTE,
    job_unfit_ms=5 * MINUTE,
)
MESOS = MesosSettings(allocation_interval_ms=20 * SECOND, heartbeat_interval_ms=MINUTE)


class SlowSession(Session):
    """Its attendant looks once a probe, not twice a second."""

    def _tick_s(self) -> float:
        return self._core.probe_interval_ms / 1000 if self._core.timeout_ms else super()._tick_s()


class SlowScheduler(SimScheduler):
    def make_home(self, client: SimKazoo) -> ZooKeeperHome:
        home: Any = super().make_home(client)
        home._session.__class__ = SlowSession
        return home  # type: ignore[no-any-return]


Event = Callable[["Week"], Iterator[int]]  # yields how long it waits


class Week:
    def __init__(self, seed: int, *, scheduler_class: type[SimScheduler] = SlowScheduler) -> None:
        self.world = World(
            seed,
            schedulers=2,
            agents=6,
            instances=INSTANCES,
            servers=1,
            faults=Faults.none(),
            timeout_ms=SESSION_TIMEOUT_MS,
            disk_bytes=DISK_BYTES,
            scheduler_class=scheduler_class,
            settings=SLOW,
            mesos_settings=MESOS,
            period_ms=PERIOD_MS,
        )
        self.world.checks_drains = True
        self.random = self.world.timeline.random
        self._began_ms = self.world.timeline.now_ms
        self.told: list[str] = []
        self._scene = "loading"
        self.failovers = 0

    # --- the plot

    def run(self, plot: Iterable[tuple[Event, bool]], days: float = 0) -> Week:
        """Let the fleet come up and load; then the events happen, one after another, each on what the one before left.

        `plot`: events, and whether the leader is killed in the middle; they are spread over `days`, and one by one.
        """
        try:
            self._load()
            self._play(list(plot), days)
            self._check()
        except AssertionError as error:
            if not getattr(error, "__notes__", None):  # the world has not told its story yet
                error.add_note(self.world.describe())
            error.add_note(f"in {self._scene}, after {self.told}")
            raise
        return self

    def _play(self, plot: list[tuple[Event, bool]], days: float) -> None:
        began_ms = self.world.timeline.now_ms
        for number, (event, has_failover) in enumerate(plot, 1):
            ends_ms = began_ms + int(days * DAY * number / len(plot))
            self._pass(self.random.randint(0, max(0, ends_ms - self.world.timeline.now_ms - EVENT_MS_MAX)))
            self._happen(event, has_failover)
            self._pass(max(0, ends_ms - self.world.timeline.now_ms))

    def _load(self) -> None:
        world = self.world
        self._pass(10 * MINUTE)
        for name, tier in (("alpha", "ssd"), ("beta", "mem")):
            world.users.ask(
                f"add {name}",
                lambda _, r, name=name, tier=tier: DatasetRequested(  # type: ignore[misc]
                    r, name, f"mem://{BLOCKS}", {}, 1, "keep", tier, 0
                ),
                repeatable=True,
            )
        self._pass(10 * MINUTE)
        for name in ("alpha", "beta"):
            world.users.ask_job(name, "load", ())
        self._pass(HOUR)
        self._check()
        assert sum(world.mesos.reads.values()) == BLOCKS, "each block is read once"

    def _happen(self, event: Event, has_failover: bool) -> None:
        name = self._scene = event.__name__ + " with a fail-over" * has_failover
        self.world.timeline.tell(f"=== {name}")
        reads, launches = sum(self.world.mesos.reads.values()), self.launches()
        failover_step = self.random.choice((1, 1, 2)) if has_failover else 0
        for step, wait_ms in enumerate(itertools.chain(event(self), [SETTLE_MS]), 1):
            if step == failover_step:
                self.world.at(self.random.randint(0, min(wait_ms, FAILOVER_MS_MAX)), self._fail_over)
            self._pass(wait_ms)
        self._check()
        read = sum(self.world.mesos.reads.values()) - reads
        self.told.append(f"{name}: {read} blocks read again, {len(self.launches() - launches)} launches")
        assert read == 0 or event in MAY_READ, f"{name}: {read} blocks of volumes were read again"
        assert event not in LAUNCHES_NOTHING or self.launches() == launches, (
            f"{name}: executors were launched"
        )

    def _fail_over(self) -> None:
        """The leader is killed, and started again some time later."""
        leader = next((s for s in self.world.schedulers if s.is_leading), None)
        if leader is not None:
            self.failovers += 1
            leader.kill()
            self.world.at(self.random.randint(10 * SECOND, 4 * MINUTE), leader.start)

    def _pass(self, duration_ms: int) -> None:
        self.world.run(duration_ms)

    def _check(self) -> None:
        check_settled(self.world)
        mesos, truth = self.world.mesos, self.world.truth
        assert not leaked(mesos.estates()), f"disk is reserved for nothing: {leaked(mesos.estates())}"
        assert all(volume.state is VolumeState.READY for volume in truth.catalog.volumes.values())
        assert not mesos.disks.destroyed, f"volumes are destroyed: {mesos.disks.destroyed}"
        assert len(mesos.framework_ids) == 1
        held = {i for x in mesos.executors.values() for i in x.held.get((1, 1), ())}
        assert held == set(range(BLOCKS)), f"blocks are missing: {set(range(BLOCKS)) - held}"

    # --- what events ask

    def launches(self) -> set[int]:
        return set(self.world.truth.catalog.launches)

    def used(self) -> SimAgent:
        """Return one of the agents that have an executor."""
        agents = {x.launch.agent_id for x in self.world.mesos.executors.values()}
        return self.world.mesos.agents[self.random.choice(sorted(agents))]

    @property
    def days(self) -> float:
        return (self.world.timeline.now_ms - self._began_ms) / DAY

    def order(self, kind: str, **body: Any) -> None:
        answer = self.world.mesos.order(kind, **body)
        assert answer.status == 200, answer

    def plan_maintenance(self, agent: SimAgent, begins_ms: int) -> None:
        agent.window_ms = UNIX_MS + self.world.timeline.now_ms + begins_ms
        self.world.mesos.schedule()

    def take_down(self, agent: SimAgent) -> None:
        """Do as an operator whose maintenance begins: Mesos removes the agent, and the machine is switched off."""
        self.order("START_MAINTENANCE", machines=[self.world.mesos.machine(agent)])
        assert not agent.is_there
        self.world.mesos.lose_agent(agent, None)

    def bring_up(self, agent: SimAgent) -> None:
        """End the maintenance, which Mesos drops from its schedule. Nobody is on the machine, the fleet has done without."""
        agent_id, catalog = agent.agent_id, self.world.truth.catalog
        assert catalog.launch_on_agent(agent_id) is None, f"{agent_id} is down and has a launch"
        assert len(self.world.mesos.executors) == INSTANCES, "a lost executor is not replaced"
        assert not leaked(self.world.mesos.estates())
        self.order("STOP_MAINTENANCE", machines=[self.world.mesos.machine(agent)])
        agent.window_ms = 0
        self.world.mesos.start_agent(agent, is_rebooted=True)


def a_plot(random: Random) -> list[tuple[Event, bool]]:
    """Return the events of a week."""
    plot = list(itertools.product(EVENTS, (False, True)))
    return random.sample(plot, len(plot))


def agents_restart(week: Week) -> Iterator[int]:
    """One after another, as for a new version of Mesos; their executors do not notice."""
    mesos = week.world.mesos
    for agent in mesos.sim_agents:
        mesos.restart_agent(agent, week.random.randint(100, 20 * SECOND))
        yield MINUTE


def an_agent_is_lost_and_returns(week: Week) -> Iterator[int]:
    """Mesos says that it is unreachable; it comes back before its executor is replaced."""
    mesos, agent = week.world.mesos, week.used()
    mesos.cut_agent(agent, is_silent=True)
    yield week.random.randint(2 * MINUTE, UNREACHABLE_DELAY_MS - 4 * MINUTE)
    mesos.heal_agent(agent)


def an_agent_returns_too_late(week: Week) -> Iterator[int]:
    """Its slot was given a new home meanwhile: what returns is killed, and its volume kept."""
    mesos, agent = week.world.mesos, week.used()
    (slot_id,) = (x.slot_id for x in mesos.executors.values() if x.launch.agent_id == agent.agent_id)
    mesos.cut_agent(agent, is_silent=True)
    yield UNREACHABLE_DELAY_MS + PATIENCE_MS + 15 * MINUTE
    slot = week.world.truth.catalog.slots[slot_id]
    launch = week.world.truth.catalog.launches[slot.launch_id]
    assert launch.agent_id != agent.agent_id, "it was not replaced"
    mesos.heal_agent(agent)


def a_machine_goes_down(week: Week) -> Iterator[int]:
    """It boots again, perhaps after its executor was given up: the slot has waited, and is launched on its volume."""
    mesos, agent = week.world.mesos, week.used()
    mesos.lose_agent(agent, week.random.randint(2 * MINUTE, UNREACHABLE_DELAY_MS + PATIENCE_MS - 8 * MINUTE))
    yield 25 * MINUTE


def the_master_fails(week: Week) -> Iterator[int]:
    """Another one leads, which knows the agents, or not even those."""
    keeps, away_ms = week.random.random() < 0.5, week.random.randint(100, MASTER_AWAY_MS_MAX)
    week.world.mesos.fail_over(
        keeps_registry=keeps, away_ms=away_ms, return_ms=week.random.randint(0, 30 * SECOND)
    )
    yield 5 * MINUTE


def a_maintenance(week: Week) -> Iterator[int]:
    """Mesos asks for an agent; it is drained, given, and goes down in its window."""
    mesos, agent = week.world.mesos, week.used()
    week.plan_maintenance(agent, NOTICE_MS)
    yield NOTICE_MS
    used = {x.launch.agent_id for x in mesos.executors.values()}
    assert agent.agent_id not in used, "its agent is in use when its maintenance begins"
    mesos.lose_agent(agent, 20 * MINUTE)
    yield 25 * MINUTE
    agent.window_ms = 0
    mesos.schedule()


def a_machine_is_taken_down(week: Week) -> Iterator[int]:
    """In its window, when it is drained, by START_MAINTENANCE; STOP_MAINTENANCE lets it come back, perhaps after long."""
    agent = week.used()
    week.plan_maintenance(agent, NOTICE_MS)
    yield NOTICE_MS
    used = {x.launch.agent_id for x in week.world.mesos.executors.values()}
    assert agent.agent_id not in used, "its agent is in use when its maintenance begins"
    week.take_down(agent)
    yield week.random.randint(10 * MINUTE, 80 * MINUTE)
    week.bring_up(agent)


def a_machine_is_taken_down_in_use(week: Week) -> Iterator[int]:
    """The operator does not wait for the drain: its task is lost, and its slot goes elsewhere."""
    agent = week.used()
    week.plan_maintenance(agent, 0)
    yield week.random.randint(0, 30 * SECOND)
    week.take_down(agent)
    yield week.random.randint(UNREACHABLE_DELAY_MS + PATIENCE_MS, 80 * MINUTE)
    week.bring_up(agent)


def an_operator_drains_an_agent_by_mesos(week: Week) -> Iterator[int]:
    """Mesos kills what is there, and nobody launches there until it is reactivated."""
    agent_id = {"value": week.used().agent_id}
    week.order("DRAIN_AGENT", agent_id=agent_id, max_grace_period={"seconds": 30})
    yield 20 * MINUTE
    used = {x.launch.agent_id for x in week.world.mesos.executors.values()}
    assert agent_id["value"] not in used
    week.order("REACTIVATE_AGENT", agent_id=agent_id)


def an_agent_is_drained(week: Week) -> Iterator[int]:
    """By `stoker drain`: what only its executor has is copied first."""
    agent_id = week.used().agent_id
    users, key = week.world.users, f"drain-{len(week.told)}"
    users.ask("drain", lambda _, r: DrainRequested(r, agent_id, key), repeatable=True)
    yield 40 * MINUTE
    used = {x.launch.agent_id for x in week.world.mesos.executors.values()}
    assert agent_id not in used, "it is not drained"
    users.ask("undo", lambda _, r: DrainUndoRequested(r, agent_id), repeatable=True)


def an_agent_is_gone(week: Week) -> Iterator[int]:
    """Marked gone, with its disk; another machine comes in its place."""
    mesos, agent = week.world.mesos, week.used()
    work_dir = mesos.cluster.agent(agent.number).spec.work_dir
    week.order("MARK_AGENT_GONE", agent_id={"value": agent.agent_id})
    yield 30 * MINUTE
    mesos.disks.wipe(work_dir)
    mesos.start_agent(agent, is_wiped=True)


EVENTS: tuple[Event, ...] = (
    agents_restart,
    an_agent_is_lost_and_returns,
    an_agent_returns_too_late,
    a_machine_goes_down,
    the_master_fails,
    a_maintenance,
    a_machine_is_taken_down,
    a_machine_is_taken_down_in_use,
    an_operator_drains_an_agent_by_mesos,
    an_agent_is_drained,
    an_agent_is_gone,
)
LAUNCHES_NOTHING = (agents_restart, an_agent_is_lost_and_returns, the_master_fails)
MAY_READ = (
    an_agent_returns_too_late,
    a_machine_is_taken_down_in_use,
    an_operator_drains_an_agent_by_mesos,
    an_agent_is_gone,
)

"""A week in the life of a cluster: what operators, machines and networks do to it, and what must be so after each of it.

Between the events all is quiet and everybody slow: executors report twice a minute, so that a week takes a minute. In the middle
of most events the leading scheduler is killed as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
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
PERIOD_MS = 30 * SECOND
DISK_BYTES = 256 * MIB
BLOCKS = 20  # of each dataset: files, of one block each
UNREACHABLE_DELAY_MS = 10 * MINUTE
PATIENCE_MS = 20 * MINUTE  # with an agent that has a slot's volume
SETTLE_MS = 40 * MINUTE
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
    """Its attendant looks about once a probe, not twice a second."""

    def _tick_s(self) -> float:
        return self._core.probe_interval_ms / 2000 if self._core.timeout_ms else super()._tick_s()


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
            instances=3,
            servers=1,
            faults=Faults.none(),
            timeout_ms=90 * SECOND,
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
        self.failovers = 0

    # --- the plot

    def run(self, events: list[Event], quiet_ms: int) -> Week:
        """Let the fleet come up and load, then the events happen one after another, each on what the one before left."""
        self._load()
        for event in events:
            self._happen(event)
            self._pass(self.random.randint(quiet_ms // 2, quiet_ms * 3 // 2))
        return self

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
        self._check("loading")
        assert sum(world.mesos.reads.values()) == BLOCKS, "each block is read once"

    def _happen(self, event: Event) -> None:
        name = event.__name__
        self.world.timeline.tell(f"=== {name}")
        reads, launches = sum(self.world.mesos.reads.values()), self.launches()
        if self.random.random() < 0.7:
            self.world.at(self.random.randint(0, 3 * MINUTE), self._fail_over)
        for wait_ms in event(self):
            self._pass(wait_ms)
        self._pass(SETTLE_MS)
        self._check(name)
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

    def _check(self, name: str) -> None:
        try:
            check_settled(self.world)
            mesos, truth = self.world.mesos, self.world.truth
            assert not leaked(mesos.estates()), f"disk is reserved for nothing: {leaked(mesos.estates())}"
            assert all(volume.state is VolumeState.READY for volume in truth.catalog.volumes.values())
            assert not mesos.disks.destroyed, f"volumes are destroyed: {mesos.disks.destroyed}"
            assert len(mesos.framework_ids) == 1
            held = {i for x in mesos.executors.values() for i in x.held.get((1, 1), ())}
            assert held == set(range(BLOCKS)), f"blocks are missing: {set(range(BLOCKS)) - held}"
        except AssertionError as error:
            error.add_note(f"after {name}; {self.told}\n{self.world.describe()}")
            raise

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
    begins_ms = 30 * MINUTE
    agent.window_ms = UNIX_MS + week.world.timeline.now_ms + begins_ms
    mesos.schedule()
    yield begins_ms
    used = {x.launch.agent_id for x in mesos.executors.values()}
    assert agent.agent_id not in used, "its agent is in use when its maintenance begins"
    mesos.lose_agent(agent, 20 * MINUTE)
    yield 25 * MINUTE
    agent.window_ms = 0
    mesos.schedule()


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
    users = week.world.users
    users.ask("drain", lambda _, r: DrainRequested(r, agent_id, f"key-{agent_id}"), repeatable=True)
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
    an_operator_drains_an_agent_by_mesos,
    an_agent_is_drained,
    an_agent_is_gone,
)
LAUNCHES_NOTHING = (agents_restart, an_agent_is_lost_and_returns, the_master_fails)
MAY_READ = (an_agent_returns_too_late, an_operator_drains_an_agent_by_mesos, an_agent_is_gone)

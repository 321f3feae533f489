"""The simulation finds bugs: each of these mistakes, planted on purpose, is caught by some early seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from sim.executor import SimExecutor
from sim.faults import Faults
from sim.kazoo_model import SimKazoo
from sim.leading import Leading, Respond
from sim.scheduler import SimScheduler
from sim.strikes import history, overtake
from sim.world import World
from stoker.framework.core import events as ev
from stoker.framework.core.actions import Frame, StartListing
from stoker.framework.core.line import Waiting
from stoker.zk.core import append as w
from stoker.zk.core import leadership as lead
from stoker.zk.errors import JournalError
from stoker.zk.journal import Recovered
from stoker.zk.session import Session
from stoker.zk.zookeeper import ZooKeeperHome
from stoker.zk.zookeeper_journal import ZooKeeperJournal

SEEDS_MAX = 30
RUN_MS = 60_000


def faults(**more: float) -> Faults:
    """A bad day for leaders; or, with `more`, only what is told goes wrong."""
    if more:
        return replace(Faults.none(), **more)
    return replace(Faults.of_leaders(), server_lags=0.04, server_isolated=0.04, message_late=0.05)


def overtaken_world(seed: int, mutant: type[Mutant]) -> World:
    world = history(seed, mutant)
    overtake(world, 4 + seed)
    return world


def isolated_world(seed: int, mutant: type[Mutant]) -> World:
    """The leader's ZooKeeper server is cut off from the others, and answers reads for a while."""
    world = World(
        seed,
        schedulers=3,
        agents=9,
        instances=9,
        faults=faults(users=0.05),
        timeout_ms=3_000,
        scheduler_class=mutant,
    )
    world.mesos.subscribe_ms_max = 3_000  # so the old one is not told at once that it was failed over

    def isolate() -> None:
        (leader,) = (s.client for s in world.schedulers if s.is_leading)
        assert leader is not None
        server = leader.server
        if server is None or server is world.ensemble.leader:
            leader.drop()
            world.at(1_000, isolate)
            return
        server.is_isolated = True
        for client in (s.client for s in world.schedulers):
            if client is not None and client is not leader and client.server is server:
                client.drop()

    world.at(10_000, isolate)
    return world


def renaming_world(seed: int, mutant: type[Mutant]) -> World:
    """A dataset is removed, and another one of its name added at once, again and again."""
    world = World(seed, faults=faults(message_loss=0.1), scheduler_class=mutant)
    for at_ms in range(6_000, RUN_MS, 6_000):
        world.at(at_ms, lambda: world.users.ask_remove("alpha"))
        world.at(at_ms + 50, lambda: world.users.ask_add("alpha"))
    return world


def bad_world(seed: int, mutant: type[Mutant]) -> World:
    return World(seed, schedulers=3, faults=mutant.faults, timeout_ms=3_000, scheduler_class=mutant)


class Mutant(SimScheduler):
    """A scheduler whose session, journal or core machine is of another class; `faults` are those that show it soon."""

    faults = faults()
    make_world: Callable[[int, type[Mutant]], World] = staticmethod(bad_world)
    session_class: type[Session] = Session
    journal_class: type[ZooKeeperJournal] = ZooKeeperJournal
    leadership_class: type[lead.Leadership] = lead.Leadership
    window_class: type[w.AppendWindow] = w.AppendWindow

    def make_home(self, client: SimKazoo) -> ZooKeeperHome:
        home: Any = super().make_home(client)
        home._session.__class__ = self.session_class
        home._session._core.__class__ = self.leadership_class
        home._journal.__class__ = self.journal_class
        home._journal.window_class = self.window_class
        return home  # type: ignore[no-any-return]


class WithoutFence(Mutant):
    """An append does not ask whether the epoch is still its own."""

    make_world = staticmethod(overtaken_world)

    class journal_class(ZooKeeperJournal):
        def _fence(self) -> tuple[str, tuple[Any, ...]]:
            return "check", (self._layout.epoch, -1)


class WithoutDeadline(Mutant):
    """Nobody looks at the deadline before an action; only the timer does."""

    faults = faults(users=1, scheduler_stopped=0.1)

    class journal_class(ZooKeeperJournal):
        def check(self) -> None:
            pass


class ProbesOneServer(Mutant):
    """What a single server answers counts as the ensemble's word."""

    make_world = staticmethod(isolated_world)

    class session_class(Session):
        def _probe(self, fence: int | None) -> None:
            sent_ms = self._now_ms()
            self._request(
                lambda client: client.exists_async(self.layout.root), lambda _: lead.Answered(sent_ms)
            )


class LeadsOutOfTurn(Mutant):
    """Whoever has an election node believes that it is the first."""

    class leadership_class(lead.Leadership):
        def _seen(self, nodes: list[str]) -> list[lead.Command]:
            ours = [node for node in nodes if lead.is_node_of(node, self._candidate)]
            return super()._seen(ours + [node for node in nodes if node not in ours])


class TakesDoubtForSuccess(Mutant):
    """An append whose answer was lost is believed to have happened."""

    class journal_class(ZooKeeperJournal):
        def _perform(self, command: Any) -> w.AppendEvent:
            event = super()._perform(command)
            return w.Created() if isinstance(event, w.AnswerLost) else event


class MissesTheTail(Mutant):
    """It leads with what it had read before it took the epoch."""

    faults = faults(users=8, scheduler_unseated=0.2, server_lags=0.3)

    class journal_class(ZooKeeperJournal):
        def lead(self, from_index: int = 0) -> Recovered:
            read_from = self._reader.read_from
            self._reader.read_from = lambda index: iter(()) if self._lead else read_from(index)  # type: ignore[method-assign]
            return super().lead(from_index)


class CutsTooMuch(Mutant):
    """A snapshot forgets the whole log, also what is not in it."""

    faults = faults(users=8, executor_dies=0.1)

    class journal_class(ZooKeeperJournal):
        def _cut(self, index: int, name: str) -> None:
            self._delete([self._layout.batch(i) for i in sorted(self._log._sizes)])


class AppliesAfterAppend(Mutant):
    """What is decided changes the state only once it is durable: the next event is decided without it."""

    faults = faults(users=6, server_lags=0.1)

    class leading_class(Leading):
        def _apply(self, stamp: ev.Stamp, frame: Frame) -> None:
            self._after(lambda: super(type(self), self)._apply(stamp, frame))


class ActsBeforeDurable(Mutant):
    """Actions and answers go out before the append."""

    class leading_class(Leading):
        def _commit(self, batch: list[Waiting]) -> None:
            self._perform(batch)
            super()._commit([waiting for waiting in batch if waiting.records])

        def _perform(self, batch: list[Waiting]) -> None:
            super()._perform(batch)
            for waiting in batch:
                waiting.actions, waiting.told = (), None


class PublishesAtOnce(Mutant):
    """A dataset can be read once it is listed, whoever serves an earlier one of its name."""

    make_world = staticmethod(renaming_world)

    class leading_class(Leading):
        def _apply(self, stamp: ev.Stamp, frame: Frame) -> None:
            actions = (
                replace(x, clear_version=0) if isinstance(x, StartListing) else x for x in frame.actions
            )
            super()._apply(stamp, Frame(frame.entries, tuple(actions)))


class ReadsAhead(Mutant):
    """A read is answered at once, from memory that may be ahead of the journal."""

    class leading_class(Leading):
        def read(self, respond: Respond) -> None:
            try:
                self.journal.check()
            except JournalError:
                return respond("not_leading", None)
            self._truth.check_durable(self.line.decided_index)
            respond("answer", self.line.decided_index)


class ForgetsKeys(Mutant):
    """A request that is made again with its key is a new one."""

    class leading_class(Leading):
        def take(self, event: ev.Event) -> None:
            self.catalog.job_of_key = lambda key: None  # type: ignore[method-assign]
            super().take(event)


class KeepsItsMemory(Mutant):
    """What one leadership held in memory is led with in the next."""

    def _lead(self, home: ZooKeeperHome, replica: Any) -> None:
        if self.takeovers:
            replica.catalog = self.kept
        self.kept = replica.catalog
        super()._lead(home, replica)


class ObeysOldLeaders(SimExecutor):
    """An executor does as a leader of an earlier epoch says."""

    def refuses(self, epoch: int) -> bool:
        return False


SCHEDULERS = (
    WithoutFence,
    WithoutDeadline,
    ProbesOneServer,
    LeadsOutOfTurn,
    TakesDoubtForSuccess,
    MissesTheTail,
    CutsTooMuch,
    AppliesAfterAppend,
    ActsBeforeDurable,
    PublishesAtOnce,
    ReadsAhead,
    ForgetsKeys,
    KeepsItsMemory,
)


def seed_that_catches(make_world: Callable[[int], World]) -> int:
    """Return the first seed whose history shows the mistake, 0: none does."""
    for seed in range(1, SEEDS_MAX + 1):
        try:
            make_world(seed).run(RUN_MS)
        except (AssertionError, KeyError) as error:
            print(f"seed {seed}: {type(error).__name__}: {error}")
            return seed
    return 0


@pytest.mark.parametrize("mutant", SCHEDULERS, ids=lambda mutant: mutant.__name__)
def test_catches_a_scheduler_that(mutant: type[Mutant]) -> None:
    assert seed_that_catches(lambda seed: mutant.make_world(seed, mutant))


def test_catches_an_executor_that_obeys_old_leaders() -> None:
    def make_world(seed: int) -> World:
        late = faults(users=0.1, message_late=0.3, scheduler_ended=0.1)
        world = World(seed, schedulers=3, faults=late, timeout_ms=3_000)
        world.mesos.executor_class = ObeysOldLeaders
        return world

    assert seed_that_catches(make_world)

"""ZooKeeper's own leader is cut off from the other servers and has not noticed: it answers whom it can by itself."""

from __future__ import annotations

import pytest

from sim.faults import Faults
from sim.kazoo_model import SimKazoo
from sim.scheduler import SimScheduler
from sim.world import World
from stoker.zk.core import leadership as lead
from stoker.zk.errors import JournalError
from stoker.zk.session import Session
from stoker.zk.zookeeper import ZooKeeperHome

TIMEOUT_MS = 3_000
LATE_MS = TIMEOUT_MS * 2 // 3 + 400  # after the cut: past the deadline, before that server gives up


class SyncingSession(Session):
    """Its probe is a `sync` always, and counts as a quorum's word."""

    def _probe(self, fence: int | None) -> None:
        sent_ms = self._now_ms()
        self._request(lambda client: client.sync_async(self.layout.root), lambda _: lead.Answered(sent_ms))


class Syncing(SimScheduler):
    def make_home(self, client: SimKazoo) -> ZooKeeperHome:
        home = super().make_home(client)
        home._session.__class__ = SyncingSession
        return home


def cut_off(scheduler_class: type[SimScheduler]) -> SimScheduler:
    """Return a scheduler that led, at rest, LATE_MS after its ZooKeeper server was cut off, which leads the others."""
    world = World(
        1, schedulers=1, faults=Faults.none(), timeout_ms=TIMEOUT_MS, scheduler_class=scheduler_class
    )
    world.run(20_000)
    (scheduler,) = world.schedulers
    for _ in range(100):
        assert scheduler.client is not None
        if scheduler.client.server is world.ensemble.leader:
            break
        scheduler.client.drop()
        world.run(1_000)
    assert scheduler.is_leading and world.ensemble.leader is not None
    assert scheduler.client is not None and scheduler.client.server is world.ensemble.leader
    world.ensemble.leader.is_isolated = True
    world.run(LATE_MS)
    return scheduler


def may_act(scheduler: SimScheduler) -> bool:
    if not scheduler.is_leading or scheduler.leading is None:
        return False
    try:
        scheduler.leading.journal.check()
    except JournalError:
        return False
    return True


@pytest.mark.parametrize(("scheduler_class", "is_leading"), [(SimScheduler, False), (Syncing, True)])
def test_a_leader_does_not_take_its_word(scheduler_class: type[SimScheduler], is_leading: bool) -> None:
    assert may_act(cut_off(scheduler_class)) == is_leading

"""The loop with its real core: what is done with a framework id, and when it is durable."""

from __future__ import annotations

from typing import Any

from gevent.threadpool import ThreadPool

from stoker.framework.clock import Clock
from stoker.framework.core import actions as a
from stoker.framework.core import entries as e
from stoker.framework.core import events as ev
from stoker.framework.core.catalog import Catalog
from stoker.framework.core.codec import encode_entry
from stoker.framework.core.fleet import Fleet
from stoker.framework.core.scheduler import decide
from stoker.framework.journaling import JournalThread
from stoker.framework.loop import Core, Loop
from stoker.framework.metrics import Metrics
from stoker.framework.model import FleetSpec, Offer, Resources, Settings
from stoker.framework.snapshots import encode_snapshot
from support.greenlets import wait_until
from support.schedulers import HeldJournal

MIB = 1 << 20


def test_a_framework_id_is_durable_before_anything_is_done_with_it() -> None:
    journal, settings, done = HeldJournal(), Settings(tick_ms=20), []

    def perform(stamp: ev.Stamp, action: Any) -> None:
        done.append((encode_entry(e.FrameworkRegistered("f-1")) in journal.records, action))

    loop = Loop(
        Core(Catalog(), Fleet(settings), settings, decide, encode_entry, encode_snapshot),
        JournalThread(journal),
        perform,
        next_index=0,
        clock=Clock(),
        metrics=Metrics(),
        workers=ThreadPool(1),
    )
    loop.start()
    loop.put(ev.LeadershipBegan(1, FleetSpec(1, 64 * MIB), bytes(range(16)), "test", bytes(16)))
    loop.put(ev.Subscribed("f-1", "master-1"))
    resources = Resources(2_000, 1_024 * MIB, 0, ((31_000, 31_099),))
    loop.put(ev.OffersReceived((Offer("offer-1", "agent-1", "agent-1", resources),)))
    wait_until(lambda: loop.peek(lambda catalog, _: bool(catalog.launches)), "all to be decided")
    wait_until(lambda: journal.running, "the append to begin")
    assert not done, "the journal has not taken it yet"
    journal.release()
    wait_until(lambda: any(isinstance(action, a.Accept) for _, action in done), "the launch")
    loop.stop()
    assert all(is_durable for is_durable, _ in done)

"""A leadership whose time is over: nothing is done, sent or told any more, whoever looks first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import gevent
import pytest
from gevent.threadpool import ThreadPool

from stoker.framework import loop as loop_module
from stoker.framework.clock import Clock
from stoker.framework.core.actions import Answer, Frame, Kill
from stoker.framework.core.entries import LaunchEnded
from stoker.framework.core.events import JobCancelRequested, Stamp
from stoker.framework.errors import NotLeading, OutcomeUnknown
from stoker.framework.journaling import JournalGreenlets
from stoker.framework.loop import Core, Loop
from stoker.framework.mesos_shell import MesosShell
from stoker.framework.metrics import Metrics
from stoker.framework.model import Settings
from stoker.framework.translate import LaunchValues
from stoker.zk.errors import Fenced, Unavailable
from support.schedulers import FakeDriver, MemoryJournal
from support.waiting import DEADLINE_S


class TimedJournal(MemoryJournal):
    """`over` is what `check` raises; `wish` is that for a snapshot; `on_append` runs before one returns."""

    def __init__(self) -> None:
        super().__init__()
        self.over: Exception | None = None
        self.wish = False
        self.on_append: Any = None
        self.snapshots: list[int] = []

    @property
    def wants_snapshot(self) -> bool:  # type: ignore[override]
        return self.wish

    def check(self) -> None:
        if self.over is not None:
            raise self.over

    def append(self, first_index: int, records: Sequence[bytes]) -> None:
        super().append(first_index, records)
        if self.on_append is not None:
            self.on_append()

    def write_snapshot(self, index: int, data: bytes) -> None:
        self.snapshots.append(index)
        if self.on_append is None:
            super().write_snapshot(index, data)
        else:
            raise Unavailable("not now")


class ToyCatalog(list[str]):
    def apply(self, entry: Any) -> None:
        self.append(entry.reason)


class ToyFleet:
    def observe(self, stamp: Stamp, event: Any, catalog: Any) -> None: ...
    def apply(self, stamp: Stamp, action: Any) -> None: ...


def toy_decide(catalog: ToyCatalog, fleet: Any, stamp: Stamp, event: Any, settings: Settings) -> Frame:
    if not isinstance(event, JobCancelRequested):
        return Frame()
    answer = Answer(event.reply_id, 201, len(catalog))
    if event.job_id == "look":
        return Frame(actions=(answer,))
    return Frame((LaunchEnded(1, event.job_id, 1),), (Kill("one", ""), Kill("two", ""), answer))


class Rig:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, watch_ms: int = 600_000) -> None:
        monkeypatch.setattr(loop_module, "WATCH_INTERVAL_MS", watch_ms)
        self.journal = TimedJournal()
        self.performed: list[str] = []
        self.on_perform: Any = lambda: None
        core = Core(
            ToyCatalog(),
            ToyFleet(),
            Settings(tick_ms=600_000),
            toy_decide,
            lambda entry: entry.reason.encode(),
            lambda catalog: repr(catalog).encode(),
        )
        self.loop = Loop(
            core,
            JournalGreenlets(self.journal),
            self._perform,
            next_index=0,
            clock=Clock(),
            metrics=Metrics(),
            workers=ThreadPool(1),
        )
        self.loop.start()

    def _perform(self, stamp: Stamp, action: Any) -> None:
        self.performed.append(action.task_id)
        self.on_perform()

    def ask(self, job_id: str) -> Any:
        return self.loop.ask(lambda reply_id: JobCancelRequested(reply_id, job_id)).status

    def end(self) -> None:
        self.journal.over = Unavailable("its time to lead is over")


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    made: list[Rig] = []

    def make_one(**options: int) -> Rig:
        made.append(Rig(monkeypatch, **options))
        return made[-1]

    yield make_one
    for rig in made:
        rig.loop.stop()


def test_time_is_looked_at_before_each_action(make: Any) -> None:
    rig = make()
    rig.on_perform = rig.end
    with pytest.raises(OutcomeUnknown):
        rig.ask("write")
    assert rig.performed == ["one"] and rig.journal.records == [b"write"]
    assert isinstance(rig.loop.ended.get(), Unavailable)


def test_what_got_durable_too_late_is_told_as_unknown_and_nothing_is_done(make: Any) -> None:
    rig = make()
    rig.journal.on_append = rig.end
    with pytest.raises(OutcomeUnknown):
        rig.ask("write")
    assert rig.performed == []


def test_an_answer_that_writes_nothing_is_surely_not_given(make: Any) -> None:
    rig = make()
    rig.end()
    with pytest.raises(NotLeading):
        rig.ask("look")


def test_what_was_read_is_not_told_after_the_time(make: Any) -> None:
    rig = make()
    assert rig.loop.read(lambda catalog, _: len(catalog)) == 0
    rig.end()
    with pytest.raises(NotLeading):
        rig.loop.read(lambda catalog, _: len(catalog))
    assert isinstance(rig.loop.ended.get(), Unavailable)


def test_a_leader_that_nobody_asks_steps_down_too(make: Any) -> None:
    rig = make(watch_ms=5)
    rig.journal.over = Fenced("epoch 9 leads")
    assert isinstance(rig.loop.ended.get(timeout=DEADLINE_S), Fenced)


def test_calls_to_mesos_end_with_the_leadership(make: Any) -> None:
    """Also those that waited in the outbox already, and the driver's own: it asks before whatever it sends."""
    rig = make()
    drivers: list[FakeDriver] = []

    def make_driver(scheduler: Any) -> FakeDriver:
        drivers.append(FakeDriver(scheduler, {}))
        return drivers[-1]

    shell = MesosShell(
        make_driver,
        rig.loop.put,
        spawn=rig.loop.spawn,
        check=rig.loop.check,
        launch_values=lambda launch: LaunchValues(0, "", {}),
        framework=dict,
        identity=lambda: (bytes(16), ""),
        on_error=lambda message: None,
        metrics=Metrics(),
    )
    shell.start()
    stamp = Stamp(1, 1, 1)
    shell.perform(stamp, Kill("one", ""))
    gevent.sleep(0.01)
    assert [name for name, _ in drivers[0].calls] == ["killTask"] and shell.may_send()
    shell.perform(stamp, Kill("two", ""))
    rig.end()
    gevent.sleep(0.01)
    assert len(drivers[0].calls) == 1 and not shell.may_send()
    assert rig.loop.ended.ready()
    shell.stop()


def test_a_snapshot_is_taken_when_the_journal_wants_one(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """And after one that failed not with each record, but some records later."""
    monkeypatch.setattr(loop_module, "SNAPSHOT_RECORDS_MIN", 3)
    rig = make()
    rig.ask("a")
    rig.journal.wish = True
    for name in "bc":
        rig.ask(name)
    until(lambda: rig.journal.snapshots == [3])
    rig.journal.on_append = lambda: None  # now they fail
    for name in "defgh":
        rig.ask(name)
    until(lambda: rig.journal.snapshots == [3, 6])
    assert not rig.loop.ended.ready()


def until(condition: Any) -> None:
    with gevent.Timeout(DEADLINE_S):
        while not condition():
            gevent.sleep(0.005)

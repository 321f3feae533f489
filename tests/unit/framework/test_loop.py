"""The loop between a toy core and fake journals: order, batches, durability before actions, bounds, and its end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import gevent
import pytest
from gevent.event import Event
from gevent.threadpool import ThreadPool

from stoker.framework import loop as loop_module
from stoker.framework.clock import Clock
from stoker.framework.core.actions import Answer, Frame, Kill
from stoker.framework.core.entries import LaunchEnded
from stoker.framework.core.events import AgentRemoved, Disconnected, JobCancelRequested, Stamp, Ticked
from stoker.framework.errors import NotLeading, OutcomeUnknown, Overloaded
from stoker.framework.journaling import JournalGreenlets, JournalThread
from stoker.framework.loop import Core, Crashed, Loop
from stoker.framework.metrics import Metrics
from stoker.framework.model import Settings
from stoker.zk.errors import Fenced, Unavailable
from support.greenlets import join, settle, wait_until
from support.schedulers import HeldJournal, MemoryJournal, RefusingJournal, SlowJournal


class ToyCatalog:
    """Promises: job ids that were cancelled, in order."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def apply(self, entry: Any) -> None:
        self.done.append(entry.reason)

    def copy(self) -> list[str]:
        return list(self.done)


class ToyFleet:
    def observe(self, stamp: Stamp, event: Any, catalog: Any) -> None:
        return

    def apply(self, stamp: Stamp, action: Any) -> None:
        return


def toy_decide(catalog: ToyCatalog, fleet: Any, stamp: Stamp, event: Any, settings: Settings) -> Frame:
    """Journal a cancelled job's id once; answer with how many there are by then."""
    match event:
        case JobCancelRequested(reply_id, job_id):
            if job_id in catalog.done:
                return Frame(actions=(Answer(reply_id, 200, len(catalog.done)),))
            entry = LaunchEnded(len(catalog.done), job_id, stamp.wall_ms)
            return Frame((entry,), (Kill(job_id, ""), Answer(reply_id, 201, len(catalog.done) + 1)))
        case AgentRemoved(agent_id):
            raise KeyError(agent_id)
        case _:
            return Frame()


class Rig:
    """A loop on `journal` and what it performed."""

    def __init__(self, journal: MemoryJournal, *, wrap: Any = JournalThread, **options: Any) -> None:
        self.journal = journal
        self.catalog = ToyCatalog()
        self.performed: list[tuple[int, str]] = []  # (records durable by then, task id)
        options.setdefault("write_timeout_ms", 60_000)
        self.metrics = Metrics()
        for record in journal.records:
            self.catalog.done.append(record.decode())
        core = Core(
            self.catalog,
            ToyFleet(),
            Settings(tick_ms=60_000),
            toy_decide,
            lambda e: e.reason.encode(),
            lambda s: repr(s).encode(),
        )
        self.loop = Loop(
            core,
            wrap(journal),
            self._perform,
            next_index=journal.snapshot_index + len(journal.records),
            clock=Clock(),
            metrics=self.metrics,
            workers=ThreadPool(1),
            **options,
        )

    def _perform(self, stamp: Stamp, action: Any) -> None:
        self.performed.append((len(self.journal.records), action.task_id))

    def cancel(self, job_id: str) -> tuple[int, int]:
        answer = self.loop.ask(lambda reply_id: JobCancelRequested(reply_id, job_id))
        return answer.status, answer.body


def end_of(rig: Rig) -> Any:
    """Wait for the leadership's end and return what ended it."""
    wait_until(rig.loop.ended.ready, "the end")
    return rig.loop.ended.get()


@pytest.fixture
def rigs() -> Iterator[Any]:
    made: list[Rig] = []

    def make(journal: MemoryJournal, *, start: bool = True, **options: Any) -> Rig:
        rig = Rig(journal, **options)
        made.append(rig)
        if start:
            rig.loop.start()
        return rig

    yield make
    for rig in made:
        rig.loop.stop()


def test_an_answer_comes_only_after_its_entry_is_durable(rigs: Any) -> None:
    rig = rigs(MemoryJournal())
    assert rig.cancel("a") == (201, 1)
    assert rig.journal.records == [b"a"]
    assert rig.performed == [(1, "a")]


def test_many_writers_are_decided_one_by_one_and_committed_in_batches(rigs: Any) -> None:
    """50 writers of 10 names: each name is written once, whoever comes first; nobody decides on a stale catalog."""
    journal = HeldJournal()
    rig = rigs(journal)
    writers = [gevent.spawn(rig.cancel, f"job{i % 10}") for i in range(50)]
    wait_until(
        lambda: len(rig.catalog.done) == 10 and journal.running, "all to be decided, the first to be written"
    )
    journal.release()
    answers = join(writers)
    assert sorted(status for status, _ in answers) == [200] * 40 + [201] * 10
    assert sorted(count for status, count in answers if status == 201) == list(range(1, 11))
    assert journal.records == [f"job{i}".encode() for i in range(10)]
    assert journal.running_max == 1
    assert len(journal.batches) <= 2, "what comes while one batch is in flight is the next batch"


def test_actions_are_performed_in_order_and_never_before_their_records(rigs: Any) -> None:
    rig = rigs(SlowJournal(0.01))
    join(gevent.spawn(rig.cancel, f"j{i:02}") for i in range(30))
    assert [task for _, task in rig.performed] == [f"j{i:02}" for i in range(30)]
    assert all(durable > index for index, (durable, _) in enumerate(rig.performed))


def test_a_read_waits_until_what_it_saw_is_durable(rigs: Any) -> None:
    journal = HeldJournal()
    rig = rigs(journal)
    writer = gevent.spawn(rig.cancel, "a")
    wait_until(lambda: rig.catalog.done and journal.running)
    reader = gevent.spawn(rig.loop.read, lambda catalog, fleet: list(catalog.done))
    gevent.sleep(0.01)
    assert not reader.ready() and journal.records == [], "it was decided, and is not durable yet"
    journal.release()
    assert join([writer, reader]) == [(201, 1), ["a"]]
    assert journal.records == [b"a"]


def test_reads_that_wait_for_the_same_take_one_place(rigs: Any) -> None:
    """Else a journal that hangs would let them pile up without bound."""
    journal = HeldJournal()
    rig = rigs(journal)
    writer = gevent.spawn(rig.cancel, "a")
    wait_until(lambda: rig.loop._line.in_flight)
    reads = [gevent.spawn(rig.loop.read, lambda catalog, fleet: len(catalog.done)) for _ in range(50)]
    gevent.sleep(0)
    assert len(rig.loop._line) == 1
    journal.release()
    assert join([writer, *reads])[1:] == [1] * 50


def test_a_read_that_raises_also_waits(rigs: Any) -> None:
    journal = HeldJournal()
    rig = rigs(journal)
    gevent.spawn(rig.cancel, "a")
    wait_until(lambda: rig.catalog.done and journal.running)
    reader = gevent.spawn(rig.loop.read, lambda catalog, fleet: 1 // 0)
    gevent.sleep(0.01)
    assert not reader.ready()
    journal.release()
    with pytest.raises(ZeroDivisionError):
        join([reader])
    assert journal.records == [b"a"]


def test_a_slow_journal_makes_the_outcome_unknown_and_the_write_still_happens(rigs: Any) -> None:
    journal = HeldJournal()
    rig = rigs(journal, write_timeout_ms=500)
    with pytest.raises(OutcomeUnknown):
        rig.cancel("a")
    journal.release()
    wait_until(lambda: journal.records == [b"a"], "the write to happen")
    assert rig.cancel("a") == (200, 1), "asked again, it is told what became of it"


def test_a_refused_append_ends_the_leadership_and_performs_nothing(rigs: Any) -> None:
    """Life: the disk is full, or a newer leader fenced this one."""
    rig = rigs(RefusingJournal(1, Fenced("epoch 8 owns the journal")))
    assert rig.cancel("a") == (201, 1)
    with pytest.raises(OutcomeUnknown):
        rig.cancel("b")
    assert isinstance(end_of(rig), Fenced)
    assert [task for _, task in rig.performed] == ["a"]
    with pytest.raises(NotLeading):
        rig.cancel("c")
    with pytest.raises(NotLeading):
        rig.loop.read(lambda catalog, fleet: catalog.done)
    assert not rig.loop.put(Disconnected(), must=True)


def test_what_was_not_sent_when_leadership_ended_is_surely_not_done(rigs: Any) -> None:
    journal = RefusingJournal(0, Unavailable("no space"))
    held = HeldJournal()
    journal.append = lambda first, records: (
        held.append(0, records),
        RefusingJournal.append(journal, first, records),
    )  # type: ignore[assignment]
    rig = rigs(journal)
    first = gevent.spawn(rig.cancel, "a")
    wait_until(lambda: held.running)
    second, reader = gevent.spawn(rig.cancel, "b"), gevent.spawn(rig.loop.read, lambda c, f: c.done)
    gevent.sleep(0.01)
    held.release()
    settle([first, second, reader])
    assert isinstance(first.exception, OutcomeUnknown)
    assert isinstance(second.exception, NotLeading)
    assert isinstance(reader.exception, NotLeading)
    assert journal.records == []


def test_a_mistake_in_decide_ends_the_leadership_with_a_story(rigs: Any) -> None:
    rig = rigs(MemoryJournal())
    rig.cancel("a")
    rig.loop.put(AgentRemoved("agent-7"))
    error = end_of(rig)
    assert isinstance(error, Crashed) and isinstance(error.__cause__, KeyError)
    story = list(rig.loop.story())
    assert "JobCancelRequested" in story[0] and "agent-7" in story[-1]


def test_a_full_queue_refuses_events_and_requests_but_keeps_room_for_what_nobody_repeats(
    rigs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_module, "EVENTS_MAX", 5)
    monkeypatch.setattr(loop_module, "EVENTS_RESERVED_MAX", 2)
    rig = rigs(MemoryJournal(), start=False)
    assert all(rig.loop.put(Ticked()) for _ in range(5))
    assert not rig.loop.put(Ticked())
    with pytest.raises(Overloaded):
        rig.cancel("a")
    assert rig.loop.put(Disconnected(), must=True) and rig.loop.put(Disconnected(), must=True)
    assert not rig.loop.put(Disconnected(), must=True)
    rig.loop.start()
    gevent.sleep(0.01)
    assert rig.cancel("a") == (201, 1)


def test_a_request_that_was_not_looked_at_in_time_is_never_done(rigs: Any) -> None:
    rig = rigs(MemoryJournal(), start=False, write_timeout_ms=500)
    with pytest.raises(Overloaded):
        rig.cancel("a")
    rig.loop.start()
    assert rig.cancel("b") == (201, 1)
    assert rig.journal.records == [b"b"]


def test_a_journal_that_lags_holds_back_deciding(rigs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "FRAMES_MAX", 3)
    rig = rigs(SlowJournal(0.05))
    writers = [gevent.spawn(rig.cancel, f"j{i}") for i in range(12)]
    seen_max = 0
    while not all(writer.ready() for writer in writers):
        seen_max = max(seen_max, len(rig.catalog.done) - len(rig.journal.records))
        gevent.sleep(0.005)
    assert seen_max <= 3 + 3, "at most one batch in flight and one full of frames"
    assert len(rig.journal.records) == 12


def test_batches_respect_the_limits_of_the_journal(rigs: Any) -> None:
    rig = rigs(SlowJournal(0.01))
    names = [str(i) + "x" * 60_000 for i in range(20)]
    join(gevent.spawn(rig.cancel, name) for name in names)
    assert rig.journal.records == [name.encode() for name in names]
    assert max(rig.journal.batches) <= 4  # 256 KiB a batch: MemoryJournal asserts it too


def test_a_snapshot_is_the_state_just_before_its_index(rigs: Any) -> None:
    journal = SlowJournal(0.001)
    rig = rigs(journal, snapshot_records=10)
    for i in range(25):
        rig.cancel(f"j{i}")
    wait_until(lambda: journal.snapshot_index >= 20)
    assert journal.snapshot is not None
    before = eval(journal.snapshot)
    assert before == [f"j{i}" for i in range(journal.snapshot_index)]
    assert journal.records == [f"j{i}".encode() for i in range(journal.snapshot_index, 25)]


def test_a_snapshot_that_cannot_be_written_is_only_late(rigs: Any) -> None:
    journal = MemoryJournal()
    fails = [Unavailable("no space")]

    def write_snapshot(index: int, data: bytes) -> None:
        if fails:
            raise fails.pop()
        MemoryJournal.write_snapshot(journal, index, data)

    journal.write_snapshot = write_snapshot  # type: ignore[method-assign]
    rig = rigs(journal, snapshot_records=5)
    for i in range(12):
        rig.cancel(f"j{i}")

    def is_written() -> int:
        rig.cancel(f"more{len(rig.catalog.done)}")
        return journal.snapshot_index

    wait_until(is_written, "a snapshot")
    assert not rig.loop.ended.ready()


class FullJournal(MemoryJournal):
    """A log at its limit: `append` waits, as greenlets do, until a snapshot has cut it."""

    def __init__(self, records: list[bytes]) -> None:
        super().__init__()
        self.records = records
        self._cut = Event()

    @property
    def wants_snapshot(self) -> bool:  # type: ignore[override]
        return not self._cut.is_set()

    def append(self, first_index: int, records: Sequence[bytes]) -> None:
        self._cut.wait()
        super().append(first_index, records)

    def write_snapshot(self, index: int, data: bytes) -> None:
        super().write_snapshot(index, data)
        self._cut.set()


def test_a_log_at_its_limit_is_cut_before_the_first_append(rigs: Any) -> None:
    """Else no leader could begin, and so none would ever write the snapshot."""
    journal = FullJournal([b"a", b"b", b"c"])
    rig = rigs(journal, wrap=JournalGreenlets)
    assert rig.cancel("d") == (201, 4)
    assert journal.snapshot is not None and eval(journal.snapshot) == ["a", "b", "c"]
    assert (journal.snapshot_index, journal.records) == (3, [b"d"])


def test_the_first_snapshot_that_fails_does_not_end_the_leadership(rigs: Any) -> None:
    journal = MemoryJournal()
    journal.wants_snapshot = True

    def write_snapshot(index: int, data: bytes) -> None:
        raise Unavailable("no space")

    journal.write_snapshot = write_snapshot  # type: ignore[method-assign]
    rig = rigs(journal)
    assert rig.cancel("a") == (201, 1)
    assert not rig.loop.ended.ready()


def test_a_journal_that_wants_none_gets_no_first_snapshot(rigs: Any) -> None:
    journal = MemoryJournal()
    rig = rigs(journal)
    rig.cancel("a")
    assert journal.snapshot is None


def test_a_snapshot_takes_the_place_of_what_somebody_else_deleted(
    rigs: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("stoker.framework.loop.AUDIT_INTERVAL_MS", 10)
    journal = MemoryJournal()
    journal.audit = lambda: "" if journal.snapshot else "3 batches were deleted"  # type: ignore[method-assign]
    rig = rigs(journal)
    rig.cancel("a")
    wait_until(lambda: journal.snapshot is not None)
    assert eval(journal.snapshot or b"") == ["a"] and "3 batches were deleted: a snapshot" in caplog.text
    assert rig.cancel("b") == (201, 2)


def test_put_and_wait_returns_when_the_decision_is_durable(rigs: Any) -> None:
    rig = rigs(SlowJournal(0.05))
    gevent.spawn(rig.cancel, "a")
    wait_until(lambda: rig.catalog.done)
    rig.loop.put_and_wait(Disconnected())
    assert rig.journal.records == [b"a"]


def test_stopping_tells_everybody_who_waits(rigs: Any) -> None:
    journal = HeldJournal()
    rig = rigs(journal)
    waiting = [gevent.spawn(rig.cancel, "a"), gevent.spawn(rig.loop.put_and_wait, Disconnected())]
    wait_until(lambda: journal.running)
    stopping = gevent.spawn(rig.loop.stop)
    gevent.sleep(0.01)
    journal.release()
    settle([*waiting, stopping])
    assert isinstance(waiting[0].exception, OutcomeUnknown)
    assert isinstance(waiting[1].exception, NotLeading)


def test_times_never_go_back(rigs: Any) -> None:
    clock = Clock(not_before_ms=2**45)
    stamps = [clock.stamp() for _ in range(3)]
    assert [s.wall_ms for s in stamps] == [2**45] * 3
    assert [s.event_id for s in stamps] == [1, 2, 3]
    assert stamps[0].now_ms <= stamps[1].now_ms

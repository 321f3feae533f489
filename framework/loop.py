"""One leadership's loop: the one way through the scheduler.

Theory of operation. One greenlet takes events from a bounded queue and, without ever yielding in between, stamps the
event, lets the fleet observe it, decides, and applies the frame's entries and actions in memory, so that the next event
sees them. The frame then waits, in order, for its entries to be durable; one batch is in flight at a time, and what was
decided meanwhile is the next batch. A frame is never split. Once durable, its actions are performed and its asker is
answered. A frame without entries, and a read, wait for what they have seen.

    put, ask -> queue -> [stamp, observe, decide, apply] -> frames -> [append in a thread] -> perform, answer

Memory runs ahead of the journal and is never repaired: any JournalError ends the leadership (`ended`), and catalog,
fleet and loop are thrown away together. Anything unexpected ends it as Crashed, with the story of the last events.

A leadership has a deadline that its journal renews. It is looked at (`check`) before each action, before each answer and
before what was read is told, so that a process which was stopped for a while says and does nothing more when it goes
on; a timer looks too, so that a leader that nobody asks anything steps down as well.

Knows no Mesos, HTTP or child process: `perform` does, and must not block.
"""

from __future__ import annotations

import collections
import itertools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import gevent
from gevent.event import AsyncResult
from gevent.event import Event as Signal
from gevent.threadpool import ThreadPool

from stoker.framework.clock import Clock, now_ms
from stoker.framework.core.actions import Action, Answer, AnswerHeartbeat, Frame
from stoker.framework.core.entries import Entry
from stoker.framework.core.events import Event, Stamp, Ticked
from stoker.framework.core.line import Line, Waiting
from stoker.framework.errors import NotLeading, OutcomeUnknown, Overloaded
from stoker.framework.journaling import LeaderJournal, run_in
from stoker.framework.metrics import Metrics
from stoker.framework.model import Settings
from stoker.framework.story import describe, gist
from stoker.framework.turns import rest
from stoker.zk.errors import JournalError, TooLarge, Unavailable

EVENTS_MAX = 10_000  # waiting to be decided
EVENTS_RESERVED_MAX = 2_000  # more, for facts that nobody repeats
FRAMES_MAX = 4_000  # decided, not yet durable; beyond it no more events are taken
ASKS_MAX = 2_000  # requests waiting for their answer
WRITE_TIMEOUT_MS = 2_000
SNAPSHOT_RECORDS = 10_000  # records between snapshots
SNAPSHOT_RECORDS_MIN = (
    100  # where the journal itself wants one: also between one that failed and the next try
)
AUDIT_INTERVAL_MS = 60_000  # between looks whether the journal still holds what was written
WATCH_INTERVAL_MS = 200  # between looks at the deadline while nothing happens
SLICE_MS = 50  # of deciding, then the hub gets a turn
STORY_MAX = 1_000

_T = TypeVar("_T")
log = logging.getLogger(__name__)


class Crashed(Exception):
    """A mistake of our own: the process ends and starts again from the journal. The cause is chained."""


@dataclass(slots=True)
class Core:
    """The state and the decisions that the loop drives; all pure."""

    catalog: Any
    fleet: Any
    settings: Settings
    decide: Callable[[Any, Any, Stamp, Event, Settings], Frame]
    encode_entry: Callable[[Entry], bytes]
    encode_snapshot: Callable[[Any], bytes]  # of a copy of the catalog, in a native thread


@dataclass(slots=True)
class _Asked:
    result: AsyncResult
    sent: bool = False


@dataclass(slots=True)
class _Queued:
    event: Event
    durable: AsyncResult | None = field(default=None)


class Loop:
    """See the module. `next_index` is of the journal's next record, `snapshot_index` that of its newest snapshot, if known."""

    def __init__(
        self,
        core: Core,
        journal: LeaderJournal,
        perform: Callable[[Stamp, Action], None],
        *,
        next_index: int,
        clock: Clock,
        metrics: Metrics,
        workers: ThreadPool,
        snapshot_index: int | None = None,
        snapshot_records: int = SNAPSHOT_RECORDS,
        write_timeout_ms: int = WRITE_TIMEOUT_MS,
    ) -> None:
        self.ended: AsyncResult = AsyncResult()  # set with the error that ended the leadership
        self._core = core
        self._journal = journal
        self._perform_action = perform
        self._clock = clock
        self._metrics = metrics
        self._workers = workers
        self._write_timeout_ms = write_timeout_ms
        self._queue: collections.deque[_Queued] = collections.deque()
        self._queued = Signal()
        self._line = Line(next_index)  # what is `told` there: an AsyncResult
        self._filled = Signal()
        self._drained = Signal()
        self._asked: dict[int, _Asked] = {}
        self._reply_ids = itertools.count(1)
        self._tick_is_queued = False
        self._snapshot_records = snapshot_records
        self._snapshot_index = next_index if snapshot_index is None else snapshot_index
        self._snapshot_value: Any = None
        self._snapshot_running = False
        self._story: collections.deque[tuple[Stamp, Any]] = collections.deque(maxlen=STORY_MAX)
        self._greenlets: list[gevent.Greenlet] = []

    @property
    def next_index(self) -> int:
        """Return the index after the newest record that the catalog holds; within a `read` that record is durable."""
        return self._line.decided_index

    def start(self) -> None:
        if self._journal.wants_snapshot:
            # Whoever led before wrote none: a log at its limit takes no record, not even our first, until it is cut.
            self._take_snapshot()
            self._write_taken_snapshot()
        for run in (
            self._decide_forever,
            self._commit_forever,
            self._tick_forever,
            self._watch_forever,
            self._audit_forever,
        ):
            self._greenlets.append(self.spawn(run))

    def stop(self, error: BaseException | None = None) -> None:
        """End the leadership; whoever waits is told. Idempotent. What is being appended may or may not get durable."""
        if self.ended.ready():
            return
        self.ended.set(error or NotLeading("this scheduler is stopping"))
        for reply in list(self._asked.values()):
            if not reply.result.ready():
                reply.result.set_exception(_outcome_of(reply))
        waiters = [w.told for w in self._line.standing()] + [q.durable for q in self._queue]
        for durable in waiters:
            if durable is not None:
                durable.set_exception(NotLeading("this scheduler leads no more"))
        current = gevent.getcurrent()
        for greenlet in self._greenlets:
            if greenlet is not current:
                greenlet.kill(block=False)

    def spawn(self, run: Callable[..., None], *arguments: Any) -> gevent.Greenlet:
        """Run a shell's greenlet; what it raises ends the leadership, so that nothing dies unseen."""
        return gevent.spawn(self._guarded, run, *arguments)

    # --- for the shells

    def check(self) -> None:
        """Look whether this leadership may still act and speak. No I/O. :raises NotLeading: no; it is over."""
        self._check_leading()
        try:
            self._journal.check()
        except JournalError as error:
            self.stop(error)
            raise NotLeading("this scheduler leads no more") from error

    def put(self, event: Event, *, must: bool = False) -> bool:
        """Queue `event`; False where the queue is full (`must`: of facts that nobody repeats, which get room more)."""
        return self._put(_Queued(event), must=must)

    def put_and_wait(self, event: Event) -> None:
        """Queue `event` and return once what was decided on it is durable. :raises NotLeading: never decided, perhaps."""
        queued = _Queued(event, AsyncResult())
        if not self._put(queued, must=True):
            raise Overloaded("too many events are waiting")
        assert queued.durable is not None
        queued.durable.get()

    def ask(self, make_event: Callable[[int], Event]) -> Any:
        """Put the event that `make_event(reply_id)` returns; return its Answer or HeartbeatAnswer once that is durable.

        :raises NotLeading, Overloaded: surely not done.
        :raises OutcomeUnknown: not durable within the write timeout.
        """
        self._check_leading()
        if len(self._asked) >= ASKS_MAX:
            raise Overloaded(f"{ASKS_MAX} requests are waiting already")
        reply_id = next(self._reply_ids)
        asked = self._asked[reply_id] = _Asked(AsyncResult())
        try:
            if not self.put(make_event(reply_id)):
                raise Overloaded(f"{EVENTS_MAX} events are waiting already")
            asked.result.wait(self._write_timeout_ms / 1000)
            if asked.result.ready():
                return asked.result.get()
            if self._is_queued(reply_id):
                raise Overloaded("the request was not looked at in time, and will not be")
            raise OutcomeUnknown(f"no commit within {self._write_timeout_ms} ms")
        finally:
            del self._asked[reply_id]  # a queued event whose asker has gone is skipped

    def read(self, function: Callable[[Any, Any], _T]) -> _T:
        """Return `function(catalog, fleet)` once all that it saw is durable. It must neither yield nor keep references.

        :raises NotLeading: leadership ended, or what it saw did not get durable in time.
        """
        self._check_leading()
        error: Exception | None = None
        try:
            value = function(self._core.catalog, self._core.fleet)
        except Exception as raised:
            error = raised  # a refusal is told, too, only when what it saw is durable
        if self._line.standing():
            durable = self._seen_durable()
            durable.wait(self._write_timeout_ms / 1000)
            if not durable.ready():
                raise NotLeading("the journal does not answer")
            durable.get()
        self.check()
        if error is not None:
            raise error
        return value

    def peek(self, function: Callable[[Any, Any], _T]) -> _T:
        """As `read`, but at once, perhaps ahead of the journal: for what nobody is told. :raises NotLeading: ..."""
        self._check_leading()
        return function(self._core.catalog, self._core.fleet)

    def story(self) -> Iterator[str]:
        """Yield the last events, oldest first, a line each."""
        for stamp, event in self._story:
            text = event if isinstance(event, str) else describe(event)
            yield f"event={stamp.event_id} wall_ms={stamp.wall_ms} {text}"

    # --- deciding

    def _put(self, queued: _Queued, *, must: bool) -> bool:
        if self.ended.ready():
            return False
        if len(self._queue) >= EVENTS_MAX + (EVENTS_RESERVED_MAX if must else 0):
            self._metrics.events_refused.inc()
            return False
        self._queue.append(queued)
        self._queued.set()
        return True

    def _decide_forever(self) -> None:
        while True:
            self._queued.wait()
            self._decide_slice()
            if not self._queue:
                self._queued.clear()
            if len(self._line) >= FRAMES_MAX:
                self._drained.clear()
                self._drained.wait()
            rest()

    def _decide_slice(self) -> None:
        began_ms = now_ms()
        while self._queue and len(self._line) < FRAMES_MAX and now_ms() - began_ms < SLICE_MS:
            self._step(self._queue.popleft())
        self._metrics.queue_events.set(len(self._queue))

    def _step(self, queued: _Queued) -> None:
        """Decide one event. Nothing in here yields."""
        event, core = queued.event, self._core
        reply_id = getattr(event, "reply_id", 0)
        if reply_id and reply_id not in self._asked:
            return  # its asker was told that it was not done
        if isinstance(event, Ticked):
            self._tick_is_queued = False
        stamp = self._clock.stamp()
        self._story.append((stamp, gist(event)))
        self._metrics.events.labels(type(event).__name__).inc()
        core.fleet.observe(stamp, event, core.catalog)
        frame = core.decide(core.catalog, core.fleet, stamp, event, core.settings)
        for entry in frame.entries:
            core.catalog.apply(entry)
        for action in frame.actions:
            core.fleet.apply(stamp, action)
        if frame.entries or frame.actions or queued.durable:
            records = tuple(core.encode_entry(entry) for entry in frame.entries)
            self._line.push(stamp, records, frame.actions, reply_id, queued.durable)
            self._filled.set()
            self._log_entries(stamp, frame)

    def _log_entries(self, stamp: Stamp, frame: Frame) -> None:
        for entry in frame.entries:
            self._metrics.entries.labels(type(entry).__name__).inc()
            log.info("event=%d entry %s", stamp.event_id, describe(entry))

    # --- committing

    def _commit_forever(self) -> None:
        while True:
            self._filled.wait()
            batch = self._line.take_batch()
            if not batch:
                self._filled.clear()
                continue
            records = [record for waiting in batch for record in waiting.records]
            if records:
                self._append(batch, records)
            for waiting in batch:
                self._perform(waiting)
            self._line.done()
            self._drained.set()
            self._snapshot_if_due()

    def _append(self, batch: list[Waiting], records: list[bytes]) -> None:
        for waiting in batch:
            if waiting.reply_id in self._asked:
                self._asked[waiting.reply_id].sent = True
        with self._metrics.append_seconds.time():
            self._journal.append(self._line.next_index, records)
        self._line.appended(len(records))
        self._metrics.records.inc(len(records))

    def _perform(self, waiting: Waiting) -> None:
        for action in waiting.actions:
            self.check()
            self._metrics.actions.labels(type(action).__name__).inc()
            if isinstance(action, Answer | AnswerHeartbeat):
                self._answer(waiting.stamp, action)
            else:
                log.info("event=%d action %s", waiting.stamp.event_id, describe(action))
                self._perform_action(waiting.stamp, action)
        if waiting.told is not None:
            waiting.told.set(None)

    def _answer(self, stamp: Stamp, action: Answer | AnswerHeartbeat) -> None:
        if isinstance(action, Answer):
            code = action.refusal.code if action.refusal else ""
            status = action.refusal.status if action.refusal else action.status
            log.info(
                "event=%d action Answer reply_id=%d status=%d %s",
                stamp.event_id,
                action.reply_id,
                status,
                code,
            )
        asked = self._asked.get(action.reply_id)
        if asked is not None:
            asked.result.set(action if isinstance(action, Answer) else action.answer)

    def _snapshot_if_due(self) -> None:
        if self._snapshot_running:
            return
        count = self._line.decided_index - self._snapshot_index
        if self._snapshot_value is None and (
            count >= self._snapshot_records
            or (count >= SNAPSHOT_RECORDS_MIN and self._journal.wants_snapshot)
        ):
            self._take_snapshot()
        if self._snapshot_value is not None and self._line.next_index >= self._snapshot_index:
            self._write_taken_snapshot()

    def _take_snapshot(self) -> None:
        self._snapshot_index, self._snapshot_value = self._line.decided_index, self._core.catalog.copy()

    def _write_taken_snapshot(self) -> None:
        value, self._snapshot_value = self._snapshot_value, None
        self._snapshot_running = True
        self._greenlets.append(self.spawn(self._write_snapshot, self._snapshot_index, value))

    def _write_snapshot(self, index: int, value: Any) -> None:
        try:
            data = run_in(self._workers, self._core.encode_snapshot, value)
            self._journal.write_snapshot(index, data)
            log.info("snapshot index=%d bytes=%d", index, len(data))
        except (Unavailable, TooLarge) as error:
            # The journal is only longer than it should be: tried again after as many records more.
            log.warning("snapshot at index=%d was not written: %s", index, error)
        finally:
            self._snapshot_running = False
            self._greenlets = [g for g in self._greenlets if not g.dead]

    # --- the rest

    def _tick_forever(self) -> None:
        while True:
            gevent.sleep(self._core.settings.tick_ms / 1000)
            if not self._tick_is_queued:
                self._tick_is_queued = self.put(Ticked())

    def _watch_forever(self) -> None:
        while True:
            gevent.sleep(WATCH_INTERVAL_MS / 1000)
            self.check()

    def _audit_forever(self) -> None:
        """Put a snapshot in the place of what somebody else deleted."""
        while True:
            gevent.sleep(AUDIT_INTERVAL_MS / 1000)
            missing = self._journal.audit()
            if missing and self._snapshot_value is None and not self._snapshot_running:
                log.error("%s: a snapshot takes its place", missing)
                self._take_snapshot()
                self._snapshot_if_due()

    def _guarded(self, run: Callable[..., None], *arguments: Any) -> None:
        try:
            run(*arguments)
        except JournalError as error:
            self.stop(error)
        except (
            Exception
        ) as error:  # a top frame: our own mistake ends the leadership, and with it the process
            if isinstance(error, NotLeading) and self.ended.ready():
                return  # it was over already
            crashed = Crashed(f"{type(error).__name__}: {error}")
            crashed.__cause__ = error
            self.stop(crashed)

    def _check_leading(self) -> None:
        if self.ended.ready():
            raise NotLeading("this scheduler leads no more")

    def _is_queued(self, reply_id: int) -> bool:
        return any(getattr(queued.event, "reply_id", 0) == reply_id for queued in self._queue)

    def _seen_durable(self) -> AsyncResult:
        """Return what is set once all that is decided now is durable: one for all reads between two frames."""
        last = self._line.frames[-1] if self._line.frames else None
        if last is None or last.told is None or last.records or last.actions:
            last = self._line.push(Stamp(0, now_ms(), self._clock.wall_ms()), told=AsyncResult())
            self._filled.set()
        durable: AsyncResult = last.told
        return durable


def _outcome_of(asked: _Asked) -> Exception:
    if asked.sent:
        return OutcomeUnknown("leadership ended before the journal said that it was written")
    return NotLeading("leadership ended before it was written")

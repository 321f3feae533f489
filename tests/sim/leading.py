"""One leadership of a simulated scheduler: the loop's rules around the real core.

An event is stamped, observed, decided and applied at once; its frame waits for its records to be durable; one batch is in
flight at a time; then, action by action, the journal is asked whether this leadership may still act. Memory runs ahead
of the journal and is never repaired: what ends the append ends the leadership. It mirrors framework/loop.py, which
does the same with greenlets, queues and time limits, over the same line of frames (core/line.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import msgpack

from sim.embedded_mesos import Mesos
from sim.executor import BLOCK_BYTES, file_count
from sim.mesos_client import MesosClient
from sim.process import Process
from sim.truth import Truth
from stoker.framework.core import actions as a
from stoker.framework.core import events as ev
from stoker.framework.core.catalog import Catalog
from stoker.framework.core.codec import encode_entry
from stoker.framework.core.fleet import Fleet
from stoker.framework.core.invariants import check, check_fleet
from stoker.framework.core.line import Line, Waiting
from stoker.framework.core.scheduler import decide
from stoker.framework.model import FleetSpec, Manifested, Settings
from stoker.zk.errors import JournalError, Unavailable
from stoker.zk.journal import BATCH_BYTES_MAX, Journal

MIB = 1024 * 1024
WRITE_TIMEOUT_MS = 2_000
PROBE_TIMEOUT_MS = 2_000
SNAPSHOT_RECORDS = 25
CHECK_EVENTS = 8  # what is observed is checked every so many events,
WHOLE_CHECK_EVENTS = 128  # and what is promised every so many, and with each frame that has entries
SETTINGS = Settings(
    jobs_kept_max=20,
    residency_grace_ms=8_000,
    slot_out_ms=40_000,
    reconcile_interval_ms=30_000,
    register_timeout_ms=20_000,
    job_unfit_ms=2_000,
    kill_tries_max=4,
    unreachable_delay_ms=45_000,
    unknown_patience_ms=20_000,
    maintenance_forget_ms=5_000,
    inverse_accept_ms=10_000,
    uninstall_patience_ms=60_000,
)

Respond = Callable[[str, Any], None]  # ("answer", Answer or HeartbeatAnswer) or (why not, None)


@dataclass(slots=True)
class Asked:
    respond: Respond
    sent: bool = False


class Leading:
    def __init__(
        self,
        process: Process,
        journal: Journal,
        catalog: Catalog,
        next_index: int,
        *,
        epoch: int,
        truth: Truth,
        mesos: Mesos,
        schedulers: Callable[[], tuple[str, ...]],
        spec: FleetSpec,
        cluster: bytes,
        settings: Settings = SETTINGS,
    ) -> None:
        self.process = process
        self.settings = settings
        self.journal = journal
        self.catalog = catalog
        self.fleet = Fleet(settings)
        self.epoch = epoch
        self.line = Line(next_index)
        self.ended: Exception | None = None
        self.is_begun = False
        self.passed: Callable[[str], None] = lambda point: None  # for who wants to strike at that very point
        self._truth, self._mesos, self._schedulers, self._spec, self._cluster = (
            truth, mesos, schedulers, spec, cluster,
        )  # fmt: skip
        self._asked: dict[int, Asked] = {}
        self._reply_ids = itertools.count(1)
        self._event_ids = itertools.count(1)
        self._wall_ms = catalog.wall_ms
        self._client: MesosClient | None = None
        self._wake: Callable[[Any], None] | None = None
        self._snapshot_index = next_index
        self._snapshot: tuple[int, Catalog] | None = None
        self._batches = 0

    # --- its life

    def run(self) -> None:
        """Lead until it ends, in a greenlet. :raises JournalError: why it ended."""
        seed = self.process.timeline.random.randbytes(16)
        self.take(ev.LeadershipBegan(self.epoch, self._spec, self._cluster, "sim", seed))
        self._after(self._begin)
        while self.ended is None:
            batch = self.line.take_batch()
            if batch:
                self._commit(batch)
            else:
                self._snapshot_if_due()
                self.process.block(self._sleep)
        raise self.ended

    def stop(self, error: Exception) -> None:
        """It is over: whoever asked is told. Idempotent."""
        if self.ended is not None:
            return
        self.ended = error
        for asked in list(self._asked.values()):
            asked.respond("outcome_unknown" if asked.sent else "not_leading", None)
        self._asked.clear()
        self.hang_up()
        self._wake_up()

    def hang_up(self) -> None:
        """Close the connection to Mesos, as also the end of the process does."""
        if self._client is not None:
            self._client.close()

    def _begin(self) -> None:
        self.is_begun = True
        self._client = MesosClient(
            self._mesos,
            self.process,
            self.catalog,
            epoch=self.epoch,
            spec=self._spec,
            schedulers=self._schedulers,
            check=self.journal.check,
            take_event=self.take,
            ended=lambda why: self.stop(Unavailable(why)),
        )
        self._client.subscribe()
        self.process.at(self.settings.tick_ms, self._tick)

    def _tick(self) -> None:
        if self.ended is None:
            self.take(ev.Ticked())
            self.process.at(self.settings.tick_ms, self._tick)

    # --- deciding

    def take(self, event: ev.Event) -> None:
        if self.ended is not None:
            return
        self._wall_ms = max(self._wall_ms, self.process.wall_ms())
        stamp = ev.Stamp(next(self._event_ids), self.process.now_ms(), self._wall_ms)
        self.process.timeline.tell((self.process.name, event))
        before = self.catalog.revision, len(self.catalog.jobs)
        self.fleet.observe(stamp, event, self.catalog)
        frame = decide(self.catalog, self.fleet, stamp, event, self.settings)
        assert before == (self.catalog.revision, len(self.catalog.jobs)), "decide changed the catalog"
        self._take_frame(stamp, event, frame)

    def _take_frame(self, stamp: ev.Stamp, event: ev.Event, frame: a.Frame) -> None:
        self._apply(stamp, frame)
        records = tuple(encode_entry(entry) for entry in frame.entries)
        assert sum(map(len, records)) <= BATCH_BYTES_MAX, "a frame that fits no batch"
        if frame.entries or stamp.event_id % WHOLE_CHECK_EVENTS == 0:
            check(self.catalog, self.fleet)
        elif stamp.event_id % CHECK_EVENTS == 0:
            check_fleet(self.catalog, self.fleet)
        if frame.entries or frame.actions:
            self.line.push(stamp, records, frame.actions, getattr(event, "reply_id", 0))
            self._wake_up()

    def _apply(self, stamp: ev.Stamp, frame: a.Frame) -> None:
        for entry in frame.entries:
            self.catalog.apply(entry)
        for action in frame.actions:
            self.fleet.apply(stamp, action)

    def ask(self, make_event: Callable[[int], ev.Event], respond: Respond) -> None:
        """Decide the event of a request; respond once it is durable, or say after a while that nobody knows."""
        reply_id = next(self._reply_ids)
        self._asked[reply_id] = Asked(respond)

        def late() -> None:
            if self._asked.pop(reply_id, None) is not None:
                respond("outcome_unknown", None)

        self.process.at(WRITE_TIMEOUT_MS, late)
        self.take(make_event(reply_id))

    def read(self, respond: Respond) -> None:
        """Answer with the index of what is read now, once that is durable."""
        index = self.line.decided_index

        def told() -> None:
            self.journal.check()
            self._truth.check_leads(self.epoch, "a read was answered")
            self._truth.check_durable(index)
            is_robbed = self.epoch in self._truth.robbed
            respond("outcome_unknown" if is_robbed else "answer", index)

        self._after(told)

    def _after(self, told: Callable[[], None]) -> None:
        self.line.push(ev.Stamp(0, self.process.now_ms(), self._wall_ms), told=told)
        self._wake_up()

    # --- committing

    def _commit(self, batch: list[Waiting]) -> None:
        records = [record for waiting in batch for record in waiting.records]
        if records:
            self._append(batch, records)
        self._perform(batch)
        self.line.done()
        self._check_state()

    def _append(self, batch: list[Waiting], records: list[bytes]) -> None:
        for waiting in batch:
            if waiting.reply_id in self._asked:
                self._asked[waiting.reply_id].sent = True
        self.journal.append(self.line.next_index, records)
        self._truth.check_records(self.line.next_index, records)
        self.line.appended(len(records))
        self.passed("appended")

    def _perform(self, batch: list[Waiting]) -> None:
        for waiting in batch:
            for action in waiting.actions:
                if self.ended is not None:
                    return
                self.journal.check()
                self._truth.check_leads(self.epoch, f"an action ({type(action).__name__})")
                self._act(waiting, action)
                self.passed("acted")
            if waiting.told is not None and self.ended is None:
                self.journal.check()
                waiting.told()

    def _act(self, waiting: Waiting, action: a.Action) -> None:
        match action:
            case a.Answer() | a.AnswerHeartbeat():
                self._answer(waiting, action)
            case a.StartListing():
                self._list(action)
            case a.StopListing() | a.ForgetManifest():
                pass
            case a.ProbeExecutor():
                self._probe(action)
            case _:
                assert self._client is not None
                self._client.send(action)

    def _answer(self, waiting: Waiting, action: a.Answer | a.AnswerHeartbeat) -> None:
        asked = self._asked.pop(action.reply_id, None)
        if asked is None:
            return
        self._truth.check_durable(waiting.stop_index)
        if isinstance(action, a.Answer):
            self._truth.acknowledged_index = max(self._truth.acknowledged_index, waiting.stop_index)
            assert action.refusal is None or action.refusal.hint, f"no hint: {action.refusal}"
            asked.respond("answer", action)
        else:
            asked.respond("answer", replace(action.answer, schedulers=self._schedulers()))

    def _list(self, action: a.StartListing) -> None:
        """List in a child process, which dies with this leadership."""
        timeline = self.process.timeline
        files = file_count(action.source) + action.version - 1
        manifested = Manifested(
            generation=action.generation,
            version=action.version,
            digest=f"{action.dataset_id}-{action.version}",
            files=files,
            bytes=files * BLOCK_BYTES,
            address_bytes=files * BLOCK_BYTES,
            block_bytes=BLOCK_BYTES,
            block_count=files,
            pg_count=1 << (file_count(action.source).bit_length() - 1),
        )
        failed = timeline.chance(0.2) and self._mesos.faults.users > 0

        def done() -> None:
            result = None if failed else manifested
            error = "the store is on fire" if failed else ""
            self.take(ev.ListingFinished(action.dataset_id, action.attempt, result, error))

        self.process.at(timeline.between(100, 4_000), done)

    def _probe(self, action: a.ProbeExecutor) -> None:
        """Try to connect; no action is owed, so the word of it may be lost."""
        timeline, faults = self.process.timeline, self._mesos.faults
        is_there = self._mesos.machine_answers(action.host)
        delay_ms = timeline.between(1, faults.delay_ms_max) if is_there else PROBE_TIMEOUT_MS
        if not timeline.chance(faults.message_loss):
            self.process.at(delay_ms, lambda: self.take(ev.ExecutorProbed(action.launch_id, is_there)))

    def _check_state(self) -> None:
        """Where nothing is ahead of the journal, live state is the journal's."""
        self._batches += 1
        if self._batches % 16 == 0 and not self.line and self.epoch == self._truth.epoch:
            if self._truth.next_index == self.line.decided_index:
                assert self.catalog.snapshot() == self._truth.catalog.snapshot(), "replay is not live state"

    # --- snapshots

    def _snapshot_if_due(self) -> None:
        if self._snapshot is None and self.line.decided_index - self._snapshot_index >= SNAPSHOT_RECORDS:
            self._snapshot_index = self.line.decided_index
            self._snapshot = self._snapshot_index, self.catalog.copy()
            self.process.spawn(self._write_snapshot)

    def _write_snapshot(self) -> None:
        assert self._snapshot is not None
        index, catalog = self._snapshot
        data = msgpack.packb(catalog.snapshot())
        while self.line.next_index < index and self.ended is None:
            self.process.sleep(5)
        try:
            if self.ended is None:
                self.journal.write_snapshot(index, data)
        except JournalError as error:
            self.process.timeline.tell(f"{self.process.name}: {error}")
        self._snapshot = None

    def _sleep(self, wake: Callable[[Any], None]) -> None:
        self._wake = wake

    def _wake_up(self) -> None:
        wake, self._wake = self._wake, None
        if wake is not None:
            wake(None)

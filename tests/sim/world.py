"""A cluster in virtual time around the scheduler's core: Mesos, agents, executors, users, and a journal. Seeded.

The world is the truth that the core only hears of: messages are lost, sent twice, delayed and overtaken, agents and
executors die or hang, the leader is replaced at any moment and loses what was not durable. Invariants are checked
whenever something was decided. Everything random comes from one generator, so a seed is a whole history.
"""

from __future__ import annotations

import collections
import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import msgpack

from sim.executor import BLOCK_BYTES, SimExecutor, block_path, file_count
from stoker.executor.messages import (
    Heartbeat,
    HeartbeatAnswer,
    decode_answer,
    decode_heartbeat,
    encode,
)
from stoker.framework.core import actions as a
from stoker.framework.core import entries as e
from stoker.framework.core import events as ev
from stoker.framework.core.catalog import Catalog
from stoker.framework.core.codec import decode_entry, encode_entry
from stoker.framework.core.fleet import TERMINAL_STATES, Fleet
from stoker.framework.core.invariants import check
from stoker.framework.core.rules import is_wanted, merge_rules
from stoker.framework.core.scheduler import decide
from stoker.framework.model import (
    FleetSpec,
    Manifested,
    Offer,
    Resources,
    Selection,
    Settings,
    TaskStatus,
)

CLUSTER = bytes(range(16))
MIB = 1024 * 1024
SETTINGS = Settings(
    jobs_kept_max=20,
    residency_grace_ms=8_000,
    slot_out_ms=40_000,
    reconcile_interval_ms=30_000,
    register_timeout_ms=20_000,
    job_unfit_ms=2_000,
    kill_tries_max=4,
)
BATCH_BYTES_MAX = 256 * 1024


@dataclass
class SimTask:
    task_id: str
    agent_id: str
    mem_bytes: int
    state: str = "TASK_STAGING"
    unacknowledged: list[TaskStatus] = field(default_factory=list)


@dataclass
class SimAgent:
    agent_id: str
    mem_bytes: int
    is_up: bool = True
    refused_until_ms: int = 0
    offer_id: str = ""


@dataclass
class Faults:
    """How much goes wrong; the defaults are a bad day."""

    message_loss: float = 0.05
    message_twice: float = 0.05
    delay_ms_max: int = 300
    executor_dies: float = 0.01  # an executor and second
    executor_hangs: float = 0.005
    agent_dies: float = 0.003
    master_goes: float = 0.01  # a second
    leader_dies: float = 0.02
    users: float = 0.4  # requests a second

    @classmethod
    def none(cls) -> Faults:
        return cls(0, 0, 20, 0, 0, 0, 0, 0, 0)


class World:
    def __init__(
        self, seed: int, *, agents: int = 4, instances: int = 3, faults: Faults | None = None
    ) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.faults = faults or Faults()
        self.now_ms = 1_000_000
        self.queue: list[tuple[int, int, Callable[[], None]]] = []
        self.order = itertools.count()
        self.event_ids = itertools.count(1)
        self.reply_ids = itertools.count(1)
        self.story: collections.deque[Any] = collections.deque(maxlen=60)
        # the journal
        self.journal: list[bytes] = []
        self.shadow = Catalog()  # what the journal says
        self.planned: dict[int, e.LaunchPlanned] = {}
        self.pending: list[tuple[ev.Stamp, a.Frame]] = []
        self.is_committing = False
        self.commits = 0
        self.crash_at_commit: int | None = None
        # the leader
        self.spec = FleetSpec(instances, 64 * MIB, role="stoker")
        self.term = 0
        self.replies: dict[int, Callable[[a.Answer | a.AnswerHeartbeat], None]] = {}
        # Mesos
        self.agents = {f"agent-{i}": SimAgent(f"agent-{i}", 512 * MIB) for i in range(agents)}
        self.tasks: dict[str, SimTask] = {}
        self.executors: dict[str, SimExecutor] = {}
        self.offers: dict[str, SimAgent] = {}
        self.offer_ids = itertools.count(1)
        self.uuids = itertools.count(1)
        self.framework_id = ""
        self.is_suppressed = False
        self.stream = 0
        self.incarnations = itertools.count(1)
        # the under store: source -> number of files; grows with refreshes
        self.versions: dict[int, int] = {}
        self.answers: list[tuple[str, a.Answer]] = []
        self.begin_leadership()
        for period_ms, what in ((500, self.tick), (1_000, self.second)):
            self.every(period_ms, what)

    # --- time

    def at(self, delay_ms: int, what: Callable[[], None]) -> None:
        heapq.heappush(self.queue, (self.now_ms + delay_ms, next(self.order), what))

    def every(self, period_ms: int, what: Callable[[], None]) -> None:
        def again() -> None:
            what()
            self.at(period_ms, again)

        self.at(self.random.randrange(period_ms), again)

    def step(self) -> None:
        self.now_ms, _, what = heapq.heappop(self.queue)
        what()

    def run(self, duration_ms: int) -> None:
        until_ms = self.now_ms + duration_ms
        while self.queue[0][0] <= until_ms:
            self.step()
        self.now_ms = until_ms

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def message(self, what: Callable[[], None]) -> None:
        """Deliver `what` as networks do: late, perhaps twice, perhaps never."""
        if self.chance(self.faults.message_loss):
            return
        for _ in range(2 if self.chance(self.faults.message_twice) else 1):
            self.at(self.random.randrange(self.faults.delay_ms_max + 1), what)

    # --- the leader's loop

    def begin_leadership(self) -> None:
        """Replay the journal, from a snapshot of some prefix as a new leader would."""
        self.term += 1
        cut = self.random.randrange(len(self.journal) + 1)
        prefix = Catalog()
        for data in self.journal[:cut]:
            prefix.apply(decode_entry(data))
        self.catalog = Catalog.restore(msgpack.unpackb(msgpack.packb(prefix.snapshot())))
        for data in self.journal[cut:]:
            self.catalog.apply(decode_entry(data))
        assert self.catalog.snapshot() == self.shadow.snapshot(), "replay is not what was live"
        self.fleet = Fleet(SETTINGS)
        self.pending.clear()
        self.replies.clear()
        self.listings: set[tuple[int, int, int]] = set()
        self.stream += 1
        epoch = self.catalog.epoch + 1
        self.take(ev.LeadershipBegan(epoch, self.spec, CLUSTER, "sim", self.random.randbytes(16)))
        self.subscribe()

    def take(self, event: ev.Event) -> None:
        stamp = ev.Stamp(next(self.event_ids), self.now_ms, 1_700_000_000_000 + self.now_ms)
        self.story.append((self.now_ms, event))
        before = self.catalog.revision, len(self.catalog.jobs), len(self.fleet.offers)
        self.fleet.observe(stamp, event, self.catalog)
        frame = decide(self.catalog, self.fleet, stamp, event, SETTINGS)
        assert before[:2] == (self.catalog.revision, len(self.catalog.jobs)), "decide changed the catalog"
        size = sum(len(encode_entry(entry)) for entry in frame.entries)
        assert size <= BATCH_BYTES_MAX, f"a frame of {size} bytes"
        for entry in frame.entries:
            self.catalog.apply(entry)
        for action in frame.actions:
            self.fleet.apply(stamp, action)
        if frame.entries or stamp.event_id % 8 == 0:
            check(self.catalog, self.fleet)
        self.pending.append((stamp, frame))
        if not self.is_committing:
            self.is_committing = True
            term = self.term
            self.at(self.random.randrange(30), lambda: self.commit(term))

    def commit(self, term: int) -> None:
        if term != self.term:
            return
        self.is_committing = False
        frames, self.pending = self.pending, []
        for _, frame in frames:
            for entry in frame.entries:
                data = encode_entry(entry)
                self.journal.append(data)
                self.shadow.apply(decode_entry(data))
                if isinstance(entry, e.LaunchPlanned):
                    self.planned[entry.launch_id] = entry
        self.commits += 1
        if self.commits % 16 == 0:
            assert self.shadow.snapshot() == self.catalog.snapshot()
        if self.crash_at_commit == self.commits:
            self.crash()  # durable, but nothing of it performed
            return
        for _, frame in frames:
            for action in frame.actions:
                self.perform(action)

    def crash(self) -> None:
        self.story.append((self.now_ms, f"--- the leader is replaced, {len(self.pending)} frames are lost"))
        self.is_committing = False
        self.offers.clear()
        self.begin_leadership()

    def tick(self) -> None:
        self.take(ev.Ticked())

    # --- Mesos

    def subscribe(self) -> None:
        """The master takes the leader in; unacknowledged updates and offers come anew."""
        stream = self.stream
        self.is_suppressed = False
        self.offers.clear()
        for agent in self.agents.values():
            agent.refused_until_ms, agent.offer_id = 0, ""

        def answer() -> None:
            if stream == self.stream:
                self.framework_id = self.framework_id or "framework-1"
                self.take(ev.Subscribed(self.catalog.framework_id or self.framework_id, "master-1"))

        self.at(self.random.randrange(500), answer)

    def from_master(self, event: ev.Event) -> None:
        """Deliver in order on the stream, or not at all when the stream breaks first."""
        stream = self.stream

        def deliver() -> None:
            if stream == self.stream and self.fleet.subscribed:
                self.take(event)

        self.at(5, deliver)

    def send_offers(self) -> None:
        if self.is_suppressed or not self.fleet.subscribed:
            return
        offered = []
        for agent in self.agents.values():
            used = sum(t.mem_bytes for t in self.tasks.values() if t.agent_id == agent.agent_id)
            if not agent.is_up or agent.offer_id or agent.refused_until_ms > self.now_ms:
                continue
            agent.offer_id = f"offer-{next(self.offer_ids)}"
            self.offers[agent.offer_id] = agent
            resources = Resources(4_000, agent.mem_bytes - used, 0, ((31_000, 31_010),))
            offered.append(Offer(agent.offer_id, agent.agent_id, agent.agent_id, resources, role="stoker"))
        if offered:
            self.from_master(ev.OffersReceived(tuple(offered)))

    def send_updates(self) -> None:
        for task in self.tasks.values():
            if task.unacknowledged and self.agents[task.agent_id].is_up:
                if not self.chance(self.faults.message_loss):
                    self.from_master(ev.TaskUpdated(task.unacknowledged[0]))
        for task_id in [
            t.task_id for t in self.tasks.values() if t.state in TERMINAL_STATES and not t.unacknowledged
        ]:
            del self.tasks[task_id]

    def update(self, task: SimTask, state: str, reason: str = "") -> None:
        task.state = state
        uuid = next(self.uuids).to_bytes(16, "big")
        task.unacknowledged.append(
            TaskStatus(task.task_id, state, task.agent_id, task.task_id, reason, uuid=uuid)
        )
        if state in TERMINAL_STATES:
            task.mem_bytes = 0

    def perform(self, action: a.Action) -> None:
        match action:
            case a.Answer() | a.AnswerHeartbeat():
                reply = self.replies.pop(action.reply_id, None)
                if reply is not None:
                    reply(action)
            case a.Accept():
                self.accept(action)
            case a.Decline():
                for offer_id in action.offer_ids:
                    self.give_back(offer_id, action.refuse_ms)
            case a.Acknowledge():
                task = self.tasks.get(action.task_id)
                if task and task.unacknowledged and task.unacknowledged[0].uuid == action.uuid:
                    del task.unacknowledged[0]
            case a.StartListing():
                self.list(action)
            case a.Kill() | a.Reconcile() | a.Suppress() | a.Revive() | a.ShutdownExecutor():
                if not self.chance(self.faults.message_loss):
                    self.call(action)
            case _:
                pass

    def call(self, action: a.Action) -> None:
        match action:
            case a.Suppress():
                self.is_suppressed = True
            case a.Revive():
                self.is_suppressed = False
                for agent in self.agents.values():
                    agent.refused_until_ms = 0
            case a.Kill(task_id=task_id) | a.ShutdownExecutor(executor_id=task_id):
                assert self.shadow.launch_of_task(task_id) is None, f"{task_id} is killed but promised"
                executor = self.executors.get(task_id)
                if executor is not None and not executor.is_hung or isinstance(action, a.ShutdownExecutor):
                    self.end_executor(task_id, "TASK_KILLED")
            case a.Reconcile():
                self.reconcile(action)

    def accept(self, action: a.Accept) -> None:
        launch = action.launch
        assert self.planned.get(launch.launch_id) == launch, "launched before it was journaled"
        agents = {self.offers[i].agent_id for i in action.offer_ids if i in self.offers}
        is_valid = all(i in self.offers for i in action.offer_ids) and agents == {launch.agent_id}
        for offer_id in action.offer_ids:
            self.give_back(offer_id, action.refuse_ms)
        agent = self.agents[launch.agent_id]
        task = SimTask(launch.task_id, launch.agent_id, launch.mem_bytes + 256 * MIB)
        if not is_valid or not agent.is_up:
            self.from_master(ev.TaskUpdated(TaskStatus(launch.task_id, "TASK_DROPPED", launch.agent_id)))
            return
        assert launch.task_id not in self.tasks, "a task id is used again"
        for other in self.executors.values():
            assert other.slot_id != launch.slot_id or self.shadow.launch_of_task(other.task_id) is None
        self.tasks[launch.task_id] = task

        def start() -> None:
            if self.tasks.get(launch.task_id) is not task or task.state in TERMINAL_STATES:
                return
            if self.chance(self.faults.executor_dies * 5):
                self.update(task, "TASK_FAILED", "it died at birth")
                return
            self.executors[launch.task_id] = SimExecutor(launch, CLUSTER, next(self.incarnations))
            self.update(task, "TASK_RUNNING")

        self.at(self.random.randrange(200, 3_000), start)

    def give_back(self, offer_id: str, refuse_ms: int) -> None:
        agent = self.offers.pop(offer_id, None)
        if agent is not None:
            agent.offer_id = ""
            agent.refused_until_ms = self.now_ms + refuse_ms

    def reconcile(self, action: a.Reconcile) -> None:
        if not action.tasks:
            known = [(t.task_id, t.agent_id) for t in self.tasks.values() if t.state not in TERMINAL_STATES]
        else:
            known = list(action.tasks)
        for task_id, agent_id in known:
            task = self.tasks.get(task_id)
            state = task.state if task else "TASK_GONE"
            self.from_master(
                ev.TaskUpdated(TaskStatus(task_id, state, agent_id, reason="REASON_RECONCILIATION"))
            )

    def end_executor(self, task_id: str, state: str) -> None:
        executor = self.executors.pop(task_id, None)
        task = self.tasks.get(task_id)
        if task is not None and task.state not in TERMINAL_STATES:
            self.update(task, state)
        if executor is not None and self.chance(0.5):
            self.from_master(ev.ExecutorEnded(executor.launch.agent_id, task_id, 9))

    # --- executors

    def heartbeats(self) -> None:
        for executor in list(self.executors.values()):
            if executor.is_hung or not self.agents[executor.launch.agent_id].is_up:
                continue
            executor.work()
            beat = executor.heartbeat()
            data = encode(beat)
            self.message(lambda data=data: self.deliver_heartbeat(decode_heartbeat(data)))

    def deliver_heartbeat(self, heartbeat: Heartbeat) -> None:
        reply_id = next(self.reply_ids)
        task_id = next((t for t, x in self.executors.items() if x.incarnation == heartbeat.incarnation), "")

        def answered(action: a.Answer | a.AnswerHeartbeat) -> None:
            assert isinstance(action, a.AnswerHeartbeat)
            data = encode(replace(action.answer, schedulers=("http://leader:1",)))
            self.message(lambda: self.deliver_answer(task_id, decode_answer(data)))

        self.replies[reply_id] = answered
        self.take(ev.HeartbeatReceived(heartbeat, reply_id))

    def deliver_answer(self, task_id: str, answer: HeartbeatAnswer) -> None:
        executor = self.executors.get(task_id)
        if executor is None or executor.is_hung:
            return
        if answer.status == "stale":
            launch = self.shadow.launch_of_task(task_id)
            assert launch is None, f"{task_id} is told to end but promised"
            self.end_executor(task_id, "TASK_FINISHED")
        elif answer.status == "ok":
            executor.answered(answer)

    # --- what happens each second

    def second(self) -> None:
        faults = self.faults
        self.send_offers()
        self.send_updates()
        self.heartbeats()
        for task_id, executor in list(self.executors.items()):
            if self.chance(faults.executor_dies):
                self.end_executor(task_id, "TASK_FAILED")
            elif self.chance(faults.executor_hangs):
                executor.is_hung = True
        for agent in self.agents.values():
            if agent.is_up and self.chance(faults.agent_dies):
                self.lose_agent(agent)
        if self.chance(faults.master_goes):
            self.stream += 1
            self.take(ev.Disconnected())
            self.subscribe()
        if self.chance(faults.leader_dies):
            self.crash()
        if self.chance(faults.users):
            self.user_asks()

    def lose_agent(self, agent: SimAgent) -> None:
        agent.is_up = False
        self.give_back(agent.offer_id, 0)
        self.from_master(ev.AgentRemoved(agent.agent_id))
        for task in [t for t in self.tasks.values() if t.agent_id == agent.agent_id]:
            self.executors.pop(task.task_id, None)
            del self.tasks[task.task_id]
            self.from_master(ev.TaskUpdated(TaskStatus(task.task_id, "TASK_GONE", agent.agent_id)))

        def back() -> None:
            agent.is_up = True

        self.at(self.random.randrange(5_000, 40_000), back)

    def list(self, action: a.StartListing) -> None:
        term = self.term
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
        failed = self.chance(0.2) and self.faults.users > 0

        def done() -> None:
            if term == self.term:
                result = None if failed else manifested
                error = "the store is on fire" if failed else ""
                self.take(ev.ListingFinished(action.dataset_id, action.attempt, result, error))

        self.at(self.random.randrange(100, 4_000), done)

    # --- users

    def ask(self, text: str, make: Callable[[int], ev.Event]) -> None:
        reply_id = next(self.reply_ids)

        def answered(action: a.Answer | a.AnswerHeartbeat) -> None:
            assert isinstance(action, a.Answer)
            self.answers.append((text, action))
            assert action.refusal is None or action.refusal.hint, f"no hint: {action.refusal}"

        self.replies[reply_id] = answered
        self.take(make(reply_id))

    def user_asks(self) -> None:
        name = self.random.choice(("alpha", "beta"))
        kind = self.random.choices(
            ("add", "remove", "load", "free", "cancel", "fleet", "change", "refresh"),
            (20, 4, 30, 12, 10, 4, 6, 8),
        )[0]
        getattr(self, f"ask_{kind}")(name)

    def ask_add(self, name: str) -> None:
        source = f"mem://{self.random.choice((3, 20, 40))}"
        self.ask(
            f"add {name} {source}",
            lambda r: ev.DatasetRequested(r, name, source, {}, self.random.choice((1, 2)), "keep", "mem", 0),
        )

    def ask_remove(self, name: str) -> None:
        self.ask(f"remove {name}", lambda r: ev.DatasetRemovalRequested(r, name))

    def ask_load(self, name: str) -> None:
        self.ask_job(name, "load")

    def ask_free(self, name: str) -> None:
        self.ask_job(name, "free")

    def ask_job(self, name: str, kind: str, paths: tuple[str, ...] | None = None) -> None:
        if paths is None:
            paths = self.random.choice(((), ("d0",), ("d1", "d2"), ("d0", block_path(1))))
        selection = self.select(name, kind, paths)
        key = f"key-{self.random.randrange(30)}" if self.chance(0.3) else ""
        fit = self.chance(0.5)
        self.ask(
            f"{kind} {name} {paths}",
            lambda r: ev.JobRequested(r, kind, name, paths, key, fit, False, selection),
        )

    def select(self, name: str, kind: str, paths: tuple[str, ...]) -> Selection | None:
        dataset = self.catalog.dataset_named(name)
        if dataset is None or dataset.current is None:
            return None
        count = dataset.current.block_count
        rules = merge_rules(dataset.rules, kind == "load", paths)
        asked = merge_rules((), True, paths)
        requested = [i for i in range(count) if is_wanted(asked, block_path(i))]
        return Selection(
            dataset.dataset_id,
            dataset.current.version,
            dataset.wanted_version,
            rules,
            bitmap(requested),
            len(requested) * BLOCK_BYTES,
            len(requested),
            bitmap([i for i in range(count) if is_wanted(rules, block_path(i))]),
        )

    def ask_cancel(self, name: str) -> None:
        jobs = list(self.catalog.jobs)
        if jobs:
            job_id = self.random.choice(jobs)
            self.ask(f"cancel {job_id}", lambda r: ev.JobCancelRequested(r, job_id))

    def ask_fleet(self, name: str) -> None:
        spec = replace(
            self.spec, instances=self.random.choice((2, 3, 4)), mem_bytes=self.random.choice((64, 96)) * MIB
        )
        self.ask("fleet", lambda r: ev.FleetRequested(r, spec))

    def ask_change(self, name: str) -> None:
        replicas = self.random.choice((1, 2, 3))
        self.ask("change", lambda r: ev.DatasetChangeRequested(r, name, replicas, None, None))

    def ask_refresh(self, name: str) -> None:
        self.ask("refresh", lambda r: ev.RefreshRequested(r, name))

    # --- in the end

    def settle(self, duration_ms: int) -> None:
        """Let nothing go wrong any more, and time pass."""
        self.faults = Faults.none()
        for executor in self.executors.values():
            if executor.is_hung and self.random.random() < 0.5:
                executor.is_hung = False
        self.run(duration_ms)

    def entries(self) -> list[e.Entry]:
        return [decode_entry(data) for data in self.journal]

    def describe(self) -> str:
        return f"seed={self.seed}\n" + "\n".join(f"{at} {str(what)[:300]}" for at, what in self.story)


def bitmap(indexes: list[int]) -> bytes:
    bits = bytearray((max(indexes, default=-1) >> 3) + 1)
    for index in indexes:
        bits[index >> 3] |= 1 << (index & 7)
    return bytes(bits)


def answers_of(world: World) -> list[Any]:
    return [(text, answer.status) for text, answer in world.answers]

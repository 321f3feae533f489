"""A stage for the scheduler's core: one event after the other, applied at once, with the invariants checked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from stoker.executor.messages import Heartbeat, HeartbeatAnswer, Residency
from stoker.framework.core import actions as a
from stoker.framework.core import events as ev
from stoker.framework.core.catalog import Catalog, Dataset, Launch
from stoker.framework.core.codec import decode_entry, encode_entry
from stoker.framework.core.entries import Entry
from stoker.framework.core.fleet import Fleet
from stoker.framework.core.invariants import check
from stoker.framework.core.job_table import Job
from stoker.framework.core.rules import is_wanted, merge_rules
from stoker.framework.core.scheduler import decide
from stoker.framework.model import FleetSpec, Manifested, Offer, Resources, Selection, Settings, TaskStatus

MIB = 1024 * 1024
CLUSTER = bytes(range(16))
BLOCK_BYTES = 1 * MIB


class Stage:
    def __init__(self, *, instances: int = 2, mem_bytes: int = 64 * MIB, **settings: int) -> None:
        self.settings = Settings(**settings)
        self.catalog = Catalog()
        self.fleet = Fleet(self.settings)
        self.now_ms = 50_000
        self.event_id = 0
        self.journal: list[bytes] = []
        self.spec = FleetSpec(instances, mem_bytes)
        self.sequences: dict[int, int] = {}
        self.offer_number = 0
        self.away: set[str] = set()  # agents whose machines do not answer

    def do(self, event: ev.Event, *, after_ms: int = 0) -> a.Frame:
        """Take one event `after_ms` later, and apply its frame."""
        self.now_ms += after_ms
        self.event_id += 1
        stamp = ev.Stamp(self.event_id, self.now_ms, 1_700_000_000_000 + self.now_ms)
        self.fleet.observe(stamp, event, self.catalog)
        before = self.catalog.snapshot()
        frame = decide(self.catalog, self.fleet, stamp, event, self.settings)
        assert self.catalog.snapshot() == before, "decide changed the catalog"
        for entry in frame.entries:
            self.journal.append(encode_entry(entry))
            self.catalog.apply(decode_entry(self.journal[-1]))
        for action in frame.actions:
            self.fleet.apply(stamp, action)
        check(self.catalog, self.fleet)
        for action in frame.actions:
            if isinstance(action, a.ProbeExecutor):
                self.do(ev.ExecutorProbed(action.launch_id, action.host not in self.away))
        return frame

    def tick(self, after_ms: int = 500) -> a.Frame:
        return self.do(ev.Ticked(), after_ms=after_ms)

    def pass_time(self, duration_ms: int, *, beating: bool = True) -> list[a.Frame]:
        """Tick every 500 ms; executors heartbeat each second if `beating`."""
        frames = []
        for at_ms in range(0, duration_ms, 500):
            if beating and at_ms % 1000 == 0:
                for launch_id in list(self.fleet.executors):
                    if launch_id in self.catalog.launches:
                        self.beat(self.catalog.launches[launch_id])
            frames.append(self.tick())
        return frames

    # --- leadership and Mesos

    def lead(self) -> a.Frame:
        """Begin a leadership on what is journaled; the observed state is new."""
        self.catalog = replayed(self.journal)
        self.fleet = Fleet(self.settings)
        epoch = self.catalog.epoch + 1
        return self.do(ev.LeadershipBegan(epoch, self.spec, CLUSTER, "test", bytes(16)))

    def subscribe(self, framework_id: str = "framework-1") -> a.Frame:
        return self.do(ev.Subscribed(framework_id, "master-1"))

    def offer(
        self, *agents: str, mem_bytes: int = 1024 * MIB, cpus_milli: int = 2000, **fields: Any
    ) -> a.Frame:
        """One offer of each agent, by id; hostname is the id."""
        return self.do(
            ev.OffersReceived(tuple(self.make_offer(n, mem_bytes, cpus_milli, **fields) for n in agents))
        )

    def make_offer(
        self,
        agent_id: str,
        mem_bytes: int = 1024 * MIB,
        cpus_milli: int = 2000,
        ports: tuple[tuple[int, int], ...] = ((31000, 31099),),
        **fields: Any,
    ) -> Offer:
        self.offer_number += 1
        resources = Resources(cpus_milli, mem_bytes, 0, ports)
        return Offer(f"offer-{self.offer_number}", agent_id, agent_id, resources, **fields)

    def status(self, task_id: str, state: str, *, uuid: bytes = b"", **fields: str) -> a.Frame:
        fields.setdefault("agent_id", "agent-1")
        return self.do(ev.TaskUpdated(TaskStatus(task_id, state, uuid=uuid, **fields)))

    def start(self, *, agents: int | None = None) -> Stage:
        """Lead, subscribe, launch on agent-1, ..., and let each executor be heard once."""
        self.lead()
        self.subscribe()
        self.tick()
        count = self.spec.instances if agents is None else agents
        self.offer(*(f"agent-{i + 1}" for i in range(count)))
        for launch in list(self.catalog.launches.values()):
            self.beat(launch, whole=True)
        self.tick()
        return self

    def launch(self, slot_id: int) -> Launch:
        return self.catalog.launches[self.catalog.slots[slot_id].launch_id]

    # --- executors

    def beat(self, launch: Launch, *, after_ms: int = 0, **fields: Any) -> HeartbeatAnswer:
        """Send a heartbeat with the next sequence number; `fields` replace its fields."""
        sequence = fields.pop("sequence", 0)
        if not sequence:
            sequence = self.sequences[launch.launch_id] = self.sequences.get(launch.launch_id, 0) + 1
        frame = self.do(ev.HeartbeatReceived(heartbeat_of(launch, sequence, **fields), 99), after_ms=after_ms)
        (answer,) = [x for x in frame.actions if isinstance(x, a.AnswerHeartbeat)]
        return answer.answer

    def hold(
        self, slot_id: int, dataset: Dataset, blocks: Iterable[int] | None = None, **fields: Any
    ) -> HeartbeatAnswer:
        """Let a slot report these full blocks (None: all that are wanted there), settled unless `fields` say else."""
        wanted = self.wanted_on(slot_id, dataset)
        held = wanted if blocks is None else set(blocks)
        return self.beat(
            self.launch(slot_id), whole=True, datasets=(residency_of(dataset, held, wanted, **fields),)
        )

    def wanted_on(self, slot_id: int, dataset: Dataset) -> set[int]:
        assert dataset.current is not None
        position = [slot.slot_id for slot in self.catalog.slot_order()].index(slot_id)
        homes = self.catalog.homes(dataset)
        return {
            block
            for block in range(dataset.current.block_count)
            if position in homes[:, block % dataset.current.pg_count]
            and is_wanted(dataset.rules, path_of(block))
        }

    # --- users

    def ask(self, event: ev.Event) -> a.Answer:
        (answer,) = [x for x in self.do(event).actions if isinstance(x, a.Answer)]
        assert answer.refusal is None or answer.refusal.hint, "a refusal says what to do"
        return answer

    def add(self, name: str = "alpha", source: str = "mem://x", **fields: Any) -> a.Answer:
        values: dict[str, Any] = {
            "options": {},
            "replicas": 1,
            "policy": "keep",
            "tier": "mem",
            "priority": 0,
        }
        return self.ask(ev.DatasetRequested(7, name, source, **(values | fields)))

    def ready(self, name: str = "alpha", blocks: int = 16, **fields: Any) -> Dataset:
        """Add a dataset of one file a block, and list it."""
        self.add(name, **fields)
        dataset = self.dataset(name)
        self.do(ev.ListingFinished(dataset.dataset_id, dataset.attempt, manifested(dataset, blocks)))
        return self.dataset(name)

    def dataset(self, name: str = "alpha") -> Dataset:
        found = self.catalog.dataset_named(name)
        assert found is not None
        return found

    def job(self, kind: str = "load", *paths: str, name: str = "alpha", **fields: Any) -> a.Answer:
        selection = fields.pop("selection", None) or self.select(kind, paths, name)
        values: dict[str, Any] = {"key": "", "fit": False, "plan_only": False}
        return self.ask(ev.JobRequested(7, kind, name, paths, selection=selection, **(values | fields)))

    def select(self, kind: str, paths: tuple[str, ...], name: str) -> Selection | None:
        dataset = self.catalog.dataset_named(name)
        if dataset is None or dataset.current is None:
            return None
        rules = merge_rules(dataset.rules, kind == "load", paths)
        asked = merge_rules((), True, paths)
        count = dataset.current.block_count
        requested = {i for i in range(count) if is_wanted(asked, path_of(i))}
        wanted = {i for i in range(count) if is_wanted(rules, path_of(i))}
        return Selection(
            dataset.dataset_id,
            dataset.current.version,
            dataset.wanted_version,
            rules,
            bitmap_of(requested),
            len(requested) * BLOCK_BYTES,
            len(requested),
            bitmap_of(wanted),
        )

    def only_job(self) -> Job:
        (job,) = self.catalog.jobs.values()
        return job


def replayed(journal: Iterable[bytes]) -> Catalog:
    catalog = Catalog()
    for data in journal:
        catalog.apply(decode_entry(data))
    return catalog


def entries_of(frame: a.Frame, kind: type[Any]) -> list[Any]:
    found: list[Entry] = [entry for entry in frame.entries if isinstance(entry, kind)]
    return found


def actions_of(frame: a.Frame, kind: type[Any]) -> list[Any]:
    return [action for action in frame.actions if isinstance(action, kind)]


def path_of(block: int) -> str:
    return f"d{block % 4}/f{block}"


def bitmap_of(blocks: Iterable[int]) -> bytes:
    numbers = set(blocks)
    bits = bytearray((max(numbers, default=-1) >> 3) + 1)
    for block in numbers:
        bits[block >> 3] |= 1 << (block & 7)
    return bytes(bits)


def manifested(dataset: Dataset, blocks: int, *, version: int = 1) -> Manifested:
    return Manifested(
        generation=1,
        version=version,
        digest=f"{dataset.dataset_id}-{version}",
        files=blocks,
        bytes=blocks * BLOCK_BYTES,
        address_bytes=blocks * BLOCK_BYTES,
        block_bytes=BLOCK_BYTES,
        block_count=blocks,
        pg_count=1 << max(0, blocks.bit_length() - 1),
    )


def heartbeat_of(launch: Launch, sequence: int, **fields: Any) -> Heartbeat:
    heartbeat = Heartbeat(
        cluster=CLUSTER,
        slot_id=launch.slot_id,
        launch_id=launch.launch_id,
        incarnation=1000 + launch.launch_id,
        secret=launch.secret,
        sequence=sequence,
        whole=False,
        epoch_seen=launch.epoch,
        assignment_version=0,
        host=launch.hostname,
        port=launch.port,
        socket_path="/tmp/s",
        abstract_socket="",
        boot_id="boot",
        pid=4,
        capacity_bytes=launch.mem_bytes,
        used_bytes=0,
        lent_bytes=0,
    )
    return replace(heartbeat, **fields)


def residency_of(dataset: Dataset, held: set[int], wanted: set[int], **fields: Any) -> Residency:
    assert dataset.current is not None
    residency = Residency(
        dataset_id=dataset.dataset_id,
        generation=dataset.current.generation,
        version=dataset.current.version,
        bitmap=bitmap_of(held),
        full_blocks=len(held),
        cached_bytes=len(held) * BLOCK_BYTES,
        held_bytes=len(held) * BLOCK_BYTES,
        wanted_version=dataset.wanted_version,
        wanted_blocks=len(wanted),
        wanted_settled=len(wanted & held),
        wanted_full=len(wanted & held),
        wanted_bytes=len(wanted) * BLOCK_BYTES,
        wanted_cached_bytes=len(wanted & held) * BLOCK_BYTES,
        wanted_files=len(wanted),
        wanted_cached_files=len(wanted & held),
    )
    return replace(residency, **fields)

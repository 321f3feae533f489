"""An executor of the simulation: follows its assignment block by block and reports, as the real keeper does.

A file is exactly one block, `block_path(index)`; filling one takes a second. It keeps heartbeats' rules strictly:
changes are relative to the last acknowledged heartbeat, answers of a lower epoch and assignments of a lower (epoch,
version) are refused, nothing is freed while residency is not complete. It finds the leader by its list of schedulers.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from stoker.executor.messages import (
    Assignment,
    DatasetAssignment,
    DiskReport,
    Heartbeat,
    HeartbeatAnswer,
    Residency,
)
from stoker.framework.core.entries import LaunchPlanned
from stoker.framework.core.rules import is_wanted

BLOCK_BYTES = 4 * 1024 * 1024
FILLS_PER_SECOND = 3
SENT_MAX = 20  # heartbeats that an acknowledgement may still be of

Blocks = dict[tuple[int, int], frozenset[int]]  # that are held, by dataset id and generation


def block_path(index: int) -> str:
    return f"d{index % 4}/f{index}"


def file_count(source: str) -> int:
    return int(source.removeprefix("mem://"))


class SimExecutor:
    def __init__(
        self, launch: LaunchPlanned, cluster: bytes, incarnation: int, schedulers: tuple[str, ...]
    ) -> None:
        self.schedulers = schedulers  # the one that answered last is the first
        self.epoch_seen = launch.epoch
        self.is_asking = False  # one heartbeat at a time
        self.launch = launch
        self.slot_id = launch.slot_id
        self.task_id = launch.task_id
        self.cluster = cluster
        self.incarnation = incarnation
        self.is_hung = False
        self.sequence = 0
        self.assignment: Assignment | None = None
        self._wanted: dict[int, frozenset[int]] = {}  # by dataset id, of the assignment
        self._kept: dict[int, list[int]] = {}  # likewise: what leaving ones hold, and this one takes
        self._at_rest: Blocks | None = None  # with these blocks the assignment leaves nothing to do
        self.served: dict[int, str] = {}  # dataset id: name, of what readers are served here
        self.cleared = (0, 0)
        self.held: dict[tuple[int, int], set[int]] = {}
        self.unfit: dict[tuple[int, int], int] = {}
        self.saving: dict[tuple[int, int], int] = {}
        self.unsaved: dict[tuple[int, int], int] = {}
        self.sent: dict[int, Blocks] = {}
        self.acknowledged: Blocks | None = None
        self._told: tuple[object, ...] = ()  # what the residencies of the newest heartbeat say
        self._residencies: tuple[Residency, ...] = ()
        self.capacities = {"mem": launch.mem_bytes // BLOCK_BYTES, "ssd": launch.disk_bytes // BLOCK_BYTES}
        self._disk: dict[tuple[int, int], set[int]] = {}
        self._read: Callable[[tuple[int, int], int], None] = lambda key, index: None

    def use_disk(
        self, disk: dict[tuple[int, int], set[int]], read: Callable[[tuple[int, int], int], None]
    ) -> None:
        """Keep the SSD tier in `disk`, with what is there already; `read` is told of each block that is filled."""
        self._disk, self._read = disk, read
        self.held |= disk

    def _place(self, key: tuple[int, int], tier: str) -> set[int]:
        """Return the blocks of a dataset that are held, to be changed."""
        if key not in self.held:
            self.held[key] = self._disk.setdefault(key, set()) if tier == "ssd" else set()
        return self.held[key]

    def _used(self, tier: str) -> int:
        """Return how many blocks a tier holds."""
        return sum(len(held) for key, held in self.held.items() if (key in self._disk) == (tier == "ssd"))

    def wanted(self, dataset: DatasetAssignment) -> frozenset[int]:
        found = self._wanted.get(dataset.dataset_id)
        if found is None:
            found = self._wanted[dataset.dataset_id] = frozenset(self._find_wanted(dataset))
        return found

    def _find_wanted(self, dataset: DatasetAssignment) -> set[int]:
        assert self.assignment is not None
        position = [s.slot_id for s in self.assignment.slots].index(self.slot_id)
        homes = np.frombuffer(dataset.homes, dtype="<u2").reshape(dataset.replicas, dataset.pg_count)
        is_home = (homes == position).any(axis=0).tolist()
        return {
            i
            for i in range(self.block_count(dataset))
            if is_home[i % dataset.pg_count] and is_wanted(dataset.wanted, block_path(i))
        }

    def block_count(self, dataset: DatasetAssignment) -> int:
        return file_count(dataset.source) + dataset.version - 1

    def work(self) -> None:
        """Do a second's work: free what is not wanted, fill what is."""
        blocks = self._blocks()
        if blocks != self._at_rest:
            self._work()
            self._at_rest = blocks if self._blocks() == blocks else None

    def _blocks(self) -> Blocks:
        return {key: frozenset(held) for key, held in self.held.items()}

    def _work(self) -> None:
        assignment = self.assignment
        if assignment is None or self.slot_id not in [s.slot_id for s in assignment.slots]:
            return
        known = {(d.dataset_id, d.generation): d for d in assignment.datasets}
        if assignment.residency_complete:
            self._free(known)
        rooms = {tier: capacity - self._used(tier) for tier, capacity in self.capacities.items()}
        fills = FILLS_PER_SECOND
        self.unfit, self.saving, self.unsaved = {}, {}, {}
        for key, dataset in known.items():
            held, room = self._place(key, dataset.tier), rooms[dataset.tier]
            wanted = self.wanted(dataset)
            if room <= 0 and assignment.residency_complete:
                for index in sorted(held - wanted)[: len(wanted - held)]:
                    held.discard(index)
                    room += 1
            for index in sorted(wanted - held):
                if room <= 0:
                    break
                if fills:
                    if dataset.tier == "ssd":
                        self._read(key, index)
                    held.add(index)
                    fills, room = fills - 1, room - 1
            if room <= 0:
                self.unfit[key] = len(wanted - held)
            rooms[dataset.tier] = self._save(key, dataset, fills, room)

    def _free(self, known: dict[tuple[int, int], DatasetAssignment]) -> None:
        for key in list(self.held):
            if key not in known:
                del self.held[key]
                self._disk.pop(key, None)
            else:
                dataset = known[key]
                self.held[key] &= {
                    i for i in self.held[key] if not _is_excluded(dataset.wanted, block_path(i))
                } | self.wanted(dataset)

    def _save(self, key: tuple[int, int], dataset: DatasetAssignment, fills: int, room: int) -> int:
        """Take in what only leaving executors hold; return the room that is left."""
        held = self.held[key]
        missing = [i for i in self.kept(dataset) if i not in held]
        for index in missing[: max(0, min(room, fills))]:
            if dataset.tier == "ssd":
                self._read(key, index)
            held.add(index)
            room -= 1
        left = [i for i in missing if i not in held]
        self.saving[key], self.unsaved[key] = (0, len(left)) if room <= 0 else (len(left), 0)
        return room

    def kept(self, dataset: DatasetAssignment) -> list[int]:
        found = self._kept.get(dataset.dataset_id)
        if found is None:
            found = self._kept[dataset.dataset_id] = self._find_kept(dataset)
        return found

    def _find_kept(self, dataset: DatasetAssignment) -> list[int]:
        assert self.assignment is not None
        position = [s.slot_id for s in self.assignment.slots].index(self.slot_id)
        homes = np.frombuffer(dataset.homes, dtype="<u2").reshape(dataset.replicas, dataset.pg_count)
        bits = np.unpackbits(np.frombuffer(dataset.kept, dtype=np.uint8), bitorder="little")
        return [
            i
            for i in np.flatnonzero(bits).tolist()
            if i < self.block_count(dataset)
            and homes[0, i % dataset.pg_count] == position
            and not _is_excluded(dataset.wanted, block_path(i))
        ]

    def heartbeat(self) -> Heartbeat:
        self.sequence += 1
        state = self.sent[self.sequence] = self._blocks()
        self.sent.pop(self.sequence - SENT_MAX - 1, None)
        whole = self.acknowledged is None
        told = (self.assignment, state, self.acknowledged, self.unfit, self.saving, self.unsaved)
        if told != self._told:
            self._told = told
            self._residencies = tuple(self.residency(d, state, whole) for d in self.assigned())
        launch = self.launch
        return Heartbeat(
            cluster=self.cluster,
            slot_id=self.slot_id,
            launch_id=launch.launch_id,
            incarnation=self.incarnation,
            secret=launch.secret,
            sequence=self.sequence,
            whole=whole,
            epoch_seen=self.epoch_seen,
            assignment_version=self.assignment_version(),
            host=launch.hostname,
            port=launch.port,
            socket_path="",
            abstract_socket="",
            boot_id="b",
            pid=1,
            capacity_bytes=launch.mem_bytes,
            used_bytes=self._used("mem") * BLOCK_BYTES,
            lent_bytes=0,
            datasets=self._residencies,
            disk=DiskReport(launch.disk_bytes, self._used("ssd") * BLOCK_BYTES)
            if launch.disk_bytes
            else None,
            cleared_version=self.cleared[1] if self.cleared[0] == self.epoch_seen else 0,
        )

    def assignment_version(self) -> int:
        """Return the version of the assignment that is held; 0: none, or one of an earlier epoch."""
        held = self.assignment
        return held.version if held is not None and held.epoch == self.epoch_seen else 0

    def refuses(self, epoch: int) -> bool:
        """Say whether an answer of this epoch comes from a leader that was replaced."""
        return epoch < self.epoch_seen

    def ask_next(self) -> None:
        """The scheduler at the head of the list is of no use now."""
        self.schedulers = (*self.schedulers[1:], self.schedulers[0])

    def redirected(self, url: str) -> None:
        self.schedulers = (url, *(one for one in self.schedulers if one != url))

    def assigned(self) -> list[DatasetAssignment]:
        if self.assignment is None or self.slot_id not in [s.slot_id for s in self.assignment.slots]:
            return []
        return list(self.assignment.datasets)

    def residency(self, dataset: DatasetAssignment, state: Blocks, whole: bool) -> Residency:
        key = (dataset.dataset_id, dataset.generation)
        held = state.get(key, frozenset())
        before = (self.acknowledged or {}).get(key, frozenset())
        wanted = self.wanted(dataset)
        return Residency(
            dataset_id=dataset.dataset_id,
            generation=dataset.generation,
            version=dataset.version,
            bitmap=_bitmap(held) if whole else None,
            added=() if whole else tuple(sorted(held - before)),
            removed=() if whole else tuple(sorted(before - held)),
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
            unfit_blocks=self.unfit.get(key, 0),
            saving_blocks=self.saving.get(key, 0),
            unsaved_blocks=self.unsaved.get(key, 0),
        )

    def answered(self, answer: HeartbeatAnswer) -> None:
        """Do as the leader answers; the caller has asked `refuses`."""
        assert answer.epoch >= self.epoch_seen
        self.epoch_seen = answer.epoch
        if answer.schedulers:
            self.schedulers = answer.schedulers
        if answer.status != "ok":
            return
        if answer.want_whole:
            self.acknowledged = None
        elif answer.sequence in self.sent and (
            self.acknowledged is not None or answer.sequence == self.sequence
        ):
            self.acknowledged = self.sent[answer.sequence]
        new, old = answer.assignment, self.assignment
        if new is None or (old is not None and (new.epoch, new.version) < (old.epoch, old.version)):
            return
        if old is not None and (new.epoch, new.version) == (old.epoch, old.version):
            assert new == old, "two assignments of one version"
        self.assignment, self._wanted, self._kept, self._at_rest = new, {}, {}, None
        named = {dataset.dataset_id: dataset.name for dataset in new.datasets}
        if new.residency_complete:
            self.served, self.cleared = named, (new.epoch, new.version)
        else:
            self.served |= named


def _is_excluded(rules: tuple[tuple[bool, str], ...], path: str) -> bool:
    decided = [
        included for included, prefix in rules if prefix in ("", path) or path.startswith(prefix + "/")
    ]
    return bool(decided) and not decided[-1]


def _bitmap(indexes: frozenset[int]) -> bytes:
    bits = bytearray((max(indexes, default=-1) >> 3) + 1)
    for index in indexes:
        bits[index >> 3] |= 1 << (index & 7)
    return bytes(bits)

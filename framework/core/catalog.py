"""The catalog: promised state. What the journal says, and nothing that was merely observed (that is fleet.py).

`Catalog.apply(entry)` is the only code that changes it, live and on replay, and it never refuses: what may be decided
was checked by `decide` on the state before. Its values are immutable, so whoever holds one (a view in another
greenlet, a request's answer) holds it as it was. The functions at the end compute one value after one entry; `decide`
uses them too, to answer a request with what its entries will make of it.

Ids are counted here and never used again, also not after a removal.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from stoker.framework.core import entries as e
from stoker.framework.core.base_rules import BaseRules
from stoker.framework.core.codec import CodecError, NewerError, plain, reader
from stoker.framework.core.departures import DepartureEntry, Drain, Uninstall, apply_departure
from stoker.framework.core.homes import Homes
from stoker.framework.core.job_table import Asked, Finished, Forgotten, Job, Jobs, Started, job_id_of
from stoker.framework.core.rules import Rules
from stoker.framework.core.volumes import Volume, VolumeEntry, Volumes
from stoker.framework.model import DatasetState, FleetSpec, Manifested, Tier

SNAPSHOT_FORMAT = 2
ROLES_HAD_MAX = 64
LAUNCH_CHANGES_MAX = 1_024  # remembered; who is farther behind looks at all
SLOTS_GONE_MAX = (
    64  # removed slots that placement still remembers, so that a removal moves only their own share
)

NAMES_REMOVED_MAX = 10_000  # beyond that any new name counts as used before

Launch = e.LaunchPlanned

_Wanted = tuple[int, int, Rules, int]  # a WantedSet as a bare tuple


class Slot(NamedTuple):
    """A wanted executor's place. `launch_id` 0: nothing is launched for it now; the rest is about its newest launch."""

    slot_id: int
    mem_bytes: int
    launch_id: int = 0
    last_agent_id: str = ""
    ended_count: int = 0
    ended_reason: str = ""
    ended_wall_ms: int = 0
    disk_bytes: int = 0

    def tier_bytes(self, tier: str) -> int:
        """Return the slot's capacity of a tier; 0: it has none."""
        return self.disk_bytes if tier == Tier.SSD else self.mem_bytes


class Dataset(NamedTuple):
    """A dataset; `versions` has the newest last and is empty until the first listing succeeded.

    `rules` is what `Catalog.base_rules` and the known jobs' wishes come to, in the order of their wanted versions and
    without the cancelled ones.
    """

    dataset_id: int
    name: str
    source: str
    options: tuple[tuple[str, str], ...]
    replicas: int
    policy: str
    tier: str
    priority: int
    created_ms: int
    state: DatasetState = DatasetState.LISTING
    error: str = ""
    attempt: int = 0
    is_listing: bool = False
    versions: tuple[Manifested, ...] = ()
    wanted_version: int = 0
    rules: tuple[tuple[bool, str], ...] = ()
    wanted_block_count: int = 0

    @property
    def current(self) -> Manifested | None:
        """The newest version; None before the first listing succeeded."""
        return self.versions[-1] if self.versions else None


class Catalog:
    """All promised state, in dense dicts by id, in the order of ids. Read it freely; change it by `apply` alone.

    It is bounded, by what `decide` lets in (names are of Settings):

        slots           instances_max; slots_out: those, and SLOTS_GONE_MAX that are gone
        launches        one a slot: an ended one is forgotten at once, its slot keeps why
        volumes         one a slot, and those that were given up: as many as agents have them, and for volumes_kept_ms as agents had
        drains          DRAINS_MAX
        datasets        datasets_max, with versions_kept versions, and wanted_rules_max rules for as long as nothing is
                        cancelled (then those of the jobs that are left); a removed one leaves its name: names_removed
        names_removed   NAMES_REMOVED_MAX
        jobs            jobs_kept_max finished ones, for jobs_kept_ms; jobs_active_max active ones; those in between that an
                        active one holds up: in all jobs_kept_max + 2 * jobs_active_max. Keys go with their jobs

    What is remembered of placement is one array a dataset.
    """

    def __init__(self) -> None:
        self.cluster = b""
        self.name = ""
        self.epoch = 0
        self.master = ""
        self.framework_id = ""
        self.fleet: FleetSpec | None = None
        self.roles_had: tuple[str, ...] = ()  # that the fleet has or had, the newest first
        self.slots: dict[int, Slot] = {}
        self.slots_out: dict[int, int] = {}  # slot id: bytes; removed or out of placement, oldest first
        self.launches: dict[int, Launch] = {}  # those not ended
        self.volumes = Volumes()
        self.drains: dict[str, Drain] = {}  # by agent id
        self.uninstall: Uninstall | None = None
        self.datasets: dict[int, Dataset] = {}
        self.names_removed: dict[str, int] = {}  # of datasets that could be read once: their ids
        self.jobs = Jobs()
        self.base_rules = BaseRules()  # what forgotten jobs left of what is wanted
        self.slot_id_next = 1
        self.launch_id_next = 1
        self.volume_id_next = 1
        self.dataset_id_next = 1
        self.job_number_next = 1
        self.generation_min = 1  # of what is listed from now on
        self.wall_ms = 0  # the newest journaled time: journaled times never go back
        self.placement_version = 0  # grows with whatever placement is a function of
        self.revision = 0  # grows with whatever an assignment is made of
        self.launch_revision = 0  # grows with slots and launches
        self.slots_revision = (
            0  # grows with the slots that placement uses; not journaled: a replay begins anew
        )
        self._slots_in: tuple[int, ...] | None = None  # remembered; None: not computed yet
        self._index()

    def apply(self, entry: e.Entry) -> None:
        """Change the state as `entry` says; `entry` was decided on exactly this state."""
        kind = type(entry)
        if kind in APPLY_MANY:
            alone: list[Any] = [(entry,) if kind is other else () for other in APPLY_MANY]
            assert self.fit(*alone), entry
            APPLY_MANY[kind](self, (entry,))
            self.settle()
        else:
            APPLY[kind](self, entry)

    def fit(
        self,
        wanted: Sequence[_Wanted],
        created: Sequence[Asked],
        started: Sequence[Started],
        finished: Sequence[Finished],
        forgotten: Sequence[Forgotten],
    ) -> bool:
        """Return whether these may be the next entries, and come to the same if they are applied kind by kind, in this order."""
        number = self.job_number_next
        return (
            self.datasets.keys() >= set(map(_FIRST, wanted))
            and list(map(_FIRST, created)) == list(map(job_id_of, range(number, number + len(created))))
            and self.jobs.fit(created, started, finished, forgotten)
        )

    def settle(self) -> None:
        """Let `datasets` have what is wanted of them: whoever applies by APPLY_MANY does so once, at the end."""
        datasets = self.datasets
        for dataset_id, wanted in self._late_wanted.items():
            datasets[dataset_id] = _with_wanted(datasets[dataset_id], wanted)
        self._late_wanted.clear()

    def copy(self) -> Catalog:
        """Return this state as it is now, for who reads it elsewhere while this one goes on.

        Values are shared, tables copied: 100,000 jobs take some milliseconds.
        """
        twin = Catalog.__new__(Catalog)
        for name, value in vars(self).items():
            setattr(
                twin,
                name,
                value.copy() if isinstance(value, dict | deque | Homes | Jobs | BaseRules) else value,
            )
        return twin

    def snapshot(self) -> dict[str, Any]:
        """Return the whole state, such that `Catalog.restore(msgpack round trip)` equals this; values are shared."""
        state: dict[str, Any] = {"format": SNAPSHOT_FORMAT}
        state |= {name: getattr(self, name) for name in _SCALARS}
        state["fleet"] = None if self.fleet is None else plain(self.fleet)
        state["roles_had"] = list(self.roles_had)
        state["uninstall"] = self.uninstall
        state["slots_out"] = list(self.slots_out.items())
        state["names_removed"] = list(self.names_removed.items())
        state["base_rules"] = self.base_rules.all()
        state |= {name: list(getattr(self, name).values()) for name in _TABLES}
        return state

    @classmethod
    def restore(cls, state: object) -> Catalog:
        """Return the catalog whose `snapshot` is `state`.

        :raises CodecError: not a snapshot, or one of a newer format.
        """
        if not isinstance(state, dict) or not isinstance(state.get("format"), int):
            raise CodecError("the snapshot is not a catalog's")
        if state["format"] > SNAPSHOT_FORMAT:
            raise NewerError(
                f"the snapshot has format {state['format']}, this version of Stoker reads up to {SNAPSHOT_FORMAT}: "
                "it was written by a newer one; run that"
            )
        catalog = cls()
        for name in _SCALARS:
            setattr(catalog, name, state.get(name, getattr(catalog, name)))
        fleet = state.get("fleet")
        catalog.fleet = None if fleet is None else reader(FleetSpec)(fleet)
        catalog.roles_had = tuple(state.get("roles_had", ()))
        uninstall = state.get("uninstall")
        catalog.uninstall = None if uninstall is None else reader(Uninstall)(uninstall)
        catalog.slots_out = {int(slot): int(size) for slot, size in state.get("slots_out", ())}
        catalog.names_removed = {str(name): int(i) for name, i in state.get("names_removed", ())}
        if state["format"] == 1:  # where they stood at the end of the datasets' rows
            width, rows = len(Dataset._fields), state.get("datasets", ())
            state = state | {"base_rules": [(row[0], row[width]) for row in rows if len(row) > width]}
        catalog.base_rules = BaseRules(
            (int(dataset_id), tuple((bool(included), str(path)) for included, path in rules))
            for dataset_id, rules in state.get("base_rules", ())
            if rules
        )
        for name, (value_type, key) in _TABLES.items():
            values = list(map(reader(value_type), state.get(name, ())))
            setattr(catalog, name, {getattr(value, key): value for value in values})
        catalog._index()
        return catalog

    def dataset_named(self, name: str) -> Dataset | None:
        dataset_id = self._names.get(name)
        return None if dataset_id is None else self.datasets[dataset_id]

    def was_used(self, name: str) -> bool:
        """Return whether there may be readers of an earlier dataset of this name."""
        # After a restored backup nobody knows which names were used since.
        is_known = self.generation_min == 1 and len(self.names_removed) < NAMES_REMOVED_MAX
        return name in self.names_removed or not is_known

    def launch_of_task(self, task_id: str) -> Launch | None:
        """Return the launch of this Mesos task (and executor) id, if it has not ended."""
        launch_id = self._tasks.get(task_id)
        return None if launch_id is None else self.launches[launch_id]

    def launch_on_agent(self, agent_id: str) -> Launch | None:
        launch_id = self._agents.get(agent_id)
        return None if launch_id is None else self.launches[launch_id]

    def job_of_key(self, key: str) -> Job | None:
        return self.jobs.of_key(key)

    def jobs_of(self, dataset_id: int) -> list[Job]:
        """Return the known jobs of a dataset, in the order of their wishes."""
        return self.jobs.of_dataset(dataset_id)

    def active_jobs(self) -> list[Job]:
        """Return the jobs that are not finished, oldest first."""
        return self.jobs.active()

    @property
    def has_active_jobs(self) -> bool:
        return self.jobs.active_count > 0

    def finished_job_count(self) -> int:
        return len(self.jobs) - self.jobs.active_count

    @property
    def datasets_removed(self) -> int:
        """Return how many datasets were ever removed."""
        return self.dataset_id_next - 1 - len(self.datasets)

    def manifest_digests(self) -> set[str]:
        """Return the roots of all manifests that a dataset's version points to."""
        return {v.digest for dataset in self.datasets.values() for v in dataset.versions}

    def is_out(self, slot_id: int) -> bool:
        """Return whether placement gives this slot nothing (it had no executor for too long)."""
        return slot_id in self.slots_out

    def slot_order(self) -> list[Slot]:
        """Return the slots as placements number them: those that placement uses by id, then those that are out by id."""
        out = sorted(slot_id for slot_id in self.slots_out if slot_id in self.slots)
        return [self.slots[slot_id] for slot_id in (*self.slots_in, *out)]

    @property
    def slots_in(self) -> tuple[int, ...]:
        """Return the ids of the slots that placement uses, as placements number them."""
        if self._slots_in is None:
            self._slots_in = tuple(sorted(slot_id for slot_id in self.slots if slot_id not in self.slots_out))
        return self._slots_in

    def home_counts(self, dataset: Dataset) -> list[int]:
        """Return for each slot of `slot_order` that is not out, of how many PGs it is a home."""
        return self._homes.of(self, dataset).counts

    def homes(self, dataset: Dataset) -> npt.NDArray[np.uint16]:
        """Return the homes of the dataset's PGs: [replicas][pg_count] positions in `slot_order`, NO_HOME: none.

        A pure function of the state, remembered until the state that it depends on changes.
        """
        return self._homes.of(self, dataset).homes

    def place_all(self) -> None:
        """Compute the homes of all datasets that nobody asked for yet: quicker than one by one."""
        self._homes.place_all(self)

    def _index(self) -> None:
        self._names = {dataset.name: dataset.dataset_id for dataset in self.datasets.values()}
        self._tasks = {launch.task_id: launch.launch_id for launch in self.launches.values()}
        self._agents = {launch.agent_id: launch.launch_id for launch in self.launches.values()}
        self.volumes = Volumes(self.volumes)
        self.jobs = Jobs(self.jobs.values())
        self._slots_in = None
        self._homes = Homes()
        self._late_wanted: dict[int, _Wanted] = {}  # what datasets do not have yet, see settle
        # The slot and launch (0: none) of each of the newest steps of launch_revision.
        self.launch_changes: deque[tuple[int, int]] = deque(maxlen=LAUNCH_CHANGES_MAX)

    def _changed(self, *, placement: bool = False, launches: tuple[int, int] | None = None) -> None:
        self.revision += 1
        self.placement_version += placement
        if launches is not None:
            self.launch_revision += 1
            self.launch_changes.append(launches)

    def _slots_changed(self) -> None:
        self.slots_revision += 1
        self._slots_in = None

    def _dataset(self, dataset_id: int) -> Dataset:
        """Return the dataset with what it does not have yet, which whoever changes it puts into it."""
        wanted = self._late_wanted.pop(dataset_id, None)
        dataset = self.datasets[dataset_id]
        return dataset if wanted is None else _with_wanted(dataset, wanted)

    def _set_dataset(self, dataset: Dataset, *, placement: bool = False) -> None:
        self.datasets[dataset.dataset_id] = dataset
        self._changed(placement=placement)

    def _saw(self, wall_ms: int) -> None:
        if wall_ms > self.wall_ms:
            self.wall_ms = wall_ms

    # --- one method an entry

    def _cluster_created(self, entry: e.ClusterCreated) -> None:
        assert not self.cluster
        self.cluster, self.name = entry.cluster, entry.name
        self._saw(entry.wall_ms)

    def _epoch_began(self, entry: e.EpochBegan) -> None:
        assert entry.epoch > self.epoch, (entry.epoch, self.epoch)
        self.epoch, self.master = entry.epoch, entry.master or self.master
        self._saw(entry.wall_ms)

    def _framework_registered(self, entry: e.FrameworkRegistered) -> None:
        self.framework_id = entry.framework_id

    def _fleet_set(self, entry: e.FleetSet) -> None:
        self.fleet = entry.spec
        self.roles_had = tuple(dict.fromkeys((*entry.spec.roles, *self.roles_had)))[:ROLES_HAD_MAX]

    def _slot_added(self, entry: e.SlotAdded) -> None:
        assert entry.slot_id >= self.slot_id_next
        self.slot_id_next = entry.slot_id + 1
        self.slots[entry.slot_id] = Slot(entry.slot_id, entry.mem_bytes, disk_bytes=entry.disk_bytes)
        self._slots_changed()
        self._changed(placement=True, launches=(entry.slot_id, 0))

    def _slot_resized(self, entry: e.SlotResized) -> None:
        slot = self.slots[entry.slot_id]
        self.slots[slot.slot_id] = slot._replace(mem_bytes=entry.mem_bytes, disk_bytes=entry.disk_bytes)
        if entry.slot_id in self.slots_out:
            self.slots_out[entry.slot_id] = entry.mem_bytes
        self._slots_changed()
        self._changed(placement=True, launches=(entry.slot_id, 0))

    def _slot_marked(self, entry: e.SlotMarked) -> None:
        if entry.is_in:
            self.slots_out.pop(entry.slot_id, None)
        else:
            self.slots_out.setdefault(entry.slot_id, self.slots[entry.slot_id].mem_bytes)
        self._slots_changed()
        self._changed(placement=True)

    def _slot_removed(self, entry: e.SlotRemoved) -> None:
        slot = self.slots.pop(entry.slot_id)
        assert slot.launch_id == 0 and self.volumes.of_slot(slot.slot_id) is None, "both end first"
        self.slots_out.setdefault(slot.slot_id, slot.mem_bytes)
        gone = [slot_id for slot_id in self.slots_out if slot_id not in self.slots]
        for slot_id in gone[: max(0, len(gone) - SLOTS_GONE_MAX)]:
            del self.slots_out[slot_id]
        self._slots_changed()
        self._changed(placement=True, launches=(entry.slot_id, 0))

    def _launch_planned(self, entry: e.LaunchPlanned) -> None:
        slot = self.slots[entry.slot_id]
        assert slot.launch_id == 0, f"slot {slot.slot_id} has launch {slot.launch_id}"
        self.launches[entry.launch_id] = entry
        self._tasks[entry.task_id] = entry.launch_id
        self._agents[entry.agent_id] = entry.launch_id
        self.launch_id_next = entry.launch_id + 1
        self.slots[slot.slot_id] = slot._replace(launch_id=entry.launch_id, last_agent_id=entry.agent_id)
        self._saw(entry.wall_ms)
        self._changed(launches=(entry.slot_id, entry.launch_id))

    def _launch_ended(self, entry: e.LaunchEnded) -> None:
        launch = self.launches.pop(entry.launch_id)
        del self._tasks[launch.task_id]
        if self._agents.get(launch.agent_id) == launch.launch_id:
            del self._agents[launch.agent_id]
        slot = self.slots[launch.slot_id]
        self.slots[slot.slot_id] = slot._replace(
            launch_id=0,
            ended_count=slot.ended_count + 1,
            ended_reason=entry.reason,
            ended_wall_ms=entry.wall_ms,
        )
        self._saw(entry.wall_ms)
        self._changed(launches=(launch.slot_id, launch.launch_id))

    def _volume_changed(self, entry: VolumeEntry) -> None:
        self.volumes.apply(entry)
        if isinstance(entry, e.VolumePlanned):
            self.volume_id_next = entry.volume_id + 1
        self._saw(getattr(entry, "wall_ms", 0))

    def _departed(self, entry: DepartureEntry) -> None:
        self.uninstall = apply_departure(self.drains, self.uninstall, entry)
        self._saw(getattr(entry, "wall_ms", 0))

    def _dataset_added(self, entry: e.DatasetAdded) -> None:
        assert entry.name not in self._names
        self.dataset_id_next = entry.dataset_id + 1
        self._names[entry.name] = entry.dataset_id
        self._set_dataset(dataset_added(entry))
        self._saw(entry.wall_ms)

    def _listing_began(self, entry: e.ListingBegan) -> None:
        self._set_dataset(listing_began(self._dataset(entry.dataset_id), entry))

    def _dataset_listed(self, entry: e.DatasetListed) -> None:
        self._set_dataset(dataset_listed(self._dataset(entry.dataset_id), entry), placement=True)
        self._saw(entry.wall_ms)

    def _listing_failed(self, entry: e.ListingFailed) -> None:
        self._set_dataset(listing_failed(self._dataset(entry.dataset_id), entry))

    def _dataset_changed(self, entry: e.DatasetChanged) -> None:
        self._set_dataset(dataset_changed(self._dataset(entry.dataset_id), entry), placement=True)

    def _dataset_removed(self, entry: e.DatasetRemoved) -> None:
        dataset = self.datasets.pop(entry.dataset_id)
        self._late_wanted.pop(entry.dataset_id, None)
        self.base_rules.forget(entry.dataset_id)
        del self._names[dataset.name]
        self._homes.forget(dataset.dataset_id)
        if dataset.versions and len(self.names_removed) < NAMES_REMOVED_MAX:
            self.names_removed[dataset.name] = dataset.dataset_id
        self._changed(placement=True)

    # Most of a replay is these five kinds, so each takes many entries at once, as bare tuples; `fit` was asked before. What is
    # wanted of a dataset changes at each job, so the dataset gets it late (`settle`).

    def _wanted_set(self, entries: Sequence[_Wanted]) -> None:
        self._late_wanted.update(zip(map(_FIRST, entries), entries, strict=True))
        self.revision += len(entries)

    def _jobs_created(self, entries: Sequence[Asked]) -> None:
        self.job_number_next += len(entries)
        self.jobs.create(entries)
        self._saw(max(map(_LAST, entries)))

    def _jobs_started(self, entries: Sequence[Started]) -> None:
        self.jobs.start(entries)
        self._saw(max(map(_LAST, entries)))

    def _jobs_finished(self, entries: Sequence[Finished]) -> None:
        self.jobs.finish(entries)
        self._saw(max(map(_LAST, entries)))

    def _jobs_forgotten(self, entries: Sequence[Forgotten]) -> None:
        self.base_rules.add(wish for wish in self.jobs.forget(entries) if wish[0] in self.datasets)

    def _journal_restored(self, entry: e.JournalRestored) -> None:
        for name in _COUNTERS:
            setattr(self, name, getattr(self, name) + entry.ids_ahead)
        self.generation_min = max(self.generation_min, entry.generation_min)
        self.epoch = max(
            self.epoch, entry.epoch
        )  # whoever knew a newer one than the backup's sees that this is above
        self._saw(entry.wall_ms)


_COUNTERS = (
    "slot_id_next",
    "launch_id_next",
    "volume_id_next",
    "dataset_id_next",
    "job_number_next",
    "placement_version",
    "revision",
    "launch_revision",
)
_SCALARS = ("cluster", "name", "epoch", "master", "framework_id", "generation_min", "wall_ms", *_COUNTERS)
_TABLES: dict[str, tuple[Any, str]] = {
    "slots": (Slot, "slot_id"),
    "launches": (Launch, "launch_id"),
    "volumes": (Volume, "volume_id"),
    "drains": (Drain, "agent_id"),
    "datasets": (Dataset, "dataset_id"),
    "jobs": (Job, "job_id"),
}
# Entries of these kinds are applied many at a time. Where no other stands between them, as good in this order as in their own,
# see Catalog.fit, which says whether they may.
APPLY_MANY: dict[type[Any], Callable[[Catalog, Sequence[Any]], None]] = {
    e.WantedSet: Catalog._wanted_set,
    e.JobCreated: Catalog._jobs_created,
    e.JobStarted: Catalog._jobs_started,
    e.JobFinished: Catalog._jobs_finished,
    e.JobsForgotten: Catalog._jobs_forgotten,
}
APPLY: dict[type[Any], Callable[[Catalog, Any], None]] = {
    e.ClusterCreated: Catalog._cluster_created,
    e.EpochBegan: Catalog._epoch_began,
    e.FrameworkRegistered: Catalog._framework_registered,
    e.FleetSet: Catalog._fleet_set,
    e.SlotAdded: Catalog._slot_added,
    e.SlotResized: Catalog._slot_resized,
    e.SlotMarked: Catalog._slot_marked,
    e.SlotRemoved: Catalog._slot_removed,
    e.LaunchPlanned: Catalog._launch_planned,
    e.LaunchEnded: Catalog._launch_ended,
    **dict.fromkeys(get_args(VolumeEntry), Catalog._volume_changed),
    **dict.fromkeys(get_args(DepartureEntry), Catalog._departed),
    e.DatasetAdded: Catalog._dataset_added,
    e.ListingBegan: Catalog._listing_began,
    e.DatasetListed: Catalog._dataset_listed,
    e.ListingFailed: Catalog._listing_failed,
    e.DatasetChanged: Catalog._dataset_changed,
    e.DatasetRemoved: Catalog._dataset_removed,
    e.JournalRestored: Catalog._journal_restored,
}


def dataset_added(entry: e.DatasetAdded) -> Dataset:
    return Dataset(
        dataset_id=entry.dataset_id,
        name=entry.name,
        source=entry.source,
        options=entry.options,
        replicas=entry.replicas,
        policy=entry.policy,
        tier=entry.tier,
        priority=entry.priority,
        created_ms=entry.wall_ms,
    )


def listing_began(dataset: Dataset, entry: e.ListingBegan) -> Dataset:
    """A dataset that has a version stays READY while it is listed again: its readers and loads go on."""
    state = dataset.state if dataset.versions else DatasetState.LISTING
    return dataset._replace(state=state, error="", attempt=entry.attempt, is_listing=True)


def dataset_listed(dataset: Dataset, entry: e.DatasetListed) -> Dataset:
    versions = (*dataset.versions, entry.manifested)[-entry.versions_kept :]
    return dataset._replace(state=DatasetState.READY, error="", is_listing=False, versions=versions)


def listing_failed(dataset: Dataset, entry: e.ListingFailed) -> Dataset:
    """A refresh that failed leaves the versions that stand, and its error to read."""
    state = DatasetState.READY if dataset.versions else DatasetState.FAILED
    return dataset._replace(state=state, error=entry.error, is_listing=False)


def dataset_changed(dataset: Dataset, entry: e.DatasetChanged) -> Dataset:
    return dataset._replace(replicas=entry.replicas, policy=entry.policy, priority=entry.priority)


def _with_wanted(dataset: Dataset, wanted: _Wanted) -> Dataset:
    fields: tuple[Any, ...] = dataset
    return tuple.__new__(Dataset, fields[:_WANTED] + wanted[1:])


_FIRST: Callable[[Any], Any] = itemgetter(0)  # the id
_LAST: Callable[[Any], int] = itemgetter(-1)  # the time
_WANTED = Dataset._fields.index("wanted_version")
assert Dataset._fields[_WANTED:] == ("wanted_version", "rules", "wanted_block_count")
assert all(kind._fields[-1] == "wall_ms" for kind in (e.JobCreated, e.JobStarted, e.JobFinished))
assert e.WantedSet._fields == ("dataset_id", "wanted_version", "rules", "block_count")

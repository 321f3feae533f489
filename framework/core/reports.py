"""What the slots report of one dataset, as a table of numbers: so that a tick costs what changed, not jobs times slots.

Theory of operation. Jobs are counted by what all slots report of a dataset's wanted residency. The table has a row for
each slot in placement, and a column for each number that a job is counted by. A heartbeat marks the row of its slot
(`mark`), and whoever asks for the table (`refreshed`) first reads the marked rows anew; a slot whose launch is another
than its row's is read anew too. So the table is remembered work, no state: built anew it would be the same.

    stamp            grows whenever a row is read anew: what was computed of the table is good while it stands
    rows_stamp       the stamp at which each row was last read

The numbers are an executor's own, of the generation that the table is of. Whether they count for a job, because the
executor knows its wishes, is for progress.py to say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from stoker.framework.core.catalog import Catalog, Dataset

if TYPE_CHECKING:
    from stoker.framework.core.fleet import Fleet
    from stoker.framework.core.seen import Held

NEVER = -1  # of versions: nothing reported; of times: not so

_COLUMNS = (
    "version",
    "wanted_version",
    "bytes",
    "bytes_total",
    "files",
    "files_total",
    "unsettled_blocks",  # work is left, and goes on
    "unfit_blocks",
    "unfit_since_ms",
)
_NOTHING = [NEVER, NEVER, 0, 0, 0, 0, 0, 0, NEVER]
assert len(_NOTHING) == len(_COLUMNS)

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(slots=True)
class Freeing:
    """How many blocks each row's slot holds that a job frees, counted of the rows read up to `stamp`."""

    key: tuple[int, int]  # of what is freed: the dataset's version, and that of what is wanted
    blocks: Ints
    stamp: int = NEVER


class Sums(NamedTuple):
    """Of the rows that count for a job, and of those that do not: many jobs share them."""

    reported_count: int
    unheard_count: int  # rows that do not count, of slots that have a launch
    bytes_left: int
    files_left: int
    unsettled_blocks: int
    unfit_blocks: int
    unfit_slot_ids: tuple[int, ...]
    unfit_since_ms: int  # the newest, or NEVER
    silent_counts: tuple[tuple[int, int], ...]  # of rows that do not count: (PGs, how many rows have so many)


class Reports:
    """See the module. Row i is slot `slot_ids[i]`, which is a home of `counts[i]` PGs."""

    def __init__(self, catalog: Catalog, fleet: Fleet, dataset: Dataset) -> None:
        assert dataset.current is not None
        self.dataset_id = dataset.dataset_id
        self.generation = dataset.current.generation
        self.key = _key(catalog, dataset)
        self.slot_ids = catalog.slots_in
        self.counts: Ints = np.array(catalog.home_counts(dataset), dtype=np.int64)
        self.stamp = 0
        size = len(self.slot_ids)
        self.rows_stamp: Ints = np.zeros(size, dtype=np.int64)
        self.launch_ids: Ints = np.full(size, NEVER, dtype=np.int64)
        self._table: Ints = np.array([_NOTHING] * size, dtype=np.int64).reshape(size, len(_COLUMNS))
        self._places = {slot_id: place for place, slot_id in enumerate(self.slot_ids)}
        self._marked: set[int] = set()
        self._launch_revision = NEVER
        self.counted: dict[str, Any] = {}  # by job: what progress.py counted of the table, and of which
        self.freeing: dict[str, Freeing] = {}  # by free job
        self._sums: dict[bytes, Sums] = {}  # by which rows count
        self._refresh(catalog, fleet)

    def column(self, name: str) -> Ints:
        column: Ints = self._table[:, _COLUMNS.index(name)]
        return column

    def sums(self, is_counted: Bools) -> Sums:
        key = is_counted.tobytes()
        found = self._sums.get(key)
        if found is None:
            found = self._sums[key] = self._sum(is_counted)
        return found

    def _sum(self, is_counted: Bools) -> Sums:
        total = dict(zip(_COLUMNS, self._table[is_counted].sum(axis=0).tolist(), strict=True))
        is_unfit = is_counted & (self.column("unfit_blocks") > 0)
        values, times = np.unique(self.counts[~is_counted], return_counts=True)
        return Sums(
            reported_count=int(is_counted.sum()),
            unheard_count=int(((self.launch_ids != 0) & ~is_counted).sum()),
            bytes_left=total["bytes_total"] - total["bytes"],
            files_left=total["files_total"] - total["files"],
            unsettled_blocks=total["unsettled_blocks"],
            unfit_blocks=total["unfit_blocks"],
            unfit_slot_ids=tuple(self.slot_ids[place] for place in np.nonzero(is_unfit)[0].tolist()),
            unfit_since_ms=int(self.column("unfit_since_ms").max(initial=NEVER, where=is_counted)),
            silent_counts=tuple(zip(values.tolist(), times.tolist(), strict=True)),
        )

    def mark(self, slot_id: int) -> None:
        """Say that the slot's executor told something new."""
        self._marked.add(slot_id)

    def forget(self, active: set[str]) -> None:
        """Drop what was remembered of jobs that are not active any more."""
        for table in (self.counted, self.freeing):
            for job_id in [i for i in table if i not in active]:
                del table[job_id]

    def held(self, fleet: Fleet, place: int) -> Held | None:
        """Return what the executor of the row's slot holds of the dataset, if it said so."""
        seen = fleet.executors.get(int(self.launch_ids[place]))
        return None if seen is None else fleet.held(seen, self.dataset_id, self.generation)

    def _refresh(self, catalog: Catalog, fleet: Fleet) -> None:
        stale = {self._places[slot_id] for slot_id in self._marked if slot_id in self._places}
        self._marked.clear()
        if self._launch_revision != catalog.launch_revision:
            self._launch_revision = catalog.launch_revision
            now = np.array([catalog.slots[slot_id].launch_id for slot_id in self.slot_ids], dtype=np.int64)
            stale.update(np.nonzero(now != self.launch_ids)[0].tolist())
            self.launch_ids = now
        if not stale:
            return
        self.stamp += 1
        self._sums.clear()
        for place in stale:
            self._table[place] = _row(self.held(fleet, place))
            self.rows_stamp[place] = self.stamp


def refreshed(catalog: Catalog, fleet: Fleet, dataset: Dataset) -> Reports:
    """Return the table of a dataset that has a version, as it is now."""
    found = fleet.reports.get(dataset.dataset_id)
    if found is None or found.key != _key(catalog, dataset):
        found = fleet.reports[dataset.dataset_id] = Reports(catalog, fleet, dataset)
    else:
        found._refresh(catalog, fleet)
    return found


def _key(catalog: Catalog, dataset: Dataset) -> tuple[int, ...]:
    assert dataset.current is not None
    return catalog.slots_revision, dataset.current.generation, dataset.current.pg_count, dataset.replicas


def _row(held: Held | None) -> list[int]:
    if held is None:
        return _NOTHING
    r = held.residency
    return [
        r.version,
        r.wanted_version,
        min(r.wanted_cached_bytes, r.wanted_bytes),
        r.wanted_bytes,
        min(r.wanted_cached_files, r.wanted_files),
        r.wanted_files,
        max(0, r.wanted_blocks - r.wanted_settled - r.unfit_blocks),
        r.unfit_blocks,
        NEVER if held.unfit_since_ms is None else held.unfit_since_ms,
    ]

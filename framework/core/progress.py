"""How far a job is: promised totals against what executors report. Counted, never decided.

Executors report the wanted residency of a whole dataset; a job is a part of it. What is outstanding of the dataset is
counted against each of its jobs, at most the job's own size: so a job never shows more than is done, and jobs that
overlap finish together. A slot that has not reported yet counts as holding nothing of its share.

Counted in columns (reports.py), and remembered while nothing that it is counted of changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from stoker.executor.wire import Failure
from stoker.framework.core.catalog import Catalog, Dataset
from stoker.framework.core.job_table import Job
from stoker.framework.core.reports import NEVER, Bools, Freeing, Reports, refreshed
from stoker.framework.model import FileError, JobKind, Selection

if TYPE_CHECKING:
    from stoker.framework.core.fleet import Fleet
    from stoker.framework.core.seen import ExecutorSeen, Held


class JobProgress(NamedTuple):
    """Of an active job. A slot *reports* once its executor works by the job's wishes, on the newest version.

    The numbers of blocks are sums over the slots that report.
    """

    bytes: int
    files: int
    slot_count: int = 0  # in placement
    reported_count: int = 0
    unheard_count: int = 0  # have a launch, and have not reported
    unsettled_blocks: int = 0  # work is left, and goes on
    unfit_blocks: int = 0
    unfit_slot_ids: tuple[int, ...] = ()
    unfit_since_ms: int | None = None  # when the last slot began to find no room
    held_blocks: int = 0  # of what a free job frees


class SlotProgress(NamedTuple):
    """One slot's part of the dataset's wanted residency; zeros where it has not reported."""

    slot_id: int
    is_reported: bool
    bytes: int
    bytes_total: int
    files: int
    files_total: int


def job_progress(catalog: Catalog, fleet: Fleet, job: Job) -> JobProgress:
    """Return how far an active job is; nothing done if its dataset is gone."""
    if job.kind == JobKind.DRAIN:
        move = fleet.moves.by_agent.get(job.paths[0])
        is_known = move is not None and move.is_counted
        return JobProgress(max(0, job.bytes_total - move.bytes) if is_known and move is not None else 0, 0)
    dataset = catalog.datasets.get(job.dataset_id)
    if dataset is None or dataset.current is None:
        return JobProgress(0, 0)
    reports = refreshed(catalog, fleet, dataset)
    asked, newest = _selections(fleet, dataset, job)
    is_known = asked is not None and newest is not None
    key = (reports.stamp, dataset.current.version, dataset.wanted_version, is_known)
    found: tuple[Any, JobProgress] | None = reports.counted.get(job.job_id)
    if found is None or found[0] != key:
        found = reports.counted[job.job_id] = (key, _count(fleet, dataset, job, reports))
    return found[1]


def slot_progress(catalog: Catalog, fleet: Fleet, job: Job) -> list[SlotProgress]:
    """Return an active job's progress slot by slot, of the slots in placement, by id."""
    dataset = catalog.datasets.get(job.dataset_id)
    if dataset is None or dataset.current is None:
        return []
    reports = refreshed(catalog, fleet, dataset)
    is_reported = _is_reported(reports, dataset, job)
    columns = [
        np.where(is_reported, reports.column(name), 0).tolist()
        for name in ("bytes", "bytes_total", "files", "files_total")
    ]
    return list(map(SlotProgress, reports.slot_ids, is_reported.tolist(), *columns))


def _count(fleet: Fleet, dataset: Dataset, job: Job, reports: Reports) -> JobProgress:
    assert dataset.current is not None
    is_reported = _is_reported(reports, dataset, job)
    sums = reports.sums(is_reported)
    copies = max(1, min(dataset.replicas, len(is_reported)))
    held_blocks = 0
    if job.kind == JobKind.FREE:
        held_blocks = _held_blocks(fleet, dataset, job, reports, is_reported)
        held_bytes = held_blocks * dataset.current.block_bytes // copies
        bytes_left = job.bytes_total if sums.unheard_count else held_bytes
        files_left = job.files_total if bytes_left else 0
    else:
        bytes_left, files_left = (
            -(-(left + _shares(total, sums.silent_counts, dataset.current.pg_count)) // copies)
            for left, total in ((sums.bytes_left, job.bytes_total), (sums.files_left, job.files_total))
        )
    return JobProgress(
        bytes=max(0, job.bytes_total - bytes_left),
        files=max(0, job.files_total - files_left),
        slot_count=len(is_reported),
        reported_count=sums.reported_count,
        unheard_count=sums.unheard_count,
        unsettled_blocks=sums.unsettled_blocks,
        unfit_blocks=sums.unfit_blocks,
        unfit_slot_ids=sums.unfit_slot_ids,
        unfit_since_ms=None if sums.unfit_since_ms == NEVER else sums.unfit_since_ms,
        held_blocks=held_blocks,
    )


def _shares(amount: int, counts: tuple[tuple[int, int], ...], pg_count: int) -> int:
    """Return what slots with so many PGs hold of `amount` together, each rounded up."""
    return sum(number * -(-amount * count // pg_count) for count, number in counts)


def _is_reported(reports: Reports, dataset: Dataset, job: Job) -> Bools:
    """Return which slots' executors know the job's wishes and the dataset's newest version."""
    assert dataset.current is not None
    versions = reports.column("version") >= dataset.current.version
    return versions & (reports.column("wanted_version") >= _wishes_version(dataset, job))


def _wishes_version(dataset: Dataset, job: Job) -> int:
    # A free looks at what is wanted now: a later load may want it again.
    return dataset.wanted_version if job.kind == JobKind.FREE else job.wanted_version


def _held_blocks(fleet: Fleet, dataset: Dataset, job: Job, reports: Reports, is_reported: Bools) -> int:
    """Return how many full blocks are held that a free job frees and nobody wants again since.

    None if this leader does not know which those are: then it is enough that the executors know the wishes.
    """
    assert dataset.current is not None
    asked, newest = _selections(fleet, dataset, job)
    if asked is None or newest is None:
        return 0
    key = (dataset.current.version, dataset.wanted_version)
    found = reports.freeing.get(job.job_id)
    if found is None or found.key != key:
        found = reports.freeing[job.job_id] = Freeing(key, np.zeros(len(is_reported), dtype=np.int64))
    freed = _freed(asked, newest)
    for place in np.nonzero(is_reported & (reports.rows_stamp > found.stamp))[0].tolist():
        held = reports.held(fleet, place)
        bits = 0 if held is None else int.from_bytes(held.bitmap, "little") & freed
        found.blocks[place] = bits.bit_count()
    found.stamp = reports.stamp
    return int(found.blocks[is_reported].sum())


def _freed(asked: Selection, newest: Selection) -> int:
    """Return which blocks were asked to be freed and are not wanted now, as bits."""
    requested = int.from_bytes(asked.requested_blocks, "little")
    return requested & ~int.from_bytes(newest.wanted_blocks, "little")


def _selections(fleet: Fleet, dataset: Dataset, job: Job) -> tuple[Selection | None, Selection | None]:
    """Return what a free job asked for, and what is wanted now; None: not known to this leader, or of no interest."""
    if job.kind != JobKind.FREE:
        return None, None
    found = fleet.selections.get
    return found((job.dataset_id, job.wanted_version)), found((job.dataset_id, dataset.wanted_version))


def job_errors(catalog: Catalog, fleet: Fleet, job: Job) -> tuple[int, list[FileError]]:
    """Return how many files of a load failed, and those that executors named, by path."""
    dataset = catalog.datasets.get(job.dataset_id)
    if dataset is None or dataset.current is None:
        return 0, []
    named: dict[str, FileError] = {}
    unnamed = 0
    for seen in fleet.executors.values():
        held = _reported(fleet, seen, dataset, job)
        if held is None:
            continue
        residency = held.residency
        unnamed += max(0, residency.failed_count - len(residency.failures))
        for failure in residency.failures:
            if is_under(failure.path, job.paths):
                named[failure.path] = FileError(failure.path, _code(failure.code), failure.message)
    copies = max(1, dataset.replicas)
    return len(named) + -(-unnamed // copies), [named[path] for path in sorted(named)]


def is_under(path: str, prefixes: tuple[str, ...]) -> bool:
    """Return whether `path` is one of `prefixes` or lies under one; no prefix at all means everything."""
    return not prefixes or any(p == "" or path == p or path.startswith(p + "/") for p in prefixes)


def _reported(fleet: Fleet, seen: ExecutorSeen, dataset: Dataset, job: Job) -> Held | None:
    """Return what the executor holds, if it knows the job's wishes and the dataset's newest version."""
    assert dataset.current is not None
    held = fleet.held(seen, dataset.dataset_id, dataset.current.generation)
    if held is None or held.residency.version < dataset.current.version:
        return None
    return held if held.residency.wanted_version >= _wishes_version(dataset, job) else None


def _code(number: int) -> str:
    return Failure(number).name.lower() if number in Failure._value2member_map_ else "unknown"

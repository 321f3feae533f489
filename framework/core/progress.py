"""How far a job is: promised totals against what executors report. Counted, never decided.

Executors report the wanted residency of a whole dataset; a job is a part of it. What is outstanding of the dataset is
counted against each of its jobs, at most the job's own size: so a job never shows more than is done, and jobs that
overlap finish together. A slot that has not reported yet counts as holding nothing of its share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stoker.executor.messages import Residency
from stoker.executor.wire import Failure
from stoker.framework.core.catalog import Catalog, Dataset, Job
from stoker.framework.model import FileError, JobKind

if TYPE_CHECKING:
    from stoker.framework.core.fleet import ExecutorSeen, Fleet, Held


@dataclass(frozen=True, slots=True)
class SlotProgress:
    """One slot's part of the dataset's wanted residency; `is_reported`: by the newest wishes and version."""

    slot_id: int
    is_running: bool
    is_reported: bool
    bytes: int = 0
    bytes_total: int = 0
    files: int = 0
    files_total: int = 0
    unsettled_blocks: int = 0  # work is left, and goes on
    unfit_blocks: int = 0
    unfit_since_ms: int | None = None
    held_blocks: int = 0  # of what a free job frees


@dataclass(frozen=True, slots=True)
class JobProgress:
    bytes: int
    files: int
    slots: tuple[SlotProgress, ...]  # of the slots in placement, by id


def job_progress(catalog: Catalog, fleet: Fleet, job: Job) -> JobProgress:
    """Return how far an active job is; nothing done if its dataset is gone."""
    dataset = catalog.datasets.get(job.dataset_id)
    if dataset is None or dataset.current is None:
        return JobProgress(0, 0, ())
    counts = catalog.home_counts(dataset)
    order = [slot for slot in catalog.slot_order() if not catalog.is_out(slot.slot_id)]
    slots = tuple(_slot_progress(catalog, fleet, dataset, job, slot.slot_id) for slot in order)
    copies = max(1, min(dataset.replicas, len(slots)))
    if job.kind == JobKind.FREE:
        held = sum(s.held_blocks for s in slots) * dataset.current.block_bytes // copies
        unheard = any(s.is_running and not s.is_reported for s in slots)
        left = job.bytes_total if unheard else min(held, job.bytes_total)
        return JobProgress(job.bytes_total - left, 0 if left else job.files_total, slots)
    pgs = dataset.current.pg_count
    bytes_left = files_left = 0
    for slot, count in zip(slots, counts, strict=False):
        bytes_left += (
            slot.bytes_total - slot.bytes if slot.is_reported else -(-job.bytes_total * count // pgs)
        )
        files_left += (
            slot.files_total - slot.files if slot.is_reported else -(-job.files_total * count // pgs)
        )
    return JobProgress(
        max(0, job.bytes_total - -(-bytes_left // copies)),
        max(0, job.files_total - -(-files_left // copies)),
        slots,
    )


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


def _slot_progress(catalog: Catalog, fleet: Fleet, dataset: Dataset, job: Job, slot_id: int) -> SlotProgress:
    seen = fleet.executor_of(catalog, slot_id)
    is_running = catalog.slots[slot_id].launch_id != 0
    held = None if seen is None else _reported(fleet, seen, dataset, job)
    if held is None:
        return SlotProgress(slot_id, is_running, is_reported=False)
    r: Residency = held.residency
    return SlotProgress(
        slot_id,
        is_running,
        is_reported=True,
        bytes=min(r.wanted_cached_bytes, r.wanted_bytes),
        bytes_total=r.wanted_bytes,
        files=min(r.wanted_cached_files, r.wanted_files),
        files_total=r.wanted_files,
        unsettled_blocks=max(0, r.wanted_blocks - r.wanted_settled - r.unfit_blocks),
        unfit_blocks=r.unfit_blocks,
        unfit_since_ms=held.unfit_since_ms,
        held_blocks=_held_blocks(fleet, dataset, job, held) if job.kind == JobKind.FREE else 0,
    )


def _reported(fleet: Fleet, seen: ExecutorSeen, dataset: Dataset, job: Job) -> Held | None:
    """Return what the executor holds, if it knows the job's wishes and the dataset's newest version."""
    assert dataset.current is not None
    held = fleet.held(seen, dataset.dataset_id, dataset.current.generation)
    if held is None or held.residency.version < dataset.current.version:
        return None
    # A free looks at what is wanted now: a later load may want it again.
    known = dataset.wanted_version if job.kind == JobKind.FREE else job.wanted_version
    return held if held.residency.wanted_version >= known else None


def _held_blocks(fleet: Fleet, dataset: Dataset, job: Job, held: Held) -> int:
    """Return how many full blocks are held that a free job frees and nobody wants again since.

    None if this leader does not know which those are: then it is enough that the executor knows the wishes.
    """
    asked = fleet.selections.get((job.dataset_id, job.wanted_version))
    newest = fleet.selections.get((job.dataset_id, dataset.wanted_version))
    if asked is None or newest is None:
        return 0
    requested = np.frombuffer(asked.requested_blocks, dtype=np.uint8)
    wanted = np.zeros(len(requested), dtype=np.uint8)
    known = np.frombuffer(newest.wanted_blocks, dtype=np.uint8)[: len(wanted)]
    wanted[: len(known)] = known
    size = min(len(requested), len(held.bitmap))
    freed = requested[:size] & ~wanted[:size] & np.frombuffer(held.bitmap, dtype=np.uint8)[:size]
    return int.from_bytes(freed.tobytes(), "little").bit_count()


def _code(number: int) -> str:
    return Failure(number).name.lower() if number in Failure._value2member_map_ else "unknown"

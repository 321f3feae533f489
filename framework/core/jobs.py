"""Jobs: the accounts of loads and frees. The work itself is state: the dataset's wanted residency, which executors follow.

A load adds its paths to what is wanted, a free excludes them, each as a new wanted version; loads that overlap merge of
themselves, and a re-fill after a loss is nobody's job. A job is RUNNING once an executor works by its wishes, and is over
when all slots report that nothing is left to do: then SUCCEEDED, or FAILED if files of its paths failed or found no room.

Cancelling a job takes back its wish and nothing else: what is wanted becomes what it would be had the job never been. What
it brought into the cache so far stays until the room is needed, and what it freed comes back only if it is still wanted.
"""

from __future__ import annotations

import hashlib
import json

from stoker.framework.core import draining
from stoker.framework.core import entries as e
from stoker.framework.core import events as ev
from stoker.framework.core.actions import Answer, Frame
from stoker.framework.core.catalog import Catalog, Dataset
from stoker.framework.core.datasets import no_such_dataset, refuse
from stoker.framework.core.fits import Plan, make_plan
from stoker.framework.core.fleet import Fleet
from stoker.framework.core.job_table import Job, job_created, job_finished, job_id_of
from stoker.framework.core.launches import clip, is_utf8, now_wall_ms
from stoker.framework.core.progress import JobProgress, job_errors, job_progress
from stoker.framework.core.requests import has_room_for_job, repeated, uninstalling
from stoker.framework.core.rules import Rules, normalise_rules, rules_bytes
from stoker.framework.core.views import job_view
from stoker.framework.model import (
    STALE_SELECTION,
    DatasetState,
    FileError,
    JobKind,
    JobState,
    Refusal,
    Selection,
    Settings,
)

OF_DATASETS = (JobKind.LOAD.value, JobKind.FREE.value)
FORGOTTEN_FRAME_MAX = 1_000
FINISHED_FRAME_MAX = 64  # of one frame; of those with errors only
FAILED_FRAME_MAX = 4  # since each may hold job_errors_bytes_max of them
MISSING_NAMED_MAX = 3


def job_requested(
    catalog: Catalog, fleet: Fleet, stamp: ev.Stamp, event: ev.JobRequested, settings: Settings
) -> Frame:
    """Create a load or free job, or say what it would do (`plan_only`); idempotent by key and body."""
    if event.kind not in OF_DATASETS:
        kinds = ", ".join(OF_DATASETS)
        return refuse(
            event.reply_id,
            Refusal(400, "bad_request", f"{event.kind!r} is no kind of job", f"kinds: {kinds}"),
        )
    if not is_utf8(event.key, *event.paths):
        hint = "send them as UTF-8"
        return refuse(
            event.reply_id, Refusal(400, "bad_request", "a path or the key is not Unicode text", hint)
        )
    body = body_digest(event)
    known = catalog.job_of_key(event.key) if event.key and not event.plan_only else None
    if known is not None:
        return repeated(catalog, fleet, stamp, event.reply_id, known, is_same=known.body == body)
    if catalog.uninstall is not None:
        return refuse(event.reply_id, uninstalling("its executors and their cache end with it"))
    dataset = catalog.dataset_named(event.dataset)
    if dataset is None:
        return refuse(event.reply_id, no_such_dataset(event.dataset))
    refusal = _not_ready(dataset) or _selection_refusal(dataset, event)
    if refusal is not None:
        return refuse(event.reply_id, refusal)
    selection = event.selection
    assert selection is not None and dataset.current is not None
    plan = make_plan(catalog, fleet, dataset, event.kind, selection)
    if event.plan_only:
        return Frame(actions=(Answer(event.reply_id, 200, {"plan": plan.as_json()}),))
    rules = normalise_rules(selection.rules)
    refusal = _limit_refusal(catalog, event, rules, settings) or _fit_refusal(event, plan)
    if refusal is not None:
        return refuse(event.reply_id, refusal)
    return _create(catalog, fleet, stamp, event, dataset, selection, plan, rules, body)


def cancel_requested(catalog: Catalog, fleet: Fleet, stamp: ev.Stamp, event: ev.JobCancelRequested) -> Frame:
    """Cancel an active job; one that is over stays as it is."""
    job = catalog.jobs.get(event.job_id)
    if job is None:
        hint = "see them all: stoker job ls"
        return refuse(
            event.reply_id, Refusal(404, "not_found", f"there is no job {event.job_id[:80]!r}", hint)
        )
    if job.state.is_final:
        view = job_view(catalog, fleet, job, stamp.now_ms)
        return Frame(actions=(Answer(event.reply_id, 200, view),))
    if job.kind == JobKind.DRAIN:
        return _cancel_drain(catalog, fleet, stamp, event, job)
    entries = _take_back(catalog, job)
    refusal = next((r for entry in entries if (r := _rules_refusal(entry.rules, fleet.settings))), None)
    if refusal is not None:
        return refuse(event.reply_id, refusal)
    progress = job_progress(catalog, fleet, job)
    finished = _finished(catalog, stamp, job, JobState.CANCELLED, progress, message="cancelled on request")
    view = job_view(catalog, fleet, job_finished(job, finished), stamp.now_ms)
    return Frame((*entries, finished), (Answer(event.reply_id, 200, view),))


def _cancel_drain(
    catalog: Catalog, fleet: Fleet, stamp: ev.Stamp, event: ev.JobCancelRequested, job: Job
) -> Frame:
    entries = draining.cancel(catalog, fleet, stamp, job)
    (finished,) = (entry for entry in entries if isinstance(entry, e.JobFinished))
    view = job_view(catalog, fleet, job_finished(job, finished), stamp.now_ms)
    return Frame(tuple(entries), (Answer(event.reply_id, 200, view),))


def converge(catalog: Catalog, fleet: Fleet, stamp: ev.Stamp, settings: Settings) -> Frame:
    """On a tick: start and finish jobs by what executors report; forget old ones. Drains have their own."""
    entries: list[e.Entry] = []
    finished = failed = 0
    for job in catalog.active_jobs():
        if job.kind == JobKind.DRAIN:
            continue
        progress = job_progress(catalog, fleet, job)
        has_room = finished < FINISHED_FRAME_MAX and failed < FAILED_FRAME_MAX
        end = _end(catalog, fleet, stamp, job, progress, settings) if has_room else None
        is_begun = end is not None or progress.reported_count > 0
        if job.state == JobState.PENDING and is_begun:
            entries.append(e.JobStarted(job.job_id, now_wall_ms(catalog, stamp)))
        if end is not None:
            entries.append(end)
            finished += 1
            failed += bool(end.errors)
    return Frame((*entries, *_forget(catalog, stamp, settings)))


def body_digest(event: ev.JobRequested) -> str:
    """Return a digest of what was asked, equal for equal requests."""
    body = [event.kind, event.dataset, list(event.paths), event.fit]
    return hashlib.sha256(json.dumps(body, ensure_ascii=True).encode()).hexdigest()


# --- requests


def _not_ready(dataset: Dataset) -> Refusal | None:
    if dataset.current is not None:
        return None
    if dataset.state == DatasetState.FAILED:
        return Refusal(
            409,
            "not_ready",
            f"dataset {dataset.name!r} could not be listed: {dataset.error}",
            f"mend the cause, then: stoker dataset refresh {dataset.name}",
        )
    return Refusal(
        409,
        "not_ready",
        f"dataset {dataset.name!r} is still being listed",
        f"wait until it is READY: stoker dataset show {dataset.name}",
    )


def _selection_refusal(dataset: Dataset, event: ev.JobRequested) -> Refusal | None:
    selection, current = event.selection, dataset.current
    assert current is not None
    now = (dataset.dataset_id, current.version, dataset.wanted_version)
    if selection is None or (selection.dataset_id, selection.version, selection.wanted_version) != now:
        return Refusal(409, STALE_SELECTION, f"dataset {dataset.name!r} changed meanwhile", "ask again")
    if selection.missing:
        some = ", ".join(repr(clip(path, 200)) for path in selection.missing[:MISSING_NAMED_MAX])
        more = len(selection.missing) - MISSING_NAMED_MAX
        return Refusal(
            404,
            "not_found",
            f"dataset {dataset.name!r} has nothing at {some}" + (f" and {more} more" if more > 0 else ""),
            f"paths are relative to {dataset.source}; after a change there: stoker dataset refresh {dataset.name}",
        )
    return None


def _limit_refusal(
    catalog: Catalog, event: ev.JobRequested, rules: Rules, settings: Settings
) -> Refusal | None:
    if len(event.key.encode()) > settings.key_bytes_max:
        return Refusal(
            400,
            "bad_request",
            "the Idempotency-Key is too long",
            f"at most {settings.key_bytes_max} bytes are allowed",
        )
    paths_bytes = rules_bytes(tuple((True, path) for path in event.paths))
    if paths_bytes > settings.job_paths_bytes_max:
        return Refusal(
            413,
            "too_large",
            f"the {len(event.paths)} paths take {paths_bytes} bytes",
            f"at most {settings.job_paths_bytes_max} are allowed in a job: name directories, or make more jobs",
        )
    refusal = _rules_refusal(rules, settings)
    if refusal is not None:
        return refusal
    if not has_room_for_job(catalog, settings):
        return Refusal(
            503,
            "overloaded",
            f"there are {len(catalog.active_jobs())} active jobs, and {len(catalog.jobs)} in all",
            "wait for some to finish, or cancel the oldest that are active: stoker job ls",
        )
    return None


def _rules_refusal(rules: Rules, settings: Settings) -> Refusal | None:
    """Refuse what a journal record has no room for; also of a cancel, which may bring back what its job had covered."""
    if len(rules) <= settings.wanted_rules_max and rules_bytes(rules) <= settings.wanted_rules_bytes_max:
        return None
    return Refusal(
        413,
        "too_large",
        f"what is wanted of the dataset would take {len(rules)} rules of {rules_bytes(rules)} bytes",
        f"at most {settings.wanted_rules_max} of {settings.wanted_rules_bytes_max} bytes: name whole directories",
    )


def _fit_refusal(event: ev.JobRequested, plan: Plan) -> Refusal | None:
    if plan.fits or event.fit or event.kind != JobKind.LOAD:
        return None
    return Refusal(
        409,
        "does_not_fit",
        plan.reason,
        "load less, free something, enlarge the fleet (stoker fleet set), or load what fits (--fit)",
    )


def _create(
    catalog: Catalog,
    fleet: Fleet,
    stamp: ev.Stamp,
    event: ev.JobRequested,
    dataset: Dataset,
    selection: Selection,
    plan: Plan,
    rules: Rules,
    body: str,
) -> Frame:
    wanted = e.WantedSet(dataset.dataset_id, dataset.wanted_version + 1, rules, plan.wanted_block_count)
    created = e.JobCreated(
        job_id=job_id_of(catalog.job_number_next),
        kind=event.kind,
        dataset_id=dataset.dataset_id,
        dataset=dataset.name,
        paths=event.paths,
        key=event.key,
        body=body,
        fit=event.fit,
        wanted_version=wanted.wanted_version,
        bytes_total=selection.requested_bytes,
        files_total=selection.requested_files,
        block_count=plan.blocks,
        wall_ms=now_wall_ms(catalog, stamp),
    )
    view = job_view(catalog, fleet, job_created(created), stamp.now_ms)
    return Frame((wanted, created), (Answer(event.reply_id, 201, view),))


# --- ends


def _take_back(catalog: Catalog, job: Job) -> list[e.WantedSet]:
    """Return the entries that undo the job's wish."""
    dataset = catalog.datasets[job.dataset_id]
    others = [other for other in catalog.jobs_of(job.dataset_id) if other.job_id != job.job_id]
    base_rules = catalog.base_rules.of(dataset.dataset_id)
    rules = normalise_rules((*base_rules, *(rule for other in others for rule in other.wishes)))
    if rules == dataset.rules:
        return []
    # Without its manifest nobody can count: the old number is an upper bound unless everything or nothing is wanted.
    return [e.WantedSet(dataset.dataset_id, dataset.wanted_version + 1, rules, dataset.wanted_block_count)]


def _end(
    catalog: Catalog,
    fleet: Fleet,
    stamp: ev.Stamp,
    job: Job,
    progress: JobProgress,
    settings: Settings,
) -> e.JobFinished | None:
    """Return the end of a job that has nothing left to do, else None."""
    if job.kind == JobKind.FREE:
        if progress.unheard_count or progress.held_blocks:
            return None
        return _finished(catalog, stamp, job, JobState.SUCCEEDED, progress, is_whole=True)
    if not _is_settled(progress, stamp, settings):
        return None
    count, named = job_errors(catalog, fleet, job)
    message = _load_message(job, count, named, progress)
    if count or (progress.unfit_blocks and not job.fit):
        errors = _bounded(named, settings)
        return _finished(catalog, stamp, job, JobState.FAILED, progress, count, errors, message)
    is_whole = not progress.unfit_blocks
    return _finished(catalog, stamp, job, JobState.SUCCEEDED, progress, message=message, is_whole=is_whole)


def _is_settled(progress: JobProgress, stamp: ev.Stamp, settings: Settings) -> bool:
    if not progress.slot_count or progress.reported_count < progress.slot_count or progress.unsettled_blocks:
        return False
    since_ms = progress.unfit_since_ms
    return since_ms is None or stamp.now_ms - since_ms >= settings.job_unfit_ms


def _load_message(job: Job, count: int, named: list[FileError], progress: JobProgress) -> str:
    parts = []
    if count:
        first = f"; the first is {clip(named[0].path, 300)!r}: {clip(named[0].message, 300)}" if named else ""
        parts.append(f"{count} of {job.files_total} files failed{first}")
    if progress.unfit_blocks:
        where = ", ".join(map(str, progress.unfit_slot_ids[:8]))
        parts.append(f"{progress.unfit_blocks} blocks found no room, on slots {where}")
    return "; ".join(parts)


def _finished(
    catalog: Catalog,
    stamp: ev.Stamp,
    job: Job,
    state: JobState,
    progress: JobProgress,
    error_count: int = 0,
    errors: tuple[FileError, ...] = (),
    message: str = "",
    *,
    is_whole: bool = False,
) -> e.JobFinished:
    return e.JobFinished(
        job_id=job.job_id,
        state=state.value,
        bytes=job.bytes_total if is_whole else progress.bytes,
        files=job.files_total if is_whole else progress.files,
        error_count=error_count,
        errors=errors,
        message=message,
        wall_ms=now_wall_ms(catalog, stamp),
    )


def _bounded(named: list[FileError], settings: Settings) -> tuple[FileError, ...]:
    """Return as many errors as a journal record has room for."""
    kept: list[FileError] = []
    left = settings.job_errors_bytes_max
    for error in named[: settings.job_errors_max]:
        short = FileError(error.path, error.code, clip(error.message, 300))
        left -= len(short.path.encode()) + len(short.message.encode()) + 40
        if left < 0:
            break
        kept.append(short)
    return tuple(kept)


def _forget(catalog: Catalog, stamp: ev.Stamp, settings: Settings) -> list[e.Entry]:
    """Forget the oldest finished jobs beyond the count, and those that are too old."""
    surplus = catalog.finished_job_count() - settings.jobs_kept_max
    before_ms = now_wall_ms(catalog, stamp) - settings.jobs_kept_ms
    held_up: set[int] = set()  # datasets with an older job that stays: wishes are forgotten in their order
    forgotten: list[str] = []
    for job in catalog.jobs.values():
        if len(forgotten) >= surplus and job.created_ms >= before_ms:
            break  # nor is any after it old: they stand in the order of their creation
        is_old = len(forgotten) < surplus or job.finished_ms < before_ms
        if job.state.is_final and is_old and job.dataset_id not in held_up:
            forgotten.append(job.job_id)
        elif job.dataset_id:  # a drain's is 0, and it has no wish
            held_up.add(job.dataset_id)
        if len(forgotten) >= FORGOTTEN_FRAME_MAX:
            break
    return [e.JobsForgotten(tuple(forgotten))] if forgotten else []

"""The table of jobs: what it gives is a whole job, as it was when somebody looked."""

from __future__ import annotations

from typing import Any

import pytest

from stoker.framework.core import entries as e
from stoker.framework.core.job_table import Jobs, job_created, job_finished, job_id_of, job_started
from stoker.framework.model import FileError, JobState


def created(number: int, *, kind: str = "load", paths: tuple[str, ...] = (), key: str = "") -> e.JobCreated:
    return e.JobCreated(job_id_of(number), kind, 1, "d", paths, key, "body", False, 1, 10, 2, 1, 100)


def finished(number: int, state: str = "SUCCEEDED", *, errors: tuple[FileError, ...] = ()) -> e.JobFinished:
    return e.JobFinished(job_id_of(number), state, 9, 1, len(errors), errors, "so it went", 300)


def test_a_job_is_what_its_entries_made_of_it() -> None:
    jobs = Jobs()
    jobs.create([created(1, key="k")])
    seen = [jobs["j0000000001"]]
    jobs.start([e.JobStarted(job_id_of(1), 200)])
    seen.append(jobs["j0000000001"])
    jobs.finish([finished(1, "FAILED", errors=(FileError("p", "gone", "m"),))])
    seen.append(jobs["j0000000001"])
    assert [job.state for job in seen] == [JobState.PENDING, JobState.RUNNING, JobState.FAILED]
    last = seen[-1]
    assert (last.created_ms, last.started_ms, last.finished_ms) == (100, 200, 300)
    assert (last.bytes, last.files, last.error_count, last.message) == (9, 1, 1, "so it went")
    assert last == Jobs([last])[last.job_id] == jobs.of_key("k")
    one = job_created(created(1, key="k"))
    two = job_started(one, e.JobStarted(job_id_of(1), 200))
    assert [one, two, job_finished(two, finished(1, "FAILED", errors=last.errors))] == seen


def test_active_jobs_are_those_that_are_not_finished_as_they_are_now() -> None:
    jobs = Jobs()
    for number in (1, 2, 3):
        jobs.create([created(number)])
    before = jobs.active()
    jobs.start([e.JobStarted(job_id_of(2), 200)])
    jobs.finish([finished(1)])
    assert [job.state for job in before] == [JobState.PENDING] * 3
    assert [(job.job_id[-1], job.state) for job in jobs.active()] == [("2", "RUNNING"), ("3", "PENDING")]
    assert jobs.active_count == 2 and jobs.active()[0] is jobs.active()[0], "made once"


def test_a_copy_stays_as_it_was() -> None:
    jobs = Jobs()
    jobs.create([created(1, key="k")])
    twin = jobs.copy()
    jobs.finish([finished(1)])
    assert jobs.forget([e.JobsForgotten((job_id_of(1),))]) == [(1, True, ())]
    assert not jobs and jobs.of_key("k") is None
    assert twin.of_key("k") == twin[job_id_of(1)] and twin.active_count == 1


def test_what_forgotten_jobs_wished_is_told() -> None:
    jobs = Jobs()
    for number, kind in enumerate(("load", "free", "drain", "load"), start=1):
        jobs.create([created(number, kind=kind, paths=("a",))])
        jobs.finish([finished(number, "CANCELLED" if number == 4 else "SUCCEEDED")])
    left = jobs.forget([e.JobsForgotten(tuple(job_id_of(number) for number in range(1, 5)))])
    assert left == [(1, True, ("a",)), (1, False, ("a",))], "a drain wishes nothing, nor a cancelled job"


def test_a_key_that_is_used_again_stays_with_the_newer_job() -> None:
    jobs = Jobs()
    jobs.create([created(1, key="k")])
    jobs.finish([finished(1)])
    jobs.create([created(2, key="k")])
    jobs.forget([e.JobsForgotten((job_id_of(1),))])
    assert jobs.of_key("k") == jobs[job_id_of(2)]


def started(number: int) -> e.JobStarted:
    return e.JobStarted(job_id_of(number), 200)


def forgotten(*numbers: int) -> e.JobsForgotten:
    return e.JobsForgotten(tuple(map(job_id_of, numbers)))


@pytest.mark.parametrize(
    ("new", "entries", "fits"),
    [
        ([3], ([started(2), started(3)], [finished(3)], [forgotten(1)]), True),
        ([], ([started(3)], [], []), False),
        ([], ([], [finished(3)], []), False),
        ([], ([], [], [forgotten(2)]), False),
        ([3], ([], [], [forgotten(3)]), False),
        ([], ([], [], [forgotten(1), forgotten(1)]), False),
        ([], ([], [finished(2)], [forgotten(2)]), False),  # right one by one, which is how they go then
        ([], ([], [finished(2, "PAUSED")], []), False),
        ([], ([], [finished(2)._replace(errors=(("only a path",),))], []), False),
        ([], ([], [finished(2)._replace(errors=(FileError("p", "gone", "m"), ("p", "c", "m")))], []), True),
    ],
)
def test_entries_fit_if_each_follows_from_what_is_before_it(
    new: list[int], entries: tuple[list[Any], list[Any], list[Any]], fits: bool
) -> None:
    jobs = Jobs()
    jobs.create([created(1), created(2)])
    jobs.finish([finished(1)])
    assert jobs.fit([created(number) for number in new], *entries) is fits

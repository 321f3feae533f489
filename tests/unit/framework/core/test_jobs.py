from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from stoker.executor.messages import FileFailure
from stoker.executor.wire import Failure
from stoker.framework.core import actions as a
from stoker.framework.core import entries as e
from stoker.framework.core import events as ev
from stoker.framework.core.job_table import job_id_of
from stoker.framework.core.views import job_view
from stoker.framework.model import STALE_SELECTION, FleetSpec, JobState, Selection
from support.core_stage import BLOCK_BYTES, MIB, Stage, entries_of, manifested


def code(answer: a.Answer) -> str:
    return "" if answer.refusal is None else answer.refusal.code


def staged(**fields: int) -> Stage:
    stage = Stage(**({"instances": 2} | fields)).start()
    stage.ready(blocks=32)
    return stage


def view(stage: Stage) -> dict[str, Any]:
    return job_view(stage.catalog, stage.fleet, stage.only_job(), stage.now_ms)


def test_a_load_is_a_wish_and_its_account() -> None:
    stage = staged()
    answer = stage.job("load", "d1", "d2/f2")
    assert (answer.status, answer.body["id"], answer.body["state"]) == (201, "j0000000001", "PENDING")
    assert (
        answer.body["progress"]["bytes_total"] == 9 * BLOCK_BYTES
        and answer.body["progress"]["files_total"] == 9
    )
    assert stage.dataset().rules == ((True, "d1"), (True, "d2/f2"))


def test_goes_from_pending_through_running_to_succeeded() -> None:
    stage = staged()
    stage.job("load")
    stage.tick()
    assert view(stage)["state"] == "PENDING" and "waits for slot 1" in view(stage)["message"]
    stage.hold(1, stage.dataset(), [])
    stage.tick()
    assert view(stage)["state"] == "RUNNING" and view(stage)["progress"]["bytes"] == 0
    stage.hold(1, stage.dataset())
    stage.tick()
    done = len(stage.wanted_on(1, stage.dataset()))
    assert view(stage)["progress"]["bytes"] == done * BLOCK_BYTES
    assert view(stage)["progress"]["files"] == done
    stage.hold(2, stage.dataset())
    stage.tick()
    job = stage.only_job()
    assert (job.state, job.bytes, job.files) == (JobState.SUCCEEDED, 32 * BLOCK_BYTES, 32)
    shown = view(stage)
    assert shown["finished_ms"] and shown["progress"]["bytes"] == shown["progress"]["bytes_total"]


def test_shows_rate_and_time_left() -> None:
    stage = staged(instances=1)
    stage.job("load")
    for count in range(1, 9):
        stage.hold(1, stage.dataset(), range(count))
        stage.tick(1000)
    progress = view(stage)["progress"]
    assert progress["rate_bytes_per_s"] == BLOCK_BYTES
    assert progress["eta_seconds"] == 24
    assert progress["executors"] == [
        {"slot": 1, "bytes": 8 * BLOCK_BYTES, "bytes_total": 32 * BLOCK_BYTES, "files": 8, "files_total": 32}
    ]


def test_counts_replicas_once() -> None:
    stage = Stage(instances=2).start()
    stage.ready(blocks=32, replicas=2)
    stage.job("load")
    stage.hold(1, stage.dataset())
    stage.hold(2, stage.dataset(), [])
    stage.tick()
    assert view(stage)["progress"]["bytes"] == 16 * BLOCK_BYTES, "half of all copies"
    stage.hold(2, stage.dataset())
    stage.tick()
    assert stage.only_job().state == JobState.SUCCEEDED


def test_is_not_over_before_every_slot_has_reported_by_the_newest_wish_and_version() -> None:
    stage = staged()
    stage.job("load", "d0")
    old = stage.dataset()
    stage.hold(1, old)
    stage.hold(2, old._replace(wanted_version=0))
    stage.tick()
    assert stage.only_job().state == JobState.RUNNING
    stage.do(ev.RefreshRequested(7, "alpha"))
    stage.do(ev.ListingFinished(1, 2, manifested(stage.dataset(), 33, version=2)))
    stage.hold(2, old)
    stage.tick()
    assert stage.only_job().state == JobState.RUNNING, "they still know version 1"
    stage.hold(1, stage.dataset())
    stage.hold(2, stage.dataset())
    stage.tick()
    assert stage.only_job().state == JobState.SUCCEEDED


def test_a_lost_executor_is_waited_for_and_refills_what_it_held() -> None:
    stage = staged()
    stage.job("load")
    stage.hold(1, stage.dataset())
    stage.do(ev.ExecutorEnded("agent-1", stage.launch(1).task_id, 9))
    stage.hold(2, stage.dataset())
    stage.tick()
    assert stage.only_job().state == JobState.RUNNING
    assert "waits for slot 1, WAITING" in view(stage)["message"] and "signal 9" in view(stage)["message"]
    stage.offer("agent-1")
    answer = stage.beat(stage.launch(1), whole=True)
    assert answer.assignment is not None and answer.assignment.datasets[0].wanted == ((True, ""),)
    stage.hold(1, stage.dataset())
    stage.tick()
    assert stage.only_job().state == JobState.SUCCEEDED


def test_a_load_with_failed_files_fails_and_names_them() -> None:
    stage = staged(instances=1)
    stage.job("load", "d1")
    failures = (
        FileFailure(1, "d1/f1", Failure.CHANGED, "it is 3 bytes, 2 were listed"),
        FileFailure(2, "d2/f2", Failure.UNDER_STORE, "of another job"),
    )
    wanted = stage.wanted_on(1, stage.dataset())
    stage.hold(
        1, stage.dataset(), wanted - {1}, wanted_settled=len(wanted), failed_count=2, failures=failures
    )
    stage.tick()
    job = stage.only_job()
    assert job.state == JobState.FAILED and job.error_count == 1
    assert [(x.path, x.code) for x in job.errors] == [("d1/f1", "changed")]
    assert "1 of 8 files failed" in job.message and "d1/f1" in job.message
    stage.job("load", "d1")
    assert stage.dataset().wanted_version == 2, "a new wish, so that it is tried again"


def test_errors_are_named_in_bounds_and_counted_without() -> None:
    stage = staged(instances=1, job_errors_max=3)
    stage.job("load")
    wanted = stage.wanted_on(1, stage.dataset())
    failures = tuple(FileFailure(i, f"d0/{i}", 99, "x" * 9000) for i in range(100))
    stage.hold(1, stage.dataset(), [], wanted_settled=len(wanted), failed_count=150, failures=failures)
    stage.tick()
    job = stage.only_job()
    assert (job.error_count, len(job.errors), job.errors[0].code) == (150, 3, "unknown")
    assert len(job.errors[0].message) <= 300


def test_blocks_without_room_fail_a_load_that_was_to_fit() -> None:
    stage = staged(instances=1)
    stage.job("load")
    stage.hold(1, stage.dataset(), range(30), wanted_settled=30, unfit_blocks=2)
    stage.tick()
    assert stage.only_job().state == JobState.RUNNING, "room may come yet"
    assert "2 blocks find no room" in view(stage)["message"]
    stage.pass_time(stage.settings.job_unfit_ms)
    job = stage.only_job()
    assert job.state == JobState.FAILED and "2 blocks found no room, on slots 1" in job.message


def test_a_load_of_what_fits_succeeds_with_less() -> None:
    stage = staged(instances=1)
    stage.job("load", fit=True)
    stage.hold(1, stage.dataset(), range(30), wanted_settled=30, unfit_blocks=2)
    stage.pass_time(stage.settings.job_unfit_ms + 1000)
    job = stage.only_job()
    assert (job.state, job.bytes) == (JobState.SUCCEEDED, 30 * BLOCK_BYTES)


def test_a_dataset_larger_than_the_fleet_does_not_fit_and_says_so_in_numbers() -> None:
    stage = Stage(instances=2).start()
    stage.ready(blocks=200)
    before = stage.catalog.snapshot()
    answer = stage.job("load")
    assert (answer.status, code(answer)) == (409, "does_not_fit")
    assert (
        answer.refusal is not None
        and "200." in answer.refusal.message
        and "128.0 MiB" in answer.refusal.message
    )
    assert stage.catalog.snapshot() == before
    assert stage.job("load", fit=True).status == 201
    assert stage.job("load", "d1").status == 409, "all of it is wanted already, and more than fits"


def test_a_plan_says_where_and_changes_nothing() -> None:
    stage = staged()
    before = stage.catalog.snapshot()
    answer = stage.job("load", "d1", plan_only=True)
    plan = answer.body["plan"]
    assert answer.status == 200 and plan["fits"] and plan["reason"] is None
    assert (plan["bytes"], plan["files"], plan["blocks"]) == (8 * BLOCK_BYTES, 8, 8)
    assert plan["capacity_bytes"] == 2 * 64 * MIB == plan["free_bytes"]
    assert sum(row["bytes"] for row in plan["slots"]) >= 8 * BLOCK_BYTES
    assert stage.catalog.snapshot() == before and not stage.fleet.selections


def test_a_plan_counts_what_other_datasets_want() -> None:
    stage = staged()
    stage.job("load")
    stage.ready("beta", blocks=64, source="mem://y")
    plan = stage.job("load", name="beta", plan_only=True).body["plan"]
    used = plan["capacity_bytes"] - plan["free_bytes"]
    assert 32 * BLOCK_BYTES <= used < 33 * BLOCK_BYTES
    stage.ready("gamma", blocks=110, source="mem://z")
    assert not stage.job("load", name="gamma", plan_only=True).body["plan"]["fits"]
    stage.job("free")
    assert stage.job("load", name="gamma", plan_only=True).body["plan"]["fits"]


def test_nothing_fits_where_no_executor_is_wanted() -> None:
    stage = staged()
    stage.ask(ev.FleetRequested(7, FleetSpec(0, 64 * MIB)))
    answer = stage.job("load")
    assert (
        code(answer) == "does_not_fit"
        and answer.refusal is not None
        and "no executor" in answer.refusal.message
    )


def test_repeats_by_key_and_body() -> None:
    stage = staged()
    first = stage.job("load", "d1", key="k")
    assert stage.job("load", "d1", key="k").body["id"] == first.body["id"]
    assert stage.job("load", "d1", key="k").status == 200
    for answer in (
        stage.job("load", "d2", key="k"),
        stage.job("free", "d1", key="k"),
        stage.job("load", "d1", key="k", fit=True),
    ):
        assert (answer.status, code(answer)) == (409, "key_reused")
    assert len(stage.catalog.jobs) == 1
    assert stage.job("load", "d1").body["id"] != first.body["id"], "without a key each is new"
    stage.ask(ev.DatasetRemovalRequested(7, "alpha"))
    assert stage.job("load", "d1", key="k").body["state"] == "CANCELLED", "as the job is now"


@pytest.mark.parametrize("kind", ["load", "free"])
def test_refuses_what_cannot_be_done_now(kind: str) -> None:
    stage = Stage().start()
    assert stage.job(kind, name="nobody").status == 404
    stage.add()
    answer = stage.job(kind)
    assert (answer.status, code(answer)) == (409, "not_ready")
    stage.do(ev.ListingFinished(1, 1, None, "no bucket"))
    answer = stage.job(kind)
    assert (
        code(answer) == "not_ready" and answer.refusal is not None and "no bucket" in answer.refusal.message
    )
    assert "refresh" in answer.refusal.hint


def test_a_selection_of_what_has_moved_on_is_stale() -> None:
    stage = staged()
    selection = stage.select("load", ("d1",), "alpha")
    assert isinstance(selection, Selection)
    stage.job("load", "d2")
    assert code(stage.job("load", "d1", selection=selection)) == STALE_SELECTION
    fresh = stage.select("load", ("d1",), "alpha")
    stage.do(ev.RefreshRequested(7, "alpha"))
    stage.do(ev.ListingFinished(1, 2, manifested(stage.dataset(), 33, version=2)))
    assert code(stage.job("load", "d1", selection=fresh)) == STALE_SELECTION
    answer = stage.ask(ev.JobRequested(7, "load", "alpha", (), "", False, False, None))
    assert code(answer) == STALE_SELECTION, "it became READY meanwhile"


def test_says_which_paths_are_missing() -> None:
    stage = staged()
    selection = stage.select("load", ("x",), "alpha")
    assert selection is not None
    answer = stage.job("load", "x", selection=replace(selection, missing=("x", "y", "z", "v")))
    assert answer.status == 404 and answer.refusal is not None
    assert "'x', 'y', 'z' and 1 more" in answer.refusal.message


def test_refuses_paths_and_rules_beyond_their_limits() -> None:
    stage = staged()
    assert code(stage.job("load", *(f"d0/{i:020}" for i in range(1000)))) == "too_large"
    assert code(stage.job("load", key="k" * 300)) == "bad_request"
    assert code(stage.job("load", "\ud812")) == "bad_request"
    stage = staged(wanted_rules_max=3)
    assert [code(stage.job("load", f"d0/f{4 * i}")) for i in range(4)] == ["", "", "", "too_large"]
    stage = staged(jobs_active_max=2)
    assert [stage.job("load").status for _ in range(3)] == [201, 201, 503]


def test_a_kind_that_is_none_is_refused() -> None:
    assert code(staged().job("defragment", selection=None)) == "bad_request"


# --- free


def test_a_free_is_over_when_nobody_holds_it() -> None:
    stage = staged()
    stage.job("load")
    for slot in (1, 2):
        stage.hold(slot, stage.dataset())
    stage.tick()
    answer = stage.job("free", "d1")
    assert answer.status == 201 and stage.dataset().rules == ((True, ""), (False, "d1"))
    job_id = answer.body["id"]
    everything = {
        s: stage.wanted_on(s, stage.dataset()) | {i for i in range(32) if i % 4 == 1} for s in (1, 2)
    }
    for slot in (1, 2):
        stage.hold(slot, stage.dataset(), everything[slot])
    stage.tick()
    assert stage.catalog.jobs[job_id].state == JobState.RUNNING
    assert (
        "still held"
        in job_view(stage.catalog, stage.fleet, stage.catalog.jobs[job_id], stage.now_ms)["message"]
    )
    for slot in (1, 2):
        stage.hold(slot, stage.dataset())
    stage.tick()
    assert stage.catalog.jobs[job_id].state == JobState.SUCCEEDED


def test_a_free_does_not_wait_for_what_a_later_load_wants_again() -> None:
    stage = staged(instances=1)
    stage.job("free", "d1")
    stage.job("load", "d1")
    stage.hold(1, stage.dataset())
    stage.tick()
    assert {job.state for job in stage.catalog.jobs.values()} == {JobState.SUCCEEDED}


def test_a_free_finishes_after_a_take_over() -> None:
    """The new leader does not know which blocks they were, but that all executors know the wish."""
    stage = staged(instances=1)
    stage.job("free")
    launch = stage.launch(1)
    stage.lead()
    stage.subscribe()
    stage.beat(launch, whole=True)
    stage.tick()
    assert stage.only_job().state == JobState.PENDING
    stage.hold(1, stage.dataset())
    stage.tick()
    assert stage.only_job().state == JobState.SUCCEEDED


# --- cancel and forget


def cancel(stage: Stage, job_id: str) -> a.Answer:
    return stage.ask(ev.JobCancelRequested(7, job_id))


def test_a_cancel_takes_back_the_wish() -> None:
    stage = staged()
    job_id = stage.job("load", "d1").body["id"]
    answer = cancel(stage, job_id)
    assert (answer.status, answer.body["state"]) == (200, "CANCELLED")
    assert stage.dataset().rules == () and stage.dataset().wanted_version == 2
    assert cancel(stage, job_id).body["state"] == "CANCELLED", "again is the same"
    assert cancel(stage, "j9").status == 404


def test_a_cancel_leaves_what_other_jobs_want() -> None:
    stage = staged()
    stage.job("load", "d1")
    second = stage.job("load").body["id"]
    third = stage.job("free", "d2").body["id"]
    cancel(stage, second)
    assert stage.dataset().rules == ((True, "d1"), (False, "d2"))
    cancel(stage, third)
    assert stage.dataset().rules == ((True, "d1"),)


def test_a_cancel_goes_back_to_what_forgotten_jobs_left() -> None:
    stage = staged(instances=1, jobs_kept_max=1)
    for path in ("d1", "d2"):
        stage.job("load", path)
        stage.hold(1, stage.dataset())
        stage.tick()
    assert entries_of(stage.tick(), e.JobsForgotten)
    last = stage.job("load").body["id"]
    assert stage.dataset().rules == ((True, ""),)
    cancel(stage, last)
    assert stage.dataset().rules == ((True, "d1"), (True, "d2"))


def test_finished_jobs_are_forgotten_by_count_and_age_in_order() -> None:
    stage = staged(instances=1, jobs_kept_max=3, jobs_kept_ms=100_000)
    for _ in range(5):
        stage.job("load", key=f"k{len(stage.catalog.jobs)}")
    first = next(iter(stage.catalog.jobs))
    stage.hold(1, stage.dataset())
    stage.pass_time(3_000)
    assert len(stage.catalog.jobs) == 3 and first not in stage.catalog.jobs
    assert stage.catalog.job_of_key("k0") is None
    stage.pass_time(101_000)
    assert not stage.catalog.jobs


def test_an_active_job_holds_up_the_forgetting_of_later_wishes() -> None:
    stage = staged(instances=1, jobs_kept_max=1)
    stage.job("load", "d1")
    later = [stage.job("free", "d2").body["id"] for _ in range(3)]
    stage.hold(1, stage.dataset(), [])
    stage.pass_time(2_000)
    assert all(stage.catalog.jobs[job_id].state == JobState.SUCCEEDED for job_id in later)
    assert len(stage.catalog.jobs) == 4


def test_many_that_end_at_once_end_in_slices() -> None:
    """A frame must fit a batch of the journal."""
    stage = staged(instances=1)
    for _ in range(100):
        stage.job("load")
    stage.hold(1, stage.dataset())
    assert [len(entries_of(stage.tick(), e.JobFinished)) for _ in range(3)] == [64, 36, 0]


def test_failures_end_in_smaller_slices_since_each_names_its_files() -> None:
    stage = staged(instances=1)
    for _ in range(10):
        stage.job("load")
    wanted = stage.wanted_on(1, stage.dataset())
    failures = (FileFailure(1, "d1/f1", Failure.UNDER_STORE, "404"),)
    stage.hold(1, stage.dataset(), [], wanted_settled=len(wanted), failed_count=1, failures=failures)
    assert [len(entries_of(stage.tick(), e.JobFinished)) for _ in range(4)] == [4, 4, 2, 0]


def test_the_oldest_are_forgotten_also_while_others_end() -> None:
    """A busy cluster has no quiet tick."""
    stage = staged(instances=1, jobs_kept_max=2)
    for _ in range(8):
        stage.job("load")
        stage.hold(1, stage.dataset())
        stage.tick()
        assert len(stage.catalog.jobs) <= 4
    stage.tick()
    assert len(stage.catalog.jobs) == 2


def test_a_thousand_are_forgotten_at_a_time() -> None:
    stage = staged(instances=1, jobs_active_max=3_000, jobs_kept_ms=1_000_000)
    for _ in range(1_500):
        stage.catalog.apply(created_of(stage))
    for job_id in list(stage.catalog.jobs):
        stage.catalog.apply(e.JobFinished(job_id, "CANCELLED", 0, 0, 0, (), "", stage.catalog.wall_ms))
    assert [len(x.job_ids) for x in entries_of(stage.tick(), e.JobsForgotten)] == [
        500
    ]  # beyond jobs_kept_max
    frame = stage.tick(after_ms=1_010_000)
    assert [len(x.job_ids) for x in entries_of(frame, e.JobsForgotten)] == [1_000]
    assert not stage.catalog.jobs


def created_of(stage: Stage) -> e.JobCreated:
    job_id = job_id_of(stage.catalog.job_number_next)
    wall_ms = 1_700_000_000_000 + stage.now_ms
    return e.JobCreated(
        job_id, "load", stage.dataset().dataset_id, "alpha", (), "", "", False, 0, 1, 1, 1, wall_ms
    )


def test_a_cancel_that_would_bring_back_too_many_rules_is_refused() -> None:
    """What everything covered comes back when everything is taken back; a journal record holds only so much."""
    stage = staged(instances=1, wanted_rules_max=3)
    stage.job("load", "d1", "d2")
    everything = [stage.job("load").body["id"]]
    stage.job("load", "d3/f3", "d3/f7", fit=True)
    stage.job("free", "d1", "d2")
    everything.append(stage.job("load").body["id"])
    stage.job("free", "d0", "d3")
    assert len(stage.dataset().rules) == 3
    before = stage.catalog.snapshot()
    cancel(stage, everything[0])
    answer = stage.ask(ev.JobCancelRequested(7, everything[1]))
    assert answer.refusal is not None and answer.refusal.code == "too_large"
    assert len(stage.catalog.jobs) == 6 and stage.catalog.snapshot() != before
    assert not stage.catalog.jobs[everything[1]].state.is_final

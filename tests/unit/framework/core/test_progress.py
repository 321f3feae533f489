"""A job's progress is read of a table that remembers what slots reported; the stage compares it with a count from the
beginning after each event (see invariants.py)."""

from __future__ import annotations

import pytest

from stoker.framework.core import entries as e
from stoker.framework.core import events as ev
from stoker.framework.core.progress import job_progress, slot_progress
from stoker.framework.core.reports import Reports, refreshed
from stoker.framework.model import FleetSpec, JobState
from support.core_stage import BLOCK_BYTES, Stage, entries_of, residency_of


def staged(instances: int = 3, **fields: int) -> Stage:
    stage = Stage(instances=instances, **fields).start()
    stage.ready(blocks=32)
    return stage


def table(stage: Stage) -> Reports:
    return refreshed(stage.catalog, stage.fleet, stage.dataset())


def test_a_tick_without_news_reads_no_row_anew() -> None:
    stage = staged()
    stage.job("load")
    for slot_id in (1, 2, 3):
        stage.hold(slot_id, stage.dataset(), [])
    stage.tick()
    reports, stamp = table(stage), table(stage).stamp
    for _ in range(3):
        stage.beat(stage.launch(2))  # says nothing of the dataset
        stage.tick()
    assert table(stage) is reports and reports.stamp == stamp


def test_a_heartbeat_changes_the_row_of_its_slot_and_no_other() -> None:
    stage = staged()
    stage.job("load")
    for slot_id in (1, 2, 3):
        stage.hold(slot_id, stage.dataset(), [])
    stage.tick()
    reports, before = table(stage), table(stage).rows_stamp.copy()
    stage.hold(2, stage.dataset())
    stage.tick()
    assert table(stage) is reports
    assert ((reports.rows_stamp > before) == [False, True, False]).all()
    progress = slot_progress(stage.catalog, stage.fleet, stage.only_job())
    assert [slot.bytes == slot.bytes_total for slot in progress] == [False, True, False]
    assert all(slot.is_reported for slot in progress)


@pytest.mark.parametrize("end", ["relaunched", "whole without it"])
def test_what_a_slot_reported_is_gone_with_its_executor_or_when_it_says_no_more(end: str) -> None:
    stage = staged(instances=2)
    stage.job("load")
    for slot_id in (1, 2):
        stage.hold(slot_id, stage.dataset(), [])
    stage.tick()
    assert job_progress(stage.catalog, stage.fleet, stage.only_job()).reported_count == 2
    if end == "relaunched":
        stage.status(stage.launch(1).task_id, "TASK_FAILED")
        assert job_progress(stage.catalog, stage.fleet, stage.only_job()).unheard_count == 0
    else:
        stage.beat(stage.launch(1), whole=True)
        assert job_progress(stage.catalog, stage.fleet, stage.only_job()).unheard_count == 1
    progress = job_progress(stage.catalog, stage.fleet, stage.only_job())
    assert (progress.slot_count, progress.reported_count) == (2, 1)


def test_another_incarnation_of_a_launch_begins_with_nothing_reported() -> None:
    stage = staged(instances=1)
    stage.job("load")
    stage.hold(1, stage.dataset(), [])
    stage.pass_time(
        stage.settings.heartbeat_timeout_ms, beating=False
    )  # long enough for another to take its place
    stage.beat(stage.launch(1), incarnation=77)
    assert job_progress(stage.catalog, stage.fleet, stage.only_job()).reported_count == 0


def test_a_slot_more_makes_the_table_anew() -> None:
    stage = staged(instances=2)
    stage.job("load")
    for slot_id in (1, 2):
        stage.hold(slot_id, stage.dataset(), [])
    before = table(stage)
    stage.ask(ev.FleetRequested(7, FleetSpec(3, stage.spec.mem_bytes)))
    assert table(stage) is not before
    assert job_progress(stage.catalog, stage.fleet, stage.only_job()).slot_count == 3


def test_a_free_counts_anew_only_what_changed_and_ends_when_all_let_go() -> None:
    stage = staged(instances=2)
    stage.job("load")
    for slot_id in (1, 2):
        stage.hold(slot_id, stage.dataset())
    stage.tick()
    held = {slot_id: stage.wanted_on(slot_id, stage.dataset()) for slot_id in (1, 2)}
    freeing = stage.job("free").body["id"]
    for slot_id in (1, 2):
        stage.hold(slot_id, stage.dataset(), held[slot_id])
    stage.tick()
    job = stage.catalog.jobs[freeing]
    assert job_progress(stage.catalog, stage.fleet, job).held_blocks == 32
    stage.hold(1, stage.dataset(), [])
    stage.tick()
    progress = job_progress(stage.catalog, stage.fleet, job)
    assert progress.held_blocks == len(held[2]) and progress.bytes == len(held[1]) * BLOCK_BYTES
    stage.hold(2, stage.dataset(), [])
    assert [x.job_id for x in entries_of(stage.tick(), e.JobFinished)] == [freeing]
    assert stage.catalog.jobs[freeing].state == JobState.SUCCEEDED


def test_nothing_is_remembered_of_jobs_that_are_over() -> None:
    stage = staged(instances=1)
    for path in ("d1", "d2"):
        stage.job("load", path)
    stage.tick()
    assert set(table(stage).counted) == set(stage.catalog.jobs)
    first, second = stage.catalog.jobs
    stage.ask(ev.JobCancelRequested(7, first))
    stage.tick()
    assert set(stage.fleet.reports[stage.dataset().dataset_id].counted) == {second}
    stage.ask(ev.JobCancelRequested(7, second))
    stage.tick()
    assert not stage.fleet.reports


def test_what_executors_hold_of_a_removed_dataset_is_forgotten() -> None:
    stage = staged(instances=1)
    dataset = stage.dataset()
    stage.hold(1, dataset)
    stage.ask(ev.DatasetRemovalRequested(7, "alpha"))
    stage.tick()
    (seen,) = stage.fleet.executors.values()
    assert not seen.datasets
    held = residency_of(dataset, {1, 2}, set())
    stage.beat(stage.launch(1), whole=True, datasets=(held,))  # it has not heard of the removal yet
    assert not seen.datasets

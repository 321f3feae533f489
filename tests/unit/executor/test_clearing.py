"""What an executor says of datasets that its leader has removed: held assignments are one thing, what is served another."""

from __future__ import annotations

import os
from pathlib import Path

from stoker.executor.wire import HelloStatus
from support.executors import ALL, FakeScheduler, make_files, running_executor


def test_a_removed_dataset_is_cleared_when_its_readers_have_let_go(
    tmp_path: Path, scheduler: FakeScheduler
) -> None:
    dataset = make_files(tmp_path)
    scheduler.serve(dataset)
    scheduler.assign(dataset.assignment(wanted=ALL, wanted_version=1))
    with running_executor(scheduler) as executor:
        scheduler.wait_full(dataset.manifest.block_count)
        scheduler.wait(lambda: scheduler.last().cleared_version == 1, "the first assignment to be cleared")
        client = executor.connect()
        (fd,) = client.descriptors(0)[1]
        scheduler.assign()
        scheduler.wait(lambda: scheduler.last().assignment_version == 2, "the removal to be heard")
        assert client.at_end()
        refused = executor.connect()
        assert refused.answer is not None and refused.answer.status == HelloStatus.DATASET
        heard = scheduler.last().sequence
        scheduler.wait(lambda: scheduler.last().sequence > heard + 1, "more heartbeats")
        assert scheduler.last().cleared_version == 1, "a reader has a descriptor yet"
        scheduler.assign()
        scheduler.wait(lambda: scheduler.last().assignment_version == 3, "another assignment")
        assert scheduler.last().cleared_version == 1
        os.close(fd)
        client.close()
        scheduler.wait(lambda: scheduler.last().cleared_version == 3, "the removal to be cleared")
        refused.close()


def test_nothing_is_cleared_for_a_leader_that_has_not_heard_all_executors(
    tmp_path: Path, scheduler: FakeScheduler
) -> None:
    """It names no dataset that was removed before its time, but executors keep and serve what it does not name."""
    dataset = make_files(tmp_path)
    scheduler.serve(dataset)
    scheduler.assign(dataset.assignment(wanted=ALL, wanted_version=1))
    with running_executor(scheduler) as executor:
        scheduler.wait_full(dataset.manifest.block_count)
        scheduler.epoch, scheduler.complete = 2, False
        scheduler.assign()
        scheduler.wait(
            lambda: (scheduler.last().epoch_seen, scheduler.last().assignment_version) == (2, 2), "the epoch"
        )
        client = executor.connect()
        assert client.answer is not None and client.answer.status == HelloStatus.OK
        assert scheduler.last().cleared_version == 0
        client.close()
        scheduler.complete = True
        scheduler.assign()
        scheduler.wait(lambda: scheduler.last().cleared_version == 3, "the removal to be cleared")
        refused = executor.connect()
        assert refused.answer is not None and refused.answer.status == HelloStatus.DATASET
        refused.close()

"""A disk that does not answer holds up nobody but those who want what only it has."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gevent
import pytest

from stoker.executor.block import BlockName
from stoker.executor.core.filling import FILLER_JOBS_MAX
from stoker.executor.datasets import DatasetView
from stoker.executor.disk import open_directory
from stoker.executor.disk_calls import DiskCalls
from stoker.executor.disk_tier import FILE_CALLS_MAX, PROBE_INTERVAL_MS, DiskTier
from stoker.executor.entries import DISK_READS_MAX
from stoker.executor.fillers import DISK_JOBS_MAX, Fillers
from stoker.executor.fills import PREPARING_MAX
from stoker.executor.holdings import Waiter
from stoker.executor.messages import Assignment, DiskReport
from stoker.executor.store import MemTier
from stoker.executor.wire import Failure
from support.block_disks import BOOT, HangingDisk, hung
from support.data_servers import CLUSTER, LAUNCH
from support.disk_files import DATA, Caller, Files
from support.executors import FakeScheduler, TestDataset, check_all, make_files, running_executor
from support.fill_stage import MIB, Outbox, Stage
from support.greenlets import wait_until
from support.waiting import DEADLINE_S

STUCK_MS = 300
ALL = ((True, ""),)


class HeldCalls(DiskCalls):
    """Calls of a disk that answers only while `answers` is set."""

    def __init__(self, calls_max: int) -> None:
        super().__init__(calls_max, stuck_ms=STUCK_MS)
        self.answers = threading.Event()
        self.answers.set()
        self.asked = 0
        self.under_way = 0
        self.most = 0

    def run(self, work: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        self.asked += 1
        return super().run(self._late, work, arguments, **options)

    def _late(self, work: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        assert self.answers.wait(DEADLINE_S)
        self.under_way -= 1
        return work(*arguments)


@pytest.fixture
def calls() -> Iterator[HeldCalls]:
    made = HeldCalls(DISK_READS_MAX)
    yield made
    made.answers.set()


@pytest.fixture
def files(tmp_path: Path, calls: HeldCalls) -> Files:
    return Files(tmp_path, calls=calls, patience_ms=STUCK_MS // 2)


# --- the data server


def test_what_is_in_the_page_cache_costs_no_thread(files: Files, calls: HeldCalls) -> None:
    files.put(1)
    caller = Caller(files)
    for _ in range(3):
        caller.ask(1)
        assert caller.take() == (0, bytes([1]) * DATA)
    assert calls.asked == 1, "to open the file"
    caller.close()


def test_while_the_disk_hangs_what_is_in_memory_is_read_and_the_others_are_told(
    files: Files, calls: HeldCalls
) -> None:
    cached, unopened = files.put(1), files.put(2)
    assert cached.open()
    fd = MemTier(CLUSTER).create(BlockName(1, 1, 3), DATA)
    os.pwrite(fd, b"m" * DATA, 0)
    files.shelf.put(files.dataset, 3, BlockName(1, 1, 3), fd, DATA).full_from = 1
    first, second = Caller(files), Caller(files)
    calls.answers.clear()
    first.ask(2)
    wait_until(lambda: calls.under_way > 0, "the disk to be asked")
    for block, value in ((3, b"m"), (1, b"\1")):
        second.ask(block)
        assert second.take() == (0, value * DATA)
    assert not first.greenlet.dead and unopened.fd < 0
    failed, _ = files_answer(files, first)
    assert failed == 1
    wait_until(lambda: calls.is_stuck)
    asked = calls.under_way
    second.ask(1)
    failed, _ = second.take()
    assert failed == 1 and calls.under_way == asked, "a disk that is stuck is not even asked what is cached"
    calls.answers.set()
    wait_until(
        lambda: not calls.is_stuck and files.open_count() == 1, "what was opened too late to be closed"
    )
    for block in (1, 2):
        second.ask(block)
        assert second.take() == (0, bytes([block]) * DATA)
    assert not files.broken
    first.close()
    second.close()


def files_answer(files: Files, caller: Caller) -> tuple[int, bytes]:
    """Answer the keeper's part: the block is where it was."""
    (message,) = wait_until(lambda: files.wants)
    files.misses.take_have(
        {"want": message["want"], "places": [message["items"][0][0]], "scratch": [], "failed": []}, []
    )
    files.wants.clear()
    return caller.take()


def test_no_more_threads_wait_for_a_disk_than_may(files: Files, calls: HeldCalls) -> None:
    entries = [files.put(number) for number in range(1, 3 * DISK_READS_MAX)]
    calls.answers.clear()
    opening = [gevent.spawn(entry.open) for entry in entries]
    wait_until(lambda: all(greenlet.ready() for greenlet in opening))
    assert not any(greenlet.value for greenlet in opening) and not files.broken
    assert calls.most == DISK_READS_MAX
    calls.answers.set()
    wait_until(lambda: not calls.is_stuck and files.open_count() == 0)
    assert all(entry.open() for entry in entries)


def test_a_place_that_was_never_here_fails_its_caller_alone(files: Files) -> None:
    files.put(1)
    caller = Caller(files)
    caller.ask(2)
    (message,) = wait_until(lambda: files.wants)
    files.misses.take_have({"want": message["want"], "places": [77], "scratch": [], "failed": []}, [])
    failed, payload = caller.take()
    assert failed == 1 and b"the block is not here" in payload
    caller.ask(1)
    assert caller.take() == (0, bytes([1]) * DATA)
    caller.close()


def test_calls_need_no_thread_that_cannot_be_had() -> None:
    """Threads are made before anything is asked for; a process of its own, since its room is taken from it."""
    code = """
import resource
import threading
from stoker.executor.disk_calls import DiskCalls
threading.stack_size(2**26)
calls = DiskCalls(2)
with open("/proc/self/statm") as file:
    used_bytes = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used_bytes + 2**20, used_bytes + 2**20))
assert calls.run(lambda: 7) == 7
assert not calls.is_stuck
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=DEADLINE_S)


# --- the keeper


class HungStage(Stage):
    """The keeper's part on a disk that hangs when it is told to."""

    def __init__(self, root: Path) -> None:
        data = root / "data"
        data.mkdir()
        for number in range(8):
            (data / f"{number}").write_bytes(random.Random(number).randbytes(400_000))
        self.lock = str(root / "lock")
        self.ssd = DiskTier(
            str(root / "disk"),
            CLUSTER,
            open_directory(
                str(root / "disk"), CLUSTER, disk=HangingDisk(self.lock), boot_id=BOOT, asked_bytes=2**30
            ),
            disk=HangingDisk(self.lock),
            file_calls=DiskCalls(FILE_CALLS_MAX, stuck_ms=STUCK_MS),
            step_calls=DiskCalls(1, stuck_ms=STUCK_MS),
            spawn=gevent.spawn,
            now_ms=lambda: self.now_ms,
        )
        super().__init__(TestDataset(str(data)), ssd=self.ssd)

    def tick(self) -> None:
        self.now_ms += PROBE_INTERVAL_MS
        self.fills.tick()


@pytest.fixture
def stage(tmp_path: Path) -> HungStage:
    return HungStage(tmp_path)


def test_a_file_that_is_being_made_waits_and_nobody_hears_of_it_before(stage: HungStage) -> None:
    with hung(stage.lock):
        block = stage.block(0)
        stage.fills.request(block, 1, [(0, 64)])
        stage.fills.pump()
        gevent.sleep(0)
        assert not stage.server.of("block") and not stage.jobs() and not block.is_leaving
    wait_until(lambda: stage.jobs())
    assert [told["holding"] for told in stage.server.of("block")] == [block.holding]


def test_a_disk_that_is_stuck_is_told_of_and_nothing_is_begun_with_it(stage: HungStage) -> None:
    block = stage.block(0)
    wait_until(lambda: stage.server.of("block"))
    with hung(stage.lock):
        stage.tick()  # the probe
        wait_until(lambda: stage.ssd.is_stuck)
        waiter = Waiter([(0, 64)], 1)
        block.waiters.add(waiter)
        stage.fills.request(block, 1, [(0, 64)])
        stage.tick()
        assert stage.ssd.last_error == "the disk does not answer" and stage.ssd.error_count == 1
        assert "does not answer" in waiter.lost and waiter.done.is_set()
        assert stage.ssd.create_file(BlockName(*stage.view.key, 1), 1000) is None
        assert not stage.jobs() and not block.is_leaving
        stage.tick()
        assert stage.ssd.error_count == 1, "told once"
    wait_until(lambda: not stage.ssd.is_stuck)
    stage.tick()
    assert len(stage.jobs()) == 1


def test_what_is_noted_while_the_disk_hangs_is_noted_in_order_and_then_committed(stage: HungStage) -> None:
    committing = gevent.spawn(stage.ssd.run)
    stage.view.mine_set = {0}
    stage.view.todo.append(0)
    stage.fills.pump()
    (job,) = wait_until(lambda: stage.jobs())
    (block,) = stage.holdings.kept()
    with hung(stage.lock):
        block.file.mark_valid([(0, 64)])
        stage.filled(job, [[0, block.layout.page_count]])
        stage.done(job)
        assert block.is_sealing and not block.is_full
    wait_until(lambda: block.is_full)
    assert [told["holding"] for told in stage.server.of("full")] == [block.holding]
    committing.kill()


def test_files_that_a_disk_does_not_make_hold_up_no_memory(tmp_path: Path) -> None:
    stage = HungStage(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a").write_bytes(random.Random(99).randbytes(400_000))
    other = TestDataset(str(tmp_path / "other"), dataset_id=2, name="other")
    memory = DatasetView(other.assignment(tier="mem"))
    memory.take(memory.assignment, Assignment(1, 1, 1, True, (), ()), 1)
    memory.manifests[1] = (other.manifest, "somewhere")
    memory.manifest = other.manifest
    stage.fills._datasets[memory.key] = memory
    with hung(stage.lock):
        stage.view.mine_set = set(range(PREPARING_MAX + 1))
        stage.view.todo.extend(range(PREPARING_MAX + 1))
        stage.fills.pump()
        gevent.sleep(0)
        assert not stage.jobs() and len(stage.holdings.of_dataset(stage.view.key)) == PREPARING_MAX
        memory.mine_set = {0}
        memory.todo.append(0)
        stage.fills.pump()
        assert [job["id"] for job in stage.jobs()] == [2]


def test_a_disk_that_hangs_leaves_places_in_the_fillers() -> None:
    fillers = Fillers(lambda: SimpleNamespace(outbox=Outbox()), 2, fill_job_bytes=1)  # type: ignore[arg-type, return-value]
    for number in range(2 * DISK_JOBS_MAX):
        link = fillers.free(FILLER_JOBS_MAX, disk_jobs_max=DISK_JOBS_MAX)
        assert link is not None
        link.begin(SimpleNamespace(number=number, block=SimpleNamespace(is_on_disk=True)))  # type: ignore[arg-type]
    assert fillers.free(FILLER_JOBS_MAX, disk_jobs_max=DISK_JOBS_MAX) is None
    assert fillers.free(FILLER_JOBS_MAX) is not None


# --- the processes


def test_memory_is_served_and_heartbeats_go_on_while_the_disk_hangs(
    tmp_path: Path, scheduler: FakeScheduler
) -> None:
    kept = make_files(tmp_path / "kept", 4, seed=1)
    stored = TestDataset(
        str(make_files(tmp_path / "stored", 10, seed=2, big=4 * MIB).root), dataset_id=2, name="stored"
    )
    scheduler.serve(kept)
    scheduler.serve(stored)
    lock = str(tmp_path / "lock")
    on = {
        "STOKER_DISK_BYTES": str(256 * MIB),
        "STOKER_DISK_DIR": str(tmp_path / "disk"),
        "TEST_DISK_HANGS": lock,
    }
    Path(lock).touch()
    with running_executor(scheduler, **on) as executor:
        scheduler.assign(
            kept.assignment(wanted=ALL, wanted_version=1),
            stored.assignment(wanted=((True, "a"),), wanted_version=1, tier="ssd"),
        )
        scheduler.wait_full(kept.manifest.block_count)
        memory = executor.wait_dataset()
        disk = executor.wait_dataset(dataset_id=2)
        with hung(lock):
            # A miss of the SSD tier is read through, once the file did not come.
            check_all(disk, stored)
            scheduler.wait(lambda: report(scheduler).is_stuck, "the leader to hear of it")
            sequence = scheduler.last().sequence
            check_all(memory, kept)
            failed, _ = disk.read_failing((999, 0, 10))
            assert failed[0][0] == Failure.OUT_OF_RANGE, "it is answered"
            scheduler.wait(lambda: scheduler.last().sequence > sequence + 1, "heartbeats to go on")
        scheduler.wait(lambda: not report(scheduler).is_stuck, "the leader to hear that it answers again")
        scheduler.assign(
            kept.assignment(wanted=ALL, wanted_version=1),
            stored.assignment(wanted=ALL, wanted_version=2, tier="ssd"),
        )
        scheduler.wait_full(stored.manifest.block_count, dataset_id=2)
        check_all(disk, stored)
        memory.close()
        disk.close()


def report(scheduler: FakeScheduler) -> DiskReport:
    found = scheduler.last(LAUNCH).disk
    assert found is not None
    return found

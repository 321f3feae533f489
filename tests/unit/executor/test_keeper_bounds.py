"""A tier that is full: what stays, what goes, and never more memory than there is."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stoker.executor.machine import SCRATCH_BYTES_MIN, processes_bytes
from support import block_reader
from support.data_servers import DEADLINE_S, LAUNCH
from support.executors import (
    ALL,
    MIB,
    FakeScheduler,
    RunningExecutor,
    check_all,
    make_files,
    running_executor,
)
from support.waiting import wait_until


def test_a_full_tier_serves_misses_without_keeping_them(tmp_path: Path, scheduler: FakeScheduler) -> None:
    """Policy keep: what is there stays, what is new is read through; a large read is streamed through a small reserve."""
    dataset = make_files(tmp_path, 40, big=40 * MIB)
    scheduler.serve(dataset)
    scheduler.assign(dataset.assignment(policy="keep"))
    with running_executor(scheduler, mem_bytes=24 * MIB) as executor:
        client, other = executor.wait_dataset(), executor.connect(tcp=True)
        for _ in range(2):
            check_all(client, dataset)
            check_all(other, dataset)
        small = [r for row in dataset.rows if row.size < 300_000 for r in dataset.ranges(row.path)]
        expected = b"".join(dataset.data(row.path) for row in dataset.rows if row.size < 300_000)
        assert client.read(*small) == expected
        scheduler.wait(lambda: scheduler.last().used_bytes > 0, "what is kept to be told")
        assert all(
            b.used_bytes + b.lent_bytes <= b.capacity_bytes == 24 * MIB for b in scheduler.heartbeats[LAUNCH]
        )
        client.close()
        other.close()


def test_what_does_not_fit_is_counted_and_fits_later(tmp_path: Path, scheduler: FakeScheduler) -> None:
    dataset = make_files(tmp_path, 20, big=30 * MIB)
    scheduler.serve(dataset)
    scheduler.assign(dataset.assignment(wanted=ALL, wanted_version=1))
    with running_executor(scheduler, mem_bytes=24 * MIB):
        scheduler.wait(
            lambda: (
                (r := scheduler.residency()) is not None
                and r.unfit_blocks > 0
                and r.wanted_full + r.unfit_blocks == r.wanted_blocks == dataset.manifest.block_count
            ),
            "some fit, some do not",
        )
        beat = scheduler.last()
        assert beat.capacity_bytes - MIB - 65536 < beat.used_bytes <= beat.capacity_bytes
        scheduler.assign(dataset.assignment(wanted=((True, "a"),), wanted_version=2))
        scheduler.wait(
            lambda: (
                (r := scheduler.residency()) is not None
                and r.wanted_version == 2
                and r.unfit_blocks == 0
                and r.wanted_full == r.wanted_blocks > 0
            ),
            "what is wanted now replaces what is not",
        )


@pytest.mark.parametrize("policy", ["lru", "lfu"])
def test_eviction_under_eight_readers_never_exceeds_the_tier(
    tmp_path: Path, scheduler: FakeScheduler, policy: str
) -> None:
    """8 processes read at random by descriptor and by socket, at least until a block was asked back of one of them; the tier
    holds less than half of the dataset."""
    data, signs = tmp_path / "data", tmp_path / "signs"
    signs.mkdir()
    dataset = make_files(data, 300, big=20 * MIB)
    assert dataset.manifest.total_bytes > 2 * 24 * MIB
    scheduler.serve(dataset)
    scheduler.assign(dataset.assignment(policy=policy))
    with running_executor(scheduler, mem_bytes=24 * MIB) as executor:
        executor.wait_dataset().close()
        server = executor.children()["server"][0]
        beat = scheduler.last()
        most = 0

        def look() -> None:
            nonlocal most
            most = max(most, shared_bytes(server))

        with reading(executor, data, signs, count=20) as readers:

            def is_evicting() -> bool:
                look()
                ended = [reader for reader in readers if reader.poll() is not None]
                assert not ended, [reader.communicate() for reader in ended]
                return any(signs.glob("dropped-*"))

            wait_until(is_evicting, "a block to be evicted under a reader")
            (signs / "stop").touch()
            wait_until(lambda: look() or all(r.poll() is not None for r in readers), "the readers' end")
            outputs = [reader.communicate()[0] for reader in readers]
        assert all(reader.returncode == 0 for reader in readers), outputs
        beats = scheduler.heartbeats[LAUNCH]
        assert max(b.used_bytes + b.lent_bytes for b in beats) <= beat.capacity_bytes
        assert 0 < most <= 24 * MIB + SCRATCH_BYTES_MIN


@contextlib.contextmanager
def reading(
    executor: RunningExecutor, data: Path, signs: Path, *, count: int
) -> Iterator[list[subprocess.Popen[str]]]:
    """Run 8 reader processes; see block_reader.py."""
    beat = executor.scheduler.last(executor.launch)
    words = [block_reader.__file__, data, beat.socket_path, executor.launch, beat.incarnation]
    readers = [
        subprocess.Popen(
            [sys.executable, *map(str, [*words, seed, count, signs])],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for seed in range(8)
    ]
    try:
        yield readers
    finally:
        for reader in readers:
            with reader:
                reader.kill()


def shared_bytes(pid: int) -> int:
    """Return the memory of the block files that a process has open."""
    total = 0
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            path = f"/proc/{pid}/fd/{name}"
            try:
                if "memfd:stoker-" in os.readlink(path):
                    total += os.stat(path).st_blocks * 512
            except FileNotFoundError:
                continue
    except FileNotFoundError:
        return 0
    return total


def test_no_more_memory_is_used_than_mesos_gave(scheduler: FakeScheduler) -> None:
    with running_executor(scheduler, mem_bytes=512 * MIB, TEST_MESOS_MEM_MB="292"):
        assert 0 < scheduler.last().capacity_bytes <= 292 * MIB - processes_bytes(1)
    broke = RunningExecutor(scheduler, launch=9, mem_bytes=512 * MIB, TEST_MESOS_MEM_MB="64")
    assert broke.process.wait(DEADLINE_S) == 1
    assert "memory" in broke.wait_status("TASK_FAILED")
    broke.close()

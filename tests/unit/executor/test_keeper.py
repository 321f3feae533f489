"""Whole executors that fill, serve and free: keeper, data server and filler as real processes, real files."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path

from stoker.executor.wire import DescriptorStatus, Failure, HelloStatus, Op, ReadFlag, Status
from support.executors import ALL, MIB, FakeScheduler, check_all, make_files, running_executor
from support.waiting import wait_until

# --- filling and reading


def test_misses_are_read_through_into_blocks_that_stay(tmp_path: Path, scheduler: FakeScheduler) -> None:
    dataset = make_files(tmp_path, big=9_000_001)
    scheduler.serve(dataset)
    scheduler.assign(dataset.assignment())
    with running_executor(scheduler) as executor:
        client, remote = executor.wait_dataset(), executor.connect(tcp=True)
        check_all(client, dataset)
        check_all(remote, dataset)
        scheduler.wait(
            lambda: (
                (scheduler.residency() or scheduler.last())
                and scheduler.residency() is not None
                and scheduler.residency().cached_bytes == dataset.manifest.total_bytes
            ),
            "all is cached",
        )
        residency = scheduler.residency()
        assert residency is not None and residency.filled_bytes == dataset.manifest.total_bytes
        assert residency.wanted_blocks == 0
        assert client.read_failing((10**6, 0, 5))[0][0][0] == Failure.OUT_OF_RANGE
        client.close()
        remote.close()


def test_wanted_blocks_are_filled_sealed_and_reported(tmp_path: Path, scheduler: FakeScheduler) -> None:
    dataset = make_files(tmp_path, big=5 * MIB)
    scheduler.serve(dataset)
    scheduler.assign(dataset.assignment(wanted=ALL, wanted_version=3))
    with running_executor(scheduler) as executor:
        blocks = dataset.manifest.block_count
        told = scheduler.wait_full(blocks)
        assert (told.wanted_version, told.wanted_blocks, told.wanted_full, told.wanted_settled) == (
            3,
            blocks,
            blocks,
            blocks,
        )
        assert (
            told.wanted_bytes == told.wanted_cached_bytes == told.cached_bytes == dataset.manifest.total_bytes
        )
        assert told.wanted_files == told.wanted_cached_files == len(dataset.rows)
        assert (told.unfit_blocks, told.failed_count) == (0, 0)
        client = executor.connect()
        statuses, fds = client.descriptors(*range(min(blocks, 64)))
        assert set(statuses) == {DescriptorStatus.PASSED}
        for block, fd in enumerate(fds):
            size = dataset.manifest.block_length(block)
            status, _, data = client.request(Op.READ, [(block, 0, size)], flags=ReadFlag.CHECK)
            assert status == Status.OK and data == os.pread(fd, size, 0)
            os.close(fd)
        check_all(client, dataset)
        assert told.filled_bytes == dataset.manifest.total_bytes  # each byte was read once
        client.close()


def test_concurrent_misses_of_one_range_are_one_read(tmp_path: Path, scheduler: FakeScheduler) -> None:
    dataset = make_files(tmp_path, 0, big=12 * MIB)
    scheduler.serve(dataset)
    scheduler.assign(dataset.assignment())
    with running_executor(scheduler) as executor:
        executor.wait_dataset().close()
        expected = dataset.data("big.bin")
        wrong: list[int] = []

        def read(number: int) -> None:
            client = executor.connect(tcp=bool(number % 2))
            data = client.read(*dataset.ranges("big.bin"))
            if data != expected:
                wrong.append(number)
            client.close()

        threads = [threading.Thread(target=read, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        scheduler.wait(
            lambda: (r := scheduler.residency()) is not None and r.cached_bytes == 12 * MIB, "cached"
        )
        assert scheduler.residency().filled_bytes == 12 * MIB


def test_readers_see_right_bytes_while_the_dataset_loads(tmp_path: Path, scheduler: FakeScheduler) -> None:
    dataset = make_files(tmp_path, 200, big=8 * MIB)
    scheduler.serve(dataset)
    scheduler.assign(dataset.assignment())
    with running_executor(scheduler) as executor:
        executor.wait_dataset().close()
        wrong: list[str] = []

        def read(seed: int) -> None:
            chance = random.Random(seed)
            client = executor.connect(tcp=bool(seed % 2))
            for _ in range(60):
                row = chance.choice(dataset.rows)
                if not row.size:
                    continue
                start = chance.randrange(row.size)
                stop = chance.randrange(start, row.size) + 1
                if client.read(*dataset.ranges(row.path, start, stop)) != dataset.data(row.path)[start:stop]:
                    wrong.append(row.path)
            client.close()

        threads = [threading.Thread(target=read, args=(n,)) for n in range(6)]
        for thread in threads:
            thread.start()
        scheduler.assign(dataset.assignment(wanted=ALL, wanted_version=1))
        for thread in threads:
            thread.join()
        assert not wrong
        scheduler.wait_full(dataset.manifest.block_count)


# --- freeing


def test_free_drops_what_is_excluded_and_a_later_miss_may_be_kept(
    tmp_path: Path, scheduler: FakeScheduler
) -> None:
    dataset = make_files(tmp_path, 80)
    scheduler.serve(dataset)
    scheduler.assign(dataset.assignment(wanted=ALL, wanted_version=1))
    with running_executor(scheduler) as executor:
        scheduler.wait_full(dataset.manifest.block_count)
        scheduler.assign(dataset.assignment(wanted=(*ALL, (False, "")), wanted_version=2))
        scheduler.wait(lambda: scheduler.last().used_bytes == scheduler.last().lent_bytes == 0, "all is free")
        assert scheduler.wait_full(0).wanted_blocks == 0
        client = executor.connect()
        check_all(client, dataset)
        scheduler.assign(
            dataset.assignment(wanted=(*ALL, (False, "")), wanted_version=2)
        )  # the same wish again
        scheduler.wait(lambda: scheduler.last().assignment_version == 3, "the assignment")
        assert scheduler.last().used_bytes > 0
        client.close()


def test_a_lent_block_counts_until_its_reader_returns_it(tmp_path: Path, scheduler: FakeScheduler) -> None:
    dataset = make_files(tmp_path)
    scheduler.serve(dataset)
    scheduler.assign(dataset.assignment(wanted=ALL, wanted_version=1))
    with running_executor(scheduler) as executor:
        scheduler.wait_full(dataset.manifest.block_count)
        client = executor.connect()
        _, fds = client.descriptors(0)
        scheduler.assign(dataset.assignment(wanted=(*ALL, (False, "")), wanted_version=2))
        assert client.wait_drop() == [0]
        scheduler.wait(lambda: scheduler.last().used_bytes == 0 and scheduler.last().lent_bytes > 0, "lent")
        os.close(fds[0])
        client.give_back(0)
        scheduler.wait(lambda: scheduler.last().lent_bytes == 0, "returned")
        client.close()


def test_a_removed_dataset_is_freed_and_refused(tmp_path: Path, scheduler: FakeScheduler) -> None:
    dataset = make_files(tmp_path)
    scheduler.serve(dataset)
    scheduler.assign(dataset.assignment(wanted=ALL, wanted_version=1))
    with running_executor(scheduler) as executor:
        scheduler.wait_full(dataset.manifest.block_count)
        client = executor.connect()
        scheduler.complete = False  # a new leader that has not heard everybody: nothing is freed
        scheduler.assign()
        scheduler.wait(lambda: scheduler.last().assignment_version == 2, "the assignment")
        assert scheduler.last().used_bytes > 0
        check_all(client, dataset)
        scheduler.complete = True
        scheduler.assign()
        scheduler.wait(lambda: scheduler.last().used_bytes == 0, "all is free")
        assert client.at_end()
        client.close()
        again = executor.connect()
        assert again.answer is not None and again.answer.status == HelloStatus.DATASET
        again.close()
        wait_until(lambda: not os.listdir(os.path.join(executor.sandbox, "manifests")), "manifests are gone")

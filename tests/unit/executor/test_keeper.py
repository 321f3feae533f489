"""Whole executors: keeper, data server and filler as real processes, real files, a scheduler that the test plays."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from stoker.executor.machine import SCRATCH_BYTES_MIN
from stoker.executor.wire import DescriptorStatus, Failure, HelloStatus, Op, ReadFlag, Status
from support.executors import (
    DEADLINE_S,
    LAUNCH,
    FakeScheduler,
    RunningExecutor,
    TestDataset,
    WireClient,
    running_executor,
    running_scheduler,
)

MIB = 2**20
ALL = ((True, ""),)


@pytest.fixture
def scheduler() -> Iterator[FakeScheduler]:
    with running_scheduler() as running:
        yield running


def make_files(root: Path, count: int = 60, *, seed: int = 1, big: int = 0) -> TestDataset:
    """Write `count` small files in two directories, and one of `big` bytes; return the dataset."""
    chance = random.Random(seed)
    for number in range(count):
        path = root / ("a" if number % 2 else "b") / f"{number:04}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(chance.randbytes(chance.randrange(200_000)))
    if big:
        (root / "big.bin").write_bytes(chance.randbytes(big))
    return TestDataset(str(root))


def check_all(client: WireClient, dataset: TestDataset) -> None:
    for row in dataset.rows:
        if row.size:
            assert client.read(*dataset.ranges(row.path)) == dataset.data(row.path), row.path


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"in vain: {what}"
        time.sleep(0.02)


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


def test_an_old_leader_is_not_listened_to(tmp_path: Path, scheduler: FakeScheduler) -> None:
    dataset = make_files(tmp_path)
    scheduler.serve(dataset)
    scheduler.epoch = 5
    scheduler.assign(dataset.assignment(wanted=ALL, wanted_version=1))
    with running_executor(scheduler) as executor:
        scheduler.wait_full(dataset.manifest.block_count)
        assert scheduler.last().epoch_seen == 5
        scheduler.epoch, scheduler.status = 4, "stale"
        scheduler.assign()
        count = len(scheduler.heartbeats[LAUNCH])
        scheduler.wait(lambda: len(scheduler.heartbeats[LAUNCH]) > count + 2, "more heartbeats")
        assert scheduler.last().epoch_seen == 5 and scheduler.last().used_bytes > 0
        assert executor.process.poll() is None
        scheduler.epoch, scheduler.status = 6, "ok"
        scheduler.assign()
        scheduler.wait(
            lambda: scheduler.last().used_bytes == 0 and scheduler.last().epoch_seen == 6, "obeyed"
        )


# --- bounds


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
        beat = scheduler.last()
        assert 0 < beat.used_bytes + beat.lent_bytes <= beat.capacity_bytes == 24 * MIB
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
    """8 processes read at random by descriptor and by socket; the tier holds a third of the dataset."""
    dataset = make_files(tmp_path, 300, big=20 * MIB)
    scheduler.serve(dataset)
    scheduler.assign(dataset.assignment(policy=policy))
    with running_executor(scheduler, mem_bytes=24 * MIB) as executor:
        executor.wait_dataset().close()
        beat = scheduler.last()
        script = Path(__file__).parents[2] / "support" / "block_reader.py"
        readers = [
            subprocess.Popen(
                [
                    sys.executable,
                    str(script),
                    str(tmp_path),
                    beat.socket_path,
                    str(executor.launch),
                    str(beat.incarnation),
                    str(seed),
                    "60",
                ],
                stdout=subprocess.PIPE,
                text=True,
            )
            for seed in range(8)
        ]
        server = executor.children()["server"][0]
        most = 0
        while any(reader.poll() is None for reader in readers):
            most = max(most, shared_bytes(server))
            time.sleep(0.02)
        outputs = [reader.communicate()[0] for reader in readers]
        assert all(reader.returncode == 0 for reader in readers), outputs
        assert all("read 60" in output for output in outputs)
        assert sum(int(output.split("dropped")[1]) for output in outputs) > 0, (
            "nothing was evicted under a reader"
        )
        beats = scheduler.heartbeats[LAUNCH]
        assert max(b.used_bytes + b.lent_bytes for b in beats) <= beat.capacity_bytes
        assert 0 < most <= 24 * MIB + SCRATCH_BYTES_MIN


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


# --- more than one executor


def test_replicas_are_copied_from_the_first_home(tmp_path: Path, scheduler: FakeScheduler) -> None:
    dataset = make_files(tmp_path, big=6 * MIB)
    scheduler.serve(dataset)
    groups = dataset.manifest.pg_count
    homes = [[n % 2, 1 - n % 2] for n in range(groups)]
    with (
        running_executor(scheduler, slot=1, launch=1) as first,
        running_executor(scheduler, slot=2, launch=2) as second,
    ):
        scheduler.assign(dataset.assignment(wanted=ALL, wanted_version=1, homes=homes), slots=2)
        blocks = dataset.manifest.block_count
        told = [scheduler.wait_full(blocks, launch=launch) for launch in (1, 2)]
        filled = sum(residency.filled_bytes for residency in told)
        copied = sum(residency.copied_bytes for residency in told)
        total = dataset.manifest.total_bytes
        assert filled == total, "the under store was read once for both"
        assert copied >= total
        for executor in (first, second):
            client = executor.connect()
            check_all(client, dataset)
            client.close()


def test_a_relaunched_first_home_copies_from_the_replica(tmp_path: Path, scheduler: FakeScheduler) -> None:
    dataset = make_files(tmp_path)
    scheduler.serve(dataset)
    homes = [[0, 1]] * dataset.manifest.pg_count
    wanted = dataset.assignment(wanted=ALL, wanted_version=1, homes=homes)
    with (
        running_executor(scheduler, slot=1, launch=1) as first,
        running_executor(scheduler, slot=2, launch=2),
    ):
        scheduler.assign(wanted, slots=2)
        for launch in (1, 2):
            scheduler.wait_full(dataset.manifest.block_count, launch=launch)
        first.process.kill()
        first.process.wait()
        with running_executor(scheduler, slot=1, launch=3) as again:
            scheduler.assign(wanted, slots=2)
            told = scheduler.wait_full(dataset.manifest.block_count, launch=3)
            assert (told.filled_bytes, told.copied_bytes >= dataset.manifest.total_bytes) == (0, True)
            client = again.connect()
            check_all(client, dataset)
            client.close()


def test_a_manifest_that_comes_late_or_wrong_holds_up_readers_but_breaks_nothing(
    tmp_path: Path, scheduler: FakeScheduler
) -> None:
    dataset = make_files(tmp_path, 10)
    other = make_files(tmp_path / "other", 5, seed=9)
    scheduler.assign(dataset.assignment(wanted=ALL, wanted_version=1))
    with running_executor(scheduler) as executor:
        client = executor.wait_dataset()
        wrong = {"HTTP 404": None, "a scheduler gave dataset": other.bundle, "bundle": b"\x05\0\0\0garbage"}
        for reason, body in wrong.items():
            if body is not None:
                scheduler.bundles["set", 1] = body
            failed, _ = client.read_failing(*dataset.ranges("a/0001.bin"))
            assert failed[0][0] == Failure.OVERLOADED and reason in failed[0][1]
        scheduler.serve(dataset)
        scheduler.wait_full(dataset.manifest.block_count)
        check_all(client, dataset)
        client.close()
        stranger = executor.connect(dataset_version=9)  # of a version that nobody has any more
        failed, _ = stranger.read_failing((10**6, 0, 1))
        assert failed[0][0] == Failure.CHANGED and "version 9" in failed[0][1]
        stranger.close()


def test_a_damaged_block_is_dropped_and_fetched_again(tmp_path: Path, scheduler: FakeScheduler) -> None:
    dataset = make_files(tmp_path, 20)
    scheduler.serve(dataset)
    scheduler.assign(dataset.assignment())
    with running_executor(scheduler) as executor:
        client = executor.wait_dataset()
        path = "b/0002.bin"
        client.read(*dataset.ranges(path))  # a block that is not full is not sealed: memory can still go bad
        [(block, start, length), *_] = dataset.ranges(path)
        damage(executor.children()["server"][0], block, start + length // 2)
        assert client.read((block, start, length)) != dataset.data(path)[:length]
        failed, _ = client.read_failing((block, start, length), flags=ReadFlag.CHECK)
        assert failed[0][0] == Failure.CORRUPT
        wait_until(
            lambda: client.read((block, start, length)) == dataset.data(path)[:length], "fetched again"
        )
        client.close()


def damage(pid: int, block: int, offset: int) -> None:
    """Flip a byte of the open block of a data server."""
    for name in os.listdir(f"/proc/{pid}/fd"):
        link = f"/proc/{pid}/fd/{name}"
        if f"memfd:stoker-1.1.{block} " in os.readlink(link):
            with open(link, "r+b", buffering=0) as file:
                file.seek(offset)
                byte = file.read(1)
                file.seek(offset)
                file.write(bytes([byte[0] ^ 255]))
            return
    raise AssertionError("no such block is open")


def test_an_executor_that_is_no_home_keeps_nothing_and_takes_what_homes_hold(
    tmp_path: Path, scheduler: FakeScheduler
) -> None:
    dataset = make_files(tmp_path, big=6 * MIB)
    scheduler.serve(dataset)
    homes = [[0]] * dataset.manifest.pg_count
    with (
        running_executor(scheduler, slot=1, launch=1),
        running_executor(scheduler, slot=2, launch=2) as second,
    ):
        scheduler.assign(dataset.assignment(homes=homes), slots=2)
        client = second.wait_dataset()
        check_all(client, dataset)
        size = dataset.manifest.total_bytes

        def read_by_second() -> tuple[int, bool]:
            """Return (bytes from the under store, whether all was copied too)."""
            told = scheduler.residency(launch=2)
            return (told.filled_bytes, told.copied_bytes >= size) if told else (0, False)

        scheduler.wait(
            lambda: read_by_second() == (size, False) and scheduler.last(2).used_bytes == 0, "read through"
        )
        scheduler.assign(dataset.assignment(homes=homes, wanted=ALL, wanted_version=1), slots=2)
        scheduler.wait_full(dataset.manifest.block_count, launch=1)
        check_all(client, dataset)
        scheduler.wait(
            lambda: read_by_second() == (size, True) and scheduler.last(2).used_bytes == 0, "copied"
        )
        client.close()


def test_the_only_reachable_executor_reads_the_under_store_itself(
    tmp_path: Path, scheduler: FakeScheduler
) -> None:
    dataset = make_files(tmp_path)
    scheduler.serve(dataset)
    homes = [[0]] * dataset.manifest.pg_count
    with (
        running_executor(scheduler, slot=1, launch=1) as first,
        running_executor(scheduler, slot=2, launch=2) as second,
    ):
        scheduler.assign(dataset.assignment(homes=homes), slots=2)
        client = second.wait_dataset()
        first.process.kill()
        first.process.wait()
        check_all(client, dataset)  # the home's port refuses
        client.close()


# --- files that are not what they were


def test_a_changed_file_fails_by_name_and_all_else_is_served(
    tmp_path: Path, scheduler: FakeScheduler
) -> None:
    dataset = make_files(tmp_path, 40)
    kept = dataset.data("b/0002.bin")
    scheduler.serve(dataset)
    scheduler.assign(dataset.assignment())
    with running_executor(scheduler) as executor:
        client = executor.wait_dataset()
        assert client.read(*dataset.ranges("b/0002.bin")) == kept
        (tmp_path / "b" / "0002.bin").write_bytes(b"new")
        (tmp_path / "b" / "0004.bin").write_bytes(b"other bytes")
        (tmp_path / "a" / "0001.bin").unlink()
        assert client.read(*dataset.ranges("b/0002.bin")) == kept  # its version is still served
        ranges = [r for path in ("b/0006.bin", "b/0004.bin", "a/0001.bin") for r in dataset.ranges(path)]
        failed, data = client.read_failing(*ranges)
        assert data == dataset.data("b/0006.bin")
        codes = {code for code, _ in failed.values()}
        assert codes <= {Failure.CHANGED, Failure.UNDER_STORE} and Failure.CHANGED in codes
        assert any("b/0004.bin" in text for _, text in failed.values())
        scheduler.assign(dataset.assignment(wanted=ALL, wanted_version=1))
        scheduler.wait(
            lambda: (
                (r := scheduler.residency()) is not None
                and r.wanted_version == 1
                and r.wanted_settled == r.wanted_blocks > 0
            ),
            "everything is settled",
        )
        told = scheduler.residency()
        assert told.failed_count == 2
        assert {f.path for f in told.failures} == {"b/0004.bin", "a/0001.bin"}
        assert told.wanted_cached_files == len(dataset.rows) - 2
        assert 0 < told.wanted_full < told.wanted_blocks
        client.close()


def test_a_refreshed_dataset_serves_both_versions_without_a_mixture(
    tmp_path: Path, scheduler: FakeScheduler
) -> None:
    old = make_files(tmp_path, 40)
    before = {row.path: old.data(row.path) for row in old.rows}
    scheduler.serve(old)
    scheduler.assign(old.assignment())
    with running_executor(scheduler) as executor:
        early = executor.wait_dataset()
        assert early.read(*old.ranges("b/0002.bin")) == before["b/0002.bin"]
        (tmp_path / "b" / "0002.bin").write_bytes(b"two" * 1000)  # cached before it changed
        (tmp_path / "b" / "0004.bin").write_bytes(b"four" * 1000)  # not cached
        (tmp_path / "a" / "0001.bin").unlink()
        new = TestDataset(str(tmp_path), version=2, previous=old.manifest)
        scheduler.serve(new)
        scheduler.assign(new.assignment(wanted=ALL, wanted_version=1))
        scheduler.wait_full(new.manifest.block_count)
        late = executor.connect(dataset_version=2)
        check_all(late, new)
        statuses, fds = late.descriptors(*range(new.manifest.block_count))
        assert set(statuses) == {DescriptorStatus.PASSED}
        for fd in fds:
            os.close(fd)
        assert early.read(*old.ranges("b/0002.bin")) == before["b/0002.bin"]
        for path in ("b/0004.bin", "a/0001.bin"):
            failed, data = early.read_failing(*old.ranges(path))
            assert failed and not data, "zeros of a hole must not be served"
        unchanged = [row for row in new.rows if before.get(row.path) == new.data(row.path) and row.size]
        for row in unchanged:
            assert early.read(*old.ranges(row.path)) == before[row.path]
        early.close()
        late.close()


def test_an_under_store_that_comes_back_is_tried_again(tmp_path: Path, scheduler: FakeScheduler) -> None:
    dataset = make_files(tmp_path / "data", 10)
    scheduler.serve(dataset)
    os.rename(tmp_path / "data", tmp_path / "away")
    os.symlink("data", tmp_path / "data")  # "too many levels of symbolic links": not that the files are gone
    scheduler.assign(dataset.assignment(wanted=ALL, wanted_version=1))
    with running_executor(scheduler):
        scheduler.wait(lambda: (r := scheduler.residency()) is not None and r.failed_count > 0, "failures")
        assert {f.code for f in scheduler.residency().failures} == {Failure.UNDER_STORE}
        os.unlink(tmp_path / "data")
        os.rename(tmp_path / "away", tmp_path / "data")
        told = scheduler.wait_full(dataset.manifest.block_count)
        assert told.failed_count == 0 and told.failures == ()


# --- the end


def test_kill_and_shutdown_end_it_cleanly(scheduler: FakeScheduler) -> None:
    for launch, word in enumerate(("kill", "shutdown"), 1):
        executor = RunningExecutor(scheduler, launch=launch).wait_running()
        pids = [pid for children in executor.children().values() for pid in children]
        socket_path = scheduler.last(launch).socket_path
        assert os.path.exists(socket_path)
        executor.say(word)
        assert executor.process.wait(DEADLINE_S) == 0
        executor.wait_status("TASK_KILLED")
        assert not any(psutil.pid_exists(pid) for pid in pids)
        assert not os.path.exists(socket_path)
        executor.close()


def test_sigterm_ends_it_cleanly(scheduler: FakeScheduler) -> None:
    executor = RunningExecutor(scheduler).wait_running()
    executor.process.send_signal(signal.SIGTERM)
    assert executor.process.wait(DEADLINE_S) == 0
    executor.wait_status("TASK_KILLED")
    executor.close()


def test_a_launch_without_a_place_ends_itself(scheduler: FakeScheduler) -> None:
    executor = RunningExecutor(scheduler).wait_running()
    scheduler.status = "stale"
    assert executor.process.wait(DEADLINE_S) == 0
    executor.wait_status("TASK_FINISHED")
    executor.close()


@pytest.mark.parametrize("victim", ["server", "filler"])
def test_a_killed_child_ends_all_of_them(tmp_path: Path, scheduler: FakeScheduler, victim: str) -> None:
    executor = RunningExecutor(scheduler).wait_running()
    children = executor.children()
    os.kill(children[victim][0], signal.SIGKILL)
    assert executor.process.wait(DEADLINE_S) == 1
    assert victim in executor.wait_status("TASK_FAILED")
    for pids in children.values():
        for pid in pids:
            wait_until(lambda pid=pid: not is_alive(pid), "the other children end")
    executor.close()


def test_a_killed_keeper_takes_all_along_and_the_next_start_cleans_up(
    tmp_path: Path, scheduler: FakeScheduler
) -> None:
    sockets = str(tmp_path / "sockets")
    executor = RunningExecutor(scheduler, socket_dir=sockets).wait_running()
    children = [pid for pids in executor.children().values() for pid in pids]
    os.kill(executor.children()["server"][0], signal.SIGSTOP)  # so that it cannot clean up
    executor.process.kill()
    executor.process.wait()
    for pid in children:
        wait_until(lambda pid=pid: not is_alive(pid), "the children end")
    assert len(os.listdir(sockets)) == 1
    second = RunningExecutor(scheduler, socket_dir=sockets, launch=8, slot=2).wait_running()
    assert os.listdir(sockets) == [os.path.basename(scheduler.last(8).socket_path)]
    second.close()
    assert os.listdir(sockets) == []
    executor.close()


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_taken_port_fails_the_task_with_the_reason(scheduler: FakeScheduler) -> None:
    first = RunningExecutor(scheduler).wait_running()
    second = RunningExecutor(scheduler, launch=9, STOKER_PORT=str(scheduler.last().port))
    assert second.process.wait(DEADLINE_S) == 1
    assert str(scheduler.last().port) in second.wait_status("TASK_FAILED")
    second.close()
    assert first.close() == 0


def test_no_more_memory_is_used_than_mesos_gave(scheduler: FakeScheduler) -> None:
    with running_executor(scheduler, mem_bytes=512 * MIB, TEST_MESOS_MEM_MB="292"):
        assert scheduler.last().capacity_bytes <= 100 * MIB
    broke = RunningExecutor(scheduler, launch=9, mem_bytes=512 * MIB, TEST_MESOS_MEM_MB="64")
    assert broke.process.wait(DEADLINE_S) == 1
    assert "memory" in broke.wait_status("TASK_FAILED")
    broke.close()


def test_the_scheduler_may_be_away_and_move(tmp_path: Path, scheduler: FakeScheduler) -> None:
    """The first of the list answers nothing; the leader is found, and after a loss everything is told whole."""
    dataset = make_files(tmp_path, 10)
    scheduler.serve(dataset)
    scheduler.assign(dataset.assignment(wanted=ALL, wanted_version=1))
    urls = f"http://127.0.0.1:1,{scheduler.url}"
    with running_executor(scheduler, STOKER_SCHEDULERS=urls):
        scheduler.wait_full(dataset.manifest.block_count)
        assert scheduler.heartbeats[LAUNCH][0].whole
        assert not scheduler.last().whole
        scheduler.held.clear()
        scheduler.want_whole = True
        scheduler.wait(lambda: scheduler.last().whole, "the whole")
        scheduler.want_whole = False
        scheduler.wait_full(dataset.manifest.block_count)

"""Executors with an SSD tier, as real processes on real files: what a restart on the same directory finds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gevent
import pytest

from stoker.executor.loans import Shelf
from stoker.executor.messages import DiskReport, Heartbeat
from stoker.executor.wire import Caller, DescriptorStatus, HelloStatus, Op, ReadFlag, Status
from support.data_servers import CLUSTER, DEADLINE_S, LAUNCH
from support.executors import (
    ALL,
    MIB,
    FakeScheduler,
    RunningExecutor,
    TestDataset,
    check_all,
    make_files,
    running_executor,
)
from support.waiting import wait_until

DISK = 256 * MIB


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return tmp_path / "disk"


@pytest.fixture
def dataset(tmp_path: Path, scheduler: FakeScheduler) -> TestDataset:
    made = make_files(tmp_path / "data", 60, big=20 * MIB)
    scheduler.serve(made)
    return made


def on(disk: Path, **more: Any) -> dict[str, Any]:
    return {"STOKER_DISK_BYTES": str(DISK), "STOKER_DISK_DIR": str(disk)} | more


def first_whole(scheduler: FakeScheduler, launch: int) -> tuple[Heartbeat, set[int]]:
    """Return a launch's first heartbeat, and the full blocks of dataset 1 in it."""
    beat = scheduler.heartbeats[launch][0]
    assert beat.whole
    found = [r for r in beat.datasets if r.dataset_id == 1]
    bits = int.from_bytes(found[0].bitmap or b"", "little") if found else 0
    return beat, {i for i in range(bits.bit_length()) if bits >> i & 1}


def check_every_page(executor: RunningExecutor, dataset: TestDataset) -> None:
    client = executor.wait_dataset()
    for block in range(dataset.manifest.block_count):
        size = dataset.manifest.block_length(block)
        status, _, data = client.request(Op.READ, [(block, 0, size)], flags=ReadFlag.CHECK)
        assert status == Status.OK and len(data) == size
    check_all(client, dataset)
    remote = executor.connect(tcp=True)
    check_all(remote, dataset)
    client.close()
    remote.close()


def test_what_was_loaded_is_found_again_and_nothing_is_read_twice(
    disk: Path, dataset: TestDataset, scheduler: FakeScheduler
) -> None:
    scheduler.assign(dataset.assignment(wanted=ALL, wanted_version=1, tier="ssd"))
    blocks = dataset.manifest.block_count
    with running_executor(scheduler, **on(disk)) as executor:
        told = scheduler.wait_full(blocks)
        assert told.filled_bytes == dataset.manifest.total_bytes
        beat = scheduler.last()
        assert beat.used_bytes == 0, "nothing of it is in memory"
        assert beat.disk is not None and beat.disk.used_bytes > dataset.manifest.total_bytes
        assert (beat.disk.error_count, beat.disk.last_error, beat.unknown) == (0, "", ())
        check_every_page(executor, dataset)
    scheduler.bundles.clear()
    with running_executor(scheduler, launch=8, **on(disk)) as executor:
        beat, full = first_whole(scheduler, 8)
        assert full == set(range(blocks)), "it is announced before anything else is heard"
        assert beat.disk is not None and beat.disk.used_bytes == beat.disk.used_bytes
        scheduler.serve(dataset)
        check_every_page(executor, dataset)
        told = scheduler.wait_full(blocks, launch=8)
        scheduler.wait(
            lambda: (r := scheduler.residency(launch=8)) is not None and r.wanted_full == blocks, "planned"
        )
        told = scheduler.residency(launch=8)
        assert told is not None and told.filled_bytes == told.copied_bytes == 0
        assert told.wanted_settled == blocks and told.cached_bytes == dataset.manifest.total_bytes


def test_what_is_found_again_is_not_read_again_for_a_reader_who_comes_before_it_is_attached(
    disk: Path, dataset: TestDataset, scheduler: FakeScheduler
) -> None:
    scheduler.assign(dataset.assignment(wanted=ALL, wanted_version=1, tier="ssd"))
    blocks = dataset.manifest.block_count
    with running_executor(scheduler, **on(disk)):
        scheduler.wait_full(blocks)
    scheduler.bundles.clear()
    with running_executor(scheduler, launch=8, **on(disk)) as executor:
        client = executor.wait_dataset()  # without its manifest, which is asked for again and again
        scheduler.serve(dataset)
        check_all(client, dataset)  # the manifest comes for its sake
        client.close()
        scheduler.wait(
            lambda: (r := scheduler.residency(launch=8)) is not None and r.wanted_full == blocks, "planned"
        )
        told = scheduler.residency(launch=8)
        assert told is not None and told.filled_bytes == told.copied_bytes == 0


def test_a_caller_of_a_dataset_whose_blocks_were_found_waits_for_it() -> None:
    shelf = Shelf(lambda _: None)
    shelf.await_datasets([(1, 1)])
    assert shelf.find_dataset((2, 1), Caller.CLIENT) is None
    waiting = gevent.spawn(shelf.find_dataset, (1, 1), Caller.CLIENT)
    gevent.sleep(0)
    assert not waiting.ready()
    made = shelf.put_dataset(1, 1, 1, MIB)
    assert waiting.get(timeout=DEADLINE_S) is made
    assert shelf.find_dataset((1, 1), Caller.EXECUTOR) is made


def test_full_blocks_are_lent_read_only(disk: Path, dataset: TestDataset, scheduler: FakeScheduler) -> None:
    scheduler.assign(dataset.assignment(wanted=ALL, wanted_version=1, tier="ssd"))
    with running_executor(scheduler, **on(disk)) as executor:
        scheduler.wait_full(dataset.manifest.block_count)
        client = executor.wait_dataset()
        statuses, fds = client.descriptors(0, 1, 2)
        assert set(statuses) == {DescriptorStatus.PASSED}
        for block, fd in enumerate(fds):
            size = dataset.manifest.block_length(block)
            _, _, data = client.request(Op.READ, [(block, 0, size)], flags=0)
            assert data == os.pread(fd, size, 0)
            with pytest.raises(OSError):
                os.pwrite(fd, b"evil", 0)
            with pytest.raises(OSError):
                os.ftruncate(fd, 0)
        # Freed, a lent block is whole until it is returned; then its file and its room are gone.
        scheduler.assign(dataset.assignment(wanted=((True, ""), (False, "")), wanted_version=2, tier="ssd"))
        scheduler.wait(
            lambda: (d := scheduler.last().disk) is not None and d.lent_bytes > 0, "the loan to be counted"
        )
        wait_until(lambda: len(os.listdir(disk / "blocks")) == 3, "the others to be gone")
        for block, fd in enumerate(fds):
            assert len(os.pread(fd, 4096, 0)) == 4096, block
            os.close(fd)
        client.close()
        scheduler.wait(
            lambda: (d := scheduler.last().disk) is not None and d.lent_bytes == d.used_bytes == 0,
            "the room to be free",
        )
        wait_until(lambda: not os.listdir(disk / "blocks"), "the files to be gone")


def test_a_keeper_killed_while_it_loads_loses_nothing_that_it_announced(
    tmp_path: Path, disk: Path, scheduler: FakeScheduler
) -> None:
    """Killed again and again, at whatever point: after each start all that was announced is there; in the end every byte is right."""
    dataset = make_files(tmp_path / "data", 300, big=60 * MIB)
    scheduler.serve(dataset)
    scheduler.assign(dataset.assignment(wanted=ALL, wanted_version=1, tier="ssd"))
    blocks = dataset.manifest.block_count
    announced: set[int] = set()
    filled = 0
    for round_number in range(6):
        launch = LAUNCH + round_number
        with running_executor(scheduler, launch=launch, **on(disk)) as executor:
            beat, full = first_whole(scheduler, launch)
            assert full >= announced and beat.disk is not None and beat.disk.error_count == 0
            before = len(full)
            scheduler.wait(
                lambda: len(scheduler.held[launch].get((1, 1), (set(), None))[0]) >= min(blocks, before + 8),  # noqa: B023
                "some more blocks",
            )
            executor.kill()
            full, residency = scheduler.held[launch][1, 1]
            announced = set(full)
            filled += residency.filled_bytes
    with running_executor(scheduler, launch=99, **on(disk)) as executor:
        assert first_whole(scheduler, 99)[1] >= announced
        told = scheduler.wait_full(blocks, launch=99)
        filled += told.filled_bytes
        check_every_page(executor, dataset)
    assert filled <= dataset.manifest.total_bytes * 1.6, "what was partly filled is not all read anew"


def test_misses_survive_a_restart_partly_filled(
    disk: Path, dataset: TestDataset, scheduler: FakeScheduler
) -> None:
    scheduler.assign(dataset.assignment(tier="ssd"))
    small = [row.path for row in dataset.rows if 0 < row.size < 300_000]
    with running_executor(scheduler, **on(disk)) as executor:
        client = executor.wait_dataset()
        for path in small:
            assert client.read(*dataset.ranges(path)) == dataset.data(path)
        client.close()
        executor.kill()
    with running_executor(scheduler, launch=8, **on(disk)) as executor:
        client = executor.wait_dataset()
        for path in small:
            assert client.read(*dataset.ranges(path)) == dataset.data(path)
        client.close()
        scheduler.wait(
            lambda: (r := scheduler.residency(launch=8)) is not None and r.cached_bytes > 0, "what is here"
        )
        told = scheduler.residency(launch=8)
        assert told is not None and told.filled_bytes == 0


def test_a_directory_of_another_cluster_is_refused(disk: Path, scheduler: FakeScheduler) -> None:
    with running_executor(scheduler, **on(disk)):
        pass
    other = RunningExecutor(scheduler, launch=9, **on(disk), STOKER_CLUSTER="ff" * 16)
    assert other.process.wait(DEADLINE_S) == 1
    said = other.wait_status("TASK_FAILED")
    assert CLUSTER.hex() in said and "another directory" in said
    other.close()


def test_a_directory_that_another_keeper_has_is_waited_for(disk: Path, scheduler: FakeScheduler) -> None:
    first = RunningExecutor(scheduler, **on(disk)).wait_running()
    second = RunningExecutor(scheduler, launch=9, **on(disk))
    second.wait_status("TASK_STARTING")
    wait_until(lambda: "in use by another" in second.log(), "the second to find it taken")
    assert str(first.process.pid) in second.log()
    first.close()
    second.wait_running()
    assert second.close() == 0


# --- datasets that the leader does not name


def files_of(disk: Path) -> int:
    return len(os.listdir(disk / "blocks"))


def disk_of(scheduler: FakeScheduler, launch: int = LAUNCH) -> DiskReport:
    found = scheduler.last(launch).disk
    assert found is not None
    return found


def test_what_the_leader_does_not_know_is_kept_and_goes_when_it_says_that_it_was_removed(
    disk: Path, dataset: TestDataset, scheduler: FakeScheduler
) -> None:
    blocks = dataset.manifest.block_count
    scheduler.assign(dataset.assignment(wanted=ALL, wanted_version=1, tier="ssd"))
    with running_executor(scheduler, **on(disk)) as executor:
        scheduler.wait_full(blocks)
        client = executor.wait_dataset()
        scheduler.assign()
        scheduler.wait(lambda: scheduler.last().unknown == ((1, 1),), "it to be unknown")
        assert disk_of(scheduler).unknown_bytes == disk_of(scheduler).used_bytes > 0
        assert files_of(disk) == blocks
        again = executor.connect()
        assert again.answer is not None and again.answer.status == HelloStatus.DATASET, "nobody reads it"
        again.close()
        client.close()
        # It is named again: nothing is read anew.
        scheduler.wait(lambda: disk_of(scheduler).lent_bytes == 0, "its readers' end")
        scheduler.assign(dataset.assignment(wanted=ALL, wanted_version=1, tier="ssd"))
        check_every_page(executor, dataset)
    with running_executor(scheduler, launch=8, **on(disk)):
        scheduler.assign()
        scheduler.wait(lambda: scheduler.last(8).unknown == ((1, 1),), "it to be unknown after a restart")
        assert disk_of(scheduler, 8).unknown_bytes > 0 and files_of(disk) == blocks
        scheduler.removed = ((1, 1),)
        scheduler.wait(lambda: disk_of(scheduler, 8).used_bytes == 0, "its room to be free")
        scheduler.wait(
            lambda: disk_of(scheduler, 8).lent_bytes == 0 and not scheduler.last(8).unknown, "it to be gone"
        )
        assert files_of(disk) == 0
    with running_executor(scheduler, launch=9, **on(disk)):
        assert disk_of(scheduler, 9).used_bytes == 0 and not scheduler.last(9).datasets


def settled(scheduler: FakeScheduler) -> int:
    found = scheduler.residency()
    return 0 if found is None else found.wanted_settled


def test_a_dataset_that_comes_back_while_a_reader_has_a_block_of_it_loses_nothing(
    disk: Path, dataset: TestDataset, scheduler: FakeScheduler
) -> None:
    blocks = dataset.manifest.block_count
    scheduler.assign(dataset.assignment(wanted=ALL, wanted_version=1, tier="ssd"))
    with running_executor(scheduler, **on(disk)) as executor:
        scheduler.wait_full(blocks)
        reader = executor.wait_dataset()
        (fd,) = reader.descriptors(0)[1]
        names = set(os.listdir(disk / "blocks"))
        scheduler.assign()
        scheduler.wait(lambda: scheduler.last().unknown == ((1, 1),), "it to be unknown")
        scheduler.assign(dataset.assignment(wanted=ALL, wanted_version=1, tier="ssd"))
        scheduler.wait(lambda: settled(scheduler) == blocks - 1, "all that nobody has to be blocks again")
        client = executor.wait_dataset()
        assert client.read((0, 0, 1000)) == os.pread(fd, 1000, 0), "read through meanwhile"
        os.close(fd)
        reader.close()
        scheduler.wait(lambda: settled(scheduler) == blocks, "the last one")
        check_every_page(executor, dataset)
        assert set(os.listdir(disk / "blocks")) == names
        assert "dropped" not in executor.log()
        client.close()


def test_what_the_leader_does_not_know_is_the_first_to_go(
    tmp_path: Path, disk: Path, scheduler: FakeScheduler
) -> None:
    old = make_files(tmp_path / "old", 0, big=30 * MIB)
    new = TestDataset(make_files(tmp_path / "new", 0, seed=2, big=40 * MIB).root, dataset_id=2, name="new")
    scheduler.serve(old)
    scheduler.serve(new)
    scheduler.assign(old.assignment(wanted=ALL, wanted_version=1, tier="ssd"))
    small = on(disk, STOKER_DISK_BYTES=str(48 * MIB))
    with running_executor(scheduler, **small):
        scheduler.wait_full(old.manifest.block_count)
    scheduler.assign(new.assignment(wanted=ALL, wanted_version=1, tier="ssd"))
    with running_executor(scheduler, launch=8, **small) as executor:
        scheduler.wait_full(new.manifest.block_count, dataset_id=2, launch=8)
        client = executor.wait_dataset(dataset_id=2)
        check_all(client, new)
        client.close()
        beats = [beat.disk for beat in scheduler.heartbeats[8] if beat.disk is not None]
        assert all(d.used_bytes + d.lent_bytes <= d.capacity_bytes == 45 * MIB for d in beats)
        assert 0 < disk_of(scheduler, 8).unknown_bytes < 10 * MIB


# --- two tiers


def test_two_tiers_have_an_account_each(tmp_path: Path, disk: Path, scheduler: FakeScheduler) -> None:
    fast = make_files(tmp_path / "fast", 0, big=10 * MIB)
    large = TestDataset(
        make_files(tmp_path / "large", 0, seed=2, big=40 * MIB).root, dataset_id=2, name="large"
    )
    scheduler.serve(fast)
    scheduler.serve(large)
    scheduler.assign(
        fast.assignment(wanted=ALL, wanted_version=1),
        large.assignment(wanted=ALL, wanted_version=1, tier="ssd"),
    )
    with running_executor(scheduler, mem_bytes=24 * MIB, **on(disk)) as executor:
        scheduler.wait_full(fast.manifest.block_count)
        scheduler.wait_full(large.manifest.block_count, dataset_id=2)
        beat = scheduler.last()
        assert 10 * MIB <= beat.used_bytes < 12 * MIB and beat.capacity_bytes == 24 * MIB
        assert beat.disk is not None and 40 * MIB <= beat.disk.used_bytes < 42 * MIB
        for dataset, number in ((fast, 1), (large, 2)):
            client = executor.wait_dataset(dataset_id=number)
            check_all(client, dataset)
            client.close()
    with running_executor(scheduler, launch=8, mem_bytes=24 * MIB, **on(disk)):
        told = scheduler.wait_full(large.manifest.block_count, dataset_id=2, launch=8)
        assert told.filled_bytes == 0
        assert scheduler.wait_full(fast.manifest.block_count, launch=8).filled_bytes == 10 * MIB


def test_a_dataset_on_ssd_is_read_through_where_there_is_none(
    dataset: TestDataset, scheduler: FakeScheduler
) -> None:
    scheduler.assign(dataset.assignment(wanted=ALL, wanted_version=1, tier="ssd"))
    with running_executor(scheduler) as executor:
        scheduler.wait(
            lambda: (
                (r := scheduler.residency()) is not None and r.unfit_blocks == dataset.manifest.block_count
            ),
            "all of it to find no room",
        )
        assert scheduler.last().disk is None
        client = executor.wait_dataset()
        check_all(client, dataset)
        client.close()


@pytest.mark.parametrize("policy", ["lru"])
def test_eviction_never_exceeds_the_tier(
    tmp_path: Path, disk: Path, scheduler: FakeScheduler, policy: str
) -> None:
    dataset = make_files(tmp_path / "data", 100, big=50 * MIB)
    scheduler.serve(dataset)
    scheduler.assign(dataset.assignment(policy=policy, tier="ssd"))
    with running_executor(scheduler, **on(disk, STOKER_DISK_BYTES=str(20 * MIB))) as executor:
        client = executor.wait_dataset()
        for _ in range(2):
            check_all(client, dataset)
            assert sum(entry.stat().st_blocks * 512 for entry in os.scandir(disk / "blocks")) <= 20 * MIB
        client.close()
        beats = [beat.disk for beat in scheduler.heartbeats[LAUNCH] if beat.disk is not None]
        assert all(d.used_bytes + d.lent_bytes <= d.capacity_bytes < 20 * MIB for d in beats)
        assert all(d.error_count == 0 for d in beats)


def test_a_disk_that_is_smaller_now_keeps_what_fits(
    disk: Path, dataset: TestDataset, scheduler: FakeScheduler
) -> None:
    scheduler.assign(dataset.assignment(wanted=ALL, wanted_version=1, tier="ssd"))
    with running_executor(scheduler, **on(disk)):
        scheduler.wait_full(dataset.manifest.block_count)
    with running_executor(scheduler, launch=8, **on(disk, STOKER_DISK_BYTES=str(10 * MIB))) as executor:
        beat, full = first_whole(scheduler, 8)
        assert len(full) >= 8 and beat.disk is not None and beat.disk.used_bytes <= 10 * MIB
        client = executor.wait_dataset()
        check_all(client, dataset)
        client.close()
        wait_until(lambda: files_of(disk) == len(full), "the others' files to be gone")

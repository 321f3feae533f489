"""More than one executor: who copies from whom, and who reads the under store."""

from __future__ import annotations

from pathlib import Path

from support.executors import ALL, MIB, FakeScheduler, check_all, make_files, running_executor


def test_replicas_are_copied_from_the_first_home(tmp_path: Path, scheduler: FakeScheduler) -> None:
    dataset = make_files(tmp_path, big=6 * MIB)
    scheduler.serve(dataset)
    groups = dataset.manifest.pg_count
    homes = [[n % 2, 1 - n % 2] for n in range(groups)]
    with (
        running_executor(scheduler, slot=1, launch=1) as first,
        running_executor(scheduler, slot=2, launch=2) as second,
    ):
        scheduler.assign(dataset.assignment(homes=homes), slots=2)
        scheduler.wait(
            lambda: all(scheduler.residency(launch=launch) for launch in (1, 2)), "both to know the dataset"
        )
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

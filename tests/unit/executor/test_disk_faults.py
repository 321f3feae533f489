"""An SSD tier whose disk fails, as real processes: no wrong byte, each error told, and all is well once the disk is."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stoker.executor.block import BlockName, block_layout
from stoker.executor.core.disk_index import parse_file_name
from stoker.executor.disk import BLOCKS, INDEX
from stoker.executor.disk_tier import DISK_PAUSE_MS
from stoker.executor.entries import PIECE_BYTES
from stoker.executor.messages import DiskReport
from stoker.executor.wire import Failure, Op, ReadFlag
from support.data_servers import LAUNCH, WireClient
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

assert DISK_PAUSE_MS <= 5_000, "each of these tests waits for it"


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return tmp_path / "disk"


@pytest.fixture
def dataset(tmp_path: Path, scheduler: FakeScheduler) -> TestDataset:
    made = make_files(tmp_path / "data", 40, big=10 * MIB)
    scheduler.serve(made)
    return made


class Faults:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.set()

    def set(self, **errors: int) -> None:
        told = {name.replace("_", " "): code for name, code in errors.items()}
        self.path.with_suffix(".new").write_text(json.dumps(told))
        self.path.with_suffix(".new").rename(self.path)


@pytest.fixture
def faults(tmp_path: Path) -> Faults:
    return Faults(tmp_path / "faults")


@pytest.fixture
def executor(disk: Path, faults: Faults, scheduler: FakeScheduler) -> Iterator[RunningExecutor]:
    with running_executor(scheduler, **on(disk), TEST_DISK_FAULTS=str(faults.path)) as running:
        yield running


def on(disk: Path) -> dict[str, Any]:
    return {"STOKER_DISK_BYTES": str(256 * MIB), "STOKER_DISK_DIR": str(disk)}


def report(scheduler: FakeScheduler, launch: int = LAUNCH) -> DiskReport:
    found = scheduler.last(launch).disk
    assert found is not None
    return found


def block_file(disk: Path, block: int) -> Path:
    for name in os.listdir(disk / BLOCKS):
        found = parse_file_name(name)
        if found is not None and found.name == BlockName(1, 1, block):
            return disk / BLOCKS / name
    raise AssertionError(f"block {block} has no file")


@pytest.mark.parametrize(
    ("errors", "says"),
    [
        ({"sync": errno.EIO}, "cannot be synced"),
        ({"write_index": errno.ENOSPC}, "index cannot be written"),
        ({"create": errno.ENOSPC}, "No space left"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_disk_that_fails_announces_nothing_serves_the_right_bytes_and_recovers(
    disk: Path,
    dataset: TestDataset,
    scheduler: FakeScheduler,
    faults: Faults,
    executor: RunningExecutor,
    errors: dict[str, int],
    says: str,
) -> None:
    faults.set(**errors)
    scheduler.assign(dataset.assignment(wanted=ALL, wanted_version=1, tier="ssd"))
    scheduler.wait(lambda: report(scheduler).error_count > 0, "the error to be told")
    assert says in report(scheduler).last_error
    client = executor.wait_dataset()
    for row in dataset.rows:
        if row.size:  # a block may go just then: who reads it is told to ask again
            assert read_soon(client, dataset.ranges(row.path)) == dataset.data(row.path), row.path
    residency = scheduler.residency()
    assert residency is None or residency.full_blocks == 0
    assert residency is None or residency.wanted_settled == 0
    faults.set()
    scheduler.wait_full(dataset.manifest.block_count)
    check_all(client, dataset)
    client.close()
    executor.kill()
    with running_executor(scheduler, launch=9, **on(disk)) as later:
        told = scheduler.wait_full(dataset.manifest.block_count, launch=9)
        assert told.filled_bytes == 0
        client = later.wait_dataset()
        check_all(client, dataset)
        client.close()


def read_soon(client: WireClient, ranges: list[tuple[int, int, int]]) -> bytes:
    """Return the bytes of `ranges`, once none fails."""

    def read() -> bytes | None:
        failed, payload = client.read_failing(*ranges)
        assert all(code == Failure.OVERLOADED for code, _ in failed.values()), failed
        return None if failed else payload

    return wait_until(read, "an answer without a failure")


@pytest.mark.parametrize("harm", ["shorter", "header", "gone", "bytes"])
def test_a_file_that_was_harmed_while_nobody_looked_is_fetched_again(
    disk: Path, dataset: TestDataset, scheduler: FakeScheduler, harm: str
) -> None:
    scheduler.assign(dataset.assignment(wanted=ALL, wanted_version=1, tier="ssd"))
    blocks = dataset.manifest.block_count
    with running_executor(scheduler, **on(disk)):
        scheduler.wait_full(blocks)
    path, length = block_file(disk, 2), dataset.manifest.block_length(2)
    layout = block_layout(length)
    if harm == "gone":
        path.unlink()
    else:
        with open(path, "r+b") as file:
            if harm == "shorter":
                file.truncate(layout.file_bytes - 5)
            else:
                file.seek(layout.trailer_offset if harm == "header" else 3 * 65536 + 77)
                file.write(b"harm")
    with running_executor(scheduler, launch=9, **on(disk)) as executor:
        client = executor.wait_dataset()
        if harm != "gone":
            scheduler.wait_full(blocks, launch=9)  # who asks before it is attached is told to ask again
        if harm == "bytes":  # only who asks for the check is told at once; the block goes with that
            with open(path, "rb") as file:
                failed, _ = client.read_failing((2, 0, length), flags=ReadFlag.CHECK)
                assert failed[0][0] == Failure.CORRUPT
                wait_until(lambda: not path.exists(), "the damaged block to go")
                assert os.pread(file.fileno(), 8, layout.trailer_offset) == bytes(8)
        elif harm != "gone":
            assert read_soon(client, [(2, 0, length)]) == expected(dataset, 2)
            scheduler.wait(lambda: report(scheduler, 9).error_count == 1, "the error to be told")
        scheduler.wait(
            lambda: (
                (r := scheduler.residency(launch=9)) is not None
                and r.filled_bytes > 0
                and r.full_blocks == blocks
            ),
            "the block to be fetched again",
        )
        check_all(client, dataset)
        told = scheduler.residency(launch=9)
        assert told is not None and told.filled_bytes <= 2 * length, (
            "nothing but that block was read again: through, and to keep"
        )
        client.close()


def expected(dataset: TestDataset, block: int) -> bytes:
    """Return a block's bytes, zeros between the files."""
    manifest = dataset.manifest
    data = bytearray(manifest.block_length(block))
    origin = block * manifest.block_bytes
    for row in dataset.rows:
        offset, size = manifest.extent(manifest.find(row.path))
        low, high = max(offset, origin), min(offset + size, origin + len(data))
        if low < high:
            data[low - origin : high - origin] = dataset.data(row.path)[low - offset : high - offset]
    return bytes(data)


@pytest.mark.parametrize("length", [200_000, 600_000])
def test_a_file_harmed_under_a_running_executor_is_never_half_sent(
    disk: Path, dataset: TestDataset, scheduler: FakeScheduler, executor: RunningExecutor, length: int
) -> None:
    scheduler.assign(dataset.assignment(wanted=ALL, wanted_version=1, tier="ssd"))
    scheduler.wait_full(dataset.manifest.block_count)
    client = executor.wait_dataset()
    assert client.read((1, 0, 4096)) == expected(dataset, 1)[:4096]
    os.truncate(block_file(disk, 1), length // 2)
    if length <= PIECE_BYTES:  # read before anything is sent
        failed, payload = client.read_failing((1, 0, length))
        assert failed[0][0] == Failure.OVERLOADED and not payload
    else:
        with pytest.raises((OSError, EOFError)):
            client.request(Op.READ, [(1, 0, length)])
    client.close()
    scheduler.wait(lambda: report(scheduler).error_count > 0, "the error to be told")
    scheduler.wait_full(dataset.manifest.block_count)
    client = executor.wait_dataset()
    check_all(client, dataset)
    client.close()


@pytest.mark.parametrize("size", [0, 30, 64, 100])
def test_an_index_that_was_cut_short_costs_blocks_and_never_bytes(
    disk: Path, dataset: TestDataset, scheduler: FakeScheduler, size: int
) -> None:
    scheduler.assign(dataset.assignment(wanted=ALL, wanted_version=1, tier="ssd"))
    blocks = dataset.manifest.block_count
    with running_executor(scheduler, **on(disk)):
        scheduler.wait_full(blocks)
    os.truncate(disk / INDEX, size)
    (disk / "boot").write_text("another boot")
    with running_executor(scheduler, launch=9, **on(disk)) as executor:
        scheduler.wait_full(blocks, launch=9)
        client = executor.wait_dataset()
        check_all(client, dataset)
        client.close()

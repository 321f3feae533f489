"""Descriptors of the SSD tier: what a disk does not give is read from executors, and nothing on a disk is mapped."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Callable
from typing import Any

import pytest

from stoker.client import descriptors as descriptors_module
from stoker.client.api import Client, Dataset
from stoker.client.descriptors import Budget, Descriptor, DescriptorTable
from stoker.executor.wire import Failure
from support.clusters import Cluster, ScriptedDataset, make_files

FAILING = "/proc/self/mem"  # of the executor: pread at a block's offsets is EIO, nothing is mapped so low


@pytest.fixture
def bad(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> ScriptedDataset:
    """`ds` on one executor, which lends descriptors that cannot be read from; over its sockets it can."""
    made = cluster.dataset(make_files(20, 90_000) | make_files(1, 3_500_000, prefix="big"))
    executor = cluster.executor()
    executor.put(made)
    executor.command(t="set", lends=FAILING)
    cluster.scheduler.place("ds", made, cluster.executors)
    monkeypatch.setenv("STOKER_URL", cluster.url)
    return made


def big_path(files: dict[str, bytes]) -> str:
    return next(path for path, data in files.items() if len(data) > 1_000_000)


def hold_all(dataset: Dataset) -> list[int]:
    """Have the descriptors of all blocks, as after a read that went well; return their numbers."""
    reader = dataset._reader
    for index in range(reader.manifest.block_count):
        reader.fetcher.ask_descriptor(index)
    assert len(reader.descriptors) == reader.manifest.block_count
    with pytest.raises(OSError):
        os.pread(reader.descriptors[0], 10, 0)
    return list(reader.descriptors)


def by_read(dataset: Dataset, path: str) -> Any:
    return dataset.read(path)


def by_read_many(dataset: Dataset, path: str) -> Any:
    return dataset.read_many([path])[0]


def by_read_many_out(dataset: Dataset, path: str) -> Any:
    out = bytearray(dataset.total_bytes([path]))
    return dataset.read_many([path], out=out)[0]


def by_read_ranges(dataset: Dataset, path: str) -> Any:
    size = dataset.total_bytes([path])
    return dataset.read_ranges([(path, 0, size)])[0]


def by_view(dataset: Dataset, path: str) -> Any:
    with dataset.view(path) as view:
        return bytes(view)


def by_open(dataset: Dataset, path: str) -> Any:
    with dataset.open(path) as file:
        return file.read()


def by_readinto(dataset: Dataset, path: str) -> Any:
    out = bytearray(dataset.total_bytes([path]))
    with dataset.open(path, buffer_bytes=0) as file:
        assert file.readinto(out) == len(out)
    return out


def by_read_at(dataset: Dataset, path: str) -> Any:
    with dataset.open(path, buffer_bytes=0) as file:
        return file.read_at(0, dataset.total_bytes([path]))


WAYS = [by_read, by_read_many, by_read_many_out, by_read_ranges, by_view, by_open, by_readinto, by_read_at]


@pytest.mark.parametrize("is_big", [False, True], ids=["in one block", "over several"])
@pytest.mark.parametrize("way", WAYS)
def test_what_a_disk_does_not_give_is_read_from_its_executor(
    bad: ScriptedDataset, way: Callable[[Dataset, str], Any], is_big: bool
) -> None:
    dataset = Client().dataset("ds")
    path = big_path(bad.files) if is_big else dataset.paths[3]
    offset, size = dataset._reader.manifest.extent(dataset._reader.row(path))
    shift = dataset._reader.shift
    asked = set(range(offset >> shift, (offset + size - 1 >> shift) + 1))
    held = set(hold_all(dataset))
    assert way(dataset, path) == bad.files[path]
    assert held - set(dataset._reader.descriptors) <= asked
    assert min(asked) not in dataset._reader.descriptors, "it is not tried again"


def test_a_disk_that_fails_at_its_executor_too_is_read_from_another(
    cluster: Cluster, bad: ScriptedDataset
) -> None:
    (executor,) = cluster.executors
    other = cluster.executor()
    other.put(bad)
    groups = bad.manifest.pg_count
    cluster.scheduler.place("ds", bad, cluster.executors, [[0] * groups, [1] * groups])
    failing = {index: [int(Failure.OVERLOADED), "bad"] for index in range(bad.manifest.block_count)}
    executor.command(t="fail", failures=failing)
    dataset = Client().dataset("ds")
    for path, data in bad.files.items():
        assert dataset.read(path) == data
    assert dataset.read_many(list(bad.files)) == list(bad.files.values())


def test_blocks_on_a_disk_are_never_mapped(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    made = cluster.dataset(make_files(20, 90_000))
    cluster.executor().put(made, on_disk=True)
    cluster.scheduler.place("ds", made, cluster.executors)
    monkeypatch.setenv("STOKER_URL", cluster.url)
    dataset = Client().dataset("ds")
    path = dataset.paths[0]
    with dataset.open(path, buffer_bytes=0) as file:
        for _ in range(2 * descriptors_module.MAP_AFTER_READS):
            assert file.read_at(100, 500) == made.files[path][100:600]
    with dataset.view(path) as view:
        assert view.readonly and view == made.files[path]
    (descriptor,) = dataset._reader.descriptors.values()
    try:
        fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    except OSError:
        assert not dataset._reader.maps
    else:
        pytest.skip("the directory for temporary files is in memory")


class NoLoan:
    ended = True

    def returned(self, index: int) -> None:
        pass


def test_a_file_is_told_from_memory() -> None:
    table = DescriptorTable(Budget(3))
    memory = os.memfd_create("block")
    os.ftruncate(memory, 4096)
    table.install(1, memory, NoLoan())  # type: ignore[arg-type]
    table.install(2, os.open(sys.executable, os.O_RDONLY), NoLoan())  # type: ignore[arg-type]
    assert table.map(1, 4096) is not None and table.map(2, 4096) is None
    table.close()


def test_a_descriptor_that_failed_does_not_cost_its_successor() -> None:
    """Two threads read the same block: one has heard of the failure, and asked anew, when the other hears of it."""
    table = DescriptorTable(Budget(3))
    table.install(1, os.open("/dev/null", os.O_RDONLY), NoLoan())  # type: ignore[arg-type]
    failed = table.find(1)
    assert isinstance(failed, Descriptor)
    table.failed(1, failed)
    assert table.find(1) is None and not table.should_ask(1, 100), "not at once"
    table.install(1, os.open("/dev/null", os.O_RDONLY), NoLoan())  # type: ignore[arg-type]
    table.failed(1, failed)
    assert table.find(1) is not None
    table.close()

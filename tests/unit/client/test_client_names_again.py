"""Another dataset comes to stand behind a name that is open here: whoever opens a path then gets its bytes, at the first try."""

from __future__ import annotations

import os
import signal

import fsspec
import pytest

from stoker.client import descriptors
from stoker.client.api import Client
from stoker.client.errors import DatasetGone
from stoker.client.filesystem import StokerFileSystem
from stoker.client.session import session_for
from support.clusters import Cluster, ScriptedDataset
from support.waiting import wait_until


def replace(cluster: Cluster, dataset: ScriptedDataset) -> ScriptedDataset:
    """Do what executors and schedulers have done by the time that another dataset of the name is READY."""
    other = cluster.dataset({name: b"new" + data for name, data in dataset.files.items()}, dataset_id=2)
    for executor in cluster.executors:
        executor.put(other)
        executor.command(t="set", refused={"datasets": [1]})
        executor.command(t="cut_connections")
        for index in range(dataset.manifest.block_count):
            executor.command(t="remove", dataset=1, index=index)
    # A real executor waits for its readers to let go before it says that nothing of the old dataset is read any more.
    wait_until(lambda: session_for().budget.count() == 0)
    cluster.scheduler.place("ds", other, cluster.executors)
    return other


@pytest.fixture
def path(dataset: ScriptedDataset) -> str:
    return next(name for name, data in dataset.files.items() if 1_000 < len(data) < 100_000)


@pytest.fixture
def fs(cluster: Cluster, transport: str) -> StokerFileSystem:
    return fsspec.filesystem("stoker")


def placements(cluster: Cluster) -> int:
    return sum(path.endswith("/placement") for _, path in cluster.scheduler.calls)


def test_open_and_cat_bring_the_new_bytes_at_the_first_try(
    cluster: Cluster, dataset: ScriptedDataset, fs: StokerFileSystem, path: str
) -> None:
    full = f"ds/{path}"
    for read in (
        lambda: fs.open(full).read(),
        lambda: fs.cat_file(full),
        lambda: fs.cat([full])[full],
        lambda: fs.cat_ranges([full], 0, None)[0],
        lambda: StokerFileSystem().cat_file(full),
    ):
        assert read() == dataset.files[path]
    other = replace(cluster, dataset)
    assert fs.open(full).read() == other.files[path]
    assert fs.cat_file(full) == other.files[path] == fs.cat([full])[full]
    assert fs.info(full)["size"] == len(other.files[path])


@pytest.mark.parametrize("way", ["cat_file", "new instance", "info"])
def test_whatever_comes_first(
    cluster: Cluster, dataset: ScriptedDataset, fs: StokerFileSystem, path: str, way: str
) -> None:
    full = f"ds/{path}"
    assert fs.cat_file(full) == dataset.files[path]
    other = replace(cluster, dataset)
    if way == "info":
        assert fs.info(full)["size"] == len(other.files[path])
    else:
        assert (fs if way == "cat_file" else StokerFileSystem()).cat_file(full) == other.files[path]


def test_a_file_that_was_open_before_says_that_it_is_gone(
    cluster: Cluster, dataset: ScriptedDataset, fs: StokerFileSystem, path: str
) -> None:
    with fs.open(f"ds/{path}", block_size=0) as file:
        assert file.read_at(0, 10) == dataset.files[path][:10]
        other = replace(cluster, dataset)
        wait_until(lambda: fs._reader("ds").pin.dataset_id == 2)
        for _ in range(3):
            with pytest.raises(DatasetGone, match="open it again"):
                file.read_at(0, 10)
    assert fs.cat_file(f"ds/{path}") == other.files[path]


def test_a_removed_dataset_cannot_be_opened(
    cluster: Cluster, dataset: ScriptedDataset, fs: StokerFileSystem, path: str
) -> None:
    fs.cat_file(f"ds/{path}")
    replace(cluster, dataset)
    del cluster.scheduler.datasets["ds"]
    with pytest.raises(FileNotFoundError):
        fs.open(f"ds/{path}")


def test_opening_asks_no_scheduler_while_an_executor_talks_to_us(
    cluster: Cluster, dataset: ScriptedDataset, fs: StokerFileSystem, path: str
) -> None:
    fs.cat_file(f"ds/{path}")
    before = placements(cluster)
    for name in dataset.files:
        fs.open(f"ds/{name}", block_size=0).close()
    assert placements(cluster) == before


def test_an_executors_end_costs_one_question_and_reading_goes_on_without_a_scheduler(
    cluster: Cluster, dataset: ScriptedDataset, fs: StokerFileSystem, path: str
) -> None:
    """It was killed, say, and nothing was removed."""
    fs.cat_file(f"ds/{path}")
    for executor in cluster.executors:
        executor.put(dataset)
        executor.command(t="cut_connections")
    before = placements(cluster)
    assert fs.open(f"ds/{path}").read() == dataset.files[path]
    assert fs.open(f"ds/{path}").read() == dataset.files[path]
    assert placements(cluster) <= before + 1
    cluster.scheduler.answers = [
        (503, {}, {"error": {"code": "not_leading", "message": "m", "hint": "h"}})
    ] * 99
    for executor in cluster.executors:
        executor.command(t="cut_connections")
    assert fs.open(f"ds/{path}").read() == dataset.files[path]


def test_descriptors_of_an_executor_that_hangs_are_let_go(
    cluster: Cluster, dataset: ScriptedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may never tell that the dataset was removed, and its successor will serve another one of the name."""
    monkeypatch.setattr(descriptors, "PING_INTERVAL_MS", 100)
    reader = Client().dataset("ds")
    reader.read_many(list(dataset.files))
    table = reader._reader.fetcher.table
    assert table.received_count > 0
    try:
        for executor in cluster.executors:
            os.kill(executor.pid, signal.SIGSTOP)
        wait_until(lambda: table.count() == 0, timeout_s=60)
    finally:
        for executor in cluster.executors:
            os.kill(executor.pid, signal.SIGCONT)
    assert reader.read_many(list(dataset.files)) == list(dataset.files.values())

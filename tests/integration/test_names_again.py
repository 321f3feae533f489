"""A dataset is removed and another one added under its name, while other processes read: never an old byte once it is READY."""

from __future__ import annotations

import pathlib
import signal
import time
from collections.abc import Iterator

import psutil
import pytest

from stoker.client.api import Client
from support.local import Local, local_cluster
from support.name_reader import FILE, FILE_BYTES, OTHER, NameReader, Report
from support.waiting import wait_until as wait_for

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Local]:
    state = tmp_path_factory.mktemp("names") / "state"
    with (
        local_cluster(state, "--agents", "2", "--mem", "48MiB") as local,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("STOKER_URL", local.url)
        local.wait_until_running(2)
        yield local


def _source(root: pathlib.Path, number: int) -> str:
    """Make the files of dataset `number`; one that follows has files of other sizes."""
    for path in (FILE, OTHER):
        file = root / str(number) / path
        file.parent.mkdir(parents=True)
        file.write_bytes(bytes([number]) * (FILE_BYTES + 64 * number))
    return str(root / str(number))


def _check(report: Report, ready_ns: dict[int, int]) -> None:
    assert report.mixtures == 0
    for number, began in report.last_began.items():
        following = ready_ns.get(number + 1)
        assert following is None or began < following, f"an old byte, {began - following} ns after READY"
    last_ready = max(ready_ns.values())
    assert [e for e in report.errors if e[0] >= last_ready] == [], "once it is READY the first try is good"


def _executor_processes(cluster: Local) -> list[list[psutil.Process]]:
    keepers = [psutil.Process(e["pid"]) for e in cluster.client.executors() if e["state"] == "RUNNING"]
    return [[keeper, *keeper.children(recursive=True)] for keeper in keepers]


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("transport", ["auto", "fd", "tcp"])
def test_another_process_never_reads_an_old_byte(
    cluster: Local, tmp_path: pathlib.Path, transport: str
) -> None:
    name = f"again-{transport}"
    cluster.add(name, _source(tmp_path, 1))
    assert cluster.load(name)["state"] == "SUCCEEDED"
    reader = NameReader(cluster.url, name, transport)
    ready_ns: dict[int, int] = {}
    try:
        wait_for(lambda: reader.seen == 1, "the first read")
        for number in (2, 3, 4):
            source = _source(tmp_path, number)
            cluster.client.delete_dataset(name)
            cluster.add(name, source)
            ready_ns[number] = time.monotonic_ns()
            wait_for(lambda number=number: reader.seen == number, "the new bytes")
            if number == 2:
                cluster.load(name)
        report = reader.finish()
    finally:
        reader.close()
    _check(report, ready_ns)
    assert set(report.first_began) == {1, 2, 3, 4}
    cluster.client.delete_dataset(name)


def test_an_open_file_and_a_view_of_the_old_one(cluster: Local, tmp_path: pathlib.Path) -> None:
    """The file says clearly that its dataset is gone; the view is the program's own memory, and stays what it was."""
    cluster.add("kept", _source(tmp_path, 1))
    assert cluster.load("kept")["state"] == "SUCCEEDED"
    dataset = cluster.client.dataset("kept")
    with dataset.view(FILE) as view, dataset.open(FILE, buffer_bytes=0) as file:
        assert file.read_at(0, 100) == bytes([1]) * 100
        cluster.client.delete_dataset("kept")
        cluster.add("kept", _source(tmp_path, 2))
        for offset in (0, 1_000):
            with pytest.raises(OSError, match="open it again"):
                file.read_at(offset, 100)
        assert view == bytes([1]) * (FILE_BYTES + 64)
    assert cluster.client.dataset("kept").read(FILE) == bytes([2]) * (FILE_BYTES + 128)
    cluster.client.delete_dataset("kept")


def test_a_stopped_reader_is_waited_for(cluster: Local, tmp_path: pathlib.Path) -> None:
    """It holds descriptors of the old blocks, and would read them as soon as it goes on."""
    cluster.add("stopped", _source(tmp_path, 1))
    assert cluster.load("stopped")["state"] == "SUCCEEDED"
    reader = NameReader(cluster.url, "stopped", "fd")
    try:
        wait_for(lambda: reader.held > 0, "the first descriptor")
        process = psutil.Process(reader.pid)
        process.send_signal(signal.SIGSTOP)
        wait_for(lambda: process.status() == psutil.STATUS_STOPPED, "the reader to stop")
        cluster.client.delete_dataset("stopped")
        cluster.client.create_dataset("stopped", _source(tmp_path, 2))
        wait_for(lambda: bool(cluster.client.dataset_info("stopped")["message"]), "the reason")
        view = cluster.client.dataset_info("stopped")
        assert view["state"] == "LISTING" and "slot" in view["message"], view
        process.send_signal(signal.SIGCONT)
        wait_for(lambda: cluster.client.dataset_info("stopped")["state"] == "READY", "the dataset")
        ready_ns = {2: time.monotonic_ns()}
        wait_for(lambda: reader.seen == 2, "the new bytes")
        report = reader.finish()
    finally:
        reader.close()
    _check(report, ready_ns)
    cluster.client.delete_dataset("stopped")


def test_a_reader_that_stood_still_while_its_executor_died_reads_nothing_old(
    cluster: Local, tmp_path: pathlib.Path
) -> None:
    """Nobody waits for it: the conversation ended with the executor. It must see that before it reads by what it holds."""
    cluster.wait_until_running(2)
    cluster.add("still", _source(tmp_path, 1), replicas=2)
    assert cluster.load("still")["state"] == "SUCCEEDED"
    executors = _executor_processes(cluster)
    reader = NameReader(cluster.url, "still", "fd")
    try:
        wait_for(lambda: reader.held > 0, "the first descriptor")
        process = psutil.Process(reader.pid)
        process.send_signal(signal.SIGSTOP)
        wait_for(lambda: process.status() == psutil.STATUS_STOPPED, "the reader to stop")
        launches = {e["launch"] for e in cluster.client.executors()}
        for dying in (p for processes in executors for p in processes):
            dying.kill()
        wait_for(lambda: launches.isdisjoint({e["launch"] for e in cluster.client.executors()}), "a relaunch")
        cluster.wait_until_running(2)
        cluster.client.delete_dataset("still")
        cluster.add("still", _source(tmp_path, 2), replicas=2)
        ready_ns = {2: time.monotonic_ns()}
        process.send_signal(signal.SIGCONT)
        wait_for(lambda: reader.seen == 2, "the new bytes")
        report = reader.finish()
    finally:
        reader.close()
    _check(report, ready_ns)
    cluster.client.delete_dataset("still")


def test_what_views_hold_of_a_removed_dataset_counts_as_used(cluster: Local, tmp_path: pathlib.Path) -> None:
    """Else an executor would fill its tier again, beside memory that is still its own."""
    cluster.wait_until_running(2)
    cluster.add("viewed", _source(tmp_path, 1))
    assert cluster.load("viewed")["state"] == "SUCCEEDED"
    with cluster.client.dataset("viewed").view(FILE) as view:
        cluster.client.delete_dataset("viewed")
        cluster.add("viewed", _source(tmp_path, 2))  # READY: nobody reads the old one any more
        assert sum(e["lent_bytes"] for e in cluster.client.executors()) >= len(view)
        assert view == bytes([1]) * (FILE_BYTES + 64)
    del view
    wait_for(lambda: sum(e["lent_bytes"] for e in cluster.client.executors()) == 0, "the memory to come back")
    cluster.client.delete_dataset("viewed")


def test_a_manifest_that_waits_to_be_published_outlives_the_removal_of_its_twin(
    cluster: Local, tmp_path: pathlib.Path
) -> None:
    """Two datasets of one source share their manifests' parts; one is removed while the other's name is not free yet."""
    source = _source(tmp_path, 1)
    cluster.wait_until_running(2)
    cluster.add("held", source)
    cluster.add("twin", source)
    assert cluster.load("held")["state"] == "SUCCEEDED"
    reader = NameReader(cluster.url, "held", "fd")
    try:
        wait_for(lambda: reader.held > 0, "the first descriptor")
        process = psutil.Process(reader.pid)
        process.send_signal(signal.SIGSTOP)
        wait_for(lambda: process.status() == psutil.STATUS_STOPPED, "the reader to stop")
        cluster.client.delete_dataset("held")
        cluster.client.create_dataset("held", source)
        wait_for(lambda: bool(cluster.client.dataset_info("held")["message"]), "the reason")
        cluster.client.delete_dataset("twin")
        process.send_signal(signal.SIGCONT)
        wait_for(lambda: cluster.client.dataset_info("held")["state"] == "READY", "the dataset")
    finally:
        reader.close()
    assert Client(cluster.url).dataset("held").read(FILE) == bytes([1]) * (FILE_BYTES + 64)
    cluster.client.delete_dataset("held")


@pytest.mark.parametrize(("what", "transport"), [("executor", "fd"), ("keeper", "tcp")])
def test_a_stopped_executor_serves_nothing_old_when_it_is_let_go(
    cluster: Local, tmp_path: pathlib.Path, transport: str, what: str
) -> None:
    """It hangs over the removal: the new dataset waits until it is ended. With the keeper alone its server still serves."""
    name = f"hung-{what}-{transport}"
    cluster.wait_until_running(2)
    cluster.add(name, _source(tmp_path, 1), replicas=2)
    assert cluster.load(name)["state"] == "SUCCEEDED"
    stopped = _executor_processes(cluster)[0]
    reader = NameReader(cluster.url, name, transport)
    try:
        wait_for(lambda: reader.seen == 1, "the first read")
        for process in stopped if what == "executor" else stopped[:1]:
            process.suspend()
        cluster.client.delete_dataset(name)
        cluster.client.create_dataset(name, _source(tmp_path, 2))
        wait_for(lambda: bool(cluster.client.dataset_info(name)["message"]), "the reason")
        assert cluster.client.dataset_info(name)["state"] == "LISTING"
        wait_for(lambda: cluster.client.dataset_info(name)["state"] == "READY", "the dataset", 120)
        ready_ns = {2: time.monotonic_ns()}
        assert not _lives(stopped[0]), "READY before the hung one was dead"
        wait_for(lambda: reader.seen == 2, "the new bytes")
        report = reader.finish()
    finally:
        reader.close()
        for process in stopped:
            if _lives(process):
                process.resume()
    _check(report, ready_ns)
    cluster.client.delete_dataset(name)
    cluster.wait_until_running(2)

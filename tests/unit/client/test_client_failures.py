"""What goes wrong on the way: a read gets right bytes from somebody else, or one clear error; never wrong or short data."""

from __future__ import annotations

import errno
import pathlib
import random
import threading

import pytest

from stoker.client import fetcher as fetcher_module
from stoker.client.api import Client, Dataset
from stoker.client.errors import FileChanged, NoExecutor, ReadError
from stoker.executor.wire import Failure
from support.clusters import Cluster, ScriptedDataset
from support.waiting import DEADLINE_S, wait_until


@pytest.fixture
def short_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetcher_module, "READ_DEADLINE_MS", 400)


@pytest.fixture
def both(cluster: Cluster, dataset: ScriptedDataset) -> ScriptedDataset:
    """The dataset with both executors as homes of each block: the first is slot 1."""
    place_both(cluster, dataset)
    return dataset


def place_both(cluster: Cluster, dataset: ScriptedDataset) -> None:
    count = dataset.manifest.pg_count
    cluster.scheduler.place("ds", dataset, cluster.executors, [[0] * count, [1] * count])


def assert_reads_all(reader: Dataset, dataset: ScriptedDataset) -> None:
    assert reader.read_many(list(dataset.files)) == list(dataset.files.values())


def test_the_next_replica_serves_when_the_first_home_is_gone(
    cluster: Cluster, both: ScriptedDataset, transport: str
) -> None:
    reader = Client().dataset("ds")
    assert_reads_all(reader, both)
    cluster.executors[0].kill()
    assert_reads_all(reader, both)


def test_any_living_executor_serves_when_no_home_does(
    cluster: Cluster, dataset: ScriptedDataset, transport: str
) -> None:
    reader = Client().dataset("ds")
    cluster.executors[0].kill()
    cluster.executors[1].put(dataset)  # in life it reads through
    assert_reads_all(reader, dataset)


def test_an_executor_killed_in_mid_read_costs_no_byte(
    cluster: Cluster, both: ScriptedDataset, transport: str
) -> None:
    """Eight threads read at random while one of two executors is ended by SIGKILL."""
    reader = Client().dataset("ds")
    paths = list(both.files)
    wrong: list[object] = []
    killed = threading.Event()

    def work(seed: int) -> None:
        chance = random.Random(seed)
        rounds = 0
        while rounds < 20:
            rounds += killed.is_set()
            some = chance.sample(paths, 12)
            try:
                if reader.read_many(some) != [both.files[p] for p in some]:
                    wrong.append(some)
            except OSError as error:
                wrong.append(error)
                return

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    cluster.executors[0].command(t="set", delay_s=0.005)
    cluster.executors[0].kill()
    killed.set()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert not wrong and not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("cut", [0, 1, 70_000])
def test_an_answer_that_ends_early_is_asked_for_again(
    cluster: Cluster, both: ScriptedDataset, monkeypatch: pytest.MonkeyPatch, cut: int
) -> None:
    monkeypatch.setenv("STOKER_TRANSPORT", "tcp")
    reader = Client().dataset("ds")
    cluster.executors[0].command(t="set", cut_after=cut)
    assert_reads_all(reader, both)
    assert cluster.executors[1].command(t="stats")["counts"]["read"] == 0  # the same one had the rest


def test_another_launch_at_the_same_address_is_noticed_and_the_placement_asked_anew(
    cluster: Cluster, dataset: ScriptedDataset, transport: str
) -> None:
    """Mesos gives a freed port to the next task: the hello says who is meant."""
    for executor in cluster.executors:
        executor.incarnation = 5  # what the scheduler tells is old
    cluster.scheduler.place("ds", dataset, cluster.executors)
    reader = Client().dataset("ds")
    for executor in cluster.executors:
        executor.incarnation = 77
    cluster.scheduler.place("ds", dataset, cluster.executors)
    assert_reads_all(reader, dataset)
    assert [path for _, path in cluster.scheduler.calls].count("/v1/datasets/ds/placement") >= 2


def test_a_read_waits_for_the_relaunched_executor(
    cluster: Cluster, dataset: ScriptedDataset, transport: str
) -> None:
    """The only executors die; the framework launches another one; the read never sees it."""
    reader = Client().dataset("ds")
    assert_reads_all(reader, dataset)
    for executor in cluster.executors:
        executor.kill()
    got: list[object] = []

    def read() -> None:
        try:
            got.append(reader.read_many(list(dataset.files)) == list(dataset.files.values()))
        except OSError as error:
            got.append(error)

    thread = threading.Thread(target=read)
    asked = len(cluster.scheduler.calls)
    if transport == "tcp":
        thread.start()
        wait_until(lambda: len(cluster.scheduler.calls) > asked)
    else:
        wait_until(lambda: not reader._reader.descriptors)  # a dead executor's memory is let go
        thread.start()
        wait_until(lambda: len(cluster.scheduler.calls) > asked)
    relaunched = cluster.executor(slot_id=1, launch_id=2, incarnation=99)
    relaunched.put(dataset)
    cluster.scheduler.place("ds", dataset, [relaunched])
    thread.join(DEADLINE_S)
    assert got == [True]


def test_when_nobody_ever_answers_the_error_says_what_to_do(
    cluster: Cluster, dataset: ScriptedDataset, transport: str, short_deadline: None
) -> None:
    reader = Client().dataset("ds")
    for executor in cluster.executors:
        executor.kill()
    with pytest.raises(NoExecutor, match="stoker explain ds.*fallback='direct'") as caught:
        reader.read("odd/axb")
    assert caught.value.errno == errno.ETIMEDOUT and caught.value.filename == "ds/odd/axb"


def test_no_executor_at_all(cluster: Cluster, dataset: ScriptedDataset, short_deadline: None) -> None:
    cluster.scheduler.place("ds", dataset, [], [[0xFFFF] * dataset.manifest.pg_count])
    with pytest.raises(NoExecutor, match="no executor is running"):
        Client().dataset("ds").read("odd/axb")


def test_fd_transport_without_an_executor_here(
    cluster: Cluster, dataset: ScriptedDataset, short_deadline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STOKER_TRANSPORT", "fd")
    for slot in cluster.scheduler.datasets["ds"][1]["slots"]:
        slot["boot_id"] = "another host"
    with pytest.raises(NoExecutor, match="STOKER_TRANSPORT=fd, and no executor runs on this host"):
        Client().dataset("ds").read("odd/axb")


def test_an_unknown_transport_is_refused(dataset: ScriptedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOKER_TRANSPORT", "rdma")
    with pytest.raises(ValueError, match="auto, fd, tcp"):
        Client()


def fail(cluster: Cluster, dataset: ScriptedDataset, code: Failure, message: str, *, at: int = 0) -> None:
    indexes = range(dataset.manifest.block_count)
    cluster.executors[at].command(t="fail", failures={str(i): [int(code), message] for i in indexes})
    cluster.executors[at].command(t="not_full", dataset=1, indexes=list(indexes))


def test_a_changed_file_is_named_with_the_command_that_helps(
    cluster: Cluster, both: ScriptedDataset, transport: str
) -> None:
    for at in (0, 1):
        fail(cluster, both, Failure.CHANGED, "its ETag is another", at=at)
    client = Client()
    reader = client.dataset("ds")
    with pytest.raises(FileChanged, match="stoker dataset refresh ds") as caught:
        reader.read("odd/axb")
    assert caught.value.errno == errno.ESTALE and caught.value.filename == "ds/odd/axb"
    good, bad = reader.read_many(["empty", "odd/axb"], on_error="return")
    assert good == b"" and isinstance(bad, FileChanged)
    asked = len(cluster.scheduler.calls)
    client._session.reader("ds")  # the next open asks whether there is a newer version
    assert len(cluster.scheduler.calls) > asked


def test_a_failing_under_store_is_tried_elsewhere_then_reported(
    cluster: Cluster, both: ScriptedDataset, transport: str
) -> None:
    fail(cluster, both, Failure.UNDER_STORE, "403 Forbidden")
    reader = Client().dataset("ds")
    assert_reads_all(reader, both)
    fail(cluster, both, Failure.UNDER_STORE, "403 Forbidden", at=1)
    if transport != "tcp":
        for executor in cluster.executors:
            executor.command(t="drop", indexes=list(range(both.manifest.block_count)))
        wait_until(lambda: not reader._reader.descriptors)
    with pytest.raises(ReadError, match="403 Forbidden") as caught:
        reader.read("odd/axb")
    assert caught.value.errno == errno.EIO


@pytest.mark.parametrize("code", [Failure.MISSING, Failure.CORRUPT, Failure.OVERLOADED, Failure.INTERNAL])
def test_what_one_executor_cannot_give_the_next_one_does(
    cluster: Cluster, both: ScriptedDataset, code: Failure
) -> None:
    fail(cluster, both, code, "not now")
    assert_reads_all(Client().dataset("ds"), both)


def test_an_overloaded_cluster_is_asked_again(cluster: Cluster, both: ScriptedDataset) -> None:
    for at in (0, 1):
        fail(cluster, both, Failure.OVERLOADED, "too many", at=at)
    reader = Client().dataset("ds")
    got: list[object] = []
    thread = threading.Thread(target=lambda: got.append(reader.read("odd/axb")))
    thread.start()
    wait_until(lambda: reader.stats.retries >= 2)
    cluster.executors[1].command(t="fail", failures={})
    thread.join(DEADLINE_S)
    assert got == [b"x"]


def test_partial_failures_do_not_shift_the_rest(
    cluster: Cluster, dataset: ScriptedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STOKER_TRANSPORT", "tcp")
    for executor in cluster.executors:
        executor.command(t="fail", failures={"1": [int(Failure.CHANGED), "changed"]})
    reader = Client().dataset("ds")
    results = reader.read_many(list(dataset.files), on_error="return")
    failed = 0
    for path, result in zip(dataset.files, results, strict=True):
        row = reader.row(path)
        first = dataset.manifest.offset(row) // dataset.manifest.block_bytes
        last = (dataset.manifest.offset(row) + dataset.manifest.size(row) - 1) // dataset.manifest.block_bytes
        if dataset.files[path] and first <= 1 <= last:
            assert isinstance(result, FileChanged) and result.filename == f"ds/{path}"
            failed += 1
        else:
            assert result == dataset.files[path]
    assert failed


def test_the_under_store_itself_only_if_asked_for_and_counted(
    cluster: Cluster, tmp_path: pathlib.Path, short_deadline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    files = {"a/one": b"1" * 1000, "two": b"2" * 3_000_000}
    for path, data in files.items():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_bytes(data)
        import os

        os.utime(source / path, ns=(0, 1_700_000_000_000_000_001))
    made = cluster.dataset(files)
    executor = cluster.executor()
    cluster.scheduler.place("ds", made, [executor])
    executor.kill()
    client = Client(cluster.url)
    with pytest.raises(NoExecutor):
        client.dataset("ds").read("two")
    reader = client.dataset("ds", fallback="direct")
    described = {"name": "ds", "source": f"file://{source}", "options": {"key": "env:SECRET"}}
    monkeypatch.setattr(cluster.scheduler, "_route", route_with(cluster, described))
    assert reader.read_many(list(files)) == list(files.values())
    assert (client.stats.direct_reads, client.stats.direct_bytes) == (2, 3_001_000)
    (source / "two").write_bytes(b"3" * 3_000_000)
    with pytest.raises(FileChanged, match="refresh"):
        reader.read("two")
    with pytest.raises(ValueError, match="'direct'"):
        client.dataset("ds", fallback="always")


def route_with(cluster: Cluster, described: dict[str, object]):  # type: ignore[no-untyped-def]
    original = cluster.scheduler._route
    return lambda path: (200, {}, described) if path == "/v1/datasets/ds" else original(path)


def test_a_newer_placement_is_fetched_in_the_background(
    cluster: Cluster, dataset: ScriptedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STOKER_TRANSPORT", "tcp")
    reader = Client().dataset("ds")
    place_both(cluster, dataset)
    version = cluster.scheduler.placement_version
    for executor in cluster.executors:
        executor.command(t="set", placement_version=version)
    reader.read("odd/axb")
    wait_until(lambda: reader._reader.fetcher.placement.placement_version == version)
    assert sum(e.command(t="stats")["counts"]["refresh"] for e in cluster.executors) == 1


def test_a_hanging_executor_is_left_for_another(
    cluster: Cluster, both: ScriptedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGSTOP: the kernel still accepts connections, nobody answers."""
    import os
    import signal

    from stoker.client import connection

    for name in ("ATTENTION_MS", "GREETING_TIMEOUT_MS", "CONNECT_TIMEOUT_MS"):
        monkeypatch.setattr(connection, name, 300)
    monkeypatch.setenv("STOKER_TRANSPORT", "tcp")
    reader = Client().dataset("ds")
    assert_reads_all(reader, both)
    os.kill(cluster.executors[0].pid, signal.SIGSTOP)
    assert_reads_all(reader, both)
    assert_reads_all(reader, both)
    assert cluster.executors[1].command(t="stats")["counts"]["read"] > 0
    cluster.executors[0].kill()


def test_executors_that_are_slow_but_greet_are_waited_for(
    cluster: Cluster, dataset: ScriptedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A miss takes an under store's time: nobody else would be faster."""
    from stoker.client import connection

    monkeypatch.setattr(connection, "ATTENTION_MS", 100)
    monkeypatch.setenv("STOKER_TRANSPORT", "tcp")
    reader = Client().dataset("ds")
    before = [executor.command(t="set", delay_s=1.5)["counts"]["hello"] for executor in cluster.executors]
    paths = list(dataset.files)
    assert [bytes(data) for data in reader.read_many(paths)] == [dataset.files[path] for path in paths]
    counts = [executor.command(t="stats")["counts"] for executor in cluster.executors]
    assert [count["read"] for count in counts] == [1, 1], "each was asked once"
    assert all(count["hello"] > known + 1 for count, known in zip(counts, before, strict=True)), (
        "and greeted again while it was silent"
    )

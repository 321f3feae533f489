"""Lent descriptors: returned when let go, never closed under a reader, few, and none of a dead executor's."""

from __future__ import annotations

import os
import random
import socket
import threading

import pytest

from stoker.client import descriptors as descriptors_module
from stoker.client.api import Client
from stoker.client.connection import Connection
from stoker.client.descriptors import Budget, DescriptorTable, Loan
from stoker.executor import wire
from support.clusters import Cluster, ScriptedDataset, ScriptedExecutor, make_files
from support.waiting import DEADLINE_S, wait_until


@pytest.fixture
def one(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> ScriptedDataset:
    """`ds` on one executor, 20 or so blocks of 1 MiB."""
    made = cluster.dataset(make_files(200, 90_000))
    cluster.executor().put(made)
    cluster.scheduler.place("ds", made, cluster.executors)
    monkeypatch.setenv("STOKER_URL", cluster.url)
    return made


def stats(executor: ScriptedExecutor) -> dict[str, object]:
    return executor.command(t="stats")


def test_a_drop_is_confirmed_and_the_block_read_otherwise(cluster: Cluster, one: ScriptedDataset) -> None:
    (executor,) = cluster.executors
    reader = Client().dataset("ds")
    reader.read_many(list(one.files))
    every = list(range(one.manifest.block_count))
    assert stats(executor)["lent"] == every
    executor.command(t="not_full", dataset=1, indexes=every)
    assert executor.command(t="drop", indexes=every[:5])["asked"] == 5
    wait_until(lambda: stats(executor)["lent"] == every[5:])
    assert reader.read_many(list(one.files)) == list(one.files.values())
    assert stats(executor)["lent"] == every[5:]


def test_a_drop_during_preads_never_shows_another_files_bytes(cluster: Cluster, one: ScriptedDataset) -> None:
    """Descriptors are dropped, and their numbers used again by others, while 6 threads read: each byte is right."""
    (executor,) = cluster.executors
    reader = Client().dataset("ds")
    paths = list(one.files)
    stop = threading.Event()
    wrong: list[object] = []

    def work(seed: int) -> None:
        chance = random.Random(seed)
        files = {p: reader.open(p, buffer_bytes=0) for p in chance.sample(paths, 40)}
        while not stop.is_set():
            path = chance.choice(list(files))
            data, start = one.files[path], chance.randrange(0, 1000)
            if files[path].read_at(start, 5000) != data[start : start + 5000] or reader.read(path) != data:
                wrong.append(path)
                return

    def use_numbers_again() -> None:
        while not stop.is_set():
            opened = [os.open("/dev/zero", os.O_RDONLY) for _ in range(50)]
            for fd in opened:
                os.close(fd)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    threads.append(threading.Thread(target=use_numbers_again))
    for thread in threads:
        thread.start()
    dropped = rounds = 0

    def is_enough() -> bool:
        nonlocal dropped, rounds
        dropped += executor.command(t="drop", indexes=list(range(one.manifest.block_count)))["asked"]
        rounds += 1
        return bool(wrong) or (rounds >= 60 and dropped > 60)

    try:
        wait_until(is_enough, "60 descriptors to be asked back")
    finally:
        stop.set()
        for thread in threads:
            thread.join(DEADLINE_S)
    assert not wrong
    executor.command(t="drop", indexes=list(range(one.manifest.block_count)))
    wait_until(lambda: not stats(executor)["lent"])


def test_a_view_keeps_its_block_until_it_ends(cluster: Cluster, one: ScriptedDataset) -> None:
    (executor,) = cluster.executors
    reader = Client().dataset("ds")
    path = reader.paths[3]
    with reader.view(path) as view:
        (index,) = stats(executor)["lent"]  # type: ignore[misc]
        executor.command(t="drop", indexes=[index])
        wait_until(lambda: not reader._reader.descriptors)
        assert view == one.files[path] and stats(executor)["lent"] == [index]
    del view
    wait_until(lambda: stats(executor)["lent"] == [])


def test_when_the_loan_ends_everything_lent_is_let_go(cluster: Cluster, one: ScriptedDataset) -> None:
    (executor,) = cluster.executors
    reader = Client().dataset("ds")
    reader.read_many(list(one.files))
    executor.command(t="cut_connections")
    wait_until(lambda: not reader._reader.descriptors)
    assert reader.read_many(list(one.files)) == list(one.files.values())
    assert reader._reader.descriptors


def test_at_most_so_many_are_held_and_the_least_used_go(
    cluster: Cluster, one: ScriptedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    (executor,) = cluster.executors
    client = Client()
    client._session.budget.descriptors_max = 4
    reader = client.dataset("ds")
    for _ in range(3):
        assert reader.read_many(list(one.files)) == list(one.files.values())
        assert client._session.budget.count() <= 4
    wait_until(lambda: len(stats(executor)["lent"]) <= 4)  # type: ignore[arg-type]
    assert client.stats.socket_ranges > 0
    sequential = cluster.dataset({"big": random.Random(2).randbytes(9_000_000)}, dataset_id=2)
    executor.put(sequential)
    cluster.scheduler.place("big", sequential, [executor])
    assert client.dataset("big").read("big") == sequential.files["big"]
    assert client._session.budget.count() <= 4


def test_a_block_that_is_not_full_is_read_through_the_server(
    cluster: Cluster, one: ScriptedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(descriptors_module, "ASK_AGAIN_MS", 3_000)
    (executor,) = cluster.executors
    executor.command(t="not_full", dataset=1, indexes=list(range(one.manifest.block_count)))
    reader = Client().dataset("ds")
    assert reader.read_many(list(one.files)) == list(one.files.values())
    assert reader.read_many(list(one.files)) == list(one.files.values())
    assert stats(executor)["counts"]["descriptors"] <= 2  # type: ignore[index]
    executor.command(t="not_full", dataset=1, indexes=[])
    wait_until(lambda: reader.read(0) is not None and bool(reader._reader.descriptors))


def test_an_idle_loan_learns_of_a_newer_placement(
    cluster: Cluster, one: ScriptedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reads by descriptor never ask anybody: a PING now and then tells that something changed."""
    monkeypatch.setattr(descriptors_module, "PING_INTERVAL_MS", 50)
    (executor,) = cluster.executors
    reader = Client().dataset("ds")
    reader.read(0)
    cluster.scheduler.place("ds", one, cluster.executors)
    executor.command(t="set", placement_version=cluster.scheduler.placement_version)
    wait_until(
        lambda: reader._reader.fetcher.placement.placement_version == cluster.scheduler.placement_version
    )


class NoThreads:
    """While `is_short`, threads of the name cannot be started: the process has as many as it may have."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.is_short = True
        self.refused_count = 0
        start = threading.Thread.start

        def try_to_start(thread: threading.Thread) -> None:
            if self.is_short and thread.name == name:
                self.refused_count += 1
                raise RuntimeError("can't start new thread")
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", try_to_start)


def test_a_loan_goes_on_where_no_thread_is_to_be_had_for_the_newer_placement_it_tells_of(
    cluster: Cluster, one: ScriptedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(descriptors_module, "PING_INTERVAL_MS", 50)
    no_threads = NoThreads(monkeypatch, "stoker-refresh")
    (executor,) = cluster.executors
    reader = Client().dataset("ds")
    reader.read_many(list(one.files))
    cluster.scheduler.place("ds", one, cluster.executors)
    newest = cluster.scheduler.placement_version
    executor.command(t="set", placement_version=newest)
    wait_until(lambda: no_threads.refused_count > 1)
    every = list(range(one.manifest.block_count))
    executor.command(t="not_full", dataset=1, indexes=every)
    assert executor.command(t="drop", indexes=every)["asked"] == len(every)
    wait_until(lambda: not stats(executor)["lent"])
    no_threads.is_short = False
    wait_until(lambda: reader._reader.fetcher.placement.placement_version == newest)


def test_without_a_thread_for_a_loan_the_socket_does(
    cluster: Cluster, one: ScriptedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_threads = NoThreads(monkeypatch, "stoker-loan")
    reader = Client().dataset("ds")
    assert reader.read_many(list(one.files)) == list(one.files.values())
    assert no_threads.refused_count and not reader._reader.descriptors
    here, there = socket.socketpair()
    connection = Connection(here, greet=lambda: None, timeout_ms=1_000, is_unix=True)
    with pytest.raises(RuntimeError):
        Loan(connection, DescriptorTable(Budget()), on_versions=lambda p, d: None)
    assert there.recv(1) == b"", "the executor sees its end"
    there.close()


def test_whatever_goes_wrong_in_a_loans_thread_ends_the_loan() -> None:
    """Else nobody would hear what is asked back, and the executor would count it as used for ever."""
    here, there = socket.socketpair()
    connection = Connection(here, greet=lambda: None, timeout_ms=1_000, is_unix=True)
    table = DescriptorTable(Budget())

    def fail(placement_version: int, dataset_version: int) -> None:
        raise ValueError("a mistake of ours")

    loan = Loan(connection, table, on_versions=fail)
    table.install(3, os.open("/dev/null", os.O_RDONLY), loan)
    there.sendall(wire.ANSWER.pack(wire.Op.PING, 0, 0, 1, 0, 7, 7))
    wait_until(lambda: loan.ended and table.count() == 0)
    there.settimeout(DEADLINE_S)
    while there.recv(4096):
        pass  # the executor sees its end
    there.close()


def test_many_small_reads_map_the_block(one: ScriptedDataset) -> None:
    reader = Client().dataset("ds")
    path = reader.paths[0]
    with reader.open(path, buffer_bytes=0) as file:
        for _ in range(2 * descriptors_module.MAP_AFTER_READS):
            assert file.read_at(100, 500) == one.files[path][100:600]
    assert len(reader._reader.maps) == 1


def test_the_hand_of_the_clock_spares_what_is_used() -> None:
    class NoLoan:
        ended = True

        def returned(self, index: int) -> None:
            pass

    budget = Budget(3)
    table = DescriptorTable(budget)
    for index in (1, 2, 3):
        table.install(index, os.open("/dev/null", os.O_RDONLY), NoLoan())  # type: ignore[arg-type]
    table.install(4, os.open("/dev/null", os.O_RDONLY), NoLoan())  # type: ignore[arg-type]
    assert table.find(1) is None and table.find(2) is not None and budget.count() == 3
    table.install(5, os.open("/dev/null", os.O_RDONLY), NoLoan())  # type: ignore[arg-type]
    assert table.find(2) is not None and table.find(3) is None
    numbers = [int(descriptor) for descriptor in table.young.values()]
    table.close()
    for number in numbers:
        with pytest.raises(OSError):
            os.fstat(number)

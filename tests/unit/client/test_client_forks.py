"""Readers in other processes: forked in the middle of things, started anew, many of them."""

from __future__ import annotations

import multiprocessing
import os
import random
import socket
import threading
from typing import Any

import fsspec
import pytest

from stoker.client.api import Client
from stoker.client.connection import Pool
from stoker.client.session import session_for
from stoker.executor import wire
from stoker.executor.messages import SlotAddress
from support.clusters import Cluster, ScriptedDataset
from support.deaf_listeners import fill_queue
from support.spawned import read_everything
from support.waiting import DEADLINE_S, wait_until


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
@pytest.mark.parametrize("way", ["auto", "tcp"])
def test_worker_processes_read_right_bytes(
    dataset: ScriptedDataset, monkeypatch: pytest.MonkeyPatch, method: str, way: str
) -> None:
    """As a DataLoader with 4 workers: the parent has read before, and reads on meanwhile."""
    monkeypatch.setenv("STOKER_TRANSPORT", way)
    reader = Client().dataset("ds")
    filesystem = fsspec.filesystem("stoker")
    paths = list(dataset.files)
    reader.read_many(paths[:50])
    opened = reader.open(paths[0], buffer_bytes=0)
    context = multiprocessing.get_context(method)
    answers: Any = context.Queue()
    workers = [
        context.Process(
            target=read_everything, args=(reader, filesystem, opened, dataset.files, seed, answers)
        )
        for seed in range(4)
    ]
    for worker in workers:
        worker.start()
    assert reader.read_many(paths) == list(dataset.files.values())
    results = [answers.get(timeout=DEADLINE_S) for _ in workers]
    for worker in workers:
        worker.join(DEADLINE_S)
    assert results == ["right"] * 4
    assert reader.read_many(paths) == list(dataset.files.values())


def fork(work: Any) -> int:
    """Run `work` in a forked child; return its exit code: 0, if it returned true."""
    pid = os.fork()
    if pid == 0:
        code = 9
        try:
            code = 0 if work() else 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_fork_while_threads_read_neither_hangs_nor_mixes_answers(
    dataset: ScriptedDataset, transport: str
) -> None:
    reader = Client().dataset("ds")
    paths = list(dataset.files)
    stop = threading.Event()
    wrong: list[str] = []

    def work(seed: int) -> None:
        chance = random.Random(seed)
        while not stop.is_set():
            some = chance.sample(paths, 5)
            if reader.read_many(some) != [dataset.files[p] for p in some]:
                wrong.append(some[0])

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    codes = [fork(lambda: reader.read_many(paths) == list(dataset.files.values())) for _ in range(8)]
    stop.set()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert codes == [0] * 8 and not wrong


def test_a_childs_end_leaves_the_parents_conversations_alone(
    cluster: Cluster, dataset: ScriptedDataset
) -> None:
    reader = Client().dataset("ds")
    reader.read_many(list(dataset.files))
    hellos = [e.command(t="stats")["counts"]["hello"] for e in cluster.executors]
    assert fork(lambda: True) == 0
    assert reader.read_many(list(dataset.files)) == list(dataset.files.values())
    assert [e.command(t="stats")["counts"]["hello"] for e in cluster.executors] == hellos
    assert [e.command(t="stats")["loans"] for e in cluster.executors] == [1, 1]


def test_a_child_reads_nothing_by_its_parents_descriptors(
    cluster: Cluster, dataset: ScriptedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody would tell the child that they are of a dataset that was removed while it slept."""
    monkeypatch.setattr("stoker.client.fetcher.READ_DEADLINE_MS", 300)
    reader = Client().dataset("ds")
    paths = list(dataset.files)
    reader.read_many(paths)
    for executor in cluster.executors:
        executor.command(t="set", refused={"datasets": [1]})

    def work() -> bool:
        with pytest.raises(OSError):
            reader.read(paths[0])
        return reader._reader.fetcher.table.count() == 0

    assert fork(work) == 0
    assert reader.read_many(paths) == list(dataset.files.values())


def sockets(family: int) -> set[int]:
    """Return the inodes of this process's sockets of the family."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            opened = socket.socket(fileno=int(name))
        except OSError:
            continue  # no socket, or the listing's own descriptor
        if opened.family == family:
            found.add(os.fstat(opened.fileno()).st_ino)
        opened.detach()
    return found


@pytest.mark.parametrize("is_deaf", [False, True])
def test_a_child_holds_no_socket_that_its_parent_was_just_connecting(is_deaf: bool) -> None:
    """Else the executor would not see the parent's end before the child's. Deaf: it does not even take the connection."""
    with socket.create_server(("127.0.0.1", 0), backlog=1) as listener:
        host, port = listener.getsockname()
        if is_deaf:
            fill_queue((host, port))
        before = sockets(socket.AF_INET)
        pool = Pool(
            SlotAddress(1, 1, 1, host, port, "", "", ""), wire.Hello(bytes(16), 1, 1, 1, 1, 1), unix=False
        )

        def take() -> None:
            with pytest.raises(OSError):
                pool.take()

        thread = threading.Thread(target=take)
        thread.start()
        wait_until(lambda: len(sockets(socket.AF_INET) - before) == 1)
        parents = sockets(socket.AF_INET) - before
        assert fork(lambda: not parents & sockets(socket.AF_INET)) == 0
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


def test_a_child_holds_no_socket_of_a_loan_that_its_parent_left(
    cluster: Cluster, dataset: ScriptedDataset
) -> None:
    """The executor is not in the newest placement, but lives: it counts as used what it lent until the conversation ends."""
    before = sockets(socket.AF_UNIX)
    reader = Client().dataset("ds")
    reader.read_many(list(dataset.files))
    fetcher = reader._reader.fetcher
    cluster.scheduler.place("ds", dataset, cluster.executors[:1])
    fetcher.take_placement(session_for().placement("ds"))
    assert len(fetcher._loans) == 1 and fetcher.table.count() > 0
    assert [e.command(t="stats")["loans"] for e in cluster.executors] == [1, 1]
    parents = sockets(socket.AF_UNIX) - before
    assert len(parents) >= 2 and fork(lambda: not parents & sockets(socket.AF_UNIX)) == 0


def test_a_child_has_loans_of_its_own(cluster: Cluster, dataset: ScriptedDataset) -> None:
    reader = Client().dataset("ds")
    reader.read_many(list(dataset.files))
    every = list(range(dataset.manifest.block_count))
    here, there = os.pipe()

    def work() -> bool:
        reader.read(0)
        table = reader._reader.fetcher.table
        held = len(table.young)
        os.write(there, b"x")
        wait_until(lambda: not table.young and not table.inherited)  # the drop reaches the child too
        return held > 0

    pid = os.fork()
    if pid == 0:
        code = 9
        try:
            code = 0 if work() else 1
        finally:
            os._exit(code)
    os.read(here, 1)
    for executor in cluster.executors:
        executor.command(t="not_full", dataset=1, indexes=every)
        executor.command(t="drop", indexes=every)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(here)
    os.close(there)

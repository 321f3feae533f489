"""An executor refuses the hello: the next one is asked at once, whatever becomes of the question to a scheduler."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from stoker.client.connection import ATTENTION_MS
from stoker.client.descriptors import Budget
from stoker.client.fetcher import Fetcher, Stats
from stoker.client.piece import Piece
from stoker.client.placement import Placement
from stoker.client.session import Session
from stoker.executor import wire
from stoker.executor.messages import SlotAddress
from support.clusters import CLUSTER, Cluster, ScriptedDataset

REFUSALS = [wire.HelloStatus.BUSY, wire.HelloStatus.LAUNCH, wire.HelloStatus.DATASET]


class Executor:
    """Answers each hello with `status`, and each READ with as many bytes as asked for."""

    def __init__(self, status: wire.HelloStatus) -> None:
        self.status = status
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                opened, _ = self._listener.accept()
            except OSError:
                return
            with opened:
                opened.recv(wire.HELLO_BYTES, socket.MSG_WAITALL)
                answer = wire.HelloAnswer(self.status, 1, CLUSTER, 1, 1, 1, 1, "")
                opened.sendall(wire.encode_hello_answer(answer))
                if self.status != wire.HelloStatus.OK:
                    continue
                request = opened.recv(wire.REQUEST.size, socket.MSG_WAITALL)
                op, _, count, request_id, total = wire.REQUEST.unpack(request)
                opened.recv(count * wire.RANGE.size, socket.MSG_WAITALL)
                opened.sendall(wire.ANSWER.pack(op, 0, 0, request_id, total, 1, 1) + b"x" * total)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


class Surroundings:
    """A session whose schedulers must not be asked by a read."""

    boot_id = ""
    transport = "tcp"

    def __init__(self) -> None:
        self.budget = Budget()
        self.stats = Stats()
        self.refused_by: list[int] = []

    def newest_placement(self, name: str) -> Placement | None:
        raise AssertionError("the read waits for a scheduler, and another executor would serve it")

    def behind(self, fetcher: Fetcher, address: SlotAddress) -> None:
        self.refused_by.append(address.slot_id)


@pytest.fixture(params=REFUSALS)
def pair(request: pytest.FixtureRequest) -> Iterator[list[Executor]]:
    """One that refuses, and one that serves."""
    made = [Executor(request.param), Executor(wire.HelloStatus.OK)]
    yield made
    for each in made:
        each.close()


def placement_on(executors: list[Executor]) -> Placement:
    slots = tuple(SlotAddress(i + 1, 1, 1, "127.0.0.1", e.port, "", "", "") for i, e in enumerate(executors))
    homes = np.array([[i] for i in range(len(slots))], dtype="<u2")
    return Placement("ds", 1, CLUSTER, 1, 1, "digest", 2**20, 1, 1, homes, slots)


def test_the_next_replica_is_asked_without_a_word_to_a_scheduler(pair: list[Executor]) -> None:
    """Whoever refuses because it is full tells nothing of the placement; for the others it is asked in the background."""
    surroundings = Surroundings()
    piece = Piece(0, 0, 100, None, 0)
    Fetcher(surroundings, placement_on(pair), 1).fetch([piece], str)
    assert piece.data == b"x" * 100
    assert surroundings.refused_by == ([] if pair[0].status == wire.HelloStatus.BUSY else [1])


class Full(Executor):
    """Has room for one connection, and answers its READ only when another one was refused."""

    def _run(self) -> None:
        refused = threading.Event()
        with self._listener.accept()[0] as opened:
            threading.Thread(target=self._refuse, args=(refused,), daemon=True).start()
            opened.recv(wire.HELLO_BYTES, socket.MSG_WAITALL)
            opened.sendall(self._greeting(wire.HelloStatus.OK))
            request = opened.recv(wire.REQUEST.size, socket.MSG_WAITALL)
            op, _, count, request_id, total = wire.REQUEST.unpack(request)
            opened.recv(count * wire.RANGE.size, socket.MSG_WAITALL)
            refused.wait(10 * ATTENTION_MS / 1000)
            opened.sendall(wire.ANSWER.pack(op, 0, 0, request_id, total, 1, 1) + b"x" * total)
            opened.recv(1)

    def _refuse(self, refused: threading.Event) -> None:
        with self._listener.accept()[0] as other:
            other.recv(wire.HELLO_BYTES, socket.MSG_WAITALL)
            other.sendall(self._greeting(wire.HelloStatus.BUSY))
            refused.set()

    def _greeting(self, status: wire.HelloStatus) -> bytes:
        return wire.encode_hello_answer(wire.HelloAnswer(status, 1, CLUSTER, 1, 1, 1, 1, ""))


def test_a_read_under_way_is_waited_for_though_nobody_else_is_let_in() -> None:
    """The greeting that asks whether the executor lives finds it full: it lives."""
    executor, surroundings = Full(wire.HelloStatus.OK), Surroundings()
    piece = Piece(0, 0, 100, None, 0)
    Fetcher(surroundings, placement_on([executor]), 1).fetch([piece], str)
    assert piece.data == b"x" * 100
    executor.close()


def test_a_read_that_needs_a_placement_asks_each_scheduler_once(
    cluster: Cluster, dataset: ScriptedDataset
) -> None:
    """It comes again by itself; while it waits for a leader it could not see that an executor is back."""
    refusal = (503, {}, {"error": {"code": "not_leading", "message": "m", "hint": "h"}})
    cluster.scheduler.answers = [refusal] * 3
    session = Session((cluster.url,))
    assert session.newest_placement("ds") is None
    assert len(cluster.scheduler.calls) == 1
    cluster.scheduler.answers = []
    assert session.newest_placement("ds") is not None


def test_a_dataset_that_is_refused_everywhere_is_asked_for_by_the_read_itself(
    cluster: Cluster, dataset: ScriptedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was removed: nobody is left, and nothing may be read until a scheduler has said what became of it."""
    monkeypatch.setenv("STOKER_TRANSPORT", "tcp")
    session = Session((cluster.url,))
    monkeypatch.setattr(session, "behind", lambda fetcher, address: None)
    reader = session.reader("ds")
    for executor in cluster.executors:
        executor.command(t="set", refused={"datasets": [1]})
    del cluster.scheduler.datasets["ds"]
    session.invalidate("ds")
    with pytest.raises(OSError, match="was removed"):
        reader.fetcher.fetch([Piece(0, 0, 100, None, 0)], str)
    session.close()

"""The model of ZooKeeper does what the real one does, where our code leans on it. One test a fact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sim.process import Process
from sim.timeline import Timeline
from sim.zk_client import Client, State
from sim.zk_tree import (
    BadVersion,
    Check,
    ConnectionLoss,
    Create,
    Delete,
    NodeExists,
    NoNode,
    NotEmpty,
    RolledBack,
    RuntimeInconsistency,
    SessionExpired,
    Set,
    Tree,
    ZkError,
)
from sim.zookeeper import Children, Ensemble, Exists, Get, Multi, Sync

TIMEOUT_MS = 6_000


class Stage:
    """An ensemble and some clients; `do` runs a function in a client's process and returns what it returns."""

    def __init__(self, seed: int = 1, *, clients: int = 1, size: int = 3, lag_ms_max: int = 20) -> None:
        self.timeline = Timeline(seed)
        self.ensemble = Ensemble(self.timeline, size=size, lag_ms_max=lag_ms_max)
        self.states: list[list[State]] = [[] for _ in range(clients)]
        self.processes = [Process(self.timeline, f"client-{i}") for i in range(clients)]
        self.clients = [
            Client(process, self.ensemble, TIMEOUT_MS, states.append)
            for process, states in zip(self.processes, self.states, strict=True)
        ]
        self.timeline.run(500)
        assert all(client.state is State.CONNECTED for client in self.clients)

    def begin(self, index: int, what: Callable[[], Any]) -> list[Any]:
        """Return a list that gets the result, or the ZkError, once there is one."""
        box: list[Any] = []

        def run() -> None:
            try:
                box.append(what())
            except ZkError as error:
                box.append(error)

        self.processes[index].spawn(run)
        return box

    def do(self, index: int, what: Callable[[], Any]) -> Any:
        box = self.begin(index, what)
        for _ in range(200):
            if box:
                break
            self.timeline.run(100)
        (result,) = box
        return result

    def server_of(self, index: int) -> Any:
        return self.clients[index].server

    def cut(self, index: int) -> None:
        for line in self.ensemble.lines(self.processes[index].name):
            line.is_cut = True

    def heal(self, index: int) -> None:
        for line in self.ensemble.lines(self.processes[index].name):
            line.heal()


def test_a_transaction_happens_all_or_not_at_all() -> None:
    tree = Tree()
    assert tree.execute(1, (Create("/a", b"x"), Set("/a", b"y"), Create("/a/b")))[0][0] == "/a"
    before = {path: (node.data, node.version, node.created) for path, node in tree.nodes.items()}
    operations = (
        Check("/a", 1),
        Create("/a/c"),
        Set("/a", b"z"),
        Delete("/a/b"),
        Check("/a", 9),
        Delete("/a"),
    )
    results, changes = tree.execute(1, operations)
    assert [type(r) for r in results] == [*[RolledBack] * 4, BadVersion, RuntimeInconsistency]
    assert changes == ()
    assert {path: (node.data, node.version, node.created) for path, node in tree.nodes.items()} == before


def test_refuses_what_zookeeper_refuses() -> None:
    tree = Tree()
    tree.execute(1, (Create("/a"), Create("/a/b")))

    def error(operation: Any) -> type:
        return type(tree.execute(1, (operation,))[0][0])

    assert error(Create("/a")) is NodeExists
    assert error(Create("/x/y")) is NoNode
    assert error(Delete("/a")) is NotEmpty
    assert error(Set("/x", b"")) is NoNode
    assert error(Set("/a", b"", 3)) is BadVersion


def test_sequence_numbers_go_on_after_deletions() -> None:
    tree = Tree()
    tree.execute(1, (Create("/e"),))
    first = tree.execute(1, (Create("/e/n-", sequence=True),))[0][0]
    tree.execute(1, (Delete(str(first)),))
    assert first == "/e/n-0000000000"
    assert tree.execute(1, (Create("/e/n-", sequence=True),))[0][0] == "/e/n-0000000001"


def test_a_read_may_be_stale_and_sync_mends_it() -> None:
    stage = Stage(clients=2, lag_ms_max=0)
    slow = next(s for s in stage.ensemble.servers if s is not stage.ensemble.leader)
    while stage.server_of(1) is not slow:
        stage.clients[1]._drop()
        stage.timeline.run(500)
    slow.lag_ms_max = 4_000
    stage.do(0, lambda: stage.clients[0].write(Create("/a", b"1")))
    stage.timeline.run(4_500)
    stage.do(0, lambda: stage.clients[0].write(Set("/a", b"2")))
    assert stage.do(1, lambda: stage.clients[1].call(Get("/a")))[0] == b"1"
    stage.do(1, lambda: stage.clients[1].call(Sync("/a")))
    assert stage.do(1, lambda: stage.clients[1].call(Get("/a")))[0] == b"2"


def test_a_client_sees_its_own_writes_and_what_was_before_them() -> None:
    for seed in range(1, 20):
        stage = Stage(seed, clients=2, lag_ms_max=300)
        stage.do(0, lambda stage=stage: stage.clients[0].write(Create("/a", b"")))
        stage.do(1, lambda stage=stage: stage.clients[1].write(Create("/b", b"")))
        assert stage.do(1, lambda stage=stage: stage.clients[1].call(Exists("/a"))) is not None


def test_a_session_ends_after_its_timeout_and_its_ephemerals_with_it() -> None:
    stage = Stage(clients=2)
    stage.do(0, lambda: stage.clients[0].write(Create("/e", ephemeral=True)))
    stage.processes[0].kill()
    stage.timeline.run(TIMEOUT_MS - 1_000)
    assert stage.do(1, lambda: stage.clients[1].call(Exists("/e"))) is not None
    stage.timeline.run(2_000)
    assert stage.do(1, lambda: stage.clients[1].call(Exists("/e"))) is None


def test_a_closed_session_leaves_at_once() -> None:
    stage = Stage(clients=2)
    stage.do(0, lambda: stage.clients[0].write(Create("/e", ephemeral=True)))
    stage.clients[0].close()
    stage.timeline.run(100)
    assert stage.do(1, lambda: stage.clients[1].call(Exists("/e"))) is None


def test_an_idle_client_keeps_its_session() -> None:
    stage = Stage()
    stage.timeline.run(10 * TIMEOUT_MS)
    assert stage.states == [[State.CONNECTED]]


def test_the_end_of_a_session_is_told_only_after_connecting_again() -> None:
    """Cut off, a client is suspended for as long as the cut lasts; it hears "expired" when it is over."""
    stage = Stage()
    stage.cut(0)
    stage.timeline.run(5 * TIMEOUT_MS)
    assert stage.states == [[State.CONNECTED, State.SUSPENDED]] and not stage.ensemble.sessions
    stage.heal(0)
    stage.timeline.run(3_000)
    assert stage.states == [[State.CONNECTED, State.SUSPENDED, State.LOST]]
    assert isinstance(stage.do(0, lambda: stage.clients[0].call(Get("/"))), SessionExpired)


def test_a_short_cut_is_survived_by_the_session() -> None:
    stage = Stage()
    stage.cut(0)
    stage.timeline.run(4_000)
    stage.heal(0)
    stage.timeline.run(3_000)
    assert stage.states == [[State.CONNECTED, State.SUSPENDED, State.CONNECTED]]


def test_a_request_while_suspended_fails_at_once() -> None:
    stage = Stage()
    stage.cut(0)
    stage.timeline.run(4_000)
    box = stage.begin(0, lambda: stage.clients[0].call(Get("/")))
    stage.timeline.run(1)
    assert isinstance(box[0], ConnectionLoss)


def test_a_lost_connection_leaves_open_whether_it_happened() -> None:
    outcomes = set()
    for seed in range(1, 40):
        stage = Stage(seed, clients=2)
        box = stage.begin(0, lambda stage=stage: stage.clients[0].write(Create("/a")))
        stage.timeline.run(stage.timeline.between(0, 12))
        if box:
            continue
        stage.clients[0]._drop()
        stage.timeline.run(1_000)
        assert isinstance(box[0], ConnectionLoss)
        stage.do(1, lambda stage=stage: stage.clients[1].call(Sync("/")))
        outcomes.add(stage.do(1, lambda stage=stage: stage.clients[1].call(Exists("/a"))) is not None)
    assert outcomes == {True, False}


def test_a_stopped_client_finds_its_session_gone_when_it_goes_on() -> None:
    stage = Stage(clients=2)
    stage.do(0, lambda: stage.clients[0].write(Create("/e", ephemeral=True)))
    stage.processes[0].stop()
    stage.timeline.run(2 * TIMEOUT_MS)
    assert stage.do(1, lambda: stage.clients[1].call(Exists("/e"))) is None
    assert stage.states[0] == [State.CONNECTED]
    box = stage.begin(0, lambda: stage.clients[0].write(Create("/late")))
    stage.processes[0].go_on()
    stage.timeline.run(3_000)
    assert isinstance(box[0], ZkError) and stage.states[0][-1] is State.LOST
    assert stage.do(1, lambda: stage.clients[1].call(Exists("/late"))) is None


def test_a_killed_follower_costs_no_session() -> None:
    stage = Stage(clients=3)
    victim = next(s for s in stage.ensemble.servers if s is not stage.ensemble.leader)
    stage.ensemble.kill(victim)
    stage.timeline.run(5_000)
    assert all(client.state is State.CONNECTED for client in stage.clients)
    assert all(State.LOST not in states for states in stage.states)
    stage.ensemble.restart(victim)
    stage.timeline.run(1_000)
    assert victim.is_linked and victim.tree.zxid == stage.ensemble.head.zxid


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_a_lost_leader_suspends_all_and_costs_no_session(how: str) -> None:
    stage = Stage(clients=3)
    old = stage.ensemble.leader
    assert old is not None
    stage.ensemble.kill(old) if how == "kill" else old.stop()
    stage.timeline.run(8_000)
    assert stage.ensemble.leader not in (None, old)
    assert all(states[-1] is State.CONNECTED and len(states) == 3 for states in stage.states)
    stage.ensemble.restart(old) if how == "kill" else old.go_on()
    stage.timeline.run(2_000)
    assert old.is_linked
    assert stage.do(0, lambda: stage.clients[0].write(Create("/a"))) == "/a"


def test_nothing_is_written_and_no_session_ends_without_a_quorum() -> None:
    stage = Stage()
    stage.ensemble.servers[1].stop()
    stage.ensemble.servers[2].stop()
    stage.timeline.run(3 * TIMEOUT_MS)
    assert stage.ensemble.leader is None and len(stage.ensemble.sessions) == 1
    stage.ensemble.servers[1].go_on()
    stage.timeline.run(4_000)
    assert stage.states[0][-1] is State.CONNECTED and State.LOST not in stage.states[0]


def test_a_server_that_is_cut_off_answers_reads_and_keeps_no_session() -> None:
    """Which is why a leader's deadline counts only what a quorum answered."""
    stage = Stage()
    server = next(s for s in stage.ensemble.servers if s is not stage.ensemble.leader)
    while stage.server_of(0) is not server:
        stage.clients[0]._drop()
        stage.timeline.run(500)
    (session,) = stage.ensemble.sessions.values()
    server.is_isolated = True
    deadline_ms = session.deadline_ms
    assert isinstance(stage.do(0, lambda: stage.clients[0].call(Children("/"))), list)
    assert session.deadline_ms == deadline_ms
    box = stage.begin(0, lambda: stage.clients[0].call(Sync("/")))
    stage.timeline.run(500)
    assert not box
    stage.timeline.run(8_000)
    assert isinstance(box[0], ConnectionLoss) and stage.server_of(0) is not server


def test_a_leader_that_is_cut_off_answers_a_sync_for_a_while_but_no_write() -> None:
    """Which is why `sync` is no probe for our leader."""
    stage = Stage()
    while stage.server_of(0) is not stage.ensemble.leader:
        stage.clients[0]._drop()
        stage.timeline.run(500)
    stage.server_of(0).is_isolated = True
    assert not isinstance(stage.do(0, lambda: stage.clients[0].call(Sync("/"))), ZkError)
    written = stage.begin(0, lambda: stage.clients[0].write(Create("/late")))
    synced = stage.begin(0, lambda: stage.clients[0].call(Sync("/")))
    stage.timeline.run(500)
    assert not written and not synced
    stage.timeline.run(8_000)
    assert isinstance(written[0], ConnectionLoss) and isinstance(synced[0], ConnectionLoss)


def test_a_late_request_of_a_session_that_moved_is_refused() -> None:
    """Sent to a server that was stopped; by the time that it goes on, the session is elsewhere."""
    for seed in range(1, 30):
        stage = Stage(seed, clients=2)
        server = stage.server_of(0)
        if server is stage.ensemble.leader:
            continue
        server.stop()
        stage.begin(0, lambda stage=stage: stage.clients[0].write(Create("/late")))
        stage.timeline.run(5_000)
        assert stage.states[0][-1] is State.CONNECTED
        server.go_on()
        stage.timeline.run(2_000)
        stage.do(1, lambda stage=stage: stage.clients[1].call(Sync("/")))
        assert stage.do(1, lambda stage=stage: stage.clients[1].call(Exists("/late"))) is None


def test_a_watch_fires_once_and_before_the_new_data_can_be_read() -> None:
    stage = Stage(clients=2)
    stage.do(0, lambda: stage.clients[0].write(Create("/a", b"1")))
    stage.do(1, lambda: stage.clients[1].call(Sync("/")))
    fired: list[str] = []
    stage.do(1, lambda: stage.clients[1].call(Get("/a"), lambda: fired.append("watch")))
    stage.clients[0].submit(Multi((Set("/a", b"2"),)), lambda _: None)
    for _ in range(60):
        data, _stat = stage.do(1, lambda: stage.clients[1].call(Get("/a")))
        assert data == b"1" or fired == ["watch"]
    assert data == b"2"
    stage.do(0, lambda: stage.clients[0].write(Set("/a", b"3")))
    stage.timeline.run(200)
    assert fired == ["watch"]


def test_watches_tell_of_children_creation_and_the_end_of_the_connection() -> None:
    stage = Stage(clients=2)
    fired: list[str] = []
    client = stage.clients[1]
    stage.do(1, lambda: client.call(Children("/"), lambda: fired.append("children")))
    stage.do(1, lambda: client.call(Exists("/a"), lambda: fired.append("exists")))
    assert isinstance(stage.do(1, lambda: client.call(Get("/b"), lambda: fired.append("never"))), NoNode)
    stage.do(0, lambda: stage.clients[0].write(Create("/a")))
    stage.timeline.run(200)
    assert sorted(fired) == ["children", "exists"]
    stage.do(1, lambda: client.call(Children("/"), lambda: fired.append("again")))
    client._drop()
    assert fired[-1] == "again", "watches went with the connection, and said so"


def test_too_large_a_request_ends_the_connection_without_a_word() -> None:
    stage = Stage()
    data = b"x" * (1 << 20)
    assert isinstance(stage.do(0, lambda: stage.clients[0].write(Create("/a", data))), ConnectionLoss)
    stage.timeline.run(2_000)
    assert stage.states[0] == [State.CONNECTED, State.SUSPENDED, State.CONNECTED]


def test_one_seed_is_one_history() -> None:
    def history(seed: int) -> list[Any]:
        stage = Stage(seed, clients=3, lag_ms_max=200)
        told: list[Any] = []
        for index in range(3):
            for number in range(20):
                stage.clients[index].submit(
                    Multi((Create(f"/{index}-{number}"),)),
                    lambda result, i=index, n=number: told.append((stage.timeline.now_ms, i, n)),
                )
        stage.timeline.run(200)
        stage.ensemble.leader.stop()  # type: ignore[union-attr]
        stage.timeline.run(5_000)
        return [told, stage.ensemble.log, stage.states]

    assert history(5) == history(5)
    assert history(5) != history(6)

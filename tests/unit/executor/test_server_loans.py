"""Descriptors that a data server lends: read-only, asked back, and returned by the end of their connection."""

from __future__ import annotations

import os
import socket

import pytest

from stoker.executor.wire import (
    ANSWER,
    DescriptorStatus,
    Failure,
    HelloStatus,
    Op,
    Status,
)
from support.data_servers import BLOCK, DATA, SHORT, DataServer


def test_a_full_block_is_passed_once_and_is_read_only(server: DataServer) -> None:
    client = server.unix()
    statuses, fds = client.descriptors(0, 2, 7)
    assert statuses == [DescriptorStatus.PASSED, DescriptorStatus.PASSED, DescriptorStatus.NOT_HERE]
    assert os.pread(fds[0], 100, 1000) == DATA[1000:1100]
    assert os.pread(fds[1], 100, 0) == SHORT[:100]
    with pytest.raises(OSError):
        os.pwrite(fds[0], b"x", 0)
    with pytest.raises(OSError):
        os.ftruncate(fds[0], 0)
    for fd in fds:
        os.close(fd)
    client.close()


def test_a_dropped_block_stays_until_it_is_returned(fresh: DataServer) -> None:
    holding = fresh.put_block(0, DATA)
    client, other = fresh.unix(), fresh.unix()
    _, fds = client.descriptors(0)
    fresh.drop(holding)
    assert client.wait_drop() == [0]
    assert other.read_failing((0, 0, 10))[0][0][0] == Failure.MISSING  # nobody finds it any more
    assert client.request(Op.PING, [])[0] == Status.OK
    assert holding not in fresh.gone
    assert os.pread(fds[0], 10, 0) == DATA[:10]  # the reader still does
    os.close(fds[0])
    client.give_back(0)
    fresh.wait(lambda: holding in fresh.gone, "gone")
    client.close()
    other.close()


def test_the_end_of_a_connection_returns_everything(fresh: DataServer) -> None:
    holdings = [fresh.put_block(n, DATA) for n in range(3)]
    client = fresh.unix()
    statuses, fds = client.descriptors(0, 1, 2)
    for holding in holdings:
        fresh.drop(holding)
    for fd in fds:
        os.close(fd)
    client.close()
    fresh.wait(lambda: set(holdings) <= fresh.gone, "gone")


def test_a_block_that_comes_back_is_not_lent_before_its_old_self_is_returned(fresh: DataServer) -> None:
    holding = fresh.put_block(0, DATA)
    client = fresh.unix()
    _, fds = client.descriptors(0)
    fresh.drop(holding)
    assert client.wait_drop() == [0]
    again = fresh.put_block(0, DATA[::-1])
    other = fresh.unix()
    assert other.read((0, 0, 10)) == DATA[::-1][:10]
    assert client.descriptors(0) == ([DescriptorStatus.NOT_FULL], [])
    client.give_back(0)
    fresh.wait(lambda: holding in fresh.gone, "gone")
    statuses, more = client.descriptors(0)
    assert statuses == [DescriptorStatus.PASSED] and os.pread(more[0], 10, 0) == DATA[::-1][:10]
    assert again not in fresh.gone
    for fd in (*fds, *more):
        os.close(fd)
    client.close()
    other.close()


def test_a_drop_never_mixes_with_an_answer(fresh: DataServer) -> None:
    """Blocks are dropped while a long answer is on its way."""
    holdings = [fresh.put_block(n, DATA) for n in range(8)]
    client = fresh.unix()
    _, fds = client.descriptors(*range(4))
    client.send(Op.READ, [(n, 0, BLOCK) for n in range(4, 8)])
    for holding in holdings[:4]:
        fresh.drop(holding)
    status, failed, payload = client.receive()
    assert (status, failed, payload) == (Status.OK, 0, DATA * 4)
    while len(client.drops) < 4:
        client.drops += client.wait_drop()
    assert sorted(client.drops) == [0, 1, 2, 3]
    client.give_back(*client.drops)
    fresh.wait(lambda: set(holdings[:4]) <= fresh.gone, "gone")
    for fd in fds:
        os.close(fd)
    client.close()


def test_a_block_that_is_being_sent_outlives_its_drop(fresh: DataServer) -> None:
    """A slow reader: the answer is longer than what the socket holds."""
    holdings = [fresh.put_block(n, DATA) for n in range(8)]
    client = fresh.tcp()
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    client.send(Op.READ, [(n, 0, BLOCK) for n in range(8)])
    head = client.exactly(ANSWER.size)
    for holding in holdings:
        fresh.drop(holding)
    payload = client.exactly(ANSWER.unpack(head)[4])
    assert payload == DATA * 8
    fresh.wait(lambda: set(holdings) <= fresh.gone, "gone")
    client.close()


def test_a_forked_child_that_closes_its_copy_returns_nothing(fresh: DataServer) -> None:
    holding = fresh.put_block(0, DATA)
    client = fresh.unix()
    _, fds = client.descriptors(0)
    pid = os.fork()
    if pid == 0:
        client.sock.close()
        os._exit(0)
    os.waitpid(pid, 0)
    fresh.drop(holding)
    assert client.wait_drop() == [0]
    assert client.request(Op.PING, [])[0] == Status.OK
    assert holding not in fresh.gone
    client.give_back(0)
    fresh.wait(lambda: holding in fresh.gone, "gone")
    os.close(fds[0])
    client.close()


def test_a_removed_dataset_ends_its_connections_and_no_others(fresh: DataServer) -> None:
    fresh.put_dataset(2, block_bytes=BLOCK)
    holding = fresh.put_block(0, DATA)
    other = fresh.put_block(0, DATA[::-1], dataset_id=2)
    first, second = fresh.tcp(), fresh.tcp(dataset_id=2)
    fresh.channel.send({"t": "dataset_gone", "id": 1, "generation": 1})
    assert first.at_end()
    fresh.wait(lambda: holding in fresh.gone, "gone")
    assert second.read((0, 0, 10)) == DATA[::-1][:10]
    again = fresh.tcp()
    assert again.answer is not None and again.answer.status == HelloStatus.DATASET
    assert other not in fresh.gone
    for client in (first, second, again):
        client.close()


def _cleared(server: DataServer) -> list[tuple[int, int]]:
    return [(m["id"], m["generation"]) for m in server.said if m["t"] == "cleared"]


def test_a_removed_dataset_is_cleared_when_its_last_borrower_has_let_go(fresh: DataServer) -> None:
    """Readers with descriptors see the end of the connection, let go, and end it from their side."""
    holding = fresh.put_block(0, DATA)
    first, second, plain = fresh.unix(), fresh.unix(), fresh.tcp()
    fds = [client.descriptors(0)[1][0] for client in (first, second)]
    fresh.channel.send({"t": "dataset_gone", "id": 1, "generation": 1})
    for client in (first, second, plain):
        assert client.at_end()
    first.close()
    late = fresh.unix()
    assert late.answer is not None and late.answer.status == HelloStatus.DATASET
    assert _cleared(fresh) == [] and holding not in fresh.gone
    second.close()
    fresh.wait(lambda: _cleared(fresh) == [(1, 1)], "cleared")
    fresh.wait(lambda: holding in fresh.gone, "gone")
    for client in (plain, late):
        client.close()
    for fd in fds:
        os.close(fd)


def test_a_dataset_without_callers_is_cleared_at_once(fresh: DataServer) -> None:
    for dataset_id in (1, 9):  # the second was never told of
        fresh.channel.send({"t": "dataset_gone", "id": dataset_id, "generation": 1})
    fresh.wait(lambda: _cleared(fresh) == [(1, 1), (9, 1)], "cleared")


def test_a_borrower_that_never_lets_go_is_waited_for_no_longer_but_what_it_holds_counts() -> None:
    server = DataServer(let_go_timeout_ms=300)
    try:
        server.put_dataset(block_bytes=BLOCK)
        holding = server.put_block(0, DATA)
        client = server.unix()
        (fd,) = client.descriptors(0)[1]
        server.channel.send({"t": "dataset_gone", "id": 1, "generation": 1})
        server.wait(lambda: _cleared(server) == [(1, 1)], "cleared")
        assert holding not in server.gone
        os.close(fd)
        client.close()
        server.wait(lambda: holding in server.gone, "gone")
        assert _cleared(server) == [(1, 1)]
    finally:
        server.close()


def test_who_reads_no_more_is_not_waited_for_and_gives_back_what_views_held(fresh: DataServer) -> None:
    first, second = fresh.put_block(0, DATA), fresh.put_block(1, DATA)
    client = fresh.unix()
    fds = client.descriptors(0, 1)[1]
    fresh.channel.send({"t": "dataset_gone", "id": 1, "generation": 1})
    assert client.at_end()
    client.send(Op.RETURNED, [(0, 0, 0)])
    client.send(Op.RETURNED, [])
    fresh.wait(lambda: _cleared(fresh) == [(1, 1)] and first in fresh.gone, "cleared")
    assert second not in fresh.gone
    client.send(Op.RETURNED, [(1, 0, 0)])
    fresh.wait(lambda: second in fresh.gone, "gone")
    client.close()
    for fd in fds:
        os.close(fd)

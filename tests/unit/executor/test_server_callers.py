"""Who may call a data server, what it refuses and cuts off, and how it ends."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading

import pytest

from stoker.executor.channel import Channel, channel_pair
from stoker.executor.machine import CONNECTION_BYTES
from stoker.executor.wire import (
    ANSWER,
    DESCRIPTORS_MAX,
    GRANT_BYTES_MAX,
    PROTOCOL_MAX,
    RANGE,
    RANGES_MAX,
    REQUEST,
    REQUEST_BYTES_MAX,
    DescriptorStatus,
    HelloStatus,
    Op,
    Status,
    encode_hello,
    encode_request,
)

# --- hellos
from support.data_servers import (
    BLOCK,
    CLUSTER,
    DATA,
    DataServer,
    WireClient,
    connect_unix,
    running_data_server,
)
from support.kernel_memory import executor_memory
from support.waiting import DEADLINE_S, wait_until


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"cluster": b"x" * 16}, HelloStatus.CLUSTER),
        ({"launch_id": 8}, HelloStatus.LAUNCH),
        ({"incarnation": 8}, HelloStatus.LAUNCH),
        ({"dataset_id": 2}, HelloStatus.DATASET),
        ({"generation": 2}, HelloStatus.DATASET),
        ({"version_min": PROTOCOL_MAX + 1, "version_max": PROTOCOL_MAX + 5}, HelloStatus.VERSION),
        ({"launch_id": 0, "incarnation": 0}, HelloStatus.OK),
        ({"dataset_version": 99}, HelloStatus.OK),
        ({"grant": b"g" * GRANT_BYTES_MAX}, HelloStatus.OK),
        ({"version_max": 200}, HelloStatus.OK),
    ],
)
def test_a_hello_is_taken_or_refused_by_its_first_fault(
    server: DataServer, fields: dict, status: HelloStatus
) -> None:
    client = server.tcp(**fields)
    assert client.answer is not None
    assert client.answer.status == status
    assert (client.answer.cluster, client.answer.launch_id, client.answer.version) == (
        CLUSTER,
        7,
        PROTOCOL_MAX,
    )
    if status == HelloStatus.OK:
        assert client.request(Op.PING, [])[0] == Status.OK
    else:
        assert client.answer.detail
        assert client.at_end()
    client.close()


def test_garbage_instead_of_a_hello_is_told(server: DataServer) -> None:
    client = WireClient(socket.create_connection((server.host, server.port)), None)
    client.sock.sendall(
        b"GET / HTTP/1.1\r\nHost: somewhere\r\nAccept: */*\r\nUser-Agent: curl/7.88.1 xxxxxxxx\r\n\r\n"
    )
    answer = client.read_hello_answer()
    assert answer.status == HelloStatus.BAD_HELLO and "not a Stoker hello" in answer.detail
    assert client.at_end()
    client.close()


def test_half_a_hello_is_told(server: DataServer) -> None:
    client = WireClient(connect_unix(server.path), None)
    client.sock.sendall(encode_hello(server.hello())[:20])
    client.sock.shutdown(socket.SHUT_WR)
    assert client.read_hello_answer().status == HelloStatus.BAD_HELLO
    client.close()


def test_the_abstract_socket_answers_too(server: DataServer) -> None:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(b"\0" + server.abstract.encode())
    client = WireClient(sock, server.hello())
    assert client.descriptors(0)[0] == [DescriptorStatus.PASSED]
    client.close()


# --- garbage


@pytest.mark.parametrize(
    "request_bytes",
    [
        REQUEST.pack(99, 0, 0, 1, 0),
        REQUEST.pack(Op.READ, 0, 0, 1, 0),
        REQUEST.pack(Op.READ, 0, 1, 1, 11) + RANGE.pack(0, 0, 10),
        REQUEST.pack(Op.READ, 0, 2, 1, 2 * 10) + RANGE.pack(0, 0, 10) + RANGE.pack(0, 0, 11),
        REQUEST.pack(Op.READ, 0, 1, 1, REQUEST_BYTES_MAX + 1) + RANGE.pack(0, 0, REQUEST_BYTES_MAX + 1),
        REQUEST.pack(Op.READ, 0, RANGES_MAX + 1, 1, 0) + RANGE.pack(0, 0, 0) * (RANGES_MAX + 1),
        REQUEST.pack(Op.CRCS, 0, 2, 1, 0) + RANGE.pack(0, 0, 0) * 2,
        REQUEST.pack(Op.CRCS, 0, 0, 1, 0),
        REQUEST.pack(Op.PING, 0, 1, 1, 0) + RANGE.pack(0, 0, 0),
        REQUEST.pack(Op.DROP, 0, 0, 0, 0),
        REQUEST.pack(Op.DESCRIPTORS, 0, 0, 1, 0),
        REQUEST.pack(Op.DESCRIPTORS, 0, DESCRIPTORS_MAX + 1, 1, 0)
        + RANGE.pack(0, 0, 0) * (DESCRIPTORS_MAX + 1),
        b"\xff" * 64,
    ],
)
def test_a_request_that_breaks_the_protocol_ends_the_connection_with_a_reason(
    server: DataServer, request_bytes: bytes
) -> None:
    client = server.unix()
    client.sock.sendall(request_bytes)
    _, status, _, _, payload_bytes, _, _ = ANSWER.unpack(client.exactly(ANSWER.size))
    assert status == Status.BAD_REQUEST
    assert client.exactly(payload_bytes).decode()
    assert client.at_end()
    client.close()
    other = server.tcp()
    assert other.read((0, 0, 5)) == DATA[:5]
    other.close()


def test_descriptors_over_tcp_are_refused(server: DataServer) -> None:
    client = server.tcp()
    status, _, payload = client.request(Op.DESCRIPTORS, [(0, 0, 0)])
    assert status == Status.BAD_REQUEST and b"Unix socket" in payload
    client.close()


def test_random_bytes_never_harm_the_server(server: DataServer) -> None:
    chance = random.Random(3)
    for number in range(60):
        sock = (
            connect_unix(server.path) if number % 2 else socket.create_connection((server.host, server.port))
        )
        sock.settimeout(DEADLINE_S)
        if number % 3:
            sock.sendall(encode_hello(server.hello()))
        try:
            sock.sendall(chance.randbytes(chance.randrange(1, 3000)))
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536):
                pass
        except OSError:
            pass
        sock.close()
    assert server.process.poll() is None
    client = server.tcp()
    assert client.read((1, 0, 100)) == DATA[:100]
    client.close()


def test_returning_what_was_never_lent_is_nothing(server: DataServer) -> None:
    client = server.unix()
    client.give_back(0, 1, 77, 2**32 - 1)
    assert client.read((0, 0, 5)) == DATA[:5]
    client.close()


# --- limits


def test_a_caller_in_a_hurry_leaves_room_for_others(server: DataServer) -> None:
    """It pipelines without end, so its next request is always there."""
    greedy = server.tcp()
    one = encode_request(Op.READ, [(0, 0, 64)], request_id=1)
    stop = threading.Event()

    def ask() -> None:
        with contextlib.suppress(OSError):
            while not stop.is_set():
                greedy.sock.sendall(one * 200)

    def take() -> None:
        with contextlib.suppress(OSError):
            while not stop.is_set():
                greedy.sock.recv(1 << 20)

    threads = [threading.Thread(target=work) for work in (ask, take)]
    for thread in threads:
        thread.start()
    try:
        other = server.tcp()
        for _ in range(50):
            assert other.read((1, 0, 100)) == DATA[:100]
        other.close()
    finally:
        stop.set()
        greedy.sock.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()
        greedy.close()


def test_a_caller_that_says_nothing_is_cut_off() -> None:
    with running_data_server(hello_timeout_ms=1_500) as server:
        server.put_dataset(block_bytes=BLOCK)
        silent = WireClient(connect_unix(server.path), None)
        half = WireClient(socket.create_connection((server.host, server.port)), None)
        half.sock.sendall(encode_hello(server.hello())[:10])
        assert silent.at_end() and half.at_end()
        good = server.tcp()
        assert good.request(Op.PING, [])[0] == Status.OK
        for client in (silent, half, good):
            client.close()


def test_a_caller_that_reads_nothing_is_cut_off_and_frees_its_block() -> None:
    with running_data_server(stall_timeout_ms=300) as server:
        server.put_dataset(block_bytes=BLOCK)
        holdings = [server.put_block(n, DATA) for n in range(8)]
        client = server.unix()
        client.send(Op.READ, [(n, 0, BLOCK) for n in range(8)])
        for holding in holdings:
            server.drop(holding)
        server.wait(lambda: set(holdings) <= server.gone, "gone")
        client.close()


def test_a_request_that_stops_in_the_middle_is_cut_off() -> None:
    with running_data_server(stall_timeout_ms=300) as server:
        server.put_dataset(block_bytes=BLOCK)
        client = server.tcp()
        client.sock.sendall(REQUEST.pack(Op.READ, 0, 5, 1, 50) + RANGE.pack(0, 0, 10))
        assert client.at_end()
        client.close()


def test_too_many_callers_are_told_that_it_is_busy() -> None:
    with running_data_server(connections_max=2) as server:
        server.put_dataset(block_bytes=BLOCK)
        first, second = server.tcp(), server.unix()
        third = WireClient(socket.create_connection((server.host, server.port)), None)
        answer = third.read_hello_answer()
        assert answer.status == HelloStatus.BUSY and "2 connections" in answer.detail
        assert third.at_end()
        second.close()

        def taken() -> WireClient | None:
            client = WireClient(connect_unix(server.path), None)
            if client.greet(server.hello()).status == HelloStatus.OK:
                return client
            client.close()
            return None

        again = wait_until(taken, "room for another")
        assert first.request(Op.PING, [])[0] == Status.OK
        for client in (first, third, again):
            client.close()


def test_an_idle_connection_takes_no_more_memory_than_it_counts_for() -> None:
    with running_data_server() as server:
        server.put_dataset(block_bytes=BLOCK)
        clients = [server.unix()]  # what the first one takes is not taken again
        before = executor_memory(server.process.pid).private
        clients += [server.unix() for _ in range(400)]
        taken = executor_memory(server.process.pid).private - before
        assert 0 < taken <= 400 * CONNECTION_BYTES
        for client in clients:
            client.close()


# --- the end


def test_the_server_ends_with_its_keeper_and_takes_its_socket_along() -> None:
    server = DataServer()
    client = WireClient(connect_unix(server.path), None)
    path, directory = server.path, server.directory
    assert os.path.exists(path)
    server.channel._sock.shutdown(socket.SHUT_RDWR)
    assert server.process.wait(DEADLINE_S) == 0
    assert not os.path.exists(path)
    assert client.at_end()
    client.close()
    os.rmdir(directory)


def test_a_taken_port_is_told(server: DataServer) -> None:
    mine, its = channel_pair()
    process = subprocess.Popen(
        [sys.executable, "-m", "stoker.executor.server", str(its.fileno())], pass_fds=[its.fileno()]
    )
    its.close()
    channel = Channel(mine)
    start = {"t": "start", "cluster": CLUSTER, "launch": 1, "incarnation": 1, "host": "127.0.0.1"}
    channel.send(start | {"port": server.port, "path": "", "abstract": "", "parent": os.getpid()})
    received = channel.receive()
    assert received is not None and received[0]["t"] == "failed"
    assert str(server.port) in received[0]["message"]
    assert process.wait(DEADLINE_S) == 1
    channel.close()


def test_a_killed_server_is_seen_by_its_keeper() -> None:
    server = DataServer()
    server.process.send_signal(signal.SIGKILL)
    server._thread.join(DEADLINE_S)
    assert not server._thread.is_alive()  # end of file
    server.process.wait()
    server.channel.close()
    shutil.rmtree(server.directory)

"""The data server as a real process, with the test as its keeper."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import struct
import threading
import time

import crc32c
import msgpack
import pytest

from stoker.executor.block import PAGE_BYTES, BlockName, block_layout
from stoker.executor.connection import GROUPS_AHEAD_MAX
from stoker.executor.misses import GROUP_BLOCKS_MAX
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
    Failure,
    HelloStatus,
    Op,
    ReadFlag,
    Status,
    encode_hello,
    encode_request,
)
from support.executors import CLUSTER, DEADLINE_S, DataServer, WireClient, connect_unix, running_data_server

BLOCK = 4 * 2**20
DATA = random.Random(7).randbytes(BLOCK)
SHORT = DATA[: 3 * PAGE_BYTES + 100]


@pytest.fixture(scope="module")
def server():
    """A server with three full blocks; the last one is shorter."""
    with running_data_server() as running:
        running.put_dataset(block_bytes=BLOCK)
        for number in range(2):
            running.put_block(number, DATA)
        running.put_block(2, SHORT)
        yield running


@pytest.fixture
def fresh():
    """A server of one's own, which knows a dataset without blocks."""
    with running_data_server() as running:
        running.put_dataset(block_bytes=BLOCK)
        yield running


@pytest.fixture(params=["tcp", "unix"])
def client(request: pytest.FixtureRequest, server: DataServer):
    made = server.tcp() if request.param == "tcp" else server.unix()
    yield made
    made.close()


# --- reading


@pytest.mark.parametrize("length", [1, 4096, 16 * 1024, 16 * 1024 + 1, 131072, BLOCK])
def test_one_range_is_the_blocks_bytes(client: WireClient, length: int) -> None:
    start = (BLOCK - length) // 3
    assert client.read((1, start, length)) == DATA[start : start + length]


def test_a_batch_is_all_ranges_in_their_order(client: WireClient) -> None:
    chance = random.Random(1)
    ranges = []
    for _ in range(300):
        length = chance.choice([0, 1, 100, 5_000, 20_000, 70_000])
        ranges.append((chance.randrange(2), chance.randrange(BLOCK - length), length))
    assert client.read(*ranges) == b"".join(DATA[start : start + length] for _, start, length in ranges)


def test_the_most_ranges_are_served(client: WireClient) -> None:
    ranges = [(0, 64 * n, 10) for n in range(RANGES_MAX)]
    assert client.read(*ranges) == b"".join(DATA[start : start + 10] for _, start, _ in ranges)


def test_requests_may_be_pipelined_and_keep_their_order(client: WireClient) -> None:
    asked = [(n % 2, 1000 * n, 3000 + n) for n in range(50)]
    client.sock.sendall(b"".join(encode_request(Op.READ, [r], request_id=n) for n, r in enumerate(asked)))
    for n, (_, start, length) in enumerate(asked):
        head = ANSWER.unpack(client.exactly(ANSWER.size))
        assert head[3] == n
        assert client.exactly(head[4]) == DATA[start : start + length]


def test_a_request_may_come_in_single_bytes(client: WireClient) -> None:
    for byte in encode_request(Op.READ, [(0, 5, 10)], request_id=1):
        client.sock.sendall(bytes([byte]))
    client._requests = 1
    assert client.receive()[2] == DATA[5:15]


def test_ranges_that_fail_are_named_and_the_others_sent(client: WireClient) -> None:
    failed, data = client.read_failing(
        (0, 0, 10), (0, BLOCK - 1, 2), (9, 0, 10), (1, 5, 5), (2, len(SHORT) - 1, 2)
    )
    assert data == DATA[:10] + DATA[5:10]
    assert {n: code for n, (code, _) in failed.items()} == {
        1: Failure.OUT_OF_RANGE,
        2: Failure.MISSING,
        4: Failure.MISSING,
    }
    assert client.read((2, len(SHORT) - 5, 5)) == SHORT[-5:]


def test_every_answer_tells_the_newest_versions(server: DataServer) -> None:
    client = server.tcp()
    server.channel.send({"t": "slots", "placement_version": 77, "slots": msgpack.packb([{"slot_id": 3}])})
    server.put_dataset(version=5, block_bytes=BLOCK)
    deadline = time.monotonic() + DEADLINE_S
    while True:
        client.send(Op.PING, [])
        head = ANSWER.unpack(client.exactly(ANSWER.size))
        if head[5:] == (77, 5):
            break
        assert time.monotonic() < deadline
    status, _, payload = client.request(Op.REFRESH, [])
    told = msgpack.unpackb(payload)
    assert status == Status.OK
    assert told == {
        "placement": {"dataset_id": 1, "generation": 1, "version": 5, "placement_version": 77},
        "slots": [{"slot_id": 3}],
    }
    client.close()


def test_checksums_of_a_full_block(client: WireClient) -> None:
    status, _, payload = client.request(Op.CRCS, [(2, 0, 0)])
    assert status == Status.OK
    pages = [SHORT[start : start + PAGE_BYTES] for start in range(0, len(SHORT), PAGE_BYTES)]
    assert list(struct.unpack("<4I", payload)) == [crc32c.crc32c(page) for page in pages]
    assert client.request(Op.CRCS, [(5, 0, 0)])[0] == Status.UNAVAILABLE
    assert client.read((0, 0, 1)) == DATA[:1]


def test_a_damaged_page_is_found_where_a_check_is_asked_for(fresh: DataServer) -> None:
    name = BlockName(1, 1, 0)
    holding, fd = fresh.make_file(name, DATA)
    os.pwrite(fd, bytes([DATA[70_000] ^ 1]), 70_000)
    message = {
        "t": "block",
        "holding": holding,
        "dataset": 1,
        "generation": 1,
        "index": 0,
        "data_bytes": BLOCK,
    }
    fresh.channel.send(message | {"full_from": 1}, [fd])
    client = fresh.tcp()
    failed, data = client.read_failing(
        (0, 0, 100), (0, 66_000, 100), (0, PAGE_BYTES * 2, 50), flags=ReadFlag.CHECK
    )
    assert {n: code for n, (code, _) in failed.items()} == {1: Failure.CORRUPT}
    assert data == DATA[:100] + DATA[PAGE_BYTES * 2 : PAGE_BYTES * 2 + 50]
    fresh.wait(lambda: any(m["t"] == "corrupt" for m in fresh.said), "the keeper hears of it")
    client.close()


def test_use_is_reported(fresh: DataServer) -> None:
    holding = fresh.put_block(0, DATA)
    client = fresh.tcp()
    for _ in range(10):
        client.read((0, 0, 100))

    def is_told() -> bool:
        used = [m for m in fresh.said if m["t"] == "used"]
        uses = sum(count for m in used for h, count in m["holdings"] if h == holding)
        return uses == 10 and sum(s[2] for m in used for s in m["served"]) == 1000

    fresh.wait(is_told, "uses and bytes")
    client.close()


# --- blocks that are not full


def test_only_valid_extents_of_a_partial_block_are_served(fresh: DataServer) -> None:
    fresh.put_block(0, DATA, valid=[(64, 6400), (131072, 200000)])
    client = fresh.unix()
    assert client.read((0, 64, 6336)) == DATA[64:6400]
    assert client.read((0, 131100, 68_900), (0, 100, 10)) == DATA[131100:200000] + DATA[100:110]
    for start, length in ((0, 10), (60, 10), (6399, 2), (200_000 - 1, 100), (1_000_000, 1)):
        failed, data = client.read_failing((0, start, length))
        assert failed[0][0] == Failure.MISSING and data == b""
    assert client.descriptors(0) == ([DescriptorStatus.NOT_FULL], [])
    client.close()


def test_a_block_full_from_a_later_version_is_partial_for_an_earlier_reader(fresh: DataServer) -> None:
    """In version 2 a file of version 1 is gone; its bytes were never fetched, and must not be served as zeros."""
    holding, fd = fresh.make_file(BlockName(1, 1, 0), DATA)
    from stoker.executor import index

    index.mark_valid(fd, block_layout(BLOCK), [(0, 640), (1280, BLOCK)])
    fresh.tier.seal(fd)
    message = {
        "t": "block",
        "holding": holding,
        "dataset": 1,
        "generation": 1,
        "index": 0,
        "data_bytes": BLOCK,
    }
    fresh.channel.send(message | {"full_from": 0}, [fd])
    fresh.channel.send({"t": "full", "holding": holding, "full_from": 2})
    late, early = fresh.unix(dataset_version=2), fresh.unix(dataset_version=1)
    statuses, fds = late.descriptors(0)
    assert statuses == [DescriptorStatus.PASSED]
    assert early.descriptors(0) == ([DescriptorStatus.NOT_FULL], [])
    assert late.read((0, 600, 100)) == DATA[600:700]
    failed, _ = early.read_failing((0, 600, 100))
    assert failed[0][0] == Failure.MISSING
    assert early.read((0, 1280, 100)) == DATA[1280:1380]
    os.close(fds[0])
    late.close()
    early.close()


# --- misses


def answer_want(server: DataServer, message: dict, holding: int) -> None:
    """Say that all items are in `holding`."""
    places = [holding] * len(message["items"])
    server.channel.send({"t": "have", "want": message["want"], "places": places, "scratch": [], "failed": []})


def test_a_miss_waits_for_the_keeper_and_is_served_from_its_block(fresh: DataServer) -> None:
    def fill(message: dict) -> None:
        assert message["items"] == [[0, 100, 600], [0, 5000, 5010]]
        assert (message["version"], message["local"]) == (1, False)
        answer_want(fresh, message, fresh.put_block(0, DATA, valid=[(64, 6400)]))

    fresh.on_want = fill
    client = fresh.tcp()
    assert client.read((0, 100, 500), (0, 5000, 10)) == DATA[100:600] + DATA[5000:5010]
    client.close()


def test_local_only_says_so_to_the_keeper(fresh: DataServer) -> None:
    asked = []

    def look(message: dict) -> None:
        asked.append(message["local"])
        fresh.fail_want(message)

    fresh.on_want = look
    client = fresh.tcp()
    failed, _ = client.read_failing((0, 0, 10), flags=ReadFlag.LOCAL_ONLY)
    assert failed[0][0] == Failure.MISSING and asked == [True]
    client.close()


def test_one_request_does_not_take_all_places_of_those_who_wait(fresh: DataServer) -> None:
    asked: list[dict] = []
    fresh.on_want = asked.append
    client, other = fresh.tcp(), fresh.tcp()
    holding = fresh.put_block(0, DATA)
    count = GROUPS_AHEAD_MAX * GROUP_BLOCKS_MAX + 1
    client.send(Op.READ, [(n, 0, 1) for n in range(1, count + 1)])
    fresh.wait(lambda: len(asked) == GROUPS_AHEAD_MAX, "wants")
    assert other.read((0, 0, 100)) == DATA[:100]
    assert len(asked) == GROUPS_AHEAD_MAX
    for message in asked[:]:
        answer_want(fresh, message, holding)
    fresh.wait(lambda: len(asked) == GROUPS_AHEAD_MAX + 1, "the last")
    answer_want(fresh, asked[-1], holding)
    status, failed, data = client.receive()
    assert (status, failed, data) == (Status.OK, 0, DATA[:1] * count)
    client.close()
    other.close()


def test_a_large_miss_is_asked_for_in_pieces_and_streamed_through_scratch(fresh: DataServer) -> None:
    """The keeper gives one scratch at a time, and the next only once the one before is gone."""
    free = threading.Semaphore(1)
    wants: list[dict] = []

    def give(message: dict) -> None:
        wants.append(message)

    def keeper() -> None:
        for n in range(4):
            fresh.wait(lambda n=n: len([m for m in fresh.said if m["t"] == "want"]) > n, "want")
            assert free.acquire(timeout=DEADLINE_S)
            holding, fd = fresh.make_file(BlockName(1, 1, 0), DATA)
            items = wants[n]["items"]
            assert sum(stop - start for _, start, stop in items) <= 4 * 2**20
            scratch = [[holding, BLOCK]]
            places = [holding] * len(items)
            have = {"t": "have", "want": wants[n]["want"], "places": places, "scratch": scratch, "failed": []}
            fresh.channel.send(have, [fd])
            fresh.wait(lambda holding=holding: holding in fresh.gone, "gone")
            free.release()

    fresh.on_want = give
    thread = threading.Thread(target=keeper)
    thread.start()
    client = fresh.tcp()
    ranges = [(n, 0, BLOCK) for n in range(4)]
    assert client.read(*ranges) == DATA * 4
    thread.join()
    assert [[[n, 0, BLOCK]] for n in range(4)] == [m["items"] for m in wants]
    client.close()


def test_a_failure_after_the_answer_began_ends_the_connection(fresh: DataServer) -> None:
    def give(message: dict) -> None:
        if message["items"][0][0] == 0:
            holding, fd = fresh.make_file(BlockName(1, 1, 0), DATA)
            have = {"t": "have", "want": message["want"], "places": [holding], "scratch": [[holding, BLOCK]]}
            fresh.channel.send(have | {"failed": []}, [fd])
            return
        threading.Timer(0.3, fresh.fail_want, [message]).start()

    fresh.on_want = give
    client = fresh.tcp()
    client.send(Op.READ, [(0, 0, BLOCK), (1, 0, BLOCK)])
    head = ANSWER.unpack(client.exactly(ANSWER.size))
    assert head[4] == 2 * BLOCK
    assert client.exactly(BLOCK) == DATA
    assert client.at_end()
    client.close()


def test_what_is_known_to_fail_is_named_even_where_the_answer_is_streamed(fresh: DataServer) -> None:
    late: list[threading.Timer] = []

    def give(message: dict) -> None:
        if message["items"][0][0] == 0:
            holding, fd = fresh.make_file(BlockName(1, 1, 0), DATA)
            have = {"t": "have", "want": message["want"], "places": [holding], "scratch": [[holding, BLOCK]]}
            threading.Timer(0.2, fresh.channel.send, [have | {"failed": []}, [fd]]).start()
            return
        fresh.channel.send(
            {"t": "known", "want": message["want"], "failed": [[0, int(Failure.CHANGED), "changed"]]}
        )
        late.append(threading.Timer(0.4, fresh.fail_want, [message]))
        late[0].start()

    fresh.on_want = give
    client = fresh.tcp()
    failed, data = client.read_failing((0, 0, BLOCK), (1, 0, BLOCK))
    assert failed == {1: (Failure.CHANGED, "changed")} and data == DATA
    assert client.request(Op.PING, [])[0] == Status.OK
    late[0].join()
    client.close()


def test_a_caller_that_leaves_while_a_miss_is_fetched_leaves_nothing_behind(fresh: DataServer) -> None:
    fresh.on_want = lambda message: None
    client = fresh.tcp()
    client.send(Op.READ, [(0, 0, BLOCK)])
    fresh.wait(lambda: any(m["t"] == "want" for m in fresh.said), "want")
    want = next(m for m in fresh.said if m["t"] == "want")["want"]
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()  # a reset
    holding, fd = fresh.make_file(BlockName(1, 1, 0), DATA)
    have = {"t": "have", "want": want, "places": [holding], "scratch": [[holding, BLOCK]], "failed": []}
    fresh.channel.send(have, [fd])
    fresh.wait(lambda: holding in fresh.gone, "gone")


# --- descriptors and loans


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


# --- hellos


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
    other = server.tcp()
    begin = time.monotonic()
    for _ in range(50):
        assert other.read((1, 0, 100)) == DATA[:100]
    assert time.monotonic() - begin < 5
    stop.set()
    other.close()
    greedy.sock.shutdown(socket.SHUT_RDWR)
    for thread in threads:
        thread.join()
    greedy.close()


def test_a_caller_that_says_nothing_is_cut_off() -> None:
    with running_data_server(hello_timeout_ms=300) as server:
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
        deadline = time.monotonic() + DEADLINE_S
        while True:
            again = WireClient(connect_unix(server.path), None)
            if again.greet(server.hello()).status == HelloStatus.OK:
                break
            again.close()
            assert time.monotonic() < deadline
        assert first.request(Op.PING, [])[0] == Status.OK
        for client in (first, third, again):
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
    from stoker.executor.channel import Channel, channel_pair

    mine, its = channel_pair()
    import subprocess
    import sys

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
    for fd in server.fds.values():
        os.close(fd)

"""The data server as a real process, with the test as its keeper: what it serves, and what it asks for."""

from __future__ import annotations

import os
import random
import socket
import struct
import threading

import crc32c
import msgpack
import pytest

from stoker.executor import index
from stoker.executor.block import PAGE_BYTES, BlockName, block_layout
from stoker.executor.misses import GROUP_BLOCKS_MAX
from stoker.executor.reading import GROUPS_AHEAD_MAX
from stoker.executor.wire import (
    ANSWER,
    RANGES_MAX,
    DescriptorStatus,
    Failure,
    Op,
    ReadFlag,
    Status,
    encode_request,
)

# --- reading
from support.data_servers import BLOCK, DATA, SHORT, DataServer, WireClient
from support.waiting import DEADLINE_S, wait_until


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

    def told() -> tuple[int, int]:
        client.send(Op.PING, [])
        return ANSWER.unpack(client.exactly(ANSWER.size))[5:]

    wait_until(lambda: told() == (77, 5), "the newest versions")
    status, _, payload = client.request(Op.REFRESH, [])
    assert status == Status.OK
    assert msgpack.unpackb(payload) == {
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


def tell_block(server: DataServer, holding: int, fd: int, *, full_from: int) -> None:
    """Put a file on the shelf as block 0."""
    message = {
        "t": "block",
        "holding": holding,
        "dataset": 1,
        "generation": 1,
        "index": 0,
        "data_bytes": BLOCK,
    }
    server.channel.send(message | {"full_from": full_from}, [fd])


def test_a_damaged_page_is_found_where_a_check_is_asked_for(fresh: DataServer) -> None:
    name = BlockName(1, 1, 0)
    holding, fd = fresh.make_file(name, DATA)
    os.pwrite(fd, bytes([DATA[70_000] ^ 1]), 70_000)
    tell_block(fresh, holding, fd, full_from=1)
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
    index.mark_valid(fd, block_layout(BLOCK), [(0, 640), (1280, BLOCK)])
    fresh.tier.seal(fd)
    tell_block(fresh, holding, fd, full_from=0)
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


def give_scratch(server: DataServer, message: dict) -> None:
    """Answer a want of one whole block with scratch."""
    holding, fd = server.make_file(BlockName(1, 1, 0), DATA)
    have = {"t": "have", "want": message["want"], "places": [holding], "scratch": [[holding, BLOCK]]}
    server.channel.send(have | {"failed": []}, [fd])


def test_a_failure_after_the_answer_began_ends_the_connection(fresh: DataServer) -> None:
    late: list[dict] = []
    fresh.on_want = lambda m: late.append(m) if m["items"][0][0] else give_scratch(fresh, m)
    client = fresh.tcp()
    client.send(Op.READ, [(0, 0, BLOCK), (1, 0, BLOCK)])
    head = ANSWER.unpack(client.exactly(ANSWER.size))
    assert head[4] == 2 * BLOCK
    assert client.exactly(BLOCK) == DATA
    fresh.wait(lambda: bool(late), "the other want")
    fresh.fail_want(late[0])
    assert client.at_end()
    client.close()


def test_what_is_known_to_fail_is_named_even_where_the_answer_is_streamed(fresh: DataServer) -> None:
    """It is known before the first byte is there, and over only after the last one was sent."""
    wants: list[dict] = []
    fresh.on_want = wants.append
    client = fresh.tcp()
    client.send(Op.READ, [(0, 0, BLOCK), (1, 0, BLOCK)])
    fresh.wait(lambda: len(wants) == 2, "both wants")
    first, second = sorted(wants, key=lambda message: message["items"][0][0])
    changed = [[0, int(Failure.CHANGED), "changed"]]
    fresh.channel.send({"t": "known", "want": second["want"], "failed": changed})
    give_scratch(fresh, first)
    status, failed_count, payload = client.receive()
    length = int.from_bytes(payload[:4], "little")
    assert (status, failed_count, payload[4 + length :]) == (Status.OK, 1, DATA)
    assert msgpack.unpackb(payload[4 : 4 + length]) == [[1, int(Failure.CHANGED), "changed"]]
    fresh.fail_want(second)
    assert client.request(Op.PING, [])[0] == Status.OK
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

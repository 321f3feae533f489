"""The channel between the processes of an executor."""

from __future__ import annotations

import os
import threading

import pytest

from stoker.executor.channel import DESCRIPTORS_MAX, INLINE_BYTES_MAX, Channel, channel_pair
from stoker.executor.errors import ChannelError


@pytest.fixture
def pair():
    left, right = channel_pair()
    channels = Channel(left), Channel(right)
    yield channels
    for channel in channels:
        channel.close()


@pytest.mark.parametrize("size", [0, INLINE_BYTES_MAX - 100, INLINE_BYTES_MAX, 5_000_000])
def test_a_message_arrives_whole_with_its_descriptors(pair: tuple[Channel, Channel], size: int) -> None:
    read, write = os.pipe()
    pair[0].send({"t": "x", "data": b"y" * size}, [read, write])
    received = pair[1].receive()
    assert received is not None
    message, fds = received
    assert message == {"t": "x", "data": b"y" * size}
    assert len(fds) == 2 and not os.get_inheritable(fds[0])
    os.write(fds[1], b"through")
    assert os.read(read, 7) == b"through"
    for fd in (read, write, *fds):
        os.close(fd)


def test_the_most_descriptors_arrive(pair: tuple[Channel, Channel]) -> None:
    pair[0].send({"long": b"x" * INLINE_BYTES_MAX}, [0] * DESCRIPTORS_MAX)
    received = pair[1].receive()
    assert received is not None and len(received[1]) == DESCRIPTORS_MAX
    for fd in received[1]:
        os.close(fd)


def test_no_descriptor_is_left_open(pair: tuple[Channel, Channel]) -> None:
    before = len(os.listdir("/proc/self/fd"))
    pair[0].send({"long": b"x" * 1_000_000})
    assert pair[1].receive() is not None
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_end_of_the_other_process_is_the_end_of_messages(pair: tuple[Channel, Channel]) -> None:
    pair[0].send({"last": 1})
    pair[0].close()
    assert pair[1].receive() == ({"last": 1}, [])
    assert pair[1].receive() is None
    assert pair[1].receive() is None
    with pytest.raises(OSError):
        pair[1].send({"t": 1})


@pytest.mark.parametrize(
    "packet", [b"\x00\xc1", b"\x00\x05", b"\x01", b"\x00" + b"x" * (INLINE_BYTES_MAX + 10)]
)
def test_what_is_no_message_is_an_error(packet: bytes) -> None:
    left, right = channel_pair()
    left.send(packet)
    with pytest.raises(ChannelError):
        Channel(right).receive()
    left.close()
    right.close()


def test_many_threads_may_send_at_once(pair: tuple[Channel, Channel]) -> None:
    def send(thread: int) -> None:
        for number in range(200):
            pair[0].send({"thread": thread, "number": number, "data": b"z" * (number * 300)})

    threads = [threading.Thread(target=send, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    seen: dict[int, list[int]] = {n: [] for n in range(4)}
    for _ in range(800):
        received = pair[1].receive()
        assert received is not None
        assert len(received[0]["data"]) == received[0]["number"] * 300
        seen[received[0]["thread"]].append(received[0]["number"])
    for thread in threads:
        thread.join()
    assert all(numbers == list(range(200)) for numbers in seen.values())


def test_an_inherited_end_blocks_even_if_the_maker_does_not() -> None:
    left, right = channel_pair()
    right.setblocking(False)  # as gevent does
    channel = Channel.from_fd(os.dup(right.fileno()))
    threading.Timer(0.05, left.send, [b"\x00\x80"]).start()
    assert channel.receive() == ({}, [])
    channel.close()
    left.close()
    right.close()

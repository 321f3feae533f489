"""Reading a journal while its leader goes on: the moments that a real server shows too seldom."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from kazoo.exceptions import NoNodeError

from stoker.zk.codec import SnapshotHeader, encode_batch, encode_pointer
from stoker.zk.errors import Corrupt, Unavailable
from stoker.zk.home import Batch, Snapshot
from stoker.zk.layout import Layout
from stoker.zk.reader import CUTS_MAX, Reader
from stoker.zk.session import Request
from stoker.zk.zookeeper import BEHIND_MAX, ZooKeeperHome

LAYOUT = Layout("/s")


class Nodes:
    """What a Reader asks of a session, from a dictionary. `listed` is called after each look at the log."""

    layout = LAYOUT
    handler = threading

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {LAYOUT.pointer: b""}
        self.listed: Callable[[], None] = lambda: None
        self.written: Callable[[int], None] = lambda index: None  # called before each look for a batch's node

    def append(self, first_index: int, count: int) -> None:
        self.data[LAYOUT.batch(first_index)] = encode_batch([b"x"] * count, epoch=1, first_index=first_index)

    def point(self, next_index: int) -> None:
        self.data[LAYOUT.snapshot_chunk("name", 0)] = b"state"
        self.data[LAYOUT.pointer] = encode_pointer(
            SnapshotHeader(1, next_index, 5, zlib.crc32(b"state")), "name"
        )

    def names_in(self, folder: str) -> list[str]:
        names = [path[len(folder) + 1 :] for path in self.data if path.startswith(f"{folder}/")]
        self.listed()
        return names

    def begin(self, request: Request) -> Request:
        return request

    def finish(self, request: Request) -> Any:
        return request(self)

    def ask(self, request: Request) -> Any:
        return request(self)

    def get_async(self, path: str) -> tuple[bytes, None]:
        if path not in self.data:
            raise NoNodeError(path)
        return self.data[path], None

    def exists_async(self, path: str, watch: object) -> bool | None:
        self.written(int(path.rpartition("/")[2]))
        return path in self.data or None

    def on_end(self, call: Callable[[], None]) -> None:
        pass

    def check_alive(self) -> None:
        pass


def reader_of(nodes: Nodes) -> Reader:
    return Reader(nodes, {})  # type: ignore[arg-type]


def test_a_snapshot_that_is_newer_than_all_that_was_listed() -> None:
    """Between the look at the log and that at the pointer the leader appends, and writes a snapshot, but has not cut."""
    nodes = Nodes()
    nodes.append(0, 10)

    def go_on() -> None:
        nodes.append(10, 5)
        nodes.point(15)

    nodes.listed = go_on
    reader = reader_of(nodes)
    assert list(reader.read_from(0)) == [Snapshot(15, b"state")]
    assert reader.newest_index == 15
    nodes.listed = lambda: None
    nodes.append(15, 2)
    assert list(reader.read_from(15)) == [Batch(15, 1, [b"x", b"x"])]


def test_a_journal_that_ends_before_what_was_read_of_it_is_another() -> None:
    nodes = Nodes()
    nodes.append(0, 10)
    with pytest.raises(Corrupt, match="it is not the same journal"):
        list(reader_of(nodes).read_from(12))
    nodes.point(11)
    with pytest.raises(Corrupt, match="it is not the same journal"):
        list(reader_of(nodes).read_from(12))


def test_a_log_that_is_cut_again_and_again_while_it_is_read_is_no_damage() -> None:
    nodes = Nodes()
    nodes.append(0, 1)
    index = 0

    def cut() -> None:
        nonlocal index
        del nodes.data[LAYOUT.batch(index)]
        index += 1
        nodes.append(index, 1)
        nodes.point(index)

    nodes.listed = cut
    with pytest.raises(Unavailable, match="cut faster than it can be read"):
        list(reader_of(nodes).read_from(0))
    assert index == CUTS_MAX


def test_a_follower_of_a_leader_that_never_rests_hears_that_it_has_read_all_there_was() -> None:
    """Else it would never become a candidate: it waits for that."""
    nodes = Nodes()
    for index in range(5):
        nodes.append(index, 1)
    nodes.written = lambda index: nodes.append(index, 1)  # each time it looks, there is one more
    home = ZooKeeperHome.__new__(ZooKeeperHome)
    home._session, home._reader = nodes, reader_of(nodes)  # type: ignore[assignment]
    home._wake, home._is_stopped = threading.Event(), False
    seen: list[Snapshot | Batch | None] = []
    for step in home.follow(0):
        seen.append(step)
        if len(seen) == 3 * BEHIND_MAX:
            break
    assert seen.index(None) == 5  # what it held at first
    assert None in seen[6:]  # and again after each list
    records = [step for step in seen if step is not None]
    assert [step.first_index for step in records if isinstance(step, Batch)] == list(range(len(records)))

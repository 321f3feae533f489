"""Homes in ZooKeeper for tests: opened, led, and looked at from outside."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from kazoo.client import KazooClient

from stoker.zk.home import Batch, Home, Snapshot, open_home
from stoker.zk.zookeeper import ZooKeeperHome
from stoker.zk.zookeeper_journal import ZooKeeperJournal

SESSION_TIMEOUT_MS = 60_000  # for tests that do not wait for its end
WAIT_S = 60.0


def wait_until(condition: Callable[[], Any], what: str = "", *, timeout_s: float = WAIT_S) -> Any:
    """Return what `condition` returns once that is true."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not after {timeout_s} s: {what or condition}"
        time.sleep(0.01)
    return found


@contextmanager
def opened(
    url: str, *, member: str = "http://one:1", session_timeout_ms: int = SESSION_TIMEOUT_MS, secret: str = ""
) -> Iterator[ZooKeeperHome]:
    """Give a home that is started, and close it."""
    home = open_home(
        url, member=member, owner=member, session_timeout_ms=session_timeout_ms, gevent=False, secret=secret
    )
    assert isinstance(home, ZooKeeperHome)
    try:
        home.start()
        yield home
    finally:
        home.close()


def led(home: Home, from_index: int = 0) -> tuple[ZooKeeperJournal, int]:
    """Return the home's journal, which leads, and the next index."""
    home.join()
    assert home.wait_turn(int(WAIT_S * 1000))
    journal = home.journal()
    found = journal.lead(from_index)
    assert isinstance(journal, ZooKeeperJournal)
    return journal, found.snapshot_index + sum(len(records) for _, records in found.batches)


class Tree:
    """The nodes under a path, seen and changed by a plain client."""

    def __init__(self, client: KazooClient, root: str) -> None:
        self.client = client
        self.root = root

    def all(self) -> dict[str, bytes]:
        """Return the data of all nodes, by their path below the root; the election left out."""
        found: dict[str, bytes] = {}
        todo = [""]
        while todo:
            path = todo.pop()
            if self.client.exists(self.root + path) is None:
                continue
            found[path] = self.client.get(self.root + path)[0]
            if path != "/election":
                todo += [f"{path}/{name}" for name in self.client.get_children(self.root + path)]
        return found

    def names(self, path: str) -> list[str]:
        return sorted(self.client.get_children(f"{self.root}/{path}"))

    def get(self, path: str) -> bytes:
        data: bytes = self.client.get(f"{self.root}/{path}")[0]
        return data

    def set(self, path: str, data: bytes) -> None:
        self.client.set(f"{self.root}/{path}", data)

    def create(self, path: str, data: bytes = b"") -> None:
        self.client.create(f"{self.root}/{path}", data, makepath=True)

    def delete(self, path: str) -> None:
        self.client.delete(f"{self.root}/{path}", recursive=True)


class Following:
    """What a follower sees, in a thread of its own."""

    def __init__(self, home: Home, from_index: int = 0) -> None:
        self.home = home
        self.seen: list[Snapshot | Batch | None] = []
        self.error: BaseException | None = None
        self._from_index = from_index
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            for step in self.home.follow(self._from_index):
                self.seen.append(step)
        except Exception as error:
            self.error = error

    @property
    def next_index(self) -> int:
        steps = [step for step in list(self.seen) if step is not None]
        if not steps:
            return self._from_index
        last = steps[-1]
        return last.next_index if isinstance(last, Snapshot) else last.first_index + len(last.records)

    @property
    def is_caught_up(self) -> bool:
        return bool(self.seen) and self.seen[-1] is None

    def state(self) -> tuple[bytes | None, list[bytes]]:
        """Return the newest snapshot and the records after it; asserts that none is missing."""
        snapshot, records, index = None, [], self._from_index
        for step in list(self.seen):
            if isinstance(step, Snapshot):
                snapshot, records, index = step.data, [], step.next_index
            elif step is not None:
                assert step.first_index == index, f"{step.first_index} after {index}"
                records += step.records
                index += len(step.records)
        return snapshot, records

    def wait(self, next_index: int) -> None:
        wait_until(lambda: self.error or self.next_index >= next_index and self.is_caught_up, f"{next_index}")
        if self.error:
            raise self.error
        assert self.next_index == next_index

    def stop(self) -> None:
        self.home.stop_following()
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()

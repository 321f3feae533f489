"""Journals for tests: one factory a home, for the conformance suite; and small helpers."""

from __future__ import annotations

import atexit
import contextlib
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from kazoo.client import KazooClient
from kazoo.exceptions import NoNodeError

from stoker.zk.core.leadership import is_node_of, sort_candidates
from stoker.zk.home import open_home
from stoker.zk.journal import Journal, Recovered
from stoker.zk.local import LocalJournal
from stoker.zk.zookeeper import ZooKeeperHome
from support.zookeeper import WHY_NOT, shared_server


class JournalFactory(Protocol):
    """One place where a journal is kept; `open` makes one more process' view of it."""

    takes_over: bool  # a second `lead` fences the first leader; else it is refused with Locked

    def open(self, owner: str = "test") -> Journal: ...

    def close(self) -> None:
        """Close all that `open` gave, and the place."""
        ...


class LocalFactory:
    takes_over = False

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "journal"
        self._opened: list[Journal] = []

    def open(self, owner: str = "test") -> Journal:
        journal: Journal = LocalJournal(str(self._directory), owner=owner)
        self._opened.append(journal)
        return journal

    def close(self) -> None:
        for journal in self._opened:
            journal.close()


class ZooKeeperFactory:
    """Each journal is that of a scheduler of its own, whose `lead` puts whoever stands before it out of the election."""

    takes_over = True
    session_timeout_ms = 60_000

    def __init__(self, directory: Path) -> None:
        server = shared_server()
        self.url = f"zk://{server.address}/test-{uuid.uuid4().hex[:12]}/stoker"
        self.path = self.url.partition(server.address)[2]
        self._opened: list[ElectedJournal] = []

    def open(self, owner: str = "test") -> Journal:
        home = open_home(
            self.url, member=owner, owner=owner, session_timeout_ms=self.session_timeout_ms, gevent=False
        )
        assert isinstance(home, ZooKeeperHome)
        journal = ElectedJournal(home, self.path)
        self._opened.append(journal)
        return journal

    def close(self) -> None:
        for journal in self._opened:
            journal.close()


class ElectedJournal:
    """A home's journal that is led by one call, as the local one is."""

    def __init__(self, home: ZooKeeperHome, path: str) -> None:
        self.home = home
        self._path = path
        self._journal = home.journal()
        self._is_started = False
        self.check = self._journal.check
        self.append = self._journal.append
        self.write_snapshot = self._journal.write_snapshot
        self.put_blob = self._journal.put_blob
        self.delete_blob = self._journal.delete_blob
        self.audit = self._journal.audit

    def lead(self, from_index: int = 0) -> Recovered:
        self._start()
        self.home.join()
        while not self.home.wait_turn(200):
            depose_first(f"{self._path}/election", unless=self.home.candidate)
        return self._journal.lead(from_index)

    @property
    def wants_snapshot(self) -> bool:
        return self._journal.wants_snapshot

    def get_blob(self, digest: str) -> bytes | None:
        self._start()
        return self._journal.get_blob(digest)

    def blob_digests(self) -> list[str]:
        self._start()
        return self._journal.blob_digests()

    def close(self) -> None:
        self.home.close()

    def _start(self) -> None:
        if not self._is_started:
            self._is_started = True
            self.home.start()


_clients: list[KazooClient] = []


def shared_client() -> KazooClient:
    """Return this process' plain client of the shared server, for looking at nodes and for meddling with them."""
    if not _clients:
        client = KazooClient(hosts=shared_server().address, timeout=60)
        client.start(timeout=60)
        atexit.register(client.stop)  # before the server ends
        _clients.append(client)
    return _clients[0]


def depose_first(election: str, *, unless: str = "?") -> None:
    """Take the first candidate's node away, as the ensemble does when a session has run out; `unless` it is this one's."""
    client = shared_client()
    nodes = sort_candidates(client.get_children(election))
    if nodes and not is_node_of(nodes[0], unless):
        with contextlib.suppress(NoNodeError):
            client.delete(f"{election}/{nodes[0]}")


JOURNAL_FACTORIES: dict[str, Callable[[Path], JournalFactory]] = {"local": LocalFactory}
ZOOKEEPER_MISSING = WHY_NOT
if not ZOOKEEPER_MISSING:
    JOURNAL_FACTORIES["zookeeper"] = ZooKeeperFactory


def indexes(recovered: Recovered) -> list[int]:
    """Return the index of each recovered record."""
    return [first + n for first, records in recovered.batches for n in range(len(records))]


def replay(recovered: Recovered) -> list[bytes]:
    """Return the recovered records; asserts that their indexes have no gap."""
    found: list[bytes] = []
    for first_index, records in recovered.batches:
        assert records and first_index == recovered.snapshot_index + len(found)
        found += records
    return found


def batches(count: int, *, records: int = 3) -> Iterator[Sequence[bytes]]:
    """Yield `count` batches of records that tell which they are."""
    for number in range(count):
        yield [b"%d.%d" % (number, place) for place in range(records)]

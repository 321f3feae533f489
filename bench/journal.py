"""The journal in ZooKeeper beside plain kazoo creates of the same bytes, and writes through the API of a real scheduler."""

from __future__ import annotations

import asyncio
import collections
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import zookeeper
from common import Result, compare, seconds
from kazoo.client import KazooClient

from stoker.zk.home import open_home
from stoker.zk.journal import Journal

RECORD = bytes(range(200))
SINGLES = 500
BATCH = 1_000
BATCHES = 100
WINDOW = 200  # of pipelined creates
WRITERS = 100
WRITES = 3_000
ROUNDS = 3


def run() -> list[Result]:
    if not zookeeper.is_here():
        return []
    with zookeeper.ensemble() as ensemble:
        with _kazoo(ensemble.hosts) as client, _leading(ensemble.url("/bench")) as writer:
            results = [_singles(client, writer), _batches(client, writer)]
        return [*results, _api(ensemble)]


class _Writer:
    """Appends records to a journal that it leads, and cuts it as a scheduler does."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        recovered = journal.lead()
        self._next = recovered.snapshot_index + sum(len(records) for _, records in recovered.batches)

    def append(self, records: list[bytes]) -> None:
        self._journal.append(self._next, records)
        self._next += len(records)
        if self._journal.wants_snapshot:
            self._journal.write_snapshot(self._next, b"state")


@contextmanager
def _leading(url: str) -> Iterator[_Writer]:
    home = open_home(url, member="bench", owner="bench")
    try:
        home.start()
        home.join()
        home.wait_turn()
        yield _Writer(home.journal())
    finally:
        home.close()


@contextmanager
def _kazoo(hosts: str) -> Iterator[KazooClient]:
    client = KazooClient(hosts=hosts)
    client.start()
    try:
        yield client
    finally:
        client.stop()
        client.close()


class _Plain:
    """Plain creates, one znode a record."""

    def __init__(self, client: KazooClient) -> None:
        self._client = client
        self._next = 0
        self._root = f"/plain-{time.monotonic_ns()}"
        client.create(self._root)

    def path(self) -> str:
        self._next += 1
        return f"{self._root}/{self._next:020d}"

    def one_by_one(self, count: int) -> None:
        for _ in range(count):
            self._client.create(self.path(), RECORD)

    def pipelined(self, count: int) -> None:
        pending: collections.deque = collections.deque()
        for _ in range(count):
            pending.append(self._client.create_async(self.path(), RECORD))
            if len(pending) >= WINDOW:
                pending.popleft().get()
        for each in pending:
            each.get()


def _singles(client: KazooClient, writer: _Writer) -> Result:
    plain = _Plain(client)

    def ours() -> float:
        return SINGLES / seconds(lambda: [writer.append([RECORD]) for _ in range(SINGLES)])

    return compare(
        "journal, one entry an append",
        peer="kazoo create, one by one",
        unit="entries/s",
        bar=">= 0.8",
        ours=ours,
        theirs=lambda: SINGLES / seconds(lambda: plain.one_by_one(SINGLES)),
        rounds=ROUNDS,
    )


def _batches(client: KazooClient, writer: _Writer) -> Result:
    plain = _Plain(client)
    records = [RECORD] * BATCH

    def ours() -> float:
        return BATCHES * BATCH / seconds(lambda: [writer.append(records) for _ in range(BATCHES)])

    return compare(
        f"journal, {BATCH} entries an append",
        peer=f"kazoo create_async, {WINDOW} in flight",
        unit="entries/s",
        bar=">= 1e5/s",
        ours=ours,
        theirs=lambda: 2_000 / seconds(lambda: plain.pipelined(2_000)),
        rounds=ROUNDS,
    )


# --- through the API


def _api(ensemble: zookeeper.Ensemble) -> Result:
    """How long 100 writers wait at the 99th percentile, each with one write under way, beside 100 threads of kazoo's."""
    with zookeeper.Schedulers(ensemble.url("/api")) as schedulers, _kazoo(ensemble.hosts) as client:
        leader = schedulers.start()
        zookeeper.wait_state(leader, "leading")
        followers = [schedulers.start(), schedulers.start()]
        for follower in followers:
            zookeeper.wait_state(follower, "following")
        plain = _Plain(client)
        pairs = []
        for _ in range(ROUNDS):
            ours = asyncio.run(_write_through(leader.api.host, leader.api.port))
            theirs = _in_threads(lambda: client.create(plain.path(), RECORD))
            pairs.append((_p99_ms(ours), _p99_ms(theirs)))
    ratios = [theirs / ours for ours, theirs in pairs]
    return Result(
        f"API write, {WRITERS} writers, p99",
        f"kazoo create, {WRITERS} threads",
        statistics.median(ours for ours, _ in pairs),
        statistics.median(theirs for _, theirs in pairs),
        "ms",
        statistics.median(ratios),
        min(ratios),
        max(ratios),
        "told",
    )


async def _write_through(host: str, port: int) -> list[float]:
    """Return how long each write took."""
    took: list[float] = []
    numbers = iter(range(WRITES))

    async def write() -> None:
        reader, writer = await asyncio.open_connection(host, port)
        for number in numbers:
            body = b'{"instances": 0, "mem_bytes": %d}' % (zookeeper.MEM_BYTES + number * 4096)
            head = b"PUT /v1/fleet HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            began = time.perf_counter()
            writer.write(head % len(body) + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            if not answer.startswith(b"HTTP/1.1 200"):
                raise SystemExit(f"a write was refused: {answer!r}")
            length = next(
                line for line in answer.lower().split(b"\r\n") if line.startswith(b"content-length:")
            )
            await reader.readexactly(int(length.split(b":")[1]))
            took.append(time.perf_counter() - began)
        writer.close()

    await asyncio.gather(*(write() for _ in range(WRITERS)))
    return took


def _in_threads(write: Callable[[], object]) -> list[float]:
    took: list[float] = []
    numbers = iter(range(WRITES))
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                if next(numbers, None) is None:
                    return
            began = time.perf_counter()
            write()
            took.append(time.perf_counter() - began)

    threads = [threading.Thread(target=work) for _ in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return took


def _p99_ms(took: list[float]) -> float:
    return statistics.quantiles(took, n=100)[98] * 1000

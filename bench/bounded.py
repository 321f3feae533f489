"""What ZooKeeper holds while 10 million entries go through a journal that is cut as a scheduler does, by its own figures."""

from __future__ import annotations

import threading

import zookeeper
from common import Result

from stoker.zk.home import open_home

ENTRIES = 10_000_000
BATCH = 1_000
RECORD = bytes(range(200))
STATE = bytes(4 * 2**20)  # a snapshot
POLL_INTERVAL_S = 0.2
PATH = "/bounded"
MIB = 2**20


def run() -> list[Result]:
    if not zookeeper.is_here():
        return []
    with zookeeper.ensemble() as ensemble:
        home = open_home(ensemble.url(PATH), member="bench", owner="bench")
        try:
            home.start()
            home.join()
            home.wait_turn()
            journal = home.journal()
            index = journal.lead().snapshot_index
            with _Watch(ensemble) as watch:
                for _ in range(ENTRIES // BATCH):
                    journal.append(index, [RECORD] * BATCH)
                    index += BATCH
                    if journal.wants_snapshot:
                        journal.write_snapshot(index, STATE)
        finally:
            home.close()
    written = ENTRIES * len(RECORD)
    return [
        _row(
            "ZooKeeper's data, at most", "all that was appended", watch.bytes_max / MIB, written / MIB, "MiB"
        ),
        _row("ZooKeeper's znodes, at most", "all batches", watch.znodes_max, ENTRIES // BATCH, "znodes"),
    ]


def _row(what: str, peer: str, ours: float, theirs: float, unit: str) -> Result:
    return Result(f"{what}, {ENTRIES:,} entries", peer, ours, theirs, unit, *[theirs / ours] * 3, "bounded")


class _Watch:
    """Asks the ensemble's leader for its figures while others work."""

    def __init__(self, ensemble: zookeeper.Ensemble) -> None:
        self._server = ensemble.leader()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.bytes_max = self.znodes_max = 0

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ending.wait(POLL_INTERVAL_S):
            figures = self._server.mntr()
            self.bytes_max = max(self.bytes_max, int(figures.get("approximate_data_size", 0)))
            self.znodes_max = max(self.znodes_max, int(figures.get("znode_count", 0)))

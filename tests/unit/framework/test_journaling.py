"""The journal's calls from greenlets: which run beside each other, and how a native thread gets a blob."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gevent
import pytest
from gevent.event import Event
from gevent.threadpool import ThreadPool

from stoker.framework.journaling import JournalGreenlets, JournalThread, run_in
from stoker.zk.errors import Unavailable
from stoker.zk.journal import Recovered
from support.schedulers import MemoryJournal
from support.waiting import DEADLINE_S


class WaitingJournal(MemoryJournal):
    """Its calls wait, as those of a journal on greenlets do, until they are let on by name."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = {name: Event() for name in ("append", "write_snapshot", "put_blob", "get_blob")}
        self.running: list[str] = []

    def _wait(self, name: str) -> None:
        assert name not in self.running, "two at once"
        self.running.append(name)
        with gevent.Timeout(DEADLINE_S):
            self.gates[name].wait()
        self.running.remove(name)

    def append(self, first_index: int, records: Sequence[bytes]) -> None:
        self._wait("append")
        super().append(first_index, records)

    def write_snapshot(self, index: int, data: bytes) -> None:
        self._wait("write_snapshot")
        super().write_snapshot(index, data)

    def put_blob(self, data: bytes) -> str:
        self._wait("put_blob")
        return super().put_blob(data)

    def get_blob(self, digest: str) -> bytes | None:
        self._wait("get_blob")
        if digest == "lost":
            raise Unavailable("the session ended")
        return super().get_blob(digest)


def settle() -> None:
    for _ in range(5):
        gevent.sleep(0)


def test_an_append_need_not_wait_for_a_snapshot_and_snapshots_wait_for_each_other() -> None:
    raw = WaitingJournal()
    journal = JournalGreenlets(raw)
    calls = [
        gevent.spawn(journal.write_snapshot, 0, b"state"),
        gevent.spawn(journal.put_blob, b"blob"),
        gevent.spawn(journal.append, 0, [b"r"]),
        gevent.spawn(journal.append, 1, [b"s"]),
    ]
    settle()
    assert sorted(raw.running) == ["append", "write_snapshot"]
    raw.gates["append"].set()
    gevent.joinall(calls[2:], timeout=DEADLINE_S, raise_error=True)
    assert raw.records == [b"r", b"s"] and raw.running == ["write_snapshot"]
    raw.gates["write_snapshot"].set()
    raw.gates["put_blob"].set()
    gevent.joinall(calls, timeout=DEADLINE_S, raise_error=True)
    assert raw.snapshot == b"state" and len(raw.blobs) == 1


def test_a_native_thread_gets_its_blob_by_a_greenlet() -> None:
    raw, workers = WaitingJournal(), ThreadPool(2)
    digest = MemoryJournal.put_blob(raw, b"a part of a manifest")
    journal = JournalGreenlets(raw)
    getting = gevent.spawn(run_in, workers, journal.get_blob_here, digest)
    with gevent.Timeout(DEADLINE_S):
        while raw.running != ["get_blob"]:
            gevent.sleep(0.001)  # the hub goes on while the thread waits
        raw.gates["get_blob"].set()
        assert getting.get() == b"a part of a manifest"
        assert run_in(workers, journal.get_blob_here, "unknown") is None
        with pytest.raises(Unavailable, match="the session ended"):
            run_in(workers, journal.get_blob_here, "lost")
    workers.kill()


@pytest.mark.parametrize("kind", [JournalGreenlets, JournalThread])
def test_records_are_read_some_at_a_time(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stoker.framework.journaling.READ_BYTES", 4)
    batches = [(5, [b"a"]), (6, [b"bb", b"c"]), (8, [b"d", b"e"]), (10, [b"too long"]), (11, [b"f"])]
    journal = kind(MemoryJournal())
    recovered = Recovered(1, 1, 5, None, iter(batches))
    assert list(journal.read_records(recovered)) == [
        (5, [b"a", b"bb", b"c"]),
        (8, [b"d", b"e", b"too long"]),
        (11, [b"f"]),
    ]
    assert batches[0] == (5, [b"a"]), "another's list is left as it is"
    journal.close()

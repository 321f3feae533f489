"""A place where schedulers elect their leader, in memory: homes for tests of what is built on them. Greenlets only."""

from __future__ import annotations

from collections.abc import Iterator

from gevent.event import Event

from stoker.zk.errors import Fenced, Unavailable
from stoker.zk.home import Batch, Snapshot
from stoker.zk.journal import Recovered
from support.schedulers import MemoryJournal


class Place:
    """The journal and the candidates. `journal` is a MemoryJournal whose records every home's own journal writes."""

    def __init__(self) -> None:
        self.journal = MemoryJournal()
        self.candidates: list[MemoryHome] = []
        self.led_from: list[int] = []  # what each leader had already
        self.changed = Event()

    def tell(self) -> None:
        changed, self.changed = self.changed, Event()
        changed.set()

    def home(self, member: str) -> MemoryHome:
        return MemoryHome(self, member)


class MemoryHome:
    """See stoker.zk.home.Home. `fail` ends its session, as an expiry does."""

    def __init__(self, place: Place, member: str) -> None:
        self.place = place
        self.member = member
        self.failure: Exception | None = None
        self.is_following = True
        self.is_closed = False

    def fail(self, error: Exception) -> None:
        self.failure = error
        self._leave()

    def start(self) -> None: ...

    def join(self) -> None:
        self._check()
        self.place.candidates.append(self)
        self.place.tell()

    def wait_turn(self, timeout_ms: int | None = None) -> bool:
        while not self.place.candidates or self.place.candidates[0] is not self:
            self._wait()
        return True

    def follow(self, from_index: int) -> Iterator[Snapshot | Batch | None]:
        index, journal = from_index, self.place.journal
        while self.is_following:
            self._check()
            if index < journal.snapshot_index:
                assert journal.snapshot is not None
                index = journal.snapshot_index
                yield Snapshot(index, journal.snapshot)
                continue
            records = journal.records[index - journal.snapshot_index :][:100]
            index += len(records)
            if records:
                yield Batch(index - len(records), journal.epoch, records)
                continue
            yield None
            self._wait()

    def stop_following(self) -> None:
        self.is_following = False
        self.place.tell()

    def newest_index(self) -> int:
        return self.place.journal.snapshot_index + len(self.place.journal.records)

    def journal(self) -> HomeJournal:
        return HomeJournal(self)

    def members(self) -> tuple[str, ...]:
        return tuple(home.member for home in self.place.candidates)

    def get_blob(self, digest: str) -> bytes | None:
        return self.place.journal.get_blob(digest)

    def close(self) -> None:
        self.is_closed = True
        self.failure = self.failure or Unavailable("closed")
        self.stop_following()
        self._leave()

    def _leave(self) -> None:
        if self in self.place.candidates:
            self.place.candidates.remove(self)
        self.place.tell()

    def _check(self) -> None:
        if self.failure is not None:
            raise self.failure

    def _wait(self) -> None:
        self._check()
        self.place.changed.wait()
        if self.is_following:
            self._check()


class HomeJournal(MemoryJournal):
    """The place's journal as one home leads it."""

    def __init__(self, home: MemoryHome) -> None:
        super().__init__()
        self._home = home
        self._shared = home.place.journal

    def check(self) -> None:
        self._home._check()
        if self.epoch != self._shared.epoch:
            raise Fenced(f"epoch {self._shared.epoch} leads")

    def lead(self, from_index: int = 0) -> Recovered:
        self._home._check()
        shared = self._shared
        self._home.place.led_from.append(from_index)
        recovered = shared.lead()
        self.epoch = shared.epoch
        if not from_index or from_index < shared.snapshot_index:
            return recovered
        left = shared.records[from_index - shared.snapshot_index :]
        batches = [(from_index, left)] if left else []
        return Recovered(self.epoch, 1, from_index, None, iter(batches), resumed=True)

    def append(self, first_index: int, records: object) -> None:
        self.check()
        self._shared.append(first_index, records)  # type: ignore[arg-type]
        self._home.place.tell()

    def write_snapshot(self, index: int, data: bytes) -> None:
        self.check()
        self._shared.write_snapshot(index, data)
        self._home.place.tell()

    def put_blob(self, data: bytes) -> str:
        self.check()
        return self._shared.put_blob(data)

    def get_blob(self, digest: str) -> bytes | None:
        return self._shared.get_blob(digest)

    def delete_blob(self, digest: str) -> None:
        self.check()
        self._shared.delete_blob(digest)

    def blob_digests(self) -> list[str]:
        return self._shared.blob_digests()

    def audit(self) -> str:
        return self._shared.audit()

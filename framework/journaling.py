"""The journal as a leader's greenlets use it: one call at a time, and nothing that holds up the hub.

A local journal blocks its thread, so its calls run in native threads of this module's own pools, which nothing slow
elsewhere can keep from an append (`JournalThread`). The ZooKeeper journal waits by itself as greenlets do, so its calls
run where they are made (`JournalGreenlets`), where an append may run beside another call. Both keep the journal's rule
that otherwise no two calls run at once.

`check` is the exception: it does no I/O and is made at any time, before each action and each answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

import gevent
import gevent.monkey
from gevent.hub import get_hub
from gevent.lock import BoundedSemaphore
from gevent.threadpool import ThreadPool

from stoker.zk.journal import Journal, Recovered

WORKERS_MAX = 4  # threads for work past some 50 ms: manifests, snapshot encoding
READ_BYTES = 1024 * 1024  # of records, and up to a batch more, that are read until the hub gets a turn
_BLOB_CALLS_MAX = 1

_T = TypeVar("_T")


def run_in(pool: ThreadPool, function: Callable[..., _T], *arguments: Any) -> _T:
    """Return `function(*arguments)` of a native thread of `pool`; what it raises is raised here.

    As ThreadPool.apply, which would also print what is raised.
    """
    value, error = pool.apply(_outcome, (function, arguments))
    if error is not None:
        raise error
    result: _T = value
    return result


def retire(pool: ThreadPool) -> None:
    """Let the pool's threads end once they have done what they do now; returns at once."""
    gevent.spawn(pool.kill)


def _outcome(function: Callable[..., _T], arguments: tuple[Any, ...]) -> tuple[_T | None, Exception | None]:
    try:
        return function(*arguments), None
    except Exception as error:  # handed to the caller
        return None, error


class LeaderJournal(Protocol):
    """Journal's calls, for greenlets; `get_blob_here` is for code that runs in a native thread of a pool."""

    def lead(self, from_index: int = 0) -> Recovered:
        """Take the journal. `records` of what it returns is read by `read_records` alone. :raises JournalError: ..."""
        ...

    def read_records(self, recovered: Recovered) -> Iterator[tuple[int, list[bytes]]]:
        """Yield what `lead` found, some records at a time, with the index of the first. :raises JournalError: ..."""
        ...

    def check(self) -> None: ...
    @property
    def wants_snapshot(self) -> bool: ...
    def append(self, first_index: int, records: Sequence[bytes]) -> None: ...
    def write_snapshot(self, index: int, data: bytes) -> None: ...
    def put_blob(self, data: bytes) -> str: ...
    def get_blob(self, digest: str) -> bytes | None: ...
    def delete_blob(self, digest: str) -> None: ...
    def blob_digests(self) -> list[str]: ...
    def audit(self) -> str: ...
    def get_blob_here(self, digest: str) -> bytes | None: ...
    def close(self) -> None: ...


class JournalThread:
    """`journal`, each call in a native thread. See LeaderJournal."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._lock: AbstractContextManager[None] = gevent.monkey.get_original("threading", "Lock")()
        self._appends = ThreadPool(1)
        self._blobs = ThreadPool(_BLOB_CALLS_MAX)

    def lead(self, from_index: int = 0) -> Recovered:
        return self._run(self._appends, self._journal.lead, from_index)

    def read_records(self, recovered: Recovered) -> Iterator[tuple[int, list[bytes]]]:
        while some := self._run(self._appends, _some_of, recovered.batches):
            yield some

    def check(self) -> None:
        self._journal.check()

    @property
    def wants_snapshot(self) -> bool:
        return self._journal.wants_snapshot

    def append(self, first_index: int, records: Sequence[bytes]) -> None:
        self._run(self._appends, self._journal.append, first_index, records)

    def write_snapshot(self, index: int, data: bytes) -> None:
        self._run(self._appends, self._journal.write_snapshot, index, data)

    def put_blob(self, data: bytes) -> str:
        return self._run(self._blobs, self._journal.put_blob, data)

    def get_blob(self, digest: str) -> bytes | None:
        return self._run(self._blobs, self._journal.get_blob, digest)

    def delete_blob(self, digest: str) -> None:
        self._run(self._blobs, self._journal.delete_blob, digest)

    def blob_digests(self) -> list[str]:
        return self._run(self._blobs, self._journal.blob_digests)

    def audit(self) -> str:
        return self._run(self._appends, self._journal.audit)

    def get_blob_here(self, digest: str) -> bytes | None:
        """As `get_blob`, from a native thread of a pool: never from a greenlet, which would stop the hub."""
        with self._lock:
            return self._journal.get_blob(digest)

    def close(self) -> None:
        """Wait for the call in flight, release the journal and the threads. Nothing may follow."""
        self._run(self._appends, self._journal.close)
        retire(self._appends)
        retire(self._blobs)

    def _run(self, pool: ThreadPool, function: Callable[..., _T], *arguments: Any) -> _T:
        result: _T = run_in(pool, self._locked, function, *arguments)
        return result

    def _locked(self, function: Callable[..., _T], *arguments: Any) -> _T:
        with self._lock:
            return function(*arguments)


class JournalGreenlets:
    """`journal`, whose calls wait as greenlets do, each where it is made. See LeaderJournal."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._appending = BoundedSemaphore(1)
        self._other = BoundedSemaphore(1)  # writing blobs and snapshots, which an append need not wait for
        self._hub = get_hub()
        self._make_signal = gevent.monkey.get_original("threading", "Event")

    def lead(self, from_index: int = 0) -> Recovered:
        with self._appending, self._other:
            return self._journal.lead(from_index)

    def read_records(self, recovered: Recovered) -> Iterator[tuple[int, list[bytes]]]:
        while some := _some_of(recovered.batches):
            yield some

    def check(self) -> None:
        self._journal.check()

    @property
    def wants_snapshot(self) -> bool:
        return self._journal.wants_snapshot

    def append(self, first_index: int, records: Sequence[bytes]) -> None:
        with self._appending:
            self._journal.append(first_index, records)

    def write_snapshot(self, index: int, data: bytes) -> None:
        with self._other:
            self._journal.write_snapshot(index, data)

    def put_blob(self, data: bytes) -> str:
        with self._other:
            return self._journal.put_blob(data)

    def get_blob(self, digest: str) -> bytes | None:
        return self._journal.get_blob(digest)  # reads touch nothing that others change

    def delete_blob(self, digest: str) -> None:
        with self._other:
            self._journal.delete_blob(digest)

    def blob_digests(self) -> list[str]:
        return self._journal.blob_digests()

    def audit(self) -> str:
        with self._other:  # a cut under way deletes as well
            return self._journal.audit()

    def get_blob_here(self, digest: str) -> bytes | None:
        """As `get_blob`, from a native thread of a pool, which waits while a greenlet of the hub's thread asks."""
        outcomes: list[tuple[bytes | None, Exception | None]] = []
        answered = self._make_signal()

        def ask() -> None:
            try:
                outcomes.append(_outcome(self.get_blob, (digest,)))
            finally:
                answered.set()

        self._hub.loop.run_callback_threadsafe(gevent.spawn, ask)
        answered.wait()
        (outcome,) = outcomes
        data, error = outcome
        if error is not None:
            raise error
        return data

    def close(self) -> None:
        """Release the journal; a call in flight ends with an error. Nothing may follow."""
        self._journal.close()


def _some_of(batches: Iterator[tuple[int, list[bytes]]]) -> tuple[int, list[bytes]] | None:
    """Return the next batches as one; None: there are none left."""
    records: list[bytes] = []
    first_index = size = 0
    for index, more in batches:
        first_index = index if not records else first_index
        records += more
        size += sum(map(len, more))
        if size >= READ_BYTES:
            break
    return (first_index, records) if records else None

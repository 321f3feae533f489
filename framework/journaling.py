"""The blocking journal, made callable from greenlets: one call at a time, each in a native thread.

Greenlets wait without holding up the hub; a native lock keeps the journal's rule that no two calls run at once. The
pools are this module's own, so that nothing slow elsewhere can keep an append from its thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import gevent
import gevent.monkey
from gevent.threadpool import ThreadPool

from stoker.zk.journal import Journal, Recovered

WORKERS_MAX = 4  # threads for work past some 50 ms: manifests, snapshot encoding
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


class JournalThread:
    """`journal`, one call at a time. Greenlets call the methods; `get_blob_here` is for code already in a pool's thread."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._lock: AbstractContextManager[None] = gevent.monkey.get_original("threading", "Lock")()
        self._appends = ThreadPool(1)
        self._blobs = ThreadPool(_BLOB_CALLS_MAX)

    def lead(self) -> tuple[Recovered, list[tuple[int, bytes]]]:
        """Take the journal and read its records, all in the thread. :raises JournalError: see Journal.lead."""
        return self._run(self._appends, self._lead)

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

    def get_blob_here(self, digest: str) -> bytes | None:
        """As `get_blob`, from a native thread of a pool: never from a greenlet, which would stop the hub."""
        with self._lock:
            return self._journal.get_blob(digest)

    def close(self) -> None:
        """Wait for the call in flight, release the journal and the threads. Nothing may follow."""
        self._run(self._appends, self._journal.close)
        retire(self._appends)
        retire(self._blobs)

    def _lead(self) -> tuple[Recovered, list[tuple[int, bytes]]]:
        recovered = self._journal.lead()
        return recovered, list(recovered.records)

    def _run(self, pool: ThreadPool, function: Callable[..., _T], *arguments: Any) -> _T:
        result: _T = run_in(pool, self._locked, function, *arguments)
        return result

    def _locked(self, function: Callable[..., _T], *arguments: Any) -> _T:
        with self._lock:
            return function(*arguments)

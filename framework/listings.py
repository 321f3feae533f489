"""Listings: one child process each, because under-store libraries and a monkey-patched process do not go together.

At most LISTINGS_MAX children at a time, the rest waits in order. A child writes the manifest as files, named by digest,
into a directory of its own; they are stored as blobs before ListingFinished is put, so that no entry ever points to
nothing. A listing that dies is reported as failed; one that is not wanted any more is killed, silently: its attempt is
stale.

Blobs that no manifest in the catalog names are deleted by `forget_manifest`, never while a listing may be about to name
them. What a kill left behind (blobs stored but never named, a forgetting that was cut off) is found by `sweep`.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import json
import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import gevent
from gevent import subprocess
from gevent.lock import RLock
from gevent.threadpool import ThreadPool

from stoker.framework.core.actions import StartListing
from stoker.framework.core.events import Event, ListingFinished, ListingProgressed
from stoker.framework.errors import FrameworkError
from stoker.framework.journaling import LeaderJournal, run_in
from stoker.framework.manifests import Manifests
from stoker.framework.metrics import Metrics
from stoker.framework.model import Manifested
from stoker.zk.errors import JournalError

LISTINGS_MAX = 4  # children at a time
NICE = 5
LINE_BYTES_MAX = 64 * 1024
ERROR_CHARS_MAX = 1_000
PUT_AGAIN_MS = 500
_PR_SET_PDEATHSIG = 1

log = logging.getLogger(__name__)
_libc = ctypes.CDLL(None, use_errno=True)


class Putter(Protocol):
    """What is used of Loop."""

    def put(self, event: Event, *, must: bool = False) -> bool: ...
    def put_and_wait(self, event: Event) -> None: ...
    def spawn(self, run: Callable[..., None], *arguments: Any) -> gevent.Greenlet: ...


class ListingFailed(FrameworkError):
    """The child said, or its end says, why there is no manifest."""


@dataclass(slots=True)
class _Listing:
    action: StartListing
    child: Any = None
    stopped: bool = False


class Listings:
    """The listings of one leadership. All methods are called from greenlets; none blocks its caller for long."""

    def __init__(
        self,
        loop: Putter,
        journal: LeaderJournal,
        manifests: Manifests,
        *,
        cluster: Callable[[], bytes],
        directory: str,
        live_digests: Callable[[], set[str]],
        workers: ThreadPool,
        metrics: Metrics,
        command: tuple[str, ...] = (sys.executable, "-m", "stoker.executor.lister"),
    ) -> None:
        self._loop = loop
        self._journal = journal
        self._manifests = manifests
        self._cluster = cluster
        self._directory = directory
        self._live_digests = live_digests
        self._workers = workers
        self._metrics = metrics
        self._command = command
        self._running: dict[int, _Listing] = {}
        self._waiting: collections.OrderedDict[int, _Listing] = collections.OrderedDict()
        self._storing = RLock()  # blobs are being stored that no entry names yet, or unnamed ones deleted
        self._stopped = False
        self._greenlets: set[gevent.Greenlet] = set()
        shutil.rmtree(directory, ignore_errors=True)  # of a process before us
        os.makedirs(directory)

    def start(self, action: StartListing) -> None:
        """Begin, or queue, a listing. The same attempt again is nothing; another attempt replaces the one before."""
        listing = self._running.get(action.dataset_id) or self._waiting.get(action.dataset_id)
        if listing is not None and listing.action.attempt >= action.attempt:
            return
        self.stop(action.dataset_id)
        self._waiting[action.dataset_id] = _Listing(action)
        self._start_waiting()

    def stop(self, dataset_id: int) -> None:
        """Forget the dataset's listing, if there is one."""
        self._waiting.pop(dataset_id, None)
        listing = self._running.pop(dataset_id, None)
        if listing is not None:
            listing.stopped = True
            _kill(listing)  # its greenlet sees the end and tidies up
            self._start_waiting()

    def close(self) -> None:
        """Stop all; nothing is put any more."""
        self._stopped = True
        self._waiting.clear()
        for dataset_id in list(self._running):
            self.stop(dataset_id)
        gevent.killall(list(self._greenlets))
        shutil.rmtree(self._directory, ignore_errors=True)

    def forget_manifest(self, digest: str) -> None:
        """Delete, soon, the blobs of the manifest `digest` that no manifest of the catalog needs."""
        self._spawn(self._forget, digest)

    def sweep(self) -> None:
        """Delete, soon, all blobs that no manifest of the catalog needs."""
        self._spawn(self._sweep)

    def _start_waiting(self) -> None:
        while self._waiting and len(self._running) < LISTINGS_MAX and not self._stopped:
            dataset_id, listing = self._waiting.popitem(last=False)
            self._running[dataset_id] = listing
            self._spawn(self._run, listing)
        self._metrics.listings.set(len(self._running))

    def _spawn(self, function: Callable[..., None], *arguments: Any) -> None:
        greenlet = self._loop.spawn(function, *arguments)
        self._greenlets.add(greenlet)
        greenlet.link(self._greenlets.discard)

    def _run(self, listing: _Listing) -> None:
        action = listing.action
        directory = os.path.join(self._directory, f"{action.dataset_id}-{action.attempt}")
        try:
            self._list_and_store(listing, directory)
        except (FrameworkError, JournalError, OSError) as error:
            if not listing.stopped:
                log.warning(
                    "listing dataset_id=%d attempt=%d failed: %s", action.dataset_id, action.attempt, error
                )
                failed = ListingFinished(
                    action.dataset_id, action.attempt, None, str(error)[:ERROR_CHARS_MAX]
                )
                while not self._loop.put(failed, must=True) and not self._stopped:
                    gevent.sleep(PUT_AGAIN_MS / 1000)  # untold, the dataset would be LISTING for ever
        finally:
            _reap(listing)
            run_in(self._workers, shutil.rmtree, directory, True)
            if self._running.get(action.dataset_id) is listing:
                del self._running[action.dataset_id]
            self._start_waiting()

    def _list_and_store(self, listing: _Listing, directory: str) -> None:
        action = listing.action
        out, previous = os.path.join(directory, "out"), os.path.join(directory, "previous")
        os.makedirs(out, exist_ok=True)
        if action.previous:
            self._manifests.open(action.previous)
            os.link(
                self._manifests.path(action.previous), previous
            )  # ours: it may be unmapped and removed meanwhile
        lines = self._start_child(listing, out, previous if action.previous else None)
        if listing.stopped:  # while there was no child to kill yet
            return
        done = self._follow(listing, lines)
        if listing.stopped:
            return
        manifested = _manifested(done)
        with self._storing:
            self._store(out, manifested.digest)
            self._loop.put_and_wait(ListingFinished(action.dataset_id, action.attempt, manifested))

    def _start_child(self, listing: _Listing, out: str, previous: str | None) -> Iterator[bytes]:
        action = listing.action
        request = {
            "source": action.source,
            "options": dict(action.options),
            "cluster": self._cluster().hex(),
            "dataset_id": action.dataset_id,
            "generation": action.generation,
            "version": action.version,
            "slot_bytes": action.slot_bytes,
            "previous": previous,
            "out": out,
        }
        child = listing.child = subprocess.Popen(
            list(self._command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None,  # its log lines stand among ours
            preexec_fn=_prepare_child,
        )
        with (
            contextlib.suppress(BrokenPipeError),
            child.stdin,
        ):  # a child that ended at once is told by its end
            child.stdin.write(json.dumps(request).encode())
        return iter(lambda: child.stdout.readline(LINE_BYTES_MAX), b"")

    def _follow(self, listing: _Listing, lines: Iterator[bytes]) -> dict[str, Any]:
        """Return what the child says at last; progress on the way.

        :raises ListingFailed: it says why not, or ends without a word.
        """
        action = listing.action
        for line in lines:
            said = _parse(line)
            if "done" in said:
                return dict(said["done"]) if isinstance(said["done"], dict) else {}
            if "error" in said:
                raise ListingFailed(str(said["error"]))
            self._loop.put(ListingProgressed(action.dataset_id, action.attempt, said["files"], said["bytes"]))
        raise ListingFailed(f"the listing process ended without a result ({_how(listing.child.wait())})")

    def _store(self, directory: str, root_digest: str) -> None:
        """Put all the child's blobs into the journal, the root last.

        :raises ListingFailed: a file is not what its name says. :raises JournalError: see Journal.put_blob.
        """
        for digest in sorted(os.listdir(directory), key=lambda name: name == root_digest):
            data = run_in(self._workers, _read, os.path.join(directory, digest))
            if self._journal.put_blob(data) != digest:
                raise ListingFailed(f"the listing process wrote a damaged file {digest[:12]}")

    def _forget(self, digest: str) -> None:
        with self._storing:
            try:
                live = self._live_digests()
                if digest in live:
                    return
                needed = self._needed(live, set(self._journal.blob_digests()))
                if needed is None:
                    return
                parts = self._manifests.part_digests(digest)
                for unneeded in [*(p for p in parts if p not in needed), digest]:
                    self._journal.delete_blob(unneeded)
            except (JournalError, FrameworkError) as error:
                log.warning("blobs of manifest %s were not deleted: %s", digest[:12], error)
                return
        self._manifests.forget(digest)

    def _sweep(self) -> None:
        with self._storing:
            try:
                live, stored = self._live_digests(), set(self._journal.blob_digests())
                needed = self._needed(live, stored)
                if needed is None:
                    return
                unneeded = sorted(stored - needed)
                for digest in unneeded:
                    self._journal.delete_blob(digest)
            except (JournalError, FrameworkError) as error:
                log.warning("unneeded blobs were not deleted: %s", error)
                return
        if unneeded:
            log.info("blobs of no manifest deleted=%d", len(unneeded))

    def _needed(self, live: set[str], stored: set[str]) -> set[str] | None:
        """Return the digests of the root blobs `live` and of their parts; None, and nothing may be deleted, where a root is
        not among the blobs that are `stored`: what its parts are is not known.
        """
        if not live <= stored:
            log.error("the journal has no blob for %d manifests of the catalog", len(live - stored))
            return None
        return {part for root in live for part in self._manifests.part_digests(root)} | live


def _manifested(done: dict[str, Any]) -> Manifested:
    """:raises ListingFailed: the child's result lacks something."""
    names = (
        "generation",
        "version",
        "files",
        "bytes",
        "address_bytes",
        "block_bytes",
        "block_count",
        "pg_count",
    )
    try:
        return Manifested(digest=str(done["digest"]), **{name: int(done[name]) for name in names})
    except (KeyError, TypeError, ValueError) as error:
        raise ListingFailed(f"the listing process' result lacks {error}") from error


def _parse(line: bytes) -> dict[str, Any]:
    try:
        said = json.loads(line)
    except ValueError as error:
        raise ListingFailed(f"the listing process said {line[:200]!r}") from error
    is_progress = isinstance(said, dict) and all(type(said.get(name)) is int for name in ("files", "bytes"))
    if not isinstance(said, dict) or not (is_progress or {"done", "error"} & set(said)):
        raise ListingFailed(f"the listing process said {line[:200]!r}")
    return said


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _kill(listing: _Listing) -> None:
    if listing.child is not None and listing.child.poll() is None:
        listing.child.kill()


def _reap(listing: _Listing) -> None:
    _kill(listing)
    if listing.child is not None:
        listing.child.wait()
        listing.child.stdout.close()


def _how(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"exit code {status}"


def _prepare_child() -> None:
    """In the child, before its program: end with us, and never take the processor from the leader."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.nice(NICE)

"""One session a process and URL: what all file systems, clients and readers of it share.

It holds the way to the schedulers, the manifests' cache, the descriptors' budget, and the current version of each dataset
that was asked for. A version is current until somebody asks for the newest (`newest`, `invalidate`), or until it turns out
that the dataset is gone or its under store changed.

Sessions are found again by URL (`session_for`), so a file system is cheap to make. A forked child keeps the parent's
sessions: their sockets and descriptors are closed in the child, locks replaced; it asks for its own at its first read.
"""

from __future__ import annotations

import collections
import errno
import os
import threading
import time
import urllib.parse
import weakref
from typing import Any

from stoker.client.connection import refresh
from stoker.client.descriptors import Budget
from stoker.client.errors import ApiError, ReadError, dataset_gone
from stoker.client.fetcher import TRANSPORTS, Fetcher, Stats
from stoker.client.manifest import ManifestCache
from stoker.client.placement import Placement, placement_from, read_boot_id
from stoker.client.reader import Pin, Reader
from stoker.client.rest import PATIENCE_MS, Rest, parse_url
from stoker.executor.manifest import Manifest, ManifestError
from stoker.executor.messages import SlotAddress

REFRESH_INTERVAL_MS = 200  # between two questions for one dataset's placement
BACKGROUND_INTERVAL_MS = 500
LISTING_PATIENCE_MS = 60_000  # how long an open waits for a dataset that is being listed
LISTING_POLL_MS = 200
BEHIND_MAX = 1_024
UNCONFIRMED_MS = 2_000  # how long a dataset is believed to be there when no scheduler says so


class Session:
    """See the module. Used by any thread."""

    def __init__(
        self,
        schedulers: tuple[str, ...],
        *,
        token: str = "",
        transport: str | None = None,
        directory: str | None = None,
    ) -> None:
        transport = transport or os.environ.get("STOKER_TRANSPORT") or "auto"
        if transport not in TRANSPORTS:
            raise ValueError(f"STOKER_TRANSPORT={transport!r}: allowed are {', '.join(TRANSPORTS)}")
        self.url = schedulers[0] + "".join(f",{s.partition('://')[2]}" for s in schedulers[1:])
        self.rest = Rest(schedulers, token)
        self.transport = transport
        self.boot_id = read_boot_id()
        self.budget = Budget()
        self.stats = Stats()
        self._manifests = ManifestCache(directory)
        self._current: dict[str, Reader] = {}
        self._readers: weakref.WeakValueDictionary[Pin, Reader] = weakref.WeakValueDictionary()
        self._fetchers: tuple[Fetcher, ...] = ()
        self._abandoned: collections.deque[Fetcher] = collections.deque()
        self._asked: dict[str, tuple[float, Placement]] = {}
        self._lock = threading.Lock()
        self._bind_lock = threading.RLock()
        self._behind: dict[Fetcher, SlotAddress] = {}
        self._refresher: threading.Thread | None = None
        _living.add(self)

    # Versions

    def reader(self, name: str, version: int | None = None) -> Reader:
        """Return a reader of the current version; `version`: of that one, if it is current or still at hand.

        :raises FileNotFoundError: no such dataset, or no such version any more.
        :raises OSError: it cannot be read now (being listed, failed, no scheduler).
        """
        found = self._current.get(name)
        if found is None or self.is_gone(found):
            found = self.newest(name)
        if version is None or found.pin.version == version:
            return found
        for pin, reader in list(self._readers.items()):
            if pin[:3] == found.pin[:3] and pin.version == version:
                return reader
        found = self.newest(name)
        if found.pin.version == version:
            return found
        raise FileNotFoundError(
            errno.ENOENT,
            f"dataset {name!r} is at version {found.pin.version}; another one cannot be opened",
            f"{name}@{version}",
        )

    def is_gone(self, reader: Reader) -> bool:
        """Return whether the reader's dataset was removed, or laid out anew; a scheduler is asked if that may be.

        So whoever opens a path after another dataset of the name is READY opens that one.
        """
        fetcher = reader.fetcher
        if not fetcher.gone and fetcher.is_doubtful():
            try:
                fetcher.take_placement(self.placement(reader.pin.name, patience_ms=0))
            except ApiError as error:
                if _says_gone(error):
                    fetcher.end("was removed")
                fetcher.believe(UNCONFIRMED_MS)  # no scheduler: reading goes on without one
        return bool(fetcher.gone)

    def newest(self, name: str) -> Reader:
        """Ask the schedulers, and make the newest version the current one."""
        placement = self._ask_ready(name)
        pin = Pin(name, placement.dataset_id, placement.generation, placement.version, placement.digest)
        with self._bind_lock:
            old = self._current.get(name)
            if old is not None and old.pin[:3] != pin[:3]:
                old.fetcher.take_placement(placement)
            reader = self._bind(pin, placement)
            self._current[name] = reader
        return reader

    def pinned(self, pin: Pin) -> Reader:
        """Return a reader of exactly that version.

        :raises DatasetGone: the dataset was removed, or the version can no longer be had.
        """
        current = self.reader(pin.name)
        if current.pin == pin:
            return current
        with self._bind_lock:
            found = self._readers.get(pin)
            if found is not None:
                return found
        placement = self._ask_ready(pin.name)
        if (placement.dataset_id, placement.generation) != (pin.dataset_id, pin.generation):
            raise dataset_gone(pin.name, "was removed, or laid out anew,")
        with self._bind_lock:
            return self._bind(pin, placement)

    def invalidate(self, name: str | None = None) -> None:
        """Let the next open ask for the newest version (of all datasets, or of one)."""
        if name is None:
            self._current.clear()
            self._asked.clear()
        else:
            self._current.pop(name, None)
            self._asked.pop(name, None)

    def doubt(self, name: str) -> None:
        self.invalidate(name)

    def _bind(self, pin: Pin, placement: Placement) -> Reader:
        """Under the bind lock."""
        while self._abandoned:
            self._abandoned.popleft().close()
        found = self._readers.get(pin)
        if found is not None and not found.fetcher.gone:
            found.fetcher.take_placement(placement)
            found.is_doubted = False  # until the next changed file
            return found
        manifest = self._manifest(pin)
        if manifest.block_bytes != placement.block_bytes or manifest.dataset_id != pin.dataset_id:
            raise ReadError(
                errno.EIO, "the scheduler's placement and manifest do not belong together", pin.name
            )
        fetcher = Fetcher(self, placement, pin.version)
        reader = Reader(self, pin, manifest, fetcher)
        self._readers[pin] = reader
        self._fetchers = (*(f for f in self._fetchers if not f.gone), fetcher)
        weakref.finalize(reader, self._abandoned.append, fetcher).atexit = False
        return reader

    def _manifest(self, pin: Pin) -> Manifest:
        path = f"/v1/datasets/{quote(pin.name)}/manifest?version={pin.version}"
        try:
            return self._manifests.get(pin.digest, lambda consume: self.rest.download(path, consume))
        except ManifestError as error:
            raise ReadError(errno.EIO, f"the manifest is unusable: {error}", pin.name) from error
        except ApiError as error:
            raise api_to_os(error, pin.name) from error
        except OSError as error:  # a full disk, say
            what = error.strerror or str(error)
            raise ReadError(
                error.errno or errno.EIO, f"the manifest cannot be kept on this host: {what}", pin.name
            ) from error

    def _ask_ready(self, name: str) -> Placement:
        """Return the newest placement; waits a while for a dataset that is still being listed."""
        deadline = time.monotonic() + LISTING_PATIENCE_MS / 1000
        while True:
            try:
                return self.placement(name)
            except ApiError as error:
                if error.code != "not_ready" or "FAILED" in error.message or time.monotonic() > deadline:
                    raise api_to_os(error, name) from error
            time.sleep(LISTING_POLL_MS / 1000)

    # Placement

    def placement(self, name: str, *, patience_ms: int = PATIENCE_MS) -> Placement:
        """:raises ApiError: no such dataset, not listed yet, or no scheduler."""
        raw = self.rest.get(f"/v1/datasets/{quote(name)}/placement", patience_ms=patience_ms)
        try:
            placement = placement_from(raw)
        except ValueError as error:
            raise ApiError(200, "bad_answer", f"dataset {name!r}: {error}") from error
        self.stats.placement_refreshes += 1
        self._asked[name] = (time.monotonic(), placement)
        return placement

    def newest_placement(self, name: str) -> Placement | None:
        asked = self._asked.get(name)
        if asked is not None and time.monotonic() - asked[0] < REFRESH_INTERVAL_MS / 1000:
            return asked[1]
        try:
            return self.placement(name, patience_ms=0)  # the read that asks has a patience of its own
        except ApiError as error:
            if _says_gone(error):
                raise FileNotFoundError(errno.ENOENT, "no such dataset", name) from error
            return None

    def behind(self, fetcher: Fetcher, address: SlotAddress) -> None:
        """Refresh in the background, from the executor that knows more, else from a scheduler. Raises nothing."""
        if fetcher in self._behind or len(self._behind) >= BEHIND_MAX:
            return
        with self._lock:
            self._behind[fetcher] = address
            if self._refresher is None or not self._refresher.is_alive():
                thread = threading.Thread(target=self._refresh_behind, name="stoker-refresh", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # no thread is to be had: a later answer tells again that we are behind
                    del self._behind[fetcher]
                    return
                self._refresher = thread

    def _refresh_behind(self) -> None:
        """The thread: ends when nobody is behind."""
        while True:
            with self._lock:
                if not self._behind:
                    self._refresher = None
                    return
                fetcher, address = next(iter(self._behind.items()))
            try:
                newest = self._from_executor(fetcher, address) or self.placement(fetcher.placement.name)
                fetcher.take_placement(newest)
            except ApiError as error:
                if _says_gone(error):
                    fetcher.end("was removed")
            finally:
                time.sleep(BACKGROUND_INTERVAL_MS / 1000)  # the next answer may say again that we are behind
                with self._lock:
                    self._behind.pop(fetcher, None)

    def _from_executor(self, fetcher: Fetcher, address: SlotAddress) -> Placement | None:
        pool = fetcher.pool(address)
        try:
            connection = pool.take()
        except OSError:
            return None
        try:
            raw = refresh(connection)
        except OSError:
            pool.discard(connection)
            return None
        except BaseException:
            pool.discard(connection)
            raise
        pool.give(connection)
        return _placement_of(raw, fetcher.placement)

    # Life

    def after_fork_in_child(self) -> None:
        self._lock = threading.Lock()
        self._bind_lock = threading.RLock()
        self._behind = {}
        self._refresher = None
        self.budget.after_fork_in_child()
        for fetcher in self._fetchers:
            fetcher.after_fork_in_child()

    def close(self) -> None:
        """End all conversations. Readers of this session read no more."""
        for fetcher in self._fetchers:
            fetcher.close()
        self._fetchers = ()
        self._current.clear()
        with _sessions_lock:
            for key in [key for key, session in _sessions.items() if session is self]:
                del _sessions[key]


_living: weakref.WeakSet[Session] = weakref.WeakSet()
_sessions: dict[tuple[tuple[str, ...], str], Session] = {}
_sessions_lock = threading.Lock()


def session_for(url: str | None = None, *, token: str = "") -> Session:
    """Return the process's session for `url` (None: STOKER_URL as it is now) and the STOKER_TRANSPORT of now.

    :raises UrlError: no URL, or not one.
    """
    schedulers = parse_url(url)
    key = (schedulers, os.environ.get("STOKER_TRANSPORT", ""))
    session = _sessions.get(key)
    if session is None:
        with _sessions_lock:
            session = _sessions.get(key)
            if session is None:
                session = _sessions[key] = Session(
                    schedulers, token=token or os.environ.get("STOKER_TOKEN", "")
                )
    if token:
        session.rest.token = token
    return session


def quote(name: str) -> str:
    return urllib.parse.quote(name, safe="")


def _says_gone(error: ApiError) -> bool:
    """Return whether a dataset that could be read once is gone: no name, or another dataset that is being listed."""
    return error.status == 404 or error.code == "not_ready"


def api_to_os(error: ApiError, name: str) -> OSError:
    """Return what a program that opens files should see of a scheduler's refusal."""
    if error.status == 404:
        return FileNotFoundError(errno.ENOENT, f"no such dataset: {error}", name)
    if error.status == 0 or error.status == 503:
        return ReadError(errno.EHOSTUNREACH, str(error), name)
    return ReadError(errno.EBUSY if error.code == "not_ready" else errno.EIO, str(error), name)


def _placement_of(raw: dict[str, Any], mine: Placement) -> Placement | None:
    """Return what REFRESH told about this dataset, None if it is nothing to go by."""
    try:
        merged = dict(raw["placement"])
        merged.setdefault("name", mine.name)
        merged.setdefault("cluster", mine.cluster)
        merged["slots"] = raw["slots"]
        return placement_from(merged)
    except (KeyError, TypeError, ValueError):
        return None


def _after_fork_in_child() -> None:
    global _sessions_lock
    _sessions_lock = threading.Lock()
    for session in list(_living):
        session.after_fork_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)

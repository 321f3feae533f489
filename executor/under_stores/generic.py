"""Any other fsspec file system: listed and read through fsspec's own calls.

There is no condition to send with a read, so the fingerprint (the store's checksum or version where `info` has one, and
modification time and size) is compared after the bytes were read. Where `info` has neither, the token is empty and only the
size can tell.

fsspec's synchronous file systems (sftp, ftp, hdfs, ...) are not made for several threads, so each worker's thread
has an instance of its own; asynchronous ones (gcs, abfs, ...) run a batch at once on fsspec's loop.
"""

from __future__ import annotations

import collections
import concurrent.futures
import hashlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from stoker.executor.manifest_format import FileRow
from stoker.executor.under_stores.base import (
    PIECE_BYTES_MAX,
    READING_BYTES_MAX,
    TOKEN_BYTES_MAX,
    Outcome,
    Piece,
    UnderStoreError,
    Warn,
    changed,
    check_pieces,
    unreadable,
)
from stoker.executor.under_stores.options import Options
from stoker.executor.under_stores.remote import ATTEMPTS_MAX, pause_ms

WORKERS_MAX = 8
URGENT_WORKERS_MAX = 4  # besides: what a reader waits for does not stand in line behind a load
BATCH_PIECES_MAX = 16
COPIES = 2  # of the bytes it reads that a file system may hold at once
TIMEOUT_MS = 120_000  # of a batch of reads, or of one directory's listing
# What file systems call a version or checksum, in the order of trust.
_VERSION_KEYS = (
    "ETag",
    "etag",
    "md5Hash",
    "md5",
    "content_md5",
    "checksum",
    "generation",
    "version_id",
    "CRC",
    "sha256",
)
_TIME_KEYS = (
    "mtime",
    "LastModified",
    "last_modified",
    "modified",
    "modificationTime",
    "updated",
    "date_time",
    "created",
)

_Outcomes = list[Outcome]
_Attempts = list[Outcome | None]  # None: worth another attempt


class GenericStore:
    """The files under one URL of any fsspec protocol, chained ones (zip://...::...) too."""

    def __init__(self, source: str, options: Options) -> None:
        """:raises UnderStoreError: unknown protocol, a package is missing, or the options are wrong."""
        self._source = source
        self._options = options
        self._own = threading.local()
        self._stopped = threading.Event()  # never set: only for pauses that a process end does not wait for
        self._workers = concurrent.futures.ThreadPoolExecutor(WORKERS_MAX, thread_name_prefix="under-store")
        self._urgent_workers = concurrent.futures.ThreadPoolExecutor(
            URGENT_WORKERS_MAX, thread_name_prefix="under-store-urgent"
        )
        self._is_file: bool | None = None  # whether the source is one file; found on first use
        self._open()

    def list(self, warn: Warn) -> Iterator[FileRow]:
        fs, root = self._open()
        try:
            if root and fs.isfile(root):
                yield self._row(root.rpartition("/")[2], fs.info(root))
                return
            for name, info in _files(fs, root):
                yield self._row(_below(root, name), info)
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            raise UnderStoreError(
                self._options.redact(f"cannot list {self._source}: {_reason(error)}")
            ) from error

    def read(
        self, pieces: Sequence[Piece], *, urgent: bool = False, held_bytes_max: int = READING_BYTES_MAX
    ) -> GenericReading:
        workers = self._urgent_workers if urgent else self._workers
        return GenericReading(workers, self._read_batch, pieces, held_bytes_max=held_bytes_max)

    def _open(self) -> tuple[Any, str]:
        """Return this thread's file system and the source's path in it."""
        if not hasattr(self._own, "opened"):
            self._own.opened = open_filesystem(self._source, self._options)
        opened: tuple[Any, str] = self._own.opened
        return opened

    def _row(self, path: str, info: dict[str, Any]) -> FileRow:
        size = info.get("size")
        if not isinstance(size, int):
            raise UnderStoreError(f"{self._source} does not tell the size of {path}")
        return FileRow(path, size, _mtime_ns(info), _token(info))

    def _read_batch(self, pieces: Sequence[Piece]) -> _Outcomes:
        """Read in a worker's thread; a piece's outcome each."""
        outcomes = self._attempt(pieces)
        for attempt in range(1, ATTEMPTS_MAX):
            again = [i for i, outcome in enumerate(outcomes) if outcome is None]
            if not again:
                break
            self._stopped.wait(pause_ms(attempt) / 1000)
            retried = self._attempt([pieces[i] for i in again], is_last=attempt == ATTEMPTS_MAX - 1)
            for i, outcome in zip(again, retried, strict=True):
                outcomes[i] = outcome
        return [outcome for outcome in outcomes if outcome is not None]

    def _attempt(self, pieces: Sequence[Piece], is_last: bool = False) -> _Attempts:
        """Return a piece's outcome each; None: worth another attempt (never if `is_last`)."""
        fs, root = self._open()
        if self._is_file is None:
            self._is_file = bool(root) and bool(fs.isfile(root))
        names = [root if self._is_file else _name(root, piece.path) for piece in pieces]
        data: Sequence[Any] = fs.cat_ranges(
            names, [p.start for p in pieces], [p.stop for p in pieces], on_error="return"
        )
        fs.invalidate_cache()
        infos: dict[str, Any] = {name: _info(fs, name) for name in dict.fromkeys(names)}
        return [
            self._judge(piece, infos[name], got, is_last)
            for piece, name, got in zip(pieces, names, data, strict=True)
        ]

    def _judge(self, piece: Piece, info: Any, got: Any, is_last: bool) -> Outcome | None:
        if isinstance(info, FileNotFoundError):
            return changed(piece, "was deleted")
        failure = next((x for x in (got, info) if isinstance(x, BaseException)), None)
        if isinstance(failure, PermissionError) or (failure and is_last):
            return unreadable(piece, self._options.redact(_reason(failure)))
        if failure:
            return None
        is_marked = piece.token not in (b"", _old_unknown_token(piece.size))
        if info.get("size") != piece.size or (is_marked and _token(info) != piece.token):
            return changed(piece, "was changed")
        if len(got) != piece.stop - piece.start:
            return (
                unreadable(piece, f"got {len(got)} of {piece.stop - piece.start} bytes") if is_last else None
            )
        return bytes(got)


class GenericReading:
    """See base.Reading. Batches go to the workers as long as what is under way fits: any library may hold it twice."""

    is_immediate = False

    def __init__(
        self,
        workers: concurrent.futures.ThreadPoolExecutor,
        read_batch: Callable[[Sequence[Piece]], list[Outcome]],
        pieces: Sequence[Piece],
        *,
        held_bytes_max: int = READING_BYTES_MAX,
    ) -> None:
        check_pieces(pieces)
        self._room = held_bytes_max // COPIES
        self._workers = workers
        self._read_batch = read_batch
        self._pieces = pieces
        self._batches = collections.deque(_batches(pieces, max(PIECE_BYTES_MAX, self._room // 2)))
        self._ended: queue.SimpleQueue[tuple[range, list[Outcome]] | None] = queue.SimpleQueue()
        self._ready: list[tuple[int, Outcome]] = []
        self._running_bytes: dict[range, int] = {}
        self._heard_at = time.monotonic()
        self._cancelled = False

    def __iter__(self) -> GenericReading:
        return self

    def __next__(self) -> tuple[int, Outcome]:
        while not self.wait(TIMEOUT_MS):
            pass  # it gives up in the end
        if not self._ready:
            raise StopIteration
        return self._ready.pop()

    def wait(self, timeout_ms: float) -> bool:
        if self._ready:
            return True
        self._start()
        if not self._running_bytes or self._cancelled:
            return True
        try:
            ended = self._ended.get(timeout=timeout_ms / 1000)
        except queue.Empty:
            ended = self._give_up() if time.monotonic() - self._heard_at >= TIMEOUT_MS / 1000 else None
        if ended is not None and self._running_bytes.pop(ended[0], None) is not None:
            self._heard_at = time.monotonic()
            self._ready = list(zip(ended[0], ended[1], strict=True))[::-1]
        return self._cancelled or bool(self._ready)

    def cancel(self) -> None:
        self._cancelled = True
        self._ended.put(None)

    def hurry(self, numbers: Sequence[int]) -> None:
        return  # a batch that a worker has begun cannot be changed, and few are ahead of it

    def _start(self) -> None:
        while self._batches:
            batch = self._batches[0]
            size = sum(map(self._length, batch))
            if self._running_bytes and sum(self._running_bytes.values()) + size > self._room:
                return
            self._batches.popleft()
            self._running_bytes[batch] = size
            self._workers.submit(self._work, batch, self._pieces[batch.start : batch.stop])

    def _length(self, index: int) -> int:
        piece = self._pieces[index]
        return piece.stop - piece.start

    def _work(self, batch: range, pieces: Sequence[Piece]) -> None:
        if self._cancelled:
            return
        try:
            outcomes = self._read_batch(pieces)
        except Exception as error:  # any library's: it becomes the failure of these pieces
            outcomes = [unreadable(piece, _reason(error)) for piece in pieces]
        self._ended.put((batch, outcomes))

    def _give_up(self) -> tuple[range, list[Outcome]]:
        """Nothing came for TIMEOUT_MS: fail the oldest batch. Its thread stays lost until the store answers."""
        batch = next(iter(self._running_bytes))
        message = f"no answer within {TIMEOUT_MS // 1000} s"
        return batch, [unreadable(self._pieces[i], message) for i in batch]


def open_filesystem(source: str, options: Options) -> tuple[Any, str]:
    """Return a new fsspec file system for `source` and the path in it.

    :raises UnderStoreError: unknown protocol, a package is missing, or the options are wrong.
    """
    import fsspec

    protocol = source.partition("://")[0].partition("::")[0]
    try:
        constructor = fsspec.get_filesystem_class(protocol)
        values = options.typed_for(constructor)
        fs, root = fsspec.core.url_to_fs(source, use_listings_cache=False, skip_instance_cache=True, **values)
    except ImportError as error:
        raise UnderStoreError(
            options.redact(
                f"{protocol}:// sources need a package that is not installed here: {_reason(error)}"
            )
        ) from error
    except ValueError as error:
        if "Protocol not known" in str(error):
            raise UnderStoreError(
                f"{protocol!r} is no protocol that fsspec knows; try file, http, https, s3, gs, abfs, hdfs, sftp ..."
            ) from error
        raise UnderStoreError(options.redact(f"cannot open {source}: {_reason(error)}")) from error
    except (TypeError, OSError, RuntimeError) as error:
        raise UnderStoreError(options.redact(f"cannot open {source}: {_reason(error)}")) from error
    return fs, str(root).rstrip("/")


def _files(fs: Any, root: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (name, info) of all files: a directory at a time, or all at once where the store lists flat."""
    if _lists_flat(fs):
        yield from fs.find(root, detail=True).items()
        return
    for _, _, files in fs.walk(root, detail=True, on_error="raise"):
        for info in files.values():
            yield info["name"], info


def _lists_flat(fs: Any) -> bool:
    """Whether the file system has its own `find`: object stores do, in one listing of many pages."""
    from fsspec.asyn import AsyncFileSystem
    from fsspec.spec import AbstractFileSystem

    if isinstance(fs, AsyncFileSystem):
        return type(fs)._find is not AsyncFileSystem._find
    return type(fs).find is not AbstractFileSystem.find


def _batches(pieces: Sequence[Piece], bytes_max: int) -> Iterator[range]:
    start = held = 0
    for index, piece in enumerate(pieces):
        length = piece.stop - piece.start
        if index > start and (index - start >= BATCH_PIECES_MAX or held + length > bytes_max):
            yield range(start, index)
            start, held = index, 0
        held += length
    if start < len(pieces):
        yield range(start, len(pieces))


def _below(root: str, name: str) -> str:
    return name.lstrip("/")[len(root.lstrip("/")) :].lstrip("/") if root else name.lstrip("/")


def _name(root: str, path: str) -> str:
    return f"{root}/{path}" if root else path


def _info(fs: Any, name: str) -> Any:
    try:
        return fs.info(name)
    except Exception as error:  # any library's: judged by the caller
        return error


def _token(info: dict[str, Any]) -> bytes:
    found = next((f"{key}={info[key]}" for key in _VERSION_KEYS if info.get(key)), "")
    # A number: some file systems give another type of time in `info` than in a listing.
    mtime_ns = _mtime_ns(info)
    if not found and not mtime_ns:
        return b""
    token = f"{found};mtime_ns={mtime_ns};size={info.get('size')}".encode(errors="replace")
    return token if len(token) <= TOKEN_BYTES_MAX else hashlib.sha256(token).digest()


def _old_unknown_token(size: int) -> bytes:
    """Return what manifests of before have for a file without version and time."""
    return f";mtime_ns=0;size={size}".encode()


def _mtime_ns(info: dict[str, Any]) -> int:
    value = next((info[key] for key in _TIME_KEYS if info.get(key)), 0)
    if isinstance(value, datetime):
        value = (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    if not isinstance(value, int | float):
        return 0
    seconds = value if value < 1e11 else value / 1_000  # hdfs tells milliseconds
    return round(seconds * 1_000_000) * 1_000  # what a float holds of a time


def _reason(error: object) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__

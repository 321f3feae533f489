"""stoker:// for fsspec: synchronous, read-only, cheap to make.

Paths are NAME/path, without a leading slash; "" lists the datasets; NAME@VERSION names a version. They are literal:
nothing is percent-decoded, and a path that exists is never taken for a pattern. An instance stays on the version of a
dataset that it first saw, until `invalidate_cache`; its pickles carry that version and the resolved URL, never a token.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import hashlib
import os
from collections.abc import Callable, Iterable
from glob import has_magic
from typing import Any, TypeVar

from fsspec.callbacks import DEFAULT_CALLBACK
from fsspec.spec import AbstractFileSystem

from stoker.client.api import add_fallback, read_files, settle, split_version
from stoker.client.errors import ApiError, DatasetGone, missing, read_only
from stoker.client.fetcher import Stats
from stoker.client.file import open_row
from stoker.client.reader import Pin, Range, Reader
from stoker.client.session import Session, api_to_os, session_for

COPY_BYTES = 8 * 1024 * 1024  # one step of a download

_T = TypeVar("_T")


class StokerFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """See the module.

    :param url: http://host:port[,host:port]; None: STOKER_URL as it is when the instance is made.
    :param fallback: "direct": read the under store itself where no executor answers, with `options` (fsspec's
        storage_options of the program's own); counted in `stats`.
    :param token: a bearer token; else STOKER_TOKEN. Never pickled.
    """

    protocol = "stoker"
    root_marker = ""
    cachable = False  # an instance is cheap, and STOKER_URL may change: the session is what is shared
    async_impl = False

    def __init__(
        self,
        url: str | None = None,
        fallback: str | None = None,
        options: dict[str, Any] | None = None,
        token: str = "",
        pins: Any = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._session: Session = session_for(url, token=token)
        self._fallback = fallback
        self._options = options or {}
        self._readers: dict[str, Reader] = {}
        self._pins: dict[str, Pin] = {pin[0]: Pin(*pin) for pin in pins}

    @property
    def url(self) -> str:
        return self._session.url

    @property
    def stats(self) -> Stats:
        return self._session.stats

    @property
    def fsid(self) -> str:
        return f"stoker-{self.url}"

    @property
    def _fs_token(self) -> str:
        text = repr((type(self).__name__, self.url, self._fallback))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def storage_options(self) -> dict[str, Any]:
        """What makes this instance again elsewhere: the resolved URL and the versions seen, no token, no credentials."""
        made: dict[str, Any] = {"url": self.url}
        if self._fallback is not None:
            made["fallback"] = self._fallback
        pins = tuple(sorted({**self._pins, **{n: r.pin for n, r in self._readers.items()}}.values()))
        if pins:
            made["pins"] = [list(pin) for pin in pins]
        return made

    @storage_options.setter
    def storage_options(self, value: dict[str, Any]) -> None:
        """fsspec sets what it was called with; what counts is what that was resolved to."""

    def __reduce__(self) -> Any:
        return _make, (type(self), self.storage_options)

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(each) for each in path]
        text = os.fspath(path)
        if text.startswith("fsspec+stoker://"):
            text = text[len("fsspec+") :]
        return text.removeprefix("stoker://").strip("/")

    @classmethod
    def _get_kwargs_from_urls(cls, path: str) -> dict[str, Any]:
        return {}

    def invalidate_cache(self, path: str | None = None) -> None:
        """Go on to the newest version of every dataset (of the one that `path` names)."""
        name = None if path is None else split_version(self._strip_protocol(path).partition("/")[0])[0]
        for held in (self._readers, self._pins):
            for each in [each for each in held if name is None or split_version(each)[0] == name]:
                held.pop(each, None)
        self._session.invalidate(name)

    # Readers

    def reader_of(self, pin: Pin) -> Reader:
        """Return the reader of one version, for an unpickled file."""
        return add_fallback(self._session, self._session.pinned(pin), self._fallback, self._options)

    def _reader(self, name: str) -> Reader:
        """Return the dataset's reader: the one of before, unless it is gone or a file of it was found changed."""
        found = self._readers.get(name)
        if found is not None and not (found.is_doubted or self._session.is_gone(found)):
            return found
        pin = self._pins.pop(name, None) if found is None else None
        if pin is not None:
            reader = self._session.pinned(pin)
        else:
            reader = self._session.reader(*split_version(name))
        reader = add_fallback(self._session, reader, self._fallback, self._options)
        self._readers[name] = reader
        return reader

    def _file(self, path: str) -> tuple[Reader, int]:
        """Return the reader and row of a file.

        :raises FileNotFoundError, IsADirectoryError:
        """
        name, _, rest = self._strip_protocol(path).partition("/")
        reader = self._reader(self._named(name))
        if not rest:
            raise IsADirectoryError(errno.EISDIR, "is a dataset, not a file", name)
        return reader, reader.row(rest)

    def _named(self, name: str) -> str:
        if not name:
            raise IsADirectoryError(errno.EISDIR, "is the list of datasets, not a file", "stoker://")
        return name

    def _again(self, read: Callable[[], _T]) -> _T:
        """Read; and once more if the dataset turned out to be another one by now."""
        try:
            return read()
        except DatasetGone:
            return read()

    # Looking

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)
        name, _, rest = path.partition("/")
        if not name:
            return _directory("")
        reader = self._reader(name)
        if not rest:
            return _directory(name)
        row = reader.manifest.find(rest)
        if row >= 0:
            return _file_info(reader, row, path)
        if reader.manifest.is_directory(rest):
            return _directory(path)
        raise missing(path)

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        path = self._strip_protocol(path)
        name, _, rest = path.partition("/")
        if not name:
            found = [_directory(each) for each in self._dataset_names()]
        else:
            reader = self._reader(name)
            found = [
                _directory(f"{path}/{child.name}")
                if child.is_directory
                else _file_info(reader, child.row, f"{path}/{child.name}")
                for child in reader.manifest.list_directory(rest)
            ]
            row = reader.manifest.find(rest) if rest else -1
            if not found and row >= 0:
                found = [_file_info(reader, row, path)]
            if not found and rest:
                raise missing(path)
        return found if detail else [each["name"] for each in found]

    def _dataset_names(self) -> list[str]:
        try:
            answer = self._session.rest.get("/v1/datasets")
        except ApiError as error:
            raise api_to_os(error, "stoker://") from error
        return sorted(str(each["name"]) for each in answer.get("datasets", ()))

    def exists(self, path: str, **kwargs: Any) -> bool:
        try:
            self.info(path)
        except FileNotFoundError:
            return False
        return True

    def isfile(self, path: str) -> bool:
        try:
            return bool(self.info(path)["type"] == "file")
        except FileNotFoundError:
            return False

    def isdir(self, path: str) -> bool:
        try:
            return bool(self.info(path)["type"] == "directory")
        except FileNotFoundError:
            return False

    def find(
        self,
        path: str,
        maxdepth: int | None = None,
        withdirs: bool = False,
        detail: bool = False,
        **kwargs: Any,
    ) -> Any:
        path = self._strip_protocol(path)
        if not path or maxdepth is not None or withdirs:
            return super().find(path, maxdepth=maxdepth, withdirs=withdirs, detail=detail, **kwargs)
        name, _, rest = path.partition("/")
        manifest = self._reader(name).manifest
        reader = self._reader(name)
        row = manifest.find(rest) if rest else -1
        rows = range(*manifest.directory_range(rest))
        if not rows and row >= 0:
            rows = range(row, row + 1)
        names = [f"{name}/{manifest.path(each)}" for each in rows]
        if not detail:
            return names
        return {each: _file_info(reader, at, each) for at, each in zip(rows, names, strict=True)}

    def du(
        self,
        path: str,
        total: bool = True,
        maxdepth: int | None = None,
        withdirs: bool = False,
        **kwargs: Any,
    ) -> Any:
        stripped = self._strip_protocol(path)
        name, _, rest = stripped.partition("/")
        if not total or maxdepth is not None or not name:
            return super().du(path, total=total, maxdepth=maxdepth, withdirs=withdirs, **kwargs)
        manifest = self._reader(name).manifest
        start, stop = manifest.directory_range(rest)
        if start == stop and rest:
            row = manifest.find(rest)
            return manifest.size(row) if row >= 0 else 0
        return int(manifest.sizes[start:stop].sum())

    def glob(self, path: str, maxdepth: int | None = None, **kwargs: Any) -> Any:
        """As fsspec's; but a path that exists as it stands is itself, and no pattern."""
        stripped = self._strip_protocol(path)
        if stripped and not str(path).endswith("/") and has_magic(stripped) and self._is_literal(stripped):
            return {stripped: self.info(stripped)} if kwargs.get("detail") else [stripped]
        return super().glob(path, maxdepth=maxdepth, **kwargs)

    def _is_literal(self, path: str) -> bool:
        name = path.partition("/")[0]
        if has_magic(name):
            return False
        return self.exists(path)

    def expand_path(
        self, path: Any, recursive: bool = False, maxdepth: int | None = None, **kwargs: Any
    ) -> list[str]:
        """As fsspec's; but a path that exists is never expanded as a pattern.

        :raises FileNotFoundError: nothing is there.
        """
        if maxdepth is not None and maxdepth < 1:
            raise ValueError("maxdepth must be at least 1")
        out: set[str] = set()
        for each in [path] if isinstance(path, str | os.PathLike) else path:
            stripped = self._strip_protocol(each)
            if has_magic(stripped) and not self._is_literal(stripped):
                matched = self.glob(stripped, maxdepth=maxdepth, **kwargs)
                out.update(matched)
                below = matched if recursive else ()
            else:
                out.update([stripped] if not recursive or self.exists(stripped) else [])
                below = [stripped] if recursive else ()
            for directory in below:
                out.update(self.find(directory, maxdepth=maxdepth, withdirs=True, detail=False))
        if not out:
            raise missing(str(path))
        return sorted(out)

    def ukey(self, path: str) -> str:
        """Return a mark of the file's bytes in this version of the dataset."""
        reader, row = self._file(path)
        pin = reader.pin
        text = f"{reader.manifest.cluster.hex()}/{pin.dataset_id}/{pin.version}/{reader.manifest.etag(row)}"
        return hashlib.sha256(f"{text}/{reader.manifest.path(row)}".encode()).hexdigest()

    def checksum(self, path: str) -> int:
        return int(self.ukey(path)[:32], 16)

    def modified(self, path: str) -> datetime.datetime:
        reader, row = self._file(path)
        nanoseconds = reader.manifest.mtime_ns(row)
        return datetime.datetime.fromtimestamp(nanoseconds / 1e9, tz=datetime.UTC)

    def created(self, path: str) -> datetime.datetime:
        return self.modified(path)

    # Reading

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,
        **kwargs: Any,
    ) -> Any:
        if mode not in ("rb", "r"):
            raise read_only(f"open(mode={mode!r})")
        reader, row = self._file(path)
        return open_row(reader, row, buffer_bytes=block_size, fs=self)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        def read() -> bytes:
            reader, row = self._file(path)
            first, last = _clip(start, end, reader.manifest.size(row))
            return reader.read(row, first, last - first) if last > first else b""

        return self._again(read)

    def cat(self, path: Any, recursive: bool = False, on_error: str = "raise", **kwargs: Any) -> Any:
        """Return one file's bytes for one literal path, else {path: bytes}: all in one batch."""
        if isinstance(path, str | os.PathLike):
            stripped = self._strip_protocol(path)
            if not recursive and (not has_magic(stripped) or self._is_literal(stripped)):
                return self.cat_file(stripped, **kwargs)
            paths = self.expand_path(path, recursive=recursive)
        else:
            paths = list(dict.fromkeys(map(self._strip_protocol, path)))
            if recursive or any(map(has_magic, paths)):
                paths = self.expand_path(paths, recursive=recursive)
        if recursive:
            paths = [each for each in paths if not self.isdir(each)]
        if kwargs.get("start") is not None or kwargs.get("end") is not None:
            found = self.cat_ranges(
                paths, [kwargs.get("start")] * len(paths), [kwargs.get("end")] * len(paths), on_error="return"
            )
        else:
            found = self.read_many(paths, on_error="return" if on_error != "raise" else "raise")
        return {
            each: data
            for each, data in zip(paths, _raised(found, on_error), strict=True)
            if not (on_error == "omit" and isinstance(data, Exception))
        }

    def cat_ranges(
        self,
        paths: list[str],
        starts: Any,
        ends: Any,
        max_gap: int | None = None,
        on_error: str = "return",
        **kwargs: Any,
    ) -> list[Any]:
        """Return bytes [start, end) of each path, in order, in one batch; None and negative as in a slice."""
        if not isinstance(starts, Iterable):
            starts = [starts] * len(paths)
        if not isinstance(ends, Iterable):
            ends = [ends] * len(paths)
        starts, ends = list(starts), list(ends)
        if not len(paths) == len(starts) == len(ends):
            raise ValueError(
                f"{len(paths)} paths, {len(starts)} starts, {len(ends)} ends: there must be as many of each"
            )

        def plan(reader: Reader, at: int, row: int) -> Range:
            first, last = _clip(starts[at], ends[at], reader.manifest.size(row))
            return Range(row, first, max(0, last - first))

        def read(reader: Reader, places: list[int], rows: list[int]) -> list[Any]:
            return reader.fetch([plan(reader, at, row) for at, row in zip(places, rows, strict=True)])

        results = self._again(lambda: self._by_dataset(paths, read))
        return _raised(results, on_error)

    def read_many(self, paths: Iterable[str], *, out: Any = None, on_error: str = "raise") -> list[Any]:
        """Return whole files, in order, in one batch; `out` and `on_error` as in `Dataset.read_many`.

        With `out`, all paths must be of one dataset.
        """
        wanted = list(paths)
        if out is not None:
            names = {self._strip_protocol(path).partition("/")[0] for path in wanted}
            if len(names) > 1:
                raise ValueError(
                    f"read_many(out=) reads one dataset at a time, not {', '.join(sorted(names))}"
                )

        def read(reader: Reader, places: list[int], rows: list[int]) -> list[Any]:
            return read_files(reader, rows, out, "return")

        return settle(self._again(lambda: self._by_dataset(wanted, read)), on_error)

    def _by_dataset(
        self, paths: list[str], read: Callable[[Reader, list[int], list[int]], list[Any]]
    ) -> list[Any]:
        """Return `read(reader, places, rows)` of each dataset's paths, put together in order; errors stand in place."""
        results: list[Any] = [None] * len(paths)
        groups: dict[str, tuple[Reader, list[int], list[int]]] = {}
        for at, path in enumerate(paths):
            name, _, rest = self._strip_protocol(path).partition("/")
            try:
                group = groups.get(name)
                if group is None:
                    group = groups[name] = (self._reader(self._named(name)), [], [])
                row = group[0].manifest.find(rest)
                if row < 0:
                    row = group[0].row(rest)
            except OSError as error:
                results[at] = error
                continue
            group[1].append(at)
            group[2].append(row)
        for reader, places, rows in groups.values():
            for at, result in zip(places, read(reader, places, rows), strict=True):
                results[at] = result
        return results

    def get(self, rpath: Any, lpath: Any, recursive: bool = False, **kwargs: Any) -> Any:
        """As fsspec's; but one path that exists is one file, whatever characters it has."""
        if not recursive and isinstance(rpath, str) and isinstance(lpath, str):
            stripped = self._strip_protocol(rpath)
            if has_magic(stripped) and self._is_literal(stripped):
                is_into = lpath.endswith("/") or os.path.isdir(lpath)
                target = os.path.join(lpath, stripped.rpartition("/")[2]) if is_into else lpath
                return self.get_file(stripped, target, callback=kwargs.get("callback") or DEFAULT_CALLBACK)
        return super().get(rpath, lpath, recursive=recursive, **kwargs)

    def get_file(
        self, rpath: str, lpath: Any, callback: Any = DEFAULT_CALLBACK, outfile: Any = None, **kwargs: Any
    ) -> None:
        """Download one file; a directory is made."""
        rpath = self._strip_protocol(rpath)
        if outfile is None and self.isdir(rpath):
            os.makedirs(lpath, exist_ok=True)
            return
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(self._open(rpath, block_size=0))
            if outfile is None:
                os.makedirs(os.path.dirname(os.path.abspath(lpath)), exist_ok=True)
                outfile = stack.enter_context(open(lpath, "wb"))
            callback.set_size(file.size)
            buffer = memoryview(bytearray(max(1, min(COPY_BYTES, file.size))))
            while count := file.readinto(buffer):
                outfile.write(buffer[:count])
                callback.relative_update(count)

    # Writing: none

    def mkdir(self, path: str, create_parents: bool = True, **kwargs: Any) -> None:
        raise read_only("mkdir")

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        raise read_only("makedirs")

    def rmdir(self, path: str) -> None:
        raise read_only("rmdir")

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        raise read_only("rm")

    def rm_file(self, path: str) -> None:
        raise read_only("rm")

    def _rm(self, path: str) -> None:
        raise read_only("rm")

    def cp_file(self, path1: str, path2: str, **kwargs: Any) -> None:
        raise read_only("cp")

    def copy(self, path1: Any, path2: Any, **kwargs: Any) -> None:
        raise read_only("cp")

    def mv(self, path1: Any, path2: Any, **kwargs: Any) -> None:
        raise read_only("mv")

    def touch(self, path: str, truncate: bool = True, **kwargs: Any) -> None:
        raise read_only("touch")

    def pipe_file(self, path: str, value: Any, mode: str = "overwrite", **kwargs: Any) -> None:
        raise read_only("pipe")

    def pipe(self, path: Any, value: Any = None, **kwargs: Any) -> None:
        raise read_only("pipe")

    def put_file(self, lpath: Any, rpath: str, callback: Any = DEFAULT_CALLBACK, **kwargs: Any) -> None:
        raise read_only("put")

    def put(self, lpath: Any, rpath: Any, recursive: bool = False, **kwargs: Any) -> None:
        raise read_only("put")

    def start_transaction(self) -> Any:
        raise read_only("a transaction")


def _make(cls: type[StokerFileSystem], options: dict[str, Any]) -> StokerFileSystem:
    return cls(**options)


def _directory(name: str) -> dict[str, Any]:
    return {"name": name, "size": 0, "type": "directory"}


def _file_info(reader: Reader, row: int, name: str) -> dict[str, Any]:
    manifest = reader.manifest
    mtime_ns = manifest.mtime_ns(row)
    return {
        "name": name,
        "size": manifest.size(row),
        "type": "file",
        "ETag": manifest.etag(row),
        "mtime": mtime_ns / 1e9 if mtime_ns else None,
    }


def _clip(start: int | None, end: int | None, size: int) -> tuple[int, int]:
    """Return [first, last) as a slice of `size` bytes would be."""
    first, last, _ = slice(start, end).indices(size)
    return first, last


def _raised(results: list[Any], on_error: str) -> list[Any]:
    if on_error == "raise":
        for result in results:
            if isinstance(result, Exception):
                raise result
    return results

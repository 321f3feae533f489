"""The door of the client: `Client`, `Dataset`, and `open_path` behind `stoker.open`.

    client = Client("http://127.0.0.1:5050")          # or STOKER_URL
    dataset = client.dataset("imagenet")              # its newest version, for the life of this object
    dataset.read("train/0001.jpg")                    # bytes
    dataset.read_many(range(256))                     # rows are files in the order of their paths' bytes
    with dataset.view("train/0001.jpg") as view: ...  # the executor's own memory, on the same host

Reading never asks a scheduler; the methods that are about the cluster are one REST call each and return its JSON.
"""

from __future__ import annotations

import contextlib
import itertools
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

from stoker.client.direct import UnderStore
from stoker.client.errors import dataset_gone, missing, read_only
from stoker.client.fetcher import Stats
from stoker.client.file import BufferedFile, RawFile, open_row
from stoker.client.reader import Pin, Range, Reader
from stoker.client.session import Session, quote, session_for

ON_ERROR = ("raise", "return", "omit")
FALLBACKS = (None, "direct")


class Client:
    """A cluster, as a program sees it. Cheap to make; all clients of one URL in a process share their connections.

    :raises UrlError: no URL (`url` None: STOKER_URL), or not one.
    """

    def __init__(self, url: str | None = None, *, token: str = "") -> None:
        self._session = session_for(url, token=token)

    @property
    def url(self) -> str:
        return self._session.url

    @property
    def stats(self) -> Stats:
        """What this process's reads took, over all datasets of the URL."""
        return self._session.stats

    def __reduce__(self) -> Any:
        return Client, (self.url,)

    def __repr__(self) -> str:
        return f"Client({self.url!r})"

    # Reading

    def dataset(
        self, name: str, *, fallback: str | None = None, options: Mapping[str, Any] | None = None
    ) -> Dataset:
        """Return the newest version of a dataset, to read. NAME@VERSION names the version that is wanted.

        :param fallback: "direct" reads the under store itself, with this program's credentials (`options`, fsspec's
            storage_options), where no executor answers; counted in `stats`.
        :raises OSError: no such dataset, or it cannot be read now.
        """
        name, version = split_version(name)
        session = self._session
        reader = session.newest(name) if version is None else session.reader(name, version)
        return Dataset(session, reader, fallback=fallback, options=options)

    def datasets(self) -> list[dict[str, Any]]:
        return self._list("/v1/datasets", "datasets")

    # The cluster

    def dataset_info(self, name: str) -> dict[str, Any]:
        return self._get(f"/v1/datasets/{quote(name)}")

    def create_dataset(
        self,
        name: str,
        source: str,
        *,
        options: Mapping[str, str] | None = None,
        replicas: int | None = None,
        policy: str | None = None,
        tier: str | None = None,
        priority: int | None = None,
    ) -> dict[str, Any]:
        """Add a dataset; returns at once, in state LISTING. Idempotent: the same again returns what is there.

        :raises ApiError: `exists_differently`, `bad_request`.
        """
        body = {
            "name": name,
            "source": source,
            "options": dict(options) if options else None,
            "replicas": replicas,
            "policy": policy,
            "tier": tier,
            "priority": priority,
        }
        self._session.invalidate(name)
        return self._call("POST", "/v1/datasets", {k: v for k, v in body.items() if v is not None})

    def change_dataset(
        self,
        name: str,
        *,
        replicas: int | None = None,
        policy: str | None = None,
        priority: int | None = None,
    ) -> dict[str, Any]:
        """Change how a dataset is cached, and return it; what is None stays as it is.

        :raises ApiError: `not_found`, `bad_request`.
        """
        body = {"replicas": replicas, "policy": policy, "priority": priority}
        return self._call(
            "PATCH", f"/v1/datasets/{quote(name)}", {k: v for k, v in body.items() if v is not None}
        )

    def delete_dataset(self, name: str) -> dict[str, Any]:
        """Remove a dataset and all that is cached of it; the under store stays as it is."""
        view = self._call("DELETE", f"/v1/datasets/{quote(name)}")
        self._session.invalidate(name)
        return view

    def refresh_dataset(self, name: str) -> dict[str, Any]:
        """List the under store again: a new version, in which unchanged files stay cached."""
        view = self._call("POST", f"/v1/datasets/{quote(name)}/refresh", {}, key=new_key())
        self._session.invalidate(name)
        return view

    def placement(self, name: str) -> dict[str, Any]:
        return self._get(f"/v1/datasets/{quote(name)}/placement")

    def create_job(
        self,
        kind: str,
        dataset: str,
        paths: Sequence[str] | None = None,
        *,
        fit: bool | None = None,
        plan: bool | None = None,
        key: str | None = None,
    ) -> dict[str, Any]:
        """Begin a `load` or `free` of `paths` (None: all). `plan`: only say what it would do.

        :param key: the Idempotency-Key; None: a new one, so that each call is a new job.
        """
        body = {
            "kind": kind,
            "dataset": dataset,
            "paths": None if paths is None else list(paths),
            "fit": fit,
            "plan": plan,
        }
        return self._call(
            "POST", "/v1/jobs", {k: v for k, v in body.items() if v is not None}, key=key or new_key()
        )

    def job(self, job_id: str) -> dict[str, Any]:
        return self._get(f"/v1/jobs/{quote(job_id)}")

    def jobs(self) -> list[dict[str, Any]]:
        return self._list("/v1/jobs", "jobs")

    def cancel_job(self, job_id: str) -> dict[str, Any]:
        return self._call("DELETE", f"/v1/jobs/{quote(job_id)}")

    def drain(self, agent: str, *, key: str | None = None) -> dict[str, Any]:
        """Begin to drain an agent, named by its id or hostname; return the job that tells how far it is."""
        return self._call("POST", "/v1/jobs", {"kind": "drain", "agent": agent}, key=key or new_key())

    def undo_drain(self, agent: str) -> dict[str, Any]:
        """Let a drained agent be used again; return it."""
        return self._call("DELETE", f"/v1/agents/{quote(agent)}/drain")

    def uninstall(self, *, keep_volumes: bool = False) -> dict[str, Any]:
        """End all that the cluster has on Mesos, and the cluster; return how far that is."""
        return self._call("POST", "/v1/uninstall", {"keep_volumes": keep_volumes})

    def uninstall_state(self) -> dict[str, Any]:
        return self._get("/v1/uninstall")

    def fleet(self) -> dict[str, Any]:
        return self._get("/v1/fleet")

    def set_fleet(
        self,
        *,
        instances: int | None = None,
        mem_bytes: int | None = None,
        disk_bytes: int | None = None,
        roles: Sequence[str] | None = None,
        constraints: Sequence[str] | None = None,
        executor: str | None = None,
    ) -> dict[str, Any]:
        """Change the wanted fleet; what is None stays as it is. Less disk, or fewer executors with any, destroys volumes."""
        wanted = {
            "instances": instances,
            "mem_bytes": mem_bytes,
            "disk_bytes": disk_bytes,
            "roles": None if roles is None else list(roles),
            "constraints": None if constraints is None else list(constraints),
            "executor": executor,
        }
        now = self.fleet()
        body = {key: now[key] if value is None else value for key, value in wanted.items()}
        return self._call("PUT", "/v1/fleet", body)

    def executors(self) -> list[dict[str, Any]]:
        return self._list("/v1/executors", "executors")

    def agents(self) -> list[dict[str, Any]]:
        return self._list("/v1/agents", "agents")

    def offers(self) -> list[dict[str, Any]]:
        return self._list("/v1/offers", "offers")

    def leader(self) -> dict[str, Any]:
        return self._get("/v1/leader")

    def _get(self, path: str) -> dict[str, Any]:
        return self._call("GET", path)

    def _list(self, path: str, field: str) -> list[dict[str, Any]]:
        return list(self._call("GET", path).get(field) or [])

    def _call(self, method: str, path: str, body: Any = None, *, key: str = "") -> dict[str, Any]:
        answer = self._session.rest.call(method, path, body, key=key)
        return answer if isinstance(answer, dict) else {}


class Paths(Sequence[str]):
    """The paths of a dataset by row, in the order of their bytes. None of them is kept."""

    def __init__(self, reader: Reader, rows: range) -> None:
        self._reader = reader
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, row: int) -> str: ...

    @overload
    def __getitem__(self, row: slice) -> Paths: ...

    def __getitem__(self, row: int | slice) -> str | Paths:
        if isinstance(row, slice):
            return Paths(self._reader, self._rows[row])
        return self._reader.manifest.path(self._rows[row])

    def __contains__(self, path: object) -> bool:
        return isinstance(path, str) and self._reader.manifest.find(path) in self._rows

    def index(self, path: Any, start: int = 0, stop: int | None = None) -> int:
        row = self._reader.manifest.find(path)
        if row not in self._rows:
            raise ValueError(f"{path!r} is not in {self!r}")
        at = self._rows.index(row)
        if not start <= at < (len(self) if stop is None else stop):
            raise ValueError(f"{path!r} is not in that part of {self!r}")
        return at

    def __repr__(self) -> str:
        return f"<{len(self)} paths of dataset {self._reader.pin.name!r}>"


class Dataset:
    """One version of a dataset, to read. Any thread may; so may a forked child, and whoever unpickles it.

    Where a file is wanted its path or its row (an int; negative: from the end) will do.
    """

    def __init__(
        self,
        session: Session,
        reader: Reader,
        *,
        fallback: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self._session = session
        self._fallback = fallback
        self._options = dict(options or {})
        self._reader = add_fallback(session, reader, fallback, self._options)
        self.name = reader.pin.name
        self.version = reader.pin.version
        self.paths = Paths(self._reader, range(reader.manifest.file_count))

    def __len__(self) -> int:
        return self._reader.manifest.file_count

    def __repr__(self) -> str:
        return f"<Dataset {self.name!r} version {self.version}: {len(self)} files>"

    def __reduce__(self) -> Any:
        # Options may hold the program's credentials, and a pickle never does: a worker has its own environment.
        return _dataset_again, (self._session.url, tuple(self._reader.pin), self._fallback)

    @property
    def stats(self) -> Stats:
        return self._session.stats

    def row(self, path: str) -> int:
        """:raises FileNotFoundError, IsADirectoryError: no file has this path."""
        return self._reader.row(path)

    def size(self, path_or_row: str | int) -> int:
        return self._reader.manifest.size(self._row(path_or_row))

    def extent(self, path_or_row: str | int) -> tuple[int, int]:
        """Return (offset, size) of a file in the dataset's address space, in bytes; it begins in block
        `offset // block_bytes`.
        """
        return self._reader.manifest.extent(self._row(path_or_row))

    @property
    def block_bytes(self) -> int:
        """The size of a block, a power of two."""
        return self._reader.manifest.block_bytes

    def blocks(self, path: str = "") -> list[int]:
        """Return the indexes of the blocks with bytes of a file, or of all files below a directory ("": all), ascending.

        :raises FileNotFoundError: there is nothing at `path`.
        """
        manifest = self._reader.manifest
        ranges = manifest.prefix_ranges(path)
        if not ranges:
            raise missing(f"{self.name}/{path}")
        rows = itertools.chain.from_iterable(range(start, stop) for start, stop in ranges)
        found: list[int] = manifest.blocks_of_rows(rows).tolist()
        return found

    def read(self, path_or_row: str | int, offset: int = 0, length: int | None = None) -> bytes:
        """Return bytes [offset, offset + length) of a file, cut at its end (length None: to the end).

        :raises ValueError: negative.
        """
        row = self._row(path_or_row)
        left = self._reader.manifest.size(row) - offset
        if offset < 0 or (length is not None and length < 0):
            raise ValueError(f"read of offset {offset}, length {length}: neither may be negative")
        size = left if length is None else min(length, left)
        return self._reader.read(row, offset, size) if size > 0 else b""

    def read_many(
        self, paths_or_rows: Iterable[str | int], *, out: Any = None, on_error: str = "raise"
    ) -> list[Any]:
        """Return whole files, in order, in one batch: one round trip an executor at most.

        :param out: a writable buffer (bytearray, numpy array ...) that takes them end to end; then the results are
            memoryviews of it. `total_bytes` tells how large it must be.
        :param on_error: "raise" the first; "return" exceptions in place of what could not be read; "omit" those.
        """
        return read_files(self._reader, self._rows(paths_or_rows, on_error), out, on_error)

    def read_ranges(
        self, ranges: Iterable[tuple[str | int, int, int]], *, on_error: str = "raise"
    ) -> list[Any]:
        """Return bytes [start, stop) of files, in order, in one batch; each range must lie inside its file."""
        wanted = []
        for path_or_row, start, stop in ranges:
            row = self._row(path_or_row)
            if not 0 <= start <= stop <= self._reader.manifest.size(row):
                raise ValueError(f"[{start}, {stop}) is not inside {self._reader.full_path(row)!r}")
            wanted.append(Range(row, start, stop - start))
        return settle(self._reader.fetch(wanted), on_error)

    def total_bytes(self, paths_or_rows: Iterable[str | int]) -> int:
        """Return what `read_many(..., out=)` needs."""
        return self._reader.total_bytes([self._row(each) for each in paths_or_rows])

    @contextlib.contextmanager
    def view(self, path_or_row: str | int) -> Iterator[memoryview]:
        """Lend the file as a read-only memoryview: no copy on the executor's host, for a file inside one full block of the
        MEM tier; else, and of the SSD tier always, of a copy. The executor counts the block as in use until the view, and all that was made of it, is gone.
        """
        view = self._reader.view(self._row(path_or_row))
        try:
            yield view
        finally:
            # An array made of the view may live on, and keeps the memory: then there is nothing to release.
            with contextlib.suppress(BufferError):
                view.release()

    def open(
        self, path_or_row: str | int, mode: str = "rb", *, buffer_bytes: int | None = None
    ) -> RawFile | BufferedFile:
        """Open a file for reading; `buffer_bytes` None: 64 KiB, 0: none (for random reads)."""
        if mode not in ("r", "rb"):
            raise read_only(f"open(mode={mode!r})")
        return open_row(self._reader, self._row(path_or_row), buffer_bytes=buffer_bytes)

    def info(self) -> dict[str, Any]:
        """Return the dataset as the scheduler shows it now (GET /v1/datasets/{name})."""
        answer: dict[str, Any] = self._session.rest.get(f"/v1/datasets/{quote(self.name)}")
        return answer

    def _row(self, path_or_row: str | int) -> int:
        if isinstance(path_or_row, str):
            return self._reader.row(path_or_row)
        row = int(path_or_row)  # numpy's ints too
        count = self._reader.manifest.file_count
        if not -count <= row < count:
            raise IndexError(f"row {row} of dataset {self.name!r}, which has {count} files")
        return row + count if row < 0 else row

    def _rows(self, paths_or_rows: Iterable[str | int], on_error: str) -> list[int | OSError]:
        if on_error not in ON_ERROR:
            raise ValueError(f"on_error={on_error!r}: allowed are {', '.join(ON_ERROR)}")
        rows: list[int | OSError] = []
        for each in paths_or_rows:
            try:
                rows.append(self._row(each))
            except OSError as error:
                if on_error == "raise":
                    raise
                rows.append(error)
        return rows


def open_path(path: str, mode: str = "rb", url: str | None = None, **kwargs: Any) -> Any:
    """Open `stoker://NAME/path` (or NAME/path) as `open` does; this is `stoker.open`."""
    from stoker.client.filesystem import StokerFileSystem

    return StokerFileSystem(url=url).open(path, mode, **kwargs)


def split_version(name: str) -> tuple[str, int | None]:
    """Return (name, version) of NAME or NAME@VERSION.

    >>> split_version("a"), split_version("a@3")
    (('a', None), ('a', 3))

    :raises ValueError: what follows the @ is not a version.
    """
    plain, at, version = name.partition("@")
    if not at:
        return name, None
    if not version.isascii() or not version.isdigit():
        raise ValueError(f"{name!r}: NAME@VERSION takes a number, as `stoker dataset show` prints it")
    return plain, int(version)


def new_key() -> str:
    return str(uuid.uuid4())


def add_fallback(
    session: Session, reader: Reader, fallback: str | None, options: Mapping[str, Any]
) -> Reader:
    """Return the reader, with the way to the under store if `fallback` is "direct".

    :raises ValueError: another fallback.
    """
    if fallback not in FALLBACKS:
        raise ValueError(f"fallback={fallback!r}: allowed are None and 'direct'")
    if fallback is None:
        return reader

    def count(size: int) -> None:
        session.stats.direct_reads += 1
        session.stats.direct_bytes += size

    pin = reader.pin

    def describe() -> Mapping[str, Any]:
        view: dict[str, Any] = session.rest.get(f"/v1/datasets/{quote(pin.name)}")
        if view.get("id", pin.dataset_id) != pin.dataset_id:
            raise dataset_gone(pin.name, "was removed and added again")
        return view

    return reader.with_direct(UnderStore(pin.name, describe, options, count))


def read_files(reader: Reader, rows: Sequence[int | OSError], out: Any, on_error: str) -> list[Any]:
    """Read whole files as `Dataset.read_many` says; an error among `rows` stands for a file that has none."""
    good = [row for row in rows if not isinstance(row, OSError)]
    view = None
    if out is not None:
        view = memoryview(out)
        if view.readonly or not view.c_contiguous:
            raise ValueError("out= must be a writable, contiguous buffer")
        view = view.cast("B")
        needed = reader.total_bytes(good)
        if len(view) < needed:
            raise ValueError(f"out= holds {len(view)} bytes, these files need {needed}")
    found = reader.read_files(good, view)
    if len(good) < len(rows):
        parts = iter(found)
        found = [row if isinstance(row, OSError) else next(parts) for row in rows]
    return settle(found, on_error)


def settle(results: list[Any], on_error: str) -> list[Any]:
    """Return the results as `on_error` wants them."""
    if on_error == "return":
        return results
    errors = [result for result in results if isinstance(result, OSError)]
    if errors and on_error == "raise":
        raise errors[0]
    return list(itertools.filterfalse(lambda r: isinstance(r, OSError), results)) if errors else results


def _dataset_again(url: str, pin: tuple[Any, ...], fallback: str | None) -> Dataset:
    session = session_for(url)
    return Dataset(session, session.pinned(Pin(*pin)), fallback=fallback)

"""The keeper's view of datasets: what the leader assigned, the manifests, and which blocks belong here.

A manifest is fetched once, mapped from a file in the sandbox, and shared with the fillers by its path. Heavy work on it (a mapping
is written, a residency selected) runs in the hub's native thread pool.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from typing import IO, Any

import numpy as np
from gevent.event import AsyncResult
from gevent.hub import get_hub
from gevent.lock import BoundedSemaphore

from stoker.executor.core.cache import DatasetKey
from stoker.executor.core.extents import Range
from stoker.executor.core.filling import (
    REFUSAL_KEPT_MS,
    FileFailed,
    Int64s,
    exact_ranges,
    file_bytes_in,
    miss_ranges,
    needed_ranges,
)
from stoker.executor.core.homes import (
    find_position,
    homes_table,
    inherited_spares,
    my_rank,
    my_wanted,
    spares_table,
)
from stoker.executor.errors import ManifestUnavailable
from stoker.executor.manifest import Manifest, ManifestError, map_manifest, open_bundle, write_mapped
from stoker.executor.messages import Assignment, DatasetAssignment
from stoker.executor.wire import Failure

log = logging.getLogger(__name__)

VERSIONS_KEPT_MAX = 4  # manifests of one dataset generation that are kept mapped
VERSIONS_READ_MAX = 16  # and so many, while readers wait for something of each
LOADING_MAX = 4  # fetches at once of a dataset's other versions, which callers name as they like
FIRST_VERSION = 1
FAILURES_KEPT_MAX = 4096  # remembered for readers, a dataset

Fetch = Callable[[str, int, IO[bytes]], None]
Spawn = Callable[..., Any]  # gevent.spawn, but a greenlet that fails ends the executor


class BlockFiles:
    """The files of one block in one version, as arrays by offset."""

    def __init__(self, manifest: Manifest, index: int, start: int, stop: int) -> None:
        self.manifest = manifest
        self.origin = index * manifest.block_bytes
        self.length = manifest.block_length(index)
        self.start = start
        self.stop = min(stop, self.length)
        self.rows: Int64s = manifest.rows_between(self.origin + start, self.origin + self.stop)
        self.offsets: Int64s = manifest.offsets[self.rows]
        self.sizes: Int64s = manifest.sizes[self.rows]

    def needed(self) -> list[Range]:
        """Return what of the range files own; padding too where it surely is padding."""
        if self.manifest.version == FIRST_VERSION:
            return [(self.start, self.stop)] if self.start < self.stop else []
        whole = needed_ranges(
            self.offsets, self.sizes, origin=self.origin, length=self.length, is_first_version=False
        )
        return [(max(a, self.start), min(b, self.stop)) for a, b in whole if a < self.stop and self.start < b]

    def miss_unit(self) -> list[Range]:
        return miss_ranges(
            self.offsets, self.sizes, origin=self.origin, start=self.start, stop=self.stop, length=self.length
        )

    def exact(self) -> list[Range]:
        return exact_ranges(
            self.offsets, self.sizes, origin=self.origin, start=self.start, stop=self.stop, length=self.length
        )

    def file_bytes(self, start: int, stop: int) -> int:
        return file_bytes_in(self.offsets, self.sizes, origin=self.origin, start=start, stop=stop)


class DatasetView:
    """One assigned dataset generation."""

    def __init__(self, assignment: DatasetAssignment) -> None:
        self.key: DatasetKey = (assignment.dataset_id, assignment.generation)
        self.assignment = assignment
        self.ranks = np.full(1, -1, dtype=np.int16)
        self.table = np.zeros((0, 1), dtype=np.uint16)
        self.position = -1
        self.spares = spares_table(b"", assignment.pg_count)  # who holds blocks of a PG and is no home of it
        self.spares_slot_ids: tuple[int, ...] = ()  # what its positions are of
        self.manifests: OrderedDict[int, tuple[Manifest, str]] = OrderedDict()  # the last used at the end
        self.reading: Counter[int] = Counter()  # by version: readers' wants under way
        self.loading: dict[int, AsyncResult] = {}
        self.manifest: Manifest | None = None  # of the assigned version, once it is here
        self.mine: Int64s = np.empty(0, dtype=np.int64)  # wanted here, in the order to fetch
        self.mine_set: set[int] = set()
        self.planned: tuple[Any, ...] = ()  # what `mine` was computed from
        self.planned_wanted_version = 0
        self.is_planning = False
        self.is_shown = False  # callers are let in
        self.returning: set[int] = set()  # stored files that are waited for, see Residents
        self.excluded = b""  # blocks with files that the wanted rules exclude
        self.todo: deque[int] = deque()  # wanted here, to be looked at
        self.unfit: set[int] = set()  # wanted here, but the tier is full of what stays
        self.saving_blocks = 0  # see Residency
        self.unsaved_blocks = 0
        self.freed_version = 0  # the wanted version whose exclusions were freed
        self.is_removed = False
        self.filled_bytes = 0
        self.copied_bytes = 0
        self.served_bytes = 0
        self.job_count = 0
        self.failures: OrderedDict[tuple[int, int, int], tuple[FileFailed, int]] = OrderedDict()
        self.changes = 0  # counts everything that a report tells

    def take(self, assignment: DatasetAssignment, whole: Assignment, slot_id: int) -> None:
        """Take over a newer assignment of the same generation."""
        assert (assignment.dataset_id, assignment.generation) == self.key
        self.assignment = assignment
        slot_ids = tuple(slot.slot_id for slot in whole.slots)
        table = homes_table(assignment.homes, assignment.pg_count)
        # A new leader knows who holds what only once all have reported; what the one before knew is as good till then.
        if whole.residency_complete or assignment.spares:
            self.spares = spares_table(assignment.spares, assignment.pg_count)
        else:
            self.spares = inherited_spares(
                self.spares, self.table, table, slot_ids_before=self.spares_slot_ids, slot_ids=slot_ids
            )
        self.spares_slot_ids = slot_ids
        self.position = find_position(whole.slots, slot_id)
        self.table = table
        self.ranks = my_rank(self.table, self.position)
        self.changes += 1

    def find_manifest(self, version: int) -> Manifest | None:
        """Return a manifest that is here; it counts as used."""
        found = self.manifests.get(version)
        if found is None:
            return None
        self.manifests.move_to_end(version)
        return found[0]

    def begin_reading(self, version: int) -> None:
        """A reader waits for something of this version: its manifest stays until `end_reading`."""
        self.reading[version] += 1

    def end_reading(self, version: int) -> None:
        self.reading[version] -= 1
        if not self.reading[version]:
            del self.reading[version]

    def is_home(self, block_index: int) -> bool:
        return bool(self.ranks[block_index % len(self.ranks)] >= 0)

    def files(self, manifest: Manifest, index: int, start: int = 0, stop: int = 2**63) -> BlockFiles:
        return BlockFiles(manifest, index, start, stop)

    def note_failure(self, block_index: int, version: int, failure: FileFailed, now_ms: int) -> None:
        """Remember a failed file for readers of blocks that are not kept here."""
        self.failures[version, block_index, failure.row] = (failure, now_ms)
        while len(self.failures) > FAILURES_KEPT_MAX:
            self.failures.popitem(last=False)

    def known_failure(self, block_index: int, files: BlockFiles, now_ms: int) -> FileFailed | None:
        """Return why one of `files` surely cannot be read now, if one was tried just now or has changed."""
        for row in files.rows.tolist() if self.failures else ():
            found = self.failures.get((files.manifest.version, block_index, row))
            if found and (found[0].code == Failure.CHANGED or now_ms - found[1] < REFUSAL_KEPT_MS):
                return found[0]
        return None

    def file_bytes(self, block_index: int, ranges: list[Range]) -> int:
        """Return how many bytes of the assigned version's files are in these ranges of a block."""
        manifest = self.manifest
        if manifest is None or block_index >= manifest.block_count:
            return 0
        found = [
            self.files(manifest, block_index, start, stop).file_bytes(start, stop) for start, stop in ranges
        ]
        return sum(found)

    def reconsider(self) -> None:
        """Look again at the wanted blocks that found no room."""
        self.todo.extend(sorted(self.unfit))
        self.unfit.clear()

    def plan_inputs(self) -> tuple[Any, ...]:
        """Return what the blocks that are wanted here follow from."""
        return (
            self.assignment.version,
            self.assignment.wanted_version,
            self.assignment.wanted,
            self.ranks.tobytes(),
        )


class Manifests:
    """Fetches, maps and keeps manifests under `directory`. `fetch(name, version, file)` asks the schedulers for a bundle.

    A bundle goes by way of a file, and one is mapped at a time: what they take of memory does not grow with their number.
    """

    def __init__(self, directory: str, fetch: Fetch, spawn: Spawn) -> None:
        self._directory = directory
        self._spawn = spawn
        self._fetch = fetch
        self._old: list[tuple[DatasetView, str]] = []
        self._files = 0
        self._mapping = BoundedSemaphore(1)
        os.makedirs(directory, exist_ok=True)

    def get(self, view: DatasetView, version: int) -> Manifest:
        """Return the manifest of a version of the dataset, fetching it if need be; callers at once share the fetch.

        :raises ManifestUnavailable: no scheduler gave it, or not a right one.
        """
        found = view.find_manifest(version)
        if found is not None:
            return found
        pending = view.loading.get(version)
        if pending is None:
            if version != view.assignment.version and len(view.loading) >= LOADING_MAX:
                raise ManifestUnavailable(
                    f"{LOADING_MAX} other versions of the dataset are being fetched just now"
                )
            if version != view.assignment.version and len(view.reading) > VERSIONS_READ_MAX:
                raise ManifestUnavailable(
                    f"more than {VERSIONS_READ_MAX} versions of the dataset are being read just now"
                )
            pending = view.loading[version] = AsyncResult()
            self._spawn(self._load, view, version, pending)
        manifest = pending.get()
        assert isinstance(manifest, Manifest)
        return manifest

    def path(self, view: DatasetView, version: int) -> str:
        """Return the file of a manifest that is here."""
        return view.manifests[version][1]

    def forget(self, view: DatasetView) -> None:
        """Forget a dataset's manifests; their files go with `sweep`."""
        self._old += [(view, path) for _, path in view.manifests.values()]
        view.manifests.clear()
        view.manifest = None

    def sweep(self) -> None:
        """Unlink the files of forgotten manifests, but those that a filler may be about to open."""
        kept = []
        for view, path in self._old:
            if view.job_count:
                kept.append((view, path))
            else:
                _unlink(path)
        self._old = kept

    def _load(self, view: DatasetView, version: int, pending: AsyncResult) -> None:
        try:
            pending.set(self._fetch_and_map(view, version))
        except (ManifestUnavailable, ManifestError, OSError) as error:
            pending.set_exception(
                error if isinstance(error, ManifestUnavailable) else ManifestUnavailable(str(error))
            )
        finally:
            del view.loading[version]

    def _fetch_and_map(self, view: DatasetView, version: int) -> Manifest:
        assignment = view.assignment
        # A name is not used again: the file of a dataset that left and came back may still wait for `sweep`.
        self._files += 1
        path = os.path.join(self._directory, f"{view.key[0]}.{view.key[1]}.{version}-{self._files}.manifest")
        with tempfile.TemporaryFile(dir=self._directory) as bundle:
            self._fetch(assignment.name, version, bundle)
            bundle.seek(0)
            with self._mapping:
                manifest: Manifest = get_hub().threadpool.apply(_map_bundle, (bundle, path))
        named = (manifest.dataset_id, manifest.generation, manifest.version)
        is_right = named == (*view.key, version) and manifest.block_bytes == assignment.block_bytes
        if not is_right or (version == assignment.version and manifest.digest != assignment.digest):
            _unlink(path)
            raise ManifestUnavailable(
                f"a scheduler gave dataset {named[0]} generation {named[1]} version {named[2]} ({manifest.digest}) "
                f"for dataset {view.key[0]} generation {view.key[1]} version {version} ({assignment.digest})"
            )
        if view.is_removed:
            _unlink(path)
            raise ManifestUnavailable(f"dataset {assignment.name} was removed")
        view.manifests[version] = (manifest, path)
        self._drop_old(view, version)
        return manifest

    def _drop_old(self, view: DatasetView, loaded: int) -> None:
        """Drop what was not used for longest: a reader may stay on whatever version it has."""
        used = {loaded, view.assignment.version, *view.reading}
        if view.manifest is not None:
            used.add(view.manifest.version)
        spare = [version for version in view.manifests if version not in used]
        for version in spare[: max(0, len(view.manifests) - VERSIONS_KEPT_MAX)]:
            self._old.append((view, view.manifests.pop(version)[1]))


def select_mine(view: DatasetView, manifest: Manifest) -> tuple[Int64s, bytes]:
    """Return (the wanted blocks that belong here in order, the bitmap of blocks with excluded files).

    Takes long for a large manifest: call it in the thread pool.
    """
    rules = view.assignment.wanted
    wanted = manifest.select(rules).blocks
    excluded = manifest.select([(True, prefix) for included, prefix in rules if not included]).blocks
    return my_wanted(view.ranks, wanted, manifest.block_count), excluded


def _map_bundle(bundle: IO[bytes], path: str) -> Manifest:
    """:raises ManifestError: not a bundle, or damaged."""
    root, get_part = open_bundle(bundle.read)
    write_mapped(root, get_part, path)
    return map_manifest(path)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return

"""Manifests on the scheduler: mapped from their blobs into a scratch directory, shared by all who ask.

Assembling and searching a manifest run in native threads: they can take long, and the hub must not. Mapped files are
made again from the blobs at any time, so nothing here is precious.
"""

from __future__ import annotations

import collections
import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence

from gevent.event import AsyncResult
from gevent.threadpool import ThreadPool

from stoker.executor.manifest import Manifest, ManifestError, bundle, map_manifest, part_digests, write_mapped
from stoker.framework.core.rules import Rules, merge_rules
from stoker.framework.errors import Refused
from stoker.framework.journaling import LeaderJournal, run_in
from stoker.framework.model import JobKind, Refusal, Selection
from stoker.zk.errors import Corrupt

MAPPED_MAX = 64  # manifests kept mapped, the least recently used goes first


class Manifests:
    """The mapped manifests of one leadership."""

    def __init__(self, directory: str, journal: LeaderJournal, workers: ThreadPool) -> None:
        self._directory = directory
        self._journal = journal
        self._workers = workers
        self._mapped: collections.OrderedDict[str, Manifest] = collections.OrderedDict()
        self._mapping: dict[str, AsyncResult] = {}
        shutil.rmtree(directory, ignore_errors=True)  # of a process before us; nobody else maps from here
        os.makedirs(directory)

    def path(self, digest: str) -> str:
        """Return where the mapped manifest lies, or will lie."""
        return os.path.join(self._directory, f"{digest}.manifest")

    def open(self, digest: str) -> Manifest:
        """Return the mapped manifest of the root `digest`.

        :raises Refused: its blobs are not there, or are not what they should be.
        """
        manifest = self._mapped.get(digest)
        if manifest is not None:
            self._mapped.move_to_end(digest)
            return manifest
        return self._map_once(digest)

    def select(
        self,
        digest: str,
        *,
        dataset_id: int,
        kind: str,
        paths: Sequence[str],
        rules: Rules,
        wanted_version: int,
    ) -> Selection:
        """Return what `paths` (none: everything) mean in the manifest `digest`, and the wanted residency after them."""
        manifest = self.open(digest)
        extended = merge_rules(rules, kind == JobKind.LOAD, paths)
        return run_in(self._workers, _select, manifest, dataset_id, tuple(paths), extended, wanted_version)

    def bundle(self, digest: str) -> Iterator[bytes]:
        """Yield the manifest as one stream: root and parts, read as they are sent.

        :raises Refused: the root is not there. A part that goes meanwhile cuts the stream, which its reader sees.
        """
        return bundle(self._blob(digest), self._blob)

    def part_digests(self, digest: str) -> list[str]:
        """Return the digests of all parts of the root `digest`; none if the root is gone."""
        root = self._journal.get_blob(digest)
        return [] if root is None else list(part_digests(root))

    def forget(self, digest: str) -> None:
        """Unmap and remove the mapped file; whoever still holds the Manifest goes on reading it."""
        self._mapped.pop(digest, None)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path(digest))

    def close(self) -> None:
        """Remove all mapped files; whoever still holds a Manifest goes on reading it."""
        shutil.rmtree(self._directory, ignore_errors=True)

    def _map_once(self, digest: str) -> Manifest:
        waiting = self._mapping.get(digest)
        if waiting is not None:
            shared: Manifest = waiting.get()
            return shared
        waiting = self._mapping[digest] = AsyncResult()
        try:
            manifest = run_in(
                self._workers, _assemble, digest, self._journal.get_blob_here, self.path(digest)
            )
        except (ManifestError, KeyError, OSError, Corrupt) as error:
            refused = _lost(f"the manifest {digest[:12]} cannot be read: {error}")
            waiting.set_exception(refused)
            raise refused from error
        except BaseException as error:
            waiting.set_exception(error)
            raise
        finally:
            del self._mapping[digest]
        self._mapped[digest] = manifest
        while len(self._mapped) > MAPPED_MAX:
            self.forget(next(iter(self._mapped)))
        waiting.set(manifest)
        return manifest

    def _blob(self, digest: str) -> bytes:
        try:
            data = self._journal.get_blob(digest)
        except Corrupt as error:
            raise _lost(str(error)) from error
        if data is None:
            raise _lost(f"the journal has no blob {digest[:12]}")
        return data


def _lost(reason: str) -> Refused:
    hint = "bring it back from a backup (`stoker journal restore`), or `stoker dataset rm` the dataset and add it again"
    return Refused(Refusal(500, "manifest_lost", reason, hint))


def _assemble(digest: str, get_blob: Callable[[str], bytes | None], path: str) -> Manifest:
    """In a native thread: make the mapped file if it is not there, and map it."""

    def get_part(part: str) -> bytes:
        data = get_blob(part)
        if data is None:
            raise KeyError(f"the journal has no blob {part[:12]}")
        return data

    if os.path.exists(path):
        with contextlib.suppress(ManifestError):
            return map_manifest(path)  # else it is made again
    write_mapped(get_part(digest), get_part, path)
    return map_manifest(path)


def _select(
    manifest: Manifest, dataset_id: int, paths: tuple[str, ...], rules: Rules, wanted_version: int
) -> Selection:
    """In a native thread: search the manifest."""
    requested_rules = tuple((True, path) for path in paths) or ((True, ""),)
    blocks, size, files = manifest.select(requested_rules)
    wanted_blocks = manifest.select(rules)[0]
    missing = tuple(p for p in paths if p and manifest.find(p) < 0 and not manifest.is_directory(p))
    return Selection(
        dataset_id=dataset_id,
        version=manifest.version,
        wanted_version=wanted_version,
        rules=rules,
        requested_blocks=blocks,
        requested_bytes=size,
        requested_files=files,
        wanted_blocks=wanted_blocks,
        missing=missing,
    )

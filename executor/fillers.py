"""The keeper's side of its fillers: which of them does what. The messages are in stoker.executor.filler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from stoker.executor.children import Child
from stoker.executor.core.extents import Extents, Range
from stoker.executor.holdings import Block
from stoker.executor.manifest import Manifest

FILLER_JOBS_MAX = 4  # of one filler at a time
WANTED_JOBS_MAX = 3  # of these for wanted residency: a reader's miss always finds a place soon

assert WANTED_JOBS_MAX < FILLER_JOBS_MAX


class Job:
    """A fill or a checksum that a filler does; `ranges` is what it may make valid."""

    __slots__ = ("block", "filler", "is_cancelled", "is_checksum", "manifest", "number", "owned", "ranges")

    def __init__(
        self,
        number: int,
        block: Block,
        filler: FillerLink,
        manifest: Manifest,
        ranges: Sequence[Range],
        *,
        is_checksum: bool = False,
    ) -> None:
        self.number = number
        self.block = block
        self.filler = filler
        self.manifest = manifest
        self.ranges = list(ranges)
        self.owned = Extents(ranges)
        self.is_checksum = is_checksum
        self.is_cancelled = False


class FillerLink:
    """One filler process: its jobs, and the dataset versions it was told of."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self.jobs: set[int] = set()
        self.told: dict[tuple[int, int, int], str] = {}

    def tell_dataset(self, message: dict[str, Any]) -> None:
        """Tell of a dataset version, unless it knows."""
        key = (message["id"], message["generation"], message["version"])
        if self.told.get(key) != message["manifest"]:
            self.told[key] = message["manifest"]
            self.child.outbox.put(message)


class Fillers:
    """The pool. `start_filler(on_message)` makes one child."""

    def __init__(self, start_filler: Callable[[], Child], count: int) -> None:
        self._links = [FillerLink(start_filler()) for _ in range(count)]

    @property
    def job_count(self) -> int:
        return sum(len(link.jobs) for link in self._links)

    def free(self, jobs_max: int) -> FillerLink | None:
        """Return the filler with the fewest jobs, if it has less than `jobs_max`."""
        link = min(self._links, key=lambda link: len(link.jobs))
        return link if len(link.jobs) < jobs_max else None

    def begin(self, job: Job, message: dict[str, Any], fd: int) -> None:
        job.filler.jobs.add(job.number)
        job.filler.child.outbox.put(message, [fd])

    def cancel(self, job: Job) -> None:
        """Ask for a job to end soon; its "done" still comes. Idempotent."""
        if not job.is_cancelled:
            job.is_cancelled = True
            job.filler.child.outbox.put({"t": "cancel", "job": job.number})

    def end(self) -> None:
        for link in self._links:
            link.child.end()

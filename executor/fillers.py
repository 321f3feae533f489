"""The keeper's side of its fillers: which of them does what. The messages are in stoker.executor.filler."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from gevent.event import Event

from stoker.executor.children import Child
from stoker.executor.core.extents import Extents, Range
from stoker.executor.core.filling import FILLER_JOBS_MAX
from stoker.executor.holdings import Block
from stoker.executor.manifest import Manifest

VERSIONS_MAX = 256  # dataset versions that a filler keeps open
WANTED_JOBS_MAX = 3  # of these for wanted residency: a reader's miss always finds a place soon
DISK_JOBS_MAX = 3  # of these for blocks of the SSD tier: a disk that hangs leaves a place for the others,
DISK_WANTED_JOBS_MAX = 2  # and of those for wanted residency

# For the C library: a buffer of a megabyte or more is given back to the system when it is freed. Else what is free lies
# scattered over the heaps of a dozen threads, and counts as used.
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(1024 * 1024), "MALLOC_ARENA_MAX": "2"}

assert DISK_WANTED_JOBS_MAX < DISK_JOBS_MAX < FILLER_JOBS_MAX and WANTED_JOBS_MAX < FILLER_JOBS_MAX


class Job:
    """A fill or a checksum that a filler does; `ranges` is what it may make valid."""

    __slots__ = (
        "block",
        "calm",
        "filler",
        "is_cancelled",
        "is_checksum",
        "is_stale",
        "manifest",
        "number",
        "owned",
        "ranges",
    )

    def __init__(
        self,
        number: int,
        block: Block,
        filler: FillerLink,
        manifest: Manifest,
        ranges: Sequence[Range],
        *,
        is_checksum: bool = False,
        urgent: bool = False,
    ) -> None:
        self.number = number
        self.block = block
        self.filler = filler
        self.manifest = manifest
        self.ranges = list(ranges)
        self.owned = Extents(ranges)
        self.calm = Extents(() if urgent else ranges)  # of these, what no reader waits for yet
        self.is_checksum = is_checksum
        self.is_cancelled = False
        self.is_stale = False  # a checksum of pages that a fill has begun to write to since

    def hurry(self, ranges: Sequence[Range]) -> None:
        """Ask the filler for what it still has to fetch of `ranges` first: a reader waits for them."""
        waited = [part for start, stop in ranges for part in self.calm.within(start, stop)]
        if waited:
            for start, stop in waited:
                self.calm.remove(start, stop)
            self.filler.child.outbox.put({"t": "hurry", "job": self.number, "ranges": waited})


class FillerLink:
    """One filler process: its jobs, and the dataset versions it was told of."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self.jobs: set[int] = set()
        self.disk_jobs: set[int] = set()  # of them, for blocks of the SSD tier
        self.told: OrderedDict[tuple[int, int, int], str] = OrderedDict()

    def begin(self, job: Job) -> None:
        self.jobs.add(job.number)
        if job.block.is_on_disk:
            self.disk_jobs.add(job.number)

    def end(self, job: Job) -> None:
        self.jobs.discard(job.number)
        self.disk_jobs.discard(job.number)

    def tell_dataset(self, message: dict[str, Any]) -> None:
        """Tell of a dataset version, unless it knows; of too many it forgets the one that was not needed for longest."""
        key = (message["id"], message["generation"], message["version"])
        if self.told.get(key) != message["manifest"]:
            self.told[key] = message["manifest"]
            self.child.outbox.put(message)
        self.told.move_to_end(key)
        if len(self.told) > VERSIONS_MAX:
            forgotten, _ = self.told.popitem(last=False)
            self.child.outbox.put({"t": "forget", "key": list(forgotten)})


class _Pending:
    """So many fillers are still to say something."""

    def __init__(self, count: int) -> None:
        self._count = count
        self.none_left = Event()

    def heard(self) -> None:
        self._count -= 1
        if self._count <= 0:
            self.none_left.set()


class Fillers:
    """The pool. `start_filler()` makes one child, whose fills hold at most `fill_job_bytes` each in buffers."""

    def __init__(self, start_filler: Callable[[], Child], count: int, *, fill_job_bytes: int) -> None:
        self._starting = _Pending(count)
        self._opening: dict[tuple[int, int, int], _Pending] = {}
        self._links = [FillerLink(start_filler()) for _ in range(count)]
        for link in self._links:
            link.child.outbox.put({"t": "limits", "fill_job_bytes": fill_job_bytes})

    def wait_ready(self, timeout_s: float) -> bool:
        """Wait until all have started; return whether they did in time."""
        return bool(self._starting.none_left.wait(timeout_s))

    def open_store(self, message: dict[str, Any], timeout_s: float) -> None:
        """Tell all fillers of a dataset version, and wait until each has opened its store, or could not, or time is up."""
        key = (message["id"], message["generation"], message["version"])
        opening = self._opening.setdefault(key, _Pending(len(self._links)))
        for link in self._links:
            link.tell_dataset(message)
        try:
            opening.none_left.wait(timeout_s)
        finally:
            self._opening.pop(key, None)

    def on_state(self, message: dict[str, Any]) -> bool:
        """Take a message about a filler itself; False: it is about a job."""
        if message["t"] == "ready":
            self._starting.heard()
        elif message["t"] == "opened":
            opening = self._opening.get(tuple(message["key"]))
            if opening is not None:
                opening.heard()
        else:
            return False
        return True

    @property
    def job_count(self) -> int:
        return sum(len(link.jobs) for link in self._links)

    def free(self, jobs_max: int, *, disk_jobs_max: int | None = None) -> FillerLink | None:
        """Return the filler with the fewest jobs that has less than `jobs_max`, and than `disk_jobs_max` on disk."""
        links = [
            link
            for link in self._links
            if len(link.jobs) < jobs_max and (disk_jobs_max is None or len(link.disk_jobs) < disk_jobs_max)
        ]
        return min(links, key=lambda link: len(link.jobs), default=None)

    def begin(self, job: Job, message: dict[str, Any], fd: int) -> None:
        job.filler.begin(job)
        job.filler.child.outbox.put(message, [fd])

    def end_job(self, job: Job) -> None:
        """The filler said "done" of it."""
        job.filler.end(job)

    def cancel(self, job: Job) -> None:
        """Ask for a job to end soon; its "done" still comes. Idempotent."""
        if not job.is_cancelled:
            job.is_cancelled = True
            job.filler.child.outbox.put({"t": "cancel", "job": job.number})

    def end(self) -> None:
        for link in self._links:
            link.child.end()

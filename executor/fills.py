"""Fills: what the fillers do next, and what comes of it.

Readers' misses come first and are never held up by wanted residency: fillers keep a place free for them, their requests go
before others, and what is fetched for residency is cut into jobs short enough to wait for, since nothing is fetched twice.
Wanted blocks are fetched by priority of their dataset, then in the order of `DatasetView.todo`, as room and fillers allow.
Nothing here waits: `pump` starts what can be started now and is called whenever something changed.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Any

from stoker.executor import index
from stoker.executor.block import GRANULE_BYTES, PAGE_BYTES, BlockName
from stoker.executor.core.admission import Verdict, admit
from stoker.executor.core.eviction import Demand
from stoker.executor.core.extents import Extents, Range, subtract, take_bytes
from stoker.executor.core.filling import (
    MISS_JOB_BYTES_MAX,
    WANTED_JOB_BYTES_MAX,
    FileFailed,
)
from stoker.executor.core.homes import Source, peers_message, sources
from stoker.executor.datasets import DatasetView, Manifests
from stoker.executor.disk import is_short_of_means
from stoker.executor.fillers import FILLER_JOBS_MAX, WANTED_JOBS_MAX, FillerLink, Fillers, Job
from stoker.executor.holdings import Block, Holdings
from stoker.executor.manifest import Manifest
from stoker.executor.messages import SlotAddress
from stoker.executor.store import file_bytes
from stoker.executor.wire import Failure

log = logging.getLogger(__name__)

RECONSIDER_INTERVAL_MS = 2_000


class Fills:
    """See the module. `now_ms` is this process' clock; `slots` the newest slot table.

    `on_settled` is called when nothing more is under way for a dataset of which something is wanted.
    """

    def __init__(
        self,
        *,
        cluster: bytes,
        holdings: Holdings,
        manifests: Manifests,
        fillers: Fillers,
        datasets: dict[tuple[int, int], DatasetView],
        now_ms: Callable[[], int],
        on_settled: Callable[[], None],
    ) -> None:
        self._cluster = cluster
        self._holdings = holdings
        self._manifests = manifests
        self._fillers = fillers
        self._datasets = datasets
        self._now_ms = now_ms
        self._on_settled = on_settled
        self.slots: tuple[SlotAddress, ...] = ()
        self._jobs: dict[int, Job] = {}
        self._next_job = 1
        self._ready: deque[Block] = deque()  # blocks with ranges that readers wait for
        self._checks: deque[Block] = deque()  # full blocks without all checksums
        self._unsealed: set[Block] = set()  # full blocks that could not be sealed just then
        self._unmarked: list[tuple[Block, list[Range]]] = []  # valid, which their files do not say yet
        self._reconsider_ms = 0
        self._is_pumping = False
        self._is_asked = False

    # --- what others ask for

    def open_store(self, view: DatasetView, version: int, timeout_s: float) -> None:
        """Have the fillers open the store of a dataset version whose manifest is here; wait for it, but not for long."""
        self._fillers.open_store(self._dataset_message(view, version), timeout_s)

    def request(self, block: Block, version: int, ranges: list[Range]) -> None:
        """Have `ranges` fetched soon, for a reader of `version`; what is on its way already is hurried."""
        for number in block.jobs:
            self._jobs[number].hurry(ranges)
        wanted = block.state.missing(ranges)
        if not wanted:
            return
        queued = block.queued.setdefault(version, Extents())
        for start, stop in wanted:
            queued.add(start, stop)
        self._make_ready(block)
        self.update_busy(block)

    def _make_ready(self, block: Block) -> None:
        if not block.is_ready:
            block.is_ready = True
            self._ready.append(block)

    def let_go(self, block: Block, why: str, *, is_damaged: bool = False) -> None:
        """Free a block: evicted, not wanted, removed or damaged."""
        for number in list(block.jobs):
            self._fillers.cancel(self._jobs[number])
        block.queued.clear()
        self._holdings.let_go(block, self._now_ms(), why, is_damaged=is_damaged)
        self._holdings.settle(block)

    def file_failed(self, block: Block, text: str) -> None:
        """The block's file does not do what it should: the block goes, and is fetched again where it is wanted."""
        if block.is_leaving:
            return
        self._holdings.note_error(block, text)
        self.let_go(block, f"its file failed: {text}", is_damaged=True)
        if block.name.block_index in block.view.mine_set and not block.view.is_removed:
            block.view.todo.append(block.name.block_index)

    def evict(self, victims: tuple[int, ...]) -> None:
        for holding in victims:
            stored = self._holdings.stored_by(holding)
            if stored is not None:
                self._holdings.drop_stored(stored, self._now_ms())
                continue
            block = self._holdings.get(holding)
            assert block is not None and not block.is_leaving, holding
            self.let_go(block, "it was evicted")

    def update_busy(self, block: Block) -> None:
        held = block.account.cache.held.get(block.holding)
        if held is not None:
            held.busy = bool(
                block.jobs or block.pins or block.queued or block.is_checking or block.is_sealing
            )

    def check_waiters(self, block: Block) -> None:
        """Tell the waiters whose ranges are valid, or will not be."""
        state = block.state
        for waiter in list(block.waiters):
            rest = subtract(waiter.need, state.valid)
            if rest and state.flying.intersects(rest):
                continue
            failure = state.failure_of(rest) if rest else None
            if rest and failure is None:
                self.request(block, waiter.version, rest)  # a job ended without it, or was cut into several
                continue
            waiter.failure = failure
            block.waiters.discard(waiter)
            waiter.done.set()

    def tick(self) -> None:
        """Try again what is due."""
        now_ms = self._now_ms()
        for view in list(self._datasets.values()):
            for block in list(self._holdings.of_dataset(view.key).values()):
                if block.is_full:
                    continue
                if block.name.block_index in view.mine_set and block.state.retry_due(now_ms):
                    block.state.retry()
                    view.todo.append(block.name.block_index)
        if now_ms >= self._reconsider_ms:
            self._reconsider_ms = now_ms + RECONSIDER_INTERVAL_MS
            if any(not held.wanted for cache in self._holdings.caches for held in cache.held.values()):
                self.reconsider()
            else:
                self.room_came()  # a disk that was full, or failed, may do again
        unmarked, self._unmarked = self._unmarked, []
        for block, ranges in unmarked:
            self._mark_filled(block, ranges)
        unsealed, self._unsealed = self._unsealed, set()
        for block in unsealed:
            self.finish(block)
        self.pump()

    def room_came(self) -> None:
        """A holding is gone: blocks that did not fit may fit now."""
        for view in self._datasets.values():
            room_bytes = self._holdings.cache_of(view).room_bytes
            if view.unfit and room_bytes >= file_bytes(view.assignment.block_bytes):
                _reconsider(view)
        self.pump()

    def reconsider(self) -> None:
        """Wishes changed, or blocks that were in use could be evicted now: look at what did not fit again. O(that)."""
        for view in self._datasets.values():
            if view.unfit:
                _reconsider(view)
        self.pump()

    # --- starting

    def pump(self) -> None:
        """Start what can be started now."""
        self._is_asked = True
        if self._is_pumping:
            return  # called from within: the loop below looks again
        self._is_pumping = True
        try:
            while self._is_asked:
                self._is_asked = False
                while (link := self._fillers.free(FILLER_JOBS_MAX)) and self._start_for_readers(link):
                    pass
                while (link := self._fillers.free(WANTED_JOBS_MAX)) and self._start_wanted(link):
                    pass
        finally:
            self._is_pumping = False

    def _start_for_readers(self, link: FillerLink) -> bool:
        while self._ready:
            block = self._ready.popleft()
            block.is_ready = False
            for version in list(block.queued):
                if version not in block.view.manifests:
                    self._refuse_queued(block, version)
                    continue
                ranges = block.state.missing(block.queued.pop(version))
                taken = take_bytes(ranges, MISS_JOB_BYTES_MAX, GRANULE_BYTES)
                if not taken:
                    continue
                rest = subtract(ranges, Extents(taken))
                if rest:
                    block.queued[version] = Extents(rest)
                if block.queued:
                    self._make_ready(block)
                if not self._start(link, block, version, taken, urgent=True):
                    self._put_back(block, version, taken)
                    return False
                return True
            self.update_busy(block)
            self.finish(block)  # it may only have waited for these
        while self._checks:
            block = self._checks.popleft()
            if block.state.version not in block.view.manifests:
                block.is_checking = False  # a newer version is about to be taken over, and looks again
            elif not block.is_leaving:
                if not self._start_checksum(link, block):
                    self._checks.append(block)
                    return False
                return True
        return False

    def _put_back(self, block: Block, version: int, ranges: list[Range]) -> None:
        """A job for readers could not begin just now: `tick` tries again."""
        queued = block.queued.setdefault(version, Extents())
        for start, stop in ranges:
            queued.add(start, stop)
        self._make_ready(block)

    def _refuse_queued(self, block: Block, version: int) -> None:
        """The dataset was removed, or this version of it was forgotten, since the ranges were asked for."""
        what = f"version {version} of the dataset is not known here any more"
        ranges = block.queued.pop(version)
        refused = [FileFailed(-1, "", Failure.OVERLOADED, what, start, stop) for start, stop in ranges]
        block.state.end([], refused, final=Failure.CHANGED, now_ms=self._now_ms())
        self.check_waiters(block)

    def _start_wanted(self, link: FillerLink) -> bool:
        views = [view for view in self._datasets.values() if view.todo and view.manifest is not None]
        views.sort(key=lambda view: (-view.assignment.priority, view.key))
        for view in views:
            manifest = view.manifest
            assert manifest is not None
            while view.todo:
                block_index = view.todo[0]
                verdict, block = self._held_for_wanted(view, manifest, block_index)
                if verdict is Verdict.WAIT:
                    return False  # room is being made
                if block is None:
                    continue
                ranges = block.state.missing(block.state.needed)
                taken = take_bytes(ranges, WANTED_JOB_BYTES_MAX, GRANULE_BYTES)
                if taken == ranges:
                    view.todo.popleft()
                if taken:
                    if not self._start(link, block, manifest.version, taken, urgent=False):
                        if taken == ranges:
                            view.todo.appendleft(block_index)
                        return False
                    return True
        return False

    def _held_for_wanted(
        self, view: DatasetView, manifest: Manifest, block_index: int
    ) -> tuple[Verdict, Block | None]:
        """Return ADMIT and the block to work on; else it has left `todo`, or (WAIT) stays at its head until there is room."""
        name = BlockName(*view.key, block_index)
        block = self._holdings.find(name)
        if block_index not in view.mine_set or (block is not None and block.is_full):
            view.todo.popleft()
            return Verdict.REFUSE, None
        if block is not None:
            return Verdict.ADMIT, block
        if self._holdings.is_stored(name):
            view.todo.popleft()  # it is about to be attached, and looked at then
            return Verdict.REFUSE, None
        demand = Demand(name, file_bytes(manifest.block_length(block_index)), wanted=True)
        admission = admit(self._holdings.cache_of(view), demand, self._now_ms())
        if admission.verdict is Verdict.ADMIT:
            block = self._holdings.create(view, manifest, name, wanted=True, now_ms=self._now_ms())
            if block is None:
                self._mark_unfit(view)
                return Verdict.REFUSE, None
        elif admission.verdict is Verdict.WAIT:
            self.evict(admission.victims)
        else:
            self._mark_unfit(view)
        return admission.verdict, block

    def _mark_unfit(self, view: DatasetView) -> None:
        """The tier is full: of what is wanted, only blocks that are here already can be worked on."""
        held = self._holdings.of_dataset(view.key)
        view.unfit.update(i for i in view.todo if i in view.mine_set and i not in held)
        view.todo = deque(i for i in view.todo if i in held)
        view.changes += 1

    def _start(
        self, link: FillerLink, block: Block, version: int, ranges: list[Range], *, urgent: bool
    ) -> bool:
        """Begin a job, or let go of a block whose file failed; False: its file cannot be opened just now."""
        view = block.view
        try:
            fd = block.file.open()
            if block.state.valid and not block.is_full:
                pages = [(start // PAGE_BYTES, -(-stop // PAGE_BYTES)) for start, stop in ranges]
                index.mark_known(fd, block.layout, pages, known=False)
        except OSError as error:
            if is_short_of_means(error):
                return False
            self.file_failed(block, str(error))
            return True
        self._holdings.unseal(block)
        job = self._new_job(link, block, version, ranges, urgent=urgent)
        for number in block.jobs - {job.number}:
            self._jobs[number].is_stale |= self._jobs[number].is_checksum
        block.state.begin(ranges)
        view.changes += 1
        self._tell_dataset(link, view, version)
        found = self._sources(view, block.name.block_index)
        self._fillers.begin(
            job,
            {
                "t": "fill",
                "job": job.number,
                "id": view.key[0],
                "generation": view.key[1],
                "version": version,
                "index": block.name.block_index,
                "ranges": ranges,
                "peers": peers_message(found),
                "cluster": self._cluster,
                "urgent": urgent,
            },
            fd,
        )
        return True

    def _sources(self, view: DatasetView, block_index: int) -> list[Source]:
        spare = int(view.spares[block_index % len(view.spares)])
        return sources(view.table, self.slots, position=view.position, block_index=block_index, spare=spare)

    def _start_checksum(self, link: FillerLink, block: Block) -> bool:
        """See _start."""
        version = block.state.version
        try:
            fd = block.file.open()
        except OSError as error:
            if is_short_of_means(error):
                return False
            self.file_failed(block, str(error))
            return True
        job = self._new_job(link, block, version, [], is_checksum=True)
        self._tell_dataset(link, block.view, version)
        message = {
            "t": "checksum",
            "job": job.number,
            "id": block.view.key[0],
            "generation": block.view.key[1],
        }
        self._fillers.begin(job, message | {"version": version, "index": block.name.block_index}, fd)
        return True

    def _new_job(
        self,
        link: FillerLink,
        block: Block,
        version: int,
        ranges: list[Range],
        *,
        is_checksum: bool = False,
        urgent: bool = False,
    ) -> Job:
        manifest = block.view.manifests[version][0]
        job = Job(self._next_job, block, link, manifest, ranges, is_checksum=is_checksum, urgent=urgent)
        block.view.job_count += 1
        self._next_job += 1
        self._jobs[job.number] = job
        block.jobs.add(job.number)
        self.update_busy(block)
        return job

    def _tell_dataset(self, link: FillerLink, view: DatasetView, version: int) -> None:
        link.tell_dataset(self._dataset_message(view, version))

    def _dataset_message(self, view: DatasetView, version: int) -> dict[str, Any]:
        return {
            "t": "dataset",
            "id": view.key[0],
            "generation": view.key[1],
            "version": version,
            "source": view.assignment.source,
            "options": view.assignment.options,
            "manifest": self._manifests.path(view, version),
        }

    # --- what the fillers say

    def on_message(self, message: dict[str, Any], fds: list[int]) -> None:
        assert not fds, "fillers send no descriptors"
        if self._fillers.on_state(message):
            return
        job = self._jobs[message["job"]]
        if message["t"] == "filled":
            self._filled(job, message)
        else:
            assert message["t"] == "done", message
            self._done(job, message)

    def _filled(self, job: Job, message: dict[str, Any]) -> None:
        block, view = job.block, job.block.view
        view.filled_bytes += message["filled_bytes"]
        view.copied_bytes += message["copied_bytes"]
        view.changes += 1
        fresh = [
            part for start, stop in message["extents"] for part in block.state.filled(start, stop, job.owned)
        ]
        if fresh and not block.is_scratch:  # nobody asks a scratch block's index what is valid
            self._mark_filled(block, fresh)
            self._count(job, fresh)
        if message["crc_pages"] and not job.is_stale:
            self._mark_known(block, [(first, stop) for first, stop in message["crc_pages"]])
        self.check_waiters(block)

    def _mark_filled(self, block: Block, ranges: list[Range]) -> None:
        if block.is_gone:
            return
        try:
            self._holdings.mark_filled(block, ranges)
        except OSError as error:
            if is_short_of_means(error):
                self._unmarked.append((block, ranges))  # readers ask the keeper until then
            else:
                self.file_failed(block, str(error))

    def _mark_known(self, block: Block, pages: list[Range]) -> None:
        try:
            index.mark_known(block.file.open(), block.layout, pages)
        except OSError as error:
            if not is_short_of_means(error):  # else they are computed again once the block is full
                self.file_failed(block, str(error))

    def _count(self, job: Job, fresh: list[Range]) -> None:
        """Count the bytes of files, of the assigned version, that became valid."""
        block, manifest = job.block, job.block.view.manifest
        if manifest is None or block.name.block_index >= manifest.block_count:
            return
        for start, stop in fresh:
            files = block.view.files(manifest, block.name.block_index, start, stop)
            block.cached_bytes += files.file_bytes(start, stop)

    def _done(self, job: Job, message: dict[str, Any]) -> None:
        block, view = job.block, job.block.view
        del self._jobs[job.number]
        job.filler.jobs.discard(job.number)
        block.jobs.discard(job.number)
        view.job_count -= 1
        view.changes += 1
        if message.get("error"):
            block.is_checking = False
            self.file_failed(block, message["error"])
            block.state.end(job.ranges, [], final=Failure.CHANGED, now_ms=self._now_ms())
            self._fail_scratch(block, message["error"])
        elif job.is_checksum:
            block.is_checking = False
        else:
            self._take_failures(job, message["failed"])
            self.check_waiters(block)
        self._fill_padding(block)
        self.finish(block)
        self.update_busy(block)
        if block.is_leaving:
            self._holdings.settle(block)
        elif not block.is_full and block.state.missing(block.state.needed):
            if block.name.block_index in view.mine_set:
                view.todo.append(block.name.block_index)
        self.pump()
        if view.mine_set and not view.todo and not view.job_count:
            self._on_settled()

    def _fail_scratch(self, block: Block, text: str) -> None:
        """Tell those who wait for a block that is kept nowhere: nobody else does."""
        for waiter in block.waiters:
            waiter.lost = f"its file failed: {text}"
            waiter.done.set()
        block.waiters.clear()
        block.queued.clear()

    def _fill_padding(self, block: Block) -> None:
        """All bytes of files are there: what is missing lies between them, and is the zeros that a new file is made of."""
        manifest = block.view.manifest
        if block.is_scratch or block.is_leaving or block.is_full or manifest is None or block.jobs:
            return
        number, state = block.name.block_index, block.state
        is_current = state.version == manifest.version and number < manifest.block_count
        if not is_current or block.cached_bytes < manifest.file_bytes_in_block(number):
            return
        padding = state.missing(state.needed)
        for start, stop in padding:
            state.valid.add(start, stop)
        if padding:
            self._mark_filled(block, padding)

    def _take_failures(self, job: Job, failed: list[Any]) -> None:
        state = job.block.state
        failures = [] if job.is_cancelled else self._named(job, failed)
        now_ms, version = self._now_ms(), job.manifest.version
        state.end(job.ranges, failures, final=Failure.CHANGED, now_ms=now_ms, version=version)
        if not job.is_cancelled:
            left = state.missing(job.ranges)
            if left:  # the filler said neither that it is there nor why not
                what = "the filler ended without it"
                silent = [FileFailed(-1, "", Failure.INTERNAL, what, start, stop) for start, stop in left]
                state.end([], silent, final=Failure.CHANGED, now_ms=now_ms)
        for failure in failures:
            job.block.view.note_failure(job.block.name.block_index, version, failure, now_ms)
            if failure.message:
                log.warning(
                    "dataset %s: %s: %s", job.block.view.assignment.name, failure.path, failure.message
                )

    def _named(self, job: Job, failed: list[Any]) -> list[FileFailed]:
        """Return the failed files with their places in the block."""
        manifest = job.manifest
        origin = job.block.name.block_index * manifest.block_bytes
        length = job.block.state.data_bytes
        failures = []
        for row, path, code, message in failed:
            offset, size = manifest.extent(row)
            start = min(max(offset - origin, 0), length)
            stop = min(max(offset + size - origin, 0), length)
            stop = min(-(-stop // GRANULE_BYTES) * GRANULE_BYTES, length)
            for low, high in job.owned.within(start, stop):
                failures.append(FileFailed(row, path, code, message, low, high))
        return failures

    def finish(self, block: Block) -> None:
        """Seal a block that has become full, or have its last checksums computed.

        Not while anything may still be written to it: readers of an earlier version may wait for files that it needs no more.
        """
        is_busy = block.jobs or block.queued or block.is_checking
        if block.is_full or block.is_leaving or is_busy or not block.state.is_full:
            return
        try:
            if not index.are_known(block.file.open(), block.layout, 0, block.layout.page_count):
                block.is_checking = True
                self._checks.append(block)
                return
            manifest = block.view.manifest
            if manifest is not None and block.name.block_index < manifest.block_count:
                block.cached_bytes = manifest.file_bytes_in_block(block.name.block_index)
            block.view.changes += 1
            if not self._holdings.seal(block, lambda reason: self._sealed(block, reason)):
                self._unsealed.add(block)
        except OSError as error:
            if is_short_of_means(error):
                self._unsealed.add(block)
            else:
                self.file_failed(block, str(error))
        self.update_busy(block)

    def _sealed(self, block: Block, reason: str) -> None:
        """The tier has news of a block that it was to seal."""
        if block.is_leaving:
            return
        if reason:
            block.is_sealing = False
            self.file_failed(block, reason)
        else:
            self.finish(block)
        self.pump()
        if block.view.mine_set and not block.view.todo and not block.view.job_count:
            self._on_settled()


def _reconsider(view: DatasetView) -> None:
    view.todo.extend(sorted(view.unfit))
    view.unfit.clear()

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
from functools import partial
from typing import Any

from stoker.executor import fill_orders as orders
from stoker.executor.block import GRANULE_BYTES, PAGE_BYTES, BlockName
from stoker.executor.core.admission import Verdict, admit
from stoker.executor.core.cache import Cache
from stoker.executor.core.eviction import Demand
from stoker.executor.core.extents import Extents, Range, subtract, take_bytes
from stoker.executor.core.filling import (
    FILLER_JOBS_MAX,
    MISS_JOB_BYTES_MAX,
    WANTED_JOB_BYTES_MAX,
    FileFailed,
)
from stoker.executor.datasets import DatasetView, Manifests
from stoker.executor.fillers import (
    DISK_JOBS_MAX,
    DISK_WANTED_JOBS_MAX,
    WANTED_JOBS_MAX,
    FillerLink,
    Fillers,
    Job,
)
from stoker.executor.holdings import Block, Holdings
from stoker.executor.manifest import Manifest
from stoker.executor.messages import SlotAddress
from stoker.executor.store import Tier, file_bytes
from stoker.executor.wire import Failure

log = logging.getLogger(__name__)

RECONSIDER_INTERVAL_MS = 2_000
PREPARING_MAX = 4  # files of the SSD tier that are made ahead of the jobs that fill them


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
        self.wanted_from_ms = 0  # nothing is fetched for residency before
        self._jobs: dict[int, Job] = {}
        self._next_job = 1
        # By whether they are on disk: one tier never stands in the other's way.
        self._ready: dict[bool, deque[Block]] = {
            False: deque(),
            True: deque(),
        }  # readers wait for ranges of these
        self._checks: dict[bool, deque[Block]] = {
            False: deque(),
            True: deque(),
        }  # full, without all checksums
        self._is_disks_turn = False
        self._preparing: set[Block] = set()  # wanted blocks whose files are being made, or opened
        self._unsealed: set[Block] = set()  # full blocks that could not be sealed just then
        self._reconsider_ms = 0
        self._is_pumping = False
        self._is_asked = False
        holdings.watch(lambda block, text: self.file_failed(block, text, is_counted=True))

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
            self._ready[block.is_on_disk].append(block)

    def let_go(self, block: Block, why: str, *, is_damaged: bool = False) -> None:
        """Free a block: evicted, not wanted, removed or damaged."""
        for number in list(block.jobs):
            self._fillers.cancel(self._jobs[number])
        block.queued.clear()
        self._holdings.let_go(block, self._now_ms(), why, is_damaged=is_damaged)
        self._holdings.settle(block)

    def file_failed(self, block: Block, text: str, *, is_counted: bool = False) -> None:
        """The block's file does not do what it should: the block goes, and is fetched again where it is wanted."""
        if block.is_leaving:
            return
        if not is_counted:
            self._holdings.note_error(block, text)
        if self._holdings.get(block.holding) is not block:
            stored = self._holdings.stored_by(block.holding)
            if stored is not None:  # its dataset is not named any more
                self._holdings.drop_stored(stored, self._now_ms(), is_damaged=True)
            return
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
        for tier in self._holdings.tiers:
            tier.tick()
            if tier.is_stuck:
                self._give_up_waiters(tier)
        unsealed, self._unsealed = self._unsealed, set()
        for block in unsealed:
            self.finish(block)
        self.pump()

    def _give_up_waiters(self, tier: Tier) -> None:
        """The tier's disk does not answer: whoever waits for something in it is better served elsewhere."""
        for block in self._holdings.kept():
            if block.waiters and block.account.tier is tier:
                self._lose_waiters(block, "the disk of the SSD tier does not answer")

    def room_came(self) -> None:
        """A holding is gone: blocks that did not fit may fit now."""
        for view in self._datasets.values():
            room_bytes = self._holdings.cache_of(view).room_bytes
            if view.unfit and room_bytes >= file_bytes(view.assignment.block_bytes):
                view.reconsider()
        self.pump()

    def reconsider(self) -> None:
        """Wishes changed, or blocks that were in use could be evicted now: look at what did not fit again. O(that)."""
        for view in self._datasets.values():
            if view.unfit:
                view.reconsider()
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
                while self._start_for_some_reader():
                    pass
                while self._start_wanted():
                    pass
        finally:
            self._is_pumping = False

    def _link(self, *, is_disk: bool, is_wanted: bool) -> FillerLink | None:
        """Return a filler with a place for such a job: a disk that hangs never takes all places, residency neither."""
        if is_disk:
            return self._fillers.free(
                FILLER_JOBS_MAX, disk_jobs_max=DISK_WANTED_JOBS_MAX if is_wanted else DISK_JOBS_MAX
            )
        return self._fillers.free(WANTED_JOBS_MAX if is_wanted else FILLER_JOBS_MAX)

    def _start_for_some_reader(self) -> bool:
        for is_disk in (self._is_disks_turn, not self._is_disks_turn):
            if self._start_for_readers(is_disk=is_disk):
                self._is_disks_turn = not is_disk
                return True
        return False

    def _start_for_readers(self, *, is_disk: bool) -> bool:
        """Start one job of those that readers wait for; False: there is none, or no place for it."""
        ready, checks = self._ready[is_disk], self._checks[is_disk]
        link = self._link(is_disk=is_disk, is_wanted=False)
        while link is not None and ready:
            block = ready.popleft()
            if not block.is_leaving and not block.file.is_ready(partial(self._ready_again, block)):
                continue
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
                if self._unmark(block, taken):
                    self._put_back(block, version, taken)
                    break
                if block.queued:
                    self._make_ready(block)
                self._start(link, block, version, taken, urgent=True)
                return True
            else:
                self.update_busy(block)
                self.finish(block)  # it may only have waited for these
        while link is not None and checks:
            block = checks.popleft()
            if block.state.version not in block.view.manifests:
                block.is_checking = False  # a newer version is about to be taken over, and looks again
            elif not block.is_leaving and block.file.is_ready(partial(self._check_again, block)):
                self._start_checksum(link, block)
                return True
        return False

    def _ready_again(self, block: Block) -> None:
        """The block's file is ready now, or will never be."""
        self._ready[block.is_on_disk].append(block)
        self.pump()

    def _check_again(self, block: Block) -> None:
        self._checks[block.is_on_disk].append(block)
        self.pump()

    def _want_again(self, block: Block) -> None:
        self._preparing.discard(block)
        if not block.is_leaving and block.name.block_index in block.view.mine_set:
            block.view.todo.appendleft(block.name.block_index)
        self.pump()

    def _unmark(self, block: Block, ranges: list[Range]) -> bool:
        """See that no page that is about to be written to counts as checked; return whether the file has yet to note that."""
        if block.is_full:
            return False
        pages = [(start // PAGE_BYTES, -(-stop // PAGE_BYTES)) for start, stop in ranges]
        if not block.state.known.intersects(pages):
            return False
        for first, stop in pages:
            block.state.known.remove(first, stop)
        self._mark_known(block, pages, known=False)
        return block.is_on_disk

    def _put_back(self, block: Block, version: int, ranges: list[Range]) -> None:
        """A job for readers cannot begin just now."""
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

    def _start_wanted(self) -> bool:
        if self._now_ms() < self.wanted_from_ms:
            return False
        views = [view for view in self._datasets.values() if view.todo and view.manifest is not None]
        views.sort(key=lambda view: (-view.assignment.priority, view.key))
        waiting: list[Cache] = []  # room is being made there
        self._preparing = {block for block in self._preparing if not block.is_leaving}
        for view in views:
            account = self._holdings.account_of(view)
            link = self._link(is_disk=account.is_disk, is_wanted=True)
            if link is not None and not any(account.cache is cache for cache in waiting):
                verdict = self._start_wanted_of(view, link)
                if verdict is Verdict.ADMIT:
                    return True
                if verdict is Verdict.WAIT:
                    waiting.append(account.cache)
        return False

    def _start_wanted_of(self, view: DatasetView, link: FillerLink) -> Verdict:
        """Start one job for residency: ADMIT; WAIT: room is being made for it; REFUSE: there is nothing to do just now."""
        manifest = view.manifest
        assert manifest is not None
        is_disk = self._holdings.account_of(view).is_disk  # a disk that hangs holds up no memory
        while view.todo and not (is_disk and len(self._preparing) >= PREPARING_MAX):
            block_index = view.todo[0]
            verdict, block = self._held_for_wanted(view, manifest, block_index)
            if verdict is Verdict.WAIT:
                return verdict
            if block is None:
                continue
            ranges = block.state.missing(block.state.needed)
            taken = take_bytes(ranges, WANTED_JOB_BYTES_MAX, GRANULE_BYTES)
            if taken:
                self._unmark(block, taken)
                if not block.file.is_ready(partial(self._want_again, block)):
                    self._preparing.add(block)
                    view.todo.popleft()
                    continue
            if taken == ranges:
                view.todo.popleft()
            if taken:
                self._start(link, block, manifest.version, taken, urgent=False)
                return Verdict.ADMIT
        return Verdict.REFUSE

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
    ) -> None:
        """Begin a job; the block's file is ready."""
        view = block.view
        self._holdings.unseal(block)
        job = self._new_job(link, block, version, ranges, urgent=urgent)
        for number in block.jobs - {job.number}:
            self._jobs[number].is_stale |= self._jobs[number].is_checksum
        block.state.begin(ranges)
        view.changes += 1
        link.tell_dataset(self._dataset_message(view, version))
        found = orders.sources_of(view, block.name.block_index, self.slots)
        message = orders.fill_message(job, version, found, cluster=self._cluster, urgent=urgent)
        self._fillers.begin(job, message, block.file.open())

    def _start_checksum(self, link: FillerLink, block: Block) -> None:
        """See _start."""
        version = block.state.version
        job = self._new_job(link, block, version, [], is_checksum=True)
        link.tell_dataset(self._dataset_message(block.view, version))
        self._fillers.begin(job, orders.checksum_message(job, version), block.file.open())

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

    def _dataset_message(self, view: DatasetView, version: int) -> dict[str, Any]:
        return orders.dataset_message(view, version, self._manifests.path(view, version))

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
            block.cached_bytes += view.file_bytes(block.name.block_index, fresh)
        if message["crc_pages"] and not job.is_stale:
            pages = [(first, stop) for first, stop in message["crc_pages"]]
            for first, stop in pages:
                block.state.known.add(first, stop)
            self._mark_known(block, pages, known=True)
        self.check_waiters(block)

    def _mark_filled(self, block: Block, ranges: list[Range]) -> None:
        if block.is_gone:
            return
        try:
            block.file.mark_valid(ranges)
        except OSError as error:
            self.file_failed(block, str(error))

    def _mark_known(self, block: Block, pages: list[Range], *, known: bool) -> None:
        try:
            block.file.mark_known(pages, known=known)
        except OSError as error:
            self.file_failed(block, str(error))

    def _done(self, job: Job, message: dict[str, Any]) -> None:
        block, view = job.block, job.block.view
        del self._jobs[job.number]
        self._fillers.end_job(job)
        block.jobs.discard(job.number)
        view.job_count -= 1
        view.changes += 1
        if message.get("error"):
            block.is_checking = False
            self.file_failed(block, message["error"])
            block.state.end(job.ranges, [], final=Failure.CHANGED, now_ms=self._now_ms())
            self._lose_waiters(block, f"its file failed: {message['error']}")
            block.queued.clear()
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

    def _lose_waiters(self, block: Block, text: str) -> None:
        for waiter in block.waiters:
            waiter.lost = text
            waiter.done.set()
        block.waiters.clear()

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
        failures = [] if job.is_cancelled else orders.named(job, failed)
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

    def finish(self, block: Block) -> None:
        """Seal a block that has become full, or have its last checksums computed.

        Not while anything may still be written to it: readers of an earlier version may wait for files that it needs no more.
        """
        is_busy = block.jobs or block.queued or block.is_checking
        if block.is_full or block.is_leaving or is_busy or not block.state.is_full:
            return
        try:
            if not block.state.known.covers(0, block.layout.page_count):
                block.is_checking = True
                self._checks[block.is_on_disk].append(block)
                return
            manifest = block.view.manifest
            if manifest is not None and block.name.block_index < manifest.block_count:
                block.cached_bytes = manifest.file_bytes_in_block(block.name.block_index)
            block.view.changes += 1
            if not self._holdings.seal(block, lambda reason: self._sealed(block, reason)):
                self._unsealed.add(block)
        except OSError as error:
            self.file_failed(block, str(error))
        self.update_busy(block)

    def _sealed(self, block: Block, reason: str) -> None:
        """The tier has news of a block that it was to seal."""
        if block.is_leaving:
            return
        if reason:
            block.is_sealing = False
            self.file_failed(block, reason, is_counted=True)
        else:
            self.finish(block)
        self.pump()
        if block.view.mine_set and not block.view.todo and not block.view.job_count:
            self._on_settled()

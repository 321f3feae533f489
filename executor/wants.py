"""Readers' misses, as the data server asks for them (stoker.executor.misses has the messages).

A want is a group of ranges. Each range ends up in a place or with a failure: a kept block of ours that is valid there, maybe
after a fill; or, where nothing may be kept (we are no home, or the tier is full of what stays), a scratch block that is read
through. What surely fails is told at once, before anything is waited for. A want is answered within WANT_DEADLINE_MS, come what
may, which is less than callers wait for us.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import gevent
from gevent.event import Event

from stoker.executor.block import BlockName
from stoker.executor.core.admission import Verdict, admit
from stoker.executor.core.eviction import Demand
from stoker.executor.core.extents import Extents, Range, subtract
from stoker.executor.core.filling import REFUSAL_KEPT_MS, FileFailed
from stoker.executor.datasets import BlockFiles, DatasetView, Manifests, Spawn
from stoker.executor.errors import ManifestUnavailable
from stoker.executor.fills import Fills
from stoker.executor.holdings import Block, Holdings, Waiter
from stoker.executor.manifest import Manifest
from stoker.executor.news import News
from stoker.executor.outbox import Outbox
from stoker.executor.store import file_bytes
from stoker.executor.wire import FAILURE_MESSAGE_BYTES_MAX, Failure

log = logging.getLogger(__name__)

WANT_DEADLINE_MS = 20_000
ROOM_WAIT_MS = 300  # for an evicted block's memory; then the miss is served without being kept
FILE_WAIT_MS = 2_000  # for a block's file to be made or opened; then too
ATTACH_WAIT_MS = 5_000  # for a block that the start found, and that is not attached yet
SCRATCH_TRAILER_BYTES = 8 * 1024  # what a scratch block takes beside its ranges: header, known bits and,
SCRATCH_CHECKSUM_BYTES = 4 * 1024  # a page of them for each run of ranges
_PAGE = 4096


class _Item(NamedTuple):
    number: int
    block_index: int
    files: BlockFiles
    need: list[Range]


class _Want:
    """One group: `places` and `failed` fill up until every item is in one of them."""

    def __init__(self, message: dict[str, Any], deadline_ms: int) -> None:
        self.want: int = message["want"]
        self.version: int = message["version"]
        self.asked: list[list[int]] = message["items"]
        self.local: bool = message["local"]
        self.deadline_ms = deadline_ms
        self.places: list[Block | None] = [None] * len(self.asked)
        self.failed: dict[int, tuple[int, str]] = {}
        self.open: list[_Item] = []  # neither placed nor failed yet
        self.waits: list[tuple[_Item, Block, Waiter]] = []
        self.scratch: list[Block] = []
        self.pinned: list[Block] = []  # not evicted before the answer
        self.view: DatasetView | None = None  # whose manifest stays here for it
        self.is_begun = False  # its greenlet has, and lets go of it in the end

    def fail(self, number: int, code: int, text: str) -> None:
        data = text.encode()[:FAILURE_MESSAGE_BYTES_MAX]
        self.failed[number] = (int(code), data.decode(errors="ignore"))


class Wants:
    """See the module."""

    def __init__(
        self,
        *,
        server: Outbox,
        holdings: Holdings,
        fills: Fills,
        manifests: Manifests,
        datasets: dict[tuple[int, int], DatasetView],
        spawn: Spawn,
        now_ms: Callable[[], int],
    ) -> None:
        self._server = server
        self._holdings = holdings
        self._fills = fills
        self._manifests = manifests
        self._datasets = datasets
        self._spawn = spawn
        self._now_ms = now_ms
        self._greenlets: dict[int, tuple[gevent.Greenlet, _Want]] = {}
        self._placing: set[int] = set()  # wants that do not know yet whether they need scratch
        self._placed = News()

    def take(self, message: dict[str, Any]) -> None:
        """Handle "want"; never waits."""
        want = _Want(message, self._now_ms() + WANT_DEADLINE_MS)
        view = self._datasets.get((message["dataset"], message["generation"]))
        if view is None:
            self._fail_all(want, Failure.OVERLOADED, "the dataset is not known here any more")
            return
        manifest = view.find_manifest(want.version)
        if manifest is not None:
            self._sort(want, view, manifest)
            if not want.open:
                self._answer(want)
                self._let_go(want)
                return
            self._tell_known(want)
        want.view = view
        view.begin_reading(want.version)
        greenlet = self._spawn(self._serve, want, view)
        self._greenlets[want.want] = greenlet, want
        greenlet.rawlink(lambda _: self._greenlets.pop(want.want, None))

    def cancel(self, number: int) -> None:
        """Handle "unwant"."""
        greenlet, want = self._greenlets.pop(number, (None, None))
        if greenlet is not None and want is not None:
            greenlet.kill(block=False)
            if not want.is_begun:
                self._let_go(want)

    def _serve(self, want: _Want, view: DatasetView) -> None:
        want.is_begun = True
        try:
            if want.version not in view.manifests:
                try:
                    with gevent.Timeout(
                        self._left_s(want), ManifestUnavailable("its manifest did not come in time")
                    ):
                        manifest = self._manifests.get(view, want.version)
                except ManifestUnavailable as error:
                    # An old version that no scheduler has stays away; the assigned one is yet to come.
                    is_final = error.is_gone and want.version != view.assignment.version
                    code = Failure.CHANGED if is_final else Failure.OVERLOADED
                    self._fail_all(
                        want, code, f"version {want.version} of the dataset cannot be read here: {error}"
                    )
                    return
                self._sort(want, view, manifest)
                self._tell_known(want)
            self._placing.add(want.want)
            try:
                self._place(want, view)
            finally:
                self._end_placing(want)
            self._fills.pump()
            self._wait(want)
            self._answer(want)
        finally:
            self._let_go(want)

    # --- what can be said at once

    def _sort(self, want: _Want, view: DatasetView, manifest: Manifest) -> None:
        """Place or fail each item that can be; the others are left open."""
        for number, (block_index, start, stop) in enumerate(want.asked):
            if block_index >= manifest.block_count or stop > manifest.block_length(block_index):
                text = f"block {block_index}, [{start}, {stop}): not in version {manifest.version} of the dataset"
                want.fail(number, Failure.OUT_OF_RANGE, text)
                continue
            files = view.files(manifest, block_index, start, stop)
            item = _Item(number, block_index, files, files.needed())
            block = self._holdings.find(BlockName(*view.key, block_index))
            if block is not None and _is_in(block, item):
                want.places[number] = block
                self._pin(want, block)
                block.account.cache.use(block.holding, 1, self._now_ms())
                continue
            if want.local:
                want.fail(number, Failure.MISSING, f"block {block_index}, [{start}, {stop}): not here")
                continue
            failure = self._known_failure(view, block, item)
            if failure is not None:
                want.fail(number, failure.code, _text(failure))
                continue
            want.open.append(item)

    def _known_failure(self, view: DatasetView, block: Block | None, item: _Item) -> FileFailed | None:
        now_ms = self._now_ms()
        if block is None or block.is_full:
            return view.known_failure(item.block_index, item.files, now_ms)
        state = block.state
        rest = subtract(item.need, state.valid, state.flying)
        failure = state.failure_of(rest)
        if failure is None or failure.code == Failure.CHANGED or now_ms - state.refused_ms < REFUSAL_KEPT_MS:
            return failure
        for start, stop in rest:  # tried a while ago: try again, for this reader
            state.refused.remove(start, stop)
        return None

    # --- places

    def _place(self, want: _Want, view: DatasetView) -> None:
        """Give each open item a block and a waiter there."""
        through: dict[int, list[_Item]] = {}
        deadline_ms = self._now_ms() + ROOM_WAIT_MS
        for item in want.open:
            block = self._kept_block(view, item, deadline_ms)
            if block is None:
                through.setdefault(item.block_index, []).append(item)
                continue
            rest = subtract(item.need, block.state.valid)
            self._await(want, item, block, rest)
            if rest:
                self._fills.request(block, want.version, item.files.miss_unit())
                self._fills.request(block, want.version, rest)
        want.open = []
        if through:
            self._read_through(want, view, through)

    def _kept_block(self, view: DatasetView, item: _Item, deadline_ms: int) -> Block | None:
        """Return a kept block where the item's bytes are or can be put; None: they cannot be kept."""
        name = BlockName(*view.key, item.block_index)
        attached_ms = self._now_ms() + ATTACH_WAIT_MS
        while True:
            block = self._holdings.find(name)
            if block is not None:
                # What is wrong before it was waited for may be right after that.
                is_good = _is_in(block, item) or self._can_be_filled(block) or _is_in(block, item)
                return block if is_good else None
            if self._holdings.is_coming(name) and not view.is_removed and self._now_ms() < attached_ms:
                self._holdings.stored_changed.wait((attached_ms - self._now_ms()) / 1000)
                continue  # it is about to be attached: nothing of it is to be read of the under store again
            if not view.is_home(item.block_index) or view.is_removed or self._holdings.is_stored(name):
                return None
            demand = Demand(name, file_bytes(item.files.length), wanted=False)
            admission = admit(self._holdings.cache_of(view), demand, self._now_ms())
            if admission.verdict is Verdict.REFUSE or self._now_ms() >= deadline_ms:
                return None
            if admission.verdict is Verdict.ADMIT:
                wanted = item.block_index in view.mine_set
                manifest = view.manifest or item.files.manifest
                if item.block_index >= manifest.block_count:
                    manifest = item.files.manifest
                block = self._holdings.create(view, manifest, name, wanted=wanted, now_ms=self._now_ms())
                return block if block is not None and self._can_be_filled(block) else None
            self._fills.evict(admission.victims)
            self._holdings.room_changed.wait((deadline_ms - self._now_ms()) / 1000)

    def _can_be_filled(self, block: Block) -> bool:
        """Return whether a block can be written to; a file of the SSD tier may have to be made or opened first."""
        if block.is_full or block.account.tier.is_stuck:
            return False
        is_ready = Event()
        if block.file.is_ready(is_ready.set):
            return True
        block.pins += 1
        self._fills.update_busy(block)
        try:
            is_ready.wait(FILE_WAIT_MS / 1000)
        finally:
            block.pins -= 1
            self._fills.update_busy(block)
            self._holdings.settle(block)
        return not block.is_leaving and not block.is_full and is_ready.is_set()

    def _await(self, want: _Want, item: _Item, block: Block, rest: list[Range]) -> None:
        waiter = Waiter(rest, want.version)
        want.waits.append((item, block, waiter))
        if rest:
            block.waiters.add(waiter)
        else:
            waiter.done.set()
        self._pin(want, block)

    def _pin(self, want: _Want, block: Block) -> None:
        block.pins += 1
        want.pinned.append(block)
        self._fills.update_busy(block)

    def _read_through(self, want: _Want, view: DatasetView, through: dict[int, list[_Item]]) -> None:
        ranges = {}
        charges = {}
        for block_index, items in through.items():
            wanted = Extents(part for item in items for part in item.files.exact())
            ranges[block_index] = list(wanted)
            pages = Extents((start // _PAGE * _PAGE, -(-stop // _PAGE) * _PAGE) for start, stop in wanted)
            charges[block_index] = pages.total + SCRATCH_TRAILER_BYTES + SCRATCH_CHECKSUM_BYTES * len(pages)
        charge = sum(charges.values())
        self._await_earlier(want)
        if charge > self._holdings.scratch_bytes or not self._holdings.acquire_scratch(
            charge, self._left_s(want)
        ):
            text = "the cache is full and too much is being read through it: try another executor, or later"
            for items in through.values():
                for item in items:
                    want.fail(item.number, Failure.OVERLOADED, text)
            return
        for block_index, items in through.items():
            manifest = items[0].files.manifest
            name = BlockName(*view.key, block_index)
            block = self._holdings.create_scratch(view, manifest, name, charge=charges[block_index])
            want.scratch.append(block)
            for item in items:
                self._await(want, item, block, [part for part in item.files.exact()])
            self._fills.request(block, want.version, ranges[block_index])

    def _await_earlier(self, want: _Want) -> None:
        """Wait until the wants before this one have their scratch, or need none.

        The parts of one answer are asked for in order, and sent in order: a later one that held the scratch that an earlier
        one needs would never be sent.
        """
        while min(self._placing) < want.want and self._left_s(want):
            self._placed.wait(self._left_s(want))

    def _end_placing(self, want: _Want) -> None:
        self._placing.discard(want.want)
        self._placed.tell()

    # --- waiting and answering

    def _wait(self, want: _Want) -> None:
        for item, block, waiter in want.waits:
            waiter.done.wait(max(0.0, self._left_s(want)))
            if waiter.failure is not None:
                want.fail(item.number, waiter.failure.code, _text(waiter.failure))
            elif waiter.lost or (block.is_leaving and not block.is_scratch):
                want.fail(item.number, Failure.OVERLOADED, waiter.lost or "the block left the cache")
            elif not waiter.done.is_set():
                text = f"not fetched within {WANT_DEADLINE_MS // 1000} s"
                want.fail(item.number, Failure.OVERLOADED, text)
            else:
                want.places[item.number] = block

    def _tell_known(self, want: _Want) -> None:
        if want.failed:
            self._server.put({"t": "known", "want": want.want, "failed": _rows(want)})

    def _answer(self, want: _Want) -> None:
        # What is pinned is not evicted, but it may have been freed or found damaged while others were waited for.
        for number, block in enumerate(want.places):
            if block is not None and block.is_leaving and not block.is_scratch:
                want.places[number] = None
                want.fail(number, Failure.OVERLOADED, "the block left the cache")
        used = [block for block in want.scratch if block in want.places]
        for block in used:
            block.server_has = True
        self._server.put(
            {
                "t": "have",
                "want": want.want,
                "places": [0 if block is None else block.holding for block in want.places],
                "scratch": [[block.holding, block.state.data_bytes] for block in used],
                "failed": _rows(want),
            },
            [block.file.open() for block in used],
        )

    def _fail_all(self, want: _Want, code: int, text: str) -> None:
        for number in range(len(want.asked)):
            want.fail(number, code, text)
        self._answer(want)

    def _let_go(self, want: _Want) -> None:
        for _, block, waiter in want.waits:
            block.waiters.discard(waiter)
            if not block.waiters and block.is_scratch:
                block.queued.clear()
        for block in (*want.pinned, *want.scratch):
            block.pins -= 1
            self._fills.update_busy(block)
            self._holdings.settle(block)
        if want.view is not None:
            want.view.end_reading(want.version)

    def _left_s(self, want: _Want) -> float:
        return max(0.0, (want.deadline_ms - self._now_ms()) / 1000)


def _is_in(block: Block, item: _Item) -> bool:
    """Return whether all that the item needs is in the block, and the data server has heard of that."""
    # A range that no file owns needs nothing: it would be in a block whose file is yet to be made, too.
    return block.server_has and not block.is_leaving and not subtract(item.need, block.state.valid)


def _rows(want: _Want) -> list[list[Any]]:
    return [[number, code, text] for number, (code, text) in sorted(want.failed.items())]


def _text(failure: FileFailed) -> str:
    is_named = failure.path in failure.message  # "" is in any
    return failure.message if is_named else f"{failure.path}: {failure.message}"

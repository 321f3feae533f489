"""One fill: ranges of one block, from peers or the under store, into the block's file, told to the keeper as it goes.

Theory of operation. A fill is cut into *parts*, each a part of one file in one of the ranges. A part *owns* the extent up to
the next part of its range (the padding between them is zeros, and as valid as the data), so the extents of all parts
are the ranges, and a failed part leaves out exactly its own. Parts are written where they belong, in whatever order they
arrive. Once all of a page that lies wholly in a range is there, its CRC-32C is computed from the file and written to the
block's index; then the keeper hears of it. The keeper sets the valid and known bits, never we.

The invariant: what a "filled" message names was written before it was sent, and belongs to the file version that the
manifest names; a page whose checksum it names was written wholly by this fill.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

from crc32c import crc32c

from stoker.executor.block import PAGE_BYTES, block_layout
from stoker.executor.core.extents import Extents
from stoker.executor.fill_progress import PROGRESS_MS, Progress, Send, check_block_file, write_at
from stoker.executor.manifest import Manifest
from stoker.executor.messages import HEARTBEAT_INTERVAL_MS
from stoker.executor.peer import Hung, Peer, PeerError, PeerRefused, PeerSilent, PeerUnaware
from stoker.executor.under_store import (
    PIECE_BYTES_MAX,
    READING_BYTES_MAX,
    Outcome,
    Piece,
    ReadFailure,
    Reading,
    UnderStore,
)
from stoker.executor.wire import RANGES_MAX

PEER_LEARNS_MS = (
    3 * HEARTBEAT_INTERVAL_MS
)  # how long a copy nobody waits for gives a peer to hear of the dataset
PEER_ASK_MS = 200
PARTS_MAX = 4_096  # held at once; a block can have a million files
COMPARE_BYTES_MIN = 1024 * 1024  # a copy from here up is compared with the checksums of the peer's full block
TURN_MS = 2
TURN_WAIT_MS_MAX = 20
WAITS_MS = 0.5  # a reading that takes longer a piece waits for something
FAILURES_NAMED_MAX = 256  # of one fill; of the others the keeper hears the row and the code

log = logging.getLogger(__name__)

assert PIECE_BYTES_MAX % PAGE_BYTES == 0


class PeerAddress(NamedTuple):
    host: str
    port: int
    launch_id: int
    incarnation: int
    local_only: bool  # take only what it holds; else it may fetch from the under store for us

    @property
    def identity(self) -> tuple[str, int, int, int]:
        return self[:4]


class FillOrder(NamedTuple):
    """What the keeper asked for; ranges are [start, stop) of the block, each start a multiple of 64."""

    job: Any
    block_index: int
    ranges: tuple[tuple[int, int], ...]
    peers: tuple[PeerAddress, ...]
    urgent: bool = False  # a reader waits for it


class Part(NamedTuple):
    """Bytes [data_start, data_stop) of the block belong to `row`; they own [start, stop)."""

    row: int
    start: int
    stop: int
    data_start: int
    data_stop: int


class Failures:
    """Rows that could not be filled, each once."""

    def __init__(self) -> None:
        self._entries: dict[int, list[Any]] = {}

    def add(self, row: int, path: str, failure: ReadFailure) -> None:
        if row in self._entries:
            return
        named = len(self._entries) < FAILURES_NAMED_MAX
        self._entries[row] = [row, path if named else "", int(failure.code), failure.message if named else ""]

    def as_list(self) -> list[list[Any]]:
        """Return [row, path, code, message] a row."""
        return list(self._entries.values())


class Turns:
    """Lets the fills of a process take turns while their files come at once, one thread at a time.

    Small local files are five short system calls each. Threads that all do that spend their time on handing the
    interpreter's lock around: two of them take 1.7 times as long as one after the other. A reading that waits (a disk, a network)
    takes no turns from then on.
    """

    def __init__(self) -> None:
        self._turn = threading.Lock()

    def share(self, reading: Reading, idle: Callable[[], None]) -> Iterator[tuple[int, Outcome]]:
        """Yield what `reading` yields; the consumer's work on it is part of the turn.

        `idle` is called whenever nothing came for PROGRESS_MS.
        """
        is_quick = reading.is_immediate
        while is_quick:
            has_turn = self._turn.acquire(
                timeout=TURN_WAIT_MS_MAX / 1000
            )  # in vain: whoever has it waits for a disk
            try:
                count = 0
                begun = time.monotonic()
                while (taken_ms := (time.monotonic() - begun) * 1000) < TURN_MS:
                    item = next(reading, None)
                    if item is None:
                        return
                    count += 1
                    yield item
            finally:
                if has_turn:
                    self._turn.release()
            is_quick = taken_ms <= count * WAITS_MS
            time.sleep(0)  # whoever waits for the turn gets it
        while True:
            while not reading.wait(PROGRESS_MS):
                idle()
            item = next(reading, None)
            if item is None:
                return
            yield item


class FillJob:
    """See the module. `run` once, in one thread; `cancel` from any."""

    def __init__(
        self,
        order: FillOrder,
        manifest: Manifest,
        *,
        store: Callable[[], UnderStore],
        connect: Callable[[PeerAddress], Peer],
        hung: Hung,
        turns: Turns,
        fd: int,
        send: Send,
        held_bytes_max: int = READING_BYTES_MAX,
    ) -> None:
        """`fd` is the block's file and stays the caller's; `store` is asked for only if the peers do not have all.

        `held_bytes_max` bounds what is in buffers at any time, the pieces asked for included.
        """
        assert held_bytes_max >= PIECE_BYTES_MAX, held_bytes_max
        self._held_bytes_max = held_bytes_max
        self.failures = Failures()
        self._order = order
        self._manifest = manifest
        self._store = store
        self._connect = connect
        self._hung = hung
        self._turns = turns
        self._fd = fd
        self._layout = block_layout(manifest.block_length(order.block_index))
        self._progress = Progress(order.job, fd, self._layout, order.ranges, send)
        self._cancel_lock = threading.Lock()
        self._cancel = threading.Event()
        self._end_step: Callable[[], None] | None = None
        self._hurried = Extents()
        self._reading: tuple[Reading, Sequence[Part]] | None = None

    def run(self) -> None:
        """Fill what can be filled; `failures` has the rest.

        :raises UnderStoreError: the store cannot be opened. :raises FileBroken: the block's file cannot be written.
        """
        check_block_file(self._fd, self._layout)
        missing = list(self._order.ranges)
        for address in self._order.peers:
            if missing and not self._cancel.is_set():
                missing = self._copy(address, missing)
        if missing and not self._cancel.is_set():
            self._read(missing)
        self._progress.flush()

    def cancel(self) -> None:
        """Make `run` return soon; what was told before stays good. Idempotent."""
        with self._cancel_lock:
            self._cancel.set()
            if self._end_step is not None:
                self._end_step()

    def hurry(self, ranges: Sequence[tuple[int, int]]) -> None:
        """A reader waits for `ranges` now: read them first, as far as that can be chosen still. From any thread."""
        with self._cancel_lock:
            for start, stop in ranges:
                self._hurried.add(start, stop)
            self._hurry_reading()

    def _hurry_reading(self) -> None:
        """Under the lock."""
        if self._reading is not None and self._hurried:
            reading, parts = self._reading
            waited = self._hurried
            reading.hurry([n for n, part in enumerate(parts) if waited.intersects([(part.start, part.stop)])])

    def fail_all(self, failure: ReadFailure) -> None:
        """Note `failure` for every row of the order."""
        for parts in self._batches(self._order.ranges):
            for part in parts:
                self.failures.add(part.row, self._manifest.path(part.row), failure)

    def _read(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Fill `ranges` from the under store."""
        store = self._store()
        origin = self._order.block_index * self._manifest.block_bytes
        for parts in self._batches(ranges):
            pieces = [_piece(self._manifest, part, origin) for part in parts]
            reading = store.read(pieces, urgent=self._order.urgent, held_bytes_max=self._held_bytes_max)
            self._begin_step(reading.cancel)
            with self._cancel_lock:
                self._reading = reading, parts
                self._hurry_reading()
            for number, outcome in self._turns.share(reading, idle=self._progress.flush):
                part = parts[number]
                if isinstance(outcome, ReadFailure):
                    self.failures.add(part.row, pieces[number].path, outcome)
                    continue
                write_at(self._fd, outcome, part.data_start)
                self._progress.add(part.start, part.stop, filled_bytes=part.data_stop - part.data_start)
                if self._hurried and self._hurried.intersects([(part.start, part.stop)]):
                    self._progress.flush()
            self._end_step = self._reading = None
            if self._cancel.is_set():
                return

    def _batches(self, ranges: Sequence[tuple[int, int]]) -> Iterator[list[Part]]:
        parts = self._parts(ranges)
        while batch := list(islice(parts, PARTS_MAX)):
            yield batch

    def _parts(self, ranges: Sequence[tuple[int, int]]) -> Iterator[Part]:
        for start, stop in ranges:
            following = None
            for part in cut_parts(self._manifest, self._order.block_index, start, stop):
                following = part
                yield part
            if following is None:
                self._progress.add(start, stop)  # nothing but padding

    def _copy(self, address: PeerAddress, ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Copy what the peer at `address` gives of `ranges`; return the rest."""
        if address.identity in self._hung:
            return list(ranges)
        steps = list(_copy_steps(ranges))
        buffer = memoryview(bytearray(max(_length(step) for step in steps)))
        missed: list[tuple[int, int]] = []
        done = 0
        try:
            with self._connect_patiently(address) as peer:
                try:
                    self._begin_step(peer.cut)
                    checksums = self._checksums(peer)
                    for step in steps:
                        failed = set(
                            peer.read(self._order.block_index, step, buffer, local_only=address.local_only)
                        )
                        missed += [step[number] for number in sorted(failed)]
                        taken = [extent for number, extent in enumerate(step) if number not in failed]
                        missed += self._take_copies(taken, buffer, checksums)
                        self._progress.flush()  # the next step may wait long
                        done += 1
                finally:
                    self._finish_step()  # before the peer is closed
        except PeerError as error:
            if isinstance(error, PeerSilent):
                self._hung.add(address.identity)
            log.info("block %d: not from a peer: %s", self._order.block_index, error)
        return _joined([*missed, *(extent for step in steps[done:] for extent in step)])

    def _connect_patiently(self, address: PeerAddress) -> Peer:
        """Connect; where no reader waits for this fill, give a peer that has not heard of the dataset time to hear.

        Else the replicas of a fresh dataset would all read the under store, because one heartbeat came before another.

        :raises PeerError: as `_connect`.
        """
        deadline = time.monotonic() + PEER_LEARNS_MS / 1000
        while True:
            try:
                return self._connect(address)
            except PeerUnaware:
                if self._order.urgent or address.local_only or time.monotonic() > deadline:
                    raise
            if self._cancel.wait(PEER_ASK_MS / 1000):
                raise PeerError("cancelled")

    def _take_copies(
        self, extents: Sequence[tuple[int, int]], buffer: memoryview, checksums: Sequence[int]
    ) -> list[tuple[int, int]]:
        """Write `extents`, which stand one after the other in `buffer`; return those that are damaged."""
        damaged = []
        position = 0
        for start, stop in extents:
            view = buffer[position : position + stop - start]
            position += stop - start
            if checksums and not _pages_match(view, start, checksums, self._layout.data_bytes):
                damaged.append((start, stop))
                continue
            write_at(self._fd, view, start)
            self._progress.add(start, stop, copied_bytes=stop - start)
        if damaged:
            log.warning("block %d: damaged copies of %s came from a peer", self._order.block_index, damaged)
        return damaged

    def _checksums(self, peer: Peer) -> list[int]:
        """Return the peer's checksums of all pages; none if it does not hold the whole block, or it is not worth asking.

        Without them, the peer's own check before it sends is all there is.
        """
        if _length(self._order.ranges) < COMPARE_BYTES_MIN:
            return []
        try:
            return peer.page_checksums(self._order.block_index, self._layout.page_count)
        except PeerRefused:
            return []

    def _begin_step(self, end: Callable[[], None]) -> None:
        with self._cancel_lock:
            self._end_step = end
            if self._cancel.is_set():
                end()

    def _finish_step(self) -> None:
        with self._cancel_lock:
            self._end_step = None


def cut_parts(manifest: Manifest, index: int, start: int, stop: int) -> Iterator[Part]:
    """Yield the parts of [start, stop) of block `index`, by offset, each at most PIECE_BYTES_MAX of data.

    Together they own the whole range; none at all: the range holds no byte of a file.
    """
    origin = index * manifest.block_bytes
    rows = manifest.rows_between(origin + start, origin + stop)
    begins = (manifest.offsets[rows] - origin).clip(start, stop)
    ends = (manifest.offsets[rows] + manifest.sizes[rows] - origin).clip(start, stop)
    held: Part | None = None
    for row, begin, end in zip(rows.tolist(), begins.tolist(), ends.tolist(), strict=True):
        while begin < end:
            cut = min(end, begin - begin % PIECE_BYTES_MAX + PIECE_BYTES_MAX)
            if held is not None:
                yield held._replace(stop=begin)
            held = Part(row, start if held is None else begin, stop, begin, cut)
            begin = cut
    if held is not None:
        yield held


def _piece(manifest: Manifest, part: Part, origin: int) -> Piece:
    row = part.row
    offset, size = manifest.extent(row)
    begin = origin + part.data_start - offset
    return Piece(
        manifest.path(row),
        begin,
        begin + part.data_stop - part.data_start,
        size,
        manifest.mtime_ns(row),
        manifest.token(row),
    )


def _copy_steps(ranges: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Yield what to ask for at once: extents of at most PIECE_BYTES_MAX together, at most RANGES_MAX."""
    step: list[tuple[int, int]] = []
    for start, stop in ranges:
        while start < stop:
            cut = min(stop, start - start % PIECE_BYTES_MAX + PIECE_BYTES_MAX)
            if step and (_length(step) + cut - start > PIECE_BYTES_MAX or len(step) == RANGES_MAX):
                yield step
                step = []
            step.append((start, cut))
            start = cut
    if step:
        yield step


def _length(extents: Sequence[tuple[int, int]]) -> int:
    return sum(stop - start for start, stop in extents)


def _pages_match(view: memoryview, start: int, checksums: Sequence[int], data_bytes: int) -> bool:
    """Whether the pages wholly in `view`, which begins at `start` of the block, have these checksums."""
    page = -(-start // PAGE_BYTES)
    while (page_stop := min((page + 1) * PAGE_BYTES, data_bytes)) <= start + len(view):
        page_start = page * PAGE_BYTES
        if page_start >= page_stop:
            break
        if crc32c(view[page_start - start : page_stop - start]) != checksums[page]:
            return False
        page += 1
    return True


def _joined(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return joined

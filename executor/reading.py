"""READ: finds the ranges of a request their places, waits for what is not here, and sends them.

What is not valid here is asked of the keeper in groups; while every byte has its place in a block, the answer waits for all
groups and names each failed range. Where the keeper can only read through (a scratch file, which must be sent before the next one is
given), the answer begins with the first of them, and a range that fails after that ends the connection: the keeper
remembers failures, so the caller's next try is told at once.
"""

from __future__ import annotations

from typing import NamedTuple

from gevent.lock import Semaphore

from stoker.executor.checks import find_bad_pages
from stoker.executor.disk_calls import DiskStuck
from stoker.executor.entries import COPY_BYTES_MAX, Entry
from stoker.executor.gatherer import Gatherer, encode_failures, unreadable
from stoker.executor.loans import DatasetShelf
from stoker.executor.misses import Group, GroupPlanner
from stoker.executor.server_state import ServerState
from stoker.executor.stream import Stream
from stoker.executor.wire import ANSWER, RANGE, REQUEST_BYTES_MAX, Failure, Op, ReadFlag, decode_ranges

CHECK_BYTES = 1024 * 1024  # checked against their checksums before others have their turn
# Groups of one request that the keeper is asked for at once: WANTS_MAX is for all callers.
GROUPS_AHEAD_MAX = 64

_READ = int(Op.READ)


class BadRequest(Exception):
    """The request breaks the protocol; the connection ends with its text."""


class Cut(Exception):
    """A range failed after its answer had begun."""


class _Segment(NamedTuple):
    """A part of a range: of a held block (`entry`, pinned), or what `group` is to bring as its item `item`."""

    range_number: int
    entry: Entry | None
    start: int
    length: int
    group: Group | None = None
    item: int = 0


class Reads:
    """Answers the READs of one connection, a reader of `version`; `turn` is held while an answer is written."""

    def __init__(
        self, stream: Stream, state: ServerState, turn: Semaphore, dataset: DatasetShelf, version: int
    ) -> None:
        self._stream = stream
        self._state = state
        self._shelf = state.shelf
        self._turn = turn
        self._dataset = dataset
        self._version = version

    def answer(self, request_id: int, flags: int, body: bytes, total: int) -> None:
        """Answer a request whose ranges are `body`.

        :raises BadRequest, Cut: see there. :raises OSError: the caller is gone, or a file gave less than was promised.
        """
        dataset = self._dataset
        if len(body) == RANGE.size and not flags:
            block_index, start, length = RANGE.unpack(body)
            entry = dataset.blocks.get(block_index)
            if entry is not None and 0 < length == total and entry.has(self._version, start, start + length):
                if length <= REQUEST_BYTES_MAX:
                    self._send_one(request_id, entry, start, length)
                    return
        ranges = decode_ranges(body)
        if not ranges:
            raise BadRequest("READ without a range")
        if total != sum(length for _, _, length in ranges) or total > REQUEST_BYTES_MAX:
            raise BadRequest(
                f"READ of {total} bytes whose ranges are {sum(r[2] for r in ranges)} bytes;"
                f" both must be equal and at most {REQUEST_BYTES_MAX}"
            )
        self._read_many(request_id, flags, ranges)

    def _send_one(self, request_id: int, entry: Entry, start: int, length: int) -> None:
        """The hot path: one range of a held block."""
        dataset = entry.dataset
        assert dataset is not None
        header = ANSWER.pack(_READ, 0, 0, request_id, length, self._state.placement_version, dataset.version)
        entry.uses += 1
        dataset.served_bytes += length
        entry.pins += 1
        self._turn.acquire()
        try:
            try:
                first = entry.first(start, length)
            except OSError as error:
                self._stream.send(self._unread(request_id, entry, error))
                return
            is_part = len(first) < length
            if len(first) <= COPY_BYTES_MAX:
                self._stream.send(header + first, more=is_part)
            else:
                self._stream.send_both(header, first, more=is_part)
            if is_part:
                entry.send_rest(self._stream, start + len(first), length - len(first))
        except OSError as error:
            self._shelf.note_error(entry, error)
            raise
        finally:
            self._turn.release()
            self._shelf.unpin(entry)

    def _unread(self, request_id: int, entry: Entry, error: OSError) -> bytes:
        """Return the answer to a READ of one range that its file does not give."""
        self._shelf.note_error(entry, error)
        names = encode_failures({0: unreadable(error)})
        return self._state.header(self._dataset, _READ, request_id, len(names), failed=1) + names

    def _read_many(self, request_id: int, flags: int, ranges: list[tuple[int, int, int]]) -> None:
        failures: dict[int, tuple[int, str]] = {}
        segments, groups = self._plan(ranges, failures, local_only=bool(flags & ReadFlag.LOCAL_ONLY))
        try:
            self._settle(groups, failures)
            if flags & ReadFlag.CHECK:
                self._check(segments, failures)
            self._send_many(request_id, segments, groups, failures, ranges)
        finally:
            for segment in segments:
                if segment.entry is not None:
                    self._shelf.unpin(segment.entry)
            for group in groups:
                self._state.misses.release(group)

    def _plan(
        self, ranges: list[tuple[int, int, int]], failures: dict[int, tuple[int, str]], *, local_only: bool
    ) -> tuple[list[_Segment], list[Group]]:
        """Find each range its place: a held block (pinned here), or a group to ask the keeper for."""
        dataset = self._dataset
        segments: list[_Segment] = []
        planner = GroupPlanner(dataset, self._version, local_only=local_only)
        for number, (block_index, start, length) in enumerate(ranges):
            stop = start + length
            if stop > dataset.block_bytes:
                failures[number] = (
                    Failure.OUT_OF_RANGE,
                    f"[{start}, {stop}) is not inside a block of {dataset.block_bytes} bytes",
                )
                continue
            if not length:
                continue
            entry = dataset.blocks.get(block_index)
            if entry is not None and entry.has(self._version, start, stop):
                entry.pins += 1
                entry.uses += 1
                segments.append(_Segment(number, entry, start, length))
                continue
            for group, item, begin, end in planner.add(number, block_index, start, stop):
                segments.append(_Segment(number, None, begin, end - begin, group, item))
        return segments, planner.groups

    def _settle(self, groups: list[Group], failures: dict[int, tuple[int, str]]) -> None:
        """Wait for the groups, as far as that can be done before the answer begins (see the module)."""
        for number, group in enumerate(groups):
            self._ask_ahead(groups, number)
            group.wait()
            if group.scratch:
                break
        for group in groups:
            for item, failure in group.failures.items():
                failures.setdefault(group.range_numbers[item], failure)

    def _ask_ahead(self, groups: list[Group], number: int) -> None:
        """See that the keeper was asked for group `number` and those that follow it soon."""
        for group in groups[number : number + GROUPS_AHEAD_MAX]:
            if not group.want:
                self._state.misses.ask(group)

    def _check(self, segments: list[_Segment], failures: dict[int, tuple[int, str]]) -> None:
        for segment in segments:
            entry = segment.entry
            if entry is None and segment.group is not None and segment.group.is_done:
                entry = segment.group.places[segment.item]
            if entry is None or segment.range_number in failures:
                continue
            try:
                bad = self._find_bad(entry, segment.start, segment.start + segment.length)
            except OSError as error:
                self._shelf.note_error(entry, error)
                failures[segment.range_number] = unreadable(error)
                continue
            if bad:
                failures[segment.range_number] = (
                    Failure.CORRUPT,
                    f"checksum of page {bad[0]} does not match",
                )
                self._state.misses.report_corrupt(entry.holding, bad)

    def _find_bad(self, entry: Entry, start: int, stop: int) -> list[int]:
        bad: list[int] = []
        while start < stop:
            end = min(stop, (start // CHECK_BYTES + 1) * CHECK_BYTES)
            bad += entry.examine(find_bad_pages, start, end)
            self._stream.note_work(end - start)
            start = end
        return bad

    def _send_many(
        self,
        request_id: int,
        segments: list[_Segment],
        groups: list[Group],
        failures: dict[int, tuple[int, str]],
        ranges: list[tuple[int, int, int]],
    ) -> None:
        while not self._try_to_send(request_id, segments, groups, failures, ranges):
            continue  # a range has failed more, and nothing is sent yet

    def _try_to_send(
        self,
        request_id: int,
        segments: list[_Segment],
        groups: list[Group],
        failures: dict[int, tuple[int, str]],
        ranges: list[tuple[int, int, int]],
    ) -> bool:
        names = encode_failures(failures) if failures else b""
        total = sum(length for _, _, length in ranges) - sum(ranges[number][2] for number in failures)
        header = (
            self._state.header(self._dataset, _READ, request_id, len(names) + total, failed=len(failures))
            + names
        )
        with self._turn:
            out = Gatherer(self._stream, header)
            last: Group | None = None
            number = -1  # of the group; segments and groups are in the same order
            for segment in segments:
                if segment.group is not None and segment.group is not last:
                    if last is not None and last.scratch:
                        out.flush()  # what it holds must be sent before the next scratch is given
                        self._state.misses.release(last)
                    last = segment.group
                    number += 1
                    self._ask_ahead(groups, number)
                if segment.range_number not in failures:
                    entry = segment.entry or self._place_of(segment, out)
                    try:
                        out.add(entry, segment.start, segment.length)
                    except OSError as error:
                        self._shelf.note_error(entry, error)
                        if out.has_sent:
                            raise
                        # A disk that is stuck is asked for nothing more for this answer.
                        for other in segments if isinstance(error, DiskStuck) else (segment,):
                            failures.setdefault(other.range_number, unreadable(error))
                        return False
            out.flush()
        self._dataset.served_bytes += total
        return True

    def _place_of(self, segment: _Segment, out: Gatherer) -> Entry:
        group = segment.group
        assert group is not None
        if not group.is_done:
            out.flush()
            group.wait()
        failure = group.failures.get(segment.item)
        if failure is not None:
            raise Cut(f"range {segment.range_number} failed after its answer had begun: {failure[1]}")
        entry = group.places[segment.item]
        assert entry is not None
        return entry

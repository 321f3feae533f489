"""One connection of the data port: the hello, then requests and their answers, as stoker.executor.wire says.

A request is either answered wholly or the connection ends: there is no way to send less than was promised. What is not
valid here is asked of the keeper in groups; while every byte has its place in a block, the answer waits for all groups and
names each failed range. Where the keeper can only read through (a scratch file, which must be sent before the next one is
given), the answer begins with the first of them, and a range that fails after that ends the connection: the keeper
remembers failures, so the caller's next try is told at once.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

import gevent
import msgpack
from gevent.lock import Semaphore

from stoker.executor import index
from stoker.executor.block import PAGE_BYTES
from stoker.executor.checks import find_bad_pages
from stoker.executor.gatherer import COPY_BYTES_MAX, Gatherer, encode_failures, unreadable
from stoker.executor.loans import DatasetShelf, Entry, Shelf, read_exactly
from stoker.executor.misses import Group, GroupPlanner, Misses
from stoker.executor.stream import STALL_TIMEOUT_MS, Stream
from stoker.executor.wire import (
    ANSWER,
    DESCRIPTORS_MAX,
    FAILURE_MESSAGE_BYTES_MAX,
    HELLO_BYTES,
    HELLO_TIMEOUT_MS,
    PROTOCOL_MAX,
    PROTOCOL_MIN,
    RANGE,
    RANGES_MAX,
    REQUEST,
    REQUEST_BYTES_MAX,
    DescriptorStatus,
    Failure,
    Hello,
    HelloAnswer,
    HelloStatus,
    Op,
    ReadFlag,
    Status,
    WireError,
    decode_hello,
    decode_ranges,
    encode_hello_answer,
)

log = logging.getLogger(__name__)

CHECK_BYTES = 1024 * 1024  # checked against their checksums before others have their turn
# Groups of one request that the keeper is asked for at once: WANTS_MAX is for all callers.
GROUPS_AHEAD_MAX = 64

LET_GO_TIMEOUT_MS = 30_000  # of a removed dataset; a caller that is stopped for longer is not waited for

_READ, _RETURNED = int(Op.READ), int(Op.RETURNED)


class Identity(NamedTuple):
    """Who answers here."""

    cluster: bytes
    launch_id: int
    incarnation: int


class Limits(NamedTuple):
    """What a data server grants its callers; the times are others only in tests."""

    connections_max: int = 4096
    hello_timeout_ms: int = HELLO_TIMEOUT_MS
    stall_timeout_ms: int = STALL_TIMEOUT_MS
    let_go_timeout_ms: int = LET_GO_TIMEOUT_MS


class ServerState:
    """What all connections share. `slots` is the msgpack of the newest slot table."""

    def __init__(self, identity: Identity, limits: Limits, shelf: Shelf, misses: Misses) -> None:
        self.identity = identity
        self.limits = limits
        self.shelf = shelf
        self.misses = misses
        self.placement_version = 0
        self.slots = b"\x90"


class _Refused(Exception):
    """The hello is not good here."""

    def __init__(self, status: HelloStatus, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class _BadRequest(Exception):
    """The request breaks the protocol; the connection ends with its text."""


class _Cut(Exception):
    """A range failed after its answer had begun."""


class _Segment(NamedTuple):
    """A part of a range: of a held block (`entry`, pinned), or what `group` is to bring as its item `item`."""

    range_number: int
    entry: Entry | None
    start: int
    length: int
    group: Group | None = None
    item: int = 0


class Connection:
    """Serves one caller until it, or we, have had enough."""

    def __init__(self, stream: Stream, state: ServerState) -> None:
        self._stream = stream
        self._state = state
        self._shelf = state.shelf
        self._dataset: DatasetShelf | None = None
        self._version = 0
        self._loans: dict[int, Entry] = {}
        self._asked_back: list[int] = []
        self._asker: gevent.Greenlet | None = None
        self._is_leaving = False
        self._deadline: gevent.Greenlet | None = None
        self._let_go_timeout_s = state.limits.let_go_timeout_ms / 1000
        self._turn = Semaphore(1)  # held while an answer is written: answers do not mix

    def serve(self) -> None:
        """Run the connection to its end; never raises for what the peer does."""
        try:
            if self._greet():
                self._serve_requests()
        except _BadRequest as error:
            log.info("connection cut: %s", error)
            self._refuse(0, 0, Status.BAD_REQUEST, str(error))
            self._stream.finish()
        except _Cut as error:
            log.info("connection cut: %s", error)
        except OSError as error:
            log.debug("connection ended: %s", error)
        finally:
            self._end()

    def ask_back(self, block_index: int) -> None:
        if self._is_leaving:
            return  # the end of the stream, which says more, is on its way
        self._asked_back.append(block_index)
        if self._asker is None:
            self._asker = gevent.spawn(self._send_asked_back)

    def leave(self) -> None:
        # A caller with descriptors lets go of them when it sees the end of our side, and then ends its own.
        self._is_leaving = True
        if self._loans:
            self._stream.end_sending()
            self._deadline = gevent.spawn_later(self._let_go_timeout_s, self._reads_no_more)
        else:
            self._stream.cut()

    def _reads_no_more(self) -> None:
        """Wait for the caller no longer. What it was lent counts until it gives it back, or is gone itself."""
        if self._dataset is not None:
            self._dataset.left(self)

    # --- hello

    def _greet(self) -> bool:
        try:
            hello = self._read_hello()
            self._dataset = self._admit(hello)
        except _Refused as refusal:
            answer = self._hello_answer(refusal.status, str(refusal))
            self._stream.send(encode_hello_answer(answer))
            self._stream.finish()
            return False
        self._version = hello.dataset_version
        self._dataset.borrowers.add(self)
        self._stream.send(encode_hello_answer(self._hello_answer(HelloStatus.OK, "")))
        return True

    def _read_hello(self) -> Hello:
        data = self._stream.read(HELLO_BYTES, timeout_ms=self._state.limits.hello_timeout_ms)
        if len(data) < HELLO_BYTES:
            if data:
                raise _Refused(
                    HelloStatus.BAD_HELLO, f"the hello ended after {len(data)} of {HELLO_BYTES} bytes"
                )
            raise OSError("the caller left without a hello")
        try:
            hello, grant_bytes = decode_hello(data)
        except WireError as error:
            raise _Refused(HelloStatus.BAD_HELLO, str(error)) from error
        grant = self._stream.read(grant_bytes, timeout_ms=self._state.limits.hello_timeout_ms)
        if len(grant) < grant_bytes:
            raise _Refused(HelloStatus.BAD_HELLO, "the grant was cut short")
        return hello._replace(grant=grant)

    def _admit(self, hello: Hello) -> DatasetShelf:
        mine = self._state.identity
        if hello.version_min > PROTOCOL_MAX or hello.version_max < PROTOCOL_MIN:
            raise _Refused(
                HelloStatus.VERSION, f"this executor speaks protocol {PROTOCOL_MIN} to {PROTOCOL_MAX}"
            )
        if hello.cluster != mine.cluster:
            raise _Refused(HelloStatus.CLUSTER, "another cluster's executor answers here")
        if hello.launch_id not in (0, mine.launch_id) or hello.incarnation not in (0, mine.incarnation):
            raise _Refused(
                HelloStatus.LAUNCH, f"launch {mine.launch_id}, incarnation {mine.incarnation} answers here"
            )
        dataset = self._shelf.find_dataset((hello.dataset_id, hello.generation), hello.caller)
        if dataset is None:
            raise _Refused(
                HelloStatus.DATASET,
                f"dataset {hello.dataset_id}, generation {hello.generation}, is not known here (yet)",
            )
        return dataset

    def _hello_answer(self, status: HelloStatus, detail: str) -> HelloAnswer:
        mine = self._state.identity
        return HelloAnswer(
            status,
            PROTOCOL_MAX,
            mine.cluster,
            mine.launch_id,
            mine.incarnation,
            self._state.placement_version,
            0 if self._dataset is None else self._dataset.version,
            detail,
        )

    # --- requests

    def _serve_requests(self) -> None:
        stream, unpack = self._stream, REQUEST.unpack
        while True:
            data = stream.read(REQUEST.size, timeout_ms=None)
            if len(data) < REQUEST.size:
                return
            op, flags, count, request_id, total = unpack(data)
            if count > RANGES_MAX:
                raise _BadRequest(f"{count} ranges in one request; at most {RANGES_MAX} are allowed")
            body = stream.read(count * RANGE.size) if count else b""
            if len(body) < count * RANGE.size:
                return
            if op == _READ:
                self._read(request_id, flags, body, total)
            elif op == _RETURNED:
                self._take_back(decode_ranges(body))
                if not count and self._is_leaving:
                    self._reads_no_more()
            else:
                self._answer_other(op, request_id, body)

    def _answer_other(self, op: int, request_id: int, body: bytes) -> None:
        ranges = decode_ranges(body)
        if op == Op.DESCRIPTORS:
            self._descriptors(request_id, ranges)
        elif op == Op.CRCS:
            self._crcs(request_id, ranges)
        elif op == Op.REFRESH and not ranges:
            self._answer(op, request_id, self._refreshed())
        elif op == Op.PING and not ranges:
            self._answer(op, request_id, b"")
        else:
            raise _BadRequest(f"there is no request {op} with {len(ranges)} ranges")

    def _answer(self, op: int, request_id: int, payload: bytes, status: Status = Status.OK) -> None:
        with self._turn:
            self._stream.send(self._header(op, request_id, len(payload), status=status) + payload)

    def _refuse(self, op: int, request_id: int, status: Status, message: str) -> None:
        try:
            self._answer(op, request_id, message.encode()[:FAILURE_MESSAGE_BYTES_MAX], status)
        except OSError:
            return

    def _header(
        self, op: int, request_id: int, payload_bytes: int, *, failed: int = 0, status: Status = Status.OK
    ) -> bytes:
        dataset = self._dataset
        return ANSWER.pack(
            op,
            status,
            failed,
            request_id,
            payload_bytes,
            self._state.placement_version,
            0 if dataset is None else dataset.version,
        )

    def _refreshed(self) -> bytes:
        assert self._dataset is not None
        placement = self._dataset.placement | {"placement_version": self._state.placement_version}
        packed = msgpack.packb({"placement": placement}, use_bin_type=True)
        # A map of two: the slots are packed once for all.
        return b"\x82" + bytes(packed[1:]) + bytes(msgpack.packb("slots")) + self._state.slots

    # --- READ

    def _read(self, request_id: int, flags: int, body: bytes, total: int) -> None:
        dataset = self._dataset
        assert dataset is not None
        if len(body) == RANGE.size and not flags:
            block_index, start, length = RANGE.unpack(body)
            entry = dataset.blocks.get(block_index)
            if entry is not None and 0 < length == total and entry.has(self._version, start, start + length):
                if length <= REQUEST_BYTES_MAX:
                    self._send_one(request_id, entry, start, length)
                    return
        ranges = decode_ranges(body)
        if not ranges:
            raise _BadRequest("READ without a range")
        if total != sum(length for _, _, length in ranges) or total > REQUEST_BYTES_MAX:
            raise _BadRequest(
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
            if length <= COPY_BYTES_MAX:
                try:
                    header += read_exactly(entry.fd, length, start)
                except OSError as error:
                    header = self._unread(request_id, entry, error)
                self._stream.send(header)
            else:
                self._stream.send(header, more=True)
                self._stream.send_file(entry.fd, start, length)
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
        return self._header(_READ, request_id, len(names), failed=1) + names

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
        assert dataset is not None
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
            bad += find_bad_pages(entry.fd, entry.layout, start, end)
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
        header = self._header(_READ, request_id, len(names) + total, failed=len(failures)) + names
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
                        out.add(entry.fd, segment.start, segment.length)
                    except OSError as error:
                        self._shelf.note_error(entry, error)
                        if out.has_sent:
                            raise
                        failures[segment.range_number] = unreadable(error)
                        return False
            out.flush()
        assert self._dataset is not None
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
            raise _Cut(f"range {segment.range_number} failed after its answer had begun: {failure[1]}")
        entry = group.places[segment.item]
        assert entry is not None
        return entry

    # --- descriptors

    def _descriptors(self, request_id: int, ranges: list[tuple[int, int, int]]) -> None:
        dataset = self._dataset
        assert dataset is not None
        if not self._stream.is_unix:
            raise _BadRequest("DESCRIPTORS needs the Unix socket")
        if not 1 <= len(ranges) <= DESCRIPTORS_MAX:
            raise _BadRequest(f"DESCRIPTORS of {len(ranges)} blocks; 1 to {DESCRIPTORS_MAX} are allowed")
        # The turn comes first: a loan that is asked back at once must not be asked back before it is made.
        with self._turn:
            statuses = bytearray()
            passed: list[Entry] = []  # pinned, or other readers' files would take their numbers while we wait
            try:
                for block_index, _, _ in ranges:
                    entry = dataset.blocks.get(block_index)
                    if entry is None:
                        statuses.append(DescriptorStatus.NOT_HERE)
                    elif not self._may_lend(entry) or not entry.open():
                        statuses.append(DescriptorStatus.NOT_FULL)
                    else:
                        statuses.append(DescriptorStatus.PASSED)
                        entry.pins += 1
                        passed.append(entry)
                        entry.loans.add(self)
                        entry.uses += 1
                        self._loans[block_index] = entry
                data = self._header(Op.DESCRIPTORS, request_id, len(statuses)) + bytes(statuses)
                self._stream.send_with_descriptors(data, [entry.fd for entry in passed])
            finally:
                for entry in passed:
                    self._shelf.unpin(entry)

    def _may_lend(self, entry: Entry) -> bool:
        if not entry.sealed or not entry.full_from or self._version < entry.full_from:
            return False
        # While an older holding of this block is asked back, RETURNED could not say which of the two it means.
        return self._loans.get(entry.block_index, entry) is entry

    def _take_back(self, ranges: list[tuple[int, int, int]]) -> None:
        for block_index, _, _ in ranges:
            entry = self._loans.pop(block_index, None)
            if entry is not None:
                self._shelf.give_back(entry, self)

    def _send_asked_back(self) -> None:
        try:
            while self._asked_back:
                asked, self._asked_back = self._asked_back, []
                self._answer(Op.DROP, 0, b"".join(n.to_bytes(4, "little") for n in asked))
        except OSError:
            if not self._is_leaving:
                self._stream.cut()
        finally:
            self._asker = None

    # --- the rest

    def _crcs(self, request_id: int, ranges: list[tuple[int, int, int]]) -> None:
        dataset = self._dataset
        assert dataset is not None
        if len(ranges) != 1:
            raise _BadRequest(f"CRCS of {len(ranges)} blocks; one at a time")
        entry = dataset.blocks.get(ranges[0][0])
        if entry is None or not entry.sealed or self._version < entry.full_from or not entry.open():
            self._refuse(Op.CRCS, request_id, Status.UNAVAILABLE, f"block {ranges[0][0]} is not full here")
            return
        try:
            crcs = index.read_crcs(entry.fd, entry.layout, 0, -(-entry.data_bytes // PAGE_BYTES))
        except OSError as error:
            self._shelf.note_error(entry, error)
            self._refuse(Op.CRCS, request_id, Status.UNAVAILABLE, unreadable(error)[1])
            return
        self._answer(Op.CRCS, request_id, b"".join(crc.to_bytes(4, "little") for crc in crcs))

    def _end(self) -> None:
        if self._is_leaving and self._loans:
            self._stream.finish(self._let_go_timeout_s)
        self._stream.cut()
        if self._deadline is not None:
            self._deadline.kill()
        if self._asker is not None:
            self._asker.join()
        for entry in self._loans.values():
            self._shelf.give_back(entry, self)
        self._loans.clear()
        self._stream.close()
        if self._dataset is not None:
            self._dataset.left(self)

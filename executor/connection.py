"""One connection of the data port: the hello, then requests and their answers, as stoker.executor.wire says.

A request is either answered wholly or the connection ends: there is no way to send less than was promised. READ is in
stoker.executor.reading.
"""

from __future__ import annotations

import logging

import gevent
import msgpack
from gevent.lock import Semaphore

from stoker.executor import index
from stoker.executor.block import PAGE_BYTES
from stoker.executor.entries import Entry
from stoker.executor.gatherer import unreadable
from stoker.executor.loans import DatasetShelf
from stoker.executor.reading import BadRequest, Cut, Reads
from stoker.executor.server_state import ServerState
from stoker.executor.stream import Stream
from stoker.executor.wire import (
    DESCRIPTORS_MAX,
    FAILURE_MESSAGE_BYTES_MAX,
    HELLO_BYTES,
    PROTOCOL_MAX,
    PROTOCOL_MIN,
    RANGE,
    RANGES_MAX,
    REQUEST,
    DescriptorStatus,
    Hello,
    HelloAnswer,
    HelloStatus,
    Op,
    Status,
    WireError,
    decode_hello,
    decode_ranges,
    encode_hello_answer,
)

log = logging.getLogger(__name__)

_READ, _RETURNED = int(Op.READ), int(Op.RETURNED)


class _Refused(Exception):
    """The hello is not good here."""

    def __init__(self, status: HelloStatus, detail: str) -> None:
        super().__init__(detail)
        self.status = status


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
        except BadRequest as error:
            log.info("connection cut: %s", error)
            self._refuse(0, 0, Status.BAD_REQUEST, str(error))
            self._stream.finish()
        except Cut as error:
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
        self._reads = Reads(self._stream, self._state, self._turn, self._dataset, self._version)
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
                raise BadRequest(f"{count} ranges in one request; at most {RANGES_MAX} are allowed")
            body = stream.read(count * RANGE.size) if count else b""
            if len(body) < count * RANGE.size:
                return
            if op == _READ:
                self._reads.answer(request_id, flags, body, total)
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
            raise BadRequest(f"there is no request {op} with {len(ranges)} ranges")

    def _answer(self, op: int, request_id: int, payload: bytes, status: Status = Status.OK) -> None:
        with self._turn:
            self._stream.send(self._header(op, request_id, len(payload), status) + payload)

    def _refuse(self, op: int, request_id: int, status: Status, message: str) -> None:
        try:
            self._answer(op, request_id, message.encode()[:FAILURE_MESSAGE_BYTES_MAX], status)
        except OSError:
            return

    def _header(self, op: int, request_id: int, payload_bytes: int, status: Status = Status.OK) -> bytes:
        return self._state.header(self._dataset, op, request_id, payload_bytes, status=status)

    def _refreshed(self) -> bytes:
        assert self._dataset is not None
        placement = self._dataset.placement | {"placement_version": self._state.placement_version}
        packed = msgpack.packb({"placement": placement}, use_bin_type=True)
        # A map of two: the slots are packed once for all.
        return b"\x82" + bytes(packed[1:]) + bytes(msgpack.packb("slots")) + self._state.slots

    # --- descriptors

    def _descriptors(self, request_id: int, ranges: list[tuple[int, int, int]]) -> None:
        dataset = self._dataset
        assert dataset is not None
        if not self._stream.is_unix:
            raise BadRequest("DESCRIPTORS needs the Unix socket")
        if not 1 <= len(ranges) <= DESCRIPTORS_MAX:
            raise BadRequest(f"DESCRIPTORS of {len(ranges)} blocks; 1 to {DESCRIPTORS_MAX} are allowed")
        # The turn comes first: a loan that is asked back at once must not be asked back before it is made.
        with self._turn:
            statuses = bytearray()
            passed: list[Entry] = []  # pinned, or other readers' files would take their numbers while we wait
            try:
                for block_index, _, _ in ranges:
                    entry = dataset.blocks.get(block_index)
                    if entry is None:
                        statuses.append(DescriptorStatus.NOT_HERE)
                    elif not self._may_lend(entry) or not self._is_opened(entry):
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

    def _is_opened(self, entry: Entry) -> bool:
        """Return whether the entry's descriptor is open, and may be passed yet: to open it may take a while."""
        return entry.open() and not entry.leaving and self._may_lend(entry)

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
            raise BadRequest(f"CRCS of {len(ranges)} blocks; one at a time")
        entry = dataset.blocks.get(ranges[0][0])
        if entry is None or not entry.sealed or self._version < entry.full_from:
            self._refuse(Op.CRCS, request_id, Status.UNAVAILABLE, f"block {ranges[0][0]} is not full here")
            return
        entry.pins += 1
        try:
            crcs = entry.examine(index.read_crcs, 0, -(-entry.data_bytes // PAGE_BYTES))
        except OSError as error:
            self._shelf.note_error(entry, error)
            self._refuse(Op.CRCS, request_id, Status.UNAVAILABLE, unreadable(error)[1])
            return
        finally:
            self._shelf.unpin(entry)
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

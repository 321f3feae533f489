"""Descriptors of full blocks, lent by executors of this host, and their return.

Theory of operation. A `Descriptor` is an int that closes itself when the last reference to it goes: a reader that
looks one up holds it for the length of its `pread`, so it is never closed, and its number never used again, under a
reader; Python's reference count is the count of readers. What lets go last (a drop, the LRU, a view that ends) leads to
RETURNED, by way of a queue that takes no lock, since `__del__` runs anywhere.

    table (one a dataset generation)       young {block: Descriptor}  <- the hot path: one look-up, no lock
                                           old   {block: Descriptor}  <- not used since the last turn; evicted first
                                           maps  {block: BlockMap}    <- views and small reads, of memory alone; each holds its Descriptor
    loan (one an executor and dataset)     the connection that lent them, and a thread that hears DROP and PINGs

The budget is the process's: DESCRIPTORS_MAX over all tables. When it is spent and nothing is old, all young become old
(the clock's hand comes round); a look-up that finds its block among the old makes it young again.

A forked child closes the loans' sockets, and its copies of the descriptors: nobody would tell it to drop them. It asks for
the same blocks (*inherited*) at its first read, by loans of its own.

When a loan's connection ends, everything it lent is dropped, and only then is our end of it closed: the executor takes that
for the word that nothing is read here any more of a dataset that was removed. So a read that begins after an executor
said so finds no descriptor; what a program holds by itself (a view, an array made of one) stays what it was. An executor that
says nothing to a PING is left alike: it may never tell what was removed.
"""

from __future__ import annotations

import collections
import fcntl
import logging
import mmap
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable

from stoker.client.connection import Answer, Broken, Connection, Silent
from stoker.executor import wire

log = logging.getLogger(__name__)

DESCRIPTORS_MAX = 128  # held by a process
ASK_MAX = wire.DESCRIPTORS_MAX  # blocks in one request
MAP_AFTER_READS = 128  # small reads of one block before it is mapped: its faults must pay
ASK_AGAIN_MS = 250  # a block that was not full, or not there
ASK_AGAIN_BLOCKS_MAX = 4_096
ASK_WHEN_FULL_BYTES = (
    256 * 1024
)  # with the budget spent: a larger read of a block evicts another's descriptor,
ASK_WHEN_FULL_MISSES = 8  # or as many small ones
PING_INTERVAL_MS = 2_000  # an idle loan asks for the newest versions, and sees that the executor lives
PINGS_UNANSWERED_MAX = 3  # then it hangs: less than the framework takes to give it up
LOAN_SILENCE_MS = 2_000  # descriptors are at hand or not: an answer takes no store's time
DROP_BYTES_MAX = 4 * 65_536

_FD_BYTES = struct.calcsize("i")


class Descriptor(int):
    """An open descriptor that closes itself, and tells its loan, when the last reference goes."""

    index: int
    loan: Loan | None
    is_memory: bool  # the MEM tier's; of a file on a disk, a page may fail to be read

    def __del__(self, _close: Callable[[int], None] = os.close) -> None:
        try:
            _close(self)
        except OSError:  # only at the interpreter's end, where descriptors may be closed already
            return
        if self.loan is not None:
            self.loan.returned(self.index)


class BlockMap(mmap.mmap):
    """A block's data, mapped; holds its descriptor, so that a view keeps the loan."""

    descriptor: Descriptor


class Budget:
    """The process's descriptors: one lock and one count for all tables of a session."""

    def __init__(self, descriptors_max: int = DESCRIPTORS_MAX) -> None:
        self.descriptors_max = descriptors_max
        self.lock = threading.Lock()
        self.tables: tuple[DescriptorTable, ...] = ()

    def count(self) -> int:
        return sum(table.count() for table in self.tables)

    def after_fork_in_child(self) -> None:
        self.lock = threading.Lock()

    def make_room(self) -> None:
        """Evict until one more fits; under the lock."""
        while self.count() >= self.descriptors_max:
            if not any(table.old for table in self.tables):
                for table in self.tables:
                    table.age()
            victim = next(table for table in self.tables if table.old)
            victim.forget(next(iter(victim.old)))


class DescriptorTable:
    """The descriptors of one dataset generation's blocks. `young` is never replaced: readers hold on to it."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.young: dict[int, Descriptor] = {}
        self.old: dict[int, Descriptor] = {}
        self.inherited: list[int] = []  # what the parent held: to be asked for
        self.maps: dict[int, BlockMap] = {}  # never replaced either
        self.idle_maps: dict[int, BlockMap] = {}  # of the old
        self.received_count = 0
        self.dropped_count = 0
        self._not_before: dict[int, float] = {}
        self._misses: dict[int, int] = {}
        self._small_reads: dict[int, int] = {}
        with budget.lock:
            budget.tables = (*budget.tables, self)

    def count(self) -> int:
        return len(self.young) + len(self.old)

    def age(self) -> None:
        """Make all young ones old; under the lock. Who is used again is found again, and young."""
        self.old.update(self.young)
        self.idle_maps.update(self.maps)
        for held in (self.young, self.maps):
            held.clear()

    def find(self, index: int) -> Descriptor | None:
        """Return the block's descriptor, young again if it was old."""
        found = self.young.get(index)
        if found is not None or not self.old:
            return found
        with self.budget.lock:
            found = self.old.pop(index, None)
            if found is not None:
                self.young[index] = found
                mapped = self.idle_maps.pop(index, None)
                if mapped is not None:
                    self.maps[index] = mapped
                return found
            return self.young.get(index)

    def should_ask(self, index: int, wanted_bytes: int) -> bool:
        """Tell whether to ask for the block's descriptor now: not again at once, and not for a small read if it would
        cost another block its place.
        """
        if self._not_before and self._not_before.get(index, 0.0) > time.monotonic():
            return False
        if wanted_bytes >= ASK_WHEN_FULL_BYTES or self.budget.count() < self.budget.descriptors_max:
            return True
        if len(self._misses) >= ASK_AGAIN_BLOCKS_MAX:
            self._misses.clear()
        misses = self._misses[index] = self._misses.get(index, 0) + 1
        return misses >= ASK_WHEN_FULL_MISSES

    def install(self, index: int, number: int, loan: Loan) -> None:
        """Take a descriptor that `loan` has just received."""
        descriptor = Descriptor(number)
        descriptor.index, descriptor.loan, descriptor.is_memory = index, loan, _is_memory(number)
        with self.budget.lock:
            self.forget(index)
            self.budget.make_room()
            self.young[index] = descriptor
            self.received_count += 1
            self._misses.pop(index, None)

    def not_full(self, index: int) -> None:
        if len(self._not_before) >= ASK_AGAIN_BLOCKS_MAX:
            self._not_before.clear()
        self._not_before[index] = time.monotonic() + ASK_AGAIN_MS / 1000

    def failed(self, index: int, descriptor: int) -> None:
        """The block's descriptor could not be read from (the disk under it): let go of it, and ask executors."""
        with self.budget.lock:
            if self.young.get(index) is descriptor or self.old.get(index) is descriptor:
                self.forget(index)
        self.not_full(index)

    def forget(self, index: int) -> None:
        """Let go of the block's descriptor and mapping; under the lock."""
        self.young.pop(index, None)
        self.old.pop(index, None)
        self.maps.pop(index, None)
        self.idle_maps.pop(index, None)
        self._small_reads.pop(index, None)

    def drop(self, indexes: Iterable[int]) -> None:
        with self.budget.lock:
            for index in indexes:
                self.dropped_count += 1
                self.forget(index)

    def drop_loan(self, loan: Loan) -> None:
        with self.budget.lock:
            lent = [
                index
                for held in (self.young, self.old)
                for index, descriptor in held.items()
                if descriptor.loan is loan
            ]
            for index in lent:
                self.forget(index)

    def close(self) -> None:
        """Let go of everything, for good."""
        with self.budget.lock:
            for index in (*self.young, *self.old):
                self.forget(index)
            self.budget.tables = tuple(table for table in self.budget.tables if table is not self)

    def take_inherited(self) -> list[int]:
        """Return what the parent held, once."""
        with self.budget.lock:
            taken, self.inherited = self.inherited, []
            return taken

    def count_small_read(self, index: int, data_bytes: int) -> None:
        """A small read went by pread: map the block when there were many. A copy from a warm mapping takes a third."""
        reads = self._small_reads.get(index, 0) + 1
        self._small_reads[index] = reads
        if reads >= MAP_AFTER_READS:
            self.map(index, data_bytes)

    def map(self, index: int, data_bytes: int) -> BlockMap | None:
        """Return the block's mapping, made now if need be; None: no memory of so many bytes is held.

        A file on a disk is never mapped: a page that the disk does not give would be a SIGBUS in the user's program.
        """
        descriptor = self.find(index)
        if descriptor is None or not descriptor.is_memory:
            return None
        with self.budget.lock:
            mapped = self.maps.get(index)
            if mapped is None or mapped.descriptor is not descriptor:
                try:
                    mapped = BlockMap(descriptor, data_bytes, prot=mmap.PROT_READ)
                except (
                    ValueError,
                    OSError,
                ):  # the file is too short, or no descriptor or address space is left
                    return None
                mapped.descriptor = descriptor
                if index in self.young:  # else it was dropped meanwhile
                    self.maps[index] = mapped
            return mapped

    def after_fork_in_child(self) -> None:
        for held in (self.young, self.old):
            for index, descriptor in held.items():
                descriptor.loan = None  # the parent's to return
                self.inherited.append(index)
            held.clear()
        self.maps.clear()  # made again once this process has loans of its own; views keep theirs
        self.idle_maps.clear()


class _EndOfStream(Broken):
    """The executor has ended its side, between two messages."""

    def __init__(self) -> None:
        super().__init__("end")


class Loan:
    """The connection that lends one table its descriptors, from one executor. A daemon thread hears its DROPs."""

    def __init__(
        self, connection: Connection, table: DescriptorTable, *, on_versions: Callable[[int, int], None]
    ) -> None:
        """Take over `connection`. :raises RuntimeError: no thread is to be had."""
        self.ended = False
        self._is_handing_back = False  # ended by the executor while views still hold blocks of it
        self._connection = connection
        self._socket = connection.socket
        self._table = table
        self._on_versions = on_versions
        self._lock = threading.Lock()  # whoever holds it sends and receives
        self._held: collections.Counter[int] = collections.Counter()
        self._returned: collections.deque[int] = collections.deque()
        self._unanswered = 0  # PINGs
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._serve, name="stoker-loan", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            connection.close()
            raise

    def ask(self, indexes: list[int]) -> None:
        """Ask for the blocks' descriptors (at most ASK_MAX) and install those that are passed.

        :raises OSError: the executor does not answer; everything it lent is dropped.
        """
        assert len(indexes) <= ASK_MAX
        if not self._lock.acquire(timeout=LOAN_SILENCE_MS / 1000):
            raise Silent(LOAN_SILENCE_MS)  # another thread waits there
        try:
            if self.ended:
                raise Broken("the loan connection has ended")
            self._send_returned()  # so that RETURNED never overtakes a new loan of the same block
            request_id = self._connection.send(wire.Op.DESCRIPTORS, [(index, 0, 0) for index in indexes])
            while True:
                answer, received = self._receive()
                if answer is None:
                    continue
                self._take(answer, request_id, indexes, received)
                return
        except OSError as error:
            self._end(is_asked_to=isinstance(error, _EndOfStream))
            raise
        finally:
            self._lock.release()

    def is_over(self) -> bool:
        """Return whether the conversation has ended, also where the thread has not run since: a process may stand still."""
        if self.ended:
            return True
        look = select.poll()
        try:
            look.register(self._socket, select.POLLRDHUP)
        except ValueError:  # the thread has closed it
            return True
        if not look.poll(0):
            return False
        with self._lock:
            self._end(is_asked_to=True)
        return True

    def _take(self, answer: Answer, request_id: int, indexes: list[int], received: list[int]) -> None:
        """Install what an answer to DESCRIPTORS brought."""
        try:
            if answer.op != wire.Op.DESCRIPTORS or answer.request_id != request_id:
                raise Broken(f"answer {answer.request_id} of op {answer.op} on the loan connection")
            if answer.status != wire.Status.OK:
                raise Broken(f"DESCRIPTORS: {self._connection.receive_refusal(answer)}")
            if answer.payload_bytes != len(indexes):
                raise Broken(f"{answer.payload_bytes} states for {len(indexes)} blocks")
            states = self._connection.receive_bytes(answer.payload_bytes)
            if states.count(wire.DescriptorStatus.PASSED) != len(received):
                raise Broken(
                    f"{states.count(wire.DescriptorStatus.PASSED)} descriptors announced, {len(received)} came "
                    "(is the limit of open files reached?)"
                )
        except OSError:
            for number in received:
                os.close(number)
            raise
        numbers = iter(received)
        for index, state in zip(indexes, states, strict=True):
            if state == wire.DescriptorStatus.PASSED:
                self._held[index] += 1
                self._table.install(index, next(numbers), self)
            else:
                self._table.not_full(index)
        self._on_versions(answer.placement_version, answer.dataset_version)

    def returned(self, index: int) -> None:
        """A descriptor was closed. Called by `__del__`, from any thread, at any place: no lock, no send here."""
        if self._pid != os.getpid() or (self.ended and not self._is_handing_back):
            return
        self._returned.append(index)
        try:
            os.eventfd_write(self._wake, 1)
        except BlockingIOError:
            return  # it has been rung 2**64 - 2 times

    def end(self) -> None:
        with self._lock:
            self._end()

    def after_fork_in_child(self) -> None:
        """The parent's socket is closed here, and the thread does not exist in a child."""
        self.ended = True

    def __del__(self) -> None:
        # Not earlier: a descriptor's __del__ may be about to ring it, and the number must not be another file's by then.
        os.close(self._wake)

    def _serve(self) -> None:
        """The thread: DROPs in, RETURNEDs out, a PING when it was quiet for long."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while True:
            ready = poll.poll(PING_INTERVAL_MS)
            with self._lock:
                if self.ended:
                    break
                try:
                    self._attend(bool(ready))
                except OSError as error:
                    self._end(is_asked_to=isinstance(error, _EndOfStream))
                    break
                except Exception:  # the thread's top frame: else nobody would hear what is asked back
                    log.exception("a loan ends: our mistake; its blocks are read through the socket")
                    self._end()
                    break
        self._hand_back()
        self._socket.close()

    def _hand_back(self) -> None:
        """Stay connected until the last view of what was lent is gone: so long the executor counts it as used."""
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        poll.register(self._socket, 0)  # tells when the executor itself is gone
        while self._is_handing_back:
            ready = dict(poll.poll())
            with self._lock:
                try:
                    self._send_returned()
                except OSError:
                    self._is_handing_back = False
                if not self._held or self._socket.fileno() in ready:
                    self._is_handing_back = False

    def _attend(self, ready: bool) -> None:
        self._send_returned()
        if not ready:
            if self._unanswered == PINGS_UNANSWERED_MAX:
                raise Silent(PING_INTERVAL_MS * PINGS_UNANSWERED_MAX)
            self._connection.send(wire.Op.PING, [])
            self._unanswered += 1
        probe = select.poll()
        probe.register(self._socket, select.POLLIN)
        while probe.poll(0):  # an asking thread may have taken what woke us
            answer, received = self._receive()
            if answer is not None:
                for number in received:
                    os.close(number)
                raise Broken("an answer that nobody asked for")

    def _receive(self) -> tuple[Answer | None, list[int]]:
        """Receive one message. A DROP or a PING's answer is dealt with here, and None returned for it."""
        header, received = self._receive_header()
        answer = Answer._make(wire.ANSWER.unpack(header))
        if answer.op == wire.Op.DROP:
            if answer.payload_bytes % 4 or answer.payload_bytes > DROP_BYTES_MAX:
                raise Broken(f"a DROP of {answer.payload_bytes} bytes")
            payload = self._connection.receive_bytes(answer.payload_bytes)
            self._dropped([n for (n,) in struct.iter_unpack("<I", payload)])
            return None, []
        if answer.op == wire.Op.PING:
            self._connection.receive_bytes(answer.payload_bytes)
            self._unanswered = 0
            self._on_versions(answer.placement_version, answer.dataset_version)
            return None, []
        return answer, received

    def _dropped(self, indexes: list[int]) -> None:
        self._table.drop(indexes)
        # What we no longer hold at all (the LRU was faster) is confirmed too: a second RETURNED does no harm.
        gone = [index for index in indexes if not self._held[index]]
        if gone:
            self._send_ranges(gone)
        self._send_returned()

    def _receive_header(self) -> tuple[bytes, list[int]]:
        data, received = b"", list[int]()
        while len(data) < wire.ANSWER.size:
            try:
                part, ancillary, flags, _ = self._socket.recvmsg(
                    wire.ANSWER.size - len(data),
                    socket.CMSG_SPACE(ASK_MAX * _FD_BYTES),
                    socket.MSG_CMSG_CLOEXEC,
                )
            except BlockingIOError:
                raise Silent(LOAN_SILENCE_MS) from None
            received += _numbers(ancillary)
            if not part or flags & socket.MSG_CTRUNC:
                for number in received:
                    os.close(number)
                if part:
                    raise Broken("descriptors were cut off: the limit of open files is reached")
                raise Broken("the end within an answer") if data else _EndOfStream
            data += part
        return data, received

    def _send_returned(self) -> None:
        """Tell the executor what was let go since; a block lent twice is returned with its last descriptor."""
        free = []
        while self._returned:
            index = self._returned.popleft()
            self._held[index] -= 1
            if self._held[index] <= 0:
                del self._held[index]
                free.append(index)
        if free:
            self._send_ranges(free)
        try:
            os.eventfd_read(self._wake)
        except BlockingIOError:
            return  # nobody rang

    def _send_ranges(self, indexes: list[int]) -> None:
        for first in range(0, len(indexes), wire.RANGES_MAX):
            part = indexes[first : first + wire.RANGES_MAX]
            self._connection.send(wire.Op.RETURNED, [(index, 0, 0) for index in part])

    def _end(self, *, is_asked_to: bool = False) -> None:
        """Let go of everything; the thread closes the socket. Under the lock.

        `is_asked_to`: the executor has ended its side (of a removed dataset, as a rule) and waits for ours. It is told that
        nothing is read any more, and, where views hold blocks, each block as it is let go.
        """
        if self.ended:
            return
        self.ended, self._is_handing_back = True, is_asked_to
        self._table.drop_loan(self)
        try:
            if self._is_handing_back:
                self._send_returned()
                self._is_handing_back = bool(self._held)
            if self._is_handing_back:
                self._connection.send(wire.Op.RETURNED, [])
            else:
                self._socket.shutdown(
                    socket.SHUT_RDWR
                )  # wakes the thread; the parent's own socket, never a child's
            os.eventfd_write(self._wake, 1)
        except OSError:
            self._is_handing_back = False  # the executor was faster: the thread is awake by that


def _is_memory(descriptor: int) -> bool:
    """Return whether it is a file in memory: those alone know seals."""
    try:
        fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    except OSError:
        return False
    return True


def _numbers(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    numbers: list[int] = []
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            usable = len(data) - len(data) % _FD_BYTES
            numbers += struct.unpack(f"{usable // _FD_BYTES}i", data[:usable])
    return numbers

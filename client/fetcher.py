"""Gets bytes of one dataset version from whoever has them; never wrong ones, never fewer.

Theory of operation. A read is cut into `Piece`s, each inside one block. `fetch` goes round until each piece has its bytes
or its error:

    1. descriptors: for blocks with a home on this host, ask for the ones not yet held (a batch a loan), pread.
    2. sockets: each remaining piece has a next executor to ask (homes, then any living one). All executors are sent
       their requests, then all answers are received: one round trip for the batch.
    3. what an executor could not give goes on to the next (where a hello was refused, the placement is refreshed meanwhile,
       in the background). When nobody is left: ask a scheduler for the newest placement, wait a little, begin again. After
       READ_DEADLINE_MS without any progress the read fails with a clear error, or goes to the under store if the program
       asked for that.

A fetcher serves all threads of the process, and its forked children, each with sockets of its own. Another version of the
dataset has another fetcher: which extents of a block are to be filled depends on the version.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from stoker.client.batch import Batch, Chunk
from stoker.client.connection import HelloRefused, Pool, Silent, connect
from stoker.client.descriptors import ASK_MAX, LOAN_SILENCE_MS, Budget, DescriptorTable, Loan
from stoker.client.errors import NoExecutor, ReadError, dataset_gone, file_changed
from stoker.client.piece import Piece
from stoker.client.placement import Placement
from stoker.executor import wire
from stoker.executor.messages import SlotAddress

READ_DEADLINE_MS = 60_000  # without progress; a lost executor is relaunched well within it
DOWN_MS = 1_000  # an executor that refused is not asked again for so long,
DOWN_REFUSED_MS = 200  # (less if it only does not know the dataset yet)
DOWN_SILENT_MS = 10_000  # nor one that hangs: the framework ends it in about that time
UNIX_AGAIN_MS = 30_000  # a Unix socket that did not answer, while TCP did
RETRY_MS_MIN = 20
RETRY_MS_MAX = 1_000
STORE_TRIES_MAX = 3  # executors asked when each says that the under store fails
BREAKS_MAX = 3  # a piece's answers that ended early at one executor before another is asked
CONFIRM_INTERVAL_MS = 100  # less than it takes to remove a dataset and add another of its name
CANDIDATES_MAX = 16_384  # lists of executors remembered, one a PG

TRANSPORTS = ("auto", "fd", "tcp")

_FINAL = {wire.Failure.CHANGED, wire.Failure.OUT_OF_RANGE}


@dataclass(slots=True)
class Stats:
    """What a process's reads took, beyond the preads of descriptors held (those are not counted: they are too cheap)."""

    descriptor_asks: int = 0
    descriptor_reads: int = 0  # on the slow path; later reads of the same block are not counted
    socket_requests: int = 0
    socket_ranges: int = 0
    socket_bytes: int = 0
    retries: int = 0
    placement_refreshes: int = 0
    direct_reads: int = 0  # from the under store itself, because fallback="direct"
    direct_bytes: int = 0


class Surroundings(Protocol):
    """What a fetcher needs of its session."""

    boot_id: str
    transport: str
    budget: Budget
    stats: Stats

    def newest_placement(self, name: str) -> Placement | None:
        """Ask each scheduler once; None: none answers now. FileNotFoundError: there is no such dataset any more."""
        ...

    def behind(self, fetcher: Fetcher, address: SlotAddress) -> None:
        """An executor knows a newer placement, or refused us: refresh in the background."""
        ...


class Fetcher:
    """One dataset version. `placement` is replaced whole, by any thread."""

    def __init__(self, surroundings: Surroundings, placement: Placement, version: int) -> None:
        self.placement = placement
        self.version = version
        self.table = DescriptorTable(surroundings.budget)
        self.gone = ""  # what became of the dataset: nothing is read any more
        self.dataset_version = 0  # the newest that an executor told of
        self._surroundings = surroundings
        self._by_descriptor = surroundings.transport != "tcp"
        self._lock = threading.Lock()
        self._unix_failed: dict[SlotAddress, float] = {}
        self._down: dict[SlotAddress, float] = {}
        self._candidates: dict[int, list[SlotAddress]] = {}
        self._pools: dict[tuple[SlotAddress, bool], Pool] = {}
        self._loans: dict[SlotAddress, Loan] = {}
        self._loan_not_before: dict[SlotAddress, float] = {}
        self.believe(CONFIRM_INTERVAL_MS)

    def fetch(
        self, pieces: Sequence[Piece], path_of: Callable[[int], str], *, give_up_at_once: bool = False
    ) -> None:
        """Give each piece its bytes, or its `error`. `path_of(row)` is only called for errors.

        :param give_up_at_once: do not wait for a relaunch; the caller has another way.
        """
        pending = [piece for piece in pieces if piece.length]
        for piece in pieces:
            if not piece.length and piece.view is None:
                piece.data = b""
        wait_ms, alive = RETRY_MS_MIN, time.monotonic()
        rounds = 0
        while pending:
            self._check_gone()
            before = len(pending)
            if self._by_descriptor:
                pending = self._read_descriptors(pending)
            pending = self._read_sockets(pending, path_of)
            if len(pending) < before:
                wait_ms, alive = RETRY_MS_MIN, time.monotonic()
            stuck = [piece for piece in pending if self._next(piece) is None]
            if not stuck:
                continue
            rounds += 1
            waited_ms = (time.monotonic() - alive) * 1000
            if waited_ms + wait_ms > READ_DEADLINE_MS or (give_up_at_once and rounds > 1):
                self._give_up(stuck, path_of)
                pending = [piece for piece in pending if piece.error is None]
                continue
            self._refresh()
            time.sleep(wait_ms / 1000)
            wait_ms = min(2 * wait_ms, RETRY_MS_MAX)
            self._surroundings.stats.retries += len(stuck)
            for piece in stuck:
                piece.tried.clear()

    # Descriptors

    def _read_descriptors(self, pieces: list[Piece]) -> list[Piece]:
        """Read what can be read from descriptors; return the rest."""
        self._adopt()
        table = self.table
        wanted: dict[int, int] = {}
        for piece in pieces:
            if table.find(piece.index) is None:
                wanted[piece.index] = wanted.get(piece.index, 0) + piece.length
        self._ask(index for index, size in wanted.items() if table.should_ask(index, size))
        rest = []
        for piece in pieces:
            descriptor = table.find(piece.index)
            try:
                if descriptor is not None and piece.pread(descriptor):
                    continue
            except (
                OSError
            ):  # of the disk under it; its executor will see the same, another one may have the block
                assert descriptor is not None
                table.failed(piece.index, descriptor)
            rest.append(piece)
        self._surroundings.stats.descriptor_reads += len(pieces) - len(rest)
        return rest

    def ask_descriptor(self, index: int) -> None:
        """Ask for a block's descriptor whatever the budget says, for a view."""
        if self._by_descriptor:
            self._adopt()
            if self.table.find(index) is None:
                self._ask([index])

    def _ask(self, indexes: Iterable[int]) -> None:
        """Ask this host's homes for descriptors. Where one does not answer, the sockets, or another executor, will do."""
        by_slot: dict[SlotAddress, list[int]] = {}
        for index in indexes:
            slot = self._home_here(index)
            if slot is not None:
                by_slot.setdefault(slot, []).append(index)
        for slot, asked in by_slot.items():
            try:
                loan = self._loan(slot)
                for first in range(0, len(asked), ASK_MAX):
                    self._surroundings.stats.descriptor_asks += 1
                    loan.ask(asked[first : first + ASK_MAX])
            except (OSError, RuntimeError) as error:  # the latter: no thread is to be had
                now = time.monotonic()
                self._loan_not_before[slot] = now + DOWN_MS / 1000
                if isinstance(error, Silent):
                    self._down[slot] = now + DOWN_SILENT_MS / 1000

    def _home_here(self, index: int) -> SlotAddress | None:
        """Return a home of the block on this host whose Unix socket answers."""
        now = time.monotonic()
        for slot in self._candidates_of(index)[: self.placement.home_count(index)]:
            if (
                self._uses_unix(slot)
                and not self._is_down(slot)
                and self._loan_not_before.get(slot, 0.0) <= now
            ):
                return slot
        return None

    def _loan(self, slot: SlotAddress) -> Loan:
        loan = self._loans.get(slot)
        if loan is not None and not loan.ended:
            return loan
        with self._lock:
            loan = self._loans.get(slot)
            if loan is None or loan.ended:
                connection = connect(slot, self._hello(slot), unix=True, silence_ms=LOAN_SILENCE_MS)
                loan = Loan(connection, self.table, on_versions=lambda p, d: self.heard(p, d, slot))
                self._loans[slot] = loan
            return loan

    def _adopt(self) -> None:
        """In a forked child: ask for what the parent held."""
        if self.table.inherited:
            self._ask(self.table.take_inherited())

    # Sockets

    def _read_sockets(self, pieces: list[Piece], path_of: Callable[[int], str]) -> list[Piece]:
        """Ask for each piece whom it is to ask next, all at once; return those that are to go on."""
        by_slot: dict[SlotAddress, list[Piece]] = {}
        for piece in pieces:
            slot = self._next(piece)
            if slot is not None:
                by_slot.setdefault(slot, []).append(piece)
        if not by_slot:
            return pieces
        in_order = sorted(by_slot.items(), key=lambda item: item[0].slot_id)
        batch = Batch([Chunk(self.pool(slot), slot, asked) for slot, asked in in_order], self.heard)
        for chunk, error in batch.run():
            self._executor_failed(chunk, error)
        stats = self._surroundings.stats
        stats.socket_requests += batch.requests
        stats.socket_ranges += batch.ranges
        stats.socket_bytes += batch.bytes
        for piece in pieces:
            if piece.failure is not None:
                self._judge(piece, path_of)
        return [piece for piece in pieces if not piece.done and piece.error is None]

    def _executor_failed(self, chunk: Chunk, error: OSError) -> None:
        """A conversation broke. A connection that had worked before may only have been old: try once more."""
        slot = chunk.slot
        chunk.pool.clear()
        is_refusal, is_silent = isinstance(error, HelloRefused), isinstance(error, Silent)
        if not (chunk.had_begun or is_refusal or is_silent) and chunk.pool.unix and self._has_tcp(slot):
            self._unix_failed[slot] = time.monotonic() + UNIX_AGAIN_MS / 1000  # its TCP port may answer
            return
        leave = is_silent or not chunk.had_begun
        for piece in chunk.pieces:
            if piece.done or piece.failure is not None:
                continue
            piece.reason = f"{slot.host}:{slot.port} (slot {slot.slot_id}): {error}"
            piece.breaks += 1
            if leave or piece.breaks >= BREAKS_MAX:
                piece.breaks = 0
                piece.tried.add(slot)
        if leave:
            down_ms = DOWN_SILENT_MS if is_silent else DOWN_REFUSED_MS if is_refusal else DOWN_MS
            self._down[slot] = time.monotonic() + down_ms / 1000
        if isinstance(error, HelloRefused) and error.status != wire.HelloStatus.BUSY:
            # Another launch, or a dataset that is new or gone there. The next executor need not wait for a scheduler.
            self._surroundings.behind(self, slot)

    def _judge(self, piece: Piece, path_of: Callable[[int], str]) -> None:
        """Decide whether a range's failure is the end, or another executor's turn."""
        assert piece.failure is not None and piece.asked is not None
        code, message = piece.failure
        piece.failure = None
        piece.tried.add(piece.asked)
        piece.reason = message
        if code == wire.Failure.UNDER_STORE:
            piece.store_tries += 1
        if code == wire.Failure.CHANGED:
            piece.error = file_changed(self.placement.name, path_of(piece.row), message)
        elif code in _FINAL:
            piece.error = ReadError(
                errno.EIO, f"an executor refused the range: {message}", path_of(piece.row)
            )
        elif code == wire.Failure.UNDER_STORE and (
            piece.store_tries >= STORE_TRIES_MAX or self._next(piece) is None
        ):
            piece.error = ReadError(
                errno.EIO, f"the under store does not give it: {message}", path_of(piece.row)
            )

    def pool(self, slot: SlotAddress) -> Pool:
        unix = self._uses_unix(slot)
        pool = self._pools.get((slot, unix))
        if pool is None:
            with self._lock:
                pool = self._pools.setdefault((slot, unix), Pool(slot, self._hello(slot), unix=unix))
        return pool

    def _uses_unix(self, slot: SlotAddress) -> bool:
        """The same host, unless its socket does not answer here (another mount and network namespace)."""
        surroundings = self._surroundings
        is_here = bool(surroundings.boot_id) and slot.boot_id == surroundings.boot_id
        if surroundings.transport == "tcp" or not is_here or not (slot.socket_path or slot.abstract_socket):
            return False
        return not self._unix_failed or self._unix_failed.get(slot, 0.0) <= time.monotonic()

    def _has_tcp(self, slot: SlotAddress) -> bool:
        return self._surroundings.transport == "auto" and slot.port != 0

    def _hello(self, slot: SlotAddress) -> wire.Hello:
        placement = self.placement
        return wire.Hello(
            placement.cluster,
            slot.launch_id,
            slot.incarnation,
            placement.dataset_id,
            placement.generation,
            self.version,
        )

    # Whom to ask

    def _next(self, piece: Piece) -> SlotAddress | None:
        """Return the best executor that this piece has not tried and that is not known to be down."""
        for slot in self._candidates_of(piece.index):
            if slot not in piece.tried and not self._is_down(slot):
                return slot
        return None

    def _candidates_of(self, index: int) -> list[SlotAddress]:
        placement = self.placement
        group = index % placement.pg_count
        found = self._candidates.get(group)
        if found is None:
            found = placement.candidates(group, self._surroundings.boot_id)
            if self._surroundings.transport == "fd":
                found = [slot for slot in found if slot.boot_id == self._surroundings.boot_id]
            if len(self._candidates) >= CANDIDATES_MAX:
                self._candidates = {}
            if placement is self.placement:
                self._candidates[group] = found
        return found

    def _is_down(self, slot: SlotAddress) -> bool:
        if not self._down:
            return False
        until = self._down.get(slot)
        if until is None:
            return False
        if until > time.monotonic():
            return True
        self._down.pop(slot, None)
        return False

    # Placement

    def is_doubtful(self) -> bool:
        """Return whether the dataset may be gone: an executor has ended a conversation about it since this was last
        asked, or there is none to be ended and no scheduler was asked just now.
        """
        ended = [slot for slot, loan in list(self._loans.items()) if loan.is_over()]
        for slot in ended:
            self._loans.pop(slot, None)
        pools = [pool.look() for pool in list(self._pools.values())]
        if ended or any(has_ended for _, has_ended in pools):
            return True
        if self._loans or any(has_idle for has_idle, _ in pools):
            return False
        return time.monotonic() > self._believed_until

    def believe(self, duration_ms: int) -> None:
        """Take the dataset for being there, for so long."""
        self._believed_until = time.monotonic() + duration_ms / 1000

    def heard(self, placement_version: int, dataset_version: int, address: SlotAddress) -> None:
        """An executor told the newest versions that it knows."""
        self.dataset_version = max(self.dataset_version, dataset_version)
        if placement_version > self.placement.placement_version:
            self._surroundings.behind(self, address)

    def take_placement(self, newest: Placement) -> None:
        """Use `newest` if it is newer; notice if the dataset behind the name is another one."""
        mine = self.placement
        if newest.cluster != mine.cluster or newest.dataset_id != mine.dataset_id:
            self.end("was removed and added again")
        elif newest.generation != mine.generation:
            self.end("was laid out anew")
        else:
            self.believe(CONFIRM_INTERVAL_MS)
            if newest.placement_version >= mine.placement_version:
                self._take(newest)

    def _take(self, newest: Placement) -> None:
        self._candidates = {}
        self.placement = newest
        self._candidates = {}
        living = set(newest.slots)
        with self._lock:
            for key in [key for key in self._pools if key[0] not in living]:
                self._pools.pop(key).clear()
            for slot in [slot for slot in self._loans if slot not in living]:
                self._loans.pop(slot)  # its thread ends with its connection
            for times in (self._unix_failed, self._down, self._loan_not_before):
                for slot in [slot for slot in times if slot not in living]:
                    times.pop(slot, None)

    def _refresh(self) -> None:
        """Ask a scheduler for the newest placement; without an answer the old one stays."""
        try:
            newest = self._surroundings.newest_placement(self.placement.name)
        except FileNotFoundError:
            self.end("was removed")
            return
        if newest is not None:
            self.take_placement(newest)

    def end(self, what: str) -> None:
        """Read nothing more: the dataset behind this version is gone."""
        self.gone = what
        self.table.close()
        with self._lock:
            for pool in self._pools.values():
                pool.clear()

    def _check_gone(self) -> None:
        if self.gone:
            raise dataset_gone(self.placement.name, self.gone)

    def _give_up(self, pieces: list[Piece], path_of: Callable[[int], str]) -> None:
        name = self.placement.name
        for piece in pieces:
            what = piece.reason or self._why_nobody()
            piece.error = NoExecutor(
                errno.ETIMEDOUT,
                f"no executor gave it within {READ_DEADLINE_MS // 1000} s ({what}); "
                f"`stoker explain {name}` tells why, fallback='direct' would read the under store",
                path_of(piece.row),
            )

    def _why_nobody(self) -> str:
        if not any(slot.port for slot in self.placement.slots):
            return "no executor is running"
        if self._surroundings.transport == "fd" and not self._candidates_of(0):
            return "STOKER_TRANSPORT=fd, and no executor runs on this host"
        return "none answers"

    # Fork

    def after_fork_in_child(self) -> None:
        self._lock = threading.Lock()
        self._unix_failed = {}
        self.table.after_fork_in_child()
        for pool in self._pools.values():
            pool.after_fork_in_child()
        for loan in self._loans.values():
            loan.after_fork_in_child()
        self._loans = {}

    def close(self) -> None:
        """End all conversations."""
        self.end("was closed")
        for loan in list(self._loans.values()):
            loan.end()

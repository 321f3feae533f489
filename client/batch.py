"""One round: requests to several executors at once, then all their answers.

Each executor's pieces are cut into requests of what the wire allows. All executors are sent their first request, and
answers are received as they come; the next request of an executor follows its answer. Connections are taken in the
order of the chunks (by slot), so that two threads never wait for each other's.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Iterator

from stoker.client import connection as connections
from stoker.client.connection import Broken, Connection, Pool
from stoker.client.piece import Piece
from stoker.executor import wire
from stoker.executor.messages import SlotAddress

REQUEST_BYTES_MAX = 64 * 1024 * 1024  # of the wire's maximum: the first bytes should not wait for the last
RANGES_MAX = 1024

assert REQUEST_BYTES_MAX <= wire.REQUEST_BYTES_MAX and RANGES_MAX <= wire.RANGES_MAX

Heard = Callable[[int, int, SlotAddress], None]


class Chunk:
    """What one executor is asked for in this round."""

    def __init__(self, pool: Pool, slot: SlotAddress, pieces: list[Piece]) -> None:
        self.pool = pool
        self.slot = slot
        self.pieces = pieces
        self.had_begun = (
            False  # a used connection, or bytes of an answer: its end says little about the executor
        )
        self.connection: Connection | None = None
        self._position = 0
        self._asked: list[Piece] = []
        self._request_id = 0

    def open(self) -> None:
        self.connection = self.pool.take()
        self.had_begun = not self.connection.is_fresh

    def attend(self) -> None:
        """:raises OSError: it hangs."""
        assert self.connection is not None
        self.connection.attend()

    def give_back(self) -> None:
        connection, self.connection = self.connection, None
        if connection is not None:
            self.pool.give(connection)

    def discard(self) -> None:
        connection, self.connection = self.connection, None
        if connection is not None:
            self.pool.discard(connection)

    def send(self) -> bool:
        """Send the next request; False: there is none left."""
        assert self.connection is not None
        pieces, first, size = self.pieces, self._position, 0
        last = first
        while last < len(pieces) and last - first < RANGES_MAX:
            size += pieces[last].length
            if size > REQUEST_BYTES_MAX and last > first:
                break
            last += 1
        if first == last:
            return False
        self._position, self._asked = last, pieces[first:last]
        ranges = []
        for piece in self._asked:
            piece.asked = self.slot
            ranges.append((piece.index, piece.start, piece.length))
        self._request_id = self.connection.send(wire.Op.READ, ranges)
        return True

    def receive(self) -> tuple[int, int, int]:
        """Receive the answer to the last request; return its bytes and the versions that the executor knows."""
        connection = self.connection
        assert connection is not None
        answer = connection.receive_answer(self._request_id, wire.Op.READ)
        self.had_begun = True
        if answer.status != wire.Status.OK:
            message = connection.receive_refusal(answer)
            bad = answer.status == wire.Status.BAD_REQUEST
            for piece in self._asked:
                piece.failure = (
                    wire.Failure.OUT_OF_RANGE if bad else wire.Failure.INTERNAL,
                    message or "refused",
                )
            return 0, answer.placement_version, answer.dataset_version
        failures, payload = connection.receive_failures(answer)
        for number, failure in failures.items():
            if number >= len(self._asked):
                raise Broken(f"range {number} failed of {len(self._asked)}")
            self._asked[number].failure = failure
        wanted = [piece for piece in self._asked if piece.failure is None] if failures else self._asked
        if payload != sum(piece.length for piece in wanted):
            raise Broken(f"a payload of {payload} bytes for {sum(piece.length for piece in wanted)}")
        connection.receive_ranges(wanted)
        return payload, answer.placement_version, answer.dataset_version


class Batch:
    """Runs the chunks of one round. Afterwards each piece is done, or has its `failure`, or its chunk was yielded."""

    def __init__(self, chunks: list[Chunk], heard: Heard) -> None:
        self.requests = 0
        self.ranges = 0
        self.bytes = 0
        self._chunks = chunks
        self._heard = heard

    def run(self) -> list[tuple[Chunk, OSError]]:
        """Return the chunks whose conversation broke, with the reason."""
        broken: list[tuple[Chunk, OSError]] = []
        talking: list[Chunk] = []
        try:
            for chunk in self._chunks:
                try:
                    chunk.open()
                    self._send(chunk)
                    talking.append(chunk)
                except OSError as error:
                    broken.append((chunk, error))
                    chunk.discard()
            for chunk, is_readable in self._ready(talking):
                try:
                    if not is_readable:
                        chunk.attend()
                    elif self._receive(chunk):
                        talking.remove(chunk)
                except OSError as error:
                    broken.append((chunk, error))
                    chunk.discard()
                    talking.remove(chunk)
        finally:
            for chunk in self._chunks:
                chunk.discard()  # if we were interrupted: the next reader would get its answers
        return broken

    def _ready(self, talking: list[Chunk]) -> Iterator[tuple[Chunk, bool]]:
        """Yield the chunks as their answers begin, until none is talking; (chunk, False): all have been silent for a while."""
        if len(talking) == 1:
            while talking:
                yield talking[0], True  # receiving waits, and attends, by itself
            return
        poll = select.poll()
        by_fd = {}
        for chunk in talking:
            assert chunk.connection is not None
            fd = chunk.connection.socket.fileno()
            by_fd[fd] = chunk
            poll.register(fd, select.POLLIN)
        while talking:
            ready = [fd for fd, _ in poll.poll(connections.ATTENTION_MS)]
            for fd in ready or list(by_fd):
                chunk = by_fd[fd]
                yield chunk, bool(ready)
                if chunk not in talking:
                    poll.unregister(fd)
                    del by_fd[fd]

    def _send(self, chunk: Chunk) -> bool:
        if not chunk.send():
            return False
        self.requests += 1
        self.ranges += len(chunk._asked)
        return True

    def _receive(self, chunk: Chunk) -> bool:
        """Receive one answer and ask on; True: that was the last."""
        assert chunk.connection is not None
        size, placement_version, dataset_version = chunk.receive()
        self.bytes += size
        for piece in chunk._asked:
            piece.done = piece.failure is None
        self._heard(placement_version, dataset_version, chunk.slot)
        if self._send(chunk):
            return False
        chunk.give_back()
        return True

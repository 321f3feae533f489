"""A client of the model of ZooKeeper: one session, kept over connections, and no more than the wire gives.

It fails fast: what is asked while there is no connection is ConnectionLoss at once, and surely not done. What was asked on
a connection that ends is ConnectionLoss, too, and may have been done. Watches end with their connection, and say so.
"""

from __future__ import annotations

import collections
import enum
from collections.abc import Callable
from typing import Any

from sim.process import Process
from sim.zk_tree import ConnectionLoss, Operation, SessionExpired, ZkError
from sim.zookeeper import (
    Children,
    CloseSession,
    Connection,
    Ensemble,
    Multi,
    Ping,
    Read,
    Request,
    Server,
    Session,
    value_of,
)

CONNECT_TIMEOUT_MS = 1_000
RETRY_MS = 120


class State(enum.Enum):
    CONNECTING = "connecting"  # for the first time
    CONNECTED = "connected"
    SUSPENDED = "suspended"
    LOST = "lost"  # the session has ended
    CLOSED = "closed"


class Client:
    """`changed(state)` is told of each change of state, in the process."""

    def __init__(
        self, process: Process, ensemble: Ensemble, timeout_ms: int, changed: Callable[[State], None]
    ) -> None:
        self.process = process
        self.timeout_ms = timeout_ms
        self.session_id = 0
        self.state = State.CONNECTING
        self._ensemble = ensemble
        self._changed = changed
        self._connection: Connection | None = None
        self._pending: collections.OrderedDict[int, tuple[Callable[[Any], None], Any]] = (
            collections.OrderedDict()
        )
        self._watches: dict[tuple[str, str], list[Callable[[], None]]] = {}
        self._xid = 0
        self._seen_zxid = 0
        self._closed: Callable[[], None] = lambda: None
        self.asked_ms = process.now_ms()  # when the newest connection was begun
        self._heard_ms = 0
        self._servers = list(ensemble.servers)
        process.timeline.random.shuffle(self._servers)
        self._connect()
        process.at(timeout_ms / 6, self._watch_over)

    @property
    def server(self) -> Server | None:
        return self._connection.server if self._connection is not None else None

    def submit(
        self, request: Request, done: Callable[[Any], None], watch: Callable[[], None] | None = None
    ) -> None:
        """Ask; `done` gets the result, a list of results for a Multi, or a ZkError."""
        if self.state is not State.CONNECTED:
            ended = self.state in (State.LOST, State.CLOSED)
            self.process.at(0, lambda: done(SessionExpired() if ended else ConnectionLoss()))
            return
        connection = self._connection
        assert connection is not None
        self._xid += 1
        xid, server = self._xid, connection.server
        self._pending[xid] = (done, (request, watch))
        if not self._ensemble.on_request(self.process, request):
            connection.lose()
        connection.to_server(lambda: server.receive(connection, xid, request, watch is not None))

    def call(self, request: Request, watch: Callable[[], None] | None = None) -> Any:
        """As `submit`, from a greenlet: return the result. :raises ZkError: it failed as a whole."""
        return value_of(self.process.block(lambda wake: self.submit(request, wake, watch)))

    def write(self, *operations: Operation) -> Any:
        """Return the result of one operation, the list of them of many. :raises ZkError: the one that failed."""
        results = self.call(Multi(operations))
        for result in results:
            if isinstance(result, ZkError) and type(result).__name__ not in (
                "RolledBack",
                "RuntimeInconsistency",
            ):
                raise result
        return results[0] if len(results) == 1 else results

    def reconnect(self) -> None:
        """Drop the connection, so that another server is tried."""
        if self.state in (State.CONNECTED, State.CLOSED) and self._connection is not None:
            self._drop()

    def close(self, done: Callable[[], None] = lambda: None) -> None:
        """End the session, if there is a connection that answers; else it has to expire. `done`: it is as good as over."""
        was_connected = self.state is State.CONNECTED
        if was_connected:
            self.submit(CloseSession(), lambda _: self.process.at(0, self._drop))
            self._closed = done
        self._set(State.CLOSED)
        if not was_connected:
            self._drop()
            self.process.at(0, done)

    # --- connections

    def _connect(self) -> None:
        if self.state in (State.LOST, State.CLOSED) or self._connection is not None:
            return
        self._servers.append(self._servers.pop(0))
        server = self._servers[0]
        if not server.is_alive and not self._ensemble.line(self.process.name, server.index).is_cut:
            self.process.at(RETRY_MS, self._connect)  # refused
            return
        connection = Connection(self.process, server, lambda p: heard(p), lambda: ended())

        def heard(packet: Any) -> None:
            if self._connection is connection:
                self._hear(packet)

        def ended() -> None:
            if self._connection is connection:
                self._drop()

        def give_up() -> None:
            if self._connection is connection and self.state is not State.CONNECTED:
                self._drop()

        self._connection, self.asked_ms = connection, self.process.now_ms()
        session_id, seen = self.session_id, self._seen_zxid
        connection.to_server(lambda: server.accept(connection, session_id, self.timeout_ms, seen))
        self.process.at(min(CONNECT_TIMEOUT_MS, self.timeout_ms // 2), give_up)

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close_by_client()
        was_connected = self.state is State.CONNECTED
        if was_connected:
            self._set(State.SUSPENDED)
        self._pending_fail(ConnectionLoss)
        watches, self._watches = self._watches, {}
        for callbacks in watches.values():
            for callback in callbacks:
                callback()
        if self.state is State.CLOSED:
            closed, self._closed = self._closed, lambda: None
            self.process.at(0, closed)
        else:
            self.process.at(RETRY_MS, self._connect)

    def _hear(self, packet: Any) -> None:
        self._heard_ms = self.process.now_ms()
        if packet is None:
            connection, self._connection = self._connection, None
            assert connection is not None
            connection.close_by_client()
            self._set(State.LOST)
            self._pending_fail(SessionExpired)
        elif isinstance(packet, Session):
            self.session_id = packet.session_id
            self._set(State.CONNECTED)
        elif isinstance(packet[0], str):
            for callback in self._watches.pop(packet, []):
                callback()
        else:
            self._answer(*packet)

    def _answer(self, xid: int, zxid: int, result: Any) -> None:
        assert next(iter(self._pending)) == xid, "answers come in the order of the requests"
        done, (request, watch) = self._pending.pop(xid)
        self._seen_zxid = max(self._seen_zxid, zxid)
        if watch is not None and not isinstance(result, ZkError):
            assert isinstance(request, Read)
            kind = "children" if isinstance(request, Children) else "data"
            self._watches.setdefault((kind, request.path), []).append(watch)
        done(result)

    def _watch_over(self) -> None:
        if self.state in (State.LOST, State.CLOSED):
            return
        self.process.at(self.timeout_ms / 6, self._watch_over)
        if self.state is State.CONNECTED:
            now_ms = self.process.now_ms()
            if now_ms - self._heard_ms > self.timeout_ms / 2:
                self._drop()
            elif now_ms - self._heard_ms >= self.timeout_ms / 6:
                self.submit(Ping(), lambda _: None)

    def _pending_fail(self, error: type[ZkError]) -> None:
        pending, self._pending = self._pending, collections.OrderedDict()
        for done, _ in pending.values():
            done(error())

    def _set(self, state: State) -> None:
        if self.state is not state:
            self.state = state
            self._changed(state)

"""A model of a ZooKeeper ensemble in virtual time: servers, quorum, sessions, watches, and all that is known to go wrong.

    client (zk_client.py) -- connection, ordered both ways --> server --> the ensemble's leader -> every server's tree

What it keeps of the real one, because our code relies on it or suffers from it:

- Writes, `sync` and session changes go through the leader, reads are answered by the client's own server from its own
  tree, which may lag; answers come in the order of the requests; a client never goes back in time, since a server that
  is behind what it has seen does not take it in.
- A session ends when nothing of it reached the leader for its timeout, by the ensemble's time, and never while there is
  no leader; a new leader gives every session its whole timeout again. Its ephemeral nodes go with it. The client hears
  of it when it is connected again, and not before.
- When the leader goes, every server drops its clients; a write under way may have happened or not. A server that is cut off
  answers reads and pings for a while, and keeps no session alive by it; the leader that is cut off also answers `sync`,
  which is no quorum's word, as long as no write waits.
- A request that lies in a stopped server's, or a cut line's, buffers may be done late: the leader refuses it only if
  the session has moved to another server or has ended.
- Watches fire once, at the server, before the client can read what fired them; they end with the connection.
- A request above jute.maxbuffer ends the connection without a word.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sim.process import Process
from sim.timeline import Timeline
from sim.zk_tree import (
    Change,
    Create,
    Delete,
    NoNode,
    Operation,
    SessionExpired,
    SessionMoved,
    Set,
    Tree,
    ZkError,
)

TICK_MS = 100
SYNC_LIMIT_MS = 3_000  # after which a server that does not answer the others is left behind
ISOLATED_MS = 8_000  # after which a server that is cut off from the others notices, and drops its clients
REQUEST_BYTES_MAX = 0xFFFFF


class Get(NamedTuple):
    path: str


class Exists(NamedTuple):
    path: str


class Children(NamedTuple):
    path: str


class Sync(NamedTuple):
    path: str


class Multi(NamedTuple):
    operations: tuple[Operation, ...]


class Ping(NamedTuple):
    pass


class CloseSession(NamedTuple):
    pass


Read = Get | Exists | Children
Request = Read | Sync | Multi | Ping | CloseSession


@dataclass(slots=True)
class Session:
    session_id: int
    timeout_ms: int
    deadline_ms: int
    server: Server
    is_open: bool = True


class Transaction(NamedTuple):
    zxid: int
    changes: tuple[Change, ...]


@dataclass(slots=True)
class Pending:
    """A request at a server, in the order of its connection."""

    xid: int
    request: Request
    watch: bool
    zxid: int = -1  # its answer waits until the server's tree is there; -1: not known yet
    result: Any = None


class Pipe:
    """One direction of a connection: ordered, late, and held up while the line is cut."""

    def __init__(self, timeline: Timeline, delay_ms_max: int, line: Line) -> None:
        self._timeline = timeline
        self._delay_ms_max = delay_ms_max
        self._line = line
        self._free_ms = 0
        self._is_dead = False

    def send(self, what: Callable[[], None]) -> None:
        now_ms = self._timeline.now_ms
        self._free_ms = max(self._free_ms, now_ms + self._timeline.between(0, self._delay_ms_max))
        self._timeline.at(self._free_ms - now_ms, lambda: self._line.arrive(lambda: self._deliver(what)))

    def die(self) -> None:
        """What is under way never arrives."""
        self._is_dead = True

    def _deliver(self, what: Callable[[], None]) -> None:
        if not self._is_dead:
            what()


class Line:
    """The network between a client's host and a server: whole, or cut (what is sent waits for it to heal)."""

    def __init__(self) -> None:
        self.is_cut = False
        self._held: list[Callable[[], None]] = []

    def arrive(self, what: Callable[[], None]) -> None:
        if self.is_cut or self._held:
            self._held.append(what)
        else:
            what()

    def heal(self) -> None:
        self.is_cut = False
        while self._held and not self.is_cut:
            self._held.pop(0)()


class Connection:
    """A client's connection to a server; `heard` and `ended` are called in the client's process."""

    def __init__(
        self, client: Process, server: Server, heard: Callable[[Any], None], ended: Callable[[], None]
    ) -> None:
        self.server = server
        self.session: Session | None = None
        self.queue: collections.deque[Pending] = collections.deque()
        self.is_open_here = True  # as the server sees it
        ensemble = server.ensemble
        line = ensemble.line(client.name, server.index)
        self._client, self._heard, self._ended = client, heard, ended
        self._up = Pipe(server.timeline, ensemble.delay_ms_max, line)
        self._down = Pipe(server.timeline, ensemble.delay_ms_max, line)

    def to_server(self, what: Callable[[], None]) -> None:
        self._up.send(lambda: self.server.run(what))

    def to_client(self, packet: Any) -> None:
        self._down.send(lambda: self._client.run(lambda: self._heard(packet)))

    def lose(self) -> None:
        """From now on nothing arrives at the server any more."""
        self._up.die()

    def close_by_server(self) -> None:
        if self.is_open_here:
            self.is_open_here = False
            self.server.forget(self)
            self._down.send(lambda: self._client.run(self._ended))

    def close_by_client(self) -> None:
        self._down.die()
        if self.server.timeline.chance(0.5):
            self._up.die()  # a reset: the server never sees what was under way
        self.to_server(self.close_by_server)
        self.server.timeline.at(0, self.server.drop_if_dead(self))


class Server(Process):
    def __init__(self, timeline: Timeline, ensemble: Ensemble, index: int) -> None:
        super().__init__(timeline, f"zookeeper-{index}")
        self.ensemble = ensemble
        self.index = index
        self.tree = Tree()
        self.lag_ms_max = ensemble.lag_ms_max
        self.is_linked = True  # a member of the quorum that there is
        self.is_isolated = False  # from the other servers, not from clients
        self._applying_ms = 0
        self._to_leader = Pipe(timeline, ensemble.delay_ms_max, Line())
        self._connections: list[Connection] = []
        self._watches: dict[tuple[str, str], dict[Connection, None]] = {}

    @property
    def is_well(self) -> bool:
        return self.is_alive and not self.is_stopped and not self.is_isolated

    # --- clients

    def accept(self, connection: Connection, session_id: int, timeout_ms: int, seen_zxid: int) -> None:
        """Take a client in, with the session that it names, or a new one for 0."""
        self._connections.append(connection)
        if not self.is_linked or self.ensemble.leader is None or self.tree.zxid < seen_zxid:
            connection.close_by_server()
            return

        def at_leader() -> None:
            session = self.ensemble.open_session(session_id, timeout_ms, self)
            connection.session = session
            connection.to_client(session)

        self._forward(at_leader)

    def receive(self, connection: Connection, xid: int, request: Request, watch: bool) -> None:
        session = connection.session
        if not connection.is_open_here or session is None:
            return
        if _size(request) > REQUEST_BYTES_MAX:
            connection.close_by_server()
            return
        if self.is_linked and not self.is_isolated and session.is_open and session.server is self:
            self.ensemble.touch(session)
        pending = Pending(xid, request, watch)
        connection.queue.append(pending)
        if isinstance(request, Sync) and self._is_alone_at_rest():
            pending.zxid = self.tree.zxid
            self.drain(connection)
        elif isinstance(request, Multi | Sync | CloseSession):
            self._forward(lambda: self.ensemble.lead(self, connection, session, pending))
        else:
            pending.zxid = 0
            self.drain(connection)

    def _is_alone_at_rest(self) -> bool:
        """Say whether this is the leader, cut off from the others and without a write that waits for them."""
        if not self.is_isolated or self is not self.ensemble.leader:
            return False
        return not any(isinstance(p.request, Multi) for c in self._connections for p in c.queue)

    def drain(self, connection: Connection) -> None:
        """Answer what can be answered, in order."""
        while connection.queue and connection.is_open_here:
            pending = connection.queue[0]
            if not 0 <= pending.zxid <= self.tree.zxid:
                return
            connection.queue.popleft()
            if isinstance(pending.request, Get | Exists | Children):
                pending.result = self._read(connection, pending)
            connection.to_client((pending.xid, self.tree.zxid, pending.result))
            if isinstance(pending.request, CloseSession):
                connection.close_by_server()

    def drop_if_dead(self, connection: Connection) -> Callable[[], None]:
        def drop() -> None:
            if not self.is_alive:
                self.forget(connection)

        return drop

    def forget(self, connection: Connection) -> None:
        connection.is_open_here = False
        if connection in self._connections:
            self._connections.remove(connection)
        for watchers in self._watches.values():
            watchers.pop(connection, None)

    def drop_clients(self) -> None:
        for connection in list(self._connections):
            connection.close_by_server()

    def _read(self, connection: Connection, pending: Pending) -> Any:
        request = pending.request
        kind = "children" if isinstance(request, Children) else "data"
        try:
            match request:
                case Get(path):
                    result: Any = self.tree.get(path)
                case Exists(path):
                    result = self.tree.get(path)[1] if path in self.tree.nodes else None
                case Children(path):
                    result = self.tree.children(path)
                case _:
                    raise AssertionError(request)
        except NoNode as error:
            return error
        if pending.watch:
            self._watches.setdefault((kind, path), {})[connection] = None
        return result

    # --- the other servers

    def _forward(self, what: Callable[[], None]) -> None:
        term = self.ensemble.term

        def arrive() -> None:
            leader = self.ensemble.leader
            if leader is None or term != self.ensemble.term or leader.is_isolated:
                return
            if self.is_linked and not self.is_isolated:
                leader.run(what)

        self._to_leader.send(arrive)

    def hear_of(self, transaction: Transaction, *, is_leader: bool) -> None:
        """Apply a transaction, the leader at once, the others as late as they lag, in order."""
        if is_leader:
            self.apply_until(transaction.zxid)
            return
        now_ms = self.timeline.now_ms
        self._applying_ms = max(self._applying_ms, now_ms + self.timeline.between(0, self.lag_ms_max))
        self.timeline.at(self._applying_ms - now_ms, lambda: self.apply_if_linked(transaction.zxid))

    def apply_if_linked(self, zxid: int) -> None:
        if self.is_linked and self.is_well:
            self.apply_until(zxid)

    def apply_until(self, zxid: int) -> None:
        while self.tree.zxid < zxid:
            transaction = self.ensemble.log[self.tree.zxid]
            self.tree.apply(transaction.zxid, transaction.changes)
            for change in transaction.changes:
                self._fire(change)
        for connection in list(self._connections):
            self.drain(connection)

    def _fire(self, change: Change) -> None:
        fired = [("data", change.path)]
        if change.data is None:
            fired.append(("children", change.path))
        if change.data is None or change.is_new:
            fired.append(("children", change.path.rpartition("/")[0] or "/"))
        for key in fired:
            for connection in self._watches.pop(key, {}):
                connection.to_client(key)


@dataclass
class Ensemble:
    timeline: Timeline
    size: int = 3
    delay_ms_max: int = 4
    lag_ms_max: int = 20
    election_ms_max: int = 700
    tick_ms: int = TICK_MS
    on_commit: Callable[[int, tuple[Change, ...]], None] = lambda session_id, changes: None
    on_request: Callable[[Process, Request], bool] = lambda process, request: (
        True
    )  # False: it and what follows is lost
    head: Tree = field(default_factory=Tree)  # what is decided
    log: list[Transaction] = field(default_factory=list)
    sessions: dict[int, Session] = field(default_factory=dict)
    term: int = 1  # of its own leader: nothing of ours

    def __post_init__(self) -> None:
        self._lines: dict[tuple[str, int], Line] = {}
        self._session_ids = 0
        self.servers = [Server(self.timeline, self, index) for index in range(self.size)]
        self.leader: Server | None = self.servers[0]
        self.timeline.every(self.tick_ms, self._tick)
        self._ill_ms: dict[int, int] = {}  # server: since when the others hear nothing of it
        self._elect_ms = 0

    def line(self, client: str, server: int) -> Line:
        return self._lines.setdefault((client, server), Line())

    def lines(self, client: str) -> list[Line]:
        return [self.line(client, server.index) for server in self.servers]

    # --- faults

    def restart(self, server: Server) -> None:
        """Start a killed server again: its tree was on its disk, its clients are gone."""
        server.is_alive, server.is_stopped = True, False
        server.is_linked = False
        server.drop_clients()

    def kill(self, server: Server) -> None:
        connections = list(server._connections)
        server.kill()
        for connection in connections:
            connection.close_by_server()
        self._ill_ms[server.index] = -ISOLATED_MS  # the others see the connection end at once

    # --- sessions

    def open_session(self, session_id: int, timeout_ms: int, server: Server) -> Session | None:
        """Return the session, now at `server`; None: it has ended."""
        if session_id == 0:
            self._session_ids += 1
            session_id = self._session_ids
            self.sessions[session_id] = Session(session_id, timeout_ms, 0, server)
        session = self.sessions.get(session_id)
        if session is not None:
            session.server = server
            self.touch(session)
        return session

    def touch(self, session: Session) -> None:
        session.deadline_ms = self.timeline.now_ms + session.timeout_ms

    def expire(self, session: Session) -> None:
        """End it, whatever the clock says."""
        self.timeline.tell(f"--- session {session.session_id} expires")
        self._end_session(session)

    def delete(self, paths: list[str]) -> None:
        """Delete nodes, as somebody else does."""
        self._commit(0, tuple(Delete(path) for path in paths))

    def _end_session(self, session: Session) -> None:
        if session.is_open:
            session.is_open = False
            del self.sessions[session.session_id]
            paths = self.head.ephemerals(session.session_id)
            self._commit(session.session_id, tuple(Delete(path) for path in paths))

    # --- the leader's part

    def lead(self, server: Server, connection: Connection, session: Session, pending: Pending) -> None:
        """Decide one write, at the leader."""
        request = pending.request
        if not session.is_open:
            pending.result = SessionExpired()
        elif session.server is not server:
            pending.result = SessionMoved()
        elif isinstance(request, CloseSession):
            self._end_session(session)
        elif isinstance(request, Multi):
            pending.result = self._commit(session.session_id, request.operations)
        pending.zxid = self.head.zxid
        server.drain(connection)

    def _commit(self, session_id: int, operations: tuple[Operation, ...]) -> list[Any]:
        results, changes = self.head.execute(session_id, operations)
        transaction = Transaction(self.head.zxid, changes)
        self.log.append(transaction)
        if changes:
            self.on_commit(session_id, changes)
        for server in self.servers:
            server.hear_of(transaction, is_leader=server is self.leader)
        return results

    # --- the quorum

    def _tick(self) -> None:
        now_ms = self.timeline.now_ms
        for server in self.servers:
            if server.is_well:
                self._ill_ms.pop(server.index, None)
            else:
                self._ill_ms.setdefault(server.index, now_ms)
        if self.leader is None:
            if now_ms >= self._elect_ms:
                self._elect()
            return
        for server in self.servers:
            is_cut_off = server.is_isolated and server is not self.leader
            limit_ms = ISOLATED_MS if is_cut_off else SYNC_LIMIT_MS
            if server.is_linked and now_ms - self._ill_ms.get(server.index, now_ms) >= limit_ms:
                self._unlink(server)
            elif not server.is_linked and server.is_well:
                self._link(server)
        if not self.leader.is_linked or 2 * sum(s.is_linked for s in self.servers) <= self.size:
            self._lose_leader()
            return
        if self.leader.is_well:
            for session in [s for s in self.sessions.values() if s.deadline_ms < now_ms]:
                self.expire(session)

    def _unlink(self, server: Server) -> None:
        server.is_linked = False
        server.run(server.drop_clients)  # a stopped one finds out when it goes on

    def _link(self, server: Server) -> None:
        server.drop_clients()  # of a membership that has ended
        server.is_linked = True
        server.apply_until(len(self.log))

    def _lose_leader(self) -> None:
        assert self.leader is not None
        self.timeline.tell(f"--- {self.leader.name} leads the ensemble no more")
        self.leader = None
        self.term += 1
        for server in self.servers:
            if server.is_linked:
                self._unlink(server)
        self._elect_ms = self.timeline.now_ms + self.timeline.between(100, self.election_ms_max)

    def _elect(self) -> None:
        well = [server for server in self.servers if server.is_well]
        if 2 * len(well) <= self.size:
            return
        self.leader = self.timeline.random.choice(well)
        self.timeline.tell(f"--- {self.leader.name} leads the ensemble")
        for server in well:
            self._link(server)
        for session in self.sessions.values():
            self.touch(session)


def value_of(result: Any) -> Any:
    """Return what a request of one operation returned. :raises ZkError: it failed."""
    if isinstance(result, ZkError):
        raise result
    return result


def _size(request: Request) -> int:
    if isinstance(request, Multi):
        return sum(
            len(o.path) + (len(o.data) if isinstance(o, Create | Set) else 0) for o in request.operations
        )
    return 0

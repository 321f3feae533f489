"""One ZooKeeper session: requests that end in time, and the attendant that does what the core of leadership says.

The attendant is the only one that touches the core: everything that happens (kazoo's states, answers, watches, wishes of
callers) is an event in its queue, everything it does is a request that answers by an event, so that it never waits for
ZooKeeper. It runs in a thread or a greenlet of kazoo's handler, and so does nothing of this package block a hub.

Callers wait in `ask`, `finish` and `claim`, all of which end when the session does, however silent the servers are.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from kazoo.exceptions import (
    AuthFailedError,
    BadVersionError,
    ConnectionLoss,
    NoAuthError,
    NodeExistsError,
    NoNodeError,
    NotEmptyError,
    OperationTimeoutError,
    RequestTimeoutError,
    RolledBackError,
    RuntimeInconsistency,
    SessionExpiredError,
    SessionMovedError,
    ZookeeperError,
)
from kazoo.protocol.states import EventType, KazooState, KeeperState

from stoker.zk.client import make_client, now_ms
from stoker.zk.codec import encode_term, read_term
from stoker.zk.core import leadership as core
from stoker.zk.core.append import SENDINGS_MAX, never_answered
from stoker.zk.errors import Corrupt, Denied, Fenced, JournalError, Unavailable
from stoker.zk.layout import Layout
from stoker.zk.paths import ZkUrl

_log = logging.getLogger(__name__)

START_MS_MIN = 5_000  # a first connection may take this long, also where the session's timeout is shorter
CLOSE_S = 1.0
LOOK_S = 0.25  # a waiting caller looks this often whether the session has ended; normally it is woken
TICK_S_MAX = 0.5
RETRY_S = 0.01
REFUSED_S = 0.5  # before what a server refused, for no reason that we know, is sent again
SERVER_S = 1.0  # for each server to say why it does not serve
OK_REPLY_BYTES_MAX = 4096

Request = Callable[[Any], Any]  # takes kazoo's client, returns its asynchronous result


def getting(path: str) -> Request:
    """Return the request for a znode's (data, stat)."""
    return lambda client: client.get_async(path)


def listing(path: str) -> Request:
    """Return the request for the names of a znode's children."""
    return lambda client: client.get_children_async(path)


def deleting(path: str) -> Request:
    """Return the request that deletes a znode."""
    return lambda client: client.delete_async(path)


def writing(operations: Sequence[Operation]) -> str:
    """Say what a transaction is, in an error."""
    size = sum(len(part) for _, parts in operations for part in parts if isinstance(part, bytes))
    return f"a write of {len(operations)} operations, {size} bytes of data,"


class AnswerLost(Exception):
    """The connection broke, or a server could not say: the request may have been done. Never leaves this package.

    `was_sent`: there was a connection, so it went out.
    """

    def __init__(self, text: str = "", *, was_sent: bool = True) -> None:
        super().__init__(text)
        self.was_sent = was_sent


class Sendings:
    """The sendings of one request, which is not sent for ever."""

    def __init__(self, session: Session, what: str) -> None:
        self._session = session
        self._what = what
        self._lost_count = 0

    def await_next(self, lost: AnswerLost) -> None:
        """Wait until it can be sent again. :raises JournalError: the session is over, or it was sent often enough."""
        self._lost_count += lost.was_sent
        if self._lost_count >= SENDINGS_MAX:
            raise Unavailable(never_answered(self._what)) from lost
        self._session.wait_connected()


def write_fenced(
    session: Session, fence: Operation, operations: Sequence[Operation], taken: Callable[[], Fenced]
) -> None:
    """Do all operations under `fence`, also where that has to be sent more than once. `taken`: of the fence, when it was moved.

    Only for what may be found done already: the creation and deletion of nodes that nobody but this session touches.

    :raises Fenced, JournalError: somebody else changes what is ours; or it was not done, perhaps.
    """
    is_doubtful = False
    sendings = Sendings(session, writing(operations))
    while True:
        try:
            session.transact(fence, *operations)
            return
        except AnswerLost as lost:
            is_doubtful = True
            sendings.await_next(lost)
        except BadVersionError as error:
            raise taken() from error
        except (NodeExistsError, NoNodeError, NotEmptyError) as error:
            if is_doubtful:
                return
            raise Fenced(f"somebody else changes {session.layout.root}: {error!r}") from error


class Session:
    """See the module. `start`, then anything, then `close`."""

    def __init__(
        self,
        place: ZkUrl,
        *,
        member: str,
        candidate: str,
        owner: str,
        session_timeout_ms: int,
        gevent: bool,
        client: Any = None,
        now_ms: Callable[[], int] = now_ms,
    ) -> None:
        """`owner` is written into the epoch; it must be unlike that of any other session.

        `client` and `now_ms`: what stands for kazoo's client and for the clock, in a simulation.
        """
        self._place = place
        self.layout = Layout(place.path)
        self._member = member
        self._candidate = candidate
        self._session_timeout_ms = session_timeout_ms
        self._now_ms = now_ms
        self._client = client or make_client(place, session_timeout_ms=session_timeout_ms, gevent=gevent)
        self.handler = self._client.handler
        self._core = core.Leadership(candidate=candidate, owner=owner)
        # Few at a time: a probe and a list wait for the one before, and `_note_contact` leaves most answers out.
        self._events = self.handler.queue_impl()
        self._linked = self.handler.event_object()  # set while connected, and after the end
        self._turn = self.handler.event_object()  # it is our turn, or the end
        self._decided = self.handler.event_object()  # we lead, or the end
        self._ended = self.handler.event_object()
        self._failure: JournalError | None = None
        self._on_end: list[Callable[[], None]] = []
        self._members: dict[str, str] = {}  # by election node
        self._noted_ms = 0
        self._is_started = self._is_closed = False

    # For callers

    def start(self) -> None:
        """Connect. :raises Unavailable: no server serves us in time; the text says why each does not."""
        assert not self._is_started, "start once"
        self._is_started = True
        self._client.add_listener(self._on_state)
        self._client.start_async()
        self.handler.spawn(self._attend)
        self._linked.wait(max(START_MS_MIN, self._session_timeout_ms) / 1000)
        if not self._client.connected:
            reason = self._why_not()
            self.close()
            raise Unavailable(reason)

    def post(self, event: core.Event) -> None:
        """Tell the attendant what happened. Never blocks; any thread or greenlet may call."""
        self._events.put(event)

    def wait_turn(self, timeout_ms: int | None) -> bool:
        """Wait until nobody stands before us. :raises JournalError: the session ended."""
        self._turn.wait(None if timeout_ms is None else timeout_ms / 1000)
        self.check_alive()
        return bool(self._turn.is_set())

    def claim(self) -> core.Lead:
        """Take the epoch; it must be our turn. :raises JournalError: the session ended, or somebody else has the epoch."""
        self.check_alive()
        if self._core.phase is not core.Phase.FIRST:
            raise Unavailable("it is not this scheduler's turn to lead")
        self.post(core.Claimed())
        self._decided.wait()
        self.check_alive()
        assert self._core.lead is not None
        return self._core.lead

    def check_alive(self) -> None:
        """:raises JournalError: the session is over."""
        if self._core.end is not None:
            raise self._error(self._core.end)
        if self._is_closed or not self._is_started:
            raise Unavailable(
                "the ZooKeeper session is closed" if self._is_closed else "there is no ZooKeeper session"
            )

    def check_time(self) -> None:
        """Say whether a leader may act now. :raises JournalError: the session or its time is over."""
        self.check_alive()
        if self._core.is_late(self._now_ms()):
            self.post(core.Expired(LATE))
            raise Unavailable(LATE)

    def now_ms(self) -> int:
        """Return the time by the clock that deadlines are told by."""
        return self._now_ms()

    @property
    def members(self) -> tuple[str, ...]:
        known = self._members
        return tuple(known[node] for node in self._core.candidates if node in known)

    def on_end(self, call: Callable[[], None]) -> None:
        """Have `call` called once the session is over; it must not block."""
        self._on_end.append(call)
        if self._ended.is_set():
            call()

    def ask(self, request: Request) -> Any:
        """Return the answer to a request that may be done twice: it is sent again whenever its answer was lost.

        :raises NoNodeError, NodeExistsError, BadVersionError, NotEmptyError: kazoo's, for the caller in this package.
        :raises JournalError: the session ended; no right; no answer to any of SENDINGS_MAX sendings.
        """
        sendings = Sendings(self, "a request")
        while True:
            try:
                return self.finish(self.begin(request))
            except AnswerLost as lost:
                sendings.await_next(lost)

    def names_in(self, folder: str) -> list[str]:
        """Return the names of the children of one of the journal's own nodes. :raises Corrupt: somebody deleted it."""
        try:
            names: list[str] = self.ask(listing(folder))
        except NoNodeError as error:
            raise Corrupt(f"{folder} was deleted: the journal is not whole") from error
        return names

    def begin(self, request: Request) -> tuple[Any, int]:
        """Send a request, and return what `finish` wants; so several can be on their way, in order."""
        self.check_alive()
        return request(self._client), self._now_ms()

    def finish(self, begun: tuple[Any, int]) -> Any:
        """Return the answer to a request. :raises AnswerLost: it may have been done; else as `ask`."""
        result, _ = begun
        was_sent = not result.ready()  # without a connection a request fails at once
        while not result.ready():
            result.wait(LOOK_S)
            if not result.ready():
                self.check_alive()
        try:
            return result.get(block=False)
        except (
            *_DOUBTFUL,
            self.handler.timeout_exception,
        ) as error:  # the latter is no Exception under gevent
            raise AnswerLost(str(error), was_sent=was_sent) from error
        except _FOR_CALLERS:
            raise
        except Exception as error:
            raise self._translated(error) from error

    def transact(self, *operations: Operation) -> None:
        """Do all operations, or none. :raises: as `send`: the error of the operation that was refused."""
        self.finish_transaction(self.begin_transaction(*operations))

    def begin_transaction(self, *operations: Operation) -> tuple[Any, int]:
        def request(client: Any) -> Any:
            transaction = client.transaction()
            for name, arguments in operations:
                getattr(transaction, name)(*arguments)
            return transaction.commit_async()

        self.check_alive()
        sent_ms = self._now_ms()
        return request(self._client), sent_ms

    def finish_transaction(self, begun: tuple[Any, int]) -> list[Any]:
        """Return the results of all operations. :raises AnswerLost, kazoo's and ours: see `ask`."""
        results: list[Any] = self.finish(begun)
        self._note_contact(begun[1])  # done or refused, a quorum has said so
        refusals = [r for r in results if isinstance(r, Exception)]
        for refusal in refusals:
            if not isinstance(refusal, (RolledBackError, RuntimeInconsistency)):
                raise refusal if isinstance(refusal, _FOR_CALLERS) else self._translated(refusal)
        if refusals:
            raise Unavailable(f"ZooKeeper refused a transaction and did not say why: {refusals}")
        return results

    def _note_contact(self, sent_ms: int) -> None:
        """Tell the attendant, but not of each of a thousand answers a second."""
        if sent_ms - self._noted_ms >= self._core.probe_interval_ms // 4:
            self._noted_ms = sent_ms
            self.post(core.Answered(sent_ms))

    def wait_connected(self) -> None:
        """Wait until the session is connected (again). :raises JournalError: it is over."""
        self.handler.sleep_func(RETRY_S)  # its loss may not have been told yet, or a server keeps refusing
        while not self._linked.wait(LOOK_S):
            self.check_alive()
        self.check_alive()

    def close(self) -> None:
        """End the session, which deletes our election node. Bounded, idempotent; callers that wait are told."""
        if self._is_closed:
            return
        self._is_closed = True
        self.post(core.Expired("closed"))
        if not self._is_started:
            return
        closed = self.handler.event_object()

        def stop() -> None:
            try:
                self._client.stop()
                self._client.close()
            except Exception as error:  # kazoo's, about its own threads: nobody can act on it
                _log.warning("kazoo did not stop well: %s", error)
            closed.set()

        self.handler.spawn(stop)
        for _ in range(2):
            if closed.wait(CLOSE_S):
                return
            self._client.drop()  # nobody answers the goodbye
        _log.warning("the ZooKeeper session could not be closed in time; it runs out by itself")

    # The attendant

    def _on_state(self, state: str) -> None:
        """Kazoo's listener: runs in its connection loop, so it only notes."""
        if state == KazooState.CONNECTED:
            self.post(core.Connected(self._client.asked_ms, self._client.negotiated_ms))
            self._linked.set()
        elif state == KazooState.SUSPENDED:
            self._linked.clear()
            self.post(core.Suspended())
        else:
            expired = self._client.client_state == KeeperState.EXPIRED_SESSION
            self.post(
                core.Expired("the ZooKeeper session expired" if expired else "the ZooKeeper session ended")
            )

    def _attend(self) -> None:
        try:
            while self._core.end is None:
                for command in self._next_commands():
                    self._perform(command)
        except Exception as error:
            _log.exception("the ZooKeeper session is given up")
            self._fail(Unavailable(f"the ZooKeeper session is given up: {error!r}"))
            self._perform_end(self._core.observe(core.Expired(repr(error))))

    def _next_commands(self) -> list[core.Command]:
        commands: list[core.Command] = []
        try:
            event = self._events.get(timeout=self._tick_s())
        except self.handler.queue_empty:
            event = None
        if event is not None:
            commands += self._core.observe(event)
        if isinstance(event, core.CandidatesSeen):
            self._read_members(event.nodes)
        if isinstance(event, core.Connected) and self._core.phase is core.Phase.LEADING:
            self._watch_epoch()  # the watch went with the connection
        return commands + self._core.observe(core.Ticked(self._now_ms()))

    def _tick_s(self) -> float:
        return min(TICK_S_MAX, self._core.probe_interval_ms / 2000) if self._core.timeout_ms else TICK_S_MAX

    def _perform(self, command: core.Command) -> None:  # noqa: C901
        match command:
            case core.Probe(fence):
                self._probe(fence)
            case core.Reconnect():
                _log.warning("a ZooKeeper server does not answer: trying another")
                self._client.drop()
            case core.Enter():
                self._enter()
            case core.Withdraw(node):
                self._request(lambda client: client.delete_async(self.layout.candidate(node)), _nothing)
            case core.ListCandidates():
                self._list_candidates()
            case core.ReadTerm():
                self._request(lambda client: client.sync_async(self.layout.epoch), _nothing)
                self._request(getting(self.layout.epoch), _term_seen, _term_refused)
            case core.WriteTerm():
                self._write_term(command)
            case core.TakeTurn():
                self._turn.set()
            case core.Lead():
                self._watch_epoch()
                self._decided.set()
            case core.End():
                self._perform_end([command])

    def _perform_end(self, commands: Sequence[core.Command]) -> None:
        for command in commands:
            assert isinstance(command, core.End)
            _log.info("the ZooKeeper session is over: %s", command.reason)
        for event in (self._ended, self._turn, self._decided, self._linked):
            event.set()
        for call in self._on_end:
            call()

    def _request(
        self,
        request: Request,
        answered: Callable[[Any], core.Event | None],
        refused: Callable[[Exception], core.Event | None] = lambda error: None,
    ) -> None:
        """Send a request whose outcome becomes an event, as `answered` and `refused` translate it."""

        def done(result: Any) -> None:  # in kazoo's thread, or in the hub: must not block
            error = result.exception
            if isinstance(error, NoAuthError):
                self._fail(self._translated(error))
                self.post(core.Expired("no right"))
                return
            try:
                event = answered(result.value) if error is None else refused(error)
            except JournalError as failure:  # what was read is damaged or too new
                self._fail(failure)
                event = core.Expired(str(failure))
            if isinstance(event, _AGAIN) and not isinstance(error, _DOUBTFUL):
                self.handler.spawn(
                    self._post_later, event
                )  # a server that refuses would be asked without end
            elif event is not None:
                self.post(event)

        request(self._client).rawlink(done)

    def _post_later(self, event: core.Event) -> None:
        self.handler.sleep_func(REFUSED_S)
        self.post(event)

    def _probe(self, fence: int | None) -> None:
        sent_ms = self._now_ms()

        def sync(client: Any) -> Any:
            return client.sync_async(self.layout.root)

        def check(client: Any) -> Any:
            transaction = client.transaction()
            transaction.check(self.layout.epoch, fence)
            return transaction.commit_async()

        def checked(results: list[Any]) -> core.Event | None:
            if isinstance(results[0], (BadVersionError, NoNodeError)):
                return core.EpochLost(EPOCH_LOST)
            return None if isinstance(results[0], Exception) else core.Answered(sent_ms)

        if fence is None:
            self._request(sync, lambda _: core.Answered(sent_ms, is_quorum=False))
        else:
            self._request(check, checked)

    def _enter(self) -> None:
        def request(client: Any) -> Any:
            path = self.layout.candidate(core.node_prefix(self._candidate))
            return client.create_async(path, self._member.encode(), ephemeral=True, sequence=True)

        self._request(
            request, lambda path: core.Entered(path.rpartition("/")[2]), lambda _: core.EntryDoubtful()
        )

    def _list_candidates(self) -> None:
        def watch(event: Any) -> None:
            if event.type != EventType.NONE:  # at a broken connection all is listed again anyway
                self.post(core.CandidatesChanged())

        def refused(error: Exception) -> core.Event | None:
            return core.Expired("the election was taken away") if isinstance(error, NoNodeError) else None

        self._request(
            lambda client: client.get_children_async(self.layout.election, watch),
            lambda nodes: core.CandidatesSeen(tuple(nodes)),
            refused,
        )

    def _read_members(self, nodes: Sequence[str]) -> None:
        self._members = {node: who for node, who in self._members.items() if node in nodes}
        for node in nodes:
            if node not in self._members:
                self._read_member(node)

    def _read_member(self, node: str) -> None:
        def seen(answer: tuple[bytes, Any]) -> None:
            self._members[node] = answer[0].decode(errors="replace")

        self._request(getting(self.layout.candidate(node)), seen)

    def _write_term(self, command: core.WriteTerm) -> None:
        sent_ms = self._now_ms()

        def request(client: Any) -> Any:
            transaction = client.transaction()
            transaction.check(self.layout.candidate(command.node), -1)
            transaction.set_data(self.layout.epoch, encode_term(command.term), command.version)
            return transaction.commit_async()

        def answered(results: list[Any]) -> core.Event:
            self.post(core.Answered(sent_ms))
            if isinstance(results[0], NoNodeError) or isinstance(results[1], NoNodeError):
                return core.NodeMissing()
            if isinstance(results[1], BadVersionError):
                return core.TermChanged()
            if any(isinstance(result, Exception) for result in results):
                self._fail(Unavailable(f"ZooKeeper refuses the epoch: {results}"))
                return core.Expired("refused")
            return core.TermWritten(results[1].version)

        self._request(request, answered, _term_refused)

    def _watch_epoch(self) -> None:
        """Hear of it at once if somebody else takes the epoch; every write would be refused anyway."""
        lead = self._core.lead
        assert lead is not None
        lost = core.EpochLost(EPOCH_LOST)

        def watch(event: Any) -> None:
            if event.type != EventType.NONE:
                self.post(lost)

        def seen(answer: tuple[bytes, Any]) -> core.Event | None:
            return None if answer[1].version <= lead.fence else lost  # a server that is behind says less

        def refused(error: Exception) -> core.Event | None:
            return lost if isinstance(error, NoNodeError) else None

        self._request(lambda client: client.get_async(self.layout.epoch, watch), seen, refused)

    # Errors

    def _fail(self, error: JournalError) -> None:
        self._failure = self._failure or error

    def _error(self, end: core.End) -> JournalError:
        if self._failure is not None:
            return type(self._failure)(*self._failure.args)
        return Fenced(end.reason) if end.ending is core.Ending.FENCED else Unavailable(end.reason)

    def _translated(self, error: Exception) -> JournalError:
        if isinstance(error, NoAuthError):
            who = f"user {self._place.user!r}" if self._place.user else "nobody (the URL names no user)"
            return Denied(
                f"ZooKeeper gives {who} no right to {self.layout.root}: look at its ACL and the secret"
            )
        if isinstance(error, (SessionExpiredError, AuthFailedError)):
            self.post(core.Expired("the ZooKeeper session ended"))
            return Unavailable("the ZooKeeper session ended")
        if isinstance(error, ZookeeperError):
            return Unavailable(f"ZooKeeper refused a request: {type(error).__name__} {error}".rstrip())
        raise error

    def _why_not(self) -> str:
        """Return why no server takes us: asked of each, since a refused session says nothing."""
        said = [f"{host}:{port} {self._ask_server(host, port)}" for host, port in self._place.hosts]
        last = f" (last attempt: {self._client.last_failure})" if self._client.last_failure else ""
        return f"no ZooKeeper server can be reached: {'; '.join(said)}{last}"

    def _ask_server(self, host: str, port: int) -> str:
        try:
            connection = self.handler.create_connection((host.strip("[]"), port), timeout=SERVER_S)
            try:
                connection.settimeout(SERVER_S)
                connection.sendall(b"srvr")
                answer = connection.recv(OK_REPLY_BYTES_MAX).decode(errors="replace")
            finally:
                connection.close()
        except OSError as error:
            return f"does not answer: {error.strerror or error}"
        if "Mode: read-only" in answer:
            return "is read-only: it has lost the other servers"
        if "not currently serving" in answer:
            return "serves nobody: it has no quorum"
        return "answers, but grants no session" if "Mode: " in answer else "does not answer as ZooKeeper"


LATE = "ZooKeeper has not answered for two thirds of the session: its time to lead is over"
EPOCH_LOST = "another leader has taken the epoch"
Operation = tuple[str, tuple[Any, ...]]  # of kazoo's transaction: its name, its arguments
_DOUBTFUL = (ConnectionLoss, OperationTimeoutError, RequestTimeoutError, SessionMovedError)
_AGAIN = (core.EntryDoubtful, core.TermDoubtful)  # what makes the core ask once more
_FOR_CALLERS = (NoNodeError, NodeExistsError, BadVersionError, NotEmptyError)


def _nothing(_: object) -> None:
    return None


def _term_seen(answer: tuple[bytes, Any]) -> core.Event:
    return core.TermSeen(read_term(answer[0]), answer[1].version)


def _term_refused(error: Exception) -> core.Event:
    return core.NodeMissing() if isinstance(error, NoNodeError) else core.TermDoubtful()

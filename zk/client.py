"""KazooClient, as a leader can trust it. Touches no znode by itself; `session` is its only user.

What differs from kazoo's own, and why:

- A request while there is no connection fails at once. Kazoo keeps it, and sends it whenever there is one again.
- It has one session. When that has expired, no other is begun: an old leader must not write in a new session.
- An attempt to connect the session to another server is bounded by a part of its timeout, and the server that was left
  is tried last. Kazoo waits a whole timeout for one that does not answer, by when the session is gone.
- The negotiated timeout is told, and when the server was asked for it.
- `drop` ends the connection, for a server that takes requests but does not answer (kazoo's pings do not run while there
  are other requests).
- Kazoo logs every request at DEBUG level, credentials too: only its warnings are let through.
"""

from __future__ import annotations

import logging
import socket
import time
from typing import Any

from kazoo.client import KazooClient
from kazoo.exceptions import ConnectionLoss
from kazoo.handlers.threading import SequentialThreadingHandler
from kazoo.protocol.connection import STOP_CONNECTING, ConnectionHandler
from kazoo.protocol.serialization import Close, Connect
from kazoo.protocol.states import KeeperState
from kazoo.retry import KazooRetry
from kazoo.security import make_digest_acl

from stoker.zk.paths import ZkUrl

ATTEMPTS_PER_TIMEOUT = 6  # one server gets this part of the session's timeout to answer a connection
ATTEMPT_MS_MIN = 500
RETRY_S_MIN = 0.02
RETRY_S_MAX = 0.25
REPEAT_MS = 10_000
SAID_MAX = 100


def now_ms() -> int:
    """Return CLOCK_BOOTTIME, which also counts while the machine sleeps."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


class Quiet(logging.Filter):
    """Lets warnings through, the same one every REPEAT_MS only: kazoo says at each attempt that it did not connect."""

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[str, int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return False
        at_ms, text = now_ms(), record.getMessage()
        if at_ms - self._said.get(text, -REPEAT_MS) < REPEAT_MS:
            return False
        if len(self._said) >= SAID_MAX:
            self._said.clear()
        self._said[text] = at_ms
        return True


_log = logging.getLogger(__name__)
_log.addFilter(Quiet())


def make_client(place: ZkUrl, *, session_timeout_ms: int, gevent: bool) -> Client:
    """Return a client that is not started."""
    return Client(place, session_timeout_ms=session_timeout_ms, handler=_make_handler(gevent))


def _make_handler(gevent: bool) -> Any:
    if not gevent:
        return SequentialThreadingHandler()
    from kazoo.handlers.gevent import SequentialGeventHandler  # only where the process is gevent's

    return SequentialGeventHandler()


class Client(KazooClient):  # type: ignore[misc]
    """See the module."""

    def __init__(self, place: ZkUrl, *, session_timeout_ms: int, handler: Any) -> None:
        attempt_s = max(ATTEMPT_MS_MIN, session_timeout_ms // ATTEMPTS_PER_TIMEOUT) / 1000
        credentials = f"{place.user}:{place.secret}"
        super().__init__(
            hosts=",".join(f"{host}:{port}" for host, port in place.hosts),
            timeout=session_timeout_ms / 1000,
            handler=_bound_attempts(handler, attempt_s),
            auth_data=[("digest", credentials)] if place.user else [],
            default_acl=[make_digest_acl(place.user, place.secret, all=True)] if place.user else None,
            read_only=False,
            randomize_hosts=True,
            connection_retry=KazooRetry(
                max_tries=-1,
                delay=RETRY_S_MIN,
                backoff=2,
                max_jitter=0.3,
                max_delay=RETRY_S_MAX,
                sleep_func=handler.sleep_func,
            ),
            logger=_log,
        )
        self._connection = _Connection(self, self._conn_retry.copy(), logger=_log)
        self._connection.attempt_s = attempt_s

    @property
    def negotiated_ms(self) -> int:
        """The session's timeout as the ensemble granted it, 0 before there is a session."""
        return int(self._connection.negotiated_ms)

    @property
    def asked_ms(self) -> int:
        """When the newest connection that came about was asked for, by `now_ms`."""
        return int(self._connection.asked_ms)

    @property
    def last_failure(self) -> str:
        """Why the newest connection attempt failed, "" if none has."""
        return str(self._connection.last_failure)

    def drop(self) -> None:
        """End the connection now; another server is tried in the same session. Does not block."""
        wire = self._connection._socket
        if wire is not None:
            try:
                wire.shutdown(socket.SHUT_RDWR)
            except OSError:
                return  # it has ended by itself

    def _call(self, request: Any, async_object: Any) -> Any:
        if self._state is not KeeperState.CONNECTED and not isinstance(request, Close):
            async_object.set_exception(ConnectionLoss())
            return False
        return super()._call(request, async_object)


class _Connection(ConnectionHandler):  # type: ignore[misc]
    """Kazoo's connection loop; the differences are those that the module tells."""

    attempt_s = 1.0
    negotiated_ms = 0
    asked_ms = 0
    last_failure = ""
    _had_session = False
    _left: tuple[str, int] | None = None

    def _expand_client_hosts(self) -> list[tuple[str, str, int]]:
        found: list[tuple[str, str, int]] = super()._expand_client_hosts()
        if not found:
            self.last_failure = "no host name of the URL can be resolved"
        return sorted(found, key=lambda server: server[1:] == self._left)

    def _connect_attempt(self, host: str, hostip: str, port: int, retry: Any) -> Any:
        if self._had_session and self.client._session_id is None:
            return STOP_CONNECTING  # the session has expired
        return super()._connect_attempt(host, hostip, port, retry)

    def _connect(self, host: str, hostip: str, port: int) -> Any:
        try:
            result = super()._connect(host, hostip, port)
        except BaseException as error:  # gevent's timeouts are no Exceptions
            self.last_failure = f"{host}:{port}: {str(error) or type(error).__name__}"
            raise
        self._had_session, self._left = True, (hostip, port)
        return result

    def _invoke(self, timeout: float, request: Any, xid: int | None = None) -> Any:
        if not isinstance(request, Connect):
            return super()._invoke(timeout, request, xid)
        asked_ms = now_ms()
        # Before there is a session, none can run out.
        answer = super()._invoke(min(timeout, self.attempt_s) if self._had_session else timeout, request, xid)
        if answer[0].time_out > 0:
            self.negotiated_ms, self.asked_ms = answer[0].time_out, asked_ms
        return answer


def _bound_attempts(handler: Any, attempt_s: float) -> Any:
    """Give each TCP connection of `handler` at most `attempt_s` to come about."""
    connect = handler.create_connection

    def create_connection(*arguments: Any, timeout: float, **options: Any) -> Any:
        return connect(*arguments, timeout=min(timeout, attempt_s), **options)

    handler.create_connection = create_connection
    return handler

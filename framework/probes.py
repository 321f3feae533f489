"""Looks whether the machines of silent executors answer: one TCP connection each to where the executor listens.

A connection that is taken, or refused, shows that the machine is there; nothing is sent. What gets no answer in time, or
cannot be reached or resolved, counts as away. (So does an executor that hangs with a full queue of callers: it is ended
later then.) Each runs in a greenlet; what finds PROBES_MAX under way is dropped, and asked again by the tick.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any

import gevent
import gevent.monkey
from gevent import socket
from gevent.threadpool import ThreadPool

from stoker.framework.core.actions import ProbeExecutor
from stoker.framework.core.events import ExecutorProbed
from stoker.framework.journaling import retire

PROBE_TIMEOUT_MS = 2_000  # long enough for a second SYN
LOOKUPS_MAX = (
    4  # of names at once, in threads of their own: that of a dead name server holds up no one else's
)
PROBES_MAX = 256  # under way: more than frames ask for within the timeout

log = logging.getLogger(__name__)


class Probes:
    """See the module. `put` and `spawn` are Loop's."""

    def __init__(
        self,
        put: Callable[..., bool],
        spawn: Callable[..., gevent.Greenlet],
        *,
        timeout_ms: int = PROBE_TIMEOUT_MS,
    ) -> None:
        self._put = put
        self._spawn = spawn
        self._timeout_ms = timeout_ms
        self._running: set[int] = set()  # launch ids
        self._lookups = ThreadPool(LOOKUPS_MAX)

    def close(self) -> None:
        """Nothing may follow."""
        retire(self._lookups)

    def perform(self, action: ProbeExecutor) -> None:
        """Begin to look; ExecutorProbed follows. Never blocks."""
        if action.launch_id in self._running or len(self._running) >= PROBES_MAX:
            log.debug("the probe of launch %d is left out: %d are under way", action.launch_id, PROBES_MAX)
            return
        self._running.add(action.launch_id)
        self._spawn(self._probe, action)

    def _probe(self, action: ProbeExecutor) -> None:
        try:
            is_there = answers(action.host, action.port, self._timeout_ms, self._lookups)
        finally:
            self._running.discard(action.launch_id)
        if not is_there:
            log.info(
                "the machine of launch %d does not answer at %s:%d",
                action.launch_id,
                action.host,
                action.port,
            )
        self._put(ExecutorProbed(action.launch_id, is_there))


def answers(host: str, port: int, timeout_ms: int, lookups: ThreadPool) -> bool:
    """Return whether the machine answers a connection within the timeout, be it with a refusal."""
    with gevent.Timeout(timeout_ms / 1000, False):
        try:
            found = lookups.apply(_getaddrinfo, (host, port, 0, socket.SOCK_STREAM))
        except (OSError, ValueError):  # the latter of what is no name at all
            return False
        return any(_is_there(family, address) for family, _, _, _, address in found)
    return False


def _is_there(family: int, address: tuple[Any, ...]) -> bool:
    with contextlib.closing(socket.socket(family, socket.SOCK_STREAM)) as connection:
        try:
            connection.connect(address)
        except ConnectionError:
            return True
        except OSError:
            return False
    return True


_getaddrinfo = gevent.monkey.get_original("socket", "getaddrinfo")

"""Telling executors where the leader is, through Mesos, when they do not find it by themselves.

An executor that lost every scheduler it knew heartbeats into the void. The leader knows the launch and its agent, so it
sends the list of schedulers as a framework message, again and again with growing pauses, until the executor reports. The
message carries the epoch: a keeper takes none that is older than what it has seen. Sent twice, or late, it does no harm.

Owns no decision: whom the leader misses is read off catalog and fleet.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import gevent

from stoker.executor.messages import Summons as Message
from stoker.executor.messages import encode
from stoker.framework.clock import now_ms
from stoker.framework.core.catalog import Catalog, Launch
from stoker.framework.core.fleet import Fleet
from stoker.framework.errors import NotLeading

MISSED_MS = 3_000  # of silence: an executor that knows a living scheduler has reported before
REPEAT_MS_MIN = 1_000
REPEAT_MS_MAX = 60_000
LOOK_INTERVAL_MS = 1_000
MESSAGES_A_LOOK_MAX = 200

log = logging.getLogger(__name__)


class Missed(NamedTuple):
    """An executor that does not report, and for how long."""

    launch: Launch
    silent_ms: int


class Summons:
    """See the module. `run` is for a greenlet of the leadership, which ends with it."""

    def __init__(
        self,
        read: Callable[[Callable[[Catalog, Fleet], Any]], Any],
        send: Callable[[str, str, bytes], bool],
        schedulers: Callable[[], tuple[str, ...]],
    ) -> None:
        """`read` is Loop.peek, `send(executor id, agent id, data)` MesosShell's."""
        self._read = read
        self._send = send
        self._schedulers = schedulers
        self._next: dict[int, tuple[int, int]] = {}  # launch: (when, the pause after it)

    def run(self) -> None:
        while True:
            gevent.sleep(LOOK_INTERVAL_MS / 1000)
            try:
                self.look(now_ms())
            except NotLeading:
                return

    def look(self, at_ms: int) -> None:
        """Send to whoever is missed and due. :raises NotLeading: ..."""
        epoch, missed = self._read(
            lambda catalog, fleet: (catalog.epoch, who_is_missed(catalog, fleet, at_ms))
        )
        ids = {one.launch.launch_id for one in missed}
        self._next = {launch_id: due for launch_id, due in self._next.items() if launch_id in ids}
        data = encode(Message(epoch, self._schedulers()))
        sent = 0
        for one in missed:
            when_ms, pause_ms = self._next.get(one.launch.launch_id, (at_ms, REPEAT_MS_MIN))
            if when_ms > at_ms or sent >= MESSAGES_A_LOOK_MAX:
                continue
            sent += 1
            if self._send(one.launch.task_id, one.launch.agent_id, data):
                log.info(
                    "told executor %s where the leader is: silent_ms=%d", one.launch.task_id, one.silent_ms
                )
            self._next[one.launch.launch_id] = (at_ms + pause_ms, min(2 * pause_ms, REPEAT_MS_MAX))


def who_is_missed(catalog: Catalog, fleet: Fleet, at_ms: int) -> list[Missed]:
    """Return the launches whose executors should report here and have not for MISSED_MS, by launch."""
    if not fleet.subscribed:
        return []
    missed = []
    for launch_id, seen in sorted(fleet.launches.items()):
        executor = fleet.executors.get(launch_id)
        if executor is None and not seen.is_inherited:
            continue  # it was started with the present list of schedulers
        silent_ms = fleet.waited_ms(seen, at_ms) if executor is None else fleet.silent_ms(executor, at_ms)
        if silent_ms >= MISSED_MS and launch_id in catalog.launches:
            missed.append(Missed(seen.launch, silent_ms))
    return missed

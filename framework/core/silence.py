"""Whether the fault for executors' silence is on our side: most of a fleet does not hang at once.

A scheduler that executors cannot reach (a wrong address, a firewall) hears nobody, while Mesos would carry out what it
orders. A part of the fleet (observed, volatile).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stoker.framework.core.fleet import ExecutorSeen, LaunchSeen

EXPLAINED_STATES = frozenset({"TASK_UNREACHABLE", "TASK_STAGING", "TASK_STARTING"})  # Mesos tells why


class MassSilence:
    """`reason` tells of it while it lasts, and for `limit_ms` more: one after the other may be heard again."""

    def __init__(self, limit_ms: int) -> None:
        self.reason = ""
        self._limit_ms = limit_ms
        self._seen_ms = 0

    def look(
        self,
        launches: Mapping[int, LaunchSeen],
        executors: Mapping[int, ExecutorSeen],
        now_ms: int,
        awake_ms: int,
    ) -> None:
        """Look anew. Nobody could be heard before `awake_ms`."""
        said = mass_silence(launches, executors, now_ms, awake_ms, self._limit_ms)
        if said:
            self.reason, self._seen_ms = said, now_ms
        elif now_ms - self._seen_ms > self._limit_ms:
            self.reason = ""


def mass_silence(
    launches: Mapping[int, LaunchSeen],
    executors: Mapping[int, ExecutorSeen],
    now_ms: int,
    awake_ms: int,
    limit_ms: int,
) -> str:
    """Return what tells that more than half of two or more executors are silent at once, or nothing.

    They are looked at once one is silent for `limit_ms`; then the others count from half of that, since they do not
    all beat in one moment. Nobody could be heard before `awake_ms`. Launches on their way up, and those whose silence
    Mesos explains, do not count. An executor of an earlier leadership that was never heard is silent.
    """
    if now_ms - awake_ms <= limit_ms:
        return ""
    since_ms = now_ms - limit_ms // 2
    silent = sum(seen.heard_ms < since_ms for seen in executors.values())
    if 2 * (silent + len(launches) - len(executors)) <= len(launches):
        return ""  # as a rule; what follows looks at each
    count = silent = 0
    longest_ms = 0
    for launch_id, launch in launches.items():
        executor = executors.get(launch_id)
        if executor is None and not launch.is_inherited:
            continue
        last_ms = launch.since_ms if executor is None else executor.heard_ms
        is_silent = last_ms < since_ms
        if is_silent and launch.task_state in EXPLAINED_STATES:
            continue
        count += 1
        silent += is_silent
        longest_ms = max(longest_ms, now_ms - last_ms)
    if count < 2 or 2 * silent <= count or longest_ms <= limit_ms:
        return ""
    return f"{silent} of {count} executors are silent at once"

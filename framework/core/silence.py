"""Why executors are silent: what is observed of it, and what it is taken for. A part of the fleet (volatile).

An executor that hangs must be ended, and Mesos does not notice it. One whose machine is cut off must not be: the order
would wait for it, and end a healthy executor when the network is mended. So the machine is asked (`Doubt`): while an
executor is silent a connection to its port is tried again and again. A machine that answers, be it with a refusal, is
there; then the executor hangs, or is cut off from us alone. One that does not is cut off, or off, and left to Mesos.

Most of a fleet does not hang at once (`MassSilence`): a scheduler that executors cannot reach (a wrong address, a firewall)
hears nobody, while Mesos would carry out what it orders.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stoker.framework.model import Settings

if TYPE_CHECKING:
    from stoker.framework.core.seen import ExecutorSeen, LaunchSeen

EXPLAINED_STATES = frozenset({"TASK_UNREACHABLE", "TASK_STAGING", "TASK_STARTING"})  # Mesos tells why


@dataclass(slots=True)
class Doubt:
    """What is known of one executor's silence, and what was done about it. It ends when the executor is heard."""

    there_ms: int | None = None  # when its machine answered last
    is_away: bool = False  # it did not when it was asked last, or Mesos did not reach it
    back_ms: int | None = None  # when it answered again after that
    probe_next_ms: int = 0
    shutdown_tries: int = 0  # it was told to end
    shutdown_next_ms: int = 0

    def probing(self, now_ms: int, settings: Settings) -> None:
        self.probe_next_ms = now_ms + settings.probe_interval_ms

    def probed(self, now_ms: int, *, is_there: bool) -> None:
        if is_there:
            self.there_ms = now_ms
            self.back_ms = now_ms if self.is_away else self.back_ms
        self.is_away = not is_there

    def told_to_end(self, now_ms: int, settings: Settings) -> None:
        delay_ms = settings.kill_retry_ms * 2 ** min(self.shutdown_tries, settings.kill_tries_max)
        self.shutdown_tries, self.shutdown_next_ms = self.shutdown_tries + 1, now_ms + delay_ms

    def hangs(self, now_ms: int, settings: Settings) -> bool:
        """Return whether an executor that is silent for too long hangs: its machine is there, and not only just back."""
        timeout_ms = settings.heartbeat_timeout_ms
        is_there = self.there_ms is not None and now_ms - self.there_ms <= timeout_ms and not self.is_away
        is_just_back = self.back_ms is not None and now_ms - self.back_ms <= timeout_ms
        return self.shutdown_tries > 0 or (is_there and not is_just_back)


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

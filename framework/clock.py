"""The scheduler's clock: stamps for events. The only place of this package that asks what time it is.

Durations are differences of CLOCK_BOOTTIME, which goes on in suspend. Unix time is a label that never goes back, not even
over a restart (`not_before_ms`: the newest label in the journal).
"""

from __future__ import annotations

import time

from stoker.framework.core.events import Stamp


def now_ms() -> int:
    """Return CLOCK_BOOTTIME in milliseconds; only differences mean something."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


class Clock:
    def __init__(self, *, not_before_ms: int = 0) -> None:
        self._wall_ms = not_before_ms
        self._event_id = 0

    def stamp(self) -> Stamp:
        """Return the next event's id and time."""
        self._event_id += 1
        return Stamp(self._event_id, now_ms(), self.wall_ms())

    def wall_ms(self) -> int:
        self._wall_ms = max(self._wall_ms, time.time_ns() // 1_000_000)
        return self._wall_ms

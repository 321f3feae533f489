"""When the lines of a recording are due here, and whether what came kept the recorded distances."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable
from pathlib import Path

from support.replay.recording import Entry
from support.replay.wire import Clock

TICK_S = 1.0  # of the recorded allocator: what waits for it may be that much later or earlier
EARLY_S = 1.2
# of a busy machine, in seconds of this run
LATE_S = 0.3

_MEASURED = re.compile(r"(?<![>\d.] )(?<![\d.])(\d+(?:\.\d+)?) s\b")


def held_up_s(*pids: int) -> float:
    """Return how long the main threads of processes were ready to run and had no processor; 0 where the kernel does not tell."""
    waited_ns = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            waited_ns += int(Path(f"/proc/{pid}/schedstat").read_text().split()[1])
    return waited_ns / 1e9


class Timing:
    """The clock of one run, `scale` times as fast as the recording's."""

    def __init__(self, clock: Clock, scale: float, patience_s: float) -> None:
        self.clock, self.scale, self.patience_s = clock, scale, patience_s
        self._actions: list[tuple[int, float]] = []  # (recorded ms, when it was done here)
        self._arrivals: list[tuple[int, float]] = []
        self._start = time.monotonic()
        self._offset = 0.0  # by how much this run is later than the recording's times
        self._before_ms = 0
        self._now_ms = 0

    def align(self, phase_ms: int | None, tick_at: float | None) -> None:
        """Begin now, or within a tick so that the allocator's ticks fall where they did in the recording."""
        self._start = time.monotonic()
        if phase_ms is not None and tick_at is not None:
            interval = TICK_S / self.scale
            late = (self._start + phase_ms / 1000 / self.scale - tick_at) % interval
            time.sleep(interval - late)
            self._start += interval - late

    def begin(self, entry: Entry) -> None:
        self.clock.line = entry.index
        self._before_ms, self._now_ms = self._now_ms, entry.t_ms

    def since_before(self) -> float:
        """Return how long after the line before it the present one is due."""
        return (self._now_ms - self._before_ms) / 1000 / self.scale

    def pace(self, entry: Entry) -> None:
        """Wait until it is as late as it was in the recording."""
        due = self._due(entry)
        with self.clock.changed:
            left = max(0.0, due - time.monotonic())
            self.clock.changed.wait_for(lambda: time.monotonic() >= due, timeout=left)

    def done(self, entry: Entry) -> None:
        now = time.monotonic()
        self._actions.append((entry.t_ms, now))
        self._offset += max(0.0, now - self._due(entry))

    def arrived(self, entry: Entry, at: float) -> None:
        self._arrivals.append((entry.t_ms, at))
        self._offset += max(0.0, time.monotonic() - self._due(entry))

    def wait(self, condition: Callable[[], bool]) -> bool:
        """Wait for `condition`; return whether it came true in good time."""
        deadline = time.monotonic() + self.patience_s + 1.5 * self.since_before()
        with self.clock.changed:
            while not condition():
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self.clock.changed.wait(min(left, 0.5))
        return True

    def early(self, entry: Entry, at: float) -> str:
        """Say if what came long after the last action in the recording comes at once here; the tick is left to chance."""
        if not self._actions:
            return ""
        t_ms, done = self._actions[-1]
        recorded_s = (entry.t_ms - t_ms) / 1000
        if recorded_s <= 2 * EARLY_S or at - done >= (recorded_s - EARLY_S) / self.scale * 0.9:
            return ""
        return f"came {(at - done) * self.scale:.2f} s after the last action instead of {recorded_s:.2f} s"

    def measured(self, entry: Entry, *, by_own_clock: bool = False) -> str:
        """A measured rule ("... after 4.00 s"): say if the same action and event are not as far apart here."""
        match = _MEASURED.search(entry.text)
        if not match or not self._arrivals:
            return ""
        wanted = float(match[1])
        t_arrived, arrived = self._arrivals[-1]
        recorded = [(abs((t_arrived - t) / 1000 - wanted), at) for t, at in self._actions]
        off, done = min(recorded, default=(1.0, 0.0))
        if off > 0.1:
            return ""  # it measures something else than the way from an action to an event
        here = (arrived - done) * self.scale
        low = wanted - 0.6 * TICK_S if wanted > TICK_S else -0.5
        low -= LATE_S * self.scale if by_own_clock else 0.0
        high = max(wanted, TICK_S if wanted > 0.1 else 0.0) + TICK_S + LATE_S * self.scale
        return "" if low <= here <= high else f"{here:.2f} s, recorded: {entry.text}"

    def _due(self, entry: Entry) -> float:
        return self._start + entry.t_ms / 1000 / self.scale + self._offset

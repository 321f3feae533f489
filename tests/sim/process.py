"""A process on a host of its own: it can be killed, or stopped (SIGSTOP) and continued; its clocks are its own.

Whatever reaches the process (a timer of its own, a packet, a stream's event) comes through `run`. While it is stopped, all that
waits, and comes when it goes on: the timers that fell due before or behind what lies in the sockets, as chance has it,
and some of the greenlets that are woken get their turn in between. Code that blocks runs in a greenlet: `block` gives
control up until it is woken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import greenlet

from sim.timeline import Timeline

DRIFT_MAX = 0.02  # how much faster or slower than true time a host's clock goes


class Process:
    def __init__(self, timeline: Timeline, name: str, *, drift: float = 0.0) -> None:
        self.timeline = timeline
        self.name = name
        self.is_alive = True
        self.is_stopped = False
        self.wall_jump_ms = 0  # of CLOCK_REALTIME, to and fro; CLOCK_BOOTTIME never jumps
        self._rate = 1 + drift * (2 * timeline.random.random() - 1)
        self._boot_ms = timeline.between(0, 10**9)
        self._waiting: list[tuple[bool, Callable[[], None]]] = []
        self._greenlets: dict[greenlet.greenlet, None] = {}

    def now_ms(self) -> int:
        """CLOCK_BOOTTIME: also goes on while the process is stopped."""
        return int(self.timeline.now_ms * self._rate) + self._boot_ms

    def wall_ms(self) -> int:
        return 1_700_000_000_000 + self.timeline.now_ms + self.wall_jump_ms

    def at(self, delay_ms: float, what: Callable[[], None]) -> None:
        """A timer of this process."""
        self.timeline.at(delay_ms / self._rate, lambda: self.run(what, is_timer=True))

    def run(self, what: Callable[[], None], *, is_timer: bool = False) -> None:
        if not self.is_alive:
            return
        if self.is_stopped or self._waiting:
            self._waiting.append((is_timer, what))
        else:
            what()

    def stop(self) -> None:
        self.is_stopped = True
        self.timeline.tell(f"--- {self.name} is stopped")

    def go_on(self) -> None:
        if not self.is_stopped or not self.is_alive:
            return
        self.is_stopped = False
        self.timeline.tell(f"--- {self.name} goes on")
        if self.timeline.chance(0.5):
            self._waiting.sort(key=lambda item: item[0])  # what lies in the sockets first, then the timers
        self._catch_up()

    def _catch_up(self) -> None:
        while self._waiting and not self.is_stopped:
            _, what = self._waiting[0]
            what()
            if not self._waiting:
                return  # killed by it
            del self._waiting[0]
            if self.timeline.chance(0.5):
                self.timeline.at(0, self._catch_up)
                return

    def kill(self) -> None:
        if not self.is_alive:
            return
        self.is_alive = False
        self._waiting.clear()
        self.timeline.tell(f"--- {self.name} is killed")
        self.timeline.at(0, self._reap)

    # --- greenlets

    def spawn(self, run: Callable[[], None]) -> None:
        """Run `run` in a greenlet of this process. What it raises ends the simulation."""

        def body() -> None:
            try:
                run()
            finally:
                self._greenlets.pop(greenlet.getcurrent(), None)

        new = greenlet.greenlet(body, parent=self.timeline.hub)
        self._greenlets[new] = None
        self.timeline.at(0, lambda: self.run(new.switch))

    def block(self, begin: Callable[[Callable[[Any], None]], None]) -> Any:
        """Call `begin(wake)`; return the value that `wake` is called with first, then or later."""
        current = greenlet.getcurrent()
        assert current is not self.timeline.hub, "only a greenlet may block"
        if not self.is_alive:
            raise greenlet.GreenletExit
        is_woken = False

        def wake(value: Any) -> None:
            nonlocal is_woken
            if not is_woken:
                is_woken = True
                self.timeline.at(0, lambda: self._resume(lambda: current.switch(value)))

        begin(wake)
        return self.timeline.hub.switch()

    def _resume(self, what: Callable[[], None]) -> None:
        """As `run`, but not behind what waits since the process was stopped."""
        if self.is_alive and self.is_stopped:
            self._waiting.append((True, what))
        elif self.is_alive:
            what()

    def sleep(self, delay_ms: float) -> None:
        self.block(lambda wake: self.at(delay_ms, lambda: wake(None)))

    def _reap(self) -> None:
        for one in list(self._greenlets):
            one.throw(greenlet.GreenletExit)

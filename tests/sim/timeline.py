"""Virtual time: what happens when, one thing after another, and all the chance there is. A seed is a whole history.

Nothing of a simulation runs beside another: `step` takes the next thing that is due, and moves the time there.
"""

from __future__ import annotations

import collections
import heapq
import itertools
import random
from collections.abc import Callable
from typing import Any

import greenlet

STORY_MAX = 80


class Timeline:
    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.now_ms = 1_000_000
        self.story: collections.deque[tuple[int, Any]] = collections.deque(maxlen=STORY_MAX)
        self.hub = greenlet.getcurrent()  # whoever calls `run`: what is due is called here
        self._queue: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def at(self, delay_ms: float, what: Callable[[], None]) -> None:
        """Call `what` in `delay_ms`; what is due at one time comes in the order of the calls."""
        heapq.heappush(self._queue, (self.now_ms + int(delay_ms), next(self._order), what))

    def every(self, period_ms: int, what: Callable[[], None]) -> None:
        def again() -> None:
            what()
            self.at(period_ms, again)

        self.at(self.random.randrange(period_ms), again)

    def run(self, duration_ms: int) -> None:
        until_ms = self.now_ms + duration_ms
        while self._queue and self._queue[0][0] <= until_ms:
            self.now_ms, _, what = heapq.heappop(self._queue)
            what()
        self.now_ms = until_ms

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def between(self, least: int, most: int) -> int:
        return self.random.randint(least, most)

    def tell(self, what: Any) -> None:
        """Add to the story that a failure prints."""
        self.story.append((self.now_ms, what))

    def describe(self) -> str:
        return "\n".join(f"{at} {str(what)[:400]}" for at, what in self.story)

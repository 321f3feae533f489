"""When which agent has something to do: a heap, so that a step costs what is due and not what there is."""

from __future__ import annotations

import heapq


class Timers:
    """Moments by agent's number. A moment that is no longer meant wakes an agent for nothing, which does no harm."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int]] = []

    def arm(self, number: int, at_ms: int) -> None:
        heapq.heappush(self._heap, (at_ms, number))

    def take_due(self, now_ms: int) -> list[int]:
        """Return the agents that have something to do, each once, and forget these moments."""
        due: dict[int, None] = {}
        while self._heap and self._heap[0][0] <= now_ms:
            due[heapq.heappop(self._heap)[1]] = None
        return list(due)

    def next_ms(self) -> int | None:
        return self._heap[0][0] if self._heap else None

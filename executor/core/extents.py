"""Sets of byte ranges: sorted, disjoint, half-open [start, stop), never touching each other.

Values and arithmetic only. A block's valid bytes are few extents in practice (fills are long), so lists and bisection do.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

Range = tuple[int, int]


class Extents:
    """A mutable set of ranges.

    >>> held = Extents([(0, 10), (20, 30)])
    >>> held.add(10, 20); list(held), held.total
    ([(0, 30)], 30)
    """

    __slots__ = ("_starts", "_stops", "total")

    def __init__(self, ranges: Iterable[Range] = ()) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        self.total = 0
        for start, stop in ranges:
            self.add(start, stop)

    def __iter__(self) -> Iterator[Range]:
        return iter(list(zip(self._starts, self._stops, strict=True)))

    def __len__(self) -> int:
        return len(self._starts)

    def __bool__(self) -> bool:
        return bool(self._starts)

    def add(self, start: int, stop: int) -> None:
        """Put [start, stop) in; whatever of it is there already stays."""
        assert start <= stop, (start, stop)
        if start == stop:
            return
        first = bisect_left(self._stops, start)
        last = bisect_right(self._starts, stop)
        if first < last:
            start = min(start, self._starts[first])
            stop = max(stop, self._stops[last - 1])
        self.total -= sum(self._stops[first:last]) - sum(self._starts[first:last])
        self._starts[first:last] = [start]
        self._stops[first:last] = [stop]
        self.total += stop - start

    def remove(self, start: int, stop: int) -> None:
        """Take [start, stop) out; whatever of it is not there is no error."""
        first = bisect_right(self._stops, start)
        last = bisect_left(self._starts, stop)
        if first >= last or start >= stop:
            return
        starts, stops = [], []
        self.total -= sum(self._stops[first:last]) - sum(self._starts[first:last])
        if self._starts[first] < start:
            starts.append(self._starts[first])
            stops.append(start)
        if self._stops[last - 1] > stop:
            starts.append(stop)
            stops.append(self._stops[last - 1])
        self._starts[first:last] = starts
        self._stops[first:last] = stops
        self.total += sum(stops) - sum(starts)

    def covers(self, start: int, stop: int) -> bool:
        """Return whether all of [start, stop) is in; nothing always is."""
        if start >= stop:
            return True
        place = bisect_right(self._starts, start) - 1
        return place >= 0 and self._stops[place] >= stop

    def within(self, start: int, stop: int) -> list[Range]:
        """Return the parts of the set that lie in [start, stop)."""
        if start >= stop:
            return []
        first = bisect_right(self._stops, start)
        last = bisect_left(self._starts, stop)
        return [(max(start, self._starts[i]), min(stop, self._stops[i])) for i in range(first, last)]

    def missing(self, start: int, stop: int) -> list[Range]:
        """Return the parts of [start, stop) that are not in."""
        result = []
        for low, high in self.within(start, stop):
            if start < low:
                result.append((start, low))
            start = high
        if start < stop:
            result.append((start, stop))
        return result

    def intersects(self, ranges: Iterable[Range]) -> bool:
        return any(self.within(start, stop) for start, stop in ranges)


def subtract(ranges: Iterable[Range], *taken: Extents) -> list[Range]:
    """Return what of `ranges` is in none of `taken`."""
    left = list(ranges)
    for extents in taken:
        left = [part for start, stop in left for part in extents.missing(start, stop)]
    return left


def take_bytes(ranges: Iterable[Range], bytes_max: int, granule: int) -> list[Range]:
    """Return the first `bytes_max` of `ranges`, cut at a multiple of `granule`; at least one granule of the first.

    >>> take_bytes([(0, 100), (200, 300)], 128, 64)
    [(0, 100)]
    """
    taken: list[Range] = []
    for start, stop in ranges:
        if stop - start > bytes_max:
            stop = max(
                (start + bytes_max) // granule * granule,
                start // granule * granule + granule if not taken else 0,
            )
        if stop <= start:
            break
        taken.append((start, stop))
        bytes_max -= stop - start
    return taken

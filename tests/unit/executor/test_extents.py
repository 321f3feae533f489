"""Sets of ranges against a set of numbers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stoker.executor.core.extents import Extents, subtract, take_bytes

RANGES = st.tuples(st.integers(0, 60), st.integers(0, 60)).map(lambda pair: (min(pair), max(pair)))


def members(ranges: list[tuple[int, int]]) -> set[int]:
    return {number for start, stop in ranges for number in range(start, stop)}


@given(st.lists(st.tuples(st.booleans(), RANGES), max_size=30), RANGES)
def test_extents_do_what_a_set_of_numbers_does(
    steps: list[tuple[bool, tuple[int, int]]], asked: tuple[int, int]
) -> None:
    extents, model = Extents(), set()
    for is_added, (start, stop) in steps:
        if is_added:
            extents.add(start, stop)
            model |= set(range(start, stop))
        else:
            extents.remove(start, stop)
            model -= set(range(start, stop))
        held = list(extents)
        assert members(held) == model
        assert extents.total == len(model)
        assert all(a < b for a, b in held)
        assert all(left[1] < right[0] for left, right in zip(held, held[1:], strict=False))
    span = set(range(*asked))
    assert extents.covers(*asked) == (span <= model)
    assert members(extents.within(*asked)) == span & model
    assert members(extents.missing(*asked)) == span - model
    assert extents.intersects([asked]) == bool(span & model)


@given(st.lists(RANGES, max_size=8), st.lists(RANGES, max_size=8), st.lists(RANGES, max_size=8))
def test_subtract_leaves_what_is_in_neither(ranges: list, first: list, second: list) -> None:
    left = subtract(list(Extents(ranges)), Extents(first), Extents(second))
    assert members(left) == members(ranges) - members(first) - members(second)


@given(st.lists(RANGES, max_size=8), st.integers(1, 50))
def test_take_bytes_takes_a_prefix_within_its_bound(ranges: list, bytes_max: int) -> None:
    granule = 4
    aligned = list(Extents((a * granule, b * granule) for a, b in ranges))
    taken = take_bytes(aligned, bytes_max, granule)
    assert members(taken) <= members(aligned)
    assert sum(b - a for a, b in taken) <= max(bytes_max, granule)
    assert bool(taken) == bool(aligned)
    rest = members(aligned) - members(taken)
    assert not rest or min(rest) > max(members(taken))

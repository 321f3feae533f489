"""The rules of forgotten jobs are those that their wishes come to one by one, whenever somebody looks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stoker.framework.core.base_rules import LOOSE_MAX, BaseRules
from stoker.framework.core.rules import Rules, merge_rules

PATHS = st.lists(st.sampled_from(["a", "a/b", "a/b/c", "a/d", "e", "e/f", "ab"]), max_size=3).map(tuple)
WISHES = st.lists(st.tuples(st.integers(1, 2), st.booleans(), PATHS, st.booleans()), max_size=40)


@given(WISHES)
def test_they_are_what_the_wishes_come_to_one_by_one(
    wished: list[tuple[int, bool, tuple[str, ...], bool]],
) -> None:
    kept = BaseRules()
    expected: dict[int, Rules] = {}
    for dataset_id, is_wanted, paths, looks in wished:
        kept.add([(dataset_id, is_wanted, paths)])
        expected[dataset_id] = merge_rules(expected.get(dataset_id, ()), is_wanted, paths)
        if looks:
            assert kept.of(dataset_id) == expected[dataset_id]
    twin = kept.copy()
    kept.add([(1, True, ("new",))])
    assert twin.all() == sorted(expected.items()) == BaseRules(twin.all()).all()


def test_what_is_kept_is_bounded_though_nobody_looks() -> None:
    kept = BaseRules()
    for number in range(10 * LOOSE_MAX):
        kept.add([(1, number % 2 == 0, (f"d{number % 3}",))])
        assert len(kept._loose.get(1, ())) <= LOOSE_MAX
    assert {path for _, path in kept.of(1)} == {"d0", "d1", "d2"}
    many = tuple(f"p{number}" for number in range(LOOSE_MAX + 1))
    kept.add([(1, True, many)])
    assert not kept._loose
    kept.forget(1)
    assert kept.of(1) == () and kept.all() == []

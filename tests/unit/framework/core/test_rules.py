from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stoker.framework.core.rules import is_wanted, merge_rules, normalise_rules, rules_bytes

PATHS = st.lists(st.sampled_from(["a", "b", "ab", "a b"]), max_size=4).map("/".join)
RULES = st.lists(st.tuples(st.booleans(), PATHS), max_size=12).map(tuple)


@given(rules=RULES, path=PATHS)
def test_normalised_rules_decide_alike(rules: tuple[tuple[bool, str], ...], path: str) -> None:
    assert is_wanted(normalise_rules(rules), path) == is_wanted(rules, path)


@given(rules=RULES, included=st.booleans(), paths=st.lists(PATHS, max_size=3), path=PATHS)
def test_merging_changes_the_named_paths_and_no_other(
    rules: tuple[tuple[bool, str], ...], included: bool, paths: list[str], path: str
) -> None:
    is_named = not paths or any(p in ("", path) or path.startswith(p + "/") for p in paths)
    after = merge_rules(rules, included, paths)
    assert is_wanted(after, path) == (included if is_named else is_wanted(rules, path))


@given(rules=RULES)
def test_normalising_again_changes_nothing(rules: tuple[tuple[bool, str], ...]) -> None:
    once = normalise_rules(rules)
    assert normalise_rules(once) == once
    assert len(once) <= len(rules)
    assert len({path for _, path in once}) == len(once)


def test_asking_again_and_again_does_not_grow_the_rules() -> None:
    rules: tuple[tuple[bool, str], ...] = ()
    for number in range(200):
        rules = merge_rules(rules, number % 2 == 0, [f"d/{number % 3}"])
    assert len(rules) <= 3
    assert merge_rules(rules, True, []) == ((True, ""),)


def test_an_exclusion_stays_where_nothing_was_wanted() -> None:
    """What was cached there by reading is freed, too."""
    assert merge_rules((), False, ["a"]) == ((False, "a"),)


def test_a_prefix_is_whole_components() -> None:
    assert not is_wanted(((True, "ab"),), "a")
    assert not is_wanted(((True, "a"),), "ab/c")
    assert rules_bytes(((True, "é"),)) == 10

"""Patterns mean what Python's do, and take a time that grows with the text and nothing else."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.framework.core.patterns import STEPS_MAX, TEXT_CHARS_MAX, compile_pattern

ATOMS = st.sampled_from(
    [
        *"abc.",
        "[ab]",
        "[^a]",
        "[]a]",
        "[^]]",
        r"[\]b]",
        "[a-c]",
        r"\.",
        r"\d",
        r"\W",
        r"\s",
        "^",
        "$",
        "{",
        "}",
        "()",
    ]
)
SIGNS = st.sampled_from(["*", "+", "?", "*?", "+?", "??", "{2}", "{1,2}", "{,2}", "{1,}", "{0}", "{0,0}"])


def repeated(part: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.builds(lambda text, sign: f"({text}){sign}", part, SIGNS)


def joined(part: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.lists(part, max_size=3).map("".join),
        st.lists(part, min_size=2, max_size=3).map(lambda ways: "(?:" + "|".join(ways) + ")"),
        repeated(part),
    )


PATTERNS = st.recursive(ATOMS, joined, max_leaves=6)


@given(pattern=PATTERNS, text=st.text("abc.1 {}]\n", max_size=8), has_flag=st.booleans())
def test_it_is_pythons_meaning(pattern: str, text: str, has_flag: bool) -> None:
    pattern = "(?i)" + pattern if has_flag else pattern
    assert compile_pattern(pattern).matches(text) is (re.fullmatch(pattern, text) is not None)


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("gpu.*|cpu", "gpu-17", True),
        ("(?i)GPU-[a-c]", "gpu-B", True),
        ("a|", "", True),
        ("x{", "x{", True),
        ("x{1,a}", "x{1,a}", True),
        ("a{3,}", "aa", False),
        (r"([0-9]{1,3}\.){3}[0-9]{1,3}", "10.0.200.17", True),
        (r"host\-1\.example", "host-1.example", True),
        ("[a\\]]+", "a]", True),
        ("é", "é", True),
        ("a{３}", "a{３}", True),
    ],
)
def test_patterns_of_operators(pattern: str, text: str, expected: bool) -> None:
    assert compile_pattern(pattern).matches(text) is expected is (re.fullmatch(pattern, text) is not None)


@pytest.mark.parametrize(
    "pattern", ["(a+)+b", "(a|aa)*b", "(a*)*b", ".*.*.*.*.*.*.*.*.*.*.*.*b", "(a?){60}a{60}b"]
)
def test_what_would_take_for_ever_by_trying_takes_no_time(pattern: str) -> None:
    assert not compile_pattern(pattern).matches("a" * 200)
    assert compile_pattern(pattern).matches("a" * 120 + "b")


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("(", "unterminated"),
        ("*", "nothing to repeat"),
        ("(?=a)b", "look-around"),
        ("(?!a)b", "look-around"),
        ("(?P<name>a)", "named groups"),
        (r"(a)\1", r"\1 is not supported"),
        (r"\bword", r"\b is not supported"),
        ("a*+", "possessive"),
        ("((a{99}){99}){99}", "too large"),
        ("((){999}){999}", "too large"),
        ("(){999999999}", "too large"),
        ("(?i", "missing"),
        ("a{999999999999999999999}", "too large"),
    ],
)
def test_what_is_not_supported_is_said(pattern: str, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        compile_pattern(pattern)


def test_a_text_beyond_all_names_matches_nothing() -> None:
    assert compile_pattern(".*").matches("a" * TEXT_CHARS_MAX)
    assert not compile_pattern(".*").matches("a" * (TEXT_CHARS_MAX + 1))


def test_the_largest_pattern_is_taken() -> None:
    assert compile_pattern(f"a{{{STEPS_MAX - 10}}}")
    assert compile_pattern("(" * 125 + "a" + ")" * 125).matches("a")

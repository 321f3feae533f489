"""Wanted residency: which files of a dataset should be cached, as rules of (included, path prefix).

The last rule that matches a path decides; "" matches everything; where none matches, the path is not wanted. An
exclusion is more than nothing: it says that what is cached there was freed. Rules are kept *normalised*: sorted by path, each
path once, and no rule that a later one covers or that only repeats the one above it. So their number grows with what
differs, not with how often somebody asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat

Rules = tuple[tuple[bool, str], ...]


def merge_rules(rules: Rules, included: bool, paths: Sequence[str]) -> Rules:
    """Return `rules` after `paths` (none: everything) were wanted, or freed; normalised.

    >>> merge_rules(((True, ""),), False, ["a"])
    ((True, ''), (False, 'a'))
    >>> merge_rules(((True, "a/b"), (False, "c")), True, ["a"])
    ((True, 'a'), (False, 'c'))
    """
    return normalise_rules((*rules, *wishes(included, paths)))


def wishes(included: bool, paths: Sequence[str]) -> Rules:
    """Return what wanting, or freeing, `paths` (none: everything) comes to by itself; not normalised."""
    return tuple(zip(repeat(included), paths or ("",)))  # noqa: B905 -- one is without end


def normalise_rules(rules: Iterable[tuple[bool, str]]) -> Rules:
    """Return rules that decide every path as `rules` do, normalised.

    >>> normalise_rules([(True, "b"), (False, "b"), (True, ""), (True, "a")])
    ((True, ''),)
    """
    last_first: dict[str, bool] = {}
    for included, path in reversed(tuple(rules)):
        if path not in last_first and _nearest_above(path, last_first) is None:
            last_first[path] = included
    if len(last_first) == 1:
        return tuple((included, path) for path, included in last_first.items())
    kept: dict[str, bool] = {}
    for path in sorted(last_first, key=_in_order):
        if _nearest_above(path, kept) != last_first[path]:
            kept[path] = last_first[path]
    return tuple((included, path) for path, included in kept.items())


def is_wanted(rules: Rules, path: str) -> bool:
    """Return what the rules decide for `path`.

    >>> is_wanted(((True, ""), (False, "a")), "a/b"), is_wanted(((True, "a"),), "ab")
    (False, False)
    """
    wanted = False
    for included, prefix in rules:
        if prefix in ("", path) or path.startswith(prefix + "/"):
            wanted = included
    return wanted


def rules_bytes(rules: Rules) -> int:
    """Return about how many bytes the rules take in a journal record."""
    return sum(len(path.encode("utf-8", "replace")) + 8 for _, path in rules)


def _nearest_above(path: str, rules: dict[str, bool]) -> bool | None:
    """Return what the longest prefix that covers `path`, other than itself, decides; None: there is none."""
    while path and rules:
        path = path.rpartition("/")[0]
        if path in rules:
            return rules[path]
    return None


def _in_order(path: str) -> str:
    """Return what sorts paths component by component, so that what covers a path comes before it."""
    return path.replace("/", "\0")

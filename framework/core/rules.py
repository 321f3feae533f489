"""Wanted residency: which files of a dataset should be cached, as rules of (included, path prefix).

The last rule that matches a path decides; "" matches everything; where none matches, the path is not wanted. An
exclusion is more than nothing: it says that what is cached there was freed. Rules are kept *normalised*: sorted by path, each
path once, and no rule that a later one covers or that only repeats the one above it. So their number grows with what
differs, not with how often somebody asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Rules = tuple[tuple[bool, str], ...]


def merge_rules(rules: Rules, included: bool, paths: Sequence[str]) -> Rules:
    """Return `rules` after `paths` (none: everything) were wanted, or freed; normalised.

    >>> merge_rules(((True, ""),), False, ["a"])
    ((True, ''), (False, 'a'))
    >>> merge_rules(((True, "a/b"), (False, "c")), True, ["a"])
    ((True, 'a'), (False, 'c'))
    """
    return normalise_rules((*rules, *((included, path) for path in paths or ("",))))


def normalise_rules(rules: Iterable[tuple[bool, str]]) -> Rules:
    """Return rules that decide every path as `rules` do, normalised.

    >>> normalise_rules([(True, "b"), (False, "b"), (True, ""), (True, "a")])
    ((True, ''),)
    """
    last_first: dict[str, bool] = {}
    for included, path in reversed(tuple(rules)):
        if path not in last_first and not any(above in last_first for above in _ancestors(path)):
            last_first[path] = included
    kept: dict[str, bool] = {}
    for path in sorted(last_first, key=_components):
        above = [kept[p] for p in _ancestors(path) if p in kept]
        if not above or above[-1] != last_first[path]:
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


def _ancestors(path: str) -> list[str]:
    """Return the prefixes that cover `path`, without itself, the shortest first."""
    if path == "":
        return []
    parts = path.split("/")
    return ["", *("/".join(parts[:i]) for i in range(1, len(parts)))]


def _components(path: str) -> list[str]:
    return path.split("/") if path else []

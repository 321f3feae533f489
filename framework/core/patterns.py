"""Regular expressions in time linear in the text: what an operator writes cannot hold up the loop, whatever agents are called.

The language is Python's, without what needs backtracking (look-around, references to groups, possessive repeats) and
without inline flags but a leading `(?i)`. A pattern becomes a graph of states, all of whose ways are followed at once.

>>> compile_pattern("(a+)+b").matches("a" * 200)
False
>>> compile_pattern("node-[0-9]{1,3}(\\\\.rack1)?").matches("node-17.rack1")
True
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import NamedTuple

STEPS_MAX = 1_000  # of building the graph; about its states, {m,n} written out
TEXT_CHARS_MAX = 256  # longer texts match nothing

_REPEAT = re.compile(r"[*+?]|\{(?:(?P<exactly>[0-9]+)|(?P<least>[0-9]*),(?P<most>[0-9]*))\}")
_CLASS_ESCAPES = "dDwWsS"

_Test = Callable[[str], object]


class _Char(NamedTuple):
    """One character, if `test` finds something in it."""

    test: _Test


class _Edge(NamedTuple):
    """No character, at the beginning or the end."""

    is_end: bool


class _Sequence(NamedTuple):
    parts: tuple[_Node, ...]


class _Choice(NamedTuple):
    ways: tuple[_Node, ...]


class _Repeat(NamedTuple):
    part: _Node
    least: int
    most: int | None


_Node = _Char | _Edge | _Sequence | _Choice | _Repeat


class Pattern:
    """A compiled pattern. States are numbers; state 0 is the end."""

    def __init__(self, node: _Node) -> None:
        self._tests: list[_Test | _Edge | None] = [None]  # None: the ways go on at once
        self._ways: list[tuple[int, ...]] = [()]
        self._steps = 0
        self._first = self._build(node, 0)

    def matches(self, text: str) -> bool:
        """Return whether the whole text is one that the pattern says."""
        if len(text) > TEXT_CHARS_MAX:
            return False
        states = self._closed({self._first}, text, 0)
        for at, char in enumerate(text):
            states = self._closed(
                {
                    self._ways[state][0]
                    for state in states
                    if callable(test := self._tests[state]) and test(char)
                },
                text,
                at + 1,
            )
            if not states:
                return False
        return 0 in states

    def _closed(self, states: set[int], text: str, at: int) -> set[int]:
        """Return the states with those that are reached from there without a character."""
        found: set[int] = set()
        todo = list(states)
        while todo:
            state = todo.pop()
            if state in found:
                continue
            found.add(state)
            test = self._tests[state]
            if test is None or (isinstance(test, _Edge) and _is_at(test, text, at)):
                todo += self._ways[state]
        return found

    def _state(self, test: _Test | _Edge | None, *ways: int) -> int:
        self._tests.append(test)
        self._ways.append(ways)
        return len(self._tests) - 1

    def _build(self, node: _Node, after: int) -> int:
        """Return the state in which `node` begins, and after which `after` comes."""
        self._steps += 1
        if self._steps > STEPS_MAX:
            raise ValueError("it is too large: repeat less often")
        match node:
            case _Char(test):
                return self._state(test, after)
            case _Edge():
                return self._state(node, after)
            case _Sequence(parts):
                for part in reversed(parts):
                    after = self._build(part, after)
                return after
            case _Choice(ways):
                return self._state(None, *[self._build(way, after) for way in ways])
            case _Repeat(part, least, most):
                return self._repeated(part, least, most, after)

    def _repeated(self, part: _Node, least: int, most: int | None, after: int) -> int:
        first = after
        if most is None:
            first = self._state(None)
            self._ways[first] = (self._build(part, first), after)
        else:
            for _ in range(most - least):
                first = self._state(None, self._build(part, first), after)
        for _ in range(least):
            first = self._build(part, first)
        return first


@functools.lru_cache(maxsize=256)
def compile_pattern(text: str) -> Pattern:
    """:raises ValueError: it is no regular expression, or one that is not supported."""
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(str(error)) from error
    return Pattern(_Parser(text).parse())


def _is_at(edge: _Edge, text: str, at: int) -> bool:
    if not edge.is_end:
        return at == 0
    return at == len(text) or (at == len(text) - 1 and text[-1] == "\n")


class _Parser:
    """Of a text that Python's own parser takes."""

    def __init__(self, text: str) -> None:
        self._ignores_case = text.startswith("(?i)")
        self._text = text.removeprefix("(?i)")
        self._at = 0

    def parse(self) -> _Node:
        return self._choice()

    def _choice(self) -> _Node:
        ways = [self._sequence()]
        while self._take("|"):
            ways.append(self._sequence())
        return ways[0] if len(ways) == 1 else _Choice(tuple(ways))

    def _sequence(self) -> _Node:
        parts: list[_Node] = []
        while self._at < len(self._text) and self._text[self._at] not in "|)":
            parts.append(self._repeat(self._atom()))
        return _Sequence(tuple(parts))

    def _repeat(self, part: _Node) -> _Node:
        found = _REPEAT.match(self._text, self._at)
        if found is None:
            return part
        self._at = found.end()
        if self._take("+"):
            raise ValueError("possessive repeats (such as *+) are not supported")
        self._take("?")  # whether it takes much or little first: the whole text counts
        if found["exactly"]:
            return _Repeat(part, int(found["exactly"]), int(found["exactly"]))
        signs: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
        if found[0] in signs:
            return _Repeat(part, *signs[found[0]])
        return _Repeat(part, int(found["least"] or 0), int(found["most"]) if found["most"] else None)

    def _atom(self) -> _Node:
        if self._take("("):
            if self._take("?") and not self._take(":"):
                raise ValueError(
                    "look-around, named groups and flags other than a leading (?i) are not supported"
                )
            inner = self._choice()
            closed = self._take(")")
            assert closed, "Python's parser took it"
            return inner
        if self._take("^"):
            return _Edge(is_end=False)
        if self._take("$"):
            return _Edge(is_end=True)
        first = self._at
        if self._take("["):
            self._skip_class()
        elif self._take("\\"):
            if self._text[self._at].isalnum() and self._text[self._at] not in _CLASS_ESCAPES:
                raise ValueError(f"\\{self._text[self._at]} is not supported")
            self._at += 1
        else:
            self._at += 1
        flags = re.IGNORECASE if self._ignores_case else 0
        one = self._text[first : self._at]
        return _Char(re.compile(re.escape(one) if len(one) == 1 and one != "." else one, flags).fullmatch)

    def _skip_class(self) -> None:
        self._take("^")
        self._take("]")
        while not self._take("]"):
            self._at += 2 if self._text[self._at] == "\\" else 1

    def _take(self, sign: str) -> bool:
        is_next = self._text.startswith(sign, self._at)
        self._at += len(sign) if is_next else 0
        return is_next

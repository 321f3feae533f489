"""Which agents a fleet may use: Marathon's constraint operators, with Marathon's meaning.

A constraint looks at one field of an agent: an attribute, `hostname` (or `@hostname`), `@region` or `@zone`. An agent without the field
fails all operators but UNLIKE. What counts is where the fleet's executors run now:

    UNIQUE           no executor runs where the field has the same value
    CLUSTER [value]  all run where it has this value; without one, where the first of them runs
    GROUP_BY [n]     a value that no executor has yet, or one that as few have as any, once n values are in use
    MAX_PER n        fewer than n executors run where it has this value
    LIKE regex       the whole value matches; UNLIKE: it does not (see patterns.py)
    IS value         equal; numbers within 0.001

Pure functions and values: no offer, no catalog.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from stoker.framework.core.patterns import compile_pattern
from stoker.framework.model import Constraint

OPERATORS = ("UNIQUE", "CLUSTER", "GROUP_BY", "LIKE", "UNLIKE", "MAX_PER", "IS")
COUNTING = frozenset({"UNIQUE", "CLUSTER", "GROUP_BY", "MAX_PER"})
CONSTRAINTS_MAX = 16
FIELD_BYTES_MAX = 128
VALUE_BYTES_MAX = 256
NUMBER_MAX = 1_000_000
SCALAR_TOLERANCE = 0.001
FORM = "FIELD:OPERATOR or FIELD:OPERATOR:VALUE, such as rack:GROUP_BY:3 or hostname:UNLIKE:gpu.*"

Fields = Mapping[str, str]


def parse_constraint(text: str) -> Constraint:
    """Return the constraint that `text` says (see FORM).

    >>> parse_constraint("rack:group_by:3"), parse_constraint("url:LIKE:http://.*")
    (Constraint(field='rack', operator='GROUP_BY', value='3'), Constraint(field='url', operator='LIKE', value='http://.*'))

    :raises ValueError: it says none; what is wrong with one says `problem_of`.
    """
    parts = text.split(":", 2)
    if len(parts) < 2:
        raise ValueError(f"write {FORM}")
    return Constraint(parts[0].strip(), parts[1].strip().upper(), parts[2] if len(parts) == 3 else "")


def constraint_text(constraint: Constraint) -> str:
    """Return it as people write it.

    >>> constraint_text(Constraint("rack", "UNIQUE"))
    'rack:UNIQUE'
    """
    return ":".join(part for part in constraint if part)


def problem_of(constraint: Constraint) -> str:
    """Return what is wrong with a constraint, or nothing."""
    field, operator, value = constraint
    if not field or len(field.encode()) > FIELD_BYTES_MAX or any(c.isspace() for c in field):
        return f"a field is 1 to {FIELD_BYTES_MAX} bytes without spaces"
    if field.startswith("@") and field not in ("@hostname", "@region", "@zone"):
        return (
            f"there is no field {field}: @hostname, @region and @zone are known, and the agents' attributes"
        )
    if operator not in OPERATORS:
        return f"there is no operator {operator!r}: {', '.join(OPERATORS)}"
    if len(value.encode()) > VALUE_BYTES_MAX:
        return f"a value has at most {VALUE_BYTES_MAX} bytes"
    if operator == "UNIQUE" and value:
        return "UNIQUE takes no value"
    if operator in ("LIKE", "UNLIKE", "MAX_PER", "IS") and not value:
        return f"{operator} needs a value"
    if operator == "MAX_PER" or (operator == "GROUP_BY" and value):
        if not (value.isascii() and value.isdecimal() and 0 < int(value) <= NUMBER_MAX):
            return f"the value of {operator} is a number from 1 to {NUMBER_MAX}"
    if operator in ("LIKE", "UNLIKE"):
        return _pattern_problem(value)
    return ""


def problems_of(constraints: Sequence[Constraint]) -> list[str]:
    """Return what is wrong with a fleet's constraints, each named."""
    if len(constraints) > CONSTRAINTS_MAX:
        return [f"{len(constraints)} constraints; at most {CONSTRAINTS_MAX} are allowed"]
    told = [(constraint_text(c), problem_of(c)) for c in constraints]
    return [f"{text!r}: {problem}" for text, problem in told if problem]


def agent_fields(
    hostname: str, region: str, zone: str, attributes: Iterable[tuple[str, str]]
) -> dict[str, str]:
    """Return what constraints may look at; of attributes of one name the first counts."""
    fields = dict(reversed(tuple(attributes)))
    fields["hostname"] = fields["@hostname"] = hostname
    if region:
        fields["@region"] = region
    if zone:
        fields["@zone"] = zone
    return fields


class Tally:
    """One constraint, and on how many agents in use its field has which value. `check` says whether one more may come."""

    def __init__(self, constraint: Constraint, in_use: Iterable[Fields] = ()) -> None:
        self.constraint = constraint
        self.text = constraint_text(constraint)
        self.counts: Counter[str | None] = Counter()
        self._least: int | None = 0
        self._wanted: str | None = None
        if self.is_counting:
            for fields in in_use:
                self.add(fields)

    def add(self, fields: Fields) -> None:
        """An executor runs on an agent with these fields."""
        value = fields.get(self.constraint.field)
        self.counts[value] += 1
        self._least = self._wanted = None

    def count(self, fields: Fields) -> int:
        """Return how many executors run where the field is as here."""
        return self.counts.get(fields.get(self.constraint.field), 0)

    def check(self, fields: Fields) -> bool:
        """Return whether an executor may run on an agent with these fields."""
        _, operator, wanted = self.constraint
        value = fields.get(self.constraint.field)
        if value is None:
            return operator == "UNLIKE"
        if operator == "UNIQUE":
            return value not in self.counts
        if operator == "CLUSTER":
            return wanted in ("", value) and self.counts.keys() <= {value}
        if operator == "GROUP_BY":
            return value not in self.counts or (
                len(self.counts) >= int(wanted or 0) and self.counts[value] == self.least
            )
        if operator == "MAX_PER":
            return self.counts.get(value, 0) < int(wanted)
        if operator == "IS":
            return _is_equal(value, wanted)
        return _matches(wanted, value) == (operator == "LIKE")

    @property
    def is_counting(self) -> bool:
        """Return whether it depends on where executors run: else an agent that fails always will."""
        return self.constraint.operator in COUNTING

    @property
    def least(self) -> int:
        """Return how many executors the value has that the fewest have, of those in use."""
        if self._least is None:
            self._least = min(self.counts.values(), default=0)
        return self._least

    @property
    def wanted(self) -> str:
        """Return in words what a value must be now."""
        if self._wanted is None:
            self._wanted = self._in_words()
        return self._wanted

    def _in_words(self) -> str:
        field, operator, value = self.constraint
        used = len(self.counts)
        match operator:
            case "UNIQUE":
                return f"a {field} that no executor has; {used} in use"
            case "CLUSTER":
                one = value or next((str(v) for v in self.counts), "")
                return f"{field} {one}" if one else f"any {field}, the same for all"
            case "GROUP_BY":
                fewest = f"a {field} that no executor has"
                if used < int(value or 0):
                    return f"{fewest}: {used} of {value} values in use"
                return f"{fewest}, or one with the fewest ({self.least})"
            case "MAX_PER":
                return f"a {field} with fewer than {value} executors"
            case "IS":
                return f"{field} {value}"
            case "LIKE":
                return f"a {field} like {value}"
            case _:
                return f"a {field} unlike {value}"

    def offered(self, fields: Fields) -> str:
        """Return in words what the agent has."""
        value = fields.get(self.constraint.field)
        if value is None:
            return f"no {self.constraint.field}"
        if not self.is_counting:
            return value
        count = self.counts.get(value, 0)
        return f"{value} ({count} executor{'' if count == 1 else 's'})"


def group_counts(tallies: Sequence[Tally], fields: Fields) -> tuple[int, ...]:
    """Return what sorts agents such that groups grow evenly."""
    return tuple(tally.count(fields) for tally in tallies if tally.constraint.operator == "GROUP_BY")


def _pattern_problem(pattern: str) -> str:
    try:
        compile_pattern(pattern)
    except ValueError as error:
        return f"{pattern!r} is no regular expression that can be used: {error}"
    return ""


@functools.lru_cache(maxsize=65_536)
def _matches(pattern: str, value: str) -> bool:
    return compile_pattern(pattern).matches(value)


def _is_equal(value: str, wanted: str) -> bool:
    if value == wanted:
        return True
    try:
        return abs(float(value) - float(wanted)) < SCALAR_TOLERANCE
    except ValueError:
        return False

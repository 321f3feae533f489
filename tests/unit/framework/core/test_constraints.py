"""Marathon's operators, with Marathon's meaning."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.framework.core.constraints import (
    CONSTRAINTS_MAX,
    OPERATORS,
    Tally,
    agent_fields,
    constraint_text,
    parse_constraint,
    problem_of,
    problems_of,
)
from stoker.framework.model import Constraint


def racks(*values: str | None) -> list[Mapping[str, str]]:
    """Return the fields of agents on these racks; None: one without a rack."""
    return [{} if value is None else {"rack": value} for value in values]


def allows(text: str, running: list[Mapping[str, str]], agent: Mapping[str, str]) -> bool:
    return Tally(parse_constraint(text), running).check(agent)


A, B, C = racks("a", "b", "c")


@pytest.mark.parametrize(
    ("text", "running", "agent", "allowed"),
    [
        ("rack:UNIQUE", [], A, True),
        ("rack:UNIQUE", [A], A, False),
        ("rack:UNIQUE", [A], B, True),
        ("rack:UNIQUE", [{}], A, True),
        ("rack:CLUSTER:a", [], A, True),
        ("rack:CLUSTER:a", [], B, False),
        ("rack:CLUSTER", [], B, True),
        ("rack:CLUSTER", [B, B], B, True),
        ("rack:CLUSTER", [B], A, False),
        ("rack:CLUSTER:a", [B], A, False),  # one runs elsewhere: all must be where the field is as here
        ("rack:CLUSTER", [{}], A, False),
        ("rack:GROUP_BY", [], A, True),
        ("rack:GROUP_BY", [A], A, True),  # one value is known, and it has the fewest
        ("rack:GROUP_BY:2", [A], A, False),
        ("rack:GROUP_BY:2", [A], B, True),
        ("rack:GROUP_BY:2", [A, B], A, True),
        ("rack:GROUP_BY:2", [A, A, B], A, False),
        ("rack:GROUP_BY:2", [A, A, B], B, True),
        ("rack:GROUP_BY:2", [A, A, B, B], C, True),
        ("rack:GROUP_BY:3", [A, B], A, False),
        ("rack:GROUP_BY", [A, A, B], A, False),
        ("rack:MAX_PER:2", [A], A, True),
        ("rack:MAX_PER:2", [A, A], A, False),
        ("rack:MAX_PER:2", [A, A], B, True),
        ("rack:LIKE:a|b", [], B, True),
        ("rack:LIKE:r", [], {"rack": "rack"}, False),  # the whole value
        ("rack:LIKE:r.*", [], {"rack": "rack"}, True),
        ("rack:UNLIKE:r.*", [], {"rack": "rack"}, False),
        ("rack:UNLIKE:r", [], {"rack": "rack"}, True),
        ("rack:IS:a", [], A, True),
        ("rack:IS:a", [], B, False),
        ("rack:IS:1.5", [], {"rack": "1.5004"}, True),
        ("rack:IS:1.5", [], {"rack": "1.502"}, False),
        ("rack:IS:[1-3]", [], {"rack": "[1-3]"}, True),
        ("rack:IS:[1-3]", [], {"rack": "[1-4]"}, False),
    ],
)
def test_operators(
    text: str, running: list[Mapping[str, str]], agent: Mapping[str, str], allowed: bool
) -> None:
    assert allows(text, running, agent) is allowed


@pytest.mark.parametrize("operator", OPERATORS)
def test_an_agent_without_the_field_fails_all_but_unlike(operator: str) -> None:
    tally = Tally(Constraint("rack", operator, "2" if operator in ("MAX_PER", "GROUP_BY") else "x"))
    assert tally.check({"zone": "z"}) is (operator == "UNLIKE")
    assert tally.offered({"zone": "z"}) == "no rack"


@pytest.mark.parametrize("operator", ["LIKE", "UNLIKE"])
def test_what_is_not_met_reads_as_a_sentence(operator: str) -> None:
    tally = Tally(Constraint("rack", operator, "a"))
    assert f"x, not {tally.wanted}" == f"x, not a rack {operator.lower()} a"


def test_fields_of_an_agent() -> None:
    fields = agent_fields("h1", "eu", "", [("rack", "a"), ("rack", "b"), ("gpu", "2")])
    assert fields == {"hostname": "h1", "@hostname": "h1", "@region": "eu", "rack": "a", "gpu": "2"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (":UNIQUE", "a field is"),
        ("a b:UNIQUE", "a field is"),
        ("@planet:UNIQUE", "no field @planet"),
        ("rack:NEAR", "no operator 'NEAR'"),
        ("rack:UNIQUE:3", "takes no value"),
        ("rack:LIKE", "needs a value"),
        ("rack:MAX_PER", "needs a value"),
        ("rack:IS:", "needs a value"),
        ("rack:MAX_PER:0", "a number from 1"),
        ("rack:GROUP_BY:-1", "a number from 1"),
        ("rack:GROUP_BY:many", "a number from 1"),
        ("rack:LIKE:(", "missing )"),
        ("rack:LIKE:(?!gpu).*", "look-around"),
        ("rack:LIKE:" + "x" * 257, "at most 256 bytes"),
    ],
)
def test_says_what_is_wrong_with_a_constraint(text: str, says: str) -> None:
    assert says in problem_of(parse_constraint(text))


def test_says_which_constraint_is_wrong_and_when_there_are_too_many() -> None:
    good, bad = Constraint("rack", "UNIQUE"), Constraint("rack", "UNIQUE", "3")
    assert problems_of([good]) == []
    assert problems_of([good, bad]) == ["'rack:UNIQUE:3': UNIQUE takes no value"]
    assert "at most" in problems_of([good] * (CONSTRAINTS_MAX + 1))[0]
    with pytest.raises(ValueError, match="FIELD:OPERATOR"):
        parse_constraint("rack")


CONSTRAINTS = st.one_of(
    st.sampled_from(["UNIQUE", "CLUSTER", "GROUP_BY"]).map(lambda operator: Constraint("rack", operator)),
    st.builds(
        lambda o, n: Constraint("rack", o, str(n)),
        st.sampled_from(["GROUP_BY", "MAX_PER"]),
        st.integers(1, 4),
    ),
)
VALUES = st.sampled_from([None, "a", "b", "c", "d"])


@given(CONSTRAINTS)
def test_text_and_back(constraint: Constraint) -> None:
    assert parse_constraint(constraint_text(constraint)) == constraint and problem_of(constraint) == ""


@given(CONSTRAINTS, st.lists(VALUES, max_size=12), VALUES)
def test_counting_as_launches_come_is_counting_all(
    constraint: Constraint, running: list[str | None], value: str | None
) -> None:
    """What is counted on says the same as what is counted anew, and as Marathon's definition."""
    (agent,) = racks(value)
    stepwise = Tally(constraint)
    for fields in racks(*running):
        stepwise.check(agent)  # what it remembers of an earlier state must not stay
        stepwise.add(fields)
    assert stepwise.check(agent) == Tally(constraint, racks(*running)).check(agent)
    assert stepwise.check(agent) == by_definition(constraint, running, value)


def by_definition(constraint: Constraint, running: list[str | None], value: str | None) -> bool:
    if value is None:
        return False
    groups = {v: running.count(v) for v in running}
    match constraint.operator:
        case "UNIQUE":
            return all(other != value for other in running)
        case "CLUSTER":
            return all(other == value for other in running)
        case "MAX_PER":
            return running.count(value) < int(constraint.value)
        case _:
            is_smallest = value in groups and groups[value] == min(groups.values())
            return value not in groups or (len(groups) >= int(constraint.value or 0) and is_smallest)


@given(st.integers(1, 4), st.lists(st.sampled_from("abcd"), max_size=40))
def test_max_per_is_never_exceeded_and_no_group_grows_while_another_is_smaller(
    number: int, offered: list[str]
) -> None:
    limit = Tally(Constraint("rack", "MAX_PER", str(number)))
    even = Tally(Constraint("rack", "GROUP_BY"), racks("a", "b", "c", "d"))
    for agent in racks(*offered):
        for tally in (limit, even):
            if tally.check(agent):
                tally.add(agent)
    assert max(limit.counts.values(), default=0) <= number
    assert max(even.counts.values()) - min(even.counts.values()) <= 1

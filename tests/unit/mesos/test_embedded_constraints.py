"""Offer constraints and minimal offers: which agents a framework sees, and the texts of transcript 11."""

from __future__ import annotations

from typing import Any

import pytest

from stoker.mesos.embedded.core.codec import Message
from stoker.mesos.embedded.core.constraints import (
    REGEX_BYTES_MAX,
    ConstraintError,
    Constraints,
    Facts,
    minimums,
)

AGENT = Facts(
    "host-1",
    (
        {"name": "rack", "type": "TEXT", "text": {"value": "b"}},
        {"name": "slot", "type": "SCALAR", "scalar": {"value": 3.0}},
    ),
    "r1",
    None,
)


def item(selector: Message, **predicate: Any) -> Message:
    return {"selector": selector, "predicate": predicate}


def named(name: str, **predicate: Any) -> Message:
    return item({"attribute_name": name}, **predicate)


def pseudo(name: str, **predicate: Any) -> Message:
    return item({"pseudoattribute_type": name}, **predicate)


def constraints(*groups: list[Message]) -> Constraints:
    given = [{"attribute_constraints": group} for group in groups]
    return Constraints({"role_constraints": {"cache": {"groups": given}}})


@pytest.mark.parametrize(
    ("constraint", "accepted"),
    [
        (named("rack", exists={}), True),
        (named("none", exists={}), False),
        (named("rack", not_exists={}), False),
        (named("none", not_exists={}), True),
        (named("rack", text_equals={"value": "b"}), True),
        (named("rack", text_equals={"value": "a"}), False),
        (named("none", text_equals={"value": "b"}), False),
        (named("slot", text_equals={"value": "3"}), True),  # no text: says nothing of it
        (named("rack", text_not_equals={"value": "b"}), False),
        (named("none", text_not_equals={"value": "b"}), True),
        (named("slot", text_not_equals={"value": "3"}), True),
        (named("rack", text_matches={"regex": "[a-c]"}), True),
        (named("rack", text_matches={"regex": ""}), False),
        (named("none", text_matches={"regex": ".*"}), False),
        (named("slot", text_matches={"regex": "x"}), True),
        (named("rack", text_not_matches={"regex": "[a-c]"}), False),
        (named("none", text_not_matches={"regex": ".*"}), True),
        (pseudo("HOSTNAME", text_matches={"regex": "host-[0-9]"}), True),
        (pseudo("HOSTNAME", text_matches={"regex": "host"}), False),  # the whole text, as RE2's FullMatch
        (pseudo("REGION", text_equals={"value": "r1"}), True),
        (pseudo("ZONE", exists={}), False),
    ],
)
def test_a_predicate_judges_an_agent(constraint: Message, accepted: bool) -> None:
    assert constraints([constraint]).accepts("cache", AGENT) == accepted


def test_an_agent_passes_if_it_passes_all_of_one_group() -> None:
    yes, no = named("rack", exists={}), named("rack", not_exists={})
    assert not constraints([yes, no]).accepts("cache", AGENT)
    assert constraints([yes, no], [yes]).accepts("cache", AGENT)
    assert constraints([no]).accepts("another role", AGENT)


@pytest.mark.parametrize(
    ("groups", "text"),
    [
        ([], "has an empty 'RoleConstraints::groups' for role cache"),
        ([{}], "for role cachecontains an empty RoleConstraints::Group"),
        (["x"], "an empty RoleConstraints::Group"),
        ([[named("a")]], "A role cache has an invalid 'AttributeConstraint': Unknown predicate type"),
        ([[item({}, exists={})]], "Exactly one of 'AttributeConstraint::Selector::name' or"),
        ([[pseudo("MOON", exists={})]], "Unknown pseudoattribute type"),
        (
            [[named("zone", text_matches={"regex": "z[("})]],
            "Failed to construct regex from pattern 'z[(': missing ]: [(",
        ),
        ([[named("a", text_matches={"regex": "(a"})]], "missing ): (a"),
        ([[named("a", text_matches={"regex": "a)"})]], "unexpected ): a)"),
        ([[named("a", text_matches={"regex": "*"})]], "no argument for repetition operator: *"),
        ([[named("a", text_matches={"regex": "a(?=b)"})]], "invalid perl operator: (?="),
        ([[named("a", text_matches={"regex": r"(a)\1"})]], r"invalid escape sequence: \1"),
        ([[named("a", text_matches={"regex": "x" * (REGEX_BYTES_MAX + 1)})]], "longer than 4096 bytes"),
    ],
)
def test_a_wrong_constraint_is_told_as_mesos_tells_it(groups: list[Any], text: str) -> None:
    given = [{"attribute_constraints": group} if isinstance(group, list) else group for group in groups]
    with pytest.raises(ConstraintError) as raised:
        Constraints({"role_constraints": {"cache": {"groups": given}}})
    assert text in str(raised.value)


def quantities(**amounts: Any) -> Message:
    return {"quantities": {name: {"value": value} for name, value in amounts.items()}}


def test_offer_filters_are_amounts_by_role() -> None:
    given = {
        "cache": {
            "min_allocatable_resources": {"quantities": [quantities(disk=100), quantities(cpus=0.5, mem=64)]}
        },
        "any": {"min_allocatable_resources": {}},
        "none": {},
    }
    assert minimums(given) == {
        "cache": ({"disk": 100_000}, {"cpus": 500, "mem": 64_000}),
        "any": (),
    }
    assert minimums(None) == {}


@pytest.mark.parametrize(
    "filters",
    [
        [],
        {"cache": {"min_allocatable_resources": []}},
        {"cache": {"min_allocatable_resources": {"quantities": {}}}},
        {"cache": {"min_allocatable_resources": {"quantities": [{}]}}},
        {"cache": {"min_allocatable_resources": {"quantities": [quantities(disk=-1)]}}},
        {"cache": {"min_allocatable_resources": {"quantities": [quantities(disk="much")]}}},
    ],
)
def test_wrong_offer_filters_are_refused(filters: Any) -> None:
    with pytest.raises(ConstraintError):
        minimums(filters)

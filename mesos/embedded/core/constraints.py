"""Offer constraints and minimal offers: what a framework says beforehand about the offers that it can use.

Constraints are groups of predicates over an agent's attributes, hostname, region and zone: an agent passes if it passes all predicates
of one group. The texts of complaints are those of a real master, down to the words of its regular expressions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

from stoker.mesos.embedded.core.codec import Message
from stoker.mesos.embedded.core.resources import Quantities

REGEX_BYTES_MAX = 4096
_KINDS = ("exists", "not_exists", "text_equals", "text_not_equals", "text_matches", "text_not_matches")
_PSEUDO = ("HOSTNAME", "REGION", "ZONE")

Predicate: TypeAlias = Callable[[object], bool]


class ConstraintError(Exception):
    """Constraints or filters that cannot be; the text is Mesos'."""


class Facts(NamedTuple):
    """What is to be known of an agent before it is offered."""

    hostname: str = ""
    attributes: tuple[Message, ...] = ()
    region: str | None = None
    zone: str | None = None


class _Constraint(NamedTuple):
    pseudo: bool
    name: str
    accepts: Predicate


class Constraints:
    """The offer constraints of one framework; a role without any accepts every agent."""

    def __init__(self, given: Message) -> None:
        """:raises ConstraintError: what is wrong with `given`, an OfferConstraints message."""
        self.wire = given
        self._groups: dict[str, list[list[_Constraint]]] = {}
        for role, constraints in _mapping(given, "role_constraints").items():
            self._groups[role] = _groups(role, constraints)

    @property
    def roles(self) -> frozenset[str]:
        return frozenset(self._groups)

    def accepts(self, role: str, facts: Facts) -> bool:
        """Whether an agent may be offered to `role`."""
        groups = self._groups.get(role)
        return groups is None or any(
            all(item.accepts(_value(item, facts)) for item in group) for group in groups
        )


def minimums(offer_filters: object) -> dict[str, tuple[Quantities, ...]]:
    """Return, by role, the amounts of which an offer must reach one: FrameworkInfo.offer_filters.

    :raises ConstraintError: not such a map.
    """
    result: dict[str, tuple[Quantities, ...]] = {}
    if offer_filters is None:
        return result
    if not isinstance(offer_filters, dict):
        raise ConstraintError("Invalid 'offer_filters': not a map of roles")
    for role, filters in offer_filters.items():
        minimal = filters.get("min_allocatable_resources") if isinstance(filters, dict) else None
        if minimal is None:
            continue
        given = minimal.get("quantities", []) if isinstance(minimal, dict) else None
        if not isinstance(given, list):
            raise ConstraintError(
                f"Invalid 'min_allocatable_resources' of role '{role}': no list of quantities"
            )
        result[role] = tuple(_quantities(role, item) for item in given)
    return result


def _quantities(role: str, item: object) -> Quantities:
    amounts = item.get("quantities", {}) if isinstance(item, dict) else None
    if not isinstance(amounts, dict) or not amounts:
        raise ConstraintError("Resource quantities must contain at least one quantity")
    result: Quantities = {}
    for name, scalar in amounts.items():
        value = scalar.get("value") if isinstance(scalar, dict) else None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e15:
            raise ConstraintError(
                f"Invalid resource quantity '{name}' of role '{role}': must be a number of 0 or more"
            )
        result[name] = round(value * 1000)
    return result


def _groups(role: str, constraints: object) -> list[list[_Constraint]]:
    groups = constraints.get("groups", []) if isinstance(constraints, dict) else []
    if not isinstance(groups, list) or not groups:
        raise ConstraintError(
            f"'OfferConstraints::role_constraints' has an empty 'RoleConstraints::groups' for role {role}"
        )
    result = []
    for group in groups:
        items = group.get("attribute_constraints", []) if isinstance(group, dict) else []
        if not isinstance(items, list) or not items:
            raise ConstraintError(
                f"'OfferConstraints::RoleConstraints::groups' for role {role}contains an empty RoleConstraints::Group"
            )
        try:
            result.append([_constraint(item) for item in items])
        except ConstraintError as error:
            raise ConstraintError(f"A role {role} has an invalid 'AttributeConstraint': {error}") from error
    return result


def _constraint(item: object) -> _Constraint:
    selector = _mapping(item, "selector")
    if "attribute_name" in selector:
        pseudo, name = False, str(selector["attribute_name"])
    elif "pseudoattribute_type" in selector:
        pseudo, name = True, str(selector["pseudoattribute_type"])
        if name not in _PSEUDO:
            raise ConstraintError("Unknown pseudoattribute type")
    else:
        raise ConstraintError(
            "Exactly one of 'AttributeConstraint::Selector::name' or"
            " 'AttributeConstraint::Selector::pseudoattribute_type' must be set"
        )
    predicate = _mapping(item, "predicate")
    kind = next((name for name in _KINDS if name in predicate), None)
    if kind is None:
        raise ConstraintError("Unknown predicate type")
    return _Constraint(pseudo, name, _predicate(kind, _mapping(predicate, kind)))


def _predicate(kind: str, body: Mapping[str, object]) -> Predicate:
    wanted = not kind.startswith(("not_", "text_not_"))
    if kind.endswith("exists"):
        return lambda value: (value is not None) == wanted
    if kind.endswith("equals"):
        text = str(body.get("value", ""))
        return lambda value: value is _OTHER or (value == text) == wanted
    regex = _regex(str(body.get("regex", "")))
    return lambda value: (
        value is _OTHER or (isinstance(value, str) and regex.fullmatch(value) is not None) == wanted
    )


_OTHER = object()  # an attribute that is no text: a predicate about text says nothing of it


def _value(item: _Constraint, facts: Facts) -> object:
    if item.pseudo:
        return {"HOSTNAME": facts.hostname, "REGION": facts.region, "ZONE": facts.zone}[item.name]
    for attribute in facts.attributes:
        if attribute["name"] == item.name:
            return attribute["text"]["value"] if attribute["type"] == "TEXT" else _OTHER
    return None


def _regex(pattern: str) -> re.Pattern[str]:
    start = f"Failed to construct regex from pattern '{pattern}': "
    if len(pattern.encode()) > REGEX_BYTES_MAX:
        raise ConstraintError(f"{start}longer than {REGEX_BYTES_MAX} bytes")
    perl = re.search(r"\(\?(?:<?[=!]|\()", pattern)
    if perl:
        raise ConstraintError(f"{start}invalid perl operator: {perl[0]}")
    backward = re.search(r"(?<!\\)(?:\\\\)*(\\[1-9])", pattern)
    if backward:
        raise ConstraintError(f"{start}invalid escape sequence: {backward[1]}")
    try:
        return re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ConstraintError(start + _complaint(pattern, error)) from error


def _complaint(pattern: str, error: Exception) -> str:
    """Return what RE2 would say."""
    at = getattr(error, "pos", None) or 0
    text = str(error)
    if text.startswith("unterminated character set"):
        return f"missing ]: {pattern[at:]}"
    if text.startswith("missing )"):
        return f"missing ): {pattern}"
    if text.startswith("unbalanced parenthesis"):
        return f"unexpected ): {pattern}"
    if text.startswith("nothing to repeat"):
        return f"no argument for repetition operator: {pattern[at : at + 1]}"
    return text


def _mapping(holder: object, key: str) -> Mapping[str, object]:
    value = holder.get(key) if isinstance(holder, Mapping) else None
    return value if isinstance(value, Mapping) else {}

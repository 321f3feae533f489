"""Quotas of roles: how much a role may hold at most (limits), and how much is laid away for it (guarantees).

Amounts are thousandths by the name of the resource. A name that a quota does not mention is neither limited nor guaranteed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from stoker.mesos.embedded.core.codec import Message
from stoker.mesos.embedded.core.resources import Quantities

VALUE_MAX = 1e12


class QuotaError(Exception):
    """A quota that cannot be; the text says why."""


class Quota(NamedTuple):
    """The quota of one role."""

    limits: Quantities = {}
    guarantees: Quantities = {}


def quota_of(config: Message) -> tuple[str, Quota]:
    """Return the role and quota of a QuotaConfig.

    :raises QuotaError: no role, a nested one, no numbers, or a guarantee above its limit.
    """
    role = config.get("role") if isinstance(config, dict) else None
    if not isinstance(role, str) or not role or role == "*":
        raise QuotaError("Invalid QuotaConfig: Quota needs a role other than '*'")
    if "/" in role:
        raise QuotaError(f"Invalid QuotaConfig: Setting quota on nested role '{role}' is not supported yet")
    quota = Quota(_quantities(config, "limits"), _quantities(config, "guarantees"))
    for name, amount in quota.guarantees.items():
        if amount > quota.limits.get(name, amount):
            raise QuotaError(
                f"Invalid QuotaConfig: Invalid 'QuotaConfig': Guarantee '{name}:{amount / 1000:g}' is more than "
                f"the limit '{name}:{quota.limits[name] / 1000:g}' of role '{role}'"
            )
    return role, quota


def quota_message(role: str, quota: Quota) -> Message:
    """Return the QuotaConfig of a role."""
    message: Message = {"role": role}
    for name, amounts in (("guarantees", quota.guarantees), ("limits", quota.limits)):
        if amounts:
            message[name] = {key: {"value": amount / 1000} for key, amount in amounts.items()}
    return message


def add(total: Quantities, amounts: Mapping[str, int], sign: int = 1) -> None:
    """Add `amounts` to `total`, or take them away."""
    for name, amount in amounts.items():
        total[name] = total.get(name, 0) + sign * amount


def shortfall(wanted: Mapping[str, int], held: Mapping[str, int]) -> Quantities:
    """Return what `held` lacks of `wanted`."""
    lacking = {name: amount - held.get(name, 0) for name, amount in wanted.items()}
    return {name: amount for name, amount in lacking.items() if amount > 0}


def total_of(parts: Iterable[Mapping[str, int]]) -> Quantities:
    """Return the sum of `parts`."""
    total: Quantities = {}
    for part in parts:
        add(total, part)
    return total


def exceeds(limits: Mapping[str, int], held: Mapping[str, int]) -> bool:
    """Whether `held` is more than `limits` allow."""
    return any(held.get(name, 0) > amount for name, amount in limits.items())


def _quantities(config: Message, field: str) -> Quantities:
    result: Quantities = {}
    given = config.get(field) or {}
    if not isinstance(given, dict):
        raise QuotaError(f"Invalid QuotaConfig: '{field}' is not a map of scalars")
    for name, scalar in given.items():
        value = scalar.get("value") if isinstance(scalar, dict) else None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= VALUE_MAX:
            raise QuotaError(f"Invalid QuotaConfig: '{field}' of '{name}' must be a number of 0 or more")
        result[name] = round(value * 1000)
    return result

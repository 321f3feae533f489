"""Quotas and weights as an operator sets them, and the offers that are rescinded for them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from stoker.mesos.embedded.core import quota as quotas
from stoker.mesos.embedded.core.calls import Answer
from stoker.mesos.embedded.core.codec import Message
from stoker.mesos.embedded.core.quota import Quota, QuotaError, quota_message, quota_of
from stoker.mesos.embedded.core.reservations import is_within, role_error
from stoker.mesos.embedded.core.resources import Quantities

if TYPE_CHECKING:
    from stoker.mesos.embedded.core.master import Master

WEIGHT_MAX = 1e9


def update_quota(master: Master, configs: Iterable[Message], *, force: bool, now_ms: int) -> Answer:
    """Replace the quotas that `configs` name; without `force` guarantees must not exceed what the agents have."""
    try:
        given = [quota_of(config) for config in configs]
    except QuotaError as error:
        return Answer(400, str(error))
    guarantees = {role: quota.guarantees for role, quota in master.allocator.quotas.items()}
    guarantees |= {role: quota.guarantees for role, quota in given}
    wanted = quotas.total_of(guarantees.values())
    capacity = master.allocator.capacity
    if not force and quotas.shortfall(wanted, capacity):
        text = f"total quota guarantees '{_text(wanted)}' exceed cluster capacity '{_text(capacity)}'"
        return Answer(400, f"Invalid QuotaConfig: {text} (use 'force' flag to bypass this check)")
    for role, quota in given:
        master.allocator.set_quota(role, quota)
    for role, quota in given:
        _rescind_for_limits(master, role, quota, now_ms)
        _rescind_for_guarantees(master, role, quota, now_ms)
    return Answer(200)


def quota_configs(master: Master) -> list[Message]:
    """Return all quotas, as GET_QUOTA lists them."""
    return [quota_message(role, quota) for role, quota in master.allocator.quotas.items()]


def update_weights(master: Master, infos: Iterable[Message], now_ms: int) -> Answer:
    """Set the weights of roles; if one changes all offers are rescinded."""
    given: dict[str, float] = {}
    for info in infos:
        role, weight = (info.get("role"), info.get("weight")) if isinstance(info, dict) else (None, None)
        if not isinstance(role, str) or role_error(role):
            return Answer(400, f"Failed to validate update weights request: Invalid role '{role}'")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight <= WEIGHT_MAX:
            text = f"Invalid weight '{weight}' for role '{role}': Weights must be positive"
            return Answer(400, f"Failed to validate update weights request: {text}")
        given[role] = float(weight)
    changed = {
        name: value for name, value in given.items() if master.allocator.weights.get(name, 1.0) != value
    }
    for role, value in changed.items():
        master.allocator.set_weight(role, value)
    if changed:
        for agent in master.agents.values():
            master.rescind_offers(agent, now_ms)
    return Answer(200)


def weight_infos(master: Master) -> list[Message]:
    """Return all weights that were set, as GET_WEIGHTS lists them."""
    return [{"weight": weight, "role": role} for role, weight in master.allocator.weights.items()]


def _rescind_for_limits(master: Master, role: str, quota: Quota, now_ms: int) -> None:
    for offer in list(master.offers.values()):
        if not quotas.exceeds(quota.limits, master.allocator.consumed(role)):
            return
        if is_within(offer.grant.role, role):
            master.rescind_offer(offer, now_ms, 0)


def _rescind_for_guarantees(master: Master, role: str, quota: Quota, now_ms: int) -> None:
    """Rescind as if nothing were free: a real master does not look at what is."""
    held: Quantities = dict(master.allocator.consumed(role))
    for agent in master.agents.values():
        for offer in list(agent.offers.values()):
            if not quotas.shortfall(quota.guarantees, held):
                return
            if not is_within(offer.grant.role, role):
                quotas.add(held, offer.grant.resources.quantities())
                master.rescind_offer(offer, now_ms, 0)


def _text(amounts: Quantities) -> str:
    return "; ".join(f"{name}:{amount / 1000:.15g}" for name, amount in sorted(amounts.items()))

"""What a framework says of itself: at SUBSCRIBE and in UPDATE_FRAMEWORK, and what the master makes of it.

UPDATE_FRAMEWORK is strict where a second SUBSCRIBE is lenient: it refuses what SUBSCRIBE silently keeps as it was.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from stoker.mesos.embedded.core import validation
from stoker.mesos.embedded.core.allocator import Demand
from stoker.mesos.embedded.core.calls import Answer
from stoker.mesos.embedded.core.codec import Message
from stoker.mesos.embedded.core.constraints import ConstraintError, Constraints, minimums
from stoker.mesos.embedded.core.records import Framework

if TYPE_CHECKING:
    from stoker.mesos.embedded.core.master import Master

_KEPT = ("user", "checkpoint")  # may not be changed


def subscription_error(body: Message) -> str | None:
    """Return what is wrong with the `body` of SUBSCRIBE or UPDATE_FRAMEWORK by itself."""
    info = body["framework_info"]
    suppressed = set(body.get("suppressed_roles", ()))
    error = validation.framework_error(info, suppressed)
    if error:
        return error
    try:
        minimums(info.get("offer_filters"))
    except ConstraintError as problem:
        return str(problem)
    try:
        constraints = constraints_of(body)
    except ConstraintError as problem:
        return f"Offer constraints are not valid: {problem}"
    for role in sorted(constraints.roles if constraints else ()):
        if role not in validation.framework_roles(info):
            text = "Offer constraints specify `role_constraints` for a role"
            return f"{text} '{role}'not contained in the set of roles"
    return None


def constraints_of(body: Message) -> Constraints | None:
    """Return the offer constraints in the `body` of SUBSCRIBE or UPDATE_FRAMEWORK.

    :raises ConstraintError: they are not valid.
    """
    given = body.get("offer_constraints")
    return Constraints(given) if given else None


def demand_of(framework: Framework) -> Demand:
    """Return what the allocator must know of a framework whose info passed `subscription_error`."""
    filters = minimums(framework.info.get("offer_filters"))
    return Demand(framework.capabilities, filters, framework.constraints)


def update_framework(master: Master, framework: Framework, body: Message, now_ms: int) -> Answer:
    """Take UPDATE_FRAMEWORK: what is wrong is answered, else the framework is another one from the next tick on."""
    info, known = copy.deepcopy(body["framework_info"]), framework.info
    error = subscription_error(body)
    if error:
        return Answer(400, f"'UpdateFramework' call is not valid: {error}")
    if info.get("principal") != known.get("principal"):
        text = "Changing framework's principal is not allowed."
        return Answer(400, f"FrameworkInfo update is not valid: {text}")
    for name in _KEPT:
        if info[name] != known[name]:
            change = f"attempted to update from '{_shown(known[name])}' to '{_shown(info[name])}'"
            text = f"Updating 'FrameworkInfo.{name}' is unsupported; {change}"
            return Answer(400, f"FrameworkInfo update is not valid: {text}")
    framework.info = info
    framework.constraints = constraints_of(body)
    for offer in master.offers_of(framework.framework_id):
        if offer.grant.role not in framework.roles:
            master.rescind_offer(offer, now_ms, 0)
    suppressed = set(body.get("suppressed_roles", ()))
    demand = demand_of(framework)
    master.allocator.update_framework(framework.framework_id, framework.roles, suppressed, demand)
    master.tell_agents(framework, now_ms)
    return Answer(200)


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)

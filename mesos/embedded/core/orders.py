"""What operators order by POST /api/v1: calls that change something. What they ask stands in `operator`.

Each order is one function of the master's parts; here it is only unpacked and sent there.
"""

from __future__ import annotations

from collections.abc import Callable

from stoker.mesos.embedded.core import draining, operating, sharing
from stoker.mesos.embedded.core.calls import Answer
from stoker.mesos.embedded.core.codec import Message
from stoker.mesos.embedded.core.master import Master
from stoker.mesos.embedded.core.ports import DrainConfig

# call -> the type of the operation that it is, and what the operation's body has
_OPERATIONS = {
    "RESERVE_RESOURCES": "RESERVE",
    "UNRESERVE_RESOURCES": "UNRESERVE",
    "CREATE_VOLUMES": "CREATE",
    "DESTROY_VOLUMES": "DESTROY",
    "GROW_VOLUME": "GROW_VOLUME",
    "SHRINK_VOLUME": "SHRINK_VOLUME",
}


def is_order(kind: str) -> bool:
    """Whether `perform` knows this call."""
    return kind in _OPERATIONS or kind in _ORDERS


def perform(master: Master, call: Message, now_ms: int) -> Answer:
    """Do what a decoded call of `is_order` says; its body is there."""
    kind = call["type"]
    body = call[kind.lower()]
    if kind not in _OPERATIONS:
        return _ORDERS[kind](master, body, now_ms)
    name = _OPERATIONS[kind]
    given = {key: value for key, value in body.items() if key != "agent_id"}
    operation = {"type": name, name.lower(): given}
    return operating.by_operator(master, body["agent_id"]["value"], operation, None, now_ms)


def _teardown(master: Master, body: Message, now_ms: int) -> Answer:
    if master.remove_framework(body["framework_id"]["value"], now_ms):
        return Answer(200)
    return Answer(400, "No framework found with specified ID")


def _mark_gone(master: Master, body: Message, now_ms: int) -> Answer:
    return draining.mark_gone(master, body["agent_id"]["value"], now_ms)


def _drain(master: Master, body: Message, now_ms: int) -> Answer:
    longest = body.get("max_grace_period")
    grace_ms = None
    if longest is not None:
        grace_ms = longest.get("seconds", 0) * 1000 + longest.get("nanos", 0) // 1_000_000
    config = DrainConfig(grace_ms, body.get("mark_gone", False))
    return draining.drain(master, body["agent_id"]["value"], config, now_ms)


def _deactivate(master: Master, body: Message, now_ms: int) -> Answer:
    return draining.deactivate(master, body["agent_id"]["value"], now_ms)


def _reactivate(master: Master, body: Message, now_ms: int) -> Answer:
    return draining.reactivate(master, body["agent_id"]["value"], now_ms)


def _update_schedule(master: Master, body: Message, now_ms: int) -> Answer:
    return master.maintenance.update_schedule(body["schedule"], now_ms)


def _start_maintenance(master: Master, body: Message, now_ms: int) -> Answer:
    return master.maintenance.start(body.get("machines", []), now_ms)


def _stop_maintenance(master: Master, body: Message, now_ms: int) -> Answer:
    return master.maintenance.stop(body.get("machines", []), now_ms)


def _update_quota(master: Master, body: Message, now_ms: int) -> Answer:
    force = body.get("force", False)
    return sharing.update_quota(master, body.get("quota_configs", []), force=force, now_ms=now_ms)


def _update_weights(master: Master, body: Message, now_ms: int) -> Answer:
    return sharing.update_weights(master, body.get("weight_infos", []), now_ms)


_ORDERS: dict[str, Callable[[Master, Message, int], Answer]] = {
    "TEARDOWN": _teardown,
    "MARK_AGENT_GONE": _mark_gone,
    "DRAIN_AGENT": _drain,
    "DEACTIVATE_AGENT": _deactivate,
    "REACTIVATE_AGENT": _reactivate,
    "UPDATE_MAINTENANCE_SCHEDULE": _update_schedule,
    "START_MAINTENANCE": _start_maintenance,
    "STOP_MAINTENANCE": _stop_maintenance,
    "UPDATE_QUOTA": _update_quota,
    "UPDATE_WEIGHTS": _update_weights,
}

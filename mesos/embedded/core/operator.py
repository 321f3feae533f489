"""The operator API of the master, POST /api/v1: the calls by which others ask who is there. What changes something: `orders`.

A call that a real master has and this one has not is answered 501; the shapes are those of transcript 20.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from stoker.mesos.embedded.core import draining, orders, sharing
from stoker.mesos.embedded.core.allocator import Grant
from stoker.mesos.embedded.core.calls import Answer, Refused, decode_call
from stoker.mesos.embedded.core.codec import Message
from stoker.mesos.embedded.core.master import Master
from stoker.mesos.embedded.core.records import AgentRecord, Framework, Task
from stoker.mesos.embedded.core.resources import EMPTY, Resources
from stoker.mesos.embedded.core.values import AGENT_CAPABILITIES, VERSION, AgentSpec


def decode_operator_call(headers: Mapping[str, str], body: bytes) -> Message:
    """Return the validated call in `body`; `headers` have lower-case names.

    :raises Refused: 400 or 415 as a real master; 501 for what the embedded one does not have.
    """
    call = decode_call("MasterCall", "master::Call", headers, body)
    kind = call["type"]
    if orders.is_order(kind) and kind.lower() not in call:
        raise Refused(400, f"Failed to validate master::Call: Expecting '{kind.lower()}' to be present")
    if kind not in _VIEWS and not orders.is_order(kind):
        raise Refused(501, f"The embedded Mesos does not have {kind}")
    return call


def answer(master: Master, call: Message, now_ms: int) -> Answer:
    """Answer a call that `decode_operator_call` took: do what it orders, or show what it asks for."""
    kind = call["type"]
    if orders.is_order(kind):
        return orders.perform(master, call, now_ms)
    body = {"type": kind, kind.lower(): _VIEWS[kind](master)}
    return Answer(200, json.dumps(body, separators=(",", ":")), (("Content-Type", "application/json"),))


def refuse_on_agent(headers: Mapping[str, str], body: bytes) -> Answer:
    """Answer a call to an agent's operator API, of which there is nothing here.

    :raises Refused: 400 or 415 as a real agent.
    """
    kind = decode_call("MasterCall", "agent::Call", headers, body)["type"]
    return Answer(501, f"The embedded Mesos does not have {kind}")


def _health(_: Master) -> Message:
    return {"healthy": True}


def _version(_: Master) -> Message:
    return {"version_info": {"version": VERSION}}


def _master(master: Master) -> Message:
    started = master.wall_seconds(master.started_ms)
    return {"master_info": master.master_info(), "start_time": started, "elected_time": started}


def _frameworks(master: Master) -> Message:
    """The registered ones, also those that are away within their failover_timeout; then those that were removed."""
    return {
        "frameworks": [_framework(master, framework) for framework in master.frameworks.values()],
        "completed_frameworks": [_framework(master, framework) for framework in master.completed],
    }


def _agents(master: Master) -> Message:
    recovered = [_agent_info(absent.spec) for absent in master.registry.recovered.values()]
    agents = [_agent(master, agent) for agent in master.agents.values()]
    return {"agents": agents, "recovered_agents": recovered}


def _tasks(master: Master) -> Message:
    frameworks = (*master.frameworks.values(), *master.completed)
    result: Message = {}
    for name, field in (
        ("tasks", "tasks"),
        ("unreachable_tasks", "unreachable_tasks"),
        ("completed_tasks", "completed_tasks"),
    ):
        found = []
        for framework in frameworks:
            held = getattr(framework, field)
            found += [_task(framework, task) for task in (held.values() if isinstance(held, dict) else held)]
        result[name] = found
    return result


def _task(framework: Framework, task: Task) -> Message:
    result: Message = {"name": task.info["name"], "task_id": {"value": task.task_id}}
    result["framework_id"] = {"value": framework.framework_id}
    if task.executor_id:
        result["executor_id"] = {"value": task.executor_id}
    result |= {
        "agent_id": {"value": task.agent_id},
        "state": task.state,
        "resources": task.info["resources"],
        "statuses": list(task.statuses),
    }
    if task.status_uuid is not None:
        result |= {"status_update_state": task.state, "status_update_uuid": task.status_uuid}
    return result | {key: task.info[key] for key in ("labels", "discovery") if key in task.info}


def _executors(master: Master) -> Message:
    return {
        "executors": [
            {"executor_info": record.info, "agent_id": {"value": record.agent_id}}
            for framework in master.frameworks.values()
            for record in framework.executors.values()
        ]
    }


def _roles(master: Master) -> Message:
    held: dict[str, Resources] = {}
    frameworks: dict[str, list[Message]] = {}
    offered = [offer.grant for offer in master.offers.values()]
    for framework in master.frameworks.values():
        for role in framework.roles:
            frameworks.setdefault(role, []).append({"value": framework.framework_id})
        offered += _used(framework)
    for grant in offered:
        held[grant.role] = held.get(grant.role, EMPTY) + grant.resources
    names = sorted(
        frameworks.keys() | held.keys() | master.allocator.quotas.keys() | master.allocator.weights.keys()
    )
    roles = []
    for name in names:
        shown: Message = {"name": name, "weight": master.allocator.weights.get(name, 1.0)}
        if name in frameworks:
            shown["frameworks"] = frameworks[name]
        if held.get(name, EMPTY):
            shown["resources"] = _sums(held[name])
        roles.append(shown)
    return {"roles": roles}


def _sums(resources: Resources) -> list[Message]:
    """Return the scalars of resources, whatever they are reserved for, as sums."""
    quantities = resources.quantities()
    return [
        {"name": name, "type": "SCALAR", "scalar": {"value": quantities[name] / 1000}}
        for name in sorted(quantities)
    ]


def _state(master: Master) -> Message:
    return {
        "get_tasks": _tasks(master),
        "get_executors": _executors(master),
        "get_frameworks": _frameworks(master),
        "get_agents": _agents(master),
    }


def _quota(master: Master) -> Message:
    configs = sharing.quota_configs(master)
    return {"status": {"infos": [{"role": config["role"]} for config in configs], "configs": configs}}


def _weights(master: Master) -> Message:
    return {"weight_infos": sharing.weight_infos(master)}


def _framework(master: Master, framework: Framework) -> Message:
    seen_ms = framework.registered_ms if framework.reregistered_ms is None else framework.reregistered_ms
    result: Message = {
        "framework_info": framework.info,
        "active": framework.connected,
        "connected": framework.connected,
        "recovered": framework.is_recovered,
        "registered_time": _time(master, framework.registered_ms),
        "reregistered_time": _time(master, seen_ms),
    }
    if framework.unregistered_ms is not None:
        result["unregistered_time"] = _time(master, framework.unregistered_ms)
    offers = (o.grant for o in master.offers.values() if o.grant.framework_id == framework.framework_id)
    for name, grants in (("allocated_resources", _used(framework)), ("offered_resources", list(offers))):
        if grants:
            result[name] = _by_role(grants)
    result["offer_constraints"] = framework.constraints.wire if framework.constraints else {}
    return result


def _agent(master: Master, agent: AgentRecord) -> Message:
    spec = agent.spec
    grants = [g for f in master.frameworks.values() for g in _used(f) if g.agent_id == spec.agent_id]
    result: Message = {
        "agent_info": _agent_info(spec),
        "active": agent.is_active,
        "deactivated": agent.is_deactivated,
        "version": VERSION,
        "pid": spec.pid,
        "registered_time": _time(master, agent.registered_ms),
        "total_resources": _as_given(master.allocator.total(spec.agent_id).to_messages(with_role=True)),
    }
    if grants:
        result["allocated_resources"] = _by_role(grants)
    if agent.reregistered_ms is not None:
        result["reregistered_time"] = _time(master, agent.reregistered_ms)
    drain = draining.drain_info(agent)
    if drain is not None:
        result["drain_info"] = drain
    result["capabilities"] = [{"type": name} for name in AGENT_CAPABILITIES]
    return result


def _agent_info(spec: AgentSpec) -> Message:
    info: Message = {
        "hostname": spec.hostname,
        "port": spec.port,
        "resources": _as_given(spec.resources.to_messages()),
        "attributes": list(spec.attributes),
        "id": {"value": spec.agent_id},
        "checkpoint": True,
    }
    return info if spec.domain is None else info | {"domain": spec.domain}


def _used(framework: Framework) -> list[Grant]:
    tasks = [task.grant for task in framework.tasks.values() if not task.released]
    return tasks + [record.grant for record in framework.executors.values()]


def _by_role(grants: list[Grant]) -> list[Message]:
    totals: dict[str, Resources] = {}
    for grant in grants:
        totals[grant.role] = totals.get(grant.role, EMPTY) + grant.resources
    return [m for role, total in totals.items() for m in total.to_messages(role, with_role=True)]


def _as_given(resources: list[Message]) -> list[Message]:
    """Return an agent's own resources as it lists them: ports last, where offers have them first."""
    return sorted(resources, key=lambda resource: resource["type"] == "RANGES")


def _time(master: Master, at_ms: int) -> Message:
    return {"nanoseconds": round(master.wall_seconds(at_ms) * 1000) * 1_000_000}


_VIEWS: dict[str, Callable[[Master], Message]] = {
    "GET_HEALTH": _health,
    "GET_VERSION": _version,
    "GET_MASTER": _master,
    "GET_FRAMEWORKS": _frameworks,
    "GET_AGENTS": _agents,
    "GET_TASKS": _tasks,
    "GET_EXECUTORS": _executors,
    "GET_ROLES": _roles,
    "GET_STATE": _state,
    "GET_QUOTA": _quota,
    "GET_WEIGHTS": _weights,
    "GET_MAINTENANCE_SCHEDULE": lambda master: master.maintenance.schedule(),
    "GET_MAINTENANCE_STATUS": lambda master: master.maintenance.status(),
}

"""The operator API of the master, POST /api/v1: the calls by which others ask who is there. Reads only, changes nothing.

A call that a real master has and this one has not is answered 501; the shapes are those of transcript 20.
"""

from __future__ import annotations

from collections.abc import Mapping

from stoker.mesos.embedded.core.allocator import Grant
from stoker.mesos.embedded.core.calls import Answer, Refused, decode_call
from stoker.mesos.embedded.core.codec import Message
from stoker.mesos.embedded.core.master import AgentPort, Master
from stoker.mesos.embedded.core.records import Framework
from stoker.mesos.embedded.core.resources import EMPTY, Resources
from stoker.mesos.embedded.core.values import VERSION


def answer(master: Master, headers: Mapping[str, str], body: bytes) -> Message:
    """Return the response to the call in `body`; `headers` have lower-case names.

    :raises Refused: 400 or 415 as a real master; 501 for what the embedded one does not have.
    """
    kind = decode_call("MasterCall", "master::Call", headers, body)["type"]
    view = _VIEWS.get(kind)
    if view is None:
        raise Refused(501, f"The embedded Mesos does not have {kind}")
    return {"type": kind, kind.lower(): view(master)}


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
    # Agents live and die with this process: none is ever known from before and not back yet.
    return {"agents": [_agent(master, agent) for agent in master.agents.values()], "recovered_agents": []}


def _framework(master: Master, framework: Framework) -> Message:
    seen_ms = framework.registered_ms if framework.reregistered_ms is None else framework.reregistered_ms
    result: Message = {
        "framework_info": framework.info,
        "active": framework.connected,
        "connected": framework.connected,
        "recovered": False,
        "registered_time": _time(master, framework.registered_ms),
        "reregistered_time": _time(master, seen_ms),
    }
    if framework.unregistered_ms is not None:
        result["unregistered_time"] = _time(master, framework.unregistered_ms)
    offers = (o.grant for o in master.offers.values() if o.grant.framework_id == framework.framework_id)
    for name, grants in (("allocated_resources", _used(framework)), ("offered_resources", list(offers))):
        if grants:
            result[name] = _by_role(grants)
    result["offer_constraints"] = {}
    return result


def _agent(master: Master, agent: AgentPort) -> Message:
    spec = agent.spec
    grants = [g for f in master.frameworks.values() for g in _used(f) if g.agent_id == spec.agent_id]
    result: Message = {
        "agent_info": {
            "hostname": spec.hostname,
            "port": spec.port,
            "resources": _as_given(spec.resources.to_messages()),
            "attributes": list(spec.attributes),
            "id": {"value": spec.agent_id},
            "checkpoint": True,
        },
        "active": True,
        "deactivated": False,
        "version": VERSION,
        "pid": spec.pid,
        "registered_time": _time(master, master.registered_ms[spec.agent_id]),
        "total_resources": _as_given(spec.resources.to_messages(with_role=True)),
    }
    if grants:
        result["allocated_resources"] = _by_role(grants)
    capabilities = ("MULTI_ROLE", "HIERARCHICAL_ROLE", "RESERVATION_REFINEMENT")
    result["capabilities"] = [{"type": name} for name in capabilities]
    return result


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


_VIEWS = {
    "GET_HEALTH": _health,
    "GET_VERSION": _version,
    "GET_MASTER": _master,
    "GET_FRAMEWORKS": _frameworks,
    "GET_AGENTS": _agents,
}

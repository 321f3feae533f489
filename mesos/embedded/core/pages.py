"""What a master and an agent show besides /state: /slaves, /frameworks, /state-summary, /roles, /metrics/snapshot.

Shapes are those of transcript 20; of the metrics only those that say something here.
"""

from __future__ import annotations

from collections.abc import Iterable

from stoker.mesos.embedded.core import sharing
from stoker.mesos.embedded.core.agent import Agent
from stoker.mesos.embedded.core.allocator import Grant
from stoker.mesos.embedded.core.codec import Message
from stoker.mesos.embedded.core.executors import Executor, FrameworkOnAgent
from stoker.mesos.embedded.core.master import Master
from stoker.mesos.embedded.core.records import Framework, grants_on
from stoker.mesos.embedded.core.resources import EMPTY, Resources, from_messages
from stoker.mesos.embedded.core.validation import framework_roles
from stoker.mesos.embedded.core.values import AGENT_CAPABILITIES, VERSION
from stoker.mesos.embedded.core.view import in_full, show_agent, show_attribute, show_framework, show_task

_COUNTED = tuple(
    f"TASK_{name}"
    for name in "STAGING STARTING RUNNING KILLING FINISHED KILLED FAILED LOST ERROR UNREACHABLE".split()
)
_SUMMARY = (
    *("id", "name", "used_resources", "offered_resources", "capabilities", "hostname", "webui_url"),
    *("active", "connected", "recovered"),
)


def slaves(master: Master) -> Message:
    """Return the body of GET /slaves."""
    found = []
    for agent in master.agents.values():
        found.append(
            show_agent(master, agent)
            | {
                "unreserved_resources_full": _as_given(
                    in_full(master.allocator.total(agent.agent_id).unreserved())
                ),
                "used_resources_full": _allocated(list(grants_on(agent))),
                "offered_resources_full": _allocated([offer.grant for offer in agent.offers.values()]),
            }
        )
    recovered = [
        {"id": absent.spec.agent_id, "hostname": absent.spec.hostname, "port": absent.spec.port}
        for absent in master.registry.recovered.values()
    ]
    return {"slaves": found, "recovered_slaves": recovered}


def frameworks(master: Master) -> Message:
    """Return the body of GET /frameworks."""
    return {
        "frameworks": [show_framework(master, framework) for framework in master.frameworks.values()],
        "completed_frameworks": [show_framework(master, framework) for framework in master.completed],
        "unregistered_frameworks": [],
    }


def state_summary(master: Master) -> Message:
    """Return the body of GET /state-summary: agents and frameworks with their tasks counted."""
    agents, owners = [], []
    for agent in master.agents.values():
        names = sorted({owner for owner, _ in (*agent.tasks, *agent.executors)})
        counts = _counts(task.state for task in agent.tasks.values())
        agents.append(show_agent(master, agent) | counts | {"framework_ids": names})
    for framework in master.frameworks.values():
        shown = show_framework(master, framework)
        counts = _counts(task.state for task in (*framework.tasks.values(), *framework.completed_tasks))
        names = sorted({task.agent_id for task in framework.tasks.values()})
        owners.append({key: shown[key] for key in _SUMMARY} | counts | {"slave_ids": names})
    return {"hostname": master.spec.hostname, "slaves": agents, "frameworks": owners}


def roles(master: Master) -> Message:
    """Return the body of GET /roles."""
    used, offered = _by_role(_used(master)), _by_role([offer.grant for offer in master.offers.values()])
    owners: dict[str, list[str]] = {}
    for framework in master.frameworks.values():
        for role in framework.roles:
            owners.setdefault(role, []).append(framework.framework_id)
    quotas = {config["role"]: config for config in sharing.quota_configs(master)}
    weights = master.allocator.weights
    found = []
    for name in sorted(owners.keys() | used.keys() | offered.keys() | quotas.keys() | weights.keys()):
        allocated, held = used.get(name, EMPTY), offered.get(name, EMPTY)
        quota: Message = {"role": name, "guarantee": {}, "limit": {}, "consumed": _amounts(allocated)}
        for key, short in (("guarantees", "guarantee"), ("limits", "limit")):
            given = quotas.get(name, {}).get(key, {})
            quota[short] = {resource: amount["value"] for resource, amount in given.items()}
        found.append(
            {
                "name": name,
                "weight": weights.get(name, 1.0),
                "quota": quota,
                "resources": _amounts(allocated + held),
                "allocated": _amounts(allocated),
                "offered": _amounts(held),
                "reserved": {},
                "frameworks": owners.get(name, []),
            }
        )
    return {"roles": found}


def metrics(master: Master, now_ms: int) -> Message:
    """Return the body of GET /metrics/snapshot."""
    connected = sum(framework.connected for framework in master.frameworks.values())
    active = sum(agent.is_active for agent in master.agents.values())
    result: Message = {
        "master/elected": 1.0,
        "master/uptime_secs": (now_ms - master.started_ms) / 1000,
        "master/frameworks_active": float(connected),
        "master/frameworks_connected": float(connected),
        "master/frameworks_disconnected": float(len(master.frameworks) - connected),
        "master/slaves_active": float(active),
        "master/slaves_inactive": float(len(master.agents) - active),
        "master/slaves_unreachable": float(len(master.registry.unreachable)),
        "master/outstanding_offers": float(len(master.offers)),
    }
    tasks = [task for framework in master.frameworks.values() for task in framework.tasks.values()]
    for name in ("staging", "starting", "running", "killing"):
        result[f"master/tasks_{name}"] = float(sum(task.state == f"TASK_{name.upper()}" for task in tasks))
    return result


def agent_state(agent: Agent, master: Master) -> Message:
    """Return the body of an agent's GET /state; of its tasks' statuses it shows those that the master has seen."""
    spec = agent.spec
    record = master.agents.get(spec.agent_id)
    total = spec.resources if record is None else master.allocator.total(spec.agent_id)
    used = EMPTY
    for grant in [] if record is None else grants_on(record):
        used = used + grant.resources
    roles = sorted({key.role for key in total.items if key.stack})
    reserved = {role: total.for_role(role) - total.unreserved() for role in roles}
    return {
        "version": VERSION,
        "start_time": master.wall_seconds(master.started_ms),
        "id": spec.agent_id,
        "pid": spec.pid,
        "hostname": spec.hostname,
        "capabilities": list(AGENT_CAPABILITIES),
        "resources": total.summary(),
        "reserved_resources": {role: held.summary() for role, held in reserved.items()},
        "unreserved_resources": total.unreserved().summary(),
        "reserved_resources_full": {role: _as_given(in_full(held)) for role, held in reserved.items()},
        "unreserved_resources_full": _as_given(in_full(total.unreserved())),
        "reserved_resources_allocated": {
            role: held.common(used).summary() for role, held in reserved.items() if held.common(used)
        },
        "unreserved_resources_allocated": used.unreserved().summary(),
        "resource_providers": [],
        "attributes": {item["name"]: show_attribute(item) for item in spec.attributes},
        "master_hostname": master.spec.hostname,
        "frameworks": [_on_agent(name, known, master) for name, known in agent.frameworks.items()],
        "completed_frameworks": [],
    }


def _on_agent(framework_id: str, framework: FrameworkOnAgent, master: Master) -> Message:
    owner = master.frameworks.get(framework_id)
    executors = [
        {
            "id": executor.executor_id,
            "name": executor.info.get("name", ""),
            "source": executor.info.get("source", ""),
            "container": executor.container_id,
            "directory": executor.sandbox,
            "resources": _sum(executor).summary(),
            "role": _role(executor),
            "type": executor.info.get("type", "CUSTOM"),
            "tasks": [
                show_task(owner, owner.tasks[name])
                for name in executor.launched
                if owner is not None and name in owner.tasks
            ],
            "queued_tasks": [{"id": name, "name": task["name"]} for name, task in executor.queued.items()],
            "completed_tasks": [],
        }
        for executor in framework.executors.values()
    ]
    info = framework.info
    shown = {key: info[key] for key in ("name", "user", "failover_timeout", "checkpoint")}
    shown |= {"hostname": info.get("hostname", ""), "roles": list(framework_roles(info))}
    return {"id": framework_id, **shown, "executors": executors, "completed_executors": []}


def _sum(executor: Executor) -> Resources:
    total = EMPTY
    for holder in (executor.info, *executor.launched.values(), *executor.queued.values()):
        if holder.get("resources"):
            total = total + from_messages(holder["resources"], _role(executor))
    return total


def _role(executor: Executor) -> str:
    """Return the role that an executor's first task was launched for."""
    for task in (*executor.launched.values(), *executor.queued.values()):
        for resource in task.get("resources", ()):
            return str(resource["allocation_info"]["role"])
    return "*"


def _as_given(resources: list[Message]) -> list[Message]:
    """Return an agent's own resources as it lists them: ports last, where offers have them first."""
    return sorted(resources, key=lambda resource: bool(resource["type"] == "RANGES"))


def _used(master: Master) -> list[Grant]:
    return [grant for framework in master.frameworks.values() for grant in _used_by(framework)]


def _used_by(framework: Framework) -> list[Grant]:
    tasks = [task.grant for task in framework.tasks.values() if not task.released]
    return tasks + [record.grant for record in framework.executors.values()]


def _by_role(grants: list[Grant]) -> dict[str, Resources]:
    totals: dict[str, Resources] = {}
    for grant in grants:
        totals[grant.role] = totals.get(grant.role, EMPTY) + grant.resources
    return totals


def _allocated(grants: list[Grant]) -> list[Message]:
    return [
        old | new
        for role, total in _by_role(grants).items()
        for new, old in zip(total.to_messages(role), total.to_messages(role, with_role=True), strict=True)
    ]


def _amounts(resources: Resources) -> Message:
    """Return amounts by name; of ranges it is how many numbers they have."""
    result = {name: amount / 1000 for name, amount in resources.quantities().items()}
    for key, spans in resources.items.items():
        if not isinstance(spans, int):
            count = sum(end - begin + 1 for begin, end in spans)
            result[key.name] = result.get(key.name, 0.0) + count
    return result


def _counts(states: Iterable[str]) -> Message:
    counts = dict.fromkeys(_COUNTED, 0)
    for state in states:
        counts[state] = counts.get(state, 0) + 1
    return counts

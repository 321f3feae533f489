"""What the master shows of itself at /state: a small, true part of what a real one shows, in the same shape."""

from __future__ import annotations

from stoker.mesos.embedded.core.codec import Message
from stoker.mesos.embedded.core.master import CAPABILITIES, AgentPort, Master
from stoker.mesos.embedded.core.records import Framework, Task, executor_used
from stoker.mesos.embedded.core.resources import EMPTY, Resources
from stoker.mesos.embedded.core.values import VERSION


def state(master: Master) -> Message:
    """Return the body of GET /state."""
    spec = master.spec
    pid = f"master@{spec.ip}:{spec.port}"
    return {
        "version": VERSION,
        "start_time": master.wall_seconds(master.started_ms),
        "elected_time": master.wall_seconds(master.started_ms),
        "id": spec.master_id,
        "pid": pid,
        "hostname": spec.hostname,
        "capabilities": list(CAPABILITIES),
        "activated_slaves": float(len(master.agents)),
        "deactivated_slaves": 0.0,
        "unreachable_slaves": 0.0,
        "leader": pid,
        "leader_info": {"id": spec.master_id, "pid": pid, "port": spec.port, "hostname": spec.hostname},
        "slaves": [_agent(master, agent) for agent in master.agents.values()],
        "recovered_slaves": [],
        "frameworks": [_framework(master, framework) for framework in master.frameworks.values()],
        "completed_frameworks": [_framework(master, framework) for framework in master.completed],
        "orphan_tasks": [],
        "unregistered_frameworks": [],
    }


def tasks(master: Master) -> Message:
    """Return the body of GET /tasks."""
    return {"tasks": [_task(f, t) for f in master.frameworks.values() for t in f.tasks.values()]}


def _agent(master: Master, agent: AgentPort) -> Message:
    spec = agent.spec
    used = offered = EMPTY
    for framework in master.frameworks.values():
        used = used + _used(framework, spec.agent_id)
    for offer in master.offers.values():
        if offer.grant.agent_id == spec.agent_id:
            offered = offered + offer.grant.resources
    return {
        "id": spec.agent_id,
        "hostname": spec.hostname,
        "port": spec.port,
        "attributes": {item["name"]: _attribute(item) for item in spec.attributes},
        "pid": spec.pid,
        "registered_time": master.wall_seconds(master.registered_ms[spec.agent_id]),
        "resources": spec.resources.summary(),
        "used_resources": used.summary(),
        "offered_resources": offered.summary(),
        "reserved_resources": {},
        "unreserved_resources": spec.resources.summary(),
        "active": True,
        "deactivated": False,
        "version": VERSION,
        "capabilities": ["MULTI_ROLE", "HIERARCHICAL_ROLE", "RESERVATION_REFINEMENT"],
    }


def _framework(master: Master, framework: Framework) -> Message:
    info = framework.info
    offers = [o for o in master.offers.values() if o.grant.framework_id == framework.framework_id]
    offered = EMPTY
    for offer in offers:
        offered = offered + offer.grant.resources
    result: Message = {
        "id": framework.framework_id,
        "name": info["name"],
        "used_resources": (executor_used(framework) or EMPTY).summary(),
        "offered_resources": offered.summary(),
        "capabilities": sorted(framework.capabilities),
        "hostname": info.get("hostname", ""),
        "webui_url": info.get("webui_url", ""),
        "active": framework.connected,
        "connected": framework.connected,
        "recovered": False,
        "user": info["user"],
        "failover_timeout": info["failover_timeout"],
        "checkpoint": info["checkpoint"],
        "registered_time": master.wall_seconds(framework.registered_ms),
        "unregistered_time": 0.0,
        "tasks": [_task(framework, task) for task in framework.tasks.values()],
        "unreachable_tasks": [],
        "completed_tasks": [_task(framework, task) for task in framework.completed_tasks],
        "offers": [
            {
                "id": offer.offer_id,
                "framework_id": framework.framework_id,
                "allocation_info": {"role": offer.grant.role},
                "slave_id": offer.grant.agent_id,
                "resources": offer.grant.resources.summary(),
            }
            for offer in offers
        ],
        "executors": [_executor(framework, name) for name in framework.executors],
    }
    if framework.reregistered_ms is not None:
        result["reregistered_time"] = master.wall_seconds(framework.reregistered_ms)
    if framework.unregistered_ms is not None:
        result["unregistered_time"] = master.wall_seconds(framework.unregistered_ms)
    if "MULTI_ROLE" in framework.capabilities:
        result["roles"] = list(framework.roles)
    else:
        result["role"] = framework.roles[0]
    return result


def _executor(framework: Framework, key: tuple[str, str]) -> Message:
    record = framework.executors[key]
    return {
        "executor_id": key[1],
        "name": record.info.get("name", ""),
        "framework_id": framework.framework_id,
        "command": record.info["command"],
        "resources": record.grant.resources.summary(),
        "role": record.grant.role,
        "type": record.info.get("type", "CUSTOM"),
        "slave_id": record.agent_id,
    }


def _task(framework: Framework, task: Task) -> Message:
    result: Message = {
        "id": task.task_id,
        "name": task.info["name"],
        "framework_id": framework.framework_id,
        "executor_id": task.executor_id,
        "slave_id": task.agent_id,
        "state": task.state,
        "resources": task.grant.resources.summary(),
        "role": task.grant.role,
        "statuses": [
            {
                key: status[key]
                for key in ("state", "timestamp", "container_status", "healthy")
                if key in status
            }
            for status in task.statuses
        ],
    }
    if "labels" in task.info:
        result["labels"] = task.info["labels"].get("labels", [])
    if "discovery" in task.info:
        result["discovery"] = task.info["discovery"]
    return result


def _used(framework: Framework, agent_id: str) -> Resources:
    total = EMPTY
    for task in framework.tasks.values():
        if task.agent_id == agent_id and not task.released:
            total = total + task.grant.resources
    for record in framework.executors.values():
        if record.agent_id == agent_id:
            total = total + record.grant.resources
    return total


def _attribute(item: Message) -> object:
    if "scalar" in item:
        return item["scalar"]["value"]
    return item["text"]["value"]

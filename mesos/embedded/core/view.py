"""What the master shows of itself at /state: a small, true part of what a real one shows, in the same shape."""

from __future__ import annotations

from stoker.mesos.embedded.core.codec import Message
from stoker.mesos.embedded.core.draining import drain_info
from stoker.mesos.embedded.core.master import Master
from stoker.mesos.embedded.core.records import AgentRecord, Framework, Task, executor_used, grants_on
from stoker.mesos.embedded.core.resources import EMPTY, Resources
from stoker.mesos.embedded.core.values import AGENT_CAPABILITIES, MASTER_CAPABILITIES, VERSION, AgentSpec

CAPABILITIES = (  # in the order in which Mesos lists them
    "REVOCABLE_RESOURCES",
    "TASK_KILLING_STATE",
    "GPU_RESOURCES",
    "SHARED_RESOURCES",
    "PARTITION_AWARE",
    "MULTI_ROLE",
    "RESERVATION_REFINEMENT",
    "REGION_AWARE",
)


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
        "capabilities": list(MASTER_CAPABILITIES),
        "activated_slaves": float(sum(agent.is_active for agent in master.agents.values())),
        "deactivated_slaves": float(sum(not agent.is_active for agent in master.agents.values())),
        "unreachable_slaves": float(len(master.registry.unreachable)),
        "leader": pid,
        "leader_info": {"id": spec.master_id, "pid": pid, "port": spec.port, "hostname": spec.hostname},
        "slaves": [show_agent(master, agent) for agent in master.agents.values()],
        "recovered_slaves": [_recovered(absent.spec) for absent in master.registry.recovered.values()],
        "frameworks": [show_framework(master, framework) for framework in master.frameworks.values()],
        "completed_frameworks": [show_framework(master, framework) for framework in master.completed],
        "orphan_tasks": [],
        "unregistered_frameworks": [],
    }


def tasks(master: Master) -> Message:
    """Return the body of GET /tasks."""
    return {"tasks": [show_task(f, t) for f in master.frameworks.values() for t in f.tasks.values()]}


def show_agent(master: Master, agent: AgentRecord) -> Message:
    spec, total = agent.spec, master.allocator.total(agent.agent_id)
    roles = sorted({key.role for key in total.items if key.stack})
    used = offered = EMPTY
    for grant in grants_on(agent):
        used = used + grant.resources
    for offer in agent.offers.values():
        offered = offered + offer.grant.resources
    result: Message = {
        "id": spec.agent_id,
        "hostname": spec.hostname,
        "port": spec.port,
        "attributes": {item["name"]: show_attribute(item) for item in spec.attributes},
        "pid": spec.pid,
        "registered_time": master.wall_seconds(agent.registered_ms),
        "resources": total.summary(),
        "used_resources": used.summary(),
        "offered_resources": offered.summary(),
        "reserved_resources": {role: _reserved(total, role).summary() for role in roles},
        "unreserved_resources": total.unreserved().summary(),
        "active": agent.is_active,
        "deactivated": agent.is_deactivated,
        "version": VERSION,
        "capabilities": list(AGENT_CAPABILITIES),
        "reserved_resources_full": {role: in_full(_reserved(total, role)) for role in roles},
    }
    if agent.reregistered_ms is not None:
        result["reregistered_time"] = master.wall_seconds(agent.reregistered_ms)
    if agent.draining is not None:
        result["drain_info"] = drain_info(agent)
    return result


def _recovered(spec: AgentSpec) -> Message:
    return {"id": spec.agent_id, "hostname": spec.hostname, "port": spec.port, "pid": spec.pid}


def _reserved(total: Resources, role: str) -> Resources:
    return total.select(lambda key: key.role == role and bool(key.stack))


def in_full(resources: Resources) -> list[Message]:
    """Return resources in both formats at once."""
    pairs = zip(resources.to_messages(), resources.to_messages(with_role=True), strict=True)
    return [old | new for new, old in pairs]


def show_framework(master: Master, framework: Framework) -> Message:
    info = framework.info
    offers = [o for o in master.offers.values() if o.grant.framework_id == framework.framework_id]
    offered = EMPTY
    for offer in offers:
        offered = offered + offer.grant.resources
    used = executor_used(framework) or EMPTY
    result: Message = {
        "id": framework.framework_id,
        "name": info["name"],
        "used_resources": used.summary(),
        "offered_resources": offered.summary(),
        "resources": (used + offered).summary(),
        "capabilities": [name for name in CAPABILITIES if name in framework.capabilities],
        "hostname": info.get("hostname", ""),
        "webui_url": info.get("webui_url", ""),
        "active": framework.connected,
        "connected": framework.connected,
        "recovered": framework.is_recovered,
        "user": info["user"],
        "failover_timeout": info["failover_timeout"],
        "checkpoint": info["checkpoint"],
        "registered_time": 0.0 if framework.is_recovered else master.wall_seconds(framework.registered_ms),
        "unregistered_time": 0.0,
        "tasks": [show_task(framework, task) for task in framework.tasks.values()],
        "unreachable_tasks": [show_task(framework, task) for task in framework.unreachable_tasks.values()],
        "completed_tasks": [show_task(framework, task) for task in framework.completed_tasks],
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
    if "labels" in info:
        result["labels"] = info["labels"].get("labels", [])
    result["offer_constraints"] = framework.constraints.wire if framework.constraints else {}
    if "MULTI_ROLE" in framework.capabilities:
        result["roles"] = list(framework.roles)
    else:
        result["role"] = framework.roles[0]
    return result


def _executor(framework: Framework, key: tuple[str, str]) -> Message:
    record = framework.executors[key]
    labels = {"labels": record.info["labels"].get("labels", [])} if "labels" in record.info else {}
    return {
        "executor_id": key[1],
        "name": record.info.get("name", ""),
        "framework_id": framework.framework_id,
        "command": {"argv": [], "uris": []} | record.info["command"],
        "resources": record.grant.resources.summary(),
        "role": record.grant.role,
        "type": record.info.get("type", "CUSTOM"),
        "slave_id": record.agent_id,
    } | labels


def show_task(framework: Framework, task: Task) -> Message:
    result: Message = {
        "id": task.task_id,
        "name": task.info["name"],
        "framework_id": framework.framework_id,
        "executor_id": task.executor_id,
        "slave_id": task.agent_id,
        "state": task.state,
        "resources": task.grant.resources.summary(),
        "role": task.grant.role,
        "statuses": [_status(status) for status in task.statuses],
    }
    if "labels" in task.info:
        result["labels"] = task.info["labels"].get("labels", [])
    if "discovery" in task.info:
        result["discovery"] = task.info["discovery"]
    return result


def _status(status: Message) -> Message:
    shown = {
        key: status[key] for key in ("state", "timestamp", "container_status", "healthy") if key in status
    }
    labels = {"labels": status["labels"].get("labels", [])} if "labels" in status else {}
    return shown | labels


def show_attribute(item: Message) -> object:
    if "scalar" in item:
        return item["scalar"]["value"]
    return item["text"]["value"]

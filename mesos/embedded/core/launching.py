"""Offers on the wire, and the judgement of an ACCEPT: are these usable together, and may this task be launched on them?

Pure questions about the master's memory; the master acts on the answers.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from stoker.mesos.embedded.core import validation
from stoker.mesos.embedded.core.allocator import Grant
from stoker.mesos.embedded.core.codec import Message
from stoker.mesos.embedded.core.records import AgentRecord, Framework, Offer
from stoker.mesos.embedded.core.reservations import ResourceError
from stoker.mesos.embedded.core.resources import EMPTY, Resources


class Verdict(NamedTuple):
    """`error` is the complaint about a task, or None; then the rest is what the task and a new executor take."""

    error: str | None
    task_takes: Resources = EMPTY
    executor_takes: Resources = EMPTY


def offers_error(framework_id: str, offer_ids: Sequence[str], offers: Mapping[str, Offer]) -> str | None:
    """Return why these offers cannot be accepted together."""
    for position, name in enumerate(offer_ids):
        if name in offer_ids[:position]:
            return f"Duplicate offer {name} in offer list"
    for name in offer_ids:
        offer = offers.get(name)
        if offer is None:
            return f"Offer {name} is no longer valid"
        owner = offer.grant.framework_id
        if owner != framework_id:
            return f"Offer {name} has invalid framework {owner} while framework {framework_id} is expected"
    grants = [(name, offers[name].grant) for name in offer_ids]
    for name, grant in grants[1:]:
        first = grants[0][1]
        if grant.role != first.role:
            text = "Aggregated offers must be allocated to the same role"
            return f"{text}. Offer {name} uses role '{grant.role}' but another is using role '{first.role}'"
        if grant.agent_id != first.agent_id:
            text = "Aggregated offers must belong to one single agent"
            return f"{text}. Offer {name} uses agent {grant.agent_id} and agent {first.agent_id}"
    return None


def judge_task(framework: Framework, task: Message, offered: Grant) -> Verdict:
    """Judge a task that `allocated` made; an executor that is there already takes nothing more."""
    task_id = task["task_id"]["value"]
    executor = task.get("executor")
    error = validation.id_error(task_id)
    if error is None and task_id in framework.tasks:
        error = f"Task has duplicate ID: {task_id}"
    if error is None and task_id in framework.unreachable_tasks:
        error = f"Task reuses the ID of an unreachable task: {task_id}"
    error = error or validation.task_error(
        task, agent_id=offered.agent_id, framework_id=framework.framework_id
    )
    existing = None
    if error is None and executor is not None:
        existing = framework.executors.get((offered.agent_id, executor["executor_id"]["value"]))
        error = validation.incompatible(existing.info, executor) if existing else None
    if error:
        return Verdict(error)
    try:
        task_takes, executor_takes = validation.task_needs(task, offered.role)
    except ResourceError as problem:
        return Verdict(str(problem))
    executor_takes = EMPTY if existing else executor_takes
    error = validation.too_much(task_takes + executor_takes, offered.resources, offered.role)
    return Verdict(error, task_takes, executor_takes)


def allocated(task: Message, framework_id: str, role: str) -> Message:
    """Return the task as the agent gets it: resources say whose they are, the executor knows its framework."""
    task = copy.deepcopy(task)
    executor = task.get("executor")
    for holder in (task, *([executor] if executor else [])):
        for resource in holder.get("resources", ()):
            resource.setdefault("allocation_info", {}).setdefault("role", role)
    if executor:
        executor.setdefault("framework_id", {"value": framework_id})
    return task


def offer_message(offer: Offer, framework: Framework, agent: AgentRecord) -> Message:
    """Return an offer as its framework gets it: the format of the resources follows the capabilities."""
    grant, spec = offer.grant, agent.spec
    role = grant.role if "MULTI_ROLE" in framework.capabilities else None
    old_format = "RESERVATION_REFINEMENT" not in framework.capabilities
    message: Message = {
        "id": {"value": offer.offer_id},
        "framework_id": {"value": grant.framework_id},
        "agent_id": {"value": grant.agent_id},
        "hostname": spec.hostname,
        "url": {
            "scheme": "http",
            "address": {"hostname": spec.hostname, "ip": spec.ip, "port": spec.port},
            "path": f"/slave({spec.number})",
        },
        "resources": grant.resources.to_messages(role, with_role=old_format),
    }
    if spec.domain is not None:
        message["domain"] = spec.domain
    if spec.attributes:
        message["attributes"] = list(spec.attributes)
    executors = agent.executors_of(grant.framework_id)
    if executors:
        message["executor_ids"] = [{"value": name} for name in executors]
    if role is not None:
        message["allocation_info"] = {"role": role}
    return message

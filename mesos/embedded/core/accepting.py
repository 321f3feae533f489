"""ACCEPT: what becomes of the offers it names and of each of its operations.

Offers are consumed whatever comes of it. Operations are judged in order, each against what the ones before have left; a task that
is refused does not hold up the others. What is left over goes back to the allocator, hidden by the call's filter.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from stoker.mesos.embedded.core import operating
from stoker.mesos.embedded.core.allocator import Grant, filter_ms
from stoker.mesos.embedded.core.codec import Message
from stoker.mesos.embedded.core.grouping import launch_group
from stoker.mesos.embedded.core.launching import allocated, judge_task, offers_error
from stoker.mesos.embedded.core.operations import KINDS
from stoker.mesos.embedded.core.records import ExecutorRecord, Framework, Task
from stoker.mesos.embedded.core.resources import EMPTY, Resources

if TYPE_CHECKING:
    from stoker.mesos.embedded.core.master import Master


def accept(master: Master, framework: Framework, body: Message, now_ms: int) -> None:
    """Take an ACCEPT's `body`."""
    hidden_ms = filter_ms(body, master.settings.default_refuse_ms)
    offer_ids = [item["value"] for item in body.get("offer_ids", ())]
    operations = body.get("operations", [])
    error = offers_error(framework.framework_id, offer_ids, master.offers)
    if error:
        for offer in [master.offers[name] for name in dict.fromkeys(offer_ids) if name in master.offers]:
            master.recover_offer(offer, now_ms, hidden_ms)
        _drop(master, framework, operations, error, now_ms)
        return
    grants = [master.take_offer(name).grant for name in offer_ids]
    if not grants:
        return
    role, agent_id, rest, fresh = grants[0].role, grants[0].agent_id, EMPTY, EMPTY
    for grant in grants:
        rest = rest + grant.resources
    for operation in operations:
        kind = operation.get("type")
        if kind == "LAUNCH":
            for task in operation.get("launch", {}).get("task_infos", ()):
                offered = Grant(framework.framework_id, role, agent_id, rest)
                rest = rest - _launch(master, framework, task, offered, now_ms)
        elif kind == "LAUNCH_GROUP" and "launch_group" in operation:
            offered = Grant(framework.framework_id, role, agent_id, rest)
            rest = rest - launch_group(master, framework, operation["launch_group"], offered, now_ms)
        elif kind in KINDS:
            offered = Grant(framework.framework_id, role, agent_id, rest)
            rest, fresh = operating.operate(master, framework, operation, offered, fresh, now_ms)
        elif kind is not None:
            operating.refuse(master, framework, operation, f"The embedded Mesos does not have {kind}")
    left = Grant(framework.framework_id, role, agent_id, rest)
    fresh = fresh.common(rest)  # what operations have made is no part of a refusal
    master.allocator.recover(left._replace(resources=fresh), now_ms)
    master.allocator.recover(left._replace(resources=rest - fresh), now_ms, refuse_ms=hidden_ms)


def _drop(
    master: Master, framework: Framework, operations: Iterable[Message], error: str, now_ms: int
) -> None:
    text = f"Task launched with invalid offers: {error}"
    for operation in operations:
        tasks = operation.get("launch", {}).get("task_infos", ())
        if operation.get("type") == "LAUNCH_GROUP":
            tasks = operation.get("launch_group", {}).get("task_group", {}).get("tasks", ())
        for task in tasks:
            state, reason = framework.lost_state, "REASON_INVALID_OFFERS"
            _refuse_task(master, framework, task, state, reason, text, now_ms)
        if operation.get("type") not in ("LAUNCH", "LAUNCH_GROUP"):
            operating.refuse(
                master, framework, operation, f"Operation attempted with invalid offers: {error}"
            )


def _launch(master: Master, framework: Framework, given: Message, offered: Grant, now_ms: int) -> Resources:
    """Launch one task on what is left of the offers; return what it takes."""
    task = allocated(given, framework.framework_id, offered.role)
    error, task_takes, executor_takes = judge_task(framework, task, offered)
    if error:
        _refuse_task(master, framework, task, "TASK_ERROR", "REASON_TASK_INVALID", error, now_ms)
        return EMPTY
    # A command task's executor is the agent's own affair: nothing is charged for it, and its name is told to nobody.
    executor_id = task["executor"]["executor_id"]["value"] if "executor" in task else ""
    if executor_id and (offered.agent_id, executor_id) not in framework.executors:
        grant = offered._replace(resources=executor_takes)
        master.add_executor(framework, ExecutorRecord(task["executor"], offered.agent_id, grant))
    record = Task(task, offered.agent_id, executor_id, offered._replace(resources=task_takes))
    master.add_task(framework, record)
    master.agents[offered.agent_id].port.run_task(framework.info, task, now_ms)
    return task_takes + executor_takes


def _refuse_task(
    master: Master, framework: Framework, task: Message, state: str, reason: str, text: str, now_ms: int
) -> None:
    status = master.status(task["task_id"], state, reason, text, now_ms, agent_id=task["agent_id"])
    master.send_update(framework, status)

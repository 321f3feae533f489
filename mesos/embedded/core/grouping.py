"""LAUNCH_GROUP: tasks that are launched together under one executor, or not at all.

The executor is Mesos' own default executor, or a custom one that takes groups. It counts once; a second group may join it.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from stoker.mesos.embedded.core import validation
from stoker.mesos.embedded.core.allocator import Grant
from stoker.mesos.embedded.core.codec import Message
from stoker.mesos.embedded.core.launching import allocated, judge_task
from stoker.mesos.embedded.core.records import ExecutorRecord, Framework, Task
from stoker.mesos.embedded.core.reservations import ResourceError
from stoker.mesos.embedded.core.resources import EMPTY, Resources, from_messages

if TYPE_CHECKING:
    from stoker.mesos.embedded.core.master import Master

EXECUTOR_CPUS_MIN = 0.01
EXECUTOR_MIB_MIN = 32


def launch_group(
    master: Master, framework: Framework, body: Message, offered: Grant, now_ms: int
) -> Resources:
    """Launch a group on what is left of the offers; return what it takes, which is nothing if it is refused."""
    tasks = [
        allocated(task, framework.framework_id, offered.role)
        for task in body.get("task_group", {}).get("tasks", ())
    ]
    executor = copy.deepcopy(body["executor"])
    executor.setdefault("framework_id", {"value": framework.framework_id})
    for resource in executor.get("resources", ()):
        resource.setdefault("allocation_info", {}).setdefault("role", offered.role)
    executor_id = executor["executor_id"]["value"]
    known = framework.executors.get((offered.agent_id, executor_id))
    try:
        executor_takes = _judge_executor(executor, known, framework, offered)
        takes = _judge_tasks(framework, tasks, offered._replace(resources=offered.resources - executor_takes))
    except ResourceError as error:
        for task in tasks:
            agent_id = task["agent_id"]
            reason, text = "REASON_TASK_GROUP_INVALID", str(error)
            status = master.status(task["task_id"], "TASK_ERROR", reason, text, now_ms, agent_id=agent_id)
            master.send_update(framework, status)
        return EMPTY
    if known is None:
        grant = offered._replace(resources=executor_takes)
        master.add_executor(framework, ExecutorRecord(executor, offered.agent_id, grant))
    total = executor_takes
    for task, task_takes in zip(tasks, takes, strict=True):
        master.add_task(
            framework, Task(task, offered.agent_id, executor_id, offered._replace(resources=task_takes))
        )
        total = total + task_takes
    master.agents[offered.agent_id].port.run_group(framework.info, executor, tasks, now_ms)
    return total


def _judge_executor(
    executor: Message, known: ExecutorRecord | None, framework: Framework, offered: Grant
) -> Resources:
    """Return what the executor takes anew.

    :raises ResourceError: why it cannot have a group.
    """
    if executor.get("type") == "DEFAULT" and "command" in executor:
        raise ResourceError("'ExecutorInfo.command' must not be set for 'DEFAULT' executor")
    kind = "CUSTOM" if executor.get("type") == "DEFAULT" else executor.get("type", "CUSTOM")
    error = validation.executor_error({"command": {}, **executor, "type": kind}, framework.framework_id)
    if error is None and known is not None:
        error = validation.incompatible(known.info, executor)
    if error:
        raise ResourceError(error)
    needs = from_messages(executor.get("resources", []), offered.role) if executor.get("resources") else EMPTY
    held = needs.quantities()
    for name, least, unit in (("cpus", EXECUTOR_CPUS_MIN, ""), ("mem", EXECUTOR_MIB_MIN, "MB")):
        if held.get(name, 0) < least * 1000:
            raise ResourceError(
                f"Executor '{executor['executor_id']['value']}' uses less {name} than the minimum required ({least}{unit})"
            )
    if known is not None:
        return EMPTY
    error = validation.too_much(needs, offered.resources, offered.role)
    if error:
        raise ResourceError(error)
    return needs


def _judge_tasks(framework: Framework, tasks: list[Message], offered: Grant) -> list[Resources]:
    """Return what each task takes.

    :raises ResourceError: why one of them, and so none, can be launched.
    """
    if not tasks:
        raise ResourceError("Task group cannot be empty")
    names = [task["task_id"]["value"] for task in tasks]
    takes = []
    for task in tasks:
        name = task["task_id"]["value"]
        if names.count(name) > 1:
            raise ResourceError(f"Task has duplicate ID: {name}")
        if "executor" in task:
            raise ResourceError("'TaskInfo.executor' must not be set")
        verdict = judge_task(framework, task, offered)
        if verdict.error:
            raise ResourceError(f"Task '{name}' is invalid: {verdict.error}")
        takes.append(verdict.task_takes)
        offered = offered._replace(resources=offered.resources - verdict.task_takes)
    return takes

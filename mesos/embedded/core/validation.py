"""What a real master says about wrong FrameworkInfos, roles, ids, offers and tasks.

Functions return the complaint, or None. The texts are part of the contract: people search for them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from stoker.mesos.embedded.core.codec import Message
from stoker.mesos.embedded.core.reservations import (
    PATH_PARTS_MAX,
    ResourceError,
    is_file_name,
    key_of,
    role_error,
)
from stoker.mesos.embedded.core.resources import EMPTY, Resources, from_messages

ID_MAX = 255
FAILOVER_SECONDS_MAX = (2**63 - 1) / 1e9  # Mesos counts nanoseconds in 64 bits

CONTAINER = "The embedded Mesos runs plain processes only: 'container' is not supported"


def capabilities(info: Message) -> frozenset[str]:
    """Return the names of the capabilities that Mesos knows."""
    return frozenset(item["type"] for item in info.get("capabilities", ()) if "type" in item)


def framework_roles(info: Message) -> tuple[str, ...]:
    """Return the roles a framework subscribes to; without MULTI_ROLE that is `role`, "*" by default."""
    if "MULTI_ROLE" in capabilities(info):
        return tuple(info.get("roles", ()))
    return (info.get("role", "*"),)


def framework_error(info: Message, suppressed: Iterable[str]) -> str | None:
    """Return what is wrong with a subscription."""
    if "MULTI_ROLE" in capabilities(info):
        if "role" in info:
            return "'FrameworkInfo.role' must not be set when the framework is MULTI_ROLE capable"
    elif info.get("roles"):
        return "'FrameworkInfo.roles' must not be set when the framework is not MULTI_ROLE capable"
    roles = framework_roles(info)
    twice = sorted({role for role in roles if roles.count(role) > 1})
    if twice:
        return f"'FrameworkInfo.roles' contains duplicate items: {{ {', '.join(twice)} }}"
    field = "roles" if "MULTI_ROLE" in capabilities(info) else "role"
    for role in roles:
        error = role_error(role)
        if error:
            kind = "contains invalid role" if field == "roles" else "is not a valid role"
            return f"'FrameworkInfo.{field}' {kind}: {error}"
    foreign = sorted(set(suppressed) - set(roles))
    if foreign:
        return f"Suppressed roles {{ {', '.join(foreign)} }} are not contained in the set of roles"
    framework_id = info.get("id", {}).get("value", "")
    if framework_id and id_error(framework_id):
        return id_error(framework_id)
    timeout = info["failover_timeout"]
    if abs(timeout) > FAILOVER_SECONDS_MAX:
        return f"The framework failover_timeout ({timeout:g}) is invalid"
    return None


def id_error(value: str) -> str | None:
    """Return what is wrong with a task's, executor's or framework's id."""
    if not value:
        return "ID must not be empty"
    if len(value.encode("utf-8", "surrogatepass")) > ID_MAX:
        return "ID must not be greater than 255 characters"
    if value in (".", ".."):
        return f"'{value}' is disallowed"
    if any(ord(character) < 32 or ord(character) == 127 or character in "/\\" for character in value):
        return f"'{value}' contains invalid characters"
    if any("\ud800" <= character <= "\udfff" for character in value):
        return "ID is not valid Unicode"
    return None


def executor_error(executor: Message, framework_id: str) -> str | None:
    """Return what is wrong with an ExecutorInfo by itself."""
    error = id_error(executor["executor_id"]["value"])
    if error:
        return error
    kind = executor.get("type", "CUSTOM")
    if kind == "CUSTOM" and "command" not in executor:
        return "'ExecutorInfo.command' must be set for 'CUSTOM' executor"
    if kind == "DEFAULT":
        return "'DEFAULT' executor is used by LAUNCH_GROUP only"
    if kind == "UNKNOWN":
        return "Unknown executor type"
    given = executor.get("framework_id", {}).get("value", framework_id)
    if given != framework_id:
        return f"ExecutorInfo has an invalid FrameworkID (Actual: {given} vs Expected: {framework_id})"
    if executor.get("shutdown_grace_period", {}).get("nanoseconds", 0) < 0:
        return "ExecutorInfo's 'shutdown_grace_period' must be non-negative"
    return CONTAINER if "container" in executor else None


def incompatible(existing: Message, executor: Message) -> str | None:
    """Return the complaint about another ExecutorInfo under the id of one that is there."""
    if existing == executor:
        return None
    line = "-" * 60
    first, second = (json.dumps(item, indent=1, sort_keys=True) for item in (existing, executor))
    return (
        "ExecutorInfo is not compatible with existing ExecutorInfo with same ExecutorID.\n"
        f"{line}\nExisting ExecutorInfo:\n{first}\n{line}\nExecutorInfo:\n{second}\n{line}\n"
    )


def task_error(task: Message, *, agent_id: str, framework_id: str) -> str | None:
    """Return what is wrong with a TaskInfo by itself, for an offer of agent `agent_id`."""
    if task["agent_id"]["value"] != agent_id:
        return f"Task uses invalid agent {task['agent_id']['value']} while agent {agent_id} is expected"
    if task.get("kill_policy", {}).get("grace_period", {}).get("nanoseconds", 0) < 0:
        return "Task's 'kill_policy.grace_period' must be non-negative"
    if ("command" in task) == ("executor" in task):
        return "Task should have at least one (but not both) of CommandInfo or ExecutorInfo present"
    if "container" in task:
        return CONTAINER
    return executor_error(task["executor"], framework_id) if "executor" in task else None


def task_needs(task: Message, role: str) -> tuple[Resources, Resources]:
    """Return what the task and its executor take.

    :raises ResourceError: with Mesos' text.
    """
    if not task.get("resources"):
        raise ResourceError("Task uses no resources")
    complaint = disk_error(task["resources"])
    if complaint:
        raise ResourceError(f"Task uses invalid resources: {complaint}")
    return from_messages(task["resources"], role), executor_needs(task.get("executor", {}), role)


def executor_needs(executor: Message, role: str) -> Resources:
    """Return what an executor takes, which may be nothing.

    :raises ResourceError: with Mesos' text.
    """
    complaint = disk_error(executor.get("resources", ()))
    if complaint:
        raise ResourceError(f"Executor uses invalid resources: {complaint}")
    return from_messages(executor["resources"], role) if executor.get("resources") else EMPTY


def too_much(wanted: Resources, available: Resources, role: str) -> str | None:
    """Return the complaint if `wanted` is more than `available`."""
    if available.contains(wanted):
        return None
    text = f"Total resources {wanted.describe(role)} required by task and its executor is more than available"
    return f"{text} {available.in_order().describe(role)}"


def disk_error(messages: Iterable[Message]) -> str | None:
    """Return what is wrong with the DiskInfos of resources."""
    for message in messages:
        disk = message.get("disk")
        if disk is None:
            continue
        if "persistence" in disk:
            error = _persistence_error(message, disk)
            if error:
                return f"Invalid DiskInfo: {error}"
        elif "volume" in disk:
            return "Invalid DiskInfo: Non-persistent volume not supported"
        elif "source" not in disk:
            return "Invalid DiskInfo: DiskInfo is set but empty"
    return None


def _persistence_error(message: Message, disk: Message) -> str | None:
    if message.get("revocable") is not None:
        return "Persistent volumes cannot be created from revocable resources"
    if not key_of(message, None).stack:
        return "Persistent volumes cannot be created from unreserved resources"
    if "volume" not in disk:
        return "Expecting 'volume' to be set for persistent volume"
    if "host_path" in disk["volume"]:
        return "Expecting 'host_path' to be unset for persistent volume"
    path = disk["volume"]["container_path"]
    parts = path.split("/")
    if ".." in parts or len(parts) > PATH_PARTS_MAX or not all(is_file_name(part) for part in parts):
        return "Expecting 'container_path' to be a relative path below the sandbox for persistent volume"
    complaint = id_error(disk["persistence"]["id"])
    return f"Invalid persistence ID for persistent volume: {complaint}" if complaint else None

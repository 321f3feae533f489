"""Mesos' JSON to our values and back. The only module, with config.py, that converts units: Mesos' mebibyte floats,
seconds and cpus against integer bytes, milliseconds and thousandths.

Pure functions. Offers are kept raw by their receiver, since what is launched must name the resources as they were
offered (reservations included).
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stoker.framework.core.entries import LaunchPlanned
from stoker.framework.model import Offer, Resources, TaskStatus

Json = dict[str, Any]

MEBIBYTE = 1024 * 1024
TASK_CPUS_MILLI = 10  # the task's own share, out of the launch's: Mesos refuses a task without resources
SHUTDOWN_GRACE_MS = 10_000  # what an executor gets to end by itself
CAPABILITIES = (
    "MULTI_ROLE",
    "PARTITION_AWARE",
    "RESERVATION_REFINEMENT",
    "TASK_KILLING_STATE",
    "REGION_AWARE",
)


class Untranslatable(ValueError):
    """Mesos said something that lacks what the protocol requires, or offers hold less than is to be launched."""


# --- from Mesos


def offer_from_mesos(raw: Json) -> Offer:
    """:raises Untranslatable: a required field is missing."""
    try:
        domain = raw.get("domain", {}).get("fault_domain", {})
        return Offer(
            offer_id=raw["id"]["value"],
            agent_id=raw["agent_id"]["value"],
            hostname=raw["hostname"],
            resources=resources_from_mesos(raw.get("resources", ())),
            attributes=tuple(sorted(_attribute(a) for a in raw.get("attributes", ()))),
            region=domain.get("region", {}).get("name", ""),
            zone=domain.get("zone", {}).get("name", ""),
            role=raw.get("allocation_info", {}).get("role", "*"),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise Untranslatable(f"an offer without {error}") from error


def resources_from_mesos(raw: Iterable[Json]) -> Resources:
    """Return the sums of what may be used without more: no revocable ones, no volumes."""
    cpus = mem = disk = 0.0
    ports: list[tuple[int, int]] = []
    for resource in filter(_is_plain, raw):
        name = resource["name"]
        if name == "cpus":
            cpus += resource["scalar"]["value"]
        elif name == "mem":
            mem += resource["scalar"]["value"]
        elif name == "disk":
            disk += resource["scalar"]["value"]
        elif name == "ports":
            ports += [(r["begin"], r["end"]) for r in resource["ranges"]["range"]]
    return Resources(
        cpus_milli=math.floor(round(cpus * 1000, 3)),
        mem_bytes=_bytes_of_mebibytes(mem),
        disk_bytes=_bytes_of_mebibytes(disk),
        ports=tuple(sorted(ports)),
    )


def status_from_mesos(raw: Json) -> TaskStatus:
    """:raises Untranslatable: a required field is missing, or uuid is not base64."""
    try:
        return TaskStatus(
            task_id=raw["task_id"]["value"],
            state=raw["state"],
            agent_id=raw.get("agent_id", {}).get("value", ""),
            executor_id=raw.get("executor_id", {}).get("value", ""),
            reason=raw.get("reason", ""),
            source=raw.get("source", ""),
            message=raw.get("message", ""),
            uuid=base64.b64decode(raw.get("uuid", ""), validate=True),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise Untranslatable(f"a status update: {error}") from error


# --- to Mesos


def framework_to_mesos(
    *,
    name: str,
    user: str,
    role: str,
    principal: str,
    failover_timeout_ms: int,
    gpu_agents: bool,
    webui_url: str,
    framework_id: str,
) -> Json:
    """Return the FrameworkInfo. `framework_id` empty: a new framework."""
    kinds = [*CAPABILITIES, "GPU_RESOURCES"] if gpu_agents else list(CAPABILITIES)
    info: Json = {
        "name": name,
        "user": user,
        "roles": [role],
        "checkpoint": True,  # else an agent's restart loses its executors
        "failover_timeout": failover_timeout_ms / 1000,
        "webui_url": webui_url,
        "capabilities": [{"type": kind} for kind in kinds],
    }
    if principal:
        info["principal"] = principal
    if framework_id:
        info["id"] = {"value": framework_id}
    return info


def task_to_mesos(
    launch: LaunchPlanned,
    offers: Sequence[Json],
    *,
    mem_bytes: int,
    command: str,
    environment: Mapping[str, str],
) -> Json:
    """Return the TaskInfo that starts `launch`'s executor out of `offers` (raw, all of one agent).

    `mem_bytes` is what Mesos is asked for: tier and overhead. The executor takes it all but the task's cpu share.

    :raises Untranslatable: the offers hold less than that.
    """
    pool = [r for offer in offers for r in offer.get("resources", ()) if _is_plain(r)]
    left = [_amount(r) for r in pool]
    role = offers[0].get("allocation_info", {}).get("role", "*") if offers else "*"
    task = _take_scalar(pool, left, "cpus", TASK_CPUS_MILLI / 1000)
    executor = [
        *_take_scalar(pool, left, "cpus", (launch.cpus_milli - TASK_CPUS_MILLI) / 1000),
        *_take_scalar(pool, left, "mem", math.ceil(mem_bytes * 1000 / MEBIBYTE) / 1000),
        _take_port(pool, launch.port),
    ]
    for resource in (*task, *executor):
        resource.setdefault("allocation_info", {"role": role})
    identity = {"value": launch.task_id}
    return {
        "name": launch.task_id,
        "task_id": identity,
        "agent_id": {"value": launch.agent_id},
        "resources": task,
        "executor": {
            "type": "CUSTOM",
            "executor_id": identity,
            "name": f"stoker cache, slot {launch.slot_id}",
            "source": "stoker",
            "resources": executor,
            "command": {
                "shell": True,
                "value": command,
                "environment": {
                    "variables": [{"name": n, "value": v} for n, v in sorted(environment.items())]
                },
            },
            "shutdown_grace_period": {"nanoseconds": SHUTDOWN_GRACE_MS * 1_000_000},
        },
        "labels": {"labels": [{"key": "stoker_slot", "value": str(launch.slot_id)}]},
    }


def launch_environment(
    launch: LaunchPlanned,
    *,
    cluster: bytes,
    schedulers: Sequence[str],
    variables: Mapping[str, str],
    socket_dir: str,
    fillers: int,
) -> dict[str, str]:
    """Return the executor's environment: the operator's variables, and ours, which win."""
    environment = dict(variables) | {
        "STOKER_SCHEDULERS": ",".join(schedulers),
        "STOKER_CLUSTER": cluster.hex(),
        "STOKER_SLOT": str(launch.slot_id),
        "STOKER_LAUNCH": str(launch.launch_id),
        "STOKER_TASK": launch.task_id,
        "STOKER_SECRET": launch.secret,
        "STOKER_EPOCH": str(launch.epoch),
        "STOKER_MEM_BYTES": str(launch.mem_bytes),
        "STOKER_HOST": launch.hostname,
        "STOKER_PORT": str(launch.port),
    }
    if socket_dir:
        environment["STOKER_SOCKET_DIR"] = socket_dir
    if fillers:
        environment["STOKER_FILLERS"] = str(fillers)
    return environment


def filters_to_mesos(refuse_ms: int) -> Json:
    return {"refuse_seconds": refuse_ms / 1000}


def ids_to_mesos(ids: Iterable[str]) -> list[Json]:
    return [{"value": value} for value in ids]


# --- helpers


def _is_plain(resource: Json) -> bool:
    return "revocable" not in resource and not resource.get("disk") and "provider_id" not in resource


def _bytes_of_mebibytes(mebibytes: float) -> int:
    # Mesos keeps scalars as thousandths; rounding first keeps 1000.123 from becoming 1000.12299.
    return math.floor(round(mebibytes, 3) * MEBIBYTE)


def _attribute(raw: Json) -> tuple[str, str]:
    kind = raw.get("type", "TEXT")
    if kind == "SCALAR":
        return raw["name"], f"{raw['scalar']['value']:g}"
    if kind == "RANGES":
        return raw["name"], "[" + ",".join(f"{r['begin']}-{r['end']}" for r in raw["ranges"]["range"]) + "]"
    if kind == "SET":
        return raw["name"], "{" + ",".join(raw["set"]["item"]) + "}"
    return raw["name"], raw["text"]["value"]


def _amount(resource: Json) -> float:
    return round(resource["scalar"]["value"], 3) if resource.get("type") == "SCALAR" else 0.0


def _take_scalar(pool: Sequence[Json], left: list[float], name: str, amount: float) -> list[Json]:
    """Return resources of `name` that sum to `amount`, as they were offered, and count them off `left`."""
    taken, missing = [], round(amount, 3)
    for index, resource in enumerate(pool):
        if resource["name"] != name or left[index] <= 0 or missing <= 0:
            continue
        part = min(left[index], missing)
        left[index] = round(left[index] - part, 3)
        missing = round(missing - part, 3)
        taken.append({**resource, "scalar": {"value": part}})
    if missing > 0:
        raise Untranslatable(f"the offers hold {missing:g} {name} too little")
    return taken


def _take_port(pool: Sequence[Json], port: int) -> Json:
    for resource in pool:
        if resource["name"] != "ports":
            continue
        if any(r["begin"] <= port <= r["end"] for r in resource["ranges"]["range"]):
            return {**resource, "ranges": {"range": [{"begin": port, "end": port}]}}
    raise Untranslatable(f"the offers do not hold port {port}")

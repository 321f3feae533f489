"""Mesos' JSON to our values and back. The only module, with config.py, that converts units: Mesos' mebibyte floats,
seconds and cpus against integer bytes, milliseconds and thousandths.

Pure functions. Offers are kept raw by their receiver, since what is launched must name the resources as they were
offered (reservations included).
"""

from __future__ import annotations

import base64
import math
import operator
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from stoker.framework.core.actions import Accept, DestroyVolume
from stoker.framework.core.entries import LaunchPlanned
from stoker.framework.core.operations import CREATE, DESTROY, RESERVE, UNRESERVE, operation_id
from stoker.framework.core.volumes import CONTAINER_PATH, LABEL_CLUSTER, LABEL_VOLUME, persistence_id
from stoker.framework.model import (
    InverseOffer,
    Offer,
    OfferedReservation,
    OfferedVolume,
    OperationStatus,
    Resources,
    TaskStatus,
)

Json = dict[str, Any]

MEBIBYTE = 1024 * 1024
TASK_CPUS_MILLI = 10  # the task's own share, out of the launch's: Mesos refuses a task without resources
ALLOCATABLE = {"cpus": 0.01, "mem": 32}  # Mesos' own minimum of an offer, either of them
SHUTDOWN_GRACE_MS = 10_000  # what an executor gets to end by itself
CAPABILITIES = (
    "MULTI_ROLE",
    "PARTITION_AWARE",
    "RESERVATION_REFINEMENT",
    "TASK_KILLING_STATE",
    "REGION_AWARE",
)


# What reading a field raises that is not there, is of another type, is no number, or is one without end.
MALFORMED = (KeyError, TypeError, AttributeError, ValueError, OverflowError)
_CLUSTER = re.compile(r"[0-9a-f]{32}")
_NUMBER = re.compile(r"[0-9]{1,19}")


class Untranslatable(ValueError):
    """Mesos said something that lacks what the protocol requires, or offers hold less than is to be launched."""


# --- from Mesos


def offer_from_mesos(raw: Json) -> Offer:
    """:raises Untranslatable: a required field is missing, or holds what it never may."""
    try:
        domain = raw.get("domain", {}).get("fault_domain", {})
        resources = raw.get("resources", ())
        ours = [found for r in resources if r["name"] == "disk" and (found := _labelled(r)) is not None]
        window = raw.get("unavailability", {})
        return Offer(
            offer_id=raw["id"]["value"],
            agent_id=raw["agent_id"]["value"],
            hostname=raw["hostname"],
            resources=resources_from_mesos(resources),
            attributes=tuple(sorted(_attribute(a) for a in raw.get("attributes", ()))),
            region=domain.get("region", {}).get("name", ""),
            zone=domain.get("zone", {}).get("name", ""),
            role=raw.get("allocation_info", {}).get("role", "*"),
            volumes=tuple(found for found in ours if isinstance(found, OfferedVolume)),
            reserved_disk=tuple(found for found in ours if isinstance(found, OfferedReservation)),
            unavailable_from_ms=_milliseconds(window.get("start", {})),
            unavailable_for_ms=_milliseconds(window.get("duration", {})),
            executor_ids=tuple(i["value"] for i in raw.get("executor_ids", ())),
        )
    except MALFORMED as error:
        raise Untranslatable(f"an offer: {error!r}") from error


def inverse_offer_from_mesos(raw: Json) -> InverseOffer:
    """:raises Untranslatable: a required field is missing, or holds what it never may."""
    try:
        window = raw["unavailability"]
        return InverseOffer(
            offer_id=raw["id"]["value"],
            agent_id=raw["agent_id"]["value"],
            unavailable_from_ms=_milliseconds(window["start"]),
            unavailable_for_ms=_milliseconds(window.get("duration", {})),
        )
    except MALFORMED as error:
        raise Untranslatable(f"an inverse offer: {error!r}") from error


def resources_from_mesos(raw: Iterable[Json]) -> Resources:
    """Return the sums of what may be used without more: nothing revocable, no volumes, nothing that somebody labelled.

    Of disk only what nobody has reserved counts: we use it to reserve it.
    """
    cpus = mem = disk = 0.0
    ports: list[tuple[int, int]] = []
    for resource in filter(_is_plain, raw):
        name = resource["name"]
        if name == "cpus":
            cpus += resource["scalar"]["value"]
        elif name == "mem":
            mem += resource["scalar"]["value"]
        elif name == "disk" and not resource.get("reservations"):
            disk += resource["scalar"]["value"]
        elif name == "ports":
            ports += [
                (operator.index(r["begin"]), operator.index(r["end"])) for r in resource["ranges"]["range"]
            ]
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
    except MALFORMED as error:
        raise Untranslatable(f"a status update: {error}") from error


def operation_from_mesos(raw: Json) -> OperationStatus:
    """:raises Untranslatable: a required field is missing, or uuid is not base64."""
    try:
        return OperationStatus(
            operation_id=raw.get("operation_id", {}).get("value", ""),
            state=raw["state"],
            agent_id=raw.get("agent_id", {}).get("value", ""),
            message=raw.get("message", ""),
            uuid=base64.b64decode(raw.get("uuid", {}).get("value", ""), validate=True),
        )
    except MALFORMED as error:
        raise Untranslatable(f"an operation's update: {error}") from error


# --- to Mesos


def framework_to_mesos(
    *,
    name: str,
    user: str,
    roles: Sequence[str],
    principal: str,
    failover_timeout_ms: int,
    gpu_agents: bool,
    webui_url: str,
    framework_id: str,
    disk_bytes: int = 0,
) -> Json:
    """Return the FrameworkInfo. `framework_id` empty: a new framework.

    `disk_bytes`: so much disk is to be offered also where an agent has hardly anything else left.
    """
    kinds = [*CAPABILITIES, "GPU_RESOURCES"] if gpu_agents else list(CAPABILITIES)
    info: Json = {
        "name": name,
        "user": user,
        "roles": list(roles),
        "checkpoint": True,  # else an agent's restart loses its executors
        "failover_timeout": failover_timeout_ms / 1000,
        "webui_url": webui_url,
        "capabilities": [{"type": kind} for kind in kinds],
    }
    if disk_bytes:
        enough = {**ALLOCATABLE, "disk": disk_bytes // MEBIBYTE}
        anyone = [{"quantities": {name: {"value": float(amount)}}} for name, amount in enough.items()]
        info["offer_filters"] = {
            role: {"min_allocatable_resources": {"quantities": anyone}} for role in roles
        }
    if principal:
        info["principal"] = principal
    if framework_id:
        info["id"] = {"value": framework_id}
    return info


class LaunchValues(NamedTuple):
    """How an executor is started: bytes to ask of Mesos (tier and overhead), what the agent's shell runs, with what."""

    mem_bytes: int
    command: str
    environment: Mapping[str, str]
    uris: tuple[Json, ...] = ()  # brought into the sandbox first
    container: Json | None = None


def task_to_mesos(
    launch: LaunchPlanned, offers: Sequence[Json], values: LaunchValues, volume: Json | None = None
) -> Json:
    """Return the TaskInfo that starts `launch`'s executor out of `offers` (raw, all of one agent).

    The executor takes all that it is worth but the task's cpu share.

    :raises Untranslatable: the offers hold less than that.
    """
    pool = [r for offer in offers for r in offer.get("resources", ()) if _is_plain(r)]
    left = [_amount(r) for r in pool]
    role = offers[0].get("allocation_info", {}).get("role", "*") if offers else "*"
    task = _take_scalar(pool, left, "cpus", TASK_CPUS_MILLI / 1000)
    executor = [
        *_take_scalar(pool, left, "cpus", (launch.cpus_milli - TASK_CPUS_MILLI) / 1000),
        *_take_scalar(pool, left, "mem", math.ceil(values.mem_bytes * 1000 / MEBIBYTE) / 1000),
        _take_port(pool, launch.port),
        *([] if volume is None else [volume]),
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
                "value": values.command,
                "environment": {
                    "variables": [{"name": n, "value": v} for n, v in sorted(values.environment.items())]
                },
                "uris": list(values.uris),
            },
            **({"container": values.container} if values.container else {}),
            "shutdown_grace_period": {"nanoseconds": SHUTDOWN_GRACE_MS * 1_000_000},
        },
        "labels": {"labels": [{"key": "stoker_slot", "value": str(launch.slot_id)}]},
    }


def volume_to_mesos(
    action: Accept, offers: Sequence[Json], *, cluster: bytes, principal: str
) -> tuple[list[Json], Json | None]:
    """Return the operations that make the launch's volume, and the volume as the executor's resources name it.

    None: the launch has no volume. One that is there already needs no operation, and is named as it was offered.

    :raises Untranslatable: it, or the disk to make it of, is not in the offers.
    """
    launch = action.launch
    if not launch.volume_id:
        return [], None
    resources = [r for offer in offers for r in offer.get("resources", ()) if r["name"] == "disk"]
    if action.volume is None:
        return [], _of_ours(resources, cluster, launch.volume_id, OfferedVolume)
    size = {"value": math.ceil(action.volume.disk_bytes * 1000 / MEBIBYTE) / 1000}
    operations: list[Json] = []
    if action.reserved_volume_id:
        found = _of_ours(resources, cluster, action.reserved_volume_id, OfferedReservation)
        reserved = {**found, "scalar": size}
    else:
        labels = {LABEL_CLUSTER: cluster.hex(), LABEL_VOLUME: str(launch.volume_id)}
        reservation: Json = {"type": "DYNAMIC", "role": action.volume.role}
        if principal:
            reservation["principal"] = principal
        reservation["labels"] = {"labels": [{"key": key, "value": value} for key, value in labels.items()]}
        reserved = {
            "name": "disk",
            "type": "SCALAR",
            "scalar": size,
            "allocation_info": {"role": action.volume.role},
            "reservations": [reservation],
        }
        identity = {"value": operation_id(cluster, launch.volume_id, RESERVE)}
        operations.append({"type": "RESERVE", "id": identity, "reserve": {"resources": [reserved]}})
    persistence = {"id": persistence_id(cluster, launch.volume_id)}
    if principal:
        persistence["principal"] = principal
    place = {"container_path": CONTAINER_PATH, "mode": "RW"}
    volume = {**reserved, "disk": {"persistence": persistence, "volume": place}}
    identity = {"value": operation_id(cluster, launch.volume_id, CREATE)}
    operations.append({"type": "CREATE", "id": identity, "create": {"volumes": [volume]}})
    return operations, volume


def destruction_to_mesos(action: DestroyVolume, offers: Sequence[Json], *, cluster: bytes) -> list[Json]:
    """Return the operations that destroy a volume of ours, and give its disk back; of one destroyed already the latter.

    :raises Untranslatable: nothing of it is in the offers.
    """
    resources = [r for offer in offers for r in offer.get("resources", ()) if r["name"] == "disk"]

    def called(kind: str) -> Json:
        return {"value": operation_id(cluster, action.volume_id, kind, action.attempt)}

    try:
        volume = _of_ours(resources, cluster, action.volume_id, OfferedVolume)
    except Untranslatable:
        reserved = _of_ours(resources, cluster, action.volume_id, OfferedReservation)
        destroy = []
    else:
        reserved = {key: value for key, value in volume.items() if key != "disk"}
        if "source" in volume["disk"]:
            reserved["disk"] = {"source": volume["disk"]["source"]}
        destroy = [{"type": "DESTROY", "id": called(DESTROY), "destroy": {"volumes": [volume]}}]
    return [*destroy, {"type": "UNRESERVE", "id": called(UNRESERVE), "unreserve": {"resources": [reserved]}}]


def python_command(python: str) -> str:
    """Return what an agent's shell runs to start an executor with the Python at that path."""
    return f"exec {shlex.quote(python)} -m stoker.executor"


def container_to_mesos(image: str, socket_dir: str) -> Json:
    """Return the ContainerInfo of an executor in a container image; it keeps the agent's network.

    Readers on the agent reach it through its abstract socket, and through `socket_dir` of the agent, where one is told.
    """
    container: Json = {
        "type": "MESOS",
        "mesos": {"image": {"type": "DOCKER", "docker": {"name": image}}},
    }
    if socket_dir:
        container["volumes"] = [{"mode": "RW", "host_path": socket_dir, "container_path": socket_dir}]
    return container


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
    if launch.disk_bytes:
        environment |= {"STOKER_DISK_BYTES": str(launch.disk_bytes), "STOKER_DISK_DIR": CONTAINER_PATH}
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
    if "revocable" in resource or resource.get("disk") or "provider_id" in resource:
        return False
    # What somebody reserved with labels is theirs (or our own, for a volume); the rest is the role's.
    return not any("labels" in reservation for reservation in resource.get("reservations", ()))


def _labels(resource: Json) -> dict[str, str]:
    reservations = resource.get("reservations") or [{}]
    pairs = reservations[-1].get("labels", {}).get("labels", ())
    return {pair["key"]: pair.get("value", "") for pair in pairs}


def _labelled(resource: Json) -> OfferedVolume | OfferedReservation | None:
    """Return what a disk resource is, if it carries the labels of a Stoker cluster."""
    labels = _labels(resource)
    cluster, number = labels.get(LABEL_CLUSTER, ""), labels.get(LABEL_VOLUME, "")
    if not _CLUSTER.fullmatch(cluster) or not _NUMBER.fullmatch(number):
        return None
    role = resource["reservations"][-1]["role"]
    disk_bytes = _bytes_of_mebibytes(resource["scalar"]["value"])
    name = resource.get("disk", {}).get("persistence", {}).get("id")
    if name is None:
        return OfferedReservation(cluster, int(number), role, disk_bytes)
    volume_id = name.removeprefix(persistence_id(bytes.fromhex(cluster), 0)[:-1])
    return OfferedVolume(cluster, int(volume_id), role, disk_bytes) if _NUMBER.fullmatch(volume_id) else None


def _of_ours(
    resources: Iterable[Json], cluster: bytes, volume_id: int, kind: type[OfferedVolume | OfferedReservation]
) -> Json:
    """Return the resource as it was offered. :raises Untranslatable: there is none that is ours."""
    for resource in resources:
        found = _labelled(resource)
        if isinstance(found, kind) and found[:2] == (cluster.hex(), volume_id):
            return resource
    what = "volume" if kind is OfferedVolume else "disk reserved for volume"
    raise Untranslatable(f"the offers do not hold {what} {volume_id}")


def _milliseconds(duration: Json) -> int:
    return int(duration.get("nanoseconds", 0)) // 1_000_000


def _bytes_of_mebibytes(mebibytes: float) -> int:
    # Mesos keeps scalars as thousandths; rounding first keeps 1000.123 from becoming 1000.12299.
    return math.floor(round(mebibytes, 3) * MEBIBYTE)


def _attribute(raw: Json) -> tuple[str, str]:
    kind = raw.get("type", "TEXT")
    if kind == "SCALAR":
        return raw["name"], f"{raw['scalar']['value']:.3f}".rstrip("0").rstrip(".")  # Mesos keeps thousandths
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

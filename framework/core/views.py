"""What the REST API shows: plain dicts of catalog and fleet, made on request. They decide nothing.

Field names and meanings are promises to other people's programs; what is not known yet is null. Bytes that are cached
are counted once, however many replicas hold them.
"""

from __future__ import annotations

import base64
import dataclasses
from typing import Any

import numpy as np

from stoker.executor.messages import Heartbeat
from stoker.framework.core import moves, publishing
from stoker.framework.core.catalog import Catalog, Dataset, Slot
from stoker.framework.core.explanations import fleet_json, waiting_reason
from stoker.framework.core.fleet import Fleet, popcount
from stoker.framework.core.job_table import Job
from stoker.framework.core.progress import JobProgress, SlotProgress, job_progress, slot_progress
from stoker.framework.core.seen import ExecutorSeen, Held
from stoker.framework.core.silence import Doubt
from stoker.framework.model import JobKind, Manifested

SILENT_MS = 3_000  # three heartbeats: shown as LOST before it is given up


def dataset_view(catalog: Catalog, fleet: Fleet, dataset: Dataset, now_ms: int) -> dict[str, Any]:
    current = dataset.current
    listing = _listing(fleet, dataset)
    cached_bytes, copies = (None, None) if current is None else _cached(fleet, dataset, current)
    return {
        "name": dataset.name,
        "id": dataset.dataset_id,
        "source": dataset.source,
        "options": dict(dataset.options),
        "state": dataset.state.value,
        "error": dataset.error or None,
        "message": publishing.waits_for(catalog, fleet, dataset, now_ms) or None,
        "files": None if current is None else current.files,
        "bytes": None if current is None else current.bytes,
        "cached_bytes": cached_bytes,
        "cached_ratio": None if current is None else _ratio(cached_bytes or 0, current.bytes),
        "version": None if current is None else current.version,
        "generation": None if current is None else current.generation,
        "residency": "complete" if fleet.residency_complete else "partial",
        "replicas": dataset.replicas,
        "replicas_actual": copies,
        "policy": dataset.policy,
        "tier": dataset.tier,
        "priority": dataset.priority,
        "wanted": [{"include": included, "path": path} for included, path in dataset.rules],
        "block_bytes": None if current is None else current.block_bytes,
        "blocks": None if current is None else current.block_count,
        "listing": listing,
        "created_ms": dataset.created_ms,
    }


def _listing(fleet: Fleet, dataset: Dataset) -> dict[str, int] | None:
    if not dataset.is_listing:
        return None
    listed, running = fleet.listed.get(dataset.dataset_id), fleet.listings.get(dataset.dataset_id)
    counts = listed.manifested if listed is not None else running
    return {"files": counts.files if counts else 0, "bytes": counts.bytes if counts else 0}


def job_view(catalog: Catalog, fleet: Fleet, job: Job, now_ms: int) -> dict[str, Any]:
    progress = JobProgress(job.bytes, job.files)
    slots: list[SlotProgress] = []
    rate: int | None = None
    eta: int | None = None
    message = job.message
    if not job.state.is_final:
        progress = job_progress(catalog, fleet, job)
        slots = slot_progress(catalog, fleet, job)
        rate = fleet.rate_bytes_per_s(job.job_id)
        eta = -(-(job.bytes_total - progress.bytes) // rate) if rate else None
        message = (
            moves.waits_for(fleet, job.paths[0])
            if job.kind == JobKind.DRAIN
            else _waiting_for(catalog, fleet, progress, slots, now_ms)
        )
    return {
        "id": job.job_id,
        "kind": job.kind,
        "dataset": job.dataset or None,
        "agent": job.paths[0] if job.kind == JobKind.DRAIN else None,
        "paths": [] if job.kind == JobKind.DRAIN else list(job.paths),
        "state": job.state.value,
        "message": message or None,
        "progress": {
            "bytes": progress.bytes,
            "bytes_total": job.bytes_total,
            "files": progress.files,
            "files_total": job.files_total,
            "rate_bytes_per_s": rate,
            "eta_seconds": eta,
            "executors": [_slot_json(s) for s in slots] if job.kind == JobKind.LOAD else [],
        },
        "error_count": job.error_count,
        "errors": [error._asdict() for error in job.errors],
        "created_ms": job.created_ms,
        "started_ms": job.started_ms or None,
        "finished_ms": job.finished_ms or None,
    }


def executor_views(catalog: Catalog, fleet: Fleet, now_ms: int) -> list[dict[str, Any]]:
    """Return one row a slot, by slot id, whether an executor runs in it or not."""
    return [_executor_view(catalog, fleet, slot, now_ms) for _, slot in sorted(catalog.slots.items())]


def agent_views(catalog: Catalog, fleet: Fleet) -> list[dict[str, Any]]:
    """Return the agents that made offers, have executors or are drained, by id."""
    names = {drain.agent_id: drain.hostname for drain in catalog.drains.values()}
    names |= {launch.agent_id: launch.hostname for launch in catalog.launches.values()}
    names |= {agent.agent_id: agent.hostname for agent in fleet.agents.values()}
    return [agent_view(catalog, fleet, agent_id, names[agent_id]) for agent_id in sorted(names)]


def agent_view(catalog: Catalog, fleet: Fleet, agent_id: str, hostname: str) -> dict[str, Any]:
    agent, launch = fleet.agents.get(agent_id), catalog.launch_on_agent(agent_id)
    return {
        "id": agent_id,
        "hostname": hostname,
        "attributes": {} if agent is None else dict(agent.attributes),
        "executors": [] if launch is None else [launch.slot_id],
        "drain": _drain_json(catalog, fleet, agent_id),
    }


def _drain_json(catalog: Catalog, fleet: Fleet, agent_id: str) -> dict[str, Any] | None:
    drain = catalog.drains.get(agent_id)
    if drain is None:
        return None
    move = fleet.moves.by_agent.get(agent_id)
    is_over = catalog.launch_on_agent(agent_id) is None
    is_known = is_over or (move is not None and move.is_counted)
    return {
        "state": "DRAINED" if is_over else "DRAINING",
        "cause": drain.cause,
        "reason": drain.reason,
        "until_ms": drain.until_wall_ms or None,
        "blocks_left": (0 if is_over or move is None else move.blocks) if is_known else None,
        "bytes_left": (0 if is_over or move is None else move.bytes) if is_known else None,
        "message": None if is_over else moves.waits_for(fleet, agent_id) or None,
    }


def fleet_view(catalog: Catalog, fleet: Fleet, now_ms: int) -> dict[str, Any]:
    assert catalog.fleet is not None, "LeadershipBegan sets it"
    return fleet_json(catalog, fleet, catalog.fleet, now_ms)


def placement_view(catalog: Catalog, fleet: Fleet, dataset: Dataset) -> dict[str, Any]:
    """Return where the blocks of a dataset that has a version belong, and where the slots' executors are."""
    current = dataset.current
    assert current is not None, dataset.name
    return {
        "name": dataset.name,
        "dataset_id": dataset.dataset_id,
        "cluster": catalog.cluster.hex(),
        "version": current.version,
        "generation": current.generation,
        "digest": current.digest,
        "block_bytes": current.block_bytes,
        "pg_count": current.pg_count,
        "replicas": dataset.replicas,
        "placement_version": catalog.placement_version,
        "homes": base64.b64encode(catalog.homes(dataset).astype("<u2").tobytes()).decode(),
        "slots": [dataclasses.asdict(fleet.address(catalog, slot.slot_id)) for slot in catalog.slot_order()],
    }


def _executor_view(catalog: Catalog, fleet: Fleet, slot: Slot, now_ms: int) -> dict[str, Any]:
    launch = catalog.launches.get(slot.launch_id)
    seen = fleet.executors.get(slot.launch_id)
    state, reason = _executor_state(catalog, fleet, slot, now_ms)
    heartbeat = None if seen is None else seen.heartbeat
    return {
        "slot": slot.slot_id,
        "state": state,
        "reason": reason or None,
        "launch": None if launch is None else launch.launch_id,
        "task_id": None if launch is None else launch.task_id,
        "agent_id": None if launch is None else launch.agent_id,
        "hostname": None if launch is None else launch.hostname,
        "host": None if heartbeat is None else heartbeat.host,
        "port": None if heartbeat is None else heartbeat.port,
        "capacity_bytes": slot.mem_bytes if heartbeat is None else heartbeat.capacity_bytes,
        "used_bytes": None if heartbeat is None else heartbeat.used_bytes,
        "lent_bytes": None if heartbeat is None else heartbeat.lent_bytes,
        "disk": _disk_json(slot, heartbeat),
        "pid": None if heartbeat is None else heartbeat.pid,
        "refused_count": None if heartbeat is None else heartbeat.refused_count,
        "heartbeat_age_ms": None if seen is None else max(0, now_ms - seen.heard_ms),
        "datasets": [] if seen is None else _held_json(catalog, seen),
    }


def _disk_json(slot: Slot, heartbeat: Heartbeat | None) -> dict[str, Any] | None:
    """Return how an executor's SSD tier does; null: it has none."""
    disk = None if heartbeat is None else heartbeat.disk
    if disk is None:
        is_awaited = heartbeat is None and slot.disk_bytes > 0
        return {"capacity_bytes": slot.disk_bytes, **dict.fromkeys(_DISK)} if is_awaited else None
    told = {name: getattr(disk, name) for name in ("capacity_bytes", *_DISK)}
    return told | {"last_error": disk.last_error or None}


_DISK = ("used_bytes", "lent_bytes", "unknown_bytes", "error_count", "last_error", "is_stuck")


def _executor_state(catalog: Catalog, fleet: Fleet, slot: Slot, now_ms: int) -> tuple[str, str]:
    if slot.launch_id == 0:
        return "WAITING", waiting_reason(catalog, fleet, slot, now_ms)
    seen = fleet.executors.get(slot.launch_id)
    launch = fleet.launches.get(slot.launch_id)
    task = launch.task_state if launch is not None else ""
    doubt = launch.doubt if launch is not None else None
    if seen is None:
        away = "; its machine does not answer" if doubt is not None and doubt.is_away else ""
        return "LAUNCHING", f"its task is {task or 'not known to have started'}; it was not heard yet{away}"
    silent_ms = fleet.silent_ms(seen, now_ms)
    if silent_ms > SILENT_MS:
        return "LOST", _silence_text(fleet, silent_ms, task, doubt)
    if task == "TASK_UNREACHABLE":
        return "RUNNING", "Mesos cannot reach its agent"
    return "RUNNING", fleet.resizing.reason(catalog, slot)


def _silence_text(fleet: Fleet, silent_ms: int, task: str, doubt: Doubt | None) -> str:
    settings = fleet.settings
    if task == "TASK_UNREACHABLE":
        where = "Mesos cannot reach its agent"
    elif doubt is not None and doubt.shutdown_tries:
        where = "its agent was told to end it"
    elif fleet.mass_silence.reason:
        where = f"{fleet.mass_silence.reason}, so it is not told to end"
    elif doubt is not None and doubt.is_away:
        where = "its machine does not answer, so it is not told to end: waiting for Mesos' word"
    else:
        where = "asking whether its machine answers"
    if silent_ms <= settings.heartbeat_timeout_ms:
        return f"silent for {silent_ms} ms"
    return f"silent for {silent_ms} ms; {where}; without word of it, it is replaced after {settings.unreachable_delay_ms} ms"


def _held_json(catalog: Catalog, seen: ExecutorSeen) -> list[dict[str, Any]]:
    rows = [
        {
            "name": catalog.datasets[dataset_id].name,
            "blocks": held.residency.full_blocks,
            "bytes": held.residency.cached_bytes,
        }
        for (dataset_id, _), held in seen.datasets.items()
        if dataset_id in catalog.datasets
    ]
    return sorted(rows, key=lambda row: str(row["name"]))


def _cached(fleet: Fleet, dataset: Dataset, current: Manifested) -> tuple[int, int]:
    """Return the bytes cached at least once, and how many copies each full block has at least.

    Executors count bytes, and know full blocks by number: the bytes of all copies are scaled by how many of the full
    blocks are different ones. Exact with one replica, and wherever all copies are full.
    """
    held = [h for seen in fleet.executors.values() if (h := _current(fleet, seen, dataset, current))]
    total = sum(h.residency.cached_bytes for h in held)
    counts = np.zeros(8 * max((len(h.bitmap) for h in held), default=0), dtype=np.uint16)
    for h in held:
        bits = np.unpackbits(np.frombuffer(h.bitmap, dtype=np.uint8), bitorder="little")
        counts[: len(bits)] += bits
    cached = counts[counts > 0]
    full = sum(popcount(h.bitmap) for h in held)
    if full:
        total = total * len(cached) // full
    return min(total, current.bytes), int(cached.min()) if len(cached) else 0


def _current(fleet: Fleet, seen: ExecutorSeen, dataset: Dataset, current: Manifested) -> Held | None:
    return fleet.held(seen, dataset.dataset_id, current.generation)


def _ratio(part: int, whole: int) -> float:
    return round(part / whole, 4) if whole else 1.0


def _slot_json(slot: SlotProgress) -> dict[str, Any]:
    return {
        "slot": slot.slot_id,
        "bytes": slot.bytes,
        "bytes_total": slot.bytes_total,
        "files": slot.files,
        "files_total": slot.files_total,
    }


def _waiting_for(
    catalog: Catalog, fleet: Fleet, progress: JobProgress, slots: list[SlotProgress], now_ms: int
) -> str:
    """Return what an active job waits for, if it is not work that goes on."""
    silent = [s for s in slots if not s.is_reported]
    if silent:
        slot = catalog.slots[silent[0].slot_id]
        state, reason = _executor_state(catalog, fleet, slot, now_ms)
        more = f" ({len(silent)} slots are missing)" if len(silent) > 1 else ""
        return f"waits for slot {slot.slot_id}, {state}{': ' + reason if reason else ''}{more}"
    if progress.unfit_blocks:
        return f"{progress.unfit_blocks} blocks find no room"
    return f"{progress.held_blocks} blocks are still held, or lent to readers" if progress.held_blocks else ""

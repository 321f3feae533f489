"""Why: for each recent offer what became of it, for each wanted executor that does not run why not, and which agent came nearest.

Plain dicts and texts, made on request; they decide nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import islice
from typing import Any

from stoker.framework.core.actions import Check
from stoker.framework.core.catalog import Catalog, Slot
from stoker.framework.core.constraints import constraint_text
from stoker.framework.core.fleet import Fleet
from stoker.framework.core.requirements import amount_text, failures, reason_text
from stoker.framework.core.sightings import Nearest
from stoker.framework.model import FleetSpec

WAITING_SHOWN_MAX = 100
UNKNOWN_SHOWN_MAX = 100


def check_json(check: Check) -> dict[str, Any]:
    return {
        "requirement": check.requirement,
        "passed": check.passed,
        "wanted": amount_text(check, check.wanted),
        "offered": amount_text(check, check.offered),
    }


def offer_views(fleet: Fleet, limit: int | None = None) -> list[dict[str, Any]]:
    """Return the last decisions about offers, the newest first."""
    return [
        {
            "offer_id": decided.offer.offer_id,
            "agent_id": decided.offer.agent_id,
            "hostname": decided.offer.hostname,
            "role": decided.offer.role,
            "cpus": decided.offer.resources.cpus_milli / 1000,
            "mem_bytes": decided.offer.resources.mem_bytes,
            "disk_bytes": decided.offer.resources.disk_bytes,
            "decision": decided.decision,
            "reason": decided.reason,
            "checks": list(map(check_json, decided.checks)),
            "wall_ms": decided.wall_ms,
        }
        for decided in islice(reversed(fleet.decisions), limit)
    ]


def fleet_json(catalog: Catalog, fleet: Fleet, spec: FleetSpec, now_ms: int) -> dict[str, Any]:
    """Return the wanted fleet, what there is of it, and why the rest is not there (of some 100 executors)."""
    waiting = [slot for slot in catalog.slots.values() if slot.launch_id == 0]
    return {
        "instances": spec.instances,
        "mem_bytes": spec.mem_bytes,
        "disk_bytes": spec.disk_bytes,
        "role": spec.role,
        "roles": list(spec.roles),
        "constraints": list(map(constraint_text, spec.constraints)),
        "executor": spec.executor,
        "attention": attention(fleet),
        "running": sum(slot.launch_id in fleet.executors for slot in catalog.slots.values()),
        "volumes": _volumes_json(catalog, fleet),
        "waiting_count": len(waiting),
        "waiting": [_waiting_json(catalog, fleet, slot, now_ms) for slot in waiting[:WAITING_SHOWN_MAX]],
    }


def attention(fleet: Fleet) -> str:
    """Return why this leader keeps its hands off executors, or nothing."""
    return about_newer_journal(fleet.newer_journal) if fleet.newer_journal else about_silence(fleet)


def about_silence(fleet: Fleet) -> str:
    """Return what is said of executors that are silent all at once, or nothing."""
    if not fleet.mass_silence.reason:
        return ""
    return (
        f"{fleet.mass_silence.reason}: as a rule they cannot reach this scheduler (its --advertise address, a firewall). None "
        f"is told to end before it was silent for {fleet.settings.unreachable_delay_ms} ms"
    )


def about_newer_journal(proof: str) -> str:
    """Return what is said where `proof` tells of a newer journal."""
    return (
        f"{proof}: another scheduler has taken over, or it is an older journal. This leader ends and launches no "
        "executors; if nobody else leads, stop the schedulers and bring the newest journal back, as it was or with "
        "`stoker journal restore`"
    )


def volume_states(catalog: Catalog, fleet: Fleet) -> list[str]:
    """Return a word for each volume that is known of."""
    known = [
        "released" if v.state == "READY" and not v.slot_id else v.state.lower()
        for v in catalog.volumes.values()
    ]
    return known + ["unknown"] * len(fleet.sightings.unknown_volumes())


def _volumes_json(catalog: Catalog, fleet: Fleet) -> dict[str, Any]:
    """Return how many volumes there are, by state; RELEASED: nobody's; and those that the journal does not know."""
    counts = Counter(volume_states(catalog, fleet))
    return {
        **{state: counts[state] for state in ("planned", "ready", "released", "doomed")},
        "unknown_count": counts["unknown"],
        "unknown": [
            {
                "agent_id": agent_id,
                "volume": volume.volume_id,
                "role": volume.role,
                "disk_bytes": volume.disk_bytes,
            }
            for agent_id, volume in fleet.sightings.unknown_volumes()[:UNKNOWN_SHOWN_MAX]
        ],
    }


def _waiting_json(catalog: Catalog, fleet: Fleet, slot: Slot, now_ms: int) -> dict[str, Any]:
    nearest = _nearest(catalog, fleet, slot)
    return {
        "slot": slot.slot_id,
        "reason": waiting_reason(catalog, fleet, slot, now_ms),
        "nearest": None if nearest is None else _nearest_json(nearest),
    }


def _nearest_json(nearest: Nearest) -> dict[str, Any]:
    return {
        "agent_id": nearest.explained.agent_id,
        "hostname": nearest.hostname,
        "role": nearest.explained.role,
        "checks": list(map(check_json, nearest.explained.checks)),
        "wall_ms": nearest.wall_ms,
    }


def _nearest(catalog: Catalog, fleet: Fleet, slot: Slot) -> Nearest | None:
    """Return the agent that came nearest to what this slot needs; of one with a volume that is the volume's."""
    volume = catalog.volumes.of_slot(slot.slot_id)
    if volume is None:
        return fleet.sightings.nearest.get(0)
    nearest = fleet.sightings.nearest.get(slot.slot_id)
    is_current = nearest is not None and nearest.explained.agent_id == volume.agent_id
    return nearest if is_current else None


def waiting_reason(catalog: Catalog, fleet: Fleet, slot: Slot, now_ms: int) -> str:
    """Return why a slot has no launch now."""
    ended = f"; its last executor ended: {slot.ended_reason}" if slot.ended_reason else ""
    if not fleet.subscribed:
        return "there is no connection to a Mesos master" + ended
    if fleet.newer_journal:
        return f"nothing is launched: {fleet.newer_journal}"
    backoff_ms = fleet.backoff_ms(slot.slot_id, now_ms)
    if backoff_ms:
        return f"it may be launched again in {backoff_ms} ms{ended}"
    nearest, volume = _nearest(catalog, fleet, slot), catalog.volumes.of_slot(slot.slot_id)
    if volume is not None:
        left_ms = max(0, fleet.settings.volume_patience_ms - fleet.empty_ms(slot.slot_id, now_ms))
        why = f"its volume is on {volume.hostname}, and is waited for {left_ms // 1000} s more (--volume-patience; "
        why += f"`stoker drain {volume.agent_id}` gives it up now): "
        return why + (reason_text(nearest.explained.checks) if nearest else "no offer of it came yet") + ended
    if nearest is not None:
        told = reason_text(nearest.explained.checks)
        return f"no offer fits; the nearest, of {nearest.hostname}: {told}{ended}"
    for decided in reversed(fleet.decisions):
        if decided.decision == "declined":
            return f"no offer fits; the last, of {decided.offer.hostname}: {decided.reason}{ended}"
    return "no offer came yet" + ended


def unsatisfied(catalog: Catalog, fleet: Fleet) -> tuple[str, str]:
    """Return what keeps the fleet from what is wanted, and why the nearest agent does not do; two empty texts: nothing does.

    The first changes with the requirements that fail, not with amounts: a log tells it once.
    """
    spec, nearest = catalog.fleet, fleet.sightings.nearest.get(0)
    waiting = sum(
        slot.launch_id == 0 and catalog.volumes.of_slot(slot.slot_id) is None
        for slot in catalog.slots.values()
    )
    if spec is None or nearest is None or not waiting or not fleet.subscribed:
        return "", ""
    checks: Sequence[Check] = nearest.explained.checks
    lacks = ", ".join(check.requirement for check in failures(checks))
    return (
        f"no offer fits what is wanted: the nearest fails in {lacks}",
        f"{waiting} of {spec.instances} executors wait; nearest is agent {nearest.explained.agent_id} "
        f"({nearest.hostname}): {reason_text(checks)}",
    )

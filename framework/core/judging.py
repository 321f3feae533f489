"""Whether who heartbeats has a place here, and whether this journal is the newest."""

from __future__ import annotations

import hmac

from stoker.executor.messages import Heartbeat
from stoker.framework.core.catalog import Catalog, Launch


def judge(catalog: Catalog, heartbeat: Heartbeat) -> str:
    """Return "ok", "stale" (this launch has no place any more) or "unknown" (not ours to judge) for a heartbeat."""
    if heartbeat.cluster != catalog.cluster or heartbeat.epoch_seen > catalog.epoch:
        return "unknown"
    launch = catalog.launches.get(heartbeat.launch_id)
    if launch is None:
        return "stale" if heartbeat.launch_id < catalog.launch_id_next else "unknown"
    return "ok" if _is_of(launch, heartbeat) else "stale"


def proof_of_newer_journal(catalog: Catalog, heartbeat: Heartbeat) -> str:
    """Return what in the heartbeat tells that more was journaled than we know, or nothing.

    Then another leads, or the journal went back in time (an older disk was put in its place). What it lacks may live:
    nothing is ended or launched on its word.
    """
    if heartbeat.cluster != catalog.cluster:
        return ""
    if heartbeat.launch_id >= catalog.launch_id_next:
        return (
            f"an executor is of launch {heartbeat.launch_id}, this journal knows none "
            f"after {catalog.launch_id_next - 1}"
        )
    launch = catalog.launches.get(heartbeat.launch_id)
    if heartbeat.epoch_seen <= catalog.epoch or not (launch is None or _is_of(launch, heartbeat)):
        return ""
    return f"an executor has seen epoch {heartbeat.epoch_seen}, this journal is at {catalog.epoch}"


def _is_of(launch: Launch, heartbeat: Heartbeat) -> bool:
    return launch.slot_id == heartbeat.slot_id and hmac.compare_digest(
        launch.secret.encode(), heartbeat.secret.encode()
    )

"""What leaves: agents that are drained, and the cluster itself, as the catalog knows them. Values, and how entries change them."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple

from stoker.framework.core import entries as e

if TYPE_CHECKING:
    from stoker.framework.core.catalog import Catalog

Drain = e.AgentDrainSet
CAUSE_OPERATOR = "operator"
CAUSE_MAINTENANCE = "maintenance"

DepartureEntry = (
    e.AgentDrainSet | e.AgentDrainCleared | e.UninstallBegan | e.TeardownPlanned | e.UninstallFinished
)


class UninstallState(enum.StrEnum):
    CLEARING = "CLEARING"  # executors end, volumes are destroyed
    TEARING_DOWN = "TEARING_DOWN"
    FINISHED = "FINISHED"


class Uninstall(NamedTuple):
    """`left`: what could not be reached, in words."""

    keep_volumes: bool
    began_ms: int
    state: UninstallState = UninstallState.CLEARING
    left: tuple[str, ...] = ()
    finished_ms: int = 0


def apply_departure(
    drains: dict[str, Drain], uninstall: Uninstall | None, entry: DepartureEntry
) -> Uninstall | None:
    """Change the table of drains as `entry` says; return what the uninstall has come to."""
    match entry:
        case e.AgentDrainSet():
            drains[entry.agent_id] = entry
        case e.AgentDrainCleared():
            drains.pop(entry.agent_id, None)
        case e.UninstallBegan():
            return Uninstall(entry.keep_volumes, entry.wall_ms)
        case e.TeardownPlanned():
            assert uninstall is not None, entry
            return uninstall._replace(state=UninstallState.TEARING_DOWN, left=entry.left)
        case e.UninstallFinished():
            assert uninstall is not None, entry
            return uninstall._replace(state=UninstallState.FINISHED, finished_ms=entry.wall_ms)
    return uninstall


def blocks_agent(catalog: Catalog, agent_id: str) -> str:
    """Return why nothing may be launched on this agent, or nothing."""
    if catalog.uninstall is not None:
        return "the cluster is being uninstalled"
    drain = catalog.drains.get(agent_id)
    if drain is None:
        return ""
    if drain.cause == CAUSE_MAINTENANCE:
        return f"the agent is drained for maintenance: {drain.reason}"
    return f"the agent is drained ({drain.reason}): `stoker drain {agent_id} --undo` lets it be used again"

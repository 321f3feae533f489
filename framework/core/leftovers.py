"""Disk of ours that nobody uses: volumes that are doomed, or that the catalog does not know, and reservations without a volume.

It is destroyed where its agent offers it (matching.py), so offers are wanted for as long as some may come. An uninstall looks
for it too: once nothing is known any more, a REVIVE brings what all agents have, and only then nothing is left.
"""

from __future__ import annotations

from stoker.framework.core.catalog import Catalog
from stoker.framework.core.departures import UninstallState
from stoker.framework.core.fleet import Fleet
from stoker.framework.core.volumes import Volume, VolumeState

LOOK_MS = 3_000  # after a REVIVE: by then every agent that is there has made an offer
LOST_MS = 600_000  # with Mesos at hand: then what makes no offers is not looked for any more


def is_clearing(catalog: Catalog) -> bool:
    """Return whether an uninstall goes on that leaves no volumes."""
    uninstall = catalog.uninstall
    return uninstall is not None and uninstall.state is UninstallState.CLEARING and not uninstall.keep_volumes


def is_away(fleet: Fleet, volume: Volume) -> bool:
    """Return whether the volume's agent made no offer since it was lost, or since we listen and ask for offers."""
    asked_ms = max(fleet.sightings.offered_ms, fleet.revived_ms)
    has_looked = asked_ms - fleet.sightings.subscribed_ms >= LOOK_MS
    return has_looked and volume.agent_id not in fleet.agents


def wants_offers(catalog: Catalog, fleet: Fleet, now_ms: int) -> bool:
    """Return whether offers are wanted to clear agents."""
    if fleet.newer_journal:
        return False
    if is_clearing(catalog):
        return bool(catalog.volumes) or not is_clean(catalog, fleet, now_ms)
    is_early = now_ms - fleet.sightings.subscribed_ms < LOST_MS
    doomed = (volume for volume in catalog.volumes.values() if volume.state is VolumeState.DOOMED)
    return any(is_early or not is_away(fleet, volume) for volume in doomed)


def is_clean(catalog: Catalog, fleet: Fleet, now_ms: int) -> bool:
    """Return whether nothing was found in offers that came after all volumes were gone; a fleet that never had one needs none."""
    if catalog.volume_id_next == 1:
        return True
    sightings = fleet.sightings
    since_ms = fleet.cleared_ms
    is_looked = since_ms is not None and since_ms <= fleet.revived_ms <= now_ms - LOOK_MS
    return is_looked and not sightings.unknown and not sightings.unused

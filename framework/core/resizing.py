"""Executors of another size than their slots, and whether there is room for what is to replace them: a part of the fleet
(observed, volatile).

Such an executor is ended only once the new size is known to fit: on its own agent, with its own resources and what that agent
offers besides, or on another agent, as its offer is now. The checks are those of a launch (requirements.py). Until then
it runs on, and who asks is told what came nearest. It is ended in launches.py.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator
from heapq import nsmallest

from stoker.executor.units import format_bytes
from stoker.framework.core import events as ev
from stoker.framework.core.actions import Accept, Action, Explained
from stoker.framework.core.catalog import Catalog, Launch, Slot
from stoker.framework.core.requirements import (
    AgentOffer,
    Requirements,
    is_met,
    merge_offers,
    merge_resources,
    reason_text,
)
from stoker.framework.core.sightings import Nearest, distance
from stoker.framework.core.volumes import VolumeState
from stoker.framework.model import FleetSpec, Offer, OfferedVolume, Resources, Settings, overhead_bytes

ROOM_MS = 5_000  # that room counts as there: an agent that has it makes its offer again sooner
LOOKED_AT_MAX = 16  # executors of a round; those that were not looked at for longest


class Resizing:
    """Bounded by the catalog's slots."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.nearest: dict[int, Nearest] = {}  # by slot id
        self._looked_ms: dict[int, int] = {}

    def look(self, stamp: ev.Stamp, offers: Collection[Offer], catalog: Catalog) -> None:
        """Note for executors that are to be replaced whether what is on offer now, beside their own, would do."""
        spec = catalog.fleet
        slots = catalog.slots.values()
        misfits = {s.slot_id: (s, launch) for s in slots if (launch := misfit_of(catalog, s)) is not None}
        for table in (self.nearest, self._looked_ms):
            for slot_id in [i for i in table if i not in misfits]:
                del table[slot_id]
        if spec is None or not misfits:
            return
        by_key: dict[tuple[str, str], list[Offer]] = defaultdict(list)
        for offer in offers:
            by_key[offer.agent_id, offer.role].append(offer)
        cluster = catalog.cluster.hex()
        agents = {key: merge_offers(found, cluster) for key, found in by_key.items()}
        free = [agent for agent in agents.values() if catalog.launch_on_agent(agent.agent_id) is None]
        for slot_id in nsmallest(LOOKED_AT_MAX, misfits, key=lambda i: (self._looked_ms.get(i, -1), i)):
            self._looked_ms[slot_id] = stamp.now_ms
            slot, launch = misfits[slot_id]
            roles = dict.fromkeys((launch.role, *spec.roles))
            own = [_with_own(catalog, launch, role, agents.get((launch.agent_id, role))) for role in roles]
            self._look_for(stamp, spec, catalog, slot, launch, [*own, *free])

    def _look_for(
        self,
        stamp: ev.Stamp,
        spec: FleetSpec,
        catalog: Catalog,
        slot: Slot,
        launch: Launch,
        agents: list[AgentOffer],
    ) -> None:
        requirements = Requirements(catalog, spec, self.settings, stamp.wall_ms, without=launch)
        checked = [(requirements.evaluate(slot, agent), agent) for agent in agents]
        checks, agent = min(checked, key=lambda pair: distance(pair[0]))
        known = self.nearest.get(slot.slot_id)
        is_stale = known is None or stamp.now_ms - known.now_ms > ROOM_MS
        # What an agent offers besides is more than the executor's own alone.
        if (
            known is None
            or is_stale
            or is_met(checks)
            or (agent.offers and not is_met(known.explained.checks))
        ):
            told = Explained(agent.agent_id, agent.role, slot.slot_id, "", checks)
            self.nearest[slot.slot_id] = Nearest(told, agent.hostname, stamp.now_ms, stamp.wall_ms)

    def apply(self, action: Action) -> None:
        """An agent on which another executor is launched has no room any more."""
        if isinstance(action, Accept):
            agent_id = action.launch.agent_id
            for slot_id in [i for i, known in self.nearest.items() if known.explained.agent_id == agent_id]:
                del self.nearest[slot_id]

    def with_room(self, catalog: Catalog, now_ms: int) -> Iterator[tuple[Slot, Launch]]:
        """Iterate over the slots whose executor, if it ended, could be launched in its new size."""
        for slot_id, known in self.nearest.items():
            slot = catalog.slots.get(slot_id)
            launch = None if slot is None else misfit_of(catalog, slot)
            is_fresh = now_ms - known.now_ms <= ROOM_MS
            if slot is not None and launch is not None and is_fresh and is_met(known.explained.checks):
                yield slot, launch

    def reason(self, catalog: Catalog, slot: Slot) -> str:
        """Return why the slot's executor is of another size yet; nothing if it is not."""
        launch = misfit_of(catalog, slot)
        if launch is None:
            return ""
        why = size_text(slot, launch)
        known = self.nearest.get(slot.slot_id)
        if known is None:
            return f"{why}; room for that is looked for"
        if is_met(known.explained.checks):
            return f"{why}; it is replaced once every other executor runs"
        return (
            f"{why}, for which there is no room: it runs on; nearest is {known.hostname}, with its own: "
            f"{reason_text(known.explained.checks)}"
        )


def size_text(slot: Slot, launch: Launch) -> str:
    """Return of which size an executor is, and its slot."""
    sizes = [
        f"{format_bytes(mem_bytes)} memory" + (f" and {format_bytes(disk_bytes)} disk" if has_disk else "")
        for has_disk in [slot.disk_bytes != launch.disk_bytes]
        for mem_bytes, disk_bytes in (
            (launch.mem_bytes, launch.disk_bytes),
            (slot.mem_bytes, slot.disk_bytes),
        )
    ]
    return f"it has {sizes[0]}, its slot {sizes[1]} now"


def misfit_of(catalog: Catalog, slot: Slot) -> Launch | None:
    """Return the slot's launch if it is to be replaced: it has another size, or is on a doomed volume.

    What is drained keeps what is only there until it is copied.
    """
    launch = catalog.launches.get(slot.launch_id)
    if launch is None or launch.agent_id in catalog.drains:
        return None
    volume = catalog.volumes.get(launch.volume_id)
    is_doomed = volume is not None and volume.state is VolumeState.DOOMED
    is_fit = (launch.mem_bytes, launch.disk_bytes) == (slot.mem_bytes, slot.disk_bytes) and not is_doomed
    return None if is_fit else launch


def _with_own(catalog: Catalog, launch: Launch, role: str, offered: AgentOffer | None) -> AgentOffer:
    """Return what its agent would offer a role without this executor, whose disk alone is reserved for its own role."""
    has_disk = role == launch.role
    own = Resources(
        launch.cpus_milli,
        launch.mem_bytes + overhead_bytes(launch.mem_bytes, launch.disk_bytes),
        launch.disk_bytes if has_disk else 0,
        ((launch.port, launch.port),),
    )
    agent = offered or AgentOffer(
        launch.agent_id,
        launch.hostname,
        role,
        (),
        Resources(0, 0, 0, ()),
        {**dict(launch.attributes), "hostname": launch.hostname, "@hostname": launch.hostname},
    )
    volume = catalog.volumes.get(launch.volume_id)
    volumes = agent.volumes
    if volume is not None and has_disk and not agent.has_volume(volume.volume_id):
        seen = OfferedVolume(catalog.cluster.hex(), volume.volume_id, volume.role, volume.disk_bytes)
        volumes = (*volumes, seen)
    return AgentOffer(
        agent.agent_id,
        agent.hostname,
        agent.role,
        agent.offers,
        merge_resources([agent.resources, own]),
        agent.fields,
        volumes,
        agent.reserved_disk,
        agent.unavailable_from_ms,
        agent.unavailable_for_ms,
    )

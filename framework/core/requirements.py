"""What an agent must have for an executor: one check a requirement, all of them made, each with what was wanted and offered.

The same checks decide and explain. They hold numbers, in the unit of their requirement (thousandths of a cpu, bytes, ports); words
are made of them only for who reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from stoker.executor.units import format_bytes
from stoker.framework.core.actions import Check
from stoker.framework.core.catalog import Catalog, Launch, Slot
from stoker.framework.core.constraints import Tally, agent_fields
from stoker.framework.core.departures import blocks_agent
from stoker.framework.core.sightings import ONE_AN_AGENT
from stoker.framework.core.volumes import Volume, VolumeState
from stoker.framework.model import (
    FleetSpec,
    Offer,
    OfferedReservation,
    OfferedVolume,
    Resources,
    Settings,
    overhead_bytes,
)

PORTS_WANTED = 1


@dataclass(frozen=True, slots=True)
class AgentOffer:
    """All that one agent offers one role at this moment."""

    agent_id: str
    hostname: str
    role: str
    offers: tuple[Offer, ...]
    resources: Resources
    fields: Mapping[str, str]  # for constraints
    volumes: tuple[OfferedVolume, ...] = ()  # of this cluster
    reserved_disk: tuple[OfferedReservation, ...] = ()  # of this cluster
    unavailable_from_ms: int = 0
    unavailable_for_ms: int = 0

    @property
    def offer_ids(self) -> tuple[str, ...]:
        return tuple(sorted(offer.offer_id for offer in self.offers))

    def has_volume(self, volume_id: int) -> bool:
        return any(volume.volume_id == volume_id for volume in self.volumes)


def merge_offers(offers: Sequence[Offer], cluster: str) -> AgentOffer:
    """Return what offers of one agent and role come to; `cluster` is ours, in hex."""
    first = offers[0]
    later = [offer for offer in offers if offer.unavailable_from_ms] or [first]
    return AgentOffer(
        first.agent_id,
        first.hostname,
        first.role,
        tuple(offers),
        first.resources if len(offers) == 1 else merge_resources([offer.resources for offer in offers]),
        agent_fields(first.hostname, first.region, first.zone, first.attributes),
        tuple(v for offer in offers for v in offer.volumes if v.cluster == cluster),
        tuple(r for offer in offers for r in offer.reserved_disk if r.cluster == cluster),
        later[-1].unavailable_from_ms,
        later[-1].unavailable_for_ms,
    )


def merge_resources(amounts: Sequence[Resources]) -> Resources:
    """Return the sum; ports are the ranges of all, in order."""
    return Resources(
        sum(r.cpus_milli for r in amounts),
        sum(r.mem_bytes for r in amounts),
        sum(r.disk_bytes for r in amounts),
        tuple(sorted(ports for r in amounts for ports in r.ports)),
    )


class Requirements:
    """What is wanted in one round of matching. `tallies` count on as launches are planned.

    `without`: as if this launch had ended.
    """

    def __init__(
        self,
        catalog: Catalog,
        spec: FleetSpec,
        settings: Settings,
        wall_ms: int,
        *,
        without: Launch | None = None,
    ) -> None:
        self.catalog, self.spec, self.settings, self.wall_ms = catalog, spec, settings, wall_ms
        self.without = without
        launches = catalog.launches.values() if spec.constraints else ()
        in_use = [launch_fields(x.attributes, x.hostname) for x in launches if x is not without]
        self.tallies = [Tally(constraint, in_use) for constraint in spec.constraints]
        self.static_texts = {t.text for t in self.tallies if not t.is_counting}
        self.balanced_texts = {t.text for t in self.tallies if t.constraint.operator == "GROUP_BY"}
        self.roles = frozenset(spec.roles)

    def evaluate(self, slot: Slot, agent: AgentOffer) -> tuple[Check, ...]:
        """Return all checks of `agent` for an executor of `slot`."""
        checks = [*self._agent(slot, agent), *self._amounts(slot, agent)]
        if slot.disk_bytes or agent.volumes:
            checks += self._disk(slot, agent)
        for tally in self.tallies:
            fields = agent.fields
            checks.append(Check(tally.text, tally.check(fields), tally.wanted, tally.offered(fields)))
        return tuple(checks)

    def is_allowed(self, agent: AgentOffer) -> bool:
        """Return whether the constraints still hold, with what this round has planned."""
        return all(tally.check(agent.fields) for tally in self.tallies)

    def place(self, agent: AgentOffer) -> None:
        for tally in self.tallies:
            tally.add(agent.fields)

    def _agent(self, slot: Slot, agent: AgentOffer) -> list[Check]:
        launch = self.catalog.launch_on_agent(agent.agent_id)
        launch = None if launch is self.without else launch
        owner = next((v.slot_id for v in self.catalog.volumes.on_agent(agent.agent_id) if v.slot_id), 0)
        busy = f"slot {launch.slot_id} is on this one" if launch else "none"
        if launch is None and owner not in (0, slot.slot_id):
            busy = f"slot {owner} has its volume here"
        blocked = blocks_agent(self.catalog, agent.agent_id)
        return [
            Check(ROLE, agent.role in self.roles, " or ".join(self.spec.roles), agent.role),
            Check(ONE_AN_AGENT, busy == "none", "none", busy),
            Check(NOT_DRAINING, not blocked, "no", blocked or "no"),
            self._availability(agent),
        ]

    def _availability(self, agent: AgentOffer) -> Check:
        starts_ms, lasts_ms = agent.unavailable_from_ms, agent.unavailable_for_ms
        is_planned = starts_ms > 0 and (lasts_ms == 0 or starts_ms + lasts_ms > self.wall_ms)
        ahead_ms = max(0, starts_ms - self.wall_ms) if is_planned else 0
        soon_ms = self.settings.maintenance_soon_ms
        wanted = f"no maintenance within {soon_ms // 1000} s"
        if not is_planned:
            return Check(AVAILABLE, True, wanted, "none planned")
        offered = f"maintenance in {ahead_ms // 1000} s" if ahead_ms else "maintenance now"
        return Check(AVAILABLE, ahead_ms > soon_ms, wanted, offered)

    def _amounts(self, slot: Slot, agent: AgentOffer) -> list[Check]:
        offered, cpus_milli = agent.resources, self.spec.cpus_milli
        mem_bytes = slot.mem_bytes + overhead_bytes(slot.mem_bytes, slot.disk_bytes)
        ports = sum(last - first + 1 for first, last in offered.ports)
        return [
            Check(CPUS, offered.cpus_milli >= cpus_milli, cpus_milli, offered.cpus_milli),
            Check(MEMORY, offered.mem_bytes >= mem_bytes, mem_bytes, offered.mem_bytes),
            Check(PORTS, ports >= PORTS_WANTED, PORTS_WANTED, ports),
        ]

    def _disk(self, slot: Slot, agent: AgentOffer) -> list[Check]:
        own = self.catalog.volumes.of_slot(slot.slot_id)
        if own is not None and own.disk_bytes == slot.disk_bytes:  # else it is destroyed first
            has = agent.agent_id == own.agent_id and agent.has_volume(own.volume_id)
            offered = ", ".join(f"volume {v.volume_id}" for v in agent.volumes) or "no volume"
            return [Check(VOLUME, has, f"volume {own.volume_id} on {own.hostname}", offered)]
        if not slot.disk_bytes:
            return []
        if adoptable(self.catalog, slot, agent) or reusable(self.catalog, slot, agent):
            return [Check(DISK, True, slot.disk_bytes, slot.disk_bytes)]
        disk_bytes = agent.resources.disk_bytes
        return [Check(DISK, disk_bytes >= slot.disk_bytes, slot.disk_bytes, disk_bytes)]


def adoptable(catalog: Catalog, slot: Slot, agent: AgentOffer) -> Volume | None:
    """Return a volume that nobody has, on offer here, of the slot's size."""
    for offered in agent.volumes:
        known = catalog.volumes.get(offered.volume_id)
        if (
            known is not None
            and not known.slot_id
            and known.state is VolumeState.READY
            and (known.agent_id, known.role, known.disk_bytes)
            == (agent.agent_id, agent.role, slot.disk_bytes)
        ):
            return known
    return None


def reusable(catalog: Catalog, slot: Slot, agent: AgentOffer) -> OfferedReservation | None:
    """Return disk of ours that was reserved for a volume which was never made, enough for the slot's."""
    for reserved in agent.reserved_disk:
        if reserved.volume_id not in catalog.volumes and reserved.disk_bytes >= slot.disk_bytes:
            return reserved
    return None


def launch_fields(attributes: Sequence[tuple[str, str]], hostname: str) -> dict[str, str]:
    """Return what constraints look at, of an agent that a launch is on."""
    return {**dict(attributes), "hostname": hostname, "@hostname": hostname}


def is_met(checks: Sequence[Check]) -> bool:
    return all(check.passed for check in checks)


def failures(checks: Sequence[Check]) -> list[Check]:
    return [check for check in checks if not check.passed]


ROLE = "role"
NOT_DRAINING = "not draining"
AVAILABLE = "available"
CPUS = "cpus"
MEMORY = "memory"
PORTS = "ports"
DISK = "disk"
VOLUME = "its volume"

_NUMBERS: dict[str, Callable[[int], str]] = {
    CPUS: lambda n: f"{n / 1000:g}",
    MEMORY: format_bytes,
    DISK: format_bytes,
    PORTS: str,
}


def amount_text(check: Check, amount: int | str) -> str:
    """Return a check's `wanted` or `offered` in words.

    >>> amount_text(Check(CPUS, False, 500, 100), 100)
    '0.1'
    """
    return _NUMBERS[check.requirement](amount) if isinstance(amount, int) else amount


def failure_text(check: Check) -> str:
    """Return what a failed check says, in one piece."""
    offered, wanted = amount_text(check, check.offered), amount_text(check, check.wanted)
    if isinstance(check.wanted, int):
        return f"{offered} of {wanted} {check.requirement}"
    if check.requirement == NOT_DRAINING:
        return offered
    if check.requirement in (ONE_AN_AGENT, AVAILABLE):
        return f"{check.requirement}: {offered}"
    return f"{check.requirement}: {offered}, not {wanted}"


def reason_text(checks: Sequence[Check]) -> str:
    """Return why these checks do not let an executor run there; nothing if they do."""
    return "; ".join(map(failure_text, failures(checks)))

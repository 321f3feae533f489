"""Offers to launches, and how many offers are wanted.

Offers are decided as they come: an agent's offers of one role are taken together; the slot whose executor was last on
that agent is launched there, else the longest waiting one; what cannot be used is declined with the reason, in
numbers. An offer is held undecided only for a slot whose back-off is nearly over. One executor an agent: with fewer
agents than instances the rest of the slots waits.

While a slot is wanted, declines are short and REVIVE is repeated (calls are unreliable), ever more rarely; else declines
are long and offers are suppressed. A decline that only a changed wish could undo is long too: a new wish revives.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import defaultdict

from stoker.executor.units import format_bytes
from stoker.framework.core import entries as e
from stoker.framework.core import events as ev
from stoker.framework.core.actions import Accept, Action, Decline, Frame, Revive, Suppress
from stoker.framework.core.catalog import Catalog, Slot
from stoker.framework.core.fleet import Fleet
from stoker.framework.core.launches import now_wall_ms, task_prefix
from stoker.framework.model import FleetSpec, Offer, Resources, Settings

_Key = tuple[str, str]  # agent id, role
STICKY_DELAY_MS_MAX = 2_000  # a slot that flaps more than this goes wherever it can


def match_offers(catalog: Catalog, fleet: Fleet, stamp: ev.Stamp, settings: Settings) -> Frame:
    """Decide on all offers at hand: launch, decline, or hold for a moment; then ask for more or fewer."""
    spec = catalog.fleet
    if spec is None or not fleet.subscribed:
        return Frame()
    wanted = [slot for slot in catalog.slots.values() if slot.launch_id == 0 and not fleet.newer_journal]
    due = [slot for slot in wanted if fleet.backoff_ms(slot.slot_id, stamp.now_ms) == 0]
    matching = _Matching(catalog, fleet, stamp, settings, spec, due, is_wanted=bool(wanted))
    for key, offers in _by_agent(fleet).items():
        matching.take(key, offers)
    matching.launch()
    actions = [*matching.actions(), *_appetite(fleet, stamp, settings, is_wanted=bool(wanted))]
    return Frame(tuple(matching.entries), tuple(actions))


class _Matching:
    """One round of matching. Builds entries and actions; changes neither catalog nor fleet."""

    def __init__(
        self,
        catalog: Catalog,
        fleet: Fleet,
        stamp: ev.Stamp,
        settings: Settings,
        spec: FleetSpec,
        due: list[Slot],
        *,
        is_wanted: bool,
    ) -> None:
        self.catalog, self.fleet, self.stamp, self.settings, self.spec = catalog, fleet, stamp, settings, spec
        self.due = due
        self.is_wanted = is_wanted
        self.usable: dict[_Key, tuple[list[Offer], Resources]] = {}
        self.accepts: list[Accept] = []
        self.entries: list[e.Entry] = []
        self.declines: dict[tuple[int, str], list[str]] = defaultdict(list)

    def take(self, key: _Key, offers: list[Offer]) -> None:
        """Sort one agent's offers of one role: usable, or declined with a reason."""
        settings = self.settings
        if not self.is_wanted:
            reason = self.fleet.newer_journal or "every wanted executor is launched"
            return self._decline(offers, settings.decline_ms, reason)
        launch = self.catalog.launch_on_agent(key[0])
        if launch is not None:
            reason = f"one executor an agent: slot {launch.slot_id} is on this one"
            return self._decline(offers, settings.decline_ms, reason)
        resources = merge_resources([offer.resources for offer in offers])
        reason = shortfall(self.spec, resources)
        if reason:
            return self._decline(offers, settings.decline_busy_ms, reason)
        self.usable[key] = (offers, resources)

    def launch(self) -> None:
        """Give the usable agents to the slots that are due, a slot's last agent first; hold or decline the rest."""
        by_agent: dict[str, _Key] = {}
        for key in self.usable:
            by_agent.setdefault(key[0], key)
        others = []
        for slot in self.due:
            own = by_agent.get(slot.last_agent_id)
            if own is not None and own in self.usable and not self._is_flapping(slot):
                self._accept(slot, own)
            else:
                others.append(slot)
        claimed = {s.last_agent_id for s in self.catalog.slots.values() if s.launch_id == 0}
        unclaimed_first = sorted(by_agent.values(), key=lambda key: (key[0] in claimed, key))
        free = (key for key in unclaimed_first if key in self.usable)
        for slot, key in zip(others, free, strict=False):
            self._accept(slot, key)
        self._leave()

    def actions(self) -> list[Action]:
        """Return the accepts, and one decline a reason."""
        declines = [Decline(tuple(ids), ms, reason) for (ms, reason), ids in self.declines.items()]
        return [*self.accepts, *declines]

    def _is_flapping(self, slot: Slot) -> bool:
        backoff = self.fleet.backoffs.get(slot.slot_id)
        return backoff is not None and backoff.delay_ms > STICKY_DELAY_MS_MAX

    def _accept(self, slot: Slot, key: _Key) -> None:
        if len(self.entries) >= self.settings.launches_frame_max:
            return
        offers, resources = self.usable.pop(key)
        for other in [k for k in self.usable if k[0] == key[0]]:
            self._decline(
                self.usable.pop(other)[0],
                self.settings.decline_ms,
                f"one executor an agent: slot {slot.slot_id} takes another role's offer",
            )
        launch = self._plan(slot, offers[0], resources)
        ids = tuple(sorted(offer.offer_id for offer in offers))
        self.entries.append(launch)
        self.accepts.append(Accept(ids, launch, self.settings.decline_ms, key[1]))

    def _plan(self, slot: Slot, offer: Offer, resources: Resources) -> e.LaunchPlanned:
        launch_id = self.catalog.launch_id_next + len(self.entries)
        epoch = self.catalog.epoch
        return e.LaunchPlanned(
            launch_id=launch_id,
            slot_id=slot.slot_id,
            task_id=f"{task_prefix(self.catalog.cluster)}e{epoch}-s{slot.slot_id}-l{launch_id}",
            agent_id=offer.agent_id,
            hostname=offer.hostname,
            port=choose_port(resources, launch_id),
            secret=hmac.new(self.fleet.seed, b"launch %d" % launch_id, hashlib.sha256).hexdigest(),
            mem_bytes=slot.mem_bytes,
            cpus_milli=self.spec.cpus_milli,
            epoch=epoch,
            wall_ms=now_wall_ms(self.catalog, self.stamp),
        )

    def _leave(self) -> None:
        """Hold what a slot can use in a moment, or in the next frame; decline the rest, for a short time."""
        waits = [
            ms
            for slot in self.catalog.slots.values()
            if slot.launch_id == 0
            and 0
            < (ms := self.fleet.backoff_ms(slot.slot_id, self.stamp.now_ms))
            <= self.settings.decline_busy_ms
        ]
        undone = max(0, len(self.due) - len(self.accepts)) + len(waits)
        held = 0
        for offers, _ in self.usable.values():
            held += len(offers)
            if undone > 0 and held <= self.settings.offers_held_max:
                undone -= 1
                continue
            reason = "no slot can use it now: the waiting ones are in their back-off, or have an agent"
            self._decline(offers, self.settings.decline_busy_ms, reason)

    def _decline(self, offers: list[Offer], refuse_ms: int, reason: str) -> None:
        self.declines[refuse_ms, reason].extend(offer.offer_id for offer in offers)


def merge_resources(amounts: list[Resources]) -> Resources:
    """Return the sum; ports are the ranges of all, in order."""
    return Resources(
        sum(r.cpus_milli for r in amounts),
        sum(r.mem_bytes for r in amounts),
        sum(r.disk_bytes for r in amounts),
        tuple(sorted(ports for r in amounts for ports in r.ports)),
    )


def shortfall(spec: FleetSpec, offered: Resources) -> str:
    """Return what an executor lacks in `offered`, in numbers; nothing if it fits."""
    need = spec.resources()
    lacks = []
    if offered.mem_bytes < need.mem_bytes:
        lacks.append(f"{format_bytes(offered.mem_bytes)} of {format_bytes(need.mem_bytes)} memory")
    if offered.cpus_milli < need.cpus_milli:
        lacks.append(f"{offered.cpus_milli / 1000:g} of {need.cpus_milli / 1000:g} cpus")
    if not offered.ports:
        lacks.append("no port")
    return "too small: " + ", ".join(lacks) if lacks else ""


def choose_port(offered: Resources, launch_id: int) -> int:
    """Return one of the offered ports; successive launches get different ones where there is a choice."""
    index = launch_id % sum(last - first + 1 for first, last in offered.ports)
    for first, last in offered.ports:
        if index <= last - first:
            return first + index
        index -= last - first + 1
    raise AssertionError("index is below the number of ports")


def _by_agent(fleet: Fleet) -> dict[_Key, list[Offer]]:
    grouped: dict[_Key, list[Offer]] = defaultdict(list)
    for offer in fleet.offers.values():
        grouped[offer.agent_id, offer.role].append(offer)
    return dict(sorted(grouped.items()))


def _appetite(fleet: Fleet, stamp: ev.Stamp, settings: Settings, *, is_wanted: bool) -> list[Action]:
    """Return the SUPPRESS or REVIVE that is due."""
    now_ms = stamp.now_ms
    if not is_wanted:
        # It was not heard, or got lost, if offers still come.
        is_ignored = bool(fleet.offers) and now_ms - fleet.suppress_sent_ms >= settings.revive_interval_ms_min
        return [Suppress()] if not fleet.suppressed or is_ignored else []
    if fleet.offers and not fleet.suppressed:
        return []
    interval_ms = settings.revive_interval_ms_min if fleet.suppressed else fleet.revive_delay_ms
    return [Revive()] if now_ms - fleet.revived_ms >= interval_ms else []

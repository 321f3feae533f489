"""Offers to launches, and how many offers are wanted.

Offers are decided as they come: an agent's offers of one role are taken together, and checked against all requirements
(requirements.py). A slot that has a volume is launched where that is, and nowhere else; of the others the slot whose
executor was last on an agent is launched there, else the longest waiting one, where its group is smallest. What cannot be
used is declined with the reason, in numbers. An offer is held undecided only for a slot whose back-off is nearly over. One
executor an agent: with fewer agents than instances the rest of the slots waits. Doomed volumes are destroyed where they
are offered.

While a slot is wanted, declines are short and REVIVE is repeated (calls are unreliable), ever more rarely; else declines
are long and offers are suppressed. A decline that only a changed wish could undo is long too: a new wish revives.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import defaultdict
from itertools import islice

from stoker.framework.core import entries as e
from stoker.framework.core import events as ev
from stoker.framework.core.actions import (
    Accept,
    Action,
    Check,
    Decline,
    DestroyVolume,
    Explained,
    Frame,
    Revive,
    Suppress,
    UpdateFramework,
)
from stoker.framework.core.catalog import Catalog, Slot
from stoker.framework.core.codec import encode_entry
from stoker.framework.core.constraints import group_counts
from stoker.framework.core.departures import UninstallState
from stoker.framework.core.fleet import Fleet
from stoker.framework.core.launches import now_wall_ms, task_prefix
from stoker.framework.core.leftovers import is_clearing, wants_offers
from stoker.framework.core.requirements import (
    AgentOffer,
    Requirements,
    adoptable,
    failures,
    is_met,
    merge_offers,
    reason_text,
    reusable,
)
from stoker.framework.core.sightings import distance
from stoker.framework.core.volumes import VolumeState
from stoker.framework.model import FleetSpec, Offer, OfferedReservation, Resources, Settings
from stoker.zk.journal import BATCH_BYTES_MAX

_Key = tuple[str, str]  # agent id, role
STICKY_DELAY_MS_MAX = 2_000  # a slot that flaps more than this goes wherever it can
FRAME_BYTES_MAX = 160 * 1024  # of a round's entries, before its last launch
LAUNCH_BYTES_MAX = 32 * 1024  # of a launch's entries: up to 7 a character of the attributes, and the rest
ATTRIBUTES_BYTES_MAX = 4_096  # of an agent, that a launch remembers; beyond it what constraints name
assert FRAME_BYTES_MAX + LAUNCH_BYTES_MAX <= BATCH_BYTES_MAX and 7 * ATTRIBUTES_BYTES_MAX < LAUNCH_BYTES_MAX
THOUSANDTH_BYTES = 1_049  # of a mebibyte: Mesos counts in them, so what is reserved is up to one larger
BUCKETS_LOOKED_AT_MAX = 64  # groups of like agents, of which a slot gets the best


def match_offers(catalog: Catalog, fleet: Fleet, stamp: ev.Stamp, settings: Settings) -> Frame:
    """Decide on all offers at hand: launch, destroy, decline, or hold for a moment; then ask for more or fewer."""
    spec = catalog.fleet
    if spec is None or not fleet.subscribed:
        return Frame()
    uninstall = catalog.uninstall
    if uninstall is not None and uninstall.state is not UninstallState.CLEARING:
        return Frame()  # the framework ends, and its offers with it
    may_launch = not fleet.newer_journal and uninstall is None
    wanted = [slot for slot in catalog.slots.values() if slot.launch_id == 0 and may_launch]
    due = [slot for slot in wanted if fleet.backoff_ms(slot.slot_id, stamp.now_ms) == 0]
    is_resizing = may_launch and bool(fleet.resizing.nearest)
    is_hungry = bool(wanted) or is_resizing or wants_offers(catalog, fleet, stamp.now_ms)
    matching = _Matching(catalog, fleet, stamp, settings, spec, due, is_wanted=bool(wanted))
    for key, offers in _by_agent(fleet).items():
        matching.take(key, offers)
    matching.launch()
    actions = [*matching.actions(), *_appetite(fleet, stamp, settings, is_wanted=is_hungry)]
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
        self.cluster = catalog.cluster.hex()
        self.is_wanted = is_wanted
        self.bound: dict[_Key, Slot] = {}  # where a due slot's volume is
        self.free: list[Slot] = []  # due slots without one
        for slot in due:
            volume = catalog.volumes.of_slot(slot.slot_id)
            size = slot.disk_bytes if volume is None else volume.disk_bytes
            if (slot.mem_bytes, slot.disk_bytes, size) != (spec.mem_bytes, spec.disk_bytes, spec.disk_bytes):
                continue  # it is resized first, or its volume doomed
            if volume is None:
                self.free.append(slot)
            else:
                self.bound[volume.agent_id, volume.role] = slot
        self.free_left = len(self.free)
        self.requirements: Requirements | None = None
        self.usable: dict[_Key, AgentOffer] = {}
        self.accepts: list[Accept] = []
        self.destroys: list[DestroyVolume] = []
        self.entries: list[e.Entry] = []
        self.volumes_planned = 0
        self.bytes = 0
        self.declines: dict[tuple[int, str], list[str]] = defaultdict(list)
        self.explained: list[tuple[int, Explained, AgentOffer]] = []
        self.is_clearing = is_clearing(catalog)
        self.gives_disk_back = spec.disk_bytes == 0 or self.is_clearing
        # What one of the slots that may go anywhere asks of an agent; all of them are of one size.
        self.any_slot = Slot(0, spec.mem_bytes, disk_bytes=spec.disk_bytes)

    def take(self, key: _Key, offers: list[Offer]) -> None:
        """Sort one agent's offers of one role: usable, to clear of what is left there, or declined with a reason."""
        settings = self.settings
        agent: AgentOffer | None = None
        if any(offer.volumes or offer.reserved_disk for offer in offers) and not self.fleet.newer_journal:
            agent = merge_offers(offers, self.cluster)
            if self._destroy(agent):
                return None
        if not self.is_wanted:
            reason = self.fleet.newer_journal or "every wanted executor is launched"
            # What is left of a doomed volume shows in the next offers.
            volumes = self.catalog.volumes.on_agent(key[0])
            is_watched = self.is_clearing or any(volume.state is VolumeState.DOOMED for volume in volumes)
            if self.fleet.resizing.nearest and not self.fleet.newer_journal:  # it was looked at as it came
                is_watched, reason = True, "every executor is launched; those of another size keep theirs yet"
            refuse_ms = settings.decline_busy_ms if is_watched else settings.decline_ms
            return self._decline(offers, refuse_ms, reason)
        agent = agent or merge_offers(offers, self.cluster)
        slot = self.bound.get(key, self.any_slot)
        if slot is self.any_slot and self._is_awaited(key):
            return None
        if self.requirements is None:
            self.requirements = Requirements(self.catalog, self.spec, settings, self.stamp.wall_ms)
        checks = self.requirements.evaluate(slot, agent)
        # A group that is ahead now may be behind once other launches of this round are planned.
        if all(check.requirement in self.requirements.balanced_texts for check in failures(checks)):
            self.usable[key] = agent
        else:
            self._explain(slot, agent, checks)
        return None

    def _explain(self, slot: Slot, agent: AgentOffer, checks: tuple[Check, ...]) -> None:
        """Decline what fails requirements, and say which."""
        assert self.requirements is not None
        static = self.requirements.static_texts
        is_final = any(check.requirement in static for check in failures(checks))
        is_final = is_final or self.catalog.launch_on_agent(agent.agent_id) is not None
        refuse_ms = self.settings.decline_ms if is_final else self.settings.decline_busy_ms
        told = Explained(agent.agent_id, agent.role, slot.slot_id, "", checks)
        self.explained.append((refuse_ms, told, agent))

    def _is_awaited(self, key: _Key) -> bool:
        """Return whether the slot whose volume is here may be launched in a moment: its offer is held."""
        for volume in self.catalog.volumes.on_agent(key[0]):
            slot = self.catalog.slots.get(volume.slot_id)
            if slot is not None and slot.launch_id == 0 and volume.role == key[1]:
                wait_ms = self.fleet.backoff_ms(slot.slot_id, self.stamp.now_ms)
                return 0 < wait_ms <= self.settings.decline_busy_ms
        return False

    def launch(self) -> None:
        """Give the usable agents to the slots that are due, a slot's last agent first; hold or decline the rest."""
        for key, slot in self.bound.items():
            if key in self.usable:
                self._accept(slot, key)
        by_agent: dict[str, _Key] = {}
        for key in self.usable:
            if key not in self.bound:
                by_agent.setdefault(key[0], key)
        others = []
        for slot in self.free:
            own = by_agent.get(slot.last_agent_id)
            if (
                own is None
                or own not in self.usable
                or self._is_flapping(slot)
                or not self._accept(slot, own)
            ):
                others.append(slot)
        free = [key for key in by_agent.values() if key in self.usable]
        if others and free:
            self._spread(others, free)
        self._leave()

    def _spread(self, slots: list[Slot], keys: list[_Key]) -> None:
        """Give each slot the agent whose groups are smallest; like ones in the order of `_rank`."""
        assert self.requirements is not None
        claimed = {s.last_agent_id for s in self.catalog.slots.values() if s.launch_id == 0}
        tallies = self.requirements.tallies
        fields = sorted({t.constraint.field for t in tallies} - {"hostname", "@hostname"})
        buckets: dict[tuple[str | None, ...], list[_Key]] = defaultdict(list)
        for key in sorted(keys, key=lambda k: self._rank(k, claimed), reverse=True):
            buckets[tuple(self.usable[key].fields.get(field) for field in fields)].append(key)
        for slot in slots:
            best = self._best_bucket(list(islice(buckets.values(), BUCKETS_LOOKED_AT_MAX)))
            if best is None:
                return  # all slots want the same
            while best:
                key = best.pop()
                if self.requirements.is_allowed(self.usable[key]):
                    if not self._accept(slot, key):
                        return
                    break

    def _best_bucket(self, buckets: list[list[_Key]]) -> list[_Key] | None:
        assert self.requirements is not None
        allowed = [b for b in buckets if b and self.requirements.is_allowed(self.usable[b[-1]])]
        tallies = self.requirements.tallies
        return min(allowed, key=lambda b: group_counts(tallies, self.usable[b[-1]].fields), default=None)

    def _rank(self, key: _Key, claimed: set[str]) -> tuple[bool, bool, _Key]:
        has_volume = adoptable(self.catalog, self.any_slot, self.usable[key]) is not None
        return (not has_volume, key[0] in claimed, key)

    def actions(self) -> list[Action]:
        """Return what is accepted and destroyed, and one decline a length and reason."""
        declines = [Decline(tuple(ids), ms, reason) for (ms, reason), ids in self.declines.items()]
        return [*self.destroys, *self.accepts, *self._explained_declines(), *declines]

    def _explained_declines(self) -> list[Decline]:
        """Return the declines of agents that were checked; the last are explained, and whichever came nearest."""
        by_ms: dict[int, list[tuple[Explained, AgentOffer]]] = defaultdict(list)
        for ms, explained, agent in self.explained:
            by_ms[ms].append((explained, agent))
        declines = []
        for ms, all_of in by_ms.items():
            told = all_of[-self.settings.offers_kept_max :]
            nearest = min(all_of, key=lambda pair: distance(pair[0].checks))
            if nearest not in told:
                told[0] = nearest
            declines.append(
                Decline(
                    tuple(offer_id for _, agent in all_of for offer_id in agent.offer_ids),
                    ms,
                    "it lacks what an executor needs",
                    tuple(x._replace(reason=reason_text(x.checks)) for x, _ in told),
                )
            )
        return declines

    def _is_flapping(self, slot: Slot) -> bool:
        backoff = self.fleet.backoffs.get(slot.slot_id)
        return backoff is not None and backoff.delay_ms > STICKY_DELAY_MS_MAX

    def _destroy(self, agent: AgentOffer) -> bool:
        """Take the offers to clear the agent of a doomed volume, or of disk reserved for one that never was; one at a time."""
        unfit = {r.volume_id for r in agent.reserved_disk if self._is_unfit(r)}
        for volume_id in [v.volume_id for v in agent.volumes] + [r.volume_id for r in agent.reserved_disk]:
            known = self.catalog.volumes.get(volume_id)
            is_doomed = known is not None and known.state is VolumeState.DOOMED
            # What the catalog does not know is data all the same: only an uninstall that keeps none destroys it.
            is_unused = (self.gives_disk_back or volume_id in unfit) and not agent.has_volume(volume_id)
            gives_back = self.is_clearing or is_unused
            is_left = known is None and gives_back
            may = self.fleet.sightings.may_destroy(volume_id, self.stamp.now_ms)
            if may and (is_doomed or is_left):
                attempt = f"e{self.catalog.epoch}-{self.stamp.event_id}"
                self.destroys.append(
                    DestroyVolume(
                        agent.offer_ids, volume_id, agent.agent_id, agent.role, attempt, refuse_ms=0
                    )
                )
                return True
        return False

    def _is_unfit(self, reserved: OfferedReservation) -> bool:
        """Return whether disk of ours that no volume was made on is of another size than the fleet's volumes.

        One of their size is what the next launch uses. What only a newer journal can have reserved is left to that.
        """
        is_fit = 0 <= reserved.disk_bytes - self.spec.disk_bytes < THOUSANDTH_BYTES
        return not is_fit and reserved.volume_id < self.catalog.volume_id_next

    def _accept(self, slot: Slot, key: _Key) -> bool:
        """Plan a launch, unless the constraints speak against it now, or the frame is full."""
        assert self.requirements is not None
        agent = self.usable[key]
        is_full = len(self.accepts) >= self.settings.launches_frame_max or self.bytes >= FRAME_BYTES_MAX
        checks = () if is_full else self.requirements.evaluate(slot, agent)
        if is_full or not is_met(checks):
            return False
        del self.usable[key]
        for other in [(key[0], role) for role in self.spec.roles if (key[0], role) in self.usable]:
            self._decline(
                self.usable.pop(other).offers,
                self.settings.decline_ms,
                f"one executor an agent: slot {slot.slot_id} takes another role's offer",
            )
        self.requirements.place(agent)
        self.free_left -= key not in self.bound
        planned_count = len(self.entries)
        volume, reserved_volume_id = self._volume(slot, agent)
        launch = self._plan(slot, agent, volume)
        self.entries.append(launch)
        self.bytes += sum(len(encode_entry(entry)) for entry in self.entries[planned_count:])
        self.accepts.append(
            Accept(
                agent.offer_ids,
                launch,
                self.settings.decline_ms,
                key[1],
                volume if isinstance(volume, e.VolumePlanned) else None,
                reserved_volume_id,
                checks,
            )
        )
        return True

    def _volume(self, slot: Slot, agent: AgentOffer) -> tuple[int | e.VolumePlanned, int]:
        """Return the volume of the launch, one that is there or one to make (0: none), and on whose reservation.

        What it changes of the slot's volume goes into the entries.
        """
        own = self.catalog.volumes.of_slot(slot.slot_id)
        if own is not None:
            if own.state is VolumeState.PLANNED:
                self.entries.append(e.VolumeReady(own.volume_id))
            return own.volume_id, 0
        if not slot.disk_bytes:
            return 0, 0
        found = adoptable(self.catalog, slot, agent)
        if found is not None:
            self.entries.append(e.VolumeAdopted(found.volume_id, slot.slot_id))
            return found.volume_id, 0
        volume = e.VolumePlanned(
            self.catalog.volume_id_next + self.volumes_planned,
            slot.slot_id,
            agent.agent_id,
            agent.hostname,
            agent.role,
            slot.disk_bytes,
            now_wall_ms(self.catalog, self.stamp),
        )
        self.entries.append(volume)
        self.volumes_planned += 1
        reserved = reusable(self.catalog, slot, agent)
        return volume, reserved.volume_id if reserved else 0

    def _plan(self, slot: Slot, agent: AgentOffer, volume: int | e.VolumePlanned) -> e.LaunchPlanned:
        launch_id = self.catalog.launch_id_next + len(self.accepts)
        epoch = self.catalog.epoch
        volume_id = volume if isinstance(volume, int) else volume.volume_id
        return e.LaunchPlanned(
            launch_id=launch_id,
            slot_id=slot.slot_id,
            task_id=f"{task_prefix(self.catalog.cluster)}e{epoch}-s{slot.slot_id}-l{launch_id}",
            agent_id=agent.agent_id,
            hostname=agent.hostname,
            port=choose_port(agent.resources, launch_id),
            secret=hmac.new(self.fleet.seed, b"launch %d" % launch_id, hashlib.sha256).hexdigest(),
            mem_bytes=slot.mem_bytes,
            cpus_milli=self.spec.cpus_milli,
            epoch=epoch,
            wall_ms=now_wall_ms(self.catalog, self.stamp),
            volume_id=volume_id,
            disk_bytes=slot.disk_bytes if volume_id else 0,
            role=agent.role,
            attributes=self._attributes(agent),
        )

    def _attributes(self, agent: AgentOffer) -> tuple[tuple[str, str], ...]:
        """Return what constraints may count later; of an agent with very much to say, what they count now."""
        fields = [(n, v) for n, v in sorted(agent.fields.items()) if n not in ("hostname", "@hostname")]
        if sum(len(n) + len(v) for n, v in fields) > ATTRIBUTES_BYTES_MAX:
            named = {constraint.field for constraint in self.spec.constraints}
            fields = [(n, v) for n, v in fields if n in named]
        return tuple(fields)

    def _leave(self) -> None:
        """Hold what a slot can use in a moment, or in the next frame; decline the rest, for a short time."""
        waits = [
            ms
            for slot in self.catalog.slots.values()
            if slot.launch_id == 0
            and self.catalog.volumes.of_slot(slot.slot_id) is None
            and 0
            < (ms := self.fleet.backoff_ms(slot.slot_id, self.stamp.now_ms))
            <= self.settings.decline_busy_ms
        ]
        undone = self.free_left + len(waits)
        held = 0
        for agent in self.usable.values():
            if self.requirements is not None and not self.requirements.is_allowed(agent):
                slot = self.bound.get((agent.agent_id, agent.role), self.any_slot)
                self._explain(slot, agent, self.requirements.evaluate(slot, agent))
                continue
            held += len(agent.offers)
            if (agent.agent_id, agent.role) in self.bound:
                continue  # the next frame has room for it
            if undone > 0 and held <= self.settings.offers_held_max:
                undone -= 1
                continue
            reason = "no slot can use it now: the waiting ones are in their back-off, or have an agent"
            self._decline(agent.offers, self.settings.decline_busy_ms, reason)

    def _decline(self, offers: list[Offer] | tuple[Offer, ...], refuse_ms: int, reason: str) -> None:
        self.declines[refuse_ms, reason].extend(offer.offer_id for offer in offers)


def choose_port(offered: Resources, launch_id: int) -> int:
    """Return one of the offered ports; successive launches get different ones where there is a choice."""
    index = launch_id % sum(last - first + 1 for first, last in offered.ports)
    for first, last in offered.ports:
        if index <= last - first:
            return first + index
        index -= last - first + 1
    raise AssertionError("index is below the number of ports")


def introduce(catalog: Catalog, fleet: Fleet) -> Frame:
    """On a tick: tell the master of changed roles."""
    spec = catalog.fleet
    if spec is None or not fleet.subscribed or (spec.roles, spec.disk_bytes) == fleet.sightings.told:
        return Frame()
    return Frame(actions=(UpdateFramework(spec.roles, spec.disk_bytes, fleet.suppressed),))


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

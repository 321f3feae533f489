"""What became of the last offers, which agent came nearest to what is wanted, and what offers say of volumes: a part of
the fleet (observed, volatile).

A volume that is not in use and lacks in its agent's offers, again and again, is gone. One that carries this cluster's labels and
that the catalog does not know is kept and told of: the journal may be an older one.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from stoker.framework.core import actions as a
from stoker.framework.core import events as ev
from stoker.framework.core.catalog import Catalog
from stoker.framework.core.volumes import Volume, VolumeState
from stoker.framework.model import FleetSpec, Offer, OfferedReservation, OfferedVolume, Settings

UNKNOWN_MAX = 10_000  # agents with volumes that the catalog does not know
NEAREST_MS = 30_000  # that a nearer agent's checks stand before newer ones of a worse one
MISSING_GAP_MS = 2_000  # offers of one agent that come closer together are one sighting: they fragment
MISSING_COUNT = 2
FORGOTTEN_MAX = 1_000  # volumes that are gone, and still noted here
DESTROY_RETRY_MS, DESTROY_RETRY_MS_MAX = 3_000, 600_000
ONE_AN_AGENT = "one executor an agent"


@dataclass(slots=True)
class Missing:
    """Offers of its agent lacked the volume, so many times, since then."""

    count: int
    first_ms: int
    last_ms: int


@dataclass(frozen=True, slots=True)
class Nearest:
    explained: a.Explained
    hostname: str
    now_ms: int
    wall_ms: int


@dataclass(frozen=True, slots=True)
class OfferDecision:
    offer: Offer
    decision: str  # "accepted" or "declined"
    reason: str
    wall_ms: int
    checks: tuple[a.Check, ...] = ()


class Sightings:
    """Bounded by offers_kept_max, UNKNOWN_MAX, and the catalog's volumes and slots."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.decisions: deque[OfferDecision] = deque(maxlen=settings.offers_kept_max)
        self.unknown: dict[str, dict[int, OfferedVolume]] = {}  # by agent id and volume id
        self.unused: dict[str, dict[int, OfferedReservation]] = {}  # disk without a volume
        self.subscribed_ms = self.offered_ms = 0  # the last offers
        self.missing: dict[int, Missing] = {}
        self.destroys: dict[int, tuple[int, int]] = {}  # tries, and when the next may be, by volume id
        self.nearest: dict[int, Nearest] = {}  # by slot id; 0: for those that may go anywhere
        self.told: tuple[tuple[str, ...], int] | None = None  # roles and disk that the master knows of us
        self._began_with: tuple[tuple[str, ...], int] | None = None
        self.operations_next_ms = 0
        self.operations_delay_ms = 0

    def began(self, spec: FleetSpec) -> None:
        """A leadership subscribes with what the fleet is at its beginning."""
        self.told = self._began_with = (spec.roles, spec.disk_bytes)

    def subscribed(self, now_ms: int) -> None:
        """Another master, maybe: what became of operations is asked anew."""
        self.told = self._began_with
        self.subscribed_ms = self.offered_ms = now_ms
        self.missing.clear()
        self.operations_next_ms, self.operations_delay_ms = now_ms, 0

    def apply(
        self,
        stamp: ev.Stamp,
        action: a.Accept | a.DestroyVolume | a.Decline | a.ReconcileOperations | a.UpdateFramework,
        offers: dict[str, Offer],
    ) -> None:
        """Take the offers that the action spends out of `offers`, and note why."""
        match action:
            case a.Accept(checks=checks):
                explained = a.Explained("", "", 0, f"launches slot {action.launch.slot_id}", checks)
                self._spend(stamp, offers, action.offer_ids, "accepted", {}, explained)
            case a.DestroyVolume():
                tries, _ = self.destroys.get(action.volume_id, (0, 0))
                delay_ms = min(DESTROY_RETRY_MS * 2**tries, DESTROY_RETRY_MS_MAX)
                self.destroys[action.volume_id] = (min(tries + 1, 30), stamp.now_ms + delay_ms)
                explained = a.Explained("", "", 0, f"clears the agent of volume {action.volume_id}", ())
                self._spend(stamp, offers, action.offer_ids, "accepted", {}, explained)
            case a.Decline():
                told = {(x.agent_id, x.role): x for x in action.explained}
                explained = a.Explained("", "", 0, action.reason, ())
                self._spend(stamp, offers, action.offer_ids, "declined", told, explained)
            case a.UpdateFramework():
                self.told = (action.roles, action.disk_bytes)
            case a.ReconcileOperations():
                delay_ms = max(self.settings.reconcile_delay_ms_min, 2 * self.operations_delay_ms)
                self.operations_delay_ms = min(delay_ms, self.settings.reconcile_interval_ms)
                self.operations_next_ms = stamp.now_ms + self.operations_delay_ms

    def _spend(
        self,
        stamp: ev.Stamp,
        offers: dict[str, Offer],
        offer_ids: tuple[str, ...],
        decision: str,
        told: Mapping[tuple[str, str], a.Explained],
        otherwise: a.Explained,
    ) -> None:
        for offer_id in offer_ids:
            offer = offers.pop(offer_id, None)
            if offer is None:
                continue
            explained = told.get((offer.agent_id, offer.role), otherwise)
            self.decisions.append(
                OfferDecision(offer, decision, explained.reason, stamp.wall_ms, explained.checks)
            )
            if explained is not otherwise:
                self._nearer(stamp, explained, offer.hostname)

    def _nearer(self, stamp: ev.Stamp, explained: a.Explained, hostname: str) -> None:
        known = self.nearest.get(explained.slot_id)
        if (
            known is None
            or stamp.now_ms - known.now_ms > NEAREST_MS
            or distance(explained.checks) <= distance(known.explained.checks)
        ):
            self.nearest[explained.slot_id] = Nearest(explained, hostname, stamp.now_ms, stamp.wall_ms)

    def take_offers(
        self,
        now_ms: int,
        held: Mapping[str, Offer],
        catalog: Catalog,
        ending: Collection[str],
    ) -> str:
        """Note the volumes in offers; `ending`: agents on which an executor is being ended.

        Return what tells that this journal is not the newest, or nothing.
        """
        for table in (self.missing, self.destroys):
            if len(table) > len(catalog.volumes) + FORGOTTEN_MAX:
                for volume_id in [i for i in table if i not in catalog.volumes]:
                    del table[volume_id]
        self.offered_ms = now_ms
        proof = ""
        cluster = catalog.cluster.hex()
        by_agent: dict[str, list[Offer]] = defaultdict(list)
        for offer in held.values():
            is_known = offer.agent_id in self.unknown or offer.agent_id in self.unused
            if offer.volumes or offer.reserved_disk or is_known or catalog.volumes.on_agent(offer.agent_id):
                by_agent[offer.agent_id].append(offer)
        for agent_id, offers in by_agent.items():
            volumes = {v.volume_id: v for offer in offers for v in offer.volumes if v.cluster == cluster}
            roles = {offer.role for offer in offers}
            unknown = {i: v for i, v in self.unknown.pop(agent_id, {}).items() if v.role not in roles}
            for volume_id, volume in volumes.items():
                if volume_id >= catalog.volume_id_next:
                    proof = (
                        f"an offer of agent {agent_id} holds volume {volume_id}, this journal knows none after "
                        f"{catalog.volume_id_next - 1}"
                    )
                elif volume_id not in catalog.volumes:
                    unknown[volume_id] = volume
                else:
                    self.missing.pop(volume_id, None)
            if unknown and len(self.unknown) < UNKNOWN_MAX:
                self.unknown[agent_id] = unknown
            self._note_unused(agent_id, offers, catalog, unknown)
            for known in catalog.volumes.on_agent(agent_id):
                self._look_for(now_ms, known, offers, catalog, is_busy=agent_id in ending)
        return proof

    def _note_unused(
        self, agent_id: str, offers: list[Offer], catalog: Catalog, unknown: Collection[int]
    ) -> None:
        roles, cluster = {offer.role for offer in offers}, catalog.cluster.hex()
        unused = {i: r for i, r in self.unused.pop(agent_id, {}).items() if r.role not in roles}
        reserved = [r for offer in offers for r in offer.reserved_disk if r.cluster == cluster]
        unused |= {r.volume_id: r for r in reserved if r.volume_id not in catalog.volumes}
        unused = {i: r for i, r in unused.items() if i not in unknown}
        if unused and len(self.unused) < UNKNOWN_MAX:
            self.unused[agent_id] = unused

    def _look_for(
        self, now_ms: int, volume: Volume, offers: list[Offer], catalog: Catalog, *, is_busy: bool
    ) -> None:
        volume_id = volume.volume_id
        of_role = [offer for offer in offers if offer.role == volume.role]
        there = {v.volume_id for offer in of_role for v in offer.volumes}
        if volume.state is VolumeState.DOOMED:  # what is left of its reservation is to go too
            there |= {r.volume_id for offer in of_role for r in offer.reserved_disk}
        slot = catalog.slots.get(volume.slot_id)
        in_use = slot is not None and slot.launch_id != 0
        if volume_id in there or in_use or is_busy or any(offer.executor_ids for offer in of_role):
            self.missing.pop(volume_id, None)
            return
        missing = self.missing.setdefault(volume_id, Missing(0, now_ms, now_ms - MISSING_GAP_MS))
        if of_role and now_ms - missing.last_ms >= MISSING_GAP_MS:
            missing.count += 1
            missing.last_ms = now_ms

    def unknown_volumes(self) -> list[tuple[str, OfferedVolume]]:
        """Return the volumes that the catalog does not know, with their agents."""
        return [(agent_id, v) for agent_id, table in sorted(self.unknown.items()) for v in table.values()]

    def stray_count(self) -> int:
        """Return how many volumes and reservations of this cluster are known of, that the catalog does not know."""
        return sum(map(len, self.unknown.values())) + sum(map(len, self.unused.values()))

    def may_destroy(self, volume_id: int, now_ms: int) -> bool:
        """Return whether it was not tried just now: what cannot be destroyed keeps nobody from the rest of its agent."""
        return now_ms >= self.destroys.get(volume_id, (0, 0))[1]

    def is_gone(self, volume_id: int, now_ms: int) -> bool:
        """Return whether the volume's agent has offered what it has without it, and not only once."""
        missing = self.missing.get(volume_id)
        return (
            missing is not None
            and missing.count >= MISSING_COUNT
            and now_ms - missing.first_ms >= self.settings.volume_missing_ms
        )


def distance(checks: tuple[a.Check, ...]) -> tuple[int, int]:
    """Return what tells which of two agents is nearer to what is wanted; those that are in use are farthest."""
    failed = [check.requirement for check in checks if not check.passed]
    return (ONE_AN_AGENT in failed, len(failed))

"""What drains have still to move: observed from what executors report, and remembered for as long as a drain lasts.

A block is *only there* if it is full on the executor that leaves, and full on no executor that stays: blocks of the
datasets' present generations, wanted or not. Counted, never decided; what follows is in draining.py. A large fleet is counted in steps
(looks.py). A new leader counts anew, once all have reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, NamedTuple

from stoker.executor.units import format_bytes
from stoker.framework.core.catalog import Catalog, Launch
from stoker.framework.core.looks import STEP_WORK, Key, Look, works
from stoker.framework.model import Settings

if TYPE_CHECKING:
    from stoker.framework.core.fleet import Fleet
    from stoker.framework.core.seen import ExecutorSeen, Held

NAMED_MAX = 4
SMALL_FLEET = 100  # executors, that are looked at with every tick; a larger fleet is not
LOOK_MS = 2_000  # from the end of a look at a large fleet to the next
STUCK_TIMES = 3  # job_unfit_ms, without progress and with nothing under way: then it will not go on by itself


class Left(NamedTuple):
    """What is only there of one dataset, as bits."""

    key: Key
    name: str
    bits: int
    bytes: int


@dataclass(slots=True)
class Move:
    """One agent's drain. `blocks` is known once `is_counted`: its executor and all that stay have reported."""

    slot_id: int
    is_counted: bool = False
    blocks: int = 0
    bytes: int = 0
    names: tuple[str, ...] = ()  # of the datasets
    is_waiting: bool = False  # nothing of it is under way anywhere
    waits_since_ms: int | None = None
    has_others: bool = True
    unfit_slot_ids: tuple[int, ...] = ()

    def is_stuck(self, now_ms: int, settings: Settings) -> bool:
        """Return whether what is left will not move by itself."""
        since_ms = self.waits_since_ms
        return since_ms is not None and now_ms - since_ms >= STUCK_TIMES * settings.job_unfit_ms


class Moves:
    """The drains of agents that have an executor, by agent id."""

    def __init__(self) -> None:
        self.by_agent: dict[str, Move] = {}
        self._looking: Look | None = None
        self._looked: frozenset[int] = frozenset()  # at these launches on their way out
        self._looked_ms = 0

    def look(self, catalog: Catalog, fleet: Fleet, now_ms: int) -> None:
        """On a tick: count anew; in a large fleet go on with it, or begin after a while."""
        launches = {i: launch for i in catalog.drains if (launch := catalog.launch_on_agent(i)) is not None}
        for agent_id in [i for i in self.by_agent if i not in catalog.drains]:
            del self.by_agent[agent_id]
        if not launches:
            self._looking = None
            return
        for agent_id, launch in launches.items():
            move = self.by_agent.get(agent_id)
            if move is None or move.slot_id != launch.slot_id:
                self.by_agent[agent_id] = Move(launch.slot_id)
        looking = self._looking
        if looking is None:
            leaving = frozenset(launch.launch_id for launch in launches.values())
            if is_large(fleet) and leaving == self._looked and now_ms - self._looked_ms < LOOK_MS:
                return
            looking = self._looking = Look(fleet, leaving)
        looking.step(fleet, now_ms, STEP_WORK if is_large(fleet) else inf)
        if looking.is_over:
            self._looked, self._looked_ms, self._looking = looking.leaving, now_ms, None
            self._take(catalog, fleet, now_ms, launches, looking)

    def noted(self, launch_id: int, datasets: Mapping[Key, Held]) -> dict[Key, int]:
        """See Look; nothing where no look is under way."""
        return {} if self._looking is None else self._looking.noted(launch_id, datasets)

    def changed(self, before: Mapping[Key, int], datasets: Mapping[Key, Held]) -> None:
        if self._looking is not None:
            self._looking.changed(before, datasets)

    def _take(
        self, catalog: Catalog, fleet: Fleet, now_ms: int, launches: Mapping[str, Launch], look: Look
    ) -> None:
        alone = look.not_elsewhere()
        unfit = tuple(sorted(look.unfit_slot_ids & catalog.slots.keys()))
        has_others = any(launch_id not in look.leaving for launch_id in fleet.executors)
        for agent_id, launch in launches.items():
            if launch.launch_id not in look.leaving:
                continue  # its drain began meanwhile
            move = self.by_agent[agent_id]
            before = move.blocks
            self._count(catalog, fleet, launch, alone, move)
            move.has_others = has_others
            move.unfit_slot_ids = unfit
            move.is_waiting = move.is_counted and bool(move.blocks) and not look.is_busy
            if not move.is_waiting or move.blocks != before or move.waits_since_ms is None:
                move.waits_since_ms = now_ms if move.is_waiting else None

    def _count(
        self, catalog: Catalog, fleet: Fleet, launch: Launch, alone: dict[Key, int], move: Move
    ) -> None:
        seen = fleet.executors.get(launch.launch_id)
        move.is_counted = fleet.residency_complete and seen is not None and not seen.needs_whole
        if not move.is_counted:
            return
        assert seen is not None
        left = left_on(catalog, seen, alone, unknown=-1)
        move.blocks = sum(part.bits.bit_count() for part in left)
        move.bytes = sum(part.bytes for part in left)
        move.names = tuple(part.name for part in left)


def is_large(fleet: Fleet) -> bool:
    """Return whether the fleet is looked at in steps."""
    return len(fleet.executors) > SMALL_FLEET


def waits_for(fleet: Fleet, agent_id: str) -> str:
    """Return how far the drain of an agent with an executor is, in words."""
    move = fleet.moves.by_agent.get(agent_id)
    if move is None or not move.is_counted:
        return "waits until all executors have reported what they hold"
    if not move.blocks:
        return ""
    what = f"{move.blocks} blocks, {format_bytes(move.bytes)}, of {_listed(move.names)} are only on slot {move.slot_id}"
    if not move.has_others:
        return what + ", and there is no other executor to take them"
    if move.is_waiting and move.unfit_slot_ids:
        slots = ", ".join(map(str, move.unfit_slot_ids[:NAMED_MAX]))
        return f"{what}, and find no room on slots {slots}"
    return f"{what}, and wait for slots that are not there" if move.is_waiting else what + " yet"


def _listed(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - NAMED_MAX} more datasets" if len(names) > NAMED_MAX else ""
    return ", ".join(names[:NAMED_MAX]) + more


def left_on(catalog: Catalog, seen: ExecutorSeen, alone: dict[Key, int], *, unknown: int = 0) -> list[Left]:
    """Return what is on this executor, of what is on none that stays; `unknown`: where `alone` says nothing."""
    found = []
    for key, held in seen.datasets.items():
        dataset = catalog.datasets.get(key[0])
        current = None if dataset is None else dataset.current
        if dataset is None or current is None or current.generation != key[1]:
            continue
        bits = int.from_bytes(held.bitmap, "little") & alone.get(key, unknown)
        bits &= (1 << current.block_count) - 1
        if bits:
            size = min(bits.bit_count() * current.block_bytes, current.address_bytes)
            found.append(Left(key, dataset.name, bits, size))
    return sorted(found)


def leaving_launches(catalog: Catalog) -> set[int]:
    """Return the launches on agents that are drained."""
    return {launch.launch_id for i in catalog.drains if (launch := catalog.launch_on_agent(i))}


def leaving_bits(catalog: Catalog, fleet: Fleet, now_ms: int, *, also: int = 0) -> dict[Key, int]:
    """Return which blocks are full on executors whose agents are drained, or on `also`, and on no other that answers.

    It looks at all executors at once.
    """
    look = Look(fleet, leaving_launches(catalog) | {also})
    look.step(fleet, now_ms, inf)
    return look.left()


def is_busy(catalog: Catalog, fleet: Fleet) -> bool:
    """Return whether some executor whose agent is not drained has work left that goes on."""
    leaving = leaving_launches(catalog)
    return any(
        works(held)
        for launch_id, seen in fleet.executors.items()
        if launch_id not in leaving
        for held in seen.datasets.values()
    )

"""What drains have still to move: observed from what executors report, and remembered for as long as a drain lasts.

A block is *only there* if it is full on the executor that leaves, and full on no executor that stays: blocks of the
datasets' present generations, wanted or not. Counted, never decided; what follows is in draining.py. A new leader counts anew,
once all have reported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from stoker.executor.units import format_bytes
from stoker.framework.core.catalog import Catalog, Launch
from stoker.framework.model import Settings

if TYPE_CHECKING:
    from stoker.framework.core.fleet import ExecutorSeen, Fleet

NAMED_MAX = 4
SMALL_FLEET = 100  # executors, that are looked at with every tick; a larger fleet is not
LOOK_MS = 2_000
NARROW_EACH = 16  # bitmaps, after which bytes without a block left are looked at no more
FEW = 16  # times fewer bytes than there are are looked at one by one
STUCK_TIMES = 3  # job_unfit_ms, without progress and with nothing under way: then it will not go on by itself

Key = tuple[int, int]  # dataset id, generation


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
        self._looked: set[int] = set()  # at these launches on their way out
        self._looked_ms = 0

    def look(self, catalog: Catalog, fleet: Fleet, now_ms: int) -> None:
        """Count anew."""
        launches = {i: launch for i in catalog.drains if (launch := catalog.launch_on_agent(i)) is not None}
        for agent_id in [i for i in self.by_agent if i not in catalog.drains]:
            del self.by_agent[agent_id]
        if not launches:
            return
        leaving = {launch.launch_id for launch in launches.values()}
        is_large = len(fleet.executors) > SMALL_FLEET
        if is_large and leaving == self._looked and now_ms - self._looked_ms < LOOK_MS:
            return
        self._looked, self._looked_ms = leaving, now_ms
        alone = _alone(fleet, leaving, now_ms)
        busy, unfit = is_busy(catalog, fleet), _unfit(catalog, fleet, leaving)
        for agent_id, launch in launches.items():
            move = self.by_agent.get(agent_id)
            if move is None or move.slot_id != launch.slot_id:
                move = self.by_agent[agent_id] = Move(launch.slot_id)
            before = move.blocks
            self._count(catalog, fleet, launch, alone, move)
            move.has_others = any(i not in leaving for i in fleet.executors)
            move.unfit_slot_ids = unfit
            move.is_waiting = move.is_counted and bool(move.blocks) and not busy
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
        left = left_on(catalog, seen, alone)
        move.blocks = sum(part.bits.bit_count() for part in left)
        move.bytes = sum(part.bytes for part in left)
        move.names = tuple(part.name for part in left)


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


def left_on(catalog: Catalog, seen: ExecutorSeen, alone: dict[Key, int]) -> list[Left]:
    """Return what is on this executor, of what is on none that stays."""
    found = []
    for key, held in seen.datasets.items():
        dataset = catalog.datasets.get(key[0])
        current = None if dataset is None else dataset.current
        if dataset is None or current is None or current.generation != key[1]:
            continue
        bits = int.from_bytes(held.bitmap, "little") & alone.get(key, 0)
        bits &= (1 << current.block_count) - 1
        if bits:
            size = min(bits.bit_count() * current.block_bytes, current.address_bytes)
            found.append(Left(key, dataset.name, bits, size))
    return sorted(found)


def leaving_launches(catalog: Catalog) -> set[int]:
    """Return the launches on agents that are drained."""
    return {launch.launch_id for i in catalog.drains if (launch := catalog.launch_on_agent(i))}


def leaving_bits(catalog: Catalog, fleet: Fleet, now_ms: int, *, also: int = 0) -> dict[Key, int]:
    """Return which blocks are full on executors whose agents are drained, or on `also`, and on no other that answers."""
    return _alone(fleet, leaving_launches(catalog) | {also}, now_ms)


def _alone(fleet: Fleet, leaving: set[int], now_ms: int) -> dict[Key, int]:
    """Begin with what leaves, and strike what stays: mostly that is little, and soon nothing."""
    held: dict[Key, int] = {}
    for launch_id in leaving & fleet.executors.keys():
        for key, of in fleet.executors[launch_id].datasets.items():
            held[key] = held.get(key, 0) | int.from_bytes(of.bitmap, "little")
    timeout_ms = fleet.settings.heartbeat_timeout_ms
    stay = [
        seen
        for launch_id, seen in fleet.executors.items()
        if launch_id not in leaving and not seen.needs_whole and fleet.silent_ms(seen, now_ms) <= timeout_ms
    ]
    return {key: _struck(bits, key, stay) for key, bits in held.items() if bits}


def _struck(bits: int, key: Key, stay: list[ExecutorSeen]) -> int:
    size = -(-bits.bit_length() // 8)
    left: npt.NDArray[np.uint8] = np.frombuffer(bytearray(bits.to_bytes(size, "little")), dtype=np.uint8)
    places: npt.NDArray[np.intp] | None = None  # of the bytes with a block left, once they are few
    scratch = np.empty_like(left)
    struck = 0
    for seen in stay:
        held = seen.datasets.get(key)
        if held is None or not held.bitmap:
            continue
        if struck % NARROW_EACH == 0:
            rest = np.flatnonzero(left) if places is None else places[left[places] != 0]
            if not len(rest):
                return 0
            places = rest if len(rest) * FEW < size else None
        struck += 1
        other: npt.NDArray[np.uint8] = np.frombuffer(held.bitmap, dtype=np.uint8)
        if places is None:
            within = min(size, len(other))
            free = np.invert(other[:within], out=scratch[:within])
            np.bitwise_and(left[:within], free, out=left[:within])
        else:
            few = places[: int(np.searchsorted(places, len(other)))]
            left[few] &= ~other[few]
    return int.from_bytes(left.tobytes(), "little")


def is_busy(catalog: Catalog, fleet: Fleet) -> bool:
    """Return whether some executor whose agent is not drained has work left that goes on."""
    leaving = leaving_launches(catalog)
    return any(
        r.wanted_blocks > r.wanted_settled + r.unfit_blocks or r.saving_blocks > 0
        for launch_id, seen in fleet.executors.items()
        if launch_id not in leaving
        for r in (held.residency for held in seen.datasets.values())
    )


def _unfit(catalog: Catalog, fleet: Fleet, leaving: set[int]) -> tuple[int, ...]:
    """Return the slots, of those that stay, that found no room."""
    slots = {
        seen.heartbeat.slot_id
        for launch_id, seen in fleet.executors.items()
        if launch_id not in leaving
        and any(h.residency.unfit_blocks or h.residency.unsaved_blocks for h in seen.datasets.values())
    }
    return tuple(sorted(slots & catalog.slots.keys()))

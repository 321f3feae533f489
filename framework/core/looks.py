"""A look at all executors for what only the leaving ones hold; in a large fleet some of them at a time.

Begin with what leaves, and strike what stays: mostly that is little, and soon nothing. A look that takes many steps sees
each executor at another moment, so what one gives up after it was looked at counts as only there again: rather too much is
moved than something lost.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from stoker.executor.messages import Heartbeat

if TYPE_CHECKING:
    from stoker.framework.core.fleet import Fleet
    from stoker.framework.core.seen import ExecutorSeen, Held

NARROW_EACH = 16  # bitmaps, after which bytes without a block left are looked at no more
FEW = 16  # times fewer bytes than there are are looked at one by one
ITEM_WORK = 15_000  # of whatever is looked at, however large it is: as much as so many bytes of bitmaps
FEW_WORK = 10  # of a byte that is looked at by itself
STEP_WORK = 100_000_000  # of one step: some 20 ms

Key = tuple[int, int]  # dataset id, generation


class Rest:
    """The blocks of one dataset generation that no executor which was struck holds."""

    def __init__(self, bits: int) -> None:
        self.asked = bits
        self.size = -(-bits.bit_length() // 8)
        self._all: npt.NDArray[np.uint8] = np.frombuffer(bits.to_bytes(self.size, "little"), dtype=np.uint8)
        self._left = self._all.copy()
        self._scratch = np.empty_like(self._left)
        self._places: npt.NDArray[np.intp] | None = None  # of the bytes with a block left, once they are few
        self._struck = 0
        self._is_over = False  # nothing is left

    @property
    def bits(self) -> int:
        return 0 if self._is_over else int.from_bytes(self._left.tobytes(), "little")

    @property
    def work(self) -> int:
        """Return how much the next strike is."""
        if self._is_over:
            return 0
        return self.size if self._places is None else FEW_WORK * len(self._places)

    def strike(self, bitmap: bytearray) -> None:
        """Take out what another executor holds."""
        if self._is_over:
            return
        if self._struck % NARROW_EACH == 0:
            self._narrow()
        self._struck += 1
        other: npt.NDArray[np.uint8] = np.frombuffer(bitmap, dtype=np.uint8)
        if self._places is None:
            within = min(self.size, len(other))
            free = np.invert(other[:within], out=self._scratch[:within])
            np.bitwise_and(self._left[:within], free, out=self._left[:within])
        else:
            few = self._places[: int(np.searchsorted(self._places, len(other)))]
            self._left[few] &= ~other[few]

    def restore(self, lost: int) -> None:
        """Put back what of these blocks was here at the beginning."""
        given = np.frombuffer(lost.to_bytes(max(self.size, -(-lost.bit_length() // 8)), "little"), np.uint8)
        self._left |= self._all & given[: self.size]
        self._places, self._is_over, self._struck = None, False, 0

    def _narrow(self) -> None:
        left, places = self._left, self._places
        rest = np.flatnonzero(left) if places is None else places[left[places] != 0]
        self._is_over = not len(rest)
        self._places = rest if len(rest) * FEW < self.size else None


class Look:
    """One look; `leaving` are launches. `step` it until it `is_over`; then the rest of it means something."""

    def __init__(self, fleet: Fleet, leaving: Collection[int]) -> None:
        self.leaving = frozenset(leaving)
        self.is_busy = False  # some executor that stays has work left that goes on
        self.unfit_slot_ids: set[int] = set()  # of those that stay: slots that found no room
        self._todo = [launch_id for launch_id in reversed(fleet.executors) if launch_id not in leaving]
        self._struck: set[int] = set()
        self._rests: dict[Key, Rest] = {}
        held: dict[Key, int] = {}
        for launch_id in self.leaving & fleet.executors.keys():
            for key, of in fleet.executors[launch_id].datasets.items():
                held[key] = held.get(key, 0) | int.from_bytes(of.bitmap, "little")
        self._rests = {key: Rest(bits) for key, bits in held.items() if bits}

    @property
    def is_over(self) -> bool:
        return not self._todo

    def left(self) -> dict[Key, int]:
        """Return the blocks that are only on leaving executors."""
        return {key: rest.bits for key, rest in self._rests.items()}

    def not_elsewhere(self) -> dict[Key, int]:
        """Return the blocks that nobody else is known to hold: also all that the leaving ones did not hold at the beginning.

        (Integers below 0: every bit from some place on.) A leaving executor may have got one of those meanwhile.
        """
        return {key: rest.bits | ~rest.asked for key, rest in self._rests.items()}

    def step(self, fleet: Fleet, now_ms: int, work: float) -> None:
        """Look at more executors, as many as so much `work` (see STEP_WORK) allows."""
        while self._todo and work > 0:
            launch_id = self._todo.pop()
            seen = fleet.executors.get(launch_id)
            if seen is None:
                continue
            work -= ITEM_WORK * (1 + len(seen.datasets))
            self._regard(seen.heartbeat.slot_id, seen.datasets.values())
            if not counts(fleet, seen, now_ms):
                continue
            self._struck.add(launch_id)
            for key, rest in self._rests.items():
                held = seen.datasets.get(key)
                if held is not None and held.bitmap:
                    work -= ITEM_WORK + rest.work
                    rest.strike(held.bitmap)

    def noted(self, launch_id: int, datasets: Mapping[Key, Held]) -> dict[Key, int]:
        """Return what of interest an executor holds, if it was struck already: `changed` takes it once that may be less."""
        if launch_id not in self._struck:
            return {}
        return {k: int.from_bytes(held.bitmap, "little") for k, held in datasets.items() if k in self._rests}

    def changed(self, before: Mapping[Key, int], datasets: Mapping[Key, Held]) -> None:
        """Take in that an executor holds this now, and held `before` until now."""
        for key, bits in before.items():
            held = datasets.get(key)
            lost = bits & ~int.from_bytes(held.bitmap, "little") if held is not None else bits
            if lost:
                self._rests[key].restore(lost)

    def _regard(self, slot_id: int, datasets: Iterable[Held]) -> None:
        for held in datasets:
            r = held.residency
            self.is_busy = self.is_busy or works(held)
            if r.unfit_blocks or r.unsaved_blocks:
                self.unfit_slot_ids.add(slot_id)


def works(held: Held) -> bool:
    """Return whether the executor has something to do for this dataset that goes on."""
    r = held.residency
    return r.wanted_blocks > r.wanted_settled + r.unfit_blocks or r.saving_blocks > 0


def counts(fleet: Fleet, seen: ExecutorSeen, now_ms: int) -> bool:
    """Return whether what it is known to hold can be counted on."""
    return not seen.needs_whole and fleet.silent_ms(seen, now_ms) <= fleet.settings.heartbeat_timeout_ms


def tells_of_loss(heartbeat: Heartbeat) -> bool:
    """Return whether an executor that says this may hold less than it did."""
    return heartbeat.whole or any(r.removed or r.bitmap is not None for r in heartbeat.datasets)

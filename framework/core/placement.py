"""Placement: which slots are the homes of each placement group. A pure function of slots, counts and a seed.

Weighted consistent hashing with bounded load. Every slot has points on a ring, in proportion to its capacity. A PG
throws a row of darts at the ring; its candidates are the slots behind them. In rounds, all PGs without a home ask
their next candidate at once, and a slot takes those it has room for, in an order that the PGs' hashes give. Room is
the slot's share and a little more, so no slot gets much above its share; what the rounds leave over goes to the least
filled slots. Row r of the result is the PG's home r, found as row 0 was, on another slot and, while there are enough,
in another domain.

A slot that was lost is named in `out`, in the order of their loss: first everything is placed as if it were there, and
then only its PGs move, to slots that have room. So a loss moves the lost slot's own share and nothing else, and its
return moves exactly that back. (Placing anew without it moves some three times as much: each PG that finds a place
takes it from another.)

Many datasets of one shape are placed at once (`place_many`): each by itself, as if it were alone, on a row of slots of
its own; only the arrays are common, since small ones cost as much as large ones.

Knows numbers only: no catalog, no dataset, no executor. Vectorised: 2^18 PGs on 10,000 slots take less than a second.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from stoker.executor.messages import NO_HOME

SLOTS_MAX = NO_HOME  # positions are u16
SLACK = 0.02  # of its share, that a slot may hold above it; the bar is 0.05
POINTS_PER_SLOT = 64  # of a slot of the reference size; the more, the evener the first round
POINTS_PER_SLOT_MAX = 1_024
ROUNDS_MAX = 24  # darts a PG throws; the first finds a home for most
DOMAIN_ROUNDS = 16  # of them, how many insist on another domain
REPAIRS_MAX = 4_096  # single swaps, for what no slot with room can take
BATCH_GROUPS_MAX = 2**16  # of datasets placed at once: as many as caches hold
BATCH_CELLS_MAX = 2**16

_U64 = npt.NDArray[np.uint64]
_Ints = npt.NDArray[np.int64]
_T = TypeVar("_T", bound=np.generic)


class PlacementSlot(NamedTuple):
    """A slot, its capacity and its fault domain."""

    slot_id: int
    weight_bytes: int
    domain: str


def place(
    pg_count: int,
    slots: Sequence[PlacementSlot],
    replicas: int,
    seed: int,
    out: Sequence[PlacementSlot] = (),
) -> npt.NDArray[np.uint16]:
    """Return u16 [replicas][pg_count]: positions in `slots`, NO_HOME where there are fewer slots than replicas.

    `out`: slots that were lost, the longest lost first; none of them is also in `slots`. The order of `slots` only
    numbers the result.
    """
    (homes,) = place_many(pg_count, slots, replicas, [seed], out)
    return homes


def place_many(
    pg_count: int,
    slots: Sequence[PlacementSlot],
    replicas: int,
    seeds: Sequence[int],
    out: Sequence[PlacementSlot] = (),
) -> list[npt.NDArray[np.uint16]]:
    """Return what `place` returns for each of the seeds, at a fraction of the cost."""
    assert pg_count >= 1 and replicas >= 1 and len(slots) < SLOTS_MAX, (pg_count, replicas, len(slots))
    everyone = [*slots, *out]
    ring = _ring(everyone)
    many = max(1, min(BATCH_GROUPS_MAX // pg_count, BATCH_CELLS_MAX // max(1, len(everyone))))
    placed: list[npt.NDArray[np.uint16]] = []
    for start in range(0, len(seeds), many):
        board = _Board(pg_count, everyone, replicas, seeds[start : start + many], ring)
        placed += board.place(len(slots))
    return placed


class _Board:
    """The homes as they come to stand, of one or more datasets, each with a row of cells, one a slot.

    Groups and cells are numbered through all datasets: `homes` int64 [replicas][groups] are cells, -1: none yet; `load` is
    PGs a cell.
    """

    def __init__(
        self,
        pg_count: int,
        slots: Sequence[PlacementSlot],
        replicas: int,
        seeds: Sequence[int],
        ring: tuple[_U64, _Ints],
    ) -> None:
        self.pg_count = pg_count
        self.replicas = replicas
        self.slot_count = len(slots)
        self.dataset_count = len(seeds)
        self.slot_weights = np.array([max(1, s.weight_bytes) for s in slots], dtype=np.float64)
        names = {name: i for i, name in enumerate(sorted({s.domain for s in slots}))}
        self.domains = np.tile(np.array([names[s.domain] for s in slots], dtype=np.int64), len(seeds))
        self.homes: _Ints = np.full((replicas, pg_count * len(seeds)), -1, dtype=np.int64)
        self.load: _Ints = np.zeros(len(slots) * len(seeds), dtype=np.int64)
        starts = np.array([_mix_int(seed) for seed in seeds], dtype=np.uint64)
        self.hashes = _mix((np.arange(pg_count, dtype=np.uint64)[None] + starts[:, None]).ravel())
        self.first_cells = np.repeat(np.arange(len(seeds)) * len(slots), pg_count)  # of each group's dataset
        self.points, self.owners = ring

    def place(self, in_count: int) -> list[npt.NDArray[np.uint16]]:
        """Place on all slots, then lose those from `in_count` on, one by one."""
        active = np.ones(self.slot_count, dtype=bool)
        for row in range(min(self.replicas, self.slot_count)):
            self._fill(row, active)
        for lost in range(in_count, self.slot_count):
            active[lost] = False
            self._evict(lost, active)
        slots = np.where(self.homes < 0, NO_HOME, self.homes - self.first_cells).astype(np.uint16)
        return [homes.copy() for homes in np.split(slots, self.dataset_count, axis=1)]

    def _fill(self, row: int, active: npt.NDArray[np.bool_]) -> None:
        """Find home `row` of all PGs, on active slots."""
        groups = np.arange(self.homes.shape[1])
        self._ask_around(row, groups, self._caps(row + 1, active) - self.load, self._cells(active))

    def _evict(self, lost: int, active: npt.NDArray[np.bool_]) -> None:
        """Take its PGs from slot `lost`, which is not active any more, and find them other homes."""
        self.homes[(self.homes >= 0) & (self.homes - self.first_cells == lost)] = -1
        self.load[lost :: self.slot_count] = 0
        rows = min(self.replicas, int(active.sum()))
        if rows < self.replicas:
            self._close_up()
        for row in range(rows):
            # All other rows stand already, so the room is that of all rows together.
            room = self._caps(self.replicas, active) - self.load
            self._ask_around(row, np.nonzero(self.homes[row] < 0)[0], room, self._cells(active))

    def _cells(self, of_slots: npt.NDArray[_T]) -> npt.NDArray[_T]:
        return np.tile(of_slots, self.dataset_count)

    def _ask_around(self, row: int, groups: _Ints, room: _Ints, active: npt.NDArray[np.bool_]) -> None:
        for attempt in range(ROUNDS_MAX):
            if not len(groups):
                return
            groups = self._round(row, attempt, groups, room, active)
        self._fill_rest(row, groups, room, active)

    def _caps(self, rows: int, active: npt.NDArray[np.bool_]) -> _Ints:
        """Return how many PGs each cell may hold in `rows` rows together."""
        total = self.pg_count * min(rows, int(active.sum()))
        shares = _shares(self.slot_weights * active, total, self.pg_count)
        caps = np.floor(np.maximum(shares * (1 + SLACK), shares + 1)).astype(np.int64)
        return self._cells(np.where(active, np.minimum(caps, self.pg_count), 0))

    def _round(
        self, row: int, attempt: int, groups: _Ints, room: _Ints, active: npt.NDArray[np.bool_]
    ) -> _Ints:
        """Let each PG ask its next candidate; return those that found no home."""
        darts = _mix(self.hashes[groups] + _mix_int((row << 32) + attempt + 1))
        behind = np.searchsorted(self.points, darts) % len(self.points)
        candidates = self.first_cells[groups] + self.owners[behind]
        allowed = active[candidates] & (room[candidates] > 0)
        for homes in self.homes:
            taken = homes[groups]
            allowed &= taken != candidates
            if attempt < DOMAIN_ROUNDS:
                allowed &= (taken < 0) | (self.domains[taken] != self.domains[candidates])
        asking, asked = groups[allowed], candidates[allowed]
        order = np.lexsort((darts[allowed], asked))
        ranks = np.empty(len(order), dtype=np.int64)
        sorted_asked = asked[order]
        starts = np.searchsorted(sorted_asked, sorted_asked)
        ranks[order] = np.arange(len(order)) - starts
        taken_in = ranks < room[asked]
        self._settle(row, asking[taken_in], asked[taken_in], room)
        left: _Ints = groups[self.homes[row, groups] < 0]
        return left

    def _settle(self, row: int, groups: _Ints, slots: _Ints, room: _Ints) -> None:
        self.homes[row, groups] = slots
        counts = np.bincount(slots, minlength=len(self.load))
        self.load += counts
        room -= counts

    def _fill_rest(self, row: int, groups: _Ints, room: _Ints, active: npt.NDArray[np.bool_]) -> None:
        """Give the PGs that found no candidate with room to slots that have some, or else by a swap."""
        repairs: Counter[int] = Counter()  # by dataset
        for group in groups[np.argsort(self.hashes[groups], kind="stable")].tolist():
            dataset, first = group // self.pg_count, int(self.first_cells[group])
            cells = slice(first, first + self.slot_count)
            own = self.homes[:, group]
            free = active[cells].copy()
            free[own[own >= 0] - first] = False
            assert free.any(), "there are as many slots as rows"
            roomy = np.where(free & (room[cells] > 0), room[cells], 0)
            repairs[dataset] += 1
            if roomy.any():
                choice = first + int(np.argmax(roomy))
            elif repairs[dataset] <= REPAIRS_MAX and (
                swapped := self._swap(row, group, room, active[cells], free)
            ):
                choice = swapped[0]
            else:
                fill = np.where(free, self.load[cells] / self.slot_weights, np.inf)
                choice = first + int(np.argmin(fill))
            self._move(row, group, choice, room)

    def _swap(
        self,
        row: int,
        group: int,
        room: _Ints,
        active: npt.NDArray[np.bool_],
        free: npt.NDArray[np.bool_],
    ) -> tuple[int, ...]:
        """Make room in a cell that may take `group`, by moving another PG on; return the cell, if there is one.

        `active` and `free` are of the cells of the group's dataset.
        """
        dataset, first = group // self.pg_count, int(self.first_cells[group])
        start = dataset * self.pg_count
        homes = self.homes[:, start : start + self.pg_count]
        placed = homes[row] >= 0
        movable_now = placed & free[np.where(placed, homes[row] - first, 0)]
        has_room = active & (room[first : first + self.slot_count] > 0)
        for roomy in (first + np.nonzero(has_room)[0]).tolist():
            others = start + np.nonzero(movable_now & ~(homes == roomy).any(axis=0))[0]
            if len(others):
                other = int(others[np.argmin(self.hashes[others] ^ self.hashes[group])])
                source = int(self.homes[row, other])
                self._move(row, other, roomy, room)
                return (source,)
        return ()

    def _move(self, row: int, group: int, cell: int, room: _Ints) -> None:
        """Let `cell` be home `row` of one PG, and no more the one that is."""
        source = int(self.homes[row, group])
        self.homes[row, group] = cell
        for changed, change in ((cell, 1), (source, -1)):
            if changed >= 0:
                self.load[changed] += change
                room[changed] -= change

    def _close_up(self) -> None:
        """Fewer slots than replicas: let the rows that have homes come first."""
        order = np.argsort(self.homes < 0, axis=0, kind="stable")
        self.homes = np.take_along_axis(self.homes, order, axis=0)


def _shares(weights: npt.NDArray[np.float64], total: int, most: int) -> npt.NDArray[np.float64]:
    """Share `total` by weight, nobody more than `most` (a slot holds a PG once); the rest goes to the others."""
    shares = np.zeros(len(weights))
    is_open = weights > 0
    for _ in range(len(weights)):
        left = total - shares[~is_open].sum()
        if not is_open.any() or left <= 0:
            break
        shares[is_open] = left * weights[is_open] / weights[is_open].sum()
        above = is_open & (shares > most)
        if not above.any():
            break
        shares[above] = most
        is_open = is_open & ~above
    return shares


def _ring(slots: Sequence[PlacementSlot]) -> tuple[_U64, _Ints]:
    """Return the ring's points, ascending, and the position of the slot that owns each."""
    if not slots:
        return np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int64)
    weights = np.array([max(1, s.weight_bytes) for s in slots], dtype=np.float64)
    # A power of two, so that the points of a slot do not change with every change of another.
    reference = 2.0 ** np.round(np.log2(np.median(weights)))
    counts = np.clip(np.round(POINTS_PER_SLOT * weights / reference), 1, POINTS_PER_SLOT_MAX).astype(np.int64)
    owners = np.repeat(np.arange(len(slots)), counts)
    numbers = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
    ids = np.array([s.slot_id for s in slots], dtype=np.uint64)[owners]
    points = _mix((ids << np.uint64(12)) + numbers.astype(np.uint64))
    order = np.lexsort((ids, points))
    return points[order], owners[order]


def _mix(values: _U64) -> _U64:
    """Return 64 well-mixed bits of each value: two rounds of xor-shift and multiplication by odd constants."""
    mixed = values * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(32)
    mixed *= np.uint64(0xD6E8FEB86659FD93)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xA0761D6478BD642F)
    mixed ^= mixed >> np.uint64(32)
    return mixed


def _mix_int(value: int) -> np.uint64:
    return np.uint64(_mix(np.array([value & (2**64 - 1)], dtype=np.uint64))[0])

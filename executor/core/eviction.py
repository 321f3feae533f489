"""Which blocks go to make room: a choice, no act.

Never a victim: a block that is being filled or waited for. For a miss, besides: a wanted block, a block of a dataset with policy
`keep` (nothing is evicted inside a scan: for uniform reads the hit ratio is the cached share, where LRU thrashes), a block that
is lent (its memory would not come free now), and a block of a dataset of higher priority. For a wanted block anything that is not
wanted goes, whatever its policy.

Order: blocks of datasets that nobody knows, then by priority, then the policy's own: lfu by uses, the others by the last use.
"""

from __future__ import annotations

from typing import NamedTuple

from stoker.executor.block import BlockName
from stoker.executor.core.cache import UNKNOWN_DATASET, Cache, DatasetKey, Holding


class Demand(NamedTuple):
    """A block that wants to come; `wanted`: by the journaled residency, else because a reader missed it."""

    name: BlockName
    bytes: int
    wanted: bool

    @property
    def key(self) -> DatasetKey:
        return self.name.dataset_id, self.name.generation


def choose_victims(
    cache: Cache, demand: Demand, *, bytes: int, files: int = 0, own_only: bool = False
) -> tuple[int, ...] | None:
    """Return the holdings to evict so that `bytes` and `files` files come free, the first to go first; None: there are not enough.

    `own_only`: only of the demand's own dataset (its allotment is used up). O(holdings).
    """
    candidates = [h for h in cache.held.values() if _may_go(cache, h, demand, own_only=own_only)]
    candidates.sort(key=lambda held: _order(cache, held))
    victims: list[int] = []
    for held in candidates:
        if bytes <= 0 and files <= 0:
            break
        victims.append(held.holding)
        bytes -= held.bytes
        files -= 1
    return tuple(victims) if bytes <= 0 and files <= 0 else None


def _may_go(cache: Cache, held: Holding, demand: Demand, *, own_only: bool) -> bool:
    if held.wanted or held.busy or (own_only and held.key != demand.key):
        return False
    if demand.wanted:
        return True
    rules = cache.rules_of(held.key)
    mine = cache.rules_of(demand.key)
    if mine.policy == "keep" and rules is not UNKNOWN_DATASET:
        return False
    return not held.lent and rules.policy != "keep" and rules.priority <= mine.priority


def _order(cache: Cache, held: Holding) -> tuple[int, int, int, int]:
    rules = cache.rules_of(held.key)
    uses = held.uses if rules.policy == "lfu" else 0
    return rules.priority, uses, held.used_ms, held.holding

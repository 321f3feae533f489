"""Whether a block may come into the tier now, and who must go for it.

The answer is ADMIT (there is room: put it at once, in the same step), WAIT (evict these, if any, and ask again when a holding is
gone) or REFUSE (serve it without keeping it, or count it as unfit). What is leaving already is waited for before more is
evicted, but not for ever: a reader that does not return a lent block within LEAVE_PATIENCE_MS is not counted on.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from stoker.executor.core.cache import Cache
from stoker.executor.core.eviction import Demand, choose_victims

LEAVE_PATIENCE_MS = 5_000


class Verdict(enum.Enum):
    ADMIT = "admit"
    WAIT = "wait"
    REFUSE = "refuse"


class Admission(NamedTuple):
    verdict: Verdict
    victims: tuple[int, ...] = ()
    reason: str = ""


def admit(cache: Cache, demand: Demand, now_ms: int) -> Admission:
    """Decide about one block that is not held; changes nothing."""
    assert cache.find(demand.name) is None, demand
    if demand.bytes > cache.capacity_bytes:
        return _refuse(f"a block of {demand.bytes} bytes in a tier of {cache.capacity_bytes}")
    allotment = cache.rules_of(demand.key).allotment_bytes
    over = cache.dataset_bytes(demand.key) + demand.bytes - allotment if allotment else 0
    own: tuple[int, ...] = ()
    if over > 0:
        chosen = choose_victims(cache, demand, bytes=over, own_only=True)
        if chosen is None:
            return _refuse(f"the dataset's allotment of {allotment} bytes is used up")
        own = chosen
    missing = demand.bytes - cache.room_bytes
    files = cache.file_count + 1 - cache.blocks_max
    if missing <= 0 and files <= 0 and not own:
        return Admission(Verdict.ADMIT)
    coming = [
        e for e in cache.leaving.values() if _is_coming(e.since_ms, now_ms) and (demand.wanted or not e.lent)
    ]
    missing -= sum(entry.bytes for entry in coming) + sum(cache.held[h].bytes for h in own)
    files -= len(coming) + len(own)
    if missing <= 0 and files <= 0:
        return Admission(Verdict.WAIT, own)
    more = _more_victims(cache, demand, bytes=missing, files=files, taken=own)
    if more is None:
        return _refuse("the tier is full of blocks that stay")
    return Admission(Verdict.WAIT, own + more)


def _more_victims(
    cache: Cache, demand: Demand, *, bytes: int, files: int, taken: tuple[int, ...]
) -> tuple[int, ...] | None:
    """Choose victims beyond `taken`, which are the first of the demand's own dataset."""
    if not taken:
        return choose_victims(cache, demand, bytes=bytes, files=files)
    bytes += sum(cache.held[h].bytes for h in taken)
    chosen = choose_victims(cache, demand, bytes=bytes, files=files + len(taken))
    if chosen is None:
        return None
    return tuple(h for h in chosen if h not in taken)


def _is_coming(since_ms: int, now_ms: int) -> bool:
    return now_ms - since_ms < LEAVE_PATIENCE_MS


def _refuse(reason: str) -> Admission:
    return Admission(Verdict.REFUSE, (), reason)

"""Whom eviction chooses, row by row."""

from __future__ import annotations

import pytest

from stoker.executor.block import BlockName
from stoker.executor.core.cache import Cache, CacheRules
from stoker.executor.core.eviction import Demand, choose_victims

SIZE = 100


def make_cache(**rules: CacheRules) -> Cache:
    """Datasets by number: `d1=...`."""
    cache = Cache(capacity_bytes=10_000, blocks_max=1_000)
    cache.rules = {(int(name[1:]), 1): rule for name, rule in rules.items()}
    return cache


def put(
    cache: Cache, holding: int, dataset: int, *, wanted: bool = False, used_ms: int = 0, uses: int = 1
) -> None:
    held = cache.put(holding, BlockName(dataset, 1, holding), bytes=SIZE, wanted=wanted, now_ms=used_ms)
    held.uses = uses


def miss(dataset: int) -> Demand:
    return Demand(BlockName(dataset, 1, 999), SIZE, wanted=False)


def wish(dataset: int) -> Demand:
    return Demand(BlockName(dataset, 1, 999), SIZE, wanted=True)


LRU, LFU, KEEP = CacheRules("lru"), CacheRules("lfu"), CacheRules("keep")


def test_lru_lets_the_longest_unused_go_first() -> None:
    cache = make_cache(d1=LRU)
    for holding, used_ms in ((1, 30), (2, 10), (3, 20)):
        put(cache, holding, 1, used_ms=used_ms, uses=100 - holding)
    assert choose_victims(cache, miss(1), bytes=2 * SIZE) == (2, 3)


def test_lfu_lets_the_least_used_go_first_and_the_older_of_equals() -> None:
    cache = make_cache(d1=LFU)
    for holding, used_ms, uses in ((1, 30, 1), (2, 10, 9), (3, 20, 1)):
        put(cache, holding, 1, used_ms=used_ms, uses=uses)
    assert choose_victims(cache, miss(1), bytes=3 * SIZE) == (3, 1, 2)


@pytest.mark.parametrize("policy", ["keep", "lru", "lfu"])
def test_a_wanted_block_is_no_victim_of_anything(policy: str) -> None:
    cache = make_cache(d1=CacheRules(policy))
    put(cache, 1, 1, wanted=True)
    assert choose_victims(cache, miss(1), bytes=SIZE) is None
    assert choose_victims(cache, wish(1), bytes=SIZE) is None


def test_a_miss_evicts_nothing_of_a_keep_dataset_but_a_wanted_block_does() -> None:
    cache = make_cache(d1=KEEP, d2=LRU)
    put(cache, 1, 1)
    assert choose_victims(cache, miss(1), bytes=SIZE) is None
    assert choose_victims(cache, miss(2), bytes=SIZE) is None
    assert choose_victims(cache, wish(2), bytes=SIZE) == (1,)


def test_a_keep_dataset_does_not_evict_others_for_its_misses() -> None:
    cache = make_cache(d1=KEEP, d2=LRU)
    put(cache, 1, 2)
    assert choose_victims(cache, miss(1), bytes=SIZE) is None


def test_blocks_that_nobody_knows_go_first() -> None:
    cache = make_cache(d1=LRU, d2=KEEP)
    put(cache, 1, 1, used_ms=1)
    put(cache, 2, 77, used_ms=500)
    assert choose_victims(cache, miss(1), bytes=SIZE) == (2,)
    assert choose_victims(cache, miss(2), bytes=SIZE) == (2,)


def test_lower_priority_goes_first_and_higher_is_spared_from_misses() -> None:
    cache = make_cache(d1=CacheRules("lru", 5), d2=CacheRules("lru", 1), d3=CacheRules("lru", 3))
    put(cache, 1, 1, used_ms=1)
    put(cache, 2, 2, used_ms=500)
    assert choose_victims(cache, miss(1), bytes=2 * SIZE) == (2, 1)
    assert choose_victims(cache, miss(3), bytes=2 * SIZE) is None
    assert choose_victims(cache, miss(3), bytes=SIZE) == (2,)


def test_a_busy_block_stays_and_a_lent_one_goes_only_for_a_wanted_one() -> None:
    cache = make_cache(d1=LRU)
    put(cache, 1, 1)
    put(cache, 2, 1)
    cache.held[1].busy = True
    cache.held[2].lent = True
    assert choose_victims(cache, miss(1), bytes=SIZE) is None
    assert choose_victims(cache, wish(1), bytes=SIZE) == (2,)


def test_nothing_is_chosen_where_all_would_not_be_enough() -> None:
    cache = make_cache(d1=LRU)
    put(cache, 1, 1)
    assert choose_victims(cache, miss(1), bytes=2 * SIZE) is None
    assert choose_victims(cache, miss(1), bytes=0, files=0) == ()

"""Admission, by tables, and the account it keeps, by random histories."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from stoker.executor.block import BlockName
from stoker.executor.core.admission import LEAVE_PATIENCE_MS, Verdict, admit
from stoker.executor.core.cache import Cache, CacheRules
from stoker.executor.core.eviction import Demand

SIZE = 100


def demand(index: int, *, wanted: bool = False, dataset: int = 1, bytes: int = SIZE) -> Demand:
    return Demand(BlockName(dataset, 1, index), bytes, wanted)


def full_cache(policy: str = "lru", *, blocks: int = 3, wanted: bool = False) -> Cache:
    cache = Cache(capacity_bytes=blocks * SIZE, blocks_max=100)
    cache.rules[1, 1] = CacheRules(policy)
    for n in range(blocks):
        cache.put(n + 1, BlockName(1, 1, n), bytes=SIZE, wanted=wanted, now_ms=n)
    return cache


def test_admits_where_there_is_room() -> None:
    cache = Cache(capacity_bytes=SIZE, blocks_max=1)
    assert admit(cache, demand(0), 0).verdict is Verdict.ADMIT
    assert admit(cache, demand(0, bytes=SIZE + 1), 0).verdict is Verdict.REFUSE


def test_a_full_tier_evicts_for_a_miss_under_lru_and_refuses_under_keep() -> None:
    evicting = admit(full_cache("lru"), demand(9), 10)
    assert (evicting.verdict, evicting.victims) == (Verdict.WAIT, (1,))
    assert admit(full_cache("keep"), demand(9), 10).verdict is Verdict.REFUSE
    assert admit(full_cache("keep"), demand(9, wanted=True), 10).victims == (1,)
    assert admit(full_cache(wanted=True), demand(9, wanted=True), 10).verdict is Verdict.REFUSE


def test_what_is_leaving_already_is_waited_for_but_not_for_ever() -> None:
    cache = full_cache()
    cache.leave(1, 0)
    assert admit(cache, demand(9, wanted=True), 10) == (Verdict.WAIT, (), "")
    assert admit(cache, demand(9, wanted=True), LEAVE_PATIENCE_MS).victims == (2,)
    cache.gone(1)
    assert admit(cache, demand(9, wanted=True), 10).verdict is Verdict.ADMIT


def test_a_miss_does_not_wait_for_a_reader_to_return_a_block() -> None:
    cache = full_cache("keep")
    cache.held[1].lent = True
    cache.leave(1, 0)
    assert admit(cache, demand(9), 10).verdict is Verdict.REFUSE
    assert admit(cache, demand(9, wanted=True), 10) == (Verdict.WAIT, (), "")


def test_the_number_of_files_is_bounded_like_the_bytes() -> None:
    cache = full_cache()
    cache.capacity_bytes, cache.blocks_max = 100 * SIZE, 3
    assert admit(cache, demand(9), 10) == (Verdict.WAIT, (1,), "")
    cache.leave(1, 10)
    assert admit(cache, demand(9), 10) == (Verdict.WAIT, (), "")


def test_an_allotment_makes_a_dataset_evict_its_own() -> None:
    cache = full_cache()
    cache.capacity_bytes = 100 * SIZE
    cache.rules[1, 1] = CacheRules("lru", 0, allotment_bytes=3 * SIZE)
    assert admit(cache, demand(9), 10) == (Verdict.WAIT, (1,), "")
    cache.rules[1, 1] = CacheRules("keep", 0, allotment_bytes=3 * SIZE)
    assert admit(cache, demand(9), 10).verdict is Verdict.REFUSE
    assert admit(cache, demand(9, dataset=2), 10).verdict is Verdict.ADMIT


class Histories(RuleBasedStateMachine):
    """Demands, evictions, loans and returns in any order: the account is never overdrawn, no wanted block falls to a miss."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = Cache(capacity_bytes=1_000, blocks_max=8)
        for dataset, policy in enumerate(("keep", "lru", "lfu"), 1):
            self.cache.rules[dataset, 1] = CacheRules(policy, dataset % 2, 400 if dataset == 3 else 0)
        self.holdings = 0
        self.now_ms = 0

    @rule(
        dataset=st.integers(1, 4),
        index=st.integers(0, 5),
        bytes=st.integers(50, 400),
        wanted=st.booleans(),
    )
    def ask(self, dataset: int, index: int, bytes: int, wanted: bool) -> None:
        asked = demand(index, wanted=wanted, dataset=dataset, bytes=bytes)
        if self.cache.find(asked.name) is not None:
            return
        admission = admit(self.cache, asked, self.now_ms)
        for holding in admission.victims:
            held = self.cache.held[holding]
            assert not held.wanted and not held.busy
            assert wanted or not held.lent
            self.cache.leave(holding, self.now_ms)
        assert len(set(admission.victims)) == len(admission.victims)
        if admission.verdict is Verdict.ADMIT:
            self.holdings += 1
            self.cache.put(self.holdings, asked.name, bytes=bytes, wanted=wanted, now_ms=self.now_ms)
        if admission.verdict is Verdict.REFUSE:
            assert not admission.victims and admission.reason

    @precondition(lambda self: self.cache.leaving)
    @rule(data=st.data())
    def come_free(self, data: st.DataObject) -> None:
        self.cache.gone(data.draw(st.sampled_from(sorted(self.cache.leaving))))

    @precondition(lambda self: self.cache.held)
    @rule(data=st.data(), wanted=st.booleans(), lent=st.booleans(), busy=st.booleans())
    def change(self, data: st.DataObject, wanted: bool, lent: bool, busy: bool) -> None:
        holding = data.draw(st.sampled_from(sorted(self.cache.held)))
        held = self.cache.held[holding]
        held.wanted, held.lent, held.busy = wanted, lent, busy
        self.cache.use(holding, 1, self.now_ms)

    @rule(ms=st.sampled_from([1, 1_000, LEAVE_PATIENCE_MS]))
    def wait(self, ms: int) -> None:
        self.now_ms += ms

    @invariant()
    def account_holds(self) -> None:
        self.cache.check()


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)

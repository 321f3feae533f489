"""Who is offered what: filters, suppression, shares, as transcripts 02 and 02b show them."""

from __future__ import annotations

import pytest

from stoker.mesos.embedded.core.allocator import (
    EXPIRIES_MIN,
    FILTERS_MAX,
    REFUSE_MS_DEFAULT,
    REFUSE_MS_MAX,
    Allocator,
    refuse_ms,
)
from stoker.mesos.embedded.core.resources import plain

WHOLE = plain(cpus=4, mem_mib=4096, disk_mib=0, ports=None)
PART = plain(cpus=1, mem_mib=1024, disk_mib=0, ports=None)


def make(agents: int = 1, roles: tuple[str, ...] = ("cache",)) -> Allocator:
    allocator = Allocator(interval_ms=1000)
    for index in range(agents):
        allocator.add_agent(f"S{index}", WHOLE)
    allocator.add_framework("F0", roles, set())
    return allocator


def next_offer_ms(allocator: Allocator, since_ms: int, until_ms: int) -> int | None:
    """Return the first tick (every 1000 ms after `since_ms`) at which something is granted."""
    for now_ms in range(since_ms, until_ms, 1000):
        if allocator.allocate(now_ms):
            return now_ms
    return None


@pytest.mark.parametrize(
    ("seconds", "duration_ms"),
    [(0, 0), (0.5, 500), (5, 5000), (-1, REFUSE_MS_DEFAULT), (float("nan"), REFUSE_MS_DEFAULT)]
    + [(1e9, REFUSE_MS_MAX), (float("inf"), REFUSE_MS_MAX)],
)
def test_refuse_seconds_have_a_default_and_a_maximum(seconds: float, duration_ms: int) -> None:
    assert refuse_ms(seconds) == duration_ms


@pytest.mark.parametrize(
    ("seconds", "offered_ms"),
    [(0, 1000), (0.5, 2000), (1, 2000), (2, 3000), (3, 4000), (3.5, 4000), (-1, 6000)],
)
def test_a_refused_offer_comes_back_at_the_tick_after_its_filter(seconds: float, offered_ms: int) -> None:
    """Measured on a real master: a filter shorter than a tick swallows one tick all the same."""
    allocator = make()
    (grant,) = allocator.allocate(0)
    allocator.recover(grant, 3, refuse_ms=refuse_ms(seconds))
    assert next_offer_ms(allocator, 1000, 20_000) == offered_ms


def test_a_filter_hides_only_what_is_no_more_than_was_refused() -> None:
    allocator = make()
    (grant,) = allocator.allocate(0)
    rest = grant._replace(resources=WHOLE - PART)
    allocator.recover(rest, 0, refuse_ms=600_000)
    assert not allocator.allocate(1000)
    allocator.recover(grant._replace(resources=PART), 1000)
    assert [item.resources for item in allocator.allocate(2000)] == [WHOLE]


def test_a_filter_is_of_one_framework_role_and_agent() -> None:
    allocator = make(agents=2, roles=("a", "b"))
    grants = allocator.allocate(0)
    assert sorted(grant.role for grant in grants) == ["a", "b"]
    for grant in grants:
        allocator.recover(grant, 0, refuse_ms=600_000)
    again = allocator.allocate(1000)
    assert {(g.agent_id, g.role) for g in again} == {(g.agent_id, "ab".replace(g.role, "")) for g in grants}
    allocator.add_framework("F1", ("a",), set())
    for grant in again:
        allocator.recover(grant, 1000, refuse_ms=600_000)
    assert {grant.framework_id for grant in allocator.allocate(2000)} == {"F1"}


def test_revive_forgets_filters_and_suppression_of_its_roles() -> None:
    allocator = make(roles=("a", "b"))
    (grant,) = allocator.allocate(0)
    allocator.recover(grant, 0, refuse_ms=600_000)
    assert allocator.suppress("F0", ("b",))
    assert not allocator.allocate(1000)
    assert allocator.revive("F0", ("b",))
    (grant,) = allocator.allocate(1000)
    assert grant.role == "b"
    assert allocator.suppress("F0", ()) and allocator.revive("F0", ())
    allocator.recover(grant, 1000)
    assert allocator.allocate(2000)[0].role == "a"


@pytest.mark.parametrize("call", ["suppress", "revive"])
def test_a_foreign_role_spoils_the_whole_call(call: str) -> None:
    allocator = make()
    (grant,) = allocator.allocate(0)
    allocator.recover(grant, 0, refuse_ms=600_000)
    assert not getattr(allocator, call)("F0", ("cache", "nope"))
    assert not allocator.allocate(1000)
    assert allocator.allocate(700_000)


def test_a_framework_that_is_away_is_offered_nothing_and_its_filters_are_gone() -> None:
    allocator = make()
    (grant,) = allocator.allocate(0)
    allocator.recover(grant, 0, refuse_ms=600_000)
    allocator.deactivate("F0")
    assert not allocator.allocate(1000)
    allocator.update_framework("F0", ("cache",), set())
    assert allocator.allocate(1000)


def test_a_take_over_keeps_the_filters_of_roles_that_stay() -> None:
    allocator = make(roles=("a", "b"))
    for now_ms in (0, 1):
        (grant,) = allocator.allocate(now_ms)
        allocator.recover(grant, now_ms, refuse_ms=600_000)
    allocator.update_framework("F0", ("a", "c"), set())
    (grant,) = allocator.allocate(1000)
    assert grant.role == "c"


def test_two_frameworks_share_agents_evenly() -> None:
    allocator = make(agents=6)
    allocator.add_framework("F1", ("cache",), set())
    allocator.add_framework("F2", ("other",), set())
    taken = [grant.framework_id for grant in allocator.allocate(0)]
    assert sorted(taken.count(name) for name in ("F0", "F1", "F2")) == [1, 2, 3] and taken.count("F2") == 3


def test_a_crumb_is_not_offered() -> None:
    allocator = make()
    (grant,) = allocator.allocate(0)
    crumb = plain(cpus=0.005, mem_mib=16, disk_mib=0, ports=None)
    allocator.recover(grant._replace(resources=crumb), 0)
    assert not allocator.allocate(1000)
    allocator.recover(grant._replace(resources=PART), 0)
    assert allocator.allocate(1000)[0].resources == PART + crumb


def test_ends_of_filters_do_not_pile_up() -> None:
    """A framework that declines for a year and revives, again and again, costs no more than one that does it once."""
    allocator = make(agents=3)
    for _ in range(EXPIRIES_MIN):
        for grant in allocator.allocate(0):
            allocator.recover(grant, 0, refuse_ms=REFUSE_MS_MAX)
        allocator.revive("F0", ())
    assert allocator.expiry_count <= EXPIRIES_MIN
    for grant in allocator.allocate(0):
        allocator.recover(grant, 0, refuse_ms=REFUSE_MS_MAX)
    assert not allocator.allocate(1000) and len(allocator.allocate(REFUSE_MS_MAX)) == 3


def test_filters_are_bounded_and_the_oldest_goes_first() -> None:
    allocator = make()
    (grant,) = allocator.allocate(0)
    crumb = plain(cpus=0.001, mem_mib=0, disk_mib=0, ports=None)
    rest = grant.resources
    for now_ms in range(FILTERS_MAX + 5):
        allocator.recover(grant._replace(resources=crumb), now_ms, refuse_ms=600_000)
        rest = rest - crumb
    assert allocator.filter_count("F0", "cache", "S0") == FILTERS_MAX
    allocator.recover(grant._replace(resources=rest), 0)
    allocator.remove_framework("F0")
    assert allocator.free("S0") == WHOLE and not allocator.allocate(10**9)

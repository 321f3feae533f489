"""Quotas, weights, roles in a tree, capabilities, minimal offers, offers that are held too long: transcripts 19, 19b and 22."""

from __future__ import annotations

import random
from typing import Any

import pytest

from stoker.mesos.embedded.core import sharing
from stoker.mesos.embedded.core.allocator import Allocator, Demand, Grant
from stoker.mesos.embedded.core.codec import Message
from stoker.mesos.embedded.core.constraints import Constraints, Facts
from stoker.mesos.embedded.core.quota import Quota, QuotaError, quota_message, quota_of
from stoker.mesos.embedded.core.resources import EMPTY, Resources, from_messages, parse_resources
from support.embedded_bench import Bench

WHOLE = parse_resources("ports:[31000-31099];cpus:4;mem:4096;disk:8192")
MULTI = frozenset({"MULTI_ROLE", "RESERVATION_REFINEMENT"})


def cluster(*texts: str, region: str | None = None) -> Allocator:
    allocator = Allocator(1000, region)
    for index, text in enumerate(texts):
        allocator.add_agent(f"S{index}", parse_resources(text), Facts(f"h{index}"))
    return allocator


def amounts(grants: list[Grant]) -> dict[tuple[str, str], dict[str, float]]:
    return {
        (grant.framework_id, grant.agent_id): {
            name: amount / 1000 for name, amount in grant.resources.quantities().items()
        }
        for grant in grants
    }


def config(role: str, **kinds: dict[str, float]) -> Message:
    shown = {kind: {name: {"value": value} for name, value in of.items()} for kind, of in kinds.items()}
    return {"role": role, **shown}


def frameworks(bench: Bench, *roles: str) -> list[int]:
    return [bench.subscribe(name=role, roles=[role]) for role in roles]


def held(bench: Bench, framework_id: str) -> list[Resources]:
    offers = bench.cluster.master.offers.values()
    return [offer.grant.resources for offer in offers if offer.grant.framework_id == framework_id]


def update_quota(bench: Bench, *configs: Message, force: bool = True) -> tuple[int, str]:
    answer = sharing.update_quota(bench.cluster.master, configs, force=force, now_ms=bench.now_ms)
    bench.take()
    return answer.status, answer.text


def test_a_limit_chops_an_offer_and_the_rest_goes_to_others() -> None:
    bench = Bench(agents=3)
    assert update_quota(bench, config("jobs", limits={"cpus": 2, "mem": 2048})) == (200, "")
    frameworks(bench, "jobs", "cache")
    (offer,) = held(bench, "m-0000")
    assert offer.quantities() == {"cpus": 2000, "mem": 2_048_000, "disk": 8_192_000} and len(offer.items) == 4
    rest, *others = held(bench, "m-0001")
    assert rest.quantities() == {"cpus": 2000, "mem": 2_048_000} and len(others) == 2
    assert sharing.quota_configs(bench.cluster.master) == [
        config("jobs", limits={"cpus": 2.0, "mem": 2048.0})
    ]
    assert update_quota(bench, {"role": "jobs"})[0] == 200
    assert not sharing.quota_configs(bench.cluster.master) and bench.kinds(1)[-1] == "OFFERS"


def test_a_limit_below_what_is_offered_takes_it_back() -> None:
    bench = Bench(agents=2)
    (stream,) = frameworks(bench, "jobs")
    update_quota(bench, config("jobs", limits={"cpus": 4}))
    assert bench.kinds(stream) == ["SUBSCRIBED", "OFFERS", "RESCIND"]
    bench.advance(3000)
    offers = held(bench, "m-0000")
    assert [offer.quantities().get("cpus") for offer in offers] == [4000, None]  # mem alone is an offer too


def test_a_guarantee_of_an_absent_role_lays_resources_away() -> None:
    bench = Bench(agents=3)
    frameworks(bench, "cache", "jobs")
    assert len(held(bench, "m-0000")) == 3
    update_quota(bench, config("gold", guarantees={"cpus": 8}, limits={"cpus": 8}))
    assert bench.kinds(1).count("RESCIND") == 2
    bench.advance(2000)
    offers = held(bench, "m-0000") + held(bench, "m-0001")
    assert sorted(offer.quantities().get("cpus", 0) for offer in offers) == [0, 0, 4000]
    bench.subscribe(name="gold", roles=["gold"])
    assert sorted(offer.quantities()["cpus"] for offer in held(bench, "m-0002")) == [4000, 4000]


def test_guarantees_above_what_there_is_need_force() -> None:
    bench = Bench(agents=1)
    status, text = update_quota(bench, config("gold", guarantees={"cpus": 8}), force=False)
    assert status == 400 and "total quota guarantees 'cpus:8' exceed cluster capacity" in text
    assert update_quota(bench, config("gold", guarantees={"cpus": 4}), force=False)[0] == 200


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({}, "needs a role"),
        ({"role": "*"}, "needs a role"),
        ({"role": "a/b"}, "nested role 'a/b' is not supported"),
        ({"role": "a", "limits": []}, "is not a map"),
        ({"role": "a", "limits": [1]}, "is not a map"),
        ({"role": "a", "limits": {"cpus": 4}}, "must be a number"),
        ({"role": "a", "limits": {"cpus": {"value": -4}}}, "must be a number"),
        (config("a", limits={"cpus": 1}, guarantees={"cpus": 2}), "is more than the limit"),
    ],
)
def test_a_wrong_quota_is_refused(given: Any, text: str) -> None:
    if given.get("limits") == []:
        assert quota_of(given) == ("a", Quota({}, {}))
        return
    with pytest.raises(QuotaError, match=text):
        quota_of(given)


def test_a_quota_round_trips() -> None:
    given = config("a", limits={"cpus": 2.0}, guarantees={"mem": 64.0})
    assert quota_message(*quota_of(given)) == given


def test_a_changed_weight_rescinds_all_offers() -> None:
    bench = Bench(agents=4)
    frameworks(bench, "cache", "jobs")
    master = bench.cluster.master
    answer = sharing.update_weights(master, [{"role": "cache", "weight": 3.0}], bench.now_ms)
    bench.take()
    assert answer.status == 200 and bench.kinds(1).count("RESCIND") == 4
    bench.advance(1000)
    assert (len(held(bench, "m-0000")), len(held(bench, "m-0001"))) == (3, 1)
    assert sharing.weight_infos(master) == [{"weight": 3.0, "role": "cache"}]
    sharing.update_weights(master, [{"role": "cache", "weight": 3.0}], bench.now_ms)
    assert bench.cluster.master.offers  # nothing changed, nothing is rescinded
    for wrong in ({"role": "cache", "weight": 0}, {"role": "a b", "weight": 1}, {"role": "cache"}):
        assert sharing.update_weights(master, [wrong], bench.now_ms).status == 400


def test_shares_are_of_the_tree_of_roles() -> None:
    """Two roles below one share its part, however many they are."""
    allocator = cluster(*["cpus:1;mem:32"] * 8)
    for name, role in (("F0", "a/x"), ("F1", "a/y"), ("F2", "b")):
        allocator.add_framework(name, (role,), set())
    taken = [grant.framework_id for grant in allocator.allocate(0)]
    assert [taken.count(name) for name in ("F0", "F1", "F2")] == [2, 2, 4]


def test_what_is_reserved_goes_to_its_role_and_the_rest_to_another() -> None:
    allocator = cluster("cpus:4;mem:64;cpus(a):2;mem(a):32")
    allocator.add_framework("F0", ("b",), set())
    allocator.add_framework("F1", ("a/x",), set())
    assert amounts(allocator.allocate(0)) == {
        ("F1", "S0"): {"cpus": 6.0, "mem": 96.0},
    }
    allocator.suppress("F1", ())
    allocator.recover(Grant("F1", "a/x", "S0", allocator.total("S0")), 0)
    assert amounts(allocator.allocate(1000)) == {("F0", "S0"): {"cpus": 4.0, "mem": 64.0}}


def refined() -> Resources:
    stack = [{"type": "STATIC", "role": "a"}, {"type": "DYNAMIC", "role": "a/b"}]
    item = {"name": "cpus", "type": "SCALAR", "scalar": {"value": 1}, "reservations": stack}
    return from_messages([item], None)


@pytest.mark.parametrize(
    ("capabilities", "total", "facts", "offered"),
    [
        (MULTI, "cpus:1;mem:32;gpus:1", Facts(), None),
        (MULTI | {"GPU_RESOURCES"}, "cpus:1;mem:32;gpus:1", Facts(), {"cpus": 1.0, "mem": 32.0, "gpus": 1.0}),
        (MULTI, "cpus:1;mem:32", Facts(region="r2"), None),
        (MULTI, "cpus:1;mem:32", Facts(region="r1"), {"cpus": 1.0, "mem": 32.0}),
        (MULTI, "cpus:1;mem:32", Facts(), {"cpus": 1.0, "mem": 32.0}),
        (MULTI | {"REGION_AWARE"}, "cpus:1;mem:32", Facts(region="r2"), {"cpus": 1.0, "mem": 32.0}),
        (MULTI, "cpus:1;mem:32;refined", Facts(), {"cpus": 2.0, "mem": 32.0}),
        (frozenset({"MULTI_ROLE"}), "cpus:1;mem:32;refined", Facts(), {"cpus": 1.0, "mem": 32.0}),
    ],
)
def test_what_a_framework_cannot_deal_with_is_kept_from_it(
    capabilities: frozenset[str], total: str, facts: Facts, offered: dict[str, float] | None
) -> None:
    allocator = Allocator(1000, "r1")
    resources = parse_resources(total.removesuffix(";refined"))
    allocator.add_agent("S0", resources + (refined() if total.endswith("refined") else EMPTY), facts)
    allocator.add_framework("F0", ("a/b",), set(), Demand(capabilities))
    expected = {} if offered is None else {("F0", "S0"): offered}
    assert amounts(allocator.allocate(0)) == expected


@pytest.mark.parametrize(
    ("minimum", "is_offered"),
    [
        (None, False),
        (({"disk": 50_000},), True),
        (({"disk": 500_000}, {"cpus": 1}), False),
        (({"disk": 50_000, "cpus": 10},), False),
        ((), True),
    ],
)
def test_offer_filters_say_what_is_enough(minimum: Any, is_offered: bool) -> None:
    """Reserved disk without cpus is offered only to who asked for it."""
    allocator = cluster("disk(cache):100")
    minimums = {} if minimum is None else {"cache": minimum}
    allocator.add_framework("F0", ("cache",), set(), Demand(MULTI, minimums))
    assert bool(allocator.allocate(0)) == is_offered


def test_constraints_keep_agents_from_a_role_until_they_change() -> None:
    allocator = cluster("cpus:1;mem:32", "cpus:1;mem:32")
    item = {
        "selector": {"pseudoattribute_type": "HOSTNAME"},
        "predicate": {"text_equals": {"value": "h1"}},
    }
    given = {"role_constraints": {"a": {"groups": [{"attribute_constraints": [item]}]}}}
    allocator.add_framework("F0", ("a",), set(), Demand(MULTI, {}, Constraints(given)))
    assert [grant.agent_id for grant in allocator.allocate(0)] == ["S1"]
    allocator.update_agent("S0", parse_resources("cpus:1;mem:32"), Facts("h1"))
    assert [grant.agent_id for grant in allocator.allocate(0)] == ["S0"]
    allocator.add_agent("S2", parse_resources("cpus:1;mem:32"), Facts("h2"))
    assert not allocator.allocate(0)
    allocator.update_framework("F0", ("a",), set(), Demand(MULTI))
    assert [grant.agent_id for grant in allocator.allocate(0)] == ["S2"]


def test_an_agent_that_is_not_active_is_not_offered() -> None:
    allocator = cluster("cpus:1;mem:32")
    allocator.add_framework("F0", ("a",), set())
    allocator.set_agent_active("S0", False)
    assert not allocator.allocate(0)
    allocator.set_agent_active("S0", True)
    (grant,) = allocator.allocate(0)
    allocator.remove_agent("S0")
    allocator.recover(grant, 0, refuse_ms=5000)
    assert allocator.capacity == {"cpus": 0, "mem": 0} and not allocator.allocate(9000)
    allocator.add_agent("S0", WHOLE)
    allocator.charge(grant)
    assert allocator.allocate(9000)[0].resources == WHOLE - grant.resources


def test_only_one_agent_is_offered_when_it_is_asked_for() -> None:
    allocator = cluster("cpus:1;mem:32", "cpus:1;mem:32")
    allocator.add_framework("F0", ("a",), set())
    assert [grant.agent_id for grant in allocator.allocate(0, "S1")] == ["S1"]
    assert [grant.agent_id for grant in allocator.allocate(0)] == ["S0"]


def test_offers_that_are_held_too_long_are_rescinded() -> None:
    bench = Bench(agents=2, offer_timeout_ms=3000)
    stream = bench.subscribe()
    first = bench.offers(stream)[0]["id"]
    bench.call(stream, "DECLINE", {"offer_ids": [first], "filters": {"refuse_seconds": 0}})
    bench.advance(2999)
    assert bench.kinds(stream) == ["SUBSCRIBED", "OFFERS", "OFFERS"]
    bench.advance(3000)
    assert bench.kinds(stream) == ["SUBSCRIBED", "OFFERS", "OFFERS", "RESCIND", "OFFERS"]
    bench.advance(4000)
    assert bench.kinds(stream)[5:] == ["RESCIND", "OFFERS"]


def test_the_domain_is_in_offers_and_in_the_masters_own_words() -> None:
    bench = Bench(agents=1, domain=("r1", "z1"))
    stream = bench.subscribe()
    domain = {"fault_domain": {"region": {"name": "r1"}, "zone": {"name": "z1"}}}
    assert bench.offers(stream)[0]["domain"] == domain
    assert bench.events[stream][0]["subscribed"]["master_info"]["domain"] == domain


def test_quotas_hold_whatever_happens() -> None:
    """At random: what is free and what is granted is all there is; no limit is passed; what is guaranteed stays free for its role."""
    rng = random.Random(7)
    for _ in range(80):
        allocator = cluster(*["cpus:3;mem:96;disk:10;disk(a):5"] * 4)
        for name, role in (("F0", "a"), ("F1", "b"), ("F2", "a/x")):
            allocator.add_framework(name, (role,), set(), Demand(MULTI))
        limit, guarantee = rng.randrange(0, 12) * 1000, rng.randrange(0, 12) * 1000
        allocator.set_quota("a", Quota({"cpus": limit}, {}))
        allocator.set_quota("gold", Quota({"cpus": guarantee}, {"cpus": guarantee}))
        granted: list[Grant] = []
        for now_ms in range(0, 12_000, 1000):
            granted += allocator.allocate(now_ms)
            for agent_id in ("S0", "S1", "S2", "S3"):
                held = [grant.resources for grant in granted if grant.agent_id == agent_id]
                assert sum(held, allocator.free(agent_id)) == allocator.total(agent_id)
            of_a = sum(g.resources.scalar("cpus") for g in granted if g.role in ("a", "a/x"))
            assert of_a <= limit and allocator.consumed("a").get("cpus", 0) == of_a
            free = sum(allocator.free(f"S{index}").scalar("cpus") for index in range(4))
            assert free >= min(guarantee, 12_000)
            rng.shuffle(granted)
            for _ in range(min(len(granted), rng.randrange(4))):
                allocator.recover(granted.pop(), now_ms, refuse_ms=rng.choice((0, 3000)))


def change(allocator: Allocator, what: str, number: int, name: str, part: bool) -> None:
    """Let something happen that concerns no grant."""
    if what == "revive":
        allocator.revive(name, ())
    elif what == "suppress":
        allocator.suppress(name, ())
    elif what == "active":
        allocator.set_agent_active(f"S{number}", part)


def test_looking_at_what_changed_finds_what_looking_everywhere_finds() -> None:
    """An agent that nobody wanted is left alone until something changes: at random, the same is granted as without that."""
    rng = random.Random(4)
    for _ in range(60):
        quick, slow = (cluster(*["cpus:2;mem:64;disk(b):9"] * 5) for _ in range(2))
        for allocator in (quick, slow):
            for name, roles in (("F0", ("a",)), ("F1", ("b", "a"))):
                allocator.add_framework(name, roles, set(), Demand(MULTI, {"b": ({"disk": 1},)}))
        granted: list[Grant] = []
        for now_ms in range(0, 20_000, 500):
            what = rng.choice(("recover", "recover", "revive", "suppress", "active", "nothing"))
            number, name, part = rng.randrange(5), rng.choice(("F0", "F1")), rng.random() < 0.3
            refuse_ms = rng.choice((0, 700, 3000, 6000))
            if what == "recover" and granted:
                whole = granted.pop(number % len(granted))
                limits = {"cpus": 1000} if part else {}
                grant = whole._replace(resources=whole.resources.chopped(limits))
                if grant != whole:
                    granted.append(whole._replace(resources=whole.resources - grant.resources))
                for allocator in (quick, slow):
                    allocator.recover(grant, now_ms, refuse_ms=refuse_ms)
            for allocator in (quick, slow):
                change(allocator, what, number, name, part)
            slow.set_weight("nobody's", 1.0)  # which lets it look everywhere
            found = quick.allocate(now_ms)
            assert found == slow.allocate(now_ms)
            granted += found

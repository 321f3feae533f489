"""Requirements: all are checked, with numbers; the same checks decide and explain."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stoker.executor.units import format_bytes
from stoker.framework.core import actions as a
from stoker.framework.core import entries as e
from stoker.framework.core import events as ev
from stoker.framework.core.catalog import Slot
from stoker.framework.core.explanations import fleet_json, offer_views, unsatisfied
from stoker.framework.core.requirements import (
    Requirements,
    failures,
    is_met,
    merge_offers,
    reason_text,
)
from stoker.framework.model import Constraint, FleetSpec, Offer, Resources
from support.core_stage import CLUSTER, MIB, Stage, actions_of, entries_of

RICH = Resources(4_000, 4096 * MIB, 4096 * MIB, ((31_000, 31_099),))


def staged(spec: FleetSpec, **options: int) -> Stage:
    stage = Stage(instances=spec.instances, **options)
    stage.spec = spec
    stage.lead()
    stage.subscribe()
    stage.tick()
    return stage


def spec_of(instances: int = 1, *constraints: Constraint, **fields: Any) -> FleetSpec:
    return FleetSpec(instances, 64 * MIB, role="stoker", constraints=constraints, **fields)


def offer_of(agent: str, resources: Resources = RICH, **fields: Any) -> Offer:
    return Offer(f"o-{agent}", agent, f"host-{agent}", resources, role=fields.pop("role", "stoker"), **fields)


def racked(agent: str, rack: str) -> Offer:
    return offer_of(agent, attributes=(("rack", rack),))


def checks_of(stage: Stage, *offers: Offer, wall_ms: int = 0) -> tuple[a.Check, ...]:
    assert stage.catalog.fleet is not None
    spec = stage.catalog.fleet
    requirements = Requirements(stage.catalog, spec, stage.settings, wall_ms)
    slot = Slot(0, spec.mem_bytes, disk_bytes=spec.disk_bytes)
    return requirements.evaluate(slot, merge_offers(offers, CLUSTER.hex()))


def test_all_requirements_are_checked_also_after_one_failed() -> None:
    stage = staged(spec_of(1, Constraint("rack", "IS", "a"), disk_bytes=8192 * MIB))
    checks = checks_of(stage, offer_of("x", Resources(100, MIB, MIB), role="other"))
    assert [c.requirement for c in failures(checks)] == [
        "role",
        "cpus",
        "memory",
        "ports",
        "disk",
        "rack:IS:a",
    ]
    assert reason_text(checks) == (
        f"role: other, not stoker; 0.1 of 0.5 cpus; 1.0 MiB of {format_bytes(stage.spec.resources().mem_bytes)} memory; 0 of 1 ports; 1.0 MiB of 8.0 GiB disk; "
        "rack:IS:a: no rack, not rack a"
    )
    assert is_met(checks_of(stage, replace(racked("x", "a"), resources=replace(RICH, disk_bytes=2**40))))


@pytest.mark.parametrize(
    ("starts_ms", "lasts_ms", "passes"),
    [
        (0, 0, True),
        (10_000_000, 0, True),  # far away
        (1_500_000, 0, False),
        (500_000, 0, False),  # now, without end
        (500_000, 100_000, True),  # it was
        (500_000, 600_000, False),
    ],
)
def test_an_agent_in_maintenance_or_soon_in_it_is_left_alone(
    starts_ms: int, lasts_ms: int, passes: bool
) -> None:
    stage = staged(spec_of(), maintenance_soon_ms=3_600_000)
    offer = offer_of("x", unavailable_from_ms=starts_ms, unavailable_for_ms=lasts_ms)
    assert is_met(checks_of(stage, offer, wall_ms=1_000_000)) is passes


def test_every_agent_of_any_of_our_roles_will_do() -> None:
    stage = staged(replace(spec_of(), roles_more=("more",)))
    assert is_met(checks_of(stage, offer_of("x", role="more")))


def test_groups_grow_evenly_and_never_beyond_what_the_constraint_allows() -> None:
    stage = staged(spec_of(6, Constraint("rack", "GROUP_BY", "3"), Constraint("rack", "MAX_PER", "2")))
    offers = [racked(f"{rack}{i}", rack) for rack in "abc" for i in range(9)]
    launches = entries_of(stage.do(ev.OffersReceived(tuple(offers))), e.LaunchPlanned)
    assert sorted(dict(x.attributes)["rack"] for x in launches) == list("aabbcc")


def test_unique_counts_launches_of_before_and_of_this_round() -> None:
    stage = staged(spec_of(3, Constraint("rack", "UNIQUE")))
    frame = stage.do(ev.OffersReceived((racked("a1", "a"), racked("a2", "a"), racked("b1", "b"))))
    assert sorted(x.agent_id for x in entries_of(frame, e.LaunchPlanned)) == ["a1", "b1"]
    stage.lead()  # the next leader has not seen those agents' offers
    stage.subscribe()
    frame = stage.do(ev.OffersReceived((racked("a3", "a"), racked("c1", "c"))))
    assert [x.agent_id for x in entries_of(frame, e.LaunchPlanned)] == ["c1"]


def test_an_agent_that_can_never_do_is_declined_for_long_others_for_a_moment() -> None:
    stage = staged(spec_of(1, Constraint("hostname", "UNLIKE", "host-no.*"), Constraint("rack", "UNIQUE")))
    frame = stage.do(ev.OffersReceived((offer_of("no", attributes=(("rack", "a"),)), offer_of("poor"))))
    times = {offer_id: d.refuse_ms for d in actions_of(frame, a.Decline) for offer_id in d.offer_ids}
    assert times == {"o-no": stage.settings.decline_ms, "o-poor": stage.settings.decline_busy_ms}


def test_a_changed_wish_asks_for_offers_anew() -> None:
    stage = staged(spec_of(1, Constraint("hostname", "IS", "host-yes")))
    stage.do(ev.OffersReceived((offer_of("no"),)))
    stage.pass_time(120_000)
    stage.ask(ev.FleetRequested(7, spec_of(1)))
    assert any(actions_of(frame, a.Revive) for frame in stage.pass_time(6_000))


def test_decisions_keep_their_checks_and_say_who_came_nearest() -> None:
    stage = staged(spec_of(2, Constraint("rack", "IS", "a")))
    far = offer_of("far", Resources(100, MIB))
    near = offer_of("near")
    stage.do(ev.OffersReceived((far, near, racked("good", "a"))))
    views = {row["agent_id"]: row for row in offer_views(stage.fleet)}
    assert views["good"]["decision"] == "accepted" and all(c["passed"] for c in views["good"]["checks"])
    (failed,) = [c for c in views["near"]["checks"] if not c["passed"]]
    assert failed == {"requirement": "rack:IS:a", "passed": False, "wanted": "rack a", "offered": "no rack"}
    assert len([c for c in views["far"]["checks"] if not c["passed"]]) == 4
    (row,) = fleet_json(stage.catalog, stage.fleet, stage.spec, stage.now_ms)["waiting"]
    assert row["nearest"]["agent_id"] == "near" and "the nearest, of host-near: rack:IS:a" in row["reason"]
    what, details = unsatisfied(stage.catalog, stage.fleet)
    assert what.endswith("the nearest fails in rack:IS:a") and "1 of 2 executors wait" in details
    assert len(offer_views(stage.fleet, 1)) == 1


def test_nothing_is_unsatisfied_once_all_run() -> None:
    stage = Stage(instances=1).start()
    assert unsatisfied(stage.catalog, stage.fleet) == ("", "")


def test_explanations_are_bounded_and_the_nearest_is_among_them() -> None:
    stage = staged(spec_of(1, Constraint("rack", "IS", "a")), offers_kept_max=10)
    near = offer_of("0-near")
    poor = [offer_of(f"{i:05}", Resources(100, MIB)) for i in range(1, 500)]
    frame = stage.do(ev.OffersReceived((near, *poor)))
    (decline,) = actions_of(frame, a.Decline)
    assert len(decline.offer_ids) == 500 and len(decline.explained) == 10
    assert len(stage.fleet.decisions) == 10
    assert stage.fleet.sightings.nearest[0].explained.agent_id == "0-near"


def test_changed_roles_are_told_to_the_master_once_and_again_after_it_was_lost() -> None:
    stage = Stage(instances=1).start()
    stage.ask(ev.FleetRequested(7, replace(stage.spec, role="new", roles_more=("*",))))
    told = [x for f in stage.pass_time(5_000) for x in actions_of(f, a.UpdateFramework)]
    assert [(x.roles, x.is_suppressed) for x in told] == [(("new", "*"), True)]
    stage.do(ev.Disconnected())
    stage.subscribe()
    assert [x.roles for f in stage.pass_time(5_000) for x in actions_of(f, a.UpdateFramework)] == [
        ("new", "*")
    ]


AMOUNTS = st.builds(
    Resources,
    st.integers(0, 2_000),
    st.integers(0, 600).map(lambda n: n * MIB),
    st.integers(0, 200).map(lambda n: n * MIB),
    st.sampled_from([(), ((31_000, 31_000),)]),
)
OFFERS = st.lists(
    st.tuples(
        st.integers(1, 6),
        st.sampled_from(["stoker", "other"]),
        AMOUNTS,
        st.sampled_from(["a", "b", "c", None]),
    ),
    max_size=12,
)
OPERATORS = st.sampled_from(
    [
        (),
        (Constraint("rack", "UNIQUE"),),
        (Constraint("rack", "MAX_PER", "2"), Constraint("rack", "GROUP_BY")),
    ]
)


@settings(deadline=None, max_examples=150)
@given(OFFERS, OPERATORS, st.integers(1, 5), st.sampled_from([0, 128 * MIB]))
def test_what_is_launched_meets_every_requirement_and_every_offer_is_answered_once(
    drawn: list[tuple[int, str, Resources, str | None]],
    constraints: tuple[Constraint, ...],
    instances: int,
    disk_bytes: int,
) -> None:
    stage = staged(spec_of(instances, *constraints, disk_bytes=disk_bytes))
    offers = [
        Offer(
            f"o{index}",
            f"a{agent}",
            f"a{agent}",
            amount,
            () if rack is None else (("rack", rack),),
            role=role,
        )
        for index, (agent, role, amount, rack) in enumerate(drawn)
    ]
    frame = stage.do(ev.OffersReceived(tuple(offers)))
    accepts, declines = actions_of(frame, a.Accept), actions_of(frame, a.Decline)
    answered = [i for x in (*accepts, *declines) for i in x.offer_ids]
    assert sorted(answered + list(stage.fleet.offers)) == sorted(offer.offer_id for offer in offers)
    by_id = {offer.offer_id: offer for offer in offers}
    used: list[str] = []
    for accept in accepts:
        taken = [by_id[i] for i in accept.offer_ids]
        assert {(o.agent_id, o.role) for o in taken} == {(accept.launch.agent_id, "stoker")}
        assert sum(o.resources.cpus_milli for o in taken) >= 500
        assert sum(o.resources.mem_bytes for o in taken) >= stage.spec.resources().mem_bytes
        assert sum(o.resources.disk_bytes for o in taken) >= disk_bytes
        assert any(o.resources.ports for o in taken) and is_met(accept.checks)
        assert (accept.volume is not None) == bool(disk_bytes)
        rack = dict(accept.launch.attributes).get("rack", "")
        assert rack or not constraints
        limit = {(): 9, 1: 1, 2: 2}[len(constraints) or ()]
        used.append(rack)
        assert used.count(rack) <= limit or not constraints
    assert len({x.launch.agent_id for x in accepts}) == len(accepts) <= instances
    if accepts:
        refused = {x.agent_id for d in declines for x in d.explained}
        assert all(not is_met(x.checks) for d in declines for x in d.explained), refused

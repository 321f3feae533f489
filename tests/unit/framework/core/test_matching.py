from __future__ import annotations

import pytest

from stoker.framework.core import actions as a
from stoker.framework.core import entries as e
from stoker.framework.core import events as ev
from stoker.framework.core.catalog import Slot
from stoker.framework.core.matching import choose_port
from stoker.framework.core.requirements import Requirements, merge_offers, merge_resources, reason_text
from stoker.framework.model import FleetSpec, Offer, Resources
from support.core_stage import MIB, Stage, actions_of, entries_of


def led(spec: FleetSpec | None = None, **fields: int) -> Stage:
    stage = Stage(**fields)
    stage.spec = spec or stage.spec
    stage.lead()
    stage.subscribe()
    return stage


def test_launches_one_executor_an_agent_and_journals_it_with_the_accept() -> None:
    stage = led(instances=2)
    frame = stage.offer("agent-1", "agent-2", "agent-3")
    launches, accepts = entries_of(frame, e.LaunchPlanned), actions_of(frame, a.Accept)
    assert [(x.slot_id, x.agent_id) for x in launches] == [(1, "agent-1"), (2, "agent-2")]
    assert [x.launch for x in accepts] == launches
    assert launches[0].task_id == "stoker-00010203-e1-s1-l1"
    assert len({x.secret for x in launches}) == 2 and all(len(x.secret) == 64 for x in launches)
    (decline,) = actions_of(frame, a.Decline)
    assert decline.refuse_ms == stage.settings.decline_busy_ms
    assert not stage.fleet.offers


def test_merges_an_agents_offers_of_one_role() -> None:
    stage = led(instances=1)
    parts = [
        stage.make_offer("agent-1", mem_bytes=200 * MIB, cpus_milli=100, ports=()),
        stage.make_offer("agent-1", mem_bytes=200 * MIB, cpus_milli=500),
    ]
    frame = stage.do(ev.OffersReceived(tuple(parts)))
    (accept,) = actions_of(frame, a.Accept)
    assert accept.offer_ids == ("offer-1", "offer-2")


def test_does_not_mix_roles_in_one_accept() -> None:
    stage = led(FleetSpec(1, 64 * MIB, role="x", roles_more=("y",)))
    offers = (stage.make_offer("agent-1", role="x"), stage.make_offer("agent-1", role="y"))
    frame = stage.do(ev.OffersReceived(offers))
    (accept,) = actions_of(frame, a.Accept)
    assert (accept.offer_ids, accept.role) == (("offer-1",), "x")
    (decline,) = actions_of(frame, a.Decline)
    assert decline.offer_ids == ("offer-2",)


@pytest.mark.parametrize(
    ("offered", "says"),
    [
        (Resources(2000, 100 * MIB, 0, ((1, 2),)), "100.0 MiB of 320.5 MiB memory"),
        (Resources(100, 1024 * MIB, 0, ((1, 2),)), "0.1 of 0.5 cpus"),
        (Resources(2000, 1024 * MIB), "0 of 1 ports"),
        (Resources(500, 321 * MIB, 0, ((1, 1),)), ""),
    ],
)
def test_says_in_numbers_what_an_offer_lacks(offered: Resources, says: str) -> None:
    stage = led(instances=1)
    wanted = Requirements(stage.catalog, FleetSpec(1, 64 * MIB), stage.settings, 0)
    agent = merge_offers([Offer("o1", "agent-1", "host-1", offered)], "")
    reason = reason_text(wanted.evaluate(Slot(1, 64 * MIB), agent))
    assert says in reason and bool(reason) == bool(says)


def test_declines_a_small_offer_for_a_short_time_and_keeps_the_reason() -> None:
    stage = led(instances=1)
    frame = stage.offer("agent-1", mem_bytes=10 * MIB)
    (decline,) = actions_of(frame, a.Decline)
    assert (decline.refuse_ms, not frame.entries) == (stage.settings.decline_busy_ms, True)
    assert "10.0 MiB of 320.5 MiB memory" in stage.fleet.decisions[-1].reason


def test_declines_for_long_and_suppresses_once_all_are_launched() -> None:
    stage = Stage(instances=1).start()
    assert stage.fleet.suppressed
    frame = stage.offer("agent-9")
    (decline,) = actions_of(frame, a.Decline)
    assert decline.refuse_ms == stage.settings.decline_ms
    assert "every wanted executor is launched" in decline.reason


def test_suppresses_again_where_offers_still_come() -> None:
    """SUPPRESS is unreliable."""
    stage = Stage(instances=1).start()
    assert not actions_of(stage.offer("agent-9"), a.Suppress)
    stage.pass_time(stage.settings.revive_interval_ms_min)
    assert actions_of(stage.offer("agent-8"), a.Suppress)


def test_fewer_agents_than_instances_wait_with_a_reason() -> None:
    stage = Stage(instances=3).start(agents=2)
    frame = stage.offer("agent-1", "agent-2")
    assert not frame.entries
    declines = actions_of(frame, a.Decline)
    reasons = {x.reason for d in declines for x in d.explained}
    assert reasons == {f"one executor an agent: slot {s} is on this one" for s in (1, 2)}
    assert {d.refuse_ms for d in declines} == {stage.settings.decline_ms}


def test_a_slot_prefers_the_agent_of_its_last_launch() -> None:
    stage = Stage(instances=2).start()
    for slot_id in (1, 2):
        launch = stage.launch(slot_id)
        stage.status(launch.task_id, "TASK_FAILED", agent_id=launch.agent_id)
    stage.tick(300)
    stage.tick()
    frame = stage.offer("agent-0", "agent-2", "agent-1")
    assert {x.slot_id: x.agent_id for x in entries_of(frame, e.LaunchPlanned)} == {1: "agent-1", 2: "agent-2"}


def test_a_slot_does_not_wait_for_its_last_agent() -> None:
    stage = Stage(instances=1).start()
    stage.status(stage.launch(1).task_id, "TASK_FAILED")
    stage.tick(500)
    (launch,) = entries_of(stage.offer("agent-5"), e.LaunchPlanned)
    assert launch.agent_id == "agent-5" and launch.launch_id == 2


def test_holds_an_offer_while_a_back_off_is_nearly_over() -> None:
    stage = Stage(instances=1).start()
    stage.do(ev.ExecutorEnded("agent-1", stage.launch(1).task_id, 9))
    frame = stage.offer("agent-1")
    assert not actions_of(frame, a.Decline) and len(stage.fleet.offers) == 1
    assert entries_of(stage.tick(250), e.LaunchPlanned)


def test_declines_for_a_short_time_while_a_back_off_is_long() -> None:
    stage = Stage(instances=1, relaunch_delay_ms_min=30_000).start()
    stage.do(ev.ExecutorEnded("agent-1", stage.launch(1).task_id, 9))
    (decline,) = actions_of(stage.offer("agent-1"), a.Decline)
    assert decline.refuse_ms == stage.settings.decline_busy_ms and "back-off" in decline.reason


def test_revives_when_an_executor_is_wanted_again_but_not_too_often() -> None:
    stage = Stage(instances=1).start()
    stage.pass_time(6_000)
    stage.do(ev.ExecutorEnded("agent-1", stage.launch(1).task_id, 9))
    assert actions_of(stage.tick(), a.Revive)
    frames = stage.pass_time(60_000)
    revives = [i * 500 for i, frame in enumerate(frames) if actions_of(frame, a.Revive)]
    assert len(revives) == 2 and revives[1] >= 2 * revives[0] >= stage.settings.revive_interval_ms_min


def test_never_revives_twice_within_the_interval_however_often_executors_die() -> None:
    stage = Stage(instances=1).start()
    revived: list[int] = []
    for _ in range(40):
        if stage.catalog.launches:
            stage.do(ev.ExecutorEnded("agent-1", stage.launch(1).task_id, 9))
        for frame in (stage.tick(), stage.offer("agent-1")):
            if actions_of(frame, a.Revive):
                revived.append(stage.now_ms)
    gaps = [after - before for before, after in zip(revived, revived[1:], strict=False)]
    assert min(gaps, default=5_000) >= stage.settings.revive_interval_ms_min


def test_offers_of_a_stream_that_ended_are_forgotten() -> None:
    stage = Stage(instances=1, relaunch_delay_ms_min=1000).start()
    stage.do(ev.ExecutorEnded("agent-1", stage.launch(1).task_id, 9))
    stage.offer("agent-1")
    assert stage.fleet.offers
    stage.do(ev.Disconnected())
    assert not stage.fleet.offers
    assert not stage.offer("agent-1").actions, "it came too late"
    stage.subscribe()
    assert not stage.fleet.offers


def test_a_rescinded_offer_is_not_used() -> None:
    stage = Stage(instances=1, relaunch_delay_ms_min=1000).start()
    stage.do(ev.ExecutorEnded("agent-1", stage.launch(1).task_id, 9))
    stage.offer("agent-1")
    stage.do(ev.OfferRescinded(next(iter(stage.fleet.offers))))
    assert not stage.tick(1_200).entries


def test_launches_in_bounded_slices() -> None:
    stage = led(instances=7, launches_frame_max=3)
    frame = stage.offer(*(f"agent-{i}" for i in range(7)))
    assert len(frame.entries) == 3 and not actions_of(frame, a.Decline)
    assert len(stage.tick().entries) == 3
    assert len(stage.tick().entries) == 1


def test_holds_no_more_offers_than_may_be_held() -> None:
    stage = led(instances=50, launches_frame_max=1, offers_held_max=10)
    stage.offer(*(f"agent-{i}" for i in range(50)))
    assert len(stage.fleet.offers) == 10


def test_ten_thousand_offers_are_one_decline_when_idle() -> None:
    stage = Stage(instances=1).start()
    frame = stage.offer(*(f"agent-{i + 2}" for i in range(10_000)))
    (decline,) = actions_of(frame, a.Decline)
    assert len(decline.offer_ids) == 10_000
    assert len(stage.fleet.decisions) == stage.settings.offers_kept_max


def test_resources_add_up_and_ports_are_chosen_among_all_ranges() -> None:
    both = merge_resources([Resources(1, 2, 3, ((5, 6),)), Resources(1, 2, 3, ((1, 1),))])
    assert both == Resources(2, 4, 6, ((1, 1), (5, 6)))
    assert [choose_port(both, i) for i in range(4)] == [1, 5, 6, 1]

"""Drains: what only the executor on an agent holds moves first; then it ends, and nothing is launched there any more."""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np
import pytest

from stoker.executor.messages import NO_HOME
from stoker.framework.core import actions as a
from stoker.framework.core import draining
from stoker.framework.core import entries as e
from stoker.framework.core import events as ev
from stoker.framework.core.assignments import current_assignment
from stoker.framework.core.catalog import Catalog, Dataset
from stoker.framework.core.codec import plain
from stoker.framework.core.job_table import Job
from stoker.framework.core.moves import LOOK_MS, SMALL_FLEET
from stoker.framework.core.views import agent_views, job_view
from stoker.framework.model import FleetSpec, JobState
from support.core_stage import BLOCK_BYTES, MIB, Stage, actions_of, bitmap_of, entries_of, residency_of


def ask(stage: Stage, agent: str = "agent-1", key: str = "") -> a.Answer:
    return stage.ask(ev.DrainRequested(7, agent, key))


def loaded(instances: int = 3, blocks: int = 16, **settings: int) -> tuple[Stage, Dataset]:
    """A fleet that holds all of a dataset, each block on its home."""
    stage = Stage(instances=instances, **settings).start()
    stage.ready(blocks=blocks)
    stage.job()
    dataset = stage.dataset()
    for slot_id in stage.catalog.slots:
        stage.hold(slot_id, dataset)
    stage.pass_time(1_000)
    assert stage.only_job().state == JobState.SUCCEEDED
    return stage, dataset


def report(stage: Stage, slot_id: int, dataset: Dataset, blocks: set[int], **fields: Any) -> None:
    """Let a slot say that it holds exactly these blocks, whatever is wanted there."""
    wanted = stage.wanted_on(slot_id, dataset) if not stage.catalog.is_out(slot_id) else set()
    residency = residency_of(dataset, blocks, wanted, **fields)
    stage.beat(stage.launch(slot_id), whole=True, datasets=(residency,))


def drain_job(stage: Stage) -> Any:
    (job,) = [job for job in stage.catalog.jobs.values() if job.kind == "drain"]
    return job


def view(stage: Stage) -> dict[str, Any]:
    return job_view(stage.catalog, stage.fleet, drain_job(stage), stage.now_ms)


def test_a_drain_moves_what_is_only_there_and_then_ends_the_executor() -> None:
    stage, dataset = loaded()
    leaving = stage.launch(1)
    held = stage.wanted_on(1, dataset)
    answer = ask(stage)
    assert answer.status == 201 and answer.body["state"] == "RUNNING" and answer.body["agent"] == "agent-1"
    assert answer.body["progress"]["bytes_total"] == len(held) * BLOCK_BYTES
    assert stage.catalog.is_out(1) and not stage.catalog.homes(dataset).max() > 1, "homes are elsewhere"
    report(stage, 1, dataset, held)
    frames = stage.pass_time(4_000)
    assert not any(entries_of(f, e.LaunchEnded) for f in frames), "it serves until nothing is only there"
    assert f"{len(held)} blocks" in view(stage)["message"] and "slot 1" in view(stage)["message"]
    (two, three) = (stage.wanted_on(slot_id, dataset) for slot_id in (2, 3))
    report(stage, 2, dataset, two)
    stage.tick()
    left = held - two
    assert view(stage)["progress"]["bytes"] == (len(held) - len(left)) * BLOCK_BYTES
    report(stage, 3, dataset, three)
    frame = stage.tick()
    (ended,) = entries_of(frame, e.LaunchEnded)
    assert ended.launch_id == leaving.launch_id and "drained" in ended.reason
    assert actions_of(frame, a.Kill) == [a.Kill(leaving.task_id, "agent-1", stage.settings.kill_grace_ms)]
    assert (
        drain_job(stage).state == JobState.SUCCEEDED
        and view(stage)["progress"]["bytes"] == len(held) * BLOCK_BYTES
    )
    stage.tick()
    assert 1 not in stage.fleet.backoffs, "it did not fail"


def test_a_drained_agent_gets_no_launch_until_the_drain_is_undone() -> None:
    stage = Stage(instances=2).start()
    ask(stage)
    stage.beat(stage.launch(1), whole=True)
    stage.pass_time(1_000)
    assert stage.catalog.slots[1].launch_id == 0
    frame = stage.offer("agent-1")
    assert not entries_of(frame, e.LaunchPlanned)
    decision = stage.fleet.decisions[-1]
    assert "drained" in str(decision) and "--undo" in str(decision)
    (row,) = [row for row in agent_views(stage.catalog, stage.fleet) if row["id"] == "agent-1"]
    assert row["drain"]["state"] == "DRAINED" and row["drain"]["cause"] == "operator"
    answer = stage.ask(ev.DrainUndoRequested(7, "agent-1"))
    assert answer.status == 200 and answer.body["drain"] is None
    frames = stage.pass_time(10_000)
    assert any(actions_of(f, a.Revive) for f in frames), "the agent was declined for long"
    assert entries_of(stage.offer("agent-1"), e.LaunchPlanned)


def test_its_slot_goes_elsewhere_and_comes_back_into_placement() -> None:
    stage, dataset = loaded(instances=2)
    report(stage, 1, dataset, set(range(16)))
    ask(stage)
    report(stage, 2, dataset, set(range(16)))
    stage.pass_time(1_000)
    assert entries_of(stage.offer("agent-9"), e.LaunchPlanned)
    stage.beat(stage.launch(1), whole=True)
    stage.tick()
    assert not stage.catalog.is_out(1) and stage.launch(1).agent_id == "agent-9"
    stage.beat(stage.launch(2))
    hints = stage.fleet.spares.of(dataset.dataset_id)
    places = {slot.slot_id: place for place, slot in enumerate(stage.catalog.slot_order())}
    spares = np.frombuffer(hints.spares, dtype="<u2")
    mine = stage.catalog.homes(dataset)[0] == places[1]
    assert (spares[mine] == places[2]).all() and (spares[~mine] == NO_HOME).all(), "slot 2 stood in for it"


def test_new_homes_are_told_who_holds_the_blocks_and_which_nobody_else_does() -> None:
    stage, dataset = loaded()
    held = stage.wanted_on(1, dataset)
    ask(stage)
    stage.beat(stage.launch(2))
    assignment = current_assignment(stage.catalog, stage.fleet)
    (named,) = assignment.datasets
    place = [slot.slot_id for slot in assignment.slots].index(1)
    spares = np.frombuffer(named.spares, dtype="<u2")
    groups = {block % len(spares) for block in held}
    assert {group for group in range(len(spares)) if spares[group] == place} == groups
    assert named.kept == bitmap_of(held)
    stage.ask(ev.DrainUndoRequested(7, "agent-1"))
    stage.pass_time(8_000)
    (named,) = current_assignment(stage.catalog, stage.fleet).datasets
    assert not named.spares and not named.kept, "nothing moves any more"


def test_blocks_that_nobody_wants_count_as_well() -> None:
    stage = Stage(instances=2).start()
    dataset = stage.ready()
    report(stage, 1, dataset, {3, 4, 5})
    report(stage, 2, dataset, {5})
    assert ask(stage).body["progress"]["bytes_total"] == 2 * BLOCK_BYTES
    assert not any(entries_of(f, e.LaunchEnded) for f in stage.pass_time(3_000))
    report(stage, 2, dataset, {3, 4, 5})
    assert entries_of(stage.tick(), e.LaunchEnded)


def test_a_replica_elsewhere_is_enough_but_not_that_of_a_silent_executor() -> None:
    stage, dataset = loaded(instances=2)
    every = set(range(16))
    report(stage, 1, dataset, every)
    report(stage, 2, dataset, every)
    for at_ms in range(0, stage.settings.heartbeat_timeout_ms + 2_000, 500):
        stage.tick()
        if at_ms % 1_000 == 0:
            stage.beat(stage.launch(1))
    ask(stage)
    assert not entries_of(stage.tick(), e.LaunchEnded), "slot 2 was not heard for a while"
    stage.beat(stage.launch(2))
    assert entries_of(stage.tick(), e.LaunchEnded)


def test_without_room_elsewhere_it_fails_says_what_does_not_fit_and_keeps_everything() -> None:
    stage, dataset = loaded(instances=2)
    held = stage.wanted_on(1, dataset)
    ask(stage)
    for _ in range(40):
        own = set(range(16)) - held
        report(stage, 1, dataset, held)
        report(stage, 2, dataset, own, unfit_blocks=len(held), wanted_settled=len(own))
        stage.tick(1_000)
    job = drain_job(stage)
    assert job.state == JobState.FAILED
    for word in (f"{len(held)} blocks", "alpha", "no room on slots 2", "slot 1 keeps them", "fleet set"):
        assert word in job.message, job.message
    stage.tick()
    assert not stage.catalog.drains and not stage.catalog.is_out(1) and stage.launch(1)


def test_the_only_executor_is_not_drained_of_what_it_holds() -> None:
    stage, dataset = loaded(instances=1)
    ask(stage)
    for _ in range(40):
        report(stage, 1, dataset, set(range(16)))
        stage.tick(1_000)
    assert drain_job(stage).state == JobState.FAILED and "no other executor" in drain_job(stage).message


@pytest.mark.parametrize("had_moved", [False, True])
def test_an_executor_that_dies_in_the_middle(had_moved: bool) -> None:
    stage, dataset = loaded(instances=2)
    held = stage.wanted_on(1, dataset)
    ask(stage)
    stage.tick()
    if had_moved:
        report(stage, 2, dataset, set(range(16)))
        stage.fleet.moves.look(stage.catalog, stage.fleet, stage.now_ms)
    stage.status(stage.launch(1).task_id, "TASK_FAILED")
    stage.tick()
    job = drain_job(stage)
    assert job.state == (JobState.SUCCEEDED if had_moved else JobState.FAILED)
    if not had_moved:
        assert f"{len(held)} blocks" in job.message and "under store" in job.message
    assert "agent-1" in stage.catalog.drains, "it stays drained"


def test_another_leader_goes_on_in_the_middle() -> None:
    stage, dataset = loaded()
    held = stage.wanted_on(1, dataset)
    ask(stage)
    report(stage, 1, dataset, held)
    launches = {slot_id: stage.launch(slot_id) for slot_id in (1, 2, 3)}
    stage.lead()
    stage.subscribe()
    for launch in launches.values():
        stage.status(launch.task_id, "TASK_RUNNING", agent_id=launch.agent_id)
    assert stage.catalog.is_out(1) and "agent-1" in stage.catalog.drains
    assert not any(entries_of(f, e.LaunchEnded) for f in stage.pass_time(3_000)), "nobody has reported yet"
    for slot_id in (1, 2, 3):
        report(stage, slot_id, dataset, stage.wanted_on(slot_id, dataset) if slot_id > 1 else held)
    stage.tick()
    assert drain_job(stage).state == JobState.SUCCEEDED
    assert set(stage.catalog.slots) == {1, 2, 3} and stage.catalog.slots[1].launch_id == 0


def test_cancelling_the_job_undoes_the_drain() -> None:
    stage, dataset = loaded()
    homes = stage.catalog.homes(dataset).copy()
    ask(stage)
    answer = stage.ask(ev.JobCancelRequested(7, drain_job(stage).job_id))
    assert answer.body["state"] == "CANCELLED" and answer.body["agent"] == "agent-1"
    stage.pass_time(1_000)
    assert not stage.catalog.drains and not stage.catalog.is_out(1)
    assert (stage.catalog.homes(dataset) == homes).all()


def test_is_idempotent_by_key_and_one_job_an_agent() -> None:
    stage, _ = loaded()
    first = ask(stage, key="k")
    assert ask(stage, key="k").body == first.body and ask(stage).body["id"] == first.body["id"]
    refused = ask(stage, "agent-2", key="k").refusal
    assert refused is not None and refused.code == "key_reused"
    assert ask(stage, "agent-2").status == 201


def test_an_agent_is_named_by_id_or_by_a_hostname_that_only_it_has() -> None:
    stage = Stage(instances=1).start()
    offers = [stage.make_offer(f"id-{i}") for i in range(3)]
    renamed = [
        type(offer)(offer.offer_id, offer.agent_id, host, offer.resources)
        for offer, host in zip(offers, ("solo", "twin", "twin"), strict=True)
    ]
    stage.do(ev.OffersReceived(tuple(renamed)))
    missing, twice = ask(stage, "nobody").refusal, ask(stage, "twin").refusal
    assert missing is not None and missing.status == 404
    assert twice is not None and twice.status == 409 and "id-1, id-2" in twice.hint
    assert ask(stage, "solo").body["agent"] == "id-0"
    assert ask(stage, "id-2").body["agent"] == "id-2"


def test_an_agent_without_an_executor_is_drained_at_once() -> None:
    stage = Stage(instances=1).start()
    stage.offer("agent-5")
    answer = ask(stage, "agent-5")
    assert answer.status == 201 and answer.body["state"] == "SUCCEEDED"
    stage.tick()
    assert stage.catalog.launches


def test_an_executor_on_its_way_up_is_ended_since_it_holds_nothing() -> None:
    stage = Stage(instances=1)
    stage.lead()
    stage.subscribe()
    stage.offer("agent-1")
    ask(stage)
    assert entries_of(stage.tick(), e.LaunchEnded)
    stage.tick()
    assert drain_job(stage).state == JobState.SUCCEEDED


def test_undoing_what_is_not_drained_is_refused() -> None:
    stage = Stage(instances=1).start()
    refused = stage.ask(ev.DrainUndoRequested(7, "agent-1")).refusal
    assert refused is not None and refused.status == 404


def test_a_drain_survives_a_snapshot() -> None:
    stage, _ = loaded()
    ask(stage)
    state = msgpack.unpackb(msgpack.packb(stage.catalog.snapshot(), default=plain), use_list=False)
    assert Catalog.restore(state).drains == stage.catalog.drains


def test_an_executor_that_is_drained_is_not_ended_for_its_size() -> None:
    """It is a source until its blocks are elsewhere; its slot's next one has the new size anyway."""
    stage, _ = loaded()
    ask(stage)
    leaving = stage.launch(1).launch_id
    stage.ask(ev.FleetRequested(7, FleetSpec(3, 96 * MIB)))
    stage.tick()
    stage.offer("agent-1", "agent-2", "agent-3")
    ended = [x for frame in stage.pass_time(3_000) for x in entries_of(frame, e.LaunchEnded)]
    assert (
        len(ended) == 1
        and "its slot 96.0 MiB memory now" in ended[0].reason
        and ended[0].launch_id != leaving
    )
    assert leaving in stage.catalog.launches


def test_an_executor_of_which_a_heartbeat_was_missed_holds_nothing_for_sure() -> None:
    stage = Stage(instances=2).start()
    dataset = stage.ready(blocks=4)
    stage.job()
    for slot_id in (1, 2):
        stage.hold(slot_id, stage.dataset(), {0})
    ask(stage)
    other = stage.launch(2)
    stage.sequences[other.launch_id] += 1  # it is lost: the other may have told there that it freed the block
    stage.beat(other)
    assert not entries_of(stage.tick(), e.LaunchEnded)
    stage.hold(2, dataset, {0})
    assert entries_of(stage.tick(), e.LaunchEnded)


def test_a_large_fleet_is_not_looked_at_with_every_tick() -> None:
    stage = Stage(instances=SMALL_FLEET + 1).start()
    dataset = stage.ready(blocks=2)
    stage.hold(1, dataset, {0, 1})
    ask(stage)
    stage.tick()
    move = stage.fleet.moves.by_agent["agent-1"]
    assert move.blocks == 2
    stage.hold(2, dataset, {0})
    stage.tick()
    assert move.blocks == 2, "counted a moment ago"
    stage.tick(LOOK_MS)
    assert move.blocks == 1


def test_jobs_are_looked_through_once_a_tick_whatever_drains(monkeypatch: pytest.MonkeyPatch) -> None:
    stage, _ = loaded()
    for agent in ("agent-1", "agent-2"):
        ask(stage, agent)
    looks: list[int] = []
    known = Catalog.active_jobs

    def counted(catalog: Catalog) -> list[Job]:
        looks.append(1)
        return known(catalog)

    monkeypatch.setattr(Catalog, "active_jobs", counted)
    draining.converge(stage.catalog, stage.fleet, ev.Stamp(9, stage.now_ms, 9), stage.settings)
    assert len(looks) == 1


def test_a_drain_that_goes_on_for_long_holds_up_no_forgetting() -> None:
    """Else the drains after it, and then every load, were refused in the end: there would be too many jobs."""
    stage, _ = loaded(jobs_kept_max=3, jobs_active_max=3)
    assert ask(stage).body["state"] == "RUNNING"
    stage.offer("agent-9")
    for number in range(20):
        assert ask(stage, "agent-9", f"k{number}").status == 201
        stage.tick()
    assert len(stage.catalog.jobs) == 1 + 3
    assert [job.paths for job in stage.catalog.active_jobs()] == [("agent-1",)]
    assert stage.job().status == 201


def test_drains_are_bounded_with_all_other_jobs() -> None:
    stage, _ = loaded(jobs_kept_max=3, jobs_active_max=2)
    stage.offer("agent-9")
    statuses = [ask(stage, "agent-9", f"k{number}").status for number in range(8)]
    assert statuses == [201] * 6 + [503] * 2
    refusal = stage.job().refusal
    assert refusal is not None and refusal.code == "overloaded", "there is one bound for all"
    stage.tick()
    assert ask(stage, "agent-9", "k7").status == 201

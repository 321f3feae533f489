"""Persistent volumes: planned before they are made, found again, given up after patience, destroyed only when asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from stoker.framework.core import actions as a
from stoker.framework.core import entries as e
from stoker.framework.core import events as ev
from stoker.framework.core.explanations import fleet_json
from stoker.framework.core.leftovers import LOST_MS
from stoker.framework.core.matching import THOUSANDTH_BYTES
from stoker.framework.core.operations import CREATE, DESTROY, RESERVE, UNRESERVE, operation_id
from stoker.framework.core.volumes import VolumeState
from stoker.framework.model import OperationStatus
from support.core_stage import CLUSTER, MIB, Stage, actions_of, entries_of
from support.volume_stage import DISK, ROLE, Disks, offered, reserved


def test_a_first_launch_plans_its_volume_in_the_same_frame_before_the_accept() -> None:
    stage = Disks().led()
    frame = stage.bring("agent-1")
    planned, launch = frame.entries
    assert planned == e.VolumePlanned(1, 1, "agent-1", "agent-1", ROLE, DISK, launch.wall_ms)
    assert isinstance(launch, e.LaunchPlanned)
    assert (launch.volume_id, launch.disk_bytes, launch.role) == (1, DISK, ROLE)
    (accept,) = actions_of(frame, a.Accept)
    assert (accept.volume, accept.reserved_volume_id, accept.launch) == (planned, 0, launch)
    assert stage.catalog.volumes[1].state is VolumeState.PLANNED


def test_an_operation_that_finished_makes_it_ready_and_is_acknowledged_after_the_entry() -> None:
    stage = Disks().led()
    stage.bring("agent-1")
    frame = stage.operated(1, CREATE, "OPERATION_FINISHED", uuid=b"u" * 16)
    assert frame.entries == (e.VolumeReady(1),)
    assert frame.actions == (a.AcknowledgeOperation(operation_id(CLUSTER, 1, CREATE), "agent-1", b"u" * 16),)
    again = stage.operated(1, CREATE, "OPERATION_FINISHED", uuid=b"u" * 16)
    assert not again.entries and again.actions == frame.actions, "it comes until it is acknowledged"


@pytest.mark.parametrize("kind", [RESERVE, CREATE])
@pytest.mark.parametrize("state", ["OPERATION_ERROR", "OPERATION_FAILED", "OPERATION_DROPPED"])
def test_a_refused_operation_forgets_the_volume_and_the_slot_gets_another(kind: str, state: str) -> None:
    stage = Disks().led()
    stage.bring("agent-1")
    (failed,) = stage.operated(1, kind, state).entries
    assert isinstance(failed, e.VolumeFailed) and "because" in failed.reason
    stage.operated(1, CREATE, state)  # the rest of the same ACCEPT
    stage.end()
    frame = stage.bring("agent-1")
    assert [x.volume_id for x in entries_of(frame, e.VolumePlanned)] == [2], "no id is used again"


def test_unknown_says_nothing_of_a_volume() -> None:
    """An older leader may have acknowledged it; a new master may not know it yet."""
    stage = Disks().led()
    stage.bring("agent-1")
    assert not stage.operated(1, CREATE, "OPERATION_UNKNOWN").entries


def test_somebody_elses_operation_is_acknowledged_and_changes_nothing() -> None:
    stage = Disks().with_volume()
    status = OperationStatus("v1-create", "OPERATION_ERROR", "agent-1", "", b"u" * 16)
    frame = stage.do(ev.OperationUpdated(status))
    assert not frame.entries and len(frame.actions) == 1


def test_planned_volumes_are_asked_for_after_a_take_over_ever_more_rarely() -> None:
    stage = Disks().led()
    stage.bring("agent-1")
    stage.lead()
    stage.subscribe()
    asked = []
    for frame in stage.pass_time(60_000, beating=False):
        asked += [(stage.now_ms, x) for x in actions_of(frame, a.ReconcileOperations)]
    assert 3 <= len(asked) <= 7
    assert asked[0][1].operations == ((operation_id(CLUSTER, 1, CREATE), "agent-1"),)
    stage.operated(1, CREATE, "OPERATION_FINISHED")
    stage.beat(stage.launch(1), whole=True)
    assert not any(actions_of(f, a.ReconcileOperations) for f in stage.pass_time(700_000))


def test_a_running_task_has_its_volume() -> None:
    """The operation's own update may be lost with its agent."""
    stage = Disks().led()
    stage.bring("agent-1")
    frame = stage.status(stage.launch(1).task_id, "TASK_RUNNING")
    assert frame.entries == (e.VolumeReady(1),)


def test_a_slot_is_launched_where_its_volume_is_and_nowhere_else() -> None:
    stage = Disks(instances=2).led()
    stage.bring("agent-1")
    stage.bring("agent-2")
    for volume_id in (1, 2):
        stage.operated(volume_id, CREATE, "OPERATION_FINISHED")
    stage.end(2)
    assert not stage.bring("agent-9").entries, "another agent is none of its concern"
    waiting = fleet_json(stage.catalog, stage.fleet, stage.spec, stage.now_ms)["waiting"]
    assert "its volume is on agent-2" in waiting[0]["reason"]
    frame = stage.bring("agent-2", volumes=(offered(2),))
    (launch,) = entries_of(frame, e.LaunchPlanned)
    assert (launch.slot_id, launch.agent_id, launch.volume_id) == (2, "agent-2", 2)
    (accept,) = actions_of(frame, a.Accept)
    assert accept.volume is None and len(frame.entries) == 1


def test_fragments_of_an_agents_offer_are_put_together() -> None:
    stage = Disks().with_volume()
    stage.end()
    only_volume = replace(
        stage.disk_offer("agent-1", disk_bytes=0, mem_bytes=0, cpus_milli=0, ports=()), volumes=(offered(1),)
    )
    frame = stage.do(ev.OffersReceived((only_volume, stage.disk_offer("agent-1"))))
    (accept,) = actions_of(frame, a.Accept)
    assert len(accept.offer_ids) == 2 and accept.launch.volume_id == 1


def test_an_agent_without_room_is_waited_for_and_told_of() -> None:
    stage = Disks().with_volume()
    stage.end()
    frame = stage.bring("agent-1", volumes=(offered(1),), cpus_milli=100)
    assert not frame.entries
    (row,) = fleet_json(stage.catalog, stage.fleet, stage.spec, stage.now_ms)["waiting"]
    assert "0.1 of 0.5 cpus" in row["reason"] and row["nearest"]["agent_id"] == "agent-1"
    failed = [c for c in row["nearest"]["checks"] if not c["passed"]]
    assert failed == [{"requirement": "cpus", "passed": False, "wanted": "0.5", "offered": "0.1"}]


def test_a_volume_is_given_up_after_patience_and_kept_for_who_comes_there() -> None:
    stage = Disks(volume_patience_ms=60_000).with_volume()
    stage.end()
    frames = stage.pass_time(61_000, beating=False)
    (released,) = [x for f in frames for x in entries_of(f, e.VolumeReleased)]
    assert "agent-1" in released.reason
    frame = stage.bring("agent-2")
    assert [x.volume_id for x in entries_of(frame, e.VolumePlanned)] == [2]
    stage.beat(stage.launch(1), whole=True)
    assert stage.catalog.volumes[1].slot_id == 0
    stage.fleet_set(instances=2)
    frame = stage.bring("agent-1", volumes=(offered(1),))
    assert frame.entries[0] == e.VolumeAdopted(1, 2)
    (launch,) = entries_of(frame, e.LaunchPlanned)
    assert (launch.slot_id, launch.volume_id) == (2, 1)


def test_an_agent_with_a_volume_to_adopt_is_taken_before_others() -> None:
    stage = Disks(volume_patience_ms=10_000).with_volume()
    stage.end()
    stage.pass_time(11_000, beating=False)
    frame = stage.do(
        ev.OffersReceived((stage.disk_offer("agent-0"), stage.disk_offer("agent-1", volumes=(offered(1),))))
    )
    (launch,) = entries_of(frame, e.LaunchPlanned)
    assert (launch.agent_id, launch.volume_id) == ("agent-1", 1)


def test_a_slot_does_not_wait_for_a_volume_on_a_drained_agent() -> None:
    stage = Disks().with_volume()
    stage.end()
    stage.catalog.apply(e.AgentDrainSet("agent-1", "agent-1", "an operator asked for it"))
    (released,) = entries_of(stage.tick(), e.VolumeReleased)
    assert "drained" in released.reason
    assert entries_of(stage.bring("agent-2"), e.LaunchPlanned)


def test_a_volume_that_vanished_is_forgotten_once_its_agent_has_offered_without_it_again_and_again() -> None:
    stage = Disks().with_volume()
    stage.end()
    first = stage.bring("agent-1")
    assert not first.entries and not stage.tick(6_000).entries, "once is not enough"
    (failed,) = [x for f in stage.miss() for x in entries_of(f, e.VolumeFailed)]
    assert "it is gone" in failed.reason
    assert [x.volume_id for x in stage.catalog.volumes.values()] == [2], "the slot has another"


def test_a_volume_in_use_is_not_missed() -> None:
    stage = Disks(instances=2).with_volume()
    stage.miss()
    assert 1 in stage.catalog.volumes
    stage.end()
    for frame in [stage.bring("agent-1", executor_ids=("stoker-x",)) for _ in range(5) if stage.tick(2_500)]:
        assert not entries_of(frame, e.VolumeFailed), "an executor that is there yet has it"


def test_a_volume_in_another_roles_offer_is_not_missed() -> None:
    stage = Disks()
    stage.spec = replace(stage.spec, roles_more=("other",))
    stage.with_volume().end()
    for _ in range(6):
        offer = replace(stage.disk_offer("agent-1"), role="other")
        assert not stage.do(ev.OffersReceived((offer,))).entries
        stage.tick(2_500)
    assert 1 in stage.catalog.volumes


def test_disk_reserved_for_a_volume_that_was_never_made_is_used_for_the_next() -> None:
    stage = Disks().led()
    stage.bring("agent-1")
    stage.operated(1, CREATE, "OPERATION_ERROR")
    stage.end()
    frame = stage.bring("agent-1", disk_bytes=0, reserved_disk=(reserved(1),))
    (accept,) = actions_of(frame, a.Accept)
    assert accept.reserved_volume_id == 1 and accept.volume is not None and accept.volume.volume_id == 2


def test_too_little_reserved_disk_is_not_used() -> None:
    stage = Disks().led()
    stage.bring("agent-1")
    stage.operated(1, CREATE, "OPERATION_ERROR")
    stage.end()
    assert not stage.bring("agent-1", disk_bytes=0, reserved_disk=(reserved(1, disk_bytes=DISK - 1),)).entries


def test_volumes_of_another_cluster_are_nobodys_business() -> None:
    stage = Disks().led()
    other = offered(1, cluster=bytes(16))
    frame = stage.bring("agent-1", volumes=(other,))
    assert [x.volume_id for x in entries_of(frame, e.VolumePlanned)] == [1]
    assert not stage.fleet.sightings.unknown and not actions_of(frame, a.DestroyVolume)


def test_a_volume_that_the_journal_does_not_know_is_kept_and_told_of() -> None:
    stage = Disks(instances=0).led()
    stage.catalog.apply(e.JournalRestored(9, 100, 2, 0))
    frame = stage.bring("agent-1", volumes=(offered(5),))
    assert not actions_of(frame, a.DestroyVolume) and not frame.entries
    volumes = fleet_json(stage.catalog, stage.fleet, stage.spec, stage.now_ms)["volumes"]
    assert volumes["unknown"] == [{"agent_id": "agent-1", "volume": 5, "role": ROLE, "disk_bytes": DISK}]
    stage.fleet_set(disk_bytes=0)
    assert not actions_of(stage.bring("agent-1", volumes=(offered(5),)), a.DestroyVolume)
    stage.bring("agent-1")
    assert not stage.fleet.sightings.unknown, "somebody else has destroyed it"


def test_a_volume_of_a_later_journal_stops_everything() -> None:
    stage = Disks().led()
    frame = stage.bring("agent-1", volumes=(offered(5),))
    assert not frame.entries and "volume 5, this journal knows none after 0" in stage.fleet.newer_journal


# --- destruction, only when somebody asked for less


def doomed(stage: Stage) -> list[int]:
    return [v.volume_id for v in stage.catalog.volumes.values() if v.state is VolumeState.DOOMED]


@pytest.mark.parametrize("changes", [{"disk_bytes": 0}, {"disk_bytes": 2 * DISK}, {"instances": 0}], ids=str)
def test_less_or_other_disk_dooms_volumes_which_are_destroyed_once_free(changes: dict[str, Any]) -> None:
    stage = Disks().with_volume()
    assert stage.fleet_set(**changes).refusal is None
    stage.tick()
    stage.bring("agent-1")
    stage.pass_time(3_000)
    assert doomed(stage) == [1]
    task_id = next(iter(stage.fleet.endings), "")
    assert task_id, "its executor ends first"
    stage.status(task_id, "TASK_KILLED")
    frame = stage.bring("agent-1", volumes=(offered(1),))
    (destroy,) = actions_of(frame, a.DestroyVolume)
    assert (destroy.volume_id, destroy.agent_id, destroy.role) == (1, "agent-1", ROLE)
    stage.operated(1, DESTROY, "OPERATION_FINISHED", attempt=destroy.attempt)
    assert 1 in stage.catalog.volumes, "its disk is not given back yet"
    frame = stage.operated(1, UNRESERVE, "OPERATION_FINISHED", attempt=destroy.attempt)
    assert frame.entries == (e.VolumeRemoved(1),)


def test_a_doomed_volume_is_tried_again_until_nothing_of_it_is_left() -> None:
    stage = Disks().with_volume()
    stage.fleet_set(instances=0)
    attempts = set()
    stage.status(next(iter(stage.fleet.endings)), "TASK_KILLED")
    for _ in range(3):
        (destroy,) = actions_of(stage.bring("agent-1", volumes=(offered(1),)), a.DestroyVolume)
        attempts.add(destroy.attempt)
        assert not actions_of(stage.bring("agent-1", volumes=(offered(1),)), a.DestroyVolume), "not at once"
        stage.pass_time(20_000)
    assert len(attempts) == 3, "operations are told apart"
    (rest,) = actions_of(stage.bring("agent-1", reserved_disk=(reserved(1),)), a.DestroyVolume)
    assert rest.volume_id == 1
    assert [x for f in stage.miss() for x in f.entries] == [e.VolumeRemoved(1)], "no answer, but it is gone"


def test_a_change_that_is_undone_while_an_executor_runs_on_its_volume_has_harmed_nothing() -> None:
    stage = Disks(instances=2).led()  # the second has no agent: no executor is ended for the sake of a size
    stage.bring("agent-1")
    stage.beat(stage.launch(1), whole=True)
    stage.operated(1, CREATE, "OPERATION_FINISHED")
    stage.fleet_set(disk_bytes=2 * DISK)
    stage.pass_time(3_000)
    stage.fleet_set(disk_bytes=DISK)
    stage.pass_time(3_000)
    assert not doomed(stage) and stage.launch(1).volume_id == 1


def test_an_executor_on_a_doomed_volume_makes_room_for_it_to_go() -> None:
    stage = Disks().with_volume()
    stage.catalog.apply(e.VolumeDoomed(1, "the cluster was to be uninstalled"))
    stage.tick()
    assert not stage.catalog.launches


def test_offers_are_wanted_while_a_volume_is_to_be_destroyed_and_then_no_more() -> None:
    stage = Disks().with_volume()
    stage.pass_time(10_000)
    assert stage.fleet.suppressed
    stage.fleet_set(instances=0)
    frames = stage.pass_time(6_000)
    assert any(actions_of(frame, a.Revive) for frame in frames)
    stage.catalog.apply(e.VolumeRemoved(1))
    assert any(actions_of(frame, a.Suppress) for frame in stage.pass_time(2_000))


def test_what_was_reserved_without_a_volume_is_given_back_when_there_is_no_ssd_tier() -> None:
    stage = Disks().led()
    stage.bring("agent-1")
    stage.operated(1, CREATE, "OPERATION_ERROR")
    stage.fleet_set(disk_bytes=0, instances=1)
    frame = stage.bring("agent-2", reserved_disk=(reserved(1),))
    assert [x.volume_id for x in actions_of(frame, a.DestroyVolume)] == [1]


def test_a_role_that_volumes_are_reserved_for_is_not_dropped() -> None:
    stage = Disks().with_volume()
    refused = stage.fleet_set(role="other").refusal
    assert refused is not None and refused.code == "role_in_use" and "1 volumes" in refused.message
    assert stage.fleet_set(role="other", roles_more=(ROLE,)).refusal is None


def test_an_agent_that_is_gone_for_good_takes_its_volume_with_it() -> None:
    stage = Disks().with_volume()
    frame = stage.status(stage.launch(1).task_id, "TASK_GONE_BY_OPERATOR")
    assert entries_of(frame, e.VolumeFailed) and not stage.catalog.volumes


def test_a_take_over_knows_all_volumes() -> None:
    stage = Disks(instances=2).with_volume()
    before = dict(stage.catalog.volumes)
    stage.lead()
    assert stage.catalog.volumes == before and stage.catalog.volumes.of_slot(1) is not None
    assert [v.volume_id for v in stage.catalog.volumes.on_agent("agent-1")] == [1]
    twin = stage.catalog.copy()
    twin.volumes.apply(e.VolumeReleased(1, "why"))
    assert stage.catalog.volumes.of_slot(1) is not None, "a copy is its own"


def back(stage: Disks, agent_id: str = "agent-9", volume_id: int = 1, **fields: Any) -> a.Frame:
    """The agent of volume 1 comes back under another id."""
    offer = stage.disk_offer(agent_id, volumes=(offered(volume_id),), **fields)
    return stage.do(ev.OffersReceived((replace(offer, hostname="agent-1"),)))


def test_a_volume_whose_agent_comes_back_under_another_id_is_found_again() -> None:
    stage = Disks().with_volume()
    stage.status(stage.launch(1).task_id, "TASK_GONE")
    stage.do(ev.AgentRemoved("agent-1"))
    stage.tick(5_000)
    frame = back(stage, disk_bytes=0)
    assert frame.entries == (e.VolumeMoved(1, "agent-9", "agent-1"),) and not frame.actions
    (launch,) = entries_of(stage.tick(), e.LaunchPlanned)
    assert (launch.agent_id, launch.volume_id) == ("agent-9", 1)
    stage.lead()
    assert stage.catalog.volumes[1].agent_id == "agent-9" and not stage.catalog.volumes.on_agent("agent-1")


def test_a_volume_that_is_in_use_does_not_move() -> None:
    stage = Disks(instances=2).with_volume()
    assert not entries_of(back(stage), e.VolumeMoved)
    assert stage.catalog.volumes[1].agent_id == "agent-1"


def test_a_doomed_volume_is_destroyed_where_it_came_back() -> None:
    stage = Disks().with_volume()
    stage.end()
    stage.catalog.apply(e.VolumeDoomed(1, "the fleet was set to have no SSD tier"))
    assert entries_of(back(stage), e.VolumeMoved)
    (destroy,) = actions_of(stage.tick(), a.DestroyVolume)
    assert (destroy.volume_id, destroy.agent_id) == (1, "agent-9")


def test_a_volume_that_came_back_where_another_slot_runs_is_kept_and_its_slot_goes_elsewhere() -> None:
    stage = Disks(instances=2).with_volume()
    stage.bring("agent-2")
    stage.end()
    frame = back(stage, "agent-2")
    assert [type(x) for x in frame.entries] == [e.VolumeMoved, e.VolumeReleased]
    stage.tick()
    assert [x.slot_id for x in entries_of(stage.bring("agent-3"), e.VolumePlanned)] == [1]


def test_an_agent_marked_gone_while_mesos_drained_it_fails_the_volume_and_releases_none() -> None:
    stage = Disks().with_volume()
    frame = stage.status(
        stage.launch(1).task_id, "TASK_GONE_BY_OPERATOR", reason="REASON_AGENT_DRAINING", uuid=b"u"
    )
    assert [type(x) for x in frame.entries] == [e.VolumeFailed, e.LaunchEnded]
    assert not stage.catalog.volumes and not stage.catalog.launches


def lost(stage: Disks) -> Disks:
    """The agent of volume 1 dies for good, then the fleet is set to have no SSD tier."""
    stage.status(stage.launch(1).task_id, "TASK_FAILED")
    stage.do(ev.AgentRemoved("agent-1"))
    stage.fleet_set(disk_bytes=0)
    stage.tick()
    assert stage.catalog.volumes[1].state is VolumeState.DOOMED
    stage.tick(3_000)
    stage.offer("agent-2", role=ROLE)
    stage.beat(stage.launch(1), whole=True)
    return stage


def test_a_doomed_volume_of_an_agent_that_is_gone_is_looked_for_and_then_no_more() -> None:
    stage = lost(Disks().with_volume())
    frames = [stage.tick(10_000) for _ in range(60)]
    assert any(actions_of(f, a.Revive) for f in frames), "it may come back soon"
    frames = [stage.tick(10_000) for _ in range(60)]
    assert not any(actions_of(f, a.Revive) for f in frames) and stage.fleet.suppressed


def test_a_doomed_volume_of_an_agent_that_is_gone_does_not_hold_the_role() -> None:
    stage = lost(Disks().with_volume())
    assert stage.fleet_set(role="other").status == 200
    for other in (Disks().with_volume(), stage):
        if other is stage:  # a new leader has seen no agents yet
            stage.catalog.apply(e.VolumePlanned(2, 0, "agent-1", "agent-1", ROLE, DISK, 0))
            stage.catalog.apply(e.VolumeDoomed(2, "test"))
            other.do(ev.Subscribed("framework-1", "master-1"))
        refused = other.fleet_set(role="third").refusal
        assert refused is not None and refused.code == "role_in_use"


def test_the_only_agent_that_is_gone_does_not_hold_the_role_either() -> None:
    stage = Disks().with_volume()
    stage.status(stage.launch(1).task_id, "TASK_FAILED")
    stage.do(ev.AgentRemoved("agent-1"))
    stage.fleet_set(disk_bytes=0)
    stage.pass_time(12_000, beating=False)
    assert stage.fleet_set(role="other").status == 200


def test_it_is_asked_what_became_of_an_idle_volume_whose_agent_is_gone() -> None:
    stage = lost(Disks().with_volume())
    asked = [x for _ in range(120) for x in actions_of(stage.tick(10_000), a.ReconcileOperations)]
    assert asked and asked[0].operations == ((operation_id(CLUSTER, 1, CREATE), "agent-1"),)
    assert stage.operated(1, CREATE, "OPERATION_GONE_BY_OPERATOR").entries == (e.VolumeRemoved(1),)


def test_a_planned_volume_that_an_old_master_does_not_know_was_never_made() -> None:
    stage = Disks().led()
    stage.bring("agent-1")
    stage.tick(stage.settings.unknown_patience_ms)
    assert not stage.operated(1, CREATE, "OPERATION_UNKNOWN").entries, "its launch lives"
    stage.end()
    stage.do(ev.Subscribed("framework-1", "master-2"))
    assert not stage.operated(1, CREATE, "OPERATION_UNKNOWN").entries, "a new master does not know yet"
    stage.tick(stage.settings.unknown_patience_ms)
    assert not stage.operated(1, RESERVE, "OPERATION_UNKNOWN").entries, "it was made on what is reserved"
    (failed,) = stage.operated(1, CREATE, "OPERATION_UNKNOWN").entries
    assert isinstance(failed, e.VolumeFailed)
    assert [x.volume_id for x in entries_of(stage.bring("agent-2"), e.VolumePlanned)] == [2]


def test_an_executor_that_is_not_heard_yet_may_hold_what_is_on_its_volume() -> None:
    stage = Disks().with_volume()
    stage.end()
    stage.bring("agent-1", volumes=(offered(1),))
    stage.ask(ev.DrainRequested(7, "agent-1", ""))
    assert not any(entries_of(f, e.LaunchEnded) for f in stage.pass_time(3_000, beating=False))
    stage.beat(stage.launch(1), whole=True)
    assert any(entries_of(f, e.LaunchEnded) for f in stage.pass_time(3_000))


def test_an_executor_that_is_not_heard_yet_holds_nothing_on_a_volume_that_was_made_for_it() -> None:
    stage = Disks().led()
    stage.bring("agent-1")
    stage.ask(ev.DrainRequested(7, "agent-1", ""))
    assert any(entries_of(f, e.LaunchEnded) for f in stage.pass_time(3_000, beating=False))


DAY_MS = 86_400_000


def given_up(**settings: int) -> Disks:
    """Volume 1 of agent-1 is no slot's any more; the slot runs with volume 2."""
    stage = Disks(volume_patience_ms=60_000, **settings).with_volume()
    stage.end()
    stage.pass_time(61_000, beating=False)
    stage.bring("agent-2")
    stage.operated(2, CREATE, "OPERATION_FINISHED")
    stage.beat(stage.launch(1), whole=True)
    return stage


def days_later(stage: Disks, days: int) -> list[a.Frame]:
    """A leader begins then, and listens for a while; agent-2 is there."""
    stage.now_ms += days * DAY_MS
    stage.led()
    return [stage.bring("agent-2"), *stage.pass_time(LOST_MS + 1_000)]


def test_a_volume_without_a_slot_is_forgotten_once_its_agent_is_away_for_very_long() -> None:
    stage = given_up(volumes_kept_ms=10 * DAY_MS)
    assert stage.catalog.volumes[1].left_ms > 0
    assert not any(entries_of(f, e.VolumesForgotten) for f in days_later(stage, 9))
    frames = days_later(stage, 2)
    assert [x for f in frames for x in entries_of(f, e.VolumesForgotten)] == [e.VolumesForgotten((1,))]
    assert 1 not in stage.catalog.volumes and not stage.catalog.volumes.on_agent("agent-1")
    frame = stage.bring("agent-1", volumes=(offered(1),))
    assert not actions_of(frame, a.DestroyVolume)
    assert stage.fleet.sightings.unknown_volumes() == [("agent-1", offered(1))], "kept, and told of"


def test_a_volume_of_an_agent_that_makes_offers_is_not_forgotten() -> None:
    stage = given_up(volumes_kept_ms=DAY_MS)
    stage.now_ms += 5 * DAY_MS
    stage.led()
    stage.bring("agent-1", volumes=(offered(1),))
    assert not any(entries_of(f, e.VolumesForgotten) for f in stage.pass_time(LOST_MS + 1_000))
    assert set(stage.catalog.volumes) == {1, 2}


def test_a_doomed_volume_of_an_agent_that_never_returns_is_forgotten_too() -> None:
    stage = Disks(volumes_kept_ms=DAY_MS).with_volume()
    stage.fleet_set(instances=0)
    stage.pass_time(10_000, beating=False)
    assert stage.catalog.volumes[1].state is VolumeState.DOOMED
    assert any(entries_of(f, e.VolumesForgotten) for f in days_later(stage, 2)) and not stage.catalog.volumes


@pytest.mark.parametrize(
    "disk_bytes", [DISK - MIB, DISK + MIB, DISK - 1, DISK + THOUSANDTH_BYTES], ids=lambda x: str(x - DISK)
)
def test_disk_reserved_for_a_volume_of_another_size_is_given_back(disk_bytes: int) -> None:
    """It was left by a failed CREATE before the fleet's disk was changed: nothing would ever use it."""
    stage = Disks().led()
    stage.bring("agent-1")
    stage.operated(1, CREATE, "OPERATION_ERROR")
    stage.end()
    left = reserved(1, disk_bytes=disk_bytes)
    frame = stage.bring("agent-1", reserved_disk=(left,))
    (destroy,) = actions_of(frame, a.DestroyVolume)
    assert destroy.volume_id == 1 and not frame.entries
    assert entries_of(stage.bring("agent-1"), e.LaunchPlanned), "then its disk is there for the next"


def test_disk_reserved_in_mesos_thousandths_of_a_mebibyte_is_of_the_fleets_size() -> None:
    stage = Disks().led()
    stage.bring("agent-1")
    stage.operated(1, CREATE, "OPERATION_ERROR")
    stage.end()
    left = reserved(1, disk_bytes=DISK + THOUSANDTH_BYTES - 1)
    (accept,) = actions_of(stage.bring("agent-1", reserved_disk=(left,)), a.Accept)
    assert accept.reserved_volume_id == 1


def test_disk_that_a_newer_journal_may_have_reserved_is_left_alone() -> None:
    stage = Disks().with_volume()
    for volume_id in (stage.catalog.volume_id_next, 1):
        frame = stage.bring("agent-2", reserved_disk=(reserved(volume_id, disk_bytes=DISK // 2),))
        assert not actions_of(frame, a.DestroyVolume), volume_id

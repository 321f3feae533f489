"""Volumes that Mesos' operator destroyed, and those whose agent is away: what their slots do, and what is said."""

from __future__ import annotations

from stoker.framework.core import actions as a
from stoker.framework.core import entries as e
from stoker.framework.core import events as ev
from stoker.framework.core.explanations import fleet_json
from support.core_stage import actions_of, entries_of
from support.volume_stage import Disks, reserved


def test_a_volume_whose_reservation_is_all_that_is_left_is_gone_and_its_disk_is_used_again() -> None:
    stage = Disks().with_volume()
    stage.end()
    frames = []
    for _ in range(4):
        frames += [stage.bring("agent-1", disk_bytes=0, reserved_disk=(reserved(1),)), stage.tick(2_500)]
    (failed,) = [x for f in frames for x in entries_of(f, e.VolumeFailed)]
    assert failed.volume_id == 1 and "it is gone" in failed.reason
    (accept,) = [x for f in frames for x in actions_of(f, a.Accept)]
    assert accept.reserved_volume_id == 1 and accept.volume is not None and accept.volume.volume_id == 2
    assert not any(actions_of(f, a.DestroyVolume) for f in frames)


def test_a_slot_that_waits_for_its_volume_says_how_to_give_it_up_also_when_the_agent_is_away() -> None:
    stage = Disks(volume_patience_ms=60_000).with_volume()
    stage.end()
    stage.do(ev.AgentRemoved("agent-1"))
    stage.lead()
    stage.subscribe()
    stage.tick(500)
    (row,) = fleet_json(stage.catalog, stage.fleet, stage.spec, stage.now_ms)["waiting"]
    assert "--volume-patience; `stoker drain agent-1` gives it up now" in row["reason"]
    assert stage.ask(ev.DrainRequested(7, "agent-1", "")).refusal is None
    assert entries_of(stage.tick(), e.VolumeReleased) or stage.catalog.volumes[1].slot_id == 0

"""A name that was used before: the new dataset is READY only when nobody can be served the old one."""

from __future__ import annotations

import msgpack

from stoker.framework.core import actions as a
from stoker.framework.core import entries as e
from stoker.framework.core import events as ev
from stoker.framework.core.assignments import assignment_version
from stoker.framework.core.catalog import NAMES_REMOVED_MAX, Catalog
from stoker.framework.core.executors import QUICK_INTERVAL_MS
from stoker.framework.model import DatasetState
from support.core_stage import Stage, actions_of, entries_of, manifested


def removed(stage: Stage) -> Stage:
    stage.ready(source="mem://old")
    stage.do(ev.DatasetRemovalRequested(7, "alpha"))
    return stage


def listed_again(stage: Stage) -> a.Frame:
    """Add another dataset of the name, and let its listing succeed."""
    stage.add(source="mem://new")
    dataset = stage.dataset()
    return stage.do(
        ev.ListingFinished(dataset.dataset_id, dataset.attempt, manifested(dataset, 16)), after_ms=10
    )


def version(stage: Stage) -> int:
    return assignment_version(stage.catalog, stage.fleet)


def clear(stage: Stage, slot_id: int, cleared_version: int | None = None, **fields: int) -> None:
    told = version(stage) if cleared_version is None else cleared_version
    fields.setdefault("epoch_seen", stage.catalog.epoch)
    stage.beat(stage.launch(slot_id), assignment_version=told, cleared_version=told, **fields)


def test_waits_for_every_executor_to_clear_the_old_one() -> None:
    stage = removed(Stage().start())
    assert not listed_again(stage).entries
    view = stage.add(source="mem://new").body
    assert (view["state"], view["listing"]) == ("LISTING", {"files": 16, "bytes": 16 * 1024 * 1024})
    assert "slot 1" in view["message"]
    clear(stage, 1)
    assert "slot 2" in stage.add(source="mem://new").body["message"]
    assert stage.dataset().state == DatasetState.LISTING
    clear(stage, 2)
    assert stage.dataset().state == DatasetState.READY
    view = stage.add(source="mem://new").body
    assert (view["message"], view["listing"]) == (None, None)
    assert not stage.fleet.listed or not entries_of(stage.tick(), e.DatasetListed), "once"


def test_what_was_cleared_before_the_removal_counts_for_nothing() -> None:
    stage = Stage(instances=1).start()
    stage.ready(source="mem://old")
    before = version(stage)
    stage.do(ev.DatasetRemovalRequested(7, "alpha"))
    listed_again(stage)
    clear(stage, 1, before)
    assert stage.dataset().state == DatasetState.LISTING
    stage.beat(stage.launch(1), assignment_version=version(stage), cleared_version=before)
    assert stage.dataset().state == DatasetState.LISTING, "it holds the assignment, but a reader still reads"
    clear(stage, 1)
    assert stage.dataset().state == DatasetState.READY


def test_a_name_that_is_new_waits_for_nobody() -> None:
    stage = Stage().start()
    assert stage.ready().state == DatasetState.READY


def test_a_dataset_that_never_could_be_read_leaves_nobody_to_wait_for() -> None:
    stage = Stage().start()
    stage.add()
    stage.do(ev.ListingFinished(1, 1, None, "no such bucket"))
    stage.do(ev.DatasetRemovalRequested(7, "alpha"))
    assert entries_of(listed_again(stage), e.DatasetListed)


def test_a_refresh_waits_for_nobody() -> None:
    stage = removed(Stage(instances=1).start())
    listed_again(stage)
    clear(stage, 1)
    stage.do(ev.RefreshRequested(7, "alpha"))
    frame = stage.do(ev.ListingFinished(2, 2, manifested(stage.dataset(), 16, version=2)))
    assert entries_of(frame, e.DatasetListed)


def test_an_executor_launched_since_knows_nothing() -> None:
    stage = Stage(instances=2).start(agents=1)
    removed(stage)
    listed_again(stage)
    stage.tick()
    stage.offer("agent-2")
    assert stage.catalog.slots[2].launch_id
    clear(stage, 1)
    assert stage.dataset().state == DatasetState.READY


def test_an_executor_that_hangs_is_waited_for_until_mesos_says_that_it_is_dead() -> None:
    stage = removed(Stage().start())
    listed_again(stage)
    hung = stage.launch(2)
    for _ in range(0, stage.settings.heartbeat_timeout_ms + 2_000, 1_000):
        if 1 in {launch.slot_id for launch in stage.catalog.launches.values()}:
            clear(stage, 1)
        stage.tick(1_000)
    assert "slot 2" in stage.add(source="mem://new").body["message"], "it was told to end"
    stage.status(hung.task_id, "TASK_FAILED", agent_id=hung.agent_id)
    stage.tick()
    assert stage.dataset().state == DatasetState.READY


def test_an_end_that_nobody_confirms_is_not_waited_for_for_ever() -> None:
    stage = removed(Stage(instances=1, unreachable_delay_ms=20_000).start())
    listed_again(stage)
    stage.pass_time(stage.settings.unreachable_delay_ms + 2_000, beating=False)
    assert not stage.catalog.launches and stage.dataset().state == DatasetState.LISTING
    stage.pass_time(stage.settings.ending_grace_ms + 1_000, beating=False)
    assert stage.dataset().state == DatasetState.READY


def test_after_a_take_over_all_executors_are_asked_anew() -> None:
    """The catalog knows by replay that the name was used; nobody has heard of the removal from this leader."""
    stage = removed(Stage().start())
    stage.add(source="mem://new")
    stage.lead()
    stage.subscribe()
    (started,) = actions_of(stage.tick(), a.StartListing)
    assert started.clear_version > 0
    dataset = stage.dataset()
    stage.do(ev.ListingFinished(dataset.dataset_id, dataset.attempt, manifested(dataset, 16)))
    assert "take-over" in stage.add(source="mem://new").body["message"]
    clear(stage, 1, 10**6, epoch_seen=1, whole=True)
    assert "slot 1" in stage.add(source="mem://new").body["message"], "an assignment of the old leader"
    clear(stage, 1)
    clear(stage, 2, whole=True)
    assert stage.dataset().state == DatasetState.READY


def test_what_an_earlier_leader_was_about_to_end_is_waited_for() -> None:
    """It journaled the end of an executor that hangs, and died before Mesos had done it: who leads now knows of no such task."""
    stage = removed(Stage().start())
    hung = stage.launch(2)
    stage.do(ev.ExecutorEnded(hung.agent_id, hung.task_id, 9))
    assert hung.launch_id not in stage.catalog.launches
    stage.lead()
    listed_again(stage)
    clear(stage, 1, whole=True)
    assert "given up before the take-over" in stage.add(source="mem://new").body["message"]
    stage.pass_time(stage.settings.ending_grace_ms + 1_000)
    clear(stage, 1)
    assert stage.dataset().state == DatasetState.READY


def test_the_names_that_were_used_survive_a_snapshot() -> None:
    stage = removed(Stage().start())
    catalog = Catalog.restore(msgpack.unpackb(msgpack.packb(stage.catalog.snapshot()), use_list=False))
    assert catalog.was_used("alpha") and not catalog.was_used("beta")


def test_with_too_many_names_to_remember_every_name_counts_as_used() -> None:
    catalog = Catalog()
    catalog.names_removed = {f"n{i}": i for i in range(NAMES_REMOVED_MAX)}
    assert catalog.was_used("beta")


def test_a_removal_while_it_waits_forgets_the_manifest() -> None:
    stage = removed(Stage().start())
    listed_again(stage)
    assert stage.fleet.listed_digests() == {"2-1"}
    frame = stage.do(ev.DatasetRemovalRequested(7, "alpha"))
    assert a.ForgetManifest("2-1") in frame.actions and not stage.fleet.listed
    stage.tick()
    assert "alpha" not in [dataset.name for dataset in stage.catalog.datasets.values()]


def test_executors_are_asked_for_quick_heartbeats_meanwhile() -> None:
    stage = removed(Stage(instances=1).start())
    listed_again(stage)
    stage.now_ms += 60_000
    answer = stage.beat(stage.launch(1))
    assert answer.interval_ms == QUICK_INTERVAL_MS


def test_in_a_large_fleet_the_tick_looks() -> None:
    stage = removed(Stage(instances=120, mem_bytes=16 * 1024 * 1024).start())
    listed_again(stage)
    for slot_id in list(stage.catalog.slots):
        clear(stage, slot_id)
    assert stage.dataset().state == DatasetState.LISTING
    stage.tick()
    assert stage.dataset().state == DatasetState.READY

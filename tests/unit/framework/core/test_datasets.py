from __future__ import annotations

from typing import Any

import pytest

from stoker.framework.core import actions as a
from stoker.framework.core import entries as e
from stoker.framework.core import events as ev
from stoker.framework.model import DatasetState, JobState
from support.core_stage import Stage, actions_of, entries_of, manifested


def code(answer: a.Answer) -> str:
    return "" if answer.refusal is None else answer.refusal.code


def test_adding_answers_at_once_and_lists() -> None:
    stage = Stage().start()
    frame = stage.do(ev.DatasetRequested(7, "alpha", "s3://b/p", {"k": "v"}, 2, "lru", "mem", 5))
    (answer,) = actions_of(frame, a.Answer)
    assert (answer.status, answer.body["state"], answer.body["bytes"]) == (201, "LISTING", None)
    assert answer.body["listing"] == {"files": 0, "bytes": 0}
    (listing,) = actions_of(frame, a.StartListing)
    assert (listing.dataset_id, listing.attempt, listing.version, listing.previous) == (1, 1, 1, "")
    assert listing.slot_bytes == stage.spec.mem_bytes


def test_adding_is_idempotent_by_name() -> None:
    stage = Stage().start()
    assert stage.add(options={"a": "1", "b": "2"}).status == 201
    again = stage.add(options={"b": "2", "a": "1"})
    assert (again.status, again.body["id"]) == (200, 1)
    for other in (
        {"source": "mem://y"},
        {"replicas": 2},
        {"options": {"a": "2"}},
        {"policy": "lru"},
        {"priority": 1},
    ):
        answer = stage.add(**({"options": {"a": "1", "b": "2"}} | other))
        assert (answer.status, code(answer)) == (409, "exists_differently")
    assert len(stage.catalog.datasets) == 1


def test_a_conflict_does_not_tell_the_options() -> None:
    stage = Stage().start()
    stage.add(options={"secret": "env:ONE"})
    answer = stage.add(options={"secret": "env:TWO"})
    assert answer.refusal is not None and "env:" not in answer.refusal.message


def test_two_requests_of_one_name_in_one_batch() -> None:
    """The second is decided on what the first made, though nothing is durable yet."""
    stage = Stage().start()
    assert [stage.add(source=f"mem://{i}").status for i in range(2)] == [201, 409]


@pytest.mark.parametrize(
    "fields",
    [
        {"name": ""},
        {"name": "UPPER"},
        {"name": "a/b"},
        {"name": ".hidden"},
        {"name": "a" * 64},
        {"name": "line\n"},
        {"source": ""},
        {"source": "x" * 5000},
        {"source": "s3://\ud800"},
        {"options": {"k": "v" * 20_000}},
        {"options": {"k": "\udfff"}},
        {"replicas": 0},
        {"replicas": 99},
        {"policy": "fifo"},
        {"tier": "tape"},
        {"priority": 10**6},
    ],
    ids=str,
)
def test_refuses_a_dataset_that_cannot_be(fields: dict[str, Any]) -> None:
    stage = Stage().start()
    before = stage.catalog.snapshot()
    answer = stage.add(**fields)
    assert (answer.status, code(answer)) == (400, "bad_request")
    assert stage.catalog.snapshot() == before


def test_refuses_more_datasets_than_may_be() -> None:
    stage = Stage(datasets_max=2).start()
    assert [stage.add(f"d{i}").status for i in range(3)] == [201, 201, 409]


def test_progress_and_result_of_a_listing_show() -> None:
    stage = Stage().start()
    stage.add()
    stage.do(ev.ListingProgressed(1, 1, 10, 2000))
    assert stage.add().body["listing"] == {"files": 10, "bytes": 2000}
    stage.do(ev.ListingProgressed(1, 9, 99, 9999))
    assert stage.add().body["listing"] == {"files": 10, "bytes": 2000}, "of another attempt"
    stage.do(ev.ListingFinished(1, 1, manifested(stage.dataset(), 16)))
    body = stage.add().body
    assert (body["state"], body["files"], body["blocks"], body["listing"]) == ("READY", 16, 16, None)
    assert body["cached_ratio"] == 0.0 and body["version"] == body["generation"] == 1


def test_a_failed_listing_keeps_its_error_and_may_be_tried_again() -> None:
    stage = Stage().start()
    stage.add()
    stage.do(ev.ListingFinished(1, 1, None, "no such bucket " + "x" * 5000))
    dataset = stage.dataset()
    assert dataset.state == DatasetState.FAILED and dataset.error.startswith("no such bucket")
    assert len(dataset.error) <= stage.settings.error_bytes_max
    again = stage.add()
    assert (again.status, again.body["state"], again.body["error"]) == (200, "LISTING", None)
    assert stage.fleet.listings[1].attempt == 2
    stage.do(ev.ListingFinished(1, 1, None, "late"))
    assert stage.dataset().state == DatasetState.LISTING, "of the first attempt"


def test_a_refresh_makes_the_next_version_and_readers_go_on_meanwhile() -> None:
    stage = Stage().start()
    stage.ready()
    frame = stage.do(ev.RefreshRequested(7, "alpha"))
    (listing,) = actions_of(frame, a.StartListing)
    assert (listing.generation, listing.version, listing.previous) == (1, 2, "1-1")
    assert stage.dataset().state == DatasetState.READY
    assert not stage.do(ev.RefreshRequested(7, "alpha")).entries, "joins the one under way"
    second = manifested(stage.dataset(), 20, version=2)
    assert not actions_of(stage.do(ev.ListingFinished(1, 2, second)), a.ForgetManifest)
    assert [v.version for v in stage.dataset().versions] == [1, 2]
    stage.do(ev.RefreshRequested(7, "alpha"))
    third = manifested(stage.dataset(), 20, version=3)
    (forgotten,) = actions_of(stage.do(ev.ListingFinished(1, 3, third)), a.ForgetManifest)
    assert forgotten.digest == "1-1" and stage.catalog.manifest_digests() == {"1-2", "1-3"}


def test_a_refresh_that_fails_leaves_what_stands() -> None:
    stage = Stage().start()
    stage.ready()
    stage.do(ev.RefreshRequested(7, "alpha"))
    stage.do(ev.ListingFinished(1, 2, None, "store is down"))
    dataset = stage.dataset()
    assert (dataset.state, dataset.error, dataset.is_listing) == (DatasetState.READY, "store is down", False)


def test_listings_are_bounded_and_the_rest_follows() -> None:
    stage = Stage(listings_running_max=2).start()
    for i in range(4):
        stage.add(f"d{i}")
    assert set(stage.fleet.listings) == {1, 2}
    stage.do(ev.ListingFinished(1, 1, None, "x"))
    (started,) = actions_of(stage.tick(), a.StartListing)
    assert started.dataset_id == 3


def test_a_listing_is_started_again_after_a_take_over() -> None:
    stage = Stage().start()
    stage.add()
    stage.lead()
    (started,) = actions_of(stage.tick(), a.StartListing)
    assert (started.dataset_id, started.attempt) == (1, 1)
    assert not actions_of(stage.tick(), a.StartListing)


def test_removal_forgets_manifests_cancels_jobs_and_frees_the_name() -> None:
    stage = Stage().start()
    stage.ready()
    stage.job("load")
    frame = stage.do(ev.DatasetRemovalRequested(7, "alpha"))
    (answer,) = actions_of(frame, a.Answer)
    assert (answer.status, answer.body["name"]) == (200, "alpha")
    assert actions_of(frame, a.ForgetManifest) == [a.ForgetManifest("1-1")]
    job = stage.only_job()
    assert job.state == JobState.CANCELLED and "removed" in job.message
    assert stage.ask(ev.DatasetRemovalRequested(7, "alpha")).status == 404
    assert stage.add(source="mem://other").body["id"] == 2


def test_a_manifest_that_another_dataset_has_too_is_kept() -> None:
    stage = Stage().start()
    stage.ready("alpha")
    stage.add("beta")
    stage.do(ev.ListingFinished(2, 1, manifested(stage.dataset("alpha"), 16)))
    assert not actions_of(stage.do(ev.DatasetRemovalRequested(7, "alpha")), a.ForgetManifest)
    assert actions_of(stage.do(ev.DatasetRemovalRequested(7, "beta")), a.ForgetManifest)


def test_a_listing_of_a_removed_dataset_is_stopped_and_its_result_forgotten() -> None:
    stage = Stage().start()
    stage.add()
    late = manifested(stage.dataset(), 16)
    assert actions_of(stage.do(ev.DatasetRemovalRequested(7, "alpha")), a.StopListing) == [a.StopListing(1)]
    frame = stage.do(ev.ListingFinished(1, 1, late))
    assert not frame.entries and actions_of(frame, a.ForgetManifest) == [a.ForgetManifest("1-1")]


def test_changes_what_may_be_changed() -> None:
    stage = Stage().start()
    stage.ready()
    version = stage.catalog.placement_version
    answer = stage.ask(ev.DatasetChangeRequested(7, "alpha", 2, None, 3))
    assert (answer.status, answer.body["replicas"], answer.body["policy"], answer.body["priority"]) == (
        200,
        2,
        "keep",
        3,
    )
    assert stage.catalog.placement_version > version
    assert not stage.do(ev.DatasetChangeRequested(7, "alpha", 2, None, None)).entries
    assert stage.ask(ev.DatasetChangeRequested(7, "alpha", 0, None, None)).status == 400
    assert stage.ask(ev.DatasetChangeRequested(7, "nobody", 1, None, None)).status == 404
    assert stage.ask(ev.RefreshRequested(7, "nobody")).status == 404


def test_a_listing_that_ended_is_journaled_before_anything_points_to_it() -> None:
    stage = Stage().start()
    stage.add()
    frame = stage.do(ev.ListingFinished(1, 1, manifested(stage.dataset(), 3)))
    (listed,) = entries_of(frame, e.DatasetListed)
    assert listed.manifested.digest == "1-1" and listed.versions_kept == 2

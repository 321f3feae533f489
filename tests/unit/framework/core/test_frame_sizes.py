"""The largest frames that requests and ticks make fit a batch of the journal: one that did not would end every leader."""

from __future__ import annotations

import pytest

from stoker.framework.core import actions as a
from stoker.framework.core import entries as e
from stoker.framework.core import events as ev
from stoker.framework.core.codec import encode_entry
from stoker.framework.core.publishing import PUBLISHED_FRAME_MAX
from stoker.framework.core.seen import Listed
from stoker.framework.model import FleetSpec
from stoker.zk.codec import BATCH_RECORDS_MAX
from stoker.zk.journal import BATCH_BYTES_MAX, RECORD_BYTES_MAX
from support import core_stage
from support.core_stage import MIB, Stage, entries_of, manifested

HOST = "h" * 240


def check_fits(frame: a.Frame) -> None:
    sizes = [len(encode_entry(entry)) for entry in frame.entries]
    assert 0 < len(sizes) <= BATCH_RECORDS_MAX
    assert max(sizes) <= RECORD_BYTES_MAX and sum(sizes) <= BATCH_BYTES_MAX


def test_founding_the_largest_cluster() -> None:
    stage = Stage(instances=10_000)
    check_fits(stage.lead())
    check_fits(stage.tick())


def test_launching_on_all_agents_at_once_and_giving_all_up() -> None:
    stage = Stage(instances=600)
    stage.lead()
    stage.subscribe()
    launched = stage.offer(*(f"{HOST}-{i}" for i in range(600)))
    assert len(entries_of(launched, e.LaunchPlanned)) == stage.settings.launches_frame_max
    check_fits(launched)
    ended = stage.do(ev.FleetRequested(7, FleetSpec(0, 64 * MIB)))
    check_fits(ended)
    while entries_of(frame := stage.tick(), e.SlotRemoved):
        check_fits(frame)
    assert not stage.catalog.slots


def test_resizing_the_largest_fleet() -> None:
    stage = Stage(instances=3_000)
    stage.lead()
    stage.tick()
    stage.tick()
    check_fits(stage.do(ev.FleetRequested(7, FleetSpec(3_000, 96 * MIB))))
    check_fits(stage.tick())


def test_the_largest_dataset_request() -> None:
    stage = Stage(instances=1).start()
    limits = stage.settings
    event = ev.DatasetRequested(
        7, "n" * 60, "mem://" + "x" * (limits.source_bytes_max - 6),
        {"k": "v" * (limits.options_bytes_max - 1)}, 1, "keep", "mem", 0,
    )  # fmt: skip
    frame = stage.do(event)
    assert entries_of(frame, e.DatasetAdded)
    check_fits(frame)


def test_the_largest_job_and_the_removal_of_all_that_are_active(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        core_stage, "check", lambda catalog, fleet: None
    )  # slow with so many jobs, and not asked here
    stage = Stage(instances=1).start()
    stage.ready(blocks=16)
    limits = stage.settings
    path = "p" * 4_000
    for number in range(limits.jobs_active_max):
        paths = tuple(f"{i}/{path}" for i in range(6)) if number == 0 else (f"d{number}",)
        selection = stage.select("load", paths, "alpha")
        frame = stage.do(
            ev.JobRequested(
                7, "load", "alpha", paths, str(number).zfill(limits.key_bytes_max), True, False, selection
            )
        )
        assert entries_of(frame, e.JobCreated)
        check_fits(frame)
    frame = stage.do(ev.DatasetRemovalRequested(7, "alpha"))
    assert len(entries_of(frame, e.JobFinished)) == limits.jobs_active_max
    check_fits(frame)


def test_datasets_that_have_waited_for_the_same_executor() -> None:
    stage = Stage(instances=1).start()
    count = 2 * PUBLISHED_FRAME_MAX + 10
    for number in range(count):
        stage.add(f"d{number}")
    for dataset_id, dataset in stage.catalog.datasets.items():
        digested = manifested(dataset, 4)._replace(digest="f" * 64)
        stage.fleet.listed[dataset_id] = Listed(dataset.attempt, 0, digested)
    counts = []
    while listed := entries_of(frame := stage.tick(), e.DatasetListed):
        counts.append(len(listed))
        check_fits(frame)
    assert counts == [PUBLISHED_FRAME_MAX, PUBLISHED_FRAME_MAX, 10]

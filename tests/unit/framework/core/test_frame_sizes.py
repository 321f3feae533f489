"""The largest frames that requests and ticks make fit a batch of the journal: one that did not would end every leader."""

from __future__ import annotations

import pytest

from stoker.executor.messages import FileFailure
from stoker.executor.wire import Failure
from stoker.framework.core import actions as a
from stoker.framework.core import entries as e
from stoker.framework.core import events as ev
from stoker.framework.core.codec import encode_entry
from stoker.framework.core.jobs import FAILED_FRAME_MAX
from stoker.framework.core.publishing import PUBLISHED_FRAME_MAX
from stoker.framework.core.seen import Listed
from stoker.framework.model import FleetSpec
from stoker.zk.codec import BATCH_RECORDS_MAX
from stoker.zk.journal import BATCH_BYTES_MAX, RECORD_BYTES_MAX
from support import core_stage
from support.core_stage import MIB, Stage, entries_of, manifested
from support.volume_stage import Disks

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


def failing(instances: int, agents: int, **settings: int) -> Stage:
    """A fleet that waits for most of its agents, and as many loads at once as may end with all errors that have room."""
    stage = Stage(instances=instances, slot_out_ms=1_000, **settings).start(agents=agents)
    stage.ready(blocks=64)
    stage.pass_time(3_000)
    assert len(stage.catalog.slots_out) == instances - agents
    for _ in range(FAILED_FRAME_MAX):
        stage.job("load", fit=True)
    failures = tuple(FileFailure(i, f"d{i}/" + "p" * 900, Failure.UNDER_STORE, "m" * 300) for i in range(40))
    wanted = len(stage.wanted_on(1, stage.dataset()))
    stage.hold(1, stage.dataset(), [], wanted_settled=wanted, failed_count=40, failures=failures)
    return stage


def test_a_tick_in_which_many_launch_and_loads_fail_with_all_their_errors() -> None:
    stage = failing(601, 1)
    attributes = (("note", "x" * 200),)
    first = stage.offer(*(f"{HOST}-{i}" for i in range(600)), attributes=attributes)
    frames = [first, *(stage.tick() for _ in range(4))]
    for frame in frames:
        if frame.entries:
            check_fits(frame)
    assert sum(len(entries_of(frame, e.LaunchPlanned)) for frame in frames) == 600
    finished = [entries_of(frame, e.JobFinished) for frame in frames]
    (at,) = [index for index, entries in enumerate(finished) if entries]
    assert len(finished[at]) == FAILED_FRAME_MAX
    assert all(len(encode_entry(x)) > stage.settings.job_errors_bytes_max * 0.9 for x in finished[at])


@pytest.mark.parametrize(
    "attribute", [("note", "x" * 4_000), ("note", "\N{EURO SIGN}" * 4_000)], ids=["ascii", "wide"]
)
def test_launching_on_agents_that_have_much_to_say_with_volumes(attribute: tuple[str, str]) -> None:
    stage = Disks(instances=200, disk_bytes=64 * MIB).led()
    offers = tuple(stage.disk_offer(f"{HOST}-{i}", attributes=(attribute,)) for i in range(200))
    frames = [stage.do(ev.OffersReceived(offers))]
    while entries_of(frames[-1], e.LaunchPlanned):
        check_fits(frames[-1])
        frames.append(stage.tick())
    assert sum(len(entries_of(frame, e.LaunchPlanned)) for frame in frames) == 200

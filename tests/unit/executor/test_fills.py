"""The keeper's fills, misses and scratch, with fillers and a data server that the test plays."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gevent
import pytest

from stoker.executor import index
from stoker.executor.datasets import LOADING_MAX, VERSIONS_READ_MAX, Manifests
from stoker.executor.errors import ManifestUnavailable
from stoker.executor.fillers import VERSIONS_MAX, FillerLink
from stoker.executor.holdings import Block
from stoker.executor.report import count
from stoker.executor.wants import Wants
from stoker.executor.wire import Failure
from support.executors import TestDataset
from support.fill_stage import MIB, Outbox, Stage
from support.greenlets import wait_until


def listed(root: Path, version: int = 1, previous: Any = None) -> TestDataset:
    return TestDataset(str(root), version=version, previous=previous)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number in range(8):
        (tmp_path / f"{number}").write_bytes(random.Random(number).randbytes(20_000))
    return tmp_path


@pytest.fixture
def both(root: Path) -> Iterator[tuple[TestDataset, TestDataset]]:
    """Two versions; the files 6 and 7 are not in the second."""
    old = listed(root)
    (root / "6").unlink()
    (root / "7").unlink()
    yield old, listed(root, 2, old.manifest)


def place(dataset: TestDataset, path: str) -> tuple[int, int]:
    offset, size = dataset.manifest.extent(dataset.manifest.find(path))
    return offset, offset + -(-size // 64) * 64


def fill_needed(stage: Stage, block: Block) -> dict[str, Any]:
    stage.fills.request(block, block.state.version, block.state.needed)
    stage.fills.pump()
    return stage.jobs()[-1]


def test_a_block_that_cannot_be_sealed_now_is_sealed_later(root: Path) -> None:
    stage = Stage(listed(root))
    stage.tier.refusals = 2
    block = stage.block()
    job = fill_needed(stage, block)
    stage.filled(job, [[0, block.layout.page_count]])
    stage.done(job)
    assert not block.is_full and not stage.server.of("full")
    stage.fills.tick()
    assert not block.is_full
    stage.fills.tick()
    assert block.is_full and len(stage.server.of("full")) == 1


def test_a_block_is_not_sealed_while_readers_of_an_older_version_wait_for_more_of_it(
    both: tuple[TestDataset, TestDataset],
) -> None:
    old, new = both
    stage = Stage(old, new)
    block = stage.block()
    job = fill_needed(stage, block)
    stage.filler.limit = 1
    gone = place(old, "6")
    stage.fills.request(block, 1, [gone])
    stage.fills.pump()
    assert len(stage.jobs()) == 1, "the filler is busy"
    stage.filled(job, [[0, block.layout.page_count]])
    stage.done(job)
    assert block.state.is_full and not block.is_full, "a job may still write to it"
    (early,) = stage.jobs()[1:]
    assert early["version"] == 1 and early["ranges"] == [gone]
    stage.filled(early, [])
    stage.done(early)
    (check,) = stage.jobs("checksum")
    stage.filled(check, [[0, block.layout.page_count]])
    stage.done(check)
    assert block.is_full


def test_checksums_that_a_fill_overtook_are_made_again(both: tuple[TestDataset, TestDataset]) -> None:
    old, new = both
    stage = Stage(old, new)
    block = stage.block()
    job = fill_needed(stage, block)
    stage.filled(job, [])
    stage.done(job)
    (check,) = stage.jobs("checksum")
    stage.fills.request(block, 1, [place(old, "6")])
    stage.fills.pump()
    early = stage.jobs()[-1]
    stage.filled(check, [[0, block.layout.page_count]])
    stage.done(check)
    assert not index.are_known(block.file.open(), block.layout, 0, 1), (
        "it read the page before it was written"
    )
    stage.filled(early, [])
    stage.done(early)
    assert not block.is_full
    again = stage.jobs("checksum")[1]
    stage.filled(again, [[0, block.layout.page_count]])
    stage.done(again)
    assert block.is_full


def test_what_readers_of_an_old_version_miss_is_told_to_them_and_not_counted(
    both: tuple[TestDataset, TestDataset],
) -> None:
    old, new = both
    stage = Stage(old, new)
    block = stage.block()
    gone = place(old, "7")
    stage.fills.request(block, 1, [gone])
    stage.fills.pump()
    (job,) = stage.jobs()
    row = old.manifest.find("7")
    assert row >= new.manifest.file_count
    stage.done(job, [row, "7", int(Failure.CHANGED), "7 was deleted"])
    found = block.state.failure_of([gone])
    assert found is not None and found.message == "7 was deleted"
    stage.view.mine_set = {0}
    job = fill_needed(stage, block)
    half = job["ranges"][0][0], place(new, "3")[0]
    stage.filled(job, [], [half])
    stage.done(job, [new.manifest.find("3"), "3", int(Failure.CHANGED), "3 was changed"])
    told = count(stage.view, {0: block}, frozenset())
    assert {failure.path for failure in told.failures} == {
        "3"
    } and told.failed_count == 2  # and what was not told


def test_a_filler_forgets_what_the_keeper_tells_it_to_forget() -> None:
    outbox = Outbox()
    link = FillerLink(SimpleNamespace(outbox=outbox))  # type: ignore[arg-type]

    def tell(number: int) -> None:
        link.tell_dataset({"t": "dataset", "id": number, "generation": 1, "version": 1, "manifest": "m"})

    for number in range(VERSIONS_MAX):
        tell(number)
    tell(0)
    assert len(outbox.said) == VERSIONS_MAX, "it was told of the first already"
    tell(VERSIONS_MAX)
    assert outbox.of("forget") == [{"t": "forget", "key": [1, 1, 1]}]
    tell(1)
    assert outbox.said[-2]["t"] == "dataset" and len(link.told) == VERSIONS_MAX


@pytest.mark.parametrize("is_served_first", [False, True])
def test_scratch_that_comes_as_its_reader_leaves_is_given_back(root: Path, is_served_first: bool) -> None:
    holdings = Stage(listed(root)).holdings
    assert holdings.acquire_scratch(8 * MIB, 0)
    waiting = gevent.spawn(holdings.acquire_scratch, MIB, 5)
    gevent.sleep(0)
    if is_served_first:
        holdings.release_scratch(8 * MIB)
        waiting.kill()
    else:
        waiting.kill(block=False)
        holdings.release_scratch(8 * MIB)
        gevent.sleep(0)
    if waiting.value is True:
        holdings.release_scratch(MIB)
    assert holdings.scratch_used_bytes == 0


def test_callers_cannot_have_any_number_of_versions_fetched(root: Path, tmp_path: Path) -> None:
    view = Stage(listed(root)).view
    view.manifests.clear()
    asked: list[int] = []
    manifests = Manifests(
        str(tmp_path / "manifests"),
        lambda name, version, _: asked.append(version) or gevent.sleep(600),  # type: ignore[func-returns-value,return-value]
        gevent.spawn,
    )
    waiting = [gevent.spawn(manifests.get, view, version) for version in range(2, 2 + LOADING_MAX)]
    gevent.sleep(0.01)
    with pytest.raises(ManifestUnavailable, match="just now"):
        manifests.get(view, 99)
    waiting.append(gevent.spawn(manifests.get, view, 1))  # the assigned one is always fetched
    gevent.sleep(0.01)
    assert sorted(asked) == [1, *range(2, 2 + LOADING_MAX)]
    gevent.killall(waiting)


class Versions:
    """The first of six versions is assigned to nobody; `fetched` says which were fetched again."""

    def __init__(self, root: Path, directory: Path) -> None:
        self.made = [listed(root)]
        for version in range(2, 7):
            self.made.append(listed(root, version, self.made[-1].manifest))
        self.stage = Stage(*self.made[1:5])
        self.fetched: list[int] = []
        self.manifests = Manifests(str(directory), self._fetch, gevent.spawn)
        self.wants = Wants(
            server=self.stage.server,  # type: ignore[arg-type]
            holdings=self.stage.holdings,
            fills=self.stage.fills,
            manifests=self.manifests,
            datasets={self.stage.view.key: self.stage.view},
            spawn=gevent.spawn,
            now_ms=lambda: self.stage.now_ms,
        )

    def _fetch(self, name: str, version: int, file: Any) -> None:
        self.fetched.append(version)
        file.write(self.made[version - 1].bundle)

    def ask(self, want: int, version: int) -> None:
        """Ask for a file that is not here."""
        items = [[0, *place(self.made[version - 1], "0")]]
        self.wants.take(
            {
                "want": want,
                "dataset": 1,
                "generation": 1,
                "version": version,
                "items": items,
                "local": False,
            }
        )


def test_a_reader_may_stay_on_an_old_version(root: Path, tmp_path: Path) -> None:
    """Four newer ones are here: what it needs is fetched, and stays for as long as it is used."""
    versions = Versions(root, tmp_path / "manifests")
    view = versions.stage.view
    versions.ask(1, 1)
    wait_until(lambda: versions.stage.jobs(), "the miss to be served")
    assert list(view.manifests) == [3, 4, 5, 1]
    versions.wants.cancel(1)
    wait_until(lambda: not view.reading)
    assert view.find_manifest(3) is not None
    for version in (2, 6):
        versions.manifests.get(view, version)
    assert list(view.manifests) == [5, 3, 2, 6], "the assigned one, and those that were used last"
    assert versions.fetched == [1, 2, 6]


def test_a_version_stays_while_its_readers_wait(root: Path, tmp_path: Path) -> None:
    versions = Versions(root, tmp_path / "manifests")
    view = versions.stage.view
    versions.stage.filler.limit = 0
    versions.ask(1, 1)
    wait_until(lambda: 1 in view.manifests)
    for version in (2, 3, 4, 6):
        versions.manifests.get(view, version)
    assert list(view.manifests) == [5, 1, 4, 6]
    versions.stage.filler.limit = 1
    versions.stage.fills.pump()
    assert len(versions.stage.jobs()) == 1, "it is served"
    versions.wants.cancel(1)
    wait_until(lambda: not view.reading)
    versions.manifests.get(view, 2)
    assert list(view.manifests) == [5, 4, 6, 2], "nobody reads it any more"


def test_callers_cannot_have_any_number_of_versions_kept(root: Path, tmp_path: Path) -> None:
    versions = Versions(root, tmp_path / "manifests")
    view = versions.stage.view
    for version in range(100, 101 + VERSIONS_READ_MAX):
        view.begin_reading(version)
    with pytest.raises(ManifestUnavailable, match="being read just now"):
        versions.manifests.get(view, 1)
    view.end_reading(100)
    assert versions.manifests.get(view, 1).version == 1


def test_a_want_that_is_taken_back_at_once_leaves_no_pin(root: Path) -> None:
    dataset = listed(root)
    stage = Stage(dataset)
    block = stage.block()
    job = fill_needed(stage, block)
    stage.filled(job, [[0, block.layout.page_count]], [place(dataset, "0")])
    wants = Wants(
        server=stage.server,  # type: ignore[arg-type]
        holdings=stage.holdings,
        fills=stage.fills,
        manifests=SimpleNamespace(),  # type: ignore[arg-type]
        datasets={stage.view.key: stage.view},
        spawn=gevent.spawn,
        now_ms=lambda: stage.now_ms,
    )
    items = [[0, *place(dataset, "0")], [0, *place(dataset, "1")]]
    message = {"want": 1, "dataset": 1, "generation": 1, "version": 1, "items": items, "local": False}
    wants.take(message)
    assert block.pins == 1
    wants.cancel(1)
    gevent.sleep(0.01)
    assert block.pins == 0 and not block.waiters
    wants.take(message | {"want": 2})
    gevent.sleep(0.01)
    assert block.pins > 0
    wants.cancel(2)
    gevent.sleep(0.01)
    assert block.pins == 0 and not block.waiters


def test_what_a_load_fetches_is_hurried_when_a_reader_comes_to_wait_for_it(root: Path) -> None:
    dataset = listed(root)
    stage = Stage(dataset)
    block = stage.block()
    stage.view.mine_set, stage.view.todo = {0}, deque([0])
    stage.fills.pump()
    (load,) = stage.jobs()
    assert not load["urgent"]
    start, stop = place(dataset, "3")
    for _ in range(2):
        stage.fills.request(block, 1, [(start, stop)])
    stage.fills.pump()
    assert stage.jobs() == [load], "nothing is fetched twice"
    assert stage.jobs("hurry") == [{"t": "hurry", "job": load["job"], "ranges": [(start, stop)]}]
    stage.fills.request(block, 1, [(0, stop)])
    assert stage.jobs("hurry")[1:] == [{"t": "hurry", "job": load["job"], "ranges": [(0, start)]}]


def test_what_is_fetched_for_a_reader_needs_no_hurry(root: Path) -> None:
    stage = Stage(listed(root))
    block = stage.block()
    fill_needed(stage, block)
    stage.fills.request(block, 1, block.state.needed)
    assert not stage.jobs("hurry")

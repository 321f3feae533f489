"""What was found on SSD becomes blocks of its dataset: not of one that is gone, and not before there are descriptors for it."""

from __future__ import annotations

import errno
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gevent
import pytest

from stoker.executor import index
from stoker.executor.block import BlockName, block_layout
from stoker.executor.holdings import Stored
from stoker.executor.messages import Assignment
from stoker.executor.residency import RESIDENCY_PATIENCE_MS, RETURN_PATIENCE_MS, Residents
from support.block_disks import FailingDisk, TierStage
from support.data_servers import CLUSTER
from support.executors import TestDataset
from support.fill_stage import Stage

DEADLINE_S = 10


class ResidentStage(Stage):
    """A dataset of one block, of which a part was filled before the restart."""

    def __init__(self, root: Path, disk: FailingDisk) -> None:
        (root / "data").mkdir()
        (root / "data" / "a").write_bytes(random.Random(1).randbytes(20_000))
        dataset = TestDataset(str(root / "data"))
        tier = TierStage(root / "disk", disk)
        file = tier.tier.create_file(BlockName(1, 1, 0), dataset.manifest.block_length(0))
        assert file is not None
        index.mark_valid(file.open(), block_layout(file.data_bytes), [(0, 64)])
        tier.tier.close()
        self.ssd = TierStage(root / "disk", disk).tier
        super().__init__(dataset, ssd=self.ssd)
        self.holdings.restore(self.ssd.restored, 0)
        self.manifest = dataset.manifest
        self.on_get = lambda: None
        self.spawned: list[gevent.Greenlet] = []
        self.residents = Residents(
            cluster=CLUSTER,
            slot_id=1,
            datasets={self.view.key: self.view},
            holdings=self.holdings,
            fills=self.fills,
            manifests=SimpleNamespace(get=self._get),  # type: ignore[arg-type]
            server=self.server,  # type: ignore[arg-type]
            spawn=self._spawn,
            now_ms=lambda: self.now_ms,
            on_planned=lambda: None,
        )

    def _get(self, view: Any, version: int) -> Any:
        self.on_get()
        return self.manifest

    def _spawn(self, work: Any, *arguments: Any) -> None:
        self.spawned.append(gevent.spawn(work, *arguments))

    def attach_lent(self) -> Stored:
        """Attach what is stored while a reader has it since before its dataset was shelved; return it."""
        (stored,) = self.stored()
        stored.server_has = self.view.is_shown = True
        for _ in range(2):
            self.residents._attach(self.view, self.manifest)
        gevent.sleep(0)
        assert self.stored() == [stored] and len(self.spawned) == 1, "it is waited for, once"
        return stored

    def stored(self) -> list[Stored]:
        return list(self.holdings.stored_of(self.view.key).values())


@pytest.fixture
def disk() -> FailingDisk:
    return FailingDisk()


@pytest.fixture
def stage(tmp_path: Path, disk: FailingDisk) -> ResidentStage:
    return ResidentStage(tmp_path, disk)


def test_a_dataset_that_is_removed_while_its_manifest_comes_gets_no_blocks(stage: ResidentStage) -> None:
    def remove() -> None:
        stage.view.is_removed = True

    stage.on_get = remove
    stage.residents._plan(stage.view)
    assert len(stage.stored()) == 1 and not list(stage.holdings.kept()) and not stage.server.said


def test_what_was_partly_filled_waits_for_descriptors(stage: ResidentStage, disk: FailingDisk) -> None:
    (stored,) = stage.stored()
    disk.errors["open"] = errno.EMFILE
    work = gevent.spawn(stage.residents._attach_partial, stage.view, stage.manifest, stored)
    gevent.sleep(0)
    assert not work.ready() and stage.stored() == [stored]
    disk.errors.clear()
    work.get(timeout=DEADLINE_S)
    (block,) = stage.holdings.kept()
    assert list(block.state.valid) == [(0, 64)] and stage.ssd.error_count == 0


@pytest.mark.parametrize("name", ["open", "sync"])
def test_a_partly_filled_file_that_cannot_be_read_or_relied_on_is_dropped(
    stage: ResidentStage, disk: FailingDisk, name: str
) -> None:
    (stored,) = stage.stored()
    disk.errors[name] = errno.EIO
    stage.residents._attach_partial(stage.view, stage.manifest, stored)
    assert stored.is_leaving and not stage.stored()


def test_what_a_reader_has_given_back_is_attached_once(stage: ResidentStage) -> None:
    stored = stage.attach_lent()
    stage.holdings.server_gone(stored.holding)
    stage.residents._attach(stage.view, stage.manifest)  # a newer wish comes just then
    (waiting,) = stage.spawned
    waiting.get(timeout=DEADLINE_S)
    (block,) = stage.holdings.kept()
    assert block.holding == stored.holding and not stage.stored() and not stage.view.returning
    assert len(stage.server.of("restored")) == 1


def test_what_a_reader_does_not_give_back_is_fetched_anew_after_a_while(stage: ResidentStage) -> None:
    stored = stage.attach_lent()
    stage.view.mine_set = {0}
    stage.now_ms += RETURN_PATIENCE_MS
    stage.holdings.stored_changed.tell()
    (waiting,) = stage.spawned
    waiting.get(timeout=DEADLINE_S)
    assert stored.is_leaving and not stage.stored()
    stage.view.manifest = stage.manifest
    stage.fills.pump()
    assert len(stage.jobs()) == 1 and len(list(stage.holdings.kept())) == 1


@pytest.mark.parametrize("comes", ["all are heard", "patience ends"])
def test_who_is_new_fetches_nothing_for_residency_before_the_leader_has_heard_the_others(
    stage: ResidentStage, comes: str
) -> None:
    """What they hold is copied from them: their addresses are not known yet, and nothing is read twice of the under store."""
    for stored in stage.stored():
        stage.holdings.drop_stored(stored, 0)
    assigned = (stage.view.assignment,)
    stage.residents.apply(Assignment(2, 1, 1, False, (), assigned))
    stage.view.mine_set = {0}
    stage.view.todo.append(0)
    stage.fills.pump()
    stage.now_ms += RESIDENCY_PATIENCE_MS - 1
    stage.fills.tick()
    assert not stage.jobs() and list(stage.view.todo) == [0]
    if comes == "all are heard":
        stage.residents.apply(Assignment(2, 2, 2, True, (), assigned))
    stage.now_ms += 1
    stage.fills.tick()
    assert len(stage.jobs()) == 1


def test_who_knows_the_others_from_the_leader_before_goes_on_fetching(stage: ResidentStage) -> None:
    for stored in stage.stored():
        stage.holdings.drop_stored(stored, 0)
    assigned = (stage.view.assignment,)
    stage.residents.apply(Assignment(2, 1, 1, True, (), assigned))
    stage.residents.apply(Assignment(3, 1, 1, False, (), assigned))
    stage.view.mine_set = {0}
    stage.view.todo.append(0)
    stage.fills.pump()
    assert len(stage.jobs()) == 1

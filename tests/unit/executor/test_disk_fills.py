"""The keeper's fills of blocks on SSD, step by step: durable before announced, and a disk that fails."""

from __future__ import annotations

import dataclasses
import errno
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stoker.executor import index
from stoker.executor.block import BlockName
from stoker.executor.core.extents import Extents
from stoker.executor.disk import Disk
from stoker.executor.disk_file import DiskFile
from stoker.executor.disk_tier import DISK_PAUSE_MS, PARTLY_SYNC_MS
from stoker.executor.fills import RECONSIDER_INTERVAL_MS
from stoker.executor.holdings import Block, Waiter
from stoker.executor.report import count
from support.block_disks import AtOnce, FailingDisk, TierStage
from support.executors import TestDataset
from support.fill_stage import Stage


class DiskStage(Stage):
    def __init__(self, root: Path, disk: Disk, *, files: int = 8, size: int = 20_000) -> None:
        data = root / "data"
        data.mkdir()
        for number in range(files):
            (data / f"{number}").write_bytes(random.Random(number).randbytes(size))
        self.disk = TierStage(root / "disk", disk)
        self.ssd = self.disk.tier
        super().__init__(TestDataset(str(data)), ssd=self.ssd)

    def later(self, ms: int) -> None:
        self.now_ms += ms
        self.disk.now_ms += ms
        self.fills.tick()

    def want(self) -> None:
        self.view.mine_set = {0}
        self.view.todo.append(0)
        self.fills.pump()

    def held(self) -> Block:
        (block,) = self.holdings.kept()
        return block

    def fill(self) -> Block:
        """Fill the block with a job, all its checksums included."""
        job, block = self.jobs()[-1], self.held()
        self.filled(job, [[0, block.layout.page_count]])
        self.done(job)
        return block

    def fail(self, job: dict[str, Any], text: str) -> None:
        self.fills.on_message({"t": "done", "job": job["job"], "failed": [], "error": text}, [])

    def settled(self) -> int:
        blocks = self.holdings.of_dataset(self.view.key)
        full = frozenset(i for i, block in blocks.items() if block.is_full)
        return count(self.view, blocks, full).wanted_settled


@pytest.fixture
def disk() -> FailingDisk:
    return FailingDisk()


@pytest.fixture
def stage(tmp_path: Path, disk: FailingDisk) -> DiskStage:
    return DiskStage(tmp_path, disk)


def test_a_block_is_neither_full_nor_settled_before_it_is_durable(stage: DiskStage) -> None:
    stage.want()
    block = stage.fill()
    assert not block.is_full and block.is_sealing and stage.settled() == 0 and not stage.server.of("full")
    stage.later(300)
    assert not block.is_full
    stage.ssd.step()
    assert block.is_full and stage.settled() == 1
    (told,) = stage.server.of("full")
    assert told["full_from"] == 1 and block.known_state is None, "it follows from the block being full"
    assert block.state.valid.covers(*block.state.needed[0])


def test_the_server_opens_files_by_name_and_gets_no_descriptor(stage: DiskStage) -> None:
    stage.want()
    (told,) = stage.server.of("block")
    assert (
        told["file"] == stage.held().file.name and (Path(stage.ssd.blocks_directory) / told["file"]).exists()
    )


def test_what_is_written_to_while_it_is_being_committed_is_committed_again(stage: DiskStage) -> None:
    stage.want()
    block = stage.fill()
    block.state.valid = Extents(block.state.needed)
    block.state.valid.remove(0, 64)  # as if a reader of another version wanted more of it
    stage.fills.request(block, 1, [(0, 64)])
    stage.fills.pump()
    assert not block.is_sealing
    stage.ssd.step()
    assert not block.is_full and not stage.server.of("full")
    job = stage.jobs()[-1]
    stage.filled(job, [])
    stage.done(job)
    (check,) = stage.jobs("checksum")
    stage.filled(check, [[0, 1]])
    stage.done(check)
    assert block.is_sealing
    stage.ssd.step()
    assert block.is_full


def test_a_block_whose_file_cannot_be_written_goes_and_comes_again(stage: DiskStage) -> None:
    stage.want()
    first = stage.held()
    stage.fail(stage.jobs()[-1], "5 bytes at 0 cannot be written: Input/output error")
    assert first.is_leaving and stage.ssd.error_count == 1 and "Input/output" in stage.ssd.last_error
    assert not list(stage.holdings.kept()) and stage.view.unfit == {0}, "not at once"
    stage.server_lets_go(first)
    stage.ssd.step()
    cache = stage.holdings.cache_of(stage.view)
    assert (cache.used_bytes, cache.leaving_bytes) == (0, 0)
    for _ in range(4):
        stage.later(RECONSIDER_INTERVAL_MS)
    assert stage.now_ms > DISK_PAUSE_MS
    assert stage.held() is not first and len(stage.jobs()) == 2
    stage.fill()
    stage.ssd.step()
    assert stage.held().is_full


@pytest.mark.parametrize("name", ["sync", "sync directory"])
def test_a_commit_that_fails_is_a_block_that_goes(stage: DiskStage, disk: FailingDisk, name: str) -> None:
    stage.want()
    block = stage.fill()
    disk.errors[name] = errno.EIO
    stage.ssd.step()
    assert block.is_leaving and not stage.server.of("full") and stage.settled() == 0
    stage.holdings.cache_of(stage.view).check()


def test_a_reader_that_waits_for_a_file_that_fails_is_told(stage: DiskStage) -> None:
    block = stage.block()
    waiter = Waiter([(0, 64)], 1)
    block.waiters.add(waiter)
    stage.fills.request(block, 1, [(0, 64)])
    stage.fills.pump()
    stage.fail(stage.jobs()[-1], "no")
    assert waiter.done.is_set() and "no" in waiter.lost


def test_a_file_that_cannot_be_opened_costs_its_block(stage: DiskStage, disk: FailingDisk) -> None:
    stage.want()
    block = stage.held()
    stage.disk.crowd_out(block.file)
    disk.errors["open"] = errno.EIO
    job = stage.jobs()[-1]
    stage.filled(job, [])
    assert block.is_leaving and stage.ssd.error_count == 1
    stage.done(job)
    stage.holdings.cache_of(stage.view).check()


@pytest.mark.parametrize("seed", range(30))
def test_whatever_comes_the_account_is_right_and_nothing_is_left(  # noqa: C901, PLR0915 (one flat match)
    tmp_path: Path, seed: int
) -> None:
    """Blocks come, fill, fail, are committed, let go and lent, in any order, on a disk that fails now and then."""
    chance = random.Random(seed)
    disk = FailingDisk()
    stage = DiskStage(tmp_path, disk, files=6, size=2**20)
    manifest = stage.view.manifest
    assert manifest is not None
    cache = stage.holdings.cache_of(stage.view)
    done: set[int] = set()  # jobs

    def jobs() -> list[dict[str, Any]]:
        return [job for job in (*stage.jobs(), *stage.jobs("checksum")) if job["job"] not in done]

    for _ in range(150):
        blocks = list(stage.holdings.kept())
        match chance.randrange(8):
            case 0 | 1:
                index = chance.randrange(manifest.block_count)
                name = BlockName(*stage.view.key, index)
                block = stage.holdings.find(name)
                if block is None and cache.room_bytes >= 2 * 2**20:
                    block = stage.holdings.create(stage.view, manifest, name, wanted=False, now_ms=0)
                if block is not None:
                    stage.fills.request(block, 1, block.state.needed)
                    stage.fills.pump()
            case 2 | 3 if jobs():
                job = chance.choice(jobs())
                done.add(job["job"])
                if chance.random() < 0.2:
                    stage.fail(job, "no")
                else:
                    stage.filled(job, [[0, 16]])
                    stage.done(job)
            case 4:
                stage.ssd.step()
            case 5 if blocks:
                stage.fills.let_go(chance.choice(blocks), "evicted")
            case 6:
                disk.errors = {chance.choice(["sync", "create", "open", "unlink", "sync index"]): errno.EIO}
            case _:
                disk.errors = {}
                stage.later(chance.choice([300, DISK_PAUSE_MS]))
        leaving = [stage.holdings.get(holding) for holding in list(cache.leaving)]
        for block in leaving:
            if block is not None and block.server_has and chance.random() < 0.5:
                stage.server_lets_go(block)
        cache.check()
    disk.errors = {}
    for block in list(stage.holdings.kept()):
        stage.fills.let_go(block, "the end")
    while jobs():
        job = jobs()[0]
        done.add(job["job"])
        stage.done(job)
    for holding in list(cache.leaving):
        stage.holdings.server_gone(holding)
    while not stage.ssd.step() or cache.leaving:
        stage.later(DISK_PAUSE_MS)
    assert (cache.used_bytes, cache.leaving_bytes) == (0, 0)
    assert not list(Path(stage.ssd.blocks_directory).iterdir())


# --- what must not be lost, and what is no fault of a file


def test_a_block_whose_sync_failed_while_it_was_written_to_goes(stage: DiskStage, disk: FailingDisk) -> None:
    stage.want()
    block = stage.fill()
    disk.errors["sync"] = errno.EIO
    block.state.valid = Extents(block.state.needed)
    block.state.valid.remove(0, 64)

    class Meanwhile(AtOnce):
        def run(self, work: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
            stage.fills.request(block, 1, [(0, 64)])
            stage.fills.pump()
            return super().run(work, *arguments, **options)

    stage.ssd._step_calls = Meanwhile()
    stage.ssd.step()
    disk.errors.clear()
    assert block.is_leaving, "what else was written to it may be lost as well: nobody reads it any more"
    job = stage.jobs()[-1]
    stage.filled(job, [[0, 1]])
    stage.done(job)
    assert block.is_leaving and not stage.server.of("full")


def test_a_partly_filled_block_whose_bytes_could_not_be_written_goes_soon(
    stage: DiskStage, disk: FailingDisk
) -> None:
    """Its pages may be dropped, and come back as zeros: the kernel says so once, to who syncs."""
    block = stage.block()
    stage.fills.request(block, 1, [(0, 64)])
    stage.fills.pump()
    job = stage.jobs()[-1]
    stage.filled(job, [[0, 1]], [(0, 64)])
    stage.done(job)
    disk.errors["sync"] = errno.EIO
    stage.later(PARTLY_SYNC_MS - 250)
    stage.ssd.step()
    assert not block.is_leaving, "a burst of misses is synced once"
    stage.later(250)
    stage.ssd.step()
    assert block.is_leaving and stage.ssd.error_count == 1


def test_the_header_of_a_file_that_failed_is_gone_at_once(stage: DiskStage) -> None:
    stage.want()
    block = stage.held()
    stage.fail(stage.jobs()[-1], "no")
    path = Path(stage.ssd.blocks_directory) / block.file.name
    assert path.read_bytes()[block.layout.trailer_offset :][:8] == bytes(8)


def test_a_block_that_is_being_committed_is_no_victim(stage: DiskStage) -> None:
    stage.want()
    block = stage.fill()
    held = stage.holdings.cache_of(stage.view).held[block.holding]
    assert block.is_sealing and held.busy
    stage.ssd.step()
    assert block.is_full and not held.busy


def without_descriptors(stage: DiskStage, disk: FailingDisk, block: Block) -> None:
    assert isinstance(block.file, DiskFile)
    stage.disk.crowd_out(block.file)
    disk.errors["open"] = errno.EMFILE


def test_a_fill_for_a_reader_waits_for_descriptors(stage: DiskStage, disk: FailingDisk) -> None:
    block = stage.block()
    without_descriptors(stage, disk, block)
    stage.fills.request(block, 1, [(0, 64)])
    stage.fills.pump()
    stage.later(300)
    assert not stage.jobs() and not block.is_leaving
    disk.errors.clear()
    stage.later(300)
    assert [job["ranges"] for job in stage.jobs()] == [[(0, 64)]] and stage.ssd.error_count == 0


def test_a_wanted_fill_waits_for_descriptors(stage: DiskStage, disk: FailingDisk) -> None:
    block = stage.block()
    without_descriptors(stage, disk, block)
    stage.want()
    assert not stage.jobs() and not block.is_leaving
    disk.errors.clear()
    stage.later(300)
    assert len(stage.jobs()) == 1 and not stage.view.todo


def test_what_was_filled_is_noted_once_there_are_descriptors(stage: DiskStage, disk: FailingDisk) -> None:
    stage.want()
    block = stage.held()
    (job,) = stage.jobs()
    without_descriptors(stage, disk, block)
    stage.filled(job, [[0, block.layout.page_count]])
    stage.done(job)
    stage.later(300)
    assert not block.is_leaving and stage.ssd.error_count == 0
    disk.errors.clear()
    stage.later(300)
    assert index.valid_extents(block.file.open(), block.layout)[0][0] == 0
    assert index.are_known(block.file.open(), block.layout, 0, block.layout.page_count)
    stage.ssd.step()
    assert block.is_full


def test_checksums_wait_for_descriptors(stage: DiskStage, disk: FailingDisk) -> None:
    stage.want()
    block = stage.held()
    (job,) = stage.jobs()
    stage.filled(job, [])
    stage.filler.limit = 0
    stage.done(job)
    assert block.is_checking
    without_descriptors(stage, disk, block)
    stage.filler.limit = 100
    stage.later(300)
    assert not stage.jobs("checksum") and not block.is_leaving
    disk.errors.clear()
    stage.later(300)
    assert len(stage.jobs("checksum")) == 1


def test_a_tier_that_a_newer_leader_names_is_memory_and_told_of_once(
    stage: DiskStage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.view.assignment = dataclasses.replace(stage.view.assignment, tier="tape")
    for _ in range(3):
        assert stage.holdings.account_of(stage.view).tier is stage.tier
    assert [record for record in caplog.text.splitlines() if "'tape'" in record][1:] == []
    assert "'tape'" in caplog.text


def test_a_file_that_fails_after_its_dataset_was_shelved_is_dropped(tmp_path: Path) -> None:
    stage = DiskStage(tmp_path, Disk())
    stage.want()
    (job,) = stage.jobs()
    block = stage.held()
    stage.filled(job, [[0, block.layout.page_count]])
    stage.done(job)
    assert stage.disk.step() and block.is_full
    stage.holdings.shelve(stage.view)
    (stored,) = stage.holdings.stored_of(stage.view.key).values()
    assert isinstance(block.file, DiskFile)
    stage.ssd._fail(block.file, "EIO")
    assert stored.is_leaving and not stage.holdings.stored_of(stage.view.key)
    assert stage.ssd.error_count == 1 and not stage.holdings.cache_of(stage.view).held
    stage.holdings.server_gone(block.holding)
    stage.disk.step()
    assert not stage.holdings.cache_of(stage.view).leaving_bytes

"""The SSD tier's promises where an error or a bad moment could undo them: nothing lost is announced, nothing damaged comes back."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import gevent
import pytest

from stoker.executor import disk_tier
from stoker.executor.disk import BLOCKS, INDEX, Disk
from stoker.executor.disk_file import DiskFile
from stoker.executor.disk_tier import DISK_PAUSE_MS
from stoker.executor.process import boot_id
from support.block_disks import FailingDisk, PowerDisk, TierStage, opened
from support.waiting import wait_until

DATA = 20_000


class WatchedDisk(FailingDisk):
    """Calls `before[name]`, once, before a call of that name; remembers what was called."""

    def __init__(self) -> None:
        super().__init__()
        self.before: dict[str, Callable[[], object]] = {}
        self.called: list[str] = []

    def _check(self, name: str) -> None:
        self.called.append(name)
        self.before.pop(name, lambda: None)()
        super()._check(name)


def made(stage: TierStage, number: int, *, is_committed: bool = True) -> DiskFile:
    file = stage.make(number)
    assert file is not None
    if is_committed:
        assert not stage.seal(file) and stage.step() and stage.said[file] == [""]
    return file


def after_power_loss(stage: TierStage, disk: PowerDisk) -> TierStage:
    stage.tier.close()
    disk.lose_power(stage.directory, lambda: False)
    return TierStage(Path(stage.directory), Disk(), boot_id="later")


def blocks_of(stage: TierStage) -> list[int]:
    return [file.file.name.block_index for file in stage.tier.restored]


# --- synced, or not


def test_a_file_that_is_made_while_the_directory_is_synced_waits_for_the_next_sync(tmp_path: Path) -> None:
    made_meanwhile: list[DiskFile] = []

    class SlowDisk(PowerDisk):
        def sync_directory(self, path: str) -> None:
            super().sync_directory(path)
            if path.endswith(BLOCKS) and not made_meanwhile:
                file = stage.make(2)  # the thread has yet to come to the index
                assert file is not None
                made_meanwhile.append(file)

    disk = SlowDisk(tmp_path / "disk", tmp_path / "grave")
    stage = TierStage(tmp_path / "disk", disk)
    made(stage, 1)
    (other,) = made_meanwhile
    assert not stage.seal(other) and stage.step() and stage.said[other] == [""]
    assert blocks_of(after_power_loss(stage, disk)) == [1, 2]


def test_a_sync_that_failed_is_not_forgotten_when_nobody_waited_for_it(tmp_path: Path) -> None:
    disk = WatchedDisk()
    stage = TierStage(tmp_path, disk)
    file = made(stage, 1, is_committed=False)
    assert not stage.seal(file)
    disk.errors["sync"] = errno.EIO
    disk.before["sync"] = file.unseal  # a fill for an older version begins meanwhile
    stage.step()
    assert stage.said[file] == [] and stage.tier.error_count == 1
    disk.errors.clear()  # the kernel tells it once
    with pytest.raises(OSError, match="cannot be synced"):
        stage.seal(file)
    stage.step()
    assert file.record is None


def test_after_a_sync_of_the_directory_failed_no_name_from_before_is_relied_on(tmp_path: Path) -> None:
    disk = FailingDisk()
    stage = TierStage(tmp_path, disk)
    first, second = (made(stage, n, is_committed=False) for n in (1, 2))
    assert not stage.seal(first)
    disk.errors["sync directory"] = errno.EIO
    stage.step()
    disk.errors.clear()
    assert "cannot be synced" in stage.said[first][0]
    assert not stage.seal(second)
    stage.step()
    assert "directory failed" in stage.said[second][0] and second.record is None
    stage.now_ms += DISK_PAUSE_MS
    made(stage, 3)


# --- damaged


def test_a_damaged_block_does_not_come_back_after_a_power_cut(tmp_path: Path) -> None:
    disk = PowerDisk(tmp_path / "disk", tmp_path / "grave")
    stage = TierStage(tmp_path / "disk", disk)
    bad, good = made(stage, 1), made(stage, 2)
    bad.forget(is_damaged=True)
    stage.step()
    bad.discard(lambda: None)
    stage.step()
    assert good.record is not None and blocks_of(after_power_loss(stage, disk)) == [2]


def test_a_damaged_block_is_refused_after_a_kill_at_once(tmp_path: Path) -> None:
    stage = TierStage(tmp_path, Disk())
    recorded, partial = made(stage, 1), made(stage, 2, is_committed=False)
    stage.crowd_out(recorded)
    recorded.forget(is_damaged=True)
    partial.forget(is_damaged=True)
    stage.tier.close()  # before a step
    stage = TierStage(tmp_path, Disk())
    found = [file for file in stage.tier.restored if file.file.name.dataset_id == 1]
    assert [file.file for file in found] == [recorded.file], "of what is not recorded the header is looked at"
    with pytest.raises(OSError, match="header is missing"):
        opened(found[0])


def test_that_a_block_is_damaged_is_recorded_once_the_index_can_be_written(tmp_path: Path) -> None:
    disk = FailingDisk()
    stage = TierStage(tmp_path, disk)
    file = made(stage, 1)
    disk.errors["write index"] = errno.EIO
    file.forget(is_damaged=True)
    assert not stage.step()
    disk.errors.clear()
    assert stage.step() and (tmp_path / INDEX).stat().st_size == 2 * 64
    stage.tier.close()
    assert not TierStage(tmp_path, Disk()).tier.restored


def test_an_index_that_could_not_be_written_is_written_though_nothing_more_is_to_be_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_tier, "DISK_PAUSE_MS", 10)
    disk = WatchedDisk()
    stage = TierStage(tmp_path, disk)
    file = made(stage, 1)
    disk.errors["write index"] = errno.EIO
    file.forget(is_damaged=True)
    runner = gevent.spawn(stage.tier.run)
    wait_until(lambda: stage.tier.error_count > 1, "some tries", sleep=gevent.sleep)
    disk.errors.clear()
    is_recorded = lambda: (tmp_path / INDEX).stat().st_size == 2 * 64  # noqa: E731
    wait_until(is_recorded, "the drop to be recorded", sleep=gevent.sleep)
    runner.kill()


# --- short of descriptors


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_a_file_that_cannot_be_opened_for_want_of_means_is_committed_later(tmp_path: Path, code: int) -> None:
    disk = FailingDisk()
    stage = TierStage(tmp_path, disk)
    file = made(stage, 1, is_committed=False)
    stage.crowd_out(file)
    assert not stage.seal(file)
    disk.errors["open"] = code
    assert not stage.step() and stage.said[file] == [] and stage.tier.error_count == 1
    disk.errors.clear()
    assert stage.step() and stage.said[file] == [""]


def test_a_directory_that_cannot_be_opened_for_want_of_descriptors_is_synced_later(tmp_path: Path) -> None:
    disk = FailingDisk()
    stage = TierStage(tmp_path, disk)
    file = made(stage, 1, is_committed=False)
    assert not stage.seal(file)
    disk.errors["sync directory"] = errno.EMFILE
    assert not stage.step() and stage.said[file] == []
    disk.errors.clear()
    assert stage.step() and stage.said[file] == [""]


# --- steps


def test_news_of_one_block_may_make_another_go_that_is_to_be_committed(tmp_path: Path) -> None:
    disk = FailingDisk()
    stage = TierStage(tmp_path, disk)
    first, second = (made(stage, n, is_committed=False) for n in (1, 2))
    stage.crowd_out(first)
    assert not first.seal(1, DATA, lambda reason: (first.forget(), second.forget())[0])
    assert not stage.seal(second)
    disk.errors["open"] = errno.EIO
    assert stage.step() and first.is_forgotten and second.is_forgotten
    assert stage.said[second] == []


def test_files_are_removed_before_others_are_synced(tmp_path: Path) -> None:
    disk = WatchedDisk()
    stage = TierStage(tmp_path, disk)
    old, new = made(stage, 1), made(stage, 2, is_committed=False)
    old.discard(lambda: None)
    assert not stage.seal(new)
    disk.called.clear()
    assert stage.step()
    # The record comes first all the same: else a kill between the two would look like a lost file.
    assert disk.called == ["write index", "unlink", "sync", "sync directory", "write index", "sync index"]


def test_a_step_syncs_no_more_than_so_many_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_tier, "STEP_BYTES_MAX", 2 * DATA)
    stage = TierStage(tmp_path, Disk())
    files = [made(stage, n, is_committed=False) for n in range(3)]
    large = stage.make(9, 3 * DATA)
    assert large is not None and not any(stage.seal(file) for file in (*files, large))
    for done in (2, 3, 4):
        assert stage.step() and sum(said == [""] for said in stage.said.values()) == done


def test_a_file_that_can_neither_be_made_nor_removed_does_not_stand_in_the_way(tmp_path: Path) -> None:
    disk = FailingDisk()
    stage = TierStage(tmp_path, disk)
    disk.errors = {"write": errno.ENOSPC, "unlink": errno.EIO}
    assert stage.make(1) is None and len(os.listdir(tmp_path / BLOCKS)) == 1
    disk.errors.clear()
    stage.now_ms += DISK_PAUSE_MS
    assert stage.make(1) is not None


# --- starts


def test_a_machine_that_names_no_boot_trusts_nothing_unrecorded(tmp_path: Path) -> None:
    assert boot_id() and boot_id(str(tmp_path / "none")) == ""
    for _ in range(2):
        stage = TierStage(tmp_path, Disk(), boot_id="")
        assert blocks_of(stage) == []
        assert stage.make(1) is not None
        stage.tier.close()


def test_a_file_that_cannot_be_removed_at_the_start_is_told_of_and_stays_dropped(tmp_path: Path) -> None:
    class StubbornDisk(Disk):
        def unlink(self, path: str) -> None:
            if f"/{BLOCKS}/" in path:
                raise OSError(errno.EIO, "no")
            super().unlink(path)

    stage = TierStage(tmp_path, Disk())
    kept, dropped = made(stage, 1), made(stage, 2)
    dropped.forget()
    stage.step()
    stage.tier.close()
    for _ in range(2):
        stage = TierStage(tmp_path, StubbornDisk())
        assert [file.file for file in stage.tier.restored] == [kept.file]
        assert "1 files of no use could not be removed" in stage.tier.last_error
        stage.tier.close()
    assert blocks_of(TierStage(tmp_path, Disk())) == [1] and os.listdir(tmp_path / BLOCKS) == [kept.name]


def test_a_full_disk_at_the_start_costs_the_oldest_blocks_that_its_index_needs(tmp_path: Path) -> None:
    stage = TierStage(tmp_path, Disk())
    files = [made(stage, n) for n in range(4)]
    stage.tier.close()

    class FullDisk(FailingDisk):
        def _check(self, name: str) -> None:
            self.errors = (
                {"write index": errno.ENOSPC} if len(os.listdir(tmp_path / BLOCKS)) > room_for else {}
            )
            super()._check(name)

    room_for = 2
    stage = TierStage(tmp_path, FullDisk(), boot_id="later")
    assert [file.file for file in stage.tier.restored] == [file.file for file in files[2:]]
    assert "2 blocks were given up" in stage.tier.last_error
    stage.tier.close()
    room_for = -1
    with pytest.raises(OSError, match="No space left"):
        TierStage(tmp_path, FullDisk(), boot_id="later")
    room_for = 9
    assert TierStage(tmp_path, FullDisk(), boot_id="later").tier.restored == []

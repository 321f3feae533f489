"""The SSD tier on real files: what is durable when, and what comes of a death, a power cut or an error at every point."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import random
from pathlib import Path

import pytest

from stoker.executor import index
from stoker.executor.block import BlockName, block_layout
from stoker.executor.disk import BLOCKS, FORMAT, INDEX, Disk, open_directory
from stoker.executor.disk_file import OPEN_MAX, DiskFile
from stoker.executor.disk_tier import DISK_PAUSE_MS, INDEX_SLACK_BYTES, STEP_FILES_MAX, UNLINK_AGAIN_MS
from stoker.executor.errors import DirectoryHeld, DirectoryRefused
from support.block_disks import (
    BOOT,
    FailingDisk,
    Killed,
    PowerDisk,
    StoppingDisk,
    TierStage,
    content_of,
    opened,
)
from support.data_servers import CLUSTER

DATA = 20_000


def check_bytes(stage: TierStage) -> dict[int, DiskFile]:
    """Return the restored durable files by block; all of them have the right bytes."""
    found = {}
    for file in stage.tier.restored:
        if file.record is not None:
            fd = opened(file)
            assert os.pread(fd, DATA, 0) == content_of(file.file.name, DATA), file.name
            found[file.file.name.block_index] = file
    return found


def again(stage: TierStage, disk: Disk | None = None, *, boot_id: str = BOOT) -> TierStage:
    stage.tier.close()
    return TierStage(Path(stage.directory), disk or Disk(), boot_id=boot_id)


def test_a_block_is_durable_only_after_its_bytes_and_its_record(tmp_path: Path) -> None:
    stage = TierStage(tmp_path, Disk())
    file = stage.make(7)
    assert file is not None and not stage.seal(file) and stage.said[file] == []
    stage = again(stage, boot_id="another boot")
    assert not stage.tier.restored and not os.listdir(tmp_path / BLOCKS), "a file without a record is gone"
    file = stage.make(7)
    assert file is not None and not stage.seal(file, version=3)
    assert stage.step() and stage.said[file] == [""] and stage.seal(file)
    stage = again(stage, boot_id="a third boot")
    (found,) = stage.tier.restored
    assert found.record is not None and (found.record.version, found.record.cached_bytes) == (3, DATA)
    assert list(check_bytes(stage)) == [7]


def test_what_was_partly_filled_is_there_as_long_as_the_machine_was_up(tmp_path: Path) -> None:
    stage = TierStage(tmp_path, Disk())
    name = BlockName(1, 1, 0)
    file = stage.tier.create_file(name, DATA)
    assert file is not None
    layout = block_layout(DATA)
    index.mark_valid(opened(file), layout, [(64, 128), (640, DATA)])
    stage = again(stage)
    (found,) = stage.tier.restored
    assert found.record is None and (found.data_bytes, found.file.name) == (DATA, name)
    assert index.valid_extents(opened(found), layout) == [(64, 128), (640, DATA)]
    assert not again(stage, boot_id="later").tier.restored


def test_a_forgotten_block_is_not_found_again_and_its_file_stays_until_it_is_discarded(
    tmp_path: Path,
) -> None:
    stage = TierStage(tmp_path, Disk())
    files = [stage.make(n) for n in range(3)]
    for file in files:
        assert file is not None and not stage.seal(file)
    stage.step()
    gone: list[int] = []
    first, second, third = files
    assert first and second and third
    first.forget()
    second.discard(lambda: gone.append(1))
    third.forget()
    fd = os.open(tmp_path / BLOCKS / first.name, os.O_RDONLY)
    assert not gone
    stage.step()
    assert gone == [1] and sorted(os.listdir(tmp_path / BLOCKS)) == sorted([first.name, third.name])
    assert os.pread(fd, DATA, 0) == content_of(first.file.name, DATA)
    os.close(fd)
    stage = again(stage)
    assert not stage.tier.restored and not os.listdir(tmp_path / BLOCKS)
    assert stage.tier.create_file(first.file.name, DATA).file.serial > third.file.serial  # type: ignore[union-attr]


def test_a_block_that_is_written_to_again_is_committed_again(tmp_path: Path) -> None:
    stage = TierStage(tmp_path, Disk())
    file = stage.make(1)
    assert file is not None and not stage.seal(file)
    file.unseal()
    assert stage.step() and stage.said[file] == []
    assert not stage.seal(file) and stage.step() and stage.said[file] == [""]
    assert stage.seal(file)


def test_commits_and_descriptors_are_bounded(tmp_path: Path) -> None:
    stage = TierStage(tmp_path, Disk())
    before = len(os.listdir("/proc/self/fd"))
    files = [stage.make(n, 100) for n in range(OPEN_MAX + 60)]
    assert len(os.listdir("/proc/self/fd")) - before <= OPEN_MAX
    for file in files:
        assert file is not None and not stage.seal(file)
    stage.step()
    assert sum(said == [""] for said in stage.said.values()) == STEP_FILES_MAX
    for _ in range(20):
        stage.step()
    assert all(said == [""] for said in stage.said.values())
    assert len(os.listdir("/proc/self/fd")) - before <= OPEN_MAX
    stage.tier.close()


def test_the_index_does_not_grow_for_ever(tmp_path: Path) -> None:
    stage = TierStage(tmp_path, Disk())
    kept = stage.make(1)
    assert kept is not None and not stage.seal(kept) and stage.step()
    with open(tmp_path / INDEX, "r+b") as file:
        file.truncate(INDEX_SLACK_BYTES * 2)
    stage.tier._index_bytes = INDEX_SLACK_BYTES * 2
    other = stage.make(2)
    assert other is not None and not stage.seal(other) and stage.step()
    assert (tmp_path / INDEX).stat().st_size == 3 * 64
    assert sorted(check_bytes(again(stage))) == [1, 2]


# --- death at every point


def live(stage: TierStage, announced: dict[int, bool], seed: int) -> None:
    """Make, seal, forget and discard blocks; `announced` says which are durable, True, or may be or not, False."""
    chance = random.Random(seed)
    files: dict[int, DiskFile] = {f.file.name.block_index: f for f in stage.tier.restored}
    for _ in range(12):
        number = chance.randrange(5)
        file = files.pop(number, None)
        if file is not None:
            announced[number] = False
            file.forget()
            file.discard(lambda: None)
        else:
            file = stage.make(number)
            if file is None:
                continue
            files[number] = file
            file.seal(1, DATA, lambda reason, number=number: announced.update({number: not reason}))  # type: ignore[misc]
        if chance.random() < 0.6:
            stage.step()


@pytest.mark.parametrize("partial", [0.0, 0.5, 1.0])
def test_a_death_at_any_call_loses_nothing_that_was_announced(tmp_path: Path, partial: float) -> None:
    stop_at = 0
    while True:
        directory = tmp_path / f"{stop_at}"
        disk = StoppingDisk(stop_at, partial)
        announced: dict[int, bool] = {}
        try:
            live(TierStage(directory, disk), announced, seed=3)
        except Killed:
            pass
        else:
            break
        _close_all_below(directory)
        stage = TierStage(directory, Disk())
        assert set(check_bytes(stage)) >= {n for n, is_durable in announced.items() if is_durable}
        for file in stage.tier.restored:
            if file.record is None:
                valid = index.valid_extents(opened(file), block_layout(DATA))
                for start, stop in valid:
                    assert (
                        os.pread(opened(file), stop - start, start)
                        == content_of(file.file.name, DATA)[start:stop]
                    )
        stage.tier.close()
        stop_at += 1
    assert stop_at > 30


@pytest.mark.parametrize("seed", range(40))
def test_a_power_cut_at_any_call_leaves_no_wrong_byte(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    directory = tmp_path / "disk"
    announced: dict[int, bool] = {}
    for life in range(4):
        disk = PowerDisk(directory, tmp_path / f"grave{life}", chance.randrange(80), chance.random())
        with contextlib.suppress(Killed):
            stage = TierStage(directory, disk, boot_id=f"boot {life}")
            found = check_bytes(stage)
            assert set(found) >= {n for n, is_durable in announced.items() if is_durable}
            assert len(found) == len(stage.tier.restored), "nothing that was not synced is trusted"
            assert stage.tier.error_count == 0 or life, stage.tier.last_error
            live(stage, announced, chance.randrange(10**6))
        _close_all_below(tmp_path)
        disk.lose_power(str(directory), lambda: chance.random() < 0.5)
    stage = TierStage(directory, Disk(), boot_id="the last")
    assert set(check_bytes(stage)) >= {n for n, is_durable in announced.items() if is_durable}
    stage.tier.close()


def _close_all_below(directory: Path) -> None:
    """Close what a process that died had open."""
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}").startswith(f"{directory}/"):
                os.close(int(name))


# --- errors


def test_a_full_disk_makes_no_file_is_told_and_is_asked_again_after_a_while(tmp_path: Path) -> None:
    disk = FailingDisk()
    stage = TierStage(tmp_path, disk)
    disk.errors["create"] = errno.ENOSPC
    assert stage.make(1) is None and stage.tier.error_count == 1
    assert "No space left" in stage.tier.last_error
    disk.errors.clear()
    assert stage.make(1) is None and stage.tier.error_count == 1, "it is not asked at once"
    stage.now_ms += DISK_PAUSE_MS
    assert stage.make(1) is not None
    disk.errors["write"] = errno.EIO
    assert stage.make(2) is None and len(os.listdir(tmp_path / BLOCKS)) == 1, "half a file is taken away"


@pytest.mark.parametrize("name", ["sync", "sync directory"])
def test_a_block_whose_bytes_cannot_be_synced_is_never_announced(tmp_path: Path, name: str) -> None:
    disk = FailingDisk()
    stage = TierStage(tmp_path, disk)
    file = stage.make(1)
    assert file is not None and not stage.seal(file)
    disk.errors[name] = errno.EIO
    assert stage.step()
    (reason,) = stage.said[file]
    assert "cannot be synced" in reason and stage.tier.error_count == 1
    disk.errors.clear()
    file.discard(lambda: None)
    stage.step()
    assert not again(stage).tier.restored


@pytest.mark.parametrize(
    ("name", "code"), [("write index", errno.ENOSPC), ("write index", errno.EIO), ("sync index", errno.EIO)]
)
def test_an_index_that_cannot_be_written_is_written_anew_later(tmp_path: Path, name: str, code: int) -> None:
    disk = FailingDisk()
    stage = TierStage(tmp_path, disk)
    early, late = stage.make(1), stage.make(2)
    assert early is not None and not stage.seal(early) and stage.step() and stage.said[early] == [""]
    assert late is not None and not stage.seal(late)
    disk.errors[name] = code
    assert not stage.step() and stage.said[late] == [] and "index" in stage.tier.last_error
    assert not stage.step() and stage.said[late] == []
    disk.errors.clear()
    assert stage.step() and stage.said[late] == [""]
    assert sorted(check_bytes(again(stage, boot_id="later"))) == [1, 2]


def test_room_is_free_only_when_the_file_is_gone(tmp_path: Path) -> None:
    disk = FailingDisk()
    stage = TierStage(tmp_path, disk)
    file = stage.make(1)
    assert file is not None
    gone: list[int] = []
    file.discard(lambda: gone.append(1))
    disk.errors["unlink"] = errno.EROFS
    assert stage.step() and not gone and stage.tier.error_count == 1
    disk.errors.clear()
    stage.tier.tick()
    assert stage.step() and not gone, "not again at once"
    stage.now_ms += UNLINK_AGAIN_MS
    stage.tier.tick()
    assert stage.step() and gone == [1] and stage.tier.error_count == 1


def test_a_file_that_cannot_be_removed_stands_in_nobodys_way(tmp_path: Path) -> None:
    class OneStays(Disk):
        stays = ""

        def unlink(self, path: str) -> None:
            if self.stays and path.endswith(self.stays):
                raise OSError(errno.EPERM, "Operation not permitted")
            super().unlink(path)

    disk = OneStays()
    stage = TierStage(tmp_path, disk)
    files = [stage.make(n) for n in range(2)]
    gone: list[DiskFile] = []
    for file in files:
        assert file is not None
        file.discard(functools.partial(gone.append, file))
    assert files[0] is not None
    disk.stays = files[0].name
    for number in range(3):
        assert stage.step() and stage.make(10 + number) is not None
        stage.now_ms += UNLINK_AGAIN_MS
        stage.tier.tick()
    assert gone == [files[1]] and stage.tier.error_count == 3
    assert stage.tier.last_error == f"{files[0].name} cannot be removed: [Errno 1] Operation not permitted"


@pytest.mark.parametrize("harm", ["shorter", "longer", "header", "another's", "gone"])
def test_a_file_that_is_not_the_blocks_is_not_opened(tmp_path: Path, harm: str) -> None:
    stage = TierStage(tmp_path, Disk())
    files = [stage.make(n) for n in range(2)]
    for file in files:
        assert file is not None and not stage.seal(file)
    stage.step()
    first, second = files
    assert first is not None and second is not None
    path, layout = tmp_path / BLOCKS / first.name, block_layout(DATA)
    if harm == "another's":
        path.write_bytes((tmp_path / BLOCKS / second.name).read_bytes())
    elif harm == "gone":
        path.unlink()
    else:
        with open(path, "r+b") as raw:
            size = layout.file_bytes + {"shorter": -1, "longer": 1}.get(harm, 0)
            raw.truncate(size)
            raw.seek(layout.trailer_offset)
            raw.write(b"x" * 8 if harm == "header" else b"")
    stage = again(stage)
    if harm == "gone":
        assert [f.file.name.block_index for f in stage.tier.restored] == [1]
        assert "1 records without their file" in stage.tier.last_error
        return
    with pytest.raises(OSError):
        opened(stage.tier.restored[0])
    assert os.pread(opened(stage.tier.restored[1]), 10, 0)


# --- whose directory it is


def test_another_clusters_directory_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    stage = TierStage(tmp_path, Disk())
    file = stage.make(1)
    assert file is not None and not stage.seal(file) and stage.step()
    stage.tier.close()
    with pytest.raises(DirectoryRefused, match="blocks of cluster"):
        open_directory(str(tmp_path), bytes(16), disk=Disk(), boot_id=BOOT, asked_bytes=2**30)
    assert list(check_bytes(TierStage(tmp_path, Disk()))) == [1]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"format": 99, "cluster": "00"}', "format 99, this program knows up to 1"),
        ("{", "cannot be understood"),
        ("[]", "cannot be understood"),
    ],
)
def test_a_format_that_is_not_known_is_refused(tmp_path: Path, text: str, says: str) -> None:
    TierStage(tmp_path, Disk()).tier.close()
    (tmp_path / FORMAT).write_text(text)
    with pytest.raises(DirectoryRefused, match=says):
        TierStage(tmp_path, Disk())


def test_blocks_that_do_not_say_whose_they_are_are_refused(tmp_path: Path) -> None:
    TierStage(tmp_path, Disk()).tier.close()
    (tmp_path / FORMAT).unlink()
    with pytest.raises(DirectoryRefused, match="does not say whose"):
        TierStage(tmp_path, Disk())


def test_a_volume_whose_directory_is_gone_is_told_with_the_way_out(tmp_path: Path) -> None:
    """An agent links a volume into the sandbox; nothing is made where it was."""
    (tmp_path / "ssd").symlink_to(tmp_path / "stoker-00000000-v7")
    with pytest.raises(DirectoryRefused, match="stoker-00000000-v7 is gone from this agent.*DESTROY_VOLUMES"):
        open_directory(str(tmp_path / "ssd"), bytes(16), disk=Disk(), boot_id=BOOT, asked_bytes=2**30)
    assert not (tmp_path / "stoker-00000000-v7").exists()


def test_one_keeper_has_a_directory(tmp_path: Path) -> None:
    stage = TierStage(tmp_path, Disk())
    with pytest.raises(DirectoryHeld, match=f"pid {os.getpid()}"):
        TierStage(tmp_path, Disk())
    stage.tier.close()
    TierStage(tmp_path, Disk()).tier.close()


def test_an_index_that_is_lost_costs_the_blocks_but_no_more(tmp_path: Path) -> None:
    stage = TierStage(tmp_path, Disk())
    file = stage.make(1)
    assert file is not None and not stage.seal(file) and stage.step()
    stage.tier.close()
    (tmp_path / INDEX).write_bytes(b"\0" * 5)
    other = TierStage(tmp_path, Disk(), boot_id="later")
    assert not other.tier.restored and other.tier.error_count == 1
    assert other.make(1) is not None


def test_strange_things_in_the_directory_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    stage = TierStage(tmp_path, Disk())
    (tmp_path / BLOCKS / "notes.txt").write_text("mine")
    stage = again(stage)
    assert not stage.tier.restored and (tmp_path / BLOCKS / "notes.txt").read_text() == "mine"


def test_a_tier_is_never_larger_than_its_file_system_has_room_for(tmp_path: Path) -> None:
    class SmallDisk(Disk):
        def free_bytes(self, path: str) -> int:
            return 100 * 2**20

    assert TierStage(tmp_path / "a", Disk(), asked_bytes=2**20).opened.capacity_bytes == 15 * 2**16
    assert TierStage(tmp_path / "b", SmallDisk(), asked_bytes=2**40).opened.capacity_bytes == 84 * 2**20
    assert CLUSTER.hex() in (tmp_path / "b" / FORMAT).read_text()

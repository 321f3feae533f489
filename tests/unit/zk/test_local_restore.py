"""A restore into a directory, killed at every call it makes to the disk: never a journal that is half one, half another."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from stoker.zk.codec import Term
from stoker.zk.disk import Disk
from stoker.zk.errors import Corrupt, Unavailable
from stoker.zk.home import Snapshot
from stoker.zk.local import LocalJournal
from stoker.zk.restore import LocalTarget, NotEmpty
from support.disks import FullDisk, Killed, PowerDisk, StoppingDisk
from support.journals import replay

SAVED = Snapshot(7, b"saved" * 1000)
NEW = (7, SAVED.data, [])
OLD = (2, b"old", [b"2", b"3"])
EMPTY = (0, None, [])


def restore(directory: Path, disk: Disk, *, overwrite: bool) -> None:
    target = LocalTarget(str(directory), owner="restorer", disk=disk)
    try:
        epoch = target.open(overwrite=overwrite) + 1000
        target.put_blob(b"blob one")
        target.put_blob(b"blob two")
        target.commit(SAVED, Term(epoch, 1, "restorer"))
    finally:
        target.close()


def live(directory: Path) -> None:
    journal = LocalJournal(str(directory), owner="old")
    journal.lead()
    for number in range(4):
        journal.append(number, [b"%d" % number])
    journal.write_snapshot(2, b"old")
    journal.put_blob(b"old blob")
    journal.close()


def found(directory: Path) -> tuple[int, bytes | None, list[bytes]]:
    """Return what the next leader finds. :raises Corrupt: nobody leads."""
    journal = LocalJournal(str(directory), owner="after")
    try:
        recovered = journal.lead()
        state = (recovered.snapshot_index, recovered.snapshot, replay(recovered))
        if state == NEW:
            assert len(journal.blob_digests()) == 2
        return state
    finally:
        journal.close()


def found_or_refused(directory: Path) -> tuple[int, bytes | None, list[bytes]] | str:
    try:
        return found(directory)
    except Corrupt:
        return "refused"


def finish(directory: Path) -> None:
    """Do the restore again, as the operator would."""
    try:
        restore(directory, Disk(), overwrite=False)
    except NotEmpty:
        restore(directory, Disk(), overwrite=True)
    assert found(directory) == NEW


@pytest.mark.parametrize("partial", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("before", ["empty", "old"])
def test_a_restore_killed_at_any_call_leaves_the_old_the_new_or_what_nobody_leads(
    before: str, partial: float, tmp_path: Path
) -> None:
    seen = set()
    for stop_at in range(1000):
        directory = tmp_path / str(stop_at)
        if before == "old":
            live(directory)
        try:
            restore(directory, StoppingDisk(stop_at, partial), overwrite=before == "old")
        except Killed:
            state = found_or_refused(directory)
            seen.add(str(state))
            assert state in ([EMPTY, NEW] if before == "empty" else [OLD, NEW, "refused"])
            finish(directory)
            continue
        assert found(directory) == NEW
        break
    else:
        raise AssertionError("it never ends")
    assert seen >= ({str(EMPTY)} if before == "empty" else {str(OLD), "refused"})


def test_what_was_there_is_whole_beside_it_however_often_the_restore_was_killed(tmp_path: Path) -> None:
    for stop_at in range(1000):
        directory = tmp_path / str(stop_at)
        live(directory)
        try:
            restore(directory, StoppingDisk(stop_at), overwrite=True)
            break
        except Killed:
            finish(directory)
            names = sorted(name for name in os.listdir(directory) if name.startswith("before-restore"))
            journals = [found_or_refused(directory / name) for name in names]
            assert OLD in journals, (stop_at, names, journals)


@pytest.mark.parametrize("seed", range(40))
def test_power_lost_at_any_call_of_a_restore_into_an_empty_place(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    directory = tmp_path / "journal"
    directory.mkdir()
    disk = PowerDisk(chance.randrange(30), partial=chance.random())
    try:
        restore(directory, disk, overwrite=False)
    except Killed:
        disk.lose_power(str(directory), lambda: chance.random() < 0.5)
        assert found_or_refused(directory) in (EMPTY, NEW)
        return
    disk.lose_power(str(directory), lambda: chance.random() < 0.5)
    assert found(directory) == NEW


def test_a_disk_without_room_is_told_and_leaves_no_journal(tmp_path: Path) -> None:
    for free_bytes in (0, 10, 1000, 5000):
        directory = tmp_path / str(free_bytes)
        with pytest.raises(Unavailable, match="No space left"):
            restore(directory, FullDisk(free_bytes), overwrite=False)
        assert found(directory) == EMPTY
        finish(directory)


def test_a_place_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    with pytest.raises(Unavailable, match="cannot restore into"):
        restore(tmp_path / "file", Disk(), overwrite=True)

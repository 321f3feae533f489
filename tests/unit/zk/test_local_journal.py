"""The local journal's own promises: torn tails, damage, full disks, locks, fences."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from stoker.zk import segments
from stoker.zk.codec import Term, encode_batch, encode_term
from stoker.zk.errors import Corrupt, Fenced, Locked, TooNew, Unavailable
from stoker.zk.local import LocalJournal
from stoker.zk.segments import segment_name
from support.disks import FailingSyncDisk, FullDisk
from support.journals import replay

BATCHES = [[b"first", b"second"], [b"third"], [b"fourth" * 20, b"", b"fifth"]]
RECORDS = [record for batch in BATCHES for record in batch]


def opened(directory: Path) -> LocalJournal:
    return LocalJournal(str(directory), owner="test")


def written(directory: Path, batches: list[list[bytes]] = BATCHES) -> Path:
    """Write `batches` by one leader; return the last segment."""
    index = 0
    journal = opened(directory)
    journal.lead()
    for batch in batches:
        journal.append(index, batch)
        index += len(batch)
    journal.close()
    return max((directory / "log").iterdir())


def content(directory: Path) -> dict[str, bytes]:
    """Return every file of a journal but its lock."""
    return {
        str(p.relative_to(directory)): p.read_bytes()
        for p in sorted(directory.rglob("*"))
        if p.is_file() and p.name != "lock"
    }


def refuse(directory: Path, error: type[Exception], match: str) -> None:
    """Assert that leading is refused twice, and that nothing was changed."""
    before = content(directory)
    for _ in range(2):
        with pytest.raises(error, match=match):
            opened(directory).lead()
        assert content(directory) == before


def recover(directory: Path, expected: list[bytes]) -> None:
    """Assert that a leader finds `expected`, can go on, and that the next one finds all of it."""
    journal = opened(directory)
    assert replay(journal.lead()) == expected
    journal.append(len(expected), [b"after"])
    journal.close()
    journal = opened(directory)
    assert replay(journal.lead()) == [*expected, b"after"]
    journal.close()


TAIL_BYTES = len(encode_batch(BATCHES[-1], epoch=1, first_index=3))


@pytest.mark.parametrize("cut", range(1, TAIL_BYTES + 1))
def test_a_tail_cut_anywhere_disappears_whole(cut: int, tmp_path: Path) -> None:
    last = written(tmp_path)
    os.truncate(last, last.stat().st_size - cut)
    recover(tmp_path, RECORDS[:3])


@pytest.mark.parametrize("at", range(TAIL_BYTES))
@pytest.mark.parametrize("flip", [0x01, 0xFF])
def test_a_tail_damaged_anywhere_disappears_whole(at: int, flip: int, tmp_path: Path) -> None:
    last = written(tmp_path)
    data = bytearray(last.read_bytes())
    data[len(data) - TAIL_BYTES + at] ^= flip
    last.write_bytes(data)
    recover(tmp_path, RECORDS[:3])


def test_a_torn_tail_is_cut_off_when_somebody_leads(tmp_path: Path) -> None:
    last = written(tmp_path)
    size = last.stat().st_size
    os.truncate(last, size - 1)
    journal = opened(tmp_path)
    journal.lead()
    assert last.stat().st_size == size - TAIL_BYTES
    journal.close()


@pytest.mark.parametrize("kept", range(TAIL_BYTES))
def test_a_tail_of_which_the_end_came_as_zeros_disappears_whole(kept: int, tmp_path: Path) -> None:
    last = written(tmp_path)
    data = last.read_bytes()
    last.write_bytes(data[: len(data) - TAIL_BYTES + kept] + bytes(TAIL_BYTES - kept))
    came_whole = last.read_bytes() == data
    recover(tmp_path, RECORDS if came_whole else RECORDS[:3])


@pytest.mark.parametrize(
    "tail", [bytes(1), bytes(39), bytes(4096), bytes(3_000_000), b"garbage", b"SKBT" * 30]
)
def test_what_follows_the_last_batch_and_is_none_disappears(tail: bytes, tmp_path: Path) -> None:
    last = written(tmp_path)
    last.write_bytes(last.read_bytes() + tail)
    recover(tmp_path, RECORDS)


def test_more_garbage_than_one_batch_is_refused(tmp_path: Path) -> None:
    last = written(tmp_path)
    last.write_bytes(last.read_bytes() + b"x" * 1_000_000)
    refuse(tmp_path, Corrupt, "damaged at byte")


FIRST_BYTES = len(encode_batch(BATCHES[0], epoch=1, first_index=0))
HEAD_BYTES = FIRST_BYTES + len(encode_batch(BATCHES[1], epoch=1, first_index=2))


@pytest.mark.parametrize("at", range(HEAD_BYTES))
def test_damage_before_the_tail_is_refused_and_nothing_changes(at: int, tmp_path: Path) -> None:
    last = written(tmp_path)
    data = bytearray(last.read_bytes())
    data[at] ^= 0x40
    last.write_bytes(data)
    refuse(tmp_path, Corrupt, f"damaged at byte {0 if at < FIRST_BYTES else FIRST_BYTES}")


def test_bytes_missing_in_the_middle_are_refused(tmp_path: Path) -> None:
    last = written(tmp_path)
    data = last.read_bytes()
    last.write_bytes(data[:20] + data[30:])
    refuse(tmp_path, Corrupt, "damaged at byte 0")


def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stoker.zk.local.SEGMENT_BYTES_MAX", 200)


def many_segments(directory: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    small_segments(monkeypatch)
    written(directory, [[b"%03d" % i] * 3 for i in range(20)])
    return sorted((directory / "log").iterdir())


def test_a_full_segment_is_followed_by_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = many_segments(tmp_path, monkeypatch)
    assert len(found) > 3
    assert all(path.stat().st_size <= 200 for path in found)
    recover(tmp_path, [b"%03d" % (i // 3) for i in range(60)])


def test_a_missing_segment_is_a_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = many_segments(tmp_path, monkeypatch)
    found[1].unlink()
    refuse(tmp_path, Corrupt, "the journal has a gap")


def test_a_missing_first_segment_is_a_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many_segments(tmp_path, monkeypatch)[0].unlink()
    refuse(tmp_path, Corrupt, "record 0 comes next: the journal has a gap")


def test_a_torn_segment_that_is_not_the_last_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = many_segments(tmp_path, monkeypatch)
    os.truncate(found[1], found[1].stat().st_size - 1)
    refuse(tmp_path, Corrupt, "damaged at byte")


def test_a_segment_larger_than_any_is_refused(tmp_path: Path) -> None:
    last = written(tmp_path)
    os.truncate(last, segments.SEGMENT_BYTES_MAX + 1)
    refuse(tmp_path, Corrupt, "which no segment is")


def test_a_record_twice_is_refused(tmp_path: Path) -> None:
    last = written(tmp_path)
    last.write_bytes(last.read_bytes() + encode_batch([b"again"], epoch=1, first_index=5))
    refuse(tmp_path, Corrupt, "holds record 5 twice")


def test_a_gap_inside_a_segment_is_refused(tmp_path: Path) -> None:
    last = written(tmp_path)
    last.write_bytes(last.read_bytes() + encode_batch([b"later"], epoch=1, first_index=9))
    refuse(tmp_path, Corrupt, "holds record 9 after a gap")


@pytest.mark.parametrize("epoch", [0, 2])
def test_epochs_that_cannot_be_are_refused(epoch: int, tmp_path: Path) -> None:
    last = written(tmp_path)
    last.write_bytes(last.read_bytes() + encode_batch([b"x"], epoch=epoch, first_index=6))
    refuse(tmp_path, Corrupt, f"of epoch {epoch}, which cannot come")


@pytest.mark.parametrize("is_batch", [True, False])
def test_a_newer_format_is_refused_and_nothing_changes(is_batch: bool, tmp_path: Path) -> None:
    last = written(tmp_path)
    if is_batch:
        frame = bytearray(encode_batch([b"x"], epoch=1, first_index=6))
        frame[4] = 2
        frame[36:40] = segments_crc(bytes(frame[:36]))
        last.write_bytes(last.read_bytes() + frame)
    else:
        (tmp_path / "epoch").write_bytes(encode_term(Term(1, 2, "newer")))
    refuse(tmp_path, TooNew, "upgrade it")


def segments_crc(head: bytes) -> bytes:
    return struct.pack("<I", zlib.crc32(head))


@pytest.mark.parametrize("damage", ["missing", "empty", "flipped"])
def test_a_damaged_epoch_is_refused(damage: str, tmp_path: Path) -> None:
    written(tmp_path)
    epoch = tmp_path / "epoch"
    data = bytearray(epoch.read_bytes())
    data[-1] ^= 1
    if damage == "missing":
        epoch.unlink()
    else:
        epoch.write_bytes(b"" if damage == "empty" else data)
    refuse(tmp_path, Corrupt, "epoch")


def snapshots_of(directory: Path) -> list[Path]:
    return sorted((directory / "snapshots").iterdir())


def with_snapshots(directory: Path, count: int) -> list[Path]:
    """Write ten records a segment, and a snapshot after each ten; return the snapshots."""
    for number in range(count):
        journal = opened(directory)
        journal.lead()
        for i in range(10):
            journal.append(number * 10 + i, [b"%d" % (number * 10 + i)])
        journal.write_snapshot(number * 10 + 10, b"state %d" % number)
        journal.close()
    return snapshots_of(directory)


def test_two_snapshots_and_the_records_since_are_kept(tmp_path: Path) -> None:
    found = with_snapshots(tmp_path, 5)
    assert [p.name[:20].lstrip("0") for p in found] == ["40", "50"]
    assert [first for first, _ in segments.list_segments(str(tmp_path / "log"))] == [40]


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_snapshot_is_passed_over(damage: str, tmp_path: Path) -> None:
    newest = with_snapshots(tmp_path, 3)[-1]
    data = bytearray(newest.read_bytes())
    data[-1] ^= 1
    newest.write_bytes({"flip": bytes(data), "cut": bytes(data[:-1]), "empty": b""}[damage])
    journal = opened(tmp_path)
    found = journal.lead()
    assert (found.snapshot_index, found.snapshot) == (20, b"state 1")
    assert replay(found) == [b"%d" % i for i in range(20, 30)]
    journal.append(30, [b"30"])
    journal.close()


def test_the_only_snapshot_damaged_with_all_records_there(tmp_path: Path) -> None:
    (only,) = with_snapshots(tmp_path, 1)
    only.write_bytes(b"damaged")
    recover(tmp_path, [b"%d" % i for i in range(10)])


def test_no_good_snapshot_is_refused(tmp_path: Path) -> None:
    for path in with_snapshots(tmp_path, 3):
        path.write_bytes(b"damaged")
    refuse(tmp_path, Corrupt, "no snapshot in .* is good")


def test_a_damaged_snapshot_without_the_records_since_the_one_before_is_refused(tmp_path: Path) -> None:
    with_snapshots(tmp_path, 3)[-1].write_bytes(b"damaged")
    (tmp_path / "log" / segment_name(20)).unlink()
    journal = opened(tmp_path)
    # Nothing says that there ever were records 20 to 29; a segment after them would.
    assert replay(journal.lead()) == []
    journal.close()
    with_gap = tmp_path / "log" / segment_name(30)
    with_gap.write_bytes(encode_batch([b"30"], epoch=3, first_index=30))
    refuse(tmp_path, Corrupt, "the journal has a gap")


def test_a_log_that_ends_before_the_snapshot_goes_on_after_it(tmp_path: Path) -> None:
    written(tmp_path)
    journal = opened(tmp_path)
    journal.lead()
    journal.write_snapshot(6, b"state")
    journal.close()
    last = max((tmp_path / "log").iterdir())
    os.truncate(last, last.stat().st_size - 1)
    journal = opened(tmp_path)
    found = journal.lead()
    assert (found.snapshot_index, replay(found)) == (6, [])
    journal.append(6, [b"six"])
    journal.close()
    assert replay(opened(tmp_path).lead()) == [b"six"]


def test_the_lock_names_its_holder(tmp_path: Path) -> None:
    journal = LocalJournal(str(tmp_path), owner="scheduler on host-1")
    journal.lead()
    with pytest.raises(
        Locked, match=rf"open in process {os.getpid()} \(scheduler on host-1\): stop that one first"
    ):
        opened(tmp_path).lead()
    journal.close()
    opened(tmp_path).lead()


def test_the_lock_ends_with_its_process(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom stoker.zk.local import LocalJournal\n"
        "journal = LocalJournal(sys.argv[1], owner='child')\njournal.lead()\n"
        "journal.append(0, [b'acknowledged'])\nprint('ready', flush=True)\ntime.sleep(600)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == b"ready\n"
        with pytest.raises(Locked, match=f"process {child.pid} .child."):
            opened(tmp_path).lead()
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    recover(tmp_path, [b"acknowledged"])


@pytest.mark.parametrize("call", ["append", "snapshot", "put", "delete"])
def test_a_leader_whose_directory_was_made_anew_is_fenced(call: str, tmp_path: Path) -> None:
    directory = tmp_path / "journal"
    journal = opened(directory)
    journal.lead()
    journal.append(0, [b"0"])
    shutil.rmtree(directory)
    other = opened(directory)
    other.lead()
    calls = {
        "append": lambda: journal.append(1, [b"1"]),
        "snapshot": lambda: journal.write_snapshot(1, b""),
        "put": lambda: journal.put_blob(b""),
        "delete": lambda: journal.delete_blob("0" * 64),
    }
    with pytest.raises(Fenced, match="somebody else took the journal"):
        calls[call]()
    journal.close()
    other.append(0, [b"other"])
    other.close()
    assert replay(opened(directory).lead()) == [b"other"]


FRAME_BYTES = len(encode_batch([b"next" * 10], epoch=2, first_index=6))


@pytest.mark.parametrize("free", [0, 1, 39, 40, FRAME_BYTES - 1])
def test_a_full_disk_ends_leadership_and_leaves_a_clean_tail(free: int, tmp_path: Path) -> None:
    last = written(tmp_path)
    size = last.stat().st_size
    disk = FullDisk(10_000)
    journal = LocalJournal(str(tmp_path), owner="test", disk=disk)
    journal.lead()
    disk.free_bytes = free
    with pytest.raises(Unavailable, match="cannot append to the journal in .*: No space left on device"):
        journal.append(6, [b"next" * 10])
    assert last.stat().st_size == size
    for call in (
        lambda: journal.append(6, [b"next"]),
        lambda: journal.put_blob(b"blob"),
        lambda: journal.delete_blob("0" * 64),
        lambda: journal.write_snapshot(6, b"state"),
    ):
        with pytest.raises(Unavailable, match="given up"):  # told apart from a mistake of the caller's
            call()
    journal.close()
    recover(tmp_path, RECORDS)


def test_a_full_disk_refuses_snapshots_and_blobs_and_goes_on(tmp_path: Path) -> None:
    disk = FullDisk(10_000)
    journal = LocalJournal(str(tmp_path), owner="test", disk=disk)
    journal.lead()
    journal.append(0, [b"0"])
    disk.free_bytes = 100
    with pytest.raises(Unavailable, match="cannot store a blob in .*: No space left"):
        journal.put_blob(bytes(200))
    disk.free_bytes = 100
    with pytest.raises(Unavailable, match="cannot write a snapshot in .*: No space left"):
        journal.write_snapshot(1, bytes(200))
    disk.free_bytes = 1000
    journal.append(1, [b"1"])
    journal.close()
    assert not list(tmp_path.rglob("*.partial"))
    recover(tmp_path, [b"0", b"1"])


def test_a_full_disk_at_the_start_changes_nothing(tmp_path: Path) -> None:
    written(tmp_path)
    before = content(tmp_path)
    with pytest.raises(Unavailable, match="cannot open the journal"):
        LocalJournal(str(tmp_path), owner="test", disk=FullDisk(3)).lead()
    assert content(tmp_path) == before
    recover(tmp_path, RECORDS)


def test_a_sync_that_fails_ends_leadership(tmp_path: Path) -> None:
    disk = FailingSyncDisk()
    journal = LocalJournal(str(tmp_path), owner="test", disk=disk)
    journal.lead()
    journal.append(0, [b"0"])
    disk.is_failing = True
    with pytest.raises(Unavailable, match="Input/output error"):
        journal.append(1, [b"1"])
    journal.close()
    recover(tmp_path, [b"0"])


def test_a_real_limit_of_the_kernel_is_met_cleanly(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            journal = opened(tmp_path)
            journal.lead()
            journal.append(0, [bytes(3000)])
            try:
                journal.append(1, [bytes(3000)])
            except Unavailable as error:
                cause = error.__cause__
                status = 0 if isinstance(cause, OSError) and cause.errno == errno.EFBIG else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    recover(tmp_path, [bytes(3000)])


@pytest.mark.parametrize("where", ["file", "below a file"])
def test_a_place_that_cannot_be_a_directory_is_unavailable(where: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    path = tmp_path / "file" if where == "file" else tmp_path / "file" / "below"
    with pytest.raises(Unavailable, match="cannot open the journal in"):
        opened(path).lead()


def test_a_damaged_blob_is_told_and_mended_by_the_next_put(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.lead()
    digest = journal.put_blob(b"blob")
    path = tmp_path / "blobs" / digest[:2] / digest
    path.write_bytes(b"blub")
    with pytest.raises(Corrupt, match="another digest"):
        journal.get_blob(digest)
    assert journal.put_blob(b"blob") == digest
    assert journal.get_blob(digest) == b"blob"
    journal.close()


def test_what_a_killed_process_left_unfinished_is_taken_away(tmp_path: Path) -> None:
    written(tmp_path)
    left = [
        tmp_path / "epoch.partial",
        tmp_path / "snapshots" / "1.snapshot.partial",
        tmp_path / "blobs/ab/x.partial",
    ]
    left[-1].parent.mkdir()
    for path in left:
        path.write_bytes(b"half")
    recover(tmp_path, RECORDS)
    assert not any(path.exists() for path in left)


def test_only_its_owner_may_read_it(tmp_path: Path) -> None:
    directory = tmp_path / "a" / "b"
    written(directory)
    assert directory.stat().st_mode & 0o077 == 0
    assert all(p.stat().st_mode & 0o077 == 0 for p in directory.rglob("*"))

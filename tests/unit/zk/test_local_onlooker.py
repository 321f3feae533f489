"""Looking at a local journal: what is damage, what is only a leader at work, and who has it open."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stoker.zk import local
from stoker.zk.codec import BATCH_MAGIC, Term, encode_batch, encode_term
from stoker.zk.errors import Corrupt, TooNew, Unavailable
from stoker.zk.local import LocalJournal
from stoker.zk.local_onlooker import LocalOnlooker
from stoker.zk.lock import lock_holder
from stoker.zk.onlooker import is_empty, read_state


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def leader(directory: Path) -> Iterator[LocalJournal]:
    journal = LocalJournal(str(directory), owner="leader")
    journal.lead()
    yield journal
    journal.close()


def records_of(directory: Path, from_index: int = 0) -> list[bytes]:
    return [record for batch in LocalOnlooker(str(directory)).log(from_index) for record in batch.records]


def segments(directory: Path) -> list[Path]:
    return sorted((directory / "log").iterdir())


def fill(journal: LocalJournal, count: int, *, start: int = 0) -> None:
    for number in range(start, start + count):
        journal.append(number, [b"%d" % number])


def test_a_write_under_way_is_no_damage(directory: Path, leader: LocalJournal) -> None:
    fill(leader, 3)
    (segment,) = segments(directory)
    whole = segment.read_bytes()
    frame = encode_batch([b"three" * 50], epoch=1, first_index=3)
    for size in range(1, len(frame)):
        segment.write_bytes(whole + frame[:size])
        assert records_of(directory) == [b"0", b"1", b"2"]
        header = LocalOnlooker(str(directory)).header()
        assert (header.next_index, header.torn_bytes) == (3, size)
    segment.write_bytes(whole + frame)
    assert len(records_of(directory)) == 4


def test_a_first_write_under_way_leaves_the_journal_empty(directory: Path, leader: LocalJournal) -> None:
    frame = encode_batch([b"zero"], epoch=1, first_index=0)
    for size in (0, 1, 39, len(frame) - 1):
        (directory / "log" / f"{0:020d}.log").write_bytes(frame[:size])
        assert is_empty(LocalOnlooker(str(directory)).header())


@pytest.mark.parametrize("place", [0, 2, 20, 41, -1])
def test_damage_before_the_end_is_told_after_what_is_good(
    directory: Path, leader: LocalJournal, place: int
) -> None:
    fill(leader, 3)
    (segment,) = segments(directory)
    data = bytearray(segment.read_bytes())
    second = data.index(BATCH_MAGIC, 1)
    third = data.index(BATCH_MAGIC, second + 1)
    at = second + place if place >= 0 else third - 1
    data[at] ^= 0xFF
    segment.write_bytes(data)
    seen = []
    with pytest.raises(Corrupt, match="damaged at byte"):
        for batch in LocalOnlooker(str(directory)).log():
            seen += batch.records
    assert seen in ([], [b"0"])
    assert not is_empty(LocalOnlooker(str(directory)).header()), "damaged is not unused"


def test_a_segment_that_is_missing_is_a_gap(
    directory: Path, leader: LocalJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "SEGMENT_BYTES_MAX", 100)
    fill(leader, 9)
    assert len(segments(directory)) > 3 and len(records_of(directory)) == 9
    segments(directory)[1].unlink()
    with pytest.raises(Corrupt, match="after a gap"):
        records_of(directory)


def test_a_record_twice_is_told(directory: Path, leader: LocalJournal) -> None:
    fill(leader, 2)
    (segment,) = segments(directory)
    data = segment.read_bytes()
    segment.write_bytes(data + data[data.index(BATCH_MAGIC, 1) :])
    with pytest.raises(Corrupt, match="twice"):
        records_of(directory)


def test_an_epoch_that_the_journal_does_not_know_is_damage(directory: Path, leader: LocalJournal) -> None:
    fill(leader, 2)
    (segment,) = segments(directory)
    segment.write_bytes(segment.read_bytes() + encode_batch([b"2"], epoch=9, first_index=2))
    with pytest.raises(Corrupt, match="epoch 9"):
        records_of(directory)
    (directory / "epoch").write_bytes(encode_term(Term(9, 1, "a leader since")))
    assert len(records_of(directory)) == 3


def test_records_without_an_epoch_are_damage(directory: Path, leader: LocalJournal) -> None:
    fill(leader, 2)
    (directory / "epoch").unlink()
    with pytest.raises(Corrupt, match="missing"):
        LocalOnlooker(str(directory)).header()


def test_a_newer_journal_is_told_from_damage(directory: Path, leader: LocalJournal) -> None:
    (directory / "epoch").write_bytes(encode_term(Term(1, 99, "newer")))
    with pytest.raises(TooNew, match="level 99"):
        LocalOnlooker(str(directory)).header()


def test_a_damaged_snapshot_is_passed_over_for_the_one_before_and_told_when_asked_for(
    directory: Path, leader: LocalJournal
) -> None:
    fill(leader, 3)
    leader.write_snapshot(1, b"one")
    leader.write_snapshot(3, b"three")
    path = directory / "snapshots" / f"{3:020d}.snapshot"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    onlooker = LocalOnlooker(str(directory))
    newest = onlooker.snapshot()
    assert newest is not None and newest.data == b"one"
    with pytest.raises(Corrupt, match="is damaged"):
        onlooker.snapshot(3)
    found = list(read_state(onlooker))
    assert found[0] == newest and [r for b in found[1:] for r in b.records] == [b"1", b"2"]  # type: ignore[union-attr]


def test_records_that_no_good_snapshot_holds_are_missed(directory: Path, leader: LocalJournal) -> None:
    fill(leader, 3)
    leader.write_snapshot(2, b"two")
    leader.write_snapshot(3, b"three")
    fill(leader, 2, start=3)
    leader.write_snapshot(5, b"five")
    for index in (3, 5):
        path = directory / "snapshots" / f"{index:020d}.snapshot"
        path.write_bytes(b"?" * 100)
    with pytest.raises(Corrupt):
        list(read_state(LocalOnlooker(str(directory))))


def test_a_segment_that_goes_while_it_is_read_is_no_damage(
    directory: Path, leader: LocalJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "SEGMENT_BYTES_MAX", 100)
    fill(leader, 9)
    seen = []
    for batch in LocalOnlooker(str(directory)).log():
        if not seen:
            for segment in segments(directory)[:-1]:
                segment.unlink()
        seen += batch.records
    assert seen[0] == b"0" and seen[-1] == b"8" and len(seen) < 9


def test_who_has_it_open_is_told_without_taking_the_lock(directory: Path) -> None:
    code = "import sys; from stoker.zk.local import LocalJournal; j = LocalJournal(sys.argv[1], owner='me'); j.lead(); print('led', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == b"led\n"
        onlooker = LocalOnlooker(str(directory))
        assert onlooker.header().members == (f"process {process.pid} me",)
        process.stdin.close()
        process.wait(30)
    assert onlooker.header().members == () and lock_holder("/nowhere") == ""


def test_a_directory_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="no such directory"):
        LocalOnlooker(str(tmp_path / "nothing")).header()
    (tmp_path / "journal").mkdir()
    os.symlink("/dev/null", tmp_path / "journal" / "log")
    assert is_empty(LocalOnlooker(str(tmp_path / "journal")).header())

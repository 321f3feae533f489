"""Whoever looks at a journal sees what is there, takes nothing and makes nothing, also beside a living leader."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from stoker.zk.errors import Corrupt, JournalError, Unavailable
from stoker.zk.journal import Journal
from stoker.zk.onlooker import Onlooker, is_empty
from support.journals import batches
from support.onlookers import PLACES, Place, make_place, state_of


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    yield from make_place(request.param, tmp_path)


@pytest.fixture
def onlooker(place: Place) -> Iterator[Onlooker]:
    onlooker = place.onlooker()
    yield onlooker
    onlooker.close()


def fill(journal: Journal, count: int, *, start: int = 0) -> list[bytes]:
    """Append `count` batches of three and return all records."""
    records = [record for batch in batches(count) for record in batch]
    for place in range(0, len(records), 3):
        journal.append(start + place, records[place : place + 3])
    return records


def test_where_there_is_no_journal_one_is_told_so_and_nothing_is_made(place: Place) -> None:
    for _ in range(2):
        onlooker = place.onlooker()
        with pytest.raises(Unavailable, match="there is no journal"):
            onlooker.header()
        onlooker.close()


def test_a_journal_that_was_only_led_is_empty(place: Place, onlooker: Onlooker) -> None:
    place.leader().lead()
    header = onlooker.header()
    assert is_empty(header) and header.term.epoch == 1
    assert state_of(onlooker) == (0, None, [])


def test_a_header_tells_the_term_the_records_and_who_is_there(place: Place, onlooker: Onlooker) -> None:
    journal = place.leader()
    journal.lead()
    fill(journal, 4)
    header = onlooker.header()
    assert header.place == place.url and not is_empty(header)
    assert (header.term.epoch, header.first_index, header.next_index) == (1, 0, 12)
    assert header.snapshots == () and header.log_bytes > 100 and header.torn_bytes == 0
    assert header.parts == (1 if place.is_local else 4)
    assert len(header.members) == 1 and "test" in header.members[0]
    journal.close()
    assert onlooker.header().members == ()


@pytest.mark.parametrize("from_index", [0, 1, 3, 5, 11, 12, 13, 1000])
def test_a_log_is_read_from_any_record_on(place: Place, onlooker: Onlooker, from_index: int) -> None:
    journal = place.leader()
    journal.lead()
    records = fill(journal, 4)
    seen = list(onlooker.log(from_index))
    assert [record for batch in seen for record in batch.records] == records[from_index:]
    assert [batch.first_index for batch in seen][:1] == ([from_index] if from_index < 12 else [])
    assert {batch.epoch for batch in seen} <= {1}


def test_a_state_is_the_newest_snapshot_and_what_came_after_it(place: Place, onlooker: Onlooker) -> None:
    journal = place.leader()
    journal.lead()
    assert onlooker.snapshot() is None and onlooker.snapshot(3) is None
    records = fill(journal, 4)
    journal.write_snapshot(6, b"six")
    journal.write_snapshot(9, b"nine" * 200_000)  # in several chunks
    assert state_of(onlooker) == (9, b"nine" * 200_000, records[9:])
    header = onlooker.header()
    assert header.snapshots[-1] == 9 and header.next_index == 12
    newest = onlooker.snapshot(9)
    assert newest is not None and newest.data == b"nine" * 200_000
    assert onlooker.snapshot(8) is None


def test_blobs_are_read_by_their_digest(place: Place, onlooker: Onlooker) -> None:
    journal = place.leader()
    journal.lead()
    digests = sorted(journal.put_blob(data) for data in (b"", b"small", b"large" * 100_000))
    assert list(onlooker.blob_digests()) == digests
    assert sorted(len(onlooker.get_blob(digest) or b"") for digest in digests) == [0, 5, 500_000]
    assert onlooker.get_blob("0" * 64) is None and onlooker.get_blob("no digest") is None


def test_looking_on_takes_nothing_from_a_leader_nor_from_the_next(place: Place, onlooker: Onlooker) -> None:
    journal = place.leader()
    journal.lead()
    fill(journal, 2)
    onlooker.header()
    state_of(onlooker)
    fill(journal, 2, start=6)
    journal.check()
    journal.close()
    following = place.leader()
    assert following.lead().epoch == 2
    fill(following, 1, start=12)
    assert len(state_of(onlooker)[2]) == 15


def test_beside_a_leader_that_writes_and_cuts_the_state_is_always_whole(
    place: Place, onlooker: Onlooker
) -> None:
    """A snapshot says how many records it stands for, so that every state can be checked."""
    journal = place.leader()
    journal.lead()
    failures: list[BaseException] = []
    started, stopped = threading.Event(), threading.Event()

    def write() -> None:
        try:
            for number in range(60):
                journal.append(number * 5, [b"%d" % (number * 5 + i) for i in range(5)])
                if number % 7 == 6:
                    journal.write_snapshot(number * 5 - 3, b"%d" % (number * 5 - 3))
                started.set()
        except BaseException as error:
            failures.append(error)
        stopped.set()

    thread = threading.Thread(target=write)
    thread.start()
    assert started.wait(60)
    lengths = []
    while not stopped.is_set() or not lengths:
        index, snapshot, records = state_of(onlooker)
        assert snapshot == (None if index == 0 else b"%d" % index)
        assert records == [b"%d" % (index + i) for i in range(len(records))]
        lengths.append(index + len(records))
        list(onlooker.log())
        onlooker.header()
    thread.join(60)
    assert not failures and lengths == sorted(lengths)
    index, _, records = state_of(onlooker)
    assert index + len(records) == 300


def test_a_journal_of_another_kind_is_refused(place: Place, onlooker: Onlooker, tmp_path: Path) -> None:
    if not place.is_local:
        pytest.skip("of a directory")
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal" / "epoch").write_bytes(b"this is no journal")
    with pytest.raises(Corrupt):
        onlooker.header()


def test_who_looks_on_may_close_at_any_time_and_twice(place: Place) -> None:
    onlooker = place.onlooker()
    onlooker.close()
    onlooker.close()
    other = place.onlooker()
    with pytest.raises(JournalError):
        other.header()
    other.close()
    other.close()

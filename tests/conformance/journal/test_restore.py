"""A state is put where there is no journal: wholly or not at all, never over a living one, above every epoch."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from stoker.zk import restore
from stoker.zk.codec import LEVEL_MAX, Term
from stoker.zk.errors import Corrupt, JournalError, Locked, TooLarge, TooNew
from stoker.zk.home import Snapshot
from stoker.zk.restore import Needs, NotEmpty
from support.journals import replay
from support.onlookers import PLACES, Place, looking, make_place, state_of

SAVED = Snapshot(7, b"seven" * 100_000)  # in several chunks
TERM = Term(5, 1, "who led")
AHEAD = 1000
NOT_FINISHED = "was not finished: run `stoker journal restore` again"


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    yield from make_place(request.param, tmp_path)


def put(
    place: Place, *, overwrite: bool = False, blobs: tuple[bytes, ...] = (b"blob", b"big" * 200_000)
) -> int:
    target = place.target()
    try:
        epoch = max(TERM.epoch, target.open(overwrite=overwrite)) + AHEAD
        for data in blobs:
            target.put_blob(data)
        target.commit(SAVED, TERM._replace(epoch=epoch))
        return epoch
    finally:
        target.close()


def live(place: Place, records: int = 4) -> None:
    """Let a leader write something there, and go."""
    journal = place.leader()
    journal.lead()
    for number in range(records):
        journal.append(number, [b"old %d" % number])
    journal.write_snapshot(2, b"old")
    journal.put_blob(b"old blob")
    journal.close()


def test_a_restored_journal_is_led_on_with_its_state_its_blobs_and_a_higher_epoch(place: Place) -> None:
    assert put(place) == 5 + AHEAD
    journal = place.leader()
    found = journal.lead()
    assert found.epoch == 5 + AHEAD + 1 and found.level == 1
    assert (found.snapshot_index, found.snapshot, replay(found)) == (7, SAVED.data, [])
    assert sorted(len(journal.get_blob(digest) or b"") for digest in journal.blob_digests()) == [4, 600_000]
    journal.append(7, [b"on we go"])
    assert looking(place, state_of) == (7, SAVED.data, [b"on we go"])


def test_the_epoch_is_also_above_the_one_of_the_place(place: Place) -> None:
    """Somebody led there, but never wrote: such as a scheduler that found it empty."""
    for _ in range(9):
        journal = place.leader()
        journal.lead()
        journal.close()
    assert put(place) == 9 + AHEAD


def test_a_place_that_is_empty_has_no_index(place: Place) -> None:
    target = place.target()
    assert (target.open(overwrite=False), target.next_index) == (0, 0)
    target.close()


def test_a_journal_is_not_overwritten_unasked_and_stays_as_it_is(place: Place) -> None:
    live(place)
    before = looking(
        place, lambda onlooker: (state_of(onlooker), onlooker.blob_digests(), onlooker.header().term)
    )
    with pytest.raises(NotEmpty, match="--overwrite"):
        put(place)
    assert looking(place, lambda o: (state_of(o), o.blob_digests(), o.header().term)) == before


def test_a_journal_is_overwritten_when_asked_for(place: Place) -> None:
    live(place)
    target = place.target()
    with pytest.raises(NotEmpty):
        target.open(overwrite=False)
    assert target.next_index == 4
    target.close()
    assert put(place, overwrite=True) == 5 + AHEAD
    journal = place.leader()
    found = journal.lead()
    assert (found.snapshot_index, found.snapshot, replay(found)) == (7, SAVED.data, [])
    assert len(journal.blob_digests()) == 2


def test_an_overwritten_journal_lies_whole_beside_a_local_one(place: Place, tmp_path: Path) -> None:
    if not place.is_local:
        pytest.skip("what ZooKeeper held is deleted")
    for number in (1, 2):
        live(place) if number == 1 else None
        put(place, overwrite=True)
        aside = Place(f"{place.url}/before-restore-{number}", place.factory)
        index, snapshot, records = state_of(aside.onlooker())
        assert snapshot == (b"old" if number == 1 else SAVED.data) and index in (2, 7)
        assert records == ([b"old 2", b"old 3"] if number == 1 else [])


def test_what_is_no_good_journal_is_overwritten_when_asked_for(place: Place, tmp_path: Path) -> None:
    if not place.is_local:
        pytest.skip("damage is done to files here")
    live(place)
    (tmp_path / "journal" / "epoch").write_bytes(b"damaged")
    with pytest.raises(NotEmpty, match="no good journal"):
        put(place)
    assert put(place, overwrite=True) == 5 + AHEAD
    assert looking(place, state_of) == (7, SAVED.data, [])


@pytest.mark.parametrize("overwrite", [False, True])
def test_nothing_is_restored_where_a_scheduler_leads(
    place: Place, overwrite: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restore, "LOCK_WAIT_MS", 200)
    journal = place.leader()
    journal.lead()
    target = place.target()
    if not place.is_local:
        target._members_wait_ms = 200  # type: ignore[attr-defined]
    with pytest.raises(Locked, match="stop"):
        target.open(overwrite=overwrite)
    target.close()
    journal.append(0, [b"still leading"])
    assert looking(place, state_of) == (0, None, [b"still leading"])


def test_a_scheduler_that_is_about_to_go_is_waited_for(place: Place) -> None:
    journal = place.leader()
    journal.lead()
    timer = threading.Timer(0.3, journal.close)
    timer.start()
    assert put(place) == 5 + AHEAD
    timer.join()


def test_a_restore_that_ends_before_its_commit_leaves_no_journal(place: Place) -> None:
    target = place.target()
    target.open(overwrite=False)
    target.put_blob(b"blob")
    target.close()
    journal = place.leader()
    found = journal.lead()
    assert (found.epoch, found.snapshot, replay(found)) == (1, None, [])
    journal.close()
    assert put(place) == 5 + AHEAD


def test_what_was_to_be_overwritten_and_was_not_is_led_by_nobody_until_it_is_done(place: Place) -> None:
    live(place)
    target = place.target()
    target.open(overwrite=True)
    target.put_blob(b"blob")
    target.close()
    journal = place.leader()
    with pytest.raises(Corrupt, match=NOT_FINISHED):
        journal.lead()
    journal.close()
    with pytest.raises(Corrupt, match=NOT_FINISHED):
        looking(place, lambda onlooker: onlooker.header())
    again = place.target()
    assert (again.open(overwrite=False), again.next_index) == (1, 4), "what was there is known still"
    again.close()
    assert put(place) == 5 + AHEAD, "the one who does it again need not say --overwrite again"
    assert place.leader().lead().snapshot == SAVED.data


def test_what_no_place_may_hold_is_told_before_it_is_opened(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restore, "SNAPSHOT_BYTES_MAX", 1_000)
    target = place.target()
    target.check(Needs(LEVEL_MAX, 1_000, 64 * 2**20))
    with pytest.raises(TooLarge, match="a snapshot of some 1001 bytes; at most 1000"):
        target.check(Needs(LEVEL_MAX, 1_001, 0))
    with pytest.raises(TooNew, match="upgrade it"):
        target.check(Needs(LEVEL_MAX + 1, 0, 0))
    if place.is_local:
        target.check(Needs(LEVEL_MAX, 0, 2**40))
    else:
        with pytest.raises(TooLarge, match="blobs of 67108865 bytes"):
            target.check(Needs(LEVEL_MAX, 0, 64 * 2**20 + 1))
    target.close()


def test_a_scheduler_that_takes_the_place_meanwhile_keeps_it(place: Place) -> None:
    if place.is_local:
        pytest.skip("a local restore holds the lock")
    target = place.target()
    target.open(overwrite=False)
    target.put_blob(b"blob")
    journal = place.leader()
    journal.lead()
    with pytest.raises(JournalError, match="meanwhile"):
        target.commit(SAVED, TERM)
    with pytest.raises(JournalError, match="meanwhile"):
        target.put_blob(b"another")
    target.close()
    journal.append(0, [b"mine"])
    assert looking(place, state_of) == (0, None, [b"mine"])

"""What every journal promises, whatever its home. See stoker.zk.journal."""

from __future__ import annotations

import hashlib
import os
import threading

import pytest

from stoker.zk.errors import Fenced, Locked, TooLarge, Unavailable
from stoker.zk.journal import BATCH_BYTES_MAX, BLOB_BYTES_MAX, RECORD_BYTES_MAX, Journal
from support.journals import JOURNAL_FACTORIES, ZOOKEEPER_MISSING, JournalFactory, replay


def reopened(journals: JournalFactory, journal: Journal) -> Journal:
    journal.close()
    return journals.open()


def test_a_new_journal_is_empty(journals: JournalFactory) -> None:
    found = journals.open().lead()
    assert (found.snapshot_index, found.snapshot, replay(found)) == (0, None, [])
    assert found.epoch >= 1
    assert found.level >= 1


def test_each_leadership_has_a_higher_epoch(journals: JournalFactory) -> None:
    epochs = []
    for _ in range(4):
        journal = journals.open()
        epochs.append(journal.lead().epoch)
        journal.close()
    assert epochs == sorted(set(epochs))


def test_records_come_back_in_order(journals: JournalFactory) -> None:
    journal = journals.open()
    journal.lead()
    records = [b"", b"\0", b"a" * 1000, bytes(range(256)), "é😀".encode()]
    journal.append(0, records[:1])
    journal.append(1, records[1:4])
    journal.append(4, records[4:])
    assert replay(reopened(journals, journal).lead()) == records


def test_the_suite_runs_on_zookeeper_too() -> None:
    if ZOOKEEPER_MISSING:
        pytest.skip(ZOOKEEPER_MISSING)
    assert sorted(JOURNAL_FACTORIES) == ["local", "zookeeper"]


def test_records_of_many_leaderships_make_one_sequence(journals: JournalFactory) -> None:
    expected: list[bytes] = []
    for number in range(5):
        journal = journals.open()
        assert replay(journal.lead()) == expected
        batch = [b"%d %d" % (number, i) for i in range(number)]
        if batch:
            journal.append(len(expected), batch)
        expected += batch
        journal.close()


def test_the_largest_record_and_batch_fit(journals: JournalFactory) -> None:
    journal = journals.open()
    journal.lead()
    largest = os.urandom(RECORD_BYTES_MAX)
    journal.append(0, [largest, largest])
    many = [b"%05d" % i for i in range(BATCH_BYTES_MAX // 5)]
    journal.append(2, many)
    assert replay(reopened(journals, journal).lead()) == [largest, largest, *many]


@pytest.mark.parametrize(
    "records", [[bytes(RECORD_BYTES_MAX + 1)], [bytes(RECORD_BYTES_MAX), bytes(RECORD_BYTES_MAX), b"x"]]
)
def test_a_batch_that_is_too_large_is_refused_and_nothing_happened(
    journals: JournalFactory, records: list[bytes]
) -> None:
    journal = journals.open()
    journal.lead()
    journal.append(0, [b"before"])
    with pytest.raises(TooLarge, match="at most [0-9]+ are allowed"):
        journal.append(1, records)
    journal.append(1, [b"after"])
    assert replay(reopened(journals, journal).lead()) == [b"before", b"after"]


def test_a_snapshot_takes_the_place_of_the_records_below_it(journals: JournalFactory) -> None:
    journal = journals.open()
    journal.lead()
    journal.append(0, [b"0", b"1", b"2", b"3"])
    journal.write_snapshot(3, b"state before 3")
    journal.append(4, [b"4"])
    found = reopened(journals, journal).lead()
    assert (found.snapshot_index, found.snapshot) == (3, b"state before 3")
    assert replay(found) == [b"3", b"4"]


def test_a_snapshot_of_everything(journals: JournalFactory) -> None:
    journal = journals.open()
    journal.lead()
    journal.append(0, [b"0", b"1"])
    journal.write_snapshot(2, b"")
    journal = reopened(journals, journal)
    found = journal.lead()
    assert (found.snapshot_index, found.snapshot, replay(found)) == (2, b"", [])
    journal.append(2, [b"2"])
    assert replay(reopened(journals, journal).lead()) == [b"2"]


def test_the_newest_snapshot_counts(journals: JournalFactory) -> None:
    journal = journals.open()
    journal.lead()
    for index in range(1, 8):
        journal.append(index - 1, [b"%d" % index])
        journal.write_snapshot(index, b"state %d" % index * 100)
    journal = reopened(journals, journal)
    found = journal.lead()
    assert (found.snapshot_index, found.snapshot, replay(found)) == (7, b"state 7" * 100, [])
    journal.write_snapshot(7, b"again")  # of the same index, by the next leader
    assert reopened(journals, journal).lead().snapshot == b"again"


def test_a_large_snapshot(journals: JournalFactory) -> None:
    data = os.urandom(3_000_001)
    journal = journals.open()
    journal.lead()
    journal.append(0, [b"0"])
    journal.write_snapshot(1, data)
    assert reopened(journals, journal).lead().snapshot == data


@pytest.mark.parametrize("size", [0, 1, 256 * 1024, 1024 * 1024 + 1])
def test_blobs_come_back(journals: JournalFactory, size: int) -> None:
    data = os.urandom(size)
    journal = journals.open()
    journal.lead()
    digest = journal.put_blob(data)
    assert digest == hashlib.sha256(data).hexdigest()
    assert journal.put_blob(data) == digest
    assert journal.get_blob(digest) == data
    journal = reopened(journals, journal)
    journal.lead()
    assert journal.get_blob(digest) == data
    journal.delete_blob(digest)
    journal.delete_blob(digest)
    assert journal.get_blob(digest) is None


def test_all_blobs_can_be_listed(journals: JournalFactory) -> None:
    journal = journals.open()
    journal.lead()
    assert journal.blob_digests() == []
    digests = sorted(journal.put_blob(b"%d" % number) for number in range(20))
    assert journal.blob_digests() == digests
    journal.delete_blob(digests[3])
    assert reopened(journals, journal).blob_digests() == [*digests[:3], *digests[4:]]


@pytest.mark.parametrize(
    "digest", ["0" * 64, "", "../../etc/passwd", "A" * 64, "0" * 63, "0" * 64 + "\n", "é"]
)
def test_unknown_blobs_are_none(journals: JournalFactory, digest: str) -> None:
    journal = journals.open()
    journal.lead()
    assert journal.get_blob(digest) is None
    journal.delete_blob(digest)


def test_a_blob_that_is_too_large_is_refused(journals: JournalFactory) -> None:
    journal = journals.open()
    journal.lead()
    with pytest.raises(TooLarge, match=f"at most {BLOB_BYTES_MAX}"):
        journal.put_blob(bytes(BLOB_BYTES_MAX + 1))
    journal.append(0, [b"still leading"])


def test_blobs_and_records_do_not_touch(journals: JournalFactory) -> None:
    journal = journals.open()
    journal.lead()
    digest = journal.put_blob(b"blob")
    journal.append(0, [digest.encode()])
    journal.write_snapshot(1, b"state")
    journal = reopened(journals, journal)
    assert journal.lead().snapshot == b"state"
    assert journal.get_blob(digest) == b"blob"


def test_close_may_be_called_at_any_time_and_twice(journals: JournalFactory) -> None:
    never_led = journals.open()
    never_led.close()
    never_led.close()
    journal = journals.open()
    journal.lead()
    journal.close()
    journal.close()


def test_a_leader_may_act_until_it_closes(journals: JournalFactory) -> None:
    journal = journals.open()
    journal.lead()
    journal.check()
    journal.append(0, [b"0"])
    journal.check()
    assert not journal.wants_snapshot
    journal.close()
    for call in (
        journal.check,
        lambda: journal.append(1, [b"1"]),
        lambda: journal.write_snapshot(1, b""),
        lambda: journal.put_blob(b""),
        lambda: journal.delete_blob("0" * 64),
    ):
        with pytest.raises(Unavailable):
            call()
    assert replay(journals.open().lead()) == [b"0"]


@pytest.mark.parametrize("from_index", [1, 2, 3, 5])
def test_a_follower_goes_on_with_its_own_state(journals: JournalFactory, from_index: int) -> None:
    journal = journals.open()
    journal.lead()
    journal.append(0, [b"0", b"1"])
    journal.append(2, [b"2", b"3", b"4"])
    journal = reopened(journals, journal)
    found = journal.lead(from_index)
    assert (found.resumed, found.snapshot_index, found.snapshot) == (True, from_index, None)
    assert replay(found) == [b"0", b"1", b"2", b"3", b"4"][from_index:]
    journal.append(5, [b"5"])
    assert replay(reopened(journals, journal).lead())[-1] == b"5"


def test_a_state_that_is_too_old_or_of_another_journal_is_not_gone_on_with(journals: JournalFactory) -> None:
    journal = journals.open()
    journal.lead()
    for index in range(6):
        journal.append(index, [b"%d" % index])
        journal.write_snapshot(index + 1, b"before %d" % (index + 1))
    for from_index in (1, 7, 100):
        journal = reopened(journals, journal)
        found = journal.lead(from_index)
        assert (found.resumed, found.snapshot_index, found.snapshot) == (False, 6, b"before 6")
        assert replay(found) == []


def test_replaying_may_be_given_up(journals: JournalFactory) -> None:
    journal = journals.open()
    journal.lead()
    journal.append(0, [b"0", b"1"])
    journal = reopened(journals, journal)
    assert next(iter(journal.lead().batches)) == (0, [b"0", b"1"])
    assert replay(reopened(journals, journal).lead()) == [b"0", b"1"]


def test_two_leaders_never_both_write(journals: JournalFactory) -> None:
    first, second = journals.open("first"), journals.open("second")
    epoch = first.lead().epoch
    first.append(0, [b"of the first"])
    if not journals.takes_over:
        with pytest.raises(Locked, match=f"process {os.getpid()} .first."):
            second.lead()
        first.append(1, [b"still the first"])
        assert replay(reopened(journals, first).lead()) == [b"of the first", b"still the first"]
        return
    found = second.lead()
    assert found.epoch > epoch
    assert replay(found) == [b"of the first"]
    with pytest.raises(Fenced):
        first.append(1, [b"too late"])
    second.append(1, [b"of the second"])
    assert replay(reopened(journals, second).lead()) == [b"of the first", b"of the second"]


def test_many_candidates_one_leader(journals: JournalFactory) -> None:
    outcomes: list[str] = []
    candidates = [journals.open(f"candidate {i}") for i in range(8)]

    def compete(journal: Journal, number: int) -> None:
        try:
            next_index = len(replay(journal.lead()))
            journal.append(next_index, [b"%d" % number])
            outcomes.append("wrote")
        except (Locked, Fenced, Unavailable):
            outcomes.append("refused")

    threads = [threading.Thread(target=compete, args=(j, i)) for i, j in enumerate(candidates)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for journal in candidates:
        journal.close()
    assert len(outcomes) == 8
    if not journals.takes_over:
        assert outcomes.count("wrote") == 1
    assert len(replay(journals.open().lead())) == outcomes.count("wrote") >= 1

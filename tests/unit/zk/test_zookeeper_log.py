"""The log of a journal in a real ZooKeeper: it is cut below snapshots, it is bounded, and so are blobs."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from stoker.zk.errors import JournalError, TooLarge, Unavailable
from stoker.zk.zookeeper_journal import ZooKeeperJournal
from support.homes import Tree, led, opened
from support.journals import indexes, shared_client
from support.zookeeper import Place, needs_zookeeper

pytestmark = needs_zookeeper


@pytest.fixture
def tree(zookeeper: Place) -> Tree:
    return Tree(shared_client(), zookeeper.path)


def test_the_log_is_cut_below_a_snapshot_and_stays_bounded(zookeeper: Place, tree: Tree) -> None:
    with opened(zookeeper.url) as home:
        journal, _ = led(home)
        index = 0
        for number in range(1, 60):
            journal.append(index, [b"x" * 100, b"y"])
            index += 2
            if number % 10 == 0:
                journal.write_snapshot(index - 3, b"state %d" % number)
                assert len(tree.names("log")) == 2
                assert len(tree.names("snapshots")) == 1
        assert journal._log.count == len(tree.names("log")) == 11
        assert journal._log.bytes == sum(len(tree.get(f"log/{name}")) for name in tree.names("log"))


def test_a_long_log_wants_a_snapshot_and_is_not_written_to_for_ever(
    zookeeper: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stoker.zk.zookeeper_journal.LOG_BATCHES_MAX", 5)
    monkeypatch.setattr("stoker.zk.zookeeper_journal.LOG_WAIT_MS", 100)
    with opened(zookeeper.url) as home:
        journal, _ = led(home)
        for index in range(5):
            journal.append(index, [b"x"])
            assert not journal.wants_snapshot
        journal.append(5, [b"x"])
        assert journal.wants_snapshot
        journal.write_snapshot(6, b"state")
        assert not journal.wants_snapshot
        for index in range(6, 26):
            journal.append(index, [b"x"])
        with pytest.raises(Unavailable, match="no snapshot was written"):
            journal.append(26, [b"x"])
    with opened(zookeeper.url) as home:  # the next leader cuts first
        journal, index = led(home)
        assert journal.wants_snapshot
        journal.write_snapshot(index, b"state")
        journal.append(index, [b"x"])


def test_what_somebody_else_deletes_is_told_until_a_snapshot_holds_it(zookeeper: Place, tree: Tree) -> None:
    with opened(zookeeper.url) as home:
        journal, _ = led(home)
        for index in range(6):
            journal.append(index, [b"x"])
        assert journal.audit() == ""
        for name in tree.names("log")[1:3]:
            tree.delete(f"log/{name}")
        said = journal.audit()
        assert said.startswith("2 batches, from record 1 on, were deleted from ") and journal.audit() == said
        journal.append(6, [b"y"])
        journal.write_snapshot(5, b"state")
        assert journal.audit() == said, "records 5 and 6 are there, but nothing tells of it yet"
        journal.write_snapshot(7, b"state")
        assert journal.audit() == "" and tree.names("log") == []
        journal.append(7, [b"z"])
    with opened(zookeeper.url) as home:
        found = home.journal()
        home.join()
        assert home.wait_turn(60_000)
        recovered = found.lead()
        assert (recovered.snapshot, list(recovered.batches)) == (b"state", [(7, [b"z"])])


def test_a_snapshot_that_somebody_else_deletes_is_told_until_there_is_another(
    zookeeper: Place, tree: Tree
) -> None:
    with opened(zookeeper.url) as home:
        journal, _ = led(home)
        journal.append(0, [b"x"])
        journal.write_snapshot(1, b"state" * 100_000)
        (name,) = tree.names("snapshots")
        tree.create("log/foreign")  # is nothing of ours: the next reader will say so
        assert journal.audit() == ""
        tree.delete(f"snapshots/{name}/{tree.names(f'snapshots/{name}')[1]}")
        assert "the newest snapshot" in journal.audit() and "was deleted" in journal.audit()
        journal.write_snapshot(1, b"again")
        assert journal.audit() == ""


@pytest.fixture
def waiting_append(
    zookeeper: Place, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[ZooKeeperJournal, threading.Thread, list[JournalError]]]:
    """A journal whose log is full, and a thread that waits to append one batch more."""
    monkeypatch.setattr("stoker.zk.zookeeper_journal.LOG_BATCHES_MAX", 2)
    with opened(zookeeper.url) as home:
        journal, _ = led(home)
        for index in range(8):
            journal.append(index, [b"%d" % index])
        is_waiting = threading.Event()
        await_room = journal._await_room
        errors: list[JournalError] = []

        def append() -> None:
            try:
                journal.append(8, [b"8"])
            except JournalError as error:
                errors.append(error)

        def told(size: int) -> None:
            is_waiting.set()
            await_room(size)

        monkeypatch.setattr(journal, "_await_room", told)
        thread = threading.Thread(target=append)
        thread.start()
        assert is_waiting.wait(60)
        yield journal, thread, errors
        journal.close()
        thread.join(60)


Waiting = tuple[ZooKeeperJournal, threading.Thread, list[JournalError]]


def test_an_append_to_a_full_log_waits_for_the_snapshot(
    zookeeper: Place, tree: Tree, waiting_append: Waiting
) -> None:
    """Trap: a leadership that ended for that would find the log as full when it is taken up again."""
    journal, thread, errors = waiting_append
    assert len(tree.names("log")) == 8
    journal.check()
    journal.write_snapshot(8, b"state before 8")
    thread.join(60)
    assert not thread.is_alive() and not errors
    assert tree.names("log") == ["0" * 19 + "8"]
    journal.check()


def test_an_append_that_waits_for_a_snapshot_ends_with_the_leadership(waiting_append: Waiting) -> None:
    journal, thread, errors = waiting_append
    journal.close()
    thread.join(60)
    assert [type(error) for error in errors] == [Unavailable]


def test_a_cut_that_was_interrupted_goes_on_where_it_was(
    zookeeper: Place, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trap: batches that are gone already, looked for again, are taken for somebody else's doing."""
    monkeypatch.setattr("stoker.zk.zookeeper_journal.DELETES_MAX", 2)
    with opened(zookeeper.url) as home:
        journal, _ = led(home)
        for index in range(6):
            journal.append(index, [b"%d" % index])
        delete = journal._delete

        def once(paths: list[str]) -> None:
            delete(paths)
            monkeypatch.setattr(journal, "_delete", fail)

        def fail(paths: list[str]) -> None:
            raise RuntimeError("interrupted")

        monkeypatch.setattr(journal, "_delete", once)
        with pytest.raises(RuntimeError):
            journal.write_snapshot(6, b"state before 6")
        assert journal._log.count == len(tree.names("log")) == 4
        monkeypatch.setattr(journal, "_delete", delete)
        journal.write_snapshot(6, b"state before 6")
        assert journal._log.count == len(tree.names("log")) == 0


def test_a_large_log_wants_a_snapshot(zookeeper: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stoker.zk.zookeeper_journal.LOG_BYTES_MAX", 10_000)
    monkeypatch.setattr("stoker.zk.zookeeper_journal.LOG_WAIT_MS", 100)
    with opened(zookeeper.url) as home:
        journal, _ = led(home)
        journal.append(0, [b"x" * 9_000])
        assert not journal.wants_snapshot
        journal.append(1, [b"x" * 2_000])
        assert journal.wants_snapshot
        with pytest.raises(Unavailable, match="are the most"):
            journal.append(2, [b"x" * 40_000])


@pytest.mark.parametrize("interrupted", ["chunks", "cut"])
def test_an_interrupted_snapshot_leaves_nothing_for_ever(
    zookeeper: Place, tree: Tree, monkeypatch: pytest.MonkeyPatch, interrupted: str
) -> None:
    class Interrupted(Exception):
        pass

    def interrupt(*_: object, **__: object) -> None:
        raise Interrupted

    with opened(zookeeper.url) as home:
        journal, _ = led(home)
        for index in range(4):
            journal.append(index, [b"%d" % index])
        journal.write_snapshot(1, b"before 1")
        with monkeypatch.context() as patch:
            if interrupted == "chunks":
                patch.setattr("stoker.zk.zookeeper_journal.encode_pointer", interrupt)
            else:
                patch.setattr(ZooKeeperJournal, "_cut", interrupt)
            with pytest.raises(Interrupted):
                journal.write_snapshot(3, b"before 3")
    with opened(zookeeper.url) as home:
        home.join()
        assert home.wait_turn(60_000)
        journal = home.journal()  # type: ignore[assignment]
        found = journal.lead()
        expected = (1, b"before 1") if interrupted == "chunks" else (3, b"before 3")
        assert (found.snapshot_index, found.snapshot) == expected
        assert indexes(found) == list(range(expected[0], 4))
        journal.write_snapshot(4, b"before 4")
        assert tree.names("log") == []
        assert len(tree.names("snapshots")) == 1


def test_leading_from_a_record_that_is_there(zookeeper: Place) -> None:
    with opened(zookeeper.url) as home:
        journal, _ = led(home)
        for index in range(0, 9, 3):
            journal.append(index, [b"%d" % n for n in range(index, index + 3)])
        journal.write_snapshot(4, b"before 4")  # keeps the batch of 3, 4, 5

    def lead(from_index: int) -> tuple[bool, int, bytes | None, list[int]]:
        with opened(zookeeper.url) as home:
            home.join()
            assert home.wait_turn(60_000)
            found = home.journal().lead(from_index)
            return found.resumed, found.snapshot_index, found.snapshot, indexes(found)

    snapshot = (False, 4, b"before 4", [4, 5, 6, 7, 8])
    assert lead(9) == (True, 9, None, [])
    assert lead(6) == (True, 6, None, [6, 7, 8])
    assert lead(5) == (True, 5, None, [5, 6, 7, 8])
    assert lead(3) == (True, 3, None, [3, 4, 5, 6, 7, 8])
    assert lead(2) == snapshot  # gone
    assert lead(0) == snapshot
    assert lead(10) == snapshot  # more than there is: the state of another journal


def test_all_blobs_together_have_a_limit(zookeeper: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stoker.zk.zookeeper_blobs.BLOBS_BYTES_MAX", 1000)
    with opened(zookeeper.url) as home:
        journal, _ = led(home)
        digest = journal.put_blob(b"a" * 600)
        with pytest.raises(TooLarge, match="would make 1001 bytes of all blobs in ZooKeeper; at most 1000"):
            journal.put_blob(b"b" * 401)
        assert journal.put_blob(b"a" * 600) == digest
        journal.put_blob(b"c" * 400)
    with opened(zookeeper.url) as home:
        journal, _ = led(home)
        with pytest.raises(TooLarge, match="would make 1001 bytes"):
            journal.put_blob(b"d")
        journal.delete_blob(digest)
        journal.put_blob(b"d" * 600)

"""The journal in a real ZooKeeper: the fence, lost answers, damage, blobs. Its log: `test_zookeeper_log`."""

from __future__ import annotations

import random
import threading
import time
import zlib
from collections.abc import Callable, Iterator

import pytest
from kazoo.client import KazooClient
from kazoo.exceptions import NodeExistsError

from stoker.zk.codec import (
    LEVEL_MAX,
    SnapshotHeader,
    Term,
    encode_batch,
    encode_pointer,
    encode_term,
    read_pointer,
    read_term,
)
from stoker.zk.core.append import SENDINGS_MAX
from stoker.zk.errors import Corrupt, Fenced, JournalError, TooNew, Unavailable
from stoker.zk.layout import CHUNK_BYTES
from stoker.zk.session import AnswerLost, getting
from stoker.zk.zookeeper_journal import ZooKeeperJournal
from support.homes import Tree, led, opened, wait_until
from support.journals import depose_first, shared_client
from support.zookeeper import Place, needs_zookeeper
from support.zookeeper_proxy import CREATE, GET_DATA, MULTI, Proxy

pytestmark = needs_zookeeper


@pytest.fixture
def tree(zookeeper: Place) -> Tree:
    return Tree(shared_client(), zookeeper.path)


def records_of(zookeeper: Place) -> list[bytes]:
    """Return all records that the next leader finds after the snapshot."""
    with opened(zookeeper.url) as home:
        home.join()
        assert home.wait_turn(60_000)
        return [record for _, records in home.journal().lead().batches for record in records]


# The fence

WRITES: dict[str, Callable[[ZooKeeperJournal], object]] = {
    "append": lambda journal: journal.append(2, [b"too late"]),
    "write_snapshot": lambda journal: journal.write_snapshot(2, b"too late"),
    "put_blob": lambda journal: journal.put_blob(b"too late"),
    "delete_blob": lambda journal: journal.delete_blob(journal.blob_digests()[0]),
}


@pytest.mark.parametrize("what", sorted(WRITES))
def test_a_deposed_leader_changes_nothing(zookeeper: Place, tree: Tree, what: str) -> None:
    """Its session lives, it does not know yet; each of its writes is refused by the ensemble."""
    with opened(zookeeper.url, member="old") as old, opened(zookeeper.url, member="new") as new:
        journal, _ = led(old)
        journal.append(0, [b"0", b"1"])
        journal.put_blob(b"blob")
        depose_first(f"{zookeeper.path}/election")
        next_journal, index = led(new)
        assert index == 2
        before = tree.all()
        with pytest.raises(Fenced):
            WRITES[what](journal)
        with pytest.raises(Fenced):
            journal.check()
        assert tree.all() == before
        next_journal.append(2, [b"2"])
    assert records_of(zookeeper) == [b"0", b"1", b"2"]


def test_the_ensemble_refuses_the_write_not_only_we(zookeeper: Place, tree: Tree) -> None:
    """The same, where nothing on our side can have noticed: the old leader's very multi."""
    with opened(zookeeper.url) as old:
        journal, _ = led(old)
        term = tree.get("epoch")
        session = old._session
        fence = journal._fence()
        tree.set("epoch", term)  # what a new leader does: the node's version grows
        before = tree.all()
        begun = session._client.transaction()
        for name, arguments in (fence, ("create", (session.layout.batch(0), b"late"))):
            getattr(begun, name)(*arguments)
        results = begun.commit()
        assert [type(result).__name__ for result in results] == ["BadVersionError", "RuntimeInconsistency"]
        assert tree.all() == before


def test_a_leader_hears_of_a_new_epoch_before_it_writes(zookeeper: Place, tree: Tree) -> None:
    """A restored journal gets its epoch from the command line, not from a candidate."""
    with opened(zookeeper.url) as home:
        journal, _ = led(home)
        journal.check()
        tree.set("epoch", encode_term(Term(2**20, 1, "restored")))

        def is_fenced() -> bool:
            try:
                journal.check()
            except Fenced:
                return True
            return False

        wait_until(is_fenced)


def test_a_leader_hears_of_a_new_epoch_also_after_its_watch_was_lost(zookeeper: Place, tree: Tree) -> None:
    with Proxy(zookeeper.hosts) as proxy, opened(f"zk://{proxy.address}{zookeeper.path}") as home:
        journal, _ = led(home)
        proxy.cut()
        wait_until(lambda: not home._session._client.connected)
        tree.set("epoch", encode_term(Term(2**20, 1, "restored")))
        proxy.mend()
        wait_until(lambda: home._session._core.end)
        with pytest.raises(Fenced, match="another leader has taken the epoch"):
            journal.append(0, [b"late"])


@pytest.mark.parametrize("part", ["log", "epoch"])
def test_a_journal_that_is_deleted_takes_no_write(zookeeper: Place, tree: Tree, part: str) -> None:
    with opened(zookeeper.url) as home:
        journal, _ = led(home)
        journal.append(0, [b"0"])
        tree.delete(part)
        with pytest.raises(Fenced):
            journal.append(1, [b"1"])
        assert part not in tree.names("")


def test_a_leader_that_hears_nothing_stops_by_itself_before_anybody_else_can_lead(zookeeper: Place) -> None:
    """Trap: while the servers are silent kazoo says nothing at all; the deadline is ours, by our own clock."""
    with Proxy(zookeeper.hosts) as proxy, opened(zookeeper.url, member="next") as following:
        with opened(f"zk://{proxy.address}{zookeeper.path}", session_timeout_ms=8_000) as home:
            journal, _ = led(home)
            following.join()
            proxy.silence()
            ended: list[str] = []

            def append() -> None:
                try:
                    journal.append(0, [b"in doubt"])
                except JournalError as error:
                    ended.append(f"{type(error).__name__}: {error}")

            thread = threading.Thread(target=append)
            thread.start()
            is_over = False
            while not is_over:
                is_next_first = following.wait_turn(0)
                is_over = not _may_act(journal)
                assert is_over or not is_next_first, "two leaders"
                time.sleep(0.005)
            thread.join(60)
            assert ended and ended[0].startswith("Unavailable")
            with pytest.raises(Unavailable):
                journal.check()
            assert following.wait_turn(60_000)
            assert following.journal().lead().epoch == 2
            proxy.mend()  # what it had sent comes late
            with pytest.raises(Unavailable):
                journal.append(0, [b"late"])
    assert records_of(zookeeper) == []


def _may_act(journal: ZooKeeperJournal) -> bool:
    try:
        journal.check()
    except JournalError:
        return False
    return True


def test_a_leader_stays_where_the_silence_is_short(zookeeper: Place) -> None:
    with Proxy(zookeeper.hosts) as proxy:
        with opened(f"zk://{proxy.address}{zookeeper.path}", session_timeout_ms=40_000) as home:
            journal, _ = led(home)
            journal.append(0, [b"0"])
            proxy.cut()
            wait_until(lambda: not home._session._client.connected)
            journal.check()
            proxy.mend()
            journal.append(1, [b"1"])  # waits for the connection
            proxy.drop()
            journal.append(2, [b"2"])
    assert records_of(zookeeper) == [b"0", b"1", b"2"]


def test_a_session_that_expired_is_the_end_and_no_other_is_begun(zookeeper: Place, tree: Tree) -> None:
    """Trap: kazoo goes on with a new session, and what was retried then is written in it."""
    with opened(zookeeper.url) as home:
        journal, _ = led(home)
        client_id = home._session._client.client_id
        twin = KazooClient(hosts=zookeeper.hosts, client_id=client_id)
        twin.start(timeout=60)  # takes the session over from its connection, and then ends it
        twin.stop()
        twin.close()
        wait_until(lambda: home._session._core.end)
        with pytest.raises((Unavailable, Fenced)):
            journal.append(0, [b"late"])
        with pytest.raises((Unavailable, Fenced)):
            home.wait_turn(0)
        wait_until(lambda: home._session._client._connection.connection_stopped.is_set())
        assert home._session._client.client_id is None
    assert tree.names("log") == []


# Lost answers


@pytest.fixture
def lossy(zookeeper: Place) -> Iterator[tuple[Proxy, ZooKeeperJournal]]:
    with Proxy(zookeeper.hosts) as proxy, opened(f"zk://{proxy.address}{zookeeper.path}") as home:
        journal, _ = led(home)
        yield proxy, journal


Lossy = tuple[Proxy, ZooKeeperJournal]


@pytest.mark.parametrize("what", ["request", "reply"])
def test_an_append_whose_answer_is_lost_is_settled(zookeeper: Place, lossy: Lossy, what: str) -> None:
    proxy, journal = lossy
    expected = []
    for number in range(4):
        proxy.lose(what, frozenset((MULTI,)))  # type: ignore[arg-type]
        journal.append(number, [b"%d" % number])
        assert proxy.lost.is_set()
        expected.append(b"%d" % number)
    journal.close()
    depose_first(f"{zookeeper.path}/election")
    assert records_of(zookeeper) == expected


@pytest.mark.parametrize("seed", range(3))
def test_what_was_acknowledged_is_there_once_whatever_the_network_does(zookeeper: Place, seed: int) -> None:
    """One leader after another over a network that loses a request, a reply or the connection every few requests."""
    chance = random.Random(seed)
    acknowledged: list[bytes] = []
    with Proxy(zookeeper.hosts) as proxy:
        for leader in range(3):
            with opened(f"zk://{proxy.address}{zookeeper.path}", member=f"{leader}") as home:
                journal, index = led(home)
                assert index == len(acknowledged)
                for _ in range(25):
                    match chance.randrange(8):
                        case 0:
                            proxy.lose("reply", frozenset((MULTI, GET_DATA)), skip=chance.randrange(3))
                        case 1:
                            proxy.lose("request", skip=chance.randrange(3))
                        case 2:
                            proxy.drop()
                    batch = [b"%d.%d" % (leader, index + n) for n in range(chance.randrange(1, 4))]
                    journal.append(index, batch)
                    acknowledged += batch
                    index += len(batch)
            depose_first(f"{zookeeper.path}/election")  # where the goodbye was lost
    assert records_of(zookeeper) == acknowledged


@pytest.mark.parametrize("what", ["request", "reply"])
@pytest.mark.parametrize("skip", range(6))
def test_a_snapshot_of_which_an_answer_is_lost(zookeeper: Place, lossy: Lossy, what: str, skip: int) -> None:
    """Its multis: the directory, two chunks, the pointer, the cut log, the old snapshot."""
    proxy, journal = lossy
    journal.append(0, [b"0"])
    journal.write_snapshot(1, b"older")
    journal.append(1, [b"1"])
    data = b"x" * CHUNK_BYTES + b"y"
    proxy.lose(what, frozenset((MULTI,)), skip=skip)  # type: ignore[arg-type]
    journal.write_snapshot(2, data)
    assert proxy.lost.is_set()
    depose_first(f"{zookeeper.path}/election")
    with opened(zookeeper.url) as home:
        home.join()
        assert home.wait_turn(60_000)
        found = home.journal().lead()
        assert (found.snapshot_index, found.snapshot, list(found.batches)) == (2, data, [])


@pytest.mark.parametrize("what", ["request", "reply"])
@pytest.mark.parametrize("skip", range(3))
def test_blobs_of_which_an_answer_is_lost(lossy: Lossy, what: str, skip: int) -> None:
    proxy, journal = lossy
    data = b"x" * CHUNK_BYTES + b"y"
    proxy.lose(what, frozenset((MULTI,)), skip=skip)  # type: ignore[arg-type]
    digest = journal.put_blob(data)
    assert journal.get_blob(digest) == data
    journal.put_blob(b"small")
    journal.delete_blob(digest)
    assert proxy.lost.is_set()
    assert journal.get_blob(digest) is None


@pytest.mark.parametrize("what", ["request", "reply"])
def test_an_epoch_whose_answer_is_lost(zookeeper: Place, tree: Tree, what: str) -> None:
    with Proxy(zookeeper.hosts) as proxy, opened(f"zk://{proxy.address}{zookeeper.path}") as home:
        home.join()
        home.wait_turn(60_000)
        proxy.lose(what, frozenset((MULTI,)))  # type: ignore[arg-type]
        journal = home.journal()
        assert journal.lead().epoch == 1
        assert proxy.lost.is_set()
        assert read_term(tree.get("epoch")).epoch == 1
        journal.append(0, [b"0"])


@pytest.mark.parametrize("what", ["request", "reply"])
def test_an_election_node_whose_answer_is_lost_is_not_left_behind(
    zookeeper: Place, tree: Tree, what: str
) -> None:
    """Trap: the node of a creation that was not heard of would block the election as long as the session lives."""
    with Proxy(zookeeper.hosts) as proxy, opened(f"zk://{proxy.address}{zookeeper.path}") as home:
        proxy.lose(what, frozenset((CREATE,)))  # type: ignore[arg-type]
        home.join()
        assert home.wait_turn(60_000)
        assert proxy.lost.is_set()
        assert len(tree.names("election")) == 1
        home.journal().lead()
    assert tree.names("election") == []


@pytest.mark.parametrize("what", ["request", "reply"])
def test_a_path_whose_making_is_not_answered(zookeeper: Place, tree: Tree, what: str) -> None:
    with Proxy(zookeeper.hosts) as proxy:
        proxy.lose(what, frozenset((MULTI,)))  # type: ignore[arg-type]
        with opened(f"zk://{proxy.address}{zookeeper.path}") as home:
            assert proxy.lost.is_set()
            led(home)


@pytest.mark.parametrize("what", ["append", "put_blob", "write_snapshot"])
def test_a_write_that_is_never_answered_ends_the_leadership(
    zookeeper: Place, tree: Tree, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Trap: a server whose jute.maxbuffer is too small ends the connection, and would do so for ever."""
    with opened(zookeeper.url) as home:
        journal, _ = led(home)
        sent: list[object] = []

        def lose(begun: tuple[object, int]) -> None:
            home._session.finish(begun)
            sent.append(begun)
            raise AnswerLost

        monkeypatch.setattr(home._session, "finish_transaction", lose)
        monkeypatch.setattr(home._session, "begin_transaction", lambda *_: home._session.begin(getting("/")))
        writes: dict[str, Callable[[], object]] = {
            "append": lambda: journal.append(0, [b"x" * 1000]),
            "put_blob": lambda: journal.put_blob(b"x" * 1000),
            "write_snapshot": lambda: journal.write_snapshot(0, b"x" * 1000),
        }
        with pytest.raises(Unavailable, match="jute.maxbuffer"):
            writes[what]()
        assert len(sent) == SENDINGS_MAX
        with pytest.raises(Unavailable, match="jute.maxbuffer"):
            journal.check()


def test_requests_without_a_connection_fail_at_once_and_are_not_kept(zookeeper: Place, tree: Tree) -> None:
    """Trap: kazoo keeps them while it is suspended, and sends them whenever there is a connection again."""
    with Proxy(zookeeper.hosts) as proxy, opened(f"zk://{proxy.address}{zookeeper.path}") as home:
        session = home._session
        proxy.cut()
        wait_until(lambda: not session._client.connected)
        with pytest.raises(AnswerLost):
            session.finish(session.begin(lambda client: client.create_async(f"{zookeeper.path}/kept", b"")))
        proxy.mend()
        session.wait_connected()
        session.ask(lambda client: client.sync_async(zookeeper.path))
        assert "kept" not in tree.names("")


def test_a_refused_multi_is_never_taken_for_done(zookeeper: Place) -> None:
    """Trap: kazoo returns a multi's errors among its results, and raises none."""
    with opened(zookeeper.url) as home:
        session = home._session
        with pytest.raises(NodeExistsError):
            session.transact(("check", (session.layout.epoch, -1)), ("create", (session.layout.log, b"")))


# Damage: found before anything is changed


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def newer(data: bytes) -> bytes:
    """Return the batch as a later version of this program might write it."""
    head = bytearray(data[:36])
    head[4] = 9
    return bytes(head) + zlib.crc32(bytes(head)).to_bytes(4, "little") + data[40:]


BATCH = "log/" + "0" * 20
SECOND = "log/" + "0" * 19 + "2"
DAMAGES: dict[str, tuple[type[JournalError], str, Callable[[Tree], None]]] = {
    "flipped header": (Corrupt, "damaged", lambda t: t.set(SECOND, flipped(t.get(SECOND), 9))),
    "flipped record": (Corrupt, "checksum", lambda t: t.set(SECOND, flipped(t.get(SECOND), 44))),
    "torn": (Corrupt, "damaged", lambda t: t.set(SECOND, t.get(SECOND)[:-1])),
    "empty": (Corrupt, "damaged", lambda t: t.set(SECOND, b"")),
    "gap": (Corrupt, "gap", lambda t: t.delete(SECOND)),
    "begin is gone": (Corrupt, "gap", lambda t: t.delete(BATCH)),
    "record twice": (
        Corrupt,
        "were there before",
        lambda t: t.create("log/" + "0" * 19 + "1", encode_batch([b"?"], epoch=1, first_index=1)),
    ),
    "of another index": (
        Corrupt,
        "holds the batch of record 7",
        lambda t: t.set(SECOND, encode_batch([b"2", b"3"], epoch=1, first_index=7)),
    ),
    "of an older epoch": (
        Corrupt,
        "of epoch 0, after one of epoch 1",
        lambda t: t.set(SECOND, encode_batch([b"2", b"3"], epoch=0, first_index=2)),
    ),
    "foreign node": (Corrupt, "'notes', which is no batch", lambda t: t.create("log/notes")),
    "newer batch": (TooNew, "format version 9", lambda t: t.set(SECOND, newer(t.get(SECOND)))),
    "epoch damaged": (Corrupt, "epoch is damaged", lambda t: t.set("epoch", flipped(t.get("epoch"), 14))),
    "newer level": (TooNew, "level", lambda t: t.set("epoch", encode_term(Term(1, LEVEL_MAX + 1, "")))),
    "pointer damaged": (Corrupt, "pointer", lambda t: t.set("snapshot", b"rubbish")),
    "pointer leads nowhere": (
        Corrupt,
        "not whole",
        lambda t: t.set("snapshot", encode_pointer(SnapshotHeader(1, 4, 1, zlib.crc32(b"x")), "none-1")),
    ),
}


@pytest.mark.parametrize("what", sorted(DAMAGES))
def test_a_damaged_journal_is_not_led_and_not_changed(zookeeper: Place, tree: Tree, what: str) -> None:
    error, said, damage = DAMAGES[what]
    with opened(zookeeper.url) as home:
        journal, _ = led(home)
        for index in (0, 2, 4):
            journal.append(index, [b"%d" % index, b"%d" % (index + 1)])
    damage(tree)
    before = tree.all()
    with opened(zookeeper.url) as home:
        home.join()
        assert home.wait_turn(60_000)
        with pytest.raises(error, match=said):
            home.journal().lead()
    assert tree.all() == before


@pytest.mark.parametrize("what", ["flipped", "shorter", "gone"])
def test_a_damaged_snapshot(zookeeper: Place, tree: Tree, what: str) -> None:
    with opened(zookeeper.url) as home:
        journal, _ = led(home)
        journal.append(0, [b"0"])
        journal.write_snapshot(1, b"s" * (CHUNK_BYTES + 10))
    _, name = read_pointer(tree.get("snapshot"))
    chunk = f"snapshots/{name}/000001"
    data = tree.get(chunk)
    if what == "gone":
        tree.delete(chunk)
    else:
        tree.set(chunk, flipped(data, 3) if what == "flipped" else data[:-1])
    before = tree.all()
    with opened(zookeeper.url) as home:
        home.join()
        assert home.wait_turn(60_000)
        with pytest.raises(Corrupt, match="snapshots/.* is (damaged|not whole)"):
            home.journal().lead()
    assert tree.all() == before


def test_a_damaged_blob_is_told_and_mended_by_its_next_writer(zookeeper: Place, tree: Tree) -> None:
    with opened(zookeeper.url) as home:
        journal, _ = led(home)
        digest = journal.put_blob(b"a blob")
        tree.set(f"blobs/{digest}/000000", b"a blub")
        with pytest.raises(Corrupt, match="other digest|another digest"):
            home.get_blob(digest)
        tree.delete(f"blobs/{digest}/000000")
        with pytest.raises(Corrupt, match="not whole"):
            journal.get_blob(digest)
        assert journal.put_blob(b"a blob") == digest
        assert journal.get_blob(digest) == b"a blob"


def test_a_blob_that_was_never_finished_is_none(zookeeper: Place, tree: Tree) -> None:
    with opened(zookeeper.url) as home:
        journal, _ = led(home)
        digest = journal.put_blob(b"a blob")
        tree.set(f"blobs/{digest}", b"")  # what an interrupted writer leaves
        assert journal.get_blob(digest) is None
        assert journal.blob_digests() == [digest]  # so that it is forgotten one day
        journal.put_blob(b"a blob")
        assert journal.get_blob(digest) == b"a blob"
        tree.set(f"blobs/{digest}", b"")
        journal.delete_blob(digest)
        assert tree.names("blobs") == []

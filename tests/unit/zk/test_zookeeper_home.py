"""A home in a real ZooKeeper: first use, candidates and their turns, followers, what is refused."""

from __future__ import annotations

import logging
import pathlib
import threading
import time
import uuid
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from kazoo.client import KazooClient
from kazoo.security import make_acl, make_digest_acl

from stoker.zk.codec import SCHEMA_MAGIC, encode_schema, read_schema
from stoker.zk.errors import Corrupt, Denied, Incomplete, JournalError, TooNew, Unavailable
from stoker.zk.home import Home, open_home
from stoker.zk.local_home import LocalHome
from stoker.zk.zookeeper import BEHIND_MAX, ZooKeeperHome
from support.homes import Following, Tree, led, opened, wait_until
from support.journals import batches, shared_client
from support.zookeeper import Place, ZooKeeperServer, needs_zookeeper, reserve_port
from support.zookeeper_proxy import Proxy

pytestmark = needs_zookeeper
FOLDERS = ["blobs", "election", "epoch", "log", "schema", "snapshot", "snapshots"]


@pytest.fixture
def short_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stoker.zk.session.START_MS_MIN", 500)


@pytest.fixture
def tree(zookeeper: Place) -> Tree:
    return Tree(shared_client(), zookeeper.path)


# First use


def test_the_path_is_made_on_first_use_and_found_afterwards(zookeeper: Place, tree: Tree) -> None:
    with opened(zookeeper.url):
        assert tree.names("") == FOLDERS
        made = tree.all()
    with opened(zookeeper.url), opened(zookeeper.url):
        assert tree.all() == made
    assert len(read_schema(made["/schema"])) == 32


def test_many_schedulers_may_use_a_new_path_at_once(zookeeper: Place, tree: Tree) -> None:
    errors: list[BaseException] = []

    def use() -> None:
        try:
            with opened(zookeeper.url) as home:
                home.join()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=use) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert tree.names("") == FOLDERS and tree.names("election") == []


def test_a_home_of_a_directory_is_always_first(tmp_path: pathlib.Path) -> None:
    home = open_home(f"file:{tmp_path}/j", member="http://me", owner="me", session_timeout_ms=1000)
    assert isinstance(home, LocalHome)
    home.start()
    home.join()
    assert home.wait_turn(0) and home.members() == ("http://me",)
    assert list(home.follow(0)) == [None]
    journal = home.journal()
    assert journal.lead().epoch == 1
    assert home.get_blob(journal.put_blob(b"x")) == b"x"
    home.stop_following()
    home.close()
    home.close()


# Candidates


def test_turns_come_in_the_order_of_joining_and_at_once_when_one_leaves(zookeeper: Place) -> None:
    with (
        opened(zookeeper.url, member="http://a") as first,
        opened(zookeeper.url, member="http://b") as second,
    ):
        first.join()
        assert first.wait_turn(60_000)
        second.join()
        with opened(zookeeper.url, member="http://c") as third:
            wait_until(lambda: second.members() == ("http://a", "http://b"))
            third.join()
            for home in (first, second, third):
                wait_until(lambda home=home: home.members() == ("http://a", "http://b", "http://c"))
            assert not second.wait_turn(50) and not third.wait_turn(50)
        wait_until(lambda: first.members() == second.members() == ("http://a", "http://b"))
        first.close()
        assert second.wait_turn(60_000)
        wait_until(lambda: second.members() == ("http://b",))


def test_a_follower_knows_the_candidates_without_being_one(zookeeper: Place) -> None:
    with opened(zookeeper.url, member="http://a") as first, opened(zookeeper.url) as onlooker:
        assert onlooker.members() == ()
        first.join()
        wait_until(lambda: onlooker.members() == ("http://a",))


def test_only_who_is_first_may_lead(zookeeper: Place, tree: Tree) -> None:
    with opened(zookeeper.url) as first, opened(zookeeper.url) as second:
        led(first)
        second.join()
        epoch = tree.get("epoch")
        with pytest.raises(Unavailable, match="not this scheduler's turn"):
            second.journal().lead()
        assert tree.get("epoch") == epoch


def test_close_wakes_whoever_waits(zookeeper: Place) -> None:
    with opened(zookeeper.url) as first, opened(zookeeper.url) as second:
        first.join()
        first.wait_turn(60_000)
        second.join()
        following = Following(second)
        ends: list[BaseException] = []

        def wait() -> None:
            try:
                second.wait_turn()
            except JournalError as error:
                ends.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        second.close()
        thread.join(60)
        assert isinstance(ends[0], Unavailable)
        following.stop()


def test_close_is_soon_over_also_when_nobody_answers(zookeeper: Place) -> None:
    with Proxy(zookeeper.hosts) as proxy:
        home = open_home(
            f"zk://{proxy.address}{zookeeper.path}", member="a", owner="a", session_timeout_ms=600_000
        )
        home.start()
        home.join()
        assert home.wait_turn(60_000)
        proxy.silence()
        began = time.monotonic()
        home.close()
        home.close()
        assert time.monotonic() - began < 60  # two seconds, far below the session's timeout


def test_a_process_does_not_wait_for_its_own_earlier_session(zookeeper: Place) -> None:
    """Its goodbye was not heard, so the old node stands before the new one until the old session has run out."""
    process = uuid.uuid4().hex
    with Proxy(zookeeper.hosts) as proxy:

        def make(hosts: str) -> Home:
            return open_home(
                f"zk://{hosts}{zookeeper.path}",
                member="http://me",
                owner="me",
                session_timeout_ms=60_000,
                process=process,
            )

        earlier = make(proxy.address)
        earlier.start()
        led(earlier)
        proxy.silence()
        earlier.close()
        again = make(zookeeper.hosts)
        again.start()
        led(again)
        wait_until(lambda: again.members() == ("http://me",))
        again.close()


def test_an_election_that_is_deleted_ends_the_session_and_not_silently(zookeeper: Place, tree: Tree) -> None:
    """Trap: kazoo's watch on children that are gone for good just stops, for ever."""
    with opened(zookeeper.url) as leader, opened(zookeeper.url) as waiting:
        led(leader)
        waiting.join()
        wait_until(lambda: len(tree.names("election")) == 2)
        tree.delete("election")
        for home in (leader, waiting):
            wait_until(lambda home=home: home._session._core.end)
            with pytest.raises(JournalError, match="deleted|taken away"):
                home.wait_turn(0)
        with pytest.raises(JournalError, match="deleted|taken away"):
            leader.journal().check()


# Followers


@pytest.fixture
def pair(zookeeper: Place) -> Iterator[tuple[ZooKeeperHome, ZooKeeperHome]]:
    with opened(zookeeper.url, member="a") as leader, opened(zookeeper.url, member="b") as follower:
        yield leader, follower


Pair = tuple[ZooKeeperHome, ZooKeeperHome]


def test_a_follower_sees_every_batch_as_it_comes(pair: Pair) -> None:
    journal, _ = led(pair[0])
    following = Following(pair[1])
    index = 0
    for records in batches(5):
        following.wait(index)
        journal.append(index, records)
        index += len(records)
    following.wait(index)
    assert following.state() == (None, [record for batch in batches(5) for record in batch])
    assert pair[1].newest_index() == index
    following.stop()
    following.stop()


@pytest.mark.parametrize("from_index", [0, 1, 3, 7, 300])
def test_a_follower_goes_on_from_where_it_is(pair: Pair, from_index: int) -> None:
    journal, _ = led(pair[0])
    records = [b"%d" % number for number in range(300)]
    for index in range(0, 300, 3):
        journal.append(index, records[index : index + 3])
    following = Following(pair[1], from_index)
    following.wait(300)
    assert following.state() == (None, records[from_index:])
    following.stop()


def test_a_follower_that_is_far_behind_catches_up_while_the_leader_goes_on(pair: Pair) -> None:
    journal, _ = led(pair[0])
    following = Following(pair[1])
    index = 0
    for records in batches(20 * BEHIND_MAX, records=1):
        journal.append(index, records)
        index += 1
    following.wait(index)
    assert following.state()[1] == [record for batch in batches(index, records=1) for record in batch]
    following.stop()


def test_a_follower_gets_the_snapshot_where_the_log_was_cut(pair: Pair) -> None:
    journal, _ = led(pair[0])
    for number in range(10):
        journal.append(number, [b"%d" % number])
    journal.write_snapshot(8, b"state before 8")
    late = Following(pair[1])
    late.wait(10)
    assert late.state() == (b"state before 8", [b"8", b"9"])
    journal.append(10, [b"10"])
    late.wait(11)
    journal.write_snapshot(11, b"state before 11")  # it has all of that already
    journal.append(11, [b"11"])
    late.wait(12)
    assert late.state() == (b"state before 8", [b"8", b"9", b"10", b"11"])
    late.stop()


def test_a_follower_is_not_left_behind_when_batches_come_and_go_while_it_looks(pair: Pair) -> None:
    """The batch that it waits for may be written and cut before it looks: no watch would ever tell."""
    journal, _ = led(pair[0])
    following = Following(pair[1])
    index = 0
    for records in batches(60, records=2):
        journal.append(index, records)
        index += len(records)
        journal.write_snapshot(index, b"state before %d" % index)
    following.wait(index)
    snapshot, tail = following.state()
    expected = [record for batch in batches(60, records=2) for record in batch]
    assert tail == expected[len(expected) - len(tail) :]
    assert snapshot is None or snapshot == b"state before %d" % (index - len(tail))
    following.stop()


def test_a_follower_takes_over_with_what_it_has(zookeeper: Place) -> None:
    with opened(zookeeper.url, member="b") as follower:
        with opened(zookeeper.url, member="a") as leader:
            journal, _ = led(leader)
            for number in range(6):
                journal.append(number, [b"%d" % number])
            following = Following(follower)
            following.wait(6)
            follower.join()
            journal.append(6, [b"6"])
            digest = journal.put_blob(b"a blob")
            assert follower.get_blob(digest) == b"a blob"
        assert follower.wait_turn(60_000)
        following.stop()
        found = follower.journal().lead(6)
        assert (found.resumed, found.snapshot, found.snapshot_index) == (True, None, 6)
        assert list(found.batches) == [(6, [b"6"])]
        assert found.epoch == 2


def test_a_follower_hears_that_its_session_ended(zookeeper: Place) -> None:
    with Proxy(zookeeper.hosts) as proxy:
        url = f"zk://{proxy.address}{zookeeper.path}"
        with opened(url, session_timeout_ms=4_000) as home:
            following = Following(home)
            wait_until(lambda: following.is_caught_up)
            proxy.cut()
            wait_until(lambda: following.error)
            assert isinstance(following.error, Unavailable)
            with pytest.raises(Unavailable):
                home.wait_turn(0)


def test_a_follower_outlives_a_broken_connection(zookeeper: Place) -> None:
    with Proxy(zookeeper.hosts) as proxy, opened(zookeeper.url) as leader:
        journal, _ = led(leader)
        with opened(f"zk://{proxy.address}{zookeeper.path}") as follower:
            following = Following(follower)
            for number in range(5):
                following.wait(number)
                proxy.drop()
                journal.append(number, [b"%d" % number])
            following.wait(5)
            assert following.state() == (None, [b"0", b"1", b"2", b"3", b"4"])
            following.stop()


# What is refused


def assert_refused(
    zookeeper: Place, tree: Tree, error: type[JournalError], said: str, **options: str
) -> None:
    before = tree.all()
    home = open_home(zookeeper.url, member="a", owner="a", session_timeout_ms=20_000, **options)  # type: ignore[arg-type]
    with pytest.raises(error, match=said) as raised:
        home.start()
    home.close()
    assert len(str(raised.value).splitlines()) == 1
    assert tree.all() == before


def test_another_application_s_data_under_the_path(zookeeper: Place, tree: Tree) -> None:
    tree.create("brokers/ids", b"somebody's")
    assert_refused(zookeeper, tree, Corrupt, "holds another application's data .brokers.")


def test_a_node_without_children_that_is_another_application_s(zookeeper: Place, tree: Tree) -> None:
    tree.client.create(tree.root, b"somebody's", makepath=True)
    assert_refused(zookeeper, tree, Corrupt, "holds another application's data .10 bytes.")


def test_a_schema_that_is_another_application_s(zookeeper: Place, tree: Tree) -> None:
    tree.create("schema", b'{"version": 3}')
    assert_refused(zookeeper, tree, Corrupt, "schema in ZooKeeper is not a Stoker journal's")


def test_a_newer_schema(zookeeper: Place, tree: Tree) -> None:
    schema = bytearray(encode_schema("x"))
    schema[4] = 2
    payload = bytes(schema[12:])
    schema[8:12] = zlib.crc32(payload, zlib.crc32(bytes(schema[:8]))).to_bytes(4, "little")
    assert schema[:4] == SCHEMA_MAGIC
    tree.create("schema", bytes(schema))
    assert_refused(zookeeper, tree, TooNew, "format version 2")


@pytest.mark.parametrize("part", FOLDERS)
def test_a_journal_of_which_a_part_was_deleted(zookeeper: Place, tree: Tree, part: str) -> None:
    with opened(zookeeper.url):
        pass
    tree.delete(part)
    if part in ("log", "snapshot"):  # also where it happens later
        with opened(zookeeper.url.replace("/stoker", "/other")) as home:
            Tree(tree.client, tree.root.replace("/stoker", "/other")).delete(part)
            with pytest.raises(Corrupt, match="not whole"):
                list(home.follow(0))
    assert_refused(zookeeper, tree, Incomplete, "not whole")


def test_a_path_that_others_may_not_touch(zookeeper: Place, tree: Tree) -> None:
    with opened(zookeeper.url.replace("zk://", "zk://me:hidden@"), member="a") as home:
        led(home)
        with client_of(zookeeper, "me:hidden") as client:
            candidate = client.get_children(f"{zookeeper.path}/election")[0]
            for path in ["", *(f"/{name}" for name in FOLDERS), f"/election/{candidate}"]:
                acls, _ = client.get_acls(zookeeper.path + path)
                assert acls == [make_digest_acl("me", "hidden", all=True)]
        for user in ("", "other:hidden@", "me:wrong@"):
            with pytest.raises(Denied, match="no right") as raised:
                open_home(
                    zookeeper.url.replace("zk://", f"zk://{user}"),
                    member="b",
                    owner="b",
                    session_timeout_ms=20_000,
                ).start()
            assert "hidden" not in str(raised.value) and "wrong" not in str(raised.value)


@contextmanager
def client_of(place: Place, credentials: str) -> Iterator[KazooClient]:
    client = KazooClient(hosts=place.hosts, auth_data=[("digest", credentials)])
    client.start(timeout=60)
    try:
        yield client
    finally:
        client.stop()
        client.close()


def test_a_path_that_may_be_read_only(zookeeper: Place, tree: Tree) -> None:
    with opened(zookeeper.url):
        pass
    client = shared_client()
    reader = [make_digest_acl("admin", "x", all=True), make_acl("world", "anyone", read=True)]
    for name in ("log", "election", "epoch"):
        client.set_acls(f"{zookeeper.path}/{name}", reader)
        assert_refused(zookeeper, tree, Denied, "no right")


def test_no_secret_in_any_log_or_text(
    zookeeper: Place, caplog: pytest.LogCaptureFixture, tmp_path: pathlib.Path
) -> None:
    """Trap: kazoo logs every request at DEBUG level, the one with the credentials too."""
    caplog.set_level(logging.DEBUG)
    (tmp_path / "secret").write_text("hidden-word\n")
    url = zookeeper.url.replace("zk://", "zk://me@")
    with opened(url, secret=f"file:{tmp_path}/secret") as home:
        journal, _ = led(home)
        journal.append(0, [b"x"])
        assert "hidden-word" not in repr(vars(home)) + repr(home._session._place)
    assert "hidden-word" not in caplog.text


def test_nobody_serves_there(short_start: None) -> None:
    port = reserve_port()
    home = open_home(f"zk://127.0.0.1:{port}/stoker", member="a", owner="a", session_timeout_ms=1000)
    with pytest.raises(
        Unavailable, match=f"no ZooKeeper server can be reached: 127.0.0.1:{port} does not answer"
    ):
        home.start()
    home.close()


def test_a_host_that_does_not_exist(short_start: None) -> None:
    home = open_home("zk://no-such-host.invalid:1/stoker", member="a", owner="a", session_timeout_ms=1000)
    with pytest.raises(Unavailable, match=r"no-such-host.invalid:1 does not answer.*can be resolved"):
        home.start()
    home.close()


def test_a_server_that_says_nothing(zookeeper: Place, short_start: None) -> None:
    with Proxy(zookeeper.hosts) as proxy:
        proxy.silence()
        home = open_home(f"zk://{proxy.address}/stoker", member="a", owner="a", session_timeout_ms=1000)
        with pytest.raises(Unavailable, match="does not answer"):
            home.start()
        home.close()


def test_a_read_only_server(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, short_start: None
) -> None:
    """Trap: a client that allows read-only servers is told CONNECTED; ours does not, and asks the server why not."""
    monkeypatch.setattr("stoker.zk.session.SERVER_S", 30)
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Dreadonlymode.enabled=true")
    members = [f"server.{n}=127.0.0.1:{reserve_port()}:{reserve_port()}:participant" for n in (1, 2)]
    server = ZooKeeperServer(tmp_path / "alone", number=1, members=members)
    server.start(wait=False)
    try:
        wait_until(lambda: "read-only" in server.ask("srvr"))
        home = open_home(f"zk://{server.address}/stoker", member="a", owner="a", session_timeout_ms=1000)
        with pytest.raises(Unavailable, match="read-only"):
            home.start()
        home.close()
    finally:
        server.kill()


@pytest.mark.parametrize("timeout_ms", [0, 999, 600_001])
def test_a_session_timeout_out_of_range(timeout_ms: int) -> None:
    with pytest.raises(ValueError, match="1000 to 600000 are allowed"):
        open_home("zk://h/p", member="a", owner="a", session_timeout_ms=timeout_ms)


def test_a_new_home_takes_out_of_the_election_what_earlier_ones_of_its_process_left_there(
    zookeeper: Place, tree: Tree
) -> None:
    """A leader without ZooKeeper cannot leave; when it is back, nobody waits for the session that was given up."""
    options = {"owner": "o", "session_timeout_ms": 10_000, "process": "ab" * 16}
    with Proxy(zookeeper.hosts) as proxy, opened(zookeeper.url) as other:
        earlier = open_home(f"zk://{proxy.address}{zookeeper.path}", member="http://a", **options)
        earlier.start()
        earlier.join()
        assert earlier.wait_turn(30_000)
        other.join()
        proxy.cut()
        earlier.close()
        assert len(tree.names("election")) == 2
        later = open_home(zookeeper.url, member="http://a", **options)
        later.start()
        try:
            assert other.wait_turn(30_000)
            assert len(tree.names("election")) == 1
        finally:
            later.close()


def test_many_begin_a_journal_at_once(zookeeper: Place) -> None:
    """Whoever is late finds it made between two looks."""
    for number in range(5):
        url = zookeeper.url.replace("/stoker", f"/at-once-{number}")
        homes = [open_home(url, member=f"m{n}", owner="o", session_timeout_ms=20_000) for n in range(8)]
        with ThreadPoolExecutor(len(homes)) as starting:
            failed = [error for error in starting.map(_failure_of_start, homes) if error is not None]
        for home in homes:
            home.close()
        assert not failed


def _failure_of_start(home: Home) -> Exception | None:
    try:
        home.start()
    except Exception as error:
        return error
    return None

"""Following the journal, and taking over from there: what is applied, in which slices, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gevent
import pytest
from gevent.threadpool import ThreadPool

from stoker.framework import following
from stoker.framework.config import Config
from stoker.framework.core import entries as e
from stoker.framework.core.catalog import Catalog
from stoker.framework.core.codec import encode_entry
from stoker.framework.errors import Fatal
from stoker.framework.following import Follower, Replica, check_belongs, role_note, take_over
from stoker.framework.journaling import JournalGreenlets
from stoker.framework.model import FleetSpec
from stoker.framework.snapshots import encode_snapshot
from stoker.zk.errors import Corrupt, TooNew, Unavailable
from support.memberships import Place
from support.waiting import DEADLINE_S

ZK = Config(master="m:5050", journal="zk://z:2181/stoker")
FOUNDED = (
    e.ClusterCreated(bytes(16), "stoker", 1),
    e.EpochBegan(1, 1, "m:5050"),
    e.FleetSet(FleetSpec(0, 2**30, 100, "*")),
)


def added(number: int) -> e.DatasetAdded:
    return e.DatasetAdded(number, f"d{number}", "/x", (), 1, "keep", "mem", 0, number)


def records(*some: Any) -> list[bytes]:
    return [encode_entry(entry) for entry in some]


@pytest.fixture
def workers() -> Iterator[ThreadPool]:
    pool = ThreadPool(1)
    yield pool
    pool.kill()


@pytest.fixture
def place() -> Place:
    place = Place()
    place.journal.records = records(*FOUNDED, added(1))
    return place


@pytest.fixture
def follow(place: Place, workers: ThreadPool) -> Iterator[Any]:
    made: list[Follower] = []
    failures: list[Exception] = []

    def make(config: Config = ZK) -> tuple[Follower, Any, list[Exception]]:
        home = place.home("http://one:1")
        made.append(Follower(home, config, workers, failures.append))  # type: ignore[arg-type]
        return made[-1], home, failures

    yield make
    for follower in made:
        follower.kill()


def until(condition: Any) -> None:
    with gevent.Timeout(DEADLINE_S):
        while not condition():
            gevent.sleep(0.005)


def names(replica: Replica) -> list[str]:
    return [dataset.name for dataset in replica.catalog.datasets.values()]


def test_a_follower_holds_what_the_journal_says_and_what_it_says_later(place: Place, follow: Any) -> None:
    follower, _, failures = follow()
    assert follower.caught_up.wait(DEADLINE_S)
    assert (names(follower.replica), follower.replica.next_index, follower.behind_records) == (["d1"], 4, 0)
    place.journal.records += records(added(2), added(3))
    assert follower.behind_records == 2
    place.tell()
    until(lambda: follower.replica.next_index == 6)
    assert names(follower.replica) == ["d1", "d2", "d3"] and not failures


def test_a_snapshot_beyond_a_follower_takes_the_place_of_what_it_had(place: Place, follow: Any) -> None:
    follower, _, _ = follow()
    assert follower.caught_up.wait(DEADLINE_S)
    catalog = Catalog()
    for entry in (*FOUNDED, added(1), added(2), e.DatasetRemoved(1)):
        catalog.apply(entry)
    place.journal.records += records(added(2), e.DatasetRemoved(1), added(3))
    place.journal.write_snapshot(6, encode_snapshot(catalog))
    place.tell()
    until(lambda: follower.replica.next_index == 7)
    assert names(follower.replica) == ["d2", "d3"]


def test_a_replica_has_the_epoch_of_its_snapshot_before_any_record_came(workers: ThreadPool) -> None:
    catalog = Catalog()
    for entry in (*FOUNDED, e.EpochBegan(7, 1, "m:5050")):
        catalog.apply(entry)
    replica = Replica(workers)
    replica.restore(4, encode_snapshot(catalog))
    assert replica.epoch == 7
    replica.epoch = 9  # of who led since, and wrote something else than its epoch
    replica.restore(4, encode_snapshot(catalog))
    assert replica.epoch == 9


def test_who_stops_following_has_applied_all_that_came(place: Place, follow: Any) -> None:
    follower, _, _ = follow()
    assert follower.caught_up.wait(DEADLINE_S)
    follower.stop()
    place.journal.records += records(added(2))
    place.tell()
    gevent.sleep(0.02)
    assert names(follower.replica) == ["d1"], "what comes later is the leader's to read"
    follower.stop()


@pytest.mark.parametrize(
    ("record", "kind", "says"),
    [
        (b"\xc1", Corrupt, "record 4"),
        (encode_entry(added(1)), Corrupt, "record 4 does not follow"),
        (b"\x92\xabFutureEntry\x90", TooNew, "FutureEntry.*newer"),
    ],
)
def test_a_record_that_cannot_be_applied_ends_it_and_is_named(
    place: Place, follow: Any, record: bytes, kind: type[Exception], says: str
) -> None:
    place.journal.records.append(record)
    follower, _, failures = follow()
    until(lambda: failures)
    with pytest.raises(kind, match=says):
        raise failures[0]
    with pytest.raises(kind):
        follower.stop()
    assert not follower.caught_up.is_set()


def test_the_end_of_the_session_is_told(follow: Any) -> None:
    follower, home, failures = follow()
    assert follower.caught_up.wait(DEADLINE_S)
    home.fail(Unavailable("expired"))
    until(lambda: failures)
    assert isinstance(failures[0], Unavailable)


def test_a_gap_is_refused_and_what_is_known_already_passed_over(workers: ThreadPool) -> None:
    replica = Replica(workers)
    replica.apply(0, records(*FOUNDED, added(1)))
    replica.apply(2, records(FOUNDED[2], added(1), added(2)))
    assert (names(replica), replica.next_index) == (["d1", "d2"], 5)
    with pytest.raises(Corrupt, match="record 5 is missing"):
        replica.apply(6, records(added(3)))


@pytest.mark.parametrize(
    "data", [b"", b"\x93\x01\x02\x03", encode_snapshot(Catalog())[:-1], encode_snapshot(Catalog()) + b"\0"]
)
def test_a_snapshot_that_is_none_is_refused(workers: ThreadPool, data: bytes) -> None:
    with pytest.raises(Corrupt, match="the snapshot at index 7"):
        Replica(workers).restore(7, data)


def test_a_long_journal_is_applied_in_slices(workers: ThreadPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With slices of no time at all, the hub gets a turn at each look at the clock."""
    monkeypatch.setattr(following, "SLICE_MS", 0)
    monkeypatch.setattr(following, "RECORDS_A_LOOK", 10)
    turns = 0

    def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            gevent.sleep(0)

    counter = gevent.spawn(count)
    count_of = 20 * following.RECORDS_A_LOOK
    replica = Replica(workers)
    replica.apply(0, records(*FOUNDED, *(added(number) for number in range(1, count_of))))
    counter.kill()
    assert turns >= 19 and len(names(replica)) == count_of - 1


# --- taking over


def test_a_replica_goes_on_where_it_is(place: Place, workers: ThreadPool) -> None:
    replica = Replica(workers)
    replica.apply(0, list(place.journal.records))
    place.journal.records += records(added(2))
    recovered, after = take_over(JournalGreenlets(place.home("a").journal()), replica, workers)
    assert after is replica and recovered.resumed and place.led_from == [4]
    assert (names(after), after.next_index, after.epoch) == (["d1", "d2"], 5, 1)


def test_a_replica_that_fell_behind_a_snapshot_is_replaced(place: Place, workers: ThreadPool) -> None:
    replica = Replica(workers)
    replica.apply(0, place.journal.records[:3])
    catalog = Catalog()
    for entry in (*FOUNDED, added(1)):
        catalog.apply(entry)
    place.journal.write_snapshot(4, encode_snapshot(catalog))
    place.journal.records += records(added(2))
    recovered, after = take_over(JournalGreenlets(place.home("a").journal()), replica, workers)
    assert after is not replica and not recovered.resumed
    assert (names(after), after.next_index) == (["d1", "d2"], 5)
    assert names(replica) == []


def test_without_a_replica_all_is_read(place: Place, workers: ThreadPool) -> None:
    _, after = take_over(JournalGreenlets(place.home("a").journal()), None, workers)
    assert (names(after), after.next_index, place.led_from) == (["d1"], 4, [0])


# --- another cluster's journal


def catalog_of(**fields: Any) -> Catalog:
    catalog = Catalog()
    for entry in FOUNDED:
        catalog.apply(entry)
    for name, value in fields.items():
        setattr(catalog, name, value)
    return catalog


def test_the_journal_of_the_own_cluster_is_followed() -> None:
    check_belongs(catalog_of(), ZK)
    check_belongs(catalog_of(master=""), ZK)  # written before masters were
    check_belongs(Catalog(), ZK)
    check_belongs(catalog_of(roles_had=("new", "*")), ZK)  # the fleet's role was changed since
    check_belongs(catalog_of(), Config(master="n:1", journal="zk://z:2181/stoker", new_master=True))
    check_belongs(catalog_of(name="other"), Config(master="m:5050", journal="file:/x"))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"name": "other"}, "--name 'other', not 'stoker'; nothing was changed$"),
        ({"master": "n:5050"}, "--master 'n:5050', not 'm:5050'.*--new-master"),
        ({"name": "x", "master": "n:5050"}, "--name .* and --master"),
    ],
)
def test_the_journal_of_another_cluster_is_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(Fatal, match=says):
        check_belongs(catalog_of(**fields), Config(master="m:5050", journal="zk://u:secret@z:2181/stoker"))
    with pytest.raises(Fatal) as caught:
        check_belongs(catalog_of(**fields), Config(master="m:5050", journal="zk://u:secret@z:2181/stoker"))
    assert "secret" not in str(caught.value)


def test_another_role_than_the_fleet_ever_had_is_refused_but_no_role_is_only_warned_of() -> None:
    catalog = catalog_of(roles_had=("cache", "older"))
    for role in ("train", "*"):
        with pytest.raises(Fatal, match=f"--role 'cache', not '{re.escape(role)}'; nothing was changed$"):
            check_belongs(catalog, Config(master="m:5050", journal="zk://z:2181/stoker", role=role))
    check_belongs(catalog, Config(master="m:5050", journal="zk://z:2181/stoker", role="older"))
    check_belongs(catalog, ZK)
    catalog.apply(e.FleetSet(FleetSpec(0, 2**30, 100, "cache", roles_more=("more",))))
    assert "this cluster's fleet has cache and more, and goes on" in role_note(catalog, ZK)
    assert not role_note(catalog, replace(ZK, role="older")) and not role_note(catalog_of(), ZK)


def test_a_follower_of_another_clusters_journal_ends(follow: Any) -> None:
    follower, _, failures = follow(Config(master="m:5050", journal="zk://z:2181/stoker", name="mine"))
    until(lambda: failures)
    assert isinstance(failures[0], Fatal) and not follower.caught_up.is_set()

"""Schedulers that share a place: one leads, the others follow, and all of them go on in their process when that changes."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from gevent.hub import get_hub

from stoker.framework.config import Config
from stoker.framework.core.codec import encode_entry
from stoker.framework.core.entries import JournalRestored
from stoker.framework.daemon import Daemon
from stoker.framework.errors import Fatal, NotLeading
from stoker.zk.errors import Corrupt, Denied, Fenced, TooNew, Unavailable
from support.memberships import MemoryHome, Place
from support.schedulers import Api, FakeDriver, MemoryJournal
from support.waiting import DEADLINE_S


class Scheduler:
    """A daemon in greenlets of this process; its homes are those of `place`."""

    def __init__(self, place: Place, scratch: pathlib.Path, **options: Any) -> None:
        self.place = place
        self.homes: list[MemoryHome] = []
        self.drivers: list[FakeDriver] = []
        self.start_error: Exception | None = None
        fields = {"instances": 0, "new_cluster": True, "scratch_dir": str(scratch)} | options
        config = Config(master="127.0.0.1:1", journal="zk://nowhere:1/stoker", port=0, **fields)
        self.daemon = Daemon(config, "", open_home=self._open_home, make_driver=self._make_driver)
        self.greenlet = gevent.spawn(self.daemon.run)
        until(lambda: self.greenlet.ready() or self.daemon._url)

    def _open_home(self, url: str, *, member: str, **_: Any) -> MemoryHome:
        home = self.place.home(member)
        if self.start_error is not None:
            home.failure = self.start_error
            home.start = home._check  # type: ignore[method-assign]
        self.homes.append(home)
        return home

    def _make_driver(self, scheduler: Any, framework: dict[str, Any]) -> FakeDriver:
        self.drivers.append(FakeDriver(scheduler, framework))
        return self.drivers[-1]

    @property
    def url(self) -> str:
        return self.daemon._url

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Ask its API, while the greenlets of this thread go on."""
        return get_hub().threadpool.apply(Api(self.url).call, (method, path, body))

    def about(self) -> dict[str, Any]:
        status, body = self.call("GET", "/v1/leader")
        assert status == 200
        return dict(body)

    def wait_state(self, state: str) -> dict[str, Any]:
        return dict(until(lambda: (about := self.about())["state"] == state and about))

    def stop(self) -> None:
        self.daemon.stop()
        self.greenlet.join(DEADLINE_S)


def until(condition: Any) -> Any:
    with gevent.Timeout(DEADLINE_S):
        while not (found := condition()):
            gevent.sleep(0.01)
    return found


@pytest.fixture
def make(tmp_path: pathlib.Path) -> Iterator[Any]:
    made: list[Scheduler] = []

    def make_one(place: Place, **options: Any) -> Scheduler:
        made.append(Scheduler(place, tmp_path / f"scratch{len(made)}", **options))
        return made[-1]

    yield make_one
    for scheduler in made:
        if not scheduler.greenlet.ready():
            scheduler.stop()


@pytest.fixture
def pair(make: Any) -> tuple[Scheduler, Scheduler]:
    """Return a leader and its follower."""
    place = Place()
    leader = make(place)
    leader.wait_state("leading")
    follower = make(place)
    until(lambda: follower.about()["leader"] == leader.url)
    return leader, follower


def test_a_follower_says_how_far_it_is_and_sends_everybody_else_on(pair: tuple[Scheduler, Scheduler]) -> None:
    leader, follower = pair
    about = follower.wait_state("following")
    mesos = {"subscribed": False, "reason": "only the scheduler that leads speaks to Mesos"}
    assert about == leader.about() | {"self": follower.url, "state": "following", "mesos": mesos}
    assert about["schedulers"] == [leader.url, follower.url] and about["next_index"] > 0 and about["cluster"]
    status, body = follower.call("GET", "/health")
    assert (status, body["error"]["code"]) == (503, "not_leading") and leader.url in body["error"]["message"]
    assert follower.call("GET", "/alive")[0] == follower.call("GET", "/v1/openapi.json")[0] == 200
    for method, path in (
        ("GET", "/v1/datasets"),
        ("POST", "/v1/jobs"),
        ("PUT", "/v1/fleet"),
        ("DELETE", "/v1/jobs/x"),
    ):
        assert follower.call(method, path, None if method == "GET" else {})[0] == 307
    metrics = follower.call("GET", "/metrics")[1].decode()
    assert "stoker_following 1.0" in metrics and "stoker_leading 0.0" in metrics
    assert "stoker_journal_behind_records 0.0" in metrics
    assert f"stoker_journal_next_index {about['next_index']:.1f}" in metrics


def test_a_leader_that_loses_its_session_follows_in_the_same_process(
    pair: tuple[Scheduler, Scheduler],
) -> None:
    leader, follower = pair
    old, before = leader.daemon._leadership, leader.about()
    assert old is not None and leader.drivers[0].is_started
    leader.homes[-1].fail(Unavailable("no answer for two thirds of the session"))
    after = follower.wait_state("leading")
    assert after["epoch"] == 2 and after["cluster"] == before["cluster"]
    until(lambda: leader.about()["leader"] == follower.url)
    assert not leader.drivers[0].is_started and len(leader.drivers) == 1
    assert old.loop.ended.ready() and leader.homes[0].is_closed and len(leader.homes) == 2
    assert leader.place.led_from[1] == before["next_index"], "taken over from where it had followed"
    assert leader.call("GET", "/v1/datasets")[0] == 307
    follower.homes[-1].fail(Unavailable("expired"))
    assert leader.wait_state("leading")["epoch"] == 3


def test_a_leader_whose_epoch_is_taken_says_and_does_nothing_more(pair: tuple[Scheduler, Scheduler]) -> None:
    """It was stopped, and another led meanwhile: the first look at the fence ends it, whoever asks first."""
    leader, follower = pair
    leadership = leader.daemon._leadership
    assert leadership is not None
    leader.place.journal.epoch += 1
    assert leadership._mesos.may_send() is False
    assert leader.call("GET", "/v1/datasets")[0] in (307, 503)
    assert isinstance(leadership.loop.ended.get(), Fenced)
    follower.wait_state("leading")
    assert leader.greenlet.ready() is False


def test_whoever_speaks_to_mesos_for_the_framework_now_leads(pair: tuple[Scheduler, Scheduler]) -> None:
    """Mesos tells a deposed leader before ZooKeeper does; anything else that it says ends the process."""
    leader, follower = pair
    leader.drivers[0].scheduler.error(leader.drivers[0], "Framework failed over")
    follower.wait_state("leading")
    until(lambda: leader.about()["leader"] == follower.url)
    follower.drivers[0].scheduler.error(follower.drivers[0], "Framework has been removed")
    with pytest.raises(Fatal, match="Mesos has removed this framework"), gevent.Timeout(DEADLINE_S):
        follower.greenlet.get()


def test_schedulers_that_call_themselves_the_same_are_told_what_to_do(make: Any) -> None:
    """Each on its own machine, all with the default --host."""
    place = Place()
    first = make(place, advertise="127.0.0.1:7070")
    until(lambda: first.daemon._state == "leading")
    second = make(place, advertise="127.0.0.1:7070")
    until(lambda: len(place.candidates) == 2)
    assert second.daemon._about()["leader"] == "" and "--advertise" in second.daemon._about()["reason"]
    with pytest.raises(NotLeading, match="--advertise"):
        second.daemon._current()


def test_who_is_told_to_stop_leaves_at_once(pair: tuple[Scheduler, Scheduler]) -> None:
    leader, follower = pair
    leader.stop()
    assert leader.greenlet.get() == 0 and leader.homes[0].is_closed
    assert follower.wait_state("leading")["schedulers"] == [follower.url]


@pytest.mark.parametrize("kind", [Unavailable, Denied, Corrupt, TooNew])
def test_a_place_that_cannot_be_used_from_the_start_ends_the_process(kind: type[Exception]) -> None:
    place = Place()
    config = Config(master="127.0.0.1:1", journal="zk://u:secret@nowhere:1/stoker", port=0, instances=0)

    def refuse(url: str, *, member: str, **_: Any) -> MemoryHome:
        home = place.home(member)
        home.failure = kind("because")
        home.start = home._check  # type: ignore[method-assign]
        return home

    with pytest.raises(Fatal, match="^the journal zk://nowhere:1/stoker cannot be used: because$"):
        gevent.spawn(Daemon(config, "", open_home=refuse).run).get(timeout=DEADLINE_S)
    assert place.candidates == [] and place.led_from == []


def test_a_place_that_does_not_answer_at_first_is_tried_again(tmp_path: pathlib.Path) -> None:
    """ZooKeeper and the schedulers are started together, on a machine that has much to do."""
    place, homes = Place(), []

    def open_home(url: str, *, member: str, **_: Any) -> MemoryHome:
        homes.append(place.home(member))
        if len(homes) < 3:
            homes[-1].failure = Unavailable("no server answers")
            homes[-1].start = homes[-1]._check
        return homes[-1]

    fields: dict[str, Any] = {"instances": 0, "new_cluster": True, "scratch_dir": str(tmp_path / "scratch")}
    config = Config(master="127.0.0.1:1", journal="zk://nowhere:1/stoker", port=0, **fields)
    daemon = Daemon(config, "", open_home=open_home, make_driver=FakeDriver)
    running = gevent.spawn(daemon.run)
    until(lambda: place.candidates or running.ready())
    assert place.candidates == homes[2:] and not running.ready()
    daemon.stop()
    assert running.get(timeout=DEADLINE_S) == 0


def test_a_place_that_goes_away_is_waited_for(make: Any) -> None:
    scheduler = make(Place())
    scheduler.wait_state("leading")
    scheduler.start_error = Unavailable("no ZooKeeper server can be reached")
    scheduler.homes[-1].fail(Unavailable("expired"))
    until(lambda: len(scheduler.homes) >= 3)
    status, body = scheduler.call("GET", "/v1/datasets")
    assert (status, body["error"]["code"]) == (503, "not_leading")
    until(lambda: "no ZooKeeper server" in scheduler.about()["reason"])
    assert scheduler.about()["leader"] == ""
    scheduler.start_error = None
    assert scheduler.wait_state("leading")["epoch"] == 2


@pytest.mark.parametrize(
    ("record", "says"), [(b"\xc1", "not msgpack"), (b"\x92\xabFutureEntry\x90", "FutureEntry.*newer")]
)
def test_a_journal_that_cannot_be_trusted_later_is_waited_for(
    pair: tuple[Scheduler, Scheduler], record: bytes, says: str
) -> None:
    leader, follower = pair
    journal = leader.place.journal
    journal.records.append(record)
    leader.place.tell()
    until(lambda: re.search(says, follower.daemon._reason))
    leader.stop()
    until(lambda: len(follower.homes) >= 4)
    about = follower.about()
    assert (about["state"], about["leader"]) == ("waiting", "") and re.search(says, about["reason"])
    assert follower.call("GET", "/alive")[0] == 200
    status, body = follower.call("GET", "/health")
    assert status == 503 and re.search(says, body["error"]["message"])
    assert len(leader.place.led_from) == 1 and leader.place.candidates == []
    journal.records.pop()  # as one who mends it does
    assert follower.wait_state("leading")["epoch"] == 2


def test_a_place_that_shuts_us_out_later_is_waited_for(pair: tuple[Scheduler, Scheduler]) -> None:
    leader, follower = pair
    for scheduler in pair:
        scheduler.start_error = Denied("no right to read")
        scheduler.homes[-1].fail(Denied("no right to write"))
    for scheduler in pair:
        until(lambda scheduler=scheduler: "no right to read" in scheduler.about()["reason"])
    assert leader.place.candidates == []
    leader.start_error = follower.start_error = None
    until(lambda: any(scheduler.about()["state"] == "leading" for scheduler in pair))
    assert leader.place.journal.epoch == 2


def wipe(place: Place) -> MemoryJournal:
    """Take all that there is away, and make it anew; return what it was."""
    before, place.journal = place.journal, MemoryJournal()
    for home in list(place.candidates):
        home.fail(Unavailable("the election node was deleted"))
    return before


def test_a_place_that_was_wiped_is_led_by_nobody_who_knew_it(pair: tuple[Scheduler, Scheduler]) -> None:
    leader, follower = pair
    before = wipe(leader.place)
    for scheduler in pair:
        until(lambda scheduler=scheduler: "empty now" in scheduler.about()["reason"])
        assert scheduler.about()["state"] == "waiting" and scheduler.call("GET", "/health")[0] == 503
    assert leader.place.journal.epoch == 0 and leader.place.candidates == []
    leader.place.journal = before
    until(lambda: any(scheduler.about()["state"] == "leading" for scheduler in pair))


def test_another_clusters_journal_in_its_place_is_not_led(
    pair: tuple[Scheduler, Scheduler], make: Any
) -> None:
    leader, follower = pair
    wipe(leader.place)
    for scheduler in pair:
        until(lambda scheduler=scheduler: scheduler.about()["state"] == "waiting")
    other = make(leader.place)  # it knows nothing of the old one, and was told to begin anew
    cluster = other.wait_state("leading")["cluster"]
    for scheduler in pair:
        until(lambda scheduler=scheduler: f"that of cluster {cluster}" in scheduler.daemon._reason)
    assert [home.member for home in leader.place.candidates] == [other.url]


def test_a_restored_backup_is_led_by_who_knew_later_epochs(pair: tuple[Scheduler, Scheduler]) -> None:
    """It ends in an older epoch than they have seen, but says that it was restored, and above which epochs."""
    leader, follower = pair
    restored = MemoryJournal()
    restored.records = list(leader.place.journal.records)
    leader.homes[-1].fail(Unavailable("expired"))
    follower.wait_state("leading")
    until(lambda: leader.about()["leader"] == follower.url)
    restored.records.append(encode_entry(JournalRestored(1_000, 1_000, 1_000, 0)))
    restored.epoch = 1_000
    leader.place.journal = restored
    follower.homes[-1].fail(Unavailable("expired"))
    leader.homes[-1].fail(Unavailable("expired"))
    until(lambda: any(scheduler.about()["epoch"] > 1_000 for scheduler in pair))
    assert restored.epoch > 1_000


def test_an_older_copy_of_the_journal_is_not_led(pair: tuple[Scheduler, Scheduler]) -> None:
    leader, follower = pair
    older = MemoryJournal()
    older.records, older.epoch = list(leader.place.journal.records), 1
    leader.homes[-1].fail(Unavailable("expired"))
    follower.wait_state("leading")
    until(lambda: leader.about()["leader"] == follower.url)
    leader.place.journal = older
    follower.homes[-1].fail(Unavailable("expired"))
    leader.homes[-1].fail(Unavailable("expired"))
    for scheduler in pair:
        until(lambda scheduler=scheduler: "there has been epoch 2" in scheduler.daemon._reason)
    assert leader.place.candidates == [] and older.epoch == 1

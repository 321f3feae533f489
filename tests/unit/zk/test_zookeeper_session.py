"""One session on real servers: which one it stays with, how it moves, and what runs beside it under gevent."""

from __future__ import annotations

import gc
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import pytest
from kazoo.client import KazooClient
from kazoo.protocol.connection import ConnectionHandler

from stoker.zk.client import Quiet, now_ms
from stoker.zk.codec import FRAME_BYTES_MAX, encode_batch
from stoker.zk.errors import Unavailable
from stoker.zk.home import Batch, open_home
from stoker.zk.journal import BATCH_BYTES_MAX
from stoker.zk.zookeeper import ZooKeeperHome
from support.homes import led, opened, wait_until
from support.zookeeper import SHARED_TIMEOUT_MS_MAX, Place, ZooKeeperServer, needs_zookeeper
from support.zookeeper_proxy import Proxy

pytestmark = needs_zookeeper


@contextmanager
def two_ways(zookeeper: Place) -> Iterator[tuple[list[Proxy], str]]:
    """Two proxies before one server: for the client two servers of one ensemble."""
    with Proxy(zookeeper.hosts) as one, Proxy(zookeeper.hosts) as other:
        yield [one, other], f"zk://{one.address},{other.address}{zookeeper.path}"


def test_a_server_that_falls_silent_is_left_for_another_in_the_same_session(zookeeper: Place) -> None:
    """Trap: kazoo would stay as long as it has requests to send, and then try the silent one for a whole timeout."""
    with two_ways(zookeeper) as (proxies, url), opened(url, session_timeout_ms=16_000) as home:
        journal, _ = led(home)
        session_id = home._session._client.client_id[0]
        (used,) = [proxy for proxy in proxies if proxy.connection_count]
        used.silence()
        journal.append(0, [b"x"])  # waits until the session is at the other one
        journal.check()
        assert home._session._client.client_id[0] == session_id
        assert home._session._core.lead is not None and home._session._core.end is None


def test_a_server_that_ends_its_connections_is_left_for_another(zookeeper: Place) -> None:
    with two_ways(zookeeper) as (proxies, url), opened(url) as home:
        journal, _ = led(home)
        for number in range(4):
            (used,) = [proxy for proxy in proxies if proxy.connection_count]
            used.cut()
            journal.append(number, [b"x"])
            used.mend()
        journal.check()


def test_the_timeout_that_counts_is_the_one_that_was_granted(zookeeper: Place) -> None:
    """A server grants what its own limits allow, whatever is asked for."""
    with opened(zookeeper.url, session_timeout_ms=600_000) as home:
        journal, _ = led(home)
        core = home._session._core
        assert core.timeout_ms == SHARED_TIMEOUT_MS_MAX
        deadline_ms = core.deadline_ms
        assert deadline_ms is not None and deadline_ms <= now_ms() + SHARED_TIMEOUT_MS_MAX * 2 // 3
        journal.check()


def test_a_frozen_server_cannot_hold_a_leader_beyond_its_deadline(tmp_path: Any) -> None:
    """Trap: as long as the server is frozen, no event comes that says the session is lost."""
    server = ZooKeeperServer(tmp_path / "server")
    server.start()
    try:
        with opened(f"zk://{server.address}/stoker", session_timeout_ms=8_000) as home:
            journal, _ = led(home)
            journal.append(0, [b"0"])
            server.freeze()
            with pytest.raises(Unavailable):
                journal.append(1, [b"1"])
            with pytest.raises(Unavailable):
                journal.check()
            assert home._session._client.state != "LOST"
    finally:
        server.kill()


def test_the_largest_batch_is_far_below_what_a_server_takes(zookeeper: Place) -> None:
    """Trap: a multi is one request, and one above 1 MiB ends the connection without an error."""
    many = [b"%d" % (n % 10) for n in range(65_536)]
    for records in (many, [b"x" * (BATCH_BYTES_MAX // 2)] * 2):
        assert len(encode_batch(records, epoch=2**40, first_index=2**50)) <= FRAME_BYTES_MAX < 512 * 1024
    with opened(zookeeper.url) as home:
        journal, _ = led(home)
        journal.append(0, many)


def test_kazoo_s_warnings_are_said_but_not_all_the_time(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("a client's")
    log.addFilter(Quiet())
    caplog.set_level(logging.DEBUG)
    for number in range(5):
        log.debug("Sending request: credentials")
        log.warning("Connection dropped: %s", "refused")
        log.warning("Connection dropped: %s", number)
    assert caplog.messages == ["Connection dropped: refused", *(f"Connection dropped: {n}" for n in range(5))]


def test_kazoo_is_made_as_our_client_needs_it() -> None:
    """`client` overrides and reads what kazoo does not promise; a version that changed that must not pass unseen."""
    assert {"_connect_loop", "_connect_attempt", "_connect", "_invoke", "_expand_client_hosts"} <= set(
        vars(ConnectionHandler)
    )
    assert {"_call", "_session_callback", "_notify_pending", "_reset_session"} <= set(vars(KazooClient))
    client = KazooClient()
    assert {"_state", "_session_id", "_session_timeout", "_connection", "_conn_retry", "_live"} <= set(
        vars(client)
    )
    assert {"_socket", "_write_sock", "retry_sleeper"} <= set(vars(client._connection))


# gevent: the handler is gevent's own, whether or not the process is patched


@contextmanager
def greenly(
    url: str, member: str = "http://one", session_timeout_ms: int = 60_000
) -> Iterator[ZooKeeperHome]:
    home = open_home(url, member=member, owner=member, session_timeout_ms=session_timeout_ms, gevent=True)
    assert isinstance(home, ZooKeeperHome)
    try:
        home.start()
        yield home
    finally:
        home.close()


@pytest.fixture
def beats() -> Iterator[list[int]]:
    """Moments at which the hub ran another greenlet, in ms: none may be missing for long."""
    moments: list[int] = []

    def beat() -> None:
        while True:
            moments.append(now_ms())
            gevent.sleep(0.01)

    gc.collect()
    greenlet = gevent.spawn(beat)
    yield moments
    greenlet.kill()


def test_everything_works_on_greenlets(zookeeper: Place, beats: list[int]) -> None:
    with greenly(zookeeper.url, "http://b") as follower:
        with greenly(zookeeper.url, "http://a") as leader:
            journal, _ = led(leader)
            seen: list[Any] = []
            caught_up = gevent.event.Event()

            def follow() -> None:
                for step in follower.follow(0):
                    seen.append(step)
                    if isinstance(step, Batch) and step.first_index == 20:
                        caught_up.set()

            following = gevent.spawn(follow)
            follower.join()
            for number in range(20):
                journal.append(number, [b"%d" % number])
            digest = journal.put_blob(b"x" * 600_000)
            journal.write_snapshot(10, b"y" * 600_000)
            journal.append(20, [b"20"])
            assert caught_up.wait(60)
            assert follower.get_blob(digest) == b"x" * 600_000
            assert not follower.wait_turn(10)
        assert follower.wait_turn(60_000)
        follower.stop_following()
        following.join(60)
        assert following.dead and following.successful()
        found = follower.journal().lead(21)
        assert found.resumed and list(found.batches) == []
        assert len(beats) >= 2


def test_an_append_that_waits_for_room_lets_the_snapshot_s_greenlet_run(
    zookeeper: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stoker.zk.zookeeper_journal.LOG_BATCHES_MAX", 2)
    with greenly(zookeeper.url) as home:
        journal, _ = led(home)
        for index in range(8):
            journal.append(index, [b"x"])
        appending = gevent.spawn(journal.append, 8, [b"x"])
        gevent.sleep(0.05)
        assert not appending.dead
        journal.write_snapshot(8, b"state before 8")
        appending.get(timeout=60)
        assert journal._log.count == 1


def test_the_hub_goes_on_while_a_server_is_silent(zookeeper: Place, beats: list[int]) -> None:
    with Proxy(zookeeper.hosts) as proxy:
        with greenly(f"zk://{proxy.address}{zookeeper.path}", session_timeout_ms=8_000) as home:
            journal, _ = led(home)
            proxy.silence()
            before = len(beats)
            with pytest.raises(Unavailable):
                journal.append(0, [b"0"])
            assert len(beats) - before > 5
        before = len(beats)
        gevent.sleep(0)
        assert len(beats) >= before


def test_everything_works_in_a_patched_process(zookeeper: Place) -> None:
    """Trap: kazoo's own choice of a handler is the one of threads, which blocks the hub of a patched process."""
    run = subprocess.run(
        [sys.executable, "-c", PATCHED, zookeeper.url],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (run.returncode, run.stdout) == (0, "3 records, epoch 2, beats\n"), run.stderr


PATCHED = """
from gevent import monkey
monkey.patch_all()
import sys, gevent
from stoker.zk.home import open_home
beats = []
def beat():
    while True:
        beats.append(1)
        gevent.sleep(0.001)
gevent.spawn(beat)
for number in range(2):
    home = open_home(sys.argv[1], member="me", owner="me", session_timeout_ms=60000, gevent=True)
    home.start()
    home.join()
    assert home.wait_turn(60000)
    journal = home.journal()
    found = journal.lead()
    if not number:
        for index in range(3):
            journal.append(index, [b"x"])
            journal.check()
    home.close()
print(f"{sum(len(r) for _, r in found.batches)} records, epoch {found.epoch}", "beats" * bool(beats), sep=", ")
"""


def test_no_thread_or_greenlet_stays_behind(zookeeper: Place) -> None:
    def living() -> set[int]:
        greenlets = (
            g for g in gc.get_objects() if isinstance(g, gevent.Greenlet) and not g.dead and g.started
        )
        return {id(greenlet) for greenlet in greenlets}

    threads_before = {thread.ident for thread in threading.enumerate()}
    with opened(zookeeper.url) as home:
        led(home)
    wait_until(lambda: {thread.ident for thread in threading.enumerate()} <= threads_before)
    greenlets_before = living()
    with greenly(zookeeper.url) as home:
        led(home)
        assert living() - greenlets_before
    deadline_ms = now_ms() + 60_000
    while living() - greenlets_before and now_ms() < deadline_ms:
        gevent.sleep(0.05)
    assert not living() - greenlets_before

"""How an executor finds the leader: by the list it was given, by the answers, and by the leader's own message."""

from __future__ import annotations

import base64
import contextlib
import http.server
import io
import os
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from stoker.executor.errors import ManifestUnavailable
from stoker.executor.messages import (
    Heartbeat,
    HeartbeatAnswer,
    Summons,
    decode_heartbeat,
    decode_summons,
    encode,
)
from stoker.executor.schedulers import SCHEDULERS_MAX, Schedulers
from support.executors import LAUNCH, FakeScheduler, running_executor


def heartbeat(*, epoch_seen: int = 3) -> Heartbeat:
    return Heartbeat(
        cluster=bytes(16), slot_id=1, launch_id=2, incarnation=3, secret="s", sequence=4, whole=True, epoch_seen=epoch_seen,
        assignment_version=0, host="h", port=1, socket_path="", abstract_socket="", boot_id="", pid=1,
        capacity_bytes=1, used_bytes=0, lent_bytes=0,
    )  # fmt: skip


class Scheduler:
    """Answers every heartbeat with `answer`: a HeartbeatAnswer, a redirect's URL, or an HTTP status."""

    def __init__(self) -> None:
        self.answer: HeartbeatAnswer | str | int = 503
        self.beats: list[Heartbeat] = []
        self.manifest = b""
        self.manifest_sent: int | None = None  # bytes of it before the connection ends, None: all
        self.manifests_sent = 0
        fake = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                fake.beats.append(decode_heartbeat(self.rfile.read(int(self.headers["Content-Length"]))))
                answer = fake.answer
                body = encode(answer) if isinstance(answer, HeartbeatAnswer) else b"{}"
                self.send_response(
                    200 if body != b"{}" else 307 if isinstance(answer, str) else int(str(answer))
                )
                if isinstance(answer, str):
                    self.send_header("Location", f"{answer}{self.path}")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self) -> None:
                fake.manifests_sent += 1
                self.send_response(200)
                self.send_header("Content-Length", str(len(fake.manifest)))
                self.end_headers()
                with contextlib.suppress(OSError):  # nobody listens any more
                    self.wfile.write(fake.manifest[: fake.manifest_sent])
                self.close_connection = True

            def log_message(self, *_: Any) -> None: ...

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def lead(self, *others: str, epoch: int = 3) -> None:
        self.answer = HeartbeatAnswer("ok", epoch, 4, False, (self.url, *others))

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def make() -> Iterator[Any]:
    made: list[Scheduler] = []

    def make_one() -> Scheduler:
        made.append(Scheduler())
        return made[-1]

    yield make_one
    for scheduler in made:
        scheduler.close()


def refused_url() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_it_passes_over_who_is_gone_or_follows_and_learns_the_list_from_the_leader(make: Any) -> None:
    follower, leader, gone, newcomer = make(), make(), refused_url(), "http://127.0.0.1:9"
    leader.lead(follower.url, newcomer)
    schedulers = Schedulers((gone, follower.url, leader.url))
    answer = schedulers.heartbeat(heartbeat())
    assert answer is not None and answer.status == "ok"
    assert schedulers.urls == (leader.url, follower.url, newcomer, gone), "what was known before comes last"
    assert len(follower.beats) == len(leader.beats) == 1
    schedulers.close()


def test_it_follows_a_redirect_with_the_whole_heartbeat(make: Any) -> None:
    follower, leader = make(), make()
    follower.answer = leader.url
    leader.lead(follower.url)
    schedulers = Schedulers((follower.url,))
    assert schedulers.heartbeat(heartbeat()) is not None
    assert leader.beats == [heartbeat()] and schedulers.urls == (leader.url, follower.url)
    schedulers.close()


def test_the_followers_of_a_frozen_leader_cost_one_wait_for_it(make: Any) -> None:
    one, other, leader = make(), make(), make()
    with socket.create_server(("127.0.0.1", 0)) as frozen:
        one.answer = other.answer = f"http://127.0.0.1:{frozen.getsockname()[1]}"
        leader.lead()
        schedulers = Schedulers((one.url, other.url, leader.url))
        assert schedulers.heartbeat(heartbeat()) is not None
        assert len(one.beats) == len(other.beats) == 1
        frozen.settimeout(30)
        frozen.accept()[0].close()
        frozen.settimeout(0.05)
        with pytest.raises(TimeoutError):
            frozen.accept()
    schedulers.close()


def test_a_manifest_cut_short_is_asked_for_elsewhere(make: Any) -> None:
    """http.client says nothing of it where the answer told its length."""
    cut, leader = make(), make()
    cut.manifest = leader.manifest = os.urandom(600_000)
    cut.manifest_sent = 300_000
    file = io.BytesIO()
    Schedulers((cut.url, leader.url)).fetch_manifest("ds", 1, file)
    assert file.getvalue() == leader.manifest
    with pytest.raises(ManifestUnavailable, match="300000 more expected"):
        Schedulers((cut.url,)).fetch_manifest("ds", 1, io.BytesIO())


def test_a_sandbox_without_room_for_a_manifest_is_told_as_that(make: Any) -> None:
    """And not as schedulers that do not answer; another one's answer would not fit either."""
    schedulers = [make(), make()]
    for scheduler in schedulers:
        scheduler.manifest = bytes(600_000)
    full = Schedulers(tuple(scheduler.url for scheduler in schedulers))
    with (
        open("/dev/full", "wb", buffering=0) as file,
        pytest.raises(ManifestUnavailable, match="cannot be written in the sandbox: No space left") as caught,
    ):
        full.fetch_manifest("ds", 1, file)
    assert not caught.value.is_gone and [s.manifests_sent for s in schedulers] == [1, 0]


def test_redirects_that_lead_nowhere_end(make: Any) -> None:
    one, other = make(), make()
    one.answer, other.answer = other.url, one.url
    schedulers = Schedulers((one.url, other.url))
    assert schedulers.heartbeat(heartbeat()) is None
    assert len(one.beats) + len(other.beats) <= 8
    schedulers.close()


def test_an_answer_of_an_older_epoch_counts_as_none_and_teaches_nothing(make: Any) -> None:
    """A leader that was stopped and goes on, not knowing yet that it is deposed."""
    deposed, leader = make(), make()
    deposed.lead("http://127.0.0.1:9", epoch=2)
    leader.lead(deposed.url, epoch=3)
    schedulers = Schedulers((deposed.url, leader.url))
    answer = schedulers.heartbeat(heartbeat(epoch_seen=3))
    assert answer is not None and answer.epoch == 3
    assert schedulers.urls == (leader.url, deposed.url) and schedulers.refused_count == 1
    schedulers.close()


def test_nobody_answers_and_the_list_stays(make: Any) -> None:
    follower, gone = make(), refused_url()
    schedulers = Schedulers((gone, follower.url))
    assert schedulers.heartbeat(heartbeat()) is None
    assert schedulers.urls == (gone, follower.url)
    schedulers.close()


def test_the_list_is_bounded() -> None:
    schedulers = Schedulers(("http://first:1",))
    for number in range(3 * SCHEDULERS_MAX):
        schedulers.learn((f"http://s{number}:1",))
    assert len(schedulers.urls) == SCHEDULERS_MAX
    assert schedulers.urls[0] == f"http://s{3 * SCHEDULERS_MAX - 1}:1"
    schedulers.learn(())
    assert len(schedulers.urls) == SCHEDULERS_MAX


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x80",
        b"\xa3abc",
        encode(Summons(1, ("http://a:1",)))[:-3],
        b"\x82\xa5epoch\xa1x\xaaschedulers\x90",
    ],
)
def test_a_message_that_is_none_is_told_so(data: bytes) -> None:
    with pytest.raises(ValueError):
        decode_summons(data)


def test_an_executor_that_lost_all_schedulers_comes_when_the_leader_calls() -> None:
    """All schedulers it knew are gone; the message comes through Mesos. An older leader's is not listened to."""
    lost, found, deposed = FakeScheduler(), FakeScheduler(), FakeScheduler()
    lost.epoch, found.epoch, deposed.epoch = 5, 6, 4
    try:
        with running_executor(lost) as executor:
            lost.close()
            for epoch, url in ((4, deposed.url), (6, found.url)):
                data = base64.b64encode(encode(Summons(epoch, (url,)))).decode()
                executor.say(f"message {data}")
            executor.say("message !!!")
            found.wait(lambda: LAUNCH in found.heartbeats, "a heartbeat at the new leader")
            assert found.heartbeats[LAUNCH][0].epoch_seen == 6, (
                "called by epoch 6, it refuses older ones from now on"
            )
            assert not deposed.heartbeats and found.heartbeats[LAUNCH][0].refused_count == 1
            assert executor.process.poll() is None
    finally:
        found.close()
        deposed.close()

"""Finding the leader among several schedulers: whom a call goes to, for how long, and what is never repeated."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from stoker.client import rest as rest_module
from stoker.client.api import Client
from stoker.client.errors import ApiError
from stoker.client.rest import Rest
from support.clusters import Cluster


def refused_url() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


def error(code: str) -> dict[str, object]:
    return {"error": {"code": code, "message": f"because {code}", "hint": "do this"}}


class Mute:
    """Takes connections and a request, then hangs up (`say` None) or sends `say`, or is silent (`say` "")."""

    def __init__(self, say: bytes | None) -> None:
        self.say = say
        self.requests: list[bytes] = []
        self.later: list[bytes | None] = []  # what to say next, one after the other
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.settimeout(30)
            data = connection.recv(65536)
            self.requests.append(data)
            if self.later:
                self.say = self.later.pop(0)
            if self.say:
                connection.sendall(self.say)
            if self.say == b"":
                self._open.append(connection)
            else:
                connection.close()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(30)
        for connection in self._open:
            connection.close()


@pytest.fixture
def mute() -> Iterator[Any]:
    made: list[Mute] = []

    def make(say: bytes | None = None) -> Mute:
        made.append(Mute(say))
        return made[-1]

    yield make
    for one in made:
        one.close()


def redirect_to(url: str) -> bytes:
    return f"HTTP/1.1 307 x\r\nLocation: {url}\r\nContent-Length: 0\r\n\r\n".encode()


def test_a_redirect_carries_method_body_and_key(cluster: Cluster, mute: Any) -> None:
    follower = mute(redirect_to(f"{cluster.url}/v1/jobs"))
    cluster.scheduler.answers = [(201, {}, {"id": "j1"})]
    rest = Rest((follower.url, refused_url()))
    assert rest.call("POST", "/v1/jobs", {"kind": "load"}, key="k") == {"id": "j1"}
    ((headers, body),) = cluster.scheduler.bodies
    assert headers["Idempotency-Key"] == "k" and body == {"kind": "load"}
    assert rest._leader == cluster.url


def test_a_follower_that_names_a_dead_leader_is_asked_again_until_another_leads(
    cluster: Cluster, mute: Any
) -> None:
    """Until the dead leader's session ends its followers name it: nobody is reached, but somebody answers."""
    follower = mute(redirect_to(f"{refused_url()}/v1/leader"))
    rest = Rest((follower.url,))
    with pytest.raises(ApiError, match="names .* as the leader, which does not answer") as caught:
        rest.get("/v1/leader", patience_ms=0)
    assert (caught.value.status, caught.value.code) == (503, "not_leading")
    follower.later = [follower.say, redirect_to(f"{cluster.url}/v1/datasets")]
    assert rest.get("/v1/datasets", patience_ms=60_000) == {"datasets": []}
    assert len(follower.requests) == 3


def test_a_write_that_was_surely_not_done_is_repeated_without_a_key(cluster: Cluster) -> None:
    cluster.scheduler.answers = [(503, {}, error("not_leading")), (201, {}, {"id": "j1"})]
    assert Rest((refused_url(), cluster.url)).call("POST", "/v1/jobs", {}) == {"id": "j1"}
    assert len(cluster.scheduler.bodies) == 2


def test_a_write_without_a_key_is_not_repeated_once_its_outcome_is_unknown(
    cluster: Cluster, mute: Any
) -> None:
    cluster.scheduler.answers = [(503, {}, error("outcome_unknown")), (201, {}, {"id": "j2"})]
    with pytest.raises(ApiError) as caught:
        Rest((cluster.url,)).call("POST", "/v1/jobs", {})
    assert caught.value.code == "outcome_unknown" and len(cluster.scheduler.bodies) == 1
    hung_up = mute()
    with pytest.raises(ApiError, match="may have been done or not") as caught:
        Rest((hung_up.url, cluster.url)).call("POST", "/v1/jobs", {})
    assert caught.value.code == "outcome_unknown" and "look whether" in caught.value.hint
    assert len(hung_up.requests) == 1 and len(cluster.scheduler.bodies) == 1


@pytest.mark.parametrize(
    ("method", "path", "key"),
    [
        ("POST", "/v1/jobs", "k"),
        ("POST", "/v1/datasets", ""),
        ("PUT", "/v1/fleet", ""),
        ("GET", "/v1/jobs", ""),
    ],
)
def test_what_may_be_done_twice_goes_on_to_the_next_scheduler(
    cluster: Cluster, mute: Any, method: str, path: str, key: str
) -> None:
    cluster.scheduler.answers = [(200, {}, {"done": True})]
    hung_up = mute()
    body = None if method == "GET" else {}
    assert Rest((hung_up.url, cluster.url)).call(method, path, body, key=key) == {"done": True}
    assert len(hung_up.requests) == 1


def test_a_write_that_nobody_can_tell_about_ends_as_unknown(mute: Any) -> None:
    """It was sent once, then nobody was there any more: whoever asked must not think that it was not done."""
    hung_up = mute()
    with pytest.raises(ApiError) as caught:
        Rest((hung_up.url,)).call("POST", "/v1/jobs", {}, key="k", patience_ms=200)
    assert caught.value.code == "outcome_unknown"
    with pytest.raises(ApiError) as caught:
        Rest((hung_up.url,)).get("/v1/jobs", patience_ms=200)
    assert caught.value.code == "unreachable"


def test_a_frozen_scheduler_holds_up_a_call_for_a_bounded_time(
    cluster: Cluster, mute: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rest_module, "ANSWER_TIMEOUT_OF_MANY_MS", 2_500)
    frozen = mute(b"")
    assert Rest((frozen.url, cluster.url)).get("/v1/datasets") == {"datasets": []}
    assert len(frozen.requests) == 1


def test_the_followers_of_a_frozen_leader_cost_one_wait_for_it(
    cluster: Cluster, mute: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rest_module, "ANSWER_TIMEOUT_OF_MANY_MS", 2_500)
    frozen = mute(b"")
    followers = [mute(redirect_to(f"{frozen.url}/v1/datasets")) for _ in range(3)]
    rest = Rest((frozen.url, *(f.url for f in followers), cluster.url))
    assert rest.get("/v1/datasets") == {"datasets": []}
    assert len(frozen.requests) == 1 and all(len(f.requests) == 1 for f in followers)
    first = Rest((followers[0].url, followers[1].url, cluster.url))
    assert first.get("/v1/datasets") == {"datasets": []}
    assert len(frozen.requests) == 2


CUT = b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"half'


def read_whole(read: Callable[[int], bytes]) -> bytes:
    data = b""
    while part := read(3):
        data += part
    return data


def test_an_answer_cut_short_is_asked_for_again(cluster: Cluster, mute: Any) -> None:
    """http.client says nothing of it where the answer told its length."""
    cluster.scheduler.answers = [(200, {}, b"the whole manifest")]
    cut = mute(CUT)
    rest = Rest((cut.url, cluster.url))
    assert rest.download("/v1/datasets/ds/manifest", read_whole) == b"the whole manifest"
    assert Rest((cut.url, cluster.url)).get("/v1/datasets") == {"datasets": []}
    assert len(cut.requests) == 2 and len(cluster.scheduler.calls) == 2


def test_what_the_caller_cannot_take_is_the_callers(cluster: Cluster, mute: Any) -> None:
    """Its disk is full: another scheduler's answer would not fit either."""
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def take(read: Callable[[int], bytes]) -> None:
        read(1)
        raise full

    with pytest.raises(OSError) as caught:
        Rest((cluster.url, mute().url)).download("/v1/datasets", take)
    assert caught.value is full and len(cluster.scheduler.calls) == 1


@pytest.mark.parametrize("location", ["", "ftp://x/", "http:///v1", "http://a:x/"])
def test_a_redirect_to_nowhere_counts_as_no_leader(mute: Any, location: str) -> None:
    follower = mute(redirect_to(location))
    with pytest.raises(ApiError) as caught:
        Rest((follower.url,)).get("/v1/leader", patience_ms=100)
    assert caught.value.code == "not_leading"


def test_a_client_of_several_urls_stays_with_the_one_that_leads(cluster: Cluster) -> None:
    client = Client(f"{refused_url()},{cluster.url.removeprefix('http://')}")
    assert client.datasets() == [] and client.datasets() == []
    assert client._session.rest._leader == cluster.url

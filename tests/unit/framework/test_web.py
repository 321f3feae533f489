"""The HTTP server against callers that are slow, large, garbled or gone."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from gevent import socket

from stoker.framework import web
from stoker.framework.api import Reply
from stoker.framework.metrics import Metrics
from stoker.framework.routes import ROUTES
from stoker.framework.web import make_app, make_server
from stoker.zk.errors import Unavailable
from support.waiting import DEADLINE_S


class FakeApi:
    """Every handler echoes; some fail in their own way."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        def handle(call: Any) -> Reply:
            self.calls.append((name, call))
            if name == "show_fleet":
                raise KeyError("our mistake")
            if name == "list_agents":
                raise Unavailable("no space left on device")
            if name == "get_manifest":
                return Reply(200, self._stream(fails="version" in call.queries))
            return Reply(200, {"handler": name, "parameters": dict(call.parameters)})

        return handle

    def _stream(self, *, fails: bool) -> Iterator[bytes]:
        yield b"one"
        if fails:
            raise Unavailable("gone")
        yield b"two"


class Server:
    def __init__(self) -> None:
        self.api = FakeApi()
        self.server = make_server("127.0.0.1", 0, make_app(self.api, Metrics()))  # type: ignore[arg-type]
        self.server.start()

    def connect(self) -> Any:
        connection = socket.create_connection(("127.0.0.1", self.server.server_port), timeout=DEADLINE_S)
        return connection

    def ask(self, request: bytes) -> bytes:
        """Return all that comes back until the server ends the connection."""
        connection = self.connect()
        try:
            connection.sendall(request)
            return read_all(connection)
        finally:
            connection.close()


def read_all(connection: Any) -> bytes:
    data = b""
    with gevent.Timeout(DEADLINE_S):
        while piece := connection.recv(65536):
            data += piece
    return data


def get(path: str, *, method: str = "GET", headers: str = "") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n".encode()


def body_of(answer: bytes) -> Any:
    return json.loads(answer.partition(b"\r\n\r\n")[2])


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.server.stop(timeout=1)


def test_every_route_reaches_its_handler(server: Server) -> None:
    special = {"show_fleet", "list_agents", "get_manifest", "get_bundle", "size_bundle"}
    for route in ROUTES:
        if route.body is not None or route.handler in special:
            continue
        answer = server.ask(get(route.path.replace("{name}", "d").replace("{id}", "j1"), method=route.method))
        assert answer.startswith(b"HTTP/1.1 200"), (route, answer)
        assert body_of(answer)["handler"] == route.handler


@pytest.mark.parametrize("path", ["/alive", "/health"])
def test_a_load_balancer_may_ask_for_the_status_alone(server: Server, path: str) -> None:
    answer = server.ask(get(path, method="HEAD"))
    assert answer.startswith(b"HTTP/1.1 200") and answer.endswith(b"\r\n\r\n")


def test_our_own_mistake_is_a_500_in_the_same_form(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    answer = server.ask(get("/v1/fleet"))
    assert answer.startswith(b"HTTP/1.1 500") and body_of(answer)["error"]["code"] == "internal"
    assert "our mistake" in caplog.text


def test_a_failed_journal_is_a_503(server: Server) -> None:
    answer = server.ask(get("/v1/agents"))
    assert answer.startswith(b"HTTP/1.1 503") and "no space" in body_of(answer)["error"]["message"]
    assert b"retry-after: 1" in answer.lower()


def test_a_stream_is_sent_as_it_comes_and_one_that_fails_is_cut(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    whole = server.ask(get("/v1/datasets/d/manifest"))
    assert whole.endswith(b"3\r\ntwo\r\n0\r\n\r\n")
    cut = server.ask(get("/v1/datasets/d/manifest?version=1"))
    assert b"one" in cut and not cut.endswith(b"0\r\n\r\n"), "its reader sees that the end is missing"
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00" + b"\xff" * 300 + b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon here\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: many\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 10_000 + b"\r\n",
        b"POST /v1/jobs HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n",
        b"\r\n\r\n",
    ],
    ids=lambda garbage: repr(garbage[:24]),
)
def test_garbage_ends_its_connection_and_nothing_else(
    server: Server, garbage: bytes, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    connection = server.connect()
    try:
        connection.sendall(garbage)
        connection.shutdown(socket.SHUT_WR)
        answer = read_all(connection)
    except OSError:  # ended while we were still sending
        answer = b""
    assert answer == b"" or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4"))
    assert server.ask(get("/alive")).startswith(b"HTTP/1.1 200")
    assert "Traceback" not in caplog.text + "".join(capfd.readouterr())


def test_a_caller_that_says_nothing_is_cut_off(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "IDLE_TIMEOUT_MS", 100)
    assert read_all(server.connect()) == b""


def test_a_caller_that_sends_its_head_bit_by_bit_is_cut_off(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "HEAD_TIMEOUT_MS", 200)
    connection = server.connect()
    connection.sendall(b"GET /alive HTTP/1.1\r\n")
    answer = b""
    with gevent.Timeout(DEADLINE_S):
        try:
            while True:
                connection.sendall(b"X: y\r\n")
                gevent.sleep(0.03)
        except OSError:
            pass
        try:
            answer = read_all(connection)
        except OSError:
            pass
    assert answer == b"" or answer.startswith(b"HTTP/1.1 408")


def test_a_body_that_does_not_come_is_a_408(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "BODY_TIMEOUT_MS", 100)
    monkeypatch.setattr(web, "DISCARD_TIMEOUT_MS", 100)
    connection = server.connect()
    connection.sendall(b"POST /v1/datasets HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{")
    answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 408") and body_of(answer)["error"]["code"] == "bad_request"


def test_a_body_that_is_too_large_is_refused_and_its_sender_gets_to_read_why(server: Server) -> None:
    size = 3 * 1024 * 1024
    head = f"POST /v1/datasets HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {size}\r\n\r\n".encode()
    answer = server.ask(head + b"x" * size)
    assert answer.startswith(b"HTTP/1.1 413") and body_of(answer)["error"]["code"] == "too_large"


def test_a_body_without_end_is_cut_off(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "DISCARD_BYTES_MAX", 1024 * 1024)
    connection = server.connect()
    connection.sendall(b"POST /v1/datasets HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n")
    with gevent.Timeout(DEADLINE_S), pytest.raises(OSError):
        while True:
            connection.sendall(b"x" * 65536)


def test_a_chunked_body_is_read(server: Server) -> None:
    body = b'{"name": "d", "source": "/x"}'
    head = b"POST /v1/datasets HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = server.ask(head + f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")
    assert server.api.calls[-1][1].body == {"name": "d", "source": "/x"}


def test_one_connection_serves_many_requests(server: Server) -> None:
    connection = server.connect()
    for _ in range(3):
        connection.sendall(b"GET /alive HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b""
        while not answer.endswith(b"}"):
            answer += connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 200")


def test_a_reader_that_goes_away_is_no_event(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(5):
        connection = server.connect()
        connection.sendall(get("/v1/datasets/d/manifest"))
        connection.close()
    gevent.sleep(0.1)
    assert caplog.text == ""


def test_a_port_in_use_is_an_os_error(server: Server) -> None:
    with pytest.raises(OSError):
        make_server("127.0.0.1", server.server.server_port, None)

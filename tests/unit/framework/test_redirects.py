"""A follower's answers to what only the leader can do: on the wire, before a body is read, with the path as it came."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from gevent import socket

from stoker.framework.api import Api
from stoker.framework.errors import LedElsewhere
from stoker.framework.metrics import Metrics
from stoker.framework.openapi import document
from stoker.framework.routes import ROUTES
from stoker.framework.web import make_app, make_server
from support.waiting import DEADLINE_S

LEADER = "http://leader:7070"


def led_elsewhere() -> None:
    raise LedElsewhere(LEADER)


@pytest.fixture
def port() -> Iterator[int]:
    metrics = Metrics()
    api = Api(
        led_elsewhere,  # type: ignore[arg-type]
        about=lambda: {"state": "following", "leader": LEADER, "next_index": 8, "behind": 3},
        allow_sources=("",),
        metrics=metrics,
        document=document(ROUTES, version="0"),
    )
    server = make_server("127.0.0.1", 0, make_app(api, metrics, check_leads=api.check_leads))
    server.start()
    yield server.server_port
    server.stop()


def ask(port: int, request: bytes) -> tuple[int, dict[str, str], bytes]:
    connection = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S)
    connection.sendall(request)
    data = b""
    while piece := connection.recv(65536):
        data += piece
    connection.close()
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    return (
        int(lines[0].split()[1]),
        {k.lower(): v for k, v in (line.split(": ", 1) for line in lines[1:])},
        body,
    )


@pytest.mark.parametrize(
    "target",
    [
        "/v1/datasets",
        "/v1/datasets?limit=2&after=a%26b",
        "/v1/datasets/a%2Bb/placement",
        "/v1/jobs/x%20y/events",
        "/v1/fleet?no=such",
    ],
)
def test_the_location_is_the_leader_and_the_target_as_it_came(port: int, target: str) -> None:
    status, headers, body = ask(
        port, f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
    )
    assert (status, headers["location"]) == (307, LEADER + target)
    assert b'"not_leading"' in body


def test_a_body_is_not_waited_for(port: int) -> None:
    """The leader reads it; a follower need not, and answers at once. What comes meanwhile is read away, within bounds."""
    head = (
        b"POST /v1/datasets HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 10\r\n\r\n0123456789"
    )
    status, headers, _ = ask(port, head)
    assert (status, headers["location"]) == (307, f"{LEADER}/v1/datasets")
    status, _, _ = ask(port, head.replace(b"Length: 10", b"Length: 9999999999"))
    assert status == 307


def test_what_every_scheduler_knows_is_answered_here(port: int) -> None:
    expected = {
        "/alive": 200,
        "/metrics": 200,
        "/v1/openapi.json": 200,
        "/v1/leader": 200,
        "/health": 503,
        "/nothing": 404,
    }
    for path, status in expected.items():
        request = f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
        answered, _, body = ask(port, request)
        assert answered == status, path
        if path == "/health":
            assert LEADER.encode() in body
        if path == "/metrics":
            assert b"stoker_journal_behind_records 3.0" in body and b"stoker_following 1.0" in body

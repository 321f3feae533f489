"""Bytes on the wire: what is HTTP and what is not, bounds, keep-alive, and streams of records."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator

import gevent
import pytest
from gevent import socket as green

from stoker.mesos.embedded import http as server_module
from stoker.mesos.embedded.core.calls import Answer
from stoker.mesos.embedded.http import Request, Server, Stream, listen, listen_steadily
from support.waiting import DEADLINE_S

Address = tuple[str, int]


class Echo:
    """Answers with what it got; /stream opens a stream that the test feeds."""

    def __init__(self) -> None:
        self.stream: Stream | None = None
        self.broken: list[int] = []

    def handle(self, request: Request) -> Answer | Stream:
        if request.path == "/stream":
            self.stream = Stream(7, (("Content-Type", "application/json"),), self.broken.append)
            return self.stream
        return Answer(200, json.dumps([request.method, request.path, len(request.body)]))


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
def address(echo: Echo) -> Iterator[Address]:
    listener = listen("127.0.0.1", 0)
    server = Server(listener, echo.handle)
    server.start()
    yield listener.getsockname()
    server.stop()


def exchange(address: Address, data: bytes, *, count: int = 1 << 20) -> bytes:
    """Send `data`, and return what comes until the other side closes or `count` bytes are there."""
    with green.create_connection(address, timeout=DEADLINE_S) as sock:
        sock.sendall(data)
        return receive(sock, count)


def receive(sock: green.socket, count: int) -> bytes:
    got = b""
    with gevent.Timeout(DEADLINE_S):
        while len(got) < count and (more := sock.recv(65536)):
            got += more
    return got


def body_of(answer: bytes) -> list[object]:
    return list(json.loads(answer.split(b"\r\n\r\n", 1)[1]))


CLOSE = b"Connection: close\r\n"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"GET /a HTTP/1.1\r\n" + CLOSE + b"\r\n", ["GET", "/a", 0]),
        (b"GET /a/?x=1 HTTP/1.1\r\n" + CLOSE + b"\r\n", ["GET", "/a", 0]),
        (b"POST / HTTP/1.1\r\nCONTENT-LENGTH: 5\r\n" + CLOSE + b"\r\nhello", ["POST", "/", 5]),
        (
            b"POST /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n"
            + CLOSE
            + b"\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n",
            ["POST", "/c", 5],
        ),
    ],
)
def test_takes_requests_as_they_may_come(address: Address, data: bytes, expected: list[object]) -> None:
    assert body_of(exchange(address, data)) == expected


def test_takes_a_compressed_body_and_refuses_a_false_one(address: Address) -> None:
    packed = gzip.compress(b"x" * 1000)
    head = b"POST / HTTP/1.1\r\nContent-Encoding: gzip\r\n" + CLOSE + b"Content-Length: %d\r\n\r\n"
    assert body_of(exchange(address, head % len(packed) + packed)) == ["POST", "/", 1000]
    answer = exchange(address, head % 3 + b"abc")
    assert answer.startswith(b"HTTP/1.1 500 ") and answer.endswith(b"failed to decode body")


def test_tells_a_careful_client_to_go_on(address: Address) -> None:
    head = b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n" + CLOSE + b"\r\nok"
    assert exchange(address, head).startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")


def test_answers_pipelined_requests_in_order(address: Address) -> None:
    data = b"".join(b"POST /%d HTTP/1.1\r\nContent-Length: 1\r\n\r\nx" % number for number in range(3))
    data += b"GET /end HTTP/1.1\r\n" + CLOSE + b"\r\n"
    answer = exchange(address, data)
    assert answer.count(b"HTTP/1.1 200 OK") == 4
    assert answer.index(b'"/0"') < answer.index(b'"/1"') < answer.index(b'"/2"') < answer.index(b'"/end"')


def test_a_head_request_gets_no_body(address: Address) -> None:
    answer = exchange(address, b"HEAD /a HTTP/1.1\r\n" + CLOSE + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 200 OK") and answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\x01\x02 this is no HTTP\r\n\r\n",
        b"GET /a\r\n\r\n",
        b"GET a HTTP/1.1\r\n\r\n",
        b"GET /a HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET /a HTTP/1.1\r\nA : b\r\n\r\n",
        b"GET /a HTTP/1.1\r\nX-Pad: " + b"y" * 100_000 + b"\r\n\r\n",
        b"POST /a HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /a HTTP/1.1\r\nContent-Length: 1x\r\n\r\n",
        b"POST /a HTTP/1.1\r\nContent-Length: " + b"9" * 40 + b"\r\n\r\n",
        b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
    ],
)
def test_closes_the_connection_on_what_is_no_request(address: Address, data: bytes) -> None:
    assert exchange(address, data) == b""


def test_a_body_that_is_too_large_is_refused_before_it_is_read(address: Address) -> None:
    head = b"POST /a HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (server_module.BODY_BYTES_MAX + 1)
    assert exchange(address, head).startswith(b"HTTP/1.1 413 ")


def test_takes_a_body_of_20_megabytes(address: Address) -> None:
    size = 20 * 2**20
    head = b"POST /a HTTP/1.1\r\n" + CLOSE + b"Content-Length: %d\r\n\r\n" % size
    assert body_of(exchange(address, head + b"x" * size)) == ["POST", "/a", size]


def open_stream(address: Address, echo: Echo) -> tuple[green.socket, Stream]:
    sock = green.create_connection(address, timeout=DEADLINE_S)
    sock.sendall(b"POST /stream HTTP/1.1\r\nContent-Length: 0\r\n\r\n")
    with gevent.Timeout(DEADLINE_S):
        while echo.stream is None:
            gevent.sleep(0.001)
    return sock, echo.stream


def test_one_record_is_one_chunk_and_the_end_is_proper(address: Address, echo: Echo) -> None:
    sock, stream = open_stream(address, echo)
    stream.send(b"2\n{}")
    stream.send(b"x" * 20)
    stream.finish()
    head, body = receive(sock, 1 << 20).split(b"\r\n\r\n", 1)
    assert b"Transfer-Encoding: chunked" in head and b"Content-Length" not in head
    assert body == b"4\r\n2\n{}\r\n14\r\n" + b"x" * 20 + b"\r\n0\r\n\r\n"
    assert echo.broken == [7]


def test_the_other_side_closing_a_stream_is_noticed(address: Address, echo: Echo) -> None:
    sock, _ = open_stream(address, echo)
    sock.close()
    with gevent.Timeout(DEADLINE_S):
        while echo.broken != [7]:
            gevent.sleep(0.001)


@pytest.mark.parametrize("size", [1_000, 65_536, 10_000_000])
def test_a_reader_that_is_too_slow_is_cut_off(address: Address, echo: Echo, size: int) -> None:
    """However large the records are: what waits for it is in our memory."""
    sock, stream = open_stream(address, echo)
    record = b"x" * size
    with gevent.Timeout(DEADLINE_S):
        while not echo.broken:
            for _ in range(1_000):
                if not stream.broken.is_set():
                    stream.send(record)
            gevent.sleep(0)
    assert stream.records.qsize() <= server_module.RECORDS_MAX
    assert stream.waiting_bytes <= server_module.RECORDS_BYTES_MAX
    sock.close()


def test_one_record_may_be_larger_than_what_may_wait(address: Address, echo: Echo) -> None:
    sock, stream = open_stream(address, echo)
    size = server_module.RECORDS_BYTES_MAX + 1
    stream.send(b"x" * size)
    stream.finish()
    with gevent.Timeout(DEADLINE_S):
        assert sum(data.count(b"x") for data in iter(lambda: sock.recv(1 << 20), b"")) == size
    assert stream.waiting_bytes == 0


def test_listens_only_where_no_task_may() -> None:
    with pytest.raises(OSError, match="no free port on 127.0.0.1 between"):
        listen_steadily("127.0.0.1", avoid=lambda port: True)
    sock = listen_steadily("127.0.0.1", avoid=lambda port: port % 2 == 0)
    port = sock.getsockname()[1]
    assert port % 2 == 1 and port < 32_768, "below the ports that outgoing connections take"
    with pytest.raises(OSError):
        listen("127.0.0.1", port)
    sock.close()
    listen("127.0.0.1", port).close()


def test_a_stream_can_break_off_after_what_was_said(address: Address, echo: Echo) -> None:
    sock, stream = open_stream(address, echo)
    stream.send(b"2\n{}")
    stream.abort()
    _, body = receive(sock, 1 << 20).split(b"\r\n\r\n", 1)
    assert body == b"4\r\n2\n{}\r\n", "no final chunk"
    assert echo.broken == [7]


def test_a_frozen_server_keeps_its_connections_and_says_nothing(echo: Echo) -> None:
    listener = listen("127.0.0.1", 0)
    server = Server(listener, echo.handle)
    server.start()
    sock, stream = open_stream(listener.getsockname(), echo)
    server.freeze()
    stream.send(b"2\n{}")
    asking = green.create_connection(listener.getsockname(), timeout=DEADLINE_S)
    asking.sendall(b"GET /a HTTP/1.1\r\nConnection: close\r\n\r\n")
    with pytest.raises(TimeoutError):
        asking.settimeout(0.1)
        asking.recv(1)
    server.thaw()
    asking.settimeout(DEADLINE_S)
    assert body_of(receive(asking, 1 << 20)) == ["GET", "/a", 0]
    stream.finish()
    assert receive(sock, 1 << 20).endswith(b"4\r\n2\n{}\r\n0\r\n\r\n")
    server.stop()

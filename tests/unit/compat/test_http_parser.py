"""compat/http-parser: the part of http-parser's interface that pymesos uses, as pymesos uses it."""

from __future__ import annotations

import importlib.metadata
import select
from typing import Any

import pytest
from http_parser.http import HEADERS_MAX, Headers, HttpParser

from stoker.mesos.recordio import encode_record
from support.fake_mesos import FakeMesos

STREAM = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nMesos-Stream-Id: abc\r\nContent-Type: application/json\r\n\r\n"
    b"6\r\n4\nabcd\r\n3\r\n1\n{\r\n0\r\n\r\n"
)


def test_the_distribution_is_found_under_the_name_that_pymesos_requires() -> None:
    assert importlib.metadata.version("http-parser") == "0.9.1"
    assert any(line.startswith("httptools") for line in importlib.metadata.requires("http-parser") or [])


class Callback:
    """What pymesos' Connection expects of its driver."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.stream_id: str | None = None

    def gen_request(self) -> bytes:
        body = b'{"type": "SUBSCRIBE"}'
        return b"POST /api/v1/scheduler HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)

    def process_event(self, event: Any) -> None:
        self.events.append(event)

    def on_close(self) -> None:
        self.events.append("closed")


def test_pymesos_own_connection_reads_a_stream_through_it() -> None:
    from pymesos.process import Connection

    import stoker.mesos.interface  # noqa: F401  (imports pymesos without its side effects)

    assert not hasattr(HttpParser(), "errno"), "pymesos takes a parser with errno for the pure-Python one"
    callback = Callback()
    with FakeMesos() as master:
        connection = Connection(master.address, callback)
        poller = select.poll()
        poller.register(connection, select.POLLOUT)
        assert poller.poll(5_000) and connection.handle_connect_event() == ""
        connection.write()
        stream = master.wait_stream()
        stream.send_bytes(encode_record(b'{"n": 1}') + b"8\n{", b'"n": ', b"2}")
        stream.end()
        poller.modify(connection, select.POLLIN)
        while poller.poll(5_000) and connection.read():
            pass
        connection.close()
    assert callback.events == [{"n": 1}, {"n": 2}, "closed"]
    assert callback.stream_id == "stream-1"


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_reads_a_chunked_response_in_pieces_of_any_size(size: int) -> None:
    parser = HttpParser()
    body = b""
    for at in range(0, len(STREAM), size):
        piece = STREAM[at : at + size]
        assert parser.execute(piece, len(piece)) == len(piece)
        if parser.is_partial_body():
            body += parser.recv_body()
            assert not parser.is_partial_body()
    assert parser.is_headers_complete() and parser.is_message_complete() and parser.is_chunked()
    assert parser.get_status_code() == 200
    assert parser.get_version() == (1, 1)
    assert {name.upper(): value for name, value in parser.get_headers().items()} == {
        "TRANSFER-ENCODING": "chunked",
        "MESOS-STREAM-ID": "abc",
        "CONTENT-TYPE": "application/json",
    }
    assert body == b"4\nabcd1\n{"
    assert parser.get_errno() == 0


def test_nothing_is_known_before_the_headers() -> None:
    parser = HttpParser()
    assert parser.execute(b"HTTP/1.1 20", 11) == 11
    assert not parser.is_headers_complete()
    assert not parser.is_message_complete()
    assert not parser.is_partial_body()
    assert parser.recv_body() == b""


def test_a_redirect_without_body() -> None:
    parser = HttpParser()
    data = b"HTTP/1.1 307 Temporary Redirect\r\nLocation: //h:1/x\r\nContent-Length: 0\r\n\r\n"
    assert parser.execute(data, len(data)) == len(data)
    assert parser.get_status_code() == 307
    assert parser.get_headers()["LOCATION"] == "//h:1/x"
    assert parser.is_message_complete() and not parser.is_chunked()


def test_an_interim_response_is_passed_over() -> None:
    parser = HttpParser()
    data = b"HTTP/1.1 100 Continue\r\nA: b\r\n\r\nHTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\nok"
    for at in range(len(data)):
        assert parser.execute(data[at : at + 1], 1) == 1
    assert (parser.get_status_code(), parser.recv_body(), list(parser.get_headers())) == (
        202,
        b"ok",
        ["Content-Length"],
    )


def test_a_body_without_length_ends_with_the_connection() -> None:
    parser = HttpParser()
    data = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\nwhy"
    assert parser.execute(data, len(data)) == len(data)
    assert not parser.is_message_complete()
    parser.execute(b"", 0)
    assert parser.is_message_complete() and parser.recv_body() == b"why"


def test_length_limits_what_is_taken() -> None:
    parser = HttpParser()
    assert parser.execute(b"HTTP/1.1 200 OK\r\ngarbage", 17) == 17
    assert parser.get_errno() == 0


@pytest.mark.parametrize(
    "data",
    [
        b"garbage\r\n\r\n",
        b"POST / HTTP/1.1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n"
        + b"A: b\r\n" * 10
        + b"".join(b"H%d: x\r\n" % n for n in range(HEADERS_MAX))
        + b"\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"x" * 300_000 + b"\r\n\r\n",
    ],
)
def test_errors_are_a_short_count_and_a_number_and_stay(data: bytes) -> None:
    parser = HttpParser()
    assert parser.execute(data, len(data)) < len(data)
    assert parser.get_errno() != 0
    assert parser.execute(b"HTTP/1.1 200 OK\r\n", 17) == 0


def test_bytes_after_the_response_are_an_error() -> None:
    parser = HttpParser()
    data = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    assert parser.execute(data, len(data)) == len(data)
    assert parser.execute(data, len(data)) == 0
    assert parser.get_errno() != 0


def test_what_it_does_not_parse_is_refused_clearly() -> None:
    assert HttpParser(kind=1).get_errno() == 0
    with pytest.raises(ValueError, match="responses only"):
        HttpParser(kind=0)
    with pytest.raises(ValueError, match="decompress"):
        HttpParser(decompress=True)


def test_headers_join_what_is_repeated() -> None:
    headers = Headers()
    headers.add("Accept", "a")
    headers.add("ACCEPT", "b")
    assert headers["accept"] == "a, b" and len(headers) == 1 and "aCCEPT" in headers

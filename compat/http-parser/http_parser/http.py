"""A parser for one HTTP/1 response, with the interface that pymesos expects of http-parser, on top of httptools.

Rules: a parser reads one response (interim 1xx ones before it are passed over), errors are told by a short count and
an error number, never raised from `execute`, as the caller's code expects. There must be no attribute called `errno`:
its presence tells pymesos that it talks to a pure-Python parser.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import httptools

__all__ = ["Headers", "HttpParser"]

HTTP_REQUEST, HTTP_RESPONSE, HTTP_BOTH = 0, 1, 2

# Error numbers of `get_errno`; callers only ever compare them with 0.
_INVALID = 1
_TRAILING_DATA = 2

HEADERS_MAX = 1_000
HEADER_BYTES_MAX = 256 * 1024


class Headers(Mapping[str, str]):
    """Headers in the order in which they came; look-ups ignore case.

    >>> headers = Headers()
    >>> headers.add("Mesos-Stream-Id", "a")
    >>> headers["MESOS-STREAM-ID"], list(headers)
    ('a', ['Mesos-Stream-Id'])
    """

    def __init__(self) -> None:
        self._values: dict[str, tuple[str, str]] = {}

    def add(self, name: str, value: str) -> None:
        """Add one header line; a repeated name has its values joined by a comma, as HTTP allows."""
        key = name.lower()
        known = self._values.get(key)
        self._values[key] = (name, value) if known is None else (known[0], f"{known[1]}, {value}")

    def __getitem__(self, name: str) -> str:
        return self._values[name.lower()][1]

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self._values.values())

    def __len__(self) -> int:
        return len(self._values)


class HttpParser:
    """Parse one HTTP/1 response that comes in pieces.

    :raises ValueError: `kind` asks for requests, which this stand-in does not parse.
    """

    def __init__(self, kind: int = HTTP_BOTH, decompress: bool = False) -> None:
        if kind not in (HTTP_RESPONSE, HTTP_BOTH):
            raise ValueError("this http-parser parses responses only (kind=1 or 2), see its README.rst")
        if decompress:
            raise ValueError("this http-parser does not decompress bodies, see its README.rst")
        self._parser = httptools.HttpResponseParser(self)
        self._headers = Headers()
        self._header_bytes = 0
        self._body: list[bytes] = []
        self._headers_complete = False
        self._complete = False
        self._error = 0

    def execute(self, data: bytes, length: int | None = None) -> int:
        """Take the next `length` bytes of `data`; return how many were parsed.

        Fewer than given means an error, which `get_errno` then tells; a parser with an error parses nothing more.
        No bytes at all mean the end of the connection, which ends a body that has no other end.
        """
        piece = data if length is None or length == len(data) else data[:length]
        if self._error:
            return 0
        if not piece:
            self._end_of_connection()
            return 0
        if self._complete:
            self._error = _TRAILING_DATA
            return 0
        try:
            self._parser.feed_data(piece)
        except httptools.HttpParserUpgrade as upgrade:
            self._error = _TRAILING_DATA
            return int(upgrade.args[0]) if upgrade.args else 0
        except httptools.HttpParserError:
            self._error = self._error or _INVALID
            return 0
        return len(piece)

    def get_errno(self) -> int:
        """Return 0, or another number once something could not be parsed."""
        return self._error

    def is_headers_complete(self) -> bool:
        """Say whether the status and all headers have come."""
        return self._headers_complete

    def get_status_code(self) -> int:
        """Return the status, or 0 as long as it is not known."""
        return int(self._parser.get_status_code())

    def get_version(self) -> tuple[int, int]:
        """Return the HTTP version, such as (1, 1)."""
        major, _, minor = self._parser.get_http_version().partition(".")
        return int(major), int(minor or 0)

    def get_headers(self) -> Headers:
        """Return the headers that have come so far."""
        return self._headers

    def is_chunked(self) -> bool:
        """Say whether the body comes in chunks."""
        codings = self._headers.get("Transfer-Encoding", "").lower().split(",")
        return codings[-1].strip() == "chunked"

    def is_partial_body(self) -> bool:
        """Say whether there are body bytes for `recv_body`."""
        return bool(self._body)

    def recv_body(self) -> bytes:
        """Take the body bytes that have come since the last time."""
        body = b"".join(self._body)
        self._body.clear()
        return body

    def is_message_complete(self) -> bool:
        """Say whether the whole response has come."""
        return self._complete

    def _end_of_connection(self) -> None:
        has_length = self.is_chunked() or "Content-Length" in self._headers
        if self._headers_complete and not has_length:
            self._complete = True

    # What httptools calls, from within `feed_data`.

    def on_message_begin(self) -> None:
        if self._complete:
            self._error = _TRAILING_DATA
            raise ValueError("a second response on one parser")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value)
        if len(self._headers) >= HEADERS_MAX or self._header_bytes > HEADER_BYTES_MAX:
            self._error = _INVALID
            raise ValueError(f"more than {HEADERS_MAX} headers or {HEADER_BYTES_MAX} bytes of them")
        self._headers.add(name.decode("latin-1"), value.decode("latin-1"))

    def on_headers_complete(self) -> None:
        # An interim response (100 Continue) is no answer yet: what counts is the one behind it.
        if self._is_interim():
            self._headers = Headers()
            return
        self._headers_complete = True

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        if not self._is_interim():
            self._complete = True

    def _is_interim(self) -> bool:
        return 100 <= self.get_status_code() < 200 and self.get_status_code() != 101

"""Web servers: the files that index pages link to, or one file.

The session is fsspec's (its options and log-in apply), the requests are our own, since fsspec's read calls cannot say
If-Match. A file's token is its ETag, or its Last-Modified where it has none, exactly as the server wrote it. With a
strong ETag a read says If-Match, with Last-Modified If-Unmodified-Since; the answer's own headers are compared in any
case, so a server that ignores the condition, or the range, changes nothing. Where it tells neither, the token is empty and only
the size can tell.

A source that ends in "/", or is redirected to an address that does, is an index page; see http_index.py.
"""

from __future__ import annotations

import email.utils
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, TypeVar
from urllib.parse import quote, unquote, urlsplit

from stoker.executor.manifest_format import FileRow
from stoker.executor.under_stores.base import (
    READING_BYTES_MAX,
    TOKEN_BYTES_MAX,
    Piece,
    ReadFailure,
    UnderStoreError,
    Warn,
    changed,
    unreadable,
)
from stoker.executor.under_stores.http_index import Crawl, Gone
from stoker.executor.under_stores.options import Options
from stoker.executor.under_stores.remote import (
    CONNECT_TIMEOUT_MS,
    SILENCE_TIMEOUT_MS,
    Health,
    Once,
    RemoteReading,
    Transient,
    run,
)

PAGE_BYTES_MAX = 256 * 1024 * 1024  # of one index page; some 2 million links
_UNKNOWN_TOKENS = (b"", b"-")  # neither ETag nor Last-Modified; "-" in manifests of before
_TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_GONE_STATUS = frozenset({404, 410})
_PATH_SAFE = "/~!$&'()*+,;=:@-._"
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_PLAIN = {"Accept-Encoding": "identity"}  # sizes and ranges are those of the file itself

_T = TypeVar("_T")


class _Refused(Exception):
    """The server gave a final answer that is no file."""


class HttpStore:
    """The files below one URL."""

    def __init__(self, source: str, options: Options) -> None:
        """Opens no connection. :raises UnderStoreError: aiohttp is not installed, or the options are wrong."""
        try:
            import aiohttp
            from fsspec.implementations.http import HTTPFileSystem
        except ImportError as error:
            raise UnderStoreError(
                "http sources need aiohttp: pip install 'stoker[cluster]' where schedulers and executors run"
            ) from error
        self._aiohttp = aiohttp
        self._redact = options.redact
        self._source = source.partition("#")[0]
        values = options.typed_for(HTTPFileSystem)
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_TIMEOUT_MS / 1000, sock_read=SILENCE_TIMEOUT_MS / 1000
        )
        client = {"timeout": timeout, **values.pop("client_kwargs", {})}
        self._headers: dict[str, str] = {**values.pop("headers", {}), **_PLAIN}
        self._fs = HTTPFileSystem(client_kwargs=client, skip_instance_cache=True, **values)
        self._health = Health()
        # The address that paths are relative to; "": the source is one file.
        self._root = Once(lambda: self._translated(self._ask_root))

    def list(self, warn: Warn) -> Iterator[FileRow]:
        try:
            root = run(self._fs.loop, self._health.attempt(self._root.get))
            if not root:
                yield run(self._fs.loop, self._head(self._source, _file_name(self._source)))
                return
            crawl = Crawl(root, page=self._page, head=self._head, warn=warn)
            while batch := run(self._fs.loop, crawl.next_batch()):
                yield from batch
        except (Transient, _Refused, Gone) as error:
            raise UnderStoreError(self._redact(f"cannot list {self._source}: {error}")) from error

    def read(
        self, pieces: Sequence[Piece], *, urgent: bool = False, held_bytes_max: int = READING_BYTES_MAX
    ) -> RemoteReading:
        return RemoteReading(
            self._fs.loop, self._health, self._fetch, pieces, urgent=urgent, held_bytes_max=held_bytes_max
        )

    async def _ask_root(self) -> str:
        """Return the address of the source's index page, or "" for a single file."""
        if urlsplit(self._source).query:
            return ""
        async with await self._request("GET", self._source, {}) as response:
            self._check_status(response, self._source)
            url = response.url.with_query(None).with_fragment(None)
            return str(url) if url.path.endswith("/") else ""

    async def _page(self, url: str) -> str:
        """Return the HTML of an index page."""

        async def ask() -> str:
            async with await self._request("GET", url, {}) as response:
                self._check_status(response, url)
                kind = response.headers.get("Content-Type", "text/html").partition(";")[0].strip()
                if kind not in ("text/html", "application/xhtml+xml"):
                    raise _Refused(f"{url} is no index page: its type is {kind}")
                body = await response.content.read(PAGE_BYTES_MAX + 1)
                while chunk := await response.content.read(1024 * 1024):
                    body += chunk
                    if len(body) > PAGE_BYTES_MAX:
                        raise _Refused(f"the index page {url} has more than {PAGE_BYTES_MAX} bytes")
                try:
                    return str(body.decode(response.charset or "utf-8", errors="surrogateescape"))
                except LookupError as error:
                    raise _Refused(f"{url} names the unknown charset {response.charset!r}") from error

        return await self._health.attempt(lambda: self._translated(ask))

    async def _head(self, url: str, path: str) -> FileRow:
        """Return the row of one file. :raises Gone: it is not there (any more)."""

        async def ask() -> FileRow:
            async with await self._request("HEAD", url, {}) as response:
                if response.status not in (405, 501):
                    self._check_status(response, url)
                    if "Content-Length" in response.headers:
                        return _row(path, int(response.headers["Content-Length"]), response.headers)
            async with await self._request("GET", url, {"Range": "bytes=0-0"}) as response:
                if response.status != 416:
                    self._check_status(response, url)
                return _row(path, _total_bytes(url, response), response.headers)

        return await self._health.attempt(lambda: self._translated(ask))

    async def _fetch(self, piece: Piece) -> bytearray | ReadFailure:
        async def ask() -> bytearray | ReadFailure:
            root = await self._root.get()
            url = root + quote(piece.path, safe=_PATH_SAFE) if root else self._source
            headers = _condition(piece)
            if piece.stop - piece.start < piece.size:
                headers["Range"] = f"bytes={piece.start}-{piece.stop - 1}"
            async with await self._request("GET", url, headers) as response:
                if response.status in (412, 416):
                    return changed(piece, "was changed")
                self._check_status(response, url)
                if what := _difference(piece, response):
                    return changed(piece, what)
                return await _take(piece, response)

        try:
            return await self._translated(ask)
        except Gone:
            return changed(piece, "was deleted")
        except _Refused as error:
            return unreadable(piece, self._redact(error))

    async def _request(self, method: str, url: str, headers: dict[str, str]) -> Any:
        from yarl import URL

        session = await self._fs.set_session()
        return await session.request(
            method,
            URL(url, encoded=True),
            headers={**self._headers, **headers},
            allow_redirects=True,
            **self._fs.kwargs,
        )

    async def _translated(self, request: Callable[[], Awaitable[_T]]) -> _T:
        """Return what `request` returns; aiohttp's errors become Transient or _Refused."""
        try:
            return await request()
        except self._aiohttp.ClientConnectorCertificateError as error:
            raise _Refused(f"its certificate was not accepted: {error}") from error
        except (self._aiohttp.ClientConnectionError, self._aiohttp.ClientPayloadError) as error:
            raise Transient(self._redact(str(error) or type(error).__name__)) from error
        except TimeoutError as error:
            raise Transient("no answer in time") from error
        except (self._aiohttp.ClientError, ValueError, TypeError) as error:  # the latter two: options
            raise _Refused(self._redact(f"{type(error).__name__}: {error}")) from error

    def _check_status(self, response: Any, url: str) -> None:
        """:raises Gone, Transient, _Refused: the answer is not a file."""
        status = response.status
        if status in (200, 206):
            return
        answer = self._redact(f"{url} answered {status} {response.reason}")
        if status in _GONE_STATUS:
            raise Gone(answer)
        if status in _TRANSIENT_STATUS:
            raise Transient(answer, _retry_after_ms(response.headers))
        if status in (401, 403):
            answer += "; does the source need credentials (--option)?"
        raise _Refused(answer)


def _file_name(url: str) -> str:
    return unquote(urlsplit(url).path.rpartition("/")[2]) or "index"


def _retry_after_ms(headers: Any) -> int:
    text = headers.get("Retry-After", "")
    return int(text) * 1000 if text.isdigit() else 0


def _row(path: str, size: int, headers: Any) -> FileRow:
    return FileRow(path, size, _mtime_ns(headers), _token(headers))


def _mtime_ns(headers: Any) -> int:
    try:
        when = email.utils.parsedate_to_datetime(headers.get("Last-Modified", ""))
    except ValueError:
        return 0
    return int(when.timestamp()) * 1_000_000_000


def _token(headers: Any) -> bytes:
    for name in ("ETag", "Last-Modified"):
        token = headers.get(name, "").encode(errors="surrogateescape")
        if len(token) <= TOKEN_BYTES_MAX and token not in _UNKNOWN_TOKENS:
            return bytes(token)
    return b""


def _is_etag(token: bytes) -> bool:
    return token.startswith((b'"', b'W/"'))


def _condition(piece: Piece) -> dict[str, str]:
    if piece.token in _UNKNOWN_TOKENS or piece.token.startswith(b"W/"):
        return {}  # a weak ETag never satisfies If-Match; the answer's ETag is compared
    name = "If-Match" if _is_etag(piece.token) else "If-Unmodified-Since"
    return {name: piece.token.decode(errors="surrogateescape")}


def _total_bytes(url: str, response: Any) -> int:
    """Return the file's size as the answer to a request for its first byte tells it."""
    _, _, total = response.headers.get("Content-Range", "").rpartition("/")
    if not total and response.status == 200:
        total = response.headers.get("Content-Length", "")
    if not total.isdigit():
        raise _Refused(f"{url} does not tell its size")
    return int(total)


def _difference(piece: Piece, response: Any) -> str:
    """Return how the answer's file differs from `piece`'s; "" if it does not."""
    if response.status == 206:
        match = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
        if not match:
            raise _Refused("a partial answer without a Content-Range")
        size = match[3]
        if int(match[1]) != piece.start:
            raise _Refused(f"asked for bytes from {piece.start}, got bytes from {match[1]}")
    else:
        size = response.headers.get("Content-Length", "*")
    if size != "*" and int(size) != piece.size:
        return f"changed its size from {piece.size} to {size} bytes"
    token = _token(response.headers)
    if piece.token == token or piece.token in _UNKNOWN_TOKENS:
        return ""
    if token and _is_etag(token) == _is_etag(piece.token):
        return "" if token.removeprefix(b"W/") == piece.token.removeprefix(b"W/") else "was changed"
    mtime_ns = _mtime_ns(
        response.headers
    )  # the listing was told an ETag and this answer none, or the other way round
    if not mtime_ns or not piece.mtime_ns:
        raise _Refused(
            "the server told an ETag or Last-Modified when it was listed and none now, so nothing can be compared"
        )
    return "" if mtime_ns == piece.mtime_ns else "was changed"


async def _take(piece: Piece, response: Any) -> bytearray | ReadFailure:
    """Return the piece's bytes from a partial answer, or from a whole file that was sent in spite of the range."""
    skip = piece.start if response.status == 200 else 0
    data = bytearray(piece.stop - piece.start)
    count = 0
    async for chunk in response.content.iter_any():
        if skip >= len(chunk):
            skip -= len(chunk)
            continue
        part = memoryview(chunk)[skip : skip + len(data) - count]
        excess = len(chunk) - skip - len(part)
        skip = 0
        data[count : count + len(part)] = part
        count += len(part)
        if count == len(data) and piece.stop < piece.size:
            return data  # what a server sends beyond is cut off with the connection
        if excess:
            return changed(piece, "grew")
    if count == len(data):
        return data
    if response.status == 200 and "Content-Length" not in response.headers:
        return changed(piece, "shrank")
    raise Transient(f"the answer ended after {count} of {len(data)} bytes")

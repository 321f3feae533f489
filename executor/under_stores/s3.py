"""S3 and what speaks like it: pages of ListObjectsV2, and GetObject with If-Match.

s3fs makes the client (its options and log-in apply: endpoint_url, key, secret, profile, anon, ...); the calls are the
client's own, so that a listing is a page at a time and every read names the ETag it wants. A file's token is its ETag.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from stoker.executor.manifest_format import FileRow
from stoker.executor.under_stores.base import (
    READING_BYTES_MAX,
    Piece,
    ReadFailure,
    UnderStoreError,
    Warn,
    changed,
    unreadable,
)
from stoker.executor.under_stores.options import Options
from stoker.executor.under_stores.remote import (
    CONNECT_TIMEOUT_MS,
    REQUESTS_MAX,
    SILENCE_TIMEOUT_MS,
    Health,
    Once,
    RemoteReading,
    Transient,
    run,
)

CHUNK_BYTES = 256 * 1024  # of an answer, read at once
_CHANGED_CODES = frozenset({"PreconditionFailed", "412", "InvalidRange", "416"})
_GONE_CODES = frozenset({"NoSuchKey", "404"})
_TRANSIENT_CODES = frozenset(
    {"SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "Throttling", "TooManyRequests"}
)

_T = TypeVar("_T")
_Page = tuple[list[Mapping[str, Any]], str]  # objects, and the token of the next page ("": this was the last)


class _Refused(Exception):
    """S3 gave a final answer; `code` is its name of the error."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class S3Store:
    """The objects under one prefix, or one object."""

    def __init__(self, source: str, options: Options, *, page_keys: int = 1_000) -> None:
        """Opens no connection; a listing asks for `page_keys` at a time, 1 to 1,000. :raises UnderStoreError: s3fs is not installed, or the options are wrong."""
        try:
            from s3fs import S3FileSystem
        except ImportError as error:
            raise UnderStoreError(
                "s3:// sources need s3fs: pip install 'stoker[s3]' where schedulers and executors run"
            ) from error
        self._source = source
        self._redact = options.redact
        self._bucket, _, self._key = source.partition("://")[2].partition("/")
        if not self._bucket:
            raise UnderStoreError(f"{source} names no bucket; write s3://BUCKET or s3://BUCKET/PREFIX")
        values = options.typed_for(S3FileSystem)
        config = {
            "connect_timeout": CONNECT_TIMEOUT_MS / 1000,
            "read_timeout": SILENCE_TIMEOUT_MS / 1000,
            "max_pool_connections": REQUESTS_MAX,
            "retries": {"total_max_attempts": 1},  # attempts are counted in remote.py
            **values.pop("config_kwargs", {}),
        }
        self._fs = S3FileSystem(config_kwargs=config, skip_instance_cache=True, **values)
        self._health = Health()
        self._page_keys = page_keys
        self._is_object = Once(self._ask_is_object)

    def list(self, warn: Warn) -> Iterator[FileRow]:
        loop = self._fs.loop
        try:
            if run(loop, self._health.attempt(self._is_object.get)):
                yield run(loop, self._health.attempt(self._ask_head))
                return
            page, following = run(loop, self._page(""))
            while True:
                # The next page is on its way while the caller works on this one.
                ahead = asyncio.run_coroutine_threadsafe(self._page(following), loop) if following else None
                yield from self._rows(page)
                if ahead is None:
                    return
                page, following = ahead.result()
        except (Transient, _Refused) as error:
            raise UnderStoreError(self._redact(f"cannot list {self._source}: {error}")) from error

    def read(
        self, pieces: Sequence[Piece], *, urgent: bool = False, held_bytes_max: int = READING_BYTES_MAX
    ) -> RemoteReading:
        return RemoteReading(
            self._fs.loop, self._health, self._fetch, pieces, urgent=urgent, held_bytes_max=held_bytes_max
        )

    @property
    def _prefix(self) -> str:
        return self._key.rstrip("/") + "/" if self._key else ""

    def _rows(self, page: Sequence[Mapping[str, Any]]) -> Iterator[FileRow]:
        for entry in page:
            path = entry["Key"][len(self._prefix) :]
            if path.endswith("/") and not entry["Size"] or not path:
                continue  # the marker that consoles make for an empty directory
            yield _row(path, entry["Size"], entry)

    async def _ask_is_object(self) -> bool:
        """Return whether the source is one object: nothing lies under it as a prefix, and it is there."""
        if not self._key or self._key.endswith("/") or (await self._ask_page("", 1))[0]:
            return False
        try:
            await self._ask_head()
        except _Refused as error:
            if error.code in _GONE_CODES:
                return False
            raise
        return True

    async def _page(self, after: str) -> _Page:
        return await self._health.attempt(lambda: self._ask_page(after, self._page_keys))

    async def _ask_page(self, after: str, count_max: int) -> _Page:
        more = {"ContinuationToken": after} if after else {}
        answer = await self._call(
            "list_objects_v2", Bucket=self._bucket, Prefix=self._prefix, MaxKeys=count_max, **more
        )
        return answer.get("Contents", []), answer.get("NextContinuationToken", "")

    async def _ask_head(self) -> FileRow:
        answer = await self._call("head_object", Bucket=self._bucket, Key=self._key)
        return _row(self._key.rpartition("/")[2], answer["ContentLength"], answer)

    async def _fetch(self, piece: Piece) -> bytearray | ReadFailure:
        wanted: dict[str, Any] = {"IfMatch": piece.token.decode()}
        if piece.stop - piece.start < piece.size:
            wanted["Range"] = f"bytes={piece.start}-{piece.stop - 1}"

        async def ask() -> bytearray:
            key = self._key if await self._is_object.get() else self._prefix + piece.path
            answer = await self._call("get_object", Bucket=self._bucket, Key=key, **wanted)
            async with answer["Body"] as body:
                if answer.get("ETag", "").encode() != piece.token:
                    raise _Refused("PreconditionFailed", "another ETag")
                is_part = answer["ResponseMetadata"]["HTTPStatusCode"] == 206
                return await self._translated(lambda: _take(piece, body, skip=0 if is_part else piece.start))

        try:
            data = await ask()
        except _Refused as error:
            if error.code in _CHANGED_CODES:
                return changed(piece, "was changed")
            if error.code in _GONE_CODES:
                return changed(piece, "was deleted")
            return unreadable(piece, self._redact(error))
        if len(data) != piece.stop - piece.start:
            raise Transient(f"the answer has {len(data)} of {piece.stop - piece.start} bytes")
        return data

    async def _call(self, method: str, **arguments: Any) -> Any:
        async def ask() -> Any:
            client = await self._fs.set_session()
            return await getattr(client, method)(**arguments, **self._fs.req_kw)

        return await self._translated(ask)

    async def _translated(self, request: Callable[[], Awaitable[_T]]) -> _T:
        """Return what `request` returns; botocore's errors become Transient or _Refused."""
        import aiohttp
        from botocore import exceptions

        try:
            return await request()
        except exceptions.ClientError as error:
            raise self._translate(error) from error
        except exceptions.NoCredentialsError as error:
            raise _Refused(
                "NoCredentials",
                "no credentials: give --option key=env:NAME --option secret=env:NAME, or --option anon=true",
            ) from error
        except exceptions.SSLError as error:  # a ConnectionError too, but one that stays
            raise _Refused("SSLError", self._redact(error)) from error
        except (
            exceptions.ConnectionError,  # refused, or timed out while connecting
            exceptions.HTTPClientError,  # read time-outs, cut connections
            exceptions.IncompleteReadError,
            aiohttp.ClientError,
            TimeoutError,
        ) as error:
            raise Transient(self._redact(str(error) or type(error).__name__)) from error
        except (exceptions.BotoCoreError, ValueError, TypeError) as error:  # the latter two: options
            raise _Refused(type(error).__name__, self._redact(error)) from error

    def _translate(self, error: Any) -> Exception:
        details = error.response.get("Error", {})
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        code = str(details.get("Code", status))
        message = self._redact(f"{code}: {details.get('Message', '')} (HTTP {status})")
        if code in _TRANSIENT_CODES or status >= 500 or status == 429:
            return Transient(message)
        if status == 412:
            code = "PreconditionFailed"
        return _Refused(code, message)


async def _take(piece: Piece, body: Any, *, skip: int) -> bytearray:
    """Return the piece's bytes, fewer if the answer has fewer: from a partial answer, or from a whole object (`skip` bytes come
    before the piece) that a store sent in spite of the range. Nothing beyond them is held.
    """
    data = bytearray(piece.stop - piece.start)
    count = 0
    while count < len(data) and (chunk := await body.read(CHUNK_BYTES)):
        part = memoryview(chunk)[skip : skip + len(data) - count]
        skip = max(0, skip - len(chunk))
        data[count : count + len(part)] = part
        count += len(part)
    return data if count == len(data) else data[:count]


def _row(path: str, size: int, entry: Mapping[str, Any]) -> FileRow:
    mtime_ns = int(entry["LastModified"].timestamp() * 1000) * 1_000_000
    return FileRow(path, size, mtime_ns, entry["ETag"].encode())

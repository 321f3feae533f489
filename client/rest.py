"""The REST API as a client sees it: a list of schedulers, of which one leads.

A call goes to the scheduler that answered last; a redirect (307) is followed to the leader, a refused connection or a
503 moves on to the next, until the call's patience is over: while one scheduler answers, somebody will lead again. What
was surely not done is repeated; what may have been done only where that does no harm: reads, and writes that are
idempotent by name or by an `Idempotency-Key`. One connection a call: calls are rare (never on the read path), and nothing
is left over for a forked child to share.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import ssl
import time
import urllib.parse
from collections.abc import Callable
from typing import Any

from stoker.client.errors import ApiError, UrlError, from_json

CONNECT_TIMEOUT_MS = 3_000
ANSWER_TIMEOUT_MS = 30_000
ANSWER_TIMEOUT_OF_MANY_MS = (
    5_000  # where others can be asked: one that is frozen takes a connection, and says nothing
)
PATIENCE_MS = (
    25_000  # of a call while no scheduler leads, or none can tell how a write ended: twice a usual session
)
UNREACHABLE_MS = 2_000  # how long it is repeated while no scheduler answers at all
REDIRECTS_MAX = 4
ANSWER_BYTES_MAX = 64 * 1024 * 1024
RETRY_MS_MIN = 50
RETRY_MS_MAX = 1_000
URL_FORM = "write http://host:port[,host:port]"

_RETRIED = {"not_leading", "outcome_unknown", "overloaded"}
_IDEMPOTENT_POSTS = {"/v1/datasets"}  # by the name in the body


def parse_url(url: str | None) -> tuple[str, ...]:
    """Return the schedulers that `url` (None: STOKER_URL) names, each as http://host:port.

    >>> parse_url("http://a:5050,b:5051/")
    ('http://a:5050', 'http://b:5051')

    :raises UrlError: not of that form, or not given at all.
    """
    text = url or os.environ.get("STOKER_URL", "")
    if not text:
        raise UrlError(f"no scheduler is named: set STOKER_URL or pass url=; {URL_FORM}")
    scheme, separator, rest = text.partition("://")
    if scheme == "zk":
        raise UrlError(f"{text!r}: zk:// is for the command line; {URL_FORM}")
    if not separator or scheme not in ("http", "https"):
        raise UrlError(f"{text!r} is not the address of a scheduler; {URL_FORM}")
    schedulers = []
    for part in rest.split(","):
        host = part.strip().removeprefix(f"{scheme}://").rstrip("/")
        try:
            parsed = urllib.parse.urlsplit(f"{scheme}://{host}")
            usable = bool(parsed.hostname) and (parsed.port is None or parsed.port > 0) and not parsed.path
        except ValueError:
            usable = False
        if not usable:
            raise UrlError(f"{part!r} in {text!r} is not host:port; {URL_FORM}")
        schedulers.append(f"{scheme}://{host}")
    return tuple(dict.fromkeys(schedulers))


class Rest:
    """Calls to the schedulers of one URL. Holds no socket between calls; may be used by any thread."""

    def __init__(self, schedulers: tuple[str, ...], token: str = "") -> None:
        self.schedulers = schedulers
        self.token = token
        self._leader = schedulers[0]  # who answered last; a plain str, so a race costs one redirect

    def get(self, path: str, *, patience_ms: int = PATIENCE_MS) -> Any:
        return self.call("GET", path, patience_ms=patience_ms)

    def call(
        self, method: str, path: str, body: Any = None, *, key: str = "", patience_ms: int = PATIENCE_MS
    ) -> Any:
        """Return the JSON of the answer (None: it had none).

        :raises ApiError: refused, or nobody answered within `patience_ms`.
        """
        return self._repeat(method, path, body, key, patience_ms, _read_json)

    def download(self, path: str, consume: Callable[[Callable[[int], bytes]], Any]) -> Any:
        """Return `consume(read)` over the answer's body; called again from the beginning if the answer breaks off.

        An OSError of its own (a full disk) is the caller's: no other scheduler would help.
        """
        try:
            return self._repeat(
                "GET", path, None, "", PATIENCE_MS, lambda response: _consume(response, consume)
            )
        except _NotTaken as error:
            raise error.reason from None

    def _repeat(
        self, method: str, path: str, body: Any, key: str, patience_ms: int, consume: Callable[[Any], Any]
    ) -> Any:
        began = time.monotonic()
        may_repeat = method != "POST" or bool(key) or path in _IDEMPOTENT_POSTS
        wait_ms, unknown = RETRY_MS_MIN, False
        while True:
            refused: ApiError | None = None
            silent: set[str] = (
                set()
            )  # in this round: several followers of a frozen leader cost one wait for it
            for scheduler in self._order():
                try:
                    return self._once(scheduler, method, path, body, key, consume, silent)
                except ApiError as error:
                    if method == "DELETE" and error.status == 404 and unknown:
                        return None  # the write whose outcome was unknown had been done
                    if error.code not in _RETRIED or (error.code == "outcome_unknown" and not may_repeat):
                        raise
                    unknown = unknown or error.code == "outcome_unknown"
                    refused = error
                except _NotReached as error:
                    refused = refused or self._unreachable(str(error))
                except (OSError, http.client.HTTPException) as error:
                    if not may_repeat:
                        raise _unknown(scheduler, _reason(error)) from error
                    unknown = True
                    refused = refused or self._unreachable(_reason(error))
            assert refused is not None
            patience = min(patience_ms, UNREACHABLE_MS) if refused.code == "unreachable" else patience_ms
            if (time.monotonic() - began) * 1000 + wait_ms > patience:
                if unknown and method != "GET" and refused.code != "outcome_unknown":
                    raise _unknown(", ".join(self.schedulers), str(refused)) from refused
                raise refused
            time.sleep(wait_ms * random.uniform(0.5, 1.0) / 1000)
            wait_ms = min(2 * wait_ms, RETRY_MS_MAX)

    def _order(self) -> list[str]:
        return list(dict.fromkeys((self._leader, *self.schedulers)))

    def _unreachable(self, reason: str) -> ApiError:
        return ApiError(
            0,
            "unreachable",
            f"no scheduler answers at {', '.join(self.schedulers)}: {reason}",
            "is it running? is STOKER_URL (--url) right?",
        )

    def _once(
        self,
        scheduler: str,
        method: str,
        path: str,
        body: Any,
        key: str,
        consume: Callable[[Any], Any],
        silent: set[str],
    ) -> Any:
        """Ask `scheduler`, and whom it names.

        :raises ApiError: refused. :raises _NotReached: nobody was asked.
        :raises OSError, http.client.HTTPException: asked, and no whole answer came.
        """
        url = scheduler + path
        timeout_ms = ANSWER_TIMEOUT_MS if len(self._order()) == 1 else ANSWER_TIMEOUT_OF_MANY_MS
        for _ in range(REDIRECTS_MAX):
            try:
                if _base(url) in silent:
                    raise ConnectionAbortedError("it was silent just now")
                connection, target = _connect(url, timeout_ms)
            except OSError as error:
                silent.add(_base(url))
                if url == scheduler + path:
                    raise _NotReached(_reason(error)) from error
                leader = _base(url)
                raise ApiError(
                    503,
                    "not_leading",
                    f"{scheduler} names {leader} as the leader, which does not answer: {_reason(error)}",
                    "another one will lead soon",
                ) from error
            try:
                connection.request(method, target, *self._content(body, key))
                response = connection.getresponse()
                if response.status in (307, 308):
                    url = _redirected(url, response.headers.get("Location", ""))
                    continue
                if response.status >= 400:
                    raise from_json(response.status, _read_json(response))
                result = consume(response)
                self._leader = _base(url)
                return result
            except TimeoutError:
                silent.add(_base(url))
                raise
            finally:
                connection.close()
        raise ApiError(503, "not_leading", f"{scheduler} redirects in circles: no scheduler leads now")

    def _content(self, body: Any, key: str) -> tuple[bytes | None, dict[str, str]]:
        headers = {"Accept": "application/json", "Connection": "close"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        if key:
            headers["Idempotency-Key"] = key
        if body is None:
            return None, headers
        headers["Content-Type"] = "application/json"
        return json.dumps(body).encode(), headers


class _NotReached(Exception):
    """No connection came about, so surely nothing was done."""


class _NotTaken(Exception):
    """An answer came, and whoever was to take it failed with `reason`."""

    def __init__(self, reason: OSError) -> None:
        super().__init__(str(reason))
        self.reason = reason


def _unknown(where: str, reason: str) -> ApiError:
    return ApiError(
        503,
        "outcome_unknown",
        f"it may have been done or not: {where}: {reason}",
        "look whether it was done before you ask again",
    )


def _base(url: str) -> str:
    return "{0.scheme}://{0.netloc}".format(urllib.parse.urlsplit(url))


def _redirected(url: str, location: str) -> str:
    """Return where a redirect leads to. :raises ApiError: nowhere that a scheduler could be."""
    target = urllib.parse.urljoin(url, location)
    parts = urllib.parse.urlsplit(target)
    try:
        is_usable = bool(location and parts.hostname) and (parts.port or 80) > 0
    except ValueError:
        is_usable = False
    if not is_usable or parts.scheme not in ("http", "https"):
        raise ApiError(503, "not_leading", f"{_base(url)} redirects to nowhere: {location[:200]!r}")
    return target


def _connect(url: str, answer_timeout_ms: int) -> tuple[http.client.HTTPConnection, str]:
    parts = urllib.parse.urlsplit(url)
    assert parts.hostname, url
    timeout = CONNECT_TIMEOUT_MS / 1000
    if parts.scheme == "https":
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            parts.hostname, parts.port, timeout=timeout, context=ssl.create_default_context()
        )
    else:
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout)
    connection.connect()
    connection.sock.settimeout(answer_timeout_ms / 1000)
    return connection, parts.path + (f"?{parts.query}" if parts.query else "")


def _consume(response: Any, consume: Callable[[Callable[[int], bytes]], Any]) -> Any:
    """Return `consume(read)`. :raises _NotTaken: it failed, and not because reading did."""
    is_broken = False

    def read(count: int) -> bytes:
        nonlocal is_broken
        is_broken = True
        data = _read(response, count)
        is_broken = False
        return data

    try:
        return consume(read)
    except OSError as error:
        if is_broken:
            raise
        raise _NotTaken(error) from error


def _read(response: Any, count: int) -> bytes:
    """Return at most `count` bytes, fewer at the answer's end only. :raises IncompleteRead: it was cut short, which
    http.client itself does not tell of an answer with a length.
    """
    data: bytes = response.read(count)
    if len(data) < count and response.length:
        raise http.client.IncompleteRead(data, response.length)
    return data


def _read_json(response: Any) -> Any:
    data = _read(response, ANSWER_BYTES_MAX + 1)
    if len(data) > ANSWER_BYTES_MAX:
        raise ApiError(response.status, "too_large", f"an answer of more than {ANSWER_BYTES_MAX} bytes")
    if not data:
        return None
    try:
        return json.loads(data)
    except ValueError as error:
        text = data[:200].decode(errors="replace")
        raise ApiError(
            response.status,
            "bad_answer",
            f"not JSON, so not Stoker's: HTTP {response.status} {text!r}",
            "does STOKER_URL (--url) point to a Stoker scheduler?",
        ) from error


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__

"""The keeper's side of HTTP to the schedulers: heartbeats, and manifests.

One connection is kept open. Whoever does not answer, is not the leader or refuses is passed over for the next of the
list; the leader's answers bring the list up to date. Runs on greenlets of a monkey-patched process.
"""

from __future__ import annotations

import http.client
import logging
from urllib.parse import quote, urlsplit

from stoker.executor.errors import ManifestUnavailable
from stoker.executor.manifest import ManifestError, unbundle
from stoker.executor.messages import Heartbeat, HeartbeatAnswer, decode_answer, encode

log = logging.getLogger(__name__)

HEARTBEAT_TIMEOUT_MS = 5_000
MANIFEST_TIMEOUT_MS = 60_000
ANSWER_BYTES_MAX = 64 * 1024 * 1024
REDIRECTS_MAX = 3


class NoAnswer(Exception):
    """This scheduler did not answer as a leader; the text says how. `status` is HTTP's, 0 without one."""

    def __init__(self, text: str, status: int = 0) -> None:
        super().__init__(text)
        self.status = status


class Schedulers:
    """See the module; `heartbeat` is for one greenlet, `fetch_manifest` for any."""

    def __init__(self, urls: tuple[str, ...]) -> None:
        self._urls = urls
        self._connection: http.client.HTTPConnection | None = None
        self._url = ""

    def heartbeat(self, heartbeat: Heartbeat) -> HeartbeatAnswer | None:
        """Tell the leader; None: no scheduler answered as one."""
        body = encode(heartbeat)
        for url in self._urls:
            try:
                answer = decode_answer(self._post(url, "/v1/executors/heartbeat", body))
            except (NoAnswer, ValueError) as error:
                log.warning("heartbeat: %s: %s", url, error)
                continue
            if answer.schedulers:
                self._urls = answer.schedulers
            return answer
        return None

    def fetch_manifest(self, name: str, version: int) -> tuple[bytes, dict[str, bytes]]:
        """Return (root, parts by digest) of a dataset version.

        :raises ManifestUnavailable: no scheduler has it now.
        """
        path = f"/v1/datasets/{quote(name, safe='')}/manifest?version={version}"
        reasons: list[str] = []
        is_gone = False
        for url in self._urls:
            connection: http.client.HTTPConnection | None = None
            try:
                connection, response = _ask(url, "GET", path, None, MANIFEST_TIMEOUT_MS)
                return unbundle(response.read)
            except (NoAnswer, ManifestError, OSError, http.client.HTTPException) as error:
                reasons.append(f"{url}: {error}")
                is_gone |= isinstance(error, NoAnswer) and error.status == 404
            finally:
                if connection is not None:
                    connection.close()
        raise ManifestUnavailable(
            f"manifest of {name} version {version}: {'; '.join(reasons)}", is_gone=is_gone
        )

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _post(self, url: str, path: str, body: bytes) -> bytes:
        """:raises NoAnswer: ..."""
        if self._connection is not None and self._url == url:
            try:
                response = _send(self._connection, "POST", path, body)
                if response.status == 200:
                    return _read_all(response)
            except (OSError, http.client.HTTPException, NoAnswer):
                pass  # the kept connection was old, or the leader changed: once more, anew
        self.close()
        self._connection, response = _ask(url, "POST", path, body, HEARTBEAT_TIMEOUT_MS)
        self._url = url
        return _read_all(response)


def _ask(
    url: str, method: str, path: str, body: bytes | None, timeout_ms: int
) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    """Ask at `url`, following redirects to the leader. :raises NoAnswer: no 200 came of it."""
    for _ in range(REDIRECTS_MAX):
        parts = urlsplit(url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout_ms / 1000)
        try:
            response = _send(connection, method, path, body)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise NoAnswer(f"{type(error).__name__}: {error}") from error
        except BaseException:
            connection.close()
            raise
        if response.status not in (307, 308):
            break
        location = urlsplit(response.headers.get("Location", ""))
        connection.close()
        if location.scheme != "http" or not location.netloc:
            raise NoAnswer("a redirect to nowhere")
        url = f"http://{location.netloc}"
    else:
        raise NoAnswer(f"more than {REDIRECTS_MAX} redirects")
    if response.status != 200:
        text = response.read(500).decode(errors="replace")
        connection.close()
        raise NoAnswer(f"HTTP {response.status}: {text}", response.status)
    return connection, response


def _send(
    connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None
) -> http.client.HTTPResponse:
    headers = {} if body is None else {"Content-Type": "application/msgpack"}
    connection.request(method, path, body=body, headers=headers)
    response = connection.getresponse()
    if body is not None and response.status != 200 and response.status not in (307, 308):
        text = response.read(500).decode(errors="replace")
        connection.close()
        raise NoAnswer(f"HTTP {response.status}: {text}", response.status)
    return response


def _read_all(response: http.client.HTTPResponse) -> bytes:
    try:
        data = response.read(ANSWER_BYTES_MAX + 1)
    except (OSError, http.client.HTTPException) as error:
        raise NoAnswer(f"{type(error).__name__}: {error}") from error
    if len(data) > ANSWER_BYTES_MAX:
        raise NoAnswer(f"an answer of more than {ANSWER_BYTES_MAX} bytes")
    return data

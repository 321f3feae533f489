"""The keeper's side of HTTP to the schedulers: heartbeats, and manifests.

One connection is kept open. Whoever does not answer, is not the leader or refuses is passed over for the next of the
list, and so is a deposed leader, whose answers are of an older epoch than was seen; the leader's answers bring the list up
to date. Schedulers of earlier lists are asked last: when all that were up at one time are gone, others may be back.

Runs on greenlets of a monkey-patched process.
"""

from __future__ import annotations

import http.client
import logging
from typing import IO
from urllib.parse import quote, urlsplit

from stoker.executor.errors import ManifestUnavailable
from stoker.executor.messages import Heartbeat, HeartbeatAnswer, decode_answer, encode

log = logging.getLogger(__name__)

HEARTBEAT_TIMEOUT_MS = 3_000
MANIFEST_TIMEOUT_MS = 10_000  # of one piece of it
COPY_BYTES = 256 * 1024  # of a manifest, at a time
ANSWER_BYTES_MAX = 64 * 1024 * 1024
REDIRECTS_MAX = 3
SCHEDULERS_MAX = 16  # asked in one round


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
        self.refused_count = 0  # answers and messages of deposed leaders

    @property
    def urls(self) -> tuple[str, ...]:
        """All that are known, in the order in which they are asked."""
        return self._urls

    def learn(self, urls: tuple[str, ...]) -> None:
        """Take over a newer list of schedulers, the leader first."""
        if urls:
            self._urls = tuple(dict.fromkeys(urls + self._urls))[: max(SCHEDULERS_MAX, len(urls))]

    def refuse(self, what: str, epoch: int, epoch_seen: int) -> None:
        """Take note of what a deposed leader said; nothing else is done with it."""
        self.refused_count += 1
        log.warning("%s is refused: it is of epoch %d, and epoch %d was seen", what, epoch, epoch_seen)

    def heartbeat(self, heartbeat: Heartbeat) -> HeartbeatAnswer | None:
        """Tell the leader; None: no scheduler answered as one whose epoch is not older than the heartbeat's."""
        body = encode(heartbeat)
        silent: set[str] = set()
        for url in self._urls:
            if url in silent:
                continue
            try:
                answer = decode_answer(self._post(url, "/v1/executors/heartbeat", body, silent))
            except (NoAnswer, ValueError) as error:
                log.warning("heartbeat: %s: %s", url, error)
                continue
            if answer.epoch < heartbeat.epoch_seen:
                self.refuse(f"an answer of {url}", answer.epoch, heartbeat.epoch_seen)
                continue
            self.learn(answer.schedulers)
            return answer
        return None

    def fetch_manifest(self, name: str, version: int, file: IO[bytes]) -> None:
        """Write the bundle of a dataset version (root and parts) into the empty `file`; little of it is held in memory.

        :raises ManifestUnavailable: no scheduler has it now, or it cannot be written here.
        """
        path = f"/v1/datasets/{quote(name, safe='')}/manifest?version={version}"
        what = f"manifest of {name} version {version}"
        reasons: list[str] = []
        is_gone = False
        silent: set[str] = set()
        for url in self._urls:
            if url in silent:
                continue
            connection: http.client.HTTPConnection | None = None
            try:
                connection, response = _ask(url, "GET", path, None, MANIFEST_TIMEOUT_MS, silent)
                _copy(response, file, what)
                return
            except (NoAnswer, OSError, http.client.HTTPException) as error:
                reasons.append(f"{url}: {error}")
                is_gone |= isinstance(error, NoAnswer) and error.status == 404
                file.seek(0)
                file.truncate()
            finally:
                if connection is not None:
                    connection.close()
        raise ManifestUnavailable(f"{what}: {'; '.join(reasons)}", is_gone=is_gone)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _post(self, url: str, path: str, body: bytes, silent: set[str]) -> bytes:
        """`silent`: who has just not answered in time; added to. :raises NoAnswer: ..."""
        if self._connection is not None and self._url == url:
            try:
                response = _send(self._connection, "POST", path, body)
                if response.status == 200:
                    return _read_all(response)
            except TimeoutError as error:  # asked anew it would take as long again
                self.close()
                silent.add(url)
                raise NoAnswer(f"no answer within {HEARTBEAT_TIMEOUT_MS} ms") from error
            except (OSError, http.client.HTTPException):
                pass  # the kept connection was old: once more, anew
        self.close()
        self._connection, response = _ask(url, "POST", path, body, HEARTBEAT_TIMEOUT_MS, silent)
        self._url = url
        return _read_all(response)


def _ask(
    url: str, method: str, path: str, body: bytes | None, timeout_ms: int, silent: set[str]
) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    """Ask at `url`, following redirects to the leader. :raises NoAnswer: no 200 came of it.

    A redirect to one of `silent` is not followed: a follower may name a leader that hangs until its session ends.
    """
    for _ in range(REDIRECTS_MAX):
        parts = urlsplit(url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout_ms / 1000)
        try:
            response = _send(connection, method, path, body)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            if isinstance(error, TimeoutError):
                silent.add(url)
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
        if url in silent:
            raise NoAnswer(f"a redirect to {url}, which does not answer")
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


def _copy(response: http.client.HTTPResponse, file: IO[bytes], what: str) -> None:
    """Write the answer's body to `file`.

    :raises ManifestUnavailable: it cannot be written: no other scheduler would help.
    :raises OSError, http.client.HTTPException: it broke off.
    """
    while part := response.read(COPY_BYTES):
        try:
            file.write(part)
        except OSError as error:
            raise ManifestUnavailable(f"{what} cannot be written in the sandbox: {error.strerror}") from error
    if response.length:  # http.client itself does not tell that an answer with a length was cut short
        raise http.client.IncompleteRead(b"", response.length)


def _read_all(response: http.client.HTTPResponse) -> bytes:
    try:
        data = response.read(ANSWER_BYTES_MAX + 1)
    except (OSError, http.client.HTTPException) as error:
        raise NoAnswer(f"{type(error).__name__}: {error}") from error
    if len(data) > ANSWER_BYTES_MAX:
        raise NoAnswer(f"an answer of more than {ANSWER_BYTES_MAX} bytes")
    return data

"""What an operator may ask of a master: POST /api/v1, one short call, JSON both ways. Asks only, changes nothing.

Rules: a call ends in time and its answer is bounded; a redirect to the leading master is followed; all failures come out
as this package's errors. Works the same with threads and in a process that gevent has monkey-patched.
"""

from __future__ import annotations

import json
import ssl
import time
from base64 import b64encode
from collections.abc import Callable, Mapping
from http.client import HTTPException, HTTPResponse
from typing import Any, NamedTuple

from stoker.mesos.detector import Address, address_in_location
from stoker.mesos.errors import CallFailed, HttpError
from stoker.mesos.transport import NO_TLS, connection_to, is_greeting

PATH = "/api/v1"
CALL_TIMEOUT_MS = 10_000  # for a connection, and for each piece of the answer
ANSWER_TIMEOUT_MS = 60_000  # for all of it
ANSWER_BYTES_MAX = 128 * 1024 * 1024  # 10,000 agents are some 20 MB
REDIRECTS_MAX = 3

_READ_BYTES = 256 * 1024


class KnownFramework(NamedTuple):
    """A framework that the master has not removed: connected, or away for less than its failover_timeout."""

    framework_id: str
    name: str
    roles: tuple[str, ...]
    is_connected: bool


class Operator:
    """The operator's API of the master at `address`; `principal` and `secret` where it asks for them."""

    def __init__(
        self,
        address: Address,
        *,
        principal: str = "",
        secret: str = "",
        timeout_ms: int = CALL_TIMEOUT_MS,
        tls: ssl.SSLContext | None = None,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._address = address
        self._timeout_s = timeout_ms / 1000
        self._tls = tls
        self._monotonic_s = monotonic_s
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if principal:
            credential = b64encode(f"{principal}:{secret}".encode()).decode("ascii")
            self._headers["Authorization"] = f"Basic {credential}"

    def frameworks(self) -> list[KnownFramework]:
        """Return the frameworks that are registered, and those that may still come back; never a removed one.

        What the master does not let this principal see is not there.

        :raises CallFailed: no connection, no answer in time, or no answer of a master.
        :raises HttpError: the master refuses (401, 403), or does not lead and knows no leader (503).
        """
        body = self._ask("GET_FRAMEWORKS")
        return [_framework(item, self._address) for item in body.get("frameworks", ())]

    def missing_agents(self) -> list[str]:
        """Return the ids of agents that the master knows from before its start and that have not come back to it yet.

        What ran there, and of which framework, it learns when they do. :raises CallFailed, HttpError: as `frameworks`.
        """
        return [_agent_id(item) for item in self._ask("GET_AGENTS").get("recovered_agents", ())]

    def version(self) -> str:
        """Return the master's version, "" where it tells none. :raises CallFailed, HttpError: as `frameworks`."""
        told = self._ask("GET_VERSION").get("version_info")
        return str(told.get("version", "")) if isinstance(told, dict) else ""

    def _ask(self, kind: str) -> Mapping[str, Any]:
        address, deadline_s = self._address, self._monotonic_s() + ANSWER_TIMEOUT_MS / 1000
        for _ in range(REDIRECTS_MAX + 1):
            status, location, body = self._exchange(address, kind, deadline_s)
            if status not in (307, 308):
                return _response(kind, status, body, address)
            try:
                address = address_in_location(location, address, scheme="https" if self._tls else "http")
            except ValueError as error:
                raise CallFailed(f"{address}: {error}") from error
        raise CallFailed(f"{self._address}: redirected more than {REDIRECTS_MAX} times; no master leads now")

    def _exchange(self, address: Address, kind: str, deadline_s: float) -> tuple[int, str, bytes]:
        connection = connection_to(address, timeout_s=self._timeout_s, tls=self._tls)
        try:
            connection.request("POST", PATH, body=json.dumps({"type": kind}), headers=self._headers)
            response = connection.getresponse()
            return response.status, response.getheader("Location", ""), self._read(response, deadline_s)
        except (OSError, HTTPException) as error:
            is_unanswered = isinstance(error, TimeoutError) and is_greeting(connection)
            raise CallFailed(f"{address}: {NO_TLS if is_unanswered else _reason(error)}") from error
        finally:
            connection.close()

    def _read(self, response: HTTPResponse, deadline_s: float) -> bytes:
        pieces, size = [], 0
        while piece := response.read1(_READ_BYTES):
            pieces.append(piece)
            size += len(piece)
            if size > ANSWER_BYTES_MAX:
                raise HTTPException(f"the answer is above {ANSWER_BYTES_MAX} bytes")
            if self._monotonic_s() > deadline_s:
                raise TimeoutError("the answer took too long")
        if response.length:  # read1 does not tell an end that came too soon
            raise HTTPException(f"the answer ended {response.length} bytes too soon")
        return b"".join(pieces)


def _response(kind: str, status: int, body: bytes, address: Address) -> Mapping[str, Any]:
    if status != 200:
        raise HttpError(status, body.decode("utf-8", "replace"), about=f"{kind} at {address}")
    try:
        answer = json.loads(body)
    except ValueError as error:
        raise CallFailed(f"{address}: the answer to {kind} is not JSON: {error}") from error
    inner = answer.get(kind.lower()) if isinstance(answer, dict) and answer.get("type") == kind else None
    if not isinstance(inner, dict):
        raise CallFailed(f"{address}: the answer to {kind} is not that of a Mesos master")
    return inner


def _framework(item: Any, address: Address) -> KnownFramework:
    try:
        info = item["framework_info"]
        roles = tuple(map(str, info.get("roles") or (info.get("role", "*"),)))
        return KnownFramework(
            str(info["id"]["value"]), str(info["name"]), roles, item.get("connected") is True
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise CallFailed(f"{address}: a framework in the answer is not one: {error!r}") from error


def _agent_id(item: Any) -> str:
    return str(item.get("id", {}).get("value", "?")) if isinstance(item, dict) else "?"


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__

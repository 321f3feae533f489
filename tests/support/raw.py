"""Requests that no client of ours would send: bytes to the API, and bytes to a data port."""

from __future__ import annotations

import http.client
import json
import socket
import urllib.parse
from typing import Any, NamedTuple

from stoker.client.placement import Placement
from stoker.executor import wire
from stoker.executor.messages import SlotAddress

TIMEOUT_S = 90


class Reply(NamedTuple):
    """`error` is the `{"code", "message", "hint"}` of a refusal, else empty."""

    status: int
    body: Any
    error: dict[str, str]


def ask(
    url: str, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> Reply:
    """Send exactly this, and return the answer."""
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc, timeout=TIMEOUT_S)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        data = response.read()
        value = json.loads(data) if data else None
        return Reply(response.status, value, value.get("error", {}) if isinstance(value, dict) else {})
    finally:
        connection.close()


def post(url: str, path: str, value: Any, headers: dict[str, str] | None = None) -> Reply:
    """POST `value` as JSON."""
    return ask(url, "POST", path, json.dumps(value).encode(), headers)


def hello_for(placement: Placement, address: SlotAddress) -> wire.Hello:
    """Return the right hello for an executor."""
    return wire.Hello(
        placement.cluster,
        address.launch_id,
        address.incarnation,
        placement.dataset_id,
        placement.generation,
        placement.version,
    )


class DataPort:
    """A connection to an executor's data port: TCP, or its Unix socket."""

    def __init__(self, address: SlotAddress, *, unix: bool = False) -> None:
        if unix:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(TIMEOUT_S)
            self.socket.connect(address.socket_path)
        else:
            self.socket = socket.create_connection((address.host, address.port), timeout=TIMEOUT_S)

    def __enter__(self) -> DataPort:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def greet(self, hello: wire.Hello) -> wire.HelloAnswer:
        self.send(wire.encode_hello(hello))
        return self.hello_answer()

    def hello_answer(self) -> wire.HelloAnswer:
        answer, detail_bytes = wire.decode_hello_answer(self.receive(wire.HELLO_ANSWER_BYTES))
        return answer._replace(detail=self.receive(detail_bytes).decode())

    def answer(self) -> tuple[wire.Status, bytes]:
        """Return the status and payload of the next answer."""
        fields = wire.ANSWER.unpack(self.receive(wire.ANSWER.size))
        return wire.Status(fields[1]), self.receive(fields[4])

    def receive(self, count: int) -> bytes:
        """Return exactly `count` bytes.

        :raises EOFError: the other side ended the connection before.
        """
        data = b""
        while len(data) < count:
            more = self.socket.recv(count - len(data))
            if not more:
                raise EOFError(f"the connection ended after {len(data)} of {count} bytes")
            data += more
        return data

    def is_ended(self) -> bool:
        """Wait for the other side's next word, and return whether it is the end."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

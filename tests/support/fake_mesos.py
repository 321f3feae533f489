"""A scriptable HTTP server in the place of a master or an agent, for tests of the drivers.

It decides nothing: a test tells it what to answer, and asks it what it was sent. One thread a connection, loopback
only. SUBSCRIBEs take the next scripted answer (by default an open stream); other calls get 202 unless told otherwise.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Self

from stoker.mesos.recordio import encode_record
from support.waiting import DEADLINE_S


class Call(NamedTuple):
    """One request; header names in lower case. `connection` tells kept connections apart."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any
    connection: int
    at_s: float

    @property
    def type(self) -> str:
        return self.body.get("type", "") if isinstance(self.body, dict) else ""


class Reply(NamedTuple):
    """An answer: `status` 0 closes the connection without one; `before` runs first (to wait, say)."""

    status: int
    body: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    before: Callable[[], object] | None = None
    then_close: bool = False


ACCEPTED = Reply(202)
HANG_UP = Reply(0)


class Hold:
    """A `before` that lasts until it is released, at the latest at the end of the block."""

    def __init__(self) -> None:
        self._released = threading.Event()

    def __call__(self) -> None:
        self._released.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        self._released.set()


class Stream:
    """The open answer to a SUBSCRIBE."""

    def __init__(self, sock: socket.socket, call: Call, stream_id: str) -> None:
        self.call = call
        self.stream_id = stream_id
        self.is_closed_by_client = threading.Event()
        self._socket = sock
        self._sending = threading.Lock()

    def send(self, *events: dict[str, Any]) -> None:
        """Send each event as one record in one chunk, as a master does."""
        for event in events:
            self.send_bytes(encode_record(json.dumps(event).encode()))

    def send_bytes(self, *pieces: bytes) -> None:
        """Send each piece as a chunk of its own, whatever is in it."""
        try:
            with self._sending:
                self._socket.sendall(b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces))
        except OSError:
            self.is_closed_by_client.set()

    def send_raw(self, data: bytes) -> None:
        """Send bytes past the chunking."""
        self._socket.sendall(data)

    def end(self) -> None:
        """End the body properly and close."""
        try:
            self._socket.sendall(b"0\r\n\r\n")
        except OSError:
            self.is_closed_by_client.set()
        self.cut()

    def cut(self) -> None:
        """Close without an end, as a process that dies."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


class FakeMesos:
    """The server; a context manager. `stream_ids=False` leaves out Mesos-Stream-Id, as agents do."""

    def __init__(self, *, host: str = "127.0.0.1", port: int = 0, stream_ids: bool = True) -> None:
        self.calls: list[Call] = []
        self.streams: list[Stream] = []
        self.replies: dict[str, Reply] = {}
        self._stream_ids = stream_ids
        self._subscribe_replies: list[Reply] = []
        self._subscribe_default: Reply | None = None
        self._changed = threading.Condition()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._is_open = True
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family, backlog=64)
        self.host, self.port = self._listener.getsockname()[:2]
        self._begin(self._accept_all)

    @property
    def address(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Die: every connection ends, the port refuses."""
        with self._changed:
            self._is_open = False
            sockets = [*self._sockets]
        for sock in [self._listener, *sockets]:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        self._listener.close()
        for thread in self._threads:
            thread.join(DEADLINE_S)

    # --- the script

    def answer_subscribes(self, *replies: Reply) -> None:
        """Answer the next SUBSCRIBEs so; later ones get a stream again."""
        with self._changed:
            self._subscribe_replies += replies

    def answer_all_subscribes(self, reply: Reply | None) -> None:
        """Answer every SUBSCRIBE so; None: a stream."""
        with self._changed:
            self._subscribe_default = reply

    def close_idle_connections(self) -> None:
        """Close all connections that carry no stream."""
        with self._changed:
            streams = [stream._socket for stream in self.streams]
            sockets = [sock for sock in self._sockets if sock not in streams]
        for sock in sockets:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    # --- what it saw

    def of_type(self, kind: str) -> list[Call]:
        with self._changed:
            return [call for call in self.calls if call.type == kind]

    def wait_calls(self, kind: str, count: int = 1, *, deadline_s: float = DEADLINE_S) -> list[Call]:
        """Return all calls of a type once there are `count`."""
        self._wait(
            lambda: sum(call.type == kind for call in self.calls) >= count, f"{count} {kind}", deadline_s
        )
        return self.of_type(kind)

    def wait_stream(self, count: int = 1, *, deadline_s: float = DEADLINE_S) -> Stream:
        """Return the `count`th stream once it is open."""
        self._wait(lambda: len(self.streams) >= count, f"stream {count}", deadline_s)
        return self.streams[count - 1]

    def _wait(self, is_so: Callable[[], bool], what: str, deadline_s: float) -> None:
        with self._changed:
            if not self._changed.wait_for(is_so, deadline_s):
                seen = [call.type or call.path for call in self.calls]
                raise AssertionError(f"no {what} within {deadline_s} s; calls were {seen[-20:]}")

    # --- the server

    def _begin(self, target: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept_all(self) -> None:
        number = 0
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with self._changed:
                if not self._is_open:
                    sock.close()
                    return
                self._sockets.append(sock)
            number += 1
            self._begin(self._serve, sock, number)

    def _serve(self, sock: socket.socket, number: int) -> None:
        try:
            with sock, sock.makefile("rb") as reader:
                while (call := _read_request(reader, number)) is not None and self._answer(sock, call):
                    pass
        except (OSError, ValueError):
            pass  # cut off, perhaps in the middle of a line

    def _answer(self, sock: socket.socket, call: Call) -> bool:
        with self._changed:
            self.calls.append(call)
            self._changed.notify_all()
            reply = self.replies.get(call.type, ACCEPTED)
            if call.type == "SUBSCRIBE":
                script = self._subscribe_replies
                default = self._subscribe_default
                reply = script.pop(0) if script else default or Reply(200)
        if reply.before is not None:
            reply.before()
        if reply.status == 0:
            return False
        if call.type == "SUBSCRIBE" and reply.status == 200:
            self._serve_stream(sock, call)
            return False
        body = reply.body.encode()
        lines = [f"HTTP/1.1 {reply.status} X", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in reply.headers]
        sock.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        return not reply.then_close

    def _serve_stream(self, sock: socket.socket, call: Call) -> None:
        with self._changed:
            stream_id = f"stream-{len(self.streams) + 1}"
        lines = ["HTTP/1.1 200 OK", "Transfer-Encoding: chunked", "Content-Type: application/json"]
        if self._stream_ids:
            lines.append(f"Mesos-Stream-Id: {stream_id}")
        sock.sendall("\r\n".join([*lines, "", ""]).encode())
        stream = Stream(sock, call, stream_id)
        with self._changed:
            self.streams.append(stream)
            self._changed.notify_all()
        while sock.recv(65536):
            pass
        stream.is_closed_by_client.set()


def _read_request(reader: Any, connection: int) -> Call | None:
    line = reader.readline().decode()
    if not line:
        return None
    method, path, _ = line.split(" ", 2)
    headers: dict[str, str] = {}
    while (line := reader.readline().decode().strip()) != "":
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    body = reader.read(int(headers.get("content-length", "0")))
    return Call(method, path, headers, json.loads(body) if body else None, connection, time.monotonic())


def subscribed(framework_id: str = "F1", *, heartbeat_s: float = 15.0, **master: Any) -> dict[str, Any]:
    """Return a master's first event."""
    info = {"id": "M1", "hostname": "master.example", "port": 5050, "version": "1.12.0-dev", **master}
    return {
        "type": "SUBSCRIBED",
        "subscribed": {
            "framework_id": {"value": framework_id},
            "heartbeat_interval_seconds": heartbeat_s,
            "master_info": info,
        },
    }


def executor_subscribed(framework_id: str = "F1", executor_id: str = "E1") -> dict[str, Any]:
    """Return an agent's first event."""
    return {
        "type": "SUBSCRIBED",
        "subscribed": {
            "executor_info": {"executor_id": {"value": executor_id}},
            "framework_info": {"id": {"value": framework_id}, "name": "f", "user": "u"},
            "agent_info": {"id": {"value": "S1"}, "hostname": "agent.example"},
        },
    }


class Recorder:
    """Stands in for a pymesos Scheduler or Executor: every callback is kept; `on` runs code in one."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, tuple[Any, ...]]] = []
        self._actions: dict[str, Callable[..., object]] = {}
        self._changed = threading.Condition()

    def on(self, name: str, action: Callable[..., object]) -> None:
        """Run `action(driver, *args)` in that callback from now on."""
        self._actions[name] = action

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("_"):
            raise AttributeError(name)

        def callback(driver: Any, *args: Any) -> None:
            with self._changed:
                self.seen.append((name, args))
                self._changed.notify_all()
            action = self._actions.get(name)
            if action is not None:
                action(driver, *args)

        return callback

    def names(self) -> list[str]:
        with self._changed:
            return [name for name, _ in self.seen]

    def count(self, name: str) -> int:
        return self.names().count(name)

    def wait(self, name: str, count: int = 1, *, deadline_s: float = DEADLINE_S) -> tuple[Any, ...]:
        """Return the arguments (without the driver) of the `count`th call of that callback, once it was made."""
        with self._changed:
            if not self._changed.wait_for(
                lambda: sum(seen == name for seen, _ in self.seen) >= count, deadline_s
            ):
                raise AssertionError(
                    f"no {name} number {count} within {deadline_s} s; there were {[n for n, _ in self.seen]}"
                )
            return [args for seen, args in self.seen if seen == name][count - 1]


def in_pieces(data: bytes, sizes: Iterable[int]) -> list[bytes]:
    """Cut `data` into pieces of these sizes, the last one taking the rest."""
    pieces, start = [], 0
    for size in sizes:
        if start >= len(data):
            break
        pieces.append(data[start : start + size])
        start += size
    return [*pieces, data[start:]] if start < len(data) else pieces

"""The test's end of the executors that it plays: they connect to it when they are started, and do what they are told."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from typing import IO, Any

from support.replay import puppet
from support.replay.recording import Message
from support.replay.wire import Clock

ANSWER_TIMEOUT_S = 20.0


class Puppet:
    """One executor process. `hello` is what it said of itself: environment, sandbox, pid."""

    def __init__(self, opened: socket.socket, reader: IO[bytes], hello: Message, puppets: Puppets) -> None:
        self.hello = hello
        self.child = 0
        self._socket, self._reader, self._puppets = opened, reader, puppets
        self._count = 0
        self._lock = threading.Lock()

    def tell(self, do: str, **fields: Any) -> None:
        """Give an order that ends it: no answer comes."""
        self._count += 1
        with contextlib.suppress(OSError):
            self._socket.sendall(json.dumps({"id": self._count, "do": do, **fields}).encode() + b"\n")

    def ask(self, do: str, **fields: Any) -> Message:
        """Give an order and return the answer; {} if it is dead."""
        with self._lock:
            self.tell(do, **fields)
            try:
                line = self._reader.readline()
            except OSError:
                return {}
        answer: Message = json.loads(line) if line else {}
        answer.pop("id", None)
        return answer

    def open(self, patience_s: float) -> socket.socket | None:
        """Return a connection to its agent that is its own; while the agent refuses, try for `patience_s`."""
        deadline = time.monotonic() + patience_s
        while True:
            token = self._puppets.new_token()
            answer = self.ask("open", token=token)
            if "error" not in answer:
                return self._puppets.take_connection(token)
            if time.monotonic() >= deadline:
                return None
            time.sleep(0.05)


class Puppets:
    """The place where executors report; a context manager."""

    def __init__(self, python: str, host: str = "127.0.0.1") -> None:
        self.clock = Clock()
        self._listener = socket.create_server((host, 0))
        self.address = f"{host}:{self._listener.getsockname()[1]}"
        self.command = puppet.command(python, self.address)
        self._started: dict[str, list[Puppet]] = {}
        self._claimed: dict[str, int] = {}
        self._connections: dict[str, socket.socket] = {}
        self._tokens = 0
        self._all: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Puppets:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self.forget()

    def forget(self) -> None:
        """Let every executor end, as its control connection does."""
        with self.clock.changed:
            ended, self._all = self._all, []
            self._started.clear()
            self._claimed.clear()
        for opened in ended:
            with contextlib.suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)
            opened.close()

    def wait(self, name: str, timeout_s: float) -> Puppet | None:
        """Return the newest executor `name` once there is one, else None after `timeout_s`."""
        with self.clock.changed:
            self.clock.changed.wait_for(lambda: bool(self._started.get(name)), timeout_s)
            found = self._started.get(name)
        return found[-1] if found else None

    def wait_new(self, name: str, timeout_s: float) -> Puppet | None:
        """Return an executor `name` that was not returned by this before."""
        with self.clock.changed:
            claimed = self._claimed.get(name, 0)
            self.clock.changed.wait_for(lambda: len(self._started.get(name, ())) > claimed, timeout_s)
            found = self._started.get(name, [])
            if len(found) <= claimed:
                return None
            self._claimed[name] = claimed + 1
            return found[claimed]

    def latest(self, name: str) -> Puppet:
        return self._started[name][-1]

    def new_token(self) -> str:
        self._tokens += 1
        return f"connection-{self._tokens}"

    def take_connection(self, token: str) -> socket.socket | None:
        with self.clock.changed:
            self.clock.changed.wait_for(lambda: token in self._connections, ANSWER_TIMEOUT_S)
            return self._connections.pop(token, None)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                opened, _ = self._listener.accept()
                opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._greet, args=(opened,), daemon=True).start()

    def _greet(self, opened: socket.socket) -> None:
        """Read the first line byte by byte: what follows on a connection to the agent is not ours to take."""
        line = b""
        with contextlib.suppress(OSError):
            while not line.endswith(b"\n"):
                byte = opened.recv(1)
                if not byte:
                    return
                line += byte
        hello = json.loads(line)
        with self.clock.changed:
            if hello["kind"] == "control":
                self._all.append(opened)
                found = Puppet(opened, opened.makefile("rb"), hello, self)
                self._started.setdefault(hello["name"], []).append(found)
            else:
                self._connections[hello["token"]] = opened
            self.clock.changed.notify_all()

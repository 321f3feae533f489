"""Files of the SSD tier as the data server holds them, and a caller of it, all in one process."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path
from typing import Any

import gevent

from stoker.executor.block import BlockName, block_layout, encode_header
from stoker.executor.connection import Connection
from stoker.executor.disk_calls import Calls, DiskCalls
from stoker.executor.entries import DISK_PATIENCE_MS, DISK_READS_MAX, FILES_OPEN_MAX, DiskFiles, Entry
from stoker.executor.loans import Shelf
from stoker.executor.misses import Misses
from stoker.executor.server_state import Identity, Limits, ServerState
from stoker.executor.stream import Stream
from stoker.executor.wire import ANSWER, HELLO_ANSWER_BYTES, Hello, Op, encode_hello, encode_request
from support.data_servers import CLUSTER, INCARNATION, LAUNCH
from support.greenlets import wait_until
from support.waiting import DEADLINE_S

DATA = 1_000


class Files:
    def __init__(
        self,
        directory: Path,
        *,
        open_max: int = FILES_OPEN_MAX,
        calls: Calls | None = None,
        patience_ms: int = DISK_PATIENCE_MS,
    ) -> None:
        self.directory = directory
        self.gone: list[int] = []
        self.broken: list[tuple[int, str]] = []
        self.shelf = Shelf(self.gone.append)
        self.shelf.files = DiskFiles(
            str(directory),
            CLUSTER,
            lambda *told: self.broken.append(told),
            DiskCalls(DISK_READS_MAX) if calls is None else calls,
            open_max=open_max,
            patience_ms=patience_ms,
        )
        self.dataset = self.shelf.put_dataset(1, 1, 1, 2**20)
        self.wants: list[dict[str, Any]] = []  # what the keeper is asked for
        self.misses = Misses(self.shelf, self.wants.append)

    def put(self, number: int, *, full_from: int = 1, is_restored: bool = False) -> Entry:
        name, layout = BlockName(1, 1, number), block_layout(DATA)
        path = self.directory / f"1.1.{number}-{number}"
        with open(path, "wb") as file:
            file.write(bytes([number % 256]) * DATA)
            file.truncate(layout.file_bytes)
            file.seek(layout.trailer_offset)
            file.write(encode_header(CLUSTER, name, DATA))
        entry = self.shelf.put_file(self.dataset, number, name, path.name, DATA, is_restored=is_restored)
        entry.full_from, entry.sealed = full_from, full_from > 0
        return entry

    def open_count(self) -> int:
        found = 0
        for name in os.listdir("/proc/self/fd"):
            path = f"/proc/self/fd/{name}"
            found += os.path.exists(path) and os.readlink(path).startswith(f"{self.directory}/")
        return found


class Caller:
    """A caller of the data port that takes nothing until it is asked to, and the connection that serves it."""

    def __init__(self, files: Files) -> None:
        served, self.sock = socket.socketpair()
        self.sock.settimeout(DEADLINE_S)
        identity = Identity(CLUSTER, LAUNCH, INCARNATION)
        state = ServerState(identity, Limits(), files.shelf, files.misses)
        hello = Hello(CLUSTER, LAUNCH, INCARNATION, 1, 1, 1)
        self.sock.sendall(encode_hello(hello))
        self.stream = Stream(served)
        others = len(files.dataset.borrowers)
        self.greenlet = gevent.spawn(Connection(self.stream, state).serve)
        self.fill_bytes = 0
        wait_until(lambda: len(files.dataset.borrowers) > others)
        assert len(self.sock.recv(HELLO_ANSWER_BYTES)) == HELLO_ANSWER_BYTES

    def fill(self) -> None:
        """See that the connection's next send must wait."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self.fill_bytes += self.stream.sock.send(b"x" * 65536)

    def receive(self) -> tuple[bytes, list[int]]:
        """Return what is sent after the filling, and the descriptors that came with it."""
        data, fds = b"", list[int]()
        self.sock.setblocking(False)

        def is_there() -> bool:
            nonlocal data, fds
            with contextlib.suppress(BlockingIOError):
                part, more, _, _ = socket.recv_fds(self.sock, 65536, 8)
                data, fds = data + part, fds + more
            return bool(fds)

        wait_until(is_there)
        return data[self.fill_bytes :], fds

    def close(self) -> None:
        self.sock.close()
        self.greenlet.join(DEADLINE_S)
        assert self.greenlet.dead

    def ask(self, block: int, length: int = DATA) -> None:
        self.sock.sendall(encode_request(Op.READ, [(block, 0, length)], request_id=1))

    def take(self) -> tuple[int, bytes]:
        """Return (failed ranges, payload) of the answer to `ask`."""
        self.sock.setblocking(False)
        data = b""

        def is_there() -> bool:
            nonlocal data
            with contextlib.suppress(BlockingIOError):
                data += self.sock.recv(2**20)
            return (
                len(data) >= ANSWER.size and len(data) >= ANSWER.size + ANSWER.unpack(data[: ANSWER.size])[4]
            )

        wait_until(is_there, "an answer")
        return ANSWER.unpack(data[: ANSWER.size])[2], data[ANSWER.size :]

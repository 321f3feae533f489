"""A real data server process whose keeper is the test, and a client that speaks the data port's protocol byte by byte."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import crc32c
import msgpack

from stoker.executor import index
from stoker.executor.block import PAGE_BYTES, BlockName, block_layout
from stoker.executor.channel import Channel, channel_pair
from stoker.executor.store import MemTier
from stoker.executor.wire import (
    ANSWER,
    HELLO_ANSWER_BYTES,
    Hello,
    HelloAnswer,
    Op,
    Status,
    decode_hello_answer,
    encode_hello,
    encode_request,
)
from support.waiting import DEADLINE_S

CLUSTER = bytes(range(16))
LAUNCH = 7
INCARNATION = 77
BLOCK = 4 * 2**20
DATA = random.Random(7).randbytes(BLOCK)
SHORT = DATA[: 3 * PAGE_BYTES + 100]


class DataServer:
    """A data server process, fed by this one. Messages of the server that no method takes are kept in `said`."""

    def __init__(self, *, host: str = "127.0.0.1", cluster: bytes = CLUSTER, **limits: int) -> None:
        mine, its = channel_pair()
        self.cluster = cluster
        self.directory = tempfile.mkdtemp(prefix="stoker-test-")
        self.path = os.path.join(self.directory, "server.sock")
        self.abstract = f"stoker-test-{os.path.basename(self.directory)}"
        self.host = host
        self.process = subprocess.Popen(
            [sys.executable, "-m", "stoker.executor.server", str(its.fileno())], pass_fds=[its.fileno()]
        )
        its.close()
        self.channel = Channel(mine)
        self.channel.send(
            {
                "t": "start",
                "cluster": cluster,
                "launch": LAUNCH,
                "incarnation": INCARNATION,
                "host": host,
                "port": 0,
                "path": self.path,
                "abstract": self.abstract,
                "parent": os.getpid(),
                "limits": limits,
            }
        )
        received = self.channel.receive()
        assert received is not None and received[0]["t"] == "listening", received
        self.port: int = received[0]["port"]
        self.tier = MemTier(cluster)
        self.fds: dict[int, int] = {}  # holding -> our descriptor
        self.gone: set[int] = set()
        self.said: list[dict[str, Any]] = []
        self.on_want: Callable[[dict[str, Any]], None] = self.fail_want
        self._holdings = 0
        self._change = threading.Condition()
        self._thread = threading.Thread(target=self._receive, daemon=True)
        self._thread.start()

    def put_dataset(
        self, dataset_id: int = 1, generation: int = 1, *, version: int = 1, block_bytes: int
    ) -> None:
        self.channel.send(
            {
                "t": "dataset",
                "id": dataset_id,
                "generation": generation,
                "version": version,
                "block_bytes": block_bytes,
                "placement": {"dataset_id": dataset_id, "generation": generation, "version": version},
            }
        )

    def put_block(
        self,
        block_index: int,
        data: bytes,
        *,
        dataset_id: int = 1,
        generation: int = 1,
        version: int = 1,
        valid: list[tuple[int, int]] | None = None,
    ) -> int:
        """Put a block on the shelf: full and sealed, or with only the `valid` extents; return its holding."""
        holding, fd = self.make_file(BlockName(dataset_id, generation, block_index), data)
        layout = block_layout(len(data))
        index.mark_valid(fd, layout, [(0, len(data))] if valid is None else valid)
        if valid is None:
            self.tier.seal(fd)
        message = {"t": "block", "holding": holding, "dataset": dataset_id, "generation": generation}
        self.channel.send(message | {"index": block_index, "data_bytes": len(data), "full_from": 0}, [fd])
        if valid is None:
            self.channel.send({"t": "full", "holding": holding, "full_from": version})
        return holding

    def make_file(self, name: BlockName, data: bytes) -> tuple[int, int]:
        """Return (holding, descriptor) of a new block's file with checksums, nothing valid yet."""
        self._holdings += 1
        fd = self.tier.create(name, len(data))
        layout = block_layout(len(data))
        os.pwrite(fd, data, 0)
        for page in range(layout.page_count):
            crc = crc32c.crc32c(data[page * PAGE_BYTES : (page + 1) * PAGE_BYTES])
            os.pwrite(fd, crc.to_bytes(4, "little"), layout.crc_offset + 4 * page)
        index.mark_known(fd, layout, [(0, layout.page_count)])
        self.fds[self._holdings] = fd
        return self._holdings, fd

    def drop(self, holding: int) -> None:
        self.channel.send({"t": "drop", "holding": holding})

    def fail_want(self, message: dict[str, Any]) -> None:
        """The default answer to a miss: every item fails with MISSING."""
        failed = [[item, 1, "not here"] for item in range(len(message["items"]))]
        places = [0] * len(message["items"])
        self.channel.send(
            {"t": "have", "want": message["want"], "places": places, "scratch": [], "failed": failed}
        )

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until `condition` holds; it is looked at after each message of the server."""
        with self._change:
            assert self._change.wait_for(condition, DEADLINE_S), f"in vain: {what}"

    def _receive(self) -> None:
        while (received := self.channel.receive()) is not None:
            message, _ = received
            if message["t"] == "want":
                self.on_want(message)
            with self._change:
                if message["t"] == "gone":
                    self.gone.add(message["holding"])
                self.said.append(message)
                self._change.notify_all()

    def hello(self, **fields: Any) -> Hello:
        values: dict[str, Any] = {
            "cluster": self.cluster,
            "launch_id": LAUNCH,
            "incarnation": INCARNATION,
            "dataset_id": 1,
            "generation": 1,
            "dataset_version": 1,
        }
        return Hello(**(values | fields))

    def tcp(self, **fields: Any) -> WireClient:
        return WireClient(socket.create_connection((self.host, self.port), DEADLINE_S), self.hello(**fields))

    def unix(self, **fields: Any) -> WireClient:
        return WireClient(connect_unix(self.path), self.hello(**fields))

    def close(self) -> None:
        """End the server by closing the channel; it must end by itself."""
        self.channel._sock.shutdown(socket.SHUT_RDWR)
        try:
            code = self.process.wait(DEADLINE_S)
        finally:
            self.process.kill()
            self.process.wait()
        self._thread.join(DEADLINE_S)
        self.channel.close()
        for fd in self.fds.values():
            os.close(fd)
        shutil.rmtree(self.directory)
        assert code == 0, f"the server ended with {code}"


class WireClient:
    """One connection to a data port. `hello` None: nothing is said yet."""

    def __init__(self, sock: socket.socket, hello: Hello | None) -> None:
        self.sock = sock
        sock.settimeout(DEADLINE_S)
        self.drops: list[int] = []
        self._requests = 0
        self.answer: HelloAnswer | None = None
        if hello is not None:
            self.greet(hello)

    def greet(self, hello: Hello) -> HelloAnswer:
        self.sock.sendall(encode_hello(hello))
        return self.read_hello_answer()

    def read_hello_answer(self) -> HelloAnswer:
        answer, detail_bytes = decode_hello_answer(self.exactly(HELLO_ANSWER_BYTES))
        self.answer = answer._replace(detail=self.exactly(detail_bytes).decode())
        return self.answer

    def exactly(self, count: int) -> bytes:
        parts = []
        while count:
            data = self.sock.recv(min(count, 1 << 20))
            if not data:
                raise EOFError(f"the server ended the connection; {count} bytes are missing")
            parts.append(data)
            count -= len(data)
        return b"".join(parts)

    def send(self, op: Op, ranges: list[tuple[int, int, int]], *, flags: int = 0) -> int:
        self._requests += 1
        self.sock.sendall(encode_request(op, ranges, request_id=self._requests, flags=flags))
        return self._requests

    def receive(self) -> tuple[Status, int, bytes]:
        """Return (status, failed count, payload) of the next answer; DROPs on the way go to `drops`."""
        while True:
            op, status, failed, request_id, payload_bytes, _, _ = ANSWER.unpack(self.exactly(ANSWER.size))
            payload = self.exactly(payload_bytes)
            if op == Op.DROP:
                assert request_id == 0
                self.drops += [
                    int.from_bytes(payload[i : i + 4], "little") for i in range(0, len(payload), 4)
                ]
                continue
            assert status != Status.OK or request_id == self._requests, (op, status, request_id)
            return Status(status), failed, payload

    def request(
        self, op: Op, ranges: list[tuple[int, int, int]], *, flags: int = 0
    ) -> tuple[Status, int, bytes]:
        self.send(op, ranges, flags=flags)
        return self.receive()

    def read(self, *ranges: tuple[int, int, int], flags: int = 0) -> bytes:
        """Return the bytes of `ranges`; none may fail."""
        status, failed, payload = self.request(Op.READ, list(ranges), flags=flags)
        assert (status, failed) == (Status.OK, 0), (status, failed, payload[:300])
        return payload

    def read_failing(
        self, *ranges: tuple[int, int, int], flags: int = 0
    ) -> tuple[dict[int, tuple[int, str]], bytes]:
        """Return ({range number: (failure, message)}, the bytes of the others)."""
        status, failed, payload = self.request(Op.READ, list(ranges), flags=flags)
        assert status == Status.OK, (status, payload)
        if not failed:
            return {}, payload
        length = int.from_bytes(payload[:4], "little")
        rows = msgpack.unpackb(payload[4 : 4 + length])
        assert len(rows) == failed
        return {n: (code, text) for n, code, text in rows}, payload[4 + length :]

    def descriptors(self, *blocks: int) -> tuple[list[int], list[int]]:
        """Return (status a block, descriptors passed)."""
        self.send(Op.DESCRIPTORS, [(b, 0, 0) for b in blocks])
        while True:
            data, fds, _, _ = socket.recv_fds(self.sock, ANSWER.size, 253)
            data += self.exactly(ANSWER.size - len(data))
            op, status, _, _, payload_bytes, _, _ = ANSWER.unpack(data)
            payload = self.exactly(payload_bytes)
            if op == Op.DROP:
                self.drops += [
                    int.from_bytes(payload[i : i + 4], "little") for i in range(0, len(payload), 4)
                ]
                continue
            assert status == Status.OK, (status, payload)
            return list(payload), fds

    def wait_drop(self) -> list[int]:
        """Return the next DROP's blocks."""
        op, _, _, request_id, payload_bytes, _, _ = ANSWER.unpack(self.exactly(ANSWER.size))
        assert (op, request_id) == (Op.DROP, 0)
        payload = self.exactly(payload_bytes)
        return [int.from_bytes(payload[i : i + 4], "little") for i in range(0, len(payload), 4)]

    def give_back(self, *blocks: int) -> None:
        self.sock.sendall(encode_request(Op.RETURNED, [(b, 0, 0) for b in blocks], request_id=0))

    def at_end(self) -> bool:
        """Return whether the server has ended the connection; waits for it."""
        try:
            return not self.sock.recv(1)
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self.sock.close()


def connect_unix(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(DEADLINE_S)
    sock.connect(path)
    return sock


@contextmanager
def running_data_server(**options: Any) -> Iterator[DataServer]:
    server = DataServer(**options)
    try:
        yield server
    finally:
        server.close()

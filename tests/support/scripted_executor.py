"""The process of `clusters.ScriptedExecutor`: wire.py over real sockets, and commands as JSON lines on stdin.

It imports little, so that it starts fast.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import socket
import struct
import sys
import tempfile
import threading
import time
from typing import Any

import msgpack

from stoker.executor import wire


class _Server:
    def __init__(self, socket_path: str) -> None:
        self.blocks: dict[tuple[int, int], int] = {}  # (dataset, index) -> memfd
        self.connections: set[socket.socket] = set()
        self.reset(0, 0)
        self.tcp = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.unix = socket.socket(socket.AF_UNIX)
        self.unix.bind(socket_path)
        self.unix.listen(128)
        for listener in (self.tcp, self.unix):
            threading.Thread(target=self.accept, args=(listener,), daemon=True).start()

    def reset(self, launch_id: int, incarnation: int) -> None:
        for opened in list(self.connections):
            with contextlib.suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)
        while self.connections:
            time.sleep(0.001)
        for fd in self.blocks.values():
            os.close(fd)
        self.launch_id = launch_id
        self.incarnation = incarnation
        self.blocks = {}
        self.not_full: set[tuple[int, int]] = set()
        self.lends = ""  # a file that is lent in place of every block
        self.fail: dict[int, tuple[int, str]] = {}  # index -> failure
        self.refused: dict[str, Any] = {}
        self.delay_s = 0.0
        self.cut_after = -1  # bytes of the next READ's payload, then the end; one connection
        self.counts = dict.fromkeys(("hello", "read", "descriptors", "refresh", "ping", "returned"), 0)
        self.loans: dict[socket.socket, set[int]] = {}
        self.returned: list[int] = []
        self.placement_version = 0
        self.refresh: Any = {}

    def accept(self, listener: socket.socket) -> None:
        while True:
            opened, _ = listener.accept()
            threading.Thread(target=self.serve, args=(opened,), daemon=True).start()

    def serve(self, opened: socket.socket) -> None:
        self.connections.add(opened)
        with contextlib.suppress(OSError), opened:
            hello, grant = wire.decode_hello(receive(opened, wire.HELLO_BYTES))
            receive(opened, grant)
            self.counts["hello"] += 1
            status = wire.HelloStatus.OK
            if (hello.launch_id, hello.incarnation) != (self.launch_id, self.incarnation):
                status = wire.HelloStatus.LAUNCH
            if hello.dataset_id in self.refused.get("datasets", ()):
                status = wire.HelloStatus.DATASET
            answer = wire.HelloAnswer(
                status, 1, hello.cluster, self.launch_id, self.incarnation, self.placement_version, 1
            )
            opened.sendall(wire.encode_hello_answer(answer))
            if status == wire.HelloStatus.OK:
                with contextlib.suppress(EOFError):
                    while True:
                        self.request(opened, hello.dataset_id)
        self.loans.pop(opened, None)
        self.connections.discard(opened)

    def request(self, opened: socket.socket, dataset: int) -> None:
        op, _, count, request_id, _ = wire.REQUEST.unpack(receive(opened, wire.REQUEST.size))
        ranges = wire.decode_ranges(receive(opened, count * wire.RANGE.size))
        if op == wire.Op.READ:
            self.read(opened, dataset, request_id, ranges)
        elif op == wire.Op.DESCRIPTORS:
            self.descriptors(opened, dataset, request_id, [index for index, _, _ in ranges])
        elif op == wire.Op.RETURNED:
            for index, _, _ in ranges:
                self.counts["returned"] += 1
                self.returned.append(index)
                self.loans.get(opened, set()).discard(index)
        elif op == wire.Op.PING:
            self.counts["ping"] += 1
            self.send(opened, op, request_id, b"")
        elif op == wire.Op.REFRESH:
            self.counts["refresh"] += 1
            self.send(opened, op, request_id, msgpack.packb(self.refresh))

    def send(self, opened: socket.socket, op: int, request_id: int, payload: bytes, failed: int = 0) -> None:
        header = wire.ANSWER.pack(op, 0, failed, request_id, len(payload), self.placement_version, 1)
        opened.sendall(header + payload)

    def read(
        self, opened: socket.socket, dataset: int, request_id: int, ranges: list[tuple[int, int, int]]
    ) -> None:
        self.counts["read"] += 1
        time.sleep(self.delay_s)
        failures, parts = [], []
        for number, (index, start, length) in enumerate(ranges):
            fd = self.blocks.get((dataset, index))
            if index in self.fail:
                failures.append([number, *self.fail[index]])
            elif fd is None:
                failures.append([number, wire.Failure.MISSING, "not here"])
            else:
                parts.append(os.pread(fd, length, start))
        names = b""
        if failures:
            packed = msgpack.packb(failures)
            names = struct.pack("<I", len(packed)) + packed
        payload = names + b"".join(parts)
        if self.cut_after >= 0:
            cut, self.cut_after = self.cut_after, -1
            header = wire.ANSWER.pack(wire.Op.READ, 0, len(failures), request_id, len(payload), 0, 1)
            opened.sendall(header + payload[:cut])
            opened.shutdown(socket.SHUT_RDWR)
            raise EOFError
        self.send(opened, wire.Op.READ, request_id, payload, len(failures))

    def descriptors(self, opened: socket.socket, dataset: int, request_id: int, indexes: list[int]) -> None:
        self.counts["descriptors"] += 1
        states, fds = bytearray(), []
        for index in indexes:
            fd = self.blocks.get((dataset, index))
            if fd is None:
                states.append(wire.DescriptorStatus.NOT_HERE)
            elif (dataset, index) in self.not_full:
                states.append(wire.DescriptorStatus.NOT_FULL)
            else:
                states.append(wire.DescriptorStatus.PASSED)
                fds.append(os.open(self.lends, os.O_RDONLY) if self.lends else os.dup(fd))
                self.loans.setdefault(opened, set()).add(index)
        header = wire.ANSWER.pack(
            wire.Op.DESCRIPTORS, 0, 0, request_id, len(states), self.placement_version, 1
        )
        if fds:
            socket.send_fds(opened, [header + states], fds)
            for fd in fds:
                os.close(fd)
        else:
            opened.sendall(header + states)

    def drop(self, indexes: list[int]) -> int:
        asked = 0
        for opened, lent in list(self.loans.items()):
            wanted = [index for index in indexes if index in lent]
            if wanted:
                asked += len(wanted)
                payload = struct.pack(f"<{len(wanted)}I", *wanted)
                opened.sendall(wire.ANSWER.pack(wire.Op.DROP, 0, 0, 0, len(payload), 0, 1) + payload)
        return asked

    def command(self, command: dict[str, Any]) -> dict[str, Any]:
        kind = command.pop("t")
        if kind == "reset":
            self.reset(**command)
        if kind == "put":
            data = pathlib.Path(command["path"]).read_bytes()
            if command.get("on_disk"):
                fd, path = tempfile.mkstemp()
                os.unlink(path)
            else:
                fd = os.memfd_create("block", os.MFD_CLOEXEC)
            assert os.write(fd, data) == len(data)
            self.blocks[command["dataset"], command["index"]] = fd
        elif kind == "remove":
            self.blocks.pop((command["dataset"], command["index"]), None)
        elif kind == "not_full":
            self.not_full = {(command["dataset"], index) for index in command["indexes"]}
        elif kind == "fail":
            self.fail = {int(index): tuple(failure) for index, failure in command["failures"].items()}
        elif kind == "drop":
            return {"asked": self.drop(command["indexes"])}
        elif kind == "cut_connections":
            for opened in list(self.connections):
                with contextlib.suppress(OSError):
                    opened.shutdown(socket.SHUT_RDWR)
        elif kind == "set":
            for key, value in command.items():
                assert hasattr(self, key)
                setattr(self, key, value)
        return {
            "counts": self.counts,
            "lent": sorted(index for lent in self.loans.values() for index in lent),
            "loans": len(self.loans),
            "returned": self.returned,
        }


def receive(opened: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = opened.recv(size - len(data))
        if not part:
            raise EOFError
        data += part
    return data


def _main() -> None:
    server = _Server(sys.argv[1])
    print(json.dumps({"port": server.tcp.getsockname()[1]}), flush=True)
    for line in sys.stdin:
        print(json.dumps(server.command(json.loads(line))), flush=True)


if __name__ == "__main__":
    _main()

"""A cluster that does what a test tells it: a scheduler that answers REST in this process, executors in processes of
their own that speak wire.py over real sockets, pass real descriptors of sealed memfds, and misbehave on command.

The real executor is tested with the real client elsewhere; this one is for what a healthy one never does.
"""

from __future__ import annotations

import base64
import contextlib
import http.server
import json
import os
import pathlib
import random
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Iterator
from typing import Any

import msgpack

from stoker.executor import wire
from stoker.executor.manifest import FileRow, Manifest, build, bundle, map_manifest, write_mapped

CLUSTER = bytes(range(16))
BOOT_ID = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class ScriptedDataset:
    """Files with random bytes, their manifest, and the bytes of their blocks."""

    def __init__(
        self,
        files: dict[str, bytes],
        *,
        directory: pathlib.Path,
        dataset_id: int = 1,
        version: int = 1,
        previous: ScriptedDataset | None = None,
    ) -> None:
        self.files = files
        rows = [FileRow(path, len(data), 1_700_000_000_000_000_000 + version, b"") for path, data in files.items()]
        if previous is not None:
            old = previous.files
            rows = [r._replace(mtime_ns=1_700_000_000_000_000_001) if old.get(r.path) == files[r.path] else r for r in rows]
        self.built = build(
            rows,
            cluster=CLUSTER,
            dataset_id=dataset_id,
            generation=1,
            version=version,
            slot_bytes=2**30,
            previous=previous.manifest if previous else None,
        )
        path = directory / f"manifest-{dataset_id}-{version}"
        write_mapped(self.built.root, self.built.parts.__getitem__, str(path))
        self.manifest: Manifest = map_manifest(path)
        self.dataset_id = dataset_id
        self.version = version

    def blocks(self) -> list[bytes]:
        manifest = self.manifest
        space = bytearray(manifest.block_count * manifest.block_bytes)
        for row in range(manifest.file_count):
            offset, size = manifest.extent(row)
            space[offset : offset + size] = self.files[manifest.path(row)]
        size = manifest.block_bytes
        return [
            bytes(space[index * size : index * size + manifest.block_length(index)])
            for index in range(manifest.block_count)
        ]


def make_files(count: int, size: int, *, seed: int = 1, prefix: str = "d") -> dict[str, bytes]:
    chance = random.Random(seed)
    return {f"{prefix}/{n % 7}/{n:05}.bin": chance.randbytes(max(0, size + chance.randrange(-size // 3, size // 3 + 1))) for n in range(count)}


class ScriptedExecutor:
    """An executor process. `command` tells it what to do and returns what it says."""

    def __init__(self, directory: pathlib.Path, *, slot_id: int, launch_id: int = 1, incarnation: int = 77) -> None:
        self.slot_id = slot_id
        self.launch_id = launch_id
        self.incarnation = incarnation
        self.socket_path = str(directory / f"x{slot_id}-{launch_id}-{incarnation}.sock")
        self._process = subprocess.Popen(
            [sys.executable, __file__, self.socket_path, str(launch_id), str(incarnation)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._lock = threading.Lock()
        self.port = int(self._read()["port"])

    def command(self, **command: Any) -> dict[str, Any]:
        with self._lock:
            assert self._process.stdin
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
            return self._read()

    def put(self, dataset: ScriptedDataset, only: set[int] | None = None) -> None:
        """Give it all blocks of a dataset, or `only` some."""
        for index, data in enumerate(dataset.blocks()):
            if only is None or index in only:
                with tempfile.NamedTemporaryFile() as file:
                    file.write(data)
                    file.flush()
                    self.command(t="put", dataset=dataset.dataset_id, index=index, path=file.name)

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line, "the scripted executor died"
        answer: dict[str, Any] = json.loads(line)
        return answer

    @property
    def address(self) -> dict[str, Any]:
        return {
            "slot_id": self.slot_id,
            "launch_id": self.launch_id,
            "incarnation": self.incarnation,
            "host": "127.0.0.1",
            "port": self.port,
            "socket_path": self.socket_path,
            "abstract_socket": "",
            "boot_id": BOOT_ID,
        }

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                with contextlib.suppress(OSError):
                    pipe.close()


class ScriptedScheduler:
    """A scheduler's REST API over what tests put into `datasets` and `answers`. `calls` are (method, path)."""

    def __init__(self) -> None:
        self.datasets: dict[str, tuple[ScriptedDataset, dict[str, Any]]] = {}
        self.answers: list[tuple[int, dict[str, str], Any]] = []  # the next answers, whatever is asked
        self.calls: list[tuple[str, str]] = []
        self.bodies: list[tuple[dict[str, str], Any]] = []
        self.placement_version = 1
        scheduler = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                scheduler._answer(self)

            do_POST = do_PUT = do_DELETE = do_GET

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def place(
        self, name: str, dataset: ScriptedDataset, executors: list[ScriptedExecutor], homes: list[list[int]] | None = None
    ) -> None:
        """Publish where a dataset is: `homes` is [replica][pg] positions in `executors`; else spread, one replica."""
        manifest = dataset.manifest
        homes = homes or [[pg % len(executors) for pg in range(manifest.pg_count)]]
        self.placement_version += 1
        self.datasets[name] = (
            dataset,
            {
                "name": name,
                "dataset_id": dataset.dataset_id,
                "cluster": CLUSTER.hex(),
                "version": manifest.version,
                "generation": manifest.generation,
                "digest": manifest.digest,
                "block_bytes": manifest.block_bytes,
                "pg_count": manifest.pg_count,
                "replicas": len(homes),
                "placement_version": self.placement_version,
                "homes": base64.b64encode(b"".join(struct.pack(f"<{len(r)}H", *r) for r in homes)).decode(),
                "slots": [executor.address for executor in executors],
            },
        )

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request: Any) -> None:
        length = int(request.headers.get("Content-Length") or 0)
        body = request.rfile.read(length)
        self.calls.append((request.command, request.path))
        self.bodies.append((dict(request.headers), json.loads(body) if body else None))
        if self.answers:
            status, headers, content = self.answers.pop(0)
        else:
            status, headers, content = self._route(urllib.parse.urlsplit(request.path).path)
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        request.send_response(status)
        for key, value in headers.items():
            request.send_header(key, value)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)

    def _route(self, path: str) -> tuple[int, dict[str, str], Any]:
        parts = path.strip("/").split("/")
        if parts == ["v1", "datasets"]:
            return 200, {}, {"datasets": [{"name": name} for name in self.datasets]}
        if parts[:2] == ["v1", "datasets"] and len(parts) == 4 and parts[2] in self.datasets:
            dataset, placement = self.datasets[parts[2]]
            if parts[3] == "placement":
                return 200, {}, placement
            if parts[3] == "manifest":
                return 200, {}, b"".join(bundle(dataset.built.root, dataset.built.parts))
        return 404, {}, {"error": {"code": "not_found", "message": f"no {path}", "hint": ""}}


class Cluster:
    """A scheduler and executors, ended together."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory
        self.sockets = pathlib.Path(tempfile.mkdtemp(prefix="stk"))
        self.scheduler = ScriptedScheduler()
        self.executors: list[ScriptedExecutor] = []

    @property
    def url(self) -> str:
        return self.scheduler.url

    def executor(self, **kwargs: Any) -> ScriptedExecutor:
        kwargs.setdefault("slot_id", len(self.executors) + 1)
        executor = ScriptedExecutor(self.sockets, **kwargs)
        self.executors.append(executor)
        return executor

    def dataset(self, files: dict[str, bytes], **kwargs: Any) -> ScriptedDataset:
        return ScriptedDataset(files, directory=self.directory, **kwargs)

    def close(self) -> None:
        self.scheduler.close()
        for executor in self.executors:
            executor.close()
        for path in self.sockets.iterdir():
            path.unlink()
        self.sockets.rmdir()


@contextlib.contextmanager
def cluster(directory: pathlib.Path) -> Iterator[Cluster]:
    made = Cluster(directory)
    try:
        yield made
    finally:
        made.close()


def wait_for(holds: Any, *, timeout_s: float = 10.0) -> None:
    """Wait until `holds()` is true; fail after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


# The executor process


class _Server:
    def __init__(self, socket_path: str, launch_id: int, incarnation: int) -> None:
        self.launch_id = launch_id
        self.incarnation = incarnation
        self.lock = threading.Lock()
        self.blocks: dict[tuple[int, int], int] = {}  # (dataset, index) -> memfd
        self.sizes: dict[tuple[int, int], int] = {}
        self.not_full: set[tuple[int, int]] = set()
        self.fail: dict[int, tuple[int, str]] = {}  # index -> failure
        self.refused: dict[str, Any] = {}
        self.delay_s = 0.0
        self.cut_after = -1  # bytes of the next READ's payload, then the end; one connection
        self.counts = {"hello": 0, "read": 0, "descriptors": 0, "refresh": 0, "ping": 0, "returned": 0, "open": 0}
        self.loans: dict[socket.socket, set[int]] = {}
        self.returned: list[int] = []
        self.placement_version = 0
        self.refresh: Any = {}
        self.tcp = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.unix = socket.socket(socket.AF_UNIX)
        self.unix.bind(socket_path)
        self.unix.listen(128)
        for listener in (self.tcp, self.unix):
            threading.Thread(target=self.accept, args=(listener,), daemon=True).start()

    def accept(self, listener: socket.socket) -> None:
        while True:
            opened, _ = listener.accept()
            threading.Thread(target=self.serve, args=(opened,), daemon=True).start()

    def serve(self, opened: socket.socket) -> None:
        self.counts["open"] += 1
        with contextlib.suppress(OSError), opened:
            hello, grant = wire.decode_hello(receive(opened, wire.HELLO_BYTES))
            receive(opened, grant)
            self.counts["hello"] += 1
            status = wire.HelloStatus.OK
            if (hello.launch_id, hello.incarnation) != (self.launch_id, self.incarnation):
                status = wire.HelloStatus.LAUNCH
            if hello.dataset_id in self.refused.get("datasets", ()):
                status = wire.HelloStatus.DATASET
            answer = wire.HelloAnswer(status, 1, hello.cluster, self.launch_id, self.incarnation, self.placement_version, 1)
            opened.sendall(wire.encode_hello_answer(answer))
            if status == wire.HelloStatus.OK:
                with contextlib.suppress(EOFError):
                    while True:
                        self.request(opened, hello.dataset_id)
        self.loans.pop(opened, None)
        self.counts["open"] -= 1

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

    def read(self, opened: socket.socket, dataset: int, request_id: int, ranges: list[tuple[int, int, int]]) -> None:
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
                fds.append(fd)
                self.loans.setdefault(opened, set()).add(index)
        header = wire.ANSWER.pack(wire.Op.DESCRIPTORS, 0, 0, request_id, len(states), self.placement_version, 1)
        if fds:
            socket.send_fds(opened, [header + states], fds)
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
        if kind == "put":
            data = pathlib.Path(command["path"]).read_bytes()
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
            for opened in list(self.loans):
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
    server = _Server(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    print(json.dumps({"port": server.tcp.getsockname()[1]}), flush=True)
    for line in sys.stdin:
        print(json.dumps(server.command(json.loads(line))), flush=True)


if __name__ == "__main__":
    _main()

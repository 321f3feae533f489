"""Real data servers and executors for tests.

`DataServer` is a real data server process whose keeper is the test: it puts blocks on the shelf and answers misses.
`WireClient` speaks the data port's protocol, byte by byte where a test wants to.
"""

from __future__ import annotations

import http.server
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import crc32c
import msgpack
import numpy as np
import psutil

from stoker.executor import index
from stoker.executor.block import PAGE_BYTES, BlockName, block_layout
from stoker.executor.channel import Channel, channel_pair
from stoker.executor.manifest import Manifest, build, bundle, map_manifest, write_mapped
from stoker.executor.messages import (
    Assignment,
    DatasetAssignment,
    Heartbeat,
    HeartbeatAnswer,
    Residency,
    SlotAddress,
    decode_heartbeat,
    encode,
)
from stoker.executor.store import MemTier
from stoker.executor.under_store import open_under_store
from stoker.executor.wire import (
    ANSWER,
    HELLO_ANSWER_BYTES,
    Hello,
    HelloAnswer,
    HelloStatus,
    Op,
    Status,
    decode_hello_answer,
    encode_hello,
    encode_request,
)

CLUSTER = bytes(range(16))
LAUNCH = 7
INCARNATION = 77
DEADLINE_S = 60.0


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
        code = self.process.wait(DEADLINE_S)
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


# --- executors


class TestDataset:
    """A dataset of files in a directory, with its manifest, as a scheduler would have listed it."""

    __test__ = False

    def __init__(
        self,
        root: str,
        *,
        dataset_id: int = 1,
        name: str = "set",
        version: int = 1,
        previous: Manifest | None = None,
        slot_bytes: int = 2**30,
    ) -> None:
        self.root = root
        self.name = name
        self.rows = list(open_under_store(root, {}).list(lambda _: None))
        self.built = build(
            self.rows,
            cluster=CLUSTER,
            dataset_id=dataset_id,
            generation=1,
            version=version,
            slot_bytes=slot_bytes,
            previous=previous,
        )
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "manifest")
            write_mapped(self.built.root, self.built.parts.__getitem__, path)
            self.manifest = map_manifest(path)
        self.bundle = b"".join(bundle(self.built.root, self.built.parts))

    def assignment(
        self,
        *,
        wanted: tuple[tuple[bool, str], ...] = (),
        wanted_version: int = 0,
        homes: list[list[int]] | None = None,
        policy: str = "keep",
        priority: int = 0,
    ) -> DatasetAssignment:
        """Return the dataset's assignment; `homes` is a list of slot positions a placement group, by default all at slot 0."""
        manifest = self.manifest
        table = np.array(homes if homes is not None else [[0]] * manifest.pg_count, dtype="<u2").T
        return DatasetAssignment(
            dataset_id=manifest.dataset_id,
            name=self.name,
            generation=manifest.generation,
            version=manifest.version,
            digest=manifest.digest,
            source=self.root,
            options={},
            policy=policy,
            priority=priority,
            block_bytes=manifest.block_bytes,
            pg_count=manifest.pg_count,
            replicas=table.shape[0],
            homes=np.ascontiguousarray(table).tobytes(),
            wanted=wanted,
            wanted_version=wanted_version,
            allotment_bytes=0,
        )

    def ranges(self, path: str, start: int = 0, stop: int | None = None) -> list[tuple[int, int, int]]:
        """Return the wire's ranges of a file's bytes [start, stop)."""
        manifest = self.manifest
        offset, size = manifest.extent(manifest.find(path))
        low, high = offset + start, offset + (size if stop is None else stop)
        found = []
        while low < high:
            block = low // manifest.block_bytes
            end = min(high, (block + 1) * manifest.block_bytes)
            found.append((block, low - block * manifest.block_bytes, end - low))
            low = end
        return found

    def data(self, path: str) -> bytes:
        with open(os.path.join(self.root, path), "rb") as file:
            return file.read()


class FakeScheduler:
    """Answers heartbeats with what `assign` set last, and gives manifests. Keeps every heartbeat, by launch."""

    def __init__(self) -> None:
        self.epoch = 1
        self.complete = True
        self.status = "ok"
        self.want_whole = False
        self.bundles: dict[tuple[str, int], bytes] = {}
        self.heartbeats: dict[int, list[Heartbeat]] = {}
        self.held: dict[int, dict[tuple[int, int], tuple[set[int], Residency]]] = {}
        self._datasets: tuple[DatasetAssignment, ...] = ()
        self._slots: tuple[SlotAddress, ...] = ()
        self._version = 0
        self._change = threading.Condition()
        fake = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers["Content-Length"]))
                self._answer(200, encode(fake._take(decode_heartbeat(data))))

            def do_GET(self) -> None:
                path, _, query = self.path.partition("?version=")
                body = fake.bundles.get((path.split("/")[3], int(query)))
                self._answer(404 if body is None else 200, body or b"no such version")

            def _answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        )
        self._thread.start()

    def serve(self, dataset: TestDataset) -> None:
        """Have a dataset version's manifest ready."""
        self.bundles[dataset.name, dataset.manifest.version] = dataset.bundle

    def assign(self, *datasets: DatasetAssignment, slots: int = 1) -> None:
        """Make an assignment of these datasets, over `slots` slots; executors that have reported are in it."""
        with self._change:
            self._datasets = datasets
            self._slots = tuple(self._slot(number) for number in range(1, slots + 1))
            self._version += 1

    def _slot(self, slot_id: int) -> SlotAddress:
        heard = [beats[-1] for beats in self.heartbeats.values() if beats[-1].slot_id == slot_id]
        if not heard:
            return SlotAddress(slot_id, 0, 0, "", 0, "", "", "")
        b = max(heard, key=lambda beat: beat.launch_id)
        return SlotAddress(
            slot_id, b.launch_id, b.incarnation, b.host, b.port, b.socket_path, b.abstract_socket, b.boot_id
        )

    def _take(self, beat: Heartbeat) -> HeartbeatAnswer:
        with self._change:
            self.heartbeats.setdefault(beat.launch_id, []).append(beat)
            held = {} if beat.whole else self.held.get(beat.launch_id, {})
            for residency in beat.datasets:
                key = (residency.dataset_id, residency.generation)
                full = held[key][0] if key in held else set()
                if residency.bitmap is not None:
                    bits = int.from_bytes(residency.bitmap, "little")
                    full = {i for i in range(bits.bit_length()) if bits >> i & 1}
                full = (full | set(residency.added)) - set(residency.removed)
                held[key] = (full, residency)
            self.held[beat.launch_id] = held
            self._change.notify_all()
            assignment = None
            if self._version and (beat.epoch_seen, beat.assignment_version) != (self.epoch, self._version):
                placement = 100 * self.epoch + self._version
                assignment = Assignment(
                    self.epoch, self._version, placement, self.complete, self._slots, self._datasets
                )
            return HeartbeatAnswer(
                self.status, self.epoch, beat.sequence, self.want_whole, (self.url,), assignment
            )

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until `condition` holds; it is looked at after each heartbeat."""
        with self._change:
            assert self._change.wait_for(condition, DEADLINE_S), f"in vain: {what}; held: {self.held}"

    def wait_full(self, blocks: int, *, dataset_id: int = 1, launch: int = LAUNCH) -> Residency:
        """Wait until the executor of `launch` holds `blocks` full blocks of a dataset; return its residency."""
        found: list[Residency] = []

        def is_so() -> bool:
            full, residency = self.held.get(launch, {}).get((dataset_id, 1), (set(), None))
            found[:] = [residency] if residency is not None else []
            return residency is not None and len(full) == blocks == residency.full_blocks

        self.wait(is_so, f"{blocks} full blocks of dataset {dataset_id} at launch {launch}")
        return found[0]

    def residency(self, *, dataset_id: int = 1, launch: int = LAUNCH) -> Residency | None:
        return self.held.get(launch, {}).get((dataset_id, 1), (set(), None))[1]

    def last(self, launch: int = LAUNCH) -> Heartbeat:
        return self.heartbeats[launch][-1]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class RunningExecutor:
    """A real executor, all its processes, without Mesos; the scheduler is a FakeScheduler."""

    def __init__(
        self,
        scheduler: FakeScheduler,
        *,
        slot: int = 1,
        launch: int = LAUNCH,
        mem_bytes: int = 64 * 2**20,
        socket_dir: str | None = None,
        **environment: str,
    ) -> None:
        self.scheduler = scheduler
        self.launch = launch
        self.sandbox = tempfile.mkdtemp(prefix="stoker-test-")
        self.statuses: list[str] = []
        self._change = threading.Condition()
        values = {
            "STOKER_SCHEDULERS": scheduler.url,
            "STOKER_CLUSTER": CLUSTER.hex(),
            "STOKER_SLOT": str(slot),
            "STOKER_LAUNCH": str(launch),
            "STOKER_TASK": f"test-l{launch}",
            "STOKER_SECRET": "secret",
            "STOKER_EPOCH": "1",
            "STOKER_MEM_BYTES": str(mem_bytes),
            "STOKER_HOST": "127.0.0.1",
            "STOKER_PORT": "0",
            "STOKER_FILLERS": "1",
            "STOKER_SOCKET_DIR": socket_dir or os.path.join(self.sandbox, "sockets"),
            "MESOS_SANDBOX": self.sandbox,
        }
        self.process = subprocess.Popen(
            [sys.executable, os.path.join(os.path.dirname(__file__), "keeper_process.py")],
            env=os.environ | values | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=open(os.path.join(self.sandbox, "stderr"), "wb"),
        )
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._change:
                self.statuses.append(line.decode().strip())
                self._change.notify_all()

    def wait_status(self, state: str) -> str:
        """Wait until the executor has told a task state; return the whole line."""

        def found() -> list[str]:
            return [line for line in self.statuses if line.startswith(state)]

        with self._change:
            assert self._change.wait_for(found, DEADLINE_S), (state, self.statuses, self.log())
            return found()[0]

    def wait_running(self) -> RunningExecutor:
        """Wait until it serves, and the scheduler has heard of it."""
        self.wait_status("TASK_RUNNING")
        self.scheduler.wait(lambda: self.launch in self.scheduler.heartbeats, "the first heartbeat")
        return self

    def log(self) -> str:
        with open(os.path.join(self.sandbox, "stderr"), errors="replace") as file:
            return file.read()

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def children(self) -> dict[str, list[int]]:
        """Return the children's pids by module name."""
        found: dict[str, list[int]] = {}
        for child in psutil.Process(self.process.pid).children(recursive=True):
            command = child.cmdline()
            module = command[command.index("-m") + 1].rpartition(".")[2] if "-m" in command else "?"
            found.setdefault(module, []).append(child.pid)
        return found

    def connect(self, *, tcp: bool = False, **fields: Any) -> WireClient:
        beat = self.scheduler.last(self.launch)
        values: dict[str, Any] = {
            "cluster": CLUSTER,
            "launch_id": self.launch,
            "incarnation": beat.incarnation,
            "dataset_id": 1,
            "generation": 1,
            "dataset_version": 1,
        }
        sock = socket.create_connection((beat.host, beat.port)) if tcp else connect_unix(beat.socket_path)
        return WireClient(sock, Hello(**(values | fields)))

    def wait_dataset(self, **fields: Any) -> WireClient:
        """Connect as soon as the executor knows the dataset."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            client = self.connect(**fields)
            assert client.answer is not None
            if client.answer.status != HelloStatus.DATASET:
                return client
            assert time.monotonic() < deadline, client.answer
            client.close()
            time.sleep(0.02)

    def close(self) -> int:
        """End it as an agent would; return the exit code."""
        if self.process.poll() is None:
            self.say("shutdown")
        code = self.process.wait(DEADLINE_S)
        self._thread.join(DEADLINE_S)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        shutil.rmtree(self.sandbox)
        return code


@contextmanager
def running_scheduler() -> Iterator[FakeScheduler]:
    scheduler = FakeScheduler()
    try:
        yield scheduler
    finally:
        scheduler.close()


@contextmanager
def running_executor(scheduler: FakeScheduler, **options: Any) -> Iterator[RunningExecutor]:
    executor = RunningExecutor(scheduler, **options)
    try:
        yield executor.wait_running()
    except BaseException:
        print(executor.log(), file=sys.stderr)
        raise
    finally:
        executor.close()

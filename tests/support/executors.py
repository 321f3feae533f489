"""Whole executors without Mesos: real processes, real files, and a scheduler that the test plays."""

from __future__ import annotations

import http.server
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
from pathlib import Path
from typing import Any

import numpy as np
import psutil

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
from stoker.executor.under_store import open_under_store
from stoker.executor.wire import Hello, HelloStatus
from support.data_servers import CLUSTER, LAUNCH, WireClient, connect_unix
from support.waiting import DEADLINE_S, wait_until

MIB = 2**20
ALL = ((True, ""),)  # the wish for everything


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
        tier: str = "mem",
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
            tier=tier,
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

    def __init__(self, *, port: int = 0) -> None:
        self.epoch = 1
        self.complete = True
        self.status = "ok"
        self.want_whole = False
        self.removed: tuple[tuple[int, int], ...] = ()
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

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
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
            removed = tuple(key for key in beat.unknown if key in self.removed)
            return HeartbeatAnswer(
                self.status,
                self.epoch,
                beat.sequence,
                self.want_whole,
                (self.url,),
                assignment,
                removed=removed,
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
        with open(os.path.join(self.sandbox, "stderr"), "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, os.path.join(os.path.dirname(__file__), "keeper_process.py")],
                env=os.environ | values | environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
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

        def connected() -> WireClient | None:
            client = self.connect(**fields)
            assert client.answer is not None
            if client.answer.status != HelloStatus.DATASET:
                return client
            client.close()
            return None

        return wait_until(connected, "the executor to know the dataset")  # type: ignore[return-value]

    def kill(self) -> None:
        """End its keeper with SIGKILL, and see its children end."""
        children = [pid for pids in self.children().values() for pid in pids]
        self.process.kill()
        self.process.wait()
        wait_until(lambda: not any(psutil.pid_exists(pid) for pid in children), "its children's end")

    def close(self) -> int:
        """End it as an agent would; return the exit code."""
        try:
            if self.process.poll() is None:
                self.say("shutdown")
            code = self.process.wait(DEADLINE_S)
        finally:
            self.process.kill()  # of an executor that hangs; its children end with it
            self.process.wait()
        self._thread.join(DEADLINE_S)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        shutil.rmtree(self.sandbox)
        return code


def make_files(root: Path, count: int = 60, *, seed: int = 1, big: int = 0) -> TestDataset:
    """Write `count` small files in two directories, and one of `big` bytes; return the dataset."""
    chance = random.Random(seed)
    root.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        path = root / ("a" if number % 2 else "b") / f"{number:04}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(chance.randbytes(chance.randrange(200_000)))
    if big:
        (root / "big.bin").write_bytes(chance.randbytes(big))
    return TestDataset(str(root))


def check_all(client: WireClient, dataset: TestDataset) -> None:
    """Assert that `client` reads the right bytes of every file."""
    for row in dataset.rows:
        if row.size:
            assert client.read(*dataset.ranges(row.path)) == dataset.data(row.path), row.path


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

"""A cluster that does what a test tells it: a scheduler that answers REST in this process, executors in processes of
their own that speak wire.py over real sockets, pass real descriptors of sealed memfds, and misbehave on command.

The real executor is tested with the real client elsewhere; this one is for what a healthy one never does.
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import http.server
import json
import os
import pathlib
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import urllib.parse
from collections.abc import Iterator
from typing import Any

from stoker.executor.manifest import FileRow, Manifest, build, bundle, map_manifest, write_mapped

CLUSTER = bytes(range(16))
PROGRAM = pathlib.Path(__file__).with_name("scripted_executor.py")
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
        rows = [
            FileRow(path, len(data), 1_700_000_000_000_000_000 + version, b"") for path, data in files.items()
        ]
        if previous is not None:
            old = previous.files
            rows = [
                r._replace(mtime_ns=1_700_000_000_000_000_001) if old.get(r.path) == files[r.path] else r
                for r in rows
            ]
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
    return {
        f"{prefix}/{n % 7}/{n:05}.bin": chance.randbytes(
            max(0, size + chance.randrange(-size // 3, size // 3 + 1))
        )
        for n in range(count)
    }


class ScriptedExecutor:
    """An executor process. `command` tells it what to do and returns what it says."""

    def __init__(self) -> None:
        self.slot_id = self.launch_id = self.incarnation = 0
        self._directory = tempfile.mkdtemp(prefix="stk")
        self.socket_path = f"{self._directory}/executor.sock"
        self._process = subprocess.Popen(
            [sys.executable, str(PROGRAM), self.socket_path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"STOKER_TEST_RUN": "spare"},  # it may serve the next module too
        )
        self._lock = threading.Lock()
        self._port = 0

    def become(self, *, slot_id: int, launch_id: int = 1, incarnation: int = 77) -> None:
        """Begin anew, with nothing, as another launch."""
        self.slot_id, self.launch_id, self.incarnation = slot_id, launch_id, incarnation
        self.command(t="reset", launch_id=launch_id, incarnation=incarnation)

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    @property
    def port(self) -> int:
        if not self._port:
            self._port = int(self._read()["port"])
        return self._port

    def command(self, **command: Any) -> dict[str, Any]:
        assert self.port
        with self._lock:
            assert self._process.stdin
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
            return self._read()

    def put(self, dataset: ScriptedDataset, only: set[int] | None = None, *, on_disk: bool = False) -> None:
        """Give it all blocks of a dataset, or `only` some; as memory, or as files of a disk."""
        for index, data in enumerate(dataset.blocks()):
            if only is None or index in only:
                with tempfile.NamedTemporaryFile() as file:
                    file.write(data)
                    file.flush()
                    put = {"dataset": dataset.dataset_id, "index": index, "path": file.name}
                    self.command(t="put", on_disk=on_disk, **put)

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
        shutil.rmtree(self._directory, ignore_errors=True)


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

            do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def place(
        self,
        name: str,
        dataset: ScriptedDataset,
        executors: list[ScriptedExecutor],
        homes: list[list[int]] | None = None,
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
        self.scheduler = ScriptedScheduler()
        self.executors: list[ScriptedExecutor] = []

    @property
    def url(self) -> str:
        return self.scheduler.url

    def executor(self, **kwargs: Any) -> ScriptedExecutor:
        kwargs.setdefault("slot_id", len(self.executors) + 1)
        while not (_spare and _spare[-1].is_alive):
            _spare[:] = [executor for executor in _spare if executor.is_alive] or [ScriptedExecutor()]
        executor = _spare.pop()
        self.executors.append(executor)
        executor.become(**kwargs)
        return executor

    def dataset(self, files: dict[str, bytes], **kwargs: Any) -> ScriptedDataset:
        return ScriptedDataset(files, directory=self.directory, **kwargs)

    def close(self) -> None:
        self.scheduler.close()
        for executor in self.executors:
            if executor.is_alive:
                _spare.append(executor)
            else:
                executor.close()


_spare: list[ScriptedExecutor] = []  # processes for the next test; a start costs more than most tests


@atexit.register
def _close_spare() -> None:
    for executor in _spare:
        executor.close()


@contextlib.contextmanager
def cluster(directory: pathlib.Path) -> Iterator[Cluster]:
    made = Cluster(directory)
    try:
        yield made
    finally:
        made.close()

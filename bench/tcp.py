"""Reads over TCP, one connection, raw client: our data port beside nginx with sendfile, the same bytes on both sides."""

from __future__ import annotations

import pathlib
import random
import shutil
import socket
import subprocess
import tempfile
import time

from common import Result, add_and_load, cluster, compare, seconds

from stoker.client.connection import connect
from stoker.client.placement import placement_from
from stoker.executor import wire

SIZES = {
    "4 KiB": (4096, 8_000, ">= 1.0"),
    "128 KiB": (131_072, 3_000, ">= 1.0"),
    "1 MiB": (2**20, 800, ">= 0.95"),
}
WORKING_SET_BYTES = 60 * 2**20
FILE_BYTES = 2**20


def run() -> list[Result]:
    nginx = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/bin")
    if not nginx:
        print("nginx is not here: the TCP rows are left out (apt-get install nginx-light)")
        return []
    with tempfile.TemporaryDirectory(prefix="stoker-bench-data-", dir="/dev/shm") as directory:
        root = pathlib.Path(directory) / "files"
        root.mkdir()
        for number in range(WORKING_SET_BYTES // FILE_BYTES):
            (root / f"{number:03d}.bin").write_bytes(random.Random(number).randbytes(FILE_BYTES))
        with cluster(mem_bytes=2**28) as client, _Nginx(nginx, root) as port:
            add_and_load(client, "tcp", str(root))
            return [_size(client, port, name, *shape) for name, shape in SIZES.items()]


def _size(client, port: int, name: str, size: int, count: int, bar: str) -> Result:
    placed = placement_from(client.placement("tcp"))
    dataset = client.dataset("tcp")
    address = next(slot for slot in placed.slots if slot.port)
    hello = wire.Hello(
        placed.cluster,
        address.launch_id,
        address.incarnation,
        placed.dataset_id,
        placed.generation,
        placed.version,
    )
    connection = connect(address, hello, unix=False)
    opened = connection.socket
    chance = random.Random(size)
    wanted = [(chance.randrange(len(dataset)), chance.randrange(FILE_BYTES - size + 1)) for _ in range(count)]
    buffer = memoryview(bytearray(size + 4096))
    requests = []
    for number, (row, start) in enumerate(wanted):
        index, begin = divmod(dataset.extent(row)[0] + start, placed.block_bytes)
        requests.append(wire.encode_request(wire.Op.READ, [(index, begin, size)], request_id=number))
    peer = socket.create_connection(("127.0.0.1", port))
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    paths = [
        f"GET /{row:03d}.bin HTTP/1.1\r\nHost: x\r\nRange: bytes={start}-{start + size - 1}\r\n\r\n".encode()
        for row, start in wanted
    ]

    def ours() -> float:
        def loop() -> None:
            for request in requests:
                opened.sendall(request)
                _receive(opened, buffer, wire.ANSWER.size + size)

        return count / seconds(loop) / 1000

    def theirs() -> float:
        def loop() -> None:
            for request in paths:
                peer.sendall(request)
                _receive_http(peer, buffer, size)

        return count / seconds(loop) / 1000

    try:
        return compare(f"TCP, {name}", peer="nginx, sendfile", unit="k/s", bar=bar, ours=ours, theirs=theirs)
    finally:
        opened.close()
        peer.close()


def _receive(opened: socket.socket, buffer: memoryview, size: int) -> None:
    done = 0
    while done < size:
        done += opened.recv_into(buffer[done:size])


def _receive_http(opened: socket.socket, buffer: memoryview, size: int) -> None:
    done = opened.recv_into(buffer)
    head = bytes(buffer[: min(done, 1024)]).find(b"\r\n\r\n") + 4
    while done < head + size:
        done += opened.recv_into(buffer[done:])


class _Nginx:
    def __init__(self, program: str, root: pathlib.Path) -> None:
        self._program = program
        self._root = root

    def __enter__(self) -> int:
        self._directory = tempfile.TemporaryDirectory(prefix="stoker-bench-nginx-")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        config = pathlib.Path(self._directory.name) / "nginx.conf"
        config.write_text(
            f"daemon off; worker_processes 1; user root; pid {self._directory.name}/pid; error_log {self._directory.name}/error;\n"
            "events { worker_connections 64; }\n"
            "http { access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000000; open_file_cache max=1000;\n"
            f"server {{ listen 127.0.0.1:{port}; root {self._root}; }} }}\n"
        )
        self._process = subprocess.Popen([self._program, "-c", str(config)], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                return port
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        self._directory.cleanup()

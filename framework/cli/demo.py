"""`stoker demo`: the main job on real files, end to end, in about half a minute.

A local cluster, a dataset, a load with progress, where the data is, rates of every way to read it beside the store and
plain files, an executor killed on the way, and the checksum of every file against its source.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import click

from stoker.client.api import Client, Dataset
from stoker.client.filesystem import StokerFileSystem
from stoker.executor.units import format_bytes
from stoker.framework.cli.clusters import forwarded_names, require_cluster_extra
from stoker.framework.cli.common import DURATION, default_mem_bytes
from stoker.framework.cli.datasets import wait_until_listed
from stoker.framework.cli.explain import OFFER_COLUMNS, offer_rows
from stoker.framework.cli.fleet import executor_table
from stoker.framework.cli.jobs import follow
from stoker.framework.cli.local import LocalCluster, LocalSpec
from stoker.framework.cli.output import Output, fail, reports_errors

NAME = "demo"
BATCH_FILES = 256
STORE_SAMPLE_S_MAX = 3.0
RATE_FILES_MAX = 6_000  # of each way of reading: enough to be steady, few enough to be quick
RECOVERY_TIMEOUT_S = 60
POLL_INTERVAL_S = 0.1
NO_CACHED_BYTECODE = "__pycache__"  # Python rewrites it at will: it would change under the demo


@dataclass(frozen=True, slots=True)
class Rate:
    """One way to read: what it read, and how long that took."""

    way: str
    files: int
    bytes: int
    seconds: float

    def row(self) -> list[str]:
        seconds = max(self.seconds, 1e-9)
        return [
            self.way,
            f"{self.files:,}",
            f"{self.files / seconds:,.0f}",
            f"{format_bytes(self.bytes / seconds)}/s",
            f"{self.seconds:.2f} s",
        ]


@dataclass(frozen=True, slots=True)
class Source:
    """What the demo caches: `url` for the dataset, `root` where the same files lie locally (None: somebody's URL)."""

    url: str
    root: pathlib.Path | None
    is_own_store: bool


@click.command()
@click.argument("source", required=False)
@click.option("--agents", default=3, show_default=True, type=click.IntRange(2, 16))
@click.option(
    "--store-delay",
    "delay_ms",
    default="20ms",
    show_default=True,
    type=DURATION,
    help="of each answer of the demo's own HTTP store",
)
@click.option("--keep", is_flag=True, help="leave the cluster running until Ctrl-C")
@reports_errors
def demo(source: str | None, agents: int, delay_ms: int, keep: bool) -> None:
    """Cache SOURCE (a path or URL; else the installed Python packages behind a slow HTTP store) and read it back."""
    require_cluster_extra()
    output = Output()
    with contextlib.ExitStack() as stack:
        state = stack.enter_context(tempfile.TemporaryDirectory(prefix="stoker-demo-"))
        origin = stack.enter_context(_open_source(output, source, delay_ms))
        mem_bytes = default_mem_bytes(agents)
        cluster = LocalCluster(
            LocalSpec(
                agents=agents,
                mem_bytes=mem_bytes,
                port=0,
                state=pathlib.Path(state),
                executor_environment=forwarded_names(),
            )
        )
        output.say(
            f"\nstarting a cluster: embedded Mesos with {agents} agents, one scheduler, executors of {format_bytes(mem_bytes)}"
        )
        stack.callback(cluster.stop)
        cluster.start()
        _run(output, cluster, origin)
        if keep:
            _keep(output, cluster)
    output.say("\ndone: everything is stopped and nothing is left")


@contextlib.contextmanager
def _open_source(output: Output, source: str | None, delay_ms: int) -> Iterator[Source]:
    if source is not None:
        is_local = "://" not in source or source.startswith("file://")
        root = pathlib.Path(source.removeprefix("file://")).resolve() if is_local else None
        yield Source(f"file://{root}" if root else source, root, False)
        return
    root = pathlib.Path(sysconfig.get_path("purelib"))
    command = [
        sys.executable,
        "-m",
        "stoker.framework.cli.demo_store",
        "--port",
        "0",
        "--delay",
        f"{delay_ms}ms",
    ]
    command += ["--exclude", NO_CACHED_BYTECODE, str(root)]
    store = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    try:
        assert store.stdout is not None
        line = store.stdout.readline()
        url = line.split()[-1] if "http://" in line else fail("the demo's HTTP store did not start")
        output.say(f"source: {root}, behind an HTTP store that takes {delay_ms} ms to answer ({url})")
        yield Source(url, root, True)
    finally:
        store.terminate()
        store.wait()
        if store.stdout:
            store.stdout.close()


def _run(output: Output, cluster: LocalCluster, source: Source) -> None:
    client = Client(cluster.url)
    os.environ["STOKER_URL"] = cluster.url
    _show_fleet(output, client, cluster.spec.agents)
    load = _load(output, client, source)
    _show_placement(output, client)
    placed = client.dataset(NAME)
    _show_rates(output, source, placed, load)
    _kill_and_read(output, client, source, placed)
    _say_python(output, cluster, placed)


def _show_fleet(output: Output, client: Client, agents: int) -> None:
    deadline = time.monotonic() + RECOVERY_TIMEOUT_S
    while client.fleet()["running"] < agents:
        if time.monotonic() > deadline:
            fail("the executors did not come up", "see `stoker explain --offers`")
        time.sleep(POLL_INTERVAL_S)
    output.table(
        "\noffers taken", OFFER_COLUMNS, offer_rows(client.offers(), wall_ms=int(time.time() * 1000))
    )
    output.say("")
    executor_table(output, client.executors())


def _load(output: Output, client: Client, source: Source) -> Rate:
    output.say(f"\nstoker dataset add {NAME} {source.url}")
    view = client.create_dataset(NAME, source.url)
    view = wait_until_listed(client, output, view)
    if view["state"] != "READY":
        fail(f"listing failed: {view['error']}")
    output.say(
        f"{view['files']:,} files, {format_bytes(view['bytes'])}, {view['blocks']} blocks of {format_bytes(view['block_bytes'])}"
    )
    output.say(f"\nstoker load {NAME} --wait")
    started = time.monotonic()
    job = follow(client, output, client.create_job("load", NAME))
    seconds = time.monotonic() - started
    if job["state"] != "SUCCEEDED":
        errors = "; ".join(f"{e['path']}: {e['message']}" for e in job["errors"][:3])
        fail(f"the load {job['state']}: {job['message']} {errors}")
    return Rate("load (all of it, in parallel)", view["files"], view["bytes"], seconds)


def _show_placement(output: Output, client: Client) -> None:
    rows = [
        [e["slot"], e["agent_id"], f"{e['host']}:{e['port']}", d["blocks"], format_bytes(d["bytes"])]
        for e in client.executors()
        for d in e["datasets"]
        if d["name"] == NAME
    ]
    output.table("\nwhere the data is", ["SLOT>", "AGENT", "ADDRESS", "BLOCKS>", "BYTES>"], rows)


def _show_rates(output: Output, source: Source, placed: Dataset, load: Rate) -> None:
    filesystem = StokerFileSystem(skip_instance_cache=True)
    paths = list(placed.paths[:RATE_FILES_MAX])
    rates = [
        *_store_rate(source, paths),
        load,
        _open_rate(filesystem, paths),
        _cat_rate(filesystem, paths),
        _read_many_rate(placed, len(paths)),
    ]
    if source.root:
        rates.append(_plain_rate(source.root, paths))
    output.table("\nrates", ["WAY", "FILES>", "FILES/S>", "BYTES/S>", "TOOK>"], [r.row() for r in rates])


def _store_rate(source: Source, paths: Sequence[str]) -> list[Rate]:
    """One by one from the demo's store, for at most STORE_SAMPLE_S_MAX; nothing for somebody else's source."""
    if not source.is_own_store:
        return []
    started, read_bytes, files = time.monotonic(), 0, 0
    for path in paths[:: max(1, len(paths) // 1000)]:
        if time.monotonic() - started > STORE_SAMPLE_S_MAX:
            break
        with urllib.request.urlopen(
            f"{source.url.rstrip('/')}/{urllib.parse.quote(path)}", timeout=10
        ) as answer:
            read_bytes += len(answer.read())
        files += 1
    return [Rate("one by one from the store", files, read_bytes, time.monotonic() - started)]


def _open_rate(filesystem: StokerFileSystem, paths: Sequence[str]) -> Rate:
    started, read_bytes = time.monotonic(), 0
    for path in paths:
        with filesystem.open(f"{NAME}/{path}") as file:
            read_bytes += len(file.read())
    return Rate("stoker://, open and read", len(paths), read_bytes, time.monotonic() - started)


def _cat_rate(filesystem: StokerFileSystem, paths: Sequence[str]) -> Rate:
    started, read_bytes = time.monotonic(), 0
    for start in range(0, len(paths), BATCH_FILES):
        batch = [f"{NAME}/{path}" for path in paths[start : start + BATCH_FILES]]
        read_bytes += sum(map(len, filesystem.cat(batch).values()))
    return Rate(f"stoker://, cat x {BATCH_FILES}", len(paths), read_bytes, time.monotonic() - started)


def _read_many_rate(placed: Dataset, count: int) -> Rate:
    sizes = [placed.size(row) for row in range(count)]
    buffer = bytearray(
        max(sum(sizes[i : i + BATCH_FILES]) for i in range(0, count, BATCH_FILES)) if count else 0
    )
    started = time.monotonic()
    for start in range(0, count, BATCH_FILES):
        placed.read_many(range(start, min(count, start + BATCH_FILES)), out=buffer)
    return Rate(f"read_many x {BATCH_FILES} into one buffer", count, sum(sizes), time.monotonic() - started)


def _plain_rate(root: pathlib.Path, paths: Sequence[str]) -> Rate:
    started, read_bytes = time.monotonic(), 0
    for path in paths:
        with open(_local_path(root, path), "rb") as file:
            read_bytes += len(file.read())
    return Rate("plain local files (warm)", len(paths), read_bytes, time.monotonic() - started)


def _local_path(root: pathlib.Path, path: str) -> pathlib.Path:
    return root if root.is_file() else root / path


class Reader(threading.Thread):
    """Reads the whole dataset again and again, file by file, and compares every byte with the first reading's digests."""

    def __init__(self, placed: Dataset, digests: Sequence[bytes]) -> None:
        super().__init__(name="demo-reader", daemon=True)
        self.files = 0
        self.longest_ms = 0.0
        self.error: BaseException | None = None
        self._placed = placed
        self._digests = digests
        self._stopping = threading.Event()

    def run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._read_all()
        except BaseException as error:
            self.error = error

    def _read_all(self) -> None:
        for row, digest in enumerate(self._digests):
            started = time.monotonic()
            data = self._placed.read(row)
            self.longest_ms = max(self.longest_ms, (time.monotonic() - started) * 1000)
            if hashlib.sha256(data).digest() != digest:
                raise OSError(f"wrong bytes in {self._placed.paths[row]}")
            self.files += 1
            if self._stopping.is_set():
                return

    def finish(self) -> None:
        """Stop, and raise what went wrong."""
        self._stopping.set()
        self.join()
        if self.error:
            raise self.error


def _kill_and_read(output: Output, client: Client, source: Source, placed: Dataset) -> None:
    digests = _check_sums(output, source, placed)
    victim = max((e for e in client.executors() if e["pid"]), key=lambda e: e["used_bytes"])
    reader = Reader(placed, digests)
    reader.start()
    output.say(
        f"\nkill -9 {victim['pid']} (the executor of slot {victim['slot']}, {format_bytes(victim['used_bytes'])}), while reading goes on"
    )
    started = time.monotonic()
    os.kill(victim["pid"], signal.SIGKILL)
    relaunched = _wait_for_recovery(client, victim)
    seconds = time.monotonic() - started
    reader.finish()
    output.say(
        f"relaunched as pid {relaunched['pid']} and filled again after {seconds:.1f} s; meanwhile {reader.files:,} files were read, "
        f"no error, no wrong byte, the slowest in {reader.longest_ms:.0f} ms"
    )
    _check_sums(output, source, placed)


def _wait_for_recovery(client: Client, victim: dict[str, Any]) -> dict[str, Any]:
    deadline = time.monotonic() + RECOVERY_TIMEOUT_S
    while time.monotonic() < deadline:
        view = client.dataset_info(NAME)
        executor = next(e for e in client.executors() if e["slot"] == victim["slot"])
        is_back = executor["state"] == "RUNNING" and executor["launch"] != victim["launch"]
        if is_back and view["cached_bytes"] == view["bytes"] and view["residency"] == "complete":
            return executor
        time.sleep(POLL_INTERVAL_S)
    fail(f"slot {victim['slot']} did not recover within {RECOVERY_TIMEOUT_S} s", "see `stoker fleet show`")


def _check_sums(output: Output, source: Source, placed: Dataset) -> list[bytes]:
    """Return the SHA-256 of each file as read through Stoker, by row; compare with the source where it is at hand."""
    digests, wrong = [], []
    for row, path in enumerate(placed.paths):
        digests.append(hashlib.sha256(placed.read(row)).digest())
        if (
            source.root
            and hashlib.sha256(_local_path(source.root, path).read_bytes()).digest() != digests[-1]
        ):
            wrong.append(path)
    if wrong:
        fail(f"{len(wrong)} files differ from their source, first {wrong[0]}")
    compared = (
        "each has the SHA-256 of its source"
        if source.root
        else "read (the source is not on this machine: nothing to compare)"
    )
    output.say(f"checksums: {len(digests):,} files, {compared}")
    return digests


def _say_python(output: Output, cluster: LocalCluster, placed: Dataset) -> None:
    path = next((p for p in placed.paths if p.endswith(".py")), placed.paths[0])
    output.say("\nthree lines of Python (stoker local keeps a cluster running; this one needs --keep):")
    output.say(f"    import os, fsspec; os.environ['STOKER_URL'] = '{cluster.url}'")
    output.say(f"    with fsspec.open('stoker://{NAME}/{path}', 'rb') as file:")
    output.say("        print(len(file.read()))")


def _keep(output: Output, cluster: LocalCluster) -> None:
    output.say(f"\nSTOKER_URL={cluster.url}   (Ctrl-C stops the cluster)")
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            cluster.check()
            time.sleep(1)

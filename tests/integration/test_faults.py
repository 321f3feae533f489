"""Processes that die, hang or misbehave while others read: no error, no wrong byte, no wait without end.

Readers run in processes of their own, over descriptors and over TCP, and compare every byte. What is killed or stopped
is a process of the cluster itself. How long the slowest read took is told, and no more: machines that run tests are busy.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import psutil
import pytest

from stoker.client.api import Client
from stoker.client.placement import Placement, placement_from
from stoker.executor import wire
from stoker.framework.cli.local import agent_addresses
from support.embedded import EmbeddedProcess
from support.files import digests, make_files
from support.local import Local, local_cluster
from support.ports import fixed_port
from support.raw import DataPort, hello_for
from support.schedulers import SchedulerProcess
from support.stores import HttpStore, http_store
from support.waiting import DEADLINE_S, wait_until
from support.watchers import Watcher

pytestmark = pytest.mark.integration

MEBIBYTE = 2**20
STORE_DELAY = "20ms"
HEARTBEAT_TIMEOUT_MS = 6_000
STORE_PATIENCE_S = 7.0  # a load outlives a store that returns sooner


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("faults") / "data"
    make_files(path, 150, size_min=0, size_max=250_000, seed=11)
    return path


@pytest.fixture(scope="module")
def store(root: pathlib.Path) -> Iterator[HttpStore]:
    with http_store(root, delay=STORE_DELAY) as running:
        yield running


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, store: HttpStore) -> Iterator[Local]:
    state = tmp_path_factory.mktemp("faults") / "state"
    with local_cluster(state, "--agents", "3", "--mem", "48MiB") as local:
        local.wait_until_running(3)
        local.add("d", store.url)
        assert local.load("d")["state"] == "SUCCEEDED"
        yield local


class DeadStore(NamedTuple):
    """A load from a store that has died."""

    root: pathlib.Path
    port: int
    sizes: dict[str, int]
    job: dict[str, Any]


@pytest.fixture(scope="module", autouse=True)
def dead(cluster: Local, tmp_path_factory: pytest.TempPathFactory) -> DeadStore:
    """Begun before all tests, since a store is given a while to return."""
    root = tmp_path_factory.mktemp("dead") / "data"
    sizes = make_files(root, 40, size_min=100, size_max=50_000, seed=22)
    port = fixed_port()
    with http_store(root, port=port) as store:
        cluster.add("dead", store.url)
    return DeadStore(root, port, sizes, cluster.client.create_job("load", "dead"))


@contextlib.contextmanager
def watching(url: str, root: pathlib.Path, name: str = "d") -> Iterator[list[Watcher]]:
    """Two readers at work, over descriptors and over TCP."""
    with (
        Watcher(url, name, root, transport="auto", seed=1) as local,
        Watcher(url, name, root, transport="tcp", seed=2) as remote,
    ):
        yield [local, remote]


def executor_of(client: Client, slot: int) -> dict[str, Any]:
    return next(e for e in client.executors() if e["slot"] == slot)


def fullest(client: Client) -> dict[str, Any]:
    """Return the executor that holds most."""
    return max((e for e in client.executors() if e["pid"]), key=lambda e: e["used_bytes"])


def processes_of(pid: int) -> dict[str, list[psutil.Process]]:
    """Return an executor's processes by what they are: keeper, server, filler."""
    keeper = psutil.Process(pid)
    found = {"keeper": [keeper]}
    for child in keeper.children(recursive=True):
        found.setdefault(child.cmdline()[2].rpartition(".")[2], []).append(child)
    return found


def wait_refilled(client: Client, victim: dict[str, Any], name: str = "d") -> None:
    """Wait until the slot has another launch and everything that was cached is cached again."""

    def is_back() -> bool:
        executor = executor_of(client, victim["slot"])
        view = client.dataset_info(name)
        return bool(
            executor["state"] == "RUNNING"
            and executor["launch"] != victim["launch"]
            and view["cached_bytes"] == view["bytes"]
            and view["residency"] == "complete"
        )

    wait_until(is_back, f"slot {victim['slot']} to be launched and filled again")


def check_all(client: Client, root: pathlib.Path, name: str = "d") -> None:
    dataset = client.dataset(name)
    assert {p: hashlib.sha256(dataset.read(p)).hexdigest() for p in dataset.paths} == digests(root)


# --- who is killed


@pytest.mark.parametrize("what", ["keeper", "server", "filler"])
def test_readers_notice_nothing_when_a_process_of_an_executor_is_killed(
    cluster: Local, root: pathlib.Path, what: str, record_property: Callable[[str, object], None]
) -> None:
    victim = fullest(cluster.client)
    processes = processes_of(victim["pid"])
    jobs = len(cluster.client.jobs())
    with watching(cluster.url, root) as watchers:
        for watcher in watchers:
            watcher.forget()
        processes[what][0].kill()
        _, alive = psutil.wait_procs([p for group in processes.values() for p in group], timeout=DEADLINE_S)
        assert not alive, "the processes of an executor end together"
        wait_refilled(cluster.client, victim)
        for watcher in watchers:
            watcher.wait_reads(50)
        slowest_s = max(watcher.slowest_s for watcher in watchers)
    record_property("slowest_s", slowest_s)
    print(f"{what} killed: the slowest of {sum(w.reads for w in watchers)} reads took {slowest_s:.2f} s")
    assert len(cluster.client.jobs()) == jobs, "nobody asked for the re-fill"


# --- who hangs


class Parts:
    """A cluster of a Mesos, a scheduler that may be killed and started again, and real executors on two agents."""

    def __init__(self, directory: pathlib.Path) -> None:
        hostnames = ",".join(agent_addresses(2, os.getpid()))
        self.mesos = EmbeddedProcess(
            directory / "mesos",
            *("--agents", "2", "--cpus", "2", "--mem", "1GiB", "--hostnames", hostnames),
        )
        self._log = directory / "scheduler.log"
        self._config: dict[str, Any] = {
            "port": fixed_port(),
            "master": self.mesos.address,
            "journal": f"file:{directory / 'journal'}",
            "instances": 2,
            "mem_bytes": 48 * MEBIBYTE,
            "allow_sources": [""],
            "failover_timeout_ms": 600_000,
            "settings": {
                "tick_ms": 200,
                "heartbeat_timeout_ms": HEARTBEAT_TIMEOUT_MS,
                "residency_grace_ms": 20_000,
                "revive_interval_ms_min": 500,
            },
        }
        self.scheduler = self._start_scheduler()
        self.client = Client(self.scheduler.url)
        self.doomed: list[
            psutil.Process
        ] = []  # must be gone in the end, which their agent may take a while for
        wait_until(lambda: self.client.fleet()["running"] == 2, "two executors")

    def _start_scheduler(self) -> SchedulerProcess:
        scheduler = SchedulerProcess(self._config, self._log)
        scheduler.wait_leading()
        return scheduler

    def kill_scheduler(self) -> None:
        self.scheduler.stop(signal.SIGKILL)

    def start_scheduler_again(self) -> None:
        self.scheduler = self._start_scheduler()

    def launches(self) -> dict[int, tuple[int, int]]:
        """Return slot -> (launch, pid)."""
        return {e["slot"]: (e["launch"], e["pid"]) for e in self.client.executors()}

    def close(self) -> None:
        try:
            _, alive = psutil.wait_procs(self.doomed, timeout=DEADLINE_S)
            with contextlib.suppress(OSError):  # a failed test may have left none
                self.client.set_fleet(instances=0, mem_bytes=self._config["mem_bytes"])
            self.scheduler.stop()
        finally:
            self.mesos.stop()
        assert not alive, "what hangs is killed"


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory, store: HttpStore) -> Iterator[Parts]:
    made = Parts(tmp_path_factory.mktemp("parts"))
    try:
        made.client.create_dataset("d", store.url)
        wait_until(lambda: made.client.dataset_info("d")["state"] == "READY", "the listing")
        finish(made.client, made.client.create_job("load", "d"))
        yield made
    finally:
        made.close()


def finish(client: Client, job: dict[str, Any]) -> dict[str, Any]:
    """Wait for the job's end and return its last view."""
    is_over = lambda: client.job(job["id"])["state"] in ("SUCCEEDED", "FAILED", "CANCELLED")  # noqa: E731
    wait_until(is_over, "the job's end")
    return client.job(job["id"])


def test_a_hanging_executor_is_left_ended_and_launched_again(parts: Parts, root: pathlib.Path) -> None:
    victim = fullest(parts.client)
    processes = [p for group in processes_of(victim["pid"]).values() for p in group]
    with watching(parts.scheduler.url, root) as watchers:
        for watcher in watchers:
            watcher.forget()
        for process in processes:
            process.suspend()
        parts.doomed += processes
        for watcher in watchers:
            watcher.wait_reads(20)
        wait_refilled(parts.client, victim)
        slowest_s = max(watcher.slowest_s for watcher in watchers)
    print(f"hanging: the slowest of {sum(w.reads for w in watchers)} reads took {slowest_s:.2f} s")


def test_a_scheduler_that_stands_still_holds_up_nobody_and_restarts_nobody(
    parts: Parts, root: pathlib.Path
) -> None:
    before = parts.launches()
    scheduler = psutil.Process(parts.scheduler.child.pid)
    files = sum(1 for path in root.rglob("*") if path.is_file() and path.stat().st_size)
    with http_store(root, throttle="2MB/s") as slow, watching(parts.scheduler.url, root) as watchers:
        parts.client.create_dataset("slow", slow.url)
        wait_until(lambda: parts.client.dataset_info("slow")["state"] == "READY", "the listing")
        job = parts.client.create_job("load", "slow")
        wait_until(lambda: parts.client.job(job["id"])["progress"]["bytes"] > 0, "the load to begin")
        for watcher in watchers:
            watcher.forget()
        scheduler.suspend()
        try:
            stopped, known = time.monotonic(), len(fetched(slow))
            while time.monotonic() - stopped < 1.5 * HEARTBEAT_TIMEOUT_MS / 1000:
                for watcher in watchers:
                    watcher.wait_reads(20)
            wait_until(
                lambda: len(fetched(slow)) >= min(known + 20, files), "executors to go on with what they know"
            )
        finally:
            scheduler.resume()
        slowest_s = max(watcher.slowest_s for watcher in watchers)
        assert finish(parts.client, job)["state"] == "SUCCEEDED"
        assert parts.launches() == before, "its own silence is nobody else's"
    print(f"scheduler stopped: the slowest read took {slowest_s:.2f} s")
    check_all(parts.client, root, "slow")
    parts.client.delete_dataset("slow")


def fetched(store: HttpStore) -> set[str]:
    """Return the files that were asked for."""
    return {r["path"] for r in store.requests() if r["method"] == "GET" and not r["path"].endswith("/")}


def test_readers_and_executors_outlive_the_scheduler(parts: Parts, root: pathlib.Path) -> None:
    before = parts.launches()
    epoch = parts.client.leader()["epoch"]
    with watching(parts.scheduler.url, root) as watchers:
        for watcher in watchers:
            watcher.forget()
        parts.kill_scheduler()
        for watcher in watchers:
            watcher.wait_reads(100)
        parts.start_scheduler_again()
        wait_until(lambda: parts.client.fleet()["running"] == 2, "two executors again")
        assert parts.client.leader()["epoch"] == epoch + 1
        wait_until(lambda: parts.client.dataset_info("d")["residency"] == "complete", "all to have reported")
        assert parts.launches() == before, "adopted, not launched again"
        view = parts.client.dataset_info("d")
        assert view["cached_bytes"] == view["bytes"], "nothing was dropped"
        slowest_s = max(watcher.slowest_s for watcher in watchers)
    print(f"scheduler killed: the slowest read took {slowest_s:.2f} s")
    assert finish(parts.client, parts.client.create_job("free", "d"))["state"] == "SUCCEEDED"
    assert finish(parts.client, parts.client.create_job("load", "d"))["state"] == "SUCCEEDED"
    check_all(parts.client, root)


# --- the under store


def test_a_load_outlives_a_store_that_stalls_dies_and_returns(cluster: Local, tmp_path: pathlib.Path) -> None:
    root = tmp_path / "data"
    make_files(root, 60, size_min=1, size_max=200_000, seed=21)
    port = fixed_port()
    with http_store(root, throttle="2MB/s", port=port) as store:
        cluster.add("fragile", store.url)
        store.order({"kind": "stall", "path": "bin$", "seconds": 1, "times": 3})
        job = cluster.client.create_job("load", "fragile")
        wait_until(lambda: cluster.client.job(job["id"])["progress"]["bytes"] > 0, "the load to begin")
        store.kill()
        dataset = cluster.client.dataset("fragile")
        died = time.monotonic()
        for path in dataset.paths:  # what is cached is served; the first that is not fails, and says so
            try:
                assert dataset.read(path) == (root / path).read_bytes()
            except OSError as error:
                assert "under store" in str(error) and path in str(error)
                break
    with http_store(root, port=port):
        down_s = time.monotonic() - died
        ended = finish(cluster.client, job)["state"]
        assert ended == "SUCCEEDED" or down_s > STORE_PATIENCE_S, f"the store was away for {down_s:.1f} s"
        assert cluster.load("fragile")["state"] == "SUCCEEDED"
        check_all(cluster.client, root, "fragile")
    cluster.client.delete_dataset("fragile")


def test_a_load_from_a_store_that_stays_dead_ends_and_names_the_files(
    cluster: Local, dead: DeadStore
) -> None:
    job = cluster.finish(dead.job)
    assert job["state"] == "FAILED" and job["error_count"] == len(dead.sizes)
    assert {error["path"] for error in job["errors"]} <= set(dead.sizes)
    with http_store(dead.root, port=dead.port):
        assert cluster.load("dead")["state"] == "SUCCEEDED", "asked for again, it is tried again"
        check_all(cluster.client, dead.root, "dead")
    cluster.client.delete_dataset("dead")


# --- who misbehaves at the data port


def placement_of(client: Client, name: str = "d") -> Placement:
    return placement_from(client.placement(name))


def test_garbage_and_callers_that_never_drain_stop_nobody(cluster: Local, root: pathlib.Path) -> None:
    placement = placement_of(cluster.client)
    ending = threading.Event()
    cut = [0]

    def misbehave(seed: int) -> None:
        chance = random.Random(seed)
        while not ending.is_set():
            address = chance.choice(placement.slots)
            hello = hello_for(placement, address)
            ping = wire.encode_request(wire.Op.PING, [], request_id=7)
            with (
                contextlib.suppress(OSError, EOFError),
                DataPort(address, unix=chance.random() < 0.5) as port,
            ):
                way = chance.randrange(4)
                if way == 0:
                    port.send(chance.randbytes(chance.randrange(1, 5_000)))
                elif way == 1:
                    port.send(wire.encode_hello(hello)[: chance.randrange(1, wire.HELLO_BYTES)])
                elif way == 2:
                    port.greet(hello)
                    port.send(chance.randbytes(chance.randrange(1, 5_000)))
                else:  # the same request, with the same id, again and again: each is answered
                    port.greet(hello)
                    port.send(ping * 20)
                    assert [port.answer()[0] for _ in range(20)] == [wire.Status.OK] * 20
                    port.send(chance.randbytes(64))
                port.socket.shutdown(socket.SHUT_WR)
                cut[0] += port.is_ended()

    threads = [threading.Thread(target=misbehave, args=(seed,)) for seed in range(2)]
    with contextlib.ExitStack() as stack:
        sizes = [(index, 0, placement.block_bytes) for index in range(4)]
        for address in placement.slots * 4:  # they ask for all they may, and take nothing
            lazy = stack.enter_context(DataPort(address))
            lazy.greet(hello_for(placement, address))
            for request_id in range(1, 20):
                lazy.send(wire.encode_request(wire.Op.READ, sizes, request_id=request_id))
        watchers = stack.enter_context(watching(cluster.url, root))
        for watcher in watchers:
            watcher.forget()
        for thread in threads:
            thread.start()
        try:
            for watcher in watchers:
                watcher.wait_reads(500)
            wait_until(lambda: cut[0] > 20, "conversations to be cut")
        finally:
            ending.set()
            for thread in threads:
                thread.join()
        slowest_s = max(watcher.slowest_s for watcher in watchers)
    print(f"garbage: {cut[0]} conversations were cut, the slowest read took {slowest_s:.2f} s")
    assert {e["state"] for e in cluster.client.executors()} == {"RUNNING"}


# --- memory


def blocks_open_in(processes: list[psutil.Process]) -> set[int]:
    """Return the inodes of the blocks that these processes have open or mapped; each memfd has its own."""
    found = set()
    for process in processes:
        for name in os.listdir(f"/proc/{process.pid}/fd"):
            path = f"/proc/{process.pid}/fd/{name}"
            with contextlib.suppress(FileNotFoundError):
                if os.readlink(path).startswith("/memfd:stoker-"):
                    found.add(os.stat(path).st_ino)
        with open(f"/proc/{process.pid}/maps") as maps:
            found |= {int(line.split()[4]) for line in maps if "/memfd:stoker-" in line}
    return found


def executor_processes(client: Client) -> list[psutil.Process]:
    return [
        p for e in client.executors() if e["pid"] for group in processes_of(e["pid"]).values() for p in group
    ]


def tier_bytes(client: Client, what: str) -> int:
    return sum(executor[what] for executor in client.executors())


def test_what_is_freed_is_lent_until_every_reader_lets_go_and_then_gone(
    cluster: Local, root: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STOKER_TRANSPORT", "fd")
    client = cluster.client
    for other in client.datasets():
        if other["name"] != "d":
            client.delete_dataset(other["name"])
    assert cluster.load("d")["state"] == "SUCCEEDED"
    reader = Client(cluster.url)
    dataset = reader.dataset("d")
    assert len(dataset.read_many(list(dataset.paths))) == len(dataset.paths)
    blocks = blocks_open_in(executor_processes(client))
    mine = lambda: blocks_open_in([psutil.Process()]) & blocks  # noqa: E731 (readers of other clusters are here too)
    assert len(mine()) == len(blocks) > 1

    path = next(p for p in dataset.paths if 0 < dataset.size(p))
    with dataset.view(path) as view:
        assert cluster.free("d")["state"] == "SUCCEEDED"
        wait_until(lambda: tier_bytes(client, "used_bytes") == 0, "everything to be freed")
        wait_until(lambda: len(mine()) == 1, "all but the view to be returned")
        wait_until(lambda: 0 < tier_bytes(client, "lent_bytes") <= 2 * MEBIBYTE, "one block to be lent")
        assert bytes(view) == (root / path).read_bytes(), "memory is never taken from under a reader"
    wait_until(lambda: tier_bytes(client, "lent_bytes") == 0, "the view's block to be returned")
    assert not mine() and not blocks_open_in(executor_processes(client))
    check_all(client, root)
    assert cluster.load("d")["state"] == "SUCCEEDED"


def test_a_forked_child_keeps_no_memory_of_what_its_parent_was_lent(
    cluster: Local, root: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody could tell a child that does nothing to let go of it."""
    monkeypatch.setenv("STOKER_TRANSPORT", "fd")
    dataset = Client(cluster.url).dataset("d")
    paths = [p for p in dataset.paths if dataset.size(p)]
    assert len(dataset.read_many(paths)) == len(paths)
    blocks = blocks_open_in(executor_processes(cluster.client))
    go_on, read = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.read(go_on[0], 1)
            right = dataset.read(paths[0]) == (root / paths[0]).read_bytes()
            os.write(read[1], b"right" if right else b"wrong")
            os.read(go_on[0], 1)
        finally:
            os._exit(0)
    try:
        child = [psutil.Process(pid)]
        wait_until(lambda: not blocks_open_in(child) & blocks, "the child to close what it inherited")
        assert blocks_open_in([psutil.Process()]) >= blocks, "the parent has it yet"
        assert cluster.free("d")["state"] == "SUCCEEDED"
        wait_until(
            lambda: not blocks_open_in([psutil.Process()]) & blocks, "the parent to return what it had"
        )
        wait_until(
            lambda: not blocks_open_in(executor_processes(cluster.client)), "the executors to close it"
        )
        os.write(go_on[1], b"x")
        assert os.read(read[0], 5) == b"right"
        assert not blocks_open_in(child) & blocks, "what it reads now is another block of the same name"
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        for end in (*go_on, *read):
            os.close(end)
    assert cluster.load("d")["state"] == "SUCCEEDED"


# --- patience


def test_tiny_loads_come_to_their_end(cluster: Local, tmp_path: pathlib.Path) -> None:
    """Each may be over between two heartbeats. `make bench` tells how long one takes."""
    make_files(tmp_path / "data", 20, size_min=1, size_max=10_000, seed=31)
    for name in ("tiny-1", "tiny-2", "tiny-3"):
        cluster.add(name, str(tmp_path / "data"))
        begun = time.monotonic()
        assert cluster.load(name)["state"] == "SUCCEEDED"
        print(f"{name} took {time.monotonic() - begun:.2f} s")
        cluster.client.delete_dataset(name)

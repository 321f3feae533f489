"""A leader that stood still while another took its place: what it does next is refused, and it follows. Real processes, a real ZooKeeper."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import pathlib
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import psutil
import pytest
from kazoo.client import KazooClient

from stoker.client.api import Client
from stoker.framework.cli.local import agent_addresses
from stoker.zk.codec import read_batch_header
from support.embedded import EmbeddedProcess
from support.executors import FakeScheduler
from support.files import digests, make_files
from support.listening_proxies import ListeningProxy
from support.schedulers import Api, SchedulerProcess, scheduler_process
from support.waiting import wait_until
from support.zookeeper import Place, needs_zookeeper, zookeeper

__all__ = ["zookeeper"]  # a fixture

pytestmark = [pytest.mark.integration, needs_zookeeper, pytest.mark.timeout(300)]

WAIT_S = 90.0
MEBIBYTE = 1 << 20
MEM_BYTES = 48 * MEBIBYTE


class Write(threading.Thread):
    """One write, sent at once, whose answer may come much later; `answer` is its status then."""

    def __init__(self, api: Api, method: str, path: str, **body: Any) -> None:
        super().__init__(daemon=True)
        self.answer = 0
        self._connection = http.client.HTTPConnection(api.host, api.port, timeout=WAIT_S)
        self._connection.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
        self.start()

    def run(self) -> None:
        self.answer = self._connection.getresponse().status
        self._connection.close()


def late_fleet(api: Api, mebibytes: int) -> Write:
    return Write(api, "PUT", "/v1/fleet", instances=0, mem_bytes=mebibytes * MEBIBYTE)


def state(process: SchedulerProcess) -> str:
    return str(process.api.get("/v1/leader")["state"])


def epochs(client: KazooClient, place: Place) -> list[int]:
    """Return the epochs of all batches of the log, in their order."""
    found = []
    for name in sorted(client.get_children(f"{place.path}/log")):
        header = read_batch_header(client.get(f"{place.path}/log/{name}")[0])
        assert header is not None
        found.append(header.epoch)
    return found


def test_a_leader_that_stood_still_is_refused_and_follows(zookeeper: Place, tmp_path: pathlib.Path) -> None:
    config = {
        "master": "127.0.0.1:1",
        "journal": zookeeper.url,
        "new_cluster": True,
        "instances": 0,
        "session_timeout_ms": 4_000,
    }
    client = KazooClient(hosts=zookeeper.hosts, timeout=60.0)
    client.start()
    with (
        scheduler_process(config, tmp_path / "old.log") as old,
        scheduler_process(config, tmp_path / "new.log") as new,
    ):
        wait_until(lambda: {state(old), state(new)} == {"leading", "following"}, "both", WAIT_S)
        if state(old) != "leading":
            old, new = new, old
        old.child.send_signal(signal.SIGSTOP)
        began_s = time.monotonic()
        api = old.api
        late = [late_fleet(api, 100 + number) for number in range(10)]  # they lie in its sockets
        wait_until(lambda: state(new) == "leading", "another leader", WAIT_S)
        took_s = time.monotonic() - began_s
        assert new.api.call("PUT", "/v1/fleet", {"instances": 0, "mem_bytes": 99 * MEBIBYTE})[0] == 200
        old.child.send_signal(signal.SIGCONT)
        for write in late:
            write.join(WAIT_S)
        assert {write.answer for write in late} <= {307, 503}, "what it was asked before it knew is refused"
        follows = {"leader": new.url, "state": "following"}.items()
        wait_until(lambda: follows <= old.api.get("/v1/leader").items(), "the old leader to follow", WAIT_S)
        assert new.api.get("/v1/fleet")["mem_bytes"] == 99 * MEBIBYTE, "nothing of it was done"
        written = epochs(client, zookeeper)
        assert written == sorted(written) and set(written) == {1, 2}, (
            "no batch of the old epoch after the new"
        )
        assert state(new) == "leading" and new.api.get("/v1/leader")["epoch"] == 2
    client.stop()
    client.close()
    print(f"another led {took_s:.2f} s after the leader stood still, with a session of 4 s")


class Cluster(NamedTuple):
    master: ListeningProxy
    leader: SchedulerProcess  # at first
    follower: SchedulerProcess
    client: Client

    def load(self, root: pathlib.Path) -> None:
        client = self.client
        client.create_dataset("d", str(root))
        wait_until(lambda: client.dataset_info("d")["state"] == "READY", "the listing", WAIT_S)
        client.create_job("load", "d")
        self.wait_whole()

    def wait_whole(self) -> None:
        """Wait until all executors have reported, and hold all of the dataset."""

        def is_whole() -> bool:
            view = self.client.dataset_info("d")
            return bool(view["residency"] == "complete" and view["cached_bytes"] == view["bytes"])

        wait_until(is_whole, "all to be there", WAIT_S)

    def identities(self) -> dict[int, tuple[int, int, int]]:
        """Return launch, incarnation and process of each slot's executor."""
        pids = {row["slot"]: row["pid"] for row in self.client.executors()}
        return {
            slot["slot_id"]: (slot["launch_id"], slot["incarnation"], pids[slot["slot_id"]])
            for slot in self.client.placement("d")["slots"]
        }

    def refusals(self) -> list[int]:
        return [row["refused_count"] for row in self.client.executors()]

    def end(self) -> None:
        pids = [row["pid"] for row in self.client.executors()]
        self.client.set_fleet(instances=0, mem_bytes=MEM_BYTES)
        wait_until(lambda: not any(map(psutil.pid_exists, pids)), "the executors' end", WAIT_S)


@contextlib.contextmanager
def cluster(zookeeper: Place, directory: pathlib.Path) -> Iterator[Cluster]:
    """Two schedulers and two executors, on a Mesos whose calls are listened to."""
    hostnames = ",".join(agent_addresses(2, os.getpid()))
    agents = ("--agents", "2", "--cpus", "2", "--mem", "1GiB", "--hostnames", hostnames)
    with EmbeddedProcess(directory / "mesos", *agents) as mesos, ListeningProxy(mesos.address) as master:
        config = {
            "master": master.address,
            "journal": zookeeper.url,
            "instances": 2,
            "mem_bytes": MEM_BYTES,
            "allow_sources": [""],
            "session_timeout_ms": 4_000,
            "settings": {"tick_ms": 200, "heartbeat_timeout_ms": 30_000, "residency_grace_ms": 30_000},
        }
        with (
            scheduler_process(config, directory / "one.log") as one,
            scheduler_process(config, directory / "other.log") as other,
        ):
            wait_until(lambda: {state(one), state(other)} == {"leading", "following"}, "both", WAIT_S)
            leader, follower = (one, other) if state(one) == "leading" else (other, one)
            client = Client(f"{follower.url},{leader.url}")
            wait_until(lambda: client.fleet()["running"] == 2, "two executors", WAIT_S)
            yield Cluster(master, leader, follower, client)


def wait_refused(deposed: FakeScheduler, launches: list[int]) -> None:
    """Wait until each executor has refused two of its answers more, as its heartbeats tell."""

    def count(launch: int) -> int:
        return deposed.last(launch).refused_count if launch in deposed.heartbeats else 0

    known = {launch: count(launch) for launch in launches}
    deposed.wait(lambda: all(count(launch) >= known[launch] + 2 for launch in launches), "refusals")


def speak_for(port: int, launches: list[int]) -> None:
    """Answer executors from a deposed leader's address, with its epoch: to end; to hold nothing at all."""
    deposed = FakeScheduler(port=port)
    try:
        deposed.epoch, deposed.status = 1, "stale"
        wait_refused(deposed, launches)
        deposed.status = "ok"
        deposed.assign()
        wait_refused(deposed, launches)
    finally:
        deposed.close()


def test_a_leader_that_stood_still_commands_nobody_and_executors_refuse_what_it_would_say(
    zookeeper: Place, tmp_path: pathlib.Path
) -> None:
    """It looks at its deadline before it says anything. What it would say otherwise is then said for it to the executors."""
    root = tmp_path / "data"
    make_files(root, 60, size_min=0, size_max=100_000, seed=3)
    with cluster(zookeeper, tmp_path) as life:
        old, new, client = life.leader, life.follower, life.client
        life.load(root)
        before = life.identities()
        streams = {call.stream_id for call in life.master.calls if call.kind == "ACCEPT"}
        assert len(streams) == 1, "the old leader's"
        old.child.send_signal(signal.SIGSTOP)
        late = [
            late_fleet(old.api, 48),
            Write(old.api, "DELETE", "/v1/datasets/d"),
            Write(old.api, "POST", "/v1/jobs", kind="free", dataset="d"),
        ]
        wait_until(lambda: state(new) == "leading", "another leader", WAIT_S)
        life.wait_whole()
        known = len(life.master.calls)
        old.child.send_signal(signal.SIGCONT)
        for write in late:
            write.join(WAIT_S)
        assert {write.answer for write in late} <= {307, 503}
        wait_until(lambda: state(old) == "following", "the old leader to follow", WAIT_S)
        since = life.master.calls[known:]
        assert not [call for call in since if call.stream_id in streams or call.kind == "SUBSCRIBE"]
        life.wait_whole()
        assert life.identities() == before and life.refusals() == [0, 0]

        port = old.api.port
        old.stop(signal.SIGKILL)
        new.child.send_signal(signal.SIGSTOP)  # so the executors ask whom else they know
        try:
            speak_for(port, [launch for launch, _, _ in before.values()])
        finally:
            new.child.send_signal(signal.SIGCONT)
        wait_until(lambda: state(new) == "leading", "the newer leader to lead again", WAIT_S)
        life.wait_whole()
        assert life.identities() == before and min(life.refusals()) >= 4
        told = new.api.call("GET", "/metrics")[1].decode().splitlines()
        assert f"stoker_refused_answers {float(sum(life.refusals()))}" in told
        dataset = client.dataset("d")
        read = {path: hashlib.sha256(dataset.read(path)).hexdigest() for path in dataset.paths}
        assert read == digests(root)
        print(f"answers of the older epoch that were refused: {life.refusals()}")
        life.end()

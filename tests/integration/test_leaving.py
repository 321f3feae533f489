"""Agents, and a cluster, that leave: real processes, a real store that counts what is read of it."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from stoker.client.api import Client
from stoker.framework.cli.local import agent_addresses
from support.embedded import EmbeddedProcess, Reply
from support.files import digests, make_files
from support.local import Local, local_cluster, run_stoker
from support.ports import fixed_port
from support.schedulers import SchedulerProcess
from support.stores import HttpStore, http_store
from support.waiting import wait_until
from support.watchers import Watcher

pytestmark = pytest.mark.integration

MEBIBYTE = 2**20


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("leaving") / "data"
    make_files(path, 120, size_min=0, size_max=200_000, seed=31)
    return path


@pytest.fixture(scope="module")
def store(root: pathlib.Path) -> Iterator[HttpStore]:
    with http_store(root) as running:
        yield running


@pytest.fixture(scope="module")
def cluster(
    tmp_path_factory: pytest.TempPathFactory, store: HttpStore, root: pathlib.Path
) -> Iterator[Local]:
    state = tmp_path_factory.mktemp("leaving") / "state"
    with local_cluster(state, "--agents", "3", "--mem", "48MiB") as local:
        local.wait_until_running(3)
        local.add("d", store.url)
        assert local.load("d")["state"] == "SUCCEEDED"
        local.add("unwanted", store.url)
        wait_until(lambda: is_whole_by_reading(local.client, root), "readers to have brought all of it in")
        yield local


def check_all(client: Client, root: pathlib.Path, name: str = "d") -> None:
    dataset = client.dataset(name)
    assert {p: hashlib.sha256(dataset.read(p)).hexdigest() for p in dataset.paths} == digests(root)


def is_whole_by_reading(client: Client, root: pathlib.Path) -> bool:
    """Read a dataset that nobody loaded through the cache; return whether all its blocks are full."""
    check_all(client, root, "unwanted")
    held = [d["blocks"] for e in client.executors() for d in e["datasets"] if d["name"] == "unwanted"]
    return bool(sum(held) == client.dataset_info("unwanted")["blocks"])


def reads(store: HttpStore) -> list[str]:
    return [str(request["path"]) for request in store.requests() if request["method"] == "GET"]


def executor_of(client: Client, slot: int) -> dict[str, Any]:
    return next(e for e in client.executors() if e["slot"] == slot)


def agent_of(client: Client, agent_id: str) -> dict[str, Any]:
    return next(row for row in client.agents() if row["id"] == agent_id)


def wait_cached(client: Client, name: str = "d") -> None:
    def is_whole() -> bool:
        view = client.dataset_info(name)
        return bool(view["cached_bytes"] == view["bytes"] and view["residency"] == "complete")

    wait_until(is_whole, "everything to be cached")


def test_a_drained_agent_loses_nothing_and_its_slot_finds_everything_again(
    cluster: Local, root: pathlib.Path, store: HttpStore
) -> None:
    client = cluster.client
    victim = max(client.executors(), key=lambda e: e["used_bytes"])
    with Watcher(cluster.url, "d", root, transport="auto", seed=1) as watcher:
        store.forget_requests()
        ran = cluster.run("drain", victim["agent_id"], "--wait")
        assert ran.returncode == 0, ran.stderr
        psutil.wait_procs(
            [psutil.Process(victim["pid"])] if psutil.pid_exists(victim["pid"]) else [], timeout=20
        )
        assert not psutil.pid_exists(victim["pid"]), "its executor ended"
        watcher.wait_reads(50)
    check_all(client, root)
    check_all(client, root, "unwanted")
    assert reads(store) == [], "what the drained executor held was copied"
    row = agent_of(client, victim["agent_id"])
    assert row["drain"]["state"] == "DRAINED" and not row["executors"]
    assert executor_of(client, victim["slot"])["state"] == "WAITING"
    assert "drained" in executor_of(client, victim["slot"])["reason"]

    assert cluster.run("drain", victim["agent_id"], "--undo").returncode == 0
    wait_until(lambda: executor_of(client, victim["slot"])["state"] == "RUNNING", "the slot to run again")
    wait_cached(client)
    wait_until(
        lambda: any(d["name"] == "d" for d in executor_of(client, victim["slot"])["datasets"]),
        "its share to come back",
    )
    check_all(client, root)
    assert reads(store) == [], "its share was copied from those that stood in"


def test_a_drain_without_room_elsewhere_fails_and_says_what_stays(
    cluster: Local, root: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    make_files(tmp_path / "big", 90, size_min=1_000_000, size_max=1_000_000, seed=5)
    client = cluster.client
    cluster.add("big", str(tmp_path / "big"))
    assert cluster.load("big")["state"] == "SUCCEEDED"
    victim = next(e for e in client.executors() if e["pid"])
    ran = cluster.run("drain", victim["agent_id"], "--wait")
    assert ran.returncode == 1 and "find no room" in ran.stderr and "fleet set" in ran.stderr
    assert agent_of(client, victim["agent_id"])["drain"] is None
    assert executor_of(client, victim["slot"])["launch"] == victim["launch"]
    client.delete_dataset("big")


def test_bad_drains_are_refused_with_what_to_do(cluster: Local) -> None:
    ran = cluster.run("drain", "no-such-agent")
    assert ran.returncode == 1 and "no-such-agent" in ran.stderr and "/v1/agents" in ran.stderr
    agent_id = cluster.client.agents()[0]["id"]
    ran = cluster.run("drain", agent_id, "--undo")
    assert ran.returncode == 1 and "is drained" in ran.stderr


class Parts:
    """A Mesos whose agents come and go, and a scheduler, with real executors on two of three agents."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.volumes = directory / "mesos"
        hostnames = ",".join(agent_addresses(3, os.getpid()))
        options = ("--agents", "3", "--cpus", "2", "--mem", "1GiB", "--hostnames", hostnames)
        times = ("--agent-ping-timeout", "0.4", "--max-agent-ping-timeouts", "3")
        self.mesos = EmbeddedProcess(directory / "mesos", *options, *times, "--faults")
        self.config: dict[str, Any] = {
            "port": fixed_port(),
            "master": self.mesos.address,
            "journal": f"file:{directory / 'journal'}",
            "instances": 2,
            "mem_bytes": 48 * MEBIBYTE,
            "disk_bytes": 64 * MEBIBYTE,
            "role": "cache",
            "allow_sources": [""],
            "failover_timeout_ms": 600_000,
            "settings": {
                "tick_ms": 200,
                "revive_interval_ms_min": 500,
                "unreachable_delay_ms": 120_000,
                "inverse_decline_ms": 1_000,
                "inverse_accept_ms": 1_000,
                "maintenance_forget_ms": 3_000,
            },
        }
        self.log = directory / "scheduler.log"
        self.scheduler = self.start()
        self.client = Client(self.scheduler.url)
        wait_until(lambda: self.client.fleet()["running"] == 2, "two executors")

    def start(self, **changes: Any) -> SchedulerProcess:
        scheduler = SchedulerProcess(self.config | changes, self.log)
        scheduler.wait_leading()
        return scheduler

    def close(self) -> None:
        self.scheduler.stop()
        self.mesos.stop()


@pytest.fixture
def parts(tmp_path: pathlib.Path) -> Iterator[Parts]:
    found = Parts(tmp_path)
    try:
        yield found
    finally:
        found.close()


def frameworks(parts: Parts) -> dict[str, Any]:
    """Return the master's frameworks by id."""
    state = json.loads(parts.mesos.request("GET", "/state").text)
    return {framework["id"]: framework for framework in state["frameworks"]}


def volumes(parts: Parts) -> list[str]:
    """Return the names of the volumes that agents have on disk."""
    return sorted(path.name for path in parts.volumes.rglob("volumes/roles/cache/*"))


def reserved(parts: Parts) -> list[Any]:
    return [
        agent["reserved_resources"] for agent in parts.mesos.state()["slaves"] if agent["reserved_resources"]
    ]


def operate(parts: Parts, call: dict[str, Any]) -> Reply:
    """Make a call of Mesos' operator."""
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    return parts.mesos.request("POST", "/api/v1", json.dumps(call), headers)


def test_uninstall_ends_executors_and_framework_and_leaves_a_journal_that_says_so(parts: Parts) -> None:
    framework_id = parts.client.leader()["framework_id"]
    pids = [e["pid"] for e in parts.client.executors()]
    assert len(volumes(parts)) == len(reserved(parts)) == 2
    ran = run_stoker("uninstall", "--yes", environment={"STOKER_URL": parts.scheduler.url})
    assert ran.returncode == 0, ran.stderr
    assert "uninstalled" in ran.stdout
    assert parts.scheduler.child.wait(30) == 0
    wait_until(lambda: not any(map(psutil.pid_exists, pids)), "the executors to be gone")
    assert framework_id not in frameworks(parts)
    assert not volumes(parts) and not reserved(parts), "nothing of ours is left on Mesos"
    again = SchedulerProcess(parts.config, parts.log)
    assert again.child.wait(30) == 2, "a supervisor must not start it again"
    assert "was uninstalled" in parts.log.read_text() and "--new-cluster" in parts.log.read_text()


def test_a_framework_that_was_removed_is_said_and_begun_anew_only_when_told(parts: Parts) -> None:
    dead, before = parts.client.leader()["framework_id"], volumes(parts)
    tear_down(parts, dead)
    assert parts.scheduler.child.wait(30) == 1
    told = parts.log.read_text()
    assert "has removed this framework" in told and "--new-framework" in told and dead in told
    parts.scheduler = parts.start(new_framework=True)
    wait_until(lambda: parts.client.leader()["framework_id"] not in ("", dead), "another framework id")
    wait_until(lambda: parts.client.fleet()["running"] == 2, "the fleet to run again")
    assert volumes(parts) == before and len(reserved(parts)) == 2, "its volumes were found again"
    second = parts.client.leader()["framework_id"]
    assert set(frameworks(parts)) == {second}
    tear_down(parts, second)
    assert parts.scheduler.child.wait(30) == 1, "what was said of one framework was taken for another"


def tear_down(parts: Parts, framework_id: str) -> None:
    """Have Mesos' operator remove a framework."""
    reply = operate(parts, {"type": "TEARDOWN", "teardown": {"framework_id": {"value": framework_id}}})
    assert reply.status == 200, reply


# --- agents that come and go


def add_loaded(parts: Parts, store: HttpStore, name: str = "d") -> None:
    client = parts.client
    client.create_dataset(name, store.url)
    wait_until(lambda: client.dataset_info(name)["state"] == "READY", "the listing")
    job = client.create_job("load", name)
    wait_until(lambda: client.job(job["id"])["state"] == "SUCCEEDED", "the load")


def running(parts: Parts) -> dict[int, dict[str, Any]]:
    return {e["slot"]: e for e in parts.client.executors() if e["state"] == "RUNNING"}


def schedule(parts: Parts, hostname: str | None) -> None:
    """Plan a maintenance of a machine that begins in 15 s, or none."""
    machine = {"hostname": hostname, "ip": address_of(parts, hostname)} if hostname else {}
    start = {"nanoseconds": int((time.time() + 15) * 1_000_000_000)}
    window = {
        "machine_ids": [machine],
        "unavailability": {"start": start, "duration": {"nanoseconds": 10_000_000_000}},
    }
    update = {"schedule": {"windows": [window]} if hostname else {}}
    reply = operate(parts, {"type": "UPDATE_MAINTENANCE_SCHEDULE", "update_maintenance_schedule": update})
    assert reply.status == 200, reply


def address_of(parts: Parts, hostname: str) -> str:
    """Return the address that Mesos knows the machine by."""
    for agent in parts.mesos.state()["slaves"]:
        if agent["hostname"] == hostname:
            return str(agent["pid"].rpartition("@")[2].rpartition(":")[0])
    raise AssertionError(f"no agent on {hostname}")


def maintenance_status(parts: Parts) -> str:
    return operate(parts, {"type": "GET_MAINTENANCE_STATUS"}).text


def test_a_maintenance_drains_its_agent_and_gets_it_once_nothing_is_only_there(
    parts: Parts, store: HttpStore, root: pathlib.Path
) -> None:
    client = parts.client
    add_loaded(parts, store)
    victim = running(parts)[1]
    store.forget_requests()
    schedule(parts, victim["hostname"])
    wait_until(lambda: "ACCEPT" in maintenance_status(parts), "the inverse offer to be accepted")
    assert not psutil.pid_exists(victim["pid"]) or running(parts).get(1, victim)["launch"] != victim["launch"]
    wait_until(lambda: 1 in running(parts), "the slot to run elsewhere")
    assert running(parts)[1]["agent_id"] != victim["agent_id"]
    wait_cached(client)
    check_all(client, root)
    assert reads(store) == []
    drain = agent_of(client, victim["agent_id"])["drain"]
    assert (drain["state"], drain["cause"]) == ("DRAINED", "maintenance")
    schedule(parts, None)
    wait_until(lambda: agent_of(client, victim["agent_id"])["drain"] is None, "the drain to be undone")


def test_an_agent_that_mesos_drains_gets_its_slot_launched_elsewhere(parts: Parts) -> None:
    victim = running(parts)[2]
    drain = {"agent_id": {"value": victim["agent_id"]}, "max_grace_period": {"seconds": 5}}
    assert operate(parts, {"type": "DRAIN_AGENT", "drain_agent": drain}).status == 200
    wait_until(
        lambda: running(parts).get(2, victim)["agent_id"] != victim["agent_id"], "the slot to run elsewhere"
    )


def test_an_agent_that_is_lost_and_returns_keeps_its_executor(parts: Parts) -> None:
    victim = running(parts)[1]
    number = number_of(parts, victim["agent_id"])
    assert parts.mesos.fault("agent-stop", number, "kill").status == 200
    wait_until(lambda: "cannot reach" in (executor_of(parts.client, 1)["reason"] or ""), "TASK_UNREACHABLE")
    assert executor_of(parts.client, 1)["state"] == "RUNNING", "its heartbeats tell the truth"
    assert parts.mesos.fault("agent-start", number).status == 200
    wait_until(lambda: not executor_of(parts.client, 1)["reason"], "TASK_RUNNING")
    now = running(parts)[1]
    assert (now["launch"], now["pid"]) == (victim["launch"], victim["pid"])


def number_of(parts: Parts, agent_id: str) -> str:
    """Return what faults call the agent: they are started in the order of their hostnames."""
    hostname = next(row["hostname"] for row in parts.client.agents() if row["id"] == agent_id)
    return str(1 + agent_addresses(3, os.getpid()).index(hostname))

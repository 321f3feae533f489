"""Persistent volumes, with real processes: an executor that is launched again finds its volume, and none is left behind."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import signal
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from stoker.client.api import Client
from support.embedded import EmbeddedProcess
from support.schedulers import SchedulerProcess, scheduler_process
from support.waiting import wait_until

pytestmark = pytest.mark.integration

WAIT_S = 120.0
DISK_BYTES = 128 << 20
ROLE = "stoker"
OLD_FORMAT = ("role", "reservation")  # of a resource, beside the new one
JSON = {"Content-Type": "application/json"}
CONFIG: dict[str, Any] = {
    "role": ROLE,
    "instances": 2,
    "mem_bytes": 64 << 20,
    "disk_bytes": DISK_BYTES,
    "allow_sources": [""],
    "settings": {"tick_ms": 200, "heartbeat_timeout_ms": 30_000, "revive_interval_ms_min": 500},
}


class Cluster(NamedTuple):
    mesos: EmbeddedProcess
    scheduler: SchedulerProcess
    work: pathlib.Path

    @property
    def client(self) -> Client:
        return Client(self.scheduler.url)

    def running(self) -> dict[int, dict[str, Any]]:
        return {e["slot"]: e for e in self.client.executors() if e["state"] == "RUNNING"}

    def volumes(self) -> dict[str, pathlib.Path]:
        """Return the volumes' directories by persistence id, wherever the agents have them."""
        return {path.name: path for path in self.work.glob(f"**/volumes/roles/{ROLE}/*")}

    def roles(self) -> set[str]:
        """Return the roles that the master knows us by."""
        (framework,) = json.loads(self.mesos.request("GET", "/state").text)["frameworks"]
        return set(framework["roles"])

    def reserved(self) -> dict[str, Any]:
        """Return what the master has reserved, by agent."""
        slaves = json.loads(self.mesos.request("GET", "/slaves").text)["slaves"]
        return {agent["id"]: agent["reserved_resources"] for agent in slaves}

    def resources(self, agent_id: str, persistence_id: str) -> list[dict[str, Any]]:
        """Return an agent's resources with this volume, as operators name them."""
        slaves = json.loads(self.mesos.request("GET", "/slaves").text)["slaves"]
        (agent,) = [agent for agent in slaves if agent["id"] == agent_id]
        return [
            {key: value for key, value in resource.items() if key not in OLD_FORMAT}
            for resource in agent["reserved_resources_full"].get(ROLE, [])
            if resource.get("disk", {}).get("persistence", {}).get("id") == persistence_id
        ]

    def order(self, kind: str, agent_id: str, name: str, resources: list[dict[str, Any]]) -> bool:
        """Order as Mesos' operator; return whether it was taken."""
        body = {"agent_id": {"value": agent_id}, name: resources}
        call = json.dumps({"type": kind, kind.lower(): body})
        return self.mesos.request("POST", "/api/v1", call, JSON).status == 202


@pytest.fixture
def cluster(tmp_path: pathlib.Path) -> Iterator[Cluster]:
    work = tmp_path / "mesos"
    agents = ("--agents", "2", "--cpus", "2", "--mem", "1GiB", "--disk", "1GiB")
    with EmbeddedProcess(work, *agents, "--attributes", "rack:a", "--attributes", "rack:b") as mesos:
        config = CONFIG | {"master": mesos.address, "journal": f"file:{tmp_path / 'journal'}"}
        with scheduler_process(config, tmp_path / "scheduler.log") as scheduler:
            scheduler.wait_leading()
            made = Cluster(mesos, scheduler, work)
            wait_until(lambda: len(made.running()) == 2, "both executors", WAIT_S)
            yield made


def test_an_executor_launched_again_finds_its_volume_and_a_shrunk_fleet_leaves_none(cluster: Cluster) -> None:
    client = cluster.client
    wait_until(lambda: client.fleet()["volumes"]["ready"] == 2, "volumes that are ready", WAIT_S)
    volumes = cluster.volumes()
    assert len(volumes) == 2, volumes
    for name, path in volumes.items():
        (path / "mark").write_text(name)
    before = cluster.running()
    for executor in before.values():
        os.kill(executor["pid"], signal.SIGKILL)

    def is_back() -> bool:
        now = cluster.running()
        return len(now) == 2 and all(now[slot]["launch"] > before[slot]["launch"] for slot in now)

    wait_until(is_back, "both executors again", WAIT_S)
    now = cluster.running()
    assert {s: e["agent_id"] for s, e in now.items()} == {s: e["agent_id"] for s, e in before.items()}
    assert cluster.volumes() == volumes, "each on its own volume, and no other was made"
    for name, path in volumes.items():
        assert (path / "mark").read_text() == name
    links = [path for path in cluster.work.glob("**/ssd") if path.is_symlink() and path.exists()]
    assert {link.resolve() for link in links} == {path.resolve() for path in volumes.values()}
    assert all(disk["disk"] == DISK_BYTES >> 20 for disk in (r[ROLE] for r in cluster.reserved().values()))

    assert client.set_fleet(disk_bytes=0)["disk_bytes"] == 0
    wait_until(lambda: not cluster.volumes(), "no volume", WAIT_S)
    wait_until(lambda: not any(cluster.reserved().values()), "nothing reserved", WAIT_S)
    wait_until(lambda: len(cluster.running()) == 2, "both executors without a volume", WAIT_S)
    assert not any(client.fleet()["volumes"][state] for state in ("planned", "ready", "released", "doomed"))


@pytest.mark.parametrize("is_unreserved", [False, True], ids=["reserved", "unreserved"])
def test_a_volume_that_vanished_is_told_of_and_its_slot_gets_another_once_it_is_destroyed(
    cluster: Cluster, *, is_unreserved: bool
) -> None:
    client = cluster.client
    wait_until(lambda: client.fleet()["volumes"]["ready"] == 2, "volumes that are ready", WAIT_S)
    executor = cluster.running()[1]
    agent_id = executor["agent_id"]
    (name,) = (n for n in cluster.volumes() if cluster.resources(agent_id, n))
    (volume,) = cluster.resources(agent_id, name)
    shutil.rmtree(cluster.volumes()[name])
    os.kill(executor["pid"], signal.SIGKILL)

    def reason() -> str:
        return str(next(e["reason"] for e in client.executors() if e["slot"] == 1))

    wait_until(lambda: "is gone from this agent" in reason(), "the reason", WAIT_S)
    assert name in reason() and "DESTROY_VOLUMES" in reason()
    # Mesos refuses it while an executor has the volume: the next tries are ever farther apart.
    wait_until(lambda: cluster.order("DESTROY_VOLUMES", agent_id, "volumes", [volume]), "no volume", WAIT_S)
    if is_unreserved:
        disk = {key: value for key, value in volume.items() if key != "disk"}
        wait_until(
            lambda: cluster.order("UNRESERVE_RESOURCES", agent_id, "resources", [disk]), "unreserved", WAIT_S
        )
    wait_until(lambda: 1 in cluster.running(), "the executor on another volume", WAIT_S)
    wait_until(lambda: client.fleet()["volumes"]["ready"] == 2, "another volume", WAIT_S)
    assert name not in cluster.volumes() and len(cluster.volumes()) == 2
    disk_mib = [reserved[ROLE]["disk"] for reserved in cluster.reserved().values()]
    assert disk_mib == [DISK_BYTES >> 20] * 2, "what was reserved is used again"


def test_a_size_that_fits_nowhere_ends_nobody_and_one_that_fits_replaces_all(cluster: Cluster) -> None:
    client, before, volumes = cluster.client, cluster.running(), cluster.volumes()
    client.set_fleet(mem_bytes=64 << 30)

    def is_told() -> bool:
        reasons = [e["reason"] or "" for e in client.executors()]
        return all("there is no room" in r and "of 64." in r and "GiB memory" in r for r in reasons)

    wait_until(is_told, "the nearest fit of each", WAIT_S)
    assert {s: e["launch"] for s, e in cluster.running().items()} == {
        s: e["launch"] for s, e in before.items()
    }
    client.set_fleet(mem_bytes=128 << 20)

    def is_replaced() -> bool:
        now = cluster.running()
        return len(now) == 2 and all(now[slot]["launch"] > before[slot]["launch"] for slot in now)

    wait_until(is_replaced, "both in their new size", WAIT_S)
    wait_until(lambda: not any(e["reason"] for e in client.executors()), "nothing to say", WAIT_S)
    assert cluster.volumes() == volumes


def test_a_next_leader_knows_the_volumes_and_says_why_an_executor_waits(cluster: Cluster) -> None:
    client, volumes = cluster.client, cluster.volumes()
    client.set_fleet(instances=3, constraints=["rack:UNIQUE"])
    wait_until(
        lambda: client.fleet()["waiting"] and client.fleet()["waiting"][0]["nearest"], "a reason", WAIT_S
    )
    (row,) = client.fleet()["waiting"]
    failed = {c["requirement"] for c in row["nearest"]["checks"] if not c["passed"]}
    assert "one executor an agent" in failed and "rack:UNIQUE" in failed
    wait_until(lambda: "no offer fits what is wanted" in cluster.scheduler.said(), "a line of the log")
    cluster.scheduler.stop(signal.SIGKILL)
    config = cluster.scheduler.config | {"port": 0}
    with scheduler_process(config, cluster.work.parent / "second.log") as second:
        second.wait_leading()
        api = Client(second.url)
        wait_until(lambda: api.fleet()["running"] == 2, "both executors", WAIT_S)
        assert api.fleet()["volumes"]["ready"] == 2 and cluster.volumes() == volumes
        api.set_fleet(instances=0)
        wait_until(lambda: not any(cluster.reserved().values()), "nothing reserved", WAIT_S)
        api.set_fleet(instances=1, roles=["other", ROLE], constraints=[])
        wait_until(lambda: cluster.roles() == {"other", ROLE}, "both roles", WAIT_S)
        wait_until(lambda: api.fleet()["running"] == 1, "an executor", WAIT_S)

"""What becomes of living schedulers whose journal is wiped, damaged or closed to them: they stay, say why, and go on once it is mended.

Real processes and a real ZooKeeper. Nobody leads over what is missing, and nothing is written where the journal was.
"""

from __future__ import annotations

import contextlib
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from kazoo.client import KazooClient
from kazoo.security import OPEN_ACL_UNSAFE, make_digest_acl

from support.schedulers import SchedulerProcess, scheduler_process
from support.waiting import wait_until
from support.zookeeper import Place, needs_zookeeper, zookeeper

__all__ = ["zookeeper"]  # a fixture

pytestmark = [pytest.mark.integration, needs_zookeeper, pytest.mark.timeout(300)]

WAIT_S = 90.0
CLI = [sys.executable, "-c", "from stoker.framework.cli.main import main; main(prog_name='stoker')"]
OWN = ("epoch", "election", "log", "snapshot", "snapshots", "blobs", "schema")


@pytest.fixture
def pair(zookeeper: Place, tmp_path: pathlib.Path) -> Iterator[list[SchedulerProcess]]:
    """Two schedulers, the first of which leads; there is no Mesos, and they were told not to ask it."""
    config = {
        "master": "127.0.0.1:1",
        "journal": zookeeper.url,
        "new_cluster": True,
        "instances": 0,
        "session_timeout_ms": 5_000,
        "allow_sources": [""],
    }
    with scheduler_process(config, tmp_path / "first.log") as first:
        first.wait_leading()
        with scheduler_process(config, tmp_path / "second.log") as second:
            wait_until(lambda: about(second)["leader"] == first.url, "a follower", WAIT_S)
            yield [first, second]


@pytest.fixture
def client(zookeeper: Place) -> Iterator[KazooClient]:
    made = KazooClient(hosts=zookeeper.hosts, timeout=60.0)
    made.start()
    yield made
    made.stop()
    made.close()


def about(process: SchedulerProcess) -> dict[str, Any]:
    view: dict[str, Any] = process.api.get("/v1/leader")
    return view


def journal(command: str, *arguments: str) -> None:
    done = subprocess.run(
        [*CLI, "journal", command, *arguments], capture_output=True, text=True, timeout=WAIT_S, check=False
    )
    assert done.returncode == 0, done.stderr


def wait_waiting(processes: list[SchedulerProcess], says: str) -> None:
    """Wait until all say why they do not lead, and see that they answer as they should."""
    for process in processes:
        wait_until(lambda process=process: says in about(process)["reason"], f"it to say {says!r}", WAIT_S)  # type: ignore[misc]
    for process in processes:
        view = about(process)
        assert (view["state"], view["leader"]) == ("waiting", ""), view
        status, body = process.api.call("GET", "/health")
        assert status == 503 and says in body["error"]["message"]
        assert process.api.call("GET", "/alive")[0] == 200
        assert process.api.call("PUT", "/v1/fleet", {"instances": 0, "mem_bytes": 1 << 26})[0] == 503


def wait_whole(processes: list[SchedulerProcess]) -> dict[str, Any]:
    """Wait until one leads and the other follows it; return what the leader says."""

    def is_whole() -> bool:
        views = [about(process) for process in processes]
        return sorted(view["state"] for view in views) == ["following", "leading"]

    wait_until(is_whole, "a leader and a follower", WAIT_S)
    assert all(process.child.poll() is None for process in processes)
    return about(next(process for process in processes if about(process)["state"] == "leading"))


def add(process: SchedulerProcess, name: str, source: pathlib.Path) -> None:
    source.mkdir(exist_ok=True)
    (source / "file").write_bytes(b"x")
    assert process.api.call("POST", "/v1/datasets", {"name": name, "source": str(source)})[0] in (200, 201)


def test_a_wiped_path_is_led_by_nobody_until_the_journal_is_back(
    pair: list[SchedulerProcess], client: KazooClient, zookeeper: Place, tmp_path: pathlib.Path
) -> None:
    add(pair[0], "kept", tmp_path / "data")
    before = about(pair[0])
    saved = str(tmp_path / "saved")
    journal("backup", "--zk", zookeeper.url, saved)
    client.delete(zookeeper.path, recursive=True)
    wait_waiting(pair, "it is empty now")
    with contextlib.suppress(Exception):  # nothing, or what a start makes: no record, nobody to lead
        assert client.get_children(f"{zookeeper.path}/log") == []
        assert client.get_children(f"{zookeeper.path}/election") == []
    journal("restore", "--zk", zookeeper.url, saved)
    after = wait_whole(pair)
    assert after["cluster"] == before["cluster"] and after["epoch"] > before["epoch"]
    leader = next(process for process in pair if process.url == after["self"])
    assert [row["name"] for row in leader.api.get("/v1/datasets")["datasets"]] == ["kept"]


def test_who_is_shut_out_waits_to_be_let_in(
    pair: list[SchedulerProcess], client: KazooClient, zookeeper: Place
) -> None:
    before = about(pair[0])
    client.add_auth("digest", "admin:secret")
    nodes = [f"{zookeeper.path}/{name}" for name in OWN if client.exists(f"{zookeeper.path}/{name}")]
    for node in nodes:
        client.set_acls(node, [make_digest_acl("admin", "secret", all=True)])
    wait_waiting(pair, "no right to")
    for node in nodes:
        client.set_acls(node, OPEN_ACL_UNSAFE)
    assert wait_whole(pair)["cluster"] == before["cluster"]


def test_a_record_of_a_newer_program_stops_followers_from_leading_until_it_is_gone(
    pair: list[SchedulerProcess], client: KazooClient, zookeeper: Place
) -> None:
    leader, follower = pair
    log = f"{zookeeper.path}/log"
    newest = f"{log}/{max(client.get_children(log))}"
    good, _ = client.get(newest)
    client.set(newest, good[:4] + b"\x63" + good[5:])  # its header's checksum does not hold
    leader.child.kill()
    leader.child.wait(timeout=WAIT_S)
    with scheduler_process(leader.config, leader.log) as again:
        assert again.child.wait(timeout=WAIT_S) == 1, "at its start it is told at once"
        assert f"{newest} is damaged" in again.said()
    wait_until(lambda: about(follower)["state"] in ("leading", "waiting"), "the session's end", WAIT_S)
    client.set(newest, good)
    wait_until(lambda: about(follower)["state"] == "leading", "it to lead", WAIT_S)


def test_what_no_record_has_room_for_is_refused_and_nothing_is_written(
    pair: list[SchedulerProcess], tmp_path: pathlib.Path
) -> None:
    leader, follower = pair
    add(leader, "d", tmp_path / "data")
    wait_until(lambda: leader.api.get("/v1/datasets/d")["state"] == "READY", "the listing", WAIT_S)
    before = about(leader)
    paths = [f"{number:01000d}" for number in range(40)]
    status, body = leader.api.call("POST", "/v1/jobs", {"kind": "load", "dataset": "d", "paths": paths})
    assert (status, body["error"]["code"]) == (413, "too_large")
    assert "more than 24576 bytes" in body["error"]["message"]
    assert about(leader) == before, "it leads on, and its journal is as it was"
    add(leader, "e", tmp_path / "data")
    wait_until(lambda: about(follower)["next_index"] > before["next_index"], "the next write", WAIT_S)

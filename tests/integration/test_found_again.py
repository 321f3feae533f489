"""Who finds whom: executors a leader at an address that they never heard of, people the leader by ZooKeeper; and who is refused.

Real processes: the embedded Mesos, real executors, schedulers, the command line, a real ZooKeeper.
"""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from support.embedded import EmbeddedProcess
from support.schedulers import Api, SchedulerProcess, scheduler_process
from support.waiting import wait_until
from support.zookeeper import Place, needs_zookeeper, zookeeper

__all__ = ["zookeeper"]  # a fixture

pytestmark = pytest.mark.integration

WAIT_S = 120.0
# A slow machine must not make the leader end executors that are about to come.
PATIENT = {"tick_ms": 200, "heartbeat_timeout_ms": 90_000, "residency_grace_ms": 90_000}
CLI = [sys.executable, "-c", "from stoker.framework.cli.main import main; main(prog_name='stoker')"]


@pytest.fixture(scope="module")
def mesos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedProcess]:
    work = tmp_path_factory.mktemp("found") / "mesos"
    with EmbeddedProcess(work, "--agents", "2", "--cpus", "2", "--mem", "1GiB") as process:
        yield process


def config(mesos: EmbeddedProcess, journal: str, name: str, **fields: Any) -> dict[str, Any]:
    return {
        "master": mesos.address,
        "journal": journal,
        "name": name,
        "mem_bytes": 64 << 20,
        "allow_sources": [""],
        "new_cluster": True,
        "settings": PATIENT,
    } | fields


def running(api: Api) -> dict[int, tuple[int, int]]:
    """Return (launch, pid) of the executors that were heard, by slot."""
    status, body = api.call("GET", "/v1/executors")
    rows = body["executors"] if status == 200 else []
    return {e["slot"]: (e["launch"], e["pid"]) for e in rows if e["state"] == "RUNNING"}


def test_executors_that_know_no_living_scheduler_are_told_through_mesos(
    mesos: EmbeddedProcess, tmp_path: pathlib.Path
) -> None:
    """The only scheduler was killed, and comes back on another port: nobody but Mesos can reach its executors."""
    told = config(mesos, f"file:{tmp_path / 'journal'}", "found-local", instances=2)
    with scheduler_process(told, tmp_path / "log") as first:
        api = first.wait_leading()
        wait_until(lambda: len(running(api)) == 2, timeout_s=WAIT_S, what="two executors")
        before = running(api)
        first.stop(signal.SIGKILL)
        with scheduler_process(told, tmp_path / "log") as second:
            assert second.url != first.url
            api = second.wait_leading()
            wait_until(lambda: running(api) == before, timeout_s=WAIT_S, what="the same executors again")
            metrics = api.call("GET", "/metrics")[1].decode()
            assert 'stoker_mesos_calls_total{kind="Message",outcome="sent"}' in metrics
            assert api.call("PUT", "/v1/fleet", {"instances": 0, "mem_bytes": 64 << 20})[0] == 200
            wait_until(lambda: not running(api), timeout_s=WAIT_S, what="their end")
            for _ in range(2):
                second.child.send_signal(signal.SIGTERM)
            assert second.child.wait(timeout=WAIT_S) == 0, "told twice, it ends as if told once"


@needs_zookeeper
def test_the_command_line_finds_the_leader_by_zookeeper(
    mesos: EmbeddedProcess, tmp_path: pathlib.Path, zookeeper: Place
) -> None:
    told = config(mesos, zookeeper.url, "found-zk", instances=0)
    with scheduler_process(told, tmp_path / "one") as one, scheduler_process(told, tmp_path / "two") as two:
        leads = wait_until(lambda: leading(one, two), timeout_s=WAIT_S, what="a leader")
        follows = two if leads is one else one
        wait_until(
            lambda: follows.api.get("/v1/leader")["leader"] == leads.url, timeout_s=WAIT_S, what="a follower"
        )
        for url in (zookeeper.url, follows.url):
            done = command("fleet", "set", "--instances", "0", "--url", url)
            assert done.returncode == 0, done.stderr
        shown = command("dataset", "ls", "--json", url=zookeeper.url)
        assert json.loads(shown.stdout) == {"datasets": []} and shown.stderr == ""
    nobody = command("dataset", "ls", "--url", f"{zookeeper.url}-elsewhere")
    assert nobody.returncode == 1 and len(nobody.stderr.splitlines()) == 1, nobody.stderr


def registered(api: Api) -> dict[str, Any] | None:
    """Return what the leader says once all that a start writes is written."""
    about: dict[str, Any] = api.get("/v1/leader")
    return about if about["framework_id"] else None


def leading(*processes: SchedulerProcess) -> SchedulerProcess | None:
    found = [process for process in processes if process.api.call("GET", "/health")[0] == 200]
    return found[0] if found else None


def command(*arguments: str, url: str = "") -> subprocess.CompletedProcess[str]:
    environment = os.environ | ({"STOKER_URL": url} if url else {})
    return subprocess.run(
        [*CLI, *arguments], capture_output=True, text=True, timeout=WAIT_S, check=False, env=environment
    )


@needs_zookeeper
def test_who_must_not_follow_says_why_in_one_line_and_changes_nothing(
    mesos: EmbeddedProcess, tmp_path: pathlib.Path, zookeeper: Place
) -> None:
    told = config(mesos, zookeeper.url, "found-first", instances=0)
    with scheduler_process(told, tmp_path / "log") as process:
        api = process.wait_leading()
        before = wait_until(lambda: registered(api), timeout_s=WAIT_S, what="a framework id")
        for number, (fields, status, says) in enumerate((
            ({"name": "another", "role": "cache", "master": "127.0.0.1:1"}, 1, "another cluster: .*--name.*--master.*--role"),
            ({"journal": f"{zookeeper.url}/log"}, 1, "another application's data"),
            ({"journal": "zk://127.0.0.1:1/stoker", "session_timeout_ms": 4_000}, 1, "no ZooKeeper server can be reached"),
        )):  # fmt: skip
            log = tmp_path / f"refused{number}"
            with scheduler_process(told | fields, log) as refused:
                assert refused.child.wait(timeout=WAIT_S) == status, refused.said()
                lines = [line for line in refused.said().splitlines() if line.startswith("stoker scheduler:")]
                (line,) = lines
                assert all(part in line for part in says.split(".*")), line
                assert "Traceback" not in refused.said()
        assert api.get("/v1/leader") == before

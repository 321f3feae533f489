"""A journal that was lost beside a living framework: the scheduler destroys nothing, says so, and waits for people.

Real processes: the embedded Mesos, schedulers, `stoker journal`; a directory and a real ZooKeeper.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from kazoo.exceptions import NoNodeError, NotEmptyError

from stoker.framework.cli.journal_backup import AHEAD_MIN
from stoker.mesos.detector import parse_address
from stoker.mesos.operator import KnownFramework, Operator
from support.embedded import EmbeddedProcess
from support.journals import shared_client
from support.schedulers import Api, scheduler_process, wait_until
from support.zookeeper import WHY_NOT, shared_server

EXECUTOR = pathlib.Path(__file__).parents[1] / "support" / "heartbeat_executor.py"
CLI = [
    sys.executable,
    "-c",
    "from stoker.framework.cli.main import main; main(prog_name='stoker')",
    "journal",
]
SESSION_TIMEOUT_MS = 6_000
WAIT_S = 120.0
QUICK = {"tick_ms": 100, "heartbeat_timeout_ms": 5_000, "residency_grace_ms": 2_000}

pytestmark = pytest.mark.integration


class Place:
    """Where the journal is: of a cluster of its own, by name."""

    def __init__(self, url: str, directory: pathlib.Path) -> None:
        self.url = url
        self._directory = directory

    def wipe(self) -> None:
        """Lose the journal, as by a slip of somebody's hand."""
        if self.url.startswith("file:"):
            shutil.rmtree(self._directory)
        else:
            path = "/" + self.url.split("/", 3)[3]
            wait_until(lambda: _is_gone(path), timeout_s=WAIT_S, what="the deletion")

    def run(self, *arguments: str) -> str:
        """Run `stoker journal` on it."""
        flag = "--journal" if self.url.startswith("file:") else "--zk"
        command = [*CLI, arguments[0], flag, self.url, *arguments[1:]]
        done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def header(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run("inspect", "--header", "--json"))
        return found

    def files(self) -> list[str]:
        """Return what a local journal's directory holds."""
        return sorted(os.listdir(self._directory)) if self._directory.exists() else []


def _is_gone(path: str) -> bool:
    try:
        shared_client().delete(path, recursive=True)
    except NotEmptyError:
        return False  # a leader wrote meanwhile
    except NoNodeError:
        pass
    return True


@pytest.fixture(params=["local", "zookeeper"])
def place(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Place:
    directory = tmp_path / "journal"
    if request.param == "local":
        return Place(f"file:{directory}", directory)
    if WHY_NOT:
        pytest.skip(WHY_NOT)
    return Place(f"zk://{shared_server().address}/test-{uuid.uuid4().hex[:12]}/stoker", directory)


@pytest.fixture(scope="module")
def mesos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedProcess]:
    work = tmp_path_factory.mktemp("embedded") / "mesos"
    with EmbeddedProcess(work, "--agents", "1", "--cpus", "64", "--mem", "8GiB") as process:
        yield process


@pytest.fixture
def config(mesos: EmbeddedProcess, place: Place, tmp_path: pathlib.Path) -> dict[str, Any]:
    return {
        "master": mesos.address,
        "journal": place.url,
        "name": f"test-{uuid.uuid4().hex[:8]}",
        "session_timeout_ms": SESSION_TIMEOUT_MS,
        "instances": 1,
        "mem_bytes": 64 << 20,
        "allow_sources": [""],
        "executor_command": f"exec {sys.executable} {EXECUTOR}",
        "failover_timeout_ms": 600_000,
        "settings": QUICK,
    }


def ours(config: dict[str, Any]) -> list[KnownFramework]:
    """Return what Mesos knows of frameworks of this name."""
    return [f for f in Operator(parse_address(config["master"])).frameworks() if f.name == config["name"]]


def wait_state(api: Api, state: str) -> dict[str, Any]:
    wait_until(
        lambda: api.call("GET", "/v1/leader")[1].get("state") == state,
        timeout_s=WAIT_S,
        what=f"state {state}",
    )
    view: dict[str, Any] = api.get("/v1/leader")
    return view


def wait_executor(api: Api) -> str:
    """Return the task id of the executor, once it runs."""

    def running() -> list[str]:
        return [e["task_id"] for e in api.get("/v1/executors")["executors"] if e["state"] == "RUNNING"]

    wait_until(running, timeout_s=WAIT_S, what="an executor")
    return running()[0]


@contextlib.contextmanager
def lived_and_wiped(
    config: dict[str, Any], place: Place, tmp_path: pathlib.Path
) -> Iterator[tuple[str, str]]:
    """Let a cluster live, save its journal to `saved`, kill its scheduler, wipe the journal; yield framework and task id.

    The next one gets the same port, by which its executor finds it.
    """
    with scheduler_process(config, tmp_path / "first.log") as process:
        api = process.wait_leading()
        task_id = wait_executor(api)
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "a").write_bytes(b"a" * 1000)
        api.call("POST", "/v1/datasets", {"name": "kept", "source": str(tmp_path / "data")})
        wait_until(
            lambda: api.get("/v1/datasets/kept")["state"] == "READY", timeout_s=WAIT_S, what="the listing"
        )
        framework_id = api.get("/v1/leader")["framework_id"]
        place.run("backup", str(tmp_path / "saved"))
        config["port"] = api.port
        process.stop(signal.SIGKILL)
    place.wipe()
    yield framework_id, task_id


def test_a_lost_journal_is_waited_for_and_goes_on_as_it_was_once_restored(
    config: dict[str, Any], place: Place, tmp_path: pathlib.Path
) -> None:
    with lived_and_wiped(config, place, tmp_path) as (framework_id, task_id):
        with scheduler_process(config, tmp_path / "second.log") as process:
            api = process.api
            view = wait_state(api, "waiting")
            assert framework_id in view["reason"] and "stoker journal restore" in view["reason"]
            status, health = api.call("GET", "/health")
            assert status == 503 and framework_id in json.dumps(health)
            assert api.call("GET", "/alive")[0] == 200
            status, refusal = api.call("POST", "/v1/datasets", {"name": "x", "source": "/x"})
            assert (status, refusal["error"]["code"]) == (503, "not_leading")
            assert "WARNING" in process.said() and "nothing is written" in process.said()
            assert place.files() == [], "nothing is written"
            place.run("restore", str(tmp_path / "saved"))
            view = wait_state(api, "leading")
            assert view["framework_id"] == framework_id and view["epoch"] > 1 + AHEAD_MIN
            assert api.get("/v1/datasets/kept")["state"] == "READY"
            assert wait_executor(api) == task_id, "the executor lives on, and obeys"
            assert [f.framework_id for f in ours(config)] == [framework_id]
            assert process.stop() == 0


def test_a_lost_journal_is_begun_anew_where_the_operator_says_so(
    config: dict[str, Any], place: Place, tmp_path: pathlib.Path
) -> None:
    with lived_and_wiped(config, place, tmp_path) as (framework_id, _):
        with scheduler_process(config, tmp_path / "second.log") as process:
            wait_state(process.api, "waiting")
            assert process.stop() == 0, "one that waits ends when it is told to"
        with scheduler_process(config | {"new_cluster": True}, tmp_path / "third.log") as process:
            api = process.wait_leading()
            wait_until(lambda: api.get("/v1/leader")["framework_id"], timeout_s=WAIT_S, what="registration")
            assert api.get("/v1/leader")["framework_id"] != framework_id
            assert api.get("/v1/datasets")["datasets"] == []
            assert framework_id in {f.framework_id for f in ours(config)}, "nothing was torn down"


def test_zookeeper_wiped_under_a_living_leader_destroys_nothing(
    config: dict[str, Any], place: Place, tmp_path: pathlib.Path
) -> None:
    """The leader loses its epoch, finds an empty path in the next session, and Mesos that knows its framework."""
    if place.url.startswith("file:"):
        pytest.skip("of ZooKeeper")
    with scheduler_process(config, tmp_path / "log") as process:
        api = process.wait_leading()
        task_id = wait_executor(api)
        framework_id = api.get("/v1/leader")["framework_id"]
        place.run("backup", str(tmp_path / "saved"))
        place.wipe()
        view = wait_state(api, "waiting")
        assert "stoker journal restore" in view["reason"]
        place.run("restore", str(tmp_path / "saved"))
        assert wait_state(api, "leading")["framework_id"] == framework_id
        assert wait_executor(api) == task_id
        assert [f.framework_id for f in ours(config)] == [framework_id]


def test_several_schedulers_wait_and_one_leads_once_the_journal_is_back(
    config: dict[str, Any], place: Place, tmp_path: pathlib.Path
) -> None:
    if place.url.startswith("file:"):
        pytest.skip("of ZooKeeper")
    with lived_and_wiped(config, place, tmp_path) as (framework_id, _), contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(scheduler_process(config | {"port": 0}, tmp_path / f"log{number}"))
            for number in range(3)
        ]
        for process in processes:
            wait_state(process.api, "waiting")
        place.run("restore", str(tmp_path / "saved"))
        wait_until(
            lambda: (
                sorted(p.api.get("/v1/leader")["state"] for p in processes)
                == ["following", "following", "leading"]
            ),
            timeout_s=WAIT_S,
            what="one leader, two followers",
        )
        assert {p.api.get("/v1/leader")["framework_id"] for p in processes} == {framework_id}
        assert [f.framework_id for f in ours(config)] == [framework_id]


def test_a_master_that_cannot_be_asked_is_waited_for(
    config: dict[str, Any], place: Place, tmp_path: pathlib.Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config |= {"master": f"127.0.0.1:{port}", "name": "latecomer"}
    with scheduler_process(config, tmp_path / "log") as process:
        view = wait_state(process.api, "waiting")
        assert f"127.0.0.1:{port}" in view["reason"] and "cannot be asked" in view["reason"]
        assert place.files() == []
        with EmbeddedProcess(tmp_path / "mesos", "--agents", "1", "--port", str(port)):
            assert wait_state(process.api, "leading")["state"] == "leading"
            wait_until(lambda: ours(config), timeout_s=WAIT_S, what="the framework")
            process.stop()


def test_a_new_cluster_on_a_mesos_that_does_not_know_it_begins_at_once(
    config: dict[str, Any], place: Place, tmp_path: pathlib.Path
) -> None:
    with scheduler_process(config, tmp_path / "log") as process:
        process.wait_leading()
        assert "waiting" not in process.said()
        assert place.header()["name"] == config["name"]

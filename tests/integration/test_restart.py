"""`stoker local --state DIR` through SIGKILL and restarts: nothing acknowledged is lost, nothing of the dead is left."""

from __future__ import annotations

import os
import pathlib
import tempfile

import psutil
import pytest

from support.files import digests, make_files
from support.local import Local, local_cluster, run_stoker
from support.waiting import DEADLINE_S, wait_until

pytestmark = pytest.mark.integration


def _read_all(local: Local, name: str, root: pathlib.Path) -> None:
    import hashlib

    dataset = local.client.dataset(name)
    got = {path: hashlib.sha256(dataset.read(path)).hexdigest() for path in dataset.paths}
    assert got == digests(root)


def _leftovers(state: pathlib.Path) -> list[str]:
    """Processes that name `state` in their command line, environment or working directory."""
    found = []
    for process in psutil.process_iter():
        try:
            command = process.cmdline()
            words = [*command, process.cwd(), *process.environ().values()]
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
        if process.pid != os.getpid() and any(str(state) in word for word in words):
            found.append(f"{process.pid} {' '.join(command)}")
    return found


def test_a_restart_after_sigkill_of_everything_finds_framework_dataset_job_and_data(
    tmp_path: pathlib.Path,
) -> None:
    root, state = tmp_path / "data", tmp_path / "state"
    make_files(root, 60, size_min=0, size_max=200_000)
    sockets = tempfile.mkdtemp(
        prefix="stoker-test-", dir="/tmp"
    )  # short: a socket's path has 107 bytes at most
    arguments = ("--agents", "2", "--mem", "64MiB", "--socket-dir", sockets)

    first = Local(state, *arguments)
    before = first.add("d", str(root))
    job = first.load("d")
    assert job["state"] == "SUCCEEDED", job
    framework_id = first.client.leader()["framework_id"]
    first.kill_everything()

    with local_cluster(state, *arguments) as second:
        assert second.client.leader()["framework_id"] == framework_id
        after = second.client.dataset_info("d")
        assert (after["id"], after["version"], after["bytes"]) == (
            before["id"],
            before["version"],
            before["bytes"],
        )
        assert second.client.job(job["id"])["state"] == "SUCCEEDED"
        second.wait_until_running(2)
        _read_all(second, "d", root)
        wait_until(
            lambda: second.client.dataset_info("d")["cached_bytes"] == before["bytes"],
            "the re-fill nobody asked for",
        )

    assert _leftovers(state) == []
    assert os.listdir(sockets) == []
    os.rmdir(sockets)
    assert sorted(p.name for p in state.iterdir()) == ["journal", "lock", "log"]


def test_executors_that_outlive_a_kill_are_ended_before_new_ones_are_launched(tmp_path: pathlib.Path) -> None:
    state = tmp_path / "state"
    first = Local(state, "--agents", "2", "--mem", "64MiB")
    first.wait_until_running(2)
    old = [psutil.Process(e["pid"]) for e in first.client.executors()]
    _kill_all_but(first, old)
    assert all(p.is_running() for p in old), "the test needs survivors"

    with local_cluster(state, "--agents", "2", "--mem", "64MiB") as second:
        second.wait_until_running(2)
        assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in old)
        assert {e["pid"] for e in second.client.executors()}.isdisjoint({p.pid for p in old})
    assert _leftovers(state) == []


def _kill_all_but(local: Local, executors: list[psutil.Process]) -> None:
    """All at once: stopped first, so that nobody sees another's death and ends the executors in an orderly way."""
    spared = {p.pid for e in executors for p in [e, *e.children(recursive=True)]}
    victims = [process for process in local.processes() if process.pid not in spared]
    for process in victims:
        process.suspend()
    for process in victims:
        process.kill()
    psutil.wait_procs(victims, timeout=DEADLINE_S)


def test_ctrl_c_leaves_nothing_but_the_state(tmp_path: pathlib.Path) -> None:
    local = Local(tmp_path / "state", "--agents", "2", "--mem", "64MiB")
    local.wait_until_running(2)
    assert local.stop() == 0
    assert _leftovers(tmp_path / "state") == []


def test_two_clusters_on_one_state_or_one_port_are_refused_with_a_clear_line(tmp_path: pathlib.Path) -> None:
    with local_cluster(tmp_path / "state", "--agents", "1", "--mem", "64MiB") as local:
        same_state = run_stoker("local", "--state", str(tmp_path / "state"), "--port", "0")
        assert same_state.returncode == 1
        assert "already runs a cluster" in same_state.stderr and "--state" in same_state.stderr
        port = local.url.rsplit(":", 1)[1]
        same_port = run_stoker("local", "--state", str(tmp_path / "other"), "--port", port)
        assert same_port.returncode == 1
        assert f"port {port} is taken" in same_port.stderr and "--port" in same_port.stderr
        for refused in (same_state, same_port):
            assert len(refused.stderr.strip().splitlines()) == 1, refused.stderr
        assert not (tmp_path / "other").exists()
        assert local.client.fleet()["instances"] == 1

"""A backup is restored under living executors, which hold blocks of versions that the backup does not know.

No read may ever get those: the addresses of what is listed after a restore are new ones. Real processes and real files.
"""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
from typing import Any

import pytest

from stoker.client.api import Client
from stoker.framework.cli.local import agent_addresses
from support.embedded import EmbeddedProcess
from support.schedulers import SchedulerProcess
from support.waiting import wait_until as wait_for

CLI = [
    sys.executable,
    "-c",
    "from stoker.framework.cli.main import main; main(prog_name='stoker')",
    "journal",
]
FILE_BYTES = 300_000

pytestmark = pytest.mark.integration


def run(*arguments: str) -> None:
    done = subprocess.run([*CLI, *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def listed(client: Client, name: str, version: int) -> dict[str, Any]:
    wait_for(lambda: client.dataset_info(name)["version"] == version, f"version {version} of {name}")
    return client.dataset_info(name)


def load(client: Client, name: str) -> None:
    job = client.create_job("load", name)
    wait_for(lambda: client.job(job["id"])["state"] in ("SUCCEEDED", "FAILED", "CANCELLED"), "the load")
    assert client.job(job["id"])["state"] == "SUCCEEDED", client.job(job["id"])


def put(root: pathlib.Path, name: str, letter: bytes) -> None:
    (root / name).write_bytes(letter * FILE_BYTES)


def read(url: str, dataset: str, path: str) -> bytes:
    """Return the bytes as a process sees them that has never read before."""
    code = "import sys; from stoker.client.api import Client; sys.stdout.buffer.write(Client(sys.argv[1]).dataset(sys.argv[2]).read(sys.argv[3]))"
    done = subprocess.run(
        [sys.executable, "-c", code, url, dataset, path], capture_output=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.mark.timeout(600)
def test_no_read_gets_what_was_cached_of_a_version_that_is_forgotten(tmp_path: pathlib.Path) -> None:
    root, saved = tmp_path / "data", str(tmp_path / "saved")
    root.mkdir()
    put(root, "a", b"a")
    hostnames = ",".join(agent_addresses(1, os.getpid()))
    config: dict[str, Any] = {
        "journal": f"file:{tmp_path / 'journal'}",
        "instances": 1,
        "mem_bytes": 64 * 2**20,
        "allow_sources": [""],
        "failover_timeout_ms": 600_000,
        "settings": {"tick_ms": 200, "residency_grace_ms": 4_000, "revive_interval_ms_min": 500},
    }
    with EmbeddedProcess(
        tmp_path / "mesos", *("--agents", "1", "--cpus", "2", "--mem", "1GiB", "--hostnames", hostnames)
    ) as mesos:
        config["master"] = mesos.address
        scheduler = SchedulerProcess(config, tmp_path / "log")
        try:
            config["port"] = scheduler.wait_leading().port
            client = Client(scheduler.url)
            wait_for(lambda: client.fleet()["running"] == 1, "the executor")
            client.create_dataset("d", str(root))
            listed(client, "d", 1)
            load(client, "d")
            run("backup", "--journal", config["journal"], saved)

            put(root, "b", b"o")
            client.refresh_dataset("d")
            before = listed(client, "d", 2)
            load(client, "d")
            client.create_dataset("late", str(root))
            listed(client, "late", 1)
            load(client, "late")
            pid = client.executors()[0]["pid"]
            assert read(scheduler.url, "d", "b") == b"o" * FILE_BYTES
            scheduler.stop(signal.SIGKILL)

            run("restore", "--overwrite", "--journal", config["journal"], saved)
            put(root, "b", b"n")
            scheduler = SchedulerProcess(config, tmp_path / "log")
            scheduler.wait_leading()
            client = Client(scheduler.url)
            wait_for(lambda: client.fleet()["running"] == 1, "the executor again")
            assert client.executors()[0]["pid"] == pid, "it lives on, with what it holds"
            assert [d["name"] for d in client.datasets()] == ["d"] and client.dataset_info("d")[
                "version"
            ] == 1
            assert read(scheduler.url, "d", "a") == b"a" * FILE_BYTES
            client.refresh_dataset("d")
            after = listed(client, "d", 2)
            assert after["generation"] > before["generation"]
            assert read(scheduler.url, "d", "b") == b"n" * FILE_BYTES
            load(client, "d")
            assert read(scheduler.url, "d", "b") == b"n" * FILE_BYTES
            assert read(scheduler.url, "d", "a") == b"a" * FILE_BYTES
            client.create_dataset("late", str(root))
            late = listed(client, "late", 1)
            assert late["id"] > 2**20
            assert read(scheduler.url, "late", "b") == b"n" * FILE_BYTES
            client.set_fleet(instances=0, mem_bytes=config["mem_bytes"])
        finally:
            scheduler.stop()

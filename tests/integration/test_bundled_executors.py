"""`stoker bundle`: executors started from one fetched file, on agents that have nothing but a Python."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from stoker.client.api import Client
from stoker.framework.bundles import SANDBOX_NAME
from stoker.framework.cli.local import agent_addresses
from support.embedded import EmbeddedProcess
from support.schedulers import SchedulerProcess, scheduler_process
from support.waiting import wait_until

pytest.importorskip("pex")
pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

CLI = "from stoker.framework.cli.main import main; main()"
BUILD_DEADLINE_S = 400.0
START_DEADLINE_S = 120.0


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A bundle of this installation, made as an operator makes it."""
    path = tmp_path_factory.mktemp("bundle") / "executor.pex"
    command = [sys.executable, "-c", CLI, "bundle", "--output", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_DEADLINE_S, check=False)
    assert result.returncode == 0, result.stderr
    assert "sha256" in result.stdout and path.stat().st_mode & 0o111
    return path


@pytest.fixture
def mesos(tmp_path: pathlib.Path) -> Iterator[EmbeddedProcess]:
    hostname = agent_addresses(1, os.getpid())[0]
    options = ("--agents", "1", "--cpus", "2", "--mem", "1GiB", "--hostnames", hostname)
    with EmbeddedProcess(tmp_path / "mesos", *options) as process:
        yield process


def configured(
    tmp_path: pathlib.Path, mesos: EmbeddedProcess, bundle: pathlib.Path, **more: object
) -> dict[str, object]:
    return {
        "master": mesos.address,
        "journal": f"file:{tmp_path / 'journal'}",
        "instances": 1,
        "mem_bytes": 32 * 2**20,
        "allow_sources": [""],
        "bundles": [str(bundle)],
        "executor_python": "/no/such/python",  # what would be started without a bundle
        **more,
    }


def running(process: SchedulerProcess) -> list[dict[str, object]]:
    _, body = process.api.call("GET", "/v1/executors")
    return [executor for executor in body["executors"] if executor["state"] == "RUNNING"]


def test_an_executor_runs_from_a_fetched_bundle_and_serves(
    tmp_path: pathlib.Path, mesos: EmbeddedProcess, made: pathlib.Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "a").write_bytes(b"bytes of a")
    with scheduler_process(configured(tmp_path, mesos, made), tmp_path / "log") as process:
        api = process.wait_leading()
        wait_until(lambda: running(process), "an executor out of the bundle", START_DEADLINE_S)
        (executor,) = running(process)
        keeper = psutil.Process(int(str(executor["pid"])))
        family = [keeper, *keeper.children(recursive=True)]
        assert all("stoker-bundles" in " ".join(p.cmdline()) for p in family if "stoker" in str(p.cmdline()))
        assert (pathlib.Path(keeper.cwd()) / SANDBOX_NAME).exists()
        api.call("POST", "/v1/datasets", {"name": "d", "source": str(source)})
        assert Client(process.url).dataset("d").read("a") == b"bytes of a"


def test_a_bundle_that_changed_under_the_scheduler_is_not_started(
    tmp_path: pathlib.Path, mesos: EmbeddedProcess
) -> None:
    bundle = tmp_path / "bundle.pex"
    bundle.write_text("#!/bin/sh\ntouch $PWD/was-started\n")
    with scheduler_process(configured(tmp_path, mesos, bundle, instances=0), tmp_path / "log") as process:
        api = process.wait_leading()
        bundle.write_text("#!/bin/sh\ntouch $PWD/was-started #")  # as many bytes, other ones
        api.call("PUT", "/v1/fleet", {"instances": 1, "mem_bytes": 32 * 2**20})
        said = "the fetched bundle is not what the scheduler serves"
        sandboxes = tmp_path / "mesos"
        wait_until(
            lambda: any(said in path.read_text() for path in sandboxes.rglob("stderr")), "the shell's refusal"
        )
        assert not list(sandboxes.rglob("was-started"))

"""An executor that is cut off for a while keeps its memory: nobody orders its end. Real processes.

Its machine is cut off as far as others can tell: what it tells the scheduler is swallowed, and the kernel answers nobody who
calls its data port, whose queue of callers is full. Its agent and the master go on, so an order to end it would reach it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
from typing import Any

import psutil
import pytest

from stoker.client.api import Client
from stoker.framework.cli.local import agent_addresses
from support.deaf_listeners import fill_queue
from support.embedded import EmbeddedProcess
from support.files import digests, make_files
from support.gates import Gate
from support.ports import fixed_port
from support.schedulers import Api, scheduler_process
from support.waiting import wait_until

pytestmark = pytest.mark.integration

MEBIBYTE = 2**20
HEARTBEAT_TIMEOUT_MS = 4_000
CUT_OFF_MS = 10_000  # less than its keeper waits for a data server that hangs


def data_server_of(pid: int) -> psutil.Process:
    (server,) = [c for c in psutil.Process(pid).children(recursive=True) if "server" in c.cmdline()[2]]
    return server


def only_executor(api: Api) -> dict[str, Any]:
    (row,) = api.get("/v1/executors")["executors"]
    return dict(row)


def test_an_executor_that_is_cut_off_and_returns_keeps_all_that_it_holds(tmp_path: pathlib.Path) -> None:
    root = tmp_path / "data"
    make_files(root, 40, size_min=0, size_max=100_000, seed=5)
    port = fixed_port()
    options = ("--agents", "1", "--cpus", "2", "--mem", "1GiB")
    hostnames = ("--hostnames", ",".join(agent_addresses(1, os.getpid())))
    with (
        EmbeddedProcess(tmp_path / "mesos", *options, *hostnames) as mesos,
        Gate(f"127.0.0.1:{port}") as gate,
    ):
        config = {
            "port": port,
            "advertise": gate.address,
            "master": mesos.address,
            "journal": f"file:{tmp_path / 'journal'}",
            "instances": 1,
            "mem_bytes": 48 * MEBIBYTE,
            "allow_sources": [""],
            "settings": {"tick_ms": 200, "heartbeat_timeout_ms": HEARTBEAT_TIMEOUT_MS},
        }
        with scheduler_process(config, tmp_path / "scheduler.log") as scheduler:
            scheduler.wait_leading()
            client = Client(scheduler.url)  # the gate, as executors have it
            api = Api(f"http://127.0.0.1:{port}")
            wait_until(lambda: client.fleet()["running"] == 1, "an executor")
            client.create_dataset("d", str(root))
            wait_until(lambda: client.dataset_info("d")["state"] == "READY", "the listing")
            job = client.create_job("load", "d")["id"]
            wait_until(lambda: client.job(job)["state"] == "SUCCEEDED", "the load")
            (before,) = client.placement("d")["slots"]
            executor = only_executor(api)
            server = data_server_of(executor["pid"])
            server.suspend()
            try:
                fill_queue((executor["host"], executor["port"]))
                gate.shut()
                wait_until(lambda: "does not answer" in (only_executor(api)["reason"] or ""), "the probe")
                wait_until(lambda: only_executor(api)["heartbeat_age_ms"] > CUT_OFF_MS, "a long silence")
                lost = only_executor(api)
                assert lost["state"] == "LOST" and "not told to end" in lost["reason"]
            finally:
                with contextlib.suppress(psutil.NoSuchProcess):
                    server.resume()
                gate.open()
            wait_until(lambda: only_executor(api)["state"] == "RUNNING", "it to be heard again")
            assert client.placement("d")["slots"] == [before], "the same launch and incarnation"
            assert only_executor(api)["pid"] == executor["pid"]
            view = client.dataset_info("d")
            assert view["cached_bytes"] == view["bytes"]
            dataset = client.dataset("d")
            read = {path: hashlib.sha256(dataset.read(path)).hexdigest() for path in dataset.paths}
            assert read == digests(root)
            said = scheduler.said()
            assert "action ProbeExecutor" in said and "action ShutdownExecutor" not in said
            client.set_fleet(instances=0, mem_bytes=48 * MEBIBYTE)
            wait_until(lambda: not psutil.pid_exists(executor["pid"]), "the executor's end")

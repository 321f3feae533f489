"""The SSD tier on persistent volumes of a real cluster: what executors hold there is found again by those that follow them."""

from __future__ import annotations

import hashlib
import os
import pathlib
import signal
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

from support.files import digests, make_files
from support.local import Local, local_cluster
from support.waiting import wait_until

pytestmark = pytest.mark.integration
MIB = 2**20


@pytest.fixture
def local(tmp_path: pathlib.Path) -> Iterator[Local]:
    sockets = tempfile.mkdtemp(prefix="stoker-test-", dir="/tmp")
    with local_cluster(
        tmp_path / "state", "--agents", "2", "--mem", "32MiB", "--socket-dir", sockets
    ) as running:
        running.wait_until_running(2)
        yield running


def give_disks(local: Local) -> None:
    local.run("fleet", "set", "--disk", "256MiB", "--role", "stoker", check=True)
    wait_until(lambda: all(_is_ready(e) for e in local.client.executors()), "executors with an SSD tier")


def _is_ready(executor: dict[str, Any]) -> bool:
    return executor["state"] == "RUNNING" and executor["disk"] is not None and executor["pid"] is not None


def pids(local: Local) -> set[int]:
    return {executor["pid"] for executor in local.client.executors()}


def kill_executors(local: Local) -> None:
    """SIGKILL all keepers, and wait for those that follow."""
    before = pids(local)
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    wait_until(
        lambda: not before & pids(local) and all(_is_ready(e) for e in local.client.executors()),
        "the executors that follow",
    )


def read_all(local: Local, name: str) -> dict[str, str]:
    dataset = local.client.dataset(name)
    return {path: hashlib.sha256(dataset.read(path)).hexdigest() for path in dataset.paths}


def test_a_relaunched_fleet_reads_nothing_of_the_under_store_again(
    tmp_path: pathlib.Path, local: Local
) -> None:
    root = tmp_path / "data"
    make_files(root, 60, size_min=0, size_max=2 * MIB)
    expected = digests(root)
    refused = local.run("dataset", "add", "d", str(root), "--tier", "ssd")
    assert refused.returncode == 1 and "fleet set --disk" in refused.stderr
    give_disks(local)
    local.add("d", str(root), tier="ssd")
    assert local.load("d")["state"] == "SUCCEEDED"
    shown = local.run("fleet", "show", check=True).stdout
    assert "SSD" in shown and "of 240.0 MiB" in shown
    used = {e["slot"]: e["disk"]["used_bytes"] for e in local.client.executors()}
    assert all(used.values()) and not any(e["used_bytes"] for e in local.client.executors())

    root.rename(tmp_path / "away")  # whoever read the under store now would fail
    kill_executors(local)
    assert {e["slot"]: e["disk"]["used_bytes"] for e in local.client.executors()} == used
    wait_until(lambda: local.client.dataset_info("d")["cached_ratio"] == 1.0, "all to be cached, as before")
    assert read_all(local, "d") == expected
    (tmp_path / "away").rename(root)

    local.run("dataset", "rm", "d", check=True)
    wait_until(
        lambda: not any(e["disk"]["used_bytes"] + e["disk"]["lent_bytes"] for e in local.client.executors()),
        "the room of a removed dataset to be free",
    )


def test_executors_killed_while_they_load_lose_nothing_that_they_told_of(
    tmp_path: pathlib.Path, local: Local
) -> None:
    root = tmp_path / "data"
    make_files(root, 120, size_min=0, size_max=2 * MIB)
    give_disks(local)
    local.add("d", str(root), tier="ssd")
    job = local.client.create_job("load", "d", None)
    told = 0
    for share in (0.1, 0.4):
        wait_until(
            lambda: (local.client.dataset_info("d")["cached_ratio"] or 0) >= share,  # noqa: B023
            "a part of it to be there",
        )
        told = max(told, sum(_blocks(e) for e in local.client.executors()))
        kill_executors(local)
        assert sum(_blocks(e) for e in local.client.executors()) >= told
    assert local.finish(job)["state"] == "SUCCEEDED"
    assert read_all(local, "d") == digests(root)
    assert all(e["disk"]["error_count"] == 0 for e in local.client.executors())


def _blocks(executor: dict[str, Any]) -> int:
    return sum(row["blocks"] for row in executor["datasets"])

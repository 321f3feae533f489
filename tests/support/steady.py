"""A small cluster that whatever is wrong must leave as it was."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any

from support.files import make_files
from support.local import Local, local_cluster
from support.privileges import obey_file_modes
from support.waiting import wait_until

AGENTS = 2


@contextlib.contextmanager
def steady_cluster(directory: pathlib.Path) -> Iterator[tuple[Local, pathlib.Path]]:
    """Run a cluster that holds the dataset `good`; yield it and where the files of `good` are."""
    root = directory / "data"
    make_files(root, 30, size_min=0, size_max=100_000)
    arguments = ("--agents", str(AGENTS), "--mem", "32MiB")
    with local_cluster(directory / "state", *arguments, prepare=obey_file_modes) as local:
        local.wait_until_running(AGENTS)
        local.add("good", str(root))
        assert local.load("good")["state"] == "SUCCEEDED"
        yield local, root


@contextlib.contextmanager
def unchanged(local: Local) -> Iterator[None]:
    """Assert that the block leaves the cluster's state as it was."""
    before = state_of(local)
    yield
    if state_of(local) != before:  # an executor that was not heard for a moment is no change
        with contextlib.suppress(AssertionError):
            wait_until(lambda: state_of(local) == before, "the state before", 10)
        assert state_of(local) == before


def state_of(local: Local) -> dict[str, Any]:
    """Return what the cluster holds, without what moves by itself."""
    local.wait_until_running(AGENTS)
    client = local.client
    executors = []
    for executor in client.executors():
        kept = {key: executor[key] for key in ("slot", "launch", "port", "pid")}
        held = [held for held in executor["datasets"] if held["bytes"]]
        executors.append({**kept, "datasets": held})
    leader = client.leader()
    return {
        "datasets": client.datasets(),
        "jobs": client.jobs(),
        "fleet": client.fleet(),
        "executors": executors,
        "leader": {key: leader[key] for key in ("leader", "epoch", "framework_id", "cluster", "master")},
    }

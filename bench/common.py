"""What every benchmark shares: a real local cluster, alternating rounds, ratios against a named peer.

Machines are noisy, so a figure is the median of the ratios of rounds that ran one right after the other; never a
comparison of two separate runs.
"""

from __future__ import annotations

import contextlib
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from stoker.client.api import Client
from stoker.framework.cli.local import LocalCluster, LocalSpec

ROUNDS = 7
POLL_INTERVAL_S = 0.05
LOAD_TIMEOUT_S = 300


@dataclass(frozen=True, slots=True)
class Result:
    """One line of the report: ours beside the peer's, in `unit`, and the median ratio of the rounds."""

    what: str
    peer: str
    ours: float
    theirs: float
    unit: str
    ratio: float
    ratio_min: float
    ratio_max: float
    bar: str


def compare(
    what: str,
    *,
    peer: str,
    unit: str,
    bar: str,
    ours: Callable[[], float],
    theirs: Callable[[], float],
    rounds: int = ROUNDS,
) -> Result:
    """Run both alternately; each call returns a rate in `unit` (more is better). One unmeasured round first."""
    ours(), theirs()
    pairs = [(ours(), theirs()) if i % 2 == 0 else tuple(reversed((theirs(), ours()))) for i in range(rounds)]
    ratios = [a / b for a, b in pairs]
    return Result(
        what,
        peer,
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
        unit,
        statistics.median(ratios),
        min(ratios),
        max(ratios),
        bar,
    )


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


@contextlib.contextmanager
def cluster(*, agents: int = 1, mem_bytes: int) -> Iterator[Client]:
    """A real local cluster with all executors running."""
    with tempfile.TemporaryDirectory(prefix="stoker-bench-") as state:
        local = LocalCluster(LocalSpec(agents=agents, mem_bytes=mem_bytes, port=0, state=pathlib.Path(state)))
        local.start()
        try:
            client = Client(local.url)
            wait_for(lambda: client.fleet()["running"] == agents)
            yield client
        finally:
            local.stop()


def add_and_load(client: Client, name: str, source: str) -> float:
    """Add and load a dataset; return the seconds that the load took (listing not counted)."""
    client.create_dataset(name, source)
    wait_for(lambda: client.dataset_info(name)["state"] != "LISTING")
    started = time.perf_counter()
    job = client.create_job("load", name)
    wait_for(lambda: client.job(job["id"])["state"] not in ("PENDING", "RUNNING"))
    took = time.perf_counter() - started
    final = client.job(job["id"])
    if final["state"] != "SUCCEEDED":
        raise SystemExit(f"the load of {name} {final['state']}: {final['message']}")
    return took


def wait_for(condition: Callable[[], bool], timeout_s: float = LOAD_TIMEOUT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"waited {timeout_s} s in vain")
        time.sleep(POLL_INTERVAL_S)

"""A cluster that has all it wants leaves its master alone: nothing is asked of it but, now and then, what its tasks are.

STOKER_IDLE_SECONDS makes the silence longer that is listened to: `make soak`.
"""

from __future__ import annotations

import os
import pathlib
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import psutil
import pytest

from stoker.client.api import Client
from stoker.framework.cli.local import agent_addresses
from support.embedded import EmbeddedProcess
from support.listening_proxies import ListeningProxy
from support.schedulers import SchedulerProcess, scheduler_process
from support.waiting import wait_until

pytestmark = pytest.mark.integration

IDLE_S = float(os.environ.get("STOKER_IDLE_SECONDS", "10"))
RECONCILE_S = max(2.0, IDLE_S / 5)
LATE_S = 1.0  # a tick, and a busy machine
INSTANCES = 2


class Cluster(NamedTuple):
    proxy: ListeningProxy
    scheduler: SchedulerProcess
    client: Client


@pytest.fixture
def cluster(tmp_path: pathlib.Path) -> Iterator[Cluster]:
    hostnames = ",".join(agent_addresses(20 + INSTANCES + 1, os.getpid())[20:])
    agents = ("--agents", str(INSTANCES + 1), "--cpus", "2", "--mem", "1GiB", "--hostnames", hostnames)
    with (
        EmbeddedProcess(tmp_path / "mesos", *agents) as mesos,
        ListeningProxy(mesos.address) as proxy,
    ):
        config: dict[str, Any] = {
            "master": proxy.address,
            "journal": f"file:{tmp_path / 'journal'}",
            "instances": INSTANCES,
            "mem_bytes": 32 << 20,
            "disk_bytes": 64 << 20,
            "role": "cache",
            "settings": {
                "reconcile_interval_ms": int(RECONCILE_S * 1000),
                "revive_interval_ms_min": 500,
            },
        }
        with scheduler_process(config, tmp_path / "scheduler.log") as scheduler:
            scheduler.wait_leading()
            client = Client(scheduler.url)
            wait_until(lambda: client.fleet()["running"] == INSTANCES, "the wanted fleet")
            wait_until(lambda: client.fleet()["volumes"]["ready"] == INSTANCES, "its volumes")
            yield Cluster(proxy, scheduler, client)


def cpu_s(process: psutil.Process) -> float:
    """Return the processor time that a process and its children have taken."""
    times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
    return sum(t.user + t.system for t in times)


def test_nothing_is_asked_of_the_master_but_reconciliation_on_its_schedule(cluster: Cluster) -> None:
    calls = cluster.proxy.calls
    # The last word on offers; then one reconciliation, from which on the schedule is known.
    wait_until(lambda: "SUPPRESS" in cluster.proxy.kinds(), "SUPPRESS")
    begin = len(calls)
    wait_until(
        lambda: "RECONCILE" in cluster.proxy.kinds(begin), "the first reconciliation", 60 + 2 * RECONCILE_S
    )
    begin = cluster.proxy.kinds(begin).index("RECONCILE") + begin
    processes = [
        psutil.Process(cluster.scheduler.child.pid),
        *(psutil.Process(executor["pid"]) for executor in cluster.client.executors()),
    ]
    used_s, begun_s = [cpu_s(process) for process in processes], time.monotonic()
    end_s = calls[begin].at_s + IDLE_S
    wait_until(lambda: time.monotonic() >= end_s, "the end of the silence", IDLE_S + 90)
    heard, now_s = calls[begin:], time.monotonic()
    shares = [
        (cpu_s(process) - before) / (now_s - begun_s)
        for process, before in zip(processes, used_s, strict=True)
    ]
    print(
        f"\nidle for {now_s - begun_s:.0f} s: {len(heard) - 1} calls, one in {RECONCILE_S:g} s; of a processor the "
        f"scheduler takes {shares[0]:.2%}, executors {', '.join(f'{share:.2%}' for share in shares[1:])}"
    )
    assert {call.kind for call in heard} == {"RECONCILE"}
    assert not any(call.body["reconcile"]["tasks"] for call in heard), "implicit: of all tasks at once"
    gaps = [after.at_s - before.at_s for before, after in zip(heard, heard[1:], strict=False)]
    assert gaps and all(gap >= RECONCILE_S - LATE_S / 2 for gap in gaps), gaps
    assert len(heard) >= int(IDLE_S / (RECONCILE_S + LATE_S)), gaps

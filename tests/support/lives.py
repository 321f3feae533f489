"""A cluster that lives on while its parts die: a Mesos with faults, a scheduler on its journal, executors with volumes, data.

`Life.check` says what must hold after each event: the wanted fleet, all bytes, nothing read of the under store again, no task
and no process without an owner, nothing reserved that the catalog does not know.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import signal
import time
from typing import Any

import psutil

from stoker.client.api import Client
from stoker.framework.cli.local import agent_addresses
from support.embedded import EmbeddedProcess, Event, executor_pids, request
from support.files import digests
from support.ports import fixed_port
from support.schedulers import SchedulerProcess
from support.stores import HttpStore
from support.waiting import wait_until

MIB = 2**20
INSTANCES, AGENTS = 2, 3
DISK_BYTES = 64 * MIB
ROLE = "cache"
DATASET = "d"


class Life:
    """Two executors with volumes on two of three agents, and a dataset in their SSD tier."""

    def __init__(
        self,
        directory: pathlib.Path,
        *,
        mesos_options: tuple[str, ...] = (),
        first_address: int = 0,
        master: str = "",
    ) -> None:
        self.work_dir = directory / "mesos"
        self.hostnames = agent_addresses(first_address + AGENTS, os.getpid())[first_address:]
        options = ("--agents", str(AGENTS), "--cpus", "2", "--mem", "1GiB", "--disk", "1GiB")
        times = ("--agent-ping-timeout", "0.4", "--registration-backoff", "0.05")
        # As docs/mesos.rst asks for; a busy machine needs it.
        times += ("--executor-reregistration-timeout", "15")
        names = ("--hostnames", ",".join(self.hostnames))
        self.mesos = EmbeddedProcess(self.work_dir, *options, *names, *times, "--faults", *mesos_options)
        self.address = self.mesos.address
        self.instances = INSTANCES
        self.log = directory / "scheduler.log"
        config: dict[str, Any] = {
            "port": fixed_port(),
            "master": master or self.mesos.address,
            "journal": f"file:{directory / 'journal'}",
            "instances": INSTANCES,
            "mem_bytes": 32 * MIB,
            "disk_bytes": DISK_BYTES,
            "role": ROLE,
            "allow_sources": [""],
            "failover_timeout_ms": 600_000,
            "settings": {
                "tick_ms": 200,
                "heartbeat_timeout_ms": 30_000,
                "revive_interval_ms_min": 500,
                "unreachable_delay_ms": 300_000,
                "inverse_decline_ms": 500,
                "inverse_accept_ms": 500,
                "maintenance_forget_ms": 3_000,
            },
        }
        self.scheduler = SchedulerProcess(config, self.log)
        self.scheduler.wait_leading()
        self.client = Client(self.scheduler.url)
        self.wait_running()

    def load(self, store: HttpStore, root: pathlib.Path) -> None:
        self.root, self.store, client = root, store, self.client
        client.create_dataset(DATASET, store.url, tier="ssd")
        wait_until(lambda: client.dataset_info(DATASET)["state"] == "READY", "the listing")
        job = client.create_job("load", DATASET)
        wait_until(lambda: client.job(job["id"])["state"] == "SUCCEEDED", "the load")
        store.forget_requests()

    def close(self) -> None:
        self.scheduler.stop(signal.SIGKILL)
        self.mesos.stop()

    # --- what happens to it

    def fault(self, name: str, *arguments: str) -> None:
        reply = self.mesos.fault(name, *arguments)
        assert reply.status == 200, reply

    def kill_scheduler(self) -> None:
        """End the scheduler as a crash does."""
        self.scheduler.stop(signal.SIGKILL)

    def start_scheduler(self) -> None:
        """Start another one on the same journal, at the same address."""
        self.scheduler = SchedulerProcess(self.scheduler.config, self.log)
        self.scheduler.wait_leading()

    def fail_over(self) -> None:
        self.kill_scheduler()
        self.start_scheduler()

    def grow(self, instances: int) -> None:
        """Want more executors from now on."""
        self.client.set_fleet(instances=instances)
        self.instances = instances

    def operate(self, kind: str, body: Event | None = None) -> str:
        """Make a call of Mesos' operator; return the answer's text."""
        call = {"type": kind} if body is None else {"type": kind, kind.lower(): body}
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        reply = request(self.address, "POST", "/api/v1", json.dumps(call), headers)
        assert reply.status in (200, 202), reply
        return reply.text

    def plan_maintenance(self, *hostnames: str) -> None:
        """Plan a maintenance of the machines that begins in ten minutes; of none: take back what was planned."""
        window = {
            "machine_ids": [self.machine(hostname) for hostname in hostnames],
            "unavailability": {
                "start": {"nanoseconds": int((time.time() + 600) * 1_000_000_000)},
                "duration": {"nanoseconds": 600_000_000_000},
            },
        }
        schedule = {"windows": [window]} if hostnames else {}
        self.operate("UPDATE_MAINTENANCE_SCHEDULE", {"schedule": schedule})

    def machine(self, hostname: str) -> Event:
        (agent,) = [agent for agent in self.state()["slaves"] if agent["hostname"] == hostname]
        return {"hostname": hostname, "ip": str(agent["pid"].rpartition("@")[2].rpartition(":")[0])}

    # --- what is seen of it

    def leader(self, masters: int) -> str:
        """Return the address of the one of several masters that leads, "" while none does."""
        for address in (self.mesos.master_address(number) for number in range(1, masters + 1)):
            with contextlib.suppress(OSError):
                if request(address, "GET", "/state", "", {}).status == 200:
                    return address
        return ""

    def number_of(self, executor: dict[str, Any]) -> str:
        """Return what faults call an executor's agent: agents are started in the order of their hostnames."""
        return str(1 + self.hostnames.index(executor["hostname"]))

    def running(self) -> dict[int, dict[str, Any]]:
        """Return the executors that run and have told of themselves, by slot."""
        return {e["slot"]: e for e in self.client.executors() if e["state"] == "RUNNING" and e["pid"]}

    def wait_running(self) -> None:
        wait_until(lambda: len(self.running()) == self.instances, "the wanted fleet")

    def executor(self, slot: int) -> dict[str, Any]:
        return next(e for e in self.client.executors() if e["slot"] == slot)

    def launches(self) -> dict[int, tuple[int, int]]:
        """Return launch and pid by slot: the same for as long as nobody is launched again."""
        return {slot: (e["launch"], e["pid"]) for slot, e in self.running().items()}

    def wait_launches(self, expected: dict[int, tuple[int, int]]) -> None:
        wait_until(lambda: self.launches() == expected, "the same executors to be known again")

    def state(self) -> Any:
        return json.loads(request(self.address, "GET", "/state", "", {}).text)

    def frameworks(self) -> list[Event]:
        state = self.state()
        return [*state["frameworks"], *state["completed_frameworks"]]

    def tasks(self, *kinds: str) -> list[str]:
        """Return the tasks that the master knows, those of some kinds."""
        return sorted(
            task["id"]
            for framework in self.frameworks()
            for kind in kinds
            for task in framework.get(kind, ())
        )

    def all_tasks(self) -> list[str]:
        return self.tasks("tasks", "completed_tasks", "unreachable_tasks")

    def reserved(self) -> dict[str, int]:
        """Return the MiB of disk that are reserved for anybody, by agent."""
        return {
            agent["hostname"]: sum(int(row.get("disk", 0)) for row in agent["reserved_resources"].values())
            for agent in self.state()["slaves"]
            if agent["reserved_resources"]
        }

    def volumes(self) -> list[pathlib.Path]:
        """Return the volumes' directories, wherever the agents have them."""
        return sorted(self.work_dir.glob(f"agent*/volumes/roles/{ROLE}/*"))

    def reads(self) -> list[str]:
        """Return what was read of the under store since the load."""
        return [str(row["path"]) for row in self.store.requests() if row["method"] == "GET"]

    def check(self) -> None:
        """After an event: the fleet, the data, and nothing that is nobody's."""
        self.check_data()
        self._check_no_orphans()
        self._check_reservations()

    def check_data(self) -> None:
        self.wait_running()
        wait_until(lambda: self.client.dataset_info(DATASET)["cached_ratio"] == 1.0, "all to be cached")
        dataset = self.client.dataset(DATASET)
        got = {path: hashlib.sha256(dataset.read(path)).hexdigest() for path in dataset.paths}
        assert got == digests(self.root)
        assert self.reads() == [], f"what a volume held was read again; executors: {self.running()}"

    def _check_no_orphans(self) -> None:
        wait_until(
            lambda: len(self.tasks("tasks")) == self.instances and not self.tasks("unreachable_tasks"),
            "one task an executor, and no other",
        )
        assert [f["id"] for f in self.frameworks()] == [self.client.leader()["framework_id"]]
        keepers = {e["pid"] for e in self.running().values()}

        def owned() -> bool:
            return all(_has_one_of(pid, keepers) for pid in executor_pids(self.work_dir))

        wait_until(owned, "every process below the agents to be an executor's")

    def _check_reservations(self) -> None:
        """What agents have reserved, and on disk, are the catalog's volumes."""

        def known() -> int:
            volumes = self.client.fleet()["volumes"]
            return 0 if volumes["planned"] or volumes["doomed"] else volumes["ready"] + volumes["released"]

        wait_until(lambda: known() >= self.instances, "volumes of all executors")
        wait_until(
            lambda: sum(self.reserved().values()) == known() * DISK_BYTES // MIB,
            "reservations for the catalog's volumes and for nothing else",
        )
        assert len(self.volumes()) == known()


def _has_one_of(pid: int, wanted: set[int]) -> bool:
    """Whether a process is, or descends from, one of the wanted; or has ended meanwhile."""
    try:
        process = psutil.Process(pid)
        return bool({pid, *(parent.pid for parent in process.parents())} & wanted)
    except psutil.NoSuchProcess:
        return True

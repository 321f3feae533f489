"""What the benchmarks of the journal share: a ZooKeeper ensemble that writes to its disk, and schedulers upon it."""

from __future__ import annotations

import contextlib
import http.client
import json
import pathlib
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

sys.path.append(str(pathlib.Path(__file__).parents[1] / "tests"))

from support.embedded import EmbeddedProcess  # noqa: E402
from support.schedulers import SchedulerProcess  # noqa: E402
from support.zookeeper import WHY_NOT, Ensemble  # noqa: E402

TIMEOUT_S = 120
POLL_S = 0.002
MEM_BYTES = 2**30


def is_here() -> bool:
    """Say whether ZooKeeper is installed, and say so to whoever reads if not."""
    if WHY_NOT:
        print(f"{WHY_NOT}: its rows are left out")
    return not WHY_NOT


@contextlib.contextmanager
def ensemble() -> Iterator[Ensemble]:
    """Three servers, as in earnest: each waits for its disk at each write."""
    with tempfile.TemporaryDirectory(prefix="stoker-bench-zookeeper-") as directory:
        with Ensemble(pathlib.Path(directory), heap_mb=512, is_synced=True) as running:
            yield running


class Schedulers:
    """Schedulers that share a journal, on an embedded Mesos without agents; a context manager."""

    def __init__(self, journal: str, **settings: Any) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="stoker-bench-schedulers-")
        root = pathlib.Path(self._directory.name)
        self._log = root / "log"
        self._mesos = EmbeddedProcess(root / "mesos", "--agents", "1")
        self._config = {
            "master": self._mesos.address,
            "journal": journal,
            "log_level": "warning",
            "settings": settings,
        }
        self._count = 0
        self.running: list[SchedulerProcess] = []

    def start(self) -> SchedulerProcess:
        """Start one more; return it once its API listens."""
        self._count += 1
        scratch = f"{self._directory.name}/scratch{self._count}"
        process = SchedulerProcess(self._config | {"scratch_dir": scratch}, self._log)
        self.running.append(process)
        assert process.url
        return process

    def stop(self, process: SchedulerProcess) -> None:
        self.running.remove(process)
        process.stop()

    def __enter__(self) -> Schedulers:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.running:
            process.stop(signal.SIGKILL)
        self._mesos.stop()
        self._directory.cleanup()


def state_of(process: SchedulerProcess) -> dict[str, Any]:
    with contextlib.suppress(OSError, http.client.HTTPException):
        status, body = process.api.call("GET", "/v1/leader")
        return body if status == 200 else {}
    return {}


def wait_state(process: SchedulerProcess, state: str) -> None:
    """Wait until it leads, or follows, has caught up, and stands for election."""
    deadline = time.monotonic() + TIMEOUT_S
    while (said := state_of(process)).get("state") != state or process.url not in said["schedulers"]:
        if time.monotonic() > deadline:
            raise SystemExit(f"waited {TIMEOUT_S} s for {state}: {said} {process.said()[-2000:]}")
        time.sleep(POLL_S)


def first_write(process: SchedulerProcess, mem_bytes: int) -> float:
    """Write until it is answered; return when that was, on time.monotonic's clock."""
    deadline = time.monotonic() + TIMEOUT_S
    body = json.dumps({"instances": 0, "mem_bytes": mem_bytes})
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection(process.api.host, process.api.port, timeout=TIMEOUT_S)
            connection.request("PUT", "/v1/fleet", body, {"Content-Type": "application/json"})
            if connection.getresponse().status == 200:
                return time.monotonic()
        time.sleep(POLL_S)
    raise SystemExit(f"no write was answered: {process.said()[-2000:]}")

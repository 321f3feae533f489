"""A real keeper without Mesos: `python keeper_process.py`. Its environment is an executor's; statuses go to stdout as lines.

Lines on stdin are what an agent would say: `kill`, `shutdown`, `message BASE64`.
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import os  # noqa: E402
import sys  # noqa: E402
from collections.abc import Mapping  # noqa: E402
from typing import Any  # noqa: E402

import gevent  # noqa: E402
from gevent.fileobject import FileObject  # noqa: E402

from stoker.executor.config import load  # noqa: E402
from stoker.executor.disk import Disk  # noqa: E402
from stoker.executor.keeper import LAUNCH_TIMEOUT_S, PATIENCE_MS, Keeper  # noqa: E402
from stoker.executor.process import start_logging  # noqa: E402


class LineDriver:
    """Launches the task at once; tells statuses by lines."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper

    def start(self) -> None:
        gevent.spawn(self._run)

    def stop(self) -> None:
        pass

    def sendStatusUpdate(self, status: Mapping[str, Any]) -> None:
        print(status["state"], status.get("message", ""), flush=True)

    def flush(self, timeout_ms: int) -> bool:
        return True

    def _run(self) -> None:
        task_id = os.environ["STOKER_TASK"]
        megabytes = float(os.environ.get("TEST_MESOS_MEM_MB", "0"))
        resources = [{"name": "mem", "type": "SCALAR", "scalar": {"value": megabytes}}] if megabytes else []
        self._keeper.registered(self, {"resources": resources}, {}, {"hostname": "test"})
        if "TEST_LAUNCH_TIMEOUT_S" not in os.environ:  # else there is no task
            self._keeper.launchTask(self, {"task_id": {"value": task_id}})
        for line in FileObject(sys.stdin.buffer, "rb"):
            if line.strip() == b"kill":
                self._keeper.killTask(self, {"value": task_id})
            elif line.strip() == b"shutdown":
                self._keeper.shutdown(self)
            elif line.startswith(b"message "):
                self._keeper.frameworkMessage(self, line.split()[1].decode())


def _make_disk() -> Disk:
    faults = os.environ.get("TEST_DISK_FAULTS", "")  # a file that says which calls of the SSD tier fail
    hangs = os.environ.get("TEST_DISK_HANGS", "")  # a file while whose lock is taken they hang
    if not faults and not hangs:
        return Disk()
    sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    from support.block_disks import FailingDisk, HangingDisk

    return FailingDisk(faults) if faults else HangingDisk(hangs)


if __name__ == "__main__":
    start_logging("keeper")
    patience_s = float(os.environ.get("TEST_LAUNCH_TIMEOUT_S", LAUNCH_TIMEOUT_S))
    silence = os.environ.get("TEST_CHILD_PATIENCE_MS", "")  # with children that do not answer
    code = Keeper(
        load(os.environ),
        LineDriver,
        _make_disk,
        launch_timeout_s=patience_s,
        patience_ms=dict.fromkeys(PATIENCE_MS, int(silence)) if silence else PATIENCE_MS,
    ).run()
    sys.stdout.flush()
    os._exit(code)

"""A scheduler driver at work between a scripted master and a recorder, for tests of it."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from stoker.mesos.scheduler_driver import SchedulerDriver, Timings
from support.fake_mesos import FakeMesos, Recorder, Stream, subscribed
from support.waiting import DEADLINE_S

FRAMEWORK = {
    "user": "root",
    "name": "stoker",
    "roles": ["cache"],
    "checkpoint": True,
    "capabilities": [{"type": "PARTITION_AWARE"}, {"type": "MULTI_ROLE"}],
}
QUICK = Timings(retry_first_ms=20, retry_ms_max=80)
LONG_MS = 10 * round(DEADLINE_S * 1000)  # what lasts so long was waited for in vain
UUID = base64.b64encode(bytes(range(16))).decode()


@contextmanager
def driving(
    master: FakeMesos | str, recorder: Recorder | None = None, *, framework: Any = None, **options: Any
) -> Iterator[SchedulerDriver]:
    """Run a driver for a while; afterwards its thread must end."""
    options.setdefault("timings", QUICK)
    address = master if isinstance(master, str) else master.address
    driver = SchedulerDriver(recorder or Recorder(), framework or FRAMEWORK, address, **options)
    driver.start()
    try:
        yield driver
    finally:
        assert_ends(driver)


def assert_ends(driver: SchedulerDriver) -> None:
    """Stop the driver; whatever it waits for, its thread must end."""
    driver.stop()
    thread = driver._io_thread
    assert thread is not None
    thread.join(DEADLINE_S)
    assert not thread.is_alive(), "the driver's thread outlives stop()"


def subscribe(master: FakeMesos, recorder: Recorder, *, heartbeat_s: float = 15.0, count: int = 1) -> Stream:
    """Take the driver in, for the `count`th time."""
    stream = master.wait_stream(count)
    stream.send(subscribed(heartbeat_s=heartbeat_s))
    recorder.wait("registered" if count == 1 else "reregistered", max(1, count - 1))
    return stream


def update(**fields: Any) -> dict[str, Any]:
    """Return an UPDATE event of task `t`."""
    status = {"task_id": {"value": "t"}, "agent_id": {"value": "S1"}, "state": "TASK_RUNNING", **fields}
    return {"type": "UPDATE", "update": {"status": status}}

"""An executor driver at work between a scripted agent and a recorder, for tests of it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from stoker.mesos.detector import parse_address
from stoker.mesos.executor_driver import ExecutorDriver
from stoker.mesos.executor_settings import ExecutorSettings
from support.fake_mesos import FakeMesos, Recorder, Stream, executor_subscribed
from support.waiting import DEADLINE_S

ENVIRONMENT = {
    "MESOS_AGENT_ENDPOINT": "127.0.0.1:5051",
    "MESOS_FRAMEWORK_ID": "F1",
    "MESOS_EXECUTOR_ID": "E1",
    "MESOS_CHECKPOINT": "1",
    "MESOS_RECOVERY_TIMEOUT": "15mins",
    "MESOS_SUBSCRIPTION_BACKOFF_MAX": "2secs",
    "MESOS_EXECUTOR_SHUTDOWN_GRACE_PERIOD": "5secs",
}
FLUSH_MS = round(DEADLINE_S * 1000)
TASK = {"task_id": {"value": "t1"}, "name": "t1", "agent_id": {"value": "S1"}}
OTHER = {"task_id": {"value": "t2"}, "name": "t2", "agent_id": {"value": "S1"}}


@contextmanager
def driving(
    agent: FakeMesos,
    recorder: Recorder,
    *,
    end_process: Callable[[int], object] | None = None,
    uniform: Callable[[float, float], float] = random.uniform,
    **settings: Any,
) -> Iterator[ExecutorDriver]:
    """Run a driver for a while; afterwards its threads must end. A shutdown has time, unless `settings` say else."""
    known: dict[str, Any] = {"framework_id": "F1", "executor_id": "E1", "checkpoint": True}
    known |= {"agent": parse_address(agent.address), "shutdown_grace_ms": 10 * FLUSH_MS, **settings}
    driver = ExecutorDriver(
        recorder, ExecutorSettings(**known), uniform=uniform, end_process=end_process or pytest.fail
    )
    driver.start()
    try:
        yield driver
    finally:
        driver.stop()
        for thread in driver._threads:
            thread.join(DEADLINE_S)
            assert not thread.is_alive(), f"{thread.name} outlives stop()"


def subscribe(agent: FakeMesos, recorder: Recorder, *, count: int = 1) -> Stream:
    """Take the driver in, for the `count`th time."""
    stream = agent.wait_stream(count)
    stream.send(executor_subscribed())
    recorder.wait("registered" if count == 1 else "reregistered", max(1, count - 1))
    return stream


def launch(stream: Stream, *tasks: dict[str, Any]) -> None:
    stream.send(*({"type": "LAUNCH", "launch": {"task": task}} for task in tasks))


def status(state: str, task: dict[str, Any] = TASK, **fields: Any) -> dict[str, Any]:
    """Return what an executor tells of a task."""
    return {"task_id": task["task_id"], "state": state, **fields}


def acknowledge(stream: Stream, sent: dict[str, Any]) -> None:
    body = {"task_id": sent["task_id"], "uuid": sent["uuid"]}
    stream.send({"type": "ACKNOWLEDGED", "acknowledged": body})


def sent_updates(agent: FakeMesos, count: int) -> list[dict[str, Any]]:
    """Return the status updates that the agent got once there are `count`."""
    return [call.body["update"]["status"] for call in agent.wait_calls("UPDATE", count)]

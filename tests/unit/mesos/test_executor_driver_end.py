"""The end of an executor: in time, with its last words, and of nobody else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from stoker.mesos.executor_driver import UPDATES_MAX, ExecutorDriver
from support.executor_drivers import (
    ENVIRONMENT,
    FLUSH_MS,
    OTHER,
    TASK,
    acknowledge,
    driving,
    launch,
    sent_updates,
    status,
    subscribe,
)
from support.fake_mesos import FakeMesos, Hold, Recorder, Reply, executor_subscribed
from support.waiting import DEADLINE_S

# --- the end


def test_an_agent_that_does_not_come_back_in_time_means_shutdown(recorder: Recorder) -> None:
    with FakeMesos(stream_ids=False) as agent, driving(agent, recorder, recovery_timeout_ms=1_000) as driver:
        subscribe(agent, recorder)
        began_s = time.monotonic()
        agent.close()
        recorder.wait("shutdown")
        assert time.monotonic() - began_s >= 0.99
        driver.join()
        assert driver.aborted
    assert recorder.names() == ["registered", "disconnected", "shutdown"]


def test_the_recovery_time_begins_anew_with_each_loss(agent: FakeMesos, recorder: Recorder) -> None:
    """Three times away, each for less than the time, together for longer."""
    with driving(agent, recorder, recovery_timeout_ms=4_000) as driver:
        for count in range(1, 4):
            subscribe(agent, recorder, count=count).cut()
            recorder.wait("disconnected", count)
            time.sleep(1.4)
        subscribe(agent, recorder, count=4)
        assert driver.connected
    assert recorder.count("shutdown") == 0


def test_without_checkpointing_a_lost_agent_means_shutdown_at_once(
    agent: FakeMesos, recorder: Recorder
) -> None:
    with driving(agent, recorder, checkpoint=False) as driver:
        subscribe(agent, recorder).cut()
        recorder.wait("shutdown")
        driver.join()
        assert driver.aborted
    assert recorder.names() == ["registered", "disconnected", "shutdown"]
    assert len(agent.of_type("SUBSCRIBE")) == 1


@pytest.mark.parametrize("is_registered", [True, False])
def test_shutdown_says_last_words_and_waits_for_their_acknowledgement(
    agent: FakeMesos, recorder: Recorder, is_registered: bool
) -> None:
    recorder.on("shutdown", lambda driver: driver.sendStatusUpdate(status("TASK_KILLED")))
    with driving(agent, recorder) as driver:
        stream = subscribe(agent, recorder) if is_registered else agent.wait_stream()
        stream.send({"type": "SHUTDOWN"}, {"type": "LAUNCH", "launch": {"task": TASK}}, {"type": "SHUTDOWN"})
        recorder.wait("shutdown")
        if is_registered:
            (killed,) = sent_updates(agent, 1)
            assert killed["state"] == "TASK_KILLED" and not driver.aborted
            acknowledge(stream, killed)
        driver.join()
        assert driver.aborted
    assert recorder.names() == (["registered"] if is_registered else []) + ["shutdown"], (
        "nothing comes behind it"
    )
    assert len(agent.of_type("SUBSCRIBE")) == 1


def test_acknowledgements_come_in_while_shutdown_runs(agent: FakeMesos, recorder: Recorder) -> None:
    flushed: list[bool] = []

    def shutdown(driver: ExecutorDriver) -> None:
        driver.sendStatusUpdate(status("TASK_KILLED"))
        flushed.append(driver.flush(FLUSH_MS))

    recorder.on("shutdown", shutdown)
    with driving(agent, recorder) as driver:
        stream = subscribe(agent, recorder)
        stream.send({"type": "SHUTDOWN"})
        acknowledge(stream, sent_updates(agent, 1)[0])
        driver.join()
    assert flushed == [True]


def test_words_that_nobody_acknowledges_are_not_waited_for_beyond_the_grace(
    agent: FakeMesos, recorder: Recorder
) -> None:
    recorder.on("shutdown", lambda driver: driver.sendStatusUpdate(status("TASK_KILLED")))
    ends: list[int] = []
    with driving(agent, recorder, shutdown_grace_ms=5_000, end_process=ends.append) as driver:
        subscribe(agent, recorder).send({"type": "SHUTDOWN"})
        driver.join()
        assert driver.unacknowledged_count == 1
    assert ends == [], "it was over before the agent would have ended it"


def test_a_shutdown_that_takes_longer_than_its_grace_ends_the_process(
    agent: FakeMesos, recorder: Recorder
) -> None:
    ends: list[int] = []
    released = threading.Event()

    def end_process(code: int) -> None:
        ends.append(code)
        released.set()

    recorder.on("shutdown", lambda driver: released.wait(DEADLINE_S))
    with driving(agent, recorder, shutdown_grace_ms=200, end_process=end_process) as driver:
        subscribe(agent, recorder).send({"type": "SHUTDOWN"})
        assert released.wait(DEADLINE_S)
        driver.join()
    assert ends == [1]


def test_a_shutdown_that_raises_still_ends_the_driver(agent: FakeMesos, recorder: Recorder) -> None:
    recorder.on("shutdown", lambda driver: {}["missing"])
    with driving(agent, recorder) as driver:
        subscribe(agent, recorder).send({"type": "SHUTDOWN"})
        driver.join()
        assert driver.aborted and driver.callback_failure_count == 1


@pytest.mark.parametrize("code", [400, 401, 403])
def test_an_agent_that_knows_us_no_more_is_not_asked_again(
    agent: FakeMesos, recorder: Recorder, code: int
) -> None:
    agent.answer_all_subscribes(Reply(code, "Executor cannot be found"))
    with driving(agent, recorder) as driver:
        (message,) = recorder.wait("error")
        assert "Executor cannot be found" in message
        driver.join()
        assert driver.aborted
    assert len(agent.calls) == 1


def test_an_error_event_is_final_and_told_once(agent: FakeMesos, recorder: Recorder) -> None:
    with driving(agent, recorder) as driver:
        subscribe(agent, recorder).send({"type": "ERROR", "error": {"message": "no"}}, {"type": "HEARTBEAT"})
        assert recorder.wait("error") == ("no",)
        driver.join()
    assert recorder.names() == ["registered", "error"]


def test_stop_ends_pauses_and_waits_at_once(agent: FakeMesos, recorder: Recorder) -> None:
    with Hold() as hold:
        agent.answer_subscribes(Reply(503, before=hold))
        with driving(agent, recorder) as driver:
            agent.wait_calls("SUBSCRIBE")
            driver.abort()
            driver.join()
            assert not driver.flush(10) or driver.unacknowledged_count == 0
    assert recorder.names() == []


# --- a process of its own


CHILD = """
{patch}
import os, sys, threading
from stoker.mesos.executor_driver import ExecutorDriver, read_settings
class Executor:
    def registered(self, driver, *args): pass
    def reregistered(self, driver, *args): pass
    def disconnected(self, driver): pass
    def launchTask(self, driver, task):
        for state in ("TASK_STARTING", "TASK_RUNNING"):
            driver.sendStatusUpdate({{"task_id": task["task_id"], "state": state}})
    def killTask(self, driver, task_id):
        driver.sendStatusUpdate({{"task_id": task_id, "state": "TASK_KILLED"}})
    def shutdown(self, driver):
        {shutdown}
driver = ExecutorDriver(Executor(), read_settings(os.environ))
driver.run()
print("ended")
"""


def start_child(
    agent: FakeMesos, *, is_patched: bool, grace: str = "5mins", shutdown: str = "pass"
) -> subprocess.Popen[str]:
    patch = "from gevent import monkey; monkey.patch_all()" if is_patched else ""
    environment = {
        **ENVIRONMENT,
        "MESOS_AGENT_ENDPOINT": agent.address,
        "MESOS_EXECUTOR_SHUTDOWN_GRACE_PERIOD": grace,
    }
    return subprocess.Popen(
        [sys.executable, "-c", CHILD.format(patch=patch, shutdown=shutdown)],
        env={**environment, "PATH": os.environ["PATH"]},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("is_patched", [True, False], ids=["gevent", "threads"])
def test_a_whole_life_in_a_process_of_its_own(agent: FakeMesos, is_patched: bool) -> None:
    child = start_child(agent, is_patched=is_patched)
    try:
        stream = agent.wait_stream()
        stream.send(executor_subscribed())
        launch(stream, TASK)
        starting, running = sent_updates(agent, 2)
        acknowledge(stream, starting)
        stream.cut()
        again = agent.wait_stream(2)
        told = [
            update["status"]["state"] for update in again.call.body["subscribe"]["unacknowledged_updates"]
        ]
        assert told == ["TASK_RUNNING"]
        again.send(executor_subscribed())
        acknowledge(again, running)
        again.send({"type": "KILL", "kill": {"task_id": TASK["task_id"]}})
        killed = sent_updates(agent, 3)[2]
        assert killed["state"] == "TASK_KILLED"
        again.send({"type": "SHUTDOWN"})
        acknowledge(again, killed)
        out, err = child.communicate(timeout=DEADLINE_S)
        assert (child.returncode, out) == (0, "ended\n"), err
    finally:
        child.kill()
        child.communicate()


@pytest.mark.parametrize("is_patched", [True, False], ids=["gevent", "threads"])
def test_an_overdue_shutdown_ends_only_its_own_process(agent: FakeMesos, is_patched: bool) -> None:
    """pymesos sends SIGKILL to the whole process group, this test with it."""
    child = start_child(agent, is_patched=is_patched, grace="1secs", shutdown="threading.Event().wait(600)")
    try:
        stream = agent.wait_stream()
        stream.send(executor_subscribed(), {"type": "SHUTDOWN"})
        child.communicate(timeout=DEADLINE_S)
        assert child.returncode == 1 != -signal.SIGKILL
    finally:
        child.kill()
        child.communicate()


# --- threads that fail


def test_a_launch_that_fails_while_no_update_has_room_does_not_end_the_driver(
    agent: FakeMesos, recorder: Recorder
) -> None:
    recorder.on("launchTask", lambda driver, task: 1 / 0)
    with driving(agent, recorder) as driver:
        stream = subscribe(agent, recorder)
        for _ in range(UPDATES_MAX):
            driver.sendStatusUpdate(status("TASK_RUNNING"))
        launch(stream, OTHER)
        stream.send({"type": "KILL", "kill": {"task_id": OTHER["task_id"]}})
        recorder.wait("killTask")
        assert driver.connected and not driver.aborted
    assert "error" not in recorder.names()


def test_what_fails_in_a_thread_of_the_driver_is_told(agent: FakeMesos, recorder: Recorder) -> None:
    def uniform(low: float, high: float) -> float:
        raise RuntimeError("no chance today")

    with driving(agent, recorder, uniform=uniform) as driver:
        subscribe(agent, recorder).cut()
        (message,) = recorder.wait("error")
        assert "no chance today" in message
        driver.join()
        assert driver.aborted

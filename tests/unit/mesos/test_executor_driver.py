"""The executor driver against a scripted agent: nothing is lost over an agent's restart, and the end comes in time."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from stoker.mesos.detector import Address, parse_address
from stoker.mesos.errors import BadCall, Disconnected, HttpError, QueueFull
from stoker.mesos.executor_driver import UPDATE_BYTES_MAX, UPDATES_MAX, ExecutorDriver
from stoker.mesos.executor_settings import ExecutorSettings, parse_duration_ms, read_settings
from stoker.mesos.recordio import encode_record
from support.fake_mesos import HANG_UP, FakeMesos, Recorder, Reply, Stream, executor_subscribed

ENVIRONMENT = {
    "MESOS_AGENT_ENDPOINT": "127.0.0.1:5051",
    "MESOS_FRAMEWORK_ID": "F1",
    "MESOS_EXECUTOR_ID": "E1",
    "MESOS_CHECKPOINT": "1",
    "MESOS_RECOVERY_TIMEOUT": "15mins",
    "MESOS_SUBSCRIPTION_BACKOFF_MAX": "2secs",
    "MESOS_EXECUTOR_SHUTDOWN_GRACE_PERIOD": "5secs",
}
TASK = {"task_id": {"value": "t1"}, "name": "t1", "agent_id": {"value": "S1"}}
OTHER = {"task_id": {"value": "t2"}, "name": "t2", "agent_id": {"value": "S1"}}


@contextmanager
def driving(
    agent: FakeMesos,
    recorder: Recorder,
    *,
    end_process: Callable[[int], object] | None = None,
    **settings: Any,
) -> Iterator[ExecutorDriver]:
    """Run a driver for a while; afterwards its threads must end promptly."""
    known: dict[str, Any] = {"framework_id": "F1", "executor_id": "E1", "checkpoint": True}
    known |= {"agent": parse_address(agent.address), **settings}
    driver = ExecutorDriver(recorder, ExecutorSettings(**known), end_process=end_process or pytest.fail)
    driver.start()
    try:
        yield driver
    finally:
        driver.stop()
        for thread in driver._threads:
            thread.join(2)
            assert not thread.is_alive(), f"{thread.name} outlives stop()"


def subscribe(agent: FakeMesos, recorder: Recorder, *, count: int = 1) -> Stream:
    stream = agent.wait_stream(count)
    stream.send(executor_subscribed())
    recorder.wait("registered" if count == 1 else "reregistered", max(1, count - 1))
    return stream


def launch(stream: Stream, *tasks: dict[str, Any]) -> None:
    stream.send(*({"type": "LAUNCH", "launch": {"task": task}} for task in tasks))


def status(state: str, task: dict[str, Any] = TASK, **fields: Any) -> dict[str, Any]:
    return {"task_id": task["task_id"], "state": state, **fields}


def acknowledge(stream: Stream, sent: dict[str, Any]) -> None:
    body = {"task_id": sent["task_id"], "uuid": sent["uuid"]}
    stream.send({"type": "ACKNOWLEDGED", "acknowledged": body})


def sent_updates(agent: FakeMesos, count: int) -> list[dict[str, Any]]:
    return [call.body["update"]["status"] for call in agent.wait_calls("UPDATE", count)]


def wait_until(is_so: Callable[[], bool], deadline_s: float = 10) -> None:
    end_s = time.monotonic() + deadline_s
    while not is_so():
        assert time.monotonic() < end_s, "it did not come to be so"
        time.sleep(0.005)


@pytest.fixture
def agent() -> Iterator[FakeMesos]:
    with FakeMesos(stream_ids=False) as fake:
        yield fake


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


# --- the environment


def test_reads_what_an_agent_sets() -> None:
    assert read_settings(ENVIRONMENT) == ExecutorSettings(
        agent=Address("127.0.0.1", 5051),
        framework_id="F1",
        executor_id="E1",
        checkpoint=True,
        recovery_timeout_ms=900_000,
        retry_ms_max=2_000,
        shutdown_grace_ms=5_000,
        token=None,
    )
    token = read_settings({**ENVIRONMENT, "MESOS_EXECUTOR_AUTHENTICATION_TOKEN": "jwt"})
    assert token.token == "jwt"


@pytest.mark.parametrize(("value", "checkpoint"), [("1", True), ("0", False), (None, False), ("", False)])
def test_checkpoint_zero_means_no(value: str | None, checkpoint: bool) -> None:
    """Agents set "0"; pymesos takes that for yes, as any text."""
    environment = {name: text for name, text in ENVIRONMENT.items() if name != "MESOS_CHECKPOINT"}
    if value is not None:
        environment["MESOS_CHECKPOINT"] = value
    assert read_settings(environment).checkpoint is checkpoint


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(ValueError) as caught:
        read_settings({"MESOS_AGENT_ENDPOINT": "nonsense", "MESOS_RECOVERY_TIMEOUT": "15 parsecs"})
    text = str(caught.value)
    assert all(
        name in text
        for name in (
            "MESOS_AGENT_ENDPOINT",
            "MESOS_FRAMEWORK_ID",
            "MESOS_EXECUTOR_ID",
            "MESOS_RECOVERY_TIMEOUT",
        )
    )
    with pytest.raises(ValueError, match="no Mesos agent started this process"):
        read_settings({})


@pytest.mark.parametrize(
    ("text", "duration_ms"),
    [
        ("15mins", 900_000), ("2secs", 2_000), ("5secs", 5_000), ("1.5hrs", 5_400_000), ("250ms", 250), ("900us", 1),
        ("10ns", 0), ("2days", 172_800_000), ("1weeks", 604_800_000), (" 3secs ", 3_000),
    ],
)  # fmt: skip
def test_durations_are_read_as_mesos_writes_them(text: str, duration_ms: int) -> None:
    assert parse_duration_ms(text) == duration_ms


@pytest.mark.parametrize(
    "text", ["", "5", "secs", "-5secs", "5 secs", "5s", "5seconds", "1e3secs", "infsecs"]
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no duration"):
        parse_duration_ms(text)


# --- the ordinary life


def test_a_task_from_launch_to_kill(agent: FakeMesos, recorder: Recorder) -> None:
    with driving(agent, recorder) as driver:
        stream = subscribe(agent, recorder)
        executor, framework, info = recorder.wait("registered")
        assert (
            executor == {"executor_id": {"value": "E1"}}
            and framework["name"] == "f"
            and info["id"] == {"value": "S1"}
        )
        assert driver.connected
        launch(stream, TASK)
        assert recorder.wait("launchTask") == (TASK,)
        driver.sendStatusUpdate(status("TASK_STARTING"))
        driver.sendStatusUpdate(
            status("TASK_RUNNING", data="aGk=", uuid=base64.b64encode(bytes(16)).decode())
        )
        starting, running = sent_updates(agent, 2)
        stream.send({"type": "HEARTBEAT"}, {"type": "MESSAGE", "message": {"data": "aGk="}})
        assert recorder.wait("frameworkMessage") == ("aGk=",)
        driver.sendFrameworkMessage("eW8=")
        stream.send({"type": "KILL", "kill": {"task_id": TASK["task_id"], "kill_policy": {}}})
        assert recorder.wait("killTask") == (TASK["task_id"],)
        assert driver.unacknowledged_count == 2
        for update in (starting, running):
            acknowledge(stream, update)
        assert driver.flush(5_000)
        assert driver.unacknowledged_count == 0
    first = agent.calls[0]
    assert (first.path, first.headers["accept"]) == ("/api/v1/executor", "application/json")
    assert first.body == {
        "type": "SUBSCRIBE",
        "framework_id": {"value": "F1"},
        "executor_id": {"value": "E1"},
        "subscribe": {"unacknowledged_tasks": [], "unacknowledged_updates": []},
    }
    assert (starting["state"], running["state"]) == ("TASK_STARTING", "TASK_RUNNING")
    assert starting["source"] == "SOURCE_EXECUTOR" and starting["executor_id"] == {"value": "E1"}
    assert len(base64.b64decode(starting["uuid"])) == 16 and base64.b64decode(running["uuid"]) == bytes(16)
    assert abs(starting["timestamp"] - time.time()) < 60 and running["data"] == "aGk="
    (message,) = agent.of_type("MESSAGE")
    assert message.body["message"] == {"data": "eW8="}
    assert all("authorization" not in call.headers for call in agent.calls)


def test_a_task_group_comes_whole(agent: FakeMesos, recorder: Recorder) -> None:
    with driving(agent, recorder):
        stream = subscribe(agent, recorder)
        stream.send({"type": "LAUNCH_GROUP", "launch_group": {"task_group": {"tasks": [TASK, OTHER]}}})
        assert recorder.wait("launchTaskGroup") == ([TASK, OTHER],)


def test_the_token_goes_with_every_call(agent: FakeMesos, recorder: Recorder) -> None:
    with driving(agent, recorder, token="jwt") as driver:
        subscribe(agent, recorder)
        driver.sendStatusUpdate(status("TASK_RUNNING"))
        driver.sendFrameworkMessage("aGk=")
        agent.wait_calls("UPDATE")
    assert {call.headers.get("authorization") for call in agent.calls} == {"Bearer jwt"}


@pytest.mark.parametrize(
    "wrong",
    [{"state": "TASK_RUNNING"}, status("TASK_STAGING"), status("RUNNING"), {"task_id": {"value": "t"}}],
)
def test_updates_that_no_agent_takes_are_refused_at_once(
    agent: FakeMesos, recorder: Recorder, wrong: Any
) -> None:
    with driving(agent, recorder) as driver:
        with pytest.raises(ValueError):
            driver.sendStatusUpdate(wrong)
        for data in (b"bytes", float("nan"), "x" * UPDATE_BYTES_MAX):
            with pytest.raises(BadCall):
                driver.sendStatusUpdate(status("TASK_RUNNING", data=data))
        assert driver.unacknowledged_count == 0


def test_updates_are_bounded(agent: FakeMesos, recorder: Recorder) -> None:
    with driving(agent, recorder) as driver:
        for _ in range(UPDATES_MAX):
            driver.sendStatusUpdate(status("TASK_RUNNING"))
        with pytest.raises(QueueFull, match=str(UPDATES_MAX)):
            driver.sendStatusUpdate(status("TASK_RUNNING"))
        assert driver.unacknowledged_count == UPDATES_MAX


def test_messages_have_no_queue(agent: FakeMesos, recorder: Recorder) -> None:
    with driving(agent, recorder) as driver:
        with pytest.raises(Disconnected):
            driver.sendFrameworkMessage("aGk=")
        subscribe(agent, recorder)
        agent.replies["MESSAGE"] = Reply(400, "no")
        with pytest.raises(HttpError, match="HTTP 400: no"):
            driver.sendFrameworkMessage("aGk=")


# --- the agent goes and comes


def test_tasks_and_updates_are_said_again_until_they_are_acknowledged(
    agent: FakeMesos, recorder: Recorder
) -> None:
    """pymesos' list of updates is always empty: one that is sent while the agent restarts is lost for ever."""
    with driving(agent, recorder) as driver:
        stream = subscribe(agent, recorder)
        launch(stream, TASK, OTHER)
        recorder.wait("launchTask", 2)
        driver.sendStatusUpdate(status("TASK_STARTING"))
        (starting,) = sent_updates(agent, 1)
        acknowledge(stream, starting)
        assert driver.flush(5_000)
        driver.sendStatusUpdate(status("TASK_RUNNING"))
        running = sent_updates(agent, 2)[1]
        stream.cut()
        recorder.wait("disconnected")
        driver.sendStatusUpdate(status("TASK_FINISHED"))  # while nobody is there
        assert driver.unacknowledged_count == 2
        again = subscribe(agent, recorder, count=2)
        assert recorder.wait("reregistered")[0]["hostname"] == "agent.example"
        said = again.call.body["subscribe"]
        assert said["unacknowledged_tasks"] == [OTHER], (
            "the first acknowledged update of a task is proof of it"
        )
        told = [update["status"] for update in said["unacknowledged_updates"]]
        assert [update["state"] for update in told][:1] == ["TASK_RUNNING"] and told[0] == running
        for state in ("TASK_RUNNING", "TASK_FINISHED"):
            wait_until(
                lambda state=state: any(update["state"] == state for update in told_and_sent(again, agent))
            )
        finished = next(
            update for update in told_and_sent(again, agent) if update["state"] == "TASK_FINISHED"
        )
        for update in (running, finished):
            acknowledge(again, update)
        assert driver.flush(5_000)
        again.cut()
        third = subscribe(agent, recorder, count=3)
        assert third.call.body["subscribe"] == {"unacknowledged_tasks": [OTHER], "unacknowledged_updates": []}


def told_and_sent(stream: Stream, agent: FakeMesos) -> list[dict[str, Any]]:
    told = [update["status"] for update in stream.call.body["subscribe"]["unacknowledged_updates"]]
    return told + [call.body["update"]["status"] for call in agent.of_type("UPDATE")]


def test_what_subscribe_said_is_not_sent_once_more(agent: FakeMesos, recorder: Recorder) -> None:
    with driving(agent, recorder) as driver:
        stream = subscribe(agent, recorder)
        agent.answer_all_subscribes(Reply(503, "Agent has not finished recovery"))
        stream.cut()
        recorder.wait("disconnected")
        for state in ("TASK_STARTING", "TASK_RUNNING"):
            driver.sendStatusUpdate(status(state))
        agent.wait_calls("SUBSCRIBE", 3)
        agent.answer_all_subscribes(None)
        again = subscribe(agent, recorder, count=2)
        driver.sendStatusUpdate(status("TASK_FINISHED"))
        (finished,) = sent_updates(agent, 1)
    told = [update["status"]["state"] for update in again.call.body["subscribe"]["unacknowledged_updates"]]
    assert (told, finished["state"]) == (["TASK_STARTING", "TASK_RUNNING"], "TASK_FINISHED")
    assert recorder.count("disconnected") == 1, "failed attempts are no `disconnected`"


def test_an_executor_is_back_within_the_two_seconds_that_an_agent_waits(recorder: Recorder) -> None:
    """pymesos sleeps up to 15 s between attempts, and is killed for it."""
    with FakeMesos(stream_ids=False) as first:
        port = first.port
        with driving(first, recorder, retry_ms_max=2_000):
            subscribe(first, recorder)
            first.close()
            recorder.wait("disconnected")
            time.sleep(1.2)  # the agent is away
            with FakeMesos(port=port, stream_ids=False) as second:
                second.answer_subscribes(Reply(503, "recovering"), Reply(503, "recovering"))
                began_s = time.monotonic()
                subscribe(second, recorder, count=1) if False else second.wait_stream().send(
                    executor_subscribed()
                )
                recorder.wait("reregistered")
                assert time.monotonic() - began_s < 1.9, "two refusals and still in time"
                at_s = [call.at_s for call in second.of_type("SUBSCRIBE")]
                assert all(0.19 <= b - a for a, b in zip(at_s, at_s[1:], strict=False))


def test_updates_wait_while_the_agent_hangs_up_or_refuses(agent: FakeMesos, recorder: Recorder) -> None:
    with driving(agent, recorder) as driver:
        subscribe(agent, recorder)
        agent.replies["UPDATE"] = HANG_UP
        driver.sendStatusUpdate(status("TASK_STARTING"))
        driver.sendStatusUpdate(status("TASK_RUNNING"))
        agent.wait_calls("UPDATE", 2)
        agent.replies["UPDATE"] = Reply(503)
        seen = len(agent.of_type("UPDATE"))
        agent.wait_calls("UPDATE", seen + 2)
        assert {update["state"] for update in sent_updates(agent, 1)} == {"TASK_STARTING"}, "order is kept"
        del agent.replies["UPDATE"]
        wait_until(lambda: sent_updates(agent, 1)[-1]["state"] == "TASK_RUNNING")
        assert driver.connected and driver.unacknowledged_count == 2


def test_an_update_that_the_agent_calls_wrong_does_not_hold_up_the_next(
    agent: FakeMesos, recorder: Recorder
) -> None:
    with driving(agent, recorder) as driver:
        stream = subscribe(agent, recorder)
        agent.replies["UPDATE"] = Reply(400, "Not a valid UUID")
        driver.sendStatusUpdate(status("TASK_STARTING"))
        wait_until(lambda: driver.unacknowledged_count == 0)
        del agent.replies["UPDATE"]
        driver.sendStatusUpdate(status("TASK_RUNNING"))
        acknowledge(stream, sent_updates(agent, 2)[1])
        assert driver.flush(5_000)


def test_an_acknowledgement_may_come_before_the_answer_to_the_update(
    agent: FakeMesos, recorder: Recorder
) -> None:
    """Recorded: the event overtakes the 202."""
    with driving(agent, recorder) as driver:
        stream = subscribe(agent, recorder)
        agent.replies["UPDATE"] = Reply(202, before=lambda: acknowledge(stream, sent_updates(agent, 1)[-1]))
        driver.sendStatusUpdate(status("TASK_STARTING"))
        assert driver.flush(5_000)
        driver.sendStatusUpdate(status("TASK_RUNNING"))
        assert driver.flush(5_000)
        acknowledge(
            stream, {"task_id": {"value": "t1"}, "uuid": base64.b64encode(bytes(16)).decode()}
        )  # unknown
        launch(stream, OTHER)
        recorder.wait("launchTask")


def test_a_task_that_is_launched_twice_starts_once(agent: FakeMesos, recorder: Recorder) -> None:
    with driving(agent, recorder) as driver:
        stream = subscribe(agent, recorder)
        launch(stream, TASK, TASK, OTHER)
        recorder.wait("launchTask", 2)
        assert [args[0] for name, args in recorder.seen if name == "launchTask"] == [TASK, OTHER]
        assert driver.connected


@pytest.mark.parametrize(
    "data",
    [
        b"x\n",
        b"2\n[]",
        encode_record(b'{"type": "LAUNCH"}'),
        encode_record(b'{"type": "LAUNCH", "launch": {}}'),
    ],
)
def test_bytes_that_make_no_sense_break_only_the_stream(
    agent: FakeMesos, recorder: Recorder, data: bytes
) -> None:
    with driving(agent, recorder) as driver:
        subscribe(agent, recorder).send_bytes(data)
        subscribe(agent, recorder, count=2)
        assert driver.connected


def test_a_callback_that_raises_costs_no_connection_and_a_failed_launch_is_told(
    agent: FakeMesos, recorder: Recorder
) -> None:
    for name in ("registered", "launchTask", "killTask"):
        recorder.on(name, lambda driver, *args: {}["missing"])
    with driving(agent, recorder) as driver:
        stream = subscribe(agent, recorder)
        launch(stream, TASK)
        (failed,) = sent_updates(agent, 1)
        assert (failed["task_id"], failed["state"]) == (TASK["task_id"], "TASK_FAILED")
        stream.send({"type": "KILL", "kill": {"task_id": TASK["task_id"]}}, {"type": "FUTURE", "future": {}})
        stream.send({"type": "MESSAGE", "message": {"data": "aGk="}})
        recorder.wait("frameworkMessage")
        assert driver.connected and driver.callback_failure_count == 3


# --- the end


def test_an_agent_that_does_not_come_back_in_time_means_shutdown(recorder: Recorder) -> None:
    with FakeMesos(stream_ids=False) as agent, driving(agent, recorder, recovery_timeout_ms=1_000) as driver:
        subscribe(agent, recorder)
        agent.close()
        recorder.wait("disconnected")
        began_s = time.monotonic()
        recorder.wait("shutdown")
        assert 0.9 < time.monotonic() - began_s < 3
        driver.join()
        assert driver.aborted
    assert recorder.names() == ["registered", "disconnected", "shutdown"]


def test_the_recovery_time_begins_anew_with_each_loss(agent: FakeMesos, recorder: Recorder) -> None:
    with driving(agent, recorder, recovery_timeout_ms=1_200) as driver:
        for count in range(1, 4):
            subscribe(agent, recorder, count=count).cut()
            recorder.wait("disconnected", count)
            time.sleep(0.6)
        subscribe(agent, recorder, count=4)
        assert driver.connected
    assert recorder.count("shutdown") == 0


def test_without_checkpointing_a_lost_agent_means_shutdown_at_once(
    agent: FakeMesos, recorder: Recorder
) -> None:
    with driving(agent, recorder, checkpoint=False) as driver:
        subscribe(agent, recorder).cut()
        recorder.wait("shutdown", deadline_s=2)
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
        flushed.append(driver.flush(5_000))

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
    with driving(agent, recorder, shutdown_grace_ms=1_000, end_process=ends.append) as driver:
        subscribe(agent, recorder).send({"type": "SHUTDOWN"})
        began_s = time.monotonic()
        driver.join()
        assert time.monotonic() - began_s < 1
    assert ends == []


def test_a_shutdown_that_takes_longer_than_its_grace_ends_the_process(
    agent: FakeMesos, recorder: Recorder
) -> None:
    ends: list[int] = []
    released = threading.Event()

    def end_process(code: int) -> None:
        ends.append(code)
        released.set()

    recorder.on("shutdown", lambda driver: released.wait(20))
    with driving(agent, recorder, shutdown_grace_ms=200, end_process=end_process) as driver:
        subscribe(agent, recorder).send({"type": "SHUTDOWN"})
        assert released.wait(5)
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
    held = threading.Event()
    agent.answer_subscribes(Reply(503, before=lambda: held.wait(20)))
    with driving(agent, recorder) as driver:
        agent.wait_calls("SUBSCRIBE")
        began_s = time.monotonic()
        driver.abort()
        driver.join()
        assert time.monotonic() - began_s < 1
        assert not driver.flush(10) or driver.unacknowledged_count == 0
    held.set()
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


def start_child(agent: FakeMesos, *, is_patched: bool, shutdown: str = "pass") -> subprocess.Popen[str]:
    patch = "from gevent import monkey; monkey.patch_all()" if is_patched else ""
    environment = {
        **ENVIRONMENT,
        "MESOS_AGENT_ENDPOINT": agent.address,
        "MESOS_EXECUTOR_SHUTDOWN_GRACE_PERIOD": "1secs",
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
        stream = agent.wait_stream(deadline_s=30)
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
        out, err = child.communicate(timeout=20)
        assert (child.returncode, out) == (0, "ended\n"), err
    finally:
        child.kill()
        child.communicate()


@pytest.mark.parametrize("is_patched", [True, False], ids=["gevent", "threads"])
def test_an_overdue_shutdown_ends_only_its_own_process(agent: FakeMesos, is_patched: bool) -> None:
    """pymesos sends SIGKILL to the whole process group, this test with it."""
    child = start_child(agent, is_patched=is_patched, shutdown="threading.Event().wait(60)")
    try:
        stream = agent.wait_stream(deadline_s=30)
        stream.send(executor_subscribed(), {"type": "SHUTDOWN"})
        child.communicate(timeout=20)
        assert child.returncode == 1 != -signal.SIGKILL
    finally:
        child.kill()
        child.communicate()

"""The executor driver against a scripted agent: nothing is lost over an agent's restart."""

from __future__ import annotations

import base64
import itertools
import time
from typing import Any

import pytest

from stoker.mesos.errors import BadCall, Disconnected, HttpError, QueueFull
from stoker.mesos.executor_driver import RETRY_MS_MIN, UPDATE_BYTES_MAX, UPDATES_MAX
from stoker.mesos.recordio import encode_record
from support.executor_drivers import (
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
from support.fake_mesos import HANG_UP, FakeMesos, Recorder, Reply, Stream, executor_subscribed
from support.ports import fixed_port
from support.waiting import wait_until

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
        assert driver.flush(FLUSH_MS)
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
        assert driver.flush(FLUSH_MS)
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
        assert driver.flush(FLUSH_MS)
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
    pauses: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        pauses.append((low, high))
        return low

    port = fixed_port()
    with FakeMesos(port=port, stream_ids=False) as first:
        with driving(first, recorder, retry_ms_max=2_000, uniform=uniform):
            subscribe(first, recorder)
            first.close()
            recorder.wait("disconnected")
            wait_until(lambda: len(pauses) >= 3, "attempts while the agent is away")
            with FakeMesos(port=port, stream_ids=False) as second:
                second.answer_subscribes(Reply(503, "recovering"), Reply(503, "recovering"))
                second.wait_stream().send(executor_subscribed())
                recorder.wait("reregistered")
                at_s = [call.at_s for call in second.of_type("SUBSCRIBE")]
                assert len(at_s) == 3
                assert all(b - a >= 0.99 * RETRY_MS_MIN / 1000 for a, b in itertools.pairwise(at_s))
    assert {low for low, _ in pauses} == {RETRY_MS_MIN}
    assert 3 * max(high for _, high in pauses) < 2_000, "two refusals and still in time"


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
        assert driver.flush(FLUSH_MS)


def test_an_acknowledgement_may_come_before_the_answer_to_the_update(
    agent: FakeMesos, recorder: Recorder
) -> None:
    """Recorded: the event overtakes the 202."""
    with driving(agent, recorder) as driver:
        stream = subscribe(agent, recorder)
        agent.replies["UPDATE"] = Reply(202, before=lambda: acknowledge(stream, sent_updates(agent, 1)[-1]))
        driver.sendStatusUpdate(status("TASK_STARTING"))
        assert driver.flush(FLUSH_MS)
        driver.sendStatusUpdate(status("TASK_RUNNING"))
        assert driver.flush(FLUSH_MS)
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

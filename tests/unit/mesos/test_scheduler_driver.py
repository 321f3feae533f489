"""The scheduler driver against a scripted master: each known fault of pymesos has a test that it is not ours."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from stoker.mesos.errors import CallFailed, Disconnected, HttpError
from stoker.mesos.recordio import encode_record
from stoker.mesos.scheduler_driver import Timings
from support.drivers import FRAMEWORK, LONG_MS, UUID, assert_ends, driving, subscribe, update
from support.fake_mesos import FakeMesos, Hold, Recorder, Reply, Stream, in_pieces, subscribed
from support.waiting import DEADLINE_S, wait_until

# --- SUBSCRIBE


def test_subscribes_with_what_it_was_given_and_nothing_more(master: FakeMesos, recorder: Recorder) -> None:
    """pymesos adds GPU_RESOURCES, which makes a framework hog the agents with GPUs."""
    given = json.loads(json.dumps(FRAMEWORK))
    constraints = {"role_constraints": {"cache": {"groups": []}}}
    with driving(
        master, recorder, framework=given, suppressed_roles=["cache"], offer_constraints=constraints
    ):
        subscribe(master, recorder)
    (call,) = master.of_type("SUBSCRIBE")
    assert (call.method, call.path) == ("POST", "/api/v1/scheduler")
    assert call.headers["content-type"] == call.headers["accept"] == "application/json"
    assert "mesos-stream-id" not in call.headers and "authorization" not in call.headers
    assert call.headers["host"] == master.address
    assert call.body == {
        "type": "SUBSCRIBE",
        "subscribe": {
            "framework_info": {**FRAMEWORK, "failover_timeout": 604800.0},
            "suppressed_roles": ["cache"],
            "offer_constraints": constraints,
        },
    }
    assert given == FRAMEWORK, "the caller's own dictionary was changed"


def test_registers_with_a_new_id_and_says_it_in_both_places_later(
    master: FakeMesos, recorder: Recorder
) -> None:
    with driving(master, recorder) as driver:
        stream = subscribe(master, recorder)
        framework_id, info = recorder.wait("registered")
        assert framework_id == {"value": "F1"}
        # The master's own info, with what pymesos leaves out; its version is no number and must not matter.
        assert info["id"] == "M1" and info["version"] == "1.12.0-dev" and info["port"] == 5050
        assert driver.connected and driver.framework_id == "F1" and driver.stream_id == "stream-1"
        stream.end()
        subscribe(master, recorder, count=2)
        assert driver.stream_id == "stream-2"
    again = master.of_type("SUBSCRIBE")[1].body
    assert again["framework_id"] == again["subscribe"]["framework_info"]["id"] == {"value": "F1"}
    assert recorder.names() == ["registered", "disconnected", "reregistered"]


def test_a_journaled_id_comes_back_as_reregistered(master: FakeMesos, recorder: Recorder) -> None:
    with driving(master, recorder, framework={**FRAMEWORK, "id": {"value": "F1"}}):
        master.wait_stream().send(subscribed())
        recorder.wait("reregistered")
    assert master.of_type("SUBSCRIBE")[0].body["framework_id"] == {"value": "F1"}


def test_another_id_than_asked_for_ends_the_driver(master: FakeMesos, recorder: Recorder) -> None:
    with driving(master, recorder, framework={**FRAMEWORK, "id": {"value": "F0"}}) as driver:
        master.wait_stream().send(subscribed("F1"))
        (message,) = recorder.wait("error")
        assert "F0" in message and "F1" in message
        assert driver.aborted and driver.framework_id == "F0"


# --- events


def test_every_event_reaches_its_callback_as_plain_values(master: FakeMesos, recorder: Recorder) -> None:
    a, e = {"value": "S1"}, {"value": "E1"}
    operation = {"operation_id": {"value": "o"}, "state": "OPERATION_FINISHED", "uuid": {"value": UUID}}
    events: list[tuple[dict[str, Any], str, tuple[Any, ...]]] = [
        ({"type": "HEARTBEAT"}, "processHeartBeat", ()),
        ({"type": "OFFERS", "offers": {"offers": [{"id": {"value": "o1"}}]}}, "resourceOffers", ([{"id": {"value": "o1"}}],)),
        ({"type": "INVERSE_OFFERS", "inverse_offers": {"inverse_offers": [{"id": a}]}}, "inverseOffers", ([{"id": a}],)),
        ({"type": "RESCIND", "rescind": {"offer_id": a}}, "offerRescinded", (a,)),
        ({"type": "RESCIND_INVERSE_OFFER", "rescind_inverse_offer": {"inverse_offer_id": a}}, "inverseOfferRescinded", (a,)),
        (update(uuid=UUID), "statusUpdate", (update(uuid=UUID)["update"]["status"],)),
        ({"type": "UPDATE_OPERATION_STATUS", "update_operation_status": {"status": operation}}, "operationStatusUpdate", (operation,)),
        ({"type": "MESSAGE", "message": {"agent_id": a, "executor_id": e, "data": "aGk="}}, "frameworkMessage", (e, a, "aGk=")),
        ({"type": "FAILURE", "failure": {"agent_id": a}}, "slaveLost", (a,)),
        ({"type": "FAILURE", "failure": {"agent_id": a, "executor_id": e, "status": 9}}, "executorLost", (e, a, 9)),
        # The status is optional; pymesos' thread dies of that.
        ({"type": "FAILURE", "failure": {"agent_id": a, "executor_id": e}}, "executorLost", (e, a, None)),
    ]  # fmt: skip
    with driving(master, recorder) as driver:
        stream = subscribe(master, recorder)
        stream.send({"type": "FUTURE", "future": {}}, {"type": "close", "close": {}}, {"no": "type"})
        stream.send({"type": "OFFERS", "offers": {}}, {"type": "FAILURE", "failure": {}})
        stream.send(*(event for event, _, _ in events))
        recorder.wait("executorLost", 2)
        assert recorder.seen[1:] == [(name, args) for _, name, args in events]
        assert type(recorder.seen[2][1][0][0]) is dict
        assert driver.callback_failure_count == 0


def test_records_split_anywhere_are_understood(master: FakeMesos, recorder: Recorder) -> None:
    rng = random.Random(7)
    events = [
        subscribed(),
        *({"type": "RESCIND", "rescind": {"offer_id": {"value": f"{n}é"}}} for n in range(200)),
    ]
    data = b"".join(encode_record(json.dumps(event, ensure_ascii=False).encode()) for event in events)
    with driving(master, recorder):
        stream = master.wait_stream()
        for piece in in_pieces(data, (rng.randint(1, 90) for _ in range(10_000))):
            stream.send_bytes(piece)
        recorder.wait("offerRescinded", 200)
    assert [args[0]["value"] for name, args in recorder.seen[1:]] == [f"{n}é" for n in range(200)]


def test_ten_thousand_offers_in_one_event(master: FakeMesos, recorder: Recorder) -> None:
    """All offers of a large cluster come in one record of 14 MB at every new subscription."""
    offer = {
        "id": {"value": "o"},
        "resources": [{"name": "cpus", "scalar": {"value": 4.0}, "note": "x" * 1300}],
    }
    event = {"type": "OFFERS", "offers": {"offers": [offer] * 10_000}}
    with driving(master, recorder):
        stream = subscribe(master, recorder)
        record = encode_record(json.dumps(event).encode())
        assert len(record) > 13_000_000
        stream.send_bytes(record)
        (offers,) = recorder.wait("resourceOffers")
        assert len(offers) == 10_000


# --- b.3 1, 2: nothing but teardown() tears down


def test_a_callback_that_raises_is_passed_over_and_nothing_is_torn_down(
    master: FakeMesos, recorder: Recorder
) -> None:
    for name in ("registered", "resourceOffers", "statusUpdate", "processHeartBeat", "disconnected"):
        recorder.on(name, lambda driver, *args: {}["missing"])
    with driving(master, recorder, implicit_acknowledgements=True) as driver:
        stream = subscribe(master, recorder)
        stream.send({"type": "HEARTBEAT"}, {"type": "OFFERS", "offers": {"offers": [{}]}}, update(uuid=UUID))
        stream.send(
            {"type": "UPDATE", "update": {}}, {"type": "RESCIND", "rescind": {"offer_id": {"value": "o"}}}
        )
        recorder.wait("offerRescinded")
        assert driver.connected and not driver.aborted
        assert driver.callback_failure_count == 5
        stream.end()
        subscribe(master, recorder, count=2)
    assert {call.type for call in master.calls} == {"SUBSCRIBE"}, (
        "not even the failed update was acknowledged"
    )


@pytest.mark.parametrize("end", ["stop", "stop(False)", "abort", "stop in a callback"])
def test_no_way_to_stop_tears_down(master: FakeMesos, recorder: Recorder, end: str) -> None:
    """pymesos' stop() and abort() send TEARDOWN, whatever its constructor was told."""
    if end == "stop in a callback":
        recorder.on("offerRescinded", lambda driver, *_: driver.stop())
    with driving(master, recorder) as driver:
        stream = subscribe(master, recorder)
        stream.send({"type": "RESCIND", "rescind": {"offer_id": {"value": "o"}}})
        recorder.wait("offerRescinded")
        if end == "stop":
            driver.stop()
        elif end == "stop(False)":
            driver.stop(False)
        elif end == "abort":
            driver.abort()
        driver.join()
        assert driver.aborted and not driver.connected
        assert stream.is_closed_by_client.wait(DEADLINE_S)
        with pytest.raises(Disconnected):
            driver.reviveOffers()
    assert [call.type for call in master.calls] == ["SUBSCRIBE"]
    assert recorder.names() == ["registered", "offerRescinded"], "stop() is no `disconnected`"


def test_teardown_is_sent_only_when_asked_for_by_name(master: FakeMesos, recorder: Recorder) -> None:
    with driving(master, recorder) as driver:
        with pytest.raises(Disconnected):
            driver.teardown()
        stream = subscribe(master, recorder)
        master.replies["TEARDOWN"] = Reply(403, "not authorized")
        with pytest.raises(HttpError, match="not authorized"):
            driver.teardown()
        assert driver.connected and not driver.aborted
        # A master ends the stream before it answers; that is no reason to subscribe with the dead id.
        master.replies["TEARDOWN"] = Reply(202, before=stream.end)
        driver.teardown()
        driver.join()
    assert [call.type for call in master.calls] == ["SUBSCRIBE", "TEARDOWN", "TEARDOWN"]
    assert master.calls[-1].body == {"type": "TEARDOWN", "framework_id": {"value": "F1"}}
    assert recorder.names() == ["registered"]


def test_a_teardown_whose_answer_is_lost_leaves_a_driver_that_goes_on(
    master: FakeMesos, recorder: Recorder
) -> None:
    """The master ends the stream first, then dies, or its answer is lost: was it done? Only the next SUBSCRIBE says."""
    with driving(master, recorder) as driver:
        stream = subscribe(master, recorder)

        def end_the_stream_first() -> None:
            stream.end()
            wait_until(lambda: not driver.connected, "the driver notices")
            time.sleep(0.1)  # for a driver that ends by it

        master.replies["TEARDOWN"] = Reply(0, before=end_the_stream_first)
        with pytest.raises(CallFailed):
            driver.teardown()
        assert not driver.aborted
        second = master.wait_stream(2)
        recorder.wait("disconnected")
        second.send({"type": "ERROR", "error": {"message": "Framework has been removed"}})
        assert recorder.wait("error") == ("Framework has been removed",)


def test_stop_ends_a_driver_that_waits_for_a_teardowns_answer(master: FakeMesos, recorder: Recorder) -> None:
    with Hold() as hold, driving(master, recorder, timings=Timings(call_timeout_ms=LONG_MS)) as driver:
        stream = subscribe(master, recorder)
        master.replies["TEARDOWN"] = Reply(202, before=hold)
        caller = threading.Thread(target=driver.teardown)
        caller.start()
        master.wait_calls("TEARDOWN")
        stream.end()
        wait_until(lambda: not driver.connected, "the driver notices")
        assert_ends(driver)
        hold.release()
        caller.join(DEADLINE_S)
        assert not caller.is_alive()
    assert recorder.names() == ["registered"]


def test_a_stopped_driver_can_be_started_again_with_its_id(master: FakeMesos, recorder: Recorder) -> None:
    with driving(master, recorder) as driver:
        subscribe(master, recorder)
        driver.start()  # runs already: nothing
        driver.stop()
        driver.start()
        subscribe(master, recorder, count=2)
        assert driver.connected
    assert len(master.of_type("SUBSCRIBE")) == 2


# --- the process around it


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-c", code],
        capture_output=True,
        text=True,
        timeout=2 * DEADLINE_S,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_it_leaves_signals_and_logging_alone_also_from_a_thread() -> None:
    """pymesos takes SIGINT over when it is imported, and cannot be imported in a thread."""
    code = """
import logging, signal, threading
before = signal.getsignal(signal.SIGINT), signal.signal, list(logging.getLogger("pymesos").handlers)
failures = []
def load():
    try:
        import stoker.mesos.scheduler_driver
    except BaseException as error:
        failures.append(error)
thread = threading.Thread(target=load)
thread.start(); thread.join()
assert not failures, failures
import pymesos
after = signal.getsignal(signal.SIGINT), signal.signal, list(logging.getLogger("pymesos").handlers)
assert before == after, (before, after)
assert logging.getLogger("pymesos").level == logging.NOTSET
print("ok")
"""
    assert run_python(code) == "ok"
    assert signal.getsignal(signal.SIGINT) is not None


def test_works_in_a_process_that_gevent_has_patched(master: FakeMesos) -> None:
    """The real scheduler is one: the driver's thread is a greenlet there, and must leave the hub alone."""
    code = f"""
from gevent import monkey; monkey.patch_all()
import gevent, time
from stoker.mesos.scheduler_driver import SchedulerDriver, Timings
seen = []
class Scheduler:
    def __getattr__(self, name):
        return lambda driver, *args: seen.append((name, args))
driver = SchedulerDriver(Scheduler(), {FRAMEWORK!r}, {master.address!r}, timings=Timings(retry_first_ms=20))
driver.start()
gaps, last = [], time.monotonic()
def wait(name, count=1):
    global last
    with gevent.Timeout(90):
        while sum(n == name for n, _ in seen) < count:
            gevent.sleep(0.005)
            now = time.monotonic(); gaps.append(now - last); last = now
wait("registered")
jobs = [gevent.spawn(driver.reviveOffers) for _ in range(30)]
gevent.joinall(jobs, raise_error=True)
wait("resourceOffers")
assert len(dict(seen)["resourceOffers"][0]) == 10_000
driver.suppressOffers()
wait("disconnected")
wait("reregistered")
with gevent.Timeout(90):
    driver.stop(); driver.join()
print(round(max(gaps) * 1000))
"""
    offer = {
        "id": {"value": "o"},
        "resources": [{"name": "cpus", "scalar": {"value": 4.0}, "note": "x" * 1300}],
    }
    event = {"type": "OFFERS", "offers": {"offers": [offer] * 10_000}}
    record = encode_record(json.dumps(event).encode())
    done: list[str] = []
    child = threading.Thread(target=lambda: done.append(run_python(code)))
    child.start()
    stream = master.wait_stream()
    stream.send(subscribed(heartbeat_s=0.7))
    with beating(stream):
        master.wait_calls("REVIVE", 30)
        stream.send_bytes(record)
        master.wait_calls("SUPPRESS")
    again = master.wait_stream(2)  # after the silence
    again.send(subscribed())
    child.join(2 * DEADLINE_S)
    assert done, "the child failed"
    print(f"the hub stood still for {done[0]} ms at most")


@contextmanager
def beating(stream: Stream) -> Iterator[None]:
    """Send heartbeats for the block's length."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(0.2):
            stream.send({"type": "HEARTBEAT"})

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()

"""The scheduler driver against a scripted master: each known fault of pymesos has a test that it is not ours."""

from __future__ import annotations

import base64
import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from stoker.mesos.detector import Address, address_in_location, detector_for, parse_address
from stoker.mesos.errors import BadCall, CallFailed, Disconnected, HttpError, MesosError
from stoker.mesos.recordio import encode_record
from stoker.mesos.scheduler_driver import REDIRECTS_MAX, SchedulerDriver, Timings
from stoker.mesos.transport import CALL_BYTES_MAX, Backoff, Caller
from support.fake_mesos import HANG_UP, FakeMesos, Recorder, Reply, Stream, in_pieces, subscribed

FRAMEWORK = {
    "user": "root",
    "name": "stoker",
    "roles": ["cache"],
    "checkpoint": True,
    "capabilities": [{"type": "PARTITION_AWARE"}, {"type": "MULTI_ROLE"}],
}
QUICK = Timings(retry_first_ms=20, retry_ms_max=80, connect_timeout_ms=1_000, call_timeout_ms=2_000)
UUID = base64.b64encode(bytes(range(16))).decode()


@contextmanager
def driving(
    master: FakeMesos | str, recorder: Recorder | None = None, *, framework: Any = None, **options: Any
) -> Iterator[SchedulerDriver]:
    """Run a driver for a while; afterwards its thread must end promptly."""
    options.setdefault("timings", QUICK)
    address = master if isinstance(master, str) else master.address
    driver = SchedulerDriver(recorder or Recorder(), framework or FRAMEWORK, address, **options)
    driver.start()
    try:
        yield driver
    finally:
        driver.stop()
        thread = driver._io_thread
        assert thread is not None
        thread.join(2)
        assert not thread.is_alive(), "the driver's thread outlives stop()"


def subscribe(master: FakeMesos, recorder: Recorder, *, heartbeat_s: float = 15.0, count: int = 1) -> Stream:
    stream = master.wait_stream(count)
    stream.send(subscribed(heartbeat_s=heartbeat_s))
    recorder.wait("registered" if count == 1 else "reregistered", max(1, count - 1))
    return stream


def update(**fields: Any) -> dict[str, Any]:
    status = {"task_id": {"value": "t"}, "agent_id": {"value": "S1"}, "state": "TASK_RUNNING", **fields}
    return {"type": "UPDATE", "update": {"status": status}}


@pytest.fixture
def master() -> Iterator[FakeMesos]:
    with FakeMesos() as fake:
        yield fake


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


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
        began_s = time.monotonic()
        stream.send_bytes(record)
        (offers,) = recorder.wait("resourceOffers")
        assert len(offers) == 10_000
        assert time.monotonic() - began_s < 3.0


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
        assert stream.is_closed_by_client.wait(5)
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


def test_a_stopped_driver_can_be_started_again_with_its_id(master: FakeMesos, recorder: Recorder) -> None:
    with driving(master, recorder) as driver:
        subscribe(master, recorder)
        driver.start()  # runs already: nothing
        driver.stop()
        driver.start()
        subscribe(master, recorder, count=2)
        assert driver.connected
    assert len(master.of_type("SUBSCRIBE")) == 2


# --- b.3 3, 4, 6: back-off


@pytest.mark.parametrize(
    "reply", [Reply(503, "No leader elected"), Reply(401, "no"), Reply(403), Reply(404), HANG_UP]
)
def test_a_master_that_refuses_is_asked_again_with_growing_pauses(
    master: FakeMesos, recorder: Recorder, reply: Reply
) -> None:
    """pymesos: 3,000 SUBSCRIBEs in 2 s for a 503; its thread dies of a 401."""
    pauses: list[float] = []

    def uniform(low: float, high: float) -> float:
        pauses.append(high)
        return low

    master.answer_all_subscribes(reply)
    with driving(master, recorder, uniform=uniform) as driver:
        master.wait_calls("SUBSCRIBE", 5)
        master.answer_all_subscribes(None)
        stream = master.wait_stream()
        stream.send(subscribed())
        recorder.wait("registered")
        assert driver.connected
    assert pauses[:5] == [20, 40, 80, 80, 80]
    at_s = [call.at_s for call in master.of_type("SUBSCRIBE")]
    gaps_ms = [(b - a) * 1000 for a, b in zip(at_s, at_s[1:], strict=False)]
    assert all(gap >= low for gap, low in zip(gaps_ms, (10, 20, 40, 40), strict=False)), gaps_ms
    assert recorder.names() == ["registered"], "a failed attempt is no `disconnected`"


def test_a_stream_that_is_taken_and_ended_again_and_again_backs_off_too(
    master: FakeMesos, recorder: Recorder
) -> None:
    """pymesos re-subscribes 600 times a second then."""
    pauses: list[float] = []
    recorder.on("registered", lambda driver, *_: master.streams[-1].end())
    recorder.on("reregistered", lambda driver, *_: master.streams[-1].cut())
    with driving(master, recorder, uniform=lambda low, high: pauses.append(high) or high):
        for count in range(1, 5):
            master.wait_stream(count).send(subscribed())
        recorder.wait("disconnected", 4)
    assert pauses[:4] == [20, 40, 80, 80]


def test_after_a_long_life_the_first_pause_is_short_again(master: FakeMesos, recorder: Recorder) -> None:
    pauses: list[float] = []
    timings = Timings(retry_first_ms=5, retry_ms_max=1_000, stable_ms=400)
    master.answer_subscribes(*[Reply(503)] * 3)
    with driving(master, recorder, timings=timings, uniform=lambda low, high: pauses.append(high) or high):
        stream = subscribe(master, recorder)
        time.sleep(0.5)  # the life
        stream.cut()
        recorder.wait("disconnected")
        master.wait_stream(2)
    assert pauses == [5, 10, 20, 5]


def test_hosts_that_do_not_exist_or_refuse_only_delay(recorder: Recorder) -> None:
    """pymesos' thread dies of a name that cannot be resolved."""
    with FakeMesos() as fake:
        address = fake.address
    for nowhere in ("no-such-host.invalid:5050", address):
        pauses: list[float] = []
        enough = threading.Event()

        def uniform(
            low: float, high: float, pauses: list[float] = pauses, enough: threading.Event = enough
        ) -> float:
            pauses.append(high)
            if len(pauses) == 3:
                enough.set()
            return low

        with driving(nowhere, recorder, uniform=uniform) as driver:
            assert enough.wait(30)
            assert not driver.aborted
    assert recorder.names() == []


def test_stop_and_a_new_master_end_a_long_pause_at_once(master: FakeMesos, recorder: Recorder) -> None:
    slow = Timings(retry_first_ms=60_000, retry_ms_max=60_000)
    master.answer_all_subscribes(Reply(503))
    with FakeMesos() as other, driving(master, recorder, timings=slow) as driver:
        master.wait_calls("SUBSCRIBE")
        driver.change_master(other.address)
        subscribe(other, recorder)
        assert driver.master == other.address
        other.close()
        recorder.wait("disconnected")
        began_s = time.monotonic()
        driver.stop()
        driver.join()
        assert time.monotonic() - began_s < 1


def test_stop_ends_a_connect_that_hangs_at_once(recorder: Recorder) -> None:
    """A listener with a full backlog lets a connect wait for its whole timeout."""
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        hangs = Timings(connect_timeout_ms=60_000)
        with driving(f"127.0.0.1:{listener.getsockname()[1]}", recorder, timings=hangs) as driver:
            time.sleep(0.2)
            began_s = time.monotonic()
            driver.stop()
            driver.join()
            assert time.monotonic() - began_s < 1


def test_stop_ends_a_wait_for_the_answer_and_for_events_at_once(
    master: FakeMesos, recorder: Recorder
) -> None:
    held = threading.Event()
    master.answer_subscribes(Reply(503, before=lambda: held.wait(20)))
    for _ in range(2):
        with driving(master, recorder, timings=Timings(call_timeout_ms=30_000)) as driver:
            master.wait_calls("SUBSCRIBE")
            began_s = time.monotonic()
            driver.stop()
            driver.join()
            assert time.monotonic() - began_s < 1
    held.set()


def test_no_answer_and_no_first_event_in_time_are_given_up(master: FakeMesos, recorder: Recorder) -> None:
    held = threading.Event()
    master.answer_subscribes(Reply(503, before=lambda: held.wait(20)), Reply(200))
    with driving(master, recorder, timings=Timings(retry_first_ms=10, call_timeout_ms=150)):
        stream = master.wait_stream(2)
        stream.send(subscribed())
        recorder.wait("registered")
    held.set()
    assert recorder.names() == ["registered"]


def test_backoff_doubles_to_its_limit_and_jitters_within_half() -> None:
    rng = random.Random(1)
    backoff = Backoff(first_ms=500, max_ms=15_000, uniform=rng.uniform)
    delays = [backoff.next_ms() for _ in range(200)]
    for delay, top in zip(delays, [500, 1000, 2000, 4000, 8000] + [15_000] * 195, strict=True):
        assert top / 2 <= delay <= top
    assert len(set(delays)) > 150
    backoff.reset()
    assert backoff.next_ms() <= 500


# --- b.3 5, 7: what is final


@pytest.mark.parametrize("status", [400, 405, 406, 415])
def test_a_subscribe_that_is_called_malformed_is_not_repeated(
    master: FakeMesos, recorder: Recorder, status: int
) -> None:
    master.answer_all_subscribes(Reply(status, "Failed to validate scheduler::Call"))
    with driving(master, recorder) as driver:
        (message,) = recorder.wait("error")
        assert str(status) in message and "Failed to validate" in message
        driver.join()
        assert driver.aborted
    assert [call.type for call in master.calls] == ["SUBSCRIBE"]
    assert recorder.names() == ["error"]


@pytest.mark.parametrize("is_subscribed", [False, True])
def test_an_error_event_is_final_and_told_once(
    master: FakeMesos, recorder: Recorder, is_subscribed: bool
) -> None:
    """With pymesos two schedulers with one id throw each other out 150 times a second."""
    recorder.on("error", lambda driver, _: aborted.append(driver.aborted))
    aborted: list[bool] = []
    with driving(master, recorder) as driver:
        stream = subscribe(master, recorder) if is_subscribed else master.wait_stream()
        stream.send({"type": "ERROR", "error": {"message": "Framework failed over"}}, {"type": "HEARTBEAT"})
        stream.end()
        assert recorder.wait("error") == ("Framework failed over",)
        driver.join()
        assert aborted == [True], "pymesos promises that the driver is aborted before `error`"
        assert driver.aborted
    assert [call.type for call in master.calls] == ["SUBSCRIBE"]
    assert recorder.names() == (["registered", "error"] if is_subscribed else ["error"])


# --- b.3 8: the watchdog


def test_silence_of_a_master_that_is_still_connected_is_noticed(
    master: FakeMesos, recorder: Recorder
) -> None:
    with driving(master, recorder) as driver:
        stream = subscribe(master, recorder, heartbeat_s=0.3)
        for _ in range(5):
            time.sleep(0.2)  # heartbeats in time
            stream.send({"type": "HEARTBEAT"})
        recorder.wait("processHeartBeat", 5)
        assert driver.connected
        recorder.wait("disconnected", deadline_s=4)
        assert stream.is_closed_by_client.wait(5)
        subscribe(master, recorder, count=2)
    assert master.of_type("SUBSCRIBE")[1].body["framework_id"] == {"value": "F1"}


# --- b.3 9, 20: headers


def test_two_drivers_share_no_headers(master: FakeMesos) -> None:
    first, second = Recorder(), Recorder()
    with driving(master, first, principal="stoker", secret="gehéim") as one, FakeMesos() as other:
        subscribe(master, first)
        with driving(other, second) as two:
            subscribe(other, second)
            one.reviveOffers()
            two.reviveOffers()
    expected = "Basic " + base64.b64encode("stoker:gehéim".encode()).decode()
    assert [call.headers.get("authorization") for call in master.calls] == [expected, expected]
    assert [call.headers.get("authorization") for call in other.calls] == [None, None]
    assert [call.headers.get("mesos-stream-id") for call in master.calls] == [None, "stream-1"]
    assert master.calls[0].body["subscribe"]["framework_info"]["principal"] == "stoker"
    assert "principal" not in other.calls[0].body["subscribe"]["framework_info"]


def test_a_secret_without_principal_is_refused() -> None:
    with pytest.raises(ValueError, match="give both"):
        SchedulerDriver(Recorder(), FRAMEWORK, "127.0.0.1:1", secret="s")


# --- b.3 10, 11: calls


def test_a_slow_call_holds_up_no_other_and_no_event(master: FakeMesos, recorder: Recorder) -> None:
    """pymesos holds one lock across all of it."""
    held = threading.Event()
    master.replies["ACCEPT"] = Reply(202, before=lambda: held.wait(20))
    with driving(master, recorder) as driver:
        stream = subscribe(master, recorder)
        slow = threading.Thread(target=driver.acceptOffers, args=([{"value": "o"}], [{"type": "LAUNCH"}]))
        slow.start()
        master.wait_calls("ACCEPT")
        assert driver.connected and not driver.aborted and driver.stream_id == "stream-1"
        driver.reviveOffers()
        stream.send({"type": "HEARTBEAT"})
        recorder.wait("processHeartBeat")
        assert slow.is_alive()
        held.set()
        slow.join(5)
        assert not slow.is_alive()


def test_calls_use_a_kept_connection_and_survive_its_death(master: FakeMesos, recorder: Recorder) -> None:
    with driving(master, recorder) as driver:
        subscribe(master, recorder)
        driver.reviveOffers()
        driver.reviveOffers()
        revives = master.wait_calls("REVIVE", 2)
        assert revives[0].connection == revives[1].connection != master.calls[0].connection
        master.close_idle_connections()
        driver.reviveOffers()
        # Died under the call: what may run twice is sent again, an ACCEPT is not.
        hang_up_once(master, "REVIVE")
        driver.reviveOffers()
        assert len(master.wait_calls("REVIVE", 5)) == 5
        hang_up_once(master, "ACCEPT")
        with pytest.raises(CallFailed, match="may have been received"):
            driver.acceptOffers([{"value": "o"}], [{"type": "LAUNCH"}])
        assert len(master.of_type("ACCEPT")) == 1
        driver.declineOffer({"value": "o"})
        assert driver.connected


def hang_up_once(master: FakeMesos, kind: str) -> None:
    def forgive() -> None:
        master.replies.pop(kind, None)

    master.replies[kind] = Reply(0, before=forgive)


def test_calls_that_get_no_answer_time_out(master: FakeMesos, recorder: Recorder) -> None:
    held = threading.Event()
    master.replies["REVIVE"] = Reply(202, before=lambda: held.wait(20))
    with driving(master, recorder, timings=Timings(call_timeout_ms=150)) as driver:
        subscribe(master, recorder)
        with pytest.raises(CallFailed, match="no bytes came in time"):
            driver.reviveOffers()
        held.set()
    assert len(master.of_type("REVIVE")) == 1


def test_connections_and_calls_are_bounded(master: FakeMesos) -> None:
    caller = Caller(timeout_ms=100, connections_max=1)
    address = parse_address(master.address)
    caller._slots.acquire()  # another call, which takes its time
    with pytest.raises(CallFailed, match="busy"):
        caller.call(address, "/", b'{"type": "X"}', {})
    assert master.calls == []
    caller._slots.release()
    for _ in range(3):
        assert caller.call(address, "/", b'{"type": "X"}', {}).status == 202
    with pytest.raises(BadCall, match="above the limit"):
        caller.call(address, "/", bytes(CALL_BYTES_MAX + 1), {})
    caller.close_idle()


def test_refusals_are_typed_and_keep_the_stream(master: FakeMesos, recorder: Recorder) -> None:
    master.replies["REVIVE"] = Reply(400, "The stream ID didn't match")
    with driving(master, recorder) as driver:
        subscribe(master, recorder)
        with pytest.raises(HttpError, match="HTTP 400: The stream ID") as caught:
            driver.reviveOffers()
        assert (caught.value.status, caught.value.body) == (400, "The stream ID didn't match")
        assert isinstance(caught.value, MesosError)
        with pytest.raises(BadCall, match="ACCEPT cannot be written as JSON"):
            driver.acceptOffers([{"value": "o"}], [{"type": float("nan")}])
        assert driver.connected


@pytest.mark.parametrize(
    "reply", [Reply(307, headers=(("Location", "//h:1/x"),)), Reply(403, "Framework is not subscribed")]
)
def test_a_call_that_shows_that_the_master_leads_us_no_more_leaves_its_stream(
    master: FakeMesos, recorder: Recorder, reply: Reply
) -> None:
    master.replies["REVIVE"] = reply
    with driving(master, recorder) as driver:
        subscribe(master, recorder)
        with pytest.raises(HttpError):
            driver.reviveOffers()
        recorder.wait("disconnected")
        subscribe(master, recorder, count=2)


# --- b.3 12: calls while disconnected


def test_calls_without_a_stream_raise_and_send_nothing(master: FakeMesos, recorder: Recorder) -> None:
    offers, tasks, status = (
        [{"value": "o"}],
        [{"task_id": {"value": "t"}}],
        update(uuid=UUID)["update"]["status"],
    )
    operation = {"operation_id": {"value": "o"}, "uuid": {"value": UUID}, "agent_id": {"value": "S1"}}
    with driving(master, recorder) as driver:
        master.wait_stream()
        for call in (
            lambda: driver.acceptOffers(offers, [{"type": "LAUNCH"}]),
            lambda: driver.acceptOffers(offers, []),
            lambda: driver.launchTasks(offers, tasks),
            lambda: driver.declineOffer(offers),
            lambda: driver.acceptInverseOffers(offers),
            lambda: driver.declineInverseOffer(offers),
            driver.reviveOffers,
            driver.suppressOffers,
            lambda: driver.killTask({"value": "t"}),
            lambda: driver.shutdownExecutor({"value": "e"}, {"value": "S1"}),
            lambda: driver.reconcileTasks([]),
            lambda: driver.reconcileOperations([operation]),
            lambda: driver.acknowledgeStatusUpdate(status),
            lambda: driver.acknowledgeOperationStatusUpdate(operation),
            lambda: driver.sendFrameworkMessage({"value": "e"}, {"value": "S1"}, "aGk="),
            lambda: driver.requestResources([]),
            lambda: driver.updateFramework(FRAMEWORK),
        ):
            with pytest.raises(Disconnected):
                call()
    assert [call.type for call in master.calls] == ["SUBSCRIBE"]


# --- b.3 13, 14, 15 and the other calls: their bodies


def test_calls_say_what_mesos_needs(master: FakeMesos, recorder: Recorder) -> None:
    task, agent, executor, offers = {"value": "t"}, {"value": "S1"}, {"value": "E1"}, [{"value": "o"}]
    filters = {"refuse_seconds": 120.0}
    operation = {
        "operation_id": {"value": "o"},
        "uuid": {"value": UUID},
        "agent_id": agent,
        "state": "OPERATION_X",
    }
    status = update(uuid=UUID, data="x")["update"]["status"]
    with driving(master, recorder) as driver:
        subscribe(master, recorder)
        driver.acceptOffers(offers, [{"type": "LAUNCH"}], filters=filters)
        driver.launchTasks(offers[0], [{"task_id": task}])
        driver.declineOffer(offers, filters=filters)
        driver.acceptInverseOffers(offers)
        driver.declineInverseOffer(offers, filters=filters)
        driver.reviveOffers(["cache"])
        driver.suppressOffers(["cache"])
        driver.killTask(task)
        driver.killTask(task, agent, grace_ms=1_500)
        driver.shutdownExecutor(executor, agent)
        driver.reconcileTasks(
            [{"task_id": task, "agent_id": agent, "state": "TASK_RUNNING"}, {"task_id": task}]
        )
        driver.reconcileTasks([])
        driver.reconcileOperations([operation])
        driver.acknowledgeStatusUpdate(status)
        driver.acknowledgeStatusUpdate(update()["update"]["status"])  # without uuid: no call
        driver.acknowledgeOperationStatusUpdate(operation)
        driver.acknowledgeOperationStatusUpdate({"uuid": {"value": UUID}})
        driver.sendFrameworkMessage(executor, agent, "aGk=")
        driver.requestResources([{"agent_id": agent}])
        sent = [call.body for call in master.calls[1:]]
        assert all(call.headers["mesos-stream-id"] == "stream-1" for call in master.calls[1:])
    assert all(body.pop("framework_id") == {"value": "F1"} for body in sent)
    assert sent == [
        {"type": "ACCEPT", "accept": {"offer_ids": offers, "operations": [{"type": "LAUNCH"}], "filters": filters}},
        {"type": "ACCEPT", "accept": {"offer_ids": offers, "operations": [{"type": "LAUNCH", "launch": {"task_infos": [{"task_id": task}]}}]}},
        {"type": "DECLINE", "decline": {"offer_ids": offers, "filters": filters}},
        {"type": "ACCEPT_INVERSE_OFFERS", "accept_inverse_offers": {"inverse_offer_ids": offers}},
        {"type": "DECLINE_INVERSE_OFFERS", "decline_inverse_offers": {"inverse_offer_ids": offers, "filters": filters}},
        {"type": "REVIVE", "revive": {"roles": ["cache"]}},
        {"type": "SUPPRESS", "suppress": {"roles": ["cache"]}},
        {"type": "KILL", "kill": {"task_id": task}},
        {"type": "KILL", "kill": {"task_id": task, "agent_id": agent, "kill_policy": {"grace_period": {"nanoseconds": 1_500_000_000}}}},
        {"type": "SHUTDOWN", "shutdown": {"executor_id": executor, "agent_id": agent}},
        {"type": "RECONCILE", "reconcile": {"tasks": [{"task_id": task, "agent_id": agent}, {"task_id": task}]}},
        {"type": "RECONCILE", "reconcile": {"tasks": []}},
        {"type": "RECONCILE_OPERATIONS", "reconcile_operations": {"operations": [{"operation_id": {"value": "o"}, "agent_id": agent}]}},
        {"type": "ACKNOWLEDGE", "acknowledge": {"agent_id": agent, "task_id": task, "uuid": UUID}},
        {"type": "ACKNOWLEDGE_OPERATION_STATUS", "acknowledge_operation_status": {"agent_id": agent, "operation_id": {"value": "o"}, "uuid": UUID}},
        {"type": "MESSAGE", "message": {"executor_id": executor, "agent_id": agent, "data": "aGk="}},
        {"type": "REQUEST", "request": {"requests": [{"agent_id": agent}]}},
    ]  # fmt: skip


def test_explicit_acknowledgements_are_the_default_and_implicit_ones_come_after_the_callback(
    master: FakeMesos, recorder: Recorder
) -> None:
    operation = {"operation_id": {"value": "o"}, "uuid": {"value": UUID}, "agent_id": {"value": "S1"}}
    operation_event = {"type": "UPDATE_OPERATION_STATUS", "update_operation_status": {"status": operation}}
    with driving(master, recorder):
        stream = subscribe(master, recorder)
        stream.send(update(uuid=UUID), {"type": "HEARTBEAT"})
        recorder.wait("processHeartBeat")
    assert master.of_type("ACKNOWLEDGE") == []
    second = Recorder()
    with FakeMesos() as other, driving(other, second, implicit_acknowledgements=True) as driver:
        stream = subscribe(other, second)
        stream.send(update(uuid=UUID), update(), operation_event)
        (call,) = other.wait_calls("ACKNOWLEDGE")
        assert call.body["acknowledge"]["uuid"] == UUID
        # pymesos sends the whole status here, gets a 400 and dies of it.
        (call,) = other.wait_calls("ACKNOWLEDGE_OPERATION_STATUS")
        assert call.body["acknowledge_operation_status"]["uuid"] == UUID
        other.replies["ACKNOWLEDGE"] = Reply(400, "Not a valid UUID")
        stream.send(update(uuid="x"), {"type": "HEARTBEAT"})
        second.wait("processHeartBeat")
        assert driver.connected and driver.callback_failure_count == 1


def test_suppression_outlives_the_connection(master: FakeMesos, recorder: Recorder) -> None:
    two_roles = {**FRAMEWORK, "roles": ["a", "b"]}
    with driving(master, recorder, framework=two_roles) as driver:
        stream = subscribe(master, recorder)
        driver.suppressOffers()
        assert driver.suppressed_roles == ["a", "b"]
        driver.reviveOffers(["a"])
        stream.cut()
        recorder.wait("disconnected")
        subscribe(master, recorder, count=2)
        driver.reviveOffers()
        master.streams[1].cut()
        recorder.wait("disconnected", 2)
        master.answer_all_subscribes(Reply(503))
        with pytest.raises(Disconnected):
            driver.suppressOffers(["a"])
        master.answer_all_subscribes(None)
        master.wait_stream(3).send(subscribed())
        recorder.wait("reregistered", 2)
    said = [call.body["subscribe"]["suppressed_roles"] for call in master.of_type("SUBSCRIBE")]
    assert said[:2] == [[], ["b"]] and said[-1] in ([], ["a"]), "the race of the last one is the test's own"


def test_update_framework_changes_what_later_subscribes_say(master: FakeMesos, recorder: Recorder) -> None:
    changed = {**FRAMEWORK, "roles": ["cache", "more"]}
    constraints = {"role_constraints": {}}
    with driving(master, recorder, principal="p", secret="s") as driver:
        stream = subscribe(master, recorder)
        master.replies["UPDATE_FRAMEWORK"] = Reply(400, "Updating 'FrameworkInfo.user' is unsupported")
        with pytest.raises(HttpError, match="unsupported"):
            driver.updateFramework({**FRAMEWORK, "user": "other"})
        assert driver.framework["user"] == "root"
        master.replies["UPDATE_FRAMEWORK"] = Reply(200)
        driver.updateFramework(changed, suppressed_roles=["more"], offer_constraints=constraints)
        stream.cut()
        master.wait_stream(2)
    info = {**changed, "id": {"value": "F1"}, "failover_timeout": 604800.0, "principal": "p"}
    said = {"framework_info": info, "suppressed_roles": ["more"], "offer_constraints": constraints}
    assert master.of_type("UPDATE_FRAMEWORK")[1].body["update_framework"] == said
    assert master.of_type("SUBSCRIBE")[1].body["subscribe"] == said | {"offer_constraints": constraints}


# --- b.3 18, 19: addresses


def test_a_redirect_without_scheme_is_followed_at_once_in_one_hop(
    master: FakeMesos, recorder: Recorder
) -> None:
    slow = Timings(retry_first_ms=60_000, retry_ms_max=60_000)
    location = f"//{master.address}/master/api/v1/scheduler"
    with FakeMesos() as standby:
        standby.answer_all_subscribes(Reply(307, headers=(("Location", location),)))
        with driving(standby, recorder, timings=slow) as driver:
            subscribe(master, recorder)
            driver.reviveOffers()
            master.wait_calls("REVIVE")
        assert len(standby.calls) == 1
    assert [(call.type, call.path) for call in master.calls] == [
        ("SUBSCRIBE", "/api/v1/scheduler"),
        ("REVIVE", "/api/v1/scheduler"),
    ]
    assert recorder.names() == ["registered"], "a redirect is no `disconnected`"


def test_a_redirect_to_the_dead_goes_back_to_the_known_master_after_a_pause(
    master: FakeMesos, recorder: Recorder
) -> None:
    with FakeMesos() as dead:
        pass
    master.answer_subscribes(*[Reply(307, headers=(("Location", f"//{dead.address}/x"),))] * 2)
    with driving(master, recorder):
        subscribe(master, recorder)
    assert len(master.of_type("SUBSCRIBE")) == 3


@pytest.mark.parametrize("location", ["", "//", "https://h:5050/x", "//h:99999/x", "ftp://x"])
def test_redirects_in_a_circle_or_to_nowhere_are_paused(
    master: FakeMesos, recorder: Recorder, location: str
) -> None:
    pauses: list[float] = []
    headers = (("Location", location),)
    master.answer_all_subscribes(Reply(307, headers=headers))
    with driving(master, recorder, uniform=lambda low, high: pauses.append(high) or high):
        master.wait_calls("SUBSCRIBE", 3 * (REDIRECTS_MAX + 1) if not location else 3)
        master.answer_all_subscribes(None)
        subscribe(master, recorder)
    asked = len(master.of_type("SUBSCRIBE")) - 1
    assert len(pauses) >= asked // (REDIRECTS_MAX + 1)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("h:1", Address("h", 1)),
        ("master.example", Address("master.example", 5050)),
        ("10.0.0.1:65535", Address("10.0.0.1", 65535)),
        ("[::1]:5051", Address("::1", 5051)),
        ("[fe80::1]", Address("fe80::1", 5050)),
        ("::1", Address("::1", 5050)),
        ("fd00:0:0:1::5050", Address("fd00:0:0:1::5050", 5050)),
    ],
)
def test_addresses_are_parsed(text: str, address: Address) -> None:
    """pymesos splits at every colon and dies of IPv6 and of hosts without port."""
    assert parse_address(text) == address
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        "", ":5050", "h:", "h:0", "h:65536", "h:-1", "h:1:2", "h:x", "h: 1", "h:1/x", "h/x", "a b", "h:\u0661",
        "[::1", "[::1]x", "[::1]:", "[h]:1", "user:pw@h:1", "@h", "h" * 300, "-h", "h:" + "1" * 5000,
        "zk://h:2181/mesos", "http://h:5050", "file:///x",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused_clearly(text: str) -> None:
    with pytest.raises(ValueError, match="expected HOST:PORT"):
        detector_for(text)
    with pytest.raises(ValueError, match="expected HOST:PORT"):
        SchedulerDriver(Recorder(), FRAMEWORK, text)


def test_locations_name_a_host_and_a_port() -> None:
    asked = Address("a", 1)
    assert address_in_location("//h:2/api/v1/scheduler", asked) == Address("h", 2)
    assert address_in_location("//[::1]:2/x", asked) == Address("::1", 2)
    assert address_in_location("http://h/x", asked) == Address("h", 5050)
    assert address_in_location("/x", asked) == asked
    for wrong in ("https://h:1/", "//h:x/", "//user@h:1/"):
        with pytest.raises(ValueError):
            address_in_location(wrong, asked)


def test_speaks_to_a_master_on_ipv6(recorder: Recorder) -> None:
    try:
        master = FakeMesos(host="::1")
    except OSError:
        pytest.skip("no IPv6 loopback here")
    with master, driving(master, recorder) as driver:
        subscribe(master, recorder)
        driver.reviveOffers()
        assert {call.headers["host"] for call in master.calls} == {master.address}


def test_a_name_with_several_addresses_tries_them_all(master: FakeMesos, recorder: Recorder) -> None:
    """`localhost` is often ::1 first, and masters listen on IPv4."""
    with driving(f"localhost:{master.port}", recorder) as driver:
        subscribe(master, recorder)
        driver.reviveOffers()


# --- broken streams


@pytest.mark.parametrize(
    "data",
    [
        b"x\n", b"2\n[]", b"3\n{x}", b"999999999999\n", encode_record(b'{"type": "OFFERS"}'),
        encode_record(b'{"type": "OFFERS", "offers": []}'),
    ],
)  # fmt: skip
def test_bytes_that_make_no_sense_break_only_the_stream(
    master: FakeMesos, recorder: Recorder, data: bytes
) -> None:
    with driving(master, recorder) as driver:
        subscribe(master, recorder).send_bytes(data)
        recorder.wait("disconnected")
        subscribe(master, recorder, count=2)
        assert driver.connected
    assert {call.type for call in master.calls} == {"SUBSCRIBE"}


@pytest.mark.parametrize(
    "how", ["not http", "bad chunk", "cut record", "end within record", "events first", "no id"]
)
def test_answers_that_break_the_rules_are_tried_again(recorder: Recorder, how: str) -> None:
    with FakeMesos(stream_ids=how != "no id") as master, driving(master, recorder) as driver:
        stream = master.wait_stream()
        if how == "not http":
            stream.send_raw(b"\x00\xff garbage\r\n")
        elif how == "bad chunk":
            stream.send_raw(b"zz\r\n{}\r\n")
        elif how == "events first":
            stream.send({"type": "HEARTBEAT"})
        elif how != "no id":
            stream.send_bytes(b"100\n{")
            stream.cut() if how == "cut record" else stream.end()
        master.wait_stream(2)
        assert not driver.connected and not driver.aborted
    assert recorder.names() == []


def test_a_new_master_ends_the_old_stream_and_no_master_waits(master: FakeMesos, recorder: Recorder) -> None:
    with FakeMesos() as other, driving(master, recorder) as driver:
        first = subscribe(master, recorder)
        driver.change_master(master.address)
        assert driver.connected
        driver.change_master(None)
        recorder.wait("disconnected")
        assert first.is_closed_by_client.wait(5)
        with pytest.raises(ValueError, match="expected HOST:PORT"):
            driver.change_master("nonsense:x")
        driver.change_master(other.address)
        other.wait_stream().send(subscribed(id="M2"))
        assert recorder.wait("reregistered")[0]["id"] == "M2"
    assert len(master.of_type("SUBSCRIBE")) == 1


@pytest.mark.parametrize("end", ["stop", "another master"])
def test_events_that_come_behind_the_end_are_not_delivered(
    master: FakeMesos, recorder: Recorder, end: str
) -> None:
    leave = {
        "stop": lambda driver, *_: driver.stop(),
        "another master": lambda driver, *_: driver.change_master(None),
    }
    recorder.on("offerRescinded", leave[end])
    rescind = {"type": "RESCIND", "rescind": {"offer_id": {"value": "o"}}}
    data = b"".join(encode_record(json.dumps(rescind).encode()) for _ in range(50))
    with driving(master, recorder) as driver:
        subscribe(master, recorder).send_bytes(data)
        recorder.wait("offerRescinded")
        driver.join() if end == "stop" else recorder.wait("disconnected")
    assert recorder.count("offerRescinded") == 1
    assert recorder.count("disconnected") == (0 if end == "stop" else 1)


# --- the process around it


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
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
    with gevent.Timeout(20):
        while sum(n == name for n, _ in seen) < count:
            gevent.sleep(0.005)
            now = time.monotonic(); gaps.append(now - last); last = now
wait("registered")
jobs = [gevent.spawn(driver.reviveOffers) for _ in range(30)]
gevent.joinall(jobs, raise_error=True)
wait("resourceOffers")
assert len(dict(seen)["resourceOffers"][0]) == 10_000
wait("disconnected")
wait("reregistered")
began = time.monotonic()
driver.stop(); driver.join()
assert time.monotonic() - began < 1
print(round(max(gaps) * 1000))
"""
    done: list[str] = []
    child = threading.Thread(target=lambda: done.append(run_python(code)))
    child.start()
    stream = master.wait_stream(deadline_s=30)
    stream.send(subscribed(heartbeat_s=0.7))
    master.wait_calls("REVIVE", 30)
    offer = {
        "id": {"value": "o"},
        "resources": [{"name": "cpus", "scalar": {"value": 4.0}, "note": "x" * 1300}],
    }
    stream.send({"type": "OFFERS", "offers": {"offers": [offer] * 10_000}})
    again = master.wait_stream(2)  # after the silence
    again.send(subscribed())
    child.join(60)
    assert done and int(done[0]) < 1_000, f"the hub stood still for {done} ms"

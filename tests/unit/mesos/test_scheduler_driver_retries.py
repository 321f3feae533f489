"""When a scheduler driver goes on, how soon, and when it does not: refusals, silence, masters that change, broken streams."""

from __future__ import annotations

import json
import random
import socket
import threading
import time

import pytest

from stoker.mesos.detector import Address
from stoker.mesos.recordio import encode_record
from stoker.mesos.scheduler_driver import SchedulerDriver, Timings, _End
from stoker.mesos.transport import Backoff
from support.drivers import FRAMEWORK, LONG_MS, assert_ends, driving, subscribe
from support.fake_mesos import HANG_UP, FakeMesos, Hold, Recorder, Reply, subscribed
from support.ports import refusing_port
from support.waiting import DEADLINE_S, wait_until

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
    said: list[str] = []
    options = {"timings": timings, "on_trouble": said.append}
    with driving(master, recorder, uniform=lambda low, high: pauses.append(high) or high, **options):
        stream = subscribe(master, recorder)
        time.sleep(0.5)  # the life
        stream.cut()
        recorder.wait("disconnected")
        master.wait_stream(2)
    assert pauses == [5, 10, 20, 5]
    assert said[-1].endswith("the connection ended within an answer"), said


def test_hosts_that_do_not_exist_or_refuse_only_delay(recorder: Recorder) -> None:
    """pymesos' thread dies of a name that cannot be resolved."""
    with refusing_port() as port:
        for nowhere in ("no-such-host.invalid:5050", f"127.0.0.1:{port}"):
            pauses: list[float] = []
            enough = threading.Event()

            def uniform(
                low: float, high: float, pauses: list[float] = pauses, enough: threading.Event = enough
            ) -> float:
                pauses.append(high)
                if len(pauses) == 2:
                    enough.set()
                return low

            with driving(nowhere, recorder, uniform=uniform) as driver:
                assert enough.wait(DEADLINE_S)
                assert not driver.aborted
    assert recorder.names() == []


def test_stop_and_a_new_master_end_a_long_pause_at_once(master: FakeMesos, recorder: Recorder) -> None:
    slow = Timings(retry_first_ms=LONG_MS, retry_ms_max=LONG_MS)
    master.answer_all_subscribes(Reply(503))
    with FakeMesos() as other, driving(master, recorder, timings=slow) as driver:
        master.wait_calls("SUBSCRIBE")
        driver.change_master(other.address)
        subscribe(other, recorder)
        assert driver.master == other.address
        other.close()
        recorder.wait("disconnected")
        assert_ends(driver)


def test_stop_ends_a_connect_that_hangs_at_once(recorder: Recorder) -> None:
    """A listener with a full backlog lets a connect wait for its whole timeout."""
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        hangs = Timings(connect_timeout_ms=LONG_MS)
        with driving(f"127.0.0.1:{listener.getsockname()[1]}", recorder, timings=hangs) as driver:
            time.sleep(0.2)  # it connects by then, most likely; it must end so or so
            assert_ends(driver)


def test_stop_ends_a_wait_for_the_answer_and_for_events_at_once(
    master: FakeMesos, recorder: Recorder
) -> None:
    with Hold() as hold:
        master.answer_subscribes(Reply(503, before=hold))
        for _ in range(2):
            with driving(master, recorder, timings=Timings(call_timeout_ms=LONG_MS)) as driver:
                master.wait_calls("SUBSCRIBE")
                assert_ends(driver)


def test_no_answer_and_no_first_event_in_time_are_given_up(master: FakeMesos, recorder: Recorder) -> None:
    hasty = Timings(retry_first_ms=10, call_timeout_ms=150)
    with Hold() as hold:
        master.answer_subscribes(Reply(503, before=hold), Reply(200))
        with driving(master, recorder, timings=hasty) as driver:
            count = 1
            while not recorder.names():  # what comes too late for a stream may be in time for the next one
                count += 1
                stream = master.wait_stream(count)
                stream.send(subscribed())
                wait_until(lambda s=stream: s.is_closed_by_client.is_set() or recorder.names(), "either")
            assert driver.framework_id == "F1"
    assert set(recorder.names()) == {"registered"}


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
    """Five heartbeats come in time; three missed ones are too many."""
    with driving(master, recorder) as driver:
        stream = subscribe(master, recorder, heartbeat_s=0.7)
        for _ in range(5):
            time.sleep(0.5)
            stream.send({"type": "HEARTBEAT"})
        recorder.wait("processHeartBeat", 5)
        assert driver.connected
        recorder.wait("disconnected")
        assert stream.is_closed_by_client.wait(DEADLINE_S)
        subscribe(master, recorder, count=2)
    assert master.of_type("SUBSCRIBE")[1].body["framework_id"] == {"value": "F1"}


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
        assert first.is_closed_by_client.wait(DEADLINE_S)
        with pytest.raises(ValueError, match="expected HOST:PORT"):
            driver.change_master("nonsense:x")
        driver.change_master(other.address)
        other.wait_stream().send(subscribed(id="M2"))
        assert recorder.wait("reregistered")[0]["id"] == "M2"
    assert len(master.of_type("SUBSCRIBE")) == 1


def test_a_master_that_is_told_between_the_look_and_the_stream_is_followed(
    master: FakeMesos, recorder: Recorder
) -> None:
    """The detector's thread may get its turn anywhere; what it says then is not said again."""

    class ToldLate(SchedulerDriver):
        to_tell: list[str | None] = []

        def _follow(self, address: Address) -> _End:
            while self.to_tell:
                self.change_master(self.to_tell.pop())
            return super()._follow(address)

    slow = Timings(retry_first_ms=LONG_MS, retry_ms_max=LONG_MS)
    with FakeMesos() as other:
        driver = ToldLate(recorder, FRAMEWORK, master.address, timings=slow)
        driver.to_tell = [other.address, None]
        driver.start()
        try:
            subscribe(other, recorder)
        finally:
            assert_ends(driver)
    assert master.calls == []


def test_what_fails_in_the_drivers_own_thread_is_told(master: FakeMesos, recorder: Recorder) -> None:
    def uniform(low: float, high: float) -> float:
        raise RuntimeError("no chance today")

    master.answer_all_subscribes(Reply(503))
    with driving(master, recorder, uniform=uniform) as driver:
        (message,) = recorder.wait("error")
        assert "no chance today" in message
        driver.join()
        assert driver.aborted
    assert recorder.names() == ["error"]


@pytest.mark.parametrize("heartbeat_s", [1e12, 1e308, float("inf"), -1.0])
def test_an_absurd_heartbeat_interval_does_not_end_the_driver(
    master: FakeMesos, recorder: Recorder, heartbeat_s: float
) -> None:
    with driving(master, recorder) as driver:
        stream = subscribe(master, recorder, heartbeat_s=heartbeat_s)
        if heartbeat_s > 0:
            stream.send({"type": "HEARTBEAT"})
            recorder.wait("processHeartBeat")
        assert not driver.aborted


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


def test_a_master_that_is_too_old_is_left_for_good_and_said(master: FakeMesos, recorder: Recorder) -> None:
    with driving(master, recorder):
        master.wait_stream().send(subscribed(version="1.8.1"))
        (message,) = recorder.wait("error")
    assert message == "its version is 1.8.1: Mesos 1.9 or newer is needed"
    assert len(master.of_type("SUBSCRIBE")) == 1


def test_a_server_that_is_no_mesos_master_is_asked_again_and_said(master: FakeMesos) -> None:
    reasons: list[str] = []
    master.answer_all_subscribes(Reply(404, "nothing here"))
    with driving(master, on_trouble=reasons.append):
        master.wait_calls("SUBSCRIBE", 3)
    assert any("is there a Mesos master at this address?" in reason for reason in reasons)

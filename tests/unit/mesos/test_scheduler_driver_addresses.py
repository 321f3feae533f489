"""Masters' addresses as people and redirects write them."""

from __future__ import annotations

import pytest

from stoker.mesos.detector import Address, address_in_location, detector_for, parse_address
from stoker.mesos.scheduler_driver import REDIRECTS_MAX, SchedulerDriver, Timings
from support.drivers import FRAMEWORK, LONG_MS, driving, subscribe
from support.fake_mesos import FakeMesos, Recorder, Reply
from support.ports import refusing_port


def test_a_redirect_without_scheme_is_followed_at_once_in_one_hop(
    master: FakeMesos, recorder: Recorder
) -> None:
    slow = Timings(retry_first_ms=LONG_MS, retry_ms_max=LONG_MS)
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


def test_a_detector_that_names_the_master_that_a_redirect_led_to_changes_nothing(
    master: FakeMesos, recorder: Recorder
) -> None:
    """ZooKeeper says it a moment later than the old master; the stream is good already."""
    with FakeMesos() as standby:
        standby.answer_all_subscribes(Reply(307, headers=(("Location", f"//{master.address}/x"),)))
        with driving(standby, recorder) as driver:
            stream = subscribe(master, recorder)
            driver.change_master(master.address)
            assert driver.connected and driver.master == master.address
            stream.send({"type": "HEARTBEAT"})
            recorder.wait("processHeartBeat")
            driver.change_master(standby.address)  # and from there on it is left as any other
            recorder.wait("disconnected")
            subscribe(master, recorder, count=2)
    assert len(standby.calls) == 2


def test_a_redirect_to_the_dead_goes_back_to_the_known_master_after_a_pause(
    master: FakeMesos, recorder: Recorder
) -> None:
    with refusing_port() as dead:
        master.answer_subscribes(*[Reply(307, headers=(("Location", f"//127.0.0.1:{dead}/x"),))] * 2)
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
        "http://h:5050", "file:///x",
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

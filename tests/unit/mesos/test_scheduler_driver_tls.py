"""The driver and the operator's calls over TLS."""

from __future__ import annotations

import socket
import ssl
import threading
from pathlib import Path

import pytest

from stoker.framework.config import Config, ConfigError
from stoker.mesos.detector import parse_address
from stoker.mesos.errors import CallFailed
from stoker.mesos.operator import Operator
from stoker.mesos.scheduler_driver import Timings
from support.drivers import driving, subscribe, update
from support.fake_mesos import FakeMesos, Recorder, Reply
from support.tls import AUTHORITY, SERVER, TlsFront, trusting
from support.waiting import DEADLINE_S


class Troubles:
    """What a driver says of why it has no stream."""

    def __init__(self) -> None:
        self._reasons: list[str] = []
        self._changed = threading.Condition()

    def take(self, reason: str) -> None:
        with self._changed:
            self._reasons.append(reason)
            self._changed.notify_all()

    def wait(self, text: str) -> None:
        with self._changed:
            found = self._changed.wait_for(lambda: any(text in r for r in self._reasons), DEADLINE_S)
            assert found, self._reasons


def test_the_driver_follows_a_master_behind_tls() -> None:
    recorder = Recorder()
    with FakeMesos() as master, TlsFront((master.host, master.port)) as front:
        with driving(front.address, recorder, tls=trusting()) as driver:
            stream = subscribe(master, recorder)
            stream.send(update())
            recorder.wait("statusUpdate")
            driver.reviveOffers()
            master.wait_calls("REVIVE")
            stream.end()
            subscribe(master, recorder, count=2)  # and `driving` stops it in the middle of this stream


def test_a_certificate_of_nobody_that_is_trusted_is_said_and_nothing_is_sent() -> None:
    troubles = Troubles()
    with FakeMesos() as master, TlsFront((master.host, master.port)) as front:
        options = {
            "tls": ssl.create_default_context(),
            "on_trouble": troubles.take,
            "secret": "s",
            "principal": "p",
        }
        with driving(front.address, **options):
            troubles.wait("its certificate is not trusted")
        assert not master.calls


def test_a_master_that_speaks_plain_http_is_told_apart() -> None:
    troubles = Troubles()
    with FakeMesos() as master, driving(master, tls=trusting(), on_trouble=troubles.take):
        troubles.wait("no TLS connection")


def test_a_side_that_does_not_answer_a_tls_greeting_is_asked_whether_it_speaks_tls() -> None:
    troubles = Troubles()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        timings = Timings(call_timeout_ms=100)
        with driving(address, tls=trusting(), on_trouble=troubles.take, timings=timings):
            troubles.wait("does the other side speak TLS there?")
        with pytest.raises(CallFailed, match=r"does the other side speak TLS there\?"):
            Operator(parse_address(address), tls=trusting(), timeout_ms=100).frameworks()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "asks for a principal and a secret, and none was given"),
        ({"principal": "p", "secret": "s"}, "does not take our principal and secret"),
    ],
)
def test_a_401_says_whether_a_secret_was_given(given: dict[str, str], says: str) -> None:
    troubles = Troubles()
    with FakeMesos() as master:
        master.answer_all_subscribes(Reply(401, "no"))
        with driving(master, on_trouble=troubles.take, **given):
            troubles.wait(says)


def test_a_redirect_keeps_tls_and_one_to_plain_http_is_refused() -> None:
    troubles = Troubles()
    recorder = Recorder()
    with FakeMesos() as master, TlsFront((master.host, master.port)) as front, FakeMesos() as standby:
        with TlsFront((standby.host, standby.port)) as standby_front:
            plain = Reply(307, headers=(("Location", f"http://{master.address}/api/v1/scheduler"),))
            schemeless = Reply(307, headers=(("Location", f"//{front.address}/api/v1/scheduler"),))
            standby.answer_subscribes(plain, schemeless)
            with driving(standby_front.address, recorder, tls=trusting(), on_trouble=troubles.take):
                troubles.wait("only https is spoken")
                subscribe(master, recorder)


def test_the_operators_calls_go_over_tls() -> None:
    with FakeMesos() as master, TlsFront((master.host, master.port)) as front:
        answer = '{"type": "GET_FRAMEWORKS", "get_frameworks": {}}'
        master.replies["GET_FRAMEWORKS"] = Reply(200, answer)
        assert Operator(parse_address(front.address), tls=trusting()).frameworks() == []
        with pytest.raises(CallFailed, match="certificate"):
            Operator(parse_address(front.address), tls=ssl.create_default_context()).frameworks()


def test_the_configuration_makes_the_context(tmp_path: Path) -> None:
    plain = Config("h:5050", "file:/j")
    assert plain.master_context() is None
    config = Config("h:5050", "file:/j", master_tls=True, master_ca=AUTHORITY, master_certificate=SERVER)
    assert config.master_context() is not None
    missing = Config("h:5050", "file:/j", master_tls=True, master_ca=str(tmp_path / "none.pem"))
    with pytest.raises(ConfigError, match=r"none\.pem"):
        missing.master_context()
    with pytest.raises(ConfigError, match="--master-tls"):
        Config("h:5050", "file:/j", master_ca=AUTHORITY).check()

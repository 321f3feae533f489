"""Asking a master who is there: answers, refusals, redirects, and a master that is none."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest

from stoker.mesos import operator
from stoker.mesos.detector import parse_address
from stoker.mesos.errors import CallFailed, HttpError
from stoker.mesos.operator import KnownFramework, Operator
from support.fake_mesos import HANG_UP, FakeMesos, Reply


def framework(framework_id: str, *, name: str = "stoker", **fields: Any) -> dict[str, Any]:
    info = {"user": "u", "name": name, "id": {"value": framework_id}, "roles": ["cache"]}
    return {"framework_info": info | fields, "active": True, "connected": True, "recovered": False}


def frameworks_reply(*items: dict[str, Any]) -> Reply:
    body = {"frameworks": list(items), "completed_frameworks": [framework("GONE")]}
    return Reply(200, json.dumps({"type": "GET_FRAMEWORKS", "get_frameworks": body}))


def asked(mesos: FakeMesos, **options: Any) -> Operator:
    return Operator(parse_address(mesos.address), **options)


def test_frameworks_that_are_not_removed_are_named_with_their_roles() -> None:
    away = framework("F2") | {"connected": False, "active": False}
    old = framework("F3", role="x")
    del old["framework_info"]["roles"]
    plain = framework("F4")
    del plain["framework_info"]["roles"]
    with FakeMesos() as mesos:
        mesos.replies["GET_FRAMEWORKS"] = frameworks_reply(framework("F1"), away, old, plain)
        assert asked(mesos).frameworks() == [
            KnownFramework("F1", "stoker", ("cache",), True),
            KnownFramework("F2", "stoker", ("cache",), False),
            KnownFramework("F3", "stoker", ("x",), True),
            KnownFramework("F4", "stoker", ("*",), True),
        ]
        (call,) = mesos.of_type("GET_FRAMEWORKS")
        assert (call.method, call.path) == ("POST", "/api/v1") and "authorization" not in call.headers


def test_agents_that_are_not_back_are_named() -> None:
    body = {"agents": [], "recovered_agents": [{"hostname": "h", "id": {"value": "S1"}}]}
    with FakeMesos() as mesos:
        mesos.replies["GET_AGENTS"] = Reply(200, json.dumps({"type": "GET_AGENTS", "get_agents": body}))
        assert asked(mesos).missing_agents() == ["S1"]


def test_the_version_is_told() -> None:
    body = {"type": "GET_VERSION", "get_version": {"version_info": {"version": "1.11.0"}}}
    with FakeMesos() as mesos:
        mesos.replies["GET_VERSION"] = Reply(200, json.dumps(body))
        assert asked(mesos).version() == "1.11.0"
        mesos.replies["GET_VERSION"] = Reply(200, '{"type": "GET_VERSION", "get_version": {}}')
        assert asked(mesos).version() == ""


def test_a_web_server_that_is_no_mesos_is_said_in_one_line() -> None:
    page = "<!DOCTYPE html>\n<html><body>\n<h1>Unsupported method</h1>\n</body></html>"
    with FakeMesos() as mesos:
        mesos.replies["GET_FRAMEWORKS"] = Reply(501, page)
        with pytest.raises(HttpError, match="a page of HTML.*is there a Mesos master") as error:
            asked(mesos).frameworks()
        assert "\n" not in str(error.value) and "<" not in str(error.value)


def test_credentials_go_with_each_call() -> None:
    with FakeMesos() as mesos:
        mesos.replies["GET_FRAMEWORKS"] = frameworks_reply()
        assert asked(mesos, principal="p", secret="s:é").frameworks() == []
        (call,) = mesos.of_type("GET_FRAMEWORKS")
        assert call.headers["authorization"] == "Basic cDpzOsOp"


@pytest.mark.parametrize("status", [401, 403, 503, 500])
def test_a_refusal_is_an_error_with_its_status(status: int) -> None:
    with FakeMesos() as mesos:
        mesos.replies["GET_FRAMEWORKS"] = Reply(status, "not you")
        with pytest.raises(HttpError, match="not you") as error:
            asked(mesos).frameworks()
        assert error.value.status == status


def test_a_redirect_is_followed_to_the_leading_master() -> None:
    with FakeMesos() as standby, FakeMesos() as leader:
        location = (("Location", f"//{leader.address}/master/api/v1"),)
        standby.replies["GET_FRAMEWORKS"] = Reply(307, "", location)
        leader.replies["GET_FRAMEWORKS"] = frameworks_reply(framework("F1"))
        assert [f.framework_id for f in asked(standby).frameworks()] == ["F1"]


def test_masters_that_redirect_in_a_circle_are_given_up() -> None:
    with FakeMesos() as mesos:
        mesos.replies["GET_FRAMEWORKS"] = Reply(307, "", (("Location", f"//{mesos.address}/x"),))
        with pytest.raises(CallFailed, match="no master leads"):
            asked(mesos).frameworks()
        assert len(mesos.of_type("GET_FRAMEWORKS")) == operator.REDIRECTS_MAX + 1


@pytest.mark.parametrize(
    "reply",
    [
        HANG_UP,
        Reply(200, "<html>a captive portal</html>"),
        Reply(200, "[]"),
        Reply(200, '{"type":"GET_AGENTS","get_agents":{}}'),
        Reply(200, '{"type":"GET_FRAMEWORKS","get_frameworks":{"frameworks":[{}]}}'),
        Reply(200, '{"type":"GET_FRAMEWORKS","get_frameworks":{"frameworks":["x"]}}'),
        Reply(307, "", (("Location", "https://h:1/"),)),
        Reply(200, "{", (("Content-Length", "99"),), then_close=True),
    ],
)
def test_what_is_no_answer_of_a_master_is_never_taken_for_none(reply: Reply) -> None:
    with FakeMesos() as mesos:
        mesos.replies["GET_FRAMEWORKS"] = reply
        with pytest.raises(CallFailed, match=mesos.address):
            asked(mesos).frameworks()


def test_a_master_that_is_not_there_is_an_error() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(CallFailed, match=address):
            Operator(parse_address(address)).frameworks()


def test_a_silent_master_is_an_error_after_a_while() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(CallFailed, match="no answer in time"):
            Operator(parse_address(address), timeout_ms=50).frameworks()


def test_an_answer_that_takes_too_long_is_given_up() -> None:
    clock = iter(range(0, 10**9, operator.ANSWER_TIMEOUT_MS))
    with FakeMesos() as mesos:
        mesos.replies["GET_FRAMEWORKS"] = frameworks_reply()
        with pytest.raises(CallFailed, match="no answer in time"):
            asked(mesos, monotonic_s=lambda: float(next(clock))).frameworks()

"""Which address and path leads where: the HTTP surface of masters and agents.

A request is checked in the order of a real master: who calls, whether this master leads, the method, the call itself, the state of
the framework.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from stoker.mesos.embedded.core import operator, pages, view
from stoker.mesos.embedded.core.agent import Agent
from stoker.mesos.embedded.core.calls import (
    Answer,
    Refused,
    decode_executor_call,
    decode_scheduler_call,
    require_method,
    require_stream_accept,
)
from stoker.mesos.embedded.core.codec import Message
from stoker.mesos.embedded.core.master import Master
from stoker.mesos.embedded.core.values import VERSION
from stoker.mesos.embedded.http import Request, Stream, json_answer
from stoker.mesos.embedded.masters import MasterSeat

if TYPE_CHECKING:
    from stoker.mesos.embedded.server import EmbeddedMesos

logger = logging.getLogger(__name__)

FAULTS_PATH = "/stoker/faults"

_JSON = ("Content-Type", "application/json")
_NOT_FOUND = Answer(404, "404 Not Found.")
# What a real one answers there, and this one has not.
_NOT_AT_MASTERS = frozenset(
    "/create-volumes /destroy-volumes /reserve /unreserve /quota /weights /machine/down /machine/up /maintenance/schedule "
    "/maintenance/status /files/browse /files/read /files/download /files/debug /logging/toggle /system/stats.json".split()
)
_NOT_AT_AGENTS = frozenset(
    "/flags /containers /containerizer/debug /monitor/statistics /metrics/snapshot /files/browse /files/read "
    "/files/download /files/debug /logging/toggle /system/stats.json".split()
)
_VIEWS: dict[str, Callable[[Master, int], Message]] = {
    "/state": lambda master, now_ms: view.state(master),
    "/state-summary": lambda master, now_ms: pages.state_summary(master),
    "/tasks": lambda master, now_ms: view.tasks(master),
    "/slaves": lambda master, now_ms: pages.slaves(master),
    "/frameworks": lambda master, now_ms: pages.frameworks(master),
    "/roles": lambda master, now_ms: pages.roles(master),
    "/metrics/snapshot": pages.metrics,
}


class Routes:
    """See the module's text."""

    def __init__(self, mesos: EmbeddedMesos) -> None:
        self._mesos = mesos

    def at_master(self, number: int, request: Request) -> Answer | Stream:
        """Answer a request at master `number`'s address."""
        try:
            return self._at_master(self._mesos.masters[number - 1], request)
        except Refused as refusal:
            return refusal.answer

    def at_agent(self, number: int, request: Request) -> Answer | Stream:
        """Answer a request at agent `number`'s address."""
        agent = self._mesos.cluster.agent(number)
        path = request.path.removeprefix(f"/slave({number})")
        try:
            if path == "/api/v1/executor":
                return self._executor_call(request, agent)
            if path == "/api/v1" or path.startswith("/api/v1/"):
                require_method(request.method, "POST")
                return operator.refuse_on_agent(request.headers, request.body)
            if path == "/health":
                return Answer(200)
            if path == "/state":
                return json_answer(pages.agent_state(agent, self._mesos.cluster.master))
            if path == "/version":
                return json_answer({"version": VERSION})
            return _absent(path, _NOT_AT_AGENTS)
        except Refused as refusal:
            return refusal.answer

    def at_control(self, request: Request) -> Answer | Stream:
        """Take an order for a fault, at an address that outlives all masters."""
        try:
            if request.path != FAULTS_PATH:
                return _NOT_FOUND
            require_method(request.method, "POST")
            return self._mesos.faults.order(request.body)
        except Refused as refusal:
            return refusal.answer

    def _at_master(self, seat: MasterSeat, request: Request) -> Answer | Stream:
        path = request.path.removeprefix("/master") or "/"
        if request.path == "/version":
            return json_answer({"version": VERSION})
        if path == "/health":
            return Answer(200)
        if path == "/redirect":
            return Answer(307, "", (("Location", f"//{seat.leader_endpoint()}"),))
        if path == "/api/v1/scheduler":
            principal = self._mesos.authenticator.authenticate(request.headers)
            seat.require_leading(path)
            require_method(request.method, "POST")
            return self._scheduler_call(request, principal)
        if path.startswith("/slave(") and path.endswith("/api/v1/executor"):
            return self._executor_call(request, None)
        if path == "/api/v1" or path.startswith("/api/v1/"):
            seat.require_leading(path)
            require_method(request.method, "POST")
            return self._operator_call(request)
        if path == "/teardown":
            seat.require_leading(path)
            require_method(request.method, "POST")
            return self._teardown(request)
        if path == "/flags":
            return json_answer({"flags": self._flags()})
        show = _VIEWS.get(path)
        if show is None:
            return _absent(path, _NOT_AT_MASTERS)
        seat.require_leading(path)
        return self._mesos.ask(lambda now_ms: json_answer(show(self._mesos.cluster.master, now_ms)))

    def _scheduler_call(self, request: Request, principal: str | None) -> Answer | Stream:
        mesos = self._mesos
        call = decode_scheduler_call(request.headers, request.body)
        stream_id = request.headers.get("mesos-stream-id")
        framework = mesos.cluster.master.frameworks.get(call.get("framework_id", {}).get("value", ""))
        owner = framework.info.get("principal") if framework is not None else None
        mesos.authenticator.check(call, principal, owner)
        if call["type"] != "SUBSCRIBE":
            if mesos.faults.swallows(call):
                return Answer(202)
            return mesos.ask(lambda now_ms: mesos.cluster.master.call(call, stream_id, now_ms))
        require_stream_accept(request.headers)
        if stream_id is not None:
            raise Refused(400, "Subscribe calls should not include the 'Mesos-Stream-Id' header")
        if principal is not None:
            call["subscribe"]["framework_info"].setdefault("principal", principal)
        fresh_id = mesos.cluster.new_stream_id()
        stream = mesos.open_stream((("Mesos-Stream-Id", fresh_id), _JSON))
        logger.info(
            "stream=%d framework=%s subscribes", stream.number, call.get("framework_id", {}).get("value")
        )
        mesos.step(lambda now_ms: mesos.cluster.master.subscribe(call, stream.number, fresh_id, now_ms))
        return stream

    def _executor_call(self, request: Request, agent: Agent | None) -> Answer | Stream:
        mesos = self._mesos
        require_method(request.method, "POST")
        call = decode_executor_call(request.headers, request.body)
        agent = agent or mesos.cluster.find_agent(call)
        refusal = mesos.cluster.check_executor(call, agent)
        if refusal is not None or agent is None:
            return refusal or _NOT_FOUND
        caller = agent
        if call["type"] != "SUBSCRIBE":
            return mesos.ask(lambda now_ms: caller.call(call, now_ms))
        require_stream_accept(request.headers)
        stream = mesos.open_stream((_JSON,))
        mesos.step(lambda now_ms: caller.subscribe(call, stream.number, now_ms))
        return stream

    def _operator_call(self, request: Request) -> Answer:
        mesos = self._mesos
        call = operator.decode_operator_call(request.headers, request.body)
        return mesos.ask(lambda now_ms: operator.answer(mesos.cluster.master, call, now_ms))

    def _teardown(self, request: Request) -> Answer:
        """The endpoint from before the operator API: a form with the framework's id."""
        name = "".join(parse_qs(request.body.decode(errors="replace")).get("frameworkId", [""]))
        call: Message = {"type": "TEARDOWN", "teardown": {"framework_id": {"value": name}}}
        return self._mesos.ask(lambda now_ms: operator.answer(self._mesos.cluster.master, call, now_ms))

    def _flags(self) -> Message:
        config, settings = self._mesos.config, self._mesos.config.settings
        flags: Message = {
            "allocation_interval": f"{settings.allocation_interval_ms}ms",
            "agent_ping_timeout": f"{settings.agent_ping_timeout_ms}ms",
            "max_agent_ping_timeouts": str(settings.agent_ping_timeouts_max),
            "agent_reregister_timeout": f"{settings.agent_reregister_timeout_ms}ms",
            "authenticate_http_frameworks": str(bool(config.credentials)).lower(),
            "registry": "replicated_log" if config.keeps_registry else "in_memory",
            "port": str(config.port),
            "work_dir": str(config.work_dir),
        }
        if config.zk is not None:
            hosts = ",".join(f"{host}:{port}" for host, port in config.zk.hosts)
            flags["zk"] = f"zk://{hosts}{config.zk.path}"
        return flags


def _absent(path: str, not_ours: frozenset[str]) -> Answer:
    return Answer(501, f"The embedded Mesos does not have {path}") if path in not_ours else _NOT_FOUND

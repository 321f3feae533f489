"""From an HTTP request to a well-formed call, or to the refusal that a real master or agent gives.

Owns the order of the checks and their texts, up to where the state of a framework or an executor begins to matter.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass

from stoker.mesos.embedded.core.codec import CodecError, Message, decode, parse_json
from stoker.mesos.embedded.core.messages import SCHEMA

_TYPES = "application/json or application/x-protobuf"
_NEEDS_NO_MESSAGE = frozenset({"TEARDOWN", "REVIVE", "SUPPRESS", "HEARTBEAT"})


@dataclass(frozen=True, slots=True)
class Answer:
    """What an HTTP call is answered: status, body, extra headers; no body means Content-Length 0 and no Content-Type."""

    status: int
    text: str = ""
    headers: tuple[tuple[str, str], ...] = ()


class Refused(Exception):
    """The request is answered with `answer` and has no other effect."""

    def __init__(self, status: int, text: str, headers: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(text)
        self.answer = Answer(status, text, headers)


def require_method(method: str, allowed: str) -> None:
    """:raises Refused: 405, `method` is not `allowed`."""
    if method == allowed:
        return
    text = f"405 Method Not Allowed. Expecting one of {{ '{allowed}' }}, but received '{method}'."
    raise Refused(405, text, (("Allow", allowed),))


def decode_scheduler_call(headers: Mapping[str, str], body: bytes) -> Message:
    """Return the validated scheduler call in `body`; `headers` have lower-case names.

    :raises Refused: 400 or 415 as a real master answers.
    """
    call = decode_call("SchedulerCall", "scheduler::Call", headers, body)
    if call["type"] == "SUBSCRIBE":
        _require(call, "subscribe", "scheduler::Call")
        inner = call["subscribe"]["framework_info"].get("id")
        if inner != call.get("framework_id"):
            raise _invalid("scheduler::Call", "'framework_id' differs from 'subscribe.framework_info.id'")
        return call
    _require(call, "framework_id", "scheduler::Call")
    if call["type"] not in _NEEDS_NO_MESSAGE:
        _require(call, call["type"].lower(), "scheduler::Call")
    if call["type"] == "UPDATE_FRAMEWORK":
        if call["update_framework"]["framework_info"].get("id") != call["framework_id"]:
            raise _invalid(
                "scheduler::Call", "'framework_id' differs from 'update_framework.framework_info.id'"
            )
    if call["type"] == "ACKNOWLEDGE_OPERATION_STATUS":
        _require(call["acknowledge_operation_status"], "agent_id", "scheduler::Call")
    if call["type"] in ("ACKNOWLEDGE", "ACKNOWLEDGE_OPERATION_STATUS"):
        _require_uuid(call[call["type"].lower()]["uuid"], "scheduler::Call")
    return call


def decode_executor_call(headers: Mapping[str, str], body: bytes) -> Message:
    """Return the validated executor call in `body`; `headers` have lower-case names.

    :raises Refused: 400 or 415 as a real agent answers.
    """
    call = decode_call("ExecutorCall", "Executor::Call", headers, body)
    if call["type"] not in _NEEDS_NO_MESSAGE:
        _require(call, call["type"].lower(), "Executor::Call")
    if call["type"] == "UPDATE":
        _check_update(call)
    return call


def decode_call(message: str, kind: str, headers: Mapping[str, str], body: bytes) -> Message:
    """Return the call in `body`, of the schema's `message`; its `type` is there. `kind` is what texts call it.

    :raises Refused: 400 or 415 as a real master or agent answers.
    """
    call = _decode(message, headers, body)
    _require(call, "type", kind)
    return call


def require_stream_accept(headers: Mapping[str, str]) -> None:
    """:raises Refused: 406, a subscriber that takes no JSON (the embedded Mesos has no protobuf)."""
    accept = headers.get("accept", "*/*")
    types = {part.split(";", 1)[0].strip().lower() for part in accept.split(",")}
    if not types & {"*/*", "application/*", "application/json"}:
        raise Refused(406, "Expecting 'Accept' to allow 'application/x-protobuf' or 'application/json'")


def _decode(message: str, headers: Mapping[str, str], body: bytes) -> Message:
    content_type = headers.get("content-type")
    if content_type is None:
        raise Refused(400, "Expecting 'Content-Type' to be present")
    if content_type == "application/x-protobuf":
        raise Refused(400, "Failed to parse body into Call protobuf")
    if content_type != "application/json":
        raise Refused(415, f"Expecting 'Content-Type' of {_TYPES}")
    try:
        value = parse_json(body)
    except CodecError as error:
        raise Refused(400, f"Failed to parse body into JSON: {error}") from error
    try:
        return decode(SCHEMA, message, value)
    except CodecError as error:
        raise Refused(400, f"Failed to convert JSON into Call protobuf: {error}") from error


def _check_update(call: Message) -> None:
    status = call["update"]["status"]
    framework_id, executor_id = call["framework_id"]["value"], call["executor_id"]["value"]
    if "uuid" not in status:
        raise _invalid("Executor::Call", "Expecting 'uuid' to be present")
    _require_uuid(status["uuid"], "Executor::Call")
    named = status.get("executor_id", call["executor_id"])["value"]
    if named != executor_id:
        text = f"ExecutorID in Call: {executor_id} does not match ExecutorID in TaskStatus: {named}"
        raise _invalid("Executor::Call", text)
    origin = f"from executor {executor_id} of framework {framework_id}"
    if status.get("source") != "SOURCE_EXECUTOR":
        raise _invalid(
            "Executor::Call", f"Received Call {origin} with invalid source, expecting 'SOURCE_EXECUTOR'"
        )
    if status["state"] == "TASK_STAGING":
        raise _invalid("Executor::Call", f"Received TASK_STAGING {origin} which is not allowed")


def _require(call: Message, key: str, kind: str) -> None:
    if key not in call:
        raise _invalid(kind, f"Expecting '{key}' to be present")


def _require_uuid(encoded: str, kind: str) -> None:
    raw = base64.b64decode(encoded)
    if len(raw) != 16 or raw[8] & 0xC0 != 0x80:
        raise _invalid(kind, "Not a valid UUID")


def _invalid(kind: str, text: str) -> Refused:
    return Refused(400, f"Failed to validate {kind}: {text}")

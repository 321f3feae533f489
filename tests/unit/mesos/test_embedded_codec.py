"""JSON as Mesos reads it: what is dropped, filled in, converted, and what it complains about."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.mesos.embedded.core.codec import CodecError, decode, parse_json
from stoker.mesos.embedded.core.messages import SCHEMA
from stoker.mesos.embedded.core.values import format_duration


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"hello", "syntax error at line 1 near: hello"),
        (b"", "syntax error at line 1 near: "),
        (b'{"a": 1', "syntax error at line 1 near: "),
        (b'{"a": 1} {}', "Parsed JSON included non-whitespace trailing characters:  {}"),
        (b'{"a": NaN}', "syntax error at line 1 near: NaN"),
        (b"\xff", "syntax error at line 1 near: byte 0 is not UTF-8"),
        (b"[" * 100_000, "syntax error at line 1 near: nested too deeply"),
        (b"[" * 200 + b"]" * 200, "syntax error at line 1 near: nested deeper than 100 levels"),
    ],
)
def test_says_why_it_is_no_json(body: bytes, text: str) -> None:
    with pytest.raises(CodecError) as raised:
        parse_json(body)
    assert str(raised.value) == text


def test_refuses_a_number_of_thousands_of_digits() -> None:
    with pytest.raises(CodecError, match="syntax error"):
        parse_json(b"1" * 10_000)


@pytest.mark.parametrize("body", [b' {"a": [1, 2]} \n', b"[]", b"null", b"1.5"])
def test_takes_json_with_white_space_around(body: bytes) -> None:
    parse_json(body)


@pytest.mark.parametrize(
    ("message", "value", "text"),
    [
        ("SchedulerCall", [], "Expecting a JSON object"),
        ("SchedulerCall", {"type": 5}, "Not expecting a JSON number for field 'type'"),
        ("SchedulerCall", {"framework_id": "x"}, "Not expecting a JSON string for field 'framework_id'"),
        ("SchedulerCall", {"accept": True}, "Not expecting a JSON boolean for field 'accept'"),
        ("SchedulerCall", {"revive": {"roles": "a"}}, "Not expecting a JSON string for field 'roles'"),
        ("SchedulerCall", {"kill": {}}, "Missing required fields: kill.task_id"),
        ("Subscribe", {}, "Missing required fields: framework_info"),
        (
            "Subscribe",
            {"framework_info": {}},
            "Missing required fields: framework_info.user, framework_info.name",
        ),
        ("Accept", {"offer_ids": [{"value": "a"}, {}]}, "Missing required fields: offer_ids[1].value"),
        (
            "ExecutorMessage",
            {"data": "no!"},
            "Failed to base64 decode bytes field 'data': Invalid character '!'",
        ),
        ("Scalar", {"value": "NaN"}, "Failed to convert 'NaN' into a number for field 'value'"),
        (
            "Duration",
            {"nanoseconds": 10**30},
            f"Failed to convert '{10**30}' into a number for field 'nanoseconds'",
        ),
        ("TaskStatus", {"task_id": {"value": "t"}, "state": "NEWS"}, "Missing required fields: state"),
    ],
)
def test_says_what_is_wrong_with_a_message(message: str, value: object, text: str) -> None:
    with pytest.raises(CodecError) as raised:
        decode(SCHEMA, message, value)
    assert str(raised.value) == text


@pytest.mark.parametrize(
    ("message", "value", "decoded"),
    [
        ("Filters", {}, {}),
        ("Filters", {"refuse_seconds": "7"}, {"refuse_seconds": 7.0}),
        ("Filters", {"refuse_seconds": None, "colour": "red"}, {}),
        ("Variable", {"name": "a"}, {"name": "a", "type": "VALUE"}),
        ("CommandInfo", {"value": "ls"}, {"value": "ls", "shell": True}),
        ("Capability", {"type": "NO_SUCH"}, {}),
        ("ExecutorMessage", {"data": "a G k"}, {"data": "aGk="}),
        ("Uri", {"value": "u"}, {"value": "u", "extract": True}),
    ],
)
def test_fills_in_defaults_and_drops_what_is_unknown(message: str, value: object, decoded: object) -> None:
    assert decode(SCHEMA, message, value) == decoded


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=5)
)
def test_any_value_for_any_field_is_decoded_or_refused(value: object) -> None:
    for key in SCHEMA.messages["SchedulerCall"]:
        try:
            decode(SCHEMA, "SchedulerCall", {key: value})
        except CodecError as error:
            assert str(error)


@pytest.mark.parametrize(
    ("duration_ms", "text"),
    [
        (1, "1ms"),
        (999, "999ms"),
        (4000, "4secs"),
        (60_000, "1mins"),
        (7_200_000, "2hrs"),
        (86_400_000, "1days"),
    ],
)
def test_durations_are_written_as_mesos_does(duration_ms: int, text: str) -> None:
    assert format_duration(duration_ms) == text

"""Amounts of resources: sums, differences, containment, reservations and volumes, and the texts of Mesos' complaints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.mesos.embedded.core.codec import Message
from stoker.mesos.embedded.core.reservations import ResourceError, is_within
from stoker.mesos.embedded.core.resources import (
    EMPTY,
    Resources,
    Span,
    covers,
    from_messages,
    merge,
    parse_resources,
    plain,
    subtract,
)

TRANSCRIPTS = Path(__file__).parents[2] / "data" / "mesos-transcripts"
AGENT = plain(cpus=4, mem_mib=4096, disk_mib=8192, ports=(31_000, 31_099))
SPANS = st.lists(
    st.tuples(st.integers(0, 40), st.integers(0, 8)).map(lambda p: (p[0], p[0] + p[1])), max_size=6
)


def ports(*spans: Span) -> Message:
    return {
        "name": "ports",
        "type": "RANGES",
        "ranges": {"range": [{"begin": a, "end": b} for a, b in spans]},
    }


def scalar(name: str, value: float, **more: object) -> Message:
    return {"name": name, "type": "SCALAR", "scalar": {"value": value}, **more}


def reserved(name: str, value: float, role: str = "cache", **more: object) -> Message:
    return scalar(name, value, reservations=[{"type": "DYNAMIC", "role": role, **more}])


def refined(lower: str, upper: str, kind: str = "DYNAMIC") -> Message:
    stack = [{"type": "STATIC", "role": lower}, {"type": kind, "role": upper}]
    return scalar("cpus", 1, reservations=stack)


def volume(value: float, name: str = "v", path: str = "data", role: str = "cache") -> Message:
    disk = {"persistence": {"id": name}, "volume": {"container_path": path, "mode": "RW"}}
    return reserved("disk", value, role) | {"disk": disk}


def numbers(spans: tuple[Span, ...] | list[Span]) -> set[int]:
    return {n for begin, end in spans for n in range(begin, end + 1)}


def of(*messages: Message, role: str = "cache") -> Resources:
    return from_messages(messages, role)


ANY = st.lists(
    st.one_of(
        st.builds(scalar, st.sampled_from(["cpus", "mem", "disk"]), st.integers(1, 9)),
        st.builds(reserved, st.sampled_from(["cpus", "disk"]), st.integers(1, 9), st.sampled_from("ab")),
        st.builds(volume, st.just(5), st.sampled_from(["v1", "v2"])),
        SPANS.filter(bool).map(lambda spans: ports(*spans)),
    ),
    max_size=6,
    unique_by=lambda message: json.dumps(message.get("disk", len(json.dumps(message)))),
).map(lambda messages: from_messages(messages, "cache"))


@given(SPANS, SPANS)
def test_spans_behave_as_sets_of_numbers(first: list[Span], second: list[Span]) -> None:
    assert numbers(merge(first + second)) == numbers(first) | numbers(second)
    assert numbers(subtract(merge(first), merge(second))) == numbers(first) - numbers(second)
    assert covers(merge(first), merge(second)) == (numbers(second) <= numbers(first))


@given(ANY, ANY)
def test_what_is_taken_and_given_back_is_whole_again(whole: Resources, other: Resources) -> None:
    part = whole.common(other)
    assert whole.contains(part) and other.contains(part)
    assert (whole - part) + part == whole
    assert whole.contains(other) == (part == other)


@given(ANY)
def test_the_wire_form_round_trips(whole: Resources) -> None:
    assert from_messages(whole.to_messages("cache"), "cache") == whole
    assert from_messages(whole.to_messages("cache", with_role=True), "cache") == whole
    assert whole.in_order() == whole and whole.contains(whole.in_order())


def test_thousandths_do_not_drift() -> None:
    rest = AGENT
    for _ in range(40):
        rest = rest - of(scalar("cpus", 0.1))
    assert rest.scalar("cpus") == 0


def recorded_offers() -> list[list[Message]]:
    found = []
    for path in sorted(TRANSCRIPTS.glob("[012]*.jsonl")):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            body: Any = entry.get("body")
            if entry["kind"] == "event" and isinstance(body, dict) and body.get("type") == "OFFERS":
                found += [offer["resources"] for offer in body["offers"]["offers"]]
    return found


def test_every_recorded_offer_round_trips_as_it_was_offered() -> None:
    offers = recorded_offers()
    assert len(offers) > 200
    for resources in offers:
        role = resources[0].get("allocation_info", {}).get("role")
        shown = from_messages(resources, role).to_messages(role, with_role="role" in resources[0])
        assert sorted(map(text, shown)) == sorted(map(text, resources))
        if resources[0]["type"] == "RANGES" and len(resources) > 4:
            assert [item["name"] for item in shown] == [item["name"] for item in resources]


def text(message: Message) -> str:
    return json.dumps(message, sort_keys=True)


def test_an_offer_lists_ports_first_then_what_is_reserved() -> None:
    shown = (AGENT - of(ports((31_000, 31_001)))).to_messages("cache")
    assert [item["name"] for item in shown] == ["ports", "cpus", "mem", "disk"]
    assert shown[0] == {**ports((31_002, 31_099)), "allocation_info": {"role": "cache"}}
    old = AGENT.to_messages(with_role=True)[1]
    assert old == {"name": "cpus", "type": "SCALAR", "scalar": {"value": 4.0}, "role": "*"}
    mixed = AGENT + of(volume(5), reserved("disk", 7), reserved("cpus", 1))
    listed = [(item["name"], "reservations" in item, "disk" in item) for item in mixed.to_messages()]
    assert listed == [
        ("ports", False, False),
        ("cpus", True, False),
        ("disk", True, False),
        ("disk", True, True),
        ("cpus", False, False),
        ("mem", False, False),
        ("disk", False, False),
    ]


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (
            scalar("cpus", -1),
            "Resource 'cpus(allocated: cache):-1' is invalid: Invalid scalar resource: value <= 0",
        ),
        (
            scalar("cpus", 0),
            "Resource 'cpus(allocated: cache):0' is invalid: Invalid scalar resource: value <= 0",
        ),
        (ports((5, 4)), "Resource 'ports(allocated: cache):[5-4]' is invalid: Invalid ranges resource"),
        ({"name": "cpus", "type": "SCALAR"}, "Resource 'cpus(allocated: cache)' is invalid"),
        ({"name": "x", "type": "SET", "set": {"item": ["a"]}}, "scalars and ranges only"),
        (
            scalar("cpus", 1, reservations=[{"role": "a"}]),
            "'type' (STATIC or DYNAMIC) and 'role' must be set",
        ),
        (scalar("cpus", 1, reservation={}), 'role "*" cannot be reserved'),
        (reserved("cpus", 1, "*"), 'Invalid reservation: role "*" cannot be reserved'),
        (reserved("cpus", 1, ".."), "Invalid reservation: Role '..' cannot include '..' as a component"),
        (reserved("cpus", 1, "a\0b"), "cannot have a directory for its volumes"),
        (reserved("cpus", 1, "\ud800"), "cannot have a directory for its volumes"),
        (reserved("cpus", 1, "x" * 256), "cannot have a directory for its volumes"),
        (scalar("cpus", 1, role="a//b"), "Role 'a//b' cannot contain two adjacent slashes"),
        (refined("a", "b"), "its role 'b' below 'a'"),
        (refined("a", "a"), "its role 'a' below 'a'"),
        (refined("a", "a/b", "STATIC"), "it must be DYNAMIC"),
        (
            scalar("cpus", 1, role="a", reservations=[{"role": "a", "type": "DYNAMIC"}]),
            "exclude each other",
        ),
    ],
)
def test_refuses_what_nobody_may_ask_for(message: Message, text: str) -> None:
    with pytest.raises(ResourceError) as raised:
        from_messages([message], "cache")
    assert text in str(raised.value)


@pytest.mark.parametrize(
    "message",
    [
        scalar("cpus", 1, allocation_info={"role": "other"}),
        scalar("cpus", 1, role="reserved"),
        reserved("cpus", 1),
        volume(1),
        scalar("cpus", 1, revocable={}),
        scalar("cpus", 4.001),
        scalar("bananas", 1),
        ports((31_099, 31_100)),
    ],
)
def test_what_is_not_plain_or_too_much_is_not_in_an_offer(message: Message) -> None:
    assert not AGENT.contains(from_messages([message], "cache"))


def labelled(*labels: tuple[str, str], **more: object) -> Message:
    given = [{"key": key, "value": value} for key, value in labels]
    return reserved("cpus", 1, labels={"labels": given}, **more)


@pytest.mark.parametrize(
    ("wanted", "is_there"),
    [
        (labelled(("a", "1"), ("b", "2"), principal="p"), True),
        (labelled(("b", "2"), ("a", "1"), principal="p"), True),
        (labelled(("a", "1"), principal="p"), False),
        (labelled(("a", "1"), ("b", "3"), principal="p"), False),
        (labelled(("a", "1"), ("b", "2")), False),
        (labelled(("a", "1"), ("b", "2"), principal="q"), False),
        (reserved("cpus", 1), False),
        (scalar("cpus", 1), False),
    ],
)
def test_a_reservation_must_be_named_exactly_but_for_the_order_of_labels(
    wanted: Message, is_there: bool
) -> None:
    offered = of(labelled(("a", "1"), ("b", "2"), principal="p"))
    assert offered.contains(of(wanted)) == is_there
    assert offered.to_messages()[0]["reservations"][0]["labels"]["labels"][0]["key"] == "a"


@pytest.mark.parametrize(
    ("wanted", "is_there"),
    [
        ([volume(256)], True),
        ([volume(256, path="elsewhere")], True),
        ([volume(255)], False),
        ([volume(257)], False),
        ([volume(128), volume(128)], False),
        ([volume(256, "w")], False),
        ([reserved("disk", 256)], False),
        ([reserved("disk", 64)], True),
    ],
)
def test_a_volume_is_taken_whole_wherever_it_is_mounted(wanted: list[Message], is_there: bool) -> None:
    offered = of(volume(256), reserved("disk", 64))
    assert offered.contains(of(*wanted)) == is_there


def test_what_is_taken_comes_back_as_it_was_offered() -> None:
    offered = of(volume(256, path="data"))
    taken = of(volume(256, path="elsewhere")).spelled_as(offered)
    (shown,) = (offered - taken + taken).to_messages()
    assert shown["disk"]["volume"]["container_path"] == "data"


def test_both_formats_of_a_reservation_are_one() -> None:
    old = scalar("cpus", 1, role="cache", reservation={"principal": "p"})
    assert of(old) == of(reserved("cpus", 1, principal="p"))
    assert of(scalar("cpus", 1, role="a")) == of(
        scalar("cpus", 1, reservations=[{"role": "a", "type": "STATIC"}])
    )
    (shown,) = of(old).to_messages("cache", with_role=True)
    assert shown == old | {"allocation_info": {"role": "cache"}, "scalar": {"value": 1.0}}


def test_a_role_gets_what_is_reserved_for_it_and_for_those_above_it() -> None:
    whole = AGENT + of(reserved("cpus", 1, "a"), reserved("cpus", 2, "a/b"), reserved("cpus", 4, "c"))
    assert whole.for_role("a/b").quantities()["cpus"] == 7000
    assert whole.for_role("a").quantities()["cpus"] == 5000
    assert whole.for_role("x").quantities()["cpus"] == 4000
    assert is_within("a/b", "a") and not is_within("a", "a/b") and not is_within("ab", "a")


def test_only_what_is_unreserved_is_chopped() -> None:
    whole = AGENT + of(reserved("cpus", 3), volume(5))
    chopped = whole.chopped({"cpus": 1000, "disk": -5})
    assert chopped.quantities() == {"cpus": 4000, "mem": 4_096_000, "disk": 5000}


def test_prints_as_mesos_prints() -> None:
    wanted = of(scalar("cpus", 0.1), scalar("mem", 32), ports((1, 1)))
    assert wanted.describe("cache").split("; ") == [
        "cpus(allocated: cache):0.1",
        "mem(allocated: cache):32",
        "ports(allocated: cache):[1-1]",
    ]
    given = of(labelled(("fleet", "main"), principal="stoker"), volume(256, "vol-1"))
    assert given.describe("cache") == (
        "cpus(allocated: cache)(reservations: [(DYNAMIC,cache,stoker,{fleet: main})]):1; "
        "disk(allocated: cache)(reservations: [(DYNAMIC,cache)])[vol-1:data]:256"
    )
    assert not EMPTY and EMPTY.describe() == ""


def test_an_agents_resources_are_written_as_mesos_writes_them() -> None:
    parsed = parse_resources("cpus:4; mem:4096;disk(cache):100;disk:5;ports:[31000-31009, 32000-32001]")
    assert parsed == plain(cpus=4, mem_mib=4096, disk_mib=5, ports=None) + of(
        scalar("disk", 100, role="cache"), ports((31_000, 31_009), (32_000, 32_001))
    )
    assert parse_resources("disk(*):5") == of(scalar("disk", 5)) and parse_resources("") == EMPTY


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("cpus", "must be NAME:VALUE or NAME(ROLE):VALUE"),
        ("cpus:", "must be NAME:VALUE"),
        ("cpus(:4", "must be NAME:VALUE"),
        ("cpus:four", "no number"),
        ("cpus:-4", "no number"),
        ("ports:[1-]", "no ranges such as"),
        ("ports:[9-1]", "ends before it begins"),
        ("disk(a b):5", "contains backspace or whitespace"),
    ],
)
def test_a_wrong_text_of_resources_is_told_where(text: str, complaint: str) -> None:
    with pytest.raises(ResourceError, match=complaint.replace("(", r"\(").replace(")", r"\)")):
        parse_resources("mem:5;" + text)

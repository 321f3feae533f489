"""Amounts of resources: sums, differences, containment, and the texts of Mesos' complaints."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.mesos.embedded.core.codec import Message
from stoker.mesos.embedded.core.resources import (
    EMPTY,
    ResourceError,
    Resources,
    Span,
    covers,
    from_messages,
    merge,
    plain,
    subtract,
)

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


def numbers(spans: tuple[Span, ...] | list[Span]) -> set[int]:
    return {n for begin, end in spans for n in range(begin, end + 1)}


@given(SPANS, SPANS)
def test_spans_behave_as_sets_of_numbers(first: list[Span], second: list[Span]) -> None:
    assert numbers(merge(first + second)) == numbers(first) | numbers(second)
    assert numbers(subtract(merge(first), merge(second))) == numbers(first) - numbers(second)
    assert covers(merge(first), merge(second)) == (numbers(second) <= numbers(first))


@given(SPANS, st.integers(1, 4000))
def test_what_is_taken_and_given_back_is_whole_again(spans: list[Span], cpus: int) -> None:
    taken = Resources(
        {("cpus", ""): cpus}, {("ports", ""): merge((31_000 + a, 31_000 + b) for a, b in spans)}
    )
    assert AGENT.contains(taken)
    assert (AGENT - taken) + taken == AGENT


def test_thousandths_do_not_drift() -> None:
    rest = AGENT
    for _ in range(40):
        rest = rest - from_messages([scalar("cpus", 0.1)], "cache")
    assert rest.scalar("cpus") == 0


def test_an_offer_lists_ports_first_and_says_whose_it_is() -> None:
    shown = (AGENT - from_messages([ports((31_000, 31_001))], "cache")).to_messages("cache")
    assert [item["name"] for item in shown] == ["ports", "cpus", "mem", "disk"]
    assert shown[0] == {**ports((31_002, 31_099)), "allocation_info": {"role": "cache"}}
    old = AGENT.to_messages(with_role=True)[1]
    assert old == {"name": "cpus", "type": "SCALAR", "scalar": {"value": 4.0}, "role": "*"}


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
    ],
)
def test_refuses_what_no_task_may_ask_for(message: Message, text: str) -> None:
    with pytest.raises(ResourceError) as raised:
        from_messages([message], "cache")
    assert text in str(raised.value)


@pytest.mark.parametrize(
    "message",
    [
        scalar("cpus", 1, allocation_info={"role": "other"}),
        scalar("cpus", 1, role="reserved"),
        scalar("cpus", 1, reservations=[{"role": "cache", "type": "DYNAMIC"}]),
        scalar("disk", 1, disk={"persistence": {"id": "v"}}),
        scalar("cpus", 4.001),
        scalar("bananas", 1),
        ports((31_099, 31_100)),
    ],
)
def test_what_is_not_plain_or_too_much_is_not_in_an_offer(message: Message) -> None:
    assert not AGENT.contains(from_messages([message], "cache"))


def test_prints_as_mesos_prints() -> None:
    wanted = from_messages([scalar("cpus", 0.1), scalar("mem", 32), ports((1, 1))], "cache")
    assert wanted.describe("cache").split("; ") == [
        "ports(allocated: cache):[1-1]",
        "cpus(allocated: cache):0.1",
        "mem(allocated: cache):32",
    ]
    assert not EMPTY and EMPTY.describe() == ""

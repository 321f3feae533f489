"""RecordIO: the framing, whatever the pieces, and the time it takes."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import textwrap
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stoker.mesos.errors import StreamBroken
from stoker.mesos.recordio import RECORD_BYTES_MAX, RecordReader, decode_event, encode_record
from support.waiting import DEADLINE_S


@given(
    records=st.lists(st.binary(max_size=300), max_size=20), cuts=st.lists(st.integers(1, 50), max_size=300)
)
@settings(max_examples=200)
def test_records_come_out_whole_and_in_order_whatever_the_pieces(
    records: list[bytes], cuts: list[int]
) -> None:
    data = b"".join(encode_record(record) for record in records)
    reader = RecordReader()
    out: list[bytes] = []
    for cut in cuts:
        out += reader.feed(data[:cut])
        data = data[cut:]
    out += reader.feed(data)
    assert out == records
    assert reader.is_between_records


def test_an_end_within_a_record_is_seen() -> None:
    reader = RecordReader()
    assert reader.feed(b"5\nab") == []
    assert not reader.is_between_records
    assert RecordReader().feed(b"1") == []


@pytest.mark.parametrize(
    "data",
    [
        b"{}\n",
        b"-1\n",
        b"+1\n",
        b" 1\n",
        b"1 \n",
        b"\n",
        b"0x1\n",
        b"1_0\n",
        "\u0661\n".encode(),
        b"12345678901",
        b"x",
    ],
)
def test_what_is_no_length_breaks_the_stream(data: bytes) -> None:
    with pytest.raises(StreamBroken, match="no RecordIO length"):
        RecordReader().feed(data)


def test_a_record_above_the_limit_is_refused_before_its_bytes_come() -> None:
    with pytest.raises(StreamBroken, match="a record of 101 bytes is above the limit of 100"):
        RecordReader(record_bytes_max=100).feed(b"101\n")
    assert RecordReader(record_bytes_max=100).feed(b"100\n" + bytes(100)) == [bytes(100)]
    with pytest.raises(StreamBroken, match="above the limit"):
        RecordReader().feed(b"%d\n" % (RECORD_BYTES_MAX + 1))


@pytest.mark.parametrize("record", [b"", b"{", b"[]", b"1", b"\xff{}", b"[" * 100_000])
def test_what_is_no_json_object_breaks_the_stream(record: bytes) -> None:
    with pytest.raises(StreamBroken, match="an event is not"):
        decode_event(record)


def test_the_collector_runs_again_after_a_large_record_also_a_broken_one() -> None:
    large = b'{"a": "' + b"x" * 300_000 + b'"}'
    assert len(decode_event(large)["a"]) == 300_000
    assert gc.isenabled()
    with pytest.raises(StreamBroken):
        decode_event(large[:-1])
    assert gc.isenabled()
    gc.disable()
    try:
        decode_event(large)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_what_becomes_garbage_after_a_large_record_is_collected_with_a_later_one() -> None:
    """In a process of its own: the collector is the whole process', and a test runner's has too many objects."""
    program = textwrap.dedent("""
        import gc, weakref
        from stoker.mesos.recordio import FREEZES_MAX, decode_event

        class Node:
            pass

        record = b'{"a": "' + b"x" * 300_000 + b'"}'
        living = []
        for _ in range(3 * FREEZES_MAX):
            node, other = Node(), Node()
            node.other, other.node = other, node
            living.append(weakref.ref(node))
            decode_event(record)
            del node, other
        left = sum(ref() is not None for ref in living)
        assert left <= FREEZES_MAX, left
        assert gc.isenabled() and gc.get_freeze_count() > 1_000
    """)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 0, done.stderr


def test_ten_thousand_offers_in_one_record_that_comes_in_pieces() -> None:
    """A master sends all offers of a cluster in one event at every new subscription; pymesos takes 5.7 s for it."""
    offer = {
        "id": {"value": "bc372937-a8c7-4f43-837a-e411206b7bf0-O0"},
        "agent_id": {"value": "bc372937-a8c7-4f43-837a-e411206b7bf0-S0"},
        "resources": [
            {
                "name": f"r{n}",
                "type": "SCALAR",
                "scalar": {"value": 4.0},
                "allocation_info": {"role": "cache"},
            }
            for n in range(12)
        ],
    }
    event = {"type": "OFFERS", "offers": {"offers": [offer] * 10_000}}
    data = encode_record(json.dumps(event).encode())
    assert len(data) > 13_000_000
    reader = RecordReader()
    records = [record for at in range(0, len(data), 4096) for record in reader.feed(data[at : at + 4096])]
    decoded = decode_event(records[0])
    assert len(decoded["offers"]["offers"]) == 10_000


@given(
    offers=st.lists(
        st.dictionaries(st.sampled_from(["id", "é", '"]}}']), st.text() | st.lists(st.integers())),
        min_size=1,
        max_size=5,
    ),
    space=st.sampled_from(["", " ", "\n "]),
)
def test_offers_parsed_in_turns_are_the_same_offers(offers: list[dict[str, object]], space: str) -> None:
    padding = {"padding": "x" * 300_000}
    event = {"type": "OFFERS", "offers": {"offers": [padding, *offers]}}
    record = json.dumps(event, ensure_ascii=False, separators=("," + space, ":" + space)).encode()
    assert decode_event(space.encode() + record + space.encode(), rest=lambda: None) == event


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[:-1],
        lambda text: text + "x",
        lambda text: text.replace("}]}}", "},]}}"),
        lambda text: text.replace("}]}}", "} {}]}}"),
        lambda text: text.replace("}]}}", '}]},"offers":{}'),
    ],
)
def test_a_broken_offers_event_breaks_the_stream(change: Callable[[str], str]) -> None:
    text = json.dumps({"type": "OFFERS", "offers": {"offers": [{"padding": "x" * 300_000}]}})
    with pytest.raises(StreamBroken, match="an event is not JSON"):
        decode_event(change(text).encode(), rest=lambda: None)
    assert gc.isenabled()


def test_other_large_events_and_forms_are_parsed_too() -> None:
    for event in (
        {"offers": {"offers": [{"a": "x" * 300_000}]}, "type": "OFFERS"},
        {"type": "OFFERS", "offers": {"offers": [], "padding": "x" * 300_000}},
        {"type": "OFFERS", "offers": {"offers": [{}], "padding": "x" * 300_000}},
        {"type": "OFFERS", "offers": {"offers": [{}, 1, "x" * 300_000]}},
        {"type": "MESSAGE", "message": {"data": "x" * 300_000}},
    ):
        assert decode_event(json.dumps(event).encode(), rest=lambda: None) == event


def test_a_large_offers_event_lets_others_have_their_turns() -> None:
    offers = [{"id": {"value": str(n)}, "padding": "x" * 1_300} for n in range(10_000)]
    rests: list[int] = []
    event = decode_event(
        json.dumps({"type": "OFFERS", "offers": {"offers": offers}}).encode(), rest=lambda: rests.append(1)
    )
    assert event["offers"]["offers"] == offers
    assert len(rests) in (50, 51), "each 200 offers, and where the collector looked at everything first"

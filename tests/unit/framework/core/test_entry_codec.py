from __future__ import annotations

import dataclasses
import typing
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.framework.core import entries as e
from stoker.framework.core.codec import CodecError, decode_entry, encode_entry, from_plain, to_plain
from stoker.framework.model import FleetSpec, JobState

INTS = st.integers(-(2**63), 2**64 - 1)  # what msgpack holds
KINDS: tuple[type[Any], ...] = typing.get_args(e.Entry)


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    """Return values of a type hint that entries use."""
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        return st.builds(typing.cast(Any, hint), **{name: values_of(h) for name, h in hints.items()})
    arguments = typing.get_args(hint)
    if arguments and arguments[-1] is Ellipsis:
        return st.lists(values_of(arguments[0]), max_size=4).map(tuple)
    if arguments:
        return st.tuples(*map(values_of, arguments))
    return INTS if hint is int else st.from_type(hint)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_each_kind_of_entry_comes_back_equal(kind: type[Any], data: st.DataObject) -> None:
    entry = data.draw(values_of(kind))
    assert decode_entry(encode_entry(entry)) == entry
    assert encode_entry(decode_entry(encode_entry(entry))) == encode_entry(entry)


def test_bytes_of_an_entry_are_for_ever() -> None:
    stored = bytes.fromhex("92a9536c6f74416464656482a7736c6f745f696403a96d656d5f6279746573ce40000000")
    assert encode_entry(e.SlotAdded(3, 2**30)) == stored
    assert decode_entry(stored) == e.SlotAdded(3, 2**30)


def test_ignores_a_field_of_a_newer_program() -> None:
    data = msgpack.packb(["SlotRemoved", {"slot_id": 4, "colour": "blue"}])
    assert decode_entry(data) == e.SlotRemoved(4)


def test_a_field_that_an_older_program_did_not_write_takes_its_default() -> None:
    fields = to_plain(e.FleetSet(FleetSpec(1, 2, 3, "r")))
    del fields["spec"]["role"]
    assert decode_entry(msgpack.packb(["FleetSet", fields])) == e.FleetSet(FleetSpec(1, 2, 3))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"\xc1", "not msgpack"),
        (b"", "not msgpack"),
        (msgpack.packb({"kind": 1}), "not \\[kind, fields\\]"),
        (msgpack.packb(["SlotAdded"]), "not \\[kind, fields\\]"),
        (msgpack.packb(["SlotPainted", {}]), "'SlotPainted'.*newer"),
        (msgpack.packb(["SlotAdded", {"slot_id": 1}]), "mem_bytes"),
        (msgpack.packb(["FleetSet", {"spec": 7}]), "FleetSpec"),
        (
            msgpack.packb(
                ["WantedSet", {"dataset_id": 1, "wanted_version": 1, "rules": 7, "block_count": 0}]
            ),
            "WantedSet",
        ),
    ],
)
def test_says_what_is_wrong_with_a_record(data: bytes, says: str) -> None:
    with pytest.raises(CodecError, match=says):
        decode_entry(data)


def test_an_enum_travels_as_its_value() -> None:
    assert to_plain(JobState.RUNNING) == "RUNNING"
    with pytest.raises(CodecError):
        from_plain(FleetSpec, [1])

"""The values that executors and the leader exchange: what is on the wire, and what comes back from it."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgpack
import pytest

from stoker.executor.messages import (
    Assignment,
    DatasetAssignment,
    DiskReport,
    FileFailure,
    Heartbeat,
    HeartbeatAnswer,
    Residency,
    SlotAddress,
    Summons,
    decode_answer,
    decode_heartbeat,
    decode_summons,
    encode,
)

PLAIN = {"str": "s", "int": 7, "bytes": b"b", "bool": True, "float": 0.5}


def filled(cls: type[Any], **given: Any) -> Any:
    """Return a value with something of its type in each plain field."""
    fields = dataclasses.fields(cls)
    plain = {f.name: PLAIN[str(f.type)] for f in fields if str(f.type) in PLAIN}
    return cls(**{**plain, **given})


HEARTBEAT = filled(
    Heartbeat,
    datasets=(
        filled(Residency, bitmap=b"\1", added=(), removed=(), failures=(filled(FileFailure),)),
        filled(Residency, bitmap=None, added=(1, 2), removed=(3,)),
    ),
    disk=filled(DiskReport),
    unknown=((1, 2),),
)
ASSIGNMENT = filled(
    Assignment,
    slots=(filled(SlotAddress),),
    datasets=(filled(DatasetAssignment, options={"k": "v"}, wanted=((True, "a"),)),),
)
VALUES = {
    "heartbeat": (HEARTBEAT, decode_heartbeat),
    "answer": (filled(HeartbeatAnswer, schedulers=("u",), assignment=ASSIGNMENT), decode_answer),
    "summons": (filled(Summons, schedulers=("u",)), decode_summons),
}


@pytest.mark.parametrize(("value", "decode"), VALUES.values(), ids=VALUES)
def test_what_is_sent_comes_back(value: Any, decode: Any) -> None:
    assert decode(encode(value)) == value


@pytest.mark.parametrize(("value", "decode"), VALUES.values(), ids=VALUES)
def test_the_wire_has_the_map_of_all_fields_in_their_order(value: Any, decode: Any) -> None:
    assert encode(value) == msgpack.packb(dataclasses.asdict(value), use_bin_type=True)


@pytest.mark.parametrize(("value", "decode"), VALUES.values(), ids=VALUES)
def test_fields_of_a_later_program_are_left_out(value: Any, decode: Any) -> None:
    raw = msgpack.unpackb(encode(value)) | {"later": 1}
    assert decode(msgpack.packb(raw)) == value
    del raw["epoch" if "epoch" in raw else "epoch_seen"]
    with pytest.raises(ValueError, match="epoch"):
        decode(msgpack.packb(raw))

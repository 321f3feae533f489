"""The journal's bytes: they stand for ever, and no damaged one passes."""

from __future__ import annotations

import struct
import zlib

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.zk import codec
from stoker.zk.codec import (
    BATCH_RECORDS_MAX,
    FRAME_BYTES_MAX,
    HEADER_BYTES,
    SnapshotHeader,
    Term,
    encode_batch,
    encode_pointer,
    encode_schema,
    encode_snapshot_header,
    encode_term,
    is_payload,
    read_batch_header,
    read_pointer,
    read_records,
    read_schema,
    read_snapshot,
    read_term,
)
from stoker.zk.errors import Corrupt, TooLarge, TooNew
from stoker.zk.journal import BATCH_BYTES_MAX, RECORD_BYTES_MAX

# Written by format version 1. They must read the same for ever.
GOLDEN_BATCH = bytes.fromhex(
    "534b42540100000005000000000000000700000000000000030000000a000000539276220e17650f93c400c40161c4020062"
)
GOLDEN_SNAPSHOT = bytes.fromhex(
    "534b534e01000000050000000000000009000000000000000500000000000000fbd293a36c066cf07374617465"
)
GOLDEN_TERM = bytes.fromhex("534b544d01001800afbcc35b83a565706f636805a56c6576656c01a56f776e6572a26d65")
GOLDEN_SCHEMA = bytes.fromhex("534b5a4b01000e0031599ce081a76a6f75726e616ca430616231")
GOLDEN_POINTER = bytes.fromhex(
    "534b534e01000000050000000000000009000000000000000500000000000000fbd293a36c066cf0392d352d31"
)

U64 = st.integers(0, 2**64 - 1)
SMALL_BATCH = st.lists(st.binary(max_size=50), min_size=1, max_size=20)


def test_golden_bytes_read_as_they_were_written() -> None:
    header = read_batch_header(GOLDEN_BATCH)
    assert header is not None
    assert (header.epoch, header.first_index, header.stop_index) == (5, 7, 10)
    assert read_records(header, GOLDEN_BATCH[HEADER_BYTES:]) == [b"", b"a", b"\0b"]
    found = read_snapshot(GOLDEN_SNAPSHOT)
    assert found is not None
    assert (found[0].epoch, found[0].next_index, found[1]) == (5, 9, b"state")
    assert read_term(GOLDEN_TERM) == Term(5, 1, "me")
    assert read_schema(GOLDEN_SCHEMA) == "0ab1"
    pointed, name = read_pointer(GOLDEN_POINTER)
    assert (pointed.epoch, pointed.next_index, pointed.data_bytes, name) == (5, 9, 5, "9-5-1")


def test_golden_bytes_are_still_written() -> None:
    assert encode_batch([b"", b"a", b"\0b"], epoch=5, first_index=7) == GOLDEN_BATCH
    assert encode_snapshot_header(b"state", epoch=5, next_index=9) + b"state" == GOLDEN_SNAPSHOT
    assert encode_term(Term(5, 1, "me")) == GOLDEN_TERM
    assert encode_schema("0ab1") == GOLDEN_SCHEMA
    assert encode_pointer(SnapshotHeader(5, 9, 5, zlib.crc32(b"state")), "9-5-1") == GOLDEN_POINTER


@pytest.mark.parametrize("place", range(len(GOLDEN_SCHEMA)))
def test_no_damaged_schema_passes(place: int) -> None:
    with pytest.raises((Corrupt, TooNew)):
        read_schema(GOLDEN_SCHEMA[:place] + bytes([GOLDEN_SCHEMA[place] ^ 4]) + GOLDEN_SCHEMA[place + 1 :])
    with pytest.raises(Corrupt):
        read_schema(GOLDEN_SCHEMA[:place])


@pytest.mark.parametrize("place", range(HEADER_BYTES))
def test_no_damaged_pointer_passes(place: int) -> None:
    with pytest.raises(Corrupt):
        read_pointer(
            GOLDEN_POINTER[:place] + bytes([GOLDEN_POINTER[place] ^ 4]) + GOLDEN_POINTER[place + 1 :]
        )
    with pytest.raises(Corrupt):
        read_pointer(GOLDEN_POINTER[:place])


@pytest.mark.parametrize("name", [b"", b"../log", b"a/b", b"\xff", b"x" * 101])
def test_a_pointer_leads_only_to_a_directory(name: bytes) -> None:
    with pytest.raises(Corrupt):
        read_pointer(GOLDEN_POINTER[:HEADER_BYTES] + name)


def test_a_newer_schema_and_pointer_are_told_from_damage() -> None:
    with pytest.raises(TooNew, match="format version 2"):
        read_schema(_with_version(GOLDEN_SCHEMA, 2))
    head = bytearray(GOLDEN_POINTER[: HEADER_BYTES - 4])
    head[4] = 2
    with pytest.raises(TooNew, match="format version 2"):
        read_pointer(bytes(head) + struct.pack("<I", zlib.crc32(head)) + GOLDEN_POINTER[HEADER_BYTES:])


def _with_version(blob: bytes, version: int) -> bytes:
    head, payload = blob[:4] + struct.pack("<H", version) + blob[6:8], blob[12:]
    return head + struct.pack("<I", zlib.crc32(payload, zlib.crc32(head))) + payload


@given(SMALL_BATCH, U64, st.integers(0, 2**63))
def test_batches_come_back(records: list[bytes], epoch: int, index: int) -> None:
    frame = encode_batch(records, epoch=epoch, first_index=index)
    header = read_batch_header(frame + b"what follows")
    assert header is not None
    assert (header.epoch, header.first_index, header.stop_index) == (epoch, index, index + len(records))
    assert header.frame_bytes == len(frame)
    assert read_records(header, frame[HEADER_BYTES:]) == records


@given(SMALL_BATCH, st.data())
def test_no_changed_byte_of_a_batch_passes(records: list[bytes], data: st.DataObject) -> None:
    frame = bytearray(encode_batch(records, epoch=1, first_index=0))
    at = data.draw(st.integers(0, len(frame) - 1))
    frame[at] ^= data.draw(st.integers(1, 255))
    header = read_batch_header(frame)
    assert header is None or not is_payload(header, bytes(frame[HEADER_BYTES:]))
    assert (header is None) == (at < HEADER_BYTES)


@given(st.binary(max_size=200))
def test_random_bytes_are_nothing(blob: bytes) -> None:
    assert read_batch_header(blob) is None
    assert read_batch_header(codec.BATCH_MAGIC + blob) is None
    assert read_snapshot(blob) is None
    with pytest.raises(Corrupt):
        read_term(blob)


@given(st.binary(max_size=60), st.data())
def test_no_changed_byte_of_a_snapshot_or_term_passes(state: bytes, data: st.DataObject) -> None:
    blob = bytearray(encode_snapshot_header(state, epoch=3, next_index=4) + state)
    at = data.draw(st.integers(0, len(blob) - 1))
    blob[at] ^= data.draw(st.integers(1, 255))
    assert read_snapshot(bytes(blob)) is None
    assert read_snapshot(bytes(blob[:at])) is None
    term = bytearray(encode_term(Term(3, 1, "owner")))
    at = data.draw(st.integers(0, len(term) - 1))
    term[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(Corrupt):
        read_term(bytes(term))
    with pytest.raises(Corrupt):
        read_term(bytes(term[:at]))


def with_header_crc(blob: bytearray) -> bytes:
    blob[36:40] = struct.pack("<I", zlib.crc32(blob[:36]))
    return bytes(blob)


@pytest.mark.parametrize(("at", "value"), [(4, 2), (5, 1), (6, 1)])
def test_a_whole_header_of_a_newer_format_says_so(at: int, value: int) -> None:
    batch = bytearray(encode_batch([b"x"], epoch=1, first_index=0))
    batch[at] = value
    assert read_batch_header(bytes(batch)) is None  # damaged, as far as anyone can tell
    with pytest.raises(TooNew, match="upgrade it"):
        read_batch_header(with_header_crc(batch))
    snapshot = bytearray(encode_snapshot_header(b"x", epoch=1, next_index=0) + b"x")
    snapshot[at] = value
    with pytest.raises(TooNew, match="upgrade it"):
        read_snapshot(with_header_crc(snapshot))


def test_a_term_of_a_newer_format_or_level_says_so() -> None:
    with pytest.raises(TooNew, match=r"level 2, this program knows 1: upgrade it"):
        read_term(encode_term(Term(1, 2, "")))
    payload = msgpack.packb({"epoch": 1, "level": 1, "owner": ""})
    head = struct.pack("<4sHH", b"SKTM", 2, len(payload))
    with pytest.raises(TooNew, match="format version 2"):
        read_term(head + struct.pack("<I", zlib.crc32(payload, zlib.crc32(head))) + payload)


def test_where_a_restore_was_not_finished_the_term_says_so() -> None:
    with pytest.raises(
        Corrupt, match="a restore into this journal was not finished: run `stoker journal restore` again"
    ):
        read_term(codec.mark_unfinished(7, 1, 300))


def test_the_mark_of_an_unfinished_restore_is_as_it_always_was() -> None:
    mark = b"a restore into this journal was not finished: run it again: 7 1 300\n"
    assert codec.mark_unfinished(7, 1, 300) == mark and codec.unfinished_restore(mark) == (7, 1, 300)


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 1}, {"epoch": "x", "level": 1, "owner": ""}, None])
def test_a_term_of_another_shape_is_damaged(content: object) -> None:
    payload = msgpack.packb(content)
    head = struct.pack("<4sHH", b"SKTM", 1, len(payload))
    with pytest.raises(Corrupt):
        read_term(head + struct.pack("<I", zlib.crc32(payload, zlib.crc32(head))) + payload)


def test_unknown_keys_of_a_term_are_ignored() -> None:
    payload = msgpack.packb({"epoch": 4, "level": 1, "owner": "o", "later": [1]})
    head = struct.pack("<4sHH", b"SKTM", 1, len(payload))
    assert read_term(head + struct.pack("<I", zlib.crc32(payload, zlib.crc32(head))) + payload).epoch == 4


@pytest.mark.parametrize(
    "payload", [b"", b"\xc1", msgpack.packb([1]), msgpack.packb({}), msgpack.packb([b"a", b"b"])]
)
def test_a_payload_that_is_not_the_records_told_is_damaged(payload: bytes) -> None:
    head = codec._BATCH.pack(b"SKBT", 1, 0, 1, 0, 1, len(payload), zlib.crc32(payload))
    header = read_batch_header(head + struct.pack("<I", zlib.crc32(head)))
    assert header is not None
    with pytest.raises(Corrupt):
        read_records(header, payload)


@pytest.mark.parametrize(
    "records",
    [
        [b"r" * 4] * BATCH_RECORDS_MAX,
        [b""] * BATCH_RECORDS_MAX,
        [b"r" * 256] * (BATCH_BYTES_MAX // 256),
        [b"r" * RECORD_BYTES_MAX] * 2,
    ],
)
def test_the_largest_batches_fit_the_largest_frame(records: list[bytes]) -> None:
    frame = encode_batch(records, epoch=1, first_index=0)
    assert len(frame) <= FRAME_BYTES_MAX < 512 * 1024
    header = read_batch_header(frame)
    assert header is not None
    assert read_records(header, frame[HEADER_BYTES:]) == records


def test_too_many_records_are_refused() -> None:
    with pytest.raises(TooLarge, match=f"at most {BATCH_RECORDS_MAX}"):
        encode_batch([b""] * (BATCH_RECORDS_MAX + 1), epoch=1, first_index=0)

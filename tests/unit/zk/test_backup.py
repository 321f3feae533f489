"""A backup's file: what is written is read, and nothing else is taken for a backup."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.zk import backup
from stoker.zk.backup import About, BackupWriter, Blob, End, Part, check, read_backup
from stoker.zk.errors import Corrupt, TooNew
from stoker.zk.home import Batch, Snapshot

ABOUT = About(9, 1, "scheduler x", "file:/journal", 1_800_000_000_000)
WORDS = {"cluster": "00ff", "datasets": 3}


def write(*parts: Snapshot | Batch | bytes) -> bytes:
    out = io.BytesIO()
    writer = BackupWriter(out.write, ABOUT)
    for part in parts:
        writer.add(part)
    writer.end(WORDS)
    assert writer.written_bytes == len(out.getvalue())
    return out.getvalue()


def read(data: bytes) -> list[Part]:
    return list(read_backup(io.BytesIO(data), name="FILE"))


FULL = (Snapshot(5, b"five" * 100), Batch(5, 8, [b"a", b"b"]), b"blob", Batch(7, 9, [b"c"]), b"", b"x" * 5000)


def test_what_is_written_is_read_in_its_order() -> None:
    data = write(*FULL)
    about, *parts, end = read(data)
    assert about == ABOUT
    expected = [
        p if isinstance(p, Snapshot | Batch) else Blob(hashlib.sha256(p).hexdigest(), p) for p in FULL
    ]
    assert parts == expected
    assert end == End(epoch=9, next_index=8, snapshot_index=5, records=3, blobs=3, words=WORDS)
    assert check(io.BytesIO(data), name="FILE") == (about, end)


def test_a_backup_of_nothing_is_a_backup() -> None:
    assert read(write()) == [ABOUT, End(9, 0, 0, 0, 0, WORDS)]


def test_a_later_snapshot_begins_again() -> None:
    """When the log was cut while it was read."""
    parts = read(write(Batch(0, 1, [b"a"]), Snapshot(40, b"forty"), Batch(40, 9, [b"b"])))
    assert parts[-1] == End(9, 41, 40, 1, 0, WORDS)


def test_a_leader_that_took_over_meanwhile_makes_the_epoch_newer() -> None:
    parts = read(write(Batch(0, 9, [b"a"]), Batch(1, 12, [b"b"])))
    assert isinstance(parts[-1], End) and parts[-1].epoch == 12
    with pytest.raises(Corrupt, match="epoch 11"):
        read(write(Batch(0, 12, [b"a"]), Batch(1, 11, [b"b"])))


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=300),
            st.lists(st.binary(max_size=40), min_size=1, max_size=5),
            st.tuples(st.integers(0, 3), st.binary(max_size=100)),
        ),
        max_size=8,
    )
)
def test_any_sequence_of_parts_comes_back(made: list[bytes | list[bytes] | tuple[int, bytes]]) -> None:
    parts: list[Snapshot | Batch | bytes] = []
    index = 0
    for item in made:
        if isinstance(item, bytes):
            parts.append(item)
        elif isinstance(item, list):
            parts.append(Batch(index, 9, item))
            index += len(item)
        else:
            index += item[0]
            parts.append(Snapshot(index, item[1]))
    found = read(write(*parts))
    assert [p.data if isinstance(p, Blob) else p for p in found[1:-1]] == parts
    assert isinstance(found[-1], End) and found[-1].next_index == index


@pytest.mark.parametrize("size", [0, 1, 11, 12, 13, 35, 36, 100])
def test_a_file_that_is_cut_off_is_none(size: int) -> None:
    with pytest.raises(Corrupt, match="not a whole backup|no backup"):
        read(write(*FULL)[:size])


def test_a_file_that_is_cut_off_anywhere_is_none() -> None:
    data = write(Snapshot(5, b"five"), Batch(5, 8, [b"a"]), b"blob")
    for size in range(len(data)):
        with pytest.raises(Corrupt):
            read(data[:size])


def test_a_file_in_which_any_byte_is_changed_is_none() -> None:
    data = write(Snapshot(5, b"five"), Batch(5, 8, [b"a"]), b"blob")
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 0x41
        with pytest.raises((Corrupt, TooNew)):
            read(bytes(changed))


def test_a_file_with_something_behind_its_end_is_none() -> None:
    with pytest.raises(Corrupt, match="follows the end"):
        read(write(*FULL) + b"\0")


@pytest.mark.parametrize(
    "data", [b"hello, this is a text file\n", b"\x1f\x8b\x08" + b"\0" * 40, b"SKBT" + b"\0" * 40]
)
def test_a_file_of_another_kind_is_none(data: bytes) -> None:
    with pytest.raises(Corrupt, match="FILE is no backup of a Stoker journal"):
        read(data)


def section(kind: int, payload: bytes, *, flags: int = 0) -> bytes:
    head = struct.pack("<4sHHQI", b"SKBS", kind, flags, len(payload), zlib.crc32(payload))
    return head + struct.pack("<I", zlib.crc32(head)) + payload


def test_a_newer_format_is_told_from_damage() -> None:
    data = write()
    newer = data[:8] + struct.pack("<H", 2) + data[10:]
    with pytest.raises(TooNew, match="upgrade"):
        read(newer)
    about = data[: data.index(b"SKBS", 13)]
    for unknown in (section(6, b"what is this"), section(backup.BLOB, b"x", flags=1)):
        with pytest.raises(TooNew, match="upgrade"):
            read(about + unknown)


@pytest.mark.parametrize("size", [2**20, 2**63])
def test_a_section_is_not_read_that_is_above_its_limit(size: int) -> None:
    head = struct.pack("<4sHHQI", b"SKBS", backup.BATCH, 0, size, 0)
    data = write()
    about = data[: data.index(b"SKBS", 13)]
    with pytest.raises(Corrupt, match="a section of"):
        read(about + head + struct.pack("<I", zlib.crc32(head)))


def test_parts_that_do_not_follow_from_each_other_are_damage() -> None:
    data = write(Batch(0, 3, [b"a"]), Batch(1, 4, [b"b"]))
    first = data.index(b"SKBS", data.index(b"SKBS") + 1)
    second = data.index(b"SKBS", first + 1)
    end = data.index(b"SKBS", second + 1)
    for wrong in (
        data[:first] + data[second:end] + data[first:second] + data[end:],  # in another order
        data[:second] + data[end:],  # one left out
        data[:second] + data[first:second] + data[second:],  # one twice
        data[:12] + data[first:],  # none that says of what
        data[:first] + data[12:],  # two of them
    ):
        with pytest.raises(Corrupt, match="damaged near byte"):
            read(wrong)


def test_writing_out_of_order_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError):
        write(Batch(1, 1, [b"a"]))

"""The index of the SSD tier, as bytes and values."""

from __future__ import annotations

import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from stoker.executor.block import BlockName
from stoker.executor.core.disk_index import (
    FORMAT_VERSION,
    RECORD_BYTES,
    BlockFileName,
    Record,
    Replay,
    encode_drop,
    encode_header,
    encode_hold,
    parse_file_name,
    read_header,
    reconcile,
    replay,
)

CLUSTER = bytes(range(16))


def named(block: int, serial: int) -> BlockFileName:
    return BlockFileName(BlockName(3, 1, block), serial)


def record(block: int, serial: int) -> Record:
    return Record(named(block, serial), 1_000 + block, 2, 900 + block)


names = st.builds(BlockName, st.integers(1, 2**63), st.integers(1, 2**32 - 1), st.integers(0, 2**32 - 1))
records = st.builds(
    Record,
    st.builds(BlockFileName, names, st.integers(1, 2**63)),
    st.integers(1, 2**31),
    st.integers(1, 2**32 - 1),
    st.integers(0, 2**31),
)


@given(records)
def test_a_record_comes_back_as_it_was(made: Record) -> None:
    data = encode_header(CLUSTER) + encode_hold(made)
    assert read_header(data) == (FORMAT_VERSION, CLUSTER)
    assert replay(data).held == {made.file.serial: made}
    assert replay(data + encode_drop(made.file)) == Replay({}, frozenset((made.file.serial,)), 0, 0)
    assert parse_file_name(str(made.file)) == made.file


@pytest.mark.parametrize(
    "text",
    ["", "3.1.9", "3.1.9-", "3.1-9", "03.1.9-1", "3.1.9-1.partial", "../3.1.9-1", "3.1.9-+1", "３.1.9-1"],
)
def test_other_names_are_no_block_files(text: str) -> None:
    assert parse_file_name(text) is None


def test_an_append_that_was_cut_short_costs_only_itself() -> None:
    data = encode_header(CLUSTER) + b"".join(encode_hold(record(n, n)) for n in range(1, 4))
    for cut in range(RECORD_BYTES, len(data) + 1):
        said = replay(data[:cut])
        whole = (cut - RECORD_BYTES) // RECORD_BYTES
        assert sorted(said.held) == list(range(1, whole + 1))
        assert (said.bad_count, said.torn_bytes) == (0, cut % RECORD_BYTES)


@pytest.mark.parametrize("damaged", [1, 2, 3])
@pytest.mark.parametrize("place", [0, 3, 4, 20, 63])
def test_a_damaged_record_costs_only_itself(damaged: int, place: int) -> None:
    data = bytearray(encode_header(CLUSTER) + b"".join(encode_hold(record(n, n)) for n in range(1, 4)))
    data[damaged * RECORD_BYTES + place] ^= 0x40
    said = replay(bytes(data))
    assert sorted(said.held) == [n for n in (1, 2, 3) if n != damaged]
    assert said.bad_count + said.torn_bytes // RECORD_BYTES == 1
    assert said.bad_count == (damaged != 3), "at the end it is as good as an append cut short"


def test_a_damaged_header_is_told_and_costs_no_record() -> None:
    data = bytes(RECORD_BYTES) + encode_hold(record(1, 1))
    assert read_header(data) is None and read_header(b"") is None
    assert list(replay(data).held) == [1]
    assert replay(b"") == replay(b"STKR")._replace(torn_bytes=0) == Replay({}, frozenset(), 0, 0)


def test_a_newer_format_is_told() -> None:
    raw = bytearray(encode_header(CLUSTER))
    raw[12:14] = (FORMAT_VERSION + 1).to_bytes(2, "little")
    raw[:4] = crc32c(raw[4:]).to_bytes(4, "little")
    assert read_header(bytes(raw)) == (FORMAT_VERSION + 1, CLUSTER)


def test_a_drop_counts_wherever_it_stands() -> None:
    """An append that overtook another must not bring a block back."""
    data = (
        encode_header(CLUSTER)
        + encode_drop(named(1, 1))
        + encode_hold(record(1, 1))
        + encode_hold(record(1, 2))
    )
    assert list(replay(data).held) == [2]


@pytest.mark.parametrize(
    ("held", "dropped", "files", "trusts", "kept", "lost", "unrecorded", "doomed"),
    [
        ([(1, 1)], [], [(1, 1)], False, [1], [], [], []),
        ([(1, 1)], [], [], False, [], [1], [], []),  # a record without its file
        ([], [], [(1, 1)], False, [], [], [], [1]),  # a file without a record, after a reboot
        ([], [], [(1, 1)], True, [], [], [1], []),  # and without one
        ([], [1], [(1, 1)], True, [], [], [], [1]),  # dropped, and not unlinked yet
        ([(1, 1)], [], [(1, 1), (1, 2)], True, [1], [], [], [2]),  # of one block a whole file and a new one
        ([], [], [(1, 1), (1, 2)], True, [], [], [2], [1]),
        ([(1, 1), (1, 2)], [], [(1, 1), (1, 2)], True, [2], [], [], [1]),
        ([(1, 1), (1, 2)], [], [(1, 1)], False, [1], [2], [], []),
        ([(1, 1)], [], [(2, 1)], False, [], [1], [], [1]),  # another block's file of that serial
    ],
)
def test_records_are_held_against_files(
    held: list[tuple[int, int]],
    dropped: list[int],
    files: list[tuple[int, int]],
    trusts: bool,
    kept: list[int],
    lost: list[int],
    unrecorded: list[int],
    doomed: list[int],
) -> None:
    said = Replay({serial: record(block, serial) for block, serial in held}, frozenset(dropped), 0, 0)
    found = reconcile(said, [named(*file) for file in files], trusts_unrecorded=trusts)
    assert [r.file.serial for r in found.held] == kept
    assert [r.file.serial for r in found.lost] == lost
    assert [f.serial for f in found.unrecorded] == unrecorded
    assert [f.serial for f in found.doomed] == doomed


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 20)), max_size=20),
    st.sets(st.integers(1, 20)),
    st.sets(st.tuples(st.integers(0, 5), st.integers(1, 20)), max_size=20),
    st.booleans(),
)
def test_every_file_is_kept_or_doomed_and_no_block_has_two(
    held: list[tuple[int, int]], dropped: set[int], files: set[tuple[int, int]], trusts: bool
) -> None:
    data = [
        encode_header(CLUSTER),
        *(encode_hold(record(*h)) for h in held),
        *(encode_drop(named(0, s)) for s in dropped),
    ]
    said = replay(b"".join(data))
    found = reconcile(said, [named(*file) for file in files], trusts_unrecorded=trusts)
    kept = [r.file for r in found.held]
    assert sorted([*kept, *found.unrecorded, *found.doomed]) == sorted(named(*file) for file in files)
    assert len({f.name for f in (*kept, *found.unrecorded)}) == len(kept) + len(found.unrecorded)
    assert not dropped & {f.serial for f in (*kept, *found.unrecorded)}
    assert trusts or not found.unrecorded
    assert all(said.held[r.file.serial] == r for r in (*found.held, *found.lost))

"""The address rule and refresh: an address is written once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stoker.executor import manifest_build
from stoker.executor.manifest import FileRow, Manifest, ManifestError
from stoker.executor.manifest_build import assign_offsets
from support.manifests import build_rows, file_row, map_built, mapped_rows

MIB = 2**20
BLOCK = st.sampled_from([MIB, 4 * MIB, 64 * MIB])
SMALL = st.one_of(st.integers(0, 300), st.integers(0, 128 * 1024), st.just(64))
ANY_SIZE = st.one_of(SMALL, st.sampled_from([MIB - 1, MIB, MIB + 1, 8 * MIB, 8 * MIB + 1, 200 * MIB]))


def check_addresses(offsets: list[int], sizes: list[int], *, block_bytes: int, start: int, end: int) -> None:
    position = start
    for offset, size in zip(offsets, sizes, strict=True):
        assert offset >= position, "extents overlap or are out of order"
        assert offset % 64 == 0
        assert size < MIB or offset % 4096 == 0
        if 0 < size <= block_bytes // 8:
            assert offset // block_bytes == (offset + size - 1) // block_bytes
        position = offset + size
    assert position <= end < position + 64 or position == end == start


@given(st.lists(ANY_SIZE, max_size=60), BLOCK, st.integers(0, 3))
def test_the_address_rule(sizes: list[int], block_bytes: int, blocks_before: int) -> None:
    start = blocks_before * block_bytes
    column = np.array(sizes, dtype=np.int64)
    offsets, end = assign_offsets(column, start=start, block_bytes=block_bytes)
    check_addresses(offsets.tolist(), sizes, block_bytes=block_bytes, start=start, end=end)


@settings(deadline=None)
@given(st.lists(ANY_SIZE, max_size=200), BLOCK, st.integers(1, 50))
def test_fast_and_plain_layout_agree(sizes: list[int], block_bytes: int, window: int) -> None:
    column = np.array(sizes, dtype=np.int64)
    expected = np.empty(len(sizes), dtype=np.int64)
    end = manifest_build._place_each(column, expected, 0, block_bytes)
    old = manifest_build._CHUNK_ROWS, manifest_build._EACH_SHARE
    manifest_build._CHUNK_ROWS, manifest_build._EACH_SHARE = window, 1
    try:
        offsets, fast_end = assign_offsets(column, start=0, block_bytes=block_bytes)
    finally:
        manifest_build._CHUNK_ROWS, manifest_build._EACH_SHARE = old
    assert (offsets.tolist(), fast_end) == (expected.tolist(), end)


def test_blocks_are_filled_with_many_small_files() -> None:
    manifest = mapped_rows([file_row(f"{i:05d}", 1200) for i in range(4096)])
    assert manifest.block_bytes == MIB
    in_block = MIB // 1216  # with padding
    assert manifest.offsets.tolist() == [i // in_block * MIB + i % in_block * 1216 for i in range(4096)]
    assert manifest.block_count == -(-4096 // in_block)


FILES = st.dictionaries(
    st.sampled_from([f"d{i % 3}/f{i}" for i in range(12)]),
    st.tuples(ANY_SIZE, st.integers(0, 1), st.sampled_from([b"", b"x", b"y"])),
    max_size=12,
)


@settings(deadline=None, max_examples=60)
@given(st.lists(FILES, min_size=2, max_size=6))
def test_refresh_keeps_offsets_and_writes_an_address_once(
    versions: list[dict[str, tuple[int, int, bytes]]],
) -> None:
    owner: dict[int, FileRow] = {}  # granule -> the only file version that ever may have it
    lengths: dict[int, int] = {}  # block -> its only length
    previous: Manifest | None = None
    old: dict[str, FileRow] = {}
    for number, files in enumerate(versions, 1):
        rows = [FileRow(p, s, m, t) for p, (s, m, t) in files.items()]
        manifest = mapped_rows(rows, version=number, previous=previous)
        for row in rows:
            offset, size = manifest.extent(manifest.find(row.path))
            unchanged = old.get(row.path) == row and (row.mtime_ns or row.token)
            if previous is not None:
                kept = unchanged and previous.offset(previous.find(row.path)) == offset
                first_new = -(-previous.address_bytes // previous.block_bytes) * previous.block_bytes
                assert kept if unchanged else offset >= first_new or not size
                assert previous.block_bytes == manifest.block_bytes
                assert previous.pg_count == manifest.pg_count
            for granule in {offset // 64, (offset + size - 1) // 64} if size else ():
                mine = row if row.mtime_ns or row.token else row._replace(token=b"version %d" % number)
                assert owner.setdefault(granule, mine) == mine
        for block in range(manifest.block_count):
            assert lengths.setdefault(block, manifest.block_length(block)) == manifest.block_length(block)
        previous, old = manifest, {r.path: r for r in rows}


def test_a_removed_tail_is_not_used_again() -> None:
    first = mapped_rows([file_row("a"), file_row("z", 5 * MIB)])
    second = mapped_rows([file_row("a")], version=2, previous=first)
    third = mapped_rows([file_row("a"), file_row("new")], version=3, previous=second)
    assert second.address_bytes == first.address_bytes
    assert third.offset(third.find("new")) == 6 * MIB
    assert [third.block_length(i) for i in range(7)] == [MIB] * 5 + [first.address_bytes - 5 * MIB, 64]


def test_an_equal_listing_only_makes_a_new_root() -> None:
    rows = [file_row(f"{i:05d}") for i in range(3000)]
    first = build_rows(rows)
    second = build_rows(rows, version=2, previous=map_built(first))
    assert second.parts == first.parts
    assert second.root != first.root
    assert second.address_bytes == first.address_bytes


def test_a_refresh_stores_only_parts_that_changed() -> None:
    rows = [file_row(f"{i:06d}") for i in range(60_000)]
    first = build_rows(rows)
    changed = [*rows[:30_000], file_row("030000", 11), file_row("030000+"), *rows[30_001:]]
    second = build_rows(changed, version=2, previous=map_built(first))
    assert len(first.parts) > 6
    assert 1 <= len(second.parts.keys() - first.parts.keys()) <= 2
    manifest = map_built(second)
    new = {"030000", "030000+"}
    assert {manifest.path(r) for r in manifest.rows_between(first.address_bytes, 2**60).tolist()} == new


def test_a_file_without_any_mark_counts_as_changed() -> None:
    rows = [FileRow("a", 10, 0, b""), FileRow("b", 10, 5, b""), FileRow("c", 10, 0, b"x")]
    first = mapped_rows(rows)
    second = mapped_rows(rows, version=2, previous=first)
    assert [first.offset(r) == second.offset(r) for r in range(3)] == [False, True, True]


def test_marks_of_equal_length_are_compared_byte_by_byte() -> None:
    first = mapped_rows([file_row(f"{i}", token=bytes([i, 1, 2])) for i in range(9)])
    changed = [file_row(f"{i}", token=bytes([i, 1, 3 if i == 4 else 2])) for i in range(9)]
    second = mapped_rows(changed, version=2, previous=first)
    assert [i for i in range(9) if first.offset(i) != second.offset(i)] == [4]


def test_another_generation_is_laid_out_afresh() -> None:
    first = mapped_rows([file_row("a"), file_row("b")])
    built = build_rows([file_row("b")], version=2, generation=2, previous=first)
    assert map_built(built).offset(0) == 0


def test_a_dataset_of_too_many_blocks_is_refused() -> None:
    first = mapped_rows([file_row("a")])
    rows = [file_row(f"{i}", 2**46) for i in range(65)]
    with pytest.raises(ManifestError, match="a generation has at most"):
        build_rows(rows, version=2, previous=first)

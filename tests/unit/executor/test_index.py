"""The block index at the end of a block's file."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.executor import index
from stoker.executor.block import BlockName, block_layout
from stoker.executor.store import MemTier

NAME = BlockName(3, 1, 9)
CLUSTER = bytes(range(16))
BYTES = 3 * 65536 + 100


@pytest.fixture
def fd():
    made = MemTier(CLUSTER).create(NAME, BYTES)
    yield made
    os.close(made)


LAYOUT = block_layout(BYTES)


def test_a_new_block_has_its_name_and_nothing_else(fd: int) -> None:
    assert index.read_header(fd, LAYOUT) == (CLUSTER, NAME, BYTES)
    assert not index.is_valid(fd, LAYOUT, 0, 1)
    assert index.known_pages(fd, LAYOUT, 0, 4) == [False] * 4
    assert os.fstat(fd).st_size == LAYOUT.file_bytes


def test_a_file_that_is_no_block_is_refused() -> None:
    other = os.memfd_create("other")
    with pytest.raises(ValueError, match="header"):
        index.read_header(other, LAYOUT)
    os.close(other)


@given(st.lists(st.tuples(st.integers(0, BYTES // 64), st.integers(1, 3000)), max_size=12), st.data())
def test_valid_bits_say_what_was_marked(extents: list[tuple[int, int]], data: st.DataObject) -> None:
    fd = MemTier(CLUSTER).create(NAME, BYTES)
    try:
        valid: set[int] = set()
        for granule, count in extents:
            start, stop = granule * 64, min(BYTES, (granule + count) * 64)
            index.mark_valid(fd, LAYOUT, [(start, stop)])
            valid |= set(range(granule, -(-stop // 64)))
        start = data.draw(st.integers(0, BYTES - 1))
        stop = data.draw(st.integers(start + 1, BYTES))
        assert index.is_valid(fd, LAYOUT, start, stop) == (set(range(start // 64, -(-stop // 64))) <= valid)
    finally:
        os.close(fd)


def test_known_bits_are_set_and_cleared(fd: int) -> None:
    index.mark_known(fd, LAYOUT, [(0, 4)])
    index.mark_known(fd, LAYOUT, [(1, 2)], known=False)
    assert index.known_pages(fd, LAYOUT, 0, 4) == [True, False, True, True]
    assert index.known_pages(fd, LAYOUT, 1, 3) == [False, True]
    assert index.are_known(fd, LAYOUT, 2, 4) and not index.are_known(fd, LAYOUT, 0, 4)

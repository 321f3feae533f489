"""A block's state, and what a miss asks for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.executor.core.extents import Extents
from stoker.executor.core.filling import (
    MISS_UNIT_BYTES,
    RETRIES_MAX,
    RETRY_SETTLED_MS,
    BlockState,
    FileFailed,
    exact_ranges,
    file_bytes_in,
    miss_ranges,
    needed_ranges,
)
from stoker.executor.wire import Failure

MIB = 2**20


def files(*extents: tuple[int, int]) -> dict[str, np.ndarray]:
    """(offset, size) each."""
    return {"offsets": np.array([e[0] for e in extents]), "sizes": np.array([e[1] for e in extents])}


def failed(code: int, start: int, stop: int, row: int = 5) -> FileFailed:
    return FileFailed(row, "a/b", code, "why", start, stop)


def test_needed_ranges_leave_holes_out_after_the_first_version() -> None:
    two = files((1000 * 64, 100), (1000 * 64 + 128, 64), (1010 * 64, 10))
    assert needed_ranges(**two, origin=64_000, length=1024, is_first_version=True) == [(0, 1024)]
    assert needed_ranges(**two, origin=64_000, length=1024, is_first_version=False) == [(0, 192), (640, 704)]


def test_the_last_granule_of_a_block_is_cut_at_its_end() -> None:
    assert needed_ranges(**files((0, 100)), origin=0, length=100, is_first_version=False) == [(0, 100)]


@pytest.mark.parametrize(
    ("extent", "asked", "expected"),
    [
        ((0, 100_000), (50, 60), [(0, 100_032)]),  # a small file: all of it
        ((0, 4 * MIB), (50, 60), [(0, 4 * MIB)]),  # the largest that is taken whole
        ((0, 20 * MIB), (9 * MIB, 9 * MIB + 1), [(8 * MIB, 12 * MIB)]),  # larger: the aligned range
        ((6 * MIB, 20 * MIB), (7 * MIB, 9 * MIB), [(6 * MIB, 12 * MIB)]),  # which ends at the file's own ends
        ((-2 * MIB, 5 * MIB), (0, 10), [(0, 3 * MIB)]),  # begun in the block before
    ],
)
def test_a_miss_asks_for_files_or_aligned_ranges(extent: tuple, asked: tuple, expected: list) -> None:
    assert MISS_UNIT_BYTES == 4 * MIB
    origin = 64 * MIB
    moved = (extent[0] + origin, extent[1])
    found = miss_ranges(**files(moved), origin=origin, start=asked[0], stop=asked[1], length=64 * MIB)
    assert found == expected


def test_what_is_read_through_is_no_more_than_was_asked() -> None:
    both = files((0, 1000), (1024, 5 * MIB))
    assert exact_ranges(**both, origin=0, start=10, stop=2000, length=64 * MIB) == [(0, 2048)]
    assert file_bytes_in(**both, origin=0, start=0, stop=2048) == 2024


def test_a_range_is_in_one_job_at_a_time() -> None:
    state = BlockState(1024, [(0, 1024)], 1)
    assert state.missing([(0, 512)]) == [(0, 512)]
    state.begin([(0, 512)])
    assert state.missing([(0, 1024)]) == [(512, 1024)]
    assert state.filled(0, 256, Extents([(0, 512)])) == [(0, 256)]
    assert state.missing([(0, 512)]) == []
    state.end([(0, 512)], [], final=Failure.CHANGED, now_ms=0)
    assert state.missing([(0, 512)]) == [(256, 512)]


def test_a_changed_file_is_final_and_the_block_settles_without_it() -> None:
    state = BlockState(1024, [(0, 1024)], 1)
    state.begin(state.needed)
    state.filled(0, 512, Extents(state.needed))
    state.end(state.needed, [failed(Failure.CHANGED, 512, 1024)], final=Failure.CHANGED, now_ms=0)
    assert state.is_settled() and not state.is_full
    assert not state.retry_due(10**9)
    found = state.failure_of([(600, 700)])
    assert found is not None and found.path == "a/b"
    assert state.failure_of([(0, 512)]) is None


def test_each_failed_part_of_a_large_file_is_named() -> None:
    state = BlockState(16 * MIB, [(0, 16 * MIB)], 1)
    for start in range(0, 16 * MIB, 4 * MIB):
        part = (start, start + 4 * MIB)
        state.begin([part])
        state.end([part], [failed(Failure.CHANGED, *part)], final=Failure.CHANGED, now_ms=0)
    for start in range(0, 16 * MIB, 4 * MIB):
        found = state.failure_of([(start, start + 100)])
        assert found is not None and (found.path, found.message) == ("a/b", "why")
    assert state.changed_rows == {5}


def test_a_note_stays_as_long_as_what_it_explains() -> None:
    state = BlockState(1024, [(0, 1024)], 1)
    state.end([], [failed(Failure.CHANGED, 0, 64, 1)], final=Failure.CHANGED, now_ms=0)
    state.end([], [failed(Failure.UNDER_STORE, 64, 128, 2)], final=Failure.CHANGED, now_ms=0)
    state.retry()
    assert [note.row for note in state.notes.values()] == [1] and not state.refused_rows


def test_a_refused_file_holds_up_a_block_for_a_while_and_is_tried_again_now_and_then() -> None:
    state = BlockState(1024, [(0, 1024)], 1)
    now_ms, tries = 0, 0
    while not state.is_settled():
        if state.refused:
            assert not state.retry_due(state.retry_ms - 1)
            now_ms = state.retry_ms
            assert state.retry_due(now_ms)
            state.retry()
        state.begin(state.missing(state.needed))
        state.end(state.needed, [failed(Failure.UNDER_STORE, 0, 1024)], final=Failure.CHANGED, now_ms=now_ms)
        tries += 1
    assert tries == RETRIES_MAX + 1
    assert state.refused_rows == {5}
    for _ in range(50):  # the store is down over night, and what is wanted stays wanted
        assert state.is_settled() and not state.retry_due(now_ms + RETRY_SETTLED_MS - 1)
        now_ms += RETRY_SETTLED_MS
        assert state.retry_due(now_ms)
        state.retry()
        state.begin(state.missing(state.needed))
        state.end(state.needed, [failed(Failure.UNDER_STORE, 0, 1024)], final=Failure.CHANGED, now_ms=now_ms)
    state.forgive()
    assert not state.is_settled() and state.missing(state.needed) == [(0, 1024)]


@given(st.lists(st.tuples(st.integers(0, 15), st.integers(1, 16)), max_size=20), st.data())
def test_needed_is_always_valid_flying_failed_or_missing(steps: list, data: st.DataObject) -> None:
    state = BlockState(1024, [(0, 512), (576, 1024)], 1)
    for low, length in steps:
        asked = [(low * 64, min(1024, (low + length) * 64))]
        job = state.missing([part for a, b in asked for part in state.needed_of(a, b)])
        before = Extents(state.flying)
        assert not before.intersects(job)
        state.begin(job)
        for start, stop in job:
            cut = data.draw(st.integers(start // 64, stop // 64)) * 64
            if cut > start:
                state.filled(start, min(cut, stop), Extents(job))
            if data.draw(st.booleans()) and cut < stop:
                code = data.draw(st.sampled_from([Failure.CHANGED, Failure.UNDER_STORE]))
                state.end([], [failed(code, cut, stop)], final=Failure.CHANGED, now_ms=0)
        state.end(job, [], final=Failure.CHANGED, now_ms=0)
        assert not state.flying
        for start, stop in state.needed:
            covered = Extents([*state.valid, *state.changed, *state.refused, *state.missing(state.needed)])
            assert covered.covers(start, stop)
        assert not state.valid.intersects([*state.changed, *state.refused, (512, 576)])

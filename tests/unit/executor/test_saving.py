"""Which blocks an executor takes in because others are about to end; and padding, which is nobody's to fetch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.executor.core.homes import my_kept, spares_table
from stoker.executor.messages import DatasetAssignment
from support.executors import ALL, MIB, FakeScheduler, TestDataset, check_all, make_files, running_executor


def bitmap(blocks: set[int]) -> bytes:
    bits = bytearray(max(blocks, default=-1) // 8 + 1)
    for block in blocks:
        bits[block >> 3] |= 1 << (block & 7)
    return bytes(bits)


BLOCKS = st.sets(st.integers(0, 80))


@given(BLOCKS, BLOCKS, st.lists(st.integers(-1, 2), min_size=1, max_size=16))
def test_the_first_home_takes_in_what_is_kept_and_was_not_freed(
    kept: set[int], freed: set[int], ranks: list[int]
) -> None:
    mine = my_kept(np.array(ranks, dtype=np.int16), bitmap(kept), 60, bitmap(freed))
    expected = {b for b in kept - freed if b < 60 and ranks[b % len(ranks)] == 0}
    assert mine == sorted(expected)


def test_no_spares_are_a_table_of_none() -> None:
    assert spares_table(b"", 4).tolist() == [0xFFFF] * 4
    assert spares_table(np.array([3, 0xFFFF], dtype="<u2").tobytes(), 2).tolist() == [3, 0xFFFF]
    with pytest.raises(ValueError, match="3 spares for 2"):
        spares_table(bytes(6), 2)


# --- real executors


def leaving(dataset: TestDataset, **fields: Any) -> DatasetAssignment:
    """Slot 1 held all and is no home any more; slot 2 is."""
    groups = dataset.manifest.pg_count
    hints = {"spares": np.zeros(groups, dtype="<u2").tobytes()} | fields
    return replace(dataset.assignment(homes=[[1]] * groups), **hints)


def test_what_is_wanted_is_copied_from_the_spare_and_not_read_again(
    tmp_path: Path, scheduler: FakeScheduler
) -> None:
    dataset = make_files(tmp_path, big=6 * MIB)
    scheduler.serve(dataset)
    blocks = dataset.manifest.block_count
    with running_executor(scheduler, slot=1, launch=1), running_executor(scheduler, slot=2, launch=2):
        scheduler.assign(dataset.assignment(wanted=ALL, wanted_version=1), slots=2)
        scheduler.wait_full(blocks, launch=1)
        scheduler.assign(leaving(dataset, wanted=ALL, wanted_version=1), slots=2)
        told = scheduler.wait_full(blocks, launch=2)
        assert (told.filled_bytes, told.copied_bytes >= dataset.manifest.total_bytes) == (0, True)
        kept = scheduler.residency(launch=1)
        assert kept is not None and kept.full_blocks == blocks, "the spare keeps what it has"


def test_what_nobody_wants_is_taken_in_if_only_the_leaving_one_has_it(
    tmp_path: Path, scheduler: FakeScheduler
) -> None:
    dataset = make_files(tmp_path, big=6 * MIB)
    scheduler.serve(dataset)
    blocks = dataset.manifest.block_count
    with (
        running_executor(scheduler, slot=1, launch=1) as first,
        running_executor(scheduler, slot=2, launch=2) as second,
    ):
        scheduler.assign(dataset.assignment(), slots=2)
        client = first.wait_dataset()
        check_all(client, dataset)
        client.close()
        scheduler.wait_full(
            blocks, launch=1
        )  # whoever reads every file has the blocks whole, padding and all
        scheduler.assign(leaving(dataset, kept=bitmap(set(range(blocks)))), slots=2)
        told = scheduler.wait_full(blocks, launch=2)
        assert (told.filled_bytes, told.wanted_blocks) == (0, 0)
        scheduler.wait(lambda: saving(scheduler) == (0, 0), "nothing to be on its way")
        client = second.connect()
        check_all(client, dataset)
        client.close()


def saving(scheduler: FakeScheduler) -> tuple[int, int] | None:
    told = scheduler.residency(launch=2)
    return None if told is None else (told.saving_blocks, told.unsaved_blocks)


def test_what_finds_no_room_is_told_and_pushes_nothing_out(tmp_path: Path, scheduler: FakeScheduler) -> None:
    other = make_files(tmp_path / "a", big=10 * MIB)
    make_files(tmp_path / "b", big=12 * MIB, seed=3)
    dataset = TestDataset(str(tmp_path / "b"), dataset_id=2, name="other")
    for one in (other, dataset):
        scheduler.serve(one)
    with (
        running_executor(scheduler, slot=1, launch=1),
        running_executor(scheduler, slot=2, launch=2, mem_bytes=20 * MIB),
    ):
        wanted = other.assignment(wanted=ALL, wanted_version=1, homes=[[1]] * other.manifest.pg_count)
        mine = dataset.assignment(wanted=ALL, wanted_version=1)
        scheduler.assign(wanted, mine, slots=2)
        scheduler.wait_full(other.manifest.block_count, launch=2)
        scheduler.wait_full(dataset.manifest.block_count, dataset_id=2, launch=1)
        every = bitmap(set(range(dataset.manifest.block_count)))
        scheduler.assign(wanted, leaving(dataset, kept=every), slots=2)

        def is_refused() -> bool:
            told = scheduler.residency(dataset_id=2, launch=2)
            return told is not None and told.unsaved_blocks > 0 and told.saving_blocks == 0

        scheduler.wait(is_refused, "blocks without room to be told of")
        told = scheduler.residency(launch=2)
        assert told is not None and told.full_blocks == other.manifest.block_count

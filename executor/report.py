"""What a heartbeat says: this executor's residency, counted from its blocks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

from stoker.executor.core.cache import DatasetKey
from stoker.executor.core.changes import Changes
from stoker.executor.datasets import DatasetView
from stoker.executor.holdings import Block, Holdings
from stoker.executor.messages import FAILURES_MAX, FileFailure, Residency
from stoker.executor.store import file_bytes


class Reporter:
    """Builds residencies, and remembers what the leader has acknowledged."""

    def __init__(self, holdings: Holdings) -> None:
        self._holdings = holdings
        self._changes: dict[DatasetKey, Changes] = {}
        self._ending: set[DatasetKey] = set()  # told that nothing of them is here any more
        self._counted: dict[DatasetKey, tuple[int, Residency, frozenset[int]]] = {}

    def build(self, views: Iterable[DatasetView], *, whole: bool) -> tuple[Residency, ...]:
        """Return what to send: all datasets with all blocks (`whole`), or what is new since the last acknowledged."""
        found = []
        present = set()
        for view in views:
            present.add(view.key)
            residency, full = self._count(view)
            changes = self._changes.setdefault(view.key, Changes())
            block_count = 0 if view.manifest is None else view.manifest.block_count
            told = changes.tell(residency, full, whole=whole, block_count=block_count)
            if told is not None:
                found.append(told)
        for key in self._holdings.stored_keys():
            if key in present:
                continue
            present.add(key)
            residency, full = self._stored(key)
            changes = self._changes.setdefault(key, Changes())
            told = changes.tell(residency, full, whole=whole, block_count=0)
            if told is not None:
                found.append(told)
        self._ending = {key for key in self._changes if key not in present}
        for key in sorted(self._ending):
            gone = self._changes[key].tell(Residency(*key, 0), (), whole=whole, block_count=0)
            if gone is not None and not whole:
                found.append(gone)
        return tuple(found)

    def _stored(self, key: DatasetKey) -> tuple[Residency, frozenset[int]]:
        """Return what is kept of a dataset that is not known here (yet)."""
        records = [s.file.record for s in self._holdings.stored_of(key).values() if s.file.record is not None]
        full = frozenset(record.file.name.block_index for record in records)
        residency = Residency(
            *key,
            version=max((record.version for record in records), default=0),
            full_blocks=len(full),
            cached_bytes=sum(record.cached_bytes for record in records),
            held_bytes=sum(file_bytes(record.data_bytes) for record in records),
        )
        return residency, full

    def acknowledge(self) -> None:
        """The last heartbeat that was built arrived."""
        for changes in self._changes.values():
            changes.acknowledge()
        for key in self._ending:
            del self._changes[key]
            self._counted.pop(key, None)
        self._ending = set()

    def _count(self, view: DatasetView) -> tuple[Residency, frozenset[int]]:
        found = self._counted.get(view.key)
        if found is not None and found[0] == view.changes:
            return found[1], found[2]
        changes = view.changes
        blocks = self._holdings.of_dataset(view.key)
        full = frozenset(i for i, block in blocks.items() if block.is_full)
        residency = count(view, blocks, full)
        stored, kept = self._stored(view.key)
        if kept:
            full |= kept
            residency = dataclasses.replace(
                residency,
                full_blocks=len(full),
                cached_bytes=residency.cached_bytes + stored.cached_bytes,
                held_bytes=residency.held_bytes + stored.held_bytes,
            )
        self._counted[view.key] = (changes, residency, full)
        return residency, full


def count(view: DatasetView, blocks: dict[int, Block], full: frozenset[int]) -> Residency:
    """Return the residency of a dataset whose blocks here are `blocks`, without the bitmap. O(blocks here)."""
    wanted_bytes = wanted_files = cached_wanted = cached_files = settled = 0
    failed_rows: set[int] = set()
    failures: dict[int, FileFailure] = {}
    manifest = view.manifest
    for block in blocks.values():
        state = block.known_state
        if state is None:
            continue
        failed_rows |= state.changed_rows
        failed_rows |= state.refused_rows
        for note in state.notes.values():
            if len(failures) < FAILURES_MAX and note.row >= 0:
                failures[note.row] = FileFailure(note.row, note.path, int(note.code), note.message)
    wanted_here = [blocks[i] for i in blocks if i in view.mine_set]
    if manifest is not None:
        wanted_bytes = int(manifest.block_file_bytes[view.mine].sum()) if len(view.mine) else 0
        wanted_files = int(manifest.block_file_count[view.mine].sum()) if len(view.mine) else 0
        for block in wanted_here:
            cached_wanted += block.cached_bytes
            is_waiting = block.is_checking or block.is_sealing
            if block.is_full or block.state.is_settled() and not is_waiting:
                settled += 1
                cached_files += int(manifest.block_file_count[block.name.block_index]) - _failed_that_begin(
                    view, block
                )
    return Residency(
        dataset_id=view.key[0],
        generation=view.key[1],
        version=view.assignment.version if manifest is None else manifest.version,
        full_blocks=len(full),
        cached_bytes=sum(block.cached_bytes for block in blocks.values()),
        held_bytes=sum(block.layout.file_bytes for block in blocks.values()),
        wanted_version=view.planned_wanted_version,
        wanted_blocks=len(view.mine),
        wanted_settled=settled,
        wanted_full=len(full & view.mine_set),
        wanted_bytes=wanted_bytes,
        wanted_cached_bytes=cached_wanted,
        wanted_files=wanted_files,
        wanted_cached_files=cached_files,
        unfit_blocks=len(view.unfit),
        saving_blocks=view.saving_blocks,
        unsaved_blocks=view.unsaved_blocks,
        filled_bytes=view.filled_bytes,
        copied_bytes=view.copied_bytes,
        served_bytes=view.served_bytes,
        failed_count=len(failed_rows),
        failures=tuple(failures[row] for row in sorted(failures)),
    )


def _failed_that_begin(view: DatasetView, block: Block) -> int:
    """Return how many of the block's failed files begin in it: a file that spans blocks counts once."""
    manifest = view.manifest
    state = block.known_state
    rows = [] if state is None else [row for row in (*state.changed_rows, *state.refused_rows) if row >= 0]
    if manifest is None or not rows:
        return 0
    offsets = manifest.offsets[np.array(rows, dtype=np.int64)]
    return int((offsets // manifest.block_bytes == block.name.block_index).sum())

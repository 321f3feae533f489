"""Taking in what only executors hold that are about to end: blocks that nobody wants, and that would have to be read again.

What is wanted moves by itself, with its home. The rest is in the assignment's `kept`: the first home of such a block fetches it as
if a reader had missed it, so from the executor that holds it, and only into room that a miss would get. A few at a time, since
readers share the fillers with them. What finds no room is counted, told to the leader, and tried again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from stoker.executor.block import BlockName
from stoker.executor.core.admission import Verdict, admit
from stoker.executor.core.cache import DatasetKey
from stoker.executor.core.eviction import Demand
from stoker.executor.core.homes import my_kept
from stoker.executor.datasets import DatasetView
from stoker.executor.fills import Fills
from stoker.executor.holdings import Block, Holdings
from stoker.executor.manifest import Manifest
from stoker.executor.store import file_bytes

UNDER_WAY_MAX = 4  # blocks of a dataset
TRIES_MAX = 3
ROOM_RETRY_MS = 2_000


@dataclass(slots=True)
class _Saves:
    """Of one dataset: what is still to come, what is on its way with how many tries, and what found no room."""

    inputs: tuple[Any, ...]
    todo: deque[int]
    under_way: dict[int, int] = field(default_factory=dict)
    unsaved: set[int] = field(default_factory=set)
    retry_ms: int = 0


class Saver:
    """See the module. `tick` does all of it; it neither waits nor yields."""

    def __init__(
        self,
        *,
        holdings: Holdings,
        fills: Fills,
        datasets: dict[DatasetKey, DatasetView],
        now_ms: Callable[[], int],
    ) -> None:
        self._holdings = holdings
        self._fills = fills
        self._datasets = datasets
        self._now_ms = now_ms
        self._saves: dict[DatasetKey, _Saves] = {}

    def tick(self) -> None:
        for key in [key for key in self._saves if key not in self._datasets]:
            del self._saves[key]
        for view in list(self._datasets.values()):
            if not view.assignment.kept:
                self._saves.pop(view.key, None)
                _tell(view, 0, 0)
            elif view.manifest is not None and view.plan_inputs() == view.planned:
                self._save(view, view.manifest)

    def _save(self, view: DatasetView, manifest: Manifest) -> None:
        inputs = (view.assignment.kept, *view.planned)
        saves = self._saves.get(view.key)
        if saves is None or saves.inputs != inputs:
            mine = my_kept(view.ranks, view.assignment.kept, manifest.block_count, view.excluded)
            saves = self._saves[view.key] = _Saves(inputs, deque(i for i in mine if i not in view.mine_set))
        now_ms = self._now_ms()
        if saves.unsaved and now_ms >= saves.retry_ms:
            saves.todo.extend(sorted(saves.unsaved))
            saves.unsaved.clear()
        self._look(view, manifest, saves)
        while saves.todo and len(saves.under_way) < UNDER_WAY_MAX:
            if not self._begin(view, manifest, saves, saves.todo.popleft(), now_ms):
                break
        _tell(view, len(saves.todo) + len(saves.under_way), len(saves.unsaved))

    def _look(self, view: DatasetView, manifest: Manifest, saves: _Saves) -> None:
        """Drop what has come, and ask again for what a job did not bring."""
        for block_index, tries in list(saves.under_way.items()):
            block = self._holdings.find(BlockName(*view.key, block_index))
            is_busy = block is not None and (
                block.jobs or block.queued or block.is_checking or block.is_sealing
            )
            if block is not None and is_busy and not block.is_full:
                continue
            missing = [] if block is None or block.is_full else block.state.missing(block.state.needed)
            if block is None or not missing or tries >= TRIES_MAX:
                if block is None or missing:
                    saves.unsaved.add(block_index)
                    saves.retry_ms = self._now_ms() + ROOM_RETRY_MS
                del saves.under_way[block_index]
                continue
            saves.under_way[block_index] = tries + 1
            self._fills.request(block, manifest.version, missing)
            self._fills.pump()

    def _begin(
        self, view: DatasetView, manifest: Manifest, saves: _Saves, block_index: int, now_ms: int
    ) -> bool:
        """Begin to fetch a block; return False where room is being made for it."""
        name = BlockName(*view.key, block_index)
        block = self._holdings.find(name)
        if self._holdings.is_stored(name) or (block is not None and block.is_full):
            return True
        if block is None:
            demand = Demand(name, file_bytes(manifest.block_length(block_index)), wanted=False)
            admission = admit(self._holdings.cache_of(view), demand, now_ms)
            if admission.verdict is Verdict.WAIT:
                saves.todo.appendleft(block_index)
                self._fills.evict(admission.victims)
                return False
            block = self._make(view, manifest, name, now_ms) if admission.verdict is Verdict.ADMIT else None
        if block is None:
            saves.unsaved.add(block_index)
            saves.retry_ms = now_ms + ROOM_RETRY_MS
            return True
        saves.under_way[block_index] = 1
        self._fills.request(block, manifest.version, block.state.needed)
        self._fills.pump()
        return True

    def _make(self, view: DatasetView, manifest: Manifest, name: BlockName, now_ms: int) -> Block | None:
        return self._holdings.create(view, manifest, name, wanted=False, now_ms=now_ms)


def _tell(view: DatasetView, saving: int, unsaved: int) -> None:
    if (view.saving_blocks, view.unsaved_blocks) != (saving, unsaved):
        view.saving_blocks, view.unsaved_blocks = saving, unsaved
        view.changes += 1

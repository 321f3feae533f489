"""The keeper's block files: made, told to the data server, sealed, let go. The account is core.cache, and is kept to the byte.

A kept block is in the cache's account and on the server's shelf. A scratch block is neither: it is read through, belongs to one
answer, and is bounded by a reserve that the cache does not use. A block that is let go stays accounted for until the data
server has closed it (no answer, no reader's loan) and no fill writes to it.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator

from gevent.event import Event

from stoker.executor import index
from stoker.executor.block import BlockName, block_layout
from stoker.executor.core.cache import Cache, DatasetKey
from stoker.executor.core.extents import Extents, Range
from stoker.executor.core.filling import BlockState, FileFailed
from stoker.executor.datasets import DatasetView
from stoker.executor.manifest import Manifest
from stoker.executor.outbox import Outbox
from stoker.executor.store import Tier, file_bytes


class Waiter:
    """A reader of `version` waits here for `need` of a block."""

    __slots__ = ("done", "failure", "lost", "need", "version")

    def __init__(self, need: list[Range], version: int) -> None:
        self.need = need
        self.version = version
        self.failure: FileFailed | None = None
        self.lost = ""  # why the block will not come at all
        self.done = Event()


class Block:
    """One holding, as the keeper sees it."""

    def __init__(self, holding: int, view: DatasetView, name: BlockName, fd: int, state: BlockState) -> None:
        self.holding = holding
        self.view = view
        self.name = name
        self.fd = fd
        self.layout = block_layout(state.data_bytes)
        self.state = state
        self.queued: dict[int, Extents] = {}  # by version: asked for by readers, not yet in a job
        self.is_ready = False  # is in line for a job
        self.waiters: set[Waiter] = set()
        self.jobs: set[int] = set()
        self.cached_bytes = 0
        self.is_full = False  # sealed, and told to the server
        self.is_checking = False
        self.is_scratch = False
        self.is_leaving = False
        self.server_has = False
        self.pins = 0  # wants that may still name it to the server


class Holdings:
    """See the module. `on_change` is called when room came free."""

    def __init__(
        self, cache: Cache, tier: Tier, server: Outbox, *, scratch_bytes: int, on_change: Callable[[], None]
    ) -> None:
        self.cache = cache
        self._tier = tier
        self._server = server
        self._on_change = on_change
        self._blocks: dict[int, Block] = {}
        self._by_dataset: dict[DatasetKey, dict[int, Block]] = {}
        self._next_holding = 1
        self.scratch_bytes = scratch_bytes
        self.scratch_used_bytes = 0
        self._scratch_charges: dict[int, int] = {}
        self._scratch_waiting: deque[tuple[int, Event]] = deque()
        self.room_changed = Event()

    def find(self, name: BlockName) -> Block | None:
        return self._by_dataset.get((name.dataset_id, name.generation), {}).get(name.block_index)

    def get(self, holding: int) -> Block | None:
        return self._blocks.get(holding)

    def of_dataset(self, key: DatasetKey) -> dict[int, Block]:
        """Return a dataset's kept blocks by index; not to be changed."""
        return self._by_dataset.get(key, {})

    def kept(self) -> Iterator[Block]:
        return (block for blocks in list(self._by_dataset.values()) for block in list(blocks.values()))

    def create(
        self, view: DatasetView, manifest: Manifest, name: BlockName, *, wanted: bool, now_ms: int
    ) -> Block:
        """Make an empty kept block; the cache must have room for it."""
        data_bytes = manifest.block_length(name.block_index)
        holding = self._take_number()
        self.cache.put(holding, name, bytes=file_bytes(data_bytes), wanted=wanted, now_ms=now_ms)
        block = self._make(holding, view, manifest, name, data_bytes)
        self._by_dataset.setdefault(view.key, {})[name.block_index] = block
        block.server_has = True
        self._server.put(
            {
                "t": "block",
                "holding": holding,
                "dataset": name.dataset_id,
                "generation": name.generation,
                "index": name.block_index,
                "data_bytes": data_bytes,
                "full_from": 0,
            },
            [block.fd],
        )
        return block

    def create_scratch(self, view: DatasetView, manifest: Manifest, name: BlockName, *, charge: int) -> Block:
        """Make a block that is kept nowhere, pinned; `charge` bytes of the reserve were acquired for it."""
        holding = self._take_number()
        block = self._make(holding, view, manifest, name, manifest.block_length(name.block_index))
        block.is_scratch = True
        block.is_leaving = True
        block.pins = 1
        self._scratch_charges[holding] = charge
        return block

    def acquire_scratch(self, charge: int, timeout_s: float) -> bool:
        """Take `charge` bytes of the reserve, first come first served; return whether they came in time."""
        assert charge <= self.scratch_bytes
        if not self._scratch_waiting and self.scratch_used_bytes + charge <= self.scratch_bytes:
            self.scratch_used_bytes += charge
            return True
        ticket = (charge, Event())
        self._scratch_waiting.append(ticket)
        try:
            ticket[1].wait(timeout_s)
        except BaseException:
            if not self._leave_line(ticket):
                self.release_scratch(charge)  # it had come, just then
            raise
        return not self._leave_line(ticket)

    def _leave_line(self, ticket: tuple[int, Event]) -> bool:
        """Return whether the ticket still stood in line, where it stands no more."""
        if ticket not in self._scratch_waiting:
            return False
        self._scratch_waiting.remove(ticket)
        self._serve_scratch()
        return True

    def release_scratch(self, charge: int) -> None:
        """Give back what was acquired and not used."""
        self.scratch_used_bytes -= charge
        self._serve_scratch()

    def seal(self, block: Block) -> bool:
        """The block is full, and all its checksums are known: readers may have its descriptor from now on.

        False: it cannot be sealed just now.
        """
        if not self._tier.seal(block.fd):
            return False
        block.is_full = True
        self._server.put({"t": "full", "holding": block.holding, "full_from": block.state.version})
        return True

    def let_go(self, block: Block, now_ms: int, why: str) -> None:
        """Begin to free a kept block; idempotent. Its waiters are told, its jobs must be cancelled by the caller."""
        if block.is_leaving:
            return
        block.is_leaving = True
        del self._by_dataset[block.view.key][block.name.block_index]
        if not self._by_dataset[block.view.key]:
            del self._by_dataset[block.view.key]
        block.view.changes += 1
        self.cache.leave(block.holding, now_ms)
        for waiter in block.waiters:
            waiter.lost = why
            waiter.done.set()
        block.waiters.clear()
        self._server.put({"t": "drop", "holding": block.holding})

    def server_gone(self, holding: int) -> None:
        """The data server has closed this holding."""
        block = self._blocks.get(holding)
        if block is not None:
            block.server_has = False
            self.settle(block)

    def settle(self, block: Block) -> None:
        """Free a leaving block that nobody uses any more; call when a job of it ended."""
        if not block.is_leaving or block.server_has or block.pins or block.jobs or block.fd < 0:
            return
        os.close(block.fd)
        block.fd = -1
        del self._blocks[block.holding]
        if block.is_scratch:
            self.release_scratch(self._scratch_charges.pop(block.holding))
        else:
            self.cache.gone(block.holding)
            self.room_changed.set()
            self.room_changed.clear()
            self._on_change()

    def mark_filled(self, block: Block, ranges: list[Range]) -> None:
        """Set the valid bits of ranges that were just written."""
        index.mark_valid(block.fd, block.layout, ranges)

    def _make(
        self, holding: int, view: DatasetView, manifest: Manifest, name: BlockName, data_bytes: int
    ) -> Block:
        fd = self._tier.create(name, data_bytes)
        needed = view.files(manifest, name.block_index).needed()
        block = Block(holding, view, name, fd, BlockState(data_bytes, needed, manifest.version))
        self._blocks[holding] = block
        return block

    def _take_number(self) -> int:
        self._next_holding += 1
        return self._next_holding - 1

    def _serve_scratch(self) -> None:
        while self._scratch_waiting:
            charge, event = self._scratch_waiting[0]
            if self.scratch_used_bytes + charge > self.scratch_bytes:
                return
            self._scratch_waiting.popleft()
            self.scratch_used_bytes += charge
            event.set()

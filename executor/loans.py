"""What the data server holds: descriptors of blocks, who uses them now, and to whom they are lent.

The keeper puts blocks on the shelf and takes them off; a block leaves in two steps. From `take_off` on nobody finds it;
its descriptor is closed, and the keeper told by `on_gone`, when the last answer that sends from it is out (pins) and the
last connection that was passed its descriptor has returned it or ended (loans). A block is never truncated under a reader.

A holding is one block's file: a block that comes back later is another holding with the same name. No socket here.

A dataset that is removed is gone for new callers at once. Its connections end; one that was passed descriptors ends when
its caller has heard of it and let go of them. Once all have ended, or said that they read nothing more, nobody here
reads the dataset (`on_cleared`); what a view of a program still holds is lent until that is gone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from gevent.event import Event

from stoker.executor.block import BlockName
from stoker.executor.entries import DiskEntry, DiskFiles, Entry
from stoker.executor.wire import Caller

# How long a greeting waits for a dataset of which the start found blocks: callers have a little more patience.
AWAITED_S = {Caller.CLIENT: 1.2, Caller.EXECUTOR: 0.3}


class Borrower(Protocol):
    """A connection that descriptors are lent to."""

    def ask_back(self, block_index: int) -> None:
        """Ask for the block's descriptor; must not wait."""
        ...

    def leave(self) -> None:
        """Serve nothing more and end: at once, or where descriptors are lent, when the caller has let go of them."""
        ...


class DatasetShelf:
    """One dataset generation: what is known of it, its blocks here, and its connections."""

    __slots__ = (
        "block_bytes",
        "blocks",
        "borrowers",
        "dataset_id",
        "generation",
        "on_cleared",
        "placement",
        "served_bytes",
        "version",
    )

    def __init__(self, dataset_id: int, generation: int, version: int, block_bytes: int) -> None:
        self.dataset_id = dataset_id
        self.generation = generation
        self.version = version
        self.block_bytes = block_bytes
        self.blocks: dict[int, Entry] = {}
        self.borrowers: set[Borrower] = set()
        self.served_bytes = 0
        self.placement: dict[str, Any] = {}  # what REFRESH tells of it
        self.on_cleared: Callable[[], None] | None = None  # it is removed: called when nobody is left

    def left(self, borrower: Borrower) -> None:
        """A connection has ended, or reads nothing more. Idempotent."""
        self.borrowers.discard(borrower)
        if self.on_cleared is not None and not self.borrowers:
            on_cleared, self.on_cleared = self.on_cleared, None
            on_cleared()


class Shelf:
    """All blocks of this executor, as the data server sees them. `on_gone(holding)`: nothing here holds it any more."""

    def __init__(self, on_gone: Callable[[int], None]) -> None:
        self.datasets: dict[tuple[int, int], DatasetShelf] = {}
        self.holdings: dict[int, Entry] = {}
        self.files: DiskFiles | None = None
        self._on_gone = on_gone
        self._awaited: dict[tuple[int, int], Event] = {}

    def await_datasets(self, keys: Iterable[tuple[int, int]]) -> None:
        """Blocks of these were found at the start: they are here as soon as the leader has named them."""
        self._awaited = {key: Event() for key in keys}

    def find_dataset(self, key: tuple[int, int], caller: Caller) -> DatasetShelf | None:
        """Return a dataset generation; of an awaited one soon. None: it is not known here."""
        awaited = self._awaited.get(key)
        if awaited is not None:
            awaited.wait(AWAITED_S.get(caller, 0.0))
        return self.datasets.get(key)

    def put_dataset(self, dataset_id: int, generation: int, version: int, block_bytes: int) -> DatasetShelf:
        """Make a dataset generation known, or its version newer. Idempotent."""
        key = (dataset_id, generation)
        dataset = self.datasets.get(key)
        if dataset is None:
            dataset = self.datasets[key] = DatasetShelf(dataset_id, generation, version, block_bytes)
            awaited = self._awaited.pop(key, None)
            if awaited is not None:
                awaited.set()
        assert dataset.block_bytes == block_bytes, "a generation's block size is fixed"
        dataset.version = max(dataset.version, version)
        return dataset

    def remove_dataset(self, dataset_id: int, generation: int, on_cleared: Callable[[], None]) -> None:
        """Forget a dataset generation: its connections end, so that their callers ask anew.

        `on_cleared` is called once: when the last has ended, maybe at once.
        """
        dataset = self.datasets.pop((dataset_id, generation), None)
        if dataset is None or not dataset.borrowers:
            self._take_off_all(dataset)
            on_cleared()
            return
        dataset.on_cleared = on_cleared
        for borrower in list(dataset.borrowers):
            borrower.leave()
        self._take_off_all(dataset)

    def _take_off_all(self, dataset: DatasetShelf | None) -> None:
        for entry in () if dataset is None else list(dataset.blocks.values()):
            self.take_off(entry.holding)

    def put(self, dataset: DatasetShelf, holding: int, name: BlockName, fd: int, data_bytes: int) -> Entry:
        """Put a holding on the shelf; owns `fd` from here on."""
        assert holding not in self.holdings and name.block_index not in dataset.blocks, (holding, name)
        entry = Entry(dataset, holding, name.block_index, fd, data_bytes)
        self.holdings[holding] = entry
        dataset.blocks[name.block_index] = entry
        return entry

    def put_file(
        self,
        dataset: DatasetShelf,
        holding: int,
        name: BlockName,
        file: str,
        data_bytes: int,
        *,
        is_restored: bool = False,
    ) -> Entry:
        """Put a holding of the SSD tier on the shelf, by its file's name."""
        assert self.files is not None, "the keeper said where the SSD tier is"
        assert holding not in self.holdings and name.block_index not in dataset.blocks, (holding, name)
        entry = DiskEntry(dataset, holding, name, file, data_bytes, self.files, is_restored=is_restored)
        self.holdings[holding] = entry
        dataset.blocks[name.block_index] = entry
        return entry

    def put_scratch(self, holding: int, fd: int, data_bytes: int) -> Entry:
        """Take a holding that nobody but one answer may see; it goes with its last pin."""
        assert holding not in self.holdings
        entry = Entry(None, holding, 0, fd, data_bytes)
        entry.leaving = True
        self.holdings[holding] = entry
        return entry

    def take_off(self, holding: int) -> None:
        """Begin to let a holding go; `on_gone` is called when it is, maybe at once. Idempotent while it goes.

        A holding that the server never had is gone already.
        """
        entry = self.holdings.get(holding)
        if entry is None:
            self._on_gone(holding)
            return
        if entry.leaving:
            return
        entry.leaving = True
        if entry.dataset is not None and entry.dataset.blocks.get(entry.block_index) is entry:
            del entry.dataset.blocks[entry.block_index]
        for borrower in list(entry.loans):
            borrower.ask_back(entry.block_index)
        self.settle(entry)

    def note_error(self, entry: Entry, error: OSError) -> None:
        """Tell of a holding whose file could not be read, if that is what the error says."""
        if isinstance(entry, DiskEntry):
            entry.files.note_error(entry, error)

    def unpin(self, entry: Entry) -> None:
        entry.pins -= 1
        assert entry.pins >= 0
        if entry.leaving:
            self.settle(entry)

    def give_back(self, entry: Entry, borrower: Borrower) -> None:
        """The borrower has closed its descriptor of this holding, or is gone. Idempotent."""
        entry.loans.discard(borrower)
        if entry.leaving:
            self.settle(entry)

    def settle(self, entry: Entry) -> None:
        """Close a leaving holding that nobody uses."""
        if entry.pins or entry.loans or self.holdings.get(entry.holding) is not entry:
            return
        del self.holdings[entry.holding]
        if isinstance(entry, DiskEntry):
            entry.files.close(entry)
        else:
            os.close(entry.fd)
        self._on_gone(entry.holding)

    def take_uses(self) -> list[tuple[int, int]]:
        """Return (holding, uses since the last call) of the holdings that were used. O(holdings)."""
        used = [entry for entry in self.holdings.values() if entry.uses]
        result = [(entry.holding, entry.uses) for entry in used]
        for entry in used:
            entry.uses = 0
        return result

    def lent(self) -> list[int]:
        """Return the holdings that are lent now. O(holdings)."""
        return [entry.holding for entry in self.holdings.values() if entry.loans]

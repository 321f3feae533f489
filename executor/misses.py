"""The data server's side of a miss: groups of ranges that it asks the keeper for, and what comes back.

    server   want   {want, dataset, generation, version, items: [[block, start, stop]..], local}      -> keeper
    keeper   known  {want, failed: [[item, code, message]..]}     at once, what surely fails          -> server
    keeper   have   {want, places: [holding..], scratch: [[holding, data_bytes]..], failed} + fds     -> server
    server   unwant {want}                                        nobody waits any more               -> keeper

The keeper says "have" after it has put the blocks it names on the shelf, and before it takes any of them off, so each place is
here when the message is. A scratch holding is the group's own, and goes with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gevent.event import Event

from stoker.executor.entries import Entry
from stoker.executor.loans import DatasetShelf, Shelf
from stoker.executor.wire import Failure

GROUP_BYTES_MAX = 4 * 1024 * 1024  # also the unit of reading a large file's miss
GROUP_RANGES_MAX = 256
GROUP_BLOCKS_MAX = 32  # below the descriptors of one message
WANTS_MAX = 1024  # groups the keeper owes us an answer to


class Group:
    """Ranges asked for together. Items are numbered in request order; `range_numbers[item]` is the request's range."""

    __slots__ = (
        "_done",
        "dataset",
        "failures",
        "is_done",
        "items",
        "local_only",
        "places",
        "range_numbers",
        "scratch",
        "version",
        "want",
    )

    def __init__(self, dataset: DatasetShelf, version: int, *, local_only: bool) -> None:
        self.dataset = dataset
        self.version = version
        self.local_only = local_only
        self.items: list[tuple[int, int, int]] = []
        self.range_numbers: list[int] = []
        self.places: list[Entry | None] = []
        self.failures: dict[int, tuple[int, str]] = {}
        self.scratch: list[Entry] = []
        self.want = 0
        self.is_done = False
        self._done = Event()

    def wait(self) -> None:
        """Wait until the keeper has answered; it bounds the time."""
        self._done.wait()

    def finish(self) -> None:
        self.is_done = True
        self._done.set()


class GroupPlanner:
    """Cuts missing ranges into groups within the bounds above."""

    def __init__(self, dataset: DatasetShelf, version: int, *, local_only: bool) -> None:
        self.groups: list[Group] = []
        self._dataset = dataset
        self._version = version
        self._local_only = local_only
        self._bytes = 0
        self._blocks: set[int] = set()

    def add(
        self, range_number: int, block_index: int, start: int, stop: int
    ) -> list[tuple[Group, int, int, int]]:
        """Return (group, item, start, stop) pieces, in order; long ranges are cut at multiples of GROUP_BYTES_MAX."""
        pieces = []
        while start < stop:
            end = min(stop, (start // GROUP_BYTES_MAX + 1) * GROUP_BYTES_MAX)
            group = self._group_for(block_index, end - start)
            group.items.append((block_index, start, end))
            group.range_numbers.append(range_number)
            pieces.append((group, len(group.items) - 1, start, end))
            start = end
        return pieces

    def _group_for(self, block_index: int, length: int) -> Group:
        full = (
            not self.groups
            or self._bytes + length > GROUP_BYTES_MAX
            or len(self.groups[-1].items) >= GROUP_RANGES_MAX
            or (block_index not in self._blocks and len(self._blocks) >= GROUP_BLOCKS_MAX)
        )
        if full:
            self.groups.append(Group(self._dataset, self._version, local_only=self._local_only))
            self._bytes = 0
            self._blocks = set()
        self._bytes += length
        self._blocks.add(block_index)
        return self.groups[-1]


class Misses:
    """Asks the keeper, by `send`, and hands out its answers."""

    def __init__(self, shelf: Shelf, send: Callable[[dict[str, Any]], None]) -> None:
        self._shelf = shelf
        self._send = send
        self._wants = 0
        self._pending: dict[int, Group] = {}

    def ask(self, group: Group) -> None:
        """Send a group to the keeper; too many: its items fail at once."""
        assert group.want == 0
        self._wants += 1
        group.want = self._wants
        if len(self._pending) >= WANTS_MAX:
            failure = (int(Failure.OVERLOADED), f"{WANTS_MAX} misses are waiting here already")
            group.failures = dict.fromkeys(range(len(group.items)), failure)
            group.finish()
            return
        self._pending[group.want] = group
        self._send(
            {
                "t": "want",
                "want": group.want,
                "dataset": group.dataset.dataset_id,
                "generation": group.dataset.generation,
                "version": group.version,
                "items": group.items,
                "local": group.local_only,
            }
        )

    def release(self, group: Group) -> None:
        """Let go of what the group holds; an unanswered one is taken back. Idempotent."""
        if self._pending.pop(group.want, None) is not None:
            self._send({"t": "unwant", "want": group.want})
        places, group.places = group.places, []
        for entry in places:
            if entry is not None:
                self._shelf.unpin(entry)

    def take_known(self, message: dict[str, Any]) -> None:
        """Handle "known": some items surely fail, the rest is on its way."""
        group = self._pending.get(message["want"])
        if group is not None:
            group.failures.update(_failures(message))

    def take_have(self, message: dict[str, Any], fds: list[int]) -> None:
        """Handle "have"; owns `fds`. What nobody waits for any more is let go at once."""
        group = self._pending.pop(message["want"], None)
        scratch = message["scratch"]
        assert len(scratch) == len(fds), "a descriptor for each scratch holding"
        entries = [
            self._shelf.put_scratch(holding, fd, data_bytes)
            for (holding, data_bytes), fd in zip(scratch, fds, strict=True)
        ]
        if group is None:
            for entry in entries:
                self._shelf.settle(entry)
            return
        group.failures.update(_failures(message))
        group.scratch = entries
        for item, holding in enumerate(message["places"]):
            place = self._shelf.holdings.get(holding) if holding else None
            assert holding or item in group.failures, "an item has a place, or it failed"
            if place is None:
                # Should the keeper name what was never here, that is one caller's failure and not everybody's end.
                group.failures.setdefault(item, (int(Failure.OVERLOADED), "the block is not here"))
            else:
                place.pins += 1
                place.uses += 1
            group.places.append(place)
        for entry in entries:
            self._shelf.settle(entry)
        group.finish()

    def report_corrupt(self, holding: int, pages: list[int]) -> None:
        """Tell the keeper that pages of a block do not match their checksums."""
        self._send({"t": "corrupt", "holding": holding, "pages": pages})


def _failures(message: dict[str, Any]) -> dict[int, tuple[int, str]]:
    return {item: (code, text) for item, code, text in message["failed"]}

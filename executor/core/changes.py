"""What the leader must still be told of which blocks are full here.

Every block that changed since the last *acknowledged* heartbeat is told again, as it is now, in each heartbeat until one is
acknowledged: whichever of them arrived, applying the last one gives the truth. Pure.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from stoker.executor.messages import HEARTBEAT_CHANGES_MAX, Residency


class Changes:
    """Of one dataset generation."""

    def __init__(self) -> None:
        self._told: frozenset[int] = frozenset()
        self._unsettled: set[int] = set()  # may differ from what the leader has
        self._acknowledged: Residency | None = None
        self._sent: Residency | None = None

    def tell(
        self, residency: Residency, full: Collection[int], *, whole: bool, block_count: int
    ) -> Residency | None:
        """Return what to send of a residency whose full blocks are `full`; None: nothing new."""
        now = frozenset(full)
        self._unsettled |= now ^ self._told
        self._told = now
        plain = dataclasses.replace(residency, bitmap=None, added=(), removed=())
        self._sent = plain
        if whole or len(self._unsettled) > HEARTBEAT_CHANGES_MAX:
            return dataclasses.replace(plain, bitmap=bitmap_of(now, block_count))
        if not self._unsettled and plain == self._acknowledged:
            return None
        return dataclasses.replace(
            plain,
            added=tuple(sorted(self._unsettled & now)),
            removed=tuple(sorted(self._unsettled - now)),
        )

    def acknowledge(self) -> None:
        """The last heartbeat arrived."""
        self._unsettled = set()
        self._acknowledged = self._sent


def bitmap_of(blocks: Collection[int], block_count: int) -> bytes:
    """Return bit i of byte i // 8, lowest first, for each block i; long enough for `block_count` blocks.

    >>> bitmap_of({0, 9}, 10)
    b'\\x01\\x02'
    """
    bits = bytearray(-(-max(block_count, max(blocks, default=-1) + 1) // 8))
    for block in blocks:
        bits[block >> 3] |= 1 << (block & 7)
    return bytes(bits)

"""Which blocks belong here, in which order they are fetched, and whom to copy them from. Pure: an assignment's numbers only."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from stoker.executor.messages import NO_HOME, SlotAddress

PEERS_MAX = 3  # asked one after the other before the under store

Uint16s = npt.NDArray[np.uint16]


class Source(NamedTuple):
    """Another executor to copy from; `local_only`: take only what it holds, else it may fetch it for us."""

    address: SlotAddress
    local_only: bool


def homes_table(homes: bytes, pg_count: int) -> Uint16s:
    """Return an assignment's homes as [replicas][pg_count]. :raises ValueError: it has another shape."""
    table = np.frombuffer(homes, dtype="<u2")
    if pg_count < 1 or len(table) % pg_count:
        raise ValueError(f"{len(table)} homes for {pg_count} placement groups")
    return table.reshape(-1, pg_count)


def my_rank(table: Uint16s, position: int) -> npt.NDArray[np.int16]:
    """Return, a placement group, which of its homes the slot at `position` is: 0 the first; -1: none."""
    ranks = np.full(table.shape[1], -1, dtype=np.int16)
    for rank in range(table.shape[0] - 1, -1, -1):
        ranks[table[rank] == position] = rank
    return ranks


def my_wanted(ranks: npt.NDArray[np.int16], wanted: bytes, block_count: int) -> npt.NDArray[np.int64]:
    """Return the wanted blocks that belong here in the order to fetch them: as first home first, then by index.

    `wanted` has bit i of byte i // 8, lowest first, for block i. Copies come last: by then the first homes have theirs.
    """
    bits = np.unpackbits(np.frombuffer(wanted, dtype=np.uint8), count=block_count, bitorder="little")
    blocks = np.flatnonzero(bits)
    rank = ranks[blocks % len(ranks)]
    blocks, rank = blocks[rank >= 0], rank[rank >= 0]
    return blocks[np.argsort(rank, kind="stable")].astype(np.int64)


def spares_table(spares: bytes, pg_count: int) -> Uint16s:
    """Return an assignment's spares as [pg_count]. :raises ValueError: it has another shape."""
    table = np.frombuffer(spares, dtype="<u2") if spares else np.full(pg_count, NO_HOME, dtype=np.uint16)
    if len(table) != pg_count:
        raise ValueError(f"{len(table)} spares for {pg_count} placement groups")
    return table


def inherited_spares(
    spares: Uint16s,
    before: Uint16s,
    now: Uint16s,
    *,
    slot_ids_before: tuple[int, ...],
    slot_ids: tuple[int, ...],
) -> Uint16s:
    """Return the spares for as long as a new leader does not know who holds what: [pg_count] positions in `slot_ids`.

    What it moves lies with the first homes of `before`, that are no homes in `now`; else a spare is who it was.
    """
    positions = {slot_id: position for position, slot_id in enumerate(slot_ids)}
    places = np.full(NO_HOME + 1, NO_HOME, dtype=np.uint16)
    for place, slot_id in enumerate(slot_ids_before):
        places[place] = positions.get(slot_id, NO_HOME)
    found = places[spares]
    if len(before) and before.shape[1] == now.shape[1]:
        former = places[before[0]]
        is_moved = (former != NO_HOME) & ~(now == former).any(axis=0)
        found[is_moved] = former[is_moved]
    return found


def my_kept(ranks: npt.NDArray[np.int16], kept: bytes, block_count: int, excluded: bytes) -> list[int]:
    """Return the blocks of `kept` that this slot takes in: it is their first home, and they were not freed since."""
    indexes = _set_bits(kept, block_count)
    freed = np.isin(indexes, _set_bits(excluded, block_count))
    return [int(i) for i in indexes[~freed] if ranks[i % len(ranks)] == 0]


def _set_bits(bitmap: bytes, block_count: int) -> npt.NDArray[np.int64]:
    bits = np.unpackbits(np.frombuffer(bitmap, dtype=np.uint8), bitorder="little")[:block_count]
    return np.flatnonzero(bits)


def sources(
    table: Uint16s,
    slots: tuple[SlotAddress, ...],
    *,
    position: int,
    block_index: int,
    spare: int = NO_HOME,
) -> list[Source]:
    """Return whom to ask for a block before the under store, best first.

    The first living home reads the under store for all homes: the others ask it, and it may fetch for them. That order has
    no circle. Whoever else lives is asked only for what it holds: the first home, relaunched, copies from a replica. Who is
    no home is asked by readers that had no answer from the homes, so it does not wait for one either.

    `spare`: the position of a slot that holds the block's PG though it is no home. It is asked before the replicas, but
    after a first home that would ask it anyway.
    """
    homes = [int(p) for p in table[:, block_index % table.shape[1]] if p != NO_HOME and p < len(slots)]
    living = [p for p in homes if p == position or slots[p].port]
    found = []
    for rank, home in enumerate(living):
        if home != position:
            found.append(Source(slots[home], local_only=rank > 0 or position not in homes))
    if spare < len(slots) and slots[spare].port and spare != position and spare not in living:
        found.insert(0 if living[:1] == [position] else 1, Source(slots[spare], local_only=True))
    return found[:PEERS_MAX]


def with_known_addresses(
    slots: tuple[SlotAddress, ...], before: tuple[SlotAddress, ...]
) -> tuple[SlotAddress, ...]:
    """Return the slots of a leader that has not heard of all yet, with what the one before knew of the others."""
    known = {slot.slot_id: slot for slot in before}
    return tuple(slot if slot.port else known.get(slot.slot_id, slot) for slot in slots)


def find_position(slots: tuple[SlotAddress, ...], slot_id: int) -> int:
    """Return the slot's position in an assignment's slots, or -1."""
    return next((n for n, slot in enumerate(slots) if slot.slot_id == slot_id), -1)


def peers_message(found: list[Source]) -> list[dict[str, Any]]:
    """Return sources as a fill message names them."""
    return [
        {
            "host": s.address.host,
            "port": s.address.port,
            "launch_id": s.address.launch_id,
            "incarnation": s.address.incarnation,
            "local_only": s.local_only,
        }
        for s in found
    ]

"""Which blocks belong to a slot, and whom it copies from."""

from __future__ import annotations

import numpy as np
import pytest

from stoker.executor.core.changes import Changes, bitmap_of
from stoker.executor.core.homes import (
    find_position,
    homes_table,
    inherited_spares,
    my_rank,
    my_wanted,
    sources,
    with_known_addresses,
)
from stoker.executor.messages import HEARTBEAT_CHANGES_MAX, NO_HOME, Residency, SlotAddress


def slots(*ports: int) -> tuple[SlotAddress, ...]:
    return tuple(SlotAddress(n + 1, n + 10, 5, "h", port, "", "", "b") for n, port in enumerate(ports))


TABLE = homes_table(np.array([[0, 1, 2, NO_HOME], [1, 2, 0, NO_HOME]], dtype="<u2").tobytes(), 4)


def test_rank_is_the_place_among_the_homes() -> None:
    assert my_rank(TABLE, 0).tolist() == [0, -1, 1, -1]
    assert my_rank(TABLE, 2).tolist() == [-1, 1, 0, -1]
    assert my_rank(TABLE, -1).tolist() == [-1] * 4
    assert find_position(slots(1, 2), 2) == 1 and find_position(slots(1), 9) == -1


def test_wanted_blocks_come_as_first_home_first() -> None:
    wanted = bitmap_of({0, 2, 4, 6, 7, 9}, 12)
    assert my_wanted(my_rank(TABLE, 0), wanted, 12).tolist() == [0, 4, 2, 6]


@pytest.mark.parametrize(
    ("position", "ports", "expected"),
    [
        (0, (7, 8, 9), [(1, True)]),  # the first home takes from the replica only what it holds
        (1, (7, 8, 9), [(0, False)]),  # the replica has the first home fetch it
        (1, (0, 8, 9), []),  # the first home is gone: the replica is the first living one
        (
            2,
            (7, 8, 9),
            [(0, True), (1, True)],
        ),  # no home: asked where homes did not answer, it waits for none
        (2, (0, 8, 9), [(1, True)]),
        (2, (0, 0, 9), []),
    ],
)
def test_sources_are_asked_in_an_order_without_a_circle(position: int, ports: tuple, expected: list) -> None:
    found = sources(TABLE, slots(*ports), position=position, block_index=4)
    assert [(s.address.slot_id - 1, s.local_only) for s in found] == expected


def moved(before: np.ndarray, now: np.ndarray, spares: list[int], slot_ids: tuple[int, ...]) -> list[int]:
    found = inherited_spares(
        np.array(spares, dtype=np.uint16), before, now, slot_ids_before=(1, 2, 3), slot_ids=slot_ids
    )
    return list(found.tolist())


def test_what_a_new_leader_moves_lies_where_it_was_before() -> None:
    none = [NO_HOME] * 4
    now = homes_table(np.array([[1, 1, 2, 2], [2, 0, 1, NO_HOME]], dtype="<u2").tobytes(), 4)
    assert moved(TABLE, TABLE, none, (1, 2, 3)) == none, "nothing moves"
    # The first homes were 0, 1, 2 and none; of the first group slot 0 is no home any more.
    assert moved(TABLE, now, none, (1, 2, 3)) == [0, *none[1:]]
    assert moved(now, now, [0, *none[1:]], (1, 2, 3)) == [0, *none[1:]], "the next assignment forgets nothing"
    shifted = np.where(now == NO_HOME, now, now + 1)
    assert moved(now, shifted, [0, *none[1:]], (9, 1, 2, 3)) == [1, *none[1:]], "a slot is known by its id"
    two = homes_table(np.array([[0, 0, 1, 1], [1, 1, 0, NO_HOME]], dtype="<u2").tobytes(), 4)
    assert moved(now, two, [0, *none[1:]], (2, 3)) == none, "a slot that is gone is nobody's spare"
    assert moved(TABLE[:0], now, none, (1, 2, 3)) == none, "its first assignment"


def test_a_slot_that_a_new_leader_has_not_heard_is_where_it_was() -> None:
    before = slots(7, 8)
    assert with_known_addresses(slots(0, 9, 0), before) == (before[0], slots(0, 9)[1], slots(0, 9, 0)[2])


def test_a_table_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="3 homes for 2"):
        homes_table(b"\0" * 6, 2)


def test_changes_are_told_until_they_are_acknowledged() -> None:
    changes = Changes()
    residency = Residency(1, 1, 1)
    assert changes.tell(residency, {1, 2}, whole=False, block_count=8).added == (1, 2)
    # The acknowledgement was lost, and meanwhile 1 left: the leader may have it, so it is told.
    told = changes.tell(residency, {2, 3}, whole=False, block_count=8)
    assert (told.added, told.removed) == ((2, 3), (1,))
    changes.acknowledge()
    assert changes.tell(residency, {2, 3}, whole=False, block_count=8) is None
    changed = changes.tell(Residency(1, 1, 1, served_bytes=5), {2, 3}, whole=False, block_count=8)
    assert (changed.added, changed.removed, changed.served_bytes) == ((), (), 5)
    assert changes.tell(residency, {2, 3}, whole=True, block_count=9).bitmap == b"\x0c\x00"


def test_a_block_that_came_and_went_unacknowledged_is_told_as_gone() -> None:
    changes = Changes()
    changes.tell(Residency(1, 1, 1), {1}, whole=False, block_count=8)
    told = changes.tell(Residency(1, 1, 1), (), whole=False, block_count=8)
    assert (told.added, told.removed) == ((), (1,))


def test_too_many_changes_become_a_bitmap() -> None:
    many = set(range(HEARTBEAT_CHANGES_MAX + 1))
    told = Changes().tell(Residency(1, 1, 1), many, whole=False, block_count=2 * len(many))
    assert told.added == () and told.bitmap == bitmap_of(many, 2 * len(many))

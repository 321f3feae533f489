"""Who holds blocks without being their home: worked out when homes change, so that what moves is copied and not read again.

Theory of operation. When slots leave the placement or come back, other slots become the homes of their PGs. The bytes are still where
they were: on an executor that is drained, or, when its slot comes back on another agent, on those that stood in for it. So
each change of homes is followed by one look at what all executors hold, and the assignment that tells the new homes also
names, a PG, one slot that holds blocks of it and is no home (`spares`), and the blocks that only leaving executors hold
(`kept`). It is forgotten once nothing is under way any more. A wrong hint costs a home one question; a missing
one costs a read of the under store.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from stoker.executor.messages import NO_HOME
from stoker.framework.core.catalog import Catalog, Dataset
from stoker.framework.core.looks import Key, Rest, counts
from stoker.framework.core.moves import is_busy, leaving_launches

if TYPE_CHECKING:
    from stoker.framework.core.fleet import Fleet

CELLS_MAX = 2**24  # bits and PGs looked at after one change; more would hold up the loop
LINGER_MS = 5_000  # with nothing under way: executors hear of new homes with their next heartbeats


class Hints(NamedTuple):
    """Of one dataset; see DatasetAssignment."""

    spares: bytes = b""
    kept: bytes = b""


NO_HINTS = Hints()


class Spares:
    """The hints of all datasets, for the homes as they are now."""

    def __init__(self) -> None:
        self._hints: dict[int, Hints] = {}
        self._key: tuple[int, ...] = ()
        self._quiet_since_ms: int | None = None

    def of(self, dataset_id: int) -> Hints:
        return self._hints.get(dataset_id, NO_HINTS)

    def follow(self, catalog: Catalog, fleet: Fleet, now_ms: int) -> None:
        """Look anew if homes have changed since. What they follow from grows a revision already, so this needs none."""
        key = (catalog.slots_revision, fleet.residency_complete)
        if key == self._key:
            return
        self._key, self._quiet_since_ms = key, None
        self._hints = _look(catalog, fleet, now_ms) if fleet.executors else {}

    def forget(self, catalog: Catalog, fleet: Fleet, now_ms: int) -> bool:
        """On a tick: drop the hints once nothing moves any more; return whether there were some."""
        is_quiet = bool(self._hints) and not leaving_launches(catalog) and not is_busy(catalog, fleet)
        if not is_quiet or self._quiet_since_ms is None:
            self._quiet_since_ms = now_ms if is_quiet else None
            return False
        if now_ms - self._quiet_since_ms < LINGER_MS:
            return False
        self._hints, self._quiet_since_ms = {}, None
        return True


def _look(catalog: Catalog, fleet: Fleet, now_ms: int) -> dict[int, Hints]:
    leaving = leaving_launches(catalog)
    places = {slot.slot_id: place for place, slot in enumerate(catalog.slot_order())}
    # Who leaves comes last, and so first: it holds what nobody else does, and has nothing else to do.
    order = sorted(fleet.executors.items(), key=lambda item: (item[0] in leaving, item[0]))
    found: dict[int, Hints] = {}
    cells = 0
    for dataset in catalog.datasets.values():
        current = dataset.current
        if current is None:
            continue
        key = (dataset.dataset_id, current.generation)
        # Counted first: copies alone, in a fleet that is too large for this, would hold up the loop.
        groups = dataset.replicas * current.pg_count
        holders = []
        for launch_id, seen in order:
            held = seen.datasets.get(key)
            if held is not None and held.residency.full_blocks:
                holders.append((launch_id, seen, held))
                cells += 8 * len(held.bitmap) + groups
                if cells > CELLS_MAX:
                    return found
        bitmaps = [
            (places[seen.heartbeat.slot_id], bytes(held.bitmap), launch_id in leaving)
            for launch_id, seen, held in holders
            if seen.heartbeat.slot_id in places
        ]
        if not bitmaps:
            continue
        kept = 0
        for _, bits, is_leaving in bitmaps:
            kept |= int.from_bytes(bits, "little") if is_leaving else 0
        kept = _struck(fleet, kept, key, [i for i, _, _ in holders if i not in leaving], now_ms)
        hints = Hints(_spares(catalog, dataset, bitmaps), kept.to_bytes(-(-kept.bit_length() // 8), "little"))
        if hints != NO_HINTS:
            found[dataset.dataset_id] = hints
    return found


def _struck(fleet: Fleet, bits: int, key: Key, staying: list[int], now_ms: int) -> int:
    """Return the blocks that none of these executors holds, or none that can be counted on."""
    if not bits:
        return 0
    rest = Rest(bits)
    for launch_id in staying:
        seen = fleet.executors[launch_id]
        if counts(fleet, seen, now_ms):
            rest.strike(seen.datasets[key].bitmap)
    return rest.bits


def _spares(catalog: Catalog, dataset: Dataset, bitmaps: list[tuple[int, bytes, bool]]) -> bytes:
    assert dataset.current is not None
    homes: npt.NDArray[np.uint16] = catalog.homes(dataset)
    count, pg_count = dataset.current.block_count, dataset.current.pg_count
    spares = np.full(pg_count, NO_HOME, dtype=np.uint16)
    for place, bits, _ in bitmaps:
        held = np.flatnonzero(np.unpackbits(np.frombuffer(bits, dtype=np.uint8), bitorder="little")[:count])
        groups = np.unique(held % pg_count)
        is_home = (homes[:, groups] == place).any(axis=0)
        spares[groups[~is_home]] = place
    return b"" if (spares == NO_HOME).all() else spares.astype("<u2").tobytes()

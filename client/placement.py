"""Where the blocks of one dataset generation live, as this client last heard: an immutable value, replaced whole.

The map names slots (`homes`); a slot's address says where its executor is now. A client never needs the newest map to
be right, only to be fast: any executor answers for any block.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from stoker.executor.messages import NO_HOME, SlotAddress

BOOT_ID_PATH = "/proc/sys/kernel/random/boot_id"

_SLOT_FIELDS = {f.name for f in dataclasses.fields(SlotAddress)}


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """`homes` is [replicas][pg_count]: positions in `slots`, NO_HOME where there is none; row 0 is the first home."""

    name: str
    dataset_id: int
    cluster: bytes
    version: int
    generation: int
    digest: str
    block_bytes: int
    pg_count: int
    placement_version: int
    homes: npt.NDArray[np.uint16] = field(repr=False)
    slots: tuple[SlotAddress, ...]

    def candidates(self, index: int, boot_id: str) -> list[SlotAddress]:
        """Return whom to ask for block `index`, best first: homes on this host, the homes in their order (a miss is
        the first one's to fill), then any other running executor, those of this host first.
        """
        homes = []
        for position in self.homes[:, index % self.pg_count].tolist():
            if position != NO_HOME and position < len(self.slots) and self.slots[position].port:
                homes.append(self.slots[position])
        homes.sort(key=lambda slot: slot.boot_id != boot_id)  # stable: the homes' order stays
        others = [slot for slot in self.slots if slot.port and slot not in homes]
        turn = index % len(others) if others else 0
        others = others[turn:] + others[:turn]  # spread the read-through
        others.sort(key=lambda slot: slot.boot_id != boot_id)
        return homes + others

    def home_count(self, index: int) -> int:
        """Return how many of `candidates(index)` are homes."""
        positions = self.homes[:, index % self.pg_count].tolist()
        return sum(p != NO_HOME and p < len(self.slots) and self.slots[p].port != 0 for p in positions)


def placement_from(raw: Mapping[str, Any]) -> Placement:
    """Return the placement that a scheduler (JSON: `homes` base64, `cluster` hex) or an executor (msgpack: bytes) told.

    :raises ValueError: a field is missing or has the wrong shape.
    """
    try:
        homes = raw["homes"]
        homes = homes if isinstance(homes, bytes) else base64.b64decode(homes, validate=True)
        cluster = raw["cluster"]
        cluster = cluster if isinstance(cluster, bytes) else bytes.fromhex(cluster.replace("-", ""))
        pg_count = int(raw["pg_count"])
        array = np.frombuffer(homes, dtype="<u2")
        if pg_count < 1 or len(array) % pg_count or not len(array) or len(cluster) != 16:
            raise ValueError(f"{len(array)} homes for {pg_count} placement groups")
        block_bytes = int(raw["block_bytes"])
        if block_bytes < 1 or block_bytes & (block_bytes - 1):
            raise ValueError(f"a block size of {block_bytes} is not a power of two")
        return Placement(
            str(raw["name"]),
            int(raw["dataset_id"]),
            cluster,
            int(raw["version"]),
            int(raw["generation"]),
            str(raw["digest"]),
            block_bytes,
            pg_count,
            int(raw["placement_version"]),
            array.reshape(-1, pg_count),
            tuple(slot_from(slot) for slot in raw["slots"]),
        )
    except (KeyError, TypeError, AttributeError, binascii.Error) as error:
        raise ValueError(f"not a placement: {type(error).__name__}: {error}") from error


def slot_from(raw: Mapping[str, Any]) -> SlotAddress:
    return SlotAddress(**{name: value for name, value in raw.items() if name in _SLOT_FIELDS})


def read_boot_id() -> str:
    """Return what is equal for all processes of this host, in any namespace; empty where there is no /proc."""
    try:
        with open(BOOT_ID_PATH) as file:
            return file.read().strip()
    except OSError:
        return ""

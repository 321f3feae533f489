"""What a tier holds, in bytes: the account that is never overdrawn.

Theory of operation. A holding is one block's file. From `put` to `leave` it is *held*; from `leave` to `gone` it is
*leaving*: nobody finds it any more, but its memory is still there, because a reader has its descriptor, an answer is
being sent from it, or a fill writes to it. Both count, so

    used_bytes + leaving_bytes <= capacity_bytes        always

and a file is made only after `put` said that there is room for all of it. A block that comes back while an old holding of it
still leaves is a new holding.

Pure: times are milliseconds given by the caller. Who must go is decided in `eviction`, who may come in `admission`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from stoker.executor.block import BlockName

DatasetKey = tuple[int, int]  # dataset id, generation


@dataclass(frozen=True, slots=True)
class CacheRules:
    """How a dataset's blocks are kept. `allotment_bytes` 0: no limit of its own."""

    policy: str = "keep"
    priority: int = 0
    allotment_bytes: int = 0


UNKNOWN_DATASET = CacheRules(policy="lru", priority=-(2**31))  # the first to go


@dataclass(slots=True)
class Holding:
    holding: int
    name: BlockName
    bytes: int
    wanted: bool
    used_ms: int
    uses: int = 1
    lent: bool = False
    busy: bool = False  # a fill or a reader's miss is under way: not a victim

    @property
    def key(self) -> DatasetKey:
        return self.name.dataset_id, self.name.generation


@dataclass(slots=True)
class Leaving:
    bytes: int
    since_ms: int
    lent: bool


@dataclass(slots=True)
class Cache:
    """See the module. `blocks_max`: files that may be there at once (descriptors), leaving ones included."""

    capacity_bytes: int
    blocks_max: int
    held: dict[int, Holding] = field(default_factory=dict)
    leaving: dict[int, Leaving] = field(default_factory=dict)
    rules: dict[DatasetKey, CacheRules] = field(default_factory=dict)
    used_bytes: int = 0
    leaving_bytes: int = 0
    _by_name: dict[BlockName, int] = field(default_factory=dict)
    _dataset_bytes: dict[DatasetKey, int] = field(default_factory=dict)

    @property
    def room_bytes(self) -> int:
        return self.capacity_bytes - self.used_bytes - self.leaving_bytes

    @property
    def file_count(self) -> int:
        return len(self.held) + len(self.leaving)

    def find(self, name: BlockName) -> Holding | None:
        """Return the holding that readers of `name` find."""
        holding = self._by_name.get(name)
        return None if holding is None else self.held[holding]

    def of_dataset(self, key: DatasetKey) -> Iterator[Holding]:
        return (held for held in list(self.held.values()) if held.key == key)

    def dataset_bytes(self, key: DatasetKey) -> int:
        return self._dataset_bytes.get(key, 0)

    def rules_of(self, key: DatasetKey) -> CacheRules:
        return self.rules.get(key, UNKNOWN_DATASET)

    def put(self, holding: int, name: BlockName, *, bytes: int, wanted: bool, now_ms: int) -> Holding:
        """Account for a new holding; there must be room for it, and no other of that name."""
        assert name not in self._by_name and holding not in self.held and holding not in self.leaving, (
            holding,
            name,
        )
        assert bytes <= self.room_bytes and self.file_count < self.blocks_max, (bytes, self.room_bytes)
        held = Holding(holding, name, bytes, wanted, now_ms)
        self.held[holding] = held
        self._by_name[name] = holding
        self.used_bytes += bytes
        self._dataset_bytes[held.key] = self.dataset_bytes(held.key) + bytes
        return held

    def leave(self, holding: int, now_ms: int) -> None:
        """Let a holding go: nobody finds it, its bytes count until `gone`."""
        held = self.held.pop(holding)
        del self._by_name[held.name]
        self._dataset_bytes[held.key] -= held.bytes
        if not self._dataset_bytes[held.key]:
            del self._dataset_bytes[held.key]
        self.used_bytes -= held.bytes
        self.leaving_bytes += held.bytes
        self.leaving[holding] = Leaving(held.bytes, now_ms, held.lent)

    def gone(self, holding: int) -> None:
        """The memory of a leaving holding is free."""
        self.leaving_bytes -= self.leaving.pop(holding).bytes

    def use(self, holding: int, count: int, now_ms: int) -> None:
        """Note that a holding was read `count` times; one that left meanwhile is no error."""
        held = self.held.get(holding)
        if held is not None:
            held.uses += count
            held.used_ms = max(held.used_ms, now_ms)

    def check(self) -> None:
        """Assert the account; for tests, and after a doubt."""
        assert self.used_bytes == sum(h.bytes for h in self.held.values())
        assert self.leaving_bytes == sum(entry.bytes for entry in self.leaving.values())
        assert self.used_bytes + self.leaving_bytes <= self.capacity_bytes
        assert self.file_count <= self.blocks_max
        assert self._by_name == {h.name: h.holding for h in self.held.values()}
        for key in {h.key for h in self.held.values()} | set(self._dataset_bytes):
            assert self.dataset_bytes(key) == sum(h.bytes for h in self.held.values() if h.key == key)

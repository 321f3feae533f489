"""The keeper's block files: made, told to the data server, sealed, let go. The accounts are core.cache's, and are kept to the byte.

Each tier has an account of its own, and a dataset's blocks are in the tier that its assignment names. A kept block is in the cache's account and on the server's shelf. A scratch block is neither: it is read through, belongs to one
answer, and is bounded by a reserve of memory that no cache uses. A block that is let go stays accounted for until the data
server has closed it (no answer, no reader's loan) and no fill writes to it.

A *stored* file is a block of a dataset that is not known here: it was found at the start and its dataset's manifest is yet to come, or
the leader does not name the dataset any more. It is in the account, and nobody reads it.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from gevent.event import Event

from stoker.executor.block import BlockName, block_layout
from stoker.executor.core.cache import Cache, DatasetKey
from stoker.executor.core.extents import Extents, Range
from stoker.executor.core.filling import BlockState, FileFailed
from stoker.executor.datasets import DatasetView
from stoker.executor.disk_file import DiskFile
from stoker.executor.manifest import Manifest
from stoker.executor.news import News
from stoker.executor.outbox import Outbox
from stoker.executor.store import BlockFile, Tier, file_bytes

log = logging.getLogger(__name__)

MEM, SSD = "mem", "ssd"
MESSAGE_BLOCKS_MAX = 512  # restored blocks that the server is told of at once


class TierAccount(NamedTuple):
    """A tier and what it holds."""

    cache: Cache
    tier: Tier
    is_disk: bool = False


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

    __slots__ = (
        "_state",
        "account",
        "cached_bytes",
        "file",
        "full_from",
        "holding",
        "is_checking",
        "is_full",
        "is_gone",
        "is_leaving",
        "is_ready",
        "is_scratch",
        "is_sealing",
        "jobs",
        "layout",
        "name",
        "pins",
        "queued",
        "server_has",
        "view",
        "waiters",
    )

    def __init__(
        self,
        holding: int,
        view: DatasetView,
        name: BlockName,
        file: BlockFile,
        account: TierAccount,
        data_bytes: int,
        state: BlockState | None,
    ) -> None:
        self.holding = holding
        self.view = view
        self.name = name
        self.file = file
        self.account = account
        self.layout = block_layout(data_bytes)
        self._state = state
        self.queued: dict[int, Extents] = {}  # by version: asked for by readers, not yet in a job
        self.is_ready = False  # is in line for a job
        self.waiters: set[Waiter] = set()
        self.jobs: set[int] = set()
        self.cached_bytes = 0
        self.is_full = False  # sealed, and told to the server
        self.full_from = 0  # the version that it was sealed for
        self.is_checking = False
        self.is_sealing = False  # full, but not yet as its tier promises it
        self.is_scratch = False
        self.is_leaving = False
        self.is_gone = False
        self.server_has = False
        self.pins = 0  # wants that may still name it to the server

    @property
    def is_on_disk(self) -> bool:
        return bool(self.file.name)

    @property
    def state(self) -> BlockState:
        """What of it is valid. Of a full block on disk it is made when it is asked for: most are never asked."""
        if self._state is None:
            self._state = _restored_state(self)
        return self._state

    def forget_state(self) -> None:
        """Forget what follows from the block being full; of those on disk there are many."""
        state = self._state
        if self.file.name and state is not None and not (state.notes or state.changed or state.refused):
            self._state = None

    @property
    def known_state(self) -> BlockState | None:
        """The state, if anything is known of it that does not follow from the block being full."""
        return self._state


class Stored:
    """A file of a dataset that is not known here (yet)."""

    __slots__ = ("file", "holding", "is_leaving", "server_has")

    def __init__(self, holding: int, file: DiskFile, *, server_has: bool) -> None:
        self.holding = holding
        self.file = file
        self.server_has = server_has
        self.is_leaving = False


class Holdings:
    """See the module. `on_change` is called when room came free."""

    def __init__(
        self,
        accounts: Mapping[str, TierAccount],
        server: Outbox,
        *,
        scratch_bytes: int,
        on_change: Callable[[], None],
    ) -> None:
        self._accounts = accounts
        self._server = server
        self._on_change = on_change
        self._on_broken: Callable[[Block, str], None] | None = None
        self._blocks: dict[int, Block] = {}
        self._by_dataset: dict[DatasetKey, dict[int, Block]] = {}
        self._stored: dict[DatasetKey, dict[int, Stored]] = {}
        self._stored_holdings: dict[int, Stored] = {}
        self._strange_tiers: set[str] = set()  # that were warned of
        self._next_holding = 1
        self.scratch_bytes = scratch_bytes
        self.scratch_used_bytes = 0
        self._scratch_charges: dict[int, int] = {}
        self._scratch_waiting: deque[tuple[int, Event]] = deque()
        self.room_changed = News()
        self.stored_changed = News()

    def watch(self, on_broken: Callable[[Block, str], None]) -> None:
        """Have `on_broken` called when a block's file is of no more use, which its tier has counted."""
        self._on_broken = on_broken

    @property
    def tiers(self) -> list[Tier]:
        return [account.tier for account in self._accounts.values()]

    def find(self, name: BlockName) -> Block | None:
        return self._by_dataset.get((name.dataset_id, name.generation), {}).get(name.block_index)

    def get(self, holding: int) -> Block | None:
        return self._blocks.get(holding)

    def of_dataset(self, key: DatasetKey) -> dict[int, Block]:
        """Return a dataset's kept blocks by index; not to be changed."""
        return self._by_dataset.get(key, {})

    def kept(self) -> Iterator[Block]:
        return (block for blocks in list(self._by_dataset.values()) for block in list(blocks.values()))

    def account_of(self, view: DatasetView) -> TierAccount:
        """Return the tier that holds the dataset's blocks, and its account."""
        tier = view.assignment.tier
        if tier not in self._accounts:
            if tier not in self._strange_tiers:
                self._strange_tiers.add(tier)
                log.warning(
                    "dataset %s is for a tier %r, which a newer leader may know: it is held in memory",
                    view.assignment.name,
                    tier,
                )
            tier = MEM
        return self._accounts[tier]

    def cache_of(self, view: DatasetView) -> Cache:
        return self.account_of(view).cache

    @property
    def caches(self) -> list[Cache]:
        return [account.cache for account in self._accounts.values()]

    def note_error(self, block: Block, text: str) -> None:
        """Count an error of the block's file."""
        block.account.tier.note_error(f"block {block.name}: {text}")

    def create(
        self, view: DatasetView, manifest: Manifest, name: BlockName, *, wanted: bool, now_ms: int
    ) -> Block | None:
        """Make an empty kept block; the cache must have room for it. None: its tier can make no file just now."""
        data_bytes = manifest.block_length(name.block_index)
        account = self.account_of(view)
        file = account.tier.create_file(name, data_bytes)
        if file is None:
            return None
        holding = self._take_number()
        account.cache.put(holding, name, bytes=file_bytes(data_bytes), wanted=wanted, now_ms=now_ms)
        block = self._make(holding, view, manifest, name, file, account)
        self._by_dataset.setdefault(view.key, {})[name.block_index] = block
        file.watch(lambda: self._tell_made(block), lambda text: self._broken(block, text))
        return block

    def _tell_made(self, block: Block) -> None:
        """The block's file is there: the data server may open it."""
        name, file = block.name, block.file
        block.server_has = True
        self._server.put(
            {
                "t": "block",
                "holding": block.holding,
                "dataset": name.dataset_id,
                "generation": name.generation,
                "index": name.block_index,
                "data_bytes": block.layout.data_bytes,
                "full_from": 0,
                "file": file.name,
            },
            [] if file.name else [file.open()],
        )

    def _broken(self, block: Block, text: str) -> None:
        if self._on_broken is not None:
            self._on_broken(block, text)

    def create_scratch(self, view: DatasetView, manifest: Manifest, name: BlockName, *, charge: int) -> Block:
        """Make a block that is kept nowhere, pinned; `charge` bytes of the reserve were acquired for it."""
        holding = self._take_number()
        account = self._accounts[MEM]
        file = account.tier.create_file(name, manifest.block_length(name.block_index))
        assert file is not None, "the MEM tier raises"
        block = self._make(holding, view, manifest, name, file, account)
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

    def seal(self, block: Block, done: Callable[[str], None]) -> bool:
        """The block is full, and all its checksums are known: readers may have its descriptor from now on.

        False: it cannot be sealed just now; see BlockFile.
        """
        if not block.file.seal(block.state.version, block.cached_bytes, done):
            block.is_sealing = True
            return False
        block.is_sealing = False
        block.is_full = True
        block.full_from = block.state.version
        self._server.put({"t": "full", "holding": block.holding, "full_from": block.full_from})
        block.forget_state()
        return True

    def unseal(self, block: Block) -> None:
        """The block is written to again."""
        if block.is_sealing:
            block.is_sealing = False
            block.file.unseal()

    def let_go(self, block: Block, now_ms: int, why: str, *, is_damaged: bool = False) -> None:
        """Begin to free a kept block; idempotent. Its waiters are told, its jobs must be cancelled by the caller."""
        if block.is_leaving:
            return
        block.is_leaving = True
        del self._by_dataset[block.view.key][block.name.block_index]
        if not self._by_dataset[block.view.key]:
            del self._by_dataset[block.view.key]
        block.view.changes += 1
        block.account.cache.leave(block.holding, now_ms)
        block.file.forget(is_damaged=is_damaged)
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
            return
        stored = self._stored_holdings.get(holding)
        if stored is not None:
            stored.server_has = False
            self._settle_stored(stored)
            self.stored_changed.tell()

    def settle(self, block: Block) -> None:
        """Free a leaving block that nobody uses any more; call when a job of it ended."""
        if not block.is_leaving or block.server_has or block.pins or block.jobs or block.is_gone:
            return
        block.is_gone = True
        if block.is_scratch:
            block.file.discard(lambda: None)
            del self._blocks[block.holding]
            self.release_scratch(self._scratch_charges.pop(block.holding))
        else:
            block.file.discard(lambda: self._gone(block.account.cache, block.holding))

    def _gone(self, cache: Cache, holding: int) -> None:
        """The room of a leaving holding is free."""
        self._blocks.pop(holding, None)
        self._stored_holdings.pop(holding, None)
        cache.gone(holding)
        self.room_changed.tell()
        self._on_change()

    # --- stored files

    def restore(self, files: Iterable[DiskFile], now_ms: int) -> None:
        """Take the files that the SSD tier found at its start into the account; what has no room goes, the oldest first."""
        cache = self._accounts[SSD].cache
        dropped = 0
        for file in sorted(files, key=lambda f: f.file.serial, reverse=True):
            size = file_bytes(file.data_bytes)
            if size > cache.room_bytes or cache.file_count >= cache.blocks_max:
                dropped += 1
                file.discard(lambda: None)
                continue
            stored = Stored(self._take_number(), file, server_has=False)
            held = cache.put(stored.holding, file.file.name, bytes=size, wanted=False, now_ms=now_ms)
            held.busy = True  # until the leader says whether its dataset is known
            self._put_stored(stored)
        if dropped:
            log.warning("%d blocks find no room in the SSD tier as it is now: dropped", dropped)

    def stored_keys(self) -> list[DatasetKey]:
        return list(self._stored)

    def stored_of(self, key: DatasetKey) -> dict[int, Stored]:
        """Return the stored files of a dataset by block; not to be changed."""
        return self._stored.get(key, {})

    def stored_bytes(self, keys: Iterable[DatasetKey]) -> int:
        return sum(file_bytes(s.file.data_bytes) for key in keys for s in self.stored_of(key).values())

    def is_stored(self, name: BlockName) -> bool:
        return name.block_index in self.stored_of((name.dataset_id, name.generation))

    def is_coming(self, name: BlockName) -> bool:
        """Return whether the block is stored and about to be attached: no reader of before has it yet."""
        stored = self.stored_of((name.dataset_id, name.generation)).get(name.block_index)
        return stored is not None and not stored.server_has

    def keep_stored(self, stored: Stored) -> None:
        """Its dataset is known: it is not the first to go."""
        self._accounts[SSD].cache.held[stored.holding].busy = True

    def set_unknown(self, known: Iterable[DatasetKey]) -> None:
        """Make the stored files of all but the `known` datasets the first to go."""
        held = self._accounts[SSD].cache.held
        for key in self._stored.keys() - set(known):
            for stored in self._stored[key].values():
                held[stored.holding].busy = False

    def attach(
        self,
        view: DatasetView,
        manifest: Manifest,
        stored: Stored,
        *,
        valid: Sequence[Range] = (),
        known: Sequence[Range] = (),
        now_ms: int,
    ) -> Block | None:
        """Make a stored file a block of its dataset. `tell_restored` is to follow.

        `valid`: what is valid of a partly filled one, and `known`: of which pages there are checksums.

        Until its wishes are worked out it counts as wanted. None: it is no block of `manifest`'s version, and dropped.
        """
        assert not stored.server_has, "the data server knows a holding once"
        name, record = stored.file.file.name, stored.file.record
        is_fit = (
            name.block_index < manifest.block_count
            and stored.file.data_bytes <= manifest.block_length(name.block_index)
            and (record is None or record.version <= manifest.version)
        )
        if not is_fit:
            log.warning("block %s is of no use to version %d: dropped", name, manifest.version)
            self.drop_stored(stored, now_ms)
            return None
        self._take_stored(stored)
        del self._stored_holdings[stored.holding]
        account = self._accounts[SSD]
        block = Block(stored.holding, view, name, stored.file, account, stored.file.data_bytes, None)
        held = account.cache.held[stored.holding]
        held.busy, held.wanted = False, True
        if record is None:
            needed = view.files(manifest, name.block_index).needed()
            block._state = BlockState(
                stored.file.data_bytes, needed, manifest.version, Extents(valid), known=Extents(known)
            )
        else:
            block.is_full = True
            block.full_from = record.version
            block.cached_bytes = record.cached_bytes
        block.server_has = True
        stored.file.watch(lambda: None, lambda text: self._broken(block, text))
        self._blocks[block.holding] = block
        self._by_dataset.setdefault(view.key, {})[name.block_index] = block
        return block

    def tell_restored(self, view: DatasetView, blocks: list[Block]) -> None:
        """Tell the data server of blocks that were attached."""
        for first in range(0, len(blocks), MESSAGE_BLOCKS_MAX):
            rows: list[list[Any]] = [
                [b.holding, b.name.block_index, b.layout.data_bytes, b.full_from, b.file.name]
                for b in blocks[first : first + MESSAGE_BLOCKS_MAX]
            ]
            self._server.put(
                {"t": "restored", "dataset": view.key[0], "generation": view.key[1], "blocks": rows}
            )

    def shelve(self, view: DatasetView) -> None:
        """The leader names the dataset no more: keep what is durable of it as stored files, the first to go.

        The data server lets go of them by itself, as of all of the dataset.
        """
        for block_index, block in list(self.of_dataset(view.key).items()):
            if not isinstance(block.file, DiskFile) or not block.is_full or block.pins or block.jobs:
                continue
            del self._blocks[block.holding]
            del self._by_dataset[view.key][block_index]
            held = block.account.cache.held[block.holding]
            held.wanted = held.busy = False
            self._put_stored(Stored(block.holding, block.file, server_has=block.server_has))
        if not self.of_dataset(view.key):
            self._by_dataset.pop(view.key, None)

    def drop_stored(self, stored: Stored, now_ms: int, *, is_damaged: bool = False) -> None:
        """Begin to free a stored file. Idempotent."""
        if stored.is_leaving:
            return
        stored.is_leaving = True
        self._take_stored(stored)
        self._accounts[SSD].cache.leave(stored.holding, now_ms)
        stored.file.forget(is_damaged=is_damaged)
        self._settle_stored(stored)

    def stored_by(self, holding: int) -> Stored | None:
        return self._stored_holdings.get(holding)

    def _settle_stored(self, stored: Stored) -> None:
        if stored.is_leaving and not stored.server_has:
            stored.file.discard(lambda: self._gone(self._accounts[SSD].cache, stored.holding))

    def _put_stored(self, stored: Stored) -> None:
        name = stored.file.file.name
        self._stored.setdefault((name.dataset_id, name.generation), {})[name.block_index] = stored
        self._stored_holdings[stored.holding] = stored

    def _take_stored(self, stored: Stored) -> None:
        name = stored.file.file.name
        key = (name.dataset_id, name.generation)
        del self._stored[key][name.block_index]
        if not self._stored[key]:
            del self._stored[key]
        self.stored_changed.tell()

    def _make(
        self,
        holding: int,
        view: DatasetView,
        manifest: Manifest,
        name: BlockName,
        file: BlockFile,
        account: TierAccount,
    ) -> Block:
        needed = view.files(manifest, name.block_index).needed()
        data_bytes = manifest.block_length(name.block_index)
        state = BlockState(data_bytes, needed, manifest.version)
        block = Block(holding, view, name, file, account, data_bytes, state)
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


def _restored_state(block: Block) -> BlockState:
    """Return the state of a full block: at least what the newest known version needs of it is valid."""
    view = block.view
    manifest = view.manifest
    if manifest is None and view.manifests:
        manifest = view.manifests[max(view.manifests)][0]
    needed: list[Range] = []
    if manifest is not None and block.name.block_index < manifest.block_count:
        needed = view.files(manifest, block.name.block_index, 0, block.layout.data_bytes).needed()
    return BlockState(block.layout.data_bytes, needed, block.full_from, Extents(needed))

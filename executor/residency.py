"""Turning an assignment into what is held: which datasets there are, which of their blocks are wanted here, what is freed.

An assignment is a wish; applying it twice, or a newer one before an older has been worked out, is nothing. Nothing is freed
because of an assignment of a leader that has not heard all executors yet (`residency_complete`). Who has just been launched, and so
knows of no others by itself, does not fetch for residency either, for a while: what they hold need not be read of the under store.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import deque
from collections.abc import Callable, Iterable

import gevent
import msgpack
import numpy as np
from gevent.hub import get_hub

from stoker.executor.block import BlockLayout
from stoker.executor.core.cache import CacheRules, DatasetKey
from stoker.executor.core.extents import Range
from stoker.executor.core.homes import with_known_addresses
from stoker.executor.datasets import DatasetView, Manifests, Spawn, select_mine
from stoker.executor.disk import is_short_of_means
from stoker.executor.errors import ManifestUnavailable
from stoker.executor.fills import Fills
from stoker.executor.holdings import Block, Holdings, Stored
from stoker.executor.index import known_pages, valid_extents
from stoker.executor.manifest import Manifest
from stoker.executor.messages import Assignment, DatasetAssignment, SlotAddress
from stoker.executor.outbox import Outbox

log = logging.getLogger(__name__)

RESIDENCY_PATIENCE_MS = 20_000  # a leader's own grace is less
RETRY_MS_MIN = 200  # of a manifest that no scheduler gave
RETRY_MS_MAX = 5_000
RETURN_PATIENCE_MS = 30_000  # with readers that have a block since before the dataset left and came back
OPEN_TIMEOUT_S = 3.0  # for the fillers to open a new dataset's store


class Residents:
    """See the module. `on_planned` is called when the wishes for a dataset have been worked out."""

    def __init__(
        self,
        *,
        cluster: bytes,
        slot_id: int,
        datasets: dict[DatasetKey, DatasetView],
        holdings: Holdings,
        fills: Fills,
        manifests: Manifests,
        server: Outbox,
        spawn: Spawn,
        now_ms: Callable[[], int],
        on_planned: Callable[[], None],
    ) -> None:
        self._cluster = cluster
        self._slot_id = slot_id
        self._datasets = datasets
        self._holdings = holdings
        self._fills = fills
        self._manifests = manifests
        self._server = server
        self._spawn = spawn
        self._now_ms = now_ms
        self._on_planned = on_planned
        self.assignment: Assignment | None = None
        self.cleared_version = (0, 0)  # see Heartbeat
        self._leaving: dict[DatasetKey, tuple[int, int]] = {}  # removed: what was cleared before they are

    @property
    def version(self) -> tuple[int, int]:
        """Return (epoch, version) of the assignment that is held; (0, 0): none yet."""
        return (0, 0) if self.assignment is None else (self.assignment.epoch, self.assignment.version)

    def apply(self, assignment: Assignment) -> bool:
        """Take an assignment over if it is newer than the held one; return whether it was."""
        if (assignment.epoch, assignment.version) <= self.version:
            return False
        if assignment.residency_complete:
            self._fills.wanted_from_ms = 0
        elif self.assignment is None:
            self._fills.wanted_from_ms = self._now_ms() + RESIDENCY_PATIENCE_MS
        self.assignment = assignment
        self._fills.slots = (
            assignment.slots
            if assignment.residency_complete
            else with_known_addresses(assignment.slots, self._fills.slots)
        )
        self._tell_slots(assignment)
        assigned = {(d.dataset_id, d.generation) for d in assignment.datasets}
        for view in [view for key, view in self._datasets.items() if key not in assigned]:
            if assignment.residency_complete:
                self._remove(view)
                self._leaving[view.key] = self.cleared_version
            else:
                self._holdings.cache_of(view).rules.pop(view.key, None)  # unknown: kept, and the first to go
        for dataset in assignment.datasets:
            self._take(dataset, assignment)
        self._holdings.set_unknown(assigned)
        self._fills.reconsider()
        self._note_cleared()
        return True

    def unknown(self) -> list[DatasetKey]:
        """Return the datasets of which files are kept here, and which the assignment does not name."""
        if self.assignment is None:
            return []
        return sorted(key for key in self._holdings.stored_keys() if key not in self._datasets)

    def forget(self, removed: Iterable[DatasetKey]) -> None:
        """Free what is kept of datasets that were surely removed."""
        for key in removed:
            if key not in self._datasets:
                for stored in list(self._holdings.stored_of(key).values()):
                    self._holdings.drop_stored(stored, self._now_ms())

    def cleared(self, dataset_id: int, generation: int) -> None:
        """The data server has no caller of a removed dataset any more."""
        self._leaving.pop((dataset_id, generation), None)
        if self._note_cleared():
            self._on_planned()

    def _note_cleared(self) -> bool:
        """Work out `cleared_version`; return whether it grew."""
        if self.assignment is None or not self.assignment.residency_complete:
            return False  # what it does not name is served yet
        before, self.cleared_version = self.cleared_version, min(self._leaving.values(), default=self.version)
        return self.cleared_version > before

    def _take(self, dataset: DatasetAssignment, assignment: Assignment) -> None:
        key = (dataset.dataset_id, dataset.generation)
        view = self._datasets.get(key)
        is_changed = view is None or view.assignment != dataset
        if view is None:
            view = self._datasets[key] = DatasetView(dataset)
        view.take(dataset, assignment, self._slot_id)
        self._holdings.cache_of(view).rules[key] = CacheRules(
            dataset.policy, dataset.priority, dataset.allotment_bytes
        )
        if is_changed and view.is_shown:
            self._show(view)
        if view.plan_inputs() != view.planned and not view.is_planning:
            view.is_planning = True
            self._spawn(self._plan, view)
        self._free_excluded(view)

    def _show(self, view: DatasetView) -> None:
        """Let callers in, or tell them what is new."""
        view.is_shown = True
        dataset = view.assignment
        self._server.put(
            {
                "t": "dataset",
                "id": dataset.dataset_id,
                "generation": dataset.generation,
                "version": dataset.version,
                "block_bytes": dataset.block_bytes,
                "placement": _placement(self._cluster, dataset),
            }
        )

    def _show_soon(self, view: DatasetView, version: int) -> None:
        """Show the dataset once a miss could be served at once: until then others serve it better."""
        self._fills.open_store(view, version, OPEN_TIMEOUT_S)
        if not view.is_removed:
            self._show(view)

    def _remove(self, view: DatasetView) -> None:
        """The dataset, or this generation of it, is named no more: serve nothing of it, and free it.

        What is durable stays until the leader says that the dataset was removed: it may be that it only does not know it.
        """
        view.is_removed = True
        del self._datasets[view.key]
        self._server.put({"t": "dataset_gone", "id": view.key[0], "generation": view.key[1]})
        self._holdings.shelve(view)
        for block in list(self._holdings.of_dataset(view.key).values()):
            self._fills.let_go(block, "the dataset was removed")
        self._holdings.cache_of(view).rules.pop(view.key, None)
        self._manifests.forget(view)

    def _plan(self, view: DatasetView) -> None:
        """Work out what is wanted here, again until nothing new came meanwhile."""
        delay_ms = RETRY_MS_MIN
        while not view.is_removed and view.plan_inputs() != view.planned:
            inputs, assignment = view.plan_inputs(), view.assignment
            try:
                manifest = self._manifests.get(view, assignment.version)
            except ManifestUnavailable as error:
                log.warning("%s; again in %d ms", error, delay_ms)
                if not view.is_shown and not view.is_removed:
                    self._show(view)  # whoever asks is told why it cannot be read here
                gevent.sleep(delay_ms / 1000)
                delay_ms = min(RETRY_MS_MAX, 2 * delay_ms)
                continue
            if view.is_removed:
                break
            if self._holdings.stored_of(view.key):
                self._attach(view, manifest)
            if not view.is_shown:
                self._show_soon(view, manifest.version)
                continue  # a newer wish may have come meanwhile
            mine, excluded = get_hub().threadpool.apply(select_mine, (view, manifest))
            if view.is_removed or view.plan_inputs() != inputs:
                continue
            is_new_wish = view.planned_wanted_version != assignment.wanted_version
            view.planned, view.planned_wanted_version = inputs, assignment.wanted_version
            view.mine, view.mine_set = mine, set(mine.tolist())
            view.excluded = excluded
            self._take_version(view, manifest, is_new_wish=is_new_wish)
            self._free_excluded(view)
            self._fills.pump()
            self._on_planned()
        view.is_planning = False

    def _attach(self, view: DatasetView, manifest: Manifest) -> None:
        """Make what was found at the start of this dataset its blocks. Whole ones can be read at once, from here."""
        if not view.is_shown:
            self._show(view)
            self._spawn(self._fills.open_store, view, manifest.version, OPEN_TIMEOUT_S)
        blocks = []
        partial = []
        for stored in list(self._holdings.stored_of(view.key).values()):
            if stored.server_has:
                self._holdings.keep_stored(stored)
                if stored.holding not in view.returning:
                    view.returning.add(stored.holding)
                    self._spawn(self._attach_returned, view, manifest, stored)
                continue
            if stored.file.record is None:
                partial.append(stored)
                continue
            block = self._holdings.attach(view, manifest, stored, now_ms=self._now_ms())
            if block is not None:
                blocks.append(block)
        self._holdings.tell_restored(view, blocks)
        for stored in partial:
            self._attach_partial(view, manifest, stored)
        view.changes += 1

    def _attach_partial(self, view: DatasetView, manifest: Manifest, stored: Stored) -> None:
        delay_ms = RETRY_MS_MIN
        while True:
            try:
                valid, known = stored.file.examine(_contents)
                break
            except OSError as error:
                if not is_short_of_means(error):
                    log.warning("block %s: %s: dropped", stored.file.file.name, error)
                    self._holdings.drop_stored(stored, self._now_ms(), is_damaged=True)
                    return
            gevent.sleep(delay_ms / 1000)
            delay_ms = min(RETRY_MS_MAX, 2 * delay_ms)
            if view.is_removed or stored.is_leaving:
                return
        if view.is_removed or stored.is_leaving:
            return
        block = self._holdings.attach(view, manifest, stored, valid=valid, known=known, now_ms=self._now_ms())
        if block is not None:
            files = view.files(manifest, block.name.block_index)
            block.cached_bytes = sum(files.file_bytes(start, stop) for start, stop in valid)
            self._holdings.tell_restored(view, [block])
            self._fills.finish(block)

    def _attach_returned(self, view: DatasetView, manifest: Manifest, stored: Stored) -> None:
        """A reader has the file since before the dataset was shelved: it is a block again once that one has let go of it.

        One that does not let go soon costs the block: else it would not be here for anybody else.
        """
        deadline_ms = self._now_ms() + RETURN_PATIENCE_MS
        while stored.server_has and not stored.is_leaving and not view.is_removed:
            left_ms = deadline_ms - self._now_ms()
            if left_ms <= 0:
                break
            self._holdings.stored_changed.wait(left_ms / 1000)
        view.returning.discard(stored.holding)
        is_attached = self._holdings.stored_by(stored.holding) is not stored  # by `_attach`, just now
        if view.is_removed or stored.is_leaving or is_attached:
            return
        name, newest = stored.file.file.name, view.manifest or manifest
        if stored.server_has:
            log.warning("block %s is lent to a reader that does not give it back: dropped", name)
            self._holdings.drop_stored(stored, self._now_ms())
        else:
            block = self._holdings.attach(view, newest, stored, now_ms=self._now_ms())
            if block is not None:
                self._holdings.tell_restored(view, [block])
                if view.manifest is not None:  # its wishes are worked out
                    block.account.cache.held[block.holding].wanted = name.block_index in view.mine_set
                    block.cached_bytes = newest.file_bytes_in_block(name.block_index)
                view.changes += 1
                return
        if name.block_index in view.mine_set:
            view.todo.append(name.block_index)
            self._fills.pump()

    def _take_version(self, view: DatasetView, manifest: Manifest, *, is_new_wish: bool) -> None:
        """Bring the held blocks in line with the assigned version and wishes."""
        is_new_version = view.manifest is not manifest
        view.manifest = manifest
        for block_index, block in list(self._holdings.of_dataset(view.key).items()):  # some may fail, and go
            block.account.cache.held[block.holding].wanted = block_index in view.mine_set
            if is_new_version and block_index < manifest.block_count:
                if block.is_full:
                    block.cached_bytes = manifest.file_bytes_in_block(block_index)
                else:
                    _renew(block, view, manifest)
            if is_new_wish and block.known_state is not None:
                block.state.forgive()
            self._fills.finish(block)
        held = self._holdings.of_dataset(view.key)
        view.todo = deque(i for i in view.mine.tolist() if i not in held or not held[i].is_full)
        view.unfit.clear()
        view.changes += 1

    def _free_excluded(self, view: DatasetView) -> None:
        """Free the blocks that the wanted rules exclude: once a wish, so that later misses may be kept."""
        is_due = view.freed_version != view.planned_wanted_version
        if not is_due or self.assignment is None or not self.assignment.residency_complete:
            return
        view.freed_version = view.planned_wanted_version
        bits = np.frombuffer(view.excluded, dtype=np.uint8)
        for block_index, block in list(self._holdings.of_dataset(view.key).items()):
            is_excluded = block_index >> 3 < len(bits) and bits[block_index >> 3] >> (block_index & 7) & 1
            if is_excluded and block_index not in view.mine_set:
                self._fills.let_go(block, "it was freed")

    def _tell_slots(self, assignment: Assignment) -> None:
        self._server.put(
            {
                "t": "slots",
                "placement_version": assignment.placement_version,
                "slots": _pack_slots(assignment.slots),
            }
        )


def _contents(fd: int, layout: BlockLayout) -> tuple[list[Range], list[Range]]:
    """Return what is valid of a block, and the pages whose checksums are there. In a thread."""
    known = known_pages(fd, layout, 0, layout.page_count)
    return valid_extents(fd, layout), [(page, page + 1) for page, is_known in enumerate(known) if is_known]


def _pack_slots(slots: tuple[SlotAddress, ...]) -> bytes:
    names = [field.name for field in dataclasses.fields(SlotAddress)]
    return bytes(msgpack.packb([{name: getattr(slot, name) for name in names} for slot in slots]))


def _placement(cluster: bytes, dataset: DatasetAssignment) -> dict[str, object]:
    """Return what REFRESH tells about a dataset, but slots and placement version, which all datasets share."""
    return {
        "name": dataset.name,
        "dataset_id": dataset.dataset_id,
        "cluster": cluster,
        "version": dataset.version,
        "generation": dataset.generation,
        "digest": dataset.digest,
        "block_bytes": dataset.block_bytes,
        "pg_count": dataset.pg_count,
        "replicas": dataset.replicas,
        "homes": dataset.homes,
    }


def _renew(block: Block, view: DatasetView, manifest: Manifest) -> None:
    """Bring a block that is not full to a newer version: what is needed of it may be less."""
    state = block.state
    files = view.files(manifest, block.name.block_index)
    state.needed, state.version = files.needed(), manifest.version
    state.retry()
    state.changed_rows.clear()
    # What changed in an earlier version is fetched anew only where this one has a file; its readers are still told why.
    for start, stop in state.needed:
        state.changed.remove(start, stop)
    state.forget_notes()
    state.notes = {start: note._replace(row=-1) for start, note in state.notes.items()}
    block.cached_bytes = sum(files.file_bytes(start, stop) for start, stop in state.valid)

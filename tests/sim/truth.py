"""What is so, whatever anybody believes: the journal as the ensemble has it, and what was promised to whom.

It sees every transaction of the ensemble when it happens, and holds it against the rules: the epoch only grows, a batch
is written by the leader of the newest epoch and follows from the one before, nothing is deleted that no snapshot
holds. Everything else that is checked in a simulation is checked against it.
"""

from __future__ import annotations

import zlib

import msgpack

from sim.zk_tree import Change, Create, Tree
from sim.zookeeper import Multi, Request
from stoker.framework.core import entries as e
from stoker.framework.core.catalog import Catalog
from stoker.framework.core.codec import decode_entry
from stoker.zk import codec
from stoker.zk.layout import Layout, chunk_count, read_index

LAYOUT = Layout("/stoker")


def is_append(request: Request) -> bool:
    """Say whether this is the request for a batch."""
    operations = request.operations if isinstance(request, Multi) else ()
    return any(isinstance(o, Create) and _batch_index(o.path) is not None for o in operations)


def _batch_index(path: str) -> int | None:
    folder, _, name = path.rpartition("/")
    return read_index(name) if folder == LAYOUT.log else None


class Truth:
    def __init__(self) -> None:
        self.epoch = 0
        self.records: list[bytes] = []
        self.catalog = Catalog()  # of all records
        self.planned: dict[int, e.LaunchPlanned] = {}
        self.volumes_planned: set[int] = set()
        self.acknowledged_index = 0  # somebody was told of what is before it
        self.robbed: set[int] = set()  # epochs whose session the ensemble ended before its time
        self.commits = 0
        self.snapshots = 0
        self.leaders: list[str] = []
        self.listed: list[int] = []  # datasets that have become READY; the world looks at each once
        self.ended: list[int] = []  # launches, likewise
        self.drained: list[int] = []  # of those, the ones whose agents are empty
        self._trailing, self._trailing_index = Catalog(), 0  # what is in the newest snapshot
        self._stops: dict[int, int] = {}  # of the batches in the log, by first index
        self._keys: dict[str, str] = {}

    @property
    def next_index(self) -> int:
        return len(self.records)

    def see(self, head: Tree, changes: tuple[Change, ...]) -> None:
        """A transaction happened. :raises AssertionError: it should not have."""
        for change in changes:
            if change.path == LAYOUT.epoch and change.data is not None:
                self._see_term(codec.read_term(change.data))
            elif change.path == LAYOUT.pointer and change.data:
                self._see_snapshot(head, *codec.read_pointer(change.data))
            elif (index := _batch_index(change.path)) is not None:
                if change.data is None:
                    stop = self._stops.pop(index)
                    assert stop <= self._trailing_index, f"record {stop - 1} is forgotten, and in no snapshot"
                else:
                    self._see_batch(index, change.data)

    def _see_term(self, term: codec.Term) -> None:
        if term.epoch == 0:
            return  # the place is made
        assert term.epoch > self.epoch, "the epoch goes back"
        self.epoch = term.epoch
        self.leaders.append(term.owner)

    def _see_batch(self, index: int, frame: bytes) -> None:
        header = codec.read_batch_header(frame)
        assert header is not None
        assert index == header.first_index == self.next_index, (
            f"record {index} after {self.next_index} records"
        )
        assert header.epoch == self.epoch, f"a write of epoch {header.epoch} in epoch {self.epoch}"
        for record in codec.read_records(header, frame[codec.HEADER_BYTES :]):
            self.records.append(record)
            self._apply(decode_entry(record))
        self._stops[index] = header.stop_index
        self.commits += 1

    def _apply(self, entry: e.Entry) -> None:
        wall_ms = getattr(entry, "wall_ms", self.catalog.wall_ms)
        assert wall_ms >= self.catalog.wall_ms, f"a journaled time goes back: {entry}"
        self.catalog.apply(entry)
        match entry:
            case e.LaunchPlanned():
                assert entry.agent_id not in self.catalog.drains, (
                    f"a launch on {entry.agent_id}, which is drained"
                )
                assert entry.launch_id not in self.planned, "a launch id is used again"
                self.planned[entry.launch_id] = entry
            case e.VolumePlanned(volume_id=volume_id):
                assert volume_id not in self.volumes_planned, "a volume's id is used again"
                self.volumes_planned.add(volume_id)
            case e.LaunchEnded():
                self.ended.append(entry.launch_id)
                if "is drained" in entry.reason:
                    self.drained.append(entry.launch_id)
            case e.DatasetListed(manifested=manifested) if manifested.version == 1:
                self.listed.append(entry.dataset_id)
            case e.JobCreated(key=key) if key:
                assert key not in self._keys, f"the request {key} was done twice"
                self._keys[key] = entry.job_id
            case e.JobsForgotten(job_ids):
                for key in [k for k, job_id in self._keys.items() if job_id in job_ids]:
                    del self._keys[key]

    def _see_snapshot(self, head: Tree, header: codec.SnapshotHeader, name: str) -> None:
        index = header.next_index
        assert self._trailing_index <= index <= self.next_index, "a snapshot of what is not durable"
        chunks = [
            head.nodes[LAYOUT.snapshot_chunk(name, i)].data for i in range(chunk_count(header.data_bytes))
        ]
        data = b"".join(chunks)
        assert len(data) == header.data_bytes and zlib.crc32(data) == header.data_crc, "a damaged snapshot"
        self._trail_to(index)
        state = msgpack.unpackb(data, strict_map_key=False)
        assert Catalog.restore(state).snapshot() == self._trailing.snapshot(), "the snapshot is not the state"
        self.snapshots += 1

    def _trail_to(self, index: int) -> None:
        for record in self.records[self._trailing_index : index]:
            self._trailing.apply(decode_entry(record))
        self._trailing_index = index

    # --- what others claim

    def check_records(self, first_index: int, records: list[bytes]) -> None:
        """What somebody reads or believes durable is what is."""
        assert self.records[first_index : first_index + len(records)] == records, (
            f"the records from {first_index} on are others"
        )

    def check_durable(self, next_index: int) -> None:
        assert next_index <= self.next_index, f"record {next_index - 1} is told of and not durable"

    def check_leads(self, epoch: int, what: str) -> None:
        """While a session lives as long as was agreed, nobody acts once another leads. (The fence holds in any case.)"""
        if epoch not in self.robbed:
            assert epoch == self.epoch, f"{what} by the leader of epoch {epoch} in epoch {self.epoch}"

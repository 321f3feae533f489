"""A cluster's journal without its scheduler: real entries, real manifests, written through any Journal."""

from __future__ import annotations

from stoker.executor.manifest import BuiltManifest, FileRow, build
from stoker.framework.core import entries as e
from stoker.framework.core.catalog import Catalog
from stoker.framework.core.codec import encode_entry
from stoker.framework.core.job_table import job_id_of
from stoker.framework.model import FleetSpec, Manifested
from stoker.framework.snapshots import encode_snapshot
from stoker.zk.journal import Journal

CLUSTER = bytes(range(16))
FRAMEWORK_ID = "f00-0001"
SECRET = "the launch's secret"
WALL_MS = 1_800_000_000_000
MEM_BYTES = 2**30


class JournalLife:
    """Leads `journal` and writes what a scheduler would; `catalog` is what the journal holds."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.catalog = Catalog()
        self.next_index = 0
        self.epoch = journal.lead().epoch

    def begin(self) -> None:
        """What a new cluster's first leader writes: two slots, one of them with a launch."""
        self.write(
            e.ClusterCreated(CLUSTER, "stoker", WALL_MS),
            e.EpochBegan(epoch=self.epoch, wall_ms=WALL_MS),
            e.FleetSet(FleetSpec(2, MEM_BYTES)),
            e.SlotAdded(1, MEM_BYTES),
            e.SlotAdded(2, MEM_BYTES),
        )
        self.write(e.FrameworkRegistered(FRAMEWORK_ID))
        self.write(
            e.LaunchPlanned(
                launch_id=1,
                slot_id=1,
                task_id="stoker-00010203-e1-s1-l1",
                agent_id="S0",
                hostname="h",
                port=31000,
                secret=SECRET,
                mem_bytes=MEM_BYTES,
                cpus_milli=500,
                epoch=self.epoch,
                wall_ms=WALL_MS,
            )
        )

    def add_dataset(self, name: str, *, files: int = 20) -> list[str]:
        """Add a dataset that was listed; return the digests of its blobs, the root's first."""
        dataset_id = self.catalog.dataset_id_next
        built = _build(dataset_id, name, files)
        for data in (built.root, *built.parts.values()):
            self.journal.put_blob(data)
        self.write(
            e.DatasetAdded(
                dataset_id=dataset_id,
                name=name,
                source=f"file:///data/{name}",
                options=(("key", "env:KEY"),),
                replicas=1,
                policy="keep",
                tier="mem",
                priority=0,
                wall_ms=WALL_MS,
            ),
            e.ListingBegan(dataset_id, 1),
        )
        manifested = Manifested(
            1,
            1,
            *(built.digest, built.files, built.bytes, built.address_bytes),
            *(built.block_bytes, built.block_count, built.pg_count),
        )
        self.write(e.DatasetListed(dataset_id, manifested, WALL_MS))
        return [built.digest, *built.parts]

    def load(self, dataset_id: int) -> str:
        """Begin a load of all of a dataset; return the job's id."""
        dataset = self.catalog.datasets[dataset_id]
        assert dataset.current is not None
        job_id, wanted_version = job_id_of(self.catalog.job_number_next), dataset.wanted_version + 1
        self.write(
            e.WantedSet(dataset_id, wanted_version, ((True, ""),), dataset.current.block_count),
            e.JobCreated(
                job_id=job_id,
                kind="load",
                dataset_id=dataset_id,
                dataset=dataset.name,
                paths=(),
                key="",
                body="",
                fit=False,
                wanted_version=wanted_version,
                bytes_total=dataset.current.bytes,
                files_total=dataset.current.files,
                block_count=dataset.current.block_count,
                wall_ms=WALL_MS,
            ),
            e.JobStarted(job_id, WALL_MS),
        )
        return job_id

    def change(self, dataset_id: int, *, priority: int) -> None:
        """Write one small entry."""
        dataset = self.catalog.datasets[dataset_id]
        self.write(e.DatasetChanged(dataset_id, dataset.replicas, dataset.policy, priority))

    def remove_dataset(self, dataset_id: int) -> None:
        self.write(e.DatasetRemoved(dataset_id))

    def snapshot(self) -> None:
        """Write a snapshot of what there is."""
        self.journal.write_snapshot(self.next_index, encode_snapshot(self.catalog))

    def write(self, *entries: e.Entry) -> None:
        """Append entries as one batch."""
        for entry in entries:
            self.catalog.apply(entry)
        self.journal.append(self.next_index, [encode_entry(entry) for entry in entries])
        self.next_index += len(entries)


def whole_life(journal: Journal) -> JournalLife:
    """Return a small cluster with two datasets and a job."""
    life = JournalLife(journal)
    life.begin()
    life.add_dataset("images")
    life.add_dataset("texts", files=3)
    life.load(1)
    return life


def _build(dataset_id: int, name: str, files: int) -> BuiltManifest:
    rows = [FileRow(f"{name}/{i:05d}", 1000 + i, 1, b"t%d" % i) for i in range(files)]
    return build(rows, cluster=CLUSTER, dataset_id=dataset_id, generation=1, version=1, slot_bytes=MEM_BYTES)

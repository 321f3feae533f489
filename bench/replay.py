"""Replay: what a new leader does that has followed nothing. `take_over` of a journal in a directory, as a scheduler runs it:
read and checked, then decoded and applied to an empty catalog batch by batch, beside a hub that gets its turns.

The mix is that of a busy cluster: a fleet that comes up, datasets that are added and listed, and then loads and frees that
are created, started, finished and forgotten by the hundred, with a launch that ends and a new version here and there.
Peer: the same records through msgpack alone, decoded and dropped. The bar is in seconds, for a million of them.
"""

from __future__ import annotations

import itertools
import random
import tempfile
import time
from collections.abc import Iterator

import msgpack
from common import Result, compare, seconds
from gevent.threadpool import ThreadPool

from stoker.framework.core import entries as e
from stoker.framework.core.catalog import job_id_of
from stoker.framework.core.codec import encode_entry
from stoker.framework.following import take_over
from stoker.framework.journaling import JournalThread, retire
from stoker.framework.model import FileError, FleetSpec, Manifested
from stoker.zk.local import LocalJournal

RECORDS = 1_000_000
BATCH = 1_000
ROUNDS = 3
DATASETS = 1_000
SLOTS = 100
JOBS_KEPT = 1_000
FORGOTTEN = 100  # jobs of one entry
GIB = 2**30


def run() -> list[Result]:
    with tempfile.TemporaryDirectory(prefix="stoker-bench-") as directory:
        _write(directory)
        return [
            compare(
                f"take-over of a journal of {RECORDS:,} entries",
                peer="msgpack alone, dropped",
                unit="s",
                bar="< 3 s",
                ours=lambda: _take_over(directory),
                theirs=lambda: seconds(lambda: _unpack(directory)),
                rounds=ROUNDS,
            )
        ]


def _write(directory: str) -> None:
    journal = LocalJournal(directory, owner="bench")
    journal.lead()
    source = entries(random.Random(1))
    for index in range(0, RECORDS, BATCH):
        journal.append(index, [encode_entry(entry) for entry in itertools.islice(source, BATCH)])
    journal.close()


def _take_over(directory: str) -> float:
    journal, workers = JournalThread(LocalJournal(directory, owner="bench")), ThreadPool(1)
    began_s = time.perf_counter()
    _, replica = take_over(journal, None, workers)
    took_s = time.perf_counter() - began_s
    assert replica.next_index == RECORDS
    journal.close()
    retire(workers)
    return took_s


def _unpack(directory: str) -> None:
    journal = LocalJournal(directory, owner="bench")
    for _, record in journal.lead().records:
        msgpack.unpackb(record)
    journal.close()


def entries(chance: random.Random) -> Iterator[e.Entry]:
    """Yield a journal without end."""
    wall_ms = 1_700_000_000_000
    yield e.ClusterCreated(bytes(16), "bench", wall_ms)
    yield e.EpochBegan(1, wall_ms)
    yield e.FleetSet(FleetSpec(SLOTS, GIB))
    yield e.FrameworkRegistered("framework-1")
    for slot_id in range(1, SLOTS + 1):
        yield e.SlotAdded(slot_id, GIB)
        yield _launch(slot_id, slot_id, wall_ms)
    for dataset_id in range(1, DATASETS + 1):
        name = f"dataset-{dataset_id}"
        yield e.DatasetAdded(dataset_id, name, f"s3://bucket/{name}", (), 2, "keep", "mem", 0, wall_ms)
        yield e.ListingBegan(dataset_id, 1)
        yield e.DatasetListed(dataset_id, _manifested(dataset_id, 1), wall_ms)
    finished: list[str] = []
    wanted = dict.fromkeys(range(1, DATASETS + 1), 0)
    launch_id = SLOTS
    on_slot = {slot_id: slot_id for slot_id in range(1, SLOTS + 1)}
    versions = dict.fromkeys(range(1, DATASETS + 1), 1)
    for number in itertools.count(1):
        wall_ms += 250
        dataset_id = chance.randrange(1, DATASETS + 1)
        job_id, kind = job_id_of(number), chance.choice(("load", "load", "free"))
        paths = tuple(sorted({f"train/part-{chance.randrange(40):04d}" for _ in range(chance.randrange(3))}))
        wanted[dataset_id] += 1
        rules = tuple((kind == "load", path) for path in paths or ("",))
        yield e.WantedSet(dataset_id, wanted[dataset_id], rules, 16)
        key = f"{chance.getrandbits(128):032x}"
        digest = f"{chance.getrandbits(256):064x}"
        yield e.JobCreated(
            job_id, kind, dataset_id, f"dataset-{dataset_id}", paths, key, digest, False,
            wanted[dataset_id], GIB, 10_000, 16, wall_ms,
        )  # fmt: skip
        yield e.JobStarted(job_id, wall_ms + 100)
        if number % 50:
            yield e.JobFinished(job_id, "SUCCEEDED", GIB, 10_000, 0, (), "", wall_ms + 200)
        else:
            errors = tuple(FileError(f"train/{i}.jpg", "under_store", "404: not found") for i in range(3))
            yield e.JobFinished(job_id, "FAILED", GIB, 9_997, 3, errors, "3 of 10,000 files", wall_ms + 200)
        finished.append(job_id)
        if len(finished) >= JOBS_KEPT + FORGOTTEN:
            yield e.JobsForgotten(tuple(finished[:FORGOTTEN]))
            del finished[:FORGOTTEN]
        if number % 100 == 0:
            launch_id += 1
            slot_id = chance.randrange(1, SLOTS + 1)
            yield e.LaunchEnded(on_slot[slot_id], "its process ended: killed by signal 9", wall_ms)
            yield _launch(launch_id, slot_id, wall_ms)
            on_slot[slot_id] = launch_id
        if number % 200 == 0:
            versions[dataset_id] += 1
            yield e.ListingBegan(dataset_id, versions[dataset_id])
            yield e.DatasetListed(dataset_id, _manifested(dataset_id, versions[dataset_id]), wall_ms)


def _launch(launch_id: int, slot_id: int, wall_ms: int) -> e.LaunchPlanned:
    task_id = f"stoker-00000000-e1-s{slot_id}-l{launch_id}"
    agent = f"agent-{slot_id}"
    return e.LaunchPlanned(launch_id, slot_id, task_id, agent, agent, 31_000, "0" * 64, GIB, 500, 1, wall_ms)


def _manifested(dataset_id: int, version: int) -> Manifested:
    return Manifested(1, version, f"{dataset_id * 1000 + version:064x}", 10_000, GIB, GIB, 2**26, 16, 16)

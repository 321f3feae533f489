"""Replay: what a new leader does that has followed nothing. `take_over` of a journal in a directory, as a scheduler runs it:
read and checked, then decoded and applied to an empty catalog batch by batch, beside a hub that gets its turns.

The mix is that of a busy cluster, as its own ticks make it: a fleet that comes up, datasets that are added and listed, and
then, two a tick, loads and frees of all of a dataset or of some of its paths. Each sets what is wanted (by the rules that the
API would have merged), is created, starts one tick later and finishes after four, one in fifty with errors; meanwhile as many
old ones are forgotten, a launch ends now and then, and a dataset gets a new version.
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
from stoker.framework.core.codec import encode_entry
from stoker.framework.core.job_table import job_id_of
from stoker.framework.core.rules import Rules, merge_rules
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
TICK_MS = 500
JOBS_A_TICK = 2
STARTED_AFTER = 1  # ticks
FINISHED_AFTER = 4
GIB = 2**30


def run() -> list[Result]:
    with tempfile.TemporaryDirectory(prefix="stoker-bench-") as directory:
        _write(directory)
        return [
            compare(
                f"take-over of {RECORDS:,} entries, {JOBS_A_TICK} jobs a tick",
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
    for _, records in journal.lead().batches:
        for record in records:
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
    yield from _ticks(chance, wall_ms)


def _ticks(chance: random.Random, wall_ms: int) -> Iterator[e.Entry]:
    rules: dict[int, Rules] = dict.fromkeys(range(1, DATASETS + 1), ())
    wanted_versions = dict.fromkeys(rules, 0)
    versions = dict.fromkeys(rules, 1)
    launch_id = SLOTS
    on_slot = {slot_id: slot_id for slot_id in range(1, SLOTS + 1)}
    for tick in itertools.count():
        wall_ms += TICK_MS
        for number in _jobs_of(tick):
            dataset_id, kind = chance.randrange(1, DATASETS + 1), chance.choice(("load", "load", "free"))
            paths = tuple(
                sorted({f"train/part-{chance.randrange(40):04d}" for _ in range(chance.randrange(3))})
            )
            rules[dataset_id] = merge_rules(rules[dataset_id], kind == "load", paths)
            wanted_versions[dataset_id] += 1
            yield e.WantedSet(dataset_id, wanted_versions[dataset_id], rules[dataset_id], 16)
            key, digest = f"{chance.getrandbits(128):032x}", f"{chance.getrandbits(256):064x}"
            yield e.JobCreated(
                job_id_of(number), kind, dataset_id, f"dataset-{dataset_id}", paths, key, digest, False,
                wanted_versions[dataset_id], GIB, 10_000, 16, wall_ms,
            )  # fmt: skip
        for number in _jobs_of(tick - STARTED_AFTER):
            yield e.JobStarted(job_id_of(number), wall_ms)
        for number in _jobs_of(tick - FINISHED_AFTER):
            yield _finished(number, wall_ms)
        forgotten = _jobs_of(tick - FINISHED_AFTER - JOBS_KEPT // JOBS_A_TICK)
        if forgotten:
            yield e.JobsForgotten(tuple(map(job_id_of, forgotten)))
        if tick % 50 == 0:
            launch_id += 1
            slot_id = chance.randrange(1, SLOTS + 1)
            yield e.LaunchEnded(on_slot[slot_id], "its process ended: killed by signal 9", wall_ms)
            yield _launch(launch_id, slot_id, wall_ms)
            on_slot[slot_id] = launch_id
        if tick % 100 == 0:
            dataset_id = chance.randrange(1, DATASETS + 1)
            versions[dataset_id] += 1
            yield e.ListingBegan(dataset_id, versions[dataset_id])
            yield e.DatasetListed(dataset_id, _manifested(dataset_id, versions[dataset_id]), wall_ms)


def _jobs_of(tick: int) -> range:
    """Return the numbers of the jobs that are asked for before this tick."""
    return range(tick * JOBS_A_TICK + 1, (tick + 1) * JOBS_A_TICK + 1) if tick >= 0 else range(0)


def _finished(number: int, wall_ms: int) -> e.JobFinished:
    if number % 50:
        return e.JobFinished(job_id_of(number), "SUCCEEDED", GIB, 10_000, 0, (), "", wall_ms)
    errors = tuple(FileError(f"train/{i}.jpg", "under_store", "404: not found") for i in range(3))
    return e.JobFinished(job_id_of(number), "FAILED", GIB, 9_997, 3, errors, "3 of 10,000 files", wall_ms)


def _launch(launch_id: int, slot_id: int, wall_ms: int) -> e.LaunchPlanned:
    task_id = f"stoker-00000000-e1-s{slot_id}-l{launch_id}"
    agent = f"agent-{slot_id}"
    return e.LaunchPlanned(launch_id, slot_id, task_id, agent, agent, 31_000, "0" * 64, GIB, 500, 1, wall_ms)


def _manifested(dataset_id: int, version: int) -> Manifested:
    return Manifested(1, version, f"{dataset_id * 1000 + version:064x}", 10_000, GIB, GIB, 2**26, 16, 16)

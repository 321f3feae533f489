"""Take-over with a large catalog: (the new leader answers a write) - (the old leader's election node is gone).

10,000 datasets and 100,000 finished jobs. Manifests are not read at a take-over, so there are none. Peer: a scheduler that
has not followed, from the start of its process to its first answered write, less the time that one takes with nothing
in the journal: what a take-over without followers would cost on top.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterator

import zookeeper
from common import Result
from kazoo.client import KazooClient

from stoker.framework.core import entries as e
from stoker.framework.core.codec import encode_entry
from stoker.framework.core.job_table import job_id_of
from stoker.framework.model import Manifested
from stoker.zk.home import open_home
from stoker.zk.journal import BATCH_BYTES_MAX

DATASETS = 10_000
JOBS = 100_000
ROUNDS = 5
PATH = "/takeover"
WALL_MS = 1_700_000_000_000


def run() -> list[Result]:
    if not zookeeper.is_here():
        return []
    with zookeeper.ensemble() as ensemble:
        settings = {"datasets_max": 2 * DATASETS, "jobs_kept_max": 2 * JOBS, "jobs_kept_ms": 2**53}
        with zookeeper.Schedulers(ensemble.url("/empty"), **settings) as schedulers:
            empty_s = _cold_s(schedulers)
        with zookeeper.Schedulers(ensemble.url(PATH), **settings) as schedulers:
            first = schedulers.start()
            zookeeper.wait_state(first, "leading")
            schedulers.stop(first)
            _fill(ensemble.url(PATH))
            cold_s = _cold_s(schedulers) - empty_s
            took = list(_rounds(schedulers, ensemble.hosts))
    return [
        Result(
            f"take-over, {DATASETS:,} datasets, {JOBS:,} jobs",
            "reading the journal from its start",
            statistics.median(took) * 1000,
            cold_s * 1000,
            "ms",
            cold_s / statistics.median(took),
            cold_s / max(took),
            cold_s / min(took),
            "< 500 ms",
        )
    ]


def _cold_s(schedulers: zookeeper.Schedulers) -> float:
    """Return how long a scheduler takes from its start to its first answered write, alone; it is ended again."""
    began_s = time.monotonic()
    process = schedulers.start()
    took_s = zookeeper.first_write(process, zookeeper.MEM_BYTES) - began_s
    schedulers.stop(process)
    return took_s


def _rounds(schedulers: zookeeper.Schedulers, hosts: str) -> Iterator[float]:
    client = KazooClient(hosts=hosts)
    client.start()
    leader = schedulers.start()
    zookeeper.wait_state(leader, "leading")
    for number in range(ROUNDS):
        follower = schedulers.start()
        zookeeper.wait_state(follower, "following")
        (node,) = [n for n in _candidates(client) if client.get(n)[0].decode() == leader.url]
        gone = threading.Event()
        moment: list[float] = []

        def note(_: object, moment: list[float] = moment, gone: threading.Event = gone) -> None:
            moment.append(time.monotonic())
            gone.set()

        assert client.exists(node, watch=note)
        stopper = threading.Thread(target=schedulers.stop, args=(leader,))
        stopper.start()
        answered_s = zookeeper.first_write(follower, zookeeper.MEM_BYTES + (number + 1) * 4096)
        stopper.join()
        assert gone.wait(zookeeper.TIMEOUT_S)
        yield answered_s - moment[0]
        leader = follower
    client.stop()
    client.close()


def _candidates(client: KazooClient) -> list[str]:
    return [f"{PATH}/election/{name}" for name in client.get_children(f"{PATH}/election")]


def _fill(url: str) -> None:
    """Write the catalog into the journal of a cluster that has no leader now."""
    home = open_home(url, member="bench", owner="bench")
    try:
        home.start()
        home.join()
        home.wait_turn()
        journal = home.journal()
        recovered = journal.lead()
        index = recovered.snapshot_index + sum(len(records) for _, records in recovered.batches)
        batch: list[bytes] = []
        for record in map(encode_entry, _entries()):
            if sum(map(len, batch)) + len(record) > BATCH_BYTES_MAX or len(batch) >= 1_000:
                journal.append(index, batch)
                index += len(batch)
                batch = []
            batch.append(record)
        journal.append(index, batch)
    finally:
        home.close()


def _entries() -> Iterator[e.Entry]:
    for dataset_id in range(1, DATASETS + 1):
        name = f"dataset-{dataset_id}"
        yield e.DatasetAdded(dataset_id, name, f"s3://bucket/{name}", (), 2, "keep", "mem", 0, WALL_MS)
        yield e.ListingBegan(dataset_id, 1)
        size = 2**30
        listed = Manifested(1, 1, f"{dataset_id:064x}", 10_000, size, size, 2**26, 16, 16)
        yield e.DatasetListed(dataset_id, listed, WALL_MS)
    for number in range(1, JOBS + 1):
        dataset_id = number % DATASETS + 1
        wanted = number // DATASETS + 1
        job_id, name, paths = job_id_of(number), f"dataset-{dataset_id}", (f"train/{number % 40:04d}",)
        yield e.WantedSet(dataset_id, wanted, ((True, paths[0]),), 1)
        yield e.JobCreated(
            *(job_id, "load", dataset_id, name, paths, f"{number:032x}", f"{number:064x}", False, wanted),
            *(2**26, 100, 1, WALL_MS),
        )
        yield e.JobStarted(job_id, WALL_MS)
        yield e.JobFinished(job_id, "SUCCEEDED", 2**26, 100, 0, (), "", WALL_MS)

"""Three schedulers, a ZooKeeper ensemble of three, real executors: whoever dies, hangs or is cut off, nobody notices.

A writer adds datasets and jobs as fast as it is answered, readers compare every byte. What was acknowledged is there in
the end, exactly once; no read fails, no executor is restarted, no task is launched twice, the framework keeps its id.
STOKER_SOAK_KILLS, STOKER_SOAK_SEED and STOKER_SOAK_KINDS make it longer and other: `make soak`.
"""

from __future__ import annotations

import os
import pathlib
import random
import statistics
import time
from collections.abc import Iterator

import pytest

from support.failover import INSTANCES, Schedulers, TakeOver, Writers
from support.files import make_files
from support.waiting import wait_until as wait_for
from support.watchers import Watcher
from support.zookeeper import needs_zookeeper

pytestmark = [pytest.mark.integration, needs_zookeeper]

KILLS = int(os.environ.get("STOKER_SOAK_KILLS", "6"))
SEED = int(os.environ.get("STOKER_SOAK_SEED", "0"))
SEED = SEED or (1 if os.environ.get("CI") else random.SystemRandom().randrange(1, 10**6))
KINDS = tuple(os.environ.get("STOKER_SOAK_KINDS", "kill,stop,term,cut").split(","))
PAUSE_S = 0.005 if KILLS <= 6 else 0.0  # between writes: others need the machine too
SESSION_MS = 3_000
PATIENT_SESSION_MS = 15_000
# Ten times what it takes where the machine has nothing else to do.
REFUSED_WITHIN_S = 20.0
HANDED_OVER_WITHIN_S = 10.0


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("failover") / "data"
    make_files(path, 60, size_min=0, size_max=250_000, seed=31)
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("failover") / "tiny"
    make_files(path, 2, size_min=10, size_max=100, seed=32)
    return path


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, root: pathlib.Path) -> Iterator[Schedulers]:
    made = Schedulers(tmp_path_factory.mktemp("failover"), session_timeout_ms=SESSION_MS)
    try:
        made.start()
        client = made.client
        wait_for(lambda: client.fleet()["running"] == INSTANCES, "the executors")
        client.create_dataset("d", str(root))
        wait_for(lambda: client.dataset_info("d")["state"] == "READY", "the listing")
        job = client.create_job("load", "d")
        wait_for(lambda: client.job(job["id"])["state"] == "SUCCEEDED", "the load")
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def readers(cluster: Schedulers, root: pathlib.Path) -> Iterator[list[Watcher]]:
    """Two readers at work all the time, over descriptors and over TCP."""
    url = cluster.client.url
    with (
        Watcher(url, "d", root, transport="auto") as local,
        Watcher(url, "d", root, transport="tcp") as remote,
    ):
        yield [local, remote]


class Work:
    """Writers at work on the cluster beside the readers, and what must not change meanwhile; a context manager."""

    def __init__(self, cluster: Schedulers, readers: list[Watcher], tiny: pathlib.Path) -> None:
        self.cluster = cluster
        self.readers = readers
        for reader in readers:
            reader.forget()
        self._reads = sum(reader.reads for reader in readers)
        self._launches = cluster.launches()
        self._keepers = cluster.keepers()
        self._tasks = cluster.tasks()
        assert len(self._tasks) == INSTANCES
        self._frameworks = [framework["id"] for framework in cluster.frameworks()]
        self._jobs = len(cluster.client.jobs())
        paths = list(cluster.client.dataset("d").paths)
        self.writers = Writers(cluster.urls, source=str(tiny), dataset="d", paths=paths, pause_s=PAUSE_S)

    def __enter__(self) -> Work:
        self.writers.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.writers.__exit__()

    def wait_more(self, *, writes: int, reads: int) -> None:
        self.writers.wait_more(writes)
        for reader in self.readers:
            reader.wait_reads(reads)

    def check_unchanged(self) -> None:
        assert self.cluster.launches() == self._launches, "an executor was launched"
        assert all(keeper.is_running() for keeper in self._keepers), "an executor was ended"
        assert self.cluster.tasks() == self._tasks, "a task was launched"
        assert [framework["id"] for framework in self.cluster.frameworks()] == self._frameworks
        assert self.cluster.client.leader()["framework_id"] == self._frameworks[0]

    def check(self) -> str:
        """After the work: assert that nothing was lost, doubled, or changed; return the figures."""
        figures = self.writers.check(self.cluster, jobs_before=self._jobs)
        self.check_unchanged()
        assert self.cluster.keepers() == self._keepers
        for reader in self.readers:
            reader.wait_reads(5)
        reads = sum(reader.reads for reader in self.readers) - self._reads
        slowest_s = max(reader.slowest_s for reader in self.readers)
        return f"{figures}; {reads} reads, the slowest {slowest_s:.2f} s"


def kill_leader(work: Work, kind: str) -> TakeOver:
    """Strike the leader, wait until another has answered a write, mend it, wait until all is whole again."""
    cluster, writers = work.cluster, work.writers
    number = cluster.wait_settled()
    epoch = cluster.about(number)["epoch"]
    url = cluster.urls[number]
    node = cluster.elected.node_of(url)
    writers.wait_more(10)
    stroke_s = time.monotonic()
    cluster.strike(kind, number)
    answered = writers.wait_acknowledged(stroke_s, not_by=url)
    gone_s = cluster.elected.gone_s(node)
    if kind == "cut":
        api = cluster.processes[number].api
        assert api.call("GET", "/alive")[0] == 200
        wait_for(lambda: api.call("GET", "/health")[0] == 503, "it to know that its time is over")
    work.wait_more(writes=5, reads=5)
    mended_s = time.monotonic()
    cluster.mend(kind, number)
    leader = cluster.wait_settled()
    about = cluster.about(leader)
    assert about["epoch"] > epoch
    if kind == "stop" and about["epoch"] == epoch + 1:
        # The answer to a write that was durable before the stroke may have been on its way.
        assert writers.count_by(url, mended_s) <= 1, "continued, it led on"
    work.check_unchanged()
    return TakeOver(
        kind,
        answered.at_s - gone_s,
        answered.at_s - stroke_s - cluster.session_timeout_ms / 1000,
        answered.at_s - stroke_s,
    )


@pytest.mark.timeout(120 + 60 * KILLS)
def test_leaders_that_are_killed_stopped_ended_and_cut_off_cost_nothing(
    cluster: Schedulers, readers: list[Watcher], tiny: pathlib.Path
) -> None:
    print(f"seed {SEED}: STOKER_SOAK_SEED={SEED} repeats the order")
    chance = random.Random(SEED)
    kinds = [*KINDS, *(chance.choice(KINDS) for _ in range(KILLS - len(KINDS)))][:KILLS]
    chance.shuffle(kinds)
    took = []
    with Work(cluster, readers, tiny) as work:
        for kind in kinds:
            took.append(kill_leader(work, kind))
            print(
                f"{kind:5} {took[-1].after_gone_s:7.3f} s after the node went, {took[-1].after_stroke_s:7.3f} s in all"
            )
    print(work.check())
    by_gone = [t.after_gone_s for t in took]
    by_session = [t.after_session_s for t in took if t.kind != "term"] or [0.0]
    by_term = [t.after_stroke_s for t in took if t.kind == "term"]
    print(
        f"{len(took)} take-overs with a session of {cluster.session_timeout_ms} ms: after the node went median"
        f" {statistics.median(by_gone):.3f} s, maximum {max(by_gone):.3f} s; after stroke and session median"
        f" {statistics.median(by_session):.3f} s, maximum {max(by_session):.3f} s; after SIGTERM {max(by_term, default=0):.3f} s"
    )


# --- ZooKeeper itself


@pytest.fixture
def patient(cluster: Schedulers) -> Iterator[Schedulers]:
    """The cluster with sessions that outlive an election among ZooKeeper's servers, also on a slow machine."""
    if cluster.session_timeout_ms != PATIENT_SESSION_MS:
        cluster.restart_all(session_timeout_ms=PATIENT_SESSION_MS)
    cluster.ensemble.wait_serving()
    yield cluster
    for server in cluster.ensemble.servers:
        if server.is_running:
            server.thaw()
        else:
            server.start(wait=False)
    cluster.ensemble.wait_serving()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("role", ["follower", "leader"])
def test_one_zookeeper_server_killed_changes_no_leader_and_loses_nothing(
    patient: Schedulers, readers: list[Watcher], tiny: pathlib.Path, role: str
) -> None:
    ensemble = patient.ensemble
    number = patient.wait_settled()
    epoch = patient.about(number)["epoch"]
    with Work(patient, readers, tiny) as work:
        work.writers.wait_more(10)
        victim = ensemble.leader() if role == "leader" else ensemble.followers()[0]
        began_s = time.monotonic()
        victim.kill()
        work.wait_more(writes=30, reads=10)
        victim.start()
        ensemble.wait_serving()
        work.writers.wait_more(10)
        gap_s = work.writers.longest_gap_s(began_s)
    refused = dict(work.writers.refusals)  # by followers, each with the leader's address
    print(f"ZooKeeper's {role} killed: the longest wait for a write was {gap_s:.2f} s; {work.check()}")
    assert set(refused) <= {"redirected"}, "a write was refused"
    assert patient.wait_settled() == number
    assert patient.about(number)["epoch"] == epoch


@pytest.mark.timeout(300)
@pytest.mark.parametrize("which", ["that leads ZooKeeper", "that our leader talks to"])
def test_one_zookeeper_server_that_stands_still_changes_the_leader_once_at_most(
    patient: Schedulers, readers: list[Watcher], tiny: pathlib.Path, which: str
) -> None:
    ensemble = patient.ensemble
    number = patient.wait_settled()
    epoch = patient.about(number)["epoch"]
    with Work(patient, readers, tiny) as work:
        work.writers.wait_more(10)
        victim = ensemble.leader() if which == "that leads ZooKeeper" else patient.server_of(number)
        began_s = time.monotonic()
        victim.freeze()
        work.wait_more(writes=30, reads=10)
        patient.wait_settled()
        victim.thaw()
        ensemble.wait_serving()
        work.writers.wait_more(10)
        gap_s = work.writers.longest_gap_s(began_s)
    now = patient.about(patient.wait_settled())["epoch"]
    print(f"the server {which} frozen: {now - epoch} changes, the longest wait {gap_s:.2f} s; {work.check()}")
    assert now - epoch <= 1


@pytest.mark.timeout(300)
@pytest.mark.parametrize("ends", [("freeze", "kill"), ("kill", "kill"), ("freeze", "freeze")], ids="-".join)
def test_without_a_quorum_cached_reads_go_on_writes_are_refused_and_all_heals(
    patient: Schedulers, readers: list[Watcher], tiny: pathlib.Path, ends: tuple[str, str]
) -> None:
    ensemble = patient.ensemble
    patient.wait_settled()
    with Work(patient, readers, tiny) as work:
        work.writers.wait_more(10)
        leader, follower = ensemble.leader(), ensemble.followers()[0]
        for server, end in zip((leader, follower), ends, strict=True):
            getattr(server, end)()
        began_s = time.monotonic()
        refused = ("not_leading", "outcome_unknown")
        before = sum(work.writers.refusals[code] for code in refused)
        wait_for(
            lambda: sum(work.writers.refusals[code] for code in refused) >= before + 30,
            "writes to be refused",
        )
        for reader in work.readers:
            reader.wait_reads(50)
        assert {p.api.call("GET", "/alive")[0] for p in patient.processes} == {200}
        slowest_s = work.writers.slowest_refusal_s
        for server in ensemble.servers:
            if server.is_running:
                server.thaw()
            else:
                server.start(wait=False)
        healed_s = time.monotonic()
        answered = work.writers.wait_acknowledged(healed_s)
        ensemble.wait_serving()
        patient.wait_settled()
        work.writers.wait_more(10)
    print(
        f"two of three gone for {healed_s - began_s:.1f} s: a write was refused after {slowest_s:.2f} s at most, answered"
        f" {answered.at_s - healed_s:.2f} s after they were back; {work.check()}"
    )
    assert slowest_s < REFUSED_WITHIN_S


@pytest.mark.timeout(300)
def test_a_leader_that_is_told_to_stop_leaves_at_once(
    patient: Schedulers, readers: list[Watcher], tiny: pathlib.Path
) -> None:
    with Work(patient, readers, tiny) as work:
        datasets, jobs = held(patient)
        took = kill_leader(work, "term")
    print(f"handed over in {took.after_stroke_s:.2f} s; {work.check()}")
    assert took.after_stroke_s < HANDED_OVER_WITHIN_S < PATIENT_SESSION_MS / 1000, (
        "nobody waited for the session"
    )
    now_datasets, now_jobs = held(patient)
    assert datasets <= now_datasets and jobs <= now_jobs


def held(cluster: Schedulers) -> tuple[set[tuple[str, int]], set[tuple[str, str]]]:
    """Return what the leader's catalog holds: datasets and jobs."""
    client = cluster.client
    return {(v["name"], v["id"]) for v in client.datasets()}, {(v["id"], v["kind"]) for v in client.jobs()}

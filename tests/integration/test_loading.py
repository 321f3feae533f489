"""Loads, evictions and changes of the source, on a real cluster: right bytes or a clear error, never a mixture."""

from __future__ import annotations

import concurrent.futures
import functools
import hashlib
import multiprocessing
import pathlib
from collections.abc import Iterator

import pytest

from stoker.executor.machine import SCRATCH_BYTES_MAX
from stoker.framework.model import EXECUTOR_OVERHEAD_BYTES
from support.files import content, digests, make_files
from support.kernel_memory import Watch
from support.local import Local, local_cluster
from support.readers import read_ranges
from support.stores import http_store
from support.waiting import wait_until

pytestmark = pytest.mark.integration

READERS = 8
MEBIBYTE = 2**20
TIER_BYTES = 48 * MEBIBYTE


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Local]:
    state = tmp_path_factory.mktemp("loading") / "state"
    with (
        local_cluster(state, "--agents", "2", "--mem", str(TIER_BYTES)) as local,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("STOKER_URL", local.url)
        local.wait_until_running(2)
        yield local


def _read_in_processes(
    name: str, root: pathlib.Path, sizes: dict[str, int], *, count: int
) -> list[tuple[int, str]]:
    work = functools.partial(_read, name, str(root), sizes, count)
    with concurrent.futures.ProcessPoolExecutor(
        READERS, mp_context=multiprocessing.get_context("spawn")
    ) as pool:
        return list(pool.map(work, range(READERS)))


def _read(name: str, root: str, sizes: dict[str, int], count: int, seed: int) -> tuple[int, str]:
    return read_ranges(name, root, sizes, seed=seed, count=count)


def test_eight_processes_read_at_random_during_a_throttled_load(
    cluster: Local, tmp_path: pathlib.Path
) -> None:
    root = tmp_path / "data"
    sizes = make_files(root, 150, size_min=1, size_max=300_000, seed=1)
    with http_store(root, throttle="5MB/s") as store:
        cluster.add("throttled", store.url)
        job = cluster.client.create_job("load", "throttled")
        assert _read_in_processes("throttled", root, sizes, count=60) == [(60, "")] * READERS
        assert cluster.finish(job)["state"] == "SUCCEEDED"
        requests = store.requests()
    assert cluster.client.dataset_info("throttled")["cached_ratio"] == 1.0
    bodies = [r for r in requests if r["method"] == "GET" and not r["path"].endswith("/")]
    assert len(bodies) <= 2 * len(sizes), "misses and the load share their under-store reads"
    cluster.client.delete_dataset("throttled")


@pytest.mark.parametrize("policy", ["keep", "lru", "lfu"])
def test_memory_never_exceeds_the_tier_while_eight_readers_make_it_evict(
    cluster: Local, tmp_path: pathlib.Path, policy: str
) -> None:
    root = tmp_path / "data"
    sizes = make_files(root, 60, size_min=2 * MEBIBYTE, size_max=4 * MEBIBYTE, seed=2)
    assert sum(sizes.values()) > 120 * MEBIBYTE
    name = f"evicted-{policy}"
    cluster.add(name, str(root), policy=policy)
    over = []
    work = functools.partial(_read, name, str(root), sizes, 60)
    pool = concurrent.futures.ProcessPoolExecutor(READERS, mp_context=multiprocessing.get_context("spawn"))
    with pool, Watch([e["pid"] for e in cluster.client.executors()]) as watch:
        readers = [pool.submit(work, seed) for seed in range(READERS)]
        while not all(r.done() for r in readers):
            executors = cluster.client.executors()
            over += [e for e in executors if (e["used_bytes"] or 0) > (e["capacity_bytes"] or 0)]
            concurrent.futures.wait(readers, timeout=0.1)
        assert [r.result() for r in readers] == [(60, "")] * READERS
    assert not over
    _check_memory(watch)
    cluster.client.delete_dataset(name)
    wait_until(
        lambda: not any(d["name"] == name for e in cluster.client.executors() for d in e["datasets"]),
        "the cache to be freed",
    )


def test_the_kernel_never_sees_more_memory_than_mesos_gave(cluster: Local, tmp_path: pathlib.Path) -> None:
    """Large files from a store that is slow with all of them: every buffer is full, and blocks are evicted meanwhile."""
    root = tmp_path / "data"
    sizes = make_files(root, 8, size_min=20 * MEBIBYTE, size_max=24 * MEBIBYTE, seed=6)
    with http_store(root, delay="100ms", throttle="25MB/s") as store:
        cluster.add("heavy", store.url, policy="lru")
        with Watch([e["pid"] for e in cluster.client.executors()]) as watch:
            job = cluster.client.create_job("load", "heavy", fit=True)
            assert _read_in_processes("heavy", root, sizes, count=6) == [(6, "")] * READERS
            cluster.client.cancel_job(job["id"])
    _check_memory(watch)
    assert max(watch.highest_blocks.values()) > TIER_BYTES // 2, "the load was heavy"
    cluster.client.delete_dataset("heavy")


def _check_memory(watch: Watch) -> None:
    """The kernel's view: no more blocks than the tier and the scratch, no more of all than Mesos gave."""
    assert watch.samples
    for pid, taken in watch.highest.items():
        assert 0 < watch.highest_blocks[pid] <= TIER_BYTES + SCRATCH_BYTES_MAX, watch.highest_blocks
        assert taken.total <= TIER_BYTES + EXECUTOR_OVERHEAD_BYTES, taken


def test_a_dataset_removed_and_added_again_never_shows_an_old_byte(
    cluster: Local, tmp_path: pathlib.Path
) -> None:
    for generation in range(3):
        root = tmp_path / f"data-{generation}"
        make_files(root, 20, size_min=50_000, size_max=50_000, seed=100 * (generation + 1))
        cluster.add("again", str(root))
        assert cluster.load("again")["state"] == "SUCCEEDED"
        dataset = cluster.client.dataset("again")
        got = {p: hashlib.sha256(dataset.read(p)).hexdigest() for p in dataset.paths}
        assert got == digests(root)
        cluster.client.delete_dataset("again")


def test_a_changed_file_is_named_and_what_was_cached_is_its_version(
    cluster: Local, tmp_path: pathlib.Path
) -> None:
    root = tmp_path / "data"
    root.mkdir()
    for seed, name in enumerate(("cached.bin", "changed.bin", "other.bin"), start=100):
        (root / name).write_bytes(content(seed, 300_000))
    old = {p.name: p.read_bytes() for p in root.iterdir()}
    cluster.add("changing", str(root))
    dataset = cluster.client.dataset("changing")
    assert dataset.read("cached.bin") == old["cached.bin"]

    (root / "cached.bin").write_bytes(content(7, 300_000))
    (root / "changed.bin").write_bytes(content(8, 300_000))
    job = cluster.load("changing")
    assert job["state"] == "FAILED"
    assert [e["path"] for e in job["errors"]] == ["changed.bin"]
    assert "changed" in job["errors"][0]["message"]
    assert dataset.read("cached.bin") == old["cached.bin"], "cached before: its version is still served"
    assert dataset.read("other.bin") == old["other.bin"]
    with pytest.raises(OSError, match=r"changed\.bin.*refresh"):
        dataset.read("changed.bin")

    cluster.run("dataset", "refresh", "changing", check=True)
    refreshed = cluster.client.dataset("changing")
    assert refreshed.read("changed.bin") == content(8, 300_000)
    assert refreshed.read("cached.bin") == content(7, 300_000)
    assert refreshed.read("other.bin") == old["other.bin"]
    assert cluster.load("changing")["state"] == "SUCCEEDED"
    cluster.client.delete_dataset("changing")


def test_a_dataset_larger_than_the_fleet_is_refused_before_the_first_byte(
    cluster: Local, tmp_path: pathlib.Path
) -> None:
    root = tmp_path / "data"
    sizes = make_files(root, 40, size_min=4 * MEBIBYTE, size_max=4 * MEBIBYTE, seed=3)
    with http_store(root) as store:
        cluster.add("huge", store.url)
        listed = len(store.requests())
        refused = cluster.run("load", "huge", "--wait")
        assert refused.returncode == 1 and "fit" in refused.stderr
        planned = cluster.run("load", "huge", "--plan")
        assert planned.returncode == 1 and "does not fit" in planned.stdout
        assert len(store.requests()) == listed, "not a byte was read"
        fitted = cluster.load("huge", fit=True)
        view = cluster.client.dataset_info("huge")
        assert 0 < view["cached_bytes"] < sum(sizes.values())
        assert fitted["state"] == "SUCCEEDED"
        dataset = cluster.client.dataset("huge")
        assert {p: hashlib.sha256(dataset.read(p)).hexdigest() for p in dataset.paths} == digests(root)
        cluster.client.delete_dataset("huge")


def test_replicas_are_made_and_the_store_is_read_once(cluster: Local, tmp_path: pathlib.Path) -> None:
    root = tmp_path / "data"
    sizes = make_files(root, 40, size_min=1, size_max=200_000, seed=4)
    with http_store(root) as store:
        cluster.add("twice", store.url, replicas=2)
        wait_until(
            lambda: all("twice" in {d["name"] for d in e["datasets"]} for e in cluster.client.executors()),
            "both executors to know of it",
        )
        assert cluster.load("twice")["state"] == "SUCCEEDED"
        bodies = [r for r in store.requests() if r["method"] == "GET" and not r["path"].endswith("/")]
    view = cluster.client.dataset_info("twice")
    assert view["replicas_actual"] == 2
    assert len(bodies) <= len(sizes), "one under-store read for the whole cluster"
    held = [d["blocks"] for e in cluster.client.executors() for d in e["datasets"] if d["name"] == "twice"]
    assert held == [view["blocks"]] * 2
    cluster.client.delete_dataset("twice")


def test_free_releases_what_load_brought_and_a_path_only_its_part(
    cluster: Local, tmp_path: pathlib.Path
) -> None:
    root = tmp_path / "data"
    make_files(root, 70, size_min=100_000, size_max=200_000, seed=5)
    cluster.add("freed", str(root))
    assert cluster.load("freed", "d1")["state"] == "SUCCEEDED"
    part = cluster.client.dataset_info("freed")["cached_bytes"]
    assert 0 < part
    assert cluster.load("freed")["state"] == "SUCCEEDED"
    assert cluster.client.dataset_info("freed")["cached_ratio"] == 1.0
    assert cluster.free("freed")["state"] == "SUCCEEDED"
    assert cluster.client.dataset_info("freed")["cached_bytes"] == 0
    cluster.client.delete_dataset("freed")

"""The manifests' cache: private, whole, shared, and not without end."""

from __future__ import annotations

import errno
import fcntl
import os
import pathlib
import resource
import time

import pytest

from stoker.client.errors import ReadError
from stoker.client.manifest import CACHE_AGE_MS_MAX, ManifestCache
from stoker.client.session import Session
from stoker.executor.manifest import ManifestError, bundle
from support.clusters import Cluster, ScriptedDataset, make_files


class Source:
    def __init__(self, dataset: ScriptedDataset) -> None:
        self.body = b"".join(bundle(dataset.built.root, dataset.built.parts))
        self.downloads = 0

    def download(self, consume):  # type: ignore[no-untyped-def]
        self.downloads += 1
        place = 0

        def read(count: int) -> bytes:
            nonlocal place
            part = self.body[place : place + count]
            place += count
            return part

        consume(read)


@pytest.fixture
def made(tmp_path: pathlib.Path) -> ScriptedDataset:
    return ScriptedDataset(make_files(50, 10), directory=tmp_path)


def test_downloads_once_and_keeps_it_private(made: ScriptedDataset, tmp_path: pathlib.Path) -> None:
    source = Source(made)
    base = tmp_path / "cache"
    for _ in range(2):
        found = ManifestCache(str(base)).get(made.manifest.digest, source.download)
        assert found.file_count == 50
    assert source.downloads == 1
    assert (base / "manifests").stat().st_mode & 0o777 == 0o700
    assert sorted(p.name for p in (base / "manifests").iterdir()) == [
        made.manifest.digest,
        f"{made.manifest.digest}.lock",
    ]


def test_a_lock_that_nobody_lets_go_is_passed_over(made: ScriptedDataset, tmp_path: pathlib.Path) -> None:
    source, base = Source(made), tmp_path / "cache"
    cache = ManifestCache(str(base), lock_patience_ms=100)
    assert cache.find(made.manifest.digest) is None  # makes the directory
    with open(base / "manifests" / f"{made.manifest.digest}.lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert cache.get(made.manifest.digest, source.download).file_count == 50
    assert source.downloads == 1


@pytest.mark.parametrize("damage", [b"", b"garbage" * 100])
def test_a_damaged_file_is_downloaded_again(
    made: ScriptedDataset, tmp_path: pathlib.Path, damage: bytes
) -> None:
    source = Source(made)
    cache = ManifestCache(str(tmp_path / "cache"))
    cache.get(made.manifest.digest, source.download)
    (tmp_path / "cache" / "manifests" / made.manifest.digest).write_bytes(damage)
    assert cache.get(made.manifest.digest, source.download).file_count == 50
    assert source.downloads == 2


def test_another_manifest_than_asked_for_is_refused_and_leaves_nothing(
    made: ScriptedDataset, tmp_path: pathlib.Path
) -> None:
    cache = ManifestCache(str(tmp_path / "cache"))
    with pytest.raises(ManifestError, match="the scheduler sent manifest"):
        cache.get("00" * 32, Source(made).download)
    broken = Source(made)
    broken.body = broken.body[:-5]
    with pytest.raises(ManifestError):
        cache.get(made.manifest.digest, broken.download)
    names = {p.name for p in (tmp_path / "cache" / "manifests").iterdir()}
    assert all(name.endswith(".lock") for name in names)


def test_a_host_without_room_for_it_is_told_as_that(
    cluster: Cluster, dataset: ScriptedDataset, tmp_path: pathlib.Path
) -> None:
    """And not as schedulers that do not answer; nor is it downloaded again and again."""
    session = Session((cluster.url,), directory=str(tmp_path / "cache"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, before[1]))
    try:
        with pytest.raises(
            ReadError, match="the manifest cannot be kept on this host: File too large"
        ) as caught:
            session.reader("ds")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG
    assert sum("/manifest" in path for _, path in cluster.scheduler.calls) == 1
    assert session.reader("ds").manifest.file_count == len(dataset.files)
    session.close()


def test_a_directory_of_somebody_else_is_not_used(made: ScriptedDataset, tmp_path: pathlib.Path) -> None:
    """/tmp is everybody's: who made our directory first could swap manifests under us."""
    base = tmp_path / "cache"
    base.mkdir()
    (base / "manifests").mkdir()
    os.chmod(base / "manifests", 0o777)
    cache = ManifestCache(str(base))
    assert cache.get(made.manifest.digest, Source(made).download).file_count == 50
    assert list((base / "manifests").iterdir()) == []
    used = pathlib.Path(cache._directory)
    assert used.stat().st_mode & 0o777 == 0o700
    del cache
    assert not used.exists(), "nobody else finds it: it goes with its process"


def test_the_directory_above_it_is_for_the_sockets_too(made: ScriptedDataset, tmp_path: pathlib.Path) -> None:
    before = os.umask(0o022)
    try:
        ManifestCache(str(tmp_path / "cache")).get(made.manifest.digest, Source(made).download)
    finally:
        os.umask(before)
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o755


def test_old_ones_and_too_many_go(made: ScriptedDataset, tmp_path: pathlib.Path) -> None:
    directory = tmp_path / "cache" / "manifests"
    cache = ManifestCache(str(tmp_path / "cache"), bytes_max=250_000)
    cache.find(made.manifest.digest)
    now = time.time()
    ages_s = {
        "old": CACHE_AGE_MS_MAX / 1000 + 10,
        "first": 300,
        "second": 200,
        "third": 100,
        "dead.new-1": 4000,
        "live.new-2": 5,
    }
    for name, age in ages_s.items():
        (directory / name).write_bytes(bytes(100_000))
        os.utime(directory / name, (now - age, now - age))
    cache.get(made.manifest.digest, Source(made).download)
    names = {p.name for p in directory.iterdir()} - {made.manifest.digest, f"{made.manifest.digest}.lock"}
    assert names == {"second", "third", "live.new-2"}

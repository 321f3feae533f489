"""One scripted cluster a test, and the environment that a training program would have."""

from __future__ import annotations

import pathlib
import shutil
import tempfile
from collections.abc import Iterator

import pytest

from stoker.client import manifest, session
from support.clusters import Cluster, ScriptedDataset, make_files
from support.clusters import cluster as make_cluster


@pytest.fixture(autouse=True)
def private_cache(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The manifests' directory of this test alone; no session survives it."""
    directory = tempfile.mkdtemp(prefix="stk")
    monkeypatch.setattr(manifest, "default_directory", lambda: directory)
    for name in ("STOKER_URL", "STOKER_TRANSPORT", "STOKER_SOCKET", "STOKER_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    yield
    for each in list(session._sessions.values()):
        each.close()
    shutil.rmtree(directory)


@pytest.fixture
def cluster(tmp_path: pathlib.Path) -> Iterator[Cluster]:
    with make_cluster(tmp_path) as made:
        yield made


@pytest.fixture
def dataset(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> ScriptedDataset:
    """`ds`: small files, one of several blocks, odd names; on two executors, one replica. STOKER_URL is set."""
    files = make_files(120, 60_000)
    files |= make_files(1, 4_500_000, prefix="big")
    files |= {
        "empty": b"",
        "odd/a*b": b"star",
        "odd/axb": b"x",
        "odd/100%25 #1?": b"percent",
        "odd/a::b[1]": b"colons",
    }
    made = cluster.dataset(files)
    for executor in [cluster.executor() for _ in range(2)]:
        executor.put(made)
    cluster.scheduler.place("ds", made, cluster.executors)
    monkeypatch.setenv("STOKER_URL", cluster.url)
    return made


@pytest.fixture(params=["auto", "fd", "tcp"])
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("STOKER_TRANSPORT", request.param)
    return str(request.param)

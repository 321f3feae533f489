"""What training programs do, on real files through a real cluster: pandas, pyarrow, workers, both transports."""

from __future__ import annotations

import concurrent.futures
import functools
import hashlib
import multiprocessing
import os
import pathlib
from collections.abc import Iterator

import fsspec
import pandas
import pyarrow.dataset
import pytest

from support.files import digests, make_files
from support.local import Local, local_cluster
from support.readers import OpenedFiles, read_digest, read_ranges

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Local, pathlib.Path]]:
    directory = tmp_path_factory.mktemp("reading")
    root = directory / "data"
    make_files(root / "files", 120, size_min=0, size_max=400_000)
    tables = root / "tables"
    tables.mkdir()
    for part in range(3):
        frame = pandas.DataFrame({"part": [part] * 5_000, "value": range(5_000)})
        frame.to_parquet(tables / f"part-{part}.parquet")
    with local_cluster(directory / "state", "--agents", "3", "--mem", "96MiB") as local:
        local.add("d", str(root))
        assert local.load("d")["state"] == "SUCCEEDED"
        yield local, root


@pytest.fixture(params=["fd", "tcp"])
def transport(
    request: pytest.FixtureRequest, cluster: tuple[Local, pathlib.Path], monkeypatch: pytest.MonkeyPatch
) -> str:
    monkeypatch.setenv("STOKER_URL", cluster[0].url)
    monkeypatch.setenv("STOKER_TRANSPORT", request.param)
    return str(request.param)


def test_pandas_reads_parquet(cluster: tuple[Local, pathlib.Path], transport: str) -> None:
    frame = pandas.read_parquet("stoker://d/tables/part-1.parquet")
    assert frame.equals(pandas.read_parquet(cluster[1] / "tables" / "part-1.parquet"))


def test_pyarrow_reads_a_directory_by_url_and_by_filesystem(
    cluster: tuple[Local, pathlib.Path], transport: str
) -> None:
    expected = (
        pyarrow.dataset.dataset(str(cluster[1] / "tables"))
        .to_table()
        .sort_by([("part", "ascending"), ("value", "ascending")])
    )
    by_url = pyarrow.dataset.dataset("fsspec+stoker://d/tables")
    by_filesystem = pyarrow.dataset.dataset("d/tables", filesystem=fsspec.filesystem("stoker"))
    for dataset in (by_url, by_filesystem):
        assert dataset.to_table().sort_by([("part", "ascending"), ("value", "ascending")]).equals(expected)


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_workers_read_every_file_right(
    cluster: tuple[Local, pathlib.Path], transport: str, method: str
) -> None:
    root = cluster[1] / "files"
    expected = digests(root)
    dataset = OpenedFiles("d/files", sorted(expected))
    assert (
        dataset[0][1] == expected[dataset[0][0]]
    )  # the parent has descriptors and sockets open when it forks
    context = multiprocessing.get_context(method)
    with concurrent.futures.ProcessPoolExecutor(4, mp_context=context) as pool:
        got = dict(pool.map(read_digest, [(dataset, row) for row in range(len(dataset))], chunksize=10))
    assert got == expected


@pytest.mark.torch
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_a_torch_dataloader_reads_every_file_right(
    cluster: tuple[Local, pathlib.Path], transport: str, method: str
) -> None:
    torch_data = pytest.importorskip("torch.utils.data", reason="needs PyTorch: make test TORCH=1")
    expected = digests(cluster[1] / "files")
    dataset = OpenedFiles("d/files", sorted(expected))
    assert dataset[0][1] == expected[dataset[0][0]]
    loader = torch_data.DataLoader(
        dataset, batch_size=16, num_workers=4, multiprocessing_context=method, collate_fn=list
    )
    assert dict(item for batch in loader for item in batch) == expected


def test_random_ranges_are_right_in_many_processes(
    cluster: tuple[Local, pathlib.Path], transport: str
) -> None:
    root = cluster[1] / "files"
    sizes = {str(p.relative_to(root)): p.stat().st_size for p in root.rglob("*") if p.is_file()}
    context = multiprocessing.get_context("spawn")
    work = functools.partial(_read_with_seed, str(root), sizes)
    with concurrent.futures.ProcessPoolExecutor(4, mp_context=context) as pool:
        assert list(pool.map(work, range(4))) == [(150, "")] * 4


def _read_with_seed(root: str, sizes: dict[str, int], seed: int) -> tuple[int, str]:
    return read_ranges("d/files", root, sizes, seed=seed, count=150)


def test_an_unprivileged_user_reads_through_the_same_cluster(cluster: tuple[Local, pathlib.Path]) -> None:
    """CI is root, a training job is not: descriptors and sockets must serve other users of the host."""
    if os.getuid() != 0:
        pytest.skip("needs root to become somebody else")
    root = cluster[1] / "files"
    expected = sorted(digests(root).items())[:20]
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:  # whatever happens, this process must not go on with the tests
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            os.environ["STOKER_URL"] = cluster[0].url
            fs = fsspec.filesystem("stoker", skip_instance_cache=True)
            right = all(hashlib.sha256(fs.cat_file(f"d/files/{p}")).hexdigest() == d for p, d in expected)
            os.write(writing, b"right" if right else b"wrong")
        except BaseException as error:
            os.write(writing, repr(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        assert answer.read() == b"right"
    os.waitpid(pid, 0)

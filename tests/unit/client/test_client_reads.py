"""What a program reads is what the files hold: by path and row, whole and in ranges, over each transport."""

from __future__ import annotations

import io
import pathlib
import pickle
import random
import threading

import numpy as np
import pytest

from stoker.client.api import Client, open_path
from stoker.client.errors import DatasetGone
from support.clusters import Cluster, ScriptedDataset, make_files

BIG = "big/0/00000.bin"


def test_reads_every_file_by_path_and_by_row(dataset: ScriptedDataset, transport: str) -> None:
    reader = Client().dataset("ds")
    assert list(reader.paths) == sorted(dataset.files, key=str.encode)
    for row, path in enumerate(reader.paths):
        assert reader.read(path) == dataset.files[path]
        assert reader.read(row) == dataset.files[path]
    assert reader.read(-1) == reader.read(len(reader) - 1)


def test_reads_many_in_order_in_one_round_trip_an_executor(
    cluster: Cluster, dataset: ScriptedDataset, transport: str
) -> None:
    client = Client()
    reader = client.dataset("ds")
    paths = list(dataset.files)
    random.Random(5).shuffle(paths)
    assert reader.read_many(paths) == [dataset.files[p] for p in paths]
    counts = [executor.command(t="stats")["counts"] for executor in cluster.executors]
    assert all(c["read"] + c["descriptors"] == 1 for c in counts), counts


def test_reads_many_into_one_buffer(dataset: ScriptedDataset, transport: str) -> None:
    reader = Client().dataset("ds")
    rows = list(range(0, len(reader), 3))
    out = np.zeros(reader.total_bytes(rows), dtype=np.uint8)
    views = reader.read_many(rows, out=out)
    assert b"".join(views) == out.tobytes() == b"".join(dataset.files[reader.paths[row]] for row in rows)
    with pytest.raises(ValueError, match="these files need"):
        reader.read_many(rows, out=bytearray(10))
    with pytest.raises(ValueError, match="writable"):
        reader.read_many(rows, out=b"123")


def test_reads_ranges_as_a_plain_file_would(
    dataset: ScriptedDataset, transport: str, tmp_path: pathlib.Path
) -> None:
    plain_path = tmp_path / "plain"
    plain_path.write_bytes(dataset.files[BIG])
    chance = random.Random(7)
    reader = Client().dataset("ds")
    for buffer_bytes in (0, None, 5000):
        with (
            reader.open(BIG, buffer_bytes=buffer_bytes) as ours,
            open(plain_path, "rb", buffering=0) as plain,
        ):
            for _ in range(300):
                offset, size = (
                    chance.randrange(-10, len(dataset.files[BIG]) + 100),
                    chance.randrange(-2, 200_000),
                )
                if offset < 0:
                    with pytest.raises(ValueError):
                        ours.seek(offset)
                    continue
                assert ours.seek(offset) == plain.seek(offset)
                expected = plain.read(size)
                assert ours.read(size) == expected
                assert ours.tell() == plain.tell()
                assert (
                    ours.read_at(offset, max(0, size)) == dataset.files[BIG][offset : offset + max(0, size)]
                )
                buffer, other = bytearray(abs(size)), bytearray(abs(size))
                ours.seek(offset)
                plain.seek(offset)
                assert ours.readinto(buffer) == plain.readinto(other)
                assert buffer == other
            assert ours.seek(-10, io.SEEK_END) == len(dataset.files[BIG]) - 10
            assert ours.read() == dataset.files[BIG][-10:]
            assert ours.read() == b"" and ours.readinto(bytearray(3)) == 0


def test_readinto_of_wide_elements_never_writes_beyond_the_file(dataset: ScriptedDataset) -> None:
    data = dataset.files[BIG]
    with Client().dataset("ds").open(BIG, buffer_bytes=0) as file:
        wide = np.zeros((100, 10), dtype=np.int64)
        file.seek(len(data) - 40)
        assert file.readinto(wide) == 40
        assert wide.tobytes() == data[-40:] + bytes(wide.nbytes - 40)


def test_a_closed_file_says_so(dataset: ScriptedDataset, transport: str) -> None:
    for buffer_bytes in (0, None):
        file = Client().dataset("ds").open(BIG, buffer_bytes=buffer_bytes)
        file.read(10)
        file.close()
        for use in (lambda f: f.read(1), lambda f: f.seek(0), lambda f: f.tell(), lambda f: f.read_at(0, 1)):
            with pytest.raises(ValueError, match="closed"):
                use(file)


def test_views_show_the_executors_memory_where_they_can(dataset: ScriptedDataset, transport: str) -> None:
    reader = Client().dataset("ds")
    for path, data in dataset.files.items():
        with reader.view(path) as view:
            assert view == data and view.readonly
    with pytest.raises(ValueError):
        len(view)


def test_an_array_made_of_a_view_outlives_it(cluster: Cluster, dataset: ScriptedDataset) -> None:
    reader = Client().dataset("ds")
    row = max(range(len(reader)), key=lambda r: reader.size(r) if reader.size(r) < 2**17 else 0)
    with reader.view(row) as view:
        array = np.frombuffer(view, dtype=np.uint8)
    for executor in cluster.executors:
        executor.command(t="drop", indexes=list(range(dataset.manifest.block_count)))
    assert array.tobytes() == dataset.files[reader.paths[row]]


def test_eight_threads_read_one_dataset(dataset: ScriptedDataset, transport: str) -> None:
    reader = Client().dataset("ds")
    wrong: list[str] = []

    def work(seed: int) -> None:
        chance = random.Random(seed)
        paths = list(dataset.files)
        for _ in range(60):
            path = chance.choice(paths)
            some = chance.sample(paths, 9)
            if reader.read(path) != dataset.files[path] or reader.read_many(some) != [
                dataset.files[p] for p in some
            ]:
                wrong.append(path)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    assert not wrong and not any(thread.is_alive() for thread in threads)


def test_what_is_not_there_is_said_by_name(dataset: ScriptedDataset) -> None:
    reader = Client().dataset("ds")
    with pytest.raises(FileNotFoundError, match="ds/nothing"):
        reader.read("nothing")
    with pytest.raises(IsADirectoryError):
        reader.read("d")
    with pytest.raises(FileNotFoundError, match="no such dataset"):
        Client().dataset("other")
    with pytest.raises(IndexError, match="which has"):
        reader.read(len(reader))
    with pytest.raises(ValueError, match="negative"):
        reader.read(0, -1)


def test_read_many_omits_or_returns_what_fails_if_asked(dataset: ScriptedDataset) -> None:
    reader = Client().dataset("ds")
    wanted = [BIG, "nothing", "empty"]
    assert reader.read_many(wanted, on_error="omit") == [dataset.files[BIG], b""]
    first, second, third = reader.read_many(wanted, on_error="return")
    assert (first, third) == (dataset.files[BIG], b"") and isinstance(second, FileNotFoundError)
    with pytest.raises(FileNotFoundError):
        reader.read_many(wanted)


def test_pickles_carry_url_and_version_but_no_token(
    dataset: ScriptedDataset, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STOKER_TOKEN", "s3cret")
    reader = Client().dataset("ds")
    file = reader.open(BIG)
    file.seek(1000)
    opened = open_path(f"stoker://ds/{BIG}")
    data = pickle.dumps((reader, opened))
    monkeypatch.delenv("STOKER_URL")
    again, opened_again = pickle.loads(data)
    assert b"s3cret" not in data
    assert again.read(BIG) == dataset.files[BIG] and again.version == reader.version
    assert opened_again.read(10) == dataset.files[BIG][:10]


def test_a_reader_stays_on_its_version_until_asked(cluster: Cluster, dataset: ScriptedDataset) -> None:
    client = Client()
    old = client.dataset("ds")
    files = {**dataset.files, "new": b"new bytes", BIG: random.Random(9).randbytes(1000)}
    newer = cluster.dataset(files, version=2, previous=dataset)
    for executor in cluster.executors:
        for index in range(newer.manifest.block_count):
            executor.command(t="remove", dataset=1, index=index)
        executor.put(newer)
    cluster.scheduler.place("ds", newer, cluster.executors)
    assert old.read("empty") == b"" and old.version == 1 and "new" not in old.paths
    new = client.dataset("ds")
    assert new.version == 2 and new.read("new") == b"new bytes" and new.read(BIG) == files[BIG]
    assert pickle.loads(pickle.dumps(old)).version == 1
    assert client.dataset("ds@2").version == 2
    with pytest.raises(FileNotFoundError, match="at version 2"):
        client.dataset("ds@7")
    with pytest.raises(ValueError, match="NAME@VERSION"):
        client.dataset("ds@x")


def test_never_an_old_byte_after_a_dataset_was_added_again(
    cluster: Cluster, dataset: ScriptedDataset, transport: str
) -> None:
    client = Client()
    reader = client.dataset("ds")
    path = next(iter(dataset.files))
    reader.read(path)
    other = cluster.dataset(
        {name: bytes(reversed(data)) for name, data in dataset.files.items()}, dataset_id=2
    )
    for executor in cluster.executors:
        executor.put(other)
        executor.command(t="set", refused={"datasets": [1]})
        executor.command(t="drop", indexes=list(range(dataset.manifest.block_count)))
        executor.command(t="cut_connections")
        for index in range(dataset.manifest.block_count):
            executor.command(t="remove", dataset=1, index=index)
    cluster.scheduler.place("ds", other, cluster.executors)
    session = client._session
    for fetcher in session._fetchers:
        for pool in fetcher._pools.values():
            pool.clear()
    with pytest.raises(DatasetGone, match="open it again"):
        for _ in range(1000):
            reader.read(path)
    assert client.dataset("ds").read(path) == bytes(reversed(dataset.files[path]))


def test_two_clients_share_one_download_of_the_manifest(cluster: Cluster, dataset: ScriptedDataset) -> None:
    Client().dataset("ds")
    Client()._session.close()
    Client().dataset("ds")
    downloads = [path for _, path in cluster.scheduler.calls if "manifest" in path]
    assert downloads == ["/v1/datasets/ds/manifest?version=1"]


def test_an_empty_dataset_reads_as_empty(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    made = cluster.dataset({"only-empty": b""})
    cluster.scheduler.place("none", made, [cluster.executor()])
    assert Client(cluster.url).dataset("none").read("only-empty") == b""


def test_more_ranges_than_a_request_takes(cluster: Cluster) -> None:
    files = make_files(3000, 200)
    made = cluster.dataset(files)
    cluster.executor().put(made)
    cluster.scheduler.place("many", made, cluster.executors)
    import os

    os.environ["STOKER_TRANSPORT"] = "tcp"
    try:
        assert Client(cluster.url).dataset("many").read_many(list(files)) == list(files.values())
    finally:
        del os.environ["STOKER_TRANSPORT"]

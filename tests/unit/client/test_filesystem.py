"""stoker:// as fsspec, pandas and pyarrow see it."""

from __future__ import annotations

import errno
import io
import pathlib
import pickle

import fsspec
import pandas
import pyarrow.dataset
import pyarrow.parquet
import pytest

from stoker.client.api import Client, open_path
from stoker.client.errors import FileChanged
from stoker.client.filesystem import StokerFileSystem
from stoker.executor.wire import Failure
from support.clusters import Cluster, ScriptedDataset

BIG = "big/0/00000.bin"


@pytest.fixture
def fs(dataset: ScriptedDataset) -> StokerFileSystem:
    return StokerFileSystem()


def test_is_found_by_its_entry_point_and_the_environment(dataset: ScriptedDataset) -> None:
    with fsspec.open(f"stoker://ds/{BIG}") as file:
        assert file.read() == dataset.files[BIG]
    assert isinstance(fsspec.filesystem("stoker"), StokerFileSystem)
    assert open_path(f"stoker://ds/{BIG}").read(10) == dataset.files[BIG][:10]


def test_lists_datasets_directories_and_files(fs: StokerFileSystem, dataset: ScriptedDataset) -> None:
    assert fs.ls("", detail=False) == ["ds"]
    assert fs.ls("stoker://ds", detail=False) == ["ds/big", "ds/d", "ds/empty", "ds/odd"]
    assert fs.ls("ds/empty")[0]["size"] == 0
    assert fs.ls("ds/d/", detail=False) == [f"ds/d/{n}" for n in range(7)]
    with pytest.raises(FileNotFoundError):
        fs.ls("ds/nothing")
    with pytest.raises(FileNotFoundError):
        fs.ls("other")


def test_tells_about_files_and_directories(fs: StokerFileSystem, dataset: ScriptedDataset) -> None:
    info = fs.info(f"stoker://ds/{BIG}")
    assert info["name"] == f"ds/{BIG}" and info["type"] == "file" and info["size"] == len(dataset.files[BIG])
    assert info["ETag"].startswith('"') and info["mtime"] == pytest.approx(1_700_000_000)
    assert fs.info("ds") == {"name": "ds", "size": 0, "type": "directory"}
    assert fs.isdir("") and fs.isdir("ds/d") and not fs.isdir(f"ds/{BIG}") and not fs.isdir("ds/zzz")
    assert (
        fs.isfile(f"ds/{BIG}")
        and fs.exists("ds/empty")
        and not fs.exists("ds/empt")
        and not fs.exists("nope/x")
    )
    assert fs.size(f"ds/{BIG}") == len(dataset.files[BIG])
    assert fs.modified(f"ds/{BIG}").year == 2023


def test_finds_walks_and_adds_up(fs: StokerFileSystem, dataset: ScriptedDataset) -> None:
    every = sorted((f"ds/{path}" for path in dataset.files), key=str.encode)
    assert fs.find("ds") == every
    assert fs.find("") == sorted(every)
    assert fs.find(f"ds/{BIG}") == [f"ds/{BIG}"]
    assert fs.find("ds/d", detail=True)[every[1]]["type"] == "file"
    assert set(fs.find("ds", maxdepth=1, withdirs=True)) >= {"ds/d", "ds/empty"}
    walked = [f"{root}/{name}" for root, _, names in fs.walk("ds") for name in names]
    assert sorted(walked) == sorted(every)
    assert fs.du("ds") == sum(map(len, dataset.files.values()))
    assert fs.du(f"ds/{BIG}") == len(dataset.files[BIG]) and fs.du("ds/d", total=False)


def test_globs_patterns_but_takes_paths_that_exist_literally(fs: StokerFileSystem) -> None:
    assert len(fs.glob("ds/d/*/0000*.bin")) == 10
    assert fs.glob("ds/odd/a*") == ["ds/odd/a*b", "ds/odd/a::b[1]", "ds/odd/axb"]
    assert fs.glob("ds/odd/a*b") == ["ds/odd/a*b"]
    assert fs.expand_path("ds/odd/a*b") == ["ds/odd/a*b"]
    assert fs.cat("ds/odd/a*b") == b"star"
    assert fs.cat("ds/odd/100%25 #1?") == b"percent"
    assert fs.open("ds/odd/a::b[1]").read() == b"colons"
    assert fs.cat(["ds/odd/a*b", "ds/odd/axb"]) == {"ds/odd/a*b": b"star", "ds/odd/axb": b"x"}
    with fsspec.open("stoker://ds/odd/a*b") as file:
        assert file.read() == b"star"
    with fsspec.open("stoker://ds/odd/100%25 #1?") as file:
        assert file.read() == b"percent"


def test_cats_as_fsspec_says(fs: StokerFileSystem, dataset: ScriptedDataset, transport: str) -> None:
    fs = StokerFileSystem()
    data = dataset.files[BIG]
    assert fs.cat(f"stoker://ds/{BIG}") == data
    assert fs.cat_file(f"ds/{BIG}", 10, -10) == data[10:-10]
    assert fs.cat_file(f"ds/{BIG}", start=-100) == data[-100:]
    assert fs.cat("ds/d", recursive=True) == {
        f"ds/{path}": each for path, each in dataset.files.items() if path.startswith("d/")
    }
    assert len(fs.cat("ds/d/1/*")) == len(fs.ls("ds/d/1"))
    paths = [f"ds/{BIG}"] * 3 + ["ds/empty", "ds/nothing"]
    *good, bad = fs.cat_ranges(paths, [0, 5, -3, None, 0], [4, None, None, 10, 1])
    assert good == [data[:4], data[5:], data[-3:], b""] and isinstance(bad, FileNotFoundError)
    with pytest.raises(FileNotFoundError):
        fs.cat_ranges(paths, 0, 1, on_error="raise")
    assert fs.cat(["ds/empty", "ds/nothing"], on_error="omit") == {"ds/empty": b""}
    assert isinstance(fs.cat(["ds/empty", "ds/nothing"], on_error="return")["ds/nothing"], FileNotFoundError)
    assert fs.read_many(["ds/odd/axb", "ds/odd/a*b"]) == [b"x", b"star"]
    out = bytearray(5)
    assert [bytes(v) for v in fs.read_many(["ds/odd/axb", "ds/odd/a*b"], out=out)] == [b"x", b"star"]
    assert out == b"xstar" and fs.head(f"ds/{BIG}", 7) == data[:7] and fs.tail(f"ds/{BIG}", 7) == data[-7:]


def test_opens_what_programs_expect(fs: StokerFileSystem, dataset: ScriptedDataset) -> None:
    with fs.open(f"ds/{BIG}") as file:
        assert isinstance(file, io.BufferedReader) and isinstance(file.raw, io.RawIOBase)
        assert (file.size, file.path, file.fs) == (len(dataset.files[BIG]), f"ds/{BIG}", fs)
        assert file.read_at(5, 3) == dataset.files[BIG][5:8] and file.tell() == 0
    with fs.open(f"ds/{BIG}", block_size=0) as raw:
        assert isinstance(raw, io.RawIOBase) and raw.readable() and raw.seekable() and not raw.writable()
    with fs.open("ds/odd/a*b", "r", encoding="utf-8") as text:
        assert text.readline() == "star"
    with pytest.raises(IsADirectoryError):
        fs.open("ds/d")
    with pytest.raises(IsADirectoryError):
        fs.open("ds")
    with pytest.raises(ValueError, match="block_size"):
        fs.open(f"ds/{BIG}", block_size=-1)
    data = pickle.dumps(fs.open(f"ds/{BIG}"))
    assert pickle.loads(data).read(5) == dataset.files[BIG][:5]


@pytest.mark.parametrize(
    "write",
    [
        lambda fs: fs.open("ds/new", "wb"),
        lambda fs: fs.open("ds/new", "ab"),
        lambda fs: fs.open("ds/new", "w"),
        lambda fs: fs.open("ds/empty", "r+b"),
        lambda fs: fs.rm("ds/empty"),
        lambda fs: fs.rm_file("ds/empty"),
        lambda fs: fs.rm("ds", recursive=True),
        lambda fs: fs.delete("ds/empty"),
        lambda fs: fs.mkdir("ds/new"),
        lambda fs: fs.makedirs("ds/new"),
        lambda fs: fs.rmdir("ds/d"),
        lambda fs: fs.touch("ds/new"),
        lambda fs: fs.mv("ds/empty", "ds/new"),
        lambda fs: fs.rename("ds/empty", "ds/new"),
        lambda fs: fs.cp_file("ds/empty", "ds/new"),
        lambda fs: fs.copy("ds/empty", "ds/new"),
        lambda fs: fs.pipe("ds/new", b"x"),
        lambda fs: fs.pipe_file("ds/new", b"x"),
        lambda fs: fs.put(__file__, "ds/new"),
        lambda fs: fs.put_file(__file__, "ds/new"),
        lambda fs: fs.upload(__file__, "ds/new"),
        lambda fs: fs.write_text("ds/new", "x"),
        lambda fs: fs.write_bytes("ds/new", b"x"),
        lambda fs: fs.start_transaction(),
    ],
)
def test_writing_is_refused_as_read_only(fs: StokerFileSystem, write: object) -> None:
    with pytest.raises(OSError) as caught:
        write(fs)  # type: ignore[operator]
    assert caught.value.errno == errno.EROFS


def test_downloads_files_and_trees(
    fs: StokerFileSystem, dataset: ScriptedDataset, tmp_path: pathlib.Path
) -> None:
    fs.get(f"ds/{BIG}", str(tmp_path / "one"))
    assert (tmp_path / "one").read_bytes() == dataset.files[BIG]
    fs.get("ds/odd", str(tmp_path / "odd"), recursive=True)
    assert (tmp_path / "odd" / "a*b").read_bytes() == b"star"
    fs.get("ds/odd/a*b", str(tmp_path / "star"))
    assert (tmp_path / "star").read_bytes() == b"star" and not (tmp_path / "star" / "axb").exists()
    fs.download("ds/empty", str(tmp_path / "deep" / "er"))
    assert (tmp_path / "deep" / "er").read_bytes() == b""


def test_a_changed_environment_is_honoured(
    fs: StokerFileSystem, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STOKER_URL", "http://127.0.0.1:1")
    assert fsspec.filesystem("stoker").url == "http://127.0.0.1:1"
    assert fsspec.filesystem("stoker") != fs and fs == StokerFileSystem(url=cluster.url)
    assert fs.exists("ds/empty")


def test_pickles_carry_url_and_version(
    fs: StokerFileSystem, cluster: Cluster, dataset: ScriptedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs = StokerFileSystem(token="s3cret")
    fs.info("ds/empty")
    data = pickle.dumps(fs)
    assert b"s3cret" not in data and "s3cret" not in fs.to_json()
    newer = cluster.dataset(dataset.files | {"new": b"1"}, version=2, previous=dataset)
    cluster.scheduler.place("ds", newer, cluster.executors)
    monkeypatch.delenv("STOKER_URL")
    Client(cluster.url).dataset("ds")  # this process moves on; the pickle does not
    again = pickle.loads(data)
    assert again.url == cluster.url and again == fs and not again.exists("ds/new")
    fs.invalidate_cache()
    assert fs.exists("ds/new") and not again.exists("ds/new")
    assert StokerFileSystem(url=cluster.url).exists("ds@2/new")
    assert fsspec.AbstractFileSystem.from_json(fs.to_json()).url == cluster.url


def test_names_of_versions(fs: StokerFileSystem) -> None:
    assert fs.cat("ds@1/odd/axb") == b"x"
    assert fs.ls("ds@1/odd", detail=False)[0] == "ds@1/odd/100%25 #1?"
    with pytest.raises(FileNotFoundError, match="at version 1"):
        fs.cat("ds@4/odd/axb")
    with pytest.raises(ValueError, match="takes a number"):
        fs.cat("ds@latest/odd/axb")


def test_marks_of_files_differ_and_are_stable(fs: StokerFileSystem) -> None:
    keys = {fs.ukey(path) for path in fs.find("ds")}
    assert len(keys) == len(fs.find("ds"))
    assert fs.ukey("ds/empty") == StokerFileSystem().ukey("stoker://ds/empty")
    assert fs.checksum("ds/empty") == StokerFileSystem().checksum("ds/empty")


def test_pandas_and_pyarrow_read_through_it(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, transport: str
) -> None:
    frame = pandas.DataFrame({"n": range(50_000), "text": [f"row {n}" for n in range(50_000)]})
    files = {}
    for part in range(3):
        buffer = io.BytesIO()
        frame.iloc[part::3].to_parquet(buffer)
        files[f"table/part{part}.parquet"] = buffer.getvalue()
    files["lines.csv"] = frame.to_csv(index=False).encode()
    made = cluster.dataset(files)
    cluster.executor().put(made)
    cluster.scheduler.place("tables", made, cluster.executors)
    monkeypatch.setenv("STOKER_URL", cluster.url)
    assert pandas.read_parquet("stoker://tables/table/part1.parquet").equals(
        pandas.read_parquet(io.BytesIO(files["table/part1.parquet"]))
    )
    assert len(pandas.read_csv("stoker://tables/lines.csv")) == 50_000
    for table in (
        pyarrow.dataset.dataset("fsspec+stoker://tables/table"),
        pyarrow.dataset.dataset("tables/table", filesystem=fsspec.filesystem("stoker")),
    ):
        assert table.to_table().num_rows == 50_000
        assert table.to_table(filter=pyarrow.dataset.field("n") == 7)["text"].to_pylist() == ["row 7"]
    with pytest.raises(OSError):
        pyarrow.parquet.write_table(
            pyarrow.table({"a": [1]}), "tables/new.parquet", filesystem=fsspec.filesystem("stoker")
        )


def test_after_a_changed_file_the_next_open_takes_the_newest_version(
    fs: StokerFileSystem, cluster: Cluster, dataset: ScriptedDataset
) -> None:
    """A notebook: the error says to refresh; having done so, the same call must work."""
    every = list(range(dataset.manifest.block_count))
    failures = {str(index): [int(Failure.CHANGED), "its size is another"] for index in every}
    for executor in cluster.executors:
        executor.command(t="not_full", dataset=1, indexes=every)
        executor.command(t="fail", failures=failures)
    for _ in range(2):
        with pytest.raises(FileChanged, match="stoker dataset refresh ds"):
            fs.cat("ds/odd/axb")
    newer = cluster.dataset(dataset.files | {"odd/axb": b"new"}, version=2, previous=dataset)
    for executor in cluster.executors:
        executor.command(t="fail", failures={})
        executor.put(newer)
    cluster.scheduler.place("ds", newer, cluster.executors)
    assert fs.cat("ds/odd/axb") == b"new"

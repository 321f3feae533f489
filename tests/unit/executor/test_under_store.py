"""Every under store: what is listed, what is read, and what a changed file becomes."""

from __future__ import annotations

import asyncio
import os
import pathlib
import socket
import threading
import time
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import fsspec
import pytest
from botocore import exceptions
from fsspec.implementations.memory import MemoryFileSystem

from stoker.executor.manifest import Manifest
from stoker.executor.under_store import (
    PIECE_BYTES_MAX,
    FileRow,
    Outcome,
    Piece,
    ReadFailure,
    UnderStore,
    UnderStoreError,
    open_under_store,
)
from stoker.executor.under_stores import generic
from stoker.executor.under_stores.options import Options
from stoker.executor.under_stores.remote import Transient
from stoker.executor.under_stores.s3 import S3Store as S3UnderStore
from stoker.executor.under_stores.s3 import _Refused as Refused
from stoker.executor.wire import Failure
from support.manifests import mapped_rows
from support.stores import S3Store, http_store, s3_store

FILES = {
    "a.txt": b"first",
    "sub/b.bin": bytes(range(256)) * 40,
    "sub/deep/er/c": b"c" * 70_000,
    "sub/empty": b"",
    "odd/a b&c#d?e%20f+g'h.txt": b"odd",
    "odd/ü/日本.txt": b"unicode",
}


@pytest.fixture
def tree(tmp_path: pathlib.Path) -> pathlib.Path:
    root = tmp_path / "tree"
    write_files(root, FILES)
    return root


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Store]:
    with s3_store() as store:
        yield store


def write_files(root: pathlib.Path, files: Mapping[str, bytes]) -> None:
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)


def rows_of(store: UnderStore, warnings: list[str] | None = None) -> dict[str, FileRow]:
    listed = list(store.list((warnings if warnings is not None else []).append))
    rows = {row.path: row for row in listed}
    assert len(rows) == len(listed), "a file was listed twice"
    return rows


def pieces_of(row: FileRow, step: int = PIECE_BYTES_MAX) -> list[Piece]:
    return [
        Piece(row.path, start, min(row.size, start + step), row.size, row.mtime_ns, row.token)
        for start in range(0, row.size, step)
    ]


def read_all(store: UnderStore, pieces: Sequence[Piece]) -> list[bytes | ReadFailure]:
    """Return what each piece became, in the order of `pieces`."""
    outcomes: dict[int, bytes | ReadFailure] = {}
    for number, outcome in store.read(pieces):
        assert number not in outcomes
        outcomes[number] = _copied(outcome)
    return [outcomes[number] for number in range(len(pieces))]


def _copied(outcome: Outcome) -> bytes | ReadFailure:
    return outcome if isinstance(outcome, ReadFailure) else bytes(outcome)


def read_file(store: UnderStore, row: FileRow, step: int = PIECE_BYTES_MAX) -> bytes | ReadFailure:
    parts = read_all(store, pieces_of(row, step))
    failure = next((part for part in parts if isinstance(part, ReadFailure)), None)
    return failure or b"".join(part for part in parts if isinstance(part, bytes))


def failure_of(store: UnderStore, row: FileRow, step: int = PIECE_BYTES_MAX) -> ReadFailure:
    failure = read_file(store, row, step)
    assert isinstance(failure, ReadFailure), "the read should have failed"
    assert len(failure.message.encode()) <= 512 and "\n" not in failure.message
    return failure


def assert_holds(store: UnderStore, files: Mapping[str, bytes], *, step: int = PIECE_BYTES_MAX) -> None:
    """Assert that `store` lists exactly `files`, and reads them right, whole and in pieces of `step`."""
    rows = rows_of(store)
    assert {path: row.size for path, row in rows.items()} == {path: len(data) for path, data in files.items()}
    for path, row in rows.items():
        assert read_file(store, row, step) == files[path], path


def assert_all_are_new(previous: Manifest, rows: Iterable[FileRow]) -> None:
    """Assert that a refresh gives every file of `rows` another address."""
    refreshed = mapped_rows(rows, version=2, previous=previous)
    found = [previous.find(refreshed.path(row)) for row in range(refreshed.file_count)]
    assert all(refreshed.offset(row) >= previous.address_bytes for row in range(refreshed.file_count))
    assert -1 not in found


class TestLocal:
    def test_lists_and_reads_a_tree(self, tree: pathlib.Path) -> None:
        for source in (str(tree), f"file://{tree}", f"{tree}/", f"local://{tree}"):
            assert_holds(open_under_store(source, {}), FILES, step=1_000)

    def test_one_file_is_a_dataset_too(self, tree: pathlib.Path) -> None:
        assert_holds(open_under_store(str(tree / "a.txt"), {}), {"a.txt": FILES["a.txt"]})

    def test_a_directory_that_is_called_like_its_only_file(self, tmp_path: pathlib.Path) -> None:
        write_files(tmp_path, {"same/same": b"same"})
        assert_holds(open_under_store(str(tmp_path / "same"), {}), {"same": b"same"})

    def test_symlinks_are_followed_and_what_is_no_file_is_passed_over_by_name(
        self, tree: pathlib.Path
    ) -> None:
        (tree / "link").symlink_to("a.txt")
        (tree / "directory").symlink_to("sub/deep")
        (tree / "sub" / "loop").symlink_to("..")
        (tree / "dangling").symlink_to("nowhere")
        os.mkfifo(tree / "pipe")
        with socket.socket(socket.AF_UNIX) as listener:
            cwd = os.getcwd()
            os.chdir(tree)  # a socket's path is short
            try:
                listener.bind("socket")
            finally:
                os.chdir(cwd)
        warnings: list[str] = []
        store = open_under_store(str(tree), {})
        rows = rows_of(store, warnings)
        assert set(rows) == {*FILES, "link", "directory/er/c"}
        assert read_file(store, rows["directory/er/c"]) == FILES["sub/deep/er/c"]
        said = "\n".join(sorted(warnings))
        assert len(warnings) == 4
        for name, what in (
            ("loop", "above"),
            ("dangling", "nothing"),
            ("pipe", "pipe"),
            ("socket", "socket"),
        ):
            assert f"/{name}: " in said and what in said

    def test_a_source_that_is_not_there_says_where_it_must_be(self, tmp_path: pathlib.Path) -> None:
        with pytest.raises(UnderStoreError, match="not there on this host.*every scheduler and agent"):
            rows_of(open_under_store(str(tmp_path / "no"), {}))

    def test_a_name_that_is_not_utf8_is_an_error_that_names_it(self, tree: pathlib.Path) -> None:
        pathlib.Path(os.fsdecode(os.fsencode(tree) + b"/bad\xff.txt")).write_bytes(b"x")
        with pytest.raises(UnderStoreError, match=r"bad\\xff.txt.*not UTF-8"):
            rows_of(open_under_store(str(tree), {}))

    def test_a_device_is_no_source(self) -> None:
        with pytest.raises(UnderStoreError, match="neither a directory nor"):
            rows_of(open_under_store("/dev/null", {}))

    @pytest.mark.parametrize("data", [b"FIRST", b"longer than before", b"sho", b""])
    def test_a_file_that_changed_is_never_read(self, tree: pathlib.Path, data: bytes) -> None:
        store = open_under_store(str(tree), {})
        row = rows_of(store)["a.txt"]
        (tree / "a.txt").write_bytes(data)
        os.utime(tree / "a.txt", ns=(row.mtime_ns, row.mtime_ns))  # as rsync and tar do
        failure = failure_of(store, row)
        assert failure.code == Failure.CHANGED and "a.txt" in failure.message and "refresh" in failure.message

    def test_a_file_that_was_replaced_deleted_or_became_a_pipe_is_changed(self, tree: pathlib.Path) -> None:
        store = open_under_store(str(tree), {})
        rows = rows_of(store)
        (tree / "new").write_bytes(FILES["a.txt"])
        (tree / "new").rename(tree / "a.txt")
        (tree / "sub" / "b.bin").unlink()
        (tree / "sub" / "deep" / "er" / "c").unlink()
        os.mkfifo(tree / "sub" / "deep" / "er" / "c")
        failures = [failure_of(store, rows[path]) for path in ("a.txt", "sub/b.bin", "sub/deep/er/c")]
        assert [failure.code for failure in failures] == [Failure.CHANGED] * 3
        assert "deleted" in failures[1].message

    def test_an_unreadable_path_is_the_under_stores_failure(self, tree: pathlib.Path) -> None:
        store = open_under_store(str(tree), {})
        row = rows_of(store)["a.txt"]
        (tree / "a.txt").unlink()
        (tree / "a.txt").symlink_to("a.txt")  # a loop; permissions do not stop root
        assert failure_of(store, row).code == Failure.UNDER_STORE

    def test_cancel_ends_a_reading(self, tree: pathlib.Path) -> None:
        store = open_under_store(str(tree), {})
        reading = store.read(pieces_of(rows_of(store)["sub/b.bin"], 100))
        next(reading)
        reading.cancel()
        assert list(reading) == []


class TestHttp:
    def test_lists_and_reads_a_tree(self, tree: pathlib.Path) -> None:
        with http_store(tree) as server:
            for source in (server.url, f"{server.url}?C=N;O=D", f"{server.url}#top"):
                assert_holds(open_under_store(source.replace("?C=N;O=D", ""), {}), FILES, step=30_000)
            below = {
                path.removeprefix("sub/"): data for path, data in FILES.items() if path.startswith("sub/")
            }
            assert_holds(open_under_store(f"{server.url}sub", {}), below)  # redirected to sub/

    def test_one_file_is_a_dataset_too(self, tree: pathlib.Path) -> None:
        with http_store(tree) as server:
            assert_holds(
                open_under_store(f"{server.url}sub/b.bin", {}), {"b.bin": FILES["sub/b.bin"]}, step=1_000
            )
            assert_holds(
                open_under_store(f"{server.url}a.txt?signed=1", {}), {"a.txt": FILES["a.txt"]}, step=2
            )

    def test_every_read_names_the_version_that_it_wants(self, tree: pathlib.Path) -> None:
        with http_store(tree) as server:
            store = open_under_store(server.url, {})
            row = rows_of(store)["sub/b.bin"]
            server.forget_requests()
            assert read_file(store, row, 6_000) == FILES["sub/b.bin"]
            requests = [r for r in server.requests() if r["path"] == "/sub/b.bin"]
        assert [r["if_match"] for r in requests] == [row.token.decode()] * 2
        assert sorted(r["range"] for r in requests) == ["bytes=0-5999", "bytes=6000-10239"]

    @pytest.mark.parametrize(
        "faults",
        [[], ["ignore_conditions"], ["ignore_conditions", "ignore_range"], ["weak_etag"], ["no_etag"]],
    )
    @pytest.mark.parametrize("step", [1_000, PIECE_BYTES_MAX])
    def test_a_file_that_changed_is_never_read(
        self, tree: pathlib.Path, faults: list[str], step: int
    ) -> None:
        """However little the server helps: its answer's own marks are compared."""
        with http_store(tree) as server:
            server.order(*({"kind": kind} for kind in faults))
            store = open_under_store(server.url, {})
            row = rows_of(store)["sub/b.bin"]
            assert read_file(store, row, step) == FILES["sub/b.bin"]
            (tree / "sub" / "b.bin").write_bytes(b"x" * row.size)
            os.utime(tree / "sub" / "b.bin", ns=(row.mtime_ns + 5_000_000_000,) * 2)
            failure = failure_of(store, row, step)
        assert failure.code == Failure.CHANGED and "sub/b.bin" in failure.message

    def test_a_server_that_tells_less_than_when_it_was_listed_is_not_believed(
        self, tree: pathlib.Path
    ) -> None:
        with http_store(tree) as server:
            store = open_under_store(server.url, {})
            row = rows_of(store)["sub/b.bin"]
            server.order({"kind": "no_etag"}, {"kind": "ignore_conditions"})
            assert read_file(store, row, 3_000) == FILES["sub/b.bin"], "its time is what it was"
            (tree / "sub" / "b.bin").write_bytes(b"x" * row.size)
            os.utime(tree / "sub" / "b.bin", ns=(row.mtime_ns + 5_000_000_000,) * 2)
            assert failure_of(store, row, 3_000).code == Failure.CHANGED
            server.order({"kind": "no_marks"}, {"kind": "ignore_conditions"})
            failure = failure_of(store, row, 3_000)
        assert failure.code == Failure.UNDER_STORE and "nothing can be compared" in failure.message

    @pytest.mark.parametrize("size", [0, 5_000, 20_000])
    def test_without_any_mark_the_size_is_compared(self, tree: pathlib.Path, size: int) -> None:
        with http_store(tree) as server:
            server.order({"kind": "no_marks"}, {"kind": "ignore_range"})
            store = open_under_store(server.url, {})
            row = rows_of(store)["sub/b.bin"]
            assert read_file(store, row, 3_000) == FILES["sub/b.bin"]
            (tree / "sub" / "b.bin").write_bytes(b"x" * size)
            assert failure_of(store, row, 3_000).code == Failure.CHANGED

    def test_without_any_mark_a_refresh_takes_every_file_for_changed(self, tree: pathlib.Path) -> None:
        """What is cached of an address is of the bytes that were there first. Manifests of before have "-" for no mark."""
        with http_store(tree) as server:
            server.order({"kind": "no_marks"})
            store = open_under_store(server.url, {})
            rows = rows_of(store)
            assert {row.token for row in rows.values()} == {b""}
            for token in (b"", b"-"):
                listed = [row._replace(token=token) for row in rows.values()]
                assert all(read_file(store, row) == FILES[row.path] for row in listed)
                assert_all_are_new(mapped_rows(listed), rows.values())

    def test_an_unknown_charset_is_one_clear_line(self, tree: pathlib.Path) -> None:
        with http_store(tree) as server:
            server.order({"kind": "type", "type": "text/html; charset=utf8mb4"})
            with pytest.raises(UnderStoreError, match="names the unknown charset 'utf8mb4'"):
                rows_of(open_under_store(server.url, {}))

    @pytest.mark.parametrize("step", [3_000, PIECE_BYTES_MAX])
    def test_a_server_that_knows_neither_head_nor_ranges_nor_lengths(
        self, tree: pathlib.Path, step: int
    ) -> None:
        with http_store(tree) as server:
            server.order({"kind": "no_head"})
            store = open_under_store(server.url, {})
            rows = rows_of(store)
            assert rows["sub/b.bin"].size == len(FILES["sub/b.bin"]) and rows["sub/empty"].size == 0
            server.order({"kind": "ignore_range"}, {"kind": "no_length"})
            assert read_file(store, rows["sub/b.bin"], step) == FILES["sub/b.bin"]

    def test_a_deleted_file_is_changed_and_a_forbidden_one_is_not(self, tree: pathlib.Path) -> None:
        with http_store(tree) as server:
            store = open_under_store(server.url, {})
            rows = rows_of(store)
            (tree / "a.txt").unlink()
            server.order({"kind": "status", "status": 403, "path": "b.bin"})
            deleted, forbidden = failure_of(store, rows["a.txt"]), failure_of(store, rows["sub/b.bin"])
        assert deleted.code == Failure.CHANGED and "deleted" in deleted.message
        assert forbidden.code == Failure.UNDER_STORE and "403" in forbidden.message
        assert "--option" in forbidden.message

    @pytest.mark.parametrize(
        "fault",
        [
            {"kind": "status", "status": 503, "retry_after": 0},
            {"kind": "status", "status": 429},
            {"kind": "cut"},
        ],
    )
    def test_what_may_pass_is_tried_again_and_not_for_ever(
        self, tree: pathlib.Path, fault: dict[str, object]
    ) -> None:
        with http_store(tree) as server:
            store = open_under_store(server.url, {})
            row = rows_of(store)["sub/deep/er/c"]
            server.order({**fault, "times": 2, "path": "/c$"})
            assert read_file(store, row) == FILES["sub/deep/er/c"]
            server.order({**fault, "path": "/c$"})
            server.forget_requests()
            assert failure_of(store, row).code == Failure.UNDER_STORE
            assert len([r for r in server.requests() if r["path"].endswith("/c")]) == 5

    def test_listing_survives_faults_that_pass(self, tree: pathlib.Path) -> None:
        with http_store(tree) as server:
            server.order({"kind": "status", "status": 503, "times": 3})
            assert set(rows_of(open_under_store(server.url, {}))) == set(FILES)

    def test_a_store_that_dies_in_the_middle_fails_soon_and_clearly(self, tmp_path: pathlib.Path) -> None:
        write_files(tmp_path / "many", {f"{i:04d}": bytes([i % 256]) * 1_000 for i in range(700)})
        with http_store(tmp_path / "many", delay="5ms") as server:
            store = open_under_store(server.url, {})
            pieces = [piece for row in rows_of(store).values() for piece in pieces_of(row)]
            outcomes: list[bytes | ReadFailure] = []
            for _, outcome in store.read(pieces):
                outcomes.append(_copied(outcome))
                if len(outcomes) == 300:
                    server.kill()
        failed = [o for o in outcomes if isinstance(o, ReadFailure)]
        assert len(outcomes) == 700 and 200 < len(failed) <= 400
        assert {f.code for f in failed} == {Failure.UNDER_STORE}
        assert all(set(o) == {o[0]} and len(o) == 1_000 for o in outcomes if isinstance(o, bytes))

    def test_a_source_that_is_not_there_is_one_clear_line(self, tree: pathlib.Path) -> None:
        with http_store(tree) as server:
            with pytest.raises(UnderStoreError, match="nope/ answered 404"):
                rows_of(open_under_store(f"{server.url}nope/", {}))
            server.order({"kind": "status", "status": 401})
            with pytest.raises(UnderStoreError, match="401 .*credentials"):
                rows_of(open_under_store(server.url, {}))
            url = server.url
        with pytest.raises(UnderStoreError, match="cannot list .*127.0.0.1"):
            rows_of(open_under_store(url, {}))

    def test_secrets_stay_out_of_messages_and_reach_the_server(
        self, tree: pathlib.Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SECRET_HEADER", "Bearer hush-hush")
        with http_store(tree) as server:
            server.order({"kind": "status", "status": 403})
            source = server.url.replace("http://", "http://me:s3same@") + "x/?X-Amz-Signature=abcdef0123"
            with pytest.raises(UnderStoreError, match="403") as in_url:
                rows_of(open_under_store(source, {}))
            with pytest.raises(UnderStoreError, match="403") as in_option:
                rows_of(open_under_store(server.url, {"headers.Authorization": "env:SECRET_HEADER"}))
            assert server.requests()[-1]["authorization"] == "Bearer hush-hush"
        said = str(in_url.value) + str(in_option.value)
        assert not any(secret in said for secret in ("s3same", "abcdef0123", "hush"))

    def test_cancel_ends_a_reading_that_waits(self, tree: pathlib.Path) -> None:
        with http_store(tree) as server:
            store = open_under_store(server.url, {})
            row = rows_of(store)["sub/deep/er/c"]
            server.order({"kind": "stall", "seconds": 60, "path": "/c$"})
            reading = store.read(pieces_of(row, 10_000))
            threading.Timer(0.2, reading.cancel).start()
            assert list(reading) == []


class TestS3:
    def test_lists_and_reads_a_prefix(self, s3: S3Store) -> None:
        objects = {f"data/{path}": content for path, content in FILES.items()}
        s3.fill("trees", {**objects, "data/marker/": b"", "database": b"not ours", "other/x": b"nor this"})
        assert_holds(open_under_store("s3://trees/data", s3.options), FILES, step=30_000)
        assert_holds(open_under_store("s3://trees/data/", s3.options), FILES)
        all_of_it = {**objects, "database": b"not ours", "other/x": b"nor this"}
        assert_holds(open_under_store("s3://trees", s3.options), all_of_it)

    def test_one_object_is_a_dataset_too(self, s3: S3Store) -> None:
        s3.fill("single", {"a/b.bin": FILES["sub/b.bin"]})
        assert_holds(
            open_under_store("s3://single/a/b.bin", s3.options), {"b.bin": FILES["sub/b.bin"]}, step=999
        )

    def test_a_listing_of_several_pages(self, s3: S3Store) -> None:
        s3.fill("pages", {f"p/{i:05d}": b"" for i in range(25)})
        store = S3UnderStore("s3://pages/p", Options(s3.options), page_keys=10)
        assert sorted(rows_of(store)) == [f"{i:05d}" for i in range(25)]

    @pytest.mark.parametrize("step", [1_000, PIECE_BYTES_MAX])
    def test_a_changed_or_deleted_object_is_never_read(self, s3: S3Store, step: int) -> None:
        bucket = f"changing-{step}"
        s3.fill(bucket, {"x": b"x" * 5_000, "y": b"y" * 5_000, "z": b"z" * 5_000})
        store = open_under_store(f"s3://{bucket}", s3.options)
        rows = rows_of(store)
        s3.client.put_object(Bucket=bucket, Key="x", Body=b"X" * 5_000)
        s3.client.put_object(Bucket=bucket, Key="y", Body=b"y")
        s3.client.delete_object(Bucket=bucket, Key="z")
        failures = [failure_of(store, rows[key], step) for key in "xyz"]
        assert [failure.code for failure in failures] == [Failure.CHANGED] * 3
        assert "deleted" in failures[2].message

    def test_a_source_that_is_not_there_is_one_clear_line(self, s3: S3Store) -> None:
        with pytest.raises(UnderStoreError, match="NoSuchBucket"):
            rows_of(open_under_store("s3://no-such-bucket/x", s3.options))
        with pytest.raises(UnderStoreError, match="names no bucket"):
            open_under_store("s3://", s3.options)
        assert rows_of(open_under_store("s3://trees/nothing", s3.options)) == {}

    def test_a_store_that_is_down_is_one_clear_line_without_secrets(self) -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        options = {"endpoint_url": url, "key": "someone", "secret": "open-sesame"}
        with pytest.raises(UnderStoreError, match="cannot list s3://down/x") as caught:
            rows_of(open_under_store("s3://down/x", options))
        assert "sesame" not in str(caught.value)

    def test_a_store_that_refuses_connections_is_tried_again(self) -> None:
        """It may only be restarting; and after some in a row it is taken for down."""
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{unused.getsockname()[1]}"
            store = S3UnderStore("s3://down/x", Options({"endpoint_url": url, "key": "k", "secret": "s"}))
            row = FileRow("a", 10, 1, b'"e"')
            began = time.monotonic()
            assert failure_of(store, row).code == Failure.UNDER_STORE
        assert time.monotonic() - began > 0.5, "4 pauses are 0.75 s at least"

    @pytest.mark.parametrize(
        ("error", "raised"),
        [
            (exceptions.EndpointConnectionError(endpoint_url="http://x"), Transient),
            (exceptions.ConnectTimeoutError(endpoint_url="http://x"), Transient),
            (exceptions.ProxyConnectionError(proxy_url="http://x"), Transient),
            (exceptions.ReadTimeoutError(endpoint_url="http://x"), Transient),
            (exceptions.SSLError(endpoint_url="http://x", error="its certificate"), Refused),
            (exceptions.InvalidRegionError(region_name="x y"), Refused),
        ],
    )
    def test_what_may_pass_is_told_from_what_stays(self, error: Exception, raised: type[Exception]) -> None:
        store = S3UnderStore("s3://x/y", Options({"key": "k", "secret": "s"}))

        async def fail() -> None:
            raise error

        with pytest.raises(raised):
            asyncio.run(store._translated(fail))


class Unmarked(MemoryFileSystem):  # type: ignore[misc]
    """A file system that tells neither versions nor times, as FTP's does."""

    protocol = "unmarked"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(MemoryFileSystem._strip_protocol(path.replace("unmarked://", "memory://")))

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        return {**super().info(path, **kwargs), "created": None}

    def find(self, path: str, **kwargs: Any) -> dict[str, Any]:
        found = super().find(path, **{**kwargs, "detail": True})
        return {name: {**info, "created": None} for name, info in found.items()}


class TestGeneric:
    def test_without_any_mark_the_size_is_compared_and_a_refresh_takes_every_file_for_changed(self) -> None:
        fsspec.register_implementation("unmarked", Unmarked, clobber=True)
        files = {path: data for path, data in FILES.items() if data}
        for path, data in files.items():
            Unmarked().pipe_file(f"/data/{path}", data)
        store = open_under_store("unmarked://data", {})
        rows = rows_of(store)
        assert {row.token for row in rows.values()} == {b""}
        before = [row._replace(token=f";mtime_ns=0;size={row.size}".encode()) for row in rows.values()]
        for listed in (list(rows.values()), before):
            assert all(read_file(store, row, 1_000) == files[row.path] for row in listed)
            assert_all_are_new(mapped_rows(listed), rows.values())
        Unmarked().pipe_file("/data/a.txt", b"more than before")
        for row in (rows["a.txt"], next(row for row in before if row.path == "a.txt")):
            assert failure_of(store, row).code == Failure.CHANGED

    @pytest.mark.parametrize("key", ["mtime", "modificationTime"])
    def test_a_time_in_milliseconds_is_a_mark(self, key: str) -> None:
        """The latter is what WebHDFS tells."""
        first, second = ({"size": 10, key: 1_700_000_000_000 + n} for n in (0, 1))
        assert generic._mtime_ns(first) == 1_700_000_000 * 10**9
        assert generic._token(first) != generic._token(second) != b""

    def test_lists_and_reads_through_fsspec(self) -> None:
        import fsspec

        memory = fsspec.filesystem("memory")
        for path, data in FILES.items():
            memory.pipe_file(f"/generic/{path}", data)
        store = open_under_store("memory://generic", {})
        assert_holds(store, FILES, step=1_000)
        assert_holds(open_under_store("memory://generic/a.txt", {}), {"a.txt": FILES["a.txt"]})
        rows = rows_of(store)
        memory.pipe_file("/generic/a.txt", b"FIRST")
        memory.rm_file("/generic/sub/b.bin")
        failures = [failure_of(store, rows[path], 3) for path in ("a.txt", "sub/b.bin")]
        assert [failure.code for failure in failures] == [Failure.CHANGED] * 2

    def test_a_chained_url(self, tmp_path: pathlib.Path) -> None:
        with zipfile.ZipFile(tmp_path / "files.zip", "w") as archive:
            for path, data in FILES.items():
                archive.writestr(path, data)
        assert_holds(open_under_store(f"zip://::{tmp_path}/files.zip", {}), FILES, step=1_000)

    def test_many_pieces_are_bounded_and_can_be_cancelled(self) -> None:
        import fsspec

        memory = fsspec.filesystem("memory")
        memory.pipe_file("/large/x", os.urandom(40_000_000))
        store = open_under_store("memory://large", {})
        pieces = pieces_of(rows_of(store)["x"], 1_000_000)
        assert all(isinstance(part, bytes) for part in read_all(store, pieces))
        reading = store.read(pieces)
        next(reading)
        reading.cancel()
        assert len(list(reading)) < len(pieces)

    @pytest.mark.parametrize(
        ("source", "options"),
        [
            ("http://127.0.0.1:1/", {"no_such_option": "1"}),
            ("http://127.0.0.1:1/", {"client_kwargs.no_such": "1"}),
            ("http://127.0.0.1:1/", {"headers": "not-a-map"}),
            ("s3://x/y", {"no_such_option": "1"}),
            ("s3://x/y", {"endpoint_url": "no-url"}),
            ("s3://x/y", {"config_kwargs.no_such": "1"}),
            ("zip://::/no/such/file.zip", {}),
            ("sftp://h/x", {"port": "ssh"}),
        ],
    )
    def test_options_that_do_not_fit_are_one_clear_line(self, source: str, options: dict[str, str]) -> None:
        with pytest.raises(UnderStoreError) as caught:
            rows_of(open_under_store(source, options))
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 600

    @pytest.mark.parametrize(
        ("source", "text"),
        [
            ("wat://x/y", "'wat' is no protocol"),
            ("gs://bucket/x", "not installed"),
            ("relative/path", "neither a URL nor an absolute path"),
            ("file://host/x", "three slashes"),
            ("", "neither a URL"),
        ],
    )
    def test_a_source_that_cannot_be_opened_says_what_to_do(self, source: str, text: str) -> None:
        with pytest.raises(UnderStoreError, match=text):
            open_under_store(source, {})

"""The lister as the scheduler runs it: an order on stdin, lines on stdout, blobs in a directory."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest

from stoker.executor.lister import WARNINGS_MAX
from stoker.executor.manifest import Manifest, digest_of, map_manifest, part_digests, write_mapped
from support.stores import http_store
from support.waiting import DEADLINE_S

CLUSTER = bytes(range(16))


class Run:
    """A lister that has ended."""

    def __init__(self, source: str, out: pathlib.Path, **changes: Any) -> None:
        out.mkdir()
        order = {
            "source": source,
            "options": {},
            "cluster": CLUSTER.hex(),
            "dataset_id": 3,
            "generation": 1,
            "version": 1,
            "slot_bytes": 2**30,
            "previous": None,
            "out": str(out),
            "a_field_of_a_later_version": 1,
        }
        run = subprocess.run(
            [sys.executable, "-m", "stoker.executor.lister"],
            input=json.dumps(order | changes),
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )
        self.code = run.returncode
        self.stderr = run.stderr
        self.lines: list[dict[str, Any]] = [json.loads(line) for line in run.stdout.splitlines()]
        self.out = out

    @property
    def last(self) -> dict[str, Any]:
        return self.lines[-1]

    @property
    def error(self) -> str:
        assert self.code == 1 and list(self.last) == ["error"], self.lines
        assert os.listdir(self.out) == []
        return str(self.last["error"])

    def manifest(self) -> Manifest:
        """Map what was written, as a scheduler does."""
        assert self.code == 0, self.lines
        done = self.last["done"]
        blobs = {name: (self.out / name).read_bytes() for name in os.listdir(self.out)}
        assert all(digest_of(data) == name for name, data in blobs.items())
        root = blobs[done["digest"]]
        assert {done["digest"], *part_digests(root)} == set(blobs)
        mapped = self.out.with_suffix(".mapped")
        write_mapped(root, blobs.__getitem__, str(mapped))
        manifest = map_manifest(mapped)
        assert done == {
            "digest": manifest.digest,
            "files": manifest.file_count,
            "bytes": manifest.total_bytes,
            "address_bytes": manifest.address_bytes,
            "block_bytes": manifest.block_bytes,
            "block_count": manifest.block_count,
            "pg_count": manifest.pg_count,
            "generation": manifest.generation,
            "version": manifest.version,
        }
        return manifest


@pytest.fixture
def data(tmp_path: pathlib.Path) -> pathlib.Path:
    root = tmp_path / "data"
    for i in range(50):
        (root / f"d{i % 3}").mkdir(parents=True, exist_ok=True)
        (root / f"d{i % 3}" / f"{i}").write_bytes(bytes([i]) * i * 100)
    return root


def test_a_local_directory(data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    manifest = Run(str(data), tmp_path / "out").manifest()
    assert manifest.file_count == 50 and manifest.cluster == CLUSTER and manifest.dataset_id == 3
    assert manifest.size(manifest.find("d1/49")) == 4_900


def test_a_refresh_keeps_what_did_not_change_where_it_was(data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    first = Run(str(data), tmp_path / "out1").manifest()
    (data / "d1" / "49").write_bytes(b"new")
    (data / "new").write_bytes(b"x" * 1_000)
    previous = str(tmp_path / "out1.mapped")
    second = Run(str(data), tmp_path / "out2", version=2, previous=previous).manifest()
    assert second.version == 2 and second.file_count == 51
    for row in range(first.file_count):
        path = first.path(row)
        same = second.offset(second.find(path)) == first.offset(row)
        assert same == (path != "d1/49"), path


def test_a_web_server_with_progress(data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with http_store(data, delay="300ms") as server:
        run = Run(server.url, tmp_path / "out")
    assert run.manifest().file_count == 50
    progress = run.lines[:-1]
    assert progress and all(set(line) == {"files", "bytes"} for line in progress)
    assert [line["files"] for line in progress] == sorted(line["files"] for line in progress)


def test_what_is_passed_over_is_named_so_many_times(data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    for i in range(WARNINGS_MAX + 5):
        os.mkfifo(data / f"pipe{i}")
    run = Run(str(data), tmp_path / "out")
    assert run.manifest().file_count == 50
    warnings = [line for line in run.lines if "warning" in line]
    assert len(warnings) == WARNINGS_MAX and all({"files", "bytes"} <= set(line) for line in warnings)
    assert "a named pipe" in warnings[0]["warning"]


def test_errors_are_one_line(data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "empty").mkdir()
    cases = [
        (str(tmp_path / "empty"), {}, "no files in"),
        (str(tmp_path / "nowhere"), {}, "is not there on this host"),
        ("wat://x", {}, "no protocol that fsspec knows"),
        ("http://127.0.0.1:1/", {}, "cannot list http://127.0.0.1:1/"),
        (str(data), {"options": {"key": "env:NOT_SET"}}, "NOT_SET"),
        (str(data), {"previous": "/no/such/file"}, "No such file"),
        (str(data), {"cluster": "xyz"}, "wants one JSON object"),
    ]
    for number, (source, changes, text) in enumerate(cases):
        error = Run(source, tmp_path / f"out{number}", **changes).error
        assert text in error and "\n" not in error and len(error) < 600, error


def test_a_path_that_no_dataset_can_have_is_named(data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    fd = os.open(data, os.O_RDONLY)
    for _ in range(21):  # a path of more than 4096 bytes is made step by step
        os.mkdir("x" * 200, dir_fd=fd)
        inner = os.open("x" * 200, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)
    assert "xxx" in Run(str(data), tmp_path / "out").error


def test_it_ends_when_nobody_listens_any_more(data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    order = {
        "source": "",
        "options": {},
        "cluster": CLUSTER.hex(),
        "dataset_id": 1,
        "generation": 1,
        "version": 1,
    }
    order |= {"slot_bytes": 1, "previous": None, "out": str(tmp_path)}
    with http_store(data) as server:
        server.order({"kind": "status", "status": 503, "retry_after": 5})
        process = subprocess.Popen(
            [sys.executable, "-m", "stoker.executor.lister"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(order | {"source": server.url}).encode())
        process.stdin.close()
        process.stdout.close()
        assert process.wait(DEADLINE_S) == 1

"""Datasets from S3, from a web server and from the local file system: added, loaded and read back with the right SHA-256."""

from __future__ import annotations

import hashlib
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import fsspec
import pytest

from stoker.client.api import Client
from stoker.client.errors import ApiError
from support.files import content, digests
from support.local import Local, local_cluster
from support.nginx import PROGRAM, WHY_NOT, nginx
from support.stores import S3Store, s3_store

pytestmark = pytest.mark.integration

ACCESS_KEY = "AKIA7TESTACCESSKEY42"
SECRET_KEY = "f3a9-secret/of+the=tests-0d17"
LOST_KEY = "this-one-is-not-passed-on"
PASSED_ON = "UNDER_STORE_TEST_KEY"
KEPT_BACK = "UNDER_STORE_TEST_LOST_KEY"

# Names that some layer between a store and a reader could take for something else.
ODD_NAMES = (
    "plain.bin",
    "with space.bin",
    " leading and trailing ",
    "percent%20twenty.bin",
    "100%.bin",
    "hash#tag.bin",
    "question?mark=1&x=2.bin",
    "plus+sign.bin",
    "semi;colon,comma=equal.bin",
    "star*[a-c]{x,y}.bin",
    "quote'\"<b>&amp;.bin",
    "back\\slash.bin",
    "colon:in:name.bin",
    "tilde~at@dollar$.bin",
    "..dots...",
    ".hidden",
    "größe-файл-数据-🦉.bin",
    "e\u0301-decomposed.bin",
    "x" * 200,
    "empty.bin",
)


@pytest.fixture(scope="module")
def secret_file(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("secrets") / "secret"
    path.write_text(SECRET_KEY + "\n")
    return path


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Local]:
    state = tmp_path_factory.mktemp("under-stores") / "state"
    environment = {PASSED_ON: ACCESS_KEY, KEPT_BACK: LOST_KEY}
    arguments = ["--agents", "2", "--mem", "48MiB", "--executor-env", PASSED_ON]
    with local_cluster(state, *arguments, environment=environment) as local:
        local.wait_until_running(2)
        yield local


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Store]:
    with s3_store() as store:
        yield store


def odd_files(prefix: str = "", *, names: tuple[str, ...] = ODD_NAMES) -> dict[str, bytes]:
    """Return path -> bytes: the odd names, below an odd directory too, an empty file and one of several MiB."""
    files = {prefix + name: content(i, 1_000 * i + 1) for i, name in enumerate(names)}
    files |= {f"{prefix}di r%2F#?/{name}": content(100 + i, 50_000) for i, name in enumerate(names)}
    files[f"{prefix}empty.bin"] = b""
    files[f"{prefix}large.bin"] = content(99, 5_300_001)
    return files


def write_files(root: pathlib.Path, files: Mapping[str, bytes]) -> None:
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)


def add_and_load(local: Local, name: str, source: str, **options: str) -> None:
    local.add(name, source, options=options)
    job = local.load(name)
    assert (job["state"], job["error_count"]) == ("SUCCEEDED", 0), job
    _assert_cached(local.client.dataset_info(name))


def _assert_cached(view: Mapping[str, Any]) -> None:
    assert view["state"] == "READY" and view["error"] is None
    assert view["cached_bytes"] == view["bytes"] and view["cached_ratio"] == 1.0


def read_everything(
    local: Local, name: str, expected: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read all files by every interface, over descriptors and over TCP; `expected` is path -> SHA-256."""
    monkeypatch.setenv("STOKER_URL", local.url)
    for transport in ("fd", "tcp"):
        monkeypatch.setenv("STOKER_TRANSPORT", transport)
        dataset = Client(local.url).dataset(name)
        assert set(dataset.paths) == set(expected)
        assert {path: _sha256(dataset.read(path)) for path in dataset.paths} == expected
        filesystem = fsspec.filesystem("stoker", skip_instance_cache=True)
        found = filesystem.find(name)
        assert {path.removeprefix(f"{name}/") for path in found} == set(expected)
        got = filesystem.cat(found)
        assert {path.removeprefix(f"{name}/"): _sha256(data) for path, data in got.items()} == expected
        for path, digest in expected.items():
            with filesystem.open(f"{name}/{path}") as file:
                assert _sha256(file.read()) == digest


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# --- S3


def test_s3_through_fsspec_with_credentials_that_nobody_can_see(
    cluster: Local, s3: S3Store, secret_file: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = odd_files("train/")
    s3.fill("images", objects | {"other/not-this.bin": b"outside the prefix", "train/marker/": b""})
    credentials = {"endpoint_url": s3.endpoint, "key": f"env:{PASSED_ON}", "secret": f"file:{secret_file}"}
    cluster.run("dataset", "add", "s3", "s3://images/train", *_words(credentials), check=True)
    assert cluster.run_json("load", "s3", "--wait")["state"] == "SUCCEEDED"
    expected = {path.removeprefix("train/"): _sha256(data) for path, data in objects.items()}
    read_everything(cluster, "s3", expected, monkeypatch)

    shown = cluster.run_json("dataset", "show", "s3")
    _assert_cached(shown)
    assert shown["options"] == credentials
    everything = (
        cluster.run("dataset", "show", "s3", "--json").stdout + cluster.run("job", "ls", "--json").stdout
    )
    assert ACCESS_KEY not in everything and SECRET_KEY not in everything
    _assert_nowhere(cluster.state, ACCESS_KEY, SECRET_KEY)


def _words(options: Mapping[str, str]) -> list[str]:
    """Return the options as the command line takes them."""
    return [word for key, value in options.items() for word in ("--option", f"{key}={value}")]


def _assert_nowhere(state: pathlib.Path, *secrets: str) -> None:
    """No file of the cluster but what Mesos itself keeps of a task's environment has one of the secrets."""
    looked = [p for part in ("journal", "log", "scratch") for p in (state / part).rglob("*") if p.is_file()]
    looked += [p for p in (state / "mesos").rglob("*") if p.name in ("stdout", "stderr")]
    assert any("journal" in p.parts for p in looked) and any(p.name == "stderr" for p in looked)
    for path in looked:
        data = path.read_bytes()
        for secret in secrets:
            assert secret.encode() not in data, f"{path} has a secret in it"


def test_a_secret_that_executors_do_not_have_is_named_and_so_is_the_way_to_give_it_to_them(
    cluster: Local, s3: S3Store
) -> None:
    s3.fill("unforwarded", {"a.bin": b"a" * 1000})
    options = {"endpoint_url": s3.endpoint, "key": f"env:{KEPT_BACK}", "secret": "env:NOT_SET_ANYWHERE"}
    refused = cluster.run("dataset", "add", "lost", "s3://unforwarded", *_words(options))
    assert refused.returncode == 1
    assert "NOT_SET_ANYWHERE" in refused.stderr and "--executor-env" in refused.stderr

    cluster.add("lost", "s3://unforwarded", options=options | {"secret": f"env:{PASSED_ON}"})
    job = cluster.load("lost")
    assert job["state"] == "FAILED"
    assert [e["path"] for e in job["errors"]] == ["a.bin"]
    assert KEPT_BACK in job["errors"][0]["message"] and "--executor-env" in job["errors"][0]["message"]
    _assert_nowhere(cluster.state, LOST_KEY)
    cluster.client.delete_dataset("lost")


def test_a_secret_written_out_is_refused_and_kept_nowhere(cluster: Local) -> None:
    refused = cluster.run("dataset", "add", "plain", "s3://bucket", "--option", "secret=hunter2-hunter2")
    assert refused.returncode == 1
    assert "env:" in refused.stderr and "file:" in refused.stderr and "hunter2" not in refused.stderr
    for name in ("password", "client_kwargs.aws_session_token", "account_key"):
        with pytest.raises(ApiError, match="env:"):
            cluster.client.create_dataset("plain", "s3://bucket", options={name: "hunter2-hunter2"})
    assert "plain" not in [d["name"] for d in cluster.client.datasets()]
    _assert_nowhere(cluster.state, "hunter2-hunter2")


# --- HTTP


@pytest.mark.skipif(PROGRAM is None, reason=WHY_NOT)
def test_http_from_the_index_pages_of_nginx(
    cluster: Local, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "site"
    files = odd_files(
        "pub/", names=tuple(n for n in ODD_NAMES if not n.startswith("."))
    )  # nginx lists no dot files
    write_files(root, files)
    with nginx(root, tmp_path / "nginx") as url:
        add_and_load(cluster, "http", f"{url}pub/")
    expected = {path.removeprefix("pub/"): _sha256(data) for path, data in files.items()}
    read_everything(cluster, "http", expected, monkeypatch)  # nginx is gone: all of it comes from the cache


@pytest.mark.skipif(PROGRAM is None, reason=WHY_NOT)
def test_http_with_a_token_from_the_environment(cluster: Local, tmp_path: pathlib.Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "a.bin").write_bytes(content(1, 100_000))
    guard = f'if ($http_authorization != "{ACCESS_KEY}") {{ return 403; }}'
    with nginx(tmp_path / "site", tmp_path / "nginx", more=guard) as url:
        refused = cluster.run("dataset", "add", "guarded", url)
        assert refused.returncode == 1 and "403" in refused.stderr and "--option" in refused.stderr
        add_and_load(cluster, "guarded", url, headers=f'{{"Authorization": "env:{PASSED_ON}"}}')
    assert cluster.client.dataset("guarded").read("a.bin") == content(1, 100_000)
    _assert_nowhere(cluster.state, ACCESS_KEY)


# --- local


def test_local_names_links_empty_files_and_deep_directories(
    cluster: Local, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "da ta%20#?"
    files = odd_files()
    files["/".join(f"level{i}" for i in range(60)) + "/deep.bin"] = content(7, 10_000)
    files["new\nline.bin"] = content(8, 100)
    write_files(root, files)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "linked.bin").write_bytes(content(9, 20_000))
    (root / "file-link").symlink_to(tmp_path / "elsewhere" / "linked.bin")
    (root / "directory-link").symlink_to(tmp_path / "elsewhere")
    (root / "link-to-nothing").symlink_to(tmp_path / "not-there")
    (root / "directory-link-up").symlink_to(root)
    (root / "empty-directory").mkdir()
    os.mkfifo(root / "pipe")
    add_and_load(cluster, "local", str(root))
    expected = {path: _sha256(data) for path, data in files.items()}
    expected |= dict.fromkeys(("file-link", "directory-link/linked.bin"), _sha256(content(9, 20_000)))
    read_everything(cluster, "local", expected, monkeypatch)


def test_one_file_and_a_file_url_are_sources_too(
    cluster: Local, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(tmp_path / "d", {"one.bin": content(1, 70_000), "sub/two.bin": content(2, 10)})
    add_and_load(cluster, "one-file", str(tmp_path / "d" / "one.bin"))
    read_everything(cluster, "one-file", {"one.bin": _sha256(content(1, 70_000))}, monkeypatch)
    add_and_load(cluster, "file-url", f"file://{tmp_path}/d/")
    read_everything(cluster, "file-url", digests(tmp_path / "d"), monkeypatch)


def test_any_other_fsspec_protocol_is_a_source(
    cluster: Local, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import zipfile

    files = {"a.bin": content(1, 30_000), "sub dir/b#.bin": content(2, 300_000)}
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        for path, data in files.items():
            archive.writestr(path, data)
    add_and_load(cluster, "zip", f"zip://::file://{tmp_path}/archive.zip")
    read_everything(cluster, "zip", {path: _sha256(data) for path, data in files.items()}, monkeypatch)

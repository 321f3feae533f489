"""Whatever people give that is wrong gets one clear line that says what to do, the right exit code, and changes nothing."""

from __future__ import annotations

import hashlib
import json
import pathlib
import urllib.parse
from collections.abc import Iterator

import click.testing
import fsspec
import pytest

from stoker.framework.cli.main import main
from support import steady as steady_support
from support.files import content, digests, make_files
from support.local import Local, run_stoker
from support.ports import refusing_port
from support.privileges import can_read
from support.raw import ask, post
from support.steady import state_of, steady_cluster
from support.waiting import wait_until

pytestmark = pytest.mark.integration

TRAVERSALS = ("..", "../x", "a/../b", "/etc/passwd", "./a", "a//b", "a/.", "a\0b", "x" * 10_000)


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Local, pathlib.Path]]:
    with steady_cluster(tmp_path_factory.mktemp("steady")) as running:
        yield running


@pytest.fixture(scope="module")
def cluster(steady: tuple[Local, pathlib.Path]) -> Local:
    return steady[0]


@pytest.fixture(scope="module")
def root(steady: tuple[Local, pathlib.Path]) -> pathlib.Path:
    return steady[1]


@pytest.fixture
def unchanged(cluster: Local) -> Iterator[None]:
    """The test must leave the cluster's state as it was."""
    with steady_support.unchanged(cluster):
        yield


def _remove(local: Local, *names: str) -> None:
    """Remove datasets and wait until nothing is left of them in any executor."""
    for name in names:
        local.client.delete_dataset(name)
    held = lambda: {d["name"] for e in local.client.executors() for d in e["datasets"]}  # noqa: E731
    wait_until(lambda: held().isdisjoint(names), "the cache to be freed")


def _one_line(text: str) -> str:
    """Return the one line that `text` is."""
    lines = text.strip().splitlines()
    assert len(lines) == 1, text
    assert "Traceback" not in text
    return lines[0]


# --- sources


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("gopher://host/data", ["unknown scheme gopher://", "s3", "https"]),
        ("relative/path", ["not a source", "absolute path"]),
        ("s3:/bucket", ["not a source", "SCHEME://"]),
        ("/somewhere/../etc", ["without '..'"]),
        ("https://user:password@host/", ["password", "--option"]),
        ("/not/there/at/all", ["/not/there/at/all", "not there"]),
        ("http://127.0.0.1:9/data/", ["127.0.0.1:9", "cannot list"]),
        ("/" + "x" * 10_000, ["at most"]),
    ],
)
def test_a_source_that_is_none_or_not_there(cluster: Local, source: str, words: list[str]) -> None:
    refused = cluster.run("dataset", "add", "bad", source)
    assert refused.returncode == 1
    line = _one_line(_errors_of(refused.stderr))
    assert line.startswith("stoker: ") and all(word in line for word in words), line


def _errors_of(stderr: str) -> str:
    return "\n".join(line for line in stderr.splitlines() if line.startswith("stoker:"))


@pytest.mark.usefixtures("unchanged")
def test_an_empty_source(cluster: Local, tmp_path: pathlib.Path) -> None:
    (tmp_path / "empty" / "only" / "directories").mkdir(parents=True)
    refused = cluster.run("dataset", "add", "empty", str(tmp_path / "empty"))
    assert refused.returncode == 1
    line = _one_line(refused.stderr)
    assert "no files" in line and "right path" in line and str(tmp_path / "empty") in line


@pytest.mark.usefixtures("unchanged")
def test_a_directory_that_may_not_be_read(cluster: Local, tmp_path: pathlib.Path) -> None:
    closed = tmp_path / "data" / "closed"
    closed.mkdir(parents=True)
    (tmp_path / "data" / "open.bin").write_bytes(b"x")
    closed.chmod(0)
    _require_modes(closed)
    refused = cluster.run("dataset", "add", "closed", str(tmp_path / "data"))
    assert refused.returncode == 1
    line = _one_line(refused.stderr)
    assert str(closed) in line and "Permission denied" in line


def test_a_file_that_may_not_be_read_fails_the_load_by_its_name_and_nothing_else(
    cluster: Local, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "open.bin").write_bytes(content(1, 50_000))
    (tmp_path / "closed.bin").write_bytes(content(2, 50_000))
    (tmp_path / "closed.bin").chmod(0)
    _require_modes(tmp_path / "closed.bin")
    cluster.add("half", str(tmp_path))
    loaded = cluster.run("load", "half", "--wait")
    assert loaded.returncode == 1
    assert "closed.bin" in loaded.stdout and "Permission denied" in loaded.stdout
    assert "FAILED" in _one_line(loaded.stderr) and "closed.bin" in loaded.stderr
    dataset = cluster.client.dataset("half")
    assert dataset.read("open.bin") == content(1, 50_000)
    with pytest.raises(OSError, match=r"closed\.bin.*Permission denied"):
        dataset.read("closed.bin")
    _remove(cluster, "half")


def _require_modes(path: pathlib.Path) -> None:
    if can_read(path):
        pytest.skip("file modes do not bind this user, and it cannot give that up (no CAP_SETPCAP)")


# --- names and sizes


@pytest.mark.usefixtures("unchanged")
def test_a_name_that_is_taken(cluster: Local, root: pathlib.Path, tmp_path: pathlib.Path) -> None:
    refused = cluster.run("dataset", "add", "good", str(tmp_path))
    assert refused.returncode == 1
    line = _one_line(refused.stderr)
    assert "'good' exists" in line and str(root) in line and "stoker dataset rm good" in line
    clash = post(cluster.url, "/v1/datasets", {"name": "good", "source": f"file://{root}", "replicas": 2})
    assert (clash.status, clash.error["code"]) == (409, "exists_differently")
    again = post(cluster.url, "/v1/datasets", {"name": "good", "source": f"file://{root}"})
    assert again.status == 200, "the same again is no clash"


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    "name", ["", "A", "a/b", "../good", "/good", "good@1", "-x", "a b", "é", "a\0b", "x" * 10_000]
)
def test_a_name_that_is_none(cluster: Local, name: str, root: pathlib.Path) -> None:
    added = post(cluster.url, "/v1/datasets", {"name": name, "source": str(root)})
    assert (added.status, added.error["code"]) == (400, "bad_request")
    assert "63" in added.error["hint"] or "not text" in added.error["message"]
    assert len(added.error["message"]) < 300
    loaded = post(cluster.url, "/v1/jobs", {"kind": "load", "dataset": name})
    assert (loaded.status, loaded.error["code"]) == (400, "bad_request")
    if len(name) < 1000 and name:
        for method in ("GET", "PATCH", "DELETE"):
            at = f"/v1/datasets/{urllib.parse.quote(name, safe='')}"
            named = ask(cluster.url, method, at, b'{"replicas": 2}' if method == "PATCH" else None)
            assert named.status in (400, 404, 405) and named.error["message"]


@pytest.mark.usefixtures("unchanged")
def test_a_name_on_the_command_line_that_is_none(cluster: Local, root: pathlib.Path) -> None:
    for name in ("../good", "x" * 10_000):
        for command in (["dataset", "add", name, str(root)], ["load", name], ["dataset", "rm", name]):
            refused = cluster.run(*command)
            assert refused.returncode == 1
            assert len(_one_line(refused.stderr)) < 500


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("path", TRAVERSALS)
def test_a_path_that_leads_out_of_the_dataset(cluster: Local, path: str) -> None:
    for kind in ("load", "free"):
        refused = post(cluster.url, "/v1/jobs", {"kind": kind, "dataset": "good", "paths": ["d1", path]})
        assert (refused.status, refused.error["code"]) == (400, "bad_request")
        assert len(refused.error["message"]) < 300


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("path", [p for p in TRAVERSALS if p not in ("/etc/passwd", "a/.")])
def test_a_path_that_leads_out_of_the_dataset_is_no_file_for_readers(
    cluster: Local, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STOKER_URL", cluster.url)
    with pytest.raises(FileNotFoundError):
        cluster.client.dataset("good").read(path)
    with pytest.raises(FileNotFoundError):
        fsspec.filesystem("stoker").cat_file(f"good/{path}")


@pytest.mark.usefixtures("unchanged")
def test_paths_that_are_not_there(cluster: Local) -> None:
    refused = cluster.run("load", "good", "d1", "no/such/file")
    assert refused.returncode == 1
    assert "no/such/file" in _one_line(refused.stderr)
    assert cluster.run("explain", "good/no/such/file").returncode == 1
    missing = cluster.run("load", "nobody")
    assert missing.returncode == 1 and "stoker dataset ls" in _one_line(missing.stderr)
    assert "stoker job ls" in _one_line(cluster.run("job", "cancel", "j0000009999").stderr)


def test_more_than_the_fleet_can_hold_is_refused_before_the_first_byte(
    cluster: Local, tmp_path: pathlib.Path
) -> None:
    with open(tmp_path / "sparse.bin", "wb") as file:
        file.truncate(2**30)
    cluster.add("huge", str(tmp_path))
    before = state_of(cluster)
    refused = cluster.run("load", "huge")
    assert refused.returncode == 1
    line = _one_line(refused.stderr)
    assert "1.0 GiB" in line and "--fit" in line and "fleet set" in line
    planned = cluster.run("load", "huge", "--plan", "--json")
    assert planned.returncode == 1
    plan = json.loads(planned.stdout)
    assert plan["fits"] is False and plan["bytes"] == 2**30
    capacity = sum(e["capacity_bytes"] for e in cluster.client.executors())
    assert plan["capacity_bytes"] == capacity, "what executors really have"
    assert state_of(cluster) == before
    _remove(cluster, "huge")


def test_a_full_tier_refuses_a_load_keeps_what_is_wanted_and_still_serves_the_rest(
    cluster: Local, tmp_path: pathlib.Path
) -> None:
    capacity = sum(e["capacity_bytes"] for e in cluster.client.executors())
    for name, seed in (("first", 1), ("second", 2)):
        make_files(tmp_path / name, 20, size_min=capacity // 32, size_max=capacity // 32, seed=seed)
        cluster.add(name, str(tmp_path / name))
    assert cluster.load("first")["state"] == "SUCCEEDED"
    before = state_of(cluster)
    refused = cluster.run("load", "second", "--wait")
    assert refused.returncode == 1 and "free something" in _one_line(refused.stderr)
    assert state_of(cluster) == before
    for name in ("second", "first"):
        dataset = cluster.client.dataset(name)
        got = {path: hashlib.sha256(dataset.read(path)).hexdigest() for path in dataset.paths}
        assert got == digests(tmp_path / name)
    assert cluster.client.dataset_info("first")["cached_ratio"] == 1.0, "what a load brought in stays"
    assert cluster.client.dataset_info("good")["cached_ratio"] == 1.0
    assert all(e["used_bytes"] <= e["capacity_bytes"] for e in cluster.client.executors())
    _remove(cluster, "first", "second")


# --- the command line


@pytest.mark.parametrize(
    "words",
    [
        ["bogus"],
        ["--bogus"],
        ["dataset"],
        ["dataset", "add"],
        ["dataset", "add", "name"],
        ["dataset", "add", "name", "/data", "--bogus"],
        ["dataset", "add", "name", "/data", "--replicas", "many"],
        ["dataset", "add", "name", "/data", "--replicas", "0"],
        ["dataset", "add", "name", "/data", "--policy", "random"],
        ["dataset", "add", "name", "/data", "--option", "no-equals-sign"],
        ["dataset", "show"],
        ["load"],
        ["load", "good", "--bogus"],
        ["job", "show"],
        ["fleet", "set"],
        ["fleet", "set", "--instances", "-1"],
        ["fleet", "set", "--mem", "lots"],
        ["explain"],
        ["explain", "good", "--offers"],
        ["local", "--agents", "0"],
        ["local", "--agents", "two"],
        ["local", "--mem", "lots"],
        ["local", "--port", "99999"],
        ["local", "extra"],
        ["scheduler"],
        ["scheduler", "--master", "h:5050", "--journal", "not-a-journal"],
        ["scheduler", "--master", "h:not-a-port", "--journal", "file:/tmp/x"],
        ["mesos", "--agents", "0"],
        ["demo", "--store-delay", "soon"],
    ],
    ids=" ".join,
)
@pytest.mark.usefixtures("unchanged")
def test_wrong_usage_exits_with_2_and_says_what_is_allowed(cluster: Local, words: list[str]) -> None:
    """In this process: a new one each would be most of the module's time, and none of the test."""
    done = click.testing.CliRunner().invoke(main, words, env={"STOKER_URL": cluster.url})
    assert done.exit_code == 2, done
    assert "Usage:" in done.output and "Traceback" not in done.output


@pytest.mark.usefixtures("unchanged")
def test_an_unknown_option_exits_with_2_for_real(cluster: Local) -> None:
    done = cluster.run_process("dataset", "add", "name", "/data", "--bogus")
    assert done.returncode == 2 and done.stdout == ""
    assert "--bogus" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("url", ["", "ftp://host", "http://", "127.0.0.1:7070"])
def test_an_url_that_is_none_is_wrong_usage(url: str) -> None:
    done = run_stoker("dataset", "ls", "--url", url, environment={"STOKER_URL": ""})
    assert done.returncode == 2
    assert "http://" in done.stderr and "Traceback" not in done.stderr


def test_a_scheduler_that_does_not_answer_is_a_failure(tmp_path: pathlib.Path) -> None:
    with refusing_port() as port:
        done = run_stoker("dataset", "ls", environment={"STOKER_URL": f"http://127.0.0.1:{port}"})
    assert done.returncode == 1
    line = _one_line(done.stderr)
    assert str(port) in line and "STOKER_URL" in line


def test_a_web_server_that_is_no_scheduler_is_a_failure(cluster: Local) -> None:
    done = run_stoker("dataset", "ls", environment={"STOKER_URL": _mesos_url(cluster)})
    assert done.returncode == 1
    assert "Stoker" in _one_line(done.stderr)


def _mesos_url(cluster: Local) -> str:
    master: str = cluster.client.leader()["master"]
    return master if "://" in master else f"http://{master}"


def test_a_state_that_is_no_directory(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    done = run_stoker("local", "--state", str(tmp_path / "file"), "--port", "0")
    assert done.returncode in (1, 2) and str(tmp_path / "file") in done.stderr
    assert "Traceback" not in done.stderr

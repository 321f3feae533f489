"""Whatever is wrong gets one clear line that says what to do, the right exit code or HTTP status, and changes nothing."""

from __future__ import annotations

import hashlib
import json
import pathlib
import random
import socket
import time
import urllib.parse
from collections.abc import Iterator
from typing import Any

import click.testing
import fsspec
import pytest

from stoker.client.placement import Placement, placement_from
from stoker.executor import wire
from stoker.executor.messages import SlotAddress
from stoker.framework.cli.main import main
from support.files import content, digests, make_files
from support.local import Local, local_cluster, run_stoker, wait_for
from support.privileges import can_read, obey_file_modes
from support.raw import DataPort, ask, hello_for, post

pytestmark = pytest.mark.integration

SILENCE_TIMEOUT_S = 20
TRAVERSALS = ("..", "../x", "a/../b", "/etc/passwd", "./a", "a//b", "a/.", "a\0b", "x" * 10_000)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("bad-input") / "data"
    make_files(path, 30, size_min=0, size_max=100_000)
    return path


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, root: pathlib.Path) -> Iterator[Local]:
    state = tmp_path_factory.mktemp("bad-input") / "state"
    with local_cluster(state, "--agents", "2", "--mem", "32MiB", prepare=obey_file_modes) as local:
        local.wait_until_running(2)
        local.add("good", str(root))
        assert local.load("good")["state"] == "SUCCEEDED"
        yield local


@pytest.fixture
def unchanged(cluster: Local) -> Iterator[None]:
    """The test must leave the cluster's state as it was."""
    before = _state(cluster)
    yield
    assert _state(cluster) == before


def _state(local: Local) -> dict[str, Any]:
    """Return what the cluster holds, without what moves by itself."""
    client = local.client
    executors = []
    for executor in client.executors():
        kept = {key: executor[key] for key in ("slot", "launch", "state", "port", "pid")}
        held = [held for held in executor["datasets"] if held["bytes"]]
        executors.append({**kept, "datasets": held})
    return {
        "datasets": client.datasets(),
        "jobs": client.jobs(),
        "fleet": client.fleet(),
        "executors": executors,
        "leader": client.leader(),
    }


def _remove(local: Local, *names: str) -> None:
    """Remove datasets and wait until nothing is left of them in any executor."""
    for name in names:
        local.client.delete_dataset(name)
    held = lambda: {d["name"] for e in local.client.executors() for d in e["datasets"]}  # noqa: E731
    wait_for(lambda: held().isdisjoint(names), "the cache to be freed")


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
    before = _state(cluster)
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
    assert _state(cluster) == before
    _remove(cluster, "huge")


def test_a_full_tier_refuses_a_load_keeps_what_is_wanted_and_still_serves_the_rest(
    cluster: Local, tmp_path: pathlib.Path
) -> None:
    capacity = sum(e["capacity_bytes"] for e in cluster.client.executors())
    for name, seed in (("first", 1), ("second", 2)):
        make_files(tmp_path / name, 20, size_min=capacity // 32, size_max=capacity // 32, seed=seed)
        cluster.add(name, str(tmp_path / name))
    assert cluster.load("first")["state"] == "SUCCEEDED"
    before = _state(cluster)
    refused = cluster.run("load", "second", "--wait")
    assert refused.returncode == 1 and "free something" in _one_line(refused.stderr)
    assert _state(cluster) == before
    for name in ("second", "first"):
        dataset = cluster.client.dataset(name)
        got = {path: hashlib.sha256(dataset.read(path)).hexdigest() for path in dataset.paths}
        assert got == digests(tmp_path / name)
    assert cluster.client.dataset_info("first")["cached_ratio"] == 1.0, "what a load brought in stays"
    assert cluster.client.dataset_info("good")["cached_ratio"] == 1.0
    assert all(e["used_bytes"] <= e["capacity_bytes"] for e in cluster.client.executors())
    _remove(cluster, "first", "second")


# --- REST

_DATASET = {"name": "new", "source": "/data"}
_JOB = {"kind": "load", "dataset": "good"}


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", "/v1/datasets", b"", 400, "bad_request"),
        ("POST", "/v1/datasets", b"{", 400, "bad_request"),
        ("POST", "/v1/datasets", b'{"name": "new", "source": "/data"} trailing', 400, "bad_request"),
        ("POST", "/v1/datasets", b"\xff\xfe", 400, "bad_request"),
        ("POST", "/v1/datasets", b'{"name": "new", "name": "new2", "source": "/d"}', 400, "bad_request"),
        ("POST", "/v1/datasets", b'{"name": "new", "source": NaN}', 400, "bad_request"),
        ("POST", "/v1/datasets", b"[" * 100_000, 400, "bad_request"),
        ("POST", "/v1/datasets", b"[]", 400, "bad_request"),
        ("POST", "/v1/datasets", b"null", 400, "bad_request"),
        ("POST", "/v1/datasets", {"name": "new"}, 400, "bad_request"),
        ("POST", "/v1/datasets", {"name": 7, "source": "/data"}, 400, "bad_request"),
        ("POST", "/v1/datasets", {"name": "new", "source": None}, 400, "bad_request"),
        ("POST", "/v1/datasets", {"name": "new", "source": "gopher://host/data"}, 400, "bad_request"),
        ("POST", "/v1/datasets", {"name": "new", "source": ""}, 400, "bad_request"),
        ("POST", "/v1/datasets", {"name": "new", "source": "/da\0ta"}, 400, "bad_request"),
        ("POST", "/v1/datasets", b'{"name": "new", "source": "/\\ud800"}', 400, "bad_request"),
        ("POST", "/v1/datasets", _DATASET | {"replicas": "2"}, 400, "bad_request"),
        ("POST", "/v1/datasets", _DATASET | {"replicas": 2.0}, 400, "bad_request"),
        ("POST", "/v1/datasets", _DATASET | {"replicas": True}, 400, "bad_request"),
        ("POST", "/v1/datasets", _DATASET | {"replicas": 0}, 400, "bad_request"),
        ("POST", "/v1/datasets", _DATASET | {"replicas": 10**30}, 400, "bad_request"),
        ("POST", "/v1/datasets", _DATASET | {"policy": "random"}, 400, "bad_request"),
        ("POST", "/v1/datasets", _DATASET | {"tier": "tape"}, 400, "bad_request"),
        ("POST", "/v1/datasets", _DATASET | {"options": ["a"]}, 400, "bad_request"),
        ("POST", "/v1/datasets", _DATASET | {"options": {"a": 1}}, 400, "bad_request"),
        ("POST", "/v1/datasets", _DATASET | {"options": {"secret": "x" * 40}}, 400, "bad_request"),
        ("POST", "/v1/datasets", _DATASET | {"options": {"a": "x" * 100_000}}, 400, "bad_request"),
        ("POST", "/v1/datasets", _DATASET | {"owner": "me"}, 400, "unknown_field"),
        ("POST", "/v1/datasets", b" " * 2_000_000, 413, "too_large"),
        ("PATCH", "/v1/datasets/good", {"source": "/other"}, 400, "unknown_field"),
        ("PATCH", "/v1/datasets/good", {"priority": "high"}, 400, "bad_request"),
        ("PATCH", "/v1/datasets/nobody", {"replicas": 1}, 404, "not_found"),
        ("DELETE", "/v1/datasets/nobody", None, 404, "not_found"),
        ("GET", "/v1/datasets/nobody/placement", None, 404, "not_found"),
        ("GET", "/v1/datasets/nobody/manifest", None, 404, "not_found"),
        ("GET", "/v1/datasets/good/manifest?version=99", None, 404, "not_found"),
        ("GET", "/v1/datasets/good/manifest?version=one", None, 400, "bad_request"),
        ("GET", "/v1/datasets?limit=0", None, 400, "bad_request"),
        ("GET", "/v1/datasets?order=name", None, 400, "unknown_field"),
        ("POST", "/v1/jobs", {"kind": "delete", "dataset": "good"}, 400, "bad_request"),
        ("POST", "/v1/jobs", {"kind": "load"}, 400, "bad_request"),
        ("POST", "/v1/jobs", {"kind": "load", "dataset": "nobody"}, 404, "not_found"),
        ("POST", "/v1/jobs", _JOB | {"paths": "d1"}, 400, "bad_request"),
        ("POST", "/v1/jobs", _JOB | {"paths": [1]}, 400, "bad_request"),
        ("POST", "/v1/jobs", _JOB | {"paths": ["nothing/here"]}, 404, "not_found"),
        ("POST", "/v1/jobs", _JOB | {"paths": ["a"] * 100_000}, 400, "bad_request"),
        ("POST", "/v1/jobs", _JOB | {"fit": "yes"}, 400, "bad_request"),
        ("POST", "/v1/jobs", _JOB | {"force": True}, 400, "unknown_field"),
        ("GET", "/v1/jobs/j0000009999", None, 404, "not_found"),
        ("DELETE", "/v1/jobs/j0000009999", None, 404, "not_found"),
        ("GET", "/v1/jobs/../../etc/passwd", None, 404, "not_found"),
        ("PUT", "/v1/fleet", {"instances": -1, "mem_bytes": 2**30}, 400, "bad_request"),
        ("PUT", "/v1/fleet", {"instances": 2}, 400, "bad_request"),
        ("PUT", "/v1/fleet", {"instances": 2, "mem_bytes": 1}, 400, "bad_request"),
        ("PUT", "/v1/fleet", {"instances": 2, "mem_bytes": 2**30, "gpus": 1}, 400, "unknown_field"),
        ("GET", "/v1/nothing", None, 404, "not_found"),
        ("DELETE", "/v1/datasets", None, 405, "method_not_allowed"),
        ("POST", "/v1/executors/heartbeat", b"garbage", 400, "bad_request"),
        ("POST", "/v1/executors/heartbeat", b"\x80", 400, "bad_request"),
    ],
)
def test_a_request_that_is_wrong(
    cluster: Local, method: str, path: str, body: Any, status: int, code: str
) -> None:
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    reply = ask(cluster.url, method, path, data)
    assert (reply.status, reply.error.get("code")) == (status, code), reply
    assert 0 < len(reply.error["message"]) < 400 and "\n" not in reply.error["message"]


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("key", ["", "x" * 1_000, "caf\xe9"])
def test_an_idempotency_key_that_is_none(cluster: Local, key: str) -> None:
    reply = post(cluster.url, "/v1/jobs", _JOB, {"Idempotency-Key": key})
    assert (reply.status, reply.error["code"]) == (400, "bad_request")
    assert "Idempotency-Key" in reply.error["message"]


def test_an_idempotency_key_with_another_body(cluster: Local) -> None:
    key = {"Idempotency-Key": f"key-{random.random()}"}
    first = post(cluster.url, "/v1/jobs", _JOB, key)
    assert first.status == 201
    cluster.finish(first.body)
    assert post(cluster.url, "/v1/jobs", _JOB, key).status == 200
    before = len(cluster.client.jobs())
    reply = post(cluster.url, "/v1/jobs", _JOB | {"paths": ["d1"]}, key)
    assert (reply.status, reply.error["code"]) == (409, "key_reused")
    assert len(cluster.client.jobs()) == before


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(200)),
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon here\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X-Header: y\r\n" * 10_000 + b"\r\n",
        b"POST /v1/datasets HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/datasets HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n",
        b"POST /v1/datasets HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /v1/datasets HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
    ],
    ids=lambda data: repr(data[:24]),
)
def test_bytes_that_are_no_http(cluster: Local, data: bytes) -> None:
    address = urllib.parse.urlsplit(cluster.url)
    with socket.create_connection((address.hostname or "", address.port or 0), timeout=30) as connection:
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        except OSError:
            answer = b""  # cut off before it was read to its end
    assert not answer or answer.startswith(b"HTTP/1.1 4"), answer[:200]
    assert b"Traceback" not in answer


# --- the data port


@pytest.fixture
def placed(cluster: Local) -> tuple[Placement, SlotAddress]:
    placement = placement_from(cluster.client.placement("good"))
    index = cluster.client.dataset("good").blocks()[0]
    return placement, placement.candidates(index, "")[0]


def _assert_serves(placed: tuple[Placement, SlotAddress]) -> None:
    placement, address = placed
    with DataPort(address) as port:
        assert port.greet(hello_for(placement, address)).status == wire.HelloStatus.OK
        port.send(wire.encode_request(wire.Op.PING, [], request_id=1))
        assert port.answer() == (wire.Status.OK, b"")


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: somebody-else\r\nAccept: */*\r\n" + b"X-Padding: x\r\n" * 10 + b"\r\n",
        random.Random(1).randbytes(100_000),
        b"\0" * wire.HELLO_BYTES,
        wire.MAGIC + b"\xff" * (wire.HELLO_BYTES - 4),
    ],
    ids=["http", "noise", "zeros", "ones"],
)
def test_a_garbage_hello_is_told_what_this_port_is(
    placed: tuple[Placement, SlotAddress], data: bytes, unix: bool
) -> None:
    with DataPort(placed[1], unix=unix) as port:
        port.send(data)
        try:
            answer = port.hello_answer()
            assert answer.status in (wire.HelloStatus.BAD_HELLO, wire.HelloStatus.VERSION) and answer.detail
        except ConnectionResetError:
            pass  # what it did not read any more made the kernel say so
        assert port.is_ended()
    _assert_serves(placed)


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    ("change", "status", "word"),
    [
        ({"version_min": 7, "version_max": 9}, wire.HelloStatus.VERSION, "protocol 1"),
        ({"version_min": 0, "version_max": 0}, wire.HelloStatus.VERSION, "protocol 1"),
        ({"cluster": bytes(16)}, wire.HelloStatus.CLUSTER, "another cluster"),
        ({"launch_id": 4711}, wire.HelloStatus.LAUNCH, "launch"),
        ({"incarnation": 4711}, wire.HelloStatus.LAUNCH, "incarnation"),
        ({"dataset_id": 4711}, wire.HelloStatus.DATASET, "4711"),
        ({"generation": 4711}, wire.HelloStatus.DATASET, "4711"),
    ],
)
def test_a_wrong_hello_is_refused_by_what_is_wrong(
    placed: tuple[Placement, SlotAddress], change: dict[str, Any], status: wire.HelloStatus, word: str
) -> None:
    placement, address = placed
    with DataPort(address) as port:
        answer = port.greet(hello_for(placement, address)._replace(**change))
        assert answer.status == status and word in answer.detail, answer
        assert (answer.cluster, answer.launch_id, answer.incarnation) == (
            placement.cluster,
            address.launch_id,
            address.incarnation,
        )
        assert port.is_ended()
    _assert_serves(placed)


@pytest.mark.usefixtures("unchanged")
def test_a_hello_for_a_version_that_is_not_known_yet_waits_or_is_refused_in_words(
    placed: tuple[Placement, SlotAddress],
) -> None:
    placement, address = placed
    with DataPort(address) as port:
        hello = hello_for(placement, address)._replace(dataset_version=4711)
        assert port.greet(hello).status in (wire.HelloStatus.DATASET, wire.HelloStatus.OK)
    _assert_serves(placed)


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    ("request_bytes", "word"),
    [
        (wire.REQUEST.pack(99, 0, 0, 1, 0), "99"),
        (wire.REQUEST.pack(wire.Op.READ, 0, 0, 1, 0), "READ"),
        (wire.REQUEST.pack(wire.Op.READ, 0, wire.RANGES_MAX + 1, 1, 0), "ranges"),
        (wire.REQUEST.pack(wire.Op.READ, 0, 1, 1, 5) + wire.RANGE.pack(0, 0, 7), "equal"),
        (wire.REQUEST.pack(wire.Op.READ, 0, 1, 1, 2**31) + wire.RANGE.pack(0, 0, 2**31), "at most"),
        (wire.REQUEST.pack(wire.Op.CRCS, 0, 0, 1, 0), "CRCS"),
        (wire.REQUEST.pack(wire.Op.DESCRIPTORS, 0, 1, 1, 0) + wire.RANGE.pack(0, 0, 0), "Unix"),
    ],
)
def test_a_garbage_request_is_refused_and_the_connection_ends(
    placed: tuple[Placement, SlotAddress], request_bytes: bytes, word: str
) -> None:
    placement, address = placed
    with DataPort(address) as port:
        assert port.greet(hello_for(placement, address)).status == wire.HelloStatus.OK
        port.send(request_bytes)
        status, message = port.answer()
        assert status == wire.Status.BAD_REQUEST and word in message.decode()
        assert port.is_ended()
    _assert_serves(placed)


@pytest.mark.usefixtures("unchanged")
def test_a_range_outside_of_the_dataset_fails_by_itself(placed: tuple[Placement, SlotAddress]) -> None:
    placement, address = placed
    dataset_blocks = [(2**31, 0, 10), (0, placement.block_bytes - 5, 10), (0, 0, 10)]
    with DataPort(address) as port:
        assert port.greet(hello_for(placement, address)).status == wire.HelloStatus.OK
        port.send(wire.encode_request(wire.Op.READ, dataset_blocks, request_id=1))
        fields = wire.ANSWER.unpack(port.receive(wire.ANSWER.size))
        assert fields[1:3] == (wire.Status.OK, 2)
        port.receive(fields[4])
        port.send(wire.encode_request(wire.Op.PING, [], request_id=2))
        assert port.answer() == (wire.Status.OK, b"")


@pytest.mark.usefixtures("unchanged")
def test_callers_that_connect_and_say_nothing_are_cut_off_and_others_are_served(
    cluster: Local, placed: tuple[Placement, SlotAddress]
) -> None:
    placement, address = placed
    half = wire.encode_hello(hello_for(placement, address))[:20]
    silent = [DataPort(address) for _ in range(20)] + [DataPort(address, unix=True) for _ in range(20)]
    for port in silent[::2]:
        port.send(half)
    api = urllib.parse.urlsplit(cluster.url)
    with socket.create_connection((api.hostname or "", api.port or 0), timeout=SILENCE_TIMEOUT_S) as slow:
        slow.sendall(b"GET /v1/datasets HTTP/1.1\r\nHost:")
        started = time.monotonic()
        _assert_serves(placed)
        cluster.client.leader()
        assert time.monotonic() - started < wire.HELLO_TIMEOUT_MS / 1000, "nobody waits for the silent ones"
        for port in silent:
            with port:
                port.socket.settimeout(SILENCE_TIMEOUT_S)
                assert port.is_ended()
        assert slow.recv(1000) == b"" or "a refusal in words"
    assert time.monotonic() - started < SILENCE_TIMEOUT_S


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
    done = cluster.run("dataset", "add", "name", "/data", "--bogus")
    assert done.returncode == 2 and done.stdout == ""
    assert "--bogus" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("url", ["", "ftp://host", "http://", "127.0.0.1:7070", "zk://host/stoker"])
def test_an_url_that_is_none_is_wrong_usage(url: str) -> None:
    done = run_stoker("dataset", "ls", "--url", url, environment={"STOKER_URL": ""})
    assert done.returncode == 2
    assert "http://" in done.stderr and "Traceback" not in done.stderr


def test_a_scheduler_that_does_not_answer_is_a_failure(tmp_path: pathlib.Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
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

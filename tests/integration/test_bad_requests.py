"""Requests and bytes that are wrong, to the API and to a data port: each gets its refusal, and nobody else is hurt."""

from __future__ import annotations

import json
import pathlib
import random
import socket
import urllib.parse
from collections.abc import Iterator
from typing import Any

import pytest

from stoker.client.placement import Placement, placement_from
from stoker.executor import wire
from stoker.executor.messages import SlotAddress
from support import steady as steady_support
from support.local import Local
from support.raw import TIMEOUT_S, DataPort, ask, hello_for, post
from support.steady import steady_cluster

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Local, pathlib.Path]]:
    with steady_cluster(tmp_path_factory.mktemp("steady")) as running:
        yield running


@pytest.fixture(scope="module")
def cluster(steady: tuple[Local, pathlib.Path]) -> Local:
    return steady[0]


@pytest.fixture
def unchanged(cluster: Local) -> Iterator[None]:
    """The test must leave the cluster's state as it was."""
    with steady_support.unchanged(cluster):
        yield


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
    with socket.create_connection(
        (address.hostname or "", address.port or 0), timeout=TIMEOUT_S
    ) as connection:
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
    with socket.create_connection((api.hostname or "", api.port or 0), timeout=TIMEOUT_S) as slow:
        slow.sendall(b"GET /v1/datasets HTTP/1.1\r\nHost:")
        _assert_serves(placed)  # nobody waits for the silent ones: all of them together would take minutes
        cluster.client.leader()
        for port in silent:
            with port:
                assert port.is_ended()
        said = slow.recv(1000)
        assert said == b"" or said.startswith((b"HTTP/1.1 400", b"HTTP/1.1 408")), said

"""A real scheduler process on the embedded Mesos with a local journal; the executors hold nothing, but are processes."""

from __future__ import annotations

import http.client
import os
import pathlib
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from support.embedded import EmbeddedProcess
from support.ports import fixed_port, refusing_port
from support.schedulers import Api, SchedulerProcess, scheduler_process
from support.waiting import DEADLINE_S, wait_until

pytestmark = pytest.mark.integration

EXECUTOR = pathlib.Path(__file__).parents[1] / "support" / "heartbeat_executor.py"
QUICK = {
    "tick_ms": 100,
    "heartbeat_timeout_ms": 15_000,
    "residency_grace_ms": 10_000,
    "revive_interval_ms_min": 500,
}


@pytest.fixture(scope="module")
def mesos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedProcess]:
    work = tmp_path_factory.mktemp("embedded") / "mesos"
    with EmbeddedProcess(work, "--agents", "2", "--cpus", "2", "--mem", "1GiB") as process:
        yield process


@pytest.fixture
def config(mesos: EmbeddedProcess, tmp_path: pathlib.Path) -> dict[str, Any]:
    return {
        "master": mesos.address,
        "journal": f"file:{tmp_path / 'journal'}",
        "instances": 2,
        "mem_bytes": 64 << 20,
        "allow_sources": [""],
        "executor_command": f"exec {sys.executable} {EXECUTOR}",
        "failover_timeout_ms": 600_000,
        "new_cluster": True,  # the Mesos that all tests share knows those before
        "settings": QUICK,
    }


@pytest.fixture
def source(tmp_path: pathlib.Path) -> pathlib.Path:
    root = tmp_path / "source"
    for name in ("a", "dir/b"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name * 1000)
    return root


def running(api: Api) -> list[dict[str, Any]]:
    return [e for e in api.get("/v1/executors")["executors"] if e["state"] == "RUNNING"]


def lead_tries(api: Api) -> float:
    lines = api.call("GET", "/metrics")[1].decode().splitlines()
    return float(next(line for line in lines if line.startswith("stoker_lead_tries_total")).split()[1])


def in_threads(count: int, function: Any) -> list[Any]:
    """Return what `function(i)` returned in each of `count` threads that began at once."""
    barrier, results = threading.Barrier(count), [None] * count

    def run(i: int) -> None:
        barrier.wait()
        results[i] = function(i)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    return results


def test_executors_are_launched_and_outlive_a_kill_of_the_scheduler(
    config: dict[str, Any], mesos: EmbeddedProcess, tmp_path: pathlib.Path
) -> None:
    config = config | {"port": fixed_port()}  # executors look for it there
    with scheduler_process(config, tmp_path / "log") as first:
        api = first.wait_leading()
        wait_until(lambda: len(running(api)) == 2, what="two executors")
        before = {e["slot"]: (e["launch"], e["pid"], e["agent_id"]) for e in running(api)}
        leader = api.get("/v1/leader")
        assert leader["epoch"] == 1 and leader["framework_id"]
        first.stop(signal.SIGKILL)
    with scheduler_process(config, tmp_path / "log") as second:
        api = second.wait_leading()
        wait_until(lambda: len(running(api)) == 2, what="two executors again")
        assert {e["slot"]: (e["launch"], e["pid"], e["agent_id"]) for e in running(api)} == before, (
            "adopted, not relaunched"
        )
        after = api.get("/v1/leader")
        assert (after["framework_id"], after["cluster"], after["epoch"]) == (
            leader["framework_id"],
            leader["cluster"],
            2,
        )
        frameworks = [f for f in mesos.state()["frameworks"] if f["id"] == leader["framework_id"]]
        assert len(frameworks) == 1
        api.call("PUT", "/v1/fleet", {"instances": 0, "mem_bytes": 64 << 20})
        wait_until(lambda: not api.get("/v1/executors")["executors"], what="an empty fleet")
        assert second.stop() == 0
    assert "TEARDOWN" not in second.said() and "Traceback" not in second.said()


def test_an_executor_that_is_killed_is_launched_again(config: dict[str, Any], tmp_path: pathlib.Path) -> None:
    with scheduler_process(config, tmp_path / "log") as process:
        api = process.wait_leading()
        wait_until(lambda: len(running(api)) == 2, what="two executors")
        victim = running(api)[0]
        os.kill(victim["pid"], signal.SIGKILL)
        wait_until(
            lambda: len(running(api)) == 2 and victim["launch"] not in {e["launch"] for e in running(api)},
            what="a new launch",
        )
        api.call("PUT", "/v1/fleet", {"instances": 0, "mem_bytes": 64 << 20})
        wait_until(lambda: not api.get("/v1/executors")["executors"], what="an empty fleet")
        assert process.stop() == 0


def test_datasets_survive_and_writers_do_not_trip_each_other(
    config: dict[str, Any], source: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    config = config | {"instances": 0}
    with scheduler_process(config, tmp_path / "log") as process:
        api = process.wait_leading()
        bodies = [{"name": "one", "source": str(source)}, {"name": "one", "source": str(source / "dir")}]
        answers = in_threads(2, lambda i: api.call("POST", "/v1/datasets", bodies[i]))
        assert sorted(status for status, _ in answers) == [201, 409]
        added = in_threads(
            50, lambda i: api.call("POST", "/v1/datasets", {"name": f"d{i % 25}", "source": str(source)})
        )
        assert sorted(status for status, _ in added) == [200] * 25 + [201] * 25
        ids = [view["id"] for _, view in added]
        assert all(ids[i] == ids[i + 25] for i in range(25)) and len(set(ids)) == 25
        wait_until(
            lambda: all(d["state"] == "READY" for d in api.get("/v1/datasets")["datasets"]), what="all listed"
        )
        process.stop(signal.SIGKILL)
    with scheduler_process(config, tmp_path / "log") as process:
        api = process.wait_leading()
        datasets = {d["name"]: d for d in api.get("/v1/datasets")["datasets"]}
        assert set(datasets) == {"one", *(f"d{i}" for i in range(25))}
        assert all(d["files"] == 2 for name, d in datasets.items() if name != "one")
        assert api.call("GET", "/v1/datasets/d7/manifest")[0] == 200
        assert process.stop() == 0
    assert "Traceback" not in process.said()


def test_a_kill_amid_writes_loses_nothing_that_was_acknowledged(
    config: dict[str, Any], source: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    config = config | {"instances": 0}
    acknowledged: list[str] = []
    unknown: list[str] = []  # asked for without an answer that says yes
    with scheduler_process(config, tmp_path / "log") as process:
        api = process.wait_leading()
        stop = threading.Event()

        def write(writer: int) -> None:
            number = 0
            while not stop.is_set():
                name = f"w{writer}-{number}"
                unknown.append(name)
                try:
                    status, _ = api.call("POST", "/v1/datasets", {"name": name, "source": str(source)})
                except (OSError, http.client.HTTPException):
                    return  # it was killed under us
                if status == 201:
                    acknowledged.append(name)
                    unknown.remove(name)
                number += 1

        writers = [threading.Thread(target=write, args=(i,)) for i in range(4)]
        for thread in writers:
            thread.start()
        wait_until(lambda: len(acknowledged) > 60, what="some writes")
        process.stop(signal.SIGKILL)
        stop.set()
        for thread in writers:
            thread.join(DEADLINE_S)
    with scheduler_process(config, tmp_path / "log") as process:
        api = process.wait_leading()
        names = {d["name"] for d in api.get("/v1/datasets")["datasets"]}
        assert set(acknowledged) <= names
        assert names - set(acknowledged) <= set(unknown)
        process.stop()


def failed(config: dict[str, Any], log: pathlib.Path) -> tuple[int, str]:
    process = SchedulerProcess(config, log)
    status = process.child.wait(timeout=DEADLINE_S)
    process.stop()
    return status, process.said()


def test_a_second_scheduler_on_one_journal_or_port_ends_with_a_clear_line(
    config: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    config = config | {"instances": 0}
    with scheduler_process(config, tmp_path / "log") as first:
        api = first.wait_leading()
        status, said = failed(config, tmp_path / "second")
        assert status == 1 and "is open in process" in said.splitlines()[-1] and "Traceback" not in said
        status, said = failed(
            config | {"port": api.port, "journal": f"file:{tmp_path / 'other'}"}, tmp_path / "third"
        )
        assert status == 1 and f":{api.port}" in said.splitlines()[-1] and "Traceback" not in said
        assert api.get("/health") == {"state": "leading"}
        assert (tmp_path / "journal.scratch").is_dir(), "the one that failed touched nothing of the other's"


def test_a_journal_that_is_damaged_ends_with_a_clear_line(
    config: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    journal = tmp_path / "journal"
    journal.mkdir()
    (journal / "epoch").write_bytes(b"this is no journal")
    status, said = failed(config, tmp_path / "log")
    assert status == 1 and "Traceback" not in said and str(journal) in said.splitlines()[-1]


def test_a_master_that_is_not_there_is_waited_for(config: dict[str, Any], tmp_path: pathlib.Path) -> None:
    with (
        refusing_port() as port,
        scheduler_process(config | {"master": f"127.0.0.1:{port}"}, tmp_path / "log") as process,
    ):
        api = process.wait_leading()
        reasons = {e["reason"] for e in api.get("/v1/executors")["executors"]}
        assert reasons == {"there is no connection to a Mesos master"}
        assert process.stop() == 0


def test_slow_and_garbled_callers_do_not_hold_up_the_others(
    config: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    with scheduler_process(config | {"instances": 0}, tmp_path / "log") as process:
        api = process.wait_leading()
        silent = [socket.create_connection((api.host, api.port)) for _ in range(50)]
        garbled = socket.create_connection((api.host, api.port))
        garbled.sendall(b"\x16\x03\x01" + b"\xff" * 500 + b"\r\n\r\n")
        half = socket.create_connection((api.host, api.port))
        half.sendall(b"POST /v1/datasets HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        huge = socket.create_connection((api.host, api.port))
        huge.sendall(b"POST /v1/datasets HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n")
        assert b" 413 " in huge.recv(4096)
        for _ in range(20):
            assert api.get("/health") == {"state": "leading"}
        garbled.settimeout(DEADLINE_S)
        assert garbled.recv(4096)[:12] in (b"HTTP/1.1 400", b"")
        for connection in [*silent, garbled, half, huge]:
            connection.close()
        assert process.stop() == 0
    assert "Traceback" not in process.said()


def test_a_full_disk_is_outlived_in_the_same_process(
    config: dict[str, Any], source: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """RLIMIT_FSIZE stands for the disk: appends fail with EFBIG until the limit is lifted."""
    import psutil

    with scheduler_process(config | {"instances": 0}, tmp_path / "log") as process:
        api = process.wait_leading()
        pid = process.child.pid
        assert api.call("POST", "/v1/datasets", {"name": "before", "source": str(source)})[0] == 201
        wait_until(lambda: api.get("/v1/datasets/before")["state"] == "READY", what="a listing")
        psutil.Process(pid).rlimit(psutil.RLIMIT_FSIZE, (10, -1))
        status, body = api.call("POST", "/v1/datasets", {"name": "during", "source": str(source)})
        assert (status, body["error"]["code"]) == (503, "outcome_unknown")
        status, body = api.call("GET", "/health")
        assert (status, body["error"]["code"]) == (503, "not_leading") and "journal" in body["error"][
            "message"
        ]
        assert api.call("GET", "/alive")[0] == 200
        wait_until(lambda: lead_tries(api) >= 4, what="more tries")
        threads = psutil.Process(pid).num_threads()
        wait_until(lambda: lead_tries(api) >= 6, what="more tries")
        assert psutil.Process(pid).num_threads() <= threads + 2, "a try leaves no threads behind"
        psutil.Process(pid).rlimit(psutil.RLIMIT_FSIZE, (-1, -1))
        process.wait_leading()
        assert process.child.pid == pid and process.child.poll() is None
        assert [d["name"] for d in api.get("/v1/datasets")["datasets"]] == ["before"]
        assert api.call("POST", "/v1/datasets", {"name": "during", "source": str(source)})[0] == 201
        assert api.get("/v1/leader")["epoch"] >= 2
        assert process.stop() == 0


def test_nothing_but_the_journal_is_left(
    config: dict[str, Any], source: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    place = tmp_path / "place"
    with scheduler_process(
        config | {"instances": 0, "journal": f"file:{place / 'journal'}"}, tmp_path / "log"
    ) as process:
        api = process.wait_leading()
        api.call("POST", "/v1/datasets", {"name": "d", "source": str(source)})
        wait_until(lambda: api.get("/v1/datasets/d")["state"] == "READY", what="a listing")
        assert api.call("POST", "/v1/jobs", {"kind": "load", "dataset": "d", "plan": True})[0] == 200
        assert process.stop() == 0
    assert [path.name for path in place.iterdir()] == ["journal"]

"""Tasks that bring a command, task groups, and what the fetcher brings into a sandbox: with real processes, as 07 and 21."""

from __future__ import annotations

import gzip
import http.server
import io
import os
import signal
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.embedded import (
    EmbeddedProcess,
    Event,
    Scheduler,
    executor_pids,
    is_alive,
    make_task,
    scalar,
    scalars,
)
from support.waiting import wait_until

pytestmark = pytest.mark.integration

QUICK = ("--allocation-interval", "0.05", "--faults")
KILLING = ("PARTITION_AWARE", "MULTI_ROLE", "RESERVATION_REFINEMENT", "TASK_KILLING_STATE")


@pytest.fixture
def mesos(tmp_path: Path) -> Iterator[EmbeddedProcess]:
    with EmbeddedProcess(tmp_path / "work", *QUICK) as process:
        yield process
    assert not list(executor_pids(tmp_path / "work"))


def command_task(offer: Event, task_id: str, value: str, **fields: Any) -> Event:
    return {
        "name": task_id,
        "task_id": {"value": task_id},
        "agent_id": offer["agent_id"],
        "resources": [scalar("cpus", 0.1), scalar("mem", 32)],
        "command": {"value": value, **fields.pop("command", {})},
        **fields,
    }


def start(scheduler: Scheduler, task_id: str, value: str, **fields: Any) -> Event:
    """Launch a command task on the newest offer, and return its status in TASK_RUNNING."""
    offers = [event for event in scheduler.events if event["type"] == "OFFERS"]
    offer = offers[-1]["offers"]["offers"][0] if offers else scheduler.wait_offers()[0]
    index = len(scheduler.events)
    scheduler.launch(offer, command_task(offer, task_id, value, **fields))
    status = scheduler.wait_state(task_id, "TASK_RUNNING", start=index)
    scheduler.wait_offers(start=index)
    return status


def sandbox(mesos: EmbeddedProcess, tmp_path: Path, executor_id: str) -> Path:
    (found,) = (tmp_path / "work").glob(f"agent*/slaves/*/frameworks/*/executors/{executor_id}/runs/latest")
    return found


@pytest.mark.parametrize(
    ("value", "state", "text"),
    [
        ("true", "TASK_FINISHED", "Command exited with status 0"),
        ("exit 7", "TASK_FAILED", "Command exited with status 7"),
        ("kill -9 $$", "TASK_FAILED", "Command terminated with signal Killed"),
        ("/no/such/program", "TASK_FAILED", "Command exited with status 127"),
    ],
)
def test_the_end_of_a_command_is_told_in_mesos_words(
    mesos: EmbeddedProcess, value: str, state: str, text: str
) -> None:
    scheduler = Scheduler(mesos.address)
    start(scheduler, "t1", value)
    status = scheduler.wait_state("t1", state)
    assert status["message"] == text and status["source"] == "SOURCE_EXECUTOR"
    assert status["executor_id"] == {"value": "t1"} and "reason" not in status
    assert status["container_status"]["executor_pid"] > 0
    assert scheduler.states("t1") == ["TASK_STARTING", "TASK_RUNNING", state]
    assert not [event for event in scheduler.events if event["type"] == "FAILURE"]


def test_a_command_task_costs_what_it_asks_for_and_its_executor_is_no_ones(mesos: EmbeddedProcess) -> None:
    scheduler = Scheduler(mesos.address)
    start(scheduler, "t1", "sleep 100")
    offers = [event for event in scheduler.events if event["type"] == "OFFERS"][-1]["offers"]["offers"]
    assert scalars(offers[0]["resources"])["cpus"] == 3.9 and "executor_ids" not in offers[0]
    (framework,) = mesos.state()["frameworks"]
    assert framework["executors"] == [] and framework["tasks"][0]["executor_id"] == ""
    index = len(scheduler.events)
    scheduler.call("RECONCILE", {"tasks": []})
    answer = scheduler.wait_state("t1", "TASK_RUNNING", start=index)
    assert answer["reason"] == "REASON_RECONCILIATION" and "executor_id" not in answer


def test_the_task_runs_in_its_sandbox_with_its_variables_and_its_output_stays_there(
    mesos: EmbeddedProcess, tmp_path: Path
) -> None:
    scheduler = Scheduler(mesos.address)
    variables = {"environment": {"variables": [{"name": "WORD", "value": "hello"}]}}
    start(
        scheduler,
        "t1",
        "echo $WORD $MESOS_EXECUTOR_ID; pwd; echo bad >&2; echo ${HOME-none}",
        command=variables,
    )
    scheduler.wait_state("t1", "TASK_FINISHED")
    place = sandbox(mesos, tmp_path, "t1")
    assert (place / "stdout").read_text().split() == ["hello", "t1", str(place.resolve()), "none"]
    assert (place / "stderr").read_text() == "bad\n"


def test_a_command_without_a_shell_gets_its_arguments(mesos: EmbeddedProcess, tmp_path: Path) -> None:
    scheduler = Scheduler(mesos.address)
    plain = {"shell": False, "arguments": ["printf", "%s-%s", "a b", "c"]}
    start(scheduler, "t1", "printf", command=plain)
    scheduler.wait_state("t1", "TASK_FINISHED")
    assert (sandbox(mesos, tmp_path, "t1") / "stdout").read_text() == "a b-c"


def test_kill_is_sigterm_and_after_the_grace_of_the_task_sigkill(mesos: EmbeddedProcess) -> None:
    info = {"capabilities": [{"type": name} for name in KILLING]}
    scheduler = Scheduler(mesos.address, info=info)
    start(scheduler, "plain", "sleep 100")
    scheduler.call("KILL", {"task_id": {"value": "plain"}})
    status = scheduler.wait_state("plain", "TASK_KILLED")
    assert status["message"] == "Command terminated with signal Terminated"
    assert scheduler.states("plain")[-2:] == ["TASK_KILLING", "TASK_KILLED"]

    half_second = {"grace_period": {"nanoseconds": 500_000_000}}
    deaf = "trap '' TERM; echo up; sleep 100 & while true; do sleep 0.05; done"
    running = start(scheduler, "deaf", deaf, kill_policy=half_second)
    pid = running["container_status"]["executor_pid"]
    wait_until(lambda: len(list(_session_members(pid))) >= 2, "its processes")
    children = list(_session_members(pid))
    before = time.monotonic()
    scheduler.call(
        "KILL", {"task_id": {"value": "deaf"}, "kill_policy": {"grace_period": {"nanoseconds": 0}}}
    )
    status = scheduler.wait_state("deaf", "TASK_KILLED")
    assert status["message"] == "Command terminated with signal Killed"
    assert time.monotonic() - before >= 0.4, "the policy of the KILL call has no effect on a command"
    wait_until(lambda: not any(is_alive(child) for child in children), "the end of all its processes")


def _session_members(executor_pid: int) -> Iterator[int]:
    """Yield what descends from a command executor."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = Path(f"/proc/{entry}/stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            parent = int(fields[1])
            if parent == executor_pid or int(fields[3]) in _children(executor_pid):
                yield int(entry)


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def test_a_deaf_command_has_three_seconds_if_nobody_says_otherwise(mesos: EmbeddedProcess) -> None:
    scheduler = Scheduler(mesos.address)
    start(scheduler, "t1", "trap '' TERM; echo up; while true; do sleep 0.05; done")
    wait_until(lambda: "up" in _output(mesos), "its trap")
    before = time.monotonic()
    scheduler.call("KILL", {"task_id": {"value": "t1"}})
    scheduler.wait_state("t1", "TASK_KILLED")
    assert 2.8 <= time.monotonic() - before < 6


def _output(mesos: EmbeddedProcess) -> str:
    root = mesos.log.with_suffix("")
    return "".join(path.read_text() for path in root.glob("agent*/slaves/*/*/*/*/*/runs/latest/stdout"))


def test_checks_and_health_checks_are_told_and_sickness_ends_the_task(mesos: EmbeddedProcess) -> None:
    scheduler = Scheduler(mesos.address)
    often = {"interval_seconds": 0.1, "delay_seconds": 0.05, "timeout_seconds": 2}
    sick = {
        "type": "COMMAND",
        "command": {"value": "false"},
        "grace_period_seconds": 0.01,
        "consecutive_failures": 2,
    }
    start(scheduler, "sick", "sleep 60", health_check=sick | often)
    killed = scheduler.wait_state("sick", "TASK_KILLED")
    assert killed["healthy"] is False and killed["message"] == "Command terminated with signal Terminated"
    reasons = [e["update"]["status"].get("reason") for e in scheduler.events if e["type"] == "UPDATE"]
    assert reasons.count("REASON_TASK_HEALTH_CHECK_STATUS_UPDATED") == 2

    index = len(scheduler.events)
    check = {"type": "COMMAND", "command": {"command": {"value": "exit 4"}}}
    running = start(scheduler, "checked", "sleep 60", check=check | often)
    assert running["check_status"] == {"type": "COMMAND", "command": {}}
    event = scheduler.wait_for(
        lambda event: (
            event.get("update", {}).get("status", {}).get("reason") == "REASON_TASK_CHECK_STATUS_UPDATED"
        ),
        start=index,
    )
    assert event["update"]["status"]["check_status"] == {"type": "COMMAND", "command": {"exit_code": 4}}


def test_a_healthy_task_says_so_once(mesos: EmbeddedProcess) -> None:
    scheduler = Scheduler(mesos.address)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    check = {"type": "HTTP", "http": {"port": server.server_port, "path": "/"}, "interval_seconds": 0.05}
    start(scheduler, "t1", "sleep 60", health_check=check | {"delay_seconds": 0.01})
    scheduler.wait_for(lambda event: event.get("update", {}).get("status", {}).get("healthy") is True)
    server.shutdown()
    server.server_close()
    scheduler.wait_for(lambda event: event.get("update", {}).get("status", {}).get("healthy") is False)
    healthy = [e["update"]["status"].get("healthy") for e in scheduler.events if e["type"] == "UPDATE"]
    assert healthy.count(True) == 1


def test_a_task_ends_at_its_max_completion_time(mesos: EmbeddedProcess) -> None:
    scheduler = Scheduler(mesos.address)
    start(scheduler, "t1", "sleep 60", max_completion_time={"nanoseconds": 300_000_000})
    status = scheduler.wait_state("t1", "TASK_FAILED")
    assert status["reason"] == "REASON_MAX_COMPLETION_TIME_REACHED"


def test_an_executor_that_is_killed_fails_its_command(mesos: EmbeddedProcess) -> None:
    scheduler = Scheduler(mesos.address)
    running = start(scheduler, "t1", "sleep 100")
    (child,) = _children(running["container_status"]["executor_pid"])
    os.kill(running["container_status"]["executor_pid"], signal.SIGKILL)
    status = scheduler.wait_state("t1", "TASK_FAILED")
    assert status["reason"] == "REASON_COMMAND_EXECUTOR_FAILED" and status["source"] == "SOURCE_AGENT"
    wait_until(lambda: not is_alive(child), "the end of its command")


# What is fetched.


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """A web server over `tmp_path / "site"`: its URL, and the paths that were asked for."""
    asked: list[str] = []
    directory = tmp_path / "site"
    directory.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(directory))

        def do_GET(self) -> None:
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def fill(directory: Path) -> None:
    (directory / "plain.txt").write_text("plain")
    (directory / "tool").write_text("#!/bin/sh\necho tool ran\n")
    (directory / "packed.gz").write_bytes(gzip.compress(b"unpacked"))
    with tarfile.open(directory / "many.tar.gz", "w:gz") as archive:
        info = tarfile.TarInfo("inner/deep.txt")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"deep"))
    with zipfile.ZipFile(directory / "many.zip", "w") as packed:
        packed.writestr("zipped.txt", "zipped")


def test_what_a_command_needs_is_fetched_before_it_starts(
    mesos: EmbeddedProcess, tmp_path: Path, site: tuple[str, list[str]]
) -> None:
    url, _ = site
    fill(tmp_path / "site")
    uris = [
        {"value": f"{url}/plain.txt"},
        {"value": f"file://{tmp_path}/site/plain.txt", "output_file": "in/side.txt"},
        {"value": f"{tmp_path}/site/tool", "executable": True},
        {"value": f"{url}/packed.gz"},
        {"value": f"{url}/many.tar.gz"},
        {"value": f"{url}/many.zip"},
        {"value": f"{url}/many.zip", "extract": False, "output_file": "kept.zip"},
    ]
    scheduler = Scheduler(mesos.address)
    start(
        scheduler,
        "t1",
        "./tool; cat plain.txt in/side.txt packed inner/deep.txt zipped.txt",
        command={"uris": uris},
    )
    scheduler.wait_state("t1", "TASK_FINISHED")
    place = sandbox(mesos, tmp_path, "t1")
    assert (place / "stdout").read_text() == "tool ran\nplainplainunpackeddeepzipped"
    assert zipfile.is_zipfile(place / "kept.zip") and (place / "tool").stat().st_mode & 0o111
    assert not (place / "plain.txt").stat().st_mode & 0o111


@pytest.mark.parametrize(
    "uri",
    [
        {"value": "file:///no/such/file.tgz"},
        {"value": "URL/missing"},
        {"value": "gopher://host/file"},
        {"value": "URL/plain.txt", "output_file": "../outside"},
        {"value": "URL/broken.tar.gz"},
    ],
    ids=lambda uri: str(uri["value"]),
)
def test_a_task_fails_if_something_cannot_be_fetched(
    mesos: EmbeddedProcess, tmp_path: Path, site: tuple[str, list[str]], uri: dict[str, str]
) -> None:
    """As 03b, with a custom executor."""
    fill(tmp_path / "site")
    (tmp_path / "site" / "broken.tar.gz").write_bytes(b"\x1f\x8b no gzip")
    uri = uri | {"value": uri["value"].replace("URL", site[0])}
    scheduler = Scheduler(mesos.address)
    offer = scheduler.wait_offers()[0]
    scheduler.launch(offer, make_task(offer, "t1", executor={"command": {"value": "true", "uris": [uri]}}))
    failure = scheduler.wait_for(lambda event: event["type"] == "FAILURE")["failure"]
    assert failure["status"] == 9 and failure["executor_id"] == {"value": "t1"}
    status = scheduler.wait_state("t1", "TASK_FAILED")
    assert status["reason"] == "REASON_CONTAINER_LAUNCH_FAILED" and status["source"] == "SOURCE_AGENT"
    assert status["message"].startswith(
        "Failed to launch container: Failed to fetch all URIs for container '"
    )
    assert status["message"].endswith("': exited with status 1")
    said = (sandbox(mesos, tmp_path, "t1") / "stderr").read_text()
    assert said.startswith("Failed to fetch '") and uri["value"] in said and said.count("\n") == 1


def test_a_cached_uri_is_fetched_once_and_the_cache_keeps_its_bound(
    tmp_path: Path, site: tuple[str, list[str]]
) -> None:
    url, asked = site
    for name in ("one", "two", "three"):
        (tmp_path / "site" / name).write_bytes(name.encode() * 200_000)
    with EmbeddedProcess(tmp_path / "work", *QUICK, "--fetcher-cache-size", "1300kB") as mesos:
        scheduler = Scheduler(mesos.address)

        def fetch(task_id: str, *names: str) -> None:
            uris = [{"value": f"{url}/{name}", "cache": True} for name in names]
            start(scheduler, task_id, f"cat {' '.join(names)} >/dev/null", command={"uris": uris})
            scheduler.wait_state(task_id, "TASK_FINISHED")

        fetch("t1", "one")
        fetch("t2", "one")
        fetch("t3", "one", "two")
        assert asked == ["/one", "/two"]
        fetch("t4", "three")
        kept = [path for path in (tmp_path / "work" / "agent1" / "fetch").iterdir() if not path.suffix]
        assert sum(path.stat().st_size for path in kept) <= 1_300_000
        fetch("t5", "three")
        assert asked == ["/one", "/two", "/three"]


def test_a_slow_fetch_holds_nothing_else_up_and_can_be_killed(
    mesos: EmbeddedProcess, tmp_path: Path, site: tuple[str, list[str]]
) -> None:
    fill(tmp_path / "site")
    assert mesos.fault("slow-fetch", "60").status == 200
    scheduler = Scheduler(mesos.address)
    offer = scheduler.wait_offers()[0]
    executor = {"command": {"value": "true", "uris": [{"value": f"{site[0]}/plain.txt"}]}}
    slow = make_task(offer, "slow", executor=executor | {"shutdown_grace_period": {"nanoseconds": 0}})
    index = len(scheduler.events)
    scheduler.launch(offer, slow)
    scheduler.wait_offers(start=index)
    start(scheduler, "quick", "true")
    scheduler.wait_state("quick", "TASK_FINISHED")
    scheduler.call("SHUTDOWN", {"executor_id": {"value": "slow"}, "agent_id": offer["agent_id"]})
    scheduler.wait_state("slow", "TASK_FAILED")
    assert scheduler.wait_for(lambda event: event["type"] == "FAILURE")["failure"]["status"] == 9


# Task groups: 21.


def group_call(offer: Event, *tasks: Event, **executor: Any) -> Event:
    info = {
        "type": "DEFAULT",
        "executor_id": {"value": "d1"},
        "resources": [scalar("cpus", 0.1), scalar("mem", 32), scalar("disk", 10)],
        **executor,
    }
    group = {"executor": info, "task_group": {"tasks": list(tasks)}}
    return {"offer_ids": [offer["id"]], "operations": [{"type": "LAUNCH_GROUP", "launch_group": group}]}


def test_a_group_runs_under_one_executor(mesos: EmbeddedProcess) -> None:
    scheduler = Scheduler(mesos.address)
    offer = scheduler.wait_offers()[0]
    tasks = [command_task(offer, "g1", "true"), command_task(offer, "g2", "pwd; sleep 0.3")]
    assert scheduler.call("ACCEPT", group_call(offer, *tasks)).status == 202
    for name in ("g1", "g2"):
        scheduler.wait_state(name, "TASK_FINISHED")
        assert scheduler.states(name) == ["TASK_STARTING", "TASK_RUNNING", "TASK_FINISHED"]
    statuses = [event["update"]["status"] for event in scheduler.events if event["type"] == "UPDATE"]
    assert {status["executor_id"]["value"] for status in statuses} == {"d1"}
    parents = {status["container_status"]["container_id"]["parent"]["value"] for status in statuses}
    containers = {status["container_status"]["container_id"]["value"] for status in statuses}
    assert len(parents) == 1 and len(containers) == 2
    assert all(("network_infos" in s["container_status"]) == (s["state"] == "TASK_RUNNING") for s in statuses)
    failure = scheduler.wait_for(lambda event: event["type"] == "FAILURE")["failure"]
    assert failure["executor_id"] == {"value": "d1"} and failure["status"] == 0


def test_a_group_lives_and_dies_together(mesos: EmbeddedProcess) -> None:
    scheduler = Scheduler(mesos.address)
    offer = scheduler.wait_offers()[0]
    tasks = [command_task(offer, "bad", "sleep 0.2; exit 3"), command_task(offer, "good", "sleep 100")]
    scheduler.call("ACCEPT", group_call(offer, *tasks))
    assert scheduler.wait_state("bad", "TASK_FAILED")["message"] == "Command exited with status 3"
    scheduler.wait_state("good", "TASK_KILLED")


@pytest.mark.parametrize(
    ("executor", "second", "text"),
    [
        ({}, {"resources": [scalar("cpus", 100)]}, "more than available"),
        ({}, {"task_id": {"value": "a"}}, "Task has duplicate ID: a"),
        ({"command": {"value": "true"}}, {}, "'ExecutorInfo.command' must not be set for 'DEFAULT' executor"),
        ({"resources": [scalar("cpus", 0.1)]}, {}, "uses less mem than the minimum required (32MB)"),
    ],
)
def test_a_group_is_all_or_nothing(mesos: EmbeddedProcess, executor: Event, second: Event, text: str) -> None:
    scheduler = Scheduler(mesos.address)
    offer = scheduler.wait_offers()[0]
    tasks = [command_task(offer, "a", "true"), command_task(offer, "b", "true") | second]
    index = len(scheduler.events)
    scheduler.call("ACCEPT", group_call(offer, *tasks, **executor))
    status = scheduler.wait_state("a", "TASK_ERROR")
    assert status["reason"] == "REASON_TASK_GROUP_INVALID" and text in status["message"]
    scheduler.call("REVIVE")
    assert scalars(scheduler.wait_offers(start=index)[0]["resources"])["cpus"] == 4.0

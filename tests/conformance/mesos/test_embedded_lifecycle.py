"""The embedded Mesos with real executor processes: what starts, what ends, and that nothing is left."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.embedded import (
    EmbeddedProcess,
    Event,
    Scheduler,
    executor_pids,
    is_alive,
    make_task,
    scalars,
)
from support.waiting import DEADLINE_S

pytestmark = pytest.mark.integration


@pytest.fixture
def work_dir(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "work"
    yield path
    left = list(executor_pids(path))
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, "processes are left"


def failure(event: Event) -> bool:
    return bool(event["type"] == "FAILURE")


def executor_pid(scheduler: Scheduler, task: Event) -> int:
    pid = scheduler.wait_state(task["task_id"]["value"], "TASK_RUNNING")["container_status"]["executor_pid"]
    return int(pid)


def test_every_agent_has_its_own_address_and_ports(work_dir: Path) -> None:
    options = (
        "--agents",
        "3",
        "--cpus",
        "2",
        "--mem",
        "1GiB",
        "--disk",
        "2GiB",
        "--attributes",
        "rack:a;slot:1",
    )
    with EmbeddedProcess(work_dir, *options) as mesos:
        offers = Scheduler(mesos.address).wait_offers()
        assert [offer["hostname"] for offer in offers] == ["127.0.0.10", "127.0.0.11", "127.0.0.12"]
        assert scalars(offers[0]["resources"]) == {"cpus": 2.0, "mem": 1024.0, "disk": 2048.0}
        ranges = [offer["resources"][0]["ranges"]["range"] for offer in offers]
        assert ranges == [[{"begin": 31_000 + 1000 * i, "end": 31_999 + 1000 * i}] for i in range(3)]
        assert offers[0]["attributes"] == [
            {"name": "rack", "type": "TEXT", "text": {"value": "a"}},
            {"name": "slot", "type": "SCALAR", "scalar": {"value": 1.0}},
        ]
        for offer in offers:
            address = offer["url"]["address"]
            assert not 31_000 <= address["port"] <= 33_999, (
                "no task may be given the port of the agent itself"
            )
            socket.create_connection((address["ip"], address["port"]), timeout=DEADLINE_S).close()


def test_a_sandbox_lies_below_the_work_dir_and_its_executor_leads_a_session(work_dir: Path) -> None:
    with EmbeddedProcess(work_dir, "--recovery-timeout", "90") as mesos:
        scheduler = Scheduler(mesos.address)
        task = scheduler.run("t1")
        seen = scheduler.ask(task, do="environment")
        assert seen["environment"]["MESOS_RECOVERY_TIMEOUT"] == "1.5mins"
        sandbox = seen["environment"]["MESOS_SANDBOX"]
        latest = Path(sandbox).parent / "latest"
        assert latest.resolve() == Path(sandbox)
        assert str(Path(sandbox)).startswith(str(work_dir.resolve() / "agent1" / "slaves"))
        pid, session, group, _ = scheduler.ask(task, do="sessions")
        assert pid == session == group == executor_pid(scheduler, task)


def test_output_goes_to_the_files_of_the_sandbox(work_dir: Path) -> None:
    with EmbeddedProcess(work_dir) as mesos:
        scheduler = Scheduler(mesos.address)
        offer = scheduler.wait_offers()[0]
        scheduler.launch(offer, make_task(offer, "t1", command="echo said; echo cried >&2; exit 4"))
        assert scheduler.wait_for(failure)["failure"]["status"] == 4 << 8
        (sandbox,) = work_dir.glob("agent*/slaves/*/frameworks/*/executors/t1/runs/latest")
        assert (sandbox / "stdout").read_text() == "said\n"
        assert (sandbox / "stderr").read_text() == "cried\n"


def test_a_command_without_shell_gets_its_arguments_as_they_are(work_dir: Path) -> None:
    with EmbeddedProcess(work_dir) as mesos:
        scheduler = Scheduler(mesos.address)
        offer = scheduler.wait_offers()[0]
        command = {"shell": False, "value": "/bin/echo", "arguments": ["echo", "$HOME; *"]}
        scheduler.launch(offer, make_task(offer, "t1", executor={"command": command}))
        scheduler.wait_for(failure)
        (sandbox,) = work_dir.glob("agent*/slaves/*/frameworks/*/executors/t1/runs/latest")
        assert (sandbox / "stdout").read_text() == "$HOME; *\n"


@pytest.mark.parametrize(
    ("executor", "text"),
    [
        (
            {"command": {"shell": False, "value": "/no/such/binary"}},
            "No such file or directory: /no/such/binary",
        ),
        (
            {"command": {"value": "true", "uris": [{"value": "http://x/y"}]}},
            ": exited with status 1",
        ),
        ({"command": {"value": "a\0b"}}, "null byte"),
    ],
)
def test_what_cannot_be_started_says_why(work_dir: Path, executor: Event, text: str) -> None:
    with EmbeddedProcess(work_dir) as mesos:
        scheduler = Scheduler(mesos.address)
        offer = scheduler.wait_offers()[0]
        scheduler.launch(offer, make_task(offer, "t1", executor=executor))
        status = scheduler.wait_state("t1", "TASK_FAILED")
        assert status["reason"] == "REASON_CONTAINER_LAUNCH_FAILED"
        assert status["message"].startswith("Failed to launch container: ") and text in status["message"]


def test_an_executor_that_ignores_shutdown_is_killed_with_its_children(work_dir: Path) -> None:
    with EmbeddedProcess(work_dir) as mesos:
        scheduler = Scheduler(mesos.address)
        task = scheduler.run("t1", executor={"shutdown_grace_period": {"nanoseconds": 500_000_000}})
        child = scheduler.ask(task, do="fork")
        assert scheduler.ask(task, do="deafen") == "deaf"
        asked = time.monotonic()
        scheduler.call(
            "SHUTDOWN", {"agent_id": task["agent_id"], "executor_id": task["executor"]["executor_id"]}
        )
        assert scheduler.wait_for(failure)["failure"]["status"] == 9
        assert time.monotonic() - asked >= 0.5
        assert not is_alive(child), "a child in a session of its own ends too"


def test_sigterm_shuts_down_the_executors_and_leaves_nothing(work_dir: Path) -> None:
    with EmbeddedProcess(work_dir, "--executor-shutdown-grace-period", "0.5") as mesos:
        scheduler = Scheduler(mesos.address)
        polite = scheduler.run("t1")
        first = next(n for n, event in enumerate(scheduler.events) if event["type"] == "OFFERS")
        offer = scheduler.wait_offers(start=first + 1)[0]  # the rest may be offered before the first one runs
        rude = make_task(offer, "t2")
        scheduler.launch(offer, rude)
        pids = [executor_pid(scheduler, polite), executor_pid(scheduler, rude)]
        assert scheduler.ask(rude, do="deafen") == "deaf"
        start = len(scheduler.events)
        assert mesos.stop() == 0
        assert not any(is_alive(pid) for pid in pids)
        scheduler.wait_end()
        late = [event["type"] for event in scheduler.events[start:]]
        assert not set(late) & {"UPDATE", "FAILURE"}, "a scheduler must not relaunch what is being stopped"
        assert not list((work_dir / "meta" / "executors").glob("*"))


def test_a_second_wish_to_end_does_not_wait_for_the_grace(work_dir: Path) -> None:
    with EmbeddedProcess(work_dir, "--executor-shutdown-grace-period", "25") as mesos:
        scheduler = Scheduler(mesos.address)
        task = scheduler.run()
        assert scheduler.ask(task, do="deafen") == "deaf"
        mesos.process.send_signal(signal.SIGINT)
        mesos.process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            mesos.process.wait(1.5)
        assert mesos.stop() == 0
        assert not list(executor_pids(work_dir))


def test_what_outlived_a_killed_predecessor_is_ended_before_anything_is_offered(work_dir: Path) -> None:
    first = EmbeddedProcess(work_dir)
    scheduler = Scheduler(first.address)
    task = scheduler.run()
    pid = executor_pid(scheduler, task)
    child = scheduler.ask(task, do="fork")
    first.kill()
    assert is_alive(pid) and is_alive(child)
    with EmbeddedProcess(work_dir, "--recover", "cleanup") as second:
        assert not is_alive(pid) and not is_alive(child)
        again = Scheduler(second.address, framework_id=scheduler.framework_id)
        assert again.framework_id == scheduler.framework_id
        (offer,) = again.wait_offers()
        assert offer["agent_id"] == task["agent_id"], "agents keep their ids on their work_dir"
        assert scalars(offer["resources"])["cpus"] == 4.0
        again.call("RECONCILE", {"tasks": [{"task_id": task["task_id"], "agent_id": task["agent_id"]}]})
        again.wait_state("t1", "TASK_GONE")


def test_another_process_with_the_pid_of_an_orphan_is_spared(work_dir: Path) -> None:
    first = EmbeddedProcess(work_dir)
    scheduler = Scheduler(first.address)
    pid = executor_pid(scheduler, scheduler.run())
    first.kill()
    stranger = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(3600)"], start_new_session=True
    )
    try:
        (record,) = (work_dir / "meta" / "executors").glob("*.json")
        record.write_text(record.read_text().replace(f'"pid": {pid}', f'"pid": {stranger.pid}'))
        EmbeddedProcess(work_dir, "--recover", "cleanup").stop()
        assert stranger.poll() is None
        assert not is_alive(pid), "the orphan is found by the sandbox in its environment"
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (["--agents", "0"], 2, "agents is 0: allowed are 1 to 1000"),
        (["--mem", "much"], 2, "'much' is no size: write a number and a unit"),
        (["--ports", "7"], 2, "'7' is no range of ports"),
        (["--ports", "60000-60999", "--agents", "7"], 2, "must lie between 1 and 65535"),
        (["--hostnames", "a,b"], 2, "2 hostnames for 1 agents: give one for each"),
        (["--attributes", "rack"], 2, "attribute 'rack' must be NAME:VALUE"),
        (["--update-retry", "700"], 2, "--update-retry must not be more than --update-retry-max"),
        (["--heartbeat-interval", "0"], 2, "--heartbeat-interval must be at least 0.001 seconds"),
        (["--host", "192.0.2.1"], 1, "cannot listen on 192.0.2.1"),
        (["--colour"], 2, "unrecognized arguments"),
    ],
)
def test_bad_options_get_one_clear_line(work_dir: Path, options: list[str], code: int, text: str) -> None:
    command = [
        sys.executable,
        "-m",
        "stoker.mesos.embedded",
        "--port",
        "0",
        "--work-dir",
        str(work_dir),
        *options,
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)
    assert ended.returncode == code and text in ended.stderr and "Traceback" not in ended.stderr


def test_a_port_or_work_dir_in_use_is_said_so(work_dir: Path, tmp_path: Path) -> None:
    with EmbeddedProcess(work_dir) as mesos:
        for work, port, code, text in (
            (work_dir, "0", 2, "is in use by another embedded Mesos"),
            (tmp_path / "other", mesos.address.rsplit(":", 1)[1], 1, "Address already in use"),
            (Path("/proc/nowhere"), "0", 2, "cannot be written"),
        ):
            command = [sys.executable, "-m", "stoker.mesos.embedded", "--port", port, "--work-dir", str(work)]
            ended = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)
            assert ended.returncode == code and text in ended.stderr and "Traceback" not in ended.stderr


def test_hundreds_of_sandboxes_do_not_pile_up(work_dir: Path) -> None:
    old = work_dir / "agent1" / "slaves" / "S" / "frameworks" / "F" / "executors" / "E" / "runs"
    for number in range(60):
        (old / f"run{number:02d}").mkdir(parents=True)
        os.utime(old / f"run{number:02d}", (number, number))
    with EmbeddedProcess(work_dir):
        left = sorted(path.name for path in old.iterdir())
    assert left == [f"run{number:02d}" for number in range(10, 60)]

"""Agents of the embedded Mesos that die and come back, and a whole one that is killed: with real processes that live on, as 12."""

from __future__ import annotations

import http.client
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.embedded import EmbeddedProcess, Event, Scheduler, executor_pids, is_alive, scalar, scalars
from support.waiting import wait_until

pytestmark = pytest.mark.integration

QUICK = (
    *("--allocation-interval", "0.05", "--agent-ping-timeout", "0.2", "--registration-backoff", "0.01"),
    *("--executor-reregistration-timeout", "1", "--faults"),
)


@pytest.fixture
def work_dir(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "work"
    yield path
    left = list(executor_pids(path))
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, "processes are left"


def run(
    scheduler: Scheduler, task_id: str = "t1", value: str = "sleep 1000", **fields: Any
) -> tuple[Event, int]:
    """Run a command task and return its TaskInfo and the pid of its executor."""
    offer = scheduler.wait_offers()[0]
    task = {
        "name": task_id,
        "task_id": {"value": task_id},
        "agent_id": offer["agent_id"],
        "resources": [scalar("cpus", 0.5), scalar("mem", 32)],
        "command": {"value": value},
        **fields,
    }
    scheduler.launch(offer, task)
    return task, scheduler.wait_state(task_id, "TASK_RUNNING")["container_status"]["executor_pid"]


def agent_address(mesos: EmbeddedProcess) -> str:
    (agent,) = mesos.state()["slaves"]
    return f"{agent['hostname']}:{agent['port']}"


def is_refused(address: str) -> bool:
    connection = http.client.HTTPConnection(address, timeout=5)
    try:
        connection.request("GET", "/health")
        return False
    except ConnectionRefusedError:
        return True
    finally:
        connection.close()


def kill_task(scheduler: Scheduler, task_id: str = "t1") -> None:
    index = len(scheduler.events)
    scheduler.call("KILL", {"task_id": {"value": task_id}})
    scheduler.wait_state(task_id, "TASK_KILLED", start=index)


def test_executors_outlive_their_agent_and_come_back_to_it(work_dir: Path) -> None:
    with EmbeddedProcess(work_dir, *QUICK, "--agent-ping-timeout", "15") as mesos:
        scheduler = Scheduler(mesos.address)
        task, pid = run(scheduler)
        address, count = agent_address(mesos), len(scheduler.events)
        assert mesos.fault("agent-stop", "1", "kill").status == 200
        assert is_refused(address) and is_alive(pid)
        assert mesos.fault("agent-start", "1").status == 200
        (offer,) = scheduler.wait_offers(start=count)
        assert offer["agent_id"] == task["agent_id"] and scalars(offer["resources"])["cpus"] == 3.5
        assert not [event for event in scheduler.events[count:] if event["type"] == "FAILURE"]
        updates = [
            event["update"]["status"]["uuid"] for event in scheduler.events if event["type"] == "UPDATE"
        ]
        assert len(set(updates)) == 2, "nothing new is said of it"
        assert is_alive(pid) and agent_address(mesos) == address
        kill_task(scheduler)
        wait_until(lambda: not is_alive(pid), "its end")


def test_an_agent_that_stays_away_is_unreachable_and_its_task_comes_back(work_dir: Path) -> None:
    with EmbeddedProcess(work_dir, *QUICK) as mesos:
        scheduler = Scheduler(mesos.address)
        _, pid = run(scheduler)
        assert mesos.fault("agent-stop", "1").status == 200
        lost = scheduler.wait_state("t1", "TASK_UNREACHABLE")
        assert lost["reason"] == "REASON_AGENT_REMOVED" and "uuid" not in lost
        index = len(scheduler.events)
        assert mesos.fault("agent-start", "1").status == 200
        back = scheduler.wait_state("t1", "TASK_RUNNING", start=index)
        assert back["reason"] == "REASON_AGENT_REREGISTERED" and is_alive(pid)
        kill_task(scheduler)


def test_an_executor_that_died_with_its_agent_is_found_dead(work_dir: Path) -> None:
    with EmbeddedProcess(work_dir, *QUICK) as mesos:
        scheduler = Scheduler(mesos.address)
        _, pid = run(scheduler)
        assert mesos.fault("agent-stop", "1").status == 200
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not is_alive(pid), "its end")
        assert mesos.fault("agent-start", "1").status == 200
        failed = scheduler.wait_state("t1", "TASK_FAILED")
        assert failed["source"] == "SOURCE_AGENT" and "uuid" in failed


def test_an_executor_that_is_too_late_is_killed(work_dir: Path) -> None:
    with EmbeddedProcess(work_dir, *QUICK) as mesos:
        scheduler = Scheduler(mesos.address)
        _, pid = run(scheduler)
        assert mesos.fault("agent-stop", "1").status == 200
        os.kill(pid, signal.SIGSTOP)
        assert mesos.fault("agent-start", "1").status == 200
        gone = scheduler.wait_state("t1", "TASK_GONE")
        assert gone["reason"] == "REASON_EXECUTOR_REREGISTRATION_TIMEOUT"
        wait_until(lambda: not is_alive(pid), "its end")


def test_a_frozen_agent_is_lost_later_and_goes_on(work_dir: Path) -> None:
    with EmbeddedProcess(work_dir, *QUICK) as mesos:
        scheduler = Scheduler(mesos.address)
        _, pid = run(scheduler)
        assert mesos.fault("agent-stop", "1", "freeze").status == 200
        scheduler.wait_state("t1", "TASK_UNREACHABLE")
        index = len(scheduler.events)
        assert mesos.fault("agent-start", "1").status == 200
        scheduler.wait_state("t1", "TASK_RUNNING", start=index)
        assert is_alive(pid)
        kill_task(scheduler)


def test_an_agent_that_leaves_takes_its_executors_with_it(work_dir: Path) -> None:
    with EmbeddedProcess(work_dir, *QUICK) as mesos:
        scheduler = Scheduler(mesos.address)
        task, pid = run(scheduler)
        assert mesos.fault("agent-stop", "1", "usr1").status == 200
        scheduler.wait_state("t1", "TASK_LOST")
        wait_until(lambda: not is_alive(pid), "its end")
        index = len(scheduler.events)
        wait_until(lambda: mesos.fault("agent-start", "1").status == 200, "its end, and its start")
        (offer,) = scheduler.wait_offers(start=index)
        assert offer["agent_id"] == task["agent_id"]


def is_offer_of_another(event: Event, task: Event) -> bool:
    """Return whether the event offers an agent other than the task's."""
    return bool(event["type"] == "OFFERS" and event["offers"]["offers"][0]["agent_id"] != task["agent_id"])


def test_an_agent_with_an_empty_work_dir_is_another_one(work_dir: Path) -> None:
    with EmbeddedProcess(work_dir, *QUICK) as mesos:
        scheduler = Scheduler(mesos.address)
        task, pid = run(scheduler)
        assert mesos.fault("agent-stop", "1").status == 200
        index = len(scheduler.events)
        assert mesos.fault("agent-start", "1", "reset").status == 200
        scheduler.wait_state("t1", "TASK_LOST", start=index)
        # What the stopped one had left may have been offered once more, while the master did not know yet.
        (offer,) = scheduler.wait_for(lambda event: is_offer_of_another(event, task), start=index)["offers"][
            "offers"
        ]
        assert scalars(offer["resources"])["cpus"] == 4.0
        wait_until(lambda: not is_alive(pid), "its end: nobody knows it any more")


def test_a_changed_agent_starts_if_the_policy_allows_it(work_dir: Path) -> None:
    with EmbeddedProcess(work_dir, *QUICK) as mesos:
        scheduler = Scheduler(mesos.address)
        assert mesos.fault("agent-stop", "1").status == 200
        refused = mesos.fault("agent-start", "1", "cpus:8")
        assert refused.status == 409 and "policy is 'equal'" in refused.text
        index = len(scheduler.events)
        assert mesos.fault("agent-start", "1", "cpus:8", "additive").status == 200
        (offer,) = scheduler.wait_offers(start=index)
        assert scalars(offer["resources"])["cpus"] == 8.0


# The whole of it.


def test_executors_outlive_a_killed_embedded_mesos(work_dir: Path) -> None:
    first = EmbeddedProcess(work_dir, *QUICK)
    scheduler = Scheduler(first.address)
    task, pid = run(scheduler)
    address = agent_address(first)
    first.kill()
    assert is_alive(pid)
    with EmbeddedProcess(work_dir, *QUICK) as second:
        again = Scheduler(second.address, framework_id=scheduler.framework_id)
        back = again.wait_state("t1", "TASK_RUNNING")
        assert back["reason"] == "REASON_AGENT_REREGISTERED" and is_alive(pid)
        assert back["container_status"]["executor_pid"] == pid
        (offer,) = again.wait_offers()
        assert offer["agent_id"] == task["agent_id"] and scalars(offer["resources"])["cpus"] == 3.5
        assert agent_address(second) == address
        kill_task(again)
        wait_until(lambda: not is_alive(pid), "its end")


def test_what_died_meanwhile_is_told_and_what_did_not_is_ended_at_the_end(work_dir: Path) -> None:
    first = EmbeddedProcess(work_dir, *QUICK)
    scheduler = Scheduler(first.address)
    _, dead = run(scheduler, "dead")
    offered = scheduler.wait_for(
        lambda event: (
            event["type"] == "OFFERS" and scalars(event["offers"]["offers"][0]["resources"])["cpus"] == 3.5
        )
    )
    (offer,) = offered["offers"]["offers"]
    alive = {
        "name": "alive",
        "task_id": {"value": "alive"},
        "agent_id": offer["agent_id"],
        "resources": [scalar("cpus", 0.5), scalar("mem", 32)],
        "command": {"value": "sleep 1000"},
    }
    scheduler.launch(offer, alive)
    pid = scheduler.wait_state("alive", "TASK_RUNNING")["container_status"]["executor_pid"]
    first.kill()
    os.kill(dead, signal.SIGKILL)
    with EmbeddedProcess(work_dir, *QUICK) as second:
        again = Scheduler(second.address, framework_id=scheduler.framework_id)
        again.wait_state("dead", "TASK_FAILED")
        again.wait_state("alive", "TASK_RUNNING")
        assert is_alive(pid)
    assert not is_alive(pid)


def test_an_update_that_nobody_acknowledged_is_sent_by_the_next_process(work_dir: Path) -> None:
    first = EmbeddedProcess(work_dir, *QUICK)
    scheduler = Scheduler(first.address, acknowledge=False)
    offer = scheduler.wait_offers()[0]
    task = {
        "name": "t1",
        "task_id": {"value": "t1"},
        "agent_id": offer["agent_id"],
        "resources": [scalar("cpus", 0.5), scalar("mem", 32)],
        "command": {"value": "true"},
    }
    scheduler.launch(offer, task)
    uuid = scheduler.wait_state("t1", "TASK_STARTING")["uuid"]
    wait_until(lambda: not list(executor_pids(work_dir)), "its end")
    first.kill()
    with EmbeddedProcess(work_dir, *QUICK) as second:
        again = Scheduler(second.address, framework_id=scheduler.framework_id)
        assert again.wait_state("t1", "TASK_STARTING")["uuid"] == uuid
        again.wait_state("t1", "TASK_FINISHED")


def test_executors_of_another_boot_are_dead(work_dir: Path) -> None:
    first = EmbeddedProcess(work_dir, *QUICK)
    scheduler = Scheduler(first.address)
    _, pid = run(scheduler)
    first.kill()
    (record,) = (work_dir / "meta" / "executors").glob("*.json")
    record.write_text(json.dumps(json.loads(record.read_text()) | {"boot_id": "another"}))
    with EmbeddedProcess(work_dir, *QUICK) as second:
        again = Scheduler(second.address, framework_id=scheduler.framework_id)
        again.wait_state("t1", "TASK_FAILED")
        assert not is_alive(pid), "what has its sandbox in the environment is no stranger"


@pytest.mark.parametrize("recover", ["reconnect", "cleanup"])
def test_a_volume_is_a_directory_that_the_next_process_has(work_dir: Path, recover: str) -> None:
    """As 10: the file outlives the task, the agent and the whole Mesos; DESTROY removes it."""
    reservation = {"type": "DYNAMIC", "role": "cache"}
    disk = {"name": "disk", "type": "SCALAR", "scalar": {"value": 64.0}, "reservations": [reservation]}
    volume = disk | {
        "disk": {"persistence": {"id": "vol-1"}, "volume": {"container_path": "data", "mode": "RW"}}
    }
    first = EmbeddedProcess(work_dir, *QUICK)
    scheduler = Scheduler(first.address)
    offer = scheduler.wait_offers()[0]
    task = {
        "name": "t1",
        "task_id": {"value": "t1"},
        "agent_id": offer["agent_id"],
        "resources": [scalar("cpus", 0.5), scalar("mem", 32), volume],
        "command": {"value": "echo kept > data/file"},
    }
    operations = [
        {"type": "RESERVE", "reserve": {"resources": [disk]}},
        {"type": "CREATE", "create": {"volumes": [volume]}},
        {"type": "LAUNCH", "launch": {"task_infos": [task]}},
    ]
    scheduler.call("ACCEPT", {"offer_ids": [offer["id"]], "operations": operations})
    scheduler.wait_state("t1", "TASK_FINISHED")
    file = work_dir / "agent1" / "volumes" / "roles" / "cache" / "vol-1" / "file"
    assert file.read_text() == "kept\n"
    first.kill()
    with EmbeddedProcess(work_dir, *QUICK, "--recover", recover) as second:
        again = Scheduler(second.address, framework_id=scheduler.framework_id)
        offer = again.wait_offers()[0]
        assert [r for r in offer["resources"] if "persistence" in r.get("disk", {})]
        assert file.read_text() == "kept\n"
        destroy = {"type": "DESTROY", "destroy": {"volumes": [volume]}}
        again.call("ACCEPT", {"offer_ids": [offer["id"]], "operations": [destroy]})
        wait_until(lambda: not file.exists(), "the end of the volume")


@pytest.mark.parametrize("how", ["kill", "freeze"])
def test_nothing_is_left_of_an_agent_that_is_away_at_the_end(work_dir: Path, how: str) -> None:
    with EmbeddedProcess(work_dir, *QUICK) as mesos:
        scheduler = Scheduler(mesos.address)
        _, pid = run(scheduler)
        assert mesos.fault("agent-stop", "1", how).status == 200
        assert is_alive(pid)
    assert not is_alive(pid)

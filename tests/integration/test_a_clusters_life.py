"""What happens to a cluster in its years, each event once with real processes, and the scheduler killed in the midst of it.

After each of them the wanted fleet is there, volumes are found again, nothing they held is read of the under store again, no
task and no reservation is left that nobody owns: see support/lives.py.
"""

from __future__ import annotations

import os
import pathlib
import signal
from collections.abc import Iterator

import psutil
import pytest

from support.files import make_files
from support.lives import AGENTS, INSTANCES, Life
from support.stores import HttpStore, http_store
from support.waiting import wait_until
from support.watchers import Watcher
from support.zookeeper import Place, needs_zookeeper, zookeeper

__all__ = ["zookeeper"]  # a fixture

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("life") / "data"
    make_files(path, 60, size_min=0, size_max=300_000, seed=41)
    return path


@pytest.fixture(scope="module")
def store(root: pathlib.Path) -> Iterator[HttpStore]:
    with http_store(root) as running:
        yield running


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory, store: HttpStore, root: pathlib.Path) -> Iterator[Life]:
    """One cluster for all events: it is whole again after each."""
    made = Life(tmp_path_factory.mktemp("life"))
    try:
        made.load(store, root)
        made.check()
        yield made
    finally:
        made.close()


@pytest.fixture
def reader(life: Life, root: pathlib.Path) -> Iterator[Watcher]:
    """One who reads all the time: no read may fail, or be wrong."""
    with Watcher(life.client.url, "d", root, transport="auto", seed=3) as watcher:
        yield watcher


def test_agents_that_restart_one_after_another_keep_their_executors(life: Life, reader: Watcher) -> None:
    before, tasks = life.launches(), life.all_tasks()
    for number in range(1, AGENTS + 1):
        life.fault("agent-stop", str(number), "kill")
        if number == 2:
            life.kill_scheduler()
        reader.wait_reads(20)
        life.fault("agent-start", str(number))
        if number == 2:
            life.start_scheduler()
        wait_until(
            lambda: len(active(life)) == AGENTS,
            "the agent to be back",
        )
        reader.wait_reads(20)
    life.wait_launches(before)
    assert life.all_tasks() == tasks, "no task is launched anew"
    life.check()
    assert life.launches() == before


def test_an_agent_that_is_lost_and_returns_keeps_its_executor(life: Life, reader: Watcher) -> None:
    before, tasks = life.launches(), life.all_tasks()
    slot, victim = next(iter(life.running().items()))
    life.fault("agent-stop", life.number_of(victim), "kill")
    wait_until(lambda: "cannot reach" in (life.executor(slot)["reason"] or ""), "TASK_UNREACHABLE")
    life.fail_over()
    reader.wait_reads(50)
    wait_until(lambda: "cannot reach" in (life.executor(slot)["reason"] or ""), "the next one to be told so")
    life.fault("agent-start", life.number_of(victim))
    wait_until(lambda: not life.executor(slot)["reason"], "TASK_RUNNING")
    life.wait_launches(before)
    assert life.all_tasks() == tasks
    life.check()
    assert life.launches() == before


def test_an_executor_that_died_while_its_agent_was_away_finds_its_volume(life: Life) -> None:
    before = life.running()
    slot, victim = next(iter(before.items()))
    held = victim["disk"]["used_bytes"]
    assert held
    life.fault("agent-stop", life.number_of(victim), "kill")
    wait_until(lambda: "cannot reach" in (life.executor(slot)["reason"] or ""), "TASK_UNREACHABLE")
    os.kill(victim["pid"], signal.SIGKILL)
    wait_until(lambda: not psutil.pid_exists(victim["pid"]), "its end")
    life.fail_over()
    life.fault("agent-start", life.number_of(victim))
    wait_until(
        lambda: life.running().get(slot, victim)["launch"] != victim["launch"],
        "the slot to be launched again",
    )
    now = life.running()
    assert now[slot]["hostname"] == victim["hostname"]
    assert {s: e["launch"] for s, e in now.items() if s != slot} == {
        s: e["launch"] for s, e in before.items() if s != slot
    }
    wait_until(
        lambda: life.executor(slot)["disk"] and life.executor(slot)["disk"]["used_bytes"] == held,
        "all that its volume held",
    )
    life.check()


@pytest.mark.parametrize("in_the_midst", [False, True], ids=["alone", "with a scheduler that dies"])
def test_a_master_that_comes_back_with_an_empty_memory(
    life: Life, reader: Watcher, in_the_midst: bool
) -> None:
    before, tasks = life.launches(), life.tasks("tasks")
    framework, master = life.client.leader()["framework_id"], life.state()["id"]
    life.fault("master-kill")
    if in_the_midst:
        life.kill_scheduler()
    reader.wait_reads(20)
    life.fault("master-start")
    if in_the_midst:
        life.start_scheduler()
    wait_until(lambda: life.tasks("tasks") == tasks, "the new master to know the tasks")
    assert life.state()["id"] != master
    life.wait_launches(before)
    assert life.client.leader()["framework_id"] == framework
    life.check()
    assert life.all_tasks() == tasks and life.launches() == before


def test_a_machine_that_was_down_for_maintenance_comes_back_with_its_volumes(
    life: Life, reader: Watcher
) -> None:
    """The whole window: drained, shut down, and up again; the scheduler dies while the machine is down."""
    before = life.running()
    slot, victim = next(iter(before.items()))
    machine = life.machine(victim["hostname"])
    life.plan_maintenance(victim["hostname"])
    wait_until(lambda: "ACCEPT" in life.operate("GET_MAINTENANCE_STATUS"), "the inverse offer to be accepted")
    wait_until(lambda: life.running().get(slot, victim)["launch"] != victim["launch"], "the slot elsewhere")
    life.operate("START_MAINTENANCE", {"machines": [machine]})
    wait_until(lambda: len(active(life)) == AGENTS - 1, "the agent to be shut down")
    life.fail_over()
    reader.wait_reads(20)
    life.check_data()
    life.operate("STOP_MAINTENANCE", {"machines": [machine]})
    life.fault("agent-start", life.number_of(victim))
    wait_until(lambda: len(active(life)) == AGENTS, "the agent to be back")
    life.check()


def test_a_maintenance_drains_its_agent_though_the_scheduler_dies(life: Life, reader: Watcher) -> None:
    running = life.running()
    (slot, victim), (_, other) = running.items()
    volumes = life.volumes()
    os.kill(other["pid"], signal.SIGSTOP)  # nothing can be moved to it: the drain lasts
    try:
        life.plan_maintenance(victim["hostname"])
        wait_until(lambda: drain_of(life, victim)[:1] == ("DRAINING",), "the drain to begin")
        life.kill_scheduler()
    finally:
        os.kill(other["pid"], signal.SIGCONT)
    assert "ACCEPT" not in life.operate("GET_MAINTENANCE_STATUS")
    life.start_scheduler()
    wait_until(lambda: "ACCEPT" in life.operate("GET_MAINTENANCE_STATUS"), "the inverse offer to be accepted")
    assert drain_of(life, victim) == ("DRAINED", "maintenance")
    wait_until(lambda: len(life.running()) == INSTANCES, "the slot to run elsewhere")
    assert life.running()[slot]["hostname"] not in (victim["hostname"], other["hostname"])
    assert life.launches()[other["slot"]] == (other["launch"], other["pid"])
    wait_until(lambda: not psutil.pid_exists(victim["pid"]), "the drained executor's end")
    life.check()
    assert set(volumes) <= set(life.volumes()), "what was on the drained agent is kept"
    life.plan_maintenance()
    volumes = life.volumes()
    life.grow(AGENTS)
    wait_until(lambda: not drain_of(life, victim), "an offer of the agent that is not to be down any more")
    life.check()
    assert life.volumes() == volumes, "the new executor found what was on the drained agent"
    reader.wait_reads(20)


def active(life: Life) -> list[str]:
    """Return the hostnames of the agents that the master counts on."""
    return [agent["hostname"] for agent in life.state()["slaves"] if agent["active"]]


def drain_of(life: Life, executor: dict[str, object]) -> tuple[str, ...]:
    """Return state and cause of a drain of the executor's agent, if there is one."""
    (agent,) = [agent for agent in life.client.agents() if agent["hostname"] == executor["hostname"]]
    return (agent["drain"]["state"], agent["drain"]["cause"]) if agent["drain"] else ()


@needs_zookeeper
def test_another_master_leads_in_zookeeper(
    tmp_path: pathlib.Path, zookeeper: Place, store: HttpStore, root: pathlib.Path
) -> None:
    """Two masters and a scheduler that finds the leader where they say it: the leader dies, and the scheduler, too."""
    options = ("--zk", zookeeper.url, "--zk-session-timeout", "2", "--masters", "2")
    life = Life(tmp_path, mesos_options=options, first_address=10, master=zookeeper.url)
    try:
        life.address = life.leader(2)
        life.load(store, root)
        life.check()
        before, tasks = life.launches(), life.tasks("tasks")
        framework, master = life.client.leader()["framework_id"], life.state()["id"]
        with Watcher(life.client.url, "d", root, transport="auto", seed=3) as reader:
            for is_both in (False, True):
                life.fault("master-kill")
                if is_both:
                    life.fail_over()
                wait_until(lambda: life.leader(2) not in ("", life.address), "another leader")
                life.address = life.leader(2)
                wait_until(lambda: life.tasks("tasks") == tasks, "the new leader to know the tasks")
                assert life.state()["id"] != master
                master = life.state()["id"]
                reader.wait_reads(20)
                life.wait_launches(before)
                assert life.client.leader()["framework_id"] == framework
                life.check()
                assert life.all_tasks() == tasks and life.launches() == before
                life.fault("master-start")
    finally:
        life.close()

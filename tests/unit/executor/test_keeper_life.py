"""The beginning and the end of an executor, and the leaders it listens to."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from support.data_servers import DEADLINE_S, LAUNCH
from support.executors import (
    ALL,
    FakeScheduler,
    RunningExecutor,
    check_all,
    make_files,
    running_executor,
)
from support.waiting import wait_until


def test_kill_and_shutdown_end_it_cleanly(scheduler: FakeScheduler) -> None:
    for launch, word in enumerate(("kill", "shutdown"), 1):
        executor = RunningExecutor(scheduler, launch=launch).wait_running()
        pids = [pid for children in executor.children().values() for pid in children]
        socket_path = scheduler.last(launch).socket_path
        assert os.path.exists(socket_path)
        executor.say(word)
        assert executor.process.wait(DEADLINE_S) == 0
        executor.wait_status("TASK_KILLED")
        assert not any(is_alive(pid) for pid in pids)
        assert not os.path.exists(socket_path)
        executor.close()


def test_sigterm_ends_it_cleanly(scheduler: FakeScheduler) -> None:
    executor = RunningExecutor(scheduler).wait_running()
    executor.process.send_signal(signal.SIGTERM)
    assert executor.process.wait(DEADLINE_S) == 0
    executor.wait_status("TASK_KILLED")
    executor.close()


def test_a_launch_without_a_place_ends_itself(scheduler: FakeScheduler) -> None:
    executor = RunningExecutor(scheduler).wait_running()
    scheduler.status = "stale"
    assert executor.process.wait(DEADLINE_S) == 0
    executor.wait_status("TASK_FINISHED")
    executor.close()


def test_an_executor_that_gets_no_task_ends_itself(scheduler: FakeScheduler) -> None:
    executor = RunningExecutor(scheduler, TEST_LAUNCH_TIMEOUT_S="0.2")
    assert executor.process.wait(DEADLINE_S) == 1
    assert not executor.statuses, "of a task that it never had"
    executor.close()


@pytest.mark.parametrize("victim", ["server", "filler"])
def test_a_killed_child_ends_all_of_them(tmp_path: Path, scheduler: FakeScheduler, victim: str) -> None:
    executor = RunningExecutor(scheduler).wait_running()
    children = executor.children()
    os.kill(children[victim][0], signal.SIGKILL)
    assert executor.process.wait(DEADLINE_S) == 1
    assert victim in executor.wait_status("TASK_FAILED")
    for pids in children.values():
        for pid in pids:
            wait_until(lambda pid=pid: not is_alive(pid), "the other children end")
    executor.close()


@pytest.mark.parametrize("victim", ["server", "filler"])
def test_a_child_that_hangs_ends_all_of_them(scheduler: FakeScheduler, victim: str) -> None:
    executor = RunningExecutor(scheduler, TEST_CHILD_PATIENCE_MS="2000").wait_running()
    children = executor.children()
    os.kill(children[victim][0], signal.SIGSTOP)
    assert executor.process.wait(DEADLINE_S) == 1
    told = executor.wait_status("TASK_FAILED")
    assert victim in told and str(children[victim][0]) in told and "it hangs" in told
    for pids in children.values():
        for pid in pids:
            wait_until(lambda pid=pid: not is_alive(pid), "all children end")
    executor.close()


def test_a_keeper_that_was_stopped_too_blames_no_child(tmp_path: Path, scheduler: FakeScheduler) -> None:
    """As on a machine that was suspended; and children that have nothing to say are not taken for dead."""
    patience_ms = 2_000
    dataset = make_files(tmp_path)
    scheduler.serve(dataset)
    scheduler.assign(dataset.assignment(wanted=ALL, wanted_version=1))
    with running_executor(scheduler, TEST_CHILD_PATIENCE_MS=str(patience_ms)) as executor:
        scheduler.wait_full(dataset.manifest.block_count)
        pids = [pid for group in executor.children().values() for pid in group]
        for pid in (*pids, executor.process.pid):
            os.kill(pid, signal.SIGSTOP)
        time.sleep(1.5 * patience_ms / 1000)
        for pid in (executor.process.pid, *pids):
            os.kill(pid, signal.SIGCONT)
        heard = scheduler.last().sequence
        scheduler.wait(lambda: scheduler.last().sequence > heard + 2, "heartbeats to go on")
        time.sleep(1.5 * patience_ms / 1000)
        client = executor.wait_dataset()
        check_all(client, dataset)
        client.close()
        assert executor.process.poll() is None


@pytest.fixture
def sockets() -> Iterator[str]:
    """A directory whose path leaves room for a socket's name, wherever tests keep their files."""
    with tempfile.TemporaryDirectory(prefix="stk") as directory:
        yield directory


def test_a_killed_keeper_takes_all_along_and_the_next_start_cleans_up(
    sockets: str, scheduler: FakeScheduler
) -> None:
    executor = RunningExecutor(scheduler, socket_dir=sockets).wait_running()
    children = [pid for pids in executor.children().values() for pid in pids]
    os.kill(executor.children()["server"][0], signal.SIGSTOP)  # so that it cannot clean up
    executor.process.kill()
    executor.process.wait()
    for pid in children:
        wait_until(lambda pid=pid: not is_alive(pid), "the children end")
    assert len(os.listdir(sockets)) == 1
    second = RunningExecutor(scheduler, socket_dir=sockets, launch=8, slot=2).wait_running()
    assert os.listdir(sockets) == [os.path.basename(scheduler.last(8).socket_path)]
    second.close()
    assert os.listdir(sockets) == []
    executor.close()


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_taken_port_fails_the_task_with_the_reason(scheduler: FakeScheduler) -> None:
    first = RunningExecutor(scheduler).wait_running()
    second = RunningExecutor(scheduler, launch=9, STOKER_PORT=str(scheduler.last().port))
    assert second.process.wait(DEADLINE_S) == 1
    assert str(scheduler.last().port) in second.wait_status("TASK_FAILED")
    second.close()
    assert first.close() == 0


def test_an_old_leader_is_not_listened_to(tmp_path: Path, scheduler: FakeScheduler) -> None:
    dataset = make_files(tmp_path)
    scheduler.serve(dataset)
    scheduler.epoch = 5
    scheduler.assign(dataset.assignment(wanted=ALL, wanted_version=1))
    with running_executor(scheduler) as executor:
        scheduler.wait_full(dataset.manifest.block_count)
        assert scheduler.last().epoch_seen == 5
        scheduler.epoch, scheduler.status = 4, "stale"
        scheduler.assign()
        count = len(scheduler.heartbeats[LAUNCH])
        scheduler.wait(lambda: len(scheduler.heartbeats[LAUNCH]) > count + 2, "more heartbeats")
        assert scheduler.last().epoch_seen == 5 and scheduler.last().used_bytes > 0
        assert executor.process.poll() is None
        scheduler.epoch, scheduler.status = 6, "ok"
        scheduler.assign()
        scheduler.wait(
            lambda: scheduler.last().used_bytes == 0 and scheduler.last().epoch_seen == 6, "obeyed"
        )


def test_the_scheduler_may_be_away_and_move(tmp_path: Path, scheduler: FakeScheduler) -> None:
    """The first of the list answers nothing; the leader is found, and after a loss everything is told whole."""
    dataset = make_files(tmp_path, 10)
    scheduler.serve(dataset)
    scheduler.assign(dataset.assignment(wanted=ALL, wanted_version=1))
    urls = f"http://127.0.0.1:1,{scheduler.url}"
    with running_executor(scheduler, STOKER_SCHEDULERS=urls):
        scheduler.wait_full(dataset.manifest.block_count)
        assert scheduler.heartbeats[LAUNCH][0].whole
        assert not scheduler.last().whole
        scheduler.held.clear()
        scheduler.want_whole = True
        scheduler.wait(lambda: scheduler.last().whole, "the whole")
        scheduler.want_whole = False
        scheduler.wait_full(dataset.manifest.block_count)

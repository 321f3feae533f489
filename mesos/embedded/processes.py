"""Executor processes: sandboxes, start, the end of a process, the end of a whole process tree, and orphans of a dead predecessor.

Before a process is started a record of its sandbox is written below the work_dir, with its pid and start time right after. Whoever
starts on the same work_dir finds by these records what outlived a killed predecessor, and ends it: a pid alone is never trusted,
the start time (or, for its children, the sandbox in their environment) must agree.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import gevent
import psutil
from gevent import socket

from stoker.mesos.embedded.core.values import StartProcess

logger = logging.getLogger(__name__)

SANDBOXES_MAX = 50  # of ended executors, kept for their logs; the oldest go first
KILL_SECONDS_MAX = 10  # a process that is still there so long after its SIGKILL is reported

_POLL_SECONDS = 0.01


class LaunchError(Exception):
    """A process cannot be started; the text says why."""


class Runner:
    """The executor processes of one embedded Mesos."""

    def __init__(self, work_dir: Path, on_exit: Callable[[str, int], None]) -> None:
        self._work_dir = work_dir
        self._records = work_dir / "meta" / "executors"
        self._records.mkdir(parents=True, exist_ok=True)
        self._on_exit = on_exit
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._sandboxes: dict[str, Path] = {}

    @property
    def containers(self) -> list[str]:
        """Containers whose process is alive."""
        return list(self._processes)

    def start(self, order: StartProcess) -> int:
        """Start a process in its sandbox and return its pid; `on_exit(container_id, raw wait status)` follows once.

        :raises LaunchError: no such directory, no such program, something to fetch.
        """
        if order.command.get("uris"):
            text = "the embedded Mesos has no fetcher"
            raise LaunchError(f"Failed to fetch all URIs for container '{order.container_id}': {text}")
        sandbox = Path(order.sandbox)
        record = self._records / f"{order.container_id}.json"
        try:
            _make_sandbox(sandbox)
            _write_record(record, {"sandbox": order.sandbox})
            process = _spawn(order, sandbox)
        except OSError as error:
            record.unlink(missing_ok=True)
            raise LaunchError(f"{error.strerror}: {error.filename}") from error
        except ValueError as error:  # a NUL in the command or the environment
            record.unlink(missing_ok=True)
            raise LaunchError(str(error)) from error
        self._processes[order.container_id] = process
        self._sandboxes[order.container_id] = sandbox
        _write_record(
            record,
            {
                "sandbox": order.sandbox,
                "pid": process.pid,
                "start_ticks": _start_ticks(process.pid),
                "boot_id": _boot_id(),
            },
        )
        gevent.spawn(self._wait, order.container_id, process)
        return process.pid

    def kill(self, container_id: str) -> None:
        """SIGKILL a process; what it started is ended as soon as its own end is seen. Nothing if it is gone."""
        process = self._processes.get(container_id)
        if process is not None:
            # Not reaped before it leaves `_processes`, so the pid is surely its own.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def _wait(self, container_id: str, process: subprocess.Popen[bytes]) -> None:
        _wait_for_end(process.pid)
        # Its children end with it. It is not reaped yet, so its pid still names its group and session.
        kill_tree(process.pid, self._sandboxes[container_id])
        del self._processes[container_id], self._sandboxes[container_id]
        _, status = os.waitpid(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        (self._records / f"{container_id}.json").unlink(missing_ok=True)
        self._on_exit(container_id, status)
        gevent.get_hub().threadpool.spawn(prune_sandboxes, self._work_dir, list(self._sandboxes.values()))


def end_orphans(work_dir: Path) -> int:
    """SIGKILL every process that a predecessor on `work_dir` left behind; return how many executors there were."""
    records = work_dir / "meta" / "executors"
    count = 0
    for path in sorted(records.glob("*.json")):
        try:
            record = json.loads(path.read_text())
            sandbox = Path(record["sandbox"])
        except (ValueError, KeyError, TypeError) as error:
            logger.warning("record=%s is not readable (%s): ignored", path, error)
            path.unlink()
            continue
        pid = record.get("pid") if record.get("boot_id") == _boot_id() else None
        if pid is not None and _start_ticks(pid) != record["start_ticks"]:
            pid = None  # another process has this pid by now
        found = kill_tree(pid, sandbox)
        if found:
            count += 1
            logger.warning("sandbox=%s ended %d processes of a predecessor", sandbox, found)
        path.unlink()
    return count


def kill_tree(pid: int | None, sandbox: Path) -> int:
    """SIGKILL `pid`, its session and whoever has `sandbox` in its environment, until none is left; return how many.

    Waits for their end, so their memory and ports are free afterwards; `pid` itself may be a zombie that is ours to reap.
    """
    killed: set[int] = set()
    deadline = time.monotonic() + KILL_SECONDS_MAX
    while members := set(_members(pid, sandbox)):
        if time.monotonic() > deadline:
            logger.error("pid=%s sandbox=%s: %s are not gone after SIGKILL", pid, sandbox, sorted(members))
            break
        for member in members:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(member, signal.SIGKILL)
        killed |= members
        gevent.sleep(_POLL_SECONDS)
    return len(killed)


def prune_sandboxes(work_dir: Path, alive: Iterable[Path]) -> None:
    """Remove the oldest sandboxes of ended executors, down to SANDBOXES_MAX."""
    keep = set(alive)
    ended = [run for run in work_dir.glob("slaves/*/frameworks/*/executors/*/runs/*") if not run.is_symlink()]
    ended = sorted((run for run in ended if run not in keep), key=_modified)
    for run in ended[: max(0, len(ended) - SANDBOXES_MAX)]:
        shutil.rmtree(run, ignore_errors=True)
        latest = run.parent / "latest"
        if latest.is_symlink() and not latest.exists():
            latest.unlink(missing_ok=True)
        for parent in (run.parent, run.parent.parent):
            with contextlib.suppress(OSError):
                parent.rmdir()


def _members(pid: int | None, sandbox: Path) -> Iterator[int]:
    own = os.getpid()
    mark = f"MESOS_SANDBOX={sandbox}".encode()
    for member in psutil.pids():
        if member != own and _belongs(member, pid, mark) and not _is_zombie(member):
            yield member


def _belongs(member: int, pid: int | None, mark: bytes) -> bool:
    if member == pid:
        return True
    try:
        if pid is not None and os.getsid(member) == pid:
            return True
        with open(f"/proc/{member}/environ", "rb") as file:
            return mark in file.read().split(b"\0")
    except OSError:
        return False


def _is_zombie(member: int) -> bool:
    try:
        with open(f"/proc/{member}/stat", "rb") as file:
            return file.read().rsplit(b")", 1)[1].split()[0] in (b"Z", b"X")
    except OSError:
        return True


def _make_sandbox(sandbox: Path) -> None:
    sandbox.mkdir(parents=True)
    latest = sandbox.parent / "latest"
    fresh = sandbox.parent / f".latest-{sandbox.name}"
    fresh.symlink_to(sandbox.name)
    fresh.replace(latest)


def _spawn(order: StartProcess, sandbox: Path) -> subprocess.Popen[bytes]:
    value, arguments = order.command.get("value", ""), order.command.get("arguments", [])
    shell = order.command["shell"]
    argv = ["/bin/sh", "-c", value] if shell else (arguments or [value])
    with open(sandbox / "stdout", "ab") as out, open(sandbox / "stderr", "ab") as err:
        return subprocess.Popen(
            argv,
            executable="/bin/sh" if shell else value,
            cwd=sandbox,
            env=order.environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
            umask=0o022,
        )


def _wait_for_end(pid: int) -> None:
    """Return when our child `pid` has ended, without reaping it."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            gevent.sleep(_POLL_SECONDS)
        return
    try:
        socket.wait_read(descriptor)
    finally:
        os.close(descriptor)


def _write_record(path: Path, record: dict[str, object]) -> None:
    fresh = path.with_suffix(".tmp")
    fresh.write_text(json.dumps(record))
    fresh.replace(path)


def _start_ticks(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rsplit(b")", 1)[1].split()[19])
    except OSError:
        return None


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0

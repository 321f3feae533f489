"""Executor processes: sandboxes, what is fetched into them, start, the end of a process, the end of a whole process tree.

Before a process is started a record of its sandbox is written below the work_dir, with its pid and start time right after. Whoever
starts on the same work_dir finds by these records what outlived a killed predecessor, and adopts it, or ends it: a pid alone is
never trusted, the boot id and the start time (or, for its children, the sandbox in their environment) must agree.

A fetcher is a process too: no slow server holds anything up but its own container.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import gevent
import psutil
from gevent import socket
from gevent.event import Event

from stoker.mesos.embedded.core.values import StartProcess

logger = logging.getLogger(__name__)

SANDBOXES_MAX = 50  # of ended executors, kept for their logs; the oldest go first
KILL_SECONDS_MAX = 10  # a process that is still there so long after its SIGKILL is reported
FETCHER = (sys.executable, "-I", "-S", str(Path(__file__).with_name("fetcher.py")))
UNKNOWN_STATUS = -1  # of a process that is not our child

_POLL_SECONDS = 0.01


class LaunchError(Exception):
    """A process cannot be started; the text says why."""


class Listener(Protocol):
    """Who hears of the processes. None of these is called from within a call of the runner."""

    def process_started(self, container_id: str, pid: int) -> None: ...
    def process_failed(self, container_id: str, text: str, status: int) -> None: ...
    def process_exited(self, container_id: str, status: int) -> None: ...


@dataclass(slots=True)
class _Container:
    """A container from its sandbox on; `process` is its executor if that is our child, `fetcher` what comes before it."""

    sandbox: Path
    killed: Event
    pid: int | None = None
    start_ticks: int | None = None
    process: subprocess.Popen[bytes] | None = None
    fetcher: subprocess.Popen[bytes] | None = None


class Runner:
    """The executor processes of one embedded Mesos."""

    def __init__(self, work_dir: Path, listener: Listener, *, cache_bytes_max: int) -> None:
        self._work_dir = work_dir
        self._records = work_dir / "meta" / "executors"
        self._records.mkdir(parents=True, exist_ok=True)
        self._listener = listener
        self._cache_bytes_max = cache_bytes_max
        self._containers: dict[str, _Container] = {}
        self.fetch_delay_s = 0.0

    @property
    def containers(self) -> list[str]:
        """Containers that have a process, or are going to."""
        return list(self._containers)

    def start(self, order: StartProcess, cache_dir: Path) -> int | None:
        """Make a sandbox and start the process in it; return its pid, or None: something is fetched first.

        `process_exited` follows once; where None was returned, `process_started` or `process_failed` before it or in its place.

        :raises LaunchError: no such directory, no such program.
        """
        container = _Container(Path(order.sandbox), Event())
        try:
            _make_sandbox(container.sandbox)
            for name, target in order.links:
                _link(container.sandbox / name, target)
        except OSError as error:
            raise LaunchError(f"{error.strerror}: {error.filename}") from error
        if not order.command.get("uris"):
            return self._spawn(order, container)
        self._containers[order.container_id] = container
        gevent.spawn(self._fetch, order, container, cache_dir)
        return None

    def adopt(self, container_id: str) -> int | None:
        """Take over a process that a predecessor started; return its pid, or None: it is gone. `watch` follows."""
        path = self._records / f"{container_id}.json"
        record = _read_record(path)
        if record is None:
            return None
        sandbox, pid, start_ticks = record
        if pid is None:
            kill_tree(None, sandbox)
            path.unlink()
            return None
        self._containers[container_id] = _Container(sandbox, Event(), pid, start_ticks)
        return pid

    def watch(self) -> None:
        """Begin to tell of the ends of what was adopted."""
        for container_id, container in self._containers.items():
            if container.process is None and container.pid is not None:
                gevent.spawn(self._wait, container_id)

    def kill(self, container_id: str) -> None:
        """SIGKILL a process; what it started is ended as soon as its own end is seen. Nothing if it is gone."""
        container = self._containers.get(container_id)
        if container is None:
            return
        container.killed.set()
        for child in (container.fetcher, container.process):
            if child is not None:
                # Not reaped before it leaves `_containers`, so the pid is surely its own.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
        adopted = container.pid if container.process is None else None
        if adopted is not None and _start_ticks(adopted) == container.start_ticks:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(adopted, signal.SIGKILL)

    def end_others(self) -> int:
        """SIGKILL every process that a predecessor left behind and nobody adopted; return how many executors there were."""
        count = 0
        for path in sorted(self._records.glob("*.json")):
            record = _read_record(path)
            if path.stem in self._containers:
                continue
            if record is not None:
                sandbox, pid, _ = record
                found = kill_tree(pid, sandbox)
                count += found > 0
                if found:
                    logger.warning("sandbox=%s ended %d processes of a predecessor", sandbox, found)
            path.unlink(missing_ok=True)
        return count

    def prune(self) -> None:
        """Remove the oldest sandboxes of ended executors."""
        prune_sandboxes(self._work_dir, [container.sandbox for container in self._containers.values()])

    def _spawn(self, order: StartProcess, container: _Container) -> int:
        record = self._records / f"{order.container_id}.json"
        try:
            _write_record(record, {"sandbox": order.sandbox})
            process = _spawn(order, container.sandbox)
        except OSError as error:
            record.unlink(missing_ok=True)
            raise LaunchError(f"{error.strerror}: {error.filename}") from error
        except ValueError as error:  # a NUL in the command or the environment
            record.unlink(missing_ok=True)
            raise LaunchError(str(error)) from error
        container.process, container.pid = process, process.pid
        container.start_ticks = _start_ticks(process.pid)
        self._containers[order.container_id] = container
        _write_record(
            record,
            {
                "sandbox": order.sandbox,
                "pid": process.pid,
                "start_ticks": container.start_ticks,
                "boot_id": boot_id(),
            },
        )
        gevent.spawn(self._wait, order.container_id)
        return process.pid

    def _fetch(self, order: StartProcess, container: _Container, cache_dir: Path) -> None:
        name = order.container_id
        if self.fetch_delay_s:
            container.killed.wait(self.fetch_delay_s)
        status = 0
        if not container.killed.is_set():
            container.fetcher = _start_fetcher(order, container.sandbox, cache_dir, self._cache_bytes_max)
            _wait_for_end(container.fetcher.pid, None)
            _, status = os.waitpid(container.fetcher.pid, 0)
            container.fetcher.returncode = os.waitstatus_to_exitcode(status)
            container.fetcher = None
        if container.killed.is_set():
            del self._containers[name]
            self._listener.process_exited(name, signal.SIGKILL)
            return
        try:
            if status:
                how = f"exited with status {os.WEXITSTATUS(status)}"
                if os.WIFSIGNALED(status):
                    how = f"terminated with signal {signal.strsignal(os.WTERMSIG(status))}"
                raise LaunchError(f"Failed to fetch all URIs for container '{name}': {how}")
            pid = self._spawn(order, container)
        except LaunchError as error:
            del self._containers[name]
            self._listener.process_failed(name, str(error), signal.SIGKILL)
        else:
            self._listener.process_started(name, pid)

    def _wait(self, container_id: str) -> None:
        container = self._containers[container_id]
        assert container.pid is not None
        _wait_for_end(container.pid, container.start_ticks)
        # Its children end with it. If it is ours it is not reaped yet, so its pid still names its group and session.
        kill_tree(container.pid if container.process else None, container.sandbox)
        del self._containers[container_id]
        status = UNKNOWN_STATUS
        if container.process is not None:
            _, status = os.waitpid(container.pid, 0)
            container.process.returncode = os.waitstatus_to_exitcode(status)
        (self._records / f"{container_id}.json").unlink(missing_ok=True)
        self._listener.process_exited(container_id, status)
        gevent.get_hub().threadpool.spawn(self.prune)


def boot_id() -> str:
    """Return the kernel's name for this boot of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _read_record(path: Path) -> tuple[Path, int | None, int | None] | None:
    """Return the sandbox, and the pid and start time if that process is still there; None: no such record."""
    try:
        record = json.loads(path.read_text())
        sandbox, pid = Path(record["sandbox"]), record.get("pid")
        if pid is None or record["boot_id"] != boot_id() or _is_zombie(pid):
            return sandbox, None, None
        # Where the start time differs another process has this pid by now.
        alive = _start_ticks(pid) == record["start_ticks"]
        return sandbox, (pid if alive else None), record["start_ticks"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        logger.warning("record=%s is not readable (%s): ignored", path, error)
        return None


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
    ended = [
        run
        for run in work_dir.glob("agent*/slaves/*/frameworks/*/executors/*/runs/*")
        if not run.is_symlink()
    ]
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


def _link(path: Path, target: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def _start_fetcher(
    order: StartProcess, sandbox: Path, cache_dir: Path, cache_bytes_max: int
) -> subprocess.Popen[bytes]:
    task = {
        "sandbox": order.sandbox,
        "uris": order.command["uris"],
        "cache_dir": str(cache_dir),
        "cache_bytes_max": cache_bytes_max,
    }
    with open(os.memfd_create("order"), "w+") as text, open(sandbox / "stderr", "ab") as err:
        json.dump(task, text)
        text.seek(0)
        return subprocess.Popen(FETCHER, stdin=text, stdout=err, stderr=err, start_new_session=True)


def _wait_for_end(pid: int, start_ticks: int | None) -> None:
    """Return when `pid` has ended, without reaping it; the start time is that of a process that is not our child."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    except OSError:
        while not _is_zombie(pid) and start_ticks in (None, _start_ticks(pid)):
            gevent.sleep(_POLL_SECONDS)
        return
    try:
        if start_ticks in (None, _start_ticks(pid)):
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


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0

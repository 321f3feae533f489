"""A whole cluster on one machine: embedded Mesos and one scheduler as child processes, executors as Mesos' children.

Owns the state directory: `lock` (one cluster a directory), `journal/` (what survives), `mesos/` (sandboxes) and
`scratch/` (removed at the stop), `log/`. The children die with this process, however it ends; executors that outlive a SIGKILL of everything
are ended by the embedded agents of the next start before anything is offered.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import http.client
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import IO

from stoker.framework.model import overhead_bytes

AGENT_SPARE_BYTES = 64 * 1024 * 1024
START_TIMEOUT_MS = 30_000
SCHEDULER_STOP_TIMEOUT_MS = 10_000
MESOS_STOP_TIMEOUT_MS = 20_000
POLL_INTERVAL_S = 0.02
PR_SET_PDEATHSIG = 1
LISTENING = "listening on http://"


class LocalClusterError(OSError):
    """The cluster cannot start or has ended; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class LocalSpec:
    """What to run; `port` 0: any free one. `executor_environment` names go from our environment to the executors'."""

    agents: int
    mem_bytes: int
    port: int
    state: pathlib.Path
    executor_environment: tuple[str, ...] = ()
    socket_dir: str = ""


class LocalCluster:
    """Start, watch and stop the cluster of a LocalSpec. Use from the main thread of a process."""

    def __init__(self, spec: LocalSpec) -> None:
        self.spec = spec
        self.port = 0
        self._lock: IO[str] | None = None
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Return once the scheduler leads.

        :raises LocalClusterError: the state or the port is taken, or a child did not come up; nothing is left running.
        """
        if not (self.spec.state / "lock").exists():
            _claim_port(self.spec.port)  # refused, it leaves nothing behind
            self.spec.state.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        try:
            self.port = _claim_port(self.spec.port)
            (self.spec.state / "log").mkdir(exist_ok=True)
            master = self._start_mesos()
            self._start_scheduler(master)
            self._wait_until_leading()
        except BaseException:
            self.stop()
            raise

    def _take_lock(self) -> None:
        lock = open(self.spec.state / "lock", "a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            lock.close()
            raise LocalClusterError(
                f"{holder} already runs a cluster on {self.spec.state}: stop it, or choose another --state"
            ) from None
        lock.truncate(0)
        lock.write(f"pid {os.getpid()}")
        lock.flush()
        self._lock = lock

    def _start_mesos(self) -> str:
        agent_mem = self.spec.mem_bytes + overhead_bytes(self.spec.mem_bytes, 0) + AGENT_SPARE_BYTES
        command = [sys.executable, "-m", "stoker.mesos.embedded", "--host", "127.0.0.1", "--port", "0"]
        command += ["--agents", str(self.spec.agents), "--cpus", "2", "--mem", str(agent_mem)]
        command += ["--hostnames", ",".join(agent_addresses(self.spec.agents, os.getpid()))]
        command += ["--work-dir", str(self.spec.state / "mesos"), "--recovery-timeout", "10"]
        command += ["--recover", "cleanup"]  # a cluster starts clean: what a killed one left is ended
        child = self._spawn("mesos", command, stdout=subprocess.PIPE)
        assert child.stdout is not None
        os.set_blocking(child.stdout.fileno(), False)
        deadline, said = time.monotonic() + START_TIMEOUT_MS / 1000, b""
        while LISTENING.encode() not in said or not said.endswith(b"\n"):
            said += child.stdout.read() or b""
            self._check_starting(deadline)
            time.sleep(POLL_INTERVAL_S)
        return said.decode().split(LISTENING, 1)[1].split()[0].rstrip("/")

    def _start_scheduler(self, master: str) -> None:
        config = {
            "master": master,
            "journal": f"file:{self.spec.state / 'journal'}",
            "scratch_dir": str(self.spec.state / "scratch"),
            "host": "127.0.0.1",
            "port": self.port,
            "name": "stoker-local",
            "instances": self.spec.agents,
            "mem_bytes": self.spec.mem_bytes,
            "executor_environment": list(self.spec.executor_environment),
            "allow_sources": [""],
            "socket_dir": self.spec.socket_dir,
        }
        child = self._spawn(
            "scheduler", [sys.executable, "-m", "stoker.framework", "--config", "-"], stdin=subprocess.PIPE
        )
        assert child.stdin is not None
        with contextlib.suppress(BrokenPipeError), child.stdin:  # a child that is gone is told by its log
            child.stdin.write(json.dumps(config).encode())

    def _spawn(
        self, name: str, command: list[str], *, stdin: int = subprocess.DEVNULL, stdout: int | None = None
    ) -> subprocess.Popen[bytes]:
        with open(self.spec.state / "log" / name, "wb") as log:
            child = subprocess.Popen(
                command,
                stdin=stdin,
                stdout=log.fileno() if stdout is None else stdout,
                stderr=log.fileno(),
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        self._children[name] = child
        return child

    def _wait_until_leading(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_MS / 1000
        while not _answers_ok(self.port):
            self._check_starting(deadline)
            time.sleep(POLL_INTERVAL_S)

    def _check_starting(self, deadline: float) -> None:
        self.check()
        if time.monotonic() > deadline:
            raise LocalClusterError(
                f"the cluster did not come up in {START_TIMEOUT_MS // 1000} s: see {self.spec.state / 'log'}"
            )

    def check(self) -> None:
        """:raises LocalClusterError: a child process ended."""
        for name, child in self._children.items():
            if child.poll() is not None:
                raise LocalClusterError(f"{name} ended ({_how(child.returncode)}): {self._last_words(name)}")

    def _last_words(self, name: str) -> str:
        lines = (self.spec.state / "log" / name).read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def stop(self) -> None:
        """End the scheduler, then Mesos and with it the executors; leave only the state. Idempotent."""
        self._end("scheduler", SCHEDULER_STOP_TIMEOUT_MS)
        if self._end("mesos", MESOS_STOP_TIMEOUT_MS) == 0:
            for made_again in ("mesos", "scratch"):
                shutil.rmtree(self.spec.state / made_again, ignore_errors=True)
        if self._lock:
            self._lock.close()
            self._lock = None

    def _end(self, name: str, timeout_ms: int) -> int | None:
        child = self._children.pop(name, None)
        if child is None:
            return None
        child.terminate()
        try:
            child.wait(timeout_ms / 1000)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe and not pipe.closed:
                pipe.close()
        return child.returncode


def agent_addresses(agents: int, pid: int) -> list[str]:
    """Return a loopback address for each agent; clusters of other processes get others, so their ports never clash."""
    return [f"127.{pid // 250 % 250 + 1}.{pid % 250 + 1}.{10 + i}" for i in range(agents)]


def _claim_port(port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise LocalClusterError(
                f"port {port} is taken on 127.0.0.1 ({error.strerror}): choose another with --port"
            ) from error
        bound: int = probe.getsockname()[1]
        return bound


def _die_with_parent() -> None:
    signal.pthread_sigmask(
        signal.SIG_SETMASK, ()
    )  # the parent may wait for its signals with all of them blocked
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _answers_ok(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def _how(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"exit code {status}"

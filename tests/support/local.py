"""A real `stoker local` for tests: the installed command, real processes, a real state directory."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import click.testing
import psutil

from stoker.client.api import Client
from stoker.framework.cli.main import main
from support.waiting import DEADLINE_S, wait_until

STOKER = str(pathlib.Path(sys.executable).with_name("stoker"))
STOP_TIMEOUT_S = DEADLINE_S


class Local:
    """A running `stoker local`; `url` is its API."""

    def __init__(
        self,
        state: pathlib.Path,
        *arguments: str,
        environment: dict[str, str] | None = None,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        """Return once it leads; `prepare` runs in the new process before the command does."""
        self.state = state
        self._process = subprocess.Popen(
            [STOKER, "local", "--port", "0", "--state", str(state), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=os.environ | (environment or {}),
            preexec_fn=prepare,
        )
        try:
            self.url = self._read_url()
        except BaseException:
            self.kill_everything()
            raise
        self.client = Client(self.url)

    def _read_url(self) -> str:
        assert self._process.stdout is not None and self._process.stderr is not None
        for line in self._process.stdout:
            if line.startswith("STOKER_URL="):
                return line.strip().removeprefix("STOKER_URL=")
        raise AssertionError(f"stoker local did not start: {self._process.stderr.read()}")

    def processes(self) -> list[psutil.Process]:
        """Return the cluster's processes: the command, Mesos, the scheduler, executors and all their children."""
        try:
            parent = psutil.Process(self._process.pid)
            return [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def wait_until_running(self, count: int) -> None:
        wait_until(lambda: self.client.fleet()["running"] >= count, "executors to run")

    def add(self, name: str, source: str, **fields: Any) -> dict[str, Any]:
        """Add a dataset and return its view once it is READY."""
        self.client.create_dataset(name, source, **fields)
        wait_until(lambda: self.client.dataset_info(name)["state"] != "LISTING", "the listing")
        view = self.client.dataset_info(name)
        assert view["state"] == "READY", view["error"]
        return view

    def load(self, name: str, *paths: str, **fields: Any) -> dict[str, Any]:
        """Load and return the job's final view."""
        return self.finish(self.client.create_job("load", name, paths or None, **fields))

    def free(self, name: str, *paths: str) -> dict[str, Any]:
        return self.finish(self.client.create_job("free", name, paths or None))

    def finish(self, job: dict[str, Any]) -> dict[str, Any]:
        wait_until(
            lambda: self.client.job(job["id"])["state"] in ("SUCCEEDED", "FAILED", "CANCELLED"),
            "the job's end",
        )
        return self.client.job(job["id"])

    def run(self, *arguments: str, check: bool = False) -> subprocess.CompletedProcess[str]:
        """Run the command line against this cluster, in this process: a new one would take longer than most commands."""
        ran = click.testing.CliRunner().invoke(main, arguments, env={"STOKER_URL": self.url})
        story = ran.exc_info if ran.exception and not isinstance(ran.exception, SystemExit) else None
        said = ran.stderr + ("".join(traceback.format_exception(*story)) if story else "")
        assert not check or ran.exit_code == 0, said
        return subprocess.CompletedProcess(arguments, ran.exit_code, ran.stdout, said)

    def run_process(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the installed command against this cluster, its output in pipes."""
        return run_stoker(*arguments, environment={"STOKER_URL": self.url})

    def run_json(self, *arguments: str) -> Any:
        return json.loads(self.run(*arguments, "--json", check=True).stdout)

    def kill_everything(self) -> list[psutil.Process]:
        """SIGKILL the whole cluster but the executors, as a power button would see it from outside; return those left."""
        processes = self.processes()
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.kill()
        self._process.wait()
        self._close_pipes()
        return processes

    def stop(self) -> int:
        """SIGINT, as Ctrl-C does; return the exit code."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.kill_everything()
        self._close_pipes()
        return self._process.returncode

    def _close_pipes(self) -> None:
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe:
                pipe.close()


@contextlib.contextmanager
def local_cluster(
    state: pathlib.Path,
    *arguments: str,
    environment: dict[str, str] | None = None,
    prepare: Callable[[], None] | None = None,
) -> Iterator[Local]:
    local = Local(state, *arguments, environment=environment, prepare=prepare)
    try:
        yield local
    finally:
        local.stop()


def run_stoker(
    *arguments: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [STOKER, *arguments],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
        env=os.environ | (environment or {}),
    )

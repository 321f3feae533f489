"""Schedulers for tests: a real process on a real Mesos, or one loop in this process between fakes."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from stoker.zk.errors import Unavailable
from stoker.zk.journal import BATCH_BYTES_MAX, RECORD_BYTES_MAX, Recovered
from support.waiting import DEADLINE_S, wait_until

# --- journals


class MemoryJournal:
    """A Journal that keeps everything in memory; `records` is what is durable, from `snapshot_index` on."""

    def __init__(self) -> None:
        self.records: list[bytes] = []
        self.snapshot_index = 0
        self.snapshot: bytes | None = None
        self.blobs: dict[str, bytes] = {}
        self.batches: list[int] = []
        self.epoch = 0

    wants_snapshot = False

    def check(self) -> None:
        return

    def lead(self, from_index: int = 0) -> Recovered:
        self.epoch += 1
        batches = [(self.snapshot_index, list(self.records))] if self.records else []
        return Recovered(self.epoch, 1, self.snapshot_index, self.snapshot, iter(batches))

    def append(self, first_index: int, records: Sequence[bytes]) -> None:
        assert first_index == self.snapshot_index + len(self.records), "a gap in the journal"
        assert records and all(len(r) <= RECORD_BYTES_MAX for r in records)
        assert sum(map(len, records)) <= BATCH_BYTES_MAX
        self.records += records
        self.batches.append(len(records))

    def write_snapshot(self, index: int, data: bytes) -> None:
        assert self.snapshot_index <= index <= self.snapshot_index + len(self.records)
        del self.records[: index - self.snapshot_index]
        self.snapshot_index, self.snapshot = index, data

    def put_blob(self, data: bytes) -> str:
        import hashlib

        digest = hashlib.sha256(data).hexdigest()
        self.blobs[digest] = data
        return digest

    def get_blob(self, digest: str) -> bytes | None:
        return self.blobs.get(digest)

    def delete_blob(self, digest: str) -> None:
        self.blobs.pop(digest, None)

    def blob_digests(self) -> list[str]:
        return sorted(self.blobs)

    def audit(self) -> str:
        return ""

    def close(self) -> None:
        return


class SlowJournal(MemoryJournal):
    """Appends take `delay_s`, in real time; `append` records how many ran at once."""

    def __init__(self, delay_s: float) -> None:
        super().__init__()
        self.delay_s = delay_s
        self.running = self.running_max = 0

    def append(self, first_index: int, records: Sequence[bytes]) -> None:
        self.running += 1
        self.running_max = max(self.running_max, self.running)
        time.sleep(self.delay_s)
        super().append(first_index, records)
        self.running -= 1


class HeldJournal(MemoryJournal):
    """Appends wait until `release`, each in its thread; `running` is how many do."""

    def __init__(self) -> None:
        super().__init__()
        self.running = self.running_max = 0
        self._released = threading.Event()

    def append(self, first_index: int, records: Sequence[bytes]) -> None:
        self.running += 1
        self.running_max = max(self.running_max, self.running)
        self._released.wait(DEADLINE_S)
        super().append(first_index, records)
        self.running -= 1

    def hold(self) -> None:
        self._released.clear()

    def release(self) -> None:
        self._released.set()


class RefusingJournal(MemoryJournal):
    """The append number `refuse_at` (from 0) raises `error`, and so do all after it until `mend`."""

    def __init__(self, refuse_at: int, error: Exception | None = None) -> None:
        super().__init__()
        self.refuse_at = refuse_at
        self.error = error or Unavailable("no space left on device")
        self.appends = 0

    def append(self, first_index: int, records: Sequence[bytes]) -> None:
        self.appends += 1
        if 0 <= self.refuse_at < self.appends:
            raise self.error
        super().append(first_index, records)

    def mend(self) -> None:
        self.refuse_at = -1


# --- Mesos


@dataclass
class FakeDriver:
    """A scheduler driver that records the calls; `fail` makes the next calls raise."""

    scheduler: Any
    framework: dict[str, Any]
    calls: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)
    fail: Exception | None = None
    framework_id: str | None = None
    is_started: bool = False

    def start(self) -> None:
        self.is_started = True

    def stop(self, failover: bool = True) -> None:
        self.is_started = False

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("_"):
            raise AttributeError(name)

        def call(*arguments: Any, **named: Any) -> None:
            if self.fail is not None:
                raise self.fail
            self.calls.append((name, (*arguments, *named.values())))

        return call

    def named(self, name: str) -> list[tuple[Any, ...]]:
        return [arguments for called, arguments in self.calls if called == name]


def raw_offer(number: int, *, cpus: float = 4.0, mem: float = 4096.0, role: str = "*") -> dict[str, Any]:
    """Return an offer as a master sends it."""
    allocation = {"allocation_info": {"role": role}}
    return {
        "id": {"value": f"O{number}"},
        "framework_id": {"value": "F"},
        "agent_id": {"value": f"A{number}"},
        "hostname": f"host{number}",
        "allocation_info": {"role": role},
        "attributes": [{"name": "rack", "type": "TEXT", "text": {"value": "r1"}}],
        "resources": [
            {"name": "cpus", "type": "SCALAR", "scalar": {"value": cpus}, **allocation},
            {"name": "mem", "type": "SCALAR", "scalar": {"value": mem}, **allocation},
            {
                "name": "ports",
                "type": "RANGES",
                "ranges": {"range": [{"begin": 31000, "end": 31099}]},
                **allocation,
            },
        ],
    }


class InProcess:
    """A whole scheduler in this process, but for HTTP's socket and Mesos: real core, loop, API; fake journal and driver.

    Runs in greenlets of an unpatched process: call it from the test's main greenlet.
    """

    def __init__(self, journal: MemoryJournal, scratch: pathlib.Path, **config: Any) -> None:
        from falcon import testing

        from stoker.framework.api import Api
        from stoker.framework.config import Config
        from stoker.framework.errors import NotLeading
        from stoker.framework.journaling import JournalThread
        from stoker.framework.leadership import Leadership
        from stoker.framework.metrics import Metrics
        from stoker.framework.openapi import document
        from stoker.framework.routes import ROUTES
        from stoker.framework.web import make_app

        fields = {
            "instances": 2,
            "mem_bytes": 64 << 20,
            "allow_sources": ("",),
            "scratch_dir": str(scratch),
        } | config
        self.config = Config(master="127.0.0.1:5050", journal=f"file:{scratch}", **fields)
        self.config.check()
        self.journal = journal
        self.drivers: list[FakeDriver] = []
        self.metrics = Metrics()
        self.leadership: Any = None
        self.write_timeout_ms = 60_000  # a test whose machine is busy wants to know what came of its write

        def make_driver(scheduler: Any, framework: dict[str, Any]) -> FakeDriver:
            self.drivers.append(FakeDriver(scheduler, framework))
            return self.drivers[-1]

        def current() -> Any:
            if self.leadership is None:
                raise NotLeading("the scheduler is starting")
            return self.leadership

        def lead() -> None:
            self.leadership = Leadership(
                self.config,
                JournalThread(journal),
                make_driver,
                url="http://127.0.0.1:7070",
                metrics=self.metrics,
            )
            self.leadership.loop._write_timeout_ms = self.write_timeout_ms
            self.leadership.begin()

        self.lead = lead
        self.api = Api(
            current,
            allow_sources=self.config.allow_sources,
            metrics=self.metrics,
            document=document(ROUTES, version="0"),
        )
        self.client = testing.TestClient(make_app(self.api, self.metrics))

    @property
    def driver(self) -> FakeDriver:
        return self.drivers[-1]

    @property
    def loop(self) -> Any:
        return self.leadership.loop

    def call(
        self, method: str, path: str, body: Any = None, *, raw: str | bytes | None = None, **options: Any
    ) -> tuple[int, Any]:
        """Return the status and the body's JSON (bytes where it is none)."""
        if raw is not None or body is not None:
            options["body"] = json.dumps(body) if raw is None else raw
        result = self.client.simulate_request(method, path, **options)
        is_json = result.headers.get("content-type", "").startswith("application/json")
        return result.status_code, result.json if is_json else result.content

    def subscribe(self) -> None:
        """Do as a master that takes the framework in."""
        known = self.driver.framework.get("id", {}).get("value")
        self.driver.framework_id = known or "F-0001"
        if known:
            self.driver.scheduler.reregistered(self.driver, {"id": "M"})
        else:
            self.driver.scheduler.registered(self.driver, {"value": "F-0001"}, {"id": "M"})

    def close(self) -> None:
        if self.leadership is not None:
            self.leadership.close()
            self.leadership = None


# --- processes


class Api:
    """A tiny client of a scheduler's API, for tests of the API itself."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.host, _, port = url.removeprefix("http://").rpartition(":")
        self.port = int(port)

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: dict[str, str] | None = None,
        raw: bytes | None = None,
    ) -> tuple[int, Any]:
        """Return the status, and the body's JSON, or bytes where it is none."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=DEADLINE_S)
        try:
            data = raw if raw is not None else None if body is None else json.dumps(body).encode()
            connection.request(method, path, body=data, headers=headers or {})
            answer = connection.getresponse()
            content = answer.read()
            is_json = answer.getheader("Content-Type", "").startswith("application/json")
            return answer.status, json.loads(content) if is_json else content
        finally:
            connection.close()

    def get(self, path: str) -> Any:
        status, body = self.call("GET", path)
        assert status == 200, (status, body)
        return body


class SchedulerProcess:
    """`python -m stoker.framework` with a configuration; its log goes to `log`."""

    def __init__(
        self, config: dict[str, Any], log: pathlib.Path, *, environment: dict[str, str] | None = None
    ) -> None:
        self.config = {"host": "127.0.0.1", "port": 0, **config}
        self.log = log
        with open(log, "ab") as stderr:
            self.child = subprocess.Popen(
                [sys.executable, "-m", "stoker.framework", "--config", "-"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, **(environment or {})},
            )
        assert self.child.stdin is not None and self.child.stdout is not None
        with contextlib.suppress(BrokenPipeError), self.child.stdin:
            self.child.stdin.write(json.dumps(self.config).encode())
        self._url = ""

    @property
    def url(self) -> str:
        """Return the API's URL, once the process has said it."""
        if not self._url:
            assert self.child.stdout is not None
            line = self.child.stdout.readline().decode()
            assert line.startswith("STOKER_URL="), f"it said {line!r}; log: {self.said()}"
            self._url = line.strip().removeprefix("STOKER_URL=")
        return self._url

    @property
    def api(self) -> Api:
        return Api(self.url)

    def wait_leading(self) -> Api:
        api = self.api
        wait_until(lambda: api.call("GET", "/health")[0] == 200, "leading")
        return api

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send the signal and return the exit status."""
        if self.child.poll() is None:
            self.child.send_signal(number)
        status = self.child.wait(timeout=DEADLINE_S)
        if self.child.stdout is not None:
            self.child.stdout.close()
        return status


@contextlib.contextmanager
def scheduler_process(
    config: dict[str, Any], log: pathlib.Path, **options: Any
) -> Iterator[SchedulerProcess]:
    """Run a scheduler for the block's length."""
    process = SchedulerProcess(config, log, **options)
    try:
        yield process
    finally:
        process.stop(signal.SIGKILL)

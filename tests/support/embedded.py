"""The embedded Mesos as a process of its own, and a plain scheduler that speaks to it, for tests.

Everything waits for an event with a deadline; nothing sleeps for a while and hopes.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from support.waiting import DEADLINE_S

EXECUTOR = Path(__file__).with_name("embedded_executor.py")
CAPABILITIES = ("PARTITION_AWARE", "MULTI_ROLE", "RESERVATION_REFINEMENT")

Event = dict[str, Any]


class Reply(NamedTuple):
    status: int
    text: str
    headers: dict[str, str]


class EmbeddedProcess:
    """`python -m stoker.mesos.embedded`, listening; a context manager that ends it with SIGTERM."""

    def __init__(self, work_dir: Path, *options: str) -> None:
        self._work_dir = work_dir
        command = [sys.executable, "-m", "stoker.mesos.embedded", "--port", "0", "--work-dir", str(work_dir)]
        self.log = work_dir.parent / f"{work_dir.name}.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--log-level", "info", *options], stdout=subprocess.PIPE, stderr=log, text=True
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("listening on http://"), line + self.log.read_text()
        self.address = line.removeprefix("listening on http://").strip()
        self.url = f"http://{self.address}"

    def __enter__(self) -> EmbeddedProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> int:
        """End it as an operator does and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(DEADLINE_S)
        finally:
            self.process.kill()

    def kill(self) -> None:
        """End it as a power cut does: its executors live on."""
        self.process.kill()
        self.process.wait(DEADLINE_S)

    def request(
        self, method: str, path: str, body: str | bytes = b"", headers: dict[str, str] | None = None
    ) -> Reply:
        return request(self.address, method, path, body, headers or {})

    def master_address(self, number: int) -> str:
        """Return the address of one of several masters; it was started with --faults."""
        return f"127.0.0.1:{self._control()['masters'][number - 1]}"

    def _control(self) -> Event:
        return dict(json.loads((self._work_dir / "meta" / "faults.json").read_text()))

    def fault(self, name: str, *arguments: str) -> Reply:
        """Order a fault; it was started with --faults."""
        port = self._control()["port"]
        body = json.dumps({"fault": name, "arguments": list(arguments)})
        return request(f"127.0.0.1:{port}", "POST", "/stoker/faults", body, {})

    def state(self) -> Any:
        return json.loads(self.request("GET", "/state").text)


def request(address: str, method: str, path: str, body: str | bytes, headers: dict[str, str]) -> Reply:
    connection = http.client.HTTPConnection(address, timeout=DEADLINE_S)
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    reply = Reply(response.status, response.read().decode(), dict(response.headers))
    connection.close()
    return reply


def subscribe_call(framework_id: str | None, suppressed: Sequence[str], info: Event) -> Event:
    """Return a SUBSCRIBE of an ordinary framework; `info` has fields of FrameworkInfo that are to be others."""
    fields: Event = {
        "user": "root",
        "name": "test",
        "roles": ["cache"],
        "capabilities": [{"type": name} for name in CAPABILITIES],
        "failover_timeout": 60.0,
        "checkpoint": True,
        **info,
    }
    subscribe: Event = {"framework_info": fields, "suppressed_roles": list(suppressed)}
    call: Event = {"type": "SUBSCRIBE", "subscribe": subscribe}
    if framework_id is not None:
        fields["id"] = call["framework_id"] = {"value": framework_id}
    return call


class Scheduler:
    """One subscription of a framework; events are collected by a thread."""

    def __init__(
        self,
        address: str,
        *,
        framework_id: str | None = None,
        suppressed: Sequence[str] = (),
        acknowledge: bool = True,
        info: Event | None = None,
    ) -> None:
        self.address = address
        self.acknowledge = acknowledge
        self.events: list[Event] = []
        self.ended = False
        self.acknowledged: list[str] = []  # uuids of updates whose acknowledgement was taken
        self._changed = threading.Condition()
        call = subscribe_call(framework_id, suppressed, info or {})
        self.framework_id = framework_id or ""  # updates may come before SUBSCRIBED was looked at
        self._connection = http.client.HTTPConnection(address, timeout=DEADLINE_S)
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        self._connection.request("POST", "/api/v1/scheduler", json.dumps(call), headers)
        self._response = self._connection.getresponse()
        assert self._response.status == 200, self._response.read()
        assert self._connection.sock is not None
        self._connection.sock.settimeout(None)
        self.stream_id = self._response.headers["Mesos-Stream-Id"]
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        self.wait_for(lambda event: event["type"] in ("SUBSCRIBED", "ERROR"))

    def close(self) -> None:
        """Drop the connection, as a scheduler that dies."""
        assert self._connection.sock is not None
        with contextlib.suppress(OSError):
            self._connection.sock.shutdown(socket.SHUT_RDWR)
        self._connection.sock.close()
        self._thread.join(DEADLINE_S)

    def call(self, kind: str, body: Event | None = None, *, stream_id: str | None = None) -> Reply:
        call: Event = {"type": kind, "framework_id": {"value": self.framework_id}}
        if body is not None:
            call[kind.lower()] = body
        headers = {"Content-Type": "application/json", "Mesos-Stream-Id": stream_id or self.stream_id}
        return request(self.address, "POST", "/api/v1/scheduler", json.dumps(call), headers)

    def wait_for(
        self, wanted: Callable[[Event], bool], *, seconds: float = DEADLINE_S, start: int = 0
    ) -> Event:
        """Return the first event from index `start` on that is `wanted`."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while True:
                for event in self.events[start:]:
                    if wanted(event):
                        return event
                left = deadline - time.monotonic()
                if left <= 0 or (self.ended and not self._thread.is_alive()):
                    raise AssertionError(
                        f"did not come within {seconds} s; events: {json.dumps(self.events)[-4000:]}"
                    )
                self._changed.wait(min(left, 0.2))

    def wait_offers(self, *, start: int = 0, seconds: float = DEADLINE_S) -> list[Event]:
        event = self.wait_for(lambda event: event["type"] == "OFFERS", start=start, seconds=seconds)
        return list(event["offers"]["offers"])

    def wait_state(self, task_id: str, state: str, *, start: int = 0, seconds: float = DEADLINE_S) -> Event:
        """Return the status of the first UPDATE of `task_id` in `state`."""

        def wanted(event: Event) -> bool:
            status = event.get("update", {}).get("status", {})
            return bool(status.get("task_id", {}).get("value") == task_id and status["state"] == state)

        return dict(self.wait_for(wanted, start=start, seconds=seconds)["update"]["status"])

    def wait_end(self) -> None:
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive(), "the stream did not end"

    def states(self, task_id: str) -> list[str]:
        statuses = [event["update"]["status"] for event in self.events if event["type"] == "UPDATE"]
        return [status["state"] for status in statuses if status["task_id"]["value"] == task_id]

    def launch(self, offer: Event, *tasks: Event, refuse_seconds: float = 0.0) -> Reply:
        operation = {"type": "LAUNCH", "launch": {"task_infos": list(tasks)}}
        return self.call(
            "ACCEPT",
            {
                "offer_ids": [offer["id"]],
                "operations": [operation],
                "filters": {"refuse_seconds": refuse_seconds},
            },
        )

    def run(self, task_id: str = "t1", **fields: Any) -> Event:
        """Launch one task with an executor of its own, wait until it runs, and return its TaskInfo."""
        task = make_task(self.wait_offers()[0], task_id, **fields)
        self.launch(self.wait_offers()[0], task)
        self.wait_state(task_id, "TASK_RUNNING")
        return task

    def tell(self, task: Event, **order: Any) -> None:
        """Send an order to the task's executor."""
        data = base64.b64encode(json.dumps(order).encode()).decode()
        body = {"agent_id": task["agent_id"], "executor_id": task["executor"]["executor_id"], "data": data}
        assert self.call("MESSAGE", body).status == 202

    def ask(self, task: Event, **order: Any) -> Any:
        """Send an order and return the executor's answer."""
        start = len(self.events)
        self.tell(task, **order)
        event = self.wait_for(lambda event: event["type"] == "MESSAGE", start=start)
        return json.loads(base64.b64decode(event["message"]["data"]))

    def _read(self) -> None:
        with contextlib.suppress(OSError, ValueError, http.client.HTTPException, AttributeError):
            while line := self._response.readline():
                self._take(json.loads(self._response.read(int(line))))
        with self._changed:
            self.ended = True
            self._changed.notify_all()

    def _take(self, event: Event) -> None:
        with self._changed:
            if event["type"] == "SUBSCRIBED":
                self.framework_id = event["subscribed"]["framework_id"]["value"]
            self.events.append(event)
            self._changed.notify_all()
        status = event.get("update", {}).get("status", {})
        if self.acknowledge and "uuid" in status:
            body = {key: status[key] for key in ("agent_id", "task_id", "uuid")}
            threading.Thread(target=self._acknowledge, args=(body,), daemon=True).start()

    def _acknowledge(self, body: Event) -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            self.call("ACKNOWLEDGE", body)
            self.acknowledged.append(body["uuid"])


def make_task(
    offer: Event,
    task_id: str = "t1",
    *,
    executor_id: str | None = None,
    cpus: float = 0.5,
    mem: float = 64,
    command: str | None = None,
    environment: dict[str, str] | None = None,
    executor: Event | None = None,
) -> Event:
    """Return a TaskInfo with the tiny executor, for an offer."""
    variables = [{"name": name, "value": value} for name, value in (environment or {}).items()]
    return {
        "name": task_id,
        "task_id": {"value": task_id},
        "agent_id": offer["agent_id"],
        "resources": [scalar("cpus", cpus), scalar("mem", mem)],
        "executor": {
            "type": "CUSTOM",
            "executor_id": {"value": executor_id or task_id},
            "command": {
                "value": command or f"exec {sys.executable} {EXECUTOR}",
                "environment": {"variables": variables},
            },
            "resources": [scalar("cpus", 0.1), scalar("mem", 32)],
            **(executor or {}),
        },
    }


def scalar(name: str, value: float) -> Event:
    return {"name": name, "type": "SCALAR", "scalar": {"value": value}}


def scalars(resources: Sequence[Event]) -> dict[str, float]:
    """Return the scalar amounts in a list of resources."""
    return {item["name"]: item["scalar"]["value"] for item in resources if "scalar" in item}


def is_alive(pid: int) -> bool:
    """Whether `pid` is a process that still runs (a zombie does not)."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] not in ("Z", "X")
    except OSError:
        return False


def executor_pids(work_dir: Path) -> Iterator[int]:
    """Yield the processes whose sandbox lies below `work_dir`."""
    mark = f"MESOS_SANDBOX={work_dir.resolve()}".encode()
    for name in os.listdir("/proc"):
        if not name.isdigit() or not is_alive(int(name)):
            continue
        with contextlib.suppress(OSError):
            if mark in Path(f"/proc/{name}/environ").read_bytes():
                yield int(name)

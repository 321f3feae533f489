"""A tiny v1 executor for tests of the embedded Mesos: standard library only, every call written by hand.

It answers LAUNCH with TASK_STARTING and TASK_RUNNING, KILL with TASK_KILLED, SHUTDOWN with its exit. A MESSAGE holds a JSON
object {"do": ...} that makes it misbehave; what it has to say goes back as a MESSAGE.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from typing import Any

HEADERS = {"Content-Type": "application/json", "Accept": "application/json"}


class Executor:
    def __init__(self) -> None:
        self.endpoint = os.environ["MESOS_AGENT_ENDPOINT"]
        self.ids = {
            "framework_id": {"value": os.environ["MESOS_FRAMEWORK_ID"]},
            "executor_id": {"value": os.environ["MESOS_EXECUTOR_ID"]},
        }
        self.ignore_shutdown = False
        self.ignore_kill = False
        self.quiet = False
        self.acknowledged: list[str] = []

    def call(self, kind: str, body: dict[str, Any]) -> tuple[int, str]:
        connection = http.client.HTTPConnection(self.endpoint, timeout=60)
        call = {"type": kind, **self.ids, kind.lower(): body}
        connection.request("POST", "/api/v1/executor", json.dumps(call), HEADERS)
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
        return response.status, text

    def update(self, task_id: str, state: str, **fields: Any) -> tuple[int, str]:
        status = {
            "task_id": {"value": task_id},
            "state": state,
            "source": "SOURCE_EXECUTOR",
            "uuid": base64.b64encode(uuid.uuid4().bytes).decode(),
            "timestamp": time.time(),
            **fields,
        }
        return self.call("UPDATE", {"status": status})

    def say(self, value: object) -> None:
        self.call("MESSAGE", {"data": base64.b64encode(json.dumps(value).encode()).decode()})

    def subscribe(self) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection(self.endpoint)
        call = {"type": "SUBSCRIBE", **self.ids, "subscribe": {}}
        connection.request("POST", "/api/v1/executor", json.dumps(call), HEADERS)
        response = connection.getresponse()
        assert response.status == 200, response.read()
        return response

    def run(self) -> None:
        while True:
            response = self.subscribe()
            while (line := response.readline()) and self.handle(json.loads(response.read(int(line)))):
                pass
            if not line:
                self.outlive()

    def outlive(self) -> None:
        """The agent is gone: stay, as an executor does that waits for it to come back."""
        time.sleep(3600)

    def handle(self, event: dict[str, Any]) -> bool:
        """Return False to leave this stream and subscribe again."""
        kind = event["type"]
        if kind == "LAUNCH" and not self.quiet:
            task_id = event["launch"]["task"]["task_id"]["value"]
            self.update(task_id, "TASK_STARTING")
            self.update(task_id, "TASK_RUNNING")
        elif kind == "KILL" and not self.ignore_kill:
            self.update(event["kill"]["task_id"]["value"], "TASK_KILLED", message=json.dumps(event["kill"]))
        elif kind == "ACKNOWLEDGED":
            self.acknowledged.append(event["acknowledged"]["uuid"])
        elif kind == "SHUTDOWN" and not self.ignore_shutdown:
            sys.exit(0)
        elif kind == "MESSAGE":
            return self.obey(json.loads(base64.b64decode(event["message"]["data"])))
        return True

    def obey(self, order: dict[str, Any]) -> bool:
        match order["do"]:
            case "exit":
                os._exit(order["code"])
            case "signal":
                os.kill(os.getpid(), order["number"])
            case "echo":
                self.say(order)
            case "environment":
                self.say(
                    {"environment": dict(os.environ), "cwd": os.getcwd(), "files": sorted(os.listdir("."))}
                )
            case "sessions":
                self.say([os.getpid(), os.getsid(0), os.getpgid(0), os.stat("/proc/self/fd/0").st_rdev])
            case "update":
                self.say(self.update(order["task"], order["state"], **order.get("fields", {})))
            case "call":
                self.say(self.call(order["type"], order["body"]))
            case "deafen":
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                self.ignore_shutdown = self.ignore_kill = True
                self.say("deaf")
            case "fork":
                child = subprocess.Popen(
                    [sys.executable, "-c", "import os, time; os.setsid(); time.sleep(3600)"]
                )
                self.say(child.pid)
            case "acknowledged":
                self.say(self.acknowledged)
            case "resubscribe":
                return False
        return True


if __name__ == "__main__":
    Executor().run()

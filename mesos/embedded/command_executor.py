"""The executor of tasks that bring a command and no executor of their own: of one such task, or of a task group.

Runs as a program of its own in the sandbox, told by the environment that every executor gets; with `--group` it is the default
executor of LAUNCH_GROUP. It speaks the executor API over plain sockets, in one thread, and imports the standard library only and
little of that: it starts with every task, so each module costs every task. It keeps each TaskInfo and each update until the agent
has acknowledged it, and says them again when it subscribes anew. It ends when all its tasks have ended and the agent knows.

A task is killed by SIGTERM to all its processes, and by SIGKILL when its grace is over.
"""

from __future__ import annotations

import binascii
import contextlib
import heapq
import json
import os
import select
import signal
import socket
import sys
import time
from typing import Any, NoReturn

TERMINAL_STATES = frozenset({"TASK_FINISHED", "TASK_FAILED", "TASK_KILLED"})
GRACE_S = 3.0  # from SIGTERM to SIGKILL, unless the task's kill policy says otherwise
RETRY_S = 0.2  # between attempts to subscribe
CALL_SECONDS_MAX = 5.0
RECORD_BYTES_MAX = 64 * 1024 * 1024

_UNITS = {
    "ns": 1e-9,
    "us": 1e-6,
    "ms": 1e-3,
    "secs": 1,
    "mins": 60,
    "hrs": 3600,
    "days": 86400,
    "weeks": 604800,
}


class Stream:
    """The open answer to SUBSCRIBE: chunks come in, events go out."""

    def __init__(self, sock: socket.socket, rest: bytes) -> None:
        self.sock = sock
        self._raw = bytearray(rest)
        self._data = bytearray()

    def read(self) -> list[dict[str, Any]] | None:
        """Return the events that have come; None at the stream's end."""
        try:
            data = self.sock.recv(65536)
        except BlockingIOError:
            return []
        except OSError:
            return None
        self._raw += data
        if not self._dechunk() or not data:
            return None
        return self.events()

    def events(self) -> list[dict[str, Any]]:
        """Return the whole records in what has been read."""
        found = []
        self._dechunk()
        while (line := self._data.find(b"\n")) >= 0:
            end = line + 1 + int(self._data[:line])
            if len(self._data) < end:
                break
            found.append(json.loads(self._data[line + 1 : end]))
            del self._data[:end]
        return found

    def _dechunk(self) -> bool:
        """Move whole chunks on; False at the last one, or where no record can be so long."""
        while (line := self._raw.find(b"\r\n")) >= 0:
            length = int(self._raw[:line], 16)
            if length == 0 or length > RECORD_BYTES_MAX:
                return False
            end = line + 2 + length
            if len(self._raw) < end + 2:
                return True
            self._data += self._raw[line + 2 : end]
            del self._raw[: end + 2]
        return True


class Unknown(Exception):
    """The agent is another one than that which started this executor, or has given it up."""


class Agent:
    """The agent's executor API."""

    def __init__(self, endpoint: str, framework_id: str, executor_id: str) -> None:
        host, _, port = endpoint.rpartition(":")
        self._address = (host, int(port))
        self._head = {"framework_id": {"value": framework_id}, "executor_id": {"value": executor_id}}

    def subscribe(self, tasks: list[dict[str, Any]], updates: list[dict[str, Any]]) -> Stream | None:
        """Return the stream, or None: the agent is not there or not ready.

        :raises Unknown: the agent does not know this executor.
        """
        body = {"unacknowledged_tasks": tasks, "unacknowledged_updates": [{"status": one} for one in updates]}
        try:
            sock, status, rest = self._request({"type": "SUBSCRIBE", **self._head, "subscribe": body})
        except OSError:
            return None
        if status != 200:
            sock.close()
            if 400 <= status < 500:
                raise Unknown
            return None
        sock.setblocking(False)
        return Stream(sock, rest)

    def update(self, status: dict[str, Any]) -> bool:
        """Send an update; True if the agent took it."""
        try:
            sock, code, _ = self._request({"type": "UPDATE", **self._head, "update": {"status": status}})
        except OSError:
            return False
        sock.close()
        return code == 202

    def _request(self, call: dict[str, Any]) -> tuple[socket.socket, int, bytes]:
        body = json.dumps(call).encode()
        host, port = self._address
        head = f"POST /api/v1/executor HTTP/1.1\r\nHost: {host}:{port}\r\nAccept: application/json\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.settimeout(CALL_SECONDS_MAX)
            sock.connect(self._address)
            sock.sendall(head.encode() + body)
            answer = b""
            while b"\r\n\r\n" not in answer:
                data = sock.recv(65536)
                if not data:
                    raise OSError("the agent closed the connection")
                answer += data
        except OSError:
            sock.close()
            raise
        first, _, rest = answer.partition(b"\r\n\r\n")
        return sock, int(first.split(b" ", 2)[1]), rest


class Probe:
    """A check or health check of a task: a process now and then, whose end says how the task is."""

    def __init__(self, task: Task, spec: dict[str, Any], *, is_health: bool) -> None:
        self.task = task
        self.spec = spec
        self.is_health = is_health
        self.kind = spec.get("type", "COMMAND")
        self.pid = 0
        self.failures = 0
        self.result: dict[str, Any] = {self.kind.lower(): {}}
        self._reader = -1
        self._starts = time.monotonic()
        task.executor.after(self._seconds("delay", 15.0), self.start)

    @property
    def status(self) -> dict[str, Any]:
        return {"type": self.kind, **self.result}

    def start(self) -> None:
        if self.task.ended:
            return
        self._reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            self._run(writer)
        os.close(writer)
        self.task.executor.probes[self.pid] = self
        pid = self.pid
        self.task.executor.after(self._seconds("timeout", 20.0), lambda: self._stop(pid))

    def reaped(self, status: int) -> None:
        """The process ended: tell what it found, and start the next one in a while."""
        told = os.read(self._reader, 100)
        os.close(self._reader)
        self.pid = 0
        if self.task.ended:
            return
        if self.is_health:
            self._judge(os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0)
        else:
            self._compare(status, told)
        self.task.executor.after(self._seconds("interval", 10.0), self.start)

    def _judge(self, is_healthy: bool) -> None:
        task = self.task
        grace_ends = self._starts + self._seconds("grace_period", 10.0)
        if not is_healthy and task.healthy is None and time.monotonic() < grace_ends:
            return
        changed = task.healthy is not is_healthy
        task.healthy = is_healthy
        self.failures = 0 if is_healthy else self.failures + 1
        if changed or not is_healthy:
            task.update("TASK_RUNNING", reason="REASON_TASK_HEALTH_CHECK_STATUS_UPDATED")
        if self.failures >= self.spec.get("consecutive_failures", 3):
            task.kill(task.grace_s)

    def _compare(self, status: int, told: bytes) -> None:
        if self.kind == "HTTP":
            found: dict[str, Any] = {"status_code": int(told)} if told else {}
        elif self.kind == "TCP":
            found = {"succeeded": status == 0}
        else:
            found = {"exit_code": os.WEXITSTATUS(status)} if os.WIFEXITED(status) else {}
        if {self.kind.lower(): found} != self.result:
            self.result = {self.kind.lower(): found}
            self.task.update("TASK_RUNNING", reason="REASON_TASK_CHECK_STATUS_UPDATED")

    def _stop(self, pid: int) -> None:
        if self.pid == pid:
            kill_tree(pid, signal.SIGKILL)

    def _seconds(self, name: str, default: float) -> float:
        return float(self.spec.get(f"{name}_seconds", default))

    def _run(self, writer: int) -> NoReturn:
        """The process itself: exits 0 if all is well."""
        with Leaving():
            os.setsid()
            body = self.spec.get(self.kind.lower(), {})
            if self.kind == "COMMAND":
                execute(body if self.is_health else body.get("command", {}), dict(os.environ))
            with socket.create_connection(("127.0.0.1", body["port"])) as sock:
                if self.kind == "HTTP":
                    request = f"GET {body.get('path', '/')} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
                    sock.sendall(request.encode())
                    code = sock.recv(64).split(b" ")[1]
                    os.write(writer, code)
                    wanted = body.get("statuses") or range(200, 400)
                    os._exit(0 if int(code) in wanted else 1)
            os._exit(0)


class Task:
    """One task: its process from start to end."""

    def __init__(self, executor: Executor, info: dict[str, Any], group: list[str]) -> None:
        self.executor = executor
        self.info = info
        self.group = group
        self.task_id = str(info["task_id"]["value"])
        self.pid = 0
        self.ended = False
        self.healthy: bool | None = None
        self.kill_asked = False
        self.is_late = False
        self.container_id = new_uuid_text()
        grace = info.get("kill_policy", {}).get("grace_period")
        self.grace_s = GRACE_S if grace is None else grace["nanoseconds"] / 1e9
        self.check: Probe | None = None

    def start(self) -> None:
        if "check" in self.info:
            self.check = Probe(self, self.info["check"], is_health=False)
        self.update("TASK_STARTING")
        environment = dict(os.environ)
        place = "."
        if self.executor.is_group:
            place = os.path.join("containers", self.container_id)
            os.makedirs(place)
            variables = self.info["command"].get("environment", {}).get("variables", ())
            environment |= {one["name"]: one.get("value", "") for one in variables}
            environment["MESOS_SANDBOX"] = environment["PWD"] = os.path.abspath(place)
        self.pid = os.fork()
        if self.pid == 0:
            with Leaving():
                os.setsid()
                os.chdir(place)
                if self.executor.is_group:
                    for number, name in ((1, "stdout"), (2, "stderr")):
                        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), number)
                execute(self.info["command"], environment)
        self.update("TASK_RUNNING")
        if "health_check" in self.info:
            Probe(self, self.info["health_check"], is_health=True)
        limit = self.info.get("max_completion_time")
        if limit is not None:
            self.executor.after(limit["nanoseconds"] / 1e9, self._run_out)

    def kill(self, grace_s: float) -> None:
        """Ask the task to end and, when its grace is over, end it. Asked again: nothing."""
        if self.ended or self.kill_asked:
            return
        self.kill_asked = True
        if self.executor.says_killing:
            self.update("TASK_KILLING")
        kill_tree(self.pid, signal.SIGTERM)
        self.executor.after(grace_s, self._kill_now)

    def reaped(self, status: int) -> None:
        """The process is gone: say how."""
        self.ended = True
        code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
        text = f"Command exited with status {code}"
        if code is None:
            text = f"Command terminated with signal {signal.strsignal(os.WTERMSIG(status))}"
        if self.is_late:
            self.update("TASK_FAILED", message=text, reason="REASON_MAX_COMPLETION_TIME_REACHED")
        elif self.kill_asked:
            self.update("TASK_KILLED", message=text)
        else:
            self.update("TASK_FINISHED" if code == 0 else "TASK_FAILED", message=text)

    def update(self, state: str, **fields: Any) -> None:
        status: dict[str, Any] = {"task_id": {"value": self.task_id}, "state": state, **fields}
        if self.healthy is not None:
            status["healthy"] = self.healthy
        if self.check is not None:
            status["check_status"] = self.check.status
        if self.executor.is_group:
            parent = {"value": self.executor.container_id}
            status["container_status"] = {"container_id": {"value": self.container_id, "parent": parent}}
            if state in ("TASK_RUNNING", "TASK_KILLING"):
                address = {"protocol": "IPv4", "ip_address": os.environ["LIBPROCESS_IP"]}
                status["container_status"]["network_infos"] = [{"ip_addresses": [address]}]
                status["container_status"]["executor_pid"] = self.pid
        self.executor.send(status)

    def _run_out(self) -> None:
        if not self.ended and not self.kill_asked:
            self.is_late = True
            self.kill(self.grace_s)

    def _kill_now(self) -> None:
        if not self.ended:
            kill_tree(self.pid, signal.SIGKILL)


class Executor:
    """All tasks of one executor, and what the agent does not know of them yet."""

    def __init__(self, *, is_group: bool) -> None:
        environment = os.environ
        self.is_group = is_group
        self.executor_id = environment["MESOS_EXECUTOR_ID"]
        self.container_id = ""
        self.says_killing = False
        self.probes: dict[int, Probe] = {}
        self._agent = Agent(
            environment["MESOS_AGENT_ENDPOINT"], environment["MESOS_FRAMEWORK_ID"], self.executor_id
        )
        self._recovery_s = seconds_of(environment.get("MESOS_RECOVERY_TIMEOUT", "0secs"))
        self._grace_s = seconds_of(environment.get("MESOS_EXECUTOR_SHUTDOWN_GRACE_PERIOD", "5secs"))
        self._stream: Stream | None = None
        self._lost_at = time.monotonic()
        self._tasks: dict[str, Task] = {}
        self._unknown: dict[str, dict[str, Any]] = {}  # tasks of which no update was acknowledged
        self._updates: dict[str, dict[str, Any]] = {}  # updates that were not acknowledged, by uuid
        self._timers: list[tuple[float, int, Any]] = []
        self._timer_count = 0
        self._is_ending = False
        self._wake, wake = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)

    def run(self) -> int:
        """Serve until everything has ended and is known; return the exit code."""
        self._subscribe()
        while not self._is_over():
            watched = [self._wake] + ([self._stream.sock.fileno()] if self._stream else [])
            wait_s = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None
            select.select(watched, [], [], wait_s)
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake, 4096)
            self._reap()
            self._read()
            while self._timers and self._timers[0][0] <= time.monotonic():
                heapq.heappop(self._timers)[2]()
        return 0

    def after(self, delay_s: float, action: Any) -> None:
        self._timer_count += 1
        heapq.heappush(self._timers, (time.monotonic() + delay_s, self._timer_count, action))

    def send(self, status: dict[str, Any]) -> None:
        """Tell the agent, and remember until it acknowledges."""
        uuid = new_uuid()
        status["uuid"] = binascii.b2a_base64(uuid, newline=False).decode()
        status["source"] = "SOURCE_EXECUTOR"
        status["executor_id"] = {"value": self.executor_id}
        status["timestamp"] = time.time()
        self._updates[status["uuid"]] = status
        if self._stream is not None:
            self._agent.update(status)

    def _subscribe(self) -> None:
        try:
            self._stream = self._agent.subscribe(list(self._unknown.values()), list(self._updates.values()))
        except Unknown:
            self._shut_down()
            return
        if self._stream is not None:
            for event in self._stream.events():
                self._handle(event)
        elif time.monotonic() - self._lost_at > self._recovery_s and self._tasks:
            self._shut_down()
        elif time.monotonic() - self._lost_at > max(self._recovery_s, 60.0):
            self._is_ending = True
        else:
            self.after(RETRY_S, self._subscribe)

    def _read(self) -> None:
        if self._stream is None:
            return
        events = self._stream.read()
        for event in events or ():
            self._handle(event)
        if events is None and self._stream is not None:
            self._stream.sock.close()
            self._stream = None
            self._lost_at = time.monotonic()
            if self._recovery_s and not self._is_ending:
                self.after(RETRY_S, self._subscribe)
            else:
                self._shut_down()

    def _handle(self, event: dict[str, Any]) -> None:
        kind = event["type"]
        body = event.get(kind.lower(), {})
        if kind == "SUBSCRIBED":
            framework = body["framework_info"]
            self.container_id = body["container_id"]["value"]
            self.says_killing = {"type": "TASK_KILLING_STATE"} in framework.get("capabilities", ())
        elif kind == "LAUNCH":
            self._launch([body["task"]])
        elif kind == "LAUNCH_GROUP":
            self._launch(body["task_group"]["tasks"])
        elif kind == "KILL":
            task = self._tasks.get(body["task_id"]["value"])
            if task is not None:
                task.kill(task.grace_s)
        elif kind == "ACKNOWLEDGED":
            self._updates.pop(body["uuid"], None)
            self._unknown.pop(body["task_id"]["value"], None)
        elif kind == "SHUTDOWN":
            self._shut_down()

    def _launch(self, infos: list[dict[str, Any]]) -> None:
        group = [info["task_id"]["value"] for info in infos]
        for info in infos:
            task = Task(self, info, group)
            self._tasks[task.task_id] = task
            self._unknown[task.task_id] = info
        for name in group:
            self._tasks[name].start()

    def _shut_down(self) -> None:
        self._is_ending = True
        for task in self._tasks.values():
            task.kill(min(task.grace_s, self._grace_s))

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            probe = self.probes.pop(pid, None)
            if probe is not None:
                probe.reaped(status)
            for task in list(self._tasks.values()):
                if task.pid == pid and not task.ended:
                    task.reaped(status)
                    if task.kill_asked or status != 0:
                        self._end_group(task)

    def _end_group(self, ended: Task) -> None:
        """A group lives and dies together."""
        for name in ended.group:
            self._tasks[name].kill(self._tasks[name].grace_s)

    def _is_over(self) -> bool:
        if any(not task.ended for task in self._tasks.values()):
            return False
        return self._is_ending or (bool(self._tasks) and not self._updates)


class Leaving:
    """In a forked process: whatever happens inside, it ends there, and what went wrong stands in stderr."""

    def __enter__(self) -> None:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> NoReturn:
        os.write(2, f"{error}\n".encode())
        os._exit(127)


def execute(command: dict[str, Any], environment: dict[str, str]) -> NoReturn:
    """Become the process of `command`."""
    value = command.get("value", "")
    if command.get("shell", True):
        os.execve("/bin/sh", ["sh", "-c", value], environment)
    os.execvpe(value, command.get("arguments") or [value], environment)


def kill_tree(pid: int, number: int) -> None:
    """Send a signal to a child and to all that it started: its session, and whoever descends from it."""
    parents: dict[int, tuple[int, int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rsplit(b")", 1)[1].split()
                parents[int(name)] = int(fields[1]), int(fields[3])
    members = {pid}
    while (
        found := {one for one, (up, session) in parents.items() if up in members or session == pid} - members
    ):
        members |= found
    for member in sorted(
        members, key=lambda member: member != pid
    ):  # a shell must not see its child's end before its own
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(member, number)


def new_uuid() -> bytes:
    raw = bytearray(os.urandom(16))
    raw[6] = raw[6] & 0x0F | 0x40
    raw[8] = raw[8] & 0x3F | 0x80
    return bytes(raw)


def new_uuid_text() -> str:
    text = new_uuid().hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def seconds_of(text: str) -> float:
    """Return the seconds of a duration as Mesos writes it, such as 1.5mins."""
    unit = text.lstrip("0123456789.")
    return float(text.removesuffix(unit)) * _UNITS[unit]


def main(arguments: list[str]) -> int:
    if "MESOS_AGENT_ENDPOINT" not in os.environ:
        print(
            "This program is started by an agent of the embedded Mesos, for each task with a command.",
            file=sys.stderr,
        )
        return 2
    return Executor(is_group="--group" in arguments).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

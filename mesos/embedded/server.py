"""The shell around `Cluster`: sockets, processes and the clock go in and out here, and nothing is decided here.

Every request, broken stream, ended process and timer becomes one call of the cluster; then its outputs are performed, in order,
without yielding to another greenlet in between. So the machine is never seen half-way, and no lock is needed. An error inside
the machine is our own mistake: the process says so and ends.
"""

from __future__ import annotations

import fcntl
import json
import logging
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import IO

import gevent
from gevent import socket
from gevent.event import Event

from stoker.mesos.embedded.config import Config, ConfigError
from stoker.mesos.embedded.core import operator, view
from stoker.mesos.embedded.core.agent import Agent
from stoker.mesos.embedded.core.calls import (
    Answer,
    Refused,
    decode_executor_call,
    decode_scheduler_call,
    require_method,
    require_stream_accept,
)
from stoker.mesos.embedded.core.cluster import Cluster
from stoker.mesos.embedded.core.resources import plain
from stoker.mesos.embedded.core.values import (
    VERSION,
    AgentSpec,
    Close,
    KillProcess,
    MasterSpec,
    Output,
    Send,
    StartProcess,
)
from stoker.mesos.embedded.http import Request, Server, Stream, json_answer, listen
from stoker.mesos.embedded.processes import LaunchError, Runner, end_orphans, prune_sandboxes

logger = logging.getLogger(__name__)

STOP_SECONDS_MAX = 30  # that executors get to end when the process is told to
IMPATIENT_MS = 1000  # after which a second signal is meant

_JSON = ("Content-Type", "application/json")
_SCHEDULER_PATHS = frozenset({"/api/v1/scheduler", "/master/api/v1/scheduler"})
_NOT_FOUND = Answer(404, "404 Not Found.")


class EmbeddedMesos:
    """A master and its agents in this process. `start`, then `wait`, then `stop`."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._lock: IO[str] | None = None
        self._streams: dict[int, Stream] = {}
        self._stream_count = 0
        self._servers: list[Server] = []
        self._master_server: Server | None = None
        self._wake = Event()
        self._ended = Event()
        self._asked_ms = 0
        self._error: BaseException | None = None

    def start(self) -> str:
        """End what a predecessor left, open all sockets, begin to offer; return the master's URL.

        :raises ConfigError: the work_dir is in use. :raises OSError: an address or port cannot be had.
        """
        config = self._config
        work_dir = config.work_dir.resolve()
        self._lock = _lock(work_dir)
        self._runner = Runner(work_dir, self._process_exited)
        end_orphans(work_dir)
        prune_sandboxes(work_dir, ())
        master_listener, agent_listeners = self._listen()
        ip, port = master_listener.getsockname()[:2]
        ip = "127.0.0.1" if ip == "0.0.0.0" else ip
        master = MasterSpec(str(uuid.uuid4()), ip, ip, port)
        specs = self._agent_specs(work_dir, master.master_id, agent_listeners)
        now_ms = _now_ms()
        self._cluster = Cluster(
            master,
            specs,
            config.settings,
            seed=uuid.uuid4(),
            now_ms=now_ms,
            wall_ms=time.time_ns() // 1_000_000,
        )
        for listener, agent in zip(agent_listeners, self._cluster.agents, strict=True):
            self._servers.append(Server(listener, _agent_handler(self, agent)))
        self._master_server = Server(master_listener, self._handle_master)
        for server in (*self._servers, self._master_server):
            server.start()
        gevent.spawn(self._run_timer)
        return f"http://{ip}:{port}"

    def wait(self) -> None:
        """Return when `end` was called.

        :raises BaseException: what broke the machine.
        """
        self._ended.wait()
        if self._error is not None:
            raise self._error

    def end(self) -> None:
        """Let `wait` return. Asked again some time later, `stop` kills at once.

        Ctrl-C reaches a process and the supervisor that then sends it SIGTERM as well: that is one wish, not two.
        """
        if not self._ended.is_set():
            self._ended.set()
            self._asked_ms = _now_ms()
        elif _now_ms() - self._asked_ms > IMPATIENT_MS:
            self._kill_all()

    def stop(self) -> None:
        """Leave the frameworks, shut down the executors, kill those that do not end in time, close everything."""
        if self._master_server is not None:
            self._master_server.stop()
        with gevent.Timeout(STOP_SECONDS_MAX, False):
            if self._error is None:
                self.step(lambda now_ms: self._cluster.shutdown(now_ms))
                while self._runner.containers:
                    gevent.sleep(0.02)
        while self._runner.containers:
            self._kill_all()
            gevent.sleep(0.02)
        for server in self._servers:
            server.stop()
        if self._lock is not None:
            self._lock.close()

    # One step of the machine.

    def step(self, change: Callable[[int], object]) -> None:
        """Let `change(now_ms)` call the cluster, perform what follows, and set the timer."""
        try:
            change(_now_ms())
            while outputs := self._cluster.take_outputs():
                for output in outputs:
                    self._perform(output)
        except Exception as error:  # a mistake of ours: the state cannot be trusted any more
            logger.exception("the embedded Mesos ends because of an error of its own")
            self._error = error
            self._ended.set()
            raise
        self._wake.set()

    def _perform(self, output: Output) -> None:
        match output:
            case Send(number, event):
                stream = self._streams.get(number)
                if stream is not None:
                    body = json.dumps(event, separators=(",", ":")).encode("ascii")
                    stream.send(b"%d\n%b" % (len(body), body))
            case Close(number):
                closed = self._streams.pop(number, None)
                if closed is not None:
                    closed.finish()
            case StartProcess():
                self._start_process(output)
            case KillProcess(container_id):
                logger.info("container=%s kill", container_id)
                self._runner.kill(container_id)

    def _start_process(self, order: StartProcess) -> None:
        agent = self._cluster.agent_of_container(order.container_id)
        try:
            pid = self._runner.start(order)
        except LaunchError as error:
            logger.warning("container=%s cannot be started: %s", order.container_id, error)
            agent.process_failed(order.container_id, str(error), _now_ms())
            return
        logger.info("container=%s pid=%d sandbox=%s started", order.container_id, pid, order.sandbox)
        agent.process_started(order.container_id, pid)

    def _process_exited(self, container_id: str, status: int) -> None:
        logger.info("container=%s status=%d ended", container_id, status)
        agent = self._cluster.agent_of_container(container_id)
        self.step(lambda now_ms: agent.process_exited(container_id, status, now_ms))

    def _run_timer(self) -> None:
        while self._error is None:
            self._wake.clear()
            delay_ms = self._cluster.next_deadline_ms() - _now_ms()
            if delay_ms <= 0:
                self.step(lambda now_ms: self._cluster.tick(now_ms))
            else:
                self._wake.wait(delay_ms / 1000)

    def _kill_all(self) -> None:
        for container_id in self._runner.containers:
            self._runner.kill(container_id)

    # HTTP.

    def _handle_master(self, request: Request) -> Answer | Stream:
        try:
            return self._route_master(request)
        except Refused as refusal:
            return refusal.answer

    def _route_master(self, request: Request) -> Answer | Stream:
        path = request.path
        if path in _SCHEDULER_PATHS:
            require_method(request.method, "POST")
            return self._scheduler_call(request)
        if path.endswith("/api/v1/executor") and path.startswith("/slave("):
            return self._executor_call(request, None)
        if path == "/api/v1" or path.startswith(("/api/v1/", "/master/api/v1")):
            require_method(request.method, "POST")
            return json_answer(operator.answer(self._cluster.master, request.headers, request.body))
        return self._information(request)

    def handle_agent(self, agent: Agent, request: Request) -> Answer | Stream:
        """Answer a request at an agent's own address."""
        own = f"/slave({agent.spec.number})"
        path = request.path.removeprefix(own)
        try:
            if path == "/api/v1/executor":
                return self._executor_call(request, agent)
            if path == "/api/v1" or path.startswith("/api/v1/"):
                require_method(request.method, "POST")
                return operator.refuse_on_agent(request.headers, request.body)
            if path == "/health":
                return Answer(200)
            return json_answer({"version": VERSION}) if path == "/version" else _NOT_FOUND
        except Refused as refusal:
            return refusal.answer

    def _information(self, request: Request) -> Answer:
        master = self._cluster.master
        match request.path.removeprefix("/master") if request.path != "/master/version" else "":
            case "/version":
                return json_answer({"version": VERSION})
            case "/health":
                return Answer(200)
            case "/redirect":
                return Answer(307, "", (("Location", f"//{master.spec.hostname}:{master.spec.port}"),))
            case "/state":
                return json_answer(view.state(master))
            case "/tasks":
                return json_answer(view.tasks(master))
        return _NOT_FOUND

    def _scheduler_call(self, request: Request) -> Answer | Stream:
        call = decode_scheduler_call(request.headers, request.body)
        stream_id = request.headers.get("mesos-stream-id")
        if call["type"] != "SUBSCRIBE":
            return self._ask(lambda now_ms: self._cluster.master.call(call, stream_id, now_ms))
        require_stream_accept(request.headers)
        if stream_id is not None:
            raise Refused(400, "Subscribe calls should not include the 'Mesos-Stream-Id' header")
        fresh_id = self._cluster.new_stream_id()
        stream = self._open_stream((("Mesos-Stream-Id", fresh_id), _JSON))
        logger.info(
            "stream=%d framework=%s subscribes", stream.number, call.get("framework_id", {}).get("value")
        )
        self.step(lambda now_ms: self._cluster.master.subscribe(call, stream.number, fresh_id, now_ms))
        return stream

    def _executor_call(self, request: Request, agent: Agent | None) -> Answer | Stream:
        require_method(request.method, "POST")
        call = decode_executor_call(request.headers, request.body)
        agent = agent or self._cluster.find_agent(call)
        refusal = self._cluster.check_executor(call, agent)
        if refusal is not None or agent is None:
            return refusal or _NOT_FOUND
        caller = agent
        if call["type"] != "SUBSCRIBE":
            return self._ask(lambda now_ms: caller.call(call, now_ms))
        require_stream_accept(request.headers)
        stream = self._open_stream((_JSON,))
        self.step(lambda now_ms: caller.subscribe(call, stream.number, now_ms))
        return stream

    def _ask(self, question: Callable[[int], Answer]) -> Answer:
        answers: list[Answer] = []
        self.step(lambda now_ms: answers.append(question(now_ms)))
        return answers[0]

    def _open_stream(self, headers: tuple[tuple[str, str], ...]) -> Stream:
        self._stream_count += 1
        stream = Stream(self._stream_count, headers, self._stream_broken)
        self._streams[stream.number] = stream
        return stream

    def _stream_broken(self, number: int) -> None:
        if self._streams.pop(number, None) is not None:
            logger.info("stream=%d closed by the other side", number)
            self.step(lambda now_ms: self._cluster.stream_closed(number, now_ms))

    # Start.

    def _listen(self) -> tuple[socket.socket, list[socket.socket]]:
        """Open the master's and the agents' sockets, on no port that an agent offers to tasks."""
        config = self._config
        ranges = [config.agent_ports(index) for index in range(config.agents)]

        def offered(port: int) -> bool:
            return any(first <= port <= last for first, last in ranges)

        master = listen(config.host, config.port, avoid=offered)
        agents = [listen(_agent_ip(config, index), 0, avoid=offered) for index in range(config.agents)]
        return master, agents

    def _agent_specs(self, work_dir: Path, master_id: str, listeners: list[socket.socket]) -> list[AgentSpec]:
        config = self._config
        names = _agent_ids(work_dir, config.agents, master_id)
        specs = []
        for index, (name, listener) in enumerate(zip(names, listeners, strict=True)):
            resources = plain(
                cpus=config.cpus,
                mem_mib=config.mem_bytes // 2**20,
                disk_mib=config.disk_bytes // 2**20,
                ports=config.agent_ports(index),
            )
            ip, port = listener.getsockname()[:2]
            specs.append(
                AgentSpec(
                    agent_id=name,
                    number=index + 1,
                    hostname=config.agent_hostname(index),
                    ip="127.0.0.1" if ip == "0.0.0.0" else ip,
                    port=port,
                    resources=resources,
                    work_dir=str(work_dir),
                    attributes=config.agent_attributes(index),
                )
            )
        return specs


def _agent_handler(mesos: EmbeddedMesos, agent: Agent) -> Callable[[Request], Answer | Stream]:
    return lambda request: mesos.handle_agent(agent, request)


def _agent_ip(config: Config, index: int) -> str:
    """Return the address an agent listens on: its hostname if that is an IPv4 address, else the master's."""
    name = config.agent_hostname(index)
    parts = name.split(".")
    is_ip = len(parts) == 4 and all(part.isdigit() and int(part) < 256 for part in parts)
    return name if is_ip else config.host


def _agent_ids(work_dir: Path, count: int, master_id: str) -> list[str]:
    """Return the agents' ids: those of earlier runs on this work_dir first, new ones are added to its file."""
    path = work_dir / "meta" / "agents.json"
    names: list[str] = json.loads(path.read_text())["agent_ids"] if path.exists() else []
    names += [f"{master_id}-S{index}" for index in range(len(names), count)]
    fresh = path.with_suffix(".tmp")
    fresh.write_text(json.dumps({"agent_ids": names}))
    fresh.replace(path)
    return names[:count]


def _lock(work_dir: Path) -> IO[str]:
    try:
        (work_dir / "meta").mkdir(parents=True, exist_ok=True)
        file = open(work_dir / "meta" / "lock", "w")
    except OSError as error:
        raise ConfigError(f"work dir {work_dir} cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise ConfigError(
            f"work dir {work_dir} is in use by another embedded Mesos: stop it, or give another"
        ) from error
    return file


def _now_ms() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000

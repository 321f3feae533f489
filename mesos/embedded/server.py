"""The shell around `Cluster`: sockets, processes, disks and the clock go in and out here, and nothing is decided here.

Every request, broken stream, ended process and timer becomes one call of the cluster; then what agents must find again is written
down, and the outputs are performed, in order, without yielding to another greenlet in between. So the machine is never seen
half-way, and no lock is needed. An error inside the machine is our own mistake: the process says so and ends.
"""

from __future__ import annotations

import fcntl
import json
import logging
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO

import gevent
from gevent.event import Event

from stoker.mesos.embedded.agents import AgentSeat, discard, write_json
from stoker.mesos.embedded.authentication import Authenticator
from stoker.mesos.embedded.config import Config, ConfigError
from stoker.mesos.embedded.core.calls import Answer
from stoker.mesos.embedded.core.cluster import Cluster
from stoker.mesos.embedded.core.containers import Life
from stoker.mesos.embedded.core.recovery import AgentCheckpoint
from stoker.mesos.embedded.core.values import (
    Abort,
    AgentEnded,
    AgentNamed,
    Close,
    KillProcess,
    MakeVolume,
    Output,
    RemoveVolume,
    Send,
    StartProcess,
)
from stoker.mesos.embedded.faults import Faults
from stoker.mesos.embedded.http import Request, Server, Stream, listen_steadily
from stoker.mesos.embedded.masters import MasterSeat, Role
from stoker.mesos.embedded.processes import UNKNOWN_STATUS, LaunchError, Runner
from stoker.mesos.embedded.routes import Routes

logger = logging.getLogger(__name__)

STOP_SECONDS_MAX = 30  # that executors get to end when the process is told to
ELECTION_SECONDS_MAX = 3  # that a start waits for ZooKeeper's word on each master
IMPATIENT_MS = 1000  # after which a second signal is meant

# Isolated and without site-packages: it starts with every task that brings a command.
COMMAND_EXECUTOR = (sys.executable, "-I", "-S", str(Path(__file__).with_name("command_executor.py")))


class EmbeddedMesos:
    """Masters and agents in this process. `start`, then `wait`, then `stop`."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.faults = Faults(self)
        self.authenticator = Authenticator(dict(config.credentials))
        self.masters: list[MasterSeat] = []
        self.agents: list[AgentSeat] = []
        self._lock: IO[str] | None = None
        self._control: Server | None = None
        self._streams: dict[int, Stream] = {}
        self._stream_count = 0
        self._written: dict[int, AgentCheckpoint] = {}
        self._wake = Event()
        self._ended = Event()
        self._asked_ms = 0
        self._error: BaseException | None = None

    def start(self) -> str:
        """Find or end what a predecessor left, open all sockets, begin to offer; return the first master's URL.

        :raises ConfigError: the work_dir is in use. :raises OSError: an address or port cannot be had.
        """
        config = self.config
        root = config.work_dir.resolve()
        self._lock = _lock(root)
        self.runner = Runner(root, self, cache_bytes_max=config.fetcher_cache_bytes)
        self._routes = routes = Routes(self)
        for number in range(1, config.masters + 1):
            self.masters.append(MasterSeat(config, number, self, partial(routes.at_master, number)))
        self.agents = [AgentSeat(config, index, root) for index in range(config.agents)]
        listeners = [seat.listen(self._is_offered) for seat in self.masters]
        for agent in self.agents:
            agent.listen(self._is_offered)
        kept = self._recover()
        self.runner.end_others()
        self.runner.prune()
        first, *_ = [seat.prepare() for seat in self.masters]
        now_ms = _now_ms()
        self.cluster = Cluster(
            first,
            [agent.spec for agent in self.agents],
            replace(config.settings, command_executor=COMMAND_EXECUTOR),
            seed=uuid.uuid4(),
            now_ms=now_ms,
            wall_ms=time.time_ns() // 1_000_000,
            kept=kept,
        )
        if config.zk is not None:
            self.cluster.stop_master(now_ms)
        self.step(lambda now_ms: self._report_dead(kept, now_ms))
        self.runner.watch()
        for agent in self.agents:
            agent.open(self.agent_handler(agent.number))
        for seat, listener in zip(self.masters, listeners, strict=True):
            seat.start(listener)
            if config.zk is not None:  # so the first one leads, if ZooKeeper is there
                seat.knows_leader.wait(ELECTION_SECONDS_MAX)
        if config.has_faults:
            control = listen_steadily("127.0.0.1", avoid=self._is_offered)
            ports = [seat.spec.port for seat in self.masters]
            write_json(root / "meta" / "faults.json", {"port": control.getsockname()[1], "masters": ports})
            self._control = Server(control, routes.at_control)
            self._control.start()
        gevent.spawn(self._run_timer)
        return f"http://{first.endpoint}"

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
        for seat in self.masters:
            seat.stop(how="close", block=True)
        with gevent.Timeout(STOP_SECONDS_MAX, False):
            if self._error is None:
                self.step(lambda now_ms: self.cluster.shutdown(now_ms))
                self._kill_forgotten()
                while self.runner.containers:
                    gevent.sleep(0.02)
        while self.runner.containers:
            self._kill_all()
            gevent.sleep(0.02)
        for agent in self.agents:
            agent.close(block=True)
        if self._control is not None:
            self._control.stop()
        if self._lock is not None:
            self._lock.close()

    # One step of the machine.

    def step(self, change: Callable[[int], object]) -> None:
        """Let `change(now_ms)` call the cluster, perform what follows, and set the timer."""
        try:
            change(_now_ms())
            while outputs := self.cluster.take_outputs():
                self._write_checkpoints()
                for output in outputs:
                    self._perform(output)
            self._write_checkpoints()
        except Exception as error:  # a mistake of ours: the state cannot be trusted any more
            logger.exception("the embedded Mesos ends because of an error of its own")
            self._error = error
            self._ended.set()
            raise
        self._wake.set()

    def ask(self, question: Callable[[int], Answer]) -> Answer:
        """Let `question(now_ms)` call the cluster and return its answer when all that follows is performed."""
        answers: list[Answer] = []
        self.step(lambda now_ms: answers.append(question(now_ms)))
        return answers[0]

    def open_stream(self, headers: tuple[tuple[str, str], ...]) -> Stream:
        self._stream_count += 1
        stream = Stream(self._stream_count, headers, self._stream_broken)
        self._streams[stream.number] = stream
        return stream

    def break_stream(self, number: int) -> None:
        """Break a stream off and tell the machine, as if the other side had done it."""
        stream = self._streams.pop(number, None)
        if stream is not None:
            stream.abort()
            self.step(lambda now_ms: self.cluster.stream_closed(number, now_ms))

    def agent_handler(self, number: int) -> Callable[[Request], Answer | Stream]:
        return partial(self._routes.at_agent, number)

    @property
    def leader(self) -> MasterSeat | None:
        """The master that has the machine."""
        return next((seat for seat in self.masters if seat.role is Role.LEADING), None)

    def _perform(self, output: Output) -> None:
        match output:
            case Send(number, event):
                stream = self._streams.get(number)
                if stream is not None and not self.faults.drops(event):
                    body = json.dumps(event, separators=(",", ":")).encode("ascii")
                    stream.send(b"%d\n%b" % (len(body), body))
            case Close(number) | Abort(number):
                ended = self._streams.pop(number, None)
                if ended is not None:
                    ended.finish() if isinstance(output, Close) else ended.abort()
            case AgentNamed(number, agent_id):
                self.agents[number - 1].name(agent_id)
            case AgentEnded(number):
                logger.info("agent=%d ended", number)
                self.agents[number - 1].close()
            case _:
                self._perform_on_machine(output)

    def _perform_on_machine(self, output: Output) -> None:
        match output:
            case StartProcess():
                self._start_process(output)
            case KillProcess(container_id):
                logger.info("container=%s kill", container_id)
                self.runner.kill(container_id)
            case MakeVolume(path):
                Path(path).mkdir(parents=True, exist_ok=True)
            case RemoveVolume(path):
                discard(Path(path))

    def _write_checkpoints(self) -> None:
        for agent in self.cluster.take_changed():
            number, value = agent.spec.number, agent.checkpoint()
            if self._written.get(number) != value:
                self._written[number] = value
                self.agents[number - 1].write_checkpoint(value.as_message())

    def _run_timer(self) -> None:
        while self._error is None:
            self._wake.clear()
            deadline_ms = self.cluster.next_deadline_ms()
            if deadline_ms is None:
                self._wake.wait()
                continue
            delay_ms = deadline_ms - _now_ms()
            if delay_ms <= 0:
                self.step(lambda now_ms: self.cluster.tick(now_ms))
            else:
                self._wake.wait(delay_ms / 1000)

    def _stream_broken(self, number: int) -> None:
        if self._streams.pop(number, None) is not None:
            logger.info("stream=%d closed by the other side", number)
            self.step(lambda now_ms: self.cluster.stream_closed(number, now_ms))

    # Processes.

    def _start_process(self, order: StartProcess) -> None:
        agent = self.cluster.agent_of_container(order.container_id)
        assert agent is not None
        try:
            pid = self.runner.start(order, self.agents[agent.spec.number - 1].cache_dir)
        except LaunchError as error:
            logger.warning("container=%s cannot be started: %s", order.container_id, error)
            agent.process_failed(order.container_id, str(error), _now_ms())
            return
        logger.info("container=%s pid=%s sandbox=%s started", order.container_id, pid, order.sandbox)
        if pid is not None:
            agent.process_started(order.container_id, pid)

    def process_started(self, container_id: str, pid: int) -> None:
        logger.info("container=%s pid=%d fetched and started", container_id, pid)
        agent = self.cluster.agent_of_container(container_id)
        if agent is not None:
            self.step(lambda now_ms: agent.process_started(container_id, pid))

    def process_failed(self, container_id: str, text: str, status: int) -> None:
        logger.warning("container=%s cannot be started: %s", container_id, text)
        agent = self.cluster.agent_of_container(container_id)
        if agent is not None:
            self.step(lambda now_ms: agent.process_failed(container_id, text, now_ms, status))

    def process_exited(self, container_id: str, status: int) -> None:
        logger.info("container=%s status=%d ended", container_id, status)
        agent = self.cluster.agent_of_container(container_id)
        if agent is not None:
            self.step(lambda now_ms: agent.process_exited(container_id, status, now_ms))

    def _kill_forgotten(self) -> None:
        """Kill what no agent shuts down: the agent is not up, or knows it no more."""
        for container_id in self.runner.containers:
            agent = self.cluster.agent_of_container(container_id)
            if agent is None or agent.life is not Life.UP or not agent.has_container(container_id):
                self.runner.kill(container_id)

    def _kill_all(self) -> None:
        for container_id in self.runner.containers:
            self.runner.kill(container_id)

    # Masters.

    def elected(self, seat: MasterSeat) -> None:
        """A master leads from now on; agents hear of it at once by ZooKeeper, else when they miss the old one's pings."""
        if self.cluster.has_master and self.cluster.master.spec == seat.spec:
            return  # the first one of all
        is_told = self.config.zk is not None

        def change(now_ms: int) -> None:
            if self.cluster.has_master:
                self.cluster.stop_master(now_ms)
            self.cluster.start_master(
                seat.spec,
                keeps_registry=self.config.keeps_registry,
                now_ms=now_ms,
                return_ms=0 if is_told else None,
            )

        self.step(change)

    def ended(self, seat: MasterSeat) -> None:
        """A master's process has ended by itself."""
        self.stop_master(seat, how="kill")

    def start_master(self, seat: MasterSeat) -> None:
        """Start a master's process again.

        :raises OSError: its address cannot be had.
        """
        listener = seat.listen(self._is_offered)
        seat.prepare()
        seat.start(listener)

    def stop_master(self, seat: MasterSeat, *, how: str) -> None:
        """End a master's process."""
        seat.stop(how=how)
        if self.cluster.has_master and self.cluster.master.spec == seat.spec:
            self.step(lambda now_ms: self.cluster.stop_master(now_ms))

    # Start.

    def _recover(self) -> dict[int, AgentCheckpoint]:
        """Return what agents find of their predecessors, whose living executors are adopted."""
        found: dict[int, AgentCheckpoint] = {}
        for seat in self.agents:
            value = seat.read_checkpoint()
            if value is None or value["agent_id"] != seat.agent_id:
                continue
            kept = AgentCheckpoint.from_message(value)
            if not self.config.recovers:
                kept = replace(kept, frameworks=())  # what is reserved and created on an agent stays
            if kept.frameworks or any(kept.estate.values()):
                found[seat.number] = kept
            for container_id in sorted(kept.container_ids()):
                self.runner.adopt(container_id)
        return found

    def _report_dead(self, kept: dict[int, AgentCheckpoint], now_ms: int) -> None:
        """Tell agents which of the executors that they kept are gone."""
        alive = set(self.runner.containers)
        for checkpoint in kept.values():
            for container_id in checkpoint.container_ids() - alive:
                agent = self.cluster.agent_of_container(container_id)
                if agent is not None:
                    agent.process_exited(container_id, UNKNOWN_STATUS, now_ms)

    def _is_offered(self, port: int) -> bool:
        """Whether an agent offers this port to tasks."""
        first, _ = self.config.agent_ports(0)
        _, last = self.config.agent_ports(self.config.agents - 1)
        return first <= port <= last


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

"""Real ZooKeeper servers for tests: Debian's jars, a configuration and ports of their own, on loopback.

A server is shared by all tests of a process, each of which gets a path of its own (fixture `zookeeper`); what a test
kills or freezes is an `Ensemble` of its own. Servers end with the process that started them, however it ends.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import pytest

JAR_DIRECTORY = pathlib.Path("/usr/share/java")
# All of them come with libzookeeper-java. Without dropwizard's metrics-core a server dies at its first statistic.
JARS = (
    *("zookeeper", "zookeeper-jute", "slf4j-api", "slf4j-simple", "metrics-core", "snappy-java"),
    *("netty-buffer", "netty-codec", "netty-common", "netty-handler", "netty-resolver", "netty-transport"),
)
JAVA = shutil.which("java")
TICK_MS = 500
SHARED_TIMEOUT_MS_MAX = (
    60_000  # sessions of tests that do not wait for their end outlive a stall of the machine
)
SHARED_HEAP_MB = (
    256  # for what all tests of a process leave there; and a server keeps the newest requests too
)
SYNC_LIMIT_TICKS = 5  # a member that is silent for longer is left behind
HEAP_MB = 96
START_TIMEOUT_S = 90.0
COMMAND_TIMEOUT_S = 3.0
POLL_S = 0.02
# Below Linux' ephemeral ports, so that no outgoing connection takes one while its server is down.
PORTS = range(21_000, 30_000)

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)
_reserved: list[socket.socket] = []


def _why_not() -> str:
    missing = [
        str(JAR_DIRECTORY / f"{jar}.jar") for jar in JARS if not (JAR_DIRECTORY / f"{jar}.jar").exists()
    ]
    if JAVA and not missing:
        return ""
    what = "java" if not JAVA else missing[0]
    return (
        f"{what} is not here (apt-get install --no-install-recommends libzookeeper-java default-jre-headless)"
    )


WHY_NOT = _why_not()
needs_zookeeper = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)


class ZooKeeperServer:
    """One server; a member of an ensemble where `members` are given: its lines `server.N=...`, with `number` its own."""

    def __init__(
        self,
        directory: pathlib.Path,
        *,
        number: int = 0,
        port: int = 0,
        members: Sequence[str] = (),
        tick_ms: int = TICK_MS,
        heap_mb: int = HEAP_MB,
        is_synced: bool = False,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """`is_synced`: wait for the disk at each write, as a server in earnest does."""
        assert not WHY_NOT, WHY_NOT
        self.directory = directory
        self.port = port or reserve_port()
        self._log = directory / "log"
        self._process: subprocess.Popen[bytes] | None = None
        data = directory / "data"
        data.mkdir(parents=True)
        if members:
            (data / "myid").write_text(str(number))
        lines = {
            "tickTime": str(tick_ms),
            "initLimit": "40",
            "syncLimit": str(SYNC_LIMIT_TICKS),
            "dataDir": str(data),
            "clientPort": str(self.port),
            "clientPortAddress": "127.0.0.1",
            "admin.enableServer": "false",
            "4lw.commands.whitelist": "*",
            "maxClientCnxns": "0",
            **(settings or {}),
        }
        self._config = directory / "zoo.cfg"
        self._config.write_text(
            "".join(f"{k}={v}\n" for k, v in lines.items()) + "".join(f"{m}\n" for m in members)
        )
        self._command = [
            *(
                str(JAVA),
                f"-Xmx{heap_mb}m",
                "-XX:+UseSerialGC",
                "-XX:TieredStopAtLevel=1",
                "-XX:-UsePerfData",
            ),
            *(
                "-XX:ActiveProcessorCount=1",
                "-Xshare:auto",
                "-Djava.awt.headless=true",
                "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
            ),
            *(f"-Dzookeeper.forceSync={'yes' if is_synced else 'no'}", "-Dzookeeper.preAllocSize=1024"),
            *("-cp", ":".join(str(JAR_DIRECTORY / f"{jar}.jar") for jar in JARS)),
            *("org.apache.zookeeper.server.quorum.QuorumPeerMain", str(self._config)),
        ]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, *, wait: bool = True) -> None:
        """Start it, again on the same data where it ran before; `wait` until it serves."""
        assert not self.is_running
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                preexec_fn=_die_too,
            )
        if wait:
            self.wait_serving()

    def stop(self) -> None:
        """End it in an orderly way."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """Stand still, all threads once this returns: connections stay, nothing is answered."""
        os.kill(self.pid, signal.SIGSTOP)
        tasks = pathlib.Path(f"/proc/{self.pid}/task")
        while any(_state(task) not in "TXZ" for task in tasks.iterdir()):
            time.sleep(POLL_S)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def ask(self, word: str, *, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        """Return the answer to a four-letter word, "" where there is none."""
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", self.port), timeout=timeout_s) as connection,
        ):
            connection.settimeout(timeout_s)
            connection.sendall(word.encode())
            return b"".join(iter(functools.partial(connection.recv, 65536), b"")).decode()
        return ""

    def mntr(self) -> dict[str, str]:
        """Return its figures by name without "zk_": approximate_data_size, znode_count, ephemerals_count ..."""
        pairs = (line.split("\t", 1) for line in self.ask("mntr").splitlines() if "\t" in line)
        return {name.removeprefix("zk_"): value for name, value in pairs}

    def mode(self) -> str:
        """Return leader, follower or standalone; "" while it serves nobody."""
        modes = [
            line.partition(": ")[2] for line in self.ask("srvr").splitlines() if line.startswith("Mode: ")
        ]
        return modes[0] if modes else ""

    def wait_serving(self, timeout_s: float = START_TIMEOUT_S) -> None:
        deadline = time.monotonic() + timeout_s
        while not self.mode():
            assert self.is_running, f"ZooKeeper ended: {self.said()}"
            assert time.monotonic() < deadline, f"ZooKeeper does not serve after {timeout_s} s: {self.said()}"
            time.sleep(POLL_S)

    def said(self) -> str:
        return self._log.read_text(errors="replace")[-4000:] if self._log.exists() else ""

    def _end(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
            self._process.send_signal(signal.SIGCONT)
            self._process.wait(60)


class Ensemble:
    """Servers with a quorum; a context manager. `hosts` is what a zk:// URL or kazoo wants."""

    def __init__(
        self,
        directory: pathlib.Path,
        size: int = 3,
        *,
        tick_ms: int = TICK_MS,
        heap_mb: int = HEAP_MB,
        is_synced: bool = False,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        members = [
            f"server.{number}=127.0.0.1:{reserve_port()}:{reserve_port()}:participant"
            for number in range(1, size + 1)
        ]
        self.servers = [
            ZooKeeperServer(
                directory / f"zookeeper{number}",
                number=number,
                members=members,
                tick_ms=tick_ms,
                heap_mb=heap_mb,
                is_synced=is_synced,
                settings=settings,
            )
            for number in range(1, size + 1)
        ]

    @property
    def hosts(self) -> str:
        return ",".join(server.address for server in self.servers)

    def url(self, path: str = "/stoker") -> str:
        return f"zk://{self.hosts}{path}"

    def start(self) -> None:
        for server in self.servers:
            server.start(wait=False)
        self.wait_serving()

    def wait_serving(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait until all members that run take part: one leads, all others follow it."""
        deadline = time.monotonic() + timeout_s
        while not self._is_whole():
            said = "\n".join(server.said()[-1500:] for server in self.servers)
            assert time.monotonic() < deadline, f"the ensemble is not whole after {timeout_s} s: {said}"
            time.sleep(POLL_S)

    def _is_whole(self) -> bool:
        running = [server for server in self.servers if server.is_running]
        leaders = [server for server in running if server.mode() == "leader"]
        if len(leaders) != 1:
            return False
        synced = leaders[0].mntr().get("synced_followers", "0")
        return int(float(synced)) == len(running) - 1 == len(self.followers())

    def leader(self) -> ZooKeeperServer:
        return next(server for server in self.servers if server.is_running and server.mode() == "leader")

    def followers(self) -> list[ZooKeeperServer]:
        return [server for server in self.servers if server.is_running and server.mode() == "follower"]

    def close(self) -> None:
        for server in self.servers:
            server.kill()

    def __enter__(self) -> Ensemble:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Place(NamedTuple):
    """A path of one's own on a running server; nothing is there yet."""

    server: ZooKeeperServer
    path: str

    @property
    def hosts(self) -> str:
        return self.server.address

    @property
    def url(self) -> str:
        return f"zk://{self.hosts}{self.path}"


@functools.cache
def shared_server() -> ZooKeeperServer:
    """Return this process' server, started on first use. Whoever kills it spoils the others' tests."""
    directory = pathlib.Path(tempfile.mkdtemp(prefix="stoker-zookeeper-"))
    server = ZooKeeperServer(
        directory / "server",
        heap_mb=SHARED_HEAP_MB,
        settings={"maxSessionTimeout": str(SHARED_TIMEOUT_MS_MAX), "commitLogCount": "100"},
    )
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    atexit.register(server.kill)
    server.start()
    return server


@pytest.fixture
def zookeeper() -> Place:
    """A fresh path on the shared server; the test is skipped where ZooKeeper is not installed."""
    if WHY_NOT:
        pytest.skip(WHY_NOT)
    return Place(shared_server(), f"/test-{uuid.uuid4().hex[:12]}/stoker")


@pytest.fixture
def ensemble(tmp_path: pathlib.Path) -> Iterator[Ensemble]:
    """Three servers of the test's own, to be killed and frozen."""
    if WHY_NOT:
        pytest.skip(WHY_NOT)
    with Ensemble(tmp_path / "ensemble") as running:
        yield running


def reserve_port() -> int:
    """Return a free port that no other process of these tests takes as long as this one lives."""
    chance = random.SystemRandom()
    while True:
        port = chance.choice(PORTS)
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0stoker-test-port-{port}")
            with socket.create_server(("127.0.0.1", port)):
                _reserved.append(claim)
                return port
        except OSError:
            claim.close()


def _state(task: pathlib.Path) -> str:
    """Return the letter of a thread's state; T is stopped, X is gone."""
    with contextlib.suppress(OSError):
        return (task / "stat").read_text().rpartition(")")[2].split()[0]
    return "X"


def _die_too() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

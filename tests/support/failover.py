"""Three schedulers over a real ZooKeeper ensemble, real executors on the embedded Mesos, and writers that never give up.

Each scheduler reaches each ZooKeeper server through a proxy of its own, so that its connection alone can be cut.
"""

from __future__ import annotations

import collections
import http.client
import json
import os
import pathlib
import random
import signal
import threading
import time
from typing import Any, NamedTuple

import psutil
from kazoo.client import KazooClient
from kazoo.recipe.watchers import ChildrenWatch

from stoker.client.api import Client
from stoker.framework.cli.local import agent_addresses
from support.embedded import EmbeddedProcess
from support.schedulers import SchedulerProcess
from support.waiting import wait_until as wait_for
from support.zookeeper import Ensemble, ZooKeeperServer
from support.zookeeper_proxy import Proxy

MEBIBYTE = 2**20
INSTANCES = 2
PATH = "/stoker"
DEADLINE_S = 90.0
ATTEMPT_TIMEOUT_S = 30.0
REFUSED_PAUSE_S = 0.02  # after an answer that is no acknowledgement


class TakeOver(NamedTuple):
    """One change of leader: `after_gone_s` since the old one's election node went, `after_session_s` since the stroke
    and the session timeout, `after_stroke_s` since the stroke alone, each up to the first write that another answered."""

    kind: str
    after_gone_s: float
    after_session_s: float
    after_stroke_s: float


class Schedulers:
    """The whole cluster; `start` it, `close` it."""

    def __init__(self, directory: pathlib.Path, *, session_timeout_ms: int, count: int = 3) -> None:
        self.directory = directory
        self.session_timeout_ms = session_timeout_ms
        self.ensemble = Ensemble(directory / "ensemble", settings={"maxSessionTimeout": "60000"})
        self.processes: list[SchedulerProcess] = []
        self.proxies: list[list[Proxy]] = []
        self._configs: list[dict[str, Any]] = []
        self._count = count
        self.mesos: EmbeddedProcess | None = None
        self._elected: Elected | None = None

    def start(self) -> None:
        self.ensemble.start()
        hostnames = ",".join(agent_addresses(INSTANCES, os.getpid()))
        agents = ("--agents", str(INSTANCES), "--cpus", "2", "--mem", "1GiB", "--hostnames", hostnames)
        self.mesos = EmbeddedProcess(self.directory / "mesos", *agents)
        for number in range(self._count):
            proxies = [Proxy(server.address) for server in self.ensemble.servers]
            self.proxies.append(proxies)
            hosts = ",".join(proxy.address for proxy in proxies)
            self._configs.append(
                {
                    "master": self.mesos.address,
                    "journal": f"zk://{hosts}{PATH}",
                    "session_timeout_ms": self.session_timeout_ms,
                    "instances": INSTANCES,
                    "mem_bytes": 48 * MEBIBYTE,
                    "allow_sources": [""],
                    "failover_timeout_ms": 600_000,
                    "scratch_dir": str(self.directory / f"scratch{number}"),
                    "settings": {
                        "tick_ms": 200,
                        "heartbeat_timeout_ms": 20_000,
                        "residency_grace_ms": 10_000,
                        "revive_interval_ms_min": 500,
                        "jobs_kept_max": 1_000_000,
                    },
                }
            )
        self.processes = [self._spawn(number) for number in range(self._count)]
        for config, process in zip(self._configs, self.processes, strict=True):
            config["port"] = process.api.port
        self.wait_settled()

    def _spawn(self, number: int) -> SchedulerProcess:
        log = self.directory / f"scheduler{number}.log"
        return SchedulerProcess(self._configs[number], log)

    @property
    def urls(self) -> list[str]:
        return [process.url for process in self.processes]

    @property
    def url(self) -> str:
        """Return what a client is given: all of them."""
        return ",".join(self.urls)

    @property
    def client(self) -> Client:
        return Client("http://" + self.url.replace("http://", ""))

    @property
    def elected(self) -> Elected:
        """Return the watch on the election, begun on first use."""
        if self._elected is None:
            self._elected = Elected(self.ensemble.hosts)
        return self._elected

    def about(self, number: int) -> dict[str, Any]:
        """Return what a scheduler says of itself; nothing where it does not answer."""
        try:
            status, body = self.processes[number].api.call("GET", "/v1/leader")
        except (OSError, http.client.HTTPException):
            return {}
        return body if status == 200 else {}

    def wait_settled(self) -> int:
        """Wait until one leads, and all others have caught up and stand behind it in the election; return its number."""
        leaders: list[int] = []
        wait_for(
            lambda: leaders.append(self._settled()) or leaders[-1] >= 0,
            "one leader and followers",
            DEADLINE_S,
        )
        return leaders[-1]

    def _settled(self) -> int:
        for process in self.processes:
            assert process.child.poll() is None, f"a scheduler ended: {process.said()[-3000:]}"
        abouts = [self.about(number) for number in range(self._count)]
        leaders = [n for n, about in enumerate(abouts) if about.get("state") == "leading"]
        if len(leaders) != 1:
            return -1
        url = self.urls[leaders[0]]
        for about in abouts:
            if about.get("leader") != url or len(about.get("schedulers", ())) != self._count:
                return -1
            if about["state"] not in ("leading", "following"):
                return -1
        return leaders[0]

    def server_of(self, number: int) -> ZooKeeperServer:
        """Return the ZooKeeper server that a scheduler talks to."""
        talking: list[ZooKeeperServer] = []

        def is_known() -> bool:
            pairs = zip(self.proxies[number], self.ensemble.servers, strict=True)
            talking[:] = [server for proxy, server in pairs if proxy.connection_count]
            return len(talking) == 1

        wait_for(is_known, "one connection to ZooKeeper", DEADLINE_S)
        return talking[0]

    def strike(self, kind: str, number: int) -> None:
        """Do one of kill, stop, term, cut (its connections to ZooKeeper) to a scheduler."""
        process = self.processes[number].child
        if kind == "cut":
            for proxy in self.proxies[number]:
                proxy.cut()
        else:
            process.send_signal(
                {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM}[kind]
            )

    def mend(self, kind: str, number: int) -> None:
        """Undo `strike`: the scheduler is as before, or another in its place at the same address."""
        if kind == "cut":
            for proxy in self.proxies[number]:
                proxy.mend()
        elif kind == "stop":
            self.processes[number].child.send_signal(signal.SIGCONT)
        else:
            status = self.processes[number].stop()
            assert status == (0 if kind == "term" else -signal.SIGKILL), self.processes[number].said()[-3000:]
            self.processes[number] = self._spawn(number)

    def restart_all(self, **changes: Any) -> None:
        """End all schedulers in an orderly way and start them with another configuration."""
        for process in self.processes:
            process.child.send_signal(signal.SIGTERM)
        for number, process in enumerate(self.processes):
            assert process.stop() == 0, process.said()[-3000:]
            self._configs[number] |= changes
            self.processes[number] = self._spawn(number)
        self.session_timeout_ms = self._configs[0]["session_timeout_ms"]
        self.wait_settled()

    def launches(self) -> dict[int, int]:
        """Return slot -> launch, as the leader knows them."""
        return {e["slot"]: e["launch"] for e in self.client.executors()}

    def keepers(self) -> list[psutil.Process]:
        """Return the executors' processes, waiting until the leader has heard of all."""
        pids: list[int] = []

        def all_reported() -> bool:
            pids[:] = sorted(e["pid"] or 0 for e in self.client.executors())
            return len(pids) == INSTANCES and 0 not in pids

        wait_for(all_reported, "all executors to have reported", DEADLINE_S)
        return [psutil.Process(pid) for pid in pids]

    def tasks(self) -> list[str]:
        """Return all tasks that Mesos ever was told to launch, the ended ones included."""
        assert self.mesos is not None
        kinds = ("tasks", "completed_tasks", "unreachable_tasks")
        return sorted(
            task["id"]
            for framework in self.frameworks()
            for kind in kinds
            for task in framework.get(kind, ())
        )

    def frameworks(self) -> list[dict[str, Any]]:
        assert self.mesos is not None
        state = self.mesos.state()
        found: list[dict[str, Any]] = [*state.get("frameworks", ()), *state.get("completed_frameworks", ())]
        return found

    def said(self) -> str:
        """Return the ends of all schedulers' logs, for a failure's message."""
        return "\n".join(f"--- scheduler {n}\n{p.said()[-3000:]}" for n, p in enumerate(self.processes))

    def close(self) -> None:
        try:
            if self._elected is not None:
                self._elected.close()
            for process in self.processes:
                process.stop(signal.SIGKILL)
        finally:
            if self.mesos is not None:
                self.mesos.stop()
            for proxy in (proxy for proxies in self.proxies for proxy in proxies):
                proxy.close()
            self.ensemble.close()


class Elected:
    """Watches the election: when which candidate's node went."""

    def __init__(self, hosts: str) -> None:
        self._lock = threading.Lock()
        self._nodes: dict[str, str] = {}  # node -> its scheduler's URL
        self._gone: dict[str, float] = {}  # node -> when
        self._client = KazooClient(hosts=hosts, timeout=10.0)
        self._client.start(timeout=30)
        ChildrenWatch(self._client, f"{PATH}/election", self._changed)

    def node_of(self, url: str) -> str:
        """Return the newest node of a candidate, waiting for it."""
        wait_for(lambda: bool(self._nodes_of(url)), f"a candidate {url}", DEADLINE_S)
        return max(self._nodes_of(url), key=lambda node: node.rsplit("-", 1)[1])

    def _nodes_of(self, url: str) -> list[str]:
        with self._lock:
            return [node for node, its in self._nodes.items() if its == url and node not in self._gone]

    def gone_s(self, node: str) -> float:
        """Return when a node went, waiting for that; on time.monotonic's clock."""
        wait_for(lambda: node in self._gone, f"the election node {node} to go", DEADLINE_S)
        return self._gone[node]

    def _changed(self, names: list[str]) -> None:
        now_s = time.monotonic()
        with self._lock:
            for node in set(self._nodes) - set(names) - set(self._gone):
                self._gone[node] = now_s
            new = [name for name in names if name not in self._nodes]
        for name in new:
            try:
                data, _ = self._client.get(f"{PATH}/election/{name}")
            except Exception:  # it has gone already, or the connection: the next change tells
                continue
            with self._lock:
                self._nodes[name] = data.decode()

    def close(self) -> None:
        self._client.stop()
        self._client.close()


class Item(NamedTuple):
    """One write, repeated with the same name or key until it is acknowledged."""

    kind: str  # dataset, job
    name: str
    body: dict[str, Any]


class Acknowledged(NamedTuple):
    item: Item
    id: str
    by: str  # URL
    at_s: float


class Writers:
    """One thread a scheduler posts datasets and jobs there, as fast as they are answered; a context manager.

    What one scheduler does not acknowledge, whatever the reason, is tried again by whichever thread comes next, with the
    same name or key. Redirects are not followed: so it is known who answered.
    """

    def __init__(
        self, urls: list[str], *, source: str, dataset: str, paths: list[str], pause_s: float = 0.0
    ) -> None:
        self._source, self._dataset, self._paths = source, dataset, paths
        self._pause_s = pause_s
        self._lock = threading.Lock()
        self._pending: collections.deque[Item] = collections.deque()
        self._made = 0
        self._ending = threading.Event()
        self._tag = f"{random.SystemRandom().randrange(16**6):06x}"
        self.acknowledged: list[Acknowledged] = []
        self.refusals: collections.Counter[str] = collections.Counter()
        self.slowest_refusal_s = 0.0  # of those that HTTP answered with 503
        self.errors: list[str] = []
        self._threads = [threading.Thread(target=self._write, args=(url,), daemon=True) for url in urls]

    def __enter__(self) -> Writers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join(4 * ATTEMPT_TIMEOUT_S)
        assert not any(thread.is_alive() for thread in self._threads), "a writer hangs"

    def wait_acknowledged(self, since_s: float, *, not_by: str = "", by: str = "") -> Acknowledged:
        """Return the first acknowledgement after `since_s` that is not by one, or is by one scheduler."""

        def first() -> Acknowledged | None:
            with self._lock:
                recent = self.acknowledged[self._index_after(since_s) :]
            return next((ack for ack in recent if ack.by != not_by and by in ("", ack.by)), None)

        wait_for(lambda: bool(self.errors) or first() is not None, "an acknowledged write", DEADLINE_S)
        assert not self.errors, self.errors
        found = first()
        assert found is not None
        return found

    def wait_more(self, count: int) -> None:
        goal = len(self.acknowledged) + count
        wait_for(
            lambda: bool(self.errors) or len(self.acknowledged) >= goal, f"{count} more writes", DEADLINE_S
        )
        assert not self.errors, self.errors

    def count_by(self, url: str, since_s: float) -> int:
        """Return how many writes one scheduler has acknowledged since a moment."""
        with self._lock:
            return sum(ack.by == url for ack in self.acknowledged[self._index_after(since_s) :])

    def longest_gap_s(self, since_s: float) -> float:
        """Return the longest time without an acknowledgement since a moment."""
        with self._lock:
            times = [since_s, *(ack.at_s for ack in self.acknowledged[self._index_after(since_s) :])]
        return max((b - a for a, b in zip(times, times[1:], strict=False)), default=0.0)

    def _index_after(self, since_s: float) -> int:
        index = len(self.acknowledged)
        while index and self.acknowledged[index - 1].at_s > since_s:
            index -= 1
        return index

    # --- the threads

    def _write(self, url: str) -> None:
        host = url.removeprefix("http://")
        connection = http.client.HTTPConnection(host, timeout=ATTEMPT_TIMEOUT_S)
        while not self._ending.wait(self._pause_s):
            item = self._take()
            refusal = "unexpected"
            try:
                refusal = self._attempt(connection, url, item)
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                refusal = type(error).__name__
            except Exception as error:  # a thread's top frame: the test reads `errors`
                self.errors.append(f"{item.kind} {item.name} at {url}: {error!r}")
            if refusal:
                with self._lock:
                    self._pending.append(item)
                    self.refusals[refusal] += 1
                self._ending.wait(REFUSED_PAUSE_S)
        connection.close()

    def _take(self) -> Item:
        with self._lock:
            if self._pending:
                return self._pending.popleft()
            self._made += 1
            number = self._made
        if number % 40 == 1:  # each dataset is listed by a child process
            name = f"w{self._tag}-{number:06d}"
            return Item("dataset", name, {"name": name, "source": self._source})
        path = self._paths[number % len(self._paths)]
        return Item(
            "job", f"k{self._tag}-{number:06d}", {"kind": "load", "dataset": self._dataset, "paths": [path]}
        )

    def _attempt(self, connection: http.client.HTTPConnection, url: str, item: Item) -> str:
        """Try one write; return why it was not acknowledged, "" if it was."""
        began_s = time.monotonic()
        status, body = post(connection, item)
        now_s = time.monotonic()
        if status in (200, 201):
            with self._lock:
                self.acknowledged.append(Acknowledged(item, str(body["id"]), url, now_s))
            return ""
        if status == 307:
            return "redirected"
        if status == 503:
            with self._lock:
                self.slowest_refusal_s = max(self.slowest_refusal_s, now_s - began_s)
            return str(body["error"]["code"])
        raise AssertionError(f"{status} {body}")

    # --- what came of it

    def check(self, schedulers: Schedulers, *, jobs_before: int) -> str:
        """Assert that each write that was ever sent is there exactly once, with the id it was told; return the figures.

        Called after the threads have ended. Writes without an answer are sent once more first.
        """
        assert not self.errors, self.errors
        for item in self._pending:
            status, body = repeat(schedulers, item)
            assert status in (200, 201), (item, status, body)
            self.acknowledged.append(Acknowledged(item, str(body["id"]), "", time.monotonic()))
        told: dict[tuple[str, str], set[str]] = collections.defaultdict(set)
        for ack in self.acknowledged:
            told[ack.item.kind, ack.item.name].add(ack.id)
        doubles = {name: found for name, found in told.items() if len(found) > 1}
        assert not doubles, f"told different ids for one write: {doubles}"
        ids = {name: next(iter(found)) for name, found in told.items()}
        datasets = {n: i for (kind, n), i in ids.items() if kind == "dataset"}
        jobs = {i for (kind, _), i in ids.items() if kind == "job"}
        views, job_views = schedulers.client.datasets(), schedulers.client.jobs()
        ours = [(v["name"], str(v["id"])) for v in views if v["name"].startswith(f"w{self._tag}-")]
        lost = sorted(datasets.items() - set(ours))
        assert not lost, f"{len(lost)} of {len(datasets)} acknowledged datasets are not there: {lost[:5]}"
        assert len(ours) == len(datasets), f"{len(ours)} datasets of {len(datasets)} names"
        lost_jobs = jobs - {view["id"] for view in job_views}
        assert not lost_jobs, f"{len(lost_jobs)} of {len(jobs)} acknowledged jobs are not there"
        assert len(job_views) - jobs_before == len(jobs), f"{len(job_views)} jobs of {len(jobs)} keys"
        return f"{len(datasets)} datasets and {len(jobs)} jobs; refused on the way: {dict(self.refusals)}"


def post(connection: http.client.HTTPConnection, item: Item) -> tuple[int, Any]:
    """Send a write; return the status and the body's JSON."""
    path, headers = "/v1/datasets", {"Content-Type": "application/json"}
    if item.kind == "job":
        path = "/v1/jobs"
        headers["Idempotency-Key"] = item.name
    connection.request("POST", path, json.dumps(item.body), headers)
    answer = connection.getresponse()
    content = answer.read()
    return answer.status, json.loads(content) if content else None


def repeat(schedulers: Schedulers, item: Item) -> tuple[int, Any]:
    """Send a write again to the scheduler that leads."""
    api = schedulers.processes[schedulers.wait_settled()].api
    connection = http.client.HTTPConnection(api.host, api.port, timeout=ATTEMPT_TIMEOUT_S)
    try:
        return post(connection, item)
    finally:
        connection.close()

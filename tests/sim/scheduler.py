"""A simulated scheduler: it follows the journal into a replica, waits for its turn, leads, and follows again.

A process may be killed and started anew; a leadership that ends leaves its process as it is.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import msgpack

from sim.embedded_mesos import Mesos
from sim.kazoo_model import SimEvent, SimKazoo
from sim.leading import Leading, Respond
from sim.process import DRIFT_MAX, Process
from sim.timeline import Timeline
from sim.truth import Truth
from sim.zookeeper import Ensemble
from stoker.framework.core.catalog import Catalog
from stoker.framework.core.replay import REPLAYED_MAX, replay
from stoker.framework.model import FleetSpec, Settings
from stoker.zk.errors import Corrupt, Denied, JournalError, TooNew, Unavailable
from stoker.zk.home import Batch, Snapshot
from stoker.zk.paths import ZkUrl
from stoker.zk.session import Session
from stoker.zk.zookeeper import ZooKeeperHome

RETRY_MS = 300
ROOT = "/stoker"


class Replica:
    """A follower's state: a prefix of the journal, always."""

    def __init__(self, truth: Truth) -> None:
        self.catalog = Catalog()
        self.next_index = 0
        self._truth = truth

    def take(self, item: Snapshot | Batch) -> None:
        if isinstance(item, Snapshot):
            assert item.next_index >= self.next_index, "a follower goes back"
            self.catalog = Catalog.restore(msgpack.unpackb(item.data, strict_map_key=False))
            self.next_index = item.next_index
            return
        assert item.first_index == self.next_index, f"record {item.first_index} after {self.next_index}"
        self._truth.check_records(item.first_index, item.records)
        for start in range(0, len(item.records), REPLAYED_MAX):
            replay(self.catalog, item.records[start : start + REPLAYED_MAX], item.first_index + start)
        self.next_index += len(item.records)


class SimScheduler:
    leading_class = Leading

    def __init__(
        self,
        name: str,
        timeline: Timeline,
        ensemble: Ensemble,
        mesos: Mesos,
        truth: Truth,
        *,
        spec: FleetSpec,
        timeout_ms: int,
        settings: Settings,
    ) -> None:
        self.name = name
        self.url = f"http://{name}:1"
        self.spec = spec
        self.settings = settings
        self.process = Process(timeline, name, drift=DRIFT_MAX)
        self.home: ZooKeeperHome | None = None
        self.client: SimKazoo | None = None
        self.leading: Leading | None = None
        self.replica = Replica(truth)
        self.takeovers = 0
        self.passed: Callable[[str], None] = lambda point: None
        self._timeline, self._ensemble, self._mesos, self._truth = timeline, ensemble, mesos, truth
        self._timeout_ms = timeout_ms
        self.process.spawn(self._run)

    @property
    def is_leading(self) -> bool:
        leading = self.leading
        return self.process.is_alive and leading is not None and leading.is_begun and leading.ended is None

    def kill(self) -> None:
        """SIGKILL. Its connections end."""
        self.process.kill()
        if self.leading is not None:
            self.leading.hang_up()
        self.leading = self.home = self.client = None

    def start(self) -> None:
        """Start the program again, as a new process of the same host."""
        if not self.process.is_alive:
            jump_ms = self.process.wall_jump_ms
            self.process = Process(self._timeline, self.name, drift=DRIFT_MAX)
            self.process.wall_jump_ms = jump_ms
            self.process.spawn(self._run)

    def end(self) -> None:
        """SIGTERM: it hands over without waiting for its session to expire."""
        if self.leading is not None:
            self.leading.stop(Unavailable("it is told to end"))
        home = self.home
        if home is not None:
            self.process.spawn(home.close)
        self.process.at(50, self.kill)

    def http(self, serve: Callable[[Leading], None], respond: Respond) -> None:
        """Take a request in: the leader serves it, others say who leads. Runs in the process."""
        if self.is_leading:
            assert self.leading is not None
            serve(self.leading)
            return
        members = self.home.members() if self.home is not None else ()
        if members and members[0] != self.url:
            respond("redirect", members[0])
        else:
            respond("not_leading", None)

    def _run(self) -> None:
        while True:
            client = self.client = SimKazoo(self.process, self._ensemble, self._timeout_ms)
            home = self.home = self.make_home(client)
            try:
                home.start()
                home.join()
                replica = self._follow(home)
                self._lead(home, replica)
            except JournalError as error:
                assert "given up" not in str(error), f"the session's attendant failed: {error}"
                assert not isinstance(error, Corrupt | TooNew | Denied), f"the journal was harmed: {error!r}"
                self._timeline.tell(f"--- {self.name} starts over: {error!r}")
                if self.leading is not None:
                    self.leading.stop(error)
            self.leading = None
            home.close()
            self.process.sleep(RETRY_MS)

    def make_home(self, client: SimKazoo) -> ZooKeeperHome:
        """Return the product's own home, over `client`."""
        candidate = uuid.UUID(int=self._timeline.random.getrandbits(128)).hex
        return ZooKeeperHome(
            ZkUrl((("simulated", 2181),), ROOT),
            member=self.url,
            owner=self.name,
            session_timeout_ms=self._timeout_ms,
            gevent=False,
            make_session=lambda place, **options: Session(
                place,
                **{**options, "candidate": candidate, "owner": f"{self.name} {candidate}"},
                client=client,
                now_ms=lambda: self.process.now_ms(),
            ),
        )

    def _follow(self, home: ZooKeeperHome) -> Replica:
        """Follow until it is our turn; return what was followed."""
        replica = self.replica = Replica(self._truth)
        failures: list[JournalError] = []
        is_over = SimEvent(self.process)

        def follow() -> None:
            try:
                for item in home.follow(0):
                    if item is not None:
                        replica.take(item)
            except JournalError as error:
                failures.append(error)
            is_over.set()

        self.process.spawn(follow)
        home.wait_turn()
        home.stop_following()
        is_over.wait()
        if failures:
            raise failures[0]
        return replica

    def _lead(self, home: ZooKeeperHome, replica: Replica) -> None:
        journal = home.journal()
        recovered = journal.lead(replica.next_index)
        if not recovered.resumed:
            replica = Replica(self._truth)
            if recovered.snapshot is not None:
                replica.take(Snapshot(recovered.snapshot_index, recovered.snapshot))
        for first_index, records in recovered.batches:
            replica.take(Batch(first_index, recovered.epoch, records))
        self.replica = Replica(self._truth)
        self.takeovers += 1
        epoch = recovered.epoch
        self._timeline.tell(f"--- {self.name} leads epoch {epoch} from record {replica.next_index}")
        self._check_takeover(epoch, replica)
        self.leading = self.leading_class(
            self.process,
            journal,
            replica.catalog,
            replica.next_index,
            epoch=epoch,
            truth=self._truth,
            mesos=self._mesos,
            schedulers=lambda: self._members(home),
            spec=self.spec,
            cluster=self._timeline.random.randbytes(16),
            settings=self.settings,
        )
        self.leading.passed = lambda point: self.passed(point)
        self.leading.run()

    def _check_takeover(self, epoch: int, replica: Replica) -> None:
        """What was durable before is what is led with. (A leader that is deposed already may have missed the rest.)"""
        if epoch == self._truth.epoch:
            assert replica.next_index == self._truth.next_index, "a take-over misses records"
            state: Any = replica.catalog.snapshot()
            assert state == self._truth.catalog.snapshot(), "the catalog changed with the leader"

    def _members(self, home: ZooKeeperHome) -> tuple[str, ...]:
        return (self.url, *(url for url in home.members() if url != self.url))

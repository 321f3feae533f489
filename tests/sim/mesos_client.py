"""A scheduler's connection to the simulated Mesos: the product's own shell and driver, without thread and socket.

What the driver would write to a connection is taken from it as the bytes they are, and arrives late, in order; what Mesos sends
comes back as JSON and goes through the driver's handlers. A connection ends, and the next one is another.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from sim.process import Process
from stoker.framework.core import actions as a
from stoker.framework.core import events as ev
from stoker.framework.core.catalog import Catalog
from stoker.framework.core.entries import LaunchPlanned
from stoker.framework.errors import NotLeading
from stoker.framework.mesos_shell import MesosShell
from stoker.framework.metrics import Metrics
from stoker.framework.model import FleetSpec, overhead_bytes
from stoker.framework.translate import Json, LaunchValues, framework_to_mesos, launch_environment
from stoker.mesos.errors import CallFailed, HttpError
from stoker.mesos.scheduler_driver import SchedulerDriver, _Subscription
from stoker.mesos.transport import Address, Answer
from stoker.zk.errors import JournalError

if TYPE_CHECKING:
    from sim.embedded_mesos import Mesos

ADDRESS = Address("mesos", 5050)
FAILOVER_TIMEOUT_MS = 30 * 86_400_000
TAKEN = Answer(202, {}, b"")
METRICS = Metrics()  # nobody reads them here
UNRELIABLE = (a.Kill, a.Reconcile, a.Suppress, a.Revive, a.ShutdownExecutor, a.ReconcileOperations)


class Connection:
    """A subscription on its way, or taken: what the driver asks of a stream of its transport."""

    is_closed = False

    def __init__(self, client: MesosClient, number: int) -> None:
        self.client = client
        self.number = number
        self.stream_id = ""  # Mesos gives it
        self.body = b""

    def open(self, path: str, body: bytes, headers: Mapping[str, str], **timeouts: int) -> Answer:
        self.body = body
        return TAKEN

    def close(self) -> None:
        """The driver gives it up: Mesos refused a call of it."""
        self.client.lose(self)

    def deliver(self, event: Json) -> None:
        """An event arrives at the scheduler's process."""
        if not self.is_closed:
            self.client.take(self, event)


class Driver(SchedulerDriver):
    def __init__(self, client: MesosClient, scheduler: Any, framework: Json) -> None:
        super().__init__(scheduler, framework, str(ADDRESS), may_send=scheduler.may_send)
        self._caller = client
        self._started = True

    def begin(self, connection: Connection) -> None:
        self._subscribe(connection)
        self._stream = connection

    def taken(self, stream_id: str) -> None:
        self._opened = _Subscription(ADDRESS, stream_id)

    @property
    def fatal(self) -> str | None:
        return self._fatal

    def _guard(self, what: str, call: Callable[..., None], *args: Any) -> None:
        call(*args)  # what a callback raises ends the simulation


class MesosClient:
    """One leadership's. `take_event` gets its events; `ended` is told why Mesos will not have it any more."""

    def __init__(
        self,
        mesos: Mesos,
        process: Process,
        catalog: Catalog,
        *,
        epoch: int,
        spec: FleetSpec,
        schedulers: Callable[[], tuple[str, ...]],
        check: Callable[[], None],
        take_event: Callable[[ev.Event], None],
        ended: Callable[[str], None],
    ) -> None:
        self.process = process
        self.epoch = epoch
        self.connection: Connection | None = None
        self._mesos, self._catalog, self._spec, self._schedulers = mesos, catalog, spec, schedulers
        self._check_journal, self._take_event = check, take_event
        self._action: a.Action | None = None  # that is being sent
        self._calls_ms = 0
        self._is_over = False
        self._shell = MesosShell(
            self._make_driver,
            self._put,
            spawn=lambda *_: None,
            check=self._check,
            launch_values=self._launch_values,
            framework=self._framework,
            identity=lambda: (catalog.cluster, ""),
            on_error=ended,
            metrics=METRICS,
        )

    def _make_driver(self, scheduler: Any) -> Driver:
        self._driver = Driver(self, scheduler, self._framework())
        return self._driver

    def _put(self, event: ev.Event, *, must: bool = False) -> bool:
        self._take_event(event)
        return True

    def _check(self) -> None:
        try:
            self._check_journal()
        except JournalError as error:
            raise NotLeading("this scheduler leads no more") from error

    def _framework(self) -> Json:
        fleet = self._catalog.fleet or self._spec
        return framework_to_mesos(
            name="stoker",
            user="stoker",
            roles=fleet.roles,
            principal="",
            failover_timeout_ms=FAILOVER_TIMEOUT_MS,
            gpu_agents=False,
            webui_url="",
            framework_id=self._catalog.framework_id,
            disk_bytes=fleet.disk_bytes,
        )

    def _launch_values(self, launch: LaunchPlanned) -> LaunchValues:
        environment = launch_environment(
            launch,
            cluster=self._catalog.cluster,
            schedulers=self._schedulers(),
            variables={},
            socket_dir="",
            fillers=0,
        )
        return LaunchValues(
            launch.mem_bytes + overhead_bytes(launch.mem_bytes, launch.disk_bytes), "exec it", environment
        )

    # --- to Mesos

    def subscribe(self) -> None:
        """Open a connection; Subscribed comes as its first event."""
        if self._is_over or not self._shell.may_send():
            return
        self.connection = self._mesos.connect(self)
        self._driver.begin(self.connection)

    def send(self, action: a.Action) -> None:
        """Do what a decided action asks of Mesos, if the call arrives."""
        timeline = self._mesos.timeline
        if isinstance(action, UNRELIABLE) and timeline.chance(self._mesos.faults.message_loss):
            return
        self._action = action
        self._shell.send(0, action)
        self._action = None

    def call(
        self, address: Address, path: str, body: bytes, headers: Mapping[str, str], **options: Any
    ) -> Answer:
        """Put a call of the driver on its way; the answer comes back by itself."""
        timeline, faults, action = self._mesos.timeline, self._mesos.faults, self._action
        connection = self.connection
        assert connection is not None and action is not None
        delay_ms = timeline.between(1, 20)
        if timeline.chance(faults.message_late):
            delay_ms = timeline.between(1, faults.late_ms_max)
        self._calls_ms = max(self._calls_ms, timeline.now_ms + delay_ms)

        def arrive() -> None:
            status, text = self._mesos.call(connection, action, body, headers["Mesos-Stream-Id"])
            if status != 202:
                timeline.at(
                    5, lambda: self.process.run(lambda: self._refused(connection, action, status, text))
                )

        timeline.at(self._calls_ms - timeline.now_ms, arrive)
        return TAKEN

    def close_idle(self) -> None: ...

    def _refused(self, connection: Connection, action: a.Action, status: int, text: str) -> None:
        if self._is_over:
            return
        about = type(action).__name__
        self._shell.failed(0, action, HttpError(status, text, about=about) if status else CallFailed(text))
        if status in (307, 403) and not connection.is_closed:
            connection.close()

    # --- from Mesos

    def take(self, connection: Connection, event: Json) -> None:
        self._driver.on_event(event)
        if self._driver.fatal is not None and not self._is_over:
            self.close()
            self._shell.error(self._driver, self._driver.fatal)

    def taken(self, connection: Connection) -> None:
        """Mesos gave the connection a stream."""
        if not connection.is_closed:
            self._driver.taken(connection.stream_id)

    def lose(self, connection: Connection) -> None:
        """The connection is gone, whoever ended it; open another one some time later."""
        if connection.is_closed:
            return
        connection.is_closed = True
        self._mesos.hang_up(connection)
        if connection is not self.connection or self._is_over:
            return
        if self._driver._forget_stream():
            self._shell.disconnected(self._driver)
        self.process.at(self._mesos.timeline.between(100, 1_000), self.subscribe)

    def close(self) -> None:
        """The scheduler leaves; idempotent."""
        self._is_over = True
        if self.connection is not None and not self.connection.is_closed:
            self.connection.is_closed = True
            self._mesos.hang_up(self.connection)
            self._driver._forget_stream()


def encoded(event: Json) -> Json:
    """Return an event as it is when it has been on the wire."""
    return json.loads(json.dumps(event))  # type: ignore[no-any-return]

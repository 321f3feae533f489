"""Between the loop and Mesos: callbacks become events, actions become calls. No decision is made here.

Callbacks run in the driver's greenlet; they translate, queue and return. Calls leave in order from one greenlet with a
bounded outbox, so that a slow master holds up nothing else; what finds the outbox full, or fails, is dropped and told in
the log, since no action is owed. Offers that find the loop's queue full are declined at once for a short while.

The raw JSON of open offers is kept here, because a launch must name resources as they were offered.
"""

from __future__ import annotations

import base64
import collections
import logging
from collections.abc import Callable
from typing import Any, Protocol

import gevent
from gevent.queue import Full, Queue

from stoker.framework.core.actions import (
    Accept,
    AcceptInverse,
    Acknowledge,
    AcknowledgeOperation,
    Action,
    Decline,
    DeclineInverse,
    DestroyVolume,
    Kill,
    Reconcile,
    ReconcileOperations,
    Revive,
    ShutdownExecutor,
    Suppress,
    Teardown,
    UpdateFramework,
)
from stoker.framework.core.entries import LaunchPlanned
from stoker.framework.core.events import (
    AgentRemoved,
    Disconnected,
    Event,
    ExecutorEnded,
    InverseOfferRescinded,
    InverseOffersReceived,
    OfferRescinded,
    OffersReceived,
    OperationUpdated,
    Stamp,
    Subscribed,
    TaskUpdated,
    TornDown,
)
from stoker.framework.core.operations import CREATE, REFUSED_STATES, operation_id
from stoker.framework.errors import NotLeading
from stoker.framework.metrics import Metrics
from stoker.framework.model import InverseOffer, Offer, OperationStatus, TaskStatus
from stoker.framework.translate import (
    Json,
    LaunchValues,
    Untranslatable,
    destruction_to_mesos,
    filters_to_mesos,
    ids_to_mesos,
    inverse_offer_from_mesos,
    offer_from_mesos,
    operation_from_mesos,
    status_from_mesos,
    task_to_mesos,
    volume_to_mesos,
)
from stoker.framework.turns import rest
from stoker.mesos.errors import Disconnected as NotConnected
from stoker.mesos.errors import HttpError, MesosError, QueueFull

OUTBOX_MAX = 10_000  # calls
OFFERS_AN_EVENT_MAX = 500  # a big cluster's offers come as many events, so that the hub gets turns
OFFERS_MAX = 50_000  # raw offers kept; the oldest are forgotten (and with them the chance to use them)
OVERLOADED_REFUSE_MS = 2_000
UNREADABLE_REFUSE_MS = 300_000  # what its agent offers next is hardly better
TELL_AGAIN_MS = 100
RECONCILE_TASKS_MAX = 1_000  # in one call
SURELY_NOT_SENT = (NotConnected, HttpError, QueueFull, Untranslatable)

log = logging.getLogger(__name__)


class Driver(Protocol):
    """What is used of stoker.mesos.scheduler_driver (pymesos' names)."""

    def start(self) -> Any: ...
    def stop(self) -> Any: ...
    def teardown(self) -> Any: ...
    def acceptOffers(self, offer_ids: Any, operations: Any, filters: Any = None) -> Any: ...
    def declineOffer(self, offer_ids: Any, filters: Any = None) -> Any: ...
    def reviveOffers(self, roles: Any = ()) -> Any: ...
    def suppressOffers(self, roles: Any = ()) -> Any: ...
    def killTask(self, task_id: Any, agent_id: Any = None, *, grace_ms: int | None = None) -> Any: ...
    def shutdownExecutor(self, executor_id: Any, agent_id: Any) -> Any: ...
    def reconcileTasks(self, tasks: Any) -> Any: ...
    def sendFrameworkMessage(self, executor_id: Any, agent_id: Any, data: Any) -> Any: ...
    def acknowledgeStatusUpdate(self, status: Any) -> Any: ...
    def acknowledgeOperationStatusUpdate(self, status: Any) -> Any: ...
    def reconcileOperations(self, operations: Any) -> Any: ...
    def acceptInverseOffers(self, offer_ids: Any, filters: Any = None) -> Any: ...
    def declineInverseOffer(self, offer_ids: Any, filters: Any = None) -> Any: ...
    def updateFramework(self, framework: Any, *, suppressed_roles: Any = ()) -> Any: ...


class MesosShell:
    """One leadership's connection to Mesos: pymesos' Scheduler interface on one side, actions on the other.

    `make_driver(self)` returns a driver that is not started; it asks `may_send` right before whatever it sends. `put`, `spawn`
    and `check` are Loop's. `on_error` is told once when the master will not have this framework any more. `launch_values(launch)` says how its executor is started,
    `framework()` who we are with the roles as they are now, `identity()` the cluster's uuid and Mesos' principal.
    """

    def __init__(
        self,
        make_driver: Callable[[Any], Driver],
        put: Callable[..., bool],
        *,
        spawn: Callable[..., gevent.Greenlet],
        check: Callable[[], None] = lambda: None,
        launch_values: Callable[[LaunchPlanned], LaunchValues],
        framework: Callable[[], Json],
        identity: Callable[[], tuple[bytes, str]],
        on_error: Callable[[str], None],
        metrics: Metrics,
    ) -> None:
        self._put = put
        self._spawn = spawn
        self._check = check
        self._launch_values = launch_values
        self._framework = framework
        self._identity = identity
        self._on_error = on_error
        self._metrics = metrics
        self._offers: collections.OrderedDict[str, Json] = collections.OrderedDict()
        self._outbox: Queue[tuple[int, Action]] = Queue(OUTBOX_MAX)
        self._driver = make_driver(self)
        self._sender: gevent.Greenlet | None = None
        self._is_stopped = False
        self._trouble = "not subscribed yet"

    def start(self) -> None:
        self._sender = self._spawn(self._send_forever)
        self._driver.start()

    def stop(self) -> None:
        """Leave Mesos without a TEARDOWN: executors go on, and the framework id stays ours."""
        self._is_stopped = True
        self._driver.stop()
        if self._sender is not None:
            self._sender.kill()
            self._sender = None

    @property
    def reason(self) -> str:
        """Return why there is no stream to Mesos now; "": there is one."""
        return self._trouble

    def trouble(self, reason: str) -> None:
        """Take in why the driver has no stream; the next one ends it."""
        self._trouble = reason

    def may_send(self) -> bool:
        """Return whether this leadership may still say anything to Mesos."""
        try:
            self._check()
        except NotLeading:
            return False
        return not self._is_stopped

    def send_message(self, executor_id: str, agent_id: str, data: bytes) -> bool:
        """Send `data` to an executor, now; return whether it left. Mesos gives no promise that it arrives."""
        try:
            self._driver.sendFrameworkMessage({"value": executor_id}, {"value": agent_id}, _base64(data))
        except (MesosError, OSError) as error:
            self._metrics.mesos_calls.labels("Message", "failed").inc()
            log.warning("the message for executor %s was not sent: %s", executor_id, error)
            return False
        self._metrics.mesos_calls.labels("Message", "sent").inc()
        return True

    def perform(self, stamp: Stamp, action: Action) -> None:
        """Send `action` to Mesos soon; never blocks."""
        try:
            self._outbox.put_nowait((stamp.event_id, action))
        except Full:
            log.warning(
                "event=%d %s dropped: %d calls wait already",
                stamp.event_id,
                type(action).__name__,
                OUTBOX_MAX,
            )

    # --- callbacks (pymesos.Scheduler)

    def registered(self, driver: Any, framework_id: Json, master_info: Json) -> None:
        self._subscribed(framework_id.get("value", ""), master_info)

    def reregistered(self, driver: Any, master_info: Json) -> None:
        self._subscribed(str(driver.framework_id or ""), master_info)

    def disconnected(self, driver: Any) -> None:
        self._offers.clear()
        self._tell(Disconnected())

    def resourceOffers(self, driver: Any, offers: list[Json]) -> None:
        for first in range(0, len(offers), OFFERS_AN_EVENT_MAX):
            self._take_offers(offers[first : first + OFFERS_AN_EVENT_MAX])
            rest()

    def offerRescinded(self, driver: Any, offer_id: Json) -> None:
        self._offers.pop(offer_id["value"], None)
        self._tell(OfferRescinded(offer_id["value"]))

    def statusUpdate(self, driver: Any, status: Json) -> None:
        try:
            told = status_from_mesos(status)
        except Untranslatable as error:
            log.warning("ignored: %s", error)
            return
        self._take_update(TaskUpdated(told), told.uuid)

    def executorLost(self, driver: Any, executor_id: Json, agent_id: Json, status: int | None) -> None:
        self._tell(ExecutorEnded(_value(agent_id), _value(executor_id), int(status or 0)))

    def slaveLost(self, driver: Any, agent_id: Json) -> None:
        self._tell(AgentRemoved(_value(agent_id)))

    def operationStatusUpdate(self, driver: Any, status: Json) -> None:
        try:
            told = operation_from_mesos(status)
        except Untranslatable as error:
            log.warning("ignored: %s", error)
            return
        if told.state in REFUSED_STATES:
            log.warning("operation %s: %s: %s", told.operation_id, told.state, told.message)
        self._take_update(OperationUpdated(told), told.uuid)

    def inverseOffers(self, driver: Any, offers: list[Json]) -> None:
        asked: list[InverseOffer] = []
        for raw in offers:
            try:
                asked.append(inverse_offer_from_mesos(raw))
            except Untranslatable as error:
                log.warning("ignored: %s", error)
        if asked:
            self._tell(InverseOffersReceived(tuple(asked)))

    def inverseOfferRescinded(self, driver: Any, offer_id: Json) -> None:
        self._tell(InverseOfferRescinded(_value(offer_id)))

    def frameworkMessage(self, driver: Any, executor_id: Json, agent_id: Json, message: str) -> None: ...

    def processHeartBeat(self, driver: Any) -> None: ...

    def error(self, driver: Any, message: str) -> None:
        self._on_error(message)

    # --- both ways

    def _subscribed(self, framework_id: str, master_info: Json) -> None:
        self._offers.clear()
        self._trouble = ""
        log.info("subscribed framework_id=%s master=%s", framework_id, master_info.get("id", ""))
        self._tell(Subscribed(framework_id, master_info.get("id", "")))

    def _tell(self, event: Event) -> None:
        """Queue a fact that nobody repeats. While there is no room the driver waits, and with it the master's stream."""
        while not self._put(event, must=True) and not self._is_stopped:
            gevent.sleep(TELL_AGAIN_MS / 1000)

    def _take_update(self, event: Event, uuid: bytes) -> None:
        """Queue an update: one with a uuid comes again until it is acknowledged, one without is the master's own word."""
        if uuid:
            self._put(event)
        else:
            self._tell(event)

    def _take_offers(self, raw_offers: list[Json]) -> None:
        offers: list[Offer] = []
        unreadable: list[str] = []
        for raw in raw_offers:
            try:
                offers.append(offer_from_mesos(raw))
            except Untranslatable as error:
                log.warning("ignored: %s", error)
                unreadable += _offer_ids(raw)
                continue
            self._offers[offers[-1].offer_id] = raw
        while len(self._offers) > OFFERS_MAX:
            self._offers.popitem(last=False)
        if unreadable:  # nobody else would ever give back what they hold
            self.perform(
                Stamp(0, 0, 0), Decline(tuple(unreadable), UNREADABLE_REFUSE_MS, "it cannot be read")
            )
        if offers and not self._put(OffersReceived(tuple(offers))):
            ids = tuple(offer.offer_id for offer in offers)
            self.perform(Stamp(0, 0, 0), Decline(ids, OVERLOADED_REFUSE_MS, "the scheduler is overloaded"))

    def send(self, event_id: int, action: Action) -> None:
        """Send `action` to Mesos now, in the caller's greenlet; what does not leave is told in the log, and as an event."""
        kind = type(action).__name__
        try:
            self._send(action)
            self._metrics.mesos_calls.labels(kind, "sent").inc()
        except (MesosError, OSError, Untranslatable) as error:
            self.failed(event_id, action, error)

    def failed(self, event_id: int, action: Action, error: Exception) -> None:
        """Take in that Mesos did not take an action: of a launch nobody else would ever say so."""
        kind = type(action).__name__
        self._metrics.mesos_calls.labels(kind, "failed").inc()
        log.warning("event=%d %s failed: %s", event_id, kind, error)
        if isinstance(action, UpdateFramework) and isinstance(error, HttpError):
            roles = ", ".join(action.roles)
            log.error(
                "Mesos refuses the roles %s: its ACLs must let this principal register for them, or set others with "
                "`stoker fleet set --role`",
                roles,
            )
        if isinstance(action, Accept) and isinstance(error, SURELY_NOT_SENT):
            if action.volume is not None:
                self._put(OperationUpdated(self._not_created(action.volume.volume_id, str(error))), must=True)
            self._put(TaskUpdated(_dropped(action.launch, str(error))), must=True)

    def _send_forever(self) -> None:
        while True:
            event_id, action = self._outbox.get()
            self._check()
            self.send(event_id, action)

    def _send(self, action: Action) -> None:  # noqa: C901 - one branch a kind of action
        driver = self._driver
        match action:
            case Accept():
                self._accept(action)
            case Decline(offer_ids, refuse_ms):
                self._forget(offer_ids)
                driver.declineOffer(ids_to_mesos(offer_ids), filters_to_mesos(refuse_ms))
            case Acknowledge(task_id, agent_id, uuid):
                driver.acknowledgeStatusUpdate(
                    {"task_id": {"value": task_id}, "agent_id": {"value": agent_id}, "uuid": _base64(uuid)}
                )
            case Kill(task_id, agent_id, grace_ms):
                agent = {"value": agent_id} if agent_id else None
                driver.killTask({"value": task_id}, agent, grace_ms=grace_ms or None)
            case ShutdownExecutor(executor_id, agent_id):
                driver.shutdownExecutor({"value": executor_id}, {"value": agent_id})
            case Reconcile(tasks):
                for first in range(0, max(1, len(tasks)), RECONCILE_TASKS_MAX):
                    driver.reconcileTasks([_task_ref(*t) for t in tasks[first : first + RECONCILE_TASKS_MAX]])
            case DestroyVolume():
                self._destroy(action)
            case AcknowledgeOperation(name, agent_id, uuid):
                driver.acknowledgeOperationStatusUpdate(
                    {
                        "operation_id": {"value": name},
                        "agent_id": {"value": agent_id},
                        "uuid": {"value": _base64(uuid)},
                    }
                )
            case ReconcileOperations(operations):
                driver.reconcileOperations(
                    [
                        {"operation_id": {"value": name}, "agent_id": {"value": agent}}
                        for name, agent in operations
                    ]
                )
            case AcceptInverse(offer_ids, refuse_ms):
                driver.acceptInverseOffers(ids_to_mesos(offer_ids), filters_to_mesos(refuse_ms))
            case DeclineInverse(offer_ids, refuse_ms):
                driver.declineInverseOffer(ids_to_mesos(offer_ids), filters_to_mesos(refuse_ms))
            case Teardown():
                log.warning("tearing the framework down")
                driver.teardown()
                self._tell(TornDown())
            case UpdateFramework(roles, _, is_suppressed):
                info = {**self._framework(), "roles": list(roles)}
                driver.updateFramework(info, suppressed_roles=roles if is_suppressed else ())
            case Suppress():
                driver.suppressOffers()
            case Revive():
                driver.reviveOffers()
            case _:
                raise AssertionError(f"not an action for Mesos: {action}")

    def _accept(self, action: Accept) -> None:
        raw = self._take(action.offer_ids, f"launch {action.launch.launch_id}")
        cluster, principal = self._identity()
        operations, volume = volume_to_mesos(action, raw, cluster=cluster, principal=principal)
        task = task_to_mesos(action.launch, raw, self._launch_values(action.launch), volume)
        operations.append({"type": "LAUNCH", "launch": {"task_infos": [task]}})
        self._driver.acceptOffers(
            ids_to_mesos(action.offer_ids), operations, filters_to_mesos(action.refuse_ms)
        )

    def _destroy(self, action: DestroyVolume) -> None:
        raw = self._take(action.offer_ids, f"volume {action.volume_id}")
        operations = destruction_to_mesos(action, raw, cluster=self._identity()[0])
        log.info("destroying volume %d on agent %s", action.volume_id, action.agent_id)
        self._driver.acceptOffers(
            ids_to_mesos(action.offer_ids), operations, filters_to_mesos(action.refuse_ms)
        )

    def _take(self, offer_ids: tuple[str, ...], purpose: str) -> list[Json]:
        raw = [self._offers[i] for i in offer_ids if i in self._offers]
        self._forget(offer_ids)
        if len(raw) != len(offer_ids):
            raise Untranslatable(f"offers for {purpose} are gone")
        return raw

    def _not_created(self, volume_id: int, message: str) -> OperationStatus:
        name = operation_id(self._identity()[0], volume_id, CREATE)
        return OperationStatus(name, "OPERATION_DROPPED", message=message)

    def _forget(self, offer_ids: tuple[str, ...]) -> None:
        for offer_id in offer_ids:
            self._offers.pop(offer_id, None)


def _value(identity: Any) -> str:
    return str((identity or {}).get("value", ""))


def _offer_ids(raw: Any) -> list[str]:
    """Return the id of an offer that cannot be read, if that much of it can."""
    try:
        offer_id = raw["id"]["value"]
    except (KeyError, TypeError):
        return []
    return [offer_id] if isinstance(offer_id, str) else []


def _task_ref(task_id: str, agent_id: str) -> Json:
    task: Json = {"task_id": {"value": task_id}}
    return task | {"agent_id": {"value": agent_id}} if agent_id else task


def _dropped(launch: LaunchPlanned, message: str) -> TaskStatus:
    """Return what a master would say of a launch that it never saw: the slot need not wait for a timeout."""
    return TaskStatus(
        launch.task_id,
        "TASK_DROPPED",
        launch.agent_id,
        launch.task_id,
        reason="REASON_INVALID_OFFERS",
        source="SOURCE_SCHEDULER",
        message=message,
    )


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()

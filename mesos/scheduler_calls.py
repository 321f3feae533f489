"""The calls of a framework: pymesos' builders, made honest, and those that pymesos lacks or builds wrong.

Rule: no call is dropped in silence. pymesos' builders return without a word when they find the driver disconnected;
here a call that was not sent raises. Knows nothing of streams and sockets: `_send` is the driver's.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from stoker.mesos.errors import Disconnected
from stoker.mesos.interface import PymesosSchedulerDriver

JsonObject = dict[str, Any]

# Mesos' own default of 0 ends all tasks with the first lost connection.
FAILOVER_TIMEOUT_S_DEFAULT = 7 * 24 * 3600.0


class SchedulerCalls(PymesosSchedulerDriver):  # type: ignore[misc]
    """The public calls of the driver.

    All of them, from any thread or greenlet:

    :raises Disconnected: there is no subscribed stream; nothing was sent.
    :raises HttpError: the master refused it; nothing was done.
    :raises CallFailed: the connection failed under it; it may have been received.
    :raises BadCall: it cannot be sent as it is; nothing was.
    """

    # Set by pymesos' constructors.
    framework_id: str | None
    _framework: JsonObject

    def __init__(
        self,
        sched: Any,
        framework: Mapping[str, Any],
        master_uri: str,
        *,
        implicit_acknowledgements: bool,
        suppressed_roles: Iterable[str],
        offer_constraints: Mapping[str, Any] | None,
    ) -> None:
        super().__init__(
            sched,
            copy.deepcopy(dict(framework)),
            master_uri,
            implicit_acknowledgements=implicit_acknowledgements,
            failover=True,
        )
        self._suppressed_roles = set(suppressed_roles)
        self._offer_constraints = copy.deepcopy(dict(offer_constraints)) if offer_constraints else None
        self._call_marks = threading.local()

    def _send(
        self, body: Any, path: str = "", method: str = "POST", headers: Mapping[str, str] | None = None
    ) -> JsonObject:
        raise NotImplementedError

    @property
    def framework(self) -> JsonObject:
        """Return the FrameworkInfo that the next SUBSCRIBE sends."""
        with self._lock:
            framework: JsonObject = copy.deepcopy(self._framework)
        framework.setdefault("failover_timeout", FAILOVER_TIMEOUT_S_DEFAULT)
        return framework

    @property
    def suppressed_roles(self) -> list[str]:
        """Return the roles that want no offers, sorted: what the next SUBSCRIBE says."""
        with self._lock:
            return sorted(self._suppressed_roles)

    def acceptOffers(self, offer_ids: Any, operations: Any, filters: Any = None) -> None:
        self._build(super().acceptOffers, offer_ids, operations, filters=filters)

    def acceptInverseOffers(self, offer_ids: Any, filters: Any = None) -> None:
        self._build(super().acceptInverseOffers, offer_ids, filters=filters)

    def launchTasks(self, offer_ids: Any, tasks: Any, filters: Any = None) -> None:
        self._build(super().launchTasks, offer_ids, tasks, filters=filters)

    def declineOffer(self, offer_ids: Any, filters: Any = None) -> None:
        self._build(super().declineOffer, offer_ids, filters=filters)

    def declineInverseOffer(self, offer_ids: Any, filters: Any = None) -> None:
        self._build(super().declineInverseOffer, offer_ids, filters=filters)

    def reviveOffers(self, roles: Iterable[str] = ()) -> None:
        """Ask for offers again, for `roles` or for all; the wish outlives the connection, also if the call raises."""
        roles = list(roles)
        with self._lock:
            self._suppressed_roles.difference_update(roles or list(self._suppressed_roles))
        self._build(super().reviveOffers, roles)

    def suppressOffers(self, roles: Iterable[str] = ()) -> None:
        """Ask for no more offers, for `roles` or for all; the wish outlives the connection, also if the call raises."""
        roles = list(roles)
        with self._lock:
            self._suppressed_roles.update(roles or self._roles())
        self._build(super().suppressOffers, roles)

    def reconcileOperations(self, operations: Any) -> None:
        self._build(super().reconcileOperations, operations)

    def sendFrameworkMessage(self, executor_id: Any, agent_id: Any, data: str) -> None:
        """Send `data` (base64) to an executor; Mesos gives no promise that it arrives."""
        self._build(super().sendFrameworkMessage, executor_id, agent_id, data)

    def requestResources(self, requests: Any) -> None:
        self._build(super().requestResources, requests)

    def killTask(
        self,
        task_id: Mapping[str, Any],
        agent_id: Mapping[str, Any] | None = None,
        *,
        grace_ms: int | None = None,
    ) -> None:
        """Ask for the end of a task. Unreliable: repeat it until the task has ended.

        With `agent_id` the question about an unknown task gets its right answer. `grace_ms` is between the polite and
        the hard end.
        """
        kill: JsonObject = {"task_id": task_id}
        if agent_id is not None:
            kill["agent_id"] = agent_id
        if grace_ms is not None:
            kill["kill_policy"] = {"grace_period": {"nanoseconds": grace_ms * 1_000_000}}
        self._call("KILL", kill=kill)

    def shutdownExecutor(self, executor_id: Mapping[str, Any], agent_id: Mapping[str, Any]) -> None:
        """Ask for the end of an executor and its tasks; the agent kills it after its grace period."""
        self._call("SHUTDOWN", shutdown={"executor_id": executor_id, "agent_id": agent_id})

    def reconcileTasks(self, tasks: Iterable[Mapping[str, Any]]) -> None:
        """Ask for the states of `tasks` ({task_id, agent_id}), or of all known ones if there are none."""
        asked = [{key: task[key] for key in ("task_id", "agent_id") if key in task} for task in tasks]
        self._call("RECONCILE", reconcile={"tasks": asked})

    def acknowledgeStatusUpdate(self, status: Mapping[str, Any]) -> None:
        """Tell that an update is durable here. Those without uuid (the master's own) want no answer and get none."""
        if "uuid" not in status:
            return
        acknowledge = {key: status[key] for key in ("agent_id", "task_id", "uuid")}
        self._call("ACKNOWLEDGE", acknowledge=acknowledge)

    def acknowledgeOperationStatusUpdate(self, status: Mapping[str, Any]) -> None:
        """Tell that an operation's update is durable here; those without uuid and id want no answer."""
        if "uuid" not in status or "operation_id" not in status:
            return
        acknowledge = {
            key: status[key] for key in ("agent_id", "resource_provider_id", "operation_id") if key in status
        }
        acknowledge["uuid"] = status["uuid"]["value"]  # a message in the status, plain bytes in the call
        self._call("ACKNOWLEDGE_OPERATION_STATUS", acknowledge_operation_status=acknowledge)

    def updateFramework(
        self,
        framework: Mapping[str, Any],
        *,
        suppressed_roles: Iterable[str] = (),
        offer_constraints: Mapping[str, Any] | None = None,
    ) -> None:
        """Change roles, suppression, constraints and the like without a new SUBSCRIBE; later ones say the same.

        :raises HttpError: the master refused it, and all stays as it was.
        """
        changed = copy.deepcopy(dict(framework))
        changed["id"] = {"value": self.framework_id}
        changed.setdefault("failover_timeout", FAILOVER_TIMEOUT_S_DEFAULT)
        if "principal" in self._framework:
            changed.setdefault("principal", self._framework["principal"])
        suppressed = sorted(set(suppressed_roles))
        update: JsonObject = {"framework_info": changed, "suppressed_roles": suppressed}
        if offer_constraints:
            update["offer_constraints"] = copy.deepcopy(dict(offer_constraints))
        self._call("UPDATE_FRAMEWORK", update_framework=update)
        with self._lock:
            self._framework = changed
            self._suppressed_roles = set(suppressed)
            self._offer_constraints = update.get("offer_constraints")

    # --- how calls are sent

    def _build(self, build: Callable[..., None], *args: Any, **options: Any) -> None:
        # pymesos' builders return without a word when they find us disconnected. So what counts is whether they sent.
        if not self.connected:
            raise no_stream()
        self._call_marks.has_sent = False
        build(*args, **options)
        if not self._call_marks.has_sent:
            raise no_stream()

    def _call(self, kind: str, **fields: Any) -> None:
        self._send({"type": kind, "framework_id": {"value": self.framework_id}, **fields})

    def _roles(self) -> list[str]:
        return list(self._framework.get("roles", [self._framework.get("role", "*")]))


def no_stream() -> Disconnected:
    """Return what a call without a subscribed stream raises."""
    return Disconnected("not subscribed at any master now; nothing was sent")

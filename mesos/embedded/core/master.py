"""The master: subscriptions, offers, ACCEPT, status updates, reconciliation, removal of frameworks.

Theory of operation. A framework is connected (it has a stream), disconnected (its removal is due after failover_timeout) or
removed (its id is dead). All that it is told goes through its stream; what is sent while it has none is dropped, except status
updates, which the agent sends again. Offers are consumed by ACCEPT whatever comes of it. Resources go back to the allocator when
an offer is declined, when a terminal update *arrives*, and when an executor has *ended*; a task is forgotten when its terminal
update is *acknowledged*. Agents never leave: they live in this process.

Methods take the time and put what is to be done into the outbox; nothing here waits, sends or reads a clock.
"""

from __future__ import annotations

import copy
import ipaddress
from collections import deque
from collections.abc import Iterable
from typing import Protocol

from stoker.mesos.embedded.core import validation
from stoker.mesos.embedded.core.allocator import REFUSE_MS_DEFAULT, Allocator, Grant, refuse_ms
from stoker.mesos.embedded.core.calls import Answer
from stoker.mesos.embedded.core.codec import Message
from stoker.mesos.embedded.core.launching import allocated, judge_task, offer_message, offers_error
from stoker.mesos.embedded.core.messages import TERMINAL_STATES
from stoker.mesos.embedded.core.records import ExecutorRecord, Framework, Offer, Task
from stoker.mesos.embedded.core.resources import EMPTY, Resources
from stoker.mesos.embedded.core.values import VERSION, AgentSpec, MasterSpec, Outbox, Settings

ACCEPTED = Answer(202)
CAPABILITIES = ("AGENT_UPDATE", "AGENT_DRAINING", "QUOTA_V2")


class AgentPort(Protocol):
    """What the master says to an agent."""

    spec: AgentSpec

    def run_task(self, framework: Message, task: Message, now_ms: int) -> None: ...
    def kill_task(self, framework_id: str, task_id: str, policy: Message | None, now_ms: int) -> None: ...
    def acknowledge(self, framework_id: str, task_id: str, uuid: str, now_ms: int) -> None: ...
    def shutdown_executor(self, framework_id: str, executor_id: str, now_ms: int) -> None: ...
    def shutdown_framework(self, framework_id: str, now_ms: int) -> None: ...
    def update_framework(self, framework: Message, now_ms: int) -> None: ...
    def send_message(self, framework_id: str, executor_id: str, data: str) -> None: ...


class Master:
    """The state of one master; see the module's text."""

    def __init__(
        self, spec: MasterSpec, settings: Settings, outbox: Outbox, now_ms: int, wall_ms: int
    ) -> None:
        self.spec = spec
        self.settings = settings
        self.started_ms = now_ms
        self.agents: dict[str, AgentPort] = {}
        self.registered_ms: dict[str, int] = {}
        self.frameworks: dict[str, Framework] = {}
        self.completed: deque[Framework] = deque(maxlen=settings.completed_frameworks_max)
        self.offers: dict[str, Offer] = {}
        self._out = outbox
        self._wall_offset_ms = wall_ms - now_ms
        self._allocator = Allocator(settings.allocation_interval_ms)
        self._allocation_ms = now_ms + settings.allocation_interval_ms
        self._framework_count = 0
        self._offer_count = 0

    # What comes from outside.

    def add_agent(self, agent: AgentPort, now_ms: int) -> None:
        """Register an agent; its resources are offered at once."""
        self.agents[agent.spec.agent_id] = agent
        self.registered_ms[agent.spec.agent_id] = now_ms
        self._allocator.add_agent(agent.spec.agent_id, agent.spec.resources)
        self._allocate(now_ms)

    def subscribe(self, call: Message, stream: int, stream_id: str, now_ms: int) -> None:
        """Take a SUBSCRIBE that passed `decode_scheduler_call`; its stream is open, so errors are events on it."""
        info = copy.deepcopy(call["subscribe"]["framework_info"])
        suppressed = set(call["subscribe"].get("suppressed_roles", ()))
        framework_id = info.get("id", {}).get("value", "")
        known = self.frameworks.get(framework_id)
        error = validation.framework_error(info, suppressed) or self._identity_error(
            framework_id, known, info
        )
        if error:
            self._out.send(stream, _error(error))
            self._out.close(stream)
            return
        if known is None:
            info["id"] = {"value": framework_id or self._next_framework_id()}
            self._add_framework(info, suppressed, stream, stream_id, now_ms)
            return
        self._resubscribe(known, info, suppressed, stream, stream_id, now_ms)

    def call(self, call: Message, stream_id: str | None, now_ms: int) -> Answer:
        """Take any other call that passed `decode_scheduler_call`."""
        framework = self.frameworks.get(call["framework_id"]["value"])
        refusal = _stream_error(framework, stream_id)
        if refusal:
            return refusal
        assert framework is not None
        return self._perform(framework, call, now_ms)

    def stream_closed(self, stream: int, now_ms: int) -> None:
        """A scheduler's connection broke."""
        for framework in self.frameworks.values():
            if framework.stream == stream:
                self._disconnect(framework, now_ms)
                return

    def tick(self, now_ms: int) -> None:
        """Do what is due: allocation, heartbeats, removal of frameworks that stayed away."""
        for framework in list(self.frameworks.values()):
            if framework.removal_ms is not None and framework.removal_ms <= now_ms:
                self.remove_framework(framework.framework_id, now_ms)
            elif framework.heartbeat_ms is not None and framework.heartbeat_ms <= now_ms:
                self._heartbeat(framework, now_ms)
        if self._allocation_ms <= now_ms:
            self._allocation_ms = now_ms + self.settings.allocation_interval_ms
            self._allocate(now_ms)

    def next_deadline_ms(self) -> int:
        """Return when `tick` has something to do."""
        due = [self._allocation_ms]
        for framework in self.frameworks.values():
            due += [at for at in (framework.removal_ms, framework.heartbeat_ms) if at is not None]
        return min(due)

    def remove_framework(self, framework_id: str, now_ms: int) -> bool:
        """End a framework for ever: executors are shut down, nobody is told, the id is dead. False: no such framework."""
        framework = self.frameworks.pop(framework_id, None)
        if framework is None:
            return False
        self._discard_offers(framework, now_ms)
        for agent in self.agents.values():
            agent.shutdown_framework(framework_id, now_ms)
        for task in framework.tasks.values():
            self._end_task(framework, task, now_ms)
        framework.tasks.clear()
        for record in framework.executors.values():
            self._allocator.recover(record.grant, now_ms)
        framework.executors.clear()
        self._allocator.remove_framework(framework_id)
        if framework.stream is not None:
            self._out.close(framework.stream)
        framework.stream = framework.removal_ms = framework.heartbeat_ms = None
        framework.unregistered_ms = now_ms
        self.completed.append(framework)
        return True

    # What comes from agents.

    def status_update(
        self, agent_id: str, framework_id: str, status: Message, latest: str, now_ms: int
    ) -> None:
        """Forward an update of an agent; `latest` is the newest state the agent knows, which frees resources if terminal."""
        framework = self.frameworks.get(framework_id)
        if framework is None:
            return
        task = framework.tasks.get(status["task_id"]["value"])
        if task is not None and task.agent_id == agent_id:
            task.state = status["state"]
            task.status_uuid = status["uuid"]
            task.container_status = status.get("container_status", task.container_status)
            if not task.statuses or task.statuses[-1].get("uuid") != status["uuid"]:
                task.statuses.append(status)
            if latest in TERMINAL_STATES:
                self._release(task, now_ms)
        self._out.send(framework.stream, {"type": "UPDATE", "update": {"status": status}})

    def executor_exited(
        self, agent_id: str, framework_id: str, executor_id: str, status: int, now_ms: int
    ) -> None:
        """An executor's process is gone; `status` is the raw wait status, -1 if there never was one."""
        framework = self.frameworks.get(framework_id)
        if framework is None:
            return
        record = framework.executors.pop((agent_id, executor_id), None)
        if record is not None:
            self._allocator.recover(record.grant, now_ms)
        failure = {"agent_id": {"value": agent_id}, "executor_id": {"value": executor_id}, "status": status}
        self._out.send(framework.stream, {"type": "FAILURE", "failure": failure})

    def executor_message(self, agent_id: str, framework_id: str, executor_id: str, data: str) -> None:
        framework = self.frameworks.get(framework_id)
        if framework is not None:
            message = {"agent_id": {"value": agent_id}, "executor_id": {"value": executor_id}, "data": data}
            self._out.send(framework.stream, {"type": "MESSAGE", "message": message})

    # Subscriptions.

    def _identity_error(self, framework_id: str, known: Framework | None, info: Message) -> str | None:
        if any(framework.framework_id == framework_id for framework in self.completed):
            return "Framework has been removed"
        if known is not None and known.info.get("principal") != info.get("principal"):
            return "Changing framework's principal is not allowed."
        return None

    def _next_framework_id(self) -> str:
        number, self._framework_count = self._framework_count, self._framework_count + 1
        return f"{self.spec.master_id}-{number:04d}"

    def _add_framework(
        self, info: Message, suppressed: set[str], stream: int, stream_id: str, now_ms: int
    ) -> None:
        tasks: deque[Task] = deque(maxlen=self.settings.completed_tasks_max)
        framework = Framework(info, stream, stream_id, now_ms, tasks)
        self.frameworks[framework.framework_id] = framework
        self._allocator.add_framework(framework.framework_id, framework.roles, suppressed)
        self._subscribed(framework, now_ms)
        self._allocate(now_ms)

    def _resubscribe(
        self,
        framework: Framework,
        info: Message,
        suppressed: set[str],
        stream: int,
        stream_id: str,
        now_ms: int,
    ) -> None:
        was_connected = framework.connected
        info["user"], info["checkpoint"] = framework.info["user"], framework.info["checkpoint"]
        framework.info = info
        if was_connected:
            self._depose(framework, now_ms)
        framework.stream, framework.stream_id, framework.removal_ms = stream, stream_id, None
        framework.reregistered_ms = now_ms
        self._allocator.update_framework(framework.framework_id, framework.roles, suppressed)
        self._subscribed(framework, now_ms)
        for agent in self.agents.values():
            agent.update_framework(info, now_ms)
        if not was_connected:
            self._allocate(now_ms)

    def _depose(self, framework: Framework, now_ms: int) -> None:
        """Tell the old stream that another instance has taken over, and end it."""
        assert framework.stream is not None
        roles = framework.roles
        for offer in self._offers_of(framework.framework_id):
            if offer.grant.role not in roles:
                rescind = {"offer_id": {"value": offer.offer_id}}
                self._out.send(framework.stream, {"type": "RESCIND", "rescind": rescind})
        self._discard_offers(framework, now_ms)
        self._out.send(framework.stream, _error("Framework failed over"))
        self._out.close(framework.stream)

    def _subscribed(self, framework: Framework, now_ms: int) -> None:
        body = {
            "framework_id": {"value": framework.framework_id},
            "heartbeat_interval_seconds": self.settings.heartbeat_interval_ms / 1000,
            "master_info": self.master_info(),
        }
        self._out.send(framework.stream, {"type": "SUBSCRIBED", "subscribed": body})
        self._heartbeat(framework, now_ms)

    def _heartbeat(self, framework: Framework, now_ms: int) -> None:
        self._out.send(framework.stream, {"type": "HEARTBEAT"})
        framework.heartbeat_ms = now_ms + self.settings.heartbeat_interval_ms

    def _disconnect(self, framework: Framework, now_ms: int) -> None:
        framework.stream = framework.heartbeat_ms = None
        self._discard_offers(framework, now_ms)
        self._allocator.deactivate(framework.framework_id)
        timeout_ms = round(framework.info["failover_timeout"] * 1000)
        if timeout_ms <= 0:
            self.remove_framework(framework.framework_id, now_ms)
            return
        framework.removal_ms = now_ms + timeout_ms

    # Calls.

    def _perform(self, framework: Framework, call: Message, now_ms: int) -> Answer:
        kind = call["type"]
        body = call.get(kind.lower(), {})
        match kind:
            case "TEARDOWN":
                self.remove_framework(framework.framework_id, now_ms)
            case "ACCEPT":
                self._accept(framework, body, now_ms)
            case "DECLINE":
                self._decline(framework, body, now_ms)
            case "REVIVE" | "SUPPRESS":
                self._change_demand(framework, kind, tuple(body.get("roles", ())), now_ms)
            case "RECONCILE":
                self._reconcile(framework, body.get("tasks", []), now_ms)
            case "KILL":
                self._kill(framework, body, now_ms)
            case "UPDATE_FRAMEWORK":
                return Answer(501, "The embedded Mesos does not have UPDATE_FRAMEWORK: subscribe again")
            case _:
                self._pass_on(framework, kind, body, now_ms)
        return ACCEPTED

    def _pass_on(self, framework: Framework, kind: str, body: Message, now_ms: int) -> None:
        """Do what concerns an executor or an operation; what names an unknown agent is dropped, as Mesos does."""
        if kind == "RECONCILE_OPERATIONS":
            self._reconcile_operations(framework, body)
            return
        agent = self.agents.get(body.get("agent_id", {}).get("value", ""))
        if agent is None:
            return
        if kind == "ACKNOWLEDGE":
            self._acknowledge(framework, agent, body, now_ms)
        elif kind == "SHUTDOWN":
            agent.shutdown_executor(framework.framework_id, body["executor_id"]["value"], now_ms)
        elif kind == "MESSAGE":
            agent.send_message(framework.framework_id, body["executor_id"]["value"], body["data"])

    def _change_demand(self, framework: Framework, kind: str, roles: tuple[str, ...], now_ms: int) -> None:
        if kind == "SUPPRESS":
            self._allocator.suppress(framework.framework_id, roles)
        elif self._allocator.revive(framework.framework_id, roles):
            self._allocate(now_ms)

    def _decline(self, framework: Framework, body: Message, now_ms: int) -> None:
        hidden_ms = _refuse_ms(body)
        for item in body.get("offer_ids", ()):
            offer = self.offers.get(item["value"])
            if offer is not None and offer.grant.framework_id == framework.framework_id:
                self._recover_offer(offer, now_ms, hidden_ms)

    def _acknowledge(self, framework: Framework, agent: AgentPort, body: Message, now_ms: int) -> None:
        task = framework.tasks.get(body["task_id"]["value"])
        if task is not None and task.is_terminal and task.status_uuid == body["uuid"]:
            del framework.tasks[task.task_id]
            framework.completed_tasks.append(task)
        agent.acknowledge(framework.framework_id, body["task_id"]["value"], body["uuid"], now_ms)

    def _kill(self, framework: Framework, body: Message, now_ms: int) -> None:
        task = framework.tasks.get(body["task_id"]["value"])
        if task is None:
            self._reconcile(framework, [body], now_ms)
            return
        if body.get("agent_id", {}).get("value", task.agent_id) != task.agent_id:
            return
        agent = self.agents[task.agent_id]
        agent.kill_task(framework.framework_id, task.task_id, body.get("kill_policy"), now_ms)

    # ACCEPT.

    def _accept(self, framework: Framework, body: Message, now_ms: int) -> None:
        hidden_ms = _refuse_ms(body)
        offer_ids = [item["value"] for item in body.get("offer_ids", ())]
        operations = body.get("operations", [])
        error = offers_error(framework.framework_id, offer_ids, self.offers)
        if error:
            for offer in [self.offers[name] for name in dict.fromkeys(offer_ids) if name in self.offers]:
                self._recover_offer(offer, now_ms, hidden_ms)
            self._drop(framework, operations, f"Task launched with invalid offers: {error}", now_ms)
            return
        grants = [self.offers.pop(name).grant for name in offer_ids]
        if not grants:
            return
        role, agent_id, rest = grants[0].role, grants[0].agent_id, EMPTY
        for grant in grants:
            rest = rest + grant.resources
        for operation in operations:
            kind = operation.get("type")
            if kind == "LAUNCH":
                for task in operation.get("launch", {}).get("task_infos", ()):
                    taken = self._launch(
                        framework, task, Grant(framework.framework_id, role, agent_id, rest), now_ms
                    )
                    rest = rest - taken
            else:
                self._refuse_operation(framework, operation, agent_id, now_ms)
        self._allocator.recover(
            Grant(framework.framework_id, role, agent_id, rest), now_ms, refuse_ms=hidden_ms
        )

    def _drop(self, framework: Framework, operations: Iterable[Message], text: str, now_ms: int) -> None:
        for operation in operations:
            tasks = operation.get("launch", {}).get("task_infos", ())
            if operation.get("type") == "LAUNCH_GROUP":
                tasks = operation.get("launch_group", {}).get("task_group", {}).get("tasks", ())
            for task in tasks:
                self._refuse_task(
                    framework, task, framework.lost_state, "REASON_INVALID_OFFERS", text, now_ms
                )
            if operation.get("type") not in ("LAUNCH", "LAUNCH_GROUP"):
                self._operation_error(framework, operation, text)

    def _launch(self, framework: Framework, given: Message, offered: Grant, now_ms: int) -> Resources:
        """Launch one task on what is left of the offers; return what it takes."""
        task = allocated(given, framework.framework_id, offered.role)
        error, task_takes, executor_takes = judge_task(framework, task, offered)
        if error:
            self._refuse_task(framework, task, "TASK_ERROR", "REASON_TASK_INVALID", error, now_ms)
            return EMPTY
        executor_id = task["executor"]["executor_id"]["value"]
        key = (offered.agent_id, executor_id)
        if key not in framework.executors:
            grant = offered._replace(resources=executor_takes)
            framework.executors[key] = ExecutorRecord(task["executor"], offered.agent_id, grant)
        record = Task(task, offered.agent_id, executor_id, offered._replace(resources=task_takes))
        framework.tasks[record.task_id] = record
        self.agents[offered.agent_id].run_task(framework.info, task, now_ms)
        return task_takes + executor_takes

    def _refuse_task(
        self, framework: Framework, task: Message, state: str, reason: str, text: str, now_ms: int
    ) -> None:
        status = self._status(task["task_id"], state, reason, text, now_ms, agent_id=task["agent_id"])
        self._out.send(framework.stream, {"type": "UPDATE", "update": {"status": status}})

    def _refuse_operation(self, framework: Framework, operation: Message, agent_id: str, now_ms: int) -> None:
        kind = operation.get("type")
        if kind == "LAUNCH_GROUP":
            for task in operation.get("launch_group", {}).get("task_group", {}).get("tasks", ()):
                reason = "REASON_TASK_GROUP_INVALID"
                self._refuse_task(framework, task, "TASK_ERROR", reason, validation.LAUNCH_GROUP, now_ms)
        elif kind is not None:
            self._operation_error(framework, operation, f"The embedded Mesos does not have {kind}", agent_id)

    def _operation_error(
        self, framework: Framework, operation: Message, text: str, agent_id: str | None = None
    ) -> None:
        """Tell what became of an operation that has an id; one without is dropped in silence, as Mesos does."""
        if "id" not in operation:
            return
        status: Message = {"operation_id": operation["id"], "state": "OPERATION_ERROR", "message": text}
        if agent_id is not None:
            status["agent_id"] = {"value": agent_id}
        self._operation_status(framework, status)

    def _operation_status(self, framework: Framework, status: Message) -> None:
        body = {"status": status}
        self._out.send(framework.stream, {"type": "UPDATE_OPERATION_STATUS", "update_operation_status": body})

    # Reconciliation.

    def _reconcile(self, framework: Framework, asked: list[Message], now_ms: int) -> None:
        """Answer for each of `asked` ({task_id, agent_id?}), or for every task if it is empty."""
        if not asked:
            for task in framework.tasks.values():
                self._answer_known(framework, task, now_ms)
            return
        for item in asked:
            known = framework.tasks.get(item["task_id"]["value"])
            if known is not None:
                self._answer_known(framework, known, now_ms)
            else:
                self._answer_unknown(framework, item, now_ms)

    def _answer_known(self, framework: Framework, task: Task, now_ms: int) -> None:
        status = self._status(
            {"value": task.task_id},
            task.state,
            "REASON_RECONCILIATION",
            "Reconciliation: Latest task state",
            now_ms,
            agent_id={"value": task.agent_id},
        )
        status["executor_id"] = {"value": task.executor_id}
        if task.container_status is not None:
            status["container_status"] = task.container_status
        self._out.send(framework.stream, {"type": "UPDATE", "update": {"status": status}})

    def _answer_unknown(self, framework: Framework, item: Message, now_ms: int) -> None:
        agent_id = item.get("agent_id")
        on_agent = agent_id is not None and agent_id["value"] in self.agents
        text = "Reconciliation: Task is unknown" + (" to the agent" if on_agent else "")
        state = "TASK_GONE" if on_agent else "TASK_UNKNOWN"
        if "PARTITION_AWARE" not in framework.capabilities:
            state = "TASK_LOST"
        status = self._status(
            item["task_id"], state, "REASON_RECONCILIATION", text, now_ms, agent_id=agent_id
        )
        self._out.send(framework.stream, {"type": "UPDATE", "update": {"status": status}})

    def _reconcile_operations(self, framework: Framework, body: Message) -> None:
        for item in body.get("operations", ()):
            text = "Reconciliation: Operation is unknown"
            status = {"operation_id": item["operation_id"], "state": "OPERATION_UNKNOWN", "message": text}
            if "agent_id" in item:
                status["agent_id"] = item["agent_id"]
            self._operation_status(framework, status)

    # Offers and resources.

    def _allocate(self, now_ms: int) -> None:
        """Offer what is free: one OFFERS event a framework, with all its agents."""
        by_framework: dict[str, list[Message]] = {}
        for grant in self._allocator.allocate(now_ms):
            offer = Offer(f"{self.spec.master_id}-O{self._offer_count}", grant)
            self._offer_count += 1
            self.offers[offer.offer_id] = offer
            by_framework.setdefault(grant.framework_id, []).append(
                offer_message(offer, self.frameworks[grant.framework_id], self.agents[grant.agent_id].spec)
            )
        for framework_id, offers in by_framework.items():
            self._out.send(
                self.frameworks[framework_id].stream, {"type": "OFFERS", "offers": {"offers": offers}}
            )

    def _offers_of(self, framework_id: str) -> list[Offer]:
        return [offer for offer in self.offers.values() if offer.grant.framework_id == framework_id]

    def _discard_offers(self, framework: Framework, now_ms: int) -> None:
        for offer in self._offers_of(framework.framework_id):
            self._recover_offer(offer, now_ms, 0)

    def _recover_offer(self, offer: Offer, now_ms: int, hidden_ms: int) -> None:
        del self.offers[offer.offer_id]
        self._allocator.recover(offer.grant, now_ms, refuse_ms=hidden_ms)

    def _release(self, task: Task, now_ms: int) -> None:
        if not task.released:
            task.released = True
            self._allocator.recover(task.grant, now_ms)

    def _end_task(self, framework: Framework, task: Task, now_ms: int) -> None:
        """Close the book on a task of a framework that is being removed: killed, and nobody is told."""
        self._release(task, now_ms)
        if not task.is_terminal:
            task.state = "TASK_KILLED"
            text = "Framework has been removed"
            task.statuses.append(
                self._status({"value": task.task_id}, "TASK_KILLED", "REASON_FRAMEWORK_REMOVED", text, now_ms)
            )
        framework.completed_tasks.append(task)

    # Values.

    def free(self, agent_id: str) -> Resources:
        """Return what nobody holds of an agent."""
        return self._allocator.free(agent_id)

    def master_info(self) -> Message:
        """Return the MasterInfo of SUBSCRIBED."""
        spec = self.spec
        return {
            "id": spec.master_id,
            "ip": int.from_bytes(ipaddress.IPv4Address(spec.ip).packed, "little"),
            "port": spec.port,
            "pid": f"master@{spec.ip}:{spec.port}",
            "hostname": spec.hostname,
            "version": VERSION,
            "address": {"hostname": spec.hostname, "ip": spec.ip, "port": spec.port},
            "capabilities": [{"type": name} for name in CAPABILITIES],
        }

    def wall_seconds(self, now_ms: int) -> float:
        """Return `now_ms` as seconds since the epoch, for labels."""
        return (now_ms + self._wall_offset_ms) / 1000

    def _status(
        self,
        task_id: Message,
        state: str,
        reason: str,
        text: str,
        now_ms: int,
        agent_id: Message | None = None,
    ) -> Message:
        status: Message = {"task_id": task_id, "state": state, "message": text, "source": "SOURCE_MASTER"}
        status["reason"] = reason
        if agent_id is not None:
            status["agent_id"] = agent_id
        status["timestamp"] = self.wall_seconds(now_ms)
        return status


def _error(text: str) -> Message:
    return {"type": "ERROR", "error": {"message": text}}


def _stream_error(framework: Framework | None, stream_id: str | None) -> Answer | None:
    if framework is None:
        return Answer(400, "Framework cannot be found")
    if not framework.connected:
        return Answer(403, "Framework is not subscribed")
    if stream_id is None:
        return Answer(400, "All non-subscribe calls should include the 'Mesos-Stream-Id' header")
    if stream_id != framework.stream_id:
        text = f"The stream ID '{stream_id}' included in this request didn't match the stream ID currently"
        return Answer(400, f"{text} associated with framework ID {framework.framework_id}")
    return None


def _refuse_ms(body: Message) -> int:
    filters = body.get("filters")
    return REFUSE_MS_DEFAULT if filters is None else refuse_ms(filters["refuse_seconds"])

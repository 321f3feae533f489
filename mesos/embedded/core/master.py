"""The master: subscriptions, offers, ACCEPT, status updates, reconciliation, removal of frameworks.

Theory of operation. A framework is connected (it has a stream), disconnected (its removal is due after failover_timeout) or
removed (its id is dead). All that it is told goes through its stream; what is sent while it has none is dropped, except status
updates, which the agent sends again. Offers are consumed by ACCEPT whatever comes of it. Resources go back to the allocator when
an offer is declined, when a terminal update *arrives*, and when an executor has *ended*; a task is forgotten when its terminal
update is *acknowledged*. How agents come and go is `registry`'s affair.

Methods take the time and put what is to be done into the outbox; nothing here waits, sends or reads a clock.
"""

from __future__ import annotations

import copy
from collections import deque
from dataclasses import dataclass, field

from stoker.mesos.embedded.core import accepting, draining, operating, reconciling, updating
from stoker.mesos.embedded.core.allocator import Allocator, filter_ms
from stoker.mesos.embedded.core.calls import Answer
from stoker.mesos.embedded.core.codec import Message
from stoker.mesos.embedded.core.launching import offer_message
from stoker.mesos.embedded.core.maintenance import Machines, Maintenance
from stoker.mesos.embedded.core.messages import TERMINAL_STATES
from stoker.mesos.embedded.core.ports import AgentPort, AgentReport, ReportedOperation
from stoker.mesos.embedded.core.quota import Quota
from stoker.mesos.embedded.core.records import AgentRecord, ExecutorRecord, Framework, Offer, Task
from stoker.mesos.embedded.core.registry import Registered, Registry
from stoker.mesos.embedded.core.resources import Resources
from stoker.mesos.embedded.core.values import MasterSpec, Outbox, Settings, fault_domain

ACCEPTED = Answer(202)


@dataclass(frozen=True, slots=True)
class Kept:
    """What a registry holds that outlives a master."""

    agents: Registered = field(default_factory=Registered)
    machines: Machines = field(default_factory=Machines)
    quotas: dict[str, Quota] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)


class Master:
    """The state of one master; see the module's text."""

    def __init__(
        self,
        spec: MasterSpec,
        settings: Settings,
        outbox: Outbox,
        now_ms: int,
        wall_ms: int,
        kept: Kept | None = None,
    ) -> None:
        """`kept` is what the registry of the master before holds."""
        kept = kept or Kept()
        self.spec = spec
        self.settings = settings
        self.started_ms = now_ms
        self.agents: dict[str, AgentRecord] = {}
        self.frameworks: dict[str, Framework] = {}
        self.completed: deque[Framework] = deque(maxlen=settings.completed_frameworks_max)
        self.offers: dict[str, Offer] = {}
        self.out = outbox
        self._wall_offset_ms = wall_ms - now_ms
        self.allocator = Allocator(settings.allocation_interval_ms, fault_domain(spec.domain)[0])
        for role, quota in kept.quotas.items():
            self.allocator.set_quota(role, quota)
        for role, weight in kept.weights.items():
            self.allocator.set_weight(role, weight)
        self._offer_ends: deque[tuple[int, str]] = deque()
        self._allocation_ms = now_ms + settings.allocation_interval_ms
        self._framework_count = 0
        self._offer_count = 0
        self.registry = Registry(self, kept.agents, now_ms)
        self.maintenance = Maintenance(self, kept.machines)

    def kept(self) -> Kept:
        """Return what a registry that outlives this master holds."""
        quotas, weights = dict(self.allocator.quotas), dict(self.allocator.weights)
        return Kept(self.registry.kept(), self.maintenance.kept(), quotas, weights)

    # What comes from outside.

    def subscribe(self, call: Message, stream: int, stream_id: str, now_ms: int) -> None:
        """Take a SUBSCRIBE that passed `decode_scheduler_call`; its stream is open, so errors are events on it."""
        info = copy.deepcopy(call["subscribe"]["framework_info"])
        suppressed = set(call["subscribe"].get("suppressed_roles", ()))
        framework_id = info.get("id", {}).get("value", "")
        known = self.frameworks.get(framework_id)
        error = updating.subscription_error(call["subscribe"])
        error = error or self._identity_error(framework_id, known, info)
        if error:
            self.out.send(stream, _error(error))
            self.out.close(stream)
            return
        if known is None:
            info["id"] = {"value": framework_id or self._next_framework_id()}
            tasks: deque[Task] = deque(maxlen=self.settings.completed_tasks_max)
            framework = Framework(info, stream, stream_id, now_ms, tasks)
            framework.constraints = updating.constraints_of(call["subscribe"])
            self._add_framework(framework, suppressed, now_ms, known_id=bool(framework_id))
            return
        known.constraints = updating.constraints_of(call["subscribe"])
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
        self.registry.tick(now_ms)
        while self._offer_ends and self._offer_ends[0][0] <= now_ms:
            overdue = self.offers.get(self._offer_ends.popleft()[1])
            if overdue is not None:
                self.rescind_offer(overdue, now_ms, 0)
        if self._allocation_ms <= now_ms:
            self._allocation_ms = now_ms + self.settings.allocation_interval_ms
            self.allocate(now_ms)

    def next_deadline_ms(self) -> int:
        """Return when `tick` has something to do."""
        due = [self._allocation_ms, *self.registry.deadlines(), *self._next_offer_end()]
        for framework in self.frameworks.values():
            due += [at for at in (framework.removal_ms, framework.heartbeat_ms) if at is not None]
        return min(due)

    def remove_framework(self, framework_id: str, now_ms: int) -> bool:
        """End a framework for ever: executors are shut down, nobody is told, the id is dead. False: no such framework."""
        framework = self.frameworks.pop(framework_id, None)
        if framework is None:
            return False
        self._discard_offers(framework, now_ms)
        for agent_id in self._agents_of(framework):
            if self.agents[agent_id].is_connected:
                self.agents[agent_id].port.shutdown_framework(framework_id, now_ms)
        for task in list(framework.tasks.values()):
            self._end_task(framework, task, now_ms)
        for agent_id, name in list(framework.executors):
            self.forget_executor(framework, agent_id, name, now_ms)
        framework.unreachable_tasks.clear()
        framework.operations.clear()
        self.maintenance.framework_removed(framework_id)
        self.allocator.remove_framework(framework_id)
        if framework.stream is not None:
            self.out.close(framework.stream)
        framework.stream = framework.removal_ms = framework.heartbeat_ms = None
        framework.unregistered_ms = now_ms
        self.completed.append(framework)
        return True

    # What comes from agents.

    def register_agent(self, report: AgentReport, agent: AgentPort, now_ms: int) -> None:
        self.registry.register(report, agent, now_ms)

    def unregister_agent(self, agent_id: str, now_ms: int) -> None:
        self.registry.unregister(agent_id, now_ms)

    def status_update(
        self, agent_id: str, framework_id: str, status: Message, latest: str, now_ms: int
    ) -> None:
        """Forward an update of an agent; `latest` is the newest state the agent knows, which frees resources if terminal."""
        framework = self.frameworks.get(framework_id)
        if framework is None or agent_id not in self.agents:
            return
        task = framework.tasks.get(status["task_id"]["value"])
        if task is not None and task.agent_id == agent_id:
            task.state = status["state"]
            task.status_uuid = status["uuid"]
            task.container_status = status.get("container_status", task.container_status)
            if task.statuses and task.statuses[-1]["state"] == status["state"]:
                task.statuses.pop()  # of several in one state the newest is kept
            task.statuses.append(status)
            if latest in TERMINAL_STATES:
                self.release(task, now_ms)
        self.send_update(framework, status)

    def executor_exited(
        self, agent_id: str, framework_id: str, executor_id: str, status: int, now_ms: int
    ) -> None:
        """An executor's process is gone; `status` is the raw wait status, -1 if there never was one."""
        framework = self.frameworks.get(framework_id)
        if framework is None:
            return
        self.forget_executor(framework, agent_id, executor_id, now_ms)
        failure = {"agent_id": {"value": agent_id}, "executor_id": {"value": executor_id}, "status": status}
        self.out.send(framework.stream, {"type": "FAILURE", "failure": failure})

    def operation_status(self, agent_id: str, operation: ReportedOperation) -> None:
        operating.take_status(self, agent_id, operation)

    def executor_message(self, agent_id: str, framework_id: str, executor_id: str, data: str) -> None:
        framework = self.frameworks.get(framework_id)
        if framework is not None:
            message = {"agent_id": {"value": agent_id}, "executor_id": {"value": executor_id}, "data": data}
            self.out.send(framework.stream, {"type": "MESSAGE", "message": message})

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

    def recover_framework(self, info: Message, now_ms: int) -> None:
        """Learn of a framework from an agent; it may be away for ever, until it has subscribed once."""
        if info["id"]["value"] in self.frameworks:
            return
        tasks: deque[Task] = deque(maxlen=self.settings.completed_tasks_max)
        framework = Framework(info, None, "", now_ms, tasks, is_recovered=True)
        self.frameworks[framework.framework_id] = framework
        self.allocator.add_framework(framework.framework_id, framework.roles, set())
        self.allocator.deactivate(framework.framework_id)

    def _add_framework(
        self, framework: Framework, suppressed: set[str], now_ms: int, *, known_id: bool
    ) -> None:
        if known_id:
            framework.reregistered_ms = now_ms
        self.frameworks[framework.framework_id] = framework
        demand = updating.demand_of(framework)
        self.allocator.add_framework(framework.framework_id, framework.roles, suppressed, demand)
        self._subscribed(framework, now_ms)
        self.allocate(now_ms)

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
        if framework.is_recovered:
            framework.is_recovered, framework.registered_ms = False, now_ms
        demand = updating.demand_of(framework)
        self.allocator.update_framework(framework.framework_id, framework.roles, suppressed, demand)
        self._subscribed(framework, now_ms)
        self.tell_agents(framework, now_ms)
        if not was_connected:
            self.allocate(now_ms)

    def _depose(self, framework: Framework, now_ms: int) -> None:
        """Tell the old stream that another instance has taken over, and end it."""
        assert framework.stream is not None
        roles = framework.roles
        for offer in self.offers_of(framework.framework_id):
            if offer.grant.role not in roles:
                self._send_rescind(offer)
        self._discard_offers(framework, now_ms)
        self.out.send(framework.stream, _error("Framework failed over"))
        self.out.close(framework.stream)

    def _subscribed(self, framework: Framework, now_ms: int) -> None:
        body = {
            "framework_id": {"value": framework.framework_id},
            "heartbeat_interval_seconds": self.settings.heartbeat_interval_ms / 1000,
            "master_info": self.master_info(),
        }
        self.out.send(framework.stream, {"type": "SUBSCRIBED", "subscribed": body})
        self._heartbeat(framework, now_ms)

    def _heartbeat(self, framework: Framework, now_ms: int) -> None:
        self.out.send(framework.stream, {"type": "HEARTBEAT"})
        framework.heartbeat_ms = now_ms + self.settings.heartbeat_interval_ms

    def _disconnect(self, framework: Framework, now_ms: int) -> None:
        framework.stream = framework.heartbeat_ms = None
        self._discard_offers(framework, now_ms)
        self.maintenance.framework_away(framework.framework_id)
        self.allocator.deactivate(framework.framework_id)
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
                accepting.accept(self, framework, body, now_ms)
            case "DECLINE":
                self._decline(framework, body, now_ms)
            case "REVIVE" | "SUPPRESS":
                self._change_demand(framework, kind, tuple(body.get("roles", ())), now_ms)
            case "RECONCILE":
                reconciling.answer(self, framework, body.get("tasks", []), now_ms)
            case "KILL":
                self._kill(framework, body, now_ms)
            case "UPDATE_FRAMEWORK":
                return updating.update_framework(self, framework, body, now_ms)
            case _:
                self._pass_on(framework, kind, body, now_ms)
        return ACCEPTED

    def _pass_on(self, framework: Framework, kind: str, body: Message, now_ms: int) -> None:
        """Do what concerns an executor or an operation; what names an unknown agent is dropped, as Mesos does."""
        if kind == "RECONCILE_OPERATIONS":
            operating.answer(self, framework, body)
            return
        if kind in ("ACCEPT_INVERSE_OFFERS", "DECLINE_INVERSE_OFFERS"):
            self.maintenance.take_answer(framework.framework_id, kind.partition("_")[0], body, now_ms)
            return
        agent = self.agents.get(body.get("agent_id", {}).get("value", ""))
        if agent is None or not agent.is_connected:
            return
        if kind == "ACKNOWLEDGE":
            self._acknowledge(framework, agent, body, now_ms)
        elif kind == "ACKNOWLEDGE_OPERATION_STATUS":
            operating.acknowledge(self, framework, agent, body, now_ms)
        elif kind == "SHUTDOWN":
            agent.port.shutdown_executor(framework.framework_id, body["executor_id"]["value"], now_ms)
        elif kind == "MESSAGE":
            name, data = body["executor_id"]["value"], body["data"]
            agent.port.send_message(framework.framework_id, name, data, now_ms)

    def _change_demand(self, framework: Framework, kind: str, roles: tuple[str, ...], now_ms: int) -> None:
        if kind == "SUPPRESS":
            self.allocator.suppress(framework.framework_id, roles)
        elif self.allocator.revive(framework.framework_id, roles):
            self.allocate(now_ms)

    def _decline(self, framework: Framework, body: Message, now_ms: int) -> None:
        hidden_ms = filter_ms(body, self.settings.default_refuse_ms)
        for item in body.get("offer_ids", ()):
            offer = self.offers.get(item["value"])
            if offer is not None and offer.grant.framework_id == framework.framework_id:
                self.recover_offer(offer, now_ms, hidden_ms)

    def _acknowledge(self, framework: Framework, agent: AgentRecord, body: Message, now_ms: int) -> None:
        task = framework.tasks.get(body["task_id"]["value"])
        if task is not None and task.is_terminal and task.status_uuid == body["uuid"]:
            self.forget_task(framework, task, now_ms)
            framework.completed_tasks.append(task)
        agent.port.acknowledge(framework.framework_id, body["task_id"]["value"], body["uuid"], now_ms)
        draining.settle(self, agent, now_ms)

    def _kill(self, framework: Framework, body: Message, now_ms: int) -> None:
        """Pass a KILL on; while the agent is away it is remembered."""
        task = framework.tasks.get(body["task_id"]["value"])
        if task is None:
            reconciling.answer(self, framework, [body], now_ms)
            return
        if body.get("agent_id", {}).get("value", task.agent_id) != task.agent_id:
            return
        agent, policy = self.agents[task.agent_id], body.get("kill_policy")
        if agent.is_connected:
            agent.port.kill_task(framework.framework_id, task.task_id, policy, now_ms)
        else:
            agent.kills[(framework.framework_id, task.task_id)] = policy

    # What is sent.

    def send_update(self, framework: Framework, status: Message) -> None:
        self.out.send(framework.stream, {"type": "UPDATE", "update": {"status": status}})

    def send_operation_status(self, framework: Framework, status: Message) -> None:
        body = {"status": status}
        self.out.send(framework.stream, {"type": "UPDATE_OPERATION_STATUS", "update_operation_status": body})

    def agent_failed(self, agent_id: str) -> None:
        """Tell every framework that an agent was removed."""
        for framework in self.frameworks.values():
            failure = {"agent_id": {"value": agent_id}}
            self.out.send(framework.stream, {"type": "FAILURE", "failure": failure})

    def _send_rescind(self, offer: Offer) -> None:
        stream = self.frameworks[offer.grant.framework_id].stream
        self.out.send(stream, {"type": "RESCIND", "rescind": {"offer_id": {"value": offer.offer_id}}})

    # Tasks and executors.

    def add_task(self, framework: Framework, task: Task) -> None:
        framework.tasks[task.task_id] = task
        self.agents[task.agent_id].tasks[(framework.framework_id, task.task_id)] = task

    def forget_task(self, framework: Framework, task: Task, now_ms: int) -> None:
        """Strike a task off the books; what it took is free if it was not before."""
        self.release(task, now_ms)
        del framework.tasks[task.task_id]
        del self.agents[task.agent_id].tasks[(framework.framework_id, task.task_id)]

    def add_executor(self, framework: Framework, record: ExecutorRecord) -> None:
        name = record.info["executor_id"]["value"]
        framework.executors[(record.agent_id, name)] = record
        self.agents[record.agent_id].executors[(framework.framework_id, name)] = record

    def forget_executor(self, framework: Framework, agent_id: str, executor_id: str, now_ms: int) -> None:
        """Strike an executor off the books, if it is on them."""
        record = framework.executors.pop((agent_id, executor_id), None)
        if record is not None:
            del self.agents[agent_id].executors[(framework.framework_id, executor_id)]
            self.allocator.recover(record.grant, now_ms)

    def _agents_of(self, framework: Framework) -> list[str]:
        """Return the agents on which a framework has something."""
        names = [task.agent_id for task in framework.tasks.values()]
        names += [agent_id for agent_id, _ in framework.executors]
        names += [agent_id for agent_id, _ in framework.operations.values()]
        return list(dict.fromkeys(names))

    def tell_agents(self, framework: Framework, now_ms: int) -> None:
        """Tell the framework's agents what it says of itself; they send again what it has not acknowledged."""
        for agent_id in self._agents_of(framework):
            if self.agents[agent_id].is_connected:
                self.agents[agent_id].port.update_framework(framework.info, now_ms)

    # Offers and resources.

    def allocate(self, now_ms: int, only: str | None = None) -> None:
        """Offer what is free, of all agents or of `only` one: one OFFERS event a framework, with all its agents."""
        by_framework: dict[str, list[Message]] = {}
        for grant in self.allocator.allocate(now_ms, only):
            offer = Offer(self.next_offer_id(), grant)
            agent = self.agents[grant.agent_id]
            self.offers[offer.offer_id] = agent.offers[offer.offer_id] = offer
            if self.settings.offer_timeout_ms is not None:
                self._offer_ends.append((now_ms + self.settings.offer_timeout_ms, offer.offer_id))
            message = offer_message(offer, self.frameworks[grant.framework_id], agent)
            unavailability = self.maintenance.unavailability(agent.spec)
            if unavailability is not None:
                message["unavailability"] = unavailability
            by_framework.setdefault(grant.framework_id, []).append(message)
        for framework_id, offers in by_framework.items():
            self.out.send(
                self.frameworks[framework_id].stream, {"type": "OFFERS", "offers": {"offers": offers}}
            )
        self.maintenance.allocate(now_ms)

    def _next_offer_end(self) -> list[int]:
        while self._offer_ends and self._offer_ends[0][1] not in self.offers:
            self._offer_ends.popleft()
        return [self._offer_ends[0][0]] if self._offer_ends else []

    def next_offer_id(self) -> str:
        number, self._offer_count = self._offer_count, self._offer_count + 1
        return f"{self.spec.master_id}-O{number}"

    def offers_of(self, framework_id: str) -> list[Offer]:
        return [offer for offer in self.offers.values() if offer.grant.framework_id == framework_id]

    def _discard_offers(self, framework: Framework, now_ms: int) -> None:
        for offer in self.offers_of(framework.framework_id):
            self.recover_offer(offer, now_ms, 0)

    def take_offer(self, offer_id: str) -> Offer:
        """Strike an offer off the books; what it held is the caller's."""
        offer = self.offers.pop(offer_id)
        del self.agents[offer.grant.agent_id].offers[offer_id]
        return offer

    def recover_offer(self, offer: Offer, now_ms: int, hidden_ms: int) -> None:
        self.take_offer(offer.offer_id)
        self.allocator.recover(offer.grant, now_ms, refuse_ms=hidden_ms)

    def rescind_offer(self, offer: Offer, now_ms: int, hidden_ms: int) -> None:
        """Take an offer back; with `hidden_ms` as if it had been refused."""
        self._send_rescind(offer)
        self.recover_offer(offer, now_ms, hidden_ms)

    def rescind_offers(self, agent: AgentRecord, now_ms: int) -> None:
        """Take back all offers of an agent."""
        for offer in list(agent.offers.values()):
            self.rescind_offer(offer, now_ms, 0)

    def release(self, task: Task, now_ms: int) -> None:
        if not task.released:
            task.released = True
            self.allocator.recover(task.grant, now_ms)

    def _end_task(self, framework: Framework, task: Task, now_ms: int) -> None:
        """Close the book on a task of a framework that is being removed: killed, and nobody is told."""
        self.forget_task(framework, task, now_ms)
        if not task.is_terminal:
            task.state = "TASK_KILLED"
            reason, text = "REASON_FRAMEWORK_REMOVED", "Framework has been removed"
            task.statuses.append(self.task_status(task, "TASK_KILLED", reason, text, now_ms))
        framework.completed_tasks.append(task)

    # Values.

    def free(self, agent_id: str) -> Resources:
        """Return what nobody holds of an agent."""
        return self.allocator.free(agent_id)

    def master_info(self) -> Message:
        """Return the MasterInfo of SUBSCRIBED."""
        return self.spec.info()

    def wall_seconds(self, now_ms: int) -> float:
        """Return `now_ms` as seconds since the epoch, for labels."""
        return (now_ms + self._wall_offset_ms) / 1000

    def wall_ms(self, now_ms: int) -> int:
        """Return `now_ms` as milliseconds since the epoch."""
        return now_ms + self._wall_offset_ms

    def task_status(self, task: Task, state: str, reason: str, text: str, now_ms: int) -> Message:
        """Return a status of the master's own making; command tasks' are without their executor."""
        task_id, agent_id = {"value": task.task_id}, {"value": task.agent_id}
        status = self.status(task_id, state, reason, text, now_ms, agent_id=agent_id)
        if task.is_custom:
            status["executor_id"] = {"value": task.executor_id}
        return status

    def status(
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

"""Operations on resources as the master takes them: of an ACCEPT, of an operator, and what agents and frameworks say about them.

An operation is done the moment it is accepted: allocator and agent convert the same resources in the same step. Its status goes
from the agent to its framework if it has an id; one without is done, or dropped, in silence. An operator's operation takes what is
free, for which offers are rescinded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from stoker.mesos.embedded.core import operations
from stoker.mesos.embedded.core.allocator import REFUSE_MS_DEFAULT, Grant
from stoker.mesos.embedded.core.calls import Answer
from stoker.mesos.embedded.core.codec import Message
from stoker.mesos.embedded.core.feedback import operation_status
from stoker.mesos.embedded.core.operations import OperationError, Place, Requester
from stoker.mesos.embedded.core.ports import AgentReport, ReportedOperation
from stoker.mesos.embedded.core.records import AgentRecord, Framework
from stoker.mesos.embedded.core.resources import EMPTY, Resources

if TYPE_CHECKING:
    from stoker.mesos.embedded.core.master import Master

OPERATIONS_MAX = 100_000  # that a framework has not acknowledged; the oldest is forgotten first


class Holding(NamedTuple):
    """What an ACCEPT has left: `fresh` is the part of it that its own operations made."""

    rest: Resources
    fresh: Resources = EMPTY


def operate(
    master: Master, framework: Framework, operation: Message, held: Grant, fresh: Resources, now_ms: int
) -> Holding:
    """Do an operation of an ACCEPT, of which `held` is left, or refuse it; return what is left then."""
    agent = master.agents[held.agent_id]
    total = master.allocator.total(held.agent_id)
    place = Place(held.role, held.resources, total, lambda: _used(agent))
    requester = Requester(framework.info.get("principal"), framework.roles)
    try:
        conversion = operations.convert(operation, requester, place)
    except OperationError as error:
        text = f"{error}; on agent {_name(agent)}" if error.at_agent else str(error)
        refuse(master, framework, operation, text)
        return Holding(held.resources, fresh)
    consumed, converted = conversion
    master.allocator.convert(held.agent_id, consumed, converted, held)
    operation_id = operation["id"]["value"] if "id" in operation else None
    agent.port.apply_operation(framework.framework_id, operation_id, conversion, now_ms)
    rest = held.resources - consumed
    if operation["type"] in operations.SPECULATIVE:
        return Holding(rest + converted, fresh.common(rest) + converted)
    # The agent's answer gives these back, not this ACCEPT.
    master.allocator.recover(held._replace(resources=converted), now_ms)
    cut_off = converted.select(lambda key: not key.is_volume)
    if cut_off:  # of a volume that shrank; a real master does not offer it until the agent registers again
        master.allocator.withhold(held.agent_id, cut_off)
    return Holding(rest, fresh.common(rest))


def refuse(master: Master, framework: Framework, operation: Message, text: str) -> None:
    """Tell why an operation was not done, if it has an id."""
    if "id" in operation:
        status: Message = {
            "operation_id": operation["id"],
            "state": "OPERATION_ERROR",
            "message": text,
        }
        master.send_operation_status(framework, status)


def by_operator(
    master: Master, agent_id: str, operation: Message, principal: str | None, now_ms: int
) -> Answer:
    """Do an operator's operation on what is not in use; offers are rescinded for it."""
    agent = master.agents.get(agent_id)
    if agent is None:
        return Answer(400, "No agent found with specified ID")
    name = operation["type"]
    free = master.allocator.available(agent_id)
    offered = EMPTY
    for offer in agent.offers.values():
        offered = offered + offer.grant.resources
    place = Place(None, free + offered, master.allocator.total(agent_id), lambda: _used(agent))
    try:
        conversion = operations.convert(operation, Requester(principal), place)
    except OperationError as error:
        text = f"Invalid {name} operation on agent {_name(agent)}: {error}"
        return Answer(400, text) if error.at_agent else Answer(409, str(error))
    wanted = conversion.consumed
    for offer in list(agent.offers.values()):
        if not offer.grant.resources.common(wanted):
            continue
        if master.allocator.available(agent_id).contains(wanted):
            break
        master.rescind_offer(offer, now_ms, REFUSE_MS_DEFAULT)
    master.allocator.convert(agent_id, *conversion)
    agent.port.apply_operation("", None, conversion, now_ms)
    return Answer(202)


def acknowledge(master: Master, framework: Framework, agent: AgentRecord, body: Message, now_ms: int) -> None:
    """Take ACKNOWLEDGE_OPERATION_STATUS; a wrong uuid does nothing."""
    operation_id = body["operation_id"]["value"]
    known = framework.operations.get(operation_id)
    if known is not None and known[0] == agent.agent_id and known[1].uuid == body["uuid"]:
        del framework.operations[operation_id]
    agent.port.acknowledge_operation(framework.framework_id, operation_id, body["uuid"], now_ms)


def take_status(master: Master, agent_id: str, operation: ReportedOperation) -> None:
    """Forward the status of an operation that an agent has done."""
    framework = master.frameworks.get(operation.framework_id)
    if framework is not None and agent_id in master.agents:
        _remember(framework, agent_id, operation)
        master.send_operation_status(framework, operation_status(operation, agent_id, with_uuid=True))


def agent_registered(master: Master, agent_id: str, report: AgentReport) -> None:
    """Learn what an agent has done and nobody has acknowledged."""
    for operation in report.operations:
        framework = master.frameworks.get(operation.framework_id)
        if framework is not None:
            _remember(framework, agent_id, operation)


def agent_removed(master: Master, agent_id: str) -> None:
    """Forget the operations of an agent: what became of them is for the agent to say when it is back."""
    for framework in master.frameworks.values():
        for name in [name for name, (owner, _) in framework.operations.items() if owner == agent_id]:
            del framework.operations[name]


def answer(master: Master, framework: Framework, body: Message) -> None:
    """Answer RECONCILE_OPERATIONS; an empty list asks for all that are not acknowledged."""
    asked = body.get("operations", [])
    if not asked:
        for agent_id, operation in framework.operations.values():
            status = operation_status(operation, agent_id, with_uuid=False)
            master.send_operation_status(framework, status)
    for item in asked:
        known = framework.operations.get(item["operation_id"]["value"])
        if known is not None:
            status = operation_status(known[1], known[0], with_uuid=False)
        else:
            state, text = _unknown(master, item.get("agent_id", {}).get("value"))
            status = {"operation_id": item["operation_id"], "state": state, "message": text}
            if "agent_id" in item:
                status["agent_id"] = item["agent_id"]
        master.send_operation_status(framework, status)


def _remember(framework: Framework, agent_id: str, operation: ReportedOperation) -> None:
    framework.operations[operation.operation_id] = (agent_id, operation)
    while len(framework.operations) > OPERATIONS_MAX:
        del framework.operations[next(iter(framework.operations))]


def _unknown(master: Master, agent_id: str | None) -> tuple[str, str]:
    registry, start = master.registry, "Reconciliation:"
    if agent_id is None:
        return "OPERATION_UNKNOWN", f"{start} Operation is unknown and no 'agent_id' was provided"
    if agent_id in master.agents:
        return "OPERATION_UNKNOWN", f"{start} Operation is unknown"
    if agent_id in registry.recovered:
        return "OPERATION_RECOVERING", f"{start} Agent is recovered but has not re-registered"
    if agent_id in registry.unreachable:
        return "OPERATION_UNREACHABLE", f"{start} Agent is unreachable"
    if agent_id in registry.gone:
        return "OPERATION_GONE_BY_OPERATOR", f"{start} Agent marked gone by operator"
    return "OPERATION_UNKNOWN", f"{start} Both operation and agent are unknown"


def _used(agent: AgentRecord) -> Resources:
    total = EMPTY
    for task in agent.tasks.values():
        if not task.released:
            total = total + task.grant.resources
    for record in agent.executors.values():
        total = total + record.grant.resources
    return total


def _name(agent: AgentRecord) -> str:
    return f"{agent.agent_id} at {agent.spec.pid} ({agent.spec.hostname})"

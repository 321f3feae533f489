"""Orders of an operator for one agent: gone, drain, deactivate, reactivate.

A draining agent is not offered, its tasks are killed with at most the grace that was given, and it is drained once nothing of it
is unacknowledged; a drain that marks gone then removes it for good. Each function answers as the operator API does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stoker.mesos.embedded.core.calls import Answer
from stoker.mesos.embedded.core.codec import Message
from stoker.mesos.embedded.core.ports import DrainConfig
from stoker.mesos.embedded.core.records import AgentRecord

if TYPE_CHECKING:
    from stoker.mesos.embedded.core.master import Master

DONE = Answer(200)


def mark_gone(master: Master, agent_id: str, now_ms: int) -> Answer:
    """Do MARK_AGENT_GONE."""
    if master.registry.mark_gone(agent_id, now_ms):
        return DONE
    return Answer(404, f"Agent '{agent_id}' not found: it is not known to this master")


def drain(master: Master, agent_id: str, config: DrainConfig, now_ms: int) -> Answer:
    """Do DRAIN_AGENT; an agent that is away is drained when it is back."""
    record = master.agents.get(agent_id)
    if record is None:
        if master.registry.order(agent_id, config, is_deactivated=True):
            return DONE
        return _unknown(agent_id)
    record.draining, record.is_drained, record.is_deactivated = config, False, True
    master.registry.set_active(record)
    master.rescind_offers(record, now_ms)
    if record.is_connected:
        record.port.drain(config, now_ms)
    settle(master, record, now_ms)
    return DONE


def deactivate(master: Master, agent_id: str, now_ms: int) -> Answer:
    """Do DEACTIVATE_AGENT: its offers are rescinded, its tasks go on."""
    record = master.agents.get(agent_id)
    if record is None:
        return DONE if master.registry.order(agent_id, None, is_deactivated=True) else _unknown(agent_id)
    record.is_deactivated = True
    master.registry.set_active(record)
    master.rescind_offers(record, now_ms)
    return DONE


def reactivate(master: Master, agent_id: str, now_ms: int) -> Answer:
    """Do REACTIVATE_AGENT; an agent that is being drained must be drained first."""
    record = master.agents.get(agent_id)
    if record is None:
        return DONE if master.registry.order(agent_id, None, is_deactivated=False) else _unknown(agent_id)
    if record.draining is not None and not record.is_drained:
        return Answer(400, "Agent is still in the DRAINING state")
    if record.draining is not None and record.is_connected:
        record.port.drain(None, now_ms)
    record.draining, record.is_drained, record.is_deactivated = None, False, False
    master.registry.set_active(record)
    return DONE


def settle(master: Master, record: AgentRecord, now_ms: int) -> None:
    """See whether a drain has come to its end."""
    if record.draining is None or record.is_drained or record.tasks or not record.is_connected:
        return
    record.is_drained = True
    if record.draining.mark_gone:
        master.registry.mark_gone(record.agent_id, now_ms)


def drain_info(record: AgentRecord) -> Message | None:
    """Return what /state and GET_AGENTS show of a drain."""
    if record.draining is None:
        return None
    config: Message = {"mark_gone": record.draining.mark_gone}
    if record.draining.grace_ms_max is not None:
        config["max_grace_period"] = {"nanoseconds": record.draining.grace_ms_max * 1_000_000}
    return {"state": "DRAINED" if record.is_drained else "DRAINING", "config": config}


def _unknown(agent_id: str) -> Answer:
    return Answer(400, f"Agent '{agent_id}' is not known to this master")

"""RECONCILE: what the master tells of a task when it is asked.

It answers with the state that it last *forwarded*. Of a task that it does not know it says what it knows of the agent: registered
(TASK_GONE), unreachable, gone for good, or never heard of (TASK_UNKNOWN). As long as an agent that the registry names has not
come back to a new master there is **no answer at all** about what may run there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stoker.mesos.embedded.core.codec import Message
from stoker.mesos.embedded.core.records import Framework, Task

if TYPE_CHECKING:
    from stoker.mesos.embedded.core.master import Master


def answer(master: Master, framework: Framework, asked: list[Message], now_ms: int) -> None:
    """Answer for each of `asked` ({task_id, agent_id?}), or for every task if it is empty."""
    if not asked:
        for task in framework.tasks.values():
            _answer_known(master, framework, task, now_ms)
        return
    for item in asked:
        known = framework.tasks.get(item["task_id"]["value"])
        if known is not None:
            _answer_known(master, framework, known, now_ms)
        else:
            _answer_unknown(master, framework, item, now_ms)


def _answer_known(master: Master, framework: Framework, task: Task, now_ms: int) -> None:
    text = "Reconciliation: Latest task state"
    status = master.task_status(task, task.state, "REASON_RECONCILIATION", text, now_ms)
    if task.container_status is not None:
        status["container_status"] = task.container_status
    master.send_update(framework, status)


def _answer_unknown(master: Master, framework: Framework, item: Message, now_ms: int) -> None:
    registry = master.registry
    agent_id = item.get("agent_id")
    name = None if agent_id is None else agent_id["value"]
    if registry.recovered if name is None else name in registry.recovered:
        return
    more: Message = {}
    if name is None:
        state, text = "TASK_UNKNOWN", "Reconciliation: Task is unknown"
    elif name in master.agents:
        state, text = "TASK_GONE", "Reconciliation: Task is unknown to the agent"
    elif name in registry.unreachable:
        state, text = "TASK_UNREACHABLE", "Reconciliation: Task is unreachable"
        more = {"unreachable_time": registry.unreachable[name].time_message()}
    elif name in registry.gone:
        state, text = "TASK_GONE_BY_OPERATOR", "Reconciliation: Task is gone"
    else:
        state, text = "TASK_UNKNOWN", "Reconciliation: Task is unknown"
    if "PARTITION_AWARE" not in framework.capabilities:
        state = "TASK_LOST"
    status = master.status(item["task_id"], state, "REASON_RECONCILIATION", text, now_ms, agent_id=agent_id)
    master.send_update(framework, status | more)

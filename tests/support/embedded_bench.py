"""The machine of the embedded Mesos on a bench: no process, no socket, time given by the test."""

from __future__ import annotations

import base64
import copy
import json
import uuid
from typing import Any

from stoker.mesos.embedded.core.agent import Agent
from stoker.mesos.embedded.core.calls import Answer, Refused, decode_executor_call, decode_scheduler_call
from stoker.mesos.embedded.core.cluster import Cluster, Stop
from stoker.mesos.embedded.core.codec import Message
from stoker.mesos.embedded.core.resources import EMPTY, plain
from stoker.mesos.embedded.core.values import (
    Abort,
    AgentEnded,
    AgentSpec,
    Close,
    KillProcess,
    MakeVolume,
    MasterSpec,
    RemoveVolume,
    Send,
    Settings,
    StartProcess,
)
from support.embedded import subscribe_call

HEADERS = {"content-type": "application/json"}
WALL_MS = 1_800_000_000_000
MASTER_ID = "m"


class Bench:
    """A cluster with agents of 4 cpus, 4096 MB, 8192 MB disk and 100 ports; `now_ms` is the time of the next step."""

    def __init__(self, agents: int = 1, domain: tuple[str, str] | None = None, **settings: Any) -> None:
        fault = {} if domain is None else {"region": {"name": domain[0]}, "zone": {"name": domain[1]}}
        place = {"fault_domain": fault} if fault else None
        master = MasterSpec(MASTER_ID, "127.0.0.1", "127.0.0.1", 5050, place)
        specs = [
            AgentSpec(
                f"S{index}",
                index + 1,
                f"127.0.0.{10 + index}",
                f"127.0.0.{10 + index}",
                5051,
                plain(
                    cpus=4,
                    mem_mib=4096,
                    disk_mib=8192,
                    ports=(31_000 + 100 * index, 31_099 + 100 * index),
                ),
                "/w",
                domain=place,
            )
            for index in range(agents)
        ]
        self.now_ms = 0
        self.cluster = Cluster(
            master, specs, Settings(**settings), seed=uuid.UUID(int=7), now_ms=0, wall_ms=WALL_MS
        )
        self.events: dict[int, list[Message]] = {}
        self.closed: list[int] = []
        self.aborted: list[int] = []
        self.ended: list[int] = []
        self.started: list[StartProcess] = []
        self.killed: list[str] = []
        self.made: list[str] = []
        self.removed: list[str] = []
        self._streams = 0

    # Steps.

    def take(self) -> None:
        """Perform what the last step put out: remember it."""
        for output in self.cluster.take_outputs():
            match output:
                case Send(stream, event):
                    assert stream not in self.closed, "an event after the end of its stream"
                    self.events[stream].append(copy.deepcopy(event))
                case Close(stream):
                    self.closed.append(stream)
                case Abort(stream):
                    self.closed.append(stream)
                    self.aborted.append(stream)
                case AgentEnded(number):
                    self.ended.append(number)
                case StartProcess():
                    self.started.append(output)
                    self.agent_of(output.container_id).process_started(
                        output.container_id, 4000 + len(self.started)
                    )
                case KillProcess(container_id):
                    self.killed.append(container_id)
                case MakeVolume(path):
                    self.made.append(path)
                case RemoveVolume(path):
                    self.removed.append(path)
        self.check()

    def advance(self, to_ms: int) -> None:
        """Let the time pass, with a tick at every deadline on the way."""
        while True:
            deadline_ms = self.cluster.next_deadline_ms()
            if deadline_ms is None or deadline_ms > to_ms:
                break
            self.now_ms = max(self.now_ms, deadline_ms)
            self.cluster.tick(self.now_ms)
            self.take()
        self.now_ms = to_ms

    def open_stream(self) -> int:
        self._streams += 1
        self.events[self._streams] = []
        return self._streams

    def subscribe(
        self, framework_id: str | None = None, suppressed: tuple[str, ...] = (), **info: Any
    ) -> int:
        """Subscribe a framework and return its stream; `info` are fields of FrameworkInfo, and `offer_constraints`."""
        constraints = info.pop("offer_constraints", None)
        call = subscribe_call(framework_id, suppressed, info)
        if constraints is not None:
            call["subscribe"]["offer_constraints"] = constraints
        decoded = decode_scheduler_call(HEADERS, json.dumps(call).encode())
        stream = self.open_stream()
        self.cluster.master.subscribe(decoded, stream, f"stream-{stream}", self.now_ms)
        self.take()
        return stream

    def call(
        self, stream: int, kind: str, body: Message | None = None, *, framework_id: str = "m-0000"
    ) -> Answer:
        """Make a scheduler call with the stream id of `stream`."""
        call: Message = {"type": kind, "framework_id": {"value": framework_id}}
        if body is not None:
            call[kind.lower()] = body
        try:
            decoded = decode_scheduler_call(HEADERS, json.dumps(call).encode())
        except Refused as refusal:
            return refusal.answer
        answer = self.cluster.master.call(decoded, f"stream-{stream}", self.now_ms)
        self.take()
        return answer

    def executor_call(
        self, kind: str, body: Message | None = None, executor_id: str = "e1", framework_id: str = "m-0000"
    ) -> Answer | int:
        """Make an executor's call; SUBSCRIBE returns its stream."""
        call: Message = {
            "type": kind,
            "framework_id": {"value": framework_id},
            "executor_id": {"value": executor_id},
            kind.lower(): body or {},
        }
        try:
            decoded = decode_executor_call(HEADERS, json.dumps(call).encode())
        except Refused as refusal:
            return refusal.answer
        agent = self.cluster.find_agent(decoded)
        refused = self.cluster.check_executor(decoded, agent)
        if refused is not None:
            return refused
        assert agent is not None
        if kind == "SUBSCRIBE":
            stream = self.open_stream()
            agent.subscribe(decoded, stream, self.now_ms)
            self.take()
            return stream
        answer = agent.call(decoded, self.now_ms)
        self.take()
        return answer

    def update(
        self, task_id: str, state: str, number: int, executor_id: str = "e1", **fields: Any
    ) -> Answer | int:
        """Send an executor's update; `number` makes its uuid."""
        status = {
            "task_id": {"value": task_id},
            "state": state,
            "source": "SOURCE_EXECUTOR",
            "uuid": make_uuid(number),
            **fields,
        }
        return self.executor_call("UPDATE", {"status": status}, executor_id)

    def acknowledge(self, stream: int, task_id: str, uuid_text: str, agent_id: str = "S0") -> Answer:
        body = {"agent_id": {"value": agent_id}, "task_id": {"value": task_id}, "uuid": uuid_text}
        return self.call(stream, "ACKNOWLEDGE", body)

    def drop(self, stream: int) -> None:
        """The other side closes a stream."""
        self.cluster.stream_closed(stream, self.now_ms)
        self.take()

    def exit(self, status: int, index: int = -1) -> None:
        """A process ends with a raw wait status."""
        container_id = self.started[index].container_id
        self.agent_of(container_id).process_exited(container_id, status, self.now_ms)
        self.take()

    def launch(
        self,
        stream: int,
        *tasks: Message,
        refuse_seconds: float = 0.0,
        offer_ids: list[Message] | None = None,
    ) -> Answer:
        """Accept `offer_ids`, or the newest offer, with a LAUNCH."""
        operations = [{"type": "LAUNCH", "launch": {"task_infos": list(tasks)}}]
        if offer_ids is None:
            offer_ids = [self.offers(stream)[-1]["id"]]
        filters = {"refuse_seconds": refuse_seconds}
        return self.call(
            stream, "ACCEPT", {"offer_ids": offer_ids, "operations": operations, "filters": filters}
        )

    def run(self, stream: int, task_id: str = "t1", executor_id: str = "e1") -> int:
        """Launch a task with its executor, which subscribes; return the executor's stream."""
        self.launch(stream, task(task_id, executor_id))
        result = self.executor_call("SUBSCRIBE", {}, executor_id)
        assert isinstance(result, int)
        return result

    def stop(self, number: int = 1, how: Stop = "kill") -> None:
        self.cluster.stop_agent(number, how, self.now_ms)
        self.take()

    def start(self, number: int = 1, **options: Any) -> None:
        self.cluster.start_agent(number, self.now_ms, **options)
        self.take()

    def fail_over(self, *, keeps_registry: bool, return_ms: int | None = None) -> None:
        """Let another master lead, of which ids begin with "n"."""
        spec = MasterSpec("n", "127.0.0.1", "127.0.0.1", 5050)
        now_ms = self.now_ms
        self.cluster.fail_over_master(spec, keeps_registry=keeps_registry, now_ms=now_ms, return_ms=return_ms)
        self.take()

    # What came out.

    def agent_of(self, container_id: str) -> Agent:
        return self.cluster.agent_of_container(container_id)

    def kinds(self, stream: int, start: int = 0) -> list[str]:
        return [event["type"] for event in self.events[stream][start:] if event["type"] != "HEARTBEAT"]

    def offers(self, stream: int) -> list[Message]:
        """Return all offers that the stream was ever given."""
        events = [event for event in self.events[stream] if event["type"] == "OFFERS"]
        return [offer for event in events for offer in event["offers"]["offers"]]

    def statuses(self, stream: int) -> list[Message]:
        return [event["update"]["status"] for event in self.events[stream] if event["type"] == "UPDATE"]

    def states(self, stream: int, task_id: str = "t1") -> list[str]:
        return [status["state"] for status in self.statuses(stream) if status["task_id"]["value"] == task_id]

    def check(self) -> None:
        """Every resource is somewhere, once: free, offered, or used by a task or executor that is counted."""
        master = self.cluster.master
        for agent_id, record in master.agents.items():
            total = master.free(agent_id)
            grants = [offer.grant for offer in master.offers.values()]
            for framework in master.frameworks.values():
                grants += [item.grant for item in framework.tasks.values() if not item.released]
                grants += [item.grant for item in framework.executors.values()]
            for grant in grants:
                total = total + (grant.resources if grant.agent_id == agent_id else EMPTY)
            assert total == master.allocator.total(agent_id), (agent_id, total)
            assert not record.is_connected or total == record.port.resources, (agent_id, total)


def task(
    task_id: str = "t1", executor_id: str = "e1", cpus: float = 1.0, agent_id: str = "S0", **more: Any
) -> Message:
    """Return a TaskInfo with a custom executor."""
    return {
        "name": task_id,
        "task_id": {"value": task_id},
        "agent_id": {"value": agent_id},
        "resources": [
            {"name": "cpus", "type": "SCALAR", "scalar": {"value": cpus}},
            {"name": "mem", "type": "SCALAR", "scalar": {"value": 64}},
        ],
        "executor": executor(executor_id),
        **more,
    }


def executor(executor_id: str = "e1", **more: Any) -> Message:
    return {
        "type": "CUSTOM",
        "executor_id": {"value": executor_id},
        "command": {"value": "exec something"},
        "resources": [{"name": "cpus", "type": "SCALAR", "scalar": {"value": 0.1}}],
        **more,
    }


def make_uuid(number: int) -> str:
    """Return the base64 of a proper uuid."""
    return base64.b64encode(uuid.uuid5(uuid.UUID(int=1), str(number)).bytes).decode()


def cpus(offer: Message) -> float:
    return float(next(item["scalar"]["value"] for item in offer["resources"] if item["name"] == "cpus"))


PINGS = {"agent_ping_timeout_ms": 1000, "registration_backoff_ms": 10}


def running(
    agents: int = 1,
    *,
    info: Message | None = None,
    fields: Message | None = None,
    settle_ms: int = 1000,
    **options: Any,
) -> tuple[Bench, int, int]:
    """Return a bench with t1 RUNNING and acknowledged on agent S0, the scheduler's stream, and the executor's.

    Agents are missed soon (PINGS). `info` is of the framework, `fields` of the task, `options` of the bench; `settle_ms`
    pass after the acknowledgement.
    """
    bench = Bench(agents, **PINGS, **options)
    stream = bench.subscribe(**(info or {}))
    offer = next(offer for offer in bench.offers(stream) if offer["agent_id"]["value"] == "S0")
    bench.launch(stream, task(**(fields or {})), offer_ids=[offer["id"]])
    agent_stream = bench.executor_call("SUBSCRIBE", {})
    assert isinstance(agent_stream, int)
    bench.update("t1", "TASK_RUNNING", 1)
    bench.acknowledge(stream, "t1", make_uuid(1))
    bench.advance(settle_ms)
    return bench, stream, agent_stream


def since(bench: Bench, stream: int, mark: int = 0) -> list[str]:
    """Return what came after the first `mark` events: kinds, and states in place of UPDATE."""
    return [
        event["update"]["status"]["state"] if event["type"] == "UPDATE" else event["type"]
        for event in bench.events[stream][mark:]
        if event["type"] != "HEARTBEAT"
    ]

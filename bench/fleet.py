"""10,000 agents in virtual time: how much of its CPU a leader's core takes for their offers, launches, updates and heartbeats.

The core is the product's, one event after another as the loop feeds it, in a process of its own; Mesos' JSON is translated as in the
shell, entries are encoded as for the journal, and nothing is sent. Peer: json.loads or msgpack alone of the same messages. Memory is
what the process has grown by, an agent, with its executor running and heard; peer: its offer, as the dictionary that a driver gives.
"""

from __future__ import annotations

import functools
import gc
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import msgpack
from common import Result
from offers import offer

from stoker.executor.messages import Heartbeat, decode_heartbeat, encode
from stoker.framework.core import actions as a
from stoker.framework.core import events as ev
from stoker.framework.core.catalog import Catalog
from stoker.framework.core.codec import encode_entry
from stoker.framework.core.fleet import Fleet
from stoker.framework.core.scheduler import decide
from stoker.framework.mesos_shell import OFFERS_AN_EVENT_MAX
from stoker.framework.model import FleetSpec, Settings
from stoker.framework.translate import offer_from_mesos, status_from_mesos

AGENTS = 10_000
MEM_BYTES = 2**30
TICK_EVENTS = 2_000  # events between two ticks
ROUNDS_MAX = 400  # of offers, until all are launched
TIMEOUT_S = 600
BAR = "told"


def run() -> list[Result]:
    command = [sys.executable, __file__]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT_S)
    return [Result(**line) for line in json.loads(done.stdout)]


class Leader:
    """A leader's core and its clock."""

    def __init__(self) -> None:
        self.settings = Settings()
        self.catalog = Catalog()
        self.fleet = Fleet(self.settings)
        self.now_ms = 1_000_000
        self.accepted: list[a.Accept] = []
        self._events = 0
        began = ev.LeadershipBegan(1, FleetSpec(AGENTS, MEM_BYTES), bytes(16), "bench", bytes(32))
        self.do(began)
        self.do(ev.Subscribed("framework-1", "master-1"))

    def do(self, event: ev.Event) -> None:
        self._events += 1
        if self._events % TICK_EVENTS == 0:
            self.now_ms += self.settings.tick_ms
            self._decide(ev.Ticked())
        self._decide(event)

    def _decide(self, event: ev.Event) -> None:
        stamp = ev.Stamp(self._events, self.now_ms, 1_700_000_000_000 + self.now_ms)
        self.fleet.observe(stamp, event, self.catalog)
        frame = decide(self.catalog, self.fleet, stamp, event, self.settings)
        for entry in frame.entries:
            self.catalog.apply(entry)
            encode_entry(entry)
        for action in frame.actions:
            self.fleet.apply(stamp, action)
            if isinstance(action, a.Accept):
                self.accepted.append(action)

    def tick(self) -> None:
        self.now_ms += self.settings.tick_ms
        self._decide(ev.Ticked())


def measure() -> list[Result]:
    offers = [json.dumps(offer(i)).encode() for i in range(AGENTS)]
    before = _memory_bytes()
    leader = Leader()
    _launch_all(leader, offers)
    _update_all(leader, _updates(leader))
    _beat_all(leader, _heartbeats(leader))
    after = _memory_bytes()
    kept = [json.loads(data) for data in offers]
    theirs = (_memory_bytes() - after) / len(kept) / 1024
    memory = _result(
        f"{AGENTS:,} agents: memory of each",
        (after - before) / AGENTS / 1024,
        theirs,
        "KiB",
        "its offer alone",
    )
    return [*_rates(offers), memory]


def _memory_bytes() -> int:
    """Return the process' resident memory."""
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def _rates(offers: list[bytes]) -> list[Result]:
    leader = Leader()
    while len(leader.catalog.slots) < AGENTS:
        leader.tick()
    results = []
    took_s = _cpu_s(lambda: _launch_all(leader, offers))
    peer_s = _cpu_s(lambda: [json.loads(data) for data in offers])
    results.append(_rate("offers that are launched on", AGENTS / took_s, AGENTS / peer_s, "json.loads alone"))
    updates = _updates(leader)
    took_s = _cpu_s(lambda: _update_all(leader, updates))
    peer_s = _cpu_s(lambda: [json.loads(data) for data in updates])
    count = len(updates)
    results.append(_rate("task updates", count / took_s, count / peer_s, "json.loads alone"))
    for what in ("first heartbeats", "heartbeats of an idle fleet"):
        messages = _heartbeats(leader)
        took_s = _cpu_s(lambda messages=messages: _beat_all(leader, messages))  # type: ignore[misc]
        peer_s = _cpu_s(lambda messages=messages: [msgpack.unpackb(data) for data in messages])  # type: ignore[misc]
        results.append(_rate(what, AGENTS / took_s, AGENTS / peer_s, "msgpack alone"))
    took_s = _cpu_s(lambda: _offer_all(leader, offers))
    peer_s = _cpu_s(lambda: [json.loads(data) for data in offers])
    results.append(_rate("offers that are declined", AGENTS / took_s, AGENTS / peer_s, "json.loads alone"))
    return results


def _cpu_s(work: Callable[[], Any]) -> float:
    began_s = time.process_time()
    work()
    return time.process_time() - began_s


def _rate(what: str, ours: float, theirs: float, peer: str) -> Result:
    return _result(f"{AGENTS:,} agents: {what}", ours, theirs, "/s of CPU", peer)


def _result(what: str, ours: float, theirs: float, unit: str, peer: str) -> Result:
    ratio = ours / theirs
    return Result(what, peer, ours, theirs, unit, ratio, ratio, ratio, BAR)


# --- what the cluster says


def _offer_all(leader: Leader, offers: Iterable[bytes]) -> None:
    raw = list(offers)
    for first in range(0, len(raw), OFFERS_AN_EVENT_MAX):
        group = [offer_from_mesos(json.loads(data)) for data in raw[first : first + OFFERS_AN_EVENT_MAX]]
        leader.do(ev.OffersReceived(tuple(group)))


def _launch_all(leader: Leader, offers: list[bytes]) -> None:
    """Offer until there is a launch on each agent: what is declined meanwhile is offered again."""
    for _ in range(ROUNDS_MAX):
        used = {launch.agent_id for launch in leader.catalog.launches.values()}
        left = [data for i, data in enumerate(offers) if _agent_id(i) not in used]
        if not left:
            return
        leader.tick()
        _offer_all(leader, left)
    raise SystemExit(f"only {len(leader.catalog.launches)} of {AGENTS} were launched")


@functools.cache
def _agent_id(i: int) -> str:
    return str(offer(i)["agent_id"]["value"])


def _updates(leader: Leader) -> list[bytes]:
    return [
        json.dumps(
            {
                "task_id": {"value": launch.task_id},
                "agent_id": {"value": launch.agent_id},
                "executor_id": {"value": launch.task_id},
                "state": state,
                "source": "SOURCE_EXECUTOR",
                "uuid": "AAAAAAAAQACAAAAAAAAAAA==",
            }
        ).encode()
        for state in ("TASK_STARTING", "TASK_RUNNING")
        for launch in leader.catalog.launches.values()
    ]


def _update_all(leader: Leader, updates: Iterable[bytes]) -> None:
    for data in updates:
        leader.do(ev.TaskUpdated(status_from_mesos(json.loads(data))))


def _heartbeats(leader: Leader) -> list[bytes]:
    return [
        encode(
            Heartbeat(
                cluster=leader.catalog.cluster, slot_id=launch.slot_id, launch_id=launch.launch_id, incarnation=1,
                secret=launch.secret, sequence=leader.now_ms, whole=launch.launch_id not in leader.fleet.executors,
                epoch_seen=1, assignment_version=leader.fleet.executors[launch.launch_id].heartbeat.assignment_version
                if launch.launch_id in leader.fleet.executors else 0,
                host=launch.hostname, port=launch.port, socket_path="", abstract_socket="", boot_id="b", pid=1,
                capacity_bytes=MEM_BYTES, used_bytes=0, lent_bytes=0,
            )
        )
        for launch in leader.catalog.launches.values()
    ]  # fmt: skip


def _beat_all(leader: Leader, messages: Iterable[bytes]) -> None:
    for data in messages:
        leader.do(ev.HeartbeatReceived(decode_heartbeat(data), 1))
    assert len(leader.fleet.executors) == AGENTS


if __name__ == "__main__":
    import dataclasses

    print(json.dumps([dataclasses.asdict(result) for result in measure()]))

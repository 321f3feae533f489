"""Maintenance: machines with a window, inverse offers for what is there, machines that are down.

Theory of operation. A machine is a (hostname, ip), with all agents there. In the schedule it is draining: offers of its agents
carry its `unavailability`, and each framework that has or is offered something there holds an inverse offer, one for each agent,
which comes again when its answer's filter has ended, whatever the answer was. To accept is only a promise. An operator's DOWN
removes the agents, which end; UP lets them register again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from stoker.mesos.embedded.core.allocator import filter_ms
from stoker.mesos.embedded.core.calls import Answer
from stoker.mesos.embedded.core.codec import Message
from stoker.mesos.embedded.core.records import AgentRecord
from stoker.mesos.embedded.core.values import AgentSpec

if TYPE_CHECKING:
    from stoker.mesos.embedded.core.master import Master

DONE = Answer(200)

Machine: TypeAlias = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Machines:
    """What a registry holds: the windows as they were given, and the machines that are down."""

    windows: tuple[Message, ...] = ()
    down: frozenset[Machine] = frozenset()


class InverseOffer(NamedTuple):
    """A request to leave an agent."""

    inverse_offer_id: str
    framework_id: str
    agent_id: str


@dataclass(slots=True)
class _Answered:
    """A framework's last answer for an agent, and until when it is not asked again."""

    status: str
    wall_ms: int
    until_ms: int


@dataclass(slots=True)
class _Asked:
    """Who holds an inverse offer for an agent, and who has answered."""

    held: dict[str, InverseOffer] = field(default_factory=dict)
    answered: dict[str, _Answered] = field(default_factory=dict)


class Maintenance:
    """The schedule of one master, and what follows from it."""

    def __init__(self, master: Master, kept: Machines) -> None:
        self._master = master
        self._windows = kept.windows
        self._down = set(kept.down)
        self._planned = _by_machine(kept.windows)
        self._asked: dict[str, _Asked] = {}
        self._offers: dict[str, InverseOffer] = {}

    def kept(self) -> Machines:
        return Machines(self._windows, frozenset(self._down))

    def is_down(self, spec: AgentSpec) -> bool:
        return machine_of(spec) in self._down

    def unavailability(self, spec: AgentSpec) -> Message | None:
        """Return the window of an agent's machine."""
        return self._planned.get(machine_of(spec))

    # What operators do.

    def update_schedule(self, schedule: Message, now_ms: int) -> Answer:
        """Replace the schedule; offers of machines whose window changes are rescinded and made again."""
        windows = tuple(schedule.get("windows", ()))
        error = self._schedule_error(windows)
        if error:
            return Answer(400, error)
        before, self._planned = self._planned, _by_machine(windows)
        self._windows = windows
        for record in list(self._master.agents.values()):
            machine = machine_of(record.spec)
            if before.get(machine) != self._planned.get(machine):
                self._master.rescind_offers(record, now_ms)
                self._rescind(record.agent_id)
        self._master.allocate(now_ms)
        return DONE

    def start(self, machine_ids: Sequence[Message], now_ms: int) -> Answer:
        """Take machines down: their agents are removed and end."""
        machines = [_machine(item) for item in machine_ids]
        for machine in machines:
            if machine not in self._planned:
                return Answer(400, f"Machine '{_text(machine)}' is not part of a maintenance schedule")
            if machine in self._down:
                text = f"Machine '{_text(machine)}' is not in DRAINING mode and cannot be brought down"
                return Answer(400, text)
        self._down.update(machines)
        for record in [r for r in self._master.agents.values() if machine_of(r.spec) in machines]:
            if record.is_connected:
                record.port.shut_down("Operator initiated 'Machine DOWN'", now_ms)
            self._master.registry.remove(record.agent_id, "Operator initiated 'Machine DOWN'", now_ms)
        return DONE

    def stop(self, machine_ids: Sequence[Message], now_ms: int) -> Answer:
        """Bring machines up again; they leave the schedule."""
        machines = [_machine(item) for item in machine_ids]
        for machine in machines:
            if machine not in self._down:
                return Answer(400, f"Machine '{_text(machine)}' is not in DOWN mode and cannot be brought up")
        self._down.difference_update(machines)
        windows = []
        for window in self._windows:
            left = [item for item in window["machine_ids"] if _machine(item) not in machines]
            if left:
                windows.append({**window, "machine_ids": left})
        self._windows, self._planned = tuple(windows), _by_machine(windows)
        return DONE

    def schedule(self) -> Message:
        """Return the body of GET_MAINTENANCE_SCHEDULE."""
        return {"schedule": {"windows": list(self._windows)} if self._windows else {}}

    def status(self) -> Message:
        """Return the body of GET_MAINTENANCE_STATUS."""
        draining: list[Message] = []
        for machine in self._planned:
            if machine not in self._down:
                entry: Message = {"id": _message(machine)}
                statuses = self._statuses(machine)
                if statuses:
                    entry["statuses"] = statuses
                draining.append(entry)
        status: Message = {}
        if draining:
            status["draining_machines"] = draining
        if self._down:
            status["down_machines"] = [_message(machine) for machine in sorted(self._down)]
        return {"status": status}

    # Inverse offers.

    def take_answer(self, framework_id: str, status: str, body: Message, now_ms: int) -> None:
        """Take a framework's ACCEPT or DECLINE of inverse offers; unknown ones are ignored."""
        master = self._master
        settings = master.settings
        hidden_ms = max(filter_ms(body, settings.default_refuse_ms), settings.allocation_interval_ms)
        for item in body.get("inverse_offer_ids", ()):
            offer = self._offers.get(item["value"])
            if offer is not None and offer.framework_id == framework_id:
                del self._offers[offer.inverse_offer_id]
                asked = self._asked[offer.agent_id]
                del asked.held[framework_id]
                answered = _Answered(status, master.wall_ms(now_ms), now_ms + hidden_ms)
                asked.answered[framework_id] = answered

    def allocate(self, now_ms: int) -> None:
        """Ask the frameworks that have something on a draining machine: one INVERSE_OFFERS event each."""
        if not self._planned:
            return
        by_framework: dict[str, list[Message]] = {}
        for record in self._master.agents.values():
            unavailability = self.unavailability(record.spec)
            if unavailability is None or not record.is_connected:
                continue
            for framework_id in self._concerned(record):
                if self._may_ask(record.agent_id, framework_id, now_ms):
                    message = self._ask(record, framework_id, unavailability)
                    by_framework.setdefault(framework_id, []).append(message)
        for framework_id, offers in by_framework.items():
            body = {"inverse_offers": offers}
            stream = self._master.frameworks[framework_id].stream
            self._master.out.send(stream, {"type": "INVERSE_OFFERS", "inverse_offers": body})

    def agent_removed(self, record: AgentRecord) -> None:
        """Forget an agent; who was asked to leave it is told so."""
        self._rescind(record.agent_id)

    def framework_away(self, framework_id: str) -> None:
        """Forget what a framework without a stream holds; it is asked again when it is back."""
        for offer in [offer for offer in self._offers.values() if offer.framework_id == framework_id]:
            del self._offers[offer.inverse_offer_id]
            del self._asked[offer.agent_id].held[framework_id]

    def framework_removed(self, framework_id: str) -> None:
        """Forget a framework and its answers."""
        self.framework_away(framework_id)
        for asked in self._asked.values():
            asked.answered.pop(framework_id, None)

    def _concerned(self, record: AgentRecord) -> list[str]:
        """Return the connected frameworks that have or are offered something on an agent."""
        offered = (offer.grant.framework_id for offer in record.offers.values())
        owners = (owner for owner, _ in (*record.tasks, *record.executors))
        frameworks = self._master.frameworks
        return [name for name in dict.fromkeys((*owners, *offered)) if frameworks[name].connected]

    def _may_ask(self, agent_id: str, framework_id: str, now_ms: int) -> bool:
        asked = self._asked.get(agent_id)
        if asked is None:
            return True
        answered = asked.answered.get(framework_id)
        return framework_id not in asked.held and (answered is None or answered.until_ms <= now_ms)

    def _ask(self, record: AgentRecord, framework_id: str, unavailability: Message) -> Message:
        spec = record.spec
        offer = InverseOffer(self._master.next_offer_id(), framework_id, record.agent_id)
        self._offers[offer.inverse_offer_id] = offer
        self._asked.setdefault(record.agent_id, _Asked()).held[framework_id] = offer
        address = {"hostname": spec.hostname, "ip": spec.ip, "port": spec.port}
        return {
            "id": {"value": offer.inverse_offer_id},
            "url": {"scheme": "http", "address": address, "path": f"/slave({spec.number})"},
            "framework_id": {"value": framework_id},
            "agent_id": {"value": record.agent_id},
            "unavailability": unavailability,
        }

    def _rescind(self, agent_id: str) -> None:
        asked = self._asked.pop(agent_id, None)
        for offer in asked.held.values() if asked else ():
            del self._offers[offer.inverse_offer_id]
            body = {"inverse_offer_id": {"value": offer.inverse_offer_id}}
            stream = self._master.frameworks[offer.framework_id].stream
            self._master.out.send(stream, {"type": "RESCIND_INVERSE_OFFER", "rescind_inverse_offer": body})

    def _statuses(self, machine: Machine) -> list[Message]:
        found = []
        for record in self._master.agents.values():
            asked = self._asked.get(record.agent_id)
            if asked is not None and machine_of(record.spec) == machine:
                for framework_id, answered in asked.answered.items():
                    timestamp = {"nanoseconds": answered.wall_ms * 1_000_000}
                    owner = {"value": framework_id}
                    found.append({"status": answered.status, "framework_id": owner, "timestamp": timestamp})
        return found

    def _schedule_error(self, windows: Sequence[Message]) -> str | None:
        seen: set[Machine] = set()
        for window in windows:
            if not window.get("machine_ids"):
                return "List of machines in the maintenance window is empty"
            if window["unavailability"].get("duration", {}).get("nanoseconds", 0) < 0:
                return "Unavailability 'duration' is negative"
            for item in window["machine_ids"]:
                machine = _machine(item)
                if machine == ("", ""):
                    return "Both 'hostname' and 'ip' for a machine are empty"
                if machine in seen:
                    return f"Machine '{_text(machine)}' appears more than once in the schedule"
                seen.add(machine)
        missing = sorted(self._down - seen)
        if missing:
            return f"Machine '{_text(missing[0])}' is deactivated and cannot be removed from the schedule"
        return None


def machine_of(spec: AgentSpec) -> Machine:
    """Return the machine that an agent is on."""
    return spec.hostname.lower(), spec.ip


def _machine(message: Message) -> Machine:
    return str(message.get("hostname", "")).lower(), str(message.get("ip", ""))


def _message(machine: Machine) -> Message:
    return {key: value for key, value in zip(("hostname", "ip"), machine, strict=True) if value}


def _text(machine: Machine) -> str:
    return " ".join(part for part in machine if part)


def _by_machine(windows: Sequence[Message]) -> dict[Machine, Message]:
    return {_machine(item): window["unavailability"] for window in windows for item in window["machine_ids"]}

"""Recordings of a real Mesos as data: one line of a transcript is one `Entry`, in the order in which they happened.

What the agents of a recording had is read from the first offers in it, so that a stand-in is configured alike.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

TRANSCRIPTS = Path(__file__).parents[2] / "data" / "mesos-transcripts"

Message = dict[str, Any]

_OFFERED_AT_ONCE = ("SUBSCRIBE", "REVIVE")


@dataclass(frozen=True)
class Entry:
    """One line: `index` counts from 0; `http` and `body` are {} and None where the line has none."""

    index: int
    t_ms: int
    who: str
    kind: str
    name: str = ""
    which: str = ""
    http: Message = field(default_factory=dict)
    why: str = ""
    body: Any = None

    @property
    def side(self) -> str:
        """Whose conversation it belongs to: a scheduler's, an executor's or an operator's."""
        if self.who in ("executor", "agent"):
            return "executor"
        is_operator = self.who == "operator" or self.name in ("", "http", "operator-api")
        return "operator" if is_operator else "scheduler"

    @property
    def key(self) -> tuple[str, str]:
        return self.side, "" if self.side == "operator" else self.name

    @property
    def text(self) -> str:
        """The words of a note."""
        return str(self.body.get("text", "")) if isinstance(self.body, dict) else ""


class AgentNeeds(NamedTuple):
    """What an agent of a recording offered when it was whole."""

    cpus: float
    mem_mib: float
    disk_mib: float
    ports: tuple[int, int]
    attributes: str


class Recording(NamedTuple):
    name: str
    entries: tuple[Entry, ...]

    def agents(self) -> list[AgentNeeds]:
        """Return what the agents had, in the order of their ports, which no two share."""
        found: dict[str, AgentNeeds] = {}
        for entry in self.entries:
            if entry.kind == "event" and entry.body.get("type") == "OFFERS":
                for offer in entry.body["offers"]["offers"]:
                    needs = _needs(offer)
                    if needs is not None:
                        found.setdefault(offer["agent_id"]["value"], needs)
        result: list[AgentNeeds] = []
        for needs in sorted(found.values(), key=lambda item: (item.ports[0], -item.ports[1])):
            if (
                not result or needs.ports[0] > result[-1].ports[1]
            ):  # else it is the same agent under another id
                result.append(needs)
        return result

    def refused(self) -> frozenset[int]:
        """Return the schedulers' calls that nobody was there to take."""
        pairs = zip(self.entries, self.entries[1:], strict=False)
        return frozenset(
            call.index
            for call, after in pairs
            if call.kind == "call" and after.who == "scheduler" and after.kind == "connect"
        )

    def tick_phase_ms(self) -> int | None:
        """Return when in each second the recorded allocator ticked; None if no offer waited for it."""
        asked_ms = -1000
        for entry in self.entries:
            if (
                entry.kind == "call"
                and isinstance(entry.body, dict)
                and entry.body.get("type") in _OFFERED_AT_ONCE
            ):
                asked_ms = entry.t_ms
            is_offers = entry.kind == "event" and entry.body.get("type") == "OFFERS"
            if is_offers and entry.t_ms - asked_ms > 100:
                return entry.t_ms % 1000
        return None


def load(name: str) -> Recording:
    """Return the transcript whose file is `name`.jsonl."""
    with (TRANSCRIPTS / f"{name}.jsonl").open() as file:
        lines = [json.loads(line) for line in file]
    fields = ("t_ms", "who", "kind", "name", "which", "http", "why", "body")
    entries = (
        Entry(index, **{key: line[key] for key in fields if line.get(key) is not None})
        for index, line in enumerate(lines)
    )
    return Recording(name, tuple(entries))


def _needs(offer: Message) -> AgentNeeds | None:
    """Return what a whole agent offers; None if something of it is missing."""
    amounts: dict[str, float] = {}
    ports: list[Message] = []
    for resource in offer["resources"]:
        if resource["name"] == "ports":
            ports += resource["ranges"]["range"]
        else:
            amounts[resource["name"]] = amounts.get(resource["name"], 0) + resource["scalar"]["value"]
    if len(ports) != 1 or not {"cpus", "mem", "disk"} <= amounts.keys():
        return None
    attributes = ";".join(
        f"{item['name']}:{item['text']['value'] if 'text' in item else item['scalar']['value']:}"
        for item in offer.get("attributes", ())
    )
    span = (ports[0]["begin"], ports[0]["end"])
    return AgentNeeds(amounts["cpus"], amounts["mem"], amounts["disk"], span, attributes)

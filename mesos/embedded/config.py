"""What an embedded Mesos is told: checked once, all complaints in one line each, before anything is opened or written."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from stoker.mesos.embedded.core.codec import Message
from stoker.mesos.embedded.core.resources import Span
from stoker.mesos.embedded.core.values import Settings

AGENTS_MAX = 1000
PORT_FIRST = 31_000  # as a real agent's default range
PORTS_PER_AGENT = 1000  # less where that many agents would not fit below 65536

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgtp]?)(i?)b?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}


class ConfigError(Exception):
    """The embedded Mesos cannot run as it was told; the text says what to change."""


@dataclass(frozen=True, slots=True)
class Config:
    """Everything `run` takes. Resources are those of each agent; `ports` are the first agent's, the others' follow."""

    work_dir: Path
    host: str = "127.0.0.1"
    port: int = 5050
    agents: int = 1
    cpus: float = 4.0
    mem_bytes: int = 4 * 2**30
    disk_bytes: int = 10 * 2**30
    ports: Span | None = None
    attributes: tuple[str, ...] = ()
    hostnames: tuple[str, ...] = ()
    settings: Settings = field(default_factory=Settings)

    def __post_init__(self) -> None:
        if not 1 <= self.agents <= AGENTS_MAX:
            raise ConfigError(f"agents is {self.agents}: allowed are 1 to {AGENTS_MAX}")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port is {self.port}: allowed are 0 (any free one) to 65535")
        if not 0.01 <= self.cpus <= 1_000_000:
            raise ConfigError(f"cpus is {self.cpus:g}: allowed are 0.01 to 1000000")
        if self.mem_bytes < 32 * 2**20 or self.disk_bytes < 0:
            raise ConfigError("mem must be at least 32MiB, disk at least 0")
        first, last = self.agent_ports(0)
        if not 1 <= first <= last or self.agent_ports(self.agents - 1)[1] > 65535:
            text = f"ports {first}-{last} for each of {self.agents} agents, one range after the other,"
            raise ConfigError(f"{text} must lie between 1 and 65535")
        if self.hostnames and len(self.hostnames) != self.agents:
            raise ConfigError(f"{len(self.hostnames)} hostnames for {self.agents} agents: give one for each")
        if len(self.attributes) not in (0, 1, self.agents):
            text = f"{len(self.attributes)} sets of attributes for {self.agents} agents"
            raise ConfigError(f"{text}: give one for all, or one for each")
        for index in range(self.agents):
            self.agent_attributes(index)

    def agent_ports(self, index: int) -> Span:
        """Return the ports of agent `index`; no two agents share one."""
        width = min(PORTS_PER_AGENT, (65_536 - PORT_FIRST) // self.agents)
        first, last = self.ports or (PORT_FIRST, PORT_FIRST + width - 1)
        step = (last - first + 1) * index
        return first + step, last + step

    def agent_hostname(self, index: int) -> str:
        """Return the agent's name; by default it is an address of its own on the loopback interface."""
        return self.hostnames[index] if self.hostnames else f"127.0.{(10 + index) >> 8}.{(10 + index) & 255}"

    def agent_attributes(self, index: int) -> tuple[Message, ...]:
        if not self.attributes:
            return ()
        return parse_attributes(self.attributes[index if len(self.attributes) > 1 else 0])


def parse_size(text: str) -> int:
    """Return the bytes of `text`, such as 512MiB, 10GB, 1048576.

    :raises ConfigError: no size.
    """
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise ConfigError(f"{text!r} is no size: write a number and a unit, such as 512MiB or 4GiB")
    number, unit, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** _POWERS[unit.lower()])


def parse_ports(text: str) -> Span:
    """Return the range of `text`, such as 31000-31999.

    :raises ConfigError: no range.
    """
    match = re.fullmatch(r"(\d{1,5})-(\d{1,5})", text.strip())
    if not match:
        raise ConfigError(f"{text!r} is no range of ports: write it as 31000-31999")
    return int(match[1]), int(match[2])


def parse_attributes(text: str) -> tuple[Message, ...]:
    """Return the attributes of `text`, such as rack:r1;zone:z1;slot:3; numbers become SCALAR, all else TEXT.

    :raises ConfigError: a part without a name or value.
    """
    result: list[Message] = []
    for part in filter(None, (item.strip() for item in text.split(";"))):
        name, colon, value = part.partition(":")
        if not colon or not name or not value:
            raise ConfigError(f"attribute {part!r} must be NAME:VALUE; several are separated by ';'")
        if re.fullmatch(r"-?\d+(\.\d+)?", value):
            result.append({"name": name, "type": "SCALAR", "scalar": {"value": float(value)}})
        else:
            result.append({"name": name, "type": "TEXT", "text": {"value": value}})
    return tuple(result)

"""What an embedded Mesos is told: checked once, all complaints in one line each, before anything is opened or written."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from stoker.mesos.embedded.core.codec import Message
from stoker.mesos.embedded.core.reservations import ResourceError
from stoker.mesos.embedded.core.resources import Resources, Span, parse_resources
from stoker.mesos.embedded.core.values import Settings
from stoker.zk.paths import ZkUrl

AGENTS_MAX = 1000
MASTERS_MAX = 9
PORT_FIRST = 31_000  # as a real agent's default range
PORTS_PER_AGENT = 1000  # less where that many agents would not fit below 65536

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgtp]?)(i?)b?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}


class ConfigError(Exception):
    """The embedded Mesos cannot run as it was told; the text says what to change."""


@dataclass(frozen=True, slots=True)
class Config:
    """Everything `run` takes. Resources are those of each agent; `ports` are the first agent's, the others' follow.

    `masters` more than one need `zk`; `port` is the first one's. `domains` are the masters', then one for all agents or one each.
    """

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
    masters: int = 1
    zk: ZkUrl | None = None
    zk_session_timeout_ms: int = 10_000
    credentials: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    domains: tuple[str, ...] = ()
    keeps_registry: bool = False
    recovers: bool = True
    has_faults: bool = False
    fetcher_cache_bytes: int = 2 * 2**30
    resources: tuple[str, ...] = ()

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
        self._check_masters()
        self._check_lists()

    def _check_masters(self) -> None:
        if not 1 <= self.masters <= MASTERS_MAX:
            raise ConfigError(f"masters is {self.masters}: allowed are 1 to {MASTERS_MAX}")
        if self.masters > 1 and self.zk is None:
            raise ConfigError(f"{self.masters} masters find their leader in ZooKeeper: give --zk as well")
        if not 100 <= self.zk_session_timeout_ms <= 3_600_000:
            raise ConfigError("the session in ZooKeeper must be 0.1 to 3600 seconds")

    def _check_lists(self) -> None:
        if len(self.domains) not in (0, 1, 2, self.agents + 1):
            text = f"{len(self.domains)} fault domains for the master and {self.agents} agents"
            raise ConfigError(
                f"{text}: give one for all, the master's and one for all agents, or one for each"
            )
        for text in self.domains:
            parse_domain(text)
        if len(self.resources) not in (0, 1, self.agents):
            text = f"{len(self.resources)} sets of resources for {self.agents} agents"
            raise ConfigError(f"{text}: give one for all, or one for each")
        if self.hostnames and len(self.hostnames) != self.agents:
            raise ConfigError(f"{len(self.hostnames)} hostnames for {self.agents} agents: give one for each")
        if len(self.attributes) not in (0, 1, self.agents):
            text = f"{len(self.attributes)} sets of attributes for {self.agents} agents"
            raise ConfigError(f"{text}: give one for all, or one for each")
        for index in range(self.agents):
            self.agent_attributes(index)
            try:
                self.agent_resources(index)
            except ResourceError as error:
                raise ConfigError(f"resources: {error}") from error

    def agent_ports(self, index: int) -> Span:
        """Return the ports of agent `index`; no two agents share one."""
        width = min(PORTS_PER_AGENT, (65_536 - PORT_FIRST) // self.agents)
        first, last = self.ports or (PORT_FIRST, PORT_FIRST + width - 1)
        step = (last - first + 1) * index
        return first + step, last + step

    def agent_resources(self, index: int, more: str = "") -> Resources:
        """Return what agent `index` has; what `resources`, and then `more`, names comes in the place of what stands for itself.

        :raises ResourceError: no list of resources.
        """
        first, last = self.agent_ports(index)
        parts = [f"cpus:{self.cpus}", f"mem:{self.mem_bytes // 2**20}", f"disk:{self.disk_bytes // 2**20}"]
        parts.append(f"ports:[{first}-{last}]")
        given = self.resources[index if len(self.resources) > 1 else 0] if self.resources else ""
        for text in (given, more):
            named = [part.strip() for part in text.split(";") if part.strip()]
            names = {_resource_name(part) for part in named}
            parts = [part for part in parts if _resource_name(part) not in names] + named
        return parse_resources(";".join(part for part in parts if part.partition(":")[2] != "0"))

    def agent_listen_ip(self, index: int) -> str:
        """Return the address an agent listens on: its hostname if that is an IPv4 address, else the master's."""
        name = self.agent_hostname(index)
        parts = name.split(".")
        is_ip = len(parts) == 4 and all(part.isdigit() and int(part) < 256 for part in parts)
        return name if is_ip else self.host

    def agent_hostname(self, index: int) -> str:
        """Return the agent's name; by default it is an address of its own on the loopback interface."""
        return self.hostnames[index] if self.hostnames else f"127.0.{(10 + index) >> 8}.{(10 + index) & 255}"

    def master_domain(self) -> Message | None:
        return parse_domain(self.domains[0]) if self.domains else None

    def agent_domain(self, index: int) -> Message | None:
        if not self.domains:
            return None
        return parse_domain(self.domains[min(index + 1, len(self.domains) - 1)])

    def agent_attributes(self, index: int) -> tuple[Message, ...]:
        if not self.attributes:
            return ()
        return parse_attributes(self.attributes[index if len(self.attributes) > 1 else 0])


def _resource_name(part: str) -> str:
    return part.partition(":")[0].strip()


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


def parse_domain(text: str) -> Message:
    """Return the DomainInfo of `text`, REGION/ZONE.

    :raises ConfigError: it has no such form.
    """
    region, slash, zone = text.partition("/")
    if not slash or not region or not zone or "/" in zone:
        raise ConfigError(f"{text!r} is no fault domain: write it as REGION/ZONE")
    return {"fault_domain": {"region": {"name": region}, "zone": {"name": zone}}}


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

"""Values that the machines of the embedded Mesos take in and give out."""

from __future__ import annotations

import ipaddress
import uuid
from dataclasses import dataclass, field
from typing import TypeAlias

from stoker.mesos.embedded.core.codec import Message
from stoker.mesos.embedded.core.resources import Resources

VERSION = "1.12.0"
AGENT_CAPABILITIES = (
    "MULTI_ROLE",
    "HIERARCHICAL_ROLE",
    "RESERVATION_REFINEMENT",
    "RESOURCE_PROVIDER",
    "RESIZE_VOLUME",
    "AGENT_OPERATION_FEEDBACK",
    "AGENT_DRAINING",
    "TASK_RESOURCE_LIMITS",
)
MASTER_CAPABILITIES = ("AGENT_UPDATE", "AGENT_DRAINING", "QUOTA_V2")
EXECUTOR_REREGISTRATION_TIMEOUT_MS_MAX = 15_000


@dataclass(frozen=True, slots=True)
class Settings:
    """Timings and bounds; the defaults are those of Mesos, tests shorten them. All times in milliseconds."""

    allocation_interval_ms: int = 1000
    default_refuse_ms: int = 5000
    heartbeat_interval_ms: int = 15_000
    executor_heartbeat_interval_ms: int = 1_800_000
    update_retry_ms: int = 10_000
    update_retry_ms_max: int = 600_000
    executor_registration_timeout_ms: int = 60_000
    executor_shutdown_grace_period_ms: int = 5000
    recovery_timeout_ms: int = 900_000
    subscription_backoff_ms_max: int = 2000
    agent_ping_timeout_ms: int = 15_000
    agent_ping_timeouts_max: int = 5
    agent_reregister_timeout_ms: int = 600_000
    agent_recovery_ms: int = 100
    reap_interval_ms: int = 1500
    registration_backoff_ms: int = 1000
    executor_reregistration_timeout_ms: int = 2000
    reconfiguration_policy: str = "equal"
    removed_agents_max: int = 102_400
    unreachable_tasks_max: int = 1000
    completed_frameworks_max: int = 50
    completed_tasks_max: int = 200
    path: str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    offer_timeout_ms: int | None = None
    command_executor: tuple[str, ...] = ("mesos-executor",)

    def __post_init__(self) -> None:
        assert 0 < self.update_retry_ms <= self.update_retry_ms_max
        assert 0 <= self.executor_reregistration_timeout_ms <= EXECUTOR_REREGISTRATION_TIMEOUT_MS_MAX
        assert self.agent_ping_timeout_ms > 0 and self.agent_ping_timeouts_max > 0
        assert self.reconfiguration_policy in ("equal", "additive")
        assert self.offer_timeout_ms is None or self.offer_timeout_ms > 0
        assert self.allocation_interval_ms > 0 and self.heartbeat_interval_ms > 0


@dataclass(frozen=True, slots=True)
class MasterSpec:
    """Who the master is: `ip` and `port` are where it listens; `domain` is a DomainInfo."""

    master_id: str
    hostname: str
    ip: str
    port: int
    domain: Message | None = None

    @property
    def endpoint(self) -> str:
        return f"{self.ip}:{self.port}"

    def info(self) -> Message:
        """Return the MasterInfo, as it stands in SUBSCRIBED and in ZooKeeper."""
        info: Message = {
            "id": self.master_id,
            "ip": int.from_bytes(ipaddress.IPv4Address(self.ip).packed, "little"),
            "port": self.port,
            "pid": f"master@{self.endpoint}",
            "hostname": self.hostname,
            "version": VERSION,
            "address": {"hostname": self.hostname, "ip": self.ip, "port": self.port},
            "capabilities": [{"type": name} for name in MASTER_CAPABILITIES],
        }
        return info if self.domain is None else info | {"domain": self.domain}


@dataclass(frozen=True, slots=True)
class AgentSpec:
    """What an agent offers and where it answers; `number` is the N of slave(N), `work_dir` an absolute path.

    `resources` are those it was started with: what was reserved on them since then is the agent's to know.
    """

    agent_id: str
    number: int
    hostname: str
    ip: str
    port: int
    resources: Resources
    work_dir: str
    attributes: tuple[Message, ...] = ()
    domain: Message | None = None

    @property
    def endpoint(self) -> str:
        return f"{self.ip}:{self.port}"

    @property
    def pid(self) -> str:
        return f"slave({self.number})@{self.endpoint}"


@dataclass(frozen=True, slots=True)
class Send:
    """Write one event to a stream."""

    stream: int
    event: Message


@dataclass(frozen=True, slots=True)
class Close:
    """End a stream properly (final chunk); it is not heard of again."""

    stream: int


@dataclass(frozen=True, slots=True)
class Abort:
    """Break a stream off, without a final chunk: the process behind it is gone. It is not heard of again."""

    stream: int


@dataclass(frozen=True, slots=True)
class AgentEnded:
    """An agent's process has ended: its address refuses connections until it is started again."""

    number: int


@dataclass(frozen=True, slots=True)
class AgentNamed:
    """The master gave an agent a (new) id."""

    number: int
    agent_id: str


@dataclass(frozen=True, slots=True)
class StartProcess:
    """Start an executor in its sandbox, as leader of its own session, with exactly this environment.

    `links` are (name in the sandbox, absolute path that it leads to).
    """

    container_id: str
    sandbox: str
    command: Message
    environment: dict[str, str]
    links: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class MakeVolume:
    """Make the directory of a persistent volume, an absolute path; nothing if it is there."""

    path: str


@dataclass(frozen=True, slots=True)
class RemoveVolume:
    """Remove the directory of a persistent volume with all that is in it."""

    path: str


@dataclass(frozen=True, slots=True)
class KillProcess:
    """SIGKILL an executor and all that it started."""

    container_id: str


Output: TypeAlias = (
    Send | Close | Abort | AgentEnded | AgentNamed | StartProcess | KillProcess | MakeVolume | RemoveVolume
)


@dataclass(slots=True)
class Outbox:
    """Outputs of the step at hand, in the order in which they must be done."""

    items: list[Output] = field(default_factory=list)

    def send(self, stream: int | None, event: Message) -> None:
        if stream is not None:
            self.items.append(Send(stream, event))

    def close(self, stream: int | None) -> None:
        if stream is not None:
            self.items.append(Close(stream))

    def abort(self, stream: int | None) -> None:
        if stream is not None:
            self.items.append(Abort(stream))

    def take(self) -> list[Output]:
        items, self.items = self.items, []
        return items


class Ids:
    """Uuids out of a seed and a counter: unlike every other seed's, and the same in every run of one seed."""

    def __init__(self, seed: uuid.UUID) -> None:
        self._seed = seed
        self._count = 0

    def next(self) -> uuid.UUID:
        self._count += 1
        return uuid.uuid5(self._seed, str(self._count))


def fault_domain(domain: Message | None) -> tuple[str | None, str | None]:
    """Return the region and zone of a DomainInfo.

    >>> fault_domain({"fault_domain": {"region": {"name": "r1"}, "zone": {"name": "z1"}}})
    ('r1', 'z1')
    """
    fault = (domain or {}).get("fault_domain", {})
    return fault.get("region", {}).get("name"), fault.get("zone", {}).get("name")


def format_duration(duration_ms: int) -> str:
    """Return `duration_ms` as Mesos writes durations.

    >>> [format_duration(n) for n in (5000, 900_000, 90_000, 250)]
    ['5secs', '15mins', '1.5mins', '250ms']
    """
    for unit_ms, name in ((604_800_000, "weeks"), (86_400_000, "days"), (3_600_000, "hrs"), (60_000, "mins")):
        if duration_ms >= unit_ms:
            return f"{duration_ms / unit_ms:.10g}{name}"
    return f"{duration_ms / 1000:.10g}secs" if duration_ms >= 1000 else f"{duration_ms}ms"

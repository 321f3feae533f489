"""Values that the machines of the embedded Mesos take in and give out."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import TypeAlias

from stoker.mesos.embedded.core.codec import Message
from stoker.mesos.embedded.core.resources import Resources

VERSION = "1.12.0"


@dataclass(frozen=True, slots=True)
class Settings:
    """Timings and bounds; the defaults are those of Mesos, tests shorten them. All times in milliseconds."""

    allocation_interval_ms: int = 1000
    heartbeat_interval_ms: int = 15_000
    executor_heartbeat_interval_ms: int = 1_800_000
    update_retry_ms: int = 10_000
    update_retry_ms_max: int = 600_000
    executor_registration_timeout_ms: int = 60_000
    executor_shutdown_grace_period_ms: int = 5000
    recovery_timeout_ms: int = 900_000
    subscription_backoff_ms_max: int = 2000
    completed_frameworks_max: int = 50
    completed_tasks_max: int = 200
    path: str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

    def __post_init__(self) -> None:
        assert 0 < self.update_retry_ms <= self.update_retry_ms_max
        assert self.allocation_interval_ms > 0 and self.heartbeat_interval_ms > 0


@dataclass(frozen=True, slots=True)
class MasterSpec:
    """Who the master is: `ip` and `port` are where it listens."""

    master_id: str
    hostname: str
    ip: str
    port: int


@dataclass(frozen=True, slots=True)
class AgentSpec:
    """What an agent offers and where it answers; `number` is the N of slave(N), `work_dir` an absolute path."""

    agent_id: str
    number: int
    hostname: str
    ip: str
    port: int
    resources: Resources
    work_dir: str
    attributes: tuple[Message, ...] = ()

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
class StartProcess:
    """Start an executor in its sandbox, as leader of its own session, with exactly this environment."""

    container_id: str
    sandbox: str
    command: Message
    environment: dict[str, str]


@dataclass(frozen=True, slots=True)
class KillProcess:
    """SIGKILL an executor and all that it started."""

    container_id: str


Output: TypeAlias = Send | Close | StartProcess | KillProcess


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


def format_duration(duration_ms: int) -> str:
    """Return `duration_ms` as Mesos writes durations.

    >>> [format_duration(n) for n in (5000, 900_000, 90_000, 250)]
    ['5secs', '15mins', '1.5mins', '250ms']
    """
    for unit_ms, name in ((604_800_000, "weeks"), (86_400_000, "days"), (3_600_000, "hrs"), (60_000, "mins")):
        if duration_ms >= unit_ms:
            return f"{duration_ms / unit_ms:.10g}{name}"
    return f"{duration_ms / 1000:.10g}secs" if duration_ms >= 1000 else f"{duration_ms}ms"

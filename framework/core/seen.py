"""What a leadership sees of executors, launches, agents and listings: values, kept and changed by `Fleet` alone."""

from __future__ import annotations

from dataclasses import dataclass, field

from stoker.executor.messages import Heartbeat, Residency
from stoker.framework.core.catalog import Launch
from stoker.framework.core.silence import Doubt
from stoker.framework.model import Manifested


@dataclass(slots=True)
class Held:
    """What one executor holds of one dataset generation. `residency` has the counts, `bitmap` the full blocks."""

    residency: Residency
    bitmap: bytearray
    unfit_since_ms: int | None = None


@dataclass(slots=True)
class ExecutorSeen:
    """An executor as its heartbeats tell. `needs_whole`: a heartbeat was missed, `Held.bitmap`s may be behind."""

    heartbeat: Heartbeat  # the newest, without its datasets
    first_ms: int
    heard_ms: int
    needs_whole: bool
    datasets: dict[tuple[int, int], Held] = field(default_factory=dict)  # by (dataset id, generation)


@dataclass(slots=True)
class LaunchSeen:
    """A launch of the catalog: since when it is known in this leadership, and what Mesos said of its task."""

    launch: Launch
    since_ms: int
    is_inherited: bool  # of an earlier leadership
    task_state: str = ""
    task_reason: str = ""
    is_moved: bool = False  # Mesos drains its agent
    doubt: Doubt | None = None  # its executor is silent


@dataclass(slots=True)
class BackOff:
    until_ms: int = 0
    delay_ms: int = 0


@dataclass(slots=True)
class Ending:
    """A task that is to die: KILL is repeated until Mesos says it did."""

    agent_id: str
    next_ms: int
    tries: int
    since_ms: int


@dataclass(slots=True)
class AgentSeen:
    agent_id: str
    hostname: str
    attributes: tuple[tuple[str, str], ...]


@dataclass(slots=True)
class ListingSeen:
    attempt: int
    clear_version: int = 0  # see Listed
    files: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Listed:
    """A new dataset's listing that succeeded and is not journaled yet; see publishing.py.

    `clear_version`: an assignment of this epoch with this version, or a newer one, names no earlier dataset of the name;
    0: there was none.
    """

    attempt: int
    clear_version: int
    manifested: Manifested

"""Events: facts that reached us. Past tense; each carries its id and the time it was taken in.

`now_ms` is this process' CLOCK_BOOTTIME in milliseconds: only differences mean something. `wall_ms` is Unix time: a
label for people, never compared. Both are set by the loop when it takes the event, so decisions have no clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stoker.executor.messages import Heartbeat
from stoker.framework.model import (
    FleetSpec,
    InverseOffer,
    Manifested,
    Offer,
    OperationStatus,
    Selection,
    TaskStatus,
)


@dataclass(frozen=True, slots=True)
class Stamp:
    event_id: int
    now_ms: int
    wall_ms: int


# --- from Mesos


@dataclass(frozen=True, slots=True)
class Subscribed:
    """The master took us in; offers of an earlier stream are gone."""

    framework_id: str
    master_id: str


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The stream to the master ended; its offers are gone."""


@dataclass(frozen=True, slots=True)
class OffersReceived:
    offers: tuple[Offer, ...]


@dataclass(frozen=True, slots=True)
class OfferRescinded:
    offer_id: str


@dataclass(frozen=True, slots=True)
class TaskUpdated:
    status: TaskStatus


@dataclass(frozen=True, slots=True)
class ExecutorEnded:
    """Mesos' FAILURE with an executor: `wait_status` is the raw waitpid status."""

    agent_id: str
    executor_id: str
    wait_status: int


@dataclass(frozen=True, slots=True)
class AgentRemoved:
    agent_id: str


@dataclass(frozen=True, slots=True)
class FrameworkRemoved:
    """The master will not have our framework id any more, and the operator lets a new one take its place."""


@dataclass(frozen=True, slots=True)
class TornDown:
    """Mesos took the TEARDOWN, or knows the framework no more."""


@dataclass(frozen=True, slots=True)
class OperationUpdated:
    """What became of a RESERVE, CREATE, DESTROY or UNRESERVE of ours."""

    status: OperationStatus


@dataclass(frozen=True, slots=True)
class InverseOffersReceived:
    offers: tuple[InverseOffer, ...]


@dataclass(frozen=True, slots=True)
class InverseOfferRescinded:
    offer_id: str


# --- from executors and children


@dataclass(frozen=True, slots=True)
class HeartbeatReceived:
    heartbeat: Heartbeat
    reply_id: int


@dataclass(frozen=True, slots=True)
class ExecutorProbed:
    """What came of a ProbeExecutor. `is_there`: the machine answered, be it with a refusal."""

    launch_id: int
    is_there: bool


@dataclass(frozen=True, slots=True)
class ListingProgressed:
    dataset_id: int
    attempt: int
    files: int
    bytes: int


@dataclass(frozen=True, slots=True)
class ListingFinished:
    """`manifested` or `error`. `attempt` is that of the StartListing it answers: a stale one is dropped."""

    dataset_id: int
    attempt: int
    manifested: Manifested | None
    error: str = ""


# --- from users (each is answered through its reply_id, once durable)


@dataclass(frozen=True, slots=True)
class DatasetRequested:
    reply_id: int
    name: str
    source: str
    options: Mapping[str, str]
    replicas: int
    policy: str
    tier: str
    priority: int


@dataclass(frozen=True, slots=True)
class DatasetChangeRequested:
    """PATCH: None leaves a field as it is."""

    reply_id: int
    name: str
    replicas: int | None
    policy: str | None
    priority: int | None


@dataclass(frozen=True, slots=True)
class RefreshRequested:
    """List the source again: unchanged files keep their offsets in the next version."""

    reply_id: int
    name: str


@dataclass(frozen=True, slots=True)
class DatasetRemovalRequested:
    reply_id: int
    name: str


@dataclass(frozen=True, slots=True)
class JobRequested:
    """`key`: the caller's Idempotency-Key, empty without one. `fit`: load what fits if not all does.

    `selection` was computed from the manifest beside the loop (None: no such READY dataset then); where the dataset
    has moved on since, the answer is a refusal with the code STALE_SELECTION, and the asker computes it anew.
    """

    reply_id: int
    kind: str
    dataset: str
    paths: tuple[str, ...]
    key: str
    fit: bool
    plan_only: bool
    selection: Selection | None


@dataclass(frozen=True, slots=True)
class DrainRequested:
    """Drain an agent, named by its id or, where only one agent has it, its hostname. `key` as in JobRequested."""

    reply_id: int
    agent: str
    key: str


@dataclass(frozen=True, slots=True)
class DrainUndoRequested:
    """The agent may be used again; what is still on it belongs there again."""

    reply_id: int
    agent: str


@dataclass(frozen=True, slots=True)
class UninstallRequested:
    """End everything that this cluster has on Mesos, and the framework. `keep_volumes`: the volumes stay, with their data."""

    reply_id: int
    keep_volumes: bool


@dataclass(frozen=True, slots=True)
class JobCancelRequested:
    reply_id: int
    job_id: str


@dataclass(frozen=True, slots=True)
class FleetRequested:
    reply_id: int
    spec: FleetSpec


# --- from the loop


@dataclass(frozen=True, slots=True)
class LeadershipBegan:
    """The journal is replayed: state is as promised, nothing is observed yet. `fleet` is used if the journal has none.

    `seed` is secret and random, at least 16 bytes, new for each leadership: launches' secrets are derived from it.
    """

    epoch: int
    fleet: FleetSpec
    cluster: bytes  # a fresh uuid, used if the journal has none
    name: str
    seed: bytes
    master: str = ""  # where this leader finds Mesos


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time went on."""


Event = (
    Subscribed
    | Disconnected
    | OffersReceived
    | OfferRescinded
    | TaskUpdated
    | ExecutorEnded
    | AgentRemoved
    | FrameworkRemoved
    | TornDown
    | OperationUpdated
    | InverseOffersReceived
    | InverseOfferRescinded
    | HeartbeatReceived
    | ExecutorProbed
    | ListingProgressed
    | ListingFinished
    | DatasetRequested
    | DatasetChangeRequested
    | RefreshRequested
    | DatasetRemovalRequested
    | JobRequested
    | JobCancelRequested
    | DrainRequested
    | DrainUndoRequested
    | UninstallRequested
    | FleetRequested
    | LeadershipBegan
    | Ticked
)

"""Entries: decisions, journaled. Past tense. `Catalog.apply(entry)` is the only code that changes promised state.

Entries are values of plain types, so that codec.py can write and read them by name. Adding a field with a default is
free; changing one needs a new entry. Times are Unix milliseconds: labels, never compared.
"""

from __future__ import annotations

from dataclasses import dataclass

from stoker.framework.model import FileError, FleetSpec, Manifested


@dataclass(frozen=True, slots=True)
class ClusterCreated:
    cluster: bytes  # uuid, 16 bytes
    name: str
    wall_ms: int


@dataclass(frozen=True, slots=True)
class EpochBegan:
    epoch: int
    wall_ms: int


@dataclass(frozen=True, slots=True)
class FrameworkRegistered:
    framework_id: str


@dataclass(frozen=True, slots=True)
class FleetSet:
    spec: FleetSpec


@dataclass(frozen=True, slots=True)
class SlotAdded:
    slot_id: int
    mem_bytes: int


@dataclass(frozen=True, slots=True)
class SlotResized:
    """The wanted capacity changed; a running executor of another size is ended and launched anew, one at a time."""

    slot_id: int
    mem_bytes: int


@dataclass(frozen=True, slots=True)
class SlotMarked:
    """Placement uses the slot (`is_in`), or no longer: it had no executor for too long."""

    slot_id: int
    is_in: bool
    reason: str
    wall_ms: int


@dataclass(frozen=True, slots=True)
class SlotRemoved:
    slot_id: int


@dataclass(frozen=True, slots=True)
class LaunchPlanned:
    """Journaled before ACCEPT. `task_id` is also the Mesos executor id; neither is ever used again."""

    launch_id: int
    slot_id: int
    task_id: str
    agent_id: str
    hostname: str
    port: int
    secret: str
    mem_bytes: int
    cpus_milli: int
    epoch: int
    wall_ms: int


@dataclass(frozen=True, slots=True)
class LaunchEnded:
    launch_id: int
    reason: str
    wall_ms: int


@dataclass(frozen=True, slots=True)
class DatasetAdded:
    dataset_id: int
    name: str
    source: str
    options: tuple[tuple[str, str], ...]
    replicas: int
    policy: str
    tier: str
    priority: int
    wall_ms: int


@dataclass(frozen=True, slots=True)
class ListingBegan:
    """A (re-)listing of the source; `attempt` grows with each."""

    dataset_id: int
    attempt: int


@dataclass(frozen=True, slots=True)
class DatasetListed:
    """Version `manifested.version` stands. The manifest's blobs were stored before this entry."""

    dataset_id: int
    manifested: Manifested
    wall_ms: int
    versions_kept: int = 2  # this one and those before it; older ones are forgotten


@dataclass(frozen=True, slots=True)
class ListingFailed:
    dataset_id: int
    error: str


@dataclass(frozen=True, slots=True)
class DatasetChanged:
    dataset_id: int
    replicas: int
    policy: str
    priority: int


@dataclass(frozen=True, slots=True)
class DatasetRemoved:
    dataset_id: int


@dataclass(frozen=True, slots=True)
class WantedSet:
    """The dataset's wanted residency: (included, path prefix), the last that matches decides; "" matches all.

    A new version with equal rules means: try again what failed, drop again what is excluded by a rule.
    """

    dataset_id: int
    wanted_version: int
    rules: tuple[tuple[bool, str], ...]
    block_count: int  # blocks that the rules want, of the version current then


@dataclass(frozen=True, slots=True)
class JobCreated:
    """`body` is a digest of the request, to tell a repeated one from another under the same key."""

    job_id: str
    kind: str
    dataset_id: int
    dataset: str
    paths: tuple[str, ...]
    key: str
    body: str
    fit: bool
    wanted_version: int
    bytes_total: int
    files_total: int
    block_count: int
    wall_ms: int


@dataclass(frozen=True, slots=True)
class JobStarted:
    job_id: str
    wall_ms: int


@dataclass(frozen=True, slots=True)
class JobFinished:
    job_id: str
    state: str
    bytes: int
    files: int
    error_count: int
    errors: tuple[FileError, ...]
    message: str
    wall_ms: int


@dataclass(frozen=True, slots=True)
class JobsForgotten:
    job_ids: tuple[str, ...]


Entry = (
    ClusterCreated
    | EpochBegan
    | FrameworkRegistered
    | FleetSet
    | SlotAdded
    | SlotResized
    | SlotMarked
    | SlotRemoved
    | LaunchPlanned
    | LaunchEnded
    | DatasetAdded
    | ListingBegan
    | DatasetListed
    | ListingFailed
    | DatasetChanged
    | DatasetRemoved
    | WantedSet
    | JobCreated
    | JobStarted
    | JobFinished
    | JobsForgotten
)

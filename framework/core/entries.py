"""Entries: decisions, journaled. Past tense. `Catalog.apply(entry)` is the only code that changes promised state.

Entries are tuples of plain values, which codec.py writes and reads by the fields' places: a new field goes to the end and
has a default; changing, moving or removing one needs a new entry. Times are Unix milliseconds: labels, never compared.
"""

from __future__ import annotations

from typing import NamedTuple

from stoker.framework.model import FileError, FleetSpec, Manifested


class ClusterCreated(NamedTuple):
    cluster: bytes  # uuid, 16 bytes
    name: str
    wall_ms: int


class EpochBegan(NamedTuple):
    epoch: int
    wall_ms: int
    master: str = ""  # where the leader found Mesos


class FrameworkRegistered(NamedTuple):
    framework_id: str


class FleetSet(NamedTuple):
    spec: FleetSpec


class SlotAdded(NamedTuple):
    slot_id: int
    mem_bytes: int


class SlotResized(NamedTuple):
    """The wanted capacity changed; a running executor of another size is ended and launched anew, one at a time."""

    slot_id: int
    mem_bytes: int


class SlotMarked(NamedTuple):
    """Placement uses the slot (`is_in`), or no longer: it had no executor for too long."""

    slot_id: int
    is_in: bool
    reason: str
    wall_ms: int


class SlotRemoved(NamedTuple):
    slot_id: int


class LaunchPlanned(NamedTuple):
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


class LaunchEnded(NamedTuple):
    launch_id: int
    reason: str
    wall_ms: int


class DatasetAdded(NamedTuple):
    dataset_id: int
    name: str
    source: str
    options: tuple[tuple[str, str], ...]
    replicas: int
    policy: str
    tier: str
    priority: int
    wall_ms: int


class ListingBegan(NamedTuple):
    """A (re-)listing of the source; `attempt` grows with each."""

    dataset_id: int
    attempt: int


class DatasetListed(NamedTuple):
    """Version `manifested.version` stands. The manifest's blobs were stored before this entry."""

    dataset_id: int
    manifested: Manifested
    wall_ms: int
    versions_kept: int = 2  # this one and those before it; older ones are forgotten


class ListingFailed(NamedTuple):
    dataset_id: int
    error: str


class DatasetChanged(NamedTuple):
    dataset_id: int
    replicas: int
    policy: str
    priority: int


class DatasetRemoved(NamedTuple):
    dataset_id: int


class WantedSet(NamedTuple):
    """The dataset's wanted residency: (included, path prefix), the last that matches decides; "" matches all.

    A new version with equal rules means: try again what failed, drop again what is excluded by a rule.
    """

    dataset_id: int
    wanted_version: int
    rules: tuple[tuple[bool, str], ...]
    block_count: int  # blocks that the rules want, of the version current then


class JobCreated(NamedTuple):
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


class JobStarted(NamedTuple):
    job_id: str
    wall_ms: int


class JobFinished(NamedTuple):
    job_id: str
    state: str
    bytes: int
    files: int
    error_count: int
    errors: tuple[FileError, ...]
    message: str
    wall_ms: int


class JobsForgotten(NamedTuple):
    job_ids: tuple[str, ...]


class JournalRestored(NamedTuple):
    """A backup was restored, and what was promised after it is forgotten: its ids and addresses are never used again.

    `ids_ahead` is added to whatever counts; what is listed from now on has at least `generation_min`, so that no block
    that an executor has from then is taken for another.
    """

    epoch: int
    ids_ahead: int
    generation_min: int
    wall_ms: int


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
    | JournalRestored
)

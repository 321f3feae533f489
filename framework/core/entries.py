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
    disk_bytes: int = 0


class SlotResized(NamedTuple):
    """The wanted capacity changed; a running executor of another size is ended and launched anew, one at a time."""

    slot_id: int
    mem_bytes: int
    disk_bytes: int = 0


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
    volume_id: int = 0  # 0: without an SSD tier
    disk_bytes: int = 0
    role: str = "*"  # of the offers that it was launched on
    attributes: tuple[tuple[str, str], ...] = ()  # of its agent, @region and @zone too: for constraints


class LaunchEnded(NamedTuple):
    launch_id: int
    reason: str
    wall_ms: int


class VolumePlanned(NamedTuple):
    """In the frame of its first launch: a persistent volume is to be made. No id is ever used again."""

    volume_id: int
    slot_id: int
    agent_id: str
    hostname: str
    role: str
    disk_bytes: int
    wall_ms: int


class VolumeReady(NamedTuple):
    """It exists: its operation finished, or it was seen in an offer."""

    volume_id: int


class VolumeFailed(NamedTuple):
    """It does not exist: never made, or vanished. Forgotten; its slot gets another."""

    volume_id: int
    reason: str


class VolumeReleased(NamedTuple):
    """Its slot gave it up. It is kept, and another slot may adopt it."""

    volume_id: int
    reason: str
    wall_ms: int = 0


class VolumeAdopted(NamedTuple):
    volume_id: int
    slot_id: int


class VolumeMoved(NamedTuple):
    """Its agent came back under another id, and with it."""

    volume_id: int
    agent_id: str
    hostname: str


class VolumeDoomed(NamedTuple):
    """Somebody asked for less: it is to be destroyed, and its disk given back."""

    volume_id: int
    reason: str
    wall_ms: int = 0


class VolumeRemoved(NamedTuple):
    """A doomed one is gone."""

    volume_id: int


class VolumesForgotten(NamedTuple):
    """No slot has them, and their agents are away for long. Nothing is destroyed: one that comes back is kept as an unknown one."""

    volume_ids: tuple[int, ...]


class AgentDrainSet(NamedTuple):
    """What only the executor on this agent holds moves away, then it is ended; nothing is launched there any more.

    `cause`: "operator", who undoes it; or "maintenance", which goes with the window that ends at `until_wall_ms` (0: never).
    """

    agent_id: str
    hostname: str
    reason: str
    until_wall_ms: int = 0
    cause: str = "operator"


class AgentDrainCleared(NamedTuple):
    agent_id: str


class UninstallBegan(NamedTuple):
    """Nothing is launched any more; executors are ended, then volumes destroyed (unless kept), then the framework."""

    keep_volumes: bool
    wall_ms: int


class TeardownPlanned(NamedTuple):
    """Journaled before TEARDOWN. `left`: what could not be reached, in words."""

    left: tuple[str, ...]
    wall_ms: int


class UninstallFinished(NamedTuple):
    """Mesos knows the framework no more. This journal is only to be read from now on."""

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
    | VolumePlanned
    | VolumeReady
    | VolumeFailed
    | VolumeReleased
    | VolumeAdopted
    | VolumeMoved
    | VolumeDoomed
    | VolumeRemoved
    | VolumesForgotten
    | AgentDrainSet
    | AgentDrainCleared
    | UninstallBegan
    | TeardownPlanned
    | UninstallFinished
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

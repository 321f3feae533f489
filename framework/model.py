"""Values that the whole framework speaks in. Plain data: no decision, no I/O, no Mesos JSON (see translate.py).

Sizes are integer bytes, times integer milliseconds, cpus integer thousandths.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import NamedTuple

from stoker.executor.block import disk_memory_bytes

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
NAME_RULE = "1 to 63 of a-z, 0-9, '.', '_' and '-', beginning with a letter or a digit"
PATH_BYTES_MAX = 4096
EXECUTOR_OVERHEAD_BYTES = 256 * 1024 * 1024  # asked of Mesos on top of the MEM tier
CALLERS_SHARE = 128  # of the MEM tier: one part of so many more, for the connections of the many who read from a large one,
CALLERS_BYTES_MAX = 36 * 1024 * 1024  # until all that an executor takes have room (executor/machine.py)
EXECUTOR_CPUS_MILLI = 500


class DatasetState(enum.StrEnum):
    LISTING = "LISTING"
    READY = "READY"
    FAILED = "FAILED"


class JobKind(enum.StrEnum):
    LOAD = "load"
    FREE = "free"
    DRAIN = "drain"  # of an agent; made by DrainRequested


class JobState(enum.StrEnum):
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def is_final(self) -> bool:
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


class Policy(enum.StrEnum):
    KEEP = "keep"
    LRU = "lru"
    LFU = "lfu"


class Tier(enum.StrEnum):
    MEM = "mem"
    SSD = "ssd"


@dataclass(frozen=True, slots=True)
class Resources:
    """An amount of one agent's resources; `ports` are inclusive ranges."""

    cpus_milli: int = 0
    mem_bytes: int = 0
    disk_bytes: int = 0
    ports: tuple[tuple[int, int], ...] = ()


class OfferedVolume(NamedTuple):
    """A persistent volume that carries a Stoker cluster's labels: this one's, or another's."""

    cluster: str  # hex of the cluster's uuid
    volume_id: int
    role: str
    disk_bytes: int


class OfferedReservation(NamedTuple):
    """Disk that a Stoker cluster reserved, without a volume on it."""

    cluster: str
    volume_id: int  # that it was reserved for
    role: str
    disk_bytes: int


@dataclass(frozen=True, slots=True)
class Offer:
    """A Mesos offer, as much of it as a decision needs.

    `resources` may be used plainly; its disk is what may be reserved. Times are Unix ms: 0 and 0 without maintenance, a
    window without end has `unavailable_for_ms` 0.
    """

    offer_id: str
    agent_id: str
    hostname: str
    resources: Resources
    attributes: tuple[tuple[str, str], ...] = ()
    region: str = ""
    zone: str = ""
    role: str = "*"
    volumes: tuple[OfferedVolume, ...] = ()
    reserved_disk: tuple[OfferedReservation, ...] = ()
    unavailable_from_ms: int = 0
    unavailable_for_ms: int = 0
    executor_ids: tuple[str, ...] = ()  # of ours, that the agent has now


@dataclass(frozen=True, slots=True)
class InverseOffer:
    """Mesos asks for an agent back from `unavailable_from_ms` on (Unix ms), for so long (0: without end)."""

    offer_id: str
    agent_id: str
    unavailable_from_ms: int
    unavailable_for_ms: int


class Constraint(NamedTuple):
    """Which agents the fleet may use, in Marathon's words. `value` is empty where the operator takes none.

    `field` is an attribute's name, or one of `hostname`, `@region`, `@zone`.
    """

    field: str
    operator: str
    value: str = ""


@dataclass(frozen=True, slots=True)
class FleetSpec:
    """The wanted fleet: `instances` executors of `mem_bytes` MEM tier and `disk_bytes` SSD tier each, one an agent."""

    instances: int
    mem_bytes: int
    cpus_milli: int = EXECUTOR_CPUS_MILLI
    role: str = "*"
    disk_bytes: int = 0  # 0: no SSD tier
    constraints: tuple[Constraint, ...] = ()
    roles_more: tuple[str, ...] = ()
    executor: str = ""  # what it is started from, see programs.py; empty: as the schedulers are told

    @property
    def roles(self) -> tuple[str, ...]:
        """Return all roles whose offers are taken; reservations are made for that of the offer."""
        return (self.role, *self.roles_more)

    def resources(self) -> Resources:
        """Return what Mesos is asked for, an executor (ports not counted)."""
        return Resources(self.cpus_milli, self.mem_bytes + overhead_bytes(self.mem_bytes, self.disk_bytes))


def overhead_bytes(mem_bytes: int, disk_bytes: int) -> int:
    """Return the memory that Mesos is asked for on top of the MEM tier of an executor with tiers of these sizes."""
    callers = min(CALLERS_BYTES_MAX, mem_bytes // CALLERS_SHARE)
    return EXECUTOR_OVERHEAD_BYTES + callers + disk_memory_bytes(disk_bytes)


class FileError(NamedTuple):
    path: str
    code: str
    message: str


class Manifested(NamedTuple):
    """What listing an under store came to: the manifest's root and its numbers."""

    generation: int
    version: int
    digest: str
    files: int
    bytes: int
    address_bytes: int
    block_bytes: int
    block_count: int
    pg_count: int


@dataclass(frozen=True, slots=True)
class Selection:
    """What a request's paths mean in one manifest version, and the wanted residency that would result.

    `rules` extend those of `wanted_version`; bitmaps have bit i of byte i // 8, lowest first, for block i.
    """

    dataset_id: int
    version: int
    wanted_version: int
    rules: tuple[tuple[bool, str], ...]
    requested_blocks: bytes
    requested_bytes: int
    requested_files: int
    wanted_blocks: bytes
    missing: tuple[str, ...] = ()  # requested paths that no file of the dataset has or lies under


STALE_SELECTION = "stale_selection"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request was refused: an HTTP status, a stable code, what was wrong, and what to do."""

    status: int
    code: str
    message: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class TaskStatus:
    task_id: str
    state: str  # Mesos' TASK_... name
    agent_id: str = ""
    executor_id: str = ""
    reason: str = ""
    source: str = ""
    message: str = ""
    uuid: bytes = b""  # empty: must not be acknowledged


@dataclass(frozen=True, slots=True)
class OperationStatus:
    operation_id: str
    state: str  # Mesos' OPERATION_... name
    agent_id: str = ""
    message: str = ""
    uuid: bytes = b""  # empty: must not be acknowledged


@dataclass(frozen=True, slots=True)
class Settings:
    """The decisions' numbers; each a named limit or a timeout, in one place."""

    heartbeat_timeout_ms: int = 10_000  # an executor silent for longer hangs: it is ended and relaunched
    probe_interval_ms: int = 3_000  # between two looks whether a silent executor's machine answers
    probes_frame_max: int = 32
    register_timeout_ms: int = 60_000  # launch to first heartbeat
    relaunch_delay_ms_min: int = 200  # flap back-off of a slot: doubled at each end, to the maximum,
    relaunch_delay_ms_max: int = 60_000  # and back to the minimum after flap_reset_ms of health
    flap_reset_ms: int = 60_000
    decline_ms: int = 300_000  # idle: a long filter (marathon#1931: short ones flood)
    decline_busy_ms: int = 2_000  # a wish is open, but not with this offer
    revive_interval_ms_min: int = 5_000  # REVIVE is unreliable, so repeated, but not more often
    reconcile_interval_ms: int = 600_000
    residency_grace_ms: int = 15_000  # after a take-over: how long a silent slot holds up moves
    jobs_kept_max: int = 1_000  # finished jobs; the oldest are forgotten
    jobs_kept_ms: int = 7 * 86_400_000
    jobs_active_max: int = 256  # a removal cancels a dataset's in one frame
    datasets_max: int = 10_000
    wanted_rules_max: int = 1_024  # of one dataset
    wanted_rules_bytes_max: int = 48 * 1024  # their paths together: a journal record holds them
    job_paths_bytes_max: int = 24 * 1024  # of one job's paths, for the same reason
    job_errors_max: int = 100  # named in a job; the rest is counted
    job_errors_bytes_max: int = 32 * 1024
    job_unfit_ms: int = 5_000  # blocks without room for so long fail a load
    offers_kept_max: int = 200  # last decisions, for explanations
    offers_held_max: int = 1_000  # offers kept undecided for a slot whose back-off is nearly over
    launches_frame_max: int = 256  # of one frame: its entries fit a batch of the journal
    slots_frame_max: int = 1_000
    instances_max: int = 10_000
    executor_mem_bytes_min: int = 16 * 1024 * 1024
    executor_mem_bytes_max: int = 64 * 2**40
    executor_disk_bytes_min: int = 64 * 1024 * 1024
    executor_disk_bytes_max: int = 1024 * 2**40
    slot_out_ms: int = 300_000  # a slot without an executor for longer is out of placement
    replicas_max: int = 16
    priority_max: int = 1_000
    source_bytes_max: int = 4_096
    options_bytes_max: int = 16 * 1024  # of a dataset's options, names and values together
    key_bytes_max: int = 200  # of an idempotency key
    listings_running_max: int = 4  # child processes at once
    error_bytes_max: int = 1_000  # of one error text that is journaled
    reconcile_delay_ms_min: int = 1_000  # unanswered explicit reconciliation is repeated, doubling
    reconcile_delay_ms_max: int = 30_000
    reconcile_tasks_max: int = 1_000  # of one call
    kill_retry_ms: int = 5_000  # KILL is unreliable: repeated, doubling, at most
    kill_tries_max: int = 8  # times; then implicit reconciliation finds the task again
    ending_grace_ms: int = 30_000  # an executor that is being ended may serve for so long yet
    volume_patience_ms: int = 3_600_000  # how long a slot waits for the agent that has its volume
    volumes_kept_ms: int = (
        30 * 86_400_000
    )  # that no slot has, of an agent that makes no offers: then forgotten
    volume_missing_ms: int = (
        5_000  # for so long, and in two offers at least, a volume is missed before it is gone
    )
    rate_window_ms: int = 10_000
    tick_ms: int = 500
    unreachable_delay_ms: int = (
        300_000  # a silent executor whose end Mesos does not confirm is replaced after this
    )
    unknown_patience_ms: int = 120_000  # with a new master: until its agents are back it knows no tasks
    kill_grace_ms: int = 5_000  # of KILL
    maintenance_soon_ms: int = 3_600_000  # no launch, and a drain, where maintenance begins within this
    inverse_decline_ms: int = 5_000  # while an agent is drained: ask again after this
    inverse_accept_ms: int = 60_000  # once it is: Mesos repeats the question
    maintenance_forget_ms: int = 30_000  # a question that is not repeated for so long was withdrawn
    uninstall_patience_ms: int = 120_000  # for executors and volumes of agents that are away

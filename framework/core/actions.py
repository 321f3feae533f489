"""Actions: things to do, imperative, performed by the loop once the frame that holds them is durable.

Every action may run twice, and none is owed: what a lost one would have done is found again from the difference of
catalog and fleet. A failure comes back as an event.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from stoker.executor.messages import HeartbeatAnswer
from stoker.framework.core.entries import Entry, LaunchPlanned, VolumePlanned
from stoker.framework.model import Refusal


class Check(NamedTuple):
    """One requirement of an executor against what an agent offers; see requirements.py for units and words."""

    requirement: str
    passed: bool
    wanted: int | str
    offered: int | str


class Explained(NamedTuple):
    """Why an agent's offers to one role were declined, requirement by requirement; for `slot_id`, 0: for any."""

    agent_id: str
    role: str
    slot_id: int
    reason: str
    checks: tuple[Check, ...]


@dataclass(frozen=True, slots=True)
class Accept:
    """Launch on these offers (all of one agent and role); make the launch's volume first where `volume` says so."""

    offer_ids: tuple[str, ...]
    launch: LaunchPlanned
    refuse_ms: int
    role: str = "*"  # that the offers were made to
    volume: VolumePlanned | None = None
    reserved_volume_id: int = 0  # make it on the disk that was reserved for this one; 0: reserve anew
    checks: tuple[Check, ...] = ()  # of the requirements, all passed


@dataclass(frozen=True, slots=True)
class DestroyVolume:
    """Destroy a doomed volume that these offers hold (all of one agent and role), and give its disk back.

    `attempt` tells its operations from those of earlier tries.
    """

    offer_ids: tuple[str, ...]
    volume_id: int
    agent_id: str
    role: str
    attempt: str
    refuse_ms: int


@dataclass(frozen=True, slots=True)
class Decline:
    """`reason` is that of all but the offers of agents which `explained` tells more of."""

    offer_ids: tuple[str, ...]
    refuse_ms: int
    reason: str
    explained: tuple[Explained, ...] = ()


@dataclass(frozen=True, slots=True)
class Acknowledge:
    task_id: str
    agent_id: str
    uuid: bytes


@dataclass(frozen=True, slots=True)
class Kill:
    """`grace_ms`: what the task is given to end by itself."""

    task_id: str
    agent_id: str
    grace_ms: int = 0


@dataclass(frozen=True, slots=True)
class ShutdownExecutor:
    """End the executor's process; the agent kills it after the grace if it hangs.

    `launch_id`: it hangs, as far as can be told, and its launch stands until it is known to have ended; 0: it has ended.
    """

    executor_id: str
    agent_id: str
    launch_id: int = 0


@dataclass(frozen=True, slots=True)
class ProbeExecutor:
    """Look whether the machine of a silent executor answers at all; comes back as ExecutorProbed."""

    launch_id: int
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Reconcile:
    """(task id, agent id) each; empty: all that the master knows."""

    tasks: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class AcknowledgeOperation:
    operation_id: str
    agent_id: str
    uuid: bytes


@dataclass(frozen=True, slots=True)
class ReconcileOperations:
    """(operation id, agent id) each."""

    operations: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class AcceptInverse:
    """The agents of these inverse offers may be taken; ask again after `refuse_ms`."""

    offer_ids: tuple[str, ...]
    refuse_ms: int


@dataclass(frozen=True, slots=True)
class DeclineInverse:
    """Not yet: ask again after `refuse_ms`."""

    offer_ids: tuple[str, ...]
    refuse_ms: int


@dataclass(frozen=True, slots=True)
class UpdateFramework:
    """Tell the master of these roles, all of them suppressed or none, and of the disk that makes an offer worth its while."""

    roles: tuple[str, ...]
    disk_bytes: int
    is_suppressed: bool


@dataclass(frozen=True, slots=True)
class Teardown:
    """End the framework: Mesos kills its tasks and forgets it. Only an uninstall says so."""


@dataclass(frozen=True, slots=True)
class EndCluster:
    """The cluster is uninstalled: this leadership ends, and with it the scheduler. `left`: what is left behind, in words."""

    left: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BeginAnew:
    """Nothing is left of a framework that Mesos removed: this leadership ends, and the next one takes a new id."""


@dataclass(frozen=True, slots=True)
class Suppress:
    """Want no offers."""


@dataclass(frozen=True, slots=True)
class Revive:
    """Want offers again, filters forgotten."""


@dataclass(frozen=True, slots=True)
class StartListing:
    """List `source` in a child process and build the manifest; comes back as ListingFinished.

    `previous` is the digest of the version to refresh from, empty for the first. `clear_version`: see fleet.Listed.
    """

    dataset_id: int
    attempt: int
    source: str
    options: tuple[tuple[str, str], ...]
    generation: int
    version: int
    previous: str
    slot_bytes: int
    clear_version: int = 0


@dataclass(frozen=True, slots=True)
class StopListing:
    dataset_id: int


@dataclass(frozen=True, slots=True)
class ForgetManifest:
    """No version points to the manifest of this root any more; its blobs may go."""

    digest: str


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer a request: `body` as JSON with `status`, or a refusal."""

    reply_id: int
    status: int
    body: Any
    refusal: Refusal | None = None


@dataclass(frozen=True, slots=True)
class AnswerHeartbeat:
    reply_id: int
    answer: HeartbeatAnswer


Action = (
    Accept
    | DestroyVolume
    | Decline
    | Acknowledge
    | AcknowledgeOperation
    | ReconcileOperations
    | AcceptInverse
    | DeclineInverse
    | UpdateFramework
    | Teardown
    | EndCluster
    | BeginAnew
    | Kill
    | ShutdownExecutor
    | ProbeExecutor
    | Reconcile
    | Suppress
    | Revive
    | StartListing
    | StopListing
    | ForgetManifest
    | Answer
    | AnswerHeartbeat
)


@dataclass(frozen=True, slots=True)
class Frame:
    """Result of one step: `entries` must be durable BEFORE any of `actions` is performed."""

    entries: tuple[Entry, ...] = ()
    actions: tuple[Action, ...] = ()

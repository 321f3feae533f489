"""Actions: things to do, imperative, performed by the loop once the frame that holds them is durable.

Every action may run twice, and none is owed: what a lost one would have done is found again from the difference of
catalog and fleet. A failure comes back as an event.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stoker.executor.messages import HeartbeatAnswer
from stoker.framework.core.entries import Entry, LaunchPlanned
from stoker.framework.model import Refusal


@dataclass(frozen=True, slots=True)
class Accept:
    """Launch on these offers (all of one agent and role)."""

    offer_ids: tuple[str, ...]
    launch: LaunchPlanned
    refuse_ms: int
    role: str = "*"  # that the offers were made to


@dataclass(frozen=True, slots=True)
class Decline:
    offer_ids: tuple[str, ...]
    refuse_ms: int
    reason: str


@dataclass(frozen=True, slots=True)
class Acknowledge:
    task_id: str
    agent_id: str
    uuid: bytes


@dataclass(frozen=True, slots=True)
class Kill:
    task_id: str
    agent_id: str


@dataclass(frozen=True, slots=True)
class ShutdownExecutor:
    """End the executor's process; the agent kills it after the grace if it hangs."""

    executor_id: str
    agent_id: str


@dataclass(frozen=True, slots=True)
class Reconcile:
    """(task id, agent id) each; empty: all that the master knows."""

    tasks: tuple[tuple[str, str], ...]


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
    | Decline
    | Acknowledge
    | Kill
    | ShutdownExecutor
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

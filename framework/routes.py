"""The API's table of routes: what is served is built from it, and so is its description, so the two cannot drift.

Data only. The handlers are methods of api.Api by the name in `handler`; openapi.py makes the document, web.py the server.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stoker.framework.checks import KEY_CHARS_MAX, OPTIONS_MAX, PATHS_MAX, SOURCE_BYTES_MAX
from stoker.framework.config import INSTANCES_MAX, MEM_BYTES_MAX
from stoker.framework.core.constraints import CONSTRAINTS_MAX, FIELD_BYTES_MAX, VALUE_BYTES_MAX
from stoker.framework.core.programs import PROGRAM_BYTES_MAX, PROGRAM_RULE
from stoker.framework.core.wishes import ROLES_MAX
from stoker.framework.model import NAME_RULE, PATH_BYTES_MAX, JobKind, Policy, Settings, Tier

LIMIT_MAX = 10_000
_LIMITS = Settings()

Schema = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Query:
    """A query parameter; all are optional."""

    name: str
    schema: Schema
    description: str


@dataclass(frozen=True, slots=True)
class Route:
    """One method of one path. `answers` maps a status to (what it means, the schema's name in openapi.py)."""

    method: str
    path: str
    handler: str
    summary: str
    answers: Mapping[int, tuple[str, str]]
    body: Schema | None = None
    queries: tuple[Query, ...] = ()
    headers: tuple[Query, ...] = ()
    media_type: str = "application/json"
    body_media_type: str = "application/json"
    errors: tuple[int, ...] = field(default=(503,))
    is_leaders: bool = True  # only the leader answers it; a follower sends the caller there


LIMIT = Query("limit", {"type": "integer", "minimum": 1, "maximum": LIMIT_MAX}, "at most so many rows")
AFTER = Query(
    "after", {"type": "string", "maxLength": 255}, "only rows after this key: the `next` of the page before"
)
PAGE = (LIMIT, AFTER)
VERSION = Query(
    "version",
    {"type": "integer", "minimum": 1, "maximum": 2**53},
    "a version that still stands; else the newest",
)
KEY = Query(
    "Idempotency-Key",
    {"type": "string", "maxLength": KEY_CHARS_MAX},
    "the same key and body again is answered with the job of the first time (200); another body is refused (409)",
)

NAME_FIELD = {"type": "string", "description": NAME_RULE}
REPLICAS = {"type": "integer", "minimum": 1, "maximum": _LIMITS.replicas_max}
POLICY = {"type": "string", "enum": [str(p) for p in Policy]}
TIER = {"type": "string", "enum": [str(t) for t in Tier]}
PRIORITY = {"type": "integer", "minimum": -_LIMITS.priority_max, "maximum": _LIMITS.priority_max}

NEW_DATASET: Schema = {
    "type": "object",
    "required": ["name", "source"],
    "properties": {
        "name": NAME_FIELD,
        "source": {
            "type": "string",
            "maxLength": SOURCE_BYTES_MAX,
            "description": "an fsspec URL or an absolute path",
        },
        "options": {
            "type": "object",
            "additionalProperties": {"type": "string"},
            "maxProperties": OPTIONS_MAX,
            "description": "fsspec's storage_options; secrets as env:NAME or file:PATH",
        },
        "replicas": REPLICAS,
        "policy": POLICY,
        "tier": TIER,
        "priority": PRIORITY,
    },
}
DATASET_CHANGE: Schema = {
    "type": "object",
    "properties": {"replicas": REPLICAS, "policy": POLICY, "priority": PRIORITY},
}
NEW_JOB: Schema = {
    "type": "object",
    "required": ["kind"],
    "properties": {
        "kind": {"type": "string", "enum": [str(k) for k in JobKind]},
        "dataset": {**NAME_FIELD, "description": f"of a load or free: {NAME_RULE}"},
        "agent": {
            "type": "string",
            "maxLength": 255,
            "description": "of a drain: an agent's id, or its hostname",
        },
        "paths": {
            "type": "array",
            "items": {"type": "string", "maxLength": PATH_BYTES_MAX},
            "maxItems": PATHS_MAX,
            "description": "files or directories, relative to the dataset; left out: all of it",
        },
        "fit": {"type": "boolean", "description": "if not all of it fits, load what does"},
        "plan": {"type": "boolean", "description": "say what it would take, and change nothing"},
    },
}
UNINSTALL: Schema = {
    "type": "object",
    "properties": {
        "keep_volumes": {
            "type": "boolean",
            "description": "leave persistent volumes, and their data, where they are",
        }
    },
}
FLEET: Schema = {
    "type": "object",
    "required": ["instances", "mem_bytes"],
    "properties": {
        "instances": {"type": "integer", "minimum": 0, "maximum": INSTANCES_MAX},
        "mem_bytes": {"type": "integer", "minimum": _LIMITS.executor_mem_bytes_min, "maximum": MEM_BYTES_MAX},
        "disk_bytes": {
            "type": "integer",
            "minimum": 0,
            "maximum": _LIMITS.executor_disk_bytes_max,
            "description": "SSD tier of each executor; 0: none. Another size, or less of them, destroys volumes",
        },
        "role": {"type": "string", "maxLength": 255, "description": "the only one"},
        "roles": {
            "type": "array",
            "maxItems": ROLES_MAX,
            "items": {"type": "string", "maxLength": 255},
            "description": "instead of role: all whose offers are taken",
        },
        "constraints": {
            "type": "array",
            "maxItems": CONSTRAINTS_MAX,
            "items": {"type": "string", "maxLength": FIELD_BYTES_MAX + VALUE_BYTES_MAX + 16},
            "description": "FIELD:OPERATOR[:VALUE] each, Marathon's operators",
        },
        "executor": {
            "type": "string",
            "maxLength": PROGRAM_BYTES_MAX,
            "description": f"{PROGRAM_RULE}; empty: as the schedulers are told. For launches from now on",
        },
    },
}

_BAD = (400, 503)
_NAMED = (400, 404, 503)

ROUTES: tuple[Route, ...] = (
    Route(
        "GET",
        "/v1/datasets",
        "list_datasets",
        "List datasets",
        {200: ("all, by name", "Datasets")},
        queries=PAGE,
        errors=_BAD,
    ),
    Route(
        "POST",
        "/v1/datasets",
        "add_dataset",
        "Add a dataset",
        {
            201: ("added; its source is being listed", "Dataset"),
            200: ("it is there already, the same", "Dataset"),
        },
        body=NEW_DATASET,
        errors=(400, 409, 503),
    ),
    Route(
        "GET", "/v1/datasets/{name}", "show_dataset", "Show a dataset", {200: ("", "Dataset")}, errors=_NAMED
    ),
    Route(
        "PATCH",
        "/v1/datasets/{name}",
        "change_dataset",
        "Change replicas, policy or priority",
        {200: ("as it is now", "Dataset")},
        body=DATASET_CHANGE,
        errors=_NAMED,
    ),
    Route(
        "DELETE",
        "/v1/datasets/{name}",
        "remove_dataset",
        "Forget a dataset and free its cache; its source is never touched",
        {200: ("as it was", "Dataset")},
        errors=_NAMED,
    ),
    Route(
        "POST",
        "/v1/datasets/{name}/refresh",
        "refresh_dataset",
        "List the source again: the next version, in which unchanged files stay cached",
        {200: ("being listed", "Dataset")},
        errors=_NAMED,
    ),
    Route(
        "GET",
        "/v1/datasets/{name}/manifest",
        "get_manifest",
        "The file table of a version, as one bundle of blobs",
        {200: ("root and parts", "")},
        queries=(VERSION,),
        media_type="application/octet-stream",
        errors=(400, 404, 409, 503),
    ),
    Route(
        "GET",
        "/v1/datasets/{name}/placement",
        "get_placement",
        "Where the dataset's blocks belong, and where executors are now",
        {200: ("", "Placement")},
        errors=(400, 404, 409, 503),
    ),
    Route(
        "GET",
        "/v1/jobs",
        "list_jobs",
        "List jobs",
        {200: ("all, oldest first", "Jobs")},
        queries=PAGE,
        errors=_BAD,
    ),
    Route(
        "POST",
        "/v1/jobs",
        "add_job",
        "Load or free a dataset, or some paths of it; or drain an agent",
        {
            201: ("accepted", "Job"),
            200: ("the job of this key, as it is now; or, with `plan`, the plan", "JobOrPlan"),
        },
        body=NEW_JOB,
        headers=(KEY,),
        errors=(400, 404, 409, 503),
    ),
    Route("GET", "/v1/jobs/{id}", "show_job", "Show a job", {200: ("", "Job")}, errors=_NAMED),
    Route(
        "DELETE",
        "/v1/jobs/{id}",
        "cancel_job",
        "Cancel a job; what it brought in stays cached, an agent that it drains may be used again",
        {200: ("as it is now", "Job")},
        errors=(400, 404, 409, 503),
    ),
    Route(
        "GET",
        "/v1/jobs/{id}/events",
        "follow_job",
        "Follow a job: server-sent events `job`, each with the job as JSON; the last has a final state",
        {200: ("the stream", "")},
        media_type="text/event-stream",
        errors=_NAMED,
    ),
    Route("GET", "/v1/fleet", "show_fleet", "The wanted fleet", {200: ("", "Fleet")}),
    Route(
        "PUT",
        "/v1/fleet",
        "set_fleet",
        "Change the wanted fleet",
        {200: ("as it is now", "Fleet")},
        body=FLEET,
        errors=_BAD,
    ),
    Route(
        "GET",
        "/v1/executors",
        "list_executors",
        "List executors",
        {200: ("by slot", "Executors")},
        queries=PAGE,
        errors=_BAD,
    ),
    Route(
        "POST",
        "/v1/executors/heartbeat",
        "take_heartbeat",
        "An executor's heartbeat (msgpack): for executors only",
        {200: ("the answer, as msgpack", "")},
        media_type="application/msgpack",
        body_media_type="application/msgpack",
        errors=(400, 403, 413, 503),
    ),
    Route(
        "GET",
        "/v1/agents",
        "list_agents",
        "List agents seen in offers",
        {200: ("by id", "Agents")},
        queries=PAGE,
        errors=_BAD,
    ),
    Route(
        "DELETE",
        "/v1/agents/{id}/drain",
        "undo_drain",
        "Let a drained agent be used again",
        {200: ("the agent, as it is now", "Agent")},
        errors=(400, 404, 409, 503),
    ),
    Route("GET", "/v1/uninstall", "show_uninstall", "How far an uninstall is", {200: ("", "Uninstall")}),
    Route(
        "POST",
        "/v1/uninstall",
        "uninstall",
        "End all that this cluster has on Mesos, and its framework; the journal stays, to be read",
        {201: ("begun", "Uninstall"), 200: ("it goes on already", "Uninstall")},
        body=UNINSTALL,
        errors=(400, 409, 503),
    ),
    Route(
        "GET",
        "/v1/offers",
        "list_offers",
        "The last offers, what became of them and why, requirement by requirement",
        {200: ("newest first", "Offers")},
        queries=(LIMIT,),
        errors=_BAD,
    ),
    Route(
        "GET",
        "/v1/leader",
        "show_leader",
        "Who leads, and how far this scheduler has followed",
        {200: ("", "Leader")},
        is_leaders=False,
    ),
    Route(
        "GET",
        "/v1/bundles/{digest}",
        "get_bundle",
        "The executor as one file, for Mesos' fetcher",
        {200: ("", "")},
        media_type="application/octet-stream",
        errors=(404,),
        is_leaders=False,
    ),
    Route(
        "HEAD",
        "/v1/bundles/{digest}",
        "size_bundle",
        "How large a bundle is, for the fetcher's cache",
        {200: ("", "")},
        media_type="application/octet-stream",
        errors=(404,),
        is_leaders=False,
    ),
    Route(
        "GET",
        "/v1/openapi.json",
        "show_openapi",
        "This description",
        {200: ("", "")},
        errors=(),
        is_leaders=False,
    ),
    Route(
        "GET",
        "/alive",
        "show_alive",
        "200 while this process does its work: for supervisors",
        {200: ("", "Alive")},
        errors=(),
        is_leaders=False,
    ),
    Route(
        "GET",
        "/health",
        "show_health",
        "200 while this scheduler leads: for finding the leader",
        {200: ("", "Health")},
        is_leaders=False,
    ),
    Route(
        "GET",
        "/metrics",
        "show_metrics",
        "Prometheus' text format",
        {200: ("", "")},
        media_type="text/plain; version=0.0.4",
        errors=(),
        is_leaders=False,
    ),
)

"""The OpenAPI document, made of routes.py. Pure: a value of a table."""

from __future__ import annotations

import re
from typing import Any

from stoker.framework.core.departures import CAUSE_MAINTENANCE, CAUSE_OPERATOR, UninstallState
from stoker.framework.model import DatasetState, JobState
from stoker.framework.routes import Query, Route

TEXT = {"type": "string"}
NUMBER = {"type": "integer"}
MAYBE_TEXT = {"type": ["string", "null"]}
MAYBE_NUMBER = {"type": ["integer", "null"]}
FLAG = {"type": "boolean"}
FREE = {"type": "object"}

_ERROR_MEANS = {
    307: "this scheduler follows: ask the leader, whose URL Location gives, the same way",
    400: "bad input; the message says what, the hint what is allowed",
    403: "not an executor of this cluster",
    404: "there is nothing of that name",
    409: "it clashes with what is there",
    413: "the body is too large",
    503: "not_leading or overloaded (surely not done), or outcome_unknown (ask again with the same key)",
}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


def _list_of(name: str, item: str) -> dict[str, Any]:
    return _object(**{name: {"type": "array", "items": _ref(item)}, "next": MAYBE_TEXT})


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


_CHECK = _object(requirement=TEXT, passed=FLAG, wanted=TEXT, offered=TEXT)
_PROGRESS = _object(
    bytes=NUMBER,
    bytes_total=NUMBER,
    files=NUMBER,
    files_total=NUMBER,
    rate_bytes_per_s=MAYBE_NUMBER,
    eta_seconds={"type": ["number", "null"]},
    executors={"type": "array", "items": FREE},
)
SCHEMAS: dict[str, Any] = {
    "Error": _object(error=_object(code=TEXT, message=TEXT, hint=TEXT)),
    "Dataset": _object(
        name=TEXT,
        id=NUMBER,
        source=TEXT,
        options={"type": "object", "additionalProperties": TEXT},
        state={"type": "string", "enum": [str(s) for s in DatasetState]},
        error=MAYBE_TEXT,
        message=MAYBE_TEXT,
        files=MAYBE_NUMBER,
        bytes=MAYBE_NUMBER,
        cached_bytes=MAYBE_NUMBER,
        cached_ratio={"type": ["number", "null"]},
        version=MAYBE_NUMBER,
        generation=MAYBE_NUMBER,
        residency={"type": "string", "enum": ["complete", "partial"]},
        replicas=NUMBER,
        replicas_actual={"type": ["number", "null"]},
        policy=TEXT,
        tier=TEXT,
        priority=NUMBER,
        wanted={"type": "array", "items": _object(include=FLAG, path=TEXT)},
        block_bytes=MAYBE_NUMBER,
        blocks=MAYBE_NUMBER,
        listing={"type": ["object", "null"]},
        created_ms=NUMBER,
    ),
    "Job": _object(
        id=TEXT,
        kind=TEXT,
        dataset=MAYBE_TEXT,
        agent=MAYBE_TEXT,
        paths={"type": "array", "items": TEXT},
        state={"type": "string", "enum": [str(s) for s in JobState]},
        message=MAYBE_TEXT,
        progress=_PROGRESS,
        error_count=NUMBER,
        errors={"type": "array", "items": _object(path=TEXT, code=TEXT, message=TEXT)},
        created_ms=NUMBER,
        started_ms=MAYBE_NUMBER,
        finished_ms=MAYBE_NUMBER,
    ),
    "Executor": _object(
        slot=NUMBER,
        state={"type": "string", "enum": ["RUNNING", "LAUNCHING", "WAITING", "LOST"]},
        reason=MAYBE_TEXT,
        launch=MAYBE_NUMBER,
        task_id=MAYBE_TEXT,
        agent_id=MAYBE_TEXT,
        hostname=MAYBE_TEXT,
        host=MAYBE_TEXT,
        port=MAYBE_NUMBER,
        capacity_bytes=MAYBE_NUMBER,
        used_bytes=MAYBE_NUMBER,
        lent_bytes=MAYBE_NUMBER,
        disk={"type": ["object", "null"]},
        pid=MAYBE_NUMBER,
        refused_count=MAYBE_NUMBER,
        heartbeat_age_ms=MAYBE_NUMBER,
        datasets={"type": "array", "items": FREE},
    ),
    "Agent": _object(
        id=TEXT,
        hostname=TEXT,
        attributes=FREE,
        executors={"type": "array", "items": NUMBER},
        drain={
            "type": ["object", "null"],
            "properties": {
                "state": {"type": "string", "enum": ["DRAINING", "DRAINED"]},
                "cause": {"type": "string", "enum": [CAUSE_OPERATOR, CAUSE_MAINTENANCE]},
                "reason": TEXT,
                "until_ms": MAYBE_NUMBER,
                "blocks_left": MAYBE_NUMBER,
                "bytes_left": MAYBE_NUMBER,
                "message": MAYBE_TEXT,
            },
        },
    ),
    "Uninstall": _object(
        state={"type": ["string", "null"], "enum": [*map(str, UninstallState), None]},
        keep_volumes={"type": ["boolean", "null"]},
        began_ms=MAYBE_NUMBER,
        executors_left=MAYBE_NUMBER,
        volumes_left=MAYBE_NUMBER,
        left={"type": "array", "items": TEXT},
        finished_ms=MAYBE_NUMBER,
    ),
    "Offer": _object(
        offer_id=TEXT,
        agent_id=TEXT,
        hostname=TEXT,
        role=TEXT,
        cpus={"type": "number"},
        mem_bytes=NUMBER,
        disk_bytes=NUMBER,
        decision={"type": "string", "enum": ["accepted", "declined"]},
        reason=TEXT,
        checks={"type": "array", "items": _CHECK},
        wall_ms=NUMBER,
    ),
    "Fleet": _object(
        instances=NUMBER,
        mem_bytes=NUMBER,
        disk_bytes=NUMBER,
        role=TEXT,
        roles={"type": "array", "items": TEXT},
        constraints={"type": "array", "items": TEXT},
        executor=TEXT,
        attention=TEXT,
        running=NUMBER,
        volumes=_object(
            planned=NUMBER,
            ready=NUMBER,
            released=NUMBER,
            doomed=NUMBER,
            unknown_count=NUMBER,
            unknown={"type": "array", "items": FREE},
        ),
        waiting_count=NUMBER,
        waiting={
            "type": "array",
            "items": _object(slot=NUMBER, reason=TEXT, nearest={"type": ["object", "null"]}),
        },
    ),
    "Leader": _object(
        leader=TEXT,
        self=TEXT,
        epoch=NUMBER,
        framework_id=TEXT,
        cluster=TEXT,
        name=TEXT,
        master=TEXT,
        state=TEXT,
        schedulers={"type": "array", "items": TEXT},
        next_index=NUMBER,
        behind=NUMBER,
        mesos=_object(subscribed=FLAG, reason=TEXT),
        reason=TEXT,
    ),
    "Placement": _object(
        name=TEXT,
        dataset_id=NUMBER,
        cluster=TEXT,
        version=NUMBER,
        generation=NUMBER,
        digest=TEXT,
        block_bytes=NUMBER,
        pg_count=NUMBER,
        replicas=NUMBER,
        placement_version=NUMBER,
        homes={"type": "string", "contentEncoding": "base64"},
        slots={"type": "array", "items": FREE},
    ),
    "Plan": _object(
        fits=FLAG,
        bytes=NUMBER,
        files=NUMBER,
        blocks=NUMBER,
        free_bytes=NUMBER,
        capacity_bytes=NUMBER,
        slots={"type": "array", "items": _object(slot=NUMBER, bytes=NUMBER, free_bytes=NUMBER)},
        reason=MAYBE_TEXT,
    ),
    "JobOrPlan": {"oneOf": [_ref("Job"), _object(plan=_ref("Plan"))]},
    "Alive": _object(alive=FLAG),
    "Health": _object(state=TEXT),
    "Datasets": _list_of("datasets", "Dataset"),
    "Jobs": _list_of("jobs", "Job"),
    "Executors": _list_of("executors", "Executor"),
    "Agents": _list_of("agents", "Agent"),
    "Offers": _list_of("offers", "Offer"),
}


def document(routes: tuple[Route, ...], *, version: str) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document that describes `routes`."""
    paths: dict[str, Any] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Stoker", "version": version, "description": "The API of a Stoker scheduler."},
        "paths": paths,
        "components": {"schemas": SCHEMAS},
    }


def _operation(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {"operationId": route.handler, "summary": route.summary}
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)}", route.path)
    ]
    parameters += [_parameter(query, "query") for query in route.queries]
    parameters += [_parameter(header, "header") for header in route.headers]
    if parameters:
        operation["parameters"] = parameters
    if route.body is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {route.body_media_type: {"schema": route.body}},
        }
    answers = {
        str(status): {"description": meaning or "as asked", "content": {route.media_type: _media(schema)}}
        for status, (meaning, schema) in route.answers.items()
    }
    too_large = (413,) if "requestBody" in operation else ()
    elsewhere = (307,) if route.is_leaders else ()
    for status in sorted({*elsewhere, *route.errors, *too_large}):
        answers[str(status)] = {
            "description": _ERROR_MEANS[status],
            "content": {"application/json": {"schema": _ref("Error")}},
        }
    operation["responses"] = answers
    return operation


def _parameter(query: Query, place: str) -> dict[str, Any]:
    return {
        "name": query.name,
        "in": place,
        "required": False,
        "schema": query.schema,
        "description": query.description,
    }


def _media(schema: str) -> dict[str, Any]:
    return {"schema": _ref(schema)} if schema else {}

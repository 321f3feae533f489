"""The API on a real core, loop and lister, between a fake journal and a fake Mesos: what outsiders hold on to."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stoker.executor.manifest import unbundle
from stoker.executor.messages import FileFailure, Heartbeat, Residency, decode_answer, encode
from stoker.framework import api as api_module
from stoker.framework.api import Api
from stoker.framework.loop import WRITE_TIMEOUT_MS
from stoker.framework.openapi import SCHEMAS, document
from stoker.framework.routes import ROUTES
from stoker.zk.errors import Unavailable
from support.greenlets import join, wait_until
from support.schedulers import HeldJournal, InProcess, MemoryJournal, RefusingJournal, SlowJournal, raw_offer

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)


@pytest.fixture
def source(tmp_path: pathlib.Path) -> str:
    """A directory of a few files."""
    for name in ("a.txt", "dir/b.txt", "dir/c.txt"):
        path = tmp_path / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name * 100)
    return str(tmp_path / "source")


@pytest.fixture
def make(tmp_path: pathlib.Path) -> Iterator[Any]:
    made: list[InProcess] = []

    def make_scheduler(journal: MemoryJournal | None = None, **config: Any) -> InProcess:
        scheduler = InProcess(journal or MemoryJournal(), tmp_path / f"scratch{len(made)}", **config)
        made.append(scheduler)
        scheduler.lead()
        scheduler.subscribe()
        return scheduler

    yield make_scheduler
    for scheduler in made:
        scheduler.close()


@pytest.fixture
def scheduler(make: Any) -> InProcess:
    started: InProcess = make()
    return started


def wait_ready(scheduler: InProcess, name: str) -> dict[str, Any]:
    def listed() -> dict[str, Any] | None:
        status, view = scheduler.call("GET", f"/v1/datasets/{name}")
        assert status == 200
        return dict(view) if view["state"] != "LISTING" else None

    found = wait_until(listed, "the listing")
    assert found is not None
    return found


def add(scheduler: InProcess, name: str, source: str, **fields: Any) -> dict[str, Any]:
    status, view = scheduler.call("POST", "/v1/datasets", {"name": name, "source": source, **fields})
    assert status == 201, view
    return wait_ready(scheduler, name)


def code_of(answer: tuple[int, Any]) -> tuple[int, str]:
    status, body = answer
    assert set(body) == {"error"} and set(body["error"]) == {"code", "message", "hint"}
    return status, body["error"]["code"]


# --- the table of routes


def test_the_description_is_of_what_is_served(scheduler: InProcess) -> None:
    status, described = scheduler.call("GET", "/v1/openapi.json")
    assert status == 200
    operations = {(method.upper(), path) for path, item in described["paths"].items() for method in item}
    assert operations == {(route.method, route.path) for route in ROUTES}
    assert all(callable(getattr(Api, route.handler)) for route in ROUTES)


def test_the_description_is_valid_openapi() -> None:
    validator = pytest.importorskip("openapi_spec_validator")
    validator.validate(document(ROUTES, version="1"))


def test_views_have_the_fields_that_the_description_names(scheduler: InProcess, source: str) -> None:
    add(scheduler, "d", source)
    scheduler.driver.scheduler.resourceOffers(scheduler.driver, [raw_offer(1), raw_offer(2)])
    scheduler.call("POST", "/v1/jobs", {"kind": "load", "dataset": "d"})
    for path, rows, schema in (
        ("/v1/datasets", "datasets", "Dataset"),
        ("/v1/jobs", "jobs", "Job"),
        ("/v1/executors", "executors", "Executor"),
        ("/v1/agents", "agents", "Agent"),
        ("/v1/offers", "offers", "Offer"),
    ):
        found = scheduler.call("GET", path)[1][rows]
        assert found and set(found[0]) == set(SCHEMAS[schema]["properties"]), path
    for path, schema in (
        ("/v1/fleet", "Fleet"),
        ("/v1/leader", "Leader"),
        ("/v1/datasets/d/placement", "Placement"),
        ("/alive", "Alive"),
        ("/health", "Health"),
    ):
        assert set(scheduler.call("GET", path)[1]) == set(SCHEMAS[schema]["properties"]), path


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/", (404, "not_found")),
        ("GET", "/v1/nothing", (404, "not_found")),
        ("GET", "/v1/datasets/", (400, "bad_request")),
        ("GET", "/v1/datasets/none", (404, "not_found")),
        ("GET", "/v1/datasets/none/manifest", (404, "not_found")),
        ("GET", "/v1/datasets/none/placement", (404, "not_found")),
        ("DELETE", "/v1/datasets/none", (404, "not_found")),
        ("POST", "/v1/datasets/none/refresh", (404, "not_found")),
        ("GET", "/v1/jobs/none", (404, "not_found")),
        ("DELETE", "/v1/jobs/none", (404, "not_found")),
        ("GET", "/v1/jobs/none/events", (404, "not_found")),
        ("GET", "/v1/datasets/..", (400, "bad_request")),
        ("GET", "/v1/datasets/UPPER", (400, "bad_request")),
        ("GET", "/v1/datasets/" + "x" * 3000, (400, "bad_request")),
        ("PUT", "/v1/datasets", (405, "method_not_allowed")),
        ("DELETE", "/v1/fleet", (405, "method_not_allowed")),
        ("PATCH", "/alive", (405, "method_not_allowed")),
        ("GET", "/v1/datasets?limit=0", (400, "bad_request")),
        ("GET", "/v1/datasets?limit=x", (400, "bad_request")),
        ("GET", "/v1/datasets?limit=1&limit=2", (400, "bad_request")),
        ("GET", "/v1/datasets?colour=red", (400, "unknown_field")),
        ("GET", "/v1/executors?after=x", (400, "bad_request")),
        ("GET", "/v1/fleet?a=1", (400, "unknown_field")),
    ],
)
def test_what_is_not_there_is_said_in_one_form(
    scheduler: InProcess, method: str, path: str, expected: tuple[int, str]
) -> None:
    path, _, query = path.partition("?")
    assert code_of(scheduler.call(method, path, query_string=query)) == expected


# --- bad input


@pytest.mark.parametrize(
    "body", ["", "{", "[]", "null", '{"name":"a","name":"b"}', "\x00", "[" * 3000, '"' + "x" * 3000 + '"']
)
@pytest.mark.parametrize("route", [r for r in ROUTES if r.body is not None], ids=lambda r: r.handler)
def test_malformed_bodies_are_refused_and_change_nothing(scheduler: InProcess, route: Any, body: str) -> None:
    before = len(scheduler.journal.records)
    path = route.path.replace("{name}", "d")
    assert code_of(scheduler.call(route.method, path, raw=body)) == (400, "bad_request")
    assert len(scheduler.journal.records) == before


def test_bodies_beyond_the_limit_are_refused(scheduler: InProcess) -> None:
    body = '{"name": "' + "x" * (1024 * 1024) + '"}'
    assert code_of(scheduler.call("POST", "/v1/datasets", raw=body)) == (413, "too_large")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=JSON
    | st.fixed_dictionaries(
        {"name": JSON, "source": JSON}, optional={"options": JSON, "replicas": JSON, "tier": JSON}
    )
)
def test_no_body_is_an_internal_error_for_datasets(scheduler: InProcess, body: Any) -> None:
    before = len(scheduler.journal.records)
    status, answer = scheduler.call("POST", "/v1/datasets", raw=json.dumps(body))
    assert status in (200, 201, 400, 409, 413), answer
    if status >= 400:
        assert code_of((status, answer))
        assert len(scheduler.journal.records) == before


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    route=st.sampled_from([("POST", "/v1/jobs"), ("PUT", "/v1/fleet"), ("PATCH", "/v1/datasets/d")]),
    body=JSON
    | st.fixed_dictionaries(
        {},
        optional={
            "kind": st.sampled_from(["load", "free", "x"]),
            "dataset": st.sampled_from(["d", "..", ""]),
            "paths": st.lists(st.text(max_size=12) | JSON, max_size=3),
            "plan": JSON,
            "instances": st.integers(-3, 3) | JSON,
            "mem_bytes": JSON,
            "replicas": JSON,
        },
    ),
)
def test_no_body_is_an_internal_error_elsewhere(
    scheduler: InProcess, route: tuple[str, str], body: Any
) -> None:
    status, answer = scheduler.call(*route, raw=json.dumps(body))
    assert status in (200, 201, 400, 404, 409, 413), answer
    if status >= 400:
        assert code_of((status, answer))


@pytest.mark.parametrize("path", ["/a", "..", "a/../b", "a//b", "a\0", "x" * 10_000])
def test_wrong_paths_of_a_job_are_refused(scheduler: InProcess, source: str, path: str) -> None:
    add(scheduler, "d", source)
    assert (
        code_of(scheduler.call("POST", "/v1/jobs", {"kind": "load", "dataset": "d", "paths": [path]}))[0]
        == 400
    )
    assert scheduler.call("GET", "/v1/jobs")[1] == {"jobs": []}


def test_sources_are_bounded_by_the_operator(make: Any, source: str) -> None:
    scheduler = make(allow_sources=())
    answer = scheduler.call("POST", "/v1/datasets", {"name": "d", "source": source})
    assert code_of(answer) == (400, "source_not_allowed") and "--allow-source" in answer[1]["error"]["hint"]


# --- datasets


def test_a_dataset_is_listed_by_a_child_and_can_be_downloaded(scheduler: InProcess, source: str) -> None:
    view = add(scheduler, "d", source)
    assert (view["state"], view["files"], view["version"], view["error"]) == ("READY", 3, 1, None)
    status, bundle = scheduler.call("GET", "/v1/datasets/d/manifest")
    assert status == 200
    stream = iter(bytes(bundle))
    root, parts = unbundle(lambda count: bytes(next(stream) for _ in range(count)))
    placement = scheduler.call("GET", "/v1/datasets/d/placement")[1]
    assert scheduler.journal.blobs[placement["digest"]] == root
    assert set(parts) <= set(scheduler.journal.blobs)
    assert code_of(scheduler.call("GET", "/v1/datasets/d/manifest", query_string="version=9")) == (
        404,
        "not_found",
    )


def test_adding_is_idempotent_by_name(scheduler: InProcess, source: str) -> None:
    add(scheduler, "d", source, options={"a": "1", "b": "2"})
    same = {"name": "d", "source": f"file://{source}", "options": {"b": "2", "a": "1"}}
    assert scheduler.call("POST", "/v1/datasets", same)[0] == 200
    assert code_of(scheduler.call("POST", "/v1/datasets", {"name": "d", "source": "/other"})) == (
        409,
        "exists_differently",
    )


def test_two_posts_of_one_name_at_once_one_wins(make: Any, source: str) -> None:
    """However slow the journal: the second one is decided on a catalog that has the first."""
    scheduler = make(SlowJournal(0.05))
    posts = [
        gevent.spawn(scheduler.call, "POST", "/v1/datasets", {"name": "d", "source": f"{source}/{which}"})
        for which in ("dir", "")
    ]
    assert sorted(status for status, _ in join(posts)) == [201, 409]


def test_fifty_writers_at_once(make: Any, source: str) -> None:
    scheduler = make(SlowJournal(0.01))
    posts = [
        gevent.spawn(
            scheduler.call, "POST", "/v1/datasets", {"name": f"d{i % 10}", "source": f"{source}/{i // 25}"}
        )
        for i in range(50)
    ]
    statuses = [status for status, _ in join(posts)]
    assert (statuses.count(201), statuses.count(200), statuses.count(409)) == (10, 15, 25)
    assert [d["id"] for d in scheduler.call("GET", "/v1/datasets")[1]["datasets"]] == sorted(range(1, 11))


def test_an_unreadable_source_fails_with_its_reason(scheduler: InProcess, tmp_path: pathlib.Path) -> None:
    view = add(scheduler, "d", str(tmp_path / "nowhere"))
    assert view["state"] == "FAILED" and "nowhere" in view["error"]
    assert code_of(scheduler.call("GET", "/v1/datasets/d/placement")) == (409, "not_ready")
    assert code_of(scheduler.call("GET", "/v1/datasets/d/manifest")) == (409, "not_ready")
    assert code_of(scheduler.call("POST", "/v1/jobs", {"kind": "load", "dataset": "d"})) == (409, "not_ready")


def test_a_refresh_keeps_what_did_not_change(scheduler: InProcess, source: str) -> None:
    add(scheduler, "d", source)
    (pathlib.Path(source) / "new.txt").write_text("new")
    assert scheduler.call("POST", "/v1/datasets/d/refresh")[0] == 200
    wait_until(lambda: scheduler.call("GET", "/v1/datasets/d")[1]["version"] == 2, "the new version")
    view = scheduler.call("GET", "/v1/datasets/d")[1]
    assert (view["files"], view["generation"], view["listing"]) == (4, 1, None)


def test_blobs_of_a_removed_dataset_go_but_not_those_that_another_needs(
    scheduler: InProcess, source: str
) -> None:
    add(scheduler, "d", source)
    add(scheduler, "e", source)
    one = len(scheduler.journal.blobs)
    assert scheduler.call("DELETE", "/v1/datasets/d")[1]["name"] == "d"
    wait_until(lambda: len(scheduler.journal.blobs) != one)
    assert scheduler.call("GET", "/v1/datasets/e/manifest")[0] == 200
    scheduler.call("DELETE", "/v1/datasets/e")
    wait_until(lambda: not scheduler.journal.blobs)


def test_a_dataset_can_be_changed(scheduler: InProcess, source: str) -> None:
    add(scheduler, "d", source)
    status, view = scheduler.call("PATCH", "/v1/datasets/d", {"replicas": 2, "priority": 5})
    assert (status, view["replicas"], view["priority"], view["policy"]) == (200, 2, 5, "keep")


def test_lists_come_in_pages(scheduler: InProcess, source: str) -> None:
    for name in ("c", "a", "b"):
        add(scheduler, name, source)
    first = scheduler.call("GET", "/v1/datasets", query_string="limit=2")[1]
    assert [d["name"] for d in first["datasets"]] == ["a", "b"] and first["next"] == "b"
    rest = scheduler.call("GET", "/v1/datasets", query_string="limit=2&after=b")[1]
    assert [d["name"] for d in rest["datasets"]] == ["c"] and "next" not in rest
    executors = scheduler.call("GET", "/v1/executors", query_string="limit=1&after=1")[1]
    assert [e["slot"] for e in executors["executors"]] == [2]


# --- jobs


def test_a_key_makes_a_job_once(scheduler: InProcess, source: str) -> None:
    add(scheduler, "d", source)
    body = {"kind": "load", "dataset": "d", "paths": ["dir/"]}
    key = {"headers": {"Idempotency-Key": "k1"}}
    status, job = scheduler.call("POST", "/v1/jobs", body, **key)
    assert status == 201 and job["paths"] == ["dir"] and job["progress"]["files_total"] == 2
    assert scheduler.call("POST", "/v1/jobs", body, **key)[0] == 200
    assert code_of(scheduler.call("POST", "/v1/jobs", body | {"kind": "free"}, **key)) == (409, "key_reused")
    assert scheduler.call("POST", "/v1/jobs", body)[1]["id"] != job["id"]
    assert code_of(scheduler.call("POST", "/v1/jobs", body, headers={"Idempotency-Key": "x" * 999})) == (
        400,
        "bad_request",
    )


def test_a_path_that_is_not_there_is_named(scheduler: InProcess, source: str) -> None:
    add(scheduler, "d", source)
    answer = scheduler.call("POST", "/v1/jobs", {"kind": "load", "dataset": "d", "paths": ["dir", "nope"]})
    assert code_of(answer)[0] == 404 and "nope" in answer[1]["error"]["message"]


def test_a_plan_changes_nothing(scheduler: InProcess, source: str) -> None:
    add(scheduler, "d", source)
    before = len(scheduler.journal.records)
    status, body = scheduler.call("POST", "/v1/jobs", {"kind": "load", "dataset": "d", "plan": True})
    assert status == 200 and body["plan"]["files"] == 3
    assert len(scheduler.journal.records) == before and scheduler.call("GET", "/v1/jobs")[1] == {"jobs": []}


def test_many_jobs_of_one_dataset_at_once_all_count(make: Any, source: str) -> None:
    """Each selection is computed beside the loop; one that got stale meanwhile is computed anew inside."""
    scheduler = make(SlowJournal(0.005))
    add(scheduler, "d", source)
    bodies = [
        {"kind": "load", "dataset": "d", "paths": [path]} for path in ("a.txt", "dir/b.txt", "dir/c.txt")
    ]
    posts = [gevent.spawn(scheduler.call, "POST", "/v1/jobs", body) for body in bodies]
    assert [status for status, _ in join(posts)] == [201] * 3
    wanted = scheduler.call("GET", "/v1/datasets/d")[1]["wanted"]
    assert {rule["path"] for rule in wanted if rule["include"]} >= {"a.txt"}
    assert len(scheduler.call("GET", "/v1/jobs")[1]["jobs"]) == 3


def test_a_job_is_followed_to_its_end(scheduler: InProcess, source: str) -> None:
    add(scheduler, "d", source)
    job = scheduler.call("POST", "/v1/jobs", {"kind": "load", "dataset": "d"})[1]
    follower = gevent.spawn(scheduler.call, "GET", f"/v1/jobs/{job['id']}/events")
    wait_until(lambda: scheduler.api._followers == 1, "the follower")
    assert scheduler.call("DELETE", f"/v1/jobs/{job['id']}")[1]["state"] == "CANCELLED"
    ((status, stream),) = join([follower])
    events = [
        line.removeprefix("data: ") for line in stream.decode().splitlines() if line.startswith("data: ")
    ]
    assert (
        status == 200
        and json.loads(events[0])["state"] == "PENDING"
        and json.loads(events[-1])["state"] == "CANCELLED"
    )


def test_followers_are_bounded(scheduler: InProcess, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_module, "FOLLOWERS_MAX", 0)
    add(scheduler, "d", source)
    job = scheduler.call("POST", "/v1/jobs", {"kind": "load", "dataset": "d"})[1]
    assert code_of(scheduler.call("GET", f"/v1/jobs/{job['id']}/events")) == (503, "overloaded")


# --- fleet and executors


def test_the_fleet_can_be_set(scheduler: InProcess) -> None:
    status, view = scheduler.call("PUT", "/v1/fleet", {"instances": 3, "mem_bytes": 64 << 20})
    assert (status, view["instances"]) == (200, 3)
    assert len(scheduler.call("GET", "/v1/executors")[1]["executors"]) == 3
    wanted = {"instances": 0, "mem_bytes": 64 << 20, "disk_bytes": 128 << 20, "roles": ["a", "b"]}
    status, view = scheduler.call("PUT", "/v1/fleet", wanted | {"constraints": ["rack:group_by:3"]})
    assert status == 200 and view | wanted == view and view["role"] == "a"
    status, again = scheduler.call("PUT", "/v1/fleet", {"instances": 0, "mem_bytes": 64 << 20})
    assert wish_of(again) == wish_of(view) == wish_of(scheduler.call("GET", "/v1/fleet")[1])
    assert again["constraints"] == ["rack:GROUP_BY:3"], "what is not named stays"


def wish_of(view: dict[str, Any]) -> dict[str, Any]:
    return {name: view[name] for name in ("instances", "mem_bytes", "disk_bytes", "roles", "constraints")}


@pytest.mark.parametrize(
    "wrong",
    [
        {"role": ".x"},
        {"roles": []},
        {"roles": ["a", "a"]},
        {"roles": ["a"], "role": "b"},
        {"disk_bytes": 1},
        {"disk_bytes": 128 << 20, "role": "*"},
        {"constraints": ["rack"]},
        {"constraints": ["rack:NEAR"]},
        {"constraints": ["rack:LIKE:("]},
    ],
    ids=str,
)
def test_a_fleet_that_cannot_be_is_refused(scheduler: InProcess, wrong: dict[str, Any]) -> None:
    before = wish_of(scheduler.call("GET", "/v1/fleet")[1])
    wanted = {"instances": 0, "mem_bytes": 64 << 20, **wrong}
    assert code_of(scheduler.call("PUT", "/v1/fleet", wanted)) == (400, "bad_request")
    assert wish_of(scheduler.call("GET", "/v1/fleet")[1]) == before


def launched(scheduler: InProcess) -> Heartbeat:
    """Return the first heartbeat of an executor that was just launched."""
    scheduler.driver.scheduler.resourceOffers(scheduler.driver, [raw_offer(1)])
    wait_until(lambda: scheduler.driver.named("acceptOffers"))
    task = scheduler.driver.named("acceptOffers")[0][1][0]["launch"]["task_infos"][0]
    told = {v["name"]: v["value"] for v in task["executor"]["command"]["environment"]["variables"]}
    return Heartbeat(
        cluster=bytes.fromhex(told["STOKER_CLUSTER"]),
        slot_id=int(told["STOKER_SLOT"]),
        launch_id=int(told["STOKER_LAUNCH"]),
        incarnation=7,
        secret=told["STOKER_SECRET"],
        sequence=1,
        whole=True,
        epoch_seen=0,
        assignment_version=0,
        host="127.0.0.1",
        port=31005,
        socket_path="",
        abstract_socket="",
        boot_id="b",
        pid=1,
        capacity_bytes=64 << 20,
        used_bytes=0,
        lent_bytes=0,
    )


def beat(scheduler: InProcess, heartbeat: Heartbeat | bytes) -> tuple[int, Any]:
    data = heartbeat if isinstance(heartbeat, bytes) else encode(heartbeat)
    return scheduler.call("POST", "/v1/executors/heartbeat", raw=data)


def test_a_heartbeat_is_answered_with_the_assignment_and_the_schedulers(scheduler: InProcess) -> None:
    heartbeat = launched(scheduler)
    status, data = beat(scheduler, heartbeat)
    answer = decode_answer(data)
    assert (status, answer.status, answer.sequence) == (200, "ok", 1)
    assert answer.schedulers == ("http://127.0.0.1:7070",)
    assert answer.assignment is not None and len(answer.assignment.slots) == 2
    assert scheduler.call("GET", "/v1/executors")[1]["executors"][0]["state"] == "RUNNING"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"secret": "guessed"}, (403, "wrong_secret")),
        ({"cluster": b"x" * 16}, (403, "wrong_cluster")),
    ],
)
def test_a_stranger_is_refused(
    scheduler: InProcess, change: dict[str, Any], expected: tuple[int, str]
) -> None:
    heartbeat = dataclasses.replace(launched(scheduler), **change)
    assert code_of(beat(scheduler, heartbeat)) == expected
    assert scheduler.call("GET", "/v1/executors")[1]["executors"][0]["state"] == "LAUNCHING"


@pytest.mark.parametrize("data", [b"", b"\xc1", b"garbage", b"\x80", b"\x90", b"\x81\xa8datasets\x05"])
def test_garbage_is_no_heartbeat(scheduler: InProcess, data: bytes) -> None:
    assert code_of(beat(scheduler, data)) == (400, "bad_request")


def test_no_path_at_all_is_not_every_path(scheduler: InProcess, source: str) -> None:
    """A script whose list of paths to free came out empty means nothing, not everything."""
    add(scheduler, "d", source)
    for kind in ("load", "free"):
        body = {"kind": kind, "dataset": "d", "paths": []}
        assert code_of(scheduler.call("POST", "/v1/jobs", body)) == (400, "bad_request")


@pytest.mark.parametrize(
    "change",
    [
        {"launch_id": "x", "epoch_seen": "x"},
        {"launch_id": None},
        {"secret": 5},
        {"whole": 1},
        {"sequence": -1},
        {"capacity_bytes": 2**63},
        {"datasets": (Residency(1, 1, 1, added=(2**60,)),)},
        {"datasets": (Residency(1, 1, 1, removed=(-1,)),)},
        {"datasets": (Residency(1, 1, 1, bitmap="full"),)},  # type: ignore[arg-type]
        {"datasets": (Residency(1, 1, 1, failures=(FileFailure(0, 5, 1, "gone"),)),)},  # type: ignore[arg-type]
    ],
    ids=str,
)
def test_a_heartbeat_of_wrong_types_is_refused_and_ends_nothing(
    scheduler: InProcess, change: dict[str, Any]
) -> None:
    """The cluster's id is no secret: whoever knows it reaches the loop, where nothing may raise."""
    heartbeat = launched(scheduler)
    assert code_of(beat(scheduler, dataclasses.replace(heartbeat, **change))) == (400, "bad_request")
    assert beat(scheduler, heartbeat)[0] == 200


# --- when it cannot answer


def test_without_a_leadership_everything_but_alive_says_so(tmp_path: pathlib.Path) -> None:
    scheduler = InProcess(MemoryJournal(), tmp_path)
    assert scheduler.call("GET", "/alive")[0] == 200
    assert scheduler.call("GET", "/metrics")[0] == 200
    for path in ("/health", "/v1/datasets", "/v1/leader"):
        assert code_of(scheduler.call("GET", path)) == (503, "not_leading")
    answer = scheduler.call("POST", "/v1/datasets", {"name": "d", "source": "/x"})
    assert code_of(answer) == (503, "not_leading")


def test_a_write_that_is_not_committed_in_time_has_an_unknown_outcome(make: Any, source: str) -> None:
    journal = HeldJournal()
    journal.release()
    scheduler = make(journal)
    wait_until(lambda: scheduler.call("GET", "/v1/leader")[1]["framework_id"], "the id to be durable")
    journal.hold()
    scheduler.loop._write_timeout_ms = WRITE_TIMEOUT_MS
    answer = scheduler.call("POST", "/v1/datasets", {"name": "d", "source": source})
    assert code_of(answer) == (503, "outcome_unknown")
    journal.release()
    wait_until(lambda: scheduler.call("GET", "/v1/datasets")[0] != 503)
    assert scheduler.call("POST", "/v1/datasets", {"name": "d", "source": source})[0] == 200, (
        "asked again, it is there"
    )


def test_a_journal_that_refuses_ends_the_leadership_and_nothing_is_half_done(make: Any, source: str) -> None:
    journal = RefusingJournal(-1)
    scheduler = make(journal)
    wait_until(lambda: scheduler.call("GET", "/v1/leader")[1]["framework_id"], "the id to be durable")
    records = list(journal.records)
    journal.refuse_at = journal.appends
    answer = scheduler.call("POST", "/v1/datasets", {"name": "d", "source": source})
    assert code_of(answer) == (503, "outcome_unknown")
    wait_until(scheduler.loop.ended.ready, "the end")
    assert isinstance(scheduler.loop.ended.get(), Unavailable)
    assert journal.records == records
    scheduler.close()
    journal.mend()
    scheduler.lead()  # the same process leads again, from what is durable
    assert scheduler.call("GET", "/v1/datasets")[1] == {"datasets": []}
    assert scheduler.driver.framework["id"] == {"value": "F-0001"}
    assert scheduler.call("POST", "/v1/datasets", {"name": "d", "source": source})[0] == 201


def test_a_new_leadership_finds_everything_again(make: Any, source: str) -> None:
    journal = MemoryJournal()
    scheduler = make(journal)
    add(scheduler, "d", source)
    job = scheduler.call("POST", "/v1/jobs", {"kind": "load", "dataset": "d"})[1]
    before = scheduler.call("GET", "/v1/datasets")[1]
    cluster = scheduler.call("GET", "/v1/leader")[1]["cluster"]
    scheduler.close()
    again = make(journal)
    assert again.call("GET", "/v1/datasets")[1]["datasets"][0]["source"] == before["datasets"][0]["source"]
    assert again.call("GET", f"/v1/jobs/{job['id']}")[0] == 200
    leader = again.call("GET", "/v1/leader")[1]
    assert (leader["cluster"], leader["epoch"], leader["framework_id"]) == (cluster, 2, "F-0001")
    assert again.call("GET", "/v1/datasets/d/manifest")[0] == 200


def test_a_listing_that_was_cut_off_begins_again_with_the_next_leadership(make: Any, source: str) -> None:
    """No action is ever owed: StartListing is found again from the catalog."""
    journal = MemoryJournal()
    scheduler = make(journal)
    scheduler.call("POST", "/v1/datasets", {"name": "d", "source": source})
    scheduler.close()
    again = make(journal)
    assert wait_ready(again, "d")["state"] == "READY"


def test_metrics_count_what_happened(scheduler: InProcess, source: str) -> None:
    add(scheduler, "d", source)
    text = scheduler.call("GET", "/metrics")[1].decode()
    assert 'stoker_datasets{state="READY"} 1.0' in text
    assert 'stoker_executors{state="WAITING"} 2.0' in text
    assert "stoker_capacity_bytes 0.0" in text, "nobody was heard yet"
    assert 'stoker_requests_total{route="POST /v1/datasets",status="201"} 1.0' in text

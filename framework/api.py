"""The API's handlers: one method a route of routes.py. Each checks its input, asks or reads the loop, and answers.

Knows no socket and no HTTP library: web.py parses requests into a Call and turns what comes back, or is raised, into
an answer. Writes go through Loop.ask and reads through Loop.read, so nobody is told what is not durable.
"""

from __future__ import annotations

import dataclasses
import functools
import hmac
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import gevent

from stoker.executor.messages import Heartbeat, HeartbeatAnswer, decode_heartbeat, encode
from stoker.framework.bundles import Bundle, Bundles, read_bundle
from stoker.framework.checks import (
    check_drain,
    check_heartbeat,
    check_key,
    check_name,
    check_options,
    check_paths,
    check_source,
    refuse,
)
from stoker.framework.clock import now_ms
from stoker.framework.core import views
from stoker.framework.core.actions import Answer
from stoker.framework.core.catalog import Catalog, Dataset
from stoker.framework.core.constraints import parse_constraint
from stoker.framework.core.events import (
    DatasetChangeRequested,
    DatasetRemovalRequested,
    DatasetRequested,
    DrainRequested,
    DrainUndoRequested,
    FleetRequested,
    HeartbeatReceived,
    JobCancelRequested,
    JobRequested,
    RefreshRequested,
    UninstallRequested,
)
from stoker.framework.core.explanations import attention, offer_views, volume_states
from stoker.framework.core.fleet import Fleet
from stoker.framework.core.uninstalling import uninstall_view
from stoker.framework.errors import NotLeading, Overloaded, Refused
from stoker.framework.lists import MakeRow, encode_rows
from stoker.framework.loop import Loop
from stoker.framework.manifests import Manifests
from stoker.framework.metrics import Metrics
from stoker.framework.model import (
    STALE_SELECTION,
    Constraint,
    FleetSpec,
    JobKind,
    JobState,
    Manifested,
    Refusal,
    Selection,
)

SELECTION_TRIES_MAX = 8
FOLLOW_INTERVAL_MS = 500
FOLLOW_IDLE_MS = 10_000  # then a comment is sent, so that a dead reader is found
FOLLOWERS_MAX = 128
FINAL = frozenset(str(s) for s in JobState if s.is_final)


@dataclass(frozen=True, slots=True)
class Call:
    """A request, parsed and checked against its route: path parameters, queries and headers by name, the body."""

    parameters: Mapping[str, str] = field(default_factory=dict)
    queries: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Any = None
    data: bytes = b""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer: `body` is JSON's value, bytes, or an iterator of bytes that is sent as it comes, `size` of them if known."""

    status: int
    body: Any
    size: int | None = None


class Leadership(Protocol):
    """What handlers use of a leadership; see leadership.py."""

    @property
    def loop(self) -> Loop: ...
    @property
    def manifests(self) -> Manifests: ...
    @property
    def schedulers(self) -> tuple[str, ...]: ...
    def leader_view(self) -> dict[str, Any]: ...


class Api:
    """`leadership` returns the present one or raises NotLeading, with the reason. `known_schemes`: of sources; empty: any.

    `about` returns what GET /v1/leader says of a scheduler that does not lead (None: the reason why not, as all else does).
    `document` is openapi.document.
    """

    def __init__(
        self,
        leadership: Callable[[], Leadership],
        *,
        about: Callable[[], dict[str, Any]] | None = None,
        allow_sources: Sequence[str],
        known_schemes: Callable[[], Collection[str]] = tuple,
        metrics: Metrics,
        document: Mapping[str, Any],
        bundles: Bundles | None = None,
    ) -> None:
        self._leadership = leadership
        self._about = about
        self._allow_sources = tuple(allow_sources)
        self._known_schemes = known_schemes
        self._metrics = metrics
        self._document = document
        self._bundles = bundles or Bundles()
        self._followers = 0

    def check_leads(self) -> None:
        """:raises LedElsewhere, NotLeading: this scheduler cannot answer what only a leader can."""
        self._leadership()

    # --- datasets

    def list_datasets(self, call: Call) -> Reply:
        def row(catalog: Catalog, fleet: Fleet, name: str) -> dict[str, Any] | None:
            dataset = catalog.dataset_named(name)
            return None if dataset is None else views.dataset_view(catalog, fleet, dataset, now_ms())

        return self._read_rows(
            call,
            "datasets",
            lambda catalog: sorted(dataset.name for dataset in catalog.datasets.values()),
            row,
        )

    def add_dataset(self, call: Call) -> Reply:
        body = call.body
        name = check_name(body["name"])
        source = check_source(body["source"], self._allow_sources, self._known_schemes())
        options = check_options(body.get("options", {}), self._allow_sources)
        return self._ask(
            lambda reply_id: DatasetRequested(
                reply_id,
                name,
                source,
                options,
                replicas=body.get("replicas", 1),
                policy=body.get("policy", "keep"),
                tier=body.get("tier", "mem"),
                priority=body.get("priority", 0),
            )
        )

    def show_dataset(self, call: Call) -> Reply:
        name = check_name(call.parameters["name"])
        return self._read(
            lambda catalog, fleet: views.dataset_view(catalog, fleet, _dataset(catalog, name), now_ms())
        )

    def change_dataset(self, call: Call) -> Reply:
        name, body = check_name(call.parameters["name"]), call.body
        return self._ask(
            lambda reply_id: DatasetChangeRequested(
                reply_id, name, body.get("replicas"), body.get("policy"), body.get("priority")
            )
        )

    def remove_dataset(self, call: Call) -> Reply:
        name = check_name(call.parameters["name"])
        return self._ask(lambda reply_id: DatasetRemovalRequested(reply_id, name))

    def refresh_dataset(self, call: Call) -> Reply:
        name = check_name(call.parameters["name"])
        return self._ask(lambda reply_id: RefreshRequested(reply_id, name))

    def get_manifest(self, call: Call) -> Reply:
        name, version = check_name(call.parameters["name"]), call.queries.get("version")
        leadership = self._leadership()
        digest = leadership.loop.read(lambda catalog, _: _version(_dataset(catalog, name), version).digest)
        return Reply(200, leadership.manifests.bundle(digest))

    def get_placement(self, call: Call) -> Reply:
        name = check_name(call.parameters["name"])

        def view(catalog: Catalog, fleet: Fleet) -> dict[str, Any]:
            dataset = _dataset(catalog, name)
            _version(dataset, None)
            return views.placement_view(catalog, fleet, dataset)

        return self._read(view)

    # --- jobs

    def list_jobs(self, call: Call) -> Reply:
        def row(catalog: Catalog, fleet: Fleet, job_id: str) -> dict[str, Any] | None:
            job = catalog.jobs.get(job_id)
            return None if job is None else views.job_view(catalog, fleet, job, now_ms())

        return self._read_rows(call, "jobs", lambda catalog: list(catalog.jobs), row)

    def add_job(self, call: Call) -> Reply:
        body = call.body
        key = check_key(call.headers["Idempotency-Key"]) if "Idempotency-Key" in call.headers else ""
        if body["kind"] == JobKind.DRAIN:
            return self._drain(check_drain(body), key)
        if "agent" in body or "dataset" not in body:
            refuse(f"a {body['kind']} names a dataset", "only a drain names an agent")
        if body.get("paths") == []:
            refuse("the body.paths is an empty list", "leave paths out to name the whole dataset")
        name, paths = check_name(body["dataset"]), check_paths(body.get("paths", ()))
        leadership = self._leadership()
        for _ in range(SELECTION_TRIES_MAX):
            request = functools.partial(
                JobRequested,
                kind=body["kind"],
                dataset=name,
                paths=paths,
                key=key,
                fit=body.get("fit", False),
                plan_only=body.get("plan", False),
                selection=_select(leadership, name, str(body["kind"]), paths),
            )
            answer: Answer = leadership.loop.ask(request)
            if answer.refusal is None or answer.refusal.code != STALE_SELECTION:
                return _reply(answer)
        raise Overloaded(f"the dataset {name} changed under each of {SELECTION_TRIES_MAX} tries")

    def _drain(self, agent: str, key: str) -> Reply:
        return self._ask(lambda reply_id: DrainRequested(reply_id, agent, key))

    def undo_drain(self, call: Call) -> Reply:
        return self._ask(lambda reply_id: DrainUndoRequested(reply_id, call.parameters["id"]))

    def show_uninstall(self, call: Call) -> Reply:
        return self._read(lambda catalog, fleet: uninstall_view(catalog, catalog.uninstall))

    def uninstall(self, call: Call) -> Reply:
        keep_volumes = bool(call.body.get("keep_volumes", False))
        return self._ask(lambda reply_id: UninstallRequested(reply_id, keep_volumes))

    def show_job(self, call: Call) -> Reply:
        return self._read(lambda catalog, fleet: _job_view(catalog, fleet, call.parameters["id"]))

    def cancel_job(self, call: Call) -> Reply:
        return self._ask(lambda reply_id: JobCancelRequested(reply_id, call.parameters["id"]))

    def follow_job(self, call: Call) -> Reply:
        job_id = call.parameters["id"]
        leadership = self._leadership()
        first = leadership.loop.read(lambda catalog, fleet: _job_view(catalog, fleet, job_id))
        if self._followers >= FOLLOWERS_MAX:
            raise Overloaded(f"{FOLLOWERS_MAX} followers are connected already")
        return Reply(200, self._follow(leadership.loop, job_id, first))

    def _follow(self, loop: Loop, job_id: str, job: dict[str, Any]) -> Iterator[bytes]:
        """Yield the job whenever it looks different, until it is final or leadership ends."""
        self._followers += 1
        try:
            said, said_ms = "", now_ms()
            while True:
                text = json.dumps(job)
                if text != said:
                    said, said_ms = text, now_ms()
                    yield f"event: job\ndata: {text}\n\n".encode()
                elif now_ms() - said_ms > FOLLOW_IDLE_MS:
                    said_ms = now_ms()
                    yield b": still here\n\n"
                if job["state"] in FINAL:
                    return
                gevent.sleep(FOLLOW_INTERVAL_MS / 1000)
                job = loop.read(lambda catalog, fleet: _job_view(catalog, fleet, job_id))
        except (NotLeading, Refused) as error:  # the reader sees the end of the stream and asks again
            yield f": {error}\n\n".encode()
        finally:
            self._followers -= 1

    # --- fleet, executors, agents, offers

    def show_fleet(self, call: Call) -> Reply:
        return self._read(lambda catalog, fleet: views.fleet_view(catalog, fleet, now_ms()))

    def set_fleet(self, call: Call) -> Reply:
        body = call.body
        now = self._leadership().loop.read(lambda catalog, _: catalog.fleet)
        assert now is not None, "LeadershipBegan sets it"
        roles = body.get("roles", [body["role"]] if "role" in body else now.roles)
        if not roles or ("roles" in body and body.get("role", roles[0]) != roles[0]):
            refuse(f"the roles are {roles}, the role is {body.get('role')!r}", "give one of the two")
        texts = body.get("constraints")
        spec = FleetSpec(
            body["instances"],
            body["mem_bytes"],
            now.cpus_milli,
            roles[0],
            body.get("disk_bytes", now.disk_bytes),
            now.constraints if texts is None else tuple(map(_constraint, texts)),
            tuple(roles[1:]),
            body.get("executor", now.executor),
        )
        return self._ask(lambda reply_id: FleetRequested(reply_id, spec))

    def list_executors(self, call: Call) -> Reply:
        return self._read_page(call, "executors", "slot", lambda c, f: views.executor_views(c, f, now_ms()))

    def list_agents(self, call: Call) -> Reply:
        return self._read_page(call, "agents", "id", lambda c, f: views.agent_views(c, f))

    def list_offers(self, call: Call) -> Reply:
        limit = call.queries.get("limit")
        return self._read(lambda catalog, fleet: {"offers": offer_views(fleet, limit)})

    def take_heartbeat(self, call: Call) -> Reply:
        try:
            heartbeat = decode_heartbeat(call.data)
        except (ValueError, TypeError, AttributeError) as error:
            refuse(f"not a heartbeat: {error}")
        check_heartbeat(heartbeat)
        leadership = self._leadership()
        leadership.loop.peek(lambda catalog, _: _check_sender(catalog, heartbeat))
        answer: HeartbeatAnswer = leadership.loop.ask(lambda reply_id: HeartbeatReceived(heartbeat, reply_id))
        return Reply(200, encode(dataclasses.replace(answer, schedulers=leadership.schedulers)))

    # --- about this scheduler

    def show_leader(self, call: Call) -> Reply:
        try:
            return Reply(200, self._leadership().leader_view())
        except NotLeading:
            if self._about is None:
                raise
            return Reply(200, self._about())

    def get_bundle(self, call: Call) -> Reply:
        bundle = self._bundle(call)
        return Reply(200, read_bundle(bundle), bundle.size)

    def size_bundle(self, call: Call) -> Reply:
        return Reply(200, iter(()), self._bundle(call).size)

    def _bundle(self, call: Call) -> Bundle:
        bundle = self._bundles.find(call.parameters["digest"])
        if bundle is None:
            hint = "each scheduler serves those of its --bundle options: give all schedulers the same"
            raise Refused(Refusal(404, "not_found", "there is no bundle of that digest here", hint))
        return bundle

    def show_openapi(self, call: Call) -> Reply:
        return Reply(200, self._document)

    def show_alive(self, call: Call) -> Reply:
        return Reply(200, {"alive": True})

    def show_health(self, call: Call) -> Reply:
        self._leadership()
        return Reply(200, {"state": "leading"})

    def show_metrics(self, call: Call) -> Reply:
        try:
            loop = self._leadership().loop
            loop.peek(lambda catalog, fleet: _gauge(self._metrics, catalog, fleet))
            self._metrics.journal_next_index.set(loop.next_index)
        except NotLeading:
            self._gauge_following()  # the counters stand for themselves
        return Reply(200, self._metrics.text())

    # --- helpers

    def _gauge_following(self) -> None:
        about = {} if self._about is None else self._about()
        self._metrics.following.set(about.get("state") == "following")
        self._metrics.journal_next_index.set(about.get("next_index", 0))
        self._metrics.journal_behind_records.set(about.get("behind", 0))

    def _read(self, view: Callable[[Catalog, Fleet], Any]) -> Reply:
        return Reply(200, self._leadership().loop.read(view))

    def _read_page(
        self, call: Call, name: str, key: str, make: Callable[[Catalog, Fleet], Iterable[dict[str, Any]]]
    ) -> Reply:
        def view(catalog: Catalog, fleet: Fleet) -> dict[str, Any]:
            page, after = _page(list(make(catalog, fleet)), call, key=lambda row: row[key])
            return _rows(name, page, after)

        return self._read(view)

    def _read_rows(
        self, call: Call, name: str, keys: Callable[[Catalog], list[str]], make_row: MakeRow
    ) -> Reply:
        loop = self._leadership().loop
        known = loop.read(lambda catalog, fleet: keys(catalog))
        page, after = _page(known, call, key=lambda key: key)
        return Reply(200, encode_rows(loop.read, name, page, make_row, after))

    def _ask(self, make_event: Callable[[int], Any]) -> Reply:
        return _reply(self._leadership().loop.ask(make_event))


def _reply(answer: Answer) -> Reply:
    if answer.refusal is not None:
        raise Refused(answer.refusal)
    return Reply(answer.status, answer.body)


def _constraint(text: str) -> Constraint:
    try:
        return parse_constraint(text)
    except ValueError as error:
        refuse(f"constraint {text!r}: {error}")


def _page(rows: Sequence[Any], call: Call, *, key: Callable[[Any], Any]) -> tuple[list[Any], str | None]:
    """Return the rows that `limit` and `after` name, of rows sorted by `key`, and the key to go on after."""
    after, limit = call.queries.get("after"), call.queries.get("limit")
    page = list(rows)
    if after is not None and page:
        bound: Any = after
        if isinstance(key(page[0]), int):
            if not after.isascii() or not after.isdigit():
                refuse(f"after is {after[:80]!r}", "the `next` of the page before")
            bound = int(after)
        page = [row for row in page if key(row) > bound]
    if limit is None or len(page) <= limit:
        return page, None
    return page[:limit], str(key(page[limit - 1]))


def _rows(name: str, rows: list[Any], after: str | None) -> dict[str, Any]:
    return {name: rows} if after is None else {name: rows, "next": after}


def _dataset(catalog: Catalog, name: str) -> Dataset:
    dataset = catalog.dataset_named(name)
    if dataset is None:
        refuse(f"there is no dataset {name!r}", "GET /v1/datasets lists them", status=404, code="not_found")
    return dataset


def _version(dataset: Dataset, version: int | None) -> Manifested:
    if dataset.current is None:
        refuse(f"the dataset {dataset.name!r} is {dataset.state}: {dataset.error or 'its source is being listed'}",
               "wait until it is READY", status=409, code="not_ready")  # fmt: skip
    if version is None:
        return dataset.current
    for known in dataset.versions:
        if known.version == version:
            return known
    standing = ", ".join(str(known.version) for known in dataset.versions)
    refuse(
        f"the dataset {dataset.name!r} has no version {version}",
        f"there are {standing}",
        status=404,
        code="not_found",
    )


def _job_view(catalog: Catalog, fleet: Fleet, job_id: str) -> dict[str, Any]:
    job = catalog.jobs.get(job_id)
    if job is None:
        refuse(f"there is no job {job_id[:80]!r}", "GET /v1/jobs lists them", status=404, code="not_found")
    return views.job_view(catalog, fleet, job, now_ms())


def _select(leadership: Leadership, name: str, kind: str, paths: tuple[str, ...]) -> Selection | None:
    """Return what the paths mean now; None where there is nothing to select from (the core says why)."""

    def wanted(catalog: Catalog, _: Fleet) -> tuple[str, int, Any, int] | None:
        dataset = catalog.dataset_named(name)
        if dataset is None or dataset.current is None:
            return None
        return dataset.current.digest, dataset.dataset_id, dataset.rules, dataset.wanted_version

    found = leadership.loop.read(wanted)
    if found is None:
        return None
    digest, dataset_id, rules, wanted_version = found
    return leadership.manifests.select(
        digest, dataset_id=dataset_id, kind=kind, paths=paths, rules=rules, wanted_version=wanted_version
    )


def _check_sender(catalog: Catalog, heartbeat: Heartbeat) -> None:
    """:raises Refused: another cluster's executor, or one that does not know its launch's secret."""
    if heartbeat.cluster != catalog.cluster:
        refuse("this is not the cluster of that executor", status=403, code="wrong_cluster")
    launch = catalog.launches.get(heartbeat.launch_id)
    if launch is None:
        return
    if not hmac.compare_digest(launch.secret.encode(), heartbeat.secret.encode()):
        refuse("the launch's secret is another", status=403, code="wrong_secret")


def _gauge(metrics: Metrics, catalog: Catalog, fleet: Fleet) -> None:
    """Set the gauges that are computed when somebody looks."""
    executors = views.executor_views(catalog, fleet, now_ms())
    for gauge, states in (
        (metrics.executors, [e["state"] for e in executors]),
        (metrics.volumes, volume_states(catalog, fleet)),
        (metrics.datasets, [str(d.state) for d in catalog.datasets.values()]),
        (metrics.jobs, [str(state) for state in catalog.jobs.states()]),
    ):
        gauge.clear()
        for state in states:
            gauge.labels(state).inc()
    heard = [e for e in executors if e["used_bytes"] is not None]  # the others' capacity is a wish
    metrics.capacity_bytes.set(sum(e["capacity_bytes"] for e in heard))
    metrics.following.set(0)
    metrics.journal_behind_records.set(0)
    metrics.used_bytes.set(sum(e["used_bytes"] for e in heard))
    metrics.trouble.set(bool(attention(fleet)))
    metrics.refused_answers.set(sum(e["refused_count"] for e in heard))
    disks = [e["disk"] for e in heard if e["disk"] is not None]
    metrics.disk_capacity_bytes.set(sum(disk["capacity_bytes"] for disk in disks))
    metrics.disk_used_bytes.set(sum(disk["used_bytes"] for disk in disks))
    metrics.disk_errors.set(sum(disk["error_count"] for disk in disks))

"""The names and shapes that other people's programs hold on to."""

from __future__ import annotations

import base64
import json

import numpy as np

from stoker.framework.core import views
from stoker.framework.core.catalog import Dataset
from stoker.framework.core.explanations import offer_views
from support.core_stage import BLOCK_BYTES, MIB, Stage

DATASET = (
    "name id source options state error message files bytes cached_bytes cached_ratio version generation residency replicas "
    "replicas_actual policy tier priority wanted block_bytes blocks listing created_ms"
)
JOB = (
    "id kind dataset agent paths state message progress error_count errors created_ms started_ms finished_ms"
)
PROGRESS = "bytes bytes_total files files_total rate_bytes_per_s eta_seconds executors"
EXECUTOR = (
    "slot state reason launch task_id agent_id hostname host port capacity_bytes used_bytes lent_bytes disk pid "
    "refused_count heartbeat_age_ms datasets"
)
PLACEMENT = "name dataset_id cluster version generation digest block_bytes pg_count replicas placement_version homes slots"


def test_all_views_have_their_fields_and_are_json() -> None:
    stage = Stage(instances=2).start()
    dataset = stage.ready()
    stage.job("load")
    stage.hold(1, dataset, {1})
    stage.offer("agent-7", attributes=(("rack", "r1"),))
    catalog, fleet, now_ms = stage.catalog, stage.fleet, stage.now_ms
    rows = {
        DATASET: views.dataset_view(catalog, fleet, stage.dataset(), now_ms),
        JOB: views.job_view(catalog, fleet, stage.only_job(), now_ms),
        PROGRESS: views.job_view(catalog, fleet, stage.only_job(), now_ms)["progress"],
        EXECUTOR: views.executor_views(catalog, fleet, now_ms)[0],
        "instances mem_bytes disk_bytes role roles constraints executor attention running volumes waiting_count waiting": views.fleet_view(
            catalog, fleet, now_ms
        ),
        "id hostname attributes executors drain": views.agent_views(catalog, fleet)[0],
        "offer_id agent_id hostname role cpus mem_bytes disk_bytes decision reason checks wall_ms": offer_views(
            fleet
        )[0],
        PLACEMENT: views.placement_view(catalog, fleet, stage.dataset()),
    }
    for names, row in rows.items():
        assert list(row) == names.split()
        json.dumps(row)


def test_a_dataset_that_is_listed_shows_null_for_what_is_not_known() -> None:
    stage = Stage().start()
    body = stage.add().body
    unknown = [
        name
        for name in ("files", "bytes", "cached_bytes", "cached_ratio", "version", "blocks")
        if body[name] is not None
    ]
    assert not unknown


def cached(stage: Stage, dataset: Dataset) -> tuple[int, float, int]:
    body = views.dataset_view(stage.catalog, stage.fleet, dataset, stage.now_ms)
    return body["cached_bytes"], body["cached_ratio"], body["replicas_actual"]


def test_cached_bytes_are_counted_once_however_many_copies() -> None:
    stage = Stage(instances=2).start()
    dataset = stage.ready(blocks=16, replicas=2)
    assert cached(stage, dataset) == (0, 0.0, 0)
    stage.hold(1, dataset, range(16))
    assert cached(stage, dataset) == (16 * BLOCK_BYTES, 1.0, 1)
    stage.hold(2, dataset, range(16))
    assert cached(stage, dataset) == (16 * BLOCK_BYTES, 1.0, 2)
    stage.hold(2, dataset, range(4))
    assert cached(stage, dataset) == (16 * BLOCK_BYTES, 1.0, 1)
    stage.hold(1, dataset, range(2, 4))
    assert cached(stage, dataset) == (4 * BLOCK_BYTES, 0.25, 1)


def test_executors_are_shown_by_what_became_of_them() -> None:
    stage = Stage(instances=4)
    stage.lead()
    stage.subscribe()
    stage.offer("agent-1", "agent-2", "agent-3")
    stage.beat(stage.launch(2), whole=True)
    stage.now_ms += 4_000
    stage.beat(stage.launch(1), whole=True, used_bytes=5 * MIB)
    stage.status(stage.launch(3).task_id, "TASK_STARTING")
    rows = views.executor_views(stage.catalog, stage.fleet, stage.now_ms)
    assert [row["state"] for row in rows] == ["RUNNING", "LOST", "LAUNCHING", "WAITING"]
    assert rows[0]["used_bytes"] == 5 * MIB and rows[0]["heartbeat_age_ms"] == 0
    assert "silent for 4000 ms" in rows[1]["reason"] and "TASK_STARTING" in rows[2]["reason"]
    assert rows[3]["launch"] is None and rows[3]["reason"] == "no offer came yet"


def test_an_empty_dataset_is_wholly_cached() -> None:
    stage = Stage().start()
    dataset = stage.ready(blocks=0)
    assert cached(stage, dataset) == (0, 1.0, 0)


def test_placement_points_into_its_slots() -> None:
    stage = Stage(instances=3, slot_out_ms=5_000).start(agents=2)
    dataset = stage.ready(blocks=64, replicas=2)
    stage.pass_time(6_000)
    view = views.placement_view(stage.catalog, stage.fleet, dataset)
    homes = np.frombuffer(base64.b64decode(view["homes"]), dtype="<u2").reshape(2, view["pg_count"])
    assert (homes < 2).all() and [slot["slot_id"] for slot in view["slots"]] == [1, 2, 3]
    assert [slot["port"] > 0 for slot in view["slots"]] == [True, True, False]
    assert view["cluster"] == stage.catalog.cluster.hex()

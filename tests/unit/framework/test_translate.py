"""Mesos' JSON to values and back: units, reservations, and sums that fit the offer."""

from __future__ import annotations

import json
import math
import pathlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.framework.core.entries import LaunchPlanned
from stoker.framework.model import EXECUTOR_OVERHEAD_BYTES, Resources
from stoker.framework.translate import (
    TASK_CPUS_MILLI,
    LaunchValues,
    Untranslatable,
    container_to_mesos,
    framework_to_mesos,
    inverse_offer_from_mesos,
    launch_environment,
    offer_from_mesos,
    python_command,
    resources_from_mesos,
    status_from_mesos,
    task_to_mesos,
)
from support.schedulers import raw_offer

MIB = 2**20


def launch(**fields: Any) -> LaunchPlanned:
    values: dict[str, Any] = {
        "launch_id": 3,
        "slot_id": 2,
        "task_id": "stoker-00000000-e1-s2-l3",
        "agent_id": "A1",
        "hostname": "host1",
        "port": 31005,
        "secret": "s3cret",
        "mem_bytes": 1024 * MIB,
        "cpus_milli": 500,
        "epoch": 1,
        "wall_ms": 0,
    }
    return LaunchPlanned(**values | fields)


def task_of(plan: LaunchPlanned, *offers: dict[str, Any]) -> dict[str, Any]:
    mem_bytes = plan.mem_bytes + EXECUTOR_OVERHEAD_BYTES
    return task_to_mesos(plan, offers, LaunchValues(mem_bytes, "exec true", {"B": "2", "A": "1"}))


def test_an_offer_becomes_integers() -> None:
    offer = offer_from_mesos(raw_offer(1, cpus=3.999, mem=1000.123, role="cache"))
    assert offer.resources == Resources(3999, int(1000.123 * MIB), 0, ((31000, 31099),))
    assert (offer.offer_id, offer.agent_id, offer.hostname, offer.role) == ("O1", "A1", "host1", "cache")
    assert offer.attributes == (("rack", "r1"),)


def test_attributes_and_domain_are_text() -> None:
    raw = raw_offer(1)
    raw["attributes"] = [
        {"name": "slot", "type": "SCALAR", "scalar": {"value": 2.0}},
        {"name": "p", "type": "RANGES", "ranges": {"range": [{"begin": 1, "end": 3}]}},
        {"name": "s", "type": "SET", "set": {"item": ["a", "b"]}},
    ]
    raw["domain"] = {"fault_domain": {"region": {"name": "eu"}, "zone": {"name": "z1"}}}
    offer = offer_from_mesos(raw)
    assert offer.attributes == (("p", "[1-3]"), ("s", "{a,b}"), ("slot", "2"))
    assert (offer.region, offer.zone) == ("eu", "z1")


def test_what_is_not_ours_to_use_is_not_counted() -> None:
    raw = raw_offer(1)["resources"]
    raw.append({"name": "cpus", "type": "SCALAR", "scalar": {"value": 8.0}, "revocable": {}})
    raw.append(
        {"name": "disk", "type": "SCALAR", "scalar": {"value": 8.0}, "disk": {"persistence": {"id": "v"}}}
    )
    assert resources_from_mesos(raw) == resources_from_mesos(raw_offer(1)["resources"])


def test_an_offer_without_its_fields_is_said_so() -> None:
    raw = raw_offer(1)
    del raw["agent_id"]
    with pytest.raises(Untranslatable, match="agent_id"):
        offer_from_mesos(raw)


def test_a_status_keeps_its_uuid_as_bytes() -> None:
    raw = {"task_id": {"value": "t"}, "state": "TASK_RUNNING", "agent_id": {"value": "A"}, "uuid": "AAEC/w=="}
    assert status_from_mesos(raw).uuid == b"\x00\x01\x02\xff"
    assert status_from_mesos({"task_id": {"value": "t"}, "state": "TASK_LOST"}).uuid == b""
    with pytest.raises(Untranslatable):
        status_from_mesos({"state": "TASK_RUNNING"})


def test_task_and_executor_sum_to_what_was_asked() -> None:
    plan = launch()
    task = task_of(plan, raw_offer(1, role="cache"))
    total = resources_from_mesos([*task["resources"], *task["executor"]["resources"]])
    assert total == Resources(500, plan.mem_bytes + EXECUTOR_OVERHEAD_BYTES, 0, ((31005, 31005),))
    assert resources_from_mesos(task["resources"]).cpus_milli == TASK_CPUS_MILLI
    assert task["executor"]["executor_id"] == task["task_id"] == {"value": plan.task_id}
    assert task["executor"]["type"] == "CUSTOM"
    variables = task["executor"]["command"]["environment"]["variables"]
    assert variables == [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]


def test_reserved_resources_are_named_as_they_were_offered() -> None:
    raw = raw_offer(1, cpus=0.2, mem=600.0, role="cache")
    reservation = {
        "reservations": [{"type": "STATIC", "role": "cache"}],
        "allocation_info": {"role": "cache"},
    }
    raw["resources"].append({"name": "cpus", "type": "SCALAR", "scalar": {"value": 2.0}, **reservation})
    raw["resources"].append({"name": "mem", "type": "SCALAR", "scalar": {"value": 2000.0}, **reservation})
    task = task_of(launch(), raw)
    mems = [r for r in task["executor"]["resources"] if r["name"] == "mem"]
    assert [r["scalar"]["value"] for r in mems] == [600.0, 680.0]
    assert "reservations" not in mems[0] and mems[1]["reservations"] == reservation["reservations"]
    taken = sum(
        r["scalar"]["value"]
        for r in [*task["resources"], *task["executor"]["resources"]]
        if r["name"] == "cpus"
    )
    assert taken == pytest.approx(0.5)


def test_several_offers_of_one_agent_are_used_together() -> None:
    first, second = raw_offer(1, mem=1000.0), raw_offer(1, mem=1000.0)
    mems = [
        r["scalar"]["value"]
        for r in task_of(launch(), first, second)["executor"]["resources"]
        if r["name"] == "mem"
    ]
    assert mems == [1000.0, 280.0]


@pytest.mark.parametrize(
    ("change", "says"),
    [({"mem_bytes": 8192 * MIB}, "mem"), ({"cpus_milli": 5000}, "cpus"), ({"port": 80}, "port 80")],
)
def test_a_launch_that_the_offer_does_not_hold_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(Untranslatable, match=says):
        task_of(launch(**change), raw_offer(1))


@given(mem=st.floats(300, 1e6), cpus=st.floats(0.05, 128))
def test_all_of_an_offer_can_always_be_asked_for(mem: float, cpus: float) -> None:
    """What is read from an offer, rounded down to bytes, must never be more than the offer when written back."""
    raw = raw_offer(1, mem=round(mem, 3), cpus=round(cpus, 3))
    offered = offer_from_mesos(raw).resources
    plan = launch(cpus_milli=offered.cpus_milli, mem_bytes=offered.mem_bytes - EXECUTOR_OVERHEAD_BYTES)
    task = task_of(plan, raw)
    asked = [r["scalar"]["value"] for r in task["executor"]["resources"] if r["name"] == "mem"]
    assert sum(asked) <= round(mem, 3)


def test_the_framework_keeps_its_id_and_asks_for_no_gpus_unless_told() -> None:
    common: dict[str, Any] = {
        "name": "stoker",
        "user": "nobody",
        "roles": ["cache"],
        "principal": "",
        "failover_timeout_ms": 1_209_600_000,
        "webui_url": "http://h:1",
    }
    info = framework_to_mesos(**common, gpu_agents=False, framework_id="")
    assert "id" not in info and "principal" not in info and info["checkpoint"] is True
    assert info["failover_timeout"] == 1_209_600.0
    assert {c["type"] for c in info["capabilities"]} == {
        "MULTI_ROLE",
        "PARTITION_AWARE",
        "RESERVATION_REFINEMENT",
        "TASK_KILLING_STATE",
        "REGION_AWARE",
    }
    info = framework_to_mesos(**common | {"principal": "p"}, gpu_agents=True, framework_id="F")
    assert info["id"] == {"value": "F"} and info["principal"] == "p"
    assert {"type": "GPU_RESOURCES"} in info["capabilities"]


def test_ours_wins_over_the_operators_variables() -> None:
    environment = launch_environment(
        launch(),
        cluster=b"\x01" * 16,
        schedulers=("http://a:1", "http://b:2"),
        variables={"STOKER_SLOT": "99", "AWS_REGION": "eu"},
        socket_dir="/run/s",
        fillers=2,
    )
    assert environment["STOKER_SLOT"] == "2" and environment["AWS_REGION"] == "eu"
    assert environment["STOKER_SCHEDULERS"] == "http://a:1,http://b:2"
    assert environment["STOKER_MEM_BYTES"] == str(1024 * MIB)
    assert environment["STOKER_SOCKET_DIR"] == "/run/s" and environment["STOKER_FILLERS"] == "2"


def test_what_a_real_master_says_can_be_translated() -> None:
    """Every offer and update of the recorded conversations with a real Mesos."""
    transcripts = pathlib.Path(__file__).parents[2] / "data" / "mesos-transcripts"
    if not transcripts.is_dir():
        pytest.skip("no transcripts")
    offers = statuses = 0
    for path in sorted(transcripts.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            said = json.loads(line)
            body = said.get("body") or {}
            if said["who"] != "master" or said["kind"] != "event":
                continue
            if body["type"] == "OFFERS":
                for raw in body["offers"]["offers"]:
                    offer_from_mesos({"hostname": "trimmed", **raw})
                    offers += 1
            elif body["type"] == "UPDATE":
                status_from_mesos(body["update"]["status"])
                statuses += 1
    assert offers > 50 and statuses > 50


def test_an_executor_in_a_container_image_shares_the_agents_socket_directory() -> None:
    container = container_to_mesos("registry.example/stoker:1", "/run/stoker")
    assert container["mesos"]["image"] == {"type": "DOCKER", "docker": {"name": "registry.example/stoker:1"}}
    assert container["volumes"] == [
        {"mode": "RW", "host_path": "/run/stoker", "container_path": "/run/stoker"}
    ]
    assert "volumes" not in container_to_mesos("stoker", "")
    values = LaunchValues(64 * MIB, python_command("/opt/a python"), {}, container=container)
    task = task_to_mesos(launch(), [raw_offer(1)], values)
    assert task["executor"]["container"] == container
    assert task["executor"]["command"]["value"] == "exec '/opt/a python' -m stoker.executor"


@pytest.mark.parametrize(
    "change",
    [
        {"attributes": [{"name": "x", "type": "SCALAR", "scalar": {"value": "1"}}]},
        {"resources": [{"name": "cpus", "type": "SCALAR", "scalar": {"value": math.nan}}]},
        {"resources": [{"name": "mem", "type": "SCALAR", "scalar": {"value": math.inf}}]},
        {
            "resources": [
                {"name": "ports", "type": "RANGES", "ranges": {"range": [{"begin": "1", "end": "9"}]}}
            ]
        },
        {"unavailability": {"start": {"nanoseconds": "soon"}}},
        {"unavailability": {"start": {"nanoseconds": math.inf}}},
    ],
    ids=["text attribute", "no number", "no end", "text port", "text time", "endless time"],
)
def test_an_offer_of_nonsense_is_said_so(change: dict[str, Any]) -> None:
    with pytest.raises(Untranslatable, match="an offer: "):
        offer_from_mesos(raw_offer(1) | change)
    if "unavailability" in change:
        with pytest.raises(Untranslatable, match="an inverse offer: "):
            inverse_offer_from_mesos({"id": {"value": "I1"}, "agent_id": {"value": "A1"}} | change)

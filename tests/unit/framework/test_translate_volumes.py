"""Reservations and volumes: named as they were offered, with our labels; nobody else's are touched."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from stoker.framework.core.actions import Accept, DestroyVolume
from stoker.framework.core.entries import LaunchPlanned, VolumePlanned
from stoker.framework.model import OfferedReservation, OfferedVolume
from stoker.framework.translate import (
    LaunchValues,
    Untranslatable,
    destruction_to_mesos,
    framework_to_mesos,
    inverse_offer_from_mesos,
    launch_environment,
    offer_from_mesos,
    operation_from_mesos,
    task_to_mesos,
    volume_to_mesos,
)
from support.schedulers import raw_offer

MIB = 1024 * 1024
CLUSTER = bytes(range(16))
ROLE = "cache"
PLANNED = VolumePlanned(7, 2, "A1", "host1", ROLE, 512 * MIB, 0)


def labels(volume_id: int = 7, cluster: bytes = CLUSTER) -> dict[str, Any]:
    pairs = {"stoker_cluster": cluster.hex(), "stoker_volume": str(volume_id)}
    return {"labels": [{"key": key, "value": value} for key, value in pairs.items()]}


def disk(mebibytes: float, **fields: Any) -> dict[str, Any]:
    return {
        "name": "disk",
        "type": "SCALAR",
        "scalar": {"value": mebibytes},
        "allocation_info": {"role": ROLE},
        **fields,
    }


def reserved(mebibytes: float, told: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """A reservation as a real master offers it: keys in its order, a principal in it."""
    reservation: dict[str, Any] = {"type": "DYNAMIC", "role": ROLE, "principal": "p"}
    return disk(mebibytes, reservations=[reservation | ({"labels": told} if told else {})], **fields)


def volume(mebibytes: float, volume_id: int = 7, told: dict[str, Any] | None = None) -> dict[str, Any]:
    name = f"stoker-{CLUSTER.hex()[:8]}-v{volume_id}"
    place = {"mode": "RW", "container_path": "ssd"}
    return reserved(
        mebibytes,
        told or labels(volume_id),
        disk={"persistence": {"id": name, "principal": "p"}, "volume": place},
    )


def offer(*resources: dict[str, Any]) -> dict[str, Any]:
    raw = raw_offer(1, role=ROLE)
    raw["resources"] += resources
    return raw


def launch(volume_id: int = 7) -> LaunchPlanned:
    return LaunchPlanned(
        3,
        2,
        "stoker-00010203-e1-s2-l3",
        "A1",
        "host1",
        31005,
        "s",
        64 * MIB,
        500,
        1,
        0,
        volume_id,
        512 * MIB,
        ROLE,
    )


def accept(volume: VolumePlanned | None, reserved_volume_id: int = 0) -> Accept:
    return Accept(("O1",), launch(), 0, ROLE, volume, reserved_volume_id)


def test_what_an_offer_holds_of_a_stoker_cluster() -> None:
    other = bytes(16)
    theirs = volume(64, 9, labels(9, other))
    theirs["disk"]["persistence"]["id"] = "stoker-00000000-v9"
    taken = offer_from_mesos(offer(disk(1000), reserved(100.5, labels(8)), volume(512), theirs))
    assert taken.resources.disk_bytes == 1000 * MIB
    assert taken.reserved_disk == (OfferedReservation(CLUSTER.hex(), 8, ROLE, int(100.5 * MIB)),)
    assert taken.volumes == (
        OfferedVolume(CLUSTER.hex(), 7, ROLE, 512 * MIB),
        OfferedVolume(other.hex(), 9, ROLE, 64 * MIB),
    )


@pytest.mark.parametrize(
    "resource",
    [
        reserved(100),  # the role's, without labels: no disk to reserve
        reserved(100, {"labels": [{"key": "resource_id", "value": "x"}]}),
        reserved(
            100, {"labels": [{"key": "stoker_cluster", "value": "x"}, {"key": "stoker_volume", "value": "1"}]}
        ),
        reserved(100, {"labels": [{"key": "stoker_cluster", "value": CLUSTER.hex()}]}),
        volume(100, 7, {"labels": [{"key": "resource_id", "value": "x"}]}),
        reserved(100, labels(), disk={"persistence": {"id": "somebody"}, "volume": {}}),
        disk(100, disk={"source": {"type": "MOUNT"}}),
        disk(100, revocable={}),
    ],
)
def test_what_is_somebody_elses_is_not_seen(resource: dict[str, Any]) -> None:
    taken = offer_from_mesos(offer(resource))
    assert (taken.resources.disk_bytes, taken.volumes, taken.reserved_disk) == (0, (), ())


def test_labelled_cpus_and_memory_are_somebodys_and_unlabelled_ones_the_roles() -> None:
    plain = offer_from_mesos(raw_offer(1, role=ROLE)).resources
    ours = {"type": "DYNAMIC", "role": ROLE}
    cpus = {"name": "cpus", "type": "SCALAR", "scalar": {"value": 2.0}}
    role_only = offer_from_mesos(offer({**cpus, "reservations": [ours]})).resources
    labelled = offer_from_mesos(offer({**cpus, "reservations": [ours | {"labels": labels()}]})).resources
    assert role_only.cpus_milli == plain.cpus_milli + 2000 and labelled == plain


def test_a_new_volume_is_reserved_created_and_given_to_the_executor() -> None:
    raw = offer(disk(1000))
    operations, made = volume_to_mesos(accept(PLANNED), [raw], cluster=CLUSTER, principal="p")
    reserve, create = operations
    (resource,) = reserve["reserve"]["resources"]
    assert reserve["id"] == {"value": "stoker-00010203-v7-reserve"}
    assert resource["reservations"] == [
        {"type": "DYNAMIC", "role": ROLE, "principal": "p", "labels": labels()}
    ]
    assert resource["scalar"] == {"value": 512.0} and "disk" not in resource
    assert create["id"] == {"value": "stoker-00010203-v7-create"}
    assert create["create"]["volumes"] == [made]
    assert made is not None and made["disk"] == {
        "persistence": {"id": "stoker-00010203-v7", "principal": "p"},
        "volume": {"container_path": "ssd", "mode": "RW"},
    }
    task = task_to_mesos(launch(), [raw], LaunchValues(320 * MIB, "exec true", {}), made)
    assert task["executor"]["resources"][-1] == made
    assert all(resource["name"] != "disk" for resource in task["resources"])


def test_without_a_principal_none_is_named() -> None:
    (reserve, _), made = volume_to_mesos(accept(PLANNED), [offer(disk(1000))], cluster=CLUSTER, principal="")
    assert "principal" not in reserve["reserve"]["resources"][0]["reservations"][0]
    assert made is not None and "principal" not in made["disk"]["persistence"]


def test_a_volume_that_is_there_is_named_as_it_was_offered() -> None:
    there = volume(512)
    operations, named = volume_to_mesos(
        accept(None), [offer(disk(9)), offer(volume(64, 8), there)], cluster=CLUSTER, principal="p"
    )
    assert not operations and named == there


def test_reserved_disk_is_used_again_as_it_was_offered_but_for_its_size() -> None:
    left = reserved(600, labels(5))
    (create,), made = volume_to_mesos(accept(PLANNED, 5), [offer(left)], cluster=CLUSTER, principal="p")
    assert create["type"] == "CREATE" and made is not None
    assert {k: v for k, v in made.items() if k != "disk"} == left | {"scalar": {"value": 512.0}}


@pytest.mark.parametrize("planned", [None, PLANNED])
def test_a_volume_or_reservation_that_is_not_there_is_an_error(planned: VolumePlanned | None) -> None:
    theirs = volume(512, 7, labels(7, bytes(16)))
    with pytest.raises(Untranslatable, match="do not hold"):
        volume_to_mesos(accept(planned, 5), [offer(theirs)], cluster=CLUSTER, principal="p")


def test_a_volume_is_destroyed_and_unreserved_exactly_as_offered() -> None:
    there, other = volume(512), volume(64, 8)
    raw = offer(other, there)
    before = copy.deepcopy(raw)
    action = DestroyVolume(("O1",), 7, "A1", ROLE, "e2-9", 0)
    destroy, unreserve = destruction_to_mesos(action, [raw], cluster=CLUSTER)
    assert destroy["destroy"]["volumes"] == [there]
    assert unreserve["unreserve"]["resources"] == [{k: v for k, v in there.items() if k != "disk"}]
    assert [x["id"]["value"] for x in (destroy, unreserve)] == [
        "stoker-00010203-v7-destroy-e2-9",
        "stoker-00010203-v7-unreserve-e2-9",
    ]
    assert raw == before


def test_what_is_left_of_a_destroyed_volume_is_unreserved() -> None:
    left = reserved(512, labels())
    action = DestroyVolume(("O1",), 7, "A1", ROLE, "e2-9", 0)
    (unreserve,) = destruction_to_mesos(action, [offer(left)], cluster=CLUSTER)
    assert unreserve["unreserve"]["resources"] == [left]


def test_nothing_of_another_cluster_is_ever_destroyed() -> None:
    theirs = volume(512, 7, labels(7, bytes(16)))
    action = DestroyVolume(("O1",), 7, "A1", ROLE, "e2-9", 0)
    with pytest.raises(Untranslatable):
        destruction_to_mesos(action, [offer(theirs, reserved(9, labels(7, bytes(16))))], cluster=CLUSTER)


def test_an_operations_update_and_an_inverse_offer() -> None:
    raw = {
        "operation_id": {"value": "stoker-00010203-v7-create"},
        "state": "OPERATION_FINISHED",
        "uuid": {"value": "wqe0XoP/TeG0pY23a00JrQ=="},
        "agent_id": {"value": "A1"},
    }
    status = operation_from_mesos(raw)
    assert (status.state, len(status.uuid), status.agent_id) == ("OPERATION_FINISHED", 16, "A1")
    assert operation_from_mesos({"state": "OPERATION_ERROR"}).uuid == b""
    window = {"start": {"nanoseconds": 5_000_000_000}, "duration": {"nanoseconds": 1_000_000}}
    asked = inverse_offer_from_mesos(
        {"id": {"value": "I1"}, "agent_id": {"value": "A1"}, "unavailability": window}
    )
    assert (asked.unavailable_from_ms, asked.unavailable_for_ms) == (5_000, 1)
    for wrong in ({}, {"state": "X", "uuid": {"value": "?"}}):
        with pytest.raises(Untranslatable):
            operation_from_mesos(wrong)
    with pytest.raises(Untranslatable):
        inverse_offer_from_mesos({"id": {"value": "I1"}})


def test_unavailability_and_executors_of_an_offer() -> None:
    raw = offer()
    raw["unavailability"] = {"start": {"nanoseconds": 7_000_000}}
    raw["executor_ids"] = [{"value": "e1"}]
    taken = offer_from_mesos(raw)
    assert (taken.unavailable_from_ms, taken.unavailable_for_ms, taken.executor_ids) == (7, 0, ("e1",))


def test_an_executor_is_told_where_its_disk_is() -> None:
    common: dict[str, Any] = {
        "cluster": CLUSTER,
        "schedulers": (),
        "variables": {},
        "socket_dir": "",
        "fillers": 0,
    }
    environment = launch_environment(launch(), **common)
    assert (environment["STOKER_DISK_BYTES"], environment["STOKER_DISK_DIR"]) == (str(512 * MIB), "ssd")
    assert "STOKER_DISK_DIR" not in launch_environment(launch()._replace(disk_bytes=0), **common)


def test_agents_with_hardly_anything_but_disk_still_offer_it() -> None:
    common: dict[str, Any] = {
        "name": "stoker",
        "user": "nobody",
        "roles": ["a", "b"],
        "principal": "",
        "failover_timeout_ms": 1,
        "gpu_agents": False,
        "webui_url": "",
        "framework_id": "",
    }
    filters = framework_to_mesos(**common, disk_bytes=512 * MIB)["offer_filters"]
    assert set(filters) == {"a", "b"}
    enough = filters["a"]["min_allocatable_resources"]["quantities"]
    assert {"quantities": {"disk": {"value": 512.0}}} in enough and len(enough) == 3
    assert "offer_filters" not in framework_to_mesos(**common)

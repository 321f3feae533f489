"""What people read of the fleet and of offers."""

from __future__ import annotations

from typing import Any

import pytest
from click.testing import CliRunner

from stoker.framework.cli.explain import check_rows, latest_checks
from stoker.framework.cli.fleet import fleet_lines, set_fleet

MIB = 1 << 20


def check(requirement: str, passed: bool) -> dict[str, Any]:
    return {"requirement": requirement, "passed": passed, "wanted": "2", "offered": "2" if passed else "1"}


def offer(agent: str, *failed: str, **fields: Any) -> dict[str, Any]:
    checks = [check(name, name not in failed) for name in ("cpus", "memory")]
    return {
        "agent_id": agent,
        "hostname": f"host-{agent}",
        "role": "*",
        "decision": "declined",
        "checks": checks,
    } | fields


def view(**fields: Any) -> dict[str, Any]:
    volumes = dict.fromkeys(("ready", "planned", "released", "doomed", "unknown_count"), 0)
    plain: dict[str, Any] = {
        "instances": 3,
        "mem_bytes": 64 * MIB,
        "disk_bytes": 0,
        "roles": ["*"],
        "constraints": [],
        "executor": "",
        "attention": "",
        "running": 3,
        "volumes": volumes,
        "waiting_count": 0,
        "waiting": [],
    }
    return plain | fields


def test_a_plain_fleet_is_one_line() -> None:
    assert fleet_lines(view()) == ["wanted: 3 executors of 64.0 MiB, role *; running: 3"]


def test_a_leader_that_keeps_its_hands_off_says_why() -> None:
    assert fleet_lines(view(attention="an older journal"))[1] == "attention: an older journal"


def test_disk_constraints_volumes_and_who_waits_are_told() -> None:
    volumes = {"ready": 2, "planned": 0, "released": 1, "doomed": 0, "unknown_count": 4}
    nearest = {"agent_id": "S1", "hostname": "h1", "checks": [check("cpus", False), check("memory", True)]}
    waiting = [{"slot": 1, "reason": "", "nearest": None}, {"slot": 2, "reason": "", "nearest": nearest}]
    lines = fleet_lines(
        view(
            disk_bytes=512 * MIB,
            roles=["a", "b"],
            constraints=["rack:UNIQUE"],
            volumes=volumes,
            waiting_count=2,
            waiting=waiting,
        )
    )
    assert lines[0] == "wanted: 3 executors of 64.0 MiB memory and 512.0 MiB SSD, roles a, b; running: 3"
    assert lines[1:3] == ["constraints: rack:UNIQUE", "volumes: 2 ready, 1 released"]
    assert lines[3].startswith("4 volumes carry this cluster's labels")
    assert lines[4] == ("2 wait: no offer fits; nearest is agent S1 (h1), but cpus: wanted 2, offered 1")


def test_requirements_are_shown_of_each_agents_newest_offer_the_nearest_first() -> None:
    offers = [
        offer("A", "cpus", "memory"),
        offer("B", "cpus"),
        offer("A"),
        offer("C", checks=[]),
        offer("B", role="other", decision="accepted"),
    ]
    shown = latest_checks(offers)
    assert [(o["agent_id"], o["role"]) for o in shown] == [("B", "other"), ("B", "*"), ("A", "*")]
    assert check_rows(shown[1]) == [
        ["B (host-B)", "declined", "cpus", "FAIL", "2", "1"],
        ["", "", "memory", "PASS", "2", "2"],
    ]


def test_nothing_to_change_is_said() -> None:
    told = CliRunner().invoke(set_fleet, ["--url", "http://127.0.0.1:1"])
    assert told.exit_code == 2 and "--constraint" in told.output


@pytest.mark.parametrize("text", ["much", "-1"])
def test_a_size_that_is_none_is_refused(text: str) -> None:
    assert CliRunner().invoke(set_fleet, ["--url", "http://127.0.0.1:1", "--disk", text]).exit_code == 2

"""What an embedded Mesos can be told, and what it says to the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stoker.mesos.embedded.config import Config, ConfigError, parse_attributes, parse_ports, parse_size


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("512MiB", 512 * 2**20),
        ("1.5GiB", 3 * 2**29),
        ("2GB", 2 * 10**9),
        ("10g", 10**10),
        ("77", 77),
        ("1 kib", 1024),
    ],
)
def test_sizes(text: str, count: int) -> None:
    assert parse_size(text) == count


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "1XiB", "1GiBit"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(ConfigError, match="is no size"):
        parse_size(text)


def test_ports() -> None:
    assert parse_ports(" 31000-31999 ") == (31_000, 31_999)
    for text in ("", "31000", "a-b", "1-2-3"):
        with pytest.raises(ConfigError, match="is no range of ports"):
            parse_ports(text)


def test_attributes_are_numbers_or_text() -> None:
    rack, slot = parse_attributes("rack:a:1; slot:-2.5;")
    assert rack == {"name": "rack", "type": "TEXT", "text": {"value": "a:1"}}
    assert slot == {"name": "slot", "type": "SCALAR", "scalar": {"value": -2.5}}


def test_agents_get_addresses_ports_and_attributes_of_their_own() -> None:
    config = Config(Path("w"), agents=3, attributes=("rack:a", "rack:b", "rack:c"), ports=(10, 19))
    assert [config.agent_hostname(index) for index in range(3)] == ["127.0.0.10", "127.0.0.11", "127.0.0.12"]
    assert [config.agent_ports(index) for index in range(3)] == [(10, 19), (20, 29), (30, 39)]
    assert config.agent_attributes(2)[0]["text"] == {"value": "c"}
    one = Config(Path("w"), agents=2, attributes=("rack:a",), hostnames=("x", "y"))
    assert one.agent_attributes(1) == one.agent_attributes(0) and one.agent_hostname(1) == "y"


@pytest.mark.parametrize("agents", [1, 3, 34, 64, 1000])
def test_by_default_any_number_of_agents_has_room(agents: int) -> None:
    config = Config(Path("w"), agents=agents)
    ranges = [config.agent_ports(index) for index in range(agents)]
    assert ranges[0][0] == 31_000 and ranges[-1][1] <= 65_535
    assert all(last < first for (_, last), (first, _) in zip(ranges, ranges[1:], strict=False))
    assert len({config.agent_hostname(index) for index in range(agents)}) == agents
    if agents <= 34:
        assert ranges[-1] == (31_000 + 1000 * (agents - 1), 31_999 + 1000 * (agents - 1))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"agents": 1001}, "allowed are 1 to 1000"),
        ({"port": 70_000}, "allowed are 0 .any free one. to 65535"),
        ({"cpus": 0.001}, "cpus is 0.001"),
        ({"mem_bytes": 1}, "mem must be at least 32MiB"),
        ({"disk_bytes": -1}, "disk at least 0"),
        ({"ports": (5, 4)}, "must lie between 1 and 65535"),
        ({"ports": (0, 4)}, "must lie between 1 and 65535"),
        ({"agents": 40, "ports": (31_000, 31_999)}, "must lie between 1 and 65535"),
        ({"agents": 3, "attributes": ("a:1", "a:2")}, "give one for all, or one for each"),
    ],
)
def test_what_is_not_allowed_is_said(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Config(Path("w"), **options)


def test_fault_domains_are_for_all_or_for_each() -> None:
    def names(config: Config) -> list[Any]:
        domains = (config.master_domain(), *(config.agent_domain(index) for index in range(config.agents)))
        return [
            d and (d["fault_domain"]["region"]["name"], d["fault_domain"]["zone"]["name"]) for d in domains
        ]

    assert names(Config(Path("w"), agents=2)) == [None, None, None]
    assert names(Config(Path("w"), agents=2, domains=("r/a",))) == [("r", "a")] * 3
    assert names(Config(Path("w"), agents=2, domains=("r/a", "s/b"))) == [("r", "a"), ("s", "b"), ("s", "b")]
    each = Config(Path("w"), agents=2, domains=("r/a", "r/b", "s/c"))
    assert names(each) == [("r", "a"), ("r", "b"), ("s", "c")]


def test_resources_that_are_named_come_in_the_place_of_the_others() -> None:
    config = Config(
        Path("w"), cpus=2, mem_bytes=2**30, disk_bytes=2**30, resources=("cpus:8;disk(cache):64",)
    )
    assert config.agent_resources(0).quantities() == {"cpus": 8000, "mem": 1_024_000, "disk": 1_088_000}
    assert config.agent_resources(0, "cpus:1").quantities()["cpus"] == 1000
    assert "disk" not in Config(Path("w"), disk_bytes=0).agent_resources(0).quantities()


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"masters": 0}, "masters is 0: allowed are 1 to 9"),
        ({"masters": 3}, "3 masters find their leader in ZooKeeper: give --zk as well"),
        ({"zk_session_timeout_ms": 1}, "must be 0.1 to 3600 seconds"),
        ({"domains": ("r",)}, "'r' is no fault domain: write it as REGION/ZONE"),
        ({"domains": ("r/a",) * 4}, "4 fault domains for the master and 1 agents"),
        ({"resources": ("cpus:1", "cpus:2")}, "2 sets of resources for 1 agents"),
        ({"resources": ("cpus",)}, "resources: resource 'cpus' must be NAME:VALUE"),
    ],
)
def test_wrong_masters_domains_and_resources(given: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Config(Path("w"), **given)

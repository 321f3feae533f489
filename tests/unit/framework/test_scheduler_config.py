"""The configuration is checked whole, before anything is opened."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest
from click.testing import CliRunner

from stoker.framework.cli.clusters import scheduler
from stoker.framework.config import Config
from stoker.framework.errors import ConfigError
from stoker.framework.model import Constraint

GOOD: dict[str, Any] = {"master": "127.0.0.1:5050", "journal": "file:/var/lib/stoker"}


def problems_of(**fields: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        Config.from_json(json.dumps(GOOD | fields))
    return caught.value.problems


def test_a_configuration_survives_the_way_to_the_process() -> None:
    config = Config.from_json(
        json.dumps(GOOD | {"executor_environment": ["AWS_REGION"], "settings": {"tick_ms": 50}})
    )
    assert Config.from_json(config.to_json()) == config
    assert config.executor_environment == ("AWS_REGION",)
    assert config.decision_settings().tick_ms == 50
    assert config.scratch(0) == "/var/lib/stoker.scratch"


@pytest.mark.parametrize(
    ("option", "setting"),
    [
        ("--jobs-kept-for", "jobs_kept_ms"),
        ("--volume-patience", "volume_patience_ms"),
        ("--volumes-kept-for", "volumes_kept_ms"),
        ("--unreachable-delay", "unreachable_delay_ms"),
    ],
)
def test_what_operators_may_set_reaches_the_decisions(option: str, setting: str) -> None:
    wrong = ["--master", "h:5050", "--journal", "file:/x", "--name", "No Name"]  # so that nothing is begun
    ran = CliRunner().invoke(scheduler, [*wrong, option, "0s"])
    assert ran.exit_code == 2 and f"setting '{setting}' must be above 0" in ran.output


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"master": "zk://user:hidden@h:2181"}, "needs a path"),
        ({"master_ca": "/x.pem"}, "--master-tls"),
        ({"master": "h:99999"}, "--master"),
        ({"master": ""}, "--master"),
        ({"journal": "/var/lib/stoker"}, "file:DIR"),
        ({"journal": "zk://h:2181"}, "--zk"),
        ({"journal": "zk://h:2181/stoker", "session_timeout_ms": 10}, "--session-timeout"),
        ({"port": 70_000}, "--port"),
        ({"advertise": "here"}, "--advertise"),
        ({"name": "No Name"}, "--name"),
        ({"role": "../x"}, "--role"),
        ({"role": "a", "roles_more": ["a"]}, "each once"),
        ({"disk_bytes": 2**30}, "--role"),  # nothing can be reserved for *
        ({"disk_bytes": 5, "role": "a"}, "--disk"),
        ({"constraints": ["rack"]}, "--constraint"),
        ({"constraints": ["rack:MAX_PER:x"]}, "MAX_PER is a number"),
        ({"principal": "p"}, "--secret"),
        ({"executor_environment": ["A=B"]}, "--executor-env"),
        ({"instances": -1}, "--instances"),
        ({"mem_bytes": 5}, "--mem"),
        ({"failover_timeout_ms": 0}, "failover timeout"),
        ({"settings": {"no_such": 1}}, "no_such"),
        ({"settings": {"tick_ms": 0}}, "tick_ms"),
        ({"log_level": "loud"}, "log level"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], says: str) -> None:
    (problem,) = problems_of(**fields)
    assert says in problem


@pytest.mark.parametrize(("role", "taken"), [(None, "*"), ("*", "*"), ("a", "a")])
def test_a_role_that_was_told_is_not_the_one_that_is_taken_where_none_was(
    role: str | None, taken: str
) -> None:
    config = Config.from_json(Config.from_json(json.dumps(GOOD | {"role": role})).to_json())
    assert config.role == role and config.main_role == config.fleet.role == taken


def test_the_fleet_of_a_new_cluster_is_that_of_the_options() -> None:
    wanted = {"role": "a", "roles_more": ["b"], "disk_bytes": 2**30, "constraints": ["rack:group_by:3"]}
    fleet = Config.from_json(json.dumps(GOOD | wanted)).fleet
    assert (fleet.roles, fleet.disk_bytes) == (("a", "b"), 2**30)
    assert fleet.constraints == (Constraint("rack", "GROUP_BY", "3"),)


def test_all_problems_are_told_at_once() -> None:
    assert len(problems_of(master="", port=-1, name="?", mem_bytes=1)) == 4
    assert len(problems_of(port="7070", nonsense=1, allow_sources="all")) == 3


@pytest.mark.parametrize("text", ["", "[]", "{", '{"journal": "file:/x"}'])
def test_what_is_no_configuration_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        Config.from_json(text)


def test_a_secret_comes_from_where_it_is_named(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_text("from file\n")
    monkeypatch.setenv("STOKER_TEST_SECRET", "from environment")

    def resolve(secret: str) -> str:
        return Config.from_json(json.dumps(GOOD | {"principal": "p", "secret": secret})).resolve_secret()

    assert resolve(f"file:{tmp_path / 'secret'}") == "from file"
    assert resolve("env:STOKER_TEST_SECRET") == "from environment"
    for missing in ("env:STOKER_TEST_NONE", f"file:{tmp_path / 'none'}"):
        with pytest.raises(ConfigError):
            resolve(missing)


def test_only_the_named_variables_go_to_executors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "eu")
    monkeypatch.setenv("HIDDEN", "x")
    config = Config.from_json(json.dumps(GOOD | {"executor_environment": ["AWS_REGION", "NOT_SET"]}))
    assert config.executor_variables() == {"AWS_REGION": "eu"}


@pytest.mark.parametrize(
    ("arguments", "text", "status"),
    [(["--help"], "", 0), ([], "", 2), (["--config", "/no/such/file"], "", 2), (["--config", "-"], "{}", 2)],
)
def test_the_process_says_in_a_line_what_is_wrong(arguments: list[str], text: str, status: int) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "stoker.framework", *arguments],
        input=text,
        capture_output=True,
        text=True,
        env=dict(os.environ),
        timeout=60,
    )
    assert result.returncode == status, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout if status == 0 else result.stderr

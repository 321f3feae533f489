"""The ExecutorInfo that an agent makes up for a task with a command."""

from __future__ import annotations

from typing import Any

import pytest

from stoker.mesos.embedded.core.commands import command_executor, default_executor_command

PROGRAM = ("/p", "-x")


def made(**command: Any) -> Any:
    return command_executor({"task_id": {"value": "t1"}, "command": command}, "f", PROGRAM)


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ({"value": "sleep 1"}, "sh -c 'sleep 1'"),
        ({"value": "sleep 100; echo done"}, "sh -c 'sleep 100; e...'"),
        ({"value": "ls", "shell": False, "arguments": ["ls", "-l"]}, "ls -l"),
        ({"value": "a-program", "shell": False}, "a-program"),
    ],
)
def test_its_name_shows_the_task_and_the_beginning_of_its_command(command: Any, shown: str) -> None:
    assert made(**command)["name"] == f"Command Executor (Task: t1) (Command: {shown})"


def test_it_runs_our_program_as_the_command_would_run() -> None:
    variables = {"variables": [{"name": "A", "value": "1"}]}
    info = made(value="true", environment=variables, uris=[{"value": "/x"}], user="u")
    expected = {"shell": False, "value": "/p", "arguments": ["/p", "-x"], "environment": variables}
    assert info["command"] == expected | {"uris": [{"value": "/x"}], "user": "u"}
    assert info["executor_id"] == {"value": "t1"} and info["framework_id"] == {"value": "f"}
    assert [(r["name"], r["scalar"]["value"]) for r in info["resources"]] == [("cpus", 0.1), ("mem", 32.0)]


def test_the_executor_of_groups_is_the_same_program() -> None:
    command = default_executor_command({"type": "DEFAULT"}, PROGRAM)
    assert command == {"shell": False, "value": "/p", "arguments": ["/p", "-x", "--group"]}

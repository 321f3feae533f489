"""What an executor is started from, as people write it."""

from __future__ import annotations

import pytest

from stoker.framework.core.programs import PROGRAM_RULE, parse_program
from stoker.framework.core.wishes import problem_of_wish
from stoker.framework.model import FleetSpec, Settings


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("", ("", "")),
        ("python:/opt/stoker/bin/python3", ("python", "/opt/stoker/bin/python3")),
        ("image:stoker", ("image", "stoker")),
        ("image:registry.example:5000/ml/stoker:1.2", ("image", "registry.example:5000/ml/stoker:1.2")),
        ("image:stoker@sha256:abc", ("image", "stoker@sha256:abc")),
    ],
)
def test_a_python_or_an_image(text: str, parsed: tuple[str, str]) -> None:
    assert parse_program(text) == parsed
    assert problem_of_wish(FleetSpec(1, 2**26, executor=text), Settings()) == ("", "")


@pytest.mark.parametrize(
    "text",
    [
        "python3",
        "python:bin/python",
        "python:/a\0b",
        "image:",
        "image:a b",
        "docker:x",
        "image:" + "x" * 2000,
    ],
)
def test_anything_else_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(ValueError, match="the executor is"):
        parse_program(text)
    message, hint = problem_of_wish(FleetSpec(1, 2**26, executor=text), Settings())
    assert PROGRAM_RULE in message and hint

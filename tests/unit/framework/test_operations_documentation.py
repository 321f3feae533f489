"""The pages of promises promise only what a test proves, and name tests that are there."""

from __future__ import annotations

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[3]
PROMISE = re.compile(r"``(tests/[a-z_/]+\.py)``: ``(test_[a-z0-9_]+)``")


@pytest.mark.parametrize(
    ("page", "begin", "end", "least"),
    [
        ("operations.rst", "Promises\n", "Limits\n", 15),
        ("mesos.rst", "What a framework should do", "Not done:", 40),
    ],
)
def test_each_promise_names_a_test_that_is_there(page: str, begin: str, end: str, least: int) -> None:
    text = (ROOT / "docs" / page).read_text()
    table = text[text.index(begin) : text.index(end)]
    promises = PROMISE.findall(table)
    assert len(promises) >= least and len(promises) == table.count("   * - ") - 1
    for path, name in promises:
        assert re.search(rf"^def {name}\(", (ROOT / path).read_text(), re.MULTILINE), f"{path} has no {name}"

"""docs/operations.rst promises only what a test proves, and names tests that are there."""

from __future__ import annotations

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[3]
PROMISE = re.compile(r"``(tests/[a-z_/]+\.py)``: ``(test_[a-z0-9_]+)``")


def test_each_promise_names_a_test_that_is_there() -> None:
    text = (ROOT / "docs" / "operations.rst").read_text()
    table = text[text.index("Promises\n") : text.index("Limits\n")]
    promises = PROMISE.findall(table)
    assert len(promises) >= 15 and len(promises) == table.count("   * - ") - 1
    for path, name in promises:
        assert re.search(rf"^def {name}\(", (ROOT / path).read_text(), re.MULTILINE), f"{path} has no {name}"

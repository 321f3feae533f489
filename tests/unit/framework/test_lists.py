"""Long lists are made in slices, and are whole all the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import gevent
import pytest

from stoker.framework import lists
from stoker.framework.core.catalog import Catalog
from stoker.framework.core.fleet import Fleet
from stoker.framework.lists import encode_rows
from stoker.framework.model import Settings
from stoker.framework.turns import rest


class Reads:
    """A loop's `read`, which counts."""

    def __init__(self) -> None:
        self.count = 0
        self._catalog, self._fleet = Catalog(), Fleet(Settings())

    def __call__(self, function: Callable[[Catalog, Fleet], int]) -> int:
        self.count += 1
        return function(self._catalog, self._fleet)


def row(catalog: Catalog, fleet: Fleet, key: int) -> dict[str, Any] | None:
    return None if key == 3 else {"id": key}


@pytest.mark.parametrize("after", [None, "7"])
def test_a_list_is_one_json_value_without_what_is_gone(after: str | None) -> None:
    text = encode_rows(Reads(), "jobs", range(5), row, after)
    rows = {"jobs": [{"id": 0}, {"id": 1}, {"id": 2}, {"id": 4}]}
    assert json.loads(text) == (rows if after is None else rows | {"next": "7"})
    assert json.loads(encode_rows(Reads(), "jobs", [], row, None)) == {"jobs": []}


def test_others_get_turns_between_the_slices_of_a_long_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "SLICE_MS", 0)  # a slice a row
    reads = Reads()
    turns: list[int] = []

    def take_turns() -> None:
        for _ in range(10):
            turns.append(reads.count)
            rest()

    other = gevent.spawn(take_turns)
    text = encode_rows(reads, "jobs", range(10), row, None)
    assert reads.count == 10 and len(json.loads(text)["jobs"]) == 9
    assert set(turns) > {1, 2}, "not before the first, and not after the last only"
    other.join()

"""docs/api.rst names every route that is served, and no other."""

from __future__ import annotations

import pathlib
import re

from stoker.framework.routes import ROUTES

PAGE = pathlib.Path(__file__).resolve().parents[3] / "docs" / "api.rst"


def test_the_page_lists_the_routes_that_are_served() -> None:
    told = re.findall(r"^``([A-Z]+) (/\S+)``  ", PAGE.read_text(), re.MULTILINE)
    assert sorted(told) == sorted((route.method, route.path) for route in ROUTES)

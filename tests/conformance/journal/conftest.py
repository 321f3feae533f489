"""Runs the suite once for each home of a journal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.journals import JOURNAL_FACTORIES, JournalFactory


@pytest.fixture(params=sorted(JOURNAL_FACTORIES))
def journals(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[JournalFactory]:
    factory = JOURNAL_FACTORIES[request.param](tmp_path)
    yield factory
    factory.close()

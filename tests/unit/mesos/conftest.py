"""Scripted masters and agents, and what a driver told its framework."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.fake_mesos import FakeMesos, Recorder
from support.zookeeper import zookeeper

__all__ = ["agent", "master", "recorder", "zookeeper"]


@pytest.fixture
def master() -> Iterator[FakeMesos]:
    with FakeMesos() as fake:
        yield fake


@pytest.fixture
def agent() -> Iterator[FakeMesos]:
    with FakeMesos(stream_ids=False) as fake:
        yield fake


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()

"""Data servers whose keeper is the test, and a scheduler that the test plays."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.data_servers import BLOCK, DATA, SHORT, DataServer, WireClient, running_data_server
from support.executors import FakeScheduler, running_scheduler


@pytest.fixture(scope="module")
def server() -> Iterator[DataServer]:
    """A server with three full blocks; the last one is shorter."""
    with running_data_server() as running:
        running.put_dataset(block_bytes=BLOCK)
        for number in range(2):
            running.put_block(number, DATA)
        running.put_block(2, SHORT)
        yield running


@pytest.fixture
def fresh() -> Iterator[DataServer]:
    """A server of one's own, which knows a dataset without blocks."""
    with running_data_server() as running:
        running.put_dataset(block_bytes=BLOCK)
        yield running


@pytest.fixture(params=["tcp", "unix"])
def client(request: pytest.FixtureRequest, server: DataServer) -> Iterator[WireClient]:
    made = server.tcp() if request.param == "tcp" else server.unix()
    yield made
    made.close()


@pytest.fixture
def scheduler() -> Iterator[FakeScheduler]:
    with running_scheduler() as running:
        yield running

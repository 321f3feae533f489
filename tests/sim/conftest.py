"""The simulated schedulers are not to fill the log: the story that a failure prints says more."""

from __future__ import annotations

import logging

import pytest


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    for name in ("stoker.zk", "stoker.mesos", "stoker.framework"):
        caplog.set_level(logging.CRITICAL, logger=name)

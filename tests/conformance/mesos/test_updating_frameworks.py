"""A framework that changes: a second SUBSCRIBE with another FrameworkInfo, UPDATE_FRAMEWORK."""

from __future__ import annotations

import pytest

from support.replay.script import Play, Script

pytestmark = pytest.mark.integration


def test_08_failover(play: Play) -> None:
    # the deposed instance has the name of the new one
    former = frozenset(
        {*range(129, 132), *range(140, 144), 150, 151, 160, 161, *range(170, 174), *range(188, 192)}
    )
    free = (
        "frameworks.role",
        "frameworks.roles",
        "frameworks.reregistered_time",
        "frameworks.tasks.statuses",
    )
    play(Script("08-failover", scale=4, former=former, free=free))


def test_11_update_framework(play: Play) -> None:
    play(Script("11-update-framework", scale=5))

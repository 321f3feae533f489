"""Updates that are acknowledged, by schedulers and by agents, and those that are not."""

from __future__ import annotations

import pytest

from support.replay.script import Play, Script

pytestmark = pytest.mark.integration


def test_04_acks(play: Play) -> None:
    play(Script("04-acks", scale=6))


def test_04b_executor_acks(play: Play) -> None:
    play(Script("04b-executor-acks", scale=6))

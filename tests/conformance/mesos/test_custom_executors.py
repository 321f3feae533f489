"""Executors of a framework's own: both conversations, how they start and how they end."""

from __future__ import annotations

import pytest

from support.replay.script import Play, Script

pytestmark = pytest.mark.integration


def test_03_custom_executor(play: Play) -> None:
    play(Script("03-custom-executor", scale=2, first_line=frozenset({67})))


def test_03b_executor_ignores_shutdown(play: Play) -> None:
    play(Script("03b-executor-ignores-shutdown", scale=4, options={"executor-registration-timeout": 4.0}))


def test_13_executor_exit(play: Play) -> None:
    steps = {301: (("executor-signal", "forker", "9"),), 306: (("executor-child-is-gone", "forker"),)}
    play(Script("13-executor-exit", scale=2, before=steps))

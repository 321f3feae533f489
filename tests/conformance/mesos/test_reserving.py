"""Reservations, persistent volumes, and what operations on them say."""

from __future__ import annotations

import pytest

from support.replay.script import Play, Script

pytestmark = pytest.mark.integration


def test_10_reserve_volume(play: Play) -> None:
    steps = {
        60: (("executor-signal", "e1", "9"),),
        95: (("agent-start", "1"),),
        121: (("agent-start", "1"),),
    }
    times = {"agent-ping-timeout": 1.0, "registration-backoff": 0.01, "executor-reregistration-timeout": 2.0}
    written = {"data/file.txt": "written by the first executor"}
    play(Script("10-reserve-volume", scale=4, before=steps, options=times, written=written))


def test_10b_reserve_principal_labels(play: Play) -> None:
    play(Script("10b-reserve-principal-labels", scale=4))

"""Masters that are killed and started again; what times out: frameworks, agents and masters that stay away."""

from __future__ import annotations

from itertools import pairwise

import pytest

from support.replay.recording import load
from support.replay.script import Play, Script

pytestmark = pytest.mark.integration

RESTARTS = {"executor-reregistration-timeout": 2.0, "agent-recovery": 0.05, "reap-interval": 1.5}
TIMES = {**RESTARTS, "agent-ping-timeout": 1.0, "registration-backoff": 0.01}


def test_09_failover_timeout(play: Play) -> None:
    counted = frozenset({42})  # the recorder made up an answer of its own from /state
    play(Script("09-failover-timeout", scale=3, options=TIMES, unchecked=counted))


# The transcript has two clusters that know nothing of each other: each is played by itself. Agents start when they did there, so that
# pings go unanswered from the same moment on.
DEFAULTS = {**RESTARTS, "agent-ping-timeout": 15.0, "registration-backoff": 1.0}
SECOND = {*range(36, 40), *range(44, 50), 58, 62, *range(66, 69)}


def test_12e_default_timings(play: Play) -> None:
    """The cluster whose agent dies; each line of its executor, which the transcript has twice, is played once."""
    lines = load("12e-default-timings").entries
    twice = {b.index for a, b in pairwise(lines) if a.name == "e1" and (a.kind, a.body) == (b.kind, b.body)}
    started = {1: (("agent-start", "1"),)}
    script = Script(
        "12e-default-timings",
        scale=10,
        options=DEFAULTS,
        stopped=(1,),
        before=started,
        by_own_clock=frozenset({61}),
        skip=frozenset(SECOND | twice),
        titles=dict.fromkeys(SECOND, ""),
    )
    play(script)


def test_12e_default_timings_of_a_master(play: Play) -> None:
    """The cluster whose master dies and is started again at once."""
    first = {line.index for line in load("12e-default-timings").entries} - SECOND - {0}
    script = Script(
        "12e-default-timings",
        scale=10,
        options=DEFAULTS,
        agents=1,
        by_own_clock=frozenset({62}),
        stopped=(1,),
        before={36: (("agent-start", "1"),), 47: (("master-start",),)},
        skip=frozenset(first),
        titles={0: "the second cluster", **dict.fromkeys(first, "")},
    )
    play(script)


def test_16_master_restart_in_memory(play: Play) -> None:
    play(Script("16-master-restart-inmemory", scale=3, options=TIMES))


def test_16b_master_restart_replicated(play: Play) -> None:
    options = {**TIMES, "master-registry": "replicated_log"}
    play(Script("16b-master-restart-replicated", scale=3, options=options))


def test_16c_master_restart_framework_away(play: Play) -> None:
    """When the agent misses the first ping is chance: it is back in 4 to 5 s; the recorded one was early."""
    options = {**TIMES, "agent-ping-timeout": 0.8}
    play(Script("16c-master-restart-framework-away", scale=3, options=options))

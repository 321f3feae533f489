"""Agents that die, come back, leave, are drained or under maintenance; masters that fail over; what is answered about tasks meanwhile."""

from __future__ import annotations

from itertools import pairwise

import pytest

from support.replay.recording import load
from support.replay.script import Play, Script

pytestmark = pytest.mark.integration

RESTARTS = {"executor-reregistration-timeout": 2.0, "agent-recovery": 0.05, "reap-interval": 1.5}
TIMES = {**RESTARTS, "agent-ping-timeout": 1.0, "registration-backoff": 0.01}


def test_06_reconcile(play: Play) -> None:
    play(Script("06-reconcile", scale=3, options=TIMES))


def test_09_failover_timeout(play: Play) -> None:
    counted = frozenset({42})  # the recorder made up an answer of its own from /state
    play(Script("09-failover-timeout", scale=3, options=TIMES, unchecked=counted))


def test_12_agent_restart(play: Play) -> None:
    refused = frozenset({88, 89})  # an UPDATE while the agent is away reaches nobody
    play(Script("12-agent-restart", scale=3, options=TIMES, skip=refused))


def test_12b_agent_lost_and_back(play: Play) -> None:
    wiped = {71: (("agent-start", "1", "reset"),)}
    play(Script("12b-agent-lost-and-back", scale=3, options=TIMES, before=wiped))


def test_12c_agent_usr1_gone_drain(play: Play) -> None:
    play(Script("12c-agent-usr1-gone-drain", scale=1, options=TIMES))


def test_12d_no_checkpoint(play: Play) -> None:
    """The recorded master allocated just after the agent died; here it does so for certain."""
    play(Script("12d-no-checkpoint", scale=2, options={**TIMES, "allocation-interval": 3.0}))


def test_12e_default_timings(play: Play) -> None:
    """The transcript has two clusters; that of the agent that dies is played, each line of its executor once.

    When the first ping goes unanswered is chance: 75 to 90 s are right.
    """
    lines = load("12e-default-timings").entries
    other = {line.index for line in lines if line.name in ("g1", "h") or 44 <= line.index <= 45}
    twice = {b.index for a, b in pairwise(lines) if a.name == "e1" and (a.kind, a.body) == (b.kind, b.body)}
    skip = frozenset(other | twice | {62})
    options = {**RESTARTS, "agent-ping-timeout": 15.0, "registration-backoff": 1.0}
    play(Script("12e-default-timings", scale=15, options=options, skip=skip, unchecked=frozenset({61})))


def test_12f_agent_disconnected_window(play: Play) -> None:
    attributes = "attributes=rack:a;zone:z0;slot:1;new:yes"
    more = {68: (("agent-start", "1", "additive", "cpus:6;ports:[31000-31199]", attributes),)}
    play(Script("12f-agent-disconnected-window", scale=1.5, options=TIMES, before=more))


def test_12g_unacknowledged_tasks(play: Play) -> None:
    restarts = {31: (("agent-start", "1"),), 62: (("agent-start", "1"),)}
    play(Script("12g-unacknowledged-tasks", scale=3, options=TIMES, before=restarts))


def test_14_maintenance(play: Play) -> None:
    up = {90: (("agent-start", "1"), ("agent-start", "2"))}
    play(Script("14-maintenance", scale=3, options=TIMES, before=up))


def test_16_master_restart_in_memory(play: Play) -> None:
    play(Script("16-master-restart-inmemory", scale=3, options=TIMES))


def test_16b_master_restart_replicated(play: Play) -> None:
    options = {**TIMES, "master-registry": "replicated_log"}
    play(Script("16b-master-restart-replicated", scale=3, options=options))


def test_16c_master_restart_framework_away(play: Play) -> None:
    """When the agent misses the first ping is chance: it is back in 4 to 5 s; the recorded one was early."""
    options = {**TIMES, "agent-ping-timeout": 0.8}
    play(Script("16c-master-restart-framework-away", scale=3, options=options))

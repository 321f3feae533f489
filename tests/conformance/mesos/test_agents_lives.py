"""Agents that die, come back, leave, are drained or under maintenance; what is answered about tasks meanwhile."""

from __future__ import annotations

import pytest

from support.replay.script import Play, Script

pytestmark = pytest.mark.integration

TIMES = {
    "executor-reregistration-timeout": 2.0,
    "agent-recovery": 0.05,
    "reap-interval": 1.5,
    "agent-ping-timeout": 1.0,
    "registration-backoff": 0.01,
}


def test_06_reconcile(play: Play) -> None:
    play(Script("06-reconcile", scale=4, options=TIMES))


def test_12_agent_restart(play: Play) -> None:
    refused = frozenset({88, 89})  # an UPDATE while the agent is away reaches nobody
    play(Script("12-agent-restart", scale=3, options=TIMES, skip=refused))


def test_12b_agent_lost_and_back(play: Play) -> None:
    wiped = {71: (("agent-start", "1", "reset"),)}
    play(Script("12b-agent-lost-and-back", scale=4, options=TIMES, before=wiped))


def test_12c_agent_usr1_gone_drain(play: Play) -> None:
    play(Script("12c-agent-usr1-gone-drain", scale=2.5, options=TIMES))


def test_12d_no_checkpoint(play: Play) -> None:
    """The recorded master allocated just after the agent died; here it does so for certain."""
    play(Script("12d-no-checkpoint", scale=2, options={**TIMES, "allocation-interval": 3.0}))


def test_12f_agent_disconnected_window(play: Play) -> None:
    attributes = "attributes=rack:a;zone:z0;slot:1;new:yes"
    more = {68: (("agent-start", "1", "additive", "cpus:6;ports:[31000-31199]", attributes),)}
    play(Script("12f-agent-disconnected-window", scale=2.5, options=TIMES, before=more))


def test_12g_unacknowledged_tasks(play: Play) -> None:
    restarts = {31: (("agent-start", "1"),), 62: (("agent-start", "1"),)}
    play(Script("12g-unacknowledged-tasks", scale=3, options=TIMES, before=restarts))


def test_14_maintenance(play: Play) -> None:
    up = {90: (("agent-start", "1"), ("agent-start", "2"))}
    play(Script("14-maintenance", scale=3, options=TIMES, before=up))

"""Subscriptions: what they are answered, and what comes first on their streams."""

from __future__ import annotations

import pytest

from support.replay.script import Play, Script

pytestmark = pytest.mark.integration


# No offer of these recordings waited for the allocator's tick: here none comes.
AT_ONCE = {"allocation-interval": 3600.0}


def test_01_subscribe(play: Play) -> None:
    any_agent = frozenset({35})  # which role gets which agent
    play(Script("01-subscribe", scale=8, options=AT_ONCE, any_agent=any_agent))


def test_01b_subscribe_before_agents(play: Play) -> None:
    play(Script("01b-subscribe-before-agents", scale=2, stopped=(1, 2), options=AT_ONCE))

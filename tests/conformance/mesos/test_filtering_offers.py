"""Offers that are declined, suppressed, revived."""

from __future__ import annotations

import pytest

from support.replay.script import Play, Script

pytestmark = pytest.mark.integration


def test_02_decline_revive_suppress(play: Play) -> None:
    play(Script("02-decline-revive-suppress", scale=5))

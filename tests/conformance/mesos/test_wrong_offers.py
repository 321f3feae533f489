"""Wrong use of offers, which is answered by events."""

from __future__ import annotations

import pytest

from support.replay.script import Play, Script

pytestmark = pytest.mark.integration


def test_05b_offer_errors(play: Play) -> None:
    play(Script("05b-offer-errors", scale=8))

"""Wrong calls, and what they are answered."""

from __future__ import annotations

import pytest

from support.replay.script import Play, Script

pytestmark = pytest.mark.integration


def test_05_errors(play: Play) -> None:
    endings = {14: "rue}}}", 18: 'ue": "b"}}}}', 186: "x" * 20_000_000 + '"}'}
    play(Script("05-errors", scale=2, endings=endings))

"""Tasks that are killed, frameworks that are torn down, and what task statuses say."""

from __future__ import annotations

import pytest

from support.replay.script import Play, Script

pytestmark = pytest.mark.integration


def test_07_kill(play: Play) -> None:
    # The recorded shell had not yet set its trap when the signal came (others had: a shell is no faster at another scale); the last
    # KILL came before the executor was forked.
    unchecked = frozenset({54, 56, 128})
    play(Script("07-kill", unchecked=unchecked, skip=frozenset({127}), scale=1))


def test_15_teardown(play: Play) -> None:
    # Whether the last acknowledgement or the operator's TEARDOWN came first was chance.
    play(Script("15-teardown", scale=2, unchecked=frozenset({75})))


def test_21_task_status_fields(play: Play) -> None:
    # How many of the six short tasks have ended when the allocator ticks is chance.
    chance = {"skip": frozenset({68}), "unchecked": frozenset({61}), "all_offers": frozenset({73})}
    play(Script("21-task-status-fields", scale=2, **chance))

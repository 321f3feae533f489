"""The leader is struck at every append of a short history: before it is sent, when it is durable, when the leader knows,
amid the actions that follow; and one that is on its way is overtaken by a new leader.
"""

from __future__ import annotations

import functools

import pytest

from sim.seeds import BY_HAND, FIRST, seeds
from sim.settled import run
from sim.strikes import HISTORY_MS, POINTS, STRIKES, Strike, history, overtake, strike_at

APPENDS_MIN = 15  # of the history; else it shows too little
SHARES = 6  # of the appends one in so many is struck for each kind of strike in CI; by hand all are


@functools.cache
def appends(seed: int) -> int:
    """Return how many appends the history has when nobody is struck."""
    world = history(seed)
    world.run(HISTORY_MS)
    return world.truth.commits


@pytest.mark.parametrize("seed", seeds(1))
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("strike", STRIKES, ids=lambda strike: strike.__name__)
def test_takes_over_at_every_append(strike: Strike, point: str, seed: int) -> None:
    count = appends(seed)
    assert count >= APPENDS_MIN
    share = 1 if BY_HAND else SHARES
    offset = (STRIKES.index(strike) + POINTS.index(point) + FIRST) % share
    for number in range(1 + offset, count + 1, share):
        world = history(seed)
        struck = strike_at(world, number, point, strike)
        run(world, HISTORY_MS, 25_000)
        assert struck and struck[-1], f"nobody was struck at append {number}"


@pytest.mark.parametrize("seed", seeds(1))
def test_an_append_that_comes_when_another_has_the_epoch_is_refused(seed: int) -> None:
    for number in range(2, appends(seed) + 1, 1 if BY_HAND else 3):
        world = history(seed)
        overtaken = overtake(world, number)
        run(world, HISTORY_MS, 25_000)
        assert overtaken and world.truth.epoch == 2

"""Whether a run of a scenario was a measurement: on a machine that held it up, what came too late or too early says nothing."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable

from support.replay.report import Rows
from support.replay.script import Script
from support.replay.timing import LATE_S

PLAYS_MAX = 3


def measured(script: Script, play: Callable[[Script], tuple[Rows, float]]) -> Rows:
    """Return the rows of a scenario: `play` plays it once, and says how long it was ready to run and had no processor.

    A run with differences that was held up for longer than the rules of time allow for is played again, half as fast: half of
    every delay is left, in the recording's time. What differed is warned of.
    """
    for left in reversed(range(PLAYS_MAX)):
        rows, held_up_s = play(script)
        if not left or not rows.failed or held_up_s < LATE_S:
            break
        why = f"{held_up_s:.1f} s without a processor, so {script.transcript} is played again, half as fast"
        warnings.warn("\n".join((why, *map(str, rows.failed))), stacklevel=2)
        script = dataclasses.replace(script, scale=max(1.0, script.scale / 2))
    return rows

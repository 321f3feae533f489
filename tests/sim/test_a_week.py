"""A week in a minute: agents restart, are lost, return, are drained, go down and go; masters and schedulers fail in the middle of it.

One week for each twenty runs: `make sim RUNS=1000` is fifty weeks. A failure prints how to run it again.
"""

from __future__ import annotations

import time

import pytest

from sim.seeds import seeds
from sim.week import DAYS, EVENTS, Week, a_plot

WEEKS = seeds(1)[: max(1, len(seeds(1)) // 20)]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", WEEKS)
def test_a_week(seed: int) -> None:
    week, began_s = Week(seed), time.process_time()
    week.run(a_plot(week.random), DAYS)
    cpu_s = time.process_time() - began_s
    assert week.days > DAYS and week.failovers == len(EVENTS)
    print(
        f"seed {seed}: {week.days:.1f} days in {cpu_s:.0f} s of CPU, {week.failovers} schedulers killed; "
        + "; ".join(week.told)
    )

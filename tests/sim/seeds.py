"""Which seeds are run: some in CI; as many as one likes by hand (`make sim RUNS=1000 SEED=1`)."""

from __future__ import annotations

import os

BY_HAND = "STOKER_SIM_SEED" in os.environ or "STOKER_SIM_RUNS" in os.environ
FIRST = int(os.environ.get("STOKER_SIM_SEED", "1"))


def seeds(in_ci: int) -> range:
    """Return the seeds to run where CI runs `in_ci` of them."""
    default = 1 if "STOKER_SIM_SEED" in os.environ else in_ci
    return range(FIRST, FIRST + int(os.environ.get("STOKER_SIM_RUNS", default)))

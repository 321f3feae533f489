"""Which Mesos masters we can work with."""

from __future__ import annotations

import re

MASTER_VERSION_MIN = (
    1,
    9,
)  # the first with UPDATE_FRAMEWORK, agent draining and operation feedback of agents


def reason_too_old(version: str) -> str:
    """Return why a master of `version` will not do, "" where it does; one that does not tell it is trusted.

    >>> reason_too_old("1.8.1")
    'its version is 1.8.1: Mesos 1.9 or newer is needed'
    >>> reason_too_old("1.12.0-dev"), reason_too_old("")
    ('', '')
    """
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None or (int(numbers[1]), int(numbers[2])) >= MASTER_VERSION_MIN:
        return ""
    return f"its version is {version}: Mesos {'.'.join(map(str, MASTER_VERSION_MIN))} or newer is needed"

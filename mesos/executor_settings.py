"""What a Mesos agent tells an executor through its environment.

Rule: all that is missing or wrong is reported at once, and nothing else of this package reads the environment.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from stoker.mesos.detector import Address, parse_address

_T = TypeVar("_T")

# The longest wait between two attempts to subscribe, also where the agent would allow more: it waits 2 s for us.
RETRY_MS_MAX = 500
_RECOVERY_TIMEOUT_MS_DEFAULT = 15 * 60_000
_SHUTDOWN_GRACE_MS_DEFAULT = 5_000

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|ms|secs|mins|hrs|days|weeks)")
_NANOSECONDS = {
    "ns": 1,
    "us": 1_000,
    "ms": 1_000_000,
    "secs": 1_000_000_000,
    "mins": 60 * 1_000_000_000,
    "hrs": 3_600 * 1_000_000_000,
    "days": 86_400 * 1_000_000_000,
    "weeks": 7 * 86_400 * 1_000_000_000,
}


@dataclass(frozen=True, slots=True)
class ExecutorSettings:
    """What an agent tells an executor through its environment."""

    agent: Address
    framework_id: str
    executor_id: str
    checkpoint: bool
    recovery_timeout_ms: int = _RECOVERY_TIMEOUT_MS_DEFAULT
    retry_ms_max: int = RETRY_MS_MAX
    shutdown_grace_ms: int = _SHUTDOWN_GRACE_MS_DEFAULT
    token: str | None = None


def read_settings(environ: Mapping[str, str]) -> ExecutorSettings:
    """Read what the agent set.

    :raises ValueError: variables are missing or wrong; the text names all of them.
    """
    wrong: list[str] = []

    def read(name: str, parse: Callable[[str], _T], default: _T) -> _T:
        text = environ.get(name)
        if text is None:
            return default
        try:
            return parse(text)
        except ValueError as error:
            wrong.append(f"{name}: {error}")
            return default

    required = ("MESOS_AGENT_ENDPOINT", "MESOS_FRAMEWORK_ID", "MESOS_EXECUTOR_ID")
    wrong += [f"{name} is not set" for name in required if not environ.get(name)]
    nowhere = Address("", 0)
    settings = ExecutorSettings(
        agent=read("MESOS_AGENT_ENDPOINT", lambda text: parse_address(text, port_default=None), nowhere),
        framework_id=environ.get("MESOS_FRAMEWORK_ID", ""),
        executor_id=environ.get("MESOS_EXECUTOR_ID", ""),
        checkpoint=environ.get("MESOS_CHECKPOINT") == "1",  # without checkpointing agents set "0"
        recovery_timeout_ms=read("MESOS_RECOVERY_TIMEOUT", parse_duration_ms, _RECOVERY_TIMEOUT_MS_DEFAULT),
        retry_ms_max=read("MESOS_SUBSCRIPTION_BACKOFF_MAX", parse_duration_ms, RETRY_MS_MAX),
        shutdown_grace_ms=read(
            "MESOS_EXECUTOR_SHUTDOWN_GRACE_PERIOD", parse_duration_ms, _SHUTDOWN_GRACE_MS_DEFAULT
        ),
        token=environ.get("MESOS_EXECUTOR_AUTHENTICATION_TOKEN") or None,
    )
    if wrong:
        raise ValueError(f"no Mesos agent started this process: {'; '.join(wrong)}")
    return settings


def parse_duration_ms(text: str) -> int:
    """Parse a duration as Mesos writes it.

    >>> parse_duration_ms("15mins"), parse_duration_ms("2.5secs"), parse_duration_ms("10ns")
    (900000, 2500, 0)

    :raises ValueError: it is none.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no duration, expected a number and one of {', '.join(_NANOSECONDS)}")
    return round(float(match[1]) * _NANOSECONDS[match[2]] / 1_000_000)

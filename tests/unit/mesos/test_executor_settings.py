"""What an agent tells its executor in the environment."""

from __future__ import annotations

import pytest

from stoker.mesos.detector import Address
from stoker.mesos.executor_settings import ExecutorSettings, parse_duration_ms, read_settings
from support.executor_drivers import (
    ENVIRONMENT,
)


def test_reads_what_an_agent_sets() -> None:
    assert read_settings(ENVIRONMENT) == ExecutorSettings(
        agent=Address("127.0.0.1", 5051),
        framework_id="F1",
        executor_id="E1",
        checkpoint=True,
        recovery_timeout_ms=900_000,
        retry_ms_max=2_000,
        shutdown_grace_ms=5_000,
        token=None,
    )
    token = read_settings({**ENVIRONMENT, "MESOS_EXECUTOR_AUTHENTICATION_TOKEN": "jwt"})
    assert token.token == "jwt"


@pytest.mark.parametrize(("value", "checkpoint"), [("1", True), ("0", False), (None, False), ("", False)])
def test_checkpoint_zero_means_no(value: str | None, checkpoint: bool) -> None:
    """Agents set "0"; pymesos takes that for yes, as any text."""
    environment = {name: text for name, text in ENVIRONMENT.items() if name != "MESOS_CHECKPOINT"}
    if value is not None:
        environment["MESOS_CHECKPOINT"] = value
    assert read_settings(environment).checkpoint is checkpoint


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(ValueError) as caught:
        read_settings({"MESOS_AGENT_ENDPOINT": "nonsense", "MESOS_RECOVERY_TIMEOUT": "15 parsecs"})
    text = str(caught.value)
    assert all(
        name in text
        for name in (
            "MESOS_AGENT_ENDPOINT",
            "MESOS_FRAMEWORK_ID",
            "MESOS_EXECUTOR_ID",
            "MESOS_RECOVERY_TIMEOUT",
        )
    )
    with pytest.raises(ValueError, match="no Mesos agent started this process"):
        read_settings({})


@pytest.mark.parametrize(
    ("text", "duration_ms"),
    [
        ("15mins", 900_000), ("2secs", 2_000), ("5secs", 5_000), ("1.5hrs", 5_400_000), ("250ms", 250), ("900us", 1),
        ("10ns", 0), ("2days", 172_800_000), ("1weeks", 604_800_000), (" 3secs ", 3_000),
    ],
)  # fmt: skip
def test_durations_are_read_as_mesos_writes_them(text: str, duration_ms: int) -> None:
    assert parse_duration_ms(text) == duration_ms


@pytest.mark.parametrize(
    "text", ["", "5", "secs", "-5secs", "5 secs", "5s", "5seconds", "1e3secs", "infsecs"]
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no duration"):
        parse_duration_ms(text)

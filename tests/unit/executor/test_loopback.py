"""An executor that only its own machine reaches, since the agent's name is a loopback address there."""

from __future__ import annotations

import pytest

from stoker.executor.sockets import loopback_trouble


@pytest.mark.parametrize(
    ("host", "schedulers", "is_told"),
    [
        ("127.0.1.1", ["http://192.0.2.7:7070"], True),
        ("::1", ["http://127.0.0.1:7070", "http://[2001:db8::7]:7070"], True),
        ("127.0.1.1", ["http://127.0.0.1:7070", "http://[::1]:7071"], False),
        ("192.0.2.8", ["http://192.0.2.7:7070"], False),
        ("192.0.2.8", ["http://127.0.0.1:7070"], False),
    ],
)
def test_a_loopback_address_is_told_of_where_schedulers_are_elsewhere(
    host: str, schedulers: list[str], *, is_told: bool
) -> None:
    trouble = loopback_trouble(host, schedulers)
    assert ("127.0.1.1 is in the way" in trouble and host in trouble) if is_told else trouble == ""


def test_a_name_that_does_not_resolve_is_somebody_elses_trouble() -> None:
    assert loopback_trouble("no-such-host.invalid", ["http://192.0.2.7:7070"]) == ""

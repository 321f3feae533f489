"""`stoker uninstall` while schedulers come and go: it is patient, and says only what it knows."""

from __future__ import annotations

from typing import Any

import pytest

from stoker.client.errors import ApiError
from stoker.framework.cli import leaving
from stoker.framework.cli.output import Output

UNREACHABLE = ApiError(0, "unreachable", "no scheduler answers", "is it running?")
NOT_LEADING = ApiError(503, "not_leading", "no scheduler leads now", "ask again")
FORBIDDEN = ApiError(403, "forbidden", "the token is not an operator's", "use another")


def view(state: str) -> dict[str, Any]:
    return {"state": state, "executors_left": 0, "volumes_left": 0, "left": []}


class Scheduler:
    """What it answers, one after the other; the last one for ever."""

    def __init__(self, *answers: dict[str, Any] | Exception) -> None:
        self.answers = list(answers)
        self.asked = 0

    def uninstall_state(self) -> dict[str, Any]:
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def follow(scheduler: Any, began: dict[str, Any]) -> dict[str, Any]:
    return leaving._follow(scheduler, Output(as_json=True), began)


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaving, "POLL_INTERVAL_S", 0.001)
    monkeypatch.setattr(leaving, "GONE_S", 60.0)
    monkeypatch.setattr(leaving, "AWAY_S", 60.0)


@pytest.mark.parametrize(
    "error",
    [UNREACHABLE, NOT_LEADING, ConnectionRefusedError()],
    ids=["unreachable", "not leading", "refused"],
)
@pytest.mark.parametrize("state", ["CLEARING", "TEARING_DOWN"])
def test_a_restart_or_take_over_in_the_middle_is_waited_for(state: str, error: Exception) -> None:
    scheduler = Scheduler(error, error, view(state), error, view("FINISHED"))
    assert follow(scheduler, view(state)) == view("FINISHED")
    assert scheduler.asked == 5


def test_a_scheduler_that_is_gone_after_its_teardown_has_done_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaving, "GONE_S", 0.05)
    assert follow(Scheduler(UNREACHABLE), view("TEARING_DOWN")) == view("TEARING_DOWN")


@pytest.mark.parametrize(
    ("state", "error"),
    [("CLEARING", UNREACHABLE), ("CLEARING", NOT_LEADING), ("TEARING_DOWN", NOT_LEADING)],
)
def test_nobody_is_waited_for_for_ever(state: str, error: ApiError, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one answers that nobody leads, or before the teardown, nothing is known to be over."""
    monkeypatch.setattr(leaving, "AWAY_S", 0.1)
    with pytest.raises(ApiError) as raised:
        follow(Scheduler(error), view(state))
    assert raised.value is error


def test_a_refusal_is_told_at_once() -> None:
    scheduler = Scheduler(FORBIDDEN)
    with pytest.raises(ApiError) as raised:
        follow(scheduler, view("TEARING_DOWN"))
    assert raised.value is FORBIDDEN and scheduler.asked == 1

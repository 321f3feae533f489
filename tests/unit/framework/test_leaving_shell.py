"""Drain, uninstall and removed frameworks, through the API and to the driver: real core and loop, fake journal and Mesos."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from stoker.framework import farewell as farewell_module
from stoker.framework.core import actions as a
from stoker.framework.core.events import FrameworkRemoved, TornDown
from stoker.framework.errors import BeginAnew, Fatal, Uninstalled
from stoker.mesos.errors import CallFailed
from stoker.zk.errors import Fenced
from support.greenlets import wait_until
from support.schedulers import InProcess, MemoryJournal, raw_offer

Make = Callable[..., InProcess]


@pytest.fixture
def make(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    monkeypatch.setattr(farewell_module, "LINGER_MS", 50)
    monkeypatch.setattr(farewell_module, "PUT_AGAIN_MS", 20)
    made: list[InProcess] = []

    def make_scheduler(journal: MemoryJournal | None = None, **config: Any) -> InProcess:
        scheduler = InProcess(journal or MemoryJournal(), tmp_path / f"scratch{len(made)}", **config)
        made.append(scheduler)
        scheduler.lead()
        scheduler.subscribe()
        wait_until(lambda: scheduler.call("GET", "/v1/leader")[1]["framework_id"])
        return scheduler

    yield make_scheduler
    for scheduler in made:
        scheduler.close()


def offered(scheduler: InProcess, *numbers: int) -> None:
    """Offer agents, and wait until they are known."""
    scheduler.driver.scheduler.resourceOffers(scheduler.driver, [raw_offer(n) for n in numbers])
    wait_until(lambda: len(scheduler.call("GET", "/v1/agents")[1]["agents"]) >= len(numbers))


def ended(scheduler: InProcess) -> Any:
    wait_until(lambda: scheduler.loop.ended.ready())
    return scheduler.loop.ended.get()


def test_a_drain_is_asked_for_shown_and_undone(make: Make) -> None:
    scheduler = make(instances=0)
    offered(scheduler, 1)
    status, job = scheduler.call("POST", "/v1/jobs", {"kind": "drain", "agent": "host1"})
    assert (status, job["kind"], job["agent"], job["dataset"], job["state"]) == (
        201,
        "drain",
        "A1",
        None,
        "SUCCEEDED",
    )
    (row,) = scheduler.call("GET", "/v1/agents")[1]["agents"]
    assert row["drain"]["state"] == "DRAINED" and row["drain"]["cause"] == "operator"
    assert scheduler.call("GET", f"/v1/jobs/{job['id']}")[1]["kind"] == "drain"
    status, row = scheduler.call("DELETE", "/v1/agents/A1/drain")
    assert status == 200 and row["drain"] is None
    assert scheduler.call("DELETE", "/v1/agents/A1/drain")[0] == 404


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"kind": "drain"}, "a drain names an agent"),
        ({"kind": "drain", "agent": ""}, "a drain names an agent"),
        ({"kind": "drain", "agent": "A1", "dataset": "d"}, "takes no 'dataset'"),
        ({"kind": "drain", "agent": "A1", "plan": True}, "takes no 'plan'"),
        ({"kind": "load", "agent": "A1"}, "a load names a dataset"),
        ({"kind": "free"}, "a free names a dataset"),
        ({"kind": "load", "dataset": "d", "agent": "A1"}, "a load names a dataset"),
        ({"kind": "drain", "agent": "x" * 300}, "300 characters"),
    ],
)
def test_wrong_drains_are_refused_in_words(make: Make, body: dict[str, Any], says: str) -> None:
    status, answer = make(instances=0).call("POST", "/v1/jobs", body)
    assert status == 400 and says in answer["error"]["message"]


def test_an_uninstall_tears_the_framework_down_and_ends_the_process_with_0(make: Make) -> None:
    scheduler = make(instances=0)
    assert scheduler.call("GET", "/v1/uninstall")[1]["state"] is None
    status, view = scheduler.call("POST", "/v1/uninstall", {})
    assert (status, view["state"], view["keep_volumes"]) == (201, "CLEARING", False)
    wait_until(lambda: scheduler.driver.named("teardown"))
    wait_until(lambda: scheduler.call("GET", "/v1/uninstall")[1]["state"] == "FINISHED")
    assert isinstance(ended(scheduler), Uninstalled)
    again = InProcess(scheduler.journal, pathlib.Path(scheduler.config.scratch_dir), instances=0)
    with pytest.raises(Fatal, match="was uninstalled.*--new-cluster"):
        again.lead()


def test_a_framework_that_is_removed_while_it_is_torn_down_is_torn_down(make: Make) -> None:
    scheduler = make(instances=0)
    scheduler.driver.fail = CallFailed("the answer got lost")
    scheduler.call("POST", "/v1/uninstall", {})
    wait_until(lambda: scheduler.call("GET", "/v1/uninstall")[1]["state"] == "TEARING_DOWN")
    scheduler.driver.scheduler.error(scheduler.driver, "Framework has been removed")
    assert isinstance(ended(scheduler), Uninstalled)


def test_a_removed_framework_ends_the_process_with_the_way_out(make: Make) -> None:
    scheduler = make(instances=0)
    scheduler.driver.scheduler.error(scheduler.driver, "Framework has been removed")
    error = ended(scheduler)
    assert isinstance(error, Fatal)
    for word in ("F-0001", "--new-framework", "persistent volumes"):
        assert word in str(error)


def test_with_new_framework_a_removed_one_gives_way(make: Make) -> None:
    scheduler = make(instances=1, new_framework=True)
    offered(scheduler, 1)
    wait_until(lambda: scheduler.driver.named("acceptOffers"))
    scheduler.driver.scheduler.error(scheduler.driver, "Framework has been removed")
    assert isinstance(ended(scheduler), BeginAnew)
    scheduler.close()
    scheduler.lead()
    assert "id" not in scheduler.driver.framework, "the next SUBSCRIBE asks for a new id"
    assert scheduler.call("GET", "/v1/executors")[1]["executors"][0]["launch"] is None
    scheduler.close()


def fill_queue(scheduler: InProcess, refused: list[Any]) -> None:
    """Let the loop's queue be full at the first two of the facts that nobody repeats, which are then in `refused`."""
    put = scheduler.loop.put

    def refuse_twice(event: Any, *, must: bool = False) -> bool:
        if must and len(refused) < 2:
            refused.append(event)
            return False
        return put(event, must=must)

    scheduler.loop.put = refuse_twice  # type: ignore[method-assign]


def test_a_removal_that_finds_the_queue_full_is_told_later(make: Make) -> None:
    """The driver is over by then, and says nothing twice: the leader would stay without Mesos."""
    scheduler, refused = make(instances=0, new_framework=True), list[Any]()
    fill_queue(scheduler, refused)
    scheduler.driver.scheduler.error(scheduler.driver, "Framework has been removed")
    assert isinstance(ended(scheduler), BeginAnew)
    assert refused == [FrameworkRemoved()] * 2


def test_the_end_of_a_teardown_that_finds_the_queue_full_is_told_later(make: Make) -> None:
    scheduler, refused = make(instances=0), list[Any]()
    scheduler.driver.fail = CallFailed("the answer got lost")
    scheduler.call("POST", "/v1/uninstall", {})
    wait_until(lambda: scheduler.call("GET", "/v1/uninstall")[1]["state"] == "TEARING_DOWN")
    fill_queue(scheduler, refused)
    scheduler.driver.scheduler.error(scheduler.driver, "Framework has been removed")
    assert isinstance(ended(scheduler), Uninstalled)
    assert refused == [TornDown()] * 2


@pytest.mark.parametrize("message", ["Not authorized to use roles", "Framework failed over"])
def test_another_error_ends_the_process_too(make: Make, message: str) -> None:
    scheduler = make(instances=0, new_framework=True)
    scheduler.driver.scheduler.error(scheduler.driver, message)
    error = ended(scheduler)
    assert isinstance(error, Fatal) and not isinstance(error, Fenced) and message in str(error)


def test_inverse_offers_are_answered_with_a_filter(make: Make) -> None:
    scheduler = make(instances=0)
    raw = {
        "id": {"value": "I1"},
        "agent_id": {"value": "A1"},
        "unavailability": {
            "start": {"nanoseconds": 1_000_000_000},
            "duration": {"nanoseconds": 60_000_000_000},
        },
    }
    scheduler.driver.scheduler.inverseOffers(scheduler.driver, [raw, {"id": {"value": "broken"}}])
    wait_until(lambda: scheduler.driver.named("acceptInverseOffers"))
    assert scheduler.driver.named("acceptInverseOffers") == [([{"value": "I1"}], {"refuse_seconds": 60.0})]
    scheduler.driver.scheduler.inverseOfferRescinded(scheduler.driver, {"value": "I1"})
    scheduler.leadership._mesos.perform(scheduler.loop._clock.stamp(), a.DeclineInverse(("I2",), 5_000))
    wait_until(lambda: scheduler.driver.named("declineInverseOffer"))
    assert scheduler.driver.named("declineInverseOffer") == [([{"value": "I2"}], {"refuse_seconds": 5.0})]

"""Callbacks become events, actions become calls; nothing else happens in between."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gevent
import pytest

from stoker.framework import mesos_shell
from stoker.framework.core import actions as a
from stoker.framework.core import events as ev
from stoker.framework.core.entries import LaunchPlanned, VolumePlanned
from stoker.framework.mesos_shell import MesosShell
from stoker.framework.metrics import Metrics
from stoker.framework.translate import LaunchValues
from stoker.mesos.errors import CallFailed, Disconnected
from support.greenlets import settle
from support.schedulers import FakeDriver, raw_offer

LAUNCH = LaunchPlanned(3, 2, "task", "A1", "host1", 31005, "s", 1 << 30, 500, 1, 0)
STAMP = ev.Stamp(1, 0, 0)


class Rig:
    def __init__(self) -> None:
        self.events: list[Any] = []
        self.errors: list[str] = []
        self.accepts_events = True
        self.shell = MesosShell(
            lambda scheduler: FakeDriver(scheduler, {}),
            self._put,
            spawn=gevent.spawn,
            launch_values=lambda launch: LaunchValues(launch.mem_bytes, "exec true", {"A": "1"}),
            framework=lambda: {"name": "stoker"},
            identity=lambda: (bytes(16), "p"),
            on_error=self.errors.append,
            metrics=Metrics(),
        )
        self.driver: Any = self.shell._driver

    def _put(self, event: Any, *, must: bool = False) -> bool:
        if self.accepts_events or must:
            self.events.append(event)
            return True
        return False

    def perform(self, *actions: a.Action) -> list[tuple[str, tuple[Any, ...]]]:
        self.driver.calls.clear()
        for action in actions:
            self.shell.perform(STAMP, action)
        gevent.sleep(0.01)
        return list(self.driver.calls)


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    made.shell.start()
    yield made
    made.shell.stop()


def test_it_starts_and_leaves_without_a_word_to_mesos(rig: Rig) -> None:
    assert rig.driver.is_started
    rig.shell.stop()
    assert not rig.driver.is_started and rig.driver.calls == []


def test_a_fact_that_nobody_repeats_waits_for_room_in_the_queue(rig: Rig) -> None:
    """A lost Subscribed would leave the scheduler without Mesos until the next one."""
    refused: list[Any] = []
    put = rig.shell._put

    def refuse_twice(event: Any, *, must: bool = False) -> bool:
        if len(refused) < 2:
            refused.append(event)
            return False
        return put(event, must=must)

    rig.shell._put = refuse_twice
    rig.shell.registered(rig.driver, {"value": "F"}, {"id": "M1"})
    assert rig.events == [ev.Subscribed("F", "M1")] and len(refused) == 2


def test_stopping_ends_the_wait_for_room(rig: Rig) -> None:
    rig.shell._put = lambda event, *, must=False: False
    waiting = gevent.spawn(rig.shell.slaveLost, rig.driver, {"value": "A1"})
    gevent.sleep(0)
    rig.shell.stop()
    settle([waiting])


def test_callbacks_become_events(rig: Rig) -> None:
    shell, driver = rig.shell, rig.driver
    shell.registered(driver, {"value": "F"}, {"id": "M1"})
    driver.framework_id = "F"
    shell.reregistered(driver, {"id": "M2"})
    shell.offerRescinded(driver, {"value": "O9"})
    shell.executorLost(driver, {"value": "task"}, {"value": "A1"}, 9)
    shell.executorLost(driver, {"value": "task"}, {"value": "A1"}, None)
    shell.slaveLost(driver, {"value": "A1"})
    shell.disconnected(driver)
    assert rig.events == [
        ev.Subscribed("F", "M1"),
        ev.Subscribed("F", "M2"),
        ev.OfferRescinded("O9"),
        ev.ExecutorEnded("A1", "task", 9),
        ev.ExecutorEnded("A1", "task", 0),
        ev.AgentRemoved("A1"),
        ev.Disconnected(),
    ]


def test_a_large_offers_event_comes_in_slices(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mesos_shell, "OFFERS_AN_EVENT_MAX", 3)
    rig.shell.resourceOffers(rig.driver, [raw_offer(i) for i in range(7)])
    assert [len(event.offers) for event in rig.events] == [3, 3, 1]


def test_an_update_that_cannot_be_read_is_passed_over(rig: Rig) -> None:
    rig.shell.statusUpdate(rig.driver, {"state": "TASK_RUNNING"})
    rig.shell.statusUpdate(rig.driver, {"task_id": {"value": "t"}, "state": "TASK_RUNNING"})
    assert [event.status.task_id for event in rig.events] == ["t"]


def test_offers_that_find_the_queue_full_are_declined_for_a_short_while(rig: Rig) -> None:
    rig.accepts_events = False
    rig.shell.resourceOffers(rig.driver, [raw_offer(1), raw_offer(2)])
    gevent.sleep(0.01)
    assert rig.driver.named("declineOffer") == [([{"value": "O1"}, {"value": "O2"}], {"refuse_seconds": 2.0})]
    assert rig.events == []


def test_a_launch_takes_the_offers_resources(rig: Rig) -> None:
    rig.shell.resourceOffers(rig.driver, [raw_offer(1)])
    ((name, (offers, operations, filters)),) = rig.perform(a.Accept(("O1",), LAUNCH, 5_000))
    assert name == "acceptOffers" and offers == [{"value": "O1"}] and filters == {"refuse_seconds": 5.0}
    (task,) = operations[0]["launch"]["task_infos"]
    assert task["task_id"] == {"value": "task"} and task["agent_id"] == {"value": "A1"}


@pytest.mark.parametrize("error", [None, Disconnected("no stream")])
def test_a_launch_that_was_surely_not_sent_is_said_to_be_dropped(rig: Rig, error: Exception | None) -> None:
    """The offer was rescinded while the entry was written, or the stream ended: nobody waits for a timeout."""
    if error is not None:
        rig.shell.resourceOffers(rig.driver, [raw_offer(1)])
    rig.driver.fail = error
    rig.perform(a.Accept(("O1",), LAUNCH, 5_000))
    status = rig.events[-1].status
    assert (status.task_id, status.state, status.uuid) == ("task", "TASK_DROPPED", b"")


def test_a_launch_of_unknown_fate_is_left_to_mesos_to_tell(rig: Rig) -> None:
    rig.shell.resourceOffers(rig.driver, [raw_offer(1)])
    rig.driver.fail = CallFailed("connection reset")
    rig.perform(a.Accept(("O1",), LAUNCH, 5_000))
    assert not any(isinstance(event, ev.TaskUpdated) for event in rig.events)


def test_every_action_is_a_call(rig: Rig) -> None:
    calls = rig.perform(
        a.Decline(("O1",), 300_000, "too small"),
        a.Acknowledge("task", "A1", b"\x00\xff"),
        a.Kill("task", "A1", 5_000),
        a.Kill("task", ""),
        a.ShutdownExecutor("task", "A1"),
        a.Reconcile((("t1", "A1"), ("t2", ""))),
        a.Reconcile(()),
        a.Suppress(),
        a.Revive(),
    )
    assert calls == [
        ("declineOffer", ([{"value": "O1"}], {"refuse_seconds": 300.0})),
        (
            "acknowledgeStatusUpdate",
            ({"task_id": {"value": "task"}, "agent_id": {"value": "A1"}, "uuid": "AP8="},),
        ),
        ("killTask", ({"value": "task"}, {"value": "A1"}, 5000)),
        ("killTask", ({"value": "task"}, None, None)),
        ("shutdownExecutor", ({"value": "task"}, {"value": "A1"})),
        (
            "reconcileTasks",
            ([{"task_id": {"value": "t1"}, "agent_id": {"value": "A1"}}, {"task_id": {"value": "t2"}}],),
        ),
        ("reconcileTasks", ([],)),
        ("suppressOffers", ()),
        ("reviveOffers", ()),
    ]


def test_a_failed_call_is_told_and_the_next_one_goes_out(rig: Rig) -> None:
    rig.driver.fail = Disconnected("no stream")
    rig.perform(a.Suppress())
    rig.driver.fail = None
    assert rig.perform(a.Revive()) == [("reviveOffers", ())]


def test_a_full_outbox_drops_and_goes_on(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.shell._outbox.maxsize = 2
    assert len(rig.perform(*[a.Revive()] * 5)) == 2
    assert len(rig.perform(a.Revive())) == 1


def test_what_mesos_refuses_for_good_is_reported(rig: Rig) -> None:
    rig.shell.error(rig.driver, "Framework has been removed")
    assert rig.errors == ["Framework has been removed"]


def raw_volume(volume_id: int = 7) -> dict[str, Any]:
    pairs = {"stoker_cluster": bytes(16).hex(), "stoker_volume": str(volume_id)}
    labels = {"labels": [{"key": key, "value": value} for key, value in pairs.items()]}
    return {
        "name": "disk",
        "type": "SCALAR",
        "scalar": {"value": 64.0},
        "allocation_info": {"role": "r"},
        "reservations": [{"type": "DYNAMIC", "role": "r", "labels": labels}],
        "disk": {"persistence": {"id": f"stoker-00000000-v{volume_id}"}, "volume": {"container_path": "ssd"}},
    }


def test_a_launch_makes_its_volume_in_the_same_accept(rig: Rig) -> None:
    raw = raw_offer(1, role="r")
    raw["resources"].append({"name": "disk", "type": "SCALAR", "scalar": {"value": 900.0}})
    rig.shell.resourceOffers(rig.driver, [raw])
    launch = LAUNCH._replace(volume_id=7, disk_bytes=64 << 20, role="r")
    planned = VolumePlanned(7, 2, "A1", "host1", "r", 64 << 20, 0)
    ((name, arguments),) = rig.perform(a.Accept(("O1",), launch, 5_000, "r", planned))
    assert name == "acceptOffers"
    assert [operation["type"] for operation in arguments[1]] == ["RESERVE", "CREATE", "LAUNCH"]
    (volume,) = arguments[1][1]["create"]["volumes"]
    assert volume in arguments[1][2]["launch"]["task_infos"][0]["executor"]["resources"]


def test_a_launch_that_was_surely_not_sent_made_no_volume_either(rig: Rig) -> None:
    planned = VolumePlanned(7, 2, "A1", "host1", "r", 64 << 20, 0)
    launch = LAUNCH._replace(volume_id=7, disk_bytes=64 << 20)
    rig.perform(a.Accept(("gone",), launch, 5_000, "r", planned))
    operation, task = rig.events
    assert operation.status.operation_id == "stoker-00000000-v7-create"
    assert operation.status.state == "OPERATION_DROPPED" and not operation.status.uuid
    assert task.status.state == "TASK_DROPPED"


def test_a_volume_is_destroyed_out_of_the_offers_that_hold_it(rig: Rig) -> None:
    raw = raw_offer(1, role="r")
    raw["resources"] += [raw_volume(), raw_volume(8)]
    rig.shell.resourceOffers(rig.driver, [raw])
    ((name, arguments),) = rig.perform(a.DestroyVolume(("O1",), 7, "A1", "r", "e1-1", 0))
    assert name == "acceptOffers"
    assert [operation["type"] for operation in arguments[1]] == ["DESTROY", "UNRESERVE"]
    assert arguments[1][0]["destroy"]["volumes"] == [raw_volume()]
    assert rig.perform(a.DestroyVolume(("O1",), 7, "A1", "r", "e1-2", 0)) == [], "the offer was spent"


def test_operations_are_acknowledged_asked_for_and_told_of(rig: Rig) -> None:
    calls = rig.perform(
        a.AcknowledgeOperation("op", "A1", b"u" * 16), a.ReconcileOperations((("op", "A1"), ("op2", "A2")))
    )
    acknowledged, reconciled = calls
    assert acknowledged[0] == "acknowledgeOperationStatusUpdate"
    assert acknowledged[1][0]["uuid"] == {"value": "dXV1dXV1dXV1dXV1dXV1dQ=="}
    assert [x["operation_id"]["value"] for x in reconciled[1][0]] == ["op", "op2"]
    rig.shell.operationStatusUpdate(rig.driver, {"operation_id": {"value": "op"}, "state": "OPERATION_ERROR"})
    rig.shell.operationStatusUpdate(rig.driver, {"operation_id": {"value": "op"}})
    assert [event.status.state for event in rig.events] == ["OPERATION_ERROR"]


def test_inverse_offers_are_told_of_and_answered(rig: Rig) -> None:
    asked = {"id": {"value": "I1"}, "agent_id": {"value": "A1"}}
    window = {"unavailability": {"start": {"nanoseconds": 1_000_000}}}
    rig.shell.inverseOffers(rig.driver, [asked | window, asked])
    rig.shell.inverseOfferRescinded(rig.driver, {"value": "I1"})
    received, rescinded = rig.events
    assert [offer.agent_id for offer in received.offers] == ["A1"] and rescinded.offer_id == "I1"
    (declined,) = rig.perform(a.DeclineInverse(("I1",), 2_000))
    assert declined == ("declineInverseOffer", ([{"value": "I1"}], {"refuse_seconds": 2.0}))


def test_changed_roles_keep_who_we_are(rig: Rig) -> None:
    ((name, arguments),) = rig.perform(a.UpdateFramework(("x", "y"), 0, True))
    assert name == "updateFramework"
    assert arguments == ({"name": "stoker", "roles": ["x", "y"]}, ("x", "y"))


def test_an_offer_that_cannot_be_read_is_declined_and_the_others_are_used(rig: Rig) -> None:
    garbled = raw_offer(2)
    garbled["attributes"] = [{"name": "x", "type": "SCALAR", "scalar": {"value": "1"}}]
    nameless = raw_offer(4)
    del nameless["id"]
    rig.shell.resourceOffers(rig.driver, [raw_offer(1), garbled, raw_offer(3), nameless, []])
    gevent.sleep(0.01)
    (received,) = rig.events
    assert [offer.offer_id for offer in received.offers] == ["O1", "O3"]
    assert rig.driver.calls == [("declineOffer", ([{"value": "O2"}], {"refuse_seconds": 300.0}))]


def test_an_update_that_the_master_says_once_is_not_lost_in_a_full_queue(rig: Rig) -> None:
    """What has a uuid comes again until it is acknowledged; what has none comes from the master, and never again."""
    rig.accepts_events = False
    task = {"task_id": {"value": "t"}, "state": "TASK_GONE", "agent_id": {"value": "A1"}}
    operation = {"operation_id": {"value": "o"}, "state": "OPERATION_DROPPED"}
    rig.shell.statusUpdate(rig.driver, task | {"uuid": "AAEC/w=="})
    rig.shell.operationStatusUpdate(rig.driver, operation | {"uuid": {"value": "AAEC/w=="}})
    assert rig.events == []
    rig.shell.statusUpdate(rig.driver, task)
    rig.shell.operationStatusUpdate(rig.driver, operation)
    assert [event.status.state for event in rig.events] == ["TASK_GONE", "OPERATION_DROPPED"]

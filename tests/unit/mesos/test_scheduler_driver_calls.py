"""A scheduler driver's calls: what they say, how they fail, and what they wait for."""

from __future__ import annotations

import base64
import threading

import pytest

from stoker.mesos.detector import parse_address
from stoker.mesos.errors import BadCall, CallFailed, Disconnected, HttpError, MesosError
from stoker.mesos.scheduler_driver import SchedulerDriver, Timings
from stoker.mesos.transport import CALL_BYTES_MAX, Caller
from support.drivers import FRAMEWORK, LONG_MS, UUID, driving, subscribe, update
from support.fake_mesos import FakeMesos, Hold, Recorder, Reply, subscribed
from support.waiting import DEADLINE_S

# --- b.3 9, 20: headers


def test_two_drivers_share_no_headers(master: FakeMesos) -> None:
    first, second = Recorder(), Recorder()
    with driving(master, first, principal="stoker", secret="gehéim") as one, FakeMesos() as other:
        subscribe(master, first)
        with driving(other, second) as two:
            subscribe(other, second)
            one.reviveOffers()
            two.reviveOffers()
    expected = "Basic " + base64.b64encode("stoker:gehéim".encode()).decode()
    assert [call.headers.get("authorization") for call in master.calls] == [expected, expected]
    assert [call.headers.get("authorization") for call in other.calls] == [None, None]
    assert [call.headers.get("mesos-stream-id") for call in master.calls] == [None, "stream-1"]
    assert master.calls[0].body["subscribe"]["framework_info"]["principal"] == "stoker"
    assert "principal" not in other.calls[0].body["subscribe"]["framework_info"]


def test_a_secret_without_principal_is_refused() -> None:
    with pytest.raises(ValueError, match="give both"):
        SchedulerDriver(Recorder(), FRAMEWORK, "127.0.0.1:1", secret="s")


# --- b.3 10, 11: calls


def test_a_slow_call_holds_up_no_other_and_no_event(master: FakeMesos, recorder: Recorder) -> None:
    """pymesos holds one lock across all of it."""
    patient = Timings(call_timeout_ms=LONG_MS)
    with Hold() as hold, driving(master, recorder, timings=patient) as driver:
        master.replies["ACCEPT"] = Reply(202, before=hold)
        stream = subscribe(master, recorder)
        slow = threading.Thread(target=driver.acceptOffers, args=([{"value": "o"}], [{"type": "LAUNCH"}]))
        slow.start()
        master.wait_calls("ACCEPT")
        assert driver.connected and not driver.aborted and driver.stream_id == "stream-1"
        driver.reviveOffers()
        stream.send({"type": "HEARTBEAT"})
        recorder.wait("processHeartBeat")
        assert slow.is_alive()
        hold.release()
        slow.join(DEADLINE_S)
        assert not slow.is_alive()


def test_calls_use_a_kept_connection_and_survive_its_death(master: FakeMesos, recorder: Recorder) -> None:
    with driving(master, recorder) as driver:
        subscribe(master, recorder)
        driver.reviveOffers()
        driver.reviveOffers()
        revives = master.wait_calls("REVIVE", 2)
        assert revives[0].connection == revives[1].connection != master.calls[0].connection
        master.close_idle_connections()
        driver.reviveOffers()
        # Died under the call: what may run twice is sent again, an ACCEPT is not.
        hang_up_once(master, "REVIVE")
        driver.reviveOffers()
        assert len(master.wait_calls("REVIVE", 5)) == 5
        hang_up_once(master, "ACCEPT")
        with pytest.raises(CallFailed, match="may have been received"):
            driver.acceptOffers([{"value": "o"}], [{"type": "LAUNCH"}])
        assert len(master.of_type("ACCEPT")) == 1
        driver.declineOffer({"value": "o"})
        assert driver.connected


def hang_up_once(master: FakeMesos, kind: str) -> None:
    def forgive() -> None:
        master.replies.pop(kind, None)

    master.replies[kind] = Reply(0, before=forgive)


def test_calls_that_get_no_answer_time_out(master: FakeMesos, recorder: Recorder) -> None:
    with Hold() as hold, driving(master, recorder, timings=Timings(call_timeout_ms=2_000)) as driver:
        master.replies["REVIVE"] = Reply(202, before=hold)
        subscribe(master, recorder)
        with pytest.raises(CallFailed, match="no bytes came in time"):
            driver.reviveOffers()
    assert len(master.of_type("REVIVE")) == 1


def test_connections_and_calls_are_bounded(master: FakeMesos) -> None:
    caller = Caller(timeout_ms=1_000, connections_max=1)
    address = parse_address(master.address)
    caller._slots.acquire()  # another call, which takes its time
    with pytest.raises(CallFailed, match="busy"):
        caller.call(address, "/", b'{"type": "X"}', {})
    assert master.calls == []
    caller._slots.release()
    for _ in range(3):
        assert caller.call(address, "/", b'{"type": "X"}', {}).status == 202
    with pytest.raises(BadCall, match="above the limit"):
        caller.call(address, "/", bytes(CALL_BYTES_MAX + 1), {})
    caller.close_idle()


def test_refusals_are_typed_and_keep_the_stream(master: FakeMesos, recorder: Recorder) -> None:
    master.replies["REVIVE"] = Reply(400, "The stream ID didn't match")
    with driving(master, recorder) as driver:
        subscribe(master, recorder)
        with pytest.raises(HttpError, match="HTTP 400: The stream ID") as caught:
            driver.reviveOffers()
        assert (caught.value.status, caught.value.body) == (400, "The stream ID didn't match")
        assert isinstance(caught.value, MesosError)
        with pytest.raises(BadCall, match="ACCEPT cannot be written as JSON"):
            driver.acceptOffers([{"value": "o"}], [{"type": float("nan")}])
        assert driver.connected


@pytest.mark.parametrize(
    "reply", [Reply(307, headers=(("Location", "//h:1/x"),)), Reply(403, "Framework is not subscribed")]
)
def test_a_call_that_shows_that_the_master_leads_us_no_more_leaves_its_stream(
    master: FakeMesos, recorder: Recorder, reply: Reply
) -> None:
    master.replies["REVIVE"] = reply
    with driving(master, recorder) as driver:
        subscribe(master, recorder)
        with pytest.raises(HttpError):
            driver.reviveOffers()
        recorder.wait("disconnected")
        subscribe(master, recorder, count=2)


# --- b.3 12: calls while disconnected


def test_calls_without_a_stream_raise_and_send_nothing(master: FakeMesos, recorder: Recorder) -> None:
    offers, tasks, status = (
        [{"value": "o"}],
        [{"task_id": {"value": "t"}}],
        update(uuid=UUID)["update"]["status"],
    )
    operation = {"operation_id": {"value": "o"}, "uuid": {"value": UUID}, "agent_id": {"value": "S1"}}
    with driving(master, recorder) as driver:
        master.wait_stream()
        for call in (
            lambda: driver.acceptOffers(offers, [{"type": "LAUNCH"}]),
            lambda: driver.acceptOffers(offers, []),
            lambda: driver.launchTasks(offers, tasks),
            lambda: driver.declineOffer(offers),
            lambda: driver.acceptInverseOffers(offers),
            lambda: driver.declineInverseOffer(offers),
            driver.reviveOffers,
            driver.suppressOffers,
            lambda: driver.killTask({"value": "t"}),
            lambda: driver.shutdownExecutor({"value": "e"}, {"value": "S1"}),
            lambda: driver.reconcileTasks([]),
            lambda: driver.reconcileOperations([operation]),
            lambda: driver.acknowledgeStatusUpdate(status),
            lambda: driver.acknowledgeOperationStatusUpdate(operation),
            lambda: driver.sendFrameworkMessage({"value": "e"}, {"value": "S1"}, "aGk="),
            lambda: driver.requestResources([]),
            lambda: driver.updateFramework(FRAMEWORK),
        ):
            with pytest.raises(Disconnected):
                call()
    assert [call.type for call in master.calls] == ["SUBSCRIBE"]


# --- b.3 13, 14, 15 and the other calls: their bodies


def test_calls_say_what_mesos_needs(master: FakeMesos, recorder: Recorder) -> None:
    task, agent, executor, offers = {"value": "t"}, {"value": "S1"}, {"value": "E1"}, [{"value": "o"}]
    filters = {"refuse_seconds": 120.0}
    operation = {
        "operation_id": {"value": "o"},
        "uuid": {"value": UUID},
        "agent_id": agent,
        "state": "OPERATION_X",
    }
    status = update(uuid=UUID, data="x")["update"]["status"]
    with driving(master, recorder) as driver:
        subscribe(master, recorder)
        driver.acceptOffers(offers, [{"type": "LAUNCH"}], filters=filters)
        driver.launchTasks(offers[0], [{"task_id": task}])
        driver.declineOffer(offers, filters=filters)
        driver.acceptInverseOffers(offers)
        driver.declineInverseOffer(offers, filters=filters)
        driver.reviveOffers(["cache"])
        driver.suppressOffers(["cache"])
        driver.killTask(task)
        driver.killTask(task, agent, grace_ms=1_500)
        driver.shutdownExecutor(executor, agent)
        driver.reconcileTasks(
            [{"task_id": task, "agent_id": agent, "state": "TASK_RUNNING"}, {"task_id": task}]
        )
        driver.reconcileTasks([])
        driver.reconcileOperations([operation])
        driver.acknowledgeStatusUpdate(status)
        driver.acknowledgeStatusUpdate(update()["update"]["status"])  # without uuid: no call
        driver.acknowledgeOperationStatusUpdate(operation)
        driver.acknowledgeOperationStatusUpdate({"uuid": {"value": UUID}})
        driver.sendFrameworkMessage(executor, agent, "aGk=")
        driver.requestResources([{"agent_id": agent}])
        sent = [call.body for call in master.calls[1:]]
        assert all(call.headers["mesos-stream-id"] == "stream-1" for call in master.calls[1:])
    assert all(body.pop("framework_id") == {"value": "F1"} for body in sent)
    assert sent == [
        {"type": "ACCEPT", "accept": {"offer_ids": offers, "operations": [{"type": "LAUNCH"}], "filters": filters}},
        {"type": "ACCEPT", "accept": {"offer_ids": offers, "operations": [{"type": "LAUNCH", "launch": {"task_infos": [{"task_id": task}]}}]}},
        {"type": "DECLINE", "decline": {"offer_ids": offers, "filters": filters}},
        {"type": "ACCEPT_INVERSE_OFFERS", "accept_inverse_offers": {"inverse_offer_ids": offers}},
        {"type": "DECLINE_INVERSE_OFFERS", "decline_inverse_offers": {"inverse_offer_ids": offers, "filters": filters}},
        {"type": "REVIVE", "revive": {"roles": ["cache"]}},
        {"type": "SUPPRESS", "suppress": {"roles": ["cache"]}},
        {"type": "KILL", "kill": {"task_id": task}},
        {"type": "KILL", "kill": {"task_id": task, "agent_id": agent, "kill_policy": {"grace_period": {"nanoseconds": 1_500_000_000}}}},
        {"type": "SHUTDOWN", "shutdown": {"executor_id": executor, "agent_id": agent}},
        {"type": "RECONCILE", "reconcile": {"tasks": [{"task_id": task, "agent_id": agent}, {"task_id": task}]}},
        {"type": "RECONCILE", "reconcile": {"tasks": []}},
        {"type": "RECONCILE_OPERATIONS", "reconcile_operations": {"operations": [{"operation_id": {"value": "o"}, "agent_id": agent}]}},
        {"type": "ACKNOWLEDGE", "acknowledge": {"agent_id": agent, "task_id": task, "uuid": UUID}},
        {"type": "ACKNOWLEDGE_OPERATION_STATUS", "acknowledge_operation_status": {"agent_id": agent, "operation_id": {"value": "o"}, "uuid": UUID}},
        {"type": "MESSAGE", "message": {"executor_id": executor, "agent_id": agent, "data": "aGk="}},
        {"type": "REQUEST", "request": {"requests": [{"agent_id": agent}]}},
    ]  # fmt: skip


def test_explicit_acknowledgements_are_the_default_and_implicit_ones_come_after_the_callback(
    master: FakeMesos, recorder: Recorder
) -> None:
    operation = {"operation_id": {"value": "o"}, "uuid": {"value": UUID}, "agent_id": {"value": "S1"}}
    operation_event = {"type": "UPDATE_OPERATION_STATUS", "update_operation_status": {"status": operation}}
    with driving(master, recorder):
        stream = subscribe(master, recorder)
        stream.send(update(uuid=UUID), {"type": "HEARTBEAT"})
        recorder.wait("processHeartBeat")
    assert master.of_type("ACKNOWLEDGE") == []
    second = Recorder()
    with FakeMesos() as other, driving(other, second, implicit_acknowledgements=True) as driver:
        stream = subscribe(other, second)
        stream.send(update(uuid=UUID), update(), operation_event)
        (call,) = other.wait_calls("ACKNOWLEDGE")
        assert call.body["acknowledge"]["uuid"] == UUID
        # pymesos sends the whole status here, gets a 400 and dies of it.
        (call,) = other.wait_calls("ACKNOWLEDGE_OPERATION_STATUS")
        assert call.body["acknowledge_operation_status"]["uuid"] == UUID
        other.replies["ACKNOWLEDGE"] = Reply(400, "Not a valid UUID")
        stream.send(update(uuid="x"), {"type": "HEARTBEAT"})
        second.wait("processHeartBeat")
        assert driver.connected and driver.callback_failure_count == 1


def test_suppression_outlives_the_connection(master: FakeMesos, recorder: Recorder) -> None:
    two_roles = {**FRAMEWORK, "roles": ["a", "b"]}
    with driving(master, recorder, framework=two_roles) as driver:
        stream = subscribe(master, recorder)
        driver.suppressOffers()
        assert driver.suppressed_roles == ["a", "b"]
        driver.reviveOffers(["a"])
        stream.cut()
        recorder.wait("disconnected")
        subscribe(master, recorder, count=2)
        driver.reviveOffers()
        master.streams[1].cut()
        recorder.wait("disconnected", 2)
        master.answer_all_subscribes(Reply(503))
        with pytest.raises(Disconnected):
            driver.suppressOffers(["a"])
        master.answer_all_subscribes(None)
        master.wait_stream(3).send(subscribed())
        recorder.wait("reregistered", 2)
    said = [call.body["subscribe"]["suppressed_roles"] for call in master.of_type("SUBSCRIBE")]
    assert said[:2] == [[], ["b"]] and said[-1] in ([], ["a"]), "the race of the last one is the test's own"


def test_update_framework_changes_what_later_subscribes_say(master: FakeMesos, recorder: Recorder) -> None:
    changed = {**FRAMEWORK, "roles": ["cache", "more"]}
    constraints = {"role_constraints": {}}
    with driving(master, recorder, principal="p", secret="s") as driver:
        stream = subscribe(master, recorder)
        master.replies["UPDATE_FRAMEWORK"] = Reply(400, "Updating 'FrameworkInfo.user' is unsupported")
        with pytest.raises(HttpError, match="unsupported"):
            driver.updateFramework({**FRAMEWORK, "user": "other"})
        assert driver.framework["user"] == "root"
        master.replies["UPDATE_FRAMEWORK"] = Reply(200)
        driver.updateFramework(changed, suppressed_roles=["more"], offer_constraints=constraints)
        stream.cut()
        master.wait_stream(2)
    info = {**changed, "id": {"value": "F1"}, "failover_timeout": 604800.0, "principal": "p"}
    said = {"framework_info": info, "suppressed_roles": ["more"], "offer_constraints": constraints}
    assert master.of_type("UPDATE_FRAMEWORK")[1].body["update_framework"] == said
    assert master.of_type("SUBSCRIBE")[1].body["subscribe"] == said | {"offer_constraints": constraints}

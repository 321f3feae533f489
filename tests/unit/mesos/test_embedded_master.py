"""The master on a bench: subscriptions, offers, ACCEPT, reconciliation, removal. Rules and texts are those of the transcripts."""

from __future__ import annotations

from typing import Any

import pytest

from stoker.mesos.embedded.core import view
from stoker.mesos.embedded.core.codec import Message
from support.embedded_bench import Bench, cpus, executor, make_uuid, task

GONE = "Reconciliation: Task is unknown to the agent"
UNKNOWN = "Reconciliation: Task is unknown"


def error_of(bench: Bench, stream: int) -> str:
    """Return the text of the ERROR that is all that came, before the end of the stream."""
    (event,) = bench.events[stream]
    assert stream in bench.closed
    return str(event["error"]["message"])


def test_a_subscriber_gets_subscribed_a_heartbeat_and_one_event_with_all_offers() -> None:
    bench = Bench(agents=3)
    stream = bench.subscribe()
    kinds = [event["type"] for event in bench.events[stream]]
    assert kinds == ["SUBSCRIBED", "HEARTBEAT", "OFFERS"]
    subscribed = bench.events[stream][0]["subscribed"]
    assert subscribed["framework_id"] == {"value": "m-0000"}
    assert subscribed["heartbeat_interval_seconds"] == 15.0
    assert subscribed["master_info"]["ip"] == 16777343
    offers = bench.offers(stream)
    assert [offer["id"]["value"] for offer in offers] == ["m-O0", "m-O1", "m-O2"]
    assert [offer["agent_id"]["value"] for offer in offers] == ["S0", "S1", "S2"]
    assert offers[1]["url"]["path"] == "/slave(2)" and offers[1]["allocation_info"] == {"role": "cache"}
    assert bench.subscribe(roles=["x"]) and "m-0001" in bench.cluster.master.frameworks


def test_heartbeats_come_every_interval() -> None:
    bench = Bench(heartbeat_interval_ms=15_000)
    stream = bench.subscribe()
    bench.advance(31_000)
    assert [event["type"] for event in bench.events[stream]].count("HEARTBEAT") == 3


@pytest.mark.parametrize(
    ("capabilities", "fields", "allocation_info", "role"),
    [
        (["MULTI_ROLE", "RESERVATION_REFINEMENT"], {"roles": ["cache"]}, {"role": "cache"}, None),
        (["MULTI_ROLE"], {"roles": ["cache"]}, {"role": "cache"}, "*"),
        ([], {"role": "cache"}, None, "*"),
        ([], {}, None, "*"),
    ],
)
def test_the_format_of_resources_follows_the_capabilities(
    capabilities: list[str], fields: Message, allocation_info: Message | None, role: str | None
) -> None:
    bench = Bench()
    base: dict[str, Any] = {"roles": [], "capabilities": [{"type": name} for name in capabilities]}
    stream = bench.subscribe(**(base | fields))
    (offer,) = bench.offers(stream)
    assert offer.get("allocation_info") == allocation_info
    for resource in offer["resources"]:
        assert resource.get("allocation_info") == allocation_info and resource.get("role") == role


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (
            {"capabilities": []},
            "'FrameworkInfo.roles' must not be set when the framework is not MULTI_ROLE capable",
        ),
        ({"role": "cache"}, "'FrameworkInfo.role' must not be set when the framework is MULTI_ROLE capable"),
        ({"roles": ["a", "a"]}, "'FrameworkInfo.roles' contains duplicate items: { a }"),
        ({"roles": ["a//b"]}, "'FrameworkInfo.roles' contains invalid role: Role 'a//b' cannot contain two"),
        ({"roles": ["-a"]}, "Role component '-a' is invalid because it begins with a dash"),
        ({"roles": [""]}, "Role name cannot be empty"),
        ({"roles": ["a/"]}, "Role 'a/' cannot end with a slash"),
        ({"roles": ["a/*"]}, "Role 'a/*' cannot include '*' as a component"),
        ({"failover_timeout": 1e12}, "The framework failover_timeout (1e+12) is invalid"),
        ({"suppressed": ("other",)}, "Suppressed roles { other } are not contained in the set of roles"),
        ({"framework_id": "../../etc"}, "'../../etc' contains invalid characters"),
    ],
)
def test_a_wrong_framework_info_is_an_error_event_and_the_end(fields: dict[str, Any], text: str) -> None:
    bench = Bench()
    stream = bench.subscribe(**fields)
    assert text in error_of(bench, stream)
    assert not bench.cluster.master.frameworks


@pytest.mark.parametrize(
    ("kind", "stream", "framework_id", "status", "text"),
    [
        ("REVIVE", 1, "nope", 400, "Framework cannot be found"),
        ("REVIVE", 9, "m-0000", 400, "The stream ID 'stream-9' included in this request didn't match"),
        ("UPDATE_FRAMEWORK", 1, "m-0000", 400, "Expecting 'update_framework' to be present"),
        ("REVIVE", 1, "m-0000", 202, ""),
    ],
)
def test_a_call_is_answered_by_whom_it_names(
    kind: str, stream: int, framework_id: str, status: int, text: str
) -> None:
    bench = Bench()
    bench.subscribe()
    answer = bench.call(stream, kind, framework_id=framework_id)
    assert answer.status == status and text in answer.text


def test_what_is_not_supported_is_told_so() -> None:
    bench = Bench()
    stream = bench.subscribe()
    operations = [
        {"type": "CREATE_DISK", "id": {"value": "op1"}},
        {"type": "DESTROY_DISK"},
        {"type": "LAUNCH_GROUP", "launch_group": {"executor": executor(), "task_group": {"tasks": [task()]}}},
    ]
    body = {"offer_ids": [bench.offers(stream)[0]["id"]], "operations": operations}
    assert bench.call(stream, "ACCEPT", body).status == 202
    operation, update = bench.events[stream][-2:]
    assert operation["update_operation_status"]["status"]["state"] == "OPERATION_ERROR"
    assert "CREATE_DISK" in operation["update_operation_status"]["status"]["message"]
    assert update["update"]["status"]["reason"] == "REASON_TASK_GROUP_INVALID"


def test_unknown_operations_are_reconciled_as_unknown() -> None:
    bench = Bench()
    stream = bench.subscribe()
    bench.call(stream, "RECONCILE_OPERATIONS", {"operations": [{"operation_id": {"value": "op1"}}]})
    status = bench.events[stream][-1]["update_operation_status"]["status"]
    assert (status["operation_id"]["value"], status["state"]) == ("op1", "OPERATION_UNKNOWN")


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("REQUEST", {"requests": []}),
        ("ACCEPT_INVERSE_OFFERS", {"inverse_offer_ids": [{"value": "x"}]}),
        ("DECLINE", {"offer_ids": [{"value": "no-such-offer"}]}),
        ("SHUTDOWN", {"executor_id": {"value": "nope"}, "agent_id": {"value": "nope"}}),
        ("SHUTDOWN", {"executor_id": {"value": "nope"}, "agent_id": {"value": "S0"}}),
        ("MESSAGE", {"executor_id": {"value": "nope"}, "agent_id": {"value": "S0"}, "data": "aGk="}),
        ("REVIVE", {"roles": ["nope"]}),
        ("ACCEPT", {}),
    ],
)
def test_most_wrong_calls_are_202_and_do_nothing(kind: str, body: Message) -> None:
    bench = Bench()
    stream = bench.subscribe()
    before = len(bench.events[stream])
    assert bench.call(stream, kind, body).status == 202
    assert len(bench.events[stream]) == before and len(bench.cluster.master.offers) == 1


def test_an_offer_is_consumed_and_its_rest_is_offered_at_the_next_tick() -> None:
    bench = Bench()
    stream = bench.subscribe()
    bench.launch(stream, task("t1", cpus=1), task("t2", cpus=0.5))
    assert [order.command["value"] for order in bench.started] == ["exec something"]
    bench.advance(1000)
    offer = bench.offers(stream)[-1]
    assert cpus(offer) == 2.4 and offer["executor_ids"] == [{"value": "e1"}]


def test_what_is_freed_while_an_offer_is_held_is_a_second_offer_of_the_agent() -> None:
    bench = Bench()
    stream = bench.subscribe()
    bench.run(stream)
    bench.advance(1000)
    bench.update("t1", "TASK_FINISHED", 1)
    bench.advance(2000)
    assert [cpus(offer) for offer in bench.offers(stream)[-2:]] == [2.9, 1.0]
    both = [offer["id"] for offer in bench.offers(stream)[-2:]]
    bench.launch(stream, task("t2", cpus=3.5), offer_ids=both)
    assert "t2" in bench.cluster.master.frameworks["m-0000"].tasks


@pytest.mark.parametrize(
    ("offer_ids", "text"),
    [
        (["m-O9"], "Offer m-O9 is no longer valid"),
        (["m-O0", "m-O9"], "Offer m-O9 is no longer valid"),
        (["m-O0", "m-O0"], "Duplicate offer m-O0 in offer list"),
        (
            ["m-O0", "m-O1"],
            "Aggregated offers must belong to one single agent. Offer m-O1 uses agent S1 and agent S0",
        ),
    ],
)
def test_one_wrong_offer_spoils_the_whole_accept(offer_ids: list[str], text: str) -> None:
    bench = Bench(agents=2)
    stream = bench.subscribe()
    bench.launch(stream, task("t1"), task("t2"), offer_ids=[{"value": name} for name in offer_ids])
    first, second = bench.statuses(stream)
    assert first["state"] == second["state"] == "TASK_DROPPED"
    assert first["reason"] == "REASON_INVALID_OFFERS" and first["source"] == "SOURCE_MASTER"
    assert first["message"] == f"Task launched with invalid offers: {text}"
    assert "uuid" not in first and first["agent_id"] == {"value": "S0"}
    held = {name for name in ("m-O0", "m-O1") if name not in offer_ids}
    assert set(bench.cluster.master.offers) == held
    bench.advance(1000)
    assert len(bench.cluster.master.offers) == 2


def test_an_offer_of_another_framework_is_refused_and_lost_to_it() -> None:
    bench = Bench()
    first = bench.subscribe()
    second = bench.subscribe()
    bench.call(
        second,
        "ACCEPT",
        {
            "offer_ids": [{"value": "m-O0"}],
            "operations": [{"type": "LAUNCH", "launch": {"task_infos": [task()]}}],
        },
        framework_id="m-0001",
    )
    text = "Offer m-O0 has invalid framework m-0000 while framework m-0001 is expected"
    assert text in bench.statuses(second)[0]["message"]
    bench.launch(first, task(), offer_ids=[{"value": "m-O0"}])
    assert "Offer m-O0 is no longer valid" in bench.statuses(first)[0]["message"]


def test_a_framework_of_the_old_kind_gets_task_lost() -> None:
    bench = Bench()
    stream = bench.subscribe(capabilities=[{"type": "MULTI_ROLE"}])
    bench.launch(stream, task(), offer_ids=[{"value": "nope"}])
    bench.call(stream, "RECONCILE", {"tasks": [{"task_id": {"value": "never"}}]})
    assert [status["state"] for status in bench.statuses(stream)] == ["TASK_LOST", "TASK_LOST"]


def test_offers_of_two_roles_cannot_be_merged() -> None:
    bench = Bench()
    stream = bench.subscribe(roles=["a", "b"])
    bench.run(stream)
    bench.advance(1000)
    bench.update("t1", "TASK_FINISHED", 1)
    bench.advance(2000)
    roles = [offer["allocation_info"]["role"] for offer in bench.offers(stream)[-2:]]
    assert sorted(roles) == ["a", "b"]
    bench.launch(stream, task("t2"), offer_ids=[offer["id"] for offer in bench.offers(stream)[-2:]])
    assert "Aggregated offers must be allocated to the same role" in bench.statuses(stream)[-1]["message"]


WRONG_TASKS: list[tuple[Message, str]] = [
    (task(agent_id="S1"), "Task uses invalid agent S1 while agent S0 is expected"),
    (task(""), "ID must not be empty"),
    (task(".."), "'..' is disallowed"),
    (task("a/b"), "'a/b' contains invalid characters"),
    (task("x" * 256), "ID must not be greater than 255 characters"),
    (task("a\u0001"), "'a\u0001' contains invalid characters"),
    (task("a\ud800"), "ID is not valid Unicode"),
    (task(executor_id="a/b"), "'a/b' contains invalid characters"),
    (task(resources=[]), "Task uses no resources"),
    (task(cpus=100), "required by task and its executor is more than available"),
    (task(cpus=3.95), "Total resources cpus(allocated: cache):4.05"),
    (
        task(command={"value": "ls"}),
        "Task should have at least one (but not both) of CommandInfo or ExecutorInfo",
    ),
    (task(executor=executor(framework_id={"value": "foreign"})), "(Actual: foreign vs Expected: m-0000)"),
    (task(executor=executor(type="DEFAULT")), "'DEFAULT' executor is used by LAUNCH_GROUP only"),
    (task(executor=executor(container={"type": "DOCKER"})), "'container' is not supported"),
    (
        task(executor={"executor_id": {"value": "e1"}}),
        "'ExecutorInfo.command' must be set for 'CUSTOM' executor",
    ),
    (task(kill_policy={"grace_period": {"nanoseconds": -1}}), "must be non-negative"),
]


@pytest.mark.parametrize(("wrong", "text"), WRONG_TASKS, ids=[text for _, text in WRONG_TASKS])
def test_a_wrong_task_is_an_error_and_the_others_start(wrong: Message, text: str) -> None:
    bench = Bench()
    stream = bench.subscribe()
    bench.launch(stream, wrong, task("good", "e2"))
    (status,) = bench.statuses(stream)
    assert text in status["message"]
    assert (
        status["state"] == "TASK_ERROR" and status["reason"] == "REASON_TASK_INVALID" and "uuid" not in status
    )
    assert list(bench.cluster.master.frameworks["m-0000"].tasks) == ["good"]
    bench.advance(1000)
    assert cpus(bench.offers(stream)[-1]) == 2.9


def test_a_command_task_is_charged_for_itself_and_its_executor_is_nobody_elses_affair() -> None:
    bench = Bench()
    stream = bench.subscribe()
    wanted = task()
    del wanted["executor"]
    bench.launch(stream, wanted | {"command": {"value": "ls"}})
    bench.advance(1000)
    assert cpus(bench.offers(stream)[-1]) == 3.0 and "executor_ids" not in bench.offers(stream)[-1]
    bench.exit(256)
    assert "FAILURE" not in bench.kinds(stream)
    status = bench.statuses(stream)[0]
    assert (status["state"], status["reason"]) == ("TASK_FAILED", "REASON_COMMAND_EXECUTOR_FAILED")


def test_a_task_id_must_not_be_used_again_while_it_is_known() -> None:
    bench = Bench()
    stream = bench.subscribe()
    bench.launch(stream, task("t1"), task("t1"))
    assert bench.statuses(stream)[0]["message"] == "Task has duplicate ID: t1"


def test_an_executor_id_names_one_executor_info() -> None:
    bench = Bench()
    stream = bench.subscribe()
    bench.launch(stream, task("t1"))
    bench.advance(1000)
    bench.launch(stream, task("t2", executor=executor(name="other")))
    assert bench.statuses(stream)[0]["message"].startswith(
        "ExecutorInfo is not compatible with existing ExecutorInfo"
    )
    bench.advance(2000)
    bench.launch(stream, task("t3"))
    assert len(bench.started) == 1


def test_the_task_that_the_agent_gets_says_whose_its_resources_are() -> None:
    bench = Bench()
    stream = bench.subscribe()
    agent_stream = bench.run(stream)
    (launch,) = [event["launch"]["task"] for event in bench.events[agent_stream] if event["type"] == "LAUNCH"]
    assert all(item["allocation_info"] == {"role": "cache"} for item in launch["resources"])
    assert launch["executor"]["framework_id"] == {"value": "m-0000"}
    assert launch["executor"]["command"]["shell"] is True


def ask(bench: Bench, stream: int, task_id: str, agent_id: str | None = None) -> Message:
    item: Message = {"task_id": {"value": task_id}}
    if agent_id is not None:
        item["agent_id"] = {"value": agent_id}
    bench.call(stream, "RECONCILE", {"tasks": [item]})
    return bench.statuses(stream)[-1]


@pytest.mark.parametrize("agent_id", [None, "S0", "S1", "no-such-agent"])
def test_a_known_task_is_reconciled_whatever_agent_is_named(agent_id: str | None) -> None:
    bench = Bench(agents=2)
    stream = bench.subscribe()
    bench.launch(stream, task(), offer_ids=[{"value": "m-O0"}])
    bench.executor_call("SUBSCRIBE", {})
    bench.update("t1", "TASK_RUNNING", 1)
    status = ask(bench, stream, "t1", agent_id)
    assert (status["state"], status["source"], status["reason"], status["message"]) == (
        "TASK_RUNNING",
        "SOURCE_MASTER",
        "REASON_RECONCILIATION",
        "Reconciliation: Latest task state",
    )
    assert status["agent_id"] == {"value": "S0"} and status["executor_id"] == {"value": "e1"}
    assert status["container_status"]["executor_pid"] == 4001 and "uuid" not in status


@pytest.mark.parametrize(
    ("agent_id", "state", "text"),
    [(None, "TASK_UNKNOWN", UNKNOWN), ("S0", "TASK_GONE", GONE), ("no-such-agent", "TASK_UNKNOWN", UNKNOWN)],
)
@pytest.mark.parametrize("kind", ["RECONCILE", "KILL"])
def test_an_unknown_task_is_gone_or_unknown(kind: str, agent_id: str | None, state: str, text: str) -> None:
    bench = Bench()
    stream = bench.subscribe()
    item: Message = {"task_id": {"value": "never"}} | ({"agent_id": {"value": agent_id}} if agent_id else {})
    bench.call(stream, kind, item if kind == "KILL" else {"tasks": [item]})
    (status,) = bench.statuses(stream)
    assert (status["state"], status["message"]) == (state, text)
    assert status.get("agent_id", {}).get("value") == agent_id


def test_reconciliation_tells_the_state_last_forwarded_also_of_ended_tasks() -> None:
    bench = Bench()
    stream = bench.subscribe()
    bench.run(stream)
    assert ask(bench, stream, "t1")["state"] == "TASK_STAGING"
    bench.update("t1", "TASK_RUNNING", 1)
    bench.update("t1", "TASK_FINISHED", 2)
    assert ask(bench, stream, "t1")["state"] == "TASK_RUNNING"
    bench.acknowledge(stream, "t1", make_uuid(1))
    bench.call(stream, "RECONCILE", {})
    assert bench.statuses(stream)[-1]["state"] == "TASK_FINISHED"
    bench.acknowledge(stream, "t1", make_uuid(2))
    assert ask(bench, stream, "t1", "S0")["state"] == "TASK_GONE"


def test_resources_come_back_with_the_terminal_update_and_the_task_goes_with_its_acknowledgement() -> None:
    bench = Bench()
    stream = bench.subscribe()
    bench.run(stream)
    bench.update("t1", "TASK_FINISHED", 1)
    bench.advance(1000)
    assert cpus(bench.offers(stream)[-1]) == 3.9
    assert "t1" in bench.cluster.master.frameworks["m-0000"].tasks
    bench.acknowledge(stream, "t1", make_uuid(1))
    assert "t1" not in bench.cluster.master.frameworks["m-0000"].tasks
    bench.exit(0)
    assert bench.events[stream][-1]["failure"] == {
        "agent_id": {"value": "S0"},
        "executor_id": {"value": "e1"},
        "status": 0,
    }
    bench.advance(2000)
    assert cpus(bench.offers(stream)[-1]) == 0.1


def test_a_second_subscription_takes_over_and_the_first_is_told() -> None:
    bench = Bench()
    old = bench.subscribe()
    bench.run(old)
    bench.advance(1000)
    held = bench.offers(old)[-1]["id"]
    new = bench.subscribe("m-0000", name="renamed", user="nobody", checkpoint=False)
    assert bench.events[old][-1] == {"type": "ERROR", "error": {"message": "Framework failed over"}}
    assert old in bench.closed
    assert bench.kinds(new) == ["SUBSCRIBED"], "offers wait for the tick, nothing is rescinded"
    assert bench.call(old, "REVIVE").status == 400
    bench.launch(new, task("t2"), offer_ids=[held])
    assert "no longer valid" in bench.statuses(new)[-1]["message"]
    bench.advance(2000)
    assert bench.kinds(new)[-1] == "OFFERS"
    info = bench.cluster.master.frameworks["m-0000"].info
    assert (info["name"], info["user"], info["checkpoint"]) == ("renamed", "root", True)


def test_a_take_over_keeps_filters_a_disconnection_forgets_them() -> None:
    bench = Bench()
    old = bench.subscribe()
    bench.call(old, "DECLINE", {"offer_ids": [{"value": "m-O0"}], "filters": {"refuse_seconds": 600}})
    new = bench.subscribe("m-0000")
    bench.advance(5000)
    assert bench.kinds(new) == ["SUBSCRIBED"]
    bench.drop(new)
    newest = bench.subscribe("m-0000")
    assert bench.kinds(newest) == ["SUBSCRIBED", "OFFERS"]


def test_a_role_that_is_left_is_rescinded_to_the_old_instance() -> None:
    bench = Bench()
    old = bench.subscribe()
    bench.subscribe("m-0000", roles=["jobs"])
    assert bench.kinds(old)[-2:] == ["RESCIND", "ERROR"]


def test_the_principal_must_stay() -> None:
    bench = Bench()
    old = bench.subscribe()
    new = bench.subscribe("m-0000", principal="somebody")
    assert error_of(bench, new) == "Changing framework's principal is not allowed."
    assert old not in bench.closed


def test_suppression_is_what_the_subscription_says() -> None:
    bench = Bench()
    stream = bench.subscribe(suppressed=("cache",))
    bench.advance(3000)
    assert bench.kinds(stream) == ["SUBSCRIBED"]
    bench.call(stream, "REVIVE")
    assert bench.kinds(stream)[-1] == "OFFERS"
    new = bench.subscribe("m-0000", suppressed=("cache",))
    bench.advance(6000)
    assert bench.kinds(new) == ["SUBSCRIBED"]


def test_a_framework_that_is_away_keeps_its_tasks_until_its_timeout() -> None:
    bench = Bench()
    stream = bench.subscribe(failover_timeout=3.0)
    agent_stream = bench.run(stream)
    bench.drop(stream)
    assert not bench.cluster.master.offers
    assert bench.call(stream, "REVIVE").text == "Framework is not subscribed"
    bench.advance(2000)
    again = bench.subscribe("m-0000", failover_timeout=3.0)
    assert bench.kinds(again) == ["SUBSCRIBED", "OFFERS"]
    bench.drop(again)
    bench.advance(5100)
    assert bench.events[agent_stream][-1] == {"type": "SHUTDOWN"}
    assert bench.call(again, "REVIVE").text == "Framework cannot be found"
    assert error_of(bench, bench.subscribe("m-0000")) == "Framework has been removed"
    shown = view.state(bench.cluster.master)
    assert not shown["frameworks"]
    assert shown["completed_frameworks"][0]["completed_tasks"][0]["state"] == "TASK_KILLED"


def test_without_a_failover_timeout_the_end_of_the_stream_is_the_end() -> None:
    bench = Bench()
    stream = bench.subscribe(failover_timeout=0.0)
    bench.drop(stream)
    assert not bench.cluster.master.frameworks


def test_teardown_ends_the_stream_without_an_event() -> None:
    bench = Bench()
    stream = bench.subscribe()
    agent_stream = bench.run(stream)
    before = len(bench.events[stream])
    assert bench.call(stream, "TEARDOWN").status == 202
    assert stream in bench.closed and len(bench.events[stream]) == before
    assert bench.events[agent_stream][-1] == {"type": "SHUTDOWN"}
    bench.exit(0)
    assert bench.call(stream, "TEARDOWN").text == "Framework cannot be found"
    fresh = bench.subscribe()
    assert cpus(bench.offers(fresh)[0]) == 4.0


def test_an_id_that_this_master_does_not_know_is_accepted_as_it_is() -> None:
    """A master that was restarted has forgotten its frameworks; they come back with the ids they had."""
    bench = Bench()
    stream = bench.subscribe("an-id-of-yesterday")
    assert bench.events[stream][0]["subscribed"]["framework_id"]["value"] == "an-id-of-yesterday"


def test_only_the_last_removed_frameworks_are_remembered() -> None:
    bench = Bench(completed_frameworks_max=2)
    for number in range(3):
        stream = bench.subscribe()
        bench.call(stream, "TEARDOWN", framework_id=f"m-{number:04d}")
    assert bench.kinds(bench.subscribe("m-0000"))[0] == "SUBSCRIBED"
    assert error_of(bench, bench.subscribe("m-0002")) == "Framework has been removed"


def test_state_shows_what_is() -> None:
    bench = Bench(agents=2)
    stream = bench.subscribe()
    bench.launch(stream, task(), offer_ids=[{"value": "m-O0"}])
    bench.executor_call("SUBSCRIBE", {})
    bench.update("t1", "TASK_RUNNING", 1)
    bench.advance(1000)
    shown = view.state(bench.cluster.master)
    (framework,) = shown["frameworks"]
    assert framework["tasks"][0]["state"] == "TASK_RUNNING" and framework["connected"] is True
    assert framework["executors"][0]["executor_id"] == "e1" and len(framework["offers"]) == 2
    first, second = shown["slaves"]
    assert first["used_resources"]["cpus"] == 1.1 and first["offered_resources"]["cpus"] == 2.9
    assert second["used_resources"]["cpus"] == 0.0 and second["resources"]["ports"] == "[31100-31199]"
    assert view.tasks(bench.cluster.master)["tasks"][0]["id"] == "t1"

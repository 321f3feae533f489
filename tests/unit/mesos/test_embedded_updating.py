"""UPDATE_FRAMEWORK and what SUBSCRIBE says besides the FrameworkInfo: transcript 11."""

from __future__ import annotations

from typing import Any

import pytest

from stoker.mesos.embedded.core.codec import Message
from support.embedded import subscribe_call
from support.embedded_bench import Bench


def update(bench: Bench, stream: int, **fields: Any) -> tuple[int, str]:
    """Call UPDATE_FRAMEWORK; `suppressed_roles` and `offer_constraints` are its own, all else is of the FrameworkInfo."""
    own = {name: fields.pop(name) for name in ("suppressed_roles", "offer_constraints") if name in fields}
    info = subscribe_call("m-0000", (), fields)["subscribe"]["framework_info"] | fields
    answer = bench.call(stream, "UPDATE_FRAMEWORK", {"framework_info": info, **own})
    return answer.status, answer.text


def only(selector: Message, **predicate: Any) -> Message:
    item = {"selector": selector, "predicate": predicate}
    return {"role_constraints": {"cache": {"groups": [{"attribute_constraints": [item]}]}}}


HOST = {"pseudoattribute_type": "HOSTNAME"}


def decline(bench: Bench, stream: int) -> None:
    held = [{"value": name} for name in bench.cluster.master.offers]
    bench.call(stream, "DECLINE", {"offer_ids": held, "filters": {"refuse_seconds": 0}})


def test_a_role_that_is_added_is_offered_at_the_next_tick_one_that_is_left_is_rescinded() -> None:
    bench = Bench(agents=2)
    stream = bench.subscribe()
    assert update(bench, stream, roles=["cache", "jobs"]) == (200, "")
    assert bench.kinds(stream) == ["SUBSCRIBED", "OFFERS"]
    decline(bench, stream)
    bench.advance(1000)
    roles = {offer["allocation_info"]["role"] for offer in bench.offers(stream)[2:]}
    assert roles == {"cache", "jobs"}
    assert update(bench, stream, roles=["jobs"]) == (200, "")
    assert bench.kinds(stream)[-1] == "RESCIND" and bench.kinds(stream).count("RESCIND") == 1
    bench.advance(2000)
    assert bench.offers(stream)[-1]["allocation_info"] == {"role": "jobs"}


def test_suppression_is_what_the_last_call_said() -> None:
    bench = Bench()
    stream = bench.subscribe()
    assert update(bench, stream, suppressed_roles=["cache"])[0] == 200
    assert bench.kinds(stream) == ["SUBSCRIBED", "OFFERS"]  # what is held is kept
    decline(bench, stream)
    bench.advance(3000)
    assert len(bench.offers(stream)) == 1
    assert update(bench, stream)[0] == 200
    bench.advance(4000)
    assert len(bench.offers(stream)) == 2


def test_what_may_change_changes() -> None:
    bench = Bench()
    stream = bench.subscribe()
    fields = {"name": "new", "failover_timeout": 99.0, "webui_url": "http://x/", "labels": {"labels": []}}
    assert update(bench, stream, **fields) == (200, "")
    info = bench.cluster.master.frameworks["m-0000"].info
    assert {name: info[name] for name in fields} == fields and info["id"] == {"value": "m-0000"}


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (
            {"suppressed_roles": ["nope"]},
            "'UpdateFramework' call is not valid: Suppressed roles { nope } are not contained in the set of roles",
        ),
        (
            {"user": "nobody"},
            "FrameworkInfo update is not valid: Updating 'FrameworkInfo.user' is unsupported; attempted to update "
            "from 'root' to 'nobody'",
        ),
        (
            {"checkpoint": False},
            "FrameworkInfo update is not valid: Updating 'FrameworkInfo.checkpoint' is unsupported; attempted to "
            "update from 'true' to 'false'",
        ),
        (
            {"principal": "p"},
            "FrameworkInfo update is not valid: Changing framework's principal is not allowed.",
        ),
        (
            {"id": {"value": "other"}},
            "Failed to validate scheduler::Call: 'framework_id' differs from 'update_framework.framework_info.id'",
        ),
        (
            {"id": None},
            "Failed to validate scheduler::Call: 'framework_id' differs from 'update_framework.framework_info.id'",
        ),
        (
            {"offer_constraints": only(HOST, text_matches={"regex": "z[("})},
            "'UpdateFramework' call is not valid: Offer constraints are not valid: A role cache has an invalid "
            "'AttributeConstraint': Failed to construct regex from pattern 'z[(': missing ]: [(",
        ),
        (
            {"roles": ["jobs"], "offer_constraints": only(HOST, exists={})},
            "'UpdateFramework' call is not valid: Offer constraints specify `role_constraints` for a role "
            "'cache'not contained in the set of roles",
        ),
        (
            {"offer_constraints": {"role_constraints": {"cache": {"groups": []}}}},
            "'UpdateFramework' call is not valid: Offer constraints are not valid: "
            "'OfferConstraints::role_constraints' has an empty 'RoleConstraints::groups' for role cache",
        ),
        (
            {"roles": ["a//b"]},
            "'UpdateFramework' call is not valid: 'FrameworkInfo.roles' contains invalid role",
        ),
        ({"offer_filters": []}, "'UpdateFramework' call is not valid: Invalid 'offer_filters'"),
    ],
)
def test_a_wrong_update_is_refused_and_changes_nothing(fields: dict[str, Any], text: str) -> None:
    bench = Bench()
    stream = bench.subscribe()
    before = dict(bench.cluster.master.frameworks["m-0000"].info)
    status, answer = update(bench, stream, **fields)
    assert status == 400 and answer.startswith(text)
    assert bench.cluster.master.frameworks["m-0000"].info == before


def test_constraints_hold_until_a_call_without_them() -> None:
    bench = Bench(agents=3)
    stream = bench.subscribe()
    decline(bench, stream)
    wanted = only(HOST, text_matches={"regex": r"127\.0\.0\.1[12]"})
    assert update(bench, stream, offer_constraints=wanted)[0] == 200
    bench.advance(1000)
    assert [offer["agent_id"]["value"] for offer in bench.offers(stream)[3:]] == ["S1", "S2"]
    assert update(bench, stream)[0] == 200
    bench.advance(2000)
    assert [offer["agent_id"]["value"] for offer in bench.offers(stream)[5:]] == ["S0"]


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (
            {"offer_constraints": {"role_constraints": {"cache": {}}}},
            "Offer constraints are not valid: 'OfferConstraints",
        ),
        ({"offer_filters": []}, "Invalid 'offer_filters'"),
    ],
)
def test_a_subscription_with_wrong_wishes_is_an_error_event(more: dict[str, Any], text: str) -> None:
    bench = Bench()
    stream = bench.subscribe(**more)
    (event,) = bench.events[stream]
    assert text in event["error"]["message"] and stream in bench.closed


def test_a_subscription_may_bring_constraints_and_filters() -> None:
    bench = Bench(agents=2)
    enough = {"min_allocatable_resources": {"quantities": [{"quantities": {"cpus": {"value": 5}}}]}}
    stream = bench.subscribe(offer_filters={"cache": enough})
    assert not bench.offers(stream)
    other = bench.subscribe(name="other", offer_constraints=only(HOST, text_equals={"value": "127.0.0.11"}))
    assert [offer["agent_id"]["value"] for offer in bench.offers(other)] == ["S1"]

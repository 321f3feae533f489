"""Who is offered what: filters, quotas, weights, offers that are held too long, fault domains."""

from __future__ import annotations

import pytest

from support.replay.script import Play, Script

pytestmark = pytest.mark.integration


def test_02b_offer_filter_details(play: Play) -> None:
    play(Script("02b-offer-filter-details", scale=2.5))


def test_19_quota_weights_sharing(play: Play) -> None:
    by_chance = frozenset({8, 14, 34, 35, 41, 42, 47, 48})
    times = {"agent-ping-timeout": 1.0}
    play(
        Script(
            "19-quota-weights-sharing",
            scale=4,
            options=times,
            any_agent=by_chance,
            any_order=frozenset({27, 28, 29, 30}),
            unchecked=frozenset({52}),
        )
    )


def test_19b_offer_timeout(play: Play) -> None:
    play(Script("19b-offer-timeout", scale=2.5, options={"offer-timeout": 3.0}))


def test_22_fault_domain(play: Play) -> None:
    domains = ("r1/z1", "r1/z1", "r1/z2", "r2/z1")  # the master's, then the agents'
    one_of_three = frozenset({48})  # the recorder kept one of the agents in the answer
    play(Script("22-fault-domain", scale=2.5, options={"domain": domains}, unchecked=one_of_three))

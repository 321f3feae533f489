"""Masters that lead and stand by, ask who calls, and show what they know; those that die and come back alone: test_agents_lives."""

from __future__ import annotations

import base64

import pytest

from support.replay.script import Play, Script
from support.zookeeper import Place, needs_zookeeper, reserve_port, zookeeper

__all__ = ["zookeeper"]  # a fixture

pytestmark = pytest.mark.integration


@needs_zookeeper
def test_17_zookeeper_leader(play: Play, zookeeper: Place) -> None:
    """The masters here are 1 (leads first), 2 and 3. How long a session lives is ZooKeeper's affair: 503 is not met for certain.

    ZooKeeper's own end is in test_embedded_masters.
    """
    options = {"zk": zookeeper.url, "masters": "3", "zk-session-timeout": 6.0, "registration-backoff": 0.01}
    standby = dict.fromkeys((3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 53), 2)
    leads_second = dict.fromkeys((59, 63, 69, 72), 2)
    script = Script(
        "17-zookeeper-leader",
        scale=1,
        options=options,
        masters=standby | leads_second | {80: 1, 89: 3, 94: 3},
        before={50: (("master-kill", "1"),), 78: (("master-start", "1"),), 86: (("master-thaw", "2"),)},
        skip=frozenset({57, 58, *range(99, 109)}),
        more_headers={21: {"Mesos-Stream-Id": "x"}},
    )
    play(script)


def test_17b_no_leader(play: Play) -> None:
    play(Script("17b-no-leader", scale=1, options={"zk": f"zk://127.0.0.1:{reserve_port()}/mesos"}))


def test_18_authentication(play: Play) -> None:
    """Of calls on a stream the transcript does not show whose credentials they have."""
    right, other, wrong = (_basic(text) for text in ("stoker:s3cret", "other:other", "stoker:wrong"))
    headers = {16: right, 20: other, 22: wrong, 24: right, 33: right, 37: other, 39: wrong, 41: right}
    options = {"authenticate": ("stoker:s3cret", "other:other")}
    play(Script("18-authentication", scale=1, options=options, more_headers=headers))


def test_20_operator_http(play: Play) -> None:
    """The recorded master did not allocate between the launch and the questions; here it does so for certain."""
    agents = {72: 1, 74: 1, 76: 1, 78: 1}
    free = ("allocator/mesos/allocation_runs", "master/uptime_secs", "master_hostname")
    options = {"allocation-interval": 5.0}
    play(Script("20-operator-http", scale=1, options=options, agent_calls=agents, free=free))


def _basic(text: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(text.encode()).decode()}

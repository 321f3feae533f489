"""Masters that lead and stand by, ask who calls, and show what they know; those that die and come back alone: test_masters_restarts."""

from __future__ import annotations

import base64
import shutil
from pathlib import Path

import pytest

from support.replay.script import Play, Script
from support.zookeeper import ZooKeeperServer, needs_zookeeper, reserve_port

pytestmark = pytest.mark.integration


@needs_zookeeper
def test_17_zookeeper_leader(play: Play, tmp_path: Path) -> None:
    """The masters here are 1 (leads first), 2 and 3. A session of 10 s ends 6.7 to 10 s after a master's death."""
    server = ZooKeeperServer(tmp_path / "zookeeper", tick_ms=100, settings={"maxSessionTimeout": "60000"})

    def begin() -> None:
        server.kill()
        shutil.rmtree(server.directory / "data")
        server.start()

    session = {"zk": f"zk://{server.address}/mesos", "masters": "3", "zk-session-timeout": 9.0}
    standby = dict.fromkeys((3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 53), 2)
    leads_second = dict.fromkeys((57, 59, 63, 69, 72), 2)
    leads_third = dict.fromkeys((89, 94, 100, 107), 3)
    script = Script(
        "17-zookeeper-leader",
        scale=3,
        options={**session, "registration-backoff": 0.01},
        masters=standby | leads_second | leads_third | {80: 1},
        before={
            50: (("master-kill", "1"),),
            59: (("await-leader", "2", "2"),),
            78: (("master-start", "1"),),
            84: (("await-leader", "3", "2"),),
            86: (("master-thaw", "2"),),
            104: (("zookeeper-kill",),),
        },
        own_hooks={"begin": begin, "zookeeper-kill": server.kill},
        asked_again={57: 307},
        more_headers={21: {"Mesos-Stream-Id": "x"}},
    )
    try:
        play(script)
    finally:
        server.kill()


def test_17b_no_leader(play: Play) -> None:
    play(Script("17b-no-leader", scale=1, options={"zk": f"zk://127.0.0.1:{reserve_port()}/mesos"}))


def test_18_authentication(play: Play) -> None:
    """Of calls on a stream the transcript does not show whose credentials they have."""
    right, other, wrong = (_basic(text) for text in ("stoker:s3cret", "other:other", "stoker:wrong"))
    headers = {16: right, 20: other, 22: wrong, 24: right, 33: right, 37: other, 39: wrong, 41: right}
    options = {"authenticate": ("stoker:s3cret", "other:other")}
    play(Script("18-authentication", scale=3, options=options, more_headers=headers))


def test_20_operator_http(play: Play) -> None:
    """The recorded master did not allocate between the launch and the questions; here it does so for certain."""
    agents = {72: 1, 74: 1, 76: 1, 78: 1}
    free = ("allocator/mesos/allocation_runs", "master/uptime_secs", "master_hostname")
    options = {"allocation-interval": 5.0}
    play(Script("20-operator-http", scale=1, options=options, agent_calls=agents, free=free))


def _basic(text: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(text.encode()).decode()}

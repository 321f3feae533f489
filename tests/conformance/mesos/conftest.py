"""The Mesos conformance suite: recordings of a real Mesos, played again against the embedded one or another.

    pytest tests/conformance/mesos                                   the embedded Mesos, a process for each scenario
    pytest tests/conformance/mesos --mesos-master HOST:PORT[,...]    another master (one scenario at a time: no -n)
           [--mesos-hooks DIR] [--mesos-python PATH] [--mesos-test-host IP] [--mesos-report FILE]

How a scenario is written. A test names a transcript of tests/data/mesos-transcripts and plays it:

    def test_subscribe(play: Play) -> None:
        play(Script("01-subscribe", scale=5))

Everything expected is read from the transcript: each recorded call is sent again at its time (divided by `scale` on the embedded
Mesos, whose own times are set accordingly; a real one keeps true times), each recorded answer, event and end of a stream must come.
Ids are bound to those of the running Mesos where they first appear. Executors are played too: the recorded executor's command is
replaced by a small program that connects to the test and makes the recorded calls. `Script` (support/replay/script.py) says
what the transcript cannot: flags of the Mesos (`options`, times in true seconds), agents that are not running at first, hooks
(`before={line: (("agent-start", "1"),)}`; most are found in the recorder's notes, see NOTED), bodies that the transcript shortens,
lines that are not played or whose body is not compared, fields that are free (`free=("offers.url",)`). Lines are indexes from 0.

What may always differ: timestamps, ports, addresses, pids (bindings.FREE); the order of resources and of offers; into how many
OFFERS events the offers are put; HEARTBEATs between other events; the order of updates of different tasks, and of RESCIND and
MESSAGE beside updates. All else is in the recorded order, and nothing may come that the recording does not have. Times: an event
that was recorded later than 2.4 s after the last action must not come earlier (but for an allocator's tick); notes marked as rules
("... after 4.00 s") are measured again. A run of the embedded Mesos with differences is no measurement if it and its player, ready to run,
had no processor for longer than the rules of time allow for: it is played again, half as fast (support/replay/measuring.py).

Another master's colleagues, which stand by, are named after it, in the order in which they are to lead: HOST:PORT,HOST:PORT,HOST:PORT.
They share a ZooKeeper, as do their agents. A scenario that needs more masters than are named is skipped and listed.

Hooks for another master: executables DIR/agent-stop N HOW (kill, freeze, usr1, never-started: as if it had not been there yet), DIR/agent-start N, DIR/master-kill, DIR/zookeeper-kill, ...; exit
code 0 means done. MESOS_MASTER is in their environment. DIR/prepare, if there, gets a scenario's needs as JSON on its
standard input ({"scenario", "agents": [{"cpus", "mem_mib", "disk_mib", "ports", "attributes"}], "options": {FLAG: VALUE}}); without
it the master needs the flags of the recordings (README.md beside them: agent_ping_timeout 1 s) and scenarios that need others are skipped.
Rows whose hook is missing are skipped and listed. Surplus agents are let lie; those in use may have more resources than recorded.

A row is what stands between two notes of the recorder, or one call with a remark (`why`). The report lists them all.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.replay.measuring import measured
from support.replay.player import Player
from support.replay.puppets import Puppets
from support.replay.recording import load
from support.replay.report import ROW, Rows
from support.replay.script import Play, Script
from support.replay.targets import EmbeddedTarget, OtherTarget, python_of_agents


@pytest.fixture(scope="session")
def puppets(pytestconfig: pytest.Config) -> Iterator[Puppets]:
    """The place where the executors of all scenarios report."""
    python = python_of_agents(pytestconfig.getoption("--mesos-python"))
    with Puppets(python, pytestconfig.getoption("--mesos-test-host")) as place:
        yield place


@pytest.fixture
def play(
    request: pytest.FixtureRequest, puppets: Puppets, tmp_path: Path, pytestconfig: pytest.Config
) -> Play:
    """Play a script; the test fails if a row fails, and is skipped if no row could be played."""

    def play_script(script: Script) -> None:
        master = pytestconfig.getoption("--mesos-master")
        if master:
            hooks = pytestconfig.getoption("--mesos-hooks")
            other = OtherTarget(master, Path(hooks) if hooks else None)
            rows = Player(script, load(script.transcript), other, puppets).play()
        else:
            rows = measured(script, on_embedded)
        for row in rows.rows:
            request.node.user_properties.append((ROW, row.as_dict()))
        if all(row.outcome == "skipped" for row in rows.rows):
            pytest.skip(rows.rows[-1].why[0])
        assert not rows.failed, "\n".join(map(str, rows.failed))

    def on_embedded(script: Script) -> tuple[Rows, float]:
        recording = load(script.transcript)
        work_dir = Path(tempfile.mkdtemp(dir=tmp_path)) / "work"
        with EmbeddedTarget(script, recording, work_dir) as embedded:
            before_s = embedded.held_up_s()
            rows = Player(script, recording, embedded, puppets).play()
            return rows, embedded.held_up_s() - before_s

    return play_script

"""The suite itself: what differs from a recording is told, at its row; what may differ is not."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.embedded import EmbeddedProcess
from support.replay.bindings import Bindings
from support.replay.measuring import measured
from support.replay.offers import merge
from support.replay.player import Player
from support.replay.puppets import Puppets
from support.replay.recording import TRANSCRIPTS, Entry, Recording, load
from support.replay.report import Rows, report_lines
from support.replay.script import Script
from support.replay.targets import EmbeddedTarget, OtherTarget
from support.replay.timing import Timing, held_up_s
from support.replay.wire import Arrived, Clock
from support.waiting import wait_until
from support.zookeeper import Place, needs_zookeeper, zookeeper

__all__ = ["zookeeper"]  # a fixture

SCRIPT = Script("01-subscribe")
WHOLE = load(SCRIPT.transcript)
# A SUBSCRIBE with its offers, its TEARDOWN, and two subscriptions that are refused.
FIRST = Recording(
    "first", tuple(e for e in WHOLE.entries if e.index < 6 or 8 < e.index < 12 or 38 < e.index < 49)
)
M, N = "00ff4cb8-66f6-430c-ba6f-39bedb00b9b6", "11ff4cb8-66f6-430c-ba6f-39bedb00b9b6"


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedTarget]:
    with EmbeddedTarget(SCRIPT, WHOLE, tmp_path_factory.mktemp("mesos") / "work") as target:
        yield target


def play(target: EmbeddedTarget, puppets: Puppets, change: Callable[[Entry], Entry | None]) -> list[str]:
    """Play the excerpt as `change` has altered it, as fast as it goes; return the failed rows."""
    changed = (change(entry) for entry in FIRST.entries)
    entries = tuple(dataclasses.replace(entry, t_ms=0) for entry in changed if entry is not None)
    script = dataclasses.replace(SCRIPT, patience_s=3.0)
    rows = Player(script, FIRST._replace(entries=entries), target, puppets).play()
    return [str(row) for row in rows.failed]


def with_body(index: int, change: Callable[[Any], None]) -> Callable[[Entry], Entry]:
    def changed(entry: Entry) -> Entry:
        body = json.loads(json.dumps(entry.body))
        if entry.index == index:
            change(body)
        return dataclasses.replace(entry, body=body)

    return changed


@pytest.mark.integration
def test_the_recording_as_it_is_passes(embedded: EmbeddedTarget, puppets: Puppets) -> None:
    assert not play(embedded, puppets, lambda entry: entry)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("index", "change", "told"),
    [
        (3, lambda body: body["subscribed"].pop("master_info"), "subscribed.master_info: recorded nothing"),
        (3, lambda body: body["subscribed"].update(more=1), "subscribed.more: recorded 1, here nothing"),
        (
            3,
            lambda body: body["subscribed"].update(heartbeat_interval_seconds=10.0),
            "heartbeat_interval_seconds",
        ),
        (4, lambda body: body["offers"]["offers"][0]["resources"].pop(), "resources"),
        (
            4,
            lambda body: body["offers"]["offers"][2]["attributes"][0]["text"].update(value="q"),
            "attributes.text.value",
        ),
        (
            42,
            lambda body: body["error"].update(message="nonsense"),
            "line 43: error.message: recorded 'nonsense'",
        ),
    ],
)
def test_another_field_is_told(
    embedded: EmbeddedTarget, puppets: Puppets, index: int, change: Callable[[Any], None], told: str
) -> None:
    failed = play(embedded, puppets, with_body(index, change))
    assert len(failed) == 1, failed
    assert told in failed[0]


@pytest.mark.integration
def test_an_event_that_does_not_come_is_told_and_what_it_leaves_unplayed(
    embedded: EmbeddedTarget, puppets: Puppets
) -> None:
    failed = play(
        embedded, puppets, with_body(42, lambda body: body.update(type="FAILURE", failure={"status": 9}))
    )
    assert "did not come; waiting are ['ERROR" in failed[0] and failed[1].endswith("not reached")


@pytest.mark.integration
def test_an_event_too_many_is_told(embedded: EmbeddedTarget, puppets: Puppets) -> None:
    (failed,) = play(embedded, puppets, lambda entry: None if entry.index == 42 else entry)
    assert "ERROR" in failed and "came, and never did in the recording" in failed


@pytest.mark.integration
def test_another_status_is_told(embedded: EmbeddedTarget, puppets: Puppets) -> None:
    def change(entry: Entry) -> Entry:
        is_it = entry.index == 11
        return dataclasses.replace(entry, http={"status": 400}) if is_it else entry

    (failed,) = play(embedded, puppets, change)
    assert "202  instead of 400" in failed


@pytest.mark.integration
def test_a_call_that_is_taken_and_was_refused_is_told(embedded: EmbeddedTarget, puppets: Puppets) -> None:
    def change(entry: Entry) -> Entry | None:
        error = {"error": "[Errno 111] Connection refused"}
        if entry.index == 46:
            return dataclasses.replace(entry, who="scheduler", kind="connect", http={}, body=error)
        return entry if entry.index < 46 else None

    (failed,) = play(embedded, puppets, change)
    assert "line 46" in failed and failed.endswith("still takes connections")


def test_what_a_clock_of_its_own_brings_may_come_sooner_after_a_late_action() -> None:
    note = Entry(2, 10_000, "operator", "note", body={"text": "10.0 s after the SIGKILL", "rule": True})
    timing = Timing(Clock(), 10.0, 1.0)
    killed, update = Entry(0, 0, "operator", "note"), Entry(1, 10_000, "master", "event")
    timing.done(killed)
    timing.arrived(update, time.monotonic() + 0.8)
    assert timing.measured(note).startswith("8.0")
    assert not timing.measured(note, by_own_clock=True)
    timing.arrived(update, time.monotonic() + 0.6)
    assert timing.measured(note, by_own_clock=True)


@pytest.mark.parametrize(
    ("runs", "scales"),
    [
        ([(True, 9.0)], [8.0]),
        ([(False, 0.0)], [8.0]),
        ([(False, 9.0), (True, 0.0)], [8.0, 4.0]),
        ([(False, 9.0), (False, 0.0)], [8.0, 4.0]),
        ([(False, 9.0), (False, 9.0), (False, 9.0)], [8.0, 4.0, 2.0]),
    ],
    ids=["passed", "failed", "held up, then passed", "held up, then failed", "held up each time"],
)
def test_only_what_was_held_up_is_played_again_and_slower(
    runs: list[tuple[bool, float]], scales: list[float], recwarn: pytest.WarningsRecorder
) -> None:
    played: list[float] = []

    def play_once(script: Script) -> tuple[Rows, float]:
        is_passed, held_up_s = runs[len(played)]
        played.append(script.scale)
        rows = Rows("t")
        rows.begin(1, f"play {len(played)}")
        if not is_passed:
            rows.fail("too late")
        return rows, held_up_s

    rows = measured(Script("t", scale=8.0), play_once)
    assert played == scales and len(recwarn) == len(scales) - 1
    assert [row.title for row in rows.rows] == [f"play {len(scales)}"]
    assert bool(rows.failed) is not runs[-1][0]


def test_a_process_that_is_held_up_is_seen_to_be() -> None:
    """Two that would run all the time share a processor, so each waits for it half of the time."""
    one = sorted(os.sched_getaffinity(0))[0]
    spin = f"import os; os.sched_setaffinity(0, {{{one}}}); print(flush=True)\nwhile True: pass"
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            process = subprocess.Popen([sys.executable, "-c", spin], stdout=subprocess.PIPE)
            stack.callback(process.wait)
            stack.callback(process.kill)
            assert process.stdout is not None and process.stdout.readline()
        wait_until(lambda: held_up_s(process.pid) > 0.2, "the processor to be missed")
    assert held_up_s(process.pid) == 0.0, "of nobody nothing is known"


def test_an_id_stands_for_one_other_and_for_no_two() -> None:
    bindings = Bindings()
    assert not bindings.differences(
        {"id": f"{M}-O1", "agent": f"{M}-S0"}, {"id": f"{N}-O7", "agent": f"{N}-S4"}
    )
    assert bindings.ours({"offer_ids": [{"value": f"{M}-O1"}], "text": f"agent {M}-S0 is lost"}) == {
        "offer_ids": [{"value": f"{N}-O7"}],
        "text": f"agent {N}-S4 is lost",
    }
    assert not bindings.differences(f"agent {M}-S0 is lost", f"agent {N}-S4 is lost")
    assert bindings.differences(f"{M}-O2", f"{N}-O7"), "one id here is not two of the recording"
    assert bindings.differences(f"{M}-O1", f"{N}-O8"), "nor the other way round"
    assert bindings.differences(f"{M}-S1", f"{N}-O9"), "an agent is no offer"


def test_lists_without_order_are_matched_by_what_the_ids_allow() -> None:
    recorded = [
        {"id": f"{M}-O1", "agent_id": f"{M}-S0", "x": 1},
        {"id": f"{M}-O2", "agent_id": f"{M}-S1", "x": 2},
    ]
    here = [
        {"id": f"{N}-O5", "agent_id": f"{N}-S1", "x": 2},
        {"id": f"{N}-O6", "agent_id": f"{N}-S0", "x": 1},
    ]
    bindings = Bindings()
    assert not bindings.differences({"offers": recorded}, {"offers": here})
    assert bindings.ids[f"{M}-O1"] == f"{N}-O6" and bindings.ids[f"{M}-S1"] == f"{N}-S1"
    assert Bindings().differences({"labels": recorded}, {"labels": here}), "other lists have an order"


def test_durations_are_scaled_wherever_they_stand() -> None:
    bindings = Bindings(scale=5)
    call = {
        "filters": {"refuse_seconds": 10.0},
        "grace_period": {"nanoseconds": 10**9},
        "value": "sleep 10; x",
    }
    sent = {
        "filters": {"refuse_seconds": 2.0},
        "grace_period": {"nanoseconds": 2 * 10**8},
        "value": "sleep 2; x",
    }
    assert bindings.ours(call) == sent and not bindings.differences(call, sent)
    assert bindings.differences(call, call)
    text = "Executor did not register within 4secs"
    assert bindings.is_same_text(text, "Executor did not register within 800ms")
    assert not bindings.is_same_text(text, "Executor did not register within 900ms")
    assert bindings.ours({"failover_timeout": 1e12}) == {"failover_timeout": 1e12}, "that nobody waits for"


def test_offers_of_one_agent_are_added_up() -> None:
    def offer(number: int, cpus: float, first: int, last: int) -> Arrived:
        scalar = {"name": "cpus", "type": "SCALAR", "scalar": {"value": cpus}}
        ports = {"name": "ports", "type": "RANGES", "ranges": {"range": [{"begin": first, "end": last}]}}
        return Arrived({"id": {"value": f"O{number}"}, "resources": [scalar, ports]}, 0.0, 0)

    (merged,) = merge([[offer(1, 0.5, 31000, 31009), offer(2, 0.1, 31010, 31019)]])
    assert merged["resources"][0]["scalar"] == {"value": 0.6}
    assert merged["resources"][1]["ranges"] == {"range": [{"begin": 31000, "end": 31019}]}


def test_the_report_lists_every_row() -> None:
    rows = [
        {"transcript": "02-b", "line": 3, "title": "two", "outcome": "failed", "why": ["line 4: x"]},
        {"transcript": "01-a", "line": 1, "title": "one", "outcome": "passed", "why": []},
    ]
    assert report_lines(rows, whole=True) == [
        "passed  01-a:1 one",
        "failed  02-b:3 two\n      line 4: x",
        "2 rows of 2 transcripts: 1 passed, 1 failed, 0 skipped",
    ]
    assert report_lines(rows, whole=False, summary=True) == [
        "failed  02-b:3 two\n      line 4: x",
        "01-a    1 rows: 1 passed, 0 failed, 0 skipped",
        "02-b    1 rows: 0 passed, 1 failed, 0 skipped",
        "2 rows of 2 transcripts: 1 passed, 1 failed, 0 skipped",
    ]


def test_every_recording_of_a_behaviour_has_a_script() -> None:
    """30x are recordings of a client library; 05c kills the master that gets it."""
    played = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    files = sorted(path.stem for path in TRANSCRIPTS.glob("*.jsonl"))
    missing = [name for name in files if not name.startswith(("30", "05c")) and f'"{name}"' not in played]
    assert not missing, f"recordings that no scenario plays: {missing}"


HOOK = """#!{python}
import http.client, json, os, sys
connection = http.client.HTTPConnection("127.0.0.1", {port})
body = json.dumps({{"fault": os.path.basename(sys.argv[0]), "arguments": sys.argv[1:]}})
connection.request("POST", "/stoker/faults", body)
sys.exit(connection.getresponse().status != 200)
"""


@pytest.mark.integration
def test_another_master_is_played_by_its_hooks(tmp_path: Path, puppets: Puppets) -> None:
    """The embedded one stands for it: at its address, with a superfluous agent, and programs that do the operator's steps."""
    script = Script("01b-subscribe-before-agents", stopped=(1, 2))
    agents = ("--agents", "3", "--cpus", "4", "--mem", "4GiB", "--disk", "8GiB", "--ports", "31000-31099")
    attributes = [f"rack:{rack};zone:z{n % 2};slot:{n + 1}" for n, rack in enumerate("abc")]
    agents += tuple(part for text in attributes for part in ("--attributes", text))
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    with EmbeddedProcess(tmp_path / "work", "--faults", *agents) as process:
        other = OtherTarget(process.address, hooks)
        rows = Player(script, load(script.transcript), other, puppets).play().rows
        assert {row.outcome for row in rows} == {"skipped"} and "no hook agent-stop" in rows[0].why[0]
        port = json.loads((tmp_path / "work" / "meta" / "faults.json").read_text())["port"]
        for name in ("agent-stop", "agent-start"):
            (hooks / name).write_text(HOOK.format(python=sys.executable, port=port))
            (hooks / name).chmod(0o755)
        rows = Player(script, load(script.transcript), other, puppets).play().rows
        assert {row.outcome for row in rows} == {"passed"}, [str(row) for row in rows]


@pytest.mark.integration
@needs_zookeeper
def test_masters_that_stand_by_are_asked_at_their_addresses(
    tmp_path: Path, puppets: Puppets, zookeeper: Place
) -> None:
    """Two embedded ones stand for them: what the standby of transcript 17 answers, which sends to the leader (307)."""
    whole = load("17-zookeeper-leader")
    recording = whole._replace(entries=whole.entries[:23])
    script = Script(
        recording.name,
        masters=dict.fromkeys(range(3, 22, 2), 2),
        more_headers={21: {"Mesos-Stream-Id": "x"}},
        options={"zk": "of the embedded one", "masters": "2"},
    )
    options = ("--faults", "--zk", zookeeper.url, "--masters", "2")
    with EmbeddedProcess(tmp_path / "work", *options) as process:
        addresses = [process.master_address(number) for number in (1, 2)]
        alone = OtherTarget(addresses[0], None)
        with pytest.raises(alone.MissingHook, match=f"2 masters: --mesos-master {addresses[0]},HOST:PORT$"):
            alone.prepare(script, recording)
        both = OtherTarget(",".join(addresses), None)
        both.await_leader(1, 1, script.patience_s)
        rows = Player(script, recording, both, puppets).play().rows
        assert {row.outcome for row in rows} == {"passed"}, [str(row) for row in rows]


@pytest.mark.integration
def test_a_scenario_that_needs_flags_is_left_to_who_can_prepare_it(
    embedded: EmbeddedTarget, tmp_path: Path
) -> None:
    needy = dataclasses.replace(SCRIPT, options={"offer-timeout": 3.0, "agent-ping-timeout": 1.0})
    other = OtherTarget(embedded.address, tmp_path)
    with pytest.raises(other.MissingHook, match="it needs offer-timeout 3.0: put an executable prepare into"):
        other.prepare(needy, WHOLE)
    program = tmp_path / "prepare"
    program.write_text(f"#!/bin/sh\ncat > {tmp_path}/wanted\n")
    program.chmod(0o755)
    other.prepare(needy, WHOLE)
    wanted = json.loads((tmp_path / "wanted").read_text())
    assert wanted["options"] == {"offer-timeout": 3.0} and len(wanted["agents"]) == 3
    program.write_text("#!/bin/sh\necho no such cluster >&2; exit 3\n")
    with pytest.raises(other.HookFailed, match="ended with 3: no such cluster"):
        other.prepare(needy, WHOLE)


@pytest.mark.integration
def test_a_run_in_which_nothing_could_be_played_fails(embedded: EmbeddedTarget) -> None:
    here = Path(__file__).parent
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        str(here / "test_masters_lives.py"),
    ]
    command += ["-k", "17", "--mesos-master", embedded.address]
    done = subprocess.run(
        command, cwd=here.parents[2], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 1 and "no row was played" in done.stdout, done.stdout

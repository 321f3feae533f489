"""The event streams of a real Mesos, recorded, through framing, transport and both drivers.

Each recorded stream is served again, cut into chunks at random, and every event must reach its callback, with the
body that was recorded. What the drivers answer is not compared here: the recordings' schedulers were other programs.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from stoker.mesos.detector import parse_address
from stoker.mesos.executor_driver import ExecutorDriver
from stoker.mesos.executor_settings import ExecutorSettings, read_settings
from stoker.mesos.recordio import encode_record
from stoker.mesos.scheduler_driver import SchedulerDriver, Timings
from support.fake_mesos import FakeMesos, Recorder, in_pieces

FOLDER = Path(__file__).parents[2] / "data" / "mesos-transcripts"
FILES = sorted(FOLDER.glob("*.jsonl"))
FIRST_TYPES = ("SUBSCRIBED", "ERROR", "SHUTDOWN")

SCHEDULER_CALLBACKS = {
    "HEARTBEAT": "processHeartBeat",
    "OFFERS": "resourceOffers",
    "INVERSE_OFFERS": "inverseOffers",
    "RESCIND": "offerRescinded",
    "RESCIND_INVERSE_OFFER": "inverseOfferRescinded",
    "UPDATE": "statusUpdate",
    "UPDATE_OPERATION_STATUS": "operationStatusUpdate",
    "MESSAGE": "frameworkMessage",
    "ERROR": "error",
}
EXECUTOR_CALLBACKS = {
    "SUBSCRIBED": "registered",
    "LAUNCH": "launchTask",
    "KILL": "killTask",
    "MESSAGE": "frameworkMessage",
    "SHUTDOWN": "shutdown",
}


class Recorded(NamedTuple):
    """One recorded stream: from its first event to the next SUBSCRIBE of the same program."""

    name: str
    events: list[dict[str, Any]]


def recorded_streams(path: Path, who: str) -> list[Recorded]:
    """Take the streams of a recording apart.

    A program that fails over has two for a moment: what comes then is the new one's, but for the ERROR, which is the
    old one's last event. What cannot be told apart (a stream without its beginning) is left out.
    """
    living: dict[str, list[Recorded]] = {}
    done: list[Recorded] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        body, streams = entry.get("body"), living.setdefault(entry.get("name", ""), [])
        if entry["who"] != who or not isinstance(body, dict):
            continue
        if entry["kind"] == "eof" and streams:
            done.append(streams.pop(0))
        if entry["kind"] != "event":
            continue
        if body["type"] == "SUBSCRIBED" or not streams:
            streams.append(Recorded(entry.get("name", ""), []))
        streams[0 if body["type"] == "ERROR" else -1].events.append(body)
    left = [stream for streams in living.values() for stream in streams]
    return [stream for stream in done + left if stream.events and stream.events[0]["type"] in FIRST_TYPES]


def served(fake: FakeMesos, recorded: Recorded, rng: random.Random) -> None:
    data = b"".join(encode_record(json.dumps(event).encode()) for event in recorded.events)
    sizes = iter(lambda: rng.choice((1, 7, 100, 5_000, 70_000)), None)
    fake.wait_stream().send_bytes(*in_pieces(data, sizes))


def scheduler_callback(event: dict[str, Any]) -> tuple[str, Any]:
    kind = event["type"]
    body = event.get(kind.lower())
    if kind == "FAILURE":
        if "executor_id" in body:
            return "executorLost", (body["executor_id"], body["agent_id"], body["status"])
        return "slaveLost", (body["agent_id"],)
    parts = {
        "OFFERS": lambda: (body["offers"],),
        "INVERSE_OFFERS": lambda: (body["inverse_offers"],),
        "RESCIND": lambda: (body["offer_id"],),
        "RESCIND_INVERSE_OFFER": lambda: (body["inverse_offer_id"],),
        "UPDATE": lambda: (body["status"],),
        "UPDATE_OPERATION_STATUS": lambda: (body["status"],),
        "MESSAGE": lambda: (body["executor_id"], body["agent_id"], body["data"]),
        "ERROR": lambda: (body["message"],),
        "HEARTBEAT": lambda: (),
    }
    return SCHEDULER_CALLBACKS[kind], parts[kind]()


def test_the_recordings_are_there() -> None:
    streams = [stream for path in FILES for stream in recorded_streams(path, "master")]
    assert len(FILES) >= 45 and len(streams) > 80
    kinds = {event["type"] for stream in streams for event in stream.events}
    assert kinds == {"SUBSCRIBED", "FAILURE", *SCHEDULER_CALLBACKS}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_recorded_event_of_a_master_reaches_the_scheduler(path: Path) -> None:
    rng = random.Random(path.stem)
    for recorded in recorded_streams(path, "master"):
        recorder = Recorder()
        framework: dict[str, Any] = {"user": "root", "name": "f", "roles": ["cache"]}
        first = recorded.events[0]
        with FakeMesos() as master:
            driver = SchedulerDriver(
                recorder,
                framework,
                master.address,
                timings=Timings(retry_first_ms=60_000, retry_ms_max=60_000),
            )
            driver.start()
            served(master, recorded, rng)
            expected = [
                scheduler_callback(event) for event in recorded.events if event["type"] != "SUBSCRIBED"
            ]
            if first["type"] == "SUBSCRIBED":
                framework_id, info = recorder.wait("registered")
                assert framework_id == first["subscribed"]["framework_id"] == {"value": driver.framework_id}
                assert info == first["subscribed"]["master_info"]
            if expected:
                recorder.wait(expected[-1][0], [name for name, _ in expected].count(expected[-1][0]))
            assert [entry for entry in recorder.seen if entry[0] != "registered"] == expected
            assert driver.callback_failure_count == 0
            assert driver.aborted == (recorded.events[-1]["type"] == "ERROR")
            driver.stop()
            driver.join()


def agents_of(path: Path) -> Iterator[Recorded]:
    for recorded in recorded_streams(path, "agent"):
        # 12e holds two clusters whose executors have one name: each event is there twice.
        launched: set[str] = set()
        yield Recorded(recorded.name, [event for event in recorded.events if _is_first(event, launched)])


def _is_first(event: dict[str, Any], launched: set[str]) -> bool:
    if event["type"] != "LAUNCH":
        return True
    task_id = event["launch"]["task"]["task_id"]["value"]
    is_first = task_id not in launched
    launched.add(task_id)
    return is_first


@pytest.mark.parametrize("path", [path for path in FILES if any(agents_of(path))], ids=lambda path: path.stem)
def test_every_recorded_event_of_an_agent_reaches_the_executor(path: Path) -> None:
    rng = random.Random(path.stem)
    for recorded in agents_of(path):
        recorder = Recorder()
        with FakeMesos(stream_ids=False) as agent:
            settings = ExecutorSettings(
                agent=parse_address(agent.address),
                framework_id="F",
                executor_id=recorded.name,
                checkpoint=True,
            )
            driver = ExecutorDriver(recorder, settings, end_process=pytest.fail)
            driver.start()
            served(agent, recorded, rng)
            kinds = [event["type"] for event in recorded.events if event["type"] in EXECUTOR_CALLBACKS]
            if "SHUTDOWN" in kinds:
                kinds = kinds[: kinds.index("SHUTDOWN") + 1]
            wanted = [EXECUTOR_CALLBACKS[kind] for kind in kinds]
            recorder.wait(wanted[-1], wanted.count(wanted[-1]))
            assert recorder.names() == wanted
            assert driver.callback_failure_count == 0
            driver.stop()
            driver.join()


def recorded_environments() -> list[dict[str, str]]:
    found = []
    for path in FILES:
        for line in path.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            if entry["who"] == "executor" and entry["kind"] == "note" and "env" in entry["body"]:
                found.append(entry["body"]["env"])
    return found


def test_the_environment_that_real_agents_give_is_understood() -> None:
    environments = recorded_environments()
    assert {environment["MESOS_CHECKPOINT"] for environment in environments} == {"0", "1"}
    for environment in environments:
        settings = read_settings(environment)
        assert settings.checkpoint == (environment["MESOS_CHECKPOINT"] == "1")
        assert (settings.recovery_timeout_ms, settings.shutdown_grace_ms) == (900_000, 5_000)

"""The embedded Mesos gives the answers that a real one gave: the recorded calls are made again, over real HTTP.

Transcript 05 (wrong calls of a scheduler), 01 (wrong FrameworkInfos), 05b (wrong tasks), 04b (wrong calls of an executor). The
ids of the recording are replaced by those of the running one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from support.embedded import EmbeddedProcess, Reply, Scheduler, request

TRANSCRIPTS = Path(__file__).parents[2] / "data" / "mesos-transcripts"
AGENT = ("--cpus", "4", "--mem", "4GiB", "--disk", "8GiB", "--ports", "31000-31099")

# Two bodies are cut in the recording; this is what stood there.
CUT_SHORT = {
    "SUBSCRIBE: framework_id given but no framework_info.id": ("no-such-framework", None),
    "SUBSCRIBE: the two ids differ": ("a", "b"),
}

pytestmark = pytest.mark.integration


class Case(NamedTuple):
    """A recorded call and its recorded answer."""

    why: str
    method: str
    path: str
    headers: dict[str, str]
    body: str
    status: int
    text: str
    answer_headers: dict[str, str]


class Recording(NamedTuple):
    cases: list[Case]
    framework_id: str
    stream_id: str


def lines(name: str) -> list[dict[str, Any]]:
    with (TRANSCRIPTS / name).open() as file:
        return [json.loads(line) for line in file]


def load_cases(name: str, who: str, default_path: str) -> list[Case]:
    """Return every call of `who` that a `response` with a status follows directly, in order."""
    entries = [entry for entry in lines(name) if entry["kind"] in ("call", "response")]
    result = []
    for call, response in zip(entries, entries[1:], strict=False):
        if (call["kind"], call["who"], response["kind"]) != ("call", who, "response"):
            continue
        http = call.get("http", {})
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        headers = http["headers"] if "method" in http else headers | http.get("headers", {})
        body = call["body"]
        text = body["raw"] if isinstance(body, dict) and "raw" in body else json.dumps(body)
        answer = response["http"]
        result.append(
            Case(
                call.get("why", ""),
                http.get("method", "POST"),
                http.get("path", default_path),
                headers,
                text,
                answer["status"],
                (response.get("body") or {}).get("text", ""),
                answer.get("headers", {}),
            )
        )
    return result


def scheduler_recording() -> Recording:
    cases = load_cases("05-errors.jsonl", "scheduler", "/api/v1/scheduler")
    subscription = next(case for case in cases if case.status == 200)
    framework_id = next(
        line["body"]["subscribed"]["framework_id"]["value"]
        for line in lines("05-errors.jsonl")
        if line["kind"] == "event" and line["body"]["type"] == "SUBSCRIBED"
    )
    return Recording(cases, framework_id, subscription.answer_headers["Mesos-Stream-Id"])


RECORDING = scheduler_recording()
NAMED = [
    case
    for case in RECORDING.cases
    if case.why and not case.why.startswith(("20 MB", "a header of", "request"))
]
TEARDOWN = next(i for i, case in enumerate(NAMED) if case.why.startswith("REVIVE after TEARDOWN"))


@pytest.fixture(scope="module")
def mesos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedProcess]:
    options = ("--agents", "2", "--allocation-interval", "0.05", *AGENT)
    with EmbeddedProcess(tmp_path_factory.mktemp("mesos") / "work", *options) as process:
        yield process


@pytest.fixture(scope="module")
def unused_mesos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedProcess]:
    """One whose agents are whole whenever a test begins."""
    with EmbeddedProcess(
        tmp_path_factory.mktemp("mesos") / "work", "--allocation-interval", "0.05", *AGENT
    ) as process:
        yield process


@pytest.fixture(scope="module")
def scheduler(mesos: EmbeddedProcess) -> Iterator[Scheduler]:
    subscription = Scheduler(mesos.address)
    yield subscription
    subscription.call("TEARDOWN")


def replay(mesos: EmbeddedProcess, case: Case, framework_id: str, stream_id: str) -> Reply:
    def ours(text: str) -> str:
        text = text.replace(RECORDING.framework_id, framework_id)
        text = text.replace(RECORDING.stream_id.upper(), stream_id.upper())
        return text.replace(RECORDING.stream_id, stream_id)

    body = case.body
    if case.why in CUT_SHORT:
        outer, inner = CUT_SHORT[case.why]
        info = {"user": "root", "name": "f1"} | ({"id": {"value": inner}} if inner else {})
        body = json.dumps(
            {"type": "SUBSCRIBE", "framework_id": {"value": outer}, "subscribe": {"framework_info": info}}
        )
    headers = {name: ours(value) for name, value in case.headers.items()}
    reply = mesos.request(case.method, case.path, ours(body), headers)
    text = reply.text.replace(framework_id, RECORDING.framework_id)
    text = text.replace(stream_id.upper(), RECORDING.stream_id.upper()).replace(
        stream_id, RECORDING.stream_id
    )
    return reply._replace(text=text)


def check(case: Case, reply: Reply) -> None:
    assert (reply.status, reply.text) == (case.status, case.text)
    for name in ("Content-Type", "Allow"):
        assert reply.headers.get(name) == case.answer_headers.get(name)
    if reply.status == 202:
        assert reply.headers["Content-Length"] == "0"


@pytest.mark.parametrize("case", NAMED[:TEARDOWN], ids=lambda case: case.why)
def test_a_wrong_scheduler_call_is_answered_as_by_a_real_master(
    case: Case, mesos: EmbeddedProcess, scheduler: Scheduler
) -> None:
    check(case, replay(mesos, case, scheduler.framework_id, scheduler.stream_id))


@pytest.mark.parametrize("case", NAMED[TEARDOWN:], ids=lambda case: case.why)
def test_after_teardown_calls_are_answered_as_by_a_real_master(case: Case, mesos: EmbeddedProcess) -> None:
    gone = Scheduler(mesos.address)
    gone.call("TEARDOWN")
    gone.wait_end()
    check(case, replay(mesos, case, gone.framework_id, gone.stream_id))


def test_there_are_as_many_recorded_calls_as_there_were() -> None:
    """A change of the loader must not make cases vanish."""
    assert len(NAMED) >= 60
    assert {case.status for case in NAMED} >= {202, 400, 405, 415, 404, 500}


ODD_SUBSCRIPTIONS = [case for case in RECORDING.cases if case.status in (406, 415) and not case.why]


@pytest.mark.parametrize("case", ODD_SUBSCRIPTIONS, ids=lambda case: str(case.status))
def test_a_subscription_with_odd_headers_is_refused(case: Case, mesos: EmbeddedProcess) -> None:
    check(case, mesos.request(case.method, case.path, case.body, case.headers))


class Subscription(NamedTuple):
    """A recorded SUBSCRIBE and the first event that it got, or the answer that refused it."""

    why: str
    body: dict[str, Any]
    event: dict[str, Any] | None
    refusal: tuple[int, str] | None


def load_subscriptions() -> list[Subscription]:
    entries = lines("01-subscribe.jsonl")
    result = []
    why = "first"
    for index, entry in enumerate(entries):
        if entry["kind"] == "note":
            why = entry["body"]["text"][:60]
        if entry["kind"] != "call" or entry["body"]["type"] != "SUBSCRIBE":
            continue
        later = [e for e in entries[index + 1 :] if e.get("name") == entry["name"] and e["who"] == "master"]
        response, event = later[0], later[1]
        refused = response["http"]["status"] != 200
        refusal = (response["http"]["status"], response["body"]["text"]) if refused else None
        result.append(Subscription(why, entry["body"], None if refused else event["body"], refusal))
    return result


@pytest.mark.parametrize("case", load_subscriptions(), ids=lambda case: case.why)
def test_a_framework_info_is_taken_or_refused_as_by_a_real_master(
    case: Subscription, mesos: EmbeddedProcess
) -> None:
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    if case.refusal is not None:
        reply = mesos.request("POST", "/api/v1/scheduler", json.dumps(case.body), headers)
        assert (reply.status, reply.text) == case.refusal
        return
    assert case.event is not None
    info = dict(case.body["subscribe"]["framework_info"])
    plain: dict[str, Any] = {
        "roles": None,
        "capabilities": None,
        "failover_timeout": None,
        "checkpoint": None,
    }
    subscription = Scheduler(
        mesos.address, info=plain | info, suppressed=case.body["subscribe"].get("suppressed_roles", ())
    )
    first = subscription.events[0]
    assert first["type"] == case.event["type"]
    if first["type"] == "ERROR":
        assert first == case.event
        subscription.wait_end()
        return
    assert first["subscribed"].keys() == case.event["subscribed"].keys()
    assert first["subscribed"]["master_info"].keys() == case.event["subscribed"]["master_info"].keys()
    subscription.call("TEARDOWN")
    subscription.wait_end()


class WrongTask(NamedTuple):
    """A recorded LAUNCH on one good offer, and the TASK_ERROR of one of its tasks."""

    why: str
    agent_id: str
    tasks: list[dict[str, Any]]
    status: dict[str, Any]


def load_wrong_tasks() -> list[WrongTask]:
    entries = lines("05b-offer-errors.jsonl")
    result = []
    why = ""
    for index, entry in enumerate(entries):
        if entry["kind"] == "note":
            why = entry["body"]["text"]
        if (
            entry["kind"] != "call"
            or entry["body"]["type"] != "ACCEPT"
            or len(entry["body"]["accept"]["offer_ids"]) != 1
        ):
            continue
        updates = [e["body"] for e in entries[index + 1 : index + 4] if e["kind"] == "event"]
        errors = [e["update"]["status"] for e in updates if e["type"] == "UPDATE"]
        operations = entry["body"]["accept"]["operations"]
        if not errors or errors[0]["state"] != "TASK_ERROR" or "duplicate" in errors[0]["message"]:
            continue
        tasks = operations[0]["launch"]["task_infos"]
        agent_id = errors[0]["message"].rsplit("agent ", 1)[-1].removesuffix(" is expected")
        result.append(WrongTask(why, agent_id, tasks, errors[0]))
    return result


@pytest.mark.parametrize("case", load_wrong_tasks(), ids=lambda case: case.why[:50])
def test_a_wrong_task_gets_the_error_of_a_real_master(case: WrongTask, unused_mesos: EmbeddedProcess) -> None:
    """Command tasks of the recording become tasks with an executor without resources: the embedded Mesos has no other."""
    subscription = Scheduler(unused_mesos.address)
    (offer,) = subscription.wait_offers()
    recorded = next((t["agent_id"]["value"] for t in case.tasks), "")
    framework_id = subscription.framework_id
    foreign = "invalid agent" in case.status["message"]
    tasks = json.loads(json.dumps(case.tasks))
    for task in tasks:
        if not foreign:
            task["agent_id"] = offer["agent_id"]
        if "executor" not in task and "command" in task:
            task["executor"] = {"executor_id": {"value": "e"}, "command": task.pop("command")}
        own = task.get("executor", {}).get("framework_id", {}).get("value")
        if own is not None and own != "foreign":
            task["executor"]["framework_id"] = {"value": framework_id}
    subscription.launch(offer, *tasks)
    status = subscription.wait_state(case.status["task_id"]["value"], "TASK_ERROR")
    expected = dict(case.status)
    expected.pop("timestamp")
    message = (
        expected["message"].replace(case.agent_id, offer["agent_id"]["value"])
        if foreign
        else expected["message"]
    )
    actual_framework = case.status["message"].rsplit("Expected: ", 1)[-1].rstrip(")")
    expected["message"] = (
        message.replace(actual_framework, framework_id) if "Expected: " in message else message
    )
    if not foreign:
        expected["agent_id"] = offer["agent_id"]
    status.pop("timestamp")
    assert recorded and sorted_resources(status) == sorted_resources(expected)
    subscription.call("TEARDOWN")
    subscription.wait_end()


def sorted_resources(status: dict[str, Any]) -> dict[str, Any]:
    """Return the status with the resources of its text in one order: Mesos keeps the task's, we sort."""
    start, middle, rest = status["message"].partition(
        " required by task and its executor is more than available "
    )
    if not middle:
        return status
    wanted = start.removeprefix("Total resources ")
    return status | {"message": (sorted(wanted.split("; ")), sorted(rest.split("; ")))}


EXECUTOR_CASES = [
    case
    for case in load_cases("04b-executor-acks.jsonl", "executor", "/api/v1/executor")
    if case.why and case.status != 202
]
EXECUTOR_FRAMEWORK = next(
    line["body"]["framework_id"]["value"]
    for line in lines("04b-executor-acks.jsonl")
    if line["who"] == "executor" and line["kind"] == "call"
)


@pytest.fixture(scope="module")
def endpoint(unused_mesos: EmbeddedProcess) -> Iterator[tuple[str, str]]:
    """The address of an agent where executor e1 runs, and its framework's id."""
    mesos = unused_mesos
    subscription = Scheduler(mesos.address)
    task = subscription.run("t1", executor_id="e1")
    (agent,) = [item for item in mesos.state()["slaves"] if item["id"] == task["agent_id"]["value"]]
    yield f"{agent['hostname']}:{agent['port']}", subscription.framework_id
    subscription.call("TEARDOWN")
    subscription.wait_end()


@pytest.mark.parametrize("case", EXECUTOR_CASES, ids=lambda case: case.why)
def test_a_wrong_executor_call_is_answered_as_by_a_real_agent(case: Case, endpoint: tuple[str, str]) -> None:
    address, framework_id = endpoint
    body = case.body.replace(EXECUTOR_FRAMEWORK, framework_id)
    reply = request(address, case.method, case.path, body, case.headers)
    check(case, reply._replace(text=reply.text.replace(framework_id, EXECUTOR_FRAMEWORK)))


def test_there_are_as_many_wrong_executor_calls_as_there_were() -> None:
    assert len(EXECUTOR_CASES) >= 18


@pytest.mark.parametrize(
    "path", ["/version", "/health", "/redirect", "/master/redirect", "/nope", "/state.json"]
)
def test_operators_get_the_answers_of_a_real_master(path: str, mesos: EmbeddedProcess) -> None:
    entries = lines("20-operator-http.jsonl")
    position = next(
        index
        for index, entry in enumerate(entries)
        if entry["kind"] == "call" and entry.get("http", {}).get("path") == path
    )
    recorded = entries[position + 1]
    reply = mesos.request("GET", path)
    assert reply.status == recorded["http"]["status"]
    if reply.status == 307:
        assert reply.headers["Location"] == f"//{mesos.address}"
    elif recorded.get("body"):
        expected = recorded["body"].get("text") or json.dumps(recorded["body"], separators=(",", ":"))
        assert reply.text == expected

"""Masters of the embedded Mesos that die, compete in a real ZooKeeper, and ask who calls: as 16, 17, 17b, 18, over real HTTP."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kazoo.client import KazooClient
from kazoo.exceptions import NoNodeError

from support.embedded import EmbeddedProcess, Event, Reply, Scheduler, make_task, request, subscribe_call
from support.waiting import DEADLINE_S, wait_until
from support.zookeeper import Place, ZooKeeperServer, needs_zookeeper, reserve_port, zookeeper

__all__ = ["zookeeper"]  # a fixture

pytestmark = pytest.mark.integration

QUICK = (
    "--allocation-interval",
    "0.05",
    "--agent-ping-timeout",
    "0.2",
    "--registration-backoff",
    "0.01",
    "--faults",
)
HEADERS = {"Content-Type": "application/json"}


def subscribe(address: str, headers: dict[str, str] | None = None, **info: Any) -> Reply:
    """Send a SUBSCRIBE that is expected to be refused."""
    call = subscribe_call(None, (), info)
    return request(address, "POST", "/api/v1/scheduler", json.dumps(call), HEADERS | (headers or {}))


def opened(address: str, headers: dict[str, str], **info: Any) -> tuple[str, str, http.client.HTTPConnection]:
    """Subscribe and return framework id and stream id, and what keeps the stream open."""
    connection = http.client.HTTPConnection(address, timeout=DEADLINE_S)
    call = subscribe_call(None, (), info)
    connection.request("POST", "/api/v1/scheduler", json.dumps(call), HEADERS | headers)
    response = connection.getresponse()
    assert response.status == 200
    event = json.loads(response.read(int(response.readline())))
    return event["subscribed"]["framework_id"]["value"], response.headers["Mesos-Stream-Id"], connection


def task_update(event: Event) -> Any:
    return event.get("update", {}).get("status", {})


@pytest.mark.parametrize("registry", ["in_memory", "replicated_log"])
def test_a_restarted_master_knows_nothing_or_what_its_registry_says(tmp_path: Path, registry: str) -> None:
    """As 16 and 16b."""
    with EmbeddedProcess(tmp_path / "work", *QUICK, "--master-registry", registry) as mesos:
        first = Scheduler(mesos.address)
        task = first.run("t1")
        wait_until(lambda: len(first.acknowledged) == 2, "both acknowledgements: else they come again")
        master_id = first.events[0]["subscribed"]["master_info"]["id"]
        assert mesos.fault("master-kill").status == 200
        first.wait_end()
        with pytest.raises(ConnectionRefusedError):
            mesos.request("GET", "/version")
        assert mesos.fault("master-start").status == 200
        gone = first.call("REVIVE")
        assert (gone.status, gone.text) == (400, "Framework cannot be found")
        again = Scheduler(mesos.address, framework_id=first.framework_id)
        assert again.framework_id == first.framework_id
        assert again.events[0]["subscribed"]["master_info"]["id"] != master_id
        asked = {"task_id": task["task_id"], "agent_id": task["agent_id"]}
        again.call("RECONCILE", {"tasks": [asked]})
        state = mesos.state()
        if registry == "in_memory":
            assert len(state["recovered_slaves"]) == 0
            back = again.wait_for(
                lambda event: task_update(event).get("reason") == "REASON_AGENT_REREGISTERED"
            )
            assert task_update(back)["state"] == "TASK_RUNNING" and "uuid" not in task_update(back)
            assert again.states("t1")[0] == "TASK_UNKNOWN"
        else:
            again.wait_offers()
            assert again.states("t1") == [], "silence until the agent is back, and no update afterwards"
        again.wait_offers()
        index = len(again.events)
        again.call("RECONCILE", {"tasks": [asked]})
        assert again.wait_state("t1", "TASK_RUNNING", start=index)["reason"] == "REASON_RECONCILIATION"
        assert again.ask(task, do="echo")["do"] == "echo"


def test_a_master_may_come_back_at_another_port(tmp_path: Path) -> None:
    with EmbeddedProcess(tmp_path / "work", *QUICK) as mesos:
        first = Scheduler(mesos.address)
        assert mesos.fault("master-start").status == 409
        assert mesos.fault("master-kill").status == 200
        assert mesos.fault("master-kill").status == 409
        port = reserve_port()
        assert mesos.fault("master-start", "1", str(port)).status == 200
        again = Scheduler(f"127.0.0.1:{port}", framework_id=first.framework_id)
        assert again.wait_offers()


def test_a_frozen_master_says_nothing_and_goes_on_later(tmp_path: Path) -> None:
    with EmbeddedProcess(tmp_path / "work", *QUICK, "--heartbeat-interval", "0.1") as mesos:
        scheduler = Scheduler(mesos.address)
        assert mesos.fault("master-freeze").status == 200
        connection = http.client.HTTPConnection(mesos.address, timeout=0.5)
        connection.request("GET", "/version")
        with pytest.raises(TimeoutError):
            connection.getresponse()
        count = len(scheduler.events)
        assert not scheduler.ended
        assert mesos.fault("master-thaw").status == 200
        scheduler.wait_for(lambda event: event["type"] == "HEARTBEAT", start=count)
        assert mesos.request("GET", "/version").status == 200


def test_words_get_lost_on_order(tmp_path: Path) -> None:
    with EmbeddedProcess(
        tmp_path / "work", *QUICK, "--update-retry", "0.2", "--heartbeat-interval", "0.1"
    ) as mesos:
        scheduler = Scheduler(mesos.address)
        offer = scheduler.wait_offers()[0]
        assert mesos.fault("drop-next", "UPDATE", "2").status == 200
        scheduler.launch(offer, make_task(offer, "t1"))
        scheduler.wait_state("t1", "TASK_STARTING")  # sent again, as nobody acknowledged it
        scheduler.wait_state("t1", "TASK_RUNNING")
        assert mesos.fault("drop-next", "KILL").status == 200
        assert scheduler.call("KILL", {"task_id": {"value": "t1"}}).status == 202
        assert scheduler.call("KILL", {"task_id": {"value": "t1"}}).status == 202
        scheduler.wait_state("t1", "TASK_KILLED")
        assert scheduler.states("t1").count("TASK_KILLED") == 1
        assert mesos.fault("heartbeats-stop").status == 200
        assert mesos.fault("close-stream").status == 200
        scheduler.wait_end()


@pytest.mark.parametrize(
    ("order", "status", "text"),
    [
        (("no-such-fault",), 400, "There is no fault 'no-such-fault': there are agent-stop"),
        (("agent-stop", "9"), 400, "'9' is no number from 1 to 1"),
        (("agent-stop", "1", "softly"), 400, "an agent is stopped by kill, freeze, usr1"),
        (("agent-stop",), 400, "agent-stop: write agent-stop N"),
        (("agent-start", "1"), 409, "agent 1 is up"),
        (("agent-start", "1", "cpus:many"), 400, "agent-start 1 cpus:many"),
        (("drop-next", "NOSUCH"), 400, "no event or call is a 'NOSUCH': there are ACCEPT, ACCEPT_INVERSE"),
        (("drop-next", "SUBSCRIBE"), 400, "no event or call is a 'SUBSCRIBE'"),
    ],
)
def test_an_order_that_cannot_be_done_says_what_can(
    tmp_path: Path, order: tuple[str, ...], status: int, text: str
) -> None:
    with EmbeddedProcess(tmp_path / "work", *QUICK) as mesos:
        reply = mesos.fault(*order)
        assert reply.status == status and text in reply.text


@pytest.mark.parametrize("life", ["up", "frozen"])
def test_a_refused_order_has_changed_nothing(tmp_path: Path, life: str) -> None:
    with EmbeddedProcess(tmp_path / "work", *QUICK) as mesos:
        if life == "frozen":
            assert mesos.fault("agent-stop", "1", "freeze").status == 200
        volume = tmp_path / "work" / "agent1" / "volumes" / "roles" / "cache" / "v1" / "kept"
        volume.parent.mkdir(parents=True)
        volume.write_text("data")
        for word in ("reset", "cpus:1"):
            refused = mesos.fault("agent-start", "1", word)
            assert refused.status == 409 and f"agent 1 is {life}: only one that has ended" in refused.text
        assert volume.read_text() == "data"
        assert mesos.fault("agent-stop", "1", "kill").status == 200
        wait_until(lambda: mesos.fault("agent-start", "1").status == 200, "its end, and its start")
        offered = Scheduler(mesos.address).wait_offers()[0]["resources"]
        assert {r["name"]: r.get("scalar", {}).get("value") for r in offered}["cpus"] != 1
        assert volume.read_text() == "data"


# Who calls: 18.


def basic(text: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(text.encode()).decode()}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedProcess]:
    directory = tmp_path_factory.mktemp("guarded")
    (directory / "secret").write_text("s3cret\n")
    credentials = ("--authenticate", f"stoker:file:{directory}/secret", "--authenticate", "other:o:ther")
    with EmbeddedProcess(directory / "work", *QUICK, *credentials) as mesos:
        yield mesos


@pytest.mark.parametrize(
    "headers",
    [
        {},
        basic("stoker:wrong"),
        basic("nobody:x"),
        {"Authorization": "Bearer abc"},
        {"Authorization": "Basic !!!"},
        {"Authorization": basic("stoker:s3cret")["Authorization"].replace("Basic", "basic")},
    ],
    ids=["none", "wrong secret", "unknown principal", "bearer", "rubbish", "lower case"],
)
def test_who_is_not_known_is_401(guarded: EmbeddedProcess, headers: dict[str, str]) -> None:
    reply = subscribe(guarded.address, headers)
    assert (reply.status, reply.text) == (401, "401 Unauthorized.")
    assert reply.headers["WWW-Authenticate"] == 'Basic realm="mesos-master-scheduler"'


@pytest.mark.parametrize("info", [{}, {"principal": "stoker"}], ids=["no principal", "the same principal"])
def test_every_call_is_authenticated_and_a_framework_is_its_principals(
    guarded: EmbeddedProcess, info: dict[str, str]
) -> None:
    framework_id, stream_id, connection = opened(guarded.address, basic("stoker:s3cret"), **info)

    def revive(headers: dict[str, str]) -> Reply:
        call = json.dumps({"type": "REVIVE", "framework_id": {"value": framework_id}})
        more = HEADERS | {"Mesos-Stream-Id": stream_id} | headers
        return request(guarded.address, "POST", "/api/v1/scheduler", call, more)

    assert revive(basic("stoker:s3cret")).status == 202
    assert revive({}).status == 401 and revive(basic("stoker:no")).status == 401
    foreign = revive(basic("other:o:ther"))
    text = "Authenticated principal 'other' does not match principal 'stoker' set in `FrameworkInfo`"
    assert (foreign.status, foreign.text) == (400, text)
    connection.close()


def test_a_framework_of_another_principal_is_400(guarded: EmbeddedProcess) -> None:
    reply = subscribe(guarded.address, basic("stoker:s3cret"), principal="other")
    text = "Authenticated principal 'stoker' does not match principal 'other' set in `FrameworkInfo`"
    assert (reply.status, reply.text) == (400, f"Failed to validate scheduler::Call: {text}")


def test_what_anybody_may_ask_is_answered_without_credentials(guarded: EmbeddedProcess) -> None:
    for path, status in (("/version", 200), ("/health", 200), ("/redirect", 307)):
        assert guarded.request("GET", path).status == status


def test_a_rotated_secret_shuts_out(guarded: EmbeddedProcess) -> None:
    assert guarded.fault("rotate-secret", "other", "new").status == 200
    assert subscribe(guarded.address, basic("other:o:ther")).status == 401


# ZooKeeper: 17 and 17b.


@pytest.fixture
def client(zookeeper: Place) -> Iterator[KazooClient]:
    client = KazooClient(zookeeper.hosts)
    client.start()
    yield client
    client.stop()
    client.close()


def infos(client: KazooClient, path: str) -> list[tuple[str, dict[str, Any], bool]]:
    """Return the nodes of masters in order: name, MasterInfo, whether it is ephemeral."""
    if not client.exists(path):
        return []
    found = []
    for name in sorted(name for name in client.get_children(path) if name.startswith("json.info_")):
        with contextlib.suppress(NoNodeError):
            data, stat = client.get(f"{path}/{name}")
            found.append((name, json.loads(data), stat.ephemeralOwner != 0))
    return found


@needs_zookeeper
def test_the_leader_is_told_in_zookeeper_and_the_others_send_there(
    tmp_path: Path, zookeeper: Place, client: KazooClient
) -> None:
    path = zookeeper.path
    session = ("--zk", zookeeper.url, "--zk-session-timeout", "2", "--masters", "3")
    with EmbeddedProcess(tmp_path / "work", *QUICK, *session) as mesos:
        wait_until(lambda: len(infos(client, path)) == 3, "three masters")
        (name, info, is_ephemeral), *others = infos(client, path)
        assert is_ephemeral and len(name) == len("json.info_0000000000")
        assert info["address"] == {"hostname": "127.0.0.1", "ip": "127.0.0.1", "port": info["port"]}
        assert info["ip"] == 16777343 and info["version"] == "1.12.0" and len(info["id"]) == 36
        leader, standby = f"127.0.0.1:{info['port']}", f"127.0.0.1:{others[0][1]['port']}"
        wait_until(lambda: request(leader, "GET", "/state", "", {}).status == 200, "the leader's recovery")
        scheduler = Scheduler(leader)
        assert scheduler.events[0]["subscribed"]["master_info"] == info | {"version": "1.12.0"}
        task = scheduler.run("t1")
        # A standby's answers.
        reply = subscribe(standby)
        assert (reply.status, reply.headers["Location"]) == (307, f"//{leader}/master/api/v1/scheduler")
        for asked, location in (("/redirect", ""), ("/master/redirect", ""), ("/state", "/master/state")):
            reply = request(standby, "GET", asked, "", {})
            assert (reply.status, reply.headers["Location"]) == (307, f"//{leader}{location}")
        assert request(standby, "GET", "/api/v1/scheduler", "", {}).status == 307
        assert request(standby, "GET", "/version", "", {}).status == 200
        assert request(standby, "GET", "/health", "", {}).status == 200
        # The leader is killed: its session must end first.
        assert mesos.fault("master-kill").status == 200
        scheduler.wait_end()
        assert subscribe(standby).headers["Location"] == f"//{leader}/master/api/v1/scheduler"
        wait_until(lambda: infos(client, path)[0][0] != name, "the end of the session")
        new = infos(client, path)[0][1]
        address = f"127.0.0.1:{new['port']}"
        assert new["id"] != info["id"]
        wait_until(
            lambda: request(address, "GET", "/state", "", {}).status == 200, "the new leader's recovery"
        )
        again = Scheduler(address, framework_id=scheduler.framework_id)
        assert again.framework_id == scheduler.framework_id
        again.wait_offers()
        again.call("RECONCILE", {"tasks": [{"task_id": task["task_id"], "agent_id": task["agent_id"]}]})
        again.wait_state("t1", "TASK_RUNNING")
        # The dead one comes back, as the last of three.
        assert mesos.fault("master-start", "1").status == 200
        wait_until(lambda: len(infos(client, path)) == 3, "three masters again")
        wait_until(lambda: subscribe(leader).status == 307, "its knowledge of who leads")
        assert subscribe(leader).headers["Location"] == f"//{address}/master/api/v1/scheduler"
        # The leader is stopped until its session is over; going on, it ends.
        assert mesos.fault("master-freeze").status == 200
        wait_until(lambda: infos(client, path)[0][1]["id"] != new["id"], "another leader")
        assert not again.ended
        third = f"127.0.0.1:{infos(client, path)[0][1]['port']}"
        wait_until(lambda: request(third, "GET", "/state", "", {}).status == 200, "its recovery")
        for number in ("1", "2", "3"):
            mesos.fault("master-thaw", number)
        again.wait_end()
        last = Scheduler(third, framework_id=scheduler.framework_id)
        assert last.wait_offers()
    assert infos(client, path) == [], "it ends its sessions"


@needs_zookeeper
def test_a_master_ends_with_its_zookeeper(tmp_path: Path) -> None:
    server = ZooKeeperServer(tmp_path / "zookeeper")
    server.start()
    session = ("--zk", f"zk://{server.address}/mesos", "--zk-session-timeout", "2")
    try:
        with EmbeddedProcess(tmp_path / "work", *QUICK, *session) as mesos:
            wait_until(lambda: mesos.request("GET", "/state").status == 200, "its election")
            scheduler = Scheduler(mesos.address)
            server.kill()
            scheduler.wait_end()
            with pytest.raises(ConnectionRefusedError):
                mesos.request("GET", "/version")
    finally:
        server.kill()


def test_a_master_without_zookeeper_knows_no_leader(tmp_path: Path) -> None:
    with EmbeddedProcess(
        tmp_path / "work", *QUICK, "--zk", f"zk://127.0.0.1:{reserve_port()}/mesos"
    ) as mesos:
        for reply in (
            subscribe(mesos.address),
            mesos.request("GET", "/state"),
            mesos.request("GET", "/redirect"),
        ):
            assert (reply.status, reply.text) == (503, "No leader elected")
        assert mesos.request("GET", "/version").status == 200
        assert mesos.request("GET", "/health").status == 200

"""A leader that stood still while another took its place: what it does next is refused, and it follows. Real processes, a real ZooKeeper."""

from __future__ import annotations

import http.client
import json
import pathlib
import signal
import threading
import time

import pytest
from kazoo.client import KazooClient

from stoker.zk.codec import read_batch_header
from support.schedulers import Api, SchedulerProcess, scheduler_process
from support.waiting import wait_until
from support.zookeeper import Place, needs_zookeeper, zookeeper

__all__ = ["zookeeper"]  # a fixture

pytestmark = [pytest.mark.integration, needs_zookeeper, pytest.mark.timeout(300)]

WAIT_S = 90.0
MEBIBYTE = 1 << 20


class Write(threading.Thread):
    """One write, sent at once, whose answer may come much later; `answer` is its status then."""

    def __init__(self, api: Api, mem_bytes: int) -> None:
        super().__init__(daemon=True)
        self.answer = 0
        self._connection = http.client.HTTPConnection(api.host, api.port, timeout=WAIT_S)
        body = json.dumps({"instances": 0, "mem_bytes": mem_bytes})
        self._connection.request("PUT", "/v1/fleet", body, {"Content-Type": "application/json"})
        self.start()

    def run(self) -> None:
        self.answer = self._connection.getresponse().status
        self._connection.close()


def state(process: SchedulerProcess) -> str:
    return str(process.api.get("/v1/leader")["state"])


def epochs(client: KazooClient, place: Place) -> list[int]:
    """Return the epochs of all batches of the log, in their order."""
    found = []
    for name in sorted(client.get_children(f"{place.path}/log")):
        header = read_batch_header(client.get(f"{place.path}/log/{name}")[0])
        assert header is not None
        found.append(header.epoch)
    return found


def test_a_leader_that_stood_still_is_refused_and_follows(zookeeper: Place, tmp_path: pathlib.Path) -> None:
    config = {
        "master": "127.0.0.1:1",
        "journal": zookeeper.url,
        "new_cluster": True,
        "instances": 0,
        "session_timeout_ms": 4_000,
    }
    client = KazooClient(hosts=zookeeper.hosts, timeout=60.0)
    client.start()
    with (
        scheduler_process(config, tmp_path / "old.log") as old,
        scheduler_process(config, tmp_path / "new.log") as new,
    ):
        wait_until(lambda: {state(old), state(new)} == {"leading", "following"}, "both", WAIT_S)
        if state(old) != "leading":
            old, new = new, old
        old.child.send_signal(signal.SIGSTOP)
        began_s = time.monotonic()
        api = old.api
        late = [Write(api, (100 + number) * MEBIBYTE) for number in range(10)]  # they lie in its sockets
        wait_until(lambda: state(new) == "leading", "another leader", WAIT_S)
        took_s = time.monotonic() - began_s
        assert new.api.call("PUT", "/v1/fleet", {"instances": 0, "mem_bytes": 99 * MEBIBYTE})[0] == 200
        old.child.send_signal(signal.SIGCONT)
        for write in late:
            write.join(WAIT_S)
        assert {write.answer for write in late} <= {307, 503}, "what it was asked before it knew is refused"
        follows = {"leader": new.url, "state": "following"}.items()
        wait_until(lambda: follows <= old.api.get("/v1/leader").items(), "the old leader to follow", WAIT_S)
        assert new.api.get("/v1/fleet")["mem_bytes"] == 99 * MEBIBYTE, "nothing of it was done"
        written = epochs(client, zookeeper)
        assert written == sorted(written) and set(written) == {1, 2}, (
            "no batch of the old epoch after the new"
        )
        assert state(new) == "leading" and new.api.get("/v1/leader")["epoch"] == 2
    client.stop()
    client.close()
    print(f"another led {took_s:.2f} s after the leader stood still, with a session of 4 s")

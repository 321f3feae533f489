"""Masters found in a real ZooKeeper, as Mesos' masters tell of themselves there."""

from __future__ import annotations

import json
import queue
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from kazoo.client import KazooClient

from stoker.mesos.detector import Address, check_master, locate_master, without_credentials
from stoker.mesos.errors import CallFailed
from stoker.mesos.zookeeper_detector import ZooKeeperDetector, leading_node, master_address
from stoker.zk.paths import parse_zk_url
from support.drivers import driving
from support.fake_mesos import FakeMesos, Recorder, subscribed
from support.ports import refusing_port
from support.waiting import DEADLINE_S, wait_until
from support.zookeeper import Place

TRANSCRIPT = Path(__file__).parents[2] / "data" / "mesos-transcripts" / "17-zookeeper-leader.jsonl"


def info(host: str, port: int) -> bytes:
    return json.dumps({"address": {"hostname": host, "ip": host, "port": port}, "hostname": host}).encode()


class Masters:
    """Nodes of masters, made by hand."""

    def __init__(self, place: Place) -> None:
        self.path = place.path
        self._client = KazooClient(hosts=place.hosts)
        self._client.start()

    def add(self, data: bytes, name: str = "json.info_") -> str:
        made: str = self._client.create(
            f"{self.path}/{name}", data, ephemeral=True, sequence=name.endswith("_"), makepath=True
        )
        return made

    def remove(self, node: str) -> None:
        self._client.delete(node)

    def close(self) -> None:
        self._client.stop()
        self._client.close()


@pytest.fixture
def masters(zookeeper: Place) -> Iterator[Masters]:
    made = Masters(zookeeper)
    yield made
    made.close()


@contextmanager
def detecting(url: str) -> Iterator[queue.Queue[str | None]]:
    told: queue.Queue[str | None] = queue.Queue()
    detector = ZooKeeperDetector(parse_zk_url(url))
    detector.start(told.put)
    try:
        yield told
    finally:
        detector.stop()
        assert detector._thread is not None
        detector._thread.join(DEADLINE_S)
        assert not detector._thread.is_alive()


def test_the_leading_master_is_told_again_when_it_changes(zookeeper: Place, masters: Masters) -> None:
    masters.add(b"", "log_replicas")
    first = masters.add(info("10.0.0.1", 5050))
    second = masters.add(info("10.0.0.2", 5051))
    with detecting(zookeeper.url) as told:
        assert told.get(timeout=DEADLINE_S) == "10.0.0.1:5050"
        masters.remove(first)
        assert told.get(timeout=DEADLINE_S) == "10.0.0.2:5051"
        masters.remove(second)
        assert told.get(timeout=DEADLINE_S) is None
        masters.add(info("10.0.0.3", 5052))
        assert told.get(timeout=DEADLINE_S) == "10.0.0.3:5052"


def test_a_path_that_is_not_there_yet_is_waited_for(zookeeper: Place, masters: Masters) -> None:
    with detecting(zookeeper.url) as told:
        masters.add(info("10.0.0.1", 5050))
        assert told.get(timeout=DEADLINE_S) == "10.0.0.1:5050"


def test_a_master_that_says_nonsense_leads_to_nobody_until_it_is_gone(
    zookeeper: Place, masters: Masters
) -> None:
    wrong = masters.add(b"not json")
    masters.add(info("10.0.0.2", 5050))
    with pytest.raises(CallFailed, match=f"node {wrong} of the leading Mesos master: no MasterInfo"):
        locate_master(zookeeper.url)
    masters.remove(wrong)
    assert locate_master(zookeeper.url) == Address("10.0.0.2", 5050)


def test_a_leaders_node_that_cannot_be_read_changes_nothing_and_is_said(
    zookeeper: Place, masters: Masters
) -> None:
    """A stream to the master told last is the better witness: that nobody leads would close it."""
    first = masters.add(info("10.0.0.1", 5050))
    wrong = masters.add(b"not json")
    told: queue.Queue[str | None] = queue.Queue()
    detector = ZooKeeperDetector(parse_zk_url(zookeeper.url))
    detector.start(told.put)
    try:
        assert told.get(timeout=DEADLINE_S) == "10.0.0.1:5050" and detector.reason == ""
        masters.add(info("10.0.0.3", 5052))
        masters.remove(first)
        wait_until(lambda: wrong in detector.reason, "the reason")
        assert told.empty()
        masters.remove(wrong)
        assert told.get(timeout=DEADLINE_S) == "10.0.0.3:5052"
        wait_until(lambda: detector.reason == "", "no reason more")
    finally:
        detector.stop()


def test_a_driver_follows_the_masters_of_zookeeper(zookeeper: Place, masters: Masters) -> None:
    recorder = Recorder()
    with FakeMesos() as first, FakeMesos() as second:
        node = masters.add(info("127.0.0.1", first.port))
        with driving(zookeeper.url, recorder):
            first.wait_stream().send(subscribed())
            recorder.wait("registered")
            masters.add(info("127.0.0.1", second.port))
            masters.remove(node)
            second.wait_stream().send(subscribed())
            recorder.wait("reregistered")


def test_an_ensemble_that_does_not_answer_is_said() -> None:
    with refusing_port() as port, pytest.raises(CallFailed, match="cannot be asked"):
        locate_master(f"zk://127.0.0.1:{port}/mesos")


def test_the_recorded_nodes_of_real_masters_are_understood() -> None:
    line = next(text for text in TRANSCRIPT.read_text().splitlines() if '"znodes"' in text)
    nodes = {node["path"].rpartition("/")[2]: node["data"] for node in json.loads(line)["body"]["znodes"]}
    leading = leading_node(nodes)
    assert leading == "json.info_0000000000" and "log_replicas" in nodes
    assert master_address(json.dumps(nodes[leading]).encode()) == Address("127.0.0.1", nodes[leading]["port"])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b'{"address": {"port": 1}}',
        b'{"address": {"ip": "h", "port": 0}}',
        b'{"address": 1}',
    ],
)
def test_what_is_no_master_info_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="MasterInfo"):
        master_address(data)


def test_the_smallest_number_leads_and_other_children_do_not_count() -> None:
    assert leading_node(
        ["json.info_0000000010", "json.info_0000000009", "log_replicas", "info_0000000001"]
    ) == ("json.info_0000000009")
    assert leading_node(["log_replicas"]) is None


def test_a_master_is_an_address_or_a_place_in_zookeeper() -> None:
    check_master("h:5050")
    check_master("zk://u:s@h:2181,i/mesos")
    assert without_credentials("zk://u:s@h:2181,i/mesos") == "zk://h:2181,i/mesos"
    for wrong in ("http://h:5050", "zk://h:2181", "zk://@h/mesos"):
        with pytest.raises(ValueError):
            check_master(wrong)

"""What `stoker mesos` says to who runs it: addresses, wrong orders, a ZooKeeper that is away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.embedded import EmbeddedProcess
from support.ports import refusing_port
from support.waiting import DEADLINE_S, wait_until

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def mesos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedProcess]:
    with EmbeddedProcess(tmp_path_factory.mktemp("mesos") / "work", "--faults") as mesos:
        yield mesos


@pytest.mark.parametrize(
    ("order", "says"),
    [
        (("agent-stop",), "write agent-stop N [kill|freeze|usr1|never-started]"),
        (("agent-stop", "1", "kill", "now"), "write agent-stop N"),
        (("agent-stop", "2"), "'2' is no number from 1 to 1"),
        (("heartbeats-stop", "1"), "write heartbeats-stop"),
        (("drop-next",), "write drop-next TYPE [COUNT]"),
        (("slow-fetch", "nan"), "nan is no delay from 0 to 3600 seconds"),
        (("rotate-secret", "p"), "write rotate-secret PRINCIPAL SECRET"),
        (("no-such",), "there are agent-stop, agent-start"),
    ],
)
def test_a_wrong_fault_order_says_what_is_right(
    mesos: EmbeddedProcess, order: tuple[str, ...], says: str
) -> None:
    reply = mesos.fault(*order)
    assert reply.status == 400 and says in reply.text and "positional" not in reply.text


def test_several_masters_say_their_addresses_and_once_that_zookeeper_is_away(tmp_path: Path) -> None:
    with refusing_port() as port:
        url = f"zk://127.0.0.1:{port}/mesos"
        options = ("--zk", url, "--zk-session-timeout", "0.3", "--masters", "2", "--faults")
        with EmbeddedProcess(tmp_path / "work", *options) as mesos:
            assert mesos.process.stdout is not None
            assert mesos.process.stdout.readline() == f"master 2 on http://{mesos.master_address(2)}\n"
            says = f"ZooKeeper at 127.0.0.1:{port} cannot be reached"
            wait_until(lambda: mesos.log.read_text().count(says) == 2, "both masters to say it")
        assert mesos.log.read_text().count(says) == 2 and "kazoo" not in mesos.log.read_text()


MODULE = (sys.executable, "-m", "stoker.mesos.embedded")
COMMAND = (sys.executable, "-c", "import stoker.framework.cli.main as m; m.main()", "mesos", "--agents", "1")


@pytest.mark.parametrize("command", [MODULE, COMMAND], ids=["module", "command"])
def test_a_work_directory_that_nobody_named_is_gone_at_the_end(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen([*command, "--port", "0"], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None and process.stdout.readline().startswith("listening on ")
        assert len(list(tmp_path.glob("stoker-mesos-*"))) == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 0
    finally:
        process.kill()
        process.wait(DEADLINE_S)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--allocation-interval", "nan"), "--allocation-interval is nan: write a number of seconds"),
        (("--heartbeat-interval", "inf"), "--heartbeat-interval is inf"),
        (("--heartbeat-interval", "1e300"), "--heartbeat-interval is 1e+300"),
        (("--offer-timeout", "nan"), "--offer-timeout is nan"),
        (("--zk-session-timeout", "inf"), "--zk-session-timeout is inf"),
        (("--cpus", "nan"), "cpus is nan"),
    ],
)
@pytest.mark.parametrize("command", [MODULE, COMMAND], ids=["module", "command"])
def test_a_wrong_option_is_said_and_leaves_nothing_behind(
    tmp_path: Path, command: tuple[str, ...], words: tuple[str, ...], says: str
) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [*command, *words], capture_output=True, text=True, env=environment, timeout=DEADLINE_S
    )
    assert done.returncode == 2 and f"error: {says}" in done.stderr, done
    assert "Traceback" not in done.stderr and list(tmp_path.iterdir()) == []

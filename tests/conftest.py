"""What holds for all tests: examples that are the same in every run of CI, and nothing that outlives its module.

Every process that a test starts inherits a mark in its environment, so what a failed test left behind is found and
ended before it can disturb the next one. Executors that the embedded Mesos starts have an environment of their own; they
are found by the directory that they work in.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from support.replay.report import ROW, report_lines

MARK = "STOKER_TEST_RUN"
END_TIMEOUT_S = 300
# What serves a whole session: processes of multiprocessing's own, and the ZooKeeper that tests share.
_SHARED = (b"multiprocessing.resource_tracker", b"multiprocessing.forkserver", b"org.apache.zookeeper")

# Folders whose files take longest.
_LONGEST = ("tests/integration/", "tests/conformance/", "tests/sim/")

# No example is too slow: machines that run tests are busy. By hand chance goes on looking; CI must not turn red by it.
settings.register_profile(
    "hand", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("ci", settings.get_profile("hand"), derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "hand")


def pytest_addoption(parser: pytest.Parser) -> None:
    """What the Mesos conformance suite takes (tests/conformance/mesos/conftest.py)."""
    group = parser.getgroup("mesos", "conformance of a Mesos with the recordings of a real one")
    add = group.addoption
    add(
        "--mesos-master",
        metavar="HOST:PORT[,HOST:PORT...]",
        help="play the recordings against this master (and those that stand by), not the embedded one",
    )
    add("--mesos-hooks", metavar="DIR", help="programs that do the operator's steps for another master")
    add(
        "--mesos-python",
        metavar="PATH",
        help="the Python 3 of the agents; default: the one that runs the tests",
    )
    add(
        "--mesos-test-host",
        metavar="IP",
        default="127.0.0.1",
        help="where executors on the agents reach this test",
    )
    add("--mesos-report", metavar="FILE", help="write each row and what became of it")


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config
) -> None:
    """List the rows of the Mesos conformance suite that did not pass; all of them in the file, with the sums of each transcript."""
    rows = _conformance_rows(terminalreporter)
    path = config.getoption("--mesos-report")
    if rows:
        terminalreporter.section("Mesos conformance")
        for line in report_lines(rows, whole=False, summary=bool(path)):
            terminalreporter.line(line)
    if config.getoption("--mesos-master") and not _is_shown(rows):
        terminalreporter.line("no row was played on that master: this run shows nothing", red=True)
    if path:
        Path(path).write_text("\n".join(report_lines(rows, whole=True, summary=True)) + "\n")


def _conformance_rows(reporter: pytest.TerminalReporter) -> list[dict[str, Any]]:
    return [
        value
        for found in reporter.stats.values()
        for report in found
        if getattr(report, "when", "") == "call"
        for name, value in getattr(report, "user_properties", ())
        if name == ROW
    ]


def _is_shown(rows: list[dict[str, Any]]) -> bool:
    return any(row["outcome"] == "passed" for row in rows)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let runners begin with the folders that have the longest files: one that began last would keep them waiting."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: [not item.nodeid.startswith(folder) for folder in _LONGEST])


@pytest.fixture(scope="session")
def _mark() -> str:
    """The mark of this worker's processes."""
    os.environ[MARK] = uuid.uuid4().hex
    return os.environ[MARK]


@pytest.fixture(scope="module", autouse=True)
def _nothing_is_left(_mark: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """End what the module's tests left running; nothing is, unless one of them failed."""
    yield
    left = _end_processes(f"{MARK}={_mark}".encode(), os.fsencode(tmp_path_factory.getbasetemp()) + b"/")
    if left:
        warnings.warn(f"processes were left running: {left}", stacklevel=1)


def _end_processes(mark: bytes, directory: bytes) -> list[str]:
    """Kill each process, but this one, that has `mark` in its environment or works below `directory`."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            environment = (entry / "environ").read_bytes()
            words = (entry / "cmdline").read_bytes()
            is_ours = mark in environment.split(b"\0") or b"=" + directory in environment
            if words and is_ours and not any(shared in words for shared in _SHARED):
                found.append(f"{entry.name} {words.replace(bytes(1), b' ').decode(errors='replace')[:200]}")
                os.kill(int(entry.name), signal.SIGKILL)
    return found


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A process that hangs behind its last test says where, and ends. (Workers of xdist are ended by it.)

    A conformance run on another master in which nothing could be played fails.
    """
    if hasattr(session.config, "workerinput"):
        return
    faulthandler.dump_traceback_later(END_TIMEOUT_S, exit=True, file=sys.__stderr__)
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if session.config.getoption("--mesos-master") and not session.exitstatus and reporter is not None:
        session.exitstatus = 0 if _is_shown(_conformance_rows(reporter)) else pytest.ExitCode.TESTS_FAILED

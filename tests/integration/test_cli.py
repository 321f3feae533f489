"""The command line as people and scripts use it: tables and JSON, exit codes, progress on a terminal."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pathlib
import pty
import signal
import struct
import subprocess
import termios
from collections.abc import Iterator

import click.testing
import pytest

from stoker.framework.cli.main import main
from support.files import make_files
from support.local import STOKER, Local, local_cluster, run_stoker
from support.stores import HttpStore, http_store
from support.waiting import DEADLINE_S, wait_until

pytestmark = pytest.mark.integration

TERMINAL_COLUMNS = 140


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Local]:
    state = tmp_path_factory.mktemp("cli") / "state"
    with local_cluster(state, "--agents", "2", "--mem", "48MiB") as local:
        local.wait_until_running(2)
        yield local


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    root = tmp_path_factory.mktemp("cli") / "files"
    make_files(root, 21, size_min=1, size_max=400_000)
    return root


@pytest.fixture(scope="module")
def slow_store(files: pathlib.Path) -> Iterator[HttpStore]:
    """The same files at 1 MB/s: a load of them takes about four seconds."""
    with http_store(files, throttle="1MB/s") as store:
        yield store


def test_a_dataset_from_add_to_rm(cluster: Local, files: pathlib.Path) -> None:
    added = cluster.run_process("dataset", "add", "d", str(files), "--replicas", "2", "--policy", "lru")
    assert added.returncode == 0
    header, row = added.stdout.splitlines()[-2:]
    assert header.split() == ["NAME", "STATE", "FILES", "BYTES", "CACHED", "REPLICAS", "VERSION", "SOURCE"]
    assert row.split()[:3] == ["d", "READY", "21"]
    assert "\x1b" not in added.stdout, "no colours in a pipe"

    shown = cluster.run_json("dataset", "show", "d")
    assert (shown["replicas"], shown["policy"], shown["files"], shown["version"]) == (2, "lru", 21, 1)
    assert shown["source"] == f"file://{files}"
    assert cluster.run("dataset", "show", "d", check=True).stdout.splitlines()[-1].split()[0] == "d"
    assert [d["name"] for d in cluster.run_json("dataset", "ls")["datasets"]] == ["d"]
    assert (
        cluster.run_json("dataset", "add", "d", str(files), "--replicas", "2", "--policy", "lru")["id"]
        == shown["id"]
    )

    changed = cluster.run_json("dataset", "set", "d", "--replicas", "1", "--priority", "-5")
    assert (changed["replicas"], changed["priority"], changed["policy"]) == (1, -5, "lru")
    nothing = cluster.run("dataset", "set", "d")
    assert nothing.returncode == 2 and "pass --replicas, --policy or --priority" in nothing.stderr

    (files / "new.bin").write_bytes(b"new")
    try:
        refreshed = cluster.run_json("dataset", "refresh", "d")
        assert (refreshed["version"], refreshed["files"], refreshed["state"]) == (2, 22, "READY")
    finally:
        (files / "new.bin").unlink()

    removed = cluster.run("dataset", "rm", "d", check=True)
    assert "untouched" in removed.stdout and str(files) in removed.stdout
    assert cluster.run_json("dataset", "ls") == {"datasets": []}
    again = cluster.run("dataset", "rm", "d")
    assert again.returncode == 1 and "no dataset 'd'" in again.stderr and again.stdout == ""
    assert sorted(p.name for p in files.iterdir()) == sorted({f"d{i}" for i in range(7)})


def test_no_wait_returns_at_once(cluster: Local, files: pathlib.Path) -> None:
    added = cluster.run_json("dataset", "add", "later", str(files), "--no-wait")
    assert added["state"] in ("LISTING", "READY")
    wait_until(lambda: cluster.client.dataset_info("later")["state"] == "READY", "the listing")
    cluster.run("dataset", "rm", "later", check=True)


def test_a_dataset_that_could_not_be_listed_leaves_its_name_free(cluster: Local, files: pathlib.Path) -> None:
    assert cluster.run("dataset", "add", "typo", f"{files}-typo").returncode == 1
    assert cluster.run_json("dataset", "add", "typo", str(files))["state"] == "READY"
    cluster.run("dataset", "rm", "typo", check=True)


def test_load_plan_wait_free_and_the_jobs_that_tell_of_it(cluster: Local, files: pathlib.Path) -> None:
    cluster.add("d", str(files))
    size = cluster.client.dataset_info("d")["bytes"]
    jobs_before = len(cluster.client.jobs())

    planned = cluster.run("load", "d", "--plan", check=True)
    assert "21 files" in planned.stdout and "SLOT" in planned.stdout and "it fits" in planned.stdout
    plan = cluster.run_json("load", "d", "--plan")
    assert plan["fits"] is True and plan["bytes"] == size and {s["slot"] for s in plan["slots"]} == {1, 2}
    assert len(cluster.client.jobs()) == jobs_before, "a plan is no job"

    loaded = cluster.run_process("load", "d", "--wait")
    assert loaded.returncode == 0
    assert "SUCCEEDED, 21 files" in loaded.stdout and "100%" in loaded.stdout
    assert "\x1b" not in loaded.stdout and "\r" not in loaded.stdout
    shown = cluster.run_json("dataset", "show", "d")
    assert shown["cached_bytes"] == size and shown["wanted"] == [{"include": True, "path": ""}]

    part = cluster.run_json("load", "d", "d1", "d2/file-00002.bin", "--wait")
    assert part["state"] == "SUCCEEDED" and part["paths"] == ["d1", "d2/file-00002.bin"]
    assert part["progress"]["files_total"] == 4

    rows = cluster.run("job", "ls", check=True).stdout.splitlines()
    assert rows[0].split() == ["ID", "KIND", "DATASET", "STATE", "PROGRESS", "ERRORS"]
    assert rows[-1].split()[:4] == [part["id"], "load", "d", "SUCCEEDED"]
    assert "SUCCEEDED" in cluster.run("job", "show", part["id"], check=True).stdout
    assert cluster.run_json("job", "show", part["id"])["id"] == part["id"]
    assert cluster.run_json("job", "wait", part["id"])["state"] == "SUCCEEDED"
    cancelled = cluster.run("job", "cancel", part["id"], check=True)
    assert "SUCCEEDED" in cancelled.stdout, "what is over stays as it is"

    freed = cluster.run("free", "d", "--wait", check=True)
    assert "free d SUCCEEDED" in freed.stdout
    assert cluster.run_json("dataset", "show", "d")["cached_bytes"] == 0
    cluster.client.delete_dataset("d")


@pytest.fixture
def stalling_store(files: pathlib.Path) -> Iterator[HttpStore]:
    """The same files but that one never comes: a load of them does not end."""
    with http_store(files) as store:
        store.order({"kind": "stall", "path": "d6/.*bin$", "seconds": 10 * DEADLINE_S})
        yield store


def test_a_job_is_followed_detached_from_and_cancelled(cluster: Local, stalling_store: HttpStore) -> None:
    cluster.add("slow", stalling_store.url)
    with _running("load", "slow", "--wait", url=cluster.url) as process:
        wait_until(lambda: any(j["dataset"] == "slow" for j in cluster.client.jobs()), "the job")
        job = next(j for j in cluster.client.jobs() if j["dataset"] == "slow")
        wait_until(lambda: (cluster.client.job(job["id"])["progress"]["bytes"] or 0) > 0, "the first bytes")
        assert process.stdout is not None
        assert process.stdout.readline().startswith("load slow [")
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 1
    assert f"detached; job {job['id']} goes on" in said and f"stoker job wait {job['id']}" in said
    assert cluster.client.job(job["id"])["state"] in ("PENDING", "RUNNING")

    cancelled = cluster.run("job", "cancel", job["id"], check=True)
    assert cancelled.stdout.split() == ["job", job["id"], "CANCELLED"]
    waited = cluster.run("job", "wait", job["id"])
    assert waited.returncode == 1 and "CANCELLED" in waited.stderr
    assert cluster.client.dataset_info("slow")["wanted"] == []
    cluster.client.delete_dataset("slow")


def _heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs are born with it ignored


@contextlib.contextmanager
def _running(*words: str, url: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [STOKER, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"STOKER_URL": url},
        preexec_fn=_heed_interrupts,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_terminal_sees_a_bar_that_moves_with_rate_and_eta(cluster: Local, slow_store: HttpStore) -> None:
    cluster.add("shown", slow_store.url)
    code, text = _run_on_terminal("load", "shown", "--wait", url=cluster.url)
    assert code == 0
    assert "\x1b[" in text and "━" in text, "a bar, drawn again and again"
    shares = {
        int(word.removesuffix("%"))
        for word in text.replace("\x1b", " ").split()
        if word.endswith("%") and word[:-1].isdigit()
    }
    assert 100 in shares and any(0 < share < 100 for share in shares), "it moves"
    assert "MiB/s" in text or "KiB/s" in text
    assert "ETA" in text
    assert "SUCCEEDED, 21 files" in text
    code, table = _run_on_terminal("dataset", "ls", url=cluster.url)
    assert code == 0 and "\x1b[1m" in table and "shown" in table, "a table with a bold head"
    cluster.client.delete_dataset("shown")


def _run_on_terminal(*words: str, url: str) -> tuple[int, str]:
    """Run a command on a terminal of TERMINAL_COLUMNS columns; return its exit code and all that it showed."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, TERMINAL_COLUMNS, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "CI")}
    environment |= {
        "STOKER_URL": url,
        "TERM": "xterm-256color",
        "LANG": "C.UTF-8",
        "PYTHONIOENCODING": "utf-8",
    }
    process = subprocess.Popen([STOKER, *words], stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # EIO: nobody has the other end any more
        while data := os.read(ours, 65536):
            shown += data
    os.close(ours)
    return process.wait(DEADLINE_S), shown.decode()


def test_the_fleet_is_shown_and_set(cluster: Local) -> None:
    shown = cluster.run("fleet", "show", check=True)
    assert "wanted: 2 executors of 48.0 MiB, role *; running: 2" in shown.stdout
    rows = [line.split() for line in shown.stdout.splitlines()[-2:]]
    assert [row[:2] for row in rows] == [["1", "RUNNING"], ["2", "RUNNING"]]
    view = cluster.run_json("fleet", "show")
    assert view["fleet"]["running"] == 2 and [e["slot"] for e in view["executors"]] == [1, 2]

    assert "wanted: 3 executors" in cluster.run("fleet", "set", "--instances", "3", check=True).stdout
    third = cluster.run_json("fleet", "show")["executors"][2]
    assert (third["slot"], third["state"]) == (3, "WAITING") and third["reason"]
    wait_until(
        lambda: (
            "declined" in {o["decision"] for o in cluster.client.offers()} or _waits_for_an_offer(cluster)
        ),
        "a reason",
    )
    assert cluster.run_json("fleet", "set", "--instances", "2")["instances"] == 2
    wait_until(lambda: len(cluster.client.executors()) == 2, "the third slot to go")
    assert {e["state"] for e in cluster.client.executors()} == {"RUNNING"}


def _waits_for_an_offer(cluster: Local) -> bool:
    return "offer" in cluster.client.executors()[2]["reason"]


def test_explain_says_where_blocks_belong_and_what_became_of_offers(
    cluster: Local, files: pathlib.Path
) -> None:
    cluster.add("why", str(files), replicas=2)
    told = cluster.run_json("explain", "why")
    view = cluster.client.dataset_info("why")
    assert [b["block"] for b in told["blocks"]] == list(range(view["blocks"]))
    assert told["wanted"] == [] and told["block_bytes"] == view["block_bytes"]
    assert all({h["slot"] for h in b["homes"]} == {1, 2} for b in told["blocks"])

    one = cluster.run_json("explain", "why/d0/file-00000.bin")
    size = (files / "d0" / "file-00000.bin").stat().st_size
    assert one["extent"]["bytes"] == size
    first, last = one["extent"]["offset"], one["extent"]["offset"] + size - 1
    assert [b["block"] for b in one["blocks"]] == list(
        range(first // told["block_bytes"], last // told["block_bytes"] + 1)
    )
    text = cluster.run("explain", "why/d0/file-00000.bin", check=True).stdout
    assert "nothing of it is wanted" in text and f"{size:,} bytes from address" in text
    assert "fills it from the under store" in text and "slot 1 (127." in text
    assert 0 < len(cluster.run_json("explain", "why/d0")["blocks"]) <= view["blocks"]

    missing = cluster.run("explain", "why/d0/nothing")
    assert missing.returncode == 1 and str(files) in missing.stderr
    assert cluster.run("explain", "nobody").returncode == 1

    offers = cluster.run_json("explain", "--offers")["offers"]
    accepted = [o for o in offers if o["decision"] == "accepted"]
    assert {o["reason"] for o in accepted} >= {"launches slot 1", "launches slot 2"}
    lines = cluster.run("explain", "--offers", check=True).stdout.splitlines()
    assert lines[0].split() == ["WHEN", "AGENT", "HOST", "CPUS", "MEM", "DECISION", "REASON"]
    later = cluster.run_json("explain", "--offers")["offers"]  # they come all the time
    end = lines.index("requirement by requirement, of each agent's newest offer")
    assert len(offers) <= end - 1 <= len(later)
    checked = lines[end + 1 :]
    assert checked[0].split() == ["AGENT", "DECISION", "REQUIREMENT", "WANTED", "OFFERED"]
    assert any("memory" in line and "PASS" in line for line in checked)
    cluster.client.delete_dataset("why")


def test_json_goes_to_stdout_alone_and_errors_to_stderr(cluster: Local, files: pathlib.Path) -> None:
    done = cluster.run_process("dataset", "add", "only-json", str(files), "--json")
    assert json.loads(done.stdout)["state"] == "READY" and done.stderr == ""
    done = cluster.run_process("load", "only-json", "--wait", "--json")
    assert json.loads(done.stdout)["state"] == "SUCCEEDED" and done.stderr == ""
    done = cluster.run_process("load", "only-json", "nothing", "--json")
    assert done.returncode == 1 and done.stdout == "" and done.stderr.startswith("stoker: ")
    cluster.client.delete_dataset("only-json")


def test_url_wins_over_the_environment_and_may_name_several(cluster: Local) -> None:
    several = f"http://127.0.0.1:9,{cluster.url.removeprefix('http://')}"
    done = run_stoker("dataset", "ls", "--url", several, environment={"STOKER_URL": "http://127.0.0.1:9"})
    assert done.returncode == 0, "the next scheduler of the list"


def test_every_command_has_help() -> None:
    todo: list[tuple[list[str], click.Command]] = [([], main)]
    while todo:
        words, command = todo.pop()
        shown = click.testing.CliRunner().invoke(main, [*words, "--help"])
        assert shown.exit_code == 0 and "Usage:" in shown.output
        assert command.help, f"{words} says nothing about itself"
        if isinstance(command, click.Group):
            todo += [([*words, name], below) for name, below in command.commands.items()]

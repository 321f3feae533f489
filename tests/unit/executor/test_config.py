"""What an executor is told by its environment and its machine."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import time

import pytest

from stoker.executor import sockets
from stoker.executor.config import load
from stoker.executor.errors import ConfigError
from stoker.executor.machine import (
    CONNECTIONS_MAX,
    CONNECTIONS_MIN,
    FILL_JOB_BYTES_MAX,
    FILL_JOB_BYTES_MIN,
    SCRATCH_BYTES_MAX,
    SCRATCH_BYTES_MIN,
    Memory,
    cgroup_bytes,
    mesos_mem_bytes,
    processes_bytes,
    share_memory,
)
from stoker.executor.sockets import clean_directory, listen_path, prepare_directory
from stoker.executor.under_stores.base import PIECE_BYTES_MAX

GOOD = {
    "STOKER_SCHEDULERS": "http://h1:5060, http://h2:5060/",
    "STOKER_CLUSTER": "00112233445566778899aabbccddeeff",
    "STOKER_SLOT": "3",
    "STOKER_LAUNCH": "4",
    "STOKER_TASK": "stoker-00112233-e1-s3-l4",
    "STOKER_SECRET": "s",
    "STOKER_EPOCH": "1",
    "STOKER_MEM_BYTES": "1000000",
    "STOKER_HOST": "127.0.0.1",
    "STOKER_PORT": "31000",
    "MESOS_SANDBOX": "/sandbox",
}


def test_a_whole_environment_is_taken() -> None:
    config = load(GOOD)
    assert config.schedulers == ("http://h1:5060", "http://h2:5060")
    assert config.socket_path == f"/tmp/stoker-{os.getuid()}/stoker-00112233-s3-l4.sock"
    assert (config.slot_id, config.mem_bytes, config.sandbox) == (3, 1_000_000, "/sandbox")
    assert load(GOOD | {"STOKER_SOCKET_DIR": "/run/x"}).socket_path.startswith("/run/x/")


def test_all_faults_are_told_at_once() -> None:
    bad = {
        "STOKER_SCHEDULERS": "h:1",
        "STOKER_CLUSTER": "xyz",
        "STOKER_SLOT": "0",
        "STOKER_MEM_BYTES": "1GiB",
        "STOKER_PORT": "65536",
        "STOKER_FILLERS": "1000",
    }
    with pytest.raises(ConfigError) as error:
        load(bad)
    text = str(error.value)
    for name in (*bad, "STOKER_LAUNCH", "STOKER_TASK", "STOKER_SECRET", "STOKER_EPOCH", "STOKER_HOST"):
        assert name in text
    assert "from 1 to 64" in text


def test_a_socket_directory_that_is_too_long_is_told_with_the_limit() -> None:
    with pytest.raises(ConfigError, match="at most 107"):
        load(GOOD | {"STOKER_SOCKET_DIR": "/" + "x" * 90})


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--help"], 0, "STOKER_MEM_BYTES"),
        ([], 2, "started by a Mesos agent"),
        (["serve"], 2, "takes no arguments"),
    ],
)
def test_the_command_line_says_what_it_is(arguments: list[str], code: int, words: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MESOS_")}
    done = subprocess.run(
        [sys.executable, "-m", "stoker.executor", *arguments], capture_output=True, text=True, env=environment
    )
    assert done.returncode == code
    assert words in done.stdout + done.stderr
    assert code == 0 or len(done.stderr.strip().splitlines()) == 1


def test_a_wrong_environment_is_one_line_and_exit_code_2() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "stoker.executor"],
        capture_output=True,
        text=True,
        env=os.environ | {"MESOS_AGENT_ENDPOINT": "127.0.0.1:1"},
    )
    assert done.returncode == 2
    assert "STOKER_CLUSTER is not set" in done.stderr and len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("module", ["server", "filler"])
def test_a_child_started_by_hand_says_who_starts_it(module: str) -> None:
    done = subprocess.run([sys.executable, "-m", f"stoker.executor.{module}"], capture_output=True, text=True)
    assert done.returncode == 2 and "keeper" in done.stderr


GIB = 2**30


PROCESSES = processes_bytes(2)
OVERHEAD = 256 * 2**20  # what the scheduler asks of Mesos on top of the tier


@pytest.mark.parametrize(
    ("mesos", "available", "cgroup", "given"),
    [
        (None, 100 * GIB, None, 100 * GIB),
        (4 * GIB + OVERHEAD, 100 * GIB, None, 4 * GIB + OVERHEAD),
        (3 * GIB, 100 * GIB, None, 3 * GIB),
        (None, 2 * GIB, 3 * GIB, 2 * GIB),
        (None, 100 * GIB, GIB, GIB),
        (4 * GIB + OVERHEAD, GIB, 2 * GIB, GIB),
        (None, PROCESSES + 4096, None, PROCESSES + 4096),
        (None, 1, None, PROCESSES),
    ],
)
def test_no_more_memory_is_shared_out_than_anybody_gives(
    mesos: int | None, available: int, cgroup: int | None, given: int
) -> None:
    found = share_memory(
        4 * GIB, filler_count=2, mesos_bytes=mesos, available_bytes=available, cgroup_bytes=cgroup
    )
    assert min(found) >= 0 and found.tier_bytes <= 4 * GIB and found.scratch_bytes <= SCRATCH_BYTES_MAX
    assert FILL_JOB_BYTES_MIN <= found.fill_job_bytes <= FILL_JOB_BYTES_MAX
    blocks = found.tier_bytes + found.scratch_bytes
    assert CONNECTIONS_MIN <= found.connections_max <= CONNECTIONS_MAX
    assert blocks + processes_bytes(2, found.fill_job_bytes, connections=found.connections_max) <= given
    assert found.tier_bytes == 4 * GIB or blocks == given - PROCESSES, "nothing is left over"


@pytest.mark.parametrize("fillers", [1, 2, 3, 8])
def test_more_fillers_have_their_buffers_at_the_tiers_cost(fillers: int) -> None:
    found = share_memory(
        4 * GIB,
        filler_count=fillers,
        mesos_bytes=4 * GIB + OVERHEAD,
        available_bytes=100 * GIB,
        cgroup_bytes=None,
    )
    blocks = found.tier_bytes + found.scratch_bytes
    taken = blocks + processes_bytes(fillers, found.fill_job_bytes, connections=found.connections_max)
    assert taken <= 4 * GIB + OVERHEAD
    assert (found.tier_bytes == 4 * GIB) == (fillers <= 2)
    assert found.fill_job_bytes % PIECE_BYTES_MAX == 0


@pytest.mark.parametrize("asked", [16 * 2**20, 64 * 2**20, GIB, 64 * GIB])
def test_the_tier_is_what_was_asked_where_mesos_gave_it_and_the_overhead(asked: int) -> None:
    there = {"filler_count": 2, "available_bytes": 100 * GIB, "cgroup_bytes": None}
    found = share_memory(asked, mesos_bytes=asked + OVERHEAD, **there)
    assert found.tier_bytes == asked and found.scratch_bytes >= SCRATCH_BYTES_MIN
    assert share_memory(asked, mesos_bytes=PROCESSES, **there) == Memory(
        0, 0, FILL_JOB_BYTES_MIN, CONNECTIONS_MIN
    )


def test_mesos_resources_are_added_up() -> None:
    info = {
        "resources": [{"name": "mem", "scalar": {"value": 128.0}}, {"name": "cpus", "scalar": {"value": 1}}]
    }
    assert mesos_mem_bytes(info, {"resources": [{"name": "mem", "scalar": {"value": 1}}]}) == 129 * 2**20
    assert mesos_mem_bytes({}, {"resources": []}) is None


def test_cgroup_limits_of_both_kinds_are_read(tmp_path) -> None:
    own = tmp_path / "own"
    unified = tmp_path / "v2" / "a" / "b"
    unified.mkdir(parents=True)
    (unified / "memory.max").write_text("max\n")
    (tmp_path / "v2" / "a" / "memory.max").write_text("5000\n")
    own.write_text("0::/a/b\n")
    assert cgroup_bytes(str(tmp_path / "v2"), str(own)) == 5000
    old = tmp_path / "v1" / "memory" / "x"
    old.mkdir(parents=True)
    (old / "memory.limit_in_bytes").write_text("7000\n")
    (tmp_path / "v1" / "memory" / "memory.limit_in_bytes").write_text(str(2**63 - 4096))
    own.write_text("3:cpu,cpuacct:/x\n4:memory:/x\n")
    assert cgroup_bytes(str(tmp_path / "v1"), str(own)) == 7000
    own.write_text("0::/elsewhere\n")
    assert cgroup_bytes(str(tmp_path / "none"), str(own)) is None


def test_dead_sockets_are_removed_and_living_ones_are_not(tmp_path) -> None:
    directory = str(tmp_path / "sockets")
    prepare_directory(directory)
    assert stat.S_IMODE(os.stat(directory).st_mode) == 0o755
    living = listen_path(f"{directory}/living.sock")
    dead = listen_path(f"{directory}/dead.sock")
    dead.close()
    half = socket.socket(socket.AF_UNIX)
    half.bind(f"{directory}/half.new")
    old = socket.socket(socket.AF_UNIX)
    old.bind(f"{directory}/old.new")
    os.utime(f"{directory}/old.new", (time.time() - 3600,) * 2)
    (tmp_path / "sockets" / "note").write_text("not ours")
    assert clean_directory(directory) == ["dead.sock", "old.new"]
    assert sorted(os.listdir(directory)) == ["half.new", "living.sock", "note"]
    assert stat.S_IMODE(os.stat(f"{directory}/living.sock").st_mode) == 0o666
    for sock in (living, half, old):
        sock.close()


def test_a_socket_directory_where_others_may_write_is_refused(tmp_path) -> None:
    directory = tmp_path / "sockets"
    directory.mkdir()
    directory.chmod(0o777)
    with pytest.raises(OSError, match="chmod go-w"):
        prepare_directory(str(directory))
    directory.chmod(0o1777)
    prepare_directory(str(directory))
    directory.chmod(0o750)
    prepare_directory(str(directory))
    assert stat.S_IMODE(directory.stat().st_mode) == 0o750, "the operator's own"


def test_any_user_may_look_into_the_default_socket_directory(tmp_path, monkeypatch) -> None:
    """A client of this user may have made it first, or a narrow umask."""
    directory = tmp_path / "default"
    directory.mkdir(0o700)
    monkeypatch.setattr(sockets, "socket_directory", lambda configured: str(directory))
    prepare_directory(str(directory))
    assert stat.S_IMODE(directory.stat().st_mode) == 0o755


def test_a_socket_directory_that_is_none_is_told(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="STOKER_SOCKET_DIR"):
        prepare_directory(str(tmp_path / "file"))
